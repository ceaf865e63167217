//! One answer of a chat, streamed: asked for, shown as it comes, timed, and stopped by Ctrl+C.

use crate::client::{Client, failure_of, refused, unreachable};
use crate::exit::{Failure, Result};
use crate::sse::Events;
use crate::text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// An answer that has come to its end.
#[derive(Debug, Default)]
pub struct Answer {
    pub text: String,
    pub timings: Timings,
    /// Whether the person stopped it, or reads it no more.
    pub stopped: bool,
    pub finish_reason: Option<String>,
}

/// Where the time went, as this side saw it.
#[derive(Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the question.
    pub prompt: u64,
    /// Tokens of the answer.
    pub tokens: u64,
    /// From asking to the first text.
    pub first: Duration,
    /// From the first text to the end.
    pub rest: Duration,
    /// Which model answered, and why.
    pub route: String,
}

impl Timings {
    /// `9 tok · 112 tok/s · TTFT 62 ms · route smollm2 (only candidate)`
    pub fn line(&self) -> String {
        let mut parts = vec![format!("{} tok", self.tokens)];
        parts.extend(self.rate().map(|rate| format!("{rate:.0} tok/s")));
        parts.push(format!("TTFT {}", text::short(self.first)));
        if !self.route.is_empty() {
            parts.push(format!("route {}", self.route));
        }
        parts.join(" · ")
    }

    /// Tokens a second, the first not counted: it is in the time to it.
    pub fn rate(&self) -> Option<f64> {
        let (tokens, seconds) = (self.tokens.checked_sub(1)?, self.rest.as_secs_f64());
        (0 < tokens && 0.0 < seconds).then(|| tokens as f64 / seconds)
    }

    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.tokens,
            "tokens_per_second": self.rate(),
            "ttft_ms": self.first.as_secs_f64() * 1e3,
            "route": self.route,
        })
    }
}

/// Asks one server.
#[derive(Debug)]
pub struct Talk<'a> {
    client: &'a Client,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Talk<'a> {
    pub fn with(client: &'a Client) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
        let mut http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10));
        if client.address.is_local() {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| Failure::failed(format!("no HTTP client: {error}")))?;
        Ok(Self { client, http, runtime })
    }

    /// Asks, hands each piece of text to `show`, and waits for the end, or until `show` says that nobody reads it.
    pub fn ask(
        &self,
        model: &str,
        messages: &[Message],
        parameters: &Map<String, Value>,
        show: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Answer> {
        let mut body = parameters.clone();
        body.insert("model".to_owned(), model.into());
        body.insert("messages".to_owned(), json!(messages));
        body.insert("stream".to_owned(), true.into());
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        self.runtime.block_on(self.stream(&Value::Object(body), show))
    }

    async fn stream(&self, body: &Value, show: &mut dyn FnMut(&str) -> bool) -> Result<Answer> {
        let begin = Instant::now();
        let mut answer = Answer::default();
        let mut request =
            self.http.post(format!("{}/v1/chat/completions", self.client.address.url())).json(body);
        if let Some(key) = self.client.key() {
            request = request.bearer_auth(key);
        }
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let lost = |error: reqwest::Error| unreachable(&self.client.address, &error);
        let mut response = tokio::select! {
            response = request.send() => response.map_err(lost)?,
            _ = &mut interrupt => return Ok(Answer { stopped: true, ..answer }),
        };
        let headers = response.headers().clone();
        // The status of a stream is of its beginning, and says nothing of how it ends.
        let tell = |end: &str| self.client.tell("POST /v1/chat/completions", &headers, end);
        if !response.status().is_success() {
            let status = response.status();
            tell(status.as_str());
            return Err(refused(status.as_u16(), &response.text().await.unwrap_or_default()));
        }
        let decision = response.headers().get("x-route-decision").and_then(|value| value.to_str().ok());
        answer.timings.route = decision.map(route).unwrap_or_default();
        let mut events = Events::default();
        let mut first = None;
        let mut complete = false;
        loop {
            let bytes = tokio::select! {
                bytes = response.chunk() => bytes.map_err(lost)?,
                // Dropping the response closes the connection, which cancels the request.
                _ = &mut interrupt => { answer.stopped = true; None }
            };
            let Some(bytes) = bytes.filter(|_| !answer.stopped) else { break };
            for event in events.feed(&bytes) {
                if event == "[DONE]" {
                    complete = true;
                    continue;
                }
                let event: Value = serde_json::from_str(&event).map_err(|error| {
                    Failure::failed(format!("the server sent an event that is not JSON: {error}"))
                })?;
                if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
                    tell("failed within the stream");
                    return Err(failure_of(0, error, ""));
                }
                if let Some(text) =
                    event["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty())
                {
                    first.get_or_insert_with(Instant::now);
                    answer.text.push_str(text);
                    answer.stopped |= !show(text);
                }
                if let Some(reason) = event["choices"][0]["finish_reason"].as_str() {
                    answer.finish_reason = Some(reason.to_owned());
                }
                if let Some(usage) = event["usage"].as_object() {
                    let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or_default();
                    (answer.timings.prompt, answer.timings.tokens) =
                        (count("prompt_tokens"), count("completion_tokens"));
                }
            }
        }
        tell(match (answer.stopped, complete) {
            (true, _) => "stopped",
            (false, true) => "done",
            (false, false) => "broke off",
        });
        let end = Instant::now();
        let first = first.unwrap_or(end);
        (answer.timings.first, answer.timings.rest) = (first - begin, end - first);
        if complete || answer.stopped {
            Ok(answer)
        } else {
            Err(Failure::failed("the answer broke off before its end")
                .next("the log says more: `backplane logs`"))
        }
    }
}

/// From `smollm2; plugin=…; why="only candidate"; …` to `smollm2 (only candidate)`.
fn route(decision: &str) -> String {
    let model = decision.split(';').next().unwrap_or_default().trim();
    match decision.split_once("why=\"").and_then(|(_, rest)| rest.split_once('"')) {
        Some((why, _)) if !why.is_empty() => format!("{model} ({why})"),
        _ => model.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_stand_on_one_line() {
        let timings = Timings {
            prompt: 12,
            tokens: 9,
            first: Duration::from_millis(62),
            rest: Duration::from_millis(80),
            route: route("smollm2; plugin=dev.backplane.llama; why=\"only candidate\""),
        };
        assert_eq!(timings.line(), "9 tok · 100 tok/s · TTFT 62 ms · route smollm2 (only candidate)");
        assert_eq!(Timings::default().line(), "0 tok · TTFT 0 ms");
        assert_eq!(route("smollm2"), "smollm2");
    }
}
