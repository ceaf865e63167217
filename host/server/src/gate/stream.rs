//! A TCP connection of which only what the inspector lets through can be read, and which gives up on slow clients.
//!
//! A head that is refused is replaced by a request of the gate's own, which `mod.rs` answers with the refusal: so the
//! answer has its place behind those of earlier requests. A body that is refused ends early, and the handler that
//! reads it is told why. One request is passed on at a time: actix-http frames an answer by the request it read last,
//! which need not be the one that is answered.

use super::connection::Connection;
use super::inspect::{Inspector, Seen};
use super::refusal::Refusal;
use super::{Open, Rules};
use actix_web::rt::net::TcpStream;
use bytes::{Buf as _, BytesMut};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a closed connection is still read, so that the client sees the last answer and not a reset.
const LINGER: Duration = Duration::from_secs(2);
/// What is read at a time of what cannot be passed on yet.
const PIECE: usize = 4096;

/// See the module.
pub(crate) struct Gated {
    io: TcpStream,
    rules: Rc<Rules>,
    inspector: Inspector,
    connection: Rc<Connection>,
    /// Read, and not passed on.
    held: BytesMut,
    /// So much of it may be.
    cleared: usize,
    end: End,
    wait: Wait,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Runs while the client does not read.
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

/// How the reading side ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It goes on.
    Not,
    /// The next request is refused, as soon as the one before is answered.
    Refuse(Refusal),
    /// The gate's own request has been passed on.
    Refused,
    /// The body ends here.
    Cut,
    /// The client has left.
    Gone,
}

/// For what the client is awaited, and since when.
#[derive(Clone, Copy, Debug)]
struct Wait {
    what: What,
    since: Instant,
    /// When bytes came last, as far as was looked.
    last: Instant,
    bytes: u64,
    /// Some came since that look.
    fresh: bool,
}

impl Wait {
    fn new(what: What, now: Instant) -> Self {
        Self { what, since: now, last: now, bytes: 0, fresh: false }
    }

    fn got(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.fresh = true;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    FirstByte,
    Header,
    Body,
    /// The next request: the time for that is actix-http's keep-alive.
    Nothing,
}

impl Gated {
    pub(super) fn new(io: TcpStream, rules: Rc<Rules>, open: Open) -> Self {
        // Pieces of a stream are small, and each is awaited by a person.
        io.set_nodelay(true).ok();
        let end = open.refusal().map_or(End::Not, End::Refuse);
        Self {
            io,
            inspector: Inspector::new(rules.limits),
            rules,
            connection: Rc::default(),
            held: BytesMut::new(),
            cleared: 0,
            end,
            wait: Wait::new(What::FirstByte, Instant::now()),
            alarm: None,
            stalled: None,
            lingering: None,
            _open: open,
        }
    }

    pub(super) fn connection(&self) -> Rc<Connection> {
        Rc::clone(&self.connection)
    }

    /// The next request may not be passed on yet.
    fn must_wait(&self) -> bool {
        self.inspector.between_requests() && self.connection.is_busy()
    }

    /// Keeps what a look has found out.
    fn note(&mut self, seen: &Seen) {
        if seen.head {
            self.connection.begin();
            self.wait.what = What::Nothing;
        }
        if let Some(refusal) = seen.refusal {
            self.refuse(refusal);
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        if self.inspector.in_body() {
            self.connection.refuse_body(refusal);
            self.end = End::Cut;
        } else {
            self.end = End::Refuse(refusal);
        }
    }

    /// Puts the gate's own request in the place of what was refused.
    fn replace(&mut self, refusal: Refusal) {
        let first = self.held[..].split(|byte| *byte == b'\n').next().unwrap_or_default();
        let method = if first.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
        let oip = first.split(|byte| *byte == b' ').nth(1).is_some_and(|path| path.starts_with(b"/v2/"));
        let path = if oip { "/v2/refused" } else { "/refused" };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\r\n");
        self.held.clear();
        self.held.extend_from_slice(request.as_bytes());
        self.cleared = request.len();
        self.connection.refuse_head(refusal);
        self.connection.begin();
        self.end = End::Refused;
    }

    /// Reads from the socket, to be passed on at once as far as possible. Ready when something was, or the end is known.
    fn poll_through(&mut self, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, out))?;
        let read = &out.filled()[before..];
        if read.is_empty() {
            self.end = End::Gone;
            return Poll::Ready(Ok(()));
        }
        self.wait.got(read.len());
        let seen = self.inspector.inspect(read);
        self.held.extend_from_slice(&read[seen.pass..]);
        out.set_filled(before + seen.pass);
        self.note(&seen);
        Poll::Ready(Ok(()))
    }

    /// Reads from the socket what cannot be passed on yet.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.io.poll_read_ready(context))?;
        let mut piece = [0; PIECE];
        let mut piece = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.io).poll_read(context, &mut piece))?;
        if piece.filled().is_empty() {
            self.end = End::Gone;
        } else {
            self.wait.got(piece.filled().len());
            self.held.extend_from_slice(piece.filled());
        }
        Poll::Ready(Ok(()))
    }

    /// The client has sent nothing: ready when it has been given enough time.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<Option<Refusal>> {
        let what = match self.wait.what {
            What::FirstByte if self.wait.bytes == 0 => What::FirstByte,
            _ if self.inspector.in_body() => What::Body,
            _ if self.inspector.in_head() => What::Header,
            _ => What::Nothing,
        };
        let now = Instant::now();
        if what != self.wait.what {
            self.wait = Wait::new(what, now);
        } else if std::mem::take(&mut self.wait.fresh) {
            self.wait.last = now;
        }
        let Some((deadline, refusal)) = self.deadline() else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(context).map(|()| refusal)
    }

    /// Until when the client is awaited, and what it is told then.
    fn deadline(&self) -> Option<(Instant, Option<Refusal>)> {
        let (wait, rules) = (&self.wait, &self.rules);
        match wait.what {
            What::Nothing => None,
            What::FirstByte => Some((wait.since + rules.first_byte, None)),
            What::Header => {
                Some((wait.since + rules.header, Some(Refusal::SlowHeader { limit: rules.header })))
            }
            What::Body => {
                let silent = (wait.last + rules.body, Refusal::SilentBody { limit: rules.body });
                let late = (wait.since + rules.body_total, Refusal::LateBody { limit: rules.body_total });
                let slow = wait.bytes.checked_div(rules.body_rate).map(|seconds| {
                    let earned = rules.body + Duration::from_secs(seconds);
                    (wait.since + earned, Refusal::SlowBody { rate: rules.body_rate })
                });
                [Some(silent), Some(late), slow]
                    .into_iter()
                    .flatten()
                    .min_by_key(|(deadline, _)| *deadline)
                    .map(|(deadline, refusal)| (deadline, Some(refusal)))
            }
        }
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        loop {
            if gate.cleared != 0 {
                let size = gate.cleared.min(out.remaining());
                out.put_slice(&gate.held[..size]);
                gate.held.advance(size);
                gate.cleared -= size;
                return Poll::Ready(Ok(()));
            }
            match gate.end {
                End::Not => {}
                End::Refuse(refusal) => {
                    if gate.connection.is_busy() {
                        gate.connection.wait(context);
                        return Poll::Pending;
                    }
                    gate.replace(refusal);
                    continue;
                }
                // Once that is answered, actix-http closes.
                End::Refused => return Poll::Pending,
                End::Cut => return Poll::Ready(Ok(())),
                End::Gone => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
            if gate.inspector.ended() {
                gate.held.clear();
            }
            let wait = gate.must_wait();
            if !wait && !gate.held.is_empty() {
                let seen = gate.inspector.inspect(&gate.held);
                gate.cleared = seen.pass;
                gate.note(&seen);
                if gate.cleared != 0 || seen.refusal.is_some() {
                    continue;
                }
            }
            let before = out.filled().len();
            let read = if wait || !gate.held.is_empty() || gate.inspector.ended() {
                if gate.rules.held <= gate.held.len() {
                    // Enough for now; the next answer goes on with it.
                    gate.connection.wait(context);
                    return Poll::Pending;
                }
                gate.poll_hold(context)
            } else {
                gate.poll_through(context, out)
            };
            match read {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if gate.must_wait() && !gate.held.is_empty() {
                        gate.connection.wait(context);
                    }
                    match ready!(gate.poll_patience(context)) {
                        Some(refusal) => gate.refuse(refusal),
                        // It has not said a word, and gets none.
                        None => gate.end = End::Cut,
                    }
                }
            }
            if matches!(gate.end, End::Gone) {
                // What came before is served if that takes no waiting; the rest is cancelled.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if before != out.filled().len() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Gated {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.io).poll_write(context, bytes);
        if written.is_ready() {
            gate.stalled = None;
            return written;
        }
        let send = gate.rules.send;
        let stalled = gate.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(send)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    /// Says that nothing more is sent, then reads for a while what is still on its way: to close before that would
    /// reset the connection, and the client might never see the answer.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if gate.lingering.is_none() {
            ready!(Pin::new(&mut gate.io).poll_shutdown(context))?;
        }
        let lingering = gate.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut piece = [0; PIECE];
        while lingering.as_mut().poll(context).is_pending() {
            let mut piece = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut gate.io).poll_read(context, &mut piece)) {
                Ok(()) if !piece.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
