//! Tensors that stay in the memory of a device on their way from one plugin to the next.
//!
//! Who makes one: where [`Request::keeps_on_device`](crate::Request::keeps_on_device) says so, hands out a
//! [`Tensor::on_device`](crate::Tensor::on_device) of memory of its own ([`DeviceMemory`]). Who takes one: says so in
//! [`Model::takes`](crate::Model::takes) and reads [`Request::inputs`](crate::Request::inputs). Who asks one and gives it to
//! the other: [`Call::keep_on_device`](crate::Call::keep_on_device), then
//! [`Answer::pass_on`](crate::Answer::pass_on). Whoever does none of this gets tensors in CPU memory, copied by their owner.

use crate::tensor::TensorView;
use crate::{DType, Result, sys};
use std::fmt;
use std::sync::Arc;

/// A device, by DLPack's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// `DLDeviceType`.
    pub kind: i32,
    /// Which of its kind.
    pub id: i32,
}

impl Device {
    /// NVIDIA's, by the driver's number.
    pub const fn cuda(id: i32) -> Self {
        Self { kind: backplane_abi::table::BP_DEV_CUDA, id }
    }
}

/// When memory of a device may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Now.
    Now,
    /// When this `CUevent` has passed: let the stream that reads wait for it. It is its owner's, and lives as long as the
    /// memory.
    CudaEvent(u64),
}

/// Memory of a device that its owner hands out; dropped, on any thread, when nobody reads it any more. What is in it does
/// not change.
pub trait DeviceMemory: Send + Sync + 'static {
    /// Which device.
    fn device(&self) -> Device;
    /// As the device addresses it; not 0.
    fn address(&self) -> u64;
    /// How many bytes.
    fn size(&self) -> usize;
    /// When it may be read.
    fn ready(&self) -> Ready;
    /// Copies from `offset` on to CPU memory, once it is ready. Asked within its size only; also after the instance that made
    /// it is gone.
    ///
    /// # Errors
    /// `Unavailable` with the reason `device_lost` when it is lost.
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()>;
}

/// A tensor on a device, dense and row-major, that another plugin made. Cloning shares it; it lasts as long as the last
/// clone. Whatever reads it on the device has to have ended by then.
#[derive(Clone)]
pub struct DeviceTensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<i64>,
    pub(crate) held: Arc<sys::Held>,
}

impl DeviceTensor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its sides; empty for a scalar.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.held.device()
    }

    /// Its first byte, as the device addresses it.
    pub fn address(&self) -> u64 {
        self.held.address()
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.held.size()
    }

    /// When it may be read.
    pub fn ready(&self) -> Ready {
        self.held.ready()
    }

    /// Its bytes, copied by their owner. May block.
    ///
    /// # Errors
    /// `device_lost` when they are gone.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.held.read(&self.name)
    }
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, dtype, shape, .. } = self;
        write!(f, "{name}: {} {shape:?} on {:?}", dtype.name(), self.device())
    }
}

/// A tensor of a request to a model that takes them on a device, too.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// In CPU memory.
    Here(TensorView<'a>),
    /// On a device that the model takes.
    Device(DeviceTensor),
}

impl Input<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Input::Here(tensor) => tensor.name(),
            Input::Device(tensor) => tensor.name(),
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Input::Here(tensor) => tensor.dtype(),
            Input::Device(tensor) => tensor.dtype(),
        }
    }

    /// Its sides; empty for a scalar.
    pub fn shape(&self) -> &[i64] {
        match self {
            Input::Here(tensor) => tensor.shape(),
            Input::Device(tensor) => tensor.shape(),
        }
    }
}
