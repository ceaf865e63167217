//! What is read of structs that are short, empty or wrong; each is first read as it should be.
#![expect(unsafe_code, reason = "stands for the other side of the ABI")]

use super::Reader::{Lenient, Strict};
use super::*;
use crate::dtype::DType;
use crate::table;

/// The first `len` bytes of a struct, which says that it is so long, and nothing behind them.
struct Short(Vec<u64>);

impl Short {
    fn of<T: Size>(table: &T, len: usize) -> Self {
        let mut words = vec![0u64; len.div_ceil(8).max(1)];
        // SAFETY: both hold as many bytes, and a table is plain data.
        unsafe {
            let bytes = words.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping((&raw const *table).cast::<u8>(), bytes, len.min(size_of::<T>()));
            bytes.cast::<u32>().write(len as u32);
        }
        Self(words)
    }

    fn at<T>(&self) -> *const T {
        self.0.as_ptr().cast()
    }
}

/// Each length of a struct is taken from the one that it needs on, and not before.
fn lengths<T: Size>() {
    let table = T::new();
    for (reader, least) in [(Lenient, T::NEEDED), (Strict, T::V1_0)] {
        for len in 0..size_of::<T>() + 9 {
            let short = Short::of(&table, len);
            // SAFETY: as long as it says; 8 bytes at least.
            let taken = unsafe { known(short.at::<T>(), reader) };
            assert_eq!(taken.is_ok(), least <= len, "{} of {len} bytes, {reader:?}", T::NAME);
            assert!(taken.is_ok() || taken.err() == Some(Refused::Struct(T::NAME)));
        }
    }
    // SAFETY: null.
    assert!(unsafe { known(std::ptr::null::<T>(), Lenient) }.is_err());
    for (flags, taken) in [(0x8000, true), (0x1_0000, false), (0x8000_0000, false)] {
        let flagged = Short::of(&table, size_of::<T>());
        // SAFETY: ours; the second word holds the flags.
        unsafe { flagged.at::<u32>().cast_mut().add(1).write(flags) };
        // SAFETY: as long as it says.
        assert_eq!(unsafe { known(flagged.at::<T>(), Lenient) }.is_ok(), taken, "flags {flags:#x}");
    }
}

#[test]
fn a_struct_is_taken_from_its_length_in_1_0_on() {
    macro_rules! each {
        ($($name:ident)*) => {{
            let all = [$( (bp_name::<$name>(), $name::NEEDED, $name::V1_0, size_of::<$name>()) ),*];
            $( lengths::<$name>(); )*
            all
        }};
    }
    fn bp_name<T: Size>() -> &'static str {
        T::NAME
    }
    let all = each!(bp_error bp_tensor bp_request bp_chunk bp_done bp_query bp_bid bp_host bp_placement bp_instance
        bp_model bp_plugin bp_compute_1 bp_call bp_call_1 bp_device_memory bp_device_1
        bp_device_inputs_1 bp_license_1 bp_tokens_1 bp_stats_1);
    let known: Vec<_> = table::layout().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(all.map(|(name, ..)| name).to_vec(), known, "each struct has its length");
    for (name, needed, first, now) in all {
        assert!(8 <= needed && needed <= first, "{name}");
        // Nothing was appended to any of them since: the day that something is, that one is left out here.
        assert_eq!(first, now, "{name}: its last member of 1.0 is another");
    }
}

#[test]
fn what_is_short_reads_as_zero() {
    let whole =
        bp_error { code: 5, message: bp_str::new("why"), details_json: bp_str::new("{}"), ..bp_error::new() };
    let short = Short::of(&whole, bp_error::NEEDED);
    // SAFETY: as long as it says; its text is static.
    let (read, strict) = unsafe { (failure(short.at(), Lenient), failure(short.at(), Strict)) };
    let read = read.unwrap();
    assert_eq!((read.code, read.message.text(), read.reason.bytes()), (5, Some("why"), &b""[..]));
    assert_eq!(read.details_json.bytes(), b"");
    assert_eq!(strict.err(), Some(Refused::Struct("bp_error")));
}

#[test]
fn text_is_what_it_is() {
    let nowhere = bp_str { ptr: std::ptr::null(), len: 7 };
    let absurd = bp_str { ptr: c"".as_ptr(), len: u64::MAX };
    let latin = bp_str { ptr: c"\xe4".as_ptr(), len: 1 };
    // SAFETY: null, longer than any memory, or static.
    let [nowhere, absurd, latin, empty] =
        [nowhere, absurd, latin, bp_str::EMPTY].map(|text| unsafe { Str::new(text) });
    assert!(nowhere.is_nowhere() && nowhere.bytes().is_empty());
    assert!(absurd.bytes().is_empty() && !absurd.is_nowhere());
    assert_eq!((latin.bytes(), latin.text()), (&b"\xe4"[..], None));
    assert!(!empty.is_nowhere() && empty.text() == Some(""));
}

#[test]
fn an_end_is_well_or_says_why_or_not() {
    let error = bp_error { code: 13, message: bp_str::new("broken"), ..bp_error::new() };
    let short = Short::of(&error, 16);
    let ends = [std::ptr::null(), &raw const error, short.at()].map(|error| {
        let end = bp_done { error, usage_json: bp_str::new("{}"), confidence: f64::NAN, ..bp_done::new() };
        // SAFETY: ours, with what it points to, for as long as this function.
        let read = unsafe { done(&end, Lenient) }.unwrap();
        assert!(read.confidence.is_nan() && read.usage_json.bytes() == b"{}");
        read.error.map(|error| error.map(|error| error.code))
    });
    assert_eq!(ends, [None, Some(Ok(13)), Some(Err(Refused::Struct("bp_error")))]);
    // SAFETY: null.
    unsafe { assert!(done(std::ptr::null(), Lenient).is_err() && chunk(std::ptr::null(), Lenient).is_err()) };
}

static SHAPE: [i64; 2] = [2, 3];
static THREE: [i64; 1] = [3];
static DATA: [u8; 6] = [1, 2, 3, 4, 5, 6];

fn good() -> bp_tensor {
    let (code, bits) = DType::Uint8.raw();
    bp_tensor {
        name: bp_str::new("x"),
        dev_type: BP_DEV_CPU,
        code,
        bits,
        lanes: 1,
        ndim: 2,
        shape: SHAPE.as_ptr(),
        nbytes: 6,
        data: DATA.as_ptr().cast_mut().cast(),
        ..bp_tensor::new()
    }
}

#[test]
fn a_tensor_borrows_what_is_there() {
    let raw = good();
    // SAFETY: ours, and static.
    let read = unsafe { tensor::tensor(&raw, Strict) }.unwrap();
    assert_eq!((read.name, read.dtype, read.shape, read.strides), ("x", DType::Uint8, &SHAPE[..], None));
    assert!(matches!(read.memory, Memory::Lent(data) if data.as_ptr() == DATA.as_ptr() && data == DATA));
    assert_eq!(*read.dense(&DATA).unwrap(), DATA);

    // Behind an offset, and in a buffer: which is for its owner to look at.
    let raw = bp_tensor { byte_offset: 2, nbytes: 3, shape: THREE.as_ptr(), ndim: 1, buffer: 7, ..good() };
    // SAFETY: as above.
    let read = unsafe { tensor::tensor(&raw, Strict) }.unwrap();
    let start = DATA.as_ptr().wrapping_add(2);
    assert!(matches!(read.memory, Memory::Buffer { handle: 7, start: at, len: 3 } if at == start));
    // SAFETY: DATA holds them.
    assert_eq!(unsafe { read.memory.bytes() }, &DATA[2..5]);
}

#[test]
fn memory_of_a_device_is_for_those_who_ask_for_it() {
    let good = bp_tensor { dev_type: BP_DEV_EXT, dev_id: 3, buffer: 7, byte_offset: 2, ..good() };
    let read = |raw: bp_tensor| {
        // SAFETY: ours, with what it points to, for as long as this function; what is on a device is not followed.
        let rows = unsafe { Rows::new(&raw, 1, size_of::<bp_tensor>() as u32) };
        assert_eq!(rows.tensors(Lenient).unwrap_err().code(), BP_UNIMPLEMENTED);
        rows.anywhere(Lenient).map(|tensors| tensors[0].memory)
    };
    // Nowhere that this process can read.
    let at = 0xD0_0000_usize as *mut std::ffi::c_void;
    let timed = bp_tensor { data: at, sync_kind: BP_SYNC_CUDA_EVENT, sync: 9, ..good };
    let Memory::Device(there) = read(timed).unwrap() else { panic!("it is on a device") };
    let start = at as usize + 2;
    let expected = OnDevice {
        dev_type: BP_DEV_EXT,
        dev_id: 3,
        handle: 7,
        start,
        len: 6,
        sync_kind: BP_SYNC_CUDA_EVENT,
        sync: 9,
    };
    assert_eq!(there, expected);
    // SAFETY: none are read.
    assert!(unsafe { Memory::Device(there).bytes() }.is_empty());

    static COLUMNS: [i64; 2] = [1, 2];
    for (raw, code, says) in [
        (bp_tensor { buffer: 0, ..timed }, BP_INVALID_ARGUMENT, "is on device 12, and in no buffer"),
        (bp_tensor { strides: COLUMNS.as_ptr(), ..timed }, BP_UNIMPLEMENTED, "not dense and of numbers"),
        (bp_tensor { sync_kind: 1, ..timed }, BP_UNIMPLEMENTED, "in a way that has the number 1"),
        (bp_tensor { nbytes: 5, ..timed }, BP_INVALID_ARGUMENT, "has 5 bytes, which is not [2, 3] of UINT8"),
        (bp_tensor { byte_offset: u64::MAX, ..timed }, BP_INVALID_ARGUMENT, "which no memory has"),
    ] {
        let refused = read(raw).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
    }
}

#[test]
fn strides_are_followed_and_dense_ones_are_none() {
    let read = |strides: &'static [i64; 2]| {
        let raw = bp_tensor { strides: strides.as_ptr(), ..good() };
        // SAFETY: ours, and static.
        unsafe { tensor::tensor(&raw, Strict) }
    };
    assert_eq!(read(&[3, 1]).unwrap().strides, None);
    let columns = read(&[1, 2]).unwrap();
    assert_eq!(*columns.dense(&DATA).unwrap(), [1, 3, 5, 2, 4, 6]);
    for outside in [&[3, 2], &[-3, 1], &[i64::MAX, i64::MAX], &[i64::MIN, 1]] {
        let refused = read(outside).unwrap_err();
        assert_eq!(refused.code(), BP_INVALID_ARGUMENT);
        assert_eq!(
            refused.to_string(),
            format!("tensor `x` has the strides {outside:?}, which leave its 6 bytes")
        );
    }
}

#[test]
fn what_does_not_fit_together_is_refused_in_words() {
    static NEGATIVE: [i64; 2] = [-1, -6];
    static COLUMNS: [i64; 2] = [1, 2];
    static HUGE: [i64; 2] = [1 << 40, 1 << 40];
    let odd = |numbers: *const i64| numbers.wrapping_byte_add(1);
    let (bytes, _) = DType::Bytes.raw();
    let refused: [(bp_tensor, bp_code, &str); 21] = [
        (bp_tensor { struct_size: 16, ..good() }, BP_BAD_STRUCT, "`bp_tensor` is null, too short"),
        (bp_tensor { flags: 0x8000_0000, ..good() }, BP_BAD_STRUCT, "`bp_tensor` is null"),
        (
            bp_tensor { name: bp_str { ptr: c"\xff".as_ptr(), len: 1 }, ..good() },
            BP_INVALID_ARGUMENT,
            "the name of a tensor is not UTF-8",
        ),
        (bp_tensor { code: 77, ..good() }, BP_INVALID_ARGUMENT, "tensor `x` has the unknown type 77/8/1"),
        (bp_tensor { bits: 3, ..good() }, BP_INVALID_ARGUMENT, "tensor `x` has the unknown type 1/3/1"),
        (bp_tensor { lanes: 4, ..good() }, BP_UNIMPLEMENTED, "tensor `x` has the unknown type 1/8/4"),
        (bp_tensor { dev_type: 2, ..good() }, BP_UNIMPLEMENTED, "is on device 2, and not in CPU memory"),
        (bp_tensor { ndim: -1, ..good() }, BP_UNIMPLEMENTED, "has -1 dimensions, of 0 to 64"),
        (bp_tensor { ndim: i32::MAX, ..good() }, BP_UNIMPLEMENTED, "has 2147483647 dimensions, of 0 to 64"),
        (bp_tensor { shape: std::ptr::null(), ..good() }, BP_NULL_ARGUMENT, "has 2 dimensions and no shape"),
        (
            bp_tensor { shape: odd(SHAPE.as_ptr()), ..good() },
            BP_INVALID_ARGUMENT,
            "has a shape at an address",
        ),
        (
            bp_tensor { strides: odd(SHAPE.as_ptr()), ..good() },
            BP_INVALID_ARGUMENT,
            "has strides at an address",
        ),
        (
            bp_tensor { shape: NEGATIVE.as_ptr(), ..good() },
            BP_INVALID_ARGUMENT,
            "has the shape [-1, -6], which no",
        ),
        (bp_tensor { shape: HUGE.as_ptr(), ..good() }, BP_INVALID_ARGUMENT, "which no tensor has"),
        (bp_tensor { data: std::ptr::null_mut(), ..good() }, BP_NULL_ARGUMENT, "has 6 bytes at no address"),
        (bp_tensor { nbytes: 5, ..good() }, BP_INVALID_ARGUMENT, "has 5 bytes, which is not [2, 3] of UINT8"),
        (
            bp_tensor { nbytes: u64::MAX, ..good() },
            BP_INVALID_ARGUMENT,
            "bytes at offset 0, which no memory has",
        ),
        (
            bp_tensor { byte_offset: u64::MAX, ..good() },
            BP_INVALID_ARGUMENT,
            "claims 6 bytes at offset 18446744073709551615, which no memory has",
        ),
        (
            bp_tensor { code: bytes, ..good() },
            BP_INVALID_ARGUMENT,
            "has 6 bytes, which are not 6 byte strings",
        ),
        (
            bp_tensor { code: bytes, ndim: 0, ..good() },
            BP_INVALID_ARGUMENT,
            "has 6 bytes, which are not 1 byte strings",
        ),
        (
            bp_tensor { code: bytes, strides: COLUMNS.as_ptr(), ..good() },
            BP_INVALID_ARGUMENT,
            "has strides, and byte strings do not lie apart",
        ),
    ];
    for (raw, code, words) in refused {
        // SAFETY: ours; what it points to is static, or is not reached.
        let refused = unsafe { tensor::tensor(&raw, Strict) }.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.to_string().contains(words), "{refused}: expected `{words}`");
    }
    // What a host makes sense of all the same.
    let raw = bp_tensor { lanes: 0, ..good() };
    let short = Short::of(&raw, bp_tensor::NEEDED);
    // SAFETY: as long as it says, and static.
    unsafe {
        assert!(tensor::tensor(short.at(), Lenient).is_ok());
        assert!(tensor::tensor(&raw, Strict).is_err() && tensor::tensor(short.at(), Strict).is_err());
    }
}

#[test]
fn rows_are_where_their_stride_says() {
    #[repr(C)]
    struct Newer(bp_tensor, u64);
    let rows = [Newer(good(), 1), Newer(bp_tensor { name: bp_str::new("y"), ..good() }, 2)];
    let (at, newer) = (rows.as_ptr().cast::<bp_tensor>(), size_of::<Newer>() as u32);
    let read = |at: *const bp_tensor, count: u32, stride: u32, reader| {
        // SAFETY: ours; a row that does not fit its stride is not read.
        let tensors = unsafe { Rows::new(at, count, stride) }.tensors(reader);
        tensors.map(|all| all.iter().map(|tensor| tensor.name).collect::<Vec<_>>())
    };
    assert_eq!(read(at, 2, newer, Strict).unwrap(), ["x", "y"]);
    assert_eq!(read(std::ptr::null(), 0, 0, Strict).unwrap(), [""; 0]);
    for (at, count, stride) in [
        (std::ptr::null(), 1, newer),
        // No such array is looked for.
        (std::ptr::null(), u32::MAX, u32::MAX),
        (at, 2, 0),
        (at, u32::MAX, 8),
        (at, 2, bp_tensor::NEEDED as u32 - 1),
    ] {
        assert_eq!(read(at, count, stride, Lenient).unwrap_err(), Refused::Rows { count, stride });
    }
    let stride = bp_tensor::NEEDED as u32;
    assert_eq!(read(at, 1, stride, Strict).unwrap_err(), Refused::Rows { count: 1, stride });
}

#[test]
fn a_call_is_read_whole() {
    unsafe extern "C" fn on_done(_: *mut c_void, _: *const bp_done) {}
    let raw = bp_call {
        parent: 9,
        capability: bp_str::new("chat"),
        params_json: bp_str::new("{}"),
        deadline_ns: -4,
        on_done: Some(on_done),
        ..bp_call::new()
    };
    // SAFETY: ours, and static.
    let read = unsafe { call(&raw, Strict) }.unwrap();
    assert_eq!((read.parent, read.capability.text(), read.model.text()), (9, Some("chat"), Some("")));
    assert_eq!((read.params_json.bytes(), read.deadline_ns), (&b"{}"[..], -4));
    assert!(
        read.on_chunk.is_none() && read.on_done.is_some() && read.tensors.tensors(Strict).unwrap().is_empty()
    );
}
