//! Calls into a plugin's tables.
#![expect(unsafe_code, reason = "the host's end of the C ABI")]

use super::exchange::Exchange;
use super::patience::Patience;
use super::table::{Failure, PluginContext};
use crate::compute::Client;
use crate::error::{Error, ErrorCode, Result};
use backplane_abi::clock;
use backplane_abi::payload::tensor::Description;
use backplane_abi::read::{self, Reader, Size};
use backplane_abi::table::*;
use backplane_registry::license::Gate;
use parking_lot::Mutex;
use std::borrow::Cow;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Figures are read while somebody waits for all of them.
const STATS: Duration = Duration::from_millis(50);

/// A library that was mapped and initialised.
pub struct Plugin {
    table: *mut bp_plugin,
    /// The table as far as both sides know it.
    known: bp_plugin,
    context: &'static PluginContext,
    id: Arc<str>,
    identity: Arc<str>,
    /// Whether it is in a process of its own.
    in_worker: bool,
    /// Bids for requests, and for loads: those that may take long must not be in the way of the others.
    bids: [Patience; 2],
}

/// Who waits for a bid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Somebody who is being answered.
    Request,
    /// A thread that plans to open a model. The plugin may look into the model's file, which may lie on a slow disk.
    Load,
}

impl Waits {
    /// The header gives a bid 1 ms. This is more than a busy machine takes to wake a thread.
    fn limit(self) -> Duration {
        match self {
            Self::Request => Duration::from_millis(250),
            Self::Load => Duration::from_secs(10),
        }
    }
}

// SAFETY: the functions called through it are tagged [any], or [init] and then called under the catalog's lock per
// model; the header allows any thread for both.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

/// What is asked before a choice or a load.
#[derive(Clone, Copy, Debug, Default)]
pub struct BidQuery<'a> {
    /// Empty: a load is planned.
    pub capability: &'a str,
    /// `"gguf"`; empty for a built-in model.
    pub format: &'a str,
    /// The model as in `model_open`.
    pub model_json: &'a str,
    /// Size of the request's JSON.
    pub input_bytes: u64,
}

/// The same, for a thread that may outlive who asks.
struct OwnedQuery {
    capability: String,
    format: String,
    model_json: String,
    input_bytes: u64,
}

impl BidQuery<'_> {
    fn to_owned(self) -> OwnedQuery {
        OwnedQuery {
            capability: self.capability.to_owned(),
            format: self.format.to_owned(),
            model_json: self.model_json.to_owned(),
            input_bytes: self.input_bytes,
        }
    }
}

/// A plugin's claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Bid {
    /// 0..=1000, 0 = cannot.
    pub score: u16,
    /// 0..=1000.
    pub quality: u16,
    /// Bytes the model takes once open.
    pub host_bytes: u64,
    /// How long the claim stands, in milliseconds.
    pub valid_ms: u32,
    /// Where the score is 0: why, as the code of an error; or [`CANNOT_SERVE`].
    pub refusal: Cow<'static, str>,
    /// For people.
    pub text: String,
}

/// What a plugin's reason not to bid is called where it is told.
fn refusal(reason: i32) -> &'static str {
    match reason {
        BP_BID_REASON_FORMAT => "model_invalid",
        BP_BID_REASON_DEVICE => "device_missing",
        BP_BID_REASON_MEMORY => "no_memory",
        BP_BID_REASON_LICENCE => "plugin_license_missing",
        BP_BID_REASON_RUNTIME => "runtime_missing",
        _ => CANNOT_SERVE,
    }
}

/// Why a plugin does not bid that gives no reason.
pub const CANNOT_SERVE: &str = "cannot_serve";

/// How instances want to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One call at a time on one thread.
    Serial,
    /// Several calls at once.
    Concurrent,
    /// Submit returns at once.
    Continuous,
}

/// How an instance says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// Serving.
    Ready,
    /// Serving badly, and why.
    Degraded(String),
    /// Not serving now, and why.
    NotReady(String),
    /// Broken, and why.
    Failed(String),
}

/// The reason a plugin gave for `code`, or one of ours.
fn reason(code: bp_code, failure: Option<Failure>, what: &str, plugin: &str) -> Failure {
    failure.unwrap_or_else(|| Failure {
        error: Error::new(
            ErrorCode::from_raw(code),
            format!("plugin `{plugin}` failed to {what} with code {code} and did not say why"),
        ),
        sub: BP_SUB_NONE,
    })
}

impl Plugin {
    /// A plugin that `bp_entry_v1` returned and `init` accepted.
    ///
    /// # Safety
    /// `table` came from the entry of a library that stays mapped, and `known` was read from it and checked to have
    /// `bid`, `model_open` and `shutdown`.
    pub(super) unsafe fn new(
        table: *mut bp_plugin,
        known: bp_plugin,
        context: &'static PluginContext,
        id: &str,
        identity: Arc<str>,
    ) -> Self {
        let bids = [(); 2].map(|()| Patience::with(id));
        Self { table, known, context, id: id.into(), identity, in_worker: false, bids }
    }

    /// Says that it is in a process of its own.
    pub(super) fn of_worker(mut self) -> Self {
        self.in_worker = true;
        self
    }

    /// Its id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Its id, version and checksum: tells it from every other plugin.
    pub fn identity(&self) -> &Arc<str> {
        &self.identity
    }

    /// What its requests look at, if it has to do with licences.
    pub fn licence(&self) -> Option<&Arc<Gate>> {
        self.context.licence.as_ref()
    }

    /// What it claims about a job. Waits no longer than who asks may.
    ///
    /// # Errors
    /// That it did not say, for people.
    pub fn bid(self: &Arc<Self>, query: BidQuery<'_>, waits: Waits) -> std::result::Result<Bid, String> {
        let (plugin, owned) = (self.clone(), query.to_owned());
        let [request, load] = &self.bids;
        let bids = if waits == Waits::Load { load } else { request };
        let asked = bids.ask(waits.limit(), move || plugin.ask_bid(&owned));
        match asked {
            Ok(Ok(bid)) => Ok(bid),
            Ok(Err(code)) => Err(format!("plugin `{}` failed to bid, with code {code}", self.id)),
            Err(late) => {
                tracing::warn!(plugin = &*self.id, %late, "a plugin that is asked for a bid answers late");
                Err(format!("plugin `{}` {late}", self.id))
            }
        }
    }

    fn ask_bid(&self, query: &OwnedQuery) -> std::result::Result<Bid, bp_code> {
        let Some(bid) = self.known.bid else { return Err(BP_UNIMPLEMENTED) };
        let raw = bp_query {
            capability: bp_str::new(&query.capability),
            format: bp_str::new(&query.format),
            model_json: bp_str::new(&query.model_json),
            dev_type: BP_DEV_CPU,
            input_bytes: query.input_bytes,
            capability_version: 1,
            ..bp_query::new()
        };
        let mut out = bp_bid::new();
        // SAFETY: the plugin's function with its own table; the text is copied before anybody bids on this thread.
        let (code, text) = unsafe { (bid(self.table, &raw, &raw mut out), out.text.lossy().into_owned()) };
        if code != BP_OK {
            return Err(code);
        }
        Ok(Bid {
            score: out.score.min(1000),
            quality: out.quality.min(1000),
            host_bytes: out.bytes_host,
            valid_ms: out.valid_ms,
            refusal: refusal(out.reason).into(),
            text,
        })
    }

    /// Opens a model. May block for long.
    ///
    /// # Errors
    /// The plugin's.
    pub fn open(self: &Arc<Self>, model_json: &str) -> Result<Arc<Model>> {
        let open = self.known.model_open.ok_or_else(|| Error::internal("model_open is missing"))?;
        let mut table = std::ptr::null_mut();
        let (code, failure) = self.context.with_error(|err| {
            // SAFETY: the plugin's function with its own table and a place to write to.
            unsafe { open(self.table, bp_str::new(model_json), &raw mut table, err) }
        });
        if code != BP_OK {
            return Err(reason(code, failure, "open the model", &self.id).error);
        }
        // SAFETY: the plugin says it wrote a table there.
        let known: Option<bp_model> = unsafe { read::known(table, Reader::Lenient) }.ok();
        let known =
            known.filter(|known| known.instance_new.is_some() && known.close.is_some()).ok_or_else(|| {
                Error::internal(format!("plugin `{}` returned a model without its functions", self.id))
            })?;
        let class = match known.exec_class {
            BP_SERIAL => Class::Serial,
            BP_CONCURRENT => Class::Concurrent,
            BP_CONTINUOUS => Class::Continuous,
            other => {
                // SAFETY: just opened, and not used again.
                unsafe { known.close.map(|close| close(table)) };
                return Err(Error::internal(format!(
                    "plugin `{}` declares execution class {other}",
                    self.id
                )));
            }
        };
        // SAFETY: valid until close.
        let description = serde_json::from_slice(unsafe { known.describe_json.bytes() }).unwrap_or_default();
        let figures = Figures { patience: Patience::with(&self.id), last: Mutex::default() };
        Ok(Arc::new(Model { plugin: self.clone(), table, known, class, description, figures }))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(shutdown) = self.known.shutdown {
            // SAFETY: no model is left, since each holds an Arc of this; called once.
            unsafe { shutdown(self.table) };
        }
    }
}

/// An opened model.
pub struct Model {
    plugin: Arc<Plugin>,
    table: *mut bp_model,
    known: bp_model,
    class: Class,
    description: Description,
    figures: Figures,
}

/// What an engine said of itself last, and how long it may take to say it.
struct Figures {
    patience: Patience,
    last: Mutex<Vec<(String, f64)>>,
}

// SAFETY: the functions called through it are tagged [any] or [init]; the header allows any thread for both.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// What its requests look at, if its plugin has to do with licences.
    pub fn licence(&self) -> Option<&Arc<Gate>> {
        self.plugin.licence()
    }

    /// How its instances want to be called.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether `submit` of its instances may be called by whoever has a request, on any thread: it returns at once. That
    /// of a worker writes to a socket, which waits for a worker that does not read.
    pub fn takes_at_once(&self) -> bool {
        self.class == Class::Continuous && !self.plugin.in_worker
    }

    /// Requests that may be open in one instance.
    pub fn max_inflight(&self) -> u32 {
        self.known.max_inflight.max(1)
    }

    /// Rows of one submit.
    pub fn max_batch(&self) -> u32 {
        self.known.max_batch.max(1)
    }

    /// How long after cancel a request may take to finish.
    pub fn cancel_grace(&self) -> std::time::Duration {
        std::time::Duration::from_millis(u64::from(self.known.cancel_grace_ms.clamp(100, 60_000)))
    }

    /// What it takes and gives.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// A running copy. May block for long.
    ///
    /// # Errors
    /// The plugin's.
    pub fn instance(self: &Arc<Self>, index: u32, threads: u32, compute: Arc<Client>) -> Result<Instance> {
        let new = self.known.instance_new.ok_or_else(|| Error::internal("instance_new is missing"))?;
        let context = self.plugin.context;
        let ticket = context.tickets.insert(compute);
        let placement = bp_placement { ticket, dev_type: BP_DEV_CPU, threads, index, ..bp_placement::new() };
        let mut table = std::ptr::null_mut();
        let (code, failure) = context.with_error(|err| {
            // SAFETY: the plugin's function with its own table, a valid placement and a place to write to.
            unsafe { new(self.table, &placement, &raw mut table, err) }
        });
        if code != BP_OK {
            context.tickets.remove(ticket);
            return Err(reason(code, failure, "make an instance", &self.plugin.id).error);
        }
        // SAFETY: the plugin says it wrote a table there.
        let known: Option<bp_instance> = unsafe { read::known(table, Reader::Lenient) }.ok();
        match known.filter(|known| known.submit.is_some() && known.destroy.is_some()) {
            Some(known) => Ok(Instance { model: self.clone(), table, known, ticket }),
            None => {
                context.tickets.remove(ticket);
                Err(Error::internal(format!(
                    "plugin `{}` returned an instance without its functions",
                    self.plugin.id
                )))
            }
        }
    }

    /// The model's extension with this id, as far as both sides know it.
    fn extension<T: Size>(&self, id: &'static str) -> Option<T> {
        let get = self.known.get_extension?;
        // SAFETY: the plugin's function with its own table; extension tables live as long as the model.
        unsafe { read::known(get(self.table, bp_str::new(id)).cast::<T>(), Reader::Lenient) }.ok()
    }

    /// Has the owners of tensors on a device that this model does not take copy them. `None`: none is. Who lost one ends
    /// with the owner's error, and is left out of what is given back.
    fn land(&self, batch: &[Arc<Exchange>]) -> Option<Vec<Arc<Exchange>>> {
        let takes = |kind, id| self.takes(kind, id);
        if !batch.iter().any(|exchange| exchange.is_elsewhere(takes)) {
            return None;
        }
        let mut rest = batch.to_vec();
        rest.retain(|exchange| {
            let landed = if exchange.is_elsewhere(takes) { exchange.land() } else { Ok(()) };
            if let Err(error) = &landed {
                exchange.returned(false);
                exchange.end(Err(error.clone()), None);
            }
            landed.is_ok()
        });
        Some(rest)
    }

    /// Whether it takes tensors that are on this device.
    fn takes(&self, dev_type: i32, dev_id: i32) -> bool {
        let table = self.extension::<bp_device_inputs_1>(BP_EXT_DEVICE_INPUTS_1);
        // SAFETY: the plugin's function with its own table.
        table
            .and_then(|table| table.takes)
            .is_some_and(|takes| unsafe { takes(self.table, dev_type, dev_id) == BP_OK })
    }

    /// Prompt tokens of a request; `None` when the model does not count.
    ///
    /// # Errors
    /// As the request itself would fail.
    pub fn count_tokens(&self, capability: &str, params: &str) -> Result<Option<u64>> {
        let Some(count) = self.extension::<bp_tokens_1>(BP_EXT_TOKENS_1).and_then(|table| table.count) else {
            return Ok(None);
        };
        let mut tokens = 0;
        let (code, failure) = self.plugin.context.with_error(|err| {
            // SAFETY: the plugin's function with its own table and a place to write to.
            unsafe { count(self.table, bp_str::new(capability), bp_str::new(params), &raw mut tokens, err) }
        });
        match code {
            BP_OK => Ok(Some(tokens)),
            BP_UNIMPLEMENTED => Ok(None),
            code => Err(reason(code, failure, "count tokens", &self.plugin.id).error),
        }
    }

    /// The engine's own figures; those it gave last when it does not give them at once.
    pub fn stats(self: &Arc<Self>) -> Vec<(String, f64)> {
        if self.extension::<bp_stats_1>(BP_EXT_STATS_1).is_none() {
            return Vec::new();
        }
        let model = self.clone();
        match self.figures.patience.ask(STATS, move || model.ask_stats()) {
            Ok(figures) => *self.figures.last.lock() = figures,
            Err(late) => tracing::debug!(plugin = &*self.plugin.id, %late, "an engine's figures are late"),
        }
        self.figures.last.lock().clone()
    }

    /// How often its figures were not given at once.
    pub fn late_stats(&self) -> u64 {
        self.figures.patience.late()
    }

    fn ask_stats(&self) -> Vec<(String, f64)> {
        unsafe extern "C" fn each(ctx: *mut c_void, name: bp_str, value: f64) {
            // SAFETY: ctx is the Vec below; the name is valid until we return.
            let (figures, name) = unsafe { (&mut *ctx.cast::<Vec<(String, f64)>>(), name.lossy()) };
            if figures.len() < 64 {
                figures.push((name.into_owned(), value));
            }
        }
        let mut figures = Vec::new();
        if let Some(read) = self.extension::<bp_stats_1>(BP_EXT_STATS_1).and_then(|table| table.read) {
            // SAFETY: the plugin's function with its own table; `figures` outlives the call.
            unsafe { read(self.table, (&raw mut figures).cast(), Some(each)) };
        }
        figures
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if let Some(close) = self.known.close {
            // SAFETY: no instance is left, since each holds an Arc of this; called once.
            unsafe { close(self.table) };
        }
    }
}

/// One running copy of a model.
pub struct Instance {
    model: Arc<Model>,
    table: *mut bp_instance,
    known: bp_instance,
    ticket: bp_ticket,
}

// SAFETY: functions tagged [any] may be called from any thread; submit and destroy of a SERIAL instance are called by
// its one lane thread only, which makes, keeps and drops it (backend/lane.rs).
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

/// Why a submit failed.
#[derive(Debug)]
pub struct Refused {
    /// The plugin's reason.
    pub error: Error,
    /// Whether the instance can serve no more.
    pub poisoned: bool,
}

impl Instance {
    /// Hands requests to the plugin, `now`. On an error every one of them has been ended with it.
    ///
    /// # Errors
    /// The plugin's.
    pub fn submit(&self, batch: &[Arc<Exchange>], now: Instant) -> std::result::Result<(), Refused> {
        let context = self.model.plugin.context;
        let Some(submit) = self.known.submit else {
            return Err(Refused { error: Error::internal("submit is missing"), poisoned: true });
        };
        let landed;
        let batch = match self.model.land(batch) {
            Some(rest) => {
                landed = rest;
                &*landed
            }
            None => batch,
        };
        if batch.is_empty() {
            return Ok(());
        }
        let raw =
            |exchange: &Arc<Exchange>| exchange.raw(context.exchanges.insert(exchange.clone()), now, context);
        let (one, many);
        let rows: &[bp_request] = match batch {
            // The usual case, which allocates nothing.
            [exchange] => {
                one = [raw(exchange)];
                &one
            }
            batch => {
                many = batch.iter().map(raw).collect::<Vec<_>>();
                &many
            }
        };
        let (code, failure) = context.with_error(|err| {
            // SAFETY: the plugin's function with its own table; the rows live until it returns, and what they point to
            // lives in the exchanges, which the handle table keeps until finish.
            unsafe {
                submit(self.table, rows.as_ptr(), rows.len() as u32, size_of::<bp_request>() as u32, err)
            }
        });
        if code == BP_OK {
            return Ok(());
        }
        let failure = reason(code, failure, "take the request", &self.model.plugin.id);
        let poisoned = failure.poisons();
        for exchange in batch {
            // After a panic some rows may have been finished, and threads of the plugin may still read the others.
            let handle = exchange.handle();
            let had =
                if poisoned { context.take_away(handle) } else { context.exchanges.remove(handle).is_some() };
            if had {
                exchange.returned(poisoned);
                exchange.end(Err(failure.error.clone()), None);
            }
        }
        Err(Refused { error: failure.error, poisoned })
    }

    /// Tells the plugin that the cancel word of the request with this handle was set. Blocks as long as the plugin does.
    pub fn cancel(&self, request: u64) {
        if let Some(cancel) = self.known.cancel {
            // SAFETY: the plugin's function with its own table; a stale request is the plugin's to ignore.
            unsafe { cancel(self.table, request) };
        }
    }

    /// How it may be called.
    pub fn class(&self) -> Class {
        self.model.class
    }

    /// Takes a request away from a plugin that does not finish it. Its memory stays, since the plugin may still read
    /// it; a later finish is stale, and lets go of it.
    pub fn abandon(&self, exchange: &Arc<Exchange>, error: Error) {
        exchange.cancel();
        self.model.plugin.context.take_away(exchange.handle());
        exchange.returned(true);
        exchange.end(Err(error), None);
    }

    /// Ends the worker it is in, if it is in one, with whatever hangs there.
    pub fn end_worker(&self) {
        super::worker::end(self.table, &self.known);
    }

    /// How it says it is. Blocks as long as the plugin does.
    pub fn health(&self) -> HealthState {
        let Some(health) = self.known.health else { return HealthState::Ready };
        let mut state = BP_HEALTH_READY;
        let (code, failure) = self.model.plugin.context.with_error(|err| {
            // SAFETY: the plugin's function with its own table and a place to write to.
            unsafe { health(self.table, &raw mut state, err) }
        });
        let why = failure.map_or_else(String::new, |failure| failure.error.message);
        match (code, state) {
            (BP_OK, BP_HEALTH_READY) => HealthState::Ready,
            (BP_OK, BP_HEALTH_DEGRADED) => HealthState::Degraded(why),
            (BP_OK, BP_HEALTH_NOT_READY) => HealthState::NotReady(why),
            (BP_OK, _) => HealthState::Failed(why),
            (code, _) => HealthState::Degraded(format!("health check failed with {code}: {why}")),
        }
    }

    /// Lets it finish what it has. Whether it was done in time.
    pub fn quiesce(&self, deadline: Instant) -> bool {
        match self.known.quiesce {
            // SAFETY: the plugin's function with its own table.
            Some(quiesce) => unsafe { quiesce(self.table, clock::deadline_ns(Some(deadline))) == BP_OK },
            None => true,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(destroy) = self.known.destroy {
            // SAFETY: called once, with no request open: who holds the last `Arc` of it is not inside it.
            unsafe { destroy(self.table) };
        }
        // A thread that waits for permits for it keeps its seat alive, and with it what the seat holds.
        if let Some(seat) = self.model.plugin.context.tickets.remove(self.ticket) {
            seat.close();
        }
    }
}

/// Returns free heap pages to the system.
pub(super) fn trim_memory() {
    // SAFETY: glibc's malloc_trim takes no pointer and is thread-safe.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
