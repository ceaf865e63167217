//! Requests that nobody would think of: the case, changed at random. The seed says which.

use super::{Bench, Case, Stop, Verdict, is_typed, shorten, skipped};
use crate::answer::End;
use crate::input::{RequestInput, TensorInput};
use crate::session::Instance;
use backplane_abi::dtype::DType;
use serde_json::{Map, Value, json};
use std::time::Duration;

const ROUNDS: usize = 100;
const RULE: &str = "bp_code: \"the request is wrong whatever the state of the system\"; Failure: \"No exception, panic or \
                    longjmp may cross this boundary\"";
const ADVICE: &str = "read what comes as text from a stranger: finish with BP_INVALID_ARGUMENT or BP_OUT_OF_RANGE and a \
                      message that names what is wrong; `--reproduce` with the seed sends the same again";

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len())).cloned()
    }
}

pub fn parameters(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let mut random = Random(bench.test.seed);
    for round in 0..ROUNDS {
        let params =
            if round % 2 == 0 { bytes(&mut random, &case.params) } else { values(&mut random, &case.params) };
        let what = format!("the parameters `{}`", shorten(&String::from_utf8_lossy(&params)));
        expect_taken(bench, &instance, RequestInput { params, ..case.request() }, &what)?;
    }
    bench.expect_serving(case, &instance, "after parameters made at random")?;
    Ok(format!("{ROUNDS} requests, seed {}", bench.test.seed))
}

pub fn tensors(bench: &Bench<'_>, case: &Case) -> Verdict {
    if case.tensors.is_empty() {
        return skipped("the case has no tensors");
    }
    let instance = bench.instance(case)?;
    let mut random = Random(bench.test.seed);
    for _ in 0..ROUNDS {
        let mut request = case.request();
        let at = random.below(request.tensors.len());
        spoil(&mut random, &mut request.tensors[at]);
        let TensorInput { dtype, shape, strides, data, byte_offset, .. } = &request.tensors[at];
        let what = format!(
            "a tensor of type {dtype:?}, shape {shape:?}, strides {strides:?}, {} bytes at {byte_offset}",
            data.len()
        );
        expect_taken(bench, &instance, request, &what)?;
    }
    bench.expect_serving(case, &instance, "after tensors made at random")?;
    Ok(format!("{ROUNDS} requests, seed {}", bench.test.seed))
}

/// It may be answered or refused, not broken by. What takes long is cancelled.
fn expect_taken(bench: &Bench<'_>, instance: &Instance, request: RequestInput, what: &str) -> Verdict<()> {
    let running = instance.send(request);
    let mut answer = running.wait_for(Duration::from_millis(100));
    if matches!(answer.end, End::Unfinished) {
        running.cancel();
        answer = running.wait_for(bench.grace(instance));
    }
    let taken = match &answer.end {
        End::Done { .. } => true,
        End::Refused(failure) => failure.code < 0,
        End::Failed(failure) => is_typed(failure) && !failure.message.is_empty(),
        End::Unfinished => false,
    };
    if taken {
        return Ok(());
    }
    let seed = bench.test.seed;
    Err(Stop::Failed {
        what: format!("a request with {what} {} (seed {seed})", answer.end),
        rule: RULE,
        advice: ADVICE,
    })
}

/// The text with some bytes changed, cut out or repeated.
fn bytes(random: &mut Random, text: &str) -> Vec<u8> {
    let mut text = text.as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(text.len());
        let end = (at + 1 + random.below(8)).min(text.len());
        match random.below(4) {
            0 if at < text.len() => text[at] = random.next() as u8,
            1 if at < end => drop(text.drain(at..end)),
            2 if at < end => {
                let again = text[at..end].to_vec();
                text.splice(at..at, again);
            }
            _ => text.insert(at, random.pick(b"{}[]\",:\\0e-\n\xc3").unwrap_or(b' ')),
        }
    }
    text
}

/// The object with a value of another kind or size.
fn values(random: &mut Random, text: &str) -> Vec<u8> {
    let mut params: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let names: Vec<String> = params.keys().cloned().collect();
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.1),
        json!(""),
        json!("\u{0}\u{7f}\u{fffd}\u{10ffff}\u{202e}"),
        json!("x".repeat(100_000)),
        json!("x ".repeat(20_000)),
        json!([]),
        json!({}),
        json!([[[[[[[[null]]]]]]]]),
        json!(vec![0; 10_000]),
    ];
    let value = random.pick(&strange).unwrap_or_default();
    match (random.below(4), random.pick(&names)) {
        (0, Some(name)) => _ = params.shift_remove(&name),
        (1, _) | (_, None) => _ = params.insert(format!("suite_{}", random.below(10)), value),
        (_, Some(name)) => _ = params.insert(name, value),
    }
    serde_json::to_vec(&params).unwrap_or_default()
}

fn spoil(random: &mut Random, tensor: &mut TensorInput) {
    for _ in 0..=random.below(2) {
        let side = [0, 1, 2, 3, -1, 1 << 31, i64::MAX, i64::MIN, 7];
        match random.below(7) {
            0 => tensor.shape = (0..random.below(5)).filter_map(|_| random.pick(&side)).collect(),
            1 => tensor.data.truncate(random.below(tensor.data.len() + 1)),
            2 => tensor.data.extend((0..random.below(64)).map(|n| n as u8)),
            3 => tensor.strides = Some((0..tensor.shape.len()).filter_map(|_| random.pick(&side)).collect()),
            4 => {
                let (code, bits) = random.pick(&DType::ALL).unwrap_or(DType::Fp32).raw();
                tensor.dtype = (code, bits, 1);
            }
            5 => tensor.byte_offset = random.below(64),
            _ => {
                let end = tensor.data.len();
                if let Some(byte) = tensor.data.get_mut(random.below(end)) {
                    *byte = random.next() as u8;
                }
            }
        }
    }
}
