//! Files of a registry, from a folder or over HTTP. Nothing here is believed: the caller has a hash or a signature.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::RegistryError;
use crate::package::error::{PackageError, Problem, Result, io};
use crate::settings::Settings;
use crate::source::{Http, Target, Watch};

/// A registry's tree.
pub(crate) enum Tree {
    Folder(PathBuf),
    Site { base: reqwest::Url, http: Box<Http> },
}

impl Tree {
    pub fn open(location: &str, offline: bool) -> Result<Self> {
        if !location.contains("://") || location.starts_with("file://") {
            return Ok(Self::Folder(location.strip_prefix("file://").unwrap_or(location).into()));
        }
        let wrong = |why: String| Problem::Index(why).of(location);
        if offline {
            return Err(wrong("it would have to be asked, and this is offline".to_owned()));
        }
        let mut text = location.to_owned();
        if !text.ends_with('/') {
            text.push('/');
        }
        let base = reqwest::Url::parse(&text).map_err(|error| wrong(format!("no address: {error}")))?;
        if !matches!(base.scheme(), "https" | "http") {
            return Err(wrong(format!(
                "`{}` is no way to a registry; `https` or a folder is",
                base.scheme()
            )));
        }
        let http = Http::new(&Settings::from_env()).map_err(|error| wrong(error.to_string()))?;
        Ok(Self::Site { base, http: Box::new(http) })
    }

    /// Brings a file of at most `limit` bytes into memory.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().map_err(io("make", &std::env::temp_dir()))?;
        let to = folder.path().join("file");
        self.bring(name, &to, limit)?;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&to).map_err(io("read", &to))?;
        file.take(limit).read_to_end(&mut bytes).map_err(io("read", &to))?;
        Ok(bytes)
    }

    /// As [`read`](Self::read), for a file whose hash is known.
    pub fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let name = super::blob(digest);
        let bytes = self.read(&name, limit)?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(self.wrong(&name, format!("it has the sha256 {found}: damaged, or another's")));
        }
        Ok(bytes)
    }

    /// Brings a file to `to`.
    pub fn bring(&self, name: &str, to: &Path, limit: u64) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                let from = folder.join(name);
                let file = std::fs::File::open(&from).map_err(io("open", &from))?;
                let mut out = std::fs::File::create_new(to).map_err(io("write", to))?;
                let copied = std::io::copy(&mut file.take(limit + 1), &mut out).map_err(io("read", &from))?;
                if copied > limit {
                    return Err(self.wrong(name, format!("it is longer than {limit} bytes")));
                }
                Ok(())
            }
            Self::Site { base, http } => {
                let url = base.join(name).map_err(|error| self.wrong(name, error.to_string()))?;
                let target = Target {
                    label: url.to_string(),
                    url,
                    token: None,
                    hint: "a registry is read without a key",
                };
                let mut silent = |_| ();
                let mut watch = Watch::new(&mut silent, None);
                http.download(&target, to, Some(limit), false, &mut watch)
                    .map(drop)
                    .map_err(|error: RegistryError| self.wrong(name, error.to_string()))
            }
        }
    }

    fn wrong(&self, name: &str, why: String) -> PackageError {
        let whole = match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Site { base, .. } => format!("{base}{name}"),
        };
        Problem::Index(why).of(whole)
    }
}

/// Writes a file whole or not at all; its folder is made.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io("make", folder))?;
    let write = || {
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    write().map_err(io("write", path))
}
