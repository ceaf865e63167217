//! `image.prepare/1`: pixels in, the tensor that a network takes out.
//!
//! Pictures are decoded by whoever asks: each is a tensor UINT8 `[height, width, 3]`, red, green and blue, in the order of
//! `regions`.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "image.prepare";

/// Name of the tensor that comes back: FP32, a row for each picture.
pub const PIXELS: &str = "pixels";

/// How pixels are made of those around them. All look at as many as a smaller picture leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Catmull-Rom.
    #[default]
    Bicubic,
    /// A triangle.
    Bilinear,
}

/// The order of the tensor's sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Picture, colour, row, column.
    #[default]
    Nchw,
    /// Picture, row, column, colour.
    Nhwc,
}

/// The order of a pixel's colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// What of a picture is seen, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Region {
    /// Left, top, width and height in the picture's pixels: a part of it, which may begin and end within a pixel.
    pub from: [f32; 4],
    /// Left, top, width and height in the result: around it is the ground.
    pub to: [u32; 4],
}

/// Parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Params {
    /// Of the result, in pixels: 1 to 4096.
    pub width: u32,
    /// Of the result, in pixels: 1 to 4096.
    pub height: u32,
    /// One for each picture.
    pub regions: Vec<Region>,
    /// How pixels are made of others.
    #[serde(default)]
    pub filter: Filter,
    /// The order of the result's sides.
    #[serde(default)]
    pub layout: Layout,
    /// The order of its colours.
    #[serde(default)]
    pub channels: Channels,
    /// A byte becomes `(byte * scale - mean) / std`.
    #[serde(default = "part")]
    pub scale: f32,
    /// For each colour of the result.
    #[serde(default)]
    pub mean: [f32; 3],
    /// For each colour of the result.
    #[serde(default = "ones")]
    pub std: [f32; 3],
    /// The ground is of this grey.
    #[serde(default)]
    pub fill: u8,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

fn part() -> f32 {
    1.0 / 255.0
}

fn ones() -> [f32; 3] {
    [1.0; 3]
}
