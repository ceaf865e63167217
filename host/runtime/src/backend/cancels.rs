//! Tells a plugin which cancel words were set. The words do the work; this is for plugins that sleep meanwhile.

use super::lane::Seat;
use crate::loader::{Class, Instance};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// How long an instance that is being closed waits for a plugin that is being told.
const PATIENCE: Duration = Duration::from_secs(1);

/// The requests that one instance is to be told of. It is told by one thread, which ends when there are no more: a plugin
/// that hangs keeps that thread, and nobody waits for it. Its requests are late then, and the instance is replaced.
pub struct Cancels {
    /// Name of that thread.
    thread: String,
    state: Mutex<State>,
    told: Condvar,
}

#[derive(Default)]
struct State {
    /// Handles of requests; never more than the instance has.
    waiting: Vec<u64>,
    /// Whether there is a thread.
    running: bool,
}

impl Cancels {
    /// For an instance of this model.
    pub fn of(model: &str) -> Self {
        Self { thread: format!("cancel {model}"), state: Mutex::default(), told: Condvar::new() }
    }

    /// Tells the instance of `seat`, whose these are, some time soon. Does not block.
    pub fn tell(&self, seat: &Arc<Seat>, request: u64) {
        let mut state = self.state.lock();
        state.waiting.push(request);
        if std::mem::replace(&mut state.running, true) {
            return;
        }
        let inner = seat.clone();
        let spawned =
            std::thread::Builder::new().name(self.thread.clone()).spawn(move || inner.cancels().run(&inner));
        if let Err(error) = spawned {
            state.running = false;
            tracing::warn!(%error, "no thread to tell a plugin of a cancel; it will see the word");
        }
    }

    fn run(&self, seat: &Seat) {
        while let Some(request) = self.next() {
            // Here, since a lane that replaces an instance holds it as long as the plugin takes.
            let Some(instance) = seat.instance() else { continue };
            instance.cancel(request);
            leave(instance);
        }
        self.told.notify_all();
    }

    fn next(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let next = state.waiting.pop();
        state.running = next.is_some();
        next
    }

    /// Waits until nothing is being told, but not for a plugin that hangs.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        self.told.wait_while_for(&mut state, |state| state.running, PATIENCE);
    }
}

/// Lets go of an instance. One that is SERIAL is destroyed by its lane and nobody else; if that has left because the
/// plugin hung in here, it is never destroyed.
fn leave(instance: Arc<Instance>) {
    if instance.class() == Class::Serial
        && let Some(last) = Arc::into_inner(instance)
    {
        tracing::error!(
            "an instance outlived its lane, since its plugin hung in `cancel`; its memory is lost"
        );
        std::mem::forget(last);
    }
}
