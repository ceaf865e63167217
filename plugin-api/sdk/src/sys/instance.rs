//! `bp_instance`: an [`Instance`] as the host sees it.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::host::set_error;
use super::model::Card;
use super::{answer, end, guard, log};
use crate::Error;
use crate::host::{Host, Level};
use crate::plugin::{Health, Instance};
use crate::request::Request;
use backplane_abi::clock;
use backplane_abi::code::Code;
use backplane_abi::read::{self, Reader};
use backplane_abi::table::*;
use std::sync::Arc;

pub(super) struct InstanceBox {
    table: bp_instance,
    host: Host,
    card: Arc<Card>,
    instance: Box<dyn Instance>,
}

impl InstanceBox {
    pub(super) fn leak(host: Host, card: Arc<Card>, instance: Box<dyn Instance>) -> *mut bp_instance {
        let boxed = Box::into_raw(Box::new(InstanceBox { table: bp_instance::new(), host, card, instance }));
        // SAFETY: just made, and nobody else has it yet.
        unsafe {
            (*boxed).table = bp_instance {
                self_: boxed.cast(),
                submit: Some(submit),
                cancel: Some(cancel),
                health: Some(health),
                quiesce: Some(quiesce),
                destroy: Some(instance_destroy),
                ..bp_instance::new()
            };
            &raw mut (*boxed).table
        }
    }
}

/// # Safety
/// `instance` came from [`InstanceBox::leak`] and was not destroyed.
unsafe fn instance_of<'a>(instance: *mut bp_instance) -> &'a InstanceBox {
    // SAFETY: the caller's promise.
    unsafe { &*(*instance).self_.cast::<InstanceBox>() }
}

unsafe extern "C" fn submit(
    instance: *mut bp_instance,
    requests: *const bp_request,
    n: u32,
    stride: u32,
    _err: bp_err,
) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    if requests.is_null() || (stride as usize) < 8 {
        return BP_BAD_STRUCT;
    }
    let mut taken = Vec::with_capacity(n as usize);
    for row in 0..n as usize {
        // SAFETY: n rows at this stride, says the header; each begins with its size.
        let raw = unsafe { read::known(requests.byte_add(row * stride as usize), Reader::Strict) };
        match raw {
            Ok(raw) => taken.push(Request { raw, host: this.host, finished: false }),
            Err(_refused) => {
                // An error leaves every request with the host, so none may be finished by its Drop.
                taken.iter_mut().for_each(|request| request.finished = true);
                return BP_BAD_STRUCT;
            }
        }
    }
    // From here on every request is finished, by the instance or by its Drop: the answer is OK even after a panic.
    if let Err(error) = guard(|| {
        let foreign = taken.extract_if(.., |request| !this.card.serves(request.capability()));
        foreign.for_each(|request| this.card.refuse(request));
        if !taken.is_empty() {
            this.instance.submit(taken);
        }
        Ok(())
    }) {
        log(this.host, Level::Error, &format!("submit: {error}"));
    }
    BP_OK
}

unsafe extern "C" fn cancel(instance: *mut bp_instance, request: bp_req) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    answer(this.host, 0, || {
        this.instance.cancel(request);
        Ok(())
    })
}

unsafe extern "C" fn health(instance: *mut bp_instance, state: *mut i32, err: bp_err) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    answer(this.host, err, || {
        let (raw, why) = match this.instance.health() {
            Health::Ready => (BP_HEALTH_READY, None),
            Health::Degraded(why) => (BP_HEALTH_DEGRADED, Some(why)),
            Health::NotReady(why) => (BP_HEALTH_NOT_READY, Some(why)),
            Health::Failed(why) => (BP_HEALTH_FAILED, Some(why)),
        };
        // SAFETY: the host passes a place to write to.
        unsafe { *state = raw };
        if let Some(why) = why {
            set_error(this.host, err, &Error::new(Code::Unavailable, why));
        }
        Ok(())
    })
}

unsafe extern "C" fn quiesce(instance: *mut bp_instance, deadline_ns: i64) -> bp_code {
    // SAFETY: the host calls with what instance_new gave it.
    let this = unsafe { instance_of(instance) };
    answer(this.host, 0, || {
        if this.instance.quiesce(clock::instant(deadline_ns)) {
            Ok(())
        } else {
            Err(Error::new(Code::DeadlineExceeded, "requests are still open"))
        }
    })
}

unsafe extern "C" fn instance_destroy(instance: *mut bp_instance) {
    // SAFETY: the host calls this once, with no request open.
    let this = unsafe { Box::from_raw((*instance).self_.cast::<InstanceBox>()) };
    end(this.host, "destroying an instance", this);
}
