//! A capability that plugins offer now, as the document tells of it: its route, and the schemas of its payload where a
//! manifest has them.

use super::{header_references, security};
use crate::caller::Scope;
use backplane::{CapabilityInfo, CapabilitySchema};
use serde_json::{Map, Value, json};

/// `POST /v1/capabilities/{name}`
pub(super) fn operation(capability: &CapabilityInfo) -> Value {
    let name = &capability.name;
    let versions: Vec<String> =
        capability.versions.iter().map(|version| format!("{name}/{version}")).collect();
    let models: Vec<&str> = capability.models.iter().map(|model| &**model).collect();
    let mut sentences: Vec<String> = capability
        .schemas
        .iter()
        .filter_map(|said| Some(format!("{}.", said.description.as_ref()?.trim_end_matches('.'))))
        .collect();
    sentences.dedup();
    sentences.push(format!(
        "`params` as {} has it. Models: {}. Plugins: {}.",
        versions.join(" or "),
        models.join(", "),
        capability.plugins.join(", "),
    ));
    let output = either(capability, Part::Output);
    let pieces = output.as_ref().map(|schema| json!({ "type": "array", "items": schema }));
    let takes = narrowed("CapabilityRequest", [("params", either(capability, Part::Input))]);
    let gives = narrowed("CapabilityAnswer", [("result", output.clone()), ("chunks", pieces)]);
    let streams = narrowed("CapabilityPiece", [("chunk", output)]);
    json!({
        "operationId": format!("post_v1_capabilities_{}", name.replace(['.', '-'], "_")),
        "tags": ["Capabilities"],
        "summary": format!("Ask `{name}`"),
        "description": sentences.join(" "),
        "parameters": header_references().collect::<Vec<_>>(),
        "requestBody": { "required": true, "content": {
            "application/json": { "schema": takes },
            "application/octet-stream": { "schema": { "type": "string", "format": "binary" } },
        } },
        "responses": {
            "200": { "description": "Good.", "content": {
                "application/json": { "schema": gives },
                "text/event-stream": { "schema": streams },
            } },
            "default": { "$ref": "#/components/responses/OpenAiError" },
        },
        "security": security(Scope::User),
        "x-role": "user",
    })
}

/// The schemas of its payload, by their name in the document.
pub(super) fn schemas(capability: &CapabilityInfo) -> Vec<(String, Value)> {
    let parts = capability.schemas.iter().flat_map(|said| [(said, Part::Input), (said, Part::Output)]);
    let named = parts.filter_map(|(said, part)| {
        let name = part.name(capability, said);
        Some((name.clone(), rooted(part.of(said)?, &format!("#/components/schemas/{name}"))))
    });
    named.collect()
}

#[derive(Clone, Copy)]
enum Part {
    Input,
    Output,
}

impl Part {
    fn of(self, said: &CapabilitySchema) -> Option<&Value> {
        match self {
            Part::Input => said.input_schema.as_ref(),
            Part::Output => said.output_schema.as_ref(),
        }
    }

    /// Of a manifest's with the plugin's id: two plugins may serve one capability, and each take something of its own besides.
    fn name(self, capability: &CapabilityInfo, said: &CapabilitySchema) -> String {
        let part = match self {
            Part::Input => "input",
            Part::Output => "output",
        };
        let common = format!("{}.{}.{part}", capability.name, said.version);
        said.plugin.as_ref().map_or(common.clone(), |plugin| format!("{common}.{plugin}"))
    }
}

/// A reference to the schema of this part, to either of several, or nothing where no manifest has one.
fn either(capability: &CapabilityInfo, part: Part) -> Option<Value> {
    let said = capability.schemas.iter().filter(|said| part.of(said).is_some());
    let mut all: Vec<Value> = said
        .map(|said| json!({ "$ref": format!("#/components/schemas/{}", part.name(capability, said)) }))
        .collect();
    if all.len() < 2 { all.pop() } else { Some(json!({ "anyOf": all })) }
}

/// What every capability has, with what is known of some members.
fn narrowed<const N: usize>(common: &str, known: [(&str, Option<Value>); N]) -> Value {
    let common = json!({ "$ref": format!("#/components/schemas/{common}") });
    let members: Map<String, Value> =
        known.into_iter().filter_map(|(name, schema)| Some((name.to_owned(), schema?))).collect();
    if members.is_empty() { common } else { json!({ "allOf": [common, { "properties": members }] }) }
}

/// A schema whose references to itself start at `root`, where it now stands.
fn rooted(schema: &Value, root: &str) -> Value {
    match schema {
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| {
                let inner = value.as_str().filter(|_| name == "$ref").and_then(|at| at.strip_prefix('#'));
                let moved = inner.filter(|at| at.is_empty() || at.starts_with('/'));
                (name.clone(), moved.map_or_else(|| rooted(value, root), |at| json!(format!("{root}{at}"))))
            };
            Value::Object(members.iter().map(member).collect())
        }
        Value::Array(items) => items.iter().map(|item| rooted(item, root)).collect(),
        other => other.clone(),
    }
}
