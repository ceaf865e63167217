//! What the tests of the worker share.
#![allow(dead_code, reason = "each test uses its part")]

use backplane::isolation::{Confinement, Launch, WorkerEntry};
use backplane_testkit::{Case, PluginTest, TensorInput, library};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longer than anything takes, on however slow a machine: it is only waited out by what has failed.
pub const LONG: Duration = Duration::from_secs(120);

/// How the echo plugin is started in a worker.
pub fn launch(library: PathBuf, confinement: Confinement) -> Launch {
    Launch {
        program: env!("CARGO_BIN_EXE_backplane-worker").into(),
        library,
        sealed: None,
        id: "dev.backplane.echo".to_owned(),
        version: "0.1.0".to_owned(),
        confinement,
        limit: LONG,
        quarantine: None,
    }
}

/// The echo plugin, through a worker.
pub fn echo(confinement: Confinement) -> PluginTest {
    through(launch(echo_library(), confinement))
}

/// The library of the echo plugin. Cargo is asked once, and before any time is taken: it waits for its turn when another
/// build runs.
pub fn echo_library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| library("backplane-echo").unwrap()).clone()
}

pub fn through(launch: Launch) -> PluginTest {
    PluginTest::entered_by(Arc::new(WorkerEntry::new(launch))).patience(LONG)
}

/// The echo plugin, in this process.
pub fn in_process() -> PluginTest {
    PluginTest::load(echo_library()).unwrap().patience(LONG)
}

/// The cases that echo's own test has.
pub fn cases() -> Vec<Case> {
    let case = |name: &str, execution: &str| {
        let model = format!(
            r#"{{"name":"{name}","capabilities":["echo"],"parameters":{{"execution":"{execution}"}}}}"#
        );
        Case::new(model, "echo", r#"{"text":"Grüße an alle","chunks":3}"#)
            .slow(r#"{"text":"slowly","chunks":1000,"chunk_delay_ms":20}"#)
            .panics(r#"{"panic":true}"#)
            .gives_tensors_back()
    };
    vec![
        case("echo", "concurrent")
            .tensor(TensorInput::fp32("numbers", &[2, 2], &[1.0, 2.5, -3.0, 0.0]))
            .tensor(TensorInput::strings("texts", &[2], &["one", ""]))
            .tensor(TensorInput::fp32("large", &[5000], &[0.5; 5000])),
        case("echo-serial", "serial").tensor(TensorInput::int64("ids", &[3], &[1, 2, 3])),
        case("echo-continuous", "continuous"),
        Case::new(r#"{"name":"echo","capabilities":["echo"]}"#, "echo", r#"{"text":"none","chunks":0}"#)
            .named("no piece"),
    ]
}

/// The hostile plugin, compiled; `-DCONSTRUCTOR="..."` makes it misbehave before it is entered.
pub fn hostile(constructor: Option<&str>) -> (tempfile::TempDir, PathBuf) {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libhostile.so");
    let output = std::process::Command::new("cc")
        .args(["-std=gnu99", "-O0", "-w", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"])
        .args(constructor.map(|what| match what {
            "wrong-layout" => "-DWRONG_LAYOUT".to_owned(),
            what => format!("-DCONSTRUCTOR=\"{what}\""),
        }))
        .arg("-I")
        .arg(here.join("../../plugin-api/include"))
        .arg(here.join("tests/fixtures/hostile.c"))
        .arg("-o")
        .arg(&library)
        .output()
        .expect("`cc` is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (folder, library)
}

/// Confined as a plugin of a stranger is.
pub fn cpu() -> Confinement {
    Confinement::Cpu { read: Vec::new(), memory: 0, missing: String::new(), off: Vec::new() }
}

/// Confined without these mechanisms.
pub fn cpu_without(off: &[&str]) -> Confinement {
    let off = off.iter().map(|one| (*one).to_owned()).collect();
    Confinement::Cpu { read: Vec::new(), memory: 0, missing: String::new(), off }
}
