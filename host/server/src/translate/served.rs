//! What can be translated into what, as LibreTranslate's clients are told before they ask.

use super::routes::chunks;
use super::words;
use crate::call::Call;
use crate::options::Options;
use backplane::payload::{languages, translate};
use backplane::{Caller, Error, ErrorCode, ModelInfo, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The engine that is asked for whatever pair no other serves.
pub(crate) const CHAT: &str = "chat";

/// What can be translated into what: by engines made for the pair, and by chat models as far as their cards say that they know
/// both.
pub(crate) struct Served {
    pub languages: Vec<languages::Language>,
    /// For each chat model that is asked, the languages that it knows.
    known: Vec<Vec<String>>,
    /// Who says so.
    pub plugin: Arc<str>,
}

impl Served {
    fn language(&self, code: &str) -> Option<&languages::Language> {
        self.languages.iter().find(|language| language.code.eq_ignore_ascii_case(code))
    }

    /// The language of a code in any of its forms: `EN_us`, `zh-TW`.
    pub fn named(&self, code: &str) -> Option<&languages::Language> {
        let code = code.trim();
        let mut tags = code.split(['-', '_']);
        let main = match &*tags.next().unwrap_or_default().to_ascii_lowercase() {
            // LibreTranslate's own.
            "zt" => return self.language("zh-Hant"),
            "pb" => "pt".to_owned(),
            main => main.to_owned(),
        };
        let tags: Vec<&str> = tags.collect();
        let is_script = |tag: &&str| tag.len() == 4 && tag.chars().all(|c| c.is_ascii_alphabetic());
        let is_traditional = |tag: &&str| ["tw", "hk", "mo"].iter().any(|own| tag.eq_ignore_ascii_case(own));
        let script = tags.iter().copied().find(is_script);
        let script = script.or_else(|| (main == "zh" && tags.iter().any(is_traditional)).then_some("Hant"));
        let language = self.language(&main);
        let is_usual =
            |script: &str| language?.scripts.first().map(|usual| usual.eq_ignore_ascii_case(script));
        self.language(code).or_else(|| match script {
            Some(script) if is_usual(script) != Some(true) => self.language(&format!("{main}-{script}")),
            _ => language,
        })
    }

    /// The languages of two codes. The script of the source counts where that alone is to become another.
    pub fn pair(&self, source: &str, target: &str) -> Option<(&languages::Language, &languages::Language)> {
        let main = |code: &str| self.language(code.split('-').next().unwrap_or_default());
        let (from, to) = (self.named(source)?, self.named(target)?);
        let (main_from, main_to) = (main(&from.code).unwrap_or(from), main(&to.code).unwrap_or(to));
        Some((if main_from.code == main_to.code { from } else { main_from }, to))
    }

    /// The languages of a pair that is not served. Codes that are none of the list's are the plugin's to judge.
    pub fn refused(
        &self,
        source: &str,
        target: &str,
    ) -> Option<(&languages::Language, &languages::Language)> {
        self.pair(source, target).filter(|(from, to)| {
            let know = |known: &Vec<String>| known.contains(&from.code) && known.contains(&to.code);
            from.code != to.code && !from.targets.contains(&to.code) && !self.known.iter().any(know)
        })
    }

    /// Whether the router may choose a model for a pair of which the list does not tell: another plugin's, or one with files of
    /// its own. Its card may say which languages it is for.
    pub fn others_may_serve(
        &self,
        call: &Call,
        from: &languages::Language,
        to: &languages::Language,
    ) -> bool {
        call.host().models().iter().any(|model| {
            let known = card_languages(model);
            model.problem.is_none()
                && model.capabilities.iter().any(|own| own == translate::CAPABILITY)
                && (*model.plugin != *self.plugin || !model.format.is_empty())
                && (known.is_empty() || known.contains(&from.code) && known.contains(&to.code))
        })
    }

    /// What a language can be translated into.
    pub fn targets<'a>(&'a self, from: &'a languages::Language) -> BTreeSet<&'a str> {
        let known = self.known.iter().filter(|known| known.contains(&from.code)).flatten();
        let known = known.filter(|code| self.languages.iter().any(|language| language.code == **code));
        let targets = from.targets.iter().chain(known).map(|code| &**code);
        targets.filter(|code| *code != from.code).collect()
    }
}

/// What is served from `source`, or from any language; `None` where nothing tells.
///
/// # Errors
/// When nobody waits any more.
pub(crate) async fn served(call: &Call, source: &str, options: &Options) -> Result<Option<Served>> {
    match list(call, source, options).await {
        Ok(served) => Ok(Some(served)),
        Err(error) if is_over(&error) => Err(words::failed(error)),
        Err(_) => Ok(None),
    }
}

/// The languages that a model's card says it knows.
fn card_languages(model: &ModelInfo) -> Vec<String> {
    let listed = model.card["languages"].as_array().into_iter().flatten();
    listed.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// For each chat model that is asked, the languages that its card says it knows: any of them where none is named.
fn known_to_chat(call: &Call, named: &[String]) -> Vec<Vec<String>> {
    let host = call.host();
    let is_chat =
        |model: &ModelInfo| model.problem.is_none() && model.capabilities.iter().any(|own| own == CHAT);
    let models = match named {
        [] => host.models().into_iter().filter(is_chat).collect(),
        names => names.iter().flat_map(|name| host.models_of(name)).collect::<Vec<_>>(),
    };
    models.iter().map(card_languages).collect()
}

/// As [`served`].
///
/// # Errors
/// When nothing tells.
pub(crate) async fn list(call: &Call, source: &str, options: &Options) -> Result<Served> {
    let params = languages::Params { source: source.to_owned(), ..languages::Params::default() };
    let options = Options { deadline: options.deadline, ..Options::default() };
    let mut request = call.request(languages::CAPABILITY, None, &params, Vec::new(), &options)?;
    request.caller = Caller::internal("languages");
    let answer = call.ask(request).await?;
    let list = chunks::<languages::Chunk>(&answer)?.into_iter().next().unwrap_or_default();
    let known = if list.chat { known_to_chat(call, &list.chat_models) } else { Vec::new() };
    Ok(Served { languages: list.languages, known, plugin: answer.route.plugin })
}

/// Whether nobody waits any more.
pub(crate) fn is_over(error: &Error) -> bool {
    matches!(error.code, ErrorCode::Cancelled | ErrorCode::DeadlineExceeded)
}
