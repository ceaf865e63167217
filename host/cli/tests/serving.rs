//! `serve` with no plugins: what it prints, who gets in, how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Server, command, run};

/// One more chat, so that a server goes on though nothing was answered.
fn another_chat(state: &Path) -> std::fs::File {
    std::fs::create_dir_all(state.join("run")).unwrap();
    let chat = std::fs::File::create(state.join("run/chats")).unwrap();
    chat.lock_shared().unwrap();
    chat
}

#[test]
fn several_chats_that_find_no_server_start_one() {
    let state = tempfile::tempdir().unwrap();
    let _chat = another_chat(state.path());
    let ask = || {
        let mut command = command(state.path());
        // The state directory is new, so nobody knows of another server.
        command.env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:0").args(["run", "nobody", "hello"]);
        command.output().unwrap()
    };
    let asked: Vec<_> = std::thread::scope(|scope| {
        let chats: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        chats.into_iter().map(|chat| chat.join().unwrap()).collect()
    });
    let said: Vec<_> = asked.iter().map(|done| String::from_utf8_lossy(&done.stderr).into_owned()).collect();
    let pid = |said: &String| Some(said.split_once("(pid ")?.1.split(')').next()?.to_owned());
    let started: Vec<String> = said.iter().filter_map(pid).collect();
    for pid in &started {
        assert!(Command::new("kill").args(["-TERM", pid]).status().unwrap().success());
    }
    assert_eq!(started.len(), 1, "{said:?}");
    // They all got as far as to ask for the model.
    assert!(asked.iter().all(|done| done.status.code() == Some(3)), "{said:?}");
}

#[test]
fn a_chat_that_was_not_answered_ends_the_server_that_it_started() {
    let state = tempfile::tempdir().unwrap();
    let mut ask = command(state.path());
    ask.env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:0").args(["run", "nobody", "hello"]);
    let done = support::Done::of(ask.output().unwrap()).expect(3);
    assert!(done.err.contains("started a server") && done.err.contains("has ended"), "{done:?}");
    let lock = std::fs::File::open(state.path().join("run/lock")).unwrap();
    lock.try_lock().expect("nobody has the state directory");

    // One that was there before is nobody's to end.
    drop(lock);
    let _server = Server::start(state.path(), &[]);
    let done = run(state.path(), &["run", "nobody", "hello"]).expect(3);
    assert!(!done.err.contains("has ended"), "{done:?}");
    run(state.path(), &["ps"]).expect(0);
}

#[test]
fn the_first_start_shows_a_key_once_and_the_command_line_finds_it() {
    let state = tempfile::tempdir().unwrap();
    let mut server = Server::start(state.path(), &[]);
    let key = std::fs::read_to_string(state.path().join("admin.key")).unwrap();
    assert_eq!(server.said["admin_key"], key.trim());
    assert_ne!(server.said["address"], "127.0.0.1:0");

    // The address is found without being told.
    assert_eq!(run(state.path(), &["ps", "--json"]).expect(0).json(), serde_json::json!([]));
    let made = run(state.path(), &["key", "create", "ci", "--json"]).expect(0).json();
    let user = made["secret"].as_str().unwrap();
    let with_key = |key: &str, arguments: &[&str]| {
        let output = command(state.path()).args(arguments).env("BACKPLANE_API_KEY", key).output().unwrap();
        output.status.code()
    };
    assert_eq!(with_key(user, &["ps"]), Some(5), "a user is no administrator");
    assert_eq!(with_key("bp_live_wrong", &["ps"]), Some(5));
    let mut empty = command(state.path());
    empty.args(["ps", "--json"]).env("BACKPLANE_API_KEY", " ");
    let empty = support::Done::of(empty.output().unwrap()).expect(0);
    assert_eq!(empty.err.matches("`BACKPLANE_API_KEY` is empty").count(), 1, "{empty:?}");
    assert!(empty.err.contains("the state directory's own key is shown"), "{empty:?}");
    run(state.path(), &["key", "revoke", "ci"]).expect(0);
    let keys = run(state.path(), &["key", "ls"]).expect(0);
    assert!(keys.out.contains("revoked"), "{keys:?}");
    run(state.path(), &["key", "revoke", "nope"]).expect(3);

    // What was refused is one line that has each name once, for programs and for people.
    let refused = run(state.path(), &["logs", "-n", "1", "request refused", "--json"]).expect(0);
    assert_eq!(refused.out.matches("\"message\"").count(), 1, "{refused:?}");
    assert_eq!(refused.json()["fields"]["message"], "request refused");
    let refused = run(state.path(), &["logs", "-n", "1", "request refused"]).expect(0);
    assert!(
        refused.out.contains("INFO request refused") && refused.out.contains("error=there is no key"),
        "{refused:?}"
    );
    let grave = run(state.path(), &["logs", "--level", "error"]).expect(0);
    assert!(
        grave.out.is_empty() && grave.err.contains("no line of the log is of level `error`"),
        "{grave:?}"
    );
    run(state.path(), &["stop", "nope"]).expect(3);

    server.signal("TERM");
    assert_eq!(server.end(), Some(0));
    assert!(!state.path().join("run/address").exists());
    let mut again = Server::start(state.path(), &[]);
    assert_eq!(again.said["admin_key"], Value::Null, "shown once");
    again.signal("INT");
    assert_eq!(again.end(), Some(0));
    let all = run(state.path(), &["logs", "-n", "1000"]).expect(0);
    assert!(!all.out.contains("actix"), "{all:?}");
    let log = run(state.path(), &["logs", "serving"]).expect(0);
    assert_eq!(log.out.lines().filter(|line| line.contains("INFO serving")).count(), 2, "{log:?}");
}

#[test]
fn a_taken_port_and_a_taken_state_directory_are_named() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path(), &[]);
    let address = server.said["address"].as_str().unwrap();

    let other = tempfile::tempdir().unwrap();
    let taken = run(other.path(), &["serve", "--address", address]).expect(1);
    assert!(taken.err.contains("already in use; another backplane answers there"), "{taken:?}");
    assert!(!other.path().join("admin.key").exists(), "a start that failed leaves no key behind");

    // Both at once.
    let holder = format!("another backplane (pid {})", server.child.id());
    let again = run(state.path(), &["serve", "--address", address]).expect(1);
    assert!(again.err.contains(&holder) && again.err.contains(&format!("at {address} already")), "{again:?}");
    assert!(again.err.contains("backplane stop --server"), "{again:?}");
    let third = tempfile::tempdir().unwrap();
    let third = Server::start(third.path(), &[]);
    let elsewhere = third.said["address"].as_str().unwrap();
    let both = run(state.path(), &["serve", "--json", "--address", elsewhere]).expect(1);
    let error: Value = serde_json::from_str(&both.err).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("already in use") && message.contains(&holder), "{both:?}");
    assert_eq!(error["error"]["codes"], serde_json::json!(["address_in_use", "state_locked"]));

    let locked = run(state.path(), &["serve", "--address", "127.0.0.1:0"]).expect(1);
    assert!(locked.err.contains(&format!("another backplane (pid {})", server.child.id())), "{locked:?}");

    let file = other.path().join("file");
    std::fs::write(&file, "").unwrap();
    let unusable = run(&file, &["serve", "--address", "127.0.0.1:0"]).expect(1);
    assert!(unusable.err.contains("cannot use the state directory"), "{unusable:?}");

    // Nobody makes a folder there, not even root.
    let denied = run(Path::new("/sys/backplane"), &["serve", "--address", "127.0.0.1:0"]).expect(5);
    assert!(denied.err.contains("make it writable"), "{denied:?}");
}

#[test]
fn a_server_that_a_chat_started_is_stopped_by_name() {
    let state = tempfile::tempdir().unwrap();
    let _chat = another_chat(state.path());
    let mut ask = command(state.path());
    ask.env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:0").args(["run", "nobody", "hello"]);
    let asked = support::Done::of(ask.output().unwrap()).expect(3);
    assert!(asked.err.contains("backplane stop --server"), "{asked:?}");
    assert!(state.path().join("run/address").exists());

    let stopped = run(state.path(), &["stop", "--server", "--json"]).expect(0).json();
    assert_eq!(stopped["state"], "stopped");
    assert!(!state.path().join("run/address").exists());
    // It has let go of the state directory: the next one has it at once.
    let mut next = Server::start(state.path(), &[]);
    let user = run(state.path(), &["key", "create", "u", "-q"]).expect(0).out;
    let mut stop = command(state.path());
    stop.args(["stop", "--server"]).env("BACKPLANE_API_KEY", user.trim());
    support::Done::of(stop.output().unwrap()).expect(5);
    run(state.path(), &["stop", "--server"]).expect(0);
    assert_eq!(next.end(), Some(0));
    let none = run(state.path(), &["stop", "--server"]).expect(1);
    assert!(none.err.contains("no server answers"), "{none:?}");
    run(state.path(), &["stop"]).expect(2);
    run(state.path(), &["stop", "--server", "smollm2"]).expect(2);
}

#[test]
fn who_revokes_the_last_administrator_s_key_means_it_and_finds_back() {
    let state = tempfile::tempdir().unwrap();
    let mut server = Server::start(state.path(), &[]);
    let refused = run(state.path(), &["key", "revoke", "first admin"]).expect(5);
    assert!(refused.err.contains("only administrator's key") && refused.err.contains("--yes"), "{refused:?}");
    run(state.path(), &["ps"]).expect(0);

    // With another one it is still the key that the command line shows.
    let other = run(state.path(), &["key", "create", "deputy", "--role", "admin", "-q"]).expect(0).out;
    let own = run(state.path(), &["key", "revoke", "first admin"]).expect(5);
    assert!(own.err.contains("the key that this command shows"), "{own:?}");
    let mut revoke = command(state.path());
    revoke.args(["key", "revoke", "first admin"]).env("BACKPLANE_API_KEY", other.trim());
    support::Done::of(revoke.output().unwrap()).expect(0);
    let refused = run(state.path(), &["ps"]).expect(5);
    assert!(refused.err.contains("`admin.key` of the state directory was revoked"), "{refused:?}");
    let mut revoke = command(state.path());
    revoke.args(["key", "revoke", "deputy", "--yes"]).env("BACKPLANE_API_KEY", other.trim());
    let gone = support::Done::of(revoke.output().unwrap()).expect(0);
    assert!(gone.err.contains("start the server again"), "{gone:?}");

    // Whose process it is stops it without a key; the next start makes one.
    let stopped = run(state.path(), &["stop", "--server"]).expect(0);
    assert!(stopped.err.contains("SIGTERM") && stopped.err.contains("has stopped"), "{stopped:?}");
    assert_eq!(server.end(), Some(0));
    let next = Server::start(state.path(), &[]);
    assert!(next.said["admin_key"].is_string());
    run(state.path(), &["ps"]).expect(0);
}

#[test]
fn a_lost_admin_key_is_told_and_another_is_made_where_it_is_asked_for() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("admin.key");
    drop(Server::start(state.path(), &[]));
    let old = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let server = Server::start(state.path(), &[]);
    assert!(server.said["admin_key"].is_null() && !file.exists(), "nobody asked for one");
    let refused = run(state.path(), &["ps"]).expect(5);
    assert!(refused.err.contains("`backplane serve --new-admin-key`"), "{refused:?}");
    // Somebody else, who finds this server at the address of their own configuration, has lost no key.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut stranger = command(elsewhere.path());
    stranger.arg("ps").env("BACKPLANE__SERVER__ADDRESS", server.said["address"].as_str().unwrap());
    let refused = support::Done::of(stranger.output().unwrap()).expect(5);
    assert!(refused.err.contains("run as the user whose state directory"), "{refused:?}");
    // Nor is one lost that cannot be used.
    std::fs::write(&file, "").unwrap();
    let refused = run(state.path(), &["ps"]).expect(5);
    assert!(!refused.err.contains("is not there"), "{refused:?}");
    std::fs::remove_file(&file).unwrap();
    let doctor = run(state.path(), &["doctor"]);
    assert!(doctor.out.contains("admin.key is not there"), "{doctor:?}");
    drop(server);

    let server = Server::start(state.path(), &["--new-admin-key"]);
    assert_eq!(server.said["admin_key"], std::fs::read_to_string(&file).unwrap().trim());
    let keys = run(state.path(), &["key", "ls", "--json"]).expect(0).json();
    assert_eq!(keys.as_array().unwrap().len(), 2);
    let mut with_the_old = command(state.path());
    with_the_old.args(["ps"]).env("BACKPLANE_API_KEY", old.trim());
    assert!(with_the_old.output().unwrap().status.success());
    drop(server);

    // The file's key works now: the same command makes no third one.
    let server = Server::start(state.path(), &["--new-admin-key"]);
    assert!(server.said["admin_key"].is_null());
    drop(server);
    let mut without = command(state.path());
    without.args(["serve", "--new-admin-key"]).env("BACKPLANE__AUTH__ENABLED", "false");
    let refused = support::Done::of(without.output().unwrap()).expect(2);
    assert!(refused.err.contains("`auth.enabled = false`"), "{refused:?}");
}

#[test]
fn who_answers_and_is_no_backplane_is_told_so() {
    let state = tempfile::tempdir().unwrap();
    let page = "HTTP/1.1 404 Not Found\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<!DOCTYPE html>";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::io::Read::read(&mut stream, &mut [0; 4096]).ok();
            std::io::Write::write_all(&mut stream, page.as_bytes()).ok();
        }
    });
    for verb in [&["ps"][..], &["run", "smollm2", "hello"]] {
        let told = run(state.path(), &[&["--host", &*address], verb].concat()).expect(1);
        assert!(
            told.err.contains(&format!("http://{address} answered 404, and not as a Backplane")),
            "{told:?}"
        );
    }
}

#[test]
fn nobody_goes_without_a_key_but_on_loopback() {
    let state = tempfile::tempdir().unwrap();
    let open = run(state.path(), &["serve", "--no-auth", "--address", "0.0.0.0:0"]).expect(1);
    assert!(open.err.contains("auth.enabled"), "{open:?}");
    let server = Server::start(state.path(), &["--no-auth"]);
    assert_eq!(server.said["auth"], false);
    let mut ps = command(state.path());
    ps.args(["ps"]).env("BACKPLANE_API_KEY", "whatever");
    assert!(ps.output().unwrap().status.success());
}

#[test]
fn a_file_that_is_made_while_the_server_runs_is_read_and_strange_names_in_it_are_told() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path(), &[]);
    let reload = || run(state.path(), &["config", "reload", "--host", server.said["url"].as_str().unwrap()]);
    assert!(reload().expect(0).out.contains("nothing changed"));
    let file = state.path().join("backplane.toml");
    let text = "[models]\nmax_queue = 6\n[plugins.isolation]\n\"dev.backplane.ecko\" = \"worker\"\n";
    std::fs::write(&file, text).unwrap();
    let said = reload().expect(0).out;
    assert!(said.contains("in force: models.max_queue"), "{said}");
    assert!(said.contains("there is no plugin `dev.backplane.ecko` here"), "{said}");
    std::fs::write(&file, "[models]\nmax_queue = \"many\"\n").unwrap();
    reload().expect(1);
}

#[test]
fn a_hang_up_reloads_the_configuration() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("backplane.toml");
    std::fs::write(&file, "[models]\nmax_queue = 5\n").unwrap();
    let server = Server::start(state.path(), &[]);
    std::fs::write(&file, "[models]\nmax_queue = 6\n").unwrap();
    server.signal("HUP");
    let begin = Instant::now();
    loop {
        let log = run(state.path(), &["logs", "configuration reloaded"]).expect(0);
        if log.out.contains("models.max_queue") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{log:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(&file, "[models]\nmax_queue = \"many\"\n").unwrap();
    let refused =
        run(state.path(), &["config", "reload", "--host", server.said["url"].as_str().unwrap()]).expect(1);
    assert!(refused.err.contains("the old one is in force"), "{refused:?}");
}

#[test]
fn config_show_tells_whether_it_is_the_server_s_or_the_file_s() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("backplane.toml");
    let config = |queue: u32| {
        format!("[models]\nmax_queue = {queue}\n[plugins.settings.\"com.acme.x\"]\napi_key = \"sk-1\"\n")
    };
    std::fs::write(&file, config(11)).unwrap();
    let _server = Server::start(state.path(), &[]);
    // It was changed since, and not reloaded.
    std::fs::write(&file, config(22)).unwrap();
    let show = |more: &[&str]| run(state.path(), &[&["config", "show"], more].concat()).expect(0);
    let running = show(&[]);
    assert!(
        running.out.contains("max_queue = 11") && running.err.contains("in force in the server"),
        "{running:?}"
    );
    let of_file = show(&["--file"]);
    assert!(of_file.out.contains("max_queue = 22"), "{of_file:?}");
    assert!(of_file.err.contains("what a server would start with"), "{of_file:?}");
    assert!(show(&["--offline"]).out.contains("max_queue = 22"));
    assert!(show(&["--config", "/dev/null"]).out.contains("max_queue = 64"));
    assert!(show(&["--json"]).json()["server"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    assert!(show(&["--json", "--file"]).json()["server"].is_null());
    for shown in [running, of_file] {
        assert!(!shown.out.contains("sk-1") && shown.out.contains("(hidden)"), "{shown:?}");
    }
}
