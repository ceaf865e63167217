//! What lines make together: rows, paragraphs, headings, lists. Told by where the lines stand and how large they are, so
//! it is a guess; columns of a page are not told apart, and are read across.

use super::boxes::Quad;
use super::read::stands_alone;
use backplane_plugin::payload::ocr::Line;
use std::fmt::Write;

/// The upright frame of a line.
#[derive(Clone, Copy, Debug)]
struct Frame {
    left: f32,
    top: f32,
    bottom: f32,
    /// How high it is, across its direction.
    height: f32,
    /// How long, along it.
    length: f32,
}

impl Frame {
    fn of(quad: &Quad) -> Self {
        let reach = |axis: usize| {
            let sides = quad.iter().map(|corner| corner[axis]);
            sides.fold((f32::MAX, f32::MIN), |(low, high), side| (low.min(side), high.max(side)))
        };
        let length = |a: usize, b: usize| (quad[a][0] - quad[b][0]).hypot(quad[a][1] - quad[b][1]);
        let ((left, _), (top, bottom)) = (reach(0), reach(1));
        let (across, along) = (length(0, 3).max(length(1, 2)), length(0, 1).max(length(2, 3)));
        Self { left, top, bottom, height: across.min(along), length: across.max(along) }
    }

    /// How large its letters are: from its height, and from how long it is for what is written in it. Either alone says
    /// little, since a place reaches beyond its letters, the further the longer it is.
    fn size(&self, text: &str) -> f32 {
        let columns: usize = text.chars().map(|c| if stands_alone(c) { 2 } else { 1 }).sum();
        let column = (self.length - self.height / 2.0) / columns.max(1) as f32;
        (self.height * column.max(1.0)).sqrt()
    }

    /// Whether they stand in one row: the middle of each lies within the other, or nearly.
    fn beside(&self, other: &Self) -> bool {
        let shared = self.bottom.min(other.bottom) - self.top.max(other.top);
        0.5 * (self.bottom - self.top).min(other.bottom - other.top) < shared
    }
}

/// Brings lines into reading order: row by row, from left to right.
pub fn sort(lines: &mut Vec<(Quad, f32)>) {
    let frames: Vec<Frame> = lines.iter().map(|(quad, _)| Frame::of(quad)).collect();
    *lines = rows(&frames).into_iter().flatten().map(|line| lines[line]).collect();
}

/// Places of lines, row by row.
fn rows(frames: &[Frame]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..frames.len()).collect();
    let middle = |line: &usize| frames[*line].top + frames[*line].bottom;
    order.sort_by(|a, b| middle(a).total_cmp(&middle(b)));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for line in order {
        // A row is as high as its first line: else one that leans would draw the next row into its own.
        match rows.last_mut() {
            Some(row) if frames[row[0]].beside(&frames[line]) => row.push(line),
            _ => rows.push(vec![line]),
        }
    }
    for row in &mut rows {
        row.sort_by(|a, b| frames[*a].left.total_cmp(&frames[*b].left));
    }
    rows
}

/// A row of text.
struct Row {
    text: String,
    /// How large its smallest letters are.
    size: f32,
    /// Whether there is more room above it than between lines of one paragraph.
    apart: bool,
}

/// The rows of what was read, and how large letters usually are.
fn written(lines: &[Line]) -> (Vec<Row>, f32) {
    /// More room than this many times the height of a line parts two paragraphs. Places of lines reach beyond their
    /// letters, so that those of one paragraph nearly touch.
    const APART: f32 = 0.6;
    let lines: Vec<&Line> = lines.iter().filter(|line| !line.text.trim().is_empty()).collect();
    let frames: Vec<Frame> = lines.iter().map(|line| Frame::of(&line.corners)).collect();
    let middle = |mut sizes: Vec<f32>| {
        sizes.sort_by(f32::total_cmp);
        sizes.get(sizes.len() / 2).copied().unwrap_or_default()
    };
    let usual = middle(frames.iter().map(|frame| frame.height).collect());
    let sizes: Vec<f32> = frames.iter().zip(&lines).map(|(frame, line)| frame.size(&line.text)).collect();
    let mut bottom = None;
    let row = |row: Vec<usize>| {
        let of = |part: fn(&Frame) -> f32, choose: fn(f32, f32) -> f32| {
            row.iter().map(|line| part(&frames[*line])).reduce(choose).unwrap_or_default()
        };
        let texts: Vec<&str> = row.iter().map(|line| lines[*line].text.trim()).collect();
        let top = of(|frame| frame.top, f32::min);
        let apart = bottom.is_some_and(|bottom| APART * usual < top - bottom);
        bottom = Some(of(|frame| frame.bottom, f32::max));
        let size = row.iter().map(|line| sizes[*line]).reduce(f32::min).unwrap_or_default();
        Row { text: texts.join(" "), size, apart }
    };
    (rows(&frames).into_iter().map(row).collect(), middle(sizes.clone()))
}

/// As plain text: a row a line, an empty line between paragraphs.
pub fn text(lines: &[Line]) -> String {
    let mut text = String::new();
    for row in written(lines).0 {
        text.push_str(if text.is_empty() {
            ""
        } else if row.apart {
            "\n\n"
        } else {
            "\n"
        });
        text.push_str(&row.text);
    }
    text
}

/// As Markdown: rows of larger letters are headings, and signs that stand before the entries of a list make one.
pub fn markdown(lines: &[Line]) -> String {
    let (rows, usual) = written(lines);
    let mut out = String::new();
    let mut before = Kind::Text;
    for row in &rows {
        let (kind, text) = Kind::of(row, usual);
        let joined =
            matches!((before, kind), (Kind::Text | Kind::Item, Kind::Text) | (Kind::Item, Kind::Item));
        out.push_str(match (out.is_empty(), joined && !row.apart) {
            (true, _) => "",
            (_, true) => "\n",
            (_, false) => "\n\n",
        });
        let sign = match kind {
            Kind::Heading(level) => ["# ", "## "][level],
            Kind::Item => "- ",
            // What goes on with an entry of a list belongs to it.
            Kind::Text if joined && !row.apart && before == Kind::Item => "  ",
            Kind::Text => "",
        };
        let _ = write!(out, "{sign}{}", escaped(text));
        before = if sign == "  " { Kind::Item } else { kind };
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Item,
    Heading(usize),
}

impl Kind {
    fn of(row: &Row, usual: f32) -> (Self, &str) {
        /// How many times as large as usual the letters of a heading are, of the first level and of the second.
        const LARGER: [f32; 2] = [1.8, 1.35];
        const SIGNS: [char; 8] = ['•', '·', '●', '▪', '■', '◦', '–', '-'];
        if let Some(level) = LARGER.iter().position(|times| times * usual <= row.size) {
            return (Self::Heading(level), &row.text);
        }
        match row.text.strip_prefix(SIGNS) {
            // A minus before a figure is none of these signs.
            Some(entry)
                if entry.starts_with(char::is_whitespace) || entry.starts_with(char::is_alphabetic) =>
            {
                (Self::Item, entry.trim_start())
            }
            _ => (Self::Text, &row.text),
        }
    }
}

/// Text that Markdown shows as it is.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let sign = matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~');
        if sign || at == 0 && matches!(c, '#' | '+' | '-' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, left: f32, top: f32, height: f32) -> Line {
        // Letters are half as wide as high.
        let (right, bottom) = (left + height * (0.5 + 0.5 * text.chars().count() as f32), top + height);
        let corners = [[left, top], [right, top], [right, bottom], [left, bottom]];
        Line { text: text.to_owned(), score: 1.0, corners, ..Line::default() }
    }

    #[test]
    fn rows_are_read_across() {
        let lines =
            [line("below", 0.0, 40.0, 20.0), line("right", 200.0, 4.0, 20.0), line("left", 0.0, 8.0, 20.0)];
        assert_eq!(text(&lines), "left right\nbelow");
        let mut quads: Vec<_> = lines.iter().map(|line| (line.corners, 0.5)).collect();
        sort(&mut quads);
        assert_eq!(
            quads.iter().map(|(quad, _)| quad[0]).collect::<Vec<_>>(),
            [[0.0, 8.0], [200.0, 4.0], [0.0, 40.0]]
        );
    }

    #[test]
    fn room_parts_paragraphs() {
        let lines =
            [line("one", 0.0, 0.0, 20.0), line("two", 0.0, 24.0, 20.0), line("three", 0.0, 70.0, 20.0)];
        assert_eq!(text(&lines), "one\ntwo\n\nthree");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn headings_are_higher_and_lists_have_signs() {
        let lines = [
            line("A title", 0.0, 0.0, 40.0),
            line("A part", 0.0, 50.0, 28.0),
            line("Some *text*", 0.0, 90.0, 20.0),
            line("• first,", 0.0, 114.0, 20.0),
            line("and on", 0.0, 138.0, 20.0),
            line("•second", 0.0, 162.0, 20.0),
            line("-5 degrees", 0.0, 200.0, 20.0),
        ];
        assert_eq!(
            markdown(&lines),
            "# A title\n\n## A part\n\nSome \\*text\\*\n\n- first,\n  and on\n- second\n\n\\-5 degrees"
        );
    }
}
