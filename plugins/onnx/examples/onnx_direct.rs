//! The yardstick: `ort` called directly, beside this plugin, in one run.
//!
//! ```text
//! cargo run --release -p backplane-onnx --example onnx_direct -- STATE_DIRECTORY [ROUNDS [alone]]
//! ```
//!
//! Prints the time of one MiniLM call of 16 tokens: by `ort`, by `ort` on another thread (what waking one costs on this
//! machine), and by the plugin, whose instance has a thread of its own. Then texts embedded per second for eight clients,
//! all of 16 tokens and of 7 to 38: one by one by `ort` on one session and on two, and batched by the plugin with one and
//! two instances. Rounds alternate; CPU time stands beside wall time, since the machine may have other work. With `alone`, only
//! `ort`, on one session: so `make bench` runs it, and reads the lines that begin with `bench`.
#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use backplane_testkit::{Instance, PluginTest, RequestInput, TensorInput};
use ort::session::Session;
use ort::value::Tensor;
use serde_json::json;
use std::error::Error;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;
/// How long eight clients are measured in each round.
const SPAN: Duration = Duration::from_millis(700);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let state = arguments.next().ok_or("usage: direct STATE_DIRECTORY [ROUNDS [alone]]")?;
    let rounds: usize = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let alone = arguments.next().is_some_and(|part| part == "alone");
    let files = Files::of(Path::new(&state))?;
    let sessions = Direct::open(&files)?;
    let plugin = if alone { None } else { Some(Instances::start(&files)?) };

    let (mut direct, mut hopped, mut through) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        direct.push(p50(|| sessions.call(0, &[7; 16]).map(drop))?);
        hopped.push(on_another_thread(&sessions)?);
        if let Some(plugin) = &plugin {
            through.push(p50(|| plugin.one.call())?);
        }
    }
    let (direct, hopped) = (median(direct), median(hopped));
    print!("bench onnx call=minilm/16 direct={direct:.3} other_thread={hopped:.3}");
    if plugin.is_some() {
        print!(" plugin={:.3}", median(through));
    }
    println!(" (ms, p50; median of {rounds})");

    for (kind, text) in [("16 tokens", equal as fn(usize) -> String), ("7 to 38 tokens", mixed)] {
        let one_session = |n| sessions.embed(0, &text(n));
        let two_sessions = |n: usize| sessions.embed(n % 2, &text(n));
        let mut ways: Vec<(&str, Box<Way<'_>>)> = vec![("direct, one session", Box::new(one_session))];
        if let Some(plugin) = &plugin {
            ways.push(("direct, two sessions", Box::new(two_sessions)));
            ways.push(("plugin, one instance", Box::new(|n| plugin.one.embed(&text(n)))));
            ways.push(("plugin, two instances", Box::new(|n| plugin.two.embed(&text(n)))));
            ways.push(("plugin, one instance of two threads", Box::new(|n| plugin.wide.embed(&text(n)))));
        }
        let mut rates = vec![Vec::new(); ways.len()];
        for _ in 0..rounds {
            for (rate, (_, way)) in rates.iter_mut().zip(&ways) {
                rate.push(clients(way)?);
            }
        }
        let base = median(rates[0].iter().map(|(rate, _)| *rate).collect());
        for ((name, _), rates) in ways.iter().zip(rates) {
            let rate = median(rates.iter().map(|(rate, _)| *rate).collect());
            let cpu = median(rates.iter().map(|(_, cpu)| *cpu).collect());
            println!(
                "bench onnx clients={CLIENTS} texts=\"{kind}\" way=\"{name}\" per_second={rate:.1} cpu_ms={cpu:.2} ratio={:.2}",
                rate / base
            );
        }
    }
    Ok(())
}

/// The plugin in three arrangements. As a library of its own it has an `ort` of its own; both use the one ONNX Runtime in
/// this process.
struct Instances {
    one: Lanes,
    two: Lanes,
    wide: Lanes,
}

impl Instances {
    fn start(files: &Files) -> Outcome<Self> {
        let config = json!({"runtimes": files.runtimes}).to_string();
        let plugin = PluginTest::build("backplane-onnx")?.config(config);
        let lanes = |instances, threads| Lanes::start(&plugin, files, instances, threads);
        Ok(Self { one: lanes(1, 1)?, two: lanes(2, 1)?, wide: lanes(1, 2)? })
    }
}

/// Embeds the text with this number.
type Way<'a> = dyn Fn(usize) -> Outcome<()> + Sync + 'a;

/// Milliseconds of a call, the middle one of many.
fn p50(mut call: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let times = (0..200).map(|_| {
        let start = Instant::now();
        call().map(|()| start.elapsed().as_secs_f64() * 1e3)
    });
    Ok(median(times.collect::<Outcome<_>>()?))
}

/// The direct call, with nothing but a thread to wake before and after it.
fn on_another_thread(sessions: &Direct) -> Outcome<f64> {
    let (ask, asked) = channel::<()>();
    let (tell, told) = channel::<bool>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for () in asked {
                tell.send(sessions.call(0, &[7; 16]).is_ok()).ok();
            }
        });
        let time = p50(|| {
            ask.send(())?;
            if told.recv()? { Ok(()) } else { Err("ort failed".into()) }
        });
        drop(ask);
        time
    })
}

/// What was pulled.
struct Files {
    runtime: String,
    card: serde_json::Value,
    model: String,
    tokenizer: String,
    runtimes: String,
}

impl Files {
    fn of(state: &Path) -> Outcome<Self> {
        let card: toml::Table =
            toml::from_str(&std::fs::read_to_string(state.join("models/cards/minilm.toml"))?)?;
        let mut card = serde_json::to_value(card)?;
        let mut paths = std::collections::HashMap::new();
        for file in card["files"].as_array_mut().ok_or("the card has no files")? {
            let blob = state.join("models/blobs/sha256").join(file["sha256"].as_str().ok_or("no sha256")?);
            file["path"] = json!(blob);
            paths.insert(file["role"].as_str().unwrap_or_default().to_owned(), blob.display().to_string());
        }
        let runtimes = state.join("runtimes");
        let version = std::fs::read_dir(runtimes.join("onnxruntime"))?.next().ok_or("no runtime")??.path();
        let library = std::fs::read_dir(version)?.next().ok_or("no library")??.path();
        Ok(Self {
            runtime: library.display().to_string(),
            model: paths.remove("model").ok_or("no model")?,
            tokenizer: paths.remove("tokenizer").ok_or("no tokenizer")?,
            runtimes: runtimes.display().to_string(),
            card,
        })
    }
}

/// `ort` without a host: what a program does that embeds texts itself.
struct Direct {
    sessions: Vec<Mutex<Session>>,
    tokenizer: tokenizers::Tokenizer,
}

impl Direct {
    fn open(files: &Files) -> Outcome<Self> {
        let environment = ort::init_from(&files.runtime)?.build()?;
        let session = || -> ort::Result<_> {
            let builder = Session::builder(&environment)?.with_intra_threads(1)?;
            Ok(Mutex::new({ builder }.commit_from_file(&files.model)?))
        };
        let mut tokenizer = tokenizers::Tokenizer::from_file(&files.tokenizer)?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Self { sessions: vec![session()?, session()?], tokenizer })
    }

    fn call(&self, session: usize, ids: &[i64]) -> Outcome<Vec<f32>> {
        let shape = [1, ids.len()];
        let tensor = |values: Vec<i64>| Tensor::from_array((shape, values));
        let mut session = self.sessions[session].lock().map_err(|_| "poisoned")?;
        let outputs = session.run(ort::inputs![
            "input_ids" => tensor(ids.to_vec())?,
            "attention_mask" => tensor(vec![1; ids.len()])?,
            "token_type_ids" => tensor(vec![0; ids.len()])?,
        ])?;
        let (_, states) = outputs[0].try_extract_tensor::<f32>()?;
        let mut mean = vec![0.0; 384];
        for state in states.chunks_exact(384) {
            mean.iter_mut().zip(state).for_each(|(sum, x)| *sum += x / ids.len() as f32);
        }
        Ok(mean)
    }

    fn embed(&self, session: usize, text: &str) -> Outcome<()> {
        let encoding = self.tokenizer.encode(text, true)?;
        let ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        self.call(session, &ids).map(drop)
    }
}

/// The plugin as a host runs it: a queue, and a lane for each instance that takes all that waits.
struct Lanes {
    queue: Sender<(RequestInput, Sender<bool>)>,
    instance: Instance,
}

impl Lanes {
    fn start(plugin: &PluginTest, files: &Files, instances: usize, threads: usize) -> Outcome<Self> {
        let mut card = files.card.clone();
        card["parameters"]["threads"] = json!(threads);
        let model = plugin.open(&card.to_string())?;
        let (queue, waiting) = channel();
        let waiting = std::sync::Arc::new(Mutex::new(waiting));
        let mut made = Vec::new();
        for _ in 0..instances {
            let (instance, waiting) = (model.instance()?, waiting.clone());
            made.push(instance.clone());
            std::thread::spawn(move || while lane(&instance, &waiting) {});
        }
        Ok(Self { queue, instance: made.remove(0) })
    }

    fn call(&self) -> Outcome<()> {
        let input = |name: &str, value: i64| TensorInput::int64(name, &[1, 16], &[value; 16]);
        let tensors = vec![input("input_ids", 7), input("attention_mask", 1), input("token_type_ids", 0)];
        match self.instance.submit("tensor.infer", "{}", tensors).wait().is_done() {
            true => Ok(()),
            false => Err("the plugin failed".into()),
        }
    }

    fn embed(&self, text: &str) -> Outcome<()> {
        let (done, answer) = channel();
        let params = json!({"input": [text]}).to_string();
        self.queue.send((RequestInput::new("embed", &params, vec![]), done))?;
        if answer.recv()? { Ok(()) } else { Err("the plugin failed".into()) }
    }
}

/// Takes what waits and answers it. `false` when nobody asks any more.
fn lane(instance: &Instance, waiting: &Mutex<Receiver<(RequestInput, Sender<bool>)>>) -> bool {
    let Ok(queue) = waiting.lock() else { return false };
    let Ok(first) = queue.recv() else { return false };
    let batch: Vec<_> = std::iter::once(first).chain(queue.try_iter().take(CLIENTS - 1)).collect();
    drop(queue);
    let (requests, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    for (running, answer) in instance.send_batch(requests).iter().zip(answers) {
        answer.send(running.wait().is_done()).ok();
    }
    true
}

/// Sentences of 14 words, which are 16 tokens.
fn equal(number: usize) -> String {
    words(14, number)
}

/// Sentences of 5 to 36 words.
fn mixed(number: usize) -> String {
    words(5 + number * 7 % 32, number)
}

fn words(count: usize, number: usize) -> String {
    const WORDS: [&str; 8] = ["ships", "carry", "grain", "across", "quiet", "seas", "before", "winter"];
    (0..count).map(|word| WORDS[(word * 5 + number) % 8]).collect::<Vec<_>>().join(" ")
}

/// Texts per second, and CPU milliseconds for each.
fn clients(embed: &Way<'_>) -> Outcome<(f64, f64)> {
    let (start, before) = (Instant::now(), cpu()?);
    let counts = std::thread::scope(|scope| {
        let client = |client: usize| {
            let mut count = 0;
            while start.elapsed() < SPAN {
                embed(client * 1000 + count)?;
                count += 1;
            }
            Outcome::Ok(count)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        clients
            .into_iter()
            .map(|client| client.join().map_err(|_| "a client panicked")?)
            .collect::<Outcome<Vec<_>>>()
    })?;
    let texts = counts.iter().sum::<usize>() as f64;
    Ok((texts / start.elapsed().as_secs_f64(), (cpu()? - before) * 1e3 / texts))
}

/// CPU seconds of this process.
fn cpu() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
