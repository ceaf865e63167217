//! `license status|fingerprint|check`: how this machine stands.

use super::{Here, installed, refusal, refused, used};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::Table;
use crate::verbs::plugin::manifests;
use backplane_registry::license::{Feature, Held, Licences, Machine, Running, Snapshot, State};
use backplane_registry::plugin::LicenceClass;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub fn status(context: &Context, only: Option<&str>) -> Result<()> {
    let here = Here::of(context)?;
    let licences = Licences::at(&context.state()?);
    let manifests = manifests(context)?;
    let mut ids: BTreeSet<String> = manifests
        .iter()
        .filter(|(manifest, _)| manifest.licence_class != LicenceClass::Open)
        .map(|(manifest, _)| manifest.id.clone())
        .collect();
    // Backwards, so that of two with one id the first counts.
    let plugins: BTreeMap<String, Running> = manifests
        .iter()
        .rev()
        .map(|(plugin, built)| (plugin.id.clone(), Running::of(plugin, *built)))
        .collect();
    let all = licences.load(&here.situation(None, None)).map_err(refused)?;
    ids.extend(all.iter().filter_map(|held| Some(held.report.licence.as_ref()?.product.plugin.clone())));
    ids.retain(|id| only.is_none_or(|only| only == id));
    let mut rows = Vec::new();
    let mut table = Table::new(&["PLUGIN", "VERSION", "LICENCE", "ENDS", "STATE"]);
    for id in &ids {
        let plugin = plugins.get(id);
        let used = used(context, id, here.now)?;
        let held = licences.of_plugin(id, &here.situation(plugin, used.as_ref())).map_err(refused)?;
        let row = row(id, plugin, held.as_ref());
        let text = |member: &str| row[member].as_str().unwrap_or("-").to_owned();
        let state = match row["reason"].as_str() {
            Some(reason) => format!("{}: {reason}", text("state")),
            None => text("state"),
        };
        table.row([id.clone(), text("version"), text("licence"), text("ends"), state]);
        rows.push(row);
    }
    if context.out.json {
        context.out.value(&rows);
    } else if rows.is_empty() {
        context.out.note(match only {
            Some(id) => format!("{id} needs no licence, and there is none for it"),
            None => "no plugin here needs a licence, and there are none".to_owned(),
        });
    } else {
        context.out.table(&table);
    }
    Ok(())
}

fn row(id: &str, plugin: Option<&Running>, held: Option<&Held>) -> Value {
    let report = held.map(|held| &held.report);
    json!({
        "plugin": id,
        "version": plugin.and_then(|plugin| plugin.version.as_deref()),
        "licence": report.and_then(|report| report.id()),
        "file": held.map(|held| held.path.display().to_string()),
        "state": report.map_or(State::Missing, |report| report.standing.state),
        "serves": report.is_some_and(|report| report.standing.serves),
        "ends": report.and_then(|report| report.standing.ends),
        "reason": report.and_then(|report| report.refusal()).map(|refusal| format!("`{}`: {}", refusal.field, refusal.reason)),
        "remedy": report.and_then(|report| report.refusal()).map(|refusal| refusal.remedy.clone()),
    })
}

pub fn fingerprint(context: &Context, plugin: &str) -> Result<()> {
    let state = context.state()?;
    let install = Machine::install_id(&state).map_err(refused)?;
    let parts = Machine::read(&state).fingerprint(plugin);
    if context.out.json {
        let parts: Vec<_> = parts.iter().map(|part| &part.id).collect();
        context.out.value(&json!({ "plugin": plugin, "install": install, "fingerprint": parts }));
        return Ok(());
    }
    context.out.line(install);
    for part in &parts {
        context.out.line(&part.id);
    }
    if parts.len() < 2 {
        context.out.note(
            "this machine has fewer than two parts to know it by: have the licence bound to the `ins_` id",
        );
    }
    Ok(())
}

pub fn check(context: &Context, plugin: &str, feature: &str, tenant: &str) -> Result<()> {
    let here = Here::of(context)?;
    let running = installed(context)?.into_iter().find(|running| running.id == plugin);
    let used = used(context, plugin, here.now)?;
    let licences = Licences::at(&context.state()?);
    let held =
        licences.of_plugin(plugin, &here.situation(running.as_ref(), used.as_ref())).map_err(refused)?;
    let Some(held) = held else {
        return Err(Failure::new(
            Exit::Denied,
            format!("there is no licence for {plugin} in {}", licences.folder().display()),
        )
        .next("`backplane license install FILE`")
        .code("license_missing"));
    };
    if let Some(reason) = held.report.refusal() {
        return Err(refusal(Exit::Denied, &held.path, &held.report, reason));
    }
    let Some(value) = Snapshot::from(&held.report).feature(tenant, feature) else {
        let id = held.report.id().unwrap_or_default();
        return Err(Failure::new(
            Exit::Denied,
            format!(
                "{}: licence {id}, `features`: `{feature}` is not licensed for the tenant `{tenant}`",
                held.path.display()
            ),
        )
        .next("what it has: `backplane license list --json`; more of it the vendor sells")
        .code("feature_not_licensed"));
    };
    // As the licence writes it: a flag is no number.
    let written = held.report.licence.as_ref().and_then(|licence| licence.features.get(feature).copied());
    if context.out.json {
        let value = written.unwrap_or(Feature::Number(value));
        context.out.value(&json!({ "plugin": plugin, "feature": feature, "tenant": tenant, "value": value }));
    } else {
        let value = match written {
            Some(Feature::Flag(_)) => "on".to_owned(),
            _ => value.to_string(),
        };
        context.out.line(format!("{feature}: {value}"));
    }
    Ok(())
}
