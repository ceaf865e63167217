//! Tensors: of a request and of an answer as they are read, of a result as they are handed over.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::device;
use super::host::host_call;
use crate::device::{DeviceTensor, Input, Ready};
use crate::host::Host;
use crate::request::Request;
use crate::tensor::{Place, Tensor, TensorView};
use crate::{Error, Result};
use backplane_abi::read::{self, Memory, OnDevice, Reader, Refused, Rows};
use backplane_abi::table::*;
use std::ffi::c_void;

pub fn tensors(request: &Request) -> Result<Vec<TensorView<'_>>> {
    let raw = &request.raw;
    // SAFETY: n_in rows at in_stride, valid until finish (header, bp_request), and the views borrow the request.
    views(unsafe { Rows::new(raw.r#in, raw.n_in, raw.in_stride) })
}

/// The same, wherever they are.
pub fn inputs(request: &Request) -> Result<Vec<Input<'_>>> {
    let raw = &request.raw;
    // SAFETY: as above.
    anywhere(request.host, unsafe { Rows::new(raw.r#in, raw.n_in, raw.in_stride) })
}

/// The tensors of an array, each with a name of its own, wherever they are.
pub(super) fn anywhere(host: Host, rows: Rows<'_>) -> Result<Vec<Input<'_>>> {
    let read = distinct(rows.anywhere(Reader::Strict))?;
    read.iter().map(|tensor| input(host, tensor)).collect()
}

fn input<'a>(host: Host, tensor: &read::Tensor<'a>) -> Result<Input<'a>> {
    let Memory::Device(at) = tensor.memory else { return view(tensor).map(Input::Here) };
    let (name, shape) = (tensor.name.to_owned(), tensor.shape.to_vec());
    let gone = || Error::internal(format!("the host sent tensor `{name}` in a buffer that is gone"));
    let held = device::Held::hold(host, at).ok_or_else(gone)?;
    Ok(Input::Device(DeviceTensor { name, dtype: tensor.dtype, shape, held }))
}

/// The tensors of an array, each with a name of its own.
fn views(rows: Rows<'_>) -> Result<Vec<TensorView<'_>>> {
    distinct(rows.tensors(Reader::Strict))?.iter().map(view).collect()
}

fn distinct(read: Result<Vec<read::Tensor<'_>>, Refused>) -> Result<Vec<read::Tensor<'_>>> {
    let read = read.map_err(|refused| match &refused {
        Refused::Rows { count, stride } => {
            Error::internal(format!("the host sent {count} tensors at a stride of {stride} bytes"))
        }
        Refused::Struct(_) => Error::invalid("a tensor of the request is malformed"),
        Refused::Text(_) => Error::invalid(refused.to_string()),
        Refused::Tensor { name, .. } => Error::invalid(refused.to_string()).with_param(name),
    })?;
    let mut names: Vec<_> = read.iter().map(|tensor| tensor.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::invalid(format!("tensor `{}` comes twice", pair[0])).with_param(pair[0])),
        None => Ok(read),
    }
}

/// A tensor as the SDK shows it: in CPU memory, dense, with exactly the bytes that its shape takes. After this
/// function nothing about its shape is in doubt.
fn view<'a>(tensor: &read::Tensor<'a>) -> Result<TensorView<'a>> {
    let &read::Tensor { name, dtype, shape, strides, memory } = tensor;
    if strides.is_some() {
        return Err(Error::invalid(format!("tensor `{name}` is not dense")).with_param(name));
    }
    // SAFETY: the host's own, which its data lies in whether or not a buffer is named (header, bp_tensor).
    let data = unsafe { memory.bytes() };
    tensor.check(data).map_err(|refused| Error::invalid(refused.to_string()).with_param(name))?;
    Ok(TensorView { name, dtype, shape, data })
}

/// Tensors of ours as the structs that cross, for the length of one call of the host. Dropped, it gives back its own
/// references to the buffers; those that the host took stay.
pub(super) struct Lending<'a> {
    host: Host,
    pub(super) rows: Vec<bp_tensor>,
    _tensors: &'a [Tensor],
}

impl<'a> Lending<'a> {
    pub(super) fn new(host: Host, tensors: &'a [Tensor]) -> Self {
        let row = |tensor: &Tensor| {
            let (code, bits) = tensor.dtype.raw();
            let row = bp_tensor {
                name: bp_str::new(&tensor.name),
                dev_type: BP_DEV_CPU,
                code,
                bits,
                lanes: 1,
                ndim: tensor.shape.len() as i32,
                shape: tensor.shape.as_ptr(),
                ..bp_tensor::new()
            };
            match &tensor.place {
                Place::Memory(memory) => bp_tensor {
                    nbytes: memory.len() as u64,
                    data: memory.as_ptr().cast_mut().cast(),
                    // Where no buffer can be had the host copies.
                    buffer: if SHARE_FROM <= memory.len() {
                        memory.share(host).unwrap_or_default()
                    } else {
                        0
                    },
                    ..row
                },
                Place::Own(memory) => {
                    let (sync_kind, sync) = match memory.ready() {
                        Ready::Now => (BP_SYNC_NONE, 0),
                        Ready::CudaEvent(event) => (BP_SYNC_CUDA_EVENT, event),
                    };
                    bp_tensor {
                        dev_type: memory.device().kind,
                        dev_id: memory.device().id,
                        nbytes: memory.size() as u64,
                        data: memory.address() as *mut c_void,
                        // Where no buffer can be had the host refuses it.
                        buffer: device::wrap(host, memory).unwrap_or_default(),
                        sync_kind,
                        sync,
                        ..row
                    }
                }
                Place::Passed(held) => {
                    let OnDevice { dev_type, dev_id, handle, start, len, sync_kind, sync } = held.lend();
                    let (nbytes, data) = (len as u64, start as *mut c_void);
                    bp_tensor { dev_type, dev_id, nbytes, data, buffer: handle, sync_kind, sync, ..row }
                }
            }
        };
        Self { host, rows: tensors.iter().map(row).collect(), _tensors: tensors }
    }
}

impl Drop for Lending<'_> {
    fn drop(&mut self) {
        for row in self.rows.iter().filter(|row| row.buffer != 0) {
            host_call!(self.host, buf_release(row.buffer));
        }
    }
}

/// From this size on a tensor is shared with the host rather than copied by it: below, the copy is cheaper than the
/// handle.
const SHARE_FROM: usize = 4096;
