//! The file of a model: damaged, and what it takes in memory.

use crate::support::{asks, chat, config, model_file, open};
use backplane_llama::engine::{Config, Header, Loaded, Plan};
use backplane_plugin::{Code, Error};

#[test]
fn a_damaged_file_is_refused_and_the_process_lives() {
    backplane_llama::sys::route_log(Box::new(|_, _| {}));
    let bytes = std::fs::read(model_file()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refused = |bytes: &[u8]| -> Error {
        std::fs::write(&path, bytes).unwrap();
        Loaded::open(&path, config()).expect_err("a damaged file")
    };
    for length in [0, 3, 100, 10_000, 2_000_000, bytes.len() / 2, bytes.len() - 1] {
        let error = refused(&bytes[..length]);
        assert_eq!(error.reason.as_deref(), Some("model_invalid"), "{length}: {error}");
        assert!(!error.message.contains(&*folder.path().to_string_lossy()), "{error}");
    }
    let mut other = bytes.clone();
    let at = other.windows(5).position(|window| window == b"llama").unwrap();
    other[at..at + 5].copy_from_slice(b"lemma");
    assert_eq!(refused(&other).reason.as_deref(), Some("model_invalid"));
    let missing = Loaded::open(&folder.path().join("none"), config()).unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
    let error = Loaded::open(&model_file(), Config { context: Some(1 << 20), ..config() }).unwrap_err();
    assert_eq!(error.details["param"], "context");
    let error = Loaded::open(&model_file(), Config { gpu_layers: 9, ..config() }).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn the_plan_is_near_what_is_taken() {
    // In a process of its own, since other tests take memory too.
    if std::env::var_os("LLAMA_TEST_PLAN").is_none() {
        let own = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "files::the_plan_is_near_what_is_taken", "--nocapture"])
            .env("LLAMA_TEST_PLAN", "1")
            .status()
            .unwrap();
        assert!(own.success());
        return;
    }
    for config in [config(), Config { context: Some(4096), batch: 512, ..config() }] {
        let planned = Plan::new(&Header::read(&model_file()).unwrap(), &config).unwrap();
        let before = resident();
        let engine = open(config);
        chat(&engine, &asks(&"Hello there. ".repeat(150), 4)).unwrap();
        let taken = resident() - before;
        let ratio = planned.total() as f64 / taken as f64;
        println!("planned {planned:?} = {} MiB, taken {} MiB", planned.total() >> 20, taken >> 20);
        assert!((0.85..1.3).contains(&ratio), "planned {planned:?}, taken {taken}: {ratio}");
        drop(engine);
        println!("left after closing: {} MiB", (resident().saturating_sub(before)) >> 20);
    }
}
