//! A started pipeline. It is asked one sentence at a time, and is ended when it does not answer.

use super::super::Work;
use super::mode::Mode;
use backplane_plugin::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How often it looks whether the caller is still there.
const TICK: Duration = Duration::from_millis(20);
/// A sentence that takes longer is one that the pipeline does not come out of.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer longer than this is none.
const LONGEST: usize = 1 << 20;

/// Its programs end with it.
pub struct Pipeline {
    programs: Vec<Child>,
    to: ChildStdin,
    from: ChildStdout,
}

/// Programs that are ended when starting all of them fails.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn end(programs: &mut [Child]) {
    for program in &mut *programs {
        program.kill().ok();
    }
    for program in programs {
        program.wait().ok();
    }
}

impl Pipeline {
    /// Starts the programs of a mode.
    ///
    /// # Errors
    /// `Unavailable` when one cannot be started.
    pub fn start(mode: &Mode) -> Result<Self> {
        let mut started = Started(Vec::new());
        let mut to = None;
        let mut last: Option<ChildStdout> = None;
        for (program, arguments) in &mode.programs {
            let input = last.take().map_or_else(Stdio::piped, Stdio::from);
            let mut child = Command::new(program)
                .args(arguments)
                .env_clear()
                .env("LC_ALL", "C.UTF-8")
                .current_dir("/")
                // Ctrl+C at a terminal is for the host.
                .process_group(0)
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| {
                    broken(mode, &format!("`{}` cannot be started: {error}", program.display()))
                })?;
            to = to.or_else(|| child.stdin.take());
            last = child.stdout.take();
            started.0.push(child);
        }
        let (Some(to), Some(from)) = (to, last) else {
            return Err(broken(mode, "its mode names no program"));
        };
        Ok(Self { programs: std::mem::take(&mut started.0), to, from })
    }

    /// Gives it a text and waits for what comes out. After an error it is of no more use.
    ///
    /// # Errors
    /// When it does not answer in time, the caller has left, or it has ended.
    pub fn ask(&mut self, text: &str, work: &Work<'_>) -> Result<String> {
        let ended =
            || Error::new(Code::Unavailable, "a program of Apertium has ended").with_reason("engine_failed");
        let until = Instant::now() + PATIENCE;
        // What is written fits into the first pipe: nothing is in it, and a sentence is short.
        self.to.write_all(text.as_bytes()).and_then(|()| self.to.write_all(b"\0")).map_err(|_| ended())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            work.check()?;
            if until <= Instant::now() || LONGEST < answer.len() {
                return Err(
                    Error::new(Code::Unavailable, "Apertium did not answer").with_reason("engine_failed")
                );
            }
            let mut waiting = [PollFd::new(&self.from, PollFlags::IN)];
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
            match poll(&mut waiting, Some(&tick)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(_) => return Err(ended()),
            }
            match self.from.read(&mut buffer) {
                Ok(0) | Err(_) => return Err(ended()),
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
            }
            if answer.pop_if(|last| *last == 0).is_some() {
                return String::from_utf8(answer).map_err(|_| ended());
            }
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        end(&mut self.programs);
    }
}

fn broken(mode: &Mode, why: &str) -> Error {
    let message = format!("Apertium's pair `{}` does not run: {why}; install its package again", mode.name);
    Error::new(Code::Unavailable, message).with_reason("engine_failed")
}
