//! Whatever an engine does, nothing that is kept comes to harm.

use super::document::{Outcome, Rendering, translate};
use super::inline::Piece;
use super::spans::{self, Rules};
use super::weave::Part;
use super::{Bone, Format};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What an engine does to a sentence.
#[derive(Clone, Debug)]
enum Deed {
    Drop(usize),
    Double(usize),
    Swap(usize, usize),
    Add(usize),
    Say(String),
    Upper,
    Reverse,
    Empty,
    Honest,
}

fn deed() -> impl Strategy<Value = Deed> {
    let nasty = prop_oneof![
        "[a-zäж猫 *_`<>#|$&~\\\\\\[\\]{}%\n\r0-9.:-]{0,24}",
        prop::sample::select(vec![
            "{x}",
            "<b>",
            "</p>",
            "**bold**",
            "`code`",
            "https://evil.example/",
            "%s",
            "- item",
            "1. item",
            "# head",
            "\n\n",
            "⟦0⟧",
            "⟦1⟧",
            "&amp;",
            "| a |",
            "a\u{2028}b",
            "[x](y)",
            "<!--",
            "```",
            "---",
            "5 5 5",
        ])
        .prop_map(str::to_owned),
    ];
    prop_oneof![
        any::<usize>().prop_map(Deed::Drop),
        any::<usize>().prop_map(Deed::Double),
        (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Deed::Swap(one, other)),
        any::<usize>().prop_map(Deed::Add),
        nasty.prop_map(Deed::Say),
        Just(Deed::Upper),
        Just(Deed::Reverse),
        Just(Deed::Empty),
        Just(Deed::Honest),
    ]
}

impl Deed {
    fn to(&self, sentence: &[Part]) -> Vec<Part> {
        let mut parts = sentence.to_vec();
        let at = |index: usize| index % sentence.len().max(1);
        match self {
            Deed::Drop(index) => {
                parts.remove(at(*index));
            }
            Deed::Double(index) => parts.push(sentence[at(*index)].clone()),
            Deed::Swap(one, other) => parts.swap(at(*one), at(*other)),
            Deed::Add(mark) => parts.push(Part::Mark(mark % 9)),
            Deed::Say(words) => parts.push(Part::Text(words.clone())),
            Deed::Upper => {
                for part in &mut parts {
                    if let Part::Text(text) = part {
                        *text = text.to_uppercase();
                    }
                }
            }
            Deed::Reverse => parts.reverse(),
            Deed::Empty => parts.clear(),
            Deed::Honest => {}
        }
        parts
    }
}

/// A document of pieces that are likely to break.
fn document(format: Format) -> impl Strategy<Value = String> {
    let common = vec![
        "Hello world. ",
        "The cat, ",
        "{name}",
        " {{ x }} ",
        " %s ",
        "%d",
        " https://example.com/a?b=c. ",
        "me@example.org ",
        "1,234.5 ",
        "2026-11-21",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "ünïcödé ",
        "猫が好き。",
        "a_b_c",
        " 5 * 3 ",
        "{n, plural, other {#}}",
        "100% ",
        "Mr. X said: ",
        "&",
        "<",
        ">",
        "\r\n",
        "&nbsp;",
        "⟦0⟧",
    ];
    let markdown = vec![
        "# Head\n",
        "**bold** ",
        "*it* ",
        "`code` ",
        "[link](https://a.b \"t\") ",
        "![alt](x.png) ",
        "- item\n",
        "1. one\n",
        "> quote\n",
        "```\ncode\n```\n",
        "| a | b |\n|---|---|\n| c | d |\n",
        "<b>x</b> ",
        "<https://a.b>",
        "\\* ",
        "[^1] ",
        "---\n",
        "    code\n",
        "[r]: u\n",
        "**",
        "_",
        "[",
        "](",
        "$x$ ",
        "- [ ] todo\n",
        "<div>\nhi\n</div>\n",
        "line\nline\n> more\n",
        "  \n",
    ];
    let html = vec![
        "<p>",
        "</p>",
        "<b>",
        "</b>",
        "<a href='x>y'>",
        "</a>",
        "<br>",
        "<img src=x>",
        "<code>let x</code>",
        "<pre>\n a\n</pre>",
        "<script>1<2</script>",
        "<!-- c -->",
        "<span translate=no>Brand</span>",
        "<li>",
        "<table><tr><td>",
        "&lt;",
        "&eacute;",
        "</i>",
        "<i>",
        "<!doctype html>",
        "<textarea>x",
        "<",
    ];
    let pieces = match format {
        Format::Text => common,
        Format::Markdown => [common, markdown].concat(),
        Format::Html | Format::Subtitles => [common, html].concat(),
    };
    prop::collection::vec(prop::sample::select(pieces), 0..24).prop_map(|pieces| pieces.concat())
}

/// What is kept, what is said otherwise, and how long a sentence may be.
#[derive(Clone, Debug)]
struct Terms {
    keep: Vec<String>,
    glossary: Vec<(String, String)>,
    longest: usize,
}

impl Terms {
    fn none() -> Self {
        Self { keep: Vec::new(), glossary: Vec::new(), longest: 200 }
    }

    fn rules(&self) -> Rules {
        Rules::new(&self.keep, &self.glossary).unwrap()
    }
}

fn terms() -> impl Strategy<Value = Terms> {
    let keep = prop::collection::vec(prop::sample::select(vec!["World", "x", "cat", "quote", "猫"]), 0..3);
    let glossary = prop::collection::vec(
        prop::sample::select(vec![
            ("hello", "Qué tal"),
            ("the cat", "猫"),
            ("said", "dijo"),
            ("好", "gut"),
            ("x", "y"),
        ]),
        0..4,
    );
    let owned = |text: &str| text.to_owned();
    (keep, glossary, 1..200_usize).prop_map(move |(keep, glossary, longest)| Terms {
        keep: keep.into_iter().map(owned).collect(),
        glossary: glossary.into_iter().map(|(from, to)| (owned(from), owned(to))).collect(),
        longest,
    })
}

fn run(text: &str, format: Format, terms: &Terms, deeds: &[Deed]) -> Outcome {
    let mut turn = 0;
    let outcome = translate(text, format, &terms.rules(), terms.longest, &|| Ok(()), |sentences| {
        let answers = sentences.iter().map(|sentence| {
            turn += 1;
            Rendering { parts: deeds[turn % deeds.len()].to(sentence), confidence: 0.9 }
        });
        let mut answers: Vec<_> = answers.collect();
        if deeds.len().is_multiple_of(3) {
            answers.pop();
        }
        Ok::<_, ()>(answers)
    });
    outcome.unwrap()
}

/// How often each number is in the words of a text, outside of what is kept.
fn numbers(text: &str, format: Format) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for inline in format.units(text, &Rules::default(), &|| false).into_iter().flat_map(|unit| unit.inlines) {
        if let Piece::Text(words) = inline.piece {
            for number in spans::numbers(&words) {
                *counts.entry(number.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

/// The terms of a text, as they are to be in its translation, or as they are; sorted.
fn kept_terms(text: &str, format: Format, rules: &Rules) -> Vec<[String; 2]> {
    let always = |source: &str| !spans::scan(source, &Rules::default()).is_empty();
    let units = format.units(text, rules, &|| false);
    let mut terms: Vec<_> = units
        .into_iter()
        .flat_map(|unit| unit.inlines)
        .filter_map(|inline| match inline.piece {
            Piece::Kept(kept)
                if kept.source.chars().all(|c| c.is_alphabetic() || c == ' ') && !always(&kept.source) =>
            {
                Some([kept.source, kept.target])
            }
            _ => None,
        })
        .collect();
    terms.sort();
    terms
}

fn check(text: &str, format: Format, terms: &Terms, deeds: &[Deed]) -> Result<(), TestCaseError> {
    let outcome = run(text, format, terms, deeds);
    let kept = kept_terms(text, format, &terms.rules());
    for term in &kept {
        let wanted = kept.iter().filter(|other| *other == term).count();
        let [source, target] = term;
        let found = outcome.text.matches(&**target).count()
            + if source == target { 0 } else { outcome.text.matches(&**source).count() };
        prop_assert!(wanted <= found, "{:?} is lost: {:?} became {:?}", term, text, outcome.text);
    }
    prop_assert_eq!(
        format.skeleton(&outcome.text, &|| false),
        format.skeleton(text, &|| false),
        "{:?} became {:?}",
        text,
        outcome.text
    );
    let after = numbers(&outcome.text, format);
    for (number, count) in numbers(text, format) {
        prop_assert!(
            after.get(&number).is_some_and(|found| count <= *found),
            "{} is lost: {:?}",
            number,
            outcome.text
        );
    }
    if format == Format::Text {
        let ends = |text: &str| -> Vec<(String, String)> {
            let blank = |line: &str| line.len() - line.trim_start().len();
            text.split('\n')
                .map(|line| (line[..blank(line)].to_owned(), line[line.trim_end().len()..].to_owned()))
                .collect()
        };
        prop_assert_eq!(ends(&outcome.text), ends(text));
    }
    Ok(())
}

const FORMATS: [Format; 4] = [Format::Text, Format::Markdown, Format::Html, Format::Subtitles];

/// A document of lines as what cues say.
fn subtitles(text: &str) -> String {
    let cue = |(at, said): (usize, &str)| {
        format!("{at}\n00:00:{:02},000 --> 00:00:{:02},500\n{said}\n\n", at % 60, at % 60)
    };
    text.split("\n\n").enumerate().map(cue).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn nothing_in_plain_text_comes_to_harm(text in document(Format::Text), terms in terms(), deeds in prop::collection::vec(deed(), 1..8)) {
        check(&text, Format::Text, &terms, &deeds)?;
    }

    #[test]
    fn nothing_in_markdown_comes_to_harm(text in document(Format::Markdown), terms in terms(), deeds in prop::collection::vec(deed(), 1..8)) {
        check(&text, Format::Markdown, &terms, &deeds)?;
    }

    #[test]
    fn nothing_in_html_comes_to_harm(text in document(Format::Html), terms in terms(), deeds in prop::collection::vec(deed(), 1..8)) {
        check(&text, Format::Html, &terms, &deeds)?;
    }

    #[test]
    fn nothing_in_subtitles_comes_to_harm(text in document(Format::Html), terms in terms(), deeds in prop::collection::vec(deed(), 1..8)) {
        check(&subtitles(&text), Format::Subtitles, &terms, &deeds)?;
    }

    #[test]
    fn what_an_engine_leaves_as_it_is_stays_as_it_is(text in document(Format::Markdown)) {
        for format in FORMATS {
            prop_assert_eq!(run(&text, format, &Terms::none(), &[Deed::Honest]).text, text.clone());
        }
    }

    #[test]
    fn any_bytes_are_taken_apart_without_a_gap(text in "\\PC{0,200}") {
        for format in FORMATS {
            for unit in format.units(&text, &Rules::default(), &|| false) {
                let ends: Vec<_> = unit.inlines.iter().map(|inline| inline.range.clone()).collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].end == pair[1].start), "{:?}", unit);
            }
            prop_assert_eq!(run(&text, format, &Terms::none(), &[Deed::Honest]).text, text.clone());
        }
    }
}

/// What an honest engine would do: words become other words.
fn shout(text: &str, format: Format, rules: &Rules) -> String {
    let outcome = translate(text, format, rules, 1000, &|| Ok(()), |sentences| {
        let upper = |part: &Part| match part {
            Part::Text(text) => Part::Text(text.to_uppercase()),
            mark => mark.clone(),
        };
        let render =
            |sentence: &Vec<Part>| Rendering { parts: sentence.iter().map(upper).collect(), confidence: 0.9 };
        Ok::<_, ()>(sentences.iter().map(render).collect())
    });
    outcome.unwrap().text
}

#[test]
fn words_are_translated_and_nothing_else() {
    let markdown = "# Install it\n\nRun `make run` and open [the *page*](http://a.b/c \"t\"),\nthen say **hello {name}**.\n\n\
                    - [x] done & good\n- see <b>bold</b>\n\n```sh\nmake run\n```\n\n| key | what |\n|---|---|\n| `a` | the a |\n";
    let expected = "# INSTALL IT\n\nRUN `make run` AND OPEN [THE *PAGE*](http://a.b/c \"t\"),\nTHEN SAY **HELLO {name}**.\n\n\
                    - [x] DONE & GOOD\n- SEE <b>BOLD</b>\n\n```sh\nmake run\n```\n\n| KEY | WHAT |\n|---|---|\n| `a` | THE A |\n";
    assert_eq!(shout(markdown, Format::Markdown, &Rules::default()), expected);
    let html = "<html><body class=x>\n <p>Hello <b>big</b>\n world &amp; caf&eacute;</p><pre>keep</pre></body></html>";
    let expected = "<html><body class=x>\n <p>HELLO <b>BIG</b>\n WORLD &amp; CAF&eacute;</p><pre>keep</pre></body></html>";
    assert_eq!(shout(html, Format::Html, &Rules::default()), expected);
    let text = "  Hello %s,\r\n\tyou have {n} of 5 files.\n\n";
    assert_eq!(shout(text, Format::Text, &Rules::default()), "  HELLO %s,\r\n\tYOU HAVE {n} OF 5 FILES.\n\n");
}

#[test]
fn what_cues_say_is_translated_and_their_times_stay() {
    let srt = "\u{feff}1\r\n00:00:01,000 --> 00:00:02,500\r\nHello, <i>my friend</i>.\r\n{\\an8}Look there\r\n\r\n\
               2\r\n00:00:03,000 --> 00:00:04,000\r\n- Who is it?\r\n- Tom & Jerry.\r\n";
    let expected = "\u{feff}1\r\n00:00:01,000 --> 00:00:02,500\r\nHELLO, <i>MY FRIEND</i>.\r\n{\\an8}LOOK THERE\r\n\r\n\
                    2\r\n00:00:03,000 --> 00:00:04,000\r\n- WHO IS IT?\r\n- TOM & JERRY.\r\n";
    assert_eq!(shout(srt, Format::Subtitles, &Rules::default()), expected);
    let vtt = "WEBVTT - a film\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE by hand\n\nintro\n00:01.000 --> 00:02.000 \
               align:start\n<v Ann>One line\nand <00:01.500>another\n\n00:03.000 --> 00:04.000\n\nnot said\n";
    let expected = "WEBVTT - a film\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE by hand\n\nintro\n00:01.000 --> 00:02.000 \
                    align:start\n<v Ann>ONE LINE\nAND <00:01.500>ANOTHER\n\n00:03.000 --> 00:04.000\n\nnot said\n";
    assert_eq!(shout(vtt, Format::Subtitles, &Rules::default()), expected);
    assert_eq!(shout("nothing is said", Format::Subtitles, &Rules::default()), "nothing is said");
}

#[test]
fn terms_are_kept_or_replaced() {
    let glossary = [("black cat".to_owned(), "gato negro".to_owned())];
    let rules = Rules::new(&["Backplane".to_owned()], &glossary).unwrap();
    let text = "Backplane likes the Black Cat, and category theory.";
    assert_eq!(shout(text, Format::Markdown, &rules), "Backplane LIKES THE gato negro, AND CATEGORY THEORY.");
}

#[test]
fn a_skeleton_tells_documents_apart() {
    let skeleton = |text| Format::Markdown.skeleton(text, &|| false);
    assert_eq!(skeleton("a *b* {c}"), skeleton("x *y* {c}"));
    for other in ["a b {c}", "a *b*", "a *b* {d}", "- a *b* {c}", "a **b** {c}"] {
        assert_ne!(skeleton("a *b* {c}"), skeleton(other), "{other}");
    }
    assert!(matches!(skeleton("").as_slice(), [Bone::Outside("")]));
}

/// Where work grows with the square of a line, most of these take minutes. Nothing is measured: a test that hangs has failed.
#[test]
fn a_long_line_takes_time_in_proportion() {
    let glossary = [("black cat".to_owned(), "gato negro".to_owned()), ("cat a".to_owned(), "x".to_owned())];
    let rules = Rules::new(&["Backplane".to_owned()], &glossary).unwrap();
    let long = |again: &str, bytes: usize| again.repeat(bytes / again.len());
    for (format, text) in [
        (Format::Text, "see https://a".to_owned() + &long(")", 60_000)),
        // Beginnings without an end, with something to be kept behind each.
        (Format::Text, long("<% a_b ", 200_000)),
        (Format::Markdown, long("{% a_b ", 60_000)),
        (Format::Text, long("{", 60_000)),
        (Format::Text, long("a_b.", 200_000)),
        (Format::Text, long("{a} a_b@", 60_000)),
        // Terms that are none, and many places where they might be.
        (Format::Text, long("cat {x} ", 200_000)),
        (Format::Text, long("blackcatcat", 60_000)),
        // Sentences, and what is between them.
        (Format::Text, long("One. {n}. ", 60_000)),
        (Format::Text, "a.".to_owned() + &long(")", 200_000)),
        (Format::Text, "a.".to_owned() + &long(" )", 200_000)),
        (Format::Text, "word ".to_owned() + &long("1 ", 60_000)),
        (Format::Html, long("<b>x</b>", 60_000)),
        (Format::Html, long("<b>", 300_000) + "word" + &long("</b>", 400_000)),
        // A paragraph of many lines.
        (Format::Markdown, long("a word\n", 500_000)),
    ] {
        let shouted = shout(&text, format, &rules);
        assert!(text.len() / 2 <= shouted.len(), "{format:?}: {}", &text[..20]);
    }
}

#[test]
fn nobody_works_on_a_document_that_nobody_waits_for() {
    let text = "<p>item **one**</p>\n\n".repeat(100);
    for format in FORMATS {
        // Whoever waits leaves at each of the first looks in turn.
        for looks in 0..40 {
            let left = std::cell::Cell::new(looks);
            let check = || match left.get() {
                0 => Err("left"),
                more => {
                    left.set(more - 1);
                    Ok(())
                }
            };
            let asked = |sentences: &[Vec<Part>]| {
                let same = |parts: &Vec<Part>| Rendering { parts: parts.clone(), confidence: 1.0 };
                Ok(sentences.iter().map(same).collect())
            };
            let outcome = translate(&text, format, &Rules::default(), 200, &check, asked);
            assert_eq!(outcome, Err("left"), "{format:?}, look {looks}");
        }
    }
}
