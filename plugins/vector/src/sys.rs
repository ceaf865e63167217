//! The same kernels in the instructions of AVX2 with F16C and of AVX-512, which are found out when the program runs. The only
//! `unsafe` of this plugin: they may be called only where the processor has them, and they read memory by address.
//!
//! A score is the same bits as that of [`crate::kernel`]: products are rounded before they are added, and partial sums are
//! added in the same order. So nothing is multiplied and added in one instruction, though the processor could.

#![expect(unsafe_code, reason = "instructions that only some processors have")]

pub use crate::kernel::Kernel;
use crate::kernel::{self, Component};

/// Scores of `rows`, row after row, each as long as `query`.
pub fn scores<C: Eight>(kernel: Kernel, rows: &[C], query: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_there() {
        // SAFETY: the processor has what the functions ask for.
        return unsafe {
            match kernel {
                Kernel::Dot => avx2::scores::<C, false>(rows, query, out),
                Kernel::Distance => avx2::scores::<C, true>(rows, query, out),
            }
        };
    }
    kernel::scores(kernel, rows, query, out);
}

/// The same of bytes. They wait for arithmetic before they wait for memory: wider instructions help here, and nowhere else.
pub fn byte_scores(kernel: Kernel, rows: &[i8], query: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_there() {
        // SAFETY: the processor has what the functions ask for.
        return unsafe {
            match kernel {
                Kernel::Dot => avx512::scores::<false>(rows, query, out),
                Kernel::Distance => avx512::scores::<true>(rows, query, out),
            }
        };
    }
    scores(kernel, rows, query, out);
}

/// The same of whole numbers, where that [is exact](kernel::Whole::is_exact). AVX2 does it as fast as memory comes.
pub fn whole_scores(kernel: Kernel, rows: &[i8], query: &[i16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_there() {
        // SAFETY: the processor has what the functions ask for.
        return unsafe {
            match kernel {
                Kernel::Dot => avx2::whole_scores::<false>(rows, query, out),
                Kernel::Distance => avx2::whole_scores::<true>(rows, query, out),
            }
        };
    }
    kernel::whole_scores(kernel, rows, query, out);
}

#[cfg(target_arch = "x86_64")]
pub use avx2::Eight;

/// What AVX2 reads at once, elsewhere.
#[cfg(not(target_arch = "x86_64"))]
pub use crate::kernel::Component as Eight;

/// What there is, and zeros.
#[cfg(target_arch = "x86_64")]
fn filled<T: Copy + Default, const N: usize>(some: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all[..some.len()].copy_from_slice(some);
    all
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Component, filled};
    use crate::kernel::LANES;
    use half::f16;
    use std::arch::x86_64::*;

    pub fn is_there() -> bool {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c")
    }

    /// A component of which eight become 32-bit numbers at once.
    pub trait Eight: Component {
        /// # Safety
        /// The processor has AVX2 and F16C.
        unsafe fn eight(components: &[Self; 8]) -> __m256;
    }

    impl Eight for f32 {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn eight(components: &[Self; 8]) -> __m256 {
            // SAFETY: eight numbers of four bytes.
            unsafe { _mm256_loadu_ps(components.as_ptr()) }
        }
    }

    impl Eight for f16 {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn eight(components: &[Self; 8]) -> __m256 {
            // SAFETY: eight numbers of two bytes.
            _mm256_cvtph_ps(unsafe { _mm_loadu_si128(components.as_ptr().cast()) })
        }
    }

    impl Eight for i8 {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn eight(components: &[Self; 8]) -> __m256 {
            // SAFETY: eight numbers of one byte.
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(components.as_ptr().cast()) }))
        }
    }

    /// One row after the other: memory that is read in its order comes as fast as it can, and that of two rows at a time
    /// does not.
    #[target_feature(enable = "avx2,f16c")]
    pub fn scores<C: Eight, const DISTANCE: bool>(rows: &[C], query: &[f32], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            *out = sum::<C, DISTANCE>(row, query);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn sum<C: Eight, const DISTANCE: bool>(row: &[C], query: &[f32]) -> f32 {
        let mut lanes = [_mm256_setzero_ps(); 4];
        let mut add = |row: &[C; LANES], query: &[f32; LANES]| {
            let (row, query) = (row.as_chunks::<8>().0, query.as_chunks::<8>().0);
            for ((row, query), lanes) in row.iter().zip(query).zip(&mut lanes) {
                // SAFETY: eight numbers of four bytes; and what `eight` asks of the processor is asked of this function, too.
                let (component, query) = unsafe { (C::eight(row), _mm256_loadu_ps(query.as_ptr())) };
                let term = if DISTANCE {
                    let difference = _mm256_sub_ps(component, query);
                    _mm256_mul_ps(difference, difference)
                } else {
                    _mm256_mul_ps(component, query)
                };
                *lanes = _mm256_add_ps(*lanes, term);
            }
        };
        let ((blocks, tail), (query_blocks, query_tail)) = (row.as_chunks(), query.as_chunks());
        blocks.iter().zip(query_blocks).for_each(|(row, query)| add(row, query));
        if !tail.is_empty() {
            // 0 adds nothing to any score.
            add(&filled(tail), &filled(query_tail));
        }
        // 16 to 16, 8 to 8, and so on.
        let [a, b, c, d] = lanes;
        let sum = by_halves(_mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d)));
        if DISTANCE { -sum } else { sum }
    }

    /// The sum of eight, 4 to 4, 2 to 2, 1 to 1.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn by_halves(eight: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// Numbers of 16 bits in a register.
    const WHOLE: usize = 16;

    #[target_feature(enable = "avx2")]
    pub fn whole_scores<const DISTANCE: bool>(rows: &[i8], query: &[i16], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            *out = whole_sum::<DISTANCE>(row, query);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn whole_sum<const DISTANCE: bool>(row: &[i8], query: &[i16]) -> f32 {
        let mut sum = _mm256_setzero_si256();
        let mut add = |row: &[i8; WHOLE], query: &[i16; WHOLE]| {
            // SAFETY: sixteen numbers of two bytes, and of one.
            let (query, row) =
                unsafe { (_mm256_loadu_si256(query.as_ptr().cast()), _mm_loadu_si128(row.as_ptr().cast())) };
            let row = _mm256_cvtepi8_epi16(row);
            let terms = if DISTANCE {
                let difference = _mm256_sub_epi16(row, query);
                _mm256_madd_epi16(difference, difference)
            } else {
                _mm256_madd_epi16(row, query)
            };
            sum = _mm256_add_epi32(sum, terms);
        };
        let ((blocks, tail), (query_blocks, query_tail)) = (row.as_chunks(), query.as_chunks());
        blocks.iter().zip(query_blocks).for_each(|(row, query)| add(row, query));
        if !tail.is_empty() {
            add(&filled(tail), &filled(query_tail));
        }
        let four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
        let one = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two))) as f32;
        if DISTANCE { -one } else { one }
    }
}

/// Half as many instructions, so that those of the next rows, and with them their reads, are under way sooner.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{avx2, filled};
    use crate::kernel::LANES;
    use std::arch::x86_64::*;

    pub fn is_there() -> bool {
        avx2::is_there() && std::arch::is_x86_feature_detected!("avx512f")
    }

    #[target_feature(enable = "avx2,avx512f")]
    pub fn scores<const DISTANCE: bool>(rows: &[i8], query: &[f32], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            *out = sum::<DISTANCE>(row, query);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,avx512f")]
    fn sum<const DISTANCE: bool>(row: &[i8], query: &[f32]) -> f32 {
        let mut lanes = [_mm512_setzero_ps(); 2];
        let mut add = |row: &[i8; LANES], query: &[f32; LANES]| {
            let (row, query) = (row.as_chunks::<16>().0, query.as_chunks::<16>().0);
            for ((row, query), lanes) in row.iter().zip(query).zip(&mut lanes) {
                // SAFETY: sixteen numbers of one byte, and of four.
                let (bytes, query) =
                    unsafe { (_mm_loadu_si128(row.as_ptr().cast()), _mm512_loadu_ps(query.as_ptr())) };
                let component = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                let term = if DISTANCE {
                    let difference = _mm512_sub_ps(component, query);
                    _mm512_mul_ps(difference, difference)
                } else {
                    _mm512_mul_ps(component, query)
                };
                *lanes = _mm512_add_ps(*lanes, term);
            }
        };
        let ((blocks, tail), (query_blocks, query_tail)) = (row.as_chunks(), query.as_chunks());
        blocks.iter().zip(query_blocks).for_each(|(row, query)| add(row, query));
        if !tail.is_empty() {
            // 0 adds nothing to any score.
            add(&filled(tail), &filled(query_tail));
        }
        let sixteen = _mm512_add_ps(lanes[0], lanes[1]);
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sixteen)));
        let sum = avx2::by_halves(_mm256_add_ps(_mm512_castps512_ps256(sixteen), high));
        if DISTANCE { -sum } else { sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Every length around a block's, and rows that are no multiple of what is done at once.
    #[test]
    fn a_score_is_the_same_bits_by_whatever_instructions() {
        fn hold<C: Eight>(
            kernel: Kernel,
            rows: &[C],
            query: &[f32],
            scored: fn(Kernel, &[C], &[f32], &mut [f32]),
        ) {
            let (mut plain, mut wide) = ([0.0; 7], [0.0; 7]);
            kernel::scores(kernel, rows, query, &mut plain);
            scored(kernel, rows, query, &mut wide);
            let kind = std::any::type_name::<C>();
            assert_eq!(wide.map(f32::to_bits), plain.map(f32::to_bits), "{kind}, {}", query.len());
        }
        let number = |n: u32| (n.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e5 - 60.0;
        for dimension in (1..100_u32).chain([384, 777]) {
            let query: Vec<f32> = (0..dimension).map(number).collect();
            let rows: Vec<f32> = (0..dimension * 7).map(|n| number(n + 99)).collect();
            let small: Vec<i8> = rows.iter().map(|number| *number as i8).collect();
            let half: Vec<f16> = rows.iter().map(|number| f16::from_f32(*number)).collect();
            let whole: Vec<i16> = query.iter().map(|number| i16::from(*number as i8)).collect();
            for kernel in [Kernel::Dot, Kernel::Distance] {
                hold(kernel, &rows, &query, scores);
                hold(kernel, &half, &query, scores);
                hold(kernel, &small, &query, scores);
                hold(kernel, &small, &query, byte_scores);
                let (mut one, mut other) = ([0.0; 7], [0.0; 7]);
                whole_scores(kernel, &small, &whole, &mut one);
                kernel::whole_scores(kernel, &small, &whole, &mut other);
                assert_eq!(one, other, "whole, {dimension}");
            }
        }
    }
}
