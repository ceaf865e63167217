//! The chat on the terminal: a loop of lines, commands that begin with `/`, and answers.

mod chat;
mod command;
mod input;

pub use chat::Chat;

use crate::chat::{Message, Talk};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::Style;
use command::{Command, Setting, Show};
use input::Input;

/// Until `/bye` or the end of the input.
pub fn run(context: &Context, talk: &Talk<'_>, mut chat: Chat) -> Result<()> {
    let state = context.state()?;
    let mut input = Input::open(&state);
    if context.out.terminal && !context.global.quiet {
        context.out.note(context.out.styled(Style::Faint, "/? shows the commands, Ctrl+D ends"));
    }
    chat.verbose = context.global.verbose > 0;
    while let Some(text) = input.read() {
        if text.trim().is_empty() {
            continue;
        }
        let done = match Command::parse(&text) {
            None => answer(context, talk, &mut chat, text),
            Some(Err(wrong)) => Err(Failure::usage(wrong)),
            Some(Ok(Command::Bye)) => break,
            Some(Ok(command)) => obey(context, &state, &mut chat, command),
        };
        // A chat goes on after a mistake.
        if let Err(failure) = done {
            context.out.failure(&failure);
        }
    }
    input.close();
    Ok(())
}

/// Asks with all that was said, shows the answer, and keeps both.
pub fn answer(context: &Context, talk: &Talk<'_>, chat: &mut Chat, text: String) -> Result<()> {
    let out = &context.out;
    chat.messages.push(Message::new("user", text));
    let answer = match talk.ask(&chat.model, &chat.messages, &chat.parameters, &mut |piece| {
        out.say(piece);
        !out.reader_left()
    }) {
        Ok(answer) => answer,
        Err(failure) => {
            // What was not answered would be asked again with the next line.
            chat.messages.pop();
            return Err(failure);
        }
    };
    out.write("\n");
    if answer.finish_reason.as_deref() == Some("length") {
        out.note(out.styled(Style::Faint, "cut off: `/set parameter max_tokens N` allows more"));
    }
    if answer.stopped {
        out.note(out.styled(Style::Faint, "stopped"));
    } else if chat.verbose {
        out.note(out.styled(Style::Faint, &answer.timings.line()));
    }
    out.write("\n");
    chat.messages.push(Message::new("assistant", answer.text));
    Ok(())
}

/// Refuses a model that says what it serves, and not that it chats.
pub fn can_chat(name: &str, model: &serde_json::Value) -> Result<()> {
    let serves: Vec<&str> = model["capabilities"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .collect();
    if serves.is_empty() || serves.contains(&"chat") {
        return Ok(());
    }
    Err(Failure::usage(format!("`{name}` cannot chat; it serves {}", serves.join(", ")))
        .next("what can: `backplane ls`, `backplane show NAME`; ask this one with `backplane infer`"))
}

fn obey(context: &Context, state: &std::path::Path, chat: &mut Chat, command: Command) -> Result<()> {
    let out = &context.out;
    match command {
        Command::Bye => {}
        Command::Help => out.line(command::HELP),
        Command::Clear => {
            chat.clear();
            out.note("the conversation is forgotten; system text and parameters stay");
        }
        Command::Model(name) => {
            let client = context.client()?;
            let model = client.get(&format!("/v1/models/{}", crate::client::segment(&name)))?;
            can_chat(&name, &model)?;
            out.note(format!("{name} goes on with the conversation ({} messages)", chat.messages.len()));
            chat.model = name;
        }
        Command::Save(name) => {
            let path = chat.save(state, &name)?;
            out.note(format!("saved as `{name}` in {}", path.display()));
        }
        Command::Load(name) => {
            *chat = Chat { verbose: chat.verbose, ..Chat::load(state, &name)? };
            out.note(format!("`{name}`: {} messages with {}", chat.messages.len(), chat.model));
        }
        Command::Set(Setting::System(text)) => {
            chat.set_system(&text);
            out.note(if text.is_empty() { "no system text any more" } else { "system text set" });
        }
        Command::Set(Setting::Format(format)) => {
            chat.set_format(format.as_deref())?;
            out.note(if format.is_some() { "answers are JSON" } else { "answers are text" });
        }
        Command::Set(Setting::Verbose(verbose)) => {
            chat.verbose = verbose;
            out.note(if verbose { "timings are shown" } else { "timings are not shown" });
        }
        Command::Set(Setting::Parameter(name, value)) => {
            chat.set_parameter(&name, &value).map_err(Failure::usage)?;
            out.note(format!("{name} set to {value}"));
        }
        Command::Show(Show::Info) => {
            let client = context.client()?;
            let model = client.get(&format!("/v1/models/{}", crate::client::segment(&chat.model)))?;
            crate::verbs::describe(out, &model);
        }
        Command::Show(Show::System) => {
            out.line(chat.system().unwrap_or("no system text; `/set system TEXT`"))
        }
        Command::Show(Show::Parameters) => {
            for (name, value) in &chat.parameters {
                out.line(format!("{name} {value}"));
            }
        }
        Command::Show(Show::Messages) => {
            for message in &chat.messages {
                out.write(&format!("{}: ", out.styled(Style::Bold, &message.role)));
                out.say(&format!("{}\n", message.content));
            }
        }
    }
    Ok(())
}
