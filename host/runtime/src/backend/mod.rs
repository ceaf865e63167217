//! A backend: one opened model with its queue, its instances and their threads.
//!
//! The request path calls [`Backend::dispatch`] and nothing else: it takes a place in the bounded queue or is
//! refused at once. Lanes (threads) carry requests to instances; the [`actor`] watches deadlines, leavers and health,
//! and replaces what is stuck.

pub mod actor;
mod batch;
mod cancels;
mod lane;
mod queue;

pub use queue::Refusal;

use crate::compute;
use crate::error::{Error, Result};
use crate::info::Running;
use crate::loader::{Class, Exchange, Instance, Model, QUARANTINED};
use crate::metrics::Metrics;
use backplane_registry::license::Seats;
use lane::{FIRST_PAUSE, MAX_BACK_OFF, Seat};
use parking_lot::Mutex;
use queue::Queue;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Bytes of a request that is handed over on its own thread.
const SHORT: usize = 64 << 10;
/// What `submit` of a CONTINUOUS instance may take of the thread of a request: far more than to be put off by others.
const AT_ONCE: Duration = Duration::from_millis(50);
/// So many in a row that take longer are no accident: one alone may be a thread that a busy machine had put off.
const NO_ACCIDENT: u32 = 3;

/// How a model is served.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Copies of the model.
    pub instances: u32,
    /// Requests that run at once, all copies together; the model may allow fewer. Each copy has room for one.
    pub concurrency: u32,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Rows of one call; the model may allow fewer.
    pub max_batch: usize,
    /// How long a batch that is not full waits for more.
    pub batch_window: Duration,
    /// Share of the CPU threads, in proportion to the other models.
    pub weight: f64,
    /// Threads an instance may hope for.
    pub threads: u32,
    /// How long open requests may take when the model is closed.
    pub drain: Duration,
}

/// One opened model.
pub struct Backend {
    name: Arc<str>,
    /// Id of its plugin.
    plugin: Arc<str>,
    model: Arc<Model>,
    metrics: Metrics,
    settings: Settings,
    pool: compute::Pool,
    queue: Queue,
    seats: Mutex<Vec<Arc<Seat>>>,
    lanes: AtomicU32,
    closed: AtomicBool,
    /// Why it has no instance any more and gets none: the catalog closes it.
    lost: OnceLock<Error>,
    /// Its plugin reported more tokens than there can be.
    overstated: AtomicBool,
    /// How many `submit`s in a row took longer than [`AT_ONCE`].
    slow: AtomicU32,
    /// Set by whoever closes this.
    drained_by: Mutex<Option<Instant>>,
    counts: Counts,
    /// Of the plugin's licence: its instances count as long as this is there.
    licensed: OnceLock<Seats>,
}

#[derive(Default)]
struct Counts {
    replaced: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    queue_ns: AtomicU64,
    run_ns: AtomicU64,
    batches: AtomicU64,
    rows: AtomicU64,
}

/// Ends a request that nobody waits for any more.
fn give_up(exchange: &Exchange) {
    let error = match exchange.deadline() {
        Some(deadline) if deadline <= Instant::now() => Error::deadline(if exchange.submitted().is_some() {
            "the model worked on it"
        } else {
            "it waited"
        }),
        _ => Error::cancelled(),
    };
    exchange.end(Err(error), None);
}

impl Backend {
    /// Makes the instances and starts their threads. Blocks while the plugin makes them.
    ///
    /// # Errors
    /// The plugin's.
    pub fn start(
        (name, plugin): (Arc<str>, Arc<str>),
        model: Arc<Model>,
        settings: Settings,
        pool: compute::Pool,
        metrics: Metrics,
    ) -> Result<Arc<Self>> {
        let backend = Arc::new(Self {
            queue: Queue::new(settings.max_queue),
            name,
            plugin,
            model,
            metrics,
            settings,
            pool,
            seats: Mutex::new(Vec::new()),
            lanes: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            lost: OnceLock::new(),
            overstated: AtomicBool::new(false),
            slow: AtomicU32::new(0),
            drained_by: Mutex::new(None),
            counts: Counts::default(),
            licensed: OnceLock::new(),
        });
        for index in 0..backend.settings.instances.max(1) {
            match Self::open_seat(&backend, index) {
                Ok(()) => {}
                Err(error) if index == 0 => return Err(error),
                Err(error) => {
                    tracing::error!(model = &*backend.name, index, %error, "an instance could not be made");
                }
            }
        }
        Ok(backend)
    }

    fn open_seat(self: &Arc<Self>, index: u32) -> Result<()> {
        let seat = Seat::start(self, index)?;
        let lanes = match self.model.class() {
            Class::Concurrent => self.max_inflight().min(64),
            Class::Serial | Class::Continuous => 1,
        };
        self.lanes.fetch_add(lanes, Ordering::Relaxed);
        self.seats.lock().push(seat);
        Ok(())
    }

    /// Id of its plugin.
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Keeps its instances counted.
    pub fn hold(&self, seats: Seats) {
        self.licensed.set(seats).ok();
    }

    /// Its model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The opened model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How it is served.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn max_batch(&self) -> usize {
        let most = self.settings.max_batch.min(self.model.max_batch() as usize);
        most.min(self.concurrency_of_one() as usize).max(1)
    }

    /// Requests that may be in one copy at once, by the settings.
    fn concurrency_of_one(&self) -> u32 {
        (self.settings.concurrency / self.settings.instances.max(1)).max(1)
    }

    /// Requests that may be in one copy at once.
    fn max_inflight(&self) -> u32 {
        self.model.max_inflight().min(self.concurrency_of_one())
    }

    fn new_instance(&self, index: u32) -> Result<Instance> {
        let client = self.pool.join(&self.name, self.settings.weight);
        self.model.instance(index, self.settings.threads, Arc::new(client))
    }

    /// Takes a request, or refuses it at once. Its end comes through the exchange.
    ///
    /// A CONTINUOUS instance with room for it has it when this returns: `submit` returns at once there, and to wake a lane
    /// for it would cost more than it does. Not so for a long request, of which a plugin may have to copy all, and not for
    /// one that comes from a plugin, since it is on the host's own thread.
    ///
    /// # Errors
    /// When the queue is full, the model is being closed, or its plugin is in quarantine.
    pub fn dispatch(self: &Arc<Self>, exchange: Arc<Exchange>) -> Result<(), Refusal> {
        if let Some(error) = self.lost.get() {
            return Err(Refusal::Full(error.clone()));
        }
        let straight = self.model.takes_at_once()
            && exchange.weight() <= SHORT
            && !exchange.is_nested()
            && self.slow.load(Ordering::Relaxed) < NO_ACCIDENT;
        let seat = if straight { self.least_busy() } else { None };
        let place = |exchange: &Arc<Exchange>| seat.as_ref()?.place(exchange, self.max_inflight() as usize);
        let taker = self.queue.push(exchange.clone(), &self.name, place)?;
        if let (Some(seat), Some(taker)) = (seat, taker) {
            let began = Instant::now();
            seat.hand_over(self, &taker, vec![exchange]);
            self.judge(began.elapsed());
        }
        Ok(())
    }

    /// A plugin whose `submit` waits, which it promises not to, keeps its lane waiting from then on and nobody else.
    fn judge(&self, took: Duration) {
        if took <= AT_ONCE {
            // Written only where it says something else, since every request comes by here.
            if (1..NO_ACCIDENT).contains(&self.slow.load(Ordering::Relaxed)) {
                self.slow.store(0, Ordering::Relaxed);
            }
        } else if self.slow.fetch_add(1, Ordering::Relaxed) + 1 == NO_ACCIDENT {
            tracing::warn!(
                plugin = &*self.plugin,
                model = &*self.name,
                ?took,
                "`submit` of a CONTINUOUS instance is to return at once; requests go by its lane from now on"
            );
        }
    }

    /// The seat with the fewest requests. `None` rather than wait for who looks after them.
    fn least_busy(&self) -> Option<Arc<Seat>> {
        self.seats.try_lock()?.iter().min_by_key(|seat| seat.busy()).cloned()
    }

    /// Counts a request that ended.
    pub fn count_end(&self, failed: bool, queue: Duration, run: Duration) {
        let counts = &self.counts;
        if failed { &counts.failed } else { &counts.answered }.fetch_add(1, Ordering::Relaxed);
        counts.queue_ns.fetch_add(queue.as_nanos() as u64, Ordering::Relaxed);
        counts.run_ns.fetch_add(run.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Says, once, that the plugin reports more tokens than there can be.
    pub fn overstates(&self, reported: u64, charged: u64) {
        if !self.overstated.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                plugin = &*self.plugin,
                model = &*self.name,
                reported,
                charged,
                "a plugin reports more tokens than what was asked and answered can have; the rest is not charged"
            );
        }
    }

    /// Counts a call to the plugin. The rows of a batch ask for the same capability.
    fn count_batch(&self, batch: &[Arc<Exchange>]) {
        let Some(first) = batch.first() else { return };
        self.counts.batches.fetch_add(1, Ordering::Relaxed);
        self.counts.rows.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.metrics.batch(first.capability(), &self.name, batch.len());
    }

    fn count_replaced(&self) {
        self.metrics.count_fault(&self.plugin, "instance");
        self.counts.replaced.fetch_add(1, Ordering::Relaxed);
    }

    fn lane_ended(&self) {
        self.lanes.fetch_sub(1, Ordering::Relaxed);
    }

    /// When the requests that are open while this is closed have to end.
    fn drained_by(&self) -> Instant {
        *self.drained_by.lock().get_or_insert_with(|| Instant::now() + self.settings.drain)
    }

    /// A place stays empty, for its plugin is in quarantine. Without any other, nothing that waits will be served.
    fn lose(&self, error: &Error) {
        let mut seats = self.seats.lock();
        seats.retain(|seat| !seat.is_retired());
        if !seats.is_empty() || self.lost.set(error.clone()).is_err() {
            return;
        }
        drop(seats);
        self.queue.close();
        for exchange in self.queue.remove(|_| true) {
            exchange.end(Err(error.clone()), None);
        }
    }

    /// Whether it has no instance any more and gets none.
    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether it has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.queue.len() == 0 && self.seats.lock().iter().all(|seat| seat.busy() == 0)
    }

    /// Its figures. The catalog adds what it knows.
    pub fn running(&self) -> Running {
        let seats = self.seats.lock();
        let alive = seats.iter().filter(|seat| !seat.is_retired()).count() as u32;
        let counts = &self.counts;
        Running {
            device: "cpu".to_owned(),
            busy: seats.iter().map(|seat| seat.busy() as u32).sum(),
            queued: self.queue.len() as u32,
            slots: alive * self.max_inflight(),
            instances: alive,
            replaced: counts.replaced.load(Ordering::Relaxed),
            answered: counts.answered.load(Ordering::Relaxed),
            failed: counts.failed.load(Ordering::Relaxed),
            queue_ns: counts.queue_ns.load(Ordering::Relaxed),
            run_ns: counts.run_ns.load(Ordering::Relaxed),
            batches: counts.batches.load(Ordering::Relaxed),
            rows: counts.rows.load(Ordering::Relaxed),
            engine: self.model.stats(),
            ..Running::default()
        }
    }

    /// Looks after deadlines and leavers; replaces what is stuck. Called often, by the actor; must not block.
    fn tick(self: &Arc<Self>, now: Instant) {
        for exchange in self.queue.remove(|exchange| {
            exchange.is_cancelled() || exchange.deadline().is_some_and(|deadline| deadline <= now)
        }) {
            give_up(&exchange);
        }
        let grace = self.model.cancel_grace();
        let stuck: Vec<_> = {
            let mut seats = self.seats.lock();
            let (stuck, kept): (Vec<_>, Vec<_>) = seats.drain(..).partition(|seat| seat.overdue(now, grace));
            *seats = kept;
            stuck
        };
        for seat in stuck {
            tracing::error!(
                model = &*self.name,
                index = seat.index,
                "an instance did not give up a request {grace:?} after it was cancelled; it is left alone and replaced"
            );
            seat.retire(
                &Error::unavailable("the plugin is stuck; its instance is being replaced")
                    .with_reason("plugin_stuck"),
            );
            self.queue.wake();
            self.count_replaced();
            let (backend, index) = (self.clone(), seat.index);
            let spawned = std::thread::Builder::new().name(format!("{} reopen", self.name)).spawn(move || {
                let mut pause = FIRST_PAUSE;
                while !backend.is_closed() {
                    let Err(error) = backend.open_seat(index) else { return };
                    tracing::error!(model = &*backend.name, %error, "a stuck instance could not be replaced");
                    if error.reason == QUARANTINED {
                        return backend.lose(&error);
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(MAX_BACK_OFF);
                }
            });
            if let Err(error) = spawned {
                tracing::error!(model = &*self.name, %error, "no thread to replace a stuck instance");
            }
        }
    }

    /// Asks every instance how it is, and replaces those that say they are broken. Blocks as long as they do.
    fn check_health(&self) {
        let seats: Vec<_> = self.seats.lock().clone();
        for seat in seats {
            let Some(instance) = seat.instance() else { continue };
            if let crate::loader::HealthState::Failed(why) = instance.health() {
                tracing::error!(
                    model = &*self.name,
                    index = seat.index,
                    why,
                    "an instance says it is broken"
                );
                drop(instance);
                seat.poison(&self.queue);
            }
        }
    }

    /// How its instances say they are. Blocks as long as they do.
    ///
    /// # Errors
    /// Why one of them does not serve.
    pub fn health(&self) -> Result<(), String> {
        use crate::loader::HealthState::{Failed, NotReady};
        let seats: Vec<_> = self.seats.lock().clone();
        for instance in seats.iter().filter_map(|seat| seat.instance()) {
            if let Failed(why) | NotReady(why) = instance.health() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Takes no more requests; those that it has go on until then, or until it is closed.
    pub fn refuse(&self, until: Instant) {
        self.drain_by(until);
        self.queue.close();
    }

    /// When the requests that are open now have to end at the latest: what was said before, if that is sooner.
    fn drain_by(&self, deadline: Instant) -> Instant {
        let mut drained_by = self.drained_by.lock();
        let sooner = drained_by.map_or(deadline, |before| before.min(deadline));
        *drained_by.insert(sooner)
    }

    /// Takes no more requests, and gives back those that no instance has yet.
    pub fn bounce(&self) {
        self.queue.close();
        for exchange in self.queue.remove(|_| true) {
            exchange
                .end(Err(Error::unavailable("the new version of the plugin was taken back; retry")), None);
        }
    }

    /// Takes no more requests, lets the open ones finish within `drain`, and ends every thread. Blocks. The model itself
    /// is closed when the last `Arc` of this goes.
    pub fn close(&self, drain: Duration) {
        let deadline = self.drain_by(Instant::now() + drain);
        self.queue.close();
        while !self.is_idle() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.closed.store(true, Ordering::Relaxed);
        for exchange in self.queue.remove(|_| true) {
            exchange.end(Err(Error::shutting_down()), None);
        }
        let seats: Vec<_> = std::mem::take(&mut *self.seats.lock());
        for seat in &seats {
            if seat.busy() != 0 {
                seat.retire(&Error::shutting_down());
            }
        }
        self.queue.wake();
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.lanes.load(Ordering::Relaxed) != 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
