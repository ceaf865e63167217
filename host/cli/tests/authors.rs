//! The verbs for authors of plugins: `plugin new`, `plugin report`. What `new` makes is built, served and asked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use support::{Server, command, run};

/// Compiles a library in C; `more` are arguments for the compiler.
fn compile(into: &Path, name: &str, code: &str, more: &[&str]) -> PathBuf {
    let source = into.join(format!("{name}.c"));
    std::fs::write(&source, code).unwrap();
    let library = into.join(format!("lib{name}.so"));
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugin-api/include"))
        .arg(&source)
        .arg("-o")
        .arg(&library)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// A library that looks like a plugin, for those who do not run it.
fn looks_like_a_plugin(manifest: &str) -> String {
    format!(
        r#"#include "backplane.h"
__attribute__((visibility("default"))) bp_code bp_entry_v1(const bp_host *h, bp_plugin **o) {{ (void)h; (void)o; return 1; }}
#define MANIFEST "{manifest}"
#define PADDED ((sizeof MANIFEST + 3) / 4 * 4)
__attribute__((section(BP_NOTE_SECTION), used, aligned(4))) static const struct {{
  uint32_t name_size, size, type; char name[12], manifest[PADDED];
}} note = {{sizeof BP_NOTE_NAME, PADDED, BP_NOTE_MANIFEST, BP_NOTE_NAME, MANIFEST}};
"#
    )
}

const MANIFEST: &str =
    "id = 'com.example.x'\\nversion = '1.2.3'\\nabi = '1.0'\\ncapabilities = ['com.example.x']\\n";

#[test]
fn a_report_tells_what_the_file_says_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // A constructor would show that the library was mapped.
    let trap = format!(
        "{}#include <stdlib.h>\n__attribute__((constructor)) static void f(void) {{ abort(); }}\n",
        looks_like_a_plugin(MANIFEST)
    );
    let library = compile(folder.path(), "trap", &trap, &["-fvisibility=hidden"]);
    let report =
        run(folder.path(), &["plugin", "report", library.to_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!(report["manifest"]["id"], "com.example.x");
    assert_eq!(report["exports"], serde_json::json!(["bp_entry_v1"]));
    assert_eq!(report["findings"], serde_json::json!([]));
    assert!(report["compilers"][0].as_str().unwrap().contains("GCC"), "{report}");
    assert_eq!(report["sha256"].as_str().unwrap().len(), 64);
    let glibc = |member: &str| {
        let text = report[member].as_str().unwrap_or_else(|| panic!("{report}")).to_owned();
        let (major, minor) = text.split_once('.').unwrap();
        (major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap())
    };
    assert!(glibc("glibc") <= glibc("glibc_here") && glibc("glibc_here") > (2, 17), "{report}");
    let rules: Vec<_> = report["hosts"].as_array().unwrap().iter().map(|host| &host["rule"]).collect();
    assert_eq!(rules, ["host_same", "host_newer", "abi_major", "platform", "libc"]);

    let text = run(folder.path(), &["plugin", "report", library.to_str().unwrap()]).expect(0).out;
    for word in ["com.example.x 1.2.3", "built for 1.0, needs 1.0", "ABI 1.1 and later", "nothing to look at"]
    {
        assert!(text.contains(word), "{word}:\n{text}");
    }
}

#[test]
fn a_report_names_what_would_go_wrong_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let gone = compile(folder.path(), "gone", "int gone(void) { return 1; }", &["-Wl,-soname,libgone.so.7"]);
    let code = format!(
        "{}int gone(void);\n#include <stdlib.h>\nint helper(void) {{ return setenv(\"A\", \"B\", 1) + gone(); }}\n",
        looks_like_a_plugin(MANIFEST)
    );
    let arguments =
        [gone.to_str().unwrap(), "-Wl,-rpath,/opt/somewhere", "-Wl,-z,execstack", "-Wl,--no-as-needed"];
    let library = compile(folder.path(), "messy", &code, &arguments);
    let done = run(folder.path(), &["plugin", "report", library.to_str().unwrap(), "--json"]).expect(1);
    assert!(done.err.contains("libgone.so.7"), "{done:?}");
    let report = done.json();
    let findings = report["findings"].to_string();
    for word in ["helper", "libgone.so.7", "executable stack", "/opt/somewhere", "setenv"] {
        assert!(findings.contains(word), "{word}: {findings}");
    }
    assert_eq!(report["unexpected_exports"], serde_json::json!(["helper"]));
}

#[test]
fn a_report_says_what_older_hosts_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = MANIFEST.replace("1.0'", "1.7'\\nmin_host_minor = 5");
    let library = compile(folder.path(), "newer", &looks_like_a_plugin(&manifest), &["-fvisibility=hidden"]);
    let done = run(folder.path(), &["plugin", "report", library.to_str().unwrap(), "--json"]).expect(1);
    assert!(done.err.contains("1.5 or later") && done.err.contains("upgrade the host"), "{done:?}");
    let report = done.json();
    let hosts = report["hosts"].as_array().unwrap();
    let seen: Vec<_> = hosts
        .iter()
        .map(|host| {
            (
                host["which"].as_str().unwrap(),
                host["loads"].as_bool().unwrap(),
                host["rule"].as_str().unwrap(),
            )
        })
        .take(5)
        .collect();
    assert_eq!(
        seen,
        [
            ("ABI 1.0 to 1.4", false, "host_too_old"),
            ("ABI 1.5 to 1.6", true, "host_older"),
            ("ABI 1.7", true, "host_same"),
            ("ABI 1.8 and later", true, "host_newer"),
            ("ABI 2 and later", false, "abi_major"),
        ]
    );
}

#[test]
fn a_report_of_what_is_no_library_says_so() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["plugin", "report", "/no/such.so"]).expect(3);
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let done = run(folder.path(), &["plugin", "report", text.to_str().unwrap()]).expect(1);
    assert!(done.err.contains("not an ELF file"), "{done:?}");
    let plain = compile(folder.path(), "plain", "int x;", &[]);
    let done = run(folder.path(), &["plugin", "report", plain.to_str().unwrap()]).expect(1);
    assert!(done.err.contains("an ordinary library"), "{done:?}");
}

/// Makes a project, builds it with this command, and returns its library.
fn made(folder: &Path, lang: &str, build: &[&str]) -> PathBuf {
    let project = folder.join("word-count");
    let arguments =
        ["plugin", "new", "word-count", "--lang", lang, "--path", project.to_str().unwrap(), "--json"];
    let said = run(folder, &arguments).expect(0).json();
    let built = Command::new(build[0])
        .args(&build[1..])
        .current_dir(&project)
        .env_remove("CFLAGS")
        .env_remove("CXXFLAGS")
        // One for all runs: what the SDK needs is built once.
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // A newcomer's first build is without a warning.
    assert!(!String::from_utf8_lossy(&built.stderr).contains("warning"), "{built:?}");
    project.join(said["library"].as_str().unwrap())
}

/// Serves a library with the real host and asks it over HTTP, in pieces and wrongly.
fn serves(folder: &Path, library: &Path) {
    let report = run(folder, &["plugin", "report", library.to_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!(report["findings"], serde_json::json!([]), "{report}");
    let mut server = Server::start(folder, &["--plugin-dir", library.parent().unwrap().to_str().unwrap()]);
    let ask = |params: &str| {
        Command::new(env!("CARGO_BIN_EXE_backplane"))
            .args(["infer", "com.example.word-count", "--json", "--params", params])
            .env("BACKPLANE_STATE", folder)
            .env_remove("BACKPLANE_ADDR")
            .env_remove("BACKPLANE_API_KEY")
            .output()
            .unwrap()
    };
    let answer = ask(r#"{"text":"a  \"bee\" s\u00e9es"}"#);
    assert!(answer.status.success(), "{answer:?}");
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let words = serde_json::json!([{"word": "a"}, {"word": "\"bee\""}, {"word": "s\u{e9}es"}]);
    assert_eq!(answer["chunks"], words, "{answer}");
    let long = ask(&format!(r#"{{"text":"{}"}}"#, "x ".repeat(10_001)));
    let error: serde_json::Value = serde_json::from_slice(&long.stderr).unwrap();
    assert_eq!(error["error"]["code"], "text_too_long", "{error}");
    let wrong = ask(r#"{"txt":"a"}"#);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("`txt`"), "{wrong:?}");
    server.signal("TERM");
    assert_eq!(server.end(), Some(0));
}

#[test]
fn a_new_plugin_in_c_is_built_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let library = made(folder.path(), "c", &["make", "CFLAGS=-O2 -Werror"]);
    assert!(begin.elapsed().as_secs() < 60);
    serves(folder.path(), &library);
}

#[test]
fn a_new_plugin_in_cpp_is_built_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let library = made(folder.path(), "cpp", &["make", "CXXFLAGS=-O2 -Werror"]);
    serves(folder.path(), &library);
}

#[test]
fn a_new_plugin_in_rust_is_built_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let library = made(folder.path(), "rust", &[env!("CARGO"), "build", "--offline"]);
    let library =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside/debug").join(library.file_name().unwrap());
    let report =
        run(folder.path(), &["plugin", "report", library.to_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!(report["sdk"], "backplane-plugin 1.0.0");
    assert_eq!(report["panic"], "unwind");
    assert!(report["rustc"].as_str().is_some_and(|rustc| rustc.starts_with("1.")), "{report}");
    serves(folder.path(), &library);
}

#[test]
fn a_new_plugin_spares_what_is_there_and_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("mine"), "").unwrap();
    let done = run(folder.path(), &["plugin", "new", "x", "--lang", "c", "--path", here]).expect(1);
    assert!(done.err.contains("not empty") && done.err.contains("--path"), "{done:?}");
    run(folder.path(), &["plugin", "new", "Bad_Name", "--lang", "c"]).expect(2);
    run(folder.path(), &["plugin", "new", "x", "--lang", "c", "--id", "acme"]).expect(2);
    run(folder.path(), &["plugin", "new", "x", "--lang", "basic"]).expect(2);
    let none = folder.path().join("none");
    let arguments = ["plugin", "new", "x", "--lang", "rust", "--sdk", here, "--path", none.to_str().unwrap()];
    let done = run(folder.path(), &arguments).expect(3);
    assert!(done.err.contains("plugin-api/sdk") && !none.exists(), "{done:?}");
    let project = folder.path().join("other");
    let named = ["plugin", "new", "x", "--lang", "c", "--id", "org.acme.words"];
    command(folder.path()).args(named).args(["--path", project.to_str().unwrap()]).output().unwrap();
    for file in ["plugin.c", "plugin.toml", "README.md"] {
        let text = std::fs::read_to_string(project.join(file)).unwrap();
        assert!(text.contains("org.acme.words") && !text.contains("my-plugin"), "{file}");
    }
}
