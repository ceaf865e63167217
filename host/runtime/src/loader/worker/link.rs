//! One worker that runs: its connections, and the requests it has.

use super::arenas::Arenas;
use super::burn::Burn;
use super::crashes::Fingerprint;
use super::host::{CancelWord, Content, HostSide};
use super::process::Why;
use super::quiet::Quiet;
use super::turn::{Taken, Turn};
use super::watch::Watch;
use super::{Confinement, Launch, process};
use backplane_abi::clock;
use backplane_abi::table::*;
use backplane_abi::worker::Out;
use backplane_abi::worker::{
    Body, Call, Channel, Confine, Failure, Lookers, MAX_INLINE, PROTOCOL, Return, TAKEN_EVERY, ToHost,
    ToWorker, WINDOW_BYTES, WINDOW_CHUNKS, frame,
};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::{Duration, Instant};

/// A worker that said nothing for so long is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Questions in a row without an answer, after which it is ended.
const MISSED: u32 = 3;
/// How often cancel words are looked at, and pieces offered again.
const TICK: Duration = Duration::from_millis(5);
/// The same while nothing is open.
const IDLE: Duration = Duration::from_millis(200);
/// How long a worker may leave unread what it is told, when no more fits into its connection.
const UNREAD: Duration = Duration::from_secs(2);
/// Questions for threads that may wait for an answer, each with a thread of ours. Who asks once more works without.
const MOST_WAITING: u32 = 32;
/// Calls to other capabilities that a worker may have under way.
const MOST_CALLS: usize = 1024;
/// How long an instance may keep threads without a word while its worker has requests, and while it has none; how often
/// that is looked at.
const KEPT: Duration = Duration::from_secs(30);
const KEPT_IDLE: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(1);
/// Why a worker is ended that answers a call with what is no answer.
const NO_ANSWER: Why = Why::Protocol("sent an answer that is not in the protocol");

/// Threads of this process that look for what workers say: each has a core, and who answers it another.
static LOOKERS: LazyLock<Lookers> = LazyLock::new(|| Lookers::new(cores() / 2));
static QUIET: LazyLock<Quiet> = LazyLock::new(|| Quiet::new(cores()));

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// A worker, from its start to its end.
pub struct Link {
    this: Weak<Link>,
    main: Channel,
    host: HostSide,
    launch: Arc<Launch>,
    pub generation: u64,
    pub pid: u32,
    lanes: Mutex<Vec<Channel>>,
    arenas: Arenas,
    /// The numbers of models that are open in it.
    pub models: Mutex<HashSet<u64>>,
    open: Mutex<Requests>,
    turn: Turn,
    /// Held while a frame of the main connection is read and done, so that they are done in their order.
    reading: Mutex<()>,
    /// How many were.
    heard: Mutex<u64>,
    progress: Condvar,
    granted: Mutex<HashMap<bp_ticket, Grant>>,
    /// Threads that wait for permits for it.
    waiting: AtomicU32,
    /// Calls to other capabilities: the worker's number, the host's handle (0 while it is being started).
    calls: Mutex<HashMap<u64, bp_req>>,
    /// How often it was told that it may look for the next call.
    looks: AtomicU64,
    killed: OnceLock<Why>,
    closing: AtomicBool,
    death: Mutex<Option<Death>>,
    dead: Condvar,
}

/// Threads of the machine that an instance has.
struct Grant {
    held: u32,
    /// Those that it kept for too long: others have them, and it may still say that it gives them back.
    lapsed: u32,
    /// When it last asked for some or gave some back.
    since: Instant,
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub struct Death {
    /// "was killed by SIGSEGV"
    pub how: String,
    /// Fingerprints of the requests it had.
    pub had: Vec<Fingerprint>,
    /// It was ended for what one caller did, who left: no crash.
    pub stuck: bool,
    pub at: Instant,
}

#[derive(Default)]
struct Requests {
    all: HashMap<u64, Open>,
    /// The worker is gone: nothing is taken any more.
    closed: bool,
}

/// A request that the worker has.
pub struct Open {
    pub sink: bp_sink,
    pub instance: u64,
    pub cancel: CancelWord,
    /// Its id in the log.
    pub request_id: String,
    /// What it asks.
    pub content: Content,
    told: bool,
    /// Its submit has not returned: whoever called that knows whether the worker ever read it, and ends it.
    submitting: bool,
    /// Pieces that the reader was too slow for.
    parked: VecDeque<Arc<Body>>,
    end: Option<Arc<Body>>,
    taken: (u32, u64),
    /// The code with which the host refused a piece.
    refused: bp_code,
}

impl Open {
    pub fn new(
        sink: bp_sink,
        instance: u64,
        cancel: CancelWord,
        request_id: String,
        content: Content,
        told: bool,
    ) -> Self {
        Self {
            sink,
            instance,
            cancel,
            request_id,
            content,
            told,
            submitting: true,
            parked: VecDeque::new(),
            end: None,
            taken: (0, 0),
            refused: BP_OK,
        }
    }
}

/// A call that ended with the worker, or that took too long.
#[derive(Debug)]
pub struct Lost {
    /// Whether the call had reached it.
    pub sent: bool,
}

/// An answer that arrived.
pub struct Returned(Body);

impl Returned {
    /// What it says: read before it was handed out, so that it can be.
    pub fn read(&self) -> Return<'_> {
        let broken = Return {
            after: 0,
            back: false,
            code: BP_INTERNAL,
            error: None,
            value: backplane_abi::worker::Value::Nothing {},
        };
        self.0.read().unwrap_or(broken)
    }
}

impl Link {
    /// Starts a worker and waits until the plugin is mapped in it.
    ///
    /// # Errors
    /// In words.
    pub fn start(launch: &Arc<Launch>, host: HostSide) -> Result<Arc<Link>, String> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let (main, theirs) = Channel::pair().map_err(|error| error.to_string())?;
        set_socket_timeout(&main, Timeout::Send, Some(UNREAD)).map_err(|error| error.to_string())?;
        let mut child = process::spawn(launch, theirs).map_err(|error| {
            let program = launch.program.display();
            match error.kind() {
                std::io::ErrorKind::NotFound => format!(
                    "`{program}` is not there: install it beside this program, or set `plugins.isolation.\"{}\" = \
                     \"in-process\"` at your own risk",
                    launch.id
                ),
                _ => format!("`{program}` cannot be started: {error}"),
            }
        })?;
        let ready = greet(&main, launch);
        if let Err(why) = ready {
            let ended = process::reap(&mut child, Duration::from_millis(200));
            return Err(match (why, ended) {
                (Some(why), _) => why,
                (None, Ok(status)) => format!("its worker {} before it was ready", process::describe(status)),
                (None, Err(error)) => error.to_string(),
            });
        }
        let link = Arc::new_cyclic(|this| Link {
            this: this.clone(),
            main,
            host,
            launch: launch.clone(),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            pid: child.id(),
            lanes: Mutex::default(),
            arenas: Arenas::new(&launch.confinement),
            models: Mutex::default(),
            open: Mutex::default(),
            turn: Turn::default(),
            reading: Mutex::default(),
            heard: Mutex::new(0),
            progress: Condvar::new(),
            granted: Mutex::default(),
            waiting: AtomicU32::new(0),
            calls: Mutex::default(),
            looks: AtomicU64::new(0),
            killed: OnceLock::new(),
            closing: AtomicBool::new(false),
            death: Mutex::new(None),
            dead: Condvar::new(),
        });
        let listener = link.clone();
        std::thread::Builder::new()
            .name(format!("worker {}", launch.id))
            .spawn(move || listener.listen(child))
            .map_err(|error| format!("no thread for a worker: {error}"))?;
        Ok(link)
    }

    /// Whether it is gone, or about to: one that was killed takes nothing any more.
    pub fn is_dead(&self) -> bool {
        self.killed.get().is_some() || self.open.lock().closed
    }

    /// How it ended; waits a moment for the system to say.
    pub fn death(&self) -> Option<Death> {
        let mut death = self.death.lock();
        let deadline = Instant::now() + Duration::from_secs(5);
        while death.is_none() && self.is_dead() && Instant::now() < deadline {
            self.dead.wait_until(&mut death, deadline);
        }
        death.clone()
    }

    /// Ends it, for this reason.
    pub fn kill(&self, why: Why) {
        let _first = self.killed.set(why);
        // Its listener sees the end of the connection, and does the rest.
        let _gone = rustix::net::shutdown(&self.main, Shutdown::Both);
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid.cast_signed())
            && self.death.lock().is_none()
        {
            // Its number is not anybody else's before the listener has waited for it, which it says in `death`.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Lets it end: no plugin is in it any more.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let _gone = rustix::net::shutdown(&self.main, Shutdown::Both);
    }

    /// Says something on the main connection. Whether it could be sent: a worker that does not read is ended, so that
    /// nobody here waits for it.
    pub fn tell(&self, out: &Out<'_>) -> bool {
        let sent = self.main.send(out);
        if sent.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            self.kill(Why::Deaf);
        }
        sent.is_ok()
    }

    // ---- calls ------------------------------------------------------------------------------------------------

    /// A lane: one that is free, or a new one.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn lane(&self) -> Result<Channel, Lost> {
        if let Some(lane) = self.lanes.lock().pop() {
            return Ok(lane);
        }
        let (ours, theirs) = Channel::pair().map_err(|_| Lost { sent: false })?;
        if self.main.send_with(&frame(&ToWorker::Lane {}), Some(theirs.as_fd())).is_err() {
            self.gone();
            return Err(Lost { sent: false });
        }
        Ok(ours)
    }

    pub fn give_back(&self, lane: Channel) {
        self.lanes.lock().push(lane);
    }

    /// Calls on any lane.
    ///
    /// # Errors
    /// When the worker is gone, or took longer than `limit`, in which case it is ended.
    pub fn call(&self, call: &Call<'_>, limit: Option<Duration>) -> Result<Returned, Lost> {
        let lane = self.lane()?;
        let returned = self.call_on(&lane, call, limit)?;
        self.give_back(lane);
        Ok(returned)
    }

    /// Calls on this lane.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn call_on(
        &self,
        lane: &Channel,
        call: &Call<'_>,
        limit: Option<Duration>,
    ) -> Result<Returned, Lost> {
        let look = matches!(call, Call::Submit { look: true, .. });
        if look {
            self.looks.fetch_add(1, Ordering::Relaxed);
        }
        let out = frame(call);
        let mut lent = if MAX_INLINE < out.len() { self.arenas.lend(&out) } else { None };
        let sent = match &mut lent {
            Some(arena) => lane.send_lent(arena, out.len()),
            None => lane.send(&out),
        };
        if sent.is_err() {
            self.gone();
            return Err(Lost { sent: false });
        }
        if let Some(limit) = limit
            && !readable(lane, limit)
        {
            self.kill(Why::Slow);
        }
        // Others may be called where an answer cannot be taken.
        let taken = match call {
            Call::Submit { .. } => self.read_until(lane, look),
            _ => None,
        };
        let received = if look && taken.is_none() { lane.receive_awake(&LOOKERS) } else { lane.receive() };
        let taken = taken.filter(|_| matches!(received, Ok(Some(_))));
        let body = match received {
            Ok(Some((body, _))) => body,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.kill(NO_ANSWER);
                return Err(Lost { sent: true });
            }
            lost => {
                self.gone();
                // The call was still in the socket: nothing of it was done.
                let unread = lost.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
                return Err(Lost { sent: !unread });
            }
        };
        let Ok(Return { after, back, .. }) = body.read() else {
            self.kill(NO_ANSWER);
            return Err(Lost { sent: true });
        };
        if let (true, Some(arena)) = (back, lent) {
            self.forgotten(self.arenas.back(arena, Instant::now()));
        }
        self.hear_up_to(after, taken);
        Ok(Returned(body))
    }

    /// Memory that it was lent and is not any more.
    fn forgotten(&self, arenas: Vec<u64>) {
        for arena in arenas {
            self.tell(&frame(&ToWorker::Forget { arena }));
        }
    }

    /// Whether who waits for an answer, and it for the next request, may look for it for a moment before they sleep.
    pub fn may_look(&self) -> bool {
        self.launch.polling && QUIET.is_so()
    }

    /// Waits for an answer on this lane, and meanwhile reads the main connection in the listener's place, if nobody else
    /// does. `look`: whether it may look before it sleeps.
    fn read_until(&self, lane: &Channel, look: bool) -> Option<Taken<'_>> {
        let taken = self.turn.take()?;
        loop {
            let before = *self.heard.lock();
            let mut both = [PollFd::new(lane, PollFlags::IN), PollFd::new(&self.main, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let come =
                look && lane.look(&LOOKERS, || poll(&mut both, Some(&now)).is_ok_and(|ready| 0 < ready));
            match if come { Ok(0) } else { poll(&mut both, None) } {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Some(taken),
            }
            let [answered, said] = both.map(|fd| !fd.revents().is_empty());
            if said && !self.hear_instead(before) {
                drop(taken);
                self.turn.wake();
                return None;
            }
            if answered {
                return Some(taken);
            }
        }
    }

    /// Reads a frame in the listener's place; `false` when that one has to see to the end of the connection.
    fn hear_instead(&self, before: u64) -> bool {
        let Some(this) = self.this.upgrade() else { return false };
        let heard = this.hear_next(before);
        if let Err(Some(why)) = heard {
            self.kill(why);
        }
        heard.is_ok()
    }

    /// Returns when so many frames have been heard: what the plugin said before it returned lies in the connection.
    fn hear_up_to(&self, after: u64, taken: Option<Taken<'_>>) {
        let mut heard = *self.heard.lock();
        while taken.is_some()
            && heard < after
            // It may say any number.
            && readable(&self.main, Duration::ZERO)
            && self.hear_instead(heard)
        {
            heard = *self.heard.lock();
        }
        drop(taken);
        if heard < after || !self.open.lock().all.is_empty() {
            self.turn.wake();
        }
        let mut heard = self.heard.lock();
        while *heard < after && !self.is_dead() {
            self.turn.wake();
            self.progress.wait_for(&mut heard, Duration::from_millis(50));
        }
    }

    /// A connection has ended, and with it the worker, whose listener says how. One that ended alone was broken by it.
    fn gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.is_dead() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.is_dead() {
            self.kill(Why::Protocol("closed a connection"));
        }
    }

    // ---- requests ---------------------------------------------------------------------------------------------

    /// Notes requests that are about to be sent. `false` when the worker is gone.
    pub fn register(&self, requests: Vec<(u64, Open)>) -> bool {
        let mut open = self.open.lock();
        if !open.closed {
            open.all.extend(requests);
            return true;
        }
        false
    }

    /// Forgets requests that were not taken.
    pub fn forget(&self, ids: &[u64]) {
        let mut open = self.open.lock();
        ids.iter().for_each(|id| drop(open.all.remove(id)));
    }

    /// Their submit returned, or was lost with the worker that had read them. If that is dead they end here, after
    /// `suspects` was told their fingerprints: whoever hears of the end and asks again is known by then.
    pub fn submitted(&self, ids: &[u64], suspects: impl FnOnce(&[Fingerprint])) {
        let mut open = self.open.lock();
        if !open.closed {
            for id in ids {
                open.all.entry(*id).and_modify(|open| open.submitting = false);
            }
            return;
        }
        let had: HashMap<_, _> = ids.iter().filter_map(|id| open.all.remove_entry(id)).collect();
        drop(open);
        if !had.is_empty() {
            if self.killed.get() != Some(&Why::Stuck) {
                suspects(&had.values().map(|open| open.content.fingerprint()).collect::<Vec<_>>());
            }
            let how = self.death().map_or_else(|| "ended".to_owned(), |death| death.how);
            self.end(had, &how);
        }
    }

    /// Tells the worker that the caller of a request left.
    pub fn cancel(&self, sink: bp_sink) {
        let mut open = self.open.lock();
        let found = open.all.iter_mut().find(|(_, open)| open.sink == sink && !open.told);
        if let Some((id, request)) = found {
            request.told = true;
            self.tell(&frame(&ToWorker::Cancel { instance: request.instance, request: *id }));
        }
    }

    /// A call to another capability has ended.
    pub fn call_ended(&self, number: u64) {
        self.calls.lock().remove(&number);
    }

    // ---- what it says -------------------------------------------------------------------------------------------

    fn listen(self: Arc<Self>, mut child: Child) {
        let why = self.hear();
        if let Some(why) = why {
            let _first = self.killed.set(why);
            tracing::debug!(plugin = self.launch.id, ?why, "a worker is ended");
        }
        self.bury(&mut child);
    }

    /// Hears until the end of the connection; why it is to be ended, if it is us who end it.
    fn hear(self: &Arc<Self>) -> Option<Why> {
        let (mut last, mut missed, mut number) = (Instant::now(), 0, 0);
        let mut heard = 0;
        let mut watch = Watch::new(self.pid, &self.launch.confinement);
        let mut burn = self.burn();
        let mut looked = Instant::now();
        loop {
            let before = *self.heard.lock();
            if before != heard {
                (last, missed, heard) = (Instant::now(), 0, before);
            }
            let wait = if self.open.lock().all.is_empty() { IDLE } else { TICK };
            if !self.turn.rest(TICK) && readable(&self.main, wait) {
                if let Err(why) = self.hear_next(before) {
                    return why;
                }
            } else if HEARTBEAT < last.elapsed() {
                if MISSED <= missed {
                    return Some(Why::Silent);
                }
                (last, missed, number) = (Instant::now(), missed + 1, number + 1);
                self.tell(&frame(&ToWorker::Ping { number }));
            }
            if let Some(why) = watch.look(Instant::now()) {
                return Some(why);
            }
            if let Some(burn) = &mut burn
                && burn.look(Instant::now(), self.held(), self.looks.load(Ordering::Relaxed))
            {
                tracing::warn!(
                    plugin = self.launch.id,
                    pid = self.pid,
                    "a worker takes more processors than it was granted, and has what others leave from now on"
                );
            }
            if EVERY < looked.elapsed() {
                looked = Instant::now();
                self.forgotten(self.arenas.unused(looked));
                if self.hoards(looked) {
                    return Some(Why::Hoards);
                }
            }
            self.tick();
        }
    }

    /// Reads a frame of the main connection and does what it says. `before`: how many had been heard when it was seen that
    /// there is one; if another was heard since then it was that one.
    ///
    /// # Errors
    /// When the connection has ended; with a reason when it is us who end it.
    fn hear_next(self: &Arc<Self>, before: u64) -> Result<(), Option<Why>> {
        let _alone = self.reading.lock();
        if *self.heard.lock() != before {
            return Ok(());
        }
        let body = match self.main.receive() {
            Ok(Some((body, None))) => Arc::new(body),
            Ok(None) => return Err(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Err(None),
            Ok(Some((_, Some(_)))) | Err(_) => {
                return Err(Some(Why::Protocol("sent what is not in the protocol")));
            }
        };
        let understood = body.read().ok().and_then(|said| self.understand(&said, &body));
        *self.heard.lock() += 1;
        self.progress.notify_all();
        understood.ok_or(Some(Why::Protocol("said what is not in the protocol")))
    }

    /// `None` when it is nothing that a worker may say now.
    fn understand(self: &Arc<Self>, said: &ToHost<'_>, body: &Arc<Body>) -> Option<()> {
        match *said {
            ToHost::Pong { .. } => {}
            ToHost::Push { request, .. } => {
                let mut open = self.open.lock();
                let entry = open.all.get_mut(&request)?;
                let waiting: u64 = entry.parked.iter().map(|body| body.bytes().len() as u64).sum();
                if WINDOW_CHUNKS as usize <= entry.parked.len()
                    || 2 * WINDOW_BYTES < waiting
                    || entry.end.is_some()
                {
                    return None;
                }
                entry.parked.push_back(body.clone());
                self.offer(request, entry);
            }
            ToHost::Finish { request, ref error, .. } => {
                let mut open = self.open.lock();
                let entry = open.all.get_mut(&request)?;
                if entry.end.is_some() {
                    return None;
                }
                entry.end = Some(body.clone());
                if entry.parked.is_empty() {
                    let entry = open.all.remove(&request)?;
                    drop(open);
                    self.finish(&entry);
                }
                if error.as_ref().is_some_and(|error| error.sub == BP_SUB_FATAL) {
                    self.kill(Why::Broken);
                }
            }
            ToHost::Log { level, message, fields } => self.host.log(level, message, fields),
            ToHost::Acquire { ask, ticket, want, deadline_ns } => {
                self.acquire(ask, ticket, want, deadline_ns)
            }
            ToHost::LicenseState { ask } => {
                let (code, state, revision) = self.host.license_state();
                let (value, bytes) = (u64::from(state.cast_unsigned()), &revision.to_le_bytes());
                self.tell(&frame(&ToWorker::Answer { ask, code, value, bytes }));
            }
            ToHost::LicenseFeature { ask, tenant, name } => {
                let (code, value) = self.host.license_feature(tenant, name);
                let value = value.cast_unsigned();
                self.tell(&frame(&ToWorker::Answer { ask, code, value, bytes: b"" }));
            }
            ToHost::LicenseBytes { ask, install_id } => {
                let bytes = &self.host.license_bytes(install_id);
                self.tell(&frame(&ToWorker::Answer { ask, code: BP_OK, value: 0, bytes }));
            }
            ToHost::Release { ticket, granted } => {
                let mut all = self.granted.lock();
                let has = all.get_mut(&ticket)?;
                let held = granted.min(has.held);
                has.lapsed = has.lapsed.checked_sub(granted - held)?;
                has.held -= held;
                has.since = Instant::now();
                if has.held == 0 && has.lapsed == 0 {
                    all.remove(&ticket);
                }
                drop(all);
                if 0 < held {
                    self.host.release(ticket, held);
                }
            }
            ToHost::CallStart { ask, call, parent, .. } => {
                let parent = self.open.lock().all.get(&parent).map(|open| open.sink);
                let full = MOST_CALLS <= self.calls.lock().len();
                let (code, handle) = match parent {
                    Some(_) if full => (BP_RESOURCE_EXHAUSTED, 0),
                    Some(parent) => {
                        if self.calls.lock().insert(call, 0).is_some() {
                            return None;
                        }
                        self.host.call_start(self, call, parent, said)
                    }
                    None => (BP_STALE_HANDLE, 0),
                };
                let mut calls = self.calls.lock();
                if code == BP_OK {
                    match calls.get_mut(&call) {
                        Some(place) => *place = handle,
                        // It has ended, or whoever buried the worker did not know by what to cancel it.
                        None => self.host.call_cancel(handle),
                    }
                } else {
                    calls.remove(&call);
                }
                drop(calls);
                self.tell(&frame(&ToWorker::Answer { ask, code, value: 0, bytes: b"" }));
            }
            ToHost::CallCancel { call } => {
                let handle = self.calls.lock().get(&call).copied();
                if let Some(handle) = handle {
                    self.host.call_cancel(handle);
                }
            }
            ToHost::Ready { .. } => return None,
        }
        Some(())
    }

    /// Hands on what is parked, as far as the reader takes it.
    fn offer(&self, id: u64, entry: &mut Open) {
        while let Some(body) = entry.parked.front().cloned() {
            let Ok(ToHost::Push { json, ref tensors, .. }) = body.read() else { return };
            let code = match entry.refused {
                BP_OK => self.host.push(entry.sink, json, tensors, &body),
                refused => refused,
            };
            match code {
                BP_WOULD_BLOCK => return,
                BP_OK => {}
                // The caller left, or the request was taken away.
                BP_CANCELLED | BP_STALE_HANDLE => self.tell_cancelled(id, entry),
                refused => {
                    entry.refused = refused;
                    self.tell_cancelled(id, entry);
                }
            }
            let bytes = json.len() as u64
                + tensors.iter().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.nbytes));
            entry.taken = (entry.taken.0 + 1, entry.taken.1.saturating_add(bytes));
            if TAKEN_EVERY <= entry.taken.0 || WINDOW_BYTES / 4 <= entry.taken.1 {
                let (chunks, bytes) = std::mem::take(&mut entry.taken);
                self.tell(&frame(&ToWorker::Taken { request: id, chunks, bytes }));
            }
            entry.parked.pop_front();
        }
    }

    fn tell_cancelled(&self, id: u64, entry: &mut Open) {
        if !std::mem::replace(&mut entry.told, true) {
            self.tell(&frame(&ToWorker::Cancel { instance: entry.instance, request: id }));
        }
    }

    fn finish(&self, entry: &Open) {
        let Some(Ok(ToHost::Finish { error, usage, confidence, .. })) =
            entry.end.as_ref().map(|end| end.read())
        else {
            return;
        };
        let refused = Failure {
            code: BP_INTERNAL,
            sub: BP_SUB_NONE,
            retry_after_ms: 0,
            message: b"the plugin's answer had a piece that is no piece of an answer",
            reason: b"",
            details: b"",
        };
        let error = if entry.refused == BP_OK { error.as_ref() } else { Some(&refused) };
        self.host.finish(entry.sink, error, usage, confidence);
    }

    fn acquire(self: &Arc<Self>, ask: u64, ticket: bp_ticket, want: u32, deadline_ns: i64) {
        // Mostly there are some: asked with a deadline that has passed, the host does not wait.
        let (code, granted) = self.host.acquire(ticket, want, 1);
        if code != BP_DEADLINE_EXCEEDED || 0 < deadline_ns && deadline_ns <= clock::now_ns() {
            return self.grant(ask, ticket, code, granted);
        }
        if MOST_WAITING <= self.waiting.fetch_add(1, Ordering::Relaxed) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return self.grant(ask, ticket, BP_RESOURCE_EXHAUSTED, 0);
        }
        let this = self.clone();
        let waiting = std::thread::Builder::new().name("worker permits".to_owned()).spawn(move || {
            let (code, granted) = this.host.acquire(ticket, want, deadline_ns);
            this.waiting.fetch_sub(1, Ordering::Relaxed);
            this.grant(ask, ticket, code, granted);
        });
        if waiting.is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.grant(ask, ticket, BP_DEADLINE_EXCEEDED, 0);
        }
    }

    fn grant(&self, ask: u64, ticket: bp_ticket, code: bp_code, granted: u32) {
        if code == BP_OK {
            let mut all = self.granted.lock();
            if self.is_dead() {
                // Nobody is left to give them back.
                drop(all);
                return self.host.release(ticket, granted);
            }
            let grant = all.entry(ticket).or_insert(Grant { held: 0, lapsed: 0, since: Instant::now() });
            grant.held += granted;
            grant.since = Instant::now();
        }
        self.tell(&frame(&ToWorker::Answer { ask, code, value: u64::from(granted), bytes: b"" }));
    }

    /// Who looks at what it takes; nobody, if it was granted no bound.
    fn burn(&self) -> Option<Burn> {
        match &self.launch.confinement {
            Confinement::Nothing => None,
            Confinement::Sandbox(granted) => Some(Burn::new(self.pid, granted.cores)),
        }
    }

    /// Threads of the compute pool that it has.
    fn held(&self) -> u32 {
        self.granted.lock().values().map(|grant| grant.held).sum()
    }

    /// Takes back what instances keep: threads are for a burst of work, and nobody waits for one that holds them for
    /// longer. Whether the worker keeps some though there is nothing that they could be for.
    fn hoards(&self, now: Instant) -> bool {
        let idle = self.open.lock().all.is_empty();
        let mut back = Vec::new();
        for (ticket, grant) in &mut *self.granted.lock() {
            let kept = now.saturating_duration_since(grant.since);
            if 0 < grant.held && idle && KEPT_IDLE < kept {
                return true;
            }
            if 0 < grant.held && KEPT < kept {
                back.push((*ticket, grant.held));
                grant.lapsed += std::mem::take(&mut grant.held);
            }
        }
        for (ticket, granted) in back {
            tracing::warn!(plugin = self.launch.id, granted, "threads that a plugin kept are taken back");
            self.host.release(ticket, granted);
        }
        false
    }

    /// What is done from time to time: cancel words are looked at, and parked pieces offered.
    fn tick(&self) {
        let mut ended = Vec::new();
        let mut open = self.open.lock();
        for (id, entry) in &mut open.all {
            if !entry.told && entry.cancel.is_set() {
                self.tell_cancelled(*id, entry);
            }
            if !entry.parked.is_empty() {
                self.offer(*id, entry);
                if entry.parked.is_empty() && entry.end.is_some() {
                    ended.push(*id);
                }
            }
        }
        let ended: Vec<_> = ended.into_iter().filter_map(|id| open.all.remove(&id)).collect();
        drop(open);
        ended.iter().for_each(|entry| self.finish(entry));
    }

    // ---- its end ------------------------------------------------------------------------------------------------

    /// The worker is gone: everything it had ends, once.
    fn bury(&self, child: &mut Child) {
        let _gone = rustix::net::shutdown(&self.main, Shutdown::Both);
        let closing = self.closing.load(Ordering::Relaxed);
        let patience = if closing { Duration::from_secs(2) } else { Duration::from_millis(50) };
        let status =
            process::reap(child, if self.killed.get().is_some() { Duration::ZERO } else { patience });
        let kind = process::kind(self.killed.get().copied(), status.as_ref().ok().copied());
        let how = match (self.killed.get(), status) {
            (Some(why), _) => format!("{} and was killed", why.words()),
            (None, Ok(status)) => process::describe(status),
            (None, Err(error)) => error.to_string(),
        };
        let (requests, had) = {
            let mut open = self.open.lock();
            open.closed = true;
            let requests: Vec<_> = open.all.values().map(|open| open.request_id.clone()).collect();
            let (kept, had) =
                std::mem::take(&mut open.all).into_iter().partition(|(_, open)| open.submitting);
            open.all = kept;
            (requests, had)
        };
        let had: HashMap<u64, Open> = had;
        if !closing {
            tracing::error!(
                plugin = self.launch.id,
                version = self.launch.version,
                pid = self.pid,
                ?requests,
                "the worker {how}"
            );
            self.launch.on_crash.tell(&self.launch.id, kind);
        }
        let stuck = self.killed.get() == Some(&Why::Stuck);
        let fingerprints = had.values().map(|open| open.content.fingerprint()).collect();
        *self.death.lock() = Some(Death { how: how.clone(), had: fingerprints, stuck, at: Instant::now() });
        self.dead.notify_all();
        self.progress.notify_all();
        self.end(had, &how);
        for (ticket, grant) in std::mem::take(&mut *self.granted.lock()) {
            if 0 < grant.held {
                self.host.release(ticket, grant.held);
            }
        }
        for handle in std::mem::take(&mut *self.calls.lock()).into_values() {
            self.host.call_cancel(handle);
        }
    }

    /// Ends requests that the worker had.
    fn end(&self, had: HashMap<u64, Open>, how: &str) {
        let id = &self.launch.id;
        let message =
            format!("plugin `{id}` broke down while it served this request: its worker {how}; retry");
        let failure = Failure {
            code: 14,
            sub: BP_SUB_NONE,
            retry_after_ms: 1000,
            message: message.as_bytes(),
            reason: b"worker_crashed",
            details: b"",
        };
        for (id, mut entry) in had {
            // What had arrived is the reader's.
            self.offer(id, &mut entry);
            if entry.parked.is_empty() && entry.end.is_some() {
                self.finish(&entry);
            } else {
                self.host.finish(entry.sink, Some(&failure), b"", -1.0);
            }
        }
    }
}

/// Says what to load, and waits until it is.
fn greet(main: &Channel, launch: &Launch) -> Result<(), Option<String>> {
    let confine = match &launch.confinement {
        Confinement::Nothing => Confine::Nothing {},
        Confinement::Sandbox(granted) => Confine::Sandbox {
            read: granted.read.iter().map(|path| path.as_os_str().as_bytes()).collect(),
            write: granted.write.iter().map(|path| path.as_os_str().as_bytes()).collect(),
            memory: granted.memory,
            network: granted.network,
            ports: granted.ports.clone(),
            gpu: granted.gpu,
        },
    };
    let library = launch.library.as_os_str().as_bytes();
    let start = frame(&ToWorker::Start { protocol: PROTOCOL, library, confine });
    main.send_with(&start, launch.sealed.as_ref().map(AsFd::as_fd)).map_err(|_| None)?;
    if !readable(main, launch.limit) {
        return Err(Some(format!("its worker was not ready within {:?}", launch.limit)));
    }
    let Ok(Some((body, None))) = main.receive() else { return Err(None) };
    match body.read() {
        Ok(ToHost::Ready { problem: None, protocol: PROTOCOL, .. }) => Ok(()),
        Ok(ToHost::Ready { problem: Some(problem), .. }) => {
            Err(Some(String::from_utf8_lossy(problem).into_owned()))
        }
        Ok(ToHost::Ready { protocol, .. }) => Err(Some(format!(
            "its worker speaks protocol {protocol} and this host {PROTOCOL}: install both from one release"
        ))),
        _ => Err(Some("its worker said what is not in the protocol".to_owned())),
    }
}

/// Whether something can be read, or the other end is gone, within `wait`.
fn readable(channel: &Channel, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return 0 < ready,
            Err(rustix::io::Errno::INTR) => {}
            // Reading says what is wrong.
            Err(_) => return true,
        }
    }
}
