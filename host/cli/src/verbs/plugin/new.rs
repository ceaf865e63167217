//! `plugin new`: a project that builds, passes `plugin check` and streams.
//!
//! The templates are the files of `plugin-api/templates`, which build where they lie; a new project is a copy of them
//! under another name.

use crate::args::{Language, New};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::printable;
use backplane_registry::plugin::Manifest;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// What the templates are called.
const NAME: &str = "my-plugin";

/// Where the SDK lay when this program was built.
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugin-api/sdk");

macro_rules! template {
    ($($name:literal from $file:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../../plugin-api/", $file)))),*]
    };
}

const RUST: &[(&str, &str)] = template! {
    "Cargo.toml" from "templates/rust/Cargo.toml",
    "plugin.toml" from "templates/rust/plugin.toml",
    "src/lib.rs" from "templates/rust/src/lib.rs",
    "README.md" from "templates/rust/README.md",
    ".gitignore" from "templates/rust/gitignore",
};

const C: &[(&str, &str)] = template! {
    "Makefile" from "templates/c/Makefile",
    "plugin.c" from "templates/c/plugin.c",
    "json.h" from "templates/c/json.h",
    "backplane.h" from "include/backplane.h",
    "plugin.toml" from "templates/c/plugin.toml",
    "plugin.map" from "templates/c/plugin.map",
    "README.md" from "templates/c/README.md",
    ".gitignore" from "templates/c/gitignore",
};

const CPP: &[(&str, &str)] = template! {
    "Makefile" from "templates/cpp/Makefile",
    "plugin.cpp" from "templates/cpp/plugin.cpp",
    "json.h" from "templates/c/json.h",
    "backplane.h" from "include/backplane.h",
    "plugin.toml" from "templates/cpp/plugin.toml",
    "plugin.map" from "templates/cpp/plugin.map",
    "README.md" from "templates/cpp/README.md",
    ".gitignore" from "templates/cpp/gitignore",
};

pub fn run(context: &Context, arguments: &New) -> Result<()> {
    let name = &arguments.name;
    check_name(name)?;
    let id = arguments.id.clone().unwrap_or_else(|| format!("com.example.{name}"));
    check_id(&id)?;
    let folder = arguments.path.clone().unwrap_or_else(|| PathBuf::from(name));
    let sdk = match arguments.lang {
        Language::Rust => Some(sdk(arguments.sdk.as_deref())?),
        Language::C | Language::Cpp => None,
    };
    make_folder(&folder)?;
    let (files, build, library) = match arguments.lang {
        Language::Rust => (RUST, "cargo build --release", "target/release/"),
        Language::C => (C, "make", ""),
        Language::Cpp => (CPP, "make", ""),
    };
    for (file, text) in files {
        // The header is the same for all.
        let text = if *file == "backplane.h" { (*text).to_owned() } else { renamed(text, name, &id) };
        let text = match &sdk {
            Some(sdk) if *file == "Cargo.toml" => {
                text.replace("\"../../sdk\"", &toml::Value::from(sdk.to_string_lossy().as_ref()).to_string())
            }
            _ => text,
        };
        write(&folder.join(file), &text)?;
    }
    if let Some(lock) = sdk.as_ref().and_then(|sdk| fs::read_to_string(sdk.join("../../Cargo.lock")).ok()) {
        // The versions with which the SDK was tested, which are on this machine where it was built here.
        write(&folder.join("Cargo.lock"), &lock)?;
    }
    let library = format!("{library}lib{}.so", name.replace('-', "_"));
    let steps = [
        format!("cd {}", folder.display()),
        build.to_owned(),
        format!("backplane plugin check {library}"),
        format!("backplane serve --plugin-dir {}", Path::new(&library).parent().map_or(".".into(), shown)),
        format!("backplane infer {id} --params '{{\"text\": \"a bee sees\"}}' --stream"),
    ];
    if context.out.json {
        context
            .out
            .value(&json!({ "name": name, "id": id, "folder": folder, "library": library, "next": steps }));
    } else {
        context.out.line(format!("{} made; then:", folder.display()));
        for step in steps {
            context.out.line(format!("  {step}"));
        }
    }
    Ok(())
}

fn shown(folder: &Path) -> String {
    if folder.as_os_str().is_empty() { ".".to_owned() } else { folder.display().to_string() }
}

/// The template under its new name. The id stands before the name, of which it has a part.
fn renamed(text: &str, name: &str, id: &str) -> String {
    let camel: String = name
        .split('-')
        .map(|part| {
            part.chars()
                .take(1)
                .map(|c| c.to_ascii_uppercase())
                .chain(part.chars().skip(1))
                .collect::<String>()
        })
        .collect();
    // A marker no name can hold, so that an id with `my-plugin` in it stays as it is.
    text.replace(&format!("com.example.{NAME}"), "\0")
        .replace(NAME, name)
        .replace("libmy_plugin", &format!("lib{}", name.replace('-', "_")))
        .replace("MyPlugin", &camel)
        .replace('\0', id)
}

fn check_name(name: &str) -> Result<()> {
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.ends_with('-')
        && !name.contains("--")
        && name.len() <= 60;
    if good {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`{name}` cannot be the name of a plugin: it is made of lower-case letters, digits and single dashes, and \
         begins with a letter, such as `word-count`"
    )))
}

fn check_id(id: &str) -> Result<()> {
    // A capability has the plugin's id for its name, and is the stricter of both.
    let value = toml::Value::from(id);
    let text = format!("id = {value}\nversion = '0.1.0'\nabi = '1.0'\ncapabilities = [{value}]");
    let refused = |_| {
        let shape =
            "two names or more in lower case with dots between, each begun by a letter, 100 bytes at most";
        Failure::usage(format!(
            "--id: `{}` is no plugin's id: {shape}; `com.example.word-count` is one",
            printable(id)
        ))
    };
    Manifest::parse(&text).map(drop).map_err(refused)
}

fn sdk(given: Option<&Path>) -> Result<PathBuf> {
    let folder = given.unwrap_or(Path::new(SDK));
    match folder.canonicalize() {
        Ok(path) if path.join("Cargo.toml").is_file() && path.join("src/export.rs").is_file() => Ok(path),
        _ if given.is_some() => Err(Failure::new(
            Exit::NotFound,
            format!(
                "{} is not the SDK: expected the folder `plugin-api/sdk` of a checkout",
                folder.display()
            ),
        )),
        _ => Err(Failure::new(
            Exit::NotFound,
            "the SDK for Rust is not published yet, and the checkout this program was built from is gone",
        )
        .next("name the folder `plugin-api/sdk` of a checkout with `--sdk DIR`; C and C++ need none")),
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Failure::io("make", folder, &error))?;
    let mut inside = fs::read_dir(folder).map_err(|error| Failure::io("read", folder, &error))?;
    match inside.next() {
        None => Ok(()),
        Some(_) => Err(Failure::failed(format!("{} is not empty", folder.display()))
            .next("choose another name, or another folder with `--path`")),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error| Failure::io("write", path, &error);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_own_name_everywhere() {
        for (file, text) in RUST.iter().chain(C).chain(CPP).filter(|(file, _)| *file != "backplane.h") {
            let text = renamed(text, "word-count", "org.my-plugin.words");
            let rest = text.replace("org.my-plugin.words", "");
            assert!(!rest.contains("my-plugin") && !rest.contains("MyPlugin"), "{file}");
            assert!(!rest.contains("libmy_plugin"), "{file}");
        }
        assert!(renamed("struct MyPlugin;", "word-count2", "a.b").contains("struct WordCount2;"));
    }

    #[test]
    fn a_name_that_no_compiler_takes_is_refused() {
        for name in ["", "Word", "word_count", "-a", "a-", "a--b", "2nd", "a/b", "..", "ü"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("word-count2").is_ok());
        assert!(check_id("com.acme.x").is_ok() && check_id("acme").is_err() && check_id("a.2b").is_err());
    }
}
