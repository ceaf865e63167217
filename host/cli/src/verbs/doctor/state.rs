//! The state directory: whether a host that is started by this user can keep there what it must.

use super::Check;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What is written while a host runs or a model is pulled, besides what lies in the directory itself.
const FOLDERS: [&str; 12] = [
    "run",
    "logs",
    "journal",
    "data",
    "models",
    "models/cards",
    "models/blobs",
    "models/blobs/sha256",
    "runtimes",
    "plugins",
    "licenses",
    "trust",
];

pub fn check(state: &Path) -> Check {
    let shown = state.display().to_string();
    let metadata = match state.metadata() {
        Ok(metadata) if !metadata.is_dir() => {
            return Check::bad("state", format!("{shown} is not a folder"), "name another with `--state`");
        }
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return to_be_made(state),
        Err(error) => return unwritable(state, &error),
    };
    if let Err((path, error)) = is_writable(state) {
        return unwritable(&path, &error);
    }
    if metadata.permissions().mode() & 0o077 == 0 {
        Check::ok("state", shown)
    } else {
        Check::warning("state", format!("{shown} is open to other users"), format!("`chmod 700 {shown}`"))
    }
}

/// One that is not there yet: the first start has to be able to make it.
fn to_be_made(state: &Path) -> Check {
    let there = state.ancestors().skip(1).find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match probe(there) {
        Ok(()) => Check::ok("state", format!("{} (made by the first start)", state.display())),
        Err(error) => {
            let found = format!(
                "{} is not there, and cannot be made in {}: {error}",
                state.display(),
                there.display()
            );
            Check::bad("state", found, fix(there, &error))
        }
    }
}

/// The first thing in a state directory that this user cannot write.
fn is_writable(state: &Path) -> Result<(), (PathBuf, io::Error)> {
    let folders = FOLDERS.iter().map(|name| state.join(name)).filter(|dir| dir.exists());
    for folder in std::iter::once(state.to_owned()).chain(folders) {
        probe(&folder).map_err(|error| (folder.clone(), error))?;
    }
    // What another user's host has left: its database, its journal, its lock.
    for folder in [state.to_owned(), state.join("run"), state.join("journal")] {
        let files = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for file in files.filter(|path| path.is_file()) {
            // Without truncating it, and nothing is written.
            let opened = File::options().append(true).open(&file);
            opened.map_err(|error| (file.clone(), error))?;
        }
    }
    Ok(())
}

/// The only way to know is to try; nothing is left behind.
fn probe(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    fs::write(&probe, b"doctor")?;
    fs::remove_file(&probe)
}

fn unwritable(path: &Path, error: &io::Error) -> Check {
    Check::bad("state", format!("{} cannot be written: {error}", path.display()), fix(path, error))
}

fn fix(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room on that disk, or name another directory with `--state`".to_owned()
        }
        ErrorKind::ReadOnlyFilesystem => {
            "its file system is mounted read-only: mount it writable, or name another directory with `--state`"
                .to_owned()
        }
        _ => match (me(), path.metadata().map(|metadata| metadata.uid())) {
            (Some(me), Ok(owner)) if me != owner => format!(
                "it belongs to user {owner} and you are {me}: `sudo chown -R {me} {shown}`, run as that user, or name \
                 another directory with `--state`"
            ),
            _ => format!("`chmod -R u+rwX {shown}`, or name another directory with `--state`"),
        },
    }
}

/// The user that this process runs as.
fn me() -> Option<u32> {
    Path::new("/proc/self").metadata().ok().map(|metadata| metadata.uid())
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_state_directory_that_is_a_file_is_bad() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("x");
        fs::write(&file, "").unwrap();
        assert_eq!(check(&file).verdict, Verdict::Bad);
        assert_eq!(check(&state.path().join("later")).verdict, Verdict::Ok);
        assert_eq!(check(&state.path().join("later/and/later")).verdict, Verdict::Ok);
    }

    #[test]
    fn one_that_cannot_be_made_is_bad() {
        // Nobody makes a folder in /proc, root included.
        let check = check(Path::new("/proc/backplane/state"));
        assert_eq!(check.verdict, Verdict::Bad);
        assert!(check.found.contains("cannot be made in /proc"), "{}", check.found);
    }

    #[test]
    fn a_full_disk_a_read_only_one_and_another_user_have_fixes_of_their_own() {
        let path = Path::new("/proc/self");
        assert!(fix(path, &ErrorKind::StorageFull.into()).starts_with("make room"));
        assert!(fix(path, &ErrorKind::ReadOnlyFilesystem.into()).contains("read-only"));
        assert!(fix(path, &ErrorKind::PermissionDenied.into()).starts_with("`chmod -R u+rwX /proc/self`"));
        let theirs = tempfile::tempdir().unwrap();
        if me() == Some(0) {
            std::os::unix::fs::chown(theirs.path(), Some(65534), None).unwrap();
            let fix = fix(theirs.path(), &ErrorKind::PermissionDenied.into());
            assert!(fix.contains("belongs to user 65534 and you are 0"), "{fix}");
        }
    }
}
