//! Makes requests ready for the engine on a thread of its own. To read a schema, to render a template and to tokenize take
//! milliseconds, which whoever hands over a request has not: `submit` of a CONTINUOUS instance is called by the threads of
//! a server.

use crate::engine::Engine;
use crate::serve;
use backplane_plugin::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Parameters longer than this are made ready by a thread of their own, so that others need not wait for them.
const LONG: usize = 64 << 10;

/// The thread, and what waits for it. It ends when this is dropped.
pub struct Preparer {
    engine: Arc<Engine>,
    /// `None` only while it is being dropped.
    waiting: Option<Sender<Request>>,
    /// Requests that are not with the engine yet.
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// # Errors
    /// When no thread can be started.
    pub fn start(engine: Arc<Engine>) -> Result<Self> {
        let (waiting, requests) = channel();
        let open: Arc<AtomicUsize> = Arc::default();
        let (own, counted) = (engine.clone(), open.clone());
        let thread = thread(move || {
            for request in requests {
                let _counted = Counted(&counted);
                serve(&own, request);
            }
        })?;
        Ok(Self { engine, waiting: Some(waiting), open, thread: Some(thread) })
    }

    /// Takes a request and returns at once. One that nobody can make ready is dropped, which ends it with an error.
    pub fn push(&self, request: Request) {
        self.open.fetch_add(1, Ordering::AcqRel);
        if request.params_json().len() <= LONG {
            if self.waiting.as_ref().is_none_or(|waiting| waiting.send(request).is_err()) {
                self.open.fetch_sub(1, Ordering::AcqRel);
            }
            return;
        }
        let (engine, open) = (self.engine.clone(), self.open.clone());
        let counted = move || {
            let _counted = Counted(&open);
            serve(&engine, request);
        };
        if thread(counted).is_err() {
            self.open.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether the engine has all that was pushed.
    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Whether the thread ended by a panic.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.waiting = None;
        if let Some(thread) = self.thread.take() {
            // A panic was told by `has_failed`.
            let _ = thread.join();
        }
    }
}

/// Takes a request off the count, also when making it ready panics.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn thread(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("llama-prepare".into())
        .spawn(work)
        .map_err(|error| Error::new(Code::ResourceExhausted, format!("no thread could be started: {error}")))
}
