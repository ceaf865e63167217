//! Requests that work, from a file or from what the plugin says of itself.

use crate::args::Check as Arguments;
use crate::exit::{Failure, Result};
use backplane_registry::Capability;
use backplane_registry::plugin::Manifest;
use backplane_testkit::Case;
use serde_json::{Value, json, value::RawValue};

/// The cases of `--cases`, or one for each model inside the plugin and each of its capabilities.
pub fn of(arguments: &Arguments, manifest: &Manifest) -> Result<Vec<Case>> {
    let Some(path) = &arguments.cases else { return Ok(of_manifest(manifest)) };
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
    let wrong = |what: String| {
        Failure::failed(format!("{}: {what}", path.display()))
            .next("what such a file looks like: `backplane plugin check --help`")
    };
    let list: Vec<Box<RawValue>> =
        serde_json::from_str(&text).map_err(|error| wrong(format!("not a list of cases: {error}")))?;
    let cases = list.iter().enumerate().map(|(at, case)| {
        Case::from_json(case.get()).map_err(|error| wrong(format!("case {}: {error}", at + 1)))
    });
    cases.collect()
}

fn of_manifest(manifest: &Manifest) -> Vec<Case> {
    let mut cases = Vec::new();
    for model in &manifest.models {
        let serves = if model.capabilities.is_empty() { &manifest.capabilities } else { &model.capabilities };
        for offer in serves {
            // The schema stands where the plugin lists its capabilities.
            let told = manifest.capabilities.iter().find(|told| told.name == offer.name).unwrap_or(offer);
            let card = json!({
                "name": model.name.to_string(),
                "format": "",
                "capabilities": serves.iter().map(|offer| &offer.name).collect::<Vec<_>>(),
                "files": [],
                "parameters": model.parameters,
            });
            let name = match serves.len() {
                1 => model.name.to_string(),
                _ => format!("{} {}", model.name, offer.name),
            };
            cases.push(Case::new(card.to_string(), &offer.name, example(told).to_string()).named(&name));
        }
    }
    cases
}

/// Parameters that work: the schema's first example, one of ours where the payload is ours, else none.
fn example(capability: &Capability) -> Value {
    let schema = capability.input_schema.as_ref();
    let told = schema.and_then(|schema| schema["examples"].get(0)).filter(|example| example.is_object());
    told.cloned().unwrap_or_else(|| match capability.name.as_str() {
        "chat" => json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 8 }),
        "complete" => json!({ "prompt": "hello", "max_tokens": 8 }),
        "embed" => json!({ "input": ["hello"] }),
        _ => json!({}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_is_asked_for_what_it_serves() {
        let manifest = "id = 'a.b'\nversion = '1'\nabi = '1.0'\ncapabilities = ['embed', { name = 'x.y', input_schema = \
                        { examples = [{ text = 'hi' }] } }]\nmodels = [{ name = 'm' }, { name = 'n', capabilities = ['x.y'] }]";
        let cases = of_manifest(&Manifest::parse(manifest).unwrap());
        let names: Vec<_> = cases.iter().map(Case::name).collect();
        assert_eq!(names, ["m embed", "m x.y", "n"]);
        assert!(format!("{:?}", cases[2]).contains("hi"), "{cases:?}");
    }
}
