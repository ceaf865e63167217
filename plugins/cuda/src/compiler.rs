//! Finding NVRTC, and compiling kernels with it. Neither needs a GPU.

use crate::gpu::Program;
use crate::settings::Settings;
use crate::sys::{Failure, Form, Nvrtc};
use backplane_plugin::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a person does about a missing compiler.
const ADVICE: &str = "`backplane pull nvrtc` installs one";
/// Of a compiler's log, in bytes: what is wrong stands at its beginning.
const LOG: usize = 4000;

/// What every device in use takes as PTX.
const OLDEST: &str = "--gpu-architecture=compute_75";

/// A program as a driver takes it.
#[derive(Debug, PartialEq)]
pub enum Image {
    /// Machine code of one device.
    Machine(Vec<u8>),
    /// What the driver compiles itself.
    Ptx(String),
}

/// NVRTC as one host sees it.
pub struct Compiler {
    settings: Settings,
    loaded: Mutex<Option<Arc<Nvrtc>>>,
}

impl Compiler {
    /// Loads nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings, loaded: Mutex::new(None) }
    }

    /// Whether there is one, as far as can be told without loading it.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn check(&self) -> Result<()> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if loaded || self.find().is_ok_and(|found| found.is_some()) || system().is_some() {
            return Ok(());
        }
        Err(missing(&self.find().err().unwrap_or_else(|| "it is not installed".to_owned())))
    }

    /// Machine code of a program for devices of this compute capability: `(9, 0)`.
    ///
    /// # Errors
    /// What is wrong with the source, with file and line; or that there is no compiler.
    pub fn compile(&self, program: &Program, (major, minor): (i32, i32)) -> Result<Vec<u8>> {
        let target = format!("--gpu-architecture=sm_{major}{minor}");
        self.make(program, target, Form::Machine, &format!("compute capability {major}.{minor}"))
    }

    /// Compiles a program that cannot run here, to see whether it could: what it became, in words.
    ///
    /// # Errors
    /// As [`Compiler::compile`]; a function that is to be launched and is not there.
    pub fn trial(&self, program: &Program, (major, minor): (i32, i32)) -> Result<String> {
        let code = self.compile(program, (major, minor))?;
        for entry in &program.entries {
            let symbol = format!(".text.{entry}\0");
            if !code.windows(symbol.len()).any(|window| window == symbol.as_bytes()) {
                let message = format!("the kernel has no function `{entry}`, which its card launches");
                return Err(Error::model_invalid(message));
            }
        }
        let (nvrtc, minor_version) = self.load()?.version();
        let bytes = code.len();
        Ok(format!("NVRTC {nvrtc}.{minor_version} for compute capability {major}.{minor} ({bytes} bytes)"))
    }

    /// A program for every device, for where there is no compiler.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn ptx(&self, program: &Program) -> Result<String> {
        let mut text = self.make(program, OLDEST.to_owned(), Form::Ptx, "PTX")?;
        while text.last() == Some(&0) {
            text.pop();
        }
        String::from_utf8(text).map_err(|_| Error::internal("NVRTC's PTX is not text"))
    }

    /// What a device of this compute capability is given: code compiled now, or beforehand where there is no compiler for it.
    ///
    /// # Errors
    /// As [`Compiler::compile`], where nothing was compiled beforehand.
    pub fn image(&self, program: &Program, capability: (i32, i32)) -> Result<Image> {
        match (self.compile(program, capability), &program.ptx) {
            (Err(error), Some(ptx)) if error.reason.as_deref() == Some("runtime_missing") => {
                Ok(Image::Ptx(ptx.clone()))
            }
            (compiled, _) => compiled.map(Image::Machine),
        }
    }

    fn make(&self, program: &Program, target: String, form: Form, whom: &str) -> Result<Vec<u8>> {
        let nvrtc = self.load()?;
        let mut options = vec![target, "--std=c++17".to_owned()];
        options.extend(program.defines.iter().map(|(name, value)| format!("--define-macro={name}={value}")));
        nvrtc.compile(&program.source, &program.name, &options, form).map_err(|failure| match failure {
            Failure::Source(log) => {
                Error::model_invalid(format!("the kernel does not compile: {}", beginning(&log)))
            }
            Failure::Compiler(what) => {
                let (nvrtc_major, nvrtc_minor) = nvrtc.version();
                let message = format!("NVRTC {nvrtc_major}.{nvrtc_minor} cannot compile for {whom}: {what}");
                Error::new(Code::FailedPrecondition, message).with_reason("runtime_missing")
            }
        })
    }

    fn load(&self) -> Result<Arc<Nvrtc>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nvrtc) = &*loaded {
            return Ok(nvrtc.clone());
        }
        let path = match self.find().map_err(|why| missing(&why))? {
            Some(path) => path,
            None => system().ok_or_else(|| missing("it is not installed"))?.to_owned(),
        };
        let nvrtc =
            Nvrtc::load(&path).map_err(|why| missing(&why.replace(&*path.to_string_lossy(), "it")))?;
        Ok(loaded.insert(Arc::new(nvrtc)).clone())
    }

    /// The library that the configuration names, or the newest that was pulled.
    fn find(&self) -> Result<Option<PathBuf>, String> {
        if let Some(path) = &self.settings.nvrtc {
            let found = library(path);
            return found
                .map(Some)
                .ok_or_else(|| "there is none where the plugin's setting `nvrtc` points".to_owned());
        }
        let Some(runtimes) = &self.settings.runtimes else { return Ok(None) };
        let mut versions: Vec<(Vec<u64>, PathBuf)> = std::fs::read_dir(runtimes.join("nvrtc"))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let version = path.file_name()?.to_string_lossy().into_owned();
                Some((version.split('.').map(|part| part.parse().unwrap_or(0)).collect(), path))
            })
            .collect();
        versions.sort();
        Ok(versions.into_iter().rev().find_map(|(_, folder)| library(&folder)))
    }
}

/// The library at `path`: the file itself, or the one in a folder.
fn library(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so")))
        .collect();
    files.sort();
    files.pop()
}

/// The system's, by the name that the linker finds it under. Looked for once: it loads what it finds.
fn system() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    let find = || names.into_iter().map(PathBuf::from).find(|name| Nvrtc::load(name).is_ok());
    FOUND.get_or_init(find).as_deref()
}

fn missing(why: &str) -> Error {
    Error::new(Code::FailedPrecondition, format!("NVRTC cannot be used: {why}; {ADVICE}"))
        .with_reason("runtime_missing")
}

/// The beginning of a log, whole lines.
fn beginning(log: &str) -> &str {
    let log = log.trim();
    let Some(cut) = log.get(..log.floor_char_boundary(LOG)).filter(|cut| cut.len() < log.len()) else {
        return log;
    };
    cut.rsplit_once('\n').map_or(cut, |(whole, _)| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulled_library_is_found_newest_first_and_a_named_one_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        put("nvrtc/12.9.86/libnvrtc-builtins.so.12.9");
        put("nvrtc/12.9.86/libnvrtc.so.12");
        let newest = put("nvrtc/12.10.1/libnvrtc.so.12");
        let runtimes = Some(folder.path().to_owned());
        let find = |nvrtc| {
            Compiler::new(Settings { nvrtc, runtimes: runtimes.clone(), ..Settings::default() }).find()
        };
        assert_eq!(find(None), Ok(Some(newest)));
        let named = folder.path().join("nvrtc/12.9.86");
        assert_eq!(find(Some(named.clone())), Ok(Some(named.join("libnvrtc.so.12"))));
        assert!(find(Some(folder.path().join("gone"))).unwrap_err().contains("`nvrtc` points"));
    }

    #[test]
    fn a_long_log_is_cut_at_a_line() {
        assert_eq!(beginning(" one\ntwo\n"), "one\ntwo");
        let long = "twelve bytes\n".repeat(1000);
        assert!(beginning(&long).len() <= LOG && beginning(&long).ends_with("twelve bytes"));
    }
}
