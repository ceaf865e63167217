//! Many requests at once, as far as the class of the model allows.

use super::{Bench, Case, Verdict, ensure, failed, skipped};
use backplane_abi::table::BP_SERIAL;
use std::sync::atomic::{AtomicUsize, Ordering};

const THREADS: usize = 16;

pub fn threads(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let known = instance.model().raw().known;
    if known.exec_class == BP_SERIAL {
        return skipped("a SERIAL instance is called on one thread, one call at a time");
    }
    // The host lets no more in than the model said.
    let threads = THREADS.min(known.max_inflight as usize);
    let left = AtomicUsize::new(THREADS * 4);
    let answers = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                        .is_ok()
                    {
                        answers.push(instance.send(case.request()).wait());
                    }
                    answers
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    if answers.len() != THREADS * 4 {
        return failed(
            format!("{} of {} requests were answered", answers.len(), THREADS * 4),
            "bp_instance.submit: CONCURRENT and CONTINUOUS: [any]",
            "guard what the threads share",
        );
    }
    for answer in &answers {
        bench.expect_reference(case, answer, &format!("with {threads} threads submitting"))?;
    }
    Ok(format!("{} requests from {threads} threads", answers.len()))
}

pub fn batch(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let most = instance.model().raw().known.max_batch.min(16) as usize;
    if most < 2 {
        return skipped("it takes one request at a time");
    }
    for rows in [2, most] {
        let mut inputs = vec![case.request(); rows];
        // A newer host's rows are longer: they are found by the stride.
        inputs[0].tail = 56;
        // One that nobody waits for must not spoil the others.
        inputs[rows - 1].cancelled = true;
        let mut answers: Vec<_> = instance.send_batch(inputs).iter().map(|running| running.wait()).collect();
        let cancelled = answers.pop();
        if let Some(cancelled) = cancelled {
            super::cancel::expect_ended(&cancelled, "in a batch that was cancelled before it came")?;
        }
        for answer in &answers {
            bench.expect_reference(case, answer, &format!("in a batch of {rows}"))?;
        }
        ensure(
            answers.len() + 1 == rows,
            || "a row of the batch is missing".to_owned(),
            "bp_instance.submit: \"element i is at (const char *)requests + i * stride\"",
            "go by the stride, not by sizeof(bp_request)",
        )?;
    }
    Ok(format!("up to {most} rows"))
}
