//! `license usage`: what licensed plugins were used for, shown, signed for a vendor, and read by one.

use super::refused;
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::{Output, Table, printable};
use backplane_registry::license::{Sum, UsageLog, UsageReport, by_month};
use backplane_registry::trust::{IdPattern, Timestamp, read_capped, write_new};
use std::path::Path;

/// More than a report takes.
const MAX: usize = 4 << 20;

pub fn show(context: &Context) -> Result<()> {
    let sums = by_month(&UsageLog::at(&context.state()?).read().map_err(refused)?);
    if context.out.json {
        context.out.value(&sums);
    } else if sums.is_empty() {
        context.out.note(
            "no use of a licensed plugin is written down yet; a server that runs writes it every 15 seconds",
        );
    } else {
        table(&context.out, &sums);
    }
    Ok(())
}

pub fn export(context: &Context, plugins: &[String], out: Option<&Path>) -> Result<()> {
    let ids = plugins.iter().map(|ids| ids.parse()).collect::<Result<Vec<IdPattern>, _>>();
    let ids = ids.map_err(Failure::usage)?;
    let of = |plugin: &str| ids.iter().any(|ids| ids.covers(plugin));
    let (report, text) = UsageReport::export(&context.state()?, of, Timestamp::now()).map_err(refused)?;
    match out {
        Some(out) => write_new(out, text.as_bytes(), 0o644).map_err(refused)?,
        None if !context.out.json => context.out.write(&text),
        None => {}
    }
    if context.out.json {
        context.out.value(&report);
    } else if let Some(out) = out {
        let count = report.used.len();
        context.out.line(format!("{}: {count} sums, signed by {}", out.display(), report.install));
    }
    Ok(())
}

pub fn read(context: &Context, file: &Path) -> Result<()> {
    let bytes = read_capped(file, MAX).map_err(refused)?;
    let report = UsageReport::read(&bytes, Timestamp::now()).map_err(|error| {
        let failure = refused(error);
        Failure { what: format!("{}: {}", file.display(), failure.what), ..failure }
    })?;
    if context.out.json {
        context.out.value(&report);
        return Ok(());
    }
    let UsageReport { install, at, lines, chain, used, .. } = &report;
    context.out.line(format!("signed by {} at {at}", printable(install)));
    context.out.line(format!("its log has {lines} lines, the last of them {chain}"));
    if used.is_empty() {
        context.out.note("nothing was used");
    } else {
        table(&context.out, used);
    }
    Ok(())
}

fn table(out: &Output, sums: &[Sum]) {
    let mut table =
        Table::new(&["MONTH", "PLUGIN", "LICENCE", "REQUESTS", "TOKENS", "TENANTS", "NODES", "GPUS"]);
    for sum in sums {
        let numbers = [sum.requests, sum.tokens, sum.tenants, sum.peak_nodes, sum.peak_gpus];
        let names = [&sum.month, &sum.plugin, &sum.licence].map(Clone::clone);
        table.row(names.into_iter().chain(numbers.map(|number| number.to_string())));
    }
    out.table(&table);
}
