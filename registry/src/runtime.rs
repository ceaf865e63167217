//! Native runtimes that plugins open, such as ONNX Runtime: `<state>/runtimes/<name>/<version>/<library>`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::card::Card;
use crate::error::{RegistryError, Result};
use crate::store::{list, remove};

/// An installed runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    pub name: String,
    pub version: String,
    pub library: PathBuf,
}

/// The newest installed version of a runtime, such as `onnxruntime`.
pub fn find(state: &Path, name: &str) -> Option<Runtime> {
    list(&state.join("runtimes").join(name))
        .ok()?
        .into_iter()
        .filter_map(|folder| {
            let version = folder.file_name()?.to_str()?.to_owned();
            let mut libraries: Vec<PathBuf> =
                list(&folder).ok()?.into_iter().filter(|path| is_library(path)).collect();
            libraries.sort();
            Some(Runtime { name: name.to_owned(), version, library: libraries.into_iter().next()? })
        })
        .max_by_key(|runtime| version_key(&runtime.version))
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && name.starts_with("lib") && (name.ends_with(".so") || name.contains(".so."))
}

/// Numbers compare as numbers: 1.9 is older than 1.31.
fn version_key(version: &str) -> Vec<(u64, String)> {
    version.split('.').map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
}

fn folder(state: &Path, card: &Card) -> PathBuf {
    state.join("runtimes").join(card.name.base()).join(card.version.as_deref().unwrap_or("unversioned"))
}

/// Puts the blobs of a runtime where plugins look for it: as a second name of the same file where the file system
/// allows, which costs no space.
pub(crate) fn install(
    state: &Path,
    card: &Card,
    files: impl Iterator<Item = (String, PathBuf)>,
) -> Result<()> {
    let folder = folder(state, card);
    fs::create_dir_all(&folder).map_err(RegistryError::io("create", &folder))?;
    for (name, blob) in files {
        // Somebody may be about to open the library that is there: it is replaced, and never away. The new one is no
        // `lib*` until it is whole.
        let path = folder.join(&name);
        let arriving = folder.join(format!(".{name}"));
        remove(&arriving)?;
        if fs::hard_link(&blob, &arriving).is_err() {
            fs::copy(&blob, &arriving).map_err(RegistryError::io("write", &arriving))?;
        }
        fs::rename(&arriving, &path).map_err(RegistryError::io("move", &arriving))?;
        remove(&arriving)?; // a rename onto another name of the same file does nothing
    }
    Ok(())
}

pub(crate) fn uninstall(state: &Path, card: &Card) -> Result<()> {
    remove(&folder(state, card)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_newest_version_that_has_a_library() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(find(state.path(), "onnxruntime"), None);
        for (version, file) in
            [("1.9.0", "libonnxruntime.so.1.9.0"), ("1.31.1", "libonnxruntime.so.1.31.1"), ("2.0", "README")]
        {
            let folder = state.path().join("runtimes/onnxruntime").join(version);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), "").unwrap();
        }
        let found = find(state.path(), "onnxruntime").unwrap();
        assert_eq!(found.version, "1.31.1");
        assert!(found.library.ends_with("1.31.1/libonnxruntime.so.1.31.1"));
    }

    #[test]
    fn a_library_is_replaced_and_never_away() {
        let state = tempfile::tempdir().unwrap();
        let card = Card::parse(
            "name = 'rt'\nkind = 'runtime'\nversion = '1'\n[[files]]\nrole = 'library'\npath = 'x'\n",
            "test",
        )
        .unwrap();
        let blob = state.path().join("blob");
        let put =
            |blob: &Path| install(state.path(), &card, std::iter::once(("librt.so".into(), blob.into())));
        fs::write(&blob, "one").unwrap();
        put(&blob).unwrap();
        put(&blob).unwrap();
        assert!(put(&state.path().join("absent")).is_err());
        let there = find(state.path(), "rt").expect("what failed took nothing away").library;
        assert_eq!(fs::read(&there).unwrap(), b"one");
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, "two").unwrap();
        put(&blob).unwrap();
        assert_eq!(fs::read(&there).unwrap(), b"two");
        assert_eq!(list(there.parent().unwrap()).unwrap(), [there], "nothing is left beside it");
    }
}
