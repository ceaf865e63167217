//! What a key with a token budget may ask for. A word is a token of the scripted model, whose context has 4096.

use crate::host::{Got, Running, start_with};
use serde_json::{Value, json};

/// Gives the parameters back that reached the model. One word.
const TELL: &str = r#"{"params":true}"#;

/// A host that wants keys, and a key.
struct Keyed {
    host: Running,
    key: String,
}

impl Keyed {
    async fn start(tokens: u64) -> Self {
        let host = start_with(&[("auth.enabled", "true")]);
        let mut keyed = Keyed { key: host.host.first_key().unwrap().secret, host };
        let limits = json!({ "tokens": { "tokens": tokens, "window": "total" } });
        let created = keyed.ask("/admin/v1/keys", json!({ "name": "ci", "limits": limits })).await.json();
        keyed.key = created["secret"].as_str().unwrap().to_owned();
        keyed
    }

    async fn ask(&self, path: &str, body: Value) -> Got {
        let key = format!("Bearer {}", self.key);
        self.host.post_with(path, &[("authorization", &key)], body.to_string()).await
    }

    async fn chat(&self, text: &str, more: Value) -> Got {
        let mut body = json!({ "model": "script", "messages": [{ "role": "user", "content": text }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask("/v1/chat/completions", body).await
    }

    /// The same question to a closed model and to an open one.
    async fn both(&self, text: &str, more: Value) -> [Got; 2] {
        self.host.host.unload("script").await.unwrap();
        let closed = self.chat(text, more.clone()).await;
        self.host.host.load("script", None).await.unwrap();
        [closed, self.chat(text, more).await]
    }
}

/// `max_tokens` of what reached the model.
fn most(got: &Got) -> Value {
    assert_eq!(got.status, 200, "{}", got.text());
    let body = got.json();
    let params = body["choices"][0]["message"]["content"].as_str().unwrap();
    serde_json::from_str::<Value>(params).unwrap()["max_tokens"].clone()
}

#[actix_web::test]
async fn a_small_budget_chats_without_max_tokens_until_it_ends() {
    let keyed = Keyed::start(100).await;
    for got in keyed.both(TELL, json!({})).await {
        assert_eq!(most(&got), json!(99), "what is left, less the prompt");
    }
    for got in keyed.both(TELL, json!({ "n": 4 })).await {
        assert_eq!(most(&got), json!(24), "for each of four");
    }
    let text = ["word"; 98].join(" ");
    for got in keyed.both(&text, json!({})).await {
        let choice = &got.json()["choices"][0];
        assert_eq!(choice["finish_reason"], "length", "{}", got.text());
        assert_eq!(choice["message"]["content"], "word word ");
    }
    let completion = json!({ "model": "script", "prompt": TELL });
    let seen = keyed.ask("/v1/completions", completion).await.json()["choices"][0]["text"].clone();
    let seen: Value = serde_json::from_str(seen.as_str().unwrap()).unwrap();
    assert_eq!(seen["max_tokens"], 16, "OpenAI's default");
    let text_of_95 = ["word"; 95].join(" ");
    let completion = json!({ "model": "script", "prompt": text_of_95 });
    let got = keyed.ask("/v1/completions", completion).await.json();
    assert_eq!(got["choices"][0]["text"], "word word word word word ", "which is no request: 5 are left");
    for got in keyed.both(&text, json!({ "n": 3 })).await {
        assert_eq!(
            (got.status, &got.json()["error"]["code"]),
            (400, &json!("limit_too_small")),
            "{}",
            got.text()
        );
        assert!(got.text().contains("at least 101"), "{}", got.text());
    }
    keyed.host.stop().await;
}

#[actix_web::test]
async fn max_tokens_are_to_be_had_or_refused_whether_the_model_is_open_or_not() {
    let keyed = Keyed::start(100).await;
    // More bytes than there are tokens.
    let long = format!("one two {}", "three".repeat(50));
    for got in keyed.both(&long, json!({ "max_tokens": 97 })).await {
        assert_eq!(got.status, 200, "{}", got.text());
    }
    for got in keyed.both(&long, json!({ "max_tokens": 98 })).await {
        assert_eq!(
            (got.status, &got.json()["error"]["code"]),
            (400, &json!("limit_too_small")),
            "{}",
            got.text()
        );
        assert!(got.text().contains("may cost 101"), "{}", got.text());
    }
    for got in keyed.both("one", json!({ "max_tokens": 20, "n": 5 })).await {
        assert_eq!(
            (got.status, &got.json()["error"]["code"]),
            (400, &json!("limit_too_small")),
            "{}",
            got.text()
        );
        assert!(got.text().contains("may cost 101"), "{}", got.text());
    }
    // Half of it is spent.
    let usage = json!({ "prompt_tokens": 20, "completion_tokens": 30 });
    let script = json!({ "chunks": [{ "content": "a" }, { "finish_reason": "stop" }], "usage": usage });
    assert_eq!(keyed.chat(&script.to_string(), json!({})).await.status, 200);
    for got in keyed.both("one", json!({ "max_tokens": 50 })).await {
        assert_eq!((got.status, &got.json()["error"]["code"]), (429, &json!("insufficient_quota")));
        for number in ["100", "50 are left", "may cost 51"] {
            assert!(got.text().contains(number), "{}", got.text());
        }
    }
    for got in keyed.both(TELL, json!({})).await {
        assert_eq!(most(&got), json!(49));
    }
    keyed.host.stop().await;
}

#[actix_web::test]
async fn a_budget_is_raised_at_once_and_what_is_spent_stays_spent() {
    let keyed = Keyed::start(100).await;
    let admin = keyed.host.host.first_key().unwrap().secret;
    let usage = json!({ "prompt_tokens": 20, "completion_tokens": 30 });
    let script = json!({ "chunks": [{ "content": "a" }, { "finish_reason": "stop" }], "usage": usage });
    assert_eq!(keyed.chat(&script.to_string(), json!({})).await.status, 200);
    assert_eq!(keyed.chat("one", json!({ "max_tokens": 90 })).await.status, 429);
    let mine = async || {
        let got = keyed.host.client.get(keyed.host.url("/admin/v1/whoami")).bearer_auth(&keyed.key).send();
        Got::of(got.await.unwrap()).await.json()
    };
    let me = mine().await;
    assert_eq!((&me["name"], &me["role"]), (&json!("ci"), &json!("user")));
    let budget = |limit: u64, left: u64| json!({ "limit": limit, "window": "total", "spent": 50, "reserved": 0, "remaining": left, "reset_seconds": null });
    assert_eq!(me["budget"], budget(100, 50));
    let path = format!("/admin/v1/keys/{}", me["key"].as_str().unwrap());
    let change = async |key: &str, body: Value| {
        let patch = keyed.host.client.patch(keyed.host.url(&path)).bearer_auth(key).body(body.to_string());
        Got::of(patch.send().await.unwrap()).await
    };
    let more = json!({ "limits": { "tokens": { "tokens": 200, "window": "total" } } });
    assert_eq!(change(&keyed.key, more.clone()).await.status, 403, "by nobody but an administrator");
    for (wrong, param) in [
        (json!({ "limits": { "tokens": { "tokens": 0, "window": "day" } } }), "limits.tokens.tokens"),
        (json!({ "limits": { "tokn": null } }), "limits.tokn"),
        (json!({ "limits": {}, "role": "admin" }), "role"),
    ] {
        let got = change(&admin, wrong).await;
        assert_eq!((got.status, &got.json()["error"]["param"]), (400, &json!(param)), "{}", got.text());
    }
    assert_eq!(mine().await["budget"], budget(100, 50));
    let got = change(&admin, more).await;
    assert_eq!((got.status, &got.json()["budget"]), (200, &budget(200, 150)), "{}", got.text());
    assert_eq!(mine().await["budget"], budget(200, 150));
    let raised = keyed.chat("one", json!({ "max_tokens": 90 })).await;
    assert_eq!(raised.status, 200, "{}", raised.text());
    keyed.host.stop().await;
}

#[actix_web::test]
async fn a_large_budget_changes_nothing_and_a_spent_one_opens_no_model() {
    let keyed = Keyed::start(10_000).await;
    for got in keyed.both(TELL, json!({})).await {
        assert_eq!(most(&got), json!(null), "the model knows its own limit");
    }
    let usage = json!({ "prompt_tokens": 4000, "completion_tokens": 6000 });
    let script = json!({ "chunks": [{ "finish_reason": "stop" }], "usage": usage });
    assert_eq!(keyed.chat(&script.to_string(), json!({ "max_tokens": 3000, "n": 3 })).await.status, 200);
    keyed.host.host.unload("script").await.unwrap();
    assert_eq!(keyed.chat("one", json!({})).await.status, 429);
    assert!(keyed.host.host.model("script").unwrap().running.is_none());
    keyed.host.stop().await;
}

#[actix_web::test]
async fn an_answer_that_a_budget_cut_is_not_kept_for_others() {
    let keyed = Keyed::start(100).await;
    for max_tokens in [json!(null), json!(50)] {
        let mut kept = Vec::new();
        for _ in 0..2 {
            let got = keyed.chat(TELL, json!({ "temperature": 0, "max_tokens": max_tokens })).await;
            assert_eq!(got.status, 200, "{}", got.text());
            kept.push(got.header("x-cache").unwrap().to_owned());
        }
        let expected = if max_tokens.is_null() { "miss" } else { "exact" };
        assert_eq!(kept[1], expected, "{max_tokens}");
    }
    keyed.host.stop().await;
}
