//! Files with more than one picture, and files that were cut off where no decoder says so.

use super::decode::within;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageDecoder, ImageFormat};
use std::io::Cursor;

/// Whether a file holds more than one picture: an animation, or several pages. Looks at two at most, and allocates no more
/// than `most` bytes.
pub fn several(bytes: &[u8], format: ImageFormat, most: u64) -> bool {
    let file = Cursor::new(bytes);
    match format {
        ImageFormat::Gif => GifDecoder::new(file).is_ok_and(|mut decoder| {
            decoder.set_limits(within(most)).is_ok() && decoder.into_frames().nth(1).is_some()
        }),
        ImageFormat::Png => PngDecoder::with_limits(file, within(most))
            .is_ok_and(|decoder| decoder.is_apng().unwrap_or(false)),
        ImageFormat::WebP => WebPDecoder::new(file).is_ok_and(|decoder| decoder.has_animation()),
        ImageFormat::Tiff => tiff_pages(bytes).unwrap_or(false),
        _ => false,
    }
}

/// Whether the first directory of a TIFF leads to another one.
fn tiff_pages(bytes: &[u8]) -> Option<bool> {
    let little = bytes.starts_with(b"II");
    let number = |at: u64, size: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = bytes.get(at..at.checked_add(size)?)?;
        let digits: Vec<u8> = if little { bytes.iter().rev().copied().collect() } else { bytes.to_vec() };
        Some(digits.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)))
    };
    // Length of an offset, of the number of entries, and of an entry.
    let (first, offset, count, entry) = match number(2, 2)? {
        43 => (8, 8, 8, 20),
        _ => (4, 4, 2, 12),
    };
    let directory = number(first, offset)?;
    let entries = number(directory, count)?;
    let next = directory.checked_add(count as u64)?.checked_add(entries.checked_mul(entry)?)?;
    Some(number(next, offset)? != 0)
}

/// Whether a JPEG has its end. Decoders show what is there of one that was cut off, the rest grey.
pub fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    // Segments before the picture may hold a small picture of their own, with an end of its own.
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4).and_then(|head| head.first_chunk()) {
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        const SCAN: u8 = 0xda;
        if marker == SCAN {
            return bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xff, 0xd9]));
        }
    }
    // Not as a JPEG is made: the decoder says what is wrong.
    true
}
