//! Python's pickle, read as the table of tensors that it is in a checkpoint, and never run.
//!
//! A pickle is a program for a stack machine, which may name any function and call it. Here a call is written down, not
//! made, and a name that no table of tensors needs ends the reading. What was read lies in one list and refers to itself
//! by place, so that a pickle of a thousand bytes that means a terabyte takes a thousand bytes.

use std::collections::BTreeMap;

/// No table of tensors comes near. Each makes one value at most, which bounds those too.
const MAX_INSTRUCTIONS: usize = 1 << 20;

/// Where a value stands.
pub type Place = usize;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits: its bytes, the least first.
    Long(Vec<u8>),
    Text(String),
    /// `module.name`.
    Name(String),
    Tuple(Vec<Place>),
    List(Vec<Place>),
    Dict(Vec<(Place, Place)>),
    /// What a persistent id says, of something that lies elsewhere.
    Elsewhere(Place),
    /// A call that was not made.
    Call {
        of: Place,
        with: Place,
    },
}

#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Place,
}

impl Pickle {
    /// The pickle at the front of `bytes`, and what follows it. Names other than those that `known` knows are refused.
    pub fn read(bytes: &[u8], known: impl Fn(&str) -> bool) -> Result<(Self, &[u8]), String> {
        let mut machine = Machine {
            input: bytes,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
        };
        let mut instructions = 0;
        while machine.step(&known)? {
            instructions += 1;
            if instructions == MAX_INSTRUCTIONS {
                return Err(format!("its pickle has more than {MAX_INSTRUCTIONS} instructions"));
            }
        }
        let root = machine.pop()?;
        Ok((Self { values: machine.values, root }, machine.input))
    }

    pub fn root(&self) -> &Value {
        self.at(self.root)
    }

    /// A place comes from a value of this pickle.
    pub fn at(&self, place: Place) -> &Value {
        self.values.get(place).unwrap_or(&Value::None)
    }
}

struct Machine<'a> {
    input: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Place>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Place>,
}

impl<'a> Machine<'a> {
    /// One instruction; false after the last.
    fn step(&mut self, known: &impl Fn(&str) -> bool) -> Result<bool, String> {
        let [operation] = self.bytes::<1>()?;
        match operation {
            // PROTO
            0x80 => {
                let [version] = self.bytes()?;
                if !(2..=3).contains(&version) {
                    return Err(format!("its pickle is of version {version}, and 2 and 3 are read"));
                }
            }
            b'.' => return Ok(false),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let [number] = self.bytes()?;
                self.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.bytes()?);
                self.push(Value::Int(number.into()));
            }
            b'J' => {
                let number = i32::from_le_bytes(self.bytes()?);
                self.push(Value::Int(number.into()));
            }
            // LONG1
            0x8a => {
                let [length] = self.bytes()?;
                let digits = self.take(length.into())?;
                self.push(integer(digits));
            }
            b'X' => {
                let length = u32::from_le_bytes(self.bytes()?);
                let text = self.take(length as usize)?;
                let text =
                    std::str::from_utf8(text).map_err(|_| "its pickle has a text that is not UTF-8")?;
                self.push(Value::Text(text.to_owned()));
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let from =
                    self.stack.len().checked_sub(usize::from(operation - 0x84)).ok_or_else(unbalanced)?;
                self.above_mark(from)?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items));
            }
            b'q' => {
                let [name] = self.bytes()?;
                self.remember(name.into())?;
            }
            b'r' => {
                let name = u32::from_le_bytes(self.bytes()?);
                self.remember(name)?;
            }
            b'h' => {
                let [name] = self.bytes()?;
                self.recall(name.into())?;
            }
            b'j' => {
                let name = u32::from_le_bytes(self.bytes()?);
                self.recall(name)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let name = format!("{module}.{name}");
                if !known(&name) {
                    return Err(format!(
                        "its pickle names `{}`, which a table of tensors does not need; nothing of it was run",
                        name.escape_debug()
                    ));
                }
                self.push(Value::Name(name));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Elsewhere(id));
            }
            b'R' => {
                let (with, of) = (self.pop()?, self.pop()?);
                let empty = matches!(self.values.get(with), Some(Value::Tuple(items)) if items.is_empty());
                let dict = matches!(self.values.get(of), Some(Value::Name(name)) if name == "collections.OrderedDict");
                self.push(if empty && dict { Value::Dict(Vec::new()) } else { Value::Call { of, with } });
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.since_mark()?;
                let (pairs, odd) = items.as_chunks::<2>();
                if !odd.is_empty() {
                    return Err(unbalanced());
                }
                self.dict()?.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' => {
                let items = self.since_mark()?;
                self.list()?.extend(items);
            }
            // BUILD: attributes of a table, such as the version of each module.
            b'b' => {
                self.pop()?;
                self.dict()?;
            }
            other => {
                return Err(format!(
                    "its pickle has the instruction {other:#04x}, which a table of tensors does not need"
                ));
            }
        }
        Ok(true)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Place, String> {
        let top = self.stack.len().checked_sub(1).ok_or_else(unbalanced)?;
        self.above_mark(top)?;
        self.stack.pop().ok_or_else(unbalanced)
    }

    /// Only what stands above the last mark may be taken.
    fn above_mark(&self, from: usize) -> Result<(), String> {
        if self.marks.last().is_some_and(|mark| from < *mark) { Err(unbalanced()) } else { Ok(()) }
    }

    fn since_mark(&mut self) -> Result<Vec<Place>, String> {
        let mark = self.marks.pop().ok_or_else(unbalanced)?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, name: u32) -> Result<(), String> {
        let top = *self.stack.last().ok_or_else(unbalanced)?;
        self.memo.insert(name, top);
        Ok(())
    }

    /// What is recalled is a place, not a copy.
    fn recall(&mut self, name: u32) -> Result<(), String> {
        let place = self.memo.get(&name).ok_or("its pickle recalls what it has not remembered")?;
        self.stack.push(*place);
        Ok(())
    }

    fn dict(&mut self) -> Result<&mut Vec<(Place, Place)>, String> {
        let top = *self.stack.last().ok_or_else(unbalanced)?;
        match self.values.get_mut(top) {
            Some(Value::Dict(pairs)) => Ok(pairs),
            _ => Err("its pickle puts a pair into what is not a table".into()),
        }
    }

    fn list(&mut self) -> Result<&mut Vec<Place>, String> {
        let top = *self.stack.last().ok_or_else(unbalanced)?;
        match self.values.get_mut(top) {
            Some(Value::List(items)) => Ok(items),
            _ => Err("its pickle appends to what is not a list".into()),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (bytes, rest) = self.input.split_first_chunk::<N>().ok_or_else(cut)?;
        self.input = rest;
        Ok(*bytes)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self.input.split_at_checked(length).ok_or_else(cut)?;
        self.input = rest;
        Ok(bytes)
    }

    /// A name: up to the end of the line.
    fn line(&mut self) -> Result<&'a str, String> {
        let length = self.input.iter().take(256).position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or("its pickle has a name without an end")?)?;
        self.bytes::<1>()?;
        std::str::from_utf8(line).map_err(|_| "its pickle has a name that is not UTF-8".into())
    }
}

/// Two's complement, the least byte first.
fn integer(digits: &[u8]) -> Value {
    if digits.len() > 8 {
        return Value::Long(digits.to_vec());
    }
    let fill = if digits.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    let mut bytes = [fill; 8];
    bytes[..digits.len()].copy_from_slice(digits);
    Value::Int(i64::from_le_bytes(bytes))
}

fn unbalanced() -> String {
    "its pickle takes from its stack what is not on it".into()
}

fn cut() -> String {
    "its pickle ends in the middle".into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<(Pickle, &[u8]), String> {
        Pickle::read(bytes, |name| name == "collections.OrderedDict" || name == "torch.FloatStorage")
    }

    /// `pickle.dumps({"a": [1, 70000, -2, True, None], "b": ()}, protocol=2)`, as CPython writes it, and what follows.
    #[test]
    fn what_python_wrote_is_read() {
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01Jp\x11\x01\x00J\xfe\xff\xff\xff\x88NeX\x01\x00\x00\x00bq\x03)u.rest";
        let (pickle, rest) = read(bytes).unwrap();
        assert_eq!(rest, b"rest");
        let Value::Dict(pairs) = pickle.root() else { panic!("{:?}", pickle.root()) };
        assert_eq!(pickle.at(pairs[0].0), &Value::Text("a".into()));
        let Value::List(items) = pickle.at(pairs[0].1) else { panic!() };
        let items: Vec<_> = items.iter().map(|&place| pickle.at(place).clone()).collect();
        assert_eq!(
            items,
            [Value::Int(1), Value::Int(70_000), Value::Int(-2), Value::Bool(true), Value::None]
        );
        assert_eq!(pickle.at(pairs[1].1), &Value::Tuple(vec![]));
    }

    /// `pickle.dumps` of an object whose `__reduce__` is `os.system("touch /tmp/x")`: the textbook attack.
    #[test]
    fn a_call_of_anything_else_is_refused_and_not_made() {
        let attack = b"\x80\x02cposix\nsystem\nq\x00X\x0c\x00\x00\x00touch /tmp/xq\x01\x85q\x02Rq\x03.";
        let refused = read(attack).unwrap_err();
        assert!(
            refused.contains("names `posix.system`") && refused.contains("nothing of it was run"),
            "{refused}"
        );
        for other in [&b"\x80\x02i os\nsystem\n."[..], b"\x80\x04\x8c\x02os\x8c\x06system\x93."] {
            assert!(read(other).is_err());
        }
    }

    #[test]
    fn a_table_may_be_called_into_being_and_filled() {
        let bytes =
            b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00aK\x07u}X\x09\x00\x00\x00_metadataNsb.";
        let (pickle, _) = read(bytes).unwrap();
        let Value::Dict(pairs) = pickle.root() else { panic!("{:?}", pickle.root()) };
        assert_eq!(pickle.at(pairs[0].1), &Value::Int(7));
    }

    #[test]
    fn numbers_of_any_length_have_their_sign() {
        for (digits, value) in [(&b""[..], 0), (b"\xff", -1), (b"\xff\x00", 255), (b"\x00\x80", -32768)] {
            assert_eq!(integer(digits), Value::Int(value));
        }
        assert_eq!(integer(&[1; 9]), Value::Long(vec![1; 9]));
    }

    /// Each level holds the one below it ten times over: a thousand million values, if they were copied.
    #[test]
    fn what_is_recalled_is_not_copied() {
        let mut bytes = b"\x80\x02)q\x00".to_vec();
        for _ in 0..9 {
            bytes.extend(b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00tq\x00");
        }
        bytes.push(b'.');
        let (pickle, _) = read(&bytes).unwrap();
        assert_eq!(pickle.values.len(), 10);
    }

    #[test]
    fn what_takes_more_than_there_is_says_so() {
        for bytes in [
            &b"\x80\x02R."[..],
            b"\x80\x02.",
            b"\x80\x02(K\x01R.",
            b"\x80\x02K\x01(\x85.",
            b"\x80\x02t.",
            b"\x80\x02h\x00.",
            b"\x80\x02X\xff\xff\xff\xffa",
            b"\x80\x02K\x01K\x02s.",
            b"",
            b"\x80\x05.",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(&b"(){}[]tusbaeRQqhKNc.\x85\x86\x87"[..])], 0..200
        )) {
            let program = [&b"\x80\x02"[..], &bytes].concat();
            let _ = read(&program);
        }
    }
}
