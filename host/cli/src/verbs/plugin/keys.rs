//! `plugin keygen`, `plugin pack` and `plugin sign`: what an author does before anybody installs.

use crate::args::package::{Keygen, Pack, Sign};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use backplane_registry::package::{self, EXTENSION, PackOptions, PackagePath};
use backplane_registry::trust::SecretKey;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

pub fn keygen(context: &Context, args: &Keygen) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if args.name.starts_with('.') || !args.name.chars().all(plain) {
        return Err(Failure::usage(format!(
            "`{}` is no name for keys: letters, digits, `.`, `-` and `_` make one",
            args.name
        )));
    }
    let (secret, public) = (format!("{}.key", args.name), format!("{}.pub", args.name));
    // A key that is overwritten is lost, and half a pair is of no use. Either file is made only where none is, too.
    if let Some(there) = [&secret, &public].into_iter().find(|file| Path::new(file).exists()) {
        return Err(Failure::failed(format!("{there} is there already, and a key is never overwritten"))
            .next("take another name, or move that file away"));
    }
    let key = SecretKey::generate()?;
    key.write(Path::new(&secret), &args.name)?;
    let text = key.public().to_armour(&args.name);
    backplane_registry::trust::write_new(Path::new(&public), text.as_bytes(), 0o644)?;
    let out = &context.out;
    if out.json {
        out.value(
            &json!({ "id": key.public().id(), "key": key.public(), "secret": secret, "public": public }),
        );
    } else {
        out.line(format!("{secret}  the secret key: who has it signs in your name"));
        out.line(format!("{public}  {}: hand it out", key.public()));
        out.note(format!(
            "its id is {}: say it where people know it is you who says it, so that they can compare",
            key.public().id()
        ));
    }
    Ok(())
}

pub fn pack(context: &Context, args: &Pack) -> Result<()> {
    let mut files = BTreeMap::new();
    for with in &args.with {
        let (from, name) = match with.split_once('=') {
            Some((from, name)) => (PathBuf::from(from), name.to_owned()),
            None => {
                let from = PathBuf::from(with);
                let name = from.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                (from, name)
            }
        };
        let name: PackagePath = name
            .parse()
            .map_err(|error| Failure::usage(format!("{error}")).next("name it: `--with FILE=NAME`"))?;
        if files.insert(name.clone(), from).is_some() {
            return Err(Failure::usage(format!("two files would be named `{name}`")));
        }
    }
    let keys = read_keys(&args.key)?;
    let packed = package::pack(&args.library, &PackOptions { files, built: built(&args.library) })?;
    let manifest = &packed.manifest;
    let to = args.output.clone().unwrap_or_else(|| {
        let (id, version) = (&manifest.plugin.id, &manifest.plugin.version);
        format!("{id}-{version}-{}.{EXTENSION}", manifest.platform).into()
    });
    let signers: Vec<&SecretKey> = keys.iter().collect();
    if signers.is_empty() {
        packed.write_unsigned(&to)?;
    } else {
        packed.write(&to, &signers)?;
    }
    let out = &context.out;
    if out.json {
        out.value(&json!({
            "package": to, "id": manifest.plugin.id, "version": manifest.plugin.version,
            "signed": !signers.is_empty(), "files": manifest.files,
        }));
        return Ok(());
    }
    out.line(to.display().to_string());
    if signers.is_empty() {
        out.note(format!(
            "it is not signed: no host installs it before `backplane plugin sign {} --key KEY`",
            to.display()
        ));
    }
    Ok(())
}

pub fn sign(context: &Context, args: &Sign) -> Result<()> {
    let keys = read_keys(&args.key)?;
    let to = args.output.as_deref().unwrap_or(&args.package);
    let manifest = package::sign(&args.package, to, &keys.iter().collect::<Vec<_>>())?;
    let ids: Vec<_> = keys.iter().map(|key| key.public().id()).collect();
    if context.out.json {
        let (id, version) = (&manifest.plugin.id, &manifest.plugin.version);
        context.out.value(&json!({ "package": to, "id": id, "version": version, "signed_by": ids }));
    } else {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        context.out.line(format!("{}  {} signed by {}", to.display(), manifest.title(), ids.join(", ")));
    }
    Ok(())
}

/// The secret keys of these files.
pub fn read_keys(files: &[PathBuf]) -> Result<Vec<SecretKey>> {
    let read = |file: &PathBuf| match SecretKey::read(file) {
        Ok((key, _)) => Ok(key),
        Err(_) if !file.exists() => {
            Err(Failure::new(Exit::NotFound, format!("no key at {}", file.display()))
                .next("make one: `backplane plugin keygen NAME`"))
        }
        Err(error) => Err(error.into()),
    };
    files.iter().map(read).collect()
}

/// When the library was built: as the build says, or the file.
fn built(library: &Path) -> Option<u64> {
    let said = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let written = || library.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok();
    said.or_else(|| written().map(|time| time.as_secs()))
}
