//! `plugin report`: all that a plugin's file tells, without running any of its code.

use crate::args::Report as Arguments;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Style, Table, printable};
use crate::text;
use backplane_registry::plugin::{InspectError, Report, report};

pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let report = report(&arguments.file).map_err(|error| match error {
        InspectError::Missing { .. } => Failure::new(Exit::NotFound, error.to_string()),
        _ => Failure::failed(error.to_string()),
    })?;
    if context.out.json {
        context.out.value(&report);
    } else {
        show(context, &report);
    }
    // Whoever asks in a script wants to know whether this host would take it.
    match report.problem {
        None => Ok(()),
        Some(problem) => Err(Failure::failed(problem).code("unusable")),
    }
}

fn show(context: &Context, report: &Report) {
    let out = &context.out;
    for (name, value) in facts(report) {
        out.line(format!("{:<12} {}", name, printable(&value)));
    }
    out.line("");
    let mut hosts = Table::new(&["HOSTS", "DO", "RULE", "WHY"]);
    for host in &report.hosts {
        let does = if host.loads { "load it" } else { "refuse it" };
        hosts.row([host.which.clone(), does.to_owned(), host.rule.to_owned(), host.why.clone()]);
    }
    if !report.hosts.is_empty() {
        out.table(&hosts);
        out.line("");
    }
    for finding in &report.findings {
        out.line(format!("{} {}", out.styled(Style::Warning, "look at:"), printable(&finding.what)));
        out.line(format!("  to do: {}", finding.todo));
    }
    if report.findings.is_empty() {
        out.line("nothing to look at");
    }
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let or = |value: &Option<String>, otherwise: &str| value.clone().unwrap_or_else(|| otherwise.to_owned());
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let mut facts = Vec::new();
    if let Some(manifest) = &report.manifest {
        let capabilities: Vec<_> = manifest.capabilities.iter().map(ToString::to_string).collect();
        let abi = manifest.abi;
        facts.extend([
            ("plugin", format!("{} {}", manifest.id, manifest.version)),
            ("serves", list(&capabilities)),
            ("opens", list(&manifest.formats)),
            ("abi", format!("built for {abi}, needs {}.{}", abi.major, manifest.min_host_minor)),
            ("asks for", list(&super::facts::asks(manifest).into_iter().collect::<Vec<_>>())),
            ("licence", super::facts::licence(manifest)),
        ]);
    }
    let compiler = report.rustc.as_ref().map(|rustc| format!("rustc {rustc}"));
    let compiler = compiler.unwrap_or_else(|| list(&report.compilers));
    let glibc = match &report.glibc {
        Some(glibc) => format!("{glibc} or later; here {}", or(&report.glibc_here, "none")),
        None => "not needed".to_owned(),
    };
    let needed = report.needed.iter().map(|needed| {
        let by = needed.by.as_ref().map(|by| format!(" (for {by})")).unwrap_or_default();
        let missing = if needed.path.is_none() { " MISSING" } else { "" };
        format!("{}{by}{missing}", needed.name)
    });
    let searched: Vec<String> = report.rpath.iter().chain(&report.runpath).cloned().collect();
    let panics = match (&report.panic, report.rustc.is_some()) {
        (Some(panic), _) => panic.clone(),
        (None, true) => "not told: built with an SDK before 1.0".to_owned(),
        (None, false) => "not Rust".to_owned(),
    };
    // A library of no version script can export thousands.
    let exports = match &report.exports[..] {
        [first @ .., _] if first.len() >= 8 => {
            format!("{} and {} more (--json lists them)", first[..8].join(", "), report.exports.len() - 8)
        }
        exports => list(exports),
    };
    facts.extend([
        ("built with", format!("{}; {compiler}", or(&report.sdk, "no SDK named"))),
        ("machine", report.machine.clone()),
        ("size", format!("{} ({} bytes)", text::bytes(report.size), report.size)),
        ("sha256", report.sha256.clone()),
        ("exports", exports),
        ("needs", list(&needed.collect::<Vec<_>>())),
        ("glibc", glibc),
        ("searches", list(&searched)),
        ("panics", panics),
        ("text relocs", yes(report.text_relocations)),
        ("exec stack", yes(report.executable_stack)),
        ("static TLS", yes(report.static_tls)),
    ]);
    facts
}
