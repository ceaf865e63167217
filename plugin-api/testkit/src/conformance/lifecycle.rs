//! Models and instances: made, used, ended, and nothing left behind.

use super::{Bench, Case, Verdict, ensure, failed, skipped};
use backplane_abi::payload::tensor::Description;
use backplane_abi::table::{
    BP_CONCURRENT, BP_CONTINUOUS, BP_DEADLINE_EXCEEDED, BP_HEALTH_READY, BP_OK, BP_SERIAL,
};
use std::time::{Duration, Instant};

pub fn model_table(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let model = instance.model().raw();
    let missing = [model.missing(), instance.raw().missing()].concat();
    ensure(
        missing.is_empty(),
        || format!("these functions are null: {missing:?}"),
        "bp_model, bp_instance: only functions whose comment says \"May be NULL\" may be absent",
        "fill them in",
    )?;
    let known = model.known;
    let class = match known.exec_class {
        BP_SERIAL => "SERIAL",
        BP_CONCURRENT => "CONCURRENT",
        BP_CONTINUOUS => "CONTINUOUS",
        other => {
            return failed(
                format!("exec_class is {other}"),
                "bp_model.exec_class: \"BP_SERIAL, BP_CONCURRENT, BP_CONTINUOUS\"",
                "use one of them",
            );
        }
    };
    ensure(
        known.max_inflight >= 1 && known.max_batch >= 1 && (class != "SERIAL" || known.max_inflight == 1),
        || {
            format!(
                "max_inflight is {} and max_batch {} of a {class} model",
                known.max_inflight, known.max_batch
            )
        },
        "bp_model: \"max_inflight: per instance; SERIAL: 1\", \"max_batch: 1: none is batched\"",
        "set both to at least 1",
    )?;
    ensure(
        known.cancel_grace_ms > 0,
        || "cancel_grace_ms is 0: every cancelled request would count as stuck".to_owned(),
        "bp_model.cancel_grace_ms: \"how long after cancel a request may take to finish\"",
        "say how long a step takes at most",
    )?;
    let Some(describe) = model.describe() else {
        return failed(
            "describe_json is not a JSON object",
            "bp_model.describe_json: a JSON object, its members of the types that the host knows",
            "write an object, or nothing",
        );
    };
    if !describe.is_null()
        && let Err(error) = serde_json::from_value::<Description>(describe)
    {
        return failed(
            format!("describe_json is not a description: {error}"),
            "bp_model.describe_json: a JSON object, its members of the types that the host knows",
            "mend that member",
        );
    }
    Ok(format!("{class}, {} in flight, {} in a batch", known.max_inflight, known.max_batch))
}

pub fn placement_larger(bench: &Bench<'_>, case: &Case) -> Verdict {
    let model = bench.model(case)?;
    let Ok(instance) = model.instance_with(3, 48) else {
        return failed(
            "no instance can be made from a newer host's placement",
            "Rules, 1: \"the reader treats members beyond it as absent\"",
            "do not compare `struct_size` for equality",
        );
    };
    bench.expect_serving(case, &instance, "with a larger placement")?;
    Ok("a larger placement is accepted".to_owned())
}

pub fn two_instances(bench: &Bench<'_>, case: &Case) -> Verdict {
    let model = bench.model(case)?;
    let first = bench.instance_of(&model)?;
    let second = match model.instance_with(1, 0) {
        Ok(second) => second,
        Err(failure) => return skipped(format!("it makes only one instance: {failure}")),
    };
    bench.expect_serving(case, &first, "with two instances of one model")?;
    bench.expect_serving(case, &second, "with two instances of one model")?;
    drop(first);
    bench.expect_serving(case, &second, "after another instance was destroyed")?;
    Ok("both serve, and one outlives the other".to_owned())
}

pub fn health(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    bench.expect_serving(case, &instance, "before it is asked for its health")?;
    let start = Instant::now();
    match instance.health() {
        None => Ok("not told, which means ready".to_owned()),
        Some(Ok(BP_HEALTH_READY)) => Ok(format!("ready, in {:?}", start.elapsed())),
        other => failed(
            format!("an instance that serves answers {other:?} when asked how it is"),
            "bp_instance.health: \"*state = BP_HEALTH_*\"",
            "say BP_HEALTH_READY while requests are answered",
        ),
    }
}

pub fn quiesce(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let answer = instance.send(case.request()).wait();
    bench.expect_reference(case, &answer, "before it is quiesced")?;
    let idle = instance.raw().quiesce(Some(Instant::now() + bench.test.patience));
    let late = instance.raw().quiesce(Some(Instant::now()));
    let right =
        matches!(idle, None | Some(BP_OK)) && matches!(late, None | Some(BP_OK | BP_DEADLINE_EXCEEDED));
    ensure(
        right,
        || {
            format!(
                "an idle instance answered {idle:?} to `quiesce`, and {late:?} with a deadline that is now"
            )
        },
        "bp_instance.quiesce: \"Returns when idle or at deadline_ns with BP_DEADLINE_EXCEEDED\"",
        "return BP_OK when nothing is open",
    )?;
    Ok(if idle.is_some() { "idle" } else { "not offered" }.to_owned())
}

/// How many descriptors and threads this process has.
fn usage() -> (usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).map(Iterator::count).unwrap_or_default();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

pub fn nothing_left(bench: &Bench<'_>, case: &Case) -> Verdict {
    let rounds = bench.test.rounds;
    let plugin = bench.plugin()?;
    let round = |number: usize| {
        let instance = bench.instance_of(&bench.model_of(&plugin, case)?)?;
        // Some things are only made when something is asked.
        if number.is_multiple_of(10) {
            bench.expect_serving(case, &instance, "in a loop of opening and closing")
        } else {
            Ok(())
        }
    };
    round(0)?;
    let before = usage();
    (0..rounds).try_for_each(round)?;
    // Threads that were told to end may take a moment, and other tests of this process have some of their own: what
    // leaks in every round shows by far.
    let allowed = (rounds / 2).max(4);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let after = usage();
        let grown = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
        if grown.0 < allowed && grown.1 < allowed {
            return Ok(format!("{rounds} times: {} descriptors, {} threads", after.0, after.1));
        }
        if Instant::now() > deadline {
            return failed(
                format!(
                    "after {rounds} rounds there are {} descriptors and {} threads more",
                    grown.0, grown.1
                ),
                "bp_model.close: \"Closes it and gives its memory back\"; bp_instance.destroy",
                "close files and join threads in `destroy` and `close`",
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
