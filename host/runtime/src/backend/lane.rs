//! The threads that call into an instance.
//!
//! A [`Seat`] is one instance with its lanes: one thread for SERIAL and CONTINUOUS, as many as calls it takes at once
//! for CONCURRENT. A lane takes a batch, hands it over, and (but for CONTINUOUS) waits until it is given back. What a
//! CONTINUOUS instance has room for is handed over by whoever has it ([`Backend::dispatch`]): no lane is woken for it. An
//! instance that panicked is replaced by the lane that sees it; one that is stuck is left to its thread, and the
//! actor opens a new seat.

use super::cancels::Cancels;
use super::{Backend, queue::Queue};
use crate::error::{Error, Result};
use crate::loader::{Class, Exchange, Instance, QUARANTINED};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Pause between two attempts to replace an instance: the first, and the longest.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// How long an instance that is let go of is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// One instance and what it has.
pub struct Seat {
    pub index: u32,
    instance: Mutex<Option<Arc<Instance>>>,
    /// Requests that the plugin has.
    open: Mutex<Vec<Arc<Exchange>>>,
    returned: Condvar,
    poisoned: AtomicBool,
    /// How many instances were here before this one: what is said of one of them is not said of the next. Changed and
    /// read under the lock of `instance`.
    replaced: AtomicU64,
    /// Left to its fate, and why: its lanes end as soon as the plugin lets them.
    retired: OnceLock<Error>,
    /// Lanes that have not left.
    lanes: AtomicU32,
    cancels: Cancels,
    /// Nanoseconds of work of this seat, for the heartbeat.
    pub submits: AtomicU64,
}

/// Lets go of an instance on this thread, and not on that of a request that is being handed over: to destroy it may take
/// time. A plugin that hangs in `submit` is not waited for.
fn drop_alone(instance: Arc<Instance>) {
    let until = Instant::now() + PATIENCE;
    while Arc::strong_count(&instance) > 1 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Who is handed requests.
pub struct Taker {
    instance: Arc<Instance>,
    /// As [`Seat`] has it.
    replaced: u64,
}

impl Seat {
    /// Makes the instance and starts its lanes. Blocks while the plugin makes it.
    ///
    /// # Errors
    /// The plugin's, or that no thread can be had.
    pub fn start(backend: &Arc<Backend>, index: u32) -> Result<Arc<Seat>> {
        let seat = Arc::new(Seat {
            index,
            instance: Mutex::new(None),
            open: Mutex::new(Vec::new()),
            returned: Condvar::new(),
            poisoned: AtomicBool::new(false),
            replaced: AtomicU64::new(0),
            retired: OnceLock::new(),
            lanes: AtomicU32::new(0),
            cancels: Cancels::of(backend.name()),
            submits: AtomicU64::new(0),
        });
        let lanes = match backend.model().class() {
            Class::Concurrent => backend.max_inflight().min(64),
            Class::Serial | Class::Continuous => 1,
        };
        // A SERIAL instance is made, used and destroyed on its lane's thread, so the first lane makes it.
        let (made, is_made) = std::sync::mpsc::channel();
        for lane in 0..lanes {
            let (backend, inner) = (backend.clone(), seat.clone());
            let made = (lane == 0).then(|| made.clone());
            seat.lanes.fetch_add(1, Ordering::Relaxed);
            std::thread::Builder::new()
                .name(format!("{}#{index}.{lane}", backend.name()))
                .spawn(move || {
                    if let Some(made) = made {
                        let result = inner.make(&backend);
                        let failed = result.is_err();
                        made.send(result).ok();
                        if failed {
                            return;
                        }
                    }
                    inner.run(&backend);
                })
                .map_err(|error| {
                    // The lanes that there are would wait at the queue for ever.
                    seat.lanes.fetch_sub(1, Ordering::Relaxed);
                    let error = Error::unavailable(format!("no thread for an instance: {error}"));
                    seat.retire(&error);
                    error
                })?;
            if lane == 0 {
                is_made.recv().map_err(|_| Error::internal("the lane died while it made its instance"))??;
            }
        }
        Ok(seat)
    }

    fn make(&self, backend: &Backend) -> Result<()> {
        let instance = backend.new_instance(self.index)?;
        *self.instance.lock() = Some(Arc::new(instance));
        Ok(())
    }

    fn run(self: &Arc<Self>, backend: &Arc<Backend>) {
        let model = backend.model();
        let (class, max_inflight) = (model.class(), backend.max_inflight() as usize);
        let (max, window) = match class {
            Class::Continuous => (max_inflight, Duration::ZERO),
            Class::Serial | Class::Concurrent => (backend.max_batch(), backend.settings().batch_window),
        };
        let ready = || match class {
            Class::Continuous if !self.poisoned.load(Ordering::Relaxed) => {
                max_inflight.saturating_sub(self.open.lock().len())
            }
            Class::Continuous => 0,
            Class::Serial | Class::Concurrent => max,
        };
        let stop = || self.is_retired() || self.poisoned.load(Ordering::Relaxed);
        let queue = backend.queue();
        loop {
            if self.poisoned.load(Ordering::Relaxed) && !self.replace(backend) {
                break;
            }
            let place = |batch: &[_]| self.open.lock().extend(batch.iter().cloned());
            let Some(batch) = queue.take(max, window, ready, stop, place) else {
                if self.is_retired() || queue.is_done() {
                    break;
                }
                continue; // poisoned; another lane may have replaced the instance since
            };
            let Some(taker) = self.taker() else {
                batch.iter().for_each(|exchange| self.displace(exchange));
                queue.put_back(batch);
                break;
            };
            let batch = self.hand_over(backend, &taker, batch);
            drop(taker);
            if class != Class::Continuous {
                self.wait_for(&batch);
            }
        }
        self.leave(backend, class);
    }

    /// Gives a request its place in the instance, if there is room for it, and no need to wait for a new instance.
    pub fn place(&self, exchange: &Arc<Exchange>, max_inflight: usize) -> Option<Taker> {
        // Held until the request has its place: who replaces the instance ends all that have one.
        let instance = self.instance.try_lock()?;
        let taker = Taker { instance: instance.clone()?, replaced: self.replaced.load(Ordering::Relaxed) };
        let mut open = self.open.lock();
        let room = open.len() < max_inflight && !self.poisoned.load(Ordering::Relaxed) && !self.is_retired();
        room.then(|| {
            open.push(exchange.clone());
            taker
        })
    }

    fn taker(&self) -> Option<Taker> {
        let instance = self.instance.lock();
        Some(Taker { instance: instance.clone()?, replaced: self.replaced.load(Ordering::Relaxed) })
    }

    fn displace(&self, exchange: &Exchange) {
        self.open.lock().retain(|other| !std::ptr::eq(&**other, exchange));
    }

    /// Gives up those of a batch that are not wanted any more; their places are others'.
    fn sift(&self, backend: &Backend, batch: &mut Vec<Arc<Exchange>>, wanted: impl Fn(&Exchange) -> bool) {
        let placed = batch.len();
        batch.retain(|exchange| {
            let wanted = wanted(exchange);
            if !wanted {
                self.displace(exchange);
                super::give_up(exchange);
            }
            wanted
        });
        if batch.len() < placed {
            backend.queue().wake_waiting();
        }
    }

    /// Hands over requests that have their place, but for those that nobody waits for any more. Returns those it has.
    pub fn hand_over(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        taker: &Taker,
        mut batch: Vec<Arc<Exchange>>,
    ) -> Vec<Arc<Exchange>> {
        let now = Instant::now();
        self.sift(backend, &mut batch, |exchange| {
            !exchange.is_cancelled() && exchange.deadline().is_none_or(|deadline| now < deadline)
        });
        let continuous = backend.model().class() == Class::Continuous;
        for exchange in &batch {
            let (seat, backend, itself) = (self.clone(), backend.clone(), Arc::downgrade(exchange));
            let replaced = taker.replaced;
            exchange.on_return(move |poisoned| {
                let poisoned = poisoned && replaced == seat.replaced.load(Ordering::Relaxed);
                if poisoned {
                    seat.poisoned.store(true, Ordering::Relaxed);
                }
                seat.open.lock().retain(|other| !std::ptr::eq(Arc::as_ptr(other), itself.as_ptr()));
                seat.returned.notify_all();
                match (poisoned, continuous) {
                    (true, _) => backend.queue().wake(),
                    // A CONTINUOUS lane waits at the queue for room in its instance.
                    (false, true) => backend.queue().wake_waiting(),
                    (false, false) => {}
                }
            });
        }
        // Whoever replaced or retired the instance meanwhile could take none away that the plugin has not.
        self.sift(backend, &mut batch, |exchange| !exchange.is_ended());
        if batch.is_empty() {
            return batch;
        }
        backend.count_batch(&batch);
        self.submits.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = taker.instance.submit(&batch, now) {
            tracing::warn!(model = backend.name(), error = %refused.error, "the plugin refused a batch");
            if refused.poisoned && taker.replaced == self.replaced.load(Ordering::Relaxed) {
                self.poison(backend.queue());
            }
        }
        // A caller who left while it was on its way was told of by a number that it did not have yet.
        for exchange in batch.iter().filter(|exchange| exchange.is_cancelled()) {
            self.cancels.tell(self, exchange.handle());
        }
        batch
    }

    /// Waits until the instance has given back all of a batch.
    fn wait_for(&self, batch: &[Arc<Exchange>]) {
        let mut open = self.open.lock();
        while !self.is_retired() && batch.iter().any(|mine| open.iter().any(|other| Arc::ptr_eq(mine, other)))
        {
            self.returned.wait(&mut open);
        }
    }

    /// Puts a new instance in the place of a poisoned one. `false` when this lane has to end.
    fn replace(&self, backend: &Backend) -> bool {
        self.cancels.wait();
        let mut instance = self.instance.lock();
        if !self.poisoned.load(Ordering::Relaxed) {
            return true; // another lane did it
        }
        if let Some(old) = instance.take() {
            // What a poisoned instance still has will not come.
            let open: Vec<_> = self.open.lock().clone();
            for exchange in open {
                old.abandon(
                    &exchange,
                    Error::unavailable("the plugin failed while it served another request; retry")
                        .with_reason("plugin_fault"),
                );
            }
            drop_alone(old);
        }
        let mut pause = FIRST_PAUSE;
        loop {
            if self.is_retired() || backend.is_closed() {
                return false;
            }
            match backend.new_instance(self.index) {
                Ok(new) => {
                    *instance = Some(Arc::new(new));
                    self.replaced.fetch_add(1, Ordering::Relaxed);
                    self.poisoned.store(false, Ordering::Relaxed);
                    backend.count_replaced();
                    tracing::warn!(model = backend.name(), index = self.index, "an instance was replaced");
                    return true;
                }
                Err(error) => {
                    tracing::error!(model = backend.name(), %error, "an instance could not be replaced");
                    if error.reason == QUARANTINED {
                        drop(instance);
                        self.retire(&error);
                        backend.lose(&error);
                        return false;
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(MAX_BACK_OFF);
                }
            }
        }
    }

    /// The lane ends: lets a CONTINUOUS instance finish what it has, and drops the instance.
    fn leave(&self, backend: &Backend, class: Class) {
        if class == Class::Continuous && !self.is_retired() {
            let deadline = backend.drained_by();
            // The lock is not held meanwhile: whoever retires this seat needs it.
            if let Some(instance) = self.instance() {
                instance.quiesce(deadline);
            }
            let mut open = self.open.lock();
            while !open.is_empty() && Instant::now() < deadline {
                self.returned.wait_until(&mut open, deadline);
            }
        }
        // The others may still be inside the instance.
        let last = self.lanes.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.cancels.wait();
        }
        if last && let Some(instance) = self.instance.lock().take() {
            let open: Vec<_> = self.open.lock().clone();
            // Whoever retired the seat may not have come to tell them yet.
            let why = self.retired.get().cloned().unwrap_or_else(Error::shutting_down);
            for exchange in open {
                instance.abandon(&exchange, why.clone());
            }
            drop_alone(instance);
        }
        backend.lane_ended();
    }

    /// Requests the plugin has had for too long: past its deadline or its caller's leaving by more than `grace`.
    /// Sets cancel words on the way, and ends what is late for its reader.
    pub fn overdue(self: &Arc<Self>, now: Instant, grace: Duration) -> bool {
        let open: Vec<_> = self.open.lock().clone();
        let mut overdue = false;
        for exchange in open {
            let late = exchange.deadline().is_some_and(|deadline| deadline <= now);
            if late && !exchange.is_cancelled() {
                // In this order: a plugin that is quick to see the word would end it as one whose caller left.
                super::give_up(&exchange);
                exchange.cancel();
            }
            if exchange.is_cancelled() {
                let since = exchange.cancelled_since(now);
                if since.is_zero() {
                    self.cancels.tell(self, exchange.handle());
                }
                overdue |= grace < since;
            }
        }
        overdue
    }

    /// Gives up on a stuck instance: its requests end with an error, its threads are left alone, or end with their
    /// worker.
    pub fn retire(&self, error: &Error) {
        self.retired.set(error.clone()).ok();
        let open: Vec<_> = self.open.lock().clone();
        let instance = self.instance.lock().clone();
        for exchange in open {
            match &instance {
                Some(instance) => instance.abandon(&exchange, error.clone()),
                None => drop(exchange.end(Err(error.clone()), None)),
            }
        }
        if let Some(instance) = &instance {
            instance.end_worker();
        }
        self.returned.notify_all();
    }

    pub fn is_retired(&self) -> bool {
        self.retired.get().is_some()
    }

    pub fn cancels(&self) -> &Cancels {
        &self.cancels
    }

    /// Requests the plugin has.
    pub fn busy(&self) -> usize {
        self.open.lock().len()
    }

    /// The instance, for a health check.
    pub fn instance(&self) -> Option<Arc<Instance>> {
        self.instance.lock().clone()
    }

    /// Says that the instance can serve no more; its lane replaces it.
    pub fn poison(&self, queue: &Queue) {
        self.poisoned.store(true, Ordering::Relaxed);
        queue.wake();
    }
}
