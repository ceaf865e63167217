//! What a worker says on the main connection, and the thread that sees to its end.

use super::super::Confinement;
use super::super::burn::Burn;
use super::super::process::Why;
use super::super::watch::Watch;
use super::Link;
use super::life::readable;
use backplane_abi::table::*;
use backplane_abi::worker::{Body, ToHost, ToWorker, frame};
use std::io::ErrorKind;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A worker that said nothing for so long is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Questions in a row without an answer, after which it is ended.
const MISSED: u32 = 3;
/// How often cancel words are looked at, and pieces offered again.
const TICK: Duration = Duration::from_millis(5);
/// The same while nothing is open.
const IDLE: Duration = Duration::from_millis(200);
/// How often it is looked at whether it keeps what it does not need.
const EVERY: Duration = Duration::from_secs(1);
/// Frames that are read one after the other: then there is else to see to.
const AT_ONCE: usize = 64;

impl Link {
    pub(super) fn listen(self: Arc<Self>, mut child: Child) {
        let why = self.hear();
        if let Some(why) = why {
            self.life.is_to_end(why);
            tracing::debug!(plugin = self.launch.id, ?why, "a worker is ended");
        }
        self.bury(&mut child);
    }

    /// Hears until the end of the connection; why it is to be ended, if it is us who end it.
    fn hear(self: &Arc<Self>) -> Option<Why> {
        let (mut last, mut missed, mut number) = (Instant::now(), 0, 0);
        let mut heard = 0;
        let mut watch = Watch::new(self.life.pid, &self.launch.confinement);
        let mut burn = match &self.launch.confinement {
            Confinement::Nothing => None,
            Confinement::Sandbox(granted) => Some(Burn::new(self.life.pid, granted.cores)),
        };
        let mut looked = Instant::now();
        loop {
            let before = *self.heard.lock();
            if before != heard {
                (last, missed, heard) = (Instant::now(), 0, before);
            }
            let wait = if self.requests.is_empty() { IDLE } else { TICK };
            if !self.turn.rest(TICK) && readable(&self.life.main, wait) {
                if let Err(why) = self.hear_now() {
                    return why;
                }
            } else if HEARTBEAT < last.elapsed() {
                if MISSED <= missed {
                    return Some(Why::Silent);
                }
                (last, missed, number) = (Instant::now(), missed + 1, number + 1);
                self.life.tell(&frame(&ToWorker::Ping { number }));
            }
            if let Some(why) = watch.look(Instant::now(), self.lanes_made.load(Ordering::Relaxed)) {
                return Some(why);
            }
            if let Some(burn) = &mut burn
                && burn.look(Instant::now(), self.grants.held(), self.looks.load(Ordering::Relaxed))
            {
                tracing::warn!(
                    plugin = self.launch.id,
                    pid = self.life.pid,
                    "a worker takes more processors than it was granted, and has what others leave from now on"
                );
            }
            if EVERY < looked.elapsed() {
                looked = Instant::now();
                if self.launch.progress.is_some_and(|limit| self.requests.stall(limit, looked)) {
                    return Some(Why::Stalled);
                }
                self.forgotten(self.arenas.unused(looked));
                if self.grants.hoarded(&self.launch.id, self.requests.is_empty(), looked) {
                    return Some(Why::Hoards);
                }
            }
            self.requests.tick();
        }
    }

    /// Reads what lies in the main connection and does what it says, in its order; waits for nothing more.
    ///
    /// # Errors
    /// When the connection has ended; with a reason when it is us who end it.
    pub(super) fn hear_now(self: &Arc<Self>) -> Result<(), Option<Why>> {
        let _alone = self.reading.lock();
        // After a piece of an answer often comes another.
        for _ in 0..AT_ONCE {
            let body = match self.life.main.receive_now() {
                Ok(Some((body, None))) => Arc::new(body),
                Ok(None) => return Err(None),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(None),
                Ok(Some((_, Some(_)))) | Err(_) => {
                    return Err(Some(Why::Protocol("sent what is not in the protocol")));
                }
            };
            let said = body.read().ok();
            let understood = said.as_ref().and_then(|said| self.understand(said, &body));
            *self.heard.lock() += 1;
            self.progress.notify_all();
            if understood.is_none() {
                return Err(Some(Why::Protocol("said what is not in the protocol")));
            }
            if !matches!(said, Some(ToHost::Push { .. })) {
                break;
            }
        }
        Ok(())
    }

    /// `None` when it is nothing that a worker may say now.
    fn understand(self: &Arc<Self>, said: &ToHost<'_>, body: &Arc<Body>) -> Option<()> {
        let answer = |ask, code, value, bytes: &[u8]| {
            self.life.tell(&frame(&ToWorker::Answer { ask, code, value, bytes }));
        };
        match *said {
            ToHost::Pong { .. } => {}
            ToHost::Push { request, json, ref tensors } => {
                self.requests.pushed(request, json, tensors, body)?;
            }
            ToHost::Finish { request, ref error, .. } => {
                self.requests.finished(request, body)?;
                if error.as_ref().is_some_and(|error| error.sub == BP_SUB_FATAL) {
                    self.life.kill(Why::Broken);
                }
            }
            ToHost::Log { level, message, fields } => self.host.log(level, message, fields),
            ToHost::Acquire { ask, ticket, want, deadline_ns } => {
                self.grants.acquire(ask, ticket, want, deadline_ns);
            }
            ToHost::Release { ticket, granted } => self.grants.release(ticket, granted)?,
            ToHost::LicenseState { ask } => {
                let (code, state, revision) = self.host.license_state();
                answer(ask, code, u64::from(state.cast_unsigned()), &revision.to_le_bytes());
            }
            ToHost::LicenseFeature { ask, tenant, name } => {
                let (code, value) = self.host.license_feature(tenant, name);
                answer(ask, code, value.cast_unsigned(), b"");
            }
            ToHost::LicenseBytes { ask, install_id } => {
                answer(ask, BP_OK, 0, &self.host.license_bytes(install_id));
            }
            ToHost::CallStart { ask, call, parent, .. } => {
                let parent = self.requests.sink(parent);
                answer(ask, self.nested.start(self, call, parent, said)?, 0, b"");
            }
            ToHost::CallCancel { call } => self.nested.cancel(call),
            ToHost::Ready { .. } => return None,
        }
        Some(())
    }

    /// The worker is gone: everything it had ends, once.
    fn bury(&self, child: &mut Child) {
        let end = self.life.reap(child);
        let left = self.requests.close();
        if !end.closed {
            self.launch.crashed(self.life.pid, end.kind, &end.how, &left.ids);
        }
        self.life.ended(end.how.clone(), left.fingerprints());
        self.progress.notify_all();
        self.requests.end(&self.launch.id, left.had, &end.how);
        self.grants.end();
        self.nested.end();
    }
}
