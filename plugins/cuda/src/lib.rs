//! CUDA: kernels as models, searches of vectors, and pictures made ready for networks, on a GPU.
//!
//! A model of the format `cuda` is a `.cu` file and a card that says what goes in, what comes out and how it is launched.
//! It is compiled when it is opened, by NVRTC, for the GPU that is there; its card's checks are run on it; from then on it
//! serves `tensor.infer`.
//!
//! - [`card`]: what a card says; [`expr`]: its expressions; [`plan`]: a request against it. Pure.
//! - [`kernel`]: the model; [`verify`]: its card's checks; [`infer`]: one request.
//! - [`vectors`]: `vector.search` on copies of another plugin's collections.
//! - [`pictures`]: pictures made ready, for `image.prepare`.
//! - [`gpu`]: what kernels run on. [`device`]: NVIDIA's driver behind it; [`compiler`]: NVRTC; [`sys`]: what of both is
//!   `unsafe`.
//!
//! Without a driver the plugin says so in its bid, takes nothing, and costs nothing.

mod card;
mod compiler;
mod device;
mod expr;
mod gpu;
mod infer;
mod kernel;
mod pictures;
mod plan;
mod settings;
mod sys;
mod vectors;
mod verify;

// For the tests of the kernels, which may have no GPU, and for the benchmark, which needs one.
#[doc(hidden)]
pub use {
    card::Card,
    compiler::{Compiler, Image},
    device::{Nvidia, named},
    gpu::{Argument, Driver, Gpu, Kernel, Program, Size},
    plan::{Bounds, Given, Plan},
    settings::Settings,
    verify::{Executor, verify},
};

use backplane_plugin::payload::{image_prepare, tensor, vector};
use backplane_plugin::prelude::*;
use std::sync::{Arc, OnceLock};

/// The format this plugin opens.
const FORMAT: &str = "cuda";
/// Memory of the host's that a context of the driver's takes, about.
const CONTEXT: u64 = 256 << 20;

/// What stands in for NVIDIA's driver, in every plugin of this process from now on.
#[doc(hidden)]
pub static STAND_IN: OnceLock<Arc<dyn Driver>> = OnceLock::new();

/// The library.
struct CudaPlugin {
    host: Host,
    driver: Arc<dyn Driver>,
    /// Bytes that copies of collections may take on the GPU.
    memory: u64,
}

impl Plugin for CudaPlugin {
    const ID: &'static str = "dev.backplane.cuda";

    fn init(host: Host, config: &Value) -> Result<Self> {
        let settings = Settings::of(config)?;
        let (ordinal, memory) = (settings.device, settings.memory);
        let driver = STAND_IN.get().cloned();
        let driver =
            driver.unwrap_or_else(|| Arc::new(Nvidia { compiler: Compiler::new(settings), ordinal }));
        if let Err((BidReason::Device, error)) = driver.check(true) {
            host.log(Level::Info, error.message);
        }
        Ok(Self { host, driver, memory })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        let model = query.model().unwrap_or_default();
        let claim = match &*model.name {
            vectors::MODEL => vectors::bid(),
            pictures::MODEL => pictures::bid(),
            _ if query.format == FORMAT || model.format == FORMAT => Bid::default(),
            _ => return Bid::no(BidReason::Format, format!("only the format `{FORMAT}` can be opened")),
        };
        let is_own = [vectors::MODEL, pictures::MODEL].contains(&&*model.name);
        let compiled = is_own || model.files.iter().any(|file| file.role == kernel::PTX);
        if let Err((reason, error)) = self.driver.check(compiled) {
            // What is not installed may be installed any moment.
            let valid_ms = if reason == BidReason::Runtime { 1_000 } else { Bid::default().valid_ms };
            return Bid { valid_ms, ..Bid::no(reason, error.message) };
        }
        Bid { host_bytes: CONTEXT, ..claim }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let serves = match &*model.name {
            vectors::MODEL => vector::CAPABILITY,
            pictures::MODEL => image_prepare::CAPABILITY,
            _ => tensor::CAPABILITY,
        };
        if let Some(other) = model.capabilities.iter().find(|name| *name != serves) {
            let message = format!("model `{}` is to serve `{other}`, and it serves `{serves}`", model.name);
            return Err(Error::new(Code::Unimplemented, message).with_param("capabilities"));
        }
        let driver = self.driver.clone();
        Ok(match &*model.name {
            vectors::MODEL => Box::new(vectors::VectorModel::open(driver, self.memory, model)?),
            pictures::MODEL => Box::new(pictures::PictureModel::open(driver, model)?),
            _ => Box::new(kernel::KernelModel::open(driver, self.host, model)?),
        })
    }
}

export_plugin!(CudaPlugin, include_str!("../plugin.toml"));
