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

/// How deep rules may begin with one another: llama.cpp recurses from rule to rule.
const MOST_BEGINNINGS: usize = 256;
/// Ways to the first character, of one rule: llama.cpp walks every one of them, more than once.
const MOST_WAYS: u64 = 10_000;
/// And of all rules together.
const MOST_WAYS_TOGETHER: u64 = 1_000_000;
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
        rules: HashMap::new(),
        line: 1,
        counted: 0,
    };
    reader.grammar()?;
    Beginnings { rules: &reader.rules, known: HashMap::new() }.check(&reader.names)
}

/// What a rule or a group may be: one of these.
type Alternates<'a> = Vec<Vec<Part<'a>>>;

/// A part of a sequence, as far as it matters to where a text may begin.
enum Part<'a> {
    Characters,
    Rule(&'a str),
    Group(Alternates<'a>),
    /// The part before it may be left out.
    Optional,
    /// The part before it may come more than once.
    Repeated,
}

/// Follows where each rule may begin. What llama.cpp does for it has no bound of its own: it ends the process where rules
/// begin with one another too deep, and takes for ever where there are too many ways.
struct Beginnings<'r, 'a> {
    rules: &'r HashMap<&'a str, Alternates<'a>>,
    /// `None`: it is being followed.
    known: HashMap<&'a str, Option<Begins>>,
}

#[derive(Clone, Copy)]
struct Begins {
    /// It may be nothing at all.
    empty: bool,
    /// Ways to its first character.
    ways: u64,
    /// Levels of rules and groups on the longest of them.
    levels: usize,
}

impl<'a> Beginnings<'_, 'a> {
    fn check(&mut self, lines: &HashMap<&'a str, usize>) -> Result<(), Mistake> {
        let rules = self.rules;
        let mut together: u64 = 0;
        for name in rules.keys().copied() {
            let begins = self.rule(name, 0);
            let line = lines.get(name).copied().unwrap_or(1);
            let begins = begins.map_err(|what| Mistake { line, what })?;
            together = together.saturating_add(begins.ways);
            if begins.ways > MOST_WAYS || together > MOST_WAYS_TOGETHER {
                let what = format!("has too many ways to begin the rule `{name}`");
                return Err(Mistake { line, what });
            }
        }
        for (name, alternates) in rules {
            if self.repeats_nothing(alternates) {
                let what = format!("repeats something that may be nothing, in the rule `{name}`");
                return Err(Mistake { line: lines.get(name).copied().unwrap_or(1), what });
            }
        }
        Ok(())
    }

    /// Whether a part that may be nothing is repeated, where llama.cpp would go round for ever. Every rule is known.
    fn repeats_nothing(&self, alternates: &Alternates<'a>) -> bool {
        alternates.iter().any(|sequence| {
            let within = sequence.iter().any(|part| match part {
                Part::Group(group) => self.repeats_nothing(group),
                _ => false,
            });
            let mut empty = false;
            within
                || sequence.iter().any(|part| match part {
                    Part::Repeated => empty,
                    Part::Optional => {
                        empty = true;
                        false
                    }
                    part => {
                        empty = self.may_be_nothing(part);
                        false
                    }
                })
        })
    }

    fn may_be_nothing(&self, part: &Part<'a>) -> bool {
        match part {
            Part::Rule(name) => self.known.get(name).is_some_and(|known| known.is_some_and(|it| it.empty)),
            Part::Group(group) => group.iter().any(|sequence| {
                let mut parts = sequence.iter().peekable();
                std::iter::from_fn(|| {
                    let part = parts.next()?;
                    let mut optional = false;
                    while let Some(mark) = parts.next_if(|it| matches!(it, Part::Optional | Part::Repeated)) {
                        optional |= matches!(mark, Part::Optional);
                    }
                    Some(optional || self.may_be_nothing(part))
                })
                .all(|nothing| nothing)
            }),
            Part::Characters | Part::Optional | Part::Repeated => false,
        }
    }

    fn rule(&mut self, name: &'a str, level: usize) -> Result<Begins, String> {
        let deep = || format!("begins with rule after rule, more than {MOST_BEGINNINGS} of them");
        match self.known.get(name) {
            Some(Some(begins)) if level + begins.levels > MOST_BEGINNINGS => return Err(deep()),
            Some(Some(begins)) => return Ok(*begins),
            Some(None) => return Err(format!("has a rule that begins with itself: `{name}`")),
            None if level > MOST_BEGINNINGS => return Err(deep()),
            None => {}
        }
        self.known.insert(name, None);
        let rules = self.rules;
        let begins = match rules.get(name) {
            Some(alternates) => self.alternates(alternates, level)?,
            None => Begins { empty: false, ways: 1, levels: 0 },
        };
        self.known.insert(name, Some(begins));
        Ok(begins)
    }

    fn alternates(&mut self, alternates: &Alternates<'a>, level: usize) -> Result<Begins, String> {
        let mut whole = Begins { empty: false, ways: 0, levels: 0 };
        for sequence in alternates {
            let mut empty = true;
            let mut parts = sequence.iter().peekable();
            while let (true, Some(part)) = (empty, parts.next()) {
                let begins = match part {
                    Part::Characters | Part::Optional | Part::Repeated => {
                        Begins { empty: false, ways: 1, levels: 0 }
                    }
                    Part::Rule(name) => self.rule(name, level + 1)?,
                    Part::Group(group) => self.alternates(group, level + 1)?,
                };
                let mut optional = false;
                while let Some(mark) = parts.next_if(|it| matches!(it, Part::Optional | Part::Repeated)) {
                    optional |= matches!(mark, Part::Optional);
                }
                whole.ways = whole.ways.saturating_add(begins.ways);
                whole.levels = whole.levels.max(begins.levels + 1);
                empty = begins.empty || optional;
            }
            whole.ways = whole.ways.saturating_add(u64::from(empty));
            whole.empty |= empty;
        }
        Ok(whole)
    }
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
    rules: HashMap<&'a str, Alternates<'a>>,
    /// The line of the byte `counted`.
    line: usize,
    counted: usize,
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
        let since = self.text.as_bytes().get(self.counted..self.at).unwrap_or_default();
        self.line += since.iter().filter(|&&byte| byte == b'\n').count();
        self.counted = self.at;
        let line = self.line;
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
        let alternates = self.alternates(0)?;
        self.rules.insert(name, alternates);
        self.defined.insert(name);
        if self.peek().is_some() && !(self.take("\r\n") || self.take("\r") || self.take("\n")) {
            return self.wrong(format!("has something in the rule `{name}` that cannot come there"));
        }
        self.space(true);
        Ok(())
    }

    fn alternates(&mut self, depth: usize) -> Result<Alternates<'a>, Mistake> {
        if depth > MOST_DEPTH {
            return self.wrong(format!("nests its groups deeper than {MOST_DEPTH}"));
        }
        let mut all = vec![self.sequence(depth)?];
        while self.take("|") {
            self.space(true);
            all.push(self.sequence(depth)?);
        }
        Ok(all)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Part<'a>>, Mistake> {
        let mut parts = Vec::new();
        let mut last: Option<Item> = None;
        while let Some(c) = self.peek() {
            let (item, part) = match c {
                '"' => (self.literal()?, Part::Characters),
                '[' => (self.class()?, Part::Characters),
                '<' | '!' => (self.token()?, Part::Characters),
                '(' => {
                    self.at += 1;
                    self.space(true);
                    let before = self.symbols();
                    self.generated += 1;
                    let group = self.alternates(depth + 1)?;
                    let rules = (self.symbols() - before).max(1);
                    if !self.take(")") {
                        return self.wrong("has a group without its `)`");
                    }
                    (Item { elements: 1, rules }, Part::Group(group))
                }
                '.' => {
                    self.at += 1;
                    (Item { elements: 1, rules: 1 }, Part::Characters)
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.times()?;
                    self.space(0 < depth);
                    let Some(item) = &mut last else { return self.wrong("repeats nothing") };
                    self.repeat(item, least, most)?;
                    // In this order: whether what is repeated may be nothing is asked before it may be left out.
                    if most != Some(1) {
                        parts.push(Part::Repeated);
                    }
                    if least == 0 {
                        parts.push(Part::Optional);
                    }
                    continue;
                }
                _ => match self.name() {
                    Some(name) => (Item { elements: 1, rules: 1 }, Part::Rule(name)),
                    None => return Ok(parts),
                },
            };
            self.grow(item.elements)?;
            // A literal without a character is nothing.
            if item.elements > 0 {
                parts.push(part);
            }
            last = Some(item);
            self.space(0 < depth);
        }
        Ok(parts)
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
        if item.elements == 0 {
            return self.wrong("repeats nothing");
        }
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

    /// `x0` begins with `x1`, and so on: `each` makes the body of one out of the name of the next.
    fn chain(rules: usize, each: impl Fn(String) -> String) -> String {
        let rule = |i: usize| format!("x{i} ::= {}\n", each(format!("x{}", i + 1)));
        format!("root ::= x0\n{}x{rules} ::= \"z\"", (0..rules).map(rule).collect::<String>())
    }

    #[test]
    fn what_llama_cpp_would_not_come_back_from_is_refused() {
        let says = |grammar: &str| check(grammar, &is_token).unwrap_err().what;
        assert_eq!(check(&chain(200, |next| next), &is_token), Ok(()));
        assert!(says(&chain(20_000, |next| next)).contains("rule after rule"));
        assert!(says(&chain(200, |next| format!("(({next}))"))).contains("rule after rule"));
        assert_eq!(check(&chain(8, |next| format!("{next} \"b\" | {next} \"c\"")), &is_token), Ok(()));
        assert!(says(&chain(30, |next| format!("{next} \"b\" | {next} \"c\""))).contains("too many ways"));
        for itself in [
            "root ::= root",
            "root ::= a\na ::= b? root \"x\"\nb ::= \"b\"",
            "root ::= a root\na ::= b\nb ::= \"\"",
        ] {
            assert!(says(itself).contains("begins with itself"), "{itself}");
        }
        for nothing in [
            "root ::= a*\na ::= b\nb ::= \"\"",
            "root ::= (\"a\"?)+",
            "root ::= \"x\" (\"a\"* | b){2,3}\nb ::= \"b\"",
        ] {
            assert!(says(nothing).contains("may be nothing"), "{nothing}");
        }
        assert!(says("root ::= \"\"*").contains("repeats nothing"));
        assert!(says("root ::= []+").contains("repeats nothing"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(root ::= )?[a-c\"\\[\\](){}*+?|.<>!^\\\\x0-9, \n#é-]{0,40}") {
            let _ = check(&text, &is_token);
        }
    }
}
