//! The two things llama-cpp-2 keeps to itself: how many threads a step may use, and where llama.cpp's log goes.
#![expect(unsafe_code, reason = "the plugin's one module that calls C directly")]

use llama_cpp_2::context::LlamaContext;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Sets a context's thread counts before each step, so that a step uses what the host granted for it.
#[derive(Debug)]
pub struct Threads {
    context: *mut llama_cpp_sys_2::llama_context,
    set: u32,
}

// SAFETY: the pointer is only used by `set`, which takes the context it belongs to by `&mut`.
unsafe impl Send for Threads {}

impl Threads {
    /// `threads`: the number the context was made with, for both kinds of step.
    ///
    /// `None` when the pointer cannot be learnt; the context then keeps the threads it was made with.
    pub fn of(context: &LlamaContext<'_>, threads: u32) -> Option<Self> {
        // llama-cpp-2 0.1.160 (the version is pinned) gives the pointer to nobody, but prints it: `LlamaContext {
        // context: 0x… }`. Formatting a pointer exposes its provenance, so it may be made again from the number.
        let printed = format!("{context:?}");
        let digits = printed.split("0x").nth(1)?;
        let digits = &digits[..digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len())];
        let address = usize::from_str_radix(digits, 16).ok()?;
        let context_ptr = std::ptr::with_exposed_provenance_mut::<llama_cpp_sys_2::llama_context>(address);
        // SAFETY: the address is that of the live context, as printed by the crate that owns it; reading a count
        // from it has no effect. The comparison catches a crate that prints something else that is readable.
        let reads_back = unsafe { llama_cpp_sys_2::llama_n_ctx(context_ptr) } == context.n_ctx();
        reads_back.then_some(Self { context: context_ptr, set: threads })
    }

    /// Uses so many threads from the next step on. `context` must be the one this was made of.
    pub fn set(&mut self, context: &mut LlamaContext<'_>, threads: u32) {
        if self.set == threads {
            return;
        }
        self.set = threads;
        let threads = i32::try_from(threads).unwrap_or(1).max(1);
        // SAFETY: `context` is the one this was made of and is borrowed, so it lives and no step is running.
        unsafe { llama_cpp_sys_2::llama_set_n_threads(self.context, threads, threads) };
        debug_assert!(context.n_ctx() > 0);
    }
}

/// How much a line of llama.cpp's log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// It failed.
    Error,
    /// It went on.
    Warn,
    /// What a model is and what memory it takes.
    Info,
}

/// What is passed on of the lines that llama.cpp calls information, two hundred for each model: those that say what
/// a model is and what memory it takes.
const TELLING: [&str; 6] = ["file type", "model type", "model params", "buffer size", "n_ctx ", "offloaded"];

/// How its complaints about a grammar begin. A grammar is a caller's, and so is the mistake: the caller is told, and for
/// who runs the host it is no error. None of them quotes it; those that would, `gbnf` and `pattern` prevent.
const CALLERS: [&str; 4] =
    ["invalid grammar", "unsupported grammar", "failed to parse grammar", "grammar does not contain"];

/// What it warns of and need not: the context is shared by several sequences, and each is kept within what the model was
/// trained for.
const NO_CONCERN: [&str; 1] = ["possible training context overflow"];

/// Takes a line of llama.cpp's log, from any thread.
pub type LogSink = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

static LOG: OnceLock<LogSink> = OnceLock::new();
static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Sends llama.cpp's log to `sink` instead of stderr. The first caller's sink stays.
pub fn route_log(sink: LogSink) {
    let _ = LOG.set(sink);
    // SAFETY: the callback is a function of this library, which is never unloaded, and uses no user data.
    unsafe {
        llama_cpp_sys_2::llama_log_set(Some(on_log), std::ptr::null_mut());
        llama_cpp_sys_2::ggml_log_set(Some(on_log), std::ptr::null_mut());
    }
}

/// The error lines since the last call: llama.cpp says only there why a file cannot be loaded.
pub fn take_errors() -> Vec<String> {
    std::mem::take(&mut *ERRORS.lock().unwrap_or_else(PoisonError::into_inner))
}

unsafe extern "C" fn on_log(level: llama_cpp_sys_2::ggml_log_level, text: *const c_char, _: *mut c_void) {
    let level = match level {
        llama_cpp_sys_2::GGML_LOG_LEVEL_ERROR => LogLevel::Error,
        llama_cpp_sys_2::GGML_LOG_LEVEL_WARN => LogLevel::Warn,
        llama_cpp_sys_2::GGML_LOG_LEVEL_INFO => LogLevel::Info,
        // Every tensor and token by name; continuations are progress dots and tables.
        _ => return,
    };
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a zero-terminated text that lives for this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let line = text.trim();
    let callers = CALLERS.iter().any(|begin| line.starts_with(begin));
    if line.is_empty()
        || callers
        || NO_CONCERN.iter().any(|said| line.contains(said))
        || level == LogLevel::Info && !TELLING.iter().any(|told| line.contains(told))
    {
        return;
    }
    // A panic must not unwind into C.
    let _ = std::panic::catch_unwind(|| {
        if level == LogLevel::Error {
            let mut errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
            if errors.len() < 16 {
                errors.push(line.to_owned());
            }
        }
        if let Some(sink) = LOG.get() {
            sink(level, line);
        }
    });
}
