//! Damaged copies of a real model: whatever a file says, opening and asking it end in an answer and not with the
//! process.
//!
//! Each copy is opened by a process of its own, which would show an abort in C as a signal.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod models;

use backplane_llama::engine::{
    Config, Delta, EmbedSink, Embeddings, Engine, Loaded, Push, Sink, Terms, Unlimited,
};
use backplane_plugin::Result as Answer;
use backplane_plugin::payload::{Sampling, Usage, complete, embed};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// What the child process opens.
const FILE: &str = "BACKPLANE_TEST_DAMAGED_FILE";

/// Not a test of its own: what a child process does.
#[test]
fn child() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let config = Config { context: Some(64), slots: 2, batch: 64, ..Config::default() };
    let opened = Loaded::open(Path::new(&path), config)
        .and_then(|loaded| Engine::start(Arc::new(loaded), Arc::new(Unlimited)));
    match opened {
        Ok(engine) => println!("\nresult: opened, {}, {}", continues(&engine), embeds(&engine)),
        Err(error) => println!("\nresult: {:?}: {}", error.reason, error.message),
    }
}

struct End(Sender<String>);

impl Sink for End {
    fn push(&mut self, _: &Delta) -> Push {
        Push::Taken
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn finish(self: Box<Self>, result: Answer<Usage>) {
        let said = result.map(|usage| format!("continued by {}", usage.completion_tokens));
        let _ = self.0.send(said.unwrap_or_else(|error| format!("continued by an error: {}", error.message)));
    }
}

impl EmbedSink for End {
    fn is_gone(&self) -> bool {
        false
    }

    fn finish(self: Box<Self>, result: Answer<(Embeddings, Usage)>) {
        let said = result.map(|(vectors, _)| format!("embedded in {}", vectors.dimensions));
        let _ = self.0.send(said.unwrap_or_else(|error| format!("embedded by an error: {}", error.message)));
    }
}

/// What it has to add to a text, and to tokens.
fn continues(engine: &Engine) -> String {
    let (sender, said) = channel();
    let prompts =
        [complete::Prompt::Text("One, two,".to_owned()), complete::Prompt::Tokens(vec![100, 200, 300])];
    for prompt in prompts {
        let sampling = Sampling { ignore_eos: true, temperature: Some(0.0), ..Sampling::default() };
        let params = complete::Params {
            prompt,
            echo: true,
            logprobs: Some(1),
            sampling,
            max_tokens: Some(4),
            ..complete::Params::default()
        };
        engine.complete(&params, Terms::default(), Box::new(End(sender.clone())));
    }
    let end = || said.recv_timeout(Duration::from_secs(60)).unwrap();
    format!("{}, {}", end(), end())
}

fn embeds(engine: &Engine) -> String {
    let (sender, said) = channel();
    let params =
        embed::Params { input: vec![embed::Input::Text("One, two,".to_owned())], ..embed::Params::default() };
    engine.embed(&params, Terms::default(), Box::new(End(sender)));
    said.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// Opens a file in a process of its own, and says how that went.
fn open(path: &Path) -> Result<String, String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result = text.lines().find_map(|line| line.strip_prefix("result: "));
    match (output.status.success(), result) {
        (true, Some(result)) => Ok(result.to_owned()),
        _ => Err(format!("{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

/// A copy that may be damaged, and its header.
struct Model {
    dir: tempfile::TempDir,
    file: File,
    header: Vec<u8>,
}

impl Model {
    fn copy() -> Model {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::copy(models::smollm2(), &path).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut header = Vec::new();
        File::open(&path).unwrap().take(4 << 20).read_to_end(&mut header).unwrap();
        Model { dir, file, header }
    }

    /// Where what follows this name begins.
    fn after(&self, name: &str) -> usize {
        let text = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
        let at = self.header.windows(text.len()).position(|window| window == text);
        at.expect(name) + text.len()
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model.gguf")
    }

    /// Opens it with `bytes` written over what is at `at`, and mends it.
    fn with(&self, at: usize, bytes: &[u8]) -> Result<String, String> {
        self.file.write_all_at(bytes, at as u64).unwrap();
        let result = open(&self.path());
        self.file.write_all_at(&self.header[at..at + bytes.len()], at as u64).unwrap();
        result
    }
}

/// What the header says of the model, each overwritten with figures that no model has, or another model.
const FIGURES: [&str; 11] = [
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.attention.layer_norm_rms_epsilon",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
];

#[test]
fn whatever_a_header_says_the_process_lives() {
    let model = Model::copy();
    let whole = "opened, continued by 4, continued by 4, embedded in 576";
    assert_eq!(open(&model.path()).unwrap(), whole, "the copy itself");
    let mut cases = Vec::new();
    for key in FIGURES {
        let at = model.after(key) + 4; // the type of the value comes first
        for value in [0u32, 7, 1 << 16, u32::MAX] {
            cases.push((format!("`{key}` is {value}"), at, value));
        }
        cases.push((format!("`{key}` is a string"), at - 4, 8));
    }
    for tensor in ["token_embd.weight", "blk.0.attn_q.weight", "blk.3.attn_norm.weight", "output_norm.weight"]
    {
        let at = model.after(tensor);
        for (what, offset, value) in [
            ("no dimension", 0, 0u32),
            ("three dimensions", 0, 3),
            ("one column", 4, 1),
            ("32 columns", 4, 32),
        ] {
            cases.push((format!("`{tensor}` has {what}"), at + offset, value));
        }
    }
    let died: Vec<_> = cases
        .into_iter()
        .filter_map(|(what, at, value)| model.with(at, &value.to_le_bytes()).err().map(|how| (what, how)))
        .collect();
    assert!(died.is_empty(), "{died:#?}");
}

#[test]
fn a_file_that_ends_early_is_an_invalid_model() {
    let model = Model::copy();
    let whole = model.file.metadata().unwrap().len();
    for length in [whole - 1, whole / 2, 4 << 20, 1 << 20, 4096, 25, 24, 8, 3, 0] {
        model.file.set_len(length).unwrap();
        let said = open(&model.path()).unwrap();
        assert!(said.contains("model_invalid"), "cut to {length} bytes: {said}");
    }
}
