//! `bp_plugin`: a [`Plugin`] as the host sees it.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::model::ModelBox;
use super::{answer, end, guard, log, text};
use crate::Error;
use crate::host::{Host, Level};
use crate::plugin::{ModelSpec, Plugin, Query};
use backplane_abi::ABI_MINOR;
use backplane_abi::read::{self, Reader};
use backplane_abi::table::*;
use serde_json::Value;
use std::cell::RefCell;
use std::sync::OnceLock;

struct PluginBox<P> {
    table: bp_plugin,
    host: Host,
    plugin: OnceLock<P>,
}

/// What `bp_entry_v1` of `export_plugin!` does.
///
/// # Safety
/// As the header says of `bp_entry_v1`: `host` is a host's table that outlives the plugin, `out` can be written to.
pub unsafe fn entry<P: Plugin>(
    version: &'static str,
    host: *const bp_host,
    out: *mut *mut bp_plugin,
) -> bp_code {
    if host.is_null() || out.is_null() {
        return BP_NULL_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    if unsafe { read::known(host, Reader::Strict) }.is_err() {
        return BP_BAD_STRUCT;
    }
    let mut plugin =
        Box::new(PluginBox::<P> { table: bp_plugin::new(), host: Host(host), plugin: OnceLock::new() });
    plugin.table = bp_plugin {
        abi_minor_built: ABI_MINOR,
        abi_minor_min: 0,
        id: bp_str::new(P::ID),
        version: bp_str::new(version),
        init: Some(init::<P>),
        bid: Some(bid::<P>),
        model_open: Some(model_open::<P>),
        shutdown: Some(shutdown::<P>),
        ..bp_plugin::new()
    };
    let plugin = Box::into_raw(plugin);
    // SAFETY: just made; the table is the first thing the host sees of it, `self_` the way back. Null was checked.
    unsafe {
        (*plugin).table.self_ = plugin.cast();
        *out = &raw mut (*plugin).table;
    }
    BP_OK
}

/// The box behind a table that [`entry`] made.
///
/// # Safety
/// `plugin` came from `entry::<P>` and was not shut down.
unsafe fn plugin_of<'a, P: Plugin>(plugin: *mut bp_plugin) -> &'a PluginBox<P> {
    // SAFETY: the caller's promise; `self_` was set by `entry`.
    unsafe { &*(*plugin).self_.cast::<PluginBox<P>>() }
}

unsafe extern "C" fn init<P: Plugin>(plugin: *mut bp_plugin, config_json: bp_str, err: bp_err) -> bp_code {
    // SAFETY: the host calls with what `entry` gave it.
    let this = unsafe { plugin_of::<P>(plugin) };
    if this.plugin.get().is_some() {
        return BP_BAD_STATE;
    }
    answer(this.host, err, || {
        // SAFETY: valid until we return, says the header.
        let text = unsafe { config_json.bytes() };
        let config =
            if text.is_empty() { Value::Object(Default::default()) } else { serde_json::from_slice(text)? };
        let made = P::init(this.host, &config)?;
        this.plugin.set(made).map_err(|_| Error::internal("init was called twice"))
    })
}

thread_local! {
    /// Text of the last bid on this thread: the header lets the host read it until the next.
    static BID_TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

unsafe extern "C" fn bid<P: Plugin>(
    plugin: *mut bp_plugin,
    query: *const bp_query,
    out: *mut bp_bid,
) -> bp_code {
    // SAFETY: the host calls with what `entry` gave it; the query is valid until we return.
    let (this, query) = unsafe { (plugin_of::<P>(plugin), bp_query::read(query, 0)) };
    // SAFETY: null, or a bid of the host's that says how long it is.
    let (Some(query), Some(_)) = (query, unsafe { bp_bid::read(out, 0) }) else { return BP_BAD_STRUCT };
    let Some(plugin) = this.plugin.get() else { return BP_BAD_STATE };
    let claim = guard(|| {
        Ok(plugin.bid(&Query {
            capability: text(&query.capability),
            format: text(&query.format),
            model_json: text(&query.model_json),
            input_bytes: query.input_bytes,
        }))
    });
    let claim = match claim {
        Ok(claim) => claim,
        Err(error) => {
            log(this.host, Level::Error, &format!("bid: {error}"));
            return BP_INTERNAL;
        }
    };
    BID_TEXT.with_borrow_mut(|text| *text = claim.text);
    let filled = bp_bid {
        score: claim.score.min(1000),
        quality: claim.quality.min(1000),
        max_batch: 0,
        valid_ms: claim.valid_ms,
        bytes_dev: claim.device_bytes,
        bytes_host: claim.host_bytes,
        reason: claim.reason as i32,
        text: BID_TEXT.with_borrow(|text| bp_str::new(text)),
        ..bp_bid::new()
    };
    // SAFETY: not null; the host says in struct_size how much of it may be written.
    unsafe { write_known(&filled, out) };
    BP_OK
}

/// Writes as much of `from` as the other side has room for, and leaves its `struct_size` as it is.
///
/// # Safety
/// `to` points to `struct_size` bytes that can be written.
unsafe fn write_known<T: Sized32>(from: &T, to: *mut T) {
    // SAFETY: the caller's promise; both begin with struct_size (Sized32).
    unsafe {
        let room = to.cast::<u32>().read();
        let size = (room as usize).min(size_of::<T>());
        std::ptr::copy_nonoverlapping((&raw const *from).cast::<u8>(), to.cast::<u8>(), size);
        to.cast::<u32>().write(room);
    }
}

unsafe extern "C" fn model_open<P: Plugin>(
    plugin: *mut bp_plugin,
    model_json: bp_str,
    out: *mut *mut bp_model,
    err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what `entry` gave it.
    let this = unsafe { plugin_of::<P>(plugin) };
    let Some(plugin) = this.plugin.get() else { return BP_BAD_STATE };
    if out.is_null() {
        return BP_NULL_ARGUMENT;
    }
    answer(this.host, err, || {
        // SAFETY: valid until we return.
        let spec: ModelSpec = serde_json::from_slice(unsafe { model_json.bytes() })?;
        let model = ModelBox::leak(this.host, &spec, plugin.open(&spec)?)?;
        // SAFETY: the host passes a place to write to.
        unsafe { *out = model };
        Ok(())
    })
}

unsafe extern "C" fn shutdown<P: Plugin>(plugin: *mut bp_plugin) {
    // SAFETY: the host calls this once, with what `entry` gave it and nothing else left of it.
    let this = unsafe { Box::from_raw((*plugin).self_.cast::<PluginBox<P>>()) };
    end(this.host, "shutdown", this);
}
