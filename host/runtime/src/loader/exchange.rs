//! One request on its way through a plugin.

use super::device::Lent;
use super::table::PluginContext;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::job::{Chunk, Done, Next, Timing};
use crate::tensor::Tensor;
use backplane_abi::clock;
use backplane_abi::payload::Usage;
use backplane_abi::table::*;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Chunks that may wait for their reader before the plugin is told to wait.
const MAX_CHUNKS: usize = 256;
/// Bytes of chunks that may wait; one larger chunk is taken when nothing else waits.
const MAX_BYTES: usize = 8 << 20;

/// How a request ended, shown to the hook of [`ExchangeSpec`] exactly once.
#[derive(Clone, Debug)]
pub struct End {
    /// The result.
    pub result: Result<Done>,
    /// What the plugin says it consumed, even if it failed.
    pub usage: Option<Usage>,
    /// Chunks that were taken.
    pub chunks: u64,
    /// Bytes of them, and of their JSON alone.
    pub bytes: u64,
    pub json: u64,
    /// Whether a plugin had it.
    pub submitted: bool,
}

/// Called when the plugin has given a request back: whether its instance can serve no more.
type Release = Box<dyn FnOnce(bool) + Send>;
type Hook = Box<dyn FnOnce(&End) + Send>;

/// What an exchange is made of.
pub struct ExchangeSpec {
    /// See [`crate::Request`].
    pub capability: String,
    /// Version of its payload schema.
    pub capability_version: u32,
    /// See [`crate::Request`].
    pub params: String,
    /// See [`crate::Request`].
    pub tensors: Vec<Tensor>,
    /// See [`crate::Request`].
    pub id: String,
    /// See [`crate::Request`].
    pub traceparent: String,
    /// See [`crate::Request`].
    pub caller: Caller,
    /// Models on the way here, this one included.
    pub trail: Vec<Arc<str>>,
    /// See [`crate::Request`].
    pub deadline: Option<Instant>,
    /// Whether tensors of its answer may stay on a device.
    pub device: bool,
    /// See [`crate::Request`].
    pub stream: bool,
    /// See [`crate::Request`].
    pub confidence: bool,
    /// See [`crate::Request`].
    pub priority: i32,
    /// Called once at the end, on whatever thread ends it; must not block.
    pub hook: Hook,
}

/// A request on its way: its memory, its results, its cancel word. The plugin knows it by a handle.
pub struct Exchange {
    pub(super) spec: ExchangeParts,
    cancel: AtomicU32,
    /// 0 until it is submitted.
    handle: AtomicU64,
    /// What the plugin reads: it may be of copies.
    raw_tensors: OnceLock<Lent>,
    copies: OnceLock<Vec<Tensor>>,
    state: Mutex<State>,
    created: Instant,
}

/// [`ExchangeSpec`] without its hook: never changed, so that the plugin can read it without a lock.
pub(super) struct ExchangeParts {
    pub capability: String,
    pub capability_version: u32,
    pub params: String,
    pub tensors: Vec<Tensor>,
    pub id: String,
    pub traceparent: String,
    pub caller: Caller,
    pub trail: Vec<Arc<str>>,
    pub deadline: Option<Instant>,
    pub device: bool,
    pub stream: bool,
    pub confidence: bool,
    pub priority: i32,
}

struct State {
    queue: VecDeque<Chunk>,
    bytes: usize,
    end: Option<Result<Done>>,
    ended: bool,
    hook: Option<Hook>,
    release: Option<Release>,
    waker: Option<Waker>,
    submitted: Option<Instant>,
    first: Option<Instant>,
    chunks: u64,
    /// Bytes of all of them, and of their JSON alone; `bytes` is what waits.
    taken: (u64, u64),
    /// When the backend first saw that it was cancelled.
    cancel_seen: Option<Instant>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("id", &self.spec.id)
            .field("capability", &self.spec.capability)
            .finish()
    }
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    Taken,
    Full,
    Cancelled,
}

impl Exchange {
    /// A request that is not submitted yet.
    pub fn new(spec: ExchangeSpec) -> Arc<Self> {
        Arc::new(Self {
            cancel: AtomicU32::new(0),
            handle: AtomicU64::new(0),
            raw_tensors: OnceLock::new(),
            copies: OnceLock::new(),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                end: None,
                ended: false,
                hook: Some(spec.hook),
                release: None,
                waker: None,
                submitted: None,
                first: None,
                chunks: 0,
                taken: (0, 0),
                cancel_seen: None,
            }),
            created: Instant::now(),
            spec: ExchangeParts {
                capability: spec.capability,
                capability_version: spec.capability_version,
                params: spec.params,
                tensors: spec.tensors,
                id: spec.id,
                traceparent: spec.traceparent,
                caller: spec.caller,
                trail: spec.trail,
                deadline: spec.deadline,
                device: spec.device,
                stream: spec.stream,
                confidence: spec.confidence,
                priority: spec.priority,
            },
        })
    }

    /// Size of its input, by which a batch is grouped: like with like.
    pub fn weight(&self) -> usize {
        self.spec.params.len() + self.spec.tensors.iter().map(Tensor::size).sum::<usize>()
    }

    /// Whether tensors of its answer may stay on a device.
    pub fn takes_devices(&self) -> bool {
        self.spec.device
    }

    /// Whether one of its tensors is on a device that `takes` does not know.
    pub(super) fn is_elsewhere(&self, takes: impl Fn(i32, i32) -> bool) -> bool {
        let places = self.spec.tensors.iter().filter_map(|tensor| tensor.place.as_ref());
        places.map(|place| place.device()).any(|(kind, id)| !takes(kind, id))
    }

    /// Has what is on a device copied, before it is submitted.
    ///
    /// # Errors
    /// Of who owns that memory.
    pub(super) fn land(&self) -> Result<()> {
        let copies = self.spec.tensors.iter().map(|tensor| tensor.clone().landed()).collect::<Result<_>>()?;
        self.copies.get_or_init(|| copies);
        Ok(())
    }

    /// Whether it is a plugin's, on behalf of another request.
    pub fn is_nested(&self) -> bool {
        1 < self.spec.trail.len()
    }

    /// The capability it asks for.
    pub fn capability(&self) -> &str {
        &self.spec.capability
    }

    /// Higher first.
    pub fn priority(&self) -> i32 {
        self.spec.priority
    }

    /// When its answer is of no use any more.
    pub fn deadline(&self) -> Option<Instant> {
        self.spec.deadline
    }

    /// Since when the plugin has it.
    pub fn submitted(&self) -> Option<Instant> {
        self.state.lock().submitted
    }

    /// Sets the cancel word. The plugin sees it at its next step.
    pub fn cancel(&self) {
        self.cancel.store(1, Ordering::Relaxed);
    }

    /// How long it has been seen to be cancelled: zero at the first call, from then on the time since.
    pub fn cancelled_since(&self, now: Instant) -> std::time::Duration {
        now.saturating_duration_since(*self.state.lock().cancel_seen.get_or_insert(now))
    }

    /// Whether its reader has left.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) != 0
    }

    /// Whether its answer has ended.
    pub fn is_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// What the plugin knows it by; 0 until it is submitted.
    pub fn handle(&self) -> u64 {
        self.handle.load(Ordering::Relaxed)
    }

    /// The struct that crosses the boundary, `now`. Its pointers are valid while this exchange is.
    pub(super) fn raw(&self, handle: u64, now: Instant, context: &'static PluginContext) -> bp_request {
        self.handle.store(handle, Ordering::Relaxed);
        self.state.lock().submitted = Some(now);
        let tensors: &[bp_tensor] = match &*self.spec.tensors {
            [] => &[],
            tensors => {
                let tensors = self.copies.get().map_or(tensors, Vec::as_slice);
                &self.raw_tensors.get_or_init(|| Lent::new(context, tensors)).rows
            }
        };
        let mut flags = 0;
        if self.spec.stream {
            flags |= BP_REQUEST_STREAM;
        }
        if self.spec.device {
            flags |= BP_REQUEST_DEVICE;
        }
        if self.spec.confidence {
            flags |= BP_REQUEST_CONFIDENCE;
        }
        bp_request {
            flags,
            id: handle,
            sink: handle,
            capability: bp_str::new(&self.spec.capability),
            params_json: bp_str::new(&self.spec.params),
            r#in: tensors.as_ptr(),
            n_in: tensors.len() as u32,
            in_stride: size_of::<bp_tensor>() as u32,
            request_id: bp_str::new(&self.spec.id),
            traceparent: bp_str::new(&self.spec.traceparent),
            tenant: bp_str::new(&self.spec.caller.tenant),
            deadline_ns: clock::deadline_ns(self.spec.deadline),
            cancel: self.cancel.as_ptr(),
            priority: self.spec.priority,
            capability_version: self.spec.capability_version,
            ..bp_request::new()
        }
    }

    /// Takes a chunk from the plugin, unless the reader is behind or gone.
    pub(super) fn offer(&self, chunk: impl FnOnce() -> Chunk, bytes: usize) -> Offered {
        if self.is_cancelled() {
            return Offered::Cancelled;
        }
        let mut state = self.state.lock();
        if state.ended {
            return Offered::Cancelled;
        }
        if MAX_CHUNKS <= state.queue.len() || (!state.queue.is_empty() && MAX_BYTES < state.bytes + bytes) {
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            return Offered::Full;
        }
        state.bytes += bytes;
        state.chunks += 1;
        let chunk = chunk();
        state.taken.0 += bytes as u64;
        state.taken.1 += chunk.json.len() as u64;
        state.first.get_or_insert_with(Instant::now);
        state.queue.push_back(chunk);
        // Who reads an answer as a whole is woken at its end, or when it has to make room.
        let waker = if self.spec.stream || self.is_nested() { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Offered::Taken
    }

    /// Ends it for its reader, once: runs the hook, then wakes the reader, so that what is read is settled. Whether this
    /// call was the one that did.
    ///
    /// The plugin may still have it: see [`Exchange::returned`].
    pub fn end(&self, result: Result<Done>, usage: Option<Usage>) -> bool {
        let mut end = End { result, usage, chunks: 0, bytes: 0, json: 0, submitted: false };
        let hook = {
            let mut state = self.state.lock();
            if state.ended {
                return false;
            }
            state.ended = true;
            let now = Instant::now();
            let taken = state.submitted.unwrap_or(now);
            if let Ok(done) = &mut end.result {
                done.timing = Timing {
                    queue: taken.saturating_duration_since(self.created),
                    first: state.first.unwrap_or(now).saturating_duration_since(taken),
                    run: now.saturating_duration_since(taken),
                    ..Timing::default()
                };
            }
            end.submitted = state.submitted.is_some();
            (end.chunks, (end.bytes, end.json)) = (state.chunks, state.taken);
            state.hook.take()
        };
        // Whatever becomes of the hook, the reader is told.
        let hooked = catch_unwind(AssertUnwindSafe(|| hook.map(|hook| hook(&end))));
        let waker = {
            let mut state = self.state.lock();
            state.end = Some(end.result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if let Err(panic) = hooked {
            resume_unwind(panic);
        }
        true
    }

    /// Says what to do when the plugin has given it back. Called before it is submitted.
    pub(crate) fn on_return(&self, release: impl FnOnce(bool) + Send + 'static) {
        self.state.lock().release = Some(Box::new(release));
    }

    /// The plugin has given it back, or it was taken away: its slot is free.
    pub(super) fn returned(&self, poisoned: bool) {
        let release = self.state.lock().release.take();
        if let Some(release) = release {
            release(poisoned);
        }
    }

    /// The next chunk, then the end.
    pub(crate) fn poll_read(&self, context: &mut Context<'_>) -> Poll<Result<Next>> {
        let mut state = self.state.lock();
        if let Some(chunk) = state.queue.pop_front() {
            state.bytes = state.bytes.saturating_sub(size(&chunk));
            return Poll::Ready(Ok(Next::Chunk(chunk)));
        }
        match state.end.take() {
            Some(end) => Poll::Ready(end.map(Next::Done)),
            None => {
                if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    state.waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // An exchange that nobody ended (a queue that was dropped) still settles its quota and frees its slot.
        let error = match self.is_cancelled() {
            true => Error::cancelled(),
            false => Error::unavailable("the request was dropped before it reached a plugin"),
        };
        self.end(Err(error), None);
    }
}

/// Bytes that a chunk holds.
pub(super) fn size(chunk: &Chunk) -> usize {
    chunk.json.len() + chunk.tensors.iter().map(Tensor::size).sum::<usize>()
}

/// The struct that crosses the boundary, valid as long as `tensor` is; of one in CPU memory.
pub(super) fn raw_tensor(tensor: &Tensor) -> bp_tensor {
    let (code, bits) = tensor.dtype.raw();
    bp_tensor {
        flags: BP_TENSOR_READ_ONLY,
        name: bp_str::new(&tensor.name),
        dev_type: BP_DEV_CPU,
        code,
        bits,
        lanes: 1,
        ndim: tensor.shape.len() as i32,
        shape: tensor.shape.as_ptr(),
        nbytes: tensor.data.len() as u64,
        data: tensor.data.as_ptr().cast_mut().cast(),
        ..bp_tensor::new()
    }
}
