//! `backplane plugin ...`: its verbs, flags and help texts.

use clap::Subcommand;

/// See the plugins.
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// List the plugins, loaded or not, and why not
    #[command(visible_alias = "list")]
    Ls,
}
