//! What is installed: models with their sources, checksums and cards, and plugin libraries read without being run.
//!
//! Synchronous and plain: no server, no actors, no command line. A pull reports to a callback and can be stopped; the
//! caller gives it a thread.
//!
//! ```no_run
//! use backplane_registry::{Models, Progress, PullOptions};
//!
//! let models = Models::at("/var/lib/backplane");
//! let installed = models.pull("smollm2", &PullOptions::default(), &mut |step| {
//!     if let Progress::Downloading { done, total, .. } = step {
//!         eprintln!("{done} of {total:?}");
//!     }
//! })?;
//! println!("{} {:?}", installed.name, installed.file("model"));
//! # Ok::<(), backplane_registry::RegistryError>(())
//! ```

mod capability;
mod card;
mod catalogue;
mod convert;
mod digest;
mod error;
mod gguf;
pub mod license;
mod look;
mod models;
mod name;
pub mod onnx;
pub mod package;
pub mod plugin;
mod progress;
mod pull;
pub mod runtime;
mod settings;
mod size;
mod source;
mod store;
mod strict;
pub mod trust;

pub use capability::Capability;
pub use card::{Card, FileSpec, Graph, Input, Kind, Limits, MemoryHint, Modality, platform};
pub use catalogue::{Catalogue, Set};
pub use convert::Convert;
pub use digest::{Digest, NotADigest};
pub use error::{RegistryError, Result};
pub use models::{Installed, InstalledFile, Listing, Models, PlannedFile, PullOptions, PullPlan, Removed};
pub use name::ModelName;
pub use progress::Progress;
pub use pull::LARGE;
pub use settings::{Settings, Token};
pub use size::size_text;
pub use source::{Package, Source};
