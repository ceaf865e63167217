//! Installed models: list, resolve by name, copy, remove. [`pull`](crate::pull) brings them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::card::{Card, FileSpec, Kind, role_within};
use crate::catalogue::Catalogue;
use crate::digest::Digest;
use crate::error::{RegistryError, Result, nearest};
use crate::name::ModelName;
use crate::runtime;
use crate::settings::Settings;
use crate::source::{self, Source};
use crate::store::{self, Guards, Store};

pub use crate::pull::{PlannedFile, PullOptions, PullPlan};

/// The models of one state directory. Cheap to make and to clone; holds nothing open.
#[derive(Debug, Clone)]
pub struct Models {
    pub(crate) state: PathBuf,
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    pub(crate) catalogue: &'static Catalogue,
}

/// A model whose files are all there.
#[derive(Debug, Clone, PartialEq)]
pub struct Installed {
    pub name: ModelName,
    /// First 12 hexadecimal digits of the SHA-256 of what the model is; a copy has the same. Of local files:
    /// and of when they were last written.
    pub id: String,
    pub card: Card,
    pub files: Vec<InstalledFile>,
    /// Bytes of all files.
    pub size: u64,
    /// When the card was last written.
    pub modified: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledFile {
    pub role: String,
    /// Its own name: as the card says, else the last part of where it comes from. Stored, it lies under its digest.
    pub name: String,
    pub path: PathBuf,
    pub size: u64,
    /// Known for every pulled file; for a local one, if its card says.
    pub sha256: Option<Digest>,
}

impl Installed {
    /// Path of the file with this role.
    pub fn file(&self, role: &str) -> Option<&Path> {
        self.files.iter().find(|file| file.role == role).map(|file| file.path.as_path())
    }

    /// A model that stays where it is: a card written by hand whose files lie beside it.
    pub fn local(card_path: &Path) -> Result<Self> {
        let card = Card::read(card_path)?;
        let folder = card_path.parent().unwrap_or(Path::new("."));
        let mut model =
            Self::new(card, card_path, |file| match (&file.path, file.source.as_deref().map(str::parse)) {
                (Some(path), _) => Some(folder.join(path)),
                (None, Some(Ok(Source::File(path)))) => Some(path),
                _ => None,
            })?;
        model.id = model.id_as_written()?;
        Ok(model)
    }

    /// The models that it is made of: one for each entry under `graphs` of its card.
    pub fn graphs(&self) -> Vec<Self> {
        let graph = |role: &String| {
            let card = self.card.graph(role)?.ok()?;
            let own = |file: &InstalledFile| {
                Some(InstalledFile { role: role_within(role, &file.role)?, ..file.clone() })
            };
            let files: Vec<_> = self.files.iter().filter_map(own).collect();
            Some(Self {
                name: card.name.clone(),
                id: Digest::of(format!("{} {role}", self.id).as_bytes()).short(),
                size: files.iter().map(|file| file.size).sum(),
                modified: self.modified,
                files,
                card,
            })
        };
        self.card.graphs.keys().filter_map(graph).collect()
    }

    /// The id with the time that each file was last written. Files that lie where a person put them can be replaced, and
    /// to read them whole at every look would be slow.
    fn id_as_written(&self) -> Result<String> {
        let mut text = self.id.clone();
        for file in &self.files {
            let written = file.path.metadata().and_then(|meta| meta.modified());
            let written = written.map_err(RegistryError::io("read", &file.path))?;
            let since = written.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            text.push_str(&format!(" {}", since.as_nanos()));
        }
        Ok(Digest::of(text.as_bytes()).short())
    }

    fn new(card: Card, card_path: &Path, locate: impl Fn(&FileSpec) -> Option<PathBuf>) -> Result<Self> {
        let incomplete = |missing: String| RegistryError::Incomplete { name: card.name.to_string(), missing };
        let mut files = Vec::new();
        for file in card.files_here() {
            let path = locate(file).ok_or_else(|| incomplete(format!("the file `{}`", file.role)))?;
            let size = match path.metadata() {
                Ok(meta) if meta.is_file() && file.size.is_none_or(|size| size == meta.len()) => meta.len(),
                _ => return Err(incomplete(format!("the file `{}` ({})", file.role, path.display()))),
            };
            let (role, name, sha256) = (file.role.clone(), own_name(file), file.sha256);
            files.push(InstalledFile { role, name, path, size, sha256 });
        }
        let modified = card_path
            .metadata()
            .and_then(|meta| meta.modified())
            .map_err(RegistryError::io("read", card_path))?;
        let size = files.iter().map(|file| file.size).sum();
        Ok(Self { name: card.name.clone(), id: card.id()?, files, size, modified, card })
    }
}

/// What a file is called where it comes from. Empty when nothing says.
fn own_name(file: &FileSpec) -> String {
    let of_path = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    let of_source = |uri: &String| uri.parse::<Source>().ok().map(|source| source.file_name());
    let name = file.name.clone().or_else(|| file.path.as_ref().and_then(of_path));
    name.or_else(|| file.source.as_ref().and_then(of_source)).unwrap_or_default()
}

/// What is installed, and what is there but cannot be used.
#[derive(Debug, Default)]
pub struct Listing {
    pub models: Vec<Installed>,
    pub runtimes: Vec<Installed>,
    pub broken: Vec<RegistryError>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub name: ModelName,
    /// Bytes given back to the disk: less than the model's size where another model has files in common.
    pub freed: u64,
    /// Files that stay, for another name needs them.
    pub shared: usize,
}

impl Models {
    /// The models under `state`, with sources reached as the environment says. Nothing is created until a pull.
    pub fn at(state: impl Into<PathBuf>) -> Self {
        Self::with_settings(state, Settings::from_env())
    }

    pub fn with_settings(state: impl Into<PathBuf>, settings: Settings) -> Self {
        let state = state.into();
        Self { store: Store::at(&state), state, settings, catalogue: Catalogue::embedded() }
    }

    pub fn catalogue(&self) -> &'static Catalogue {
        self.catalogue
    }

    /// The newest installed version of a runtime.
    pub fn runtime(&self, name: &str) -> Option<runtime::Runtime> {
        runtime::find(&self.state, name)
    }

    /// Everything that is installed, by name. A broken model hides no other.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for path in self.store.card_paths()? {
            match self.read(&path) {
                Ok(installed) if installed.card.kind == Kind::Runtime => listing.runtimes.push(installed),
                Ok(installed) => listing.models.push(installed),
                Err(error) => listing.broken.push(error),
            }
        }
        listing.models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// The installed model of that name, or else the one that has it as an alias.
    pub fn resolve(&self, name: &str) -> Result<Installed> {
        let name: ModelName = name.parse()?;
        self.read(&self.card_path(&name)?)
    }

    /// Gives a model a second name. The files are shared.
    pub fn copy(&self, from: &str, to: &str) -> Result<Installed> {
        let (from, to): (ModelName, ModelName) = (from.parse()?, to.parse()?);
        self.card_path(&from)?; // an empty state directory has no folder for the lock
        let _lock = self.store.lock_cards()?;
        let from = self.read(&self.card_path(&from)?)?;
        let path = self.exact_card_path(&to);
        if path.exists() {
            let there = self.read(&path)?;
            return if there.id == from.id {
                Ok(there)
            } else {
                Err(RegistryError::NameTaken { name: to.to_string(), differ: Vec::new() })
            };
        }
        let copy_of = from.card.copy_of.clone().or(Some(from.name));
        let card = Card { name: to, aliases: Vec::new(), copy_of, ..from.card };
        self.read(&self.store.write_card(&card.name.file_stem(), &card.to_toml()?)?)
    }

    /// Removes a name, and the files that no other name needs. What a pull of it had left behind goes too.
    pub fn remove(&self, name: &str) -> Result<Removed> {
        let name: ModelName = name.parse()?;
        self.card_path(&name)?; // an empty state directory has no folder for the lock
        let _lock = self.store.lock_cards()?;
        let path = self.card_path(&name)?;
        let text = fs::read_to_string(&path).map_err(RegistryError::io("read", &path))?;
        let (name, digests) = match Card::parse(&text, &path.display().to_string()) {
            Ok(card) => {
                if card.kind == Kind::Runtime {
                    runtime::uninstall(&self.state, &card)?;
                }
                let digests: Vec<Digest> = card.files.iter().filter_map(|file| file.sha256).collect();
                (card.name, digests)
            }
            // A card that cannot be read can still be got rid of, with every blob it mentions.
            Err(_) => {
                (name, self.store.blobs()?.into_iter().filter(|d| text.contains(&d.to_string())).collect())
            }
        };
        store::remove(&path)?;
        let mut freed = self.store.discard_unused_blobs(digests.iter().copied())?;
        let shared = digests.iter().filter(|digest| self.store.has(digest, None)).count();
        for digest in digests {
            freed += self.discard_transfer(Guards::Blob, &digest)?;
        }
        Ok(Removed { name, freed, shared })
    }

    /// Removes files that no model needs and pulls that nobody goes on with; returns the bytes.
    pub fn prune(&self) -> Result<u64> {
        if !self.store.partials().exists() {
            return Ok(0);
        }
        let _lock = self.store.lock_cards()?;
        let mut freed = self.store.discard_unused_blobs(self.store.blobs()?)?;
        for path in store::list(&self.store.partials())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(key) = name.get(..64).and_then(|hex| hex.parse().ok()) else { continue };
            let guards = if name[64..].starts_with(".p") { Guards::Archive } else { Guards::Blob };
            freed += self.discard_transfer(guards, &key)?;
        }
        Ok(freed)
    }

    /// Reads every file of a model again and compares it with its checksum. A file that was changed is removed, so
    /// that pulling the model again brings the right one.
    pub fn verify(&self, name: &str) -> Result<()> {
        let installed = self.resolve(name)?;
        for file in &installed.files {
            let found = Digest::of_file(&file.path).map_err(RegistryError::io("read", &file.path))?;
            if file.sha256.is_some_and(|expected| expected != found) {
                store::remove(&file.path)?;
                let missing = format!("the file `{}` ({})", file.role, file.path.display());
                return Err(RegistryError::Incomplete { name: installed.name.to_string(), missing });
            }
        }
        Ok(())
    }

    fn discard_transfer(&self, guards: Guards, key: &Digest) -> Result<u64> {
        match self.store.try_lock_transfer(guards, key)? {
            Some(_lock) => self.store.discard_partials(key),
            None => Ok(0), // somebody is at it
        }
    }

    pub(crate) fn exact_card_path(&self, name: &ModelName) -> PathBuf {
        self.store.cards().join(format!("{}.toml", name.file_stem()))
    }

    fn card_path(&self, name: &ModelName) -> Result<PathBuf> {
        let exact = self.exact_card_path(name);
        if exact.exists() {
            return Ok(exact);
        }
        let mut known = Vec::new();
        for path in self.store.card_paths()? {
            if let Ok(card) = Card::read(&path) {
                if card.aliases.contains(name) {
                    return Ok(path);
                }
                known.push(card.name.to_string());
            }
        }
        let close = nearest(&name.to_string(), known.iter().map(String::as_str));
        Err(RegistryError::NotInstalled { name: name.to_string(), close })
    }

    pub(crate) fn read(&self, path: &Path) -> Result<Installed> {
        let card = Card::read(path)?;
        let expected = path.file_stem().and_then(|stem| ModelName::from_file_stem(stem.to_str()?).ok());
        if expected.as_ref() != Some(&card.name) {
            return Err(RegistryError::InvalidCard {
                origin: path.display().to_string(),
                reason: format!("it is the card of `{}`, which its file name does not say", card.name),
            });
        }
        Installed::new(card, path, |file| Some(self.store.blob(&file.sha256?)))
    }

    /// What `what` means, as a card whose local files are named by absolute paths, and whether the catalogue says so. A
    /// file that comes without a card is called `name`, else after its own.
    pub(crate) fn wanted(&self, what: &str, name: Option<&ModelName>) -> Result<(Card, bool)> {
        if !Source::looks_like_one(what) {
            let name: ModelName = what.parse()?;
            if let Some(card) = self.catalogue.find(&name) {
                return Card::parse(&card.to_toml()?, "the catalogue").map(|card| (card, true));
            }
            return match self.resolve(what) {
                Ok(installed) => Ok((installed.card, true)),
                Err(RegistryError::NotInstalled { name, close }) => {
                    let mut names = self.catalogue.pullable_close_to(&name);
                    names.extend(close);
                    names.retain(|near| *near != name); // a set is pulled model by model: `Catalogue::set`
                    names.dedup();
                    Err(RegistryError::UnknownModel { name, close: names })
                }
                Err(error) => Err(error),
            };
        }
        let source: Source = what.parse()?;
        if let Source::File(path) = &source {
            return local_card(path, what, name).map(|card| (card, false));
        }
        card_for(&source.file_name(), &source, name).map(|card| (card, false))
    }
}

/// A card for a file that comes without one.
fn card_for(file: &str, source: &Source, name: Option<&ModelName>) -> Result<Card> {
    let name = match name {
        Some(name) => name.clone(),
        None => ModelName::from_file_name(file)
            .map_err(|_| RegistryError::NameNeeded { file: file.to_owned() })?,
    };
    Card::for_file(name, file, source)
}

/// A card for a local file, or the card that a path leads to, its files named from the root.
fn local_card(path: &Path, what: &str, name: Option<&ModelName>) -> Result<Card> {
    let folder_card = path.join("model.toml");
    let (path, missing) =
        if path.is_dir() { (folder_card.as_path(), "`model.toml`") } else { (path, "file") };
    if !path.exists() {
        return Err(RegistryError::SourceNotFound { source_uri: what.to_owned(), what: missing.to_owned() });
    }
    if path.extension().is_none_or(|extension| extension != "toml") {
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        return card_for(&file_name, &source::local(path)?, name);
    }
    let mut card = Card::read(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let named = |path: &mut Option<PathBuf>, source: &mut Option<String>| {
        if let Some(relative) = path.take() {
            *source = Some(source::local(&folder.join(relative))?.to_string());
        }
        Ok(())
    };
    for file in &mut card.files {
        named(&mut file.path, &mut file.source)?;
        file.inputs.iter_mut().try_for_each(|input| named(&mut input.path, &mut input.source))?;
    }
    Ok(card)
}
