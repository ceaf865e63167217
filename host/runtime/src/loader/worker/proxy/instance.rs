//! The table of an instance in a worker.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::super::link::{Link, Lost, Returned};
use super::super::process::Why;
use super::model::Model;
use super::submit::submit;
use super::{PROMPT, Said, UNAVAILABLE, number, report};
use backplane_abi::clock;
use backplane_abi::table::*;
use backplane_abi::worker::{Call, Channel, Placement, Value};
use parking_lot::Mutex;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Instance {
    table: bp_instance,
    /// Not closed before its instances are destroyed.
    pub(super) model: &'static Model,
    placement: Placement,
    /// Never held for long: whoever is told that a caller left, or ends what is stuck, does not wait for a worker's start.
    seat: Mutex<Arc<Seat>>,
    /// Held while it is made again, by one of those that need it.
    revival: Mutex<()>,
}

/// Where an instance is.
pub(super) struct Seat {
    pub(super) link: Arc<Link>,
    pub(super) id: u64,
    /// Made, called and destroyed here, so that it is always the same thread of the worker; of a SERIAL one only, for the
    /// others have many callers.
    lane: Option<Channel>,
}

impl Seat {
    pub(super) fn call(&self, call: &Call<'_>, limit: Option<Duration>) -> Result<Returned, Lost> {
        match &self.lane {
            Some(lane) => self.link.call_on(lane, call, limit),
            None => self.link.call(call, limit),
        }
    }
}

/// Makes an instance in a worker; in the place of one that was in `gone`.
fn seat(model: &Model, placement: Placement, gone: Option<&Link>) -> Result<(Seat, Returned), Said> {
    let link = model.plugin.link_for_instance(gone)?;
    let made = seat_in(model, placement, link.clone());
    if !made.as_ref().is_ok_and(|(_, returned)| returned.read().code == BP_OK) {
        model.plugin.leave(&link);
    }
    made
}

fn seat_in(model: &Model, placement: Placement, link: Arc<Link>) -> Result<(Seat, Returned), Said> {
    let id = number();
    model.open_in(&link)?;
    let lost = |_| model.plugin.lost(&link, "making an instance");
    let lane = link.lane().map_err(lost)?;
    let limit = model.plugin.launch.open_limit.get();
    let new = Call::New { model: model.id, instance: id, placement };
    let returned = link.call_on(&lane, &new, Some(limit)).map_err(lost)?;
    let lane = if model.table.exec_class == BP_SERIAL {
        Some(lane)
    } else {
        link.give_back(lane);
        None
    };
    Ok((Seat { link, id, lane }, returned))
}

pub(super) unsafe extern "C" fn instance_new(
    model: *mut bp_model,
    placement: *const bp_placement,
    out: *mut *mut bp_instance,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table, which is not closed before its instances are destroyed; a placement valid until we return.
    let (model, raw) = unsafe { (&*(*model).self_.cast::<Model>(), bp_placement::view(placement)) };
    let (Some(raw), false) = (raw, out.is_null()) else { return BP_NULL_ARGUMENT };
    let placement = Placement {
        struct_size: raw.struct_size,
        flags: raw.flags,
        ticket: raw.ticket,
        dev_type: raw.dev_type,
        dev_id: raw.dev_id,
        threads: raw.threads,
        index: raw.index,
    };
    let plugin = model.plugin;
    let (seat, returned) = match seat(model, placement, None) {
        Ok(made) => made,
        Err(said) => return plugin.fail(err, &said),
    };
    let returned = returned.read();
    let code = report(&plugin.host, err, &returned);
    let Value::Instance { struct_size, flags, functions } = returned.value else {
        return if code == BP_OK { BP_BAD_STRUCT } else { code };
    };
    let has = |bit: u8| functions & 1 << bit != 0;
    let instance = Box::leak(Box::new(Instance {
        table: bp_instance {
            struct_size: struct_size.min(size_of::<bp_instance>() as u32),
            flags,
            submit: has(0).then_some(submit as _),
            // Always there: the worker is told of a caller who left, whether or not its plugin wants to hear.
            cancel: Some(cancel),
            health: has(2).then_some(health as _),
            quiesce: has(3).then_some(quiesce as _),
            get_extension: Some(instance_extension),
            destroy: has(5).then_some(destroy as _),
            ..bp_instance::new()
        },
        model,
        placement,
        seat: Mutex::new(Arc::new(seat)),
        revival: Mutex::default(),
    }));
    instance.table.self_ = (&raw mut *instance).cast();
    // SAFETY: not null, and a place to write to. Given back in `destroy`.
    unsafe { *out = &raw mut instance.table };
    code
}

impl Instance {
    /// # Safety
    /// `instance` is a table that `instance_new` made and `destroy` has not ended.
    pub(super) unsafe fn of<'a>(instance: *mut bp_instance) -> &'a Instance {
        // SAFETY: the caller's promise; `self_` was set by `instance_new`.
        unsafe { &*(*instance).self_.cast::<Instance>() }
    }

    /// Where it is; made again when its worker died.
    pub(super) fn seat(&self) -> Result<Arc<Seat>, Said> {
        if let Some(seat) = self.alive() {
            return Ok(seat);
        }
        let _alone = self.revival.lock();
        let gone = self.seat.lock().clone();
        if !gone.link.is_dead() {
            return Ok(gone);
        }
        let (seat, returned) = seat(self.model, self.placement, Some(&gone.link))?;
        let code = returned.read().code;
        if code != BP_OK {
            return Err(Said::new(code, "the instance could not be made again", "worker_crashed"));
        }
        let seat = Arc::new(seat);
        *self.seat.lock() = seat.clone();
        Ok(seat)
    }

    /// Where it is, if its worker lives.
    pub(super) fn alive(&self) -> Option<Arc<Seat>> {
        Some(self.seat.lock().clone()).filter(|seat| !seat.link.is_dead())
    }
}

unsafe extern "C" fn cancel(instance: *mut bp_instance, request: bp_req) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    if let Some(seat) = this.alive() {
        seat.link.cancel(request);
    }
    BP_OK
}

unsafe extern "C" fn health(instance: *mut bp_instance, state: *mut i32, err: bp_err) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    let plugin = this.model.plugin;
    if state.is_null() {
        return BP_NULL_ARGUMENT;
    }
    let returned = this.alive().map(|seat| seat.link.call(&Call::Health { instance: seat.id }, Some(PROMPT)));
    let Some(Ok(returned)) = returned else {
        // SAFETY: not null, and a place to write to.
        unsafe { *state = BP_HEALTH_DEGRADED };
        plugin.fail(
            err,
            &Said::new(UNAVAILABLE, "its worker died; the next request starts it again", "worker_crashed"),
        );
        return BP_OK;
    };
    let returned = returned.read();
    if let Value::State { state: said } = returned.value {
        // SAFETY: as above.
        unsafe { *state = said };
    }
    report(&plugin.host, err, &returned)
}

unsafe extern "C" fn quiesce(instance: *mut bp_instance, deadline_ns: i64) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    let Some(seat) = this.alive() else { return BP_OK };
    let limit = clock::instant(deadline_ns).map(|deadline| {
        // It is to return by then, and a busy machine may take a moment longer.
        deadline.saturating_duration_since(Instant::now()) + PROMPT
    });
    let quiesced = seat.link.call(&Call::Quiesce { instance: seat.id, deadline_ns }, limit);
    // What is gone is idle.
    quiesced.map_or(BP_OK, |returned| returned.read().code)
}

unsafe extern "C" fn instance_extension(_instance: *mut bp_instance, _id: bp_str) -> *const c_void {
    // None is known that an instance would have.
    std::ptr::null()
}

/// Ends the worker that this instance is in, if it is in one: what hangs in a process of its own need not be left to it.
pub fn end(instance: *mut bp_instance, known: &bp_instance) {
    // Only a table of ours has this function, whatever a plugin says of itself.
    let ours = known.submit.is_some_and(|function| std::ptr::fn_addr_eq(function, submit as SubmitFn));
    // SAFETY: our table, by its function.
    let seat = if ours { unsafe { Instance::of(instance) }.alive() } else { None };
    if let Some(seat) = seat {
        seat.link.kill(Why::Stuck);
    }
}

type SubmitFn = unsafe extern "C" fn(*mut bp_instance, *const bp_request, u32, u32, bp_err) -> bp_code;

unsafe extern "C" fn destroy(instance: *mut bp_instance) {
    // SAFETY: our table, which nobody uses after this call.
    let this = unsafe { Box::from_raw((*instance).self_.cast::<Instance>()) };
    let seat = this.seat.into_inner();
    let limit = this.model.plugin.launch.open_limit.get();
    let _lost = seat.call(&Call::Destroy { instance: seat.id }, Some(limit));
    this.model.plugin.leave(&seat.link);
    if let Some(Seat { link, lane: Some(lane), .. }) = Arc::into_inner(seat) {
        link.give_back(lane);
    }
}
