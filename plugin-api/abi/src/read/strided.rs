//! Elements that lie apart.
//!
//! # Source
//! DLPack, `DLTensor.strides`: in elements, not in bytes; null means dense and row-major. That every element is stored, so
//! that a few bytes cannot be made to look like a terabyte, is our header's.

/// Whether elements of `size` bytes that lie so are all within `len` bytes, which are as many as the shape has at least.
pub fn fits(len: usize, size: usize, shape: &[i64], strides: &[i64]) -> bool {
    shape.len() == strides.len() && is_within(len, size, shape, strides).unwrap_or_default()
}

/// [`fits`]; `None` where a number is beyond all numbers.
fn is_within(len: usize, size: usize, shape: &[i64], strides: &[i64]) -> Option<bool> {
    let count = elements(shape)?;
    if count == 0 {
        return Some(true);
    }
    // Where the first and the last of them lie, whichever they are: each is a corner.
    let (mut first, mut last) = (0i64, 0i64);
    for (side, stride) in shape.iter().zip(strides) {
        let far = (side - 1).checked_mul(*stride)?;
        let end = if far < 0 { &mut first } else { &mut last };
        *end = end.checked_add(far)?;
    }
    let end = usize::try_from(last).ok()?.checked_mul(size)?.checked_add(size)?;
    Some(first == 0 && end <= len && count.checked_mul(size)? <= len)
}

/// How many elements there are.
fn elements(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, side| product.checked_mul(usize::try_from(*side).ok()?))
}

/// Whether elements that lie so lie as if nothing was said.
pub fn is_dense(shape: &[i64], strides: &[i64]) -> bool {
    let mut dense = 1i64;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(side, stride)| {
            let as_expected = *side == 1 || *stride == dense;
            dense = dense.saturating_mul(*side);
            as_expected
        })
}

/// The elements of `data` in row-major order. `None` when they are not within it: see [`fits`].
pub fn gather(data: &[u8], size: usize, shape: &[i64], strides: &[i64]) -> Option<Vec<u8>> {
    if !fits(data.len(), size, shape, strides) {
        return None;
    }
    let count = elements(shape)?;
    let mut dense = Vec::with_capacity(count.checked_mul(size)?);
    let mut index = vec![0i64; shape.len()];
    for _ in 0..count {
        let place = |sum: i64, (at, stride): (&i64, &i64)| sum.checked_add(at.checked_mul(*stride)?);
        let element = index.iter().zip(strides).try_fold(0i64, place)?;
        let start = usize::try_from(element).ok()?.checked_mul(size)?;
        dense.extend_from_slice(data.get(start..start.checked_add(size)?)?);
        // The next index: the last side first, as an odometer turns.
        for (at, side) in index.iter_mut().zip(shape).rev() {
            *at += 1;
            if *at < *side {
                break;
            }
            *at = 0;
        }
    }
    Some(dense)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_that_lie_apart_come_together() {
        let data = [1, 2, 3, 4, 5, 6];
        assert_eq!(gather(&data, 1, &[2, 3], &[3, 1]).unwrap(), data, "dense already");
        assert_eq!(gather(&data, 1, &[3, 2], &[1, 3]).unwrap(), [1, 4, 2, 5, 3, 6], "transposed");
        assert_eq!(gather(&data, 2, &[2], &[2]).unwrap(), [1, 2, 5, 6], "every other element of two bytes");
        assert_eq!(gather(&data, 1, &[], &[]).unwrap(), [1], "a scalar");
        assert!(gather(&data, 1, &[0, 9], &[7, 7]).unwrap().is_empty());
    }

    #[test]
    fn what_lies_outside_is_not_read() {
        let data = [1, 2, 3, 4];
        assert_eq!(gather(&data, 1, &[2, 2], &[4, 1]), None, "the second row begins at the end");
        assert_eq!(gather(&data, 1, &[2], &[-1]), None, "in front of the data");
        assert_eq!(gather(&data, 1, &[5], &[0]), None, "more elements than are stored");
        assert_eq!(gather(&data, 1, &[-1], &[1]), None);
        assert_eq!(gather(&data, 1, &[2, 2], &[i64::MAX, i64::MAX]), None);
        assert_eq!(gather(&data, 8, &[1], &[1]), None);
        assert_eq!(gather(&data, usize::MAX, &[2], &[1]), None);
        assert_eq!(gather(&[], 1, &[i64::MAX, i64::MAX, 4], &[0, 0, 0]), None);
    }

    #[test]
    fn dense_is_dense() {
        assert!(is_dense(&[2, 3], &[3, 1]) && is_dense(&[], &[]) && is_dense(&[0, 9], &[7, 7]));
        assert!(is_dense(&[1, 3], &[99, 1]), "a side of one has nowhere to go");
        assert!(!is_dense(&[3, 2], &[1, 3]) && !is_dense(&[2], &[0]) && !is_dense(&[2], &[-1]));
        assert!(!is_dense(&[2, i64::MAX, i64::MAX], &[1, i64::MAX, 1]));
    }

    proptest! {
        /// Whatever it is given, it reads only what is there and never more than there is; and it reads what is there.
        #[test]
        fn any_shape_and_strides_are_safe(
            data in proptest::collection::vec(any::<u8>(), 0..64),
            size in 1usize..9,
            sides in proptest::collection::vec((-1i64..5, prop_oneof![-8i64..8, Just(i64::MAX), Just(i64::MIN)]), 0..4),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = sides.into_iter().unzip();
            // Each element by itself, in numbers that do not end.
            let mut places = vec![0i128];
            for (side, stride) in shape.iter().zip(&strides) {
                let along = |from: i128| (0..*side).map(move |at| from + i128::from(at) * i128::from(*stride));
                places = places.into_iter().flat_map(along).collect();
            }
            let size = size as i128;
            let inside = |place: &i128| 0 <= *place && (place + 1) * size <= data.len() as i128;
            let there = !shape.contains(&-1)
                && places.iter().all(inside)
                && places.len() as i128 * size <= data.len() as i128;
            let bytes = |place: &i128| data[(place * size) as usize..((place + 1) * size) as usize].to_vec();
            let expected = there.then(|| places.iter().flat_map(bytes).collect::<Vec<_>>());
            prop_assert_eq!(gather(&data, size as usize, &shape, &strides), expected);
        }
    }
}
