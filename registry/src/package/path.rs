//! Names of files in a package.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name of a file in a package.
pub const MAX_PATH: usize = 200;
/// The longest part of one: what every file system takes.
const MAX_PART: usize = 100;
const MAX_PARTS: usize = 8;

/// A name such as `share/notice.txt` that stays below any folder, and means one file on any file system.
///
/// Only `a-z`, `0-9`, `.`, `_` and `-` make up its parts, so that two names that differ are two files even where case
/// does not count; none begins with a dot, which keeps `..` out and leaves hidden names to the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackagePath(String);

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the file name `{}` is refused: {reason}", name.escape_debug())]
pub struct BadPath {
    pub name: String,
    pub reason: &'static str,
}

impl PackagePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders that it lies in, outermost first: `a`, then `a/b` of `a/b/c`.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl FromStr for PackagePath {
    type Err = BadPath;

    fn from_str(name: &str) -> Result<Self, BadPath> {
        let bad = |reason| Err(BadPath { name: name.chars().take(MAX_PATH).collect(), reason });
        if name.is_empty() {
            return bad("it is empty");
        }
        if name.len() > MAX_PATH {
            return bad("it is longer than 200 bytes");
        }
        if name.starts_with('/') {
            return bad("it is absolute");
        }
        if name.split('/').any(|part| part == "..") {
            return bad("it leaves its folder by `..`");
        }
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return bad("it has upper-case letters, and some file systems do not tell case");
        }
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/');
        if !name.bytes().all(allowed) {
            return bad("it may have only the characters `a-z`, `0-9`, `.`, `_`, `-` and `/`");
        }
        if name.split('/').count() > MAX_PARTS {
            return bad("it lies more than 7 folders deep");
        }
        for part in name.split('/') {
            if part.is_empty() {
                return bad("one of its parts is empty");
            }
            if part.starts_with('.') {
                return bad("one of its parts begins with a dot");
            }
            if part.len() > MAX_PART {
                return bad("one of its parts is longer than 100 bytes");
            }
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for PackagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PackagePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PackagePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn each_refusal_has_its_reason() {
        for (name, says) in [
            ("", "empty"),
            ("/etc/passwd", "absolute"),
            ("../x", "`..`"),
            ("a/../../x", "`..`"),
            ("a/..", "`..`"),
            ("a//b", "parts is empty"),
            ("a/", "parts is empty"),
            ("./a", "begins with a dot"),
            (".hidden", "begins with a dot"),
            ("a/...", "begins with a dot"),
            ("README", "upper-case"),
            ("a b", "characters"),
            ("a\\b", "characters"),
            ("a\0b", "characters"),
            ("é", "characters"),
            ("a:b", "characters"),
            (&"a".repeat(101), "longer than 100"),
            (&["a"; 9].join("/"), "7 folders"),
            (&"abcdefghi/".repeat(21), "longer than 200"),
        ] {
            let refused = name.parse::<PackagePath>().unwrap_err().to_string();
            assert!(refused.contains(says), "{name:?} => {refused}");
            assert!(!refused.contains(['\0', '\x1b']), "control characters are not shown: {refused:?}");
        }
    }

    #[test]
    fn folders_are_named_outermost_first() {
        let path: PackagePath = "a/b/c.txt".parse().unwrap();
        assert_eq!(path.folders().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!("x".parse::<PackagePath>().unwrap().folders().count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_below_its_folder(name in "[a-zA-Z0-9._/ \\\\-]{0,40}|.{0,30}") {
            if let Ok(path) = name.parse::<PackagePath>() {
                prop_assert_eq!(path.as_str(), &name);
                let parts: Vec<_> = Path::new(&name).components().collect();
                prop_assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))));
                // The name has one spelling: the parts, joined, are the name.
                let joined: Vec<_> = parts.iter().map(|part| part.as_os_str().to_str().unwrap()).collect();
                prop_assert_eq!(joined.join("/"), name.clone());
                prop_assert_eq!(name.to_lowercase(), name);
            }
        }

        #[test]
        fn ordinary_names_are_accepted(name in "[a-z0-9_][a-z0-9._-]{0,20}(/[a-z0-9_][a-z0-9._-]{0,20}){0,3}") {
            prop_assert!(name.parse::<PackagePath>().is_ok());
        }

        #[test]
        fn a_step_up_is_refused_wherever_it_is(before in "[a-z]{0,5}", after in "[a-z]{0,5}") {
            let name = format!("{before}/../{after}");
            prop_assert!(name.parse::<PackagePath>().is_err());
        }
    }
}
