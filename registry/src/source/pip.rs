//! Packages by way of pip, where no index is configured: pip knows proxies, mirrors and passwords that we do not.
//!
//! Only wheels: pip runs the build script of a source archive even to learn its name, and nothing from a package is
//! ever executed. For a source archive pip is asked for its index, and no more.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::uri::Package;
use super::watch::Watch;
use crate::error::{RegistryError, Result};
use crate::settings::Settings;

/// Downloads the package's wheel with pip, working in the folder `work`, and moves it to `to`.
pub(crate) fn download(
    settings: &Settings,
    package: &Package,
    work: &Path,
    to: &Path,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let _ = fs::remove_dir_all(work);
    fs::create_dir_all(work).map_err(RegistryError::io("create", work))?;
    let done = run(settings, package, work, watch).and_then(|()| {
        let wheel = files(work).find(|path| path.extension().is_some_and(|e| e == "whl"));
        let wheel = wheel.ok_or_else(|| failed(package, "pip ended well but left no wheel"))?;
        fs::rename(&wheel, to).map_err(RegistryError::io("move", wheel))
    });
    let _ = fs::remove_dir_all(work);
    done
}

/// The index that pip looks into. It says so in its help.
pub(crate) fn index(settings: &Settings) -> Result<String> {
    let missing = |reason: String| RegistryError::NoPackageClient { reason };
    let mut command = Command::new(&settings.python);
    command.args(["-m", "pip", "download", "--help"]).env("COLUMNS", "1000").stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|error| missing(format!("`{}` cannot be run: {error}", settings.python.display())))?;
    let help = String::from_utf8_lossy(&output.stdout);
    index_in(&help).map(str::to_owned).ok_or_else(|| missing("pip does not say where it looks".into()))
}

/// `--index-url <url>   Base URL of the package index (default https://...). ...`
fn index_in(help: &str) -> Option<&str> {
    let (_, about) = help.split_once("--index-url")?;
    let (_, address) = about.split_once("(default ")?;
    let (address, _) = address.split_once(')')?;
    address.starts_with("https://").then_some(address)
}

fn run(settings: &Settings, package: &Package, work: &Path, watch: &mut Watch<'_>) -> Result<()> {
    let mut command = Command::new(&settings.python);
    command.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--no-cache-dir",
    ]);
    command.args(["--disable-pip-version-check", "--progress-bar=off", "--quiet", "--dest"]);
    command.arg(work);
    command.args(tags(package)?);
    command.arg(format!("{}=={}", package.name, package.version));
    // pip writes what has not fully arrived to its temporary folder: there it is counted, and cleaned away.
    command.env("TMPDIR", work).env("PYTHONNOUSERSITE", "1").stdin(Stdio::null()).stdout(Stdio::null());
    let log_path = work.join("pip.log");
    let log = fs::File::create(&log_path).map_err(RegistryError::io("create", &log_path))?;
    let child = command.stderr(log).spawn().map_err(|error| RegistryError::NoPackageClient {
        reason: format!("`{}` cannot be run: {error}", settings.python.display()),
    })?;
    let mut child = KillOnDrop(child);
    let status = loop {
        if let Some(status) = child.0.try_wait().map_err(RegistryError::io("wait for", &settings.python))? {
            break status;
        }
        watch.downloaded(arrived(work), watch.expected, 0);
        watch.pause(Duration::from_millis(100))?;
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Ok(log) = fs::File::open(&log_path) {
        let _ = log.take(64 << 10).read_to_string(&mut said);
    }
    Err(explain(package, &said, work))
}

/// What pip's words mean.
fn explain(package: &Package, said: &str, work: &Path) -> RegistryError {
    let line =
        said.lines().rev().find(|line| line.starts_with("ERROR:")).or_else(|| said.lines().next_back());
    let line = line.unwrap_or("no reason given").trim_start_matches("ERROR:").trim();
    if said.contains("No module named pip") {
        RegistryError::NoPackageClient { reason: "Python is there without its pip".into() }
    } else if said.contains("No matching distribution") {
        let what = format!("wheel of version {} for this machine", package.version);
        RegistryError::SourceNotFound { source_uri: package.to_string(), what }
    } else if said.contains("No space left on device") {
        RegistryError::DiskFull { path: work.to_owned() }
    } else {
        failed(package, line)
    }
}

fn failed(package: &Package, reason: &str) -> RegistryError {
    RegistryError::Transfer { source_uri: package.to_string(), reason: format!("pip says: {reason}") }
}

/// A wheel that is named is asked for by its tags, whatever Python runs pip:
/// `p-1.0-cp311-cp311-manylinux_2_28_x86_64.whl` is for cp311, ABI cp311, that platform.
fn tags(package: &Package) -> Result<Vec<String>> {
    let Some(file) = &package.file else { return Ok(Vec::new()) };
    let invalid = |reason: &str| RegistryError::InvalidSource {
        source_uri: package.to_string(),
        reason: reason.into(),
    };
    let stem =
        file.strip_suffix(".whl").ok_or_else(|| invalid("its file is neither a .whl nor a .tar.gz"))?;
    let fields: Vec<&str> = stem.rsplitn(4, '-').collect();
    let [platforms, abis, pythons, _] = fields[..] else {
        return Err(invalid("its file is not named as wheels are"));
    };
    let mut tags = Vec::new();
    let mut add = |option: &str, value: &str| tags.extend([option.to_owned(), value.to_owned()]);
    platforms.split('.').for_each(|platform| add("--platform", platform));
    abis.split('.').for_each(|abi| add("--abi", abi));
    let python = pythons.split('.').next().unwrap_or(pythons);
    let digits = python
        .find(|c: char| c.is_ascii_digit())
        .ok_or_else(|| invalid("its file names no Python version"))?;
    add("--implementation", &python[..digits]);
    add("--python-version", &python[digits..]);
    Ok(tags)
}

/// pip does not outlive the pull, however that ends.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Bytes of the package below `folder`. One package is fetched, but for a while it lies there twice: pip copies it from
/// its temporary folder.
fn arrived(folder: &Path) -> u64 {
    let size = |path: PathBuf| match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => arrived(&path),
        Ok(meta) if path.extension().is_some_and(|e| e == "whl") => meta.len(),
        _ => 0,
    };
    files(folder).map(size).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(file: &str) -> Package {
        Package { name: "p".into(), version: "1".into(), file: Some(file.into()) }
    }

    #[test]
    fn pip_says_where_it_looks() {
        let help = "  -i, --index-url <url>  Base URL of the Python Package Index (default https://index.example/simple). This \
                    should point to a repository\n  --extra-index-url <url>  Extra URLs (default none)";
        assert_eq!(index_in(help), Some("https://index.example/simple"));
        assert_eq!(index_in("  --index-url <url>  Base URL (default ftp://x)"), None);
        assert_eq!(index_in("nothing"), None);
    }

    #[test]
    fn a_wheel_is_asked_for_by_its_tags() {
        assert_eq!(
            tags(&package("p-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"))
                .unwrap()
                .join(" "),
            "--platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64 --abi cp311 --implementation cp --python-version 311"
        );
        assert!(tags(&package("p-1.tar.gz")).is_err());
        assert!(tags(&package("p.whl")).is_err());
    }

    #[test]
    fn what_pip_says_becomes_a_named_error() {
        let explain = |said| explain(&package("p.whl"), said, Path::new("/w")).code();
        assert_eq!(
            explain("ERROR: Could not find a version\nERROR: No matching distribution found for p==1"),
            "source_not_found"
        );
        assert_eq!(explain("ERROR: [Errno 28] No space left on device"), "disk_full");
        assert_eq!(explain("/usr/bin/python3: No module named pip"), "no_package_client");
        assert_eq!(explain("ERROR: Connection reset"), "transfer_failed");
    }

    #[test]
    fn a_package_that_lies_there_twice_counts_once() {
        let work = tempfile::tempdir().unwrap();
        let temporary = work.path().join("pip-unpack-x");
        fs::create_dir(&temporary).unwrap();
        fs::write(temporary.join("p.whl"), [0; 100]).unwrap();
        fs::write(work.path().join("p.whl"), [0; 40]).unwrap();
        fs::write(work.path().join("pip.log"), [0; 500]).unwrap();
        assert_eq!(arrived(work.path()), 100);
    }

    #[test]
    fn a_missing_python_is_named() {
        let work = tempfile::tempdir().unwrap();
        let settings = Settings { python: "/nonexistent/python3".into(), ..Settings::default() };
        let mut ignore = |_| {};
        let plain = Package { file: None, ..package("") };
        let error = download(
            &settings,
            &plain,
            &work.path().join("w"),
            &work.path().join("to"),
            &mut Watch::new(&mut ignore, None),
        )
        .unwrap_err();
        assert!(error.to_string().contains("set `BACKPLANE_PYPI_INDEX`"), "{error}");
        assert!(!work.path().join("w").exists());
    }
}
