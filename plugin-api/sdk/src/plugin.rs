//! The traits to implement: [`Plugin`], [`Model`], [`Instance`].

use crate::error::Misfit;
use crate::request::Request;
use crate::{Error, Host, Result};
use backplane_abi::payload::tensor::Description;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The library: made once per host, opens models.
pub trait Plugin: Send + Sync + Sized + 'static {
    /// Its id, reverse DNS: the same as `id` in `plugin.toml`, or the host refuses the library.
    const ID: &'static str;

    /// Starts it. `config` is the plugin's section of the host's configuration, an object.
    ///
    /// # Errors
    /// The plugin then stays unused, and the host says why.
    fn init(host: Host, config: &Value) -> Result<Self>;

    /// What it claims about a job: pure, no device work, at most a millisecond, from any thread.
    /// By default it takes any job for a model it can open.
    fn bid(&self, _query: &Query<'_>) -> Bid {
        Bid::default()
    }

    /// Opens a model. May block. Asked for a model that was not bid for, too, where what was missing is a device or a runtime: what
    /// is wrong with the model itself comes before that.
    ///
    /// # Errors
    /// [`Error::model_invalid`] for a bad file, [`Error::invalid`] for a bad parameter.
    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>>;
}

/// An opened model.
pub trait Model: Send + Sync {
    /// How its instances want to be called. Asked once.
    fn execution(&self) -> Execution {
        Execution::Serial { max_batch: 1 }
    }

    /// What it takes and gives. Asked once.
    fn describe(&self) -> Description {
        Description::default()
    }

    /// A running copy. May block.
    ///
    /// # Errors
    /// The host tells whoever asked for the model.
    fn instance(&self, seat: &Seat) -> Result<Box<dyn Instance>>;

    /// Prompt tokens of a request with these parameters, or `None` when the model cannot count. From any thread, no
    /// device work.
    ///
    /// # Errors
    /// As the request itself would fail.
    fn count_tokens(&self, _capability: &str, _params_json: &str) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Whether it takes tensors of its requests where they are, on this device: [`Request::inputs`]. For any other they are
    /// copied to CPU memory first. From any thread, no device work; the same for every request.
    fn takes(&self, _device: crate::Device) -> bool {
        false
    }

    /// Figures of the engine: names are lower_snake_case and end in their unit, or in `_total` for counters.
    fn stats(&self, _each: &mut dyn FnMut(&str, f64)) {}
}

/// One running copy of a model.
pub trait Instance: Send + Sync {
    /// Takes requests, each to be finished exactly once; one that is dropped is finished with an error.
    ///
    /// SERIAL: always on the same thread, may block until all are finished. CONCURRENT: from several threads, may
    /// block. CONTINUOUS: from any thread, returns at once, and the requests are finished by threads of its own.
    fn submit(&self, requests: Vec<Request>);

    /// The caller of this request has left. Only of use to instances that sleep; the others see
    /// [`Request::is_cancelled`]. The request must still be finished.
    fn cancel(&self, _request: u64) {}

    /// How it is, within 50 ms, from a thread that serves nothing.
    fn health(&self) -> Health {
        Health::Ready
    }

    /// Finishes what was taken; returns whether it was done before `deadline`.
    fn quiesce(&self, _deadline: Option<Instant>) -> bool {
        true
    }
}

/// Serves requests one by one with a function: the simplest instance.
///
/// A panic in `serve` fails that request, and the host replaces the instance.
pub fn each<F>(serve: F) -> Box<dyn Instance>
where
    F: Fn(&Request) -> Result<Done> + Send + Sync + 'static,
{
    struct Each<F>(F);
    impl<F: Fn(&Request) -> Result<Done> + Send + Sync> Instance for Each<F> {
        fn submit(&self, requests: Vec<Request>) {
            for request in requests {
                let result = crate::sys::guard(|| (self.0)(&request));
                request.finish(result);
            }
        }
    }
    Box::new(Each(serve))
}

/// How instances of a model want to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// One call at a time, on one thread of its own, for its whole life.
    Serial {
        /// Rows the host may put into one call.
        max_batch: u32,
    },
    /// Several calls at once, from several threads.
    Concurrent {
        /// How many calls.
        max_inflight: u32,
        /// Rows the host may put into one call.
        max_batch: u32,
    },
    /// `submit` returns at once and the plugin schedules.
    Continuous {
        /// How many requests may be open.
        max_inflight: u32,
    },
}

/// How an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Serving.
    Ready,
    /// Serving badly, and why.
    Degraded(String),
    /// Not serving now, and why.
    NotReady(String),
    /// Broken, and why: the host replaces it.
    Failed(String),
}

/// How a request ended well.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// What it consumed.
    pub usage: Option<crate::payload::Usage>,
    /// Probability that the answer is right, uncalibrated, 0..=1.
    pub confidence: Option<f64>,
}

impl Done {
    /// Nothing to report.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports what it consumed.
    pub fn usage(mut self, usage: crate::payload::Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    /// Reports a confidence, 0..=1.
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = Some(confidence);
        self
    }
}

/// A model to open: its card, with files resolved to paths.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct ModelSpec {
    /// Its name.
    pub name: String,
    /// `"gguf"`, `"onnx"`; empty for a model that is built into the plugin.
    pub format: String,
    /// What it is to serve.
    pub capabilities: Vec<String>,
    /// Its files.
    pub files: Vec<ModelFile>,
    /// `[parameters]` of its card: the plugin's own.
    pub parameters: Map<String, Value>,
    /// The rest of its card: labels, languages, context.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A file of a model.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct ModelFile {
    /// What it is to the model: `"model"`, `"tokenizer"`.
    pub role: String,
    /// Its own name, where the card gives one: a stored file lies under the hash of its content.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
}

impl ModelSpec {
    /// The file with this role.
    ///
    /// # Errors
    /// When the card names none.
    pub fn file(&self, role: &str) -> Result<&Path> {
        self.find_file(role).ok_or_else(|| {
            Error::invalid(format!("the card of model `{}` names no file with role `{role}`", self.name))
        })
    }

    /// The file with this role, if the card names one.
    pub fn find_file(&self, role: &str) -> Option<&Path> {
        self.files.iter().find(|file| file.role == role).map(|file| file.path.as_path())
    }

    /// The names of what it tells apart, in the order of its output: `labels` of the card, or the file with that role,
    /// one a line or a list in JSON.
    ///
    /// # Errors
    /// When there are none.
    pub fn labels(&self) -> Result<Vec<String>> {
        let invalid = |why: String| {
            Error::invalid(format!("the labels of model `{}`: {why}", self.name)).with_param("labels")
        };
        let labels: Vec<String> = match (self.extra.get("labels"), self.find_file("labels")) {
            (Some(listed @ Value::Array(some)), _) if !some.is_empty() => {
                Vec::deserialize(listed).map_err(|error| invalid(error.to_string()))?
            }
            (_, Some(path)) => {
                let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
                match text.trim_start().starts_with('[') {
                    true => serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?,
                    false => text.lines().map(str::to_owned).collect(),
                }
            }
            (_, None) => Vec::new(),
        };
        match labels.is_empty() {
            true => Err(invalid(
                "there are none; list them as `labels` in its card, or in a file with that role".to_owned(),
            )),
            false => Ok(labels),
        }
    }

    /// All parameters as a type; with `#[serde(deny_unknown_fields)]` a misspelt one is an error.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn parameters<T: DeserializeOwned>(&self) -> Result<T> {
        self.read("[parameters]", &Value::Object(self.parameters.clone()))
    }

    /// One of the parameters as a type: a table of its own, for cards of several parts. `None` where it is not there.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let section = self.parameters.get(name);
        section.map(|section| self.read(&format!("[parameters.{name}]"), section)).transpose()
    }

    fn read<T: DeserializeOwned>(&self, place: &str, value: &Value) -> Result<T> {
        Misfit::or(value, "what it says").map_err(|misfit| {
            let message = format!("{place} of model `{}`: {}", self.name, misfit.message);
            Error::invalid(message).with_param("parameters")
        })
    }
}

/// An instance's place in the host.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    pub(crate) host: Host,
    pub(crate) ticket: u64,
    /// CPU threads it may hope for.
    pub threads: u32,
    /// Which copy of the model this is, from 0.
    pub index: u32,
}

impl Seat {
    /// Asks for 1..=`want` CPU threads for a burst of work, and waits for at least one. They are given back when
    /// the permit is dropped. A host without a pool grants everything.
    ///
    /// # Errors
    /// `DeadlineExceeded` when none was free by `deadline`.
    pub fn threads(&self, want: u32, deadline: Option<Instant>) -> Result<Permit> {
        crate::sys::acquire(self.host, self.ticket, want, deadline)
    }
}

/// CPU threads that may be used until this is dropped.
#[derive(Debug)]
pub struct Permit {
    pub(crate) host: Host,
    pub(crate) ticket: u64,
    pub(crate) granted: u32,
    pub(crate) pooled: bool,
}

impl Permit {
    /// How many.
    pub fn threads(&self) -> u32 {
        self.granted
    }

    /// Gives back what is beyond this many, if there is more; one is kept at least.
    pub fn keep(&mut self, threads: u32) {
        let kept = threads.clamp(1, self.granted);
        crate::sys::release(self, self.granted - kept);
        self.granted = kept;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        crate::sys::release(self, self.granted);
    }
}

/// What the host asks before it chooses.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Empty when the host plans a load.
    pub capability: &'a str,
    /// `"gguf"`, `"onnx"`, or empty.
    pub format: &'a str,
    /// The model, as [`ModelSpec`] in JSON.
    pub model_json: &'a str,
    /// Size of the request's JSON.
    pub input_bytes: u64,
}

impl Query<'_> {
    /// The model it is about.
    ///
    /// # Errors
    /// When the host sent none.
    pub fn model(&self) -> Result<ModelSpec> {
        Ok(serde_json::from_str(self.model_json)?)
    }
}

/// A claim about a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Bid {
    /// 0..=1000, 0 = cannot.
    pub score: u16,
    /// 0..=1000 of the answers.
    pub quality: u16,
    /// Memory the model takes once open, in bytes: weights, caches and scratch.
    pub host_bytes: u64,
    /// The same on its device.
    pub device_bytes: u64,
    /// How long the claim stands, in milliseconds.
    pub valid_ms: u32,
    /// Why not, when `score` is 0.
    pub reason: BidReason,
    /// For people.
    pub text: String,
}

/// Why a bid is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
#[repr(i32)]
pub enum BidReason {
    None = 0,
    Format = 1,
    Device = 2,
    Memory = 3,
    Licence = 4,
    Runtime = 5,
}

impl Default for Bid {
    fn default() -> Self {
        Self {
            score: 500,
            quality: 500,
            host_bytes: 0,
            device_bytes: 0,
            valid_ms: 60_000,
            reason: BidReason::None,
            text: String::new(),
        }
    }
}

impl Bid {
    /// It cannot, and why.
    pub fn no(reason: BidReason, text: impl Into<String>) -> Self {
        Self { score: 0, quality: 0, reason, text: text.into(), ..Self::default() }
    }
}
