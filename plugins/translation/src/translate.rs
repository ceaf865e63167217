//! One request to translate.

use crate::Counters;
use crate::detect::Detector;
use crate::engine::chat::Seen;
use crate::engine::{Engine, Pair, Work};
use crate::languages::{self, Language};
use crate::protect::Format;
use crate::protect::document::{self, Outcome};
use crate::protect::spans::Rules;
use backplane_plugin::payload::translate::{self as payload, Chunk as Answer, Params, Translation};
use backplane_plugin::payload::{detect as detect_payload, languages as list};
use backplane_plugin::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most texts in one request.
const TEXTS: usize = 1000;
/// Most alternatives to a translation.
const ALTERNATIVES: u32 = 5;
/// Why a text is refused that no chat model could translate anything of.
const UNTRANSLATED: &str = "untranslated";

/// A model that translates.
pub struct Translator {
    /// The preferred one first.
    pub engines: Vec<Arc<dyn Engine>>,
    /// Before any engine: other models, for the pairs that they were given.
    pub models: Models,
}

/// Models of this host, by the pair of languages that each is asked for.
#[derive(Clone, Debug, Default)]
pub struct Models(Vec<(Pair, String)>);

impl Models {
    /// As the configuration says: `{ "en-de" = "opus-mt-en-de" }`.
    ///
    /// # Errors
    /// When a pair is none.
    pub fn of(pairs: &BTreeMap<String, String>) -> Result<Self, String> {
        let pair = |(pair, model): (&String, &String)| {
            let (from, to) =
                pair.split_once('-').ok_or_else(|| format!("`{pair}` is no pair such as `en-de`"))?;
            let language = |code: &str| languages::find(code).ok_or_else(|| languages::unknown(code));
            Ok((Pair { from: language(from)?, to: language(to)? }, model.clone()))
        };
        pairs.iter().map(pair).collect::<Result<_, _>>().map(Self)
    }

    fn serving(&self, pair: Pair) -> Option<&str> {
        self.0.iter().find(|(own, _)| *own == pair).map(|(_, model)| &**model)
    }
}

impl Translator {
    /// Answers a request.
    ///
    /// # Errors
    /// When it asks for what is not here, and those of the engines.
    pub fn serve(&self, request: &Request, counters: &Counters) -> Result<Done> {
        let mut params: Params = request.params()?;
        let target = check(&params)?;
        let glossary: Vec<_> =
            params.glossary.iter().map(|term| (term.source.clone(), term.target.clone())).collect();
        let rules =
            Rules::new(&params.keep, &glossary).map_err(|why| Error::invalid(why).with_param("glossary"))?;
        let format = match params.format {
            payload::Format::Text => Format::Text,
            payload::Format::Markdown => Format::Markdown,
            payload::Format::Html => Format::Html,
            payload::Format::Subtitles => Format::Subtitles,
        };
        for (at, text) in params.text.iter().enumerate() {
            if let Some(flaw) = format.flaw(text) {
                let param = if params.text.len() == 1 { "text".to_owned() } else { format!("text[{at}]") };
                return Err(Error::invalid(format!("`{param}` {flaw}")).with_param(param));
            }
        }
        let sources = sources(&params, target, request)?;
        // What is left is the same for each of them.
        let texts = std::mem::take(&mut params.text);
        let (mut confidence, mut usage) = (1.0_f64, backplane_plugin::payload::Usage::default());
        let as_it_is = |text: &String, confidence| Translation {
            text: text.clone(),
            engine: "none".to_owned(),
            confidence,
            ..Translation::default()
        };
        // Texts that nothing was done of wait for one that something was done of: an error must come before any answer.
        let mut waiting = Vec::new();
        let (mut refused, mut any) = (None, false);
        for (text, (source, detected)) in texts.iter().zip(sources) {
            let pair = Pair { from: source, to: target };
            let answer = match self.models.serving(pair) {
                _ if source == target => Ok(as_it_is(text, 1.0)),
                Some(model) => ask(model, pair, text, &params, request),
                None => {
                    self.text(text, format, &rules, pair, params.alternatives.unwrap_or(0), request, counters)
                }
            };
            let is_done = answer.is_ok();
            let mut translation = match answer {
                // The other texts are not lost for it.
                Err(error) if error.reason.as_deref() == Some(UNTRANSLATED) && 1 < texts.len() => {
                    refused.get_or_insert(error);
                    Translation { untranslated: 1, ..as_it_is(text, 0.0) }
                }
                answer => answer?,
            };
            translation.source = source.code.to_owned();
            if params.target != target.code {
                translation.target = target.code.to_owned();
            }
            translation.detected = detected;
            // A text is as sure as its language and its translation are, and a request as its least sure text.
            confidence = confidence.min(translation.confidence * detected.unwrap_or(1.0));
            usage.prompt_tokens += crate::words(text);
            usage.completion_tokens += crate::words(&translation.text);
            waiting.push(translation);
            any |= is_done;
            if any {
                for translation in waiting.drain(..) {
                    request.push_json(&Answer { translations: vec![translation], ..Answer::default() })?;
                }
            }
        }
        if let Some(error) = refused
            && !any
        {
            return Err(error);
        }
        Ok(Done { usage: Some(usage), confidence: Some(confidence) })
    }

    #[expect(clippy::too_many_arguments, reason = "what a request says of a text")]
    fn text(
        &self,
        text: &str,
        format: Format,
        rules: &Rules,
        pair: Pair,
        alternatives: u32,
        request: &Request,
        counters: &Counters,
    ) -> Result<Translation> {
        let mut engines = self.engines.iter().filter(|engine| engine.serves(pair));
        let Some(mut first) = engines.next() else { return Err(self.unserved(pair, None)) };
        let known = RefCell::default();
        let run = |engine: &Arc<dyn Engine>, variant: u32, chats: &RefCell<Seen>| -> Result<Outcome> {
            let work = Work { request, variant, wanted: alternatives + 1, known: &known, chats };
            let check = || work.check();
            let outcome = document::translate(text, format, rules, engine.longest(), &check, |sentences| {
                engine.translate(pair, sentences, &work)
            })?;
            counters.sentences.fetch_add(outcome.sentences as u64, Ordering::Relaxed);
            counters.pieced.fetch_add(outcome.pieced as u64, Ordering::Relaxed);
            counters.untranslated.fetch_add(outcome.untranslated as u64, Ordering::Relaxed);
            Ok(outcome)
        };
        let chats = RefCell::<Seen>::default();
        // An engine that asks others of this host finds nobody there.
        let unserved = |error: Error| match error.code {
            Code::NotFound => self.unserved(pair, chats.borrow().failures(pair)),
            _ => error,
        };
        let mut best = run(first, 0, &chats).map_err(unserved)?;
        let is_nothing = |outcome: &Outcome| 0 < outcome.untranslated && outcome.text == text;
        // What one engine can make nothing of another may know.
        while is_nothing(&best) {
            let Some(next) = engines.next() else { break };
            match run(next, 0, &chats) {
                Ok(outcome) => (first, best) = (next, outcome),
                Err(error) if matches!(error.code, Code::Cancelled | Code::DeadlineExceeded) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        let models = chats.borrow().models();
        if is_nothing(&best)
            && let Some(failures) = chats.borrow().failures(pair)
        {
            return Err(nothing_done(pair, &failures));
        }
        let mut others: Vec<String> = Vec::new();
        if alternatives > 0 {
            // The other engines' first words, then what the last one says when it is asked again.
            let mut runs: Vec<(&Arc<dyn Engine>, u32)> = engines.map(|engine| (engine, 0)).collect();
            let last = runs.last().map_or(first, |(engine, _)| *engine);
            runs.extend((1..=alternatives).filter(|_| last.has_variants()).map(|variant| (last, variant)));
            for (engine, variant) in runs {
                if others.len() == alternatives as usize {
                    break;
                }
                // An alternative that fails is one that there is not.
                let other = match run(engine, variant, &RefCell::default()) {
                    // Nor is one of which words are as they were.
                    Ok(other) if best.untranslated < other.untranslated => continue,
                    Ok(other) => other.text,
                    Err(error) if matches!(error.code, Code::Cancelled | Code::DeadlineExceeded) => {
                        return Err(error);
                    }
                    Err(_) => continue,
                };
                if other != best.text && !others.contains(&other) {
                    others.push(other);
                }
            }
        }
        Ok(Translation {
            text: best.text,
            engine: first.name().to_owned(),
            models,
            confidence: best.confidence,
            alternatives: others,
            pieced: best.pieced as u64,
            untranslated: best.untranslated as u64,
            ..Translation::default()
        })
    }

    fn unserved(&self, pair: Pair, failures: Option<String>) -> Error {
        let failures = failures.map(|told| format!(" ({told})")).unwrap_or_default();
        let message = format!(
            "{} (`{}`) cannot be translated into {} (`{}`) here: install a pair of Apertium and start the host again, or give the \
             pair to a model of the format `marian` by `pairs` in [plugins.settings.\"dev.backplane.translation\"], or have a chat \
             model, and let `engines` of the model have `chat`{failures}",
            pair.from.name, pair.from.code, pair.to.name, pair.to.code
        );
        let error = Error::new(Code::NotFound, message).with_reason("language_pair_not_found");
        of_pair(error.with_param("target"), pair)
    }

    /// Answers which languages there are, and what each can be translated into.
    ///
    /// # Errors
    /// When the caller has left.
    pub fn list(&self, request: &Request) -> Result<Done> {
        let list: list::Params = request.params()?;
        refuse_unknown::<list::Params>(&list.extra)?;
        // As a request to translate reads it.
        let source = languages::find(&list.source).map(Language::in_any_script);
        let language = |from: &'static Language| {
            let is_wanted = list.source.is_empty() || source == Some(from.in_any_script());
            let into = |to: &&'static Language| {
                let served =
                    |engine: &&Arc<dyn Engine>| !engine.is_general() && engine.serves(Pair { from, to });
                is_wanted
                    && (self.models.serving(Pair { from, to }).is_some()
                        || self.engines.iter().any(|engine| served(&engine)))
            };
            list::Language {
                code: from.code.to_owned(),
                name: from.name.to_owned(),
                scripts: from.scripts.iter().map(|script| (*script).to_owned()).collect(),
                targets: languages::all().filter(into).map(|to| to.code.to_owned()).collect(),
            }
        };
        let languages = languages::all().map(language).collect();
        let chat = self.engines.iter().any(|engine| engine.is_general());
        let chat_models = self.engines.iter().flat_map(|engine| engine.chat_models().to_vec()).collect();
        request.push_json(&list::Chunk { languages, chat, chat_models, ..list::Chunk::default() })?;
        Ok(Done::new())
    }

    /// Its engines.
    pub fn names(&self) -> Value {
        self.engines.iter().map(|engine| engine.name()).collect()
    }
}

/// What chat models that could do nothing are told of. A text that comes back as it was must not pass for its translation.
fn nothing_done(pair: Pair, failures: &str) -> Error {
    let message = format!(
        "nothing of the text was translated from {} (`{}`) into {} (`{}`): {failures}; name chat models that know both languages, in \
         the order in which they are to be asked, as `chat_model` in [plugins.settings.\"dev.backplane.translation\"]",
        pair.from.name, pair.from.code, pair.to.name, pair.to.code
    );
    of_pair(Error::new(Code::FailedPrecondition, message).with_reason(UNTRANSLATED).with_param("text"), pair)
}

/// With the pair by its codes, of which the source may have been detected.
fn of_pair(error: Error, pair: Pair) -> Error {
    error.with_detail("source", pair.from.code).with_detail("target", pair.to.code)
}

/// Has another model translate a text.
fn ask(model: &str, pair: Pair, text: &str, params: &Params, request: &Request) -> Result<Translation> {
    let asked = Params {
        text: vec![text.to_owned()],
        source: pair.from.code.to_owned(),
        target: pair.to.code.to_owned(),
        ..params.clone()
    };
    let answer = request.call(payload::CAPABILITY).model(model).params(&asked)?.wait()?;
    let translations = answer.chunks::<Answer>()?.into_iter().flat_map(|chunk| chunk.translations).next();
    let mut translation =
        translations.ok_or_else(|| Error::internal(format!("the model `{model}` gave no translation")))?;
    // An alias or a route has the name of the model that it led to.
    let model = if answer.model.is_empty() { model.to_owned() } else { answer.model };
    translation.models.insert(0, model);
    Ok(translation)
}

/// What is wrong with a request before any work; else the language it wants.
fn check(params: &Params) -> Result<&'static Language> {
    refuse_unknown::<Params>(&params.extra)?;
    if params.text.is_empty() {
        return Err(Error::invalid("`text` is empty; at least one text is needed").with_param("text"));
    }
    if TEXTS < params.text.len() {
        let message = format!("`text` has {} texts, and at most {TEXTS} are taken", params.text.len());
        return Err(Error::new(Code::OutOfRange, message).with_param("text"));
    }
    if params.alternatives.is_some_and(|wanted| ALTERNATIVES < wanted) {
        let message = format!("`alternatives` is more than {ALTERNATIVES}");
        return Err(Error::new(Code::OutOfRange, message).with_param("alternatives"));
    }
    if params.target.is_empty() {
        return Err(Error::invalid("`target` is missing: the language to translate into, such as `es`")
            .with_param("target"));
    }
    language(&params.target, "target")
}

fn language(code: &str, param: &str) -> Result<&'static Language> {
    languages::find(code).ok_or_else(|| {
        Error::invalid(languages::unknown(code)).with_reason("language_not_supported").with_param(param)
    })
}

/// The language of each text, and how sure it is where it was detected.
fn sources(
    params: &Params,
    target: &'static Language,
    request: &Request,
) -> Result<Vec<(&'static Language, Option<f64>)>> {
    if !matches!(&*params.source, "" | "auto") {
        let source = language(&params.source, "source")?;
        // Its script shows in the text; it counts where that alone is to become another.
        let source =
            if source.in_any_script() == target.in_any_script() { source } else { source.in_any_script() };
        return Ok(params.text.iter().map(|_| (source, None)).collect());
    }
    let mut found = detected(&params.text, request)?;
    if 1 < params.text.len() && params.text.iter().any(|text| is_short(text)) {
        // Short texts say little of their language each, and as much as a long one together.
        let together = detected(&[params.text.join("\n")], request)?.pop().unwrap_or_default();
        let sure = |languages: &[detect_payload::Candidate]| {
            languages.first().map_or(0.0, |likeliest| likeliest.confidence)
        };
        for (text, own) in params.text.iter().zip(&mut found) {
            if is_short(text) && !own.is_empty() && sure(own) < sure(&together) {
                own.clone_from(&together);
            }
        }
    }
    let source = |(text, languages): (&String, Vec<detect_payload::Candidate>)| {
        let known =
            languages.iter().find_map(|found| Some((languages::find(&found.language)?, found.confidence)));
        match known {
            Some((language, confidence)) => Ok((language, Some(confidence))),
            // Nothing to tell by is nothing to translate.
            None if !text.chars().any(char::is_alphabetic) => Ok((target, Some(0.0))),
            None => Err(Error::invalid("the language of the text could not be told; name it in `source`")
                .with_reason("language_not_detected")
                .with_param("source")),
        }
    };
    params.text.iter().zip(found).map(source).collect()
}

/// Asks whatever tells languages here; the plugin's own detector where the host has none.
fn detected(texts: &[String], request: &Request) -> Result<Vec<Vec<detect_payload::Candidate>>> {
    let asked = json!({"text": texts, "top": 3});
    let answer = request
        .call(detect_payload::CAPABILITY)
        .params(&asked)?
        .wait()
        .and_then(|answer| answer.chunks::<detect_payload::Chunk>());
    match answer {
        Ok(chunks) => {
            let results: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.results).collect();
            if results.len() == texts.len() {
                return Ok(results.into_iter().map(|result| result.languages).collect());
            }
        }
        Err(error) if matches!(error.code, Code::Cancelled | Code::DeadlineExceeded) => return Err(error),
        Err(_) => {}
    }
    Ok(texts.iter().map(|text| Detector::Whatlang.detect(text, 3)).collect())
}

/// Whether a text of several is judged with the others: as long as LibreTranslate thinks it too short to tell by itself.
fn is_short(text: &str) -> bool {
    text.chars().nth(40).is_none()
}
