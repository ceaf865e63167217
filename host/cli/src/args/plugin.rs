//! `backplane plugin ...`: its verbs, flags and help texts. Those for authors are in `author.rs` and
//! `check.rs`.

use super::author::{New, Report};
use super::check::Check;
use clap::Subcommand;

/// See the plugins, and write them.
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// List the plugins, loaded or not, and why not
    #[command(visible_alias = "list")]
    Ls,
    /// Begin a plugin: a project that builds and passes `plugin check`
    New(New),
    /// Run the conformance kit against a plugin's file
    Check(Box<Check>),
    /// Tell all about a plugin's file, without running it
    Report(Report),
}
