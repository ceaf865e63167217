//! From a file to what the host wants to know of a plugin before it maps it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backplane_abi::{ENTRY_SYMBOL, NOTE_MANIFEST, NOTE_NAME, NOTE_SECTION};

use super::elf::{self, ElfError};
use super::manifest::{AbiVersion, Manifest};
use crate::digest::Digest;
use crate::package::SealedFile;

/// The longest manifest that is read from a library.
pub const MAX_NOTE: usize = 64 << 10;

/// No plugin is longer: engines with device code reach some hundred megabytes.
const MAX_FILE: u64 = 4 << 30;

/// How entry symbols of every ABI major begin.
const ENTRY_PREFIX: &str = "bp_entry_v";

/// A plugin library that this host can map.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginFile {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// `plugin.toml` as it stands in the library.
    pub manifest_text: String,
    /// `x86_64`
    pub machine: String,
    pub soname: Option<String>,
    /// Libraries that it needs, as it names them.
    pub needed: Vec<String>,
    /// Where the linker is told to look for them (`RPATH`, `RUNPATH`).
    pub search: Vec<String>,
    /// Libraries that the linker is told to map beside or instead of it.
    pub pulls: Vec<String>,
    /// Exported entry symbols, of whatever ABI major.
    pub entries: Vec<String>,
    pub size: u64,
    /// The copy that is mapped instead of the file, where the file was checked against a signature.
    pub sealed: Option<Arc<SealedFile>>,
    /// It lies in an installed package: what its manifest asks for was shown, and agreed to.
    pub packaged: bool,
    /// 64 hexadecimal digits.
    pub sha256: String,
    /// When it was built, in seconds since 1970, as its signed package says.
    pub built: Option<u64>,
}

impl PluginFile {
    /// What the linker is given: the sealed copy, or the file.
    pub fn mapped(&self) -> PathBuf {
        self.sealed.as_ref().map_or_else(|| self.path.clone(), |sealed| sealed.path())
    }
}

/// Why a file is not a plugin for this host. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    #[error("{path}: there is no such file", path = .path.display())]
    Missing { path: PathBuf },

    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },

    #[error("{path}: {size} bytes are more than a plugin may have ({MAX_FILE})", path = .path.display())]
    TooLarge { path: PathBuf, size: u64 },

    #[error("{path}: not an ELF file; a plugin is a shared library (`.so`)", path = .path.display())]
    NotElf { path: PathBuf },

    #[error("{path}: truncated: the file ends before the library does; copy it again", path = .path.display())]
    Truncated { path: PathBuf },

    #[error("{path}: a 32-bit library; this host is 64-bit {host}, build the plugin for that", path = .path.display(), host = std::env::consts::ARCH)]
    Not64Bit { path: PathBuf },

    #[error("{path}: built for {found}, this host is {host}; build the plugin for {host}", path = .path.display(), host = std::env::consts::ARCH)]
    WrongMachine { path: PathBuf, found: String },

    #[error("{path}: an ELF file, but not a shared library; link it with `-shared` or as a `cdylib`", path = .path.display())]
    NotALibrary { path: PathBuf },

    #[error("{path}: a damaged ELF file: {reason}", path = .path.display())]
    Malformed { path: PathBuf, reason: String },

    #[error("{path}: an ordinary library or program: it exports no `{ENTRY_SYMBOL}` and carries no manifest", path = .path.display())]
    NotAPlugin { path: PathBuf },

    #[error("{path}: exports `{ENTRY_SYMBOL}` but carries no manifest; add the note section `{NOTE_SECTION}` (the SDK's `export_plugin!` does)", path = .path.display())]
    NoNote { path: PathBuf },

    #[error("{path}: the manifest note in `{NOTE_SECTION}` is corrupt: {reason}", path = .path.display())]
    NoteCorrupt { path: PathBuf, reason: String },

    #[error("{path}: the manifest note has {size} bytes, at most {MAX_NOTE} are read", path = .path.display())]
    NoteTooLarge { path: PathBuf, size: usize },

    #[error("{path}: plugin.toml inside it: {reason}", path = .path.display())]
    Manifest { path: PathBuf, reason: String },

    #[error("{path}: carries a manifest but exports no `{ENTRY_SYMBOL}`; check that the linker keeps the symbol", path = .path.display())]
    NoEntry { path: PathBuf },

    #[error("{path}: exports {entries} only; this host speaks ABI {host}, which is `{ENTRY_SYMBOL}`: {fix}", path = .path.display(), entries = list(.entries), host = AbiVersion::HOST, fix = other_major(.entries))]
    OtherMajor { path: PathBuf, entries: Vec<String> },

    #[error("{path}: plugin `{id}` {version} is built for ABI {abi}, but exports `{ENTRY_SYMBOL}`; its manifest has to say `abi = \"{host}\"`", path = .path.display(), host = AbiVersion::HOST)]
    AbiMismatch { path: PathBuf, id: String, version: String, abi: AbiVersion },

    #[error("{path}: plugin `{id}` {version} is built for ABI {abi} and needs a host with {needs} or later; this host speaks {host}: upgrade the host, or use an older version of the plugin", path = .path.display(), host = AbiVersion::HOST)]
    HostTooOld { path: PathBuf, id: String, version: String, abi: AbiVersion, needs: AbiVersion },
}

fn list(entries: &[String]) -> String {
    entries.iter().map(|entry| format!("`{entry}`")).collect::<Vec<_>>().join(", ")
}

fn other_major(entries: &[String]) -> &'static str {
    let newer = |entry: &String| {
        entry
            .strip_prefix(ENTRY_PREFIX)
            .and_then(|v| v.parse::<u16>().ok())
            .is_some_and(|v| v > AbiVersion::HOST.major)
    };
    if entries.iter().any(newer) { "upgrade the host" } else { "use a newer version of the plugin" }
}

/// Reads a plugin library without running any of its code.
pub fn inspect(path: &Path) -> Result<PluginFile, InspectError> {
    let data = read(path)?;
    examine(path, &data)
}

/// Reads the sealed copy of a library; `path` is where the library lies, for people.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_sealed(path: &Path, sealed: SealedFile) -> Result<PluginFile, InspectError> {
    let data = read(&sealed.path())?;
    Ok(PluginFile { sealed: Some(Arc::new(sealed)), ..examine(path, &data)? })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, InspectError> {
    let unreadable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => InspectError::Missing { path: path.to_owned() },
        _ => InspectError::Unreadable { path: path.to_owned(), source },
    };
    // A pipe would block and a device would never end, so what is not a file is not even opened.
    let meta = path.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(InspectError::Unreadable {
            path: path.to_owned(),
            source: std::io::Error::other("not a file"),
        });
    }
    if meta.len() > MAX_FILE {
        return Err(InspectError::TooLarge { path: path.to_owned(), size: meta.len() });
    }
    let mut data = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut data)).map_err(unreadable)?;
    Ok(data)
}

pub(super) fn examine(path: &Path, data: &[u8]) -> Result<PluginFile, InspectError> {
    let here = path.to_owned();
    let library = elf::read(data, NOTE_SECTION, ENTRY_PREFIX).map_err(|error| not_a_library(path, error))?;
    let speaks_ours = library.entries.iter().any(|entry| entry == ENTRY_SYMBOL);
    let (manifest, manifest_text) = match (library.note, speaks_ours, library.entries.is_empty()) {
        (None, false, true) => return Err(InspectError::NotAPlugin { path: here }),
        (_, false, false) => return Err(InspectError::OtherMajor { path: here, entries: library.entries }),
        (None, true, _) => return Err(InspectError::NoNote { path: here }),
        (Some(note), _, _) => manifest(path, note)?,
    };
    if !speaks_ours {
        return Err(InspectError::NoEntry { path: here });
    }
    let (id, version, abi) = (manifest.id.clone(), manifest.version.clone(), manifest.abi);
    if abi.major != AbiVersion::HOST.major {
        return Err(InspectError::AbiMismatch { path: here, id, version, abi });
    }
    if manifest.min_host_minor > AbiVersion::HOST.minor {
        let needs = AbiVersion { major: abi.major, minor: manifest.min_host_minor };
        return Err(InspectError::HostTooOld { path: here, id, version, abi, needs });
    }
    Ok(PluginFile {
        path: here,
        manifest,
        manifest_text: manifest_text.to_owned(),
        machine: library.machine,
        soname: library.soname,
        needed: library.needed,
        search: library.search,
        pulls: library.pulls,
        entries: library.entries,
        size: data.len() as u64,
        sealed: None,
        packaged: false,
        sha256: Digest::of(data).to_string(),
        built: None,
    })
}

pub(super) fn not_a_library(path: &Path, error: ElfError) -> InspectError {
    let path = path.to_owned();
    match error {
        ElfError::NotElf => InspectError::NotElf { path },
        ElfError::Truncated => InspectError::Truncated { path },
        ElfError::Not64Bit => InspectError::Not64Bit { path },
        ElfError::WrongMachine { found } => InspectError::WrongMachine { path, found },
        ElfError::NotALibrary => InspectError::NotALibrary { path },
        ElfError::Malformed(reason) => InspectError::Malformed { path, reason },
    }
}

/// The manifest in the contents of the note section, and its text.
pub(super) fn manifest<'data>(
    path: &Path,
    section: &'data [u8],
) -> Result<(Manifest, &'data str), InspectError> {
    let corrupt =
        |reason: &str| InspectError::NoteCorrupt { path: path.to_owned(), reason: reason.to_owned() };
    let mut rest = section;
    while !rest.is_empty() {
        let (note, after) = Note::split(rest).ok_or_else(|| corrupt("its sizes do not fit its section"))?;
        rest = after;
        if note.name != NOTE_NAME || note.kind != NOTE_MANIFEST {
            continue;
        }
        // The padding may have been counted in.
        let end = note.description.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if end > MAX_NOTE {
            return Err(InspectError::NoteTooLarge { path: path.to_owned(), size: end });
        }
        let text = std::str::from_utf8(&note.description[..end])
            .map_err(|_| corrupt("the manifest is not UTF-8"))?;
        return Manifest::parse(text)
            .map(|manifest| (manifest, text))
            .map_err(|reason| InspectError::Manifest { path: path.to_owned(), reason });
    }
    Err(corrupt("no note in it is named `Backplane` and has type 1"))
}

pub(super) struct Note<'data> {
    pub name: &'data [u8],
    pub kind: u32,
    pub description: &'data [u8],
}

impl<'data> Note<'data> {
    /// The first note of a section, and what follows it. The last one may lack its padding.
    pub fn split(data: &'data [u8]) -> Option<(Self, &'data [u8])> {
        let word = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
        let (name_size, size, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let name = data.get(12..12_usize.checked_add(name_size)?)?;
        let start = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let description = data.get(start..start.checked_add(size)?)?;
        let end = start.checked_add(size.checked_next_multiple_of(4)?)?;
        Some((Self { name, kind, description }, data.get(end..).unwrap_or_default()))
    }
}
