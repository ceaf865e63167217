//! The routes.

use super::fields::Fields;
use super::words;
use crate::call::{self, Call, refuse_ignored};
use crate::options::Options;
use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use backplane::payload::{detect, languages, translate};
use backplane::{Answer, Caller, Error, ErrorCode, Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Instant;

/// Files that can be translated, by the end of their names.
const FILES: [(&str, translate::Format, &str); 6] = [
    (".txt", translate::Format::Text, "text/plain; charset=utf-8"),
    (".md", translate::Format::Markdown, "text/markdown; charset=utf-8"),
    (".markdown", translate::Format::Markdown, "text/markdown; charset=utf-8"),
    (".html", translate::Format::Html, "text/html; charset=utf-8"),
    (".htm", translate::Format::Html, "text/html; charset=utf-8"),
    (".xhtml", translate::Format::Html, "application/xhtml+xml"),
];

/// Most texts in one request, and most alternatives to a translation: as many as the translation plugin takes. LibreTranslate
/// has such limits, too, and says them in words of its own.
const TEXTS: usize = 1000;
const ALTERNATIVES: u32 = 5;

/// A request to translate. It may also come as a form.
#[derive(JsonSchema)]
#[schemars(rename = "TranslateRequest")]
#[expect(dead_code, reason = "read by `Fields`, which takes forms too; this is for the document")]
pub(crate) struct Request {
    /// A text, or a list of texts.
    q: Value,
    /// The language it is in; `auto` has it detected.
    source: String,
    /// The language it is to be in.
    target: String,
    /// `text` (the default), `html` or `markdown`.
    format: Option<String>,
    /// How many other translations are wanted.
    alternatives: Option<u32>,
    /// The key, where no `authorization` header has it.
    api_key: Option<String>,
    /// A model, an alias or a route; without it the router chooses.
    model: Option<String>,
}

/// A translation; of a list of texts each member is a list.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TranslateAnswer")]
pub(crate) struct Translated {
    translated_text: Value,
    /// Where the language was to be detected: `{"language", "confidence"}`, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    detected_language: Option<Value>,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    alternatives: Option<Value>,
}

/// A language that a text may be in.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DetectedLanguage")]
pub(crate) struct Detected {
    /// In percent.
    confidence: f64,
    language: String,
}

/// A language, and what it can be translated into.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TranslateLanguage")]
pub(crate) struct Language {
    code: String,
    name: String,
    targets: Vec<String>,
}

/// Where the translated file is.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TranslatedFile {
    translated_file_url: String,
}

/// `POST /translate`
pub(crate) async fn translate(mut call: Call) -> Result<HttpResponse> {
    let fields = Fields::of(&mut call).await?;
    let options = call.options()?;
    let ignored = fields.ignored(&["q", "source", "target", "format", "alternatives", "model"]);
    refuse_ignored(&options, &ignored)?;
    let (texts, batch) = fields.texts()?;
    fields.required("source")?;
    fields.required("target")?;
    let alternatives = fields.number("alternatives")?;
    if ALTERNATIVES < alternatives {
        return Err(words::at_most("alternatives", ALTERNATIVES));
    }
    if TEXTS < texts.len() {
        return Err(words::too_many(texts.len(), TEXTS));
    }
    let format = match fields.text("format").unwrap_or("text") {
        "text" => translate::Format::Text,
        "html" => translate::Format::Html,
        "markdown" => translate::Format::Markdown,
        other => return Err(words::unsupported_format(other)),
    };
    let asked = Asked { texts, format, alternatives };
    let (answer, translations, auto) = ask(&call, &fields, &options, asked).await?;
    let each = |member: fn(&translate::Translation) -> Value| -> Value {
        let mut values = translations.iter().map(member);
        if batch { values.collect() } else { values.next().unwrap_or_default() }
    };
    let body = Translated {
        translated_text: each(|text| text.text.clone().into()),
        detected_language: auto.then(|| {
            each(|text| {
                serde_json::json!({
                    "confidence": percent(text.detected.unwrap_or_default()), "language": text.source,
                })
            })
        }),
        alternatives: (alternatives > 0).then(|| each(|text| text.alternatives.clone().into())),
    };
    call.answer(&answer, &ignored, &body)
}

/// What is to be translated.
struct Asked {
    texts: Vec<String>,
    format: translate::Format,
    alternatives: u32,
}

/// Translates; also says whether the language was to be detected.
async fn ask(
    call: &Call,
    fields: &Fields,
    options: &Options,
    asked: Asked,
) -> Result<(Answer, Vec<translate::Translation>, bool)> {
    let (source, target) = (fields.required("source")?, fields.required("target")?);
    let auto = source == "auto";
    let count = asked.texts.len();
    let params = translate::Params {
        text: asked.texts,
        source: source.to_owned(),
        target: target.to_owned(),
        format: asked.format,
        alternatives: (asked.alternatives > 0).then_some(asked.alternatives),
        ..translate::Params::default()
    };
    let model = fields.text("model").map(str::to_owned);
    let request = call.request(translate::CAPABILITY, model, &params, Vec::new(), options)?;
    let answer = match call.ask(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(explain(call, error, source, target).await),
    };
    let translations: Vec<_> =
        chunks::<translate::Chunk>(&answer)?.into_iter().flat_map(|chunk| chunk.translations).collect();
    if translations.len() != count {
        return Err(Error::internal("the plugin gave another number of translations than it was asked for"));
    }
    Ok((answer, translations, auto))
}

/// An error of a plugin in LibreTranslate's words.
async fn explain(call: &Call, error: Error, source: &str, target: &str) -> Error {
    match error.reason.as_ref() {
        "language_not_supported" if error.param.as_deref() == Some("source") => {
            words::unsupported(source, "source")
        }
        "language_not_supported" => words::unsupported(target, "target"),
        "language_pair_not_found" => {
            let Ok(list) = list(call).await else { return words::failed(error) };
            let named = |code: &str| list.languages.iter().find(|language| language.code == code);
            match (named(source), named(target)) {
                (Some(from), Some(to)) => words::no_such_pair(from, to),
                _ => Error::invalid(error.message).with_reason("language_pair_not_found"),
            }
        }
        _ => words::failed(error),
    }
}

/// `POST /detect`
pub(crate) async fn detect(mut call: Call) -> Result<HttpResponse> {
    let fields = Fields::of(&mut call).await?;
    let options = call.options()?;
    let ignored = fields.ignored(&["q"]);
    refuse_ignored(&options, &ignored)?;
    let (texts, _) = fields.texts()?;
    // A list is one text to it.
    let params = detect::Params { text: vec![texts.join("\n")], ..detect::Params::default() };
    let request = call.request(detect::CAPABILITY, None, &params, Vec::new(), &options)?;
    let answer = call.ask(request).await.map_err(words::failed)?;
    let results = chunks::<detect::Chunk>(&answer)?.into_iter().flat_map(|chunk| chunk.results).next();
    let found = results.unwrap_or_default().languages;
    let mut body: Vec<Detected> = found
        .into_iter()
        .map(|found| Detected { confidence: percent(found.confidence), language: found.language })
        .collect();
    if body.is_empty() {
        // As LibreTranslate says of what has no letters.
        body.push(Detected { confidence: 0.0, language: "en".to_owned() });
    }
    call.answer(&answer, &ignored, &body)
}

/// `GET /languages`. Without a key: what can be translated is no secret, and clients ask before they have one.
pub(crate) async fn languages(call: Call) -> Result<HttpResponse> {
    let list = list(&call).await.map_err(words::failed)?;
    let chat = list.chat
        && call.host().capabilities().iter().any(|known| known.name == "chat" && !known.models.is_empty());
    let all: Vec<String> = list.languages.iter().map(|language| language.code.clone()).collect();
    let is_target =
        |code: &str| list.languages.iter().any(|other| other.targets.iter().any(|target| target == code));
    let body: Vec<Language> = list
        .languages
        .iter()
        .filter(|language| chat || !language.targets.is_empty() || is_target(&language.code))
        .map(|language| Language {
            code: language.code.clone(),
            name: language.name.clone(),
            targets: if chat { all.clone() } else { language.targets.clone() },
        })
        .collect();
    call::json(&body)
}

/// `GET /frontend/settings`
pub(crate) async fn settings(call: Call) -> Result<HttpResponse> {
    let keys = call.host().config().auth.enabled;
    call::json(&serde_json::json!({
        "apiKeys": keys,
        "charLimit": -1,
        "filesTranslation": true,
        "frontendTimeout": 500,
        "keyRequired": keys,
        "language": {
            "source": {"code": "auto", "name": "Auto Detect"},
            "target": {"code": "es", "name": "Spanish"},
        },
        "suggestions": false,
        "supportedFilesFormat": FILES.map(|(end, ..)| end),
    }))
}

/// `POST /translate_file`
pub(crate) async fn translate_file(mut call: Call) -> Result<HttpResponse> {
    let mut fields = Fields::of(&mut call).await?;
    let options = call.options()?;
    let ignored = fields.ignored(&["source", "target", "model"]);
    refuse_ignored(&options, &ignored)?;
    let file = fields.file.take().ok_or_else(|| words::missing("file"))?;
    fields.required("source")?;
    fields.required("target")?;
    if file.name.is_empty() {
        return Err(Error::invalid("Invalid request: empty file")
            .with_reason("invalid_value")
            .with_param("file"));
    }
    let (_, format, _) = kind(&file.name).ok_or_else(|| {
        Error::invalid("Invalid request: file format not supported")
            .with_reason("invalid_value")
            .with_param("file")
    })?;
    let text = String::from_utf8(file.bytes.to_vec()).map_err(|_| {
        Error::invalid("Invalid request: the file is not UTF-8")
            .with_reason("invalid_value")
            .with_param("file")
    })?;
    let asked = Asked { texts: vec![text], format, alternatives: 0 };
    let (answer, mut translations, _) = ask(&call, &fields, &options, asked).await?;
    let text = translations.pop().map(|translation| translation.text).unwrap_or_default();
    let name = format!(
        "{}.{}",
        crate::route::new_id(),
        plain_name(&file.name, fields.text("target").unwrap_or_default())
    );
    let url = format!("{}/download_file/{name}", call.own_url());
    call.files().put(name, text.into(), Instant::now());
    call.answer(&answer, &ignored, &TranslatedFile { translated_file_url: url })
}

/// `GET /download_file/{name}`: whoever knows the name may have it, as a browser that follows the link does.
pub(crate) async fn download(call: Call) -> Result<HttpResponse> {
    let name: String = call.path().await?;
    let Some(bytes) = call.files().get(&name, Instant::now()) else {
        let message = format!("there is no file `{name}` any more; translate it again");
        return Err(Error::new(ErrorCode::NotFound, message).with_reason("file_not_found"));
    };
    let shown = name.split_once('.').map_or(&*name, |(_, shown)| shown);
    let media = kind(shown).map_or("application/octet-stream", |(.., media)| media);
    let mut response = HttpResponse::Ok().body(bytes);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{shown}\"")) {
        headers.insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// What a file is, by its name.
fn kind(name: &str) -> Option<(&'static str, translate::Format, &'static str)> {
    let lower = name.to_ascii_lowercase();
    FILES.into_iter().find(|(end, ..)| lower.ends_with(end))
}

/// A name without anything that means something in a path or a header: `notes_es.md`.
fn plain_name(name: &str, target: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain = |text: &str| -> String {
        let harmless = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        text.chars().map(harmless).take(80).collect()
    };
    let (stem, end) = last.rsplit_once('.').unwrap_or((last, "txt"));
    format!("{}_{}.{}", plain(stem).trim_matches('.'), plain(target), plain(end))
}

/// The languages that can be translated.
async fn list(call: &Call) -> Result<languages::Chunk> {
    let options = Options::default();
    let mut request =
        call.request(languages::CAPABILITY, None, &languages::Params::default(), Vec::new(), &options)?;
    request.caller = Caller::internal("languages");
    let answer = call.ask(request).await?;
    Ok(chunks(&answer)?.into_iter().next().unwrap_or_default())
}

/// The pieces of an answer.
fn chunks<T: DeserializeOwned>(answer: &Answer) -> Result<Vec<T>> {
    let read = |json| {
        serde_json::from_slice(json).map_err(|error| crate::fault::schema(&answer.route.plugin, &error))
    };
    answer.chunks.iter().map(|chunk| read(&chunk.json)).collect()
}

/// One decimal is all that a probability of a language is worth.
fn percent(confidence: f64) -> f64 {
    (confidence * 1000.0).round() / 10.0
}
