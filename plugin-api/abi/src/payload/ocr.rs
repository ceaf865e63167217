//! `vision.ocr/1`: pictures in, the lines of text of each out.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vision.ocr";

/// Parameters of reading a picture.
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
    /// Whether to look for lines. Without, the whole picture is one line. Absent: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect: Option<bool>,
    /// Whether to turn lines that stand on their head. Absent: yes, where the model can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<bool>,
    /// Whether to read the lines. Without, only their places are given. Absent: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recognize: Option<bool>,
    /// Whether each line comes with its words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<bool>,
    /// Lines that are less certain are left out, 0..=1. Absent: as the model's card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f32>,
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
    /// What is written, in reading order: what stands in one row on one line, with an empty line between paragraphs.
    pub text: String,
    /// The same as Markdown, with headings and lists told by their size and signs.
    pub markdown: String,
    /// The lines, in reading order.
    pub lines: Vec<Line>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A line of text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Line {
    /// What is written. Empty where it was not to be read.
    pub text: String,
    /// How certain that is, 0..=1: the mean over its characters. Of a line that was not read, how certain its place is.
    pub score: f32,
    /// Its corners in pixels, as (x, y): top left, top right, bottom right, bottom left as its reader sees it.
    #[serde(rename = "box")]
    pub corners: [[f32; 2]; 4],
    /// Its words, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Word>,
}

/// A word of a line: what stands between spaces. In scripts that do not part words, each character.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Word {
    /// What is written.
    pub text: String,
    /// How certain that is, 0..=1.
    pub score: f32,
    /// Its corners, as those of a line.
    #[serde(rename = "box")]
    pub corners: [[f32; 2]; 4],
}
