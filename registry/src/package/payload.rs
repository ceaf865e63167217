//! The archive of a package: a tar of plain files, compressed with zstd. Read against the manifest that was signed,
//! never the other way round.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::error::{PackageError, Problem, Result, io};
use super::manifest::{FileEntry, PackageManifest};
use super::path::PackagePath;
use crate::digest::Digest;

/// The most memory that decompression may ask for: 2^23 bytes. What needs more is refused by zstd itself.
const MAX_WINDOW: u32 = 23;
/// Level 19 has a window of 8 MiB, the most that is read.
const LEVEL: i32 = 19;

/// A file that goes into an archive.
#[derive(Debug)]
pub(crate) struct Source {
    pub path: PackagePath,
    pub bytes: Vec<u8>,
}

/// The archive of these files, compressed, and its length before that. The same files give the same bytes.
pub(crate) fn write(files: &[Source]) -> io::Result<(Vec<u8>, u64)> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(file.path.as_str())?;
        header.set_size(file.bytes.len() as u64);
        header.set_mode(0o444);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        tar.append(&header, file.bytes.as_slice())?;
    }
    let archive = tar.into_inner()?;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    encoder.window_log(MAX_WINDOW)?;
    encoder.include_checksum(false)?;
    encoder.set_pledged_src_size(Some(archive.len() as u64))?;
    encoder.write_all(&archive)?;
    Ok((encoder.finish()?, archive.len() as u64))
}

/// Whether `payload` is what was signed, told before any of it is decompressed.
pub(crate) fn check_hash(payload: impl Read, manifest: &PackageManifest, origin: &Path) -> Result<()> {
    let mut counted = Counted { inner: payload, bytes: 0 };
    let found = Digest::of_reader((&mut counted).take(manifest.payload.size.saturating_add(1)), |_| Ok(()))
        .map_err(io("read", origin))?;
    let modified = |what: String| Err(Problem::Modified(what).at(origin));
    if counted.bytes != manifest.payload.size {
        let longer = if counted.bytes > manifest.payload.size { "longer" } else { "shorter" };
        return modified(format!("the payload is {longer} than the {} bytes signed", manifest.payload.size));
    }
    if found != manifest.payload.sha256 {
        return modified(format!("the payload has sha256 {found}, signed is {}", manifest.payload.sha256));
    }
    Ok(())
}

/// Decompresses `payload` and hands each file to `each`, which must read all of it. Whatever the archive says, at most
/// `unpacked` bytes are decompressed, only files that the manifest lists are handed out, each once, whole and with
/// its signed hash, or the call fails.
pub(crate) fn read(
    payload: impl Read,
    manifest: &PackageManifest,
    origin: &Path,
    mut each: impl FnMut(&FileEntry, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let refused = |what: String| Problem::Refused(what).at(origin);
    let damaged = |error: io::Error| refused(format!("its archive cannot be read: {error}"));
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(BufReader::new(payload)).map_err(damaged)?.single_frame();
    decoder.window_log_max(MAX_WINDOW).map_err(damaged)?;
    let limit = manifest.payload.unpacked;
    let mut archive = tar::Archive::new(Bounded { inner: decoder, left: limit });

    let mut expected: BTreeMap<&str, Option<&FileEntry>> =
        manifest.files.iter().map(|file| (file.path.as_str(), Some(file))).collect();
    // Raw: an extended header is an entry like any other, so that nothing in it changes what follows.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let shown = name.escape_debug().to_string();
        if let Some(what) = not_a_file(entry.header().entry_type()) {
            return Err(refused(format!(
                "its archive has {what} (`{shown}`); only plain files are unpacked"
            )));
        }
        let path: PackagePath = name.parse().map_err(|bad: super::path::BadPath| refused(bad.to_string()))?;
        let file = match expected.get_mut(path.as_str()) {
            None => {
                return Err(refused(format!("its archive has `{path}`, which its manifest does not list")));
            }
            Some(slot) => {
                slot.take().ok_or_else(|| refused(format!("its archive has the file `{path}` twice")))?
            }
        };
        let size = entry.header().entry_size().map_err(damaged)?;
        if size != file.size {
            return Err(refused(format!(
                "`{path}` has {size} bytes in its archive, signed are {}",
                file.size
            )));
        }
        let mut hashed = Hashed { inner: &mut entry, hasher: Sha256::new(), bytes: 0, failed: None };
        let done = each(file, &mut hashed);
        if let Some(error) = hashed.failed.take() {
            return Err(damaged(error));
        }
        done?;
        let (bytes, found) = hashed.finish();
        if bytes != file.size {
            return Err(refused(format!("`{path}` ends after {bytes} of {} bytes", file.size)));
        }
        if found != file.sha256 {
            return Err(Problem::Modified(format!("`{path}` has sha256 {found}, signed is {}", file.sha256))
                .at(origin));
        }
    }
    if let Some(missing) = expected.values().flatten().next() {
        return Err(refused(format!("its archive lacks `{}`, which its manifest lists", missing.path)));
    }
    end(archive.into_inner(), limit, origin)
}

/// After the last file there are zeros up to the signed length, and nothing else.
fn end(mut rest: Bounded<impl BufDecoder>, limit: u64, origin: &Path) -> Result<()> {
    let refused = |what: String| Problem::Refused(what).at(origin);
    let mut buffer = [0; 8192];
    loop {
        let read = rest
            .read(&mut buffer)
            .map_err(|error| refused(format!("its archive cannot be read: {error}")))?;
        if read == 0 {
            break;
        }
        if buffer[..read].iter().any(|byte| *byte != 0) {
            return Err(refused("its archive goes on after its end".to_owned()));
        }
    }
    if rest.left != 0 {
        let unpacked = limit - rest.left;
        return Err(refused(format!("its archive unpacks to {unpacked} bytes, signed are {limit}")));
    }
    if rest.inner.has_more() {
        return Err(refused("bytes follow its compressed archive".to_owned()));
    }
    Ok(())
}

fn not_a_file(kind: tar::EntryType) -> Option<&'static str> {
    use tar::EntryType as Type;
    Some(match kind {
        Type::Regular => return None,
        Type::Symlink => "a symbolic link",
        Type::Link => "a hard link",
        Type::Directory => "a folder",
        Type::Char | Type::Block => "a device",
        Type::Fifo => "a pipe",
        Type::GNUSparse => "a sparse file",
        Type::XHeader | Type::XGlobalHeader => "an extended header, which could say another size",
        Type::GNULongName | Type::GNULongLink => "a long name",
        _ => "something that is no plain file",
    })
}

/// A decoder that knows whether its input goes on after its frame.
trait BufDecoder: Read {
    fn has_more(self) -> bool;
}

impl<R: Read> BufDecoder for zstd::stream::read::Decoder<'_, BufReader<R>> {
    fn has_more(self) -> bool {
        let mut rest = self.finish();
        rest.read(&mut [0]).is_ok_and(|bytes| bytes > 0)
    }
}

/// Fails instead of giving more than is left.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len();
        if wanted == 0 {
            return Ok(0);
        }
        // One byte more than is left tells an archive that ends from one that goes on.
        let most = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX).min(wanted);
        let read = self.inner.read(&mut buffer[..most])?;
        if read as u64 > self.left {
            return Err(io::Error::other("it unpacks to more than the size that was signed"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Hashes what is read, and keeps apart a failure to read from one to write.
struct Hashed<'a> {
    inner: &'a mut dyn Read,
    hasher: Sha256,
    bytes: u64,
    failed: Option<io::Error>,
}

impl Hashed<'_> {
    fn finish(self) -> (u64, Digest) {
        (self.bytes, Digest::from_bytes(self.hasher.finalize().into()))
    }
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(read) => {
                self.hasher.update(&buffer[..read]);
                self.bytes += read as u64;
                Ok(read)
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(copy)
            }
        }
    }
}

/// Reads all files into nothing: checks the archive without writing.
pub(crate) fn check(
    payload: impl Read,
    manifest: &PackageManifest,
    origin: &Path,
) -> Result<(), PackageError> {
    read(payload, manifest, origin, |_, reader| {
        std::io::copy(reader, &mut std::io::sink()).map(drop).map_err(io("read", origin))
    })
}
