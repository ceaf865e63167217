//! Lines as the rows of one tensor: all of one height, and as wide as the widest.

use super::crop::Crop;
use crate::picture::Numbers;
use backplane_plugin::prelude::*;

/// The tensor [lines, 3, height, width] of these lines. What a line does not fill is zero.
///
/// # Errors
/// When a line cannot be scaled.
pub fn strips(input: &str, lines: &[&Crop], height: u32, width: u32, numbers: &Numbers) -> Result<Tensor> {
    let row = 3 * height as usize * width as usize;
    let mut strips = vec![0.0; lines.len() * row];
    for (line, strip) in lines.iter().zip(strips.chunks_exact_mut(row.max(1))) {
        let scaled = line.picture.scaled(filled(line, height).min(width), height)?;
        numbers.planes(&scaled, width as usize, height as usize, strip);
    }
    Tensor::new(input, &[lines.len() as i64, 3, i64::from(height), i64::from(width)], strips)
}

/// How wide a line is once it has this height.
fn filled(line: &Crop, height: u32) -> u32 {
    let (width, own) = (f64::from(line.picture.width()), f64::from(line.picture.height()));
    ((f64::from(height) * (width / own)).ceil() as u32).max(1)
}

/// Places of lines in runs of at most `most`, narrow ones first, so that lines of one run have much the same width.
pub fn runs(lines: &[&Crop], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|a, b| lines[*a].ratio().total_cmp(&lines[*b].ratio()));
    order.chunks(most.max(1)).map(<[usize]>::to_vec).collect()
}
