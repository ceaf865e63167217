//! `detect`: what pictures show and where, one after the other; drawn, where asked.

use super::ocr::bytes;
use crate::args::Detect;
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::Table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;

pub fn run(context: &Context, args: &Detect) -> Result<()> {
    if args.draw.is_some() && args.pictures.len() != 1 {
        return Err(Failure::usage("`--draw` names one file, and several pictures are given"));
    }
    let what = if args.faces { "faces" } else { "detect" };
    let client = context.client()?;
    let mut answers = Vec::new();
    for picture in &args.pictures {
        let mut body = json!({ "image": STANDARD.encode(bytes(picture)?), "draw": args.draw.is_some() });
        for (member, value) in [("model", args.model.clone().into()), ("min_score", args.min_score.into())] {
            if value != Value::Null {
                body[member] = value;
            }
        }
        let mut answer = client.post(&format!("/v1/vision/{what}"), &body)?;
        if let Some(path) = &args.draw {
            write(path, &answer["drawn"].take())?;
            context.out.note(format!("drawn: {}", path.display()));
        }
        if let Some(answer) = answer.as_object_mut() {
            answer.shift_remove("drawn");
        }
        answers.push(answer);
    }
    if context.out.json {
        let one = answers.len() == 1;
        context.out.value(&if one { answers.remove(0) } else { Value::from(answers) });
        return Ok(());
    }
    let mut table = Table::new(&["PICTURE", "WHAT", "SCORE", "LEFT", "TOP", "RIGHT", "BOTTOM"]);
    for (picture, answer) in args.pictures.iter().zip(&answers) {
        let found = if args.faces { &answer["faces"] } else { &answer["objects"] };
        for one in found.as_array().into_iter().flatten() {
            let mut cells =
                vec![picture.display().to_string(), one["label"].as_str().unwrap_or("face").to_owned()];
            cells.push(format!("{:.2}", one["score"].as_f64().unwrap_or_default()));
            let edges = one["box"].as_array().into_iter().flatten();
            cells.extend(edges.map(|edge| format!("{:.0}", edge.as_f64().unwrap_or_default())));
            table.row(cells);
        }
    }
    context.out.table(&table);
    Ok(())
}

fn write(path: &Path, drawn: &Value) -> Result<()> {
    let file = drawn.as_str().and_then(|text| STANDARD.decode(text).ok());
    let file = file.ok_or_else(|| {
        Failure::failed("the answer has no drawn picture: is the server older than this program?")
    })?;
    std::fs::write(path, file).map_err(|error| Failure::io("write", path, &error))
}
