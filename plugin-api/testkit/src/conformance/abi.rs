//! Structs that are smaller, larger or stranger than the plugin knows them, and what stands in its own.

use super::{Bench, Case, Verdict, ensure, failed};
use crate::answer::End;
use crate::host::{Shape, enter, enter_with_nulls};
use crate::input::RequestInput;
use backplane_abi::ABI_MINOR;
use backplane_abi::table::{BP_OK, bp_host, bp_request};

const SIZES: &str = "Rules, 1: \"the reader treats members beyond it as absent\"";
const FLAGS: &str = "Rules, 1: \"Unknown bits in the upper half of flags (BP_FLAG_REQUIRED_MASK) must be refused with \
                     BP_BAD_STRUCT; unknown bits in the lower half are ignored\"";
const CHECK_SIZE: &str = "compare `struct_size` with what you need (BP_HAS) before you read";
const CHECK_FLAGS: &str =
    "refuse `flags & BP_FLAG_REQUIRED_MASK` that you do not know, and look at no other bit";
const REQUIRED: u32 = 0x8000_0000;
const OPTIONAL: u32 = 0x0000_8000;

pub fn entry_with_nulls(bench: &Bench<'_>) -> Verdict {
    let codes = enter_with_nulls(&*bench.test.entry, bench.host(Shape::default()));
    ensure(
        !codes.contains(&BP_OK),
        || format!("bp_entry_v1 answered {codes:?} to a null host and to a null out"),
        "bp_entry_v1: \"any other code refuses the host\"",
        "answer BP_NULL_ARGUMENT when either is null",
    )?;
    Ok(format!("refused with {codes:?}"))
}

pub fn plugin_table(bench: &Bench<'_>) -> Verdict {
    let plugin = bench.plugin()?;
    let facts = plugin.raw.facts();
    ensure(
        facts.missing.is_empty(),
        || format!("these functions of bp_plugin are null: {:?}", facts.missing),
        "bp_plugin: only functions whose comment says \"May be NULL\" may be absent",
        "fill them in",
    )?;
    let named = facts.id.contains('.')
        && facts.id.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
        && facts.id.split('.').all(|part| !part.is_empty());
    ensure(
        named && !facts.version.is_empty(),
        || format!("the plugin calls itself `{}`, version `{}`", facts.id, facts.version),
        "bp_plugin.id, version: \"as in the manifest\", whose id is reverse DNS",
        "name it like `com.example.word-count`, and give it a version",
    )?;
    ensure(
        (0..=ABI_MINOR).contains(&facts.minor_min),
        || format!("it asks for a host of minor {}, and this one is {ABI_MINOR}", facts.minor_min),
        "bp_plugin.abi_minor_min: \"the least minor of a host it can live with\"",
        "lower it, or test with a newer testkit",
    )?;
    Ok(format!("{} {}", facts.id, facts.version))
}

pub fn host_table_smaller(bench: &Bench<'_>) -> Verdict {
    let before_finish = std::mem::offset_of!(bp_host, finish) as u32;
    for struct_size in [0, 8, before_finish] {
        let host = bench.host(Shape { struct_size: Some(struct_size), ..Shape::default() });
        ensure(
            enter(&*bench.test.entry, host).is_err(),
            || format!("it accepted a host whose table ends after {struct_size} bytes, before `finish`"),
            SIZES,
            CHECK_SIZE,
        )?;
    }
    Ok("tables of 0, 8 and all but `finish` are refused".to_owned())
}

pub fn host_table_larger(bench: &Bench<'_>, case: &Case) -> Verdict {
    let newer = Shape { tail: 64, ..Shape::default() };
    let huge = Shape { struct_size: Some(u32::MAX), tail: 64, ..Shape::default() };
    for (shape, what) in [(newer, "64 bytes more"), (huge, "4 GiB claimed")] {
        let plugin = bench.test.start(bench.host(shape));
        let Ok(plugin) = plugin else {
            return failed(format!("it refused a newer host's table ({what})"), SIZES, CHECK_SIZE);
        };
        let instance = bench.instance_of(&bench.model_of(&plugin, case)?)?;
        bench.expect_serving(case, &instance, "on a host with a larger table")?;
    }
    Ok("larger tables are accepted".to_owned())
}

pub fn host_table_flags(bench: &Bench<'_>) -> Verdict {
    let required = bench.host(Shape { flags: REQUIRED, ..Shape::default() });
    ensure(
        enter(&*bench.test.entry, required).is_err(),
        || "it accepted a host with a required flag it cannot know".to_owned(),
        FLAGS,
        CHECK_FLAGS,
    )?;
    let optional = bench.host(Shape { flags: OPTIONAL, ..Shape::default() });
    ensure(
        bench.test.start(optional).is_ok(),
        || "it refused a host for an optional flag".to_owned(),
        FLAGS,
        CHECK_FLAGS,
    )?;
    Ok("required refused, optional ignored".to_owned())
}

pub fn two_hosts(bench: &Bench<'_>, case: &Case) -> Verdict {
    let (first, second) = (bench.instance(case)?, bench.instance(case)?);
    for _ in 0..3 {
        bench.expect_serving(case, &first, "with two hosts in the process")?;
        bench.expect_serving(case, &second, "with two hosts in the process")?;
    }
    drop(first);
    bench.expect_serving(case, &second, "after the other host has gone")?;
    Ok("both are served, and one survives the other".to_owned())
}

pub fn extensions(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let model = instance.model();
    let plugin = bench.plugin()?;
    const STRANGE: [&[u8]; 9] = [
        b"",
        b"com.example.nothing/1",
        b"bp.tokens",
        b"bp.tokens/",
        b"bp.tokens/2",
        b"bp.tokens/1 ",
        b"bp.tokens/1\0",
        b"BP.TOKENS/1",
        b"\xff\xfe",
    ];
    for id in STRANGE {
        let answered = [
            ("bp_plugin", plugin.raw.extension(id)),
            ("bp_model", model.raw().extension(id)),
            ("bp_instance", instance.raw().extension(id)),
            ("bp_host", instance.raw().host.has_extension(id)),
        ];
        if let Some((table, _)) = answered.iter().find(|(_, found)| *found) {
            return failed(
                format!("{table}.get_extension knows `{}`", id.escape_ascii()),
                "Rules, 5: \"ids vendor.name/revision; a published revision is frozen. NULL means absent\"",
                "compare the whole id, length and all",
            );
        }
    }
    let mut offered = Vec::new();
    if let Some(counted) = model.count_tokens(&case.capability, &case.params) {
        match counted {
            Ok(tokens) => offered.push(format!("counts {tokens} tokens")),
            Err(failure) => offered.push(format!("does not count tokens ({failure})")),
        }
    }
    if let Some(figures) = model.stats() {
        let proper = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        if let Some((name, value)) = figures.iter().find(|(name, value)| !proper(name) || !value.is_finite())
        {
            return failed(
                format!("it reports the figure `{name}` = {value}"),
                "bp_stats_1.read: \"names are lower_snake_case\"",
                "rename it, and report numbers",
            );
        }
        offered.push(format!("reports {} figures", figures.len()));
    }
    Ok(if offered.is_empty() { "none, and no strange one either".to_owned() } else { offered.join(", ") })
}

pub fn request_smaller(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let one_member_less = std::mem::offset_of!(bp_request, capability_version) as u32;
    for struct_size in [0, 8, one_member_less] {
        let answer = instance.send(RequestInput { struct_size: Some(struct_size), ..case.request() }).wait();
        ensure(
            matches!(answer.end, End::Refused(_)),
            || format!("a request whose struct ends after {struct_size} bytes {}", answer.end),
            SIZES,
            "answer BP_BAD_STRUCT from `submit` and take none of the requests",
        )?;
    }
    bench.expect_serving(case, &instance, "after requests that were too small")?;
    Ok("`submit` refuses requests that are too small".to_owned())
}

pub fn request_larger(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let newer = instance.send(RequestInput { tail: 40, ..case.request() }).wait();
    bench.expect_reference(case, &newer, "with 40 unknown bytes after the struct")?;
    let huge = RequestInput { struct_size: Some(u32::MAX), tail: 40, ..case.request() };
    let huge = instance.send(huge).wait();
    if !matches!(huge.end, End::Refused(_)) {
        bench.expect_reference(case, &huge, "with a struct_size of 4 GiB")?;
    }
    bench.expect_serving(case, &instance, "after requests that were too large")?;
    Ok("what comes after the known members is not read".to_owned())
}

pub fn request_flags(bench: &Bench<'_>, case: &Case) -> Verdict {
    let instance = bench.instance(case)?;
    let with = |flag| RequestInput { flags: case.request().flags | flag, ..case.request() };
    let answer = instance.send(with(OPTIONAL)).wait();
    bench.expect_reference(case, &answer, "with an optional flag nobody knows")?;
    let answer = instance.send(with(REQUIRED)).wait();
    ensure(
        matches!(answer.end, End::Refused(_)),
        || format!("a request with a required flag nobody knows {}", answer.end),
        FLAGS,
        CHECK_FLAGS,
    )?;
    bench.expect_serving(case, &instance, "after a request with a strange flag")?;
    Ok("required refused, optional ignored".to_owned())
}
