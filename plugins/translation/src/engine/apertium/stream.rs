//! Apertium's stream format: what is in brackets passes through unchanged, and so carries what is kept.

use crate::protect::weave::Part;

/// Signs that mean something in the stream.
const RESERVED: &str = "\\[]{}^$/@<>";
/// Signs that mark a word in what comes out: unknown, not translated, not inflected, to be joined.
const MARKS: &str = "*#~+";

/// What came out.
#[derive(Debug, Default, PartialEq)]
pub struct Read {
    pub parts: Vec<Part>,
    pub words: usize,
    /// Words that no dictionary has.
    pub unknown: usize,
    /// Of these, those that begin with a capital letter: names, more often than not.
    pub unknown_names: usize,
}

/// A sentence for the stream. A bracket ends it, or the last word would wait for what comes next.
pub fn write(sentence: &[Part]) -> String {
    let mut stream = String::new();
    for part in sentence {
        match part {
            Part::Mark(mark) => stream.push_str(&format!("[\u{27E6}{mark}\u{27E7}]")),
            Part::Text(text) => {
                for c in text.chars() {
                    if c == '\0' || c.is_control() {
                        stream.push(' ');
                    } else if MARKS.contains(c) {
                        stream.extend(['[', c, ']']);
                    } else {
                        if RESERVED.contains(c) {
                            stream.push('\\');
                        }
                        stream.push(c);
                    }
                }
            }
        }
    }
    stream.push_str("[]");
    stream
}

/// A sentence from the stream.
pub fn read(stream: &str) -> Read {
    let mut read = Read::default();
    let mut text = String::new();
    let mut signs = stream.chars();
    while let Some(c) = signs.next() {
        match c {
            '\\' => text.extend(signs.next()),
            '[' => {
                let mut inside = String::new();
                while let Some(c) = signs.next() {
                    match c {
                        ']' => break,
                        '\\' => inside.extend(signs.next()),
                        c => inside.push(c),
                    }
                }
                let mark = inside.strip_prefix('\u{27E6}').and_then(|rest| rest.strip_suffix('\u{27E7}'));
                match mark.and_then(|mark| mark.parse().ok()) {
                    Some(mark) => {
                        if !text.is_empty() {
                            read.parts.push(Part::Text(std::mem::take(&mut text)));
                        }
                        read.parts.push(Part::Mark(mark));
                    }
                    None => text.push_str(&inside),
                }
            }
            '*' | '@' | '#' => {
                let next = signs.as_str().chars().next();
                if next.is_some_and(char::is_uppercase) {
                    read.unknown_names += 1;
                } else {
                    read.unknown += 1;
                }
            }
            '~' => {}
            c => text.push(c),
        }
    }
    if !text.is_empty() {
        read.parts.push(Part::Text(text));
    }
    let words = |part: &Part| match part {
        Part::Text(text) => {
            text.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).count()
        }
        Part::Mark(_) => 0,
    };
    read.words = read.parts.iter().map(words).sum();
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let sentence = [
            Part::Text("one/two $5 ^x [y] a\\b #1 * @me ".to_owned()),
            Part::Mark(12),
            Part::Text(" <i> {z} ~ +".to_owned()),
        ];
        assert_eq!(read(&write(&sentence)).parts, sentence);
    }

    #[test]
    fn marks_of_unknown_words_are_counted_and_left_out() {
        let read = read("El *xyzzy de *Backplane @no es #uno[]");
        assert_eq!(read.parts, [Part::Text("El xyzzy de Backplane no es uno".to_owned())]);
        assert_eq!((read.words, read.unknown, read.unknown_names), (7, 3, 1));
    }
}
