//! A check in a process of its own.

use super::Job;
use super::result::{Ended, Row};
use crate::args::Check as Arguments;
use crate::exit::{Failure, Result};
use backplane_testkit::{Case, PluginTest, Problem};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const FORBIDDEN: &str =
    "Failure: \"A plugin must not call exit, abort, setenv, chdir, setlocale or install signal handlers\"";

/// The plugin as every check sees it. Maps it.
pub fn test(arguments: &Arguments, seed: u64) -> Result<PluginTest, String> {
    let test = PluginTest::load(&arguments.file)?.seed(seed);
    // A request that never ends is told by the check itself, in time.
    let test = test.patience(arguments.timeout() * 2 / 3);
    Ok(match &arguments.settings {
        Some(settings) => test.config(settings),
        None => test,
    })
}

/// This process is the check's own: runs it, and leaves what it found in a file. Standard output is the plugin's, to
/// see whether it writes there.
pub fn be(arguments: &Arguments, id: &str, cases: &[Case], seed: u64) -> Result<()> {
    let Some(into) = &arguments.into else { return Err(Failure::usage("`--one` needs `--into`")) };
    let case = arguments.at.and_then(|at| cases.get(at));
    let check = match test(arguments, seed) {
        Ok(test) => test.alone().check_one(id, case).map(|check| super::result::found(&check)),
        Err(why) => Some(super::result::not_loaded(&why)),
    };
    let Some(check) = check else {
        return Err(Failure::usage(format!("there is no check `{id}` for this case")));
    };
    std::fs::write(into, check.to_string()).map_err(|error| Failure::io("write", into, &error))
}

/// Runs one check in a process of its own, and says how it ended, whatever it did.
pub fn run(arguments: &Arguments, job: &Job, seed: u64) -> Row {
    let begin = Instant::now();
    match attempt(arguments, job, seed) {
        Ok(row) => Row { seconds: begin.elapsed().as_secs_f64(), ..row },
        Err(error) => {
            let what = format!("the check could not be run: {error}");
            Row::broken(
                job,
                Ended::Failed,
                Problem::new(what, job.check.rule, "free some memory, disk or processes"),
            )
        }
    }
}

fn attempt(arguments: &Arguments, job: &Job, seed: u64) -> std::io::Result<Row> {
    let folder = tempfile::tempdir()?;
    let (into, said, complained) =
        (folder.path().join("result"), folder.path().join("stdout"), folder.path().join("stderr"));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["plugin", "check"])
        .arg(&arguments.file)
        .args(["--one", job.check.id])
        .arg("--into")
        .arg(&into);
    command.args(["--reproduce", &seed.to_string()]);
    command.args(["--timeout", &format!("{}ms", arguments.timeout().as_millis())]);
    if let Some((number, _)) = &job.case {
        command.args(["--at", &number.to_string()]);
    }
    if let Some(cases) = &arguments.cases {
        command.arg("--cases").arg(cases);
    }
    if let Some(settings) = &arguments.settings {
        command.args(["--settings", settings]);
    }
    command.stdin(Stdio::null()).stdout(File::create(&said)?).stderr(File::create(&complained)?);
    let mut child = command.spawn()?;
    let deadline = Instant::now() + arguments.timeout();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if deadline <= Instant::now() => {
                child.kill()?;
                child.wait()?;
                let what = format!(
                    "it did not end within {} s{}",
                    arguments.timeout().as_secs_f64(),
                    tail(&complained)
                );
                let advice = "return from every function of the table; see where it waits: the same with \
                              `--in-process` under a debugger";
                return Ok(Row::broken(job, Ended::TimedOut, Problem::new(what, job.check.rule, advice)));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let found = std::fs::read_to_string(&into).ok().and_then(|text| Row::read(job, &text));
    let mut row = match (found, status.code()) {
        (Some(row), Some(0)) => row,
        (found, _) => ended_badly(job, status, found.is_some(), &tail(&complained)),
    };
    if job.check.id == "process.untouched" && row.result == Ended::Passed {
        let said = std::fs::read(&said)?;
        if !said.is_empty() {
            let text = String::from_utf8_lossy(&said[..said.len().min(80)]).trim().to_owned();
            let what = format!("it wrote {} bytes to standard output: `{text}`", said.len());
            let rule = "no output on standard output, which is the host's";
            row = Row::broken(job, Ended::Failed, Problem::new(what, rule, "use the host's `log`"));
        }
    }
    Ok(row)
}

/// The process of a check did not end as it should.
fn ended_badly(job: &Job, status: ExitStatus, was_over: bool, said: &str) -> Row {
    let when = if was_over { "after the check was over, when the process ended" } else { "in mid-check" };
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let what = format!("its process was ended by {} {when}{said}", name(signal));
            let advice = "see where: the same with `--in-process` under a debugger; build with `-g -fsanitize=address` \
                          to see what led to it";
            Row::broken(job, Ended::Crashed, Problem::new(what, job.check.rule, advice))
        }
        (None, code) => {
            let what = format!("its process ended with exit code {} {when}{said}", code.unwrap_or_default());
            let advice = "report an error instead of calling `exit`: the process is the host's";
            Row::broken(job, Ended::Crashed, Problem::new(what, FORBIDDEN, advice))
        }
    }
}

/// The end of what it wrote to standard error.
fn tail(path: &std::path::Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(64 << 10).read_to_string(&mut text));
    match text.trim_end().lines().rev().take(3).collect::<Vec<_>>() {
        lines if read.is_ok() && !lines.is_empty() => {
            format!("; it said: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" / "))
        }
        _ => String::new(),
    }
}

/// `SIGSEGV (11: memory that is not its own)`.
fn name(signal: i32) -> String {
    let (name, what) = match signal {
        4 => ("SIGILL", "an instruction this machine does not have, or a trap of the compiler"),
        5 => ("SIGTRAP", "a trap of the compiler"),
        6 => ("SIGABRT", "an abort: an uncaught exception, a failed assertion, a broken heap"),
        7 => ("SIGBUS", "memory that is not there"),
        8 => ("SIGFPE", "a division by zero"),
        9 => ("SIGKILL", "from outside, such as a lack of memory"),
        11 => ("SIGSEGV", "memory that is not its own, or a stack that ran over"),
        13 => ("SIGPIPE", "a pipe nobody reads"),
        31 => ("SIGSYS", "a system call that is not allowed"),
        _ => return format!("signal {signal}"),
    };
    format!("{name} ({what})")
}
