//! The built program, run on a state directory of its own.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program, with nothing of this machine's settings.
pub fn command(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backplane"));
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

/// How it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    fn of(output: Output) -> Self {
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
