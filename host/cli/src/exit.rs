//! Exit codes, and failures that carry one. The codes are stable: scripts rely on them.

use backplane_registry::package::{PackageError, Problem};
use backplane_registry::{Catalogue, RegistryError};
use serde_json::{Map, Value};
use std::process::ExitCode;
use std::{fmt, io};

/// What an exit code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// It failed, for a reason that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A model, a key, a file is not there.
    NotFound = 3,
    /// The model does not fit into memory.
    NoMemory = 4,
    /// Not allowed: no key, the wrong key, a key that has reached its limits, or the permissions of a file.
    Denied = 5,
}

impl Exit {
    /// For machines, where nothing says more.
    pub fn name(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Failure => "failed",
            Exit::Usage => "usage",
            Exit::NotFound => "not_found",
            Exit::NoMemory => "no_memory",
            Exit::Denied => "denied",
        }
    }

    /// Of a file or folder that cannot be used.
    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::Denied,
            _ => Exit::Failure,
        }
    }
}

impl Exit {
    /// Of `license inspect` only: it ends soon, or grace runs.
    pub const LICENCE_DUE: Self = Self::Usage;
    /// Of `license inspect` only: it is for another machine, plugin or version.
    pub const LICENCE_MISMATCH: Self = Self::NotFound;
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a verb did not do what was asked: what was wrong, why, and what to do next.
#[derive(Debug, PartialEq)]
pub struct Failure {
    pub exit: Exit,
    /// What was wrong, with what.
    pub what: String,
    /// What would help: a command, where there is one.
    pub next: Option<String>,
    /// For machines.
    pub code: Option<String>,
    /// Figures that came with it.
    pub details: Map<String, Value>,
}

/// The result of a verb.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), next: None, code: None, details: Map::new() }
    }

    /// One without a code of its own.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failure, what)
    }

    /// The command line is wrong in a way that only the verb can tell.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// A file or folder that cannot be used.
    pub fn io(action: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(Exit::of_io(error), format!("cannot {action} {}: {error}", path.display()))
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let mut error = self.details.clone();
        error.insert("message".to_owned(), self.what.clone().into());
        error.insert("next".to_owned(), self.next.clone().into());
        error.insert("code".to_owned(), self.code.as_deref().unwrap_or(self.exit.name()).into());
        error.insert("exit".to_owned(), (self.exit as u8).into());
        error.into()
    }

    /// Says what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Adds a word for machines.
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let exit = match &error {
            RegistryError::NotInstalled { .. }
            | RegistryError::UnknownModel { .. }
            | RegistryError::SourceNotFound { .. } => Exit::NotFound,
            RegistryError::InvalidName { .. }
            | RegistryError::NameNeeded { .. }
            | RegistryError::InvalidSource { .. } => Exit::Usage,
            RegistryError::AccessDenied { .. } => Exit::Denied,
            RegistryError::Io { source, .. } => Exit::of_io(source),
            _ => Exit::Failure,
        };
        let next = match &error {
            RegistryError::NotInstalled { name, .. } => Some(missing(name)),
            RegistryError::UnknownModel { .. } => {
                Some("what can be pulled by name: `backplane ls --available`".to_owned())
            }
            RegistryError::NeedsConsent(_) => Some("run it again with `--yes`".to_owned()),
            RegistryError::Offline { .. } => Some("run it once without `--offline`".to_owned()),
            RegistryError::NotTheFormat { .. } => Some(
                "name the file of the model itself; a model of another format needs a card, a `model.toml` beside it with `name`, `format` and `[[files]]`"
                    .to_owned(),
            ),
            RegistryError::Incomplete { name, .. } => Some(format!("`backplane pull {name}`")),
            _ => None,
        };
        Self { next, ..Self::new(exit, error.to_string()).code(error.code()) }
    }
}

impl From<PackageError> for Failure {
    fn from(error: PackageError) -> Self {
        let exit = match &error.problem {
            Problem::NotFound(_) => Exit::NotFound,
            Problem::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            Problem::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Exit::Denied
            }
            Problem::Unsigned | Problem::Untrusted(_) | Problem::Revoked(_) | Problem::Policy(_) => {
                Exit::Denied
            }
            _ => Exit::Failure,
        };
        let next = match &error.problem {
            Problem::Unsigned => Some("who made it signs it: `backplane plugin sign FILE --key KEY`"),
            Problem::Untrusted(_) => {
                Some("if you know whose key it is: `backplane plugin trust add KEY.pub --plugins IDS`")
            }
            Problem::NotFound(_) => Some("what is installed: `backplane plugin ls`"),
            _ => None,
        };
        let failure =
            Self::new(exit, crate::output::printable(&error.to_string())).code(error.problem.code());
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}

/// What helps where a model is not installed: to fetch it, if it can be fetched by this name.
fn missing(name: &str) -> String {
    let known = name.parse().is_ok_and(|name| Catalogue::embedded().find(&name).is_some());
    if known {
        format!("fetch it: `backplane pull {name}`")
    } else {
        "installed: `backplane ls`; can be pulled: `backplane ls --available`".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_model_is_not_found_and_says_what_to_do() {
        let missing =
            Failure::from(RegistryError::NotInstalled { name: "smollm2".into(), close: Vec::new() });
        assert_eq!(missing.exit, Exit::NotFound);
        assert!(missing.next.is_some_and(|next| next.contains("backplane pull smollm2")));
        let unknown =
            Failure::from(RegistryError::NotInstalled { name: "x".into(), close: vec!["xy".into()] });
        assert!(
            unknown.next.is_some_and(|next| !next.contains("pull x")),
            "what cannot be pulled is not advised"
        );
        assert_eq!(
            Failure::from(RegistryError::InvalidName { name: "/".into(), reason: "no".into() }).exit,
            Exit::Usage
        );
        assert_eq!(Failure::from(RegistryError::Cancelled).exit, Exit::Failure);
        let io = |kind: io::ErrorKind| RegistryError::Io {
            action: "read",
            path: "/x".into(),
            source: kind.into(),
        };
        assert_eq!(Failure::from(io(io::ErrorKind::NotFound)).exit, Exit::NotFound);
        assert_eq!(Failure::from(io(io::ErrorKind::ReadOnlyFilesystem)).exit, Exit::Denied);
        assert_eq!(Failure::from(io(io::ErrorKind::Other)).exit, Exit::Failure);
    }

    #[test]
    fn every_code_is_in_the_table_that_people_read_and_in_the_help() {
        let table = include_str!("../../../docs/errors.md").split("| exit code | means |").nth(1).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
        let help = <crate::args::Cli as clap::CommandFactory>::command().render_long_help().to_string();
        let help = help.split("Exit codes:").nth(1).unwrap();
        let all = [Exit::Done, Exit::Failure, Exit::Usage, Exit::NotFound, Exit::NoMemory, Exit::Denied];
        assert_eq!(rows.len(), all.len(), "{rows:?}");
        for (exit, row) in all.into_iter().zip(rows) {
            // `match`, so that a new code has to be added here.
            let word = match exit {
                Exit::Done => "done",
                Exit::Failure => "failed",
                Exit::Usage => "wrong usage",
                Exit::NotFound => "not found",
                Exit::NoMemory => "no memory",
                Exit::Denied => "denied",
            };
            let code = exit as u8;
            assert!(row.starts_with(&format!("| {code} | {word}")), "{row}");
            assert!(help.contains(&format!("{code} {word}")), "{help}");
        }
    }

    #[test]
    fn the_permissions_of_a_file_deny() {
        let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let failure = Failure::io("write", std::path::Path::new("/x"), &error);
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.what.starts_with("cannot write /x: "), "{failure}");
    }
}
