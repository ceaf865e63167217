//! Server-sent events: how one event is written. What is streamed, and when, is `stream.rs`.

use bytes::BytesMut;

/// The end of an OpenAI stream.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment, which clients skip: it keeps proxies from closing a connection that waits for its first token.
pub(crate) const PING: &[u8] = b": ping\n\n";

/// Appends one event whose data is this value as JSON, in one `data:` line. Raw line breaks can only be between the
/// tokens of JSON that a plugin wrote and that is passed on as it is; blanks do there.
pub(crate) fn event(value: &impl serde::Serialize, out: &mut BytesMut) -> serde_json::Result<()> {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    let written = serde_json::to_writer(bytes::BufMut::writer(&mut *out), value);
    match written {
        Ok(()) => {
            out[start..]
                .iter_mut()
                .filter(|byte| matches!(byte, b'\n' | b'\r'))
                .for_each(|byte| *byte = b' ');
            out.extend_from_slice(b"\n\n");
        }
        Err(_) => out.truncate(start),
    }
    written
}

/// Appends one event whose data is this JSON text.
pub(crate) fn event_text(json: &str, out: &mut BytesMut) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json.as_bytes());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// What a client makes of the bytes: the data of each event, comments left out.
    fn read(bytes: &[u8]) -> Vec<String> {
        std::str::from_utf8(bytes)
            .unwrap()
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }

    proptest! {
        #[test]
        fn any_text_comes_out_as_it_went_in(texts in proptest::collection::vec(any::<String>(), 0..8)) {
            let mut out = BytesMut::new();
            for text in &texts {
                event(&Value::String(text.clone()), &mut out).unwrap();
                out.extend_from_slice(PING);
            }
            out.extend_from_slice(DONE);
            let mut read = read(&out);
            prop_assert_eq!(read.pop().unwrap(), "[DONE]");
            let back: Vec<String> = read.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
            prop_assert_eq!(back, texts);
        }
    }

    #[test]
    fn what_a_plugin_wrote_over_several_lines_is_one_event() {
        let raw = serde_json::value::RawValue::from_string("{\n\n  \"a\":\r\n 1}".to_owned()).unwrap();
        let mut out = BytesMut::new();
        event(&raw, &mut out).unwrap();
        assert_eq!(out.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count(), 2);
        assert_eq!(serde_json::from_str::<Value>(&read(&out)[0]).unwrap(), serde_json::json!({ "a": 1 }));
    }

    #[test]
    fn an_event_that_cannot_be_written_leaves_nothing() {
        let mut out = BytesMut::from(&b"data: 1\n\n"[..]);
        let unwritable = std::collections::HashMap::from([((), 1)]);
        assert!(event(&unwritable, &mut out).is_err());
        assert_eq!(&out[..], b"data: 1\n\n");
    }
}
