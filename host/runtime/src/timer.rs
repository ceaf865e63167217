//! Deadlines for futures that run on anybody's executor: the clock ticks on the host's own thread.

use crate::error::{Error, Result};
use futures::future::{Either, select};
use std::future::Future;
use std::pin::pin;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A clock on the host's thread.
#[derive(Clone, Debug)]
pub(crate) struct Timer(Handle);

impl Timer {
    /// Ticks where this runtime runs; the runtime must have its time driver on.
    pub fn new(runtime: Handle) -> Self {
        Self(runtime)
    }

    /// `work`, unless the deadline comes first.
    pub async fn by<T>(
        &self,
        deadline: Option<Instant>,
        work: impl Future<Output = Result<T>>,
        late: impl FnOnce() -> Error,
    ) -> Result<T> {
        let Some(deadline) = deadline else { return work.await };
        let (sender, receiver) = oneshot::channel::<()>();
        let alarm = self.0.spawn(async move {
            tokio::time::sleep_until(deadline.into()).await;
            sender.send(()).ok();
        });
        let result = match select(pin!(work), receiver).await {
            Either::Left((result, _)) => result,
            Either::Right((Ok(()), _)) => Err(late()),
            // The clock stopped because the host did.
            Either::Right((Err(_), _)) => Err(Error::shutting_down()),
        };
        alarm.abort();
        result
    }

    /// Waits this long.
    pub async fn pause(&self, time: std::time::Duration) {
        let (sender, receiver) = oneshot::channel::<()>();
        self.0.spawn(async move {
            tokio::time::sleep(time).await;
            sender.send(()).ok();
        });
        // A clock that stopped ends the pause: there is nothing to wait for.
        receiver.await.ok();
    }
}
