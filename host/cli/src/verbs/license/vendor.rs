//! `license keygen|issue|revoke`: what a vendor does, on a machine of its own.

use super::refused;
use crate::args::{Issue, Revoke};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use backplane_registry::license::{Licence, TimeToken};
use backplane_registry::package;
use backplane_registry::trust::{
    Envelope, KeyId, PublicKey, RevocationList, Revocations, Role, SecretKey, Timestamp, TrustError,
    TrustSet, TrustedKey, parse_json, payload_type, read_capped, write_new,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// More than a template or a revocation list takes.
const MAX: usize = 1 << 20;

pub fn keygen(context: &Context, owner: &str, out: &Path) -> Result<()> {
    if owner.trim().is_empty() || owner.chars().any(char::is_control) {
        return Err(Failure::usage("`--owner` is empty, or has characters that no name has"));
    }
    let with = |extension: &str| PathBuf::from(format!("{}.{extension}", out.display()));
    let (secret, public) = (with("key"), with("pub"));
    let key = SecretKey::generate().map_err(refused)?;
    key.write(&secret, owner).map_err(refused)?;
    write_new(&public, key.public().to_armour(owner).as_bytes(), 0o644).map_err(refused)?;
    let id = key.public().id();
    if context.out.json {
        context.out.value(
            &json!({ "id": id, "public": key.public(), "secret_file": secret, "public_file": public }),
        );
    } else {
        context.out.line(id.to_string());
        context.out.note(format!(
            "{} signs: keep it to yourself. {} goes to your customers, `{}` into the plugin's manifest",
            secret.display(),
            public.display(),
            key.public()
        ));
        context.out.note(
            "the first line is the key's id: say it where people know it is you who says it, so that they can compare",
        );
    }
    Ok(())
}

pub fn issue(context: &Context, args: &Issue) -> Result<()> {
    let keys =
        args.keys.iter().map(|file| SecretKey::read(file)).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let owner = keys.first().map(|(_, owner)| owner.as_str()).unwrap_or_default();
    let mut template = template(&args.template)?;
    for (name, value) in &args.members {
        set(&mut template, name, value)?;
    }
    let wrong = |reason: String| {
        Failure::failed(format!("{}: {reason}", args.template.display())).code("template_invalid")
    };
    let licence = Licence::of_template(template, owner, Timestamp::now()).map_err(wrong)?;
    if keys.iter().any(|(_, owner)| *owner != licence.issuer) {
        let reason = format!(
            "`issuer` is `{}`, and a key of `{owner}` is to sign it: no host would believe it",
            licence.issuer
        );
        return Err(wrong(reason));
    }
    let keys: Vec<&SecretKey> = keys.iter().map(|(key, _)| key).collect();
    let text = licence.seal(&keys).map_err(refused)?;
    let Some(out) = &args.out else {
        context.out.write(&text);
        return Ok(());
    };
    write_new(out, text.as_bytes(), 0o644).map_err(refused)?;
    if context.out.json {
        context.out.value(&json!({ "file": out, "licence": licence }));
    } else {
        context.out.line(format!(
            "{}: {}, serial {}, for {}",
            out.display(),
            licence.id,
            licence.serial,
            crate::output::printable(&licence.licensee.name)
        ));
    }
    Ok(())
}

/// What time it is at a customer's, by this machine's clock: a vendor's is right.
pub fn time(context: &Context, key: &Path, install: &str, out: &Path) -> Result<()> {
    let (key, owner) = SecretKey::read(key).map_err(refused)?;
    if !install.starts_with("ins_") {
        return Err(Failure::usage(format!("`{install}` names no installation"))
            .next("the customer's is the first line of `backplane license fingerprint PLUGIN`"));
    }
    let token = TimeToken::new(&owner, install, Timestamp::now());
    let text = token.seal(&key).map_err(refused)?;
    write_new(out, text.as_bytes(), 0o644).map_err(refused)?;
    if context.out.json {
        context.out.value(&json!({ "file": out, "token": token }));
    } else {
        context.out.line(format!(
            "{}: it is {} at {install}, installed within a day",
            out.display(),
            token.time
        ));
    }
    Ok(())
}

fn template(file: &Path) -> Result<Value> {
    let bytes = read_capped(file, MAX).map_err(refused)?;
    let text = String::from_utf8_lossy(&bytes);
    let read = if text.trim_start().starts_with('{') {
        parse_json(&bytes)
    } else {
        toml::from_str::<Value>(&text).map_err(|error| error.to_string().trim().replace('\n', " "))
    };
    read.map_err(|reason| Failure::failed(format!("{}: {reason}", file.display())).code("template_invalid"))
}

/// Sets `limits.gpus` to `2`: what reads as JSON is JSON, all else is text.
fn set(template: &mut Value, name: &str, value: &str) -> Result<()> {
    let mut place = template;
    for part in name.split('.') {
        if place.is_null() {
            *place = json!({});
        }
        let members = place.as_object_mut().ok_or_else(|| {
            Failure::usage(format!("`--set {name}`: what is before `{part}` has no members"))
        })?;
        place = members.entry(part).or_insert(Value::Null);
    }
    *place = parse_json(value.as_bytes()).unwrap_or_else(|_| value.into());
    Ok(())
}

pub fn revoke(context: &Context, args: &Revoke) -> Result<()> {
    if args.licenses.is_empty() && args.keys.is_empty() && args.packages.is_empty() {
        return Err(Failure::usage(
            "nothing to revoke: name ids of licences, `--revoke-key`, or `--package`",
        ));
    }
    let (key, owner) = SecretKey::read(&args.key).map_err(refused)?;
    let now = Timestamp::now();
    let mut list = own_list(&args.list, &key.public(), &owner, now)?;
    list.serial += 1;
    list.iat = now;
    list.licenses.extend(args.licenses.iter().cloned());
    for id in &args.keys {
        list.keys.insert(id.parse::<KeyId>().map_err(refused)?);
    }
    for file in &args.packages {
        list.plugin_digests.insert(package::signed_digest(file)?.to_string());
    }
    let payload = serde_json::to_vec(&list).map_err(|error| Failure::failed(error.to_string()))?;
    let envelope = Envelope::sign(payload_type::REVOCATIONS, payload, &[&key]).to_json();
    let beside = args.list.with_extension("new");
    std::fs::write(&beside, envelope)
        .and_then(|()| std::fs::rename(&beside, &args.list))
        .map_err(|error| Failure::io("write", &args.list, &error))?;
    if context.out.json {
        context.out.value(&json!({ "file": args.list, "list": list }));
    } else {
        context.out.line(format!(
            "{}: serial {}, {} licences, {} keys, {} plugin files",
            args.list.display(),
            list.serial,
            list.licenses.len(),
            list.keys.len(),
            list.plugin_digests.len()
        ));
        context.out.note(
            "customers: `backplane license install FILE`; a registry hands it out with `plugin index --revocations FILE`",
        );
    }
    Ok(())
}

/// The list so far: one that this key did not sign is not gone on with.
fn own_list(file: &Path, key: &PublicKey, owner: &str, now: Timestamp) -> Result<RevocationList> {
    let bytes = match read_capped(file, MAX) {
        Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(RevocationList {
                serial: 0,
                iat: now,
                expires: None,
                licenses: BTreeSet::new(),
                keys: BTreeSet::new(),
                plugin_digests: BTreeSet::new(),
            });
        }
        other => other.map_err(refused)?,
    };
    let mut own = TrustSet::default();
    own.add(TrustedKey::new(*key, owner, &[Role::Revocation]));
    let read = Envelope::parse(&bytes, MAX).and_then(|envelope| Revocations::verify(&envelope, &own, now));
    read.map(|(_, list)| list).map_err(|error| {
        Failure::new(Exit::Failure, format!("{}: {error}", file.display())).code(error.code())
    })
}
