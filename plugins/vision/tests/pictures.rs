//! Pictures that are damaged, enormous, or none: each is refused by what is wrong with it, in little time and memory.
//! And pictures of every kind that people do send.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_testkit::{Instance, TensorInput};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, GrayImage, ImageBuffer, ImageFormat, Luma, Rgba, RgbaImage};
use serde_json::Value;
use std::io::Write;
use support::{Reader, file, page, plugin, tiff_joined, tiff_of, tiff_over};

fn instance(reader: &Reader) -> Instance {
    plugin().open(&reader.json()).unwrap().instance().unwrap()
}

fn send(instance: &Instance, bytes: &[u8]) -> Result<Value, String> {
    let answer =
        instance.submit("vision.ocr", "{}", vec![TensorInput::strings("image", &[1], &[bytes])]).wait();
    match answer.failure() {
        None => Ok(answer.json()),
        Some(failure) => {
            assert_eq!((failure.code, &failure.details["param"]), (3, &Value::from("image")), "{failure}");
            Err(failure.message.clone())
        }
    }
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind);
    hasher.update(data);
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &hasher.finalize().to_be_bytes()].concat()
}

/// A PNG, grey, of this size, with these chunks between its head and its end.
fn png(width: u32, height: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &head), chunks.concat(), chunk(b"IEND", &[])].concat()
}

/// What unfolds to 200 MiB.
fn bomb() -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    (0..200).for_each(|_| encoder.write_all(&vec![0; 1 << 20]).unwrap());
    encoder.finish().unwrap()
}

fn gif(frames: usize) -> Vec<u8> {
    let encoded = |frames: usize| {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new_with_speed(&mut bytes, 30);
        let frame = RgbaImage::from_pixel(8, 8, Rgba([255; 4]));
        (0..frames).for_each(|_| encoder.encode_frame(Frame::new(frame.clone())).unwrap());
        drop(encoder);
        bytes
    };
    // Every frame is the same bytes; a last one ends the file.
    let (one, two) = (encoded(1), encoded(2));
    let (head, frame) = (&one[..one.len() - 1], &two[one.len() - 1..two.len() - 1]);
    [head, &frame.repeat(frames - 1), b";"].concat()
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn bad_pictures_are_refused_by_what_is_wrong_with_them() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let whole = file(page(1), ImageFormat::Png);
    let jpeg = file(page(1), ImageFormat::Jpeg);
    let tiff = file(page(1), ImageFormat::Tiff);
    let animation = [chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]), chunk(b"IDAT", &zlib(&[0; 8 * 9]))];
    let pages = tiff_of(&[page(1), page(2)]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "is empty"),
        ("text", b"hello, this is no picture".to_vec(), "no format that is known"),
        ("an SVG", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "an SVG"),
        ("a PDF", b"%PDF-1.7\n".to_vec(), "a PDF"),
        ("an icon", [&[0, 0, 1, 0, 1, 0][..], &[0; 40]].concat(), "of the format Ico"),
        ("60 000 pixels each way", png(60_000, 60_000, &[chunk(b"IDAT", &zlib(&[0; 100]))]), "60000x60000"),
        ("a long side", png(40_000, 10, &[chunk(b"IDAT", &zlib(&[0; 100]))]), "32768 at most"),
        ("many pixels", png(30_000, 30_000, &[chunk(b"IDAT", &zlib(&[0; 100]))]), "40000000 pixels"),
        ("one pixel", file(GrayImage::new(1, 1), ImageFormat::Png), "1x1"),
        ("no pixel", png(0, 5, &[]), "PNG"),
        ("a PNG cut off", whole[..whole.len() / 2].to_vec(), "cut off"),
        ("a PNG without its pixels", png(8, 8, &[]), "PNG"),
        ("a JPEG cut off", jpeg[..jpeg.len() / 2].to_vec(), "cut off"),
        ("a JPEG's head", jpeg[..20].to_vec(), "JPEG"),
        ("a GIF cut off", gif(1)[..30].to_vec(), "GIF"),
        ("a GIF with script", b"GIF89a/*\x00\x00\x00\x00\x00*/=1;alert(1)".to_vec(), "x0 pixels"),
        ("a WebP cut off", file(page(1), ImageFormat::WebP)[..200].to_vec(), "WebP"),
        ("a TIFF cut off", tiff[..tiff.len() / 2].to_vec(), "TIFF"),
        ("an animated GIF", gif(2), "more than one picture"),
        ("a GIF of 50 000 frames", gif(50_000), "more than one picture"),
        ("an animated PNG", png(8, 8, &animation), "more than one picture"),
        ("pages cut off", pages[..pages.len() - 1].to_vec(), "picture 2 of it is missing"),
    ];
    let before = resident();
    for (what, bytes, says) in cases {
        let refused = send(&instance, &bytes).expect_err(what);
        assert!(refused.contains(says), "{what}: {refused}");
    }

    // What unfolds beside a picture: the picture is read without it, or refused; either is right, if it is not unfolded.
    let pixels = chunk(b"IDAT", &zlib(&[0; 8 * 9]));
    let bomb = bomb();
    let note = |kind, head: &[u8]| vec![chunk(kind, &[head, &bomb].concat()), pixels.clone()];
    for chunks in
        [note(b"zTXt", b"note\0\0"), note(b"iCCP", b"profile\0\0"), note(b"iTXt", b"note\0\x01\0\0\0")]
    {
        drop(send(&instance, &png(8, 8, &chunks)));
    }
    assert!(resident() < before + 120, "{before} MiB became {} MiB", resident());
}

#[test]
fn pictures_of_every_kind_are_read() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let page = page(2);
    let grey = DynamicImage::from(page.clone()).into_luma8();
    let deep: ImageBuffer<Luma<u16>, Vec<u16>> =
        ImageBuffer::from_fn(800, 800, |x, y| Luma([u16::from(grey.get_pixel(x, y)[0]) * 257]));
    // Black where it is opaque, and nothing elsewhere.
    let clear = RgbaImage::from_fn(800, 800, |x, y| Rgba([0, 0, 0, 255 - grey.get_pixel(x, y)[0]]));
    let expected = send(&instance, &file(page.clone(), ImageFormat::Png)).unwrap();
    assert_eq!(expected["lines"].as_array().unwrap().len(), 2);
    for (what, bytes) in [
        ("grey PNG", file(grey.clone(), ImageFormat::Png)),
        ("PNG of 16 bits", file(DynamicImage::from(deep), ImageFormat::Png)),
        ("transparent PNG", file(clear, ImageFormat::Png)),
        ("GIF", file(page.clone(), ImageFormat::Gif)),
        ("BMP", file(page.clone(), ImageFormat::Bmp)),
        ("WebP", file(page.clone(), ImageFormat::WebP)),
        ("TIFF", file(page.clone(), ImageFormat::Tiff)),
        ("PNM", file(page.clone(), ImageFormat::Pnm)),
        (
            "PNG with something behind it",
            [file(page.clone(), ImageFormat::Png), b"PK\x03\x04".to_vec()].concat(),
        ),
    ] {
        assert_eq!(
            send(&instance, &bytes).unwrap_or_else(|error| panic!("{what}: {error}")),
            expected,
            "{what}"
        );
    }
    let lossy = send(&instance, &file(page, ImageFormat::Jpeg)).unwrap();
    assert_eq!(lossy["lines"].as_array().unwrap().len(), 2);
}

/// A JPEG that says it lies on its side is read as it is meant to be seen.
#[test]
fn a_picture_is_turned_as_its_file_asks() {
    let reader = Reader::new();
    let jpeg = file(image::imageops::crop_imm(&page(2), 0, 0, 800, 400).to_image(), ImageFormat::Jpeg);
    // EXIF: big endian, one entry, orientation 6, a quarter to the right.
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let turned = [&jpeg[..2], &[0xff, 0xe1], &length, exif, &jpeg[2..]].concat();
    let answer = send(&instance(&reader), &turned).unwrap();
    assert_eq!((&answer["width"], &answer["height"]), (&Value::from(400), &Value::from(800)));
    assert_eq!(send(&instance(&reader), &jpeg).unwrap()["width"], 800);
}

/// What a TIFF says to be a mask, or a page made smaller, is no page, be it the first.
#[test]
fn a_thumbnail_before_the_page_is_not_read_for_it() {
    let reader = Reader::new();
    let instance = instance(&reader);
    let small = tiff_over(40, &[255; 1600], &[1]);
    let large = file(page(2), ImageFormat::Tiff);
    let both = tiff_joined(&[small.clone(), large.clone()]);
    let read = send(&instance, &both).unwrap();
    assert_eq!(read, send(&instance, &large).unwrap());
    assert_eq!(send(&instance, &tiff_joined(&[large, small.clone()])).unwrap(), read);
    assert_eq!(send(&instance, &small).unwrap()["width"], 40, "the only one is the page");
    // Where there is one page, it has no number.
    let refused = send(&instance, &tiff_joined(&[small, tiff_over(1, &[0], &[0])])).unwrap_err();
    assert!(refused.starts_with("the picture is 1x1"), "{refused}");
}
