//! The file itself: `magic ‖ length ‖ signed manifest ‖ compressed archive`. The signature stands first, so that it is
//! checked before anything is decompressed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::{Problem, Result, io};
use super::manifest::MAX_MANIFEST;

/// No text file begins like this, and a transfer in text mode breaks it visibly.
pub(crate) const MAGIC: [u8; 8] = *b"\x89BPPLG\r\n";
/// How a package's file is named.
pub const EXTENSION: &str = "plg";

/// A package that was opened, and of which nothing was believed yet.
#[derive(Debug)]
pub(crate) struct PackageFile {
    pub path: PathBuf,
    file: File,
    /// The signed manifest, as it stands in the file.
    pub envelope: Vec<u8>,
}

impl PackageFile {
    pub fn open(path: &Path) -> Result<Self> {
        let not = |why: &str| Problem::NotAPackage(why.to_owned()).of(path.display());
        // A pipe would block, so what is not a file is not even opened.
        let meta = path.metadata().map_err(io("open", path))?;
        if !meta.is_file() {
            return Err(not("it is not a file"));
        }
        let mut file = File::open(path).map_err(io("open", path))?;
        let mut head = [0; 12];
        let read = read_up_to(&mut file, &mut head).map_err(io("read", path))?;
        if !head[..read].starts_with(&MAGIC) {
            return Err(not("it does not begin as one"));
        }
        if read < head.len() {
            return Err(not("it ends within its head"));
        }
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if u64::from(length) > MAX_MANIFEST {
            return Err(not(&format!(
                "its manifest would have {length} bytes, at most {MAX_MANIFEST} are read"
            )));
        }
        let mut envelope = vec![0; length as usize];
        let read = read_up_to(&mut file, &mut envelope).map_err(io("read", path))?;
        if read < envelope.len() {
            return Err(not("it ends within its manifest"));
        }
        Ok(Self { path: path.to_owned(), file, envelope })
    }

    /// What follows the manifest, from its beginning.
    pub fn payload(&self) -> Result<impl Read + '_> {
        let start = (MAGIC.len() + 4 + self.envelope.len()) as u64;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start)).map_err(io("read", &self.path))?;
        Ok(file)
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes a package, whole or not at all.
pub(crate) fn write(path: &Path, envelope: &[u8], mut payload: impl Read) -> Result<()> {
    let length = u32::try_from(envelope.len()).ok().filter(|length| u64::from(*length) <= MAX_MANIFEST);
    let Some(length) = length else {
        let what = format!("it would have {} bytes, at most {MAX_MANIFEST} are read", envelope.len());
        return Err(Problem::Manifest(what).of(path.display()));
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".packing-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(io("write in", folder))?;
    let mut all = || {
        file.write_all(&MAGIC)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(envelope)?;
        io::copy(&mut payload, &mut file)?;
        file.as_file().sync_all()
    };
    all().map_err(io("write", path))?;
    file.persist(path).map_err(|error| io("write", path)(error.error))?;
    Ok(())
}
