//! What `ocr`, `classify` and `detect` share: each picture is asked about by itself, so that one that fails does not keep the
//! others from their answers.

use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Asks about each picture, and shows each answer as it comes, or with `--json` all of them at the end.
pub fn each(
    context: &Context,
    pictures: &[PathBuf],
    ask: impl FnMut(Vec<u8>) -> Result<Value>,
    mut show: impl FnMut(&Path, &Value),
) -> Result<()> {
    let json = context.out.json;
    let mut told = Vec::new();
    let result = asked(pictures, ask, |picture, answer| {
        match answer {
            answer if json => told.push(named(picture, answer)),
            Ok(answer) => show(picture, answer),
            Err(failure) => {
                let name = picture.display().to_string();
                // What cannot be opened says itself what it is.
                let what = if failure.what.contains(&name) {
                    failure.what.clone()
                } else {
                    format!("{name}: {failure}")
                };
                context.out.failure(&Failure { what, next: failure.next.clone(), ..Failure::failed("") });
            }
        }
        !context.out.reader_left()
    });
    if json && !told.is_empty() {
        let one = pictures.len() == 1;
        context.out.value(&if one { told.remove(0) } else { Value::from(told) });
    }
    result
}

/// Asks about each. What fails of one picture alone is the failure of all, and told of nobody else.
fn asked(
    pictures: &[PathBuf],
    mut ask: impl FnMut(Vec<u8>) -> Result<Value>,
    mut tell: impl FnMut(&Path, Result<&Value, &Failure>) -> bool,
) -> Result<()> {
    let mut failed: Vec<Exit> = Vec::new();
    for picture in pictures {
        let answer = bytes(picture).and_then(&mut ask);
        match answer {
            Err(failure) if pictures.len() == 1 => return Err(failure),
            Err(ref failure) => failed.push(failure.exit),
            Ok(_) => {}
        }
        if !tell(picture, answer.as_ref()) {
            break;
        }
    }
    match failed.first() {
        None => Ok(()),
        Some(first) => {
            // One code where all failed for one reason.
            let exit = if failed.iter().all(|exit| exit == first) { *first } else { Exit::Failure };
            Err(Failure::new(exit, format!("{} of {} pictures failed", failed.len(), pictures.len())))
        }
    }
}

/// An answer or a failure with the picture's name.
fn named(picture: &Path, answer: Result<&Value, &Failure>) -> Value {
    let mut named = Map::from_iter([("picture".to_owned(), picture.display().to_string().into())]);
    match answer {
        Ok(answer) => named.extend(answer.as_object().cloned().unwrap_or_default()),
        Err(failure) => drop(named.insert("error".to_owned(), failure.json())),
    }
    named.into()
}

/// The answers for a file, each with a name: of one with several pages there is one for each.
pub fn pages<'a>(picture: &Path, answer: &'a Value) -> Vec<(String, &'a Value)> {
    let name = picture.display();
    match answer["results"].as_array() {
        None => vec![(name.to_string(), answer)],
        Some(pages) => {
            (1..).zip(pages).map(|(page, answer)| (format!("{name}, page {page}"), answer)).collect()
        }
    }
}

/// The bytes of a picture; `-` is standard input.
fn bytes(picture: &Path) -> Result<Vec<u8>> {
    if picture != Path::new("-") {
        return std::fs::read(picture).map_err(|error| Failure::io("read", picture, &error));
    }
    let mut piped = Vec::new();
    let read = std::io::stdin().read_to_end(&mut piped);
    read.map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")))?;
    Ok(piped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is told of pictures that hold `good`, `bad` or nothing at all.
    fn told(names: &[&str]) -> (Vec<Value>, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["good", "bad"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let pictures: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
        let ask = |bytes: Vec<u8>| match &bytes[..] {
            b"good" => Ok(json!({ "text": "read" })),
            _ => Err(Failure::usage("no picture").code("invalid_argument")),
        };
        let mut told = Vec::new();
        let result = asked(&pictures, ask, |picture, answer| {
            let name = PathBuf::from(picture.file_name().unwrap());
            told.push(named(&name, answer));
            true
        });
        (told, result)
    }

    #[test]
    fn a_picture_that_fails_does_not_keep_the_others() {
        let (all, result) = told(&["good", "bad", "missing", "good"]);
        assert_eq!(all[0], json!({ "picture": "good", "text": "read" }));
        assert_eq!(all[3], all[0]);
        assert_eq!((&all[1]["picture"], &all[1]["error"]["message"]), (&json!("bad"), &json!("no picture")));
        assert_eq!(all[2]["error"]["exit"], 3, "{}", all[2]);
        let failure = result.unwrap_err();
        assert_eq!((failure.exit, &*failure.what), (Exit::Failure, "2 of 4 pictures failed"));
        assert_eq!(told(&["bad", "good"]).1.unwrap_err().exit, Exit::Usage, "the code of the only reason");
        assert!(told(&["good", "good"]).1.is_ok());
    }

    #[test]
    fn of_one_picture_the_failure_is_that_of_the_command() {
        let (all, result) = told(&["bad"]);
        assert_eq!((all.len(), &*result.unwrap_err().what), (0, "no picture"));
    }

    #[test]
    fn pages_have_names_of_their_own() {
        let answer = json!({ "results": [{ "text": "a" }, { "text": "b" }] });
        let names: Vec<_> = pages(Path::new("x.tiff"), &answer).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["x.tiff, page 1", "x.tiff, page 2"]);
        assert_eq!(pages(Path::new("x.png"), &json!({}))[0].0, "x.png");
    }
}
