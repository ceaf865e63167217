//! All collections, by tenant and name: in memory, and on disk where the host gave a folder.
//!
//! A collection's log orders what is written to it: a write goes to the log and to the disk first, and then to memory.
//! A search holds a collection only against the second of these.

use crate::collection::{Batch, Collection, Shape};
use crate::log::{self, Log, Unreadable};
use backplane_plugin::payload::vector;
use backplane_plugin::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// Reason of an error that says that nothing may be written there.
pub const READ_ONLY: &str = "data_read_only";
/// Memory a collection takes before it has a vector.
const EMPTY: u64 = 1024;

/// Tenant and name.
type Key = (String, String);

/// The stores that are open, by folder: several hosts in one process may share one.
static SHARED: Mutex<BTreeMap<PathBuf, Weak<Store>>> = Mutex::new(BTreeMap::new());

/// The store of a folder, if it is open.
pub fn shared(folder: &Path) -> Option<Arc<Store>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).get(folder)?.upgrade()
}

/// The store of a folder, opened if it is not.
///
/// # Errors
/// As [`Store::open`].
pub fn share(folder: &Path, limits: Limits, host: Host) -> Result<Arc<Store>> {
    let mut all = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = all.get(folder).and_then(Weak::upgrade) {
        return Ok(store);
    }
    let store = Arc::new(Store::open(Some(folder), limits, host)?);
    all.retain(|_, store| 0 < store.strong_count());
    all.insert(folder.to_owned(), Arc::downgrade(&store));
    Ok(store)
}

/// What all collections together may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub memory: u64,
    pub collections: usize,
}

/// The collections of a host.
pub struct Store {
    folder: Option<PathBuf>,
    limits: Limits,
    used: AtomicU64,
    /// Held for a moment only: every bid reads it.
    held: RwLock<BTreeMap<Key, Entry>>,
    /// Who makes or drops a collection, which waits for the disk.
    changing: Mutex<()>,
    /// Another host, or another version of this plugin, must not write to the same files.
    _lock: Option<File>,
}

#[derive(Clone)]
enum Entry {
    Good(Arc<Held>),
    Damaged(PathBuf, String),
    /// Its file could not be opened or read, which says nothing against what is in it.
    Unread(PathBuf, std::io::ErrorKind),
}

/// A collection.
pub struct Held {
    collection: RwLock<Collection>,
    journal: Mutex<Journal>,
    /// Of the collection, for who must not wait until nobody writes to it.
    vectors: AtomicU64,
    scanned: AtomicU64,
}

enum Journal {
    /// Nothing is written down.
    None,
    File(Log),
    /// The collection was dropped while somebody waited to write to it.
    Dropped,
}

impl Held {
    fn new(collection: Collection, journal: Journal) -> Self {
        let held = Self {
            vectors: AtomicU64::new(0),
            scanned: AtomicU64::new(0),
            journal: Mutex::new(journal),
            collection: RwLock::new(collection),
        };
        held.note(&held.read());
        held
    }

    fn note(&self, collection: &Collection) {
        self.vectors.store(collection.len() as u64, Ordering::Relaxed);
        self.scanned.store(collection.scanned(), Ordering::Relaxed);
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Collection> {
        self.collection.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Collection> {
        self.collection.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// What lies in `folder`, or nothing, for as long as this lives.
    ///
    /// # Errors
    /// When the folder is in use, or cannot be read.
    pub fn open(folder: Option<&Path>, limits: Limits, host: Host) -> Result<Self> {
        let mut store = Self {
            folder: folder.map(Path::to_owned),
            limits,
            used: AtomicU64::new(0),
            held: RwLock::default(),
            changing: Mutex::default(),
            _lock: None,
        };
        let Some(folder) = folder else { return Ok(store) };
        store._lock = Some(lock(folder)?);
        let mut held = BTreeMap::new();
        for (key, path) in files(folder).map_err(|error| disk("read", &error))? {
            let entry = match Log::open(path.clone()) {
                Ok((log, collection, cut)) => {
                    if 0 < cut {
                        let message = format!(
                            "collection `{}`: {cut} bytes of a write that a crash cut short were taken off",
                            key.1
                        );
                        host.log(Level::Warn, message);
                    }
                    store.used.fetch_add(EMPTY + collection.bytes(), Ordering::Relaxed);
                    Entry::Good(Arc::new(Held::new(collection, Journal::File(log))))
                }
                Err(why) => {
                    let told = match &why {
                        Unreadable::Io(error) => error.to_string(),
                        Unreadable::Damaged(what) => what.clone(),
                    };
                    let message =
                        format!("collection `{}` cannot be read: {}: {told}", key.1, path.display());
                    host.log(Level::Error, message);
                    match why {
                        Unreadable::Io(error) => Entry::Unread(path, error.kind()),
                        Unreadable::Damaged(what) => Entry::Damaged(path, what),
                    }
                }
            };
            held.insert(key, entry);
        }
        store.held = RwLock::new(held);
        Ok(store)
    }

    /// A tenant's collection.
    ///
    /// # Errors
    /// When there is none, or its file is damaged, or could not be read.
    pub fn get(&self, tenant: &str, name: &str) -> Result<Arc<Held>> {
        match self.read().get(&(tenant.to_owned(), name.to_owned())) {
            Some(Entry::Good(held)) => Ok(held.clone()),
            Some(Entry::Damaged(_, why)) => Err(Error::new(
                Code::DataLoss,
                format!("the file of collection `{name}` is damaged: {why}; put a copy in its place and restart, or `drop` it"),
            )
            .with_reason("collection_damaged")
            .with_param("collection")),
            Some(Entry::Unread(_, why)) => Err(Error::new(
                Code::Unavailable,
                format!("the file of collection `{name}` could not be read when the plugin started: {why}; mend that and restart"),
            )
            .with_reason("vector_disk")
            .with_param("collection")),
            None => Err(not_found(name)),
        }
    }

    /// Makes a collection. One of the same shape that is there already is left as it is.
    ///
    /// # Errors
    /// When there is one of another shape, no memory left, or as many as there may be.
    pub fn create(&self, tenant: &str, name: &str, shape: Shape) -> Result<vector::Collection> {
        let key = (tenant.to_owned(), name.to_owned());
        let _changing = self.changing();
        let (is_there, count) = {
            let held = self.read();
            (held.contains_key(&key), held.len())
        };
        if is_there {
            let there = self.get(tenant, name)?;
            let there = there.read();
            if there.shape == shape {
                return Ok(describe(name, &there));
            }
            let Shape { dimension, dtype, metric } = there.shape;
            let message = format!(
                "there is a collection `{name}` of dimension {dimension}, dtype {} and metric {}; `drop` it first, or take another name",
                word(&dtype),
                word(&metric)
            );
            return Err(Error::new(Code::AlreadyExists, message).with_param("collection"));
        }
        let most = self.limits.collections;
        if most <= count {
            let message = format!(
                "there are {count} collections, of all tenants, and may be {most}; `drop` some, or raise the plugin's setting `collections`"
            );
            return Err(Error::new(Code::ResourceExhausted, message).with_reason("vector_collections"));
        }
        self.take(EMPTY)?;
        let journal = match &self.folder {
            None => Journal::None,
            Some(folder) => {
                let path = file(folder, tenant, name);
                let made =
                    path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| Log::create(path, shape));
                Journal::File(made.map_err(|error| {
                    self.used.fetch_sub(EMPTY, Ordering::Relaxed);
                    disk("made", &error)
                })?)
            }
        };
        let collection = Collection::new(shape);
        let made = describe(name, &collection);
        self.write().insert(key, Entry::Good(Arc::new(Held::new(collection, journal))));
        Ok(made)
    }

    /// Keeps vectors, all or none.
    ///
    /// # Errors
    /// When there is no memory left, or the disk does not take them.
    pub fn upsert(&self, name: &str, held: &Held, batch: Batch) -> Result<()> {
        let mut journal = held.journal();
        let (before, takes) = {
            let collection = held.read();
            (collection.bytes(), collection.bytes_of(&batch))
        };
        self.take(takes)?;
        let written = match &mut *journal {
            Journal::None => Ok(()),
            Journal::File(log) => log.upsert(&batch).map_err(|error| disk("written", &error)),
            Journal::Dropped => Err(not_found(name)),
        };
        if let Err(error) = written {
            self.used.fetch_sub(takes, Ordering::Relaxed);
            return Err(error);
        }
        let mut collection = held.write();
        collection.upsert(batch);
        // What was replaced is free again.
        self.used.fetch_sub((before + takes).saturating_sub(collection.bytes()), Ordering::Relaxed);
        held.note(&collection);
        drop(collection);
        shorten(&mut journal, held);
        Ok(())
    }

    /// Lets vectors go; says how many were there.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn delete(&self, name: &str, held: &Held, ids: &[String]) -> Result<u64> {
        let mut journal = held.journal();
        let there: Vec<&str> = {
            let collection = held.read();
            ids.iter().map(String::as_str).filter(|id| collection.has(id)).collect()
        };
        if there.is_empty() {
            return Ok(0);
        }
        match &mut *journal {
            Journal::None => {}
            Journal::File(log) => log.delete(&there).map_err(|error| disk("written", &error))?,
            Journal::Dropped => return Err(not_found(name)),
        }
        let mut collection = held.write();
        let before = collection.bytes();
        let count = collection.delete(there);
        self.used.fetch_sub(before - collection.bytes(), Ordering::Relaxed);
        held.note(&collection);
        drop(collection);
        shorten(&mut journal, held);
        Ok(count)
    }

    /// Lets a collection go, a damaged one too; says how many vectors it had.
    ///
    /// # Errors
    /// When there is none, or its file cannot be removed.
    pub fn drop(&self, tenant: &str, name: &str) -> Result<u64> {
        let key = (tenant.to_owned(), name.to_owned());
        let _changing = self.changing();
        let entry = self.read().get(&key).cloned();
        let count = match entry.ok_or_else(|| not_found(name))? {
            Entry::Damaged(path, _) | Entry::Unread(path, _) => {
                log::remove(&path).map_err(|error| disk("removed", &error))?;
                0
            }
            Entry::Good(held) => {
                let mut journal = held.journal();
                if let Journal::File(log) = &*journal {
                    // A collection whose file stays is as before.
                    log.remove().map_err(|error| disk("removed", &error))?;
                }
                *journal = Journal::Dropped;
                let collection = held.read();
                self.used.fetch_sub(EMPTY + collection.bytes(), Ordering::Relaxed);
                collection.len() as u64
            }
        };
        self.write().remove(&key);
        Ok(count)
    }

    /// A tenant's collections, by name.
    pub fn list(&self, tenant: &str) -> Vec<vector::Collection> {
        let own: Vec<_> = {
            let held = self.read();
            let own = held.iter().filter(|((owner, _), _)| owner == tenant);
            own.map(|((_, name), entry)| (name.clone(), entry.clone())).collect()
        };
        let good = own.into_iter().filter_map(|(name, entry)| match entry {
            Entry::Good(held) => Some(describe(&name, &held.read())),
            Entry::Damaged(..) | Entry::Unread(..) => None,
        });
        good.collect()
    }

    /// Bytes that collections take, all of them; how many there are; their vectors; and what a search of the largest
    /// reads.
    pub fn size(&self) -> Size {
        let held = self.read();
        let good = || {
            held.values().filter_map(|entry| match entry {
                Entry::Good(held) => Some(held),
                Entry::Damaged(..) | Entry::Unread(..) => None,
            })
        };
        Size {
            bytes: self.used.load(Ordering::Relaxed),
            collections: good().count() as u64,
            vectors: good().map(|held| held.vectors.load(Ordering::Relaxed)).sum(),
            largest: good().map(|held| held.scanned.load(Ordering::Relaxed)).max().unwrap_or(0),
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Entry>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Entry>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets memory aside.
    fn take(&self, bytes: u64) -> Result<()> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limits.memory);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => Err(Error::new(
                Code::ResourceExhausted,
                format!(
                    "the vectors need {bytes} bytes, and {} of {} are left; delete some, or raise the plugin's setting `memory`",
                    self.limits.memory.saturating_sub(used), self.limits.memory
                ),
            )
            .with_reason("vector_memory")),
        }
    }
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    pub collections: u64,
    pub vectors: u64,
    pub largest: u64,
}

/// Bytes that the files in a folder have: about what they take once open. Nothing is opened.
pub fn stored(folder: &Path) -> u64 {
    let files = files(folder).unwrap_or_default();
    files.iter().filter_map(|(_, path)| Some(fs::metadata(path).ok()?.len())).sum()
}

/// A collection as a caller is told of it.
pub fn describe(name: &str, collection: &Collection) -> vector::Collection {
    let Shape { dimension, dtype, metric } = collection.shape;
    vector::Collection {
        name: name.to_owned(),
        dimension: dimension as u32,
        dtype,
        metric,
        count: collection.len() as u64,
        bytes: collection.bytes(),
    }
}

/// Writes a log anew that has grown much longer than what it keeps. It can wait: a failure is no failure of the write.
fn shorten(journal: &mut Journal, held: &Held) {
    let collection = held.read();
    if let Journal::File(log) = journal
        && log.is_long(&collection)
    {
        let _ = log.rewrite(&collection);
    }
}

fn lock(folder: &Path) -> Result<File> {
    let made = fs::create_dir_all(folder)
        .and_then(|()| File::options().write(true).create(true).truncate(false).open(folder.join("lock")));
    let file = made.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            Error::new(Code::FailedPrecondition, "the folder of the collections cannot be written")
                .with_reason(READ_ONLY)
        }
        _ => disk("opened", &error),
    })?;
    file.try_lock().map_err(|_| {
        let message = "the collections are in use by another host, or by the version of this plugin that serves; \
                       stop it first";
        Error::new(Code::FailedPrecondition, message).with_reason("data_in_use")
    })?;
    Ok(file)
}

/// Where a collection lies: a tenant may be called anything, a file may not.
fn file(folder: &Path, tenant: &str, name: &str) -> PathBuf {
    let tenant: String = tenant.bytes().map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("t{tenant}")).join(format!("{name}.vectors"))
}

/// The files of collections. What was being written when the host was killed is passed over.
fn files(folder: &Path) -> std::io::Result<Vec<(Key, PathBuf)>> {
    let mut all = Vec::new();
    for tenant in fs::read_dir(folder)? {
        let tenant = tenant?;
        let folder = tenant.file_name().to_string_lossy().into_owned();
        let Some(owner) = folder.strip_prefix('t').and_then(unhex) else { continue };
        for file in fs::read_dir(tenant.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "vectors")
                && let Some(name) = path.file_stem()
            {
                all.push(((owner.clone(), name.to_string_lossy().into_owned()), path));
            }
        }
    }
    Ok(all)
}

fn unhex(text: &str) -> Option<String> {
    let digits =
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(digits.collect::<Option<_>>()?).ok()
}

fn not_found(name: &str) -> Error {
    let message =
        format!("there is no collection `{name}`; `create` makes one, `list` shows which there are");
    Error::not_found(message).with_reason("collection_not_found").with_param("collection")
}

/// A caller is told that it is the disk, and not where.
fn disk(what: &str, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Unavailable,
    };
    Error::new(code, format!("the collection's file could not be {what}: {}", error.kind()))
        .with_reason("vector_disk")
}

/// A value of the payload as its JSON has it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
