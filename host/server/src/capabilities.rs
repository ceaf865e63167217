//! `/v1/capabilities`: whatever plugins offer, whether or not this host has heard of it.

use crate::call::{self, Call, refuse_ignored};
use crate::elements::{self, Flat};
use crate::error::reason;
use crate::oip::binary::{self, HEADER_LENGTH};
use crate::openai::wire::invalid;
use crate::options::KeepAliveField;
use crate::parse::{self, Parsed};
use crate::stream::Encoder;
use crate::{fault, sse};
use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue};
use backplane::payload::Usage;
use backplane::{Answer, CapabilityInfo, Chunk, DType, Done, Error, ErrorCode, Result, Route, Tensor};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use schemars::JsonSchema;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// A request to a capability. Its tensors may also follow as binary data, as in the Open Inference Protocol.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "CapabilityRequest")]
pub(crate) struct Request<'a> {
    /// A model, an alias or a route. Without it the router chooses among those that offer the capability.
    #[serde(default)]
    model: Option<String>,
    /// The parameters, as the capability's schema has them; `{}` if absent.
    #[serde(default, borrow)]
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    params: Option<&'a RawValue>,
    /// The tensors.
    #[serde(default, borrow)]
    tensors: Option<Vec<TensorIn<'a>>>,
    /// Whether the answer comes piece by piece, as server-sent events.
    #[serde(default)]
    stream: Option<bool>,
    /// Whether the answer's tensors come as binary data behind its JSON.
    #[serde(default)]
    binary_data_output: Option<bool>,
    /// How long the model stays open afterwards: `"5m"`, seconds, `0`, or `-1` for ever.
    #[serde(default)]
    keep_alive: Option<KeepAliveField>,
}

/// A tensor: its elements as JSON, its memory as base64, or behind the JSON as binary data.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CapabilityTensor")]
struct TensorIn<'a> {
    name: String,
    /// `FP32`, `INT64`, `BYTES` …
    datatype: String,
    shape: Vec<i64>,
    /// Its elements, row-major, flat or nested.
    #[serde(default, borrow)]
    #[schemars(with = "Option<Vec<Value>>")]
    data: Option<&'a RawValue>,
    /// Its memory, little endian.
    #[serde(default)]
    base64: Option<String>,
    /// `binary_data_size`: how many bytes of the binary data are this tensor's.
    #[serde(default)]
    parameters: Option<serde_json::Map<String, Value>>,
}

impl TensorIn<'_> {
    fn read(&self, index: usize, binary: &mut binary::Binary) -> Result<Tensor> {
        let at = |member: &str| format!("tensors[{index}].{member}");
        let name = self.name.as_str();
        let dtype = DType::from_name(&self.datatype).ok_or_else(|| {
            invalid(
                at("datatype"),
                format!("`{}` is `{}`, which is no datatype", at("datatype"), self.datatype),
            )
        })?;
        let shape = self.shape.clone();
        match (binary.take(name, self.parameters.as_ref())?, self.data, &self.base64) {
            (Some(memory), None, None) => Tensor::new(name, dtype, shape, memory),
            (None, Some(data), None) => elements::read(name, dtype, shape, data),
            (None, None, Some(text)) => {
                let memory = STANDARD.decode(text).map_err(|error| {
                    invalid(at("base64"), format!("`{}` is not base64: {error}", at("base64")))
                })?;
                Tensor::new(name, dtype, shape, memory)
            }
            _ => Err(invalid(
                format!("tensors[{index}]"),
                format!("tensor `{name}` needs one of `data`, `base64` and `parameters.binary_data_size`"),
            )),
        }
    }
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CapabilityAnswer")]
pub(crate) struct Answered<'a> {
    model: &'a str,
    /// The one piece of JSON of an answer that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    result: Option<Json<'a>>,
    /// The pieces of JSON of an answer that has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<serde_json::Map<String, Value>>>")]
    chunks: Option<Vec<Json<'a>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorOut<'a>>,
    #[schemars(with = "serde_json::Map<String, Value>")]
    usage: &'a Usage,
    /// Probability that the answer is right, uncalibrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
}

/// A piece of a streamed answer: `chunk` and `tensors`, or at the end `done`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CapabilityPiece")]
pub(crate) struct Piece<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    chunk: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<PieceDone<'a>>,
}

/// How a streamed answer ended.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CapabilityDone")]
struct PieceDone<'a> {
    model: &'a str,
    #[schemars(with = "serde_json::Map<String, Value>")]
    usage: &'a Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
}

/// JSON text of a plugin, checked and passed on as it is.
#[derive(Debug)]
struct Json<'a>(&'a [u8]);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        serde_json::from_slice::<&RawValue>(self.0).map_err(S::Error::custom)?.serialize(to)
    }
}

/// A tensor of an answer: elements where JSON can carry them, else memory as base64; or its size, when it follows.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CapabilityTensorOut")]
struct TensorOut<'a> {
    name: &'a str,
    #[schemars(with = "String")]
    datatype: DType,
    shape: &'a [i64],
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Value>>")]
    data: Option<crate::oip::wire::Data<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<crate::oip::wire::BinarySize>,
}

impl<'a> TensorOut<'a> {
    fn of(tensor: &'a Tensor, binary: bool) -> Self {
        let as_json = !binary && elements::carried_by_json(tensor).is_ok();
        let parameters = crate::oip::wire::BinarySize { binary_data_size: tensor.data.len() };
        Self {
            name: &tensor.name,
            datatype: tensor.dtype,
            shape: &tensor.shape,
            data: as_json.then_some(crate::oip::wire::Data(Flat(tensor))),
            base64: (!binary && !as_json).then(|| STANDARD.encode(&tensor.data)),
            parameters: binary.then_some(parameters),
        }
    }
}

/// `POST /v1/capabilities/{name}`
pub(crate) async fn call(mut call: Call) -> Result<HttpResponse> {
    let name: String = call.path().await?;
    let mut options = call.options()?;
    let body = call.bytes().await?;
    let mut parts = binary::split(call.headers(), body)?;
    let Parsed { value: request, mut ignored } = match &parts.json {
        empty if empty.is_empty() => Parsed { value: Request::default(), ignored: Vec::new() },
        json => parse::json::<Request<'_>>(json, call.json_depth())?,
    };
    for (index, tensor) in request.tensors.iter().flatten().enumerate() {
        binary::unread(&format!("tensors[{index}]"), tensor.parameters.as_ref(), &mut ignored);
    }
    let (stream, as_binary) =
        (request.stream.unwrap_or_default(), request.binary_data_output.unwrap_or_default());
    // Events are text.
    if stream && as_binary {
        ignored.push("binary_data_output".to_owned());
    }
    refuse_misplaced(&call, &name, &ignored)?;
    ignored.extend(call.unread_query());
    refuse_ignored(&options, &ignored)?;
    options.keep_alive = request.keep_alive.map(|field| field.0).or(options.keep_alive);
    let tensors = request.tensors.unwrap_or_default();
    let tensors = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| tensor.read(index, &mut parts.binary))
        .collect::<Result<Vec<_>>>()?;
    parts.binary.finish()?;
    let params = request.params.map_or("{}", RawValue::get);
    if !params.starts_with('{') {
        return Err(invalid("params", "`params` must be an object").with_reason(reason::INVALID_TYPE));
    }
    let params =
        serde_json::from_str::<&RawValue>(params).map_err(|error| invalid("params", error.to_string()))?;
    let asked = call.request(&name, request.model, &params, tensors, &options)?;
    if stream {
        return call.stream(vec![call.asking(asked)], &ignored, Stream::default()).await;
    }
    let answer = call.ask(asked).await?;
    let mut response = whole(&answer, as_binary)?;
    call.tell(&name, &answer, &ignored, response.headers_mut());
    Ok(response)
}

/// Refuses a parameter that stands beside `params`: what would be told else is that it is missing, or nothing.
fn refuse_misplaced(call: &Call, capability: &str, ignored: &[String]) -> Result<()> {
    if ignored.is_empty() {
        return Ok(());
    }
    let schemas = call.host().capability(capability).map(|capability| capability.schemas).unwrap_or_default();
    let takes = |name: &&String| {
        schemas
            .iter()
            .filter_map(|said| said.input_schema.as_ref())
            .any(|schema| names(schema, schema, name, 0))
    };
    ignored.iter().find(takes).map_or(Ok(()), |name| {
        Err(invalid(name.as_str(), format!("\"{name}\" stands beside \"params\", and belongs in it")))
    })
}

/// Schemas within schemas, as far as they are followed: they may refer to themselves.
const DEPTH: u8 = 8;

/// Whether a schema, which stands in `root`, gives a member of an object this name.
fn names(schema: &Value, root: &Value, name: &str, depth: u8) -> bool {
    let meant = schema["$ref"].as_str().and_then(|reference| root.pointer(reference.strip_prefix('#')?));
    let parts = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|part| schema[part].as_array()).flatten();
    let mut inner = parts.chain(meant);
    schema["properties"].get(name).is_some()
        || depth < DEPTH && inner.any(|schema| names(schema, root, name, depth + 1))
}

fn whole(answer: &Answer, binary: bool) -> Result<HttpResponse> {
    let mut pieces: Vec<Json<'_>> =
        answer.chunks.iter().filter(|chunk| !chunk.json.is_empty()).map(|chunk| Json(&chunk.json)).collect();
    let result = if pieces.len() == 1 { pieces.pop() } else { None };
    let tensors: Vec<&Tensor> = answer.chunks.iter().flat_map(|chunk| &chunk.tensors).collect();
    let json = serde_json::to_vec(&Answered {
        model: &answer.route.model,
        result,
        chunks: (!pieces.is_empty()).then_some(pieces),
        tensors: tensors.iter().map(|tensor| TensorOut::of(tensor, binary)).collect(),
        usage: &answer.done.usage,
        confidence: answer.done.confidence,
    })
    .map_err(|error| fault::schema(&answer.route.plugin, &error))?;
    if !binary {
        return Ok(HttpResponse::Ok().content_type("application/json").body(json));
    }
    let length = json.len();
    let mut body = BytesMut::from(&json[..]);
    tensors.iter().for_each(|tensor| body.extend_from_slice(&tensor.data));
    let mut response = HttpResponse::Ok().body(body.freeze());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// Writes the pieces as events.
#[derive(Default)]
struct Stream {
    model: String,
    plugin: String,
}

impl Stream {
    fn write(&self, piece: &Piece<'_>, out: &mut BytesMut) -> Result<()> {
        sse::event(piece, out).map_err(|error| fault::schema(&self.plugin, &error))
    }
}

impl Encoder for Stream {
    fn route(&mut self, _source: usize, route: &Route) {
        self.model = route.model.to_string();
        self.plugin = route.plugin.to_string();
    }

    fn chunk(&mut self, _source: usize, chunk: Chunk, out: &mut BytesMut) -> Result<()> {
        let piece = Piece {
            chunk: (!chunk.json.is_empty()).then_some(Json(&chunk.json)),
            tensors: chunk.tensors.iter().map(|tensor| TensorOut::of(tensor, false)).collect(),
            done: None,
        };
        self.write(&piece, out)
    }

    fn done(&mut self, _source: usize, done: Done, out: &mut BytesMut) -> Result<()> {
        let done = PieceDone { model: &self.model, usage: &done.usage, confidence: done.confidence };
        self.write(&Piece { chunk: None, tensors: Vec::new(), done: Some(done) }, out)
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<()> {
        out.extend_from_slice(sse::DONE);
        Ok(())
    }
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<CapabilityInfo>,
}

/// `GET /v1/capabilities`. The schemas of the standard ones are told with each alone: together they are long.
pub(crate) async fn list(call: Call) -> Result<HttpResponse> {
    let mut data = call.host().capabilities();
    data.iter_mut().for_each(|capability| capability.schemas.retain(|said| said.plugin.is_some()));
    call::json(&List { object: "list", data })
}

/// `GET /v1/capabilities/{name}`
pub(crate) async fn retrieve(call: Call) -> Result<HttpResponse> {
    let name: String = call.path().await?;
    let found = call.host().capability(&name);
    let missing = || {
        let message = format!("no model here offers `{name}`; `GET /v1/capabilities` lists what is offered");
        Error::new(ErrorCode::NotFound, message).with_reason("capability_not_found")
    };
    call::json(&found.ok_or_else(missing)?)
}
