//! `plugin trust`: whose packages are believed.

use super::root;
use crate::args::package::{Trust, TrustAdd};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Table, printable};
use backplane_registry::trust::{
    IdPattern, KeyId, PublicKey, Role, Timestamp, TrustError, TrustStore, TrustedKey, read_capped,
};
use serde_json::json;
use std::path::Path;

/// Who swapped the file swapped the key.
pub const COMPARE: &str = "compare the id with what its owner says it is, by another way than the file came";
/// More than any revocation list has.
const MAX_LIST: usize = 1 << 20;

pub fn run(context: &Context, verb: Trust) -> Result<()> {
    context.local_only("plugin trust")?;
    let store = TrustStore::at(&context.state()?);
    match verb {
        Trust::Add(args) => add(context, &store, &args),
        Trust::Ls => ls(context, &store),
        Trust::Remove { id } => remove(context, &store, &id),
        Trust::Registry(args) => super::registry::trust(context, &args),
        Trust::Root { file, remove: _ } => match file {
            Some(file) => root::accept(context, &store, &file),
            None => root::remove(context, &store),
        },
        Trust::MakeRoot(args) => root::make(context, &args),
        Trust::Revocations { file } => {
            let list = store.add_revocations(&read_capped(&file, MAX_LIST)?, Timestamp::now())?;
            let count = list.keys.len() + list.licenses.len() + list.plugin_digests.len();
            if context.out.json {
                context.out.value(&list);
            } else {
                context.out.line(format!("revocation list {} is in force: {count} entries", list.serial));
            }
            context.refresh_server()
        }
    }
}

fn add(context: &Context, store: &TrustStore, args: &TrustAdd) -> Result<()> {
    let (key, owner) = match args.key.parse::<PublicKey>() {
        Ok(key) => (key, None),
        Err(_) if !args.key.starts_with("ed25519:") => PublicKey::read(Path::new(&args.key))?,
        Err(error) => return Err(error.into()),
    };
    let owner = args
        .owner
        .clone()
        .or(owner)
        .ok_or_else(|| Failure::usage("whose key is it?").next("say it with `--owner NAME`"))?;
    let parse = |text: &String| text.parse::<Role>().map_err(Failure::usage);
    let roles = args.role.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let parse = |text: &String| text.parse::<IdPattern>().map_err(Failure::usage);
    let patterns = args.plugins.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let trusted = TrustedKey::new(key, owner, &roles).plugins(patterns);
    nothing_lost(store, &trusted)?;
    store.add(trusted.clone())?;
    if context.out.json {
        context.out.value(&trusted);
    } else {
        context.out.line(format!(
            "{} of {} is trusted: {}",
            trusted.id(),
            printable(&trusted.owner),
            scope(&trusted)
        ));
        context.out.note(COMPARE);
    }
    Ok(())
}

/// Refuses to trust a key again for less than it is trusted for: a vendor signs packages and licences with one key, and
/// whoever adds it for the one would take it away from the other.
pub fn nothing_lost(store: &TrustStore, key: &TrustedKey) -> Result<()> {
    let trusted = store.load(Timestamp::now())?;
    let known = trusted.keys.keys().find(|known| known.id() == key.id());
    let Some(known) = known.filter(|known| !known.roles.is_subset(&key.roles)) else { return Ok(()) };
    let what = format!("{} of {} is trusted already: {}", known.id(), printable(&known.owner), scope(known));
    let roles: Vec<_> = known.roles.union(&key.roles).map(|role| format!("--role {role}")).collect();
    let next = format!("`{}` trusts it for all; for less, `trust remove` it first", roles.join(" "));
    Err(Failure::failed(what).next(next).code("key_trusted"))
}

pub fn scope(key: &TrustedKey) -> String {
    let roles: Vec<_> = key.roles.iter().map(|role| role.as_str()).collect();
    let plugins: Vec<_> = key.plugins.iter().map(ToString::to_string).collect();
    format!("{} for {}", roles.join(", "), plugins.join(", "))
}

fn ls(context: &Context, store: &TrustStore) -> Result<()> {
    let trusted = store.load(Timestamp::now())?;
    let out = &context.out;
    if out.json {
        let key = |key: &TrustedKey| json!({ "id": key.id(), "revoked": trusted.keys.is_revoked(&key.id()), "key": key });
        let registries = super::registry::list(context)?;
        out.value(
            &json!({ "keys": trusted.keys.keys().map(key).collect::<Vec<_>>(), "registries": registries }),
        );
        return Ok(());
    }
    let mut table = Table::new(&["KEY", "OWNER", "LEVEL", "MAY SIGN", "FOR", "STATE"]);
    for key in trusted.keys.keys() {
        let roles: Vec<_> = key.roles.iter().map(|role| role.as_str()).collect();
        let plugins: Vec<_> = key.plugins.iter().map(ToString::to_string).collect();
        let level = backplane_registry::package::Level::from(key.level);
        let state = if trusted.keys.is_revoked(&key.id()) { "revoked" } else { "trusted" };
        table.row([
            key.id().to_string(),
            key.owner.clone(),
            level.to_string(),
            roles.join(", "),
            plugins.join(", "),
            state.to_owned(),
        ]);
    }
    if trusted.keys.keys().next().is_none() {
        out.note("no key is trusted: `backplane plugin trust add KEY.pub --plugins 'com.acme.*'`");
    } else {
        out.table(&table);
    }
    for registry in super::registry::list(context)? {
        out.line(format!("registry {}  {}", registry.name, registry.location));
    }
    for problem in &trusted.problems {
        out.complain(format!("warning: {problem}"));
    }
    Ok(())
}

fn remove(context: &Context, store: &TrustStore, id: &str) -> Result<()> {
    let trusted = store.load(Timestamp::now())?;
    let found: Vec<KeyId> =
        trusted.keys.keys().map(TrustedKey::id).filter(|key| key.as_str().starts_with(id)).collect();
    let key = match found.as_slice() {
        [key] if !id.is_empty() => key,
        [] | [_] => {
            let what = format!("no trusted key has an id that begins with `{id}`");
            return Err(
                Failure::new(Exit::NotFound, what).next("the trusted keys: `backplane plugin trust ls`")
            );
        }
        many => {
            let what = format!("{} trusted keys have an id that begins with `{id}`", many.len());
            return Err(Failure::usage(what).next("write more of it"));
        }
    };
    let gone = store.remove(key)?;
    if context.out.json {
        context.out.value(&gone);
    } else {
        let owner = gone.map(|key| key.owner).unwrap_or_default();
        context.out.line(format!("{key} of {owner} is trusted no more"));
        context.out.note("a running server goes on with what it has loaded until it is restarted");
    }
    Ok(())
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        let exit = match &error {
            TrustError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            TrustError::UnknownSigner { .. }
            | TrustError::WrongRole { .. }
            | TrustError::KeyRevoked { .. }
            | TrustError::KeyExpired { .. }
            | TrustError::KeyNotYetValid { .. } => Exit::Denied,
            TrustError::Key { .. } => Exit::Usage,
            _ => Exit::Failure,
        };
        Self::new(exit, error.to_string()).code(error.code())
    }
}
