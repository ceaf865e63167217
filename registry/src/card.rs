//! The model card, `model.toml`: what a model is, what serves it, and which files it is made of.
//!
//! A card is the whole truth about an installed model. `pull` writes one from the catalogue or makes one up for a
//! bare file; a person can write one next to files of their own, naming them by `path`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::convert::Convert;
use crate::digest::Digest;
use crate::error::{RegistryError, Result};
use crate::name::ModelName;
use crate::source::Source;
use crate::strict;

/// A card. Unknown keys are refused with the nearest right name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub name: ModelName,
    /// Other names that find this model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<ModelName>,
    /// The model that this is a second name of: where that one is installed and the same, both are one to a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<ModelName>,
    #[serde(default, skip_serializing_if = "Kind::is_model")]
    pub kind: Kind,
    /// Version of a runtime; it names the folder that the runtime is put in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// SPDX expression where there is one, else the licence's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub homepage: Option<String>,
    /// Id of the plugin that has to open the model; without it any plugin that opens the format may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// `gguf`, `onnx`, ...: matched against the formats a plugin opens.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// What the model serves. Empty in the file means the default of its format.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
    /// What a message to it may be made of. Empty means text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modalities: Vec<Modality>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// Class names in the order of the model's output; a longer list is a file with the role `labels`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The longest context the model was made for, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory: MemoryHint,
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Handed to the plugin as it stands: context, slots, pooling, pre- and post-processing.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Models within this one, each by the role of its file: the graphs that a task is made of. See [`Card::graph`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub graphs: BTreeMap<String, Graph>,
    #[serde(default)]
    pub files: Vec<FileSpec>,
}

/// A model within a model: another plugin opens it, by the name `MODEL.ROLE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    #[serde(default = "onnx", skip_serializing_if = "is_onnx")]
    pub format: String,
    /// Empty in the file means the default of its format.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
    /// For the plugin that opens it.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// What a file is to the graph of this role, if it is a file of it.
pub(crate) fn role_within(graph: &str, file: &str) -> Option<String> {
    let rest = file.strip_prefix(graph)?;
    Some(if rest.is_empty() { "model" } else { rest.strip_prefix('.')? }.to_owned())
}

fn onnx() -> String {
    "onnx".to_owned()
}

fn is_onnx(format: &str) -> bool {
    format == "onnx"
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    #[default]
    Model,
    /// A shared library that plugins open, such as ONNX Runtime.
    Runtime,
}

impl Kind {
    fn is_model(&self) -> bool {
        *self == Kind::Model
    }
}

/// What a message may be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    Text,
    /// A model that sees.
    Image,
}

/// What the model needs beside its files, in bytes. A guess until the host has measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHint {
    /// Once per instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<u64>,
    /// For each token of context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_token: Option<u64>,
}

/// Limits that hold where the configuration says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests that run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Requests that may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Tokens of output per request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u32>,
}

/// One file of a model, from exactly one of `source`, `parts`, `inputs` and `path`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// What the file is to the plugin: `model`, `tokenizer`, `labels`, `library`. Each role stands once.
    pub role: String,
    /// The file's own name, for those who care (a runtime is installed under it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Pin. A file without one is trusted when it is first pulled, and pinned then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes to transfer, where that is not `size`: a package carries more than the one file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<u64>,
    /// `linux/x86_64`: the file is only for this system. Without it, for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Sources whose bytes, joined in order, are the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// Makes the file of `inputs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convert: Option<Convert>,
    /// What the file is made of. They are not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// A local file, relative to the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// What a converter takes, from exactly one of `source` and `path`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// A local file, relative to the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// This machine as cards write it.
pub fn platform() -> String {
    format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// What a model of this format can do when its card does not say.
fn default_capabilities(format: &str) -> Vec<Capability> {
    let names: &[&str] = match format {
        "gguf" => &["chat", "complete"],
        "onnx" | "cuda" => &["tensor.infer"],
        "openai" => &["chat", "complete"],
        "oip" => &["tensor.infer"],
        _ => &[],
    };
    names.iter().map(|name| Capability::new(name, 1)).collect()
}

/// Whether a model of this format is a file. Of one that is not, such as a model of another server, the card says all.
fn is_file(format: &str) -> bool {
    matches!(format, "gguf" | "onnx" | "cuda")
}

impl Card {
    /// Reads and checks a card. `origin` (a path, "the catalogue") stands before the error.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let invalid = |reason| RegistryError::InvalidCard { origin: origin.to_owned(), reason };
        let mut card: Self = strict::from_toml(text).map_err(invalid)?;
        if card.capabilities.is_empty() {
            card.capabilities = default_capabilities(&card.format);
        }
        card.check().map_err(invalid)?;
        Ok(card)
    }

    pub fn read(path: &Path) -> Result<Self> {
        // A pipe would be waited for, and a device has no end.
        if !path.metadata().map_err(RegistryError::io("read", path))?.is_file() {
            let reason = "a card is a file, and this is none".to_owned();
            return Err(RegistryError::InvalidFile { path: path.to_owned(), reason });
        }
        let text = std::fs::read_to_string(path).map_err(RegistryError::io("read", path))?;
        Self::parse(&text, &path.display().to_string())
    }

    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| RegistryError::InvalidCard {
            origin: format!("the card of `{}`", self.name),
            reason: error.to_string(),
        })
    }

    /// A card for one bare file, whose format is known by its extension.
    pub(crate) fn for_file(name: ModelName, file_name: &str, source: &Source) -> Result<Self> {
        let extension = file_name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let format = match extension.to_ascii_lowercase().as_str() {
            "gguf" => "gguf",
            "onnx" => "onnx",
            _ => {
                return Err(RegistryError::InvalidSource {
                    source_uri: source.to_string(),
                    reason: format!(
                        "`{file_name}` is neither a .gguf nor an .onnx file; for another format write a model.toml and pull that"
                    ),
                });
            }
        };
        Self::parse(
            &format!(
                "name = \"{name}\"\nformat = \"{format}\"\n[[files]]\nrole = \"model\"\nsource = {}\n",
                toml::Value::String(source.to_string())
            ),
            &source.to_string(),
        )
    }

    /// The files for this machine.
    pub fn files_here(&self) -> impl Iterator<Item = &FileSpec> {
        let here = platform();
        self.files.iter().filter(move |file| file.platform.as_ref().is_none_or(|platform| *platform == here))
    }

    /// Sum of the sizes of the files for this machine, where all are known.
    pub fn size(&self) -> Option<u64> {
        self.files_here().map(|file| file.size).sum()
    }

    /// First 12 digits of the SHA-256 of all that makes two models behave alike: the card without names and
    /// provenance. A copy under another name has the same id.
    pub fn id(&self) -> Result<String> {
        let same = ModelName::from_file_stem("id")?;
        let mut canonical = Self { name: same, aliases: Vec::new(), homepage: None, ..self.clone() };
        (canonical.description, canonical.copy_of) = (None, None);
        for file in &mut canonical.files {
            *file = FileSpec {
                role: file.role.clone(),
                sha256: file.sha256,
                path: file.path.clone(),
                size: file.size,
                ..FileSpec::default()
            };
        }
        Ok(Digest::of(canonical.to_toml()?.as_bytes()).short())
    }

    /// The model that its file with this role is, if it is one: `det` of `pp-ocr` is the model `pp-ocr.det`, whose file
    /// has the role `model`. A file with the role `det.external` is its `external`.
    ///
    /// # Errors
    /// When `MODEL.ROLE` cannot be a name.
    pub fn graph(&self, role: &str) -> Option<Result<Self>> {
        let graph = self.graphs.get(role)?;
        let own = |file: &FileSpec| Some(FileSpec { role: role_within(role, &file.role)?, ..file.clone() });
        let of = |name| Self {
            name,
            aliases: Vec::new(),
            copy_of: None,
            kind: Kind::Model,
            version: None,
            description: Some(format!("graph `{role}` of `{}`", self.name)),
            licence: self.licence.clone(),
            homepage: None,
            plugin: None,
            format: graph.format.clone(),
            capabilities: match &graph.capabilities[..] {
                [] => default_capabilities(&graph.format),
                some => some.to_vec(),
            },
            modalities: Vec::new(),
            languages: Vec::new(),
            labels: Vec::new(),
            context: None,
            memory: MemoryHint::default(),
            limits: Limits::default(),
            parameters: graph.parameters.clone(),
            graphs: BTreeMap::new(),
            files: self.files.iter().filter_map(own).collect(),
        };
        Some(format!("{}.{role}", self.name).parse().map(of))
    }

    /// Members in which `other` is another model than this, which is installed: names and what is for people do not count,
    /// nor what a file holds that comes from the same place.
    pub(crate) fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let plain = |card: &Self| {
            let mut card = Self { files: Vec::new(), homepage: None, description: None, ..card.clone() };
            (card.aliases, card.copy_of) = (Vec::new(), None);
            card.to_toml().map(|text| toml::from_str::<toml::Table>(&text).unwrap_or_default())
        };
        let (ours, theirs) = (plain(self)?, plain(other)?);
        let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let mut differ: Vec<String> =
            names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name)).cloned().collect();
        let same_file = |file: &FileSpec| {
            self.files_here().any(|ours| {
                let pins = FileSpec {
                    sha256: ours.sha256,
                    size: ours.size,
                    download: ours.download,
                    ..file.clone()
                };
                pins == *ours
            })
        };
        if self.files_here().count() != other.files_here().count() || !other.files_here().all(same_file) {
            differ.push("files".to_owned());
        }
        Ok(differ)
    }

    fn check(&self) -> Result<(), String> {
        let wanted = match self.kind {
            Kind::Model => "model",
            Kind::Runtime => "library",
        };
        match self.kind {
            // One that a plugin makes of what others serve is no file of any format.
            Kind::Model if self.format.is_empty() && (self.plugin.is_none() || !self.files.is_empty()) => {
                return Err(
                    "`format` is missing: name it, such as `gguf` or `onnx`; only a card without files \
                            that names its `plugin` needs none"
                        .into(),
                );
            }
            Kind::Model if self.capabilities.is_empty() && self.format.is_empty() => {
                return Err("`capabilities` is missing, and a card without a `format` has no default".into());
            }
            Kind::Model if self.capabilities.is_empty() => {
                return Err(format!(
                    "`capabilities` is missing, and the format `{}` has no default",
                    self.format
                ));
            }
            Kind::Runtime => {
                let version = self.version.as_deref().ok_or("a runtime needs a `version`")?;
                safe_file_name(version).map_err(|reason| format!("`version`: {reason}"))?;
            }
            Kind::Model => {}
        }
        let here = platform();
        let mut roles = BTreeSet::new();
        let mut elsewhere = Vec::new();
        for file in &self.files {
            file.check().map_err(|reason| format!("file `{}`: {reason}", file.role))?;
            match &file.platform {
                Some(platform) if *platform != here => elsewhere.push(platform.as_str()),
                _ if !roles.insert(file.role.as_str()) => {
                    return Err(format!("two files have the role `{}`", file.role));
                }
                _ => {}
            }
        }
        for role in self.graphs.keys() {
            let graph = self.graph(role).transpose().map_err(|error| format!("`graphs.{role}`: {error}"))?;
            graph.map_or(Ok(()), |graph| graph.check()).map_err(|reason| {
                format!("`graphs.{role}` is the file with the role `{role}`, opened as a model: {reason}")
            })?;
        }
        // What a model of other models is made of, it does not open itself.
        let nothing_to_open = self.kind == Kind::Model
            && !is_file(&self.format)
            && (self.files.is_empty() || !self.graphs.is_empty());
        if roles.contains(wanted) || nothing_to_open {
            Ok(())
        } else if elsewhere.is_empty() {
            Err(format!("no file has the role `{wanted}`"))
        } else {
            Err(format!("there is no `{wanted}` for {here}, only for {}", elsewhere.join(", ")))
        }
    }
}

impl FileSpec {
    /// Where the bytes come from, or those that they are made of, in order.
    pub fn sources(&self) -> Result<Vec<Source>> {
        let inputs = self.inputs.iter().filter_map(|input| input.source.as_ref());
        self.source.iter().chain(&self.parts).chain(inputs).map(|uri| uri.parse()).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.role.is_empty()
            || !self.role.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.'))
        {
            return Err("a role consists of lower-case letters, digits, `_`, `-` and `.`".into());
        }
        if let Some(name) = &self.name {
            safe_file_name(name).map_err(|reason| format!("`name`: {reason}"))?;
        }
        let origins = usize::from(self.source.is_some())
            + usize::from(!self.parts.is_empty())
            + usize::from(!self.inputs.is_empty())
            + usize::from(self.path.is_some());
        if origins != 1 {
            return Err(format!(
                "exactly one of `source`, `parts`, `inputs` and `path` is needed, {origins} are given"
            ));
        }
        self.path.as_deref().map_or(Ok(()), beside_the_card)?;
        self.check_inputs()?;
        for source in self.sources().map_err(|error| error.to_string())? {
            if let Source::File(path) = source
                && path.is_relative()
            {
                return Err(format!(
                    "`{}` depends on where it is read from; name it by `path`",
                    path.display()
                ));
            }
        }
        Ok(())
    }
}

impl FileSpec {
    /// As many inputs as the converter takes, each from one place.
    fn check_inputs(&self) -> Result<(), String> {
        let takes = match self.convert {
            Some(convert) => convert.takes(),
            None if self.inputs.is_empty() => return Ok(()),
            None => return Err("`convert` is missing: it says what is made of the `inputs`".into()),
        };
        if self.inputs.len() != takes.len() {
            let (takes, given) = (takes.join(" and "), self.inputs.len());
            return Err(format!("it is made of {takes} as `inputs`, and {given} are given"));
        }
        for input in &self.inputs {
            if input.source.is_some() == input.path.is_some() {
                return Err("each of `inputs` needs either `source` or `path`".into());
            }
            input.path.as_deref().map_or(Ok(()), beside_the_card)?;
        }
        Ok(())
    }
}

fn beside_the_card(path: &Path) -> Result<(), String> {
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if inside && !path.as_os_str().is_empty() {
        Ok(())
    } else {
        Err(format!("`path` has to lie beside the card, `{}` does not", path.display()))
    }
}

/// One component of a path, and a plain one.
fn safe_file_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'));
    if plain && !name.is_empty() && name.len() <= 128 && !name.starts_with('.') {
        Ok(())
    } else {
        Err(format!("`{name}` cannot be a file name here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "name = 'm'\nformat = 'gguf'\n[[files]]\nrole = 'model'\npath = 'm.gguf'\n";

    fn refusal(text: &str) -> String {
        Card::parse(text, "model.toml").unwrap_err().to_string()
    }

    #[test]
    fn a_card_written_by_hand_gets_the_defaults_of_its_format() {
        let card = Card::parse(MINIMAL, "model.toml").unwrap();
        assert_eq!(card.capabilities, [Capability::new("chat", 1), Capability::new("complete", 1)]);
        assert_eq!(Card::parse(&card.to_toml().unwrap(), "again").unwrap(), card);
    }

    #[test]
    fn a_model_that_is_no_file_needs_none() {
        let card =
            Card::parse("name = 'm'\nformat = 'openai'\n[parameters]\nupstream = 'vllm'", "x").unwrap();
        assert_eq!(card.capabilities, [Capability::new("chat", 1), Capability::new("complete", 1)]);
        assert_eq!(card.size(), Some(0));
        let another = "name = 'm'\nformat = 'openai'\n[[files]]\nrole = 'labels'\npath = 'l'\n";
        assert!(refusal(another).contains("no file has the role `model`"));
    }

    #[test]
    fn everything_survives_being_written() {
        let text = format!(
            "name = 'acme/x:1'\naliases = ['x']\ndescription = 'd'\nlicence = 'MIT'\nhomepage = 'h'\nplugin = 'com.acme.x'\n\
             format = 'onnx'\ncapabilities = ['embed/2', 'tensor.infer']\nlanguages = ['en']\nlabels = ['a']\ncontext = 8\n\
             [memory]\nscratch = 1\nper_token = 2\n[limits]\nconcurrency = 1\nqueue = 2\noutput_tokens = 3\n\
             [parameters]\npooling = 'mean'\n[parameters.deep]\nlist = [1, 2.5, true]\n\
             [graphs.model]\nparameters = {{ threads = 2 }}\n\
             [[files]]\nrole = 'model'\nsha256 = '{0}'\nsize = 3\ndownload = 4\nparts = ['file:///a', 'file:///b']\n\
             [[files]]\nrole = 'tokenizer'\nname = 't.json'\nsource = 'hf:o/r/t.json@v1'\n",
            Digest::of(b"x")
        );
        let card = Card::parse(&text, "x").unwrap();
        assert_eq!(card.capabilities[0], Capability::new("embed", 2));
        assert_eq!(card.parameters["deep"]["list"][1], 2.5);
        assert_eq!(Card::parse(&card.to_toml().unwrap(), "again").unwrap(), card);
    }

    #[test]
    fn unknown_keys_are_refused_with_line_and_nearest_name() {
        assert_eq!(
            refusal(&format!("capabilitys = ['chat']\n{MINIMAL}")),
            "model.toml: line 1: unknown key `capabilitys`, did you mean `capabilities`?"
        );
        let refused = refusal(&format!("{MINIMAL}sha265 = 'x'\n"));
        assert!(refused.contains("unknown key `sha265`, did you mean `sha256`?"), "{refused}");
    }

    #[test]
    fn a_card_without_files_needs_no_format_where_it_names_its_plugin() {
        let card = Card::parse("name = 'm'\nplugin = 'com.acme.x'\ncapabilities = ['translate']\n", "x");
        let card = card.unwrap();
        assert_eq!((&*card.format, card.files.len()), ("", 0));
        assert_eq!(Card::parse(&card.to_toml().unwrap(), "again").unwrap(), card);
    }

    #[test]
    fn what_does_not_make_sense_is_named() {
        let file = |body: &str| format!("name = 'm'\nformat = 'gguf'\n[[files]]\nrole = 'model'\n{body}\n");
        for (text, says) in [
            (file(""), "exactly one of `source`, `parts`, `inputs` and `path` is needed, 0 are given"),
            (file("path = 'a'\nsource = 'file:///a'"), "2 are given"),
            (file("path = '../a'"), "has to lie beside the card"),
            (file("path = '/etc/passwd'"), "has to lie beside the card"),
            (file("source = './a.gguf'"), "name it by `path`"),
            (file("source = 'oci:x'"), "`oci:` is not supported"),
            (file("path = 'a'\nsha256 = 'abc'"), "64 hexadecimal digits"),
            (file("path = 'a'\nname = '../a'"), "cannot be a file name"),
            (format!("{MINIMAL}[[files]]\nrole = 'model'\npath = 'b'\n"), "two files have the role `model`"),
            ("name = 'm'\nformat = 'gguf'\n".into(), "no file has the role `model`"),
            ("name = 'm'\n[[files]]\nrole = 'model'\npath = 'm'\n".into(), "`format` is missing"),
            (
                "name = 'm'\nplugin = 'com.acme.x'\n[[files]]\nrole = 'model'\npath = 'm'\n".into(),
                "`format` is missing",
            ),
            ("name = 'm'\nplugin = 'com.acme.x'\n".into(), "`capabilities` is missing"),
            (
                "name = 'm'\nformat = 'odd'\n[[files]]\nrole = 'model'\npath = 'm'\n".into(),
                "`odd` has no default",
            ),
            (MINIMAL.replace("'m'", "'../m'"), "is not a model name"),
            (format!("capabilities = ['Chat!']\n{MINIMAL}"), "is not a capability"),
            (
                "name = 'r'\nkind = 'runtime'\n[[files]]\nrole = 'library'\npath = 'l'\n".into(),
                "needs a `version`",
            ),
            (file("path = 'a'\nplatform = 'plan9/vax'"), "only for plan9/vax"),
            (format!("{MINIMAL}[graphs.det]\n"), "`graphs.det` is the file with the role `det`"),
            (format!("{MINIMAL}[graphs.model]\nformat = 'odd'\n"), "`capabilities` is missing"),
            (format!("{MINIMAL}[graphs.model]\nthreads = 1\n"), "unknown key"),
        ] {
            let refused = refusal(&text);
            assert!(refused.contains(says), "{text}\n=> {refused}");
        }
    }

    #[test]
    fn a_file_can_be_a_model_of_its_own() {
        let text = "name = 'acme/reader:v4'\nformat = 'vision'\ncapabilities = ['vision.ocr']\nlicence = 'MIT'\n\
                    [graphs.det.parameters]\nthreads = 2\n\
                    [[files]]\nrole = 'det'\npath = 'd.onnx'\n\
                    [[files]]\nrole = 'det.external'\npath = 'd.data'\n\
                    [[files]]\nrole = 'dictionary'\npath = 'd.txt'\n";
        let card = Card::parse(text, "x").unwrap();
        assert_eq!(Card::parse(&card.to_toml().unwrap(), "again").unwrap(), card);
        let graph = card.graph("det").unwrap().unwrap();
        assert_eq!(graph.name.to_string(), "acme/reader:v4.det");
        assert_eq!((graph.format.as_str(), graph.licence.as_deref()), ("onnx", Some("MIT")));
        assert_eq!(graph.capabilities, [Capability::new("tensor.infer", 1)]);
        assert_eq!(graph.parameters["threads"], 2);
        let roles: Vec<_> = graph.files.iter().map(|file| file.role.as_str()).collect();
        assert_eq!(roles, ["model", "external"]);
        assert!(card.graph("dictionary").is_none(), "it is not listed under `graphs`");
    }

    #[test]
    fn the_id_is_that_of_the_content() {
        let card = Card::parse(MINIMAL, "x").unwrap();
        let copy = Card { name: "other".parse().unwrap(), description: Some("d".into()), ..card.clone() };
        let changed = Card { context: Some(1), ..card.clone() };
        assert_eq!(card.id().unwrap(), copy.id().unwrap());
        assert_ne!(card.id().unwrap(), changed.id().unwrap());
        assert_eq!(card.id().unwrap().len(), 12);
    }
}
