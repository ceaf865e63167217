//! Pictures by their address, through the routes that take pictures.

use crate::host::{Got, start, start_with};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

const DATA: &str = "data:image/png;base64,iVBORw==";

/// Where a picture is, on a port of this machine.
fn site() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/a.png", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines();
            lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).for_each(drop);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
            stream.write_all(&[head.as_bytes(), b"\x89PNG"].concat()).unwrap();
        }
    });
    address
}

#[actix_web::test]
async fn every_route_that_takes_pictures_takes_their_address() {
    let url = site();
    let host = url.trim_start_matches("http://").trim_end_matches("/a.png");
    let (hosts, networks) = (format!("[\"{host}\"]"), "[\"127.0.0.0/8\"]");
    let server = start_with(&[("fetch.hosts", &hosts), ("fetch.networks", networks)]);

    let got = server.post("/v1/vision/ocr", json!({ "image": url })).await;
    assert_eq!(got.json()["params"]["image"], DATA, "{}", got.text());
    let got = server.post("/v1/vision/embed", json!({ "images": ["AAAA", url] })).await;
    assert_eq!(got.json()["params"]["images"], json!(["AAAA", DATA]), "{}", got.text());

    let form = |name: &str| {
        format!("--xx\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{url}\r\n--xx--\r\n")
    };
    let multipart = [("content-type", "multipart/form-data; boundary=xx")];
    let sent = server.client.post(server.url("/v1/vision/ocr")).header(multipart[0].0, multipart[0].1);
    let got = Got::of(sent.body(form("image")).send().await.unwrap()).await;
    assert_eq!(got.json()["params"]["image"], DATA, "{}", got.text());
    let sent = server.client.post(server.url("/ocr")).header(multipart[0].0, multipart[0].1);
    let got = Got::of(sent.body(form("image_data")).send().await.unwrap()).await;
    assert_eq!(
        (got.status, got.text()),
        (200, "{}"),
        "nothing was read: the model only gives its parameters back"
    );

    let message = json!([{ "role": "user", "content": [
        { "type": "text", "text": "what is this?" },
        { "type": "image_url", "image_url": { "url": url } },
    ] }]);
    let seen = json!({ "model": "acme/script:2", "messages": message });
    let got = server.post("/v1/chat/completions", seen).await;
    assert_eq!(got.status, 200, "{}", got.text());
    server.stop().await;
}

#[actix_web::test]
async fn a_chat_with_pictures_goes_to_a_model_that_sees_or_is_refused_by_name() {
    let route = |name: &str| format!("models.routes.{name}.models");
    let (both, blind) = (route("both"), route("blind"));
    let server = start_with(&[(&both, "[\"script\", \"acme/script:2\"]"), (&blind, "[\"script\"]")]);
    let said = |model: Option<&str>, part: Value| {
        let messages = json!([{ "role": "user", "content": [{ "type": "text", "text": "what?" }, part] }]);
        match model {
            Some(model) => json!({ "model": model, "messages": messages }),
            None => json!({ "messages": messages }),
        }
    };
    let picture = json!({ "type": "image_url", "image_url": { "url": DATA } });
    // The first request of all opens the model: what it says of itself is known before.
    for asked in [None, Some("acme/script:2"), Some("both")] {
        let got = server.post("/v1/chat/completions", said(asked, picture.clone())).await;
        assert_eq!(got.status, 200, "{asked:?}: {}", got.text());
        assert_eq!(got.headers["x-model"], "acme/script:2", "{asked:?}");
    }
    let address = json!({ "type": "image_url", "image_url": { "url": "http://127.0.0.1:9/a.png" } });
    for (asked, who) in
        [("script", "model `script` does not see"), ("blind", "no model of route `blind` sees")]
    {
        // Nothing is fetched for it: that is off, and would be what is complained of.
        let got = server.post("/v1/chat/completions", said(Some(asked), address.clone())).await;
        let error = &got.json()["error"];
        assert_eq!((got.status, error["code"].as_str()), (400, Some("pictures_not_supported")), "{error}");
        assert_eq!(error["param"], "messages[0].content[1]");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(who) && message.contains("`acme/script:2` does"), "{message}");
    }
    let got = server.post("/v1/chat/completions", said(Some("nobody"), picture)).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (404, &json!("model_not_found")));
    let models = server.get("/v1/models").await.json();
    let of =
        |name: &str| models["data"].as_array().unwrap().iter().find(|model| model["id"] == name).unwrap();
    assert_eq!(of("acme/script:2")["modalities"], json!(["text", "image"]));
    assert_eq!(of("script").get("modalities"), None);
    server.stop().await;
}

#[actix_web::test]
async fn without_a_setting_addresses_are_refused_by_where_they_stand() {
    let (server, url) = (start(), site());
    let part = json!({ "type": "image_url", "image_url": { "url": url } });
    let chat = json!({ "model": "acme/script:2", "messages": [{ "role": "user", "content": [part] }] });
    for (path, body, param) in [
        ("/v1/vision/ocr", json!({ "image": url }), "image"),
        ("/v1/vision/embed", json!({ "images": ["AAAA", url] }), "images[1]"),
        ("/v1/chat/completions", chat, "messages[0].content[0].image_url.url"),
    ] {
        let got = server.post(path, body).await;
        assert_eq!(got.status, 400, "{}", got.text());
        let error = &got.json()["error"];
        assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("fetch_disabled"), Some(param)));
        assert!(error["message"].as_str().unwrap().contains("`fetch.hosts`"), "{error}");
    }
    server.stop().await;
}

#[actix_web::test]
async fn a_form_may_have_several_pictures() {
    let server = start();
    let file = |name: &str, data: &str| {
        format!(
            "--xx\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n\r\n{data}\r\n"
        )
    };
    let body =
        [file("image", "one"), file("images", "two"), file("file", ""), "--xx--\r\n".to_owned()].concat();
    let sent = server.client.post(server.url("/v1/vision/embed"));
    let sent =
        sent.header("content-type", "multipart/form-data; boundary=xx").body(body).send().await.unwrap();
    let got = Got::of(sent).await;
    // The model gives its tensors back.
    assert_eq!((got.status, &got.json()["image"]), (200, &json!(["one", "two", ""])), "{}", got.text());
    server.stop().await;
}
