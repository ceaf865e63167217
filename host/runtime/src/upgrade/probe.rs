//! One small request to a model of the new version, before anybody else is sent to it.

use crate::auth::Caller;
use crate::backend::{Backend, Refusal};
use crate::error::Error;
use crate::job::Next;
use crate::loader::{Exchange, ExchangeSpec};
use crate::upgrade::trial::is_fault;
use backplane_registry::plugin::Manifest;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A small request to a capability: the first of `examples` that the plugin's own schema gives, else one for the
/// capabilities that every host knows.
fn sample(capability: &str, manifest: &Manifest) -> Option<Value> {
    let offer = manifest.capabilities.iter().find(|offer| offer.name == capability);
    let schema = offer.and_then(|offer| offer.input_schema.as_ref());
    let own = schema.and_then(|schema| schema["examples"].get(0)).filter(|example| example.is_object());
    own.cloned().or_else(|| {
        Some(match capability {
            "chat" => json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 1 }),
            "complete" => json!({ "prompt": "Hello", "max_tokens": 1 }),
            "embed" => json!({ "input": ["Hello"] }),
            "rerank" => json!({ "query": "Hello", "documents": ["Hello"] }),
            "classify" => json!({ "input": ["Hello"] }),
            _ => return None,
        })
    })
}

/// Asks an opened model how it is, and a request to each of its capabilities for which there is one. Blocks, no longer
/// than `limit` for each.
///
/// # Errors
/// What is wrong with it, for people.
pub fn probe(
    backend: &Arc<Backend>,
    capabilities: &[String],
    manifest: &Manifest,
    limit: Duration,
) -> Result<(), String> {
    let until = Instant::now() + limit;
    while let Err(why) = backend.health() {
        if until <= Instant::now() {
            return Err(format!("it says that it is not well: {why}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for capability in capabilities {
        if let Some(params) = sample(capability, manifest) {
            ask(backend, capability, &params, limit)
                .map_err(|error| format!("a first request to `{capability}` failed: {}", error.message))?;
        }
    }
    Ok(())
}

fn ask(backend: &Arc<Backend>, capability: &str, params: &Value, limit: Duration) -> Result<(), Error> {
    let exchange = Exchange::new(ExchangeSpec {
        capability: capability.to_owned(),
        capability_version: 1,
        params: params.to_string(),
        tensors: Vec::new(),
        id: "upgrade-probe".to_owned(),
        traceparent: String::new(),
        caller: Caller::internal("upgrade"),
        trail: vec![backend.name().into()],
        deadline: Some(Instant::now() + limit),
        device: false,
        stream: true,
        confidence: false,
        priority: 0,
        hook: Box::new(|_| {}),
    });
    backend.dispatch(exchange.clone()).map_err(|refusal| match refusal {
        Refusal::Full(error) => error,
        Refusal::Closed => Error::unavailable("it was closed"),
    })?;
    let end = loop {
        match futures::executor::block_on(std::future::poll_fn(|context| exchange.poll_read(context))) {
            Ok(Next::Chunk(_)) => {}
            Ok(Next::Done(_)) => return Ok(()),
            Err(error) => break error,
        }
    };
    // A model may want more than a sample has: that is no fault.
    if is_fault(&end) { Err(end) } else { Ok(()) }
}
