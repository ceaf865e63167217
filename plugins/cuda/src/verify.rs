//! A card's checks: inputs with the outputs that belong to them, run on whatever is to serve the kernel.

use crate::card::{Card, Check, Port};
use crate::plan::{Bounds, Given, Plan};
use backplane_plugin::prelude::*;
use half::{bf16, f16};

/// What runs a plan: a device; in tests, the processor.
pub trait Executor {
    /// What it allows.
    fn bounds(&self) -> Bounds;

    /// Runs a plan with the memory of its inputs, in the card's order, and gives that of its outputs.
    ///
    /// # Errors
    /// When the device fails.
    fn run(&self, plan: &Plan, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>>;
}

/// Runs all checks of a card.
///
/// # Errors
/// The first element that is not what the card says, or why nothing could be run.
pub fn verify(card: &Card, executor: &impl Executor) -> Result<()> {
    for (number, check) in card.checks.iter().enumerate() {
        verify_one(card, check, executor).map_err(|mut error| {
            error.message = format!("checks[{number}]: {}", error.message);
            error
        })?;
    }
    Ok(())
}

fn verify_one(card: &Card, check: &Check, executor: &impl Executor) -> Result<()> {
    let mut given = Vec::new();
    let mut memory = Vec::new();
    for port in &card.inputs {
        let Some(written) = check.inputs.get(&port.name) else { continue };
        given.push(Given { name: &port.name, dtype: port.dtype, shape: &written.shape });
        memory.push(encode(port, &written.data)?);
    }
    let plan = Plan::of(card, &given, &check.numbers, &executor.bounds())?;
    let inputs: Vec<&[u8]> = memory.iter().map(Vec::as_slice).collect();
    let outputs = executor.run(&plan, &inputs)?;
    for (port, output) in card.outputs.iter().zip(outputs) {
        let Some(expected) = check.outputs.get(&port.name) else { continue };
        let found = decode(port.dtype, &output);
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(wrong(format!(
                "output `{}` has {found} elements, and the card says {expected}",
                port.name
            )));
        }
        for (at, (found, expected)) in found.into_iter().zip(expected).enumerate() {
            let far = check.tolerance * (1.0 + expected.abs());
            // A NaN is near nothing.
            let near =
                if is_float(port.dtype) { (found - expected).abs() <= far } else { found == *expected };
            if !near {
                return Err(wrong(format!(
                    "output `{}`[{at}] is {found}, and the card says {expected}",
                    port.name
                )));
            }
        }
    }
    Ok(())
}

fn wrong(what: String) -> Error {
    Error::model_invalid(what)
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64)
}

/// Numbers as a tensor holds them. One that its type cannot hold is an error.
fn encode(port: &Port, numbers: &[f64]) -> Result<Vec<u8>> {
    let dtype = port.dtype;
    let mut memory = Vec::with_capacity(numbers.len() * dtype.size().unwrap_or(0));
    for &number in numbers {
        match dtype {
            DType::Bool | DType::Uint8 => memory.extend((number as u8).to_le_bytes()),
            DType::Uint16 => memory.extend((number as u16).to_le_bytes()),
            DType::Uint32 => memory.extend((number as u32).to_le_bytes()),
            DType::Uint64 => memory.extend((number as u64).to_le_bytes()),
            DType::Int8 => memory.extend((number as i8).to_le_bytes()),
            DType::Int16 => memory.extend((number as i16).to_le_bytes()),
            DType::Int32 => memory.extend((number as i32).to_le_bytes()),
            DType::Int64 => memory.extend((number as i64).to_le_bytes()),
            DType::Fp16 => memory.extend(f16::from_f64(number).to_le_bytes()),
            DType::Bf16 => memory.extend(bf16::from_f64(number).to_le_bytes()),
            DType::Fp32 => memory.extend((number as f32).to_le_bytes()),
            DType::Fp64 => memory.extend(number.to_le_bytes()),
            DType::Bytes => return Err(wrong(format!("input `{}` is of BYTES", port.name))),
        }
    }
    let back = decode(dtype, &memory);
    match numbers.iter().zip(back).find(|(number, back)| !is_float(dtype) && **number != *back) {
        Some((number, _)) => Err(wrong(format!("input `{}`: {number} is no {}", port.name, dtype.name()))),
        None => Ok(memory),
    }
}

fn decode(dtype: DType, memory: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(memory: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        memory.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
    }
    match dtype {
        DType::Bool | DType::Uint8 => each(memory, |[byte]| f64::from(byte)),
        DType::Uint16 => each(memory, |bytes| f64::from(u16::from_le_bytes(bytes))),
        DType::Uint32 => each(memory, |bytes| f64::from(u32::from_le_bytes(bytes))),
        DType::Uint64 => each(memory, |bytes| u64::from_le_bytes(bytes) as f64),
        DType::Int8 => each(memory, |bytes| f64::from(i8::from_le_bytes(bytes))),
        DType::Int16 => each(memory, |bytes| f64::from(i16::from_le_bytes(bytes))),
        DType::Int32 => each(memory, |bytes| f64::from(i32::from_le_bytes(bytes))),
        DType::Int64 => each(memory, |bytes| i64::from_le_bytes(bytes) as f64),
        DType::Fp16 => each(memory, |bytes| f16::from_le_bytes(bytes).to_f64()),
        DType::Bf16 => each(memory, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        DType::Fp32 => each(memory, |bytes| f64::from(f32::from_le_bytes(bytes))),
        DType::Fp64 => each(memory, f64::from_le_bytes),
        DType::Bytes => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Argument;

    /// Adds the number that the kernel is called with to each byte.
    struct Adds(u8);

    impl Executor for Adds {
        fn bounds(&self) -> Bounds {
            Bounds::EVERY
        }

        fn run(&self, plan: &Plan, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
            assert_eq!(plan.launches[0].arguments[2], Argument::Number(3));
            Ok(vec![inputs[0].iter().map(|byte| byte + self.0).collect()])
        }
    }

    fn card(check: &str) -> Card {
        let text = format!(
            r#"
            inputs = [{{ name = "x", dtype = "UINT8", shape = ["n"] }}]
            outputs = [{{ name = "y", dtype = "UINT8", shape = ["n"] }}]
            launch = [{{ entry = "f", grid = [1], block = [1], arguments = ["x", "y", "n"] }}]
            [[checks]]
            {check}
            "#
        );
        serde_json::from_value(serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap())
            .unwrap()
    }

    #[test]
    fn a_kernel_that_does_something_else_is_refused() {
        let good = card("inputs.x = { shape = [3], data = [1, 2, 3] }\noutputs.y = [2, 3, 4]");
        verify(&good, &Adds(1)).unwrap();
        let error = verify(&good, &Adds(2)).unwrap_err();
        assert_eq!(error.message, "checks[0]: output `y`[0] is 3, and the card says 2");
        assert_eq!(error.reason.as_deref(), Some("model_invalid"));
        let short = card("inputs.x = { shape = [3], data = [1, 2, 3] }\noutputs.y = [2, 3]");
        assert!(
            verify(&short, &Adds(1)).unwrap_err().message.contains("has 3 elements, and the card says 2")
        );
        let large = card("inputs.x = { shape = [3], data = [1, 2, 300] }\noutputs.y = [2, 3, 4]");
        assert!(verify(&large, &Adds(1)).unwrap_err().message.contains("300 is no UINT8"));
    }

    #[test]
    fn numbers_survive_every_type() {
        let port = |dtype| Port { name: "x".to_owned(), dtype, shape: Vec::new() };
        for dtype in [
            DType::Bool,
            DType::Uint8,
            DType::Uint16,
            DType::Uint32,
            DType::Uint64,
            DType::Int8,
            DType::Int16,
            DType::Int32,
            DType::Int64,
            DType::Fp16,
            DType::Bf16,
            DType::Fp32,
            DType::Fp64,
        ] {
            assert_eq!(
                decode(dtype, &encode(&port(dtype), &[0.0, 1.0]).unwrap()),
                [0.0, 1.0],
                "{}",
                dtype.name()
            );
        }
        assert_eq!(decode(DType::Int16, &encode(&port(DType::Int16), &[-300.0]).unwrap()), [-300.0]);
        assert!(encode(&port(DType::Int8), &[0.5]).is_err());
    }
}
