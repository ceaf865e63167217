//! A plugin under test: entered, initialised, with models and instances, called on the threads that the header asks
//! for. What is dropped is ended in the right order: instance, model, plugin.

use crate::answer::{Answer, Chunk, Failure};
use crate::conformance::process::Process;
use crate::conformance::{self, Case};
use crate::fault::Fault;
use crate::host::{
    self, Answering, CallInput, Exchange, Host, License, RawInstance, RawModel, RawPlugin, Shape,
};
use crate::input::{RequestInput, TensorInput};
use crate::report::{Check, Report};
use backplane_abi::table::{BP_CONCURRENT, BP_SERIAL, Enter, EntryV1};
use parking_lot::Mutex;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A plugin to test.
///
/// A plugin is trusted code: whoever tests it runs it in their own process.
#[derive(Clone)]
pub struct PluginTest {
    pub(crate) entry: Arc<dyn Enter>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) config: String,
    pub(crate) patience: Duration,
    pub(crate) rounds: usize,
    pub(crate) answering: Option<Answering>,
    pub(crate) license: Option<License>,
    pub(crate) seed: u64,
    /// This process runs nothing else.
    pub(crate) alone: bool,
    /// The process before the library was mapped.
    pub(crate) before: Option<Process>,
}

impl PluginTest {
    /// A plugin in a library.
    ///
    /// # Errors
    /// When it cannot be loaded, or exports no `bp_entry_v1`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, String> {
        let path = path.as_ref();
        let before = Process::now();
        // A name without a slash would be looked for among the libraries of the system.
        let whole = path.canonicalize().map_err(|error| format!("`{}`: {error}", path.display()))?;
        let entry = host::entry_of(&whole).map_err(|error| format!("`{}`: {error}", path.display()))?;
        Ok(Self { path: Some(path.to_owned()), before: Some(before), ..Self::of(entry) })
    }

    /// A plugin of this workspace: builds its library as a user would, in the profile of the test that asks, and loads
    /// it. Cargo does not build libraries before tests by itself.
    ///
    /// # Errors
    /// When it cannot be built or loaded.
    pub fn build(package: &str) -> Result<Self, String> {
        Self::load(crate::cargo::library(package)?)
    }

    /// A plugin that is linked into this test: `my_plugin::backplane_export::bp_entry_v1`.
    pub fn of(entry: EntryV1) -> Self {
        Self::entered_by(Arc::new(entry))
    }

    /// A plugin that is entered in another way: through a process of its own.
    pub fn entered_by(entry: Arc<dyn Enter>) -> Self {
        Self {
            entry,
            path: None,
            config: "{}".to_owned(),
            patience: Duration::from_secs(30),
            rounds: 200,
            answering: None,
            license: None,
            seed: 1,
            alone: false,
            before: None,
        }
    }

    /// Its section of the configuration, a JSON object.
    pub fn config(mut self, json: impl Into<String>) -> Self {
        self.config = json.into();
        self
    }

    /// How long a request may take before the test gives up on it; 30 seconds unless said otherwise.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How often the suite opens and closes a model to see whether something is left behind; 200 unless said
    /// otherwise.
    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// What the requests that are made at random begin with; the same seed makes the same requests. 1 unless said
    /// otherwise.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Says that this process tests this plugin and does nothing else, so that what the plugin does to it can be told.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Answers the plugin's calls to other capabilities (`bp.call/1`): with pieces, which may be JSON alone, or with a
    /// failure.
    pub fn answering<C: Into<Chunk>>(
        mut self,
        answer: impl Fn(&CallInput) -> Result<Vec<C>, Failure> + Send + Sync + 'static,
    ) -> Self {
        self.answering = Some(Arc::new(move |call| {
            answer(call).map(|chunks| chunks.into_iter().map(Into::into).collect())
        }));
        self
    }

    /// Has a licence, or a host that says there is none (`bp.license/1`).
    pub fn licensed(mut self, license: License) -> Self {
        self.license = Some(license);
        self
    }

    /// Starts the plugin on a host of its own and opens a model: `{"name":..,"capabilities":[..],..}`.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn open(&self, model_json: &str) -> Result<Model, Failure> {
        self.start(Host::new(Shape::default(), self.answering.clone(), self.license.clone()))?
            .open(model_json)
    }

    /// As [`PluginTest::open`], several models on one host: what one leaves on a device another can take.
    ///
    /// # Errors
    /// As the plugin says of the first that it does not open.
    pub fn open_all(&self, models_json: &[&str]) -> Result<Vec<Model>, Failure> {
        let host = Host::new(Shape::default(), self.answering.clone(), self.license.clone());
        let plugin = self.start(host)?;
        models_json.iter().map(|json| plugin.open(json)).collect()
    }

    /// Runs the suite: once what concerns the plugin, and for each case what concerns requests. The cases are requests
    /// that work.
    pub fn check_conformance(&self, cases: &[Case]) -> Report {
        conformance::run(self, cases)
    }

    /// Runs one check: with a case, if it runs with one. Nothing where there is no such check, or no case for it.
    pub fn check_one(&self, id: &str, case: Option<&Case>) -> Option<Check> {
        conformance::run_one(self, id, case)
    }

    pub(crate) fn start(&self, host: &'static Host) -> Result<Arc<Plugin>, Failure> {
        let raw = host::enter(&*self.entry, host)?;
        raw.init(self.config.as_bytes())?;
        Ok(Arc::new(Plugin { raw, patience: self.patience }))
    }
}

/// A plugin that was initialised.
pub(crate) struct Plugin {
    pub raw: RawPlugin,
    patience: Duration,
}

impl Plugin {
    pub fn open(self: &Arc<Self>, model_json: &str) -> Result<Model, Failure> {
        let raw = self.raw.open(model_json.as_bytes())?;
        Ok(Model(Arc::new(ModelInner { raw, plugin: self.clone() })))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.raw.shutdown();
    }
}

/// An opened model.
#[derive(Clone)]
pub struct Model(Arc<ModelInner>);

struct ModelInner {
    raw: RawModel,
    plugin: Arc<Plugin>,
}

impl Drop for ModelInner {
    fn drop(&mut self) {
        self.raw.close();
    }
}

impl Model {
    /// A running copy.
    ///
    /// # Errors
    /// As the plugin says.
    pub fn instance(&self) -> Result<Instance, Failure> {
        self.instance_with(0, 0)
    }

    pub(crate) fn instance_with(&self, index: u32, tail: usize) -> Result<Instance, Failure> {
        Ok(Instance::start(self.0.raw.instance(index, tail)?, self.clone()))
    }

    /// What it says of itself; null when that is not a JSON object.
    pub fn describe(&self) -> Value {
        self.0.raw.describe().unwrap_or_default()
    }

    /// Tokens of a request, if the model counts them (`bp.tokens/1`).
    pub fn count_tokens(&self, capability: &str, params_json: &str) -> Option<Result<u64, Failure>> {
        self.0.raw.count_tokens(capability, params_json.as_bytes())
    }

    /// Figures of its engine, if it reports them (`bp.stats/1`).
    pub fn stats(&self) -> Option<Vec<(String, f64)>> {
        self.0.raw.stats()
    }

    /// From now on one grant has this many CPU threads at the most (`bp.compute/1`), as on a host whose threads are
    /// wanted by others; with 0 all of them are in use, and who asks waits.
    pub fn grant_at_most(&self, threads: u32) {
        self.0.raw.host.grant_at_most(threads);
    }

    /// What the plugin did wrong so far.
    pub fn faults(&self) -> Vec<Fault> {
        self.0.raw.host.faults()
    }

    /// What the plugin wrote to the host's log: level (`BP_LOG_*`) and message.
    pub fn log(&self) -> Vec<(i32, String)> {
        self.0.raw.host.log_lines()
    }

    pub(crate) fn raw(&self) -> &RawModel {
        &self.0.raw
    }
}

/// A running copy of a model.
#[derive(Clone)]
pub struct Instance(Arc<InstanceInner>);

struct InstanceInner {
    raw: RawInstance,
    /// The thread of a SERIAL instance; it ends with its sender.
    serial: Option<(Sender<Job>, JoinHandle<()>)>,
    /// Calls of a CONCURRENT instance, each on a thread of its own.
    calls: Mutex<Vec<JoinHandle<()>>>,
    submitted: Mutex<Vec<Arc<Exchange>>>,
    model: Model,
}

enum Job {
    Submit(Vec<Arc<Exchange>>),
    Destroy,
}

impl Instance {
    fn start(raw: RawInstance, model: Model) -> Self {
        let serial = (model.raw().known.exec_class == BP_SERIAL).then(|| {
            let (jobs, queue) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                for job in queue {
                    match job {
                        Job::Submit(exchanges) => {
                            raw.submit(&exchanges);
                        }
                        Job::Destroy => raw.destroy(),
                    }
                }
            });
            (jobs, thread)
        });
        Self(Arc::new(InstanceInner {
            raw,
            serial,
            calls: Mutex::default(),
            submitted: Mutex::default(),
            model,
        }))
    }

    /// Sends a request.
    pub fn submit(&self, capability: &str, params_json: &str, tensors: Vec<TensorInput>) -> Running {
        self.send(RequestInput::new(capability, params_json, tensors))
    }

    /// Sends a request as it is.
    pub fn send(&self, input: RequestInput) -> Running {
        let exchange = self.0.raw.prepare(input);
        self.hand_over(vec![exchange.clone()]);
        self.running(exchange)
    }

    /// Sends several in one call: at most `max_batch` of the model.
    pub fn send_batch(&self, inputs: Vec<RequestInput>) -> Vec<Running> {
        let exchanges: Vec<_> = inputs.into_iter().map(|input| self.0.raw.prepare(input)).collect();
        self.hand_over(exchanges.clone());
        exchanges.into_iter().map(|exchange| self.running(exchange)).collect()
    }

    /// The model it is a copy of.
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// How it is: `BP_HEALTH_*`. `None` when it does not say, which means ready.
    pub fn health(&self) -> Option<Result<i32, Failure>> {
        self.0.raw.health()
    }

    pub(crate) fn raw(&self) -> &RawInstance {
        &self.0.raw
    }

    fn running(&self, exchange: Arc<Exchange>) -> Running {
        Running { exchange, instance: self.clone() }
    }

    /// Calls `submit` on the thread that its class asks for.
    fn hand_over(&self, exchanges: Vec<Arc<Exchange>>) {
        let this = &self.0;
        this.submitted.lock().extend(exchanges.iter().cloned());
        if let Some((jobs, _)) = &this.serial {
            // The thread lives until this instance is dropped.
            let _sent = jobs.send(Job::Submit(exchanges));
        } else if this.model.raw().known.exec_class == BP_CONCURRENT {
            let raw = this.raw;
            let mut calls = this.calls.lock();
            calls.retain(|call| !call.is_finished());
            calls.push(std::thread::spawn(move || {
                raw.submit(&exchanges);
            }));
        } else {
            this.raw.submit(&exchanges);
        }
    }
}

impl InstanceInner {
    /// Waits until no request is open and no call runs.
    fn is_idle_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let left = || deadline.saturating_duration_since(Instant::now());
        for exchange in self.submitted.lock().iter() {
            exchange.wait(left());
            if exchange.is_open() {
                return false;
            }
        }
        while self.calls.lock().iter().any(|call| !call.is_finished()) {
            if left().is_zero() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for InstanceInner {
    fn drop(&mut self) {
        if !self.is_idle_within(self.model.0.plugin.patience) {
            // It may not be destroyed with a request open, nor its model closed: both stay. The host reports it.
            std::mem::forget(self.model.clone());
            return;
        }
        self.raw.quiesce(Some(Instant::now() + Duration::from_secs(1)));
        match self.serial.take() {
            Some((jobs, thread)) => {
                let _sent = jobs.send(Job::Destroy);
                drop(jobs);
                let _joined = thread.join();
            }
            None => self.raw.destroy(),
        }
    }
}

/// A request on its way.
#[derive(Clone)]
pub struct Running {
    exchange: Arc<Exchange>,
    instance: Instance,
}

impl Running {
    /// Waits for the end, and reads the answer. What is not finished within the patience of the test comes back as
    /// [`crate::End::Unfinished`].
    pub fn wait(&self) -> Answer {
        self.wait_for(self.instance.0.model.0.plugin.patience)
    }

    /// As [`Running::wait`], with a patience of its own.
    pub fn wait_for(&self, patience: Duration) -> Answer {
        self.exchange.wait(patience)
    }

    /// Waits for this many chunks, or the end.
    pub fn wait_for_chunks(&self, count: usize) -> bool {
        let patience = self.instance.0.model.0.plugin.patience;
        self.exchange.wait_until(patience, |chunks| count <= chunks)
    }

    /// How many chunks have come.
    pub fn chunks(&self) -> usize {
        self.exchange.chunks()
    }

    /// Whether it has not ended.
    pub fn is_open(&self) -> bool {
        self.exchange.is_open()
    }

    /// Leaves: sets the cancel word and says so, as a host does.
    pub fn cancel(&self) {
        self.instance.0.raw.cancel(&self.exchange);
    }
}
