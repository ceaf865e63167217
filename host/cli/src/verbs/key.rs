//! `key create|ls|revoke`: API keys of the running server.

use crate::args::{Key, KeyCreate};
use crate::client::segment;
use crate::context::Context;
use crate::exit::Result;
use crate::output::{Style, Table};
use crate::text;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn run(context: &Context, verb: Key) -> Result<()> {
    match verb {
        Key::Create(args) => create(context, &args),
        Key::Ls => ls(context),
        Key::Revoke { id } => revoke(context, &id),
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
    let mut table = Table::new(&["ID", "NAME", "ROLE", "LIMITS", "MADE", "LAST USED", "STATE"]);
    for key in keys["data"].as_array().into_iter().flatten() {
        table.row(row(key, now));
    }
    context.out.table(&table);
    Ok(())
}

fn row(key: &Value, now: SystemTime) -> [String; 7] {
    let text = |member: &str| key[member].as_str().unwrap_or_default().to_owned();
    let time = |member: &str| Some(UNIX_EPOCH + Duration::from_secs(key[member].as_u64()?));
    let ago = |member: &str| time(member).map(|then| text::ago(then, now));
    let mut limits = Vec::new();
    limits.extend(key["limits"]["requests_per_minute"].as_u64().map(|count| format!("{count}/min")));
    if let Some(tokens) = key["limits"]["tokens"]["tokens"].as_u64() {
        limits
            .push(format!("{tokens} tok/{}", key["limits"]["tokens"]["window"].as_str().unwrap_or_default()));
    }
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
        ago("created_at").unwrap_or_default(),
        ago("last_used_at").unwrap_or_else(|| "never".to_owned()),
        state,
    ]
}

fn revoke(context: &Context, id: &str) -> Result<()> {
    let key = context.client()?.delete(&format!("/admin/v1/keys/{}", segment(id)))?;
    if context.out.json {
        context.out.value(&key);
    } else {
        context.out.note(format!("{id} ({}) is revoked", key["name"].as_str().unwrap_or_default()));
    }
    Ok(())
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
        });
        let expected =
            ["ab12", "ci", "user", "60/min, 1000 tok/day", "1 hour ago", "never", "expires in 1 day"];
        assert_eq!(row(&key, now), expected);
        key["expires_at"] = json!(999_999);
        assert_eq!(row(&key, now)[6], "expired");
        key["revoked_at"] = json!(999_999);
        assert_eq!(row(&key, now)[6], "revoked");
    }
}
