//! Plugins that crashed again and again, and are not started: a note for each build, in the state directory.

use std::io;
use std::path::{Path, PathBuf};

/// The reason of an error that says that a plugin is in quarantine.
pub const QUARANTINED: &str = "plugin_quarantined";

/// The note of one build of a plugin. It is in quarantine while the file is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine(PathBuf);

impl Quarantine {
    /// Of a build, in a state directory. Another build is another plugin, and may be better.
    pub fn of(state: &Path, id: &str, sha256: &str) -> Self {
        let build = &sha256[..sha256.len().min(16)];
        Self(folder(state).join(format!("{id}-{build}")))
    }

    /// With its note at this place.
    pub fn at(note: impl Into<PathBuf>) -> Self {
        Self(note.into())
    }

    /// Whether it is in quarantine.
    pub fn holds(&self) -> bool {
        self.0.exists()
    }

    /// Puts it there. Whether that is noted down.
    pub fn put(&self, id: &str, version: &str, how: &str) -> bool {
        let text =
            format!("plugin `{id}` {version} crashed again and again; the last time its worker {how}\n");
        let made = self.0.parent().map_or(Ok(()), std::fs::create_dir_all);
        match made.and_then(|()| std::fs::write(&self.0, text)) {
            Ok(()) => {
                tracing::error!(plugin = id, note = %self.0.display(), "a plugin is put in quarantine");
                true
            }
            Err(error) => {
                tracing::error!(plugin = id, %error, "the quarantine of a plugin cannot be noted down");
                false
            }
        }
    }

    /// Takes the notes of all builds of a plugin away. How many there were.
    ///
    /// # Errors
    /// The system's.
    pub fn lift(state: &Path, id: &str) -> io::Result<usize> {
        let notes = match std::fs::read_dir(folder(state)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            notes => notes?,
        };
        let mut lifted = 0;
        for note in notes {
            let note = note?;
            let name = note.file_name();
            // An id may be how another one begins.
            if name.to_str().and_then(|name| name.rsplit_once('-')).is_some_and(|(of, _)| of == id) {
                std::fs::remove_file(note.path())?;
                lifted += 1;
            }
        }
        Ok(lifted)
    }
}

fn folder(state: &Path) -> PathBuf {
    state.join("quarantine")
}

/// What to say of it to who asks for one of its models.
pub fn in_quarantine(id: &str) -> String {
    format!(
        "plugin `{id}` crashed again and again and is in quarantine; install another version of it, or \
         `backplane plugin unquarantine {id}` to try it again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_builds_of_a_plugin_are_let_out_and_no_other() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Quarantine::lift(state.path(), "com.acme.x").unwrap(), 0, "there is no folder yet");
        let of = |id, sha256| Quarantine::of(state.path(), id, sha256);
        let (one, two) = (of("com.acme.x", "0123456789abcdef01"), of("com.acme.x", "f"));
        let other = of("com.acme.x-ray", "0123456789abcdef01");
        for quarantine in [&one, &two, &other] {
            assert!(!quarantine.holds() && quarantine.put("com.acme.x", "1.0.0", "exited"));
        }
        assert_eq!(Quarantine::lift(state.path(), "com.acme.x").unwrap(), 2);
        assert_eq!([one, two, other].map(|one| one.holds()), [false, false, true]);
    }
}
