//! The best `k` of many, in a heap with the worst of them on top.

use backplane_plugin::payload::vector::score;
use std::cmp::Ordering;

/// Scores that are looked at together, in a few instructions.
const TOGETHER: usize = 32;

/// A row with its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Greater is better.
    pub score: f32,
    /// Which.
    pub row: u32,
}

/// The best `k` that were offered. `tie` orders rows of equal score: what is less comes first.
pub struct Top<T> {
    heap: Vec<Scored>,
    k: usize,
    tie: T,
}

impl<T: Fn(u32, u32) -> Ordering> Top<T> {
    /// None yet. `k` is at least 1.
    pub fn new(k: usize, tie: T) -> Self {
        Self { heap: Vec::with_capacity(k), k, tie }
    }

    /// Offers rows `first`, `first + 1` … with these scores, or what their scores are not above: `exact` says what they are,
    /// and is asked of those alone that may be among the best.
    pub fn offer(&mut self, first: u32, scores: &[f32], mut exact: impl FnMut(u32, f32) -> f32) {
        for (first, scores) in (first..).step_by(TOGETHER).zip(scores.chunks(TOGETHER)) {
            // Nearly all rows end here.
            if self.k <= self.heap.len() {
                let worst = self.heap[0].score;
                if !scores.iter().fold(false, |any, score| any | (worst <= *score)) {
                    continue;
                }
            }
            for (row, &score) in (first..).zip(scores) {
                if self.heap.len() < self.k || self.heap[0].score <= score {
                    self.put(Scored { score: exact(row, score), row });
                }
            }
        }
    }

    /// Offers one.
    pub fn put(&mut self, new: Scored) {
        if self.heap.len() < self.k {
            self.heap.push(new);
            let mut at = self.heap.len() - 1;
            while 0 < at && self.order(at, (at - 1) / 2).is_gt() {
                self.heap.swap(at, (at - 1) / 2);
                at = (at - 1) / 2;
            }
        } else if self.compare(new, self.heap[0]).is_lt() {
            self.heap[0] = new;
            let mut at = 0;
            loop {
                let children = [2 * at + 1, 2 * at + 2].into_iter().filter(|&child| child < self.heap.len());
                let worst = children.fold(at, |worst, child| match self.order(child, worst) {
                    Ordering::Greater => child,
                    _ => worst,
                });
                if worst == at {
                    return;
                }
                self.heap.swap(at, worst);
                at = worst;
            }
        }
    }

    /// All of them, best first.
    pub fn into_sorted(self) -> Vec<Scored> {
        let Self { mut heap, tie, .. } = self;
        heap.sort_unstable_by(|a, b| compare(*a, *b, &tie));
        heap
    }

    fn order(&self, a: usize, b: usize) -> Ordering {
        self.compare(self.heap[a], self.heap[b])
    }

    fn compare(&self, a: Scored, b: Scored) -> Ordering {
        compare(a, b, &self.tie)
    }
}

/// The better is less.
fn compare(a: Scored, b: Scored, tie: impl Fn(u32, u32) -> Ordering) -> Ordering {
    score::order(a.score, b.score).then_with(|| tie(a.row, b.row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_best_are_those_of_a_sort(
            scores in prop::collection::vec(-4_i8..4, 0..200),
            k in 1_usize..50,
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            // A later row goes before an earlier one.
            let tie = |a: u32, b: u32| b.cmp(&a);
            let mut top = Top::new(k, tie);
            top.offer(0, &scores, |_, score| score);
            let mut all: Vec<_> =
                (0..).zip(&scores).map(|(row, &score)| Scored { score, row }).collect();
            all.sort_by(|a, b| compare(*a, *b, tie));
            all.truncate(k);
            prop_assert_eq!(&top.into_sorted(), &all);
            // By what they are not above.
            let mut top = Top::new(k, tie);
            let bounds: Vec<f32> = scores.iter().enumerate().map(|(n, score)| score + (n % 3) as f32).collect();
            top.offer(0, &bounds, |row, _| scores[row as usize]);
            prop_assert_eq!(top.into_sorted(), all);
        }
    }
}
