//! Reads a grammar as llama.cpp would. Pure.
//!
//! llama.cpp itself writes what it cannot parse to stderr, whole, and what a caller wrote belongs into no log; it ends
//! the process for a range like `{3,2}`.
//!
//! # Source
//! `llama_grammar_parser` in llama.cpp's `src/llama-grammar.cpp`, whose rules these are; stricter in depth and size.

use super::matcher::{Class, Element, Rules};
use std::collections::{HashMap, HashSet};

/// What is wrong with a grammar, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub what: String,
}

/// How deep rules may begin with one another: the check below recurses from rule to rule.
const MOST_BEGINNINGS: usize = 256;
/// Ways to the first character, of one rule: every one of them is walked.
const MOST_WAYS: u64 = 10_000;
/// And of all rules together.
const MOST_WAYS_TOGETHER: u64 = 1_000_000;
/// How deep groups may nest: the parser recurses.
const MOST_DEPTH: usize = 64;
/// llama.cpp's own limit for what one repetition makes.
const MOST_REPETITIONS: u64 = 2000;
/// Elements that all rules may come to, once repetitions are written out: 8 MiB.
const MOST_ELEMENTS: u64 = 1 << 20;

/// Reads a grammar with the start rule `root`. `token`: the number of a text like `<|im_end|>`, if it is one token.
///
/// # Errors
/// The first mistake; it quotes nothing of the grammar but a rule's name.
pub fn parse(text: &str, token: &dyn Fn(&str) -> Option<i32>) -> Result<Rules, Mistake> {
    let mut reader = Reader {
        text,
        at: 0,
        token,
        classes: Vec::new(),
        names: HashMap::new(),
        defined: HashSet::new(),
        generated: 0,
        elements: 0,
        rules: HashMap::new(),
        line: 1,
        counted: 0,
    };
    reader.grammar()?;
    Beginnings { rules: &reader.rules, known: HashMap::new() }.check(&reader.names)?;
    Ok(Writer::write(&reader.rules, reader.classes))
}

/// What a rule or a group may be: one of these.
type Alternates<'a> = Vec<Vec<Part<'a>>>;

/// A part of a sequence.
enum Part<'a> {
    Characters(Vec<Element>),
    Rule(&'a str),
    Group(Alternates<'a>),
    /// How often the part before it comes, at least and at most.
    Times(u64, Option<u64>),
}

/// Makes rules of what was read: a group becomes a rule of its own, and a repetition as many as it takes.
struct Writer<'a> {
    out: Rules,
    numbers: HashMap<&'a str, u32>,
}

impl<'a> Writer<'a> {
    fn write(rules: &HashMap<&'a str, Alternates<'a>>, classes: Vec<Class>) -> Rules {
        let mut names: Vec<&str> = rules.keys().copied().collect();
        // The start rule first; the others in an order that is the same every time.
        names.sort_unstable_by_key(|&name| (name != "root", name));
        let numbers = names.iter().enumerate().map(|(number, &name)| (name, number as u32)).collect();
        let out = Rules { code: Vec::new(), rules: vec![Vec::new(); names.len()], classes };
        let mut writer = Self { out, numbers };
        for (number, name) in names.iter().enumerate() {
            writer.alternates(number as u32, &rules[name]);
        }
        writer.out
    }

    fn alternates(&mut self, rule: u32, alternates: &Alternates<'a>) {
        for sequence in alternates {
            let elements = self.sequence(sequence);
            self.alternate(rule, &elements);
        }
    }

    fn alternate(&mut self, rule: u32, elements: &[Element]) {
        self.out.rules[rule as usize].push(self.out.code.len() as u32);
        self.out.code.extend_from_slice(elements);
        self.out.code.push(Element::End);
    }

    fn new_rule(&mut self) -> u32 {
        self.out.rules.push(Vec::new());
        self.out.rules.len() as u32 - 1
    }

    fn sequence(&mut self, parts: &[Part<'a>]) -> Vec<Element> {
        let mut elements = Vec::new();
        let mut last = 0;
        for part in parts {
            if let &Part::Times(least, most) = part {
                let item = elements.split_off(last);
                self.repeat(&item, least, most, &mut elements);
                continue;
            }
            last = elements.len();
            match part {
                Part::Characters(characters) => elements.extend_from_slice(characters),
                Part::Rule(name) => elements.extend(self.numbers.get(name).map(|&rule| Element::Rule(rule))),
                Part::Group(group) => {
                    let rule = self.new_rule();
                    self.alternates(rule, group);
                    elements.push(Element::Rule(rule));
                }
                Part::Times(..) => {}
            }
        }
        elements
    }

    /// As often as at least, then a rule for each time that it may come beyond, or one that goes on with itself.
    fn repeat(&mut self, item: &[Element], least: u64, most: Option<u64>, elements: &mut Vec<Element>) {
        (0..least).for_each(|_| elements.extend_from_slice(item));
        let times = most.map_or(1, |most| most - least);
        let mut rest = None;
        for _ in 0..times {
            let rule = self.new_rule();
            let next = if most.is_none() { Some(rule) } else { rest };
            let once: Vec<Element> = item.iter().copied().chain(next.map(Element::Rule)).collect();
            self.alternate(rule, &once);
            self.alternate(rule, &[]);
            rest = Some(rule);
        }
        elements.extend(rest.map(Element::Rule));
    }
}

/// Follows where each rule may begin, and refuses what begins with itself.
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

    /// Whether a part that may be nothing is repeated: there is no end of ways to read that. Every rule is known.
    fn repeats_nothing(&self, alternates: &Alternates<'a>) -> bool {
        alternates.iter().any(|sequence| {
            let within = sequence.iter().any(|part| match part {
                Part::Group(group) => self.repeats_nothing(group),
                _ => false,
            });
            let mut empty = false;
            within
                || sequence.iter().any(|part| match part {
                    Part::Times(_, most) if empty && *most != Some(1) => true,
                    Part::Times(least, _) => {
                        empty |= *least == 0;
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
                    while let Some(times) = parts.next_if(|it| matches!(it, Part::Times(..))) {
                        optional |= matches!(times, Part::Times(0, _));
                    }
                    Some(optional || self.may_be_nothing(part))
                })
                .all(|nothing| nothing)
            }),
            Part::Characters(_) | Part::Times(..) => false,
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
                    Part::Characters(_) | Part::Times(..) => Begins { empty: false, ways: 1, levels: 0 },
                    Part::Rule(name) => self.rule(name, level + 1)?,
                    Part::Group(group) => self.alternates(group, level + 1)?,
                };
                let mut optional = false;
                while let Some(times) = parts.next_if(|it| matches!(it, Part::Times(..))) {
                    optional |= matches!(times, Part::Times(0, _));
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
    token: &'a dyn Fn(&str) -> Option<i32>,
    classes: Vec<Class>,
    /// Rules that are named, and the line that does it first.
    names: HashMap<&'a str, usize>,
    defined: HashSet<&'a str>,
    /// Rules that come of groups and repetitions.
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
                '"' => self.literal()?,
                '[' => self.class()?,
                '<' | '!' => self.token()?,
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
                    (Item { elements: 1, rules: 1 }, Part::Characters(vec![Element::Any]))
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.times()?;
                    self.space(0 < depth);
                    let Some(item) = &mut last else { return self.wrong("repeats nothing") };
                    self.repeat(item, least, most)?;
                    parts.push(Part::Times(least, most));
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

    fn literal(&mut self) -> Result<(Item, Part<'a>), Mistake> {
        self.at += 1;
        let mut characters = Vec::new();
        while !self.take("\"") {
            characters.push(Element::Char(self.character()?));
        }
        Ok((Item { elements: characters.len() as u64, rules: 1 }, Part::Characters(characters)))
    }

    fn class(&mut self) -> Result<(Item, Part<'a>), Mistake> {
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let first = self.character()?;
            let mut last = first;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                last = self.character()?;
            }
            ranges.push((first, last));
        }
        let elements = ranges.len() as u64;
        self.classes.push(Class::new(negated, ranges));
        let class = Element::Class(self.classes.len() as u32 - 1);
        Ok((Item { elements, rules: 1 }, Part::Characters(vec![class])))
    }

    fn character(&mut self) -> Result<u32, Mistake> {
        let Some(c) = self.peek() else { return self.wrong("ends within a literal or a set of characters") };
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok(c.into());
        }
        let escaped = self.peek();
        let digits = match escaped {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some('t' | 'r' | 'n' | '\\' | '"' | '[' | ']' | '-') => 0,
            _ => return self.wrong("has an escape that is none"),
        };
        self.at += 1;
        let hex = self.text.as_bytes().get(self.at..self.at + digits).unwrap_or_default();
        if hex.len() != digits || !hex.iter().all(u8::is_ascii_hexdigit) {
            return self.wrong(format!("has an escape without its {digits} hexadecimal digits"));
        }
        self.at += digits;
        Ok(match escaped {
            Some('t') => '\t'.into(),
            Some('r') => '\r'.into(),
            Some('n') => '\n'.into(),
            Some(c) if digits == 0 => c.into(),
            _ => hex.iter().fold(0, |value, &digit| value << 4 | char::from(digit).to_digit(16).unwrap_or(0)),
        })
    }

    fn token(&mut self) -> Result<(Item, Part<'a>), Mistake> {
        let negated = self.take("!");
        let start = self.at;
        let token = if self.take("<[") {
            let number = self.number()?;
            i32::try_from(number).ok().filter(|_| self.take("]>"))
        } else {
            let text = self.take_while(|c| c != '>');
            let ends = self.take(">") && text.starts_with('<');
            if ends { (self.token)(&self.text[start..self.at]) } else { None }
        };
        let Some(token) = token else {
            return self.wrong("has a `<token>` that is none of this model's");
        };
        let element = if negated { Element::NotToken(token) } else { Element::Token(token) };
        Ok((Item { elements: 1, rules: 1 }, Part::Characters(vec![element])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(text: &str) -> Option<i32> {
        (text == "<|im_end|>").then_some(2)
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
            assert!(parse(grammar, &token).is_ok(), "{grammar}");
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
            let mistake = parse(grammar, &token).unwrap_err();
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
        let says = |grammar: &str| parse(grammar, &token).unwrap_err().what;
        assert!(parse(&chain(200, |next| next), &token).is_ok());
        assert!(says(&chain(20_000, |next| next)).contains("rule after rule"));
        assert!(says(&chain(200, |next| format!("(({next}))"))).contains("rule after rule"));
        assert!(parse(&chain(8, |next| format!("{next} \"b\" | {next} \"c\"")), &token).is_ok());
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
            let _ = parse(&text, &token);
        }
    }
}
