//! Packages from the author to an answer: the commands of `docs/packages.md`, and what is refused on the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use support::{Done, command};

const ID: &str = "dev.backplane.echo";

/// The echo plugin's library, built once.
fn echo() -> &'static Path {
    static ECHO: OnceLock<PathBuf> = OnceLock::new();
    ECHO.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "backplane-echo", "--message-format=json"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "echo did not build");
        let messages = String::from_utf8(output.stdout).unwrap();
        let files = messages.lines().flat_map(|line| {
            let message: Value = serde_json::from_str(line).unwrap();
            message["filenames"].as_array().cloned().unwrap_or_default()
        });
        let library = |file: &Value| {
            file.as_str().filter(|file| file.ends_with("libbackplane_echo.so")).map(PathBuf::from)
        };
        let built = files.into_iter().find_map(|file| library(&file)).unwrap();
        // What is only for debuggers makes packages ten times as large.
        let stripped = Path::new(env!("CARGO_TARGET_TMPDIR")).join("echo-without-debug.so");
        std::fs::copy(built, &stripped).unwrap();
        assert!(Command::new("strip").arg("--strip-debug").arg(&stripped).status().unwrap().success());
        stripped
    })
}

/// A folder to work in, with a state directory and the library where an author has it.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(scene.path("target/release")).unwrap();
        std::fs::copy(echo(), scene.path("target/release/libbackplane_echo.so")).unwrap();
        std::fs::write(scene.path("LICENSE"), "mind the step").unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Done::of(command(&self.state()).current_dir(self.dir.path()).args(arguments).output().unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).expect(0).out
    }

    /// The program with the echo plugin beside it, as it is built and installed for people.
    fn shipped(&self) -> PathBuf {
        let folder = self.path("shipped");
        if !folder.exists() {
            std::fs::create_dir_all(folder.join("plugins")).unwrap();
            std::fs::copy(env!("CARGO_BIN_EXE_backplane"), folder.join("backplane")).unwrap();
            std::fs::copy(support::worker(), folder.join("backplane-worker")).unwrap();
            std::fs::copy(echo(), folder.join("plugins/libbackplane_echo.so")).unwrap();
        }
        folder
    }

    /// Runs a shell script here, as a person would.
    fn shell(&self, script: &str) -> Done {
        let paths = std::env::join_paths(
            std::iter::once(self.shipped()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let mut shell = Command::new("sh");
        shell.args(["-eu", "-c", script]).current_dir(self.dir.path()).stdin(Stdio::null());
        shell.env("PATH", paths.unwrap()).env("BACKPLANE_STATE", self.state()).env("NO_COLOR", "1");
        shell.env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:9");
        for name in ["BACKPLANE_ADDR", "BACKPLANE_API_KEY", "BACKPLANE_CONFIG", "SOURCE_DATE_EPOCH"] {
            shell.env_remove(name);
        }
        Done::of(shell.output().unwrap())
    }

    /// Keys, trust, and a package of each version: the library says another number, and is the same otherwise.
    fn prepared(versions: &[&str]) -> Self {
        let scene = Self::new();
        scene.ok(&["plugin", "keygen", "acme"]);
        scene.ok(&["plugin", "trust", "add", "acme.pub", "--plugins", "dev.backplane.*"]);
        for version in versions {
            scene.pack(version, |_| ());
        }
        scene
    }

    fn pack(&self, version: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(echo()).unwrap();
        replace(&mut bytes, b"0.1.0", version.as_bytes());
        change(&mut bytes);
        std::fs::write(self.path("libecho.so"), bytes).unwrap();
        let to = format!("echo-{version}.plg");
        self.ok(&["plugin", "pack", "libecho.so", "--key", "acme.key", "-o", &to]);
    }
}

/// Puts something as long in the place of each occurrence.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
}

/// A server on the state directory; stopped when it is dropped.
struct Server(Child);

impl Server {
    fn start(scene: &Scene, settings: &[&str]) -> Self {
        support::worker();
        let mut command = command(&scene.state());
        command.args(["serve", "--json", "--address", "127.0.0.1:0"]);
        settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The echo plugin as the server tells of it.
fn listed(scene: &Scene) -> Value {
    let all: Value = serde_json::from_str(&scene.ok(&["plugin", "ls", "--json"])).unwrap();
    all.as_array().unwrap().iter().find(|plugin| plugin["id"] == ID).cloned().unwrap_or_default()
}

fn answers(scene: &Scene) {
    let answer = scene.run(&["infer", "echo", "--params", "{\"text\": \"hello\"}"]).expect(0);
    assert!(answer.out.contains("hello"), "{answer:?}");
}

#[test]
fn the_guide_s_commands_lead_to_an_answer() {
    let scene = Scene::new();
    let guide =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/packages.md")).unwrap();
    let blocks: Vec<&str> =
        guide.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() > 5);
    for block in blocks {
        let done = scene.shell(block);
        assert_eq!(done.code, 0, "{block}\n{done:#?}");
    }
    let again = scene
        .shell("backplane plugin remove dev.backplane.echo --yes; backplane plugin install echo.plg --yes");
    assert!(again.code == 5 && again.err.contains("came with the program"), "the page says why: {again:?}");
    scene.shell("backplane plugin install echo.plg --yes --accept-changes").expect(0);

    // Nothing but signed packages, and what was installed is one.
    let _server = Server::start(&scene, &["plugins.trust=org"]);
    let echo = listed(&scene);
    assert_eq!(
        (&echo["ready"], &echo["level"], &echo["signer"]),
        (&json!(true), &json!("org"), &json!("acme")),
        "{echo}"
    );
    answers(&scene);
}

#[test]
fn an_install_shows_what_it_is_and_has_to_be_agreed_to() {
    let scene = Scene::prepared(&["0.1.0"]);
    let refused = scene.run(&["plugin", "install", "echo-0.1.0.plg"]).expect(5);
    for said in [
        "dev.backplane.echo 0.1.0",
        "signed by",
        "acme",
        "level      org",
        "serves     echo/1",
        "asks for",
        "Apache-2.0",
        "run it again with `--yes`",
    ] {
        assert!(refused.err.contains(said), "{said}: {refused:#?}");
    }
    assert!(!scene.state().join("plugins").join(ID).exists(), "nothing was installed");
    let installed = scene.run(&["plugin", "install", "echo-0.1.0.plg", "--yes", "--json"]).expect(0).json();
    assert_eq!(
        (&installed["version"], &installed["level"], &installed["unchanged"]),
        (&json!("0.1.0"), &json!("org"), &json!(false))
    );
    let again = scene.run(&["plugin", "install", "echo-0.1.0.plg", "--yes", "--json"]).expect(0).json();
    assert_eq!(again["unchanged"], true);
}

#[test]
fn what_wants_more_than_before_is_agreed_to_on_its_own() {
    let scene = Scene::prepared(&["0.1.0"]);
    scene.ok(&["plugin", "install", "echo-0.1.0.plg", "--yes"]);
    // As long as what it takes the place of.
    scene.pack("0.1.1", |bytes| {
        let from = b"licence = \"Apache-2.0\"\n";
        let to = b"resources.network=true\n";
        replace(bytes, from, to);
    });
    let refused = scene.run(&["plugin", "install", "echo-0.1.1.plg", "--yes"]).expect(5);
    assert!(
        refused.err.contains("asks for the network") && refused.err.contains("--accept-changes"),
        "{refused:#?}"
    );
    scene.ok(&["plugin", "install", "echo-0.1.1.plg", "--yes", "--accept-changes"]);

    // Each path by itself.
    for (version, asks, shown) in [
        ("0.1.2", b"resources.read=[\"/ab\"]\n", "asks for reading `/ab`"),
        ("0.1.3", b"resources.write=[\"/a\"]\n", "asks for reading and writing `/a`"),
    ] {
        scene.pack(version, |bytes| replace(bytes, b"licence = \"Apache-2.0\"\n", asks));
        let package = format!("echo-{version}.plg");
        let refused = scene.run(&["plugin", "install", &package, "--yes"]).expect(5);
        assert!(refused.err.contains(shown) && refused.err.contains("--accept-changes"), "{refused:#?}");
    }

    // Somebody else's key, trusted for the same plugins.
    scene.ok(&["plugin", "keygen", "other"]);
    scene.ok(&["plugin", "trust", "add", "other.pub", "--plugins", "*"]);
    scene.ok(&["plugin", "sign", "echo-0.1.0.plg", "--key", "other.key"]);
    let refused = scene.run(&["plugin", "install", "echo-0.1.0.plg", "--yes"]).expect(5);
    assert!(refused.err.contains("is signed by other"), "{refused:#?}");
}

#[test]
fn who_is_vouched_for_is_believed_as_long_as_the_roots_follow_each_other() {
    let scene = Scene::new();
    for name in ["acme", "a", "b", "c", "thief"] {
        scene.ok(&["plugin", "keygen", name]);
    }
    scene.pack("0.1.0", |_| ());
    let make = |arguments: &str, to: &str| {
        let words = format!("plugin trust make-root {arguments} -o {to}");
        scene.run(&words.split_whitespace().collect::<Vec<_>>())
    };
    let vouch = "--verified acme.pub=dev.backplane.*";
    let two = "--root a.pub --root b.pub --threshold 2";
    let few = make(&format!("{two} {vouch} --key a.key"), "few.dsse").expect(1);
    assert!(few.err.contains("1 of its own keys signed it, 2 are needed"), "{few:?}");
    make(&format!("{two} {vouch} --key a.key --key b.key"), "1.dsse").expect(0);

    scene.run(&["plugin", "verify", "echo-0.1.0.plg"]).expect(5);
    let asked = scene.run(&["plugin", "trust", "root", "1.dsse"]).expect(5);
    for said in ["2 of 2 keys sign the next", "of acme, level verified", "dev.backplane.*", "--yes"] {
        assert!(asked.err.contains(said), "{said}: {asked:#?}");
    }
    scene.ok(&["plugin", "trust", "root", "1.dsse", "--yes"]);
    let verified = scene.ok(&["plugin", "verify", "echo-0.1.0.plg"]);
    assert!(verified.contains("signed by acme, level verified"), "{verified}");

    // One thief alone makes no root that anybody believes; two owners replace a key without asking anybody.
    make(&format!("--root thief.pub {vouch} --key thief.key"), "theirs.dsse").expect(0);
    let refused = scene.run(&["plugin", "trust", "root", "theirs.dsse", "--yes"]).expect(1);
    assert!(refused.err.contains("0 of the present root's keys signed it, 2 are needed"), "{refused:?}");
    let next = "--after 1.dsse --root b.pub --root c.pub --threshold 2";
    make(&format!("{next} {vouch} --key b.key --key c.key"), "few.dsse").expect(1);
    make(&format!("{next} --key a.key --key b.key --key c.key"), "2.dsse").expect(0);
    scene.ok(&["plugin", "trust", "root", "2.dsse"]);
    let refused = scene.run(&["plugin", "verify", "echo-0.1.0.plg"]).expect(5);
    assert!(refused.err.contains("none of the keys that signed it is trusted"), "{refused:?}");
    let back = scene.run(&["plugin", "trust", "root", "1.dsse", "--yes"]).expect(1);
    assert!(back.err.contains("1 of the present root's keys signed it"), "{back:?}");
    scene.ok(&["plugin", "trust", "root", "--remove"]);
    scene.run(&["plugin", "trust", "root", "--remove"]).expect(3);
}

/// Hands out the files of a folder, as any web server does.
fn web_server(folder: PathBuf) -> String {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            lines.map_while(Result::ok).find(|line| line.is_empty());
            let path = first.split_whitespace().nth(1).unwrap_or_default().trim_start_matches('/');
            let (status, body) = match std::fs::read(folder.join(path)) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok();
        }
    });
    url
}

#[test]
fn a_registry_over_http_is_followed_forwards_only_and_hands_out_what_was_taken_back() {
    let scene = Scene::prepared(&["0.1.0", "0.1.1"]);
    scene.ok(&["plugin", "keygen", "acme-index"]);
    let index = |more: &[&str]| {
        scene.ok(&[&["plugin", "index", "tree", "--key", "acme-index.key"][..], more].concat());
    };
    let move_to = |from: &str, to: &str| std::fs::rename(scene.path(from), scene.path(to)).unwrap();
    let copy = |from: &str, to: &str| {
        let (from, to) = (scene.path(from), scene.path(to));
        assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    };
    index(&["--add", "echo-0.1.0.plg"]);
    let url = web_server(scene.path("tree"));
    scene.ok(&["plugin", "trust", "registry", "acme", &url, "--key", "acme-index.pub"]);
    scene.ok(&["plugin", "install", ID, "--yes"]);
    copy("tree", "old");

    index(&["--add", "echo-0.1.1.plg"]);
    let upgraded = scene.run(&["plugin", "upgrade", "--yes", "--json"]).expect(0).json();
    assert_eq!((&upgraded[0]["before"], &upgraded[0]["version"]), (&json!("0.1.0"), &json!("0.1.1")));

    // Somebody in between hands out the state before.
    move_to("tree", "new");
    copy("old", "tree");
    let refused = scene.run(&["plugin", "upgrade", "--json"]).expect(1);
    assert!(refused.err.contains("an older state than was seen before"), "{refused:?}");
    std::fs::remove_dir_all(scene.path("tree")).unwrap();
    move_to("new", "tree");

    // A version is taken back by its vendor, and the registry says so.
    scene.ok(&[
        "plugin",
        "trust",
        "add",
        "acme.pub",
        "--plugins",
        "dev.backplane.*",
        "--role",
        "plugin",
        "--role",
        "revocation",
    ]);
    scene.ok(&[
        "license",
        "revoke",
        "--key",
        "acme.key",
        "--list",
        "acme.dsse",
        "--package",
        "echo-0.1.1.plg",
    ]);
    index(&["--revocations", "acme.dsse"]);
    scene.ok(&["plugin", "verify", ID]);
    let server = Server::start(&scene, &[]);
    assert_eq!((&listed(&scene)["ready"], &listed(&scene)["revoked"]), (&json!(true), &Value::Null));
    // Who looks at the index is told, and so is who looks at the server that has it loaded.
    let newest = scene.run(&["plugin", "upgrade", "--yes"]).expect(5);
    assert!(newest.err.contains("0.1.1 is on a revocation list"), "{newest:?}");
    let serves = listed(&scene);
    assert_eq!((&serves["ready"], &serves["revoked"]), (&json!(true), &json!(true)));
    assert!(serves["problem"].as_str().unwrap().contains("serves until the server restarts"), "{serves}");
    let checks = scene.run(&["doctor"]).out;
    let warned =
        checks.lines().any(|line| line.starts_with("warn") && line.contains("is on a revocation list"));
    assert!(warned, "{checks}");
    drop(server);
    scene.run(&["plugin", "install", "dev.backplane.echo@0.1.1", "--yes"]).expect(5);
    let revoked = scene.run(&["plugin", "verify", ID]);
    assert!(revoked.code != 0 && revoked.out.contains("0.1.1 is on a revocation list"), "{revoked:?}");
    scene.ok(&["plugin", "install", "dev.backplane.echo@0.1.0", "--yes"]);
    let back = scene.run(&["plugin", "rollback", ID, "--to", "0.1.1"]);
    assert!(back.code != 0 && back.err.contains("revocation list"), "{back:?}");
}

#[test]
fn exit_codes_and_hints_say_what_to_do() {
    let scene = Scene::prepared(&["0.1.0"]);
    let unsigned = scene.run(&["plugin", "pack", "libecho.so", "-o", "unsigned.plg"]).expect(0);
    assert!(unsigned.err.contains("plugin sign unsigned.plg"), "{unsigned:?}");
    let refused = scene.run(&["plugin", "verify", "unsigned.plg"]).expect(5);
    assert!(refused.err.contains("it is not signed") && refused.err.contains("plugin sign"), "{refused:?}");
    scene.ok(&["plugin", "keygen", "stranger"]);
    scene.ok(&["plugin", "sign", "unsigned.plg", "--key", "stranger.key", "-o", "foreign.plg"]);
    let refused = scene.run(&["plugin", "install", "foreign.plg", "--yes"]).expect(5);
    assert!(refused.err.contains("plugin trust add"), "{refused:?}");
    let mut bytes = std::fs::read(scene.path("echo-0.1.0.plg")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(scene.path("damaged.plg"), bytes).unwrap();
    let refused = scene.run(&["plugin", "verify", "damaged.plg", "--json"]).expect(1);
    assert_eq!(refused.json()[0]["code"], "package_modified");
    scene.run(&["plugin", "verify", "none.plg"]).expect(3);
    scene.run(&["plugin", "sign", "echo-0.1.0.plg", "--key", "none.key"]).expect(3);
    scene.run(&["plugin", "install", "com.acme.nothing", "--yes"]).expect(3);
    scene.run(&["plugin", "keygen", "../x"]).expect(2);
    scene.run(&["plugin", "trust", "add", "acme.pub", "--plugins", "*", "--role", "king"]).expect(2);
    let secret = scene.run(&["plugin", "trust", "add", "acme.key", "--plugins", "*"]);
    assert!(secret.code != 0 && secret.err.contains("secret key"), "{secret:?}");
    let pair = || [scene.path("acme.key"), scene.path("acme.pub")].map(|path| std::fs::read(path).unwrap());
    let before = pair();
    let again = scene.run(&["plugin", "keygen", "acme"]).expect(1);
    assert!(again.err.contains("acme.key is there already") && before == pair(), "{again:?}");
    std::fs::write(scene.path("half.pub"), "").unwrap();
    scene.run(&["plugin", "keygen", "half"]).expect(1);
    assert!(!scene.path("half.key").exists(), "no half of a pair is made");
    scene.ok(&["plugin", "install", "echo-0.1.0.plg", "--yes"]);
    let near = scene.run(&["plugin", "rollback", "dev.backplane.ecko"]).expect(3);
    assert!(near.err.contains("did you mean `dev.backplane.echo`?"), "{near:?}");
}

#[test]
fn a_licence_is_checked_against_the_version_of_the_package_that_is_installed() {
    let scene = Scene::prepared(&["0.1.0"]);
    let all = ["--role", "plugin", "--role", "license", "--role", "revocation"];
    scene.run(&["license", "trust", "add", "acme.pub"]).expect(1);
    scene.ok(&[&["license", "trust", "add", "acme.pub"][..], &all].concat());
    scene.ok(&["plugin", "install", "echo-0.1.0.plg", "--yes"]);
    let template = format!("licensee = {{ id = 'cus_1', name = 'Example' }}\nproduct.plugin = '{ID}'\n");
    std::fs::write(scene.path("basic.toml"), template).unwrap();
    for (serial, versions, exit, serves) in [(1, ">=0.1.1", 3, false), (2, "<0.1.1", 0, true)] {
        let (serial, versions) = (format!("serial={serial}"), format!("product.versions={versions}"));
        let file = format!("{serial}.lic");
        let issue = ["license", "issue", "--key", "acme.key", "--template", "basic.toml", "--out", &file];
        scene.ok(&[&issue[..], &["--set", &serial, "--set", &versions]].concat());
        scene.run(&["license", "inspect", &file]).expect(exit);
        scene.ok(&["license", "install", &file]);
        let state = scene.run(&["license", "status", ID, "--json"]).expect(0).json()[0].take();
        assert_eq!((&state["version"], &state["serves"]), (&json!("0.1.0"), &json!(serves)), "{state}");
    }
}

#[test]
fn a_server_that_runs_takes_over_what_is_installed_and_goes_back() {
    let scene = Scene::prepared(&["0.1.0", "0.1.1"]);
    // Of its two numbers, for whoever reads it and for whoever runs it, one is wrong.
    scene.pack("0.1.2", |bytes| {
        let wrong = b"version = \"0.1.2\"";
        let at = bytes.windows(wrong.len()).rposition(|window| window == wrong).unwrap();
        bytes[at + wrong.len() - 2] = b'9';
    });
    std::fs::create_dir_all(scene.state().join("plugins")).unwrap();
    let server = Server::start(&scene, &["plugins.upgrade.hold=300ms"]);
    assert_eq!(listed(&scene), Value::Null);
    scene.ok(&["plugin", "install", "echo-0.1.0.plg", "--yes"]);
    let echo = listed(&scene);
    assert_eq!(
        (&echo["version"], &echo["ready"]),
        (&json!("0.1.0"), &json!(true)),
        "loaded without a restart: {echo}"
    );
    answers(&scene);

    let upgraded = scene.run(&["plugin", "install", "echo-0.1.1.plg", "--yes"]).expect(0);
    for step in
        ["0.1.1 is loaded beside 0.1.0", "it answers 10% of the requests", "0.1.1 serves; 0.1.0 is retired"]
    {
        assert!(upgraded.err.contains(step), "{step}: {upgraded:?}");
    }
    assert_eq!(listed(&scene)["version"], "0.1.1");
    answers(&scene);

    let back = scene.run(&["plugin", "rollback", ID, "--json"]).expect(0).json();
    assert_eq!(
        (&back["upgrade"]["state"], &back["upgrade"]["to"]),
        (&json!("done"), &json!("0.1.0")),
        "{back}"
    );
    assert_eq!(listed(&scene)["version"], "0.1.0");
    answers(&scene);

    let failed = scene.run(&["plugin", "install", "echo-0.1.2.plg", "--yes"]).expect(1);
    assert!(failed.err.contains("was taken back, and 0.1.0 serves as before"), "{failed:?}");
    assert_eq!(listed(&scene)["version"], "0.1.0");
    answers(&scene);
    let failed = scene.run(&["plugin", "install", "echo-0.1.2.plg", "--yes", "--json"]).expect(1);
    let told: Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!(told["error"]["code"], "upgrade_rolled_back", "{failed:?}");
    assert_eq!(told["error"]["upgrade"]["state"], "rolled_back", "{failed:?}");
    drop(server);

    let server = Server::start(&scene, &[]);
    assert_eq!(listed(&scene)["version"], "0.1.0", "what failed is not in use");
    drop(server);
    scene.ok(&["plugin", "rollback", ID, "--to", "0.1.1"]);
    let server = Server::start(&scene, &["plugins.upgrade.hold=1h"]);
    assert_eq!(listed(&scene)["version"], "0.1.1");
    answers(&scene);
    let back = scene.run(&["plugin", "rollback", ID, "--to", "0.1.0", "--now"]).expect(0);
    assert!(back.err.contains("0.1.0 serves; 0.1.1 is retired"), "{back:?}");
    answers(&scene);
    // What is removed is served, and says how long.
    scene.ok(&["plugin", "remove", ID, "--yes"]);
    let removed = listed(&scene);
    assert_eq!(removed["ready"], true, "{removed}");
    assert!(removed["problem"].as_str().unwrap().contains("served until the server restarts"), "{removed}");
    answers(&scene);
    drop(server);
    assert_eq!(listed(&scene), Value::Null);
}

/// Who tries a plugin with `--plugin-dir`, and then installs it, is told that the folder comes first.
#[test]
fn a_package_behind_a_library_of_plugin_dir_is_told_to_be_there_and_why() {
    let scene = Scene::prepared(&["0.1.0"]);
    let folder = scene.path("mine");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(echo(), folder.join("libmine.so")).unwrap();
    let more = ["--plugin-dir", folder.to_str().unwrap()];
    let start = || support::Server::start(&scene.state(), &more);
    let told = || {
        let all = scene.run(&["plugin", "ls", "--json"]).expect(0).json();
        let package = all.as_array().unwrap().iter().find(|plugin| plugin["level"] == "org").cloned();
        let package = package.unwrap_or_else(|| panic!("{all}"));
        assert_eq!((&package["ready"], &package["shadowed_by"]), (&json!(false), &json!("libmine.so")));
        package["problem"].as_str().unwrap().to_owned()
    };
    let server = start();
    let done = scene.run(&["plugin", "install", "echo-0.1.0.plg", "--yes"]).expect(0);
    assert!(done.err.contains("it does not serve") && done.err.contains("mine/libmine.so"), "{done:?}");
    assert!(told().contains("--plugin-dir") && !told().contains("restart lets it"), "{}", told());
    let refused = scene.run(&["plugin", "upgrade", ID]).expect(1);
    assert!(refused.err.contains("mine/libmine.so` comes first"), "{refused:?}");
    drop(server);
    let server = start();
    assert!(told().contains("mine/libmine.so"), "{}", told());
    drop(server);
    let _server = Server::start(&scene, &[]);
    assert_eq!((&listed(&scene)["ready"], &listed(&scene)["level"]), (&json!(true), &json!("org")));
}

/// The program as it is installed: with a plugin of its own, and a worker.
fn installed(scene: &Scene) -> PathBuf {
    let lib = scene.path("usr/lib/backplane");
    std::fs::create_dir_all(lib.join("plugins")).unwrap();
    std::fs::create_dir_all(scene.path("usr/bin")).unwrap();
    std::fs::copy(echo(), lib.join("plugins/libbackplane_echo.so")).unwrap();
    std::os::unix::fs::symlink(support::worker(), lib.join("backplane-worker")).unwrap();
    let program = scene.path("usr/bin/backplane");
    std::fs::copy(env!("CARGO_BIN_EXE_backplane"), &program).unwrap();
    program
}

#[test]
fn what_came_with_the_program_gives_way_to_who_is_named_and_comes_back_when_that_fails() {
    let scene = Scene::prepared(&["0.1.0"]);
    // Of its two numbers one is wrong: it is a package that does not start.
    scene.pack("0.1.2", |bytes| {
        let wrong = b"version = \"0.1.2\"";
        let at = bytes.windows(wrong.len()).rposition(|window| window == wrong).unwrap();
        bytes[at + wrong.len() - 2] = b'9';
    });
    let program = installed(&scene);
    let run = |arguments: &[&str]| {
        let mut command = support::command_of(&program, &scene.state());
        Done::of(command.current_dir(scene.dir.path()).args(arguments).output().unwrap())
    };
    let served = || {
        let all = run(&["plugin", "ls", "--json"]).expect(0).json();
        let mut echo = all.as_array().unwrap().iter().filter(|plugin| plugin["id"] == ID);
        let first = echo.next().cloned().unwrap();
        assert_eq!(first["ready"], true, "what serves is told first: {all}");
        (first["version"].clone(), first["level"].clone())
    };
    let core = (json!("0.1.0"), json!("core"));
    let start = || support::Server::start_of(&program, scene.dir.path(), &scene.state(), &[]);
    std::fs::create_dir_all(scene.state()).unwrap();
    let server = start();
    assert_eq!(served(), core);

    let refused = run(&["plugin", "install", "echo-0.1.0.plg", "--yes"]).expect(5);
    assert!(
        refused.err.contains("takes the place of 0.1.0, which came with the program")
            && refused.err.contains("--accept-changes"),
        "{refused:?}"
    );
    let failed = run(&["plugin", "install", "echo-0.1.2.plg", "--yes", "--accept-changes"]).expect(1);
    assert!(failed.err.contains("was taken back, and 0.1.0 serves as before"), "{failed:?}");
    assert_eq!(served(), core);
    assert!(!scene.state().join("plugins").join(ID).join("current").exists(), "what failed is not in use");
    run(&["plugin", "upgrade"]).expect(0);
    assert_eq!(served(), core);
    drop(server);
    let server = start();
    assert_eq!(served(), core, "nor at the next start");
    drop(server);

    // Two builds of one version are told apart.
    // One that serves nobody yet and cannot be loaded is no success.
    let other = scene.path("other");
    let alone = |arguments: &[&str]| {
        let mut command = support::command(&other);
        Done::of(command.current_dir(scene.dir.path()).args(arguments).output().unwrap())
    };
    std::fs::create_dir_all(&other).unwrap();
    alone(&["plugin", "trust", "add", "acme.pub", "--plugins", "*"]).expect(0);
    let server = support::Server::start(&other, &[]);
    let failed = alone(&["plugin", "install", "echo-0.1.2.plg", "--yes"]).expect(1);
    assert!(failed.err.contains("the server does not load dev.backplane.echo"), "{failed:?}");
    assert!(failed.err.contains("plugin remove dev.backplane.echo"), "{failed:?}");
    drop(server);

    let _server = start();
    run(&["infer", "echo", "--params", "{\"text\": \"hello\"}"]).expect(0);
    let done = run(&["plugin", "install", "echo-0.1.0.plg", "--yes", "--accept-changes"]).expect(0);
    assert!(done.err.contains("the new 0.1.0 is loaded beside the 0.1.0 before, which serves"), "{done:?}");
    assert_eq!(served(), (json!("0.1.0"), json!("org")));
}

#[test]
fn what_was_swapped_since_and_what_nobody_signed_is_not_loaded() {
    let scene = Scene::prepared(&["0.1.0"]);
    scene.ok(&["plugin", "install", "echo-0.1.0.plg", "--yes"]);
    let folder = std::fs::canonicalize(scene.state().join("plugins").join(ID).join("current")).unwrap();
    let library = folder.join("libecho.so");
    let make_writable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&folder, make_writable).unwrap();
    std::fs::remove_file(&library).unwrap();
    // A plugin that is whole, but not the one that was signed.
    let mut other = std::fs::read(echo()).unwrap();
    other.push(0);
    std::fs::write(&library, other).unwrap();
    {
        let _server = Server::start(&scene, &[]);
        let echo = listed(&scene);
        assert_eq!(echo["ready"], false);
        assert!(echo["problem"].as_str().unwrap().contains("not the file that was signed"), "{echo}");
    }
    scene.run(&["plugin", "verify"]).expect(1);
    // The same package again mends it, and says so.
    let mended = scene.ok(&["plugin", "install", "echo-0.1.0.plg", "--yes"]);
    assert!(mended.contains("was damaged on disk, and is whole again"), "{mended}");
    scene.ok(&["plugin", "verify"]);
    scene.ok(&["plugin", "remove", ID, "--yes"]);

    // A library that somebody put there is loaded, unless the policy forbids it.
    std::fs::copy(echo(), scene.state().join("plugins/echo.so")).unwrap();
    {
        let _server = Server::start(&scene, &[]);
        let echo = listed(&scene);
        assert_eq!((&echo["ready"], &echo["level"]), (&json!(true), &json!("dev")), "{echo}");
    }
    let _server = Server::start(&scene, &["plugins.trust=org"]);
    let echo = listed(&scene);
    assert_eq!(echo["ready"], false);
    assert!(echo["problem"].as_str().unwrap().contains("nobody signed it"), "{echo}");
}
