//! `embed`: texts to vectors, one JSON array a line.

use crate::args::Embed;
use crate::context::Context;
use crate::exit::{Failure, Result};
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};

pub fn run(context: &Context, args: &Embed) -> Result<()> {
    let texts = texts(&args.texts)?;
    let mut body = json!({ "model": args.model, "input": texts });
    if let Some(dimensions) = args.dimensions {
        body["dimensions"] = dimensions.into();
    }
    let answer = context.client()?.post("/v1/embeddings", &body)?;
    let vectors = answer["data"].as_array().into_iter().flatten().map(|item| &item["embedding"]);
    if context.out.json {
        let data: Vec<Value> =
            vectors.zip(&texts).map(|(vector, text)| json!({ "text": text, "embedding": vector })).collect();
        context.out.value(&json!({ "model": answer["model"], "data": data, "usage": answer["usage"] }));
    } else {
        vectors.for_each(|vector| context.out.line(vector.to_string()));
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
        texts.extend(piped.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    if texts.is_empty() {
        return Err(Failure::usage("there is no text to embed: standard input is empty"));
    }
    Ok(texts)
}
