//! Boxes of faces as MTCNN counts them: their last pixel belongs to them.

/// A place where a face may be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    pub left: f32,
    pub top: f32,
    pub right: f32,
    pub bottom: f32,
    pub score: f32,
}

/// What an overlap is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The area that either covers.
    OfBoth,
    /// The area of the smaller.
    OfSmaller,
}

impl Candidate {
    pub fn width(&self) -> f32 {
        self.right - self.left + 1.0
    }

    pub fn height(&self) -> f32 {
        self.bottom - self.top + 1.0
    }

    fn overlap(&self, other: &Self, share: Share) -> f32 {
        let across = (self.right.min(other.right) - self.left.max(other.left) + 1.0).max(0.0);
        let down = (self.bottom.min(other.bottom) - self.top.max(other.top) + 1.0).max(0.0);
        let both = across * down;
        let (mine, its) = (self.width() * self.height(), other.width() * other.height());
        match share {
            Share::OfBoth => both / (mine + its - both),
            Share::OfSmaller => both / mine.min(its),
        }
    }

    /// With each edge moved by a part of `width` and `height`.
    pub fn moved(&self, by: &[f32; 4], width: f32, height: f32) -> Self {
        let [left, top, right, bottom] = by;
        Self {
            left: self.left + left * width,
            top: self.top + top * height,
            right: self.right + right * width,
            bottom: self.bottom + bottom * height,
            score: self.score,
        }
    }

    /// The square around its centre with its longer side.
    pub fn squared(&self) -> Self {
        let (across, down) = (self.right - self.left, self.bottom - self.top);
        let side = across.max(down);
        let (left, top) = (self.left + (across - side) / 2.0, self.top + (down - side) / 2.0);
        Self { left, top, right: left + side, bottom: top + side, score: self.score }
    }

    /// With edges on whole pixels, towards zero.
    pub fn truncated(&self) -> Self {
        let (left, top) = (self.left.trunc(), self.top.trunc());
        Self { left, top, right: self.right.trunc(), bottom: self.bottom.trunc(), score: self.score }
    }

    /// Whether it is a place at all.
    pub fn is_sound(&self) -> bool {
        let far = |edge: f32| edge.abs() < 1e6;
        far(self.left)
            && far(self.top)
            && far(self.right)
            && far(self.bottom)
            && self.right > self.left
            && self.bottom > self.top
            && self.score.is_finite()
    }
}

/// Places, the most certain first, of which none overlaps a more certain one by more than `most`. At most `limit` are
/// compared.
pub fn pick<T: Copy>(
    mut all: Vec<(Candidate, T)>,
    most: f32,
    share: Share,
    limit: usize,
) -> Vec<(Candidate, T)> {
    all.sort_by(|a, b| b.0.score.total_cmp(&a.0.score));
    all.truncate(limit);
    let mut kept: Vec<(Candidate, T)> = Vec::new();
    for one in all {
        if kept.iter().all(|other| one.0.overlap(&other.0, share) <= most) {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(left: f32, side: f32, score: f32) -> Candidate {
        Candidate { left, top: 0.0, right: left + side - 1.0, bottom: side - 1.0, score }
    }

    #[test]
    fn a_small_box_within_a_large_one_overlaps_by_its_own_area() {
        let (large, small) = (at(0.0, 10.0, 0.9), at(2.0, 5.0, 0.8));
        assert!((large.overlap(&small, Share::OfBoth) - 0.25).abs() < 1e-6);
        assert_eq!(large.overlap(&small, Share::OfSmaller), 1.0);
        let all = vec![(small, 'b'), (large, 'a'), (at(50.0, 5.0, 0.1), 'c')];
        let names =
            |share| pick(all.clone(), 0.7, share, 10).into_iter().map(|(_, name)| name).collect::<String>();
        assert_eq!((names(Share::OfBoth), names(Share::OfSmaller)), ("abc".to_owned(), "ac".to_owned()));
    }

    #[test]
    fn a_square_has_the_centre_and_the_longer_side() {
        let flat = Candidate { left: 0.0, top: 10.0, right: 20.0, bottom: 14.0, score: 1.0 };
        assert_eq!(flat.squared(), Candidate { left: 0.0, top: 2.0, right: 20.0, bottom: 22.0, score: 1.0 });
        let moved = flat.moved(&[0.1, 0.0, -0.1, 0.5], 20.0, 4.0);
        assert_eq!((moved.left, moved.right, moved.bottom), (2.0, 18.0, 16.0));
    }

    #[test]
    fn what_is_no_place_is_told() {
        assert!(at(0.0, 5.0, 0.5).is_sound());
        assert!(
            !at(f32::NAN, 5.0, 0.5).is_sound()
                && !at(1e9, 5.0, 0.5).is_sound()
                && !at(0.0, 0.0, 0.5).is_sound()
        );
    }
}
