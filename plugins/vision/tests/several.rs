//! Several pictures in one request, and files with several pages.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_testkit::TensorInput;
use image::ImageFormat;
use serde_json::json;
use support::{Reader, base64, file, page, plugin, tiff_of, tiff_over};

#[test]
fn each_page_and_each_file_has_a_piece_of_its_own() {
    let reader = Reader::new();
    let instance = plugin().open(&reader.json()).unwrap().instance().unwrap();
    let read = |files: &[&[u8]]| {
        let tensor = TensorInput::strings("image", &[files.len() as i64], files);
        let answer = instance.submit("vision.ocr", "{}", vec![tensor]).wait();
        match answer.failure() {
            None => {
                Ok(answer.chunks.iter().map(|chunk| chunk.json["lines"].as_array().unwrap().len()).collect())
            }
            Some(failure) => Err((failure.details["param"].clone(), failure.message.clone())),
        }
    };
    let (png, tiff) = (file(page(3), ImageFormat::Png), tiff_of(&[page(1), page(0), page(2)]));
    assert_eq!(read(&[&tiff]), Ok(vec![1, 0, 2]));
    assert_eq!(read(&[&png, &tiff, &png]), Ok(vec![3, 1, 0, 2, 3]));

    let images: Vec<String> = [&png, &tiff].map(|file| base64(file)).into();
    let answer = instance.submit("vision.ocr", &json!({"images": images}).to_string(), vec![]).wait();
    assert_eq!(answer.chunks.len(), 4, "{:?}", answer.failure());
    // Each says which it is about.
    let places: Vec<_> = answer
        .chunks
        .iter()
        .map(|chunk| (chunk.json["image"].as_u64(), chunk.json["page"].as_u64()))
        .collect();
    let tiff_page = |page| (Some(1), Some(page));
    assert_eq!(places, [(Some(0), None), tiff_page(1), tiff_page(2), tiff_page(3)]);
    for (params, image) in [(json!({"images": [images[0]]}), Some(0)), (json!({"image": images[0]}), None)] {
        let answer = instance.submit("vision.ocr", &params.to_string(), vec![]).wait().json();
        assert_eq!((answer["image"].as_u64(), answer.get("page")), (image, None), "{answer}");
    }

    // What is wrong with one is told by its place.
    let refused = |files: &[&[u8]]| read(files).unwrap_err();
    let (param, message) = refused(&[&png, b"GIF89a"]);
    assert_eq!(param, "images[1]");
    assert!(message.starts_with("`images[1]`: the GIF"), "{message}");
    // The tag that holds the width of the second page says 0.
    let mut narrow = tiff_of(&[page(1), page(1)]);
    let half = narrow.len() / 2;
    let width =
        half + narrow[half..].windows(4).position(|tag| tag == [0, 1, 4, 0] || tag == [0, 1, 3, 0]).unwrap();
    narrow[width + 8..width + 12].fill(0);
    for (files, param, says) in [
        (vec![&narrow[..]], "image", "page 2: "),
        (vec![&png[..], &narrow], "images[1]", "page 2 of `images[1]`: "),
        (vec![&png[..]; 65], "images", "there are 65 pictures"),
        (vec![&tiff_over(2, &[0; 4], &[0; 65])], "image", "the file has more pages than the 64"),
        (
            vec![&png, &tiff_over(2, &[0; 4], &[0; 63]), &png],
            "images",
            "the 3 files have more pages than the 64",
        ),
    ] {
        let refused = refused(&files);
        assert!(refused.0 == param && refused.1.starts_with(says), "{refused:?}");
    }
    let two = json!({"images": [images[0]], "image": images[0]}).to_string();
    let answer = instance.submit("vision.ocr", &two, vec![]).wait();
    assert!(answer.failure().unwrap().message.contains("`image` and `images`"));
    let odd = json!({"images": [images[0], "https://example.com"]}).to_string();
    let answer = instance.submit("vision.ocr", &odd, vec![]).wait();
    let failure = answer.failure().unwrap();
    assert!(failure.message.starts_with("`images[1]` is an address"), "{failure}");
}

#[test]
fn a_setting_that_cannot_be_is_refused_by_its_name() {
    let reader = Reader::new();
    for (settings, says) in [
        (json!({"max_pixels": "many"}), "`max_pixels` must be a whole number"),
        (json!({"max_pixel": 1}), "`max_pixel`"),
        (json!({"max_side": 1}), "`max_side` is 1"),
    ] {
        let refused = plugin().config(settings.to_string()).open(&reader.json()).err().unwrap();
        assert!(refused.message.starts_with("[plugins.settings.\"dev.backplane.vision\"]: "), "{refused}");
        assert!(refused.message.contains(says), "{refused}");
    }
}
