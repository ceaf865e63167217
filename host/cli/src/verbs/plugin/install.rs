//! `plugin install`, `upgrade`, `rollback`, `remove` and `verify`: what an operator does with packages.

use super::facts::{self, Changes};
use super::live::{shadowed, take_over};
use crate::args::package::{Install, Remove, Rollback, Upgrade, Verify};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Style, printable};
use crate::verbs::license;
use backplane_registry::license::Snapshot;
use backplane_registry::package::{self, EXTENSION, Level, Package, Plugins, Trust, Verified};
use backplane_registry::trust::Timestamp;
use serde_json::{Value, json};
use std::path::Path;

/// Whom this host believes now, by the configuration.
pub fn trust(context: &Context) -> Result<Trust> {
    let least = context.load_config(Vec::new())?.plugins.trust;
    let trust = Trust::load(&context.state()?, least, Timestamp::now())?;
    for problem in trust.problems() {
        context.out.complain(format!("warning: {problem}"));
    }
    Ok(trust)
}

fn plugins(context: &Context) -> Result<Plugins> {
    Ok(Plugins::at(&context.state()?))
}

pub fn install(context: &Context, args: &Install) -> Result<()> {
    context.local_only("plugin install")?;
    let path = Path::new(&args.what);
    let file = path.extension().is_some_and(|end| end == EXTENSION) || path.is_file();
    if !file {
        return super::registry::install(context, args);
    }
    let trust = trust(context)?;
    let package = package::open(path, &trust)?;
    let shown = place(context, &trust, &package, &args.what, args.accept_changes)?;
    if context.out.json {
        context.out.value(&shown);
    }
    Ok(())
}

/// Shows a package, asks, installs it and tells a running server.
pub fn place(
    context: &Context,
    trust: &Trust,
    package: &Package,
    from: &str,
    accept_changes: bool,
) -> Result<Value> {
    let (out, plugins) = (&context.out, plugins(context)?);
    let verified = package.verified();
    let id = &verified.manifest.plugin.id;
    let old = plugins.in_use(id).ok().and_then(|version| plugins.check_files(&version, trust).ok());
    let mut changes = old.as_ref().map(|old| facts::changes(old, verified)).unwrap_or_default();
    if plugins.in_use(id).is_err()
        && verified.level < Level::Core
        && let Some(version) = super::ls::bundled(context, id)?
    {
        changes.grown.push(format!("takes the place of {version}, which came with the program"));
    }
    let state = license::standing(context, &verified.manifest)?;
    if !out.json {
        show(context, verified, old.as_ref(), &changes, state.as_ref());
    }
    agree(context, verified, &changes, accept_changes)?;
    let installed = plugins.install(package, trust, from)?;
    context.refresh_server()?;
    let upgrade = take_over(context, id, false)?;
    // Only now: what failed on trial was taken back.
    if !out.json {
        let what = match &installed {
            one if one.unchanged => "is installed already",
            one if one.mended => "was damaged on disk, and is whole again",
            _ => "installed",
        };
        out.line(format!("{id} {} {what}", installed.version));
    }
    let shadowed = shadowed(context, id)?;
    if let Some(why) = &shadowed {
        out.complain(format!("warning: it does not serve: {why}"));
    }
    let mut value = facts::json(verified);
    value["license"] = json!(state.map(|snapshot| snapshot.standing.state));
    value["before"] = json!(installed.before);
    value["unchanged"] = installed.unchanged.into();
    value["mended"] = installed.mended.into();
    value["upgrade"] = json!(upgrade);
    value["shadowed"] = json!(shadowed);
    value["changes"] = json!(changes);
    Ok(value)
}

fn show(
    context: &Context,
    package: &Verified,
    old: Option<&Verified>,
    changes: &Changes,
    state: Option<&Snapshot>,
) {
    let out = &context.out;
    out.note(facts::describe(package));
    if let Some(snapshot) = state {
        let state = match &snapshot.refusal {
            Some(refusal) => format!("{}: {}; {}", snapshot.standing.state, refusal.reason, refusal.remedy),
            None if snapshot.licence.is_none() => {
                format!("{}; `backplane license install FILE`", snapshot.standing.state)
            }
            None => snapshot.standing.state.to_string(),
        };
        out.note(format!("  {:<10} {}", "licensed", printable(&state)));
    }
    if let Some(old) = old {
        out.note(format!("  {:<10} {}", "in use", old.manifest.plugin.version));
    }
    for change in &changes.grown {
        out.complain(out.styled(Style::Warning, &format!("  {:<10} {}", "new", printable(change))));
    }
    for change in &changes.other {
        out.note(format!("  {:<10} {}", "changed", printable(change)));
    }
}

/// Asks once. `--yes` agrees to a package, not to one that wants more than the one before.
fn agree(context: &Context, package: &Verified, changes: &Changes, accept_changes: bool) -> Result<()> {
    let (out, title) = (&context.out, package.manifest.title());
    let refused =
        |why: String, next: &str| Err(Failure::new(Exit::Denied, why).next(next).code("consent_needed"));
    if !changes.grown.is_empty() && !accept_changes {
        if context.global.yes || !out.asks {
            let why = format!("{title} {}; that has to be agreed to", changes.grown.join(", and "));
            return refused(printable(&why), "run it again with `--yes --accept-changes`");
        }
    } else if context.global.yes {
        return Ok(());
    }
    if !out.asks {
        return refused(format!("installing {title} has to be agreed to"), "run it again with `--yes`");
    }
    // A plugin runs with all that the server may do: Enter alone is no.
    if out.ask("install it?", false) {
        Ok(())
    } else {
        Err(Failure::failed(format!("{title} was not installed")).code("consent_needed"))
    }
}

pub fn upgrade(context: &Context, args: &Upgrade) -> Result<()> {
    context.local_only("plugin upgrade")?;
    super::registry::upgrade(context, &args.ids, args.accept_changes)
}

pub fn rollback(context: &Context, args: &Rollback) -> Result<()> {
    context.local_only("plugin rollback")?;
    let version = plugins(context)?.rollback(&args.id, args.to.as_deref(), &trust(context)?)?;
    if !context.out.json {
        context.out.line(format!("{} {} is in use", version.id, version.version));
    }
    context.refresh_server()?;
    let upgrade = take_over(context, &version.id, args.now)?;
    if context.out.json {
        context.out.value(&json!({ "id": version.id, "version": version.version, "upgrade": upgrade }));
    }
    Ok(())
}

pub fn remove(context: &Context, args: &Remove) -> Result<()> {
    context.local_only("plugin remove")?;
    let (id, version) = split(&args.what);
    let plugins = plugins(context)?;
    let known = plugins.versions(id)?;
    let what = version.map_or_else(|| id.to_owned(), |version| format!("{id} {version}"));
    if !known.is_empty() && !context.global.yes {
        if !context.out.asks {
            let why = format!("removing {what} has to be agreed to");
            return Err(Failure::new(Exit::Denied, why)
                .next("run it again with `--yes`")
                .code("consent_needed"));
        }
        if !context.out.ask(&format!("remove {what}?"), false) {
            return Err(Failure::failed(format!("{what} was not removed")).code("consent_needed"));
        }
    }
    let gone = plugins.remove(id, version, &trust(context)?)?;
    context.refresh_server()?;
    if context.out.json {
        context.out.value(&gone);
    } else {
        gone.iter().for_each(|one| context.out.line(format!("{} {} removed", one.id, one.version)));
        if gone.iter().any(|one| one.current) {
            context.out.note("a server that has it loaded serves it until it is restarted");
        }
    }
    Ok(())
}

/// `ID` and `VERSION` of `ID@VERSION`.
pub fn split(what: &str) -> (&str, Option<&str>) {
    what.split_once('@').map_or((what, None), |(id, version)| (id, Some(version)))
}

pub fn verify(context: &Context, args: &Verify) -> Result<()> {
    let (trust, plugins) = (trust(context)?, plugins(context)?);
    let mut results: Vec<(String, Result<Verified>)> = Vec::new();
    for what in &args.what {
        let path = Path::new(what);
        if path.extension().is_some_and(|end| end == EXTENSION) || path.is_file() {
            results.push((what.clone(), check(path, &trust)));
        } else {
            plugins.in_use(what)?;
            for version in plugins.versions(what)? {
                let name = format!("{} {}", version.id, version.version);
                results.push((name, plugins.check_files(&version, &trust).map_err(Failure::from)));
            }
        }
    }
    if args.what.is_empty() {
        for version in plugins.list()? {
            let name = format!("{} {}", version.id, version.version);
            results.push((name, plugins.check_files(&version, &trust).map_err(Failure::from)));
        }
    }
    report(context, results)
}

fn check(path: &Path, trust: &Trust) -> Result<Verified> {
    let package = package::open(path, trust)?;
    package.check()?;
    Ok(package.verified().clone())
}

fn report(context: &Context, results: Vec<(String, Result<Verified>)>) -> Result<()> {
    let out = &context.out;
    if out.json {
        let value = |(what, result): &(String, Result<Verified>)| match result {
            Ok(package) => {
                let mut value = facts::json(package);
                value["what"] = json!(what);
                value["ok"] = true.into();
                value
            }
            Err(failure) => {
                json!({ "what": what, "ok": false, "problem": failure.what, "code": failure.code })
            }
        };
        out.value(&results.iter().map(value).collect::<Vec<_>>());
    }
    let count = results.len();
    if count == 0 && !out.json {
        out.note(
            "no package is installed; a file is checked by its name: `backplane plugin verify FILE.plg`",
        );
    }
    let mut refused = Vec::new();
    for (what, result) in results {
        match result {
            Ok(package) if !out.json => out.line(format!(
                "{what}  {}: {} signed by {}, level {}",
                out.styled(Style::Good, "ok"),
                package.manifest.title(),
                printable(&package.signer.owner),
                package.level
            )),
            Ok(_) => {}
            Err(failure) => {
                // Of one alone the failure itself is what is said.
                if !out.json && 1 < count {
                    out.line(format!("{what}  {}: {}", out.styled(Style::Bad, "refused"), failure.what));
                }
                refused.push(failure);
            }
        }
    }
    let bad = refused.len();
    match refused.into_iter().next() {
        None => Ok(()),
        Some(failure) if count == 1 => Err(failure),
        Some(first) => Err(Failure { what: format!("{bad} of {count} are refused"), next: None, ..first }),
    }
}
