//! Pictures through the real program: graphs run by the onnx plugin, asked for by the vision plugin through the host, over
//! every route and on the command line. What the text is held against stands in `plugins/vision/tests/parity`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod objects;
mod rapid;

use e2e::{Server, python, state_with_models_of};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The wheel of scikit-image, which has photographs and a scanned page.
fn wheel() -> PathBuf {
    let packages = Path::new(python().get_program()).parent().unwrap().join("../../sdist");
    let wheels = std::fs::read_dir(packages).unwrap().map(|file| file.unwrap().path());
    { wheels }
        .find(|path| path.to_string_lossy().contains("scikit_image"))
        .expect("the wheel of scikit-image is missing: run `make e2e`")
}

/// A page of a book, scanned.
const PAGE: &str = "import pathlib, sys, zipfile
pathlib.Path(sys.argv[2]).write_bytes(zipfile.ZipFile(sys.argv[1]).read('skimage/data/page.png'))";

#[test]
fn a_page_is_read_over_every_route_and_on_the_command_line() {
    let server = Server::start_on(state_with_models_of(&["pp-ocr", "onnxruntime"]), "");
    let file = server.state.path().join("page.png");
    let path = file.to_str().unwrap();
    assert!(python().args(["-c", PAGE]).arg(wheel()).arg(path).status().unwrap().success());
    let page = std::fs::read(&file).unwrap();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &page);

    // By its capability alone: nobody names a model.
    let (status, any) = server.post("/v1/capabilities/vision.ocr", &json!({"params": {"image": base64}}));
    assert_eq!((status, &any["model"]), (200, &json!("pp-ocr")), "{any}");
    let lines = any["result"]["lines"].as_array().unwrap();
    let texts: Vec<&str> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    let same: Vec<String> = texts.iter().map(|text| text.replace(' ', "")).collect();
    let written = [
        "Region-basedsegmentation",
        "Letusfirstdeterminemarkersofthecoinsandthe",
        "background.Thesemarkersarepixelsthatwecanlabel",
        "unambiguouslyaseitherobjectorbackground.Here,",
        "histogramofgreyvalues:",
    ];
    assert_eq!(same, written, "{any}");

    let routed = |body: reqwest::blocking::RequestBuilder| -> Value {
        let answer = body.send().unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        answer.json().unwrap()
    };
    let form = |name: &str| {
        let head =
            format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"page.png\"\r\n\r\n");
        [head.as_bytes(), &page, b"\r\n--x--\r\n"].concat()
    };
    let post = |path: &str, kind: &str, body: Vec<u8>| {
        routed(server.request("POST", path).header("content-type", kind).body(body))
    };
    let json = json!({"image": format!("data:image/png;base64,{base64}"), "model": "pp-ocr"}).to_string();
    for answer in [
        post("/v1/vision/ocr", "application/json", json.into_bytes()),
        post("/v1/vision/ocr", "image/png", page.clone()),
        post("/v1/vision/ocr", "multipart/form-data; boundary=x", form("image")),
    ] {
        assert_eq!((&answer["model"], &answer["lines"]), (&json!("pp-ocr"), &any["result"]["lines"]));
    }

    let rapid = post("/ocr", "multipart/form-data; boundary=x", form("image_file"));
    assert_eq!((&rapid["0"]["rec_txt"], &rapid["1"]["rec_txt"]), (&lines[0]["text"], &lines[1]["text"]));
    assert_eq!(rapid["0"]["dt_boxes"], lines[0]["box"]);
    let score: f64 = rapid["0"]["score"].as_str().unwrap().parse().unwrap();
    assert!((score - lines[0]["score"].as_f64().unwrap()).abs() < 1e-4);

    let said = server.cli(&["ocr", path]);
    let text = format!("{}\n", any["result"]["text"].as_str().unwrap());
    assert_eq!((String::from_utf8(said.stdout).unwrap(), said.status.code()), (text, Some(0)));
    let said = server.cli(&["ocr", path, "--json", "--words"]);
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(said["lines"][0]["words"].is_array());
    let words = post("/v1/vision/ocr?words=true", "image/png", page.clone());
    assert_eq!(words["lines"], said["lines"], "the query of a picture alone is read");

    // A TIFF by another program, its second page turned: each page is read, in its order.
    let tiff = server.state.path().join("pages.tiff");
    let pages = "import sys; from PIL import Image; page = Image.open(sys.argv[1]).convert('L')
page.save(sys.argv[2], save_all=True, append_images=[page.rotate(180), page], compression='tiff_lzw')";
    assert!(python().args(["-c", pages, path]).arg(&tiff).status().unwrap().success());
    let read = post("/v1/vision/ocr?model=pp-ocr", "image/tiff", std::fs::read(&tiff).unwrap());
    let read = read["results"].as_array().unwrap();
    let of = |page: usize| read[page]["lines"].as_array().unwrap().len();
    assert_eq!(
        (read.len(), &read[0]["lines"], &read[2]["lines"]),
        (3, &read[2]["lines"], &any["result"]["lines"])
    );
    let places = read.iter().map(|page| (page["image"].as_u64(), page["page"].as_u64()));
    assert!(places.eq((1..=3).map(|page| (Some(0), Some(page)))), "{}", read[1]);
    assert!(0 < of(1) && read[1]["lines"] != read[0]["lines"], "{}", read[1]);

    // Of several pictures each has its answer, whatever becomes of the others.
    let all = ["ocr", path, "/no/such/page.png", path];
    let said = server.cli(&all);
    let text = any["result"]["text"].as_str().unwrap();
    let shown = format!("==> {path} <==\n{text}\n\n==> {path} <==\n{text}\n");
    assert_eq!((String::from_utf8(said.stdout).unwrap(), said.status.code()), (shown, Some(3)));
    let complaint = String::from_utf8(said.stderr).unwrap();
    assert!(complaint.contains("error: cannot read /no/such/page.png"), "{complaint}");
    assert!(complaint.contains("1 of 3 pictures failed"), "{complaint}");
    let said = server.cli(&[&all[..], &["--json"]].concat());
    assert_eq!(said.status.code(), Some(3));
    let told: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((&told[0]["picture"], &told[2]["text"]), (&json!(path), &json!(text)));
    assert_eq!(
        (&told[1]["picture"], &told[1]["error"]["code"]),
        (&json!(all[2]), &json!("not_found")),
        "{told}"
    );

    let (status, refused) = server.post("/v1/vision/ocr", &json!({"image": "aGVsbG8="}));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("image")), "{refused}");

    // What is misspelt has no effect, and is not passed over.
    let misspelt = "--x\r\ncontent-disposition: form-data; name=\"wrods\"\r\n\r\ntrue\r\n";
    let misspelt = [misspelt.as_bytes(), &form("image")].concat();
    for (body, param) in [(misspelt, "wrods"), (form("imag"), "imag")] {
        let request = server.request("POST", "/v1/vision/ocr");
        let answer =
            request.header("content-type", "multipart/form-data; boundary=x").body(body).send().unwrap();
        let status = answer.status().as_u16();
        let refused: Value = answer.json().unwrap();
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)), "{refused}");
    }

    // Every graph is a model that can be seen, and goes with the one that it is part of.
    let (_, models) = server.get("/v1/models");
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert!(
        ["pp-ocr", "pp-ocr.det", "pp-ocr.cls", "pp-ocr.rec"].iter().all(|name| names.contains(name)),
        "{names:?}"
    );
}
