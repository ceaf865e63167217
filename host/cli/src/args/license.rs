//! `backplane license ...`: its verbs, flags and help texts.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// See, install and issue the licences of commercial plugins.
#[derive(Debug, Subcommand)]
pub enum License {
    /// Check a licence file step by step; needs no server
    #[command(after_help = "Examples:
  backplane license inspect acme.lic
  backplane license inspect acme.lic --for com.acme.trt@3.1.0

Exit codes of this verb: 0 valid, 1 not valid, 2 it ends soon or has ended and grace runs, 3 it is for another
machine, plugin or version")]
    Inspect(Inspect),
    /// Keep licence files, a vendor's revocation list, or its word for what time it is
    #[command(after_help = "Example:\n  backplane license install acme.lic")]
    Install {
        /// The files, as the vendor sent them
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Remove a licence
    #[command(after_help = "Example:\n  backplane license remove lic_42")]
    Remove {
        /// Its id, as `license list` shows it
        id: String,
    },
    /// List the licences
    #[command(visible_alias = "ls")]
    List,
    /// Tell of each commercial plugin how it stands with its licence, by the files on this machine
    #[command(after_help = "Example:\n  backplane license status com.acme.trt")]
    Status {
        /// Only this plugin
        plugin: Option<String>,
    },
    /// Print what a licence for a plugin can be bound to
    #[command(after_help = "Example:\n  backplane license fingerprint com.acme.trt")]
    Fingerprint {
        /// The plugin's id: the same machine looks different to each vendor
        plugin: String,
    },
    /// Tell what licensed plugins were used for
    #[command(args_conflicts_with_subcommands = true)]
    Usage {
        #[command(subcommand)]
        verb: Option<Usage>,
    },
    /// Ask whether a plugin's feature is licensed: exit code 0 if it is, 5 if not
    #[command(after_help = "Example:\n  backplane license check com.acme.trt fp8")]
    Check {
        plugin: String,
        feature: String,
        /// Whose right to it
        #[arg(long, default_value = "default")]
        tenant: String,
    },
    /// The keys whose signatures are believed
    #[command(subcommand)]
    Trust(Trust),
    /// Vendors: make a signing key
    #[command(
        after_help = "Example:\n  backplane license keygen --owner acme-ai --out acme     acme.key, acme.pub"
    )]
    Keygen {
        /// Who signs with it; licences name it as `issuer`
        #[arg(long)]
        owner: String,
        /// Where to: `.key` and `.pub` are added
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
    },
    /// Vendors: sign a licence
    #[command(after_help = "Examples:
  backplane license issue --key acme.key --template basic.toml --set licensee.name=\"Example GmbH\" > example.lic
  backplane license issue --key old.key --key new.key --template basic.toml --out example.lic")]
    Issue(Issue),
    /// Vendors: say what time it is, for a customer whose clock was wrong for so long that licences believe it
    #[command(
        after_help = "Example:\n  backplane license time --key acme.key --install ins_3f9a1c20… --out example.time"
    )]
    Time {
        /// The secret key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The customer's installation: the first line of `license fingerprint`
        #[arg(long, value_name = "ID")]
        install: String,
        /// Where to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Vendors: take licences, keys or packages back; the list is made, or goes on where it was
    #[command(after_help = "Examples:
  backplane license revoke --key acme.key --list acme.dsse lic_1
  backplane license revoke --key acme.key --list acme.dsse --package speech-1.2.0.plg")]
    Revoke(Revoke),
}

/// What licensed plugins were used for.
#[derive(Debug, Subcommand)]
pub enum Usage {
    /// Sign what was used, to be sent to a vendor
    #[command(after_help = "Examples:
  backplane license usage export com.acme.trt > usage.txt
  backplane license usage export 'com.acme.*' --out usage.txt

It has the months, tokens and requests of these plugins and no others, how many tenants there were and not their names.")]
    Export {
        /// Whose plugins: an id, or `com.acme.*`
        #[arg(required = true, value_name = "IDS")]
        plugins: Vec<String>,
        /// Where to [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Vendors: check what a customer sent, and show it
    #[command(after_help = "Example:\n  backplane license usage read usage.txt")]
    Read {
        /// The customer's file
        file: PathBuf,
    },
}

/// The keys whose signatures are believed.
#[derive(Debug, Subcommand)]
pub enum Trust {
    /// List the trusted keys
    #[command(visible_alias = "ls")]
    List,
    /// Trust a key
    #[command(after_help = "Example:\n  backplane license trust add acme.pub --plugins 'com.acme.*'")]
    Add(TrustAdd),
    /// Trust a key no more
    #[command(after_help = "Example:\n  backplane license trust remove 3f9a1c20…")]
    Remove {
        /// Its id, as `license trust list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// The licence file
    pub file: PathBuf,
    /// For which plugin: `com.acme.trt` or `com.acme.trt@3.1.0` [default: what is installed]
    #[arg(long = "for", value_name = "PLUGIN[@VERSION]")]
    pub plugin: Option<String>,
    /// The day that the plugin was built
    #[arg(long, value_name = "DAY", requires = "plugin")]
    pub built: Option<String>,
}

#[derive(Debug, Args)]
pub struct TrustAdd {
    /// The vendor's public key
    pub file: PathBuf,
    /// Whose it is [default: what the file says]
    #[arg(long)]
    pub owner: Option<String>,
    /// What it may sign: `license`, `revocation`, `plugin`, `index`
    #[arg(long = "role", value_name = "ROLE", default_values = ["license", "revocation"])]
    pub roles: Vec<String>,
    /// Which plugins it speaks for, such as `com.acme.*`
    #[arg(long, value_name = "IDS", default_values = ["*"])]
    pub plugins: Vec<String>,
    /// Until when, such as `2028-01-01T00:00:00Z`
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

#[derive(Debug, Args)]
pub struct Issue {
    /// The secret key; two while one takes the place of the other
    #[arg(long = "key", required = true, value_name = "FILE")]
    pub keys: Vec<PathBuf>,
    /// The licence without what each customer has of its own: TOML, or JSON
    #[arg(long, value_name = "FILE")]
    pub template: PathBuf,
    /// A member, such as `exp=2028-01-01T00:00:00Z` or `limits.gpus=2`
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = super::setting)]
    pub members: Vec<(String, String)>,
    /// Where to [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The secret key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The revocation list
    #[arg(long, value_name = "FILE")]
    pub list: PathBuf,
    /// Ids of licences
    pub licenses: Vec<String>,
    /// A signing key of yours that is no longer yours alone
    #[arg(long = "revoke-key", value_name = "ID")]
    pub keys: Vec<String>,
    /// A package of yours that must not run anywhere
    #[arg(long = "package", value_name = "FILE")]
    pub packages: Vec<PathBuf>,
}
