//! An instance: requests become tasks of the plugin's runtime, each ended by its answer, its deadline or its caller.

use crate::serve::{Target, serve};
use backplane_plugin::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub struct Remote {
    pub target: Arc<Target>,
    pub runtime: Handle,
    open: Arc<Open>,
}

/// Requests on their way, by their id.
#[derive(Default)]
struct Open(Mutex<HashMap<u64, Arc<Notify>>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a request off the list, also when its task panics.
struct Entry {
    open: Arc<Open>,
    id: u64,
    left: Arc<Notify>,
}

impl Entry {
    fn new(open: &Arc<Open>, id: u64) -> Self {
        let left = Arc::new(Notify::new());
        open.lock().insert(id, left.clone());
        Self { open: open.clone(), id, left }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.lock().remove(&self.id);
    }
}

impl Remote {
    pub fn new(target: Arc<Target>, runtime: Handle) -> Self {
        Self { target, runtime, open: Arc::default() }
    }
}

impl Instance for Remote {
    fn submit(&self, requests: Vec<Request>) {
        for request in requests {
            let entry = Entry::new(&self.open, request.id());
            // It may have been before there was an entry that hears of it.
            if request.is_cancelled() {
                entry.left.notify_one();
            }
            let target = self.target.clone();
            self.runtime.spawn(async move {
                let result = tokio::select! {
                    biased;
                    () = entry.left.notified() => Err(Error::cancelled()),
                    () = deadline(request.deadline()) => Err(Error::new(
                        Code::DeadlineExceeded,
                        format!("the deadline passed before upstream `{}` had answered", target.client.name),
                    )),
                    // What is dropped here closes its connection or its HTTP/2 stream, so that the upstream stops too.
                    result = serve(&target, &request) => result,
                };
                drop(entry);
                request.finish(result);
            });
        }
    }

    fn cancel(&self, request: u64) {
        if let Some(left) = self.open.lock().get(&request) {
            left.notify_one();
        }
    }

    fn health(&self) -> Health {
        match self.target.client.is_down() {
            true => Health::Degraded(format!("upstream `{}` does not answer", self.target.client.name)),
            false => Health::Ready,
        }
    }

    fn quiesce(&self, deadline: Option<Instant>) -> bool {
        while !self.open.lock().is_empty() {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The host drops an instance with no request open; should one be, it ends now and not with the runtime.
        self.open.lock().values().for_each(|left| left.notify_one());
        self.quiesce(Some(Instant::now() + Duration::from_secs(1)));
    }
}

async fn deadline(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
