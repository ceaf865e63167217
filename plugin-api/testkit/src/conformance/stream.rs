//! Answers in pieces: whole, in order, and at the reader's pace.

use super::{Bench, Case, Verdict, ensure};
use crate::input::{Reader, RequestInput};

pub fn repeats(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    for _ in 0..5 {
        bench.expect_serving(case, &instance, "asked again")?;
    }
    // Once more for a caller that does not read piece by piece.
    let answer = instance.send(RequestInput { flags: 0, ..case.request() }).wait();
    bench.expect_reference(case, &answer, "without BP_REQUEST_STREAM")?;
    let reference = bench.reference(case)?;
    Ok(format!("{} piece(s), {} tensor(s)", reference.chunks.len(), reference.tensors().len()))
}

pub fn slow_reader(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    for refusals in [1, 7] {
        let request = RequestInput { reader: Reader::Behind { refusals }, ..case.request() };
        let answer = instance.send(request).wait();
        bench.expect_reference(
            case,
            &answer,
            &format!("with each piece refused {refusals} times at first"),
        )?;
    }
    Ok("nothing lost, nothing twice, in order".to_owned())
}

pub fn reader_leaves(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    for after in [0, 1] {
        let running = instance.send(RequestInput { reader: Reader::Leaves { after }, ..case.slow_request() });
        // From the moment its pieces are refused it has the time it asked for.
        running.wait_for_chunks(after);
        let answer =
            running.wait_for(bench.test.patience.min(bench.grace(&instance) + bench.test.patience / 2));
        super::cancel::expect_ended(&answer, "whose reader left")?;
        ensure(
            answer.chunks.len() <= after,
            || format!("{} pieces came to a reader who left after {after}", answer.chunks.len()),
            "bp_host.push: \"BP_CANCELLED (the caller left: stop and finish)\"",
            "stop at the first BP_CANCELLED",
        )?;
    }
    bench.expect_serving(case, &instance, "after readers that left")?;
    Ok("it stops and finishes".to_owned())
}
