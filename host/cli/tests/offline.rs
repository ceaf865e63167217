//! What works without a server: exit codes, help, models in the state directory, configuration.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use support::{command, pipe, run};

#[test]
fn every_verb_has_help_and_a_slip_is_wrong_usage() {
    let state = tempfile::tempdir().unwrap();
    for verb in [
        "serve",
        "run",
        "pull",
        "ls",
        "ps",
        "show",
        "cp",
        "rm",
        "stop",
        "plugin",
        "license",
        "embed",
        "infer",
        "key",
        "config",
        "logs",
        "doctor",
        "completions",
    ] {
        let help = run(state.path(), &[verb, "--help"]).expect(0);
        assert!(help.out.contains("Usage: backplane"), "{verb}");
    }
    let slip = run(state.path(), &["sevre"]).expect(2);
    assert!(slip.err.contains("serve"), "{slip:?}");
    run(state.path(), &[]).expect(2);
    run(state.path(), &["ps", "--host", "a b"]).expect(2);
    run(state.path(), &["infer", "echo", "--tensor", "x"]).expect(2);
    let slip = run(state.path(), &["show"]).expect(2);
    assert!(
        slip.err.contains("Usage: backplane show"),
        "no flag is shown as needed that the environment set: {slip:?}"
    );
    let slip = run(state.path(), &["serve", "--port", "9000"]).expect(2);
    assert!(slip.err.contains("--address 127.0.0.1:9000"), "{slip:?}");
    let nothing = run(state.path(), &["embed", "m"]).expect(2);
    assert!(nothing.err.contains("no text to embed"), "{nothing:?}");
    run(state.path(), &["pull", "a", "b", "--name", "c"]).expect(2);
    for arguments in [&["--json", "sevre"][..], &["ls", "--json", "--evrything"], &["rm", "--json"]] {
        let slip = run(state.path(), arguments).expect(2);
        let error: serde_json::Value = serde_json::from_str(&slip.err).unwrap();
        assert_eq!((&error["error"]["code"], &error["error"]["exit"]), (&"usage".into(), &2.into()));
        assert!(error["error"]["message"].as_str().unwrap().contains("Usage: backplane"), "{slip:?}");
    }
}

#[test]
fn what_cannot_be_written_is_a_failure_and_a_reader_that_left_is_none() {
    let state = tempfile::tempdir().unwrap();
    let to = |out: std::process::Stdio| {
        let done = command(state.path()).args(["ls", "--available"]).stdout(out).output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (code, said) = to(full.into());
    assert_eq!(code, 1);
    assert!(said.contains("standard output cannot be written: No space left on device"), "{said}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(to(writer.into()), (0, String::new()));
}

#[test]
fn without_a_server_a_verb_that_needs_one_says_how_to_start_it() {
    let state = tempfile::tempdir().unwrap();
    for arguments in
        [&["ps"][..], &["stop", "x"], &["key", "ls"], &["config", "reload"], &["embed", "x", "y"]]
    {
        let done = run(state.path(), arguments).expect(1);
        assert!(done.err.contains("no server answers") && done.err.contains("backplane serve"), "{done:?}");
    }
    let done = run(state.path(), &["ps", "--json"]).expect(1);
    let error: serde_json::Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["exit"]), (&"no_server".into(), &1.into()));
}

#[test]
fn a_local_model_is_installed_shown_copied_and_removed() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("Tiny Model.gguf");
    std::fs::write(&file, "GGUF, more or less").unwrap();
    let pulled = run(state.path(), &["pull", file.to_str().unwrap()]).expect(0);
    assert!(pulled.out.starts_with("tiny-model installed"), "{pulled:?}");

    let listed = run(state.path(), &["ls"]).expect(0);
    let mut lines = listed.out.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["NAME", "ID", "SIZE", "MODIFIED"]
    );
    assert!(lines.next().unwrap().starts_with("tiny-model"), "{listed:?}");
    assert_eq!(run(state.path(), &["ls", "-q"]).out, "tiny-model\n");

    run(state.path(), &["cp", "tiny-model", "other"]).expect(0);
    let shown = run(state.path(), &["show", "other", "--json"]).expect(0).json();
    assert_eq!((&shown["format"], &shown["size"]), (&"gguf".into(), &18.into()));

    // A name of the configuration's, without a server.
    let aliases = "[models.aliases]\n\"gpt-4o\" = \"other\"\n";
    std::fs::write(state.path().join("backplane.toml"), aliases).unwrap();
    let alias = run(state.path(), &["show", "gpt-4o"]).expect(0);
    assert!(alias.err.contains("`gpt-4o` is another name of `other`"), "{alias:?}");
    assert!(alias.out.starts_with("name          other\n"), "{alias:?}");
    let alias = run(state.path(), &["show", "gpt-4o", "--json"]).expect(0).json();
    assert_eq!((&alias["asked"], &alias["name"]), (&"gpt-4o".into(), &"other".into()));

    // And a route of several models.
    let route = "[models.routes.cascade]\nmodels = [\"tiny-model\", \"other\"]\nescalate_below = 0.5\n";
    std::fs::write(state.path().join("backplane.toml"), route).unwrap();
    let shown = run(state.path(), &["show", "cascade"]).expect(0);
    assert!(shown.out.contains("route         tiny-model, other\n"), "{shown:?}");
    assert!(shown.out.contains("escalate_below") && shown.out.contains("0.5"), "{shown:?}");
    run(state.path(), &["show", "cascada"]).expect(3);

    // What another server has, on this machine too, is asked of that one.
    let other = tempfile::tempdir().unwrap();
    let server = support::Server::start(state.path(), &[]);
    let host = server.said["url"].as_str().unwrap().to_owned();
    let key = std::fs::read_to_string(state.path().join("admin.key")).unwrap();
    let there = |arguments: &[&str]| {
        let mut command = support::command(other.path());
        command.args(arguments).args(["--host", &host]).env("BACKPLANE_API_KEY", key.trim());
        support::Done::of(command.output().unwrap()).expect(0).out
    };
    // A server lists a copy with what it is a copy of.
    assert_eq!(there(&["ls", "-q"]), "tiny-model\n");
    assert!(there(&["show", "tiny-model"]).starts_with("name          tiny-model\n"));
    assert!(there(&["show", "cascade"]).contains("route         tiny-model, other\n"));
    assert_eq!(run(state.path(), &["ls", "-q", "--host", &host]).expect(0).out, "other\ntiny-model\n");
    drop(server);

    let freed = |name: &str| run(state.path(), &["rm", name, "--json"]).expect(0).json()[0]["freed"].as_u64();
    assert_eq!(freed("tiny-model"), Some(0), "the copy still needs the file");
    assert_eq!(freed("other"), Some(18));
    assert_eq!(run(state.path(), &["ls", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn a_model_that_has_no_files_here_is_pulled_and_removed_without_a_word_about_files() {
    let state = tempfile::tempdir().unwrap();
    let card = state.path().join("far.toml");
    let far = "name = 'far'\nformat = 'oip'\n[parameters]\nupstream = { url = 'http://127.0.0.1:9/v2' }\n";
    std::fs::write(&card, far).unwrap();
    let pulled = run(state.path(), &["pull", card.to_str().unwrap()]).expect(0);
    assert!(pulled.out.starts_with("far installed  ") && !pulled.out.contains("sha256"), "{pulled:?}");
    let removed = run(state.path(), &["rm", "far"]).expect(0);
    assert_eq!(removed.err, "far is removed\n");

    // What is here already is told by one line, with its licence, and not file by file.
    let file = state.path().join("here.gguf");
    std::fs::write(&file, "GGUF, more or less").unwrap();
    let card = state.path().join("here.toml");
    let here =
        "name = 'here'\nformat = 'gguf'\nlicence = 'MIT'\n[[files]]\nrole = 'model'\npath = 'here.gguf'\n";
    std::fs::write(&card, here).unwrap();
    for _ in 0..2 {
        let pulled = run(state.path(), &["pull", card.to_str().unwrap()]).expect(0);
        assert!(
            pulled.out.starts_with("here installed  ") && pulled.out.ends_with("  licence MIT\n"),
            "{pulled:?}"
        );
        assert!(!pulled.err.contains("already"), "{pulled:?}");
    }
    run(state.path(), &["rm", "here"]).expect(0);

    // Files that were deleted by hand are nobody's.
    let file = state.path().join("gone.gguf");
    std::fs::write(&file, "GGUF, more or less").unwrap();
    run(state.path(), &["pull", file.to_str().unwrap()]).expect(0);
    std::fs::remove_dir_all(state.path().join("models/blobs")).unwrap();
    assert_eq!(run(state.path(), &["rm", "gone"]).expect(0).err, "gone is removed\n");
}

#[test]
fn what_is_not_there_is_code_3_and_the_near_name_is_given() {
    let state = tempfile::tempdir().unwrap();
    let done = run(state.path(), &["pull", "smolm2"]).expect(3);
    assert!(done.err.contains("did you mean `smollm2`"), "{done:?}");
    for arguments in
        [&["show", "x"][..], &["rm", "x"], &["cp", "x", "y"], &["pull", "/no/such.gguf"], &["logs"]]
    {
        run(state.path(), arguments).expect(3);
    }
    run(state.path(), &["run", "m", "hi", "--format", "no.json"]).expect(3);
}

#[test]
fn a_file_that_is_no_model_is_refused_and_said_to_be_what_it_is() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("model.gguf");
    std::fs::write(&file, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let refused = run(state.path(), &["pull", file.to_str().unwrap(), "--json"]).expect(1);
    let error: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(error["error"]["code"], "model_invalid");
    assert!(error["error"]["message"].as_str().unwrap().contains("Git LFS"), "{error}");
    assert_eq!(run(state.path(), &["ls", "-q"]).expect(0).out, "");
}

#[test]
fn offline_nothing_is_downloaded() {
    let state = tempfile::tempdir().unwrap();
    let done = run(state.path(), &["pull", "--offline", "smollm2"]).expect(1);
    assert!(done.err.contains("offline") && done.err.contains("--offline"), "{done:?}");
    let plan = run(state.path(), &["pull", "--dry-run", "--json", "smollm2"]).expect(0).json();
    assert_eq!(plan[0]["licence"], "Apache-2.0");
    let available = run(state.path(), &["ls", "--available"]).expect(0);
    assert!(available.out.contains("onnxruntime"), "{available:?}");
}

#[test]
fn a_set_is_pulled_with_its_sizes_and_licences_shown_and_one_question() {
    let state = tempfile::tempdir().unwrap();
    let available = run(state.path(), &["ls", "--available", "--json"]).expect(0).json();
    let sets: Vec<_> = available.as_array().unwrap().iter().filter(|row| row["kind"] == "set").collect();
    let set = sets.iter().find(|set| set["name"] == "task-models").unwrap();
    let plans = run(state.path(), &["pull", "--dry-run", "--json", "task-models"]).expect(0).json();
    let plans = plans.as_array().unwrap();
    let names: Vec<_> = plans.iter().map(|plan| plan["name"].clone()).collect();
    assert_eq!(names, *set["models"].as_array().unwrap());
    let sizes: u64 = plans.iter().map(|plan| plan["size"].as_u64().unwrap()).sum();
    assert_eq!(set["size"], sizes);

    // Nobody is there to be asked: all is shown, and nothing fetched.
    let refused = run(state.path(), &["pull", "task-models"]).expect(1);
    for plan in plans {
        let line = refused.err.lines().find(|line| line.starts_with(plan["name"].as_str().unwrap()));
        assert!(line.unwrap().contains(plan["licence"].as_str().unwrap()), "{refused:?}");
    }
    let without = "nvrtc is of use without a GPU to who writes kernels";
    let gpu = std::path::Path::new("/proc/driver/nvidia/version").exists();
    assert_eq!(refused.err.contains(without), !gpu, "{refused:?}");
    assert!(refused.err.contains("next: run it again with `--yes`"), "{refused:?}");
    assert_eq!(refused.err.matches("error:").count(), 1, "{refused:?}");
    assert_eq!(run(state.path(), &["ls", "--json"]).json(), serde_json::json!([]));

    // A terminal is asked, once.
    let line = format!("{} pull task-models", env!("CARGO_BIN_EXE_backplane"));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]).env("BACKPLANE_STATE", state.path()).env("NO_COLOR", "1");
    let asked = pipe(terminal, "n\n").expect(1);
    assert_eq!(asked.out.matches("[Y/n]").count(), 1, "{asked:?}");
    assert!(asked.out.contains("LicenseRef-NVIDIA-Proprietary"), "{asked:?}");
    assert!(asked.out.contains("was not fetched"), "{asked:?}");

    run(state.path(), &["pull", "task-models", "--name", "mine"]).expect(2);
    let near = run(state.path(), &["pull", "task-model"]).expect(3);
    assert!(near.err.contains("did you mean `task-models`"), "{near:?}");
    let chat = run(state.path(), &["--offline", "pull", "task-models"]).expect(1);
    assert!(chat.err.contains("offline"), "{chat:?}");
}

#[test]
fn the_configuration_is_written_checked_and_shown() {
    let state = tempfile::tempdir().unwrap();
    let written = run(state.path(), &["config", "init", "-"]).expect(0);
    let new = state.path().join("new");
    run(&new, &["config", "init"]).expect(0);
    let mode = std::os::unix::fs::PermissionsExt::mode(&new.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "a state directory is private, whoever makes it");
    assert!(written.out.contains("\n#address = \"127.0.0.1:8484\"\n"), "{written:?}");
    run(state.path(), &["config", "init"]).expect(0);
    let shown = run(state.path(), &["config", "show", "--json"]).expect(0).json();
    assert_eq!(shown["sources"]["models.keep_alive"], "default", "a new file sets nothing");
    let again = run(state.path(), &["config", "init"]).expect(1);
    assert!(again.err.contains("--force"), "{again:?}");
    run(state.path(), &["config", "check"]).expect(0);

    std::fs::write(state.path().join("backplane.toml"), "[server]\nadress = \"x\"\n").unwrap();
    let wrong = run(state.path(), &["config", "check"]).expect(1);
    assert!(wrong.err.contains("adress") && wrong.err.contains("address"), "{wrong:?}");
    for named in
        [&["config", "check", "--config", "/no/such.toml"][..], &["config", "check", "/no/such.toml"]]
    {
        let missing = run(state.path(), named).expect(3);
        assert!(missing.err.contains("there is no such file"), "{missing:?}");
    }
    let named = run(state.path(), &["config", "check", "/dev/null"]).expect(0);
    assert_eq!(named.out, "/dev/null is fine\n");
    run(state.path(), &["config", "check", "/dev/null", "--config", "/no/such.toml"]).expect(2);
    let shown = run(state.path(), &["config", "show", "--config", "/dev/null", "--json"]).expect(0).json();
    assert_eq!(shown["sources"]["server.address"], "environment");
}

#[test]
fn the_doctor_names_what_is_wrong() {
    let state = tempfile::tempdir().unwrap();
    let checks = run(state.path(), &["doctor", "--json"]);
    let find = |what: &str| {
        let checks = checks.json();
        checks.as_array().unwrap().iter().find(|check| check["what"] == what).cloned().unwrap()
    };
    assert_eq!(find("onnxruntime")["fix"], "`backplane pull onnxruntime`");
    assert_eq!(find("models")["verdict"], "warning");
    std::fs::write(state.path().join("backplane.toml"), "nonsense").unwrap();
    let done = run(state.path(), &["doctor"]).expect(1);
    assert!(done.out.contains("bad   config"), "{done:?}");
    // Root writes everywhere but in what the kernel makes up.
    let done = run(std::path::Path::new("/proc/backplane"), &["doctor"]).expect(1);
    assert!(
        done.out.contains("bad   state        /proc/backplane is not there, and cannot be made"),
        "{done:?}"
    );
    assert!(done.out.contains("fix: ") && done.out.contains("`--state`"), "{done:?}");
}

#[test]
fn the_doctor_looks_into_the_state_directory() {
    let state = tempfile::tempdir().unwrap();
    // In the place of a folder that somebody else has left: root could write that one.
    std::os::unix::fs::symlink("/proc/self", state.path().join("run")).unwrap();
    let done = run(state.path(), &["doctor", "--json"]).expect(1).json();
    let found = done.as_array().unwrap().iter().find(|check| check["what"] == "state").unwrap();
    assert_eq!(found["verdict"], "bad", "{found}");
    assert!(found["found"].as_str().unwrap().contains("/run cannot be written"), "{found}");
    assert!(found["fix"].as_str().unwrap().contains("`--state`"), "{found}");
}

#[test]
fn a_shell_completes_verbs_and_names_of_models() {
    let state = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(state.path(), &["completions", shell]).expect(0);
        assert!(script.out.contains("BACKPLANE_COMPLETE"), "{shell}");
    }
    run(state.path(), &["completions", "tcsh"]).expect(2);

    let file = state.path().join("mine.gguf");
    std::fs::write(&file, "GGUF, more or less").unwrap();
    run(state.path(), &["pull", file.to_str().unwrap()]).expect(0);
    // As bash does it: the words, and which of them is typed.
    let complete = |words: &[&str]| {
        let mut command = command(state.path());
        command.env("BACKPLANE_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        let done = command.args(["--", "backplane"]).args(words).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let text = String::from_utf8(done.stdout).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["doc"]), ["doctor"]);
    assert_eq!(complete(&["show", "m"]), ["mine"]);
    let known = complete(&["run", "m"]);
    assert!(["mine", "minilm", "magika"].iter().all(|name| known.contains(&(*name).to_owned())), "{known:?}");
    assert_eq!(complete(&["pull", "task"]), ["task-models"]);
    assert!(complete(&["run", "task"]).is_empty(), "a set is no model to chat with");
    assert_eq!(complete(&["stop", "--ser"]), ["--server"]);
}

#[test]
fn bash_completes_a_name_behind_its_colon() {
    let state = tempfile::tempdir().unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_backplane"));
    // What bash does when Tab is pressed at the end of the line.
    let tab = "source <(backplane completions bash); COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
        _backplane backplane '' ''; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let complete = |line: &str| {
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", tab, "bash", line]).env("PATH", path).env("BACKPLANE_STATE", state.path());
        let done = bash.output().unwrap();
        assert!(done.stderr.is_empty(), "{done:?}");
        String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let tags = complete("backplane pull qwen2.5-coder:");
    assert_eq!(tags, ["0.5b", "1.5b"]);
    assert_eq!(complete("backplane pull qwen2.5-coder:1"), ["1.5b"]);
    assert_eq!(complete("backplane pull minilm onnx"), ["onnxruntime"]);
    assert_eq!(complete("backplane doct"), ["doctor"]);
}

#[test]
fn nothing_to_verify_is_said_and_one_refusal_is_said_once() {
    let state = tempfile::tempdir().unwrap();
    let nothing = run(state.path(), &["plugin", "verify"]).expect(0);
    assert!(nothing.err.contains("no package is installed"), "{nothing:?}");
    let none = run(state.path(), &["plugin", "verify", "none.plg"]).expect(3);
    assert_eq!((none.out.as_str(), none.err.matches("none.plg").count()), ("", 1), "{none:?}");
    let two = run(state.path(), &["plugin", "verify", "none.plg", "nor.plg"]).expect(3);
    assert_eq!(two.out.lines().count(), 2, "{two:?}");
    assert!(two.err.contains("2 of 2 are refused"), "{two:?}");
}

#[test]
fn an_empty_question_is_wrong_usage() {
    let state = tempfile::tempdir().unwrap();
    let mut ask = command(state.path());
    ask.args(["run", "m"]);
    let done = pipe(ask, "\n").expect(2);
    assert!(done.err.contains("nothing to ask"), "{done:?}");
}
