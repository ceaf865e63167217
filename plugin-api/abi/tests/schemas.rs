//! The JSON Schemas in `docs/capabilities/` say what the payload types say.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use backplane_abi::payload::tensor::Description;
use backplane_abi::payload::{
    Usage, chat, classify, complete, detect, embed, image_prepare, languages, ocr, rerank, tensor, translate,
    vector, vision_classify, vision_detect, vision_embed, vision_faces,
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

/// A document that describes the named parts; the types they are made of stand under `$defs`.
fn document(title: &str, about: &str, describe: impl FnOnce(&mut Parts)) -> String {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut parts = Parts { generator, properties: serde_json::Map::new() };
    describe(&mut parts);
    let definitions = Value::Object(parts.generator.take_definitions(true));
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": about,
        "type": "object",
        "properties": parts.properties,
        "$defs": definitions,
    });
    serde_json::to_string_pretty(&schema).unwrap() + "\n"
}

struct Parts {
    generator: SchemaGenerator,
    properties: serde_json::Map<String, Value>,
}

impl Parts {
    fn add<T: JsonSchema>(&mut self, name: &str) -> &mut Self {
        let schema = self.generator.subschema_for::<T>();
        self.properties.insert(name.to_owned(), schema.into());
        self
    }
}

#[test]
fn the_published_schemas_are_those_of_the_types() {
    let documents = [
        (
            chat::CAPABILITY,
            document("chat/1", "A conversation in, the next message out, piece by piece.", |parts| {
                parts.add::<chat::Params>("params").add::<chat::Chunk>("chunk").add::<Usage>("usage");
            }),
        ),
        (
            complete::CAPABILITY,
            document("complete/1", "Text in, its continuation out.", |parts| {
                parts.add::<complete::Params>("params").add::<complete::Chunk>("chunk").add::<Usage>("usage");
            }),
        ),
        (
            embed::CAPABILITY,
            document(
                "embed/1",
                "Texts in, one chunk with the tensor `embeddings`, FP32 [inputs, dimensions], out.",
                |parts| {
                    parts.add::<embed::Params>("params").add::<Usage>("usage");
                },
            ),
        ),
        (
            rerank::CAPABILITY,
            document(
                "rerank/1",
                "A query and documents in, one chunk with a relevance for each document out.",
                |parts| {
                    parts.add::<rerank::Params>("params").add::<rerank::Chunk>("chunk").add::<Usage>("usage");
                },
            ),
        ),
        (
            classify::CAPABILITY,
            document("classify/1", "Texts in, one chunk with labels and scores for each out.", |parts| {
                parts.add::<classify::Params>("params").add::<classify::Chunk>("chunk").add::<Usage>("usage");
            }),
        ),
        (
            translate::CAPABILITY,
            document("translate/1", "Texts in one language in, the same in another out.", |parts| {
                parts
                    .add::<translate::Params>("params")
                    .add::<translate::Chunk>("chunk")
                    .add::<Usage>("usage");
            }),
        ),
        (
            detect::CAPABILITY,
            document(
                "language.detect/1",
                "Texts in, one chunk with the languages each may be in out.",
                |parts| {
                    parts.add::<detect::Params>("params").add::<detect::Chunk>("chunk").add::<Usage>("usage");
                },
            ),
        ),
        (
            languages::CAPABILITY,
            document(
                "language.list/1",
                "One chunk with the languages, and what each can be translated into.",
                |parts| {
                    parts
                        .add::<languages::Params>("params")
                        .add::<languages::Chunk>("chunk")
                        .add::<Usage>("usage");
                },
            ),
        ),
        (
            ocr::CAPABILITY,
            document("vision.ocr/1", "A picture in, one chunk with its lines of text out.", |parts| {
                parts.add::<ocr::Params>("params").add::<ocr::Chunk>("chunk").add::<Usage>("usage");
            }),
        ),
        (
            vision_detect::CAPABILITY,
            document(
                "vision.detect/1",
                "A picture in, one chunk with what it shows and where out.",
                |parts| {
                    parts
                        .add::<vision_detect::Params>("params")
                        .add::<vision_detect::Chunk>("chunk")
                        .add::<Usage>("usage");
                },
            ),
        ),
        (
            vision_classify::CAPABILITY,
            document("vision.classify/1", "A picture in, one chunk with labels and scores out.", |parts| {
                parts.add::<vision_classify::Params>("params").add::<vision_classify::Chunk>("chunk");
                parts.add::<Usage>("usage");
            }),
        ),
        (
            vision_faces::CAPABILITY,
            document("vision.faces/1", "A picture in, one chunk with its faces out.", |parts| {
                parts
                    .add::<vision_faces::Params>("params")
                    .add::<vision_faces::Chunk>("chunk")
                    .add::<Usage>("usage");
            }),
        ),
        (
            vision_embed::CAPABILITY,
            document(
                "vision.embed/1",
                "Pictures in, one chunk with the tensor `embeddings`, FP32 [pictures, dimensions], out.",
                |parts| {
                    parts.add::<vision_embed::Params>("params").add::<vision_embed::Chunk>("chunk");
                    parts.add::<Usage>("usage");
                },
            ),
        ),
        (
            tensor::CAPABILITY,
            document(
                "tensor.infer/1",
                "Named tensors in, named tensors out; they travel beside the JSON.",
                |parts| {
                    parts.add::<tensor::Params>("params");
                },
            ),
        ),
        (
            vector::CAPABILITY,
            document(
                "vector.search/1",
                "Collections of vectors, and the nearest of them to a query. Vectors may also come as the tensor \
                 `vectors`, [count, dimension].",
                |parts| {
                    parts.add::<vector::Params>("params").add::<vector::Chunk>("chunk");
                },
            ),
        ),
        (
            image_prepare::CAPABILITY,
            document(
                "image.prepare/1",
                "Pictures in, each as a tensor UINT8 [height, width, 3] in the order of `regions`; one chunk with the tensor \
                 `pixels`, FP32, as a network takes it, out.",
                |parts| {
                    parts.add::<image_prepare::Params>("params");
                },
            ),
        ),
        (
            "describe",
            document("describe", "What an opened model says of itself: bp_model.describe_json.", |parts| {
                parts.add::<Description>("description");
            }),
        ),
    ];
    for (name, text) in documents {
        let file = if name == "describe" { "describe".to_owned() } else { format!("{name}.1") };
        support::golden(&format!("../../docs/capabilities/{file}.schema.json"), &text, "schemas");
    }
}
