//! Base64 between a BEGIN and an END line, for files that people send each other.
//!
//! ```text
//! -----BEGIN BACKPLANE PUBLIC KEY-----
//! Owner: acme-ai
//!
//! 3q2+7w==
//! -----END BACKPLANE PUBLIC KEY-----
//! ```
//!
//! Reading bears what mail does to it: text before and after, a byte order mark, CRLF, indentation, `>` of a quotation,
//! other line lengths. What stands between the lines is canonical base64 or refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Result, TrustError};

const LINE: usize = 64;

/// What an armoured text holds.
#[derive(Debug, PartialEq)]
pub struct Armoured {
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Armoured {
    /// What the line `name: …` says. For people: nothing here is signed.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The line before a body.
pub fn begin(label: &str) -> String {
    format!("-----BEGIN BACKPLANE {label}-----")
}

fn end(label: &str) -> String {
    format!("-----END BACKPLANE {label}-----")
}

/// Armours `body`. A header is one line whatever it is given.
pub fn write(label: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
    let mut out = begin(label) + "\n";
    for (name, value) in headers {
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        out += &format!("{name}: {value}\n");
    }
    if !headers.is_empty() {
        out.push('\n');
    }
    let encoded = STANDARD.encode(body);
    for line in encoded.as_bytes().chunks(LINE) {
        out.extend(line.iter().copied().map(char::from));
        out.push('\n');
    }
    out + &end(label) + "\n"
}

/// Reads the one armoured `label` in `text`.
pub fn read(label: &str, text: &str) -> Result<Armoured> {
    let wrong = |reason: String| TrustError::Armour { label: label.to_owned(), reason };
    let (begin, end) = (begin(label), end(label));
    let mut lines = text.lines().map(bare);
    if !lines.any(|line| line == begin) {
        return Err(wrong(format!("the line `{begin}` is missing")));
    }
    let mut headers = Vec::new();
    let mut encoded = String::new();
    loop {
        let Some(line) = lines.next() else {
            return Err(wrong(format!("the line `{end}` is missing: it was cut off")));
        };
        if line == end {
            break;
        }
        match line.split_once(':') {
            Some((name, value)) if encoded.is_empty() => {
                headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
            _ => encoded.push_str(line),
        }
    }
    if lines.any(|line| line == begin) {
        return Err(wrong("the file has two of them; keep each in a file of its own".to_owned()));
    }
    let body = STANDARD
        .decode(&encoded)
        .map_err(|error| wrong(format!("what stands between its lines is not canonical base64: {error}")))?;
    Ok(Armoured { headers, body })
}

/// A line without what mail puts around it.
fn bare(line: &str) -> &str {
    let around = |c: char| c.is_whitespace() || c == '\u{feff}';
    line.trim_start_matches(|c| around(c) || c == '>' || c == '|').trim_end_matches(around)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = &[7; 150];

    #[test]
    fn what_mail_does_changes_nothing() {
        let plain = write("THING", &[("Owner", "a\nb")], BODY);
        let expected = read("THING", &plain).unwrap();
        assert_eq!((expected.body.as_slice(), expected.header("Owner")), (BODY, Some("a b")));
        let quoted =
            |prefix: &str| plain.lines().map(|line| format!("{prefix}{line}\r\n")).collect::<String>();
        for text in [
            plain.replace('\n', "\r\n"),
            format!("\u{feff}{plain}"),
            quoted("> "),
            quoted(">> > "),
            quoted("\t    "),
            quoted("\u{a0}| "),
            format!("Dear customer,\n\n{plain}\nYours\n"),
            plain.replace("\nBwcH", "\n\n  BwcH"),
            plain.lines().map(|line| format!("{line}   \n")).collect(),
        ] {
            assert_eq!(read("THING", &text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_armour_is_refused_with_the_reason() {
        let plain = write("THING", &[], BODY);
        for (text, says) in [
            (String::new(), "BEGIN BACKPLANE THING-----` is missing"),
            (write("OTHER", &[], BODY), "BEGIN BACKPLANE THING-----` is missing"),
            (plain[..plain.len() - 10].to_owned(), "cut off"),
            (plain.replace("BwcH", "Bw*H"), "not canonical base64"),
            (format!("{plain}{plain}"), "two of them"),
        ] {
            let refused = read("THING", &text).unwrap_err().to_string();
            assert!(refused.contains(says), "{text} => {refused}");
        }
    }
}
