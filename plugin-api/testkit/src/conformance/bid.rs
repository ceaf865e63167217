//! Claims: pure, quick, and no longer than the host's struct.

use super::{Bench, Case, Verdict, ensure};
use crate::host::BidOutput;
use backplane_abi::table::{BP_OK, bp_bid};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RULE: &str = "bp_plugin.bid: \"Pure, no device work, at most 1 ms\" [any][no-block]";
const SIZE: u32 = size_of::<bp_bid>() as u32;

fn bid(plugin: &crate::session::Plugin, case: &Case) -> BidOutput {
    plugin.raw.bid(&case.capability, case.model.as_bytes(), SIZE)
}

pub fn struct_sizes(bench: &Bench<'_>, case: &Case) -> Verdict {
    let plugin = bench.plugin()?;
    for claim in [8, 24, SIZE, SIZE + 32] {
        let bid = plugin.raw.bid(&case.capability, case.model.as_bytes(), claim);
        ensure(
            !bid.overran,
            || format!("a bid wrote beyond the {claim} bytes it was given"),
            "Rules, 1: \"The writer sets struct_size\"; of bp_bid, \"The host fills struct_size\"",
            "write no member that does not lie within `out->struct_size`",
        )?;
    }
    Ok("it writes no further than the host's struct".to_owned())
}

pub fn pure(bench: &Bench<'_>, case: &Case) -> Verdict {
    let plugin = bench.plugin()?;
    let first = bid(&plugin, case);
    ensure(
        first.code == BP_OK && first.score > 0,
        || {
            format!(
                "it bids {} for the case (code {}, reason {}: {})",
                first.score, first.code, first.reason, first.text
            )
        },
        "bp_bid.score: \"0 = cannot\"",
        "bid above 0 for what you serve",
    )?;
    ensure(
        first.score <= 1000 && first.quality <= 1000 && (first.p99_us == 0 || first.p50_us <= first.p99_us),
        || format!("the bid is {first:?}"),
        "bp_bid: \"score 0..1000\", \"quality 0..1000\", est_p50_us and est_p99_us",
        "keep the numbers within their ranges",
    )?;
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (plugin, case) = (Arc::clone(&plugin), case.clone());
            std::thread::spawn(move || (0..50).map(|_| bid(&plugin, &case)).collect::<Vec<_>>())
        })
        .collect();
    for thread in threads {
        let bids = thread.join().unwrap_or_default();
        let same =
            |bid: &BidOutput| (bid.code, bid.score, bid.quality) == (first.code, first.score, first.quality);
        ensure(
            bids.len() == 50 && bids.iter().all(same),
            || "bids for the same job differ between calls or threads".to_owned(),
            RULE,
            "compute a bid from the query alone",
        )?;
    }
    Ok(format!("score {}, quality {}", first.score, first.quality))
}

pub fn quick(bench: &Bench<'_>, case: &Case) -> Verdict {
    let plugin = bench.plugin()?;
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let start = Instant::now();
            bid(&plugin, case);
            start.elapsed()
        })
        .collect();
    times.sort();
    let median = times[times.len() / 2];
    ensure(
        median <= Duration::from_millis(1),
        || format!("half of the bids take longer than {median:?}"),
        RULE,
        "open no file and ask no device: read what `init` found out",
    )?;
    Ok(format!("{median:?} at the median"))
}
