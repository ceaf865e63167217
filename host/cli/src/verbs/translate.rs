//! `translate`: a file or a pipe in another language, with its format kept.

use crate::args::Translate;
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::printable;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

pub fn run(context: &Context, args: &Translate) -> Result<()> {
    let text = text(args)?;
    let format = args.format.as_deref().unwrap_or_else(|| format_of(args.file.as_deref()));
    let glossary = args.glossary.iter().map(|term| pair(term)).collect::<Result<Vec<_>>>()?;
    let mut params = json!({ "text": [&text], "target": args.to, "format": format });
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
    let helped = |failure: Failure| match failure.code.as_deref() {
        Some(UNTRANSLATED) => failure.next(BETTER),
        _ => failure,
    };
    let answer = context.client()?.post("/v1/capabilities/translate", &body).map_err(helped)?;
    let translation = &answer["result"]["translations"][0];
    if context.out.json {
        let mut shown = translation.clone();
        shown["model"] = answer["model"].clone();
        context.out.value(&shown);
    } else {
        context.out.write(translation["text"].as_str().unwrap_or_default());
    }
    match left(&text, translation, &args.to) {
        Left::Nothing => Ok(()),
        Left::Some(what) => {
            context.out.complain(format!("warning: {what}"));
            context.out.complain(format!("   next: {BETTER}"));
            Ok(())
        }
        Left::All(what) => Err(Failure::failed(what).next(BETTER).code(UNTRANSLATED)),
    }
}

/// The code of a text that nothing of was translated.
const UNTRANSLATED: &str = "untranslated";

/// What helps where an engine could not do it.
const BETTER: &str = "install a pair of Apertium for these languages and start the host again, pull a model of the format \
    `marian` and name it with --model, or pull a larger model that chats; what is installed: `backplane ls`, what can be pulled: `backplane ls --available`";

/// What of a text is still in its own language.
#[derive(Debug, PartialEq)]
enum Left {
    Nothing,
    Some(String),
    All(String),
}

/// A text that came back as it was must not pass for its translation.
fn left(text: &str, translation: &Value, to: &str) -> Left {
    let count = translation["untranslated"].as_u64().unwrap_or_default();
    if count == 0 {
        return Left::Nothing;
    }
    let word = |member: &str| printable(translation[member].as_str().unwrap_or("?"));
    let (from, engine) = (word("source"), word("engine"));
    let models: Vec<String> = translation["models"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(printable)
        .collect();
    let asked = if models.is_empty() { String::new() } else { format!(" (`{}`)", models.join("`, `")) };
    let pair = format!("from `{from}` into `{to}`, which `{engine}`{asked} tried");
    if translation["text"] == text {
        return Left::All(format!("nothing was translated {pair}: the text is as it was"));
    }
    let (pieces, they) =
        if count == 1 { ("one piece is".to_owned(), "it") } else { (format!("{count} pieces are"), "they") };
    Left::Some(format!("{pieces} still in `{from}`: {they} could not be translated {pair}"))
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
        "srt" | "vtt" => "subtitles",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_comes_back_as_it_was_is_no_translation() {
        let answer = |text: &str, untranslated: u64| json!({ "text": text, "source": "en", "engine": "chat", "confidence": 0.0, "untranslated": untranslated });
        assert_eq!(
            left("Paris\n", &json!({ "text": "Paris\n", "source": "en" }), "de"),
            Left::Nothing,
            "a name"
        );
        let Left::All(what) = left("The house.\n", &answer("The house.\n", 1), "de") else { panic!() };
        assert_eq!(
            what,
            "nothing was translated from `en` into `de`, which `chat` tried: the text is as it was"
        );
        let Left::Some(what) = left("The house. A cat.", &answer("Das Haus. A cat.", 1), "de") else {
            panic!()
        };
        assert!(what.starts_with("one piece is still in `en`: "), "{what}");
        let mut named = answer("Das Haus. A cat. No.", 2);
        named["models"] = json!(["small", "other"]);
        let Left::Some(what) = left("The house. A cat. No.", &named, "de") else { panic!() };
        let told = "2 pieces are still in `en`: they could not be translated from `en` into `de`, which `chat` (`small`, `other`) tried";
        assert_eq!(what, told);
    }
}
