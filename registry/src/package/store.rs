//! Installed packages.
//!
//! ```text
//! <state>/plugins/
//!   <id>/<version>-<digest>/   one version, read-only: its files, and `.manifest.dsse`, what was signed
//!   <id>/current               a link to the version in use
//!   .incoming-*                what is being unpacked; swept by the next install if its process died
//!   .lock, ledger.jsonl
//! ```

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::error::{Problem, Result, io as at};
use super::ledger::{self, Act, Entry};
use super::library;
use super::manifest::{MAX_MANIFEST, MAX_PAYLOAD};
use super::seal::{SealedFile, seal};
use super::verify::{Package, Trust, Verified, head};
use crate::error::nearest;
use crate::plugin::{InspectError, PluginFile, inspect_sealed};
use crate::trust::{Timestamp, read_capped};

const MANIFEST: &str = ".manifest.dsse";
const CURRENT: &str = "current";
const INCOMING: &str = ".incoming-";
/// Versions that are kept of each plugin, the one in use among them.
pub const KEEP: usize = 3;

/// The installed packages of a state directory.
#[derive(Debug, Clone)]
pub struct Plugins {
    root: PathBuf,
}

/// One installed version, as its folder says. Nobody has checked its signature; [`Plugins::check`] does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Version {
    pub id: String,
    pub version: String,
    /// The first digits of the digest.
    pub digest: String,
    pub current: bool,
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A version whose signature holds, with its library in memory where nobody can change it.
#[derive(Debug)]
pub struct Checked {
    pub verified: Verified,
    pub library: SealedFile,
    /// Where the library lies; what is mapped is the sealed copy.
    pub path: PathBuf,
}

impl Checked {
    /// The library as the loader wants it: what is mapped is the sealed copy.
    pub fn into_plugin_file(self) -> Result<PluginFile> {
        let refused = |error: InspectError| Problem::Refused(error.to_string()).at(&self.path);
        let file = inspect_sealed(&self.path, self.library).map_err(refused)?;
        library::check(&file)
            .and_then(|()| library::check_manifest(&file, &self.verified.manifest))
            .map_err(|problem| problem.at(&self.path))?;
        Ok(PluginFile { packaged: true, built: self.verified.manifest.built, ..file })
    }
}

/// What an install did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Installed {
    pub id: String,
    pub version: String,
    pub digest: String,
    /// The version that was in use before.
    pub before: Option<String>,
    /// It was there already, whole.
    pub unchanged: bool,
    /// It was there already, and no longer as it was signed.
    pub mended: bool,
}

impl Plugins {
    pub fn at(state: &Path) -> Self {
        Self { root: state.join("plugins") }
    }

    /// All installed versions, by id and then from the oldest to the newest.
    pub fn list(&self) -> Result<Vec<Version>> {
        let mut all = Vec::new();
        for folder in folders(&self.root)? {
            if let Some(id) = folder.file_name().and_then(|name| name.to_str()).filter(|name| is_id(name)) {
                all.extend(self.versions(id)?);
            }
        }
        Ok(all)
    }

    /// The installed versions of one plugin, from the oldest to the newest.
    pub fn versions(&self, id: &str) -> Result<Vec<Version>> {
        let here = self.root.join(id);
        let current = self.current(id);
        let mut all: Vec<Version> = folders(&here)?
            .into_iter()
            .filter_map(|folder| {
                let name = folder.file_name()?.to_str()?;
                let (version, digest) = name.rsplit_once('-').filter(|_| is_version(name))?;
                Some(Version {
                    id: id.to_owned(),
                    version: version.to_owned(),
                    digest: digest.to_owned(),
                    current: current.as_deref() == Some(name),
                    folder,
                })
            })
            .collect();
        all.sort_by(|a, b| order(&a.version, &b.version).then_with(|| a.digest.cmp(&b.digest)));
        Ok(all)
    }

    /// The version of `id` that is in use.
    pub fn in_use(&self, id: &str) -> Result<Version> {
        let found = self.versions(id)?.into_iter().find(|version| version.current);
        found.map_or_else(|| Err(self.missing(id)), Ok)
    }

    /// The plugins that have a version in use, with its folder.
    pub fn active(&self) -> Result<Vec<Version>> {
        Ok(self.list()?.into_iter().filter(|version| version.current).collect())
    }

    /// Checks an installed version as it is loaded: its signature against the keys trusted now, and its library as it
    /// lies there now, copied and sealed first.
    pub fn check(&self, version: &Version, trust: &Trust) -> Result<Checked> {
        let verified = self.read(version, trust)?;
        let path = version.folder.join(verified.manifest.entry.as_str());
        let library = seal(&path, MAX_PAYLOAD)?;
        let signed = verified.manifest.file(&verified.manifest.entry).map(|file| file.sha256);
        if signed != Some(library.sha256) {
            let what = format!("`{}` is not the file that was signed", verified.manifest.entry);
            return Err(Problem::Modified(what).at(&version.folder));
        }
        Ok(Checked { verified, library, path })
    }

    /// Checks the signature of an installed version, and every file of it.
    pub fn check_files(&self, version: &Version, trust: &Trust) -> Result<Verified> {
        let verified = self.read(version, trust)?;
        for file in &verified.manifest.files {
            let path = version.folder.join(file.path.as_str());
            let plain = path.symlink_metadata().map_err(at("read", &path))?.is_file();
            let same =
                plain && crate::digest::Digest::of_file(&path).map_err(at("read", &path))? == file.sha256;
            if !same {
                return Err(
                    Problem::Modified(format!("`{}` is not as signed", file.path)).at(&version.folder)
                );
            }
        }
        Ok(verified)
    }

    /// Why an installed version must not run any more: it, or the key that signed it, was revoked.
    pub fn revoked(&self, version: &Version, trust: &Trust) -> Option<Problem> {
        let problem = self.read(version, trust).err()?.problem;
        matches!(problem, Problem::Revoked(_)).then_some(problem)
    }

    fn read(&self, version: &Version, trust: &Trust) -> Result<Verified> {
        let path = version.folder.join(MANIFEST);
        let envelope = read_capped(&path, MAX_MANIFEST as usize).map_err(|error| {
            Problem::Modified(format!("what was signed is gone: {error}")).at(&version.folder)
        })?;
        let verified = head(&envelope, &version.folder, trust)?;
        let named = (verified.manifest.plugin.id.as_str(), verified.folder());
        if named != (version.id.as_str(), format!("{}-{}", version.version, version.digest)) {
            let what = format!("it lies where {} {} belongs", version.id, version.version);
            return Err(Problem::Modified(what).at(&version.folder));
        }
        Ok(verified)
    }

    /// Installs a package and puts it in use. After an error everything is as it was.
    pub fn install(&self, package: &Package, trust: &Trust, from: &str) -> Result<Installed> {
        let verified = package.verified();
        let id = &verified.manifest.plugin.id;
        fs::create_dir_all(&self.root).map_err(at("make", &self.root))?;
        let _lock = self.lock()?;
        self.sweep();
        let before = self.versions(id)?.into_iter().find(|version| version.current);
        let name = verified.folder();
        let there = self.versions(id)?.into_iter().find(|version| version.folder.ends_with(&name));
        let whole = there.as_ref().is_some_and(|version| self.check_files(version, trust).is_ok());
        if whole {
            // Nothing is unpacked, and a file that is damaged is told all the same.
            package.check()?;
        } else {
            self.unpack(package, there.as_ref())?;
        }
        self.turn(id, &name)?;
        let installed = Installed {
            id: id.clone(),
            version: verified.manifest.plugin.version.clone(),
            digest: verified.digest.to_string(),
            mended: there.is_some() && !whole,
            unchanged: whole && before.as_ref().is_some_and(|version| version.folder.ends_with(&name)),
            before: before.map(|version| version.version),
        };
        self.note(Act::Install, verified, installed.before.clone(), Some(from), trust)?;
        self.prune(id)?;
        Ok(installed)
    }

    /// Unpacks beside the installed ones, and moves the whole folder to its place.
    fn unpack(&self, package: &Package, damaged: Option<&Version>) -> Result<()> {
        let verified = package.verified();
        let incoming = tempfile::Builder::new()
            .prefix(INCOMING)
            .tempdir_in(&self.root)
            .map_err(at("write in", &self.root))?;
        // Removed with all that is in it when this returns early.
        let folder = incoming.path();
        package.unpack(folder)?;
        write_synced(&folder.join(MANIFEST), &verified.envelope)?;
        let plugin = self.root.join(&verified.manifest.plugin.id);
        let made = !plugin.exists();
        fs::create_dir_all(&plugin).map_err(at("make", &plugin))?;
        let place = plugin.join(verified.folder());
        let moved = damaged
            .map_or(Ok(()), |version| {
                let aside = self.root.join(format!("{INCOMING}{}", verified.folder()));
                make_writable(&version.folder)?;
                fs::rename(&version.folder, aside)
            })
            .and_then(|()| fs::rename(folder, &place));
        if let Err(error) = moved {
            if made {
                fs::remove_dir(&plugin).ok();
            }
            return Err(at("move a package to", &place)(error));
        }
        // It has its name; nothing is left to remove at the old one.
        let _ = incoming.keep();
        protect(&place).map_err(at("protect", &place))?;
        sync(&plugin);
        self.sweep();
        Ok(())
    }

    /// Puts the version before the one in use back in use, or the one that is named.
    pub fn rollback(&self, id: &str, to: Option<&str>, trust: &Trust) -> Result<Version> {
        let _lock = self.lock()?;
        let versions = self.versions(id)?;
        let in_use = versions.iter().find(|version| version.current);
        if versions.is_empty() {
            return Err(self.missing(id));
        }
        let target = match to {
            Some(to) => versions.iter().rev().find(|version| version.version == to),
            None => self.before(id, &versions)?,
        };
        let Some(target) = target else {
            let others: Vec<_> =
                versions.iter().filter(|v| !v.current).map(|v| format!("`{}`", v.version)).collect();
            let what = match (to, others.is_empty()) {
                (Some(to), _) => format!(
                    "version {to} is not installed; installed: {}",
                    versions.iter().map(|v| format!("`{}`", v.version)).collect::<Vec<_>>().join(", ")
                ),
                (None, true) => "no other version is installed".to_owned(),
                (None, false) => format!("no version was in use before; name one: {}", others.join(", ")),
            };
            return Err(Problem::NotFound(what).of(id));
        };
        // A version that was revoked since, or damaged, is no way back.
        let verified = self.check_files(target, trust)?;
        self.turn(id, &verified.folder())?;
        let before = in_use.map(|version| version.version.clone());
        self.note(Act::Rollback, &verified, before, None, trust)?;
        Ok(Version { current: true, ..target.clone() })
    }

    /// The version that was in use last before the present one, and is still installed.
    fn before<'a>(&self, id: &str, versions: &'a [Version]) -> Result<Option<&'a Version>> {
        let acts = self.ledger()?;
        let used = acts.iter().rev().filter(|entry| entry.id == id && entry.act != Act::Remove);
        let mut used = used.filter_map(|entry| {
            versions.iter().find(|one| one.version == entry.version && one.digest == entry.digest)
        });
        Ok(used.find(|version| !version.current && failure(&acts, id, &version.digest).is_none()))
    }

    /// Puts a version in use without a note, by its folder; `None`: no version. For a host that tries another one: were
    /// it to die of it, the next start has to find the one that served.
    pub fn point(&self, id: &str, folder: Option<&Path>) -> Result<()> {
        let _lock = self.lock()?;
        let here = self.root.join(id);
        let Some(folder) = folder else {
            gone_is_fine(fs::remove_file(here.join(CURRENT))).map_err(at("remove", &here))?;
            sync(&here);
            return Ok(());
        };
        let name = folder.file_name().and_then(|name| name.to_str()).filter(|name| is_version(name));
        match name {
            Some(name) if here.join(name).is_dir() => self.turn(id, name),
            _ => Err(Problem::NotFound("this version is not installed any more".to_owned()).at(folder)),
        }
    }

    /// Notes that a host tried a version, and went back to `before`.
    pub fn note_failed(&self, version: &Version, before: &str, why: &str, at: Timestamp) -> Result<()> {
        let entry = Entry {
            at,
            act: Act::Failed,
            id: version.id.clone(),
            version: version.version.clone(),
            digest: version.digest.clone(),
            before: Some(before.to_owned()),
            signer: None,
            level: None,
            from: None,
            why: Some(why.to_owned()),
        };
        ledger::append(&self.ledger_file(), &entry)
    }

    /// Why a host went back from the version with this digest, if that is the last that was heard of it.
    pub fn why_failed(&self, id: &str, digest: &str) -> Result<Option<String>> {
        Ok(failure(&self.ledger()?, id, digest))
    }

    /// Removes a plugin, or one version of it that is not in use. Returns what was removed.
    pub fn remove(&self, id: &str, version: Option<&str>, trust: &Trust) -> Result<Vec<Version>> {
        let _lock = self.lock()?;
        let all = self.versions(id)?;
        if all.is_empty() {
            return Err(self.missing(id));
        }
        let gone: Vec<Version> = match version {
            None => all,
            Some(wanted) => {
                let some: Vec<_> = all.into_iter().filter(|one| one.version == wanted).collect();
                if some.is_empty() {
                    return Err(Problem::NotFound(format!("version {wanted} is not installed")).of(id));
                }
                if some.iter().any(|one| one.current) {
                    let what = format!(
                        "version {wanted} is in use; go back to another first: `backplane plugin rollback {id}`"
                    );
                    return Err(Problem::Policy(what).of(id));
                }
                some
            }
        };
        let here = self.root.join(id);
        if version.is_none() {
            // First the link: from here on no host finds it.
            gone_is_fine(fs::remove_file(here.join(CURRENT))).map_err(at("remove", &here))?;
        }
        for one in &gone {
            discard(&one.folder).map_err(at("remove", &one.folder))?;
            let entry = Entry {
                at: trust.now(),
                act: Act::Remove,
                id: id.to_owned(),
                version: one.version.clone(),
                digest: one.digest.clone(),
                before: None,
                signer: None,
                level: None,
                from: None,
                why: None,
            };
            ledger::append(&self.ledger_file(), &entry)?;
        }
        fs::remove_dir(&here).ok();
        Ok(gone)
    }

    /// What was done, oldest first.
    pub fn ledger(&self) -> Result<Vec<Entry>> {
        ledger::read(&self.ledger_file())
    }

    fn note(
        &self,
        act: Act,
        verified: &Verified,
        before: Option<String>,
        from: Option<&str>,
        trust: &Trust,
    ) -> Result<()> {
        let entry = Entry {
            at: trust.now(),
            act,
            id: verified.manifest.plugin.id.clone(),
            version: verified.manifest.plugin.version.clone(),
            digest: verified.digest.short(),
            before,
            signer: Some(verified.signer.id()),
            level: Some(verified.level),
            from: from.map(str::to_owned),
            why: None,
        };
        ledger::append(&self.ledger_file(), &entry)
    }

    fn ledger_file(&self) -> PathBuf {
        self.root.join("ledger.jsonl")
    }

    fn current(&self, id: &str) -> Option<String> {
        let target = fs::read_link(self.root.join(id).join(CURRENT)).ok()?;
        let name = target.to_str()?;
        // A link that leads elsewhere is nobody's.
        is_version(name).then(|| name.to_owned())
    }

    /// Lets `current` lead to another version, in one step.
    fn turn(&self, id: &str, name: &str) -> Result<()> {
        let here = self.root.join(id);
        let (link, next) = (here.join(CURRENT), here.join(".next"));
        let turn = || {
            gone_is_fine(fs::remove_file(&next))?;
            symlink(name, &next)?;
            fs::rename(&next, &link)
        };
        turn().map_err(at("put in use", &here))?;
        sync(&here);
        Ok(())
    }

    /// Removes all but the last few versions that were put in use.
    fn prune(&self, id: &str) -> Result<()> {
        let versions = self.versions(id)?;
        let mut keep: Vec<&Path> =
            versions.iter().filter(|v| v.current).map(|v| v.folder.as_path()).collect();
        let acts = self.ledger()?;
        // What failed is no version to go back to, and must not crowd out the one that is.
        let of = |entry: &&Entry| entry.id == id && failure(&acts, id, &entry.digest).is_none();
        for entry in acts.iter().rev().filter(of) {
            let found = versions.iter().find(|v| v.version == entry.version && v.digest == entry.digest);
            if let Some(version) = found.filter(|v| !keep.contains(&v.folder.as_path())) {
                keep.push(&version.folder);
            }
            if keep.len() == KEEP {
                break;
            }
        }
        for version in versions.iter().filter(|version| !keep.contains(&version.folder.as_path())) {
            discard(&version.folder).map_err(at("remove", &version.folder))?;
        }
        Ok(())
    }

    /// Removes what an install that died left. Called under the lock, so nobody is unpacking there.
    fn sweep(&self) {
        for folder in folders(&self.root).unwrap_or_default() {
            if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(INCOMING)) {
                discard(&folder).ok();
            }
        }
    }

    fn lock(&self) -> Result<File> {
        let path = self.root.join(".lock");
        if !self.root.is_dir() {
            return Err(Problem::NotFound("no plugin package is installed".to_owned()).at(&self.root));
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(at("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(Problem::Busy("another install is under way; try again when it is done".to_owned())
                    .at(&self.root))
            }
            Err(TryLockError::Error(error)) => Err(at("lock", &path)(error)),
        }
    }

    fn missing(&self, id: &str) -> super::error::PackageError {
        let known: Vec<String> =
            self.list().unwrap_or_default().into_iter().map(|version| version.id).collect();
        let near = nearest(id, known.iter().map(String::as_str));
        let hint = near.first().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        Problem::NotFound(format!("no package of this plugin is installed{hint}")).of(format!("`{id}`"))
    }
}

fn failure(acts: &[Entry], id: &str, digest: &str) -> Option<String> {
    let last = acts.iter().rev().find(|entry| entry.id == id && entry.digest == digest)?;
    (last.act == Act::Failed).then(|| last.why.clone().unwrap_or_default())
}

/// Compares versions by the rules of SemVer, where they apply.
pub fn order(a: &str, b: &str) -> std::cmp::Ordering {
    match (semver::Version::parse(a), semver::Version::parse(b)) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}

fn is_id(name: &str) -> bool {
    !name.starts_with('.') && name.contains('.')
}

/// `<version>-<12 digits>`, and nothing that leads elsewhere.
fn is_version(name: &str) -> bool {
    let digits = |digest: &str| digest.len() == 12 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    !name.contains('/')
        && name.rsplit_once('-').is_some_and(|(version, digest)| !version.is_empty() && digits(digest))
}

/// The real folders in a folder: links are none.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at("read", folder)(error)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at("read", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.push(entry.path());
        }
    }
    all.sort();
    Ok(all)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        file.sync_all()
    };
    write().map_err(at("write", path))
}

/// Makes a version's folders read-only, after it has its place: a folder that is moved must be writable.
fn protect(folder: &Path) -> io::Result<()> {
    each_folder(folder, 0o555)
}

fn make_writable(folder: &Path) -> io::Result<()> {
    each_folder(folder, 0o755)
}

fn each_folder(folder: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(mode))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            each_folder(&entry.path(), mode)?;
        }
    }
    Ok(())
}

fn discard(folder: &Path) -> io::Result<()> {
    make_writable(folder)?;
    fs::remove_dir_all(folder)
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a rename last through a power cut, where the file system can.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
}
