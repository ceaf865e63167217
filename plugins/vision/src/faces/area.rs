//! Means over areas of a picture, in a time that does not depend on how large they are.

use crate::picture::Picture;

/// No more pixels are looked at: sums of more would not fit.
pub const MAX_PIXELS: u64 = 4_000_000;

/// For each corner between pixels, the sum of all that is above and left of it, for each colour.
pub struct Sums {
    width: u32,
    height: u32,
    sums: Vec<[u32; 3]>,
}

impl Sums {
    /// Of a picture of at most [`MAX_PIXELS`].
    pub fn of(picture: &Picture) -> Self {
        let (width, height) = (picture.width(), picture.height());
        let across = width as usize + 1;
        let mut sums = vec![[0_u32; 3]; across * (height as usize + 1)];
        for y in 0..height {
            let mut row = [0_u32; 3];
            for (x, pixel) in picture.row(y).as_chunks::<3>().0.iter().enumerate() {
                let at = (y as usize + 1) * across + x + 1;
                let above = sums[at - across];
                for colour in 0..3 {
                    row[colour] = row[colour].wrapping_add(u32::from(pixel[colour]));
                    sums[at][colour] = above[colour].wrapping_add(row[colour]);
                }
            }
        }
        Self { width, height, sums }
    }

    /// The window at `left`, `top` with sides `across` and `down`, in `columns` × `rows` areas of one size, each with the
    /// mean of what it covers. What lies beyond the picture is black.
    pub fn window(&self, [left, top, across, down]: [f64; 4], columns: usize, rows: usize) -> Vec<[f32; 3]> {
        let (step_x, step_y) = (across / columns as f64, down / rows as f64);
        let corner =
            |column: usize, row: usize| self.until(left + column as f64 * step_x, top + row as f64 * step_y);
        let mut means = Vec::with_capacity(columns * rows);
        let mut above: Vec<[f64; 3]> = (0..=columns).map(|column| corner(column, 0)).collect();
        for row in 1..=rows {
            let below: Vec<[f64; 3]> = (0..=columns).map(|column| corner(column, row)).collect();
            for (upper, lower) in above.windows(2).zip(below.windows(2)) {
                means.push(std::array::from_fn(|colour| {
                    let sum = lower[1][colour] - lower[0][colour] - upper[1][colour] + upper[0][colour];
                    (sum / (step_x * step_y)) as f32
                }));
            }
            above = below;
        }
        means
    }

    /// The sum of what is above and left of a point: between corners it grows as the areas do.
    fn until(&self, x: f64, y: f64) -> [f64; 3] {
        let (x, y) = (x.clamp(0.0, f64::from(self.width)), y.clamp(0.0, f64::from(self.height)));
        let (column, row) = ((x as u32).min(self.width - 1), (y as u32).min(self.height - 1));
        let (along, below) = (x - f64::from(column), y - f64::from(row));
        let across = self.width as usize + 1;
        let at = row as usize * across + column as usize;
        let [a, b, c, d] = [at, at + 1, at + across, at + across + 1].map(|at| self.sums[at]);
        std::array::from_fn(|colour| {
            let [a, b, c, d] = [a, b, c, d].map(|sum| f64::from(sum[colour]));
            (a * (1.0 - along) + b * along) * (1.0 - below) + (c * (1.0 - along) + d * along) * below
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the areas cover, pixel by pixel.
    fn plainly(
        picture: &Picture,
        [left, top, across, down]: [f64; 4],
        columns: usize,
        rows: usize,
    ) -> Vec<[f32; 3]> {
        let (step_x, step_y) = (across / columns as f64, down / rows as f64);
        let covered =
            |from: f64, step: f64, at: u32| (from + step).min(f64::from(at) + 1.0) - from.max(f64::from(at));
        let mut means = Vec::new();
        for row in 0..rows {
            for column in 0..columns {
                let (x0, y0) = (left + column as f64 * step_x, top + row as f64 * step_y);
                let mut sum = [0.0; 3];
                for y in 0..picture.height() {
                    for x in 0..picture.width() {
                        let weight = covered(x0, step_x, x).max(0.0) * covered(y0, step_y, y).max(0.0);
                        let pixel = picture.pixel(x.into(), y.into());
                        (0..3).for_each(|colour| sum[colour] += weight * f64::from(pixel[colour]));
                    }
                }
                means.push(sum.map(|sum| (sum / (step_x * step_y)) as f32));
            }
        }
        means
    }

    proptest! {
        #[test]
        fn means_are_those_of_the_pixels(
            pixels in prop::collection::vec(any::<u8>(), 7 * 5 * 3),
            left in -9.0..9.0_f64, top in -9.0..9.0_f64, across in 0.5..20.0_f64, down in 0.5..20.0_f64,
            columns in 1..5_usize, rows in 1..5_usize,
        ) {
            let picture = Picture::new(7, 5, pixels);
            let window = [left, top, across, down];
            let means = Sums::of(&picture).window(window, columns, rows);
            for (mean, plain) in means.iter().zip(plainly(&picture, window, columns, rows)) {
                for colour in 0..3 {
                    prop_assert!((mean[colour] - plain[colour]).abs() < 0.01, "{:?} {:?}", mean, plain);
                }
            }
        }
    }
}
