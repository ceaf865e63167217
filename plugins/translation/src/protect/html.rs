//! HTML: what is between tags is translated. Tags are read by html5gum; every byte of them is kept as it is in the source.

use super::inline::{Kept, Piece, Place, Unit};
use super::plain;
use super::spans::Rules;
use html5gum::emitters::default::{DefaultEmitter, StartTag};
use html5gum::{Token, Tokenizer};
use std::ops::Range;

/// Elements that are a part of a sentence. All others end it.
const INLINE: &[&str] = &[
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "br", "cite", "del", "dfn", "em", "font", "i", "img",
    "ins", "label", "mark", "q", "rp", "rt", "ruby", "s", "small", "span", "strike", "strong", "sub", "sup",
    "time", "tt", "u", "wbr",
];
/// Elements without an end.
const VOID: &[&str] = &[
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
];
/// Elements that are kept with all that is in them.
const KEPT: &[&str] = &[
    "code",
    "kbd",
    "samp",
    "var",
    "pre",
    "script",
    "style",
    "svg",
    "math",
    "textarea",
    "template",
    "noscript",
    "iframe",
    "object",
    "xmp",
    "plaintext",
    "noembed",
    "noframes",
];
/// Of these, those that stand in a sentence.
const KEPT_INLINE: &[&str] = &["code", "kbd", "samp", "var"];

/// What is one space to the reader.
const BLANK: [char; 5] = [' ', '\t', '\n', '\r', '\u{c}'];

/// A tag, a comment or the like.
struct Mark {
    range: Range<usize>,
    kind: Kind,
}

enum Kind {
    Start { name: String, kept: bool, open: bool },
    End { name: String },
    Comment,
    Doctype,
}

/// The units of a text that stands `offset` bytes into its document.
pub fn units(text: &str, offset: usize, rules: &Rules, over: &dyn Fn() -> bool) -> Vec<Unit> {
    let mut walk = Walk { text, offset, rules, units: Vec::new(), unit: Unit::default() };
    let mut at = 0;
    // An element that is kept: its name, how many of that name are open, where it began, whether it stands in a sentence.
    let mut kept: Option<(String, usize, usize, bool)> = None;
    for Mark { range, kind } in marks(text) {
        if over() {
            break;
        }
        if let Some((name, depth, start, inline)) = &mut kept {
            match &kind {
                Kind::Start { name: other, open: true, .. } if other == name => *depth += 1,
                Kind::End { name: other } if other == name => *depth -= 1,
                _ => {}
            }
            if *depth == 0 {
                if *inline {
                    walk.keep(*start..range.end, Place::Fixed);
                }
                at = range.end;
                kept = None;
            }
            continue;
        }
        walk.words(at..range.start);
        at = range.end;
        match kind {
            Kind::Start { name, kept: true, open: true } => {
                let inline = KEPT_INLINE.contains(&&*name) || INLINE.contains(&&*name);
                if !inline {
                    walk.flush();
                }
                kept = Some((name, 1, range.start, inline));
            }
            Kind::Start { name, open, .. } if INLINE.contains(&&*name) => {
                walk.keep(range, if open { Place::Open } else { Place::Fixed });
            }
            Kind::End { name } if INLINE.contains(&&*name) => walk.keep(range, Place::Close),
            Kind::Comment => walk.keep(range, Place::Fixed),
            Kind::Start { .. } | Kind::End { .. } | Kind::Doctype => walk.flush(),
        }
    }
    match kept {
        // Never ended: all that follows is in it.
        Some((_, _, start, true)) => walk.keep(start..text.len(), Place::Fixed),
        Some(_) => {}
        None => walk.words(at..text.len()),
    }
    walk.flush();
    walk.units
}

/// Where a tag in a text of Markdown may stand.
pub fn place(tag: &str) -> Place {
    match marks(tag).into_iter().next().map(|mark| mark.kind) {
        Some(Kind::Start { open: true, .. }) => Place::Open,
        Some(Kind::End { .. }) => Place::Close,
        _ => Place::Fixed,
    }
}

fn marks(text: &str) -> Vec<Mark> {
    let mut emitter = DefaultEmitter::<usize>::new_with_span();
    // So that what looks like a tag in a script is none.
    emitter.naively_switch_states(true);
    let mut marks: Vec<Mark> = Vec::new();
    let mut at = 0;
    for token in Tokenizer::new_with_emitter(text, emitter) {
        let Ok(token) = token;
        let (span, kind) = match token {
            Token::StartTag(tag) => {
                let name = String::from_utf8_lossy(&tag.name).into_owned();
                let kept = KEPT.contains(&&*name) || is_untranslated(&tag);
                let open = !VOID.contains(&&*name) && !tag.self_closing;
                (tag.span, Kind::Start { name, kept, open })
            }
            Token::EndTag(tag) => {
                (tag.span, Kind::End { name: String::from_utf8_lossy(&tag.name).into_owned() })
            }
            Token::Comment(comment) => (comment.span, Kind::Comment),
            Token::Doctype(doctype) => (doctype.span, Kind::Doctype),
            Token::String(_) | Token::Error(_) => continue,
        };
        let range = span.start.min(text.len())..span.end.min(text.len());
        let whole = text.is_char_boundary(range.start) && text.is_char_boundary(range.end);
        if whole && at <= range.start && range.start < range.end {
            at = range.end;
            marks.push(Mark { range, kind });
        }
    }
    marks
}

/// `translate="no"`, or the class that translators know.
fn is_untranslated(tag: &StartTag<usize>) -> bool {
    let is = |name: &[u8], wanted: &str| {
        let found = tag.attributes.iter().find(|(attribute, _)| attribute.as_slice() == name);
        found.is_some_and(|(_, value)| {
            String::from_utf8_lossy(value)
                .split_ascii_whitespace()
                .any(|word| word.eq_ignore_ascii_case(wanted))
        })
    };
    is(b"translate", "no") || is(b"class", "notranslate")
}

struct Walk<'a> {
    text: &'a str,
    offset: usize,
    rules: &'a Rules,
    units: Vec<Unit>,
    unit: Unit,
}

impl Walk<'_> {
    fn push(&mut self, range: Range<usize>, piece: Piece) {
        self.unit.push(range.start + self.offset..range.end + self.offset, piece);
    }

    fn keep(&mut self, range: Range<usize>, place: Place) {
        let kept = Kept::new(&self.text[range.clone()], place);
        self.push(range, Piece::Kept(kept));
    }

    /// What is between two tags. White space with a line's end in it is one space to the reader.
    fn words(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let rest = &self.text[at..range.end];
            let line =
                rest.find(['\n', '\r']).map_or(rest.len(), |end| rest[..end].trim_end_matches(BLANK).len());
            let mut words = Unit::default();
            plain::push_words(&mut words, self.text, at..at + line, self.rules);
            for inline in words.inlines {
                match inline.piece {
                    Piece::Text(_) => self.plain(inline.range),
                    piece => self.push(inline.range, piece),
                }
            }
            let blank = rest.len() - line - rest[line..].trim_start_matches(BLANK).len();
            let end = at + line..at + line + blank;
            self.push(end.clone(), Piece::Wrap(self.text[end].to_owned()));
            at += line + blank;
        }
    }

    /// Words, in which a `<` or `&` that begins nothing keeps its place.
    fn plain(&mut self, range: Range<usize>) {
        let mut at = range.start;
        for (place, _) in self.text[range.clone()].match_indices(['<', '&']) {
            let here = range.start + place;
            self.push(at..here, Piece::Text(self.text[at..here].to_owned()));
            self.keep(here..here + 1, Place::Fixed);
            at = here + 1;
        }
        self.push(at..range.end, Piece::Text(self.text[at..range.end].to_owned()));
    }

    fn flush(&mut self) {
        self.units.extend(std::mem::take(&mut self.unit).settled());
    }
}

/// Whether words of an engine would be more than words here.
pub fn is_harmful(words: &str) -> bool {
    words.contains(['<', '&'])
}

#[cfg(test)]
mod tests {
    use super::*;

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
        units(text, 0, &Rules::default(), &|| false).iter().map(show).collect()
    }

    #[test]
    fn elements_are_taken_apart() {
        for (text, expected) in [
            ("<p>Hello <b>big</b> world</p>", vec!["(Hello )«<b>»(big)«</b>»( world)"]),
            ("<ul>\n  <li>one</li>\n  <li>two<br>three</li>\n</ul>", vec!["(one)", "(two)«<br>»(three)"]),
            ("<p>a\n   b</p>", vec!["(a)↵(b)"]),
            ("<script>if (a < b) { x('<p>no</p>') }</script><p>yes</p>", vec!["(yes)"]),
            (
                "<p>Run <code>make <b>all</b></code> now</p>",
                vec!["(Run )«<code>make <b>all</b></code>»( now)"],
            ),
            (
                "<p>By <span translate=no>Ann <span>B</span></span>.</p>",
                vec!["(By )«<span translate=no>Ann <span>B</span></span>»(.)"],
            ),
            (
                "<!doctype html><!-- note --><h1 class='a>b'>T&nbsp;x</h1>",
                vec!["«<!-- note -->»", "(T)«&nbsp;»(x)"],
            ),
            ("<p>unclosed <b>bold<p>next", vec!["(unclosed )«<b>»(bold)", "(next)"]),
            ("1 < 2 and a&b", vec!["(1 )«<»( 2 and a)«&»(b)"]),
        ] {
            assert_eq!(shape(text), expected, "{text}");
        }
    }
}
