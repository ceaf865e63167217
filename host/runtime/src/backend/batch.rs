//! Which waiting requests run together. Pure.

/// A waiting request, as far as batching is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Only requests for the same capability run together.
    pub capability: &'a str,
    /// Size of its input in bytes.
    pub weight: usize,
}

/// Chooses at most `max` of `waiting`, the first among them, and those closest to it in length: rows of a batch are
/// padded to the longest, so unlike lengths waste work. Returns their places in ascending order.
pub fn choose(waiting: &[Row<'_>], max: usize) -> Vec<usize> {
    let Some(first) = waiting.first() else { return Vec::new() };
    let mut places: Vec<usize> =
        (1..waiting.len()).filter(|&place| waiting[place].capability == first.capability).collect();
    // Ties keep the order of arrival, since the sort is stable.
    places.sort_by_key(|&place| waiting[place].weight.abs_diff(first.weight));
    places.truncate(max.saturating_sub(1));
    places.push(0);
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn like_lengths_run_together() {
        let row = |weight| Row { capability: "embed", weight };
        assert_eq!(choose(&[row(10), row(900), row(11), row(12)], 3), [0, 2, 3]);
        assert_eq!(choose(&[row(10), row(900)], 8), [0, 1]);
        assert_eq!(choose(&[], 8), [0usize; 0]);
    }

    proptest! {
        #[test]
        fn the_oldest_is_always_among_them(
            weights in proptest::collection::vec((0usize..1000, 0usize..3), 1..40), max in 1usize..10,
        ) {
            let names = ["a", "b", "c"];
            let rows: Vec<_> =
                weights.iter().map(|&(weight, name)| Row { capability: names[name], weight }).collect();
            let chosen = choose(&rows, max);
            prop_assert_eq!(chosen[0], 0);
            prop_assert!(chosen.len() <= max);
            prop_assert!(chosen.is_sorted_by(|a, b| a < b));
            prop_assert!(chosen.iter().all(|&place| rows[place].capability == rows[0].capability));
        }
    }
}
