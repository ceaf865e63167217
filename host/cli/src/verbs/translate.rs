//! `translate`: a file or a pipe in another language, with its format kept.

use crate::args::Translate;
use crate::context::Context;
use crate::exit::{Failure, Result};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

pub fn run(context: &Context, args: &Translate) -> Result<()> {
    let text = text(args)?;
    let format = args.format.as_deref().unwrap_or_else(|| format_of(args.file.as_deref()));
    let glossary = args.glossary.iter().map(|term| pair(term)).collect::<Result<Vec<_>>>()?;
    let mut params = json!({ "text": [text], "target": args.to, "format": format });
    if let Some(from) = &args.from {
        params["source"] = from.as_str().into();
    }
    if !glossary.is_empty() {
        params["glossary"] = glossary.into();
    }
    if !args.keep.is_empty() {
        params["keep"] = json!(args.keep);
    }
    let mut body = json!({ "params": params });
    if let Some(model) = &args.model {
        body["model"] = model.as_str().into();
    }
    let answer = context.client()?.post("/v1/capabilities/translate", &body)?;
    let translation = &answer["result"]["translations"][0];
    if context.out.json {
        let mut shown = translation.clone();
        shown["model"] = answer["model"].clone();
        context.out.value(&shown);
        return Ok(());
    }
    context.out.write(translation["text"].as_str().unwrap_or_default());
    Ok(())
}

fn text(args: &Translate) -> Result<String> {
    match args.file.as_deref() {
        Some(file) if file != Path::new("-") => {
            std::fs::read_to_string(file).map_err(|error| Failure::io("read", file, &error))
        }
        _ => {
            let mut piped = String::new();
            let read = std::io::stdin().read_to_string(&mut piped);
            read.map_err(|error| Failure::usage(format!("standard input cannot be read as text: {error}")))?;
            Ok(piped)
        }
    }
}

/// What a file is written in, by the end of its name.
fn format_of(file: Option<&Path>) -> &'static str {
    let end = file.and_then(Path::extension).and_then(|end| end.to_str()).unwrap_or_default();
    match end.to_ascii_lowercase().as_str() {
        "md" | "markdown" => "markdown",
        "html" | "htm" | "xhtml" => "html",
        _ => "text",
    }
}

/// `cat=gato`.
fn pair(term: &str) -> Result<Value> {
    let (source, target) = term.split_once('=').ok_or_else(|| {
        Failure::usage(format!("`--glossary {term}` has no `=`")).next("write it as in `--glossary cat=gato`")
    })?;
    Ok(json!({ "source": source, "target": target }))
}
