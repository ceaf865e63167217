//! What the gate refuses, and what a client is told of it.

use crate::error::reason;
use backplane::{Error, ErrorCode};
use std::time::Duration;

/// Why a connection's next bytes are not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    RequestLine,
    Target,
    UriTooLong { limit: usize },
    Version,
    Connect,
    BareLineFeed,
    Field,
    HeaderTooLarge { limit: usize },
    TooManyFields { limit: usize },
    Host,
    Length,
    LengthRequired,
    TransferEncoding,
    LengthAndChunked,
    Upgrade,
    Expectation,
    BodyTooLarge { limit: u64 },
    ChunkLine,
    ChunkFlood,
    SlowHeader { limit: Duration },
    SilentBody { limit: Duration },
    SlowBody { rate: u64 },
    LateBody { limit: Duration },
    TooManyConnections { limit: usize },
}

impl Refusal {
    /// What the client is told.
    pub(crate) fn error(self) -> Error {
        let malformed = |message: &str| Error::invalid(message).with_reason(reason::MALFORMED_REQUEST);
        let large = |message: String, reason| Error::new(ErrorCode::OutOfRange, message).with_reason(reason);
        let slow = |what: &str, limit: Duration, key: &str| {
            let limit = humantime::format_duration(limit);
            Error::new(
                ErrorCode::Aborted,
                format!("the {what} did not come in time: `server.{key}` is {limit}"),
            )
            .with_reason(reason::REQUEST_TIMEOUT)
        };
        match self {
            Self::RequestLine => {
                malformed("the first line is not `METHOD target HTTP/1.1`, with one space between")
            }
            Self::Target => malformed("the target is neither a path nor a URI; encode it with `%`"),
            Self::UriTooLong { limit } => large(
                format!("the target is longer than {limit} bytes, which is `server.uri_limit`"),
                reason::URI_TOO_LONG,
            ),
            Self::Version => {
                Error::new(ErrorCode::Unimplemented, "only HTTP/1.1 and HTTP/1.0 are spoken here")
                    .with_reason(reason::HTTP_VERSION)
            }
            Self::Connect => malformed("`CONNECT` is for proxies"),
            Self::BareLineFeed => malformed("a line ends with LF alone; end lines with CRLF"),
            Self::Field => malformed(
                "a header is not `name: value`: no space before the colon, no line that goes on, no control character",
            ),
            Self::HeaderTooLarge { limit } => large(
                format!("the header is larger than {limit} bytes, which is `server.header_limit`"),
                reason::HEADER_TOO_LARGE,
            ),
            Self::TooManyFields { limit } => large(
                format!("there are more than {limit} headers, which is `server.max_headers`"),
                reason::HEADER_TOO_LARGE,
            ),
            Self::Host => malformed("there must be one `host`, and it must be the target's own"),
            Self::Length => malformed("there must be one `content-length`, a plain number"),
            Self::LengthRequired => {
                Error::invalid("`content-length` is missing").with_reason(reason::LENGTH_REQUIRED)
            }
            Self::TransferEncoding => {
                malformed("`transfer-encoding` can be `chunked` only, once, in HTTP/1.1")
            }
            Self::LengthAndChunked => {
                malformed("`content-length` and `transfer-encoding` exclude each other")
            }
            Self::Upgrade => malformed("there is no `websocket` here"),
            Self::Expectation => {
                Error::invalid("`expect` can be `100-continue` only").with_reason(reason::EXPECTATION_FAILED)
            }
            Self::BodyTooLarge { limit } => large(
                format!("the body is larger than {limit} bytes, which is `server.body_limit`"),
                reason::BODY_TOO_LARGE,
            ),
            Self::ChunkLine => malformed("a chunk of the body is not as HTTP has it"),
            Self::ChunkFlood => malformed("the chunks of the body are too small; send larger ones"),
            Self::SlowHeader { limit } => slow("header", limit, "header_timeout"),
            Self::SilentBody { limit } => slow("body", limit, "body_timeout"),
            Self::SlowBody { rate } => Error::new(
                ErrorCode::Aborted,
                format!("the body comes slower than {rate} bytes a second, which is `server.body_rate`"),
            )
            .with_reason(reason::REQUEST_TIMEOUT),
            Self::LateBody { limit } => slow("body", limit, "body_total_timeout"),
            Self::TooManyConnections { limit } => Error::new(
                ErrorCode::Unavailable,
                format!("{limit} connections are open, which is `server.max_connections`"),
            )
            .with_reason("overloaded")
            .with_retry_after(Duration::from_secs(1)),
        }
    }
}
