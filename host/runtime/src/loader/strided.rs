//! A tensor whose elements lie apart, made dense.

/// The elements of `data` in row-major order. `strides` count elements, as DLPack's do.
///
/// `None` when an element lies outside `data`, or when the shape has more elements than `data` holds: every element is
/// stored, says the header, so that a few bytes cannot be made to look like a terabyte.
pub fn gather(data: &[u8], size: usize, shape: &[i64], strides: &[i64]) -> Option<Vec<u8>> {
    let sides: Vec<usize> = shape.iter().map(|side| usize::try_from(*side)).collect::<Result<_, _>>().ok()?;
    let count = sides.iter().try_fold(1usize, |product, side| product.checked_mul(*side))?;
    let bytes = count.checked_mul(size).filter(|bytes| *bytes <= data.len())?;
    let mut dense = Vec::with_capacity(bytes);
    let mut index = vec![0usize; sides.len()];
    for _ in 0..count {
        let element = index.iter().zip(strides).try_fold(0i64, |sum, (at, stride)| {
            sum.checked_add(i64::try_from(*at).ok()?.checked_mul(*stride)?)
        })?;
        let start = usize::try_from(element).ok()?.checked_mul(size)?;
        dense.extend_from_slice(data.get(start..start.checked_add(size)?)?);
        // The next index: the last side first, as an odometer turns.
        for (at, side) in index.iter_mut().zip(&sides).rev() {
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

    proptest! {
        /// Whatever it is given, it reads only what is there and never more than there is.
        #[test]
        fn any_shape_and_strides_are_safe(
            data in proptest::collection::vec(any::<u8>(), 0..64),
            size in 1usize..9,
            sides in proptest::collection::vec((-1i64..5, prop_oneof![-8i64..8, Just(i64::MAX), Just(i64::MIN)]), 0..4),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = sides.into_iter().unzip();
            if let Some(dense) = gather(&data, size, &shape, &strides) {
                prop_assert_eq!(dense.len(), shape.iter().product::<i64>() as usize * size);
                prop_assert!(dense.len() <= data.len());
            }
        }
    }
}
