//! What the suite found.

use crate::conformance::CheckInfo;
use serde_json::{Value, json};
use std::fmt;

/// How much a check matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `backplane.h` says so, and hosts rely on it.
    Contract,
    /// Works without, but users will feel it.
    Advice,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// It does not apply; the detail says why.
    Skipped,
}

/// How far a plugin has come; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Tables of any size, any order, several hosts: it can be loaded by every host of its major.
    Abi,
    /// Requests, streams, tensors, callers that leave: it can serve.
    Serving,
    /// No memory, panics, leaks, random requests: it can serve strangers.
    Hardened,
}

/// What a check found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What was seen.
    pub what: String,
    /// Where `backplane.h` says otherwise, mostly in its own words.
    pub rule: String,
    /// What to do.
    pub advice: String,
}

impl Problem {
    /// A problem in these words.
    pub fn new(what: impl Into<String>, rule: &str, advice: &str) -> Self {
        Self { what: what.into(), rule: rule.to_owned(), advice: advice.to_owned() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nbackplane.h: {}\nto do: {}", self.what, self.rule, self.advice)
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// `"stream.slow-reader"`; stays the same for ever.
    pub id: &'static str,
    /// The case it ran with, if it runs with one.
    pub case: Option<String>,
    /// How far a plugin has come that passes it.
    pub tier: Tier,
    /// What was wrong, one by one.
    pub problems: Vec<Problem>,
    /// `"stream.slow-reader"`, followed by the case where it ran once for each: `"stream.slow-reader [one piece]"`.
    pub name: String,
    /// How much it matters.
    pub level: Level,
    /// How it ended.
    pub result: Outcome,
    /// What was seen; where it failed, also where the header says otherwise and what to do.
    pub detail: String,
}

impl Check {
    pub(crate) fn new(
        info: CheckInfo,
        case: Option<String>,
        result: Outcome,
        seen: String,
        problems: Vec<Problem>,
    ) -> Self {
        let name = case.as_ref().map_or(info.id.to_owned(), |case| format!("{} [{case}]", info.id));
        let detail = match &problems[..] {
            [] => seen,
            problems => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        };
        Self { id: info.id, case, tier: info.tier, problems, name, level: info.level, result, detail }
    }
}

/// All checks, in the order they ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check of the contract failed.
    pub fn is_ok(&self) -> bool {
        self.failed(Level::Contract).next().is_none()
    }

    /// The checks of this level that failed.
    pub fn failed(&self, level: Level) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(move |check| check.result == Outcome::Failed && check.level == level)
    }

    /// Fails the test that calls it, with what failed, unless every check of the contract holds.
    ///
    /// # Panics
    /// When one does not.
    #[expect(clippy::panic, reason = "how a test fails")]
    pub fn assert_ok(&self) {
        if !self.is_ok() {
            let broken = Report { checks: self.failed(Level::Contract).cloned().collect() };
            panic!("the plugin breaks the contract of backplane.h:\n\n{broken}");
        }
    }

    /// The report for programs.
    pub fn to_json(&self) -> Value {
        let checks = self.checks.iter().map(|check| {
            json!({
                "name": check.name,
                "level": format!("{:?}", check.level).to_lowercase(),
                "result": format!("{:?}", check.result).to_lowercase(),
                "detail": check.detail,
            })
        });
        json!({ "ok": self.is_ok(), "checks": checks.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let sign = match (check.result, check.level) {
                (Outcome::Passed, _) => "ok    ",
                (Outcome::Failed, Level::Contract) => "FAILED",
                (Outcome::Failed, Level::Advice) => "advice",
                (Outcome::Skipped, _) => "-     ",
            };
            writeln!(f, "{sign} {:<40} {}", check.name, check.detail.replace('\n', "\n       "))?;
        }
        let count = |outcome| self.checks.iter().filter(|check| check.result == outcome).count();
        write!(
            f,
            "{} passed, {} failed, {} do not apply",
            count(Outcome::Passed),
            count(Outcome::Failed),
            count(Outcome::Skipped),
        )
    }
}
