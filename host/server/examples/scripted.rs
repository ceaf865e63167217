//! A plugin for the tests: a model that answers what the request tells it to, in the words of the standard
//! capabilities. So a test says in one place what the model does and what HTTP must make of it.
//!
//! `chat` and `complete` read a [`Script`] from the last message or the prompt; text that is no script is given back
//! word by word, as far as `max_tokens` allows: a word is a token. `embed` and `tensor.infer` compute something small. `test.unforeseen` is a capability that no host
//! has heard of; `vision.ocr` and its sisters give back what they were asked, too. `acme/script:2` says that it sees.

use backplane_plugin::payload::{FinishReason, Usage, chat, complete, embed, languages, tensor, translate};
use backplane_plugin::prelude::*;
use backplane_plugin::serde::Deserialize;
use std::time::Duration;

struct Scripted;

/// What a model is to do.
#[derive(Default, Deserialize)]
#[serde(crate = "backplane_plugin::serde", default)]
struct Script {
    /// Pieces, as the capability has them.
    chunks: Vec<Value>,
    /// Gives the parameters back as the text of the answer.
    params: bool,
    /// Waits before the first piece, and before each other.
    delay_ms: u64,
    every_ms: u64,
    /// Fails after the pieces: code, message.
    fail: Option<(i32, String)>,
    /// With this reason.
    reason: Option<String>,
    usage: Usage,
    confidence: Option<f64>,
}

impl Plugin for Scripted {
    const ID: &'static str = "test.scripted";

    fn init(_host: Host, _config: &Value) -> Result<Self> {
        Ok(Scripted)
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        match query.format {
            "gpu" => Bid::no(BidReason::Device, "no GPU at /dev/secret0"),
            "big" => Bid::no(BidReason::Memory, "it needs more than there is"),
            "down" => Bid { score: 900, ..Bid::default() },
            _ => Bid::default(),
        }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        match model.format.as_str() {
            "down" => Err(Error::new(Code::Unavailable, "it is down")),
            _ => Ok(Box::new(Opened)),
        }
    }
}

struct Opened;

impl Model for Opened {
    fn execution(&self) -> Execution {
        Execution::Concurrent { max_inflight: 16, max_batch: 1 }
    }

    fn describe(&self) -> Description {
        let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
        };
        Description {
            platform: Some("scripted".to_owned()),
            context: Some(4096),
            inputs: vec![spec("A", DType::Int32, &[-1]), spec("B", DType::Int32, &[-1])],
            outputs: vec![spec("SUM", DType::Int32, &[-1])],
            ..Description::default()
        }
    }

    fn count_tokens(&self, capability: &str, params_json: &str) -> Result<Option<u64>> {
        let text = match capability {
            chat::CAPABILITY => last_message(&backplane_plugin::serde_json::from_str(params_json)?),
            complete::CAPABILITY => prompt(backplane_plugin::serde_json::from_str(params_json)?),
            _ => return Ok(None),
        };
        Ok(Some(text.split_whitespace().count() as u64))
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        Ok(each(|request| match request.capability() {
            chat::CAPABILITY => answer_chat(request),
            complete::CAPABILITY => answer_complete(request),
            embed::CAPABILITY => answer_embed(request),
            tensor::CAPABILITY => answer_tensors(request),
            translate::CAPABILITY => answer_translate(request),
            languages::CAPABILITY => answer_languages(),
            _ => answer_unforeseen(request),
        }))
    }
}

fn last_message(params: &chat::Params) -> String {
    match params.messages.last().map(|message| &message.content) {
        Some(chat::Content::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

fn prompt(params: complete::Params) -> String {
    match params.prompt {
        complete::Prompt::Text(text) => text,
        complete::Prompt::Tokens(tokens) => format!("{tokens:?}"),
    }
}

fn answer_chat(request: &Request) -> Result<Done> {
    let params: chat::Params = request.params()?;
    let text = last_message(&params);
    let word = |word: &str| chat::Chunk { content: word.to_owned(), ..chat::Chunk::default() };
    let last = |reason| chat::Chunk { finish_reason: Some(reason), ..chat::Chunk::default() };
    play(request, &text, params.max_tokens, word, last)
}

fn answer_complete(request: &Request) -> Result<Done> {
    let params: complete::Params = request.params()?;
    let most = params.max_tokens;
    let text = prompt(params);
    let word = |word: &str| complete::Chunk { text: word.to_owned(), ..complete::Chunk::default() };
    let last = |reason| complete::Chunk { finish_reason: Some(reason), ..complete::Chunk::default() };
    play(request, &text, most, word, last)
}

/// Does what the script in `text` says; without one gives the text back word by word.
fn play<T: backplane_plugin::serde::Serialize>(
    request: &Request,
    text: &str,
    most: Option<u32>,
    piece: impl Fn(&str) -> T,
    last: impl Fn(FinishReason) -> T,
) -> Result<Done> {
    let script = backplane_plugin::serde_json::from_str::<Script>(text).unwrap_or_else(|_| Script::default());
    wait(request, script.delay_ms)?;
    if script.params {
        request.push_json(&piece(request.params_json()))?;
        request.push_json(&last(FinishReason::Stop))?;
    } else if text.starts_with('{') {
        for chunk in &script.chunks {
            request.push_json(chunk)?;
            wait(request, script.every_ms)?;
        }
    } else {
        let most = most.map_or(usize::MAX, |most| most as usize);
        let words = text.split_inclusive(' ');
        for word in words.clone().take(most) {
            request.push_json(&piece(word))?;
        }
        let cut = most < words.count();
        request.push_json(&last(if cut { FinishReason::Length } else { FinishReason::Stop }))?;
    }
    if let Some((code, message)) = script.fail {
        let error = Error::new(Code::from_raw(code), message);
        return Err(script.reason.into_iter().fold(error, Error::with_reason));
    }
    let done = Done::new().usage(script.usage);
    Ok(match script.confidence {
        Some(confidence) => done.confidence(confidence),
        None => done,
    })
}

/// Waits, but no longer than somebody reads.
fn wait(request: &Request, ms: u64) -> Result<()> {
    for _ in 0..ms {
        if request.is_cancelled() {
            return Err(Error::cancelled());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What is too long to be embedded.
const TOO_LONG: usize = 100;

/// For each input its number and its length.
fn answer_embed(request: &Request) -> Result<Done> {
    let params: embed::Params = request.params()?;
    let dimensions = params.dimensions.unwrap_or(2) as usize;
    let mut vectors = Vec::new();
    for (index, input) in params.input.iter().enumerate() {
        let length = match input {
            embed::Input::Text(text) => text.len(),
            embed::Input::Tokens(tokens) => tokens.len(),
        };
        if TOO_LONG < length {
            return Err(Error::new(Code::OutOfRange, "too long").with_reason("context_length_exceeded"));
        }
        vectors
            .extend([index as f32, length as f32].into_iter().chain(std::iter::repeat(0.5)).take(dimensions));
    }
    let shape = [params.input.len() as i64, dimensions as i64];
    request.push(&Chunk::new().tensor(Tensor::new(embed::EMBEDDINGS, &shape, vectors)?))?;
    Ok(Done::new().usage(Usage { prompt_tokens: params.input.len() as u64, ..Usage::default() }))
}

/// `A` and `B` of INT32 are added to `SUM`; other tensors come back as they are.
fn answer_tensors(request: &Request) -> Result<Done> {
    let mut chunk = Chunk::new();
    match (request.tensor("A"), request.tensor("B")) {
        (Ok(a), Ok(b)) => {
            let (left, right) = (a.elements::<i32>()?, b.elements::<i32>()?);
            let sum: Vec<i32> =
                left.iter().zip(right.iter()).map(|(left, right)| left.wrapping_add(*right)).collect();
            chunk = chunk.tensor(Tensor::new("SUM", a.shape(), sum)?);
        }
        _ => {
            for tensor in request.tensors()? {
                chunk = chunk.tensor(Tensor::raw(
                    tensor.name(),
                    tensor.dtype(),
                    tensor.shape(),
                    tensor.bytes().to_vec(),
                )?);
            }
        }
    }
    request.push(&chunk)?;
    Ok(Done::new())
}

/// Counts, with tensors coming back in the first piece.
fn answer_unforeseen(request: &Request) -> Result<Done> {
    let params: Value = request.params()?;
    for count in 0..params["count"].as_u64().unwrap_or(1) {
        let mut chunk = Chunk::json(&json!({ "count": count, "params": params }))?;
        for tensor in request.tensors()?.iter().filter(|_| count == 0) {
            chunk = chunk.tensor(Tensor::raw(
                tensor.name(),
                tensor.dtype(),
                tensor.shape(),
                tensor.bytes().to_vec(),
            )?);
        }
        request.push(&chunk)?;
    }
    Ok(Done::new().confidence(0.75))
}

/// In capitals, and with a word counted as a token.
fn answer_translate(request: &Request) -> Result<Done> {
    let params: translate::Params = request.params()?;
    let translation = |text: &String| translate::Translation {
        text: text.to_uppercase(),
        source: params.source.clone(),
        engine: "capitals".to_owned(),
        confidence: 1.0,
        ..translate::Translation::default()
    };
    let translations = params.text.iter().map(translation).collect();
    request.push_json(&translate::Chunk { translations, ..translate::Chunk::default() })?;
    let usage = Usage { prompt_tokens: 1, completion_tokens: 1, ..Usage::default() };
    Ok(Done { usage: Some(usage), ..Done::new() })
}

/// Late, and without a list.
fn answer_languages() -> Result<Done> {
    std::thread::sleep(Duration::from_secs(2));
    Err(Error::new(Code::NotFound, "there is no list"))
}

export_plugin!(
    Scripted,
    concat!(
        "id = \"test.scripted\"\nversion = \"",
        env!("CARGO_PKG_VERSION"),
        r#""
        abi = "1.0"
        capabilities = [
            { name = "chat", version = 1 },
            { name = "complete", version = 1 },
            { name = "embed", version = 1 },
            { name = "tensor.infer", version = 1 },
            { name = "test.unforeseen", version = 1 },
            { name = "translate", version = 1 },
            { name = "language.list", version = 1 },
            { name = "vision.classify", version = 1 },
            { name = "vision.detect", version = 1 },
            { name = "vision.embed", version = 1 },
            { name = "vision.ocr", version = 1 },
        ]
        models = [
            { name = "script", capabilities = ["chat", "complete", "embed", "tensor.infer", "test.unforeseen", "translate", "language.list", "vision.classify", "vision.detect", "vision.embed", "vision.ocr"] },
            { name = "acme/script:2", capabilities = ["chat"], modalities = ["text", "image"] },
        ]
        "#
    )
);
