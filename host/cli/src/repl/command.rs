//! Lines that begin with `/`.

/// What `/?` shows.
pub const HELP: &str = "\
/model NAME                 go on with another model; the conversation stays
/set system TEXT            instructions for the whole chat
/set parameter NAME VALUE   temperature, top_p, top_k, min_p, seed, max_tokens, stop, ...
/set format json|FILE       answers are JSON, or fit the JSON Schema of a file; `/set noformat` ends it
/set verbose                show timings; `/set quiet` ends it
/show info|system|parameters|messages
/save NAME, /load NAME      keep a conversation, take it up again
/clear                      forget the conversation
/bye                        end (Ctrl+D too)
\"\"\"                         begins and ends a text of several lines";

const NAMES: [&str; 9] = ["?", "help", "bye", "clear", "model", "save", "load", "set", "show"];

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    Bye,
    Help,
    Clear,
    Model(String),
    Save(String),
    Load(String),
    Set(Setting),
    Show(Show),
}

#[derive(Debug, PartialEq)]
pub enum Setting {
    System(String),
    Parameter(String, String),
    Format(Option<String>),
    Verbose(bool),
}

#[derive(Debug, PartialEq)]
pub enum Show {
    Info,
    System,
    Parameters,
    Messages,
}

impl Command {
    /// Reads a line. `None`: it is not a command, but a question; `/usr/bin` is one too.
    pub fn parse(line: &str) -> Option<Result<Self, String>> {
        let rest = line.trim().strip_prefix('/')?;
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if name.contains('/') {
            return None;
        }
        Some(Self::of(name, argument.trim()))
    }

    fn of(name: &str, argument: &str) -> Result<Self, String> {
        let with_name = |make: fn(String) -> Self| match argument {
            "" => Err(format!("`/{name}` needs a name")),
            argument => Ok(make(argument.to_owned())),
        };
        match name {
            "?" | "help" => Ok(Self::Help),
            "bye" | "exit" | "quit" => Ok(Self::Bye),
            "clear" => Ok(Self::Clear),
            "model" => with_name(Self::Model),
            "save" => with_name(Self::Save),
            "load" => with_name(Self::Load),
            "set" => Setting::parse(argument).map(Self::Set),
            "show" => Show::parse(argument).map(Self::Show),
            _ => Err(match nearest(name, &NAMES) {
                Some(close) => format!("there is no command `/{name}`; did you mean `/{close}`?"),
                None => format!("there is no command `/{name}`; `/?` shows all"),
            }),
        }
    }
}

impl Setting {
    fn parse(text: &str) -> Result<Self, String> {
        let (what, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match (what, rest) {
            ("verbose", "") => Ok(Self::Verbose(true)),
            ("quiet" | "noverbose", "") => Ok(Self::Verbose(false)),
            ("noformat", "") => Ok(Self::Format(None)),
            ("format", format) if !format.is_empty() => Ok(Self::Format(Some(format.to_owned()))),
            ("system", text) => Ok(Self::System(text.trim_matches('"').trim().to_owned())),
            ("parameter", rest) => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(Self::Parameter(name.to_owned(), value.trim().to_owned())),
                None => Err("write `/set parameter temperature 0`".to_owned()),
            },
            _ => Err("`/set` takes `system TEXT`, `parameter NAME VALUE`, `format json|FILE`, `noformat`, `verbose` or `quiet`".to_owned()),
        }
    }
}

impl Show {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "info" => Ok(Self::Info),
            "system" => Ok(Self::System),
            "parameters" => Ok(Self::Parameters),
            "messages" => Ok(Self::Messages),
            _ => Err("`/show` takes `info`, `system`, `parameters` or `messages`".to_owned()),
        }
    }
}

/// The name that was probably meant.
pub fn nearest<'a>(typed: &str, names: &[&'a str]) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(typed, name);
    let best = names.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (0.75 <= likeness(best)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        Command::parse(line).unwrap().unwrap()
    }

    fn wrong(line: &str) -> String {
        Command::parse(line).unwrap().unwrap_err()
    }

    #[test]
    fn lines_are_read_as_people_type_them() {
        assert_eq!(command(" /bye "), Command::Bye);
        assert_eq!(command("/model qwen2.5-coder:0.5b"), Command::Model("qwen2.5-coder:0.5b".to_owned()));
        assert_eq!(
            command("/set system \"Be brief.\""),
            Command::Set(Setting::System("Be brief.".to_owned()))
        );
        let parameter = Setting::Parameter("temperature".to_owned(), "0.5".to_owned());
        assert_eq!(command("/set parameter temperature  0.5"), Command::Set(parameter));
        assert_eq!(command("/set noformat"), Command::Set(Setting::Format(None)));
        assert_eq!(command("/show"), Command::Show(Show::Info));
    }

    #[test]
    fn what_is_no_command_is_a_question() {
        assert_eq!(Command::parse("what is /bye?"), None);
        assert_eq!(Command::parse("/usr/bin/env is what?"), None);
    }

    #[test]
    fn a_slip_is_named() {
        assert!(wrong("/lod x").contains("did you mean `/load`"));
        assert!(wrong("/xyzzy").contains("`/?` shows all"));
        assert!(wrong("/save").contains("needs a name"));
        assert!(wrong("/set parameter seed").contains("/set parameter"));
        assert!(wrong("/set colour red").contains("noformat"));
        assert!(wrong("/show all").contains("messages"));
    }
}
