//! What a faulty plugin may do without ending the process it is in: the whole host with it, in-process and in a worker. The
//! host lives, the others are served, and what it says of itself is believed only as far as it can be.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::config::Isolation;
use backplane::{Answer, Caller, Config, Error, ErrorCode, Host, Next, PartState, Reply, Request};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use support::{FAULTY, LONG, another, echo_library, faulty};

/// A second plugin that misbehaves.
const OTHER: &str = "com.example.other";

/// The log of this test binary.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How many lines of the log have this in them.
fn logged(text: &str) -> usize {
    logged_lines(text).len()
}

/// Those lines.
fn logged_lines(text: &str) -> Vec<String> {
    static LOG: OnceLock<Log> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
        log
    });
    let bytes = log.0.lock().unwrap();
    String::from_utf8_lossy(&bytes).lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// Who looks for what a crash was finds it by the plugin, or by a request that it took with it.
#[tokio::test]
async fn a_crash_is_told_in_the_log_and_where_plugins_are_listed() {
    logged("");
    let scene = start(Isolation::Worker);
    let mut request = Scene::request("segv");
    request.id = "req-that-crashed".to_owned();
    let error = match scene.host.serve(request).await {
        Ok(reply) => reply.collect().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.reason, "worker_crashed", "{error}");
    let last = |id: &str| scene.host.plugins().into_iter().find(|plugin| plugin.id == id).unwrap().last_crash;
    let crash = last(FAULTY).unwrap();
    assert_eq!((crash.kind, &*crash.version), ("SIGSEGV", "1.0.0"));
    assert!(crash.how.starts_with("was killed by SIGSEGV") && 1_700_000_000 < crash.at, "{crash:?}");
    assert_eq!(crash.requests, ["req-that-crashed"]);
    assert_eq!(last("dev.backplane.echo"), None);
    let lines = logged_lines("req-that-crashed");
    let line = lines.iter().find(|line| line.contains("ERROR") && line.contains("the worker was killed"));
    let line = line.unwrap_or_else(|| panic!("{lines:?}"));
    for field in ["plugin=\"com.example.faulty\"", "version=\"1.0.0\"", "pid=", "SIGSEGV"] {
        assert!(line.contains(field), "{line}");
    }
    scene.host.shutdown(Duration::from_secs(5)).await;
}

/// A host with the faulty plugin where it is to run, and with echo beside it.
struct Scene {
    host: Host,
    state: tempfile::TempDir,
}

fn start(isolation: Isolation) -> Scene {
    let state = tempfile::tempdir().unwrap();
    let plugins = state.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::fs::copy(faulty(None).1, plugins.join("libfaulty.so")).unwrap();
    std::fs::copy(another("other").1, plugins.join("libother.so")).unwrap();
    std::fs::copy(echo_library(), plugins.join("libecho.so")).unwrap();
    let scene = start_in(state, isolation);
    let plugin = scene.host.plugins().into_iter().find(|plugin| plugin.id == FAULTY).unwrap();
    assert!(plugin.ready && plugin.isolation == isolation.name(), "{:?}", plugin.problem);
    scene
}

fn start_in(state: tempfile::TempDir, isolation: Isolation) -> Scene {
    let mut config = Config::for_tests();
    config.plugins.isolation = [FAULTY, OTHER].map(|id| (id.to_owned(), isolation)).into();
    let host = Host::builder().config(config).state_dir(state.path()).start().unwrap();
    Scene { host, state }
}

impl Scene {
    fn request(does: &str) -> Request {
        let params = json!({ "do": does }).to_string();
        Request::new(Caller::internal("tests"), "com.example.faulty.do", params).model("faulty")
    }

    async fn ask(&self, does: &str) -> Result<Answer, Error> {
        self.host.serve(Self::request(does)).await?.collect().await
    }

    async fn errno(&self, does: &str) -> Value {
        let answer = self.ask(does).await.unwrap_or_else(|error| panic!("{does}: {error}"));
        answer.json::<Value>().unwrap()[0]["errno"].clone()
    }

    /// Leaves a request that the plugin keeps, and waits until its worker was ended for that.
    async fn leave(&self, number: usize) {
        let stuck = || {
            let count = format!("backplane_plugin_faults_total{{kind=\"stuck\",plugin=\"{FAULTY}\"}} ");
            let figures = self.host.metrics().render();
            figures.lines().find_map(|line| line.strip_prefix(&count)?.parse().ok()).unwrap_or(0)
        };
        let before: usize = stuck();
        let busy = || self.host.model("faulty").unwrap().running.map_or(0, |running| running.busy);
        // While its worker starts again, time may be up before the plugin has the request.
        while before == stuck() && busy() == 0 {
            let params = json!({ "do": "hang", "n": number }).to_string();
            let request =
                Request::new(Caller::internal("tests"), "com.example.faulty.do", params).model("faulty");
            let error = match self.host.serve(request.within(Duration::from_millis(100))).await {
                Ok(reply) => reply.collect().await.err(),
                Err(error) => Some(error),
            };
            assert_eq!(error.map(|error| error.code), Some(ErrorCode::DeadlineExceeded), "{number}");
        }
        self.until("its worker is ended", || before < stuck()).await;
    }

    /// Asks until the plugin serves, or does not; it is refused at once and never for another reason.
    async fn until_quarantined(&self, is: bool) {
        let deadline = Instant::now() + LONG;
        loop {
            let asked = Instant::now();
            let answer = match self.host.serve(Self::request("nothing").within(LONG)).await {
                Ok(reply) => reply.collect().await,
                Err(error) => Err(error),
            };
            assert!(asked.elapsed() < Duration::from_secs(20), "it waited {:?}", asked.elapsed());
            match answer {
                Err(error) if error.reason == "plugin_quarantined" => {
                    assert_eq!(error.code, ErrorCode::Unavailable);
                    assert!(
                        error.message.contains(FAULTY) && error.message.contains("unquarantine"),
                        "{error}"
                    );
                    if is {
                        return;
                    }
                }
                Err(error) => panic!("{error}"),
                Ok(_) if is => {}
                Ok(_) => return,
            }
            assert!(Instant::now() < deadline, "quarantined: {is} did not come true");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where it is noted that the plugin crashed again and again.
    fn note(&self) -> std::path::PathBuf {
        let plugin = self.host.plugins().into_iter().find(|plugin| plugin.id == FAULTY).unwrap();
        self.state.path().join("quarantine").join(format!("{FAULTY}-{}", &plugin.sha256[..16]))
    }

    /// It answers, and so does the other one.
    async fn all_is_well(&self, after: &str) {
        assert_eq!(self.errno("nothing").await, -1, "after {after}");
        let echo = Request::new(Caller::internal("tests"), "echo", r#"{"text":"here"}"#).model("echo");
        let answer = self.host.serve(echo).await.unwrap().collect().await.unwrap();
        assert_eq!(answer.json::<Value>().unwrap()[0]["text"], "here", "after {after}");
    }

    async fn until(&self, what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + LONG;
        while !is() {
            assert!(Instant::now() < deadline, "{what} did not come true");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn piece(stream: &mut Reply) -> Value {
    let Next::Chunk(chunk) = stream.next().await.unwrap() else { panic!("it has ended") };
    serde_json::from_slice(&chunk.json).unwrap()
}

async fn survives(isolation: Isolation) {
    logged("");
    let scene = start(isolation);
    // It bids 65535 of 1000, for anything.
    scene.all_is_well("a bid beyond all bids").await;

    for misuse in ["handles", "finish-twice", "outside"] {
        assert_eq!(scene.errno(misuse).await, 1, "{misuse} was accepted");
        scene.all_is_well(misuse).await;
    }

    // The handle of a request that another plugin has just now.
    let mut stream = scene.host.serve(Scene::request("stream").streamed()).await.unwrap();
    let first = piece(&mut stream).await;
    let params = json!({ "do": "handle-at", "at": first["sink"] }).to_string();
    let request = Request::new(Caller::internal("tests"), "com.example.other.do", params).model("other");
    let answer = scene.host.serve(request).await.unwrap().collect().await.unwrap();
    assert_eq!(answer.json::<Value>().unwrap()[0]["errno"], 1, "the handle of another plugin was accepted");
    let next = piece(&mut stream).await;
    assert_eq!(next["pid"], first["pid"], "its answer goes on, and has nothing of the other's");
    drop(stream);
    scene.all_is_well("the handle of another plugin").await;

    // A code that there is not, with texts that are none, a MiB each.
    let error = scene.ask("noisy-error").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal, "{error:?}");
    let longest = error.message.len().max(error.reason.len());
    assert!(longest <= 64 << 10, "{longest}");
    scene.all_is_well("an error of noise").await;

    // What cannot be read was not said.
    let answer = scene.ask("lies").await.unwrap();
    assert_eq!((answer.done.usage.prompt_tokens, answer.done.usage.completion_tokens), (0, 0));
    assert_eq!(answer.done.confidence, None);
    let answer = scene.ask("many-tokens").await.unwrap();
    assert_eq!(answer.done.confidence, None, "99 is no probability");
    scene.all_is_well("lies about what it consumed").await;

    // 20 000 lines in an instant, and then one more, with which it is said how many were dropped.
    let (before, dropped) = (logged("again and again"), logged("lines were dropped"));
    scene.errno("log").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    scene.errno("log").await;
    let lines = logged("again and again") - before;
    assert!((1..=2000).contains(&lines), "{lines} lines were logged");
    assert!(dropped < logged("lines were dropped"));
    scene.all_is_well("a flood of lines").await;

    // 100 000 names of figures, and a state of health that there is not.
    let figures = scene.host.metrics().render();
    let figures =
        figures.lines().filter(|line| line.contains("figure_") && line.contains("model=\"faulty\"")).count();
    assert!((1..=64).contains(&figures), "{figures} figures");
    assert!(scene.host.model("faulty").is_some());
    scene.all_is_well("figures without end").await;

    // A request that it keeps: in-process its thread is left to it, a worker is ended.
    let kind = if isolation == Isolation::Worker { "stuck" } else { "instance" };
    let count = format!("backplane_plugin_faults_total{{kind=\"{kind}\",plugin=\"{FAULTY}\"}} ");
    for (does, kept) in ["hang", "deadlock", "loop"].into_iter().zip(1..) {
        let error = match scene.host.serve(Scene::request(does).within(Duration::from_millis(300))).await {
            Ok(reply) => reply.collect().await.err(),
            Err(error) => Some(error),
        };
        assert_eq!(error.map(|error| error.code), Some(ErrorCode::DeadlineExceeded), "{does}");
        let counted = || {
            let figures = scene.host.metrics().render();
            figures.lines().find_map(|line| line.strip_prefix(&count)?.parse().ok()).unwrap_or(0)
        };
        scene.until(&count, || kept <= counted()).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = scene.ask("nothing").await {
            assert!(Instant::now() < deadline, "after {does} it is not served any more: {error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scene.all_is_well(does).await;
    }
    scene.host.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_plugin_in_process() {
    survives(Isolation::InProcess).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_plugin_in_a_worker() {
    survives(Isolation::Worker).await;
}

/// What it prints is bounded as what it logs; in-process it is the host's own standard error, and nobody can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_prints_without_end() {
    logged("");
    let scene = start(Isolation::Worker);
    let before = logged("stderr: again and again");
    scene.errno("print").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    scene.errno("print").await;
    scene.until("it is said", || 0 < logged("the plugin printed too much")).await;
    let lines = logged("stderr: again and again") - before;
    assert!((1..=1000).contains(&lines), "{lines} lines were logged");
    scene.all_is_well("printing").await;
}

/// Who leaves early, however often, takes the plugin from nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_left_and_kept_are_no_crashes() {
    let scene = start(Isolation::Worker);
    for number in 0..6 {
        // The last one as before: it is not refused as one that crashes the plugin.
        scene.leave(number.min(4)).await;
    }
    scene.all_is_well("six requests that it kept").await;
    assert!(!scene.note().exists());
    scene.host.shutdown(Duration::from_secs(1)).await;
}

/// A model that was open when its plugin came into quarantine: what waits and what comes is refused, by name, until the
/// note is taken away; also by the next host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_plugin_in_quarantine() {
    let scene = start(Isolation::Worker);
    scene.all_is_well("nothing").await;
    let note = scene.note();
    let quarantine = || {
        std::fs::create_dir_all(note.parent().unwrap()).unwrap();
        std::fs::write(&note, "it crashed again and again").unwrap();
    };
    quarantine();
    // Its only instance is lost, and not replaced.
    scene.leave(0).await;
    scene.until_quarantined(true).await;
    scene.until("the model is closed", || scene.host.model("faulty").unwrap().running.is_none()).await;
    scene.until_quarantined(true).await;
    let plugin = scene.host.plugins().into_iter().find(|plugin| plugin.id == FAULTY).unwrap();
    assert!(plugin.problem.as_ref().is_some_and(|why| why.contains("quarantine")), "{:?}", plugin.problem);
    assert!(plugin.quarantined && !plugin.ready, "{plugin:?}");
    let degraded = || {
        let health = scene.host.health();
        let part = health.parts.into_iter().find(|part| part.part == "plugins").unwrap();
        part.state == PartState::Degraded && part.detail.contains("unquarantine com.example.faulty")
    };
    scene.until("the health report tells it", degraded).await;
    assert!(scene.host.unquarantine(FAULTY).await.unwrap() && !note.exists());
    scene.until_quarantined(false).await;
    assert!(!scene.host.unquarantine(FAULTY).await.unwrap(), "it is in none");
    let unknown = scene.host.unquarantine("com.example.nobody").await.unwrap_err();
    assert_eq!((unknown.code, &*unknown.reason), (ErrorCode::NotFound, "plugin_not_found"));

    quarantine();
    let Scene { host, state } = scene;
    host.shutdown(Duration::from_secs(1)).await;
    drop(host);
    let scene = start_in(state, Isolation::Worker);
    scene.until_quarantined(true).await;
    // It was not loaded by this host, and now it is.
    assert!(scene.host.unquarantine(FAULTY).await.unwrap());
    scene.all_is_well("its quarantine").await;
    scene.host.shutdown(Duration::from_secs(1)).await;
}

/// A plugin that takes all threads of the machine, asks for more without end, and gives none back: the host has no thread for
/// each question, and ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_a_plugin_keeps_come_back() {
    let scene = start(Isolation::Worker);
    scene.all_is_well("nothing").await;
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    assert_eq!(scene.errno("greedy").await, 0);
    let none = r#"backplane_compute_granted_threads{model="faulty"} 0"#;
    let free = || scene.host.metrics().render().lines().any(|line| line == none);
    scene.until("they are taken", || !free()).await;
    assert!(threads() < before + 100, "{} threads", threads());
    scene.all_is_well("taking all threads").await;
    let count = format!("backplane_plugin_faults_total{{kind=\"hoards\",plugin=\"{FAULTY}\"}} 1");
    scene.until(&count, || scene.host.metrics().render().contains(&count)).await;
    let began = Instant::now();
    while !free() {
        let figures = scene.host.metrics().render();
        let figures: Vec<_> = figures.lines().filter(|line| line.contains("_compute_")).collect();
        assert!(began.elapsed() < Duration::from_secs(20), "they are not back: {figures:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.all_is_well("its end").await;
    scene.host.shutdown(Duration::from_secs(1)).await;
}
