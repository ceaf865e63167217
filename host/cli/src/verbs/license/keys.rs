//! `license trust list|add|remove`: the keys whose signatures are believed.

use super::{Here, refused};
use crate::args::{Trust, TrustAdd};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::Table;
use crate::verbs::plugin::{COMPARE, nothing_lost};
use backplane_registry::trust::{KeyId, PublicKey, Role, TrustStore, TrustedKey};
use serde_json::{Value, json};

pub fn run(context: &Context, verb: Trust) -> Result<()> {
    match verb {
        Trust::List => list(context),
        Trust::Add(args) => add(context, &args),
        Trust::Remove { id } => remove(context, &id),
    }
}

fn list(context: &Context) -> Result<()> {
    let keys = Here::of(context)?.trusted.keys;
    if context.out.json {
        let row = |key: &TrustedKey| {
            let mut row = json!(key);
            row["id"] = json!(key.id());
            row["revoked"] = keys.is_revoked(&key.id()).into();
            row
        };
        context.out.value(&keys.keys().map(row).collect::<Vec<Value>>());
        return Ok(());
    }
    let mut table = Table::new(&["ID", "OWNER", "SIGNS", "FOR", "UNTIL"]);
    for key in keys.keys() {
        let words = |words: Vec<String>| words.join(", ");
        let until = match (keys.is_revoked(&key.id()), key.not_after) {
            (true, _) => "revoked".to_owned(),
            (false, Some(until)) => until.to_string(),
            (false, None) => "-".to_owned(),
        };
        table.row([
            key.id().to_string(),
            key.owner.clone(),
            words(key.roles.iter().map(Role::to_string).collect()),
            words(key.plugins.iter().map(ToString::to_string).collect()),
            until,
        ]);
    }
    context.out.table(&table);
    Ok(())
}

fn add(context: &Context, args: &TrustAdd) -> Result<()> {
    let (key, said) = PublicKey::read(&args.file).map_err(refused)?;
    let owner = args.owner.clone().or(said).filter(|owner| !owner.is_empty()).ok_or_else(|| {
        Failure::usage(format!("{} does not say whose key it is", args.file.display()))
            .next("name the vendor with `--owner`")
    })?;
    let roles = args.roles.iter().map(|role| role.parse()).collect::<Result<Vec<Role>, _>>();
    let plugins = args.plugins.iter().map(|ids| ids.parse()).collect::<Result<_, _>>();
    let until = args.until.as_ref().map(|time| time.parse()).transpose();
    let mut trusted = TrustedKey::new(key, owner, &roles.map_err(Failure::usage)?);
    trusted.plugins = plugins.map_err(Failure::usage)?;
    trusted.not_after = until.map_err(Failure::usage)?;
    let store = TrustStore::at(&context.state()?);
    nothing_lost(&store, &trusted)?;
    store.add(trusted.clone()).map_err(refused)?;
    let id = trusted.id();
    if context.out.json {
        context.out.value(
            &json!({ "id": id, "owner": trusted.owner, "roles": trusted.roles, "plugins": trusted.plugins }),
        );
    } else {
        let roles: Vec<_> = trusted.roles.iter().map(Role::to_string).collect();
        context.out.line(format!(
            "{id} of {} is trusted for {}",
            crate::output::printable(&trusted.owner),
            roles.join(", ")
        ));
        context.out.note(COMPARE);
    }
    Ok(())
}

fn remove(context: &Context, id: &str) -> Result<()> {
    let id: KeyId = id
        .parse()
        .map_err(|error: backplane_registry::trust::TrustError| Failure::usage(error.to_string()))?;
    let gone = TrustStore::at(&context.state()?).remove(&id).map_err(refused)?;
    let gone = gone.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("the key {id} is not among the trusted ones"))
            .next("what is: `backplane license trust list`")
    })?;
    if context.out.json {
        context.out.value(&json!({ "removed": id }));
    } else {
        context.out.note(format!("{id} of {} is trusted no more", gone.owner));
    }
    Ok(())
}
