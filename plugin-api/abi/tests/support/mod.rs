//! What the tests of the ABI share: the header's text, the compilers of this machine, and golden files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The header, as every test reads it.
pub const HEADER: &str = include_str!("../../../include/backplane.h");

/// Folder of `backplane.h`.
pub fn include_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../include")
}

/// The compilers that must agree: `cc` always, the others where they are installed. Each with the flags of one
/// language standard; the name of the language is what `-x` takes.
pub fn compilers() -> Vec<Compiler> {
    let all = [
        Compiler { program: "cc", language: "c", standard: "-std=c99" },
        Compiler { program: "gcc", language: "c", standard: "-std=c99" },
        Compiler { program: "clang", language: "c", standard: "-std=c99" },
        Compiler { program: "g++", language: "c++", standard: "-std=c++11" },
        Compiler { program: "clang++", language: "c++", standard: "-std=c++11" },
    ];
    let here: Vec<_> =
        all.into_iter().filter(|compiler| compiler.program == "cc" || compiler.exists()).collect();
    assert!(
        here.iter().any(|compiler| compiler.language == "c++"),
        "a C++ compiler is needed to check the header: install `g++` or `clang`"
    );
    here
}

/// One compiler in one language.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    pub program: &'static str,
    pub language: &'static str,
    pub standard: &'static str,
}

impl Compiler {
    fn exists(&self) -> bool {
        Command::new(self.program).arg("--version").output().is_ok_and(|output| output.status.success())
    }

    /// Runs it on `source` with every warning an error.
    pub fn compile(&self, source: &Path, flags: &[&str]) -> Output {
        Command::new(self.program)
            .args([self.standard, "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(include_dir())
            .args(flags)
            .args(["-x", self.language])
            .arg(source)
            .output()
            .unwrap_or_else(|error| panic!("`{}` cannot be started, install it: {error}", self.program))
    }
}

/// Panics with what the compiler said, unless it was content.
pub fn assert_compiled(compiler: &Compiler, output: &Output) {
    assert!(
        output.status.success(),
        "{compiler:?} refuses backplane.h:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compares `now` with the file at `path` (relative to this crate), or writes it when `BACKPLANE_BLESS=1`.
pub fn golden(path: &str, now: &str, test: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("BACKPLANE_BLESS").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, now).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = kept
        .lines()
        .chain(std::iter::repeat(""))
        .zip(now.lines().chain(std::iter::repeat("")))
        .take(kept.lines().count().max(now.lines().count()))
        .enumerate()
        .find(|(_, (kept, now))| kept != now);
    if let Some((line, (kept, now))) = difference {
        panic!(
            "{} no longer says what the code does, first in line {}:\n  file: {kept}\n  code: {now}\n\
             If the change is meant, write the file anew and commit it:\n  \
             BACKPLANE_BLESS=1 cargo test -p backplane-abi --test {test}",
            path.display(),
            line + 1
        );
    }
}
