//! Real models against what ONNX Runtime's own Python binding gives (`fixtures/reference.py`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_testkit::{Answer, DType, End, Instance, RequestInput, TensorInput};
use serde_json::{Value, json};
use support::{floats, plugin, pulled};

fn reference() -> Value {
    serde_json::from_str(include_str!("fixtures/reference.json")).unwrap()
}

fn open(name: &str) -> Instance {
    plugin().open(&pulled(name)).unwrap().instance().unwrap()
}

fn vectors(answer: &Answer) -> Vec<Vec<f32>> {
    let tensor = answer.tensor("embeddings").unwrap_or_else(|| panic!("it {}", answer.end));
    assert_eq!((tensor.dtype, tensor.shape[1]), (DType::Fp32, 384));
    floats(&tensor.data).chunks(384).map(<[f32]>::to_vec).collect()
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn expected(reference: &Value) -> Vec<f32> {
    serde_json::from_value(reference["vector"].clone()).unwrap()
}

#[test]
fn minilm_embeds_as_its_reference() {
    let reference = reference();
    let all = reference["minilm"].as_array().unwrap();
    let instance = open("minilm");
    let texts: Vec<&Value> = all.iter().map(|one| &one["text"]).collect();

    // All at once, which pads and sorts; one by one; and as tokens.
    let together = instance.submit("embed", &json!({"input": texts}).to_string(), vec![]).wait();
    for (vector, reference) in vectors(&together).iter().zip(all) {
        assert!(cosine(vector, &expected(reference)) > 0.9999, "{}", reference["text"]);
    }
    let tokens: usize = all.iter().map(|one| one["ids"].as_array().unwrap().len()).sum();
    let End::Done { usage, .. } = &together.end else { panic!("it {}", together.end) };
    assert_eq!(usage["prompt_tokens"], tokens);
    for reference in all {
        for input in [&reference["text"], &reference["ids"]] {
            let answer = instance.submit("embed", &json!({"input": [input]}).to_string(), vec![]).wait();
            assert!(cosine(&vectors(&answer)[0], &expected(reference)) > 0.9999, "{}", reference["text"]);
        }
    }
}

#[test]
fn minilm_knows_what_is_alike() {
    let reference = reference();
    let instance = open("minilm");
    let texts: Vec<&Value> = reference["minilm"].as_array().unwrap().iter().map(|one| &one["text"]).collect();
    let vectors = vectors(&instance.submit("embed", &json!({"input": texts}).to_string(), vec![]).wait());
    let (guitar, instrument, stocks) = (&vectors[0], &vectors[1], &vectors[2]);
    assert!(cosine(guitar, instrument) > 0.6 && cosine(guitar, stocks) < 0.15);
}

#[test]
fn requests_of_several_clients_get_the_vectors_they_would_get_alone() {
    let instance = open("minilm");
    let texts: Vec<String> =
        (0..8).map(|n| format!("client {n} asks {}", "something longer ".repeat(n))).collect();
    let request = |text: &String| RequestInput::new("embed", &json!({"input": [text]}).to_string(), vec![]);
    let alone: Vec<_> = texts.iter().map(|text| vectors(&instance.send(request(text)).wait())).collect();
    let together = instance.send_batch(texts.iter().map(request).collect());
    for (alone, together) in alone.iter().zip(together) {
        let together = vectors(&together.wait());
        let apart =
            alone[0].iter().zip(&together[0]).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "{apart}");
    }
    let stats: std::collections::HashMap<_, _> = instance.model().stats().unwrap().into_iter().collect();
    assert!(stats["runs_total"] < 16.0, "{stats:?}");
}

#[test]
fn minilm_describes_itself_and_counts() {
    let model = plugin().open(&pulled("minilm")).unwrap();
    let about = model.describe();
    assert_eq!(
        (&about["dimensions"], &about["context"], &about["batch"]),
        (&json!(384), &json!(256), &json!(true))
    );
    assert_eq!(about["inputs"][0], json!({"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]}));
    assert_eq!(
        about["outputs"][0],
        json!({"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, 384]})
    );
    let count = |params: Value| model.count_tokens("embed", &params.to_string()).unwrap();
    assert_eq!(count(json!({"input": ["A man is playing a guitar.", "Cats"]})).unwrap(), 12);
    let long = "word ".repeat(400);
    let refused = count(json!({"input": [long]})).unwrap_err();
    assert_eq!((&refused.details["n_prompt"], &refused.details["n_ctx"]), (&json!(402), &json!(256)));
    assert_eq!(count(json!({"input": [long], "truncate": true})).unwrap(), 256);
    assert!(model.count_tokens("tensor.infer", "{}").unwrap().is_err(), "tensors have no tokens");
}

/// As `fixtures/reference.py` has it.
fn features(content: &[u8]) -> Vec<u8> {
    let first = content[..content.len().min(4096)].trim_ascii_start();
    let last = content[content.len().saturating_sub(4096)..].trim_ascii_end();
    let first = &first[..first.len().min(1024)];
    let last = &last[last.len().saturating_sub(1024)..];
    let row = first.iter().map(|&byte| i32::from(byte)).chain(std::iter::repeat_n(256, 1024 - first.len()));
    let row = row
        .chain(std::iter::repeat_n(256, 1024 - last.len()))
        .chain(last.iter().map(|&byte| i32::from(byte)));
    row.flat_map(i32::to_le_bytes).collect()
}

#[test]
fn magika_names_files_as_its_reference() {
    let reference = reference();
    let all = reference["magika"].as_array().unwrap();
    let instance = open("magika");
    for reference in all {
        let data = features(reference["content"].as_str().unwrap().as_bytes());
        let tensor = TensorInput::new("bytes", DType::Int32, &[1, 2048], data);
        let answer = instance.submit("tensor.infer", "{}", vec![tensor]).wait();
        let scores = floats(&answer.tensor("target_label").unwrap().data);
        assert_eq!(scores.len(), 214);
        let best = (0..scores.len()).max_by(|&one, &other| scores[one].total_cmp(&scores[other])).unwrap();
        assert_eq!(best as u64, reference["best"].as_u64().unwrap(), "{}", reference["label"]);
        assert!((f64::from(scores[best]) - reference["score"].as_f64().unwrap()).abs() < 1e-3);
    }
}
