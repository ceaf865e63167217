//! One request at an upstream, from its parameters to its end.

use crate::client::Client;
use crate::events::Events;
use crate::fault::{self, CUT};
use crate::infer::Graph;
use crate::load::Load;
use crate::memory::Limit;
use crate::threads;
use crate::wire::{self, Mean};
use backplane_plugin::payload::embed::EMBEDDINGS;
use backplane_plugin::payload::tensor as infer;
use backplane_plugin::payload::{FinishReason, TokenLogprob, Usage, chat, complete, embed};
use backplane_plugin::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A model at an upstream.
pub struct Target {
    pub client: Client,
    /// What the upstream calls it.
    pub model: String,
    /// How it is asked if it is a graph.
    pub graph: Option<Graph>,
    load: Mutex<Option<Load>>,
}

impl Target {
    pub fn new(client: Client, model: String, graph: Option<Graph>) -> Self {
        Self { client, model, graph, load: Mutex::default() }
    }

    /// How busy the upstream is, if it says so.
    pub fn load(&self) -> Option<Load> {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the upstream said of it last.
    pub fn note(&self, load: Option<Load>) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }
}

/// Serves a request.
///
/// # Errors
/// The request's, or [`fault`]'s.
pub async fn serve(target: &Target, request: &Request) -> Result<Done> {
    let Target { client, model, graph, .. } = target;
    match request.capability() {
        infer::CAPABILITY if let Some(graph) = graph => {
            let tensors = graph.infer(client, request).await?;
            let chunk = tensors.into_iter().fold(Chunk::new(), Chunk::tensor);
            push(request, &chunk).await?;
            Ok(Done::new())
        }
        chat::CAPABILITY => {
            let (body, asked) = threads::work(threads::asked(request), || {
                let params: chat::Params = request.params()?;
                let asked = Asked::of(request, params.logprobs, params.n, params.max_tokens, 0);
                let (confidence, tensors) = (request.wants_confidence(), request.tensors()?);
                let (flavour, limit) = (client.flavour, client.token_limit);
                let body = wire::chat::request(params, model, flavour, limit, confidence, &tensors)?;
                Ok::<_, Error>((body, asked))
            })?;
            generate::<wire::chat::Answer>(client, "chat/completions", body, asked, request).await
        }
        complete::CAPABILITY => {
            let params: complete::Params = request.params()?;
            let repeated = wire::complete::repeated(&params);
            let asked = Asked::of(request, params.logprobs, params.n, params.max_tokens, repeated);
            let body = wire::complete::request(params, model, client.flavour, request.wants_confidence())?;
            generate::<wire::complete::Answer>(client, "completions", body, asked, request).await
        }
        embed::CAPABILITY => {
            let params: embed::Params = request.params()?;
            let count = params.input.len();
            let body = wire::embed::request(params, model, client.flavour)?;
            let answer = client.post("embeddings", &body, request).await?;
            let (mut answer, _share): (wire::embed::Answer, _) =
                client.json(answer, Limit::vectors(count), None).await?;
            let usage = answer.usage.take();
            // Of some thousand bytes each.
            let (vectors, length) = threads::work(count << 12, || answer.vectors(&client.name, count))?;
            let tensor = Tensor::new(EMBEDDINGS, &[count as i64, length as i64], vectors)?;
            push(request, &Chunk::new().tensor(tensor)).await?;
            Ok(Done { usage: usage.map(Usage::from), confidence: None })
        }
        other => Err(Error::new(Code::Unimplemented, format!("`{other}` is not served by an upstream"))),
    }
}

/// What the answers of chats and completions have in common.
trait Generated: DeserializeOwned + Send {
    type Chunk: Serialize + Send;

    /// Its choices as pieces, its usage, and an error that came in its place.
    fn parts(self) -> (Vec<Self::Chunk>, Option<wire::TheirUsage>, Option<fault::Said>);
    fn index(chunk: &Self::Chunk) -> u32;
    fn finish(chunk: &Self::Chunk) -> Option<FinishReason>;
    fn logprobs(chunk: &mut Self::Chunk) -> &mut Vec<TokenLogprob>;
    /// Whether there is nothing in it, but for what its choice ended with.
    fn is_empty(chunk: &Self::Chunk) -> bool;
    /// Takes the keys of this host out of its texts.
    fn redact(chunk: &mut Self::Chunk, client: &Client);
}

macro_rules! generated {
    ($capability:ident, |$chunk:ident| $empty:expr, |$texts:ident| $each:expr) => {
        impl Generated for wire::$capability::Answer {
            type Chunk = $capability::Chunk;

            fn parts(self) -> (Vec<Self::Chunk>, Option<wire::TheirUsage>, Option<fault::Said>) {
                let choices = self.choices.into_iter().map(wire::$capability::Choice::chunk);
                (choices.collect(), self.usage, self.error)
            }

            fn index(chunk: &Self::Chunk) -> u32 {
                chunk.index
            }

            fn finish(chunk: &Self::Chunk) -> Option<FinishReason> {
                chunk.finish_reason
            }

            fn logprobs(chunk: &mut Self::Chunk) -> &mut Vec<TokenLogprob> {
                &mut chunk.logprobs
            }

            fn is_empty($chunk: &Self::Chunk) -> bool {
                $empty && $chunk.logprobs.is_empty() && $chunk.extra.values().all(is_nothing)
            }

            fn redact($texts: &mut Self::Chunk, client: &Client) {
                $each.for_each(|text| client.redact(text));
                client.redact_members(&mut $texts.extra);
            }
        }
    };
}

generated!(chat, |chunk| chunk.content.is_empty() && chunk.tool_calls.is_empty(), |chunk| {
    let calls = chunk.tool_calls.iter_mut();
    let calls = calls.flat_map(|call| [call.id.as_mut(), call.name.as_mut(), Some(&mut call.arguments)]);
    calls.flatten().chain([&mut chunk.content])
});
generated!(complete, |chunk| chunk.text.is_empty(), |chunk| [&mut chunk.text].into_iter());

/// Whether a member that we do not know says nothing, as many do in the last pieces of a stream.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What of a request an answer has to keep to.
#[derive(Clone, Copy)]
struct Asked {
    logprobs: bool,
    choices: u32,
    /// Most pieces: each has a token at least, but for those that begin and end a choice.
    pieces: u64,
    /// What it may take, whole or a piece of it.
    limit: Limit,
}

impl Asked {
    fn of(
        request: &Request,
        logprobs: Option<u8>,
        choices: Option<u32>,
        max_tokens: Option<u32>,
        repeated: usize,
    ) -> Self {
        let choices = choices.unwrap_or(1).max(1);
        let each = max_tokens.map(|tokens| u64::from(tokens) + BEGIN_AND_END);
        let pieces = each.map_or(u64::MAX, |each| each.saturating_mul(u64::from(choices)));
        let alternatives = logprobs.or(request.wants_confidence().then_some(0));
        let limit = Limit::generated(max_tokens, choices, alternatives, repeated);
        Self { logprobs: logprobs.is_some(), choices, pieces, limit }
    }
}

/// Pieces of a choice that may be without a token.
const BEGIN_AND_END: u64 = 16;

/// What has come of an answer.
#[derive(Default)]
struct Progress {
    pieces: u64,
    usage: Option<Usage>,
    mean: Mean,
    /// Choices that ended, and why.
    ended: BTreeMap<u32, FinishReason>,
}

impl Progress {
    async fn add<A: Generated>(
        &mut self,
        client: &Client,
        answer: A,
        asked: Asked,
        request: &Request,
    ) -> Result<()> {
        let (chunks, usage, error) = answer.parts();
        if let Some(said) = error {
            return Err(fault::of_event(&client.name, &client.redacted(said)));
        }
        if let Some(usage) = usage {
            self.usage = Some(usage.into());
        }
        for mut chunk in chunks {
            if asked.choices <= A::index(&chunk) {
                let (index, choices) = (A::index(&chunk), asked.choices);
                return Err(fault::malformed(&client.name, format!("choice {index} of {choices} came")));
            }
            self.pieces += 1;
            if asked.pieces < self.pieces {
                return Err(fault::malformed(&client.name, "it did not keep to `max_tokens`"));
            }
            let (index, finish, empty) = (A::index(&chunk), A::finish(&chunk), A::is_empty(&chunk));
            match (self.ended.get(&index), finish) {
                // Beside the usage some servers send a choice once more, with nothing in it.
                (Some(_), None) if empty => continue,
                (Some(before), Some(again)) if empty && *before == again => continue,
                (Some(_), _) => {
                    let what = format!("choice {index} went on after its end");
                    return Err(fault::malformed(&client.name, what));
                }
                (None, Some(finish)) => _ = self.ended.insert(index, finish),
                (None, None) if empty => continue,
                (None, None) => {}
            }
            self.mean.add(A::logprobs(&mut chunk));
            if !asked.logprobs {
                A::logprobs(&mut chunk).clear();
            }
            A::redact(&mut chunk, client);
            push(request, &Chunk::json(&chunk)?).await?;
        }
        Ok(())
    }

    fn done(self) -> Done {
        let mean = self.mean.get();
        let usage = self.usage.map(|usage| Usage { mean_logprob: mean, ..usage });
        // The geometric mean of the tokens' probabilities, as the host's own models report it.
        Done { usage, confidence: mean.map(f64::exp) }
    }
}

/// A chat or a completion: piece by piece if the caller reads it so.
async fn generate<A: Generated>(
    client: &Client,
    path: &str,
    mut body: wire::Body,
    asked: Asked,
    request: &Request,
) -> Result<Done> {
    let mut progress = Progress::default();
    if !request.is_stream() {
        let answer = client.post(path, &body, request).await?;
        let (answer, _share): (A, _) = client.json(answer, asked.limit, None).await?;
        progress.add(client, answer, asked, request).await?;
        return finished(client, progress, asked, true);
    }
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    let answer = tokio::time::timeout(client.idle_timeout, client.post(path, &body, request));
    let mut events = Events::new(client, answer.await.map_err(|_| client.silent())??, asked.limit);
    while let Some(data) = events.next().await? {
        if data == "[DONE]" {
            return finished(client, progress, asked, true);
        }
        let piece = serde_json::from_str(&data).map_err(|error| fault::malformed(&client.name, error))?;
        progress.add::<A>(client, piece, asked, request).await?;
    }
    finished(client, progress, asked, false)
}

/// An answer is whole when every choice that was asked for has ended. A server that forgets `[DONE]` is forgiven, one that
/// forgets the rest of its answer is not.
fn finished(client: &Client, progress: Progress, asked: Asked, said_so: bool) -> Result<Done> {
    let ended = progress.ended.len();
    if ended == asked.choices as usize {
        client.answered();
        return Ok(progress.done());
    }
    let how = if said_so { "ended its answer before it was complete" } else { "broke off in its answer" };
    let what =
        format!("upstream `{}` {how}: {ended} of {} choices came to an end", client.name, asked.choices);
    Err(Error::new(Code::Unavailable, what).with_reason(CUT))
}

/// Hands a piece over, and waits without a thread while the reader is behind.
async fn push(request: &Request, chunk: &Chunk) -> Result<()> {
    let mut wait = Duration::from_millis(1);
    loop {
        match request.try_push(chunk) {
            Pushed::Taken => return Ok(()),
            Pushed::Cancelled => return Err(Error::cancelled()),
            Pushed::Full => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_millis(20));
            }
        }
    }
}
