//! From a line of C to a sold plugin that is upgraded under load: every link of the chain between an author and a caller
//! in one walk, with the real program and nothing but commands that people would type.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Done, Server, command};

const ID: &str = "com.acme.words";
const CLIENTS: usize = 32;

/// An author's and vendor's folder, and beside it the state directory of an operator.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        support::worker();
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn run(&self, line: &str) -> Done {
        let mut command = command(&self.state());
        Done::of(command.current_dir(self.folder.path()).args(line.split_whitespace()).output().unwrap())
    }

    fn json(&self, line: &str) -> Value {
        self.run(&format!("{line} --json")).expect(0).json()
    }

    /// Changes a file of the author's.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no `{from}`");
        std::fs::write(self.path(name), text.replace(from, to)).unwrap();
    }

    /// Builds what lies there and packs it, signed.
    fn package(&self, version: &str) -> String {
        let made = Command::new("make")
            .args(["-C", "words"])
            .current_dir(self.folder.path())
            .env_remove("CFLAGS")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let to = format!("words-{version}.plg");
        self.run(&format!("plugin pack words/libwords.so --key acme.key -o {to}")).expect(0);
        to
    }

    /// Signs a licence and installs it.
    fn license(&self, id: &str, members: &str) {
        let file = format!("{id}.lic");
        self.run(&format!(
            "license issue --key acme.key --template words.toml --set id={id} {members} --out {file}"
        ))
        .expect(0);
        self.run(&format!("license install {file}")).expect(0);
    }
}

/// Asks over HTTP as any client would.
#[derive(Clone)]
struct Client {
    http: reqwest::blocking::Client,
    url: String,
    key: String,
}

impl Client {
    fn of(scene: &Scene, server: &Server) -> Self {
        let url = server.said["url"].as_str().unwrap().to_owned();
        let key = std::fs::read_to_string(scene.state().join("admin.key")).unwrap().trim().to_owned();
        let http = reqwest::blocking::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { http, url, key }
    }

    /// Status and text of an answer.
    fn ask(&self, text: &str, stream: bool) -> (u16, String) {
        let body = json!({ "params": { "text": text }, "stream": stream });
        let request = self.http.post(format!("{}/v1/capabilities/{ID}", self.url)).bearer_auth(&self.key);
        match request.json(&body).send() {
            Ok(answer) => (answer.status().as_u16(), answer.text().unwrap_or_else(|error| error.to_string())),
            Err(error) => (0, error.to_string()),
        }
    }

    /// What the header says.
    fn license_state(&self, path: &str) -> Option<String> {
        let answer = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.key).send().unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        Some(answer.headers().get("x-license-state")?.to_str().unwrap().to_owned())
    }

    /// Waits until the licence is in force, or is not any more.
    fn until(&self, status: u16) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (found, said) = self.ask("a bee", false);
            if found == status {
                return said;
            }
            assert!(Instant::now() < deadline, "{found}, not {status}: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Clients that ask all the time, half of them in streams, and want every word.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    clients: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn of(client: &Client) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let ask = |number: usize| {
            let (client, stop, answers) = (client.clone(), stop.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let words: Vec<String> = (0..40).map(|place| format!("w{number}x{place}")).collect();
                    let stream = number.is_multiple_of(2);
                    let (status, said) = client.ask(&words.join(" "), stream);
                    let all = words.iter().all(|word| said.contains(&format!("\"{word}\"")));
                    if status != 200 || !all || (stream && !said.trim_end().ends_with("[DONE]")) {
                        failed.push(format!("{status}: {said}"));
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        };
        let clients = (0..CLIENTS).map(ask).collect();
        Self { stop, answers, clients }
    }

    /// Waits for so many answers more.
    fn more(&self, count: u64) {
        let (until, deadline) =
            (self.answers.load(Ordering::Relaxed) + count, Instant::now() + Duration::from_secs(60));
        while self.answers.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < deadline, "nobody is answered any more");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.answers.load(Ordering::Relaxed), failed)
    }
}

/// The workers that a server has started.
fn workers(server: &Server) -> usize {
    let pid = server.pid();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<String> =
        children.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let is_worker = |pid: &&String| {
        std::fs::read_link(Path::new("/proc").join(pid).join("exe"))
            .is_ok_and(|exe| exe.to_string_lossy().contains("backplane-worker"))
    };
    children.iter().filter(is_worker).count()
}

#[test]
fn a_plugin_in_c_is_packed_signed_installed_licensed_and_upgraded_under_load() {
    let scene = Scene::new();

    // The author: from the template, sold from the first version on.
    scene.run(&format!("plugin new words --lang c --id {ID}")).expect(0);
    let vendor = scene.json("license keygen --owner acme --out acme");
    let key = vendor["public"].as_str().unwrap();
    let sold = format!("abi = \"1.0\"\nlicence_class = \"commercial\"\nvendor_keys = [\"{key}\"]\n");
    scene.edit("words/plugin.toml", "abi = \"1.0\"\n", &sold);
    let first = scene.package("0.1.0");
    scene.run("plugin check words/libwords.so --level abi").expect(0);
    let template =
        format!("licensee = {{ id = 'cus_1', name = 'Example GmbH' }}\nproduct = {{ plugin = '{ID}' }}\n");
    std::fs::write(scene.path("words.toml"), template).unwrap();

    // The operator: a server that loads nothing that nobody signed, and knows nobody yet.
    let settings =
        "[plugins]\ntrust = \"org\"\nisolation = { \"*\" = \"auto\" }\nupgrade = { hold = \"2s\" }\n";
    std::fs::create_dir(scene.state()).unwrap();
    std::fs::write(scene.path("state/backplane.toml"), settings).unwrap();
    let server = Server::start(&scene.state(), &[]);
    let client = Client::of(&scene, &server);
    let refused = scene.run(&format!("plugin install {first} --yes")).expect(5);
    assert!(refused.err.contains("none of the keys that signed it is trusted"), "{refused:?}");
    let roles = "--role plugin --role license --role revocation";
    scene.run(&format!("plugin trust add acme.pub --plugins com.acme.* {roles}")).expect(0);

    // Installed, and not paid for.
    let shown = scene.run(&format!("plugin install {first} --yes")).expect(0);
    for said in ["signed by", "level      org", "serves     com.acme.words/1", "missing", "license install"] {
        assert!(shown.err.contains(said), "`{said}`: {shown:#?}");
    }
    let (status, said) = client.ask("a bee", false);
    assert!(status == 403 && said.contains("plugin_license_missing"), "{status}: {said}");

    // Paid for: served by a worker from now on, without a restart.
    scene.license("lic_1", "--set exp=2098-01-01T00:00:00Z");
    client.until(200);
    let listed = scene.json("plugin ls");
    let words = listed.as_array().unwrap().iter().find(|plugin| plugin["id"] == ID).unwrap();
    assert_eq!(
        (&words["isolation"], &words["level"], &words["signer"], &words["license"]["state"]),
        (&json!("worker"), &json!("org"), &json!("acme"), &json!("valid")),
        "{words}"
    );
    assert!(workers(&server) > 0, "it runs in a process of its own");
    assert_eq!(client.license_state("/admin/v1/models").as_deref(), Some("com.acme.words=valid"));
    assert_eq!(client.license_state("/v1/models"), None, "that is for administrators");

    // The next version, and a renewal, while thirty-two clients ask all the time.
    scene.edit("words/plugin.toml", "version = \"0.1.0\"", "version = \"0.2.0\"");
    scene.edit("words/plugin.c", "VERSION \"0.1.0\"", "VERSION \"0.2.0\"");
    let second = scene.package("0.2.0");
    let load = Load::of(&client);
    load.more(200);
    let upgraded = scene.json(&format!("plugin install {second} --yes"));
    let upgrade = &upgraded["upgrade"];
    assert_eq!(
        (&upgrade["state"], &upgrade["from"], &upgrade["to"], &upgrade["failures"], &upgrade["old_failures"]),
        (&json!("done"), &json!("0.1.0"), &json!("0.2.0"), &json!(0), &json!(0)),
        "{upgraded}"
    );
    assert!(upgrade["requests"].as_u64().unwrap() > 0, "it was tried on real requests: {upgrade}");
    load.more(200);
    scene.license("lic_2", "--set exp=2099-01-01T00:00:00Z --set serial=9999999999");
    scene.run("license remove lic_1").expect(0);
    std::thread::sleep(Duration::from_millis(1500));
    load.more(200);
    let back = scene.json(&format!("plugin rollback {ID}"));
    assert_eq!(back["upgrade"]["to"], "0.1.0", "{back}");
    load.more(200);
    let (answers, failed) = load.end();
    assert!(failed.is_empty(), "{} of {answers} failed, first {}", failed.len(), failed[0]);
    assert!(answers > 800, "{answers}");

    // The vendor takes the last one back, and is told what was used under both.
    scene.run("license revoke --key acme.key --list acme.dsse lic_2").expect(0);
    scene.run("license install acme.dsse").expect(0);
    let refused = client.until(403);
    assert!(refused.contains("plugin_license_revoked") && refused.contains("lic_2"), "{refused}");
    let report = scene.json(&format!("license usage export {ID} --out usage.txt"));
    let used = report["used"].as_array().unwrap();
    let licences: Vec<&str> = used.iter().map(|sum| sum["licence"].as_str().unwrap()).collect();
    assert!(licences.contains(&"lic_1") && licences.contains(&"lic_2"), "{report}");
    let requests: u64 = used.iter().map(|sum| sum["requests"].as_u64().unwrap()).sum();
    assert!(requests >= answers, "{requests} of {answers}: {report}");
    assert_eq!(scene.json("license usage read usage.txt"), report);
    let (status, health) = {
        let answer = client.http.get(format!("{}/readyz", client.url)).send().unwrap();
        (answer.status().as_u16(), answer.text().unwrap())
    };
    assert_eq!(status, 200, "a licence stops no server: {health}");
    drop(server);
}
