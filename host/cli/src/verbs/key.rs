//! `key create|ls|revoke`: API keys of the running server.

use crate::args::{Key, KeyCreate};
use crate::client::segment;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Style, Table};
use crate::text;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn run(context: &Context, verb: Key) -> Result<()> {
    match verb {
        Key::Create(args) => create(context, &args),
        Key::Ls => ls(context),
        Key::Revoke { key } => revoke(context, &key),
    }
}

fn create(context: &Context, args: &KeyCreate) -> Result<()> {
    let mut limits = Map::new();
    limits.extend(args.requests_per_minute.map(|count| ("requests_per_minute".to_owned(), count.into())));
    let budget = args.tokens.map(|tokens| json!({ "tokens": tokens, "window": args.window }));
    limits.extend(budget.map(|budget| ("tokens".to_owned(), budget)));
    let mut body = json!({ "name": args.name, "role": args.role, "limits": limits });
    if let Some(time) = &args.expires {
        body["expires_in"] = time.as_str().into();
    }
    let key = context.client()?.post("/admin/v1/keys", &body)?;
    let out = &context.out;
    let secret = key["secret"].as_str().unwrap_or_default();
    if out.json {
        out.value(&key);
    } else if context.global.quiet {
        out.line(secret);
    } else {
        out.line(secret);
        let id = key["id"].as_str().unwrap_or_default();
        out.note(out.styled(
            Style::Faint,
            &format!(
                "shown this once; id {id}, role {}, take it back with `backplane key revoke {id}`",
                args.role
            ),
        ));
    }
    Ok(())
}

fn ls(context: &Context) -> Result<()> {
    let keys = context.client()?.get("/admin/v1/keys")?;
    if context.out.json {
        context.out.value(&keys["data"]);
        return Ok(());
    }
    let now = SystemTime::now();
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "ROLE",
        "LIMITS",
        "SPENT",
        "LEFT",
        "RESETS",
        "MADE",
        "LAST USED",
        "STATE",
    ]);
    for key in keys["data"].as_array().into_iter().flatten() {
        table.row(row(key, now));
    }
    context.out.table(&table);
    Ok(())
}

fn row(key: &Value, now: SystemTime) -> [String; 10] {
    let text = |member: &str| key[member].as_str().unwrap_or_default().to_owned();
    let time = |member: &str| Some(UNIX_EPOCH + Duration::from_secs(key[member].as_u64()?));
    let ago = |member: &str| time(member).map(|then| text::ago(then, now));
    let mut limits = Vec::new();
    limits.extend(key["limits"]["requests_per_minute"].as_u64().map(|count| format!("{count}/min")));
    // The budget in force: the key's own, or the configuration's.
    let budget = &key["budget"];
    limits.extend(
        budget["limit"]
            .as_u64()
            .map(|limit| format!("{limit} tok/{}", budget["window"].as_str().unwrap_or_default())),
    );
    let tokens =
        |member: &str| budget[member].as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string());
    let resets = match (budget.is_object(), budget["reset_seconds"].as_f64()) {
        (true, Some(seconds)) => {
            format!("{} from now", text::about(Duration::try_from_secs_f64(seconds).unwrap_or_default()))
        }
        (true, None) => "never".to_owned(),
        (false, _) => "-".to_owned(),
    };
    let state = match (time("revoked_at"), time("expires_at")) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(end)) => match end.duration_since(now) {
            Ok(left) => format!("expires in {}", text::about(left)),
            Err(_) => "expired".to_owned(),
        },
        (None, None) => "works".to_owned(),
    };
    [
        text("id"),
        text("name"),
        text("role"),
        if limits.is_empty() { "-".to_owned() } else { limits.join(", ") },
        tokens("spent"),
        tokens("remaining"),
        resets,
        ago("created_at").unwrap_or_default(),
        ago("last_used_at").unwrap_or_else(|| "never".to_owned()),
        state,
    ]
}

fn revoke(context: &Context, named: &str) -> Result<()> {
    let client = context.client()?;
    let keys = client.get("/admin/v1/keys")?;
    let id = find(&keys["data"], named, SystemTime::now())?;
    let key = client.delete(&format!("/admin/v1/keys/{}", segment(&id)))?;
    if context.out.json {
        context.out.value(&key);
    } else {
        context.out.note(format!("{id} ({}) is revoked", key["name"].as_str().unwrap_or_default()));
    }
    Ok(())
}

/// The id of the key that is named by its id or, of those that are not revoked, by its name. What nobody has is an id:
/// the server says that it is not there.
fn find(keys: &Value, named: &str, now: SystemTime) -> Result<String> {
    let keys = keys.as_array().map(Vec::as_slice).unwrap_or_default();
    let so_called = |key: &&Value| key["name"] == named && key["revoked_at"].is_null();
    let called: Vec<&Value> = keys.iter().filter(so_called).collect();
    let id = |key: &Value| key["id"].as_str().unwrap_or_default().to_owned();
    match called[..] {
        _ if keys.iter().any(|key| key["id"] == named) => Ok(named.to_owned()),
        [] if keys.iter().any(|key| key["name"] == named) => {
            Err(Failure::new(Exit::NotFound, format!("every key called `{named}` is revoked already")))
        }
        [] => Ok(named.to_owned()),
        [key] => Ok(id(key)),
        _ => {
            let made =
                |key: &Value| UNIX_EPOCH + Duration::from_secs(key["created_at"].as_u64().unwrap_or(0));
            let all: Vec<String> = called
                .iter()
                .map(|key| format!("{} (made {})", id(key), text::ago(made(key), now)))
                .collect();
            Err(Failure::usage(format!("{} keys are called `{named}`: {}", called.len(), all.join(", ")))
                .next("name one by its id: `backplane key revoke ID`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_limits_and_whether_it_works() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut key = json!({
            "id": "ab12", "name": "ci", "role": "user", "created_at": 996_400, "expires_at": 1_086_400, "revoked_at": null,
            "last_used_at": null,
            "limits": {"requests_per_minute": 60, "tokens": {"tokens": 1000, "window": "day"}},
            "budget": {"limit": 1000, "window": "day", "spent": 400, "reserved": 100, "remaining": 500, "reset_seconds": 7200.5},
        });
        let budget = ["60/min, 1000 tok/day", "400", "500", "2 hours from now"];
        let expected =
            [&["ab12", "ci", "user"][..], &budget, &["1 hour ago", "never", "expires in 1 day"]].concat();
        assert_eq!(row(&key, now).as_slice(), expected);
        key["expires_at"] = json!(999_999);
        assert_eq!(row(&key, now)[9], "expired");
        key["revoked_at"] = json!(999_999);
        assert_eq!(row(&key, now)[9], "revoked");
        key["budget"]["reset_seconds"] = Value::Null;
        assert_eq!(row(&key, now)[6], "never");
        key["budget"] = Value::Null;
        assert_eq!(row(&key, now)[3..7], ["60/min", "-", "-", "-"]);
    }

    #[test]
    fn a_key_is_found_by_its_id_and_by_a_name_of_its_own() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let key = |id: &str, name: &str, revoked: Value| json!({"id": id, "name": name, "revoked_at": revoked, "created_at": 996_400});
        let keys = json!([
            key("a1", "web", json!(1)),
            key("a2", "web", Value::Null),
            key("a3", "ci", Value::Null),
            key("a4", "ci", Value::Null),
            key("a5", "a2", Value::Null),
            key("a6", "old", json!(1)),
        ]);
        let found = |named: &str| find(&keys, named, now);
        assert_eq!(found("web").unwrap(), "a2", "a revoked one does not stand in the way");
        assert_eq!(found("a1").unwrap(), "a1");
        assert_eq!(found("a2").unwrap(), "a2", "an id is an id, whatever others are called");
        assert_eq!(found("nobody").unwrap(), "nobody");
        assert_eq!(found("old").unwrap_err().exit, Exit::NotFound);
        let both = found("ci").unwrap_err();
        assert_eq!(both.exit, Exit::Usage);
        assert_eq!(both.what, "2 keys are called `ci`: a3 (made 1 hour ago), a4 (made 1 hour ago)");
    }
}
