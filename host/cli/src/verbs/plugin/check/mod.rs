//! `plugin check`: the conformance kit as a program.
//!
//! Each check runs in a process of its own, so that one that crashes or hangs says so and the others are done all the
//! same: this program starts itself again with `--one` (`process.rs`). What is asked comes from the manifest or a
//! file (`cases.rs`).

mod cases;
mod junit;
mod process;
mod result;

use crate::args::Check as Arguments;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Style, printable};
use backplane_registry::plugin::{InspectError, PluginFile, inspect};
use backplane_testkit::{Case, CheckInfo, Level, Tier, checks};
use parking_lot::Mutex;
use result::{Ended, Row};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// As many at once: a plugin under test may be heavy, and its time-outs are those of an idle machine.
const AT_ONCE: usize = 2;

/// A check to run, with the number and the name of its case if it has one.
#[derive(Clone, Debug)]
struct Job {
    check: CheckInfo,
    case: Option<(usize, String)>,
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    // Read before it is run: what cannot be loaded needs no test.
    let file = inspect(&arguments.file).map_err(|error| match error {
        InspectError::Missing { .. } => Failure::new(Exit::NotFound, error.to_string()),
        _ => Failure::failed(error.to_string()).next("all about the file: `backplane plugin report FILE`"),
    })?;
    let cases = cases::of(arguments, &file.manifest)?;
    let seed = arguments.reproduce.unwrap_or_else(seed);
    if let Some(one) = &arguments.one {
        return process::be(arguments, one, &cases, seed);
    }
    let jobs = jobs(arguments, &cases)?;
    if cases.is_empty() {
        context.out.note(
            "no request is known that works, so only what needs none is checked: name one with `--cases FILE`, or \
             give the manifest a model and its capability an `input_schema` with `examples`",
        );
    }
    let begin = Instant::now();
    let rows = if arguments.in_process {
        in_process(context, arguments, &cases, &jobs, seed)?
    } else {
        in_processes(context, arguments, &jobs, seed)
    };
    conclude(context, arguments, &file, &rows, seed, begin.elapsed())
}

/// What to run, in the order of the suite.
fn jobs(arguments: &Arguments, cases: &[Case]) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let wanted = checks().filter(|check| check.tier <= arguments.level.into());
    for check in wanted {
        if check.each_case {
            let each = cases.iter().enumerate().map(|(number, case)| (number, case.name().to_owned()));
            jobs.extend(each.map(|case| Job { check, case: Some(case) }));
        } else {
            jobs.push(Job { check, case: None });
        }
    }
    jobs.retain(|job| {
        let fits = |pattern: &String| matches(pattern, job.check.id) || matches(pattern, &job.name());
        (arguments.include.is_empty() || arguments.include.iter().any(fits))
            && !arguments.exclude.iter().any(fits)
    });
    if jobs.is_empty() {
        let ids: Vec<_> = checks().map(|check| check.id).collect();
        return Err(Failure::usage("no check of this level fits `--include` and `--exclude`")
            .next(format!("the checks: {}", ids.join(", "))));
    }
    Ok(jobs)
}

impl Job {
    /// `stream.slow-reader [the case]`
    fn name(&self) -> String {
        match &self.case {
            Some((_, case)) => format!("{} [{case}]", self.check.id),
            None => self.check.id.to_owned(),
        }
    }
}

/// `abi`, `abi.two-hosts` or with stars: `*.request-*`.
fn matches(pattern: &str, name: &str) -> bool {
    if !pattern.contains('*') {
        return name == pattern
            || name.strip_prefix(pattern).is_some_and(|rest| rest.starts_with(['.', ' ']));
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let (last, middle) = parts.split_last().map_or(("", &[][..]), |(last, middle)| (*last, middle));
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Small enough to be typed.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xFFFF_FFFF)
}

fn in_processes(context: &Context, arguments: &Arguments, jobs: &[Job], seed: u64) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let done: Mutex<(usize, Vec<Option<Row>>)> = Mutex::new((0, vec![None; jobs.len()]));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((at, job)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, jobs.get(at)?)))
                {
                    let row = process::run(arguments, job, seed);
                    if !row.loaded {
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                    let mut done = done.lock();
                    let (shown, rows) = &mut *done;
                    rows[at] = Some(row);
                    // In their order, whichever ended first.
                    while let Some(Some(row)) = rows.get(*shown) {
                        show(context, row);
                        *shown += 1;
                    }
                }
            });
        }
    });
    done.into_inner().1.into_iter().flatten().collect()
}

/// All in this one process, for a debugger.
fn in_process(
    context: &Context,
    arguments: &Arguments,
    cases: &[Case],
    jobs: &[Job],
    seed: u64,
) -> Result<Vec<Row>> {
    let test = process::test(arguments, seed).map_err(Failure::failed)?;
    let each = jobs.iter().map(|job| {
        let begin = Instant::now();
        let case = job.case.as_ref().and_then(|(number, _)| cases.get(*number));
        let row = Row::of(job, test.check_one(job.check.id, case), begin.elapsed());
        show(context, &row);
        row
    });
    Ok(each.collect())
}

fn show(context: &Context, row: &Row) {
    let out = &context.out;
    if out.json {
        return;
    }
    let (sign, style) = match (row.result, row.check.level) {
        (Ended::Passed, _) => ("ok     ", Style::Good),
        (Ended::Skipped, _) => ("-      ", Style::Faint),
        (Ended::Failed, Level::Advice) => ("advice ", Style::Warning),
        (Ended::Failed, _) => ("FAILED ", Style::Bad),
        (Ended::Crashed, _) => ("CRASHED", Style::Bad),
        (Ended::TimedOut, _) => ("LATE   ", Style::Bad),
    };
    out.line(format!("{} {:<40} {}", out.styled(style, sign), row.name, printable(&row.seen)));
    for problem in &row.problems {
        out.line(format!("        {}", printable(&problem.what)));
        match problem.passage() {
            Some(passage) => {
                let place = format!("backplane.h:{} ({})", passage.line, passage.section);
                out.line(format!("        {place}: {}", problem.rule));
            }
            None => out.line(format!("        {}", problem.rule)),
        }
        out.line(format!("        to do: {}", problem.advice));
    }
}

fn conclude(
    context: &Context,
    arguments: &Arguments,
    file: &PluginFile,
    rows: &[Row],
    seed: u64,
    took: Duration,
) -> Result<()> {
    let count = |is: fn(&Row) -> bool| rows.iter().filter(|row| is(row)).count();
    let (passed, skipped) =
        (count(|row| row.result == Ended::Passed), count(|row| row.result == Ended::Skipped));
    let broken = count(Row::breaks_the_contract);
    let advice = rows.len() - passed - skipped - broken;
    if let Some(path) = &arguments.junit {
        let text = junit::report(&file.manifest.id, rows, seed, took);
        std::fs::write(path, text).map_err(|error| Failure::io("write", path, &error))?;
    }
    let again = |row: &Row| {
        let path = arguments.file.display();
        format!("backplane plugin check {path} --include '{}' --reproduce {seed}", row.name)
    };
    if context.out.json {
        let rows: Vec<_> = rows.iter().map(|row| row.to_json(again(row))).collect();
        context.out.value(&json!({
            "ok": broken == 0, "plugin": file.manifest.id, "version": file.manifest.version,
            "file": file.path, "sha256": file.sha256, "level": arguments.level, "seed": seed,
            "seconds": took.as_secs_f64(), "checks": rows,
        }));
    } else {
        let advice = if advice > 0 { format!(", {advice} advised otherwise") } else { String::new() };
        context.out.line(format!(
            "{} {}: {passed} passed, {broken} failed{advice}, {skipped} do not apply; seed {seed}, {:.1} s",
            file.manifest.id,
            file.manifest.version,
            took.as_secs_f64()
        ));
    }
    match rows.iter().find(|row| row.breaks_the_contract()) {
        None => Ok(()),
        Some(first) => {
            let what = format!(
                "{broken} of {} checks failed: the plugin breaks the contract of backplane.h",
                rows.len()
            );
            Err(Failure::failed(what)
                .code("not_conforming")
                .next(format!("the first again: `{}`", again(first))))
        }
    }
}

impl From<crate::args::KitLevel> for Tier {
    fn from(level: crate::args::KitLevel) -> Self {
        match level {
            crate::args::KitLevel::Abi => Tier::Abi,
            crate::args::KitLevel::Serving => Tier::Serving,
            crate::args::KitLevel::Hardened => Tier::Hardened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_check_a_group_or_has_stars() {
        for (pattern, name, fits) in [
            ("abi", "abi.two-hosts", true),
            ("abi.two-hosts", "abi.two-hosts [case]", true),
            ("ab", "abi.two-hosts", false),
            ("abi.two", "abi.two-hosts", false),
            ("*.request-*", "abi.request-flags", true),
            ("*flags", "abi.request-flags", true),
            ("*flags", "abi.request-flags [x]", false),
            ("data.*", "abi.request-flags", false),
            ("*", "abi.request-flags", true),
            ("a*a*a", "aa", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
