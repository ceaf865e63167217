//! What is signed: `plugin.toml`'s content, and every file of the package with its hash.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::path::PackagePath;
use crate::digest::Digest;
use crate::plugin::{AbiVersion, Manifest};
use crate::trust::parse_typed;

/// The number that a later format changes.
pub const FORMAT: u32 = 1;
/// The longest signed manifest that is read.
pub const MAX_MANIFEST: u64 = 256 << 10;
/// The longest payload, packed and unpacked.
pub const MAX_PAYLOAD: u64 = 4 << 30;
const MAX_FILES: usize = 1000;

/// The signed manifest of a package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageManifest {
    pub format: u32,
    pub plugin: PluginToml,
    pub platform: Platform,
    /// When the library was built, in seconds since 1970: a licence's `updates_until` is compared with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<u64>,
    /// The library.
    pub entry: PackagePath,
    pub payload: Payload,
    /// All files, in order of their names.
    pub files: Vec<FileEntry>,
}

/// `plugin.toml`, to the letter as it stands in the library: signed with all that a later version may say in it.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginToml {
    pub(crate) text: String,
    manifest: Manifest,
}

impl PluginToml {
    pub(crate) fn new(text: String) -> Result<Self, String> {
        let manifest = Manifest::parse(&text)?;
        Ok(Self { text, manifest })
    }
}

impl std::ops::Deref for PluginToml {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

impl Serialize for PluginToml {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for PluginToml {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What a library was built for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    pub os: String,
    pub arch: String,
}

impl Platform {
    pub fn here() -> Self {
        Self { os: std::env::consts::OS.to_owned(), arch: std::env::consts::ARCH.to_owned() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.os, self.arch)
    }
}

/// The compressed archive that follows the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    pub sha256: Digest,
    pub size: u64,
    /// The length of the archive once decompressed: decompression stops there.
    pub unpacked: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub path: PackagePath,
    pub size: u64,
    pub sha256: Digest,
}

impl PackageManifest {
    /// Reads and checks what was signed.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Problem> {
        let manifest: Self = parse_typed(json).map_err(|error| Problem::Manifest(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    pub(crate) fn check(&self) -> Result<(), Problem> {
        let bad = |reason: String| Err(Problem::Manifest(reason));
        if self.format != FORMAT {
            return bad(format!("format {} is not known to this host, which reads {FORMAT}", self.format));
        }
        if self.payload.size > MAX_PAYLOAD || self.payload.unpacked > MAX_PAYLOAD {
            return bad(format!("the payload is longer than {MAX_PAYLOAD} bytes"));
        }
        if self.files.len() > MAX_FILES {
            return bad(format!("{} files are more than {MAX_FILES}", self.files.len()));
        }
        let mut folders = BTreeSet::new();
        for (before, file) in self.files.iter().zip(self.files.iter().skip(1)) {
            if before.path == file.path {
                return bad(format!("the file `{}` is listed twice", file.path));
            }
            if before.path > file.path {
                return bad(format!("its files are not in order: `{}` comes late", file.path));
            }
        }
        for file in &self.files {
            folders.extend(file.path.folders());
        }
        if let Some(file) = self.files.iter().find(|file| folders.contains(file.path.as_str())) {
            return bad(format!("`{}` is a file and a folder", file.path));
        }
        // Each file takes whole blocks and a header, and the end two blocks.
        let mut least = 1024_u64;
        for file in &self.files {
            least = file
                .size
                .checked_next_multiple_of(512)
                .and_then(|size| least.checked_add(size)?.checked_add(512))
                .ok_or_else(|| Problem::Manifest(format!("`{}` is too long", file.path)))?;
        }
        if least > self.payload.unpacked {
            return bad(format!(
                "its files need {least} bytes, and the payload has {}",
                self.payload.unpacked
            ));
        }
        if !self.files.iter().any(|file| file.path == self.entry) {
            return bad(format!("the library `{}` is not among its files", self.entry));
        }
        if let Some(other) =
            self.files.iter().find(|file| file.path != self.entry && is_library(file.path.as_str()))
        {
            return bad(format!(
                "`{}` is a second library; a plugin is one library, loaded from memory after its check, which \
                 cannot bring others along: link it statically",
                other.path
            ));
        }
        Ok(())
    }

    /// Whether this host could load it at all, told before anything is decompressed.
    pub(crate) fn fits_host(&self) -> Result<(), Problem> {
        let here = Platform::here();
        if self.platform != here {
            return Err(Problem::Platform(format!("built for {}, this host is {here}", self.platform)));
        }
        let (abi, host) = (self.plugin.abi, AbiVersion::HOST);
        if abi.major != host.major {
            return Err(Problem::Platform(format!("built for ABI {abi}, this host speaks {host}")));
        }
        if self.plugin.min_host_minor > host.minor {
            return Err(Problem::Platform(format!(
                "needs a host with ABI {}.{} or later, this host speaks {host}: upgrade the host",
                abi.major, self.plugin.min_host_minor
            )));
        }
        Ok(())
    }

    pub fn file(&self, path: &PackagePath) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.path == *path)
    }

    /// `com.acme.x 1.0.0`
    pub fn title(&self) -> String {
        format!("{} {}", self.plugin.id, self.plugin.version)
    }
}

/// `libx.so`, `libx.so.1`
fn is_library(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    name.ends_with(".so") || name.contains(".so.")
}
