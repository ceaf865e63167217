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

/// Also for `--help` and `--version`. Where nobody reads the text there is nothing left to say.
fn not_understood(error: &clap::Error) -> Exit {
    let exit = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    };
    // What was not understood cannot say that it wants JSON; the word can.
    if exit == Exit::Usage && std::env::args_os().any(|word| word == "--json") {
        let text = error.render().to_string();
        let what = text.trim_start_matches("error:").trim();
        let output = Output::new(&args::Global { json: true, ..args::Global::default() });
        output.failure(&exit::Failure::usage(what).code("usage"));
    } else {
        error.print().ok();
    }
    exit
}

fn main() -> ExitCode {
    complete::answer();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error).into(),
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
