//! `completions`: for shells.

use crate::args::Cli;
use crate::context::Context;
use crate::exit::Result;
use clap::CommandFactory;

pub fn run(context: &Context, shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "backplane", &mut script);
    context.out.write(&String::from_utf8_lossy(&script));
    Ok(())
}
