//! Every verb of the command line.

use crate::document::Document;
use crate::normalise::{self, Rules};
use crate::shell::{Ask, MODELS, Serving, Shell, write as file};
use e2e::built;

const PLAIN: Ask<'_> =
    Ask { input: None, rules: Rules { machine: false }, words: &[], answer: false, lines: None };
const MACHINE: Ask<'_> = Ask { rules: Rules { machine: true }, ..PLAIN };
const ANSWER: Ask<'_> = Ask { answer: true, ..MACHINE };
const CAPITAL: &str = "What is the capital of France? Answer in one sentence.";

/// What works without a server.
pub fn offline(document: &mut Document, shell: &Shell) {
    document.chapter("The command line, without a server", "");
    document.section("backplane", "");
    shell.run(document, &["--version"], 0);
    let help = shell.run(document, &["--help"], 0);
    shell.run(document, &["sevre"], 2);
    shell.run(document, &["ps", "--jsn"], 2);
    shell.run(document, &["run"], 2);
    shell.run(document, &["ps"], 1);
    shell.run(document, &["ps", "--json"], 1);

    document.section("pull", "Sources have a chapter of their own.");
    shell.run(document, &[&["pull", "--offline"][..], &MODELS].concat(), 0);
    shell.run(document, &["pull", "--dry-run", "--json", "smollm2"], 0);

    document.section("ls", "");
    shell.run(document, &["ls"], 0);
    shell.run(document, &["ls", "-q"], 0);
    shell.run(document, &["ls", "--json"], 0);
    shell.run(document, &["ls", "--available"], 0);

    document.section("show", "");
    shell.run(document, &["show", "smollm2"], 0);
    shell.run(document, &["show", "minilm", "--json"], 0);
    shell.run(document, &["show", "smolm2"], 3);

    document.section("cp", "");
    shell.run(document, &["cp", "smollm2", "gpt-4o"], 0);
    shell.run(document, &["cp", "nobody", "somebody"], 3);

    document.section("rm", "What another name still needs stays on the disk.");
    shell.run(document, &["rm", "gpt-4o"], 0);
    shell.run(document, &["rm", "gpt-4o"], 3);
    shell.run(document, &["rm", "nobody", "--json"], 3);

    document.section("config", "");
    shell.run(document, &["config", "check"], 0);
    let init = Ask { lines: Some(12), ..PLAIN };
    shell.ask(document, &["config", "init", "-"], 0, init);
    shell.run(document, &["config", "init"], 0);
    shell.run(document, &["config", "init"], 1);
    shell.ask(document, &["config", "show"], 0, init);
    shell.ask(document, &["config", "show", "-v"], 0, init);
    shell.ask(document, &["config", "schema"], 0, init);
    let wrong = "[server]\nadress = \"127.0.0.1:0\"\n\n[models]\nmax_queue = \"many\"\n";
    file(shell.folder.path(), "wrong.toml", wrong);
    document.log("`wrong.toml`:", wrong);
    shell.run(document, &["config", "check", "wrong.toml"], 1);
    shell.run(document, &["config", "check", "none.toml"], 3);

    document.section("doctor", "");
    shell.ask(document, &["doctor"], 0, MACHINE);

    document.section("plugin, without a server", "[Packages](packages.md) have a page of their own.");
    shell.run(document, &["plugin", "trust", "ls"], 0);
    shell.run(document, &["plugin", "verify"], 0);
    shell.run(document, &["plugin", "verify", "none.plg"], 3);
    shell.run(document, &["plugin", "install", "com.acme.trt"], 3);
    shell.run(document, &["plugin", "report", "none.so"], 3);
    shell.run(document, &["plugin", "check", "none.so"], 3);
    shell.run(document, &["plugin", "unquarantine", "com.acme.trt"], 3);

    document.section("license", "[Licences](licences.md) have a page of their own.");
    shell.run(document, &["license", "list"], 0);
    shell.run(document, &["license", "status"], 0);
    shell.run(document, &["license", "inspect", "none.lic"], 3);
    shell.run(document, &["license", "usage"], 0);
    shell.run(document, &["license", "time", "--key", "none.key", "--install", "ins_0", "--out", "t"], 3);
    shell.run(document, &["license", "check", "com.acme.trt", "fp8", "--json"], 5);

    document.section("completions", "");
    let script = Ask { lines: Some(5), ..PLAIN };
    for name in ["bash", "zsh", "fish"] {
        shell.ask(document, &["completions", name], 0, script);
    }
    shell.run(document, &["completions", "tcsh"], 2);
    every_verb_is_written_down(&help.out);
}

/// A verb that is added to the program has to be added here.
fn every_verb_is_written_down(help: &str) {
    let here = include_str!("verbs.rs");
    let verbs = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for verb in verbs.lines().filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help")
    {
        assert!(
            here.contains(&format!("[\"{verb}\"")) || verb == "serve",
            "`{verb}` is not in docs/acceptance.md"
        );
    }
}

/// A server's first start and its end.
pub fn serve(document: &mut Document, shell: &Shell) -> Serving {
    document.chapter("The command line, with a server", "");
    document.section("serve", "The first start makes an admin key and shows it once. A SIGTERM ends it.");
    let plugins = built().plugins.to_str().unwrap();
    let mut first = shell.serve(&["--plugin-dir", plugins]);
    let code = first.end();
    let line = format!("backplane serve --plugin-dir {plugins}");
    let banner = normalise::text(&first.out, Rules::default());
    document.step(&line, &banner, &format!("exit {code}"));
    assert_eq!(code, 0);
    shell.serve(&["--plugin-dir", plugins])
}

/// The verb that ends a server, and a server that there is none of.
pub fn stop_server(document: &mut Document, shell: &Shell, mut server: Serving) {
    document.section("The verb", "");
    shell.run(document, &["stop", "--server"], 0);
    assert_eq!(server.wait(), 0);
    shell.run(document, &["stop", "--server"], 1);
}

/// What needs a server.
pub fn served(document: &mut Document, shell: &Shell, server: &Serving) {
    document.section(
        "serve, where it cannot",
        "A port that is taken, a state directory that is, one that cannot be written.",
    );
    let address = server.url.trim_start_matches("http://");
    document.name(address, "127.0.0.1:<port>");
    shell.run(document, &["serve", "--state", "other", "--address", address], 1);
    shell.run(document, &["serve", "--address", "127.0.0.1:0"], 1);
    shell.run(document, &["serve", "--address", address], 1);
    shell.run(document, &["serve", "--state", "/sys/backplane"], 5);
    shell.run(document, &["serve", "--plugin-dir", "nowhere"], 3);
    shell.run(document, &["serve", "--no-auth", "--address", "0.0.0.0:0"], 1);

    run(document, shell);

    document.section("ps", "");
    shell.ask(document, &["ps"], 0, MACHINE);
    shell.ask(document, &["ps", "--json"], 0, MACHINE);

    document.section("rm, of a model that is open", "");
    shell.run(document, &["rm", "smollm2"], 1);

    document.section("show --plan", "");
    shell.ask(document, &["show", "minilm", "--plan"], 0, MACHINE);
    shell.ask(document, &["show", "minilm", "--plan", "--json"], 0, MACHINE);

    document.section("plugin ls", "");
    for plugin in shell.quietly(&["plugin", "ls", "--json"], None).json().as_array().unwrap() {
        document.name(plugin["sha256"].as_str().unwrap(), "<sha256 of the library>");
    }
    shell.run(document, &["plugin", "ls"], 0);
    shell.run(document, &["plugin", "ls", "--json"], 0);

    document.section("embed", "");
    shell.run(document, &["embed", "minilm", "a guitar", "--dimensions", "8"], 2);
    shell.run(document, &["embed", "minilm", "a guitar", "a musical instrument", "--json"], 0);
    shell.ask(document, &["embed", "minilm", "-"], 0, Ask { input: Some("one line\nanother\n"), ..PLAIN });
    shell.run(document, &["embed", "smolm2", "x"], 3);

    document.section("translate", "A file, or standard input; what it is written in is told by its name.");
    let page = "# The house\n\nThe **house** is `big`.\n";
    let translated = Ask { input: Some(page), ..PLAIN };
    shell.ask(
        document,
        &["translate", "--from", "en", "--to", "es", "-", "--format", "markdown"],
        0,
        translated,
    );
    shell.ask(document, &["translate", "--from", "en", "--to", "xx"], 2, translated);
    shell.run(document, &["translate", "--to", "es", "nothing.md"], 3);

    document.section("ocr", "Pages that are read stand in `tests/vision`.");
    shell.run(document, &["ocr", "no-such-page.png"], 3);

    document.section("detect", "");
    shell.run(document, &["detect", "missing.jpg"], 3);
    shell.run(document, &["detect", "a.jpg", "b.jpg", "--draw", "out.png"], 2);

    document.section("classify", "");
    shell.run(document, &["classify", "missing.jpg", "--top", "1"], 3);

    document.section("infer", "Any capability, whether or not the host has heard of it.");
    shell.run(document, &["infer", "echo", "--params", r#"{"text":"hello"}"#], 0);
    shell.run(document, &["infer", "echo", "--params", r#"{"text":"hello","chunks":3}"#, "--stream"], 0);
    shell.run(document, &["infer", "echo", "--tensor", "x=FP32:2,2:[1,2,3,4]", "--json"], 0);
    shell.run(document, &["infer", "echo", "--params", "{"], 2);
    shell.run(document, &["infer", "acme.speech.tts"], 3);

    document.section("key", "A secret is shown once.");
    let key =
        ["key", "create", "web-app", "--requests-per-minute", "60", "--tokens", "100000", "--expires", "30d"];
    shell.run(document, &key, 0);
    let made = shell.quietly(&["key", "create", "laptop", "--json"], None).json();
    let id = made["id"].as_str().unwrap();
    document.name(id, "<key>");
    for key in shell.quietly(&["key", "ls", "--json"], None).json().as_array().unwrap() {
        document.name(key["id"].as_str().unwrap(), "<key>");
    }
    shell.run(document, &["key", "ls"], 0);
    shell.run(document, &["key", "ls", "--json"], 0);
    shell.run(document, &["key", "show"], 0);
    shell.run(document, &["key", "show", "web-app"], 0);
    shell.run(document, &["key", "set", "web-app", "--tokens", "200000", "--window", "month"], 0);
    shell.run(document, &["key", "set", "web-app"], 2);
    shell.run(document, &["key", "revoke", "laptop"], 0);
    shell.run(document, &["key", "revoke", "nobody"], 3);

    document.section("config reload", "");
    let misspelt = "[models.override.smollm2.parameters]\ncontxt = 4096\n";
    file(shell.state.path(), "backplane.toml", misspelt);
    document.log("`$STATE/backplane.toml`:", misspelt);
    let told = shell.run(document, &["config", "reload"], 0);
    assert!(told.out.contains("unknown field `contxt`"), "{told:?}");
    let changed = "[models]\nmax_queue = 128\n";
    file(shell.state.path(), "backplane.toml", changed);
    document.log("`$STATE/backplane.toml`:", changed);
    shell.run(document, &["config", "reload"], 0);
    file(shell.state.path(), "backplane.toml", "[models]\nmax_queue = \"many\"\n");
    shell.run(document, &["config", "reload"], 1);
    file(shell.state.path(), "backplane.toml", changed);

    document.section("stop", "");
    shell.run(document, &["stop", "minilm"], 0);
    shell.run(document, &["stop", "minilm", "--json"], 0);
    shell.run(document, &["stop", "nobody"], 3);

    document.section("logs", "");
    shell.run(document, &["logs", "-n", "1", "configuration reloaded"], 0);
    shell.run(document, &["logs", "-n", "1", "--json", "configuration reloaded"], 0);

    document.section("doctor, with a server", "");
    shell.ask(document, &["doctor"], 0, MACHINE);
}

fn run(document: &mut Document, shell: &Shell) {
    document.section("run", "");
    let answered = shell.ask(document, &["run", "smollm2", CAPITAL, "--set", "temperature=0"], 0, ANSWER);
    assert!(answered.out.contains("Paris"), "{answered:?}");
    let piped = Ask { input: Some("Name three rivers.\n"), ..ANSWER };
    shell.ask(document, &["run", "smollm2", "--set", "max_tokens=8"], 0, piped);
    let json = Ask { words: &["/content", "/timings"], ..MACHINE };
    shell.ask(document, &["run", "smollm2", "hello", "--json", "--set", "max_tokens=4"], 0, json);
    let cut = ["run", "smollm2", "A person", "--format", "json", "--json", "--set", "max_tokens=2"];
    shell.ask(document, &cut, 1, json);
    shell.run(document, &["run", "smolm2", "hello"], 3);
    shell.run(document, &["run", "smollm2", "hello", "--set", "temprature=0"], 2);
    shell.run(document, &["run", "smollm2"], 2);

    document.section("run, a chat", "The commands of the chat, from a pipe. `»` marks what a model said.");
    let chat = "/set system Answer in one word.\n/set parameter temperature 0\n/set parameter max_tokens 6\n\
                /set parameter temprature 1\n/show system\n/show parameters\nWhat is the capital of France?\n\
                /save rivers\n/clear\n/show messages\n/load rivers\n/model minilm\n/model smollm2\n/lod rivers\n/bye\n";
    document.log("`chat.txt`:", chat);
    file(shell.folder.path(), "chat.txt", chat);
    let done = shell.quietly(&["run", "smollm2", "--interactive"], Some(chat));
    assert_eq!(done.code, 0, "{done:?}");
    let saved = std::fs::read_to_string(shell.state.path().join("chats/rivers.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    let said = saved["messages"][2]["content"].as_str().unwrap();
    assert!(!said.trim().is_empty(), "{saved}");
    let hidden = crate::shell::Done { out: done.out.replacen(said, "» <words>", 1), ..done };
    let shown = crate::shell::output(document, &hidden, PLAIN);
    document.step("backplane run smollm2 --interactive < chat.txt", &shown, "exit 0");
}
