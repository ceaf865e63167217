//! Token pieces in, text that may be sent out: whole characters, and nothing that may still become a stop string.

/// Assembles the text of one answer.
///
/// Bytes wait here while they are the start of a character or of a stop string. The text does not depend on where
/// the tokens were cut.
#[derive(Debug, Clone)]
pub struct TextOut {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    /// Bytes given out so far, as the model wrote them.
    emitted: usize,
    stopped: bool,
}

impl TextOut {
    /// `stops`: the answer ends before the one that is complete first. Empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops =
            stops.iter().filter(|stop| !stop.is_empty()).map(|stop| stop.clone().into_bytes()).collect();
        Self { stops, held: Vec::new(), emitted: 0, stopped: false }
    }

    /// Takes a token's bytes; gives the text that is certain by now.
    pub fn push(&mut self, piece: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.extend_from_slice(piece);
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            let text = self.give(start);
            self.held.clear();
            return text;
        }
        let certain = self.held.len() - self.uncertain();
        self.give(certain)
    }

    /// The rest, at the end of generation. An unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let all = self.held.len();
        self.give(all)
    }

    /// Whether a stop string came.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// How many of the bytes pushed so far were given out.
    pub fn emitted(&self) -> usize {
        self.emitted
    }

    fn give(&mut self, bytes: usize) -> String {
        self.emitted += bytes;
        let text = String::from_utf8_lossy(&self.held[..bytes]).into_owned();
        self.held.drain(..bytes);
        text
    }

    /// Where the stop string starts that is complete first; of those that end together, the longest.
    fn first_stop(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| find(&self.held, stop).map(|start| (start + stop.len(), start)))
            .min()
            .map(|(_, start)| start)
    }

    /// Length of the tail that may be the start of a stop string or of a character.
    fn uncertain(&self) -> usize {
        let stop = self
            .stops
            .iter()
            .map(|stop| {
                let longest = self.held.len().min(stop.len() - 1);
                (1..=longest).rev().find(|&n| self.held.ends_with(&stop[..n])).unwrap_or(0)
            })
            .max()
            .unwrap_or(0);
        stop.max(unfinished_character(&self.held))
    }
}

/// Length of the unfinished character at the end of `bytes`, 0 if there is none.
fn unfinished_character(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find(|&n| {
            let tail = &bytes[bytes.len() - n..];
            tail[0] >= 0xC0
                && std::str::from_utf8(tail)
                    .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut out = TextOut::new(&stops);
        let mut texts: Vec<String> = pieces.iter().map(|piece| out.push(piece)).collect();
        texts.push(out.finish());
        (texts, out.is_stopped())
    }

    #[test]
    fn a_character_is_never_split() {
        let (texts, _) = run(&[], &[b"a\xF0\x9F", b"\x98", b"\x80b"]);
        assert_eq!(texts, ["a", "", "😀b", ""]);
    }

    #[test]
    fn a_stop_string_matches_across_tokens_and_is_not_sent() {
        let (texts, stopped) = run(&["</end>"], &[b"one </", b"e", b"nd> two"]);
        assert_eq!(texts, ["one ", "", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_sent() {
        let (texts, stopped) = run(&["</end>"], &[b"one </", b"em>"]);
        assert_eq!(texts, ["one ", "</em>", ""]);
        assert!(!stopped);
        let (texts, stopped) = run(&["</end>"], &[b"cut </en"]);
        assert_eq!(texts.concat(), "cut </en");
        assert!(!stopped);
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_replaced() {
        let (texts, _) = run(&[], &[b"ok\xE2\x82"]);
        assert_eq!(texts, ["ok", "\u{FFFD}"]);
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_where_tokens_are_cut(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                "[abc€😀]{0,30}".prop_map(String::into_bytes),
            ],
            stops in proptest::collection::vec("[abc€]{1,4}", 0..4),
            cuts in proptest::collection::vec(0usize..40, 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut whole = TextOut::new(&stops);
            let expected = whole.push(&bytes) + &whole.finish();
            let mut parts = TextOut::new(&stops);
            let mut text = String::new();
            for cut in cuts.windows(2) {
                text += &parts.push(&bytes[cut[0]..cut[1]]);
            }
            text += &parts.finish();
            prop_assert_eq!(&text, &expected);
            prop_assert_eq!(parts.is_stopped(), whole.is_stopped());
            prop_assert_eq!(parts.emitted(), whole.emitted());
            for stop in &stops {
                prop_assert!(!text.contains(stop.as_str()));
            }
        }
    }
}
