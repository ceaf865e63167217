//! An instance of class SERIAL: one call at a time, on one thread, with several requests in it.
//!
//! An engine that computes batches would put all of them into one computation here. Echo only says how many came
//! together, and refuses to be called in a way that such an engine would not survive.

use crate::echo;
use backplane_plugin::prelude::*;
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::{self, ThreadId};

/// See the module.
#[derive(Default)]
pub struct Serial {
    /// Held while it computes: SERIAL means that nobody ever finds it taken.
    running: Mutex<()>,
    thread: OnceLock<ThreadId>,
}

impl Instance for Serial {
    fn submit(&self, requests: Vec<Request>) {
        let here = thread::current().id();
        let moved = *self.thread.get_or_init(|| here) != here;
        // A lock poisoned by a panic of an earlier call is free all the same.
        let running = match self.running.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Ok(running) => Some(running),
        };
        let batch = requests.len();
        for request in requests {
            let result = match (&running, moved) {
                (None, _) => Err(Error::internal("the host called a SERIAL instance while it was running")),
                (_, true) => Err(Error::internal("the host called a SERIAL instance from a second thread")),
                _ => echo::serve(&request, Some(batch)),
            };
            request.finish(result);
        }
    }
}
