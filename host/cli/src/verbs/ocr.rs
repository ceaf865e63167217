//! `ocr`: the text of pictures, one after the other.

use super::pictures;
use crate::args::Ocr;
use crate::context::Context;
use crate::exit::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

pub fn run(context: &Context, args: &Ocr) -> Result<()> {
    let client = context.client()?;
    let ask = |picture: Vec<u8>| {
        let mut body = json!({ "image": STANDARD.encode(picture), "words": args.words });
        if let Some(model) = &args.model {
            body["model"] = model.as_str().into();
        }
        client.post("/v1/vision/ocr", &body)
    };
    let mut shown = 0;
    pictures::each(context, &args.pictures, ask, |picture, answer| {
        for (place, (_, page)) in pictures::pages(picture, answer).into_iter().enumerate() {
            if 0 < shown {
                context.out.line("");
            }
            shown += 1;
            // As `head` does it, and where Markdown does not show it. Pages of a file follow each other without.
            if 1 < args.pictures.len() && place == 0 {
                let file = picture.display();
                context.out.line(if args.markdown {
                    format!("<!-- {file} -->")
                } else {
                    format!("==> {file} <==")
                });
            }
            let text = &page[if args.markdown { "markdown" } else { "text" }];
            context.out.line(text.as_str().unwrap_or_default());
        }
    })
}
