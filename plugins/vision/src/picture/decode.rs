//! From the bytes of a file to pixels, within limits. A file that is damaged, too large, or not a picture is refused by
//! what is wrong with it.

use super::tiff::{self, Beginning};
use super::{Limits, Needs, Picture, frames, invalid};
use backplane_plugin::prelude::*;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

/// The formats that are read, by the names of their files.
const FORMATS: &[(ImageFormat, &str)] = &[
    (ImageFormat::Png, "PNG"),
    (ImageFormat::Jpeg, "JPEG"),
    (ImageFormat::WebP, "WebP"),
    (ImageFormat::Gif, "GIF"),
    (ImageFormat::Tiff, "TIFF"),
    (ImageFormat::Bmp, "BMP"),
    (ImageFormat::Pnm, "PNM"),
];

/// What may be allocated before a picture's size is known: for colour profiles and notes, which unfold.
const HEAD: u64 = 8 << 20;

/// A file whose head was read.
struct Opened<D> {
    decoder: D,
    format: ImageFormat,
    name: &'static str,
    /// What the decoder may allocate: the pixels as they are stored, as they are decoded, and room to work.
    most: u64,
}

fn opened<'a>(
    bytes: &'a [u8],
    page: Option<u64>,
    limits: &Limits,
) -> Result<Opened<impl ImageDecoder + use<'a>>> {
    let (format, name) = known(bytes)?;
    let file = page.map_or_else(|| Beginning::own(bytes), |page| Beginning::with_page(bytes, page));
    let mut reader = ImageReader::with_format(file, format);
    reader.limits(within(HEAD));
    let decoder = reader.into_decoder().map_err(|error| fault(name, &error))?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let most = decoder.total_bytes().saturating_mul(3) + HEAD;
    Ok(Opened { decoder, format, name, most })
}

/// Where the pages of a file are; none where its first picture is the only one. Those beyond `most` and one are not looked for.
///
/// # Errors
/// When they cannot be told.
pub fn pages(bytes: &[u8], most: usize) -> Result<Vec<u64>> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Tiff) => Ok(tiff::pages(bytes, most)?),
        _ => Ok(Vec::new()),
    }
}

/// What [`file`] takes.
///
/// # Errors
/// As [`file`], as far as its head tells.
pub fn needs(bytes: &[u8], page: Option<u64>, limits: &Limits) -> Result<Needs> {
    let Opened { decoder, most, .. } = opened(bytes, page, limits)?;
    let (width, height) = decoder.dimensions();
    // The pixels as the decoder gives them, of 8 bits with alpha, and without.
    let pixels = u64::from(width) * u64::from(height);
    Ok(Needs { pixels, memory: most.max(decoder.total_bytes() + 7 * pixels) })
}

/// The picture in a file, or the one on this page of it, as it is meant to be seen: turned as the file asks for, on white where
/// it is transparent.
///
/// # Errors
/// When it is not a single whole picture of a known format, or larger than it may be.
pub fn file(bytes: &[u8], page: Option<u64>, limits: &Limits) -> Result<Picture> {
    let Opened { mut decoder, format, name, most } = opened(bytes, page, limits)?;
    let broken = |error: ImageError| fault(name, &error);
    if frames::animated(bytes, format, most) {
        let message = format!(
            "the {name} holds more than one picture: it is an animation; send its frames as pictures"
        );
        return Err(invalid(message));
    }
    if format == ImageFormat::Jpeg && !frames::jpeg_ends(bytes) {
        return Err(invalid("the JPEG is cut off: its end is missing"));
    }
    decoder.set_limits(within(most)).map_err(broken)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    let pixels = match image.color().has_alpha() {
        true => flat(image.into_rgba8().as_raw(), 4),
        false => image.into_rgb8().into_raw(),
    };
    Ok(Picture::new(width, height, pixels))
}

/// Red, green and blue of pixels with this many channels: grey, RGB, or RGB and how opaque they are, on white.
pub fn flat(pixels: &[u8], channels: usize) -> Vec<u8> {
    match channels {
        1 => pixels.iter().flat_map(|grey| [*grey; 3]).collect(),
        4 => {
            let on_white = |part: u8, alpha: u8| {
                let (part, alpha) = (u32::from(part), u32::from(alpha));
                ((part * alpha + 255 * (255 - alpha) + 127) / 255) as u8
            };
            pixels
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|&[r, g, b, a]| [r, g, b].map(|part| on_white(part, a)))
                .collect()
        }
        _ => pixels.to_vec(),
    }
}

/// No limit but this on what a decoder allocates; sides are looked at here, to be told of.
pub fn within(bytes: u64) -> image::Limits {
    let mut within = image::Limits::no_limits();
    within.max_alloc = Some(bytes);
    within
}

/// The format of a file, told by its first bytes.
fn known(bytes: &[u8]) -> Result<(ImageFormat, &'static str)> {
    let guessed = image::guess_format(bytes).ok();
    if let Some(known) = FORMATS.iter().find(|(format, _)| Some(*format) == guessed) {
        return Ok(*known);
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let what = match bytes {
        [] => "is empty".to_owned(),
        _ if head.contains("<svg") => "is an SVG, which is a drawing and not pixels".to_owned(),
        _ if bytes.starts_with(b"%PDF") => "is a PDF: send its pages as pictures".to_owned(),
        _ => match guessed {
            Some(format) => format!("is of the format {format:?}"),
            None => "is of no format that is known".to_owned(),
        },
    };
    let names: Vec<_> = FORMATS.iter().map(|(_, name)| *name).collect();
    Err(invalid(format!("the picture {what}; what is read is {}", names.join(", "))))
}

/// What the decoder said, for a caller; in its own words it stands beside.
fn fault(name: &str, error: &ImageError) -> Error {
    let what = match error {
        ImageError::Limits(_) => format!("the {name} takes more memory or a longer side than a picture may"),
        ImageError::Unsupported(_) => format!(
            "the {name} stores its pixels in a way that is not read; save it as a PNG or JPEG of 8 bits a colour"
        ),
        ImageError::IoError(_) => format!("the {name} is cut off; send all of it"),
        _ => format!("the {name} is damaged: its pixels cannot be decoded; send it anew, or save it again"),
    };
    invalid(what).with_detail("decoder", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of four squares, by Pillow: white, black, red and blue.
    #[test]
    fn the_colours_of_printers_become_those_of_screens() {
        let picture =
            file(include_bytes!("../../tests/pictures/cmyk.jpg"), None, &Limits::default()).unwrap();
        let colours = [[255, 255, 255], [0, 0, 0], [200, 30, 30], [30, 60, 200]];
        for (square, colour) in (0..).zip(colours) {
            let seen = picture.pixel(16 * square + 8, 8);
            assert!(seen.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 6), "{seen:?} is not {colour:?}");
        }
    }
}
