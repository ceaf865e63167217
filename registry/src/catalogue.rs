//! The starter catalogue: models by short name, with pins, sizes and licences. It is part of the program.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::card::Card;
use crate::error::nearest;
use crate::name::ModelName;
use crate::strict;

const TEXT: &str = include_str!("catalogue.toml");

#[derive(Debug, Clone)]
pub struct Catalogue {
    cards: Vec<Card>,
    sets: Vec<Set>,
}

/// Models and runtimes that are pulled together, under a name of their own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    pub name: ModelName,
    pub description: String,
    /// Names of the catalogue, in the order of pulling.
    pub models: Vec<ModelName>,
}

impl Catalogue {
    /// What this program was built with.
    pub fn embedded() -> &'static Self {
        static EMBEDDED: LazyLock<Catalogue> =
            LazyLock::new(|| Catalogue::parse(TEXT).expect("the embedded catalogue is checked by a test"));
        &EMBEDDED
    }

    /// Reads a catalogue. A card that is fine but has no file for this machine is left in: pulling it says so.
    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            models: Vec<Card>,
            #[serde(default)]
            sets: Vec<Set>,
        }
        let file: File = strict::from_toml(text)?;
        Ok(Self { cards: file.models, sets: file.sets })
    }

    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    pub fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// The set of this name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        let name: ModelName = name.parse().ok()?;
        self.sets.iter().find(|set| set.name == name)
    }

    /// The cards of a set.
    pub fn cards_of<'a>(&'a self, set: &'a Set) -> impl Iterator<Item = &'a Card> {
        set.models.iter().filter_map(|name| self.find(name))
    }

    /// The card that has this name or alias.
    pub fn find(&self, name: &ModelName) -> Option<&Card> {
        let by_name = self.cards.iter().find(|card| card.name == *name);
        by_name.or_else(|| self.cards.iter().find(|card| card.aliases.contains(name)))
    }

    /// Cards whose name, description, format or capabilities contain every word of `query`.
    pub fn search(&self, query: &str) -> Vec<&Card> {
        let words: Vec<String> = query.split_whitespace().map(str::to_lowercase).collect();
        let text = |card: &Card| {
            let mut text =
                format!("{} {} {}", card.name, card.format, card.description.as_deref().unwrap_or_default());
            card.aliases.iter().for_each(|alias| text.push_str(&format!(" {alias}")));
            card.capabilities.iter().for_each(|capability| text.push_str(&format!(" {}", capability.name)));
            text.to_lowercase()
        };
        self.cards.iter().filter(|card| words.iter().all(|word| text(card).contains(word.as_str()))).collect()
    }

    /// Names of models near to one that is not there.
    pub fn close_to(&self, name: &str) -> Vec<String> {
        let names: Vec<String> = self.cards.iter().map(|card| card.name.to_string()).collect();
        nearest(name, names.iter().map(String::as_str))
    }

    /// The same among all that can be pulled: models and sets.
    pub(crate) fn pullable_close_to(&self, name: &str) -> Vec<String> {
        let cards = self.cards.iter().map(|card| card.name.to_string());
        let names: Vec<String> = cards.chain(self.sets.iter().map(|set| set.name.to_string())).collect();
        nearest(name, names.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_entry_is_pinned_sized_licensed_and_reachable() {
        let mut names = BTreeSet::new();
        for card in Catalogue::embedded().cards() {
            for name in card.aliases.iter().chain([&card.name]) {
                assert!(names.insert(name.to_string()), "{name} twice");
            }
            assert!(card.licence.is_some() && card.description.is_some(), "{}", card.name);
            Card::parse(&card.to_toml().unwrap(), "the catalogue").unwrap();
            for file in &card.files {
                assert!(file.sha256.is_some() && file.size.is_some(), "{} {}", card.name, file.role);
                assert!(file.sources().unwrap().iter().all(|source| source.is_remote()), "{}", card.name);
            }
        }
        for name in [
            "smollm2",
            "qwen2.5-coder:0.5b",
            "qwen2.5-coder:1.5b",
            "minilm",
            "magika",
            "lid.176",
            "onnxruntime",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn a_set_is_of_models_that_are_there_and_its_name_is_nobody_else_s() {
        let catalogue = Catalogue::embedded();
        assert!(catalogue.set("task-models").is_some() && catalogue.set("smollm2").is_none());
        let mut names = BTreeSet::new();
        for set in catalogue.sets() {
            assert!(names.insert(&set.name) && catalogue.find(&set.name).is_none(), "{} twice", set.name);
            assert!(!set.description.is_empty() && 1 < set.models.len(), "{}", set.name);
            let models: BTreeSet<_> = catalogue.cards_of(set).map(|card| &card.name).collect();
            assert_eq!(models, set.models.iter().collect(), "{}: each by its own name, once", set.name);
        }
        assert_eq!(catalogue.pullable_close_to("task-model"), ["task-models"]);
    }

    /// Its authors' numbers: what the card says reaches the plugin, for requests that say nothing.
    #[test]
    fn the_smallest_chat_model_is_sampled_as_its_authors_do() {
        let card = Catalogue::embedded().find(&"smollm2".parse().unwrap()).unwrap();
        assert_eq!(card.parameters["sampling"], serde_json::json!({"temperature": 0.2, "top_p": 0.9}));
    }

    #[test]
    fn finds_by_alias_word_and_likeness() {
        let catalogue = Catalogue::embedded();
        assert_eq!(
            catalogue.find(&"smollm2:135m-q4_1".parse().unwrap()).unwrap().name.to_string(),
            "smollm2"
        );
        assert!(catalogue.search("embed").iter().any(|card| card.name.to_string() == "minilm"));
        assert!(catalogue.search("no such thing").is_empty());
        assert_eq!(catalogue.close_to("smolm2"), ["smollm2"]);
        assert!(catalogue.close_to("qwen2.5").contains(&"qwen2.5-coder:0.5b".to_owned()));
    }
}
