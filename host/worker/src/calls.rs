//! Calls into the plugin: lanes, and what the main connection brings.
#![expect(unsafe_code, reason = "the worker's end of the C ABI")]

use crate::callbacks;
use crate::said::Said;
use crate::state::{Answer, Request, State, Table};
use crate::table;
use backplane_abi::read::{self, Reader};
use backplane_abi::table::*;
use backplane_abi::worker::{
    Bid, Body, Call, Channel, Figure, Granted, Lookers, Placement, Query, Return, Row, ToHost, ToWorker,
    Value, frame, raw_tensors,
};
use parking_lot::RwLock;
use std::ffi::c_void;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

pub fn text(bytes: &[u8]) -> bp_str {
    bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
}

/// Lanes that look for their next call: one at a time.
static LOOKERS: Lookers = Lookers::new(1);
static NOBODY: Lookers = Lookers::new(0);

/// Serves one lane until the host closes it.
pub fn serve(state: &'static State, lane: Channel) {
    let mut lookers = &NOBODY;
    while let Ok(Some(body)) = lane.receive_call(lookers, &state.borrowed) {
        let body = Arc::new(body);
        let Ok(call) = body.read::<Call<'_>>() else { return };
        lookers = if matches!(call, Call::Submit { look: true, .. }) { &LOOKERS } else { &NOBODY };
        let answer = |code, error: Option<Said>, value| {
            let error = error.as_ref().map(Said::failure);
            // Requests that have not ended have it, and buffers of theirs that the plugin keeps.
            let back = Arc::strong_count(&body) == 1;
            if let (false, Some(arena)) = (back, body.lent()) {
                state.borrowed.forget(arena);
            }
            lane.send(&frame(&Return { after: state.said(), back, code, error, value })).is_ok()
        };
        let nothing = Value::Nothing {};
        let open = match call {
            Call::Enter { struct_size, flags, abi_minor, name, version, compute, call, license, .. } => {
                let made =
                    table::make(struct_size, flags, abi_minor, name, version, (compute, call, license));
                let (code, value) = enter(state, made);
                answer(code, None, value)
            }
            Call::Init { config } => {
                let (code, error) = with_plugin(state, |plugin, err| {
                    // SAFETY: the plugin's function with its own table.
                    plugin.known.init.map(|init| unsafe { init(plugin.at, text(config), err) })
                });
                answer(code, error, nothing)
            }
            Call::Bid { query, out_size } => {
                let (code, raw) = bid(state, &query, out_size);
                // SAFETY: valid until the next bid on this thread.
                let bid = raw.map(|raw| Value::Bid { bid: wire_bid(&raw, unsafe { raw.text.bytes() }) });
                answer(code, None, bid.unwrap_or(nothing))
            }
            Call::Open { model, json } => {
                let mut at = std::ptr::null_mut();
                let (code, error) = with_plugin(state, |plugin, err| {
                    // SAFETY: the plugin's function with its own table and a place to write to.
                    plugin
                        .known
                        .model_open
                        .map(|open| unsafe { open(plugin.at, text(json), &raw mut at, err) })
                });
                let value = if code == BP_OK { keep_model(state, model, at) } else { nothing };
                answer(code, error, value)
            }
            Call::New { model, instance, placement } => {
                let (code, error, value) = new_instance(state, model, instance, &placement);
                answer(code, error, value)
            }
            Call::Submit { instance, rows, .. } => {
                let (code, error) = submit(state, instance, rows, &body);
                answer(code, error, nothing)
            }
            Call::Health { instance } => {
                let mut health = BP_HEALTH_READY;
                let (code, error) = with_instance(state, instance, |instance, err| {
                    // SAFETY: the plugin's function with its own table and a place to write to.
                    instance.known.health.map(|ask| unsafe { ask(instance.at, &raw mut health, err) })
                });
                answer(code, error, Value::State { state: health })
            }
            Call::Quiesce { instance, deadline_ns } => {
                let (code, error) = with_instance(state, instance, |instance, _| {
                    // SAFETY: the plugin's function with its own table.
                    instance.known.quiesce.map(|quiesce| unsafe { quiesce(instance.at, deadline_ns) })
                });
                answer(code, error, nothing)
            }
            Call::Destroy { instance } => {
                destroy(state, instance);
                answer(BP_OK, None, nothing)
            }
            Call::Close { model } => {
                let gone = state.models.lock().remove(&model);
                if let Some((gone, close)) = gone.as_ref().and_then(|gone| Some((gone, gone.known.close?))) {
                    // SAFETY: no instance is left, says the host; called once.
                    unsafe { close(gone.at) };
                }
                answer(BP_OK, None, nothing)
            }
            Call::Count { model, capability, params } => {
                let (code, error, tokens) = count(state, model, capability, params);
                answer(code, error, Value::Tokens { tokens })
            }
            Call::Stats { model } => {
                let figures = stats(state, model);
                let figures = figures.iter().map(|(name, value)| Figure { name, value: *value }).collect();
                answer(BP_OK, None, Value::Figures { figures })
            }
            Call::Shutdown {} => {
                if let Some((plugin, shutdown)) =
                    state.plugin.get().and_then(|p| Some((p, p.known.shutdown?)))
                {
                    // SAFETY: no model is open, says the host; called once.
                    unsafe { shutdown(plugin.at) };
                }
                answer(BP_OK, None, nothing)
            }
        };
        if !open {
            return;
        }
    }
}

/// Runs a function of the plugin's that may be absent.
fn with_plugin(
    state: &State,
    call: impl FnOnce(&Table<bp_plugin>, bp_err) -> Option<bp_code>,
) -> (bp_code, Option<Said>) {
    let Some(plugin) = state.plugin.get() else { return (BP_BAD_STATE, None) };
    state.with_error(|err| call(plugin, err).unwrap_or(BP_UNIMPLEMENTED))
}

fn with_instance(
    state: &State,
    id: u64,
    call: impl FnOnce(&Table<bp_instance>, bp_err) -> Option<bp_code>,
) -> (bp_code, Option<Said>) {
    let Some((_, instance)) = state.instances.lock().get(&id).cloned() else { return (BP_BAD_STATE, None) };
    state.with_error(|err| call(&instance, err).unwrap_or(BP_UNIMPLEMENTED))
}

/// Functions that are there, as bits in the order of the header.
fn bits(there: &[bool]) -> u8 {
    there.iter().enumerate().fold(0, |bits, (at, there)| bits | u8::from(*there) << at)
}

fn enter(state: &State, host: crate::state::HostTable) -> (bp_code, Value<'static>) {
    let host = state.host.get_or_init(|| host);
    let mut at = std::ptr::null_mut();
    // SAFETY: the entry of backplane.h with a table that is never freed and a place to write to.
    let code = unsafe { (state.entry)(host.at, &raw mut at) };
    if code != BP_OK {
        return (code, Value::Nothing {});
    }
    // SAFETY: the plugin says it wrote its table there.
    let Some(known) = (unsafe { bp_plugin::view(at) }) else { return (BP_BAD_STRUCT, Value::Nothing {}) };
    state.plugin.get_or_init(|| Table { at, known, alive: RwLock::new(true) });
    // SAFETY: strings of the table, valid until shutdown; this process ends with it.
    let (id, version) = unsafe { (known.id.bytes(), known.version.bytes()) };
    let functions = bits(&[
        known.init.is_some(),
        known.bid.is_some(),
        known.model_open.is_some(),
        known.get_extension.is_some(),
        known.shutdown.is_some(),
    ]);
    let (struct_size, flags) = (known.struct_size, known.flags);
    let (minor_built, minor_min) = (known.abi_minor_built, known.abi_minor_min);
    (code, Value::Plugin { struct_size, flags, minor_built, minor_min, id, version, functions })
}

fn bid(state: &State, query: &Query<'_>, out_size: u32) -> (bp_code, Option<bp_bid>) {
    let Some((plugin, bid)) = state.plugin.get().and_then(|plugin| Some((plugin, plugin.known.bid?))) else {
        return (BP_BAD_STATE, None);
    };
    let shapes = raw_tensors(&query.shapes);
    let raw = bp_query {
        struct_size: query.struct_size.min(size_of::<bp_query>() as u32),
        flags: query.flags,
        capability: text(query.capability),
        format: text(query.format),
        model_json: text(query.model),
        shapes: shapes.as_ptr(),
        n_shapes: shapes.len() as u32,
        stride: size_of::<bp_tensor>() as u32,
        input_bytes: query.input_bytes,
        slo_p99_us: query.slo_p99_us,
        dev_type: query.dev_type,
        dev_id: query.dev_id,
        capability_version: query.capability_version,
    };
    let mut out = bp_bid { struct_size: out_size.min(size_of::<bp_bid>() as u32), ..bp_bid::new() };
    // SAFETY: the plugin's function with its own table, a query that lives through it and a struct to write to.
    let code = unsafe { bid(plugin.at, &raw, &raw mut out) };
    (code, Some(out))
}

fn wire_bid<'a>(raw: &bp_bid, text: &'a [u8]) -> Bid<'a> {
    Bid {
        score: raw.score,
        quality: raw.quality,
        est_p50_us: raw.est_p50_us,
        est_p99_us: raw.est_p99_us,
        max_batch: raw.max_batch,
        valid_ms: raw.valid_ms,
        load_ms: raw.load_ms,
        bytes_dev: raw.bytes_dev,
        bytes_host: raw.bytes_host,
        reason: raw.reason,
        text,
    }
}

/// A model's extension with this id.
fn model_extension<T: read::Size>(table: &Table<bp_model>, id: &'static str) -> Option<T> {
    let get = table.known.get_extension?;
    // SAFETY: the plugin's function with its own table; extension tables live as long as the model.
    unsafe { read::known(get(table.at, bp_str::new(id)).cast(), Reader::Lenient) }.ok()
}

fn keep_model(state: &State, id: u64, at: *mut bp_model) -> Value<'static> {
    // SAFETY: the plugin says it wrote a table there.
    let Some(known) = (unsafe { bp_model::view(at) }) else { return Value::Nothing {} };
    let table = Arc::new(Table { at, known, alive: RwLock::new(true) });
    let functions = bits(&[
        known.instance_new.is_some(),
        known.get_extension.is_some(),
        known.close.is_some(),
        model_extension::<bp_tokens_1>(&table, BP_EXT_TOKENS_1).is_some(),
        model_extension::<bp_stats_1>(&table, BP_EXT_STATS_1).is_some(),
    ]);
    state.models.lock().insert(id, table);
    Value::Model {
        struct_size: known.struct_size,
        flags: known.flags,
        exec_class: known.exec_class,
        max_inflight: known.max_inflight,
        max_batch: known.max_batch,
        cancel_grace_ms: known.cancel_grace_ms,
        // SAFETY: valid until the model is closed, which the host does not do before it has this answer.
        describe: unsafe { known.describe_json.bytes() },
        functions,
    }
}

fn new_instance(
    state: &State,
    model: u64,
    id: u64,
    placement: &Placement,
) -> (bp_code, Option<Said>, Value<'static>) {
    let Some(model) = state.models.lock().get(&model).cloned() else {
        return (BP_BAD_STATE, None, Value::Nothing {});
    };
    let Some(new) = model.known.instance_new else { return (BP_UNIMPLEMENTED, None, Value::Nothing {}) };
    let raw = bp_placement {
        struct_size: placement.struct_size.min(size_of::<bp_placement>() as u32),
        flags: placement.flags,
        ticket: placement.ticket,
        dev_type: placement.dev_type,
        dev_id: placement.dev_id,
        threads: placement.threads,
        index: placement.index,
    };
    state.tickets.lock().insert(placement.ticket, 0);
    let mut at = std::ptr::null_mut();
    let (code, error) = state.with_error(|err| {
        // SAFETY: the plugin's function with its own table, a valid placement and a place to write to.
        unsafe { new(model.at, &raw, &raw mut at, err) }
    });
    // SAFETY: the plugin says it wrote a table there.
    let known = if code == BP_OK { unsafe { bp_instance::view(at) } } else { None };
    let Some(known) = known else {
        state.tickets.lock().remove(&placement.ticket);
        return (code, error, Value::Nothing {});
    };
    let functions = bits(&[
        known.submit.is_some(),
        known.cancel.is_some(),
        known.health.is_some(),
        known.quiesce.is_some(),
        known.get_extension.is_some(),
        known.destroy.is_some(),
    ]);
    let table = Arc::new(Table { at, known, alive: RwLock::new(true) });
    state.instances.lock().insert(id, (placement.ticket, table));
    (code, error, Value::Instance { struct_size: known.struct_size, flags: known.flags, functions })
}

fn destroy(state: &State, id: u64) {
    let Some((ticket, gone)) = state.instances.lock().remove(&id) else { return };
    // Waits for a cancel that is being told.
    *gone.alive.write() = false;
    if let Some(destroy) = gone.known.destroy {
        // SAFETY: called once, with no request open, on the lane of the instance.
        unsafe { destroy(gone.at) };
    }
    state.tickets.lock().remove(&ticket);
}

fn submit(state: &'static State, id: u64, rows: Vec<Row<'_>>, body: &Arc<Body>) -> (bp_code, Option<Said>) {
    let Some((_, instance)) = state.instances.lock().get(&id).cloned() else { return (BP_BAD_STATE, None) };
    let Some(submit) = instance.known.submit else { return (BP_UNIMPLEMENTED, None) };
    let requests: Vec<_> = rows.into_iter().map(|row| Request::new(state, row, body)).collect();
    // The tail that a newer host claims is there, and nothing in it.
    const STRIDE: usize = size_of::<bp_request>() + 64;
    let mut memory = vec![0u64; (STRIDE / 8) * requests.len().max(1)];
    let mut left = Vec::new();
    {
        let mut open = state.requests.lock();
        for (row, request) in requests.iter().enumerate() {
            if open.insert(request) {
                left.push(request.row.id);
            }
            // SAFETY: `memory` has a stride for each, which is a multiple of 8 and longer than a request.
            unsafe { memory.as_mut_ptr().byte_add(row * STRIDE).cast::<bp_request>().write(request.raw()) };
        }
    }
    let (code, error) = state.with_error(|err| {
        // SAFETY: the plugin's function with its own table, on the thread that its class asks for; the rows live until
        // it returns, and what they point to lives in the requests, which the map keeps until finish.
        unsafe { submit(instance.at, memory.as_ptr().cast(), requests.len() as u32, STRIDE as u32, err) }
    });
    if code != BP_OK {
        for request in &requests {
            if state.requests.lock().remove(request.row.id).is_some() {
                request.done(state, || {});
            }
        }
    }
    left.into_iter().for_each(|request| callbacks::cancel(state, id, request));
    (code, error)
}

fn count(state: &State, model: u64, capability: &[u8], params: &[u8]) -> (bp_code, Option<Said>, u64) {
    let Some(model) = state.models.lock().get(&model).cloned() else { return (BP_BAD_STATE, None, 0) };
    let count = model_extension::<bp_tokens_1>(&model, BP_EXT_TOKENS_1).and_then(|table| table.count);
    let Some(count) = count else { return (BP_UNIMPLEMENTED, None, 0) };
    let mut tokens = 0;
    let (code, error) = state.with_error(|err| {
        // SAFETY: the plugin's function with its own table and a place to write to.
        unsafe { count(model.at, text(capability), text(params), &raw mut tokens, err) }
    });
    (code, error, tokens)
}

fn stats(state: &State, model: u64) -> Vec<(Vec<u8>, f64)> {
    unsafe extern "C" fn each(ctx: *mut c_void, name: bp_str, value: f64) {
        // SAFETY: ctx is the Vec below; the name is valid until we return.
        let (figures, name) = unsafe { (&mut *ctx.cast::<Vec<(Vec<u8>, f64)>>(), name.bytes()) };
        if figures.len() < 64 {
            figures.push((name.to_vec(), value));
        }
    }
    let Some(model) = state.models.lock().get(&model).cloned() else { return Vec::new() };
    let mut figures = Vec::new();
    if let Some(read) = model_extension::<bp_stats_1>(&model, BP_EXT_STATS_1).and_then(|table| table.read) {
        // SAFETY: the plugin's function with its own table; `figures` outlives the call.
        unsafe { read(model.at, (&raw mut figures).cast(), Some(each)) };
    }
    figures
}

/// What the main connection brings. `false` when it is not understood: the host is another than we think.
///
/// Nothing of the plugin's runs here, where the answers to what it asks arrive: what is for it goes to `plugin`.
pub fn hear(state: &'static State, body: Body, fd: Option<OwnedFd>, plugin: &Sender<Body>) -> bool {
    match body.read() {
        Ok(ToWorker::Lane {}) => {
            let Some(fd) = fd else { return false };
            let lane = Channel::from_fd(fd);
            // A lane that finds no thread is closed, which its other end sees.
            let _refused =
                std::thread::Builder::new().name("lane".to_owned()).spawn(move || serve(state, lane));
            true
        }
        Ok(ToWorker::Cancel { request, .. }) => {
            state.requests.lock().cancel(request);
            plugin.send(body).is_ok()
        }
        Ok(ToWorker::CallChunk { .. } | ToWorker::CallDone { .. }) => plugin.send(body).is_ok(),
        Ok(ToWorker::Credits {}) => {
            let credits = fd.and_then(|fd| Granted::map(&fd).ok());
            credits.is_some_and(|credits| state.credits.set(credits).is_ok())
        }
        Ok(ToWorker::Ping { number }) => {
            state.say_if_heard(&frame(&ToHost::Pong { number }));
            true
        }
        Ok(ToWorker::Answer { ask, code, value, bytes }) => {
            state.answer(ask, Answer { code, value, bytes: bytes.to_vec() });
            true
        }
        Ok(ToWorker::Forget { arena }) => {
            state.borrowed.forget(arena);
            true
        }
        Ok(ToWorker::Start { .. }) | Err(_) => false,
    }
}

/// Bytes that a placement has in ABI 1.0.
const _: () = assert!(offset_of!(bp_placement, index) + 4 == size_of::<bp_placement>());
