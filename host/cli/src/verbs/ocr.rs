//! `ocr`: the text of pictures, one after the other.

use crate::args::Ocr;
use crate::context::Context;
use crate::exit::{Failure, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

pub fn run(context: &Context, args: &Ocr) -> Result<()> {
    let client = context.client()?;
    let mut answers = Vec::new();
    for (index, picture) in args.pictures.iter().enumerate() {
        let mut body = json!({ "image": STANDARD.encode(bytes(picture)?), "words": args.words });
        if let Some(model) = &args.model {
            body["model"] = model.as_str().into();
        }
        let answer = client.post("/v1/vision/ocr", &body)?;
        if context.out.json {
            answers.push(answer);
            continue;
        }
        if 0 < index {
            context.out.line("");
        }
        let text = &answer[if args.markdown { "markdown" } else { "text" }];
        context.out.line(text.as_str().unwrap_or_default());
    }
    if context.out.json {
        let one = answers.len() == 1;
        context.out.value(&if one { answers.remove(0) } else { Value::from(answers) });
    }
    Ok(())
}

/// The bytes of a picture; `-` is standard input.
pub fn bytes(picture: &Path) -> Result<Vec<u8>> {
    if picture != Path::new("-") {
        return std::fs::read(picture).map_err(|error| Failure::io("read", picture, &error));
    }
    let mut piped = Vec::new();
    let read = std::io::stdin().read_to_end(&mut piped);
    read.map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")))?;
    Ok(piped)
}
