//! Whole-number expressions of a kernel's card: sides of tensors, grids, bytes of shared memory.
//!
//! ```text
//! sum     = product { ("+" | "-") product }
//! product = atom { ("*" | "/" | "%") atom }
//! atom    = number | name | name "(" sum "," sum ")" | "(" sum ")"
//! ```
//!
//! Functions: `ceil_div(a, b)`, `min(a, b)`, `max(a, b)`. Division rounds towards zero. What overflows, divides by zero or
//! is below zero is an error that says where.

use std::collections::BTreeMap;
use std::fmt;

/// Numbers by name.
pub type Numbers = BTreeMap<String, i64>;

/// An expression, with the text that it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    text: String,
    root: Node,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Number(i64),
    Name(String),
    Call(Function, Box<[Node; 2]>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    CeilDiv,
    Min,
    Max,
}

/// How deep parentheses may be nested.
const DEPTH: usize = 32;
/// Bytes of an expression.
const LONGEST: usize = 256;

impl Expr {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        if LONGEST < text.len() {
            return Err(format!("an expression has {} bytes, and may have {LONGEST}", text.len()));
        }
        let mut parser = Parser { text, at: 0, depth: 0 };
        let root = parser.sum()?;
        match parser.peek() {
            None => Ok(Self { text: text.trim().to_owned(), root }),
            Some(_) => Err(parser.unexpected("the end")),
        }
    }

    /// A number.
    pub fn number(number: i64) -> Self {
        Self { text: number.to_string(), root: Node::Number(number) }
    }

    /// The name, if it is one and nothing else.
    pub fn name(&self) -> Option<&str> {
        match &self.root {
            Node::Name(name) => Some(name),
            Node::Number(_) | Node::Call(..) => None,
        }
    }

    /// The number, if it is one and nothing else.
    pub fn constant(&self) -> Option<i64> {
        match self.root {
            Node::Number(number) => Some(number),
            Node::Name(_) | Node::Call(..) => None,
        }
    }

    /// All names in it.
    pub fn names(&self) -> Vec<&str> {
        fn walk<'a>(node: &'a Node, names: &mut Vec<&'a str>) {
            match node {
                Node::Number(_) => {}
                Node::Name(name) => names.push(name),
                Node::Call(_, both) => both.iter().for_each(|node| walk(node, names)),
            }
        }
        let mut names = Vec::new();
        walk(&self.root, &mut names);
        names
    }

    /// Its value.
    ///
    /// # Errors
    /// When it has none: a name is not known, it overflows, divides by zero, or is below zero.
    pub fn value(&self, numbers: &Numbers) -> Result<i64, String> {
        let wrong = |what: String| format!("`{}`: {what}", self.text);
        let value = evaluate(&self.root, numbers).map_err(wrong)?;
        if value < 0 { Err(wrong(format!("is {value}, below zero"))) } else { Ok(value) }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn evaluate(node: &Node, numbers: &Numbers) -> Result<i64, String> {
    let (function, [a, b]) = match node {
        Node::Number(number) => return Ok(*number),
        Node::Name(name) => {
            return numbers.get(name).copied().ok_or_else(|| format!("`{name}` is not known"));
        }
        Node::Call(function, both) => (function, &**both),
    };
    let (a, b) = (evaluate(a, numbers)?, evaluate(b, numbers)?);
    let value = match function {
        Function::Add => a.checked_add(b),
        Function::Subtract => a.checked_sub(b),
        Function::Multiply => a.checked_mul(b),
        Function::Min => Some(a.min(b)),
        Function::Max => Some(a.max(b)),
        Function::Divide | Function::Remainder | Function::CeilDiv if b == 0 => {
            return Err(format!("divides {a} by zero"));
        }
        Function::Divide => a.checked_div(b),
        Function::Remainder => a.checked_rem(b),
        Function::CeilDiv => b.checked_sub(1).and_then(|less| a.checked_add(less)?.checked_div(b)),
    };
    value.ok_or_else(|| "is beyond 64 bits".to_owned())
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if DEPTH < self.depth {
            return Err(format!("`{}` is nested more than {DEPTH} deep", self.text));
        }
        let mut left = self.product()?;
        while let Some(function) = self.take([('+', Function::Add), ('-', Function::Subtract)]) {
            left = Node::Call(function, Box::new([left, self.product()?]));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn product(&mut self) -> Result<Node, String> {
        let mut left = self.atom()?;
        let signs = [('*', Function::Multiply), ('/', Function::Divide), ('%', Function::Remainder)];
        while let Some(function) = self.take(signs) {
            left = Node::Call(function, Box::new([left, self.atom()?]));
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<Node, String> {
        match self.peek() {
            Some('0'..='9') => {
                let digits = self.word();
                digits
                    .parse()
                    .map(Node::Number)
                    .map_err(|_| format!("`{}`: `{digits}` is no whole number", self.text))
            }
            Some('a'..='z' | 'A'..='Z' | '_') => {
                let name = self.word();
                if self.peek() != Some('(') {
                    return Ok(Node::Name(name));
                }
                let function = match &*name {
                    "ceil_div" => Function::CeilDiv,
                    "min" => Function::Min,
                    "max" => Function::Max,
                    _ => {
                        return Err(format!(
                            "`{}`: there is no function `{name}`; there are `ceil_div`, `min` and `max`",
                            self.text
                        ));
                    }
                };
                self.expect('(')?;
                let a = self.sum()?;
                self.expect(',')?;
                let b = self.sum()?;
                self.expect(')')?;
                Ok(Node::Call(function, Box::new([a, b])))
            }
            Some('(') => {
                self.expect('(')?;
                let inner = self.sum()?;
                self.expect(')')?;
                Ok(inner)
            }
            _ => Err(self.unexpected("a number, a name or `(`")),
        }
    }

    fn word(&mut self) -> String {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    fn take<const N: usize>(&mut self, signs: [(char, Function); N]) -> Option<Function> {
        let next = self.peek()?;
        let (_, function) = signs.into_iter().find(|(sign, _)| *sign == next)?;
        self.at += 1;
        Some(function)
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.peek() != Some(wanted) {
            return Err(self.unexpected(&format!("`{wanted}`")));
        }
        self.at += 1;
        Ok(())
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn unexpected(&mut self, wanted: &str) -> String {
        let found = self.peek().map_or("it ends".to_owned(), |c| format!("there is `{c}`"));
        format!("`{}`: {wanted} must stand at {}, and {found}", self.text, self.at + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Result<i64, String> {
        let numbers = [("n", 10), ("width_2", 7), ("zero", 0)].map(|(name, value)| (name.to_owned(), value));
        Expr::parse(text)?.value(&numbers.into())
    }

    #[test]
    fn sums_and_products_are_as_in_school() {
        for (text, expected) in [
            ("0", 0),
            (" 2 + 3*4 ", 14),
            ("(2+3)*4", 20),
            ("20 - 3 - 2", 15),
            ("n*width_2 % 8 / 2", 3),
            ("ceil_div(n, 3) + min(n, 4) * max(1, zero)", 8),
            ("ceil_div(9, 3)", 3),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, says) in [
            ("", "a number, a name or `(` must stand at 1, and it ends"),
            ("2 +", "must stand at 4, and it ends"),
            ("n m", "the end must stand at 3, and there is `m`"),
            ("ceil_div(n)", "`,` must stand at 11, and there is `)`"),
            ("(n", "`)` must stand at 3"),
            ("pow(2, 3)", "no function `pow`"),
            ("2.5", "the end must stand at 2, and there is `.`"),
            ("9z", "`9z` is no whole number"),
            ("99999999999999999999", "is no whole number"),
            ("m", "`m` is not known"),
            ("n / zero", "divides 10 by zero"),
            ("ceil_div(1, zero)", "divides 1 by zero"),
            ("3 - n", "is -7, below zero"),
            ("9223372036854775807 + n", "beyond 64 bits"),
        ] {
            let said = value(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        assert!(value(&"(".repeat(100)).unwrap_err().contains("nested"));
        assert!(value(&"1+".repeat(200)).unwrap_err().contains("256"));
    }

    proptest! {
        #[test]
        fn no_text_brings_it_down(text in "[a-z0-9+*/%(), -]{0,40}") {
            let _ = value(&text);
        }
    }
}
