//! The suite: rows A to E of the conformance plan that a library can be held to in its own process, and what of
//! cancellation, concurrency and scarcity a plugin answers for.
//!
//! A check is a function that returns what it saw, or why it stops. Around each, the hosts it used are asked what was
//! done wrong to them and what was not given back.

mod abi;
mod bid;
mod cancel;
mod concurrency;
mod data;
mod lifecycle;
mod load;
mod manifest;
mod scarcity;
mod stream;

use crate::answer::{Answer, Failure};
use crate::host::{Host, Shape};
use crate::input::{RequestInput, TensorInput};
use crate::report::{Check, Level, Outcome, Report};
use crate::session::{Instance, Model, Plugin, PluginTest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A request that works: the example from which the suite makes all others.
#[derive(Clone, Debug)]
pub struct Case {
    /// Which one of the run it is: two cases may have one name.
    number: usize,
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) capability: String,
    pub(crate) params: String,
    pub(crate) tensors: Vec<TensorInput>,
    pub(crate) slow: Option<String>,
    pub(crate) panics: Option<String>,
    pub(crate) gives_tensors_back: bool,
    pub(crate) varies: bool,
}

impl Case {
    /// A request with these parameters (`"{}"` for a plugin that takes none) to a model, given as the card with which
    /// it is opened: `{"name":..,"capabilities":[..],"files":[{"role","path","size"}],"parameters":{..}}`.
    pub fn new(model_json: impl Into<String>, capability: &str, params_json: impl Into<String>) -> Self {
        let model = model_json.into();
        Self {
            number: 0,
            name: model_name(&model),
            model,
            capability: capability.to_owned(),
            params: params_json.into(),
            tensors: Vec::new(),
            slow: None,
            panics: None,
            gives_tensors_back: false,
            varies: false,
        }
    }

    /// Its name in the report; the model's unless said otherwise.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds a tensor.
    pub fn tensor(mut self, tensor: TensorInput) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// Parameters with which an answer takes several seconds, so that it can be cancelled on its way. Without them
    /// the request itself is cancelled, which shows less.
    pub fn slow(mut self, params_json: impl Into<String>) -> Self {
        self.slow = Some(params_json.into());
        self
    }

    /// Parameters with which the plugin panics.
    pub fn panics(mut self, params_json: impl Into<String>) -> Self {
        self.panics = Some(params_json.into());
        self
    }

    /// The answer holds every tensor of the request, under its name.
    pub fn gives_tensors_back(mut self) -> Self {
        self.gives_tensors_back = true;
        self
    }

    /// Two answers to this request may differ.
    pub fn varies(mut self) -> Self {
        self.varies = true;
        self
    }

    pub(crate) fn request(&self) -> RequestInput {
        RequestInput::new(&self.capability, &self.params, self.tensors.clone())
    }

    /// The slow request, or the ordinary one.
    pub(crate) fn slow_request(&self) -> RequestInput {
        let params = self.slow.as_ref().unwrap_or(&self.params);
        RequestInput::new(&self.capability, params, self.tensors.clone())
    }

    fn takes_params(&self) -> bool {
        self.params.trim() != "{}"
    }
}

fn model_name(model_json: &str) -> String {
    let card: serde_json::Value = serde_json::from_str(model_json).unwrap_or_default();
    card["name"].as_str().unwrap_or("model").to_owned()
}

/// Why a check stops.
pub(crate) enum Stop {
    /// It failed: what was seen, where the header says otherwise, what to do.
    Failed { what: String, rule: &'static str, advice: &'static str },
    /// It does not apply.
    Skipped(String),
}

/// What a check saw.
pub(crate) type Verdict<T = String> = Result<T, Stop>;

pub(crate) fn failed<T>(what: impl Into<String>, rule: &'static str, advice: &'static str) -> Verdict<T> {
    Err(Stop::Failed { what: what.into(), rule, advice })
}

pub(crate) fn skipped<T>(why: impl Into<String>) -> Verdict<T> {
    Err(Stop::Skipped(why.into()))
}

/// Fails unless `holds`.
pub(crate) fn ensure(
    holds: bool,
    what: impl FnOnce() -> String,
    rule: &'static str,
    advice: &'static str,
) -> Verdict<()> {
    if holds { Ok(()) } else { failed(what(), rule, advice) }
}

pub(crate) const ANSWERS: &str = "the case is a request that works";
const EXAMPLE: &str =
    "give the suite a request that works, or mark the case with `varies()` if answers differ";

/// What the checks of one run share.
pub(crate) struct Bench<'a> {
    pub test: &'a PluginTest,
    /// The hosts of the check that runs.
    hosts: Mutex<Vec<&'static Host>>,
    references: Mutex<HashMap<usize, Answer>>,
}

impl Bench<'_> {
    pub fn host(&self, shape: Shape) -> &'static Host {
        let host = Host::new(shape, self.test.answering.clone());
        self.hosts.lock().push(host);
        host
    }

    pub fn plugin(&self) -> Verdict<Arc<Plugin>> {
        self.plugin_on(self.host(Shape::default()))
    }

    pub fn plugin_on(&self, host: &'static Host) -> Verdict<Arc<Plugin>> {
        self.test.start(host).or_else(|failure| {
            failed(
                format!("the plugin does not start: {failure}"),
                "bp_plugin.init: \"Starts the plugin\"",
                "give the suite the configuration it needs with `PluginTest::config`",
            )
        })
    }

    pub fn model(&self, case: &Case) -> Verdict<Model> {
        self.model_of(&self.plugin()?, case)
    }

    pub fn model_of(&self, plugin: &Arc<Plugin>, case: &Case) -> Verdict<Model> {
        plugin.open(&case.model).or_else(|failure| {
            failed(format!("the model of the case does not open: {failure}"), ANSWERS, EXAMPLE)
        })
    }

    pub fn instance(&self, case: &Case) -> Verdict<Instance> {
        self.instance_of(&self.model(case)?)
    }

    pub fn instance_of(&self, model: &Model) -> Verdict<Instance> {
        model.instance().or_else(|failure| {
            failed(format!("no instance can be made: {failure}"), "bp_model.instance_new", EXAMPLE)
        })
    }

    /// What the case is answered with on a good day.
    pub fn reference(&self, case: &Case) -> Verdict<Answer> {
        if let Some(answer) = self.references.lock().get(&case.number) {
            return Ok(answer.clone());
        }
        let answer = self.instance(case)?.send(case.request()).wait();
        ensure(answer.is_done(), || format!("the request of the case {}", answer.end), ANSWERS, EXAMPLE)?;
        self.references.lock().insert(case.number, answer.clone());
        Ok(answer)
    }

    /// Fails unless this is the answer of a good day.
    pub fn expect_reference(&self, case: &Case, answer: &Answer, when: &str) -> Verdict<()> {
        let reference = self.reference(case)?;
        let rule = "bp_instance.submit: requests are answered on their own merits";
        ensure(
            answer.is_done(),
            || format!("{when}, a request that works {}", answer.end),
            rule,
            "find what the plugin keeps from one request to the next, or reads beyond what it was given",
        )?;
        if case.varies {
            return Ok(());
        }
        ensure(
            answer.json() == reference.json() && answer.tensors() == reference.tensors(),
            || {
                format!(
                    "{when}, the answer differs: {} with {} tensor(s) instead of {} with {}",
                    shorten(&answer.json().to_string()),
                    answer.tensors().len(),
                    shorten(&reference.json().to_string()),
                    reference.tensors().len()
                )
            },
            rule,
            EXAMPLE,
        )
    }

    /// Fails unless the instance serves the case as on a good day.
    pub fn expect_serving(&self, case: &Case, instance: &Instance, when: &str) -> Verdict<()> {
        self.expect_reference(case, &instance.send(case.request()).wait(), when)
    }

    /// How long a cancelled request of this model may take, with room for a busy machine.
    pub fn grace(&self, instance: &Instance) -> Duration {
        Duration::from_millis(u64::from(instance.model().raw().known.cancel_grace_ms))
            + Duration::from_secs(2)
    }
}

/// An error that a caller can act on: a canonical code, not the plugin's own breakdown.
pub(crate) fn is_typed(failure: &Failure) -> bool {
    use backplane_abi::code::Code;
    !failure.is_panic()
        && failure.canonical().is_some_and(|code| !matches!(code, Code::Internal | Code::Unknown))
        || matches!(
            failure.code,
            backplane_abi::table::BP_BAD_STRUCT | backplane_abi::table::BP_NULL_ARGUMENT
        )
}

pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

enum Run {
    Once(fn(&Bench<'_>) -> Verdict),
    EachCase(fn(&Bench<'_>, &Case) -> Verdict),
}
use Level::{Advice, Contract};
use Run::{EachCase, Once};

const CHECKS: &[(&str, Level, Run)] = &[
    ("manifest.note", Contract, Once(manifest::note)),
    ("abi.entry-with-nulls", Contract, Once(abi::entry_with_nulls)),
    ("abi.plugin-table", Contract, Once(abi::plugin_table)),
    ("abi.host-table-smaller", Contract, Once(abi::host_table_smaller)),
    ("abi.host-table-larger", Contract, EachCase(abi::host_table_larger)),
    ("abi.host-table-flags", Contract, Once(abi::host_table_flags)),
    ("abi.two-hosts", Contract, EachCase(abi::two_hosts)),
    ("abi.extensions", Contract, EachCase(abi::extensions)),
    ("abi.request-smaller", Contract, EachCase(abi::request_smaller)),
    ("abi.request-larger", Contract, EachCase(abi::request_larger)),
    ("abi.request-flags", Contract, EachCase(abi::request_flags)),
    ("load.before-init", Contract, EachCase(load::before_init)),
    ("load.bad-configuration", Contract, Once(load::bad_configuration)),
    ("load.init-twice", Contract, EachCase(load::init_twice)),
    ("load.again-and-again", Contract, EachCase(load::again_and_again)),
    ("load.bad-model", Contract, EachCase(load::bad_model)),
    ("bid.struct-sizes", Contract, EachCase(bid::struct_sizes)),
    ("bid.pure", Contract, EachCase(bid::pure)),
    ("bid.quick", Advice, EachCase(bid::quick)),
    ("lifecycle.model-table", Contract, EachCase(lifecycle::model_table)),
    ("lifecycle.placement-larger", Contract, EachCase(lifecycle::placement_larger)),
    ("lifecycle.two-instances", Contract, EachCase(lifecycle::two_instances)),
    ("lifecycle.health", Contract, EachCase(lifecycle::health)),
    ("lifecycle.quiesce", Contract, EachCase(lifecycle::quiesce)),
    ("lifecycle.nothing-left", Contract, EachCase(lifecycle::nothing_left)),
    ("data.parameters", Contract, EachCase(data::parameters)),
    ("data.unknown-capability", Contract, EachCase(data::unknown_capability)),
    ("data.placement", Contract, EachCase(data::placement)),
    ("data.types-and-shapes", Contract, EachCase(data::types_and_shapes)),
    ("data.malformed-tensors", Contract, EachCase(data::malformed_tensors)),
    ("data.tensor-names", Contract, EachCase(data::tensor_names)),
    ("stream.repeats", Contract, EachCase(stream::repeats)),
    ("stream.slow-reader", Contract, EachCase(stream::slow_reader)),
    ("stream.reader-leaves", Contract, EachCase(stream::reader_leaves)),
    ("cancel.before-submit", Contract, EachCase(cancel::before_submit)),
    ("cancel.on-its-way", Contract, EachCase(cancel::on_its_way)),
    ("cancel.after-finish", Contract, EachCase(cancel::after_finish)),
    ("cancel.others-unharmed", Contract, EachCase(cancel::others_unharmed)),
    ("deadline.past", Contract, EachCase(cancel::past_deadline)),
    ("concurrency.threads", Contract, EachCase(concurrency::threads)),
    ("concurrency.batch", Contract, EachCase(concurrency::batch)),
    ("scarcity.memory", Contract, EachCase(scarcity::memory)),
    ("scarcity.panic", Contract, EachCase(scarcity::panic)),
];

/// Runs every check.
pub(crate) fn run(test: &PluginTest, cases: &[Case]) -> Report {
    let bench = Bench { test, hosts: Mutex::default(), references: Mutex::default() };
    let mut report = Report::default();
    let number = |(number, case): (usize, &Case)| Case { number, ..case.clone() };
    let cases: Vec<Case> = cases.iter().enumerate().map(number).collect();
    for (name, level, run) in CHECKS {
        let mut add = |name: String, verdict: Verdict| {
            let (result, detail) = judge(verdict, &bench);
            report.checks.push(Check { name, level: *level, result, detail });
        };
        match run {
            Once(check) => add((*name).to_owned(), check(&bench)),
            EachCase(check) => {
                for case in &cases {
                    add(format!("{name} [{}]", case.name), check(&bench, case));
                }
            }
        }
    }
    report
}

/// Adds to a verdict what the hosts of the check have to say.
fn judge(verdict: Verdict, bench: &Bench<'_>) -> (Outcome, String) {
    let hosts = std::mem::take(&mut *bench.hosts.lock());
    let mut wrong: Vec<String> = Vec::new();
    for fault in hosts.iter().flat_map(|host| host.faults().into_iter().chain(host.leftovers())) {
        let line = explain(&fault.to_string(), fault.rule(), fault.advice());
        if !wrong.contains(&line) {
            wrong.push(line);
        }
    }
    let (result, seen) = match verdict {
        Ok(seen) => (Outcome::Passed, seen),
        Err(Stop::Skipped(why)) => (Outcome::Skipped, why),
        Err(Stop::Failed { what, rule, advice }) => {
            wrong.insert(0, explain(&what, rule, advice));
            (Outcome::Failed, String::new())
        }
    };
    if wrong.is_empty() { (result, seen) } else { (Outcome::Failed, wrong.join("\n")) }
}

fn explain(what: &str, rule: &str, advice: &str) -> String {
    format!("{what}\nbackplane.h: {rule}\nto do: {advice}")
}
