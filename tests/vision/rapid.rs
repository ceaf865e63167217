//! `/ocr` told not to find, not to turn or not to read: held against what RapidOCR says with the same flags and weights.

use crate::objects::overlap;
use crate::wheel;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::{Server, python, root, state_with_models_of};
use serde_json::Value;
use std::path::Path;

/// As `requests.post(url, data={"image_data": …})` sends it.
fn ask(server: &Server, picture: &Path, flag: &str) -> Vec<Value> {
    let base64 = STANDARD.encode(std::fs::read(picture).unwrap());
    let base64 = base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let flag = if flag.is_empty() { String::new() } else { format!("&{flag}=False") };
    let request = server.request("POST", "/ocr").header("content-type", "application/x-www-form-urlencoded");
    let answer = request.body(format!("image_data={base64}{flag}")).send().unwrap();
    let (status, answer) = (answer.status().as_u16(), answer.json::<Value>().unwrap());
    assert_eq!(status, 200, "{answer}");
    let lines = answer.as_object().unwrap();
    (0..lines.len()).map(|line| lines[&line.to_string()].clone()).collect()
}

/// Left, top, right and bottom of four corners.
fn edges(corners: &Value) -> [f64; 4] {
    let corners: [[f64; 2]; 4] = serde_json::from_value(corners.clone()).unwrap();
    let side =
        |axis: usize, of: fn(f64, f64) -> f64| corners.iter().map(|corner| corner[axis]).reduce(of).unwrap();
    [side(0, f64::min), side(1, f64::min), side(0, f64::max), side(1, f64::max)]
}

#[test]
fn the_flags_of_rapidocr_do_what_they_do_there() {
    let folder = tempfile::tempdir().unwrap();
    let script = root().join("tests/vision/rapid.py");
    let said = python().arg(script).arg(wheel()).arg(folder.path()).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let server = Server::start_on(state_with_models_of(&["pp-ocr", "onnxruntime"]), "");
    for (name, flags) in said.as_object().unwrap() {
        for (flag, expected) in flags.as_object().unwrap() {
            let (lines, expected) = (
                ask(&server, &folder.path().join(format!("{name}.png")), flag),
                expected.as_array().unwrap(),
            );
            let at = format!("{name} {flag}: {lines:?} and not {expected:?}");
            assert_eq!(lines.len(), expected.len(), "{at}");
            for (line, expected) in lines.iter().zip(expected) {
                let (place, text) = match flag.as_str() {
                    "use_det" => (None, Some(expected)),
                    "use_rec" => (Some(expected), None),
                    _ => (Some(&expected[0]), Some(expected)),
                };
                assert_eq!(line.get("dt_boxes").is_some(), place.is_some(), "{at}");
                assert_eq!(line.get("rec_txt").is_some(), text.is_some(), "{at}");
                if let Some(place) = place {
                    assert!(overlap(edges(&line["dt_boxes"]), edges(place)) >= 0.9, "{at}");
                }
                if let Some(text) = text {
                    let (read, score) =
                        text.as_array().map(|all| (&all[all.len() - 2], &all[all.len() - 1])).unwrap();
                    let ours: f64 = line["score"].as_str().unwrap().parse().unwrap();
                    assert!((ours - score.as_f64().unwrap()).abs() < 0.05, "{at}");
                    // A space that is as likely as not depends on what is read beside it; the letters do not.
                    let letters = |text: &Value| text.as_str().unwrap().replace(' ', "");
                    assert_eq!(letters(&line["rec_txt"]), letters(read), "{at}");
                }
            }
        }
    }
    // What the flags are for is in these pictures.
    let count = |name: &str, flag: &str| said[name][flag].as_array().unwrap().len();
    assert_eq!((count("page", "use_rec"), count("head", ""), count("head", "use_cls")), (5, 2, 0));
    let uncertain = said["head"]["use_det"][0][1].as_f64().unwrap();
    assert!(uncertain < 0.5, "a line that was given is not left out, however uncertain: {uncertain}");
}
