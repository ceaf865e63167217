//! A picture in the size that the graphs are fed with, and the way back to its own.

use super::boxes::Quad;
use crate::picture::Picture;
use crate::range::within;
use backplane_plugin::prelude::*;
use serde::Deserialize;

/// `[parameters.ocr.page]` of a card.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A longer side is scaled down to this.
    pub max_side: u32,
    /// A shorter side is scaled up to this.
    pub min_side: u32,
    /// A picture this many times as wide as high, or wider, gets room above and below: a single line fills its picture,
    /// and no page did when the graphs were trained.
    pub max_ratio: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_side: 2000, min_side: 30, max_ratio: 8.0 }
    }
}

impl Settings {
    /// # Errors
    /// What is out of range, by its name.
    pub fn check(&self) -> Result<(), String> {
        within("page.max_side", self.max_side, 32..=16_384)?;
        within("page.min_side", self.min_side, 1..=self.max_side)?;
        within("page.max_ratio", self.max_ratio, 1.0..=32_768.0)
    }
}

/// A picture as lines are looked for in it.
pub struct Page {
    pub picture: Picture,
    /// Rows above that are not the picture's.
    above: u32,
    /// From here to the picture that was sent.
    scale: [f32; 2],
    /// Its sides.
    sides: [f32; 2],
}

impl Page {
    /// # Errors
    /// When the picture cannot be scaled.
    pub fn of(sent: &Picture, settings: &Settings) -> Result<Self> {
        let (width, height) = (sent.width(), sent.height());
        let ratio = f64::from(settings.max_side) / f64::from(width.max(height));
        let (mut to_width, mut to_height) = (width, height);
        if ratio < 1.0 {
            (to_width, to_height) = fitted(width, height, ratio);
        }
        let ratio = f64::from(settings.min_side) / f64::from(to_width.min(to_height));
        if 1.0 < ratio {
            (to_width, to_height) = fitted(to_width, to_height, ratio);
        }
        let mut picture = sent.scaled(to_width, to_height)?;
        let mut above = 0;
        if to_height <= settings.min_side || settings.max_ratio < to_width as f32 / to_height as f32 {
            let room = ((to_width as f32 / settings.max_ratio) as u32).max(settings.min_side) * 2;
            above = room.abs_diff(to_height) / 2;
            picture = picture.padded(above);
        }
        Ok(Self {
            picture,
            above,
            scale: [width as f32 / to_width as f32, height as f32 / to_height as f32],
            sides: [width as f32, height as f32],
        })
    }

    /// A place of this page in the picture that was sent.
    pub fn original(&self, quad: &Quad) -> Quad {
        quad.map(|[x, y]| {
            let back = [x * self.scale[0], (y - self.above as f32) * self.scale[1]];
            [back[0].clamp(0.0, self.sides[0]), back[1].clamp(0.0, self.sides[1])]
        })
    }
}

/// Sides times `ratio`, as multiples of 32.
pub fn fitted(width: u32, height: u32, ratio: f64) -> (u32, u32) {
    let side = |side: u32| {
        let scaled = (f64::from(side) * ratio).floor();
        ((scaled / 32.0).round_ties_even() * 32.0).max(32.0) as u32
    };
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(width: u32, height: u32) -> Page {
        Page::of(&Picture::new(width, height, Vec::new()), &Settings::default()).unwrap()
    }

    #[test]
    fn an_ordinary_page_stays_as_it_is() {
        let page = page(640, 480);
        assert_eq!((page.picture.width(), page.picture.height(), page.above), (640, 480, 0));
    }

    #[test]
    fn a_large_one_becomes_smaller_and_places_find_back() {
        let page = page(4000, 3000);
        assert_eq!((page.picture.width(), page.picture.height()), (1984, 1504));
        let back = page.original(&[[1984.0, 1504.0]; 4])[0];
        assert_eq!(back.map(f32::round), [4000.0, 3000.0]);
    }

    #[test]
    fn a_single_line_gets_room() {
        let page = page(800, 40);
        assert_eq!((page.picture.width(), page.picture.height(), page.above), (800, 200, 80));
        assert_eq!(page.original(&[[10.0, 90.0]; 4])[0], [10.0, 10.0]);
        assert_eq!(
            page.original(&[[10.0, 10.0]; 4])[0],
            [10.0, 0.0],
            "what lies in the room lies on the edge"
        );
    }

    #[test]
    fn a_thread_is_no_flood() {
        let page = page(30_000, 2);
        assert!(page.picture.width() < 4000 && page.picture.height() < 1000, "{:?}", page.picture);
    }
}
