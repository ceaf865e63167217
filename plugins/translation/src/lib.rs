//! Translation: `translate` for text, Markdown and HTML, and `language.detect`.
//!
//! - [`protect`]: a document is taken apart, and put together again with everything but its words as it was.
//! - [`engine`]: what translates sentences: a sequence-to-sequence model, Apertium, a chat model. A pair of languages goes to
//!   the first that serves it.
//! - [`detect`]: which language a text is in.
//! - [`languages`]: codes, names, scripts.
//! - [`translate`]: one request.

pub mod detect;
pub mod engine;
pub mod languages;
pub mod protect;
mod translate;

use backplane_plugin::ModelFile;
use backplane_plugin::payload::{
    detect as detect_payload, languages as list_payload, translate as translate_payload,
};
use backplane_plugin::prelude::*;
use detect::Detector;
use detect::fasttext::FastText;
use engine::Engine;
use engine::apertium::Apertium;
use engine::chat::Chat;
use engine::seq2seq::{self, Seq2Seq};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use translate::{Models, Translator};

/// The library.
struct TranslationPlugin {
    apertium: Arc<Apertium>,
    /// By the pairs of languages that the configuration gives them.
    models: Models,
    settings: Settings,
}

/// `[plugins.settings."dev.backplane.translation"]`.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    apertium_modes: Option<PathBuf>,
    chat_model: Option<ChatModels>,
    /// Models that translate a pair of languages: `{ "en-de" = "opus-mt-en-de" }`.
    pairs: BTreeMap<String, String>,
}

/// `[parameters]` of a card that translates. A misspelt one is an error that names it.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Parameters {
    /// The engines it may use, the preferred one first.
    engines: Vec<EngineName>,
    /// The chat models, instead of the configuration's.
    chat_model: Option<ChatModels>,
}

/// One, or several in the order in which they are asked.
#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "`chat_model` is the name of a chat model, or a list of names")]
enum ChatModels {
    One(String),
    Several(Vec<String>),
}

impl ChatModels {
    /// Their names, each once; none if they are named as nothing.
    fn names(&self) -> Vec<String> {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        };
        let mut once: Vec<String> = Vec::new();
        for name in names {
            if !name.is_empty() && !once.contains(name) {
                once.push(name.clone());
            }
        }
        once
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self { engines: vec![EngineName::Apertium, EngineName::Chat], chat_model: None }
    }
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum EngineName {
    Apertium,
    Chat,
}

/// The format of a language model for detection.
const FASTTEXT: &str = "fasttext";

impl Plugin for TranslationPlugin {
    const ID: &'static str = "dev.backplane.translation";

    fn init(host: Host, config: &Value) -> Result<Self> {
        let settings: Settings = backplane_plugin::settings(Self::ID, config)?;
        let models = Models::of(&settings.pairs)
            .map_err(|why| Error::invalid(format!("[plugins.settings.\"{}\"]: `pairs`: {why}", Self::ID)))?;
        let apertium = Apertium::find(settings.apertium_modes.as_deref());
        let pairs: Vec<String> =
            apertium.pairs().map(|pair| format!("{}-{}", pair.from.code, pair.to.code)).collect();
        host.log(
            Level::Info,
            match pairs.is_empty() {
                true => {
                    "no pair of Apertium is installed: install one, such as the package `apertium-eng-spa`"
                        .to_owned()
                }
                false => format!("Apertium serves {}", pairs.join(", ")),
            },
        );
        Ok(Self { apertium: Arc::new(apertium), models, settings })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        let model = query.model().unwrap_or_default();
        if !matches!(&*model.format, "" | FASTTEXT | seq2seq::FORMAT) {
            let formats = format!("`{FASTTEXT}` and `{}`", seq2seq::FORMAT);
            return Bid::no(BidReason::Format, format!("only the formats {formats} can be opened"));
        }
        if model.format == seq2seq::FORMAT {
            return Seq2Seq::bid(&model);
        }
        let size: u64 = model.files.iter().map(|file: &ModelFile| file.size).sum();
        let engines = model.parameters::<Parameters>().map(|card| card.engines).unwrap_or_default();
        // The programs of one pipeline, measured for English-Spanish.
        let apertium = engines.contains(&EngineName::Apertium) && self.apertium.pairs().next().is_some();
        let host_bytes = if apertium { 120 << 20 } else { 0 };
        match (&*model.format, &*engines) {
            // The file knows more languages, and knows them better.
            (FASTTEXT, _) => Bid { score: 700, quality: 900, host_bytes: 16 * size, ..Bid::default() },
            // One engine alone is for who asks for it by name.
            (_, [_]) => Bid { score: 300, quality: 500, host_bytes, ..Bid::default() },
            _ => Bid { score: 600, quality: 600, host_bytes, ..Bid::default() },
        }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let serves = |capability: &str| model.capabilities.iter().any(|own| own == capability);
        let detector = if model.format == FASTTEXT {
            let path = model.file("model")?;
            let bytes = std::fs::read(path).map_err(|error| {
                Error::model_invalid(format!("the file of model `{}` cannot be read: {error}", model.name))
            })?;
            Some(Detector::FastText(Arc::new(FastText::read(&bytes)?)))
        } else {
            serves(detect_payload::CAPABILITY).then_some(Detector::Whatlang)
        };
        let translator = if model.format == seq2seq::FORMAT {
            Some(Translator { engines: vec![Arc::new(Seq2Seq::open(model)?)], models: Models::default() })
        } else if serves(translate_payload::CAPABILITY) && model.format != FASTTEXT {
            let card: Parameters = model.parameters()?;
            let chat_models =
                card.chat_model.or_else(|| self.settings.chat_model.clone()).map(|own| own.names());
            let engine = |name: &EngineName| -> Option<Arc<dyn Engine>> {
                match (name, &chat_models) {
                    (EngineName::Apertium, _) => Some(self.apertium.clone()),
                    // Named as nothing: none.
                    (EngineName::Chat, Some(models)) if models.is_empty() => None,
                    (EngineName::Chat, models) => {
                        Some(Arc::new(Chat { models: models.clone().unwrap_or_default() }))
                    }
                }
            };
            let engines = card.engines.iter().filter_map(engine).collect();
            // A model for one engine is for who wants that engine.
            let models = if card.engines.len() == 1 { Models::default() } else { self.models.clone() };
            Some(Translator { engines, models })
        } else {
            None
        };
        Ok(Box::new(Opened(Arc::new(Inner { detector, translator, counters: Counters::default() }))))
    }
}

struct Opened(Arc<Inner>);

struct Inner {
    detector: Option<Detector>,
    translator: Option<Translator>,
    counters: Counters,
}

/// What it has done.
#[derive(Default)]
pub(crate) struct Counters {
    sentences: AtomicU64,
    pieced: AtomicU64,
    untranslated: AtomicU64,
}

impl Model for Opened {
    fn execution(&self) -> Execution {
        // A request keeps a pipeline of Apertium, or waits for a chat model, for as long as it runs.
        Execution::Concurrent { max_inflight: 4, max_batch: 1 }
    }

    fn describe(&self) -> Description {
        let mut description =
            Description { platform: Some("translation".to_owned()), ..Description::default() };
        if let Some(Detector::FastText(model)) = &self.0.detector {
            description.extra.insert("languages".to_owned(), model.languages().into());
            description.extra.insert("bytes".to_owned(), model.bytes().into());
        }
        if let Some(translator) = &self.0.translator {
            description.extra.insert("engines".to_owned(), translator.names());
        }
        description
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        let inner = self.0.clone();
        Ok(each(move |request| match (request.capability(), &inner.detector, &inner.translator) {
            (detect_payload::CAPABILITY, Some(detector), _) => detector.serve(request),
            (translate_payload::CAPABILITY, _, Some(translator)) => {
                translator.serve(request, &inner.counters)
            }
            (list_payload::CAPABILITY, _, Some(translator)) => translator.list(request),
            (other, ..) => Err(Error::invalid(format!("this model does not serve `{other}`"))),
        }))
    }

    fn stats(&self, each: &mut dyn FnMut(&str, f64)) {
        let counters = &self.0.counters;
        let mut counter = |name, counter: &AtomicU64| each(name, counter.load(Ordering::Relaxed) as f64);
        counter("sentences_total", &counters.sentences);
        counter("sentences_pieced_total", &counters.pieced);
        counter("pieces_untranslated_total", &counters.untranslated);
    }
}

/// Words of a text. They are what usage counts as tokens: no two engines have tokens that they would count alike.
pub(crate) fn words(text: &str) -> u64 {
    let unspaced = text.chars().filter(|c| protect::spans::is_unspaced(*c)).count() / 2;
    (text.split_whitespace().count() + unspaced) as u64
}

export_plugin!(TranslationPlugin, include_str!("../plugin.toml"));
