//! `run`: a chat with a model. Starts a server and fetches the model if need be.

mod started;

use crate::args::Run;
use crate::chat::{Message, Talk};
use crate::client::{Client, segment};
use crate::consent::{self, Ask};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::logging;
use crate::output::Style;
use crate::repl::{self, Chat};
use crate::text;
use backplane_registry::{ModelName, PullOptions, RegistryError};
use serde_json::{Value, json};
use started::{Chats, Server};
use std::io::{IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to start: it opens no model, but plugins load libraries.
const START: Duration = Duration::from_secs(60);

/// How long the server that holds the state directory may take until it answers; and one that may be of ours, for it has
/// the address.
const LOCKED: Duration = Duration::from_secs(10);
const IN_USE: Duration = Duration::from_secs(2);

/// What `finish_reason` "length" means to a person.
const CUT_OFF: &str = "the answer was cut off at `max_tokens`, or where the context was full";

pub fn run(context: &Context, args: Run) -> Result<()> {
    let mut chat = Chat::new(&args.model);
    chat.set_format(args.format.as_deref())?;
    for (name, value) in &args.parameters {
        chat.set_parameter(name, value).map_err(Failure::usage)?;
    }
    if let Some(time) = &args.keepalive {
        chat.parameters.insert("keep_alive".to_owned(), keep_alive(time)?);
    }
    if let Some(system) = &args.system {
        chat.set_system(system);
    }
    let interactive = args.interactive || (args.prompt.is_empty() && std::io::stdin().is_terminal());
    let prompt = if interactive { None } else { Some(question(&args.prompt)?) };

    let mut server = server(context)?;
    ensure_model(context, &server.client, &args.model)?;
    let mut answered = false;
    let done = {
        let talk = Talk::with(&server.client)?;
        match prompt {
            None => {
                if !args.prompt.is_empty() {
                    repl::answer(context, &talk, &mut chat, args.prompt.join(" "))?;
                }
                answered = true;
                repl::run(context, &talk, chat)
            }
            Some(prompt) => once(context, &talk, &mut chat, prompt, &mut answered),
        }
    };
    if answered {
        server.keep();
    }
    done
}

/// The words of the command line, and standard input behind them where it is a pipe or a file.
fn question(words: &[String]) -> Result<String> {
    let mut prompt = words.join(" ");
    if !std::io::stdin().is_terminal() {
        let mut piped = String::new();
        std::io::stdin()
            .read_to_string(&mut piped)
            .map_err(|error| Failure::usage(format!("standard input cannot be read as text: {error}")))?;
        let piped = piped.trim_end();
        if !prompt.is_empty() && !piped.is_empty() {
            prompt.push_str("\n\n");
        }
        prompt.push_str(piped);
    }
    if prompt.trim().is_empty() {
        return Err(Failure::usage("there is nothing to ask: no prompt, and standard input is empty")
            .next("`backplane run MODEL \"…\"`, or `--interactive` to read a chat from standard input"));
    }
    Ok(prompt)
}

fn keep_alive(text: &str) -> Result<Value> {
    let number = text.parse::<i64>().ok();
    if number.is_none() && humantime::parse_duration(text).is_err() {
        return Err(Failure::usage(format!("`--keepalive` is `{text}`, which is no time"))
            .next("write `5m`, `0` to close it at once, or `-1` for ever"));
    }
    Ok(number.map_or_else(|| json!(text), |number| json!(number)))
}

/// `answered`: set as soon as there is a part of an answer.
fn once(
    context: &Context,
    talk: &Talk<'_>,
    chat: &mut Chat,
    prompt: String,
    answered: &mut bool,
) -> Result<()> {
    let out = &context.out;
    chat.messages.push(Message::new("user", prompt));
    let mut show = |piece: &str| {
        *answered = true;
        if !out.json {
            out.say(piece);
        }
        !out.reader_left()
    };
    let answer = talk.ask(&chat.model, &chat.messages, &chat.parameters, &mut show)?;
    *answered |= !answer.stopped;
    if out.reader_left() {
        return Ok(());
    }
    if out.json {
        out.value(&json!({
            "model": chat.model,
            "content": answer.text,
            "finish_reason": answer.finish_reason,
            "timings": answer.timings.json(),
        }));
    } else {
        out.write("\n");
        if context.global.verbose > 0 {
            out.complain(out.styled(Style::Faint, &answer.timings.line()));
        }
    }
    match answer.finish_reason.as_deref() {
        _ if answer.stopped => Err(Failure::failed("stopped")),
        // Half a JSON value is none; who asked for one must not take it for whole.
        Some("length") if chat.parameters.contains_key("response_format") => {
            Err(Failure::failed(format!("{CUT_OFF}: it is not whole, and may not be JSON"))
                .next("allow more with `--set max_tokens=N`, or ask for less")
                .code("truncated"))
        }
        Some("length") => {
            out.note(format!("warning: {CUT_OFF}"));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The running server, or one that is started in the background.
fn server(context: &Context) -> Result<Server<'_>> {
    let chats = if context.is_remote()? { Chats::elsewhere() } else { Chats::join(&context.state()?) };
    let client = context.client()?;
    if client.is_up() {
        return Ok(Server::new(context, client, chats, None));
    }
    if context.global.host.is_some()
        && let Some(stranger) = client.stranger()
    {
        return Err(stranger);
    }
    if context.is_remote()? {
        return Err(Failure::failed(format!("no server answers at {}", client.address.url()))
            .next("start it there with `backplane serve`")
            .code("no_server"));
    }
    let state = context.state()?;
    let (log, file) = logging::start_file(&state)?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("this program is not found: {error}")))?;
    let mut command = Command::new(program);
    command.arg("--state").arg(&state).arg("--quiet").arg("--json").arg("serve");
    if let Some(file) = context.config_file()? {
        command.arg("--config").arg(file);
    }
    if context.global.host.is_some() {
        command.arg("--address").arg(client.address.to_bind());
    }
    // A group of its own: Ctrl+C here stops an answer, not the server.
    command
        .env_remove("BACKPLANE_ADDR")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .process_group(0);
    let mut server =
        command.spawn().map_err(|error| Failure::failed(format!("no server could be started: {error}")))?;
    let begin = Instant::now();
    if context.out.shows_progress() {
        context.out.note("starting a server");
    }
    // Ours has ended, and another may be starting: then this is when it must have done so.
    let mut other_by = None;
    loop {
        if context.client()?.is_up() {
            // Its key and its address are new: it had made both before it answered, but not before we looked.
            let client = context.client()?;
            // Of several that were started at once, one has the state directory, and says which.
            let holder = std::fs::read_to_string(state.join("run/lock")).unwrap_or_default();
            let ours = holder.trim() == server.id().to_string();
            if ours {
                context.out.note(format!(
                    "started a server in {} · {} (pid {}); it goes on until `backplane stop --server`; its log: `backplane logs`",
                    text::short(begin.elapsed()),
                    client.address.url(),
                    server.id()
                ));
            }
            return Ok(Server::new(context, client, chats, ours.then_some(server)));
        }
        if let Ok(Some(status)) = server.try_wait() {
            let failed = start_failed(&log, &status.to_string());
            let patience = match failed.code.as_deref() {
                Some("state_locked") => LOCKED,
                Some("address_in_use") => IN_USE,
                _ => return Err(failed),
            };
            if *other_by.get_or_insert_with(|| Instant::now() + patience) < Instant::now() {
                return Err(failed);
            }
        }
        if START < begin.elapsed() {
            server.kill().ok();
            return Err(start_failed(&log, "it took longer than a minute"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the server said before it ended.
fn start_failed(log: &Path, status: &str) -> Failure {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let error = said
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Value>(line).ok()?.get("error").cloned())
        .unwrap_or_default();
    let what = error["message"].as_str().unwrap_or(status);
    let next = error["next"].as_str().map_or_else(|| format!("see {}", log.display()), str::to_owned);
    let failed = Failure::failed(format!("no server runs, and none could be started: {what}")).next(next);
    Failure { code: error["code"].as_str().map(str::to_owned), ..failed }
}

/// Makes sure that the server knows the model; fetches it where the catalogue has it.
fn ensure_model(context: &Context, client: &Client, model: &str) -> Result<()> {
    let missing = match client.get(&format!("/v1/models/{}", segment(model))) {
        Ok(known) => return repl::can_chat(model, &known),
        Err(failure) if failure.exit == Exit::NotFound => failure,
        Err(failure) => return Err(failure),
    };
    if context.is_remote()? {
        return Err(missing);
    }
    let models = context.models()?;
    let in_catalogue = model.parse::<ModelName>().is_ok_and(|name| models.catalogue().find(&name).is_some());
    if !in_catalogue {
        return Err(unknown(context, model, missing));
    }
    context.out.note(format!("{model} is not installed"));
    let options = PullOptions { look: true, ..PullOptions::default() };
    let plan = models.plan_pull(model, &options)?;
    consent::pull(context, &models, model, &plan, options, Ask::Always)?;
    client.post("/admin/v1/refresh", &json!({}))?;
    repl::can_chat(model, &client.get(&format!("/v1/models/{}", segment(model)))?)
}

/// The server's words, and names that are near: of the catalogue, and of what is installed.
fn unknown(context: &Context, model: &str, missing: Failure) -> Failure {
    let Ok(models) = context.models() else { return missing };
    if let Some(set) = models.catalogue().set(model) {
        let what = format!("`{}` is a set of models, and none to chat with", set.name);
        return Failure { what, ..missing }.next(format!("fetch them: `backplane pull {}`", set.name));
    }
    let mut close = models.catalogue().close_to(model);
    if let Err(RegistryError::NotInstalled { close: installed, .. }) = models.resolve(model) {
        close.extend(installed);
    }
    close.sort();
    close.dedup();
    let names: Vec<String> = close.iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return missing;
    }
    Failure { what: format!("there is no model `{model}`; did you mean {}?", names.join(" or ")), ..missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_keep_a_model_is_checked_before_anything_starts() {
        assert_eq!(keep_alive("-1").unwrap(), json!(-1));
        assert_eq!(keep_alive("5m").unwrap(), json!("5m"));
        assert_eq!(keep_alive("soon").unwrap_err().exit, Exit::Usage);
    }
}
