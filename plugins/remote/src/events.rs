//! Server-sent events of an answer, as they come.
//!
//! # Source
//! WHATWG HTML, 9.2.6. Only `data` matters here; lines are bounded, since a server may send one without end.

use crate::client::{Client, piece};
use crate::fault;
use crate::memory::{Limit, Share};
use crate::transport::Response;
use backplane_plugin::prelude::*;
use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;

/// Most bytes of a line: far above what any piece of an answer takes.
const MAX_LINE: usize = 8 << 20;

/// The events of an answer.
pub struct Events<'a> {
    client: &'a Client,
    limit: Limit,
    pieces: Incoming,
    /// What came and has not been read as lines; up to `searched` it has no end of a line.
    rest: BytesMut,
    searched: usize,
    data: String,
    share: Share,
}

impl<'a> Events<'a> {
    pub fn new(client: &'a Client, answer: Response, limit: Limit) -> Self {
        let pieces = answer.into_body();
        let (rest, data, share) = (BytesMut::new(), String::new(), client.share());
        Self { client, limit, pieces, rest, searched: 0, data, share }
    }

    /// The data of the next event. `None` at the end: whether that was the end of the answer is for others to say.
    ///
    /// # Errors
    /// When the connection breaks, the server says nothing for too long, or an event has no end or too many values.
    pub async fn next(&mut self) -> Result<Option<String>> {
        while let Some(line) = self.line().await? {
            let line = std::str::from_utf8(&line).map_err(|error| self.malformed(&error))?;
            if line.is_empty() {
                if !self.data.is_empty() {
                    return self.event().map(Some);
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                if MAX_LINE < self.data.len() {
                    return Err(self.malformed(&"an event of its stream has no end"));
                }
            }
        }
        Ok(None)
    }

    /// Takes the event that is complete.
    fn event(&mut self) -> Result<String> {
        let data = std::mem::take(&mut self.data);
        let values = self.client.count(data.as_bytes(), self.limit)?;
        // Held until the next piece is asked for: by then it has been read and handed over.
        self.hold(self.rest.len() + data.len() + values)?;
        Ok(data)
    }

    /// The next line, without its end; one that the connection's end cuts short is none.
    async fn line(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.rest.split_to(self.searched + end + 1).freeze();
                line.truncate(line.len() - if line.ends_with(b"\r\n") { 2 } else { 1 });
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.rest.len();
            self.hold(self.rest.len() + self.data.len())?;
            let next = tokio::time::timeout(self.client.idle_timeout, piece(&mut self.pieces));
            match next.await.map_err(|_| self.client.silent())? {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.lost(&error)),
                Some(Ok(piece)) if MAX_LINE < self.rest.len() + piece.len() => {
                    return Err(self.malformed(&"a line of its stream has no end"));
                }
                Some(Ok(piece)) => {
                    self.hold(self.rest.len() + piece.len() + self.data.len())?;
                    self.rest.extend_from_slice(&piece);
                }
            }
        }
    }

    fn hold(&mut self, bytes: usize) -> Result<()> {
        self.client.hold(&mut self.share, bytes)
    }

    fn malformed(&self, what: &dyn std::fmt::Display) -> Error {
        fault::malformed(&self.client.name, what)
    }
}
