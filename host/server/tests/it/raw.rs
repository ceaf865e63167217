//! HTTP by hand: bytes to a socket, and answers read from it.

use crate::host::Running;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Longer than any time-out that a test sets.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection of which the test knows every byte.
pub struct Raw(BufReader<TcpStream>);

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of a failure, in OpenAI's body; with the id that every answer has.
    pub fn code(&self) -> String {
        assert!(self.header("x-request-id").is_some_and(|id| 8 < id.len()), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }
}

impl Raw {
    pub fn to(host: &Running) -> Self {
        let stream = TcpStream::connect(host.address.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends what the server may stop to take on the way.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())
    }

    /// The next answer; `None` when the server has closed instead.
    pub fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let mut line = self.line()?;
        // An interim answer tells the client to go on, and is not what is asked for here.
        while line.starts_with("HTTP/1.1 100 ") {
            self.line();
            line = self.line()?;
        }
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut answer = Answer {
            status: status.unwrap_or_else(|| panic!("{line}")),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line().unwrap();
            let Some((name, value)) = line.split_once(": ") else { break };
            answer.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        if method == "HEAD" || answer.status == 204 {
            return Some(answer);
        }
        if let Some(length) = answer.header("content-length") {
            answer.body.resize(length.parse().unwrap(), 0);
            self.0.read_exact(&mut answer.body).unwrap();
        } else {
            assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "{answer:?}");
            loop {
                let size = usize::from_str_radix(&self.line().unwrap(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                self.0.read_exact(&mut chunk).unwrap();
                answer.body.extend(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        }
        Some(answer)
    }

    /// The next answer.
    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET").expect("an answer, not the end")
    }

    /// The server closes, and says nothing more before.
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end too.
        self.0.read_to_end(&mut rest).ok();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// Closes the sending side.
    pub fn shut(&mut self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        match read {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

/// Sends all of it on a connection of its own; the first answer, after which the server must close.
pub fn refused(host: &Running, bytes: impl AsRef<[u8]>) -> Answer {
    let mut raw = Raw::to(host);
    raw.send(bytes);
    let answer = raw.answer();
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    raw.expect_end();
    answer
}
