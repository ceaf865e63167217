//! Plugins that call plugins, with the one that calls in a worker: the real host, real models, and the answer that it has
//! in-process.

use crate::state;
use backplane::config::Isolation;
use backplane::{Answer, Caller, Config, Host, Request, Tensor};
use backplane_testkit::library;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A state directory with this one of the test models, by hard links where they can be, and with these plugins.
fn state_with(model: &str, plugins: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for part in ["models", "runtimes"] {
        let from = state().join(part);
        let linked = Command::new("cp").arg("-rl").args([&from, folder.path()]).status().unwrap().success();
        let copied = || Command::new("cp").arg("-r").args([&from, folder.path()]).status().unwrap().success();
        assert!(linked || copied(), "{}", from.display());
    }
    for card in std::fs::read_dir(folder.path().join("models/cards")).unwrap() {
        let card = card.unwrap().path();
        if card.file_stem().unwrap() != model {
            std::fs::remove_file(card).unwrap();
        }
    }
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    for plugin in plugins {
        let from = library(plugin).unwrap();
        std::fs::copy(&from, folder.path().join("plugins").join(from.file_name().unwrap())).unwrap();
    }
    folder
}

/// Asks a host in which this plugin runs so, and all others in-process, with this model open.
async fn ask(
    state: &Path,
    (plugin, model): (&str, &str),
    isolation: Isolation,
    request: impl Fn() -> Request,
) -> Answer {
    let mut config = Config::for_tests();
    config.plugins.isolation.insert(plugin.to_owned(), isolation);
    let host = Host::builder().config(config).state_dir(state).start().unwrap();
    let info = host.plugins().into_iter().find(|info| info.id == plugin).unwrap();
    assert!(info.ready && info.isolation == isolation.name(), "{:?}", info.problem);
    // A plugin that looks into a model's file for the first time may be late with its bid.
    host.load(model, None).await.unwrap();
    let reply = host.serve(request().within(Duration::from_secs(120))).await.unwrap();
    let answer = reply.collect().await.unwrap();
    host.shutdown(Duration::from_secs(10)).await;
    answer
}

/// What was said in-process and in a worker, which is the same.
async fn said_in_both(state: &Path, plugin: (&str, &str), request: impl Fn() -> Request) -> Value {
    let here = ask(state, plugin, Isolation::InProcess, &request).await;
    let there = ask(state, plugin, Isolation::Worker, &request).await;
    let said = |answer: &Answer| answer.json::<Value>().unwrap();
    assert_eq!(said(&here), said(&there));
    assert_eq!(format!("{:?}", here.chunks), format!("{:?}", there.chunks), "to the last byte");
    said(&there)[0].clone()
}

/// A page with words in large letters: five columns and seven rows of dots each, as terminals had them.
fn page(words: &str) -> Vec<u8> {
    const LETTERS: &[(char, [u8; 7])] = &[
        ('D', [0b11110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b11110]),
        ('E', [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111]),
        ('H', [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001]),
        ('L', [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111]),
        ('O', [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110]),
        ('R', [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001]),
        ('W', [0b10001, 0b10001, 0b10001, 0b10101, 0b10101, 0b11011, 0b10001]),
    ];
    const DOT: usize = 6;
    let (width, height) = (words.len() * 6 * DOT + 80, 7 * DOT + 80);
    let mut pixels = vec![255u8; width * height];
    for (place, letter) in words.chars().enumerate() {
        let Some((_, rows)) = LETTERS.iter().find(|(known, _)| *known == letter) else { continue };
        for (x, y) in (0..7 * DOT).flat_map(|y| (0..5 * DOT).map(move |x| (x, y))) {
            if rows[y / DOT] >> (4 - x / DOT) & 1 == 1 {
                pixels[(40 + y) * width + 40 + place * 6 * DOT + x] = 0;
            }
        }
    }
    [format!("P5 {width} {height} 255\n").into_bytes(), pixels].concat()
}

#[tokio::test]
async fn vision_in_a_worker_has_its_graphs_run() {
    let state = state_with("pp-ocr", &["backplane-vision", "backplane-onnx"]);
    let page = page("HELLO WORLD");
    let len = u32::try_from(page.len()).unwrap().to_le_bytes();
    let page = [&len[..], &page].concat();
    let request = || {
        let image = Tensor::new("image", backplane::DType::Bytes, vec![1], page.clone()).unwrap();
        let mut request =
            Request::new(Caller::internal("tests"), "vision.ocr", r#"{"words":true}"#).model("pp-ocr");
        request.tensors = vec![image];
        request
    };
    let said = said_in_both(state.path(), ("dev.backplane.vision", "pp-ocr"), request).await;
    let text = said["text"].as_str().unwrap().replace(' ', "");
    assert_eq!(text.trim(), "HELLOWORLD", "{said}");
}

#[tokio::test]
async fn translation_in_a_worker_asks_a_chat_model() {
    let state = state_with("smollm2", &["backplane-translation", "backplane-llama"]);
    let params = json!({"text": ["Good morning, my friend."], "source": "en", "target": "fr"});
    let request =
        || Request::new(Caller::internal("tests"), "translate", params.to_string()).model("translator");
    let said = said_in_both(state.path(), ("dev.backplane.translation", "smollm2"), request).await;
    let translation = &said["translations"][0];
    assert_eq!(translation["engine"], "chat", "{said}");
    assert!(translation["text"].as_str().unwrap().contains("Bonjour"), "{said}");
}
