//! What the gate and the requests of one connection tell each other. All of it happens on one thread.

use super::refusal::Refusal;
use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// One connection.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// A request was passed on, and its handler has not answered.
    busy: Cell<bool>,
    /// Why the request that was passed on last is not the client's: the gate made it, to have this answered.
    head: Cell<Option<Refusal>>,
    /// Why the body of the request ended where it did.
    body: Cell<Option<Refusal>>,
    /// The gate waits for the answer, to pass the next request on.
    waiting: RefCell<Option<Waker>>,
}

impl Connection {
    pub(super) fn begin(&self) {
        self.busy.set(true);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.get()
    }

    pub(super) fn wait(&self, context: &Context<'_>) {
        *self.waiting.borrow_mut() = Some(context.waker().clone());
    }

    /// The handler has answered.
    pub(super) fn answered(&self) {
        self.busy.set(false);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    pub(super) fn refuse_head(&self, refusal: Refusal) {
        self.head.set(Some(refusal));
    }

    pub(super) fn take_refused_head(&self) -> Option<Refusal> {
        self.head.take()
    }

    pub(super) fn refuse_body(&self, refusal: Refusal) {
        self.body.set(Some(refusal));
    }

    /// Why a body that could not be read to its end was cut.
    pub(crate) fn refused_body(&self) -> Option<Refusal> {
        self.body.get()
    }
}
