//! `backplane plugin check`: what authors of plugins say to the conformance kit.

use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin check libword_count.so
  backplane plugin check libword_count.so --level abi
  backplane plugin check libword_count.so --cases cases.json --junit results.xml
  backplane plugin check libword_count.so --include 'random.*' --reproduce 1234
  gdb --args backplane plugin check libword_count.so --in-process --include stream.repeats

It runs the plugin, each check in a process of its own, and ends with 1 if the plugin breaks the contract of
backplane.h. A request that works is taken from the first of `examples` in the `input_schema` of a capability.")]
pub struct Check {
    /// The library
    pub file: PathBuf,
    /// How far to go; each level includes those before it
    #[arg(long, value_enum, default_value = "hardened")]
    pub level: KitLevel,
    /// Only these checks: an id, the group before its dot, or with stars
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Not these checks
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Requests that work, a JSON file: [{"model": "m", "capability": "c", "params": {}}]
    #[arg(long, value_name = "FILE")]
    pub cases: Option<PathBuf>,
    /// The plugin's section of the configuration, a JSON object
    #[arg(long, value_name = "JSON")]
    pub settings: Option<String>,
    /// Write the results as JUnit XML too
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Send the same requests at random as a run that showed this seed
    #[arg(long, value_name = "SEED")]
    pub reproduce: Option<u64>,
    /// How long each check may take [default: 45s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Run all in this process, for a debugger
    #[arg(long)]
    pub in_process: bool,
    /// Be the process of this check
    #[arg(long, hide = true)]
    pub one: Option<String>,
    /// With this case
    #[arg(long, hide = true)]
    pub at: Option<usize>,
    /// And leave the result here
    #[arg(long, hide = true)]
    pub into: Option<PathBuf>,
}

impl Check {
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(45))
    }
}

/// How far a plugin is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KitLevel {
    /// Every host of its major can load it
    Abi,
    /// It can serve
    Serving,
    /// It can serve strangers
    Hardened,
}
