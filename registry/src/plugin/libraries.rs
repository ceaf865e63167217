//! Where this machine has a library, looked up as the dynamic linker does, without asking it: its lookup would run
//! the library's code.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use super::linkage::{self, Linkage};

/// The folders of last resort.
const FOLDERS: [&str; 4] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// More than any library of reason brings along.
const MOST: usize = 1000;

/// What a library needs, directly or through another.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Needed {
    pub name: String,
    /// The library that asks for it, where that is not the plugin itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Where it is on this machine; nothing where it is missing.
    pub path: Option<PathBuf>,
}

/// All that `library`, whose linkage this is, needs: what it names itself, and of the rest only what is missing.
/// And the newest glibc that is among them.
pub(crate) fn resolve(library: &Path, own: &Linkage) -> (Vec<Needed>, Option<linkage::GlibcVersion>) {
    let cache = cache();
    let folder = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    let mut found = Vec::new();
    let mut glibc = None;
    let mut seen = BTreeSet::new();
    let mut open: VecDeque<(String, Option<String>, PathBuf, Vec<String>)> = VecDeque::new();
    let ask = |open: &mut VecDeque<_>, linkage: &Linkage, by: Option<&str>, folder: &Path| {
        // RUNPATH sets RPATH out of force.
        let paths = if linkage.runpath.is_empty() { &linkage.rpath } else { &linkage.runpath };
        for name in &linkage.needed {
            open.push_back((name.clone(), by.map(str::to_owned), folder.to_owned(), paths.clone()));
        }
    };
    ask(&mut open, own, None, &folder(library));
    while let Some((name, by, from, paths)) = open.pop_front() {
        if seen.len() >= MOST || !seen.insert(name.clone()) {
            continue;
        }
        let place = places(&name, &from, &paths, &cache).find_map(|path| {
            let linkage = std::fs::read(&path).ok().and_then(|data| linkage::read(&data).ok())?;
            Some((path, linkage))
        });
        if let Some((path, linkage)) = &place {
            glibc = glibc.max(linkage.provides_glibc);
            ask(&mut open, linkage, Some(&name), &folder(path));
        }
        if by.is_none() || place.is_none() {
            found.push(Needed { name, by, path: place.map(|(path, _)| path) });
        }
    }
    (found, glibc)
}

/// Where the linker would look, in its order.
fn places<'a>(
    name: &'a str,
    from: &'a Path,
    paths: &'a [String],
    cache: &'a HashMap<String, PathBuf>,
) -> impl Iterator<Item = PathBuf> + 'a {
    let direct = name.contains('/').then(|| PathBuf::from(name));
    let environment = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let environment: Vec<PathBuf> = std::env::split_paths(&environment).collect();
    let own = paths.iter().map(move |path| {
        let origin = from.to_string_lossy();
        PathBuf::from(path.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
    });
    let last = FOLDERS.iter().map(PathBuf::from);
    let in_folders = environment.into_iter().chain(own).map(move |folder| folder.join(name));
    direct
        .into_iter()
        .chain(in_folders.filter(|path| path.is_file()))
        .chain(cache.get(name).cloned())
        .chain(last.map(move |folder| folder.join(name)).filter(|path| path.is_file()))
}

/// The linker's own list of what is where. Nothing where there is none: the folders remain.
fn cache() -> HashMap<String, PathBuf> {
    std::fs::read("/etc/ld.so.cache").ok().and_then(|data| read_cache(&data)).unwrap_or_default()
}

/// The format of glibc since 2.2: a head of 48 bytes, entries of 24 (flags, name, path, two more), then texts, all
/// places counted from the head.
fn read_cache(data: &[u8]) -> Option<HashMap<String, PathBuf>> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    let start = data.windows(MAGIC.len()).position(|window| window == MAGIC)?;
    let data = &data[start..];
    let word = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?) as usize);
    let text = |at: usize| {
        let text = data.get(at..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&text[..end]).into_owned())
    };
    let mut found = HashMap::new();
    for entry in (0..word(20)?).map(|number| 48 + number * 24) {
        let (Some(name), Some(path)) = (word(entry + 4), word(entry + 8)) else { break };
        if let (Some(name), Some(path)) = (text(name), text(path)) {
            // 64-bit ones of this machine come first.
            found.entry(name).or_insert_with(|| PathBuf::from(path));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_the_linker_is_read() {
        let mut data = b"ld.so-1.7.0 before it\0\0\0".to_vec();
        let texts = b"liba.so.1\0/opt/liba.so.1\0";
        let mut head = b"glibc-ld.so.cache1.1".to_vec();
        head.extend(1_u32.to_ne_bytes());
        head.resize(48, 0);
        let at = 48 + 24;
        for word in [3_u32, at, at + 10, 0, 0, 0] {
            head.extend(word.to_ne_bytes());
        }
        data.extend(head);
        data.extend(texts);
        let cache = read_cache(&data).unwrap();
        assert_eq!(cache["liba.so.1"], Path::new("/opt/liba.so.1"));
        assert!(read_cache(b"something else").is_none());
        assert!(read_cache(&data[..data.len() - 30]).unwrap().is_empty(), "cut off");
    }

    #[test]
    fn what_is_missing_is_named_with_who_asks() {
        let own =
            Linkage { needed: vec!["libc.so.6".into(), "libno-such.so.1".into()], ..Linkage::default() };
        let (found, glibc) = resolve(Path::new("/opt/plugin.so"), &own);
        assert!(found[0].path.is_some() && glibc >= Some((2, 17)), "{found:?} {glibc:?}");
        assert_eq!(found[1], Needed { name: "libno-such.so.1".into(), by: None, path: None });
    }
}
