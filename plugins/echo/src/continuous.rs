//! An instance of class CONTINUOUS: `submit` only hands requests over, and a thread of the plugin's serves all of them
//! at once, a step of each in turn, as a language model decodes.

use crate::echo::{Echo, Step, TICK};
use backplane_plugin::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// See the module.
pub struct Continuous {
    /// `None` once it is to end. The host admits no more than `max_inflight` requests, which bounds the queue.
    queue: Mutex<Option<Sender<Request>>>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Continuous {
    /// Starts its thread.
    pub fn start() -> Result<Self> {
        let (queue, requests) = mpsc::channel();
        let open = Arc::new(AtomicUsize::new(0));
        let count = open.clone();
        let thread = std::thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || schedule(&requests, &count))
            .map_err(|error| {
                Error::new(Code::ResourceExhausted, format!("no thread could be started: {error}"))
            })?;
        Ok(Self { queue: Mutex::new(Some(queue)), open, thread: Some(thread) })
    }
}

impl Instance for Continuous {
    fn submit(&self, requests: Vec<Request>) {
        self.open.fetch_add(requests.len(), Ordering::Relaxed);
        let queue = self.queue.lock().ok().and_then(|queue| queue.clone());
        for request in requests {
            let returned = match &queue {
                Some(queue) => queue.send(request).err().map(|error| error.0),
                None => Some(request),
            };
            // Only after a panic, which ended the thread and all it was serving.
            if let Some(request) = returned {
                request.finish(Err(Error::internal("the thread of this instance has ended").poisons()));
            }
        }
    }

    fn health(&self) -> Health {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Health::Ready,
            _ => Health::Failed("the thread of this instance has ended".to_owned()),
        }
    }

    fn quiesce(&self, deadline: Option<Instant>) -> bool {
        while self.open.load(Ordering::Relaxed) > 0 {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return false;
            }
            std::thread::sleep(TICK);
        }
        true
    }
}

impl Drop for Continuous {
    fn drop(&mut self) {
        // With its sender gone the thread ends; an instance is gone only when its threads are.
        if let Ok(queue) = self.queue.get_mut() {
            *queue = None;
        }
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// The thread: takes what has come, does a step of each, and sleeps until the next is due.
fn schedule(requests: &Receiver<Request>, open: &AtomicUsize) {
    let mut running: Vec<(Request, Echo)> = Vec::new();
    let mut next = None;
    loop {
        let arrived = match next {
            None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => requests.recv_timeout(wait),
        };
        match arrived {
            Ok(request) => running.extend(begin(request, open)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if running.is_empty() => return,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
        }
        next = None;
        let mut still = Vec::with_capacity(running.len());
        for (request, mut echo) in running {
            match echo.step(&request) {
                Ok(Step::Wait(until)) => {
                    // A caller that leaves is noticed within a tick, however long the wait.
                    let wait = until.duration_since(Instant::now()).min(TICK);
                    next = Some(next.map_or(wait, |next: Duration| next.min(wait)));
                    still.push((request, echo));
                }
                Ok(Step::Done(done)) => end(request, Ok(done), open),
                Err(error) => end(request, Err(error), open),
            }
        }
        running = still;
    }
}

fn begin(request: Request, open: &AtomicUsize) -> Option<(Request, Echo)> {
    let started = Echo::start(&request, None).and_then(|echo| {
        let stuck = "`call` waits for its answer, and a continuous instance must not wait: ask model `echo`";
        if echo.calls() { Err(Error::new(Code::Unimplemented, stuck).with_param("call")) } else { Ok(echo) }
    });
    match started {
        Ok(echo) => Some((request, echo)),
        Err(error) => {
            end(request, Err(error), open);
            None
        }
    }
}

fn end(request: Request, result: Result<Done>, open: &AtomicUsize) {
    open.fetch_sub(1, Ordering::Relaxed);
    request.finish(result);
}
