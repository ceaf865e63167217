//! `tensor.infer/1`: tensors in, tensors out, for any graph.

use crate::batch::{self, Shapes};
use crate::convert;
use crate::session::{Engine, Port, Signature, gone};
use backplane_plugin::payload::tensor::Params;
use backplane_plugin::prelude::*;
use std::borrow::Cow;

/// How requests share runs.
#[derive(Clone, Debug)]
pub struct Infer {
    /// Whose input is wrong where one is: who named no model does not know.
    pub model: String,
    /// Whether they may.
    pub batch: bool,
    /// Most rows of a shared run.
    pub max_rows: usize,
}

/// A request that was found to fit the graph.
struct Job {
    request: Request,
    /// Places in [`Signature::outputs`], in the order they are wanted.
    outputs: Vec<usize>,
    shapes: Shapes,
}

impl Infer {
    /// What the card says, or what the graph says of itself.
    ///
    /// A first side of any length alone does not make a batch: it may be a sequence, whose rows depend on each other, and
    /// requests that shared a run would be answered wrongly. So the graph has to name it as a batch.
    ///
    /// # Errors
    /// When the card asks for what the graph cannot do.
    pub fn of(signature: &Signature, batch: Option<bool>, max_rows: usize, model: &str) -> Result<Self> {
        let mut ports = signature.inputs.iter().chain(&signature.outputs);
        let fixed = ports.find(|port| port.shape.first() != Some(&-1));
        let none = signature.inputs.is_empty() || !signature.others.is_empty();
        match (batch, fixed) {
            (Some(true), Some(port)) => Err(Error::invalid(format!(
                "[parameters] of model `{model}`: `batch` is true, and the first side of `{}` {:?} is not of any length",
                port.name, port.shape
            ))
            .with_param("parameters")),
            (said, fixed) => {
                let named = signature.inputs.iter().all(names_a_batch);
                let batch = said.unwrap_or(named) && fixed.is_none() && !none;
                Ok(Self { model: model.to_owned(), batch, max_rows })
            }
        }
    }

    /// Answers all requests.
    pub fn serve(&self, engine: &Engine, requests: Vec<Request>) {
        let started = requests.into_iter().filter_map(|request| self.start(engine.signature(), request));
        let jobs: Vec<Job> = started.collect();
        let groups = if self.batch && jobs.len() > 1 {
            let shapes: Vec<Shapes> = jobs.iter().map(|job| job.shapes.clone()).collect();
            batch::group(&shapes, self.max_rows)
        } else {
            (0..jobs.len()).map(|job| vec![job]).collect()
        };
        let mut jobs: Vec<Option<Job>> = jobs.into_iter().map(Some).collect();
        for group in groups {
            let group =
                group.into_iter().filter_map(|job| jobs[job].take()).filter_map(still_wanted).collect();
            run(engine, group);
        }
    }

    fn start(&self, signature: &Signature, request: Request) -> Option<Job> {
        let request = wanted(request)?;
        match read(signature, &request) {
            Ok((outputs, shapes)) => Some(Job { request, outputs, shapes }),
            Err(mut error) => {
                error.message.insert_str(0, &format!("model `{}`: ", self.model));
                request.finish(Err(error));
                None
            }
        }
    }
}

/// Whether its first side is called a batch.
fn names_a_batch(port: &Port) -> bool {
    let name = port.symbols.first().map(|symbol| symbol.to_ascii_lowercase()).unwrap_or_default();
    name.contains("batch") || matches!(name.as_str(), "n" | "b" | "bs" | "bsz")
}

fn still_wanted(job: Job) -> Option<Job> {
    let Job { request, outputs, shapes } = job;
    Some(Job { request: wanted(request)?, outputs, shapes })
}

/// The request, unless its caller has left.
fn wanted(request: Request) -> Option<Request> {
    match gone(&request) {
        None => Some(request),
        Some(error) => {
            request.finish(Err(error));
            None
        }
    }
}

/// Runs requests that agree together; when that fails, each alone.
fn run(engine: &Engine, jobs: Vec<Job>) {
    match compute(engine, &jobs) {
        Ok(answers) => {
            for (job, chunk) in jobs.into_iter().zip(answers) {
                let pushed = job.request.push(&chunk);
                job.request.finish(pushed.map(|()| Done::new()));
            }
        }
        Err(_) if jobs.len() > 1 => {
            jobs.into_iter().filter_map(still_wanted).for_each(|job| run(engine, vec![job]));
        }
        Err(error) => jobs.into_iter().for_each(|job| job.request.finish(Err(error.clone()))),
    }
}

fn compute(engine: &Engine, jobs: &[Job]) -> Result<Vec<Chunk>> {
    let signature = engine.signature();
    let requests: Vec<&Request> = jobs.iter().map(|job| &job.request).collect();
    let tensors = requests.iter().map(|request| request.tensors()).collect::<Result<Vec<_>>>()?;
    let inputs = signature.inputs.iter().map(|port| {
        let parts = tensors.iter().filter_map(|tensors| named(tensors, &port.name)).collect::<Vec<_>>();
        Ok((Cow::Borrowed(port.name.as_str()), convert::join(&parts)?))
    });
    let mut outputs: Vec<_> =
        engine.run(&requests, inputs.collect::<Result<_>>()?)?.into_iter().map(Some).collect();

    let rows: Vec<usize> = jobs.iter().filter_map(|job| batch::rows(&job.shapes)).collect();
    let parts = (jobs.len() > 1).then_some(&rows[..]);
    let mut answers: Vec<Vec<Option<Tensor>>> =
        jobs.iter().map(|job| job.outputs.iter().map(|_| None).collect()).collect();
    for (place, port) in signature.outputs.iter().enumerate() {
        let wanted = |job: &Job| job.outputs.iter().position(|output| *output == place);
        let Some(output) =
            outputs[port.index].take().filter(|_| jobs.iter().any(|job| wanted(job).is_some()))
        else {
            continue;
        };
        let cut = convert::split(&port.name, output, parts)?;
        for ((job, answer), tensor) in jobs.iter().zip(&mut answers).zip(cut) {
            if let Some(at) = wanted(job) {
                answer[at] = Some(tensor);
            }
        }
    }
    let chunk =
        |tensors: Vec<Option<Tensor>>| tensors.into_iter().flatten().fold(Chunk::new(), Chunk::tensor);
    Ok(answers.into_iter().map(chunk).collect())
}

fn named<'a>(tensors: &[TensorView<'a>], name: &str) -> Option<TensorView<'a>> {
    tensors.iter().find(|tensor| tensor.name() == name).copied()
}

/// Checks a request against the graph: which outputs it wants, and the shapes of its tensors.
fn read(signature: &Signature, request: &Request) -> Result<(Vec<usize>, Shapes)> {
    let params: Params = request.params()?;
    refuse_unknown::<Params>(&params.extra)?;
    let tensors = request.tensors()?;
    if let Some(unknown) =
        tensors.iter().find(|tensor| signature.inputs.iter().all(|port| port.name != tensor.name()))
    {
        let inputs = list(&signature.inputs);
        return Err(Error::invalid(format!("no input is called `{}`; it takes {inputs}", unknown.name()))
            .with_param(unknown.name()));
    }
    let shapes = signature.inputs.iter().map(|port| check(port, named(&tensors, &port.name)));
    Ok((outputs(signature, &params)?, shapes.collect::<Result<_>>()?))
}

/// The shape of a tensor that fits its port.
fn check(port: &Port, tensor: Option<TensorView<'_>>) -> Result<Vec<i64>> {
    let (name, takes) = (&port.name, describe(port));
    let wrong = |what: String| Error::invalid(what).with_param(name.as_str());
    let Some(tensor) = tensor else {
        return Err(wrong(format!("input `{name}` is missing; the model takes {takes}")));
    };
    if tensor.dtype() != port.dtype {
        return Err(wrong(format!(
            "tensor `{name}` is {}, and the model takes {takes}",
            tensor.dtype().name()
        )));
    }
    let fits = |(&has, &takes): (&i64, &i64)| takes < 0 || has == takes;
    let shape = tensor.shape();
    // A port without sides is a scalar, or says nothing of its shape: ONNX Runtime knows which.
    if !port.shape.is_empty() && (shape.len() != port.shape.len() || !shape.iter().zip(&port.shape).all(fits))
    {
        return Err(wrong(format!("tensor `{name}` is {shape:?}, and the model takes {takes}")));
    }
    Ok(shape.to_vec())
}

/// Places of the outputs that are wanted.
fn outputs(signature: &Signature, params: &Params) -> Result<Vec<usize>> {
    if params.outputs.is_empty() {
        return Ok((0..signature.outputs.len()).collect());
    }
    let mut places: Vec<usize> = Vec::new();
    for name in &params.outputs {
        let wrong = |what: String| Error::invalid(what).with_param("outputs");
        let place = signature.outputs.iter().position(|port| port.name == *name).ok_or_else(|| {
            match signature.others.iter().find(|(other, _)| other == name) {
                Some((_, what)) => wrong(format!("output `{name}` is {what}, which no answer can carry")),
                None => wrong(format!("it has no output `{name}`; it gives {}", list(&signature.outputs))),
            }
        })?;
        if places.contains(&place) {
            return Err(wrong(format!("output `{name}` is asked for twice")));
        }
        places.push(place);
    }
    Ok(places)
}

fn list(ports: &[Port]) -> String {
    ports.iter().map(|port| format!("`{}` {}", port.name, describe(port))).collect::<Vec<_>>().join(", ")
}

fn describe(port: &Port) -> String {
    format!("{} {:?}", port.dtype.name(), port.shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, shape: &[i64], symbol: &str) -> Port {
        let symbols = shape.iter().map(|_| symbol.to_owned()).collect();
        Port { name: name.to_owned(), dtype: DType::Fp32, shape: shape.to_vec(), symbols, index: 0 }
    }

    fn signature(inputs: Vec<Port>, outputs: Vec<Port>) -> Signature {
        Signature { inputs, outputs, others: Vec::new() }
    }

    #[test]
    fn only_what_is_called_a_batch_is_one() {
        let of = |shape: &[i64], symbol: &str, said| {
            let signature = signature(vec![port("x", shape, symbol)], vec![port("y", &[-1, 3], "")]);
            Infer::of(&signature, said, 8, "m").map(|infer| infer.batch)
        };
        assert!(of(&[-1, 2], "batch_size", None).unwrap());
        assert!(of(&[-1, 2], "N", None).unwrap());
        assert!(!of(&[-1, 2], "sequence", None).unwrap());
        assert!(!of(&[-1, 2], "unk__214", None).unwrap());
        assert!(of(&[-1, 2], "unk__214", Some(true)).unwrap(), "the card knows better");
        assert!(!of(&[-1, 2], "batch", Some(false)).unwrap());
        assert!(!of(&[4, 2], "batch", None).unwrap());
        assert!(of(&[4, 2], "batch", Some(true)).unwrap_err().message.contains("`x` [4, 2]"));
    }

    #[test]
    fn outputs_are_found_by_name() {
        let mut signature = signature(vec![], vec![port("a", &[-1], ""), port("b", &[-1], "")]);
        signature.others.push(("map".to_owned(), "a Map<i64, f32>".to_owned()));
        let of = |names: &[&str]| {
            let params = Params {
                outputs: names.iter().map(|name| (*name).to_owned()).collect(),
                ..Params::default()
            };
            outputs(&signature, &params)
        };
        assert_eq!(of(&[]).unwrap(), [0, 1]);
        assert_eq!(of(&["b"]).unwrap(), [1]);
        assert_eq!(of(&["b", "a"]).unwrap(), [1, 0]);
        assert!(of(&["c"]).unwrap_err().message.contains("no output `c`; it gives `a` FP32 [-1]"));
        assert!(of(&["a", "a"]).unwrap_err().message.contains("twice"));
        assert!(of(&["map"]).unwrap_err().message.contains("is a Map<i64, f32>"));
    }
}
