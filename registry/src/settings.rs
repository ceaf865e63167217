//! How sources are reached, taken from the places where people have already said it.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HUB: &str = "https://huggingface.co";

/// How to reach the hub and the package index. Proxies are read from `HTTPS_PROXY` and its kin by the HTTP client.
#[derive(Clone)]
pub struct Settings {
    /// Base address of the model hub: `HF_ENDPOINT`.
    pub hub: String,
    /// Sent to the hub only: `HF_TOKEN`.
    pub hub_token: Option<Token>,
    /// Address of a simple package index: `BACKPLANE_PYPI_INDEX`, `PIP_INDEX_URL`, or `index-url` of pip's
    /// configuration. Without one, pip itself downloads packages from where it is used to.
    pub index: Option<String>,
    /// Further certificate authorities, PEM: `PIP_CERT`, `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`. The system's are
    /// used anyway, with `SSL_CERT_FILE` and `SSL_CERT_DIR` honoured.
    pub certificates: Vec<PathBuf>,
    /// The Python that runs pip.
    pub python: PathBuf,
    /// Attempts without progress before a transfer fails.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles with each further one.
    pub retry_delay: Duration,
    /// How long a server may be silent.
    pub read_timeout: Duration,
}

/// Addresses are left out: that of an index often carries a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("certificates", &self.certificates)
            .field("python", &self.python)
            .field("attempts", &self.attempts)
            .field("retry_delay", &self.retry_delay)
            .field("read_timeout", &self.read_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hub: HUB.to_owned(),
            hub_token: None,
            index: None,
            certificates: Vec::new(),
            python: PathBuf::from("python3"),
            attempts: 5,
            retry_delay: Duration::from_millis(500),
            read_timeout: Duration::from_secs(60),
        }
    }
}

impl Settings {
    pub fn from_env() -> Self {
        let var = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let defaults = Self::default();
        Self {
            hub: var("HF_ENDPOINT").unwrap_or(defaults.hub),
            hub_token: var("HF_TOKEN").map(Token),
            index: var("BACKPLANE_PYPI_INDEX")
                .or_else(|| var("PIP_INDEX_URL"))
                .or_else(|| pip_config_files().iter().find_map(|path| index_url(path))),
            certificates: ["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
                .iter()
                .filter_map(|name| var(name).map(PathBuf::from))
                .collect(),
            ..defaults
        }
    }
}

/// A secret: it has no way to be printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// pip's configuration files, the one that wins first.
fn pip_config_files() -> Vec<PathBuf> {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = var("HOME");
    let mut files = Vec::new();
    if let Some(file) = var("PIP_CONFIG_FILE") {
        if file == Path::new("/dev/null") {
            return files; // pip's own way to switch configuration off
        }
        files.push(file);
    }
    files.extend(var("VIRTUAL_ENV").map(|env| env.join("pip.conf")));
    let user = var("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    files.extend(user.map(|user| user.join("pip/pip.conf")));
    files.extend(home.map(|home| home.join(".pip/pip.conf")));
    files.push("/etc/pip.conf".into());
    let shared = env::var_os("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into());
    files.extend(env::split_paths(&shared).map(|dir| dir.join("pip/pip.conf")));
    files
}

/// `index-url` of the sections that govern `pip download`.
fn index_url(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut section = "";
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once(['=', ':']) {
            let key = key.trim().replace('_', "-");
            if key == "index-url" && (section == "download" || (section == "global" && found.is_none())) {
                found = Some(value.trim().to_owned());
            }
        }
    }
    found.filter(|url| !url.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_index_of_a_pip_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pip.conf");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            index_url(&path)
        };
        assert_eq!(
            read("[global]\ncert = /c.pem\nindex-url = https://mirror.example/simple/\n"),
            Some("https://mirror.example/simple/".into())
        );
        assert_eq!(
            read("[global]\nindex_url: https://a/\n[download]\nindex-url=https://b/\n"),
            Some("https://b/".into())
        );
        assert_eq!(read("[install]\nindex-url = https://c/\n"), None);
        assert_eq!(read("# index-url = https://d/\n"), None);
        assert_eq!(index_url(Path::new("/nonexistent")), None);
    }

    #[test]
    fn no_secret_is_printed() {
        let settings = Settings {
            hub_token: Some(Token::new("hf_secret")),
            index: Some("https://me:secret@mirror.example/simple/".into()),
            ..Settings::default()
        };
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
