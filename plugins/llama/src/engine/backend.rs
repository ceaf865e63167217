//! llama.cpp itself: started once, kept for the life of the library.

use backplane_plugin::Code;
use backplane_plugin::{Error, Result};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// llama.cpp, after a check that this machine can run it.
///
/// # Errors
/// `FailedPrecondition` on a processor without the instructions it was compiled for.
pub fn get() -> Result<&'static LlamaBackend> {
    static BACKEND: OnceLock<std::result::Result<LlamaBackend, String>> = OnceLock::new();
    BACKEND
        .get_or_init(|| {
            check_processor()?;
            LlamaBackend::init().map_err(|error| format!("llama.cpp cannot be started: {error}"))
        })
        .as_ref()
        .map_err(|why| Error::new(Code::FailedPrecondition, why.clone()))
}

/// llama.cpp is compiled for these; without them it would end the process with an illegal instruction.
fn check_processor() -> std::result::Result<(), String> {
    #[cfg(target_arch = "x86_64")]
    {
        let missing: Vec<&str> = [
            ("AVX", is_x86_feature_detected!("avx")),
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("F16C", is_x86_feature_detected!("f16c")),
            ("BMI2", is_x86_feature_detected!("bmi2")),
        ]
        .into_iter()
        .filter_map(|(name, present)| (!present).then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(format!(
                "this processor lacks {}, which the llama plugin was compiled for; build it for this machine",
                missing.join(", ")
            ));
        }
    }
    Ok(())
}

/// One model or context is made at a time: llama.cpp changes the model while it makes a context, and its log, where
/// the reason of a failure stands, does not say whose it is.
static MAKING: Mutex<()> = Mutex::new(());

/// Loads a model file that `gguf::Header` found sound.
///
/// # Errors
/// `model_invalid` with llama.cpp's reason.
pub fn load(backend: &LlamaBackend, path: &Path, params: &LlamaModelParams) -> Result<LlamaModel> {
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    crate::sys::take_errors();
    LlamaModel::load_from_file(backend, path, params).map_err(|error| {
        Error::model_invalid(format!("the model cannot be loaded: {}", reason(path, error.to_string())))
    })
}

/// Makes a context.
///
/// # Errors
/// `ResourceExhausted` with llama.cpp's reason, most often memory.
pub fn new_context<'m>(
    backend: &LlamaBackend,
    model: &'m LlamaModel,
    params: LlamaContextParams,
) -> Result<LlamaContext<'m>> {
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    crate::sys::take_errors();
    model.new_context(backend, params).map_err(|error| {
        let why = reason(Path::new(""), error.to_string());
        Error::new(
            Code::ResourceExhausted,
            format!("no context can be made, lower `context` or `slots`: {why}"),
        )
    })
}

/// The first thing llama.cpp complained about, without its function's name and the file's path.
fn reason(path: &Path, otherwise: String) -> String {
    let lines = crate::sys::take_errors();
    let Some(line) = lines.first() else { return otherwise };
    let line = line.split_once(": ").map_or(line.as_str(), |(_, rest)| rest);
    match path.to_str().filter(|path| !path.is_empty()) {
        Some(path) => line.replace(path, "the file"),
        None => line.to_owned(),
    }
}
