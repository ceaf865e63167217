//! `/openapi.json`: made from the list of routes and the types of their bodies, so that it cannot say anything else
//! than what is served; and from what plugins offer at this moment.

mod capability;

use crate::app;
use crate::call::{self, Call};
use crate::caller::Scope;
use crate::error::{Dialect, OipBody, OpenAiBody};
use crate::route::Route;
use actix_web::HttpResponse;
use backplane::{CapabilityInfo, Result};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Headers that requests to models may carry: name, schema, meaning.
const HEADERS: &[(&str, &str, &str)] = &[
    ("x-request-id", "up to 128 of `A-Z a-z 0-9 _ -`", "Names the request in the answer and in the log."),
    ("x-request-timeout", "`30s`, or seconds", "When the answer is of no use any more."),
    ("x-keep-alive", "`5m`, `0`, `-1`", "How long the model stays open afterwards."),
    (
        "x-cache",
        "`refresh` or `bypass`",
        "As `cache-control: no-cache` and `no-store`, for clients that cannot set it.",
    ),
    ("x-confidence", "`true`", "Asks for `x-confidence` with the answer."),
    ("x-strict", "`true`", "Refuses what would otherwise be listed in `x-ignored-params`."),
];

/// `GET /openapi.json`
pub(crate) async fn serve(call: Call) -> Result<HttpResponse> {
    let host = call.host();
    call::json(&document(&app::routes(), &host.capabilities(), host.version()))
}

/// The document.
pub(crate) fn document(routes: &[Route], capabilities: &[CapabilityInfo], version: &str) -> Value {
    let settings = || {
        SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into())
    };
    let mut takes = settings().for_deserialize().into_generator();
    let mut gives = settings().for_serialize().into_generator();
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, &mut takes, &mut gives);
        let path = paths.entry(plain(route.path)).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    for capability in capabilities {
        paths.insert(
            format!("/v1/capabilities/{}", capability.name),
            json!({ "post": capability::operation(capability) }),
        );
    }
    let errors = json!({
        "OpenAiError": gives.subschema_for::<OpenAiBody<'_>>(),
        "OipError": gives.subschema_for::<OipBody<'_>>(),
    });
    let mut schemas = takes.take_definitions(true);
    schemas.extend(gives.take_definitions(true));
    schemas.extend(capabilities.iter().flat_map(capability::schemas));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Backplane",
            "version": version,
            "description": "AI backends as plugins, behind one server.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "OpenAiError": response("What was wrong, with what, and what would fix it.", &errors["OpenAiError"]),
                "OipError": response("What was wrong.", &errors["OipError"]),
            },
            "parameters": HEADERS.iter().map(|(name, values, meaning)| {
                let parameter = json!({
                    "name": name, "in": "header", "required": false,
                    "schema": { "type": "string" }, "description": format!("{meaning} {values}."),
                });
                ((*name).to_owned(), parameter)
            }).collect::<Map<_, _>>(),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer", "description": "An API key." } },
        },
    })
}

fn response(description: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

/// `/v1/models/{model:.+}` → `/v1/models/{model}`
fn plain(path: &str) -> String {
    path.replace(":.+}", "}")
}

fn operation(route: &Route, takes: &mut SchemaGenerator, gives: &mut SchemaGenerator) -> Value {
    let doc = &route.doc;
    let mut content = Map::new();
    let given = doc.gives.map(|schema| schema(gives).to_value());
    let any = match doc.media {
        "application/json" => json!({ "type": ["object", "array", "null"] }),
        _ => json!({ "type": "string" }),
    };
    content.insert(doc.media.to_owned(), json!({ "schema": given.unwrap_or(any) }));
    if let Some(schema) = doc.streams {
        content.insert("text/event-stream".to_owned(), json!({ "schema": schema(gives).to_value() }));
    }
    let mut operation = json!({
        "operationId": operation_id(route),
        "tags": [doc.tag],
        "summary": doc.summary,
        "responses": {
            "200": { "description": "Good.", "content": content },
            "default": { "$ref": match route.dialect {
                Dialect::OpenAi => "#/components/responses/OpenAiError",
                Dialect::Oip => "#/components/responses/OipError",
            } },
        },
        "security": security(route.scope),
        "x-role": match route.scope {
            Scope::Open => "anybody",
            Scope::User | Scope::InBody => "user",
            Scope::Admin => "admin",
            Scope::Metrics => "admin, or anybody on the same machine",
        },
    });
    let mut parameters: Vec<Value> = path_parameters(route.path);
    let mut content = Map::new();
    if let Some(schema) = doc.takes {
        content.insert("application/json".to_owned(), json!({ "schema": schema(takes).to_value() }));
    }
    if let Some(schema) = doc.form {
        content.insert("multipart/form-data".to_owned(), json!({ "schema": schema(takes).to_value() }));
    }
    if let Some(schema) = doc.pictures {
        parameters.extend(with_picture(&schema(takes).to_value(), &mut content));
    }
    if !content.is_empty() {
        operation["requestBody"] = body(route, content);
        if matches!(route.scope, Scope::User | Scope::InBody) {
            parameters.extend(header_references());
        }
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    operation
}

/// The bodies that have a picture as it is, beside these members; and the parameters of the query that are the other members.
fn with_picture(members: &Value, content: &mut Map<String, Value>) -> Vec<Value> {
    let file = json!({ "type": "string", "format": "binary" });
    let mut fields = members["properties"].as_object().cloned().unwrap_or_default();
    fields.retain(|name, _| name != "image" && name != "images");
    let parameter = |(name, schema): (&String, &Value)| {
        let mut parameter = json!({ "name": name, "in": "query", "required": false, "schema": schema });
        let said = parameter["schema"].as_object_mut().and_then(|schema| schema.shift_remove("description"));
        if let Some(said) = said {
            parameter["description"] = said;
        }
        parameter
    };
    let parameters = fields.iter().map(parameter).collect();
    let files = json!({ "type": "array", "items": file, "description": "Several files." });
    fields.extend([("image".to_owned(), file.clone()), ("images".to_owned(), files)]);
    let form = json!({ "type": "object", "properties": fields });
    content.insert("multipart/form-data".to_owned(), json!({ "schema": form }));
    for media in ["image/*", "application/octet-stream"] {
        content.insert(media.to_owned(), json!({ "schema": file }));
    }
    parameters
}

fn header_references() -> impl Iterator<Item = Value> {
    HEADERS.iter().map(|(name, ..)| json!({ "$ref": format!("#/components/parameters/{name}") }))
}

fn security(scope: Scope) -> Value {
    if scope == Scope::Open { json!([]) } else { json!([{ "key": [] }]) }
}

fn operation_id(route: &Route) -> String {
    let path = plain(route.path);
    let words = path.split(['/', '.', '{', '}']).filter(|word| !word.is_empty());
    let words: Vec<&str> = std::iter::once(route.method.as_str()).chain(words).collect();
    words.join("_").to_ascii_lowercase()
}

fn path_parameters(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.split(['}', ':']).next())
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect()
}

fn body(route: &Route, mut content: Map<String, Value>) -> Value {
    if route.path.ends_with("/infer") || route.path.ends_with("/{capability}") {
        // JSON, and tensors behind it; `inference-header-content-length` says where the JSON ends.
        let bytes = json!({ "schema": { "type": "string", "format": "binary" } });
        content.insert("application/octet-stream".to_owned(), bytes);
    }
    let optional =
        route.scope == Scope::Admin && !route.path.contains("/keys") || route.path.ends_with("/index");
    json!({ "required": !optional, "content": content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane::CapabilitySchema;
    use backplane::payload::schemas::{STANDARD, Standard};

    #[test]
    fn the_page_about_headers_has_every_one() {
        let page = include_str!("../../../docs/headers.md");
        let (of_requests, of_answers) = page.split_once("## Of an answer").unwrap();
        for (name, _, _) in HEADERS {
            assert!(of_requests.contains(&format!("| `{name}` |")), "{name}");
        }
        let source = include_str!("head.rs").split("mod tests").next().unwrap();
        let set: Vec<&str> =
            source.split("set(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(5 < set.len(), "the source is not read as it should be: {set:?}");
        for name in set {
            assert!(of_answers.contains(&format!("`{name}`")), "{name}");
        }
    }

    fn example() -> Value {
        let unforeseen = CapabilityInfo {
            name: "acme.speech.tts".to_owned(),
            versions: vec![1],
            models: vec!["voice".into()],
            plugins: vec!["com.acme.speech".to_owned()],
            schemas: vec![CapabilitySchema {
                plugin: Some("com.acme.speech".to_owned()),
                version: 1,
                description: Some("Reads a text aloud".to_owned()),
                input_schema: Some(json!({
                    "type": "object",
                    "required": ["text"],
                    "properties": { "text": { "type": "string" }, "voice": { "$ref": "#/$defs/voice" } },
                    "$defs": { "voice": { "enum": ["low", "high"] } },
                })),
                output_schema: Some(
                    json!({ "type": "object", "properties": { "seconds": { "type": "number" } } }),
                ),
            }],
        };
        document(&app::routes(), &[unforeseen], "0.0.0")
    }

    /// To accept a change: `INSTA_UPDATE=always cargo test -p backplane-server openapi`.
    #[test]
    fn the_document_is_what_was_agreed() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&example()).unwrap());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    members.values().for_each(|value| check(value, document));
                }
                Value::Array(items) => items.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let standard = |standard: &Standard| CapabilityInfo {
            name: standard.name.to_owned(),
            versions: vec![standard.version],
            models: Vec::new(),
            plugins: Vec::new(),
            schemas: vec![standard.into()],
        };
        let standards: Vec<_> = STANDARD.iter().map(standard).collect();
        for document in [example(), document(&app::routes(), &standards, "0.0.0")] {
            check(&document, &document);
        }
    }

    #[test]
    fn every_route_is_told_of_once() {
        let document = example();
        let mut ids = std::collections::HashSet::new();
        for route in app::routes() {
            let operation = &document["paths"][plain(route.path)][route.method.as_str().to_ascii_lowercase()];
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{}", route.path);
            assert!(!operation["tags"][0].as_str().unwrap().is_empty(), "{}", route.path);
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{}", route.path);
        }
        assert!(document["paths"]["/v1/capabilities/acme.speech.tts"]["post"].is_object());
    }
}
