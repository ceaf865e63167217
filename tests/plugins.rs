//! A stranger's plugins: good ones are served, bad ones are named, and neither harms the others. The real program loads
//! every library of this file in-process; a good plugin in the same process answers throughout.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod plugins {
    pub mod libraries;
}

use e2e::Server;
use plugins::libraries::{self, Compile};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A state directory with nothing in it but a place for plugins.
fn empty_state() -> tempfile::TempDir {
    let state = tempfile::Builder::new().prefix("plugins").tempdir_in(e2e::root().join("target")).unwrap();
    fs::create_dir(state.path().join("plugins")).unwrap();
    state
}

/// Starts with these files in `<state>/plugins`.
fn serve(config: &str, put: impl FnOnce(&Path)) -> Server {
    let state = empty_state();
    put(&state.path().join("plugins"));
    // What they do in a worker is in host/worker/tests.
    Server::start_on(state, &format!("{config}\n[plugins.isolation]\n'*' = 'in-process'\n"))
}

fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    fs::copy(from, to).unwrap();
}

/// The good plugin answers.
fn still_serves(server: &Server) {
    let (status, answer) =
        server.post("/v1/capabilities/echo", &json!({"model": "echo", "params": {"text": "still here"}}));
    assert_eq!((status, &answer["result"]["text"]), (200, &json!("still here")), "{answer}");
    assert_eq!(server.get("/healthz").0, 200);
}

/// Asks a model for its one capability, with little patience.
fn ask(server: &Server, capability: &str, model: &str) -> (u16, Value) {
    let answer = server
        .request("POST", &format!("/v1/capabilities/{capability}"))
        .header("x-request-timeout", "1s")
        .json(&json!({"model": model}))
        .send()
        .unwrap();
    (answer.status().as_u16(), answer.json().unwrap_or_default())
}

fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What `plugin ls --json` says of the file that begins so.
fn problem(plugins: &[Value], file: &str) -> String {
    let found = plugins.iter().find(|plugin| plugin["file"].as_str().is_some_and(|name| name == file));
    let found = found.unwrap_or_else(|| panic!("`{file}` is not listed in {plugins:?}"));
    assert_eq!(found["ready"], false, "{found}");
    let shadowed = || Some(format!("shadowed by {}", found["shadowed_by"].as_str()?));
    found["problem"].as_str().map(str::to_owned).or_else(shadowed).unwrap_or_default()
}

/// A library that is wrong before or while it is loaded: its file, how it is made, what is said of it.
const UNLOADABLE: &[(&str, Make, &str)] = &[
    ("text.so", Make::Text, "not an ELF file; a plugin is a shared library"),
    ("empty.so", Make::Empty, "not an ELF file"),
    ("cut.so", Make::Cut, "truncated: the file ends before the library does; copy it again"),
    ("arm.so", Make::Patched(18, 183), "built for aarch64, this host is"),
    ("bits32.so", Make::Patched(4, 1), "a 32-bit library; this host is 64-bit"),
    ("folder.so", Make::Folder, "not a file"),
    ("library.so", Make::Wrong("", &["-DENTRY=other", "-DNO_NOTE"]), "an ordinary library or program"),
    ("no-entry.so", Make::Wrong("", &["-DENTRY=other"]), "carries a manifest but exports no `bp_entry_v1`"),
    ("no-note.so", Make::Wrong("", &["-DNO_NOTE"]), "carries no manifest; add the note section"),
    (
        "major-2.so",
        Make::Wrong("", &["-DENTRY=bp_entry_v2"]),
        "exports `bp_entry_v2` only; this host speaks ABI 1.0, which is `bp_entry_v1`: upgrade the host",
    ),
    ("unresolved.so", Make::Wrong("", &["-DUNRESOLVED"]), "needs the symbol `a_function_that_nobody_has`"),
    ("refuses.so", Make::Wrong("refuses_the_host", &[]), "refused this host (code 12), which speaks ABI 1.0"),
    ("no-table.so", Make::Wrong("writes_no_table", &[]), "its table has no `struct_size`"),
    ("small.so", Make::Wrong("small_plugin", &[]), "its table has no `struct_size`"),
    ("flag.so", Make::Wrong("required_flag", &[]), "its table has no `struct_size`"),
    (
        "newer.so",
        Make::Wrong("wants_a_newer_host", &[]),
        "needs a host with ABI 1.7 or newer; this host speaks 1.0",
    ),
    ("no-bid.so", Make::Wrong("no_bid", &[]), "its table has no `bid`"),
    ("other-id.so", Make::Wrong("other_id", &[]), "the library says `com.example.somebody-else` 1.0.0"),
    (
        "other-version.so",
        Make::Wrong("other_version", &[]),
        "9.9.9; rebuild it with a plugin.toml that matches",
    ),
    ("init-fails.so", Make::Wrong("init_fails", &[]), "failed to start: the flux capacitor is missing"),
    ("init-silent.so", Make::Wrong("init_fails_silently", &[]), "failed to start: code 13"),
    ("init-hangs.so", Make::Wrong("init_hangs", &[]), "did not finish loading within 10s"),
    ("init-panics.so", Make::Panics, "failed to start: the plugin panicked: asked to panic in init"),
    ("second-echo.so", Make::Echo, "shadowed by "),
];

#[derive(Clone, Copy)]
enum Make {
    Text,
    Empty,
    Folder,
    /// Half of a good library.
    Cut,
    /// A good library with this byte in this place.
    Patched(usize, u8),
    /// `plugins/wrong.c` with a fault and flags for the compiler.
    Wrong(&'static str, &'static [&'static str]),
    /// `plugins/panics.rs`
    Panics,
    /// The good plugin once more.
    Echo,
}

impl Make {
    fn put(self, to: &Path) {
        let name = to.file_stem().unwrap().to_str().unwrap();
        let good = || fs::read(libraries::upper(&Compile::default())).unwrap();
        match self {
            Make::Text => fs::write(to, "This is not a library.\n").unwrap(),
            Make::Empty => fs::write(to, "").unwrap(),
            Make::Folder => fs::create_dir(to).unwrap(),
            Make::Cut => fs::write(to, &good()[..good().len() / 2]).unwrap(),
            Make::Patched(at, byte) => {
                let mut library = good();
                library[at] = byte;
                fs::write(to, library).unwrap();
            }
            Make::Wrong(fault, flags) => {
                let id = format!("com.example.{name}");
                copy(libraries::wrong(&Compile { id: &id, fault, flags }), to);
            }
            Make::Panics => copy(libraries::panics(), to),
            Make::Echo => copy(libraries::echo(), to),
        }
    }
}

#[test]
fn a_library_that_cannot_be_used_is_named_with_the_reason_and_the_host_serves_on() {
    let config = "[plugins]\nload = ['/nowhere/libmissing.so']\n[plugins.settings.'com.example.panics']\npanic = 'init'\n";
    let server = serve(config, |folder| {
        UNLOADABLE.iter().for_each(|(file, make, _)| make.put(&folder.join(file)));
    });
    still_serves(&server);

    let listed = server.cli(&["plugin", "ls", "--json"]);
    let plugins: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let log = server.output.lock().unwrap().clone();
    let missing = [("libmissing.so", Make::Empty, "libmissing.so: there is no such file")];
    for (file, _, says) in UNLOADABLE.iter().chain(&missing) {
        let problem = problem(&plugins, file);
        assert!(problem.contains(says), "`{file}` is said to be: {problem}");
        // The log has the whole reason; a duplicate is no fault of anybody's.
        assert!(*file == "second-echo.so" || log.contains(says), "the log does not say `{says}`:\n{log}");
    }
    // Health and doctor tell of it as well, and the host is ready all the same.
    let (_, health) = server.get("/admin/v1/health");
    let part = health["parts"].as_array().unwrap().iter().find(|part| part["part"] == "plugins").unwrap();
    assert_eq!((&part["state"], &health["ready"]), (&json!("degraded"), &json!(true)), "{health}");
    let doctor = server.cli(&["doctor", "--json"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    for file in ["cut.so", "major-2.so", "init-fails", "init-hangs"] {
        assert!(doctor.contains(file), "doctor does not name `{file}`:\n{doctor}");
    }
    still_serves(&server);
}

/// A model that cannot be opened: the fault, the status, and what is said.
const UNOPENABLE: &[(&str, u16, &str)] = &[
    ("open_fails", 503, "the model is made of cheese"),
    ("open_is_null", 503, "returned a model without its functions"),
    ("small_model", 503, "returned a model without its functions"),
    ("no_class", 503, "declares execution class 7"),
    ("instance_fails", 503, "no room for an instance"),
    ("instance_is_null", 503, "returned an instance without its functions"),
    ("small_instance", 503, "returned an instance without its functions"),
    ("no_submit", 503, "returned an instance without its functions"),
    ("open_hangs", 503, "was not open after 1s; see the log, or raise `models.load_timeout`"),
    ("describes_garbage", 200, ""),
];

#[test]
fn a_model_that_cannot_be_opened_is_an_error_of_its_own_requests() {
    let server = serve("[models]\nload_timeout = '1s'\n", |folder| {
        for (fault, _, _) in UNOPENABLE {
            let id = format!("com.example.{fault}");
            let made = libraries::wrong(&Compile { id: &id, fault, flags: &[] });
            copy(made, folder.join(format!("{fault}.so")));
        }
    });
    let mut wrong = Vec::new();
    for (fault, expected, says) in UNOPENABLE {
        let answer = server
            .request("POST", &format!("/v1/capabilities/com.example.{fault}.fine"))
            .json(&json!({"model": format!("com.example.{fault}")}))
            .send()
            .unwrap();
        let status = answer.status().as_u16();
        let body = answer.text().unwrap();
        if status != *expected || !body.contains(says) {
            wrong.push(format!("{fault}: {status} {body}, not {expected} with `{says}`"));
        }
        still_serves(&server);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_panic_anywhere_in_a_rust_plugin_leaves_the_others_alone() {
    let server = serve("[models]\nkeep_alive = '100ms'\n", |folder| {
        copy(libraries::panics(), folder.join("panics.so"));
    });
    let fails = ["open", "describe", "instance", "submit"];
    for place in
        ["bid", "open", "describe", "instance", "count_tokens", "stats", "health", "submit", "drop", "close"]
    {
        for _ in 0..3 {
            let (status, answer) = ask(&server, "com.example.panic", &format!("panics-{place}"));
            match fails.contains(&place) {
                true => {
                    assert!(answer.to_string().contains("the plugin panicked"), "{place}: {status} {answer}")
                }
                false => assert!(status < 600, "{place}: {answer}"),
            }
            still_serves(&server);
        }
    }
    // Figures are read and models close behind the requests' backs.
    assert!(server.metric("backplane_") > 0.0);
    until("every model is closed", || {
        let (_, models) = server.get("/admin/v1/models");
        !models.to_string().contains("\"ready\"")
    });
    still_serves(&server);
}

#[test]
fn misuse_of_the_table_is_answered_with_a_code_and_changes_nothing() {
    let id = "com.example.wrong";
    let server = serve("", |folder| {
        copy(libraries::wrong(&Compile { id, ..Compile::default() }), folder.join("wrong.so"));
    });
    let (stale, missing, bad_struct) = (-1, -2, -4);
    let (invalid, exhausted, unimplemented) = (3, 8, 12);
    let expected = json!({
        "small struct": bad_struct, "required flag": bad_struct, "no chunk": bad_struct, "no host": missing,
        "invented sink": stale, "sink 0": stale, "error of no call": stale,
        "not UTF-8": invalid, "not JSON": invalid, "not an object": invalid,
        "negative side": invalid, "shape overflows": invalid, "bytes do not fit shape": invalid,
        "65 sides": unimplemented, "-1 sides": unimplemented, "no shape": missing, "no data": missing,
        "shape is misaligned": invalid, "strides leave the data": invalid,
        "more bytes than there are addresses": invalid, "offset beyond all addresses": invalid,
        "type that is none": invalid, "on a device": invalid, "name is not UTF-8": invalid,
        "stride of 8": bad_struct, "stride of 0": bad_struct, "no tensors": bad_struct,
        "align 3": invalid, "2^62 bytes": exhausted, "on no device": unimplemented, "nowhere to write": missing,
        "wrapped without release": missing, "outside its buffer": invalid, "buffer after release": stale,
        "release after release": stale, "retain after release": stale,
        "invented ticket": stale, "threads never granted": stale,
        "call without callbacks": missing, "cancel of no call": stale, "unknown extension": 0,
    });
    for _ in 0..20 {
        let (status, answer) = ask(&server, &format!("{id}.misuse"), id);
        assert_eq!(status, 200, "{answer}");
        // One piece came through: none of the wrong ones did.
        assert_eq!(answer["result"], expected, "{answer}");
    }
    let after = "after finish: push -1, out_alloc -1, finish -1, call -2";
    until("the log says so", || server.output.lock().unwrap().contains(after));

    let (status, answer) = ask(&server, &format!("{id}.strided"), id);
    assert_eq!((status, &answer["tensors"][0]["data"]), (200, &json!([1, 4, 2, 5, 3, 6])), "{answer}");
    for (capability, says) in [("refuse", "not today"), ("lies", "did not say why")] {
        let (status, answer) = ask(&server, &format!("{id}.{capability}"), id);
        assert!(status >= 500 && answer.to_string().contains(says), "{capability}: {status} {answer}");
    }
    still_serves(&server);
    let (status, _) = ask(&server, &format!("{id}.fine"), id);
    assert_eq!(status, 200, "and it serves on itself");
}

#[test]
fn a_request_that_is_never_finished_costs_its_instance_and_nobody_else() {
    let id = "com.example.wrong";
    let server = serve("", |folder| {
        copy(libraries::wrong(&Compile { id, ..Compile::default() }), folder.join("wrong.so"));
    });
    for round in 1..=3 {
        let (status, answer) = ask(&server, &format!("{id}.silence"), id);
        assert_eq!(status, 504, "{answer}");
        still_serves(&server);
        until("the instance is replaced", || {
            let (_, models) = server.get("/admin/v1/models");
            let model =
                models["data"].as_array().unwrap().iter().find(|model| model["name"] == id).unwrap().clone();
            model["running"]["replaced"].as_u64() == Some(round)
        });
        let (status, answer) = ask(&server, &format!("{id}.fine"), id);
        assert_eq!(status, 200, "round {round}: {answer}");
    }
}

#[test]
fn a_stuck_instance_is_replaced_while_others_of_the_same_plugin_serve() {
    let server = serve("", |_| {});
    let hang = json!({"model": "echo-serial", "params": {"text": "x", "hang_ms": 20000}});
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| {
            let request =
                server.request("POST", "/v1/capabilities/echo").header("x-request-timeout", "500ms");
            request.json(&hang).send().unwrap().status().as_u16()
        });
        for _ in 0..20 {
            still_serves(&server);
        }
        assert_eq!(stuck.join().unwrap(), 504);
    });
    // The grace that the SDK gives is five seconds.
    until("another instance answers", || {
        let (status, _) = ask(&server, "echo", "echo-serial");
        status == 200
    });
    let log = server.output.lock().unwrap().clone();
    assert!(log.contains("echo-serial"), "{log}");
}

/// Every fault that the conformance kit finds in a plugin is survived by the host that loads it all the same.
#[test]
fn the_host_survives_every_fault_of_the_conformance_kit() {
    let faults = libraries::faults();
    assert!(faults.len() >= 38, "{faults:?}");
    let server = serve("", |folder| {
        for fault in &faults {
            let id = format!("com.example.{}", fault.replace('_', "-"));
            let made = libraries::faulty(&Compile { id: &id, fault, flags: &[] });
            copy(made, folder.join(format!("{fault}.so")));
        }
    });
    for fault in &faults {
        let id = format!("com.example.{}", fault.replace('_', "-"));
        let answer = server
            .request("POST", &format!("/v1/capabilities/{id}"))
            .header("x-request-timeout", "1s")
            .json(&json!({"tensors": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["one", "two"]}]}))
            .send()
            .unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().unwrap_or_else(|_| panic!("{fault}: {status} without JSON"));
        // Either the host makes good for it, or it says what is wrong.
        let said = body["error"]["message"].as_str().is_some_and(|message| message.len() > 10);
        assert!(
            status == 200 && body["tensors"][0]["shape"] == json!([2]) || said,
            "{fault}: {status} {body}"
        );
        still_serves(&server);
    }
}

#[test]
fn a_copy_of_echo_with_the_sdk_alone_is_served_in_every_form() {
    let copied = libraries::copied_echo();
    let server = serve("", |folder| copy(&copied, folder.join("libshout.so")));
    let capability = "com.example.shout";
    let path = format!("/v1/capabilities/{capability}");

    let (status, answer) = server.post(&path, &json!({"params": {"text": "out here"}}));
    assert_eq!((status, &answer["result"]["text"]), (200, &json!("out here")), "{answer}");
    let tensors = json!([{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]);
    let (status, answer) = server.post(&path, &json!({"model": "shout-serial", "tensors": tensors}));
    assert_eq!((status, &answer["tensors"]), (200, &tensors), "{answer}");
    let body = json!({"params": {"text": "abc", "chunks": 3}, "stream": true});
    let events = server.request("POST", &path).json(&body).send().unwrap().text().unwrap();
    let events: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.len(), 5, "{events:?}");
    assert!(events[0].contains("\"a\"") && events[3].contains("done") && events[4] == "[DONE]", "{events:?}");

    let shown = server.cli(&[
        "infer",
        capability,
        "--params",
        r#"{"text":"by hand"}"#,
        "--tensor",
        "x=INT64:2:[1,2]",
    ]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("by hand") && text.contains("[1,2]"), "{text}");
    let shown = server.cli(&["infer", capability, "--stream", "--params", r#"{"text":"ab","chunks":2}"#]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout).lines().count(), 2, "{shown:?}");

    // Its manifest's schemas stand in the list and in the document, and its references lead somewhere.
    let (_, listed) = server.get(&path);
    assert_eq!(listed["schemas"][0]["plugin"], "com.example.shout", "{listed}");
    assert_eq!(listed["schemas"][0]["input_schema"]["properties"]["chunks"]["type"], "integer");
    let (_, document) = server.get("/openapi.json");
    let takes = &document["paths"][&path]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let at = takes["allOf"][1]["properties"]["params"]["$ref"].as_str().unwrap();
    let schema = document.pointer(at.strip_prefix('#').unwrap()).unwrap();
    assert_eq!(schema["properties"]["text"]["type"], "string", "{schema}");
    still_serves(&server);
}

#[test]
fn a_plugin_asks_another_with_parameters_and_tensors() {
    let server = serve("", |folder| {
        let upper = libraries::upper(&Compile { id: "com.example.upper", ..Compile::default() });
        copy(upper, folder.join("upper.so"));
    });
    // From Rust to C and back: echo passes its tensors on, upper puts them into capitals.
    let text = json!([{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["one", "Two"]}]);
    let call = json!({"capability": "com.example.upper"});
    let (status, answer) = server
        .post("/v1/capabilities/echo", &json!({"model": "echo", "params": {"call": call}, "tensors": text}));
    assert_eq!((status, &answer["tensors"][0]["data"]), (200, &json!(["ONE", "TWO"])), "{answer}");
    // Large ones are shared, not copied; they come back bit for bit, with the JSON of the pieces.
    let numbers: Vec<i64> = (0..20_000).collect();
    let many = json!([{"name": "n", "datatype": "INT64", "shape": [200, 100], "data": numbers}]);
    let call =
        json!({"capability": "echo", "model": "echo-serial", "params": {"text": "there", "chunks": 2}});
    let (status, answer) = server.post(
        "/v1/capabilities/echo",
        &json!({"model": "echo", "params": {"text": "here", "call": call}, "tensors": many}),
    );
    assert_eq!((status, &answer["result"]["text"]), (200, &json!("here")), "{answer}");
    assert_eq!(answer["result"]["answer"], json!([{"text": "th"}, {"text": "ere"}]));
    assert_eq!(answer["tensors"], many);
    // What the other says is wrong reaches the caller, and a call in a circle is refused.
    for (call, says) in [
        (json!({"capability": "com.example.upper"}), "tensor `text` is missing"),
        (json!({"capability": "com.example.nothing"}), "com.example.nothing"),
        (json!({"capability": "echo", "model": "echo"}), "would wait for itself"),
        (
            json!({"capability": "echo", "model": "echo-serial", "params": {"call": {"capability": "echo", "model": "echo"}}}),
            "would wait for itself",
        ),
        (
            json!({"capability": "echo", "model": "echo-serial", "params": {"panic": true}}),
            "the plugin panicked",
        ),
    ] {
        let (status, answer) =
            server.post("/v1/capabilities/echo", &json!({"model": "echo", "params": {"call": call}}));
        assert!(status >= 400 && answer.to_string().contains(says), "{call}: {status} {answer}");
        still_serves(&server);
    }
}

#[test]
fn a_call_ends_when_its_caller_leaves() {
    let server = serve("", |_| {});
    let slow =
        json!({"capability": "echo", "model": "echo-serial", "params": {"text": "late", "delay_ms": 60000}});
    let started = Instant::now();
    let answer = server
        .request("POST", "/v1/capabilities/echo")
        .header("x-request-timeout", "300ms")
        .json(&json!({"model": "echo", "params": {"call": slow}}))
        .send()
        .unwrap();
    assert_eq!(answer.status(), 504);
    // The one place of the other model is free again, long before the answer would have come.
    let (status, answer) =
        server.post("/v1/capabilities/echo", &json!({"model": "echo-serial", "params": {"text": "next"}}));
    assert_eq!((status, &answer["result"]["text"]), (200, &json!("next")), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(30), "it waited for the answer that nobody wanted");
    still_serves(&server);
}
