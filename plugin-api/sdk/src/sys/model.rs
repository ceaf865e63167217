//! `bp_model`: a [`Model`] as the host sees it, and its extensions.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::instance::InstanceBox;
use super::{answer, end, guard, text};
use crate::device::Device;
use crate::host::Host;
use crate::plugin::{Execution, Model, ModelSpec, Seat};
use crate::request::Request;
use crate::{Error, Result};
use backplane_abi::code::Code;
use backplane_abi::table::*;
use std::ffi::c_void;
use std::sync::Arc;

pub(super) struct ModelBox {
    table: bp_model,
    host: Host,
    describe: String,
    card: Arc<Card>,
    model: Box<dyn Model>,
}

/// What a model was opened to serve.
pub(super) struct Card {
    name: String,
    capabilities: Vec<String>,
}

impl Card {
    /// Requests for other capabilities are refused by the SDK, so that no plugin answers a question nobody asked.
    pub(super) fn serves(&self, capability: &str) -> bool {
        self.capabilities.is_empty() || self.capabilities.iter().any(|served| served == capability)
    }

    pub(super) fn refuse(&self, request: Request) {
        let (name, asked, served) = (&self.name, request.capability(), self.capabilities.join("`, `"));
        let message = format!("model `{name}` does not serve `{asked}`, it serves `{served}`");
        request.finish(Err(Error::new(Code::Unimplemented, message)));
    }
}

impl ModelBox {
    pub(super) fn leak(host: Host, spec: &ModelSpec, model: Box<dyn Model>) -> Result<*mut bp_model> {
        let describe = serde_json::to_string(&model.describe())
            .map_err(|error| Error::internal(format!("the model's description is not JSON: {error}")))?;
        let (exec_class, max_inflight, max_batch) = match model.execution() {
            Execution::Serial { max_batch } => (BP_SERIAL, 1, max_batch),
            Execution::Concurrent { max_inflight, max_batch } => (BP_CONCURRENT, max_inflight, max_batch),
            Execution::Continuous { max_inflight } => (BP_CONTINUOUS, max_inflight, 1),
        };
        let card = Arc::new(Card { name: spec.name.clone(), capabilities: spec.capabilities.clone() });
        let boxed = Box::into_raw(Box::new(ModelBox { table: bp_model::new(), host, describe, card, model }));
        // SAFETY: just made, and nobody else has it yet. `describe` does not move: it is behind the box.
        unsafe {
            (*boxed).table = bp_model {
                self_: boxed.cast(),
                exec_class,
                max_inflight: max_inflight.max(1),
                max_batch: max_batch.max(1),
                cancel_grace_ms: 5_000,
                describe_json: bp_str::new(&(*boxed).describe),
                instance_new: Some(instance_new),
                get_extension: Some(model_extension),
                close: Some(model_close),
                ..bp_model::new()
            };
            Ok(&raw mut (*boxed).table)
        }
    }
}

/// # Safety
/// `model` came from [`ModelBox::leak`] and was not closed.
unsafe fn model_of<'a>(model: *mut bp_model) -> &'a ModelBox {
    // SAFETY: the caller's promise.
    unsafe { &*(*model).self_.cast::<ModelBox>() }
}

unsafe extern "C" fn instance_new(
    model: *mut bp_model,
    placement: *const bp_placement,
    out: *mut *mut bp_instance,
    err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what model_open gave it, and a valid placement.
    let (this, placement) = unsafe { (model_of(model), bp_placement::read(placement, 0)) };
    answer(this.host, err, || {
        let placement =
            placement.ok_or_else(|| Error::internal("instance_new was called without a placement"))?;
        let seat = Seat {
            host: this.host,
            ticket: placement.ticket,
            threads: placement.threads.max(1),
            index: placement.index,
        };
        let instance = InstanceBox::leak(this.host, this.card.clone(), this.model.instance(&seat)?);
        // SAFETY: the host passes a place to write to.
        unsafe { *out = instance };
        Ok(())
    })
}

unsafe extern "C" fn model_extension(_model: *mut bp_model, id: bp_str) -> *const c_void {
    static TOKENS: bp_tokens_1 =
        bp_tokens_1 { struct_size: size_of::<bp_tokens_1>() as u32, flags: 0, count: Some(count_tokens) };
    static STATS: bp_stats_1 =
        bp_stats_1 { struct_size: size_of::<bp_stats_1>() as u32, flags: 0, read: Some(read_stats) };
    static DEVICE_INPUTS: bp_device_inputs_1 = bp_device_inputs_1 {
        struct_size: size_of::<bp_device_inputs_1>() as u32,
        flags: 0,
        takes: Some(takes),
    };
    match text(&id) {
        BP_EXT_DEVICE_INPUTS_1 => (&raw const DEVICE_INPUTS).cast(),
        BP_EXT_TOKENS_1 => (&raw const TOKENS).cast(),
        BP_EXT_STATS_1 => (&raw const STATS).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn takes(model: *mut bp_model, dev_type: i32, dev_id: i32) -> bp_code {
    // SAFETY: the host calls with what model_open gave it.
    let this = unsafe { model_of(model) };
    match guard(|| Ok(this.model.takes(Device { kind: dev_type, id: dev_id }))) {
        Ok(true) => BP_OK,
        Ok(false) | Err(_) => BP_UNIMPLEMENTED,
    }
}

unsafe extern "C" fn count_tokens(
    model: *mut bp_model,
    capability: bp_str,
    params_json: bp_str,
    tokens: *mut u64,
    err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what model_open gave it.
    let this = unsafe { model_of(model) };
    answer(this.host, err, || {
        let counted = this.model.count_tokens(text(&capability), text(&params_json))?;
        let counted =
            counted.ok_or_else(|| Error::new(Code::Unimplemented, "this model does not count tokens"))?;
        // SAFETY: the host passes a place to write to.
        unsafe { *tokens = counted };
        Ok(())
    })
}

unsafe extern "C" fn read_stats(
    model: *mut bp_model,
    ctx: *mut c_void,
    each: Option<unsafe extern "C" fn(ctx: *mut c_void, name: bp_str, value: f64)>,
) -> bp_code {
    // SAFETY: the host calls with what model_open gave it.
    let this = unsafe { model_of(model) };
    let Some(each) = each else { return BP_NULL_ARGUMENT };
    answer(this.host, 0, || {
        // SAFETY: `ctx` and `each` belong together and are valid until we return.
        this.model.stats(&mut |name, value| unsafe { each(ctx, bp_str::new(name), value) });
        Ok(())
    })
}

unsafe extern "C" fn model_close(model: *mut bp_model) {
    // SAFETY: the host calls this once, with no instance left.
    let this = unsafe { Box::from_raw((*model).self_.cast::<ModelBox>()) };
    end(this.host, "closing a model", this);
}
