//! NVIDIA's driver: whether there is a GPU, a program loaded on it, and what went wrong there in words.

use crate::compiler::{Compiler, Image};
use crate::gpu::{Argument, Driver, Gpu, Program, Size};
use crate::plan::Bounds;
use crate::sys;
use backplane_plugin::prelude::*;
use backplane_plugin::{Device as Place, Ready};
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig,
};
use cudarc::nvrtc::Ptx;
use std::collections::{BTreeMap, HashMap};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What a person does about a missing driver.
const NO_DRIVER: &str = "no NVIDIA driver is installed here: `libcuda.so` is not found; kernels cannot run";

/// What a source is compiled for where there is no device: of those in use a new one, which refuses least.
const UNSEEN: (i32, i32) = (9, 0);

/// Kernels read up to 16 bytes at once, which begin at a multiple of as many.
const ALIGN: u64 = 16;

/// Whether there may be a GPU: looked for once, and nothing is started.
///
/// # Errors
/// That there is no driver.
fn check() -> Result<()> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    if *PRESENT.get_or_init(look) {
        return Ok(());
    }
    Err(Error::new(Code::FailedPrecondition, NO_DRIVER).with_reason("device_missing"))
}

fn look() -> bool {
    #[cfg(test)]
    tests::LOOKS.fetch_add(1, Ordering::Relaxed);
    sys::has_driver()
}

/// NVIDIA's driver, and its compiler.
pub struct Nvidia {
    pub compiler: Compiler,
    /// Which GPU.
    pub ordinal: usize,
}

impl Driver for Nvidia {
    fn check(&self, compiled: bool) -> Result<(), (BidReason, Error)> {
        check().map_err(|error| (BidReason::Device, error))?;
        if compiled {
            return Ok(());
        }
        self.compiler.check().map_err(|error| (BidReason::Runtime, error))
    }

    fn device(&self) -> Place {
        place(self.ordinal)
    }

    fn load(&self, program: &Program) -> Result<Arc<dyn Gpu>> {
        let context = Context::open(self.ordinal);
        let context = context.map_err(|missing| self.without(program, missing))?;
        let image = match self.compiler.image(program, context.capability)? {
            Image::Machine(code) => Ptx::from_binary(code),
            Image::Ptx(text) => Ptx::from_src(text),
        };
        Ok(Arc::new(context.load(program, image)?))
    }
}

impl Nvidia {
    /// What is said of a program where there is no device for it: whoever writes it need not wait for one to be told whether it
    /// compiles.
    fn without(&self, program: &Program, mut missing: Error) -> Error {
        // What was compiled beforehand has no need of a compiler.
        let needless =
            |error: &Error| error.reason.as_deref() == Some("runtime_missing") && program.ptx.is_some();
        if missing.reason.as_deref() != Some("device_missing") {
            return missing;
        }
        let (name, why) = (&program.name, &missing.message);
        let message = match self.compiler.trial(program, UNSEEN) {
            Ok(compiled) => format!("`{name}` was compiled by {compiled}, and cannot run: {why}"),
            Err(error) if needless(&error) => return missing,
            Err(error) if error.reason.as_deref() == Some("runtime_missing") => {
                format!("{why}; nor was `{name}` compiled: {}", error.message)
            }
            Err(mut error) => {
                let (major, minor) = UNSEEN;
                error.message.push_str(&format!(
                    "\n(there is no GPU here, and it was compiled for compute capability {major}.{minor})"
                ));
                return error;
            }
        };
        missing.message = message;
        missing
    }
}

fn place(ordinal: usize) -> Place {
    Place::cuda(i32::try_from(ordinal).unwrap_or(i32::MAX))
}

/// A GPU with a context of its own.
struct Context {
    context: Arc<CudaContext>,
    name: String,
    /// Compute capability.
    capability: (i32, i32),
    bounds: Bounds,
}

impl Context {
    /// Opens a GPU.
    fn open(ordinal: usize) -> Result<Self> {
        check()?;
        calm(|| {
            let count = CudaContext::device_count()?;
            if usize::try_from(count).unwrap_or(0) <= ordinal {
                return Ok(Err(count));
            }
            let context = CudaContext::new_non_primary(ordinal, 0)?;
            let attribute = |which| context.attribute(which).map(i64::from);
            use CUdevice_attribute as A;
            let bounds = Bounds {
                threads: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
                block: [
                    attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
                ],
                grid: [
                    attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                    attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
                ],
                // More than this a function has to be told of before.
                shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
            };
            let (name, capability) = (context.name()?, context.compute_capability()?);
            Ok(Ok(Self { context, name, capability, bounds }))
        })?
        .map_err(|count| {
            let message =
                format!("there are {count} GPUs here, and the plugin's setting `device` is {ordinal}");
            Error::new(Code::FailedPrecondition, message).with_reason("device_missing")
        })
    }

    /// Puts a program on it.
    fn load(self, program: &Program, image: Ptx) -> Result<Device> {
        let load = || -> Result<_, DriverError> {
            let module = self.context.load_module(image)?;
            Ok((module, self.context.new_stream()?))
        };
        let (module, stream) = calm(load)?;
        let function = |entry: &String| -> Result<_> {
            let found: Result<CudaFunction, Error> = calm(|| CudaModule::load_function(&module, entry));
            let found = found.map_err(|error| {
                Error::model_invalid(format!("the kernel has no function `{entry}`: {}", error.message))
            })?;
            Ok((entry.clone(), found))
        };
        let functions = program.entries.iter().map(function).collect::<Result<_>>()?;
        let Self { name, bounds, .. } = self;
        Ok(Device { name, bounds, functions, stream, memory: Mutex::default(), next: AtomicU64::new(0) })
    }
}

/// A program on a GPU.
struct Device {
    name: String,
    bounds: Bounds,
    functions: BTreeMap<String, CudaFunction>,
    memory: Mutex<HashMap<u64, Slot>>,
    next: AtomicU64,
    stream: Arc<CudaStream>,
}

/// Memory, and how it is given back.
enum Slot {
    /// Of the driver's pool.
    Pooled(CudaSlice<u8>),
    /// Of the context.
    Lasting(ManuallyDrop<CudaSlice<u8>>),
    /// Not ours to give back.
    Foreign(ManuallyDrop<CudaSlice<u8>>),
}

impl Slot {
    fn slice(&self) -> &CudaSlice<u8> {
        match self {
            Slot::Pooled(slice) => slice,
            Slot::Lasting(slice) | Slot::Foreign(slice) => slice,
        }
    }

    fn slice_mut(&mut self) -> &mut CudaSlice<u8> {
        match self {
            Slot::Pooled(slice) => slice,
            Slot::Lasting(slice) | Slot::Foreign(slice) => slice,
        }
    }

    fn free(self) -> Result<(), DriverError> {
        match self {
            Slot::Pooled(slice) => drop(slice),
            Slot::Lasting(slice) => sys::free_lasting(ManuallyDrop::into_inner(slice))?,
            Slot::Foreign(slice) => {
                ManuallyDrop::into_inner(slice).leak();
            }
        }
        Ok(())
    }
}

impl Device {
    fn memory(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, slot: Slot) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.memory().insert(number, slot);
        number
    }

    /// Does something with memory.
    fn with<T>(
        &self,
        number: u64,
        does: impl FnOnce(&mut CudaSlice<u8>) -> Result<T, DriverError>,
    ) -> Result<T> {
        let mut memory = self.memory();
        let slice = memory.get_mut(&number).ok_or_else(gone)?;
        calm(|| does(slice.slice_mut()))
    }
}

fn gone() -> Error {
    Error::internal("memory of the device was asked for that is not there any more")
}

impl Gpu for Device {
    fn name(&self) -> &str {
        &self.name
    }

    fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn device(&self) -> Place {
        place(self.stream.context().ordinal())
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        Ok(self.keep(Slot::Pooled(calm(|| sys::alloc(&self.stream, bytes))?)))
    }

    fn alloc_lasting(&self, bytes: usize) -> Result<u64> {
        let slice = calm(|| sys::alloc_lasting(&self.stream, bytes))?;
        Ok(self.keep(Slot::Lasting(ManuallyDrop::new(slice))))
    }

    fn address(&self, memory: u64) -> Result<u64> {
        self.with(memory, |slice| Ok(slice.device_ptr(&self.stream).0))
    }

    fn adopt(&self, address: u64, bytes: usize, ready: Ready) -> Result<u64> {
        if let Ready::CudaEvent(event) = ready {
            calm(|| sys::wait_for(&self.stream, event))?;
        }
        let context = calm(|| sys::context_of(&self.stream, address))?;
        if context == self.stream.context().cu_ctx() && address.is_multiple_of(ALIGN) {
            let slice = calm(|| Ok(sys::foreign(&self.stream, address, bytes)))?;
            return Ok(self.keep(Slot::Foreign(ManuallyDrop::new(slice))));
        }
        let copy = calm(|| {
            let mut copy = sys::alloc(&self.stream, bytes)?;
            sys::copy_foreign(&self.stream, context, address, &mut copy)?;
            Ok(copy)
        })?;
        Ok(self.keep(Slot::Pooled(copy)))
    }

    fn free(&self, memory: u64) {
        let slot = self.memory().remove(&memory);
        // What the driver says of it is said again by the next call.
        let _ = calm(|| slot.map_or(Ok(()), Slot::free));
    }

    fn zero(&self, memory: u64) -> Result<()> {
        self.with(memory, |slice| self.stream.memset_zeros(slice))
    }

    fn write(&self, memory: u64, offset: usize, bytes: &[u8]) -> Result<()> {
        self.with(memory, |slice| {
            self.stream.memcpy_htod(bytes, &mut slice.slice_mut(offset..offset + bytes.len()))
        })
    }

    fn wait(&self) -> Result<()> {
        calm(|| self.stream.synchronize())
    }

    fn read(&self, memory: u64, offset: usize, bytes: usize) -> Result<Vec<u8>> {
        self.with(memory, |slice| {
            let read = self.stream.clone_dtoh(&slice.slice(offset..offset + bytes))?;
            // What a kernel did wrong is told at the next wait.
            self.stream.synchronize()?;
            Ok(read)
        })
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let mut memory = self.memory();
        let [Some(from), Some(to)] = memory.get_disjoint_mut([&from, &to]) else { return Err(gone()) };
        let (from, to) = (from.slice(), to.slice_mut());
        calm(|| self.stream.memcpy_dtod(&from.slice(..bytes), &mut to.slice_mut(..bytes)))
    }

    fn launch(&self, entry: &str, size: Size, arguments: &[Argument]) -> Result<()> {
        let function = self.functions.get(entry);
        let function =
            function.ok_or_else(|| Error::internal(format!("no function `{entry}` was loaded")))?;
        let [grid, block] = [size.grid, size.block].map(|[x, y, z]| (x, y, z));
        let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: size.shared };
        let memory = self.memory();
        let argument = |argument: &Argument| match argument {
            Argument::Memory(number) => {
                memory.get(number).map(|slot| sys::Argument::Memory(slot.slice())).ok_or_else(gone)
            }
            Argument::Number(number) => Ok(sys::Argument::Number(*number)),
        };
        let arguments = arguments.iter().map(argument).collect::<Result<Vec<_>>>()?;
        calm(|| sys::launch(&self.stream, function, config, &arguments))
    }
}

/// Calls the driver. `cudarc` panics where a driver lacks a function, which is an old driver, and no bug here.
fn calm<T>(call: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|DriverError(code)| named(code)),
        Err(_) => {
            let message =
                "the NVIDIA driver here is too old for this plugin: it lacks functions of CUDA 12; update it";
            Err(Error::new(Code::FailedPrecondition, message).with_reason("device_missing"))
        }
    }
}

/// A failure of the driver's in words: what it means for this request, and for this instance.
pub fn named(code: CUresult) -> Error {
    use CUresult as C;
    let is = format!("{code:?}");
    match code {
        C::CUDA_ERROR_OUT_OF_MEMORY => Error::new(
            Code::ResourceExhausted,
            format!("the GPU has not enough free memory for this request ({is}); send less at once, or close other models"),
        )
        .with_reason("device_memory"),
        C::CUDA_ERROR_NO_DEVICE | C::CUDA_ERROR_INVALID_DEVICE | C::CUDA_ERROR_STUB_LIBRARY
        | C::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | C::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        | C::CUDA_ERROR_DEVICE_NOT_LICENSED | C::CUDA_ERROR_SYSTEM_NOT_READY => Error::new(
            Code::FailedPrecondition,
            format!("the NVIDIA driver here offers no GPU ({is}); `nvidia-smi` says more"),
        )
        .with_reason("device_missing"),
        C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | C::CUDA_ERROR_NO_BINARY_FOR_GPU
        | C::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => Error::new(
            Code::FailedPrecondition,
            format!("the NVIDIA driver here cannot use what was compiled beforehand ({is}); update it, or `backplane pull nvrtc`"),
        )
        .with_reason("runtime_missing"),
        C::CUDA_ERROR_INVALID_PTX => Error::model_invalid(format!(
            "the NVIDIA driver does not take the PTX that was compiled beforehand ({is})"
        )),
        // The context is lost with all its memory, and every later call would say the same.
        C::CUDA_ERROR_ILLEGAL_ADDRESS | C::CUDA_ERROR_ILLEGAL_INSTRUCTION | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE | C::CUDA_ERROR_INVALID_PC | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_LAUNCH_FAILED | C::CUDA_ERROR_ASSERT | C::CUDA_ERROR_LAUNCH_TIMEOUT => Error::new(
            Code::Internal,
            format!("the kernel did something that the GPU does not allow ({is}); it is loaded anew, and its card or source is wrong"),
        )
        .with_reason("kernel_fault")
        .fatal(),
        C::CUDA_ERROR_ECC_UNCORRECTABLE | C::CUDA_ERROR_NVLINK_UNCORRECTABLE | C::CUDA_ERROR_DEVICE_UNAVAILABLE
        | C::CUDA_ERROR_CONTEXT_IS_DESTROYED | C::CUDA_ERROR_UNKNOWN => Error::new(
            Code::Unavailable,
            format!("the GPU is lost ({is}); the kernel is loaded anew, and if that fails, the GPU needs its operator"),
        )
        .with_reason("device_lost")
        .fatal(),
        _ => Error::internal(format!("the NVIDIA driver refused a call ({is})")).with_reason("device_error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_driver_have_names() {
        for (code, canonical, reason, fatal) in [
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Code::ResourceExhausted, "device_memory", false),
            (CUresult::CUDA_ERROR_NO_DEVICE, Code::FailedPrecondition, "device_missing", false),
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, Code::Internal, "kernel_fault", true),
            (CUresult::CUDA_ERROR_ECC_UNCORRECTABLE, Code::Unavailable, "device_lost", true),
            (
                CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
                Code::FailedPrecondition,
                "runtime_missing",
                false,
            ),
            (CUresult::CUDA_ERROR_INVALID_VALUE, Code::Internal, "device_error", false),
        ] {
            let error = named(code);
            assert_eq!((error.code, error.reason.as_deref(), error.fatal), (canonical, Some(reason), fatal));
            assert!(error.message.contains("CUDA_ERROR_"), "{error}");
        }
    }

    pub static LOOKS: AtomicU64 = AtomicU64::new(0);

    /// A bid is wanted of every plugin for every request without a model's name: what a host without a GPU pays for this one is
    /// a look into memory.
    #[test]
    fn a_driver_is_looked_for_once() {
        let driver = Nvidia { compiler: Compiler::new(crate::Settings::default()), ordinal: 0 };
        let answers: Vec<bool> = (0..1000).map(|_| driver.check(false).is_ok()).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        assert_eq!(LOOKS.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn without_a_driver_nothing_panics() {
        if sys::has_driver() {
            // A machine with one: what is tested is that opening a GPU gives one, or says why not.
            let _ = Context::open(0).map(|device| device.name);
            return;
        }
        let error = Context::open(0).err().unwrap();
        assert_eq!((error.code, error.message.as_str()), (Code::FailedPrecondition, NO_DRIVER));
    }

    #[test]
    fn a_driver_without_a_function_is_an_old_driver() {
        let error = calm::<()>(|| panic!("Expected symbol in library")).unwrap_err();
        assert!(error.message.contains("too old"), "{error}");
    }
}
