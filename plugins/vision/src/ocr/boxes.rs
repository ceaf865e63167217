//! Rectangles around points, and what can be done with them. Pure geometry.

use super::blobs::Map;

/// Four corners: top left, top right, bottom right, bottom left.
pub type Quad = [[f32; 2]; 4];

/// The convex hull of points, counterclockwise in a plane whose y points up. Of points in a row, the two ends.
pub fn hull(mut points: Vec<[i32; 2]>) -> Vec<[i32; 2]> {
    points.sort_unstable();
    points.dedup();
    if points.len() < 3 {
        return points;
    }
    let turns = |a: [i32; 2], b: [i32; 2], c: [i32; 2]| {
        let wide = |n: i32| i64::from(n);
        wide(b[0] - a[0]) * wide(c[1] - a[1]) - wide(b[1] - a[1]) * wide(c[0] - a[0])
    };
    let half = |points: &mut dyn Iterator<Item = [i32; 2]>| {
        let mut chain: Vec<[i32; 2]> = Vec::new();
        for point in points {
            while let [.., a, b] = chain[..]
                && turns(a, b, point) <= 0
            {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
        chain
    };
    let mut hull = half(&mut points.iter().copied());
    hull.extend(half(&mut points.iter().rev().copied()));
    hull
}

/// The smallest rectangle around points, in any direction: its corners and its shorter side.
pub fn smallest_rectangle(points: Vec<[i32; 2]>) -> (Quad, f32) {
    let hull = hull(points);
    let float = |[x, y]: [i32; 2]| [f64::from(x), f64::from(y)];
    let mut best: Option<(f64, Quad, f64)> = None;
    // One of its sides lies on a side of the hull.
    for (index, from) in hull.iter().enumerate() {
        let to = hull[(index + 1) % hull.len()];
        let (from, to) = (float(*from), float(to));
        let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
        let length = dx.hypot(dy);
        let along = if 0.0 < length { [dx / length, dy / length] } else { [1.0, 0.0] };
        let across = [-along[1], along[0]];
        let reach = |axis: [f64; 2]| {
            let places = hull.iter().map(|point| float(*point)).map(|[x, y]| x * axis[0] + y * axis[1]);
            places.fold((f64::MAX, f64::MIN), |(low, high), place| (low.min(place), high.max(place)))
        };
        let ((left, right), (low, high)) = (reach(along), reach(across));
        let (width, height) = (right - left, high - low);
        if best.is_none_or(|(area, ..)| width * height < area) {
            let corner = |x: f64, y: f64| {
                [(x * along[0] + y * across[0]) as f32, (x * along[1] + y * across[1]) as f32]
            };
            let corners = [corner(left, low), corner(right, low), corner(right, high), corner(left, high)];
            best = Some((width * height, corners, width.min(height)));
        }
    }
    best.map_or(([[0.0; 2]; 4], 0.0), |(_, corners, side)| (ordered(corners), side as f32))
}

/// The corners in the order of a [`Quad`]: of the two on the left the upper one is first.
pub fn ordered(mut corners: Quad) -> Quad {
    corners.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [a, b, c, d] = corners;
    let (top_left, bottom_left) = if a[1] < b[1] { (a, b) } else { (b, a) };
    let (top_right, bottom_right) = if c[1] < d[1] { (c, d) } else { (d, c) };
    [top_left, top_right, bottom_right, bottom_left]
}

/// The mean of a map within a quad, its edge included.
pub fn mean_within(map: &Map<'_>, quad: &Quad) -> f32 {
    let (left, top) = (low(quad, 0, map.width), low(quad, 1, map.height));
    let (bottom, right) = (high(quad, 1, map.height), high(quad, 0, map.width));
    // The raster knows whole pixels only.
    let corners = quad.map(|[x, y]| [(x - left as f32).trunc() as i64, (y - top as f32).trunc() as i64]);
    let (mut sum, mut count) = (0.0_f64, 0_usize);
    for y in 0..=(bottom - top) as i64 {
        let Some((from, to)) = span(&corners, y) else { continue };
        let clamp = |x: f64| (x.round().max(0.0) as usize).min(right - left);
        let (from, to) = (clamp(from), clamp(to));
        let row = &map.numbers[(top + y as usize) * map.width + left..][from..=to];
        sum += row.iter().map(|number| f64::from(*number)).sum::<f64>();
        count += row.len();
    }
    if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
}

fn low(quad: &Quad, axis: usize, size: usize) -> usize {
    let least = quad.iter().map(|corner| corner[axis].floor()).fold(f32::MAX, f32::min);
    (least.max(0.0) as usize).min(size - 1)
}

fn high(quad: &Quad, axis: usize, size: usize) -> usize {
    let most = quad.iter().map(|corner| corner[axis].ceil()).fold(f32::MIN, f32::max);
    (most.max(0.0) as usize).min(size - 1)
}

/// Where a row meets a convex shape: the leftmost and the rightmost place.
fn span(corners: &[[i64; 2]; 4], y: i64) -> Option<(f64, f64)> {
    let mut span: Option<(f64, f64)> = None;
    for (index, [x1, y1]) in corners.iter().copied().enumerate() {
        let [x2, y2] = corners[(index + 1) % 4];
        if y < y1.min(y2) || y1.max(y2) < y {
            continue;
        }
        let places = match y1 == y2 {
            true => [x1 as f64, x2 as f64],
            false => [x1 as f64 + (x2 - x1) as f64 * (y - y1) as f64 / (y2 - y1) as f64; 2],
        };
        for x in places {
            span = Some(span.map_or((x, x), |(from, to)| (from.min(x), to.max(x))));
        }
    }
    span
}

/// Points around a quad, as far from it as `ratio` times its area over its perimeter: rounded at the corners, on whole
/// pixels. A network that marks the middle of lines finds their edges so.
pub fn grown(quad: &Quad, ratio: f64) -> Vec<[i32; 2]> {
    let exact = quad.map(|[x, y]| [f64::from(x), f64::from(y)]);
    let sides = |index: usize| (exact[index], exact[(index + 1) % 4]);
    let perimeter: f64 = (0..4).map(sides).map(|(a, b)| (b[0] - a[0]).hypot(b[1] - a[1])).sum();
    let area: f64 = (0..4).map(sides).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum::<f64>().abs() / 2.0;
    let distance = area * ratio / perimeter;
    if !distance.is_finite() || distance <= 0.0 {
        return quad.map(|corner| corner.map(|side| side as i32)).to_vec();
    }
    // How many steps make a circle of this radius that is nowhere off by more than a quarter of a pixel.
    let off = 0.25_f64.min(distance * 0.25);
    let steps = (std::f64::consts::PI / (1.0 - off / distance).acos()).min(distance * std::f64::consts::PI);
    let corners = quad.map(|corner| corner.map(f32::trunc).map(f64::from));
    let mut points = Vec::new();
    for (index, corner) in corners.iter().enumerate() {
        let (Some(before), Some(after)) =
            (outward(corners[(index + 3) % 4], *corner), outward(*corner, corners[(index + 1) % 4]))
        else {
            points.push(corner.map(|side| side as i32));
            continue;
        };
        let mut point = |[x, y]: [f64; 2]| {
            points.push([corner[0] + x * distance, corner[1] + y * distance].map(|side| side.round() as i32));
        };
        let cross = before[0] * after[1] - before[1] * after[0];
        let angle = cross.atan2(before[0] * after[0] + before[1] * after[1]);
        let pieces = (steps / std::f64::consts::TAU * angle.abs()).round().max(1.0) as usize;
        let (sin, cos) = (std::f64::consts::TAU / steps).sin_cos();
        let mut direction = before;
        for _ in 0..pieces {
            point(direction);
            direction = [direction[0] * cos - sin * direction[1], direction[0] * sin + direction[1] * cos];
        }
        point(after);
    }
    points
}

/// The direction away from a shape whose corners go clockwise, seen with y down, at the side between two of them.
fn outward(from: [f64; 2], to: [f64; 2]) -> Option<[f64; 2]> {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let length = dx.hypot(dy);
    (0.0 < length).then(|| [dy / length, -dx / length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rectangle_is_found_in_any_direction() {
        let (quad, side) = smallest_rectangle(vec![[10, 10], [60, 10], [10, 30], [60, 30], [30, 20]]);
        assert_eq!((quad, side), ([[10.0, 10.0], [60.0, 10.0], [60.0, 30.0], [10.0, 30.0]], 20.0));
        // A square on its tip: sides of length 10 times the root of 2.
        let (quad, side) = smallest_rectangle(vec![[10, 0], [0, 10], [20, 10], [10, 20]]);
        assert!((side - 200_f32.sqrt()).abs() < 1e-4, "{side}");
        let mut corners = quad.map(|corner| corner.map(|side| side.round() as i32));
        corners.sort_unstable();
        assert_eq!(corners, [[0, 10], [10, 0], [10, 20], [20, 10]]);
    }

    #[test]
    fn points_in_a_row_have_no_width() {
        assert_eq!(smallest_rectangle(vec![[3, 3]]).1, 0.0);
        assert_eq!(smallest_rectangle(vec![[0, 0], [5, 5], [9, 9]]).1, 0.0);
        assert_eq!(smallest_rectangle(vec![]).1, 0.0);
    }

    #[test]
    fn growing_moves_every_side_out() {
        let quad = [[10.0, 10.0], [110.0, 10.0], [110.0, 30.0], [10.0, 30.0]];
        // Area 2000, perimeter 240, times 1.6: 13.3 pixels.
        let (grown, side) = smallest_rectangle(grown(&quad, 1.6));
        assert_eq!(grown, [[-3.0, -3.0], [123.0, -3.0], [123.0, 43.0], [-3.0, 43.0]]);
        assert_eq!(side, 46.0);
    }

    #[test]
    fn the_mean_is_that_of_the_pixels_inside() {
        let numbers: Vec<f32> = (0..25).map(|n| if n % 5 < 2 { 1.0 } else { 0.0 }).collect();
        let map = Map { width: 5, height: 5, numbers: &numbers };
        assert_eq!(mean_within(&map, &[[0.0, 0.0], [1.0, 0.0], [1.0, 4.0], [0.0, 4.0]]), 1.0);
        assert_eq!(mean_within(&map, &[[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [0.0, 1.0]]), 0.5);
        assert_eq!(mean_within(&map, &[[-9.0, -9.0], [9.0, -9.0], [9.0, 9.0], [-9.0, 9.0]]), 0.4);
        let tip = mean_within(&map, &[[2.0, 0.0], [4.0, 2.0], [2.0, 4.0], [0.0, 2.0]]);
        // Rows of 1, 3, 5, 3 and 1 pixels; of those, 0, 1, 2, 1 and 0 lie on the left.
        assert!((tip - 4.0 / 13.0).abs() < 1e-6, "{tip}");
    }

    proptest! {
        /// Around whatever points, the rectangle holds all of them, and is no larger than the upright one.
        #[test]
        fn a_rectangle_holds_its_points(points in prop::collection::vec([-50..50_i32, -50..50_i32], 1..40)) {
            let (quad, side) = smallest_rectangle(points.clone());
            let (along, across) = (quad[1], quad[3]);
            let axis = |to: [f32; 2]| [to[0] - quad[0][0], to[1] - quad[0][1]];
            for point in &points {
                let to = axis(point.map(|side| side as f32));
                for edge in [axis(along), axis(across)] {
                    let length = (edge[0] * edge[0] + edge[1] * edge[1]).max(1e-6);
                    let place = (to[0] * edge[0] + to[1] * edge[1]) / length.sqrt();
                    prop_assert!(-0.01 < place && place < length.sqrt() + 0.01, "{quad:?} {point:?}");
                }
            }
            let reach = |axis: usize| {
                let sides = points.iter().map(|point| point[axis]);
                (sides.clone().max().unwrap() - sides.min().unwrap()) as f32
            };
            let length = |to: [f32; 2]| axis(to)[0].hypot(axis(to)[1]);
            prop_assert!(length(along) * length(across) <= reach(0) * reach(1) + 0.5);
            prop_assert!(side <= length(along).min(length(across)) + 0.01);
        }
    }
}
