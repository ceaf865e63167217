//! `classify`: what pictures show as a whole.

use super::pictures;
use crate::args::Classify;
use crate::context::Context;
use crate::exit::Result;
use crate::output::Table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub fn run(context: &Context, args: &Classify) -> Result<()> {
    let client = context.client()?;
    let ask = |picture: Vec<u8>| {
        let mut body = json!({ "image": STANDARD.encode(picture) });
        for (member, value) in [("model", args.model.clone().into()), ("top_k", args.top.into())] {
            if value != Value::Null {
                body[member] = value;
            }
        }
        client.post("/v1/vision/classify", &body)
    };
    let mut table = Table::new(&["PICTURE", "WHAT", "SCORE"]);
    let result = pictures::each(context, &args.pictures, ask, |picture, answer| {
        for (picture, answer) in pictures::pages(picture, answer) {
            for label in answer["labels"].as_array().into_iter().flatten() {
                let score = format!("{:.3}", label["score"].as_f64().unwrap_or_default());
                let name = label["label"].as_str().unwrap_or_default().to_owned();
                table.row([picture.clone(), name, score]);
            }
        }
    });
    if !context.out.json && (result.is_ok() || 1 < args.pictures.len()) {
        context.out.table(&table);
    }
    result
}
