//! A streamed answer: from replies of the host to the body of a response.
//!
//! Nothing runs ahead of the reader: a piece is asked of the host when the connection can take one. A client that
//! leaves drops the body, and with it the replies, which cancels what they wait for.

use crate::error::{self, Dialect};
use crate::{fault, sse};
use backplane::{CacheOutcome, Chunk, Done, Error, LimitStatus, Next, Reply, Result, Route};
use bytes::{Bytes, BytesMut};
use futures::future::LocalBoxFuture;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How long a stream is silent at most: proxies close at 30 s or 60 s, impatient ones at 15 s.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How much is put together before it is written: a burst of pieces is one write, not many.
const BURST: usize = 16 * 1024;

/// How pieces are written. One encoder serves all the replies of a response: `source` says which.
pub(crate) trait Encoder: Unpin + 'static {
    /// The member of the request that the model reads: what is at fault when it is too long.
    const INPUT: Option<&'static str> = None;
    /// Who answers. Comes before the first piece.
    fn route(&mut self, source: usize, route: &Route);
    /// A piece.
    fn chunk(&mut self, source: usize, chunk: Chunk, out: &mut BytesMut) -> Result<()>;
    /// A reply is complete.
    fn done(&mut self, source: usize, done: Done, out: &mut BytesMut) -> Result<()>;
    /// All of them are.
    fn end(&mut self, out: &mut BytesMut) -> Result<()>;
}

/// Where a reply is.
enum Source {
    /// Being admitted, or its model being opened.
    Starting(LocalBoxFuture<'static, Result<Reply>>),
    Running(Box<Reply>),
    Ended,
}

/// What the head of a response tells of a reply.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub route: Route,
    pub cache: CacheOutcome,
    pub limits: Vec<LimitStatus>,
}

/// The body of a streamed response.
pub(crate) struct Body<E> {
    sources: Vec<Source>,
    encoder: E,
    out: BytesMut,
    head: Option<Head>,
    ended: bool,
    ping: Pin<Box<Sleep>>,
}

impl<E: Encoder> Body<E> {
    /// Asks for the replies. Returns when the first piece is there, so that what fails before it can still be told by
    /// a status, or when nothing came for so long that the client must hear something.
    ///
    /// # Errors
    /// What failed before the first piece.
    pub(crate) async fn start(
        replies: impl IntoIterator<Item = LocalBoxFuture<'static, Result<Reply>>>,
        encoder: E,
    ) -> Result<Self> {
        let mut body = Self {
            sources: replies.into_iter().map(Source::Starting).collect(),
            encoder,
            out: BytesMut::new(),
            head: None,
            ended: false,
            ping: Box::pin(tokio::time::sleep(PING_EVERY)),
        };
        std::future::poll_fn(|context| match body.poll_fill(context) {
            Poll::Pending => body.ping.as_mut().poll(context).map(Ok),
            filled => filled,
        })
        .await
        .map_err(Self::about)?;
        Ok(body)
    }

    /// What is known of the first reply, if it was admitted in time.
    pub(crate) fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Reads what is there. Ready when something is to be written, when all has ended, or when something failed.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut running = 0;
        for (index, source) in self.sources.iter_mut().enumerate() {
            loop {
                match source {
                    Source::Ended => break,
                    Source::Starting(reply) => match reply.as_mut().poll(context)? {
                        Poll::Pending => {
                            running += 1;
                            break;
                        }
                        Poll::Ready(reply) => {
                            self.encoder.route(index, &reply.route);
                            self.head.get_or_insert_with(|| Head {
                                route: reply.route.clone(),
                                cache: reply.cache,
                                limits: reply.limits.clone(),
                            });
                            *source = Source::Running(Box::new(reply));
                        }
                    },
                    Source::Running(_) if BURST <= self.out.len() => {
                        running += 1;
                        break;
                    }
                    Source::Running(reply) => match reply.poll_next(context)? {
                        Poll::Pending => {
                            running += 1;
                            break;
                        }
                        Poll::Ready(Next::Chunk(chunk)) => self.encoder.chunk(index, chunk, &mut self.out)?,
                        Poll::Ready(Next::Done(done)) => {
                            *source = Source::Ended;
                            self.encoder.done(index, done, &mut self.out)?;
                        }
                    },
                }
            }
        }
        if running == 0 {
            self.ended = true;
            self.encoder.end(&mut self.out)?;
        }
        if self.out.is_empty() && !self.ended { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn about(error: Error) -> Error {
        match E::INPUT {
            Some(input) => error::too_long(error, input),
            None => error,
        }
    }

    /// Tells of a failure inside the stream and ends it; without `[DONE]`, so that nobody takes it for complete.
    fn fail(&mut self, error: Error) {
        self.sources.clear();
        self.ended = true;
        sse::event_text(&error::body(&Self::about(error), Dialect::OpenAi), &mut self.out);
    }
}

impl<E: Encoder> futures::Stream for Body<E> {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = &mut *self;
        if body.out.is_empty() && !body.ended {
            // What a panic left half done is cleared.
            let filled = catch_unwind(AssertUnwindSafe(|| body.poll_fill(context)));
            match filled.unwrap_or_else(|panic| {
                body.out.clear();
                Poll::Ready(Err(fault::panicked(&*panic)))
            }) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => body.fail(error),
                Poll::Pending => {
                    ready!(body.ping.as_mut().poll(context));
                    body.out.extend_from_slice(sse::PING);
                }
            }
        }
        if body.out.is_empty() {
            return Poll::Ready(None);
        }
        body.ping.as_mut().reset(Instant::now() + PING_EVERY);
        Poll::Ready(Some(Ok(body.out.split().freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, StreamExt as _};

    struct Nothing;

    impl Encoder for Nothing {
        fn route(&mut self, _: usize, _: &Route) {}
        fn chunk(&mut self, _: usize, _: Chunk, _: &mut BytesMut) -> Result<()> {
            Ok(())
        }
        fn done(&mut self, _: usize, _: Done, _: &mut BytesMut) -> Result<()> {
            Ok(())
        }
        fn end(&mut self, _: &mut BytesMut) -> Result<()> {
            Ok(())
        }
    }

    #[actix_web::test]
    async fn a_panic_inside_a_stream_is_its_last_event() {
        let mut body = Body {
            sources: vec![Source::Starting(async { panic!("a secret") }.boxed_local())],
            encoder: Nothing,
            out: BytesMut::new(),
            head: None,
            ended: false,
            ping: Box::pin(tokio::time::sleep(PING_EVERY)),
        };
        let mut text = String::new();
        while let Some(Ok(bytes)) = body.next().await {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        let error: serde_json::Value = serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "panic");
        assert!(!text.contains("secret") && !text.contains("[DONE]"), "{text}");
    }
}
