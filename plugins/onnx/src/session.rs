//! One opened graph: what it takes and gives, and running it.
//!
//! `ort` lets one call at a time into a session, so every instance has a session of its own. A run waits for CPU
//! threads of the host's pool, and is broken off when everybody who waits for it has left.
//!
//! A session computes on as many threads as it was opened for, whatever a run is granted. So a graph that is set to several
//! is opened a second time, for one, and that session does the runs that are granted fewer: on more threads than were granted
//! they would take from another model what it was promised.

use crate::card::Parameters;
use crate::convert;
use crate::counters::Counters;
use crate::runtime;
use backplane_plugin::Permit;
use backplane_plugin::prelude::*;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::{NoSelectedOutputs, RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, ValueType};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A tensor of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    /// Its sides; -1 where any length goes.
    pub shape: Vec<i64>,
    /// Names of the sides; empty where there is none.
    pub symbols: Vec<String>,
    /// Its place among the graph's own inputs or outputs.
    pub index: usize,
}

impl Port {
    /// As the Open Inference Protocol describes it.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), datatype: self.dtype, shape: self.shape.clone() }
    }
}

/// What the graph takes and gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signature {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Outputs that are no tensors of the protocol, with what they are.
    pub others: Vec<(String, String)>,
}

/// Where the graph comes from, and how it is to run.
#[derive(Clone, Debug)]
pub struct Source {
    /// The model's name.
    name: String,
    graph: PathBuf,
    /// Files with weights that the graph refers to, by the name it uses.
    external: Vec<(String, PathBuf)>,
    threads: u32,
}

/// Role of a file with weights beside the graph; more have roles that begin so.
const EXTERNAL: &str = "external";

/// A folder that is not there. The graph may name files for its weights; it gets those that the card lists, from
/// memory, and nothing else on this machine.
const NO_FOLDER: &str = "/nonexistent/backplane";

impl Source {
    /// What the card says.
    ///
    /// # Errors
    /// When it names no graph.
    pub fn of(model: &ModelSpec, parameters: &Parameters) -> Result<Self> {
        let external = model.files.iter().filter(|file| file.role.starts_with(EXTERNAL)).map(|file| {
            let name = match file.name.as_str() {
                "" => file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                name => name.to_owned(),
            };
            (name, file.path.clone())
        });
        Ok(Self {
            name: model.name.clone(),
            graph: model.file("model")?.to_owned(),
            external: external.collect(),
            threads: threads(parameters),
        })
    }

    /// For one thread, where a run takes several.
    pub fn narrow(&self) -> Option<Self> {
        (1 < self.threads).then(|| Self { threads: 1, ..self.clone() })
    }

    /// Opens the graph. Blocks: reading, checking and optimising it takes from milliseconds to minutes.
    ///
    /// # Errors
    /// `model_invalid` with what ONNX Runtime said, when it is not a graph that can run.
    pub fn open(&self, environment: &Environment, host: Host) -> Result<(Session, Signature)> {
        let read = |role: &str, path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                host.log(Level::Error, format!("{}: {error}", path.display()));
                Error::model_invalid(format!(
                    "the file with role `{role}` of model `{}` cannot be read: {error}",
                    self.name
                ))
            })
        };
        let graph = read("model", &self.graph)?;
        let external = self
            .external
            .iter()
            .map(|(name, path)| Ok((name.clone(), read(EXTERNAL, path)?.into())))
            .collect::<Result<_>>()?;
        let session = self.session(environment, host, &graph, external).map_err(|error| {
            host.log(Level::Error, format!("model `{}`: {error}", self.name));
            Error::model_invalid(format!(
                "model `{}` is not an ONNX graph that can run: {}",
                self.name,
                said(&error)
            ))
        })?;
        let signature = signature(&session, &self.name)?;
        for (name, what) in &signature.others {
            host.log(Level::Warn, format!("model `{}`: output `{name}` is {what}, and left out", self.name));
        }
        Ok((session, signature))
    }

    fn session(
        &self,
        environment: &Environment,
        host: Host,
        graph: &[u8],
        external: Vec<(String, Arc<[u8]>)>,
    ) -> ort::Result<Session> {
        let mut builder = Session::builder(environment)?
            .with_log_id(&self.name)?
            .with_logger(Arc::new(move |level, _, _, at, message| runtime::log(host, level, at, message)))?
            .with_log_level(LogLevel::Warning)?
            .with_intra_threads(self.threads as usize)?
            .with_inter_threads(1)?
            // Threads that spin while they wait take a core from everybody else, for nothing.
            .with_intra_op_spinning(false)?
            // Weights beside the arena, whose blocks are rounded up to powers of two.
            .with_device_allocated_initializers()?
            .with_config_entry("session.model_external_initializers_file_folder_path", NO_FOLDER)?;
        for (name, bytes) in external {
            builder = builder.with_external_initializer_file_in_memory(name, bytes)?;
        }
        builder.commit_from_memory(graph)
    }
}

/// Threads of a run: never more than can run at once, which would only take turns.
fn threads(parameters: &Parameters) -> u32 {
    let cores = std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    parameters.threads.min(cores)
}

fn signature(session: &Session, model: &str) -> Result<Signature> {
    let mut signature = Signature::default();
    for (index, outlet) in session.inputs().iter().enumerate() {
        let port = port(index, outlet.name(), outlet.dtype()).map_err(|what| {
            Error::new(
                Code::Unimplemented,
                format!("input `{}` of model `{model}` is {what}, which no request can carry", outlet.name()),
            )
        })?;
        signature.inputs.push(port);
    }
    for (index, outlet) in session.outputs().iter().enumerate() {
        match port(index, outlet.name(), outlet.dtype()) {
            Ok(port) => signature.outputs.push(port),
            Err(what) => signature.others.push((outlet.name().to_owned(), what)),
        }
    }
    Ok(signature)
}

/// A tensor of the protocol, or what it is instead.
fn port(index: usize, name: &str, value: &ValueType) -> Result<Port, String> {
    let ValueType::Tensor { ty, shape, dimension_symbols } = value else {
        return Err(format!("a {value}"));
    };
    let dtype = convert::dtype(*ty).ok_or_else(|| format!("a tensor of {ty}"))?;
    let symbols = dimension_symbols.iter().map(|symbol| symbol.to_string()).collect();
    Ok(Port { name: name.to_owned(), dtype, shape: shape.to_vec(), symbols, index })
}

/// What ONNX Runtime said, without the places in its sources and no longer than a line.
pub fn said(error: &ort::Error) -> String {
    let line = error.message().lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason was given");
    // "/onnxruntime_src/.../graph.cc:42 Function(int, long) the message"
    let line = match line.find("/onnxruntime_src/") {
        Some(at) => format!("{}{}", &line[..at], line[at..].rsplit(") ").next().unwrap_or_default()),
        None => line.to_owned(),
    };
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// A session on an instance's seat.
pub struct Engine {
    /// On as many threads as its source says.
    session: Mutex<Session>,
    /// On one, where those are several.
    narrow: Option<Mutex<Session>>,
    threads: u32,
    signature: Arc<Signature>,
    seat: Seat,
    host: Host,
    counters: Arc<Counters>,
    running: Mutex<Option<Running>>,
}

/// A run on its way.
struct Running {
    options: Arc<RunOptions<NoSelectedOutputs>>,
    /// Requests that wait for it.
    waiting: Vec<u64>,
}

impl Engine {
    pub fn new(
        session: Session,
        narrow: Option<Session>,
        signature: Arc<Signature>,
        source: &Source,
        counters: Arc<Counters>,
        seat: Seat,
        host: Host,
    ) -> Self {
        let (session, narrow, running) = (Mutex::new(session), narrow.map(Mutex::new), Mutex::new(None));
        Self { session, narrow, threads: source.threads, signature, seat, host, counters, running }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Runs the graph for these requests; its outputs come in the graph's own order.
    ///
    /// # Errors
    /// What ONNX Runtime refused, or `Cancelled` when nobody waits any more.
    pub fn run(
        &self,
        requests: &[&Request],
        inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)>,
    ) -> Result<Vec<DynValue>> {
        let mut permit = self.permit(requests)?;
        let mut session = self.session(&mut permit);
        let mut options = RunOptions::new().map_err(|error| refused(&error))?;
        // Its errors come back as such, and belong to the caller, not into the host's log.
        options.set_log_level(LogLevel::Fatal).map_err(|error| refused(&error))?;
        let options = Arc::new(options);
        let waiting = requests.iter().map(|request| request.id()).collect();
        *lock(&self.running) = Some(Running { options: options.clone(), waiting });
        // Whoever left before that was not told to `cancel`.
        for request in requests.iter().filter(|request| request.is_cancelled()) {
            self.leave(request.id());
        }
        let result = session
            .run_with_options(inputs, &*options)
            .map(|outputs| outputs.into_iter().map(|(_, value)| value).collect());
        drop(session);
        let left = lock(&self.running).take().is_some_and(|running| running.waiting.is_empty());
        self.counters.runs.fetch_add(1, Relaxed);
        if requests.len() > 1 {
            self.counters.shared.fetch_add(requests.len() as u64, Relaxed);
        }
        match result {
            Err(_) if left => {
                self.counters.broken_off.fetch_add(1, Relaxed);
                Err(Error::cancelled())
            }
            result => result.map_err(|error| refused(&error)),
        }
    }

    /// The session for what was granted.
    fn session(&self, permit: &mut Permit) -> MutexGuard<'_, Session> {
        match &self.narrow {
            Some(narrow) if permit.threads() < self.threads => {
                permit.keep(1);
                self.counters.narrow.fetch_add(1, Relaxed);
                lock(narrow)
            }
            _ => lock(&self.session),
        }
    }

    /// A request's caller has left: breaks the run off when it was the last.
    pub fn leave(&self, request: u64) {
        if let Some(running) = &mut *lock(&self.running) {
            running.waiting.retain(|other| *other != request);
            if running.waiting.is_empty()
                && let Err(error) = running.options.terminate()
            {
                self.host.log(Level::Warn, format!("a run cannot be broken off: {error}"));
            }
        }
    }

    /// Waits for CPU threads, for as long as anybody waits for the run.
    fn permit(&self, requests: &[&Request]) -> Result<Permit> {
        /// How long a request that was cancelled may go unnoticed here.
        const LOOK: Duration = Duration::from_millis(100);
        loop {
            match self.seat.threads(self.threads, Some(Instant::now() + LOOK)) {
                Err(error) if error.code == Code::DeadlineExceeded => {
                    let ends = requests.iter().map(|request| gone(request));
                    match ends.reduce(|one, other| other.and(one)).flatten() {
                        Some(error) => return Err(error),
                        None => continue,
                    }
                }
                granted => return granted,
            }
        }
    }
}

/// Why a request is not worth any more work, if it is not.
pub fn gone(request: &Request) -> Option<Error> {
    if request.is_cancelled() {
        return Some(Error::cancelled());
    }
    let late = request.deadline().is_some_and(|deadline| deadline <= Instant::now());
    late.then(|| Error::new(Code::DeadlineExceeded, "the deadline passed before the answer was computed"))
}

/// What ONNX Runtime made of tensors that fit the signature.
fn refused(error: &ort::Error) -> Error {
    let said = said(error);
    let code = match error.code() {
        ort::ErrorCode::NotImplemented => Code::Unimplemented,
        _ if said.contains("allocate memory") || said.contains("bad_alloc") => Code::ResourceExhausted,
        // The graph itself was accepted: what it cannot compute lies in the values and sides of these tensors.
        _ => Code::InvalidArgument,
    };
    Error::new(code, format!("the graph cannot be run on these tensors: {said}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
