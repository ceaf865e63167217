//! Threads of the machine that a worker's instances have.

use super::super::host::HostSide;
use super::life::Life;
use backplane_abi::clock;
use backplane_abi::table::*;
use backplane_abi::worker::{ToWorker, frame};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Questions for threads that may wait for an answer, each with a thread of ours. Who asks once more works without.
const MOST_WAITING: u32 = 32;
/// How long an instance may keep threads without a word while its worker has requests, and while it has none.
const KEPT: Duration = Duration::from_secs(30);
const KEPT_IDLE: Duration = Duration::from_secs(5);

/// All of one worker.
pub struct Grants {
    host: HostSide,
    life: Arc<Life>,
    all: Mutex<HashMap<bp_ticket, Grant>>,
    /// Threads that wait for permits for it.
    waiting: AtomicU32,
}

/// What an instance has.
struct Grant {
    held: u32,
    /// Those that it kept for too long: others have them, and it may still say that it gives them back.
    lapsed: u32,
    /// When it last asked for some or gave some back.
    since: Instant,
}

impl Grants {
    pub fn new(host: HostSide, life: Arc<Life>) -> Self {
        Self { host, life, all: Mutex::default(), waiting: AtomicU32::new(0) }
    }

    /// An instance asks for threads, and is answered: at once, or by a thread that waits.
    pub fn acquire(self: &Arc<Self>, ask: u64, ticket: bp_ticket, want: u32, deadline_ns: i64) {
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
            let mut all = self.all.lock();
            if self.life.is_over() {
                // Nobody is left to give them back.
                drop(all);
                return self.host.release(ticket, granted);
            }
            let grant = all.entry(ticket).or_insert(Grant { held: 0, lapsed: 0, since: Instant::now() });
            grant.held += granted;
            grant.since = Instant::now();
        }
        self.life.tell(&frame(&ToWorker::Answer { ask, code, value: u64::from(granted), bytes: b"" }));
    }

    /// An instance gives threads back. `None` when it does not have so many.
    pub fn release(&self, ticket: bp_ticket, granted: u32) -> Option<()> {
        let mut all = self.all.lock();
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
        Some(())
    }

    /// How many it has.
    pub fn held(&self) -> u32 {
        self.all.lock().values().map(|grant| grant.held).sum()
    }

    /// Takes back what instances keep: threads are for a burst of work, and nobody waits for one that holds them for
    /// longer. Whether the worker keeps some though there is nothing that they could be for, since it is `idle`.
    pub fn hoarded(&self, plugin: &str, idle: bool, now: Instant) -> bool {
        let mut back = Vec::new();
        for (ticket, grant) in &mut *self.all.lock() {
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
            tracing::warn!(plugin, granted, "threads that a plugin kept are taken back");
            self.host.release(ticket, granted);
        }
        false
    }

    /// The worker is gone, and gives nothing back any more.
    pub fn end(&self) {
        for (ticket, grant) in std::mem::take(&mut *self.all.lock()) {
            if 0 < grant.held {
                self.host.release(ticket, grant.held);
            }
        }
    }
}
