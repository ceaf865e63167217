//! Who may use what.

use crate::host::{Got, Running, start_with};
use backplane::auth::{KeyLimits, NewKey, Role};
use serde_json::json;

async fn key(host: &Running, role: Role, limits: KeyLimits) -> String {
    let new = NewKey { name: "test".to_owned(), role, limits, lifetime: None };
    host.host.create_key(new).await.unwrap().secret
}

async fn get(host: &Running, path: &str, key: Option<&str>) -> Got {
    let mut request = host.client.get(host.url(path));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    Got::of(request.send().await.unwrap()).await
}

#[actix_web::test]
async fn every_route_but_the_open_ones_needs_a_key_and_admin_routes_an_admins() {
    let host = start_with(&[("auth.enabled", "true")]);
    let (user, admin) = (
        key(&host, Role::User, KeyLimits::default()).await,
        key(&host, Role::Admin, KeyLimits::default()).await,
    );
    let document = get(&host, "/openapi.json", Some(&user)).await.json();
    let open = [
        "/",
        "/docs",
        "/docs.js",
        "/favicon.svg",
        "/frontend/settings",
        "/healthz",
        "/metrics",
        "/page.css",
        "/page.js",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
    ];
    // Open too, but there is no translator and no file here.
    let empty = ["/download_file/{name}", "/languages"];
    // LibreTranslate's clients show its key in the body, and know its own statuses.
    let libre = ["/detect", "/translate", "/translate_file"];
    let mut seen_open = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let url = host.url(&path.replace(['{', '}'], ""));
            let send = async |key: &str| {
                let mut request =
                    host.client.request(method.to_uppercase().parse().unwrap(), &url).body("{}");
                if !key.is_empty() {
                    request = request.bearer_auth(key);
                }
                Got::of(request.send().await.unwrap()).await
            };
            let stranger = send("").await;
            if open.contains(&path.as_str()) {
                assert_eq!(stranger.status, 200, "{path}");
                seen_open.push(path.clone());
                continue;
            }
            if empty.contains(&path.as_str()) {
                assert_eq!(stranger.status, 404, "{path}");
                assert_eq!(operation["x-role"], "anybody", "{path}");
                continue;
            }
            if libre.contains(&path.as_str()) {
                assert_eq!(stranger.status, 400, "{path}");
                assert!([403, 429].contains(&send("bp_live_nonsense").await.status), "{path}");
                let missing = if path == "/translate_file" { "file" } else { "q" };
                let expected = format!("Invalid request: missing {missing} parameter");
                assert_eq!(send(&user).await.json()["error"], expected, "{path}");
                continue;
            }
            assert_eq!(stranger.status, 401, "{method} {path}");
            assert_eq!(stranger.header("www-authenticate"), Some("Bearer"));
            // After the first of them: see the throttle.
            assert!([401, 429].contains(&send("bp_live_nonsense").await.status), "{method} {path}");
            if operation["x-role"] == "admin" {
                assert_eq!(send(&user).await.status, 403, "{method} {path}");
            } else {
                assert_ne!(send(&user).await.status, 403, "{method} {path}");
            }
        }
    }
    seen_open.sort();
    assert_eq!(seen_open, open);
    assert_eq!(get(&host, "/admin/v1/keys", Some(&admin)).await.status, 200);
    host.stop().await;
}

#[actix_web::test]
async fn refusals_have_the_words_of_their_protocol() {
    let host = start_with(&[("auth.enabled", "true")]);
    let missing = get(&host, "/v1/models", None).await.json();
    assert_eq!(missing["error"]["code"], "missing_api_key");
    assert_eq!(missing["error"]["type"], "authentication_error");
    let invalid = get(&host, "/v1/models", Some("x")).await.json();
    assert_eq!(invalid["error"]["code"], "invalid_api_key");
    assert!(get(&host, "/v2", None).await.json()["error"].is_string());
    let basic = host.client.get(host.url("/v1/models")).basic_auth("a", Some("b")).send().await.unwrap();
    assert_eq!(basic.status().as_u16(), 401);
    host.stop().await;
}

#[actix_web::test]
async fn who_goes_on_with_a_wrong_key_is_told_to_stop() {
    let host = start_with(&[("auth.enabled", "true")]);
    let right = key(&host, Role::User, KeyLimits::default()).await;
    let ask = async |turn: usize| {
        // The address that is counted is the peer's, whoever it says it speaks for.
        let request = host.client.get(host.url("/v1/models")).bearer_auth("bp_live_wrong");
        Got::of(request.header("x-forwarded-for", format!("192.0.2.{turn}")).send().await.unwrap()).await
    };
    let mut refused = None;
    for turn in 0..100 {
        let got = ask(turn).await;
        if got.status != 401 {
            refused = Some(got);
            break;
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.status, 429, "{}", refused.text());
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("too_many_invalid_keys"), &json!("rate_limit_error"))
    );
    let millis: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((1..=60_000).contains(&millis), "{millis}");
    assert_eq!(refused.header("retry-after").unwrap(), millis.div_ceil(1000).to_string());
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!(!refused.text().contains("bp_live_wrong"));
    assert_eq!(get(&host, "/v1/models", Some(&right)).await.status, 200);
    assert_eq!(get(&host, "/v1/models", None).await.status, 401);
    host.stop().await;
}

#[actix_web::test]
async fn a_page_of_another_site_may_not_act() {
    let host = start_with(&[("server.cors_origins", "[\"http://good.example\"]")]);
    let post = async |origin: &str| {
        host.post_with("/v1/capabilities/test.unforeseen", &[("origin", origin)], "{}").await
    };
    let evil = post("http://evil.example").await;
    assert_eq!(evil.status, 403, "{}", evil.text());
    assert_eq!(evil.json()["error"]["code"], "origin_not_allowed");
    assert_eq!(post("null").await.status, 403);
    assert_eq!(post(&host.address).await.status, 200);
    assert_eq!(post("http://good.example").await.status, 200);
    host.stop().await;
}

#[actix_web::test]
async fn without_keys_a_name_that_leads_here_is_not_this_server() {
    let listed = ("server.cors_origins", "[\"https://Good.example:8443\"]");
    let ask = async |host: &Running, name: &str| {
        let request = host.client.get(host.url("/admin/v1/config")).header("host", name);
        Got::of(request.send().await.unwrap()).await
    };
    let host = start_with(&[listed]);
    for name in [
        "evil.example:8484",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "good.example.evil",
    ] {
        let evil = ask(&host, name).await;
        assert_eq!(evil.status, 403, "{name}: {}", evil.text());
        assert_eq!(evil.json()["error"]["code"], "host_not_allowed");
    }
    // To a browser the page is of the server's own origin.
    let own = [("host", "evil.example:8484"), ("origin", "http://evil.example:8484")];
    assert_eq!(host.post_with("/v1/capabilities/test.unforeseen", &own, "{}").await.status, 403);
    for name in
        ["127.0.0.1", "[::1]:8484", "localhost:8484", "LocalHost", "a.localhost:1", "good.example:8484"]
    {
        assert_eq!(ask(&host, name).await.status, 200, "{name}");
    }
    host.stop().await;

    let host = start_with(&[("auth.enabled", "true")]);
    assert_eq!(ask(&host, "models.example").await.status, 401);
    host.stop().await;
}

#[actix_web::test]
async fn metrics_are_this_machines_but_not_those_a_proxy_on_it_speaks_for() {
    let host = start_with(&[("auth.enabled", "true")]);
    let (user, admin) = (
        key(&host, Role::User, KeyLimits::default()).await,
        key(&host, Role::Admin, KeyLimits::default()).await,
    );
    assert_eq!(get(&host, "/metrics", None).await.status, 200);
    for (name, value) in
        [("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.1"), ("via", "1.1 proxy")]
    {
        let ask = async |key: Option<&str>| {
            let request = host.client.get(host.url("/metrics")).header(name, value);
            let request = key.into_iter().fold(request, |request, key| request.bearer_auth(key));
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(
            (ask(None).await, ask(Some(&user)).await, ask(Some(&admin)).await),
            (401, 403, 200),
            "{name}"
        );
    }
    host.stop().await;
}

#[actix_web::test]
async fn limits_are_told_and_then_held() {
    let host = start_with(&[("auth.enabled", "true")]);
    let limits = KeyLimits { requests_per_minute: Some(2), tokens: None };
    let secret = key(&host, Role::User, limits).await;
    let post = async || {
        let request =
            host.client.post(host.url("/v1/capabilities/test.unforeseen")).bearer_auth(&secret).body("{}");
        Got::of(request.send().await.unwrap()).await
    };
    let first = post().await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("1"));
    assert_eq!(post().await.status, 200);
    let refused = post().await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    let (seconds, millis): (u64, u64) = (
        refused.header("retry-after").unwrap().parse().unwrap(),
        refused.header("retry-after-ms").unwrap().parse().unwrap(),
    );
    assert_eq!(seconds, millis.div_ceil(1000));
    let me = get(&host, "/admin/v1/whoami", Some(&secret)).await.json();
    assert_eq!(me["limits"][0]["limit"], 2);
    assert_eq!(me["role"], json!("user"));
    host.stop().await;
}

#[actix_web::test]
async fn what_a_plugin_says_of_a_model_is_told_to_administrators_alone() {
    let folder = tempfile::tempdir().unwrap();
    let card = folder.path().join("giant.toml");
    std::fs::write(
        &card,
        "name = 'giant'\nformat = 'big'\nplugin = 'test.scripted'\ncapabilities = ['chat']\n\
        [[files]]\nrole = 'model'\npath = 'weights'\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("weights"), "none").unwrap();
    let host = start_with(&[("auth.enabled", "true"), ("models.cards", &format!("{:?}", [card]))]);
    let (user, admin) = (
        key(&host, Role::User, KeyLimits::default()).await,
        key(&host, Role::Admin, KeyLimits::default()).await,
    );
    let post = async |path: &str, key: &str| {
        let request = host.client.post(host.url(path)).bearer_auth(key).body("{}");
        Got::of(request.send().await.unwrap()).await
    };
    let load = post("/admin/v1/models/giant/load", &admin).await;
    let said = load.json()["error"]["message"].as_str().unwrap().to_owned();
    for (key, is_told) in [(&user, false), (&admin, true)] {
        let list = get(&host, "/v1/models", Some(key)).await.json();
        let one = get(&host, "/v1/models/giant", Some(key)).await.json();
        let listed = list["data"].as_array().unwrap().iter().find(|model| model["id"] == "giant").unwrap();
        assert_eq!((&one["state"], listed), (&json!("failed"), &one));
        assert_eq!(one["problem"].as_str().is_some_and(|problem| said.contains(problem)), is_told, "{one}");
        let index = post("/v2/repository/index", key).await.json();
        let entry = index.as_array().unwrap().iter().find(|model| model["name"] == "giant").unwrap();
        assert_eq!(entry["state"], "UNAVAILABLE");
        assert_eq!(entry["reason"] != "failed", is_told, "{entry}");
    }
    host.stop().await;
}
