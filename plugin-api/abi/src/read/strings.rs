//! Byte strings as they lie in a tensor: one after the other, each after its length as `u32` in little endian.

/// Takes the first off `rest`; `None` when there is none, or its length leads beyond the end.
pub fn next<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let (string, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = tail;
    Some(string)
}

/// Whether `data` is exactly `count` of them.
pub fn are(data: &[u8], count: usize) -> bool {
    let mut rest = data;
    // Each takes four bytes at least: a count beyond that needs no walk.
    count <= data.len() / 4 && (0..count).all(|_| next(&mut rest).is_some()) && rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_add_up_or_they_are_none() {
        let bytes = [1, 0, 0, 0, b'a', 0, 0, 0, 0];
        assert!(are(&bytes, 2) && are(&[], 0));
        assert!(!are(&bytes, 1), "something is left");
        assert!(!are(&bytes, 3), "one is missing");
        assert!(!are(&bytes[..5], 2), "one is cut");
        assert!(!are(&[255, 255, 255, 255], 1), "a length beyond the end");
        assert!(!are(&bytes, usize::MAX));
        let mut rest = &bytes[..];
        assert_eq!(
            (next(&mut rest), next(&mut rest), next(&mut rest)),
            (Some(&b"a"[..]), Some(&b""[..]), None)
        );
    }
}
