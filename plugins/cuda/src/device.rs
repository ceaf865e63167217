//! A GPU: whether there is one, a kernel loaded on it, and what went wrong there in words.

use crate::card::Card;
use crate::plan::{self, Bounds, Plan};
use crate::sys;
use crate::verify::Executor;
use backplane_plugin::prelude::*;
use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig};
use cudarc::nvrtc::Ptx;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

/// What a person does about a missing driver.
const NO_DRIVER: &str = "no NVIDIA driver is installed here: `libcuda.so` is not found; kernels cannot run";

/// Whether there may be a GPU: looked for once, and nothing is started.
///
/// # Errors
/// That there is no driver.
pub fn check() -> Result<()> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    if *PRESENT.get_or_init(sys::has_driver) {
        return Ok(());
    }
    Err(Error::new(Code::FailedPrecondition, NO_DRIVER).with_reason("device_missing"))
}

/// A GPU with a context of its own: what breaks there breaks nothing of another model's.
pub struct Device {
    context: Arc<CudaContext>,
    /// For people.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    bounds: Bounds,
}

impl Device {
    /// Opens a GPU.
    ///
    /// # Errors
    /// That there is none, or what the driver says.
    pub fn open(ordinal: usize) -> Result<Self> {
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

    /// Puts a kernel's machine code on it.
    ///
    /// # Errors
    /// When a function is not there that the card names, or what the driver says.
    pub fn load(self, card: &Card, image: &[u8]) -> Result<Kernel> {
        let load = || -> Result<_, DriverError> {
            let module = self.context.load_module(Ptx::from_binary(image.to_vec()))?;
            Ok((module, self.context.new_stream()?))
        };
        let (module, stream) = calm(load)?;
        let function = |entry: &str| -> Result<_> {
            let found: Result<CudaFunction, Error> = calm(|| CudaModule::load_function(&module, entry));
            let found = found.map_err(|error| {
                Error::model_invalid(format!("the kernel has no function `{entry}`: {}", error.message))
            })?;
            Ok((entry.to_owned(), found))
        };
        let functions = card.launch.iter().map(|launch| function(&launch.entry)).collect::<Result<_>>()?;
        Ok(Kernel { functions, stream, bounds: self.bounds, outputs: card.outputs.len() })
    }
}

/// A kernel on a device.
pub struct Kernel {
    functions: BTreeMap<String, CudaFunction>,
    stream: Arc<CudaStream>,
    bounds: Bounds,
    outputs: usize,
}

impl Executor for Kernel {
    fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn run(&self, plan: &Plan, inputs: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let outputs = inputs.len()..inputs.len() + self.outputs;
        calm(|| {
            let mut tensors = Vec::with_capacity(plan.tensors.len());
            for (place, sized) in plan.tensors.iter().enumerate() {
                let mut tensor = sys::alloc(&self.stream, sized.bytes)?;
                if let Some(input) = inputs.get(place) {
                    self.stream.memcpy_htod(*input, &mut tensor)?;
                } else if outputs.contains(&place) {
                    // What a kernel leaves out is nobody else's data.
                    self.stream.memset_zeros(&mut tensor)?;
                }
                tensors.push(tensor);
            }
            for launch in &plan.launches {
                let [grid, block] = [launch.grid, launch.block].map(|[x, y, z]| (x, y, z));
                let config =
                    LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: launch.shared };
                let arguments: Vec<_> = launch.arguments.iter().map(argument).collect();
                let Some(function) = self.functions.get(&launch.entry) else { continue };
                sys::launch(&self.stream, function, config, &tensors, &arguments)?;
            }
            let answers = tensors[outputs.clone()].iter().map(|tensor| self.stream.clone_dtoh(tensor));
            let answers = answers.collect::<Result<Vec<_>, _>>()?;
            // What a kernel did wrong is told at the next wait.
            self.stream.synchronize()?;
            Ok(answers)
        })
    }
}

fn argument(argument: &plan::Argument) -> sys::Argument {
    match *argument {
        plan::Argument::Tensor(place) => sys::Argument::Tensor(place),
        plan::Argument::Number(number) => sys::Argument::Number(number),
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
fn named(code: CUresult) -> Error {
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
            (CUresult::CUDA_ERROR_INVALID_VALUE, Code::Internal, "device_error", false),
        ] {
            let error = named(code);
            assert_eq!((error.code, error.reason.as_deref(), error.fatal), (canonical, Some(reason), fatal));
            assert!(error.message.contains("CUDA_ERROR_"), "{error}");
        }
    }

    #[test]
    fn without_a_driver_nothing_panics() {
        if sys::has_driver() {
            // A machine with one: what is tested is that opening a GPU gives one, or says why not.
            let _ = Device::open(0).map(|device| device.name);
            return;
        }
        let error = Device::open(0).err().unwrap();
        assert_eq!((error.code, error.message.as_str()), (Code::FailedPrecondition, NO_DRIVER));
    }

    #[test]
    fn a_driver_without_a_function_is_an_old_driver() {
        let error = calm::<()>(|| panic!("Expected symbol in library")).unwrap_err();
        assert!(error.message.contains("too old"), "{error}");
    }
}
