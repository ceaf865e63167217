//! Takes out of an output what differs from run to run and from machine to machine: pure functions over text and JSON.

use regex::{Captures, Regex};
use serde_json::Value;
use std::sync::LazyLock;

/// What a person reads as it is: sizes of files, names, counts. What is replaced, and by what.
static ALWAYS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    rules(&[
        (r"bp_live_[A-Za-z0-9_-]{20,}", "bp_live_<secret>"),
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<id>"),
        (r"\b(chatcmpl|cmpl|call)[-_](<id>|[0-9a-zA-Z]{8,})", "$1-<id>"),
        (r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z", "<time>"),
        (r"\b(\d+ (second|minute|hour|day)s? (ago|from now)|just now)\b", "<when>"),
        (r"\b\d+(\.\d+)? (ms|s)\b", "<duration>"),
        (r"\b\d+(\.\d+)? tok/s\b", "<n> tok/s"),
        (r"\bpid \d+\b", "pid <pid>"),
        (r"\bid [0-9A-Za-z]{12}, role", "id <key>, role"),
        (r"key revoke [0-9A-Za-z]{12}`", "key revoke <key>`"),
        // Root meets another refusal than others do, and a read-only /sys a third.
        (r"(Operation not permitted|Permission denied|Read-only file system) \(os error \d+\)", "<denied>"),
        (r"127\.0\.0\.1:\d{4,5}\b", "127.0.0.1:<port>"),
        // The default address is the same everywhere.
        (r"(serve on|or) 127\.0\.0\.1:<port>", "$1 127.0.0.1:8484"),
    ])
});

/// What depends on the machine: its memory, threads and disk.
static MACHINE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    rules(&[
        (r"\b\d+(\.\d+)? (B|kB|MB|GB|TB)\b", "<size>"),
        (r"\b\d+ of \d+ threads\b", "<n> of <n> threads"),
        // Looked at from time to time.
        (r"installed, \d+ open", "installed, <n> open"),
        (r"^(ok|warn|bad) +(cpu|threads|memory|disk) .*", "<verdict>  $2 …"),
    ])
});

fn rules(list: &[(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    list.iter().map(|(pattern, by)| (Regex::new(pattern).unwrap(), *by)).collect()
}

/// Members of a JSON object that count time, or amounts of this machine; further ones are known by how they end.
const VOLATILE: [&str; 10] = [
    "cached_tokens",
    "created",
    "expires_in",
    "installed",
    "last_inference",
    "modified",
    "ms",
    "ns",
    "seconds",
    "threads",
];
const VOLATILE_ENDS: [&str; 5] = ["_at", "_bytes", "_ms", "_ns", "_seconds"];

fn is_volatile(name: &str, value: &Value) -> bool {
    is_number(value) && (VOLATILE.contains(&name) || VOLATILE_ENDS.iter().any(|end| name.ends_with(end)))
}

/// How an output is to be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// It tells of the machine: sizes and threads are not to be compared.
    pub machine: bool,
}

/// A text as it stands in the document.
pub fn text(text: &str, rules: Rules) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        if let Some(columns) = columns(line) {
            let mut rows = vec![cells(line, &columns)];
            let rates = rows[0].iter().position(|name| name == "TOK/S");
            while let Some(row) = rest.next_if(|line| !line.trim().is_empty()) {
                rows.push(cells(row, &columns));
            }
            for row in &mut rows {
                row.iter_mut().for_each(|cell| *cell = words(cell, rules));
                if let Some(rate) =
                    rates.and_then(|place| row.get_mut(place)).filter(|rate| rate.parse::<f64>().is_ok())
                {
                    *rate = "<n>".to_owned();
                }
            }
            lines.extend(aligned(&rows));
        } else if let Ok(vector @ Value::Array(_)) = serde_json::from_str(line) {
            lines.push(member("", &vector, rules).to_string());
        } else {
            let line = words(line, rules);
            // What would mend a machine belongs to its verdict.
            if line.starts_with("<verdict>") {
                while rest.next_if(|next| next.trim_start().starts_with("fix: ")).is_some() {}
            }
            lines.push(line);
        }
    }
    lines.join("\n")
}

fn words(line: &str, rules: Rules) -> String {
    let machine = rules.machine.then_some(&*MACHINE).into_iter().flatten();
    ALWAYS
        .iter()
        .chain(machine)
        .fold(line.trim_end().to_owned(), |line, (pattern, by)| pattern.replace_all(&line, *by).into_owned())
}

/// Where the columns of a table begin, if this is its first line: words in capitals, three spaces apart.
fn columns(line: &str) -> Option<Vec<usize>> {
    static HEAD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^[A-Z][A-Z/ ]*[A-Z]( {3,}[A-Z][A-Z/]*( [A-Z]+)*)+ *$").unwrap());
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[A-Z][A-Z/]*( [A-Z]+)*").unwrap());
    HEAD.is_match(line).then(|| WORD.find_iter(line).map(|word| word.start()).collect())
}

/// A row cut where three spaces stand; where that does not give all columns, a cell being empty, where they begin,
/// counted in characters, as the program pads.
fn cells(line: &str, columns: &[usize]) -> Vec<String> {
    static GAP: LazyLock<Regex> = LazyLock::new(|| Regex::new(" {3,}").unwrap());
    let words: Vec<String> = GAP.split(line.trim_end()).map(str::to_owned).collect();
    if words.len() == columns.len() {
        return words;
    }
    let letters: Vec<char> = line.chars().collect();
    let ends = columns[1..].iter().copied().chain([usize::MAX]);
    let cell = |(begin, end): (&usize, usize)| {
        letters.get(*begin..end.min(letters.len())).unwrap_or_default().iter().collect::<String>()
    };
    columns.iter().zip(ends).map(cell).map(|cell| cell.trim().to_owned()).collect()
}

/// Rows with columns as wide as what is in them now.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let padded = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// JSON as it stands in the document, indented.
pub fn json(value: &Value, rules: Rules) -> String {
    let mut out = String::new();
    print(&member("", value, rules), 0, &mut out);
    out
}

/// Indented, but what fits on a line stands on one.
fn print(value: &Value, indent: usize, out: &mut String) {
    const WIDTH: usize = 110;
    let line = value.to_string();
    let inner = " ".repeat(indent + 2);
    let (open, members, close): (_, Vec<(String, &Value)>, _) = match value {
        _ if indent + line.chars().count() <= WIDTH => return out.push_str(&line),
        Value::Array(items) => ('[', items.iter().map(|item| (String::new(), item)).collect(), ']'),
        Value::Object(members) => {
            let named = |(name, value)| (format!("{}: ", Value::from(name)), value);
            ('{', members.iter().map(|(name, value)| named((name.as_str(), value))).collect(), '}')
        }
        _ => return out.push_str(&line),
    };
    out.push(open);
    for (place, (name, value)) in members.into_iter().enumerate() {
        out.push_str(if place == 0 { "\n" } else { ",\n" });
        out.push_str(&inner);
        out.push_str(&name);
        print(value, indent + 2, out);
    }
    out.push_str(&format!("\n{}{close}", " ".repeat(indent)));
}

fn member(name: &str, value: &Value, rules: Rules) -> Value {
    match value {
        Value::Null => Value::Null,
        value if is_volatile(name, value) => Value::String(format!("<{name}>")),
        Value::Number(number) if number.is_f64() => "<number>".into(),
        Value::String(string) => text(string, rules).into(),
        Value::Array(items) if items.len() > 4 && items.iter().all(is_number) => {
            Value::Array(vec![format!("<{} numbers>", items.len()).into()])
        }
        Value::Array(items) => items.iter().map(|item| member("", item, rules)).collect(),
        // Whether there is a GPU depends on the machine.
        Value::Object(members) if members.get("part").is_some_and(|part| part == "gpu") => {
            serde_json::json!({"part": "gpu", "state": "<state>", "detail": "<detail>", "restarts": 0})
        }
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), member(name, value, rules))).collect()
        }
        other => other.clone(),
    }
}

fn is_number(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().all(is_number),
        value => value.is_number(),
    }
}

/// Server-sent events, with a model's own words taken out; events that are then equal are shown once.
pub fn events(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.trim().is_empty()) {
        let clean = |line: &str| match line.strip_prefix("data: ").map(serde_json::from_str::<Value>) {
            Some(Ok(mut value)) => {
                unworded(&mut value);
                format!("data: {}", member("", &value, Rules::default()))
            }
            _ => line.to_owned(),
        };
        let event = event.lines().map(clean).collect::<Vec<_>>().join("\n");
        if event.starts_with(':') {
            continue; // a heartbeat
        }
        if lines.last() == Some(&event) {
            lines.push("⋮".to_owned());
        } else if !(lines.last().is_some_and(|last| last == "⋮") && lines.iter().rev().nth(1) == Some(&event))
        {
            lines.push(event);
        }
    }
    lines.join("\n\n")
}

/// Takes the words of a generated piece out.
fn unworded(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(unworded),
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text)
                        if matches!(name.as_str(), "content" | "text") && !text.is_empty() =>
                    {
                        *value = "<words>".into()
                    }
                    value => unworded(value),
                }
            }
        }
        _ => {}
    }
}

/// Prometheus' text without its values: one line a metric, with the names of its labels.
pub fn metrics(text: &str) -> String {
    static LABEL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"(\w+)="[^"]*""#).unwrap());
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let line = match line.strip_prefix('#') {
            Some(_) => line.to_owned(),
            None => {
                let (metric, _) = line.rsplit_once(' ').unwrap_or((line, ""));
                format!("{} <value>", LABEL.replace_all(metric, |c: &Captures<'_>| format!("{}=…", &c[1])))
            }
        };
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_goes_and_the_rest_stays() {
        let plain = Rules::default();
        assert_eq!(
            text("key bp_live_TK0cQ18aG1tk_IG88V2llp6BA, 98 MB", plain),
            "key bp_live_<secret>, 98 MB"
        );
        assert_eq!(text("10 tok · 62 tok/s · TTFT 60 ms", plain), "10 tok · <n> tok/s · TTFT <duration>");
        assert_eq!(text("2026-11-21T09:44:02.620151Z  INFO x (pid 7)", plain), "<time>  INFO x (pid <pid>)");
        assert_eq!(
            text("needs 523 MB, 1 of 2 threads", Rules { machine: true }),
            "needs <size>, <n> of <n> threads"
        );
        assert_eq!(text("  indented\n\nlines", plain), "  indented\n\nlines");
    }

    #[test]
    fn a_table_keeps_its_columns() {
        let table = "NAME      UNTIL                TOK/S\nsmollm2   5 minutes from now   83\nx         -                    -";
        let expected = "NAME      UNTIL    TOK/S\nsmollm2   <when>   <n>\nx         -        -";
        assert_eq!(text(table, Rules::default()), expected);
        assert_eq!(text("ID   LAST USED\na    just now", Rules::default()), "ID   LAST USED\na    <when>");
        let named = "ID             NAME          STATE\n<key>   first admin   works\n               laptop        works";
        let expected =
            "ID      NAME          STATE\n<key>   first admin   works\n        laptop        works";
        assert_eq!(text(named, Rules::default()), expected);
        assert_eq!(columns("An ordinary line"), None);
    }

    #[test]
    fn values_of_json_go_by_name_and_kind() {
        let value = json!({"created": 5, "count": 5, "logprob": -0.5, "vector": [1.5, 2.5, 3.5, 4.5, 5.5],
            "id": "chatcmpl-01a1fd7d-d958-74c1-b680-da5721c18430", "used_at": null, "installed": true, "queue_ns": 5});
        let expected = json!({"created": "<created>", "count": 5, "logprob": "<number>", "vector": ["<5 numbers>"],
            "id": "chatcmpl-<id>", "used_at": null, "installed": true, "queue_ns": "<queue_ns>"});
        assert_eq!(member("", &value, Rules::default()), expected);
    }

    #[test]
    fn json_that_fits_stands_on_a_line() {
        let long = "x".repeat(100);
        let shown = json(&json!({"a": [1, 2], "b": [{"c": long}, {"d": true}]}), Rules::default());
        let expected = format!(
            "{{\n  \"a\": [1,2],\n  \"b\": [\n    {{\n      \"c\": \"{long}\"\n    }},\n    {{\"d\":true}}\n  ]\n}}"
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn events_lose_words_and_repetitions() {
        let given = "data: {\"content\":\"a\"}\n\ndata: {\"content\":\"b\"}\n\n: ping\n\ndata: {\"content\":\"c\"}\n\n\
                     data: {\"content\":\"\"}\n\ndata: [DONE]\n\n";
        let expected = "data: {\"content\":\"<words>\"}\n\n⋮\n\ndata: {\"content\":\"\"}\n\ndata: [DONE]";
        assert_eq!(events(given), expected);
    }

    #[test]
    fn metrics_keep_names_kinds_and_labels() {
        let given = "# TYPE a_total counter\na_total{model=\"x\"} 5\na_total{model=\"y\"} 6\nb 1.5\n";
        assert_eq!(metrics(given), "# TYPE a_total counter\na_total{model=…} <value>\nb <value>");
    }
}
