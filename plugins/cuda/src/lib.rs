//! CUDA: kernels as models.
//!
//! A model of the format `cuda` is a `.cu` file and a card that says what goes in, what comes out and how it is launched.
//! It is compiled when it is opened, by NVRTC, for the GPU that is there; its card's checks are run on it; from then on it
//! serves `tensor.infer`.
//!
//! - [`card`]: what a card says; [`expr`]: its expressions; [`plan`]: a request against it. Pure.
//! - [`verify`]: a card's checks. [`infer`]: one request.
//! - [`compiler`]: NVRTC. [`device`]: the GPU. [`sys`]: what of both is `unsafe`.
//!
//! Without a driver the plugin says so in its bid, takes nothing, and costs nothing.

mod card;
mod compiler;
mod device;
mod expr;
mod infer;
mod plan;
mod sys;
mod verify;

// For the tests of the kernels, which have no GPU.
#[doc(hidden)]
pub use card::Card;
#[doc(hidden)]
pub use compiler::{Compiler, Settings};
#[doc(hidden)]
pub use plan::{Argument, Bounds, Given, Plan};
#[doc(hidden)]
pub use verify::{Executor, verify};

use backplane_plugin::payload::tensor::CAPABILITY;
use backplane_plugin::prelude::*;
use device::{Device, Kernel};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The format this plugin opens.
const FORMAT: &str = "cuda";
/// Bytes of a kernel's source.
const SOURCE: u64 = 1 << 20;
/// Memory of the host's that a context of the driver's takes, about.
const CONTEXT: u64 = 256 << 20;

/// The library.
struct CudaPlugin {
    host: Host,
    compiler: Arc<Compiler>,
    ordinal: usize,
}

impl Plugin for CudaPlugin {
    const ID: &'static str = "dev.backplane.cuda";

    fn init(host: Host, config: &Value) -> Result<Self> {
        let settings: Settings = serde_json::from_value(config.clone())
            .map_err(|error| Error::invalid(format!("settings of the cuda plugin: {error}")))?;
        if let Err(error) = device::check() {
            host.log(Level::Info, error.message);
        }
        let ordinal = settings.device;
        Ok(Self { host, compiler: Arc::new(Compiler::new(settings)), ordinal })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        let model = query.model().unwrap_or_default();
        if query.format != FORMAT && model.format != FORMAT {
            return Bid::no(BidReason::Format, format!("only the format `{FORMAT}` can be opened"));
        }
        if let Err(error) = device::check() {
            return Bid::no(BidReason::Device, error.message);
        }
        if let Err(error) = self.compiler.check() {
            // Asked again soon: it may be installed any moment.
            return Bid { valid_ms: 1_000, ..Bid::no(BidReason::Runtime, error.message) };
        }
        Bid { host_bytes: CONTEXT, ..Bid::default() }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        if let Some(other) = model.capabilities.iter().find(|name| *name != CAPABILITY) {
            let message =
                format!("model `{}` is to serve `{other}`, and a kernel serves `{CAPABILITY}`", model.name);
            return Err(Error::new(Code::Unimplemented, message).with_param("capabilities"));
        }
        let card = Arc::new(Card::of(model)?);
        let (source, name) = source(model)?;
        let device = Device::open(self.ordinal)?;
        let image = self.compiler.compile(&card, &source, &name, device.capability)?;
        self.host.log(Level::Info, format!("model `{}` is compiled for {}", model.name, device.name));
        let kernel = device.load(&card, &image)?;
        verify(&card, &kernel)?;
        Ok(Box::new(KernelModel { card, image, ordinal: self.ordinal, first: Mutex::new(Some(kernel)) }))
    }
}

/// A kernel's source, and what it is called in errors: its own name, not where it lies.
fn source(model: &ModelSpec) -> Result<(String, String)> {
    let file = model.files.iter().find(|file| file.role == "model");
    let file = file.ok_or_else(|| {
        Error::invalid(format!("the card of model `{}` names no file with role `model`", model.name))
    })?;
    let given = Path::new(&file.name).file_name().map(|name| name.to_string_lossy().into_owned());
    let name = given.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("{}.cu", model.name));
    if SOURCE < file.size {
        return Err(Error::model_invalid(format!("`{name}` has {} bytes, and may have {SOURCE}", file.size)));
    }
    let source = std::fs::read_to_string(&file.path)
        .map_err(|error| Error::model_invalid(format!("`{name}` cannot be read: {}", error.kind())))?;
    Ok((source, name))
}

/// An opened kernel.
struct KernelModel {
    card: Arc<Card>,
    image: Vec<u8>,
    ordinal: usize,
    /// The one that the checks ran on: the first instance's.
    first: Mutex<Option<Kernel>>,
}

impl Model for KernelModel {
    fn execution(&self) -> Execution {
        Execution::Serial { max_batch: 1 }
    }

    fn describe(&self) -> Description {
        let spec = |port: &card::Port| TensorSpec {
            name: port.name.clone(),
            datatype: port.dtype,
            shape: port.shape.iter().map(|side| side.constant().unwrap_or(-1)).collect(),
        };
        Description {
            platform: Some(FORMAT.to_owned()),
            inputs: self.card.inputs.iter().map(spec).collect(),
            outputs: self.card.outputs.iter().map(spec).collect(),
            ..Description::default()
        }
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kernel = match first {
            Some(kernel) => kernel,
            // One that is to replace a broken one gets a context of its own.
            None => Device::open(self.ordinal)?.load(&self.card, &self.image)?,
        };
        let card = self.card.clone();
        Ok(each(move |request| infer::serve(&card, &kernel, request)))
    }
}

export_plugin!(CudaPlugin, include_str!("../plugin.toml"));
