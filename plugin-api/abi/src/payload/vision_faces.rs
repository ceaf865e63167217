//! `vision.faces/1`: pictures in, the faces of each out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vision.faces";

/// Parameters of looking for faces. The pictures are given as for `vision.detect/1`.
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
    /// Smaller faces need not be found: pixels of a side. The larger, the quicker. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_size: Option<u32>,
    /// Whether the picture comes back with boxes and landmarks drawn: as the tensor `drawn`, BYTES [1], a PNG file.
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
    /// The faces, the most certain first.
    pub faces: Vec<Face>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A face.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Face {
    /// How certain it is that there is one, 0..=1.
    pub score: f32,
    /// Its edges in pixels: left, top, right, bottom.
    #[serde(rename = "box")]
    pub edges: [f32; 4],
    /// Where its parts are.
    pub landmarks: Landmarks,
}

/// Parts of a face in pixels, as (x, y). Left and right are the viewer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Landmarks {
    /// The eye on the left of the picture.
    pub left_eye: [f32; 2],
    /// The eye on the right of the picture.
    pub right_eye: [f32; 2],
    /// The tip of the nose.
    pub nose: [f32; 2],
    /// The corner of the mouth on the left of the picture.
    pub mouth_left: [f32; 2],
    /// The corner of the mouth on the right of the picture.
    pub mouth_right: [f32; 2],
}
