//! `embed`: texts to vectors, one JSON array a line.

use crate::args::Embed;
use crate::context::Context;
use crate::exit::{Failure, Result};
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};

/// Texts of one request: a server takes no more than 2048, and a file may have more lines.
const BATCH: usize = 512;

pub fn run(context: &Context, args: &Embed) -> Result<()> {
    let texts = texts(&args.texts)?;
    let client = context.client()?;
    let (mut model, mut data, mut tokens) = (Value::Null, Vec::new(), 0);
    for texts in texts.chunks(BATCH) {
        let mut body = json!({ "model": args.model, "input": texts });
        if let Some(dimensions) = args.dimensions {
            body["dimensions"] = dimensions.into();
        }
        if args.truncate {
            body["truncate"] = true.into();
        }
        let mut answer = client.post("/v1/embeddings", &body)?;
        let vectors = answer["data"].as_array().into_iter().flatten().map(|item| &item["embedding"]);
        if context.out.json {
            data.extend(
                vectors.zip(texts).map(|(vector, text)| json!({ "text": text, "embedding": vector })),
            );
            tokens += answer["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
            model = answer["model"].take();
        } else {
            vectors.for_each(|vector| context.out.line(vector.to_string()));
        }
        if context.out.reader_left() {
            break;
        }
    }
    if context.out.json {
        let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
        context.out.value(&json!({ "model": model, "data": data, "usage": usage }));
    }
    Ok(())
}

/// The texts of the command line; `-` stands for the lines of standard input, and so does none at all where that is a pipe
/// or a file.
fn texts(words: &[String]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let stdin = ["-".to_owned()];
    if words.is_empty() && std::io::stdin().is_terminal() {
        return Err(Failure::usage("there is no text to embed")
            .next("`backplane embed MODEL \"…\"`, or `backplane embed MODEL < lines.txt`"));
    }
    for word in if words.is_empty() { &stdin } else { words } {
        if word != "-" {
            texts.push(word.clone());
            continue;
        }
        let mut piped = String::new();
        std::io::stdin()
            .read_to_string(&mut piped)
            .map_err(|error| Failure::usage(format!("standard input cannot be read as text: {error}")))?;
        texts.extend(lines(&piped)?);
    }
    if texts.is_empty() {
        return Err(Failure::usage("there is no text to embed: standard input is empty"));
    }
    Ok(texts)
}

/// Each line is a text, and what comes out has as many. A blank one has no vector, so it may not stand there.
fn lines(piped: &str) -> Result<Vec<String>> {
    if let Some(blank) = piped.lines().position(|line| line.trim().is_empty()) {
        return Err(Failure::usage(format!(
            "line {} of standard input is blank, and there is no vector of nothing",
            blank + 1
        ))
        .next("leave blank lines out, as `grep '[^[:space:]]'` in front of this command does"));
    }
    Ok(piped.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_texts_as_lines() {
        assert_eq!(lines("one\n two \r\nthree").unwrap(), ["one", " two ", "three"]);
        assert!(lines("").unwrap().is_empty());
        for (text, which) in [("\n", 1), ("one\n\ntwo\n", 2), ("one\n \t\n", 2), ("one\n\n", 2)] {
            let refused = lines(text).unwrap_err();
            assert!(
                refused.what.starts_with(&format!("line {which} of standard input is blank")),
                "{refused}"
            );
        }
    }
}
