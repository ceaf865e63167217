//! One file out of a package: a wheel is a zip, a source archive a gzipped tar. Nothing else is unpacked, and nothing
//! is ever run.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use super::watch::{CopyError, Watch, copy};
use crate::error::{RegistryError, Result, nearest};

/// What stands before a file in a tar: its header, and a name or extended header that did not fit in. The tar reader
/// holds all of it in memory, and a gzip of a few kilobytes can say that it is gigabytes.
const MAX_HEADERS: u64 = 1 << 20;
/// Names that are kept, and how long one may be, to suggest the one that was meant.
const NAMES: usize = 10_000;
const NAME: usize = 1024;

/// Appends the archive's file `inner` to `to`, at most `limit` bytes of it. `label` names the archive in errors.
pub(crate) fn extract(
    archive: &Path,
    label: &str,
    inner: &str,
    to: &mut File,
    to_path: &Path,
    limit: u64,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let mut file = File::open(archive).map_err(RegistryError::io("open", archive))?;
    let mut magic = [0; 4];
    let read = file.read(&mut magic).map_err(RegistryError::io("read", archive))?;
    file.seek(SeekFrom::Start(0)).map_err(RegistryError::io("read", archive))?;
    let mut out = Out { label, inner, to, path: to_path, limit, watch };
    match &magic[..read] {
        [b'P', b'K', ..] => from_zip(file, &mut out),
        [0x1f, 0x8b, ..] => from_tar(file, &mut out),
        _ => Err(out.bad("it is neither a wheel nor a gzipped source archive".into())),
    }
}

struct Out<'a, 'w> {
    label: &'a str,
    inner: &'a str,
    to: &'a mut File,
    path: &'a Path,
    limit: u64,
    watch: &'a mut Watch<'w>,
}

impl Out<'_, '_> {
    fn bad(&self, reason: String) -> RegistryError {
        RegistryError::BadArchive { archive: self.label.to_owned(), reason }
    }

    fn missing<'n>(&self, names: impl Iterator<Item = &'n str>) -> RegistryError {
        let near = match nearest(self.inner, names).first() {
            Some(near) => format!(" (there is `{near}`)"),
            None => String::new(),
        };
        let what = format!("file `{}`{near}", self.inner);
        RegistryError::SourceNotFound { source_uri: self.label.to_owned(), what }
    }

    fn take(&mut self, reader: &mut dyn Read) -> Result<()> {
        // One byte more than allowed is read, so that a file that goes on is told from one that ends.
        let mut reader = reader.take(self.limit.saturating_add(1));
        let (limit, label, inner) = (self.limit, self.label, self.inner);
        copy(&mut reader, self.to, self.path, self.watch, |_, done| {
            if done > limit {
                let reason = format!("its file `{inner}` is longer than the {limit} bytes expected");
                return Err(RegistryError::BadArchive { archive: label.to_owned(), reason });
            }
            Ok(())
        })
        .map(drop)
        .map_err(|error| match error {
            CopyError::Read(error) => self.bad(format!("it is damaged: {error}")),
            CopyError::Other(error) => error,
        })
    }
}

fn from_zip(file: File, out: &mut Out<'_, '_>) -> Result<()> {
    let damaged = |error: zip::result::ZipError| format!("it is damaged: {error}");
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| out.bad(damaged(e)))?;
    let Some(index) = archive.index_for_name(out.inner) else {
        let names: Vec<_> = archive.file_names().flatten().map(|name| name.into_owned()).collect();
        return Err(out.missing(names.iter().map(String::as_str)));
    };
    let mut entry = archive.by_index(index).map_err(|e| out.bad(damaged(e)))?;
    if !entry.is_file() {
        return Err(out.bad(format!("`{}` is not a file in it", out.inner)));
    }
    out.take(&mut entry)
}

fn from_tar(file: File, out: &mut Out<'_, '_>) -> Result<()> {
    let damaged = |error: io::Error| format!("it is damaged: {error}");
    let left = Rc::new(Cell::new(MAX_HEADERS));
    let reader =
        Metered { inner: flate2::read::MultiGzDecoder::new(BufReader::new(file)), left: left.clone() };
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive.entries().map_err(|e| out.bad(damaged(e)))?;
    let mut names = Vec::new();
    loop {
        out.watch.check()?;
        left.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|e| out.bad(damaged(e)))?;
        left.set(u64::MAX);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if name == out.inner {
            if !kind.is_file() {
                return Err(out.bad(format!("`{name}` is not a file in it")));
            }
            return out.take(&mut entry);
        }
        if kind.is_gnu_sparse() {
            // Its holes would be read here, as many zeros as it likes to claim.
            return Err(out.bad(format!("its file `{name}` is sparse, which no source archive needs")));
        }
        io::copy(&mut entry, &mut io::sink()).map_err(|e| out.bad(damaged(e)))?;
        if names.len() < NAMES && name.len() <= NAME {
            names.push(name);
        }
    }
    Err(out.missing(names.iter().map(String::as_str)))
}

/// A reader that refuses to give more than is left.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("a header in it is longer than 1 MiB"))?);
        Ok(read)
    }
}
