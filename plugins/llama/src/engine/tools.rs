//! Tool calls in the Hermes format, `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: read from an answer as it
//! comes, and asked for where a chat template does not know tools. Pure.
//!
//! Qwen and many others are trained on this format; for models that are not, a system instruction and a grammar do. Small
//! ones forget the tag: Qwen2.5-Coder writes the object into a block of code. There, and as the beginning of an answer, an
//! object is a call if it has the name of a tool and arguments, in this order and nothing besides. That is known at its end,
//! and so such a call comes whole.

use super::json_scan::{JsonScan, Scan};
use backplane_plugin::payload::chat::{Tool, ToolCall, ToolCallDelta, ToolChoice};
use serde_json::Value;

/// What opens a call.
pub const OPEN: &str = "<tool_call>";
/// What closes it.
pub const CLOSE: &str = "</tool_call>";

/// What stands around a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Around {
    #[default]
    Tag,
    Fence,
    Nothing,
}

impl Around {
    fn open(self) -> &'static str {
        match self {
            Around::Tag => OPEN,
            Around::Fence => "```json",
            Around::Nothing => "",
        }
    }

    fn close(self) -> Option<&'static str> {
        match self {
            Around::Tag => Some(CLOSE),
            Around::Fence => Some("```"),
            Around::Nothing => None,
        }
    }
}

/// What can open a call anywhere.
const OPENINGS: [Around; 2] = [Around::Tag, Around::Fence];

/// What a piece of an answer turned out to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Text that is no call.
    pub content: String,
    /// Calls begun or added to.
    pub calls: Vec<ToolCallDelta>,
}

/// Reads calls from an answer, whatever pieces it comes in.
///
/// Arguments are given out only as far as they can be closed, and are closed if the model ends its answer inside a
/// call. Where the answer is cut instead, they are left as far as they came, as OpenAI does, and what may have become a
/// call is dropped. Text that only looked like a call is given out as text. White space around calls is dropped.
#[derive(Debug)]
pub struct ToolParser {
    /// Makes call ids differ between answers.
    answer: String,
    /// Of the tools there are.
    names: Vec<String>,
    /// Whether there may be more than one call.
    parallel: bool,
    pending: String,
    /// Whether any text was given out.
    said: bool,
    call: Option<Call>,
    /// Only white space and what closes a call came since the last one.
    after_call: bool,
    /// What closes it, while that may come.
    close: Option<&'static str>,
    calls: u32,
}

impl ToolParser {
    /// `answer` becomes part of the call ids: letters and digits. `names`: those of the tools. What comes as a second call
    /// stays text unless `parallel`.
    pub fn new(answer: impl Into<String>, names: Vec<String>, parallel: bool) -> Self {
        Self {
            answer: answer.into(),
            names,
            parallel,
            pending: String::new(),
            said: false,
            call: None,
            after_call: false,
            close: None,
            calls: 0,
        }
    }

    /// What can open a call from here on.
    fn openings(&self) -> &'static [Around] {
        if self.parallel || self.calls == 0 { &OPENINGS } else { &[] }
    }

    /// How many calls have begun.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Takes a piece of the answer.
    pub fn push(&mut self, text: &str) -> Parsed {
        let mut parsed = Parsed::default();
        self.pending.push_str(text);
        loop {
            let went_on =
                if self.call.is_some() { self.read_call(&mut parsed) } else { self.read_text(&mut parsed) };
            if !went_on {
                self.said |= !parsed.content.is_empty();
                return parsed;
            }
        }
    }

    /// The rest, at the end of the answer. `cut`: it was not the model that ended it.
    pub fn finish(&mut self, cut: bool) -> Parsed {
        let mut parsed = Parsed::default();
        match self.call.take() {
            Some(mut call) => match call.started {
                Some(index) if cut => call.give_rest(index, &mut parsed),
                Some(index) => call.give(index, true, &mut parsed),
                None if cut && call.around == Around::Tag => {}
                None => parsed.content = call.written(),
            },
            None => {
                let mut rest = std::mem::take(&mut self.pending);
                // Half a closing tag is not text.
                if self.after_call && self.close.unwrap_or_default().starts_with(rest.trim()) {
                    rest.clear();
                }
                if cut && !self.openings().is_empty() && begun(&rest, OPEN) > 0 {
                    rest.truncate(rest.len() - begun(&rest, OPEN));
                    rest.truncate(rest.trim_end().len());
                }
                parsed.content = rest;
            }
        }
        parsed
    }

    /// Gives out text up to the next call; whether there is more to read.
    fn read_text(&mut self, parsed: &mut Parsed) -> bool {
        if self.after_call {
            let rest = self.pending.trim_start();
            if let Some((close, rest)) = self.close.and_then(|close| Some((close, rest.strip_prefix(close)?)))
            {
                // A fence that comes next opens.
                self.close = Some(CLOSE).filter(|tag| *tag == close);
                self.pending = rest.to_owned();
                return true;
            }
            if self.close.unwrap_or_default().starts_with(rest) {
                return false;
            }
            let opens = |around: &Around| around.open().starts_with(rest) || rest.starts_with(around.open());
            if !self.openings().iter().any(opens) {
                self.after_call = false;
            }
        }
        let opening =
            self.openings().iter().filter_map(|around| Some((self.pending.find(around.open())?, *around)));
        let mut opening = opening.min_by_key(|(at, _)| *at);
        let blank = self.pending.len() - self.pending.trim_start().len();
        if !self.said
            && parsed.content.is_empty()
            && self.calls == 0
            && self.pending[blank..].starts_with('{')
        {
            opening = Some((blank, Around::Nothing));
        }
        if let Some((at, around)) = opening {
            let text = self.pending[..at].trim_end().len();
            parsed.content.push_str(&self.pending[..text]);
            let before = self.pending[text..at].to_owned();
            self.pending.drain(..at + around.open().len());
            self.after_call = false;
            self.call = Some(Call { around, before, ..Call::default() });
            return true;
        }
        if !self.after_call {
            let held = self.openings().iter().map(|around| begun(&self.pending, around.open()));
            let certain = self.pending.len() - held.max().unwrap_or(0);
            let certain = self.pending[..certain].trim_end().len();
            parsed.content.extend(self.pending.drain(..certain));
        }
        false
    }

    /// Reads on in a call; whether it ended.
    fn read_call(&mut self, parsed: &mut Parsed) -> bool {
        let Some(call) = self.call.as_mut() else { return false };
        let mut taken = 0;
        let mut outcome = Outcome::Goes;
        for c in self.pending.chars() {
            outcome = call.push(c);
            if outcome == Outcome::Wrong || !call.is_likely(outcome, &self.names) {
                outcome = Outcome::Wrong;
                break;
            }
            taken += c.len_utf8();
            if outcome == Outcome::Ends {
                break;
            }
        }
        call.raw.extend(self.pending.drain(..taken));
        if let (None, Some(name)) = (call.started, call.name.as_ref().filter(|_| call.is_certain(outcome))) {
            call.started = Some(self.calls);
            parsed.calls.push(ToolCallDelta {
                index: self.calls,
                id: Some(format!("call_{}{}", self.answer, self.calls)),
                name: Some(name.clone()),
                arguments: String::new(),
            });
            self.calls += 1;
        }
        if let Some(index) = call.started {
            call.give(index, outcome != Outcome::Goes, parsed);
        }
        if outcome == Outcome::Goes {
            return false;
        }
        self.after_call = call.started.is_some();
        if !self.after_call {
            // A call without a name, or no JSON: it was text after all.
            parsed.content.push_str(&call.written());
        }
        self.close = call.around.close();
        self.call = None;
        true
    }
}

/// Length of the longest tail of `text` that begins `tag`.
fn begun(text: &str, tag: &str) -> usize {
    (1..tag.len().min(text.len() + 1)).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

/// A call being read.
#[derive(Debug, Default)]
struct Call {
    around: Around,
    /// White space in front of what opened it.
    before: String,
    /// Everything since then.
    raw: String,
    place: Place,
    /// JSON text of the key or value being read.
    value: String,
    scan: JsonScan,
    key: String,
    name: Option<String>,
    /// JSON text of the arguments, as far as it came.
    arguments: String,
    arguments_scan: JsonScan,
    /// How much of it was given out.
    given: usize,
    arguments_done: bool,
    /// Its number, once it was announced.
    started: Option<u32>,
}

#[derive(Debug, Default, PartialEq, Clone, Copy)]
enum Place {
    /// Before `{`.
    #[default]
    Object,
    /// Before a key, or `}` or `,`.
    Member,
    Key,
    Colon,
    /// Before a value.
    Value,
    InValue,
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum Outcome {
    Goes,
    Ends,
    Wrong,
}

impl Call {
    /// As the model wrote it so far.
    fn written(&self) -> String {
        [&self.before, self.around.open(), &self.raw].concat()
    }

    /// Whether it may be a call: where no tag says so, by what is in it.
    fn is_likely(&self, outcome: Outcome, names: &[String]) -> bool {
        let named = || self.name.as_ref().is_none_or(|name| names.contains(name));
        self.around == Around::Tag
            || match self.place {
                _ if outcome == Outcome::Ends => self.arguments_done,
                Place::Colon if self.name.is_none() => self.key == "name",
                Place::Colon => self.is_arguments(),
                _ => named(),
            }
    }

    /// Whether it is one, and nothing that comes can make it text.
    fn is_certain(&self, outcome: Outcome) -> bool {
        self.around == Around::Tag || outcome == Outcome::Ends
    }

    fn push(&mut self, c: char) -> Outcome {
        match self.place {
            Place::Object if c.is_whitespace() => {}
            Place::Object if c == '{' => self.place = Place::Member,
            Place::Member if c.is_whitespace() || c == ',' => {}
            Place::Member if c == '}' => {
                return if self.name.is_some() { Outcome::Ends } else { Outcome::Wrong };
            }
            Place::Member if c == '"' => {
                self.place = Place::Key;
                self.begin(c);
            }
            Place::Key => {
                self.value.push(c);
                match self.scan.push(c) {
                    Scan::Within => {}
                    Scan::Ends => {
                        self.key = serde_json::from_str(&self.value).unwrap_or_default();
                        self.place = Place::Colon;
                    }
                    Scan::Before | Scan::Wrong => return Outcome::Wrong,
                }
            }
            Place::Colon if c.is_whitespace() => {}
            Place::Colon if c == ':' => self.place = Place::Value,
            Place::Value if c.is_whitespace() => {}
            Place::Value => {
                self.place = Place::InValue;
                if self.is_arguments() && !matches!(c, '{' | '"' | 'n') {
                    return Outcome::Wrong;
                }
                if self.begin(c) == Scan::Wrong {
                    return Outcome::Wrong;
                }
                self.track_arguments(c);
            }
            Place::InValue => match self.scan.push(c) {
                Scan::Within => {
                    self.value.push(c);
                    self.track_arguments(c);
                }
                Scan::Ends => {
                    self.value.push(c);
                    self.track_arguments(c);
                    return self.value_ends();
                }
                Scan::Before => {
                    if self.value_ends() == Outcome::Wrong {
                        return Outcome::Wrong;
                    }
                    return self.push(c);
                }
                Scan::Wrong => return Outcome::Wrong,
            },
            Place::Object | Place::Member | Place::Colon => return Outcome::Wrong,
        }
        Outcome::Goes
    }

    fn begin(&mut self, c: char) -> Scan {
        self.value.clear();
        self.value.push(c);
        self.scan = JsonScan::default();
        self.scan.push(c)
    }

    /// Llama 3 calls them parameters.
    fn is_arguments(&self) -> bool {
        !self.arguments_done && matches!(self.key.as_str(), "arguments" | "parameters")
    }

    /// An object can be given out as it comes.
    fn track_arguments(&mut self, c: char) {
        if self.is_arguments() && self.value.starts_with('{') {
            self.arguments.push(c);
            self.arguments_scan.push(c);
        }
    }

    fn value_ends(&mut self) -> Outcome {
        self.place = Place::Member;
        if self.key == "name" && self.name.is_none() {
            self.name = serde_json::from_str(&self.value).ok();
            return if self.name.is_some() { Outcome::Goes } else { Outcome::Wrong };
        }
        if self.is_arguments() {
            if !self.value.starts_with('{') {
                // `null`, or JSON inside a string, as some models write it.
                let inner: String =
                    serde_json::from_str::<Option<String>>(&self.value).ok().flatten().unwrap_or("{}".into());
                if !matches!(serde_json::from_str(&inner), Ok(Value::Object(_))) {
                    return Outcome::Wrong;
                }
                inner.chars().for_each(|c| {
                    self.arguments_scan.push(c);
                });
                self.arguments = inner;
            }
            self.arguments_done = true;
        }
        Outcome::Goes
    }

    /// Gives out the arguments as far as they came.
    fn give_rest(&mut self, index: u32, parsed: &mut Parsed) {
        let arguments = self.arguments.split_off(self.given);
        if !arguments.is_empty() {
            parsed.calls.push(ToolCallDelta { index, id: None, name: None, arguments });
        }
    }

    /// Gives out the arguments as far as they are certain, and at the end what closes them.
    fn give(&mut self, index: u32, end: bool, parsed: &mut Parsed) {
        let certain = if self.arguments_done { self.arguments.len() } else { self.arguments_scan.safe() };
        let mut arguments = self.arguments[self.given..certain].to_owned();
        self.given = certain;
        if end && !self.arguments_done {
            arguments.push_str(if certain == 0 { "{}" } else { self.arguments_scan.closers() });
            self.arguments_done = true;
        }
        if !arguments.is_empty() {
            parsed.calls.push(ToolCallDelta { index, id: None, name: None, arguments });
        }
    }
}

/// The system instruction for models whose template does not know tools: Hermes' own, with the choice made plain.
pub fn instruction(tools: &[Tool], choice: &ToolChoice) -> String {
    let signatures: String =
        tools.iter().map(|tool| format!("\n{}", super::template::python_json(&declaration(tool)))).collect();
    let duty = match choice {
        ToolChoice::Required => "\nYou must call at least one function.".to_owned(),
        ToolChoice::Named(name) => format!("\nYou must call the function {name}."),
        ToolChoice::Auto | ToolChoice::None => String::new(),
    };
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>{signatures}\n</tools>\n\nFor each function call, return a \
         json object with function name and arguments within {OPEN}{CLOSE} XML tags:\n{OPEN}\n{{\"name\": \
         <function-name>, \"arguments\": <args-json-object>}}\n{CLOSE}{duty}"
    )
}

/// A tool as OpenAI declares it, which is what templates are written for.
pub fn declaration(tool: &Tool) -> Value {
    let mut function = serde_json::Map::new();
    function.insert("name".into(), tool.name.clone().into());
    if let Some(description) = &tool.description {
        function.insert("description".into(), description.clone().into());
    }
    function.insert("parameters".into(), parameters(tool));
    serde_json::json!({"type": "function", "function": function})
}

/// The schema of a tool's arguments.
pub fn parameters(tool: &Tool) -> Value {
    tool.parameters.clone().unwrap_or_else(|| serde_json::json!({"type": "object", "properties": {}}))
}

/// An assistant's earlier calls as the model would have written them.
pub fn written(calls: &[ToolCall]) -> String {
    calls
        .iter()
        .map(|call| {
            let call = serde_json::json!({"name": call.name, "arguments": arguments(call)});
            format!("{OPEN}\n{}\n{CLOSE}", super::template::python_json(&call))
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// A call's arguments as a value; text that is no JSON stays text.
pub fn arguments(call: &ToolCall) -> Value {
    if call.arguments.trim().is_empty() {
        return Value::Object(Default::default());
    }
    serde_json::from_str(&call.arguments).unwrap_or_else(|_| call.arguments.clone().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Content and calls (name, arguments), whole.
    fn read(pieces: &[&str]) -> (String, Vec<(String, String)>) {
        read_to(pieces, false)
    }

    /// The same of an answer that may have been cut.
    fn read_to(pieces: &[&str], cut: bool) -> (String, Vec<(String, String)>) {
        take_all(ToolParser::new("x", vec!["f".into(), "weather".into()], true), pieces, cut)
    }

    fn take_all(mut parser: ToolParser, pieces: &[&str], cut: bool) -> (String, Vec<(String, String)>) {
        let mut content = String::new();
        let mut calls: Vec<(String, String)> = Vec::new();
        let mut take = |parsed: Parsed| {
            content.push_str(&parsed.content);
            for call in parsed.calls {
                if let Some(name) = call.name {
                    assert_eq!(call.id.as_deref(), Some(format!("call_x{}", calls.len()).as_str()));
                    assert_eq!(call.index as usize, calls.len());
                    calls.push((name, String::new()));
                }
                calls[call.index as usize].1.push_str(&call.arguments);
            }
        };
        for piece in pieces {
            take(parser.push(piece));
        }
        take(parser.finish(cut));
        (content, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_read_and_text_around_them_kept() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n\
                    <tool_call>{\"name\":\"time\",\"arguments\":{}}</tool_call>";
        assert_eq!(
            read(&[text]),
            ("Let me see.".into(), vec![call("weather", "{\"city\": \"Paris\"}"), call("time", "{}")])
        );
    }

    #[test]
    fn the_name_comes_first_even_when_written_last() {
        let (_, calls) = read(&[r#"<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>"#]);
        assert_eq!(calls, [call("f", "{\"a\": 1}")]);
    }

    #[test]
    fn arguments_in_a_string_or_missing_are_an_object() {
        let (_, calls) = read(&[r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#]);
        assert_eq!(calls, [call("f", "{\"a\": 1}")]);
        let (_, calls) = read(&[r#"<tool_call>{"name": "f"}</tool_call>"#]);
        assert_eq!(calls, [call("f", "{}")]);
        let (_, calls) = read(&[r#"<tool_call>{"name": "f", "parameters": null}</tool_call>"#]);
        assert_eq!(calls, [call("f", "{}")]);
    }

    #[test]
    fn what_only_looks_like_a_call_is_text() {
        for text in [
            "a <tool_cal b",
            "<tool_call>hello",
            "<tool_call>{\"x\": 1}",
            "<tool_call>{\"name\": 1}",
            "1 < 2",
        ] {
            let (content, calls) = read(&[text]);
            assert_eq!((content.as_str(), calls.len()), (text, 0));
        }
    }

    #[test]
    fn a_call_without_its_tag_is_known_by_the_name_of_a_tool() {
        let weather = r#"{"name": "weather", "arguments": {"city": "Paris"}}"#;
        let f = "{\n  \"name\": \"f\",\n  \"arguments\": {}\n}";
        for (text, content, calls) in [
            (format!("```json\n{weather}\n```"), "", vec![call("weather", "{\"city\": \"Paris\"}")]),
            (format!("Let me see.\n\n```json\n{f}\n```\nDone."), "Let me see.\nDone.", vec![call("f", "{}")]),
            (format!("```json\n{f}\n```\n```json\n{f}\n```"), "", vec![call("f", "{}"), call("f", "{}")]),
            (format!("```json\n{f}\n```\n{OPEN}{f}{CLOSE}"), "", vec![call("f", "{}"), call("f", "{}")]),
            (format!("\n{f}"), "", vec![call("f", "{}")]),
        ] {
            assert_eq!(read(&[&text]), (content.to_owned(), calls), "{text}");
        }
        for text in [
            "Here:\n\n```json\n{\"name\": \"g\", \"arguments\": {}}\n```\nThat is all.",
            "```json\n{\"name\": \"f\"}\n```",
            "```json\n{\"name\": \"f\", \"age\": 3}\n```",
            "```json\n[1, 2]\n```",
            "```json\n{\"arguments\": {}, \"name\": \"f\"}\n```",
            "```python\nprint(1)\n```",
            "{\"name\": \"Paris\"}",
            "{\"a\": 1}",
            "It is {\"name\": \"f\", \"arguments\": {}}",
            "```json\n{\"name\": \"f\", \"argu",
            "```json\n{\"name\": \"f\", \"arguments\": {\"a\": 1}",
            "```json\n{\"name\": \"f\", \"arguments\": {}, \"x\": 1}\n```",
            "{\"name\": \"f\", \"arguments\": {}, \"x\": 1}",
            "```json\n{\"name\": \"f\", \"arguments\": {}]\n```",
        ] {
            assert_eq!(read(&[text]), (text.to_owned(), vec![]));
            assert_eq!(read_to(&[text], true), (text.to_owned(), vec![]), "a cut answer loses none of it");
        }
    }

    #[test]
    fn what_comes_as_a_second_call_is_text_where_one_is_asked_for() {
        let fence = "```json\n{\"name\": \"f\", \"arguments\": {}}\n```";
        let tag = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        for second in [fence, tag, "Done, <tool"] {
            for first in [fence, tag] {
                let text = format!("{first}\n{second}");
                for cut in [false, true] {
                    let one = |pieces: &[&str]| {
                        take_all(ToolParser::new("x", vec!["f".into()], false), pieces, cut)
                    };
                    let expected = (format!("\n{second}"), vec![call("f", "{}")]);
                    assert_eq!(one(&[&text]), expected, "{text}");
                    let bytes: Vec<&str> = text.split_inclusive(|_| true).collect();
                    assert_eq!(one(&bytes), expected, "{text}");
                }
            }
        }
        assert_eq!(read(&[&format!("{fence}\n{tag}")]).1.len(), 2);
    }

    #[test]
    fn a_call_without_its_tag_comes_whole() {
        let mut parser = ToolParser::new("x", vec!["f".into()], true);
        assert_eq!(parser.push("```json\n{\"name\": \"f\", \"arguments\": {\"a\": 1}"), Parsed::default());
        let parsed = parser.push("}");
        assert_eq!(parsed.calls[0].name.as_deref(), Some("f"));
        assert_eq!(parsed.calls[1].arguments, "{\"a\": 1}");
    }

    #[test]
    fn arguments_stream_as_they_come() {
        let mut parser = ToolParser::new("x", vec!["f".into(), "weather".into()], true);
        let parsed = parser.push("<tool_call>{\"name\": \"f\", \"arguments\": {\"city\": \"Par");
        assert_eq!(parsed.calls[0].name.as_deref(), Some("f"));
        assert_eq!(parsed.calls[1].arguments, "{\"city\": \"Par");
    }

    #[test]
    fn a_cut_answer_shows_no_tag_and_the_arguments_that_came() {
        for (text, content, arguments) in [
            ("Let me see.\n<tool", "Let me see.", None),
            ("Let me see.\n<tool_call>", "Let me see.", None),
            ("<tool_call>{\"na", "", None),
            ("<tool_call>{\"name\": \"f\"", "", Some("")),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {", "", Some("{")),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"city\": \"P\", \"n\": 1",
                "",
                Some("{\"city\": \"P\", \"n\": 1"),
            ),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {}}\n</tool_c", "", Some("{}")),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_c", "", Some("{}")),
            ("No call: 1 > 0", "No call: 1 > 0", None),
        ] {
            let calls: Vec<_> = arguments.map(|arguments| call("f", arguments)).into_iter().collect();
            assert_eq!(read_to(&[text], true), (content.to_owned(), calls), "{text}");
        }
    }

    fn any_text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just(OPEN.to_owned()),
            Just(CLOSE.to_owned()),
            Just("\n".to_owned()),
            Just("<tool".to_owned()),
            Just("```json\n".to_owned()),
            Just("```".to_owned()),
            Just(r#"{"name": "f", "arguments": {"a": 1}}"#.to_owned()),
            "[a-c <>]{0,3}",
            (r#"[a-z]{1,3}"#, r#"\{("[a-z]{1,2}": (1|"x\\\\n😀"|\[1,2\]))?\}"#)
                .prop_map(|(name, arguments)| format!(r#"{{"name": "{name}", "arguments": {arguments}}}"#)),
            (r#"[a-z]{1,3}"#)
                .prop_map(|name| format!(r#"{OPEN}{{"arguments": {{"k": true}}, "name": "{name}"}}{CLOSE}"#)),
            Just(r#"{"name": "f", "arguments": {"a": tru"#.to_owned()),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_calls(text in any_text(), cuts in proptest::collection::vec(0usize..200, 0..30)) {
            let whole = read(&[&text]);
            for (_, arguments) in &whole.1 {
                prop_assert!(serde_json::from_str::<Value>(arguments).is_ok_and(|a| a.is_object()), "{arguments}");
            }
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(&pieces), whole);
        }

        #[test]
        fn arguments_are_json_wherever_the_answer_ends(end in 0usize..90) {
            let text = r#"<tool_call>{"name": "f", "arguments": {"a": [1, -2.5, "x\u00e9\"y"], "b": {"c": null}}}</tool_call>"#;
            let (_, calls) = read(&[&text[..end.min(text.len())]]);
            for (_, arguments) in calls {
                prop_assert!(serde_json::from_str::<Value>(&arguments).is_ok(), "{arguments}");
            }
        }
    }
}
