//! `bp.call/1`: a question to another capability, and the wait for its answer.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::guard;
use super::host::extension;
use super::tensor::{Lending, anywhere};
use crate::call::{Answer, AnswerTensor, Call};
use crate::device::Input;
use crate::host::Host;
use crate::{Error, Result};
use backplane_abi::clock;
use backplane_abi::code::Code;
use backplane_abi::read::{self, Reader, Str};
use backplane_abi::table::*;
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the callbacks of a call leave what came.
struct Inbox {
    host: Host,
    state: Mutex<Received>,
    done: Condvar,
}

#[derive(Default)]
struct Received {
    answer: Answer,
    /// What was wrong with a piece: the host hears only that the call is to end, the plugin hears why.
    broken: Option<Error>,
    end: Option<Result<()>>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn call(call: Call<'_>) -> Result<Answer> {
    let host = call.request.host;
    let table = extension::<bp_call_1>(host, BP_EXT_CALL_1)
        .ok_or_else(|| Error::new(Code::Unimplemented, "this host does not let plugins call each other"))?;
    let (Some(start), Some(cancel)) = (table.start, table.cancel) else {
        return Err(Error::new(Code::Unimplemented, "this host does not let plugins call each other"));
    };
    let inbox = Arc::new(Inbox { host, state: Mutex::default(), done: Condvar::default() });
    let ctx = Arc::into_raw(inbox.clone());
    let tensors = Lending::new(host, &call.tensors);
    let raw = bp_call {
        flags: if call.device { BP_CALL_DEVICE } else { 0 },
        parent: call.request.raw.id,
        capability: bp_str::new(call.capability),
        model: bp_str::new(call.model),
        params_json: bp_str::new(&call.params),
        r#in: tensors.rows.as_ptr(),
        n_in: tensors.rows.len() as u32,
        in_stride: size_of::<bp_tensor>() as u32,
        deadline_ns: clock::deadline_ns(call.deadline),
        ctx: ctx.cast_mut().cast(),
        on_chunk: Some(on_chunk),
        on_done: Some(on_done),
        ..bp_call::new()
    };
    let mut handle = 0;
    // SAFETY: a function of the host's; everything in `raw` is copied, or shared by its buffer, before it returns.
    let code = unsafe { start(host.0, &raw, &raw mut handle) };
    drop(tensors);
    if code != BP_OK {
        // SAFETY: no callback comes after an error, so the reference given away is still ours.
        drop(unsafe { Arc::from_raw(ctx) });
        let why = match code {
            BP_FAILED_PRECONDITION => "plugins call each other too deep, or this call would wait for itself",
            BP_STALE_HANDLE => "the request it is made for is finished",
            BP_UNIMPLEMENTED => "the host does not take tensors of this kind",
            _ => "the host refused the call",
        };
        let error = Error::new(Code::from_raw(code), format!("call of `{}`: {why}", call.capability));
        return Err(if code == BP_FAILED_PRECONDITION { error.with_reason("call_cycle") } else { error });
    }
    let mut state = inbox.lock();
    let mut cancelled = false;
    loop {
        if let Some(result) = state.end.take() {
            return result.map(|()| std::mem::take(&mut state.answer));
        }
        if !cancelled && call.request.is_cancelled() {
            cancelled = true;
            // SAFETY: a function of the host's.
            unsafe { cancel(host.0, handle) };
        }
        state = inbox
            .done
            .wait_timeout(state, Duration::from_millis(5))
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

unsafe extern "C" fn on_chunk(ctx: *mut c_void, chunk: *const bp_chunk) -> bp_code {
    // SAFETY: `ctx` is the Arc of `call`, alive until on_done; the chunk is valid until we return.
    let (inbox, chunk) = unsafe { (&*ctx.cast::<Inbox>(), read::chunk(chunk, Reader::Strict)) };
    let Ok(chunk) = chunk else { return BP_BAD_STRUCT };
    let taken = guard(|| {
        let json = String::from_utf8_lossy(chunk.json.bytes());
        let tensors = anywhere(inbox.host, chunk.tensors)?;
        let mut state = inbox.lock();
        if !json.is_empty() {
            state.answer.json.push(json.into_owned());
        }
        for tensor in tensors {
            match tensor {
                Input::Here(view) => state.answer.tensors.push(AnswerTensor::copy(&view)),
                Input::Device(tensor) => state.answer.on_device.push(tensor),
            }
        }
        Ok(())
    });
    match taken {
        Ok(()) => BP_OK,
        Err(error) => {
            let code = error.code as bp_code;
            inbox.lock().broken.get_or_insert(error);
            code
        }
    }
}

unsafe extern "C" fn on_done(ctx: *mut c_void, done: *const bp_done) {
    // SAFETY: `ctx` is the Arc of `call`, given away to exactly this last callback.
    let inbox = unsafe { Arc::from_raw(ctx.cast::<Inbox>()) };
    let read = guard(|| {
        let malformed = |_refused| Error::internal("the host ended the call with a malformed struct");
        // SAFETY: valid until we return.
        let done = unsafe { read::done(done, Reader::Strict) }.map_err(malformed)?;
        match done.error {
            None => Ok((done.usage_json.text().unwrap_or_default().to_owned(), done.confidence)),
            Some(error) => Err(from_raw(&error.map_err(malformed)?)),
        }
    });
    let mut state = inbox.lock();
    let end = match (state.broken.take(), read) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok((usage_json, confidence))) => {
            state.answer.model = model(&usage_json);
            state.answer.usage_json = usage_json;
            state.answer.confidence = (confidence >= 0.0).then_some(confidence);
            Ok(())
        }
    };
    state.end = Some(end);
    inbox.done.notify_all();
}

/// Who answered: the host says so beside the usage.
fn model(usage_json: &str) -> String {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Answered {
        model: String,
    }
    serde_json::from_str::<Answered>(usage_json).unwrap_or_default().model
}

fn from_raw(raw: &read::Failure<'_>) -> Error {
    let text = |text: Str<'_>| text.text().unwrap_or_default().to_owned();
    let mut error = Error::new(Code::from_raw(raw.code), text(raw.message));
    error.reason = Some(text(raw.reason)).filter(|reason| !reason.is_empty());
    error.details = serde_json::from_slice(raw.details_json.bytes()).unwrap_or_default();
    error.retry_after =
        (raw.retry_after_ms > 0).then(|| Duration::from_millis(u64::from(raw.retry_after_ms)));
    error
}
