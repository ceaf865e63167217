//! What the benchmarks share: rows, medians, CPU clocks, and the parts of the product they measure.
#![allow(dead_code, reason = "each benchmark uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot measure says so and ends")]
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

pub mod wire;

use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What was measured, printed when it is dropped: a table as it stands in `docs/benchmarks.md`, or JSON with `--json`.
pub struct Table {
    subject: &'static str,
    rows: Vec<Value>,
}

/// What a value is held against.
pub enum Against {
    /// It should not be above this.
    AtMost(f64),
    /// It should not be below this.
    AtLeast(f64),
    /// Another way to the same end, measured in the same run.
    Peer(&'static str, f64),
    /// Nothing: it explains another row.
    Nothing,
}

impl Table {
    pub fn new(subject: &'static str) -> Self {
        if cfg!(debug_assertions) {
            eprintln!("warning: this build is not optimised; its figures mean nothing");
        }
        Self { subject, rows: Vec::new() }
    }

    pub fn row(&mut self, name: impl Into<String>, value: f64, unit: &'static str, against: Against) {
        let (peer, limit, base) = match against {
            Against::AtMost(limit) => (json!("at most"), json!(limit), Some(limit)),
            Against::AtLeast(limit) => (json!("at least"), json!(limit), Some(limit)),
            Against::Peer(name, value) => (json!(name), json!(value), Some(value)),
            Against::Nothing => (Value::Null, Value::Null, None),
        };
        let ratio = base.filter(|base| *base != 0.0).map(|base| value / base);
        self.rows.push(json!({
            "subject": self.subject, "name": name.into(), "value": value, "unit": unit, "against": peer,
            "base": limit, "ratio": ratio,
        }));
        progress();
    }
}

/// Says that it goes on, to who watches.
pub fn progress() {
    if std::io::stderr().is_terminal() {
        eprint!(".");
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if std::env::args().any(|argument| argument == "--json") {
            self.rows.iter().for_each(|row| println!("{row}"));
            return;
        }
        let names: Vec<String> =
            self.rows.iter().map(|row| indented(row["name"].as_str().unwrap())).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
        println!("\n| {:<width$} | {:>16} | {:>29} | {:>6} |", self.subject, "value", "bar or peer", "ratio");
        println!("|-{:-<width$}-|-{:->16}:|-{:->29}:|-{:->6}:|", "", "", "", "");
        for (row, name) in self.rows.iter().zip(names) {
            let measured = row["value"].as_f64().unwrap();
            let value = format!("{} {}", short(measured), row["unit"].as_str().unwrap());
            let base = match (row["against"].as_str(), row["base"].as_f64()) {
                (Some("at most"), Some(bar)) => format!("≤ {}{}", short(bar), missed(bar < measured)),
                (Some("at least"), Some(bar)) => format!("≥ {}{}", short(bar), missed(measured < bar)),
                (Some(peer), Some(base)) => format!("{peer} {}", short(base)),
                _ => String::new(),
            };
            let ratio = row["ratio"].as_f64().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            println!("| {name:<width$} | {value:>16} | {base:>29} | {ratio:>6} |");
        }
    }
}

/// What begins with spaces belongs to the row above; Markdown would drop them.
fn indented(name: &str) -> String {
    let part = name.trim_start();
    match (name.len() - part.len()) / 2 {
        0 => part.to_owned(),
        depth => format!("{} {part}", "–".repeat(depth)),
    }
}

fn missed(missed: bool) -> &'static str {
    if missed { ", **missed**" } else { "" }
}

/// Three digits: what is behind them is another one in the next run.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if 99.95 <= large => format!("{value:.0}"),
        middle if 9.995 <= middle => format!("{value:.1}"),
        small if 0.9995 <= small => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The middle of `rounds` results.
pub fn repeat(rounds: usize, mut measure: impl FnMut() -> f64) -> f64 {
    median((0..rounds).map(|_| measure()).collect())
}

/// Seconds of CPU time of this process, all threads.
pub fn cpu() -> f64 {
    seconds(rustix::time::ClockId::ProcessCPUTime)
}

/// Seconds of CPU time of this thread.
pub fn thread_cpu() -> f64 {
    seconds(rustix::time::ClockId::ThreadCPUTime)
}

fn seconds(clock: rustix::time::ClockId) -> f64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds of CPU time of another process, to the nanosecond, without that of threads that have ended.
pub fn cpu_of(pid: u32) -> f64 {
    Threads::of(pid, |_| true).ran
}

/// Seconds of CPU time of another process, with that of threads that have ended, to a tick of the system's clock (10 ms).
pub fn ticks_of(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the program's name, which may hold anything: 11 fields further on are the user's and the system's.
    let fields = text.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// What the scheduler says of some threads, in seconds since each began. A thread that ended is not counted any more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threads {
    /// They computed.
    pub ran: f64,
    /// They could have, but no core was free.
    pub queued: f64,
}

impl Threads {
    /// Those of this process with this name.
    pub fn named(name: &str) -> Self {
        Self::of(std::process::id(), |other| other == name)
    }

    fn of(pid: u32, wanted: impl Fn(&str) -> bool) -> Self {
        let mut sum = Self::default();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            // A thread may end meanwhile.
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            if wanted(read("comm").trim()) {
                let times = read("schedstat");
                let mut times = times.split(' ').filter_map(|nanos| nanos.parse::<f64>().ok());
                sum.ran += times.next().unwrap_or_default() / 1e9;
                sum.queued += times.next().unwrap_or_default() / 1e9;
            }
        }
        sum
    }
}

/// Resident memory of a process in MB (10⁶ bytes).
pub fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// Builds with optimisation and says which file each target became.
pub fn build(arguments: &[&str]) -> Vec<(String, PathBuf)> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--release", "--quiet", "--message-format=json"])
        .args(arguments)
        .current_dir(e2e::root())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "`cargo build {}` failed", arguments.join(" "));
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    messages
        .flat_map(|message| {
            let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
            let files = message["filenames"].as_array().cloned().unwrap_or_default();
            files.into_iter().filter_map(move |file| Some((name.clone(), PathBuf::from(file.as_str()?))))
        })
        .collect()
}

/// What `make build` built. Not built here: another choice of packages has other features, and llama.cpp, which is
/// compiled once for each such choice, takes minutes.
fn released(file: &str) -> PathBuf {
    let path = e2e::root().join("target/release").join(file);
    assert!(path.exists(), "there is no {}: run `make build` first", path.display());
    path
}

/// The optimised `backplane`.
pub fn program() -> PathBuf {
    released("backplane")
}

/// The optimised `backplane-worker`.
pub fn worker() -> PathBuf {
    released("backplane-worker")
}

/// An optimised example of a package: the yardstick of a plugin.
pub fn example(package: &str, name: &str) -> PathBuf {
    let files = build(&["-p", package, "--example", name]);
    files.into_iter().find(|(target, _)| target == name).unwrap().1
}

/// A process that ends with this value.
pub struct Child(pub std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts a server, and waits until it takes connections.
pub fn started(command: &mut Command, address: std::net::SocketAddr) -> Child {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (child, began) = (Child(child), Instant::now());
    while std::net::TcpStream::connect(address).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "a server did not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// An address of this machine with a port that nobody has at the moment.
pub fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A folder with the optimised shared libraries of these packages.
pub fn shipped(packages: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for package in packages {
        let file = released(&format!("lib{}.so", package.replace('-', "_")));
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

/// The same, with the null plugin.
pub fn plugins(packages: &[&str]) -> tempfile::TempDir {
    let (dir, built) = (shipped(packages), build(&["-p", "e2e", "--example", "null"]));
    let null = built.into_iter().map(|(_, file)| file).find(|file| file.ends_with("libnull.so")).unwrap();
    std::fs::copy(&null, dir.path().join("libnull.so")).unwrap();
    dir
}

/// The null plugin's library in a folder of [`plugins`].
pub fn null(dir: &Path) -> PathBuf {
    let path = dir.join("libnull.so");
    assert!(path.exists(), "the null plugin did not build");
    path
}

/// A host that serves these plugins, with or without the models that tests use.
pub struct Running {
    pub host: backplane::Host,
    _state: tempfile::TempDir,
}

pub fn host(plugins: &Path, models: bool, config: &str) -> Running {
    let state = if models { e2e::state_with_models() } else { tempfile::tempdir().unwrap() };
    let file = state.path().join("bench.toml");
    std::fs::write(&file, config).unwrap();
    // Plugins that lie in a folder of a bench's own are nobody's, and the program's are in-process.
    let overrides = vec![("plugins.isolation.\"*\"".to_owned(), "in-process".to_owned())];
    let options = backplane::config::LoadOptions { file: Some(file), overrides, ..Default::default() };
    let config = backplane::Config::load(options).unwrap();
    let builder = backplane::Host::builder().config(config).state_dir(state.path()).plugin_dir(plugins);
    Running { host: builder.start().unwrap(), _state: state }
}

/// Wall seconds of one call.
pub fn timed(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

/// Runs a program to its end and returns the lines that begin with `bench `, as `key=value` pairs.
pub fn yardstick(
    program: &Path,
    arguments: &[&std::ffi::OsStr],
) -> Vec<std::collections::HashMap<String, String>> {
    measured(Command::new(program).args(arguments))
}

/// The same of a command.
pub fn measured(command: &mut Command) -> Vec<std::collections::HashMap<String, String>> {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?} failed");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("bench ")).map(pairs).collect()
}

fn pairs(line: &str) -> std::collections::HashMap<String, String> {
    let mut words = Vec::new();
    let mut quoted = false;
    let mut word = String::new();
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.iter().filter_map(|word| word.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// How long a closed loop runs.
pub const SPAN: Duration = Duration::from_secs(2);
