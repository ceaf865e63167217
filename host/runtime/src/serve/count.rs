//! Counting the tokens of a request for its reservation: work of the plugin's, in proportion to the prompt.

use super::Parts;
use crate::error::{Error, Result};
use crate::job::Request;
use crate::loader::Model;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};

/// Parameters that are counted where they are: less than a millisecond of work.
const SHORT: usize = 8 * 1024;

/// Threads that count what is long.
#[derive(Debug)]
pub(crate) struct Counting(Arc<Semaphore>);

impl Default for Counting {
    /// As many as there are cores: more would only take memory.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores)))
    }
}

/// Prompt tokens of a request; `None` where the model does not count. A long one is counted on a thread of its own, since
/// the caller's thread has others to serve; few at once, since each takes memory.
///
/// # Errors
/// As the request itself would fail; `DeadlineExceeded` when its time is over before it was its turn.
pub(super) async fn count(parts: &Parts, request: &Request, model: &Arc<Model>) -> Result<Option<u64>> {
    if request.params.len() <= SHORT {
        return model.count_tokens(&request.capability, &request.params);
    }
    let counted = async {
        let turn = parts.counting.0.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Error::shutting_down())?;
        let (model, capability, params) = (model.clone(), request.capability.clone(), request.params.clone());
        let (send, receive) = oneshot::channel();
        let count = move || {
            let counted = model.count_tokens(&capability, &params);
            drop(turn);
            send.send(counted).ok();
        };
        let thread = std::thread::Builder::new().name("count tokens".to_owned());
        thread.spawn(count).map_err(|error| {
            Error::unavailable(format!("no thread could be started to count tokens: {error}"))
        })?;
        receive.await.map_err(|_| Error::internal("counting tokens ended without an answer"))?
    };
    parts.timer.by(request.deadline, counted, || Error::deadline("its tokens were being counted")).await
}
