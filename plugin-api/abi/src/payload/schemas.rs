//! The JSON Schemas of the standard capabilities, made of the payload types: what `docs/capabilities/` shows, and what a host
//! publishes of a capability that is one of ours.

use super::{
    Usage, chat, classify, complete, detect, embed, image_prepare, languages, ocr, rerank, tensor, translate,
    vector, vision_classify, vision_detect, vision_embed, vision_faces,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// A type's schema in a document with others.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A type as a part of a document.
pub fn part<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A standard capability.
#[derive(Clone, Copy, Debug)]
pub struct Standard {
    /// Its name.
    pub name: &'static str,
    /// Version of its payload.
    pub version: u32,
    /// What goes in and what comes out, tensors too.
    pub description: &'static str,
    params: Payload,
    chunk: Option<Payload>,
    usage: bool,
}

/// A type of a payload: as a part of a document, and by itself.
#[derive(Clone, Copy, Debug)]
struct Payload {
    part: SchemaOf,
    alone: fn() -> Value,
}

impl Payload {
    const fn of<T: JsonSchema>() -> Self {
        Self { part: part::<T>, alone: alone::<T> }
    }
}

/// All of them.
pub const STANDARD: [Standard; 16] = [
    Standard::new::<chat::Params>(
        chat::CAPABILITY,
        "A conversation in, the next message out, piece by piece.",
    )
    .gives::<chat::Chunk>()
    .counts(),
    Standard::new::<complete::Params>(complete::CAPABILITY, "Text in, its continuation out.")
        .gives::<complete::Chunk>()
        .counts(),
    Standard::new::<embed::Params>(
        embed::CAPABILITY,
        "Texts in, one chunk with the tensor `embeddings`, FP32 [inputs, dimensions], out.",
    )
    .counts(),
    Standard::new::<rerank::Params>(
        rerank::CAPABILITY,
        "A query and documents in, one chunk with a relevance for each document out.",
    )
    .gives::<rerank::Chunk>()
    .counts(),
    Standard::new::<classify::Params>(
        classify::CAPABILITY,
        "Texts in, one chunk with labels and scores for each out.",
    )
    .gives::<classify::Chunk>()
    .counts(),
    Standard::new::<translate::Params>(
        translate::CAPABILITY,
        "Texts in one language in, the same in another out.",
    )
    .gives::<translate::Chunk>()
    .counts(),
    Standard::new::<detect::Params>(
        detect::CAPABILITY,
        "Texts in, one chunk with the languages each may be in out.",
    )
    .gives::<detect::Chunk>()
    .counts(),
    Standard::new::<languages::Params>(
        languages::CAPABILITY,
        "One chunk with the languages, and what each can be translated into.",
    )
    .gives::<languages::Chunk>()
    .counts(),
    Standard::new::<ocr::Params>(
        ocr::CAPABILITY,
        "Pictures in, for each a chunk with its lines of text out.",
    )
    .gives::<ocr::Chunk>()
    .counts(),
    Standard::new::<vision_detect::Params>(
        vision_detect::CAPABILITY,
        "Pictures in, for each a chunk with what it shows and where out.",
    )
    .gives::<vision_detect::Chunk>()
    .counts(),
    Standard::new::<vision_classify::Params>(
        vision_classify::CAPABILITY,
        "Pictures in, for each a chunk with labels and scores out.",
    )
    .gives::<vision_classify::Chunk>()
    .counts(),
    Standard::new::<vision_faces::Params>(
        vision_faces::CAPABILITY,
        "Pictures in, for each a chunk with its faces out.",
    )
    .gives::<vision_faces::Chunk>()
    .counts(),
    Standard::new::<vision_embed::Params>(
        vision_embed::CAPABILITY,
        "Pictures in, one chunk with the tensor `embeddings`, FP32 [pictures, dimensions], out.",
    )
    .gives::<vision_embed::Chunk>()
    .counts(),
    Standard::new::<tensor::Params>(
        tensor::CAPABILITY,
        "Named tensors in, named tensors out; they travel beside the JSON.",
    ),
    Standard::new::<vector::Params>(
        vector::CAPABILITY,
        "Collections of vectors, and the nearest of them to a query. Vectors may also come as the tensor \
         `vectors`, [count, dimension].",
    )
    .gives::<vector::Chunk>(),
    Standard::new::<image_prepare::Params>(
        image_prepare::CAPABILITY,
        "Pictures in, each as a tensor UINT8 [height, width, 3] in the order of `regions`; one chunk with the tensor \
         `pixels`, FP32, as a network takes it, out.",
    ),
];

impl Standard {
    const fn new<P: JsonSchema>(name: &'static str, description: &'static str) -> Self {
        Self { name, version: 1, description, params: Payload::of::<P>(), chunk: None, usage: false }
    }

    /// With JSON in its answer.
    const fn gives<C: JsonSchema>(self) -> Self {
        Self { chunk: Some(Payload::of::<C>()), ..self }
    }

    /// With a usage at its end.
    const fn counts(self) -> Self {
        Self { usage: true, ..self }
    }

    /// JSON Schema of the parameters.
    pub fn input_schema(&self) -> Value {
        (self.params.alone)()
    }

    /// JSON Schema of each piece of the answer, where pieces have JSON.
    pub fn output_schema(&self) -> Option<Value> {
        self.chunk.map(|chunk| (chunk.alone)())
    }

    /// All of it in one document.
    pub fn document(&self) -> Value {
        let usage = self.usage.then_some(Payload::of::<Usage>());
        let parts = [("params", Some(self.params)), ("chunk", self.chunk), ("usage", usage)];
        document(
            &format!("{}/{}", self.name, self.version),
            self.description,
            parts.into_iter().filter_map(|(name, payload)| Some((name, payload?.part))),
        )
    }
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12().into_generator()
}

/// A type's schema by itself, with the types that it is made of under `$defs`.
fn alone<T: JsonSchema>() -> Value {
    let mut schema = generator().into_root_schema_for::<T>();
    // What it is called in Rust.
    schema.remove("title");
    schema.to_value()
}

/// A document that describes the named parts; the types they are made of stand under `$defs`.
pub fn document<'a>(
    title: &str,
    description: &str,
    parts: impl IntoIterator<Item = (&'a str, SchemaOf)>,
) -> Value {
    let mut generator = generator();
    let properties: Map<String, Value> =
        parts.into_iter().map(|(name, part)| (name.to_owned(), part(&mut generator).to_value())).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": description,
        "type": "object",
        "properties": properties,
        "$defs": generator.take_definitions(true),
    })
}
