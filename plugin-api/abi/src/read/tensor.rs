//! Tensors, whose parts must fit together: after [`tensor`] nothing about a shape is in doubt.
#![expect(unsafe_code, reason = "follows the pointers of bp_tensor")]

use super::strided::{fits, gather, is_dense};
use super::{Reader, Refused, Size, Str, known, strings};
use crate::dtype::{DType, dense_bytes};
use crate::table::*;
use std::borrow::Cow;
use std::marker::PhantomData;

/// Sides that a tensor may have.
pub const MAX_SIDES: i32 = 64;

/// An array of `bp_tensor`, not looked at yet.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    at: *const bp_tensor,
    count: u32,
    stride: u32,
    lent: PhantomData<&'a bp_tensor>,
}

impl<'a> Rows<'a> {
    /// # Safety
    /// `at` is null, or points to `count` structs at `stride`, each readable up to its `struct_size`; they and what they
    /// point to are valid for `'a`.
    pub unsafe fn new(at: *const bp_tensor, count: u32, stride: u32) -> Self {
        Self { at, count, stride, lent: PhantomData }
    }

    /// As they came.
    pub fn raw(self) -> (*const bp_tensor, u32, u32) {
        (self.at, self.count, self.stride)
    }

    /// All of them, in CPU memory, or what is wrong with the first that is not taken.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn tensors(self, reader: Reader) -> Result<Vec<Tensor<'a>>, Refused> {
        self.read(reader, false)
    }

    /// As [`Rows::tensors`], for one who takes them in the memory of a device too.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn anywhere(self, reader: Reader) -> Result<Vec<Tensor<'a>>, Refused> {
        self.read(reader, true)
    }

    fn read(self, reader: Reader, devices: bool) -> Result<Vec<Tensor<'a>>, Refused> {
        let least = match reader {
            Reader::Lenient => bp_tensor::NEEDED,
            Reader::Strict => bp_tensor::V1_0,
        };
        let stride = self.stride as usize;
        if self.count > 0 && (self.at.is_null() || stride < least) {
            return Err(Refused::Rows { count: self.count, stride: self.stride });
        }
        // SAFETY: the promise of `new`.
        (0..self.count as usize)
            .map(|row| unsafe { read(self.at.byte_add(row * stride), reader, devices) })
            .collect()
    }
}

/// A tensor whose parts fit together.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its sides, none of which is negative; empty for a scalar.
    pub shape: &'a [i64],
    /// As many as sides, where its elements lie apart; never of byte strings.
    pub strides: Option<&'a [i64]>,
    /// Where its bytes are.
    pub memory: Memory<'a>,
}

/// Where the bytes of a tensor are.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// With who passed it, for as long as the call lasts: to be copied.
    Lent(&'a [u8]),
    /// In a buffer, if that holds them: to be asked before they are read, and then to be shared.
    Buffer {
        /// Not 0.
        handle: bp_buf,
        /// The first byte: `data` and `byte_offset`.
        start: *const u8,
        /// How many; as many addresses there are from `start` on.
        len: usize,
    },
    /// On a device: only of [`Rows::anywhere`].
    Device(OnDevice),
}

/// Dense numbers in the memory of a device, which only the owner of the buffer and who knows the device can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDevice {
    /// `BP_DEV_*`, not [`BP_DEV_CPU`].
    pub dev_type: i32,
    /// Which of its kind.
    pub dev_id: i32,
    /// Not 0: to be asked whether it holds them.
    pub handle: bp_buf,
    /// Address of the first byte, which is the device's and nowhere to be read.
    pub start: usize,
    /// How many; not 0.
    pub len: usize,
    /// [`BP_SYNC_NONE`] or [`BP_SYNC_CUDA_EVENT`].
    pub sync_kind: i32,
    /// The event.
    pub sync: u64,
}

impl<'a> Memory<'a> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Memory::Lent(bytes) => bytes.len(),
            Memory::Buffer { len, .. } | Memory::Device(OnDevice { len, .. }) => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that a processor can read; of a device's memory none.
    ///
    /// # Safety
    /// A buffer holds them, for `'a`.
    pub unsafe fn bytes(self) -> &'a [u8] {
        match self {
            Memory::Lent(bytes) => bytes,
            // SAFETY: the caller's promise.
            Memory::Buffer { start, len, .. } => unsafe { std::slice::from_raw_parts(start, len) },
            Memory::Device(_) => &[],
        }
    }
}

impl<'a> Tensor<'a> {
    /// Whether `data`, which is what its memory holds, is as many byte strings as its shape has, if it has any: the one
    /// thing that cannot be seen without looking at the bytes. Those that are lent were looked at.
    ///
    /// # Errors
    /// [`Refused::Tensor`].
    pub fn check(&self, data: &[u8]) -> Result<(), Refused> {
        let count = dense_bytes(DType::Uint8, self.shape).unwrap_or(usize::MAX);
        if self.dtype.size().is_some() || strings::are(data, count) {
            return Ok(());
        }
        Err(not_strings(self.name, data.len(), count))
    }

    /// Its elements in row-major order, out of `data`, which is what its memory holds.
    ///
    /// # Errors
    /// As [`Tensor::check`].
    pub fn dense<'d>(&self, data: &'d [u8]) -> Result<Cow<'d, [u8]>, Refused> {
        let (Some(size), Some(strides)) = (self.dtype.size(), self.strides) else {
            return self.check(data).map(|()| Cow::Borrowed(data));
        };
        let gathered = gather(data, size, self.shape, strides);
        gathered.map(Cow::Owned).ok_or_else(|| beyond(self.name, strides, data.len()))
    }
}

fn wrong(name: &str, code: bp_code, what: String) -> Refused {
    Refused::Tensor { name: name.to_owned(), what, code }
}

fn beyond(name: &str, strides: &[i64], len: usize) -> Refused {
    wrong(name, BP_INVALID_ARGUMENT, format!("has the strides {strides:?}, which leave its {len} bytes"))
}

fn not_strings(name: &str, len: usize, count: usize) -> Refused {
    wrong(name, BP_INVALID_ARGUMENT, format!("has {len} bytes, which are not {count} byte strings"))
}

/// Reads a tensor in CPU memory.
///
/// # Errors
/// [`Refused`], in the words of the first thing that is wrong with it.
///
/// # Safety
/// `at` is null, or readable up to its `struct_size`; it and what it points to are valid for `'a`.
pub unsafe fn tensor<'a>(at: *const bp_tensor, reader: Reader) -> Result<Tensor<'a>, Refused> {
    // SAFETY: the caller's promise.
    unsafe { read(at, reader, false) }
}

/// [`tensor`]; with `devices`, wherever its memory is.
///
/// # Safety
/// As [`tensor`].
unsafe fn read<'a>(at: *const bp_tensor, reader: Reader, devices: bool) -> Result<Tensor<'a>, Refused> {
    // SAFETY: the caller's promise.
    let raw = unsafe { known(at, reader) }?;
    // SAFETY: the caller's promise.
    let name = unsafe { Str::new(raw.name) }.text().ok_or(Refused::Text("the name of a tensor"))?;
    let invalid = |what: String| wrong(name, BP_INVALID_ARGUMENT, what);
    let cannot = |what: String| wrong(name, BP_UNIMPLEMENTED, what);

    let (code, bits, lanes) = (raw.code, raw.bits, raw.lanes);
    let unknown = || format!("has the unknown type {code}/{bits}/{lanes}");
    let dtype = DType::from_raw(code, bits).ok_or_else(|| invalid(unknown()))?;
    let on_device = raw.dev_type != BP_DEV_CPU;
    if on_device && !devices {
        return Err(cannot(format!("is on device {}, and not in CPU memory", raw.dev_type)));
    }
    if lanes > 1 || reader == Reader::Strict && lanes != 1 {
        return Err(cannot(unknown()));
    }
    if !(0..=MAX_SIDES).contains(&raw.ndim) {
        return Err(cannot(format!("has {} dimensions, of 0 to {MAX_SIDES}", raw.ndim)));
    }
    // SAFETY: ndim values, says the header.
    let shape = match unsafe { sides(raw.shape, raw.ndim) } {
        Some(shape) => shape,
        None if raw.shape.is_null() => {
            return Err(wrong(name, BP_NULL_ARGUMENT, format!("has {} dimensions and no shape", raw.ndim)));
        }
        None => return Err(invalid("has a shape at an address that no 64-bit number has".to_owned())),
    };
    // One byte an element: how many elements there are, and whether that is a number at all.
    let elements = dense_bytes(DType::Uint8, shape)
        .ok_or_else(|| invalid(format!("has the shape {shape:?}, which no tensor has")))?;

    let (offset, nbytes) = (raw.byte_offset, raw.nbytes);
    let nowhere = || invalid(format!("claims {nbytes} bytes at offset {offset}, which no memory has"));
    // No memory is longer than this, or ends beyond all addresses.
    let len = usize::try_from(nbytes).ok().filter(|len| *len <= isize::MAX as usize).ok_or_else(nowhere)?;
    let start = usize::try_from(offset).ok().and_then(|offset| (raw.data as usize).checked_add(offset));
    start.and_then(|start| start.checked_add(len)).ok_or_else(nowhere)?;
    if raw.data.is_null() && len > 0 {
        return Err(wrong(name, BP_NULL_ARGUMENT, format!("has {len} bytes at no address")));
    }

    let dense = dense_bytes(dtype, shape);
    // SAFETY: ndim values, or null for dense.
    let strides = (!raw.strides.is_null()).then(|| unsafe { sides(raw.strides, raw.ndim) });
    let strides = match strides {
        Some(None) => return Err(invalid("has strides at an address that no 64-bit number has".to_owned())),
        Some(Some(strides)) if is_dense(shape, strides) && dense.is_none_or(|dense| dense == len) => None,
        Some(strides) => strides,
        None => None,
    };
    match (strides, dtype.size()) {
        (None, Some(_)) if dense != Some(len) => {
            return Err(invalid(format!("has {len} bytes, which is not {shape:?} of {}", dtype.name())));
        }
        (Some(strides), Some(size)) if !fits(len, size, shape, strides) => {
            return Err(beyond(name, strides, len));
        }
        (Some(_), None) => return Err(invalid("has strides, and byte strings do not lie apart".to_owned())),
        // Each takes four bytes at least; that they are strings is seen when they are read.
        (None, None) if len / 4 < elements => {
            return Err(not_strings(name, len, elements));
        }
        _ => {}
    }

    let start = raw.data.cast::<u8>().cast_const().wrapping_byte_add(offset as usize);
    let memory = if len == 0 {
        Memory::Lent(&[])
    } else if on_device {
        let (dev_type, dev_id, handle) = (raw.dev_type, raw.dev_id, raw.buffer);
        if strides.is_some() || dtype.size().is_none() {
            return Err(cannot(format!("is on device {dev_type}, and is not dense and of numbers")));
        }
        if handle == 0 {
            return Err(invalid(format!("is on device {dev_type}, and in no buffer")));
        }
        let (sync_kind, sync) = (raw.sync_kind, raw.sync);
        if !matches!(sync_kind, BP_SYNC_NONE | BP_SYNC_CUDA_EVENT) {
            return Err(cannot(format!("is to be waited for in a way that has the number {sync_kind}")));
        }
        let start = start as usize;
        Memory::Device(OnDevice { dev_type, dev_id, handle, start, len, sync_kind, sync })
    } else if raw.buffer != 0 {
        Memory::Buffer { handle: raw.buffer, start, len }
    } else {
        // SAFETY: nbytes behind data + byte_offset, says the header; not null, and a range of addresses.
        Memory::Lent(unsafe { std::slice::from_raw_parts(start, len) })
    };
    let tensor = Tensor { name, dtype, shape, strides, memory };
    if let Memory::Lent(data) = memory {
        tensor.check(data)?;
    }
    Ok(tensor)
}

/// `count` numbers of a shape or of strides; `None` when they are nowhere, or not where numbers lie: Rust reads a number
/// only there, and C does not always see to that.
///
/// # Safety
/// `numbers` is null, misaligned, or valid for `count` numbers during `'a`.
unsafe fn sides<'a>(numbers: *const i64, count: i32) -> Option<&'a [i64]> {
    match usize::try_from(count).ok()? {
        0 => Some(&[]),
        _ if numbers.is_null() || !numbers.is_aligned() => None,
        // SAFETY: the caller's promise.
        count => Some(unsafe { std::slice::from_raw_parts(numbers, count) }),
    }
}
