//! The plugin's section of the host's configuration.

use backplane_plugin::prelude::*;
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;

/// What it may say.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `libnvrtc`, or a folder that it lies in. Nothing else is looked at then.
    pub nvrtc: Option<PathBuf>,
    /// Where pulled runtimes lie, `<name>/<version>/<library>`; the host says it.
    pub runtimes: Option<PathBuf>,
    /// Which GPU, from 0.
    pub device: usize,
    /// Bytes that copies of collections may take on the GPU.
    #[serde(deserialize_with = "bytes")]
    pub memory: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nvrtc: None, runtimes: None, device: 0, memory: 4 << 30 }
    }
}

impl Settings {
    /// Those of a configuration.
    ///
    /// # Errors
    /// When it says something else.
    pub fn of(config: &Value) -> Result<Self> {
        backplane_plugin::settings(crate::CudaPlugin::ID, config)
    }
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(from)?;
    let text = value.as_str().unwrap_or_default();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "MiB" => Some(1_u64 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.trim_end().parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    bytes.ok_or_else(|| {
        serde::de::Error::custom(format!("{value} is not a size such as \"512MiB\" or \"4GiB\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit() {
        assert_eq!(Settings::of(&json!({})).unwrap().memory, 4 << 30);
        assert_eq!(Settings::of(&json!({"memory": "512 MiB"})).unwrap().memory, 512 << 20);
        for wrong in [json!({"memory": "512"}), json!({"memory": 5}), json!({"memroy": "1GiB"})] {
            assert!(Settings::of(&wrong).unwrap_err().message.contains("mem"));
        }
    }
}
