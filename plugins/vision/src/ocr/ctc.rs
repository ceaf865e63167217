//! From probabilities to letters (CTC, "connectionist temporal classification"): in each column the likeliest class
//! counts; repeated ones are one letter, and class 0 is no letter.

/// A letter that was recognised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Letter {
    pub class: usize,
    /// Where: the first of its columns.
    pub column: usize,
    /// How probable it is there.
    pub score: f32,
}

/// The letters of a line: `probabilities` are `classes` numbers for each column.
pub fn decode(probabilities: &[f32], classes: usize) -> Vec<Letter> {
    let mut letters = Vec::new();
    let mut before = 0;
    for (column, row) in probabilities.chunks_exact(classes.max(1)).enumerate() {
        let (class, score) = likeliest(row);
        if class != before && class != 0 {
            letters.push(Letter { class, column, score });
        }
        before = class;
    }
    letters
}

/// The place of the greatest number, the first of equals. Looks at a whole alphabet for every column: in lanes, which
/// compilers turn into SIMD.
fn likeliest(row: &[f32]) -> (usize, f32) {
    const LANES: usize = 8;
    let mut best = [f32::MIN; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        best.iter_mut()
            .zip(chunk)
            .for_each(|(best, number)| *best = if *best < *number { *number } else { *best });
    }
    let greatest = best.iter().chain(rest).fold(f32::MIN, |greatest, number| greatest.max(*number));
    (row.iter().position(|number| *number == greatest).unwrap_or(0), greatest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repeated_columns_are_one_letter_and_a_gap_parts_two() {
        let rows = [[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.0, 0.3, 0.7]];
        let letters = decode(&rows.concat(), 3);
        let found: Vec<_> =
            letters.iter().map(|letter| (letter.class, letter.column, letter.score)).collect();
        assert_eq!(found, [(1, 0, 0.9), (1, 3, 0.6), (2, 4, 0.7)]);
        assert!(decode(&[], 3).is_empty() && decode(&[0.9, 0.1], 2).is_empty());
    }

    proptest! {
        #[test]
        fn the_likeliest_is_the_first_of_the_greatest(row in prop::collection::vec(-3..3_i8, 1..40)) {
            let row: Vec<f32> = row.into_iter().map(f32::from).collect();
            let (place, score) = likeliest(&row);
            prop_assert!(row.iter().all(|number| *number <= score) && row[place] == score);
            prop_assert!(row[..place].iter().all(|number| *number < score));
        }
    }
}
