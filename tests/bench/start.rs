//! From nothing to ready: `backplane serve` as its users start it.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::Against::{AtMost, Nothing};
use support::{Child, Table, median};

const STARTS: usize = 15;

/// What one start took.
struct Start {
    /// Milliseconds until `/readyz` said yes, and of CPU time until then.
    ready: f64,
    cpu: f64,
    /// MB of resident memory half a second later.
    resident: f64,
}

fn main() {
    let home = tempfile::tempdir().unwrap();
    let program = alone(home.path());
    let shipped =
        support::plugins(&["backplane-echo", "backplane-llama", "backplane-onnx", "backplane-remote"]);
    std::fs::remove_file(support::null(shipped.path())).unwrap();
    let none = tempfile::tempdir().unwrap();
    let mut table = Table::new("start");
    for (title, plugins) in
        [("no plugins", none.path()), ("its plugins: echo, llama, onnx, remote", shipped.path())]
    {
        let (mut first, mut later) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let state = tempfile::tempdir().unwrap();
            first.push(start(&program, plugins, state.path()));
            later.push(start(&program, plugins, state.path()));
        }
        for (which, starts) in
            [("first start, which makes the store and a key", first), ("later start", later)]
        {
            let middle = |value: fn(&Start) -> f64| median(starts.iter().map(value).collect());
            table.row(format!("{title}: {which}"), middle(|s| s.ready), "ms", AtMost(50.0));
            table.row("  CPU time until then", middle(|s| s.cpu), "ms", Nothing);
            table.row("  resident memory", middle(|s| s.resident), "MB", AtMost(25.0));
        }
    }
    scan(&mut table, shipped.path());
    let nothing = support::repeat(STARTS, || {
        support::timed(|| _ = Command::new(&program).arg("--version").output().unwrap()) * 1e3
    });
    table.row("the program, only to print its version (floor)", nothing, "ms", Nothing);
}

/// What is read of each plugin before any is loaded: its notes, its symbols, its checksum.
fn scan(table: &mut Table, shipped: &Path) {
    const PLUGINS: usize = 200;
    let size = |path: &Path| path.metadata().unwrap().len() as f64 / 1e6;
    let folder = tempfile::tempdir().unwrap();
    let small = shipped.join("libbackplane_echo.so");
    for number in 0..PLUGINS {
        std::fs::copy(&small, folder.path().join(format!("{number}.so"))).unwrap();
    }
    let each = |folder: &Path, plugins: usize| {
        let once = || {
            let scanned = backplane_registry::plugin::scan(folder);
            assert!(scanned.len() == plugins && scanned.iter().all(|plugin| plugin.result.is_ok()));
        };
        support::repeat(5, || support::timed(once) * 1e3) / plugins as f64
    };
    let what = format!("scan of a folder of {PLUGINS} plugins of {:.1} MB, each", size(&small));
    table.row(what, each(folder.path(), PLUGINS), "ms", AtMost(1.0));
    let alone = tempfile::tempdir().unwrap();
    let large = shipped.join("libbackplane_llama.so");
    std::fs::copy(&large, alone.path().join("large.so")).unwrap();
    let what = format!("  of one of {:.1} MB", size(&large));
    table.row(what, each(alone.path(), 1), "ms", Nothing);
}

/// The program in a folder of its own: beside it, where it was built, lie the plugins that come with it.
fn alone(home: &Path) -> PathBuf {
    let program = home.join("backplane");
    std::fs::copy(support::program(), &program).unwrap();
    program
}

fn start(program: &Path, plugins: &Path, state: &Path) -> Start {
    let address = support::free_address();
    // As those beside the program are.
    std::fs::write(state.join("backplane.toml"), "[plugins.isolation]\n'*' = 'in-process'\n").unwrap();
    let began = Instant::now();
    let mut command = Command::new(program);
    command.arg("serve").arg("--state").arg(state).arg("--plugin-dir").arg(plugins);
    command.env("BACKPLANE__SERVER__ADDRESS", address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Child(command.spawn().unwrap());
    while !is_ready(address) {
        assert!(began.elapsed() < Duration::from_secs(30), "backplane did not get ready");
        std::thread::sleep(Duration::from_micros(200));
    }
    let ready = began.elapsed().as_secs_f64() * 1e3;
    let cpu = support::ticks_of(child.0.id()) * 1e3;
    std::thread::sleep(Duration::from_millis(500));
    Start { ready, cpu, resident: support::resident(child.0.id()) }
}

fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}
