//! `detect`: what pictures show and where, one after the other; drawn, where asked.

use super::pictures;
use crate::args::Detect;
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::Table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ImageFormat;
use serde_json::{Value, json};
use std::io::Cursor;
use std::path::{Path, PathBuf};

pub fn run(context: &Context, args: &Detect) -> Result<()> {
    if args.draw.is_some() && args.pictures.len() != 1 {
        return Err(Failure::usage("`--draw` names one file, and several pictures are given"));
    }
    let format = args.draw.as_deref().map(|path| format(path, &args.pictures)).transpose()?;
    let what = if args.faces { "faces" } else { "detect" };
    let client = context.client()?;
    let ask = |picture: Vec<u8>| {
        let mut body = json!({ "image": STANDARD.encode(picture), "draw": args.draw.is_some() });
        for (member, value) in [("model", args.model.clone().into()), ("min_score", args.min_score.into())] {
            if value != Value::Null {
                body[member] = value;
            }
        }
        let mut answer = client.post(&format!("/v1/vision/{what}"), &body)?;
        if let (Some(path), Some(format)) = (&args.draw, format) {
            if let Some(pages) = answer["results"].as_array() {
                let pages = pages.len();
                return Err(Failure::usage(format!(
                    "`--draw` names one file, and the picture has {pages} pages"
                )));
            }
            write(path, format, &answer["drawn"].take())?;
            context.out.note(format!("drawn: {}", path.display()));
        }
        if let Some(answer) = answer.as_object_mut() {
            answer.shift_remove("drawn");
        }
        Ok(answer)
    };
    let mut table = Table::new(&["PICTURE", "WHAT", "SCORE", "LEFT", "TOP", "RIGHT", "BOTTOM"]);
    let result = pictures::each(context, &args.pictures, ask, |picture, answer| {
        for (picture, answer) in pictures::pages(picture, answer) {
            let found = if args.faces { &answer["faces"] } else { &answer["objects"] };
            for one in found.as_array().into_iter().flatten() {
                let mut cells = vec![picture.clone(), one["label"].as_str().unwrap_or("face").to_owned()];
                cells.push(format!("{:.2}", one["score"].as_f64().unwrap_or_default()));
                let edges = one["box"].as_array().into_iter().flatten();
                cells.extend(edges.map(|edge| format!("{:.0}", edge.as_f64().unwrap_or_default())));
                table.row(cells);
            }
        }
    });
    if !context.out.json && (result.is_ok() || 1 < args.pictures.len()) {
        context.out.table(&table);
    }
    result
}

/// What a drawn picture is written as, by the end of its name; known before anything is looked for.
fn format(path: &Path, pictures: &[PathBuf]) -> Result<ImageFormat> {
    let whole = |path: &Path| path.canonicalize().ok();
    if whole(path).is_some_and(|drawn| pictures.iter().any(|picture| whole(picture) == Some(drawn.clone()))) {
        return Err(Failure::usage(format!("`--draw {}` is the picture that is read", path.display()))
            .next("name another file: the drawing would take the picture's place"));
    }
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    match end.to_ascii_lowercase().as_str() {
        "png" => Ok(ImageFormat::Png),
        "jpg" | "jpeg" => Ok(ImageFormat::Jpeg),
        _ => Err(Failure::usage(format!("`--draw {}` is neither a `.png` nor a `.jpg`", path.display()))
            .next("write it as in `--draw out.png`")),
    }
}

/// The server draws into a PNG.
fn write(path: &Path, format: ImageFormat, drawn: &Value) -> Result<()> {
    let file = drawn.as_str().and_then(|text| STANDARD.decode(text).ok());
    let mut file = file.ok_or_else(|| {
        Failure::failed("the answer has no drawn picture: is the server older than this program?")
    })?;
    if format != ImageFormat::Png {
        let mut encoded = Cursor::new(Vec::new());
        image::load_from_memory_with_format(&file, ImageFormat::Png)
            // JPEG knows no transparency.
            .and_then(|picture| picture.into_rgb8().write_to(&mut encoded, format))
            .map_err(|error| {
                Failure::failed(format!("the drawn picture cannot be written as a JPEG: {error}"))
            })?;
        file = encoded.into_inner();
    }
    std::fs::write(path, file).map_err(|error| Failure::io("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_drawing_is_what_its_name_says_and_never_in_the_picture_s_place() {
        let dir = tempfile::tempdir().unwrap();
        let [picture, png, jpg] = ["in.png", "out.png", "OUT.JPG"].map(|name| dir.path().join(name));
        image::RgbaImage::from_pixel(8, 8, image::Rgba([200, 10, 10, 255])).save(&picture).unwrap();
        let drawn = Value::from(STANDARD.encode(std::fs::read(&picture).unwrap()));
        let pictures = [picture.clone()];
        for (path, begins) in [(&png, &b"\x89PNG"[..]), (&jpg, b"\xff\xd8\xff")] {
            write(path, format(path, &pictures).unwrap(), &drawn).unwrap();
            assert!(std::fs::read(path).unwrap().starts_with(begins), "{}", path.display());
        }
        for refused in
            [&*picture, &dir.path().join(".").join("in.png"), Path::new("out.gif"), Path::new("out")]
        {
            assert_eq!(format(refused, &pictures).unwrap_err().exit, Exit::Usage, "{}", refused.display());
        }
    }
}
