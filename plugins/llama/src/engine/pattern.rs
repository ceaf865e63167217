//! Which patterns of a JSON Schema llama.cpp turns into a grammar. One it cannot turn becomes any string, and is written
//! to stderr; what a caller wrote belongs into no log. Pure.
//!
//! # Source
//! `_pattern_to_rule` in llama.cpp's `common/json-schema-to-grammar.cpp`.

/// Whether an answer can be held to `pattern`: anchored, without look-around, classes such as `\d`, and anchors within.
///
/// llama.cpp puts what a pattern allows between quotes as it is, so nothing that JSON would have to escape may come of it:
/// no quote, no backslash, no control character, and neither `.` nor `[^…]`, which allow all of them.
pub fn is_supported(pattern: &str) -> bool {
    const MOST_LENGTH: usize = 1000;
    const MOST_DEPTH: usize = 32;
    let inner = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$'));
    let Some(inner) = inner.filter(|inner| inner.len() <= MOST_LENGTH) else { return false };
    let (mut rest, mut depth) = (inner, 0usize);
    let mut repeated = false;
    while let Some(c) = rest.chars().next() {
        // `a+?` is not an optional `a+`.
        if std::mem::replace(&mut repeated, "*+?{".contains(c)) && repeated {
            return false;
        }
        let taken = match c {
            '(' => {
                depth += 1;
                if rest.starts_with("(?:") { Some(3) } else { (!rest.starts_with("(?")).then_some(1) }
            }
            ')' if depth == 0 => None,
            ')' => {
                depth -= 1;
                Some(1)
            }
            '[' => class(rest),
            '{' => repetition(rest),
            '\\' if rest[1..].starts_with(|c| "^$.[](){}|*+?".contains(c)) => Some(2),
            '^' | '$' | ']' | '}' | '.' => None,
            _ => element(rest).filter(|&(c, _)| is_plain(c, c)).map(|(_, length)| length),
        };
        let Some(taken) = taken.filter(|_| depth <= MOST_DEPTH) else { return false };
        rest = &rest[taken..];
    }
    depth == 0
}

/// Whether JSON writes every character from one to another as it is.
fn is_plain(first: u32, last: u32) -> bool {
    let within = |c: char| (first..=last).contains(&u32::from(c));
    first <= last && u32::from(' ') <= first && !within('"') && !within('\\')
}

/// Length of `[…]`.
fn class(text: &str) -> Option<usize> {
    let mut at = 1;
    if text[at..].starts_with('^') {
        return None;
    }
    while !text.get(at..)?.starts_with(']') {
        let (first, length) = element(&text[at..])?;
        at += length;
        let mut last = first;
        if let Some(range) = text.get(at..)?.strip_prefix('-').filter(|rest| !rest.starts_with(']')) {
            let length;
            (last, length) = element(range)?;
            at += 1 + length;
        }
        if !is_plain(first, last) {
            return None;
        }
    }
    Some(at + 1)
}

/// A character, escaped or not, and its length here.
fn element(text: &str) -> Option<(u32, usize)> {
    match text.chars().next()? {
        '\\' => escape(text),
        c => Some((c.into(), c.len_utf8())),
    }
}

/// Length of `{n}`, `{n,}` or `{n,m}`.
fn repetition(text: &str) -> Option<usize> {
    const MOST: u32 = 2000;
    let end = text.find('}')?;
    let number = |text: &str| text.parse::<u32>().ok().filter(|&n| n <= MOST);
    match text[1..end].split_once(',') {
        None => number(&text[1..end]).is_some(),
        // Not a repetition where JSON Schema's regular expressions come from.
        Some(("", _)) => false,
        Some((least, "")) => number(least).is_some(),
        Some((least, most)) => number(least)? <= number(most)?,
    }
    .then_some(end + 1)
}

/// An escape that a grammar knows too: its character and its length.
fn escape(text: &str) -> Option<(u32, usize)> {
    let name = text[1..].chars().next()?;
    let digits = match name {
        'x' => 2,
        'u' => 4,
        't' => return Some(('\t'.into(), 2)),
        'r' => return Some(('\r'.into(), 2)),
        'n' => return Some(('\n'.into(), 2)),
        '\\' | '"' | '[' | ']' | '-' => return Some((name.into(), 2)),
        _ => return None,
    };
    let hex = text.get(2..2 + digits)?;
    let all = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let code = all.then(|| u32::from_str_radix(hex, 16).ok()).flatten()?;
    // Half of a surrogate pair is no character, and no answer has it.
    char::from_u32(code).map(|_| (code, 2 + digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_grammar_can_hold_an_answer_to() {
        for pattern in
            ["^$", "^[A-Z][a-z]+$", "^(?:a|b){2,3}\\.c?$", "^\\u00e9[a-z\\]#-\\x5b-]*$", "^a{2}b{3,}c{0,4}é$"]
        {
            assert!(is_supported(pattern), "{pattern}");
        }
        for pattern in [
            "^\\ud83d\\ude00$",
            "a+",
            "^a",
            "a$",
            "^(?=a)a$",
            "^\\d+$",
            "^[\\w]$",
            "^a|^b$",
            "^a$b$",
            "^(a$",
            "^a)$",
            "^[a$",
            "^a{$",
            "^a{x}$",
            "^a{3,2}$",
            "^a{9999}$",
            "^a{,4}$",
            "^a+?$",
            "^a{2}*$",
            "^\\U00000041$",
            "^.$",
            "^[^a]$",
            "^a\"b$",
            "^a\\\\b$",
            "^a\\nb$",
            "^\\x22$",
            "^[ -~]$",
            "^[\\t]$",
            "^[z-a]$",
            "^a]$",
            "^a}$",
            "^\\$",
            "^\\x4$",
            "^",
            "",
        ] {
            assert!(!is_supported(pattern), "{pattern}");
        }
    }
}
