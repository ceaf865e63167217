//! The model of a card: compiled, checked, opened.

use crate::FORMAT;
use crate::card::{Card, Port};
use crate::gpu::{Driver, Kernel, Program};
use crate::infer;
use crate::verify::verify;
use backplane_plugin::Device;
use backplane_plugin::prelude::*;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a kernel's source.
const SOURCE: u64 = 1 << 20;

/// The role of a file with the same compiled beforehand.
pub const PTX: &str = "ptx";

/// An opened kernel.
pub struct KernelModel {
    driver: Arc<dyn Driver>,
    card: Arc<Card>,
    program: Program,
    /// The one that the checks ran on: the first instance's.
    first: Mutex<Option<Kernel>>,
}

impl KernelModel {
    /// # Errors
    /// What is wrong with the card or its source, or that it cannot run here.
    pub fn open(driver: Arc<dyn Driver>, host: Host, model: &ModelSpec) -> Result<Self> {
        let card = Arc::new(Card::of(model)?);
        let program = program(model, &card)?;
        let kernel = Kernel::load(&*driver, &card, &program)?;
        host.log(Level::Info, format!("model `{}` is compiled for {}", model.name, kernel.device()));
        verify(&card, &kernel)?;
        Ok(Self { driver, card, program, first: Mutex::new(Some(kernel)) })
    }
}

/// A kernel's source, and what it is called in errors: its own name, not where it lies.
fn program(model: &ModelSpec, card: &Card) -> Result<Program> {
    let file = model.files.iter().find(|file| file.role == "model");
    let file = file.ok_or_else(|| {
        Error::invalid(format!("the card of model `{}` names no file with role `model`", model.name))
    })?;
    let given = Path::new(&file.name).file_name().map(|name| name.to_string_lossy().into_owned());
    let name = given.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("{}.cu", model.name));
    if SOURCE < file.size {
        return Err(Error::model_invalid(format!("`{name}` has {} bytes, and may have {SOURCE}", file.size)));
    }
    let source = read(&file.path, &name)?;
    let ptx = model.files.iter().find(|file| file.role == PTX);
    let ptx = ptx.map(|file| read(&file.path, &format!("{name}, compiled beforehand,"))).transpose()?;
    let mut entries: Vec<String> = card.launch.iter().map(|launch| launch.entry.clone()).collect();
    entries.sort();
    entries.dedup();
    Ok(Program { source, name, defines: card.defines.clone(), entries, ptx })
}

fn read(path: &Path, name: &str) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Error::model_invalid(format!("`{name}` cannot be read: {}", error.kind())))
}

impl Model for KernelModel {
    fn execution(&self) -> Execution {
        Execution::Serial { max_batch: 1 }
    }

    fn takes(&self, device: Device) -> bool {
        device == self.driver.device()
    }

    fn describe(&self) -> Description {
        let spec = |port: &Port| TensorSpec {
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
            None => Kernel::load(&*self.driver, &self.card, &self.program)?,
        };
        let card = self.card.clone();
        Ok(each(move |request| infer::serve(&card, &kernel, request)))
    }
}
