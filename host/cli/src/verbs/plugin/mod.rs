//! The verbs about plugins, one file each.

mod check;
mod facts;
mod install;
mod keys;
mod live;
mod ls;
mod new;
mod quarantine;
mod registry;
mod report;
mod root;
mod trust;

pub use ls::{Row, found, manifests, table};
pub use trust::{COMPARE, nothing_lost};

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
        Plugin::Keygen(args) => keys::keygen(context, &args),
        Plugin::Pack(args) => keys::pack(context, &args),
        Plugin::Sign(args) => keys::sign(context, &args),
        Plugin::Verify(args) => install::verify(context, &args),
        Plugin::Install(args) => install::install(context, &args),
        Plugin::Upgrade(args) => install::upgrade(context, &args),
        Plugin::Rollback(args) => install::rollback(context, &args),
        Plugin::Remove(args) => install::remove(context, &args),
        Plugin::Unquarantine(args) => quarantine::lift(context, &args),
        Plugin::Trust(verb) => trust::run(context, verb),
        Plugin::Index(args) => registry::index(context, &args),
    }
}
