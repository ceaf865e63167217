//! Tensors: what comes in ([`TensorView`]) and what goes out ([`Tensor`]).

use crate::device::{DeviceMemory, DeviceTensor};
use crate::{Error, Result, sys};
use backplane_abi::dtype::{DType, dense_bytes};
use backplane_abi::read::strings;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A number that can be an element.
pub trait Element: Copy + Send + Sync + 'static + sealed::Plain {
    /// Its type.
    const DTYPE: DType;
}

pub(crate) mod sealed {
    /// Plain numbers, whose every bit pattern is a value.
    pub trait Plain {}
}

macro_rules! elements {
    ($($t:ty => $dtype:ident),*) => { $(
        impl sealed::Plain for $t {}
        impl Element for $t { const DTYPE: DType = DType::$dtype; }
    )* };
}
elements!(u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32,
    i64 => Int64, f32 => Fp32, f64 => Fp64, half::f16 => Fp16, half::bf16 => Bf16);

/// A tensor of a request: borrowed from the host until the request is finished.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [i64],
    pub(crate) data: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its sides; empty for a scalar.
    pub fn shape(&self) -> &'a [i64] {
        self.shape
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.shape.iter().map(|&side| side as usize).product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its memory, dense and row-major.
    pub fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// Its elements; copied only where the memory is not aligned for `T`.
    ///
    /// # Errors
    /// When its type is not `T`'s.
    pub fn elements<T: Element>(&self) -> Result<Cow<'a, [T]>> {
        if self.dtype != T::DTYPE {
            return Err(Error::invalid(format!(
                "tensor `{}` is {}, and must be {}",
                self.name,
                self.dtype.name(),
                T::DTYPE.name()
            ))
            .with_param(self.name));
        }
        Ok(crate::sys::cast(self.data))
    }

    /// Its byte strings, in row-major order.
    ///
    /// # Errors
    /// When it is not of type BYTES.
    pub fn strings(&self) -> Result<Vec<&'a [u8]>> {
        if self.dtype != DType::Bytes {
            return Err(Error::invalid(format!(
                "tensor `{}` is {}, and must be BYTES",
                self.name,
                self.dtype.name()
            ))
            .with_param(self.name));
        }
        let mut rest = self.data;
        Ok(std::iter::from_fn(|| strings::next(&mut rest)).collect())
    }
}

/// A tensor of a result. Dense, row-major; its memory is handed to the host, not copied.
#[derive(Debug)]
pub struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<i64>,
    pub(crate) place: Place,
}

/// Where a tensor of a result is.
pub(crate) enum Place {
    Memory(sys::Memory),
    /// On a device, made by this plugin.
    Own(Arc<dyn DeviceMemory>),
    /// On a device, made by another.
    Passed(Arc<sys::Held>),
}

impl From<sys::Memory> for Place {
    fn from(memory: sys::Memory) -> Self {
        Place::Memory(memory)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Memory(memory) => memory.fmt(f),
            Place::Own(memory) => write!(f, "{} bytes on {:?}", memory.size(), memory.device()),
            Place::Passed(held) => write!(f, "{} bytes on {:?}", held.size(), held.device()),
        }
    }
}

impl Tensor {
    /// Numbers in `shape`.
    ///
    /// # Errors
    /// When `shape` does not have as many elements as `data`.
    pub fn new<T: Element>(name: impl Into<String>, shape: &[i64], data: Vec<T>) -> Result<Self> {
        let (name, bytes) = (name.into(), std::mem::size_of_val(data.as_slice()));
        if dense_bytes(T::DTYPE, shape) != Some(bytes) {
            return Err(Error::internal(format!(
                "output `{name}` has {} elements, not {shape:?}",
                data.len()
            )));
        }
        Ok(Self { name, dtype: T::DTYPE, shape: shape.to_vec(), place: sys::Memory::of(data).into() })
    }

    /// Numbers in `shape` that lie in memory of something else, such as an engine's own tensor. It is not copied; the
    /// owner is dropped, on any thread, when the host has let go of the tensor.
    ///
    /// # Errors
    /// When `shape` does not have as many elements as `owner` lends.
    pub fn lent<T: Element>(
        name: impl Into<String>,
        shape: &[i64],
        owner: impl AsRef<[T]> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (name, data) = (name.into(), sys::Memory::lent(owner));
        if dense_bytes(T::DTYPE, shape) != Some(data.len()) {
            return Err(Error::internal(format!("output `{name}` has {} bytes, not {shape:?}", data.len())));
        }
        Ok(Self { name, dtype: T::DTYPE, shape: shape.to_vec(), place: data.into() })
    }

    /// Byte strings in `shape`.
    ///
    /// # Errors
    /// When `shape` does not have as many elements as `strings`, or one is longer than 4 GiB.
    pub fn strings<S: AsRef<[u8]>>(name: impl Into<String>, shape: &[i64], strings: &[S]) -> Result<Self> {
        let name = name.into();
        if dense_bytes(DType::Uint8, shape) != Some(strings.len()) {
            return Err(Error::internal(format!(
                "output `{name}` has {} elements, not {shape:?}",
                strings.len()
            )));
        }
        let mut data = Vec::with_capacity(strings.iter().map(|s| s.as_ref().len() + 4).sum());
        for string in strings {
            let string = string.as_ref();
            let len = u32::try_from(string.len())
                .map_err(|_| Error::internal(format!("a byte string of output `{name}` is over 4 GiB")))?;
            data.extend_from_slice(&len.to_le_bytes());
            data.extend_from_slice(string);
        }
        Ok(Self { name, dtype: DType::Bytes, shape: shape.to_vec(), place: sys::Memory::of(data).into() })
    }

    /// Memory as it is, for element types without a Rust type (BOOL) or data that is already laid out.
    ///
    /// # Errors
    /// When `shape` of `dtype` does not take as many bytes as `data` has.
    pub fn raw(name: impl Into<String>, dtype: DType, shape: &[i64], data: Vec<u8>) -> Result<Self> {
        let name = name.into();
        if dtype != DType::Bytes && dense_bytes(dtype, shape) != Some(data.len()) {
            return Err(Error::internal(format!("output `{name}` has {} bytes, not {shape:?}", data.len())));
        }
        Ok(Self { name, dtype, shape: shape.to_vec(), place: sys::Memory::of(data).into() })
    }

    /// Numbers on a device, which stay there on their way to who takes them there, and are copied for anybody else. For a
    /// request that [keeps them there](crate::Request::keeps_on_device), or a call.
    ///
    /// # Errors
    /// When `shape` of `dtype` does not take as many bytes as `memory` has.
    pub fn on_device(
        name: impl Into<String>,
        dtype: DType,
        shape: &[i64],
        memory: impl DeviceMemory,
    ) -> Result<Self> {
        let (name, size) = (name.into(), memory.size());
        if dense_bytes(dtype, shape) != Some(size) {
            return Err(Error::internal(format!("output `{name}` has {size} bytes, not {shape:?}")));
        }
        Ok(Self { name, dtype, shape: shape.to_vec(), place: Place::Own(Arc::new(memory)) })
    }

    /// The same under another name: what one plugin calls its output another calls its input.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same again, its memory shared.
    pub(crate) fn share(&self) -> Self {
        let place = match &self.place {
            Place::Memory(memory) => Place::Memory(memory.clone()),
            Place::Own(memory) => Place::Own(memory.clone()),
            Place::Passed(held) => Place::Passed(held.clone()),
        };
        Self { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone(), place }
    }

    /// Whether it is on a device.
    pub(crate) fn is_on_device(&self) -> bool {
        !matches!(self.place, Place::Memory(_))
    }

    /// Has it in CPU memory, wherever it was.
    pub(crate) fn land(&mut self) -> Result<()> {
        let bytes = match &self.place {
            Place::Memory(_) => return Ok(()),
            Place::Own(memory) => {
                let mut bytes = vec![0; memory.size()];
                memory.read(0, &mut bytes)?;
                bytes
            }
            Place::Passed(held) => held.read(&self.name)?,
        };
        self.place = sys::Memory::of(bytes).into();
        Ok(())
    }
}

/// Shared, not copied.
impl From<DeviceTensor> for Tensor {
    fn from(tensor: DeviceTensor) -> Self {
        let DeviceTensor { name, dtype, shape, held } = tensor;
        Self { name, dtype, shape, place: Place::Passed(held) }
    }
}

/// A copy: what came from the host is only lent.
impl From<TensorView<'_>> for Tensor {
    fn from(view: TensorView<'_>) -> Self {
        let place = sys::Memory::of(view.data.to_vec()).into();
        Self { name: view.name.to_owned(), dtype: view.dtype, shape: view.shape.to_vec(), place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Lends its numbers, and counts when it goes.
    struct Owner([f32; 2], Arc<AtomicU32>);

    impl AsRef<[f32]> for Owner {
        fn as_ref(&self) -> &[f32] {
            &self.0
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn lent_memory_keeps_its_owner_alive() {
        let gone = Arc::new(AtomicU32::new(0));
        let tensor = Tensor::lent("t", &[2], Owner([1.0, 2.0], gone.clone())).unwrap();
        let Place::Memory(shared) = &tensor.place else { panic!("it is on no device") };
        let shared = shared.clone();
        assert_eq!(shared.len(), 8);
        drop(tensor);
        assert_eq!(gone.load(Ordering::Relaxed), 0);
        drop(shared);
        assert_eq!(gone.load(Ordering::Relaxed), 1);
        assert!(Tensor::lent("t", &[3], Owner([1.0, 2.0], gone)).is_err());
    }

    #[test]
    fn byte_strings_come_one_after_the_other() {
        let bytes = [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0];
        let view = TensorView { name: "s", dtype: DType::Bytes, shape: &[2], data: &bytes };
        assert_eq!(view.strings().unwrap(), [&b"ab"[..], b""]);
    }
}
