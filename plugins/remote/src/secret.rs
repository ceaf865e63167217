//! Secrets by reference: a card or a configuration says where a key is, never what it is.

use backplane_plugin::prelude::*;
use serde::Deserialize;
use std::path::PathBuf;

/// Where a secret is: `env:NAME`, a variable of the host's environment, or `file:/path`, the first line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Reference {
    Env(String),
    File(PathBuf),
}

impl TryFrom<String> for Reference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            // The text is not repeated: it may be the secret itself.
            _ => {
                Err("a secret is named by where it is, `env:NAME` or `file:/path`, and never written out"
                    .into())
            }
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            // Callers read this, too, and paths of this machine are none of their business.
            Self::File(path) => match path.file_name() {
                Some(name) => write!(f, "file:…/{}", name.display()),
                None => f.write_str("file:…"),
            },
        }
    }
}

impl Reference {
    /// The secret, as it is now.
    ///
    /// # Errors
    /// `FailedPrecondition`, which names the place and not what is there.
    pub fn read(&self) -> Result<Secret> {
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|_| "is not set, or not text".to_owned()),
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
            }
        };
        let missing = |why: &str| Error::new(Code::FailedPrecondition, format!("the secret `{self}` {why}"));
        let text = text.map_err(|why| missing(&why))?;
        let line = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() { Err(missing("is empty")) } else { Ok(Secret(line.to_owned())) }
    }
}

/// A secret. It is shown to nobody but the server it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Takes this secret out of `text`, for servers that repeat what they were sent.
    pub fn redact(&self, text: &mut String) {
        // Shorter ones would blank out ordinary words.
        if 8 <= self.0.len() && text.contains(&self.0) {
            *text = text.replace(&self.0, "[key]");
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[key]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Result<Reference, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_secret_written_out_is_refused_and_not_repeated() {
        for text in ["sk-secret", "", "file:relative", "https://x"] {
            let refused = reference(text).unwrap_err();
            assert!(
                refused.contains("`env:NAME`") && (text.is_empty() || !refused.contains(text)),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_file_gives_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "  sk-0123456789 \nrest\n").unwrap();
        let at = reference(&format!("file:{}", path.display())).unwrap();
        let secret = at.read().unwrap();
        assert_eq!(secret.expose(), "sk-0123456789");
        assert_eq!(format!("{secret:?}"), "[key]");
        let mut said = "bad key sk-0123456789!".to_owned();
        secret.redact(&mut said);
        assert_eq!(said, "bad key [key]!");
        std::fs::write(&path, "\n").unwrap();
        assert!(at.read().unwrap_err().message.ends_with("is empty"));
        let missing = reference("env:BACKPLANE_TEST_NO_SUCH_VARIABLE").unwrap().read().unwrap_err();
        assert_eq!(
            missing.message,
            "the secret `env:BACKPLANE_TEST_NO_SUCH_VARIABLE` is not set, or not text"
        );
    }
}
