//! The arithmetic: scores of rows against a query, in plain loops. What [`crate::sys`] does is the same, to the bit.
//!
//! Sums are kept in [`LANES`] parts and added up in a fixed order, so a score is the same bits whatever the machine's
//! vectors are as wide as, however many threads search, and whoever else is in the batch.

use half::f16;

/// Partial sums of a row: four registers of 256 bits.
pub const LANES: usize = 32;

/// Whole numbers up to this are exact in 32 bits, and so is every sum of them that stays below.
const EXACT: u64 = 1 << 24;

/// A query of whole numbers from -128 to 127: against rows of such numbers its scores can be summed as whole numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    pub components: Vec<i16>,
    /// No sum of products, and no sum of squared differences, of any part of any row is beyond these.
    products: u64,
    squares: u64,
}

impl Whole {
    /// `None` where one component is something else.
    pub fn of(query: &[f32]) -> Option<Self> {
        let whole = |component: &f32| {
            ((-128.0..=127.0).contains(component) && component.fract() == 0.0).then_some(*component as i16)
        };
        let components = query.iter().map(whole).collect::<Option<Vec<_>>>()?;
        let sum = |largest: fn(u64) -> u64| {
            components.iter().map(|component| largest(component.unsigned_abs().into())).sum::<u64>()
        };
        Some(Self { products: sum(|size| size * 128), squares: sum(|size| (size + 128).pow(2)), components })
    }

    /// Whether whole numbers give the very bits that numbers with a fraction do.
    pub fn is_exact(&self, kernel: Kernel) -> bool {
        match kernel {
            Kernel::Dot => self.products <= EXACT,
            Kernel::Distance => self.squares <= EXACT,
        }
    }
}

/// A query in whole numbers of 16 bits, times a scale. Against rows of bytes it gives, at the pace of whole numbers, what no
/// dot product with the query itself is above: who is to find the best rows need look closer at few.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearly {
    pub components: Vec<i16>,
    scale: f32,
    /// What the scale and all roundings, here and in the score itself, come to at most.
    slack: f32,
}

impl Nearly {
    /// `None` where there is no scale for it: of zeros, and of numbers near the end of their range.
    pub fn of(query: &[f32]) -> Option<Self> {
        /// No byte is larger.
        const BYTE: f64 = 128.0;
        /// A rounding to 24 bits is wrong by this part at most.
        const ROUNDING: f64 = 1.0 / (1 << 24) as f64;
        let size = |components: &mut dyn Iterator<Item = f64>| components.map(f64::abs).sum::<f64>();
        let largest = query.iter().fold(0.0_f32, |largest, component| largest.max(component.abs()));
        let all = size(&mut query.iter().map(|component| f64::from(*component)));
        // Neither a component nor the sum of all products is too large for its number.
        let most = f64::from(i32::MAX) / BYTE - 2.0 * query.len() as f64;
        let scale = (f64::from(largest) / 32_000.0).max(all / most) as f32;
        if !scale.is_normal() || f64::from(f32::MAX) / 4.0 < all * BYTE {
            return None;
        }
        let wide = f64::from(scale);
        let components: Vec<i16> =
            query.iter().map(|component| (f64::from(*component) / wide).round() as i16).collect();
        let kept = || components.iter().map(|component| f64::from(*component) * wide);
        let lost = size(&mut query.iter().zip(kept()).map(|(component, kept)| f64::from(*component) - kept));
        // A term is multiplied, added in its lane, and with its lane by halves; a bound is converted, multiplied and added.
        let roundings = (query.len() / LANES + 16) as f64 * ROUNDING;
        let slack = BYTE * (lost + (all + size(&mut kept())) * roundings);
        // What is too small for a rounding to be a part of it, and the roundings of all this.
        let slack = 1.01 * slack + query.len() as f64 * f64::from(f32::MIN_POSITIVE);
        Some(Self { components, scale, slack: slack as f32 })
    }

    /// What the scores may be, from those of [`Self::components`].
    pub fn bounds(&self, scores: &mut [f32]) {
        scores.iter_mut().for_each(|score| *score = *score * self.scale + self.slack);
    }
}

/// How near rows are to a query; a row's score is greater the nearer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Dot products.
    Dot,
    /// Negated squared distances.
    Distance,
}

/// A component of a vector, as it is kept.
pub trait Component: Copy + Default + Send + Sync + 'static {
    /// Its value.
    fn value(self) -> f32;
}

impl Component for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

impl Component for i8 {
    #[inline(always)]
    fn value(self) -> f32 {
        f32::from(self)
    }
}

impl Component for f16 {
    /// By integer arithmetic, which vectorises everywhere. Exact for all numbers, subnormal ones too; there are no
    /// infinities in a collection.
    #[inline(always)]
    fn value(self) -> f32 {
        /// Moves an exponent from f16's bias, 15, to f32's, 127.
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }
}

/// Scores of `rows`, row after row, each as long as `query`.
pub fn scores<C: Component>(kernel: Kernel, rows: &[C], query: &[f32], out: &mut [f32]) {
    match kernel {
        Kernel::Dot => dots(rows, query, out),
        Kernel::Distance => distances(rows, query, out),
    }
}

/// The same of whole numbers, where that [is exact](Whole::is_exact).
pub fn whole_scores(kernel: Kernel, rows: &[i8], query: &[i16], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        let pairs =
            row.iter().zip(query).map(|(component, query)| (i32::from(*component), i32::from(*query)));
        *out = match kernel {
            Kernel::Dot => pairs.map(|(component, query)| component * query).sum::<i32>() as f32,
            Kernel::Distance => {
                -(pairs.map(|(component, query)| (component - query).pow(2)).sum::<i32>() as f32)
            }
        };
    }
}

/// Dot product of each row with the query, one number a row.
#[inline(always)]
pub fn dots<C: Component>(rows: &[C], query: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        *out = sum(row, query, |component, query| component * query);
    }
}

/// Squared distance of each row from the query, negated: greater is nearer, as with the others.
#[inline(always)]
pub fn distances<C: Component>(rows: &[C], query: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        *out = -sum(row, query, |component, query| (component - query) * (component - query));
    }
}

#[inline(always)]
fn sum<C: Component>(row: &[C], query: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (blocks, query_blocks) = (row.chunks_exact(LANES), query.chunks_exact(LANES));
    let (tail, query_tail) = (blocks.remainder(), query_blocks.remainder());
    for (block, query) in blocks.zip(query_blocks) {
        for ((lane, component), query) in lanes.iter_mut().zip(block).zip(query) {
            *lane += term(component.value(), *query);
        }
    }
    for ((lane, component), query) in lanes.iter_mut().zip(tail).zip(query_tail) {
        *lane += term(component.value(), *query);
    }
    let mut width = LANES / 2;
    while 0 < width {
        let (low, high) = lanes.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(half.value().to_bits(), half.to_f32().to_bits(), "{bits:#06x}");
            }
        }
    }

    /// Rows at the ends of their range, which a query's roundings add up against, and rows that look like noise.
    #[test]
    fn no_score_is_above_its_bound_and_bounds_are_near() {
        let mut state = 1_u64;
        let mut noise = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        for dimension in [1, 2, 31, 33, 384, 777, 65_536_usize] {
            for size in [1e-30, 1e-3, 1.0, 1e9, 1e27_f32] {
                let mut query: Vec<f32> = (0..dimension).map(|_| noise() * size).collect();
                if dimension == 777 {
                    query[5] = 1000.0 * size;
                }
                let nearly = Nearly::of(&query).unwrap();
                let ends: Vec<i8> = query.iter().map(|q| if 0.0 < *q { 127 } else { -128 }).collect();
                let others: Vec<i8> = query.iter().map(|q| if 0.0 < *q { -128 } else { 127 }).collect();
                let random: Vec<i8> = (0..dimension).map(|_| (noise() * 255.0) as i8).collect();
                let rows = [ends, others, random].concat();
                let (mut scores, mut bounds) = ([0.0; 3], [0.0; 3]);
                dots(&rows, &query, &mut scores);
                whole_scores(Kernel::Dot, &rows, &nearly.components, &mut bounds);
                nearly.bounds(&mut bounds);
                for (score, bound) in scores.iter().zip(bounds) {
                    assert!(*score <= bound, "{dimension}, {size}: {score} is above {bound}");
                    assert!(
                        bound - score <= scores[0] / 100.0,
                        "{dimension}, {size}: {bound} says little about {score}"
                    );
                }
            }
        }
        assert_eq!((Nearly::of(&[0.0; 3]), Nearly::of(&[3e38; 3])), (None, None));
    }

    #[test]
    fn sums_take_every_component_once_whatever_the_dimension() {
        for dimension in 1..100_usize {
            let row: Vec<f32> = (0..dimension).map(|n| n as f32).collect();
            let ones = vec![1.0; dimension];
            let mut out = [0.0; 2];
            dots(&[row.clone(), ones.clone()].concat(), &ones, &mut out);
            assert_eq!(out, [(dimension * (dimension - 1) / 2) as f32, dimension as f32]);
            distances(&row, &row, &mut out[..1]);
            assert_eq!(out[0], 0.0);
            distances(&row, &vec![0.0; dimension], &mut out[..1]);
            assert_eq!(out[0], -((0..dimension).map(|n| n * n).sum::<usize>() as f32));
        }
    }
}
