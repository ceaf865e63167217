use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { uri: 100, header: 400, fields: 10, body: 1 << 20 };

/// What became of a connection: what was passed on, how many heads, and why it ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: Vec<u8>,
    heads: usize,
    refusal: Option<Refusal>,
}

/// Shows the bytes piece by piece, as the gate does.
fn show<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Outcome, Inspector) {
    let (mut inspector, mut outcome) = (Inspector::new(LIMITS), Outcome::default());
    let mut held: Vec<u8> = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let seen = inspector.inspect(&held);
            outcome.passed.extend(held.drain(..seen.pass));
            outcome.heads += usize::from(seen.head);
            if seen.refusal.is_some() {
                outcome.refusal = seen.refusal;
                return (outcome, inspector);
            }
            if seen.pass == 0 || held.is_empty() {
                break;
            }
        }
    }
    (outcome, inspector)
}

fn whole(bytes: &str) -> Outcome {
    show([bytes.as_bytes()]).0
}

fn refused(bytes: &str) -> Option<Refusal> {
    whole(bytes).refusal
}

/// A request with these header lines.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n")
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}")
}

#[test]
fn good_requests_pass_as_they_are() {
    let sized = "POST /x?y=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nGET /";
    let many = [
        get(""),
        sized.to_owned(),
        chunked("3;a=\"b\"\r\nabc\r\n0a\r\n0123456789\r\n0\r\nx: y\r\n\r\n"),
        get("expect: 100-continue\r\ncontent-length: 0\r\n"),
        "GET http://A:80/x HTTP/1.1\r\nhost: a:80\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nhost: [::1]:80\r\n\r\n".to_owned(),
        format!("\r\n{}", get("")),
        "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".to_owned(),
    ]
    .concat();
    let outcome = whole(&many);
    assert_eq!(outcome.refusal, None);
    assert_eq!(outcome.passed, many.as_bytes());
    assert_eq!(outcome.heads, 8);
}

#[test]
fn nothing_passes_after_the_last_request() {
    for last in [get("connection: x, Close\r\n"), "GET / HTTP/1.0\r\n\r\n".to_owned()] {
        let (outcome, inspector) = show([last.as_bytes(), get("").as_bytes()]);
        assert_eq!((outcome.passed, outcome.heads), (last.into_bytes(), 1));
        assert!(inspector.ended());
    }
}

#[test]
fn what_was_before_a_refusal_passes() {
    let outcome = whole(&format!("{}GET / HTTP/1.1\n", get("")));
    assert_eq!(outcome.passed, get("").as_bytes());
    assert_eq!((outcome.heads, outcome.refusal), (1, Some(Refusal::BareLineFeed)));
}

#[test]
fn request_lines_are_exact() {
    for line in [
        "GET  / HTTP/1.1",
        "GET /",
        "get / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/11",
        "G\0T / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / http/1.1",
        "GET /\rx HTTP/1.1\r",
        "GET /a b HTTP/1.1",
    ] {
        assert!(
            matches!(
                refused(&format!("{line}\r\nhost: a\r\n\r\n")),
                Some(Refusal::RequestLine | Refusal::Target)
            ),
            "{line}"
        );
    }
    for target in
        ["/a#b", "/a\u{7f}", "/\u{e9}", "a", "*", "//a:b@", "http://a@b/", "http:///", "ftp://a/", "/<"]
    {
        let request = format!("GET {target} HTTP/1.1\r\nhost: b\r\n\r\n");
        let refusal = refused(&request);
        assert!(
            matches!(refusal, Some(Refusal::Target | Refusal::Host)) || target == "//a:b@",
            "{target}: {refusal:?}"
        );
    }
    assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(Refusal::Version));
    assert_eq!(refused("CONNECT a:1 HTTP/1.1\r\n"), Some(Refusal::Connect));
    assert_eq!(refused("\r\n\r\nGET / HTTP/1.1\r\n"), Some(Refusal::RequestLine));
}

#[test]
fn fields_are_exact() {
    for line in ["a : b", " a: b", "\ta: b", ": b", "a", "a: b\0", "a: b\rc", "a: b\u{7f}", "a b: c", "a(: b"]
    {
        assert_eq!(refused(&get(&format!("{line}\r\n"))), Some(Refusal::Field), "{line:?}");
    }
    assert_eq!(refused(&get("a: b\n")), Some(Refusal::BareLineFeed));
    assert_eq!(refused(&get("a: b\u{e9}\tc\r\n")), None);
    assert_eq!(refused(&get("upgrade: websocket\r\n")), Some(Refusal::Upgrade));
    assert_eq!(refused(&get("upgrade: h2c\r\n")), None);
    assert_eq!(refused(&get("expect: x\r\n")), Some(Refusal::Expectation));
}

#[test]
fn there_is_one_host() {
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x@a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://a:80/ HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        assert_eq!(refused(head), Some(Refusal::Host), "{head}");
    }
}

#[test]
fn there_is_one_length() {
    for value in ["+5", "-1", "5, 5", "", "5 5", "0x5", "18446744073709551616", "5;", "\u{660}"] {
        assert_eq!(refused(&get(&format!("content-length: {value}\r\n"))), Some(Refusal::Length), "{value}");
    }
    assert_eq!(refused(&get("content-length: 5\r\nContent-Length: 5\r\n")), Some(Refusal::Length));
    assert_eq!(
        refused(&get("content-length: 5\r\ntransfer-encoding: chunked\r\n")),
        Some(Refusal::LengthAndChunked)
    );
    for value in ["xchunked", "chunked, identity", "identity", "gzip, chunked", "chunked;q=1", "", "chunked,"]
    {
        let lines = format!("transfer-encoding: {value}\r\n");
        assert_eq!(refused(&get(&lines)), Some(Refusal::TransferEncoding), "{value}");
    }
    let twice = "transfer-encoding: chunked\r\n".repeat(2);
    assert_eq!(refused(&get(&twice)), Some(Refusal::TransferEncoding));
    let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), Some(Refusal::TransferEncoding));
    assert_eq!(refused("POST / HTTP/1.0\r\n\r\n"), Some(Refusal::LengthRequired));
    let large = Some(Refusal::BodyTooLarge { limit: LIMITS.body });
    assert_eq!(refused(&get("content-length: 4611686018427387904\r\n")), large);
    assert_eq!(refused(&get("content-length: 1048577\r\n")), large);
    assert_eq!(refused(&get("content-length: 1048576\r\n")), None);
}

#[test]
fn sizes_are_bounded() {
    let uri = |n: usize| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(n - 1));
    assert_eq!(refused(&uri(LIMITS.uri)), None);
    assert_eq!(refused(&uri(LIMITS.uri + 1)), Some(Refusal::UriTooLong { limit: LIMITS.uri }));
    assert_eq!(refused(&"G".repeat(200)), Some(Refusal::UriTooLong { limit: LIMITS.uri }));
    assert_eq!(refused(&get(&"a: b\r\n".repeat(9))), None);
    assert_eq!(refused(&get(&"a: b\r\n".repeat(10))), Some(Refusal::TooManyFields { limit: 10 }));
    let large = Some(Refusal::HeaderTooLarge { limit: LIMITS.header });
    assert_eq!(refused(&get(&format!("a: {}\r\n", "x".repeat(400)))), large);
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{}", "x".repeat(401))), large);
}

#[test]
fn chunks_are_exact() {
    for body in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "0x1\r\n",
        "1 \r\na\r\n",
        " 1\r\na\r\n",
        "1 ;a\r\na\r\n",
        "00000000000000001\r\na\r\n",
        "1\r\nab\r\n",
        "1\r\na0\r\n",
        "1;\0\r\n",
        "1;\r\r\n",
        "1\r\na\rb",
    ] {
        assert_eq!(refused(&chunked(body)), Some(Refusal::ChunkLine), "{body:?}");
    }
    assert_eq!(refused(&chunked("1\na\r\n")), Some(Refusal::BareLineFeed));
    assert_eq!(refused(&chunked("1\r\na\n")), Some(Refusal::BareLineFeed));
    assert_eq!(refused(&chunked("0\r\n\n")), Some(Refusal::BareLineFeed));
    assert_eq!(refused(&chunked("0\r\na : b\r\n\r\n")), Some(Refusal::Field));
    let large = Some(Refusal::BodyTooLarge { limit: LIMITS.body });
    assert_eq!(refused(&chunked("100001\r\n")), large);
    assert_eq!(refused(&chunked("ffffffffffffffff\r\n")), large);
    assert_eq!(refused(&chunked(&format!("1;{}", "x".repeat(20_000)))), Some(Refusal::ChunkLine));
}

#[test]
fn chunks_carry_something() {
    assert_eq!(refused(&chunked(&"1\r\na\r\n".repeat(500_000))), Some(Refusal::ChunkFlood));
    // Few small ones do no harm, nor do many of a fair size.
    assert_eq!(refused(&chunked(&format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(2_000)))), None);
    let fair = format!("20\r\n{}\r\n", "a".repeat(32));
    assert_eq!(refused(&chunked(&format!("{}0\r\n\r\n", fair.repeat(30_000)))), None);
    let trailers = "a: b\r\n".repeat(11);
    assert_eq!(refused(&chunked(&format!("0\r\n{trailers}"))), Some(Refusal::TooManyFields { limit: 10 }));
}

const PIECES: [&str; 30] = [
    "GET / HTTP/1.1\r\n",
    "POST /x HTTP/1.1\r\n",
    "GET / HTTP/1.0\r\n",
    "PRI * HTTP/2.0\r\n",
    "host: a\r\n",
    "content-length: 3\r\n",
    "content-length: 9999999\r\n",
    "transfer-encoding: chunked\r\n",
    "\r\n",
    "\n",
    "\r",
    "abc",
    "3\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nx: y\r\n\r\n",
    "1;x\r\n",
    "connection: close\r\n",
    " x\r\n",
    "x: y\r\n",
    "\0",
    "0",
    "a",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 28\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n\r",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1b\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\na",
    "GET http://a/ HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 0\r\n\r\n",
];

/// Pieces of requests, good and bad, in any order.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(PIECES.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => Just(b"x: ".iter().copied().chain(std::iter::repeat_n(b'y', 390)).collect()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Whole requests with any byte of them changed, dropped or doubled.
fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
    let requests = proptest::collection::vec(proptest::sample::select(PIECES[22..].to_vec()), 1..5);
    let change = (any::<proptest::sample::Index>(), any::<u8>(), 0..4_u8);
    (requests, proptest::collection::vec(change, 0..3)).prop_map(|(requests, changes)| {
        let mut bytes = requests.concat().into_bytes();
        for (at, byte, what) in changes {
            let at = at.index(bytes.len());
            match what {
                0 => bytes[at] = byte,
                1 => bytes[at] = b"\r\n :;0aG"[usize::from(byte % 8)],
                2 => _ = bytes.remove(at),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        bytes
    })
}

/// The parser behind the gate must find the same requests in what was passed on, and nothing to refuse: where two
/// readers disagree on where a request ends, one can be smuggled past the first.
#[test]
fn actix_http_reads_what_passes_as_the_gate_does() {
    use proptest::test_runner::TestRunner;
    use tokio_util::codec::Decoder as _;
    let compare = |bytes: Vec<u8>| {
        let outcome = show([&bytes[..]]).0;
        let (mut codec, mut rest) =
            (actix_http::h1::Codec::default(), bytes::BytesMut::from(&outcome.passed[..]));
        let mut heads = 0;
        loop {
            match codec.decode(&mut rest) {
                Ok(Some(actix_http::h1::Message::Item(_))) => heads += 1,
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => prop_assert!(false, "{error}: {}", outcome.passed.escape_ascii()),
            }
        }
        prop_assert_eq!(heads, outcome.heads, "{}", outcome.passed.escape_ascii());
        prop_assert_eq!(&rest[..], b"");
        Ok(())
    };
    actix_web::rt::System::new().block_on(async {
        let cases = ProptestConfig::with_cases(8192);
        TestRunner::new(cases.clone()).run(&stream(), compare).unwrap();
        TestRunner::new(cases).run(&nearly_good(), compare).unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_split_gives_the_same_verdict(bytes in stream(), cuts in proptest::collection::vec(any::<usize>(), 0..8)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let pieces = starts.zip(ends).map(|(start, end)| &bytes[start..end]);
        let (in_pieces, _) = show(pieces);
        prop_assert_eq!(&in_pieces, &show([&bytes[..]]).0);
        prop_assert_eq!(&in_pieces, &show(bytes.chunks(1)).0);
        prop_assert!(bytes.starts_with(&in_pieces.passed));
    }

    #[test]
    fn anything_is_taken_without_a_panic(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
        show(pieces.iter().map(Vec::as_slice));
    }
}
