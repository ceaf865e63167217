//! Reads a grammar as llama.cpp would, before it does: what llama.cpp cannot parse it writes to stderr, whole, and what
//! a caller wrote belongs into no log. It also ends the process for a range like `{3,2}`. Pure.
//!
//! # Source
//! `llama_grammar_parser` in llama.cpp's `src/llama-grammar.cpp`, whose rules these are; stricter in depth and size.

use std::collections::{HashMap, HashSet};

/// What is wrong with a grammar, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub what: String,
}

/// How deep groups may nest: llama.cpp's parser recurses.
const MOST_DEPTH: usize = 64;
/// llama.cpp's own limit for what one repetition makes.
const MOST_REPETITIONS: u64 = 2000;
/// Elements that all rules may come to, once repetitions are written out: 8 MiB in llama.cpp.
const MOST_ELEMENTS: u64 = 1 << 20;

/// Checks a grammar with the start rule `root`. `is_token`: whether a text like `<|im_end|>` is one token.
///
/// # Errors
/// The first mistake; it quotes nothing of the grammar but a rule's name.
pub fn check(text: &str, is_token: &dyn Fn(&str) -> bool) -> Result<(), Mistake> {
    let mut reader = Reader {
        text,
        at: 0,
        is_token,
        names: HashMap::new(),
        defined: HashSet::new(),
        generated: 0,
        elements: 0,
    };
    reader.grammar()
}

struct Reader<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
    is_token: &'a dyn Fn(&str) -> bool,
    /// Rules that are named, and the line that does it first.
    names: HashMap<&'a str, usize>,
    defined: HashSet<&'a str>,
    /// Rules that llama.cpp adds for groups and repetitions.
    generated: u64,
    elements: u64,
}

/// The item before a repetition.
struct Item {
    elements: u64,
    /// Rules behind it, as llama.cpp counts them.
    rules: u64,
}

impl<'a> Reader<'a> {
    fn grammar(&mut self) -> Result<(), Mistake> {
        if self.text.contains('\0') {
            return self.wrong("has a zero byte");
        }
        self.space(true);
        while self.peek().is_some() {
            self.rule()?;
        }
        let missing = self.names.iter().filter(|(name, _)| !self.defined.contains(*name));
        if let Some((name, &line)) = missing.min_by_key(|&(_, &line)| line) {
            return Err(Mistake { line, what: format!("names the rule `{name}`, which is not there") });
        }
        if !self.defined.contains("root") {
            return Err(Mistake { line: 1, what: "has no rule `root`".to_owned() });
        }
        Ok(())
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Mistake> {
        let before = self.text.as_bytes().get(..self.at).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Err(Mistake { line, what: what.into() })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        let is = self.rest().starts_with(token);
        self.at += if is { token.len() } else { 0 };
        is
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn space(&mut self, line_feeds: bool) {
        loop {
            self.take_while(|c| c == ' ' || c == '\t' || line_feeds && (c == '\r' || c == '\n'));
            if self.peek() != Some('#') {
                return;
            }
            self.take_while(|c| c != '\r' && c != '\n');
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let line = 1 + self.text.as_bytes().iter().take(self.at).filter(|&&byte| byte == b'\n').count();
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '-');
        if name.is_empty() {
            return None;
        }
        self.names.entry(name).or_insert(line);
        Some(name)
    }

    fn rule(&mut self) -> Result<(), Mistake> {
        let Some(name) = self.name() else { return self.wrong("begins no rule: a name must come here") };
        self.space(false);
        if !self.take("::=") {
            return self.wrong(format!("has no `::=` behind the name of the rule `{name}`"));
        }
        self.space(true);
        self.alternates(0)?;
        self.defined.insert(name);
        if self.peek().is_some() && !(self.take("\r\n") || self.take("\r") || self.take("\n")) {
            return self.wrong(format!("has something in the rule `{name}` that cannot come there"));
        }
        self.space(true);
        Ok(())
    }

    fn alternates(&mut self, depth: usize) -> Result<(), Mistake> {
        if depth > MOST_DEPTH {
            return self.wrong(format!("nests its groups deeper than {MOST_DEPTH}"));
        }
        self.sequence(depth)?;
        while self.take("|") {
            self.space(true);
            self.sequence(depth)?;
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<(), Mistake> {
        let mut last: Option<Item> = None;
        while let Some(c) = self.peek() {
            let item = match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '<' | '!' => self.token()?,
                '(' => {
                    self.at += 1;
                    self.space(true);
                    let before = self.symbols();
                    self.generated += 1;
                    self.alternates(depth + 1)?;
                    let rules = (self.symbols() - before).max(1);
                    if !self.take(")") {
                        return self.wrong("has a group without its `)`");
                    }
                    Item { elements: 1, rules }
                }
                '.' => {
                    self.at += 1;
                    Item { elements: 1, rules: 1 }
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.times()?;
                    self.space(0 < depth);
                    let Some(item) = &mut last else { return self.wrong("repeats nothing") };
                    self.repeat(item, least, most)?;
                    continue;
                }
                _ => match self.name() {
                    Some(_) => Item { elements: 1, rules: 1 },
                    None => return Ok(()),
                },
            };
            self.grow(item.elements)?;
            last = Some(item);
            self.space(0 < depth);
        }
        Ok(())
    }

    /// How often, at least and at most.
    fn times(&mut self) -> Result<(u64, Option<u64>), Mistake> {
        if self.take("*") {
            return Ok((0, None));
        }
        if self.take("+") {
            return Ok((1, None));
        }
        if self.take("?") {
            return Ok((0, Some(1)));
        }
        self.at += 1;
        self.space(false);
        let least = self.number()?;
        self.space(false);
        let mut most = Some(least);
        if self.take(",") {
            self.space(false);
            let open = !self.peek().is_some_and(|c| c.is_ascii_digit());
            most = if open { None } else { Some(self.number()?) };
            self.space(false);
        }
        if !self.take("}") {
            return self.wrong("has a repetition without its `}`");
        }
        if most.is_some_and(|most| most < least) {
            return self.wrong("repeats at most less often than at least");
        }
        Ok((least, most.filter(|&most| most <= MOST_REPETITIONS)))
    }

    fn number(&mut self) -> Result<u64, Mistake> {
        let digits = self.take_while(|c| c.is_ascii_digit());
        match digits.parse() {
            Ok(number) => Ok(number),
            Err(_) => self.wrong("has no number where one must come"),
        }
    }

    fn repeat(&mut self, item: &mut Item, least: u64, most: Option<u64>) -> Result<(), Mistake> {
        let total = match most {
            Some(most) if most > 0 => most,
            _ => least.max(1),
        };
        if least > MOST_REPETITIONS || item.rules.saturating_mul(total) > MOST_REPETITIONS {
            return self.wrong(format!("repeats too much: more than {MOST_REPETITIONS} rules come of it"));
        }
        let optional = most.map_or(1, |most| most - least);
        self.generated += optional;
        self.grow(item.elements * least.saturating_sub(1) + optional * (item.elements + 3) + 1)?;
        item.elements = item.elements * least + 1;
        item.rules *= total;
        Ok(())
    }

    fn symbols(&self) -> u64 {
        self.generated + self.names.len() as u64
    }

    fn grow(&mut self, elements: u64) -> Result<(), Mistake> {
        self.elements += elements;
        if self.elements > MOST_ELEMENTS {
            return self.wrong("repeats too much: its rules come to more than a million elements");
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<Item, Mistake> {
        self.at += 1;
        let mut elements = 0;
        while !self.take("\"") {
            self.character()?;
            elements += 1;
        }
        Ok(Item { elements, rules: 1 })
    }

    fn class(&mut self) -> Result<Item, Mistake> {
        self.at += 1;
        self.take("^");
        let mut elements = 0;
        while !self.take("]") {
            self.character()?;
            elements += 1;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                self.character()?;
                elements += 1;
            }
        }
        Ok(Item { elements, rules: 1 })
    }

    fn character(&mut self) -> Result<(), Mistake> {
        let Some(c) = self.peek() else { return self.wrong("ends within a literal or a set of characters") };
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok(());
        }
        let digits = match self.peek() {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some('t' | 'r' | 'n' | '\\' | '"' | '[' | ']' | '-') => 0,
            _ => return self.wrong("has an escape that is none"),
        };
        self.at += 1;
        let hex = self.text.as_bytes().get(self.at..self.at + digits);
        if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return self.wrong(format!("has an escape without its {digits} hexadecimal digits"));
        }
        self.at += digits;
        Ok(())
    }

    fn token(&mut self) -> Result<Item, Mistake> {
        self.take("!");
        let start = self.at;
        let ends = if self.take("<[") {
            let number = self.number()?;
            u32::try_from(number).is_ok() && self.take("]>")
        } else {
            let text = self.take_while(|c| c != '>');
            self.take(">") && text.starts_with('<') && (self.is_token)(&self.text[start..self.at])
        };
        if !ends {
            return self.wrong("has a `<token>` that is none of this model's");
        }
        Ok(Item { elements: 1, rules: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_token(text: &str) -> bool {
        text == "<|im_end|>"
    }

    #[test]
    fn llama_cpp_s_own_ways_of_writing_are_read() {
        for grammar in [
            "root ::= \"yes\" | \"no\"",
            "# a comment\nroot ::= item{2,5} # and another\nitem ::= [a-z\\]\\x41-] | [^\\n] | .\r\nb ::= root",
            "root ::= (\n  \"a\"\n  | \"b\"* \"c\"+ \"d\"?\n)",
            "root ::=\n  \"\\\"\" ( [^\"\\\\] | \"\\\\\" [\"\\\\bfnrt] )* \"\\\"\"",
            "root ::= <|im_end|> !<|im_end|> <[7]> \"x\"{3} \"y\"{2,}",
            "root ::= | \"a\"",
        ] {
            assert_eq!(check(grammar, &is_token), Ok(()), "{grammar}");
        }
    }

    #[test]
    fn mistakes_are_told_by_line_and_quote_nothing() {
        for (grammar, line, says) in [
            ("root ::= \"secret", 1, "ends within"),
            ("root ::= \"a\"\nx = \"secret\"", 2, "`::=`"),
            ("root ::= a\na ::= b c\nb ::= \"secret\"", 2, "`c`"),
            ("start ::= \"secret\"", 1, "`root`"),
            ("root ::= \"\\q\"", 1, "escape"),
            ("root ::= \"\\x4\"", 1, "2 hexadecimal"),
            ("root ::= [a-", 1, "ends within"),
            ("root ::= *", 1, "repeats nothing"),
            ("root ::= \"a\"{3,2}", 1, "less often"),
            ("root ::= \"a\"{3", 1, "`}`"),
            ("root ::= \"a\"{x}", 1, "number"),
            ("root ::= \"a\"{99999999999999999999}", 1, "number"),
            ("root ::= \"a\"{3000}", 1, "too much"),
            ("root ::= ((\"a\"){0,60}){60}", 1, "too much"),
            ("root ::= (\"a\"", 1, "`)`"),
            ("root ::= \"a\" )", 1, "cannot come"),
            ("root ::= <secret>", 1, "`<token>`"),
            ("root ::= \"a\"\n%", 2, "begins no rule"),
            ("root ::= \"a\0\"", 1, "zero"),
            (&format!("root ::= {}", "(".repeat(100)), 1, "deeper"),
            (&format!("root ::= \"{}\"{{2000}}", "x".repeat(6000)), 1, "million"),
        ] {
            let mistake = check(grammar, &is_token).unwrap_err();
            assert!(mistake.line == line && mistake.what.contains(says), "{grammar}: {mistake:?}");
            assert!(!mistake.what.contains("secret"), "{mistake:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(root ::= )?[a-c\"\\[\\](){}*+?|.<>!^\\\\x0-9, \n#é-]{0,40}") {
            let _ = check(&text, &is_token);
        }
    }
}
