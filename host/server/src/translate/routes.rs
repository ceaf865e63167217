//! The routes.

use super::fields::Fields;
use super::words;
use crate::call::{self, Call, refuse_ignored};
use crate::options::Options;
use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use backplane::payload::{detect, languages, translate};
use backplane::{Answer, Caller, Error, ErrorCode, ModelInfo, Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
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
    // The list is of what is served where no model is named.
    let by_list = model.is_none();
    if by_list && !auto {
        refuse_unlisted(call, source, target).await?;
    }
    let request = call.request(translate::CAPABILITY, model, &params, Vec::new(), options)?;
    let answer = match call.ask(request).await {
        Ok(answer) => answer,
        Err(error) => {
            // Those of the request, unless the source was detected or has another name.
            let code = |name: &str, asked: &str| {
                error.details.get(name).and_then(Value::as_str).unwrap_or(asked).to_owned()
            };
            let (source, target) = (code("source", source), code("target", target));
            if by_list && auto && error.reason == "untranslated" {
                refuse_unlisted(call, &source, &target).await?;
            }
            return Err(explain(call, error, &source, &target).await);
        }
    };
    let translations: Vec<_> =
        chunks::<translate::Chunk>(&answer)?.into_iter().flat_map(|chunk| chunk.translations).collect();
    if translations.len() != count {
        return Err(Error::internal("the plugin gave another number of translations than it was asked for"));
    }
    for text in translations.iter().filter(|text| by_list && auto && text.engine == CHAT) {
        let target = if text.target.is_empty() { target } else { &text.target };
        refuse_unlisted(call, &text.source, target).await?;
    }
    Ok((answer, translations, auto))
}

/// The engine that is asked for whatever pair no other serves.
const CHAT: &str = "chat";

/// Refuses what `/languages` does not list, so that a client can believe it. Codes that are none of the list's are the plugin's
/// to judge.
async fn refuse_unlisted(call: &Call, source: &str, target: &str) -> Result<()> {
    let list = served(call, source).await.map_err(words::failed)?;
    let named = |code: &str| list.languages.iter().find(|language| language.code == code);
    match (named(source), named(target)) {
        (Some(from), Some(to)) if source != target && !from.targets.contains(&to.code) => {
            Err(words::no_such_pair(from, to))
        }
        _ => Ok(()),
    }
}

/// An error of a plugin in LibreTranslate's words.
async fn explain(call: &Call, error: Error, source: &str, target: &str) -> Error {
    match error.reason.as_ref() {
        "language_not_supported" if error.param.as_deref() == Some("source") => {
            words::unsupported(source, "source")
        }
        "language_not_supported" => words::unsupported(target, "target"),
        "language_pair_not_found" => {
            let Ok(list) = list(call, source).await else { return words::failed(error) };
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
    call.answer(detect::CAPABILITY, &answer, &ignored, &body)
}

/// `GET /languages`. Without a key: what can be translated is no secret, and clients ask before they have one.
pub(crate) async fn languages(call: Call) -> Result<HttpResponse> {
    let list = served(&call, "").await.map_err(words::failed)?;
    let is_target =
        |code: &str| list.languages.iter().any(|other| other.targets.iter().any(|target| target == code));
    let body: Vec<Language> = list
        .languages
        .iter()
        .filter(|language| !language.targets.is_empty() || is_target(&language.code))
        .map(|language| {
            // Into itself, as LibreTranslate lists it: the text as it is.
            let itself = std::iter::once(&language.code);
            let mut targets: Vec<String> = language.targets.iter().chain(itself).cloned().collect();
            targets.sort_unstable();
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

/// What can be translated into what, from `source` or from any language: by engines made for the pair, and by chat models as
/// far as their cards say that they know both.
async fn served(call: &Call, source: &str) -> Result<languages::Chunk> {
    let mut list = list(call, source).await?;
    if !list.chat {
        return Ok(list);
    }
    let codes: Vec<String> = list.languages.iter().map(|language| language.code.clone()).collect();
    for known in known_to_chat(call, &list.chat_models) {
        let wanted = |language: &&mut languages::Language| source.is_empty() || language.code == source;
        for language in list.languages.iter_mut().filter(wanted) {
            if known.contains(&language.code) {
                language.targets.extend(codes.iter().filter(|code| known.contains(code)).cloned());
            }
        }
    }
    for language in &mut list.languages {
        language.targets.retain(|target| *target != language.code);
        language.targets.sort_unstable();
        language.targets.dedup();
    }
    Ok(list)
}

/// For each chat model that is asked, the languages that its card says it knows: any of them where none is named.
fn known_to_chat(call: &Call, named: &[String]) -> Vec<Vec<String>> {
    let host = call.host();
    let known = |model: ModelInfo| -> Vec<String> {
        let listed = model.card["languages"].as_array().into_iter().flatten();
        listed.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    match named {
        [] => host
            .models()
            .into_iter()
            .filter(|model| model.problem.is_none() && model.capabilities.iter().any(|own| own == CHAT))
            .map(known)
            .collect(),
        names => names.iter().filter_map(|name| host.model(name)).map(known).collect(),
    }
}

/// The languages, with what engines made for a pair translate each into.
async fn list(call: &Call, source: &str) -> Result<languages::Chunk> {
    let options = Options::default();
    let params = languages::Params { source: source.to_owned(), ..languages::Params::default() };
    let mut request = call.request(languages::CAPABILITY, None, &params, Vec::new(), &options)?;
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
