//! `embed`, `rerank` and `classify` on graphs whose numbers can be worked out by hand.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_registry::onnx::Attribute::Int;
use backplane_registry::onnx::Graph;
use backplane_registry::onnx::Side::{Any, Is};
use backplane_testkit::{Answer, Code, DType, End, Failure, Instance, RequestInput, TensorInput};
use serde_json::{Value, json};
use support::{Made, floats, tokenizer};

const TOKENS: usize = 13;

/// Each token's state is its number and its square, whatever stands beside it.
fn states() -> Vec<u8> {
    let table: Vec<f32> = (0..TOKENS).flat_map(|id| [id as f32, (id * id) as f32]).collect();
    Graph::default()
        .input("input_ids", DType::Int64, &[Any("batch"), Any("sequence")])
        .input("attention_mask", DType::Int64, &[Any("batch"), Any("sequence")])
        .output("last_hidden_state", DType::Fp32, &[Any("batch"), Any("sequence"), Is(2)])
        .floats("t", &[TOKENS, 2], &table)
        .node("Gather", &["t", "input_ids"], &["last_hidden_state"], &[])
        .finish("states")
}

/// One number for each row: the sum of the numbers of its tokens, `labels` times.
fn sums(labels: usize) -> Vec<u8> {
    let table: Vec<f32> =
        (0..TOKENS * labels).map(|n| (n / labels) as f32 * (1.0 + (n % labels) as f32) / 10.0).collect();
    Graph::default()
        .input("input_ids", DType::Int64, &[Any("batch"), Any("sequence")])
        .input("attention_mask", DType::Int64, &[Any("batch"), Any("sequence")])
        .input("token_type_ids", DType::Int64, &[Any("batch"), Any("sequence")])
        .output("logits", DType::Fp32, &[Any("batch"), Is(labels)])
        .floats("t", &[TOKENS, labels], &table)
        .integers("last", &[-1])
        .integers("second", &[1])
        .node("Gather", &["t", "input_ids"], &["states"], &[])
        .node("Cast", &["attention_mask"], &["mask"], &[("to", Int(1))])
        .node("Unsqueeze", &["mask", "last"], &["column"], &[])
        .node("Mul", &["states", "column"], &["present"], &[])
        .node("ReduceSum", &["present", "second"], &["logits"], &[("keepdims", Int(0))])
        .finish("sums")
}

fn embedder(parameters: Value) -> Made {
    Made::of(&states(), parameters).file("tokenizer", "tokenizer.json", &tokenizer()).serves(&["embed"])
}

fn ask(instance: &Instance, capability: &str, params: &Value) -> Answer {
    instance.submit(capability, &params.to_string(), vec![]).wait()
}

fn vectors(answer: &Answer) -> Vec<Vec<f32>> {
    let tensor = answer.tensor("embeddings").unwrap_or_else(|| panic!("it {}", answer.end));
    let width = tensor.shape[1] as usize;
    floats(&tensor.data).chunks(width).map(<[f32]>::to_vec).collect()
}

fn failure(answer: &Answer) -> Failure {
    answer.failure().cloned().unwrap_or_else(|| panic!("it {}", answer.end))
}

fn tokens(answer: &Answer) -> u64 {
    let End::Done { usage, .. } = &answer.end else { panic!("it {}", answer.end) };
    usage["prompt_tokens"].as_u64().unwrap()
}

#[test]
fn three_ways_to_pool_and_padding_counts_for_none() {
    // `[ a c ]` is 1 3 5 2, `[ j ]` is 1 12 2.
    for (pooling, expected) in [
        ("mean", [[11.0 / 4.0, 39.0 / 4.0], [15.0 / 3.0, 149.0 / 3.0]]),
        ("cls", [[1.0, 1.0], [1.0, 1.0]]),
        ("max", [[5.0, 25.0], [12.0, 144.0]]),
    ] {
        let instance = embedder(json!({"pooling": pooling, "normalise": false})).instance();
        let answer = ask(&instance, "embed", &json!({"input": ["a c", "j"]}));
        assert_eq!(vectors(&answer), expected, "{pooling}");
        assert_eq!(tokens(&answer), 7);
    }
}

#[test]
fn a_normal_vector_has_length_one() {
    let instance = embedder(json!({})).instance();
    let answer = ask(&instance, "embed", &json!({"input": ["a", "b c", ""]}));
    for vector in vectors(&answer) {
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
    }
    assert_eq!(instance.model().describe()["dimensions"], 2);
}

#[test]
fn many_inputs_keep_their_order_whatever_runs_together() {
    // 12 tokens a run: what is alike in length runs together, and comes back where it was.
    let instance = embedder(json!({"normalise": false, "max_batch_tokens": 12})).instance();
    let texts: Vec<String> =
        (0..40).map(|n| ["a", "b", "c", "d", "e"][n % 5].to_owned() + &" j".repeat(n * 7 % 10)).collect();
    let answer = ask(&instance, "embed", &json!({"input": texts}));
    let expected: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| {
            let ids = [1]
                .into_iter()
                .chain(text.split(' ').map(|word| 3 + (word.as_bytes()[0] - b'a') as u32))
                .chain([2]);
            let ids: Vec<f32> = ids.map(|id| id as f32).collect();
            let count = ids.len() as f32;
            vec![ids.iter().sum::<f32>() / count, ids.iter().map(|id| id * id).sum::<f32>() / count]
        })
        .collect();
    for (place, (one, other)) in vectors(&answer).iter().zip(&expected).enumerate() {
        assert!(
            one.iter().zip(other).all(|(one, other)| (one - other).abs() < 1e-4),
            "{place}: {one:?} {other:?}"
        );
    }
    let stats: std::collections::HashMap<_, _> = instance.model().stats().unwrap().into_iter().collect();
    assert!(stats["runs_total"] > 10.0 && stats["runs_total"] <= 40.0, "{stats:?}");
    assert_eq!(stats["tokens_total"], tokens(&answer) as f64);
}

#[test]
fn several_requests_are_embedded_together_and_each_is_answered() {
    let instance = embedder(json!({"normalise": false})).instance();
    let request = |params: Value| RequestInput::new("embed", &params.to_string(), vec![]);
    let bad = json!({"input": ["a"], "dimensions": 1});
    let answers: Vec<Answer> = instance
        .send_batch(vec![
            request(json!({"input": ["a", "b"]})),
            request(bad),
            request(json!({"input": "c".split(' ').collect::<Vec<_>>()})),
        ])
        .iter()
        .map(|running| running.wait())
        .collect();
    assert_eq!(vectors(&answers[0]).len(), 2);
    assert_eq!(failure(&answers[1]).details["param"], "dimensions");
    assert_eq!(vectors(&answers[2]), [[8.0 / 3.0, 30.0 / 3.0]]);
    assert!(instance.model().stats().unwrap().contains(&("runs_total".to_owned(), 1.0)), "all in one run");
}

#[test]
fn what_is_too_long_is_refused_with_counts_or_cut_on_request() {
    let instance = embedder(json!({"max_length": 4, "normalise": false})).instance();
    let params = |truncate: bool| json!({"input": ["a", "a b c"], "truncate": truncate});
    let refused = failure(&ask(&instance, "embed", &params(false)));
    assert_eq!((refused.canonical(), &*refused.reason), (Some(Code::OutOfRange), "context_length_exceeded"));
    assert_eq!((&refused.details["n_prompt"], &refused.details["n_ctx"]), (&json!(5), &json!(4)));
    assert_eq!(refused.details["param"], "input[1]");
    let cut = ask(&instance, "embed", &params(true));
    assert_eq!(vectors(&cut)[1], [10.0 / 4.0, 30.0 / 4.0], "`[ a b ]`");
    assert_eq!(instance.model().describe()["context"], 4);
    let model = instance.model();
    assert_eq!(model.count_tokens("embed", &params(true).to_string()).unwrap().unwrap(), 7);
    assert_eq!(
        model.count_tokens("embed", &params(false).to_string()).unwrap().unwrap_err().reason,
        refused.reason
    );
}

#[test]
fn tokens_are_taken_as_they_are() {
    let instance = embedder(json!({"normalise": false, "prefix": "j "})).instance();
    let answer = ask(&instance, "embed", &json!({"input": [[3, 5], "a"]}));
    assert_eq!(vectors(&answer)[0], [4.0, 17.0], "no special tokens and no prefix");
    assert_eq!(vectors(&answer)[1], [18.0 / 4.0, 158.0 / 4.0], "`[ j a ]`: texts have the prefix");
    for (input, says) in [
        (json!([[3, 13]]), "`input[0]` has the token 13 at 1"),
        (json!(["a", []]), "`input[1]` is empty"),
        (json!([]), "`input` is empty"),
    ] {
        let refused = failure(&ask(&instance, "embed", &json!({"input": input})));
        assert_eq!(refused.canonical(), Some(Code::InvalidArgument));
        assert!(refused.message.contains(says), "{refused}");
    }
}

#[test]
fn dimensions_are_cut_only_where_the_model_was_trained_for_it() {
    let fixed = embedder(json!({})).instance();
    let params = |dimensions: u32| json!({"input": ["a"], "dimensions": dimensions});
    let refused = failure(&ask(&fixed, "embed", &params(1)));
    assert!(refused.message.contains("`dimensions` is 1, and this model's vectors have 2"), "{refused}");
    assert_eq!(refused.details["param"], "dimensions");
    assert_eq!(vectors(&ask(&fixed, "embed", &params(2)))[0].len(), 2, "all of them is no cut");

    let nested = embedder(json!({"matryoshka": true})).instance();
    assert_eq!(vectors(&ask(&nested, "embed", &params(1))), [[1.0]], "cut and normal again");
    for wrong in [0, 3] {
        assert_eq!(failure(&ask(&nested, "embed", &params(wrong))).canonical(), Some(Code::InvalidArgument));
    }
}

#[test]
fn an_unknown_parameter_is_refused_by_its_name() {
    let refused =
        failure(&ask(&embedder(json!({})).instance(), "embed", &json!({"input": ["a"], "inptu": 1})));
    assert_eq!(refused.details["param"], "inptu");
}

#[test]
fn a_graph_that_pools_itself_is_read_as_it_is() {
    let graph = || sums(3);
    let made = |parameters| {
        Made::of(&graph(), parameters).file("tokenizer", "t.json", &tokenizer()).serves(&["embed"])
    };
    let instance = made(json!({"normalise": false})).instance();
    let vector = &vectors(&ask(&instance, "embed", &json!({"input": ["a"]})))[0];
    assert!(vector.iter().zip([0.6, 1.2, 1.8]).all(|(one, other)| (one - other).abs() < 1e-6), "{vector:?}");
    let refused = made(json!({"pooling": "mean"})).open().err().unwrap();
    assert!(
        refused.message.contains("no output for this capability, only `logits` FP32 [-1, 3]"),
        "{refused}"
    );
}

#[test]
fn a_card_that_does_not_fit_its_graph_is_refused_when_it_is_opened() {
    let without = Made::of(&states(), json!({})).serves(&["embed"]).open().err().unwrap();
    assert!(without.message.contains("no file with role `tokenizer`"), "{without}");
    for (parameters, says) in [
        (json!({"dimensions": 3}), "`dimensions` is 3, and its output `last_hidden_state` has 2"),
        (json!({"output": "pooler"}), "`output` is `pooler`, and `last_hidden_state` can be read"),
        (json!({"max_length": 2}), "`max_length` is 2, which the special tokens fill alone"),
        (json!({"pooling": "sum"}), "`sum`"),
        (json!({"normalize": true}), "`normalize`"),
    ] {
        let refused = embedder(parameters).open().err().unwrap();
        assert_eq!(refused.canonical(), Some(Code::InvalidArgument));
        assert!(refused.message.contains(says), "{refused}");
    }
    let image = Graph::default()
        .input("pixels", DType::Fp32, &[Any("batch"), Is(3)])
        .output("y", DType::Fp32, &[Any("batch"), Is(3)])
        .node("Neg", &["pixels"], &["y"], &[])
        .finish("image");
    let refused = Made::of(&image, json!({}))
        .file("tokenizer", "t.json", &tokenizer())
        .serves(&["embed"])
        .open()
        .err()
        .unwrap();
    assert!(
        refused.message.contains("its input `pixels`, FP32 [-1, 3], is none of `input_ids`"),
        "{refused}"
    );
    let refused = Made::of(&states(), json!({})).serves(&["chat"]).open().err().unwrap();
    assert!(refused.message.contains("is to serve `chat`"), "{refused}");
}

#[test]
fn a_graph_with_fixed_sides_is_filled_up_and_run_row_by_row() {
    let table: Vec<f32> = (0..TOKENS).map(|id| id as f32).collect();
    let graph = Graph::default()
        .input("input_ids", DType::Int32, &[Is(1), Is(5)])
        .input("position_ids", DType::Int64, &[Is(1), Is(5)])
        .output("states", DType::Fp32, &[Is(1), Is(5), Is(1)])
        .floats("t", &[TOKENS, 1], &table)
        .node("Gather", &["t", "input_ids"], &["states"], &[])
        .finish("fixed");
    let made = Made::of(&graph, json!({"normalise": false}))
        .file("tokenizer", "t.json", &tokenizer())
        .serves(&["embed"]);
    let instance = made.instance();
    assert_eq!(vectors(&ask(&instance, "embed", &json!({"input": ["a", "b c"]}))), [[2.0], [12.0 / 4.0]]);
    assert_eq!(failure(&ask(&instance, "embed", &json!({"input": ["a b c d"]}))).details["n_ctx"], 5);
}

#[test]
fn documents_are_ranked_by_what_a_cross_encoder_says() {
    let made = |parameters| {
        Made::of(&sums(1), parameters).file("tokenizer", "t.json", &tokenizer()).serves(&["rerank"])
    };
    // `[ q ] d ]` without activation: a tenth of the sum of its tokens.
    let instance = made(json!({"activation": "none"})).instance();
    let params = json!({"query": "a", "documents": ["b", "j", "b"]});
    let answer = ask(&instance, "rerank", &params);
    let results = answer.json()["results"].clone();
    let order: Vec<u64> =
        results.as_array().unwrap().iter().map(|ranked| ranked["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 0, 2], "equals keep their order");
    assert!((results[0]["score"].as_f64().unwrap() - 2.0).abs() < 1e-6, "1 + 3 + 2 + 12 + 2, a tenth");
    assert_eq!(tokens(&answer), 15);
    assert_eq!(instance.model().count_tokens("rerank", &params.to_string()).unwrap().unwrap(), 15);

    let top = ask(
        &made(json!({})).instance(),
        "rerank",
        &json!({"query": "a", "documents": ["b", "j"], "top_n": 1}),
    );
    let results = top.json()["results"].clone();
    assert_eq!(results.as_array().unwrap().len(), 1);
    assert!(
        (results[0]["score"].as_f64().unwrap() - 1.0 / (1.0 + (-2.0f64).exp())).abs() < 1e-6,
        "sigmoid of 2"
    );

    let refused = failure(&ask(&instance, "rerank", &json!({"query": "a", "documents": []})));
    assert_eq!(refused.details["param"], "documents");
    assert!(made(json!({"activation": "softmax"})).open().err().unwrap().message.contains("`softmax`"));
}

#[test]
fn texts_are_classified_with_the_labels_of_the_card() {
    let made = |parameters| {
        Made::of(&sums(3), parameters).file("tokenizer", "t.json", &tokenizer()).serves(&["classify"])
    };
    let card = |parameters| made(parameters).set("labels", json!(["low", "mid", "high"]));
    let instance = card(json!({})).instance();
    let answer = ask(&instance, "classify", &json!({"input": ["a", "j"]}));
    let results = answer.json()["results"].clone();
    let labels: Vec<&str> =
        results[0].as_array().unwrap().iter().map(|label| label["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["high", "mid", "low"]);
    let sum: f64 = results[0].as_array().unwrap().iter().map(|label| label["score"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    assert_eq!(results.as_array().unwrap().len(), 2);

    let top = ask(
        &card(json!({"activation": "sigmoid"})).instance(),
        "classify",
        &json!({"input": ["a"], "top_k": 1}),
    );
    let results = top.json()["results"].clone();
    assert_eq!(results[0].as_array().unwrap().len(), 1);
    assert!((results[0][0]["score"].as_f64().unwrap() - 1.0 / (1.0 + (-1.8f64).exp())).abs() < 1e-6);

    let file = made(json!({})).file("labels", "labels.txt", b"low\nmid\nhigh\n").instance();
    assert_eq!(ask(&file, "classify", &json!({"input": ["a"]})).json()["results"][0][0]["label"], "high");
    assert!(made(json!({})).open().err().unwrap().message.contains("there are none"));
    let few = made(json!({})).set("labels", json!(["one", "two"])).open().err().unwrap();
    assert!(few.message.contains("its card has 2 labels"), "{few}");
}

#[test]
fn a_model_may_serve_several_capabilities() {
    let instance = Made::of(&states(), json!({}))
        .file("tokenizer", "t.json", &tokenizer())
        .serves(&["embed", "tensor.infer"])
        .instance();
    let ids = TensorInput::int64("input_ids", &[1, 2], &[1, 2]);
    let mask = TensorInput::int64("attention_mask", &[1, 2], &[1, 1]);
    let infer = RequestInput::new("tensor.infer", "{}", vec![ids, mask]);
    let embed = RequestInput::new("embed", r#"{"input":["a"]}"#, vec![]);
    let answers: Vec<Answer> =
        instance.send_batch(vec![embed, infer]).iter().map(|running| running.wait()).collect();
    assert_eq!(vectors(&answers[0]).len(), 1);
    assert_eq!(floats(&answers[1].tensor("last_hidden_state").unwrap().data), [1.0, 1.0, 2.0, 4.0]);
    let other = instance.submit("rerank", "{}", vec![]).wait();
    assert_eq!(failure(&other).canonical(), Some(Code::Unimplemented));
}
