//! Write a Backplane plugin in Rust.
//!
//! A plugin is a `cdylib` crate with this one dependency. It names what it serves in `plugin.toml`, implements
//! [`Plugin`] and [`Model`], and ends with [`export_plugin!`]. This is a whole one:
//!
//! ```
//! use backplane_plugin::prelude::*;
//!
//! /// Counts the words of a text.
//! struct WordCount;
//!
//! impl Plugin for WordCount {
//!     const ID: &'static str = "com.example.word-count";
//!
//!     fn init(_host: Host, _config: &Value) -> Result<Self> {
//!         Ok(WordCount)
//!     }
//!
//!     fn open(&self, _model: &ModelSpec) -> Result<Box<dyn Model>> {
//!         Ok(Box::new(WordCount))
//!     }
//! }
//!
//! impl Model for WordCount {
//!     fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
//!         Ok(each(|request| {
//!             let params: Value = request.params()?;
//!             let text = params["text"].as_str().ok_or_else(|| Error::invalid("`text` is missing"))?;
//!             request.push_json(&json!({"words": text.split_whitespace().count()}))?;
//!             Ok(Done::new())
//!         }))
//!     }
//! }
//!
//! export_plugin!(WordCount, r#"
//!     id = "com.example.word-count"
//!     version = "1.0.0"
//!     abi = "1.0"
//!     capabilities = [{ name = "com.example.count", version = 1 }]
//!     models = [{ name = "word-count", capabilities = ["com.example.count"] }]
//! "#);
//! # fn main() {}
//! ```
//!
//! Copied into `<state>/plugins/`, it answers at `POST /v1/capabilities/com.example.count`.
//!
//! - [`plugin`]: the traits, and what they are asked with.
//! - [`request`]: a request: its parameters and tensors, where its results go, when to stop.
//! - [`payload`]: the JSON of the standard capabilities as types.
//! - [`tensor`], [`error`], [`call`]: what crosses, what went wrong, asking another plugin.
//! - [`device`]: tensors that stay on a GPU between two plugins.
//!
//! A panic anywhere in a plugin becomes an error of the request, and the host replaces the instance. A plugin is
//! trusted code: in the host's process it has the host's rights.

mod call;
mod device;
mod error;
mod export;
mod host;
mod license;
mod plugin;
mod request;
mod sys;
mod tensor;

pub use backplane_abi::code::Code;
pub use backplane_abi::dtype::DType;
pub use backplane_abi::payload;
pub use backplane_abi::payload::tensor::{Description, TensorSpec};
pub use call::{Answer, AnswerTensor, Call};
pub use device::{Device, DeviceMemory, DeviceTensor, Input, Ready};
pub use error::{Error, Result, refuse_unknown, settings};
pub use host::{Host, Level};
pub use license::{License, Standing};
pub use plugin::{
    Bid, BidReason, Done, Execution, Health, Instance, Model, ModelFile, ModelSpec, Permit, Plugin, Query,
    Seat, each,
};
pub use request::{Chunk, Pushed, Request};
pub use tensor::{Element, Tensor, TensorView};

/// What the SDK reads and writes JSON with, so that a plugin needs no other dependency: derive with
/// `#[serde(crate = "backplane_plugin::serde")]`, or depend on `serde` yourself.
pub use serde;
pub use serde_json;

/// Everything a plugin usually needs.
pub mod prelude {
    pub use crate::{
        Bid, BidReason, Chunk, Code, DType, Description, Done, Error, Execution, Health, Host, Instance,
        Level, Model, ModelSpec, Plugin, Pushed, Query, Request, Result, Seat, Tensor, TensorSpec,
        TensorView, each, export_plugin, refuse_unknown,
    };
    pub use serde_json::{Value, json};
}

/// For the expansion of [`export_plugin!`] only.
#[doc(hidden)]
pub mod __private {
    pub use crate::sys::entry;
    pub use abi_stable::library::{
        __call_root_module_loader as call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult,
    };
    pub use abi_stable::prefix_type::PrefixTypeTrait;
    pub use backplane_abi::root::{Root, RootRef};
    pub use backplane_abi::table::{bp_code, bp_host, bp_plugin};
    pub use backplane_abi::{NOTE_BUILD, NOTE_MANIFEST};
    pub use core::ffi::c_void;

    /// What built the library, for `backplane plugin report`: this crate, and what a panic does.
    pub const fn built(unwinds: bool) -> &'static str {
        if unwinds {
            concat!("sdk = 'backplane-plugin ", env!("CARGO_PKG_VERSION"), "'\npanic = 'unwind'\n")
        } else {
            concat!("sdk = 'backplane-plugin ", env!("CARGO_PKG_VERSION"), "'\npanic = 'abort'\n")
        }
    }

    /// An ELF note whose description is a text. `N` bytes of text; the struct's own alignment pads it to 4.
    #[repr(C, align(4))]
    pub struct Note<const N: usize> {
        name_size: u32,
        description_size: u32,
        kind: u32,
        name: [u8; 12],
        description: [u8; N],
    }

    impl<const N: usize> Note<N> {
        /// # Panics
        /// At compile time, when `text` is not `N` bytes long.
        #[must_use]
        pub const fn new(kind: u32, text: &str) -> Self {
            let mut description = [0; N];
            description.copy_from_slice(text.as_bytes());
            Self { name_size: 10, description_size: N as u32, kind, name: *b"Backplane\0\0\0", description }
        }
    }
}
