//! One answer, step by step.
//!
//! The steps are apart from the waiting between them, so that a thread that may block ([`serve`]) and a thread that
//! serves many requests at once ([`crate::continuous`]) share them.

use crate::params::{Call, Params};
use backplane_plugin::prelude::*;
use backplane_plugin::{AnswerTensor, DeviceTensor, serde::Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a wait may last before it looks whether the caller is still there.
pub const TICK: Duration = Duration::from_millis(2);

/// An answer on its way.
pub struct Echo {
    params: Params,
    /// How many requests came to the plugin together; the usage says so.
    batch: Option<usize>,
    /// What another plugin said.
    answer: Option<Answer>,
    left: VecDeque<String>,
    sent: usize,
    due: Instant,
}

/// What comes next.
pub enum Step {
    /// Nothing before then.
    Wait(Instant),
    /// It has ended well.
    Done(Done),
}

/// A piece of the answer.
#[derive(Serialize)]
#[serde(crate = "backplane_plugin::serde")]
struct Piece<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a [Value]>,
}

/// Answers a request, on a thread that may block.
pub fn serve(request: &Request, batch: Option<usize>) -> Result<Done> {
    let mut echo = Echo::start(request, batch)?;
    if let Some(call) = echo.params.call.take() {
        echo.answer = Some(ask(request, &call)?);
    }
    loop {
        match echo.step(request)? {
            Step::Done(done) => return Ok(done),
            Step::Wait(until) => std::thread::sleep(until.duration_since(Instant::now()).min(TICK)),
        }
    }
}

/// What another plugin said: its pieces' JSON, and its tensors, which are handed on wherever they are.
struct Answer {
    json: Vec<Value>,
    tensors: Vec<AnswerTensor>,
    on_device: Vec<DeviceTensor>,
}

/// Asks another plugin, on behalf of this request: identity, deadline and trace are inherited. The tensors go along.
fn ask(request: &Request, call: &Call) -> Result<Answer> {
    let asked = request.call(&call.capability).model(&call.model).params(&call.params)?;
    let asked = request.tensors()?.into_iter().fold(asked, |call, tensor| call.tensor(tensor));
    let answer = asked.keep_on_device().wait()?;
    Ok(Answer { json: answer.chunks()?, tensors: answer.tensors, on_device: answer.on_device })
}

impl Echo {
    /// Reads the request. What is wrong with it is an error here, before anything was answered.
    pub fn start(request: &Request, batch: Option<usize>) -> Result<Self> {
        let params: Params = request.params()?;
        params.check()?;
        request.tensors()?;
        let left = params.pieces().into();
        let due = Instant::now() + Duration::from_millis(params.delay_ms);
        Ok(Self { params, batch, answer: None, left, sent: 0, due })
    }

    /// Whether it wants to ask another plugin, which only a thread that may block can do.
    pub fn calls(&self) -> bool {
        self.params.call.is_some()
    }

    /// Does what can be done now, without waiting.
    pub fn step(&mut self, request: &Request) -> Result<Step> {
        if request.is_cancelled() {
            return Err(Error::cancelled());
        }
        let now = Instant::now();
        if request.deadline().is_some_and(|deadline| deadline <= now) {
            return Err(Error::new(
                Code::DeadlineExceeded,
                "the deadline passed before the answer was complete",
            ));
        }
        if now < self.due {
            return Ok(Step::Wait(self.due));
        }
        if self.params.panic {
            #[expect(clippy::panic, reason = "the request asks for it, to see that the host survives")]
            {
                panic!("asked to panic");
            }
        }
        std::thread::sleep(Duration::from_millis(std::mem::take(&mut self.params.hang_ms)));
        if let Some(fail) = self.params.fail.as_ref().filter(|fail| fail.after <= self.sent) {
            return Err(fail.error());
        }
        let Some(text) = self.left.front() else { return Ok(Step::Done(self.done())) };
        match request.try_push(&self.chunk(request, text)?) {
            Pushed::Cancelled => return Err(Error::cancelled()),
            // The reader is behind: the piece stays first in line.
            Pushed::Full => self.due = now + TICK,
            Pushed::Taken => {
                self.left.pop_front();
                self.sent += 1;
                if !self.left.is_empty() {
                    self.due = now + Duration::from_millis(self.params.chunk_delay_ms);
                }
            }
        }
        Ok(Step::Wait(self.due))
    }

    /// A piece of the text. The first one brings the tensors back, or what another plugin said to them.
    fn chunk(&self, request: &Request, text: &str) -> Result<Chunk> {
        let first = self.sent == 0;
        let answer = self.answer.as_ref().filter(|_| first);
        let chunk = Chunk::json(&Piece { text, answer: answer.map(|answer| &*answer.json) })?;
        Ok(match answer {
            Some(answer) => {
                let chunk = answer.tensors.iter().fold(chunk, |chunk, tensor| chunk.tensor(tensor.view()));
                answer.on_device.iter().cloned().fold(chunk, Chunk::tensor)
            }
            None if first => request.tensors()?.into_iter().fold(chunk, Chunk::tensor),
            None => chunk,
        })
    }

    fn done(&mut self) -> Done {
        let counted = backplane_plugin::payload::Usage {
            prompt_tokens: self.params.words(),
            completion_tokens: self.sent as u64,
            ..Default::default()
        };
        let mut usage = self.params.usage.take().unwrap_or(counted);
        if let Some(batch) = self.batch {
            usage.extra.insert("batch".to_owned(), batch.into());
        }
        Done { usage: Some(usage), confidence: self.params.confidence }
    }
}
