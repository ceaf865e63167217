//! `plugin.toml`: what a plugin says of itself.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::strict;
use crate::trust::Day;

/// A plugin's manifest. Keys that this host does not know are kept aside, not refused: a newer plugin may say more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Reverse DNS: `com.acme.speech`.
    pub id: String,
    pub version: String,
    /// The ABI that the plugin was built against.
    pub abi: AbiVersion,
    /// The lowest ABI minor of a host that the plugin works with.
    #[serde(default)]
    pub min_host_minor: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Name and version of what it was built with, such as `backplane-plugin 1.0.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sdk: Option<String>,
    /// Target triple, for people; the library's own header decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
    /// Model formats that it opens, such as `gguf`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<String>,
    /// Models that need no files: they are served as soon as the plugin is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<BuiltinModel>,
    #[serde(default)]
    pub isolation: Isolation,
    #[serde(default)]
    pub panic: Panics,
    #[serde(default)]
    pub runtime: RuntimeClass,
    #[serde(default)]
    pub resources: Resources,
    /// JSON Schema of the plugin's section in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_schema: Option<serde_json::Value>,
    /// SPDX expression, or the licence's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    #[serde(default)]
    pub licence_class: LicenceClass,
    /// The day that it was built, where its vendor says so: licences may cover builds up to a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Day>,
    /// Public keys that may sign this plugin's licences and later versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vendor_keys: Vec<String>,
    /// Top-level keys that this host does not know.
    #[serde(skip)]
    pub unknown_keys: Vec<String>,
}

/// A model inside a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltinModel {
    pub name: crate::name::ModelName,
    /// Empty means all of the plugin's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
    /// As on a card.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modalities: Vec<crate::card::Modality>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// Where the plugin wishes to run. The operator decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    #[default]
    Any,
    InProcess,
    Worker,
}

impl Isolation {
    /// As the configuration and a running server have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::InProcess => "in-process",
            Self::Worker => "worker",
        }
    }
}

/// What a panic in the plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Panics {
    /// It is caught inside the plugin.
    #[default]
    Unwind,
    /// It ends the process.
    Abort,
}

/// What runs beneath the plugin's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeClass {
    #[default]
    Native,
    Go,
    Jvm,
    Python,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LicenceClass {
    #[default]
    Open,
    /// Runs without a licence; some of its features need one.
    Optional,
    /// Runs only with a licence file of its vendor.
    Commercial,
}

/// What the plugin asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Threads that it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Bytes that it allocates. Files of models that it maps are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(default)]
    pub gpu: bool,
    /// All of it. Who can say which servers says `hosts`.
    #[serde(default)]
    pub network: bool,
    /// The servers that it connects to, and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Server>,
    /// Files and folders that it reads beside its models, by their whole paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<PathBuf>,
    /// Files and folders that it reads and writes, by their whole paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub write: Vec<PathBuf>,
}

impl Resources {
    fn check(&self) -> Result<(), String> {
        if self.network && !self.hosts.is_empty() {
            return Err(
                "`resources.network` asks for any server and `resources.hosts` for some: keep one of them"
                    .to_owned(),
            );
        }
        for (key, paths) in [("read", &self.read), ("write", &self.write)] {
            if let Some(path) = paths.iter().find(|path| !is_whole(path)) {
                return Err(format!(
                    "`resources.{key}` has `{}`: expected a path from the root, without `.` and `..`, such as \
                     `/srv/dictionaries`",
                    path.display()
                ));
            }
        }
        Ok(())
    }
}

/// Whether a path says the same wherever it is read, and is not everything.
fn is_whole(path: &Path) -> bool {
    let mut parts = path.components();
    let root = parts.next() == Some(Component::RootDir);
    let parts: Vec<_> = parts.collect();
    // As it is written: `a/./b` and `a//b` are other ways to say what an operator is to recognise.
    let plain = Path::new("/").join(parts.iter().collect::<PathBuf>()).as_os_str() == path.as_os_str();
    root && plain && !parts.is_empty() && parts.iter().all(|part| matches!(part, Component::Normal(_)))
}

/// A server by name and port, written `api.example.com:443`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub name: String,
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (name, port) = text.rsplit_once(':')?;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
            let named = !name.is_empty() && name.len() <= 253 && name.chars().all(plain);
            let port = port.parse().ok().filter(|port| *port != 0)?;
            named.then(|| Self { name: name.to_owned(), port })
        };
        parse().ok_or_else(|| {
            format!("`{text}` is no server: expected name and port such as `api.example.com:443`")
        })
    }
}

impl Serialize for Server {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Major and minor of the plugin ABI, written `1.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AbiVersion {
    pub major: u16,
    pub minor: u16,
}

impl AbiVersion {
    /// What this host speaks.
    pub const HOST: Self = Self { major: backplane_abi::ABI_MAJOR, minor: backplane_abi::ABI_MINOR };
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for AbiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (major, minor) = text.split_once('.')?;
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        parse()
            .ok_or_else(|| format!("`{text}` is not an ABI version: expected major and minor such as `1.0`"))
    }
}

impl Serialize for AbiVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AbiVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Manifest {
    /// Reads and checks a manifest; the error is one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut manifest: Self = strict::from_toml(text)?;
        manifest.check()?;
        manifest.unknown_keys = unknown_keys(text);
        Ok(manifest)
    }

    /// Whether only a process of its own can contain this plugin's failures: a panic ends its process, or beneath it lies a
    /// runtime that has the whole process for its own.
    pub fn needs_worker(&self) -> bool {
        self.panic == Panics::Abort || self.runtime != RuntimeClass::Native
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let label = |label: &str| {
            label.starts_with(|c: char| c.is_ascii_alphanumeric())
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        };
        if self.id.len() > 200 || self.id.split('.').count() < 2 || !self.id.split('.').all(label) {
            return Err(format!(
                "`id` is `{}`: expected a reversed domain name in lower case such as `com.acme.speech`",
                self.id
            ));
        }
        let plain =
            self.version.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+' | b'_'));
        if !plain || self.version.len() > 100 || !self.version.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("`version` is `{}`: expected a version such as `1.0.0`", self.version));
        }
        for (i, model) in self.models.iter().enumerate() {
            if self.models[..i].iter().any(|other| other.name == model.name) {
                return Err(format!("two models are named `{}`", model.name));
            }
        }
        self.resources.check()
    }
}

fn unknown_keys(text: &str) -> Vec<String> {
    const KNOWN: [&str; 18] = [
        "id",
        "version",
        "abi",
        "min_host_minor",
        "description",
        "sdk",
        "target",
        "capabilities",
        "formats",
        "models",
        "isolation",
        "panic",
        "runtime",
        "resources",
        "config_schema",
        "licence",
        "licence_class",
        "vendor_keys",
    ];
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    table.into_iter().map(|(key, _)| key).filter(|key| !KNOWN.contains(&key.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "id = 'com.acme.x'\nversion = '1.0.0'\nabi = '1.0'\n";

    #[test]
    fn three_keys_are_enough() {
        let manifest = Manifest::parse(MINIMAL).unwrap();
        assert_eq!(manifest.abi, AbiVersion { major: 1, minor: 0 });
        assert_eq!(manifest.isolation, Isolation::Any);
        assert!(
            !manifest.needs_worker() && manifest.capabilities.is_empty() && manifest.unknown_keys.is_empty()
        );
    }

    #[test]
    fn everything_that_a_plugin_can_say_is_read_and_written() {
        let text = "id = 'com.acme.x'\nversion = '2.1.0-rc.1'\nabi = '1.7'\nmin_host_minor = 5\ndescription = 'd'\n\
            sdk = 'backplane-plugin 1.0.0'\ntarget = 'x86_64-unknown-linux-gnu'\nformats = ['gguf']\nisolation = 'worker'\n\
            panic = 'abort'\nruntime = 'go'\nlicence = 'MIT'\nlicence_class = 'commercial'\nvendor_keys = ['k']\n\
            capabilities = ['chat', 'embed/2', { name = 'acme.speech.tts', version = 3, description = 'speaks', input_schema = { type = 'object' } }]\n\
            config_schema = { type = 'object' }\n[resources]\nthreads = 2\nmemory = 1024\ngpu = true\nnetwork = true\n\
            [[models]]\nname = 'm'\ncapabilities = ['chat']\nparameters = { slow = true }\n";
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.capabilities[1], Capability::new("embed", 2));
        assert_eq!(manifest.capabilities[2].input_schema.as_ref().unwrap()["type"], "object");
        assert_eq!(manifest.models[0].parameters["slow"], true);
        assert!(manifest.needs_worker() && manifest.unknown_keys.is_empty());
        assert_eq!(Manifest::parse(&toml::to_string(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn what_a_later_plugin_says_is_kept_aside() {
        let manifest = Manifest::parse(&format!("colour = 'red'\n{MINIMAL}")).unwrap();
        assert_eq!(manifest.unknown_keys, ["colour"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("version = '1'\nabi = '1.0'".to_owned(), "missing field `id`"),
            (MINIMAL.replace("com.acme.x", "acme"), "reversed domain name"),
            (MINIMAL.replace("com.acme.x", "com..x"), "reversed domain name"),
            (MINIMAL.replace("com.acme.x", "../../x"), "reversed domain name"),
            (MINIMAL.replace("1.0.0", "../1"), "`version` is"),
            (MINIMAL.replace("'1.0'\n", "'one'\n"), "line 3: `one` is not an ABI version"),
            (format!("{MINIMAL}capabilities = ['Chat']"), "is not a capability"),
            (format!("{MINIMAL}capabilities = [1]"), "expected a capability"),
            (format!("{MINIMAL}[[models]]\nname = 'm'\n[[models]]\nname = 'M'"), "two models are named `m`"),
            (format!("{MINIMAL}[resources]\nmemry = 1"), "unknown key `memry`, did you mean `memory`?"),
            ("\0".to_owned(), "line 1"),
        ] {
            let refused = Manifest::parse(&text).unwrap_err();
            assert!(refused.contains(says), "{text}\n=> {refused}");
        }
    }

    #[test]
    fn what_it_asks_for_is_a_server_or_a_path_that_says_the_same_everywhere() {
        let resources = |text: &str| {
            Manifest::parse(&format!("{MINIMAL}[resources]\n{text}\n")).map(|manifest| manifest.resources)
        };
        let asked = resources(
            "hosts = ['api.acme.com:443', '[::1]:80']\nread = ['/srv/a']\nwrite = ['/var/lib/acme']",
        );
        let asked = asked.unwrap();
        assert_eq!(asked.hosts.iter().map(|host| host.port).collect::<Vec<_>>(), [443, 80]);
        assert_eq!((asked.read, asked.write), (vec!["/srv/a".into()], vec!["/var/lib/acme".into()]));
        for bad in ["srv", "/", "", "/srv/../etc", "/srv/./a", "/srv//a", "/srv/a/", "~/a"] {
            let refused = resources(&format!("read = ['{bad}']")).unwrap_err();
            assert!(
                refused.contains("`resources.read` has") && refused.contains("from the root"),
                "{bad}: {refused}"
            );
        }
        for bad in ["acme.com", "acme.com:0", ":443", "acme.com:https", "a/b:1", "https://acme.com:443"] {
            let refused = resources(&format!("hosts = ['{bad}']")).unwrap_err();
            assert!(refused.contains("expected name and port"), "{bad}: {refused}");
        }
        assert!(resources("network = true\nhosts = ['a:1']").unwrap_err().contains("keep one"));
    }
}
