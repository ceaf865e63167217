//! Animations, and files that were cut off where no decoder says so.

use super::decode::within;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageDecoder, ImageFormat};
use std::io::Cursor;

/// Whether a file is an animation. Looks at two frames at most, and allocates no more than `most` bytes.
pub fn animated(bytes: &[u8], format: ImageFormat, most: u64) -> bool {
    let file = Cursor::new(bytes);
    match format {
        ImageFormat::Gif => GifDecoder::new(file).is_ok_and(|mut decoder| {
            decoder.set_limits(within(most)).is_ok() && decoder.into_frames().nth(1).is_some()
        }),
        ImageFormat::Png => PngDecoder::with_limits(file, within(most))
            .is_ok_and(|decoder| decoder.is_apng().unwrap_or(false)),
        ImageFormat::WebP => WebPDecoder::new(file).is_ok_and(|decoder| decoder.has_animation()),
        _ => false,
    }
}

/// Whether a JPEG has its end. Decoders show what is there of one that was cut off, the rest grey.
pub fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    // Segments before the picture may hold a small picture of their own, with an end of its own.
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4).and_then(|head| head.first_chunk()) {
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        const SCAN: u8 = 0xda;
        if marker == SCAN {
            // Hardly anything stands behind the end of a whole one.
            return bytes
                .get(at..)
                .is_some_and(|scan| scan.windows(2).rev().any(|pair| pair == [0xff, 0xd9]));
        }
    }
    // Not as a JPEG is made: the decoder says what is wrong.
    true
}
