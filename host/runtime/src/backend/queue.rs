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
    changed: Condvar,
    limit: usize,
}

struct State {
    waiting: VecDeque<(Arc<Exchange>, Instant)>,
    closed: bool,
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
            changed: Condvar::new(),
            limit,
        }
    }

    /// Takes a request, or refuses it at once.
    ///
    /// # Errors
    /// When the queue is full or closed.
    pub fn push(&self, exchange: Arc<Exchange>, model: &str) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refusal::Closed);
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
        // All, since lanes wait for different things: one for a row, one for a fuller batch.
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until `ready` and something is here, then takes a batch. `None` when `stop`.
    ///
    /// A batch that is not full waits until its oldest row is `window` old.
    pub fn take(
        &self,
        max: usize,
        window: Duration,
        ready: impl Fn() -> usize,
        stop: impl Fn() -> bool,
    ) -> Option<Vec<Arc<Exchange>>> {
        let mut state = self.state.lock();
        loop {
            if stop() || (state.closed && state.waiting.is_empty()) {
                return None;
            }
            let max = max.min(ready());
            if max == 0 || state.waiting.is_empty() {
                self.changed.wait(&mut state);
                continue;
            }
            let full_at = state.waiting[0].1 + window;
            if state.waiting.len() < max && Instant::now() < full_at {
                self.changed.wait_until(&mut state, full_at);
                continue;
            }
            let rows: Vec<Row<'_>> = state
                .waiting
                .iter()
                .map(|(exchange, _)| Row { capability: exchange.capability(), weight: exchange.weight() })
                .collect();
            let places = choose(&rows, max);
            let mut batch = Vec::with_capacity(places.len());
            for place in places.into_iter().rev() {
                batch.extend(state.waiting.remove(place).map(|(exchange, _)| exchange));
            }
            batch.reverse();
            return Some(batch);
        }
    }

    /// Wakes lanes that wait for something other than a push.
    pub fn wake(&self) {
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
        self.changed.notify_all();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }
}
