//! `stop`: closes an open model after it has finished what it has; with `--server` stops the server in the same way.

use crate::args::Stop;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::holder::Holder;
use crate::text;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a server gets to end after the time that open requests have.
const LAST_STEPS: Duration = Duration::from_secs(15);

pub fn run(context: &Context, args: &Stop) -> Result<()> {
    if args.models.is_empty() && !args.server {
        return Err(Failure::usage("neither a model to close is named, nor `--server`")
            .next("a model: `backplane stop NAME`, of those that `backplane ps` lists; the server: `backplane stop --server`"));
    }
    let client = context.client()?;
    if args.server {
        return server(context, &client);
    }
    let mut closed = Vec::new();
    for name in &args.models {
        let model = client.post(&format!("/admin/v1/models/{}/unload", segment(name)), &json!({}))?;
        if !context.out.json {
            context.out.note(format!("{} is closed", model["name"].as_str().unwrap_or(name)));
        }
        closed.push(json!({ "name": model["name"], "state": model["state"] }));
    }
    if context.out.json {
        context.out.value(&closed);
    }
    Ok(())
}

/// Sends SIGTERM to the `backplane` that has this state directory. Another program that embeds the host stops it in a way of
/// its own.
fn terminate(state: &Path) -> bool {
    let program = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        // What was installed anew meanwhile runs from a file that is gone.
        Some(name.trim_end_matches(" (deleted)").to_owned())
    };
    let Some(pid) = Holder::of(state).and_then(|holder| holder.pid) else { return false };
    let theirs = std::fs::read_link(format!("/proc/{pid}/exe")).ok().and_then(program);
    let ours = std::env::current_exe().ok().and_then(program);
    let process = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    theirs.is_some()
        && theirs == ours
        && process.is_some_and(|process| {
            rustix::process::kill_process(process, rustix::process::Signal::TERM).is_ok()
        })
}

fn server(context: &Context, client: &Client) -> Result<()> {
    let url = client.address.url();
    // Of another machine it can only be seen that it answers no more.
    let state = if context.global.host.is_none() { Some(context.state()?) } else { None };
    let drain = match client.post("/admin/v1/shutdown", &json!({})) {
        Ok(told) => Duration::try_from_secs_f64(told["drain_seconds"].as_f64().unwrap_or_default())
            .unwrap_or_default(),
        Err(failure) => match failure.code.as_deref() {
            Some("no_server") => return Err(Failure { next: None, ..failure }),
            // No key of ours works; whose process it is may end it all the same, in the same way.
            Some("invalid_api_key" | "missing_api_key") if state.as_deref().is_some_and(terminate) => {
                context
                    .out
                    .note("no key of yours works, and the server is your process: it was sent SIGTERM");
                context.load_config(Vec::new())?.server.drain
            }
            _ => return Err(failure),
        },
    };
    let begin = Instant::now();
    let mut quiet = context.out.json;
    while client.is_up() || state.as_deref().is_some_and(|state| Holder::of(state).is_some()) {
        let passed = begin.elapsed();
        if drain + LAST_STEPS < passed {
            return Err(Failure::failed(format!("the server at {url} was told to stop, and still runs"))
                .next("the log says more: `backplane logs`"));
        }
        if !quiet && Duration::from_secs(3) < passed {
            quiet = true;
            context.out.note(format!("it finishes open requests, {} at the most", text::about(drain)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if context.out.json {
        context.out.value(&json!({ "url": url, "state": "stopped" }));
    } else {
        context.out.note(format!("the server at {url} has stopped"));
    }
    Ok(())
}
