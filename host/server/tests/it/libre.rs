//! What LibreTranslate's routes refuse before any plugin is asked, in its words. Translations are in `tests/translates.rs`.

use crate::host::{Got, Running, start};
use serde_json::{Value, json};

async fn post(host: &Running, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let request = host.client.post(host.url(path)).header("content-type", kind).body(body);
    let got = Got::of(request.send().await.unwrap()).await;
    (got.status, got.json())
}

#[actix_web::test]
async fn a_request_is_refused_in_libretranslate_s_words() {
    let host = start();
    let asked = |more: Value| {
        let mut body = json!({"q": "x", "source": "en", "target": "es"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    for (more, error) in [
        (json!({"alternatives": 6}), "Invalid request: alternatives parameter must be <= 5"),
        (json!({"alternatives": 1_u64 << 40}), "Invalid request: alternatives parameter must be <= 5"),
        (json!({"alternatives": "many"}), "Invalid request: alternatives parameter is not a number"),
        (json!({"q": vec!["x"; 1001]}), "Invalid request: request (1001) exceeds text limit (1000)"),
        (json!({"format": "rtf"}), "rtf format is not supported"),
        (json!({"target": null, "alternatives": 6}), "Invalid request: missing target parameter"),
    ] {
        let answer = post(&host, "/translate", "application/json", asked(more)).await;
        assert_eq!(answer, (400, json!({"error": error})));
    }
    let form = "q=x&source=en&target=es&alternatives=six";
    let answer = post(&host, "/translate", "application/x-www-form-urlencoded", form).await;
    assert_eq!(answer.1["error"], "Invalid request: alternatives parameter is not a number");
    host.stop().await;
}

#[actix_web::test]
async fn a_file_is_refused_in_libretranslate_s_words() {
    let host = start();
    for (file, error) in [
        ("", "Invalid request: missing file parameter"),
        ("name=\"file\"; filename=\"\"", "Invalid request: empty file"),
        ("name=\"file\"; filename=\"a.docx\"", "Invalid request: file format not supported"),
        ("name=\"file\"; filename=\"a\"", "Invalid request: file format not supported"),
        ("name=\"file\"; filename=\"a.srt\"", "Invalid request: there is no subtitle in the file"),
    ] {
        let mut form = String::new();
        for head in ["name=\"source\"", "name=\"target\"", file] {
            if !head.is_empty() {
                form += &format!("--b\r\ncontent-disposition: form-data; {head}\r\n\r\nen\r\n");
            }
        }
        let answer =
            post(&host, "/translate_file", "multipart/form-data; boundary=b", form + "--b--\r\n").await;
        assert_eq!(answer, (400, json!({"error": error})), "{file}");
    }
    host.stop().await;
}

#[actix_web::test]
async fn who_asks_for_health_as_libretranslate_has_it_is_answered() {
    let host = start();
    assert_eq!(host.get("/health").await.json()["status"], "ok");
    assert_eq!(host.post("/health", json!({})).await.status, 405);
    host.stop().await;
}
