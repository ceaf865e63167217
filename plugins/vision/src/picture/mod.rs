//! Pictures: from the bytes of a request to pixels, and from pixels to the numbers of a tensor.
//!
//! - [`source`]: where a request has its picture.
//! - [`decode`]: from the bytes of a file to pixels, within [`Limits`]; [`frames`] finds animations, [`tiff`] pages.
//! - [`memory`]: how much of it pictures may take.
//! - [`scale`]: to another size.
//! - [`numbers`]: to what a graph takes.

mod decode;
mod frames;
mod memory;
mod numbers;
mod scale;
mod source;
mod tiff;

pub use memory::{Memory, Share};
pub use numbers::{Channels, Numbers};
pub use source::Source;

use crate::range;
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// How large a picture may be, and how much memory those of a model's requests may take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub max_pixels: u64,
    pub max_side: u32,
    pub max_memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 40_000_000, max_side: 32_768, max_memory: 512 << 20 }
    }
}

impl Limits {
    /// The shortest side of a picture that can show anything.
    const MIN_SIDE: u32 = 2;
    /// The pictures of a request have no more pixels together than so many of the largest: 64 A4 pages at 300 dpi.
    const LARGEST: u64 = 16;

    /// Whether any picture lies within them.
    ///
    /// # Errors
    /// Which of them keeps all pictures out.
    pub fn possible(&self) -> Result<(), String> {
        range::within("max_pixels", self.max_pixels, 4..=u64::MAX)?;
        range::within("max_side", self.max_side, Self::MIN_SIDE..=u32::MAX)?;
        range::within("max_memory", self.max_memory, 1..=u64::MAX)
    }

    /// Whether a picture of this size may be read.
    ///
    /// # Errors
    /// When it is too large, or too small to show anything.
    pub fn check(&self, width: u32, height: u32) -> Result<()> {
        let too = |what: String| Err(invalid(format!("the picture is {width}x{height} pixels, and {what}")));
        if width.max(height) > self.max_side {
            return too(format!("a side may have {} at most", self.max_side));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return too(format!("may have {} pixels in all; send it smaller, or in parts", self.max_pixels));
        }
        if width.min(height) < Self::MIN_SIDE {
            return too(format!("a side has to have {} at least", Self::MIN_SIDE));
        }
        Ok(())
    }

    /// Whether the pictures of a request may have this many pixels together. Pages of a file can share their bytes, so that
    /// the size of a request bounds neither the work nor the answer. Those that are drawn are sent back, and take no more
    /// than one of the largest.
    ///
    /// # Errors
    /// When they are too many.
    pub fn check_all(&self, pictures: usize, pixels: u64, drawn: bool) -> Result<()> {
        let most = self.max_pixels.saturating_mul(if drawn { 1 } else { Self::LARGEST });
        if pixels <= most {
            return Ok(());
        }
        let may = match drawn {
            true => format!(
                "that are drawn may have {most} (`max_pixels`); ask for fewer at once, or without `draw`"
            ),
            false => format!("may have {most} ({} times `max_pixels`); ask for fewer at once", Self::LARGEST),
        };
        let what =
            format!("the {pictures} pictures have {pixels} pixels together, and those of a request {may}");
        Err(invalid(what))
    }
}

/// What reading a picture takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub pixels: u64,
    /// Most bytes at any time, the picture included.
    pub memory: u64,
}

/// What is wrong with a picture.
fn invalid(message: impl Into<String>) -> Error {
    Error::invalid(message).with_param("image")
}

/// A picture: red, green and blue of each pixel, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

impl Picture {
    /// Of pixels row by row, three bytes each. What is missing is black.
    pub fn new(width: u32, height: u32, mut pixels: Vec<u8>) -> Self {
        pixels.resize(width as usize * height as usize * 3, 0);
        Self { width, height, pixels }
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    /// Red, green and blue of each pixel, row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels of a row.
    pub fn row(&self, y: u32) -> &[u8] {
        let length = self.width as usize * 3;
        &self.pixels[y as usize * length..][..length]
    }

    /// One pixel; beyond the edge, the nearest.
    pub fn pixel(&self, x: i64, y: i64) -> [u8; 3] {
        let x = x.clamp(0, i64::from(self.width) - 1) as usize;
        let y = y.clamp(0, i64::from(self.height) - 1) as usize;
        let at = (y * self.width as usize + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// Turned by half a turn.
    pub fn upside_down(&self) -> Self {
        let pixels = self.pixels.chunks_exact(3).rev().flatten().copied().collect();
        Self { pixels, ..*self }
    }

    /// Turned by a quarter, counterclockwise.
    pub fn turned_left(&self) -> Self {
        let (width, height) = (self.height, self.width);
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..height {
            for x in 0..width {
                pixels.extend(self.pixel(i64::from(height - 1 - y), i64::from(x)));
            }
        }
        Self { width, height, pixels }
    }

    /// With this many black rows above and below.
    pub fn padded(&self, rows: u32) -> Self {
        let beside = vec![0; rows as usize * self.width as usize * 3];
        let pixels = [&beside, &self.pixels, &beside].into_iter().flatten().copied().collect();
        Self { width: self.width, height: self.height + 2 * rows, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two columns, three rows; the red of each pixel says which it is.
    fn six() -> Picture {
        Picture::new(2, 3, (0..6).flat_map(|n| [n, 0, 0]).collect())
    }

    fn reds(picture: &Picture) -> Vec<u8> {
        picture.pixels.chunks_exact(3).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn turning_moves_every_pixel_to_its_place() {
        assert_eq!(reds(&six().upside_down()), [5, 4, 3, 2, 1, 0]);
        let left = six().turned_left();
        assert_eq!((left.width(), left.height()), (3, 2));
        assert_eq!(reds(&left), [1, 3, 5, 0, 2, 4]);
        assert_eq!(left.turned_left(), six().upside_down());
    }

    #[test]
    fn beyond_the_edge_is_the_nearest_pixel() {
        assert_eq!(six().pixel(-5, 9), [4, 0, 0]);
        assert_eq!(six().pixel(1, 1), [3, 0, 0]);
    }

    #[test]
    fn padding_is_black() {
        let padded = six().padded(1);
        assert_eq!((padded.width(), padded.height()), (2, 5));
        assert_eq!(reds(&padded), [0, 0, 0, 1, 2, 3, 4, 5, 0, 0]);
    }

    #[test]
    fn pictures_of_a_request_are_limited_together_and_drawn_ones_to_what_one_may_have() {
        let limits = Limits { max_pixels: 100, ..Limits::default() };
        for (pixels, drawn, most) in [(1600, false, 1600), (100, true, 100)] {
            assert!(limits.check_all(2, pixels, drawn).is_ok());
            let refused = limits.check_all(2, pixels + 1, drawn).unwrap_err();
            let says = format!("the 2 pictures have {} pixels together", pixels + 1);
            assert!(refused.message.starts_with(&says), "{refused}");
            assert!(refused.message.contains(&format!("may have {most} (")), "{refused}");
            assert_eq!(refused.message.contains("without `draw`"), drawn, "{refused}");
        }
        let most = Limits { max_pixels: u64::MAX, ..limits };
        assert!(most.check_all(2, u64::MAX, false).is_ok());
    }

    #[test]
    fn sizes_are_limited_and_the_message_has_the_figures() {
        let limits = Limits { max_pixels: 100, max_side: 50, ..Limits::default() };
        assert!(limits.check(10, 10).is_ok());
        for (width, height, says) in
            [(60_000, 60_000, "50 at most"), (11, 10, "100 pixels"), (1, 1, "2 at least")]
        {
            let refused = limits.check(width, height).unwrap_err();
            assert_eq!(refused.code, Code::InvalidArgument);
            assert!(refused.message.contains(&format!("{width}x{height}")) && refused.message.contains(says));
        }
    }
}
