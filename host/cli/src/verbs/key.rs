//! `key create|ls|show|set|revoke`: API keys of the running server.

use crate::args::{Key, KeyCreate, KeySet, Limit};
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
        Key::Show { key } => show(context, key.as_deref()),
        Key::Set(args) => set(context, &args),
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
    let spent = match budget["reserved"].as_u64() {
        None | Some(0) => tokens("spent"),
        Some(open) => format!("{} + {open} set aside", tokens("spent")),
    };
    let resets = if budget.is_object() { resets(budget) } else { "-".to_owned() };
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
        spent,
        tokens("remaining"),
        resets,
        ago("created_at").unwrap_or_default(),
        ago("last_used_at").unwrap_or_else(|| "never".to_owned()),
        state,
    ]
}

/// When the window of a budget ends.
fn resets(budget: &Value) -> String {
    match budget["reset_seconds"].as_f64() {
        Some(seconds) => {
            format!("{} from now", text::about(Duration::try_from_secs_f64(seconds).unwrap_or_default()))
        }
        None => "never".to_owned(),
    }
}

/// One's own key, else the one that is named.
fn show(context: &Context, named: Option<&str>) -> Result<()> {
    let client = context.client()?;
    let key = match named {
        None => client.get("/admin/v1/whoami")?,
        Some(named) => listed(&client.get("/admin/v1/keys")?["data"], named)?,
    };
    if context.out.json {
        context.out.value(&key);
    } else if named.is_none() && key["key"].is_null() {
        context.out.note("keys are turned off on this server: nothing is counted, and nothing is limited");
    } else {
        for (name, value) in told(&key, SystemTime::now()) {
            context.out.line(format!("{name:<14}{}", crate::output::printable(&value)));
        }
    }
    Ok(())
}

/// What there is to say of a key, whichever route told of it.
fn told(key: &Value, now: SystemTime) -> Vec<(&'static str, String)> {
    let text = |member: &str| key[member].as_str().map(str::to_owned);
    let mut lines = Vec::new();
    let mut tell = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    tell("name", text("name"));
    tell("id", text("key").or_else(|| text("id")));
    tell("role", text("role"));
    let left = key["limits"].as_array().into_iter().flatten().find(|limit| limit["dimension"] == "requests");
    let rate = left.map_or(&key["limits"]["requests_per_minute"], |limit| &limit["limit"]).as_u64();
    let left = left.map(|limit| format!(", {} left now", limit["remaining"])).unwrap_or_default();
    tell("requests", rate.map(|rate| format!("{rate} a minute{left}")));
    let budget = &key["budget"];
    let window = budget["window"].as_str().unwrap_or_default();
    tell("tokens", budget["limit"].as_u64().map(|limit| format!("{limit} ({window})")));
    tell("spent", budget["spent"].as_u64().map(|spent| spent.to_string()));
    let reserved = budget["reserved"].as_u64().filter(|reserved| *reserved != 0);
    tell("set aside", reserved.map(|reserved| format!("{reserved} for requests that are open")));
    tell("left", budget["remaining"].as_u64().map(|left| left.to_string()));
    tell("resets", budget.is_object().then(|| resets(budget)));
    let time = |member: &str| Some(UNIX_EPOCH + Duration::from_secs(key[member].as_u64()?));
    let expires = time("expires_at").map(|end| match end.duration_since(now) {
        Ok(left) => format!("{} from now", text::about(left)),
        Err(_) => "expired".to_owned(),
    });
    tell("expires", expires);
    tell("revoked", time("revoked_at").map(|then| text::ago(then, now)));
    lines
}

/// The key of this name or id, out of all.
fn listed(keys: &Value, named: &str) -> Result<Value> {
    let id = find(keys, named, SystemTime::now())?;
    let found = keys.as_array().into_iter().flatten().find(|key| key["id"] == *id);
    found.cloned().ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no key `{named}`"))
            .next("all of them: `backplane key ls`")
            .code("key_not_found")
    })
}

fn set(context: &Context, args: &KeySet) -> Result<()> {
    let client = context.client()?;
    let key = listed(&client.get("/admin/v1/keys")?["data"], &args.key)?;
    let limits = change(args, &key)?;
    let id = key["id"].as_str().unwrap_or_default();
    let key = client.patch(&format!("/admin/v1/keys/{}", segment(id)), &json!({ "limits": limits }))?;
    if context.out.json {
        context.out.value(&key);
    } else {
        for (name, value) in told(&key, SystemTime::now()) {
            context.out.line(format!("{name:<14}{}", crate::output::printable(&value)));
        }
    }
    Ok(())
}

/// The members of the limits that change. A budget is one of them, so what is not said of it is as the key has it.
fn change(args: &KeySet, key: &Value) -> Result<Map<String, Value>> {
    let own = &key["limits"]["tokens"];
    let mut limits = Map::new();
    limits.extend(args.requests_per_minute.map(|limit| {
        let limit = match limit {
            Limit::Default => Value::Null,
            Limit::Own(count) => count.into(),
        };
        ("requests_per_minute".to_owned(), limit)
    }));
    let tokens = match (args.tokens, own["tokens"].as_u64()) {
        (None, _) if args.window.is_none() => return Ok(limits),
        (Some(Limit::Default), _) if args.window.is_some() => {
            return Err(Failure::usage(
                "`--window` is of a budget of the key's own, and `--tokens default` is none",
            ));
        }
        (Some(Limit::Default), _) => None,
        (Some(Limit::Own(tokens)), _) | (None, Some(tokens)) => Some(tokens),
        (None, None) => {
            return Err(Failure::usage(format!("key `{}` has no budget of its own", args.key))
                .next("give it one: `--tokens N --window TIME`"));
        }
    };
    let window = args.window.as_deref().or(own["window"].as_str()).unwrap_or("day");
    let budget = tokens.map_or(Value::Null, |tokens| json!({ "tokens": tokens, "window": window }));
    limits.insert("tokens".to_owned(), budget);
    Ok(limits)
}

fn revoke(context: &Context, named: &str) -> Result<()> {
    let client = context.client()?;
    let keys = client.get("/admin/v1/keys")?;
    let id = find(&keys["data"], named, SystemTime::now())?;
    let own = client.get("/admin/v1/whoami")?["key"].as_str() == Some(&id);
    let loss = loss(&keys["data"], &id, own, SystemTime::now());
    if let Some(loss) = &loss {
        agree(context, &id, loss)?;
    }
    let key = client.delete(&format!("/admin/v1/keys/{}", segment(&id)))?;
    if context.out.json {
        context.out.value(&key);
    } else {
        context.out.note(format!("{id} ({}) is revoked", key["name"].as_str().unwrap_or_default()));
    }
    if let Some(loss) = &loss {
        context.out.note(loss.way_back());
    }
    Ok(())
}

/// What is lost with a key beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Nobody administers the server.
    LastAdmin,
    /// The key that this command shows does not work any more.
    Own,
}

impl Loss {
    fn what(self, id: &str) -> String {
        match self {
            Loss::LastAdmin => {
                format!(
                    "{id} is the only administrator's key that works: without it nobody administers this server"
                )
            }
            Loss::Own => format!("{id} is the key that this command shows: the next one with it is refused"),
        }
    }

    fn way_back(self) -> &'static str {
        match self {
            Loss::LastAdmin => {
                "start the server again, and it makes a new one: `backplane stop --server`, `backplane serve`"
            }
            Loss::Own => {
                "set `BACKPLANE_API_KEY` to another, or write it into `admin.key` of the state directory"
            }
        }
    }
}

fn loss(keys: &Value, id: &str, own: bool, now: SystemTime) -> Option<Loss> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let works = |key: &&Value| {
        key["role"] == "admin"
            && key["revoked_at"].is_null()
            && key["expires_at"].as_u64().is_none_or(|end| now < end)
    };
    let admins: Vec<&Value> = keys.as_array().into_iter().flatten().filter(works).collect();
    match admins[..] {
        [last] if last["id"] == *id => Some(Loss::LastAdmin),
        _ => own.then_some(Loss::Own),
    }
}

/// Who locks himself out has to mean it.
fn agree(context: &Context, id: &str, loss: &Loss) -> Result<()> {
    let what = loss.what(id);
    if context.global.yes {
        return Ok(());
    }
    let refused = |next: &str| Failure::new(Exit::Denied, what.clone()).next(next).code("consent_needed");
    if !context.out.asks {
        return Err(refused(
            "make another first, `backplane key create NAME --role admin`, or run it again with `--yes`",
        ));
    }
    context.out.note(&what);
    if context.out.ask("revoke it?", false) { Ok(()) } else { Err(refused("it works as before")) }
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
                .next("name one by its id"))
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
        let budget = ["60/min, 1000 tok/day", "400 + 100 set aside", "500", "2 hours from now"];
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
    fn a_key_reads_the_same_by_either_route() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let budget = json!({"limit": 1000, "window": "day", "spent": 400, "reserved": 100, "remaining": 500, "reset_seconds": 7200.5});
        let rate = json!({"scope": "key", "dimension": "requests", "limit": 60, "remaining": 59});
        let own = json!({"key": "ab12", "name": "ci", "role": "user", "limits": [rate], "budget": budget, "expires_at": null});
        let listed = json!({"id": "ab12", "name": "ci", "role": "user", "limits": {"requests_per_minute": 60}, "budget": budget});
        let mut expected = vec![
            ("name", "ci"),
            ("id", "ab12"),
            ("role", "user"),
            ("requests", "60 a minute, 59 left now"),
            ("tokens", "1000 (day)"),
            ("spent", "400"),
            ("set aside", "100 for requests that are open"),
            ("left", "500"),
            ("resets", "2 hours from now"),
        ];
        let lines = |key: &Value| told(key, now);
        let same = |expected: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
            expected.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
        };
        assert_eq!(lines(&own), same(&expected));
        expected[3].1 = "60 a minute";
        assert_eq!(lines(&listed), same(&expected));
    }

    #[test]
    fn what_is_not_said_of_a_budget_stays() {
        let args = |requests_per_minute, tokens, window: Option<&str>| KeySet {
            key: "ci".to_owned(),
            requests_per_minute,
            tokens,
            window: window.map(str::to_owned),
        };
        let key = json!({"limits": {"tokens": {"tokens": 1000, "window": "month"}}});
        let none = json!({"limits": {"tokens": null}});
        let own = |count| Some(Limit::Own(count));
        for (args, key, expected) in [
            (args(own(5), None, None), &key, json!({"requests_per_minute": 5})),
            (args(Some(Limit::Default), None, None), &key, json!({"requests_per_minute": null})),
            (args(None, own(9), None), &key, json!({"tokens": {"tokens": 9, "window": "month"}})),
            (args(None, own(9), None), &none, json!({"tokens": {"tokens": 9, "window": "day"}})),
            (args(None, None, Some("day")), &key, json!({"tokens": {"tokens": 1000, "window": "day"}})),
            (args(None, Some(Limit::Default), None), &key, json!({"tokens": null})),
        ] {
            assert_eq!(Value::from(change(&args, key).unwrap()), expected);
        }
        assert_eq!(change(&args(None, None, Some("day")), &none).unwrap_err().exit, Exit::Usage);
        assert_eq!(
            change(&args(None, Some(Limit::Default), Some("day")), &key).unwrap_err().exit,
            Exit::Usage
        );
    }

    #[test]
    fn what_is_lost_with_a_key_is_known_before() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let key = |id: &str, role: &str, revoked: Value, expires: Value| json!({"id": id, "role": role, "revoked_at": revoked, "expires_at": expires});
        let mut keys = vec![
            key("a1", "admin", Value::Null, Value::Null),
            key("a2", "admin", json!(1), Value::Null),
            key("a3", "admin", Value::Null, json!(999_999)),
            key("u1", "user", Value::Null, Value::Null),
        ];
        let loss = |keys: &[Value], id, own| loss(&json!(keys), id, own, now);
        assert_eq!(loss(&keys, "a1", true), Some(Loss::LastAdmin), "others are revoked or expired");
        assert_eq!(loss(&keys, "a1", false), Some(Loss::LastAdmin));
        assert_eq!(loss(&keys, "u1", false), None);
        keys.push(key("a4", "admin", Value::Null, json!(1_000_001)));
        assert_eq!(loss(&keys, "a1", true), Some(Loss::Own));
        assert_eq!(loss(&keys, "a1", false), None);
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
