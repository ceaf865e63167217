//! A request against a card: every size known, every limit held, before anything touches a device. Pure.

use crate::card::{Card, Port};
use crate::expr::Numbers;
use backplane_plugin::prelude::*;

/// What a device allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Threads of a block.
    pub threads: i64,
    /// Sides of a block.
    pub block: [i64; 3],
    /// Sides of a grid.
    pub grid: [i64; 3],
    /// Bytes of shared memory of a block.
    pub shared: i64,
}

impl Bounds {
    /// What every device since compute capability 7.0 allows.
    pub const EVERY: Self = Self {
        threads: 1024,
        block: [1024, 1024, 64],
        grid: [i32::MAX as i64, 65_535, 65_535],
        shared: 48 << 10,
    };
}

/// A request with all its sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Sizes of the card's tensors: inputs, outputs, scratch, in the card's order.
    pub tensors: Vec<Sized>,
    pub launches: Vec<Launch>,
}

/// A tensor with its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Sized {
    pub shape: Vec<i64>,
    pub bytes: usize,
}

/// One run of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub entry: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub arguments: Vec<Argument>,
}

/// What a function is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// The place of a tensor in [`Plan::tensors`].
    Tensor(usize),
    /// A `long long`.
    Number(i64),
}

/// Type and shape of a tensor that a request gives.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    pub name: &'a str,
    pub dtype: DType,
    pub shape: &'a [i64],
}

impl Plan {
    /// Sizes everything.
    ///
    /// # Errors
    /// What of the request does not fit the card, or what of the card the device.
    pub fn of(card: &Card, given: &[Given<'_>], numbers: &Numbers, bounds: &Bounds) -> Result<Self> {
        let mut known = numbers_of(card, numbers)?;
        bind(card, given, &mut known)?;
        let mut all = 0_u64;
        let mut tensors = Vec::new();
        for port in card.ports() {
            let sized = size(port, &known)?;
            all = all.saturating_add(sized.bytes as u64);
            tensors.push(sized);
        }
        if card.limits.memory() < all {
            let message = format!(
                "the request needs {all} bytes on the device, and the kernel's card allows {}",
                card.limits.memory()
            );
            return Err(Error::invalid(message));
        }
        let launches = card.launch.iter().map(|launch| {
            let place = |name: &str| card.ports().position(|port| port.name == name);
            sized_launch(launch, &known, bounds, place)
                .map_err(|what| Error::invalid(format!("launch of `{}`: {what}", launch.entry)))
        });
        Ok(Self { tensors, launches: launches.collect::<Result<_>>()? })
    }
}

/// What the request gives, and what it leaves to the card.
fn numbers_of(card: &Card, given: &Numbers) -> Result<Numbers> {
    if let Some(name) = given.keys().find(|name| !card.numbers.contains_key(*name)) {
        let message = format!("the kernel does not know the parameter `{name}`");
        return Err(Error::invalid(message).with_param(&**name));
    }
    let number = |(name, number): (&String, &crate::card::Number)| {
        let wrong = |what: String| Error::invalid(what).with_param(&**name);
        let value = given.get(name).copied().or(number.default);
        let value = value.ok_or_else(|| wrong(format!("`{name}` is missing")))?;
        if !(number.min..=number.max).contains(&value) {
            return Err(wrong(format!(
                "`{name}` is {value}, and must be from {} to {}",
                number.min, number.max
            )));
        }
        Ok((name.clone(), value))
    };
    card.numbers.iter().map(number).collect()
}

/// Gives names the sides of inputs, and holds all other sides to what the card says.
fn bind(card: &Card, given: &[Given<'_>], known: &mut Numbers) -> Result<()> {
    let takes = || card.inputs.iter().map(describe).collect::<Vec<_>>().join(", ");
    if let Some(other) = given.iter().find(|given| card.inputs.iter().all(|port| port.name != given.name)) {
        let message = format!("the kernel has no input `{}`; it takes {}", other.name, takes());
        return Err(Error::invalid(message).with_param(other.name));
    }
    for port in &card.inputs {
        let wrong = |what: String| Error::invalid(what).with_param(&*port.name);
        let Some(tensor) = given.iter().find(|given| given.name == port.name) else {
            return Err(wrong(format!("input `{}` is missing; the kernel takes {}", port.name, takes())));
        };
        if tensor.dtype != port.dtype || tensor.shape.len() != port.shape.len() {
            let (has, shape) = (tensor.dtype.name(), tensor.shape);
            return Err(wrong(format!(
                "tensor `{}` is {has} {shape:?}, and the kernel takes {}",
                port.name,
                describe(port)
            )));
        }
        for (place, (side, &length)) in port.shape.iter().zip(tensor.shape).enumerate() {
            if length < 1 {
                return Err(wrong(format!(
                    "side {place} of tensor `{}` is {length}, and must be at least 1",
                    port.name
                )));
            }
            let expected = match side.name() {
                Some(name) => *known.entry(name.to_owned()).or_insert(length),
                None => side.value(known).map_err(&wrong)?,
            };
            if length != expected {
                let message =
                    format!("side {place} of tensor `{}` is {length}, and `{side}` is {expected}", port.name);
                return Err(wrong(message));
            }
            if let Some([least, most]) = side.name().and_then(|name| card.limits.sides.get(name))
                && !(least..=most).contains(&&length)
            {
                let message = format!(
                    "side {place} of tensor `{}` is {length}, and `{side}` must be from {least} to {most}",
                    port.name
                );
                return Err(wrong(message));
            }
        }
    }
    Ok(())
}

fn size(port: &Port, known: &Numbers) -> Result<Sized> {
    let wrong = |what: String| Error::invalid(format!("tensor `{}`: {what}", port.name));
    let shape =
        port.shape.iter().map(|side| side.value(known)).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let elements = shape.iter().try_fold(1_i64, |all, side| all.checked_mul(*side));
    let bytes = elements
        .zip(port.dtype.size())
        .and_then(|(count, size)| usize::try_from(count).ok()?.checked_mul(size));
    match bytes {
        Some(0) => Err(wrong(format!("{shape:?} is empty"))),
        Some(bytes) => Ok(Sized { shape, bytes }),
        None => Err(wrong(format!("{shape:?} is larger than any memory"))),
    }
}

fn sized_launch(
    launch: &crate::card::Launch,
    known: &Numbers,
    bounds: &Bounds,
    place: impl Fn(&str) -> Option<usize>,
) -> Result<Launch, String> {
    let sides = |what: &str, sides: &[crate::expr::Expr], most: [i64; 3]| -> Result<[u32; 3], String> {
        let mut all = [1; 3];
        for ((number, (side, most)), place) in sides.iter().zip(most).enumerate().zip(&mut all) {
            let value = side.value(known)?;
            if !(1..=most).contains(&value) {
                return Err(format!("{what}[{number}] is {value}, and must be from 1 to {most}"));
            }
            *place = value as u32;
        }
        Ok(all)
    };
    let (grid, block) =
        (sides("grid", &launch.grid, bounds.grid)?, sides("block", &launch.block, bounds.block)?);
    let threads: i64 = block.iter().map(|side| i64::from(*side)).product();
    if bounds.threads < threads {
        return Err(format!("a block has {threads} threads, and may have {}", bounds.threads));
    }
    let shared = launch.shared.value(known)?;
    if bounds.shared < shared {
        return Err(format!("a block needs {shared} bytes of shared memory, and may have {}", bounds.shared));
    }
    let arguments = launch.arguments.iter().map(|argument| match argument.name().and_then(&place) {
        Some(place) => Ok(Argument::Tensor(place)),
        None => argument.value(known).map(Argument::Number),
    });
    let arguments = arguments.collect::<Result<_, _>>()?;
    Ok(Launch { entry: launch.entry.clone(), grid, block, shared: shared as u32, arguments })
}

/// A tensor as a caller is told of it: `x` FP32 [n, 4].
fn describe(port: &Port) -> String {
    let sides: Vec<String> = port.shape.iter().map(ToString::to_string).collect();
    format!("`{}` {} [{}]", port.name, port.dtype.name(), sides.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        let text = r#"
            inputs = [
                { name = "x", dtype = "FP32", shape = ["n", 4] },
                { name = "w", dtype = "UINT8", shape = ["n + 1", "m"] },
            ]
            outputs = [{ name = "y", dtype = "FP16", shape = ["n", "size"] }]
            scratch = [{ name = "s", dtype = "INT64", shape = ["m"] }]
            numbers.size = { min = 1, max = 8, default = 2 }
            limits.sides.n = [1, 3000]
            limits.memory = 100000

            [[launch]]
            entry = "f"
            grid = ["ceil_div(n, 256)", "m"]
            block = ["32 * size"]
            shared = "n * 16"
            arguments = ["x", "s", "n", "y", "size * 2"]
        "#;
        let parameters: toml::Table = toml::from_str(text).unwrap();
        serde_json::from_value(serde_json::to_value(parameters).unwrap()).unwrap()
    }

    fn plan(n: i64, more: i64, m: i64, size: Option<i64>) -> Result<Plan> {
        let (x, w) = ([n, 4], [n + more, m]);
        let given = [
            Given { name: "w", dtype: DType::Uint8, shape: &w },
            Given { name: "x", dtype: DType::Fp32, shape: &x },
        ];
        let numbers = size.map(|size| ("size".to_owned(), size)).into_iter().collect();
        Plan::of(&card(), &given, &numbers, &Bounds::EVERY)
    }

    #[test]
    fn sizes_follow_from_the_inputs() {
        let plan = plan(300, 1, 5, None).unwrap();
        let bytes: Vec<usize> = plan.tensors.iter().map(|tensor| tensor.bytes).collect();
        assert_eq!(bytes, [4800, 1505, 1200, 40]);
        let [launch] = &plan.launches[..] else { panic!("one launch") };
        assert_eq!((launch.grid, launch.block, launch.shared), ([2, 5, 1], [64, 1, 1], 4800));
        use Argument::{Number, Tensor};
        assert_eq!(launch.arguments, [Tensor(0), Tensor(3), Number(300), Tensor(2), Number(4)]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (asked, says) in [
            (plan(300, 2, 5, None), "side 0 of tensor `w` is 302, and `n + 1` is 301"),
            (plan(300, 1, 0, None), "side 1 of tensor `w` is 0, and must be at least 1"),
            (plan(3001, 1, 5, None), "`n` must be from 1 to 3000"),
            (plan(300, 1, 5, Some(9)), "`size` is 9, and must be from 1 to 8"),
            (plan(300, 1, 5000, None), "bytes on the device, and the kernel's card allows 100000"),
            (
                plan(1, 1, 65_536, None).map_err(|_| Error::invalid("")).or(Plan::of(
                    &{
                        let mut card = card();
                        card.limits.memory = None;
                        card
                    },
                    &[
                        Given { name: "w", dtype: DType::Uint8, shape: &[2, 65_536] },
                        Given { name: "x", dtype: DType::Fp32, shape: &[1, 4] },
                    ],
                    &Numbers::new(),
                    &Bounds::EVERY,
                )),
                "grid[1] is 65536, and must be from 1 to 65535",
            ),
            (
                Plan::of(&card(), &[], &Numbers::new(), &Bounds::EVERY),
                "input `x` is missing; the kernel takes `x` FP32 [n, 4], `w` UINT8 [n + 1, m]",
            ),
            (
                Plan::of(&card(), &[], &[("sise".to_owned(), 1)].into(), &Bounds::EVERY),
                "does not know the parameter `sise`",
            ),
            (
                Plan::of(
                    &card(),
                    &[Given { name: "z", dtype: DType::Int8, shape: &[] }],
                    &Numbers::new(),
                    &Bounds::EVERY,
                ),
                "no input `z`",
            ),
            (
                Plan::of(
                    &card(),
                    &[Given { name: "x", dtype: DType::Fp16, shape: &[1, 4] }],
                    &Numbers::new(),
                    &Bounds::EVERY,
                ),
                "tensor `x` is FP16 [1, 4]",
            ),
        ] {
            let error = asked.unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
        let small = Bounds { threads: 63, shared: 4799, ..Bounds::EVERY };
        let x = [
            Given { name: "x", dtype: DType::Fp32, shape: &[300, 4] },
            Given { name: "w", dtype: DType::Uint8, shape: &[301, 1] },
        ];
        let of = |bounds| Plan::of(&card(), &x, &Numbers::new(), &bounds).unwrap_err().message;
        assert!(of(small).contains("a block has 64 threads, and may have 63"));
        assert!(
            of(Bounds { threads: 64, ..small }).contains("4800 bytes of shared memory, and may have 4799")
        );
    }
}
