//! Parameters and tensors: of every type and shape, wherever they lie in memory, and malformed in every way.

use super::{Bench, Case, Verdict, ensure, failed, is_typed, shorten, skipped};
use crate::answer::{Answer, End};
use crate::input::{RequestInput, TensorInput};
use crate::session::Instance;
use backplane_abi::dtype::{DType, dense_bytes};

const TENSOR: &str = "bp_tensor: \"Of the numeric kinds every element is stored; strides are in elements, NULL means \
                      dense row-major. nbytes is the size of the data behind data+byte_offset\"";
const TYPED: &str = "bp_code: the canonical codes; \"BP_INVALID_ARGUMENT: the request is wrong whatever the state of \
                     the system\"";
const SAY_WHAT: &str = "finish the request with BP_INVALID_ARGUMENT and a message that names what is wrong";

/// Sends something malformed. It must be refused in words, or where that is allowed answered.
fn refuse(instance: &Instance, request: RequestInput, what: &str, may_answer: bool) -> Verdict<()> {
    let answer = instance.send(request).wait();
    let well_refused =
        answer.failure().is_some_and(|failure| is_typed(failure) && !failure.message.is_empty())
            || matches!(&answer.end, End::Refused(failure) if failure.code < 0);
    ensure(
        well_refused || may_answer && answer.is_done(),
        || format!("a request with {what} {}", answer.end),
        TYPED,
        SAY_WHAT,
    )
}

pub fn parameters(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    // A plugin that takes no parameters need not read them.
    let may_answer = !case.takes_params();
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let bad: [(&str, &[u8]); 7] = [
        ("parameters that end too early", b"{"),
        ("parameters that are no JSON", b"text"),
        ("parameters that are a list", b"[]"),
        ("parameters that are not UTF-8", b"{\"text\":\"\xff\xfe\"}"),
        ("parameters cut inside a character", b"{\"text\":\"\xc3"),
        ("parameters with a NUL", b"{}\0"),
        ("parameters nested a hundred thousand deep", &deep),
    ];
    for (what, params) in bad {
        refuse(&instance, RequestInput { params: params.to_vec(), ..case.request() }, what, may_answer)?;
    }
    bench.expect_serving(case, &instance, "after malformed parameters")?;
    Ok(format!("{} kinds refused, and it serves on", bad.len()))
}

pub fn unknown_capability(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    for capability in ["com.example.no.such.thing", "", "ch\u{e4}t", &"x".repeat(70_000)] {
        let what = format!("the capability `{}`", shorten(capability));
        refuse(
            &instance,
            RequestInput { capability: capability.to_owned(), ..case.request() },
            &what,
            false,
        )?;
    }
    bench.expect_serving(case, &instance, "after unknown capabilities")?;
    Ok("refused, and it serves on".to_owned())
}

/// The case with one of its tensors replaced.
fn with_tensor(case: &Case, at: usize, tensor: TensorInput) -> RequestInput {
    let mut request = case.request();
    request.tensors[at] = tensor;
    request
}

/// The strides of a dense tensor.
fn dense_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for side in (1..shape.len()).rev() {
        strides[side - 1] = strides[side] * shape[side];
    }
    strides
}

/// The same content with a gap after every element, said in its strides. `None` for tensors that have none.
fn spread(tensor: &TensorInput) -> Option<TensorInput> {
    let size = usize::from(tensor.dtype.1) / 8;
    if tensor.shape.is_empty()
        || tensor.data.is_empty()
        || DType::from_raw(tensor.dtype.0, tensor.dtype.1)? == DType::Bytes
    {
        return None;
    }
    let data = tensor.data.chunks(size).flat_map(|element| [element, &vec![0xA5; size]].concat()).collect();
    let strides = dense_strides(&tensor.shape).iter().map(|stride| stride * 2).collect();
    Some(TensorInput { data, strides: Some(strides), ..tensor.clone() })
}

pub fn placement(bench: &Bench<'_>, case: &Case) -> Verdict {
    if case.tensors.is_empty() {
        return skipped("the case has no tensors");
    }
    let instance = bench.instance(case)?;
    let mut strided = "strides are understood";
    for (at, tensor) in case.tensors.iter().enumerate() {
        let places = [
            ("at an odd address", TensorInput { misaligned: true, ..tensor.clone() }),
            ("behind a byte_offset", TensorInput { byte_offset: 24, ..tensor.clone() }),
            ("behind an odd byte_offset", TensorInput { byte_offset: 3, ..tensor.clone() }),
            ("in a buffer", TensorInput { buffer: true, ..tensor.clone() }),
            (
                "with dense strides",
                TensorInput { strides: Some(dense_strides(&tensor.shape)), ..tensor.clone() },
            ),
            ("with an optional flag", TensorInput { flags: tensor.flags | 0x8000, ..tensor.clone() }),
        ];
        for (place, tensor) in places {
            let answer = instance.send(with_tensor(case, at, tensor)).wait();
            bench.expect_reference(case, &answer, &format!("with a tensor {place}"))?;
        }
        if let Some(spread) = spread(tensor) {
            let answer = instance.send(with_tensor(case, at, spread)).wait();
            match answer.failure() {
                Some(failure) if is_typed(failure) => strided = "strides that are not dense are refused",
                _ => bench.expect_reference(case, &answer, "with a tensor whose strides are not dense")?,
            }
        }
    }
    Ok(strided.to_owned())
}

/// Shapes of every kind: scalar, empty, one side, many sides.
const SHAPES: [&[i64]; 6] = [&[], &[0], &[3, 0, 2], &[5], &[2, 3], &[1, 2, 1, 2, 1, 2, 1, 2]];

pub fn types_and_shapes(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    for dtype in DType::ALL {
        for shape in SHAPES {
            let what = format!("a tensor of {} {shape:?}", dtype.name());
            let sent = TensorInput::patterned("suite.small", dtype, shape);
            let large = TensorInput::patterned("suite.large", dtype, &[3000]);
            let mut request = case.request();
            request.tensors.extend([sent.clone(), large.clone()]);
            if !case.gives_tensors_back {
                // It may be ignored or refused, but not by breaking down.
                refuse(&instance, request, &what, true)?;
                continue;
            }
            let answer = instance.send(request).wait();
            ensure(
                answer.is_done(),
                || format!("{what} {}", answer.end),
                TENSOR,
                "take what the ABI can carry",
            )?;
            for sent in [sent, large] {
                expect_back(&answer, &sent, dtype)?;
            }
        }
    }
    bench.expect_serving(case, &instance, "after tensors of every type and shape")?;
    Ok(format!(
        "{} types in {} shapes, {}",
        DType::ALL.len(),
        SHAPES.len(),
        if case.gives_tensors_back { "all given back" } else { "none breaks it" }
    ))
}

fn expect_back(answer: &Answer, sent: &TensorInput, dtype: DType) -> Verdict<()> {
    let name = String::from_utf8_lossy(&sent.name);
    let same = answer
        .tensor(&name)
        .is_some_and(|back| back.dtype == dtype && back.shape == sent.shape && back.data == sent.data);
    ensure(
        same,
        || format!("a tensor of {} {:?} did not come back as it was", dtype.name(), sent.shape),
        TENSOR,
        "give back name, type, shape and bytes, or do not say `gives_tensors_back()`",
    )
}

/// One tensor, malformed in every way.
fn malformed(good: &TensorInput) -> Vec<(&'static str, TensorInput)> {
    let with_shape = |shape: Vec<i64>| TensorInput { shape, ..good.clone() };
    let rank = good.shape.len().max(1);
    let mut negative = good.shape.clone();
    negative.push(-1);
    let mut bad = vec![
        ("a negative side", with_shape(negative)),
        ("a side of -2^63", with_shape(vec![i64::MIN; rank])),
        ("a side of 2^63-1", with_shape(vec![i64::MAX])),
        ("a shape whose product overflows", with_shape(vec![1 << 40, 1 << 40])),
        ("a shape whose product overflows to 0", with_shape(vec![1 << 32, 1 << 32])),
        ("more elements than bytes", with_shape(vec![1 << 20, 3])),
        ("a negative number of sides", TensorInput { ndim: Some(-1), ..good.clone() }),
        ("an unknown type code", TensorInput { dtype: (77, 32, 1), ..good.clone() }),
        ("three bits an element", TensorInput { dtype: (1, 3, 1), ..good.clone() }),
        ("four lanes", TensorInput { dtype: (good.dtype.0, good.dtype.1, 4), ..good.clone() }),
        ("device memory", TensorInput { device: backplane_abi::table::BP_DEV_CPU + 1, ..good.clone() }),
        ("a required flag", TensorInput { flags: good.flags | 0x8000_0000, ..good.clone() }),
        ("a name that is not UTF-8", TensorInput { name: vec![0xff, 0xfe], ..good.clone() }),
    ];
    if let [.., _] = good.data[..] {
        let cut = good.data[..good.data.len() - 1].to_vec();
        bad.push(("a byte too few", TensorInput { data: cut, ..good.clone() }));
        bad.push(("a byte too many", TensorInput { data: [&good.data[..], &[0]].concat(), ..good.clone() }));
        bad.push(("no bytes at all", TensorInput { data: Vec::new(), ..good.clone() }));
    }
    let strings = |data: &[u8], shape: &[i64]| TensorInput {
        dtype: (200, 8, 1),
        data: data.to_vec(),
        shape: shape.to_vec(),
        strides: None,
        ..good.clone()
    };
    bad.extend([
        ("a byte string without its length", strings(&[1, 0], &[1])),
        ("a byte string longer than its memory", strings(&[255, 255, 255, 255, 0], &[1])),
        ("fewer byte strings than its shape", strings(&[0, 0, 0, 0], &[2])),
        ("more byte strings than its shape", strings(&[0, 0, 0, 0, 0, 0, 0, 0], &[1])),
        ("2^62 byte strings", strings(&[0, 0, 0, 0], &[1 << 62])),
        ("2^80 byte strings", strings(&[0, 0, 0, 0], &[1 << 40, 1 << 40])),
    ]);
    bad
}

pub fn malformed_tensors(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let mut count = 0;
    if case.tensors.is_empty() {
        // A plugin that takes no tensors may leave one that it does not know unread.
        for (what, tensor) in malformed(&TensorInput::fp32("suite.extra", &[3], &[1.0, 2.0, 3.0])) {
            let mut request = case.request();
            request.tensors.push(tensor);
            refuse(&instance, request, &format!("a tensor with {what}"), true)?;
            count += 1;
        }
    }
    for (at, tensor) in case.tensors.iter().enumerate() {
        debug_assert!(dense_bytes(DType::Uint8, &tensor.shape).is_some());
        for (what, tensor) in malformed(tensor) {
            refuse(&instance, with_tensor(case, at, tensor), &format!("a tensor with {what}"), false)?;
            count += 1;
        }
    }
    bench.expect_serving(case, &instance, "after malformed tensors")?;
    Ok(format!("{count} refused, and it serves on"))
}

pub fn tensor_names(bench: &Bench<'_>, case: &Case) -> Verdict {
    if case.tensors.is_empty() {
        return skipped("the case has no tensors");
    }
    let instance = bench.instance(case)?;
    for at in 0..case.tensors.len() {
        let mut missing = case.request();
        let name = missing.tensors.remove(at).name;
        let name = String::from_utf8_lossy(&name).into_owned();
        // It may be optional.
        refuse(&instance, missing, &format!("tensor `{name}` missing"), true)?;
        let mut twice = case.request();
        twice.tensors.push(case.tensors[at].clone());
        refuse(&instance, twice, &format!("tensor `{name}` twice"), false)?;
    }
    let answer = instance.send(RequestInput { tensors: Vec::new(), ..case.request() }).wait();
    if let Some(failure) = answer.failure().filter(|failure| !is_typed(failure)) {
        return failed(format!("a request without any tensor failed with {failure}"), TYPED, SAY_WHAT);
    }
    bench.expect_serving(case, &instance, "after missing and repeated tensors")?;
    Ok("missing and repeated ones are named".to_owned())
}
