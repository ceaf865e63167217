//! A started pipeline. It is asked one sentence at a time, and is ended when it does not answer.

use super::mode::Mode;
use backplane_plugin::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How often it looks whether the caller is still there.
const TICK: Duration = Duration::from_millis(20);
/// A sentence that takes longer is one that the pipeline does not come out of.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer longer than this is none.
const LONGEST: usize = 1 << 20;
/// A sentence longer than this is not asked for. None is: an engine says how long they may be.
const LONGEST_ASKED: usize = 256 << 10;

/// Its programs end with it.
pub struct Pipeline {
    programs: Vec<Child>,
    to: ChildStdin,
    from: ChildStdout,
    patience: Duration,
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
        // Programs that do not read must not hold whoever writes.
        ioctl_fionbio(&to, true)
            .map_err(|error| broken(mode, &format!("its pipe cannot be set up: {error}")))?;
        Ok(Self { programs: std::mem::take(&mut started.0), to, from, patience: PATIENCE })
    }

    /// Gives it a text and waits for what comes out, as long as `check` says that somebody waits for it. After an error it is of
    /// no more use.
    ///
    /// # Errors
    /// When the text is too long, when it does not answer in time, when it has ended, and what `check` says.
    pub fn ask(&mut self, text: &str, check: &dyn Fn() -> Result<()>) -> Result<String> {
        if LONGEST_ASKED < text.len() {
            let message = format!(
                "a sentence is {} bytes long, and Apertium is given {LONGEST_ASKED} at most; end it sooner: `{}…`",
                text.len(),
                text.chars().take(40).collect::<String>()
            );
            return Err(Error::new(Code::OutOfRange, message).with_param("text"));
        }
        let failed = |why: &str| Error::new(Code::Unavailable, why).with_reason("engine_failed");
        let ended = || failed("a program of Apertium has ended");
        let until = Instant::now() + self.patience;
        let asked = [text.as_bytes(), b"\0"].concat();
        let mut unsent = &*asked;
        let mut answer = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            check()?;
            if until <= Instant::now() {
                return Err(failed(&format!("Apertium did not answer within {:?}", self.patience)));
            }
            if LONGEST < answer.len() {
                return Err(failed(&format!("Apertium answered with more than {LONGEST} bytes")));
            }
            // A program may answer before it has read all, and not read on before that is taken.
            let mut waiting = vec![PollFd::new(&self.from, PollFlags::IN)];
            if !unsent.is_empty() {
                waiting.push(PollFd::new(&self.to, PollFlags::OUT));
            }
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
            match poll(&mut waiting, Some(&tick)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(_) => return Err(ended()),
            }
            let [readable, writable] =
                [0, 1].map(|at| waiting.get(at).is_some_and(|fd| !fd.revents().is_empty()));
            if writable {
                match self.to.write(unsent) {
                    Ok(count) => unsent = &unsent[count..],
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => return Err(ended()),
                }
            }
            if !readable {
                continue;
            }
            match self.from.read(&mut buffer) {
                Ok(0) | Err(_) => return Err(ended()),
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
            }
            if unsent.is_empty() && answer.pop_if(|last| *last == 0).is_some() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// One program of the system, which is no program of Apertium's.
    fn pipeline(program: &str, arguments: &[&str]) -> Pipeline {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Pipeline::start(&Mode::of(vec![(program.into(), arguments)])).unwrap()
    }

    fn fails(mut pipeline: Pipeline, text: &str) -> Error {
        pipeline.ask(text, &|| Ok(())).unwrap_err()
    }

    #[test]
    fn more_than_the_pipes_hold_goes_through() {
        // More than two pipes and the buffers of `cat` hold, and nothing is read before all is written.
        let text = "word ".repeat(LONGEST_ASKED / 5);
        assert_eq!(pipeline("/bin/cat", &[]).ask(&text, &|| Ok(())).unwrap(), text);
    }

    #[test]
    fn who_leaves_does_not_wait_for_a_program_that_does_not_read() {
        let text = "word ".repeat(LONGEST_ASKED / 5);
        let looks = Cell::new(0);
        let check = || match looks.replace(looks.get() + 1) {
            20 => Err(Error::cancelled()),
            _ => Ok(()),
        };
        let left = pipeline("/bin/sleep", &["1000"]).ask(&text, &check).unwrap_err();
        assert_eq!(left.code, Code::Cancelled);
    }

    #[test]
    fn a_program_that_hangs_is_waited_for_so_long() {
        for text in ["a word".to_owned(), "word ".repeat(LONGEST_ASKED / 5)] {
            let mut hangs = pipeline("/bin/sleep", &["1000"]);
            hangs.patience = Duration::from_millis(100);
            assert_eq!(fails(hangs, &text).message, "Apertium did not answer within 100ms");
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error_that_says_so() {
        assert_eq!(fails(pipeline("/bin/true", &[]), "a word").message, "a program of Apertium has ended");
        let endless = fails(pipeline("/usr/bin/yes", &[]), "a word").message;
        assert_eq!(endless, "Apertium answered with more than 1048576 bytes");
        let long = fails(pipeline("/bin/cat", &[]), &"word ".repeat(LONGEST_ASKED));
        assert_eq!(long.code, Code::OutOfRange);
        assert!(long.message.starts_with("a sentence is 1310720 bytes long"), "{}", long.message);
    }
}
