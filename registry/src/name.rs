//! Names of models: `[namespace/]name[:tag]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::RegistryError;

/// The tag that a name without one has. It is never written: `smollm2:latest` and `smollm2` are one name.
const DEFAULT_TAG: &str = "latest";
const MAX_PART: usize = 80;
const MAX_NAME: usize = 350;
/// What can be asked of a model over HTTP stands behind its name: `…/models/acme/plan` is the plan of `acme`.
const RESERVED: [&str; 7] = ["config", "infer", "load", "plan", "ready", "stats", "unload"];

/// A model's name. Case is folded, so that a name is also a file name everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName {
    namespace: Option<String>,
    name: String,
    tag: Option<String>,
}

impl ModelName {
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The middle part, without namespace and tag.
    pub fn base(&self) -> &str {
        &self.name
    }

    pub fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// Whether a path over HTTP would mean something else. `/v2/models/stats` is about every model.
    fn is_reserved(&self) -> bool {
        let in_namespace = self.namespace.is_some() && RESERVED.contains(&self.name.as_str());
        self.tag.is_none() && (in_namespace || self.to_string() == "stats")
    }

    /// The name as a single file name (at most 246 bytes), which only this name has.
    pub(crate) fn file_stem(&self) -> String {
        self.to_string().replace('/', "%2f").replace(':', "%3a")
    }

    pub(crate) fn from_file_stem(stem: &str) -> Result<Self, RegistryError> {
        stem.replace("%2f", "/").replace("%3a", ":").parse()
    }

    /// A name for a file that comes without one: `Qwen2.5 (Q4).gguf` becomes `qwen2.5-q4`.
    pub(crate) fn from_file_name(file_name: &str) -> Result<Self, RegistryError> {
        let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem);
        let mut name = String::new();
        for c in stem.chars().map(|c| c.to_ascii_lowercase()) {
            match c {
                'a'..='z' | '0'..='9' | '.' | '_' => name.push(c),
                _ if !name.ends_with('-') => name.push('-'),
                _ => {}
            }
        }
        let name = name.replace("..", ".");
        name.trim_matches(['-', '.', '_']).chars().take(MAX_PART).collect::<String>().parse()
    }
}

impl FromStr for ModelName {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let bad =
            |reason: String| RegistryError::InvalidName { name: text.chars().take(100).collect(), reason };
        if text.len() > MAX_NAME {
            return Err(bad(format!("it is longer than {MAX_NAME} bytes")));
        }
        let (path, tag) = match text.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (text, None),
        };
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, path),
        };
        for (what, part) in [("namespace", namespace), ("name", Some(name)), ("tag", tag)] {
            if let Some(part) = part {
                check_part(part).map_err(|reason| bad(format!("the {what} {reason}")))?;
            }
        }
        let this = Self {
            namespace: namespace.map(str::to_ascii_lowercase),
            name: name.to_ascii_lowercase(),
            tag: tag.map(str::to_ascii_lowercase).filter(|tag| tag != DEFAULT_TAG),
        };
        if this.is_reserved() {
            let name = &this.name;
            return Err(bad(format!(
                "over HTTP `{name}` there asks something of a model; add a tag or another word"
            )));
        }
        Ok(this)
    }
}

fn check_part(part: &str) -> Result<(), String> {
    if part.is_empty() {
        return Err("is empty".into());
    }
    if part.len() > MAX_PART {
        return Err(format!("is longer than {MAX_PART} bytes"));
    }
    if let Some(c) = part.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(format!("contains {c:?}"));
    }
    if !part.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("does not start with a letter or digit".into());
    }
    if part.contains("..") {
        return Err("contains `..`".into());
    }
    Ok(())
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        Ok(())
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ModelName {
        text.parse().unwrap()
    }

    #[test]
    fn latest_is_the_untagged_name_and_case_is_folded() {
        assert_eq!(name("SmolLM2:latest"), name("smollm2"));
        assert_eq!(name("acme/Vision:V2").to_string(), "acme/vision:v2");
        assert_eq!(name("smollm2").tag(), "latest");
        assert_ne!(name("smollm2:135m"), name("smollm2"));
    }

    #[test]
    fn refuses_what_could_leave_its_folder_or_is_no_name() {
        let long = "a".repeat(81);
        for text in [
            "", "a/", "/a", "a:", ":a", "..", "a/..", "../a", "a..b", "a/b/c", "a:b:c", "a b", "a\0", "-a",
            ".a", "ä", &long,
        ] {
            assert!(matches!(text.parse::<ModelName>(), Err(RegistryError::InvalidName { .. })), "{text:?}");
        }
    }

    #[test]
    fn refuses_what_a_path_over_http_would_take_for_a_question() {
        for text in ["acme/plan", "acme/Ready", "acme/config:latest", "acme/unload", "acme/infer", "stats"] {
            let error = text.parse::<ModelName>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("add a tag"), "{error}");
        }
        for text in ["plan", "acme/plan:v2", "plan/acme", "acme/planner", "acme/vision:stats", "stats:v1"] {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn a_file_name_becomes_a_name() {
        assert_eq!(ModelName::from_file_name("Qwen2.5 (Q4).gguf").unwrap(), name("qwen2.5-q4"));
        assert_eq!(ModelName::from_file_name("..x..y.onnx").unwrap(), name("x.y"));
        assert!(ModelName::from_file_name("日本.gguf").is_err());
    }

    proptest! {
        #[test]
        fn a_name_survives_its_file_name(text in "([a-z][a-z0-9._-]{0,20}/)?[a-z][a-z0-9._-]{0,20}(:[a-z][a-z0-9._-]{0,20})?") {
            if let Ok(name) = text.parse::<ModelName>() {
                let stem = name.file_stem();
                prop_assert!(!stem.contains(['/', ':']) && stem.len() <= 250);
                prop_assert_eq!(ModelName::from_file_stem(&stem).unwrap(), name);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            if let Ok(name) = text.parse::<ModelName>() {
                prop_assert_eq!(name.to_string().parse::<ModelName>().unwrap(), name);
            }
            let _ = ModelName::from_file_name(&text);
        }
    }
}
