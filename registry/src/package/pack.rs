//! From a library to a package. What [`verify`](super::verify) would refuse is not packed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{Problem, Result, io};
use super::file::{self, PackageFile};
use super::library;
use super::manifest::{FORMAT, FileEntry, MAX_MANIFEST, PackageManifest, Payload, Platform, PluginToml};
use super::path::PackagePath;
use super::payload::{self, Source};
use crate::digest::Digest;
use crate::plugin::inspect;
use crate::trust::{Envelope, SecretKey, payload_type};

/// What goes into a package.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Files beside the library: a licence, notices, a bill of materials. Each under a name of its own.
    pub files: BTreeMap<PackagePath, PathBuf>,
    /// When the library was built, in seconds since 1970.
    pub built: Option<u64>,
}

/// A package that is not signed yet.
#[derive(Debug)]
pub struct Packed {
    pub manifest: PackageManifest,
    pub(crate) payload: Vec<u8>,
}

/// Packs a plugin library. The same files give the same bytes.
///
/// # Errors
/// The library is no plugin, or nothing that a host would install; a file cannot be read or named so.
pub fn pack(library: &Path, options: &PackOptions) -> Result<Packed> {
    let path = library;
    let library = inspect(path).map_err(|error| {
        let text = error.to_string();
        let reason = text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&text).to_owned();
        Problem::Refused(reason).at(path)
    })?;
    library::check(&library).map_err(|problem| problem.at(path))?;
    if let Err(error) = semver::Version::parse(&library.manifest.version) {
        let version = &library.manifest.version;
        let what =
            format!("`version` is `{version}`: packages are compared, so it has to be as in 1.0.0 ({error})");
        return Err(Problem::Manifest(what).at(path));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entry: PackagePath = name.parse().map_err(|bad: super::path::BadPath| {
        Problem::Refused(format!("{bad}; rename the library")).at(path)
    })?;

    let mut paths = options.files.clone();
    if paths.insert(entry.clone(), path.to_owned()).is_some() {
        return Err(Problem::Refused(format!("two files are named `{entry}`")).at(path));
    }
    let mut sources = Vec::with_capacity(paths.len());
    let mut files = Vec::with_capacity(paths.len());
    for (path, from) in paths {
        let bytes = std::fs::read(&from).map_err(io("read", &from))?;
        files.push(FileEntry { path: path.clone(), size: bytes.len() as u64, sha256: Digest::of(&bytes) });
        sources.push(Source { path, bytes });
    }
    // The library that was checked is the one that is packed.
    if files.iter().any(|one| one.path == entry && one.sha256.to_string() != library.sha256) {
        return Err(Problem::Modified("it changed while it was read".to_owned()).at(path));
    }
    let (payload, unpacked) = payload::write(&sources).map_err(io("pack", path))?;
    let plugin = PluginToml::new(library.manifest_text).map_err(|why| Problem::Manifest(why).at(path))?;
    let manifest = PackageManifest {
        format: FORMAT,
        plugin,
        platform: Platform::here(),
        built: options.built,
        entry,
        payload: Payload { sha256: Digest::of(&payload), size: payload.len() as u64, unpacked },
        files,
    };
    manifest.check().map_err(|problem| problem.at(path))?;
    payload::check(payload.as_slice(), &manifest, path)?;
    Ok(Packed { manifest, payload })
}

impl Packed {
    /// Writes the package without a signature, for who signs it elsewhere. No host installs it.
    pub fn write_unsigned(&self, path: &Path) -> Result<()> {
        file::write(path, &self.document(path)?, self.payload.as_slice())
    }

    /// Writes the package, signed.
    pub fn write(&self, path: &Path, keys: &[&SecretKey]) -> Result<Digest> {
        let document = self.document(path)?;
        let digest = Digest::of(&document);
        let envelope = Envelope::sign(payload_type::PLUGIN, document, keys);
        file::write(path, &envelope.to_json(), self.payload.as_slice())?;
        Ok(digest)
    }

    fn document(&self, path: &Path) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.manifest).map_err(|error| Problem::Manifest(error.to_string()).at(path))
    }
}

/// Signs a package, signed or not, with these keys; earlier signatures go. Its payload stays as it is, and has to be
/// what the manifest says. Returns what was signed.
pub fn sign(path: &Path, to: &Path, keys: &[&SecretKey]) -> Result<PackageManifest> {
    let package = PackageFile::open(path)?;
    let document = match Envelope::parse(&package.envelope, MAX_MANIFEST as usize) {
        Ok(envelope) => envelope.unverified_payload().to_vec(),
        Err(_) => package.envelope.clone(),
    };
    let manifest = check(&package, &document)?;
    let envelope = Envelope::sign(payload_type::PLUGIN, document, keys);
    file::write(to, &envelope.to_json(), package.payload()?)?;
    Ok(manifest)
}

/// Whether a package is signed by anybody, and whole; its manifest, and what that is called.
pub(crate) fn check_signed(path: &Path) -> Result<(PackageManifest, Digest)> {
    let package = PackageFile::open(path)?;
    let envelope =
        Envelope::parse(&package.envelope, MAX_MANIFEST as usize).map_err(|_| Problem::Unsigned.at(path))?;
    let document = envelope.unverified_payload();
    Ok((check(&package, document)?, Digest::of(document)))
}

/// What a signed package is called on revocation lists.
pub fn signed_digest(path: &Path) -> Result<Digest> {
    check_signed(path).map(|(_, digest)| digest)
}

/// Whether the payload of a package is what its manifest says. Nobody's signature is asked.
fn check(package: &PackageFile, document: &[u8]) -> Result<PackageManifest> {
    let path = &package.path;
    let manifest = PackageManifest::parse(document).map_err(|problem| problem.at(path))?;
    payload::check_hash(package.payload()?, &manifest, path)?;
    payload::check(package.payload()?, &manifest, path)?;
    Ok(manifest)
}
