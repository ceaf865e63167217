//! The tables behind the traits: the one module of the SDK with `unsafe` in it.
//!
//! Inwards, [`entry`] makes a `bp_plugin` out of a [`crate::Plugin`], and every function of a table catches panics:
//! `plugin`, `model` and `instance`, one for each table. Outwards, functions call the host: `host` through its table,
//! `request` for one request, `call`, `license`, `device` and the permits of `host` through its extensions. `tensor` and
//! `memory` are what goes both ways. Strings and tensors of a request are borrowed from the host until `finish`, which is why [`Request`]
//! lends them only for as long as it lives itself.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI; everything above this folder is safe")]

mod call;
mod device;
mod host;
mod instance;
mod license;
mod memory;
mod model;
mod plugin;
mod request;
mod tensor;

pub use call::call;
pub use device::{Held, can_share};
pub use host::{acquire, host_name, log, release};
pub use license::{LicenseTable, license, license_bytes, license_feature, license_state};
pub use memory::{Memory, cast};
pub use plugin::entry;
pub use request::{finish, is_cancelled, push};
pub use tensor::{inputs, tensors};

use crate::host::{Host, Level};
use crate::request::Request;
use crate::{Error, Result};
use backplane_abi::table::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

// SAFETY: every function of bp_host is tagged [any] in the header, and the host outlives the plugin.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}
// SAFETY: the raw pointers point to memory of the host's that stays valid and unchanged until finish (header,
// bp_request), whatever thread reads it.
unsafe impl Send for Request {}
// SAFETY: as above; all methods that take &self only read, or call host functions tagged [any].
unsafe impl Sync for Request {}

/// Runs foreign or fallible code; a panic becomes an error that poisons the instance.
pub fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(panic_error(payload)))
}

fn panic_error(payload: Box<dyn std::any::Any + Send>) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "with something that is not text".to_owned());
    // A payload whose Drop panics would unwind out of here, across the C boundary.
    std::mem::forget(payload);
    Error::panic(text)
}

/// Runs the body of a table's function: errors and panics become a code, with the reason left in `err`.
fn answer(host: Host, err: bp_err, work: impl FnOnce() -> Result<()>) -> bp_code {
    match guard(work) {
        Ok(()) => BP_OK,
        Err(error) => {
            if err != 0 {
                host::set_error(host, err, &error);
            } else {
                log(host, Level::Error, &error.message);
            }
            error.code as bp_code
        }
    }
}

/// Ends what a table stood for; what its destructor does wrong is logged under `what`.
fn end<T>(host: Host, what: &str, this: Box<T>) {
    if let Err(error) = guard(|| {
        drop(this);
        Ok(())
    }) {
        log(host, Level::Error, &format!("{what}: {error}"));
    }
}

/// Text of the host's or of ours, which may not be UTF-8.
pub fn bytes(from: &bp_str) -> &[u8] {
    // SAFETY: as `text`.
    unsafe { from.bytes() }
}

/// Text of the host's or of ours; what is not UTF-8 reads as empty.
pub fn text(from: &bp_str) -> &str {
    // SAFETY: the structs we are given hold strings valid for as long as the struct is used (header, Ownership), and
    // the borrow of `from` is no longer than that.
    unsafe { from.text() }.unwrap_or_default()
}
