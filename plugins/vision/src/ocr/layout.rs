//! What lines make together: columns, rows, paragraphs, headings, lists. Told by where the lines stand and how large they
//! are, so it is a guess.

use super::boxes::Quad;
use super::read::stands_alone;
use backplane_plugin::payload::ocr::Line;
use std::fmt::Write;
use std::ops::Range;

/// The upright frame of a line.
#[derive(Clone, Copy, Debug)]
struct Frame {
    left: f32,
    right: f32,
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
        let ((left, right), (top, bottom)) = (reach(0), reach(1));
        let (across, along) = (length(0, 3).max(length(1, 2)), length(0, 1).max(length(2, 3)));
        Self { left, right, top, bottom, height: across.min(along), length: across.max(along) }
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

/// Brings lines into reading order: row by row, from left to right, and one column after the other.
pub fn sort(lines: &mut Vec<(Quad, f32)>) {
    let frames: Vec<Frame> = lines.iter().map(|(quad, _)| Frame::of(quad)).collect();
    *lines = rows(&frames).into_iter().flatten().map(|line| lines[line]).collect();
}

/// Places of lines, row by row, one column after the other.
fn rows(frames: &[Frame]) -> Vec<Vec<usize>> {
    in_columns(frames, (0..frames.len()).collect())
}

fn in_columns(frames: &[Frame], lines: Vec<usize>) -> Vec<Vec<usize>> {
    let rows = across(frames, lines);
    let Some((columns, x)) = gutter(frames, &rows) else { return rows };
    let is_left = |line: &usize| frames[*line].right <= x;
    let (left, right): (Vec<usize>, _) =
        rows[columns.clone()].iter().flatten().partition(|line| is_left(line));
    let (above, below) = (&rows[..columns.start], &rows[columns.end..]);
    [above, &in_columns(frames, left), &in_columns(frames, right), below].concat()
}

/// The rows that have a gap between two columns, and where it begins: no line crosses it over most of the height. Columns are
/// of running text: the cells of a table, which are short, are read across.
fn gutter(frames: &[Frame], rows: &[Vec<usize>]) -> Option<(Range<usize>, f32)> {
    /// Of a column: so many lines at the least, and how many times as long as high they usually are.
    const LINES: usize = 4;
    const LONG: f32 = 8.0;
    /// How much of the height the gap takes at the least, and how wide it is against the height of a line.
    const MOST: f32 = 0.5;
    const WIDE: f32 = 0.4;
    let all: Vec<&Frame> = rows.iter().flatten().map(|line| &frames[*line]).collect();
    let usual = middle(all.iter().map(|frame| frame.height).collect());
    let height = |frames: &[&Frame]| {
        let top = frames.iter().map(|frame| frame.top).fold(f32::MAX, f32::min);
        frames.iter().map(|frame| frame.bottom).fold(f32::MIN, f32::max) - top
    };
    let is_column = |frames: &[&Frame]| {
        LINES <= frames.len()
            && LONG <= middle(frames.iter().map(|frame| frame.length / frame.height).collect())
    };
    // A gap ends where the lines of the right column begin.
    let mut ends: Vec<f32> = all.iter().map(|frame| frame.left).collect();
    ends.sort_by(f32::total_cmp);
    ends.dedup_by(|end, first| *end - *first < WIDE * usual);
    let within = |end: f32| {
        let start = end - WIDE * usual;
        let crossed =
            |row: &Vec<usize>| row.iter().any(|line| frames[*line].left < end && start < frames[*line].right);
        let mut runs = Vec::new();
        let mut first = 0;
        for (at, row) in rows.iter().enumerate() {
            if crossed(row) {
                runs.push(first..at);
                first = at + 1;
            }
        }
        runs.push(first..rows.len());
        runs.into_iter().map(move |run| (run, start))
    };
    let columns = ends.into_iter().flat_map(within).filter_map(|(run, x)| {
        let lines = || rows[run.clone()].iter().flatten().map(|line| &frames[*line]);
        let (left, right): (Vec<&Frame>, Vec<&Frame>) = lines().partition(|frame| frame.right <= x);
        let shared = height(&left).min(height(&right));
        (is_column(&left) && is_column(&right) && MOST * height(&all) <= shared).then_some((shared, run, x))
    });
    columns.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, run, x)| (run, x))
}

/// The one in the middle by size.
fn middle(mut sizes: Vec<f32>) -> f32 {
    sizes.sort_by(f32::total_cmp);
    sizes.get(sizes.len() / 2).copied().unwrap_or_default()
}

/// Places of these lines, row by row across the page.
fn across(frames: &[Frame], mut order: Vec<usize>) -> Vec<Vec<usize>> {
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
    let usual = middle(frames.iter().map(|frame| frame.height).collect());
    let sizes: Vec<f32> = frames.iter().zip(&lines).map(|(frame, line)| frame.size(&line.text)).collect();
    let mut bottom = None;
    let row = |row: Vec<usize>| {
        let of = |part: fn(&Frame) -> f32, choose: fn(f32, f32) -> f32| {
            row.iter().map(|line| part(&frames[*line])).reduce(choose).unwrap_or_default()
        };
        let texts: Vec<&str> = row.iter().map(|line| lines[*line].text.trim()).collect();
        let top = of(|frame| frame.top, f32::min);
        // What stands higher than the row before is another column's.
        let apart = bottom.is_some_and(|bottom| APART * usual < top - bottom || top < bottom - usual);
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

    /// Lines of running text, the last one short, from this place on.
    fn column(name: char, left: f32, top: f32, rows: usize) -> impl Iterator<Item = Line> {
        (0..rows).map(move |row| {
            let words = if row + 1 < rows { " goes on and on" } else { " ends" };
            // Columns are not set line by line.
            line(&format!("{name}{row}{words}"), left, top + 24.0 * row as f32, 20.0)
        })
    }

    fn begins(lines: &[Line]) -> String {
        let text = text(lines);
        let words = text.split('\n').map(|row| row.split(' ').next().unwrap());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn columns_are_read_one_after_the_other() {
        let title = || line("A title over the whole of the page, from end to end", 0.0, 0.0, 24.0);
        let foot = || line("A foot under the whole of the page, from end to end", 0.0, 240.0, 20.0);
        let page = |columns: Vec<Line>| [vec![foot()], columns, vec![title()]].concat();
        let two = column('b', 240.0, 47.0, 7).chain(column('a', 0.0, 40.0, 8)).collect();
        assert_eq!(begins(&page(two)), "A  a0 a1 a2 a3 a4 a5 a6 a7  b0 b1 b2 b3 b4 b5 b6  A");
        let three =
            column('c', 480.0, 40.0, 5).chain(column('b', 240.0, 40.0, 6)).chain(column('a', 0.0, 40.0, 6));
        assert_eq!(
            begins(&three.collect::<Vec<_>>()),
            "a0 a1 a2 a3 a4 a5  b0 b1 b2 b3 b4 b5  c0 c1 c2 c3 c4"
        );
    }

    #[test]
    fn tables_are_read_across() {
        let cells = |row: usize| {
            let top = 24.0 * row as f32;
            [
                line(&format!("{row} a thing that was bought"), 0.0, top, 20.0),
                line("EUR 144.50", 400.0, top, 20.0),
            ]
        };
        let table: Vec<Line> = (0..8).flat_map(cells).collect();
        assert!(
            text(&table).starts_with("0 a thing that was bought EUR 144.50\n1 a thing"),
            "{}",
            text(&table)
        );
        // Nor does a gap make columns that a few rows have by chance.
        let few: Vec<Line> = column('a', 0.0, 0.0, 3).chain(column('b', 240.0, 0.0, 3)).collect();
        assert_eq!(begins(&few), "a0 a1 a2");
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
