//! What stands between a file from anywhere and a plugin: the signature first, then everything that was signed.

use std::path::Path;

use super::error::{Problem, Result, io};
use super::file::PackageFile;
use super::manifest::{MAX_MANIFEST, PackageManifest};
use super::{library, payload, unpack};
use crate::digest::Digest;
use crate::plugin::inspect;
use crate::trust::{self, Envelope, Role, Timestamp, TrustError, TrustStore, TrustedKey, payload_type};

/// How much is known of where a plugin comes from, from the least.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A library that somebody put into a folder: signed by nobody.
    #[default]
    Dev,
    /// Signed with a key that the operator added.
    Org,
    /// Signed with a vendor's key that the project vouches for.
    Verified,
    /// Signed with the project's own key, or part of the program.
    Core,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Org => "org",
            Self::Verified => "verified",
            Self::Core => "core",
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<trust::Level> for Level {
    fn from(level: trust::Level) -> Self {
        match level {
            trust::Level::Core => Self::Core,
            trust::Level::Verified => Self::Verified,
            trust::Level::Org => Self::Org,
        }
    }
}

/// Whom this host believes, at one moment.
#[derive(Debug)]
pub struct Trust {
    keys: trust::Trusted,
    now: Timestamp,
    /// Packages below it are refused.
    pub least: Level,
}

impl Trust {
    /// The keys and revocations of a state directory.
    pub fn load(state: &Path, least: Level, now: Timestamp) -> Result<Self> {
        let keys = TrustStore::at(state)
            .load(now)
            .map_err(|error| Problem::Untrusted(error.to_string()).of("the trusted keys"))?;
        Ok(Self { keys, now, least })
    }

    /// What of the trust files could not be believed.
    pub fn problems(&self) -> &[TrustError] {
        &self.keys.problems
    }

    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Whether a revocation list names this file of this plugin.
    pub fn revokes(&self, digest: &Digest, plugin: &str) -> bool {
        self.keys.revocations.revokes_digest(digest, plugin)
    }
}

/// A manifest that a trusted key signed, for a plugin that the key speaks for, which this host could load.
#[derive(Debug, Clone)]
pub struct Verified {
    pub manifest: PackageManifest,
    /// SHA-256 of the manifest as signed: it names every other byte of the package.
    pub digest: Digest,
    pub signer: TrustedKey,
    pub level: Level,
    pub(crate) envelope: Vec<u8>,
}

impl Verified {
    /// How its folder is called: `1.0.0-0123456789ab`.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.manifest.plugin.version, self.digest.short())
    }
}

/// Checks the signed manifest. Nothing of it is looked at before its signature.
pub(crate) fn head(envelope: &[u8], origin: &Path, trust: &Trust) -> Result<Verified> {
    let parsed = match Envelope::parse(envelope, MAX_MANIFEST as usize) {
        Ok(parsed) => parsed,
        Err(error) => {
            let unsigned = PackageManifest::parse(envelope).is_ok();
            let problem = if unsigned { Problem::Unsigned } else { Problem::NotAPackage(error.to_string()) };
            return Err(problem.at(origin));
        }
    };
    // One manifest has one spelling, so that no byte of the file is without meaning.
    if parsed.to_json() != envelope {
        return Err(Problem::NotAPackage("its manifest is not written as one is".to_owned()).at(origin));
    }
    let payload = parsed
        .verify(&trust.keys.keys, Role::Plugin, payload_type::PLUGIN, trust.now)
        .map_err(|error| untrusted(&error).at(origin))?;
    let digest = Digest::of(payload.bytes());
    let manifest = PackageManifest::parse(payload.bytes()).map_err(|problem| problem.at(origin))?;
    let id = &manifest.plugin.id;
    let Some(signer) = payload.signer_for(id) else {
        let signer = &payload.signers()[0];
        let patterns: Vec<_> = signer.plugins.iter().map(ToString::to_string).collect();
        let what = format!(
            "the key {} of {} is trusted for `{}`, not for `{id}`",
            signer.id(),
            signer.owner,
            patterns.join("`, `")
        );
        return Err(Problem::Untrusted(what).at(origin));
    };
    let level = Level::from(signer.level);
    if level < trust.least {
        let what = format!(
            "{} is of the level `{level}`, and `plugins.trust` asks for `{}`",
            manifest.title(),
            trust.least
        );
        return Err(Problem::Policy(what).at(origin));
    }
    let library = manifest.file(&manifest.entry).map(|file| file.sha256);
    if [Some(digest), library].iter().flatten().any(|digest| trust.revokes(digest, id)) {
        let what = format!("{} is on a revocation list; use another version", manifest.title());
        return Err(Problem::Revoked(what).at(origin));
    }
    manifest.fits_host().map_err(|problem| problem.at(origin))?;
    let signer = signer.clone();
    Ok(Verified { manifest, digest, signer, level, envelope: envelope.to_vec() })
}

fn untrusted(error: &TrustError) -> Problem {
    match error {
        TrustError::BadSignature { .. } => Problem::Modified(error.to_string()),
        TrustError::KeyRevoked { .. } => Problem::Revoked(error.to_string()),
        _ => Problem::Untrusted(error.to_string()),
    }
}

/// Opens a package and checks its signature and all that its manifest alone tells.
pub fn open(path: &Path, trust: &Trust) -> Result<Package> {
    let file = PackageFile::open(path)?;
    let verified = head(&file.envelope, path, trust)?;
    Ok(Package { file, verified })
}

/// A package with a good signature. Its payload was not looked at.
#[derive(Debug)]
pub struct Package {
    file: PackageFile,
    verified: Verified,
}

impl Package {
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Checks everything, and leaves nothing on disk.
    pub fn check(&self) -> Result<()> {
        let folder = tempfile::tempdir().map_err(io("make", &std::env::temp_dir()))?;
        self.unpack(folder.path())
    }

    /// Unpacks into a folder that is new and empty, after the payload's hash was checked; then reads the library as the
    /// host would. On an error the folder is to be removed.
    pub(crate) fn unpack(&self, folder: &Path) -> Result<()> {
        let (manifest, path) = (&self.verified.manifest, &self.file.path);
        payload::check_hash(self.file.payload()?, manifest, path)?;
        unpack::unpack(self.file.payload()?, manifest, path, folder)?;
        let entry = folder.join(manifest.entry.as_str());
        let library = inspect(&entry).map_err(|error| {
            let text = error.to_string();
            let reason = text.strip_prefix(&format!("{}: ", entry.display())).unwrap_or(&text);
            Problem::Refused(format!("`{}`: {reason}", manifest.entry)).at(path)
        })?;
        library::check(&library)
            .and_then(|()| library::check_manifest(&library, manifest))
            .map_err(|problem| problem.at(path))
    }
}
