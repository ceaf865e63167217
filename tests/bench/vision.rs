//! A page read beside RapidOCR on the same graphs, a detector around a graph that does nothing, and languages told.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use backplane::{Answer, CacheUse, Caller, DType, Host, Request, Tensor};
use backplane_registry::onnx::{Graph, Side};
use futures::executor::block_on;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};
use support::Against::{AtLeast, AtMost, Nothing, Peer};
use support::{Child, Table, cpu, median, timed};

/// Pages that each reads.
const ROUNDS: usize = 5;
/// Calls of the detector, and requests of a thousand texts.
const CALLS: usize = 60;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let mut rapid = Rapid::start(folder.path());
    let card = detector(folder.path());
    let plugins = support::shipped(&["backplane-onnx", "backplane-translation", "backplane-vision"]);
    let config = format!("[models]\nkeep_alive = 'forever'\ncards = ['{}']\n", card.display());
    let running = support::host(plugins.path(), true, &config);
    let mut table = Table::new("vision");
    read(&mut table, &running.host, &mut rapid, folder.path());
    detect(&mut table, &running.host, folder.path(), rapid.photo);
    languages(&mut table, &running.host);
}

/// RapidOCR in a process of its own, which reads a page whenever it is told to.
struct Rapid {
    _process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Width and height of the photograph that it unpacked.
    photo: [i64; 2],
}

impl Rapid {
    fn start(folder: &Path) -> Self {
        let script = e2e::root().join("tests/bench/rapid.py");
        let graphs = ["det", "cls", "rec"].map(|role| file("pp-ocr", role));
        let mut python = e2e::python();
        python.arg(script).arg(folder).args(graphs).arg(wheel());
        let mut process = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut rapid =
            Self { _process: Child(process), input, output: BufReader::new(output), photo: [0; 2] };
        rapid.photo = serde_json::from_value(rapid.said()["photo"].clone()).unwrap();
        rapid
    }

    fn said(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("RapidOCR has ended")
    }

    /// Seconds by the clock, seconds of processor time, and what was read.
    fn page(&mut self) -> (f64, f64, Vec<String>) {
        writeln!(self.input).unwrap();
        let said = self.said();
        let lines = serde_json::from_value(said["lines"].clone()).unwrap();
        (said["wall"].as_f64().unwrap(), said["cpu"].as_f64().unwrap(), lines)
    }
}

/// The file of a model in this role.
fn file(model: &str, role: &str) -> PathBuf {
    let models = e2e::test_models().join("models");
    let card = std::fs::read_to_string(models.join(format!("cards/{model}.toml"))).unwrap();
    let of_role = card.split("[[files]]").find(|file| file.contains(&format!("role = \"{role}\""))).unwrap();
    let sha256 = of_role.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap();
    models.join("blobs/sha256").join(sha256)
}

/// scikit-image's, which has photographs.
fn wheel() -> PathBuf {
    let folder = e2e::python().get_program().to_owned();
    let folder = Path::new(&folder).parent().unwrap().join("../../sdist");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.to_string_lossy().contains("scikit_image")).last().unwrap()
}

fn ask(host: &Host, capability: &str, model: &str, params: &Value, tensors: Vec<Tensor>) -> Answer {
    let request = Request::new(Caller::internal("bench"), capability, params.to_string()).model(model);
    let mut request = tensors.into_iter().fold(request, Request::tensor);
    request.cache = CacheUse::Bypass;
    block_on(async { host.serve(request).await.unwrap().collect().await.unwrap() })
}

fn answered(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.chunks[0].json).unwrap()
}

/// A file as a request has it.
fn picture(path: &Path) -> Tensor {
    let file = std::fs::read(path).unwrap();
    let data = [&(file.len() as u32).to_le_bytes()[..], &file].concat();
    Tensor::new("image", DType::Bytes, vec![1], data).unwrap()
}

fn read(table: &mut Table, host: &Host, rapid: &mut Rapid, folder: &Path) {
    let ours =
        || answered(&ask(host, "vision.ocr", "pp-ocr", &json!({}), vec![picture(&folder.join("page.png"))]));
    let (_, _, theirs) = rapid.page();
    let text = ours();
    let read: Vec<&str> =
        text["lines"].as_array().unwrap().iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(read.len(), theirs.len(), "both read the same page");
    let differ = read.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).count();
    assert!(differ * 20 <= read.len(), "{differ} of {} lines differ", read.len());

    let (mut walls, mut cpus, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (wall, busy, _) = rapid.page();
        let before = cpu();
        let took = timed(|| drop(ours()));
        walls.push((wall * 1e3, took * 1e3));
        cpus.push((busy * 1e3, (cpu() - before) * 1e3));
        ratios.push(took / wall);
    }
    let theirs = |pairs: &[(f64, f64)]| median(pairs.iter().map(|pair| pair.0).collect());
    let ours = |pairs: &[(f64, f64)]| median(pairs.iter().map(|pair| pair.1).collect());
    let page = format!("an A4 page at 150 dpi, {} lines", read.len());
    table.row(format!("{page}: RapidOCR"), theirs(&walls), "ms", Nothing);
    table.row("  CPU time", theirs(&cpus), "ms", Nothing);
    table.row(format!("{page}: `vision.ocr`"), ours(&walls), "ms", Nothing);
    table.row("  of RapidOCR's time", median(ratios), "", AtMost(1.1));
    table.row("  CPU time", ours(&cpus), "ms", Peer("RapidOCR", theirs(&cpus)));
    table.row("  lines that are read otherwise", differ as f64, "", Nothing);
}

const LABELS: usize = 80;
const BOXES: usize = 8400;

/// A detector of the shape of YOLO 8 at 640 pixels, whose graph knows its boxes by heart. Its card.
fn detector(folder: &Path) -> PathBuf {
    // Forty things, each seen by five boxes that lie on each other; of the rest, nothing is certain.
    let mut numbers = vec![0.01_f32; (4 + LABELS) * BOXES];
    for (place, row) in (0..200).map(|seen| (seen * 41 % BOXES, seen)) {
        let (thing, shift) = (row % 40, (row / 40) as f32);
        let (x, y) = ((thing % 8) as f32 * 75.0 + 50.0 + shift, (thing / 8) as f32 * 100.0 + 60.0);
        for (which, number) in [x, y, 60.0, 80.0].into_iter().enumerate() {
            numbers[which * BOXES + place] = number;
        }
        numbers[(4 + thing) * BOXES + place] = 0.9 - shift / 100.0;
    }
    let mut graph = Graph::default();
    let (height, width) = (Side::Is(640), Side::Is(640));
    graph.input("images", DType::Fp32, &[Side::Is(1), Side::Is(3), height, width]);
    graph.output("boxes", DType::Fp32, &[Side::Is(1), Side::Is(4 + LABELS), Side::Is(BOXES)]);
    graph.floats("known", &[1, 4 + LABELS, BOXES], &numbers);
    graph.floats("nothing", &[1], &[0.0]);
    graph.integers("first", &[0, 0, 0, 0]);
    graph.integers("last", &[1, 1, 1, 1]);
    graph.integers("cube", &[1, 1, 1]);
    // One pixel, times nothing: the graph has to be given the picture.
    graph.node("Slice", &["images", "first", "last"], &["pixel"], &[]);
    graph.node("Reshape", &["pixel", "cube"], &["one"], &[]);
    graph.node("Mul", &["one", "nothing"], &["none"], &[]);
    graph.node("Add", &["known", "none"], &["boxes"], &[]);
    std::fs::write(folder.join("known.onnx"), graph.finish("known")).unwrap();
    let labels: Vec<String> = (0..LABELS).map(|label| format!("thing {label}")).collect();
    let card = format!(
        "name = 'known'\nformat = 'vision'\ncapabilities = ['vision.detect']\nlabels = {}\n[graphs.model]\n\
         [parameters.detect]\nhead = 'classes'\n[[files]]\nrole = 'model'\npath = 'known.onnx'\n",
        json!(labels)
    );
    let path = folder.join("known.toml");
    std::fs::write(&path, card).unwrap();
    path
}

fn detect(table: &mut Table, host: &Host, folder: &Path, [width, height]: [i64; 2]) {
    let pixels = || {
        let pixels = std::fs::read(folder.join("photo.rgb")).unwrap();
        Tensor::new("image", DType::Uint8, vec![height, width, 3], pixels).unwrap()
    };
    let detect = |tensor| answered(&ask(host, "vision.detect", "known", &json!({}), vec![tensor]));
    let found = detect(pixels());
    assert_eq!(found["objects"].as_array().unwrap().len(), 40, "{found}");

    let zeros = Tensor::new("images", DType::Fp32, vec![1, 3, 640, 640], vec![0; 4 * 3 * 640 * 640]).unwrap();
    let graph = || drop(ask(host, "tensor.infer", "known.model", &json!({}), vec![zeros.clone()]));
    // Milliseconds by the clock, and of processor time.
    let measured = |call: &dyn Fn()| {
        let before = cpu();
        (timed(call) * 1e3, (cpu() - before) * 1e3)
    };
    let mut times: [Vec<(f64, f64)>; 3] = Default::default();
    for _ in 0..CALLS {
        let (sent, file) = (pixels(), picture(&folder.join("photo.jpg")));
        times[0].push(measured(&graph));
        times[1].push(measured(&|| drop(detect(sent.clone()))));
        times[2].push(measured(&|| drop(detect(file.clone()))));
    }
    let [alone, of_pixels, of_file] = times.map(|times| {
        let (wall, busy) = times.into_iter().unzip();
        (median(wall), median(busy))
    });
    let name = "a graph of 640x640 to 84x8400 that does nothing: `tensor.infer`";
    table.row(name, alone.0, "ms p50", Nothing);
    for (kind, all) in [("pixels", of_pixels), ("JPEG", of_file)] {
        table.row(format!("`vision.detect` on it, {width}x{height} in {kind}"), all.0, "ms p50", Nothing);
        table.row("  around the graph", all.0 - alone.0, "ms", AtMost(3.0));
        table.row("  CPU time around the graph, all threads", all.1 - alone.1, "ms", Nothing);
    }
}

fn languages(table: &mut Table, host: &Host) {
    const TEXTS: [&str; 10] = [
        "Where is the next bus stop?",
        "¿Dónde está la estación de tren?",
        "Ich hätte gern einen Kaffee, bitte.",
        "Il pleut depuis trois jours déjà.",
        "Questa strada porta al mare.",
        "Сегодня хорошая погода в городе.",
        "今日はとても暑いですね。",
        "Het boek ligt op de tafel.",
        "Ela chegou tarde ao trabalho.",
        "Kitap masanın üzerinde duruyor.",
    ];
    let texts: Vec<String> = (0..1000).map(|number| format!("{} {number}", TEXTS[number % 10])).collect();
    let params = json!({ "text": texts, "top": 1 });
    for model in ["lid.176", "whatlang"] {
        let told = answered(&ask(host, "language.detect", model, &params, vec![]));
        assert_eq!(told["results"].as_array().unwrap().len(), texts.len());
        let (mut rates, mut busy) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let before = cpu();
            let took = timed(|| drop(ask(host, "language.detect", model, &params, vec![])));
            rates.push(texts.len() as f64 / took);
            busy.push(texts.len() as f64 / (cpu() - before));
        }
        let name = format!("languages of short texts, 1000 a request: `{model}`");
        table.row(name, median(rates), "texts/s", Nothing);
        table.row("  for each second of CPU time, all threads", median(busy), "texts/s", AtLeast(1e5));
    }
}
