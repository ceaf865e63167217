//! The configuration for people to see: settings of plugins are theirs, and may hold a secret that belongs elsewhere.

use super::raw::Raw;
use serde_json::{Map, Value};

/// What stands in the place of a secret.
const HIDDEN: &str = "(hidden)";
/// Words that a key ends with whose text nobody may read.
const SECRETS: [&str; 9] =
    ["key", "keys", "token", "secret", "secrets", "password", "passwd", "credentials", "authorization"];
/// What is written in one word with them: `apikey`.
const GLUED: [&str; 7] = ["api", "auth", "access", "private", "client", "bearer", "app"];
/// Where a secret is, and not what it is.
const REFERENCES: [&str; 2] = ["env:", "file:"];

/// Hides what may be a secret in the settings of plugins and in parameters of models. The host has none of its own.
pub fn hide_secrets(config: &mut Raw) {
    config.plugins.settings.values_mut().for_each(hide_in);
    config.models.overrides.values_mut().for_each(|model| hide_in(&mut model.parameters));
}

fn hide_in(table: &mut Map<String, Value>) {
    table.iter_mut().for_each(|(name, value)| hide(value, names_one(name)));
}

fn hide(value: &mut Value, secret: bool) {
    match value {
        Value::String(text) if secret && !REFERENCES.iter().any(|it| text.starts_with(it)) => {
            HIDDEN.clone_into(text);
        }
        Value::String(text) => hide_in_address(text),
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, secret)),
        Value::Object(table) => {
            table.iter_mut().for_each(|(name, value)| hide(value, secret || names_one(name)));
        }
        _ => {}
    }
}

fn names_one(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRETS.iter().any(|word| {
        lower.strip_suffix(word).is_some_and(|rest| {
            // `apiKey` and `accessToken` are words of their own, too.
            let begins = name.as_bytes()[rest.len()].is_ascii_uppercase();
            rest.is_empty()
                || begins
                || rest.ends_with(['_', '-', '.'])
                || GLUED.iter().any(|it| rest.ends_with(it))
        })
    })
}

/// `https://name:password@host/` is an address with a secret in it.
fn hide_in_address(text: &mut String) {
    let Some(begin) = text.find("://").map(|at| at + 3) else { return };
    let host = text[begin..].split(['/', '?', '#']).next().unwrap_or_default();
    if let Some(end) = host.rfind('@') {
        text.replace_range(begin..begin + end, HIDDEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_hidden_and_where_one_is_is_not() {
        let mut config: Raw = toml::from_str(
            r#"
            [plugins.settings."com.acme.speech"]
            api_key = "sk-1"
            voice = "anna"
            max_tokens = 5
            monkey = "chimp"
            apiKey = "sk-7"
            apikey = "sk-8"
            accessToken = "sk-9"
            proxy = "https://me:sk-2@proxy.acme.com:8080/x@y"
            upstream = { url = "https://a.b/c", keys = ["env:ACME", "sk-3"], headers = { Authorization = "Bearer sk-4" } }
            [plugins.settings."com.acme.speech".secret]
            inner = "sk-5"
            [models.override."m".parameters]
            token = "sk-6"
            "#,
        )
        .unwrap();
        hide_secrets(&mut config);
        let shown = toml::to_string(&config).unwrap();
        assert!(!shown.contains("sk-"), "{shown}");
        for kept in [
            "anna",
            "chimp",
            "max_tokens = 5",
            "env:ACME",
            "https://(hidden)@proxy.acme.com:8080/x@y",
            "https://a.b/c",
        ] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
    }
}
