//! Boxes and their labels on a picture.

use crate::picture::Picture;
use backplane_plugin::prelude::{Error, Result, Tensor};
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_9X18_BOLD as FONT;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::primitives::{PointsIter, Rectangle};
use embedded_graphics::text::{Baseline, Text};
use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use std::convert::Infallible;

/// A picture to draw on.
pub struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
    /// How many of its pixels a pixel of a letter is wide: on a large picture all is larger.
    pen: u32,
}

/// A box and what stands above it.
pub struct Mark<'a> {
    /// Left, top, right, bottom.
    pub edges: [f32; 4],
    pub label: &'a str,
    /// Things of a kind have the same.
    pub colour: u32,
}

/// Beyond every picture.
const FAR: f32 = 1e6;
/// The side on which a letter's pixel is a pixel.
const USUAL_SIDE: u32 = 900;

impl Canvas {
    pub fn of(picture: &Picture) -> Self {
        let (width, height) = (picture.width(), picture.height());
        let pen = width.max(height).div_ceil(USUAL_SIDE).max(1);
        Self { width, height, pixels: picture.pixels().to_vec(), pen }
    }

    /// Draws a box, and its label above it, or where there is no room within.
    pub fn mark(&mut self, mark: &Mark<'_>) {
        let colour = colour(mark.colour);
        let edges = mark.edges.map(|edge| edge.round().clamp(-FAR, FAR) as i32);
        let [left, top, right, bottom] = edges;
        let line = 2 * self.pen as i32;
        for (left, top, right, bottom) in [
            (left, top, right, top + line),
            (left, bottom - line, right, bottom),
            (left, top, left + line, bottom),
            (right - line, top, right, bottom),
        ] {
            self.fill([left, top, right, bottom], colour);
        }
        if mark.label.is_empty() {
            return;
        }
        let pen = self.pen as i32;
        let letter = FONT.character_size;
        let (across, down) =
            (mark.label.chars().count() as i32 * letter.width as i32 + 6, letter.height as i32 + 2);
        let above = top - down * pen;
        let (x, y) =
            (left.min(self.width as i32 - across * pen).max(0), if above >= 0 { above } else { top.max(0) });
        self.fill([x, y, x + across * pen, y + down * pen], colour);
        let ink = if luminance(colour) > 140 { Rgb888::BLACK } else { Rgb888::WHITE };
        let mut pen = Pen { canvas: self, origin: Point::new(x, y) };
        let text =
            Text::with_baseline(mark.label, Point::new(3, 1), MonoTextStyle::new(&FONT, ink), Baseline::Top);
        let _: Result<_, Infallible> = embedded_graphics::Drawable::draw(&text, &mut pen);
    }

    /// Draws a dot.
    pub fn dot(&mut self, [x, y]: [f32; 2], kind: u32) {
        let [x, y] = [x, y].map(|at| at.round().clamp(-FAR, FAR) as i32);
        let half = self.pen as i32 * 2;
        self.fill([x - half, y - half, x + half, y + half], colour(kind));
    }

    /// Fills what of a rectangle lies within the picture.
    fn fill(&mut self, [left, top, right, bottom]: [i32; 4], colour: Rgb888) {
        let within = |at: i32, most: u32| at.clamp(0, i32::try_from(most).unwrap_or(i32::MAX)) as usize;
        let (left, right) = (within(left, self.width), within(right, self.width));
        let (top, bottom) = (within(top, self.height), within(bottom, self.height));
        let width = self.width as usize;
        for y in top..bottom {
            for x in left..right {
                let at = (y * width + x) * 3;
                self.pixels[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
    }

    /// A PNG file, as the tensor `drawn`.
    ///
    /// # Errors
    /// When it cannot be written, which is not met with.
    pub fn tensor(&self) -> Result<Tensor> {
        let mut file = Vec::new();
        let png = PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive);
        png.write_image(&self.pixels, self.width, self.height, image::ExtendedColorType::Rgb8)
            .map_err(|error| Error::internal(format!("the drawn picture cannot be written: {error}")))?;
        Tensor::strings("drawn", &[1], &[file])
    }
}

/// A colour for each kind, told from the others as well as can be: hues a golden section of the circle apart.
fn colour(kind: u32) -> Rgb888 {
    let hue = (f64::from(kind) * 0.618_034).fract() * 6.0;
    let ramp = |shift: f64| {
        let distance = ((hue + shift) % 6.0 - 3.0).abs();
        ((distance - 1.0).clamp(0.0, 1.0) * 205.0 + 50.0) as u8
    };
    Rgb888::new(ramp(0.0), ramp(4.0), ramp(2.0))
}

fn luminance(colour: Rgb888) -> u32 {
    (u32::from(colour.r()) * 299 + u32::from(colour.g()) * 587 + u32::from(colour.b()) * 114) / 1000
}

/// Draws letters, whose every pixel is a square of the canvas.
struct Pen<'a> {
    canvas: &'a mut Canvas,
    origin: Point,
}

impl OriginDimensions for Pen<'_> {
    fn size(&self) -> Size {
        Size::new(self.canvas.width, self.canvas.height)
    }
}

impl DrawTarget for Pen<'_> {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        let pen = self.canvas.pen as i32;
        for Pixel(at, colour) in pixels {
            let (x, y) = (self.origin.x + at.x * pen, self.origin.y + at.y * pen);
            self.canvas.fill([x, y, x + pen, y + pen], colour);
        }
        Ok(())
    }

    fn fill_solid(&mut self, area: &Rectangle, colour: Rgb888) -> Result<(), Infallible> {
        self.draw_iter(area.points().map(|point| Pixel(point, colour)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: u32, height: u32) -> Canvas {
        Canvas::of(&Picture::new(width, height, vec![128; (width * height * 3) as usize]))
    }

    fn changed(canvas: &Canvas, x: u32, y: u32) -> bool {
        let at = ((y * canvas.width + x) * 3) as usize;
        canvas.pixels[at..at + 3] != [128; 3]
    }

    #[test]
    fn a_box_has_a_frame_and_a_label_above_it() {
        let mut canvas = grey(100, 80);
        canvas.mark(&Mark { edges: [10.0, 30.0, 60.0, 70.0], label: "cup 9%", colour: 3 });
        for (x, y) in [(10, 30), (59, 30), (10, 69), (59, 69), (11, 50), (12, 20)] {
            assert!(changed(&canvas, x, y), "{x} {y}");
        }
        for (x, y) in [(30, 50), (70, 50), (9, 50), (5, 5)] {
            assert!(!changed(&canvas, x, y), "{x} {y}");
        }
        let inks: std::collections::BTreeSet<&[u8]> = canvas.pixels.chunks(3).collect();
        assert_eq!(inks.len(), 3, "the ground, the box, and its letters");
    }

    #[test]
    fn what_lies_beyond_the_edge_is_left_out() {
        let mut canvas = grey(20, 20);
        let edges = [-1e9, f32::NAN, f32::INFINITY, 1e9];
        canvas.mark(&Mark { edges, label: "a long label that has no room \u{4e2d}", colour: u32::MAX });
        canvas.dot([-5.0, 500.0], 1);
        assert_eq!(canvas.pixels.len(), 20 * 20 * 3);
    }

    #[test]
    fn neighbours_have_different_colours() {
        let colours: std::collections::BTreeSet<_> = (0..80)
            .map(|kind| {
                let colour = colour(kind);
                (colour.r(), colour.g(), colour.b())
            })
            .collect();
        assert!(colours.len() > 75, "{}", colours.len());
    }
}
