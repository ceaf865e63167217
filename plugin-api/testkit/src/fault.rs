//! What a plugin can do wrong to its host, as the test host sees it.

use std::fmt;

/// A misuse of the host's table. The host answered with an error and nothing happened; a plugin that meets the header
/// never causes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request was finished before: a second `finish`, or a `push` or `out_alloc` after it.
    AfterFinish {
        /// The host function.
        function: &'static str,
    },
    /// A handle that this host never gave.
    UnknownHandle {
        /// The host function.
        function: &'static str,
    },
    /// A buffer of which the plugin has no reference left.
    StaleBuffer {
        /// The host function.
        function: &'static str,
    },
    /// `set_error` with the handle of a call that has returned.
    StaleError,
    /// A null pointer where the header asks for something.
    Null {
        /// The host function.
        function: &'static str,
        /// What was null.
        argument: &'static str,
    },
    /// A struct that is too small, or carries a required flag.
    BadStruct {
        /// The host function.
        function: &'static str,
        /// Which struct.
        what: &'static str,
    },
    /// Text that is not UTF-8, or not the JSON object it should be.
    BadText {
        /// The host function.
        function: &'static str,
        /// Which text, and what is wrong with it.
        what: String,
    },
    /// A tensor whose parts do not fit together.
    BadTensor {
        /// The host function.
        function: &'static str,
        /// Its name, and what is wrong with it.
        what: String,
    },
    /// A buffer whose content changed after it was pushed.
    ChangedAfterPush,
    /// An error code that is none.
    BadCode(i32),
    /// A confidence that is none.
    BadConfidence,
    /// `submit` refused the requests and finished one of them all the same.
    FinishedARefusedRequest,
    /// Requests that were taken and not finished in time.
    Unfinished(usize),
    /// Buffers that were not released by the end.
    BuffersKept(usize),
    /// CPU threads that were not given back by the end.
    ThreadsKept(u32),
    /// More CPU threads given back than were granted, or with a ticket that is not alive.
    BadRelease,
}

impl Fault {
    /// Where `backplane.h` says so.
    pub fn rule(&self) -> &'static str {
        match self {
            Fault::AfterFinish { .. } => {
                "bp_host.finish: \"Ends the request, exactly once, after which its handles, its memory and its \
                 cancel word are gone\""
            }
            Fault::UnknownHandle { .. } => {
                "Ownership: \"a stale or invented handle is answered with BP_STALE_HANDLE and changes nothing\""
            }
            Fault::StaleBuffer { .. } => "bp_host.buf_release: \"One reference more, one less\"",
            Fault::StaleError => {
                "bp_err: \"where a call that can fail leaves its reason; valid until that call returns\""
            }
            Fault::Null { .. } => "BP_NULL_ARGUMENT: \"the ABI was misused and nothing happened\"",
            Fault::BadStruct { .. } => {
                "Rules, 1: \"The writer sets struct_size to the sizeof it was compiled with\""
            }
            Fault::BadText { .. } => "bp_str: \"UTF-8 text\"; the comment of the member says what it holds",
            Fault::BadTensor { .. } => {
                "bp_tensor: \"nbytes is the size of the data behind data+byte_offset\", \"ndim values >= 0\""
            }
            Fault::ChangedAfterPush => "bp_host.push: \"a tensor with a buffer is retained\", not copied",
            Fault::BadCode(_) => "bp_error.code: \"1..16 are the canonical codes of gRPC\"",
            Fault::BadConfidence => {
                "bp_done.confidence: \"0..1 that the answer is right\"; negative: not known"
            }
            Fault::FinishedARefusedRequest => {
                "bp_instance.submit: \"Any other code: none is, and the host keeps them\""
            }
            Fault::Unfinished(_) => {
                "bp_instance.submit: \"all of them are now the plugin's, each to be finished exactly once\""
            }
            Fault::BuffersKept(_) => {
                "bp_host.out_alloc: \"The plugin owns one reference until it pushes the tensor and releases it\""
            }
            Fault::ThreadsKept(_) | Fault::BadRelease => {
                "bp_compute_1.release: \"Gives granted threads back\", as many as were granted"
            }
        }
    }

    /// What would put it right.
    pub fn advice(&self) -> &'static str {
        match self {
            Fault::AfterFinish { .. } => "call `finish` once, as the last thing, and forget the sink",
            Fault::UnknownHandle { .. } => "pass the handles as they came, to the host they came from",
            Fault::StaleBuffer { .. } => "release each buffer as often as it was allocated or retained",
            Fault::StaleError => "call `set_error` before the function that was given `err` returns",
            Fault::Null { .. } => "pass what the header asks for",
            Fault::BadStruct { .. } => "zero the struct and set `struct_size = sizeof(it)` before filling it",
            Fault::BadText { .. } => "write UTF-8, a whole JSON object, and its exact length",
            Fault::BadTensor { .. } => "fill dtype, shape, data and nbytes so that they agree",
            Fault::ChangedAfterPush => "take a new buffer for the next piece",
            Fault::BadCode(_) => "use one of BP_CANCELLED to BP_UNAUTHENTICATED",
            Fault::BadConfidence => "give a number between 0 and 1, or -1",
            Fault::FinishedARefusedRequest => {
                "check all requests before taking any; a bad one among good ones is finished with its error"
            }
            Fault::Unfinished(_) => "finish every request, with an error where nothing better is known",
            Fault::BuffersKept(_) => "release every buffer after the push, also when the push is refused",
            Fault::ThreadsKept(_) | Fault::BadRelease => "pair each `acquire` with one `release`",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::AfterFinish { function } => {
                write!(f, "`{function}` for a request that was finished before")
            }
            Fault::UnknownHandle { function } => write!(f, "`{function}` with a handle this host never gave"),
            Fault::StaleBuffer { function } => {
                write!(f, "`{function}` with a buffer of which the plugin has no reference left")
            }
            Fault::StaleError => write!(f, "`set_error` after the call it belongs to had returned"),
            Fault::Null { function, argument } => write!(f, "`{function}` with a null `{argument}`"),
            Fault::BadStruct { function, what } => {
                write!(f, "`{function}` with a `{what}` that is too small or has an unknown required flag")
            }
            Fault::BadText { function, what } | Fault::BadTensor { function, what } => {
                write!(f, "`{function}`: {what}")
            }
            Fault::ChangedAfterPush => write!(f, "the memory of a tensor changed after it was pushed"),
            Fault::BadCode(code) => write!(f, "`finish` with the error code {code}, which is none"),
            Fault::BadConfidence => write!(f, "`finish` with a confidence that is not between 0 and 1"),
            Fault::FinishedARefusedRequest => write!(f, "`submit` refused requests and finished one of them"),
            Fault::Unfinished(count) => write!(f, "{count} request(s) were taken and not finished in time"),
            Fault::BuffersKept(count) => write!(f, "{count} buffer(s) were not released by the end"),
            Fault::ThreadsKept(count) => write!(f, "{count} granted CPU thread(s) were not given back"),
            Fault::BadRelease => write!(f, "CPU threads were given back that had not been granted"),
        }
    }
}
