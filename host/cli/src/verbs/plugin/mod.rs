//! The verbs about plugins, one file each.

mod check;
mod ls;
mod new;
mod report;

pub use ls::{Row, found, table};

use crate::args::Plugin;
use crate::context::Context;
use crate::exit::Result;

/// Does what was asked.
pub fn run(context: &Context, verb: Plugin) -> Result<()> {
    match verb {
        Plugin::Ls => ls::run(context),
        Plugin::Check(arguments) => check::run(context, &arguments),
        Plugin::New(arguments) => new::run(context, &arguments),
        Plugin::Report(arguments) => report::run(context, &arguments),
    }
}
