//! An upstream that misbehaves on command: `mode` of a request, which the plugin passes on, says how.
//!
//! HTTP/1.1 by hand, a thread for each connection, since what is to be broken here is what a library would mend.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test helper fails by panicking")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the plugin sent.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    /// The header `authorization`.
    pub key: String,
    /// The header `x-site`, which the tests configure.
    pub site: String,
    /// The header `x-request-id`.
    pub id: String,
    /// The JSON of it, or null.
    pub body: Value,
    /// What came behind the JSON, where `inference-header-content-length` said that it ends.
    pub binary: Vec<u8>,
    /// Whether the connection was closed before the answer was complete.
    pub left: bool,
}

pub struct Upstream {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

/// What is answered: a status with headers, and pieces with what happens between them.
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    steps: Vec<Step>,
}

#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Closes the connection in the middle.
    Cut,
}

pub fn json_reply(status: u16, body: &Value) -> Reply {
    Reply { status, headers: Vec::new(), steps: vec![send(body.to_string())] }
}

pub fn bytes_reply(status: u16, body: Vec<u8>) -> Reply {
    Reply { status, headers: Vec::new(), steps: vec![Step::Send(body)] }
}

impl Reply {
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Upstream {
    /// Answers as [`well_behaved`] and its modes do.
    pub fn start() -> Self {
        Self::answering(well_behaved)
    }

    pub fn answering(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (answer, log) = (Arc::new(answer), seen.clone());
        let connections: Arc<AtomicUsize> = Arc::default();
        let count = connections.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || _ = converse(stream, &*answer, &log));
            }
        });
        Self { url, seen, connections }
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The requests so far, but for those that ask what models there are.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| !seen.path.ends_with("/models")).cloned().collect()
    }

    /// Whether `ready` came true of the requests within ten seconds.
    pub fn wait_until(&self, ready: impl Fn(&[Seen]) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if ready(&self.seen()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

fn converse(
    stream: TcpStream,
    answer: &dyn Fn(&Seen) -> Reply,
    log: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let Some(seen) = read(&mut reader)? else { return Ok(()) };
        let place = {
            let mut log = log.lock().unwrap();
            log.push(seen.clone());
            log.len() - 1
        };
        let reply = answer(&seen);
        if write(&mut writer, reply).is_err() {
            log.lock().unwrap()[place].left = true;
            return Ok(());
        }
    }
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut json) = (0, None);
    let (mut key, mut site, mut id) = (String::new(), String::new(), String::new());
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "content-length" => length = value.parse().unwrap(),
            "inference-header-content-length" => json = Some(value.parse().unwrap()),
            "authorization" => key = value.to_owned(),
            "x-site" => site = value.to_owned(),
            "x-request-id" => id = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let binary = body.split_off(json.unwrap_or(length));
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Some(Seen { path, key, site, id, body, binary, left: false }))
}

fn write(writer: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\ntransfer-encoding: chunked\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    writer.write_all(format!("{head}\r\n").as_bytes())?;
    for step in reply.steps {
        match step {
            Step::Send(bytes) => {
                write!(writer, "{:x}\r\n", bytes.len())?;
                writer.write_all(&bytes)?;
                writer.write_all(b"\r\n")?;
            }
            Step::Wait(wait) => {
                // Notices, meanwhile, that the other side has left.
                writer.set_read_timeout(Some(wait))?;
                if let Ok(0) = writer.peek(&mut [0]) {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
            }
            Step::Cut => {
                writer.shutdown(std::net::Shutdown::Both)?;
                return Ok(());
            }
        }
    }
    writer.set_read_timeout(None)?;
    writer.write_all(b"0\r\n\r\n")
}

fn send(text: impl Into<String>) -> Step {
    Step::Send(text.into().into_bytes())
}

/// An event of a stream.
pub fn event(data: &Value) -> Step {
    send(format!("data: {data}\n\n"))
}

/// A stream of events with its end.
pub fn stream_reply(events: &[Value]) -> Reply {
    let steps = events.iter().map(event).chain([send("data: [DONE]\n\n")]).collect();
    Reply { status: 200, headers: vec![("content-type", "text/event-stream".to_owned())], steps }
}

fn piece(chat: bool, index: usize, text: &str, finish: Option<&str>) -> Value {
    let mut choice = json!({"index": index, "finish_reason": finish, "logprobs": null});
    match chat {
        true => choice["delta"] = json!({"content": text}),
        false => choice["text"] = text.into(),
    }
    json!({"object": "chunk", "choices": [choice]})
}

fn usage() -> Value {
    json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2}})
}

/// What a good upstream answers, and each way of being none.
pub fn well_behaved(seen: &Seen) -> Reply {
    let done = || send("data: [DONE]\n\n");
    let body = &seen.body;
    if seen.path.ends_with("/models") {
        return json_reply(200, &json!({"data": [{"id": "m", "max_model_len": 512}, {"id": "other"}]}));
    }
    if seen.path.ends_with("/embeddings") {
        let rows = body["input"].as_array().unwrap().iter().enumerate();
        let rows = rows.map(|(index, _)| json!({"index": index, "embedding": [index as f32, 0.5]}));
        return json_reply(200, &json!({"data": rows.collect::<Vec<_>>(), "usage": {"prompt_tokens": 4}}));
    }
    let chat = seen.path.ends_with("/chat/completions");
    let words = ["Hello", " from", " upstream"];
    let streamed = |pieces: Vec<Step>| Reply {
        status: 200,
        headers: vec![("content-type", "text/event-stream".to_owned())],
        steps: pieces,
    };
    let say = |index, text: &str| event(&piece(chat, index, text, None));
    let stop = |index| event(&piece(chat, index, "", Some("stop")));
    match body["mode"].as_str().unwrap_or_default() {
        "cut" => return streamed(vec![say(0, "half"), Step::Cut]),
        "forgets" => return streamed(vec![say(0, "half"), done()]),
        "no done" => return streamed(vec![say(0, "all"), stop(0)]),
        "silent" => return streamed(vec![say(0, "half"), Step::Wait(Duration::from_secs(60))]),
        "never begins" => return streamed(vec![Step::Wait(Duration::from_secs(60))]),
        "no end of line" => {
            return streamed((0..12).map(|_| send(format!("data: {}", "x".repeat(1 << 20)))).collect());
        }
        "no json" => return streamed(vec![send("data: {\"choices\":\n\n")]),
        "error inside" => {
            return streamed(vec![say(0, "half"), event(&json!({"error": {"message": "out of memory"}}))]);
        }
        "key inside" => {
            return streamed(vec![event(&json!({"error": {"message": format!("bad key {}", seen.key)}}))]);
        }
        "choices" => return streamed(vec![say(7, "seven"), stop(7), done()]),
        "comments" => {
            let noise = send(": ping\r\nevent: x\r\nid: 3\r\n\r\n");
            return streamed(vec![noise.clone(), say(0, "all"), noise, stop(0), done()]);
        }
        "byte by byte" => {
            let text = format!(
                "data: {}\r\n\r\ndata: {}\n\n",
                piece(chat, 0, "Grüße", None),
                piece(chat, 0, "", Some("stop"))
            );
            // Cut between the bytes of a character, too.
            return streamed(text.bytes().map(|byte| Step::Send(vec![byte])).collect());
        }
        "slow" => {
            let mut steps: Vec<_> =
                (0..1000).flat_map(|_| [say(0, "la "), Step::Wait(Duration::from_millis(20))]).collect();
            steps.extend([stop(0), done()]);
            return streamed(steps);
        }
        "tools" => {
            let call =
                |delta: Value| event(&json!({"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]}));
            let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]});
            return streamed(vec![
                call(
                    json!({"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}),
                ),
                call(json!({"index": 0, "function": {"arguments": "{\"a\""}})),
                call(json!({"index": 0, "function": {"arguments": ":1}"}})),
                event(&end),
                done(),
            ]);
        }
        "reasons" => {
            let delta = json!({"choices": [{"index": 0, "delta": {"reasoning_content": "because", "content": null}}]});
            return streamed(vec![event(&delta), say(0, "so"), stop(0), done()]);
        }
        _ => {}
    }
    if let Some(status) = body["status"].as_u64() {
        let message = body["says"].as_str().unwrap_or("no").replace("{key}", &seen.key);
        let said = json!({"error": {"message": message, "param": body["at"], "code": body["code"]}});
        let reply = json_reply(status as u16, &said);
        return match body["after"].as_str() {
            Some(after) => reply.header("retry-after", after),
            None => reply,
        };
    }
    let choices = body["n"].as_u64().unwrap_or(1) as usize;
    let logprob = |word: &str| {
        json!({"token": word, "logprob": -0.5, "bytes": null,
            "top_logprobs": [{"token": word, "logprob": -0.5, "bytes": word.as_bytes()}]})
    };
    if body["stream"] == true {
        let mut steps = Vec::new();
        for word in words {
            for index in 0..choices {
                let mut said = piece(chat, index, word, None);
                if body["logprobs"] == true {
                    said["choices"][0]["logprobs"] = json!({"content": [logprob(word)]});
                }
                steps.push(event(&said));
            }
        }
        steps.extend((0..choices).map(stop));
        steps.extend([event(&json!({"choices": [], "usage": usage()})), done()]);
        return streamed(steps);
    }
    let whole = (0..choices).map(|index| {
        let mut choice = piece(chat, index, &words.concat(), Some("stop"))["choices"][0].take();
        if chat {
            choice["message"] = choice["delta"].take();
            choice.as_object_mut().unwrap().remove("delta");
            if body["logprobs"] == true {
                choice["logprobs"] = json!({"content": words.map(logprob)});
            }
        }
        choice
    });
    json_reply(200, &json!({"choices": whole.collect::<Vec<_>>(), "usage": usage()}))
}
