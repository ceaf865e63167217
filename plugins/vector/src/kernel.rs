//! The arithmetic: scores of rows against a query. Plain loops that the compiler turns into vector instructions.
//!
//! Sums are kept in [`LANES`] parts and added up in a fixed order, so a score is the same bits whatever the machine's
//! vectors are as wide as, however many threads search, and whoever else is in the batch.

use half::f16;

/// Partial sums of a row: four registers of 256 bits, which keeps the adders of a core busy.
pub const LANES: usize = 32;

/// A component of a vector, as it is kept.
pub trait Component: Copy + Send + Sync + 'static {
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
