//! What kernels run on: a device with memory and functions. NVIDIA's driver is behind it in [`crate::device`]; in tests, the
//! processor.

use crate::card::Card;
use crate::plan::{self, Bounds, Plan};
use crate::verify::Executor;
use backplane_plugin::prelude::*;
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
}

/// Where devices come from.
pub trait Driver: Send + Sync {
    /// Whether there may be one. Quick, and nothing is started.
    ///
    /// # Errors
    /// What is missing, and what to do about it; as a bid says it.
    fn check(&self) -> Result<(), (BidReason, Error)>;

    /// Compiles a program and puts it on a device, in a context of its own: what breaks there breaks nothing else.
    ///
    /// # Errors
    /// What is wrong with the program, or with the device.
    fn load(&self, program: &Program) -> Result<Arc<dyn Gpu>>;
}

/// A device with a program on it. What is asked of it is done in order; what a function did wrong is told by the next
/// [`Gpu::read`], and once it is beyond repair by everything.
pub trait Gpu: Send + Sync {
    /// For people.
    fn name(&self) -> &str;
    /// What it allows.
    fn bounds(&self) -> Bounds;
    /// Memory, as it was left there; by its number.
    ///
    /// # Errors
    /// As the device says, here and below.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Gives memory back.
    fn free(&self, memory: u64);
    /// Makes all of it zero.
    fn zero(&self, memory: u64) -> Result<()>;
    /// From the host.
    fn write(&self, memory: u64, offset: usize, bytes: &[u8]) -> Result<()>;
    /// To the host, from the beginning. Waits for all that was asked before.
    fn read(&self, memory: u64, bytes: usize) -> Result<Vec<u8>>;
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
        self.gpu.read(self.number, self.bytes)
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
        let outputs = self.inputs..self.inputs + self.outputs;
        let mut tensors = Vec::with_capacity(plan.tensors.len());
        for (place, sized) in plan.tensors.iter().enumerate() {
            let tensor = Memory::alloc(&self.gpu, sized.bytes)?;
            if let Some(input) = inputs.get(place) {
                tensor.write(0, input)?;
            } else if outputs.contains(&place) {
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
        tensors[outputs].iter().map(Memory::read).collect()
    }
}
