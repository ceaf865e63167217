//! The plugin's functions, as a host calls them.

use super::{Exchange, Host, new_handle, raw_text, words};
use crate::answer::{End, Failure};
use crate::fault::Fault;
use crate::input::RequestInput;
use backplane_abi::read::{self, Reader, Str};
use backplane_abi::{clock, table::*};
use serde_json::Value;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

/// What a table says of itself, read once after it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PluginFacts {
    pub id: String,
    pub version: String,
    pub minor_min: u16,
    /// Functions that must be there and are not.
    pub missing: Vec<&'static str>,
}

/// A plugin that was entered. Not yet initialised.
#[derive(Clone, Copy)]
pub(crate) struct RawPlugin {
    table: *mut bp_plugin,
    known: bp_plugin,
    pub host: &'static Host,
}
// SAFETY: the header says for each function on which threads it may be called; the callers in this crate keep to it.
unsafe impl Send for RawPlugin {}
// SAFETY: as above.
unsafe impl Sync for RawPlugin {}

/// An opened model.
#[derive(Clone, Copy)]
pub(crate) struct RawModel {
    table: *mut bp_model,
    pub known: bp_model,
    pub host: &'static Host,
}
// SAFETY: as RawPlugin.
unsafe impl Send for RawModel {}
// SAFETY: as RawPlugin.
unsafe impl Sync for RawModel {}

/// A running copy.
#[derive(Clone, Copy)]
pub(crate) struct RawInstance {
    table: *mut bp_instance,
    known: bp_instance,
    ticket: bp_ticket,
    pub host: &'static Host,
}
// SAFETY: as RawPlugin.
unsafe impl Send for RawInstance {}
// SAFETY: as RawPlugin.
unsafe impl Sync for RawInstance {}

fn missing(functions: &[(&'static str, bool)]) -> Vec<&'static str> {
    functions.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect()
}

fn absent(function: &str) -> Failure {
    Failure { code: BP_UNIMPLEMENTED, message: format!("`{function}` is null"), ..Failure::default() }
}

/// Enters with null arguments, which must be refused.
pub(crate) fn enter_with_nulls(entry: &dyn Enter, host: &'static Host) -> [bp_code; 2] {
    let mut out = std::ptr::null_mut();
    // SAFETY: the header lets every function be given null, which is an error.
    unsafe { [entry.enter(std::ptr::null(), &raw mut out), entry.enter(host.table(), std::ptr::null_mut())] }
}

/// Enters a plugin.
pub(crate) fn enter(entry: &dyn Enter, host: &'static Host) -> Result<RawPlugin, Failure> {
    let mut out = std::ptr::null_mut();
    // SAFETY: a host's table that is never freed, and a place to write to.
    let code = unsafe { entry.enter(host.table(), &raw mut out) };
    if code != BP_OK {
        return Err(Failure {
            code,
            message: "bp_entry_v1 refused this host".to_owned(),
            ..Failure::default()
        });
    }
    // SAFETY: the plugin's table, says the header.
    let known: Result<bp_plugin, _> = unsafe { read::known(out, Reader::Strict) };
    let broken = |_refused| Failure {
        code: BP_BAD_STRUCT,
        message: "bp_plugin is too small".to_owned(),
        ..Failure::default()
    };
    Ok(RawPlugin { table: out, known: known.map_err(broken)?, host })
}

impl RawPlugin {
    pub fn facts(&self) -> PluginFacts {
        let text = |what, text| {
            // SAFETY: strings of the plugin's table, which live as long as it.
            let text = unsafe { Str::new(text) };
            self.host.text("bp_entry_v1", what, text).unwrap_or_default()
        };
        PluginFacts {
            id: text("bp_plugin.id", self.known.id),
            version: text("bp_plugin.version", self.known.version),
            minor_min: self.known.abi_minor_min,
            missing: missing(&[
                ("init", self.known.init.is_some()),
                ("bid", self.known.bid.is_some()),
                ("model_open", self.known.model_open.is_some()),
                ("shutdown", self.known.shutdown.is_some()),
            ]),
        }
    }

    pub fn init(&self, config: &[u8]) -> Result<(), Failure> {
        let init = self.known.init.ok_or_else(|| absent("init"))?;
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.host.with_error(|err| unsafe { init(self.table, raw_text(config), err) })
    }

    pub fn open(&self, model: &[u8]) -> Result<RawModel, Failure> {
        let open = self.known.model_open.ok_or_else(|| absent("model_open"))?;
        let mut out = std::ptr::null_mut();
        // SAFETY: as above, and a place to write to.
        self.host.with_error(|err| unsafe { open(self.table, raw_text(model), &raw mut out, err) })?;
        // SAFETY: the plugin's table, says the header.
        let known: Result<bp_model, _> = unsafe { read::known(out, Reader::Strict) };
        let broken = |_refused| Failure {
            code: BP_BAD_STRUCT,
            message: "bp_model is too small".to_owned(),
            ..Failure::default()
        };
        Ok(RawModel { table: out, known: known.map_err(broken)?, host: self.host })
    }

    pub fn bid(&self, capability: &str, model: &[u8], claim: u32) -> BidOutput {
        let Some(bid) = self.known.bid else {
            return BidOutput { code: BP_UNIMPLEMENTED, ..BidOutput::default() };
        };
        const FENCE: u8 = 0x5A;
        let query = bp_query {
            capability: bp_str::new(capability),
            model_json: raw_text(model),
            input_bytes: 2,
            dev_type: BP_DEV_CPU,
            capability_version: 1,
            ..bp_query::new()
        };
        // A struct of `claim` bytes, and a fence behind it that nobody may touch.
        let mut memory = words((claim as usize).max(size_of::<bp_bid>()) + 64);
        let out = memory.as_mut_ptr().cast::<u8>();
        let room = memory.len() * 8;
        // SAFETY: all within `memory`; `claim` is at least 8 for every caller, which is where the fence begins at the
        // earliest. The call gets structs that live through it, and the text it leaves lives until the next bid on
        // this thread.
        let (code, raw, fence) = unsafe {
            out.cast::<u32>().write(claim);
            out.add(claim as usize).write_bytes(FENCE, room - claim as usize);
            let code = bid(self.table, &query, out.cast());
            let fence = std::slice::from_raw_parts(out.add(claim as usize), room - claim as usize);
            (code, bp_bid::read(out.cast(), 0), fence)
        };
        let Some(raw) = raw else { return BidOutput { code: BP_BAD_STRUCT, ..BidOutput::default() } };
        let known = |end: usize| claim as usize >= end;
        BidOutput {
            code,
            score: raw.score,
            quality: raw.quality,
            p50_us: raw.est_p50_us,
            p99_us: raw.est_p99_us,
            reason: raw.reason,
            text: if known(size_of::<bp_bid>()) {
                // SAFETY: valid until the next bid on this thread.
                let text = unsafe { Str::new(raw.text) };
                self.host.text("bid", "bp_bid.text", text).unwrap_or_default()
            } else {
                String::new()
            },
            overran: fence.iter().any(|byte| *byte != FENCE),
        }
    }

    pub fn extension(&self, id: &[u8]) -> bool {
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.known.get_extension.is_some_and(|get| unsafe { !get(self.table, raw_text(id)).is_null() })
    }

    pub fn shutdown(&self) {
        if let Some(shutdown) = self.known.shutdown {
            // SAFETY: once, after every model was closed; the session keeps to that.
            unsafe { shutdown(self.table) };
        }
    }
}

/// What a bid said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BidOutput {
    pub code: bp_code,
    pub score: u16,
    pub quality: u16,
    pub p50_us: u32,
    pub p99_us: u32,
    pub reason: i32,
    pub text: String,
    /// Whether it wrote beyond the struct.
    pub overran: bool,
}

impl RawModel {
    pub fn missing(&self) -> Vec<&'static str> {
        missing(&[("instance_new", self.known.instance_new.is_some()), ("close", self.known.close.is_some())])
    }

    /// What it says of itself; `None` when it is not a JSON object.
    pub fn describe(&self) -> Option<Value> {
        // SAFETY: a string of the plugin's table, which lives as long as it.
        let text = unsafe { Str::new(self.known.describe_json) };
        self.host.object("model_open", "bp_model.describe_json", text)
    }

    /// A running copy. `tail`: unknown bytes after the placement.
    pub fn instance(&self, index: u32, tail: usize) -> Result<RawInstance, Failure> {
        let make = self.known.instance_new.ok_or_else(|| absent("instance_new"))?;
        let ticket = new_handle();
        self.host.tickets.lock().insert(ticket, 0);
        let placement = bp_placement {
            struct_size: (size_of::<bp_placement>() + tail) as u32,
            ticket,
            dev_type: BP_DEV_CPU,
            threads: 2,
            index,
            ..bp_placement::new()
        };
        let mut memory = words(size_of::<bp_placement>() + tail);
        memory.fill(0x5A5A_5A5A_5A5A_5A5A);
        let at = memory.as_mut_ptr().cast::<bp_placement>();
        let mut out = std::ptr::null_mut();
        // SAFETY: `memory` is aligned and long enough; the model's own table; a place to write to.
        let made = self.host.with_error(|err| unsafe {
            at.write(placement);
            make(self.table, at, &raw mut out, err)
        });
        if let Err(failure) = made {
            self.host.tickets.lock().remove(&ticket);
            return Err(failure);
        }
        // SAFETY: the plugin's table, says the header.
        let known: Result<bp_instance, _> = unsafe { read::known(out, Reader::Strict) };
        let broken = |_refused| Failure {
            code: BP_BAD_STRUCT,
            message: "bp_instance is too small".to_owned(),
            ..Failure::default()
        };
        Ok(RawInstance { table: out, known: known.map_err(broken)?, ticket, host: self.host })
    }

    fn find(&self, id: &[u8]) -> *const c_void {
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.known.get_extension.map_or(std::ptr::null(), |get| unsafe { get(self.table, raw_text(id)) })
    }

    pub fn extension(&self, id: &[u8]) -> bool {
        !self.find(id).is_null()
    }

    /// Tokens of these parameters. `None` without the extension.
    pub fn count_tokens(&self, capability: &str, params: &[u8]) -> Option<Result<u64, Failure>> {
        // SAFETY: the table of the extension with this id.
        let table: bp_tokens_1 =
            unsafe { read::known(self.find(BP_EXT_TOKENS_1.as_bytes()).cast(), Reader::Strict) }.ok()?;
        let mut tokens = 0;
        let counted = self.host.with_error(|err| match table.count {
            // SAFETY: the plugin's own table; texts and a place to write to that live through the call.
            Some(count) => unsafe {
                count(self.table, bp_str::new(capability), raw_text(params), &raw mut tokens, err)
            },
            None => BP_UNIMPLEMENTED,
        });
        Some(counted.map(|()| tokens))
    }

    /// Figures by name. `None` without the extension.
    pub fn stats(&self) -> Option<Vec<(String, f64)>> {
        unsafe extern "C" fn each(ctx: *mut c_void, name: bp_str, value: f64) {
            // SAFETY: `ctx` is the list below, for the length of `read`; the name lives through this call.
            unsafe { (*ctx.cast::<Vec<(String, f64)>>()).push((name.lossy().into_owned(), value)) };
        }
        // SAFETY: the table of the extension with this id.
        let table: bp_stats_1 =
            unsafe { read::known(self.find(BP_EXT_STATS_1.as_bytes()).cast(), Reader::Strict) }.ok()?;
        let mut figures: Vec<(String, f64)> = Vec::new();
        // SAFETY: the plugin's own table; the list outlives the call.
        unsafe { table.read?(self.table, (&raw mut figures).cast(), Some(each)) };
        Some(figures)
    }

    pub fn close(&self) {
        if let Some(close) = self.known.close {
            // SAFETY: once, with no instance left; the session keeps to that.
            unsafe { close(self.table) };
        }
    }
}

impl RawInstance {
    pub fn missing(&self) -> Vec<&'static str> {
        missing(&[("submit", self.known.submit.is_some()), ("destroy", self.known.destroy.is_some())])
    }

    /// Makes a request known to the host, without handing it over.
    pub fn prepare(&self, input: RequestInput) -> Arc<Exchange> {
        Exchange::new(self.host, input)
    }

    /// Hands requests over in one call. What the plugin refuses is ended with its reason.
    pub fn submit(&self, exchanges: &[Arc<Exchange>]) -> bp_code {
        let tail = exchanges.iter().map(|exchange| exchange.input.tail).max().unwrap_or_default();
        let stride = (size_of::<bp_request>() + tail).next_multiple_of(8);
        let mut rows = words(stride * exchanges.len().max(1));
        rows.fill(0x5A5A_5A5A_5A5A_5A5A);
        for (row, exchange) in exchanges.iter().enumerate() {
            // SAFETY: `rows` has a stride for each, which is at least a request long and a multiple of 8.
            unsafe { rows.as_mut_ptr().byte_add(row * stride).cast::<bp_request>().write(exchange.raw()) };
        }
        let mut code = BP_UNIMPLEMENTED;
        let taken = self.host.with_error(|err| {
            if let Some(submit) = self.known.submit {
                // SAFETY: the plugin's own table; rows that live through the call, on a thread that the session chose
                // by the class of the model.
                code = unsafe {
                    submit(self.table, rows.as_ptr().cast(), exchanges.len() as u32, stride as u32, err)
                };
            }
            code
        });
        // The struct itself is the plugin's only until submit returns: what it reads later is nonsense.
        rows.fill(0xEEEE_EEEE_EEEE_EEEE);
        if let Err(failure) = taken {
            for exchange in exchanges {
                if !exchange.end(End::Refused(failure.clone())) {
                    self.host.fault(Fault::FinishedARefusedRequest);
                }
            }
        }
        code
    }

    /// Tells the plugin that the caller of a request left, as a host does.
    pub fn cancel(&self, exchange: &Exchange) {
        exchange.set_cancelled();
        if let Some(cancel) = self.known.cancel {
            // SAFETY: the plugin's own table; [any] by the header.
            unsafe { cancel(self.table, exchange.handle) };
        }
    }

    /// `None` when the function is absent, which means ready.
    pub fn health(&self) -> Option<Result<i32, Failure>> {
        let health = self.known.health?;
        let mut state = -1;
        // SAFETY: the plugin's own table, and a place to write to.
        let answered = self.host.with_error(|err| unsafe { health(self.table, &raw mut state, err) });
        Some(answered.map(|()| state))
    }

    /// `None` when the function is absent.
    pub fn quiesce(&self, deadline: Option<Instant>) -> Option<bp_code> {
        let quiesce = self.known.quiesce?;
        // SAFETY: the plugin's own table.
        Some(unsafe { quiesce(self.table, clock::deadline_ns(deadline)) })
    }

    pub fn extension(&self, id: &[u8]) -> bool {
        // SAFETY: the plugin's own table, and text that lives through the call.
        self.known.get_extension.is_some_and(|get| unsafe { !get(self.table, raw_text(id)).is_null() })
    }

    pub fn destroy(&self) {
        if let Some(destroy) = self.known.destroy {
            // SAFETY: once, with no request open, on the thread its class asks for; the session keeps to that.
            unsafe { destroy(self.table) };
        }
        if let Some(kept @ 1..) = self.host.tickets.lock().remove(&self.ticket) {
            self.host.fault(Fault::ThreadsKept(kept));
        }
    }
}
