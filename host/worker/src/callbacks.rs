//! What the host says to the plugin of its own accord: that a caller left, and the answers to what the plugin asked of others.
//!
//! On a thread of its own. From inside a callback the plugin may ask the host something, or wait for a lock that is held
//! by who does; the answer comes on the main connection, so the thread that reads that one must not wait for the plugin.
//! What waits here has no bound of its own: it is answers that the plugin asked for, in memory that its worker is granted.
#![expect(unsafe_code, reason = "the worker's end of the C ABI")]

use crate::calls::text;
use crate::state::State;
use backplane_abi::table::*;
use backplane_abi::worker::{Body, Failure, Tensor, ToHost, ToWorker, frame, raw_tensors};
use std::sync::mpsc::{Sender, channel};

/// Starts the thread. It takes what is for the plugin in the order in which it came.
pub fn start(state: &'static State) -> std::io::Result<Sender<Body>> {
    let (plugin, queue) = channel::<Body>();
    std::thread::Builder::new()
        .name("callbacks".to_owned())
        .spawn(move || queue.into_iter().for_each(|body| pass_on(state, &body)))?;
    Ok(plugin)
}

fn pass_on(state: &State, body: &Body) {
    match body.read() {
        Ok(ToWorker::Cancel { instance, request }) => cancel(state, instance, request),
        Ok(ToWorker::CallChunk { call, json, tensors }) => chunk(state, call, json, &tensors),
        Ok(ToWorker::CallDone { call, error, usage, confidence }) => {
            done(state, call, error.as_ref(), usage, confidence);
        }
        // Nothing else is for the plugin.
        _ => {}
    }
}

/// Tells the plugin that the caller of a request left, if it has it. On any thread.
pub fn cancel(state: &State, instance: u64, id: u64) {
    if state.request(id).is_none() {
        return;
    }
    let Some((_, instance)) = state.instances.lock().get(&instance).cloned() else { return };
    let alive = instance.alive.read();
    if let (true, Some(cancel)) = (*alive, instance.known.cancel) {
        // SAFETY: the plugin's function with its own table, which is not destroyed meanwhile; a request that ended
        // meanwhile is the plugin's to ignore.
        unsafe { cancel(instance.at, id) };
    }
}

fn chunk(state: &State, call: u64, json: &[u8], tensors: &[Tensor<'_>]) {
    let Some(back) = state.calls.lock().get(&call).copied() else { return };
    let raw = raw_tensors(tensors);
    let chunk = bp_chunk {
        json: text(json),
        tensors: raw.as_ptr(),
        n_tensors: raw.len() as u32,
        stride: size_of::<bp_tensor>() as u32,
        ..bp_chunk::new()
    };
    // SAFETY: the plugin's callback with its ctx; the chunk is valid until it returns.
    if unsafe { (back.on_chunk)(back.ctx, &chunk) } != BP_OK {
        state.say(&frame(&ToHost::CallCancel { call }));
    }
}

fn done(state: &State, call: u64, error: Option<&Failure<'_>>, usage: &[u8], confidence: f64) {
    let Some(back) = state.calls.lock().remove(&call) else { return };
    let raw = error.map(|error| bp_error {
        code: error.code,
        sub: error.sub,
        retry_after_ms: error.retry_after_ms,
        message: text(error.message),
        reason: text(error.reason),
        details_json: text(error.details),
        ..bp_error::new()
    });
    let error = raw.as_ref().map_or(std::ptr::null(), |error| &raw const *error);
    let done = bp_done { error, usage_json: text(usage), confidence, ..bp_done::new() };
    // SAFETY: exactly once, with the plugin's own ctx.
    unsafe { (back.on_done)(back.ctx, &done) };
}
