//! `run` against a server that answers from a script and keeps what it was asked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use support::{command, pipe};

/// Knows the models `a` and `b`; answers a chat with the model's name and the number of messages.
struct Scripted {
    address: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Scripted {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || serve(socket, &kept));
            }
        });
        Self { address, asked }
    }

    fn command(&self, state: &Path, arguments: &[&str]) -> Command {
        let mut command = command(state);
        command.env("BACKPLANE_ADDR", &self.address).args(arguments);
        command
    }
}

fn serve(socket: TcpStream, asked: &Mutex<Vec<Value>>) -> Option<()> {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        (0 < reader.read_line(&mut head).ok()?).then_some(())?;
    }
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?;
    let (status, kind, answer) = match path {
        "/healthz" => (200, "application/json", json!({"status": "ok", "version": "0"}).to_string()),
        "/v1/models/a" | "/v1/models/b" => {
            let model = json!({"id": &path[11..], "object": "model", "capabilities": ["chat", "complete"]});
            (200, "application/json", model.to_string())
        }
        "/v1/models/minilm" => {
            let model = json!({"id": "minilm", "object": "model", "capabilities": ["embed"]});
            (200, "application/json", model.to_string())
        }
        "/v1/chat/completions" => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            if body["messages"][0]["content"] == "for ever" {
                return for_ever(&socket);
            }
            let answer = chat(&body);
            asked.lock().unwrap().push(body);
            answer
        }
        _ => (404, "application/json", error("model_not_found", "model is not installed").to_string()),
    };
    write!(
        &socket,
        "HTTP/1.1 {status} x\r\nx-request-id: r1\r\ncontent-type: {kind}\r\nx-route-decision: m; plugin=p; why=\"asked for\"\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len()
    )
    .ok()
}

/// Says the same until nobody listens.
fn for_ever(mut socket: &TcpStream) -> Option<()> {
    write!(socket, "HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").ok()?;
    loop {
        write!(socket, "data: {{\"choices\":[{{\"delta\":{{\"content\":\"again \"}}}}]}}\n\n").ok()?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn error(code: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": "x", "param": null, "code": code}})
}

fn chat(body: &Value) -> (u16, &'static str, String) {
    let messages = body["messages"].as_array().unwrap();
    let text = match messages.last().unwrap()["content"].as_str().unwrap() {
        "refuse" => return (503, "application/json", error("no_memory", "it does not fit").to_string()),
        "spend" => {
            return (429, "application/json", error("insufficient_quota", "the budget is spent").to_string());
        }
        "break" => {
            return (
                200,
                "text/event-stream",
                "data: {\"choices\":[{\"delta\":{\"content\":\"par\"}}]}\n\n".to_owned(),
            );
        }
        "fail" => {
            return (
                200,
                "text/event-stream",
                format!("data: {}\n\n", error("plugin_fault", "it fell over")),
            );
        }
        "cut" => "long {\"name\": \"Gua".to_owned(),
        _ => format!("{} {}", body["model"].as_str().unwrap(), messages.len()),
    };
    let piece = |delta: Value, reason: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
    let events = [
        piece(json!({"role": "assistant"}), Value::Null),
        piece(json!({"content": text}), Value::Null),
        piece(json!({}), json!(if text.starts_with("long") { "length" } else { "stop" })),
        json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}}),
    ];
    let mut stream: String = events.iter().map(|event| format!("data: {event}\n\n: ping\n\n")).collect();
    stream.push_str("data: [DONE]\n\n");
    (200, "text/event-stream", stream)
}

#[test]
fn one_question_is_answered_and_timed() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let done = pipe(server.command(state.path(), &["run", "a", "hello", "-v"]), "from the pipe\n").expect(0);
    assert_eq!(done.out, "a 1\n");
    assert!(
        done.err.contains("2 tok") && done.err.contains("TTFT") && done.err.contains("route m (asked for)"),
        "{done:?}"
    );
    let asked = server.asked.lock().unwrap().remove(0);
    assert_eq!(asked["messages"], json!([{"role": "user", "content": "hello\n\nfrom the pipe"}]));

    let arguments = [
        "run",
        "a",
        "--json",
        "--format",
        "json",
        "--set",
        "temperature=0",
        "--keepalive",
        "5m",
        "--system",
        "s",
        "x",
    ];
    let done = pipe(server.command(state.path(), &arguments), "").expect(0);
    assert_eq!(
        (&done.json()["content"], &done.json()["timings"]["completion_tokens"]),
        (&json!("a 2"), &json!(2))
    );
    let asked = server.asked.lock().unwrap().remove(0);
    assert_eq!(asked["response_format"], json!({"type": "json_object"}));
    assert_eq!((&asked["temperature"], &asked["keep_alive"]), (&json!(0), &json!("5m")));
    assert_eq!(asked["messages"][0], json!({"role": "system", "content": "s"}));
}

#[test]
fn what_became_of_a_stream_is_said_at_its_end_and_timings_to_who_asks() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let ask = |text: &str, more: &[&str]| {
        pipe(server.command(state.path(), &[&["run", "a", text], more].concat()), "")
    };
    assert_eq!(ask("hello", &[]).expect(0).err, "");
    for (text, end, code) in
        [("hello", "done", 0), ("fail", "failed within the stream", 1), ("break", "broke off", 1)]
    {
        let done = ask(text, &["-v"]).expect(code);
        let said = format!("POST /v1/chat/completions: {end} (request ");
        assert!(done.err.contains(&said) && !done.err.contains("completions: 200"), "{done:?}");
    }
}

#[test]
fn an_answer_that_nobody_reads_is_not_waited_for() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let mut child = server
        .command(state.path(), &["run", "a", "for ever"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut read = [0; 12];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"again again ");
    drop(out);
    let begin = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() && begin.elapsed().as_secs() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().ok();
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), done.stderr), (Some(0), Vec::new()));
}

#[test]
fn failures_have_their_exit_codes() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let ask = |model: &str, text: &str| pipe(server.command(state.path(), &["run", model, text]), "");
    assert!(ask("a", "refuse").expect(4).err.contains("it does not fit"));
    assert!(ask("a", "spend").expect(5).err.contains("the budget is spent"));
    assert!(ask("a", "break").expect(1).err.contains("broke off"));
    assert!(ask("a", "fail").expect(1).err.contains("it fell over"));
    assert!(ask("minilm", "x").expect(2).err.contains("cannot chat"));
    assert!(ask("nobody", "x").expect(3).err.contains("not installed"));
    assert!(ask("smolm2", "x").expect(3).err.contains("did you mean `smollm2`"));
}

#[test]
fn an_answer_that_was_cut_off_is_not_passed_off_as_whole() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let ask = |more: &[&str]| pipe(server.command(state.path(), &[&["run", "a", "cut"], more].concat()), "");
    let cut = ask(&["--format", "json"]).expect(1);
    assert_eq!(cut.out, "long {\"name\": \"Gua\n", "what has come is shown");
    assert!(cut.err.contains("cut off") && cut.err.contains("max_tokens"), "{cut:?}");
    let cut = ask(&["--format", "json", "--json"]).expect(1);
    assert_eq!(cut.json()["finish_reason"], "length");
    assert_eq!(serde_json::from_str::<Value>(&cut.err).unwrap()["error"]["code"], "truncated");
    // Text may end anywhere; it is only said.
    assert!(ask(&[]).expect(0).err.contains("cut off"));
    assert_eq!(ask(&["--quiet"]).expect(0).err, "");
}

#[test]
fn what_is_known_of_a_model_is_for_people_unless_they_ask_for_json() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let chat = |more: &[&str]| {
        let arguments = [&["run", "a", "--interactive"], more].concat();
        pipe(server.command(state.path(), &arguments), "/show\n").expect(0)
    };
    assert_eq!(chat(&[]).out, "id            a\nobject        model\ncapabilities  chat, complete\n");
    assert_eq!(chat(&["--json"]).json()["capabilities"], json!(["chat", "complete"]));
}

#[test]
fn another_model_goes_on_with_the_conversation() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let chat =
        |text: &str| pipe(server.command(state.path(), &["run", "a", "--interactive"]), text).expect(0);
    let done = chat("one\n/model b\ntwo\n/save kept\n/clear\nthree\n/bye\nnever\n");
    assert_eq!(done.out, "a 1\n\nb 3\n\nb 1\n\n");
    let said: Vec<Value> = server.asked.lock().unwrap().drain(..).collect();
    let contents: Vec<&str> = said[1]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|message| message["content"].as_str())
        .collect();
    assert_eq!(contents, ["one", "a 1", "two"]);
    assert_eq!(said.len(), 3);

    // It is taken up in another process, with its model.
    let done = chat("/load kept\nfour\n/show messages\n");
    assert!(done.out.starts_with("b 5\n"), "{done:?}");
    assert!(done.out.contains("user: two\nassistant: b 3\nuser: four\n"), "{done:?}");
}

#[test]
fn a_chat_goes_on_after_a_mistake() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    let lines = "refuse\n/model nobody\n/model minilm\n/lod x\n/set parameter seed x\n/set system Be brief.\n\"\"\"several\nlines\"\"\"\n";
    let done = pipe(server.command(state.path(), &["run", "a", "--interactive"]), lines).expect(0);
    for said in [
        "it does not fit",
        "not installed",
        "`minilm` cannot chat; it serves embed",
        "did you mean `/load`",
        "takes a number",
    ] {
        assert!(done.err.contains(said), "{said}: {done:?}");
    }
    // What was refused is not asked again.
    let asked = server.asked.lock().unwrap().pop().unwrap();
    let expected =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "several\nlines"}]);
    assert_eq!(asked["messages"], expected);
}

#[test]
fn on_a_terminal_lines_that_come_at_once_are_all_asked() {
    let (server, state) = (Scripted::start(), tempfile::tempdir().unwrap());
    // `script` has a terminal for the program, and writes what it is given into that.
    let mut script = Command::new("script");
    script.args(["-qec", &format!("'{}' run a", env!("CARGO_BIN_EXE_backplane")), "/dev/null"]);
    script.env("BACKPLANE_ADDR", &server.address).env("BACKPLANE_STATE", state.path()).env("TERM", "xterm");
    script.env_remove("BACKPLANE_CONFIG").env_remove("BACKPLANE_API_KEY");
    let done = pipe(script, "one\ntwo\nthree\n/bye\n").expect(0);
    let asked = server.asked.lock().unwrap();
    let last: Vec<&Value> =
        asked.iter().map(|body| &body["messages"].as_array().unwrap().last().unwrap()["content"]).collect();
    assert_eq!(last, ["one", "two", "three"], "{done:?}");
}
