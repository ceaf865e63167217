//! The real program for tests: builds it once, starts it on a port of its own, and stops it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in test support a failure is the test's")]

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The state directory with the models that tests use. Missing models fail a test, they skip none.
pub fn test_models() -> PathBuf {
    let dir = std::env::var_os("BACKPLANE_TEST_MODELS")
        .map(PathBuf::from)
        .unwrap_or_else(|| root().join(".cache/state"));
    assert!(
        dir.join("models/cards/smollm2.toml").exists(),
        "no test models in {}: run `make models`, or name a state directory in BACKPLANE_TEST_MODELS",
        dir.display()
    );
    dir
}

/// The file of a model that has one file.
pub fn model_file(model: &str) -> PathBuf {
    let models = test_models().join("models");
    let card = std::fs::read_to_string(models.join("cards").join(format!("{model}.toml"))).unwrap();
    let hash = card.lines().find_map(|line| line.strip_prefix("sha256 = ")).unwrap();
    models.join("blobs/sha256").join(hash.trim_matches('"'))
}

/// Python with the packages of `clients/requirements.txt`, in that folder.
pub fn python() -> Command {
    let python = std::env::var_os("BACKPLANE_TEST_PYTHON")
        .map_or_else(|| root().join(".cache/venv/bin/python"), |path| root().join(path));
    assert!(
        python.exists(),
        "no Python with the client packages: run `make e2e`, or name one in BACKPLANE_TEST_PYTHON"
    );
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(root().join("tests/clients"));
    command
}

/// What was built: the program, and a folder with the plugins.
pub struct Built {
    /// `backplane`, with `backplane-worker` beside it.
    pub program: PathBuf,
    /// Its plugins, and nothing else.
    pub plugins: PathBuf,
}

/// The plugins that come with the program.
const PLUGINS: [&str; 8] = [
    "backplane_cuda",
    "backplane_echo",
    "backplane_llama",
    "backplane_onnx",
    "backplane_remote",
    "backplane_translation",
    "backplane_vector",
    "backplane_vision",
];

/// Builds the program and its plugins, once for each test binary.
pub fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--message-format=json",
                "-p",
                "backplane-cli",
                "-p",
                "backplane-worker",
            ])
            .args(PLUGINS.iter().flat_map(|plugin| ["-p".to_owned(), plugin.replace('_', "-")]))
            .current_dir(root())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "the program did not build");
        // As it is installed: the program, its worker and its plugins beside it, by hard links where they can be.
        let test = std::env::current_exe().unwrap();
        let test = test.file_name().and_then(|name| name.to_str()?.split('-').next()).unwrap_or("test");
        let dir = root().join("target/installed").join(test);
        let (program, plugins) = (dir.join("backplane"), dir.join("plugins"));
        let _before = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&plugins).unwrap();
        let put = |from: &str, to: &Path| {
            if std::fs::hard_link(from, to).is_err() {
                std::fs::copy(from, to).unwrap();
            }
        };
        for message in String::from_utf8(output.stdout).unwrap().lines() {
            let message: Value = serde_json::from_str(message).unwrap();
            let name = message["target"]["name"].as_str().unwrap_or_default();
            if let Some(path) = message["executable"].as_str()
                && ["backplane", "backplane-worker"].contains(&name)
            {
                put(path, &dir.join(name));
            }
            let plugin = PLUGINS.contains(&name);
            for file in message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if plugin && file.ends_with(".so") {
                    put(file, &plugins.join(Path::new(file).file_name().unwrap()));
                }
            }
        }
        assert!(program.exists(), "cargo named no program");
        Built { program, plugins }
    })
}

/// A state directory of a test's own, with the test models in it by hard links: nothing is copied or fetched.
pub fn state_with_models() -> tempfile::TempDir {
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    let mut dir = tempfile::Builder::new();
    let dir = dir.prefix("backplane").permissions(private).tempdir_in(root().join("target")).unwrap();
    for part in ["models", "runtimes"] {
        let from = test_models().join(part);
        let status = Command::new("cp").args(["-rl"]).arg(&from).arg(dir.path()).status().unwrap();
        assert!(status.success(), "{} could not be linked", from.display());
    }
    dir
}

/// As [`state_with_models`], with these models and runtimes alone, whatever else was fetched for tests.
pub fn state_with_models_of(names: &[&str]) -> tempfile::TempDir {
    let dir = state_with_models();
    let files = |folder: &str| {
        let entries = std::fs::read_dir(dir.path().join("models").join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    };
    let mut kept = String::new();
    for card in files("cards") {
        if names.iter().any(|name| card.file_stem().is_some_and(|stem| stem == *name)) {
            kept.push_str(&std::fs::read_to_string(&card).unwrap());
        } else {
            std::fs::remove_file(&card).unwrap();
        }
    }
    // A file is named by its sha256, which the cards that need it write down.
    for blob in
        files("blobs/sha256").filter(|blob| !kept.contains(blob.file_name().unwrap().to_str().unwrap()))
    {
        std::fs::remove_file(&blob).unwrap();
    }
    dir
}

/// Waits until something comes true, for twenty seconds.
pub fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running `backplane serve`.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// The admin key of its first start.
    pub key: String,
    /// Its state directory.
    pub state: tempfile::TempDir,
    /// What it has printed.
    pub output: Arc<Mutex<String>>,
}

impl Server {
    /// Starts with the test models and this configuration; waits until it is ready.
    pub fn start(config: &str) -> Server {
        Self::start_on(state_with_models(), config)
    }

    /// Starts on a state directory.
    pub fn start_on(state: tempfile::TempDir, config: &str) -> Server {
        let file = state.path().join("backplane.toml");
        std::fs::write(&file, config).unwrap();
        let built = built();
        let mut child = Command::new(&built.program)
            .args(["serve", "--config"])
            .arg(&file)
            .arg("--state")
            .arg(state.path())
            .arg("--plugin-dir")
            .arg(&built.plugins)
            .env("BACKPLANE__SERVER__ADDRESS", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let output = output.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let mut output = output.lock().unwrap();
                    output.push_str(&line);
                    output.push('\n');
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let url = loop {
            let said = output.lock().unwrap().clone();
            let found = said.split_whitespace().find_map(|word| {
                let at = word.find("http://127.0.0.1:")?;
                let digits: String = word[at + 17..].chars().take_while(char::is_ascii_digit).collect();
                (!digits.is_empty() && digits != "0").then(|| format!("http://127.0.0.1:{digits}"))
            });
            if let Some(url) = found
                && reqwest::blocking::get(format!("{url}/readyz"))
                    .is_ok_and(|answer| answer.status().is_success())
            {
                break url;
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("backplane ended with {status}:\n{said}");
            }
            assert!(Instant::now() < deadline, "backplane did not get ready:\n{said}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let key = std::fs::read_to_string(state.path().join("admin.key")).unwrap().trim().to_owned();
        Server { child, url, key, state, output }
    }

    /// A request with the admin key.
    pub fn request(&self, method: &str, path: &str) -> reqwest::blocking::RequestBuilder {
        static CLIENT: OnceLock<reqwest::blocking::Client> = OnceLock::new();
        let client = CLIENT.get_or_init(|| {
            reqwest::blocking::Client::builder().timeout(Duration::from_secs(120)).build().unwrap()
        });
        client.request(method.parse().unwrap(), format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// `POST` of JSON: status and body.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.request("POST", path).json(body).send().unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().unwrap_or_default())
    }

    /// `GET`: status and body.
    pub fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.request("GET", path).send().unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().unwrap_or_default())
    }

    /// Value of a metric, the sum of all lines that begin with `line`.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self.request("GET", "/metrics").send().unwrap().text().unwrap();
        text.lines()
            .filter(|other| other.starts_with(line))
            .filter_map(|other| other.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: `TERM`.
    pub fn signal(&self, name: &str) {
        Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// The command line, talking to this server.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(&built().program)
            .args(["--state"])
            .arg(self.state.path())
            .args(arguments)
            .env("BACKPLANE_ADDR", self.url.trim_start_matches("http://"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("TERM");
        if self.wait(Duration::from_secs(15)).is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
