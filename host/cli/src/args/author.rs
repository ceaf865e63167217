//! `backplane plugin new | report`: what authors of plugins say.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin new word-count --lang c
  backplane plugin new word-count --lang rust --sdk ~/src/backplane/plugin-api/sdk
  backplane plugin new word-count --lang cpp --id com.acme.word-count --path ~/plugins/word-count

A project in C or C++ needs a compiler and make, and nothing else; one in Rust needs cargo and the SDK.")]
pub struct New {
    /// Its name: lower-case letters, digits and dashes
    pub name: String,
    /// What it is written in
    #[arg(long, value_enum)]
    pub lang: Language,
    /// Where to; a folder that is not there or empty [default: a folder of that name]
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// Its id, a reversed domain name of yours [default: com.example.NAME]
    #[arg(long)]
    pub id: Option<String>,
    /// The SDK for Rust, a folder [default: that of the checkout this program was built from]
    #[arg(long, value_name = "DIR")]
    pub sdk: Option<PathBuf>,
}

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    C,
    #[value(alias = "c++")]
    Cpp,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin report target/release/libword_count.so
  backplane plugin report libword_count.so --json

It ends with 1 if this host would not load the file.")]
pub struct Report {
    /// The library
    pub file: PathBuf,
}
