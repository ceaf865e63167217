//! Requests that wait for an instance of one model: bounded, by priority, then by arrival.

use super::batch::{Row, choose};
use crate::error::{Error, ErrorCode, Result};
use crate::loader::Exchange;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The queue of a model.
pub struct Queue {
    state: Mutex<State>,
    /// Idle lanes. A row wakes one of them, which wakes the next if it leaves a row behind: waking all 64 lanes of a
    /// concurrent model for each row costs more than the row.
    arrived: Condvar,
    /// Lanes that look at a row they cannot take yet: their batch is not full, or their instance is.
    changed: Condvar,
    limit: usize,
}

struct State {
    waiting: VecDeque<(Arc<Exchange>, Instant)>,
    closed: bool,
}

impl State {
    /// Takes out the rows that run together.
    fn batch(&mut self, max: usize) -> Vec<Arc<Exchange>> {
        if max == 1 || self.waiting.len() == 1 {
            // The oldest, whatever the others are.
            return self.waiting.pop_front().map(|(exchange, _)| exchange).into_iter().collect();
        }
        let rows: Vec<Row<'_>> = self
            .waiting
            .iter()
            .map(|(exchange, _)| Row { capability: exchange.capability(), weight: exchange.weight() })
            .collect();
        let places = choose(&rows, max);
        let mut batch = Vec::with_capacity(places.len());
        for place in places.into_iter().rev() {
            batch.extend(self.waiting.remove(place).map(|(exchange, _)| exchange));
        }
        batch.reverse();
        batch
    }
}

/// Why a request was not taken.
#[derive(Debug)]
pub enum Refusal {
    /// The queue is full.
    Full(Error),
    /// The model is being closed; open it again.
    Closed,
}

impl Queue {
    /// A queue in which at most `limit` requests wait.
    pub fn new(limit: usize) -> Self {
        Self {
            state: Mutex::new(State { waiting: VecDeque::new(), closed: false }),
            arrived: Condvar::new(),
            changed: Condvar::new(),
            limit,
        }
    }

    /// Takes a request, or refuses it at once. One that nobody is before may get a `place` right away: then it does not
    /// wait, and what it got is returned.
    ///
    /// # Errors
    /// When the queue is full or closed.
    pub fn push<P>(
        &self,
        exchange: Arc<Exchange>,
        model: &str,
        place: impl FnOnce(&Arc<Exchange>) -> Option<P>,
    ) -> Result<Option<P>, Refusal> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        if state.waiting.is_empty()
            && let Some(place) = place(&exchange)
        {
            return Ok(Some(place));
        }
        if self.limit <= state.waiting.len() {
            return Err(Refusal::Full(
                Error::new(
                    ErrorCode::Unavailable,
                    format!(
                        "model `{model}` is overloaded: {} requests wait already; retry later, or raise `max_queue`",
                        state.waiting.len()
                    ),
                )
                .with_reason("overloaded")
                .with_retry_after(Duration::from_secs(1)),
            ));
        }
        let place = state.waiting.partition_point(|(other, _)| exchange.priority() <= other.priority());
        state.waiting.insert(place, (exchange, Instant::now()));
        drop(state);
        self.arrived.notify_one();
        self.changed.notify_all();
        Ok(None)
    }

    /// Waits until `ready` and something is here, then takes a batch, and gives it its `place` before anybody else can.
    /// `None` when `stop`.
    ///
    /// A batch that is not full waits until its oldest row is `window` old.
    pub fn take(
        &self,
        max: usize,
        window: Duration,
        ready: impl Fn() -> usize,
        stop: impl Fn() -> bool,
        place: impl Fn(&[Arc<Exchange>]),
    ) -> Option<Vec<Arc<Exchange>>> {
        let mut state = self.state.lock();
        loop {
            if stop() || (state.closed && state.waiting.is_empty()) {
                self.pass_on(&state);
                return None;
            }
            if state.waiting.is_empty() {
                self.arrived.wait(&mut state);
                continue;
            }
            let max = max.min(ready());
            if max == 0 {
                self.pass_on(&state);
                self.changed.wait(&mut state);
                continue;
            }
            let full_at = state.waiting[0].1 + window;
            if state.waiting.len() < max && Instant::now() < full_at {
                self.changed.wait_until(&mut state, full_at);
                continue;
            }
            let batch = state.batch(max);
            place(&batch);
            self.pass_on(&state);
            return Some(batch);
        }
    }

    /// Puts back, at the front, what a lane took and cannot serve after all.
    pub fn put_back(&self, batch: Vec<Arc<Exchange>>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        for exchange in batch.into_iter().rev() {
            state.waiting.push_front((exchange, now));
        }
        self.pass_on(&state);
    }

    /// Whether it takes no more and nothing waits.
    pub fn is_done(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.waiting.is_empty()
    }

    /// Wakes another idle lane for a row that this one leaves behind.
    fn pass_on(&self, state: &State) {
        if !state.waiting.is_empty() {
            self.arrived.notify_one();
        }
    }

    /// Wakes every lane: something other than a row has come, such as the end.
    pub fn wake(&self) {
        self.wake_waiting();
        self.arrived.notify_all();
    }

    /// Wakes the lanes that wait for room in their instance.
    pub fn wake_waiting(&self) {
        // Taking the lock orders this after a lane's last look and before its wait.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Takes out the requests that `gone` names.
    pub fn remove(&self, gone: impl Fn(&Exchange) -> bool) -> Vec<Arc<Exchange>> {
        let mut state = self.state.lock();
        let (out, kept): (VecDeque<_>, VecDeque<_>) =
            state.waiting.drain(..).partition(|(exchange, _)| gone(exchange));
        state.waiting = kept;
        out.into_iter().map(|(exchange, _)| exchange).collect()
    }

    /// Takes no more. What waits is still served.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;
    use crate::loader::ExchangeSpec;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(10);

    fn exchange() -> Arc<Exchange> {
        Exchange::new(ExchangeSpec {
            capability: "test".to_owned(),
            capability_version: 1,
            params: "{}".to_owned(),
            tensors: Vec::new(),
            id: String::new(),
            traceparent: String::new(),
            caller: Caller::internal("tests"),
            trail: Vec::new(),
            deadline: None,
            device: false,
            stream: false,
            confidence: false,
            priority: 0,
            hook: Box::new(|_| {}),
        })
    }

    /// Lets lanes fall asleep at the queue, in the order in which they came.
    fn doze() {
        std::thread::sleep(Duration::from_millis(50));
    }

    #[test]
    fn a_lane_that_cannot_take_a_row_wakes_the_next() {
        let queue = Queue::new(8);
        let (taken, takers) = channel();
        let (stopped, over) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for (lane, room) in [("full", 0), ("stopped", 1), ("free", 1)] {
                let (queue, taken, stopped, over) = (&queue, taken.clone(), &stopped, &over);
                scope.spawn(move || {
                    let stop = || {
                        over.load(Ordering::Relaxed) || (lane == "stopped" && stopped.load(Ordering::Relaxed))
                    };
                    while queue.take(1, Duration::ZERO, || room, stop, |_| ()).is_some() {
                        taken.send(lane).ok();
                    }
                });
                doze();
            }
            // While it sleeps, and nobody wakes it for that.
            stopped.store(true, Ordering::Relaxed);
            let pushed = queue.push(exchange(), "test", |_| None::<()>);
            let taker = takers.recv_timeout(LONG);
            over.store(true, Ordering::Relaxed);
            queue.wake();
            assert!(pushed.is_ok());
            assert_eq!(taker, Ok("free"));
        });
    }

    #[test]
    fn every_row_is_taken_whatever_the_lanes_do() {
        const ROWS: usize = 20_000;
        let queue = Queue::new(ROWS);
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(batch) = queue.take(3, Duration::ZERO, || 3, || false, |_| ()) {
                        taken.fetch_add(batch.len(), Ordering::Relaxed);
                    }
                });
            }
            for row in 0..ROWS {
                assert!(queue.push(exchange(), "test", |_| None::<()>).is_ok());
                if row % 1000 == 0 {
                    // The lanes fall asleep now and then, so that they have to be woken.
                    let deadline = Instant::now() + LONG;
                    while taken.load(Ordering::Relaxed) <= row && Instant::now() < deadline {
                        std::thread::yield_now();
                    }
                    assert_eq!(taken.load(Ordering::Relaxed), row + 1, "a row was left lying");
                }
            }
            queue.close();
        });
        assert_eq!(taken.load(Ordering::Relaxed), ROWS);
    }

    #[test]
    fn a_place_is_given_once_and_to_nobody_before_who_waits() {
        const ROWS: usize = 5_000;
        const ROOM: usize = 3;
        let queue = Queue::new(4 * ROWS);
        let (open, taken, straight) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        // In two steps, between which another would come if the queue let it.
        let place = |rows: usize| {
            let before = open.load(Ordering::SeqCst);
            let room = before + rows <= ROOM;
            std::thread::yield_now();
            if room {
                open.fetch_add(rows, Ordering::SeqCst);
                assert_eq!(
                    open.load(Ordering::SeqCst).max(before + rows),
                    before + rows,
                    "a place was given twice"
                );
            }
            room
        };
        let give_back = |rows: usize| {
            open.fetch_sub(rows, Ordering::SeqCst);
            taken.fetch_add(rows, Ordering::SeqCst);
            queue.wake_waiting();
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ready = || ROOM - open.load(Ordering::SeqCst);
                let placed = |batch: &[Arc<Exchange>]| assert!(place(batch.len()), "there was no room");
                while let Some(batch) = queue.take(ROOM, Duration::ZERO, ready, || false, placed) {
                    give_back(batch.len());
                }
            });
            let pushing: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..ROWS {
                            match queue.push(exchange(), "test", |_| place(1).then_some(())) {
                                Ok(Some(())) => {
                                    straight.fetch_add(1, Ordering::SeqCst);
                                    give_back(1);
                                }
                                Ok(None) => {}
                                Err(refused) => panic!("{refused:?}"),
                            }
                        }
                    })
                })
                .collect();
            pushing.into_iter().for_each(|thread| thread.join().unwrap());
            queue.close();
        });
        assert_eq!(taken.load(Ordering::SeqCst), 4 * ROWS);
        assert!(0 < straight.load(Ordering::SeqCst), "every one of them waited");

        let closed = queue.push(exchange(), "test", |_| Some(()));
        assert!(matches!(closed, Err(Refusal::Closed)), "a closed queue gives no place");
    }
}
