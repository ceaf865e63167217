//! `backplane`: the command line of a Backplane host.
//!
//! One file per verb lies in `verbs`. `context.rs` knows the state directory, the configuration and the server;
//! `output.rs` is the only way to the terminal; `exit.rs` says what an exit code means.

mod args;
mod chat;
mod client;
mod consent;
mod context;
mod exit;
mod logging;
mod output;
mod progress;
mod repl;
mod sse;
mod text;
mod verbs;

use args::Cli;
use clap::Parser;
use clap::error::ErrorKind;
use context::Context;
use exit::Exit;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` arrive here too; where nobody reads the text there is nothing left to say.
            error.print().ok();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
                _ => Exit::Usage,
            }
            .into();
        }
    };
    let output = Output::new(&cli.global);
    let context = Context::new(cli.global, output);
    match verbs::run(&context, cli.verb) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            context.out.failure(&failure);
            failure.exit.into()
        }
    }
}
