//! Runs the command line as a person does, in a home of its own, and writes down what happened.

use crate::document::Document;
use crate::normalise::{self, Rules};
use e2e::built;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A person's place: an empty home, a folder to work in, a state directory with the test models.
pub struct Shell {
    pub state: tempfile::TempDir,
    pub folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

/// What is installed.
pub const MODELS: [&str; 4] = ["smollm2", "minilm", "magika", "onnxruntime"];

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// What is asked of a command beside running it.
#[derive(Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Standard input.
    pub input: Option<&'a str>,
    /// How the output is read.
    pub rules: Rules,
    /// Where in the output, as JSON, a model's own words stand: they must be there, and are not compared.
    pub words: &'a [&'a str],
    /// The whole output is a model's own words.
    pub answer: bool,
    /// No more than this many lines of it are shown.
    pub lines: Option<usize>,
}

impl Shell {
    pub fn new(document: &mut Document) -> Self {
        let state = e2e::state_with_models_of(&MODELS);
        let folder = tempfile::tempdir().unwrap();
        document.name(state.path().to_str().unwrap(), "$STATE");
        document.name(folder.path().to_str().unwrap(), "$PWD");
        document.name(built().plugins.to_str().unwrap(), "$PLUGINS");
        let shell = Self { state, folder, variables: Vec::new() };
        // The test models may have been pulled by a program with another catalogue: what they are called, and what is
        // said of them, is to be this one's.
        let pulled = shell.quietly(&[&["pull", "--offline"][..], &MODELS].concat(), None);
        assert_eq!(pulled.code, 0, "{pulled:#?}");
        shell
    }

    /// Sets a variable of the environment for what follows.
    pub fn export(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// The program with nothing of this machine's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&built().program);
        command.env_clear().args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["PATH", "LD_LIBRARY_PATH"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.env("HOME", self.folder.path()).env("BACKPLANE_STATE", self.state.path());
        command.env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:0").envs(self.variables.iter().cloned());
        command
    }

    /// Runs it to its end, expecting this exit code, and writes it down.
    pub fn run(&self, document: &mut Document, arguments: &[&str], code: i32) -> Done {
        self.ask(document, arguments, code, Ask::default())
    }

    pub fn ask(&self, document: &mut Document, arguments: &[&str], code: i32, ask: Ask<'_>) -> Done {
        let done = self.quietly(arguments, ask.input);
        assert_eq!(done.code, code, "{arguments:?}: {done:#?}");
        let line = shown(arguments, ask.input);
        document.step(&line, &output(document, &done, ask), &format!("exit {code}"));
        done
    }

    /// Runs it without a word in the document.
    pub fn quietly(&self, arguments: &[&str], input: Option<&str>) -> Done {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes()).ok();
        let output = child.wait_with_output().unwrap();
        Done {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `serve` in the background, until it is ready.
    pub fn serve(&self, arguments: &[&str]) -> Serving {
        let mut command = self.command(&[&["serve"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut out = String::new();
        for line in lines.by_ref() {
            out.push_str(&line);
            out.push('\n');
            if line.starts_with("page ") {
                break;
            }
        }
        // Its log: read, so that it does not wait for a reader.
        let log = child.stderr.take().unwrap();
        std::thread::spawn(move || BufReader::new(log).lines().map_while(Result::ok).for_each(drop));
        let address = std::fs::read_to_string(self.state.path().join("run/address")).unwrap();
        let key = std::fs::read_to_string(self.state.path().join("admin.key")).unwrap().trim().to_owned();
        Serving { child, out, url: format!("http://{}", address.trim()), key }
    }
}

/// A server in the background.
pub struct Serving {
    child: Child,
    pub out: String,
    pub url: String,
    pub key: String,
}

impl Serving {
    /// Asks it to end, and returns its exit code.
    pub fn end(&mut self) -> i32 {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        self.wait()
    }

    /// Waits until it has ended by itself, and returns its exit code.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("`serve` did not end");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The line that a person would type.
fn shown(arguments: &[&str], input: Option<&str>) -> String {
    let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    let line = format!("backplane {}", words.join(" "));
    match input {
        Some(input) => {
            format!("printf {} | {line}", quoted(&input.replace('\\', "\\\\").replace('\n', "\\n")))
        }
        None => line,
    }
}

pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@,+#$".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What came to standard output, then what came to standard error, marked.
pub fn output(document: &Document, done: &Done, ask: Ask<'_>) -> String {
    let (given_out, given_err) = (document.named(&done.out), document.named(&done.err));
    let mut out = match serde_json::from_str::<Value>(&given_out) {
        Ok(mut value @ (Value::Object(_) | Value::Array(_))) => {
            hide(&mut value, ask.words);
            normalise::json(&value, ask.rules)
        }
        _ if ask.answer => {
            assert!(!done.out.trim().is_empty(), "{done:?}");
            "<answer>".to_owned()
        }
        _ => normalise::text(&given_out, ask.rules),
    };
    if let Some(limit) = ask.lines.filter(|limit| out.lines().count() > *limit) {
        out = out.lines().take(limit).chain(["…"]).collect::<Vec<_>>().join("\n");
    }
    let err = match serde_json::from_str::<Value>(&given_err) {
        Ok(value @ Value::Object(_)) => normalise::json(&value, ask.rules),
        _ => normalise::text(&given_err, ask.rules),
    };
    let marked = err.lines().map(|line| format!("2> {line}"));
    out.lines().map(str::to_owned).chain(marked).collect::<Vec<_>>().join("\n")
}

/// Puts `<words>` where a model's own words, or figures about them, stand; they must be there.
pub fn hide(value: &mut Value, pointers: &[&str]) {
    for pointer in pointers {
        let shown = value.to_string();
        let words = value.pointer_mut(pointer).unwrap_or_else(|| panic!("no `{pointer}` in {shown}"));
        let (is_there, name) = match words {
            Value::String(words) => (!words.is_empty(), "<words>"),
            Value::Number(number) => (number.as_f64() > Some(0.0), "<n>"),
            Value::Array(items) => (!items.is_empty(), "<…>"),
            Value::Object(members) => (!members.is_empty(), "<…>"),
            _ => (false, ""),
        };
        assert!(is_there, "`{pointer}` is empty in {shown}");
        *words = name.into();
    }
}

/// A file in the folder where commands are run.
pub fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
    std::fs::write(folder.join(name), text).unwrap();
}
