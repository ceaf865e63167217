//! ONNX models by ONNX Runtime: `tensor.infer` for any graph; `embed`, `rerank` and `classify` for graphs that read text.
//!
//! - [`runtime`]: finds `libonnxruntime` and starts it.
//! - [`card`]: what a model's card may say.
//! - [`session`]: one opened graph, its signature and its runs.
//! - [`infer`]: tensors in, tensors out; [`convert`] makes ONNX Runtime's values of them and back.
//! - [`text`]: texts in, a row of numbers for each: [`embed`], [`rerank`], [`classify`]; [`tokenize`] and [`encoder`]
//!   lead there, [`pooling`] makes the numbers.
//! - [`batch`]: what runs together.
//!
//! Instances are SERIAL: a session takes one call at a time, has a thread of its own, and is given whatever waits for the
//! model as one batch. More throughput than one core has comes from more instances, each with its own session.

mod batch;
mod card;
mod classify;
mod convert;
mod counters;
mod embed;
mod encoder;
mod infer;
mod pooling;
mod rerank;
mod runtime;
mod session;
mod text;
mod tokenize;

use backplane_plugin::payload::{
    classify as classify_payload, embed as embed_payload, rerank as rerank_payload, tensor,
};
use backplane_plugin::prelude::*;
use card::Parameters;
use classify::Classify;
use counters::Counters;
use embed::Embed;
use encoder::Encoder;
use infer::Infer;
use ort::session::Session;
use rerank::Rerank;
use runtime::{Runtime, Settings};
use session::{Engine, Port, Signature, Source};
use std::sync::{Arc, Mutex, PoisonError};
use text::Texts;
use tokenize::Tokenizer;

/// The format this plugin opens.
const FORMAT: &str = "onnx";

/// The library.
struct OnnxPlugin {
    runtime: Arc<Runtime>,
    host: Host,
}

impl Plugin for OnnxPlugin {
    const ID: &'static str = "dev.backplane.onnx";

    fn init(host: Host, config: &Value) -> Result<Self> {
        let settings: Settings = backplane_plugin::settings(Self::ID, config)?;
        let runtime = Runtime::new(settings, host);
        if let Err(error) = runtime.check() {
            host.log(Level::Warn, error.message);
        }
        Ok(Self { runtime, host })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        let model = query.model().unwrap_or_default();
        if query.format != FORMAT && model.format != FORMAT {
            return Bid::no(BidReason::Format, format!("only the format `{FORMAT}` can be opened"));
        }
        if let Err(error) = self.runtime.check() {
            // Asked again soon: it may be installed any moment.
            return Bid { valid_ms: 1_000, ..Bid::no(BidReason::Runtime, error.message) };
        }
        let size = model.files.iter().map(|file| file.size).sum();
        // What is wrong with the card is said when it is opened.
        let source = Parameters::of(&model).and_then(|parameters| Source::of(&model, &parameters));
        let sessions = if source.is_ok_and(|source| source.narrow().is_some()) { 2 } else { 1 };
        Bid { host_bytes: memory(size).saturating_mul(sessions), ..Bid::default() }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let parameters = Parameters::of(model)?;
        let source = Source::of(model, &parameters)?;
        let environment = self.runtime.start()?;
        let (session, signature) = source.open(&environment, self.host)?;
        let parts = Parts::of(model, &parameters, &signature)?;
        Ok(Box::new(OnnxModel {
            runtime: self.runtime.clone(),
            host: self.host,
            max_batch: parameters.max_batch,
            source,
            signature: Arc::new(signature),
            parts: Arc::new(parts),
            counters: Arc::default(),
            first: Mutex::new(Some(session)),
        }))
    }
}

/// Memory a model takes once open, in bytes, from the size of its files.
///
/// Measured on ONNX Runtime 1.31: weights of 32 bits take 1.03 times their file; weights that are only stored in 8 bits
/// are unfolded and take four times theirs; what a graph needs to run is 10 to 60 MiB for MiniLM at 512 tokens. Most
/// files are of the first kind, and those of the second are small enough for the base.
fn memory(files: u64) -> u64 {
    const BASE: u64 = 64 << 20;
    BASE + files.saturating_add(files / 4)
}

/// What serves the model's capabilities.
struct Parts {
    infer: Option<Infer>,
    embed: Option<Texts<Embed>>,
    rerank: Option<Texts<Rerank>>,
    classify: Option<Texts<Classify>>,
    tokenizer: Option<Arc<Tokenizer>>,
}

impl Parts {
    fn of(model: &ModelSpec, parameters: &Parameters, signature: &Signature) -> Result<Self> {
        let name = &*model.name;
        let mut parts = Self { infer: None, embed: None, rerank: None, classify: None, tokenizer: None };
        let known = [
            tensor::CAPABILITY,
            embed_payload::CAPABILITY,
            rerank_payload::CAPABILITY,
            classify_payload::CAPABILITY,
        ];
        let wanted: Vec<&str> = match &model.capabilities[..] {
            [] => vec![tensor::CAPABILITY],
            some => some.iter().map(String::as_str).collect(),
        };
        if let Some(unknown) = wanted.iter().find(|wanted| !known.contains(wanted)) {
            let message = format!(
                "model `{name}` is to serve `{unknown}`, and the onnx plugin serves `{}`",
                known.join("`, `")
            );
            return Err(Error::new(Code::Unimplemented, message).with_param("capabilities"));
        }
        if wanted.iter().any(|wanted| *wanted != tensor::CAPABILITY) {
            parts.tokenizer = Some(tokenizer(model, parameters, signature)?);
        }
        for wanted in wanted {
            match (wanted, parts.tokenizer.clone()) {
                (embed_payload::CAPABILITY, Some(tokenizer)) => {
                    let (task, output) = Embed::of(parameters, signature, tokenizer.clone(), name)?;
                    parts.embed = Some(texts(task, output, &tokenizer, parameters, signature, name)?);
                }
                (rerank_payload::CAPABILITY, Some(tokenizer)) => {
                    let (task, output) = Rerank::of(parameters, signature, tokenizer.clone(), name)?;
                    parts.rerank = Some(texts(task, output, &tokenizer, parameters, signature, name)?);
                }
                (classify_payload::CAPABILITY, Some(tokenizer)) => {
                    let (task, output) = Classify::of(parameters, signature, tokenizer.clone(), model)?;
                    parts.classify = Some(texts(task, output, &tokenizer, parameters, signature, name)?);
                }
                _ => {
                    parts.infer =
                        Some(Infer::of(signature, parameters.batch, parameters.max_batch as usize, name)?)
                }
            }
        }
        Ok(parts)
    }
}

fn texts<T>(
    task: T,
    output: Port,
    tokenizer: &Tokenizer,
    parameters: &Parameters,
    signature: &Signature,
    model: &str,
) -> Result<Texts<T>> {
    let encoder = Encoder::of(signature, output, tokenizer.pad(), model)?;
    Ok(Texts { task, encoder, budget: parameters.max_batch_tokens })
}

/// The tokenizer, limited to what card and graph take.
fn tokenizer(model: &ModelSpec, parameters: &Parameters, signature: &Signature) -> Result<Arc<Tokenizer>> {
    let context = model.extra.get("context").and_then(Value::as_u64).map(|context| context as usize);
    let max_length = parameters.max_length.or(context);
    let mut tokenizer = Tokenizer::open(model.file("tokenizer")?, &model.name, max_length)?;
    let ids = signature.inputs.iter().find(|port| port.name == "input_ids");
    tokenizer.limit(ids.and_then(|port| usize::try_from(*port.shape.get(1)?).ok()));
    Ok(Arc::new(tokenizer))
}

/// An opened model.
struct OnnxModel {
    runtime: Arc<Runtime>,
    host: Host,
    max_batch: u32,
    source: Source,
    signature: Arc<Signature>,
    parts: Arc<Parts>,
    counters: Arc<Counters>,
    /// The session that was made to see what the graph is: the first instance's.
    first: Mutex<Option<Session>>,
}

impl Model for OnnxModel {
    fn execution(&self) -> Execution {
        let parts = &self.parts;
        let texts = parts.embed.is_some() || parts.rerank.is_some() || parts.classify.is_some();
        let shares = texts || parts.infer.as_ref().is_some_and(|infer| infer.batch);
        Execution::Serial { max_batch: if shares { self.max_batch } else { 1 } }
    }

    fn describe(&self) -> Description {
        let limit = self.parts.tokenizer.as_ref().and_then(|tokenizer| tokenizer.max_length());
        Description {
            platform: Some(FORMAT.to_owned()),
            context: limit.and_then(|limit| limit.try_into().ok()),
            dimensions: self.parts.embed.as_ref().and_then(|embed| embed.task.dimensions()),
            batch: self.parts.infer.as_ref().is_some_and(|infer| infer.batch),
            inputs: self.signature.inputs.iter().map(Port::spec).collect(),
            outputs: self.signature.outputs.iter().map(Port::spec).collect(),
            ..Description::default()
        }
    }

    fn instance(&self, seat: &Seat) -> Result<Box<dyn Instance>> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let open = |source: &Source| {
            let (session, signature) = source.open(&self.runtime.start()?, self.host)?;
            if signature != *self.signature {
                return Err(Error::model_invalid("the graph is another one than when the model was opened"));
            }
            Ok(session)
        };
        let session = first.map_or_else(|| open(&self.source), Ok)?;
        let narrow = self.source.narrow().as_ref().map(open).transpose()?;
        let (signature, counters) = (self.signature.clone(), self.counters.clone());
        let engine = Engine::new(session, narrow, signature, &self.source, counters, *seat, self.host);
        Ok(Box::new(OnnxInstance { engine, parts: self.parts.clone() }))
    }

    fn count_tokens(&self, capability: &str, params_json: &str) -> Result<Option<u64>> {
        let parts = &*self.parts;
        let rows = match (capability, parts) {
            (embed_payload::CAPABILITY, Parts { embed: Some(embed), .. }) => {
                embed.task.tokens(&serde_json::from_str(params_json)?)?
            }
            (rerank_payload::CAPABILITY, Parts { rerank: Some(rerank), .. }) => {
                rerank.task.tokens(&serde_json::from_str(params_json)?)?
            }
            (classify_payload::CAPABILITY, Parts { classify: Some(classify), .. }) => {
                classify.task.tokens(&serde_json::from_str(params_json)?)?
            }
            _ => return Ok(None),
        };
        Ok(Some(rows.iter().map(|row| row.len() as u64).sum()))
    }

    fn stats(&self, each: &mut dyn FnMut(&str, f64)) {
        self.counters.read().into_iter().for_each(|(name, value)| each(name, value));
    }
}

/// A running copy.
struct OnnxInstance {
    engine: Engine,
    parts: Arc<Parts>,
}

impl Instance for OnnxInstance {
    fn submit(&self, mut requests: Vec<Request>) {
        let (engine, parts) = (&self.engine, &*self.parts);
        let mut take = |capability: &str| -> Vec<Request> {
            requests.extract_if(.., |request| request.capability() == capability).collect()
        };
        if let Some(infer) = &parts.infer {
            infer.serve(engine, take(tensor::CAPABILITY));
        }
        if let Some(embed) = &parts.embed {
            embed.serve(engine, take(embed_payload::CAPABILITY));
        }
        if let Some(rerank) = &parts.rerank {
            rerank.serve(engine, take(rerank_payload::CAPABILITY));
        }
        if let Some(classify) = &parts.classify {
            classify.serve(engine, take(classify_payload::CAPABILITY));
        }
        for request in requests {
            let message = format!("the model does not serve `{}`", request.capability());
            request.finish(Err(Error::new(Code::Unimplemented, message)));
        }
    }

    fn cancel(&self, request: u64) {
        self.engine.leave(request);
    }
}

export_plugin!(OnnxPlugin, include_str!("../plugin.toml"));
