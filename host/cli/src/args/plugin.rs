//! `backplane plugin ...`: its verbs, flags and help texts. Those to write one are in `author.rs` and `check.rs`, those
//! about packages in `package.rs`.

use super::author::{New, Report};
use super::check::Check;
use super::package::{Index, Install, Keygen, Pack, Remove, Rollback, Sign, Trust, Upgrade, Verify};
use clap::{Args, Subcommand};

/// See the plugins, install them, and write them.
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
    /// Make a pair of keys to sign packages or an index with
    Keygen(Keygen),
    /// Pack a plugin's library, to be installed elsewhere
    Pack(Pack),
    /// Sign a package
    Sign(Sign),
    /// Check packages, or what is installed
    Verify(Verify),
    /// Install a package, and put it in use
    Install(Install),
    /// Install the newest versions of a registry
    Upgrade(Upgrade),
    /// Go back to a version that was in use before
    Rollback(Rollback),
    /// Remove an installed package
    #[command(visible_alias = "rm")]
    Remove(Remove),
    /// Let a plugin be started again that crashed again and again
    Unquarantine(Unquarantine),
    /// Say whose packages are believed
    #[command(subcommand)]
    Trust(Trust),
    /// Make or renew a registry: a tree of files that any web server, or none, hands out
    Index(Index),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  backplane plugin unquarantine com.acme.speech")]
pub struct Unquarantine {
    /// Id of the plugin
    pub id: String,
}
