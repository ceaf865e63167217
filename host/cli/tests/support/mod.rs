//! The built program, run on a state directory of its own.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program, with nothing of this machine's settings.
pub fn command(state: &Path) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_backplane")), state)
}

/// As [`command`], of a program that lies elsewhere.
pub fn command_of(program: &Path, state: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["BACKPLANE_ADDR", "BACKPLANE_API_KEY", "BACKPLANE_CONFIG", "BACKPLANE__SERVER__ADDRESS"] {
        command.env_remove(name);
    }
    // Port 9 is discard's: no server of ours is there.
    command
        .env("BACKPLANE_STATE", state)
        .env("NO_COLOR", "1")
        .env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:9");
    command.stdin(Stdio::null());
    command
}

/// The worker, built beside the program: cargo builds none for the tests of another package.
pub fn worker() -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "backplane-worker"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .status()
            .unwrap();
        assert!(built.success(), "the worker did not build");
    });
    Path::new(env!("CARGO_BIN_EXE_backplane")).with_file_name("backplane-worker")
}

/// Runs it to its end.
pub fn run(state: &Path, arguments: &[&str]) -> Done {
    Done::of(command(state).args(arguments).output().unwrap())
}

/// Runs it with this text on standard input.
pub fn pipe(mut command: Command, text: &str) -> Done {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Done::of(child.wait_with_output().unwrap())
}

/// A server on a port of its own; it ends with this value.
pub struct Server {
    pub child: Child,
    /// What it printed.
    pub said: Value,
}

impl Server {
    pub fn start(state: &Path, more: &[&str]) -> Self {
        Self::start_in(Path::new("."), state, more)
    }

    /// In this folder.
    pub fn start_in(folder: &Path, state: &Path, more: &[&str]) -> Self {
        Self::start_of(Path::new(env!("CARGO_BIN_EXE_backplane")), folder, state, more)
    }

    /// A program that lies elsewhere.
    pub fn start_of(program: &Path, folder: &Path, state: &Path, more: &[&str]) -> Self {
        worker();
        let mut child = command_of(program, state)
            .current_dir(folder)
            .args(["serve", "--json", "--address", "127.0.0.1:0"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, said }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub fn end(&mut self) -> Option<i32> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Fails the test unless it ended with this code.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}
