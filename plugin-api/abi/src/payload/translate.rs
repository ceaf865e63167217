//! `translate/1`: texts in one language in, the same in another out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "translate";

/// Parameters of a translation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// What is to be translated. At least one.
    pub text: Vec<String>,
    /// The language it is in: `en`, or `auto` (as when absent) to have it detected, for each text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The language it is to be in.
    pub target: String,
    /// What it is written in.
    pub format: Format,
    /// How many other translations are wanted beside the best. An engine may know none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternatives: Option<u32>,
    /// How terms are to be translated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub glossary: Vec<Term>,
    /// Terms that stay as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a text is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines.
    #[default]
    Text,
    /// Markdown, as GitHub shows it.
    Markdown,
    /// HTML, a page or a part of one.
    Html,
    /// Subtitles: SubRip's or WebVTT's.
    Subtitles,
}

/// A term of a glossary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Term {
    /// In the source, whatever its case.
    pub source: String,
    /// In the translation.
    pub target: String,
}

/// A piece of the result: a chunk for each text, or one for several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// In the order of the texts.
    pub translations: Vec<Translation>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A translated text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Translation {
    /// In the language that was asked for.
    pub text: String,
    /// The language it was in.
    pub source: String,
    /// The language it is in now, where that is not the code that was asked for: `pt` for `pt-BR`, as regions are not told apart.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Present where the language was detected: how sure that is, 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detected: Option<f64>,
    /// Other translations, better ones first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<String>,
    /// What translated it.
    pub engine: String,
    /// The models of this host whose words it has, where the engine is not the model itself: the chat models that were asked, or
    /// the model that has the pair of languages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// How sure the translation is, 0..=1.
    pub confidence: f64,
    /// Sentences of it that were translated piece by piece, since an engine did harm to what is kept in them.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub pieced: u64,
    /// Pieces of it that are still in the source's language.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub untranslated: u64,
}
