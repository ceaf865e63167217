//! Every HTTP route: each path of `/openapi.json` is asked here, or the test fails.

use crate::document::Document;
use crate::normalise::{self, Rules};
use crate::shell::{Serving, hide, quoted};
use regex::Regex;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Asks a server and writes down what it was asked.
struct Caller<'a> {
    document: &'a mut Document,
    server: &'a Serving,
    client: Client,
    /// Methods and paths.
    asked: BTreeSet<(String, String)>,
}

impl Caller<'_> {
    fn send(&mut self, method: &str, path: &str, key: Option<&str>, body: Option<&Value>) -> Response {
        self.asked.insert((method.to_lowercase(), path.to_owned()));
        let mut request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.server.url));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().unwrap()
    }

    fn line(method: &str, path: &str, body: Option<&Value>) -> String {
        let method = match (method, body) {
            ("GET", None) | ("POST", Some(_)) => String::new(),
            _ => format!("-X {method} "),
        };
        let body = body.map(|body| format!(" -d {}", quoted(&body.to_string()))).unwrap_or_default();
        format!("curl {method}$URL{path}{body}")
    }

    /// Asks for JSON, and expects this status; a model's own words stand at `words`.
    fn ask(&mut self, method: &str, path: &str, body: Option<Value>, status: u16, words: &[&str]) -> Value {
        let key = self.server.key.clone();
        self.ask_as(Some(&key), method, path, body, status, words)
    }

    fn ask_as(
        &mut self,
        key: Option<&str>,
        method: &str,
        path: &str,
        body: Option<Value>,
        status: u16,
        words: &[&str],
    ) -> Value {
        let answer = self.send(method, path, key, body.as_ref());
        let got = answer.status().as_u16();
        let kind = header(&answer, "content-type").unwrap_or_else(|| "no body".to_owned());
        let more: String = ["x-ignored-params", "allow", "x-should-retry"]
            .iter()
            .filter_map(|name| Some(format!(", {name}: {}", header(&answer, name)?)))
            .collect();
        let text = answer.text().unwrap();
        assert_eq!(got, status, "{method} {path}: {text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let mut shown = value.clone();
        hide(&mut shown, words);
        let shown = match shown {
            Value::Null => normalise::text(&text, Rules { machine: true }),
            shown => normalise::json(&shown, Rules { machine: true }),
        };
        self.document.step(&Self::line(method, path, body.as_ref()), &shown, &format!("{got} {kind}{more}"));
        value
    }

    /// A stream of events; a model's words in them are not compared.
    fn stream(&mut self, path: &str, body: Value) {
        let key = self.server.key.clone();
        let answer = self.send("POST", path, Some(&key), Some(&body));
        let end =
            format!("{} {}", answer.status().as_u16(), header(&answer, "content-type").unwrap_or_default());
        let text = answer.text().unwrap();
        self.document.step(&Self::line("POST", path, Some(&body)), &normalise::events(&text), &end);
    }

    /// A page or another file: its first line.
    fn page(&mut self, path: &str, status: u16, shown: impl Fn(&str) -> String) {
        let key = self.server.key.clone();
        let answer = self.send("GET", path, Some(&key), None);
        let end =
            format!("{} {}", answer.status().as_u16(), header(&answer, "content-type").unwrap_or_default());
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let text = shown(&answer.text().unwrap());
        self.document.step(&Self::line("GET", path, None), &text, &end);
    }
}

fn header(answer: &Response, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().unwrap_or("?").to_owned())
}

fn first_line(text: &str) -> String {
    format!("{}\n…", text.lines().next().unwrap_or_default())
}

/// Returns what was asked.
pub fn write(document: &mut Document, server: &Serving) -> BTreeSet<(String, String)> {
    document.chapter(
        "The HTTP routes",
        "Sent with `Authorization: Bearer $KEY`, and with `Content-Type: application/json` where there is a body. `$URL` is \
         the server's. In the brackets stand the status, the type of what came, and headers that say more.",
    );
    let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
    let mut caller = Caller { document, server, client, asked: BTreeSet::new() };
    openai(&mut caller);
    capabilities(&mut caller);
    translation(&mut caller);
    open_inference(&mut caller);
    administration(&mut caller);
    host(&mut caller);
    refused(&mut caller);
    caller.asked
}

/// The one route that ends the server, after all others were `asked`.
pub fn stop(document: &mut Document, server: &Serving, asked: BTreeSet<(String, String)>) {
    document.chapter("The end", "The server stops taking requests, finishes those it has, and ends.");
    document.section("The route", "");
    let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
    let mut caller = Caller { document, server, client, asked };
    // First the list of all, which nobody can be asked for afterwards.
    let key = server.key.clone();
    let listed: Value = caller.send("GET", "/openapi.json", Some(&key), None).json().unwrap();
    caller.ask("POST", "/admin/v1/shutdown", None, 200, &[]);
    every_path_was_asked(&caller.asked, &listed);
}

const QUESTION: &str = "What is the capital of France? Answer in one sentence.";

fn chat() -> Value {
    json!({"model": "smollm2", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 4})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn openai(caller: &mut Caller<'_>) {
    caller.document.section("OpenAI", "");
    let words = "/choices/0/message/content";
    caller.ask("POST", "/v1/chat/completions", Some(chat()), 200, &[words]);
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    caller.stream("/v1/chat/completions", with(chat(), more));
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "city", "strict": true, "schema": schema}});
    let counts = ["/usage/completion_tokens", "/usage/total_tokens"];
    let answer = caller.ask(
        "POST",
        "/v1/chat/completions",
        Some(with(chat(), json!({"response_format": format, "max_tokens": 40}))),
        200,
        &[words, counts[0], counts[1]],
    );
    let city: Value =
        serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(city["city"].is_string(), "{city}");
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": schema}});
    let choice = json!({"type": "function", "function": {"name": "weather"}});
    let call = "/choices/0/message/tool_calls/0/function/arguments";
    caller.ask(
        "POST",
        "/v1/chat/completions",
        Some(with(
            chat(),
            json!({"tools": [tool], "tool_choice": choice, "parallel_tool_calls": false, "max_tokens": 100}),
        )),
        200,
        &[call, counts[0], counts[1]],
    );
    let logprobs =
        json!({"max_tokens": 1, "logprobs": true, "top_logprobs": 1, "user": "somebody", "store": true});
    let logged = "/choices/0/logprobs/content/0";
    let (token, bytes) = (format!("{logged}/token"), format!("{logged}/bytes"));
    let (top, top_bytes) =
        (format!("{logged}/top_logprobs/0/token"), format!("{logged}/top_logprobs/0/bytes"));
    let hidden = [words, &token, &bytes, &top, &top_bytes];
    caller.ask("POST", "/v1/chat/completions", Some(with(chat(), logprobs)), 200, &hidden);
    let prompt = json!({"model": "smollm2", "prompt": "One, two, three,", "temperature": 0, "max_tokens": 4});
    caller.ask("POST", "/v1/completions", Some(prompt), 200, &["/choices/0/text"]);
    let texts = json!({"model": "minilm", "input": ["a guitar", "a musical instrument"]});
    caller.ask("POST", "/v1/embeddings", Some(texts), 200, &[]);
    let base64 = json!({"model": "minilm", "input": "a guitar", "encoding_format": "base64"});
    caller.ask("POST", "/v1/embeddings", Some(base64), 200, &["/data/0/embedding"]);
    // No model of this state looks at pictures.
    for task in ["detect", "classify", "faces", "embed"] {
        let picture = json!({"image": "iVBORw0KGgo="});
        caller.ask("POST", &format!("/v1/vision/{task}"), Some(picture), 404, &[]);
    }
    caller.ask("GET", "/v1/models", None, 200, &[]);
    caller.ask("GET", "/v1/models/smollm2", None, 200, &[]);
}

fn capabilities(caller: &mut Caller<'_>) {
    caller.document.section(
        "Any capability",
        "What a plugin offers has its route, whether or not the host has heard of it.",
    );
    caller.ask("GET", "/v1/capabilities", None, 200, &[]);
    caller.ask("GET", "/v1/capabilities/echo", None, 200, &[]);
    let echo = json!({"params": {"text": "hello"}, "tensors": [
        {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]});
    caller.ask("POST", "/v1/capabilities/echo", Some(echo), 200, &[]);
    caller.stream("/v1/capabilities/echo", json!({"params": {"text": "hello", "chunks": 3}, "stream": true}));
    let chat = json!({"model": "smollm2", "params": {"temperature": 0, "max_tokens": 2, "messages": [
        {"role": "user", "content": QUESTION}]}, "stream": true});
    caller.stream("/v1/capabilities/chat", chat);
    let complete = json!({"model": "smollm2", "params": {"temperature": 0, "max_tokens": 2, "prompt": "One, two,"}, "stream": true});
    caller.stream("/v1/capabilities/complete", complete);
    caller.ask(
        "POST",
        "/v1/capabilities/embed",
        Some(json!({"model": "minilm", "params": {"input": ["a guitar"]}})),
        200,
        &[],
    );
    let tensors = json!({"model": "minilm", "tensors": [
        {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [101, 2858, 102]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [1, 3], "data": [1, 1, 1]},
        {"name": "token_type_ids", "datatype": "INT64", "shape": [1, 3], "data": [0, 0, 0]}]});
    caller.ask("POST", "/v1/capabilities/tensor.infer", Some(tensors), 200, &[]);
    let said = json!({"model": "whatlang", "params": {"text": ["Where does this sentence come from?"]}});
    caller.ask("POST", "/v1/capabilities/language.detect", Some(said), 200, &[]);
    caller.ask("POST", "/v1/capabilities/language.list", Some(json!({"model": "translator"})), 200, &[]);
    let house = json!({"model": "apertium", "params": {"text": ["The house is big."], "source": "en", "target": "es"}});
    caller.ask("POST", "/v1/capabilities/translate", Some(house), 200, &[]);
    let nearest = json!({"params": {"operation": "list"}});
    caller.ask("POST", "/v1/capabilities/vector.search", Some(nearest), 200, &[]);
    // Its kernel runs on a GPU alone, and there is none here.
    let picture = json!({"params": {"width": 1, "height": 1, "regions": [{"from": [0, 0, 1, 1], "to": [0, 0, 1, 1]}]},
        "tensors": [{"name": "picture", "datatype": "UINT8", "shape": [1, 1, 3], "data": [255, 0, 0]}]});
    caller.ask("POST", "/v1/capabilities/image.prepare", Some(picture), 503, &[]);
    // Pages that are read stand in `tests/vision`: here no model reads.
    caller.ask("POST", "/v1/vision/ocr", Some(json!({"image": "aGVsbG8="})), 404, &[]);
    caller.ask("POST", "/ocr", Some(json!({"image": "aGVsbG8="})), 400, &[]);
}

fn open_inference(caller: &mut Caller<'_>) {
    caller
        .document
        .section("Open Inference Protocol", "Version 2 over HTTP; Triton's additions are answered too.");
    for path in ["/v2", "/v2/health/live", "/v2/health/ready"] {
        caller.ask("GET", path, None, 200, &[]);
    }
    caller.ask("POST", "/v2/repository/index", Some(json!({"ready": false})), 200, &[]);
    caller.ask("POST", "/v2/repository/models/minilm/load", Some(json!({})), 200, &[]);
    for path in [
        "/v2/models/minilm",
        "/v2/models/minilm/versions/1",
        "/v2/models/minilm/ready",
        "/v2/models/minilm/versions/1/ready",
        "/v2/models/minilm/config",
        "/v2/models/minilm/versions/1/config",
    ] {
        caller.ask("GET", path, None, 200, &[]);
    }
    let tensor = |name: &str, data: [i64; 3]| json!({"name": name, "datatype": "INT64", "shape": [1, 3], "data": data});
    let request = json!({"id": "mine", "inputs": [tensor("input_ids", [101, 2858, 102]),
        tensor("attention_mask", [1, 1, 1]), tensor("token_type_ids", [0, 0, 0])]});
    caller.ask("POST", "/v2/models/minilm/infer", Some(request.clone()), 200, &[]);
    caller.ask("POST", "/v2/models/minilm/versions/1/infer", Some(request), 200, &[]);
    for path in ["/v2/models/stats", "/v2/models/minilm/stats", "/v2/models/minilm/versions/1/stats"] {
        caller.ask("GET", path, None, 200, &[]);
    }
    caller.ask("GET", "/v2/trace/setting", None, 200, &[]);
    caller.ask("POST", "/v2/trace/setting", Some(json!({"trace_level": ["TIMESTAMPS"]})), 400, &[]);
    caller.ask("GET", "/v2/models/minilm/trace/setting", None, 200, &[]);
    caller.ask("POST", "/v2/models/minilm/trace/setting", Some(json!({})), 200, &[]);
    caller.ask("GET", "/v2/logging", None, 200, &[]);
    caller.ask("POST", "/v2/logging", Some(json!({"log_verbose_level": 1})), 400, &[]);
    caller.ask("GET", "/v2/systemsharedmemory/status", None, 200, &[]);
    caller.ask("GET", "/v2/systemsharedmemory/region/mine/status", None, 200, &[]);
    let region = json!({"key": "/mine", "offset": 0, "byte_size": 4});
    caller.ask("POST", "/v2/systemsharedmemory/region/mine/register", Some(region), 400, &[]);
    caller.ask("POST", "/v2/systemsharedmemory/region/mine/unregister", None, 200, &[]);
    caller.ask("POST", "/v2/systemsharedmemory/unregister", None, 200, &[]);
    caller.ask("POST", "/v2/repository/models/minilm/unload", Some(json!({})), 200, &[]);
}

fn administration(caller: &mut Caller<'_>) {
    caller.document.section("Administration", "For admin keys only.");
    caller.ask("GET", "/admin/v1/whoami", None, 200, &[]);
    caller.ask("GET", "/admin/v1/models/magika/plan", None, 200, &[]);
    caller.ask("POST", "/admin/v1/models/magika/load", Some(json!({"keep_alive": "1m"})), 200, &[]);
    caller.ask("GET", "/admin/v1/models/magika", None, 200, &[]);
    caller.ask("POST", "/admin/v1/models/magika/unload", None, 200, &[]);
    caller.ask("GET", "/admin/v1/models", None, 200, &[]);
    caller.ask("POST", "/admin/v1/refresh", None, 200, &[]);
    caller.ask("GET", "/admin/v1/plugins", None, 200, &[]);
    caller.ask("POST", "/admin/v1/plugins/dev.backplane.echo/upgrade", None, 409, &[]);
    caller.ask("GET", "/admin/v1/plugins/dev.backplane.echo/upgrade", None, 404, &[]);
    caller.ask("DELETE", "/admin/v1/plugins/dev.backplane.echo/quarantine", None, 200, &[]);
    let limits = json!({"name": "web-app", "limits": {"requests_per_minute": 1}, "expires_in": "30d"});
    let key = caller.ask("POST", "/admin/v1/keys", Some(limits), 201, &["/id"]);
    let id = key["id"].as_str().unwrap().to_owned();
    caller.document.name(&id, "<key>");
    caller.ask("GET", "/admin/v1/keys", None, 200, &[]);
    let secret = key["secret"].as_str().unwrap();
    let ask = json!({"params": {"text": "x"}});
    caller
        .document
        .section("Limits of a key", "With the key just made: one request a minute, and no administration.");
    caller.ask_as(Some(secret), "POST", "/v1/capabilities/echo", Some(ask.clone()), 200, &[]);
    caller.ask_as(Some(secret), "POST", "/v1/capabilities/echo", Some(ask), 429, &[]);
    caller.ask_as(Some(secret), "GET", "/admin/v1/keys", None, 403, &[]);
    caller.document.section("Administration, continued", "");
    let more = json!({"limits": {"requests_per_minute": 60, "tokens": {"tokens": 1000, "window": "day"}}});
    caller.ask("PATCH", &format!("/admin/v1/keys/{id}"), Some(more), 200, &["/budget/reset_seconds"]);
    caller.ask("DELETE", &format!("/admin/v1/keys/{id}"), None, 200, &[]);
    caller.page("/admin/v1/config", 200, |text| {
        let value: Value = serde_json::from_str(text).unwrap();
        let members: Vec<&String> = value.as_object().unwrap().keys().collect();
        format!("an object with {members:?}; its text is what `backplane config show` prints")
    });
    caller.ask("POST", "/admin/v1/config/reload", None, 200, &[]);
    caller.ask("POST", "/admin/v1/cache/flush", None, 200, &[]);
    caller.ask("GET", "/admin/v1/health", None, 200, &[]);
}

fn translation(caller: &mut Caller<'_>) {
    caller.document.section("LibreTranslate", "Words in English, by Apertium's pair English-Spanish.");
    let text = json!({"q": "The house is big.", "source": "en", "target": "es"});
    caller.ask("POST", "/translate", Some(text.clone()), 200, &[]);
    let html = json!({"q": ["<p>The <b>house</b></p>"], "source": "en", "target": "es", "format": "html"});
    caller.ask("POST", "/translate", Some(html), 200, &[]);
    caller.ask("POST", "/translate", Some(json!({"q": "x", "source": "en", "target": "xx"})), 400, &[]);
    caller.ask_as(None, "POST", "/translate", Some(text), 400, &[]);
    caller.ask("POST", "/detect", Some(json!({"q": "Où est la gare, s'il vous plaît ?"})), 200, &[]);
    caller.page("/languages", 200, |text| {
        let languages: Value = serde_json::from_str(text).unwrap();
        let languages = languages.as_array().unwrap();
        let english = languages.iter().find(|language| language["code"] == "en").unwrap();
        let targets = english["targets"].as_array().unwrap().len();
        format!(
            "{} languages; `{}` ({}) can be translated into {targets}",
            languages.len(),
            english["code"],
            english["name"]
        )
    });
    caller.ask("POST", "/translate_file", Some(json!({"source": "en", "target": "es"})), 400, &[]);
    caller.ask("GET", "/download_file/nothing.md", None, 404, &[]);
    caller.ask("GET", "/frontend/settings", None, 200, &[]);
}

fn host(caller: &mut Caller<'_>) {
    caller
        .document
        .section("The host", "Pages need no network: fonts, styles and scripts are in the program.");
    caller.ask("GET", "/healthz", None, 200, &[]);
    caller.ask("GET", "/readyz", None, 200, &[]);
    caller.page("/metrics", 200, normalise::metrics);
    caller.page("/openapi.json", 200, |text| {
        let document: Value = serde_json::from_str(text).unwrap();
        let mut lines = vec![format!("OpenAPI {}, with these paths:", document["openapi"].as_str().unwrap())];
        for (path, methods) in document["paths"].as_object().unwrap() {
            let methods: Vec<String> =
                methods.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect();
            lines.push(format!("{:<10} {path}", methods.join(" ")));
        }
        lines.join("\n")
    });
    for path in ["/", "/page.css", "/page.js", "/docs", "/docs.js", "/favicon.svg"] {
        caller.page(path, 200, first_line);
    }
}

fn refused(caller: &mut Caller<'_>) {
    caller.document.section("Bad requests", "Each says which field, and what would be right.");
    caller.ask_as(None, "GET", "/v1/models", None, 401, &[]);
    caller.ask("GET", "/v1/nothing", None, 404, &[]);
    caller.ask("DELETE", "/v1/models", None, 405, &[]);
    for (change, status) in [
        (json!({"model": "smolm2"}), 404),
        (json!({"model": "minilm"}), 400),
        (json!({"temperature": 9}), 400),
        (json!({"max_tokens": "many"}), 400),
        (json!({"messages": []}), 400),
        (json!({"messages": [{"role": "user", "content": "word ".repeat(5000)}]}), 400),
    ] {
        let body = with(chat(), change.clone());
        let long = change.to_string().len() > 200;
        if long {
            caller.document.name("word ".repeat(5000), "(5000 words)");
        }
        caller.ask("POST", "/v1/chat/completions", Some(body), status, &[]);
    }
    let tensor = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]});
    caller.ask("POST", "/v2/models/minilm/infer", Some(tensor), 400, &[]);
}

/// Every operation of the document that the server itself gives was asked above.
fn every_path_was_asked(asked: &BTreeSet<(String, String)>, document: &Value) {
    let parameter = Regex::new(r"\\\{\w+\\\}").unwrap();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let pattern = parameter.replace_all(&regex::escape(path), "[^/]+").into_owned();
        let pattern = Regex::new(&format!("^{pattern}$")).unwrap();
        operations.extend(methods.as_object().unwrap().keys().map(|method| (method, path, pattern.clone())));
    }
    // Of several paths that fit, the one with the fewest parameters is meant.
    let meant = |(method, asked): &(String, String)| {
        let fit = operations.iter().filter(|(other, _, pattern)| *other == method && pattern.is_match(asked));
        fit.min_by_key(|(_, path, _)| path.matches('{').count()).map(|(method, path, _)| (*method, *path))
    };
    let asked: BTreeSet<_> = asked.iter().filter_map(meant).collect();
    // Each capability has a path of its own, which stands for this one.
    let any = (&"post".to_owned(), &"/v1/capabilities/{capability}".to_owned());
    let all = operations.iter().map(|(method, path, _)| (*method, *path));
    let missing: Vec<_> = all.filter(|operation| *operation != any && !asked.contains(operation)).collect();
    assert!(missing.is_empty(), "not in docs/acceptance.md: {missing:?}");
}
