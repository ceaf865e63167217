//! A conversation: what was said, with whom, and how answers are asked for.

use crate::chat::Message;
use crate::exit::{Exit, Failure, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Parameters that take a number.
const NUMBERS: [&str; 10] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "n",
];

/// A conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    pub model: String,
    pub messages: Vec<Message>,
    /// Members of each request.
    pub parameters: Map<String, Value>,
    /// Whether timings are shown.
    #[serde(skip)]
    pub verbose: bool,
}

impl Chat {
    pub fn new(model: &str) -> Self {
        Self { model: model.to_owned(), messages: Vec::new(), parameters: Map::new(), verbose: false }
    }

    /// The instructions, if there are any.
    pub fn system(&self) -> Option<&str> {
        self.messages
            .first()
            .filter(|message| message.role == "system")
            .map(|message| message.content.as_str())
    }

    /// Sets the instructions; nothing takes them away.
    pub fn set_system(&mut self, text: &str) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        if !text.is_empty() {
            self.messages.insert(0, Message::new("system", text));
        }
    }

    /// Forgets what was said, but not the instructions.
    pub fn clear(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }

    /// Sets a parameter as it is typed.
    ///
    /// # Errors
    /// A name that no model knows, or a value that is no number where one is needed.
    pub fn set_parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name = if name == "num_predict" { "max_tokens" } else { name };
        let value = match name {
            "stop" => {
                let mut stops =
                    self.parameters.get("stop").and_then(Value::as_array).cloned().unwrap_or_default();
                stops.push(value.trim_matches('"').into());
                Value::Array(stops)
            }
            _ if NUMBERS.contains(&name) => match serde_json::from_str(value) {
                Ok(number @ Value::Number(_)) => number,
                _ => return Err(format!("`{name}` takes a number, not `{value}`")),
            },
            _ => {
                let known: Vec<&str> = NUMBERS.iter().copied().chain(["stop"]).collect();
                return Err(match super::command::nearest(name, &known) {
                    Some(close) => format!("there is no parameter `{name}`; did you mean `{close}`?"),
                    None => format!("there is no parameter `{name}`; there are {}", known.join(", ")),
                });
            }
        };
        self.parameters.insert(name.to_owned(), value);
        Ok(())
    }

    /// What answers must look like: `json`, a file with a JSON Schema, or nothing in particular.
    ///
    /// # Errors
    /// A file that is not there or not a schema.
    pub fn set_format(&mut self, format: Option<&str>) -> Result<()> {
        let Some(format) = format else {
            self.parameters.shift_remove("response_format");
            return Ok(());
        };
        let value =
            if format == "json" { json!({ "type": "json_object" }) } else { schema(Path::new(format))? };
        self.parameters.insert("response_format".to_owned(), value);
        Ok(())
    }

    /// Keeps the conversation, readable by its owner only.
    ///
    /// # Errors
    /// A name that is no name, or a folder that cannot be written.
    pub fn save(&self, state: &Path, name: &str) -> Result<PathBuf> {
        let path = file(state, name)?;
        let text = serde_json::to_string_pretty(self).map_err(|error| Failure::failed(error.to_string()))?;
        let dir = state.join("chats");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|error| Failure::io("make", &dir, &error))?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Failure::io("write", &path, &error))?;
        Ok(path)
    }

    /// Takes a conversation up again.
    ///
    /// # Errors
    /// When there is none of this name, or its file was changed.
    pub fn load(state: &Path, name: &str) -> Result<Self> {
        let path = file(state, name)?;
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::new(Exit::NotFound, format!("no conversation `{name}` was saved")).next(saved(state))
            }
            _ => Failure::io("read", &path, &error),
        })?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::failed(format!("{} is not a conversation: {error}", path.display())))
    }
}

fn saved(state: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(state.join("chats"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        "save this one with `/save NAME`".to_owned()
    } else {
        format!("saved: {}", names.join(", "))
    }
}

fn file(state: &Path, name: &str) -> Result<PathBuf> {
    let fine = !name.is_empty()
        && name.len() <= 100
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !fine {
        return Err(Failure::usage(format!("`{name}` cannot name a conversation"))
            .next("use letters, digits, `-`, `_` and `.`"));
    }
    Ok(state.join("chats").join(format!("{name}.json")))
}

fn schema(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::io("read the schema", path, &error)
            .next("`--format` takes `json` or a file with a JSON Schema")
    })?;
    let schema: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{} is not JSON: {error}", path.display())))?;
    if !schema.is_object() {
        return Err(Failure::usage(format!("{} is not a JSON Schema: it must be an object", path.display())));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(64).collect();
    Ok(json!({ "type": "json_schema", "json_schema": { "name": name, "schema": schema, "strict": true } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_saved_and_taken_up_again() {
        let state = tempfile::tempdir().unwrap();
        let mut chat = Chat::new("smollm2");
        chat.set_system("Be brief.");
        chat.messages.push(Message::new("user", "hi"));
        chat.set_parameter("temperature", "0.5").unwrap();
        let path = chat.save(state.path(), "rivers").unwrap();
        assert_eq!(Chat::load(state.path(), "rivers").unwrap(), chat);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let missing = Chat::load(state.path(), "lakes").unwrap_err();
        assert_eq!((missing.exit, missing.next.as_deref()), (Exit::NotFound, Some("saved: rivers")));
        for name in ["", "../x", ".x", "a/b", "a b"] {
            assert_eq!(chat.save(state.path(), name).unwrap_err().exit, Exit::Usage, "{name}");
        }
    }

    #[test]
    fn instructions_stand_first_and_outlive_the_conversation() {
        let mut chat = Chat::new("m");
        chat.messages.push(Message::new("user", "hi"));
        chat.set_system("one");
        chat.set_system("two");
        assert_eq!((chat.system(), chat.messages.len()), (Some("two"), 2));
        chat.clear();
        assert_eq!(chat.messages, [Message::new("system", "two")]);
        chat.set_system("");
        assert!(chat.messages.is_empty());
    }

    #[test]
    fn parameters_are_checked_by_name_and_kind() {
        let mut chat = Chat::new("m");
        chat.set_parameter("num_predict", "5").unwrap();
        chat.set_parameter("stop", "\"END\"").unwrap();
        chat.set_parameter("stop", "###").unwrap();
        assert_eq!(json!(chat.parameters), json!({ "max_tokens": 5, "stop": ["END", "###"] }));
        assert!(chat.set_parameter("temprature", "1").unwrap_err().contains("did you mean `temperature`"));
        assert!(chat.set_parameter("seed", "x").unwrap_err().contains("takes a number"));
    }

    #[test]
    fn a_format_is_json_or_a_schema() {
        let dir = tempfile::tempdir().unwrap();
        let mut chat = Chat::new("m");
        chat.set_format(Some("json")).unwrap();
        assert_eq!(chat.parameters["response_format"]["type"], "json_object");
        let path = dir.path().join("a city.json");
        fs::write(&path, r#"{"type":"object"}"#).unwrap();
        chat.set_format(path.to_str()).unwrap();
        assert_eq!(chat.parameters["response_format"]["json_schema"]["name"], "a_city");
        fs::write(&path, "[]").unwrap();
        assert_eq!(chat.set_format(path.to_str()).unwrap_err().exit, Exit::Usage);
        assert_eq!(chat.set_format(Some("no/such.json")).unwrap_err().exit, Exit::NotFound);
        chat.set_format(None).unwrap();
        assert!(chat.parameters.is_empty());
    }
}
