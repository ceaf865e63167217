//! The reader of an answer, on the other side of the ABI.

use crate::engine::{Delta, EmbedSink, Embeddings, Push, Sink};
use backplane_plugin::payload::embed::EMBEDDINGS;
use backplane_plugin::payload::{Usage, chat, complete};
use backplane_plugin::{Chunk, Done, Pushed, Request, Result, Tensor};

/// A request, as the engine sees it.
pub struct Caller {
    request: Request,
    reader: Reader,
}

/// What its chunks look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Chat,
    Complete,
    Embed,
}

impl Caller {
    pub fn boxed(request: Request, reader: Reader) -> Box<Self> {
        Box::new(Self { request, reader })
    }

    fn chunk(&self, delta: &Delta) -> Result<Chunk> {
        if self.reader == Reader::Chat {
            return Chunk::json(&chat::Chunk {
                index: delta.index,
                content: delta.text.clone(),
                tool_calls: delta.tool_calls.clone(),
                logprobs: delta.logprobs.clone(),
                finish_reason: delta.finish,
                truncated: (delta.dropped > 0).then_some(delta.dropped),
                ..chat::Chunk::default()
            });
        }
        Chunk::json(&complete::Chunk {
            index: delta.index,
            text: delta.text.clone(),
            prompt_logprobs: delta.prompt_logprobs.clone(),
            logprobs: delta.logprobs.clone(),
            finish_reason: delta.finish,
            ..complete::Chunk::default()
        })
    }
}

impl Sink for Caller {
    fn push(&mut self, delta: &Delta) -> Push {
        // What cannot be written as JSON does not exist: the payload's types are text and numbers.
        let Ok(chunk) = self.chunk(delta) else { return Push::Gone };
        match self.request.try_push(&chunk) {
            Pushed::Taken => Push::Taken,
            Pushed::Full => Push::Full,
            Pushed::Cancelled => Push::Gone,
        }
    }

    fn is_gone(&self) -> bool {
        self.request.is_cancelled()
    }

    fn finish(self: Box<Self>, result: Result<Usage>) {
        self.request.finish(result.map(done));
    }
}

impl EmbedSink for Caller {
    fn is_gone(&self) -> bool {
        self.request.is_cancelled()
    }

    fn finish(self: Box<Self>, result: Result<(Embeddings, Usage)>) {
        let result = result.and_then(|(vectors, usage)| {
            let rows = vectors.values.len() / vectors.dimensions.max(1);
            let shape = [rows as i64, vectors.dimensions as i64];
            self.request.push(&Chunk::new().tensor(Tensor::new(EMBEDDINGS, &shape, vectors.values)?))?;
            Ok(done(usage))
        });
        self.request.finish(result);
    }
}

/// The end of an answer. Its confidence, until the host calibrates it: the geometric mean of its tokens'
/// probabilities.
fn done(usage: Usage) -> Done {
    let confidence = usage.mean_logprob.map(f64::exp);
    let done = Done::new().usage(usage);
    match confidence {
        Some(confidence) => done.confidence(confidence.clamp(0.0, 1.0)),
        None => done,
    }
}
