//! The server's log: on standard error as configured, and as JSON lines in `<state>/logs/backplane.log`, which
//! `backplane logs` reads.

use crate::exit::{Failure, Result};
use backplane::config::{LogConfig, LogFormat};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// A file is put aside at this size.
const MAX_BYTES: u64 = 16 << 20;
/// How many are kept beside the current one.
const KEPT: u32 = 3;

/// The current log file of a state directory.
pub fn file(state: &Path) -> PathBuf {
    state.join("logs/backplane.log")
}

/// A line on standard error, of the command line itself.
pub fn say(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// Starts to log. Once in a process.
pub fn start(state: &Path, config: &LogConfig, verbose: u8, quiet: bool) -> Result<()> {
    let dir = state.join("logs");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|error| {
        Failure::io("use the state directory: cannot make", &dir, &error)
            .next("choose another with `--state`, or make it writable")
            .code("state_dir")
    })?;
    let path = file(state);
    let rotating = Rotating::open(path.clone(), MAX_BYTES, KEPT).map_err(|error| {
        Failure::io("write", &path, &error)
            .next("choose another state directory with `--state`, or make it writable")
    })?;
    let level = match (verbose, quiet) {
        (0, false) => config.level.as_str(),
        (0, true) => "error",
        (1, _) => "debug",
        _ => "trace",
    };
    let filter = |level: &str| {
        // What the library says of its threads is for who asks for more.
        let level = if level.eq_ignore_ascii_case("info") { "info,actix_server=warn" } else { level };
        EnvFilter::try_new(level)
            .map_err(|error| Failure::failed(format!("`log.level` = {level:?}: {error}")))
    };
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let terminal = fmt::layer().with_writer(io::stderr);
    let terminal = if json { terminal.json().boxed() } else { terminal.with_ansi(colour).boxed() };
    let to_file = fmt::layer().json().with_writer(Mutex::new(rotating));
    tracing_subscriber::registry()
        .with(terminal.with_filter(filter(level)?))
        .with(to_file.with_filter(filter(if verbose == 0 { &config.level } else { level })?))
        .try_init()
        .map_err(|error| Failure::failed(format!("the log cannot be started: {error}")))
}

/// A file that is put aside as `.1`, `.2` … when it is full; the oldest goes.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    file: File,
    written: u64,
    max: u64,
    kept: u32,
}

impl Rotating {
    fn open(path: PathBuf, max: u64, kept: u32) -> io::Result<Self> {
        let file = append(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, max, kept })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let aside = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..self.kept).rev() {
            match fs::rename(aside(number), aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, aside(1))?;
        self.file = append(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A line comes in one call, so none is cut in two. If nothing can be put aside, the file grows.
        if self.max < self.written + bytes.len() as u64 && 0 < self.written {
            self.rotate().ok();
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where a server that was started in the background says why it did not start.
pub fn start_file(state: &Path) -> Result<(PathBuf, File)> {
    let dir = state.join("logs");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|error| {
        Failure::io("make", &dir, &error)
            .next("choose another state directory with `--state`, or make it writable")
    })?;
    let path = dir.join("start.log");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.map(|file| (path.clone(), file)).map_err(|error| Failure::io("write", &path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = Rotating::open(path.clone(), 10, 2).unwrap();
        for line in ["first--\n", "second-\n", "third--\n", "fourth-\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("x.log").as_deref(), Some("fourth-\n"));
        assert_eq!(read("x.log.1").as_deref(), Some("third--\n"));
        assert_eq!(read("x.log.2").as_deref(), Some("second-\n"));
        assert_eq!(read("x.log.3"), None);
        // It goes on where it was.
        let mut log = Rotating::open(path, 10, 2).unwrap();
        log.write_all(b"fifth--\n").unwrap();
        assert_eq!(read("x.log.1").as_deref(), Some("fourth-\n"));
    }
}
