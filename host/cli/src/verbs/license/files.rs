//! `license install|remove|list`: the licence files of the state directory.

use super::inspect::as_json;
use super::{Here, refusal, refused};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Table, printable};
use backplane_registry::license::{LABEL, Licences, Machine, State, TIME_LABEL, TimeToken, check};
use backplane_registry::trust::{TrustStore, armour, read_capped};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// More than a revocation list takes.
const MAX: usize = 1 << 20;

pub fn install(context: &Context, files: &[PathBuf]) -> Result<()> {
    let mut done = Vec::new();
    for file in files {
        let bytes = read_capped(file, MAX).map_err(refused)?;
        let is_list = bytes.trim_ascii_start().starts_with(b"{");
        let is_token = String::from_utf8_lossy(&bytes).contains(&armour::begin(TIME_LABEL));
        done.push(if is_list {
            revocations(context, file, &bytes)?
        } else if is_token {
            time(context, file, &bytes)?
        } else {
            licence(context, file, &bytes)?
        });
    }
    if context.out.json {
        context.out.value(&done);
    }
    Ok(())
}

fn licence(context: &Context, file: &Path, bytes: &[u8]) -> Result<Value> {
    let here = Here::of(context)?;
    let report = check(bytes, &here.situation(None, None));
    let usable = report.refusal().is_none() || report.standing.state == State::NotYetValid;
    let Some(licence) = report.licence.as_ref().filter(|_| usable) else {
        let reason = report.refusal().cloned();
        return Err(reason.map_or_else(
            || Failure::failed(format!("{}: no licence", file.display())),
            |reason| refusal(Exit::Failure, file, &report, &reason),
        ));
    };
    // As sent, without the letter around it.
    let clean =
        report.envelope.as_deref().map(|envelope| armour::write(LABEL, &[], envelope)).unwrap_or_default();
    let licences = Licences::at(&context.state()?);
    let path = licences.install(&licence.id, clean.as_bytes()).map_err(refused)?;
    licences.note_installed(licence, here.now).map_err(refused)?;
    let plugin = &licence.product.plugin;
    if !context.out.json {
        context.out.line(format!("{} installed for {plugin}: {}", licence.id, report.standing.state));
    }
    Ok(json!({ "id": licence.id, "plugin": plugin, "state": report.standing.state, "file": path }))
}

/// A vendor's word for what time it is. A running server takes it from its file, and the next one from the record.
fn time(context: &Context, file: &Path, bytes: &[u8]) -> Result<Value> {
    let state = context.state()?;
    let install = Machine::install_id(&state).map_err(refused)?;
    let mut here = Here::of(context)?;
    let read = TimeToken::read(bytes, &here.trusted.keys, &install, here.system);
    let read = read.and_then(|(token, _)| token.fits(here.system).map(|()| token));
    let token = read.map_err(|error| {
        let failure = refused(error);
        Failure { what: format!("{}: {}", file.display(), failure.what), ..failure }
    })?;
    let licences = Licences::at(&state);
    licences.install_token(&token, bytes).map_err(refused)?;
    here.machine = Machine::read(&state);
    licences.mend(&mut here.clock, &here.trusted.keys, &here.machine, here.system).map_err(refused)?;
    here.clock.write(&state).map_err(refused)?;
    let (issuer, time) = (printable(&token.issuer), token.time);
    if !context.out.json {
        context
            .out
            .line(format!("it is {time}: licences of {issuer} go by that, and by what is seen from now on"));
    }
    Ok(json!({ "issuer": token.issuer, "time": time }))
}

fn revocations(context: &Context, file: &Path, bytes: &[u8]) -> Result<Value> {
    let here = Here::of(context)?;
    let list = TrustStore::at(&context.state()?).add_revocations(bytes, here.now).map_err(|error| {
        let failure = refused(error);
        Failure { what: format!("{}: {}", file.display(), failure.what), ..failure }
    })?;
    context.refresh_server()?;
    let counts = (list.licenses.len(), list.keys.len(), list.plugin_digests.len());
    if !context.out.json {
        context.out.line(format!(
            "revocation list {} installed: {} licences, {} keys, {} plugin files",
            list.serial, counts.0, counts.1, counts.2
        ));
    }
    Ok(json!({ "serial": list.serial, "licenses": counts.0, "keys": counts.1, "plugin_digests": counts.2 }))
}

pub fn remove(context: &Context, id: &str) -> Result<()> {
    let licences = Licences::at(&context.state()?);
    if !licences.remove(id).map_err(refused)? {
        let folder = licences.folder().display();
        return Err(Failure::new(Exit::NotFound, format!("there is no licence {id} in {folder}"))
            .next("what there is: `backplane license list`")
            .code("license_not_found"));
    }
    if context.out.json {
        context.out.value(&json!({ "removed": id }));
    } else {
        context.out.note(format!("{id} removed"));
    }
    Ok(())
}

pub fn list(context: &Context) -> Result<()> {
    let here = Here::of(context)?;
    let licences = Licences::at(&context.state()?);
    let held = licences.load(&here.situation(None, None)).map_err(refused)?;
    if context.out.json {
        let row = |held: &backplane_registry::license::Held| {
            let mut row = as_json(&held.report);
            row["file"] = held.path.display().to_string().into();
            row["superseded"] = held.superseded.into();
            row
        };
        context.out.value(&held.iter().map(row).collect::<Vec<_>>());
        return Ok(());
    }
    if held.is_empty() {
        context.out.note("no licences; `backplane license install FILE` keeps one");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "PLUGIN", "FOR", "SERIAL", "ENDS", "STATE"]);
    for held in &held {
        let report = &held.report;
        let note = match (held.superseded, report.refusal()) {
            (true, _) => format!("{}; another counts", report.standing.state),
            (false, Some(refusal)) => {
                format!("{}: `{}`: {}", report.standing.state, refusal.field, refusal.reason)
            }
            (false, None) => report.standing.state.to_string(),
        };
        let ends = report.standing.ends.map_or_else(|| "-".to_owned(), |end| end.to_string());
        table.row(match &report.licence {
            Some(licence) => [
                licence.id.clone(),
                licence.product.plugin.clone(),
                licence.licensee.name.clone(),
                licence.serial.to_string(),
                ends,
                note,
            ],
            None => {
                let name = held.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                [name, "-".to_owned(), "-".to_owned(), "-".to_owned(), ends, note]
            }
        });
    }
    context.out.table(&table);
    Ok(())
}
