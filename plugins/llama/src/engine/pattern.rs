//! Which patterns of a JSON Schema llama.cpp turns into a grammar. One it cannot turn becomes any string, and is written
//! to stderr; what a caller wrote belongs into no log. Pure.
//!
//! # Source
//! `_pattern_to_rule` in llama.cpp's `common/json-schema-to-grammar.cpp`.

/// Whether an answer can be held to `pattern`: anchored, without look-around, classes such as `\d`, and anchors within.
pub fn is_supported(pattern: &str) -> bool {
    const MOST_LENGTH: usize = 1000;
    const MOST_DEPTH: usize = 32;
    let inner = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$'));
    let Some(inner) = inner.filter(|inner| inner.len() <= MOST_LENGTH) else { return false };
    let (mut rest, mut depth) = (inner, 0usize);
    while let Some(c) = rest.chars().next() {
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
            '\\' => escape(rest),
            '^' | '$' | ']' | '}' => None,
            c => Some(c.len_utf8()),
        };
        let Some(taken) = taken.filter(|_| depth <= MOST_DEPTH) else { return false };
        rest = &rest[taken..];
    }
    depth == 0
}

/// Length of `[…]`.
fn class(text: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        let rest = text.get(at..)?;
        at += match rest.chars().next()? {
            ']' => return Some(at + 1),
            '\\' => escape(rest)?,
            c => c.len_utf8(),
        };
    }
}

/// Length of `{n}`, `{n,}`, `{,n}` or `{n,m}`.
fn repetition(text: &str) -> Option<usize> {
    const MOST: u32 = 2000;
    let end = text.find('}')?;
    let number = |text: &str| text.parse::<u32>().ok().filter(|&n| n <= MOST);
    match text[1..end].split_once(',') {
        None => number(&text[1..end]).is_some(),
        Some(("", most)) => number(most).is_some(),
        Some((least, "")) => number(least).is_some(),
        Some((least, most)) => number(least)? <= number(most)?,
    }
    .then_some(end + 1)
}

/// Length of an escape that a grammar knows too.
fn escape(text: &str) -> Option<usize> {
    let digits = match text[1..].chars().next()? {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        't' | 'r' | 'n' | '\\' | '"' | '[' | ']' | '-' => 0,
        _ => return None,
    };
    let hex = text.as_bytes().get(2..2 + digits)?;
    hex.iter().all(u8::is_ascii_hexdigit).then_some(2 + digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_grammar_can_hold_an_answer_to() {
        for pattern in
            ["^$", "^[A-Z][a-z]+$", "^(?:a|b){2,3}\\.c?$", "^\\u00e9[^\\n\\]]*$", "^a{2}b{3,}c{,4}é.$"]
        {
            assert!(is_supported(pattern), "{pattern}");
        }
        for pattern in [
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
