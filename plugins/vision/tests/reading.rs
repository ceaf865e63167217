//! What `vision.ocr` makes of a page, with graphs that a test can see through.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_testkit::{DType, Instance, TensorInput};
use image::{ImageFormat, Rgb};
use serde_json::{Value, json};
use support::{Reader, base64, file, page, plugin};

fn instance(reader: &Reader) -> Instance {
    plugin().open(&reader.json()).unwrap().instance().unwrap()
}

fn read(instance: &Instance, params: &Value) -> Value {
    let answer = instance.submit("vision.ocr", &params.to_string(), vec![]).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
    answer.json()
}

/// How far a corner may be from where it should be.
fn near(corners: &Value, expected: [[f64; 2]; 4]) -> bool {
    let sides = corners.as_array().unwrap().iter().flat_map(|corner| corner.as_array().unwrap());
    sides
        .zip(expected.iter().flatten())
        .all(|(side, expected)| (side.as_f64().unwrap() - expected).abs() <= 2.0)
}

#[test]
fn every_line_comes_with_text_score_and_place() {
    let reader = Reader::new();
    let answer = read(&instance(&reader), &json!({"image": base64(&file(page(3), ImageFormat::Png))}));
    assert_eq!((&answer["width"], &answer["height"]), (&json!(800), &json!(800)));
    assert_eq!(answer["text"], "ab\nab\nab");
    let lines = answer["lines"].as_array().unwrap();
    assert_eq!(lines.len(), 3);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!((&line["text"], line.get("words")), (&json!("ab"), None));
        assert!((line["score"].as_f64().unwrap() - 0.8).abs() < 1e-6);
        // Grown by 200 * 20 * 1.6 / 440 pixels.
        let (top, grown) = (100.0 + 80.0 * index as f64, 14.5);
        let (left, right, bottom) = (100.0 - grown, 300.0 + grown, top + 20.0 + grown);
        let top = top - grown;
        assert!(near(&line["box"], [[left, top], [right, top], [right, bottom], [left, bottom]]), "{line}");
    }
}

#[test]
fn an_empty_page_has_no_text_and_no_confidence() {
    let reader = Reader::new();
    let params = json!({"image": base64(&file(page(0), ImageFormat::Png))}).to_string();
    let answer = instance(&reader).submit("vision.ocr", &params, vec![]).wait();
    assert_eq!((answer.json()["lines"].clone(), answer.json()["text"].clone()), (json!([]), json!("")));
}

#[test]
fn what_is_not_asked_for_is_left_out() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let image = base64(&file(page(2), ImageFormat::Png));
    let places = read(&instance, &json!({"image": image, "recognize": false}));
    assert_eq!((places["text"].clone(), places["lines"].as_array().unwrap().len()), (json!(""), 2));
    assert!(0.5 < places["lines"][0]["score"].as_f64().unwrap());

    let whole = read(&instance, &json!({"image": image, "detect": false}));
    assert_eq!(whole["lines"][0]["box"], json!([[0.0, 0.0], [800.0, 0.0], [800.0, 800.0], [0.0, 800.0]]));
    assert_eq!(whole["text"], "ab");

    let certain = read(&instance, &json!({"image": image, "min_score": 0.9}));
    assert_eq!(certain["lines"], json!([]));
    // What a card leaves out of a page is not left out where the line is given.
    let mut strict = Reader::new();
    strict.model["parameters"] = json!({"ocr": {"min_score": 0.9}});
    let strict = self::instance(&strict);
    assert_eq!(read(&strict, &json!({"image": image}))["lines"], json!([]));
    assert_eq!(read(&strict, &json!({"image": image, "detect": false}))["text"], "ab");
    let certain = read(&strict, &json!({"image": image, "detect": false, "min_score": 0.9}));
    assert_eq!(certain["lines"], json!([]));
    let words = read(&instance, &json!({"image": image, "words": true}));
    assert_eq!(words["lines"][0]["words"][0]["text"], "ab");
}

#[test]
fn a_line_on_its_head_is_turned() {
    let reader = Reader::new();
    let mut page = page(1);
    // Its left end is red.
    for (x, y) in (0..30).flat_map(|x| (0..20).map(move |y| (x, y))) {
        page.put_pixel(100 + x, 100 + y, Rgb([255, 0, 0]));
    }
    let image = base64(&file(page, ImageFormat::Png));
    let instance = instance(&reader);
    // How far its one word is from the line's left end, and from its right end.
    let room = |direction: bool| {
        let answer = read(&instance, &json!({"image": image, "words": true, "direction": direction}));
        let line = &answer["lines"][0];
        let side = |of: &Value, corner: usize| of["box"][corner][0].as_f64().unwrap();
        let word = &line["words"][0];
        (side(word, 0) - side(line, 0), side(line, 1) - side(word, 1))
    };
    // The graph that reads says that a line begins with nothing.
    let (as_it_stands, turned) = (room(false), room(true));
    assert!(10.0 < as_it_stands.0 && as_it_stands.1 < 1.0, "{as_it_stands:?}");
    assert!(turned.0 < 1.0 && 10.0 < turned.1, "{turned:?}");
}

#[test]
fn pixels_may_come_as_a_tensor() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let page = page(2);
    let pixels = TensorInput::new("image", DType::Uint8, &[800, 800, 3], page.as_raw().clone());
    let grey: Vec<u8> = page.pixels().map(|pixel| pixel[0]).collect();
    let grey = TensorInput::new("image", DType::Uint8, &[800, 800, 1], grey);
    let file = TensorInput::strings("image", &[1], &[file(page, ImageFormat::Png)]);
    let answers: Vec<Value> = [pixels, grey, file]
        .map(|tensor| instance.submit("vision.ocr", "{}", vec![tensor]).wait().json())
        .into();
    assert_eq!(answers[0]["lines"].as_array().unwrap().len(), 2);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

#[test]
fn what_is_wrong_with_the_parameters_is_named() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let image = base64(&file(page(1), ImageFormat::Png));
    for (params, says) in [
        (json!({}), "`image` is missing"),
        (json!({"image": image, "min_score": 2}), "`min_score` is 2"),
        (json!({"image": 5}), "image"),
        (json!({"image": "https://example.com/a.png"}), "only the routes below"),
    ] {
        let answer = instance.submit("vision.ocr", &params.to_string(), vec![]).wait();
        let failure = answer.failure().unwrap();
        assert_eq!(failure.code, 3, "{failure}");
        assert!(failure.message.contains(says), "{failure}");
    }
    let odd = TensorInput::new("image", DType::Uint8, &[4, 4, 2], vec![0; 32]);
    let failure = instance.submit("vision.ocr", "{}", vec![odd]).wait();
    assert!(failure.failure().unwrap().message.contains("UINT8 [4, 4, 2]"));
}

#[test]
fn a_card_that_does_not_fit_is_refused() {
    let mut reader = Reader::new();
    reader.model["parameters"] = json!({"ocr": {"det": {"treshold": 0.2}}});
    let refused = plugin().open(&reader.json()).err().unwrap();
    assert!(
        refused.message.contains("[parameters.ocr]") && refused.message.contains("`treshold`"),
        "{refused}"
    );
    let mut reader = Reader::new();
    reader.model["files"].as_array_mut().unwrap().retain(|file| file["role"] != "rec");
    assert!(plugin().open(&reader.json()).err().unwrap().message.contains("`rec`"));
    let mut reader = Reader::new();
    std::fs::write(reader.dir.path().join("dictionary"), "a\nb\nc\n").unwrap();
    let image = base64(&file(page(1), ImageFormat::Png));
    let answer = instance(&reader).submit("vision.ocr", &json!({"image": image}).to_string(), vec![]).wait();
    assert!(answer.failure().unwrap().message.contains("the dictionary has 5 letters"), "{answer:?}");
    reader.model["capabilities"] = json!(["chat"]);
    assert!(plugin().open(&reader.json()).is_err());
}

/// Each would be a panic, nonsense, or memory without end at the first request.
#[test]
fn a_number_of_a_card_that_no_graph_takes_is_named_when_the_model_opens() {
    for (section, says) in [
        (json!({"rec": {"height": 0}}), "`rec.height` is 0, and lies between 1 and 4096"),
        (json!({"rec": {"width": 0}}), "`rec.width` is 0"),
        (json!({"rec": {"longest": 100}}), "`rec.width` is 320, and lies between 1 and 100"),
        (json!({"rec": {"columns": 0}}), "`rec.columns` is 0"),
        (json!({"rec": {"batch": 0}}), "`rec.batch` is 0"),
        (json!({"rec": {"numbers": {"std": [0.5, 0, 0.5]}}}), "`rec.numbers`"),
        (json!({"cls": {"height": 0}}), "`cls.height` is 0"),
        (json!({"cls": {"width": 100_000}}), "`cls.width` is 100000"),
        (json!({"cls": {"threshold": 2}}), "`cls.threshold` is 2"),
        (json!({"det": {"max_side": 0}}), "`det.max_side` is 0"),
        (json!({"det": {"min_side": 5000}}), "`det.min_side` is 5000, and lies between 1 and 4096"),
        (json!({"det": {"box_threshold": -1}}), "`det.box_threshold` is -1"),
        (json!({"det": {"unclip": -0.5}}), "`det.unclip` is -0.5"),
        (json!({"det": {"max_lines": 0}}), "`det.max_lines` is 0"),
        (json!({"page": {"max_side": 0}}), "`page.max_side` is 0"),
        (json!({"page": {"min_side": 0}}), "`page.min_side` is 0"),
        (json!({"page": {"max_ratio": 0}}), "`page.max_ratio` is 0"),
        (json!({"min_score": 1.5}), "`min_score` is 1.5"),
    ] {
        let mut reader = Reader::new();
        reader.model["parameters"] = json!({"ocr": section});
        let refused = plugin().open(&reader.json()).err().unwrap_or_else(|| panic!("{says}: it was opened"));
        let named = refused.message.contains("[parameters.ocr] of model `reader`");
        assert!(refused.code == 3 && named && refused.message.contains(says), "{refused}");
    }
}

/// Reports of servers whose threads read each other's answers are many: here every answer is its own page's.
#[test]
fn requests_at_once_do_not_mix() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let images: Vec<String> = (0..6).map(|bars| base64(&file(page(bars), ImageFormat::Png))).collect();
    for _ in 0..3 {
        let running: Vec<_> = images
            .iter()
            .map(|image| instance.submit("vision.ocr", &json!({"image": image}).to_string(), vec![]))
            .collect();
        for (bars, running) in running.into_iter().enumerate() {
            assert_eq!(running.wait().json()["lines"].as_array().unwrap().len(), bars);
        }
    }
}
