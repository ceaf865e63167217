//! `completions`: for shells.

use crate::complete;
use crate::context::Context;
use crate::exit::{Failure, Result};

pub fn run(context: &Context, shell: clap_complete::Shell) -> Result<()> {
    let script =
        complete::script(shell).ok_or_else(|| Failure::failed(format!("there is no script for {shell}")))?;
    context.out.write(&String::from_utf8_lossy(&script));
    Ok(())
}
