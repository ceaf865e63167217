//! Everything that a plugin's file tells of itself, and what hosts of any age would do with it. No code of it runs.

use std::path::{Path, PathBuf};

use backplane_abi::{BUILD_SECTION, ENTRY_SYMBOL, NOTE_BUILD, NOTE_NAME, NOTE_SECTION};
use serde::Serialize;

use super::elf;
use super::inspect::{self, InspectError, Note};
use super::libraries::{self, Needed};
use super::linkage::{self, GlibcVersion, Linkage};
use super::manifest::{AbiVersion, Manifest, Panics};
use super::portable;
use crate::digest::Digest;

/// The other symbol that is expected of a plugin: the root module of one that is written in Rust.
const ROOT_MODULE: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// What the header forbids (`Failure`), as far as a symbol shows it.
const FORBIDDEN: [&str; 13] = [
    "_Exit",
    "_exit",
    "chdir",
    "exit",
    "fchdir",
    "putenv",
    "quick_exit",
    "setenv",
    "setlocale",
    "sigaction",
    "signal",
    "system",
    "unsetenv",
];

/// A plugin's file, looked at from all sides.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub path: PathBuf,
    pub size: u64,
    /// 64 hexadecimal digits.
    pub sha256: String,
    pub machine: String,
    pub soname: Option<String>,
    /// What it says of itself, if that can be read.
    pub manifest: Option<Manifest>,
    /// Why this host does not load it. Nothing where it does, as far as can be told without running it.
    pub problem: Option<String>,
    /// The SDK it was built with, as its build note or its manifest says.
    pub sdk: Option<String>,
    /// The Rust compiler, as it noted itself.
    pub rustc: Option<String>,
    /// Every compiler that noted itself.
    pub compilers: Vec<String>,
    /// `unwind` or `abort` as it was built, if its build note says so.
    pub panic: Option<String>,
    pub exports: Vec<String>,
    /// Those of them that no host asks for.
    pub unexpected_exports: Vec<String>,
    /// What it needs itself, and what of all that is missing on this machine.
    pub needed: Vec<Needed>,
    /// The oldest glibc that it runs with, such as `2.34`; nothing where it needs none.
    pub glibc: Option<String>,
    /// The glibc of this machine.
    pub glibc_here: Option<String>,
    pub rpath: Vec<String>,
    pub runpath: Vec<String>,
    pub text_relocations: bool,
    pub executable_stack: bool,
    pub static_tls: bool,
    pub nodelete: bool,
    /// What hosts would do with it.
    pub hosts: Vec<Hosts>,
    /// What its author should look at.
    pub findings: Vec<Finding>,
}

/// What some hosts do with a plugin, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hosts {
    /// Which hosts: `ABI 1.0`, `glibc before 2.34`.
    pub which: String,
    pub loads: bool,
    /// The rule's name, for programs.
    pub rule: &'static str,
    /// What happens, and where that is written.
    pub why: String,
}

/// Something that works here and may not elsewhere, or that the header forbids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: String,
    pub todo: String,
}

/// What a build note says.
#[derive(Default, serde::Deserialize)]
struct Build {
    sdk: Option<String>,
    panic: Option<String>,
}

/// Reads a plugin's file from all sides. A library that is no plugin for this host has a report too, with the reason;
/// what is no library of this machine at all is an error.
pub fn report(path: &Path) -> Result<Report, InspectError> {
    let data = inspect::read(path)?;
    let failed = |error| inspect::not_a_library(path, error);
    let library = elf::read(&data, NOTE_SECTION, "").map_err(failed)?;
    let linkage = linkage::read(&data).map_err(failed)?;
    let build: Build = elf::read(&data, BUILD_SECTION, "")
        .ok()
        .and_then(|library| build_note(library.note?))
        .and_then(|text| toml::from_str(&text).ok())
        .unwrap_or_default();
    let manifest =
        library.note.and_then(|note| inspect::manifest(path, note).ok()).map(|(manifest, _)| manifest);
    let (needed, glibc_here) = libraries::resolve(path, &linkage);

    let file = inspect::examine(path, &data);
    let unpackable = file.as_ref().ok().and_then(|file| portable::check(file).err());
    let problem = match file {
        Err(error) => Some(error.to_string()),
        Ok(_) => needed.iter().find(|needed| needed.path.is_none()).map(|needed| {
            format!("{}: the library `{}` that it needs is not on this machine", path.display(), needed.name)
        }),
    };
    let unexpected =
        linkage.exports.iter().filter(|name| *name != ENTRY_SYMBOL && *name != ROOT_MODULE).cloned();
    let rustc = linkage.compilers.iter().find_map(|line| line.strip_prefix("rustc version "));
    let mut report = Report {
        path: path.to_owned(),
        size: data.len() as u64,
        sha256: Digest::of(&data).to_string(),
        machine: library.machine,
        soname: library.soname,
        sdk: build.sdk.or_else(|| manifest.as_ref()?.sdk.clone()),
        rustc: rustc.map(str::to_owned),
        panic: build.panic,
        unexpected_exports: unexpected.collect(),
        exports: linkage.exports.iter().cloned().collect(),
        needed,
        glibc: linkage.glibc.map(version),
        glibc_here: glibc_here.map(version),
        rpath: linkage.rpath.clone(),
        runpath: linkage.runpath.clone(),
        text_relocations: linkage.text_relocations,
        executable_stack: linkage.executable_stack,
        static_tls: linkage.static_tls,
        nodelete: linkage.nodelete,
        compilers: linkage.compilers.clone(),
        hosts: Vec::new(),
        findings: Vec::new(),
        manifest,
        problem,
    };
    if let Some(manifest) = &report.manifest {
        report.hosts = hosts(manifest, &report);
    }
    report.findings = findings(&report, &linkage, glibc_here, unpackable);
    Ok(report)
}

fn version((major, minor): GlibcVersion) -> String {
    format!("{major}.{minor}")
}

fn build_note(section: &[u8]) -> Option<String> {
    let (note, _) = Note::split(section)?;
    let text = std::str::from_utf8(note.description).ok()?;
    (note.name == NOTE_NAME && note.kind == NOTE_BUILD).then(|| text.trim_end_matches('\0').to_owned())
}

/// What hosts of any age do with it.
fn hosts(manifest: &Manifest, report: &Report) -> Vec<Hosts> {
    let AbiVersion { major, minor: built } = manifest.abi;
    let least = manifest.min_host_minor;
    let span = |from: u16, to: u16| match from == to {
        true => format!("ABI {major}.{from}"),
        false => format!("ABI {major}.{from} to {major}.{to}"),
    };
    let mut hosts = Vec::new();
    let mut add = |which: String, loads: bool, rule: &'static str, why: String| {
        hosts.push(Hosts { which, loads, rule, why });
    };
    if least > 0 {
        add(
            span(0, least - 1),
            false,
            "host_too_old",
            format!("its `min_host_minor` is {least}; backplane.h, Rules, 4"),
        );
    }
    if least < built {
        let why =
            "they lack what came later: it has to ask BP_HAS and get_extension; backplane.h, Rules, 1 and 5";
        add(span(least, built - 1), true, "host_older", why.to_owned());
    }
    if least <= built {
        add(span(built, built), true, "host_same", "built for it".to_owned());
    }
    add(
        format!("ABI {major}.{} and later", built.max(least) + 1),
        true,
        "host_newer",
        "what its tables lack is absent to them, for ever; backplane.h, Rules, 1, 2 and 4".to_owned(),
    );
    add(
        format!("ABI {} and later", major + 1),
        false,
        "abi_major",
        format!("they look for another symbol than `{ENTRY_SYMBOL}`; backplane.h, bp_entry_v1"),
    );
    add(
        format!("machines that are not {}", report.machine),
        false,
        "platform",
        "the library's header names its machine".to_owned(),
    );
    if let Some(glibc) = &report.glibc {
        let why = format!("it needs symbols of glibc {glibc}; build it on the oldest system it is to run on");
        add(format!("systems with glibc before {glibc}"), false, "libc", why);
    }
    if report.exports.iter().any(|name| name == ROOT_MODULE) {
        add(
            "hosts with another abi_stable than 0.11".to_owned(),
            false,
            "root_module",
            "they compare the layout of the Rust root module, and the host goes by the C table, which every language has".to_owned(),
        );
    }
    hosts
}

fn findings(
    report: &Report,
    linkage: &Linkage,
    glibc_here: Option<GlibcVersion>,
    unpackable: Option<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |what: String, todo: &str| findings.push(Finding { what, todo: todo.to_owned() });
    let list = |names: &[String]| {
        let shown = names.iter().take(5).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
    };
    if !report.unexpected_exports.is_empty() {
        add(
            format!(
                "it exports {}: two plugins with one name may get each other's",
                list(&report.unexpected_exports)
            ),
            "hide all but the entry: `-fvisibility=hidden` and a version script `{ global: bp_entry_v1; local: *; };`",
        );
    }
    let missing = report.needed.iter().filter(|needed| needed.path.is_none());
    let missing: Vec<String> = missing.map(|needed| needed.name.clone()).collect();
    if !missing.is_empty() {
        add(
            format!("it needs {}, which this machine does not have", list(&missing)),
            "link it statically, as a package has to; or install what brings it",
        );
    }
    if linkage.glibc > glibc_here && glibc_here.is_some() {
        add(
            "it needs a newer glibc than this machine has".to_owned(),
            "build it on the oldest system it is to run on",
        );
    }
    if report.text_relocations {
        add(
            "it has text relocations: its code is written to when it is mapped, and a sandbox refuses that"
                .to_owned(),
            "compile every part of it with `-fPIC`",
        );
    }
    if report.executable_stack {
        add(
            "it asks for an executable stack, which makes every stack of its process executable".to_owned(),
            "link with `-Wl,-z,noexecstack`, and give assembly files a `.note.GNU-stack` section",
        );
    }
    if report.static_tls {
        add(
            "it uses static thread-local storage, of which a process has little left once it runs".to_owned(),
            "compile with `-ftls-model=global-dynamic`",
        );
    }
    if let Some(problem) = unpackable {
        add(
            format!("it can lie in a folder here, but `plugin pack` refuses it: {problem}"),
            "link statically all but the C and C++ runtimes and the GPU's driver, and link without `-rpath`",
        );
    }
    let forbidden: Vec<String> = FORBIDDEN
        .iter()
        .filter(|name| linkage.imports.contains(**name))
        .map(|name| (*name).to_owned())
        .collect();
    // The standard library of Rust has some of them for those who ask for them.
    if !forbidden.is_empty() && report.rustc.is_none() {
        add(
            format!("it can call {}: backplane.h, Failure, forbids it", list(&forbidden)),
            "report an error instead: the process belongs to the host",
        );
    }
    if linkage.imports.contains("__cxa_throw") && !linkage.imports.contains("__cxa_begin_catch") {
        add(
            "it throws C++ exceptions and catches none: one that leaves it ends the host".to_owned(),
            "catch everything in each function of the tables",
        );
    }
    let says_unwind = report.manifest.as_ref().is_some_and(|manifest| manifest.panic == Panics::Unwind);
    if report.panic.as_deref() == Some("abort") && says_unwind {
        add(
            "it was built with `panic = \"abort\"`, and its manifest does not say so: a panic ends the host"
                .to_owned(),
            "build it with `panic = \"unwind\"`, or write `panic = \"abort\"` into plugin.toml",
        );
    }
    findings
}
