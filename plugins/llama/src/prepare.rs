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
pub struct Preparer<T = Request> {
    work: Arc<dyn Fn(T) + Send + Sync>,
    /// `None` only while it is being dropped.
    waiting: Option<Sender<(T, Counted)>>,
    /// Requests that are not with the engine yet.
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// # Errors
    /// When no thread can be started.
    pub fn start(engine: Arc<Engine>) -> Result<Self> {
        Self::of(move |request| serve(&engine, request))
    }

    /// Takes a request and returns at once. One that nobody can make ready is dropped, which ends it with an error.
    pub fn push(&self, request: Request) {
        let long = request.params_json().len() > LONG;
        self.take(request, long);
    }
}

impl<T: Send + 'static> Preparer<T> {
    fn of(work: impl Fn(T) + Send + Sync + 'static) -> Result<Self> {
        let (waiting, requests) = channel::<(T, Counted)>();
        let work = Arc::new(work);
        let own = work.clone();
        let thread = thread(move || {
            for (request, _counted) in requests {
                own(request);
            }
        })?;
        Ok(Self { work, waiting: Some(waiting), open: Arc::default(), thread: Some(thread) })
    }

    /// `long`: a thread of its own makes it ready.
    fn take(&self, request: T, long: bool) {
        let counted = Counted::new(&self.open);
        if long {
            let work = self.work.clone();
            // Where no thread can be started, the request goes with its work.
            let _ = thread(move || {
                let _counted = counted;
                work(request);
            });
        } else if let Some(waiting) = &self.waiting {
            // Where the thread has ended, it comes back and is dropped.
            let _ = waiting.send((request, counted));
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

impl<T> Drop for Preparer<T> {
    fn drop(&mut self) {
        self.waiting = None;
        if let Some(thread) = self.thread.take() {
            // A panic was told by `has_failed`.
            let _ = thread.join();
        }
    }
}

/// One request on the count. It goes with the request, so that none is counted on that is dropped on its way.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(open.clone())
    }
}

impl Drop for Counted {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    #[test]
    fn a_panic_leaves_nothing_on_the_count() {
        let (go, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let preparer = Preparer::of(move |panics: bool| {
            gate.lock().unwrap().recv().unwrap();
            assert!(!panics, "a panic that the test asks for");
        })
        .unwrap();
        for panics in [false, true, false, false] {
            preparer.take(panics, false);
        }
        assert!(!preparer.is_idle());
        go.send(()).unwrap();
        assert!(!preparer.has_failed());
        go.send(()).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while !(preparer.has_failed() && preparer.is_idle()) {
            assert!(Instant::now() < end, "{} are still counted", preparer.open.load(Ordering::Acquire));
            std::thread::sleep(Duration::from_millis(2));
        }
        preparer.take(false, false);
        assert!(preparer.is_idle(), "what comes afterwards is dropped");
    }
}
