//! How a plugin says what went wrong.

use backplane_abi::code::Code;
use backplane_abi::payload::Extra;
use backplane_abi::words;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;

/// The result of everything a plugin does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: a [`Code`] the caller can act on, a message for people, and figures for machines.
///
/// Messages say what was wrong, with what, and what would fix it; lower case, names in backticks.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What a caller can act on.
    pub code: Code,
    /// For people.
    pub message: String,
    /// For machines: a stable word such as `context_length_exceeded`.
    pub reason: Option<String>,
    /// Figures: `{"n_prompt": 5000}`. Boxed, since every result of a plugin is as large as its error.
    pub details: Box<Map<String, Value>>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
    /// Whether the instance that failed can serve no more; the host replaces it.
    pub poisons: bool,
    /// Whether nothing in this process can serve any more, which poisons, too; a worker is ended for it.
    pub fatal: bool,
    pub(crate) panicked: bool,
}

impl Error {
    /// A failure with this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: None,
            details: Box::default(),
            retry_after: None,
            poisons: false,
            fatal: false,
            panicked: false,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// A bug in the plugin.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Something is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// A model file is corrupt or not what it says; the reason is `model_invalid`.
    pub fn model_invalid(message: impl Into<String>) -> Self {
        Self::new(Code::DataLoss, message).with_reason("model_invalid")
    }

    /// The caller left.
    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the caller has left")
    }

    /// Adds a word for machines.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Names the parameter at fault.
    pub fn with_param(self, param: impl Into<String>) -> Self {
        self.with_detail("param", param.into())
    }

    /// Adds a figure.
    pub fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says when it is worth trying again.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Says that the instance can serve no more.
    pub fn poisons(mut self) -> Self {
        self.poisons = true;
        self
    }

    /// Says that nothing in this process can serve any more: a sticky error of a GPU's driver, a library that lost its
    /// mind. In a worker the process is ended and started again; in-process only the instance can be replaced.
    pub fn fatal(mut self) -> Self {
        (self.fatal, self.poisons) = (true, true);
        self
    }

    /// Reads parameters. What does not fit is an error that names the parameter, where there is one to name; its reason is that
    /// of the host's own routes, which read some parameters themselves.
    pub(crate) fn of_params<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
        // The quick way first: only parameters that are refused are read again to find the place.
        let error = match serde_json::from_slice(json) {
            Ok(params) => return Ok(params),
            Err(error) if error.is_data() => error,
            Err(error) => return Err(error.into()),
        };
        let mut reader = serde_json::Deserializer::from_slice(json);
        let Err(located) = serde_path_to_error::deserialize::<_, T>(&mut reader) else {
            return Err(error.into());
        };
        let Misfit { path, reason, message } = Misfit::of(&located, "the parameters");
        let mut error = Error::invalid(message);
        error.reason = reason.map(str::to_owned);
        Err(if path == "." { error } else { error.with_param(path) })
    }

    pub(crate) fn panic(message: String) -> Self {
        Self { panicked: true, poisons: true, ..Self::internal(format!("the plugin panicked: {message}")) }
    }
}

/// Where a value does not fit its type, and how.
pub(crate) struct Misfit {
    /// `upstreams.gpu.url`, or `.` for all of it.
    path: String,
    reason: Option<&'static str>,
    pub message: String,
}

impl Misfit {
    /// In words that know no types of Rust. `whole` is what all of it is called.
    fn of(located: &serde_path_to_error::Error<serde_json::Error>, whole: &str) -> Self {
        let path = located.path().to_string();
        let message = words::of_json(&located.inner().to_string());
        let quoted = |before: &str| message.strip_prefix(before)?.split('`').next();
        let within = |member: &str| if path == "." { member.to_owned() } else { format!("{path}.{member}") };
        if let Some(path) = quoted("missing field `").map(within) {
            return Self { message: format!("`{path}` is missing"), path, reason: Some("missing_param") };
        }
        if let Some(path) = quoted("duplicate field `").map(within) {
            return Self {
                message: format!("`{path}` is there twice"),
                path,
                reason: Some("duplicate_param"),
            };
        }
        if let Some(member) = quoted("unknown field `") {
            let message = match path.strip_suffix(member).and_then(|within| within.strip_suffix('.')) {
                Some(within) => format!("`{within}`: {message}"),
                None => message,
            };
            return Self { path, reason: None, message };
        }
        let separator = if message.starts_with("must ") { "" } else { ":" };
        let what = if path == "." { whole.to_owned() } else { format!("`{path}`") };
        Self { path, reason: Some("invalid_type"), message: format!("{what}{separator} {message}") }
    }

    /// Reads a value; `whole` as for [`Misfit::of`].
    pub(crate) fn or<T: DeserializeOwned>(value: &Value, whole: &str) -> Result<T, Self> {
        serde_path_to_error::deserialize(value).map_err(|located| Self::of(&located, whole))
    }
}

/// Reads what the configuration says under `[plugins.settings."ID"]`, which [`Plugin::init`](crate::Plugin::init) is given. A
/// setting that does not fit is named by where it stands.
///
/// ```
/// use backplane_plugin::prelude::*;
/// #[derive(Debug, serde::Deserialize)]
/// # #[serde(crate = "backplane_plugin::serde")]
/// struct Settings {
///     threads: u32,
/// }
/// let error = backplane_plugin::settings::<Settings>("com.example.count", &json!({ "threads": "two" })).unwrap_err();
/// let says = "[plugins.settings.\"com.example.count\"]: `threads` must be a whole number";
/// assert!(error.message.starts_with(says), "{error}");
/// ```
///
/// # Errors
/// When one does not fit.
pub fn settings<T: DeserializeOwned>(plugin: &str, config: &Value) -> Result<T> {
    Misfit::or(config, "what it says")
        .map_err(|misfit| Error::invalid(format!("[plugins.settings.\"{plugin}\"]: {}", misfit.message)))
}

/// Refuses members of the parameters that a plugin gives no meaning, by the name of the first: what is misspelt would have
/// no effect, and nobody would know. `P` is the type that they were read as, `extra` its member of that name.
///
/// ```
/// use backplane_plugin::payload::embed::Params;
/// let params: Params = backplane_plugin::serde_json::from_str(r#"{"input": ["a"], "trunkate": true}"#).unwrap();
/// let error = backplane_plugin::refuse_unknown::<Params>(&params.extra).unwrap_err();
/// assert!(error.message.starts_with("there is no parameter `trunkate`; there are `input`, "));
/// ```
///
/// # Errors
/// That the first of them is not known, and what is.
pub fn refuse_unknown<P: JsonSchema>(extra: &Extra) -> Result<()> {
    let Some(name) = extra.keys().next() else { return Ok(()) };
    let schema = schemars::schema_for!(P);
    let known = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
    let there = match &*known {
        [] => "there are none".to_owned(),
        [one] => format!("there is {one}"),
        [all @ .., last] => format!("there are {} and {last}", all.join(", ")),
    };
    Err(Error::invalid(format!("there is no parameter `{name}`; {there}")).with_param(name))
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::invalid(format!("the parameters are not what this capability takes: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether it can be read matters")]
    struct Params {
        text: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "as above")]
    struct Inner {
        sizes: Vec<u8>,
    }

    #[test]
    fn parameters_that_do_not_fit_are_named() {
        let (missing, wrong, twice) = (Some("missing_param"), Some("invalid_type"), Some("duplicate_param"));
        for (json, param, reason, says) in [
            ("{}", "text", missing, "`text` is missing"),
            (r#"{"text":1}"#, "text", wrong, "`text` must be a string; got 1"),
            (
                r#"{"text":"","inner":{"sizes":[1,300]}}"#,
                "inner.sizes[1]",
                wrong,
                "`inner.sizes[1]` must be a whole number from 0 to 255; got 300",
            ),
            (r#"{"text":"","inner":{}}"#, "inner.sizes", missing, "`inner.sizes` is missing"),
            (r#"{"text":"","text":""}"#, "text", twice, "`text` is there twice"),
            (r#"{"text":"","txet":1}"#, "txet", None, "unknown field `txet`, expected `text` or `inner`"),
            (
                r#"{"text":"","inner":{"size":1}}"#,
                "inner.size",
                None,
                "unknown field `size`, expected `sizes`",
            ),
        ] {
            let error = Error::of_params::<Params>(json.as_bytes()).unwrap_err();
            assert_eq!((&error.details["param"], error.reason.as_deref()), (&param.into(), reason), "{json}");
            assert!(error.message.contains(says), "{json}: {error}");
        }
        // Settings and cards as well, nested ones with where they are.
        for (config, says) in [
            (
                serde_json::json!({"text": "", "inner": {"size": 1}}),
                "`inner`: unknown field `size`, expected `sizes`",
            ),
            (serde_json::json!({"text": "", "inner": {}}), "`inner.sizes` is missing"),
            (serde_json::json!({"text": {}}), "`text` must be a string; got an object"),
            (serde_json::json!(7), "what it says must be an object; got 7"),
        ] {
            let error = settings::<Params>("a.b", &config).unwrap_err();
            assert_eq!(error.message, format!("[plugins.settings.\"a.b\"]: {says}"));
        }
        let error = Error::of_params::<Params>(b"7").unwrap_err();
        assert_eq!(error.message, "the parameters must be an object; got 7");
        assert_eq!(error.reason.as_deref(), wrong);
        let error = Error::of_params::<Params>(b"{\"text\":").unwrap_err();
        assert!(error.details.is_empty() && error.message.contains("EOF"), "{error}");
        assert_eq!(Error::of_params::<Params>(br#"{"text":"x"}"#).unwrap().text, "x");
    }
}
