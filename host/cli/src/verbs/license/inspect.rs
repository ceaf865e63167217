//! `license inspect`: every step of a check, ticked or crossed.

use super::{Here, installed, refusal, refused, used};
use crate::args::Inspect;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, Style};
use backplane_registry::license::{MAX_FILE, Outcome, Report, Running, State, check};
use backplane_registry::trust::{TrustError, read_capped};
use serde_json::{Value, json};

pub fn run(context: &Context, args: &Inspect) -> Result<()> {
    let bytes = match read_capped(&args.file, MAX_FILE) {
        // The check says so, like anything else that is wrong with it.
        Err(TrustError::TooLarge { limit }) => vec![b' '; limit + 1],
        other => other.map_err(refused)?,
    };
    let here = Here::of(context)?;
    let mut plugin = args.plugin.as_deref().map(named);
    if let Some(plugin) = &mut plugin {
        // The keys that the one here names: those of another version are the same, or nothing of the vendor's.
        let here = installed(context)?.into_iter().find(|installed| installed.id == plugin.id);
        plugin.pinned = here.map(|here| here.pinned).unwrap_or_default();
    }
    if let (Some(plugin), Some(day)) = (&mut plugin, &args.built) {
        plugin.built = Some(day.parse().map_err(Failure::usage)?);
    }
    let first = check(&bytes, &here.situation(plugin.as_ref(), None));
    if let (None, Some(licence)) = (&plugin, &first.licence) {
        plugin = installed(context)?.into_iter().find(|plugin| plugin.id == licence.product.plugin);
    }
    let used = match &first.licence {
        Some(licence) => used(context, &licence.product.plugin, here.now)?,
        None => None,
    };
    let report = check(&bytes, &here.situation(plugin.as_ref(), used.as_ref()));
    show(&context.out, &report);
    match report.refusal() {
        Some(reason) => Err(refusal(exit(reason.code), &args.file, &report, reason)),
        None if matches!(report.standing.state, State::Expiring | State::Grace | State::Expired) => {
            let until = report.standing.ends.map_or_else(String::new, |end| end.to_string());
            Err(Failure::new(
                Exit::LICENCE_DUE,
                format!("the licence is to be renewed: it is valid until {until}"),
            )
            .code(report.standing.state.as_str()))
        }
        None => Ok(()),
    }
}

fn named(text: &str) -> Running {
    let (id, version) = text.split_once('@').map_or((text, None), |(id, version)| (id, Some(version)));
    Running { id: id.to_owned(), version: version.map(str::to_owned), ..Running::default() }
}

fn exit(code: &str) -> Exit {
    match code {
        "bind_mismatch" | "product_mismatch" | "version_mismatch" | "build_too_new" => Exit::LICENCE_MISMATCH,
        _ => Exit::Failure,
    }
}

fn show(out: &Output, report: &Report) {
    if out.json {
        out.value(&as_json(report));
        return;
    }
    if let Some(licence) = &report.licence {
        out.line(format!(
            "licence {} of {} for {} ({})",
            licence.id,
            crate::output::printable(&licence.issuer),
            crate::output::printable(&licence.licensee.name),
            crate::output::printable(&licence.licensee.id)
        ));
    }
    for check in &report.checks {
        let (mark, style, text) = match &check.outcome {
            Outcome::Passed { note } => ("✓", Style::Good, note.clone()),
            Outcome::Refused(refusal) => {
                ("✗", Style::Bad, format!("`{}`: {}", refusal.field, refusal.reason))
            }
            Outcome::Skipped { note } => ("-", Style::Faint, format!("not checked: {note}")),
        };
        out.line(format!(
            "{} {:<11} {}",
            out.styled(style, mark),
            check.name,
            crate::output::printable(&text)
        ));
    }
    out.line(format!("state: {}", report.standing.state));
}

/// For machines: the whole report.
pub fn as_json(report: &Report) -> Value {
    json!({
        "state": report.standing.state, "serves": report.standing.serves, "ends": report.standing.ends,
        "sha256": report.digest, "licence": report.licence, "checks": report.checks,
    })
}
