//! Vector: the nearest of many vectors, exactly, on the CPU.
//!
//! It serves `vector.search` by reading every vector of a collection: no index to build, to tune or to be wrong. A
//! collection lies in memory, row after row, and is written down as it changes.
//!
//! - [`serve`]: one request; [`settings`]: what the operator says.
//! - [`store`]: collections by tenant and name; [`log`]: one on disk.
//! - [`collection`]: one in memory, and its search; [`top`]: the best `k`.
//! - [`kernel`], [`sys`]: the arithmetic, and how it is compiled for wider vectors.

mod collection;
mod kernel;
mod log;
mod serve;
mod settings;
mod store;
mod sys;
mod top;

use backplane_plugin::payload::vector::CAPABILITY;
use backplane_plugin::prelude::*;
use serve::Counters;
use settings::Settings;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use store::{Limits, Size, Store};

/// Searches may run at once; each has a thread of its own, and computes when the host grants it a core.
const INFLIGHT: u32 = 8;

/// The library.
struct VectorPlugin {
    host: Host,
    settings: Settings,
    /// The collections where there is no folder to write to: they are nowhere else, and stay when the model is closed.
    only: OnceLock<Arc<Store>>,
}

impl VectorPlugin {
    /// The open collections, if they are open.
    fn known(&self) -> Option<Arc<Store>> {
        self.only.get().cloned().or_else(|| store::shared(self.settings.data.as_deref()?))
    }

    fn limits(&self) -> Limits {
        Limits { memory: self.settings.memory, collections: self.settings.collections }
    }

    fn store(&self) -> Result<Arc<Store>> {
        if let Some(store) = self.known() {
            return Ok(store);
        }
        if let Some(folder) = &self.settings.data {
            match store::share(folder, self.limits(), self.host) {
                // A worker may write nothing.
                Err(error) if error.reason.as_deref() == Some(store::READ_ONLY) => {
                    self.host.log(
                        Level::Warn,
                        format!("{}; collections last as long as the plugin", error.message),
                    );
                }
                opened => return opened,
            }
        }
        let store = Arc::new(Store::open(None, self.limits(), self.host)?);
        Ok(self.only.get_or_init(|| store).clone())
    }

    /// What is open, or else what lies on disk.
    fn size(&self) -> Size {
        match (self.known(), &self.settings.data) {
            (Some(store), _) => store.size(),
            (None, Some(folder)) => Size { bytes: store::stored(folder), ..Size::default() },
            (None, None) => Size::default(),
        }
    }
}

impl Plugin for VectorPlugin {
    const ID: &'static str = "dev.backplane.vector";

    fn init(host: Host, config: &Value) -> Result<Self> {
        let settings = Settings::of(config)?;
        Ok(Self { host, settings, only: OnceLock::new() })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        if !query.format.is_empty() {
            return Bid::no(BidReason::Format, "collections are made by requests, not opened from files");
        }
        let Size { bytes, largest, .. } = self.size();
        let (score, text) = claim(largest);
        // Collections grow.
        Bid { score, host_bytes: bytes, valid_ms: 1_000, text, ..Bid::default() }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parameters {}
        let Parameters {} = model.parameters()?;
        if let Some(other) = model.capabilities.iter().find(|name| *name != CAPABILITY) {
            let message = format!(
                "model `{}` is to serve `{other}`, and the vector plugin serves `{CAPABILITY}`",
                model.name
            );
            return Err(Error::new(Code::Unimplemented, message).with_param("capabilities"));
        }
        Ok(Box::new(Vectors { store: self.store()?, counters: Arc::default() }))
    }
}

/// What it claims of a search of so many bytes, on one core: a device with memory of its own is worth asking where a
/// processor would read for a while.
fn claim(largest: u64) -> (u16, String) {
    /// About what a core reads a second, in GB.
    const RATE: u64 = 10;
    let micros = largest / (RATE * 1000);
    let score = match micros {
        0..1_000 => 600,
        1_000..10_000 => 500,
        10_000..100_000 => 400,
        _ => 300,
    };
    (score, format!("on the CPU, exactly; reads up to {:.1} MB a query", largest as f64 / 1e6))
}

/// The opened model.
struct Vectors {
    store: Arc<Store>,
    counters: Arc<Counters>,
}

impl Model for Vectors {
    fn execution(&self) -> Execution {
        Execution::Concurrent { max_inflight: INFLIGHT, max_batch: 1 }
    }

    fn describe(&self) -> Description {
        Description { platform: Some("vector".to_owned()), ..Description::default() }
    }

    fn instance(&self, seat: &Seat) -> Result<Box<dyn Instance>> {
        let (store, counters, seat) = (self.store.clone(), self.counters.clone(), *seat);
        Ok(each(move |request| serve::serve(&store, &counters, &seat, request)))
    }

    fn stats(&self, each: &mut dyn FnMut(&str, f64)) {
        let Size { bytes, collections, vectors, .. } = self.store.size();
        each("collections", collections as f64);
        each("vectors", vectors as f64);
        each("collections_bytes", bytes as f64);
        each("queries_total", self.counters.searches.load(Ordering::Relaxed) as f64);
        each("scanned_bytes_total", self.counters.scanned.load(Ordering::Relaxed) as f64);
    }
}

export_plugin!(VectorPlugin, include_str!("../plugin.toml"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_collection_bids_less() {
        let scores: Vec<u16> =
            [0, 1 << 20, 64 << 20, 512 << 20, 8 << 30].map(|bytes| claim(bytes).0).to_vec();
        assert_eq!(scores, [600, 600, 500, 400, 300]);
    }
}
