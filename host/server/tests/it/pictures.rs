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

#[actix_web::test]
async fn the_parameters_of_a_picture_stand_in_the_query_and_none_is_passed_over() {
    let server = start();
    let ask = async |path: &str, kind: &'static str, body: &'static [u8]| {
        let mut sent = server.client.post(server.url(path)).header("x-strict", "true").body(body);
        if !kind.is_empty() {
            sent = sent.header("content-type", kind);
        }
        Got::of(sent.send().await.unwrap()).await
    };
    let query = "min_score=0.25&labels=cat&labels=dog&draw=false&model=script&theirs=x%26y";
    let expected = json!({ "min_score": 0.25, "labels": ["cat", "dog"], "draw": false, "theirs": "x&y" });
    for kind in ["image/png", "Image/JPEG; q=1", "application/octet-stream"] {
        let got = ask(&format!("/v1/vision/detect?{query}"), kind, b"\x89PNG").await;
        let told = got.json();
        assert_eq!(
            (got.status, &told["params"], &told["model"]),
            (200, &expected, &json!("script")),
            "{kind}"
        );
    }
    let got = ask("/v1/vision/classify?top_k=2", "application/json", b"{\"image\":\"AAAA\"}").await;
    assert_eq!(got.json()["params"], json!({ "image": "AAAA", "top_k": 2 }));
    for (query, param) in [("top_k=two", "top_k"), ("top_k=1&top_k=2", "top_k"), ("model=a&model=b", "model")]
    {
        let got = ask(&format!("/v1/vision/classify?{query}"), "image/png", b"\x89PNG").await;
        assert_eq!((got.status, &got.json()["error"]["param"]), (400, &json!(param)), "{query}");
    }
    let got =
        ask("/v1/vision/classify?top_k=1", "application/json", b"{\"image\":\"AAAA\",\"top_k\":2}").await;
    assert_eq!(got.json()["error"]["code"], "duplicate_param", "{}", got.text());

    // `/ocr` has its parameters in the form, as RapidOCR's.
    let form = b"--xx\r\ncontent-disposition: form-data; name=\"image_data\"\r\n\r\nAAAA\r\n--xx--\r\n";
    let got = ask("/ocr?use_det=false", "multipart/form-data; boundary=xx", form).await;
    assert_eq!((got.status, &got.json()["error"]["param"]), (400, &json!("use_det")), "{}", got.text());
    server.stop().await;
}

#[actix_web::test]
async fn several_pictures_are_answered_in_a_list() {
    let server = start();
    let asked = json!({ "images": ["AAAA", "AAAB"], "top_k": 1 });
    let got = server.post("/v1/vision/classify", asked.clone()).await;
    assert_eq!(got.json()["results"][0]["params"], asked, "{}", got.text());
    assert_eq!(got.json()["model"], "script");
    let got = server.post("/v1/vision/classify", json!({ "images": ["AAAA"] })).await;
    assert_eq!(got.json()["results"].as_array().unwrap().len(), 1, "a list is answered with a list");
    let got = server.post("/v1/vision/classify", json!({ "image": "AAAA" })).await;
    assert_eq!(got.json()["params"], json!({ "image": "AAAA" }), "{}", got.text());
    server.stop().await;
}

#[actix_web::test]
async fn what_is_no_picture_is_told_what_the_route_takes() {
    let server = start();
    let picture: &[u8] = &[b"\x89PNG\r\n".as_slice(), &b"[{".repeat(100)].concat();
    for (kind, body, status, says) in [
        (
            "application/x-www-form-urlencoded",
            picture,
            415,
            "is `application/x-www-form-urlencoded`, and it is no JSON",
        ),
        ("text/plain; charset=utf-8", picture, 415, "is `text/plain`"),
        ("", picture, 415, "has no `content-type`"),
        ("", b"", 400, "the body is empty"),
        ("image/png", b"", 400, "the body is empty"),
        ("multipart/form-data; boundary=xx", b"", 400, "the body is empty"),
    ] {
        let mut sent = server.client.post(server.url("/v1/vision/ocr")).body(body.to_vec());
        if !kind.is_empty() {
            sent = sent.header("content-type", kind);
        }
        let got = Got::of(sent.send().await.unwrap()).await;
        let told = got.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(got.status, status, "{kind}: {told}");
        assert!(
            told.contains(says) && told.contains("`multipart/form-data`") && told.contains("`image/"),
            "{told}"
        );
    }
    let got = Got::of(
        server.client.post(server.url("/v1/chat/completions")).body(picture.to_vec()).send().await.unwrap(),
    );
    let told = got.await.json();
    assert_eq!(told["error"]["code"], "invalid_json", "a picture is not told that it nests: {told}");
    // JSON is read whatever it is called, as everywhere.
    let sent = server.client.post(server.url("/v1/vision/ocr")).body(r#" {"image":"AAAA"}"#);
    assert_eq!(Got::of(sent.send().await.unwrap()).await.status, 200);
    server.stop().await;
}
