//! Reads the bytes of a connection as HTTP/1.1 and says which of them may be passed on, before any other parser sees
//! them.
//!
//! Pure: no I/O, no clock. Every rule decides by the bytes up to the one that breaks it, so the verdict does not depend
//! on how the bytes were cut into reads. What is passed on has one reading only: one host, one length, lines that end
//! with CRLF, one space between words. Every request of a connection is read, and bodies are followed by their framing.

use super::refusal::Refusal;
use actix_web::http::Uri;

/// Longest line that gives the size of a chunk, its extensions included.
const CHUNK_LINE: usize = 256;
/// Bytes of framing that any chunked body may have; beyond, each must carry four bytes of payload.
const CHUNK_SLACK: u64 = 16 * 1024;
const CHUNK_RATIO: u64 = 4;
/// A method and a version beside the longest target.
const REQUEST_LINE_REST: usize = 64;

/// What a request may be at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the request's target.
    pub uri: usize,
    /// Bytes of all header fields together, and of all trailer fields.
    pub header: usize,
    /// How many header fields.
    pub fields: usize,
    /// Bytes of the body, framing not counted.
    pub body: u64,
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Inspector {
    limits: Limits,
    state: State,
    /// Where the line that is being read starts, and up to where it has no end; from the first byte not passed on.
    line: usize,
    searched: usize,
}

/// What comes next.
#[derive(Debug)]
enum State {
    /// A request line. One empty line may stand before it: some old clients end a body with one.
    RequestLine {
        blank: bool,
    },
    Fields(Head),
    /// So many bytes of a body.
    Sized {
        left: u64,
        last: bool,
    },
    ChunkSize(Chunks),
    ChunkData(Chunks, u64),
    ChunkEnd(Chunks),
    Trailers(Chunks, Section),
    /// Nothing: the last request of the connection has been.
    Ended,
}

/// What a head has said so far.
#[derive(Debug)]
struct Head {
    section: Section,
    /// HTTP/1.1, not 1.0.
    eleven: bool,
    post: bool,
    /// The authority of a target that is a whole URI.
    authority: Option<Vec<u8>>,
    host: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

/// Fields read so far.
#[derive(Clone, Copy, Debug, Default)]
struct Section {
    count: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Chunks {
    payload: u64,
    framing: u64,
    last: bool,
}

/// The outcome of one look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// So many of the bytes may be passed on. The others are to be shown again, with more behind them.
    pub pass: usize,
    /// A head is among them, whole.
    pub head: bool,
    /// What comes after them is not to be passed on, ever.
    pub refusal: Option<Refusal>,
}

impl Inspector {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: State::RequestLine { blank: false }, line: 0, searched: 0 }
    }

    /// Between two requests, as far as bytes were shown.
    pub(crate) fn between_requests(&self) -> bool {
        matches!(self.state, State::RequestLine { blank: false }) && self.searched == 0
    }

    /// Inside a head of which not all has come.
    pub(crate) fn in_head(&self) -> bool {
        matches!(self.state, State::RequestLine { .. } | State::Fields(_)) && !self.between_requests()
    }

    /// Inside a body of which not all has come.
    pub(crate) fn in_body(&self) -> bool {
        !matches!(self.state, State::RequestLine { .. } | State::Fields(_) | State::Ended)
    }

    /// The client said that no request follows; what follows is to be thrown away.
    pub(crate) fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Looks at all bytes that were not passed on. Stops behind the end of a request, and at what it refuses.
    pub(crate) fn inspect(&mut self, bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        loop {
            match self.step(bytes, &mut seen) {
                Ok(()) if self.between_requests() || self.ended() => break,
                Ok(()) => {}
                Err(Stop::More) => break,
                Err(Stop::Refuse(refusal)) => {
                    seen.refusal = Some(refusal);
                    break;
                }
            }
        }
        seen
    }

    /// One line, or one piece of a body.
    fn step(&mut self, bytes: &[u8], seen: &mut Seen) -> Result<(), Stop> {
        let rest = &bytes[seen.pass..];
        let limits = self.limits;
        match &mut self.state {
            State::Ended => return Err(Stop::More),
            State::RequestLine { blank } => {
                let line = next_line(
                    rest,
                    &mut self.line,
                    &mut self.searched,
                    limits.uri + REQUEST_LINE_REST,
                    Refusal::UriTooLong { limit: limits.uri },
                )?;
                match (line.is_empty(), *blank) {
                    (true, false) => *blank = true,
                    (true, true) => return Err(Refusal::RequestLine.into()),
                    (false, _) => self.state = State::Fields(Head::read(line, limits)?),
                }
            }
            State::Fields(head) => {
                let too_large = Refusal::HeaderTooLarge { limit: limits.header };
                let room = limits.header.saturating_sub(head.section.bytes);
                let line = next_line(rest, &mut self.line, &mut self.searched, room, too_large)?;
                if !line.is_empty() {
                    head.section.count(line, limits)?;
                    head.field(line)?;
                } else {
                    let next = head.end(limits)?;
                    seen.head = true;
                    self.passed(next, self.line, seen);
                }
            }
            State::Sized { left, last } => {
                let (taken, last) = (count(rest.len()).min(*left), *last);
                *left -= taken;
                seen.pass += size(taken);
                if *left != 0 {
                    return Err(Stop::More);
                }
                self.finish(last);
            }
            State::ChunkSize(chunks) => {
                let line =
                    next_line(rest, &mut self.line, &mut self.searched, CHUNK_LINE, Refusal::ChunkLine)?;
                let size = chunks.read(line, limits)?;
                let next = match size {
                    0 => State::Trailers(*chunks, Section::default()),
                    _ => State::ChunkData(*chunks, size),
                };
                self.passed(next, self.line, seen);
            }
            State::ChunkData(chunks, left) => {
                let taken = count(rest.len()).min(*left);
                *left -= taken;
                seen.pass += size(taken);
                if *left != 0 {
                    return Err(Stop::More);
                }
                self.state = State::ChunkEnd(*chunks);
            }
            State::ChunkEnd(chunks) => {
                // Room for the CR alone.
                let line = next_line(rest, &mut self.line, &mut self.searched, 1, Refusal::ChunkLine)?;
                if !line.is_empty() {
                    return Err(Refusal::ChunkLine.into());
                }
                let next = State::ChunkSize(*chunks);
                self.passed(next, self.line, seen);
            }
            State::Trailers(chunks, section) => {
                let too_large = Refusal::HeaderTooLarge { limit: limits.header };
                let room = limits.header.saturating_sub(section.bytes);
                let line = next_line(rest, &mut self.line, &mut self.searched, room, too_large)?;
                let last = chunks.last;
                if !line.is_empty() {
                    section.count(line, limits)?;
                    name_and_value(line)?;
                    seen.pass += std::mem::take(&mut self.line);
                    self.searched = 0;
                } else {
                    seen.pass += self.line;
                    self.finish(last);
                }
            }
        }
        Ok(())
    }

    fn passed(&mut self, next: State, length: usize, seen: &mut Seen) {
        seen.pass += length;
        (self.line, self.searched) = (0, 0);
        match next {
            State::Sized { left: 0, last } => self.finish(last),
            next => self.state = next,
        }
    }

    fn finish(&mut self, last: bool) {
        (self.line, self.searched) = (0, 0);
        self.state = if last { State::Ended } else { State::RequestLine { blank: false } };
    }
}

/// Why a step cannot be done.
enum Stop {
    /// It needs more bytes.
    More,
    Refuse(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refuse(refusal)
    }
}

/// The line that starts at `start`, without its CRLF. Every byte is searched once, however slowly they come.
fn next_line<'a>(
    bytes: &'a [u8],
    start: &mut usize,
    searched: &mut usize,
    room: usize,
    too_long: Refusal,
) -> Result<&'a [u8], Stop> {
    let found = bytes[*searched..].iter().position(|byte| *byte == b'\n');
    let end = found.map_or(bytes.len(), |at| *searched + at);
    let line = &bytes[*start..end];
    if room < line.len() {
        return Err(too_long.into());
    }
    if found.is_none() {
        *searched = end;
        return Err(Stop::More);
    }
    (*start, *searched) = (end + 1, end + 1);
    line.strip_suffix(b"\r").ok_or(Stop::Refuse(Refusal::BareLineFeed))
}

impl Head {
    /// Of a request line.
    fn read(line: &[u8], limits: Limits) -> Result<Self, Refusal> {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(Refusal::RequestLine);
        };
        if method.is_empty() || !method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-') {
            return Err(Refusal::RequestLine);
        }
        if limits.uri < target.len() {
            return Err(Refusal::UriTooLong { limit: limits.uri });
        }
        let eleven = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => return Err(Refusal::Version),
            _ => return Err(Refusal::RequestLine),
        };
        if method == b"CONNECT" {
            return Err(Refusal::Connect);
        }
        let authority = match target {
            [b'/', ..] => {
                path(target)?;
                None
            }
            b"*" if method == b"OPTIONS" => None,
            _ => Some(authority(target)?.to_vec()),
        };
        Ok(Self {
            section: Section::default(),
            eleven,
            post: method == b"POST",
            authority,
            host: false,
            length: None,
            chunked: false,
            close: false,
            keep_alive: false,
        })
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let (name, value) = name_and_value(line)?;
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        match name.len() {
            4 if is(b"host") => {
                let good = !value.is_empty() && value.iter().all(|byte| HOST[usize::from(*byte)]);
                let same = self.authority.as_ref().is_none_or(|other| value.eq_ignore_ascii_case(other));
                if self.host || !good || !same {
                    return Err(Refusal::Host);
                }
                self.host = true;
            }
            14 if is(b"content-length") => {
                if self.length.is_some() {
                    return Err(Refusal::Length);
                }
                self.length = Some(decimal(value)?);
            }
            17 if is(b"transfer-encoding") => {
                if self.chunked || !self.eleven || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::TransferEncoding);
                }
                self.chunked = true;
            }
            10 if is(b"connection") => {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            // What follows would be read as something else. Other upgrades (`h2c`) may be ignored, and are.
            7 if is(b"upgrade") && value.eq_ignore_ascii_case(b"websocket") => return Err(Refusal::Upgrade),
            6 if is(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Refusal::Expectation);
            }
            _ => {}
        }
        Ok(())
    }

    /// What follows the empty line.
    fn end(&self, limits: Limits) -> Result<State, Refusal> {
        if self.eleven && !self.host {
            return Err(Refusal::Host);
        }
        let last = self.close || (!self.eleven && !self.keep_alive);
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Refusal::LengthAndChunked),
            (true, None) => Ok(State::ChunkSize(Chunks { payload: 0, framing: 0, last })),
            (false, Some(left)) if limits.body < left => Err(Refusal::BodyTooLarge { limit: limits.body }),
            (false, None) if self.post && !self.eleven => Err(Refusal::LengthRequired),
            (false, length) => Ok(State::Sized { left: length.unwrap_or(0), last }),
        }
    }
}

impl Section {
    fn count(&mut self, line: &[u8], limits: Limits) -> Result<(), Refusal> {
        self.count += 1;
        self.bytes += line.len() + 2;
        if limits.fields < self.count { Err(Refusal::TooManyFields { limit: limits.fields }) } else { Ok(()) }
    }
}

impl Chunks {
    /// The size that a chunk's first line gives.
    fn read(&mut self, line: &[u8], limits: Limits) -> Result<u64, Refusal> {
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extension) = line.split_at(digits);
        if !matches!(digits.len(), 1..=16)
            || !matches!(extension, [] | [b';', ..])
            || !extension.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
        {
            return Err(Refusal::ChunkLine);
        }
        let size = digits.iter().fold(0, |size, digit| size << 4 | hex(*digit));
        self.payload = self.payload.saturating_add(size);
        if limits.body < self.payload {
            return Err(Refusal::BodyTooLarge { limit: limits.body });
        }
        // The line with its end, and the end of the data.
        self.framing += count(line.len()) + 4;
        if CHUNK_SLACK + self.payload / CHUNK_RATIO < self.framing {
            return Err(Refusal::ChunkFlood);
        }
        Ok(size)
    }
}

/// A field's name, and its value without the space around it.
fn name_and_value(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    // A line that starts with a space would continue the one before it.
    let colon = line.iter().position(|byte| !TOKEN[usize::from(*byte)]).ok_or(Refusal::Field)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if line[colon] != b':' || name.is_empty() || value.iter().any(|byte| CONTROL[usize::from(*byte)]) {
        return Err(Refusal::Field);
    }
    let inner = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let start = value.iter().position(inner).unwrap_or(value.len());
    let end = value.iter().rposition(inner).map_or(start, |at| at + 1);
    Ok((name, &value[start..end]))
}

/// Digits and nothing else, no more than a number of 64 bits has.
fn decimal(text: &[u8]) -> Result<u64, Refusal> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Length);
    }
    text.iter()
        .try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or(Refusal::Length)
}

fn hex(digit: u8) -> u64 {
    u64::from(match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    })
}

/// A path, and a query after it.
fn path(target: &[u8]) -> Result<(), Refusal> {
    if target.iter().all(|byte| TARGET[usize::from(*byte)]) { Ok(()) } else { Err(Refusal::Target) }
}

/// The authority of a target that is a whole URI.
fn authority(target: &[u8]) -> Result<&[u8], Refusal> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
        .ok_or(Refusal::Target)?;
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    path(&rest[end..])?;
    // The next parser of this target must take it too.
    Uri::try_from(target).map_err(|_| Refusal::Target)?;
    Ok(&rest[..end])
}

/// As many as there are in memory are as many as a file can have.
fn count(length: usize) -> u64 {
    length as u64
}

/// The other way, for a number that is no larger than one of the above.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// What a field's name is made of (RFC 9110, section 5.6.2).
const TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");
/// What a host and port are made of (RFC 3986, section 3.2.2); no `@`: nobody logs in here.
const HOST: [bool; 256] = alphanumeric_and(b"-._~%!$&'()*+,;=[]:");
/// What a path and query are made of, and some more that clients send as they are.
const TARGET: [bool; 256] = alphanumeric_and(b"-._~%!$&'()*+,;=:@/?[]|\\^\"{}");
/// What a field's value must not have: control characters but the tabulator.
const CONTROL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = byte != 0x09;
        byte += 1;
    }
    table[0x7f] = true;
    table
};

const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
