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
pub(crate) mod process;
mod random;
mod scarcity;
mod stream;

use crate::answer::{Answer, Failure};
use crate::host::{Host, Shape};
use crate::input::{RequestInput, TensorInput};
use crate::report::{Check, Level, Outcome, Problem, Report, Tier};
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

    /// A case as a file gives it: `model` (the card, or its name), `capability`, and as it needs `name`, `params`,
    /// `tensors`, `slow`, `panics`, `gives_tensors_back`, `varies`.
    ///
    /// # Errors
    /// When a member is missing, unknown or not what it should be.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let file: CaseFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let model = match file.model {
            serde_json::Value::String(name) => {
                serde_json::json!({ "name": name, "capabilities": [file.capability] })
            }
            card if card.is_object() => card,
            _ => return Err("`model` must be a card or the name of a model".to_owned()),
        };
        let text = |params: serde_json::Map<_, _>| serde_json::Value::Object(params).to_string();
        let mut case = Self::new(model.to_string(), &file.capability, text(file.params));
        case.name = file.name.unwrap_or(case.name);
        case.slow = file.slow.map(text);
        case.panics = file.panics.map(text);
        case.gives_tensors_back = file.gives_tensors_back;
        case.varies = file.varies;
        case.tensors = file.tensors.iter().map(TensorInput::from_json).collect::<Result<_, _>>()?;
        Ok(case)
    }

    /// Its name in the report.
    pub fn name(&self) -> &str {
        &self.name
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

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    name: Option<String>,
    model: serde_json::Value,
    capability: String,
    #[serde(default)]
    params: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    tensors: Vec<serde_json::Value>,
    slow: Option<serde_json::Map<String, serde_json::Value>>,
    panics: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    gives_tensors_back: bool,
    #[serde(default)]
    varies: bool,
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

impl<'a> Bench<'a> {
    fn new(test: &'a PluginTest) -> Self {
        Self { test, hosts: Mutex::default(), references: Mutex::default() }
    }
}

impl Bench<'_> {
    pub fn host(&self, shape: Shape) -> &'static Host {
        let host = Host::new(shape, self.test.answering.clone(), self.test.license.clone());
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
use Tier::{Abi, Hardened, Serving};

/// A check: its id, which stays the same for ever; how far a plugin that passes it has come; how much it matters; what
/// it is; and what of the header it is about, for a plugin that does not live to be told.
type Row = (&'static str, Tier, Level, Run, &'static str);

#[rustfmt::skip]
const CHECKS: &[Row] = &[
    ("manifest.note", Abi, Contract, Once(manifest::note), "BP_NOTE_SECTION: \"An ELF note in a section named BP_NOTE_SECTION\""),
    ("abi.entry-with-nulls", Abi, Contract, Once(abi::entry_with_nulls), "bp_entry_v1: \"any other code refuses the host\""),
    ("abi.plugin-table", Abi, Contract, Once(abi::plugin_table), "bp_plugin: \"as in the manifest; the host refuses a library where they differ\""),
    ("abi.host-table-smaller", Abi, Contract, Once(abi::host_table_smaller), "Rules, 1: \"the reader treats members beyond it as absent\""),
    ("abi.host-table-larger", Abi, Contract, EachCase(abi::host_table_larger), "Rules, 1: \"the reader treats members beyond it as absent\""),
    ("abi.host-table-flags", Abi, Contract, Once(abi::host_table_flags), "Rules, 1: \"Unknown bits in the upper half of flags\""),
    ("abi.two-hosts", Abi, Contract, EachCase(abi::two_hosts), "bp_entry_v1: \"Called once per host; a process may hold several hosts\""),
    ("abi.extensions", Abi, Contract, EachCase(abi::extensions), "Rules, 5: \"Anything optional is an extension\""),
    ("abi.request-smaller", Abi, Contract, EachCase(abi::request_smaller), "Rules, 1: \"the reader treats members beyond it as absent\""),
    ("abi.request-larger", Abi, Contract, EachCase(abi::request_larger), "Rules, 1: \"the reader treats members beyond it as absent\""),
    ("abi.request-flags", Abi, Contract, EachCase(abi::request_flags), "Rules, 1: \"Unknown bits in the upper half of flags\""),
    ("load.before-init", Abi, Contract, EachCase(load::before_init), "bp_plugin: \"Until init has returned BP_OK the other functions answer BP_BAD_STATE\""),
    ("load.bad-configuration", Abi, Contract, Once(load::bad_configuration), "bp_plugin.init: \"Starts the plugin; config_json is its section\""),
    ("load.init-twice", Abi, Contract, EachCase(load::init_twice), "bp_plugin: \"bp_entry_v1 -> init -> ... -> shutdown\""),
    ("load.again-and-again", Abi, Contract, EachCase(load::again_and_again), "bp_plugin: \"bp_entry_v1 -> init -> ... -> shutdown\""),
    ("load.bad-model", Abi, Contract, EachCase(load::bad_model), "bp_plugin.model_open: \"Opens a model\""),
    ("bid.struct-sizes", Abi, Contract, EachCase(bid::struct_sizes), "bp_bid: \"The host fills struct_size, zeroes the rest\""),
    ("bid.pure", Abi, Contract, EachCase(bid::pure), "bp_plugin.bid: \"Pure, no device work, at most 1 ms\""),
    ("bid.quick", Abi, Advice, EachCase(bid::quick), "bp_plugin.bid: \"Pure, no device work, at most 1 ms\""),
    ("lifecycle.model-table", Abi, Contract, EachCase(lifecycle::model_table), "bp_model: \"How instances of a model want to be called\""),
    ("lifecycle.placement-larger", Abi, Contract, EachCase(lifecycle::placement_larger), "Rules, 1: \"the reader treats members beyond it as absent\""),
    ("lifecycle.two-instances", Serving, Contract, EachCase(lifecycle::two_instances), "bp_model.instance_new: \"A running copy, ready to serve\""),
    ("lifecycle.health", Serving, Contract, EachCase(lifecycle::health), "bp_instance.health: \"How it is: *state = BP_HEALTH_*\""),
    ("lifecycle.quiesce", Serving, Contract, EachCase(lifecycle::quiesce), "bp_instance.quiesce: \"Finish what was taken, take nothing more\""),
    ("lifecycle.nothing-left", Hardened, Contract, EachCase(lifecycle::nothing_left), "bp_model.close: \"Closes it and gives its memory back\""),
    ("data.parameters", Serving, Contract, EachCase(data::parameters), "bp_code: \"the request is wrong whatever the state of the system\""),
    ("data.unknown-capability", Serving, Contract, EachCase(data::unknown_capability), "bp_code: \"the request is wrong whatever the state of the system\""),
    ("data.placement", Serving, Contract, EachCase(data::placement), "bp_tensor: \"A tensor: a view of memory\""),
    ("data.types-and-shapes", Serving, Contract, EachCase(data::types_and_shapes), "bp_tensor: \"A tensor: a view of memory\""),
    ("data.malformed-tensors", Serving, Contract, EachCase(data::malformed_tensors), "bp_tensor: \"A tensor: a view of memory\""),
    ("data.tensor-names", Serving, Contract, EachCase(data::tensor_names), "bp_code: \"the request is wrong whatever the state of the system\""),
    ("stream.repeats", Serving, Contract, EachCase(stream::repeats), "bp_instance.submit: \"Takes n requests\""),
    ("stream.slow-reader", Serving, Contract, EachCase(stream::slow_reader), "bp_host.push: \"BP_WOULD_BLOCK (not taken: the reader is behind)\""),
    ("stream.reader-leaves", Serving, Contract, EachCase(stream::reader_leaves), "bp_host.push: \"BP_CANCELLED (the caller left: stop and finish)\""),
    ("cancel.before-submit", Serving, Contract, EachCase(cancel::before_submit), "bp_request.cancel: \"becomes non-zero when the caller has left\""),
    ("cancel.on-its-way", Serving, Contract, EachCase(cancel::on_its_way), "bp_request.cancel: \"becomes non-zero when the caller has left\""),
    ("cancel.after-finish", Serving, Contract, EachCase(cancel::after_finish), "bp_instance.cancel: \"Says that a request's cancel word was set\""),
    ("cancel.others-unharmed", Serving, Contract, EachCase(cancel::others_unharmed), "bp_request.cancel: \"becomes non-zero when the caller has left\""),
    ("deadline.past", Serving, Contract, EachCase(cancel::past_deadline), "bp_request.deadline_ns"),
    ("concurrency.threads", Serving, Contract, EachCase(concurrency::threads), "bp_model.exec_class: \"How instances of a model want to be called\""),
    ("concurrency.batch", Serving, Contract, EachCase(concurrency::batch), "bp_instance.submit: \"element i is at (const char *)requests + i * stride\""),
    ("scarcity.memory", Hardened, Contract, EachCase(scarcity::memory), "bp_host.buf_alloc: \"Errors: BP_RESOURCE_EXHAUSTED (not now)\""),
    ("scarcity.panic", Hardened, Contract, EachCase(scarcity::panic), "BP_SUB_PANIC: \"a panic was caught inside the plugin\""),
    ("random.parameters", Hardened, Contract, EachCase(random::parameters), "bp_code: \"the request is wrong whatever the state of the system\""),
    ("random.tensors", Hardened, Contract, EachCase(random::tensors), "bp_tensor: \"A tensor: a view of memory\""),
    ("process.untouched", Hardened, Contract, EachCase(process::untouched), "Failure: \"A plugin must not call exit, abort, setenv, chdir\""),
];

/// A check of the suite, without being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckInfo {
    /// `"stream.slow-reader"`; stays the same for ever.
    pub id: &'static str,
    /// How far a plugin has come that passes it.
    pub tier: Tier,
    /// How much it matters.
    pub level: Level,
    /// Whether it runs once for each case, or once.
    pub each_case: bool,
    /// What of `backplane.h` it is about.
    pub rule: &'static str,
}

/// Every check, in the order in which they run.
pub fn checks() -> impl Iterator<Item = CheckInfo> {
    CHECKS.iter().map(|(id, tier, level, run, rule)| CheckInfo {
        id,
        tier: *tier,
        level: *level,
        each_case: matches!(run, EachCase(_)),
        rule,
    })
}

/// Runs every check.
pub(crate) fn run(test: &PluginTest, cases: &[Case]) -> Report {
    let bench = Bench::new(test);
    let number = |(number, case): (usize, &Case)| Case { number, ..case.clone() };
    let cases: Vec<Case> = cases.iter().enumerate().map(number).collect();
    let mut report = Report::default();
    for row in CHECKS {
        match row.3 {
            Once(_) => report.checks.extend(one(&bench, row, None)),
            EachCase(_) => report.checks.extend(cases.iter().filter_map(|case| one(&bench, row, Some(case)))),
        }
    }
    report
}

/// Runs one check, with a case if it needs one. Nothing where there is no such check, or no case for it.
pub(crate) fn run_one(test: &PluginTest, id: &str, case: Option<&Case>) -> Option<Check> {
    one(&Bench::new(test), CHECKS.iter().find(|row| row.0 == id)?, case)
}

fn one(bench: &Bench<'_>, (id, tier, level, run, rule): &Row, case: Option<&Case>) -> Option<Check> {
    let (verdict, case) = match (run, case) {
        (Once(check), _) => (check(bench), None),
        (EachCase(check), Some(case)) => (check(bench, case), Some(case.name.clone())),
        (EachCase(_), None) => return None,
    };
    let (result, seen, problems) = judge(verdict, bench);
    let info = CheckInfo { id, tier: *tier, level: *level, each_case: case.is_some(), rule };
    Some(Check::new(info, case, result, seen, problems))
}

/// Adds to a verdict what the hosts of the check have to say.
fn judge(verdict: Verdict, bench: &Bench<'_>) -> (Outcome, String, Vec<Problem>) {
    let hosts = std::mem::take(&mut *bench.hosts.lock());
    let mut problems: Vec<Problem> = Vec::new();
    for fault in hosts.iter().flat_map(|host| host.faults().into_iter().chain(host.leftovers())) {
        let problem = Problem::new(fault.to_string(), fault.rule(), fault.advice());
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    let (result, seen) = match verdict {
        Ok(seen) => (Outcome::Passed, seen),
        Err(Stop::Skipped(why)) => (Outcome::Skipped, why),
        Err(Stop::Failed { what, rule, advice }) => {
            problems.insert(0, Problem::new(what, rule, advice));
            (Outcome::Failed, String::new())
        }
    };
    if problems.is_empty() { (result, seen, problems) } else { (Outcome::Failed, seen, problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_an_id_of_its_own_and_its_place_in_the_header() {
        let mut ids = std::collections::HashSet::new();
        for check in checks() {
            assert!(ids.insert(check.id), "{} stands twice", check.id);
            assert!(crate::header::passage(check.rule).is_some(), "{}: {}", check.id, check.rule);
        }
    }
}
