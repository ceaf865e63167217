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
