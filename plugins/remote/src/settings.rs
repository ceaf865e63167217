//! What a card and the configuration say of an upstream.

use crate::secret::Reference;
use backplane_plugin::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `[plugins.settings."dev.backplane.remote"]` of the host's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Servers by a name that cards refer to.
    pub upstreams: BTreeMap<String, Upstream>,
}

/// `[parameters]` of a model's card.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// A name of the configuration, or the server itself.
    pub upstream: Named,
    /// What the server calls the model; by default what we call it.
    #[serde(default)]
    pub model: Option<String>,
    /// What it bids for a request that names no model.
    #[serde(default = "score", deserialize_with = "some_score")]
    pub score: u16,
    /// Whether to ask the server, on opening, if it has the model and how long its context is.
    #[serde(default = "yes")]
    pub discover: bool,
}

/// `[parameters]` of the card of a model that speaks the Open Inference Protocol.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InferenceParameters {
    /// A name of the configuration, or the server itself; its `url` ends with `/v2`.
    pub upstream: Named,
    /// What the server calls the model; by default what we call it.
    #[serde(default)]
    pub model: Option<String>,
    /// What it bids for a request that names no model.
    #[serde(default = "score", deserialize_with = "some_score")]
    pub score: u16,
    /// Which version of it; by default the one that the server chooses.
    #[serde(default)]
    pub version: Option<String>,
    /// Whether tensors travel as binary data; by default if the server says that it can.
    #[serde(default)]
    pub binary: Option<bool>,
}

/// A server by name, or written out.
#[derive(Debug)]
pub enum Named {
    Name(String),
    Here(Box<Upstream>),
}

/// By hand, since an untagged enum would say only that nothing fits, and not what is wrong with the server.
impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Named;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of an upstream of the configuration, or one written out with its `url`")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Named, E> {
                Ok(Named::Name(name.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Named, A::Error> {
                let upstream = Upstream::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Named::Here(Box::new(upstream)))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its API, with its version: `https://api.openai.com/v1`.
    pub url: String,
    /// What it understands beside OpenAI's API.
    #[serde(default)]
    pub flavour: Flavour,
    /// What it calls the most tokens of a chat's answer; by default what its flavour and its host do.
    #[serde(default)]
    pub max_tokens: Option<TokenLimit>,
    /// Keys it takes, in turn.
    #[serde(default)]
    pub keys: Vec<Reference>,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Headers of every request that are secret.
    #[serde(default)]
    pub secret_headers: BTreeMap<String, Reference>,
    /// `http://proxy:3128`. By default what `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say; `""` for none.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Certificates (PEM) to trust besides the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// HTTP/2 without TLS, which a server cannot announce.
    #[serde(default)]
    pub http2: bool,
    /// How long a connection may take to be made.
    #[serde(default = "connect_timeout", deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// How long a stream may say nothing, its first piece included.
    #[serde(default = "idle_timeout", deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// Where its metrics are, which say how busy it is: a path of its host. By default `/metrics` where its flavour
    /// has any; `""`: it is not asked.
    #[serde(default)]
    pub metrics: Option<String>,
    /// Requests that may be on their way at once, for each model.
    #[serde(default = "max_inflight")]
    pub max_inflight: u32,
}

/// What a server understands beside OpenAI's API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// Nothing: what OpenAI does not have is refused before it is sent.
    #[default]
    Openai,
    /// vLLM: `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `stop_token_ids`, grammars.
    Vllm,
    /// llama.cpp's server: `top_k`, `min_p`, `repeat_penalty`, `ignore_eos`, grammars.
    LlamaCpp,
    /// Ollama: less than OpenAI's API, and what it does not know it leaves out without a word.
    Ollama,
    /// Another Backplane: everything.
    Backplane,
}

impl Flavour {
    /// As a card says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llama-cpp",
            Self::Ollama => "ollama",
            Self::Backplane => "backplane",
        }
    }
}

/// What a server calls the most tokens of a chat's answer. It has one of two names, and most servers pass over the other in
/// silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenLimit {
    /// Everybody's.
    MaxTokens,
    /// OpenAI's newer one, which its newer models know only.
    MaxCompletionTokens,
}

impl TokenLimit {
    /// As a member of a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }

    /// What a server of this flavour at this host calls it: the newer name only at OpenAI's own, and Microsoft's of theirs.
    pub fn of(flavour: Flavour, host: &str) -> Self {
        let is_theirs = ["api.openai.com", "openai.azure.com"]
            .iter()
            .any(|own| host.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
        if flavour == Flavour::Openai && is_theirs { Self::MaxCompletionTokens } else { Self::MaxTokens }
    }
}

fn yes() -> bool {
    true
}

/// Below what a model of this host bids: who names no model has not asked for their texts to leave it.
fn score() -> u16 {
    200
}

fn some_score<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    match u16::deserialize(deserializer)? {
        score @ 1..=1000 => Ok(score),
        other => Err(serde::de::Error::custom(format!("`score` is {other}, and a bid is from 1 to 1000"))),
    }
}

fn connect_timeout() -> Duration {
    Duration::from_secs(10)
}

fn idle_timeout() -> Duration {
    Duration::from_secs(120)
}

fn max_inflight() -> u32 {
    256
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}` is not a time such as `30s`: {error}")))
}

impl Settings {
    /// The server that a card means.
    ///
    /// # Errors
    /// When the configuration has none of that name: the nearest one is named.
    pub fn resolve(&self, model: &str, named: &Named) -> Result<Upstream> {
        let name = match named {
            Named::Here(upstream) => return Ok((**upstream).clone()),
            Named::Name(name) => name,
        };
        self.upstreams.get(name).cloned().ok_or_else(|| {
            let known = self.upstreams.keys().map(String::as_str);
            let hint = match nearest(name, known) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => "; `[plugins.settings.\"dev.backplane.remote\".upstreams]` lists those there are"
                    .to_owned(),
            };
            Error::invalid(format!("model `{model}`: no upstream is called `{name}`{hint}"))
                .with_param("upstream")
        })
    }
}

/// The name most like `wanted`, if one is.
pub fn nearest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase());
    known
        .map(|name| (likeness(name), name))
        .filter(|(likeness, _)| 0.8 <= *likeness)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flavour_is_called_what_a_card_calls_it() {
        for name in ["openai", "vllm", "llama-cpp", "ollama", "backplane"] {
            let flavour: Flavour = serde_json::from_value(name.into()).unwrap();
            assert_eq!(flavour.name(), name);
        }
    }

    #[test]
    fn only_openai_has_the_newer_name_of_the_limit() {
        for (flavour, host, name) in [
            (Flavour::Openai, "api.openai.com", "max_completion_tokens"),
            (Flavour::Openai, "eu.api.openai.com", "max_completion_tokens"),
            (Flavour::Openai, "ours.openai.azure.com", "max_completion_tokens"),
            (Flavour::Openai, "notapi.openai.com", "max_tokens"),
            (Flavour::Openai, "api.openai.com.example.org", "max_tokens"),
            (Flavour::Openai, "127.0.0.1", "max_tokens"),
            (Flavour::Vllm, "api.openai.com", "max_tokens"),
        ] {
            assert_eq!(TokenLimit::of(flavour, host).name(), name, "{flavour:?} at {host}");
        }
    }

    #[test]
    fn a_card_may_bid_more_than_a_model_of_this_host_and_does_not_by_itself() {
        let card = |score: &str| toml::from_str::<Parameters>(&format!("upstream = 'x'\n{score}"));
        let graph = toml::from_str::<InferenceParameters>("upstream = 'x'").unwrap();
        let here = backplane_plugin::Bid::default().score;
        assert!(card("").unwrap().score < here && graph.score < here);
        assert_eq!(card("score = 600").unwrap().score, 600);
        for wrong in ["score = 0", "score = 1001"] {
            assert!(card(wrong).unwrap_err().message().contains("from 1 to 1000"), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_setting_is_said_with_its_path() {
        let said = |config: Value| backplane_plugin::settings::<Settings>("x", &config).unwrap_err().message;
        for (gpu, what) in [
            (json!({}), "`upstreams.gpu.url` is missing"),
            (json!({"url": {}}), "`upstreams.gpu.url` must be a string; got an object"),
            (json!("http://gpu/v1"), "`upstreams.gpu` must be an object; got a string"),
            (
                json!({"url": "u", "max_inflight": "many"}),
                "`upstreams.gpu.max_inflight` must be a whole number from 0 to 4294967295; got a string",
            ),
            (json!({"url": "u", "keys": "env:A"}), "`upstreams.gpu.keys` must be an array; got a string"),
            (
                json!({"url": "u", "keys": [{"env": "A"}]}),
                "`upstreams.gpu.keys[0]` must be a string; got an object",
            ),
            (
                json!({"url": "u", "flavour": "vlm"}),
                "`upstreams.gpu.flavour` must be one of `openai`, `vllm`, `llama-cpp`, `ollama`, `backplane`; got `vlm`",
            ),
            (
                json!({"url": "u", "idle_timeout": 30}),
                "`upstreams.gpu.idle_timeout` must be a string; got 30",
            ),
            (
                json!({"url": "u", "time_out": "30s"}),
                "`upstreams.gpu`: unknown field `time_out`, expected one of `url`, ",
            ),
        ] {
            let told = said(json!({"upstreams": {"gpu": gpu}}));
            let whole = format!("[plugins.settings.\"x\"]: {what}");
            assert!(told.starts_with(&whole), "{told}\n{whole}");
        }
        // A key that is written out is not repeated.
        let told = said(json!({"upstreams": {"gpu": {"url": "u", "keys": ["sk-0123456789"]}}}));
        assert!(
            told.contains("`upstreams.gpu.keys[0]`: a secret is named by where it is")
                && !told.contains("sk-0"),
            "{told}"
        );
        let mut card = ModelSpec { name: "m".to_owned(), ..ModelSpec::default() };
        for (upstream, what) in [
            (json!({"flavour": "vllm"}), "`upstream.url` is missing"),
            (
                json!(7),
                "`upstream` must be the name of an upstream of the configuration, or one written out with its `url`; got 7",
            ),
        ] {
            card.parameters = json!({"upstream": upstream}).as_object().cloned().unwrap();
            let told = card.parameters::<Parameters>().unwrap_err().message;
            assert_eq!(told, format!("[parameters] of model `m`: {what}"));
        }
    }

    #[test]
    fn a_card_names_a_server_or_says_it_all() {
        let settings: Settings = toml::from_str(
            "[upstreams.vllm]\nurl = 'http://gpu:8000/v1'\nflavour = 'vllm'\nidle_timeout = '30s'\n\
             keys = ['env:A', 'file:/run/key']\n[upstreams.cloud]\nurl = 'https://example.org/v1'",
        )
        .unwrap();
        let card = |text: &str| toml::from_str::<Parameters>(text).unwrap();
        let vllm = settings.resolve("m", &card("upstream = 'vllm'").upstream).unwrap();
        assert_eq!(
            (vllm.flavour, vllm.idle_timeout, vllm.keys.len()),
            (Flavour::Vllm, Duration::from_secs(30), 2)
        );
        let here = card("model = 'x'\nupstream = { url = 'http://127.0.0.1:1/v1' }");
        assert_eq!(settings.resolve("m", &here.upstream).unwrap().url, "http://127.0.0.1:1/v1");
        let refused = settings.resolve("m", &card("upstream = 'vlm'").upstream).unwrap_err();
        assert_eq!(refused.message, "model `m`: no upstream is called `vlm`; did you mean `vllm`?");
    }
}
