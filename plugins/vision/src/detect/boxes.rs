//! Boxes, how much they overlap, and which of those that overlap is kept.

/// Where something is: its edges.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Edges {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
}

impl Edges {
    /// Of a box around a centre.
    pub fn around(x: f32, y: f32, width: f32, height: f32) -> Self {
        let (across, down) = (width / 2.0, height / 2.0);
        Self { left: x - across, top: y - down, right: x + across, bottom: y + down }
    }

    fn area(&self) -> f32 {
        (self.right - self.left).max(0.0) * (self.bottom - self.top).max(0.0)
    }

    /// The area that both cover, of the area that either does. What has no area overlaps nothing.
    pub fn overlap(&self, other: &Self) -> f32 {
        let across = self.right.min(other.right) - self.left.max(other.left);
        let down = self.bottom.min(other.bottom) - self.top.max(other.top);
        let both = across.max(0.0) * down.max(0.0);
        if both > 0.0 { both / (self.area() + other.area() - both) } else { 0.0 }
    }

    /// Within a picture of this size.
    pub fn within(&self, width: u32, height: u32) -> Self {
        let (width, height) = (width as f32, height as f32);
        Self {
            left: self.left.clamp(0.0, width),
            top: self.top.clamp(0.0, height),
            right: self.right.clamp(0.0, width),
            bottom: self.bottom.clamp(0.0, height),
        }
    }

    pub fn is_finite(&self) -> bool {
        [self.left, self.top, self.right, self.bottom].iter().all(|edge| edge.is_finite())
    }
}

/// Something that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    pub class: usize,
    pub score: f32,
    pub edges: Edges,
}

/// More are not compared with each other: what a picture shows is among the first.
const MAX_COMPARED: usize = 4096;

/// The most certain first; of those of a class that overlap by more than `most`, the most certain.
pub fn suppress(mut found: Vec<Found>, most: f32, limit: usize) -> Vec<Found> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(MAX_COMPARED);
    let mut kept: Vec<Found> = Vec::new();
    for one in found {
        if kept.len() == limit {
            break;
        }
        let same = |other: &&Found| other.class == one.class;
        if kept.iter().filter(same).all(|other| one.edges.overlap(&other.edges) <= most) {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(class: usize, score: f32, left: f32) -> Found {
        Found { class, score, edges: Edges { left, top: 0.0, right: left + 10.0, bottom: 10.0 } }
    }

    #[test]
    fn overlap_is_the_shared_part_of_all() {
        let (a, b) = (found(0, 1.0, 0.0).edges, found(0, 1.0, 5.0).edges);
        assert!((a.overlap(&b) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(a.overlap(&a), 1.0);
        assert_eq!(a.overlap(&found(0, 1.0, 10.0).edges), 0.0, "they touch");
        let line = Edges { right: a.left, ..a };
        assert_eq!(line.overlap(&line), 0.0);
    }

    #[test]
    fn the_most_certain_of_a_class_is_kept() {
        let all = vec![found(0, 0.5, 1.0), found(0, 0.9, 0.0), found(1, 0.4, 0.0), found(0, 0.3, 30.0)];
        let kept = suppress(all.clone(), 0.5, 10);
        assert_eq!(kept, [found(0, 0.9, 0.0), found(1, 0.4, 0.0), found(0, 0.3, 30.0)]);
        assert_eq!(suppress(all.clone(), 0.5, 2).len(), 2);
        assert_eq!(suppress(all, 1.0, 10).len(), 4);
    }

    proptest! {
        #[test]
        fn none_that_is_kept_overlaps_another(lefts in prop::collection::vec((0.0..100.0_f32, 0.0..1.0_f32, 0..3_usize), 0..60)) {
            let all: Vec<Found> = lefts.iter().map(|(left, score, class)| found(*class, *score, *left)).collect();
            let kept = suppress(all.clone(), 0.4, 100);
            for (place, one) in kept.iter().enumerate() {
                prop_assert!(all.contains(one));
                prop_assert!(kept[..place].iter().all(|it| it.score >= one.score));
                prop_assert!(kept[..place].iter().all(|it| it.class != one.class || it.edges.overlap(&one.edges) <= 0.4));
            }
            for one in &all {
                prop_assert!(kept.iter().any(|it| it == one || it.class == one.class && it.edges.overlap(&one.edges) > 0.4));
            }
        }
    }
}
