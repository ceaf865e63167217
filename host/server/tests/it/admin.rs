//! Administration.

use crate::host::{Got, start, start_with};
use serde_json::json;

#[actix_web::test]
async fn keys_are_made_shown_once_and_revoked() {
    let host = start();
    let ask =
        json!({ "name": "ci", "role": "admin", "limits": { "requests_per_minute": 5 }, "expires_in": "30d" });
    let got = host.post("/admin/v1/keys", ask).await;
    assert_eq!(got.status, 201, "{}", got.text());
    assert_eq!(got.header("cache-control"), Some("no-store"));
    let created = got.json();
    let (secret, id) = (created["secret"].as_str().unwrap(), created["id"].as_str().unwrap());
    assert!(secret.contains(id));
    let list = host.get("/admin/v1/keys").await;
    assert!(!list.text().contains(secret));
    assert!(
        list.json()["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|key| key["id"] == id && key["expires_at"].is_number())
    );
    let revoke = |id: &str| host.client.delete(host.url(&format!("/admin/v1/keys/{id}"))).send();
    assert_eq!(revoke(id).await.unwrap().status().as_u16(), 200);
    assert_eq!(revoke("nobody").await.unwrap().status().as_u16(), 404);
    for (body, param) in [
        (json!({}), "name"),
        (json!({ "name": " " }), "name"),
        (json!({ "name": "x", "role": "root" }), "role"),
        (json!({ "name": "x", "expires_in": "soon" }), "expires_in"),
        (json!({ "name": "x", "limit": {} }), "limit"),
        (json!({ "name": "x", "limits": { "requests": 1 } }), "limits.requests"),
    ] {
        let got = host.post("/admin/v1/keys", body).await;
        assert_eq!((got.status, got.json()["error"]["param"].clone()), (400, json!(param)), "{}", got.text());
    }
    host.stop().await;
}

#[actix_web::test]
async fn a_key_tells_what_it_spent_and_has_left() {
    let host = start_with(&[("auth.enabled", "true")]);
    let admin = host.host.first_key().unwrap().secret;
    let key = |text: &str| [("authorization", format!("Bearer {text}"))];
    let ask = async |who: &str, path: &str, body: serde_json::Value| {
        let header = key(who);
        let headers: Vec<_> = header.iter().map(|(name, value)| (*name, value.as_str())).collect();
        host.post_with(path, &headers, body.to_string()).await
    };
    let limits = json!({ "tokens": { "tokens": 1000, "window": "day" } });
    let created = ask(&admin, "/admin/v1/keys", json!({ "name": "ci", "limits": limits })).await.json();
    let (secret, id) = (created["secret"].as_str().unwrap(), &created["id"]);
    let listed = async || {
        let header = key(&admin);
        let [(name, value)] = &header;
        let got = host.client.get(host.url("/admin/v1/keys")).header(*name, value).send().await.unwrap();
        let list = Got::of(got).await.json();
        let keys = list["data"].as_array().unwrap().clone();
        (keys.iter().find(|key| key["id"] == *id).unwrap().clone(), keys[0].clone())
    };

    let (fresh, first) = listed().await;
    assert_eq!(first["budget"], json!(null), "the first key has none");
    let budget = &fresh["budget"];
    assert_eq!((&budget["limit"], &budget["window"]), (&json!(1000), &json!("day")));
    assert_eq!((&budget["spent"], &budget["remaining"]), (&json!(0), &json!(1000)));
    let seconds = budget["reset_seconds"].as_f64().unwrap();
    assert!(0.0 < seconds && seconds <= 86_400.0, "{budget}");

    let script = json!({
        "chunks": [{ "content": "hi" }, { "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 5, "completion_tokens": 7 },
    });
    let messages = json!([{ "role": "user", "content": script.to_string() }]);
    let chat = json!({ "model": "script", "max_tokens": 16, "messages": messages });
    let got = ask(secret, "/v1/chat/completions", chat).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let (after, _) = listed().await;
    assert_eq!(after["budget"]["spent"], json!(12));
    assert_eq!(after["budget"]["remaining"], json!(988));
    assert_eq!(after["budget"]["reserved"], json!(0));

    // What the document promises is what is told.
    let document = {
        let header = key(&admin);
        let [(name, value)] = &header;
        Got::of(host.client.get(host.url("/openapi.json")).header(*name, value).send().await.unwrap())
            .await
            .json()
    };
    let promised = &document["components"]["schemas"]["Key"]["properties"];
    let names = |value: &serde_json::Value| {
        value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(promised), names(&after));
    host.stop().await;
}

#[actix_web::test]
async fn an_administrator_may_stop_the_server() {
    let host = start();
    let got = host.post("/admin/v1/shutdown", json!({})).await;
    assert_eq!((got.status, got.json()["error"]["code"].clone()), (501, json!("stop_not_supported")));
    assert_eq!(host.get("/readyz").await.status, 200);
    let asked = host.host.stop_asked();
    for _ in 0..2 {
        let got = host.post("/admin/v1/shutdown", json!({})).await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert!(got.json()["drain_seconds"].is_number());
    }
    tokio::time::timeout(std::time::Duration::from_secs(5), asked).await.unwrap();
    host.stop().await;
}

#[actix_web::test]
async fn models_are_looked_at_planned_opened_and_closed() {
    let host = start();
    let state =
        async || host.get("/admin/v1/models/script").await.json()["state"].as_str().unwrap().to_owned();
    assert_eq!(state().await, "idle");
    let plan = host.get("/admin/v1/models/script/plan").await.json();
    assert_eq!(plan["fits"], true, "{plan}");
    assert_eq!(state().await, "idle", "planning opens nothing");
    let got = host.post("/admin/v1/models/script/load", json!({ "keep_alive": -1 })).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.json()["running"]["expires_in"], json!(null));
    assert_eq!(state().await, "ready");
    assert_eq!(host.post("/admin/v1/models/script/unload", json!({})).await.json()["state"], "idle");
    assert_eq!(host.post("/admin/v1/models/acme/script:2/load", json!({})).await.json()["state"], "ready");
    assert_eq!(host.get("/admin/v1/models/nobody").await.status, 404);
    let list = host.get("/admin/v1/models").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    let plugins = host.get("/admin/v1/plugins").await.json();
    assert!(
        plugins["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|plugin| plugin["id"] == "test.scripted" && plugin["ready"] == true)
    );
    assert_eq!(host.post("/admin/v1/refresh", json!({})).await.status, 200);
    let same = host.post("/admin/v1/plugins/test.scripted/upgrade", json!({})).await;
    assert_eq!((same.status, &same.json()["error"]["code"]), (409, &json!("nothing_to_upgrade")));
    let none = host.get("/admin/v1/plugins/test.scripted/upgrade").await;
    assert_eq!((none.status, &none.json()["error"]["code"]), (404, &json!("upgrade_not_found")));
    host.stop().await;
}

#[actix_web::test]
async fn configuration_cache_and_health_are_told() {
    let host = start_with(&[("models.aliases.small", "script")]);
    let config = host.get("/admin/v1/config").await.json();
    assert!(config["toml"].as_str().unwrap().contains("small"), "{config}");
    assert!(config["sources"].as_object().unwrap().contains_key("auth.enabled"), "{config}");
    assert_eq!(host.post("/admin/v1/config/reload", json!({})).await.json()["changed"], json!([]));
    let flushed = host.post("/admin/v1/cache/flush", json!({})).await.json();
    assert_eq!(flushed, json!({ "flushed": 0 }));
    assert_eq!(host.get("/admin/v1/health").await.json()["ready"], true);
    assert_eq!(host.get("/admin/v1/whoami").await.json()["role"], "admin");
    host.stop().await;
}

#[actix_web::test]
async fn readiness_goes_before_the_host_does() {
    let host = start();
    assert_eq!(host.get("/readyz").await.status, 200);
    host.host.shutdown(std::time::Duration::ZERO).await;
    let got: Got = host.get("/readyz").await;
    assert_eq!(got.status, 503, "{}", got.text());
    assert_eq!(host.get("/healthz").await.status, 200, "the process still lives");
    let got = host.post("/v1/capabilities/test.unforeseen", json!({})).await;
    assert_eq!((got.status, got.json()["error"]["code"].clone()), (503, json!("shutting_down")));
    host.stop().await;
}
