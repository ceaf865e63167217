//! A host that has no memory to give, and a plugin that panics.

use super::{Bench, Case, Verdict, ensure, is_typed, skipped};
use crate::host::{Scarce, Shape};
use crate::input::RequestInput;

pub fn memory(bench: &Bench<'_>, case: &Case) -> Verdict {
    let mut seen = Vec::new();
    for (scarce, function) in
        [(Scarce::Alloc, "buf_alloc"), (Scarce::Wrap, "buf_wrap"), (Scarce::Output, "out_alloc")]
    {
        let host = bench.host(Shape::default());
        let plugin = bench.plugin_on(host)?;
        let instance = bench.instance_of(&bench.model_of(&plugin, case)?)?;
        host.deny(scarce);
        let answer = instance.send(case.request()).wait();
        let denied = host.denied();
        let right = answer.is_done() || answer.failure().is_some_and(is_typed);
        ensure(
            right,
            || format!("a request during which `{function}` failed {}", answer.end),
            "bp_host.buf_alloc: \"Errors: BP_RESOURCE_EXHAUSTED (not now)\"",
            "look at the code of every host function, and finish with BP_RESOURCE_EXHAUSTED where nothing else works",
        )?;
        match denied {
            0 => {}
            _ if answer.is_done() => {
                bench.expect_reference(case, &answer, &format!("although `{function}` failed"))?;
                seen.push(format!("does without `{function}`"));
            }
            _ => seen.push(format!("says so when `{function}` fails")),
        }
    }
    if seen.is_empty() { skipped("it asks the host for no memory") } else { Ok(seen.join(", ")) }
}

pub fn panic(bench: &Bench<'_>, case: &Case) -> Verdict {
    let Some(params) = &case.panics else {
        return skipped("the case does not say how to make it panic (`Case::panics`)");
    };
    let plugin = bench.plugin()?;
    let model = bench.model_of(&plugin, case)?;
    let instance = bench.instance_of(&model)?;
    let answer = instance.send(RequestInput { params: params.clone().into_bytes(), ..case.request() }).wait();
    ensure(
        answer.failure().is_some_and(|failure| failure.is_panic()),
        || format!("a request that panics {}", answer.end),
        "BP_SUB_PANIC: \"a panic was caught inside the plugin: the instance is poisoned and will be replaced\"",
        "catch it in every function of the table, and finish with BP_INTERNAL and BP_SUB_PANIC",
    )?;
    // The host replaces the instance: the model must be good for another one.
    drop(instance);
    bench.expect_serving(case, &bench.instance_of(&model)?, "from a new instance after a panic")?;
    Ok("caught, and a new instance serves".to_owned())
}
