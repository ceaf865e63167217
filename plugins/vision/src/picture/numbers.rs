//! To the numbers that a graph takes.

use super::Picture;
use serde::Deserialize;

/// The order of a pixel's colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    #[default]
    Rgb,
    Bgr,
}

/// How a byte becomes a number: `(byte * scale - mean) / std`, for each colour in the order of `channels`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Numbers {
    pub channels: Channels,
    pub scale: f32,
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Default for Numbers {
    fn default() -> Self {
        Self { channels: Channels::Rgb, scale: 1.0 / 255.0, mean: [0.0; 3], std: [1.0; 3] }
    }
}

impl Numbers {
    /// Whether every byte becomes a number.
    ///
    /// # Errors
    /// What does not make one; `name` is what a card calls these.
    pub fn check(&self, name: &str) -> Result<(), String> {
        let finite = std::iter::once(self.scale).chain(self.mean).all(f32::is_finite);
        match finite && self.std.iter().all(|std| std.is_normal()) {
            true => Ok(()),
            false => {
                Err(format!("`{name}`: `scale` and `mean` are numbers, and `std` is divided by, so not 0"))
            }
        }
    }

    /// What each byte becomes, for each colour of the tensor, with the place of that colour in a pixel.
    fn tables(&self) -> [(usize, [f32; 256]); 3] {
        std::array::from_fn(|channel| {
            let number = |byte: usize| (byte as f32 * self.scale - self.mean[channel]) / self.std[channel];
            let place = match self.channels {
                Channels::Rgb => channel,
                Channels::Bgr => 2 - channel,
            };
            (place, std::array::from_fn(number))
        })
    }

    /// Appends planes of this width and height, one for each colour, with a picture that lies at this place on a grey ground: a
    /// row of a tensor [n, 3, height, width]. The ground is not looked up pixel by pixel, and nothing is written twice.
    pub fn append(
        &self,
        picture: &Picture,
        [left, top]: [usize; 2],
        [width, height]: [usize; 2],
        ground: u8,
        planes: &mut Vec<f32>,
    ) {
        for (place, table) in &self.tables() {
            let end = planes.len() + width * height;
            let ground = table[usize::from(ground)];
            planes.resize(planes.len() + top * width, ground);
            for y in 0..picture.height() {
                let row = planes.len();
                planes.resize(row + left, ground);
                // Each place by itself: its length is then known beforehand, and nothing is checked pixel by pixel.
                let (number, pixels) =
                    (|part: u8| table[usize::from(part)], picture.row(y).as_chunks::<3>().0.iter());
                match place {
                    0 => planes.extend(pixels.map(|&[part, _, _]| number(part))),
                    1 => planes.extend(pixels.map(|&[_, part, _]| number(part))),
                    _ => planes.extend(pixels.map(|&[_, _, part]| number(part))),
                }
                planes.resize(row + width, ground);
            }
            planes.resize(end, ground);
        }
    }

    /// Writes a picture into the upper left of planes `width` x `height`, one for each colour, one after the other: a row
    /// of a tensor [n, 3, height, width]. What the picture does not cover is left as it is.
    pub fn planes(&self, picture: &Picture, width: usize, height: usize, planes: &mut [f32]) {
        for ((place, table), plane) in self.tables().iter().zip(planes.chunks_exact_mut(width * height)) {
            for (y, row) in (0..picture.height()).zip(plane.chunks_exact_mut(width)) {
                let bytes = picture.row(y).iter().skip(*place).step_by(3);
                row.iter_mut().zip(bytes).for_each(|(number, byte)| *number = table[usize::from(*byte)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_to_their_planes() {
        let picture = Picture::new(2, 1, vec![0, 51, 102, 255, 204, 153]);
        let numbers = Numbers {
            channels: Channels::Bgr,
            mean: [0.0, 0.2, 1.0],
            std: [1.0, 0.5, 2.0],
            ..Numbers::default()
        };
        let mut planes = vec![9.0; 3 * 3 * 2];
        numbers.planes(&picture, 3, 2, &mut planes);
        let rounded: Vec<f32> = planes.iter().map(|number| (number * 100.0).round() / 100.0).collect();
        #[rustfmt::skip]
        assert_eq!(rounded, [
            0.4, 0.6, 9.0,   9.0, 9.0, 9.0,
            0.0, 1.2, 9.0,   9.0, 9.0, 9.0,
            -0.5, 0.0, 9.0,  9.0, 9.0, 9.0,
        ]);

        let mut planes = vec![7.0];
        numbers.append(&picture, [1, 1], [4, 3], 51, &mut planes);
        let rounded: Vec<f32> = planes.iter().map(|number| (number * 100.0).round() / 100.0).collect();
        #[rustfmt::skip]
        assert_eq!(rounded, [
            7.0,
            0.2, 0.2, 0.2, 0.2,      0.2, 0.4, 0.6, 0.2,    0.2, 0.2, 0.2, 0.2,
            0.0, 0.0, 0.0, 0.0,      0.0, 0.0, 1.2, 0.0,    0.0, 0.0, 0.0, 0.0,
            -0.4, -0.4, -0.4, -0.4,  -0.4, -0.5, 0.0, -0.4,  -0.4, -0.4, -0.4, -0.4,
        ]);
    }
}
