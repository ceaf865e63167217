//! `image.prepare` on a device, beside what the vision plugin makes of the same picture. The device is the processor, which
//! runs the kernel's own source, and then the GPU where there is one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod emulator;
mod support;

use backplane_testkit::{
    CallInput, Case, Chunk, DType, Failure, Instance, PluginTest, TensorInput, TensorOutput,
};
use emulator::{again_on_the_device, stand_in};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const MODEL: &str = r#"{"name":"pictures-cuda","capabilities":["image.prepare"]}"#;

fn plugin() -> PluginTest {
    stand_in();
    PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1)
}

/// Noise on a ramp, with edges.
fn picture(width: usize, height: usize) -> Vec<u8> {
    let pixel = |n: usize| {
        let (x, y) = (n % width, n / width);
        let noise = (n as u32).wrapping_mul(2_654_435_761) >> 27;
        let edge = if (x / 7 + y / 5) % 2 == 0 { 200 } else { 0 };
        [(x * 255 / width) as u8, edge, (y * 200 / height) as u8 + noise as u8]
    };
    (0..width * height).flat_map(pixel).collect()
}

fn numbers(tensor: &TensorOutput) -> Vec<f32> {
    tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// What the vision plugin gives a graph for a picture, by a card with this input.
fn by_vision(input: &Value, width: usize, height: usize) -> TensorOutput {
    let seen: Arc<Mutex<Option<TensorOutput>>> = Arc::default();
    let keep = seen.clone();
    let plugin = PluginTest::build("backplane-vision").unwrap();
    let plugin = plugin.answering(move |call: &CallInput| -> Result<Vec<Chunk>, Failure> {
        *keep.lock().unwrap() = Some(call.tensors[0].clone());
        let data = [0.0_f32; 2].iter().flat_map(|number| number.to_le_bytes()).collect();
        let scores = TensorOutput { name: "y".to_owned(), dtype: DType::Fp32, shape: vec![1, 2], data };
        Ok(vec![Chunk { json: Value::Null, tensors: vec![scores] }])
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph");
    std::fs::write(&path, "graph").unwrap();
    let card = json!({
        "name": "mine", "format": "vision", "capabilities": ["vision.classify"], "labels": ["a", "b"],
        "parameters": {"classify": {"input": input, "top_k": 1}},
        "files": [{"role": "model", "name": "graph", "path": path, "size": 5}],
    });
    let instance = plugin.open(&card.to_string()).unwrap().instance().unwrap();
    let image =
        TensorInput::new("image", DType::Uint8, &[height as i64, width as i64, 3], picture(width, height));
    let answer = instance.submit("vision.classify", "{}", vec![image]).wait();
    assert!(answer.is_done(), "{:?}", answer.failure());
    seen.lock().unwrap().take().unwrap()
}

fn prepare(instance: &Instance, params: &Value, sizes: &[(usize, usize)]) -> Result<TensorOutput, Failure> {
    let tensor = |(number, &(width, height)): (usize, &(usize, usize))| {
        let shape = [height as i64, width as i64, 3];
        TensorInput::new(&number.to_string(), DType::Uint8, &shape, picture(width, height))
    };
    let tensors = sizes.iter().enumerate().map(tensor).collect();
    let answer = instance.submit("image.prepare", &params.to_string(), tensors).wait();
    answer.failure().map_or_else(|| Ok(answer.chunks[0].tensors[0].clone()), |failure| Err(failure.clone()))
}

/// Smaller and larger, whole and in part, both filters, both layouts: as the vision plugin does it, but for the rounding of a
/// byte, which that plugin does with weights of 16 bits.
#[test]
fn a_picture_is_what_the_vision_plugin_makes_of_it() {
    let instance = plugin().open(MODEL).unwrap().instance().unwrap();
    let made = json!({"channels": "bgr", "scale": 1.0, "mean": [10.0, 20.0, 30.0], "std": [1.0, 2.0, 0.5]});
    for (filter, layout, (width, height)) in [
        ("bilinear", "nchw", (90, 61)),
        ("bicubic", "nhwc", (90, 61)),
        ("bilinear", "nhwc", (17, 11)),
        ("bicubic", "nchw", (17, 11)),
    ] {
        let (w, h) = (width as f64, height as f64);
        // As wide as the picture, and what is left is ground; the middle, as high as the result is wide.
        let down = (24.0 * (32.0 / w).min(24.0 / h) * h / 24.0).round().min(24.0);
        let across = (w * (32.0 / w).min(24.0 / h)).round();
        let scale = (w / 32.0).min(h / 24.0);
        let (part_w, part_h) = ((32.0 * scale).floor(), (24.0 * scale).floor());
        let letterbox = [((32.0 - across) / 2.0).floor(), ((24.0 - down) / 2.0).floor(), across, down];
        let crop = [((w - part_w) / 2.0).floor(), ((h - part_h) / 2.0).floor(), part_w, part_h];
        for (fit, from, to) in [
            ("stretch", [0.0, 0.0, w, h], [0.0, 0.0, 32.0, 24.0]),
            ("letterbox", [0.0, 0.0, w, h], letterbox),
            ("crop", crop, [0.0, 0.0, 32.0, 24.0]),
        ] {
            let input = json!({"name": "x", "size": [32, 24], "fit": fit, "fill": 114, "filter": filter,
                "layout": layout, "numbers": made});
            let right = by_vision(&input, width, height);
            let params = json!({"width": 32, "height": 24, "filter": filter, "layout": layout, "channels": "bgr",
                "scale": 1.0, "mean": [10.0, 20.0, 30.0], "std": [1.0, 2.0, 0.5], "fill": 114,
                "regions": [{"from": from, "to": to.map(|side| side as u32)}]});
            let own = prepare(&instance, &params, &[(width, height)]).unwrap();
            assert_eq!((&*own.name, own.dtype, &own.shape), ("pixels", DType::Fp32, &right.shape));
            let (own, right) = (numbers(&own), numbers(&right));
            // A byte is worth 1, a half or 2, by the deviation of its colour.
            let worth = |at: usize| match layout {
                "nhwc" => [1.0, 0.5, 2.0][at % 3],
                _ => [1.0, 0.5, 2.0][at / (32 * 24)],
            };
            let apart: Vec<f32> = own
                .iter()
                .zip(&right)
                .enumerate()
                .map(|(at, (own, right))| (own - right).abs() / worth(at))
                .collect();
            let most = apart.iter().copied().fold(0.0, f32::max);
            let equal = apart.iter().filter(|apart| **apart < 0.5).count() as f64 / apart.len() as f64;
            assert!(most <= 1.0 && 0.9 <= equal, "{filter}, {fit}, {layout}: {most} apart, {equal} equal");
        }
    }
}

#[test]
fn on_the_device_that_is_here() {
    again_on_the_device(&[
        "a_picture_is_what_the_vision_plugin_makes_of_it",
        "pictures_of_several_sizes_go_together",
        "it_conforms_on_a_device",
    ]);
}

#[test]
fn pictures_of_several_sizes_go_together() {
    let instance = plugin().open(MODEL).unwrap().instance().unwrap();
    let region = |width: usize, height: usize| json!({"from": [0, 0, width, height], "to": [0, 0, 8, 6]});
    let params = |regions: Vec<Value>| json!({"width": 8, "height": 6, "regions": regions});
    let sizes = [(20, 10), (5, 30), (8, 6)];
    let all = params(sizes.iter().map(|&(width, height)| region(width, height)).collect());
    let together = prepare(&instance, &all, &sizes).unwrap();
    assert_eq!(together.shape, [3, 3, 6, 8]);
    for (number, &(width, height)) in sizes.iter().enumerate() {
        let alone = prepare(&instance, &params(vec![region(width, height)]), &[(width, height)]).unwrap();
        assert_eq!(alone.data, together.data[number * alone.data.len()..][..alone.data.len()]);
    }
    // In its own size it is itself.
    let last = numbers(&together)[2 * 144..].to_vec();
    let own = picture(8, 6);
    assert!((0..144).all(|at| (last[at] * 255.0 - f32::from(own[at % 48 * 3 + at / 48])).abs() < 1e-3));
}

#[test]
fn what_would_be_read_elsewhere_is_refused() {
    let instance = plugin().open(MODEL).unwrap().instance().unwrap();
    let good = json!({"width": 4, "height": 4, "regions": [{"from": [0, 0, 8, 8], "to": [0, 0, 4, 4]}]});
    prepare(&instance, &good, &[(8, 8)]).unwrap();
    for (place, value, says) in [
        ("/width", json!(0), "`width` is 0"),
        ("/height", json!(5000), "between 1 and 4096"),
        ("/regions", json!([]), "1 pictures and 0 `regions`"),
        ("/regions/0/from", json!([0, 0, 9, 8]), "of a picture of 8x8"),
        ("/regions/0/from", json!([-1, 0, 3, 8]), "of a picture of 8x8"),
        ("/regions/0/from", json!([0, 0, 0, 8]), "of a picture of 8x8"),
        ("/regions/0/to", json!([1, 0, 4, 4]), "of a result of 4x4"),
        ("/regions/0/to", json!([0, 0, 4, 0]), "of a result of 4x4"),
    ] {
        let mut params = good.clone();
        *params.pointer_mut(place).unwrap() = value;
        let failure = prepare(&instance, &params, &[(8, 8)]).unwrap_err();
        assert!(failure.message.contains(says), "{failure}");
    }
    let mut zero = good.clone();
    zero["std"] = json!([1, 0, 1]);
    assert!(prepare(&instance, &zero, &[(8, 8)]).unwrap_err().message.contains("`std` has a 0"));
    let odd = vec![TensorInput::fp32("0", &[8, 8, 3], &[0.0; 192])];
    let failure = instance.submit("image.prepare", &good.to_string(), odd).wait().failure().unwrap().clone();
    assert!(failure.message.contains("must be UINT8"), "{failure}");
}

#[test]
fn it_conforms_on_a_device() {
    let params = json!({"width": 4, "height": 3, "regions": [{"from": [0, 0, 8, 8], "to": [0, 0, 4, 3]}]});
    let picture = TensorInput::new("0", DType::Uint8, &[8, 8, 3], picture(8, 8));
    let case = Case::new(MODEL, "image.prepare", params.to_string()).tensor(picture);
    plugin().check_conformance(&[case]).assert_ok();
}
