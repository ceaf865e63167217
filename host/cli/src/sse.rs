//! Server-sent events, as our server writes them: one `data:` line each, comments to keep proxies awake.

/// Cuts a stream of bytes into the data of its events, wherever the network cut it.
#[derive(Debug, Default)]
pub struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// The events that these bytes complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end_matches(['\r', '\n']).strip_prefix("data:") {
                events.push(data.trim_start_matches(' ').to_owned());
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_are_cut() {
        let text = "data: {\"a\":\"ä\"}\n\n: ping\n\ndata: [DONE]\r\n\r\n".as_bytes();
        for cut in 0..text.len() {
            let mut events = Events::default();
            let mut got = events.feed(&text[..cut]);
            got.extend(events.feed(&text[cut..]));
            assert_eq!(got, ["{\"a\":\"ä\"}", "[DONE]"], "cut at {cut}");
        }
    }
}
