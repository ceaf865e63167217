//! `plugin trust root` and `plugin trust make-root`: whom somebody vouches for.

use super::keys::read_keys;
use super::trust::{COMPARE, scope};
use crate::args::package::MakeRoot;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::printable;
use backplane_registry::package;
use backplane_registry::trust::{
    Level, MAX_ROOT, PublicKey, Role, Root, SecretKey, Timestamp, TrustStore, TrustedKey, read_capped,
    write_new,
};
use serde_json::json;
use std::path::Path;

pub fn accept(context: &Context, store: &TrustStore, file: &Path) -> Result<()> {
    let (out, now) = (&context.out, Timestamp::now());
    let bytes = read_capped(file, MAX_ROOT)?;
    let before = store.root()?;
    let root = Root::read(&bytes, before.as_ref())?;
    if !out.json {
        show(context, &root);
    }
    // One that follows was agreed to with the first.
    if before.is_none() && !context.global.yes {
        let refused = |why: &str| Failure::new(Exit::Denied, why).code("consent_needed");
        if !out.asks {
            return Err(refused("believing a root has to be agreed to").next("run it again with `--yes`"));
        }
        out.note(COMPARE);
        if !out.ask("believe it, and those that follow it?", false) {
            return Err(refused("the root is not believed"));
        }
    }
    let root = store.set_root(&bytes, now)?;
    if out.json {
        out.value(&json!({ "version": root.version, "expires": root.expires, "keys": root.keys.len() }));
    } else {
        out.line(format!("root {} is in force until {}", root.version, root.expires));
    }
    Ok(())
}

fn show(context: &Context, root: &Root) {
    let out = &context.out;
    out.note(format!("root {}: {} of {} keys sign the next", root.version, root.threshold, root.roots.len()));
    root.roots.iter().map(PublicKey::id).for_each(|id| out.note(format!("  {id}")));
    out.note("it vouches for");
    for key in &root.keys {
        let level = package::Level::from(key.level);
        out.note(format!("  {} of {}, level {level}: {}", key.id(), printable(&key.owner), scope(key)));
    }
}

pub fn remove(context: &Context, store: &TrustStore) -> Result<()> {
    if !store.remove_root()? {
        return Err(Failure::new(Exit::NotFound, "no root is believed"));
    }
    if context.out.json {
        context.out.value(&json!({ "removed": true }));
    } else {
        context.out.line("nobody's word for others is believed any more");
    }
    Ok(())
}

pub fn make(context: &Context, args: &MakeRoot) -> Result<()> {
    let before =
        args.after.as_deref().map(|file| Root::read(&read_capped(file, MAX_ROOT)?, None)).transpose()?;
    let roots = args.root.iter().map(|file| Ok(PublicKey::read(file)?.0)).collect::<Result<Vec<_>>>()?;
    let verified = args.verified.iter().map(|text| vouched(text, Level::Verified));
    let keys = verified.chain(args.core.iter().map(|text| vouched(text, Level::Core)));
    let root = Root {
        version: before.as_ref().map_or(1, |before| before.version + 1),
        expires: Timestamp::now().plus_days(args.days),
        threshold: args.threshold,
        roots,
        keys: keys.collect::<Result<_>>()?,
    };
    let keys = read_keys(&args.key)?;
    let sealed = root.seal(&keys.iter().collect::<Vec<&SecretKey>>())?;
    // As who believes the one before will read it.
    Root::read(&sealed, before.as_ref())?;
    write_new(&args.output, &sealed, 0o644)?;
    if context.out.json {
        context.out.value(&json!({ "file": args.output, "version": root.version, "expires": root.expires }));
    } else {
        let (file, version, until) = (args.output.display(), root.version, root.expires);
        context.out.line(format!("{file}  version {version}, believed until {until}"));
    }
    Ok(())
}

/// `acme.pub=com.acme.*`: a key, and the plugins that it speaks for.
fn vouched(text: &str, level: Level) -> Result<TrustedKey> {
    let (file, ids) = text.split_once('=').ok_or_else(|| {
        Failure::usage(format!("`{text}` names no plugins")).next("write `FILE=IDS`: `acme.pub=com.acme.*`")
    })?;
    let (key, owner) = PublicKey::read(Path::new(file))?;
    let owner = owner.ok_or_else(|| Failure::usage(format!("{file} does not say whose key it is")))?;
    let plugins = ids.split(',').map(|id| id.parse().map_err(Failure::usage)).collect::<Result<Vec<_>>>()?;
    let roles = [Role::Plugin, Role::License, Role::Revocation];
    Ok(TrustedKey::new(key, owner, &roles).plugins(plugins).level(level))
}
