//! Server-sent events of an answer, as they come.
//!
//! # Source
//! WHATWG HTML, 9.2.6. Only `data` matters here; lines are bounded, since a server may send one without end.

use crate::client::Client;
use crate::fault;
use backplane_plugin::prelude::*;
use futures::{StreamExt, TryStreamExt};
use std::io;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

/// Most bytes of a line: far above what any piece of an answer takes.
const MAX_LINE: usize = 8 << 20;

/// The events of an answer.
pub struct Events<'a> {
    client: &'a Client,
    lines: futures::stream::BoxStream<'static, Result<String, LinesCodecError>>,
    data: String,
}

impl<'a> Events<'a> {
    pub fn new(client: &'a Client, answer: reqwest::Response) -> Self {
        let bytes = answer.bytes_stream().map_err(io::Error::other);
        let lines =
            FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(MAX_LINE)).boxed();
        Self { client, lines, data: String::new() }
    }

    /// The data of the next event. `None` at the end: whether that was the end of the answer is for others to say.
    ///
    /// # Errors
    /// When the connection breaks, the server says nothing for too long, or a line has no end.
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            let line = tokio::time::timeout(self.client.idle_timeout, self.lines.next()).await;
            let line = match line.map_err(|_| self.client.silent())? {
                None => return Ok(None),
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    return Err(fault::malformed(&self.client.name, "a line of its stream has no end"));
                }
                Some(Err(LinesCodecError::Io(error))) => {
                    return Err(
                        match error.get_ref().and_then(|error| error.downcast_ref::<reqwest::Error>()) {
                            Some(error) => self.client.lost(error),
                            None => fault::malformed(&self.client.name, error),
                        },
                    );
                }
                Some(Ok(line)) => line,
            };
            if line.is_empty() {
                if !self.data.is_empty() {
                    return Ok(Some(std::mem::take(&mut self.data)));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                if MAX_LINE < self.data.len() {
                    return Err(fault::malformed(&self.client.name, "an event of its stream has no end"));
                }
            }
        }
    }
}
