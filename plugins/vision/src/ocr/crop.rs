//! A line cut out of its page and straightened.

use super::boxes::Quad;
use crate::picture::Picture;

/// A line cut out, and how it lies in the quad it was cut from.
pub struct Crop {
    pub picture: Picture,
    /// Whether it runs downwards on the page.
    upright: bool,
    /// Whether it stood on its head.
    turned: bool,
}

impl Crop {
    /// A whole picture.
    pub fn whole(picture: &Picture) -> Self {
        Self { picture: picture.clone(), upright: false, turned: false }
    }

    /// What lies within a quad. What is half as high again as wide is a line that runs downwards.
    pub fn of(page: &Picture, quad: &Quad) -> Self {
        let length = |a: usize, b: usize| (quad[a][0] - quad[b][0]).hypot(quad[a][1] - quad[b][1]);
        let width = length(0, 1).max(length(2, 3)).max(1.0) as u32;
        let height = length(0, 3).max(length(1, 2)).max(1.0) as u32;
        let picture = straightened(page, quad, width, height);
        let upright = 1.5 * f64::from(width) <= f64::from(height);
        Self { picture: if upright { picture.turned_left() } else { picture }, upright, turned: false }
    }

    /// How many times as wide as high.
    pub fn ratio(&self) -> f32 {
        self.picture.width() as f32 / self.picture.height() as f32
    }

    /// Stands on its head.
    pub fn turn(&mut self) {
        self.picture = self.picture.upside_down();
        self.turned = !self.turned;
    }

    /// The part of the line `from` .. `to` of its length, each 0..=1, within the quad that it was cut from.
    pub fn part(&self, quad: &Quad, from: f32, to: f32) -> Quad {
        let (from, to) = if self.turned { (1.0 - to, 1.0 - from) } else { (from, to) };
        let [a, b, c, d] = *quad;
        let between =
            |a: [f32; 2], b: [f32; 2], at: f32| [a[0] + (b[0] - a[0]) * at, a[1] + (b[1] - a[1]) * at];
        if self.upright {
            // Turned to the left to be read: its beginning is at the top.
            [between(a, d, from), between(b, c, from), between(b, c, to), between(a, d, to)]
        } else {
            [between(a, b, from), between(a, b, to), between(d, c, to), between(d, c, from)]
        }
    }
}

/// What lies within a quad, as a rectangle.
fn straightened(page: &Picture, quad: &Quad, width: u32, height: u32) -> Picture {
    let [[left, top], [right, _], [_, bottom], _] = *quad;
    let whole = quad.iter().flatten().all(|side| side.fract() == 0.0);
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    if whole && *quad == [[left, top], [right, top], [right, bottom], [left, bottom]] {
        for y in 0..height {
            for x in 0..width {
                pixels.extend(page.pixel(left as i64 + i64::from(x), top as i64 + i64::from(y)));
            }
        }
        return Picture::new(width, height, pixels);
    }
    let Some(map) = perspective(quad, f64::from(width), f64::from(height)) else {
        return Picture::new(width, height, pixels);
    };
    let kernels: [[f32; 4]; STEPS] = std::array::from_fn(|step| cubic(step as f32 / STEPS as f32));
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (f64::from(x), f64::from(y));
            let depth = map[6] * x + map[7] * y + 1.0;
            let place = |row: usize| {
                let place = (map[row] * x + map[row + 1] * y + map[row + 2]) / depth;
                let step = (place * STEPS as f64).round_ties_even() as i64;
                (step.div_euclid(STEPS as i64), step.rem_euclid(STEPS as i64) as usize)
            };
            let ((left, across), (top, down)) = (place(0), place(3));
            pixels.extend(blend(page, left, top, &kernels[across], &kernels[down]));
        }
    }
    Picture::new(width, height, pixels)
}

/// Places between two pixels that are told apart.
const STEPS: usize = 32;

/// Sixteen pixels around a place, by their weights.
fn blend(page: &Picture, left: i64, top: i64, across: &[f32; 4], down: &[f32; 4]) -> [u8; 3] {
    let mut sums = [0.0_f32; 3];
    for (row, down) in (top - 1..).zip(down) {
        for (column, across) in (left - 1..).zip(across) {
            let pixel = page.pixel(column, row);
            sums.iter_mut().zip(pixel).for_each(|(sum, part)| *sum += f32::from(part) * across * down);
        }
    }
    sums.map(|sum| sum.round_ties_even().clamp(0.0, 255.0) as u8)
}

/// Weights of the four pixels around a place that lies `at` behind the second one: a cubic curve with the slope -0.75.
fn cubic(at: f32) -> [f32; 4] {
    const SLOPE: f32 = -0.75;
    let outer = |x: f32| ((SLOPE * x - 5.0 * SLOPE) * x + 8.0 * SLOPE) * x - 4.0 * SLOPE;
    let inner = |x: f32| ((SLOPE + 2.0) * x - (SLOPE + 3.0)) * x * x + 1.0;
    let (first, second, third) = (outer(at + 1.0), inner(at), inner(1.0 - at));
    [first, second, third, 1.0 - first - second - third]
}

/// The projection that takes the corners of a rectangle to those of a quad, as the first eight of its nine numbers.
fn perspective(quad: &Quad, width: f64, height: f64) -> Option<[f64; 8]> {
    let corners = [[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]];
    let mut rows = Vec::with_capacity(8);
    for ([x, y], to) in corners.into_iter().zip(quad) {
        let [u, v] = to.map(f64::from);
        rows.push([x, y, 1.0, 0.0, 0.0, 0.0, -x * u, -y * u, u]);
        rows.push([0.0, 0.0, 0.0, x, y, 1.0, -x * v, -y * v, v]);
    }
    solved(rows)
}

/// The solution of eight equations, each eight factors and what they add up to.
fn solved(mut rows: Vec<[f64; 9]>) -> Option<[f64; 8]> {
    for column in 0..8 {
        let pivot = (column..8).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-12 {
            return None;
        }
        let chosen = rows[column];
        for (_, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != column) {
            let factor = row[column] / chosen[column];
            row.iter_mut().zip(chosen).for_each(|(number, by)| *number -= factor * by);
        }
    }
    Some(std::array::from_fn(|index| rows[index][8] / rows[index][index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pixel says where it is.
    fn page() -> Picture {
        let pixels = (0..60_u8).flat_map(|y| (0..80_u8).flat_map(move |x| [x * 3, y * 4, 0])).collect();
        Picture::new(80, 60, pixels)
    }

    #[test]
    fn an_upright_rectangle_is_copied() {
        let crop = Crop::of(&page(), &[[10.0, 20.0], [40.0, 20.0], [40.0, 30.0], [10.0, 30.0]]);
        assert_eq!((crop.picture.width(), crop.picture.height()), (30, 10));
        assert_eq!((crop.picture.pixel(0, 0), crop.picture.pixel(29, 9)), ([30, 80, 0], [117, 116, 0]));
    }

    #[test]
    fn a_leaning_one_is_straightened() {
        let quad = [[20.0, 10.0], [50.0, 20.0], [46.0, 32.0], [16.0, 22.0]];
        let crop = Crop::of(&page(), &quad);
        assert_eq!((crop.picture.width(), crop.picture.height()), (31, 12));
        let middle = crop.picture.pixel(15, 6).map(i32::from);
        assert!((middle[0] - 33 * 3).abs() < 6 && (middle[1] - 21 * 4).abs() < 6, "{middle:?}");
    }

    #[test]
    fn what_runs_downwards_is_laid_down() {
        let quad = [[10.0, 10.0], [20.0, 10.0], [20.0, 40.0], [10.0, 40.0]];
        let crop = Crop::of(&page(), &quad);
        assert_eq!((crop.picture.width(), crop.picture.height()), (30, 10));
        assert_eq!(crop.picture.pixel(0, 0), [57, 40, 0], "the upper right corner comes first");
        assert_eq!(crop.part(&quad, 0.0, 0.5), [[10.0, 10.0], [20.0, 10.0], [20.0, 25.0], [10.0, 25.0]]);
    }

    #[test]
    fn parts_are_counted_from_where_the_line_begins() {
        let quad = [[0.0, 0.0], [100.0, 0.0], [100.0, 10.0], [0.0, 10.0]];
        let mut crop = Crop::whole(&page());
        let part = crop.part(&quad, 0.1, 0.3).map(|corner| corner.map(f32::round));
        assert_eq!(part, [[10.0, 0.0], [30.0, 0.0], [30.0, 10.0], [10.0, 10.0]]);
        crop.turn();
        let turned = crop.part(&quad, 0.1, 0.3).map(|corner| corner.map(f32::round));
        assert_eq!(turned, [[70.0, 0.0], [90.0, 0.0], [90.0, 10.0], [70.0, 10.0]]);
    }

    #[test]
    fn a_quad_without_area_is_harmless() {
        let crop = Crop::of(&page(), &[[5.5, 5.5]; 4]);
        assert_eq!((crop.picture.width(), crop.picture.height()), (1, 1));
    }
}
