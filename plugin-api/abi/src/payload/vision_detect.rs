//! `vision.detect/1`: pictures in, what each shows and where out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vision.detect";

/// Parameters of a detection.
///
/// The picture is the member `image`, several are `images`, or they are a tensor `image` beside the parameters: BYTES [pictures],
/// the bytes of a file each, or UINT8 [height, width, channels], the pixels of one: grey, RGB, or RGB and alpha. Each page of a
/// file with several is a picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The bytes of a file in base64, or a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Several files, each in base64 or as a `data:` URL, instead of `image`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// What is less certain is left out, 0..=1. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f32>,
    /// Of two boxes of one label that overlap by more than this (intersection over union, 0..=1) the less certain is left
    /// out. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_overlap: Option<f32>,
    /// Only these labels. Empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// At most so many boxes. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Whether the picture comes back with the boxes drawn: as the tensor `drawn`, BYTES [1], a PNG file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draw: Option<bool>,
    /// What we do not know: model-specific.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The result: one chunk for each picture, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// Which file of the request it is in, from 0. Absent where the request has one picture, and not as `images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<u32>,
    /// Which page of the file, from 1. Absent where the file has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Width of the picture in pixels, as it is meant to be seen: after the turn that its file asks for.
    pub width: u32,
    /// Its height.
    pub height: u32,
    /// What was found, the most certain first.
    pub objects: Vec<Object>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Something that a picture shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Object {
    /// What it is.
    pub label: String,
    /// Place of the label among the model's.
    pub class: u32,
    /// How certain that is, 0..=1.
    pub score: f32,
    /// Its edges in pixels: left, top, right, bottom.
    #[serde(rename = "box")]
    pub edges: [f32; 4],
}
