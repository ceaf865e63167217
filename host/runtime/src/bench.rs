//! For `tests/bench` only: the way into a plugin and back without queue, thread or gate.

use crate::auth::Caller;
use crate::compute::Pool;
use crate::error::{Error, Result};
use crate::job::Next;
use crate::loader::{Exchange, ExchangeSpec, Instance, Launch, Shared, load};
use backplane_registry::plugin::inspect;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// An instance that is called on the caller's thread, through the same loader as any other.
pub struct Crossing(Instance);

/// A request that was made and not yet handed over.
pub struct Ready([Arc<Exchange>; 1]);

impl Crossing {
    /// Loads a plugin and opens a model of its own.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn open(library: &Path, model_json: &str) -> Result<Self> {
        Self::open_in(None, library, model_json)
    }

    /// As [`Crossing::open`], in a worker.
    ///
    /// # Errors
    /// As there.
    pub fn open_in(worker: Option<Launch>, library: &Path, model_json: &str) -> Result<Self> {
        let file = inspect(library).map_err(|error| Error::internal(error.to_string()))?;
        let loaded =
            load(&file, "{}".to_owned(), Arc::new(Shared::default()), Duration::from_secs(10), worker);
        let plugin = loaded.map_err(|error| Error::internal(error.to_string()))?;
        let client = Pool::new(1).join("bench", 1.0);
        Ok(Self(plugin.open(model_json)?.instance(0, 1, Arc::new(client))?))
    }

    /// Makes a request, as the request function does.
    pub fn request(&self, capability: &str, params: &str) -> Ready {
        Ready([Exchange::new(ExchangeSpec {
            capability: capability.to_owned(),
            capability_version: 1,
            params: params.to_owned(),
            tensors: Vec::new(),
            id: String::new(),
            traceparent: String::new(),
            caller: Caller::internal("bench"),
            trail: Vec::new(),
            deadline: None,
            device: false,
            stream: false,
            confidence: false,
            priority: 0,
            hook: Box::new(|_| {}),
        })])
    }

    /// Hands it to the plugin and reads the end. The plugin must answer before its `submit` returns.
    ///
    /// # Errors
    /// The plugin's; and that it has not answered.
    pub fn call(&self, ready: &Ready) -> Result<()> {
        self.0.submit(&ready.0, Instant::now()).map_err(|refused| refused.error)?;
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match ready.0[0].poll_read(&mut context) {
                Poll::Ready(Ok(Next::Chunk(_))) => {}
                Poll::Ready(Ok(Next::Done(_))) => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Err(Error::internal("the plugin has not answered yet")),
            }
        }
    }
}
