//! A worker's process and the main connection to it, until its end.

use super::super::crashes::Fingerprint;
use super::super::process::{self, Why};
use backplane_abi::worker::{Channel, Out};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whether it lives, and how it ended.
pub struct Life {
    pub main: Channel,
    pub pid: u32,
    /// The process itself, since its number is somebody else's one day.
    process: OwnedFd,
    killed: OnceLock<Why>,
    closing: AtomicBool,
    over: AtomicBool,
    death: Mutex<Option<Death>>,
    dead: Condvar,
    counted: AtomicBool,
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub struct Death {
    /// "was killed by SIGSEGV"
    pub how: String,
    /// Fingerprints of the requests it had.
    pub had: Vec<Fingerprint>,
    /// It was ended for one request that it kept: no crash.
    pub stuck: bool,
    pub at: Instant,
}

/// What the system says of its end.
pub struct End {
    pub how: String,
    /// The same in a word that can be counted.
    pub kind: &'static str,
    /// Nobody wanted it any more.
    pub closed: bool,
}

impl Life {
    /// Of this process, which nobody has waited for.
    ///
    /// # Errors
    /// The system's.
    pub fn new(main: Channel, pid: u32) -> std::io::Result<Self> {
        let pid_of = Pid::from_raw(pid.cast_signed()).ok_or(std::io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(pid_of, PidfdFlags::empty())?;
        Ok(Self {
            main,
            pid,
            process,
            killed: OnceLock::new(),
            closing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            death: Mutex::new(None),
            dead: Condvar::new(),
            counted: AtomicBool::new(false),
        })
    }

    /// Whether it is gone, or about to: one that was killed takes nothing any more.
    pub fn is_over(&self) -> bool {
        self.killed.get().is_some() || self.over.load(Ordering::Acquire)
    }

    /// Whether it is ended because it kept a request: one whose caller had left, or that it does not get on with.
    pub fn is_stuck(&self) -> bool {
        matches!(self.killed.get(), Some(Why::Stuck | Why::Stalled))
    }

    /// How it ended; waits a moment for the system to say.
    pub fn death(&self) -> Option<Death> {
        let mut death = self.death.lock();
        let deadline = Instant::now() + Duration::from_secs(5);
        while death.is_none() && self.is_over() && Instant::now() < deadline {
            self.dead.wait_until(&mut death, deadline);
        }
        death.clone()
    }

    /// The same, to the first who asks so: a crash counts once, however many meet it.
    pub fn uncounted_death(&self) -> Option<Death> {
        self.death().filter(|_| !self.counted.swap(true, Ordering::Relaxed))
    }

    /// Ends it, for this reason.
    pub fn kill(&self, why: Why) {
        self.is_to_end(why);
        // Its listener sees the end of the connection, and does the rest.
        self.hang_up();
        let _gone = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Notes why it is ended, unless there was a reason before.
    pub fn is_to_end(&self, why: Why) {
        let _first = self.killed.set(why);
    }

    /// Lets it end: no plugin is in it any more.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.hang_up();
    }

    fn hang_up(&self) {
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

    /// A connection has ended, and with it the worker, whose listener says how. One that ended alone was broken by it.
    pub fn gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.is_over() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.is_over() {
            self.kill(Why::Protocol("closed a connection"));
        }
    }

    /// Its process has ended, or is ended now: how.
    pub fn reap(&self, child: &mut Child) -> End {
        self.hang_up();
        let closed = self.closing.load(Ordering::Relaxed);
        let killed = self.killed.get().copied();
        let patience = match (killed, closed) {
            (Some(_), _) => Duration::ZERO,
            (None, true) => Duration::from_secs(2),
            (None, false) => Duration::from_millis(50),
        };
        let status = process::reap(child, patience);
        // Whoever ended it meanwhile has said why.
        let killed = self.killed.get().copied();
        let kind = process::kind(killed, status.as_ref().ok().copied());
        let how = match (killed, status) {
            (Some(why), _) => format!("{} and was killed", why.words()),
            (None, Ok(status)) => process::describe(status),
            (None, Err(error)) => error.to_string(),
        };
        End { how, kind, closed }
    }

    /// It takes nothing any more; how it ended is said by [`Life::ended`].
    pub fn takes_nothing(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// It has ended so, with these requests.
    pub fn ended(&self, how: String, had: Vec<Fingerprint>) {
        let stuck = self.is_stuck();
        *self.death.lock() = Some(Death { how, had, stuck, at: Instant::now() });
        self.dead.notify_all();
    }
}

/// Whether something can be read, or the other end is gone, within `wait`.
pub fn readable(channel: &Channel, wait: Duration) -> bool {
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
