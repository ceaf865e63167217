//! Starts a worker, and says how it ended.

use super::Launch;
use backplane_abi::worker::Channel;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

type Order = (Command, Sender<io::Result<Child>>);

/// Starts the worker's program, with `theirs` as its standard input.
///
/// From a thread that lives as long as this process: a worker asks the system to be ended with its parent, and by that
/// the system means the thread that started it. Without a closure between fork and exec, so that nothing of a program
/// with threads runs there; the worker confines itself.
///
/// # Errors
/// The system's.
pub fn spawn(launch: &Launch, theirs: Channel) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = channel::<Order>();
        let thread = std::thread::Builder::new().name("worker spawner".to_owned()).spawn(move || {
            for (mut command, answer) in queue {
                answer.send(command.spawn()).ok();
            }
        });
        thread.ok().map(|_| orders)
    });
    let mut command = Command::new(&launch.program);
    command
        .arg(&launch.id)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let gone = || io::Error::other("the thread that starts workers is gone");
    let (answer, started) = channel();
    spawner.as_ref().ok_or_else(gone)?.send((command, answer)).map_err(|_| gone())?;
    let mut child = started.recv().map_err(|_| gone())??;
    if let Some(stderr) = child.stderr.take() {
        let plugin = launch.id.clone();
        // Without a thread its words are lost, which is no reason not to serve.
        let _thread = std::thread::Builder::new()
            .name("worker stderr".to_owned())
            .spawn(move || pass_on(&plugin, stderr));
    }
    Ok(child)
}

/// What a plugin prints goes to the log, as far as a person can read it.
fn pass_on(plugin: &str, stderr: ChildStderr) {
    const LINES_PER_SECOND: u32 = 50;
    const LONGEST: usize = 2000;
    let (mut second, mut lines) = (Instant::now(), 0);
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end must not fill our memory.
        match io::Read::take(&mut reader, 64 << 10).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if Duration::from_secs(1) < second.elapsed() {
            if LINES_PER_SECOND < lines {
                let dropped = lines - LINES_PER_SECOND;
                tracing::warn!(plugin, dropped, "the plugin printed too much; lines were dropped");
            }
            (second, lines) = (Instant::now(), 0);
        }
        lines += 1;
        if lines <= LINES_PER_SECOND {
            let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST)]);
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            tracing::info!(target: "plugin", plugin, "stderr: {text}");
        }
    }
}

/// Waits for the end of a worker that should have ended, for a moment; then ends it.
pub fn reap(child: &mut Child, patience: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()
}

/// Why the host ends a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It does not answer to heartbeats.
    Silent,
    /// It does not read what it is told.
    Deaf,
    /// A call took too long.
    Slow,
    /// It keeps a request whose caller left.
    Stuck,
    /// A request of its goes on for too long without a piece of its answer.
    Stalled,
    /// It has more memory than it is granted.
    Memory,
    /// It has more threads than it is granted.
    Threads,
    /// It said that nothing in it can serve any more.
    Broken,
    /// It keeps threads of the machine, and has no request.
    Hoards,
    /// It said what it may not say.
    Protocol(&'static str),
}

impl Why {
    /// For people: "its worker ... and was killed".
    pub fn words(self) -> &'static str {
        match self {
            Why::Silent => "does not answer",
            Why::Deaf => "does not read what it is told",
            Why::Slow => "did not answer a call in time",
            Why::Stuck => "did not give up a request after its caller had left",
            Why::Stalled => "made no progress with a request",
            Why::Memory => "took more memory than it is granted",
            Why::Broken => "said that it cannot serve any more",
            Why::Hoards => "kept threads of the machine without a request",
            Why::Threads => "started more threads than it is granted",
            Why::Protocol(words) => words,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Why::Silent => "silent",
            Why::Deaf => "deaf",
            Why::Slow => "slow",
            Why::Stuck | Why::Stalled => "stuck",
            Why::Memory => "memory",
            Why::Broken => "fatal",
            Why::Hoards => "hoards",
            Why::Threads => "threads",
            Why::Protocol(_) => "protocol",
        }
    }
}

/// How it ended, in a word that can be counted.
pub fn kind(why: Option<Why>, status: Option<ExitStatus>) -> &'static str {
    match (why, status.map(|status| (status.signal(), status.code()))) {
        (Some(why), _) => why.kind(),
        (None, Some((Some(signal), _))) => {
            name(signal).and_then(|words| words.split(' ').next()).unwrap_or("signal")
        }
        (None, Some((None, Some(_)))) => "exit",
        (None, _) => "unknown",
    }
}

/// How it ended, for people: "was killed by SIGSEGV".
pub fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match name(signal) {
            Some(name) => format!("was killed by {name}"),
            None => format!("was killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGSEGV => "SIGSEGV (it touched memory that is not there)",
        libc::SIGABRT => "SIGABRT (it aborted, or overflowed its stack)",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS (it made a system call that the sandbox forbids)",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGTRAP => "SIGTRAP",
        _ => return None,
    })
}
