//! Follows a JSON value character by character: where it ends, and what would close it if it ended here.

/// A scanner of one JSON value.
///
/// It takes any text that could begin a JSON value.
#[derive(Clone, Debug, Default)]
pub struct JsonScan {
    /// Open objects and arrays.
    open: Vec<Open>,
    state: State,
    /// The number or word being read.
    word: String,
    /// Bytes taken.
    length: usize,
    /// Up to here the text becomes a value by adding `closers`.
    safe: usize,
    closers: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Open {
    Object,
    Array,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    /// A value must come.
    #[default]
    Value,
    /// A value or `]`.
    FirstItem,
    /// A key or `}`.
    FirstKey,
    /// A key.
    Key,
    Colon,
    /// `,` or the end of what is open.
    After,
    /// In a string; `key` when it names a member. `escape`: characters of an escape still to come.
    Text {
        key: bool,
        escape: u8,
    },
    /// The half of a surrogate pair was read; its other half must follow (so many characters of `\u0000`).
    Pair {
        key: bool,
        left: u8,
    },
    /// In a number, `true`, `false` or `null`.
    Word,
    Done,
}

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// It belongs to the value.
    Within,
    /// It belongs to the value and ends it.
    Ends,
    /// The value ended before it (a number or a word has no end of its own).
    Before,
    /// It cannot come here.
    Wrong,
}

impl JsonScan {
    /// How many bytes, from the start, can be closed into a JSON value by [`JsonScan::closers`].
    pub fn safe(&self) -> usize {
        self.safe
    }

    /// What to add after [`JsonScan::safe`] bytes.
    pub fn closers(&self) -> &str {
        &self.closers
    }

    /// Takes a character.
    pub fn push(&mut self, c: char) -> Scan {
        let scan = self.step(c);
        if matches!(scan, Scan::Within | Scan::Ends) {
            self.length += c.len_utf8();
            self.mark();
        }
        scan
    }

    fn step(&mut self, c: char) -> Scan {
        let space = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.state = match self.state {
            State::Done => return Scan::Before,
            State::Text { key, escape: 0 } => match c {
                '"' if key => State::Colon,
                '"' => return self.value_ends(),
                '\\' => State::Text { key, escape: 1 },
                c if c < ' ' => return Scan::Wrong,
                _ => self.state,
            },
            State::Text { key, escape: 1 } => match c {
                'u' => State::Text { key, escape: 8 },
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => State::Text { key, escape: 0 },
                _ => return Scan::Wrong,
            },
            // Four digits: 8, 7, 6, 5. A first digit `d` whose second is 8..b opens a pair (remembered as 16 more).
            State::Text { key, escape } => {
                if !c.is_ascii_hexdigit() {
                    return Scan::Wrong;
                }
                let digit = c.to_digit(16).unwrap_or(0);
                match escape {
                    8 if digit == 13 => State::Text { key, escape: 23 },
                    8 => State::Text { key, escape: 7 },
                    23 if (8..12).contains(&digit) => State::Text { key, escape: 38 },
                    // A low half without a high one is no character.
                    23 if digit >= 12 => return Scan::Wrong,
                    23 => State::Text { key, escape: 6 },
                    38 => State::Text { key, escape: 37 },
                    37 => State::Pair { key, left: 6 },
                    7 | 6 => State::Text { key, escape: escape - 1 },
                    _ => State::Text { key, escape: 0 },
                }
            }
            State::Pair { key, left } => {
                let fits = match left {
                    6 => c == '\\',
                    5 => c == 'u',
                    4 => matches!(c, 'd' | 'D'),
                    3 => matches!(c, 'c'..='f' | 'C'..='F'),
                    _ => c.is_ascii_hexdigit(),
                };
                match (fits, left) {
                    (false, _) => return Scan::Wrong,
                    (true, 1) => State::Text { key, escape: 0 },
                    (true, _) => State::Pair { key, left: left - 1 },
                }
            }
            State::Word if space || matches!(c, ',' | ']' | '}') => {
                if serde_json::from_str::<serde_json::Value>(&self.word).is_err() {
                    return Scan::Wrong;
                }
                if self.value_ends() == Scan::Ends {
                    return Scan::Before;
                }
                return self.step(c);
            }
            State::Word if c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-') => {
                self.word.push(c);
                State::Word
            }
            State::Word => return Scan::Wrong,
            _ if space => return Scan::Within,
            State::FirstItem if c == ']' => return self.close(),
            State::Value | State::FirstItem => match c {
                '{' => {
                    self.open.push(Open::Object);
                    State::FirstKey
                }
                '[' => {
                    self.open.push(Open::Array);
                    State::FirstItem
                }
                '"' => State::Text { key: false, escape: 0 },
                't' | 'f' | 'n' | '-' | '0'..='9' => {
                    self.word = c.into();
                    State::Word
                }
                _ => return Scan::Wrong,
            },
            State::FirstKey if c == '}' => return self.close(),
            State::FirstKey | State::Key if c == '"' => State::Text { key: true, escape: 0 },
            State::Colon if c == ':' => State::Value,
            State::After => match (c, self.open.last()) {
                (',', Some(Open::Object)) => State::Key,
                (',', Some(Open::Array)) => State::Value,
                ('}', Some(Open::Object)) | (']', Some(Open::Array)) => return self.close(),
                _ => return Scan::Wrong,
            },
            _ => return Scan::Wrong,
        };
        Scan::Within
    }

    fn close(&mut self) -> Scan {
        self.open.pop();
        self.value_ends()
    }

    fn value_ends(&mut self) -> Scan {
        self.state = if self.open.is_empty() { State::Done } else { State::After };
        if self.open.is_empty() { Scan::Ends } else { Scan::Within }
    }

    /// Notes whether the text could be closed here.
    fn mark(&mut self) {
        let quote = match self.state {
            State::Text { key: false, escape: 0 } => "\"",
            State::FirstItem | State::FirstKey | State::After | State::Done => "",
            _ => return,
        };
        self.safe = self.length;
        self.closers.clear();
        self.closers.push_str(quote);
        for open in self.open.iter().rev() {
            self.closers.push(match open {
                Open::Object => '}',
                Open::Array => ']',
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            (-1e9..1e9f64).prop_map(Value::from),
            "[a-z\"\\\\\n\u{1}é😀{}\\[\\]:,]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[a-z\"{]{0,4}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_not_taken() {
        let mut scan = JsonScan::default();
        let text = r#"{"a":[1,"}"],"b":{}}</tool_call>"#;
        let end = text.char_indices().find(|&(_, c)| scan.push(c) == Scan::Ends).map(|(i, _)| i);
        assert_eq!(end, Some(text.find("</").unwrap() - 1));
        let mut scan = JsonScan::default();
        assert_eq!("12 ".chars().map(|c| scan.push(c)).last(), Some(Scan::Before));
    }

    #[test]
    fn what_is_no_json_is_wrong() {
        for text in [
            "{1",
            "{\"a\" 1",
            "[1 2",
            "[1}",
            "{,",
            "x",
            "[tru]",
            "01 ",
            "\"\u{1}",
            "\"\\x",
            "\"\\u12g",
            "\"\\ud800x",
            "\"\\udc00",
        ] {
            let mut scan = JsonScan::default();
            assert!(text.chars().any(|c| scan.push(c) == Scan::Wrong), "{text} was taken");
        }
    }

    #[test]
    fn escapes_are_followed_to_their_end() {
        for text in [r#""\u00e9""#, r#""\ud83d\ude00""#, r#""\ud7ff""#, r#""\\\"""#, r#""\uffff""#] {
            let mut scan = JsonScan::default();
            let last = text.chars().map(|c| scan.push(c)).last();
            assert_eq!(last, Some(Scan::Ends), "{text}");
            assert!(serde_json::from_str::<Value>(text).is_ok());
        }
    }

    proptest! {
        #[test]
        fn every_beginning_can_be_closed(value in any_json(), pretty: bool, ascii: bool) {
            let mut text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            if ascii {
                text = text.chars().map(|c| if c.is_ascii() { c.to_string() } else {
                    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }).collect();
            }
            let mut scan = JsonScan::default();
            for (i, c) in text.char_indices() {
                let result = scan.push(c);
                prop_assert!(matches!(result, Scan::Within | Scan::Ends), "{:?} at {} of {}", result, i, text);
                if scan.safe() > 0 {
                    let closed = format!("{}{}", &text[..scan.safe()], scan.closers());
                    prop_assert!(serde_json::from_str::<Value>(&closed).is_ok(), "{closed}");
                }
            }
            if matches!(value, Value::Object(_) | Value::Array(_) | Value::String(_)) {
                prop_assert_eq!(scan.safe(), text.len());
                prop_assert_eq!(scan.closers(), "");
            }

        }
    }
}
