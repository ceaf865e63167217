//! What pictures show: held against the same graphs driven directly by `objects.py`, and faces against the program whose
//! graphs they are (`faces.py` made `faces.json`).

use crate::wheel;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::{Server, python, root, state_with_models_of, test_models};
use serde_json::{Value, json};
use std::path::Path;

const MODELS: [&str; 4] = ["yolov3-tiny", "efficientnet-lite0", "mtcnn", "onnxruntime"];

/// The file of a model with this role.
fn file(model: &str, role: &str) -> std::path::PathBuf {
    let models = backplane_registry::Models::at(test_models());
    models.resolve(model).unwrap().file(role).unwrap().to_owned()
}

fn ask(server: &Server, task: &str, picture: &Path, more: Value) -> Value {
    let mut body = more;
    body["image"] = STANDARD.encode(std::fs::read(picture).unwrap()).into();
    let (status, answer) = server.post(&format!("/v1/vision/{task}"), &body);
    assert_eq!(status, 200, "{task} {}: {answer}", picture.display());
    answer
}

fn edges(value: &Value) -> [f64; 4] {
    serde_json::from_value(value["box"].clone()).unwrap()
}

pub fn overlap(one: [f64; 4], other: [f64; 4]) -> f64 {
    let area = |[left, top, right, bottom]: [f64; 4]| (right - left).max(0.0) * (bottom - top).max(0.0);
    let shared =
        area([one[0].max(other[0]), one[1].max(other[1]), one[2].min(other[2]), one[3].min(other[3])]);
    shared / (area(one) + area(other) - shared)
}

/// Each of `expected` once, in its place.
fn assert_same_places(name: &str, found: &[Value], expected: &[Value]) {
    assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
    for one in expected {
        let same =
            |other: &&Value| other["label"] == one["label"] && overlap(edges(one), edges(other)) >= 0.95;
        let other = found.iter().find(same).unwrap_or_else(|| panic!("{name}: {one} is not among {found:?}"));
        let (expected, score) = (one["score"].as_f64().unwrap(), other["score"].as_f64().unwrap());
        assert!((score - expected).abs() < 0.02, "{name}: {score} and not {expected}");
    }
}

#[test]
fn pictures_show_what_the_graphs_say_when_they_are_driven_directly() {
    let folder = tempfile::tempdir().unwrap();
    let output = python()
        .arg(root().join("tests/vision/objects.py"))
        .arg(wheel())
        .args([file("yolov3-tiny", "model"), file("yolov3-tiny", "labels")])
        .args([file("efficientnet-lite0", "model"), file("efficientnet-lite0", "labels")])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reference: Value = serde_json::from_slice(&output.stdout).unwrap();
    let server = Server::start_on(state_with_models_of(&MODELS), "");
    let picture = |name: &str| folder.path().join(format!("{name}.png"));

    let mut seen = Vec::new();
    for (name, expected) in reference.as_object().unwrap() {
        let detected = ask(&server, "detect", &picture(name), json!({}));
        assert_eq!(detected["model"], "yolov3-tiny");
        assert_same_places(
            name,
            detected["objects"].as_array().unwrap(),
            expected["objects"].as_array().unwrap(),
        );

        let classified = ask(&server, "classify", &picture(name), json!({"top_k": 3}));
        let labels = classified["labels"].as_array().unwrap();
        assert_eq!(labels.len(), 3);
        for (label, expected) in labels.iter().zip(expected["labels"].as_array().unwrap()) {
            let (score, wanted) = (label["score"].as_f64().unwrap(), expected["score"].as_f64().unwrap());
            // Of two that are as likely either may be first.
            assert!((score - wanted).abs() < 0.02, "{name}: {label} and not {expected}");
        }
        assert_eq!(labels[0]["label"], expected["labels"][0]["label"], "{name}");

        let embedded = ask(&server, "embed", &picture(name), json!({}));
        let numbers = |value: &Value| serde_json::from_value::<Vec<f64>>(value.clone()).unwrap();
        let (ours, theirs) = (numbers(&embedded["embeddings"][0]), numbers(&expected["features"]));
        let cosine: f64 = ours.iter().zip(&theirs).map(|(a, b)| a * b).sum();
        assert!(ours.len() == 1280 && cosine > 0.995, "{name}: {cosine}");
        let first = |list: &Value, member: &str| list[0][member].as_str().unwrap_or("-").to_owned();
        seen.push((first(&detected["objects"], "label"), first(&classified["labels"], "label")));
    }
    let words: Vec<String> = seen.iter().map(|(what, whole)| format!("{what}, {whole}")).collect();
    assert_eq!(
        words,
        ["cup, espresso", "-, Egyptian Mau", "motorbike, moped", "-, bobsleigh", "person, T-shirt"],
        "as they were seen when the models were chosen"
    );

    let names = ["astronaut", "both", "coffee"];
    let images: Vec<String> =
        names.map(|name| STANDARD.encode(std::fs::read(picture(name)).unwrap())).to_vec();
    // Several at once are what each is alone.
    for (task, found) in [("classify", "labels"), ("detect", "objects"), ("faces", "faces")] {
        let (status, answer) = server.post(&format!("/v1/vision/{task}"), &json!({"images": images}));
        assert_eq!(status, 200, "{answer}");
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), names.len());
        for (place, (name, result)) in names.iter().zip(results).enumerate() {
            assert_eq!((result["image"].as_u64(), result.get("page")), (Some(place as u64), None), "{task}");
            let alone = ask(&server, task, &picture(name), json!({}));
            let (ours, theirs) = (result[found].as_array().unwrap(), alone[found].as_array().unwrap());
            assert_eq!(ours.len(), theirs.len(), "{task} {name}");
            for (one, other) in ours.iter().zip(theirs) {
                let apart = one["score"].as_f64().unwrap() - other["score"].as_f64().unwrap();
                assert!(
                    one["label"] == other["label"] && apart.abs() < 1e-3,
                    "{task} {name}: {one}, {other}"
                );
            }
        }
    }
    // Two crops of one picture are more alike than two pictures.
    let (status, alike) = server.post("/v1/vision/embed", &json!({"images": images}));
    assert_eq!(status, 200, "{alike}");
    let alike: Vec<Vec<f64>> = serde_json::from_value(alike["similarity"].clone()).unwrap();
    assert!((alike[0][0] - 1.0).abs() < 1e-4 && alike[0][1] > alike[0][2], "{alike:?}");

    // Faces.
    let faces: Value = serde_json::from_str(include_str!("faces.json")).unwrap();
    for (name, expected) in faces.as_object().unwrap() {
        let answer = ask(&server, "faces", &picture(name), json!({}));
        let found = answer["faces"].as_array().unwrap();
        assert_same_places(name, found, expected.as_array().unwrap());
        for face in expected.as_array().unwrap() {
            let best = found
                .iter()
                .max_by(|a, b| overlap(edges(a), edges(face)).total_cmp(&overlap(edges(b), edges(face))));
            let parts = &best.unwrap()["landmarks"];
            for (place, part) in
                ["left_eye", "right_eye", "nose", "mouth_left", "mouth_right"].iter().enumerate()
            {
                let [x, y] = [0, 1].map(|axis| {
                    (parts[*part][axis].as_f64().unwrap() - face["landmarks"][place][axis].as_f64().unwrap())
                        .abs()
                });
                assert!(x.max(y) < 1.0, "{name}: {part} is {x} and {y} pixels off");
            }
        }
    }

    // A picture with its boxes drawn is the picture, changed where the boxes are.
    let drawn = ask(&server, "detect", &picture("coffee"), json!({"draw": true, "labels": ["cup"]}));
    let file = STANDARD.decode(drawn["drawn"].as_str().unwrap()).unwrap();
    assert!(file.starts_with(b"\x89PNG") && file != std::fs::read(picture("coffee")).unwrap());
    // On the command line, into a file.
    let (photograph, out) = (picture("motorcycle_left"), folder.path().join("out.png"));
    let said =
        server.cli(&["detect", photograph.to_str().unwrap(), "--draw", out.to_str().unwrap(), "--json"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["objects"], ask(&server, "detect", &photograph, json!({}))["objects"]);
    let drawn = ask(&server, "detect", &photograph, json!({"draw": true}));
    let file = STANDARD.decode(drawn["drawn"].as_str().unwrap()).unwrap();
    assert!(file == std::fs::read(&out).unwrap() && file != std::fs::read(&photograph).unwrap());
    for (task, body, says) in [
        ("detect", json!({"labels": ["cupp"]}), "no label `cupp`"),
        ("detect", json!({"min_score": 2}), "`min_score` is 2"),
        ("classify", json!({"top_k": 0}), "`top_k` is 0"),
        ("embed", json!({"images": ["x"]}), "`image` and `images`"),
    ] {
        let mut body = body;
        body["image"] = STANDARD.encode(std::fs::read(picture("coffee")).unwrap()).into();
        let (status, refused) = server.post(&format!("/v1/vision/{task}"), &body);
        assert_eq!(status, 400, "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().contains(says), "{refused}");
    }
}
