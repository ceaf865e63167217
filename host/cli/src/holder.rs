//! Who has a state directory: the host that holds the lock of its `run/lock`.

use std::fs::{File, TryLockError};
use std::path::Path;

/// A running host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process, if it has said so yet.
    pub pid: Option<u32>,
}

impl Holder {
    /// The host that has this state directory now. Asking takes the lock for a moment if nobody has it, so it is for who
    /// has nothing to start.
    pub fn of(state: &Path) -> Option<Self> {
        let path = state.join("run/lock");
        match File::open(&path).ok()?.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                Some(Self { pid })
            }
            _ => None,
        }
    }

    /// `another backplane (pid 4711)`
    pub fn name(self) -> String {
        self.pid
            .map_or_else(|| "another backplane".to_owned(), |pid| format!("another backplane (pid {pid})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_holds_the_lock_has_the_directory() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Holder::of(state.path()), None, "nobody was ever there");
        std::fs::create_dir(state.path().join("run")).unwrap();
        let path = state.path().join("run/lock");
        std::fs::write(&path, "4711\n").unwrap();
        assert_eq!(Holder::of(state.path()), None, "it has ended, and left its number");
        let lock = File::open(&path).unwrap();
        lock.lock().unwrap();
        let holder = Holder::of(state.path()).unwrap();
        assert_eq!((holder.pid, holder.name().as_str()), (Some(4711), "another backplane (pid 4711)"));
        drop(lock);
        assert_eq!(Holder::of(state.path()), None);
    }
}
