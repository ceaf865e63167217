//! Weights in the formats that they were published in, made into ONNX while they are pulled.
//!
//! A converter is a pure function of bytes that nobody vouches for: it runs nothing that it reads, takes no more memory
//! than a few times its input, and gives the same bytes on every machine, so that its result is pinned like any file.

mod checkpoint;
mod darknet;
mod efficientnet;
mod pickle;

use serde::{Deserialize, Serialize};

/// No input is longer.
pub(crate) const MAX_INPUT: u64 = 512 << 20;

/// What makes a file of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Convert {
    /// Darknet's `.cfg` and `.weights` of a YOLOv3-shaped detector.
    #[serde(rename = "darknet")]
    Darknet,
    /// The weights of EfficientNet-Lite0 as PyTorch saved them.
    #[serde(rename = "efficientnet-lite0")]
    EfficientnetLite0,
}

impl Convert {
    /// What it takes, in order.
    pub fn takes(self) -> &'static [&'static str] {
        match self {
            Self::Darknet => &["a .cfg", "a .weights"],
            Self::EfficientnetLite0 => &["a .pth"],
        }
    }

    /// The file that `inputs` make.
    ///
    /// # Errors
    /// What is wrong with them, for the operator.
    pub(crate) fn run(self, inputs: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        match (self, inputs) {
            (Self::Darknet, [config, weights]) => darknet::to_onnx(config, weights),
            (Self::EfficientnetLite0, [checkpoint]) => efficientnet::to_onnx(checkpoint),
            (_, inputs) => Err(format!(
                "it is made of {}, and {} inputs are given",
                self.takes().join(" and "),
                inputs.len()
            )),
        }
    }
}
