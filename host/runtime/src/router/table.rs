//! What a name means and who serves a capability. Pure: built from the listing and the configuration, then only read.

use crate::catalog::missing;
use crate::error::{Error, ErrorCode};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Names that the configuration gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Another name for a model or route. `"*"` stands for every name that means nothing else.
    pub aliases: BTreeMap<String, String>,
    /// Models to be tried in turn.
    pub routes: BTreeMap<String, Cascade>,
}

/// Models to be tried in turn, cheapest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Cascade {
    /// In the order of trying.
    pub models: Vec<String>,
    /// An answer with less confidence than this is tried again with the next model.
    pub escalate_below: f64,
}

/// The table that requests read.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    models: HashMap<Arc<str>, Vec<String>>,
    by_capability: HashMap<String, Vec<Arc<str>>>,
    names: Names,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq)]
pub enum Target<'a> {
    /// One model.
    Model(Arc<str>),
    /// A cascade, by the name of its route.
    Route(&'a str, &'a Cascade),
}

/// Aliases may point to aliases, no deeper than this.
const MAX_ALIASES: usize = 8;

impl RouteTable {
    /// A table of these models, each with its capabilities.
    pub fn new(models: impl IntoIterator<Item = (Arc<str>, Vec<String>)>, names: Names) -> Self {
        let mut table = Self { names, ..Self::default() };
        for (name, capabilities) in models {
            for capability in &capabilities {
                table.by_capability.entry(capability.clone()).or_default().push(name.clone());
            }
            table.models.insert(name, capabilities);
        }
        table.by_capability.values_mut().for_each(|models| models.sort());
        table
    }

    /// What `asked` means: a model, else an alias, else a route, else what `"*"` stands for.
    pub fn resolve(&self, asked: &str) -> Option<Target<'_>> {
        self.named(asked).or_else(|| self.follow(self.names.aliases.get("*")?, MAX_ALIASES))
    }

    fn follow(&self, name: &str, depth: usize) -> Option<Target<'_>> {
        if let Some((model, _)) = self.models.get_key_value(name) {
            return Some(Target::Model(model.clone()));
        }
        if let Some(target) = self.names.aliases.get(name)
            && depth > 0
        {
            return self.follow(target, depth - 1);
        }
        self.names.routes.get_key_value(name).map(|(name, cascade)| Target::Route(name, cascade))
    }

    /// What `asked` means, but for what `"*"` stands for.
    pub fn named(&self, asked: &str) -> Option<Target<'_>> {
        self.follow(asked, MAX_ALIASES)
    }

    /// What to say of a name that means nothing, with names that are close.
    pub fn not_found(&self, asked: &str) -> Error {
        if let Some(target) = self.names.aliases.get(asked) {
            let message = format!(
                "`{asked}` is another name for `{target}`, which is neither a model nor a route here"
            );
            return Error::new(ErrorCode::NotFound, message)
                .with_reason("model_not_found")
                .with_param("model");
        }
        let aliases = self.names.aliases.keys().filter(|name| *name != "*");
        let others = aliases.chain(self.names.routes.keys()).map(|name| Arc::from(name.as_str()));
        missing::model(asked, self.models.keys().cloned().chain(others))
    }

    /// What a model serves.
    pub fn capabilities(&self, model: &str) -> &[String] {
        self.models.get(model).map_or(&[], Vec::as_slice)
    }

    /// The models that serve a capability, by name.
    pub fn serving(&self, capability: &str) -> &[Arc<str>] {
        self.by_capability.get(capability).map_or(&[], Vec::as_slice)
    }

    /// Every capability that a model serves, by name.
    pub fn all_capabilities(&self) -> Vec<(String, Vec<Arc<str>>)> {
        let mut all: Vec<_> =
            self.by_capability.iter().map(|(name, models)| (name.clone(), models.clone())).collect();
        all.sort();
        all
    }

    /// Names that mean this model, without `"*"`.
    pub fn aliases_of(&self, model: &str) -> Vec<String> {
        self.names
            .aliases
            .iter()
            .filter(|(name, _)| *name != "*")
            .filter(|(name, _)| matches!(self.named(name), Some(Target::Model(meant)) if *meant == *model))
            .filter(|(name, _)| name.as_str() != model)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What the configuration calls things.
    #[cfg(test)]
    pub fn names(&self) -> &Names {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RouteTable {
        let models = [("small", vec!["chat", "embed"]), ("large", vec!["chat"])]
            .map(|(name, list)| (name.into(), list.into_iter().map(str::to_owned).collect()));
        let aliases =
            [("gpt", "small"), ("best", "gpt"), ("loop", "loop"), ("small", "large"), ("*", "steps")];
        RouteTable::new(
            models,
            Names {
                aliases: aliases.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
                routes: [(
                    "steps".to_owned(),
                    Cascade { models: vec!["small".into(), "large".into()], escalate_below: 0.5 },
                )]
                .into(),
            },
        )
    }

    #[test]
    fn a_model_goes_before_an_alias_and_the_star_comes_last() {
        let table = table();
        assert_eq!(
            table.resolve("small"),
            Some(Target::Model("small".into())),
            "an alias cannot hide a model"
        );
        assert_eq!(table.resolve("best"), Some(Target::Model("small".into())));
        for star in ["steps", "anything", "loop"] {
            assert!(matches!(table.resolve(star), Some(Target::Route("steps", _))), "{star}");
        }
        assert_eq!(RouteTable::default().resolve("x"), None);
    }

    #[test]
    fn capabilities_are_found_both_ways() {
        let table = table();
        assert_eq!(table.serving("chat"), ["large".into(), "small".into()]);
        assert_eq!(table.serving("nothing"), []);
        assert_eq!(table.capabilities("large"), ["chat"]);
        assert_eq!(table.aliases_of("small"), ["best", "gpt"], "also by way of another");
        assert!(table.aliases_of("large").is_empty(), "an alias that a model hides means that model");
        let said = table.not_found("stebs").message;
        assert!(said.contains("`steps`"), "routes and aliases are names too: {said}");
    }
}
