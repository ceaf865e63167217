//! The libraries that these tests load: compiled, built or copied.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// How a fixture in C is compiled.
#[derive(Clone, Copy)]
pub struct Compile<'a> {
    /// The plugin's id; its capabilities begin so.
    pub id: &'a str,
    /// What is to be wrong with it.
    pub fault: &'a str,
    /// More for the compiler.
    pub flags: &'a [&'a str],
}

impl Default for Compile<'_> {
    fn default() -> Self {
        Self { id: "com.example.upper", fault: "", flags: &[] }
    }
}

/// A folder for what is built here, for as long as this test binary runs.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

fn compile(source: &str, with: &Compile<'_>) -> PathBuf {
    let library = tempfile::Builder::new().suffix(".so").tempfile_in(folder()).unwrap().into_temp_path();
    let quoted = |name: &str, text: &str| format!("-D{name}=\"{text}\"");
    let output = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"])
        .args([quoted("ID", with.id), quoted("MODEL", with.id), quoted("FAULT", with.fault)])
        .args(with.flags)
        .arg("-I")
        .arg(e2e::root().join("plugin-api/include"))
        .arg(e2e::root().join(source))
        .arg("-o")
        .arg(&library)
        .output()
        .expect("`cc` is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library.keep().unwrap()
}

/// A good plugin in C.
pub fn upper(with: &Compile<'_>) -> PathBuf {
    compile("plugin-api/testkit/tests/fixtures/upper.c", with)
}

/// The same, with one of the faults that the conformance kit finds.
pub fn faulty(with: &Compile<'_>) -> PathBuf {
    compile("plugin-api/testkit/tests/fixtures/faulty.c", with)
}

/// A plugin that is wrong for its host.
pub fn wrong(with: &Compile<'_>) -> PathBuf {
    compile("tests/plugins/wrong.c", with)
}

/// The faults there are: every name that `faulty.c` asks for.
pub fn faults() -> Vec<String> {
    let source = fs::read_to_string(e2e::root().join("plugin-api/testkit/tests/fixtures/faulty.c")).unwrap();
    let mut faults: Vec<String> =
        source.split("fault_is(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    faults.sort();
    faults.dedup();
    faults
}

/// The good plugin.
pub fn echo() -> PathBuf {
    e2e::built().plugins.join("libbackplane_echo.so")
}

/// The plugin that panics.
pub fn panics() -> PathBuf {
    static PANICS: OnceLock<PathBuf> = OnceLock::new();
    PANICS.get_or_init(|| library(&["-p", "e2e", "--example", "panics"], &e2e::root(), None)).clone()
}

/// Echo, copied out of the tree as its README says, under another name and with the SDK as its one dependency.
pub fn copied_echo() -> PathBuf {
    let here = e2e::root().join("plugins/echo");
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("src")).unwrap();
    let rename = |text: &str| text.replace("dev.backplane.echo", "com.example.shout");
    for file in fs::read_dir(here.join("src")).unwrap().map(|file| file.unwrap().path()) {
        let text = fs::read_to_string(&file).unwrap();
        fs::write(copy.path().join("src").join(file.file_name().unwrap()), rename(&text)).unwrap();
    }
    let manifest = rename(&fs::read_to_string(here.join("plugin.toml")).unwrap())
        .replace("name = \"echo", "name = \"shout")
        .replace("name = \"shout\"\nversion", "name = \"com.example.shout\"\nversion")
        .replace("capabilities = [\"echo\"]", "capabilities = [\"com.example.shout\"]");
    fs::write(copy.path().join("plugin.toml"), manifest).unwrap();
    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    let cargo = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let sdk = format!("path = \"{}\"", e2e::root().join("plugin-api/sdk").display());
    let cargo = cargo.replace("git = \"https://github.com/backplane/backplane\"", &sdk);
    assert!(cargo.contains(&sdk), "{cargo}");
    fs::write(copy.path().join("Cargo.toml"), cargo).unwrap();
    // The versions that were fetched for this tree are here; a test needs no network.
    fs::copy(e2e::root().join("Cargo.lock"), copy.path().join("Cargo.lock")).unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
    let built = library(&["--offline"], copy.path(), Some(&target));
    let kept = folder().join("libshout.so");
    fs::copy(built, &kept).unwrap();
    kept
}

/// Builds with cargo and says where the library is.
fn library(arguments: &[&str], within: &Path, target: Option<&Path>) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--message-format=json"]).args(arguments).current_dir(within);
    if let Some(target) = target {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let files = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message["target"]["crate_types"].as_array().is_some_and(|t| t.iter().any(|t| t == "cdylib"))
        })
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default());
    let found = files
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .rfind(|file| file.extension() == Some("so".as_ref()));
    found.expect("cargo named no library")
}
