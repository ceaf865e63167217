//! `classify`: what pictures show as a whole.

use super::ocr::bytes;
use crate::args::Classify;
use crate::context::Context;
use crate::exit::Result;
use crate::output::Table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub fn run(context: &Context, args: &Classify) -> Result<()> {
    let client = context.client()?;
    let mut answers = Vec::new();
    for picture in &args.pictures {
        let mut body = json!({ "image": STANDARD.encode(bytes(picture)?) });
        for (member, value) in [("model", args.model.clone().into()), ("top_k", args.top.into())] {
            if value != Value::Null {
                body[member] = value;
            }
        }
        answers.push(client.post("/v1/vision/classify", &body)?);
    }
    if context.out.json {
        let one = answers.len() == 1;
        context.out.value(&if one { answers.remove(0) } else { Value::from(answers) });
        return Ok(());
    }
    let mut table = Table::new(&["PICTURE", "WHAT", "SCORE"]);
    for (picture, answer) in args.pictures.iter().zip(&answers) {
        for label in answer["labels"].as_array().into_iter().flatten() {
            let score = format!("{:.3}", label["score"].as_f64().unwrap_or_default());
            let name = label["label"].as_str().unwrap_or_default().to_owned();
            table.row([picture.display().to_string(), name, score]);
        }
    }
    context.out.table(&table);
    Ok(())
}
