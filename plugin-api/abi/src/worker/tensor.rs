//! Tensors of the ABI as messages, and back.
#![expect(unsafe_code, reason = "follows the pointers of bp_tensor")]

use super::message::Tensor;
use super::wire::Data;
use crate::table::*;

/// Sides that are passed on; no reader of ours takes more.
const MAX_SIDES: i32 = 64;

/// Tensors that somebody passes through a table. What its pointers lead to is taken as far as it is there; whether it
/// makes sense is for the receiver to say, who says it in both modes alike. Where the data begins is told by the
/// pointer alone: `byte_offset` is 0 on the other side.
///
/// # Safety
/// `rows` is null or points to `count` structs at `stride`, each readable up to its `struct_size`; they and what they
/// point to are valid for `'a`.
pub unsafe fn own_tensors<'a>(rows: *const bp_tensor, count: u32, stride: u32) -> Option<Vec<Tensor<'a>>> {
    if count == 0 {
        return Some(Vec::new());
    }
    if rows.is_null() || stride < 8 {
        return None;
    }
    // SAFETY: the caller's promise.
    (0..count as usize).map(|row| unsafe { own_tensor(rows.byte_add(row * stride as usize)) }).collect()
}

/// # Safety
/// As [`own_tensors`].
unsafe fn own_tensor<'a>(tensor: *const bp_tensor) -> Option<Tensor<'a>> {
    // SAFETY: the caller's promise.
    let raw = unsafe { bp_tensor::view(tensor) }?;
    let sides = |numbers: *const i64| {
        let count = usize::try_from(raw.ndim).ok().filter(|_| raw.ndim <= MAX_SIDES)?;
        let there = !numbers.is_null() && numbers.is_aligned();
        // SAFETY: ndim values, says the header.
        there.then(|| unsafe { std::slice::from_raw_parts(numbers, count) }.to_vec())
    };
    let start = (raw.data as usize).checked_add(usize::try_from(raw.byte_offset).ok()?);
    let end = start.and_then(|start| start.checked_add(usize::try_from(raw.nbytes).ok()?));
    let there = !raw.data.is_null() && end.is_some() && raw.nbytes <= isize::MAX as u64;
    // Device memory is not ours to read; who cannot use it refuses it by its device.
    let there = there && (raw.dev_type == BP_DEV_CPU || raw.nbytes == 0);
    let data = there.then(|| {
        let start = raw.data.cast::<u8>().wrapping_byte_add(raw.byte_offset as usize);
        // SAFETY: nbytes behind data + byte_offset, says the header; the range was checked not to wrap.
        Data::new(unsafe { std::slice::from_raw_parts(start, raw.nbytes as usize) })
    });
    Some(Tensor {
        struct_size: raw.struct_size,
        flags: raw.flags,
        // SAFETY: the caller's promise.
        name: unsafe { raw.name.bytes() },
        dev_type: raw.dev_type,
        dev_id: raw.dev_id,
        code: raw.code,
        bits: raw.bits,
        lanes: raw.lanes,
        ndim: raw.ndim,
        shape: sides(raw.shape),
        strides: sides(raw.strides),
        nbytes: raw.nbytes,
        data,
        buffer: raw.buffer != 0,
    })
}

/// Tensors as they cross a table: valid as long as `tensors` is. Buffers are for the caller to put in.
pub fn raw_tensors(tensors: &[Tensor<'_>]) -> Vec<bp_tensor> {
    let start = |numbers: &Option<Vec<i64>>| numbers.as_ref().map_or(std::ptr::null(), |all| all.as_ptr());
    tensors
        .iter()
        .map(|tensor| bp_tensor {
            // A reader may look as far as this says, and there is no more than this.
            struct_size: tensor.struct_size.min(size_of::<bp_tensor>() as u32),
            flags: tensor.flags,
            name: bp_str { ptr: tensor.name.as_ptr().cast(), len: tensor.name.len() as u64 },
            dev_type: tensor.dev_type,
            dev_id: tensor.dev_id,
            code: tensor.code,
            bits: tensor.bits,
            lanes: tensor.lanes,
            ndim: tensor.ndim,
            shape: start(&tensor.shape),
            strides: start(&tensor.strides),
            nbytes: tensor.nbytes,
            data: tensor.data.map_or(std::ptr::null_mut(), |data| data.bytes.as_ptr().cast_mut().cast()),
            ..bp_tensor::new()
        })
        .collect()
}
