//! Requests on their way into a worker.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::super::crashes::Fingerprint;
use super::super::host::{CancelWord, Content};
use super::super::link::{Lost, Open};
use super::super::process::Why;
use super::instance::Instance;
use super::plugin::Proxy;
use super::{Said, UNAVAILABLE, number, report};
use backplane_abi::table::*;
use backplane_abi::worker::{Call, Credit, Row, own_tensors};
use std::time::Instant;

pub(super) unsafe extern "C" fn submit(
    instance: *mut bp_instance,
    requests: *const bp_request,
    n: u32,
    stride: u32,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    let plugin = this.model.plugin;
    if n == 0 {
        return BP_OK;
    }
    if requests.is_null() || stride < 8 {
        return BP_BAD_STRUCT;
    }
    let suspects = |worker, had: &[Fingerprint]| plugin.crashes.lock().suspect(Instant::now(), worker, had);
    // Work that no worker has read is tried once more, on a new one.
    for attempt in 0..2 {
        let alive = this.alive();
        // It took a while, then.
        let late = attempt > 0 || alive.is_none();
        let seat = match alive.map_or_else(|| this.seat(), Ok) {
            Ok(seat) => seat,
            Err(said) => return plugin.fail(err, &said),
        };
        let mut rows = Vec::with_capacity(n as usize);
        let mut open = Vec::with_capacity(n as usize);
        let Some(credits) = (0..n).map(|_| seat.link.credit()).collect::<Option<Vec<_>>>() else {
            let message =
                format!("plugin `{}` has as many requests as one worker can have", plugin.launch.id);
            return plugin.fail(err, &Said::new(BP_RESOURCE_EXHAUSTED, message, ""));
        };
        for (row, credit) in credits.into_iter().enumerate() {
            // SAFETY: n rows at stride, valid until we return, and what they point to longer.
            let row = unsafe { read(requests.byte_add(row * stride as usize), seat.id, credit) };
            let Some((row, entry)) = row else {
                return BP_BAD_STRUCT;
            };
            if is_suspect(plugin, &entry.content) {
                let message = format!(
                    "this request crashed plugin `{}` twice, and is not given to it again for a while",
                    plugin.launch.id
                );
                let said = Said::new(BP_INVALID_ARGUMENT, message, "request_crashes_plugin");
                plugin.host.finish(entry.sink, Some(&said.failure()), b"", -1.0);
                continue;
            }
            // Nobody would look after it any more: a new worker is not for whom the old one was too long in coming back.
            if late && row.cancelled {
                let said = Said::new(BP_CANCELLED, "the caller left while the worker was started again", "");
                plugin.host.finish(entry.sink, Some(&said.failure()), b"", -1.0);
                continue;
            }
            open.push((row.id, entry));
            rows.push(row);
        }
        if rows.is_empty() {
            return BP_OK;
        }
        let ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
        if !seat.link.register(open) {
            continue;
        }
        let look = seat.link.may_look();
        match seat.call(&Call::Submit { instance: seat.id, rows, look }, None) {
            Ok(returned) => {
                let returned = returned.read();
                if returned.code == BP_OK {
                    seat.link.submitted(&ids, |had| suspects(seat.link.generation, had));
                } else {
                    seat.link.forget(&ids);
                    if returned.error.as_ref().is_some_and(|error| error.sub == BP_SUB_FATAL) {
                        seat.link.kill(Why::Broken);
                    }
                }
                return report(&plugin.host, err, &returned);
            }
            // It had them: they end with it.
            Err(Lost { sent: true }) => {
                seat.link.submitted(&ids, |had| suspects(seat.link.generation, had));
                return BP_OK;
            }
            Err(Lost { sent: false }) => seat.link.forget(&ids),
        }
    }
    plugin.fail(err, &Said::new(UNAVAILABLE, "the plugin's worker died twice in a row", "worker_crashed"))
}

/// Whether it was there for too many crashes. Its bytes are read only if it is as long as one that was.
fn is_suspect(plugin: &Proxy, content: &Content) -> bool {
    let now = Instant::now();
    let may_be = plugin.crashes.lock().may_suspect(now, content.len());
    may_be && {
        let fingerprint = content.fingerprint();
        plugin.crashes.lock().is_suspect(now, fingerprint)
    }
}

/// A request as it travels, and as the link keeps it.
///
/// # Safety
/// `row` is readable up to its `struct_size`, and what it points to is valid for `'a`.
unsafe fn read<'a>(row: *const bp_request, instance: u64, credit: Credit) -> Option<(Row<'a>, Open)> {
    // SAFETY: the caller's promise, for all of it.
    unsafe {
        let raw = bp_request::view(row)?;
        let cancel = CancelWord(raw.cancel);
        let tensors = own_tensors(raw.r#in, raw.n_in, raw.in_stride)?;
        let (capability, params) = (raw.capability.bytes(), raw.params_json.bytes());
        let data = tensors.iter().filter_map(|tensor| tensor.data.map(|data| data.bytes));
        let content = Content::new([capability, params].into_iter().chain(data));
        let row = Row {
            struct_size: raw.struct_size,
            flags: raw.flags,
            id: number(),
            capability,
            params,
            tensors,
            request_id: raw.request_id.bytes(),
            traceparent: raw.traceparent.bytes(),
            tenant: raw.tenant.bytes(),
            deadline_ns: raw.deadline_ns,
            cancelled: cancel.is_set(),
            priority: raw.priority,
            capability_version: raw.capability_version,
            credit: credit.place(),
        };
        let id = raw.request_id.lossy().into_owned();
        let open = Open::new(raw.sink, instance, cancel, id, content, credit, row.cancelled);
        Some((row, open))
    }
}
