//! The kernels that come with the plugin: each is compiled by NVRTC for several devices, and its source is compiled for the
//! processor too and run there, and on a GPU where there is one, against its card's checks and against a reference.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod emulator;
mod support;

use backplane_cuda::{
    Bounds, Card, Compiler, Driver, Executor, Given, Image, Kernel, Plan, Program, Settings, verify,
};
use backplane_plugin::prelude::*;
use emulator::drivers;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::runtimes;

/// Turing, Ampere, Hopper, and the oldest and newest that this NVRTC knows of what the driver still serves.
const DEVICES: [(i32, i32); 4] = [(7, 5), (8, 0), (9, 0), (12, 0)];

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Each card, with its program.
fn all() -> Vec<(Card, Program)> {
    let mut found: Vec<_> = std::fs::read_dir(kernels())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| read(&path))
        .collect();
    found.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    found
}

/// The one without a card, which `image.prepare` runs.
fn pictures() -> Program {
    Program {
        source: include_str!("../kernels/pictures.cu").to_owned(),
        name: "pictures.cu".to_owned(),
        defines: [].into(),
        entries: ["prepare".to_owned()].into(),
        ptx: None,
    }
}

fn read(path: &Path) -> (Card, Program) {
    let card: toml::Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let card = serde_json::to_value(card).unwrap();
    let name = card["name"].as_str().unwrap().to_owned();
    let parameters = card["parameters"].as_object().unwrap().clone();
    let spec = ModelSpec { name: name.clone(), parameters, ..ModelSpec::default() };
    let source = kernels().join(card["files"][0]["path"].as_str().unwrap());
    let card = Card::of(&spec).unwrap();
    let mut entries: Vec<String> = card.launch.iter().map(|launch| launch.entry.clone()).collect();
    if name.starts_with("vector-search") {
        // What the model of `vector.search` calls besides.
        entries.extend(["hide", "gather"].map(str::to_owned));
    }
    let source = std::fs::read_to_string(source).unwrap();
    let program = Program { source, name, defines: card.defines.clone(), entries, ptx: None };
    (card, program)
}

/// A card's kernel, on each device.
fn load(name: &str) -> Vec<(Card, Kernel)> {
    let (card, program) = read(&kernels().join(format!("{name}.toml")));
    let load = |driver: Arc<dyn Driver>| (card.clone(), Kernel::load(&*driver, &card, &program).unwrap());
    drivers().into_iter().map(load).collect()
}

fn compiler() -> Compiler {
    Compiler::new(Settings::of(&json!({ "runtimes": runtimes() })).unwrap())
}

#[test]
fn every_kernel_compiles_for_every_device() {
    let compiler = compiler();
    let all = all();
    assert!(4 <= all.len());
    for program in all.into_iter().map(|(_, program)| program).chain([pictures()]) {
        let name = &program.name;
        for device in DEVICES {
            let image = compiler.compile(&program, device).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(image.starts_with(b"\x7fELF"), "{name} for {device:?}");
            // A symbol for each function.
            for entry in &program.entries {
                let symbol = format!(".text.{entry}\0");
                let there = image.windows(symbol.len()).any(|window| window == symbol.as_bytes());
                assert!(there, "{name} has no function `{entry}`");
            }
        }
    }
}

/// Run with `BACKPLANE_WRITE_PTX=1` after a change of a kernel, or of NVRTC's version.
#[test]
fn what_is_compiled_beforehand_is_what_the_source_says() {
    let compiler = compiler();
    // Its head says which compiler it is of.
    let code =
        |text: &str| text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n");
    for program in all().into_iter().map(|(_, program)| program).chain([pictures()]) {
        let path = kernels().join(&program.name).with_extension("ptx");
        let made = compiler.ptx(&program).unwrap();
        if std::env::var_os("BACKPLANE_WRITE_PTX").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let kept =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(code(&kept) == code(&made), "{} is not what NVRTC makes of its source", path.display());
        for entry in &program.entries {
            assert!(kept.contains(&format!(".entry {entry}(")), "{}: {entry}", path.display());
        }
    }
}

#[test]
fn what_was_compiled_beforehand_is_taken_where_there_is_no_compiler() {
    let nowhere = Settings::of(&json!({"nvrtc": "/nowhere"})).unwrap();
    let without = Compiler::new(nowhere);
    let program = pictures();
    let error = without.image(&program, (9, 0)).unwrap_err();
    assert_eq!(error.reason.as_deref(), Some("runtime_missing"));
    let program = Program { ptx: Some("compiled".to_owned()), ..program };
    assert_eq!(without.image(&program, (9, 0)).unwrap(), Image::Ptx("compiled".to_owned()));
    assert!(matches!(compiler().image(&program, (9, 0)).unwrap(), Image::Machine(_)));
    // Nor for a device that a compiler does not know; but a source that is wrong is wrong.
    assert!(matches!(compiler().image(&program, (99, 0)).unwrap(), Image::Ptx(_)));
    let wrong = Program { source: "wrong".to_owned(), ..program };
    assert_eq!(compiler().image(&wrong, (9, 0)).unwrap_err().reason.as_deref(), Some("model_invalid"));
}

#[test]
fn what_does_not_compile_is_told_with_its_line() {
    let (_, program) = read(&kernels().join("image-prepare.toml"));
    let source = "extern \"C\" __global__ void prepare(float* x) {\n    x[0] = 1;\n    x[1] = y;\n}\n";
    let program = Program { source: source.to_owned(), name: "mine.cu".to_owned(), ..program };
    let error = compiler().compile(&program, (9, 0)).unwrap_err();
    assert_eq!(error.reason.as_deref(), Some("model_invalid"));
    assert!(error.message.contains("mine.cu(3): error: identifier \"y\" is undefined"), "{error}");
    let error = compiler().compile(&Program { source: String::new(), ..program }, (2, 0)).unwrap_err();
    assert!(error.message.contains("compute capability 2.0"), "{error}");
}

#[test]
fn every_card_gives_what_its_checks_say() {
    for (card, program) in all() {
        let name = &program.name;
        assert!(!card.checks.is_empty(), "{name} has no check");
        for driver in drivers() {
            let kernel = Kernel::load(&*driver, &card, &program).unwrap();
            verify(&card, &kernel).unwrap_or_else(|error| panic!("{name} on {}: {error}", kernel.device()));
        }
    }
}

/// Small whole numbers, which look like noise; sums of their products are exact in 32 bits, and many are equal.
fn noise(count: usize, seed: u32) -> Vec<i8> {
    let number =
        |n: usize| ((n as u32 ^ seed).wrapping_mul(2_654_435_761) >> 13).wrapping_mul(0x9e37_79b9) >> 29;
    (0..count).map(|n| number(n) as i8 - 3).collect()
}

fn floats(numbers: &[i8]) -> Vec<u8> {
    numbers.iter().flat_map(|number| f32::from(*number).to_le_bytes()).collect()
}

#[test]
fn a_search_finds_what_a_naive_one_finds() {
    type Encode = fn(&[i8]) -> Vec<u8>;
    let kinds: [(&str, DType, Encode); 3] = [
        ("fp32", DType::Fp32, floats),
        ("fp16", DType::Fp16, |numbers| {
            numbers.iter().flat_map(|number| half::f16::from_f32(f32::from(*number)).to_le_bytes()).collect()
        }),
        ("int8", DType::Int8, |numbers| numbers.iter().map(|number| *number as u8).collect()),
    ];
    // Rows that are read 16 bytes at a time, and rows that are not; one chunk of scores, and several.
    let cases = kinds
        .into_iter()
        .flat_map(|kind| [(2100, 48, 2, 20, 0), (300, 13, 3, 7, 1)].map(|sizes| (kind, sizes)))
        .flat_map(|case| load(&format!("vector-search-{}", case.0.0)).into_iter().map(move |on| (case, on)));
    for (((kind, dtype, encode), (n, d, q, k, metric)), (card, kernel)) in cases {
        let (rows, queries) = (noise(n * d, 7), noise(q * d, 99));
        let shapes = [[n as i64, d as i64], [n as i64, 0], [q as i64, d as i64]];
        let given = [
            Given { name: "rows", dtype, shape: &shapes[0] },
            Given { name: "scales", dtype: DType::Fp32, shape: &shapes[1][..1] },
            Given { name: "queries", dtype: DType::Fp32, shape: &shapes[2] },
        ];
        let numbers = [("k".to_owned(), k as i64), ("metric".to_owned(), metric)].into();
        let plan = Plan::of(&card, &given, &numbers, &Bounds::EVERY).unwrap();
        let scales: Vec<i8> = (0..n).map(|row| 1 + (row % 2) as i8).collect();
        let inputs = [encode(&rows), floats(&scales), floats(&queries)];
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let answers = kernel.run(&plan, &inputs).unwrap();
        let scores: Vec<f32> =
            answers[0].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let found: Vec<i32> =
            answers[1].as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();

        for query in 0..q {
            let mut right: Vec<(f32, i32)> = (0..n)
                .map(|row| {
                    let pairs = rows[row * d..][..d].iter().zip(&queries[query * d..][..d]);
                    let sum: i32 = pairs
                        .map(|(a, b)| (i32::from(*a), i32::from(*b)))
                        .map(|(a, b)| if metric == 0 { a * b } else { -(a - b) * (a - b) })
                        .sum();
                    (sum as f32 * if metric == 0 { f32::from(scales[row]) } else { 1.0 }, row as i32)
                })
                .collect();
            right.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let own: Vec<(f32, i32)> =
                (query * k..(query + 1) * k).map(|place| (scores[place], found[place])).collect();
            assert_eq!(own, right[..k], "{kind}, {n} rows of {d}, query {query}");
        }
    }
}

#[test]
fn pictures_are_what_a_reference_makes_of_them() {
    for (card, kernel) in load("image-prepare") {
        are_as_the_reference_has_them(&card, &kernel);
    }
}

fn are_as_the_reference_has_them(card: &Card, kernel: &Kernel) {
    let (n, h, w, height, width) = (2_usize, 23_usize, 31_usize, 17_usize, 40_usize);
    let pictures: Vec<u8> = (0..n * h * w * 3).map(|n| ((n * 7919) % 251) as u8).collect();
    let regions = [[0.0, 0.0, w as f32, h as f32], [4.5, 2.0, 20.0, 9.25]];
    let (mean, scale) = ([0.485_f32, 0.456, 0.406], [1.0 / 0.229_f32, 1.0 / 0.224, 1.0 / 0.225]);
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let shape = [n as i64, h as i64, w as i64, 3];
    let given = [
        Given { name: "pictures", dtype: DType::Uint8, shape: &shape },
        Given { name: "regions", dtype: DType::Fp32, shape: &[2, 4] },
        Given { name: "mean", dtype: DType::Fp32, shape: &[3] },
        Given { name: "scale", dtype: DType::Fp32, shape: &[3] },
    ];
    let numbers = [("height".to_owned(), height as i64), ("width".to_owned(), width as i64)].into();
    let plan = Plan::of(card, &given, &numbers, &Bounds::EVERY).unwrap();
    let inputs = [pictures.clone(), bytes(regions.as_flattened()), bytes(&mean), bytes(&scale)];
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let answers = kernel.run(&plan, &inputs).unwrap();
    let pixels: Vec<f32> = answers[0].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();

    // Weights of each neighbour, by the definition, in 64 bits.
    let at = |picture: usize, y: i64, x: i64, channel: usize| {
        let (y, x) = (y.clamp(0, h as i64 - 1) as usize, x.clamp(0, w as i64 - 1) as usize);
        f64::from(pictures[((picture * h + y) * w + x) * 3 + channel])
    };
    for picture in 0..n {
        let [left, top, wide, high] = regions[picture].map(f64::from);
        for (channel, y, x) in
            (0..3).flat_map(|c| (0..height).flat_map(move |y| (0..width).map(move |x| (c, y, x))))
        {
            let source_x = (left + (x as f64 + 0.5) * wide / width as f64 - 0.5).clamp(0.0, w as f64 - 1.0);
            let source_y = (top + (y as f64 + 0.5) * high / height as f64 - 0.5).clamp(0.0, h as f64 - 1.0);
            let mut sum = 0.0;
            for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (near_y, near_x) = (source_y.floor() + f64::from(dy), source_x.floor() + f64::from(dx));
                let weight = (1.0 - (source_y - near_y).abs()) * (1.0 - (source_x - near_x).abs());
                sum += weight * at(picture, near_y as i64, near_x as i64, channel);
            }
            let right = (sum / 255.0 - f64::from(mean[channel])) * f64::from(scale[channel]);
            let own = f64::from(pixels[((picture * 3 + channel) * height + y) * width + x]);
            assert!(
                (own - right).abs() < 1e-4,
                "picture {picture}, channel {channel}, {y}, {x}: {own}, not {right}"
            );
        }
    }
}
