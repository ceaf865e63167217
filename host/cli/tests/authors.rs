//! The verbs for authors of plugins: `plugin new`, `plugin report`, `plugin check`. What `new` makes is built,
//! checked, served and asked, and so is what docs/writing-plugins.md says line by line.

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
    for word in ["helper", "libgone.so.7", "executable stack", "plugin pack", "/opt/somewhere", "setenv"] {
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

/// Every check of the kit, each in a process of its own.
fn conforms(folder: &Path, library: &Path) {
    let done = run(folder, &["plugin", "check", library.to_str().unwrap(), "--json"]).expect(0);
    let report = done.json();
    assert_eq!(report["ok"], true, "{report}");
    let checks = report["checks"].as_array().unwrap();
    let with = |result: &str| checks.iter().filter(|check| check["result"] == result).count();
    assert!(with("passed") > 35 && with("passed") + with("skipped") == checks.len(), "{report}");
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
    conforms(folder.path(), &library);
    serves(folder.path(), &library);
}

/// What was built when the ABI began loads in every host of its major, whatever came to the header since: this is the header
/// that the first plugins were built with, and stays as it is.
#[test]
fn a_plugin_built_with_the_first_header_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let first = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/headers/backplane-1.0.h");
    let library =
        made(folder.path(), "c", &["sh", "-c", &format!("cp {} backplane.h && make", first.display())]);
    conforms(folder.path(), &library);
    serves(folder.path(), &library);
}

#[test]
fn a_new_plugin_in_cpp_is_built_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let library = made(folder.path(), "cpp", &["make", "CXXFLAGS=-O2 -Werror"]);
    conforms(folder.path(), &library);
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
    conforms(folder.path(), &library);
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

/// A plugin that breaks down in many ways, by the macro FAULT.
fn fault(into: &Path, fault: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugin-api/testkit/tests/fixtures");
    let library = into.join(format!("lib{fault}.so"));
    let output = Command::new("cc")
        .args(["-std=c99", "-shared", "-fPIC", "-fvisibility=hidden", &format!("-DFAULT=\"{fault}\""), "-I"])
        .arg(fixtures.join("../../../include"))
        .arg(fixtures.join("faulty.c"))
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

const UPPER: &str = r#"[{"model":"upper","capability":"com.example.upper",
    "tensors":[{"name":"text","datatype":"BYTES","shape":[2],"data":["one","two"]}]}]"#;

#[test]
fn a_check_that_fails_says_what_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("cases.json");
    std::fs::write(&cases, UPPER).unwrap();
    let library = fault(folder.path(), "finishes_twice");
    let junit = folder.path().join("results.xml");
    let check = |more: &[&str]| {
        let file = library.to_str().unwrap();
        let arguments =
            ["plugin", "check", file, "--cases", cases.to_str().unwrap(), "--include", "stream.repeats"];
        run(folder.path(), &[&arguments[..], more].concat()).expect(1)
    };
    let report = check(&["--json", "--junit", junit.to_str().unwrap(), "--reproduce", "7"]).json();
    let found = &report["checks"][0];
    assert_eq!((&found["id"], &found["result"]), (&"stream.repeats".into(), &"failed".into()), "{report}");
    let problem = &found["problems"][0];
    let header = include_str!("../../../plugin-api/include/backplane.h");
    let line = problem["header"]["line"].as_u64().unwrap() as usize;
    assert!(header.lines().nth(line - 1).unwrap().contains("Ends the request, exactly once"), "{problem}");
    assert_eq!(problem["header"]["section"], "The host's table");
    assert!(problem["todo"].as_str().unwrap().contains("call `finish` once"), "{problem}");
    assert!(found["reproduce"].as_str().unwrap().ends_with("--reproduce 7"), "{found}");
    let xml = std::fs::read_to_string(junit).unwrap();
    assert!(xml.contains("tests=\"1\" failures=\"1\"") && xml.contains("backplane.h:"), "{xml}");
    let text = check(&[]);
    assert!(text.out.contains("FAILED  stream.repeats [upper]") && text.out.contains("to do: "), "{text:?}");
    let text = check(&["--in-process"]);
    assert!(text.out.contains("FAILED  stream.repeats [upper]"), "{text:?}");
}

/// A plugin in C that does something when it is asked, in place of the template's first line of `answer`.
fn spoilt(folder: &Path, does: &str) -> PathBuf {
    let project = folder.join("project");
    run(folder, &["plugin", "new", "x", "--lang", "c", "--path", project.to_str().unwrap()]).expect(0);
    let source = project.join("plugin.c");
    let text = std::fs::read_to_string(&source).unwrap();
    let begin = "  memset(&p, 0, sizeof p);\n  if (!is(";
    assert!(text.contains(begin));
    let text = text.replace(begin, &format!("  {does};\n{begin}"));
    let head = "#include <signal.h>\n#include <unistd.h>\n#include <stdio.h>\n";
    std::fs::write(
        &source,
        text.replacen("#include \"backplane.h\"", &format!("{head}#include \"backplane.h\""), 1),
    )
    .unwrap();
    let built = Command::new("make").current_dir(&project).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    project.join("libx.so")
}

#[test]
fn a_plugin_that_takes_its_process_along_is_told_by_name_and_the_rest_is_done() {
    for (does, result, says) in [
        ("raise(SIGSEGV)", "crashed", "SIGSEGV"),
        ("abort()", "crashed", "SIGABRT"),
        ("_exit(0)", "crashed", "exit code 0"),
        ("exit(3)", "crashed", "exit code 3"),
        ("for (;;) sleep(1)", "timed_out", "2 s"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let library = spoilt(folder.path(), does);
        let arguments =
            ["--include", "stream.repeats", "--include", "abi.entry-with-nulls", "--timeout", "2s"];
        let file = ["plugin", "check", library.to_str().unwrap(), "--json"];
        // A request that never ends is told by the check, if the check has the time.
        let report = run(folder.path(), &[&file[..], &arguments].concat()).expect(1).json();
        let checks = report["checks"].as_array().unwrap();
        assert_eq!(checks[0]["result"], "passed", "{does}: {report}");
        assert!(checks[1]["result"] == result || does.starts_with("for"), "{does}: {report}");
        let problem = &checks[1]["problems"][0];
        let told = problem["what"].as_str().unwrap();
        assert!(
            told.contains(says) || does.starts_with("for") && told.contains("not finished"),
            "{does}: {told}"
        );
        assert!(problem["header"]["line"].as_u64().is_some(), "{does}: {problem}");
    }
}

#[test]
fn what_a_plugin_does_to_its_process_is_told() {
    for (does, says) in [
        ("setenv(\"BACKPLANE_WAS_HERE\", \"1\", 1)", "BACKPLANE_WAS_HERE"),
        ("(void)!chdir(\"/\")", "current folder"),
        ("signal(SIGUSR1, SIG_IGN)", "signals"),
        ("puts(\"hello out there\"); fflush(stdout)", "hello out there"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let library = spoilt(folder.path(), does);
        let arguments =
            ["plugin", "check", library.to_str().unwrap(), "--json", "--include", "process.untouched"];
        let report = run(folder.path(), &arguments).expect(1).json();
        let told = report["checks"][0]["problems"].to_string();
        assert!(told.contains(says), "{does}: {report}");
    }
}

#[test]
fn a_seed_makes_the_same_requests_again() {
    let folder = tempfile::tempdir().unwrap();
    // It breaks down over a request that only chance makes.
    let library = spoilt(
        folder.path(),
        "if (memchr(request->params_json.ptr, '\\\\', request->params_json.len)) abort()",
    );
    let check = |seed: &str| {
        let arguments =
            ["plugin", "check", library.to_str().unwrap(), "--json", "--include", "random.parameters"];
        run(folder.path(), &[&arguments[..], &["--reproduce", seed]].concat()).json()["checks"][0]["result"]
            .clone()
    };
    for seed in ["1", "2"] {
        assert_eq!(check(seed), "crashed");
    }
}

#[test]
fn a_check_takes_no_file_that_is_no_plugin_and_no_pattern_that_fits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["plugin", "check", "/no/such.so"]).expect(3);
    let plain = compile(folder.path(), "plain", "int x;", &[]);
    let done = run(folder.path(), &["plugin", "check", plain.to_str().unwrap()]).expect(1);
    assert!(done.err.contains("an ordinary library"), "{done:?}");
    let code =
        format!("{}int no_such(void);\nint f(void) {{ return no_such(); }}\n", looks_like_a_plugin(MANIFEST));
    let library = compile(folder.path(), "unresolved", &code, &[]);
    let done = run(folder.path(), &["plugin", "check", library.to_str().unwrap(), "--json"]).expect(1);
    assert!(done.out.contains("undefined symbol: no_such"), "{done:?}");
    assert!(done.json()["checks"].as_array().unwrap().len() <= 2, "said once, not by every check: {done:?}");
    let library = fault(folder.path(), "finishes_twice");
    let library = library.to_str().unwrap();
    let done = run(folder.path(), &["plugin", "check", library, "--include", "nothing"]).expect(2);
    assert!(done.err.contains("stream.slow-reader"), "the ids are listed: {done:?}");
    let cases = folder.path().join("cases.json");
    std::fs::write(&cases, r#"[{"model":"m","capability":"c","parms":{}}]"#).unwrap();
    let done =
        run(folder.path(), &["plugin", "check", library, "--cases", cases.to_str().unwrap()]).expect(1);
    assert!(done.err.contains("case 1") && done.err.contains("parms"), "{done:?}");
}

/// docs/writing-plugins.md.
fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/writing-plugins.md"))
        .unwrap()
}

/// The commands of the page that begin with this line.
fn commands(page: &str, begins: &str) -> Vec<String> {
    let block = page.split("```sh\n").skip(1).find(|block| block.starts_with(begins)).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block.lines().map(|line| line.split("  #").next().unwrap().trim().to_owned()).collect()
}

/// Runs commands as they stand, the server beside the others; returns the folder they end in.
fn follow(folder: &Path, from: &Path, commands: &[String]) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_backplane")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut here = from.to_owned();
    let mut servers = Vec::new();
    for line in commands {
        if let Some(into) = line.strip_prefix("cd ") {
            here.push(into);
            continue;
        }
        if let Some(arguments) = line.strip_prefix("backplane serve") {
            let arguments: Vec<_> = arguments.split_whitespace().collect();
            servers.push(Server::start_in(&here, folder, &arguments));
            continue;
        }
        if line.starts_with("cargo ") {
            // What the SDK needs is built once for all runs.
            let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
            std::fs::create_dir_all(&target).unwrap();
            std::os::unix::fs::symlink(target, here.join("target")).unwrap();
        }
        let output = Command::new("sh")
            .args(["-c", line])
            .current_dir(&here)
            .env("PATH", &path)
            .env("BACKPLANE_STATE", folder)
            .env("CARGO_NET_OFFLINE", "true")
            .env_remove("BACKPLANE_ADDR")
            .env_remove("BACKPLANE_API_KEY")
            .env_remove("CARGO_TARGET_DIR")
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        if line.starts_with("backplane infer") {
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(["a", "bee", "sees"].iter().all(|word| out.contains(&format!("\"{word}\""))), "{out}");
            assert!(!servers.is_empty(), "the page serves what it made");
        }
    }
    here
}

#[test]
fn the_page_for_authors_leads_from_nothing_to_a_served_plugin_in_c_and_through_the_kit() {
    let folder = tempfile::tempdir().unwrap();
    let page = page();
    let project =
        follow(folder.path(), folder.path(), &commands(&page, "backplane plugin new word-count --lang c\n"));
    let kit = commands(&page, "backplane plugin check libword_count.so\nbackplane plugin check");
    assert_eq!(kit.len(), 3);
    follow(folder.path(), &project, &kit);
    assert!(project.join("results.xml").exists());
    let (_, cases) = page.split_once("```json\n[\n").unwrap();
    std::fs::write(project.join("cases.json"), format!("[{}", cases.split_once("```").unwrap().0)).unwrap();
    let said =
        ["backplane plugin check libword_count.so --cases cases.json --include stream > said".to_owned()];
    follow(folder.path(), &project, &said);
    let said = std::fs::read_to_string(project.join("said")).unwrap();
    assert!(said.contains("stream.repeats [three words]"), "{said}");

    // To those who run it.
    let all =
        ["backplane plugin keygen", "backplane plugin trust", "sed"].map(|begins| commands(&page, begins));
    follow(folder.path(), &project, &all.concat());
    let ledger = std::fs::read_to_string(folder.path().join("plugins/ledger.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        ledger.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "installed, upgraded, and back: {ledger}");
    assert!(lines.iter().all(|line| line["signer"] != serde_json::Value::Null), "{ledger}");
}

#[test]
fn the_page_for_authors_leads_from_nothing_to_a_served_plugin_in_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = commands(&page(), "backplane plugin new word-count --lang c\n");
    lines[0] = lines[0].replace("--lang c", "--lang cpp");
    follow(folder.path(), folder.path(), &lines);
}

#[test]
fn the_page_for_authors_leads_from_nothing_to_a_served_plugin_in_rust() {
    let folder = tempfile::tempdir().unwrap();
    follow(folder.path(), folder.path(), &commands(&page(), "backplane plugin new word-count --lang rust\n"));
}
