//! Echo: the plugin to copy, and the one to test a host with.
//!
//! It serves one capability, `echo`, and gives back what it is given: text in as many pieces as asked for, and tensors
//! as they came. On request it is slow, fails, panics, hangs, or asks another plugin (see [`params`]).
//!
//! A plugin is three traits. [`Plugin`] is the library and opens models; [`Model`] is an opened model and makes
//! instances; [`Instance`] is a running copy and takes requests. This one has a kind of instance for each of the three
//! ways a host can call one, chosen by the model's parameter `execution`:
//!
//! - `concurrent`: called from several threads at once. [`each`] makes such an instance out of a function.
//! - `serial`: called on one thread with up to eight requests, as an engine that computes batches wants it ([`serial`]).
//! - `continuous`: takes requests at any time and schedules them itself, as a language model does ([`continuous`]).
//!
//! Most plugins need the first and nothing else: then [`echo`] and this file are all there is.

mod continuous;
mod echo;
mod params;
mod serial;

use backplane_plugin::prelude::*;
use backplane_plugin::serde::Deserialize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The library. It has no state of its own; one that needs the host's log or its configuration keeps them here.
struct EchoPlugin;

impl Plugin for EchoPlugin {
    const ID: &'static str = "dev.backplane.echo";

    fn init(host: Host, _config: &Value) -> Result<Self> {
        host.log(Level::Debug, "echo is ready");
        Ok(EchoPlugin)
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let Parameters { execution, open_ms } = model.parameters()?;
        std::thread::sleep(Duration::from_millis(open_ms));
        Ok(Box::new(EchoModel { execution, instances: AtomicU32::new(0) }))
    }
}

/// `[parameters]` of a model's card. A misspelt one is an error that names it.
#[derive(Default, Deserialize)]
#[serde(crate = "backplane_plugin::serde", default, deny_unknown_fields)]
struct Parameters {
    execution: Class,
    /// Take so long to open, as a large model does.
    open_ms: u64,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(crate = "backplane_plugin::serde", rename_all = "lowercase")]
enum Class {
    #[default]
    Concurrent,
    Serial,
    Continuous,
}

/// An opened model. Here is the place for weights that instances share.
struct EchoModel {
    execution: Class,
    /// Instances made so far.
    instances: AtomicU32,
}

impl Model for EchoModel {
    fn execution(&self) -> Execution {
        match self.execution {
            Class::Concurrent => Execution::Concurrent { max_inflight: 64, max_batch: 1 },
            Class::Serial => Execution::Serial { max_batch: 8 },
            Class::Continuous => Execution::Continuous { max_inflight: 64 },
        }
    }

    fn describe(&self) -> Description {
        Description { platform: Some("echo".to_owned()), ..Description::default() }
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        self.instances.fetch_add(1, Ordering::Relaxed);
        match self.execution {
            Class::Concurrent => Ok(each(|request| echo::serve(request, None))),
            Class::Serial => Ok(Box::<serial::Serial>::default()),
            Class::Continuous => Ok(Box::new(continuous::Continuous::start()?)),
        }
    }

    /// Figures of the engine's own: the host shows them beside its own. Must not wait for work under way.
    fn stats(&self, each: &mut dyn FnMut(&str, f64)) {
        each("instances_made_total", f64::from(self.instances.load(Ordering::Relaxed)));
    }

    /// A word is a token here. A host that knows the number before it admits a request can hold a token budget.
    fn count_tokens(&self, _capability: &str, params_json: &str) -> Result<Option<u64>> {
        let params: params::Params = backplane_plugin::serde_json::from_str(params_json)?;
        Ok(Some(params.words()))
    }
}

export_plugin!(EchoPlugin, include_str!("../plugin.toml"));
