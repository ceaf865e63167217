//! One request: `tensor.infer` on a kernel.

use crate::card::Card;
use crate::expr::Numbers;
use crate::gpu::{Kernel, Product, Source};
use crate::plan::{Given, Plan};
use crate::verify::Executor;
use backplane_plugin::Input;
use backplane_plugin::payload::tensor::Params;
use backplane_plugin::prelude::*;
use std::time::Instant;

/// Serves a request.
///
/// # Errors
/// What of it does not fit the card, or what the device says.
pub fn serve(card: &Card, kernel: &Kernel, request: &Request) -> Result<Done> {
    let params: Params = request.params()?;
    let wanted = outputs(card, &params)?;
    let numbers = numbers(&params)?;
    let tensors = request.inputs()?;
    let given: Vec<Given<'_>> = tensors
        .iter()
        .map(|tensor| Given { name: tensor.name(), dtype: tensor.dtype(), shape: tensor.shape() })
        .collect();
    let plan = Plan::of(card, &given, &numbers, &kernel.bounds())?;
    // A kernel cannot be broken off once it runs.
    if request.is_cancelled() {
        return Err(Error::cancelled());
    }
    if request.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the kernel was started"));
    }
    let source = |name: &str| {
        tensors.iter().find(|tensor| tensor.name() == name).map(|tensor| match tensor {
            Input::Here(tensor) => Source::Bytes(tensor.bytes()),
            Input::Device(tensor) => Source::Device(tensor),
        })
    };
    let inputs: Vec<Source<'_>> = card.inputs.iter().filter_map(|port| source(&port.name)).collect();
    let answers = kernel.run_on(&plan, &inputs, request.keeps_on_device())?;
    let mut answers: Vec<Option<Product>> = answers.into_iter().map(Some).collect();
    let mut chunk = Chunk::new();
    for place in wanted {
        let (port, sized) = (&card.outputs[place], &plan.tensors[inputs.len() + place]);
        let (name, dtype, shape) = (&*port.name, port.dtype, &sized.shape);
        match answers[place].take() {
            Some(Product::Bytes(bytes)) => chunk = chunk.tensor(Tensor::raw(name, dtype, shape, bytes)?),
            Some(Product::Device(memory)) => {
                chunk = chunk.tensor(Tensor::on_device(name, dtype, shape, memory)?);
            }
            None => {}
        }
    }
    request.push(&chunk)?;
    Ok(Done::new())
}

/// Places of the outputs that are wanted.
fn outputs(card: &Card, params: &Params) -> Result<Vec<usize>> {
    if params.outputs.is_empty() {
        return Ok((0..card.outputs.len()).collect());
    }
    let mut places = Vec::new();
    for name in &params.outputs {
        let wrong = |what: String| Err(Error::invalid(what).with_param("outputs"));
        match card.outputs.iter().position(|port| port.name == *name) {
            None => return wrong(format!("the kernel has no output `{name}`")),
            Some(place) if places.contains(&place) => {
                return wrong(format!("output `{name}` is asked for twice"));
            }
            Some(place) => places.push(place),
        }
    }
    Ok(places)
}

/// The numbers beside the tensors.
fn numbers(params: &Params) -> Result<Numbers> {
    let number = |(name, value): (&String, &Value)| {
        let wrong =
            || Error::invalid(format!("`{name}` must be a whole number; got {value}")).with_param(&**name);
        Ok((name.clone(), value.as_i64().ok_or_else(wrong)?))
    };
    params.extra.iter().map(number).collect()
}
