//! HTTP/1.1 as the benchmarks need it: a client of our own, since that of a library would cost more than what is measured.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}

/// A request or an answer.
pub struct Message {
    pub head: String,
    pub body: Vec<u8>,
}

/// The next message of a connection; `None` when it was closed before it.
pub fn message(from: &mut BufReader<TcpStream>) -> Option<Message> {
    let mut head = String::new();
    let mut line = 0;
    while head.get(line..).is_none_or(|line| line != "\r\n") {
        line = head.len();
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let header = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = Vec::new();
    if header("transfer-encoding:") == Some("chunked") {
        loop {
            let mut size = String::new();
            from.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            from.take(size as u64).read_to_end(&mut body).ok()?;
            from.read_line(&mut String::new()).ok()?;
            if size == 0 {
                break;
            }
        }
    } else {
        let length: u64 = header("content-length:").map_or(0, |length| length.parse().unwrap());
        from.take(length).read_to_end(&mut body).ok()?;
    }
    Some(Message { head, body })
}
