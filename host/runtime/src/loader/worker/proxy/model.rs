//! The table of a model in a worker.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::super::link::Link;
use super::instance::instance_new;
use super::plugin::{Proxy, owned};
use super::{PROMPT, Said, number, report, text};
use backplane_abi::table::*;
use backplane_abi::worker::{Call, Value};
use parking_lot::Mutex;
use std::ffi::c_void;
use std::sync::Arc;

pub(super) struct Model {
    pub(super) table: bp_model,
    pub(super) plugin: &'static Proxy,
    json: Vec<u8>,
    describe: Vec<u8>,
    functions: u8,
    /// Its number, in whatever worker.
    pub(super) id: u64,
    /// Held while it is opened in a worker.
    opening: Mutex<()>,
}

pub(super) unsafe extern "C" fn model_open(
    plugin: *mut bp_plugin,
    model_json: bp_str,
    out: *mut *mut bp_model,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table, which is never freed; text valid until we return.
    let (plugin, json) = unsafe { (Proxy::of(plugin), owned(model_json)) };
    if out.is_null() {
        return BP_NULL_ARGUMENT;
    }
    let link = match plugin.link() {
        Ok(link) => link,
        Err(said) => return plugin.fail(err, &said),
    };
    let id = number();
    let limit = plugin.launch.open_limit.get();
    let Ok(returned) = link.call(&Call::Open { model: id, json: &json }, Some(limit)) else {
        return plugin.fail(err, &plugin.lost(&link, "opening a model"));
    };
    let returned = returned.read();
    let code = report(&plugin.host, err, &returned);
    let Value::Model {
        struct_size,
        flags,
        exec_class,
        max_inflight,
        max_batch,
        cancel_grace_ms,
        describe,
        functions,
    } = returned.value
    else {
        return if code == BP_OK { BP_BAD_STRUCT } else { code };
    };
    let has = |bit: u8| functions & 1 << bit != 0;
    let model = Box::leak(Box::new(Model {
        table: bp_model {
            struct_size: struct_size.min(size_of::<bp_model>() as u32),
            flags,
            exec_class,
            max_inflight,
            max_batch,
            cancel_grace_ms,
            instance_new: has(0).then_some(instance_new as _),
            get_extension: has(1).then_some(model_extension as _),
            close: has(2).then_some(close as _),
            ..bp_model::new()
        },
        plugin,
        json,
        describe: describe.to_vec(),
        functions,
        id,
        opening: Mutex::default(),
    }));
    link.models.lock().insert(id);
    model.table.describe_json = text(&model.describe);
    model.table.self_ = (&raw mut *model).cast();
    // SAFETY: not null, and a place to write to. Given back in `close`.
    unsafe { *out = &raw mut model.table };
    code
}

impl Model {
    /// # Safety
    /// `model` is a table that `model_open` made and `close` has not ended.
    unsafe fn of<'a>(model: *mut bp_model) -> &'a Model {
        // SAFETY: the caller's promise; `self_` was set by `model_open`.
        unsafe { &*(*model).self_.cast::<Model>() }
    }

    /// Sees to it that it is open in this worker.
    pub(super) fn open_in(&self, link: &Link) -> Result<(), Said> {
        let _alone = self.opening.lock();
        if link.models.lock().contains(&self.id) {
            return Ok(());
        }
        let returned = link
            .call(&Call::Open { model: self.id, json: &self.json }, Some(self.plugin.launch.open_limit.get()))
            .map_err(|_| self.plugin.lost(link, "opening a model"))?;
        let returned = returned.read();
        if returned.code != BP_OK {
            let message = returned.error.map_or_else(
                || format!("code {}", returned.code),
                |error| String::from_utf8_lossy(error.message).into_owned(),
            );
            let message = format!("the model could not be opened in another worker: {message}");
            return Err(Said::new(returned.code, message, ""));
        }
        link.models.lock().insert(self.id);
        Ok(())
    }

    /// The plugin's worker, if it lives and has this model.
    fn alive(&self) -> Option<Arc<Link>> {
        self.plugin.alive().filter(|link| link.models.lock().contains(&self.id))
    }
}

unsafe extern "C" fn model_extension(model: *mut bp_model, id: bp_str) -> *const c_void {
    static TOKENS: bp_tokens_1 =
        bp_tokens_1 { struct_size: size_of::<bp_tokens_1>() as u32, flags: 0, count: Some(count) };
    static STATS: bp_stats_1 =
        bp_stats_1 { struct_size: size_of::<bp_stats_1>() as u32, flags: 0, read: Some(stats) };
    // SAFETY: our table; an id valid until we return.
    let (this, id) = unsafe { (Model::of(model), id.text()) };
    match id {
        Some(BP_EXT_TOKENS_1) if this.functions & 1 << 3 != 0 => (&raw const TOKENS).cast(),
        Some(BP_EXT_STATS_1) if this.functions & 1 << 4 != 0 => (&raw const STATS).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn count(
    model: *mut bp_model,
    capability: bp_str,
    params_json: bp_str,
    tokens: *mut u64,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table; texts valid until we return.
    let (this, capability, params) = unsafe { (Model::of(model), capability.bytes(), params_json.bytes()) };
    if tokens.is_null() {
        return BP_NULL_ARGUMENT;
    }
    // Who cannot count now is asked to do without.
    let Some(link) = this.alive() else { return BP_UNIMPLEMENTED };
    let Ok(returned) = link.call(&Call::Count { model: this.id, capability, params }, Some(PROMPT)) else {
        return this.plugin.fail(err, &this.plugin.lost(&link, "counting tokens"));
    };
    let returned = returned.read();
    if let Value::Tokens { tokens: counted } = returned.value {
        // SAFETY: not null, and a place to write to.
        unsafe { *tokens = counted };
    }
    report(&this.plugin.host, err, &returned)
}

unsafe extern "C" fn stats(
    model: *mut bp_model,
    ctx: *mut c_void,
    each: Option<unsafe extern "C" fn(ctx: *mut c_void, name: bp_str, value: f64)>,
) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Model::of(model) };
    let (Some(each), Some(link)) = (each, this.alive()) else { return BP_OK };
    if let Ok(returned) = link.call(&Call::Stats { model: this.id }, Some(PROMPT))
        && let Value::Figures { figures } = returned.read().value
    {
        for figure in figures {
            // SAFETY: the host's callback with its ctx; the name is valid until it returns.
            unsafe { each(ctx, text(figure.name), figure.value) };
        }
    }
    BP_OK
}

unsafe extern "C" fn close(model: *mut bp_model) {
    // SAFETY: our table, which nobody uses after this call.
    let this = unsafe { Box::from_raw((*model).self_.cast::<Model>()) };
    if let Some(link) = this.alive() {
        link.models.lock().remove(&this.id);
        let _lost = link.call(&Call::Close { model: this.id }, Some(this.plugin.launch.open_limit.get()));
    }
}
