//! `config check|show|init|reload|schema`.

use crate::args::ConfigVerb;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::{Table, printable};
use backplane::Config;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub fn run(context: &Context, verb: ConfigVerb) -> Result<()> {
    match verb {
        ConfigVerb::Check { file } => check(context, file),
        ConfigVerb::Show { file } => show(context, file),
        ConfigVerb::Init { path, force } => init(context, path, force),
        ConfigVerb::Reload => reload(context),
        ConfigVerb::Schema => {
            context.out.value(&Config::schema());
            Ok(())
        }
    }
}

fn check(context: &Context, file: Option<PathBuf>) -> Result<()> {
    let named = &context.global.config;
    if let (Some(file), Some(other)) = (&file, named)
        && file != other
        && std::env::var_os("BACKPLANE_CONFIG").is_none_or(|set| set != other.as_os_str())
    {
        return Err(Failure::usage(format!(
            "two files are named: {} and `--config` {}",
            file.display(),
            other.display()
        )));
    }
    let config = context.load_config_of(file.or(context.config_file()?), Vec::new())?;
    let file = config.file().map(|file| file.display().to_string());
    if context.out.json {
        context.out.value(&json!({ "ok": true, "file": file }));
    } else {
        context.out.line(match file {
            Some(file) => format!("{file} is fine"),
            None => "there is no configuration file; the defaults and the environment are fine".to_owned(),
        });
    }
    Ok(())
}

/// What is in force in the server that runs; without one, or for `--file`, what one would start with.
fn show(context: &Context, of_file: bool) -> Result<()> {
    let out = &context.out;
    let running = if of_file || context.global.config.is_some() || context.global.offline {
        None
    } else {
        in_force(context)?
    };
    let (shown, whose) = match running {
        Some((mut shown, address)) => {
            shown["server"] = address.clone().into();
            (shown, format!("in force in the server at {address}"))
        }
        None => {
            let config = context.load_config(Vec::new())?;
            let file = config.file().map(|file| file.display().to_string());
            let whose = format!(
                "what a server would start with: {}",
                file.as_deref().unwrap_or("the defaults and the environment; there is no file")
            );
            let sources: serde_json::Map<String, Value> = config
                .sources()
                .iter()
                .map(|(key, source)| (key.clone(), source.to_string().into()))
                .collect();
            let toml = config.to_shown_toml();
            (json!({ "toml": toml, "sources": sources, "file": file, "server": null }), whose)
        }
    };
    if out.json {
        out.value(&shown);
        return Ok(());
    }
    out.note(whose);
    if context.global.verbose > 0 {
        let mut table = Table::new(&["KEY", "FROM"]);
        for (key, source) in shown["sources"].as_object().into_iter().flatten() {
            table.row([key.clone(), source.as_str().unwrap_or_default().to_owned()]);
        }
        out.table(&table);
    } else {
        out.write(shown["toml"].as_str().unwrap_or_default());
    }
    Ok(())
}

/// What the running server says, and where it is. `None`: none runs on this machine.
fn in_force(context: &Context) -> Result<Option<(Value, String)>> {
    let client = context.client()?;
    if !client.is_up() && !context.is_remote()? {
        return Ok(None);
    }
    let shown = client.get("/admin/v1/config").map_err(|failure| match failure.exit {
        crate::exit::Exit::Denied => {
            failure.next("what a server would start with: `backplane config show --file`")
        }
        _ => failure,
    })?;
    Ok(Some((shown, client.address.url().to_owned())))
}

fn init(context: &Context, path: Option<PathBuf>, force: bool) -> Result<()> {
    let text = template();
    let path = match (path, &context.global.config) {
        (Some(path), _) if path == Path::new("-") => {
            context.out.write(&text);
            return Ok(());
        }
        (Some(path), _) => path,
        (None, Some(path)) => path.clone(),
        (None, None) => context.state()?.join("backplane.toml"),
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // The state directory is its owner's alone, whoever makes it.
        let mode = if folder == context.state()? { 0o700 } else { 0o777 };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(folder)
            .map_err(|error| Failure::io("make", folder, &error))?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).truncate(true).create(true).create_new(!force);
    let written = options.open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::failed(format!("{} is there already", path.display())).next("`--force` overwrites it")
        }
        _ => Failure::io("write", &path, &error),
    })?;
    if context.out.json {
        context.out.value(&json!({ "file": path }));
    } else {
        context.out.note(format!("wrote {}: every key, commented out with its default", path.display()));
    }
    Ok(())
}

/// The reference with every key commented out: what nobody chose goes on following the program's defaults.
fn template() -> String {
    let reference = Config::reference();
    // Its own first words tell how to use the file; here it is another use.
    let body = reference.split_once("\n\n").map_or(reference.as_str(), |(_, body)| body);
    let mut out = String::from(
        "# Backplane's configuration: every key, commented out with its default. Take the `#` away from what you change.\n\
         # A flag beats the environment (BACKPLANE__SERVER__ADDRESS), which beats this file. `backplane config check`\n\
         # reads a file without using it, `backplane config show` prints what is in force and where it comes from.\n\n",
    );
    for line in body.lines() {
        if !line.is_empty() && !line.starts_with(['#', '[']) {
            out.push('#');
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

fn reload(context: &Context) -> Result<()> {
    let client = context.client()?;
    let mut report = client.post("/admin/v1/config/reload", &json!({}))?;
    let changed = report["models"].as_array().cloned().unwrap_or_default();
    let names = changed.iter().filter_map(|model| model["model"].as_str());
    // What a parameter of a model may be its plugin knows, and not the host: the plugin is asked, and opens nothing.
    let invalid: Vec<Value> = names.filter_map(|name| invalid(&client, name)).map(Value::from).collect();
    if let Some(warnings) = report["warnings"].as_array_mut() {
        warnings.extend(invalid);
    }
    let out = &context.out;
    if out.json {
        out.value(&report);
        return Ok(());
    }
    reloaded(&report).iter().for_each(|line| out.line(line));
    Ok(())
}

/// What is wrong with what the configuration says of this model, if its plugin knows.
fn invalid(client: &Client, name: &str) -> Option<String> {
    let wrong = match client.get(&format!("/admin/v1/models/{}/plan", segment(name))) {
        Ok(plan) => objection(client, name, &plan)?,
        Err(failure) if failure.code.as_deref() == Some("model_invalid") => failure.what,
        Err(_) => return None,
    };
    Some(format!("`models.override.{name}`: {wrong}"))
}

/// What a plugin has against a model whose files lie here.
pub fn objection(client: &Client, name: &str, plan: &Value) -> Option<String> {
    let says = said_of_no_memory(plan)?;
    let model = client.get(&format!("/admin/v1/models/{}", segment(name))).ok()?;
    // Of a model that another server has a plugin says where it is.
    model["size"].as_u64().filter(|size| 0 < *size).map(|_| says)
}

/// What it says where it cannot tell what memory the model takes: why it would not open it.
fn said_of_no_memory(plan: &Value) -> Option<String> {
    let says = plan["text"].as_str().filter(|text| !text.is_empty())?;
    (plan["needs_bytes"] == 0).then(|| printable(says))
}

/// What a reload did, a line for each kind.
fn reloaded(report: &Value) -> Vec<String> {
    let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let names = |list: &Value| {
        all(list).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>().join(", ")
    };
    let plugins = &report["plugins"];
    let waits = all(&report["needs_restart"]);
    let at_once: Vec<Value> =
        all(&report["changed"]).into_iter().filter(|name| !waits.contains(name)).collect();
    let named = [
        ("in force", names(&at_once.into())),
        ("plugins loaded", names(&plugins["loaded"])),
        ("needs a restart", names(&report["needs_restart"])),
    ];
    let mut lines: Vec<String> = named
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {names}"))
        .collect();
    for model in all(&report["models"]) {
        let name = printable(model["model"].as_str().unwrap_or_default());
        lines.push(format!("model `{name}`: {}", names(&model["changed"])));
    }
    for warning in all(&report["warnings"]).iter().filter_map(Value::as_str) {
        lines.push(format!("look at {}", printable(warning)));
    }
    let nothing = ["changed", "models"].iter().all(|list| all(&report[*list]).is_empty());
    if nothing && names(&plugins["loaded"]).is_empty() {
        lines.insert(0, "nothing changed".to_owned());
    }
    for id in all(&plugins["replaced"]).iter().filter_map(Value::as_str) {
        lines.push(format!("the file of plugin `{id}` was replaced: restart to use it"));
    }
    for refused in all(&plugins["refused"]) {
        let text = |member: &str| printable(refused[member].as_str().unwrap_or_default());
        lines.push(format!("not loaded: {}: {}", text("file"), text("problem")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_sets_nothing_and_has_every_key() {
        let template = template();
        let set: toml::Table = template.parse().unwrap();
        fn sets_nothing(value: &toml::Value) -> bool {
            value.as_table().is_some_and(|section| section.values().all(sets_nothing))
        }
        assert!(set.values().all(sets_nothing), "{set:?}");
        // Without the `#` before keys it is the reference.
        let lines = |text: &str| -> Vec<String> {
            let body = text.split_once("\n\n").unwrap().1;
            body.lines().map(|line| line.trim_start_matches('#').to_owned()).collect()
        };
        assert_eq!(lines(&template), lines(&Config::reference()));
    }

    #[test]
    fn what_a_plugin_has_against_a_model_is_heard() {
        let plan = |needs: u64, text: &str| json!({ "needs_bytes": needs, "text": text });
        assert_eq!(
            said_of_no_memory(&plan(0, "unknown field `contxt`")).as_deref(),
            Some("unknown field `contxt`")
        );
        assert_eq!(said_of_no_memory(&plan(1 << 20, "ctx 4096")), None);
        assert_eq!(said_of_no_memory(&plan(0, "")), None);
    }

    #[test]
    fn a_reload_says_what_it_did_and_what_it_could_not_do() {
        let nothing = json!({ "loaded": [], "refused": [], "replaced": [] });
        let report = json!({ "changed": [], "needs_restart": [], "plugins": nothing });
        assert_eq!(reloaded(&report), ["nothing changed"]);
        let report = json!({
            "changed": [], "needs_restart": ["server.address"],
            "models": [{ "model": "m", "changed": ["limits.output_tokens", "limits.queue"] }],
            "plugins": {
                "loaded": ["com.a", "com.b"],
                "refused": [{ "file": "libx.so", "problem": "not an ELF file" }],
                "replaced": ["com.c"],
            },
        });
        let said = [
            "plugins loaded: com.a, com.b",
            "needs a restart: server.address",
            "model `m`: limits.output_tokens, limits.queue",
            "the file of plugin `com.c` was replaced: restart to use it",
            "not loaded: libx.so: not an ELF file",
        ];
        assert_eq!(reloaded(&report), said);
    }
}
