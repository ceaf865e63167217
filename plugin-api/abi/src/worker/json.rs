//! What a chunk may say. Both ends look: the worker so that a plugin hears what it would hear in-process, the host because
//! it believes no worker.

use serde::de::IgnoredAny;

/// Whether this is a JSON object, or nothing. Whoever reads a chunk may put it into an answer as it is, so it nests no
/// deeper than readers allow.
pub fn is_object(json: &[u8]) -> bool {
    /// As deep as `serde_json` reads; what it only skips may be deeper.
    const DEEPEST: usize = 127;
    // Hardly any has as many brackets in all, and to count them takes a tenth of what it takes to follow them.
    let brackets = json.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    json.is_empty()
        || (brackets <= DEEPEST || deepest(json) <= DEEPEST)
            && json.trim_ascii_start().first() == Some(&b'{')
            && std::str::from_utf8(json).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// How deep JSON nests.
fn deepest(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_an_object_or_nothing() {
        let (many, text) =
            (format!("{{\"a\":[{}1]}}", "[],".repeat(500)), format!("{{\"a\":\"{}\"}}", "[".repeat(500)));
        for good in ["", "{}", " {\"a\": [1, null, \"\\u00e4\"]}\n", "{\"ä\":{}}", &many, &text] {
            assert!(is_object(good.as_bytes()), "{good}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500));
        for bad in ["[1]", "1", "null", "\"a\"", "{\"a\":", "{} {}", "{\"a\":NaN}", "{'a':1}", " ", &deep] {
            assert!(!is_object(bad.as_bytes()), "{bad}");
        }
        assert!(!is_object(b"{\"a\":\"\xff\"}"));
    }
}
