//! Follows an answer through a grammar, token by token. Pure.
//!
//! A grammar may be read in several ways at once, and each way is a stack of places to go on at. llama.cpp walks every
//! stack on its own: two ways to begin each level double its work with every character, a token has up to a hundred of
//! them, and nothing stops it. Here stacks share what they have in common, a step that was made once is remembered, and
//! work is counted: a grammar that asks for too much ends its own answer and delays no other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What a sequence of a grammar is made of, in the place of the next character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// This character.
    Char(u32),
    /// One of [`Rules::classes`].
    Class(u32),
    /// Any character.
    Any,
    /// What a rule allows.
    Rule(u32),
    /// This token, whatever its text.
    Token(i32),
    /// Any other token.
    NotToken(i32),
    /// The sequence is complete.
    End,
}

/// A set of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    negated: bool,
    /// In order, and apart.
    ranges: Vec<(u32, u32)>,
}

impl Class {
    /// The characters within the ranges, or those without.
    pub fn new(negated: bool, mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut apart: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match apart.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => apart.push((first, last)),
            }
        }
        Self { negated, ranges: apart }
    }

    /// Whether one of these characters is in the set.
    fn has_any(&self, first: u32, last: u32) -> bool {
        let mut ranges = self.ranges.iter();
        if self.negated {
            !ranges.any(|&(low, high)| low <= first && last <= high)
        } else {
            ranges.any(|&(low, high)| low <= last && first <= high)
        }
    }
}

/// A grammar, ready to be followed. Rule 0 is where it begins.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// All sequences, one after another, each with its [`Element::End`].
    pub code: Vec<Element>,
    /// Where in `code` each alternative of each rule begins.
    pub rules: Vec<Vec<u32>>,
    pub classes: Vec<Class>,
}

/// That following the grammar took more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// The empty stack: the answer may end here.
const DONE: u32 = 0;
/// The state without a stack: no answer goes on like this.
const DEAD: u32 = 0;

/// Work that may be saved up: about a tenth of a second. A token that nothing is known about, looked for among a whole
/// vocabulary, takes a twentieth of it in a grammar of JSON.
const MOST_WORK: u64 = 1 << 22;
/// Work that each token adds, so that an answer takes a hundredth of a second a token in the long run.
const WORK_PER_TOKEN: u64 = 1 << 18;
/// Work of following a stack into its rule, compared with asking it for a character.
const VISIT: u64 = 4;
/// Places on all stacks, some 10 MiB.
const MOST_NODES: usize = 1 << 18;
/// So many places or steps are cleared away between two tokens, as far as no stack needs them.
const MANY: usize = 1 << 16;

/// An answer's way through a grammar so far.
#[derive(Clone, Debug)]
pub struct Matcher {
    rules: Arc<Rules>,
    /// A place in the code, and the stack that it lies on. The first stands for [`DONE`].
    nodes: Vec<(u32, u32)>,
    known_nodes: HashMap<(u32, u32), u32>,
    /// Sets of stacks, each in order. The first is [`DEAD`].
    states: Vec<Arc<[u32]>>,
    known_states: HashMap<Arc<[u32]>, u32>,
    /// From a state by a character to another.
    steps: HashMap<(u32, u32), u32>,
    state: u32,
    /// Bytes of a character that is not whole yet.
    partial: Vec<u8>,
    work: u64,
    /// Nodes and steps at which they are cleared away.
    many: usize,
}

impl Matcher {
    /// At the beginning.
    ///
    /// # Errors
    /// When already that takes too much.
    pub fn new(rules: Arc<Rules>) -> Result<Self, Exhausted> {
        let mut matcher = Self {
            rules,
            nodes: Vec::new(),
            known_nodes: HashMap::new(),
            states: Vec::new(),
            known_states: HashMap::new(),
            steps: HashMap::new(),
            state: DEAD,
            partial: Vec::new(),
            work: MOST_WORK,
            many: MANY,
        };
        matcher.clear();
        let starts = matcher.rules.rules.first().cloned().unwrap_or_default();
        let mut todo = Vec::with_capacity(starts.len());
        for start in starts {
            todo.push(matcher.push(start, DONE)?);
        }
        matcher.state = matcher.expand(todo)?;
        Ok(matcher)
    }

    /// Whether the answer may end here.
    pub fn may_end(&self) -> bool {
        self.partial.is_empty() && self.stacks(self.state).first() == Some(&DONE)
    }

    /// Whether a token may come.
    ///
    /// # Errors
    /// When it takes too much to say.
    pub fn allows(&mut self, token: i32, text: &[u8]) -> Result<bool, Exhausted> {
        Ok(self.follow(Some(token), text)?.is_some())
    }

    /// Goes on with a token; false, and nothing changes, where it may not come.
    ///
    /// # Errors
    /// When it takes too much to follow.
    pub fn accept(&mut self, token: i32, text: &[u8]) -> Result<bool, Exhausted> {
        self.go_on(Some(token), text)
    }

    /// Goes on with text, whatever tokens it is made of; false, and nothing changes, where it may not come.
    ///
    /// # Errors
    /// When it takes too much to follow.
    pub fn accept_text(&mut self, text: &[u8]) -> Result<bool, Exhausted> {
        self.go_on(None, text)
    }

    /// Reads a whole text from here with so much work at most; whether it may end there, and the work that is left.
    pub fn reads(&self, text: &[u8], work: u64) -> (Result<bool, Exhausted>, u64) {
        let mut reader = self.clone();
        reader.work = work.min(self.work);
        let read = reader.follow_text(text).map(|(state, partial)| {
            (reader.state, reader.partial) = (state, partial);
            state != DEAD && reader.may_end()
        });
        (read, reader.work)
    }

    fn go_on(&mut self, token: Option<i32>, text: &[u8]) -> Result<bool, Exhausted> {
        let Some((state, partial)) = self.follow(token, text)? else { return Ok(false) };
        (self.state, self.partial) = (state, partial);
        self.work = (self.work + WORK_PER_TOKEN).min(MOST_WORK);
        if self.nodes.len().max(self.steps.len()).max(self.states.len()) > self.many {
            self.tidy()?;
        }
        Ok(true)
    }

    /// Where a token leads, and what it leaves of a character.
    fn follow(&mut self, token: Option<i32>, text: &[u8]) -> Result<Option<(u32, Vec<u8>)>, Exhausted> {
        let (by_text, partial) = self.follow_text(text)?;
        let by_token = match token {
            Some(token) if self.partial.is_empty() => self.follow_token(token)?,
            _ => DEAD,
        };
        Ok(match (by_text, by_token) {
            (DEAD, DEAD) => None,
            (state, DEAD) => Some((state, partial)),
            (DEAD, state) => Some((state, Vec::new())),
            // Half a character and a whole token: what comes next cannot be both.
            (_, state) if !partial.is_empty() => Some((state, Vec::new())),
            (one, other) => {
                let both = [&*self.states[one as usize], &*self.states[other as usize]].concat();
                Some((self.state_of(both)?, partial))
            }
        })
    }

    fn follow_text(&mut self, text: &[u8]) -> Result<(u32, Vec<u8>), Exhausted> {
        let dead = (DEAD, Vec::new());
        let joined;
        let mut rest = text;
        if !self.partial.is_empty() {
            joined = [&*self.partial, text].concat();
            rest = &joined;
        }
        if text.is_empty() {
            return Ok(dead);
        }
        let mut state = self.state;
        let whole = match std::str::from_utf8(rest) {
            Ok(whole) => whole,
            Err(error) if error.error_len().is_some() => return Ok(dead),
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default(),
        };
        for c in whole.chars() {
            state = self.step(state, c.into())?;
            if state == DEAD {
                return Ok(dead);
            }
        }
        let partial = &rest[whole.len()..];
        if let Some((first, last)) = characters(partial) {
            let rules = self.rules.clone();
            let stacks = self.states[state as usize].clone();
            self.spend(stacks.len() as u64)?;
            if !stacks.iter().any(|&stack| self.has_any(&rules, stack, first, last)) {
                return Ok(dead);
            }
        }
        Ok((state, partial.to_vec()))
    }

    fn follow_token(&mut self, token: i32) -> Result<u32, Exhausted> {
        let stacks = self.states[self.state as usize].clone();
        let mut todo = Vec::new();
        for &stack in stacks.iter().filter(|&&stack| stack != DONE) {
            let (at, below) = self.nodes[stack as usize];
            let matches = match self.rules.code[at as usize] {
                Element::Token(other) => token == other,
                Element::NotToken(other) => token != other,
                _ => false,
            };
            if matches {
                todo.push(self.push(at + 1, below)?);
            }
        }
        if todo.is_empty() { Ok(DEAD) } else { self.expand(todo) }
    }

    /// From a state by a character to another.
    fn step(&mut self, state: u32, c: u32) -> Result<u32, Exhausted> {
        if let Some(&next) = self.steps.get(&(state, c)) {
            return Ok(next);
        }
        let (rules, stacks) = (self.rules.clone(), self.states[state as usize].clone());
        self.spend(1 + stacks.len() as u64)?;
        let mut todo = Vec::new();
        for &stack in &*stacks {
            if self.has_any(&rules, stack, c, c) {
                let (at, below) = self.nodes[stack as usize];
                todo.push(self.push(at + 1, below)?);
            }
        }
        let next = if todo.is_empty() { DEAD } else { self.expand(todo)? };
        self.steps.insert((state, c), next);
        Ok(next)
    }

    /// Whether a stack goes on with one of these characters.
    fn has_any(&self, rules: &Rules, stack: u32, first: u32, last: u32) -> bool {
        if stack == DONE {
            return false;
        }
        match rules.code[self.nodes[stack as usize].0 as usize] {
            Element::Char(c) => first <= c && c <= last,
            Element::Class(class) => rules.classes[class as usize].has_any(first, last),
            Element::Any => true,
            Element::Rule(_) | Element::Token(_) | Element::NotToken(_) | Element::End => false,
        }
    }

    /// The state of these stacks, once each has gone into its rules as far as its next character or token.
    fn expand(&mut self, mut todo: Vec<u32>) -> Result<u32, Exhausted> {
        let rules = self.rules.clone();
        let (mut seen, mut stacks) = (HashSet::new(), Vec::new());
        while let Some(stack) = todo.pop() {
            if !seen.insert(stack) {
                continue;
            }
            self.spend(VISIT)?;
            let (at, below) = self.nodes[stack as usize];
            match rules.code[at as usize] {
                Element::Rule(rule) if stack != DONE => {
                    let below = self.push(at + 1, below)?;
                    for &start in &rules.rules[rule as usize] {
                        todo.push(self.push(start, below)?);
                    }
                }
                _ => stacks.push(stack),
            }
        }
        self.state_of(stacks)
    }

    /// The stack with this place on top; a sequence that is complete leaves nothing behind.
    fn push(&mut self, at: u32, below: u32) -> Result<u32, Exhausted> {
        if self.rules.code[at as usize] == Element::End {
            return Ok(below);
        }
        if let Some(&node) = self.known_nodes.get(&(at, below)) {
            return Ok(node);
        }
        if self.nodes.len() >= MOST_NODES {
            return Err(Exhausted);
        }
        let node = self.nodes.len() as u32;
        self.nodes.push((at, below));
        self.known_nodes.insert((at, below), node);
        Ok(node)
    }

    fn state_of(&mut self, mut stacks: Vec<u32>) -> Result<u32, Exhausted> {
        stacks.sort_unstable();
        stacks.dedup();
        if let Some(&state) = self.known_states.get(&*stacks) {
            return Ok(state);
        }
        self.spend(stacks.len() as u64)?;
        let (state, stacks): (u32, Arc<[u32]>) = (self.states.len() as u32, stacks.into());
        self.states.push(stacks.clone());
        self.known_states.insert(stacks, state);
        Ok(state)
    }

    fn stacks(&self, state: u32) -> &[u32] {
        &self.states[state as usize]
    }

    fn spend(&mut self, work: u64) -> Result<(), Exhausted> {
        self.work = self.work.checked_sub(work).ok_or(Exhausted)?;
        Ok(())
    }

    fn clear(&mut self) {
        self.nodes.clear();
        self.nodes.push((0, DONE));
        self.known_nodes.clear();
        self.states.clear();
        self.states.push(Arc::new([]));
        self.known_states.clear();
        self.known_states.insert(Arc::new([]), DEAD);
        self.steps.clear();
    }

    /// Keeps what the stacks of now need.
    fn tidy(&mut self) -> Result<(), Exhausted> {
        let stacks = self.states[self.state as usize].clone();
        let old = std::mem::take(&mut self.nodes);
        let mut needed = vec![false; old.len()];
        // What a stack lies on was there before it.
        for &stack in &*stacks {
            let mut at = stack;
            while !std::mem::replace(&mut needed[at as usize], true) {
                at = old[at as usize].1;
            }
        }
        self.clear();
        let mut moved = vec![DONE; old.len()];
        for (node, &(at, below)) in old.iter().enumerate().skip(1).filter(|(node, _)| needed[*node]) {
            moved[node] = self.push(at, moved[below as usize])?;
        }
        self.many = MANY.max(2 * self.nodes.len());
        self.state = self.state_of(stacks.iter().map(|&stack| moved[stack as usize]).collect())?;
        Ok(())
    }

    /// What may come next, for tests that write answers of their own: ranges of characters.
    #[cfg(test)]
    pub fn next_ranges(&self) -> Vec<(u32, u32)> {
        let mut ranges = Vec::new();
        for &stack in self.stacks(self.state).iter().filter(|&&stack| stack != DONE) {
            match self.rules.code[self.nodes[stack as usize].0 as usize] {
                Element::Char(c) => ranges.push((c, c)),
                Element::Class(class) => {
                    let class = &self.rules.classes[class as usize];
                    if !class.negated {
                        ranges.extend(&class.ranges);
                    } else {
                        let some = [0x20, 0x22, 0x5c, 0x61, 0xe9, 0x1_f600];
                        ranges.extend(some.iter().filter(|&&c| class.has_any(c, c)).map(|&c| (c, c)));
                    }
                }
                _ => ranges.push((0x61, 0x7a)),
            }
        }
        ranges
    }
}

/// The first and the last character that may begin with these bytes; `None` for no bytes.
fn characters(bytes: &[u8]) -> Option<(u32, u32)> {
    let (&lead, rest) = bytes.split_first()?;
    let (length, bits, least) = match lead {
        0xF0.. => (4, lead & 0x07, 0x1_0000),
        0xE0.. => (3, lead & 0x0F, 0x800),
        _ => (2, lead & 0x1F, 0x80),
    };
    let value = rest.iter().fold(u32::from(bits), |value, byte| value << 6 | u32::from(byte & 0x3F));
    let missing = 6 * (length - bytes.len() as u32);
    let first = value << missing;
    Some((first.max(least), (first | ((1 << missing) - 1)).min(0x10_FFFF)))
}

#[cfg(test)]
mod tests {
    use super::super::gbnf;
    use super::*;
    use proptest::prelude::*;

    fn matcher(grammar: &str) -> Matcher {
        let rules = gbnf::parse(grammar, &|text| (text == "<|im_end|>").then_some(2)).unwrap();
        Matcher::new(Arc::new(rules)).unwrap()
    }

    fn reads(grammar: &str, text: &str) -> bool {
        let mut matcher = matcher(grammar);
        matcher.accept_text(text.as_bytes()).unwrap() && matcher.may_end()
    }

    const JSON: &str = r#"root ::= space value space
value ::= "{" space (pair (space "," space pair)*)? space "}" | "[" space (value (space "," space value)*)? space "]" | string | [0-9]+ | "null"
pair ::= string space ":" space value
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
space ::= [ \n]*"#;

    #[test]
    fn json_is_read() {
        for json in [
            "[]",
            " {\"a\": [1, 20, null], \"b\\u00e9\": {}} ",
            "\"\u{e9}\u{1f600}\\n\"",
            &("[".repeat(3000) + &"]".repeat(3000)),
        ] {
            assert!(reads(JSON, json), "{json}");
        }
        for no in ["", "[", "[1,]", "{1: 2}", "\"\n\"", "nul", "[]]", "\"\\x\""] {
            let mut matcher = matcher(JSON);
            assert!(!(matcher.accept_text(no.as_bytes()).unwrap() && matcher.may_end()), "{no}");
        }
    }

    #[test]
    fn tokens_are_asked_for_by_number() {
        let mut one = matcher("root ::= \"a\" <|im_end|> !<[7]> \"b\" | \"a<|\"");
        assert!(!one.allows(2, b"<|im_end|>").unwrap());
        assert!(one.accept(5, b"a").unwrap());
        assert!(one.allows(2, b"<|im_end|>").unwrap() && one.allows(2, b"").unwrap());
        assert!(one.allows(9, b"<|").unwrap() && !one.allows(9, b"<|im").unwrap());
        assert!(one.accept(2, b"<|im_end|>").unwrap());
        assert!(!one.allows(7, b"x").unwrap() && one.accept(8, b"").unwrap());
        assert!(one.accept(5, b"b").unwrap() && one.may_end());
    }

    #[test]
    fn half_a_character_comes_where_a_whole_one_may() {
        let mut one = matcher("root ::= [\u{e9}-\u{ea}] | \"\u{1f600}\"");
        assert!(!one.allows(1, b"\xc3\x28").unwrap() && !one.allows(1, b"\xc4").unwrap());
        assert!(!one.allows(1, b"\xf0\x90").unwrap() && one.allows(1, b"\xf0\x9f").unwrap());
        assert!(one.accept(1, b"\xc3").unwrap());
        assert!(!one.may_end() && !one.allows(1, b"\xa0").unwrap() && !one.allows(1, b"a").unwrap());
        assert!(one.accept(1, b"\xaa").unwrap() && one.may_end());
    }

    /// Two ways to begin each level, told apart by its end alone.
    const DOUBLING: &str = "root ::= a\na ::= \"(\" a \")\" | \"(\" a \"]\" | \"x\"";

    #[test]
    fn what_doubles_with_every_character_is_stopped_within_one_token() {
        assert!(reads(DOUBLING, "((((((((x]))])])]"));
        let long = "(".repeat(100);
        for text in [long.clone(), long + "y"] {
            assert_eq!(matcher(DOUBLING).allows(1, text.as_bytes()), Err(Exhausted));
            assert_eq!(matcher(DOUBLING).accept(1, text.as_bytes()), Err(Exhausted));
        }
        let mut slow = matcher(DOUBLING);
        let tokens = (0..100).position(|_| slow.accept(1, b"(").is_err());
        assert!(tokens.is_some_and(|tokens| (8..20).contains(&tokens)), "{tokens:?}");
        let rules = gbnf::parse(
            "root ::= a a a a a a a a a a a a a a a a a a a a \"b\"\na ::= \"x\"? \"y\"? \"z\"?",
            &|_| None,
        );
        assert!(Matcher::new(Arc::new(rules.unwrap())).is_ok(), "many ways to begin are walked once each");
    }

    #[test]
    fn a_long_answer_takes_no_more_memory_than_it_needs() {
        let mut matcher = matcher("root ::= (\"a\" | \"b\" [0-9]{0,9} \" \")*");
        for _ in 0..50_000 {
            assert!(matcher.accept(1, b"ab12 ").unwrap());
        }
        assert!(matcher.nodes.len() <= MANY && matcher.steps.len() <= MANY);
        let mut deep = super::tests::matcher("root ::= a\na ::= \"(\" a \")\" | \"x\"");
        for _ in 0..80_000 {
            assert!(deep.accept(1, b"(").unwrap());
        }
        assert!(deep.nodes.len() < 4 * 80_000);
        assert!(deep.accept(1, b"x").unwrap());
        for _ in 0..80_000 {
            assert!(!deep.may_end() && deep.accept(1, b")").unwrap());
        }
        assert!(deep.may_end());
    }

    /// A grammar without recursion, and the regular expression that says the same.
    fn both() -> impl Strategy<Value = (String, String)> {
        let leaf = prop_oneof![
            "[ab]{1,2}".prop_map(|text| (format!("\"{text}\""), text)),
            Just(("[a-c]".to_owned(), "[a-c]".to_owned())),
            Just(("[^b]".to_owned(), "[^b]".to_owned())),
            Just((".".to_owned(), "(?s:.)".to_owned())),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                (
                    inner.clone(),
                    prop_oneof![Just("?"), Just("*"), Just("+"), Just("{2}"), Just("{1,3}"), Just("{2,}")]
                )
                    .prop_map(|((one, two), times)| (format!("({one}){times}"), format!("(?:{two}){times}"))),
                proptest::collection::vec(inner.clone(), 1..4).prop_map(|parts| {
                    let (one, two): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
                    (one.join(" "), two.concat())
                }),
                proptest::collection::vec(inner, 1..4).prop_map(|parts| {
                    let (one, two): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
                    (format!("({})", one.join(" | ")), format!("(?:{})", two.join("|")))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_reads_what_a_regular_expression_reads(
            (grammar, regex) in both(), texts in proptest::collection::vec("[abc\u{e9}]{0,7}", 12),
        ) {
            let Ok(rules) = gbnf::parse(&format!("root ::= {grammar}"), &|_| None) else { return Ok(()) };
            let rules = Arc::new(rules);
            let regex = regex::Regex::new(&format!("^(?:{regex})$")).unwrap();
            for text in texts {
                let mut matcher = Matcher::new(rules.clone()).unwrap();
                let whole = matcher.accept_text(text.as_bytes()).unwrap() && matcher.may_end()
                    || text.is_empty() && matcher.may_end();
                prop_assert_eq!(whole, regex.is_match(&text), "{} {}", grammar, text);
            }
        }

        #[test]
        fn tokens_may_be_cut_anywhere(text in "(\\[[0-9]?,?|\"\u{e9}?|null|\\]|\\{|\"a\": |\u{1f600}){0,8}", cuts in proptest::collection::vec(0usize..40, 0..9)) {
            let mut whole = matcher(JSON);
            let read = text.is_empty() || whole.accept_text(text.as_bytes()).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            cuts.dedup();
            let mut pieces = matcher(JSON);
            let each = cuts.windows(2).all(|cut| pieces.accept_text(&text.as_bytes()[cut[0]..cut[1]]).unwrap());
            prop_assert_eq!(each, read);
            prop_assert!(!read || pieces.may_end() == whole.may_end());
        }
    }
}
