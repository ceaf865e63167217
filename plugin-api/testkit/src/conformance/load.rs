//! From entry to an opened model, in the right order and in the wrong one.

use super::{Bench, Case, Verdict, ensure};
use crate::host::{Shape, enter};
use backplane_abi::table::{BP_OK, bp_bid};

const STATE: &str = "bp_plugin: \"Until init has returned BP_OK the other functions answer BP_BAD_STATE\"";

pub fn before_init(bench: &Bench<'_>, case: &Case) -> Verdict {
    let plugin = match enter(&*bench.test.entry, bench.host(Shape::default())) {
        Ok(plugin) => plugin,
        Err(failure) => {
            return super::failed(failure.to_string(), "bp_entry_v1", "accept a host of your major");
        }
    };
    let advice = "keep a flag that `init` sets, and answer BP_BAD_STATE without it";
    let bid = plugin.bid(&case.capability, case.model.as_bytes(), size_of::<bp_bid>() as u32);
    ensure(bid.code != BP_OK, || "it bids before it was initialised".to_owned(), STATE, advice)?;
    let opened = plugin.open(case.model.as_bytes());
    ensure(opened.is_err(), || "it opens a model before it was initialised".to_owned(), STATE, advice)?;
    ensure(
        !plugin.extension(b"bp.nothing/1"),
        || "it has an extension nobody defined".to_owned(),
        STATE,
        advice,
    )?;
    // The order is still open to be kept.
    let initialised = plugin.init(bench.test.config.as_bytes());
    ensure(
        initialised.is_ok(),
        || "calls before `init` made `init` fail".to_owned(),
        STATE,
        "let a call in the wrong state change nothing",
    )?;
    plugin.shutdown();
    Ok("refused".to_owned())
}

pub fn bad_configuration(bench: &Bench<'_>) -> Verdict {
    let bad: [&[u8]; 5] = [b"{", b"[1]", b"\xff\xfe", b"null", b"{\"\":{\"a\":[1e999]}}"];
    let mut refused = 0;
    for config in bad {
        let host = bench.host(Shape::default());
        let Ok(plugin) = enter(&*bench.test.entry, host) else { continue };
        match plugin.init(config) {
            // After an error shutdown is not called.
            Err(failure) => {
                refused += 1;
                ensure(
                    !failure.is_panic(),
                    || format!("the configuration `{}` made it panic", config.escape_ascii()),
                    "Failure: \"No exception, panic or longjmp may cross this boundary\"",
                    "read the configuration as text from a stranger, and say what is wrong with it",
                )?;
            }
            Ok(()) => plugin.shutdown(),
        }
    }
    bench.plugin()?;
    Ok(format!("{refused} of {} refused, and it starts afterwards", bad.len()))
}

pub fn init_twice(bench: &Bench<'_>, case: &Case) -> Verdict {
    let plugin = bench.plugin()?;
    let again = plugin.raw.init(bench.test.config.as_bytes());
    ensure(
        again.is_err(),
        || "a second `init` succeeded".to_owned(),
        "bp_plugin: \"bp_entry_v1 -> init -> ... -> shutdown\"",
        "answer BP_BAD_STATE",
    )?;
    let instance = bench.instance_of(&bench.model_of(&plugin, case)?)?;
    bench.expect_serving(case, &instance, "after a second `init`")?;
    Ok("refused, and it serves on".to_owned())
}

pub fn again_and_again(bench: &Bench<'_>, case: &Case) -> Verdict {
    for _ in 0..5 {
        let instance = bench.instance(case)?;
        bench.expect_serving(case, &instance, "after being started and shut down before")?;
    }
    Ok("five hosts one after the other".to_owned())
}

pub fn bad_model(bench: &Bench<'_>, case: &Case) -> Verdict {
    let plugin = bench.plugin()?;
    let bad: [&[u8]; 4] = [b"{", b"\xff\xfe", b"[]", b"7"];
    for model in bad {
        match plugin.raw.open(model) {
            Ok(opened) => {
                opened.close();
                ensure(
                    false,
                    || format!("it opens a model from `{}`", model.escape_ascii()),
                    "bp_plugin.model_open: \"model_json: {...}\", an object",
                    "read it as JSON, and refuse what is not an object",
                )?;
            }
            Err(failure) => ensure(
                !failure.is_panic(),
                || format!("a model from `{}` made it panic", model.escape_ascii()),
                "Failure: \"No exception, panic or longjmp may cross this boundary\"",
                "refuse it with BP_INVALID_ARGUMENT",
            )?,
        }
    }
    let instance = bench.instance_of(&bench.model_of(&plugin, case)?)?;
    bench.expect_serving(case, &instance, "after models that could not be opened")?;
    Ok("refused, and it serves on".to_owned())
}
