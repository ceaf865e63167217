//! What came of a check, and how it travels from the process it ran in.

use super::Job;
use backplane_testkit::{Check, CheckInfo, Level, Outcome, Passage, Problem, passage};
use serde_json::{Value, json};
use std::time::Duration;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Passed,
    Failed,
    Skipped,
    Crashed,
    TimedOut,
}

impl Ended {
    pub fn name(self) -> &'static str {
        match self {
            Ended::Passed => "passed",
            Ended::Failed => "failed",
            Ended::Skipped => "skipped",
            Ended::Crashed => "crashed",
            Ended::TimedOut => "timed_out",
        }
    }
}

/// A problem, and where the header speaks of it.
#[derive(Clone, Debug)]
pub struct Found {
    pub what: String,
    pub rule: String,
    pub advice: String,
    /// What the check is about, where the rule itself is nowhere in the header.
    about: &'static str,
}

impl Found {
    /// Where the header says so.
    pub fn passage(&self) -> Option<Passage> {
        if self.rule.starts_with("docs/") {
            None
        } else {
            passage(&self.rule).or_else(|| passage(self.about))
        }
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub check: CheckInfo,
    /// `stream.slow-reader [the case]`
    pub name: String,
    pub case: Option<String>,
    pub result: Ended,
    pub seen: String,
    pub problems: Vec<Found>,
    pub seconds: f64,
    /// The library could be mapped: without that no other check says anything new.
    pub loaded: bool,
}

/// A check for the file in which its process leaves it.
pub fn found(check: &Check) -> Value {
    let result = match check.result {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
    };
    let problem = |problem: &Problem| json!([problem.what, problem.rule, problem.advice]);
    let seen = if check.problems.is_empty() { check.detail.as_str() } else { "" };
    json!({ "result": result, "seen": seen, "problems": check.problems.iter().map(problem).collect::<Vec<_>>() })
}

/// The library could not be mapped.
pub fn not_loaded(why: &str) -> Value {
    let advice = "see what it needs and lacks: `backplane plugin report FILE`";
    let problem =
        json!([format!("it cannot be loaded: {why}"), "bp_entry_v1: \"The one exported symbol\"", advice]);
    json!({ "result": "failed", "seen": "", "problems": [problem], "loaded": false })
}

impl Row {
    fn new(job: &Job, result: Ended) -> Self {
        Self {
            check: job.check,
            name: job.name(),
            case: job.case.as_ref().map(|(_, case)| case.clone()),
            result,
            seen: String::new(),
            problems: Vec::new(),
            seconds: 0.0,
            loaded: true,
        }
    }

    /// What a check of this process found.
    pub fn of(job: &Job, check: Option<Check>, took: Duration) -> Self {
        let row = check.and_then(|check| Self::read(job, &found(&check).to_string()));
        Self { seconds: took.as_secs_f64(), ..row.unwrap_or_else(|| Self::new(job, Ended::Skipped)) }
    }

    /// What the process of a check left.
    pub fn read(job: &Job, text: &str) -> Option<Self> {
        let said: Value = serde_json::from_str(text).ok()?;
        let result = match said["result"].as_str()? {
            "passed" => Ended::Passed,
            "failed" => Ended::Failed,
            "skipped" => Ended::Skipped,
            _ => return None,
        };
        let problem = |problem: &Value| {
            let text = |at: usize| problem[at].as_str().map(str::to_owned);
            Some(Found { what: text(0)?, rule: text(1)?, advice: text(2)?, about: job.check.rule })
        };
        Some(Self {
            seen: said["seen"].as_str()?.to_owned(),
            loaded: said["loaded"] != false,
            problems: said["problems"].as_array()?.iter().filter_map(problem).collect(),
            ..Self::new(job, result)
        })
    }

    /// A check that came to no end of its own.
    pub fn broken(job: &Job, result: Ended, problem: Problem) -> Self {
        let Problem { what, rule, advice } = problem;
        Self { problems: vec![Found { what, rule, advice, about: job.check.rule }], ..Self::new(job, result) }
    }

    /// Whether the plugin does not conform: advice may be left aside, a crash may not.
    pub fn breaks_the_contract(&self) -> bool {
        match self.result {
            Ended::Passed | Ended::Skipped => false,
            Ended::Failed => self.check.level == Level::Contract,
            Ended::Crashed | Ended::TimedOut => true,
        }
    }

    pub fn to_json(&self, again: String) -> Value {
        let problem = |found: &Found| {
            let header =
                found.passage().map(|passage| json!({ "line": passage.line, "section": passage.section }));
            json!({ "what": found.what, "rule": found.rule, "header": header, "todo": found.advice })
        };
        let again = (!self.problems.is_empty()).then_some(again);
        json!({
            "id": self.check.id,
            "case": self.case,
            "level": format!("{:?}", self.check.tier).to_lowercase(),
            "matters": format!("{:?}", self.check.level).to_lowercase(),
            "result": self.result.name(),
            "seen": self.seen,
            "problems": self.problems.iter().map(problem).collect::<Vec<_>>(),
            "seconds": self.seconds,
            "reproduce": again,
        })
    }
}
