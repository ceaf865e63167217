//! Darknet's `.cfg` and `.weights` → ONNX, for detectors of the YOLOv3 shape.
//!
//! The graph takes `images`, FP32 [N, 3, height, width], RGB from 0 to 1, and gives `detections`, FP32
//! [N, boxes, 5 + classes]: centre, width and height in pixels of the input, whether there is anything, and what. Batch
//! normalisation is folded into the weights. What a section says and this does not know is refused by its name: a key
//! that were passed over could change every box.

use std::collections::BTreeMap;

use crate::onnx::Attribute::{Float, Int, Ints, Text};
use crate::onnx::{DType, Graph, Side};

const MAX_CONFIG: usize = 256 << 10;
const MAX_LAYERS: usize = 512;
/// Pixels of a side, channels of a layer: nothing published comes near.
const MAX_SIDE: usize = 8192;
const MAX_CHANNELS: usize = 65_536;
const MAX_BOXES: usize = 1_000_000;
/// What Darknet adds to a variance.
const EPSILON: f32 = 1e-5;

pub(super) fn to_onnx(config: &[u8], weights: &[u8]) -> Result<Vec<u8>, String> {
    if config.len() > MAX_CONFIG {
        return Err(format!(
            "its .cfg is {} bytes long, more than the {MAX_CONFIG} that are read",
            config.len()
        ));
    }
    let config = std::str::from_utf8(config).map_err(|_| "its .cfg is not text")?;
    let sections = sections(config)?;
    let (net, layers) = sections.split_first().ok_or("its .cfg is empty")?;
    let mut network = Network::new(net, Weights::new(weights)?)?;
    for (index, section) in layers.iter().enumerate() {
        network.layer(index, section).map_err(|reason| {
            format!("layer {index}, `[{}]` in line {} of its .cfg: {reason}", section.kind, section.line)
        })?;
    }
    network.finish()
}

/// `[kind]` and the lines below it.
struct Section<'a> {
    kind: &'a str,
    line: usize,
    keys: BTreeMap<&'a str, &'a str>,
}

fn sections(config: &str) -> Result<Vec<Section<'_>>, String> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for (number, line) in config.lines().enumerate() {
        let (line, number) = (line.trim(), number + 1);
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(kind) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if sections.len() > MAX_LAYERS {
                return Err(format!("its .cfg has more than {MAX_LAYERS} layers"));
            }
            sections.push(Section { kind, line: number, keys: BTreeMap::new() });
        } else {
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| format!("line {number} of its .cfg is neither `[section]` nor `key=value`"))?;
            let section = sections.last_mut().ok_or("its .cfg does not begin with a section")?;
            if section.keys.insert(key.trim(), value.trim()).is_some() {
                return Err(format!("line {number} of its .cfg says `{}` a second time", key.trim()));
            }
        }
    }
    Ok(sections)
}

impl<'a> Section<'a> {
    /// Refuses a key that is neither used nor known to matter to training alone.
    fn knows(&self, used: &[&str], training: &[&str]) -> Result<(), String> {
        match self.keys.keys().find(|key| !used.contains(key) && !training.contains(key)) {
            Some(key) => Err(format!("`{key}` is not supported; supported are {}", used.join(", "))),
            None => Ok(()),
        }
    }

    fn text(&self, key: &str) -> Result<&'a str, String> {
        self.keys.get(key).copied().ok_or_else(|| format!("`{key}` is missing"))
    }

    fn number(&self, key: &str, default: Option<usize>, most: usize) -> Result<usize, String> {
        let number = match (self.keys.get(key), default) {
            (None, Some(default)) => default,
            (None, None) => return Err(format!("`{key}` is missing")),
            (Some(text), _) => text.parse().map_err(|_| format!("`{key}={text}` is not a whole number"))?,
        };
        if number > most {
            return Err(format!("`{key}={number}` is more than the {most} that are supported"));
        }
        Ok(number)
    }

    fn positive(&self, key: &str, default: Option<usize>, most: usize) -> Result<usize, String> {
        match self.number(key, default, most)? {
            0 => Err(format!("`{key}` is 0")),
            number => Ok(number),
        }
    }

    fn list<T: std::str::FromStr>(&self, key: &str) -> Result<Vec<T>, String> {
        let text = self.text(key)?;
        let numbers = text.split(',').map(|number| number.trim().parse());
        numbers.collect::<Result<_, _>>().map_err(|_| format!("`{key}={text}` is not a list of numbers"))
    }
}

/// The numbers of the `.weights`, taken from the front.
struct Weights<'a> {
    left: &'a [u8],
}

impl<'a> Weights<'a> {
    /// Three numbers of a version, and one of 4 or, from version 0.2 on, 8 bytes: the pictures it has seen.
    fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map(i32::from_le_bytes).ok_or("its .weights end within their header")
        };
        let (major, minor) = (word(0)?, word(4)?);
        if !(0..1000).contains(&major) || !(0..1000).contains(&minor) {
            return Err("its .weights do not begin with a version of Darknet".into());
        }
        let header = if major * 10 + minor >= 2 { 20 } else { 16 };
        Ok(Self { left: bytes.get(header..).ok_or("its .weights end within their header")? })
    }

    fn take(&mut self, count: usize) -> Result<Vec<f32>, String> {
        let split = count.checked_mul(4).and_then(|bytes| self.left.split_at_checked(bytes));
        let (taken, left) = split
            .ok_or_else(|| format!("it takes {count} more weights, and {} are left", self.left.len() / 4))?;
        self.left = left;
        let (numbers, _) = taken.as_chunks::<4>();
        Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// What a layer gives.
#[derive(Clone)]
struct Output {
    name: String,
    channels: usize,
    width: usize,
    height: usize,
}

struct Network<'a> {
    graph: Graph,
    weights: Weights<'a>,
    input: Output,
    /// Of each layer so far; of a head none, since its boxes are no picture.
    outputs: Vec<Option<Output>>,
    heads: Vec<String>,
    boxes: usize,
    classes: Option<usize>,
}

impl<'a> Network<'a> {
    fn new(net: &Section<'_>, weights: Weights<'a>) -> Result<Self, String> {
        if !matches!(net.kind, "net" | "network") {
            return Err(format!("its .cfg begins with `[{}]`, not with `[net]`", net.kind));
        }
        let side = |key| {
            net.positive(key, None, MAX_SIDE).map_err(|reason| format!("`[net]` of its .cfg: {reason}"))
        };
        let (width, height, channels) = (side("width")?, side("height")?, side("channels")?);
        if channels != 3 {
            return Err(format!("its .cfg takes pictures of {channels} channels, and only 3 are supported"));
        }
        let input = Output { name: "images".into(), channels, width, height };
        let (graph, outputs, heads) = (Graph::default(), Vec::new(), Vec::new());
        Ok(Self { graph, weights, input, outputs, heads, boxes: 0, classes: None })
    }

    fn layer(&mut self, index: usize, section: &Section<'_>) -> Result<(), String> {
        let before = self.outputs.last().map_or(Some(&self.input), Option::as_ref).cloned();
        let from = || before.ok_or("it follows a `[yolo]`, whose boxes no layer takes");
        let name = format!("l{index}");
        let output = match section.kind {
            "convolutional" => self.convolution(name, from()?, section)?,
            "maxpool" => self.pool(name, from()?, section)?,
            "upsample" => self.upsample(name, from()?, section)?,
            "route" => self.route(name, section)?,
            "yolo" => {
                self.head(name, &from()?, section)?;
                self.outputs.push(None);
                return Ok(());
            }
            _ => {
                return Err(
                    "this kind of layer is not supported; supported are `convolutional`, `maxpool`, \
                            `upsample`, `route` and `yolo`"
                        .into(),
                );
            }
        };
        if output.width > MAX_SIDE || output.height > MAX_SIDE || output.channels > MAX_CHANNELS {
            let Output { channels, width, height, .. } = output;
            return Err(format!("it gives {channels} × {height} × {width}, which is more than is supported"));
        }
        self.outputs.push(Some(output));
        Ok(())
    }

    fn convolution(&mut self, name: String, from: Output, section: &Section<'_>) -> Result<Output, String> {
        section.knows(&["batch_normalize", "filters", "size", "stride", "pad", "activation"], &[])?;
        let filters = section.positive("filters", None, MAX_CHANNELS)?;
        let size = section.positive("size", None, 64)?;
        let stride = section.positive("stride", Some(1), 64)?;
        let pad = if section.number("pad", Some(0), 1)? == 1 { size / 2 } else { 0 };
        let normalised = section.number("batch_normalize", Some(0), 1)? == 1;
        let leaky = match section.text("activation")? {
            "leaky" => true,
            "linear" => false,
            other => {
                return Err(format!(
                    "`activation={other}` is not supported; supported are `leaky` and `linear`"
                ));
            }
        };

        let mut bias = self.weights.take(filters)?;
        let scales = match normalised {
            true => {
                Some((self.weights.take(filters)?, self.weights.take(filters)?, self.weights.take(filters)?))
            }
            false => None,
        };
        let each = from.channels * size * size; // at most 65,536 × 64 × 64
        let mut kernel = self.weights.take(filters * each)?;
        if let Some((gamma, mean, variance)) = scales {
            for (filter, weights) in kernel.chunks_exact_mut(each).enumerate() {
                let scale = gamma[filter] / (variance[filter] + EPSILON).sqrt();
                weights.iter_mut().for_each(|weight| *weight *= scale);
                bias[filter] -= mean[filter] * scale;
            }
        }
        if !kernel.iter().chain(&bias).all(|weight| weight.is_finite()) {
            return Err("its weights are not numbers: the .weights are damaged, or of another .cfg".into());
        }

        let side = |length: usize| {
            let padded = length + 2 * pad;
            padded
                .checked_sub(size)
                .map(|room| room / stride + 1)
                .ok_or("its kernel is larger than its input")
        };
        let (width, height) = (side(from.width)?, side(from.height)?);
        let (kernel_name, bias_name, sum) = (format!("{name}_w"), format!("{name}_b"), format!("{name}_c"));
        self.graph.floats(&kernel_name, &[filters, from.channels, size, size], &kernel);
        self.graph.floats(&bias_name, &[filters], &bias);
        let (size, stride, pad) = (size as i64, stride as i64, pad as i64);
        let told =
            [("kernel_shape", Ints(&[size; 2])), ("strides", Ints(&[stride; 2])), ("pads", Ints(&[pad; 4]))];
        let to = if leaky { &sum } else { &name };
        self.graph.node("Conv", &[&from.name, &kernel_name, &bias_name], &[to], &told);
        if leaky {
            self.graph.node("LeakyRelu", &[&sum], &[&name], &[("alpha", Float(0.1))]);
        }
        Ok(Output { name, channels: filters, width, height })
    }

    /// Darknet pads by `size - 1`, the smaller half before, and gives `ceil(length / stride)`.
    fn pool(&mut self, name: String, from: Output, section: &Section<'_>) -> Result<Output, String> {
        section.knows(&["size", "stride"], &[])?;
        let stride = section.positive("stride", Some(1), 64)?;
        let size = section.positive("size", Some(stride), 64)?;
        if size < stride {
            return Err(format!("its `size` {size} is smaller than its `stride` {stride}"));
        }
        let before = (size - 1) / 2;
        let side = |length: usize| {
            let pooled = length.div_ceil(stride);
            let after = ((pooled - 1) * stride + size).saturating_sub(length + before);
            (pooled, after as i64)
        };
        let ((width, right), (height, below)) = (side(from.width), side(from.height));
        let (before, size, stride) = (before as i64, size as i64, stride as i64);
        let told = [
            ("kernel_shape", Ints(&[size; 2][..])),
            ("strides", Ints(&[stride; 2])),
            ("pads", Ints(&[before, before, below, right])),
        ];
        self.graph.node("MaxPool", &[&from.name], &[&name], &told);
        Ok(Output { name, width, height, ..from })
    }

    fn upsample(&mut self, name: String, from: Output, section: &Section<'_>) -> Result<Output, String> {
        section.knows(&["stride"], &[])?;
        let factor = section.positive("stride", Some(2), 8)?;
        let scales = format!("{name}_s");
        self.graph.floats(&scales, &[4], &[1.0, 1.0, factor as f32, factor as f32]);
        let told = [
            ("mode", Text("nearest")),
            ("coordinate_transformation_mode", Text("asymmetric")),
            ("nearest_mode", Text("floor")),
        ];
        self.graph.node("Resize", &[&from.name, "", &scales], &[&name], &told);
        Ok(Output { name, width: from.width * factor, height: from.height * factor, ..from })
    }

    fn route(&mut self, name: String, section: &Section<'_>) -> Result<Output, String> {
        section.knows(&["layers"], &[])?;
        let here = self.outputs.len() as i64;
        let chosen = section.list::<i64>("layers")?.into_iter().map(|layer| {
            let layer = if layer < 0 { here.saturating_add(layer) } else { layer };
            let output = usize::try_from(layer).ok().and_then(|layer| self.outputs.get(layer)?.clone());
            output.ok_or_else(|| format!("there is no layer {layer} before it that gives a picture"))
        });
        let chosen = chosen.collect::<Result<Vec<_>, _>>()?;
        let Some((first, others)) = chosen.split_first() else { return Err("`layers` is empty".into()) };
        if others.is_empty() {
            return Ok(first.clone());
        }
        if let Some(other) = others.iter().find(|it| (it.width, it.height) != (first.width, first.height)) {
            let (a, b) = (first, other);
            let sizes = format!("{} × {} and {} × {}", a.width, a.height, b.width, b.height);
            return Err(format!("it joins layers of different sizes, {sizes}"));
        }
        let names: Vec<&str> = chosen.iter().map(|output| output.name.as_str()).collect();
        self.graph.node("Concat", &names, &[&name], &[("axis", Int(1))]);
        // At most a list of 256 KiB of layers of 65,536 channels.
        Ok(Output { name, channels: chosen.iter().map(|output| output.channels).sum(), ..first.clone() })
    }

    /// Offsets in a cell and logarithms of sizes become boxes in pixels.
    fn head(&mut self, name: String, from: &Output, section: &Section<'_>) -> Result<(), String> {
        let training = ["jitter", "ignore_thresh", "truth_thresh", "random"];
        section.knows(&["mask", "anchors", "classes", "num"], &training)?;
        let classes = section.positive("classes", None, 10_000)?;
        let (mask, anchors) = (section.list::<usize>("mask")?, section.list::<f32>("anchors")?);
        let sizes =
            mask.iter().map(|&at| anchors.get(at.checked_mul(2)?..)?.get(..2)).collect::<Option<Vec<_>>>();
        let sizes = sizes.ok_or("`mask` names an anchor that `anchors` does not have")?.concat();
        let (per_cell, numbers) = (mask.len(), classes + 5);
        if per_cell * numbers != from.channels {
            return Err(format!(
                "{per_cell} boxes of {numbers} numbers are read, and the layer before it gives {} channels",
                from.channels
            ));
        }
        if self.classes.is_some_and(|before| before != classes) {
            return Err("another `[yolo]` has another number of `classes`".into());
        }
        self.classes = Some(classes);
        let cells = from.width * from.height; // at most 8192 × 8192
        self.boxes += cells * per_cell;
        if self.boxes > MAX_BOXES {
            return Err(format!("it gives more than {MAX_BOXES} boxes"));
        }

        let part = |part: &str| format!("{name}_{part}");
        let corners = (0..from.height).flat_map(|y| (0..from.width).flat_map(move |x| [x as f32, y as f32]));
        self.graph.floats(&part("grid"), &[1, 1, cells, 2], &corners.collect::<Vec<_>>());
        let step =
            [self.input.width as f32 / from.width as f32, self.input.height as f32 / from.height as f32];
        self.graph.floats(&part("step"), &[1, 1, 1, 2], &step);
        self.graph.floats(&part("anchors"), &[1, per_cell, 1, 2], &sizes);
        let (cells, per_cell, numbers) = (cells as i64, per_cell as i64, numbers as i64);
        self.graph.integers(&part("apart"), &[0, per_cell, numbers, cells]);
        self.graph.integers(&part("parts"), &[2, 2, numbers - 4]);
        self.graph.integers(&part("together"), &[0, per_cell * cells, numbers]);
        self.graph.node("Reshape", &[&from.name, &part("apart")], &[&part("cut")], &[]);
        let mut node = |operator: &str, inputs: &[&str], outputs: &[&str], told: &[_]| {
            let inputs: Vec<String> = inputs.iter().map(|it| part(it)).collect();
            let outputs: Vec<String> = outputs.iter().map(|it| part(it)).collect();
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
            self.graph.node(operator, &inputs, &outputs, told);
        };
        let axis = [("axis", Int(3))];
        node("Transpose", &["cut"], &["rows"], &[("perm", Ints(&[0, 1, 3, 2]))]);
        node("Split", &["rows", "parts"], &["xy", "wh", "what"], &axis);
        node("Sigmoid", &["xy"], &["offset"], &[]);
        node("Add", &["offset", "grid"], &["cell"], &[]);
        node("Mul", &["cell", "step"], &["centre"], &[]);
        node("Exp", &["wh"], &["factor"], &[]);
        node("Mul", &["factor", "anchors"], &["size"], &[]);
        node("Sigmoid", &["what"], &["scores"], &[]);
        node("Concat", &["centre", "size", "scores"], &["boxes"], &axis);
        self.graph.node("Reshape", &[&part("boxes"), &part("together")], &[&name], &[]);
        self.heads.push(name);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, String> {
        let Some(classes) = self.classes else { return Err("its .cfg has no `[yolo]`".into()) };
        if !self.weights.left.is_empty() {
            let left = self.weights.left.len();
            return Err(format!("{left} bytes of its .weights are left over: they are of another .cfg"));
        }
        let heads: Vec<&str> = self.heads.iter().map(String::as_str).collect();
        self.graph.node("Concat", &heads, &["detections"], &[("axis", Int(1))]);
        let (height, width) = (Side::Is(self.input.height), Side::Is(self.input.width));
        self.graph.input("images", DType::Fp32, &[Side::Any("N"), Side::Is(3), height, width]);
        self.graph.output(
            "detections",
            DType::Fp32,
            &[Side::Any("N"), Side::Is(self.boxes), Side::Is(classes + 5)],
        );
        Ok(self.graph.finish("darknet"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "[yolo]\nmask=0\nanchors=10,20\nclasses=1\nnum=1\nignore_thresh=.7\n";

    /// One convolution of one pixel to `5 + 1` numbers, and the head that reads them.
    fn small(convolution: &str) -> String {
        format!(
            "[net]\n# a comment\nwidth=64\nheight=32\nchannels=3\n\n[convolutional]\nfilters=6\nsize=1\nstride=32\n{convolution}\n{HEAD}"
        )
    }

    fn weights(numbers: &[f32]) -> Vec<u8> {
        let header = [0_i32, 2, 0, 5, 0].into_iter().flat_map(i32::to_le_bytes);
        header.chain(numbers.iter().flat_map(|number| number.to_le_bytes())).collect()
    }

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn holds(graph: &[u8], part: &[u8]) -> bool {
        graph.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn normalisation_is_folded_into_the_weights() {
        let (beta, gamma, mean, variance) = ([0.5; 6], [2.0; 6], [1.0; 6], [4.0 - EPSILON; 6]);
        let kernel: Vec<f32> = (0..18).map(|n| n as f32).collect();
        let numbers = [&beta[..], &gamma, &mean, &variance, &kernel].concat();
        let config = small("batch_normalize=1\npad=1\nactivation=leaky");
        let graph = to_onnx(config.as_bytes(), &weights(&numbers)).unwrap();
        assert!(holds(&graph, &bytes(&kernel)), "gamma ÷ √variance is 1");
        assert!(holds(&graph, &bytes(&[-0.5; 6])), "beta − mean");
        assert!(holds(&graph, &bytes(&[0.0, 0.0, 1.0, 0.0])), "two cells beside each other");
        assert!(holds(&graph, b"LeakyRelu") && holds(&graph, b"detections"));
        assert_eq!(graph, to_onnx(config.as_bytes(), &weights(&numbers)).unwrap());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let plain = small("activation=linear");
        let enough = weights(&[0.0; 24]);
        assert!(to_onnx(plain.as_bytes(), &enough).is_ok());
        let says = |config: &str, weights: &[u8], expected: &str| {
            let refused = to_onnx(config.as_bytes(), weights).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        };
        says(&plain, &enough[..115], "takes 18 more weights, and 17 are left");
        says(&plain, &weights(&[0.0; 25]), "4 bytes of its .weights are left over");
        says(&plain, &weights(&[f32::NAN; 24]), "are not numbers");
        says(&plain, b"GGUF and more of it", "do not begin with a version");
        says(&plain, b"short", "end within their header");
        says("", &enough, "is empty");
        says("width=3", &enough, "does not begin with a section");
        says("[net]\nwidth=3\nwidth=3", &enough, "line 3 of its .cfg says `width` a second time");
        says("[net]\nwidth", &enough, "line 2 of its .cfg is neither");
        says("[net]\nwidth=9999999\n", &enough, "`width=9999999` is more than");
        says(&plain.replace("filters=6", "filters=7"), &weights(&[0.0; 28]), "gives 7 channels");
        says(
            &plain.replace("[yolo]", "[detection]"),
            &enough,
            "layer 1, `[detection]` in line 12 of its .cfg",
        );
        says(&plain.replace("linear", "mish"), &enough, "`activation=mish` is not supported");
        says(&plain.replace("num=1", "scale_x_y=1.05"), &enough, "`scale_x_y` is not supported");
        says(&plain.replace("mask=0", "mask=1"), &enough, "names an anchor");
        says(&format!("{plain}[maxpool]\nsize=2"), &enough, "follows a `[yolo]`");
        says(&format!("{plain}[route]\nlayers=-1"), &enough, "no layer 1 before it");
        says(&format!("{plain}[route]\nlayers=-9"), &enough, "no layer -7 before it");
        says(&plain[..plain.find("[yolo]").unwrap()], &enough, "has no `[yolo]`");
        let wide = "[net]\nwidth=8192\nheight=8192\nchannels=3\n[convolutional]\nfilters=6\nsize=1\nactivation=linear\n";
        says(&format!("{wide}{HEAD}"), &enough, "more than 1000000 boxes");
    }

    proptest! {
        #[test]
        fn any_layers_are_converted_or_refused(
            layers in prop::collection::vec(prop::sample::select(vec![
                "[convolutional]\nfilters=6\nsize=3\nstride=2\npad=1\nactivation=leaky\n",
                "[convolutional]\nfilters=6\nsize=31\nactivation=linear\n",
                "[maxpool]\nsize=3\nstride=2\n", "[maxpool]\nsize=31\nstride=31\n", "[maxpool]\n", "[upsample]\nstride=8\n",
                "[route]\nlayers=-1,-1,0\n", "[route]\nlayers=-3\n", HEAD, "[net]\n", "filters=3\n",
            ]), 0..30),
            length in 0_usize..40_000,
        ) {
            let config = format!("[net]\nwidth=63\nheight=32\nchannels=3\n{}", layers.concat());
            let _ = to_onnx(config.as_bytes(), &weights(&vec![0.25; length]));
        }
    }
}
