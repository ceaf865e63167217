//! To another size.

use super::Picture;
use backplane_plugin::prelude::*;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

impl Picture {
    /// In another size, between the nearest four pixels: what networks were trained with, since that is what most
    /// libraries do unless told otherwise.
    ///
    /// # Errors
    /// When a side is 0.
    pub fn scaled(&self, width: u32, height: u32) -> Result<Self> {
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let fault = |error: &dyn std::fmt::Display| {
            Error::internal(format!("{self:?} cannot be made {width}x{height}: {error}"))
        };
        let source = ImageRef::new(self.width, self.height, &self.pixels, PixelType::U8x3)
            .map_err(|error| fault(&error))?;
        let mut target = Image::new(width, height, PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Interpolation(FilterType::Bilinear));
        Resizer::new().resize(&source, &mut target, &options).map_err(|error| fault(&error))?;
        Ok(Self { width, height, pixels: target.into_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_lies_between_its_neighbours() {
        let ramp =
            Picture::new(4, 2, [0, 40, 80, 120, 0, 40, 80, 120].iter().flat_map(|grey| [*grey; 3]).collect());
        let half = ramp.scaled(2, 1).unwrap();
        assert_eq!(half.pixels, [20, 20, 20, 100, 100, 100]);
        let double = ramp.scaled(8, 2).unwrap();
        let row: Vec<u8> = double.row(0).iter().step_by(3).copied().collect();
        assert_eq!(row, [0, 10, 30, 50, 70, 90, 110, 120]);
        assert_eq!(ramp.scaled(4, 2).unwrap(), ramp);
    }
}
