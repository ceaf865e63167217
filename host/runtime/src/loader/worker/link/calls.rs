//! Calls into a worker's plugin: each on a lane, by the thread that wants the answer.

use super::super::process::Why;
use super::super::turn::Taken;
use super::Link;
use super::life::readable;
use backplane_abi::worker::{Body, Call, Channel, Lookers, MAX_INLINE, Return, ToWorker, frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Why a worker is ended that answers a call with what is no answer.
const NO_ANSWER: Why = Why::Protocol("sent an answer that is not in the protocol");

/// Threads of this process that look for what workers say: each has a core, and who answers it another.
static LOOKERS: LazyLock<Lookers> = LazyLock::new(|| Lookers::new(super::cores() / 2));

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
            code: backplane_abi::table::BP_INTERNAL,
            error: None,
            value: backplane_abi::worker::Value::Nothing {},
        };
        self.0.read().unwrap_or(broken)
    }
}

impl Link {
    /// A lane: one that is free, or a new one.
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn lane(&self) -> Result<Channel, Lost> {
        if let Some(lane) = self.lanes.lock().pop() {
            return Ok(lane);
        }
        let (ours, theirs) = Channel::pair().map_err(|_| Lost { sent: false })?;
        self.lanes_made.fetch_add(1, Ordering::Relaxed);
        if self.life.main.send_with(&frame(&ToWorker::Lane {}), Some(theirs.as_fd())).is_err() {
            self.life.gone();
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
            self.life.gone();
            return Err(Lost { sent: false });
        }
        if let Some(limit) = limit
            && !readable(lane, limit)
        {
            self.life.kill(Why::Slow);
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
                self.life.kill(NO_ANSWER);
                return Err(Lost { sent: true });
            }
            lost => {
                self.life.gone();
                // The call was still in the socket: nothing of it was done.
                let unread = lost.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
                return Err(Lost { sent: !unread });
            }
        };
        let Ok(Return { after, back, .. }) = body.read() else {
            self.life.kill(NO_ANSWER);
            return Err(Lost { sent: true });
        };
        if let (true, Some(arena)) = (back, lent) {
            self.forgotten(self.arenas.back(arena, Instant::now()));
        }
        self.hear_up_to(after, taken);
        Ok(Returned(body))
    }

    /// Memory that the worker was lent and is not any more.
    pub(super) fn forgotten(&self, arenas: Vec<u64>) {
        for arena in arenas {
            self.life.tell(&frame(&ToWorker::Forget { arena }));
        }
    }

    /// Waits for an answer on this lane, and meanwhile reads the main connection in the listener's place, if nobody else
    /// does. `look`: whether it may look before it sleeps.
    fn read_until(&self, lane: &Channel, look: bool) -> Option<Taken<'_>> {
        let taken = self.turn.take()?;
        loop {
            let mut both = [PollFd::new(lane, PollFlags::IN), PollFd::new(&self.life.main, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let come =
                look && lane.look(&LOOKERS, || poll(&mut both, Some(&now)).is_ok_and(|ready| 0 < ready));
            match if come { Ok(0) } else { poll(&mut both, None) } {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Some(taken),
            }
            let [answered, said] = both.map(|fd| !fd.revents().is_empty());
            if said && !self.hear_instead() {
                drop(taken);
                self.turn.wake();
                return None;
            }
            if answered {
                return Some(taken);
            }
        }
    }

    /// Reads what has come in the listener's place; `false` when that one has to see to the end of the connection.
    fn hear_instead(&self) -> bool {
        let Some(this) = self.this.upgrade() else { return false };
        let heard = this.hear_now();
        if let Err(Some(why)) = heard {
            self.life.kill(why);
        }
        heard.is_ok()
    }

    /// Returns when so many frames have been heard: what the plugin said before it returned lies in the connection.
    fn hear_up_to(&self, after: u64, taken: Option<Taken<'_>>) {
        // It may say any number.
        while taken.is_some()
            && *self.heard.lock() < after
            && readable(&self.life.main, Duration::ZERO)
            && self.hear_instead()
        {}
        drop(taken);
        if *self.heard.lock() < after || !self.requests.is_empty() {
            self.turn.wake();
        }
        let mut heard = self.heard.lock();
        while *heard < after && !self.life.is_over() {
            self.turn.wake();
            self.progress.wait_for(&mut heard, Duration::from_millis(50));
        }
    }
}
