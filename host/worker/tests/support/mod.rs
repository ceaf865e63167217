//! What the tests of the worker share.
#![allow(dead_code, reason = "each test uses its part")]

use backplane::isolation::{Confinement, Granted, Launch, OnCrash, OpenLimit, WorkerEntry};
use backplane_testkit::{Case, PluginTest, TensorInput, library};
use std::path::{Path, PathBuf};
use std::process::Command;
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
        open_limit: OpenLimit::new(LONG),
        per_instance: false,
        polling: true,
        progress: None,
        on_crash: OnCrash::default(),
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

/// The faulty plugin, compiled; `-DCONSTRUCTOR="..."` makes it misbehave before it is entered, `-DINIT="..."` in `init`, and
/// `-DHANG="..."` where that says.
pub fn faulty(constructor: Option<&str>) -> (tempfile::TempDir, PathBuf) {
    compiled(constructor.map(|what| match what.split_once('-') {
        Some(("wrong", "layout")) => "-DWRONG_LAYOUT".to_owned(),
        Some(("init", how)) => format!("-DINIT=\"{how}\""),
        Some(("hang", at)) => format!("-DHANG=\"{at}\""),
        _ => format!("-DCONSTRUCTOR=\"{what}\""),
    }))
}

/// The faulty plugin under another name: `com.example.NAME`, with a model of this name.
pub fn another(name: &str) -> (tempfile::TempDir, PathBuf) {
    compiled(Some(format!("-DNAME=\"{name}\"")))
}

fn compiled(defined: Option<String>) -> (tempfile::TempDir, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let source = root.join("tests/plugins/faulty");
    let folder = tempfile::tempdir().unwrap();
    let (library, throw) = (folder.path().join("libfaulty.so"), folder.path().join("throw.o"));
    let run = |command: &mut Command| {
        let output = command.output().expect("`cc` and `c++` are installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("c++")
        .args(["-fexceptions", "-fPIC", "-c"])
        .arg(source.join("throw.cc"))
        .arg("-o")
        .arg(&throw));
    run(Command::new("cc")
        .args([
            "-std=gnu99",
            "-O0",
            "-w",
            "-fexceptions",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-pthread",
        ])
        .args(defined)
        .arg("-I")
        .arg(root.join("plugin-api/include"))
        .args([&source.join("faulty.c"), &throw])
        .args(["-lstdc++", "-o"])
        .arg(&library));
    (folder, library)
}

/// How the faulty plugin is started.
pub fn faulty_launch(library: PathBuf, confinement: Confinement) -> Launch {
    Launch { id: FAULTY.to_owned(), version: "1.0.0".to_owned(), ..launch(library, confinement) }
}

pub const FAULTY: &str = "com.example.faulty";

/// Confined as a plugin of a stranger is.
pub fn cpu() -> Confinement {
    Confinement::Sandbox(Granted::default())
}

/// A worker `without` these mechanisms, or on a system where they are `absent`: `examples/weakened.rs` under that name.
pub fn weakened(name: &str) -> PathBuf {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (folder, program) = BUILT.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "backplane-worker", "--example", "weakened"])
            .arg("--message-format=json")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).unwrap();
        let program = messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            (message["target"]["name"] == "weakened").then_some(())?;
            message["executable"].as_str().map(PathBuf::from)
        });
        (tempfile::tempdir().unwrap(), program.unwrap())
    });
    let named = folder.path().join(name);
    // A link of its own: its name says what it lacks.
    match std::os::unix::fs::symlink(program, &named) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{error}"),
        _ => named,
    }
}
