//! The version that is in use on disk, in a server that runs.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::printable;
use serde_json::{Value, json};
use std::time::Duration;

/// How often a server is asked how an upgrade goes.
const LOOK: Duration = Duration::from_millis(100);

/// Lets the version that is in use on disk take over in the running server, and waits for the end of it. `None` when no
/// server runs, or when there is nothing that could take over. `now`: without a trial.
pub fn take_over(context: &Context, id: &str, now: bool) -> Result<Option<Value>> {
    let client = context.client()?;
    if !client.is_up() {
        return Ok(None);
    }
    let path = format!("/admin/v1/plugins/{}/upgrade", segment(id));
    let mut upgrade = match client.post(&path, &json!({ "now": now })) {
        Ok(upgrade) => upgrade,
        Err(failure) => {
            return match failure.code.as_deref() {
                Some("nothing_to_upgrade") => Ok(None),
                Some("plugin_not_found") => why_not_loaded(context, &client, id).map(|()| None),
                _ => Err(failure),
            };
        }
    };
    let mut shown = String::new();
    loop {
        let state = upgrade["state"].as_str().unwrap_or_default().to_owned();
        if state != shown && !context.out.json {
            show(context, &upgrade, &state);
            shown.clone_from(&state);
        }
        match state.as_str() {
            "done" => return Ok(Some(upgrade)),
            "rolled_back" => return Err(failure(id, &upgrade)),
            _ => std::thread::sleep(LOOK),
        }
        upgrade = look(&client, &path)?;
    }
}

/// Where no version of a plugin serves, the server knows why; that it has no licence yet is no failure.
fn why_not_loaded(context: &Context, client: &Client, id: &str) -> Result<()> {
    let plugins = client.get("/admin/v1/plugins")?["data"].take();
    let found = plugins.as_array().into_iter().flatten().find(|plugin| plugin["id"] == id);
    let Some((plugin, problem)) = found.and_then(|plugin| Some((plugin, plugin["problem"].as_str()?))) else {
        return Ok(());
    };
    let problem = printable(problem);
    if plugin["license"]["serves"] == false {
        context.out.note(format!("it serves as soon as there is a licence: {problem}"));
        return Ok(());
    }
    Err(Failure::failed(format!("the server does not load {id}: {problem}"))
        .next(format!("`backplane plugin remove {id}`, or install another version"))
        .code("plugin_not_loaded"))
}

/// Why the package that is installed serves in no server: a library comes first. `None` also when no server runs.
pub fn shadowed(context: &Context, id: &str) -> Result<Option<String>> {
    let client = context.client()?;
    if !client.is_up() {
        return Ok(None);
    }
    let plugins = client.get("/admin/v1/plugins")?["data"].take();
    let of_it = |plugin: &&Value| plugin["id"] == id && plugin["shadowed_by"].is_string();
    let problem =
        plugins.as_array().into_iter().flatten().filter(of_it).find_map(|it| it["problem"].as_str());
    Ok(problem.map(printable))
}

fn look(client: &Client, path: &str) -> Result<Value> {
    client
        .get(path)
        .map_err(|failure| failure.next("the upgrade goes on without this command; `backplane plugin ls`"))
}

fn show(context: &Context, upgrade: &Value, state: &str) {
    let (from, to) = versions(upgrade);
    let waiting: Vec<String> = upgrade["models"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|model| model["beside"] == false)
        .map(|model| printable(model["name"].as_str().unwrap_or_default()))
        .collect();
    let line = match state {
        "loading" => format!("{to} is loaded beside {from}, which serves"),
        "opening" => "it opens the models that are open".to_owned(),
        "probing" => "they are asked how they are".to_owned(),
        "trial" => {
            let percent = upgrade["share"].as_f64().unwrap_or_default() * 100.0;
            format!("it answers {percent:.0}% of the requests, on trial")
        }
        "draining" => format!("{to} answers all new requests; {from} finishes what it has"),
        "done" => format!("{to} serves; {from} is retired"),
        _ => return,
    };
    context.out.note(line);
    if state == "done" && !waiting.is_empty() {
        context.out.note(format!(
            "not open twice for want of memory or of licensed instances, so its requests waited: {}",
            waiting.join(", ")
        ));
    }
    if state == "done"
        && let Some(problem) = upgrade["problem"].as_str()
    {
        context.out.complain(format!("warning: {}", printable(problem)));
    }
}

/// How the old and the new version are called: two builds of one version are not one.
fn versions(upgrade: &Value) -> (String, String) {
    let text = |member: &str| printable(upgrade[member].as_str().unwrap_or_default());
    let (from, to) = (text("from"), text("to"));
    if from == to { (format!("the {from} before"), format!("the new {to}")) } else { (from, to) }
}

fn failure(id: &str, upgrade: &Value) -> Failure {
    let ((from, to), why) = (versions(upgrade), printable(upgrade["problem"].as_str().unwrap_or_default()));
    let what = format!("{id} {to} was taken back, and {from} serves as before: {why}");
    let next = "the log says more: `backplane logs`; `backplane plugin upgrade` passes this version over unless it is named";
    let mut failure = Failure::failed(what).next(next).code("upgrade_rolled_back");
    failure.details.insert("upgrade".to_owned(), upgrade.clone());
    failure
}
