//! Which tensors run together, and which rows of tokens. Pure.

use std::ops::Range;

/// Tensors of a request, as far as running them with others is concerned: the shape of each, in the graph's order.
pub type Shapes = Vec<Vec<i64>>;

/// Puts requests that can share a run into groups of `most` rows at most, in the order of their arrival: every tensor has
/// as many rows as the others of its request, and all other sides agree. A larger request runs alone.
pub fn group(requests: &[Shapes], most: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for (place, shapes) in requests.iter().enumerate() {
        let rows = rows(shapes);
        let fits = |(full, members): &&mut (usize, Vec<usize>)| {
            rows.is_some_and(|rows| full.saturating_add(rows) <= most) && agree(&requests[members[0]], shapes)
        };
        match groups.iter_mut().find(fits) {
            Some((full, members)) => {
                *full += rows.unwrap_or_default();
                members.push(place);
            }
            // One without rows of its own is full from the start.
            None => groups.push((rows.unwrap_or(usize::MAX), vec![place])),
        }
    }
    groups.into_iter().map(|(_, members)| members).collect()
}

/// Rows of a request: the first side that all of its tensors share.
pub fn rows(shapes: &Shapes) -> Option<usize> {
    let mut firsts = shapes.iter().map(|shape| shape.first());
    let first = firsts.next()??;
    let same = firsts.all(|other| other == Some(first));
    same.then(|| usize::try_from(*first).ok()).flatten().filter(|&rows| rows > 0)
}

fn agree(one: &Shapes, other: &Shapes) -> bool {
    one.iter().zip(other).all(|(one, other)| one.get(1..) == other.get(1..))
}

/// What starting a run costs, in tokens: MiniLM takes 1.5 ms for a run and 0.24 ms for each token in it.
const RUN_COST: usize = 6;

/// Cuts rows of tokens, given by their lengths in ascending order, into runs. The rows of a run are padded to its
/// longest, so few runs waste padding and many runs waste starts; this is the cut that wastes least, with at most
/// `budget` padded tokens in each run of several rows.
pub fn cut(lengths: &[usize], budget: usize) -> Vec<Range<usize>> {
    // best[end]: the least cost of the rows before `end`, and where their last run starts.
    let mut best = vec![(0, 0)];
    for end in 1..=lengths.len() {
        let longest = lengths[end - 1];
        let starts =
            (0..end).rev().take_while(|&start| start + 1 == end || (end - start) * longest <= budget);
        let cost = |start: usize| best[start].0 + RUN_COST + (end - start) * longest;
        // Of equals the run with the most rows, which is met last.
        let start = starts.min_by_key(|&start| (cost(start), start)).unwrap_or(end - 1);
        best.push((cost(start), start));
    }
    let mut runs = Vec::new();
    let mut end = lengths.len();
    while end > 0 {
        let start = best[end].1;
        runs.push(start..end);
        end = start;
    }
    runs.reverse();
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shapes(shapes: &[&[i64]]) -> Shapes {
        shapes.iter().map(|shape| shape.to_vec()).collect()
    }

    #[test]
    fn requests_that_agree_share_a_run() {
        let requests = [
            shapes(&[&[1, 3], &[1]]),
            shapes(&[&[2, 4], &[2]]),
            shapes(&[&[2, 3], &[2]]),
            shapes(&[&[1, 3], &[2]]), // its tensors disagree about the rows
            shapes(&[&[0, 3], &[0]]), // it has none
            shapes(&[&[9, 3], &[9]]),
            shapes(&[&[], &[]]),
        ];
        assert_eq!(group(&requests, 4), [vec![0, 2], vec![1], vec![3], vec![4], vec![5], vec![6]]);
        assert_eq!(group(&requests[..3], 2), [vec![0], vec![1], vec![2]], "no more than `most` rows");
        assert_eq!(group(&[], 4), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn alike_lengths_share_a_run_and_unlike_ones_do_not() {
        let sizes =
            |lengths, budget| cut(lengths, budget).iter().map(ExactSizeIterator::len).collect::<Vec<_>>();
        assert_eq!(sizes(&[16, 16, 16], 2048), [3]);
        assert_eq!(sizes(&[4, 4, 100], 2048), [2, 1]);
        assert_eq!(sizes(&[10, 12], 2048), [2], "two tokens of padding are cheaper than a run");
        assert_eq!(sizes(&[50, 50, 50], 100), [1, 2], "the budget holds");
        assert_eq!(sizes(&[500], 100), [1], "one row runs whatever it takes");
        assert_eq!(sizes(&[7, 7], 0), [1, 1], "no budget keeps rows apart");
        assert_eq!(sizes(&[], 100), [0usize; 0]);
    }

    fn cost(lengths: &[usize], runs: &[Range<usize>]) -> usize {
        runs.iter().map(|run| RUN_COST + run.len() * lengths[run.end - 1]).sum()
    }

    proptest! {
        #[test]
        fn every_row_runs_once_within_the_budget_and_no_simpler_cut_is_cheaper(
            mut lengths in proptest::collection::vec(1usize..200, 1..60), budget in 1usize..3000,
        ) {
            lengths.sort_unstable();
            let runs = cut(&lengths, budget);
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), (0..lengths.len()).collect::<Vec<_>>());
            for run in &runs {
                prop_assert!(run.len() == 1 || run.len() * lengths[run.end - 1] <= budget);
            }
            let single: Vec<_> = (0..lengths.len()).map(|row| row..row + 1).collect();
            prop_assert!(cost(&lengths, &runs) <= cost(&lengths, &single));
            if lengths.len() * lengths[lengths.len() - 1] <= budget {
                let whole = 0..lengths.len();
                prop_assert!(cost(&lengths, &runs) <= cost(&lengths, std::slice::from_ref(&whole)));
            }
        }

        #[test]
        fn every_request_is_in_one_group_and_groups_agree(
            requests in proptest::collection::vec((0i64..5, 1i64..3), 0..30), most in 1usize..9,
        ) {
            let requests: Vec<Shapes> =
                requests.iter().map(|&(rows, side)| vec![vec![rows, side], vec![rows]]).collect();
            let groups = group(&requests, most);
            let mut members: Vec<usize> = groups.iter().flatten().copied().collect();
            members.sort_unstable();
            prop_assert_eq!(members, (0..requests.len()).collect::<Vec<_>>());
            for group in groups.iter().filter(|group| group.len() > 1) {
                let sum: usize = group.iter().filter_map(|&place| rows(&requests[place])).sum();
                prop_assert!(sum <= most);
                prop_assert!(group.iter().all(|&place| requests[place][0][1] == requests[group[0]][0][1]));
            }
        }
    }
}
