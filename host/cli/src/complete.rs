//! What a shell completes: verbs, flags and files by themselves, models and plugins by what lies here, and keys by what
//! a server on this machine says; no other is asked.

use crate::args::{Cli, Global};
use crate::context::Context;
use crate::output::Output;
use backplane_registry::package::Plugins;
use backplane_registry::{Catalogue, Models};
use clap::CommandFactory;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use std::collections::BTreeSet;
use std::ffi::OsStr;

/// Set by the script that `backplane completions` prints, when the shell wants to know.
const VARIABLE: &str = "BACKPLANE_COMPLETE";

/// Answers the shell, if it was the shell that asked; the process ends then.
pub fn answer() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

/// The script that makes a shell ask `backplane` of its `PATH`.
pub fn script(shell: clap_complete::Shell) -> Option<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string())?;
    completer.write_registration(VARIABLE, "backplane", "backplane", "backplane", &mut script).ok()?;
    if shell == clap_complete::Shell::Bash {
        script.extend_from_slice(include_bytes!("complete.bash"));
    }
    Some(script)
}

/// Models that are installed.
pub fn installed() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| candidates(typed, installed_names()))
}

/// Those, and models that can be fetched by name.
pub fn known() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| candidates(typed, known_names()))
}

/// Those, and sets of models.
pub fn pullable() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let sets = Catalogue::embedded().sets().iter().map(|set| set.name.to_string());
        candidates(typed, known_names().chain(sets))
    })
}

fn known_names() -> impl Iterator<Item = String> {
    installed_names().chain(Catalogue::embedded().cards().iter().map(|card| card.name.to_string()))
}

/// Packages of plugins that are installed.
pub fn plugins() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let active = backplane::default_state_dir().and_then(|state| Plugins::at(&state).active().ok());
        candidates(typed, active.into_iter().flatten().map(|version| version.id))
    })
}

/// Keys that are not revoked, by their names.
pub fn keys() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| candidates(typed, key_names().unwrap_or_default().into_iter()))
}

fn key_names() -> Option<Vec<String>> {
    // Nothing is said in the middle of a line that is being typed.
    let global = Global { quiet: true, ..Global::default().with_environment() };
    let context = Context::new(global.clone(), Output::new(&global));
    let client = context.client().ok().filter(|client| client.address.is_local() && client.is_up())?;
    let keys = client.get("/admin/v1/keys").ok()?;
    let works = |key: &&serde_json::Value| key["revoked_at"].is_null();
    let name = |key: &serde_json::Value| key["name"].as_str().map(str::to_owned);
    Some(keys["data"].as_array()?.iter().filter(works).filter_map(name).collect())
}

/// `--state` on the line that is being typed is not seen here; the environment is.
fn installed_names() -> impl Iterator<Item = String> {
    let listing = backplane::default_state_dir().and_then(|state| Models::at(state).list().ok());
    let models = listing.map(|listing| listing.models).unwrap_or_default();
    models.into_iter().map(|model| model.name.to_string())
}

fn candidates(typed: &OsStr, names: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let fitting: BTreeSet<String> = names.filter(|name| name.starts_with(&*typed)).collect();
    fitting.into_iter().map(CompletionCandidate::new).collect()
}
