//! `logs`: the server's log, as text for people and as JSON lines with `--json`.

use crate::args::Logs;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::logging;
use crate::output::{Output, Style, printable};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

pub fn run(context: &Context, args: &Logs) -> Result<()> {
    context.local_only("logs")?;
    let path = logging::file(&context.state()?);
    let mut file = File::open(&path).map(BufReader::new).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Failure::new(Exit::NotFound, format!("there is no log yet: {}", path.display()))
                .next("`backplane serve` writes one")
        }
        _ => Failure::io("read", &path, &error),
    })?;
    let mut last = VecDeque::new();
    let mut line = String::new();
    while read(&mut file, &mut line, &path)? {
        if wanted(&line, args.word.as_deref()) {
            last.push_back(line.clone());
            if args.lines < last.len() {
                last.pop_front();
            }
        }
        line.clear();
    }
    last.iter().for_each(|line| show(&context.out, line));
    if let (Some(word), true) = (&args.word, last.is_empty()) {
        context.out.note(format!("no line of the log has `{word}`"));
    }
    if args.follow { follow(context, args, &path, file) } else { Ok(()) }
}

/// Goes on with lines as they come, until nobody reads them any more.
fn follow(context: &Context, args: &Logs, path: &Path, mut file: BufReader<File>) -> Result<()> {
    let mut line = String::new();
    while !context.out.reader_left() {
        if read(&mut file, &mut line, path)? {
            if !line.ends_with('\n') {
                continue; // The rest of it is on its way.
            }
            if wanted(&line, args.word.as_deref()) {
                show(&context.out, &line);
            }
            line.clear();
            continue;
        }
        std::thread::sleep(Duration::from_millis(200));
        // A full file is put aside; the log goes on in a new one.
        let replaced = |metadata: std::fs::Metadata| {
            file.get_ref().metadata().is_ok_and(|ours| ours.ino() != metadata.ino())
        };
        if path.metadata().is_ok_and(replaced)
            && let Ok(new) = File::open(path)
        {
            file = BufReader::new(new);
        }
    }
    Ok(())
}

fn read(file: &mut BufReader<File>, line: &mut String, path: &Path) -> Result<bool> {
    file.read_line(line).map(|bytes| 0 < bytes).map_err(|error| Failure::io("read", path, &error))
}

fn wanted(line: &str, word: Option<&str>) -> bool {
    word.is_none_or(|word| line.contains(word))
}

fn show(out: &Output, line: &str) {
    match serde_json::from_str::<Value>(line) {
        Ok(value) if !out.json => out.line(as_text(out, &value)),
        _ => out.line(printable(line.trim_end())),
    }
}

/// `2026-03-01T12:00:00Z  INFO serving address=127.0.0.1:8484`
fn as_text(out: &Output, line: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => printable(text),
        value => value.to_string(),
    };
    let level = line["level"].as_str().unwrap_or_default();
    let style = match level {
        "ERROR" => Style::Bad,
        "WARN" => Style::Warning,
        _ => Style::Faint,
    };
    let mut parts = vec![text(&line["timestamp"]), out.styled(style, &format!("{level:>5}"))];
    parts.push(text(&line["fields"]["message"]));
    // Fields of the line, then those of the spans it stands in: the request's id is one.
    let spans = line["spans"].as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
    for (name, value) in line["fields"].as_object().into_iter().flatten().chain(spans) {
        if name != "message" && name != "name" {
            parts.push(format!("{name}={}", text(value)));
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Global;

    #[test]
    fn a_line_is_read_by_people() {
        let out = Output::new(&Global::default());
        let line = serde_json::json!({
            "timestamp": "T", "level": "WARN", "fields": {"message": "slow", "model": "m", "n": 3},
            "spans": [{"name": "request", "id": "r1"}],
        });
        assert_eq!(as_text(&out, &line), "T  WARN slow model=m n=3 id=r1");
    }
}
