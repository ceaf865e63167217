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
        if wanted(&line, args) {
            last.push_back(line.clone());
            if args.lines < last.len() {
                last.pop_front();
            }
        }
        line.clear();
    }
    last.iter().for_each(|line| show(&context.out, line));
    if last.is_empty() {
        match (&args.word, &args.level) {
            (Some(word), None) => context.out.note(format!("no line of the log has `{word}`")),
            (None, Some(level)) => {
                context.out.note(format!("no line of the log is of level `{level}` or graver"))
            }
            (Some(word), Some(level)) => {
                context.out.note(format!("no line of the log of level `{level}` or graver has `{word}`"));
            }
            (None, None) => {}
        }
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
            if wanted(&line, args) {
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

/// From the gravest on.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

fn wanted(line: &str, args: &Logs) -> bool {
    args.word.as_deref().is_none_or(|word| line.contains(word))
        && args.level.as_deref().is_none_or(|least| grave_enough(line, least))
}

fn grave_enough(line: &str, least: &str) -> bool {
    let rank = |level: &str| LEVELS.iter().position(|name| name.eq_ignore_ascii_case(level));
    let line: Value = serde_json::from_str(line).unwrap_or_default();
    // A line that is none of ours says nothing of its level, and may be grave.
    line["level"]
        .as_str()
        .and_then(rank)
        .is_none_or(|rank_of_it| rank(least).is_none_or(|least| rank_of_it <= least))
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
    fn a_level_and_a_word_are_both_asked_for() {
        let line = r#"{"level":"WARN","fields":{"message":"slow","model":"m"}}"#;
        let wants = |word: Option<&str>, level: Option<&str>| {
            let (word, level) = (word.map(str::to_owned), level.map(str::to_owned));
            wanted(line, &Logs { word, follow: false, lines: 50, level })
        };
        assert!(wants(None, None) && wants(None, Some("warn")) && wants(Some("slow"), Some("info")));
        assert!(!wants(None, Some("error")) && !wants(Some("fast"), Some("info")));
        assert!(wanted(
            "thread panicked\n",
            &Logs { word: None, follow: false, lines: 50, level: Some("error".into()) }
        ));
    }

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
