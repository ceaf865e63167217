//! What this process knows: one plugin, its models and instances, the requests it has.
#![expect(unsafe_code, reason = "tables of a plugin are raw pointers; a request keeps what it points to")]

use crate::buffers::Buffers;
use crate::said::Said;
use backplane_abi::table::*;
use backplane_abi::worker::{Body, Borrowed, Channel, Flow, Granted, Out, Row, raw_tensors};
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A table of a plugin's, and what both sides know of it.
pub struct Table<T> {
    pub at: *mut T,
    pub known: T,
    /// Held while the plugin is called from the main thread, so that nothing is ended under such a call.
    pub alive: RwLock<bool>,
}
// SAFETY: the host calls each function on the threads that the header allows; this process follows it.
unsafe impl<T> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Table<T> {}

/// Where the answer of a call to another capability goes.
#[derive(Clone, Copy)]
pub struct Callbacks {
    pub ctx: *mut c_void,
    pub on_chunk: unsafe extern "C" fn(*mut c_void, *const bp_chunk) -> bp_code,
    pub on_done: unsafe extern "C" fn(*mut c_void, *const bp_done),
}
// SAFETY: the header says the callbacks are [any] and ctx goes with them.
unsafe impl Send for Callbacks {}

/// A request that the plugin has. Everything it points to lies in the frame it came with.
pub struct Request {
    pub row: Row<'static>,
    pub tensors: Vec<bp_tensor>,
    pub cancel: AtomicU32,
    /// What was sent of its answer; nothing when the plugin has given it back: a piece after that would be for nobody.
    pub flow: Mutex<Option<Flow>>,
    buffers: Vec<bp_buf>,
    _body: Arc<Body>,
}
// SAFETY: the pointers of `tensors` lead into `row` and `_body`, which are never changed.
unsafe impl Send for Request {}
// SAFETY: as above.
unsafe impl Sync for Request {}

impl Request {
    pub fn new(state: &State, row: Row<'_>, body: &Arc<Body>) -> Arc<Request> {
        // SAFETY: everything in it borrows from `body`, which is kept beside it and never changed.
        let row = unsafe { std::mem::transmute::<Row<'_>, Row<'static>>(row) };
        let mut tensors = raw_tensors(&row.tensors);
        let mut buffers = Vec::new();
        for (raw, tensor) in tensors.iter_mut().zip(&row.tensors) {
            if let (true, Some(data)) = (tensor.buffer, tensor.data) {
                raw.buffer = state.buffers.of_request(data.bytes, body);
                buffers.push(raw.buffer);
            }
        }
        let cancel = AtomicU32::new(u32::from(row.cancelled));
        let flow = Mutex::new(Some(Flow::new(row.credit)));
        Arc::new(Request { row, tensors, cancel, flow, buffers, _body: body.clone() })
    }

    /// The struct that crosses, with the size that the host's had.
    pub fn raw(&self) -> bp_request {
        let text = |bytes: &[u8]| bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 };
        let row = &self.row;
        bp_request {
            struct_size: row.struct_size,
            flags: row.flags,
            id: row.id,
            sink: row.id,
            capability: text(row.capability),
            params_json: text(row.params),
            r#in: self.tensors.as_ptr(),
            n_in: self.tensors.len() as u32,
            in_stride: size_of::<bp_tensor>() as u32,
            request_id: text(row.request_id),
            traceparent: text(row.traceparent),
            tenant: text(row.tenant),
            deadline_ns: row.deadline_ns,
            cancel: self.cancel.as_ptr(),
            priority: row.priority,
            capability_version: row.capability_version,
        }
    }

    /// The plugin has given it back: its buffers lose the reference of the request, and `say` is the last that is said of
    /// it, whatever another thread of the plugin's is about to push.
    pub fn done(&self, state: &State, say: impl FnOnce()) {
        for buffer in &self.buffers {
            state.buffers.release(*buffer);
        }
        let mut flow = self.flow.lock();
        *flow = None;
        say();
    }
}

/// Requests that the plugin has.
#[derive(Default)]
pub struct Requests {
    all: HashMap<u64, Arc<Request>>,
    /// Those of which it was said that the caller left, and which were not there: they had ended, or are on their way,
    /// for what says that comes by another connection.
    cancelled: VecDeque<u64>,
}

impl Requests {
    /// So many are remembered: more than are on their way at once.
    const REMEMBERED: usize = 256;

    /// Whether its caller left before it came, of which the plugin was not told.
    pub fn insert(&mut self, request: &Arc<Request>) -> bool {
        let id = request.row.id;
        let left = self.cancelled.iter().position(|cancelled| *cancelled == id);
        if let Some(at) = left {
            self.cancelled.remove(at);
            request.cancel.store(1, Ordering::Relaxed);
        }
        self.all.insert(id, request.clone());
        left.is_some()
    }

    pub fn get(&self, id: u64) -> Option<&Arc<Request>> {
        self.all.get(&id)
    }

    pub fn remove(&mut self, id: u64) -> Option<Arc<Request>> {
        self.all.remove(&id)
    }

    /// Its caller left.
    pub fn cancel(&mut self, id: u64) {
        match self.all.get(&id) {
            Some(request) => request.cancel.store(1, Ordering::Relaxed),
            None => {
                if self.cancelled.len() == Self::REMEMBERED {
                    self.cancelled.pop_front();
                }
                self.cancelled.push_back(id);
            }
        }
    }
}

/// An answer of the host's to something this process asked.
pub struct Answer {
    pub code: bp_code,
    pub value: u64,
    pub bytes: Vec<u8>,
}

/// An instance and its ticket.
pub type Seat = (bp_ticket, Arc<Table<bp_instance>>);

pub struct State {
    main: Channel,
    /// Memory of the host's that calls lie in.
    pub borrowed: Borrowed,
    /// What the host took of each answer.
    pub credits: OnceLock<Granted>,
    sent: Mutex<u64>,
    pub entry: EntryV1,
    pub host: OnceLock<HostTable>,
    pub plugin: OnceLock<Table<bp_plugin>>,
    pub models: Mutex<HashMap<u64, Arc<Table<bp_model>>>>,
    /// With the ticket of each.
    pub instances: Mutex<HashMap<u64, Seat>>,
    pub requests: Mutex<Requests>,
    pub errors: Mutex<HashMap<bp_err, Option<Said>>>,
    pub tickets: Mutex<HashMap<bp_ticket, u32>>,
    pub calls: Mutex<HashMap<u64, Callbacks>>,
    pub buffers: Buffers,
    asks: Mutex<HashMap<u64, Option<Answer>>>,
    answered: Condvar,
    next: AtomicU64,
}

/// The table that the plugin is given.
pub struct HostTable {
    pub at: *const bp_host,
    pub compute: bool,
    pub call: bool,
    pub license: bool,
}
// SAFETY: never changed, never freed.
unsafe impl Send for HostTable {}
// SAFETY: as above.
unsafe impl Sync for HostTable {}

static STATE: OnceLock<State> = OnceLock::new();

/// The state of this process, once there is a plugin.
pub fn state() -> Option<&'static State> {
    STATE.get()
}

impl State {
    /// Sets the state of this process up; once.
    pub fn start(main: Channel, entry: EntryV1) -> Option<&'static State> {
        let state = State {
            main,
            borrowed: Borrowed::default(),
            credits: OnceLock::new(),
            sent: Mutex::new(0),
            entry,
            host: OnceLock::new(),
            plugin: OnceLock::new(),
            models: Mutex::default(),
            instances: Mutex::default(),
            requests: Mutex::default(),
            errors: Mutex::default(),
            tickets: Mutex::default(),
            calls: Mutex::default(),
            buffers: Buffers::default(),
            asks: Mutex::default(),
            answered: Condvar::new(),
            next: AtomicU64::new(1),
        };
        STATE.set(state).ok()?;
        STATE.get()
    }

    pub fn main(&self) -> &Channel {
        &self.main
    }

    /// A number nobody else has.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Says something on the main connection. Who cannot be heard has no host any more, and ends.
    pub fn say(&self, out: &Out<'_>) {
        let mut sent = self.sent.lock();
        if self.main.send(out).is_err() {
            leave();
        }
        *sent += 1;
    }

    /// Says something that matters only while nothing else is said, and waits for nobody: not for who is saying something,
    /// and not for room in the connection, where then lies what the host has not heard yet.
    pub fn say_if_heard(&self, out: &Out<'_>) {
        let Some(mut sent) = self.sent.try_lock() else { return };
        let room = poll(&mut [PollFd::new(&self.main, PollFlags::OUT)], Some(&Timespec::default()));
        if room.is_ok_and(|ready| 0 < ready) {
            if self.main.send(out).is_err() {
                leave();
            }
            *sent += 1;
        }
    }

    /// Frames said so far.
    pub fn said(&self) -> u64 {
        *self.sent.lock()
    }

    /// Asks the host and waits for its answer. `frame` is given the number of the question.
    pub fn ask<'a>(&self, frame: impl FnOnce(u64) -> Out<'a>) -> Answer {
        let ask = self.number();
        self.asks.lock().insert(ask, None);
        self.say(&frame(ask));
        let mut asks = self.asks.lock();
        loop {
            if asks.get(&ask).is_some_and(Option::is_some)
                && let Some(answer) = asks.remove(&ask).flatten()
            {
                return answer;
            }
            self.answered.wait(&mut asks);
        }
    }

    pub fn answer(&self, ask: u64, answer: Answer) {
        if let Some(place) = self.asks.lock().get_mut(&ask) {
            *place = Some(answer);
        }
        self.answered.notify_all();
    }

    /// Runs a call that may leave a reason.
    pub fn with_error<R>(&self, call: impl FnOnce(bp_err) -> R) -> (R, Option<Said>) {
        let err = self.number();
        self.errors.lock().insert(err, None);
        let result = call(err);
        (result, self.errors.lock().remove(&err).flatten())
    }

    pub fn request(&self, id: u64) -> Option<Arc<Request>> {
        self.requests.lock().get(id).cloned()
    }
}

/// Ends this process at once: destructors of a plugin whose threads still run are no use to anybody.
pub fn leave() -> ! {
    // SAFETY: takes no pointer, and does not return.
    unsafe { libc::_exit(0) }
}
