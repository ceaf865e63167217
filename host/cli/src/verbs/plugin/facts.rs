//! What a person is shown of a package before it is installed, and what became different.

use crate::output::printable;
use crate::text;
use backplane_registry::package::{PackageManifest, Verified};
use backplane_registry::plugin::{Isolation, LicenceClass, Manifest, Panics};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The capabilities that it serves: `chat/1`.
fn serves(manifest: &Manifest) -> BTreeSet<String> {
    manifest.capabilities.iter().map(|offer| format!("{}/{}", offer.name, offer.version)).collect()
}

/// What it asks of the host.
pub fn asks(manifest: &Manifest) -> BTreeSet<String> {
    let resources = &manifest.resources;
    let mut asks = BTreeSet::new();
    asks.extend(resources.network.then(|| "the network".to_owned()));
    asks.extend(resources.hosts.iter().map(|host| format!("connections to {host}")));
    asks.extend(resources.read.iter().map(|path| format!("reading `{}`", path.display())));
    asks.extend(resources.write.iter().map(|path| format!("reading and writing `{}`", path.display())));
    asks.extend(resources.gpu.then(|| "a GPU".to_owned()));
    asks.extend(resources.threads.map(|count| format!("{count} threads")));
    asks.extend(resources.memory.map(|bytes| format!("{} of memory", text::bytes(bytes))));
    asks.extend((manifest.isolation == Isolation::InProcess).then(|| "to run inside the server".to_owned()));
    asks.extend((manifest.panic == Panics::Abort).then(|| "to end its process when it panics".to_owned()));
    asks
}

pub fn licence(manifest: &Manifest) -> String {
    let name = manifest.licence.as_deref().unwrap_or("not stated");
    match manifest.licence_class {
        LicenceClass::Open => name.to_owned(),
        LicenceClass::Optional => format!("{name}; some of its features need a licence of its vendor"),
        LicenceClass::Commercial => format!("{name}; runs only with a licence of its vendor"),
    }
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<_> = items.into_iter().collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

/// The package in a few lines.
pub fn describe(package: &Verified) -> String {
    let PackageManifest { plugin, files, payload, .. } = &package.manifest;
    let mut lines = vec![match &plugin.description {
        Some(text) => format!("{}  {text}", package.manifest.title()),
        None => package.manifest.title(),
    }];
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<10} {text}"));
    line("signed by", format!("{} with the key {}", package.signer.owner, package.signer.id()));
    line("level", package.level.to_string());
    line("serves", list(serves(plugin)));
    line("asks for", list(asks(plugin)));
    line("licence", licence(plugin));
    line("files", format!("{}, {}", files.len(), text::bytes(payload.unpacked)));
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// The same for machines.
pub fn json(package: &Verified) -> Value {
    let plugin = &package.manifest.plugin;
    json!({
        "id": plugin.id, "version": plugin.version, "digest": package.digest,
        "signer": { "owner": package.signer.owner, "key": package.signer.id() }, "level": package.level,
        "capabilities": serves(plugin), "asks": asks(plugin),
        "licence": plugin.licence, "licence_class": plugin.licence_class, "built": package.manifest.built,
    })
}

/// How one version differs from the one that is in use.
#[derive(Debug, Default, PartialEq, serde::Serialize)]
pub struct Changes {
    /// What the operator has to agree to: more is asked for, or somebody else signed it.
    pub grown: Vec<String>,
    /// What else is different.
    pub other: Vec<String>,
}

pub fn changes(old: &Verified, new: &Verified) -> Changes {
    let (before, after) = (&old.manifest.plugin, &new.manifest.plugin);
    let mut changes = Changes::default();
    let (asked, asks) = (asks(before), asks(after));
    changes.grown.extend(asks.difference(&asked).map(|one| format!("asks for {one}")));
    changes.other.extend(asked.difference(&asks).map(|one| format!("asks no more for {one}")));
    // A key that the version in use names is as good as its own.
    let named = before.vendor_keys.contains(&new.signer.key.to_string());
    if old.signer.key != new.signer.key && !named {
        let (was, is) = (&old.signer, &new.signer);
        changes.grown.push(format!(
            "is signed by {} with the key {}, before by {} with {}",
            is.owner,
            is.id(),
            was.owner,
            was.id()
        ));
    }
    if new.level < old.level {
        changes.grown.push(format!("is of the level `{}`, before `{}`", new.level, old.level));
    }
    if before.licence_class != after.licence_class || before.licence != after.licence {
        let change = format!("licence {}, before {}", licence(after), licence(before));
        let sold =
            after.licence_class == LicenceClass::Commercial && before.licence_class == LicenceClass::Open;
        if sold { changes.grown.push(change) } else { changes.other.push(change) }
    }
    let (served, serves) = (serves(before), serves(after));
    changes.other.extend(serves.difference(&served).map(|one| format!("serves {one}")));
    changes.other.extend(served.difference(&serves).map(|one| format!("serves {one} no more")));
    changes
}
