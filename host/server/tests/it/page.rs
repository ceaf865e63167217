//! The page, the document, and what no route has.

use crate::host::start;
use serde_json::json;

#[actix_web::test]
async fn the_page_and_all_it_loads_come_from_here() {
    let host = start();
    let mut wanted = vec!["/".to_owned(), "/docs".to_owned()];
    let mut seen = Vec::new();
    while let Some(path) = wanted.pop() {
        if seen.contains(&path) {
            continue;
        }
        let got = host.get(&path).await;
        assert_eq!(got.status, 200, "{path}");
        assert!(got.header("content-security-policy").unwrap().starts_with("default-src 'self'"));
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
        if got.header("content-type").unwrap().starts_with("text/html") {
            for attribute in ["src=\"", "href=\""] {
                wanted.extend(
                    got.text()
                        .split(attribute)
                        .skip(1)
                        .map(|rest| rest.split('"').next().unwrap().to_owned())
                        .filter(|link| link.starts_with('/')),
                );
            }
        }
        seen.push(path);
    }
    seen.sort();
    assert_eq!(seen, ["/", "/docs", "/docs.js", "/favicon.svg", "/page.css", "/page.js"]);
    host.stop().await;
}

#[actix_web::test]
async fn what_no_route_has_is_told_in_the_words_of_its_protocol() {
    let host = start();
    let got = host.get("/v1/nowhere").await;
    assert_eq!((got.status, got.json()["error"]["code"].clone()), (404, json!("route_not_found")));
    let got = host.get("/v1/chat/completions").await;
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
    assert_eq!(got.json()["error"]["code"], "method_not_allowed");
    let got = host.post("/healthz", json!({})).await;
    assert_eq!((got.status, got.header("allow")), (405, Some("GET, HEAD")));
    let head = host.client.head(host.url("/healthz")).send().await.unwrap();
    assert_eq!(head.status().as_u16(), 200);
    host.stop().await;
}

#[actix_web::test]
async fn health_and_metrics_are_there() {
    let host = start();
    let alive = host.get("/healthz").await.json();
    assert_eq!(alive["status"], "ok");
    let ready = host.get("/readyz").await.json();
    assert_eq!(ready["ready"], true);
    assert!(ready["parts"].as_array().unwrap().iter().any(|part| part["part"] == "store"));
    let metrics = host.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    host.stop().await;
}

#[actix_web::test]
async fn every_answer_is_named() {
    let host = start();
    for path in ["/healthz", "/v1/nowhere", "/v1/models/nobody"] {
        let got = host.client.get(host.url(path)).header("x-request-id", "mine-1").send().await.unwrap();
        assert_eq!(got.headers()["x-request-id"], "mine-1", "{path}");
        let made = host.client.get(host.url(path)).header("x-request-id", "not ok!").send().await.unwrap();
        assert_eq!(made.headers()["x-request-id"].len(), 36, "{path}");
    }
    host.stop().await;
}
