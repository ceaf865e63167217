//! What a detector's graph gives: its two shapes, and the boxes in them.

use super::boxes::{Edges, Found};
use serde::Deserialize;

/// How the numbers of a box stand, each beginning with the centre and the size of the box in pixels of the graph's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// [pictures, boxes, 5 + classes]: whether there is anything, then what; the score is the product. YOLO 3, 4, 5 and 7.
    #[default]
    Objectness,
    /// [pictures, 4 + classes, boxes]: what, and that is the score. YOLO 8 and later.
    Classes,
}

impl Head {
    /// For each of so many pictures the boxes whose best class is at least this certain.
    ///
    /// # Errors
    /// What is odd about the shape, for a message about the graph.
    pub fn read(
        self,
        shape: &[i64],
        numbers: &[f32],
        pictures: usize,
        classes: usize,
        min_score: f32,
    ) -> Result<Vec<Vec<Found>>, String> {
        let (all, boxes, each) = match (self, shape) {
            (Self::Objectness, &[all, boxes, each]) | (Self::Classes, &[all, each, boxes]) => {
                (all as usize, boxes as usize, each as usize)
            }
            _ => (0, 0, 0),
        };
        if all != pictures || each != self.before() + classes || numbers.len() != pictures * boxes * each {
            let expected = match self {
                Self::Objectness => format!("[{pictures}, boxes, {}]", 5 + classes),
                Self::Classes => format!("[{pictures}, {}, boxes]", 4 + classes),
            };
            return Err(format!("gave {shape:?}, and for its {classes} labels {expected} is expected"));
        }
        let picture = |at: usize| &numbers[at * boxes * each..][..boxes * each];
        Ok((0..pictures).map(|at| self.boxes(picture(at), boxes, each, min_score)).collect())
    }

    /// How many numbers stand before those of the classes.
    fn before(self) -> usize {
        match self {
            Self::Objectness => 5,
            Self::Classes => 4,
        }
    }

    /// Those of one picture.
    fn boxes(self, numbers: &[f32], boxes: usize, each: usize, min_score: f32) -> Vec<Found> {
        let before = self.before();
        let found = |[x, y, width, height]: [f32; 4], class: usize, score: f32| {
            let (score, edges) = (score.min(1.0), Edges::around(x, y, width, height));
            (score >= min_score && edges.is_finite()).then_some(Found { class, score, edges })
        };
        match self {
            Self::Objectness => {
                let read = |row: &[f32]| {
                    // Most boxes are nothing: their classes need not be looked at.
                    if row[4].is_nan() || row[4] < min_score {
                        return None;
                    }
                    let (class, best) =
                        (0..).zip(&row[before..]).fold((0, f32::NEG_INFINITY), |best, (class, score)| {
                            if *score > best.1 { (class, *score) } else { best }
                        });
                    found([row[0], row[1], row[2], row[3]], class, row[4] * best)
                };
                numbers.chunks_exact(each).filter_map(read).collect()
            }
            Self::Classes => {
                // Class after class, as the numbers lie in memory.
                let (mut best, mut class_of) = (vec![f32::NEG_INFINITY; boxes], vec![0_u32; boxes]);
                for (class, scores) in (0..).zip(numbers.chunks_exact(boxes.max(1)).skip(before)) {
                    for ((best, of), score) in best.iter_mut().zip(&mut class_of).zip(scores) {
                        if *score > *best {
                            (*best, *of) = (*score, class);
                        }
                    }
                }
                let read = |at: usize| {
                    let place = [0, 1, 2, 3].map(|which| numbers[which * boxes + at]);
                    found(place, class_of[at] as usize, best[at])
                };
                (0..boxes).filter(|at| best[*at] >= min_score).filter_map(read).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROWS: [f32; 21] = [
        10.0, 20.0, 4.0, 6.0, 0.9, 0.1, 0.8, // something of class 1
        10.0, 20.0, 4.0, 6.0, 0.1, 0.9, 0.9, // hardly anything
        50.0, 50.0, 10.0, 10.0, 0.9, 0.2, 0.1, // something, unknown what
    ];

    #[test]
    fn both_shapes_say_the_same() {
        let rows = Head::Objectness.read(&[1, 3, 7], &ROWS, 1, 2, 0.25).unwrap();
        let edges = Edges { left: 8.0, top: 17.0, right: 12.0, bottom: 23.0 };
        assert_eq!(rows, [[Found { class: 1, score: 0.9 * 0.8, edges }]]);

        // The same boxes, their scores multiplied, box by box beside each other.
        let multiplied =
            ROWS.as_chunks::<7>().0.iter().map(|&[x, y, w, h, sure, a, b]| [x, y, w, h, sure * a, sure * b]);
        let rows_of_6: Vec<[f32; 6]> = multiplied.collect();
        let columns: Vec<f32> =
            (0..6).flat_map(|which| rows_of_6.iter().map(move |row| row[which])).collect();
        assert_eq!(Head::Classes.read(&[1, 6, 3], &columns, 1, 2, 0.25).unwrap(), rows);

        // Of two pictures each has its own.
        let both = Head::Classes.read(&[2, 6, 3], &[&columns[..], &[0.0; 18]].concat(), 2, 2, 0.25).unwrap();
        assert_eq!(both, [rows[0].clone(), vec![]]);
    }

    #[test]
    fn another_shape_is_named() {
        for (head, shape) in [
            (Head::Objectness, &[1, 7, 3][..]),
            (Head::Objectness, &[2, 3, 7]),
            (Head::Objectness, &[3, 7]),
            (Head::Classes, &[1, 3, 7]),
        ] {
            let odd = head.read(shape, &ROWS, 1, 2, 0.25).unwrap_err();
            assert!(odd.contains(&format!("{shape:?}")) && odd.contains("boxes"), "{odd}");
        }
    }

    #[test]
    fn what_is_no_number_is_nothing() {
        for at in 0..7 {
            let mut row = [10.0, 20.0, 4.0, 6.0, 0.9, 0.1, 0.8];
            row[at] = f32::NAN;
            let found = Head::Objectness.read(&[1, 1, 7], &row, 1, 2, 0.25).unwrap();
            assert_eq!(found[0].len(), usize::from(at == 5), "without the best class {at}");
        }
    }

    proptest! {
        #[test]
        fn any_numbers_are_read(numbers in prop::collection::vec(any::<f32>(), 42), objectness: bool) {
            let (head, shape) = if objectness { (Head::Objectness, [1, 6, 7]) } else { (Head::Classes, [1, 6, 7]) };
            let classes = 2;
            let found = head.read(&shape, &numbers, 1, classes, 0.1).unwrap();
            prop_assert!(found.concat().iter().all(|it| it.class < classes && (0.1..=1.0).contains(&it.score) && it.edges.is_finite()));
        }
    }
}
