//! CPU threads are one pool for all plugins. An instance asks for threads before a burst of work and gives them back
//! after it, so that unlike engines do not fight over the cores: two decode threads beside one busy process were
//! measured to fall to a third of their speed.
//!
//! Permits are advice that plugins follow, not a lock around the processor. Holding threads while waiting for another
//! model is a mistake of the plugin: it may wait for itself.

mod policy;

use crate::metrics::Renderer;
use parking_lot::{Condvar, Mutex};
use policy::{Policy, SeatId, WaiterId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a waiter sleeps before it looks for itself. Releases wake waiters; this only ends the rare wait for a
/// thread that was kept for a seat which then did not come back while nothing else moved.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The machine's threads, granted by weight. Clones are the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    started: Instant,
    threads: u32,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    sleepers: Vec<(WaiterId, Arc<Sleeper>)>,
}

/// A thread that waits. `outcome` is written under the pool's lock.
#[derive(Debug)]
struct Sleeper {
    outcome: AtomicU32,
    wake: Condvar,
}

const UNDECIDED: u32 = 0;
const CLOSED: u32 = u32::MAX;

/// An instance's seat in the pool. Dropping or closing it gives back what it holds.
#[derive(Debug)]
pub struct Client {
    pool: Arc<Shared>,
    seat: SeatId,
    /// Read and written under the pool's lock: after closing, the seat's number may be another's.
    open: AtomicBool,
}

/// Why no thread was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The deadline passed first.
    #[error("no thread of the compute pool came free before the deadline")]
    Timeout,
    /// The seat was closed.
    #[error("the seat in the compute pool is closed")]
    Closed,
}

/// Why threads were not taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// More than are held.
    #[error("more threads are given back than the seat holds")]
    TooMany,
    /// The seat was closed; it holds nothing.
    #[error("the seat in the compute pool is closed")]
    Closed,
}

/// The pool at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Threads there are.
    pub threads: u32,
    /// Threads granted now. Above `threads` only where permits are off.
    pub granted: u32,
    /// Calls that wait now.
    pub waiting: u32,
    /// By model.
    pub groups: Vec<GroupStats>,
}

/// The seats of one model at one moment; the sums are since the pool began.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupStats {
    /// The model.
    pub name: Arc<str>,
    /// Its weight.
    pub weight: f64,
    /// Threads it holds now.
    pub held: u32,
    /// Its calls that wait now.
    pub waiting: u32,
    /// Grants.
    pub grants: u64,
    /// Thread time used.
    pub used: Duration,
    /// Time its calls waited.
    pub waited: Duration,
}

impl Pool {
    /// A pool of `threads`; 0 takes as many as this process may use (affinity and cgroup quota included).
    pub fn new(threads: u32) -> Self {
        let threads = count(threads);
        Self::build(threads, threads)
    }

    /// A pool that grants at once whatever is asked for. To measure what permits are worth, and to turn them off.
    pub fn unlimited(threads: u32) -> Self {
        Self::build(count(threads), u32::MAX)
    }

    /// `granted` is how many may be out at once, `threads` how many one grant may hold.
    fn build(threads: u32, granted: u32) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State { policy: Policy::new(granted), sleepers: Vec::new() }),
            started: Instant::now(),
            threads,
        }))
    }

    /// A seat for an instance of `model`. The seats of a model share its weight.
    pub fn join(&self, model: &str, weight: f64) -> Client {
        let seat = self.0.state.lock().policy.join(model, weight);
        Client { pool: self.0.clone(), seat, open: AtomicBool::new(true) }
    }

    /// How many threads there are.
    pub fn threads(&self) -> u32 {
        self.0.threads
    }

    /// Threads that `model` may hope for when every model that has seats is busy: at least one.
    pub fn share(&self, model: &str, weight: f64) -> u32 {
        let state = self.0.state.lock();
        let others: f64 = state.policy.groups().filter(|g| &*g.name != model).map(|g| g.weight).sum();
        ((f64::from(self.0.threads) * weight / (weight + others)) as u32).clamp(1, self.0.threads)
    }

    /// Writes the figures, for [`crate::metrics::Metrics::on_render`].
    pub fn render(&self, out: &mut Renderer) {
        let stats = self.stats();
        out.gauge("backplane_compute_threads", "CPU threads of the pool", &[], f64::from(stats.threads));
        for group in &stats.groups {
            let model = [("model", &*group.name)];
            out.gauge(
                "backplane_compute_granted_threads",
                "CPU threads granted now",
                &model,
                f64::from(group.held),
            );
            out.gauge(
                "backplane_compute_waiting",
                "Calls that wait for a CPU thread",
                &model,
                f64::from(group.waiting),
            );
            out.counter(
                "backplane_compute_grants_total",
                "Grants of CPU threads",
                &model,
                group.grants as f64,
            );
            let (used, waited) = (group.used.as_secs_f64(), group.waited.as_secs_f64());
            out.counter(
                "backplane_compute_used_seconds_total",
                "Time that granted threads were held",
                &model,
                used,
            );
            out.counter(
                "backplane_compute_waited_seconds_total",
                "Time that calls waited for a thread",
                &model,
                waited,
            );
        }
    }

    /// The pool now. Changes nothing.
    pub fn stats(&self) -> Stats {
        let state = self.0.state.lock();
        let nanos = |n: u128| Duration::from_nanos(u64::try_from(n).unwrap_or(u64::MAX));
        let groups: Vec<GroupStats> = state
            .policy
            .groups()
            .map(|group| GroupStats {
                name: group.name.clone(),
                weight: group.weight,
                held: group.held,
                waiting: group.waiting,
                grants: group.grants,
                used: nanos(group.used),
                waited: nanos(group.waited),
            })
            .collect();
        Stats {
            threads: self.0.threads,
            granted: state.policy.granted(),
            waiting: state.policy.waiting() as u32,
            groups,
        }
    }
}

impl Client {
    /// Waits for 1 to `want` threads and says how many were granted. They go back by [`Client::release`]. Blocks the
    /// calling thread: not for an executor's.
    ///
    /// # Errors
    /// `Timeout` when none came free before `deadline`; `Closed` when the seat is closed, also while waiting.
    pub fn acquire(&self, want: u32, deadline: Option<Instant>) -> Result<u32, AcquireError> {
        let mut state = self.pool.state.lock();
        if !self.open.load(Ordering::Relaxed) {
            return Err(AcquireError::Closed);
        }
        let now = self.pool.now();
        let id = state.policy.ask(self.seat, want.clamp(1, self.pool.threads), now);
        let mut granted = None;
        state.dispatch(now, |ours, count| {
            if ours == id {
                granted = Some(count);
            }
        });
        if let Some(count) = granted {
            return Ok(count);
        }

        let sleeper = Arc::new(Sleeper { outcome: AtomicU32::new(UNDECIDED), wake: Condvar::new() });
        state.sleepers.push((id, sleeper.clone()));
        loop {
            let look = Instant::now() + LOOK_AGAIN;
            sleeper.wake.wait_until(&mut state, deadline.map_or(look, |deadline| deadline.min(look)));
            if sleeper.outcome.load(Ordering::Relaxed) == UNDECIDED {
                state.dispatch(self.pool.now(), |_, _| ());
            }
            match sleeper.outcome.load(Ordering::Relaxed) {
                UNDECIDED => {}
                CLOSED => return Err(AcquireError::Closed),
                count => return Ok(count),
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                state.policy.abandon(id);
                state.sleepers.retain(|(other, _)| *other != id);
                return Err(AcquireError::Timeout);
            }
        }
    }

    /// Gives `count` granted threads back. Does not block.
    ///
    /// # Errors
    /// `TooMany`, and nothing is taken back, when the seat holds fewer; `Closed` when it is closed.
    pub fn release(&self, count: u32) -> Result<(), ReleaseError> {
        let mut state = self.pool.state.lock();
        if !self.open.load(Ordering::Relaxed) {
            return Err(ReleaseError::Closed);
        }
        let now = self.pool.now();
        if !state.policy.release(self.seat, count, now) {
            return Err(ReleaseError::TooMany);
        }
        state.dispatch(now, |_, _| ());
        Ok(())
    }

    /// Gives back what the seat holds and ends its waits with `Closed`: for an instance that is stuck. Harmless when
    /// repeated.
    pub fn close(&self) {
        let mut state = self.pool.state.lock();
        if self.open.swap(false, Ordering::Relaxed) {
            let now = self.pool.now();
            for id in state.policy.leave(self.seat, now) {
                state.wake(id, CLOSED);
            }
            state.dispatch(now, |_, _| ());
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

impl State {
    /// Grants what can be granted and wakes whom it concerns; `also` hears of every grant.
    fn dispatch(&mut self, now: u64, mut also: impl FnMut(WaiterId, u32)) {
        let sleepers = &mut self.sleepers;
        self.policy.dispatch(now, |id, count| {
            also(id, count);
            wake(sleepers, id, count);
        });
    }

    fn wake(&mut self, id: WaiterId, outcome: u32) {
        wake(&mut self.sleepers, id, outcome);
    }
}

/// Ends the wait of `id`, if it sleeps.
fn wake(sleepers: &mut Vec<(WaiterId, Arc<Sleeper>)>, id: WaiterId, outcome: u32) {
    if let Some(at) = sleepers.iter().position(|(other, _)| *other == id) {
        let (_, sleeper) = sleepers.swap_remove(at);
        sleeper.outcome.store(outcome, Ordering::Relaxed);
        sleeper.wake.notify_one();
    }
}

/// `threads`, or for 0 as many as this process may use.
fn count(threads: u32) -> u32 {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        _ => threads,
    }
}

#[cfg(test)]
mod tests;
