//! How much of a struct has to be there.
//!
//! Not `size_of`: that grows with every member that is appended, and would refuse all who were built before.

use super::{Reader, Refused};
use crate::table::*;
use std::mem::offset_of;

/// How long a struct is at least, in bytes.
pub trait Size: Sized32 {
    /// Its name in the header.
    const NAME: &'static str;
    /// Up to and including its last member in ABI 1.0: nobody has ever written less.
    const V1_0: usize;
    /// Up to and including the last member without which it makes no sense.
    const NEEDED: usize = Self::V1_0;
}

/// `struct: last member of 1.0`, and the last member that is needed where that is another.
macro_rules! sizes {
    ($( $name:ident: $last:ident $(, $needed:ident)? ;)*) => { $(
        impl Size for $name {
            const NAME: &'static str = stringify!($name);
            const V1_0: usize = sizes!(@end $name $last);
            $( const NEEDED: usize = sizes!(@end $name $needed); )?
        }
    )* };
    (@end $name:ident $member:ident) => {
        offset_of!($name, $member) + size_of_member(|table: &$name| &raw const table.$member)
    };
}

const fn size_of_member<S, T>(_: fn(&S) -> *const T) -> usize {
    size_of::<T>()
}

sizes! {
    bp_error: details_json, message;
    // A tensor without `sync` is in CPU memory that is ready.
    bp_tensor: sync, buffer;
    bp_request: capability_version;
    bp_chunk: stride;
    bp_done: confidence;
    bp_query: capability_version;
    bp_bid: text;
    bp_host: finish;
    bp_placement: index;
    bp_instance: destroy;
    bp_model: close;
    // What it was built with is read from any plugin, so that it can be told why it is not loaded.
    bp_plugin: shutdown, version;
    bp_compute_1: release;
    bp_call: on_done;
    bp_call_1: cancel;
    bp_device_memory: release;
    bp_device_1: read;
    bp_device_inputs_1: takes;
    bp_license_1: install_id;
    bp_tokens_1: count;
    bp_stats_1: read;
}

/// A struct as far as both sides know it: what the writer did not have is zero.
///
/// # Errors
/// [`Refused::Struct`].
///
/// # Safety
/// As [`Sized32::read`].
pub unsafe fn known<T: Size>(at: *const T, reader: Reader) -> Result<T, Refused> {
    let least = match reader {
        Reader::Lenient => T::NEEDED,
        Reader::Strict => T::V1_0,
    };
    // SAFETY: the caller's promise.
    unsafe { T::read(at, least) }.ok_or(Refused::Struct(T::NAME))
}
