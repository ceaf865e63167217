//! Conformance tests for Backplane plugins, in any language.
//!
//! The suite plays a host: it enters the plugin, starts it, opens a model, sends requests that are good, malformed,
//! slow and cancelled, and holds every answer to `backplane.h`. It needs one request that works.
//!
//! ```no_run
//! use backplane_testkit::{Case, PluginTest};
//!
//! let case = Case::new(r#"{"name":"word-count"}"#, "com.example.count", r#"{"text":"a bee sees"}"#);
//! PluginTest::load("target/debug/libword_count.so").unwrap().check_conformance(&[case]).assert_ok();
//! ```
//!
//! A Rust plugin of the same workspace is built and loaded by `PluginTest::build("word-count")`. One that is also an
//! `rlib` can be tested without loading it: `PluginTest::of(word_count::backplane_export::bp_entry_v1)`.
//!
//! Its own tests can use the same host, call by call:
//!
//! ```no_run
//! # use backplane_testkit::PluginTest;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = PluginTest::load("target/debug/libword_count.so")?.open(r#"{"name":"word-count"}"#)?;
//! let answer = model.instance()?.submit("com.example.count", r#"{"text":"a bee sees"}"#, vec![]).wait();
//! assert_eq!(answer.json()["words"], 3);
//! # Ok(()) }
//! ```

mod answer;
mod cargo;
mod conformance;
mod fault;
mod header;
mod host;
mod input;
mod report;
mod session;

pub use answer::{Answer, Chunk, DeviceOutput, End, Failure, TensorOutput};
/// The library of a package of this workspace, as [`PluginTest::build`] finds it.
pub use cargo::library;
pub use conformance::{Case, CheckInfo, checks};
pub use fault::Fault;
pub use header::{HEADER, Passage, passage};
pub use host::{CallInput, License};
pub use input::{Deadline, Reader, RequestInput, TensorInput};
pub use report::{Check, Level, Outcome, Problem, Report, Tier};
pub use session::{Instance, Model, PluginTest, Running};

/// Element types, and the numbers of the ABI.
pub use backplane_abi::{code::Code, dtype::DType};
