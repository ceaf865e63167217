//! `backplane plugin pack`, `install` and the like: what is done with packages.

use crate::complete;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin keygen acme            acme.key, which stays with you, and acme.pub, which you hand out")]
pub struct Keygen {
    /// Whose keys they are, and how their files begin
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin pack target/release/libspeech.so --key acme.key
  backplane plugin pack libspeech.so --with LICENSE --with sbom.json=doc/sbom.json
  backplane plugin pack libspeech.so -o speech.plg          unsigned: sign it where the key is

The same files give the same package. SOURCE_DATE_EPOCH sets when it was built, else the library's own time does.")]
pub struct Pack {
    /// The plugin: its shared library
    pub library: PathBuf,
    /// A file to go with it; `FILE=NAME` packs it under another name
    #[arg(long, value_name = "FILE")]
    pub with: Vec<String>,
    /// Sign it with this secret key
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// Where to [default: <id>-<version>-<os>-<arch>.plg]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin sign speech.plg --key acme.key
  backplane plugin sign speech.plg --key old.key --key new.key     while one key takes the place of the other")]
pub struct Sign {
    /// The package; signatures that it has give way
    pub package: PathBuf,
    /// The secret key
    #[arg(long, value_name = "FILE", required = true)]
    pub key: Vec<PathBuf>,
    /// Where to [default: over the package]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin verify speech.plg
  backplane plugin verify com.acme.speech
  backplane plugin verify                     all that are installed")]
pub struct Verify {
    /// Packages, or ids of installed plugins
    pub what: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin install speech-1.2.0.plg
  backplane plugin install com.acme.speech              from a registry: `backplane plugin trust registry`
  backplane plugin install com.acme.speech@1.1.0")]
pub struct Install {
    /// A package, or `ID[@VERSION]` of a registry
    pub what: String,
    /// The registry, where several have the plugin
    #[arg(long, value_name = "NAME")]
    pub registry: Option<String>,
    /// Agree that it asks for more than the version before, or is signed by somebody else; `--yes` alone does not
    #[arg(long)]
    pub accept_changes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin upgrade                    all that came from a registry
  backplane plugin upgrade com.acme.speech")]
pub struct Upgrade {
    /// The plugins
    #[arg(add = complete::plugins())]
    pub ids: Vec<String>,
    /// As of `install`
    #[arg(long)]
    pub accept_changes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin rollback com.acme.speech               to what was in use before
  backplane plugin rollback com.acme.speech --to 1.0.0
  backplane plugin rollback com.acme.speech --now          answers all requests at once, and not a share first")]
pub struct Rollback {
    /// The plugin
    #[arg(add = complete::plugins())]
    pub id: String,
    /// The version, one of the last three that were in use
    #[arg(long, value_name = "VERSION")]
    pub to: Option<String>,
    /// Let a running server have it without a trial
    #[arg(long)]
    pub now: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin remove com.acme.speech
  backplane plugin remove com.acme.speech@1.0.0        one version that is not in use")]
pub struct Remove {
    /// `ID[@VERSION]`
    #[arg(add = complete::plugins())]
    pub what: String,
}

/// Say whose packages are believed.
#[derive(Debug, Subcommand)]
pub enum Trust {
    /// Trust a key
    #[command(
        after_help = "Examples:\n  backplane plugin trust add acme.pub --plugins 'com.acme.*'\n  backplane plugin trust add ed25519:… --owner acme --plugins 'com.acme.*' --role plugin --role license"
    )]
    Add(TrustAdd),
    /// List the keys that are trusted, and the registries
    #[command(visible_alias = "list")]
    Ls,
    /// Trust a key no more
    #[command(visible_alias = "rm", after_help = "Example:\n  backplane plugin trust remove 3f9a1c20…")]
    Remove {
        /// Id of the key, or how it begins
        id: String,
    },
    /// Install plugins from a registry, whose index this key signs
    #[command(
        after_help = "Examples:\n  backplane plugin trust registry acme https://plugins.acme.com --key acme-index.pub\n  backplane plugin trust registry mirror /srv/plugins --key acme-index.pub\n  backplane plugin trust registry acme --remove"
    )]
    Registry(TrustRegistry),
    /// Believe whom somebody vouches for: a signed list of keys, and the lists that follow it
    #[command(
        after_help = "Examples:\n  backplane plugin trust root acme-root.dsse\n  backplane plugin trust root --remove"
    )]
    Root {
        /// The signed root
        #[arg(required_unless_present = "remove")]
        file: Option<PathBuf>,
        /// Believe nobody's word for others any more
        #[arg(long, conflicts_with = "file")]
        remove: bool,
    },
    /// Sign a root, for others to believe
    MakeRoot(MakeRoot),
    /// Put a list of what was taken back in force
    #[command(after_help = "Example:\n  backplane plugin trust revocations revocations.dsse")]
    Revocations {
        /// The signed list
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct TrustAdd {
    /// A file with the public key, or the key itself: `ed25519:…`
    pub key: String,
    /// Whose it is [default: what its file says]
    #[arg(long)]
    pub owner: Option<String>,
    /// What it may sign: plugin, license, index, revocation
    #[arg(long, value_name = "ROLE", default_values = ["plugin"])]
    pub role: Vec<String>,
    /// The plugins that it speaks for: an id, `com.acme.*` or `*`
    #[arg(long, value_name = "IDS", required = true)]
    pub plugins: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin trust make-root --root a.pub --root b.pub --threshold 2 --verified acme.pub=com.acme.* \\
    --key a.key --key b.key -o root-1.dsse
  backplane plugin trust make-root --after root-1.dsse --root b.pub --root c.pub --threshold 2 \\
    --verified acme.pub=com.acme.* --key a.key --key b.key --key c.key -o root-2.dsse")]
pub struct MakeRoot {
    /// A public key that signs roots from now on
    #[arg(long, value_name = "FILE", required = true)]
    pub root: Vec<PathBuf>,
    /// How many of these sign the next root
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub threshold: usize,
    /// A vendor's public key, and the plugins that it speaks for
    #[arg(long, value_name = "FILE=IDS")]
    pub verified: Vec<String>,
    /// A key of one's own, and the plugins that it speaks for; it may take back anybody's keys and plugins
    #[arg(long, value_name = "FILE=IDS")]
    pub core: Vec<String>,
    /// The root before this one
    #[arg(long, value_name = "FILE")]
    pub after: Option<PathBuf>,
    /// How long it is believed
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    pub days: u32,
    /// The secret keys: enough of the root's before, and of its own
    #[arg(long, value_name = "FILE", required = true)]
    pub key: Vec<PathBuf>,
    /// Where to
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct TrustRegistry {
    /// What it is called here
    pub name: String,
    /// Its address, or its folder
    #[arg(required_unless_present = "remove")]
    pub location: Option<String>,
    /// A file with the public key that signs its index
    #[arg(long, value_name = "FILE", required_unless_present = "remove")]
    pub key: Vec<PathBuf>,
    /// Use it no more
    #[arg(long, conflicts_with_all = ["location", "key"])]
    pub remove: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane plugin index ./registry --key acme-index.key --add speech-1.2.0.plg
  backplane plugin index ./registry --key acme-index.key          sign it anew before it expires
  backplane plugin index ./registry --key acme-index.key --yank com.acme.speech@1.1.0")]
pub struct Index {
    /// The tree; made if it is not there
    pub dir: PathBuf,
    /// The secret key that signs it
    #[arg(long, value_name = "FILE", required = true)]
    pub key: Vec<PathBuf>,
    /// Packages to add
    #[arg(long, value_name = "PACKAGE", num_args = 1..)]
    pub add: Vec<PathBuf>,
    /// A version that nobody is to install any more: `ID@VERSION`
    #[arg(long, value_name = "ID@VERSION")]
    pub yank: Vec<String>,
    /// A signed revocation list that goes with the index from now on
    #[arg(long, value_name = "FILE")]
    pub revocations: Option<PathBuf>,
    /// How long clients believe it: sign it again before
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    pub days: u32,
}
