//! A host whose `tensor.infer` is a few lines: black is text, and every line reads `ab`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "test support, of which each test uses a part"
)]

use backplane_testkit::{CallInput, Chunk, DType, Failure, PluginTest, TensorOutput};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use std::io::Cursor;
use tempfile::TempDir;

/// A model that reads, and the folder with its files.
pub struct Reader {
    pub dir: TempDir,
    pub model: Value,
}

impl Reader {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (role, content) in
            [("det", "graph"), ("cls", "graph"), ("rec", "graph"), ("dictionary", "a\nb\n")]
        {
            let path = dir.path().join(role);
            std::fs::write(&path, content).unwrap();
            files.push(json!({"role": role, "name": role, "path": path, "size": content.len()}));
        }
        let model = json!({
            "name": "reader", "format": "vision", "capabilities": ["vision.ocr"], "files": files, "parameters": {},
        });
        Self { dir, model }
    }

    pub fn json(&self) -> String {
        self.model.to_string()
    }
}

/// The plugin on that host.
pub fn plugin() -> PluginTest {
    PluginTest::of(backplane_vision::backplane_export::bp_entry_v1).answering(engine)
}

/// What stands in for the graphs.
pub fn engine(call: &CallInput) -> Result<Vec<Chunk>, Failure> {
    assert_eq!(call.capability, "tensor.infer");
    let [input] = &call.tensors[..] else { panic!("one tensor") };
    assert_eq!((&*input.name, input.dtype), ("x", DType::Fp32));
    let numbers: Vec<f32> = input.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let [rows, _, height, width] = input.shape[..] else { panic!("four sides") };
    let plane = (height * width) as usize;
    match &*call.model {
        // Black is text.
        "reader.det" => {
            let map = numbers[..plane].iter().map(|number| if *number < 0.0 { 0.9 } else { 0.05 });
            answer(&[1, 1, height, width], map.collect())
        }
        // What is red at its left end stands on its head. Blue comes first, and red last.
        "reader.cls" => {
            // A line has white room around it.
            let at = plane / 2 + 20;
            let feet = |row: &[f32]| if 0.0 < row[2 * plane + at] && row[at] < 0.0 { 0.99 } else { 0.01 };
            answer(
                &[rows, 2],
                numbers.chunks_exact(3 * plane).map(feet).flat_map(|feet| [1.0 - feet, feet]).collect(),
            )
        }
        // Nothing, `a`, `a`, nothing, `b`, nothing.
        "reader.rec" => {
            let columns = [0, 1, 1, 0, 2, 0];
            let row = columns
                .iter()
                .flat_map(|class| (0..4).map(move |other| if other == *class { 0.8 } else { 0.1 }));
            let row: Vec<f32> = row.collect();
            answer(&[rows, columns.len() as i64, 4], row.repeat(rows as usize))
        }
        other => panic!("no graph is called `{other}`"),
    }
}

fn answer(shape: &[i64], numbers: Vec<f32>) -> Result<Vec<Chunk>, Failure> {
    let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let tensor = TensorOutput { name: "y".to_owned(), dtype: DType::Fp32, shape: shape.to_vec(), data };
    Ok(vec![Chunk { json: Value::Null, tensors: vec![tensor] }])
}

/// A white page with black bars of 200x20 pixels, one below the other.
pub fn page(bars: u32) -> RgbImage {
    let mut page = RgbImage::from_pixel(800, 800, Rgb([255; 3]));
    for bar in 0..bars {
        for (x, y) in (0..20).flat_map(|y| (0..200).map(move |x| (x, y))) {
            page.put_pixel(100 + x, 100 + bar * 80 + y, Rgb([0; 3]));
        }
    }
    page
}

/// A file with this picture.
pub fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture.into().write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

pub fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

/// A TIFF of one strip, grey, so many pixels each way, and a directory over it for each of these kinds (tag 254): 0 a page,
/// 1 one made smaller, 4 a mask.
pub fn tiff_over(side: u16, strip: &[u8], kinds: &[u32]) -> Vec<u8> {
    assert_eq!(strip.len(), usize::from(side) * usize::from(side));
    let directories = 8 + strip.len() as u32;
    let mut bytes = [b"II\x2a\0", &directories.to_le_bytes()[..], strip].concat();
    for (place, kind) in (1..).zip(kinds) {
        let entries = [
            (254, *kind),
            (256, side.into()),
            (257, side.into()),
            (258, 8),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (278, side.into()),
            (279, strip.len() as u32),
        ];
        bytes.extend((entries.len() as u16).to_le_bytes());
        for (tag, value) in entries {
            let (tag, kind) = (u16::to_le_bytes(tag), 4_u16.to_le_bytes());
            bytes.extend([&tag[..], &kind, &1_u32.to_le_bytes(), &value.to_le_bytes()].concat());
        }
        let next = directories + place * (6 + 12 * entries.len() as u32);
        let last = place as usize == kinds.len();
        bytes.extend(if last { 0 } else { next }.to_le_bytes());
    }
    bytes
}

/// A TIFF with these pages.
pub fn tiff_of(pages: &[RgbImage]) -> Vec<u8> {
    let files: Vec<_> = pages.iter().map(|page| file(page.clone(), ImageFormat::Tiff)).collect();
    tiff_joined(&files)
}

/// A TIFF with the first pages of these.
pub fn tiff_joined(files: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut link: Option<usize> = None;
    for one in files {
        let mut one = one.clone();
        let shift = whole.len() as u32;
        let directory = u32::from_le_bytes(one[4..8].try_into().unwrap()) as usize;
        let entries = usize::from(u16::from_le_bytes(one[directory..directory + 2].try_into().unwrap()));
        let next = directory + 2 + entries * 12;
        // What an entry holds that is longer than four bytes stands elsewhere in the file, and so do the pixels (273).
        for entry in (directory + 2..next).step_by(12) {
            let field = |from: usize, to: usize| {
                one[entry + from..entry + to].iter().rev().fold(0_u32, |n, byte| n << 8 | u32::from(*byte))
            };
            let (tag, kind, count, value) = (field(0, 2), field(2, 4), field(4, 8), field(8, 12));
            let size = count * [0, 1, 1, 2, 4, 8][kind as usize];
            if 4 < size {
                assert_ne!((tag, kind), (273, 3));
                for at in (0..count as usize).filter(|_| tag == 273) {
                    let at = value as usize + at * 4;
                    let offset = u32::from_le_bytes(one[at..at + 4].try_into().unwrap()) + shift;
                    one[at..at + 4].copy_from_slice(&offset.to_le_bytes());
                }
            }
            if 4 < size || tag == 273 {
                one[entry + 8..entry + 12].copy_from_slice(&(value + shift).to_le_bytes());
            }
        }
        whole.extend(&one);
        if let Some(link) = link {
            whole[link..link + 4].copy_from_slice(&(directory as u32 + shift).to_le_bytes());
        }
        link = Some(next + shift as usize);
    }
    whole
}
