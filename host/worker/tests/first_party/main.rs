//! The plugins that come with the program, each in a confined worker: the conformance suite, as their own tests run it
//! in-process, and what they answer.
//!
//! Needs the models that `make models` fetches, in the state directory that `BACKPLANE_TEST_MODELS` names, and the Python of
//! the end-to-end tests; `make unit` brings both.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod calls;
mod engines;
#[path = "../support/mod.rs"]
mod support;
mod tasks;
#[path = "../../../../plugins/remote/tests/upstream/mod.rs"]
mod upstream;

use backplane::isolation::{Confinement, Granted, Launch};
use backplane_testkit::{PluginTest, library};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{launch, through};

/// Rounds of opening and closing: what is left in a worker is not the host's, and ends with it.
const ROUNDS: usize = 3;

/// Where `variable` says, or what lies there `below` the cache.
fn cache(variable: &str, below: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path =
        std::env::var_os(variable).map_or_else(|| root.join(".cache").join(below), |path| root.join(path));
    assert!(path.exists(), "{} is missing: run `make unit`, or name it in {variable}", path.display());
    path
}

/// The state directory with the test models.
fn state() -> PathBuf {
    cache("BACKPLANE_TEST_MODELS", "state")
}

/// The model as its card describes it, with the files where they lie.
fn pulled(name: &str, parameters: Value) -> Value {
    let card = state().join(format!("models/cards/{name}.toml"));
    let text = std::fs::read_to_string(&card).unwrap_or_else(|error| panic!("{}: {error}", card.display()));
    let mut card: Value = toml::from_str(&text).unwrap();
    for file in card["files"].as_array_mut().unwrap() {
        let blob = state().join("models/blobs/sha256").join(file["sha256"].as_str().unwrap());
        file["path"] = json!(blob);
    }
    for (key, value) in parameters.as_object().into_iter().flatten() {
        card["parameters"][key] = value.clone();
    }
    card
}

/// One of them, confined as the host would: it reads models and runtimes.
fn confined(package: &str) -> PluginTest {
    confined_to(package, Granted::default())
}

/// The same, with more granted to it.
fn confined_to(package: &str, mut granted: Granted) -> PluginTest {
    granted.read.extend(["models/blobs/sha256", "runtimes"].map(|folder| state().join(folder)));
    let launch = launch(library(package).unwrap(), Confinement::Sandbox(granted));
    let id = package.replacen("backplane-", "dev.backplane.", 1);
    through(Launch { id, ..launch }).rounds(ROUNDS)
}
