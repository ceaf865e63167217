//! Engines, questions and readers.

use crate::models;
use backplane_llama::engine::{Config, Delta, Engine, Loaded, Push, Sink, Terms, Unlimited};
use backplane_plugin::Result;
use backplane_plugin::payload::chat::{self, Content, Message};
use backplane_plugin::payload::complete::{self, PromptLogprob};
use backplane_plugin::payload::{FinishReason, Sampling, TokenLogprob, Usage};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub fn model_file() -> PathBuf {
    models::smollm2()
}

pub fn config() -> Config {
    Config { context: Some(1024), threads: 1, prompt_threads: 1, ..Config::default() }
}

pub fn open(config: Config) -> Engine {
    backplane_llama::sys::route_log(Box::new(|_, _| {}));
    let loaded = Loaded::open(&model_file(), config).expect("the model opens");
    Engine::start(Arc::new(loaded), Arc::new(Unlimited)).expect("the engine starts")
}

/// One engine for the tests that do not care; they take turns, so that its counters mean something.
pub fn with_engine<T>(test: impl FnOnce(&Engine) -> T) -> T {
    static ENGINE: OnceLock<Mutex<Engine>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| Mutex::new(open(config())));
    test(&engine.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A reader, and the switches a test has on it.
#[derive(Clone, Default)]
pub struct Switches {
    pub gone: Arc<AtomicBool>,
    pub full: Arc<AtomicBool>,
}

struct Reader {
    events: Sender<Event>,
    switches: Switches,
}

pub enum Event {
    Delta(Delta),
    End(Result<Usage>),
}

impl Sink for Reader {
    fn push(&mut self, delta: &Delta) -> Push {
        if self.switches.full.load(SeqCst) {
            return Push::Full;
        }
        let _ = self.events.send(Event::Delta(delta.clone()));
        Push::Taken
    }

    fn is_gone(&self) -> bool {
        self.switches.gone.load(SeqCst)
    }

    fn finish(self: Box<Self>, result: Result<Usage>) {
        let _ = self.events.send(Event::End(result));
    }
}

pub fn reader(switches: &Switches) -> (Box<dyn Sink>, Receiver<Event>) {
    let (events, receiver) = channel();
    (Box::new(Reader { events, switches: switches.clone() }), receiver)
}

/// One choice, whole.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Choice {
    pub text: String,
    pub calls: Vec<(String, String)>,
    pub prompt: Vec<PromptLogprob>,
    pub logprobs: Vec<TokenLogprob>,
    pub finish: Option<FinishReason>,
    pub pieces: usize,
}

pub fn collect(events: &Receiver<Event>) -> Result<(Vec<Choice>, Usage)> {
    let mut choices: Vec<Choice> = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(120)).expect("an answer in time") {
            Event::End(result) => return result.map(|usage| (choices, usage)),
            Event::Delta(delta) => {
                choices.resize_with(choices.len().max(delta.index as usize + 1), Choice::default);
                let choice = &mut choices[delta.index as usize];
                assert_eq!(choice.finish, None, "a piece after the last");
                choice.text.push_str(&delta.text);
                choice.pieces += 1;
                assert!(
                    delta.prompt_logprobs.is_empty() || choice.logprobs.is_empty(),
                    "the prompt comes first"
                );
                choice.prompt.extend(delta.prompt_logprobs);
                choice.logprobs.extend(delta.logprobs);
                choice.finish = delta.finish;
                for call in delta.tool_calls {
                    if let Some(name) = call.name {
                        assert!(call.id.is_some_and(|id| id.starts_with("call_")));
                        choice.calls.push((name, String::new()));
                    }
                    choice.calls[call.index as usize].1.push_str(&call.arguments);
                }
            }
        }
    }
}

/// The end of an answer whose pieces do not matter.
pub fn collect_end(events: &Receiver<Event>) -> Result<Usage> {
    loop {
        if let Event::End(result) = events.recv_timeout(Duration::from_secs(20)).unwrap() {
            return result;
        }
    }
}

pub fn chat(engine: &Engine, params: &chat::Params) -> Result<(Vec<Choice>, Usage)> {
    let (sink, events) = reader(&Switches::default());
    engine.chat(params, Terms::default(), sink);
    collect(&events)
}

pub fn complete(engine: &Engine, params: &complete::Params) -> Result<(Vec<Choice>, Usage)> {
    let (sink, events) = reader(&Switches::default());
    engine.complete(params, Terms::default(), sink);
    collect(&events)
}

pub fn greedy() -> Sampling {
    Sampling { temperature: Some(0.0), ..Sampling::default() }
}

pub fn says(role: &str, text: &str) -> Message {
    Message { role: role.into(), content: Content::Text(text.into()), ..Message::default() }
}

pub fn asks(question: &str, max_tokens: u32) -> chat::Params {
    chat::Params {
        // Without a system message its template adds one, with which this model babbles.
        messages: vec![says("system", "You are a helpful assistant."), says("user", question)],
        sampling: greedy(),
        max_tokens: Some(max_tokens),
        ..chat::Params::default()
    }
}

pub fn continues(text: &str, max_tokens: u32) -> complete::Params {
    complete::Params {
        prompt: complete::Prompt::Text(text.into()),
        sampling: greedy(),
        max_tokens: Some(max_tokens),
        ..complete::Params::default()
    }
}
