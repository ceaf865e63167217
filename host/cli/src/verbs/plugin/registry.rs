//! Plugins of registries: `plugin install ID`, `plugin upgrade`, `plugin index`, `plugin trust registry`.

use super::install::{place, split, trust as load_trust};
use super::keys::read_keys;
use super::live::{shadowed, take_over};
use crate::args::package::{Index as IndexArgs, Install, TrustRegistry};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use backplane_registry::package::index::{Changes, Index, Offer, Registries, Registry, make};
use backplane_registry::package::{self, Act, Plugins, Problem};
use backplane_registry::trust::{PublicKey, SecretKey, Timestamp, TrustError, TrustStore};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub fn list(context: &Context) -> Result<Vec<Registry>> {
    Ok(Registries::at(&context.state()?).list()?)
}

pub fn trust(context: &Context, args: &TrustRegistry) -> Result<()> {
    let registries = Registries::at(&context.state()?);
    if args.remove {
        if !registries.remove(&args.name)? {
            return Err(Failure::new(Exit::NotFound, format!("no registry is called `{}`", args.name)));
        }
        context.out.line(format!("registry {} is used no more", args.name));
        return Ok(());
    }
    let read = |path: &PathBuf| Ok(PublicKey::read(path)?.0);
    let keys = args.key.iter().map(read).collect::<Result<Vec<_>>>()?;
    let given = args.location.clone().unwrap_or_default();
    // A folder means the same wherever the next command is run.
    let location = if given.contains("://") {
        given
    } else {
        let path = Path::new(&given);
        std::path::absolute(path).map_err(|error| Failure::io("find", path, &error))?.display().to_string()
    };
    let registry = Registry { name: args.name.clone(), location, keys };
    registries.add(registry.clone())?;
    let index = Index::open(&context.state()?, &registry, Timestamp::now(), context.global.offline);
    let serial = match &index {
        Ok(index) => Some(index.serial()),
        Err(error) => {
            context.out.complain(format!("warning: {error}"));
            None
        }
    };
    if context.out.json {
        context.out.value(&json!({ "registry": registry, "serial": serial }));
    } else {
        let plugins = index.map(|index| match index.ids().count() {
            1 => ", which has 1 plugin".to_owned(),
            count => format!(", which has {count} plugins"),
        });
        let plugins = plugins.unwrap_or_default();
        context.out.line(format!("registry {} is {}{plugins}", registry.name, registry.location));
    }
    Ok(())
}

/// A registry's index, and what it revokes put in force.
fn open(context: &Context, registry: &Registry) -> Result<Index> {
    let (state, now) = (context.state()?, Timestamp::now());
    let index = Index::open(&state, registry, now, context.global.offline)?;
    if let Some(list) = index.revocations()? {
        match TrustStore::at(&state).add_revocations(&list, now) {
            // A server that has one of them loaded says so from now on.
            Ok(_) => context.refresh_server()?,
            Err(TrustError::OldSerial { .. }) => {}
            Err(error) => {
                context.out.complain(format!("warning: revocations of registry {}: {error}", registry.name));
            }
        }
    }
    Ok(index)
}

pub fn install(context: &Context, args: &Install) -> Result<()> {
    let (id, version) = split(&args.what);
    let mut registries = list(context)?;
    if let Some(name) = &args.registry {
        registries.retain(|registry| registry.name == *name);
    }
    if registries.is_empty() {
        let next = "install a package's file, or name a registry: `backplane plugin trust registry`";
        let what = match &args.registry {
            Some(name) => format!("no registry is called `{name}`"),
            None => format!("`{}` is no package's file, and no registry is known", args.what),
        };
        return Err(Failure::new(Exit::NotFound, what).next(next));
    }
    let mut found: Vec<(Registry, Index)> = Vec::new();
    let mut missing = None;
    for registry in registries {
        let index = open(context, &registry)?;
        match index.offers(id) {
            Ok(_) => found.push((registry, index)),
            Err(error) if matches!(error.problem, Problem::NotFound(_)) => missing = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    if found.len() > 1 {
        // Which one is meant must not depend on an order: the other may be somebody else's of the same name.
        let names: Vec<_> = found.iter().map(|(registry, _)| format!("`{}`", registry.name)).collect();
        let what = format!("the registries {} have `{id}`", names.join(" and "));
        return Err(Failure::usage(what).next("name one with `--registry`"));
    }
    match (found.pop(), missing) {
        (Some((registry, index)), _) => {
            let shown = bring(context, &registry, &index, id, version, args.accept_changes)?;
            if context.out.json {
                context.out.value(&shown);
            }
            Ok(())
        }
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(Failure::new(Exit::NotFound, format!("no registry has `{id}`"))),
    }
}

/// Brings a version, checks that it is the one the index means, and installs it.
fn bring(
    context: &Context,
    registry: &Registry,
    index: &Index,
    id: &str,
    version: Option<&str>,
    accept_changes: bool,
) -> Result<Value> {
    let offer = index.choose(id, version)?;
    let folder = tempfile::tempdir().map_err(|error| Failure::io("make", &std::env::temp_dir(), &error))?;
    let file = index.bring(id, &offer, folder.path())?;
    let trust = load_trust(context)?;
    let package = package::open(&file, &trust)?;
    let verified = package.verified();
    if verified.manifest.plugin.id != id || verified.digest != offer.digest {
        let what = format!(
            "registry `{}` names {id} {} and hands out {}",
            registry.name,
            offer.version,
            verified.manifest.title()
        );
        return Err(Failure::failed(what).code("index_refused"));
    }
    place(context, &trust, &package, &from(registry), accept_changes)
}

/// As the ledger says where a package came from.
fn from(registry: &Registry) -> String {
    format!("registry {}", registry.name)
}

pub fn upgrade(context: &Context, ids: &[String], accept_changes: bool) -> Result<()> {
    let plugins = Plugins::at(&context.state()?);
    let (active, ledger, registries) = (plugins.active()?, plugins.ledger()?, list(context)?);
    let (mut results, mut revoked) = (Vec::new(), None);
    for id in ids.iter().filter(|id| !active.iter().any(|version| version.id == **id)) {
        // No package: a library whose file was replaced, if a server runs that has it loaded.
        match take_over(context, id, false)? {
            Some(upgrade) => results.push(json!({ "id": id, "version": upgrade["to"], "upgrade": upgrade })),
            None => drop(plugins.in_use(id)?),
        }
    }
    for version in active.iter().filter(|one| ids.is_empty() || ids.contains(&one.id)) {
        let came = ledger.iter().rev().find(|entry| entry.id == version.id && entry.act == Act::Install);
        let came = came.and_then(|entry| entry.from.as_deref()).unwrap_or_default();
        let Some(registry) = registries.iter().find(|registry| from(registry) == came) else {
            if let Some(upgrade) = take_over(context, &version.id, false)? {
                results.push(json!({ "id": version.id, "version": version.version, "upgrade": upgrade }));
            } else if let Some(why) = shadowed(context, &version.id)?.filter(|_| !ids.is_empty()) {
                return Err(Failure::failed(format!("{}: {why}", version.id)).code("plugin_shadowed"));
            } else if !ids.is_empty() {
                let what = format!("`{}` came from no registry that is known", version.id);
                return Err(Failure::new(Exit::NotFound, what).next("install a package's file over it"));
            }
            continue;
        };
        let index = open(context, registry)?;
        let offer = index.choose(&version.id, None)?;
        if offer.digest.short() == version.digest || !newer(&offer.version, &version.version) {
            let upgrade = take_over(context, &version.id, false)?;
            let is_this = |one: &&Offer| one.digest.short() == version.digest;
            let withdrawn = index.offers(&version.id)?.iter().find(is_this).is_some_and(|one| one.yanked);
            if let Some(problem) = plugins.revoked(version, &load_trust(context)?) {
                let next = "it has no newer one: go back with `backplane plugin rollback ID`, or `backplane plugin remove ID`";
                let what = format!("registry `{}`: {problem}, and it is the one in use", registry.name);
                revoked.get_or_insert(Failure::new(Exit::Denied, what).next(next).code("package_revoked"));
            } else if withdrawn {
                let (id, used, newest) = (&version.id, &version.version, &offer.version);
                context.out.complain(format!(
                    "warning: {id} {used} was withdrawn by its registry, whose newest is {newest}"
                ));
            } else if !context.out.json {
                context.out.line(format!("{} {} is the newest", version.id, version.version));
            }
            results.push(json!({
                "id": version.id, "version": version.version, "unchanged": true, "withdrawn": withdrawn,
                "upgrade": upgrade
            }));
            continue;
        }
        if ids.is_empty()
            && let Some(why) = plugins.why_failed(&version.id, &offer.digest.short())?
        {
            if !context.out.json {
                let title = format!("{} {}", version.id, offer.version);
                context
                    .out
                    .complain(format!("{title} failed here, and is passed over unless it is named: {why}"));
            }
            results.push(json!({
                "id": version.id, "version": version.version, "unchanged": true, "failed": offer.version, "why": why
            }));
            continue;
        }
        results.push(bring(context, registry, &index, &version.id, Some(&offer.version), accept_changes)?);
    }
    if context.out.json {
        context.out.value(&results);
    } else if results.is_empty() {
        context.out.note("nothing that is installed came from a registry");
    }
    revoked.map_or(Ok(()), Err)
}

fn newer(a: &str, b: &str) -> bool {
    package::order(a, b).is_gt()
}

pub fn index(context: &Context, args: &IndexArgs) -> Result<()> {
    let keys = read_keys(&args.key)?;
    let yank = args.yank.iter().map(|what| match split(what) {
        (id, Some(version)) => Ok((id.to_owned(), version.to_owned())),
        (id, None) => Err(Failure::usage(format!("which version of `{id}`?")).next("write `ID@VERSION`")),
    });
    let changes = Changes {
        add: args.add.clone(),
        yank: yank.collect::<Result<_>>()?,
        revocations: args.revocations.clone(),
    };
    let now = Timestamp::now();
    let expires = now.plus_days(args.days);
    let serial = make(&args.dir, &changes, &keys.iter().collect::<Vec<&SecretKey>>(), now, expires)?;
    if context.out.json {
        context.out.value(&json!({ "dir": args.dir, "serial": serial, "expires": expires }));
    } else {
        context.out.line(format!("{}  serial {serial}, believed until {expires}", args.dir.display()));
    }
    Ok(())
}
