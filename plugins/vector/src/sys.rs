//! The same kernels compiled twice: for every processor of the architecture, and for those with AVX2, which is found
//! out when the program runs. The only `unsafe` of this plugin is the call of the second kind.

#![expect(unsafe_code, reason = "code for AVX2 may only be called where the processor has it")]

use crate::kernel::{self, Component};

/// How near rows are to a query; a row's score is greater the nearer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Dot products.
    Dot,
    /// Negated squared distances.
    Distance,
}

/// Scores of `rows`, row after row, each as long as `query`.
pub fn scores<C: Component>(kernel: Kernel, rows: &[C], query: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        unsafe { with_avx2(kernel, rows, query, out) };
        return;
    }
    plain(kernel, rows, query, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<C: Component>(kernel: Kernel, rows: &[C], query: &[f32], out: &mut [f32]) {
    plain(kernel, rows, query, out);
}

#[inline(always)]
fn plain<C: Component>(kernel: Kernel, rows: &[C], query: &[f32], out: &mut [f32]) {
    match kernel {
        Kernel::Dot => kernel::dots(rows, query, out),
        Kernel::Distance => kernel::distances(rows, query, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_same_bits_with_and_without_avx2() {
        let number = |n: u32| (n.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e5 - 60.0;
        let query: Vec<f32> = (0..777).map(number).collect();
        let rows: Vec<f32> = (0..777 * 5).map(|n| number(n + 99)).collect();
        let small: Vec<i8> = rows.iter().map(|number| *number as i8).collect();
        for kernel in [Kernel::Dot, Kernel::Distance] {
            let (mut one, mut other) = ([0.0; 5], [0.0; 5]);
            scores(kernel, &rows, &query, &mut one);
            plain(kernel, &rows, &query, &mut other);
            assert_eq!(one, other);
            scores(kernel, &small, &query, &mut one);
            plain(kernel, &small, &query, &mut other);
            assert_eq!(one, other);
        }
    }
}
