//! `tensor.infer`: every element type, the checks, and requests that share a run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_registry::onnx::Side::{Any, Is};
use backplane_registry::onnx::{Graph, Side};
use backplane_testkit::{Answer, Code, DType, Deadline, RequestInput, TensorInput};
use serde_json::{Value, json};
use support::{Made, floats};

const INFER: &str = "tensor.infer";

/// What comes in goes out.
fn identity(dtype: DType, shape: &[Side]) -> Vec<u8> {
    Graph::default()
        .input("x", dtype, shape)
        .output("y", dtype, shape)
        .node("Identity", &["x"], &["y"], &[])
        .finish("identity")
}

/// `y = x @ w`, two inputs that do not touch each other, and a row count.
fn matrix() -> Vec<u8> {
    let weights: Vec<f32> = (0..12).map(|n| (n as f32 * 0.37).sin()).collect();
    Graph::default()
        .input("x", DType::Fp32, &[Any("batch"), Is(4)])
        .input("z", DType::Int64, &[Any("batch"), Any("any")])
        .output("y", DType::Fp32, &[Any("batch"), Is(3)])
        .output("w", DType::Int64, &[Any("batch"), Any("any")])
        .floats("m", &[4, 3], &weights)
        .node("MatMul", &["x", "m"], &["p"], &[])
        .node("Tanh", &["p"], &["y"], &[])
        .node("Neg", &["z"], &["w"], &[])
        .finish("matrix")
}

fn matrix_inputs(rows: usize, seed: f32, side: usize) -> Vec<TensorInput> {
    let x: Vec<f32> = (0..rows * 4).map(|n| (n as f32 + seed).cos()).collect();
    let z: Vec<i64> = (0..rows * side).map(|n| n as i64 + seed as i64).collect();
    vec![
        TensorInput::fp32("x", &[rows as i64, 4], &x),
        TensorInput::int64("z", &[rows as i64, side as i64], &z),
    ]
}

fn refused(answer: &Answer) -> (Code, String) {
    let failure = answer.failure().unwrap_or_else(|| panic!("it {}", answer.end));
    (failure.canonical().unwrap(), failure.message.clone())
}

/// Two elements of each type, as bytes.
fn sample(dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bytes => [&4u32.to_le_bytes()[..], &"grüß".as_bytes()[..4], &0u32.to_le_bytes()].concat(),
        DType::Bool => vec![0, 1],
        other => (1..=2 * other.size().unwrap() as u8).collect(),
    }
}

#[test]
fn every_type_comes_back_as_it_went() {
    for dtype in DType::ALL {
        let made = Made::of(&identity(dtype, &[Any("batch"), Any("any")]), json!({}));
        let model = made.open().unwrap();
        let port = json!([{"name": "x", "datatype": dtype.name(), "shape": [-1, -1]}]);
        assert_eq!(model.describe()["inputs"], port);
        assert_eq!(
            (&model.describe()["platform"], &model.describe()["batch"]),
            (&json!("onnx"), &json!(true))
        );
        let instance = model.instance().unwrap();
        for (shape, data) in [
            (vec![1, 2], sample(dtype)),
            (vec![2, 1], sample(dtype)),
            (vec![2, 0], vec![]),
            (vec![0, 5], vec![]),
        ] {
            for misaligned in [false, true] {
                let mut tensor = TensorInput::new("x", dtype, &shape, data.clone());
                tensor.misaligned = misaligned;
                let answer = instance.submit(INFER, "{}", vec![tensor]).wait();
                assert!(answer.is_done(), "{} {shape:?} {}", dtype.name(), answer.end);
                let y = answer.tensor("y").unwrap();
                assert_eq!((y.dtype, &y.shape, &y.data), (dtype, &shape, &data), "{}", dtype.name());
            }
        }
        // Joined and cut again.
        let tensor = || TensorInput::new("x", dtype, &[2, 1], sample(dtype));
        let batch = vec![
            RequestInput::new(INFER, "{}", vec![tensor()]),
            RequestInput::new(INFER, "{}", vec![tensor()]),
        ];
        for running in instance.send_batch(batch) {
            let answer = running.wait();
            assert_eq!(answer.tensor("y").unwrap().data, sample(dtype), "{} in a batch", dtype.name());
        }
        assert!(instance.model().stats().unwrap().contains(&("requests_batched_total".to_owned(), 2.0)));
        assert_eq!(instance.model().faults(), vec![]);
    }
}

#[test]
fn a_scalar_has_no_sides() {
    let instance = Made::of(&identity(DType::Fp64, &[]), json!({})).instance();
    let tensor = TensorInput::new("x", DType::Fp64, &[], 2.5f64.to_le_bytes().to_vec());
    let answer = instance.submit(INFER, "{}", vec![tensor]).wait();
    let y = answer.tensor("y").unwrap();
    assert_eq!((&y.shape[..], &y.data[..]), (&[][..], &2.5f64.to_le_bytes()[..]));
    assert_eq!(instance.model().describe()["batch"], Value::Null);
}

#[test]
fn a_large_output_is_lent_and_the_same() {
    let instance = Made::of(&identity(DType::Fp32, &[Any("batch"), Any("any")]), json!({})).instance();
    let values: Vec<f32> = (0..100_000).map(|n| n as f32).collect();
    let tensor = || TensorInput::fp32("x", &[2, 50_000], &values);
    let batch =
        vec![RequestInput::new(INFER, "{}", vec![tensor()]), RequestInput::new(INFER, "{}", vec![tensor()])];
    let answers: Vec<Answer> = instance.send_batch(batch).iter().map(|running| running.wait()).collect();
    for answer in answers {
        assert_eq!(floats(&answer.tensor("y").unwrap().data), values);
    }
    assert_eq!(instance.model().faults(), vec![]);
}

#[test]
fn what_does_not_fit_the_graph_is_named_with_what_would() {
    let instance = Made::of(&matrix(), json!({})).instance();
    let good = || matrix_inputs(1, 0.0, 2);
    let with = |place: usize, tensor: TensorInput| {
        let mut tensors = good();
        tensors[place] = tensor;
        tensors
    };
    let extra = good().into_iter().chain([TensorInput::fp32("v", &[1], &[0.0])]).collect();
    let none = "{}";
    for (params, tensors, says) in [
        (
            none,
            with(0, TensorInput::int64("x", &[1, 4], &[0; 4])),
            "tensor `x` is INT64, and the model takes FP32 [-1, 4]",
        ),
        (
            none,
            with(0, TensorInput::fp32("x", &[1, 5], &[0.0; 5])),
            "tensor `x` is [1, 5], and the model takes FP32 [-1, 4]",
        ),
        (none, with(0, TensorInput::fp32("x", &[4], &[0.0; 4])), "tensor `x` is [4], and"),
        (none, good()[1..].to_vec(), "input `x` is missing; the model takes FP32 [-1, 4]"),
        (none, extra, "no input is called `v`; it takes `x` FP32 [-1, 4], `z` INT64 [-1, -1]"),
        (none, [good(), good()].concat(), "tensor `x` comes twice"),
        (r#"{"outputs":["q"]}"#, good(), "no output `q`; it gives `y` FP32 [-1, 3], `w` INT64 [-1, -1]"),
        (r#"{"outputs":["y","y"]}"#, good(), "output `y` is asked for twice"),
        (r#"{"output":["y"]}"#, good(), "no parameter `output`"),
        (r#"{"outputs":7}"#, good(), "`outputs` must be an array; got 7"),
    ] {
        let (code, message) = refused(&instance.submit(INFER, params, tensors).wait());
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.starts_with("model `") && message.contains(says), "{message}\n is not: {says}");
    }
    assert!(instance.submit(INFER, "{}", good()).wait().is_done(), "it serves on");
    assert_eq!(instance.model().faults(), vec![]);
}

#[test]
fn only_the_outputs_that_are_asked_for_come_and_in_that_order() {
    let instance = Made::of(&matrix(), json!({})).instance();
    let names = |params: &str| -> Vec<String> {
        let answer = instance.submit(INFER, params, matrix_inputs(1, 0.0, 1)).wait();
        answer.tensors().iter().map(|tensor| tensor.name.clone()).collect()
    };
    assert_eq!(names("{}"), ["y", "w"]);
    assert_eq!(names(r#"{"outputs":["w"]}"#), ["w"]);
    assert_eq!(names(r#"{"outputs":["w","y"]}"#), ["w", "y"]);
}

#[test]
fn requests_that_share_a_run_are_answered_as_if_alone() {
    let instance = Made::of(&matrix(), json!({})).instance();
    // Two that differ in a side run apart; one has more rows than the others.
    let inputs = [(1, 1.0, 2), (3, 2.0, 2), (1, 3.0, 5), (2, 4.0, 2)];
    let request = |&(rows, seed, side)| RequestInput::new(INFER, "{}", matrix_inputs(rows, seed, side));
    let alone: Vec<Answer> = inputs.iter().map(|input| instance.send(request(input)).wait()).collect();
    let runs = |instance: &backplane_testkit::Instance| instance.model().stats().unwrap()[0].clone();
    assert_eq!(runs(&instance), ("runs_total".to_owned(), 4.0));
    let together = instance.send_batch(inputs.iter().map(request).collect());
    for (alone, together) in alone.iter().zip(together) {
        let together = together.wait();
        for (one, other) in alone.tensors().iter().zip(together.tensors()) {
            assert_eq!((&one.name, &one.shape, one.dtype), (&other.name, &other.shape, other.dtype));
            if one.dtype == DType::Fp32 {
                let near = floats(&one.data)
                    .iter()
                    .zip(floats(&other.data))
                    .all(|(one, other)| (one - other).abs() < 1e-6);
                assert!(near, "{one:?} {other:?}");
            } else {
                assert_eq!(one.data, other.data);
            }
        }
        assert_eq!(together.tensors().len(), 2);
    }
    assert_eq!(runs(&instance), ("runs_total".to_owned(), 6.0), "three in one run, one in another");
}

/// Fails for places beyond its table.
fn table() -> Vec<u8> {
    Graph::default()
        .input("at", DType::Int64, &[Any("batch")])
        .output("y", DType::Fp32, &[Any("batch"), Is(2)])
        .floats("t", &[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        .node("Gather", &["t", "at"], &["y"], &[])
        .finish("table")
}

#[test]
fn a_request_that_the_graph_cannot_compute_harms_no_other() {
    let instance = Made::of(&table(), json!({})).instance();
    let request = |at: i64| RequestInput::new(INFER, "{}", vec![TensorInput::int64("at", &[1], &[at])]);
    let answers: Vec<Answer> =
        instance.send_batch([0, 99, 2].map(request).to_vec()).iter().map(|running| running.wait()).collect();
    assert_eq!(floats(&answers[0].tensor("y").unwrap().data), [0.0, 1.0]);
    assert_eq!(floats(&answers[2].tensor("y").unwrap().data), [4.0, 5.0]);
    let (code, message) = refused(&answers[1]);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("cannot be run on these tensors") && message.contains("99"), "{message}");
    assert!(!message.contains("onnxruntime_src"), "{message}");
    // A client's mistake is no line in the operator's log.
    assert_eq!(
        instance.model().log().iter().filter(|(level, _)| *level <= 2).collect::<Vec<_>>(),
        Vec::<&(i32, String)>::new()
    );
}

#[test]
fn who_left_or_is_late_is_not_computed_for() {
    let instance = Made::of(&table(), json!({})).instance();
    let request = || RequestInput::new(INFER, "{}", vec![TensorInput::int64("at", &[1], &[1])]);
    let left = RequestInput { cancelled: true, ..request() };
    let late = RequestInput { deadline: Deadline::Past, ..request() };
    let answers: Vec<Answer> =
        instance.send_batch(vec![left, request(), late]).iter().map(|running| running.wait()).collect();
    assert_eq!(refused(&answers[0]).0, Code::Cancelled);
    assert!(answers[1].is_done());
    assert_eq!(refused(&answers[2]).0, Code::DeadlineExceeded);
}

/// Thousands of products, one after the other: seconds of work in one run.
fn long() -> Vec<u8> {
    let (mut graph, square) = (Graph::default(), [Is(256), Is(256)]);
    graph.input("x", DType::Fp32, &square).output("y", DType::Fp32, &square);
    let name = |n: usize| format!("t{n}");
    for n in 0..20_000 {
        let from = if n == 0 { "x".to_owned() } else { name(n) };
        graph.node("MatMul", &[&from, "x"], &[&name(n + 1)], &[]);
    }
    graph.node("Identity", &[&name(20_000)], &["y"], &[]).finish("long")
}

#[test]
fn a_run_is_broken_off_when_its_caller_leaves() {
    let instance = Made::of(&long(), json!({})).instance();
    let running = instance.submit(INFER, "{}", vec![TensorInput::fp32("x", &[256, 256], &[0.5; 65536])]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(running.is_open(), "it should take seconds");
    running.cancel();
    assert_eq!(refused(&running.wait()).0, Code::Cancelled);
    assert!(instance.model().stats().unwrap().contains(&("runs_broken_off_total".to_owned(), 1.0)));
}

#[test]
fn an_output_that_is_no_tensor_is_left_out_and_said_so() {
    let graph = Graph::default()
        .input("x", DType::Fp32, &[Any("batch")])
        .output("y", DType::Fp32, &[Any("batch")])
        .output_sequence("s", DType::Fp32)
        .node("Neg", &["x"], &["y"], &[])
        .node("SequenceConstruct", &["x", "y"], &["s"], &[])
        .finish("sequence");
    let instance = Made::of(&graph, json!({})).instance();
    let input = || vec![TensorInput::fp32("x", &[1], &[2.0])];
    let answer = instance.submit(INFER, "{}", input()).wait();
    assert_eq!(answer.tensors().len(), 1);
    assert_eq!(floats(&answer.tensor("y").unwrap().data), [-2.0]);
    let (_, message) = refused(&instance.submit(INFER, r#"{"outputs":["s"]}"#, input()).wait());
    assert!(message.contains("output `s` is a Sequence"), "{message}");
    assert!(
        instance.model().log().iter().any(|(_, line)| line.contains("output `s`")),
        "the operator is told"
    );
}

#[test]
fn strings_that_onnx_cannot_hold_are_refused() {
    let instance = Made::of(&identity(DType::Bytes, &[Any("batch")]), json!({})).instance();
    for (string, says) in [(&b"\xff\xfe"[..], "not UTF-8"), (b"a\0b", "zero byte")] {
        let tensor = TensorInput::strings("x", &[2], &[b"fine", string]);
        let (code, message) = refused(&instance.submit(INFER, "{}", vec![tensor]).wait());
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.contains("tensor `x`: string 1") && message.contains(says), "{message}");
    }
    let texts = ["Grüße", "", "日本"];
    let answer = instance.submit(INFER, "{}", vec![TensorInput::strings("x", &[3], &texts)]).wait();
    assert_eq!(answer.tensor("y").unwrap().data, TensorInput::strings("x", &[3], &texts).data);
}

#[test]
fn several_threads_compute_the_same() {
    let alone = Made::of(&matrix(), json!({})).instance();
    let many = Made::of(&matrix(), json!({"threads": 2})).instance();
    let answer = |instance: &backplane_testkit::Instance| {
        instance.submit(INFER, "{}", matrix_inputs(64, 0.5, 1)).wait()
    };
    let numbers = |answer: Answer| floats(&answer.tensor("y").unwrap().data);
    let (one, other) = (numbers(answer(&alone)), numbers(answer(&many)));
    assert!(one.iter().zip(&other).all(|(one, other)| (one - other).abs() < 1e-6));
}

/// On a machine of one core it is opened for one thread to begin with, and nothing is narrow.
#[test]
fn a_run_that_is_granted_fewer_threads_takes_one() {
    let made = Made::of(&matrix(), json!({"threads": 4}));
    let model = made.open().unwrap();
    let instance = model.instance().unwrap();
    let answer = || {
        let answer = instance.submit(INFER, "{}", matrix_inputs(64, 0.5, 1)).wait();
        assert!(answer.is_done(), "{:?}", answer.failure());
        floats(&answer.tensor("y").unwrap().data)
    };
    let narrow = || {
        let figures = model.stats().unwrap();
        figures.iter().find(|(name, _)| name == "runs_narrow_total").unwrap().1
    };
    let wide = answer();
    assert_eq!(narrow(), 0.0);
    let cores = std::thread::available_parallelism().unwrap().get() as u32;
    for (round, most) in [1, cores.min(4) - 1].into_iter().filter(|most| 0 < *most && 1 < cores).enumerate() {
        model.grant_at_most(most);
        assert!(answer().iter().zip(&wide).all(|(one, other)| (one - other).abs() < 1e-6));
        assert_eq!(narrow(), (round + 1) as f64, "{most} of {cores} threads");
    }
    model.grant_at_most(u32::MAX);
    let before = narrow();
    answer();
    assert_eq!(narrow(), before);
    drop(instance);
    assert_eq!(model.faults(), [], "what was granted is given back, once");
}
