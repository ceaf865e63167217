//! The JSON Schemas in `docs/capabilities/` say what the payload types say.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use backplane_abi::payload::schemas::{STANDARD, SchemaOf, document, part};
use backplane_abi::payload::tensor::Description;
use serde_json::Value;

#[test]
fn the_published_schemas_are_those_of_the_types() {
    let check = |file: &str, document: &Value| {
        let text = serde_json::to_string_pretty(document).unwrap() + "\n";
        support::golden(&format!("../../docs/capabilities/{file}.schema.json"), &text, "schemas");
    };
    for standard in &STANDARD {
        check(&format!("{}.{}", standard.name, standard.version), &standard.document());
    }
    let description: SchemaOf = part::<Description>;
    let about = "What an opened model says of itself: bp_model.describe_json.";
    check("describe", &document("describe", about, [("description", description)]));
}

#[test]
fn a_part_stands_alone() {
    for standard in &STANDARD {
        for schema in [Some(standard.input_schema()), standard.output_schema()].into_iter().flatten() {
            let says = schema["type"] == "object" || schema["oneOf"].is_array();
            assert!(says && schema["description"].is_string(), "{}: {schema}", standard.name);
            assert!(schema.get("title").is_none(), "{}: {schema}", standard.name);
        }
    }
}
