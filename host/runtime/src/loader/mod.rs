//! The host's end of the plugin ABI: loads libraries, calls them, and answers their calls.
//!
//! All `unsafe` of this crate is in this folder. What leaves it is safe: [`Plugin`], [`Model`], [`Instance`] and
//! [`Exchange`] are ordinary owned values whose drop order the borrow of `Arc` keeps right (instance before model
//! before plugin). A library is never unmapped.
//!
//! - `library`: from an inspected file to a [`Plugin`]: map, check layouts, enter, initialise.
//! - `plugin`: calls into the plugin's tables.
//! - `table`: the `bp_host` functions, called by the plugin from any thread.
//! - `exchange`: one request on its way through a plugin: its memory, its results, its cancel word.
//! - `handles`: generation-tagged handles, so that a plugin's mistake is an error and not a crash.
//! - `buffers`: reference-counted memory that crosses the boundary without a copy; `device`: that of devices.
//! - `patience`: questions to a plugin that must not hold anybody up.
//! - `worker`: a plugin in a process of its own, behind the same tables.
//! - `breakdowns`: how each of those ended that broke down.

mod breakdowns;
mod buffers;
mod device;
mod exchange;
mod handles;
mod library;
mod patience;
mod plugin;
mod table;
mod worker;

pub(crate) use device::Place;
pub use exchange::{End, Exchange, ExchangeSpec};
pub use library::{LoadError, load};
pub use plugin::{Bid, BidQuery, CANNOT_SERVE, Class, HealthState, Instance, Model, Plugin, Waits};
pub(crate) use table::{PluginCall, Shared};
pub use worker::{
    Confinement, Granted, Launch, OnCrash, OpenLimit, QUARANTINED, Quarantine, WorkerEntry, in_quarantine,
};

/// Gives memory that the allocator holds back to the system, after a model was opened or closed.
pub fn trim_memory() {
    plugin::trim_memory();
}
