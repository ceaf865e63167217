//! The verbs about plugins, one file each.

mod ls;

pub use ls::{Row, found, table};

use crate::args::Plugin;
use crate::context::Context;
use crate::exit::Result;

/// Does what was asked.
pub fn run(context: &Context, verb: Plugin) -> Result<()> {
    match verb {
        Plugin::Ls => ls::run(context),
    }
}
