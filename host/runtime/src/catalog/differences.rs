//! What a new listing of models changes. Pure.

use super::entry::Listed;
use crate::info::ChangedModel;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The models that are new, gone, or described in another way, by name.
pub fn differences(before: &[Arc<Listed>], now: &[Listed]) -> Vec<ChangedModel> {
    let facts = |listed: &Listed| (listed.name.clone(), facts(listed));
    let before: BTreeMap<_, _> = before.iter().map(|listed| facts(listed)).collect();
    let now: BTreeMap<_, _> = now.iter().map(facts).collect();
    let names: BTreeSet<_> = before.keys().chain(now.keys()).cloned().collect();
    let changed = |model: Arc<str>| {
        let changed = match (before.get(&model), now.get(&model)) {
            (None, _) => vec!["added".to_owned()],
            (_, None) => vec!["removed".to_owned()],
            (Some(before), Some(now)) => {
                let members: BTreeSet<_> = before.keys().chain(now.keys()).collect();
                members.into_iter().filter(|name| before.get(*name) != now.get(*name)).cloned().collect()
            }
        };
        (!changed.is_empty()).then_some(ChangedModel { model, changed })
    };
    names.into_iter().filter_map(changed).collect()
}

/// What a card says, member by member.
fn facts(listed: &Listed) -> BTreeMap<String, Value> {
    let opened: Map<String, Value> = serde_json::from_str(&listed.model_json).unwrap_or_default();
    let card = listed.card.as_object().cloned().unwrap_or_default();
    let mut facts: BTreeMap<String, Value> = card.into_iter().chain(opened).collect();
    // A file may be another without its name or size being.
    facts.insert("files".to_owned(), Value::String(listed.files.to_string()));
    if !listed.copies.is_empty() {
        facts.insert("copies".to_owned(), listed.copies.clone().into());
    }
    let below = |section: &str, members: Value| match members {
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (format!("{section}.{name}"), value)).collect()
        }
        _ => Vec::new(),
    };
    let limits = serde_json::to_value(listed.limits).unwrap_or_default();
    let parameters = facts.remove("parameters").unwrap_or_default();
    facts.extend(below("limits", limits).into_iter().chain(below("parameters", parameters)));
    facts
}
