//! Markdown: what pulldown-cmark calls text is translated, every other byte is kept as it is in the source.

use super::html;
use super::inline::{Inline, Kept, Piece, Place, Unit};
use super::plain;
use super::spans::Rules;
use pulldown_cmark::{Event, LinkType, Options, Parser, Tag, TagEnd};
use std::ops::Range;

/// What GitHub shows, and a head of YAML or TOML.
const OPTIONS: Options = Options::ENABLE_TABLES
    .union(Options::ENABLE_FOOTNOTES)
    .union(Options::ENABLE_STRIKETHROUGH)
    .union(Options::ENABLE_TASKLISTS)
    .union(Options::ENABLE_HEADING_ATTRIBUTES)
    .union(Options::ENABLE_YAML_STYLE_METADATA_BLOCKS)
    .union(Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS)
    .union(Options::ENABLE_MATH)
    .union(Options::ENABLE_GFM);

/// In a text these may begin or end something; the text of a document that has them unharmed keeps them where they are.
const SPECIAL: &str = "\\`*_[]<~";
/// In some places these, too.
const SOMETIMES: &str = "$|#>";

pub fn units(text: &str, rules: &Rules, over: &dyn Fn() -> bool) -> Vec<Unit> {
    let mut walk = Walk { text, rules, units: Vec::new(), unit: Unit::default(), at: 0, waits: None };
    // What is within an element that is kept whole, or read by another parser.
    let mut skipped = 0_usize;
    let mut html: Option<Range<usize>> = None;
    for (event, range) in Parser::new_ext(text, OPTIONS).into_offset_iter() {
        if over() {
            break;
        }
        if skipped > 0 {
            match event {
                Event::Start(_) => skipped += 1,
                Event::End(_) => skipped -= 1,
                _ => {}
            }
            if skipped == 0
                && let Some(block) = html.take()
            {
                for unit in html::units(&text[block.clone()], block.start, rules, over) {
                    walk.adopt(unit);
                }
            }
            continue;
        }
        walk.settle(&event, &range);
        match event {
            Event::Start(Tag::HtmlBlock) => {
                walk.flush();
                (html, skipped) = (Some(range), 1);
            }
            Event::Start(Tag::CodeBlock(_) | Tag::MetadataBlock(_)) => {
                walk.flush();
                skipped = 1;
            }
            Event::Start(Tag::Link { link_type: LinkType::Autolink | LinkType::Email, .. }) => {
                walk.keep(range, Place::Free);
                skipped = 1;
            }
            Event::Start(tag) if is_inline(tag.to_end()) => walk.wait(Waits::Tag, range.start),
            Event::End(tag) if is_inline(tag) => walk.close(range.end),
            Event::Start(_) | Event::End(_) | Event::Rule | Event::TaskListMarker(_) | Event::Html(_) => {
                walk.flush()
            }
            Event::Text(shown) => walk.text(&shown, range),
            Event::Code(_) | Event::InlineMath(_) | Event::DisplayMath(_) => walk.keep(range, Place::Free),
            Event::FootnoteReference(_) => walk.keep(range, Place::Fixed),
            Event::InlineHtml(_) => {
                let place = html::place(&text[range.clone()]);
                walk.keep(range, place);
            }
            Event::SoftBreak => {
                walk.wait(Waits::Wrap, walk.at.min(range.start).max(walk.start_or(range.start)))
            }
            Event::HardBreak => {
                walk.wait(Waits::Break, walk.at.min(range.start).max(walk.start_or(range.start)))
            }
        }
    }
    walk.flush();
    walk.units
}

fn is_inline(tag: TagEnd) -> bool {
    matches!(
        tag,
        TagEnd::Emphasis
            | TagEnd::Strong
            | TagEnd::Strikethrough
            | TagEnd::Superscript
            | TagEnd::Subscript
            | TagEnd::Link
            | TagEnd::Image
    )
}

struct Walk<'a> {
    text: &'a str,
    rules: &'a Rules,
    units: Vec<Unit>,
    unit: Unit,
    /// Up to here the document is in the unit.
    at: usize,
    /// What begins where the last event did, and ends where the next one begins.
    waits: Option<(Waits, usize)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Waits {
    /// The first half of an element: `**`, `[`.
    Tag,
    /// The end of a line, with what the next one begins with.
    Wrap,
    /// The same where the reader sees it.
    Break,
}

impl Walk<'_> {
    /// Where the unit begins, were it to begin here.
    fn start_or(&self, here: usize) -> usize {
        if self.unit.inlines.is_empty() { here } else { 0 }
    }

    /// Begins something whose end only the next event tells.
    fn wait(&mut self, what: Waits, start: usize) {
        if what == Waits::Tag {
            self.gap(start);
        }
        self.waits = Some((what, start));
    }

    /// Ends what waits for this event.
    fn settle(&mut self, event: &Event<'_>, range: &Range<usize>) {
        let Some((what, start)) = self.waits.take() else { return };
        match (what, event) {
            // Nothing is in it: `[](address)`.
            (Waits::Tag, Event::End(tag)) if is_inline(*tag) => {
                self.push(start..range.end, |source| Piece::Kept(Kept::new(source, Place::Fixed)));
            }
            (Waits::Tag, _) => {
                self.push(start..range.start, |source| Piece::Kept(Kept::new(source, Place::Open)));
            }
            (Waits::Wrap | Waits::Break, _) => {
                // A backslash there is the next text's.
                let end =
                    if self.text[..range.start].ends_with('\\') { range.start - 1 } else { range.start };
                if what == Waits::Wrap {
                    self.push(start..end.max(start), |source| Piece::Wrap(source.to_owned()));
                } else {
                    self.push(start..end.max(start), |source| Piece::Kept(Kept::new(source, Place::Fixed)));
                }
            }
        }
    }

    fn push(&mut self, range: Range<usize>, piece: impl FnOnce(&str) -> Piece) {
        let piece = piece(&self.text[range.clone()]);
        self.at = range.end;
        self.unit.push(range, piece);
    }

    /// What no event tells of is kept.
    fn gap(&mut self, to: usize) {
        if self.unit.inlines.is_empty() {
            self.at = to;
        } else if self.at < to {
            let range = self.at..to;
            if self.text[range.clone()].trim().is_empty() {
                self.push(range, |source| Piece::Text(source.to_owned()));
            } else {
                self.push(range, |source| Piece::Kept(Kept::new(source, Place::Fixed)));
            }
        }
    }

    fn keep(&mut self, range: Range<usize>, place: Place) {
        self.gap(range.start);
        self.push(range, |source| Piece::Kept(Kept::new(source, place)));
    }

    fn close(&mut self, end: usize) {
        // An element with nothing in it is whole already.
        if self.at < end {
            self.push(self.at..end, |source| Piece::Kept(Kept::new(source, Place::Close)));
        }
    }

    fn text(&mut self, shown: &str, range: Range<usize>) {
        // `\*`: the backslash is in no event, and what it protects begins this one.
        let escaped = range.start > 0
            && self.text[..range.start].ends_with('\\')
            && (self.unit.inlines.is_empty() || self.at < range.start);
        let mut range = range;
        if escaped {
            let first = self.text[range.start..].chars().next().map_or(0, char::len_utf8);
            self.gap(range.start - 1);
            self.push(range.start - 1..range.start + first, |source| {
                Piece::Kept(Kept::new(source, Place::Fixed))
            });
            range.start += first;
        } else {
            self.gap(range.start);
            if self.text[range.clone()] != *shown {
                // An entity.
                self.push(range, |source| Piece::Kept(Kept::new(source, Place::Fixed)));
                return;
            }
        }
        let mut words = Unit::default();
        plain::push_words(&mut words, self.text, range.clone(), self.rules);
        for inline in words.inlines {
            match inline.piece {
                Piece::Text(_) => self.words(inline.range),
                piece => self.unit.push(inline.range, piece),
            }
        }
        self.at = range.end;
    }

    /// A unit of another parser. What Markdown makes more of is kept in it, too.
    fn adopt(&mut self, unit: Unit) {
        for Inline { range, piece } in unit.inlines {
            match piece {
                Piece::Text(words) if self.text[range.clone()] == words => self.words(range),
                piece => self.unit.push(range, piece),
            }
        }
        self.flush();
    }

    /// Words, in which single signs may mean more than themselves elsewhere.
    fn words(&mut self, range: Range<usize>) {
        let mut at = range.start;
        for (place, sign) in self.text[range.clone()].char_indices() {
            if SPECIAL.contains(sign) {
                let here = range.start + place;
                self.unit.push(at..here, Piece::Text(self.text[at..here].to_owned()));
                at = here + sign.len_utf8();
                let kept = Kept::new(&self.text[here..at], Place::Fixed);
                self.unit.push(here..at, Piece::Kept(kept));
            }
        }
        self.unit.push(at..range.end, Piece::Text(self.text[at..range.end].to_owned()));
    }

    fn flush(&mut self) {
        self.waits = None;
        self.units.extend(std::mem::take(&mut self.unit).settled());
    }
}

/// Words of an engine without the signs that could mean more than themselves: those of the source are kept apart from it.
pub fn tame(words: &str, source: &str) -> String {
    let harmless =
        |sign: &char| !SPECIAL.contains(*sign) && (!SOMETIMES.contains(*sign) || source.contains(*sign));
    words.chars().filter(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts in parentheses, what is kept in brackets, lines' ends as arrows.
    fn shape(text: &str) -> Vec<String> {
        let show = |unit: &Unit| {
            unit.inlines
                .iter()
                .map(|inline| match &inline.piece {
                    Piece::Text(text) => format!("({text})"),
                    Piece::Kept(kept) => format!("«{}»", kept.source),
                    Piece::Wrap(_) => "↵".to_owned(),
                })
                .collect::<String>()
        };
        units(text, &Rules::default(), &|| false).iter().map(show).collect()
    }

    #[test]
    fn elements_are_taken_apart() {
        for (text, expected) in [
            ("# Head *of* it {#id}\n", vec!["(Head )«*»(of)«*»( it)"]),
            (
                "See [the **docs**](https://x.y \"t\").\n",
                vec!["(See )«[»(the )«**»(docs)«**»«](https://x.y \"t\")»(.)"],
            ),
            ("Use `x` and ![alt](a.png)\n", vec!["(Use )«`x`»( and )«![»(alt)«](a.png)»"]),
            ("> one\n> two\n", vec!["(one)↵(two)"]),
            ("- a\n- [ ] b\n  1. c\n", vec!["(a)", "(b)", "(c)"]),
            ("| a | b |\n|---|---|\n| c | `d` e |\n", vec!["(a)", "(b)", "(c)", "«`d`»( e)"]),
            ("a \\* b &amp; c\n", vec!["(a )«\\*»( b )«&amp;»( c)"]),
            ("```sh\nkeep me\n```\n\n    and me\n", vec![]),
            ("---\ntitle: x\n---\n\nText\n", vec!["(Text)"]),
            ("<https://a.b> and <b>bold</b>\n", vec!["«<https://a.b>»( and )«<b>»(bold)«</b>»"]),
            ("<div>\n<p>Hello</p>\n</div>\n", vec!["(Hello)"]),
            (
                "[ref]: https://a.b \"t\"\n\nSee [it][ref][^1].\n\n[^1]: Note\n",
                vec!["(See )«[»(it)«][ref]»«[^1]»(.)", "(Note)"],
            ),
            ("$x^2$ is {name}\n", vec!["«$x^2$»( is )«{name}»"]),
        ] {
            assert_eq!(shape(text), expected, "{text}");
        }
    }

    #[test]
    fn signs_of_an_engine_are_left_out() {
        assert_eq!(tame("a **b** `c` $5 # [d](e)", "costs $5"), "a b c $5  d(e)");
    }
}
