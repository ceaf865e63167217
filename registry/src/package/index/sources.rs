//! The registries that an operator named, each with the keys that sign its index.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::package::error::{Problem, Result, io};
use crate::strict;
use crate::trust::PublicKey;

/// A registry, as `<state>/trust/registries.toml` names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    pub name: String,
    /// `https://…`, or a folder.
    pub location: String,
    /// Who may sign its index: these and nobody else, and nothing but this index.
    pub keys: Vec<PublicKey>,
}

/// The registries of a state directory.
#[derive(Debug, Clone)]
pub struct Registries {
    path: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "registry")]
    registries: Vec<Registry>,
}

impl Registries {
    pub fn at(state: &Path) -> Self {
        Self { path: state.join("trust/registries.toml") }
    }

    pub fn list(&self) -> Result<Vec<Registry>> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => strict::from_toml::<File>(&text)
                .map(|file| file.registries)
                .map_err(|reason| Problem::Index(reason).at(&self.path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io("read", &self.path)(error)),
        }
    }

    /// Uses a registry from now on; one of the same name gives way.
    pub fn add(&self, registry: Registry) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if registry.name.is_empty() || !registry.name.chars().all(plain) {
            let what = "a registry's name has lower-case letters, digits and `-`".to_owned();
            return Err(Problem::Index(what).of(format!("`{}`", registry.name.escape_debug())));
        }
        let mut all = self.list()?;
        all.retain(|known| known.name != registry.name);
        all.push(registry);
        self.write(all)
    }

    /// Uses it no more; whether it was used.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let mut all = self.list()?;
        let before = all.len();
        all.retain(|known| known.name != name);
        let gone = all.len() < before;
        if gone {
            self.write(all)?;
        }
        Ok(gone)
    }

    fn write(&self, registries: Vec<Registry>) -> Result<()> {
        let text = toml::to_string(&File { registries })
            .map_err(|error| Problem::Index(error.to_string()).at(&self.path))?;
        super::fetch::replace(&self.path, text.as_bytes())
    }
}
