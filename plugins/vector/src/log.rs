//! A collection on disk: a head, then what was done to it, one record after the other.
//!
//! ```text
//! "BPVEC\0\0\1"  length u32  {"dimension":…,"dtype":…,"metric":…}
//! length u32  crc32 u32  kind u8  count u32  (id length u16, id, [metadata length u32, JSON])…  [rows]
//! ```
//!
//! Numbers are little endian. A record is on disk before its request is answered. A record that was cut short by a crash
//! is the last one, and is taken off; one that is wrong anywhere else is damage, and is told.

use crate::collection::{Batch, Collection, Contents, Rows, Shape, each_kind};
use half::f16;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"BPVEC\0\0\x01";
const UPSERT: u8 = 1;
const DELETE: u8 = 2;
/// Rows of a record when a collection is written anew.
const REWRITTEN: usize = 4096;
/// A log may be so much longer than what it keeps, besides twice as long.
const SLACK: u64 = 1 << 20;

/// The file of a collection. It is open only while it is written to: a process may have few files open, and anybody may make
/// collections.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    length: u64,
}

/// Why a collection could not be read.
#[derive(Debug)]
pub enum Unreadable {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Log {
    /// The file of a new collection, on disk when this returns.
    pub fn create(path: PathBuf, shape: Shape) -> io::Result<Self> {
        New::begin(&path, shape)?.put_in_place(path)
    }

    /// Reads a collection. Says how many bytes of a record that was cut short were taken off.
    pub fn open(path: PathBuf) -> Result<(Self, Collection, u64), Unreadable> {
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (collection, good) = read(&bytes)?;
        let cut = bytes.len() as u64 - good;
        if 0 < cut {
            file.set_len(good)?;
            file.sync_all()?;
        }
        Ok((Self { path, length: good }, collection, cut))
    }

    /// Writes down that a batch is kept.
    pub fn upsert(&mut self, batch: &Batch) -> io::Result<()> {
        let contents = Contents { ids: &batch.ids, rows: &batch.rows, metadata: &batch.metadata };
        self.append(&upsert(contents, 0..batch.ids.len()))
    }

    /// Writes down that ids are gone.
    pub fn delete(&mut self, ids: &[&str]) -> io::Result<()> {
        let mut record = vec![DELETE];
        record.extend((ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| put_id(&mut record, id));
        self.append(&record)
    }

    /// Whether the file is much longer than what it keeps.
    pub fn is_long(&self, collection: &Collection) -> bool {
        2 * collection.bytes() + SLACK < self.length
    }

    /// Writes the collection anew. When that fails, the old file stays in use.
    pub fn rewrite(&mut self, collection: &Collection) -> io::Result<()> {
        let mut new = New::begin(&self.path, collection.shape)?;
        let contents = collection.contents();
        let count = contents.ids.len();
        for first in (0..count).step_by(REWRITTEN) {
            new.length += write(&mut new.file, &upsert(contents, first..(first + REWRITTEN).min(count)))?;
        }
        *self = new.put_in_place(self.path.clone())?;
        Ok(())
    }

    /// Takes the file away.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }

    /// Writes a record and waits until the disk has it; or the file is as before.
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        // An append that failed and could not be taken back, or somebody else's: the file says something else than the memory.
        if file.metadata()?.len() != self.length {
            return Err(io::Error::other("it is not as long as it was left; restart"));
        }
        file.seek(SeekFrom::End(0))?;
        match write(&mut file, record).and_then(|length| file.sync_data().map(|()| length)) {
            Ok(length) => self.length += length,
            Err(error) => {
                let _ = file.set_len(self.length);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Takes the file of a collection away; one that is gone already is.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

/// Waits until the disk has the names of the files beside `path`.
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// A file that is to become a collection's.
struct New {
    path: PathBuf,
    file: File,
    length: u64,
}

impl New {
    /// A file beside `path` with a head.
    fn begin(path: &Path, shape: Shape) -> io::Result<Self> {
        let path = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let shape = serde_json::to_vec(&shape)?;
        let mut head = MAGIC.to_vec();
        head.extend((shape.len() as u32).to_le_bytes());
        head.extend(&shape);
        file.write_all(&head)?;
        Ok(Self { path, file, length: head.len() as u64 })
    }

    fn put_in_place(self, path: PathBuf) -> io::Result<Log> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, &path)?;
        sync_folder(&path)?;
        Ok(Log { path, length: self.length })
    }
}

/// Writes a record; says how long it is.
fn write(file: &mut File, record: &[u8]) -> io::Result<u64> {
    let too_long = |_| io::Error::new(io::ErrorKind::FileTooLarge, "a record is over 4 GiB");
    let length = u32::try_from(record.len()).map_err(too_long)?;
    let head = [length.to_le_bytes(), crc32fast::hash(record).to_le_bytes()].concat();
    file.write_all(&head)?;
    file.write_all(record)?;
    Ok((head.len() + record.len()) as u64)
}

fn put_id(record: &mut Vec<u8>, id: &str) {
    record.extend((id.len() as u16).to_le_bytes());
    record.extend(id.as_bytes());
}

fn upsert(contents: Contents<'_>, range: std::ops::Range<usize>) -> Vec<u8> {
    let Contents { ids, rows, metadata } = contents;
    let dimension = rows.len() / ids.len().max(1);
    let mut record = vec![UPSERT];
    record.extend((range.len() as u32).to_le_bytes());
    for (id, metadata) in ids[range.clone()].iter().zip(&metadata[range.clone()]) {
        put_id(&mut record, id);
        // It was JSON before, and is again.
        let json =
            metadata.as_ref().and_then(|metadata| serde_json::to_vec(metadata).ok()).unwrap_or_default();
        record.extend((json.len() as u32).to_le_bytes());
        record.extend(json);
    }
    each_kind!(rows, rows => {
        let rows = &rows[range.start * dimension..range.end * dimension];
        record.reserve(size_of_val(rows));
        rows.iter().for_each(|component| record.extend(component.to_le_bytes()));
    });
    record
}

/// The collection that a file says, and how far it is good.
fn read(bytes: &[u8]) -> Result<(Collection, u64), Unreadable> {
    let damaged = |what: &str| Unreadable::Damaged(what.to_owned());
    let mut rest = bytes.strip_prefix(&MAGIC).ok_or_else(|| damaged("it is no file of a collection"))?;
    let shape = take_u32(&mut rest).and_then(|length| take(&mut rest, length as usize));
    let shape: Shape = shape
        .and_then(|shape| serde_json::from_slice(shape).ok())
        .filter(|shape: &Shape| 0 < shape.dimension)
        .ok_or_else(|| damaged("its head is broken"))?;
    let mut collection = Collection::new(shape);
    loop {
        let good = bytes.len() - rest.len();
        // Nothing, or as long as it was to be and not yet written.
        if rest.iter().all(|byte| *byte == 0) {
            return Ok((collection, good as u64));
        }
        let mut next = rest;
        let whole = take_u32(&mut next).zip(take_u32(&mut next));
        let record = whole.and_then(|(length, crc)| Some((take(&mut next, length as usize)?, crc)));
        match record {
            // Cut short: what was written last.
            None => return Ok((collection, good as u64)),
            // The length is on disk and not all of the rest is.
            Some((record, crc)) if crc32fast::hash(record) != crc && next.is_empty() => {
                return Ok((collection, good as u64));
            }
            Some((record, crc)) if crc32fast::hash(record) != crc => {
                return Err(damaged(&format!("the record at byte {good} is broken")));
            }
            Some((record, _)) => {
                let done = apply(&mut collection, record);
                done.ok_or_else(|| damaged(&format!("the record at byte {good} makes no sense")))?;
                rest = next;
            }
        }
    }
}

fn apply(collection: &mut Collection, mut record: &[u8]) -> Option<()> {
    let kind = take(&mut record, 1)?[0];
    let count = take_u32(&mut record)? as usize;
    let id = |record: &mut &[u8]| {
        let length = u16::from_le_bytes(take(record, 2)?.try_into().ok()?);
        std::str::from_utf8(take(record, length.into())?).ok().map(Arc::<str>::from)
    };
    match kind {
        DELETE => {
            let ids = (0..count).map(|_| id(&mut record)).collect::<Option<Vec<_>>>()?;
            collection.delete(ids.iter().map(|id| &**id));
        }
        UPSERT => {
            let (mut ids, mut metadata) = (Vec::new(), Vec::new());
            for _ in 0..count {
                ids.push(id(&mut record)?);
                let length = take_u32(&mut record)?;
                let json = take(&mut record, length as usize)?;
                metadata.push(if json.is_empty() { None } else { Some(serde_json::from_slice(json).ok()?) });
            }
            let bytes = take(&mut record, count.checked_mul(collection.shape.stride())?)?;
            let mut rows = Rows::none(collection.shape.dtype);
            match &mut rows {
                Rows::F32(rows) => {
                    rows.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)))
                }
                Rows::F16(rows) => {
                    rows.extend(bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)))
                }
                Rows::I8(rows) => rows.extend(bytes.iter().map(|byte| *byte as i8)),
            }
            collection.upsert(Batch { ids, rows, metadata });
        }
        _ => return None,
    }
    record.is_empty().then_some(())
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane_plugin::payload::vector::{Component, Metric};
    use serde_json::json;

    fn batch(ids: &[&str], dtype: Component) -> Batch {
        let values: Vec<f32> = (0..ids.len() * 2).map(|n| n as f32 + 1.0).collect();
        Batch {
            ids: ids.iter().map(|id| Arc::from(*id)).collect(),
            rows: match dtype {
                Component::F32 => Rows::F32(values),
                Component::F16 => Rows::F16(values.into_iter().map(f16::from_f32).collect()),
                Component::I8 => Rows::I8(values.into_iter().map(|value| value as i8).collect()),
            },
            metadata: ids.iter().map(|id| json!({"is": id}).as_object().cloned().map(Box::new)).collect(),
        }
    }

    fn shape(dtype: Component) -> Shape {
        Shape { dimension: 2, dtype, metric: Metric::L2 }
    }

    fn same(a: &Collection, b: &Collection) {
        assert_eq!(a.contents(), b.contents());
        assert_eq!((a.shape, a.bytes()), (b.shape, b.bytes()));
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        for dtype in [Component::F32, Component::F16, Component::I8] {
            let path = folder.path().join(format!("{dtype:?}.vectors"));
            let mut log = Log::create(path.clone(), shape(dtype)).unwrap();
            let mut collection = Collection::new(shape(dtype));
            for ids in [&["a", "ü"][..], &["b", "a"]] {
                log.upsert(&batch(ids, dtype)).unwrap();
                collection.upsert(batch(ids, dtype));
            }
            log.delete(&["ü"]).unwrap();
            collection.delete(["ü"]);
            let (mut again, read, cut) = Log::open(path.clone()).unwrap();
            same(&read, &collection);
            assert_eq!(cut, 0);
            // Written anew it is the same, and goes on.
            let before = again.length;
            again.rewrite(&collection).unwrap();
            assert!(again.length < before);
            again.upsert(&batch(&["c"], dtype)).unwrap();
            collection.upsert(batch(&["c"], dtype));
            same(&Log::open(path).unwrap().1, &collection);
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "nothing is left beside the files");
    }

    #[test]
    fn a_crash_at_any_byte_keeps_what_was_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.vectors");
        let mut log = Log::create(path.clone(), shape(Component::F32)).unwrap();
        log.upsert(&batch(&["a", "b"], Component::F32)).unwrap();
        let answered = log.length;
        log.upsert(&batch(&["c"], Component::F32)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for end in answered as usize..whole.len() {
            // Cut there, or as long as it was to be and empty from there on.
            for torn in [whole[..end].to_vec(), [&whole[..end], &vec![0; whole.len() - end]].concat()] {
                if torn == whole {
                    continue;
                }
                std::fs::write(&path, &torn).unwrap();
                let (mut log, collection, cut) = Log::open(path.clone()).unwrap();
                assert_eq!((collection.len(), cut), (2, (torn.len() as u64) - answered), "at {end}");
                log.upsert(&batch(&["d"], Component::F32)).unwrap();
                assert_eq!(Log::open(path.clone()).unwrap().1.len(), 3);
            }
        }
    }

    #[test]
    fn damage_is_told_and_never_read_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.vectors");
        let mut log = Log::create(path.clone(), shape(Component::F32)).unwrap();
        let head = log.length as usize;
        log.upsert(&batch(&["a", "b"], Component::F32)).unwrap();
        let first = log.length as usize;
        log.upsert(&batch(&["c"], Component::F32)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in (0..head).chain(head + 8..first) {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 0x55;
            std::fs::write(&path, &spoilt).unwrap();
            assert!(matches!(Log::open(path.clone()), Err(Unreadable::Damaged(_))), "at {at}");
        }
    }
}
