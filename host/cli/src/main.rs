//! `backplane`: the command line of a Backplane host.
//!
//! One file per verb lies in `verbs`. `context.rs` knows the state directory, the configuration and the server;
//! `output.rs` is the only way to the terminal; `exit.rs` says what an exit code means.

mod args;
mod chat;
mod client;
mod complete;
mod consent;
mod context;
mod exit;
mod holder;
mod logging;
mod output;
mod progress;
mod repl;
mod slip;
mod sse;
mod text;
mod verbs;

use args::Cli;
use clap::Parser;
use context::Context;
use exit::Exit;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    complete::answer();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return slip::told(error).into(),
    };
    let global = cli.global.with_environment();
    let output = Output::new(&global);
    let context = Context::new(global, output);
    match verbs::run(&context, cli.verb).and_then(|()| context.out.unwritten().map_or(Ok(()), Err)) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            context.out.failure(&failure);
            failure.exit.into()
        }
    }
}
