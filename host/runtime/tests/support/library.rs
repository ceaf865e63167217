//! Builds plugins: echo, and two in C: one that takes its time, one with a device. Apart, so that tests inside the crate can use it too.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Compiles `slow.c` to `file` in `dir`, with an id and settings such as `BID_MS=100`.
#[allow(dead_code, reason = "not every test needs it")]
pub fn slow(dir: &Path, file: &str, id: &str, settings: &[&str]) {
    compile("slow.c", dir, file, id, settings);
}

/// Compiles `device.c`, whose file and id are `id`, with settings such as `TAKES=1`.
#[allow(dead_code, reason = "not every test needs it")]
pub fn device(dir: &Path, id: &str, capability: &str, settings: &[&str]) {
    let capability = format!("CAPABILITY=\"{capability}\"");
    compile("device.c", dir, &format!("lib{id}.so"), id, &[settings, &[&capability]].concat());
}

fn compile(source: &str, dir: &Path, file: &str, id: &str, settings: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let built = dir.join(format!("{file}.new"));
    let output = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"])
        .arg(format!("-DID=\"{id}\""))
        .args(settings.iter().map(|setting| format!("-D{setting}")))
        .arg("-I")
        .arg(root.join("plugin-api/include"))
        .arg(root.join("host/runtime/tests/support").join(source))
        .arg("-o")
        .arg(&built)
        .output()
        .expect("`cc` is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // As a person would replace a library that may be in use.
    std::fs::rename(built, dir.join(file)).unwrap();
}

/// Folder that holds the echo plugin and nothing else that is a plugin. Built once: cargo does not order cdylibs before
/// the tests of another package.
pub fn plugins() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "backplane-echo", "--message-format=json"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the echo plugin did not build");
        let library = String::from_utf8(built.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == "backplane_echo")
            .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
            .filter_map(|name| name.as_str().map(PathBuf::from))
            .find(|path| path.extension().is_some_and(|extension| extension == "so"))
            .expect("cargo named no shared library");
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(library, dir.path().join("libecho.so")).unwrap();
        dir
    })
    .path()
    .to_owned()
}
