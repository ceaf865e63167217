//! The Backplane host as a library.
//!
//! [`Host`] loads plugins (shared libraries that speak the C ABI of `backplane.h`), opens models with them, and serves
//! requests to capabilities: with keys, limits, a cache, routing and metrics. There is no HTTP in here; `backplane-server`
//! puts it in front, and a program of your own may do without:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use backplane::{Caller, Config, Host, Request};
//!
//! let host = Host::builder().config(Config::default()).start()?;
//! let request = Request::new(Caller::internal("me"), "echo", r#"{"text": "hello"}"#);
//! let answer = host.serve(request).await?.collect().await?;
//! println!("{}", String::from_utf8_lossy(&answer.chunks[0].json));
//! host.shutdown(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Host`] is `Send + Sync + Clone`. Its actors live on a thread of its own, its futures run on any executor, and it
//! installs no signal handler, no logger and nothing global. Dropping the last clone stops everything.
//!
//! - [`serve`](Host::serve) is the one request function; `serve.rs` reads top to bottom.
//! - Actors own state and timers, one folder each: `auth`, `limiter`, `cache`, `router`, `metrics`, `catalog`, `backend`,
//!   `license`, `supervisor`. They publish what requests read.
//! - `loader` is the plugin ABI, and the only place with `unsafe`.

mod actor;
pub mod auth;
mod backend;
#[doc(hidden)]
pub mod bench;
pub mod cache;
mod catalog;
pub mod compute;
pub mod config;
mod error;
mod gauges;
mod health;
mod host;
mod info;
mod job;
mod license;
pub mod limiter;
/// Plugins in processes of their own.
pub mod isolation {
    pub use crate::loader::{Confinement, Granted, Launch, OnCrash, OpenLimit, Quarantine, WorkerEntry};
}
mod loader;
pub mod metrics;
mod router;
mod serve;
mod start;
mod stop;
mod store;
mod supervisor;
#[cfg(test)]
mod survival;
mod tensor;
mod timer;
mod upgrade;

pub use auth::Caller;
pub use backplane_abi::{payload, words};
pub use config::Config;
pub use error::{Error, ErrorCode, Result};
pub use host::{FirstKey, Host, HostBuilder, ListedKey, ReloadReport, StartError};
pub use info::{
    CapabilityInfo, CapabilitySchema, ChangedModel, CrashInfo, Health, LoadPlan, ModelInfo, ModelState,
    PartHealth, PartState, PluginChanges, PluginInfo, RefusedPlugin, Running,
};
pub use job::{
    Answer, CacheOutcome, CacheUse, Candidate, Chunk, Done, KeepAlive, Next, Reply, Request, Route, Timing,
};
pub use license::LicenseInfo;
pub use limiter::{BudgetStatus, LimitStatus};
pub use start::default_state_dir;
pub use tensor::{DType, Tensor};
pub use upgrade::{PluginUpgrade, UpgradeState, UpgradedModel};
