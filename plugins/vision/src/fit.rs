//! A picture in the size that a graph takes, its numbers in the order that the graph takes them, and the way back.

use crate::picture::{Numbers, Picture};
use backplane_plugin::prelude::*;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::Deserialize;
use std::borrow::Borrow;

/// `input` of a task's section in a card: the tensor that the graph takes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The tensor's name.
    pub name: Option<String>,
    /// Width and height.
    pub size: Option<[u32; 2]>,
    pub fit: Option<Fit>,
    /// What a letterbox leaves free is of this grey.
    pub fill: Option<u8>,
    /// Of a crop: how much of the shorter side is seen.
    pub crop: Option<f64>,
    pub filter: Filter,
    pub layout: Layout,
    pub numbers: Numbers,
}

/// How a picture of another shape comes into the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// All of it, in the middle of a grey ground.
    Letterbox,
    /// The middle of it.
    Crop,
    /// All of it, with its sides pulled.
    Stretch,
}

/// How pixels are made of those around them. All look at as many as a smaller picture leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    #[default]
    Bicubic,
    Bilinear,
}

/// The order of a tensor's sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Picture, colour, row, column.
    #[default]
    Nchw,
    /// Picture, row, column, colour.
    Nhwc,
}

/// What a task takes where a card says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Usual {
    pub name: &'static str,
    pub size: [u32; 2],
    pub fit: Fit,
}

/// A graph's input, as card and task say.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    name: String,
    width: u32,
    height: u32,
    fit: Fit,
    fill: u8,
    crop: f64,
    filter: Filter,
    layout: Layout,
    numbers: Numbers,
}

/// A picture in a graph's size, or a part of it on its ground.
pub struct Fitted {
    picture: Picture,
    /// Where its left upper corner lies.
    at: [usize; 2],
    /// Where the original's left upper corner came to lie, and what became of its pixels' sides.
    origin: [f32; 2],
    scale: [f32; 2],
}

/// No graph takes a larger picture.
const MAX_SIDE: u32 = 4096;

impl Input {
    /// # Errors
    /// When a size or a fraction is out of range.
    pub fn of(settings: &Settings, default: Usual) -> Result<Self> {
        let invalid = |what: String| {
            Err(Error::invalid(format!("`input` of the card: {what}")).with_param("parameters"))
        };
        let [width, height] = settings.size.unwrap_or(default.size);
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return invalid(format!("`size` is [{width}, {height}], and each lies between 1 and {MAX_SIDE}"));
        }
        let crop = settings.crop.unwrap_or(1.0);
        if !(0.01..=1.0).contains(&crop) {
            return invalid(format!("`crop` is {crop}, and lies between 0.01 and 1"));
        }
        if let Err(what) = settings.numbers.check("numbers") {
            return invalid(what);
        }
        Ok(Self {
            name: settings.name.clone().unwrap_or_else(|| default.name.to_owned()),
            width,
            height,
            fit: settings.fit.unwrap_or(default.fit),
            fill: settings.fill.unwrap_or(127),
            crop,
            filter: settings.filter,
            layout: settings.layout,
            numbers: settings.numbers,
        })
    }

    /// A picture in this size.
    ///
    /// # Errors
    /// When it cannot be scaled, which no picture within the limits is met with.
    pub fn fit(&self, picture: &Picture) -> Result<Fitted> {
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let (to_width, to_height) = (f64::from(self.width), f64::from(self.height));
        let whole = [0.0, 0.0, width, height];
        match self.fit {
            Fit::Stretch => {
                let fitted = self.scaled(picture, whole, self.width, self.height)?;
                Ok(Fitted {
                    picture: fitted,
                    at: [0; 2],
                    origin: [0.0; 2],
                    scale: [(to_width / width) as f32, (to_height / height) as f32],
                })
            }
            Fit::Crop => {
                // The largest part of the target's shape, or less of it, with sides of whole pixels.
                let scale = (width / to_width).min(height / to_height) * self.crop;
                let (across, down) =
                    ((to_width * scale).floor().max(1.0), (to_height * scale).floor().max(1.0));
                let (left, top) = (((width - across) / 2.0).floor(), ((height - down) / 2.0).floor());
                let fitted = self.scaled(picture, [left, top, across, down], self.width, self.height)?;
                let scale = [(to_width / across) as f32, (to_height / down) as f32];
                let origin = [-left as f32 * scale[0], -top as f32 * scale[1]];
                Ok(Fitted { picture: fitted, at: [0; 2], origin, scale })
            }
            Fit::Letterbox => {
                let scale = (to_width / width).min(to_height / height);
                let side = |length: f64, most: u32| ((length * scale).round() as u32).clamp(1, most);
                let (across, down) = (side(width, self.width), side(height, self.height));
                let (left, top) = ((self.width - across) / 2, (self.height - down) / 2);
                let scale = [(f64::from(across) / width) as f32, (f64::from(down) / height) as f32];
                Ok(Fitted {
                    picture: self.scaled(picture, whole, across, down)?,
                    at: [left as usize, top as usize],
                    origin: [left as f32, top as f32],
                    scale,
                })
            }
        }
    }

    /// A part of a picture, its left upper corner and its sides, in another size.
    fn scaled(
        &self,
        picture: &Picture,
        [left, top, across, down]: [f64; 4],
        width: u32,
        height: u32,
    ) -> Result<Picture> {
        let fault = |error: &dyn std::fmt::Display| {
            Error::internal(format!("{picture:?} cannot be made {width}x{height}: {error}"))
        };
        let source = ImageRef::new(picture.width(), picture.height(), picture.pixels(), PixelType::U8x3)
            .map_err(|error| fault(&error))?;
        let mut target = Image::new(width, height, PixelType::U8x3);
        let filter = match self.filter {
            Filter::Bicubic => FilterType::CatmullRom,
            Filter::Bilinear => FilterType::Bilinear,
        };
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(left, top, across, down);
        Resizer::new().resize(&source, &mut target, &options).map_err(|error| fault(&error))?;
        Ok(Picture::new(width, height, target.into_vec()))
    }

    /// The tensor of pictures in this size.
    ///
    /// # Errors
    /// When there are too many.
    pub fn tensor<F: Borrow<Fitted>>(&self, pictures: &[F]) -> Result<Tensor> {
        let (shape, numbers) = self.numbers(pictures);
        Tensor::new(&*self.name, &shape, numbers)
    }

    fn numbers<F: Borrow<Fitted>>(&self, pictures: &[F]) -> ([i64; 4], Vec<f32>) {
        let size = [self.width as usize, self.height as usize];
        let each = 3 * size[0] * size[1];
        let mut planes = Vec::with_capacity(each * pictures.len());
        for fitted in pictures {
            let Fitted { picture, at, .. } = fitted.borrow();
            self.numbers.append(picture, *at, size, self.fill, &mut planes);
        }
        let (count, width, height) = (pictures.len() as i64, self.width.into(), self.height.into());
        match self.layout {
            Layout::Nchw => ([count, 3, height, width], planes),
            Layout::Nhwc => ([count, height, width, 3], interleaved(&planes, each)),
        }
    }
}

/// Colour after colour of each pixel, of planes that are colour after colour of each picture.
fn interleaved(planes: &[f32], each: usize) -> Vec<f32> {
    let pixels = planes.chunks_exact(each).flat_map(|picture| {
        let plane = each / 3;
        (0..plane).flat_map(move |at| [picture[at], picture[at + plane], picture[at + 2 * plane]])
    });
    pixels.collect()
}

impl Fitted {
    /// A point of the graph's picture in the original.
    pub fn original(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        [(x - self.origin[0]) / self.scale[0], (y - self.origin[1]) / self.scale[1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(fit: Fit, size: [u32; 2]) -> Input {
        let numbers = Numbers { scale: 1.0, ..Numbers::default() };
        Input::of(&Settings { numbers, ..Settings::default() }, Usual { name: "x", size, fit }).unwrap()
    }

    /// Black, white at the right half.
    fn halves(width: u32, height: u32) -> Picture {
        let row = (0..width).flat_map(|x| [if x < width / 2 { 0 } else { 255 }; 3]);
        Picture::new(width, height, row.collect::<Vec<u8>>().repeat(height as usize))
    }

    /// A row of the reds that the graph is given.
    fn reds(input: &Input, fitted: &Fitted, y: usize) -> Vec<f32> {
        let ([.., width], numbers) = input.numbers(&[fitted]);
        numbers[y * width as usize..][..width as usize].to_vec()
    }

    #[test]
    fn a_letterbox_shows_all_of_it_and_leads_back() {
        let input = input(Fit::Letterbox, [4, 4]);
        let fitted = input.fit(&halves(8, 4)).unwrap();
        assert_eq!(reds(&input, &fitted, 0), [127.0; 4]);
        assert_eq!(reds(&input, &fitted, 3), [127.0; 4]);
        let row = reds(&input, &fitted, 1);
        assert!(row[0] < 30.0 && row[3] > 225.0, "{row:?}");
        assert_eq!(fitted.original([4.0, 3.0]), [8.0, 4.0]);
        assert_eq!(fitted.original([0.0, 1.0]), [0.0, 0.0]);
        let line = input.fit(&halves(4000, 2)).unwrap();
        assert_eq!(reds(&input, &line, 0), [127.0; 4]);
        assert_ne!(reds(&input, &line, 1), [127.0; 4], "one row is left of it");
    }

    #[test]
    fn a_crop_shows_the_middle_and_leads_back() {
        let fitted = input(Fit::Crop, [2, 2]).fit(&halves(8, 4)).unwrap();
        assert_eq!((fitted.original([0.0, 0.0]), fitted.original([2.0, 2.0])), ([2.0, 0.0], [6.0, 4.0]));
        let whole = input(Fit::Stretch, [2, 2]).fit(&halves(8, 4)).unwrap();
        assert_eq!(whole.original([2.0, 2.0]), [8.0, 4.0]);
    }

    #[test]
    fn numbers_stand_as_the_graph_takes_them() {
        let picture = Picture::new(2, 1, vec![1, 2, 3, 4, 5, 6]);
        let mut input = input(Fit::Stretch, [2, 1]);
        let fitted = [input.fit(&picture).unwrap(), input.fit(&picture).unwrap()];
        assert_eq!(input.numbers(&fitted), ([2, 3, 1, 2], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0].repeat(2)));
        input.layout = Layout::Nhwc;
        assert_eq!(input.numbers(&fitted), ([2, 1, 2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(2)));
    }

    #[test]
    fn what_no_graph_takes_is_refused() {
        for settings in [
            Settings { size: Some([0, 3]), ..Settings::default() },
            Settings { size: Some([3, 100_000]), ..Settings::default() },
            Settings { crop: Some(0.0), ..Settings::default() },
            Settings { crop: Some(f64::NAN), ..Settings::default() },
            Settings {
                numbers: Numbers { std: [1.0, 0.0, 1.0], ..Numbers::default() },
                ..Settings::default()
            },
        ] {
            let default = Usual { name: "x", size: [2, 2], fit: Fit::Crop };
            assert!(Input::of(&settings, default).unwrap_err().message.contains("`input` of the card"));
        }
    }
}
