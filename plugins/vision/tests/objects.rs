//! Detectors and classifiers of one's own: a card and a graph, no code. The graphs are a few lines that a test can see
//! through; the detector's card is the one of the README.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_testkit::{CallInput, Chunk, DType, Failure, Instance, PluginTest, TensorInput, TensorOutput};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{base64, file, tiff_over};

/// The card of the README, its file made up.
fn card(folder: &std::path::Path) -> Value {
    let readme = include_str!("../README.md");
    let block = readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = { block }.find(|card| card.contains("my-detector")).unwrap();
    let mut card = serde_json::to_value(block.parse::<toml::Table>().unwrap()).unwrap();
    let path = folder.join("best.onnx");
    std::fs::write(&path, "graph").unwrap();
    card["files"] = json!([{"role": "model", "name": "best.onnx", "path": path, "size": 5}]);
    card
}

/// Red from 200, 100 to 300, 200, on black.
fn picture() -> RgbImage {
    let mut picture = RgbImage::new(800, 400);
    for (x, y) in (100..200).flat_map(|y| (200..300).map(move |x| (x, y))) {
        picture.put_pixel(x, y, Rgb([255, 0, 0]));
    }
    picture
}

/// What stands in for a graph: it sees what is red, and answers as the input's name says.
fn engine(call: &CallInput) -> Result<Vec<Chunk>, Failure> {
    let [input] = &call.tensors[..] else { panic!("one tensor") };
    let numbers: Vec<f32> = input.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match (&*call.model, &*input.name, &input.shape[..]) {
        // [1, 4 + 2, 3]: the red as class 1, the same a little beside, and nothing.
        ("my-detector.model", "images", [1, 3, 640, 640]) => {
            let red: Vec<(f32, f32)> = (0..640 * 640)
                .filter(|at| numbers[*at] > 0.9 && numbers[at + 640 * 640] < 0.1)
                .map(|at| ((at % 640) as f32, (at / 640) as f32))
                .collect();
            let edge = |of: fn(f32, f32) -> f32, start: f32| {
                red.iter().fold((start, start), |best, it| (of(best.0, it.0), of(best.1, it.1)))
            };
            let ((left, top), (right, bottom)) = (edge(f32::min, 1e9), edge(f32::max, 0.0));
            let (x, y, w, h) = (
                (left + right + 1.0) / 2.0,
                (top + bottom + 1.0) / 2.0,
                right + 1.0 - left,
                bottom + 1.0 - top,
            );
            answer(
                "output0",
                &[1, 6, 3],
                &[[x, x + 4.0, 9.0], [y, y, 9.0], [w, w, 9.0], [h, h, 9.0], [0.1, 0.2, 0.1], [0.9, 0.8, 0.2]]
                    .concat(),
            )
        }
        // Blue, green and red of the middle, as they came.
        ("mine.model", "data", [rows, 2, 2, 3]) => {
            let middle: Vec<f32> =
                numbers.chunks_exact(12).flat_map(|picture| picture[..3].to_vec()).collect();
            answer("scores", &[*rows, 3], &middle)
        }
        other => panic!("{other:?}"),
    }
}

fn answer(name: &str, shape: &[i64], numbers: &[f32]) -> Result<Vec<Chunk>, Failure> {
    let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let tensor = TensorOutput { name: name.to_owned(), dtype: DType::Fp32, shape: shape.to_vec(), data };
    Ok(vec![Chunk { json: Value::Null, tensors: vec![tensor] }])
}

fn open(card: &Value) -> Instance {
    let plugin = PluginTest::of(backplane_vision::backplane_export::bp_entry_v1).answering(engine);
    plugin.open(&card.to_string()).unwrap().instance().unwrap()
}

#[test]
fn a_detector_is_added_by_the_card_of_the_readme() {
    let folder = tempfile::tempdir().unwrap();
    let instance = open(&card(folder.path()));
    let image = base64(&file(picture(), ImageFormat::Png));
    let answer =
        instance.submit("vision.detect", &json!({"image": image, "draw": true}).to_string(), vec![]).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
    let found = answer.json();
    assert_eq!((&found["width"], &found["height"]), (&json!(800), &json!(400)));
    let objects = found["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 1, "what overlaps it is the same thing: {found}");
    assert_eq!((&objects[0]["label"], &objects[0]["class"]), (&json!("nut"), &json!(1)));
    assert!((objects[0]["score"].as_f64().unwrap() - 0.9).abs() < 1e-6);
    let edges: Vec<f64> = serde_json::from_value(objects[0]["box"].clone()).unwrap();
    let near =
        edges.iter().zip([200.0, 100.0, 300.0, 200.0]).all(|(edge, expected)| (edge - expected).abs() < 2.0);
    assert!(near, "the letterbox is taken off again: {edges:?}");

    let drawn =
        answer.chunks.iter().flat_map(|chunk| &chunk.tensors).find(|tensor| tensor.name == "drawn").unwrap();
    let drawn = image::load_from_memory(&drawn.data[4..]).unwrap().to_rgb8();
    assert_eq!(drawn.dimensions(), (800, 400));
    assert_eq!((drawn.get_pixel(250, 150), drawn.get_pixel(700, 300)), (&Rgb([255, 0, 0]), &Rgb([0; 3])));
    assert_ne!(drawn.get_pixel(250, (edges[1].round() as u32) + 1), &Rgb([255, 0, 0]));

    // Of several pictures each has its boxes, drawn or not; this graph takes one at a time.
    let small =
        base64(&file(image::imageops::crop_imm(&picture(), 100, 0, 400, 400).to_image(), ImageFormat::Png));
    for draw in [false, true] {
        let params = json!({"images": [small, image], "draw": draw}).to_string();
        let answer = instance.submit("vision.detect", &params, vec![]).wait();
        assert!(answer.is_done(), "{:?}", answer.failure());
        let [first, second] = &answer.chunks[..] else { panic!("{:?}", answer.chunks) };
        let mut listed = found.clone();
        listed["image"] = json!(1);
        assert_eq!((&first.json["width"], &first.json["image"]), (&json!(400), &json!(0)));
        assert_eq!(second.json, listed);
        assert_eq!((first.tensors.len(), second.tensors.len()), (usize::from(draw), usize::from(draw)));
    }

    let only = json!({"image": image, "labels": ["bolt"]}).to_string();
    assert_eq!(instance.submit("vision.detect", &only, vec![]).wait().json()["objects"], json!([]));
    let all = json!({"image": image, "max_overlap": 1.0, "min_score": 0.1}).to_string();
    assert_eq!(
        instance.submit("vision.detect", &all, vec![]).wait().json()["objects"].as_array().unwrap().len(),
        3
    );
}

/// Pages of a file may share their pixels: neither what is sent nor their number bounds what they take.
#[test]
fn pictures_of_a_request_have_so_many_pixels_together() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = PluginTest::of(backplane_vision::backplane_export::bp_entry_v1).answering(engine);
    let plugin = plugin.config(json!({"max_pixels": 10_000}).to_string());
    let instance = plugin.open(&card(folder.path()).to_string()).unwrap().instance().unwrap();
    let ask = |pages: usize, draw: bool| {
        let tiff = tiff_over(100, &[0; 10_000], &vec![0; pages]);
        let params = json!({"draw": draw}).to_string();
        let answer =
            instance.submit("vision.detect", &params, vec![TensorInput::strings("image", &[1], &[&tiff])]);
        let answer = answer.wait();
        let failure = answer.failure();
        match failure {
            None => Ok(answer.chunks.len()),
            Some(failure) => Err((failure.details["param"].clone(), failure.message.clone())),
        }
    };
    assert_eq!((ask(16, false), ask(1, true)), (Ok(16), Ok(1)));
    let (param, message) = ask(17, false).unwrap_err();
    assert!(param == "image" && message.contains("may have 160000 (16 times `max_pixels`)"), "{message}");
    let (param, message) = ask(2, true).unwrap_err();
    assert!(
        param == "image" && message.contains("that are drawn may have 10000 (`max_pixels`)"),
        "{message}"
    );
}

#[test]
fn a_classifier_says_in_its_card_how_its_numbers_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph");
    std::fs::write(&path, "graph").unwrap();
    let input = json!({
        "name": "data", "size": [2, 2], "layout": "nhwc",
        "numbers": {"channels": "bgr", "scale": 1.0, "mean": [0.0, 0.0, 250.0], "std": [1.0, 1.0, 5.0]},
    });
    let card = json!({
        "name": "mine", "format": "vision", "capabilities": ["vision.classify", "vision.embed"],
        "labels": ["blue", "green", "red"],
        "parameters": {"classify": {"input": input, "top_k": 2}, "embed": {"input": input, "output": "scores"}},
        "files": [{"role": "model", "name": "graph", "path": path, "size": 5}],
    });
    let instance = open(&card);
    let image = base64(&file(RgbImage::from_pixel(30, 20, Rgb([255, 0, 0])), ImageFormat::Png));
    let answer = instance.submit("vision.classify", &json!({"image": image}).to_string(), vec![]).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
    // Logits 0, 0 and 1.
    let labels = answer.json()["labels"].clone();
    assert_eq!((labels.as_array().unwrap().len(), &labels[0]["label"]), (2, &json!("red")));
    assert!((labels[0]["score"].as_f64().unwrap() - 0.576_117).abs() < 1e-5, "{labels}");

    let answer =
        instance.submit("vision.embed", &json!({"images": [image, image]}).to_string(), vec![]).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
    let alike = json!({"dimensions": 3, "similarity": [[1.0, 1.0], [1.0, 1.0]]});
    assert_eq!(answer.json(), alike);

    // As files beside the parameters, which is how a form sends them.
    let png = file(RgbImage::from_pixel(30, 20, Rgb([255, 0, 0])), ImageFormat::Png);
    let files = |all: &[&[u8]]| vec![TensorInput::strings("image", &[all.len() as i64], all)];
    let answer = instance.submit("vision.embed", "{}", files(&[&png, &png])).wait();
    assert_eq!(answer.json(), alike);
    let refused = |capability: &str, all: &[&[u8]]| {
        let answer = instance.submit(capability, "{}", files(all)).wait();
        let failure = answer.failure().unwrap().clone();
        (failure.details["param"].clone(), failure.message)
    };
    let (param, message) = refused("vision.embed", &[&png, b"none"]);
    assert!(param == "images[1]" && message.contains("no format"), "{param}: {message}");
    let (param, message) = refused("vision.embed", &[&png[..]; 65]);
    assert!(param == "images" && message.contains("65 pictures"), "{param}: {message}");

    // For each picture a piece, by as few runs of the graph as the card allows.
    let blue = file(RgbImage::from_pixel(30, 20, Rgb([0, 0, 255])), ImageFormat::Png);
    for batch in [1, 2, 64] {
        let mut card = card.clone();
        card["parameters"]["classify"]["batch"] = json!(batch);
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let plugin = PluginTest::of(backplane_vision::backplane_export::bp_entry_v1).answering(move |call| {
            counted.fetch_add(1, Ordering::Relaxed);
            engine(call)
        });
        let instance = plugin.open(&card.to_string()).unwrap().instance().unwrap();
        let answer = instance.submit("vision.classify", "{}", files(&[&png, &blue, &png])).wait();
        assert!(answer.is_done(), "{:?}", answer.failure());
        let best: Vec<&Value> = answer.chunks.iter().map(|chunk| &chunk.json["labels"][0]["label"]).collect();
        // The numbers of the card make every blue larger than any red.
        assert_eq!(best, ["red", "blue", "red"], "{batch}");
        assert!(
            (0..3).eq(answer.chunks.iter().map(|chunk| chunk.json["image"].as_u64().unwrap())),
            "{batch}"
        );
        assert_eq!(runs.load(Ordering::Relaxed), 3_usize.div_ceil(batch));
    }
}

/// Each of them takes all the memory there is: kept until the others are read, the second would wait for the first.
#[test]
fn pictures_of_a_request_are_made_small_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph");
    std::fs::write(&path, "graph").unwrap();
    let input = json!({"name": "data", "size": [2, 2], "layout": "nhwc", "numbers": {"channels": "bgr", "scale": 1.0}});
    let card = json!({
        "name": "mine", "format": "vision", "capabilities": ["vision.embed"],
        "parameters": {"embed": {"input": input}},
        "files": [{"role": "model", "name": "graph", "path": path, "size": 5}],
    });
    let plugin = PluginTest::of(backplane_vision::backplane_export::bp_entry_v1).answering(engine);
    let plugin = plugin.config(json!({"max_memory": 100_000}).to_string());
    let instance = plugin.open(&card.to_string()).unwrap().instance().unwrap();
    let png = file(RgbImage::from_pixel(300, 200, Rgb([255, 0, 0])), ImageFormat::Png);
    let files = || vec![TensorInput::strings("image", &[16], &[&png[..]; 16])];
    // Several requests wait for each other, and each is served.
    let running: Vec<_> = (0..4).map(|_| instance.submit("vision.embed", "{}", files())).collect();
    for answer in running {
        let answer = answer.wait();
        assert!(answer.is_done(), "{:?}", answer.failure());
        assert_eq!(answer.json()["similarity"].as_array().unwrap().len(), 16);
    }
}

#[test]
fn a_card_that_does_not_fit_is_refused_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let card = card(folder.path());
    let refused = |change: fn(&mut Value)| {
        let mut card = card.clone();
        change(&mut card);
        let plugin = PluginTest::of(backplane_vision::backplane_export::bp_entry_v1).answering(engine);
        plugin.open(&card.to_string()).err().unwrap().message
    };
    for (message, says) in [
        (refused(|card| card["labels"] = json!([])), "labels"),
        (refused(|card| card["files"] = json!([])), "`model`"),
        (refused(|card| card["parameters"]["detect"]["head"] = json!("yolo")), "objectness"),
        (refused(|card| card["parameters"]["detect"]["input"]["size"] = json!([0, 1])), "`size` is [0, 1]"),
        (refused(|card| card["parameters"]["detect"]["min_score"] = json!(7)), "`min_score` is 7"),
        (refused(|card| card["parameters"]["classify"] = json!({})), "parameters.classify"),
    ] {
        assert!(message.contains(says), "{message}");
    }
}
