//! What a request holds until it ends, and the second chance of one that is on trial at a new version.
//!
//! A request that the new version of a plugin fails before the first piece of its answer is out is given to the version
//! before, and its caller never knows. Two look at such a failure, the exchange's hook and the reader; they agree through
//! the [`Tab`], which both lock.

use crate::backend::Refusal;
use crate::catalog::Hold;
use crate::error::Error;
use crate::limiter::Reservation;
use crate::loader::{End, Exchange, ExchangeSpec};
use crate::upgrade::trial::{Trial, may_move};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of the requests that are not settled yet.
struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request holds: its reservation, wherever it is, with the request function or with the exchange that pays from
/// it. Whoever takes it out settles it.
pub(super) struct Tab(Mutex<Held>);

struct Held {
    reservation: Option<Reservation>,
    in_flight: Option<InFlight>,
    second: Second,
}

#[derive(Clone, Copy, PartialEq)]
enum Second {
    /// A failure is the caller's to hear.
    None,
    /// The reader can ask the other version.
    Possible,
    /// It failed, and the reader has not come for it yet.
    Due,
}

impl Tab {
    /// Opens the tab of a request: `open` counts it until it is closed.
    pub fn open(reservation: Reservation, open: &Arc<AtomicUsize>) -> Arc<Self> {
        open.fetch_add(1, Ordering::Relaxed);
        let in_flight = Some(InFlight(open.clone()));
        Arc::new(Self(Mutex::new(Held { reservation: Some(reservation), in_flight, second: Second::None })))
    }

    /// Takes the reservation out.
    pub fn take(&self) -> Option<Reservation> {
        self.0.lock().reservation.take()
    }

    /// Forgets a failure that nobody is to hear of: it is open as before.
    pub fn keep(&self) {
        self.0.lock().second = Second::None;
    }

    /// Closes it at the end of an exchange. `None`: it stays open, for the other version is asked now.
    pub fn close(&self, end: &End) -> Option<Closed> {
        let mut held = self.0.lock();
        let moves = |error: &Error| end.chunks == 0 && may_move(error);
        if held.second == Second::Possible && end.result.as_ref().is_err_and(moves) {
            held.second = Second::Due;
            return None;
        }
        held.second = Second::None;
        Some(Closed { reservation: held.reservation.take(), _in_flight: held.in_flight.take() })
    }
}

/// A tab that was closed. The request is in flight until this is dropped.
pub(super) struct Closed {
    reservation: Option<Reservation>,
    _in_flight: Option<InFlight>,
}

impl Closed {
    /// Settles what the request cost.
    pub fn settle(&mut self, tokens: u64) {
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(tokens);
        }
    }
}

/// A request that is on trial can be asked once more, of the version before.
pub(crate) struct SecondChance {
    tab: Arc<Tab>,
    /// The same request again; none once it was used.
    again: Option<ExchangeSpec>,
    /// Its model stays open as long as this may be needed.
    hold: Hold,
    trial: Arc<Trial>,
}

impl std::fmt::Debug for SecondChance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecondChance")
    }
}

impl SecondChance {
    pub(super) fn new(tab: Arc<Tab>, again: ExchangeSpec, hold: Hold, trial: Arc<Trial>) -> Self {
        tab.0.lock().second = Second::Possible;
        Self { tab, again: Some(again), hold, trial }
    }

    /// After a failure that the reader has seen: the exchange that takes its place. `None` when the failure stands.
    pub fn instead(mut self, failure: &Error) -> Option<Arc<Exchange>> {
        {
            let mut held = self.tab.0.lock();
            if held.second != Second::Due {
                return None;
            }
            // From here on the new exchange settles, whatever becomes of it.
            held.second = Second::None;
        }
        let exchange = Exchange::new(self.again.take()?);
        self.trial.count_moved();
        let entry = self.hold.entry();
        // When the switch comes between, the next look finds what it switched to.
        for _ in 0..2 {
            let Some(backend) = entry.backend() else { break };
            match backend.dispatch(exchange.clone()) {
                Ok(()) => return Some(exchange),
                Err(Refusal::Full(error)) => {
                    exchange.end(Err(error), None);
                    return Some(exchange);
                }
                Err(Refusal::Closed) => {}
            }
        }
        exchange.end(Err(failure.clone()), None);
        Some(exchange)
    }
}

impl Drop for SecondChance {
    fn drop(&mut self) {
        // An answer has begun, or its reader has left.
        let mut held = self.tab.0.lock();
        let left = held.second == Second::Due;
        held.second = Second::None;
        if left && let Some(reservation) = held.reservation.take() {
            held.in_flight = None;
            drop(held);
            reservation.settle(0);
        }
    }
}
