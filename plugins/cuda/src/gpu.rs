//! What kernels run on: a device with memory and functions. NVIDIA's driver is behind it in [`crate::device`]; in tests, the
//! processor.

use crate::card::Card;
use crate::plan::{self, Bounds, Plan};
use crate::verify::Executor;
use backplane_plugin::prelude::*;
use backplane_plugin::{Device, DeviceMemory, DeviceTensor, Ready};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A source, and the functions that are wanted of it.
#[derive(Clone, Debug)]
pub struct Program {
    pub source: String,
    /// What errors call it.
    pub name: String,
    /// Macros that it is compiled with.
    pub defines: BTreeMap<String, i64>,
    /// `extern "C" __global__`.
    pub entries: Vec<String>,
    /// The same compiled beforehand, for where there is no compiler.
    pub ptx: Option<String>,
}

/// Where devices come from.
pub trait Driver: Send + Sync {
    /// Whether there may be one, and a compiler where programs are not `compiled` beforehand. Quick, and nothing is started.
    ///
    /// # Errors
    /// What is missing, and what to do about it; as a bid says it.
    fn check(&self, compiled: bool) -> Result<(), (BidReason, Error)>;

    /// Which device it is, as others know it.
    fn device(&self) -> Device;

    /// Compiles a program and puts it on a device, in a context of its own: what breaks there breaks nothing else.
    ///
    /// # Errors
    /// What is wrong with the program, or with the device.
    fn load(&self, program: &Program) -> Result<Arc<dyn Gpu>>;
}

/// A device with a program on it. What is asked of it is done in order; what a function did wrong is told by the next
/// [`Gpu::read`] or [`Gpu::wait`], and once it is beyond repair by everything.
pub trait Gpu: Send + Sync {
    /// For people.
    fn name(&self) -> &str;
    /// What it allows.
    fn bounds(&self) -> Bounds;
    /// Which device it is, as others know it.
    fn device(&self) -> Device;
    /// Memory, as it was left there; by its number.
    ///
    /// # Errors
    /// As the device says, here and below.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// The same, of which others can be told.
    fn alloc_lasting(&self, bytes: usize) -> Result<u64>;
    /// Where memory of [`Gpu::alloc_lasting`] is.
    fn address(&self, memory: u64) -> Result<u64>;
    /// Memory of somebody else's on this device, when it is ready: itself where that can be read from here, or a copy that is
    /// made on the device. Not to be written to, and its owner's to give back.
    fn adopt(&self, address: u64, bytes: usize, ready: Ready) -> Result<u64>;
    /// Gives memory back.
    fn free(&self, memory: u64);
    /// Makes all of it zero.
    fn zero(&self, memory: u64) -> Result<()>;
    /// From the host.
    fn write(&self, memory: u64, offset: usize, bytes: &[u8]) -> Result<()>;
    /// To the host. Waits for all that was asked before.
    fn read(&self, memory: u64, offset: usize, bytes: usize) -> Result<Vec<u8>>;
    /// Waits for all that was asked before.
    fn wait(&self) -> Result<()>;
    /// From one to another, from the beginning.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Starts a function of the program.
    fn launch(&self, entry: &str, size: Size, arguments: &[Argument]) -> Result<()>;
}

/// How a function is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// What a function is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A pointer to memory of the device.
    Memory(u64),
    /// A `long long`.
    Number(i64),
}

/// Memory of a device that is given back when this is dropped.
pub struct Memory {
    gpu: Arc<dyn Gpu>,
    number: u64,
    bytes: usize,
}

impl Memory {
    /// # Errors
    /// When there is not so much.
    pub fn alloc(gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Self> {
        Ok(Self { number: gpu.alloc(bytes)?, gpu: gpu.clone(), bytes })
    }

    /// Of which others can be told.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn lasting(gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Self> {
        Ok(Self { number: gpu.alloc_lasting(bytes)?, gpu: gpu.clone(), bytes })
    }

    /// Somebody else's, who keeps it for as long as this is used.
    ///
    /// # Errors
    /// `device_lost` when it cannot be had.
    pub fn adopt(gpu: &Arc<dyn Gpu>, tensor: &DeviceTensor) -> Result<Self> {
        let (bytes, name) = (tensor.size(), tensor.name());
        let number =
            gpu.adopt(tensor.address(), bytes, tensor.ready()).map_err(|error| lost(name, &error))?;
        Ok(Self { number, gpu: gpu.clone(), bytes })
    }

    /// With this in it.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn of(gpu: &Arc<dyn Gpu>, bytes: &[u8]) -> Result<Self> {
        let memory = Self::alloc(gpu, bytes.len())?;
        memory.write(0, bytes)?;
        Ok(memory)
    }

    /// # Errors
    /// As the device says.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.gpu.write(self.number, offset, bytes)
    }

    /// # Errors
    /// As the device says.
    pub fn zero(&self) -> Result<()> {
        self.gpu.zero(self.number)
    }

    /// All of it.
    ///
    /// # Errors
    /// As the device says.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.gpu.read(self.number, 0, self.bytes)
    }

    /// Memory of so many bytes that begins with the first `keep` of this.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn grown(&self, bytes: usize, keep: usize) -> Result<Self> {
        let memory = Self::alloc(&self.gpu, bytes)?;
        if 0 < keep {
            self.gpu.copy(self.number, memory.number, keep)?;
        }
        Ok(memory)
    }

    pub fn argument(&self) -> Argument {
        Argument::Memory(self.number)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.free(self.number);
    }
}

/// What becomes of somebody who needs memory that is lost: nothing that their instance could help.
fn lost(what: &str, error: &Error) -> Error {
    match error.fatal {
        true => {
            let message = format!("`{what}` was in memory of a GPU that is lost: {}", error.message);
            Error::new(Code::Unavailable, message).with_reason("device_lost")
        }
        false => error.clone(),
    }
}

/// Memory that stays on the device for others to read. All that writes to it has ended: what a kernel did wrong is told to who
/// asked for it, and not to who reads.
pub struct Outside {
    memory: Memory,
    address: u64,
}

impl Outside {
    /// # Errors
    /// What was done wrong until now.
    pub fn of(memory: Memory) -> Result<Self> {
        memory.gpu.wait()?;
        Ok(Self { address: memory.gpu.address(memory.number)?, memory })
    }
}

impl DeviceMemory for Outside {
    fn device(&self) -> Device {
        self.memory.gpu.device()
    }

    fn address(&self) -> u64 {
        self.address
    }

    fn size(&self) -> usize {
        self.memory.bytes
    }

    fn ready(&self) -> Ready {
        Ready::Now
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        let read = self.memory.gpu.read(self.memory.number, offset, to.len());
        to.copy_from_slice(&read.map_err(|error| lost("the tensor", &error))?);
        Ok(())
    }
}

/// An input of a kernel.
pub enum Source<'a> {
    /// In CPU memory.
    Bytes(&'a [u8]),
    /// On the device.
    Device(&'a DeviceTensor),
}

/// An output of a kernel.
pub enum Product {
    /// In CPU memory.
    Bytes(Vec<u8>),
    /// On the device.
    Device(Outside),
}

/// A card's kernel on a device.
pub struct Kernel {
    gpu: Arc<dyn Gpu>,
    inputs: usize,
    outputs: usize,
}

impl Kernel {
    /// # Errors
    /// As [`Driver::load`].
    pub fn load(driver: &dyn Driver, card: &Card, program: &Program) -> Result<Self> {
        Ok(Self { gpu: driver.load(program)?, inputs: card.inputs.len(), outputs: card.outputs.len() })
    }

    /// Name of its device.
    pub fn device(&self) -> &str {
        self.gpu.name()
    }
}

impl Executor for Kernel {
    fn bounds(&self) -> Bounds {
        self.gpu.bounds()
    }

    fn run(&self, plan: &Plan, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let inputs: Vec<_> = inputs.iter().map(|bytes| Source::Bytes(bytes)).collect();
        self.launch(plan, &inputs, false)?.iter().map(Memory::read).collect()
    }
}

impl Kernel {
    /// Runs a plan with its inputs, wherever they are, and leaves its outputs on the device where they are to stay there.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run_on(&self, plan: &Plan, inputs: &[Source<'_>], stays: bool) -> Result<Vec<Product>> {
        let product = |memory: Memory| match stays && 0 < memory.bytes {
            true => Outside::of(memory).map(Product::Device),
            false => memory.read().map(Product::Bytes),
        };
        self.launch(plan, inputs, stays)?.into_iter().map(product).collect()
    }

    /// The outputs, which are not there before the device has been waited for.
    fn launch(&self, plan: &Plan, inputs: &[Source<'_>], stays: bool) -> Result<Vec<Memory>> {
        let launched = self.start(plan, inputs, stays);
        if !inputs.iter().any(|input| matches!(input, Source::Device(_))) {
            return launched.map(|(outputs, _)| outputs);
        }
        // The owner of an input may have it back once the request is finished, however that ends; until then nothing reads it.
        let waited = self.gpu.wait();
        let (outputs, _) = launched?;
        waited.map(|()| outputs)
    }

    /// The outputs and what else is in use, once all is asked of the device.
    fn start(&self, plan: &Plan, inputs: &[Source<'_>], stays: bool) -> Result<(Vec<Memory>, Vec<Memory>)> {
        let outputs = self.inputs..self.inputs + self.outputs;
        let mut tensors = Vec::with_capacity(plan.tensors.len());
        for (place, sized) in plan.tensors.iter().enumerate() {
            let is_output = outputs.contains(&place);
            let tensor = match inputs.get(place) {
                Some(Source::Device(tensor)) => Memory::adopt(&self.gpu, tensor)?,
                Some(Source::Bytes(_)) => Memory::alloc(&self.gpu, sized.bytes)?,
                None if stays && is_output && 0 < sized.bytes => Memory::lasting(&self.gpu, sized.bytes)?,
                None => Memory::alloc(&self.gpu, sized.bytes)?,
            };
            if let Some(Source::Bytes(input)) = inputs.get(place) {
                tensor.write(0, input)?;
            } else if is_output {
                // What a kernel leaves out is nobody else's data.
                tensor.zero()?;
            }
            tensors.push(tensor);
        }
        for launch in &plan.launches {
            let argument = |argument: &plan::Argument| match *argument {
                plan::Argument::Tensor(place) => tensors[place].argument(),
                plan::Argument::Number(number) => Argument::Number(number),
            };
            let arguments: Vec<_> = launch.arguments.iter().map(argument).collect();
            let size = Size { grid: launch.grid, block: launch.block, shared: launch.shared };
            self.gpu.launch(&launch.entry, size, &arguments)?;
        }
        let made = tensors.drain(outputs).collect();
        Ok((made, tensors))
    }
}
