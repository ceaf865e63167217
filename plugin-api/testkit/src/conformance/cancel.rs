//! Callers that leave, at any time, and deadlines.

use super::{Bench, Case, Verdict, ensure};
use crate::answer::Answer;
use crate::input::{Deadline, RequestInput};
use backplane_abi::table::{BP_CANCELLED, BP_CONTINUOUS, BP_DEADLINE_EXCEEDED};

const WORD: &str = "bp_request.cancel: \"becomes non-zero when the caller has left: read it at every step\"; \
                    bp_model.cancel_grace_ms: \"how long after cancel a request may take to finish\"";
const READ_IT: &str = "read the cancel word between steps and while waiting, then finish with BP_CANCELLED";

/// Fails unless a cancelled request ended: as cancelled, or with an answer that was ready.
pub fn expect_ended(answer: &Answer, what: &str) -> Verdict<()> {
    let ended = answer.is_done() || answer.failure().is_some_and(|failure| failure.code == BP_CANCELLED);
    ensure(ended, || format!("a request {what} {}", answer.end), WORD, READ_IT)
}

pub fn before_submit(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let running = instance.send(RequestInput { cancelled: true, ..case.slow_request() });
    let answer = running.wait_for(bench.grace(&instance));
    expect_ended(&answer, "that was cancelled before it came")?;
    bench.expect_serving(case, &instance, "after a request that was cancelled before it came")?;
    Ok(format!("it {}", answer.end))
}

pub fn on_its_way(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let running = instance.send(case.slow_request());
    if case.slow.is_some() {
        running.wait_for_chunks(1);
        ensure(
            running.is_open(),
            || "the slow request of the case had ended with its first piece".to_owned(),
            super::ANSWERS,
            "give `Case::slow` parameters with which an answer takes several seconds",
        )?;
    }
    running.cancel();
    running.cancel();
    let answer = running.wait_for(bench.grace(&instance));
    expect_ended(&answer, "that was cancelled on its way")?;
    ensure(
        case.slow.is_none() || !answer.is_done(),
        || "the slow request ran to its end although its caller had left".to_owned(),
        WORD,
        READ_IT,
    )?;
    bench.expect_serving(case, &instance, "after a request that was cancelled on its way")?;
    Ok(format!("after {} piece(s) it {}", answer.chunks.len(), answer.end))
}

pub fn after_finish(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let running = instance.send(case.request());
    let answer = running.wait();
    bench.expect_reference(case, &answer, "before it is cancelled")?;
    running.cancel();
    bench.expect_serving(case, &instance, "after a finished request was cancelled")?;
    Ok("it does not mind".to_owned())
}

pub fn others_unharmed(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let known = instance.model().raw().known;
    if known.max_inflight < 2 {
        return super::skipped("it serves one request at a time");
    }
    let leaving = instance.send(case.slow_request());
    let staying = instance.send(case.request());
    leaving.wait_for_chunks(1);
    leaving.cancel();
    expect_ended(&leaving.wait_for(bench.grace(&instance)), "that was cancelled beside another")?;
    bench.expect_reference(case, &staying.wait(), "beside a request that was cancelled")?;
    Ok(if known.exec_class == BP_CONTINUOUS { "in one schedule" } else { "on another thread" }.to_owned())
}

pub fn past_deadline(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let answer = instance.send(RequestInput { deadline: Deadline::Past, ..case.request() }).wait();
    let right = answer.is_done()
        || answer
            .failure()
            .is_some_and(|failure| [BP_DEADLINE_EXCEEDED, BP_CANCELLED].contains(&failure.code));
    ensure(
        right,
        || format!("a request whose deadline had passed {}", answer.end),
        "bp_request.deadline_ns: \"CLOCK_MONOTONIC; 0: none\"; BP_DEADLINE_EXCEEDED",
        "finish it with BP_DEADLINE_EXCEEDED",
    )?;
    bench.expect_serving(case, &instance, "after a request whose deadline had passed")?;
    Ok(format!("it {}", answer.end))
}
