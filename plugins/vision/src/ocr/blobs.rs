//! Blobs of a map: places where neighbouring numbers, corners included, are above a threshold.

/// A map of numbers, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    pub width: usize,
    pub height: usize,
    pub numbers: &'a [f32],
}

/// A run of a row that belongs to a blob: from and to, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    y: i32,
    from: i32,
    to: i32,
}

/// The ends of every run of each blob. No other pixel can be a corner of its convex hull.
pub fn blobs(map: &Map<'_>, threshold: f32, dilate: bool) -> Vec<Vec<[i32; 2]>> {
    let mut above = vec![false; map.width];
    let (mut runs, mut parents): (Vec<Run>, Vec<usize>) = (Vec::new(), Vec::new());
    // Those of the row before.
    let mut before = 0..0;
    for (y, row) in map.numbers.chunks_exact(map.width.max(1)).take(map.height).enumerate() {
        let now: Vec<bool> = row.iter().map(|number| *number > threshold).collect();
        let first = runs.len();
        let mut from = None;
        for x in 0..=map.width {
            // Dilated by two by two pixels: each goes with its left, its upper and its upper left neighbour.
            let here = |x: usize| now[x] || dilate && above[x];
            let set = x < map.width && (here(x) || dilate && 0 < x && here(x - 1));
            match (set, from) {
                (true, None) => from = Some(x),
                (false, Some(start)) => {
                    runs.push(Run { y: y as i32, from: start as i32, to: x as i32 - 1 });
                    from = None;
                }
                _ => {}
            }
        }
        parents.extend(first..runs.len());
        let mut old = before.start;
        for new in first..runs.len() {
            // Both rows are in order: runs of the old one that end before this begins meet no later one either.
            while old < before.end && runs[old].to + 1 < runs[new].from {
                old += 1;
            }
            let mut touching = old;
            while touching < before.end && runs[touching].from <= runs[new].to + 1 {
                join(&mut parents, touching, new);
                touching += 1;
            }
        }
        before = first..runs.len();
        above = now;
    }
    let mut places = vec![usize::MAX; runs.len()];
    let mut blobs: Vec<Vec<[i32; 2]>> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let root = root(&mut parents, index);
        if places[root] == usize::MAX {
            places[root] = blobs.len();
            blobs.push(Vec::new());
        }
        blobs[places[root]].extend([[run.from, run.y], [run.to, run.y]]);
    }
    blobs
}

fn root(parents: &mut [usize], mut run: usize) -> usize {
    while parents[run] != run {
        parents[run] = parents[parents[run]];
        run = parents[run];
    }
    run
}

fn join(parents: &mut [usize], one: usize, other: usize) {
    let (one, other) = (root(parents, one), root(parents, other));
    parents[one.max(other)] = one.min(other);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[&str], dilate: bool) -> Vec<Vec<[i32; 2]>> {
        let numbers: Vec<f32> = rows
            .iter()
            .flat_map(|row| row.bytes().map(|byte| if byte == b'#' { 0.9 } else { 0.1 }))
            .collect();
        blobs(&Map { width: rows[0].len(), height: rows.len(), numbers: &numbers }, 0.3, dilate)
    }

    #[test]
    fn what_touches_is_one_even_at_a_corner() {
        let found = of(&["#..#", ".#..", "...."], false);
        assert_eq!(found, [vec![[0, 0], [0, 0], [1, 1], [1, 1]], vec![[3, 0], [3, 0]]]);
    }

    #[test]
    fn branches_meet_later() {
        assert_eq!(of(&["#.#.#", "#.#.#", "#####"], false).len(), 1);
        assert_eq!(of(&["#####", "#.#.#", "#.#.#"], false).len(), 1);
        assert_eq!(of(&["#.#.#", "#.#.#", "....."], false).len(), 3);
    }

    #[test]
    fn dilation_reaches_right_and_down() {
        assert_eq!(of(&["#...", "....", "...."], true), [vec![[0, 0], [1, 0], [0, 1], [1, 1]]]);
        assert_eq!(of(&["...#"], true), [vec![[3, 0], [3, 0]]]);
        assert_eq!(of(&["#..#"], false).len(), 2);
        assert_eq!(of(&["#.#"], true).len(), 1);
    }

    #[test]
    fn an_empty_map_has_none() {
        assert!(of(&["...."], false).is_empty());
        assert!(blobs(&Map { width: 0, height: 0, numbers: &[] }, 0.3, true).is_empty());
    }
}
