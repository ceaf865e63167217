//! The routes.

use super::fields::Fields;
use super::served::{CHAT, Served, is_over, list, served};
use super::words;
use crate::call::{self, Call, refuse_ignored};
use crate::options::Options;
use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use backplane::payload::{detect, translate};
use backplane::{Answer, Caller, Error, ErrorCode, Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Instant;

/// Files that can be translated, by the end of their names.
const FILES: [(&str, translate::Format, &str); 8] = [
    (".txt", translate::Format::Text, "text/plain; charset=utf-8"),
    (".md", translate::Format::Markdown, "text/markdown; charset=utf-8"),
    (".markdown", translate::Format::Markdown, "text/markdown; charset=utf-8"),
    (".html", translate::Format::Html, "text/html; charset=utf-8"),
    (".htm", translate::Format::Html, "text/html; charset=utf-8"),
    (".xhtml", translate::Format::Html, "application/xhtml+xml"),
    (".srt", translate::Format::Subtitles, "application/x-subrip; charset=utf-8"),
    (".vtt", translate::Format::Subtitles, "text/vtt; charset=utf-8"),
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
    /// `text` (the default), `html`, `markdown` or `subtitles`.
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
        "subtitles" => translate::Format::Subtitles,
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
    call.answer(translate::CAPABILITY, &answer, &ignored, &body)
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
    let texts = asked.texts;
    let count = texts.len();
    let model = fields.text("model").map(str::to_owned);
    // The list is of what is served where no model is named.
    let list = match model {
        Some(_) => None,
        None => served(call, if auto { "" } else { source }, options).await?,
    };
    if let Some(list) = &list {
        let refuse = |source: &str| match list.refused(source, target) {
            Some((from, to)) if !list.others_may_serve(call, from, to) => Err(words::no_such_pair(from, to)),
            _ => Ok(()),
        };
        if auto {
            for (at, language) in told(call, list, &texts, options).await? {
                refuse(&language).map_err(|error| of_text(error, at, count))?;
            }
        } else {
            refuse(source)?;
        }
    }
    let params = translate::Params {
        text: texts,
        source: source.to_owned(),
        target: target.to_owned(),
        format: asked.format,
        alternatives: (asked.alternatives > 0).then_some(asked.alternatives),
        ..translate::Params::default()
    };
    let request = call.request(translate::CAPABILITY, model, &params, Vec::new(), options)?;
    let answer = match call.ask(request).await {
        Ok(answer) => answer,
        Err(error) => {
            // Those of the request, unless the source was detected or has another name.
            let code = |name: &str, asked: &str| {
                error.details.get(name).and_then(Value::as_str).unwrap_or(asked).to_owned()
            };
            let (source, target) = (code("source", source), code("target", target));
            if let Some(list) = &list
                && error.reason == "untranslated"
                && let Some((from, to)) = list.refused(&source, &target)
            {
                return Err(words::no_such_pair(from, to));
            }
            return Err(explain(call, options, list, error, &source, &target).await);
        }
    };
    let translations: Vec<_> =
        chunks::<translate::Chunk>(&answer)?.into_iter().flat_map(|chunk| chunk.translations).collect();
    if translations.len() != count {
        return Err(Error::internal("the plugin gave another number of translations than it was asked for"));
    }
    // Which language a text is in, and who would answer, may not have been known before.
    if let Some(list) = list.filter(|list| list.plugin == answer.route.plugin) {
        for (at, text) in translations.iter().enumerate().filter(|(_, text)| text.engine == CHAT) {
            let target = if text.target.is_empty() { target } else { &text.target };
            if let Some((from, to)) = list.refused(&text.source, target) {
                return Err(of_text(words::no_such_pair(from, to), at, count));
            }
        }
    }
    Ok((answer, translations, auto))
}

/// An error of one text, which is named where there are several.
fn of_text(mut error: Error, at: usize, count: usize) -> Error {
    if 1 < count {
        error.message = format!("q[{at}]: {}", error.message);
        error.param = Some(format!("q[{at}]"));
    }
    error
}

/// The languages of texts as far as they are told from each alone, each with its place: short ones of several are told together,
/// by who translates.
async fn told(
    call: &Call,
    list: &Served,
    texts: &[String],
    options: &Options,
) -> Result<Vec<(usize, String)>> {
    let is_long = |text: &str| text.chars().nth(40).is_some();
    let places: Vec<usize> =
        (0..).zip(texts).filter(|(_, text)| texts.len() == 1 || is_long(text)).map(|(at, _)| at).collect();
    let text: Vec<String> = places.iter().filter_map(|at| texts.get(*at).cloned()).collect();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let params = detect::Params { text, ..detect::Params::default() };
    let mut request = call.request(detect::CAPABILITY, None, &params, Vec::new(), options)?;
    request.caller = Caller::internal("languages");
    let answer = match call.ask(request).await {
        Ok(answer) => answer,
        Err(error) if is_over(&error) => return Err(words::failed(error)),
        // Who translates may know without.
        Err(_) => return Ok(Vec::new()),
    };
    let results = chunks::<detect::Chunk>(&answer)?.into_iter().flat_map(|chunk| chunk.results);
    let known = |(at, result): (usize, detect::Detected)| {
        let mut languages = result.languages.into_iter().map(|found| found.language);
        Some((at, languages.find(|code| list.named(code).is_some())?))
    };
    Ok(places.into_iter().zip(results).filter_map(known).collect())
}

/// An error of a plugin in LibreTranslate's words.
async fn explain(
    call: &Call,
    options: &Options,
    list: Option<Served>,
    error: Error,
    source: &str,
    target: &str,
) -> Error {
    match error.reason.as_ref() {
        "language_not_supported" if error.param.as_deref() == Some("source") => {
            words::unsupported(source, "source")
        }
        "language_not_supported" => words::unsupported(target, "target"),
        "language_pair_not_found" => {
            let list = match list {
                None => served(call, source, options).await.unwrap_or_default(),
                list => list,
            };
            match list.as_ref().and_then(|list| list.pair(source, target)) {
                Some((from, to)) => words::no_such_pair(from, to),
                None => Error::invalid(error.message).with_reason("language_pair_not_found"),
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
    call.answer(detect::CAPABILITY, &answer, &ignored, &body)
}

/// `GET /languages`. Without a key: what can be translated is no secret, and clients ask before they have one.
pub(crate) async fn languages(call: Call) -> Result<HttpResponse> {
    let list = list(&call, "", &call.options()?).await.map_err(words::failed)?;
    let targets: Vec<BTreeSet<&str>> = list.languages.iter().map(|from| list.targets(from)).collect();
    let is_target = |code: &str| targets.iter().any(|targets| targets.contains(code));
    let body: Vec<Language> = list
        .languages
        .iter()
        .zip(&targets)
        .filter(|(language, targets)| !targets.is_empty() || is_target(&language.code))
        .map(|(language, targets)| {
            // Into itself, as LibreTranslate lists it: the text as it is.
            let itself = std::iter::once(&*language.code);
            let targets: BTreeSet<&str> = targets.iter().copied().chain(itself).collect();
            let targets = targets.into_iter().map(str::to_owned).collect();
            Language { code: language.code.clone(), name: language.name.clone(), targets }
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
    if format == translate::Format::Subtitles && !text.contains("-->") {
        return Err(Error::invalid("Invalid request: there is no subtitle in the file")
            .with_reason("invalid_value")
            .with_param("file"));
    }
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
    call.answer(translate::CAPABILITY, &answer, &ignored, &TranslatedFile { translated_file_url: url })
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

/// The pieces of an answer.
pub(super) fn chunks<T: DeserializeOwned>(answer: &Answer) -> Result<Vec<T>> {
    let read = |json| {
        serde_json::from_slice(json).map_err(|error| crate::fault::schema(&answer.route.plugin, &error))
    };
    answer.chunks.iter().map(|chunk| read(&chunk.json)).collect()
}

/// One decimal is all that a probability of a language is worth.
fn percent(confidence: f64) -> f64 {
    (confidence * 1000.0).round() / 10.0
}
