//! The weights of EfficientNet-Lite0 as PyTorch saved them → ONNX.
//!
//! The graph takes `input`, FP32 [N, 3, 224, 224], and gives `probs` [N, 1000] over the classes of ImageNet and
//! `features` [N, 1280], what the last layer sees. Batch normalisation is folded into the weights.

use super::checkpoint::Checkpoint;
use crate::onnx::Attribute::{Int, Ints, Text};
use crate::onnx::{DType, Graph, Side};

const SIDE: usize = 224;
const STEM: usize = 32;
const FEATURES: usize = 1280;
const CLASSES: usize = 1000;
/// What its authors add to a variance.
const EPSILON: f32 = 1e-3;

/// Blocks alike: how many, kernel, stride of the first, how much wider they are inside, channels they give.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

pub(super) fn to_onnx(checkpoint: &[u8]) -> Result<Vec<u8>, String> {
    let mut network = Network { weights: Checkpoint::read(checkpoint)?, graph: Graph::default(), layers: 0 };
    network.graph.floats("zero", &[], &[0.0]);
    network.graph.floats("six", &[], &[6.0]);

    let stem = Convolution { kernel: 3, stride: 2, from: 3, to: STEM, alone: false, clipped: true };
    let mut x = network.convolution("input", "_conv_stem", "_bn0", stem)?;
    let mut channels = STEM;
    let mut index = 0;
    for (blocks, kernel, first_stride, wider, to) in STAGES {
        for block in 0..blocks {
            let stride = if block == 0 { first_stride } else { 1 };
            x = network.block(
                &x,
                index,
                Block { kernel, stride, from: channels, inside: channels * wider, to },
            )?;
            channels = to;
            index += 1;
        }
    }
    if network.weights.has(&format!("_blocks.{index}._depthwise_conv.weight")) {
        return Err(format!(
            "it has more than {index} blocks: it is a larger EfficientNet-Lite, and only Lite0 is supported"
        ));
    }
    let head =
        Convolution { kernel: 1, stride: 1, from: channels, to: FEATURES, alone: false, clipped: true };
    x = network.convolution(&x, "_conv_head", "_bn1", head)?;
    network.classify(&x)?;
    Ok(network.graph.finish("efficientnet-lite0"))
}

/// A convolution, its normalisation, and a clip to 0..=6 where it has one.
struct Convolution {
    kernel: usize,
    stride: usize,
    from: usize,
    to: usize,
    /// Each channel by itself.
    alone: bool,
    clipped: bool,
}

/// A mobile inverted bottleneck, without squeeze and excitation.
struct Block {
    kernel: usize,
    stride: usize,
    from: usize,
    inside: usize,
    to: usize,
}

struct Network<'a> {
    weights: Checkpoint<'a>,
    graph: Graph,
    layers: usize,
}

impl Network<'_> {
    fn block(&mut self, x: &str, index: usize, block: Block) -> Result<String, String> {
        let Block { kernel, stride, from, inside, to } = block;
        let part = |part: &str| format!("_blocks.{index}.{part}");
        let mut y = x.to_owned();
        if inside != from {
            let expand = Convolution { kernel: 1, stride: 1, from, to: inside, alone: false, clipped: true };
            y = self.convolution(&y, &part("_expand_conv"), &part("_bn0"), expand)?;
        }
        let each = Convolution { kernel, stride, from: inside, to: inside, alone: true, clipped: true };
        y = self.convolution(&y, &part("_depthwise_conv"), &part("_bn1"), each)?;
        let project = Convolution { kernel: 1, stride: 1, from: inside, to, alone: false, clipped: false };
        y = self.convolution(&y, &part("_project_conv"), &part("_bn2"), project)?;
        if stride != 1 || from != to {
            return Ok(y);
        }
        let sum = format!("block{index}");
        self.graph.node("Add", &[&y, x], &[&sum], &[]);
        Ok(sum)
    }

    fn convolution(
        &mut self,
        x: &str,
        weights: &str,
        norm: &str,
        told: Convolution,
    ) -> Result<String, String> {
        let Convolution { kernel, stride, from, to, alone, clipped } = told;
        let depth = if alone { 1 } else { from };
        let shape = [to, depth, kernel, kernel];
        let mut numbers = self.weights.floats(&format!("{weights}.weight"), &shape)?;
        let norm = |part: &str| self.weights.floats(&format!("{norm}.{part}"), &[to]);
        let (gamma, mut bias) = (norm("weight")?, norm("bias")?);
        let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
        for (filter, weights) in numbers.chunks_exact_mut(depth * kernel * kernel).enumerate() {
            let scale = gamma[filter] / (variance[filter] + EPSILON).sqrt();
            weights.iter_mut().for_each(|weight| *weight *= scale);
            bias[filter] -= mean[filter] * scale;
        }
        if !numbers.iter().chain(&bias).all(|number| number.is_finite()) {
            return Err(format!("`{weights}` has weights that are not numbers"));
        }

        self.layers += 1;
        let name = format!("c{}", self.layers);
        let (kernel_name, bias_name, sum) = (format!("{name}_w"), format!("{name}_b"), format!("{name}_c"));
        self.graph.floats(&kernel_name, &shape, &numbers);
        self.graph.floats(&bias_name, &[to], &bias);
        let told = [
            ("kernel_shape", Ints(&[kernel as i64; 2][..])),
            ("strides", Ints(&[stride as i64; 2])),
            ("auto_pad", Text("SAME_UPPER")), // as TensorFlow pads, which it was trained with
            ("group", Int(if alone { from as i64 } else { 1 })),
        ];
        let out = if clipped { &sum } else { &name };
        self.graph.node("Conv", &[x, &kernel_name, &bias_name], &[out], &told);
        if clipped {
            self.graph.node("Clip", &[&sum, "zero", "six"], &[&name], &[]);
        }
        Ok(name)
    }

    fn classify(&mut self, x: &str) -> Result<(), String> {
        let graph = &mut self.graph;
        graph.node("GlobalAveragePool", &[x], &["pooled"], &[]);
        graph.node("Flatten", &["pooled"], &["features"], &[("axis", Int(1))]);
        graph.floats("fc_w", &[CLASSES, FEATURES], &self.weights.floats("_fc.weight", &[CLASSES, FEATURES])?);
        graph.floats("fc_b", &[CLASSES], &self.weights.floats("_fc.bias", &[CLASSES])?);
        graph.node("Gemm", &["features", "fc_w", "fc_b"], &["logits"], &[("transB", Int(1))]);
        graph.node("Softmax", &["logits"], &["probs"], &[("axis", Int(1))]);
        graph.input("input", DType::Fp32, &[Side::Any("N"), Side::Is(3), Side::Is(SIDE), Side::Is(SIDE)]);
        graph.output("probs", DType::Fp32, &[Side::Any("N"), Side::Is(CLASSES)]);
        graph.output("features", DType::Fp32, &[Side::Any("N"), Side::Is(FEATURES)]);
        Ok(())
    }
}
