//! Forms with files: `multipart/form-data` (RFC 7578). Reads a body that is there as a whole; its size is limited before.

use crate::openai::wire::invalid;
use backplane::{Error, Result};
use bytes::Bytes;

/// Most parts of a form.
const MAX_PARTS: usize = 64;
/// Most bytes of a part's headers.
const MAX_HEAD: usize = 8 << 10;

/// A field of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub name: String,
    /// What a file is called where it comes from.
    pub file_name: Option<String>,
    pub data: Bytes,
}

impl Part {
    /// The field as text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub(crate) fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.data).map_err(|_| {
            invalid(self.name.as_str(), format!("the field `{}` is not text in UTF-8", self.name))
        })
    }
}

/// The boundary of a form, from its content type. None for another type.
pub(crate) fn boundary(content_type: &str) -> Option<Result<String>> {
    let mut parameters = parameters(content_type);
    let (kind, _) = parameters.next()?;
    if !kind.eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameters.find(|(name, _)| name.eq_ignore_ascii_case("boundary")).map(|(_, value)| value);
    Some(match boundary {
        Some(boundary) if (1..=70).contains(&boundary.len()) => Ok(boundary),
        Some(_) => Err(Error::invalid("the form's `boundary` has to be of 1 to 70 characters")),
        None => Err(Error::invalid("the form has no `boundary` in its `content-type`")),
    })
}

/// The fields of a form, in order.
///
/// # Errors
/// When it is not one, or is cut off.
pub(crate) fn parse(body: &Bytes, boundary: &str) -> Result<Vec<Part>> {
    let delimiter = format!("\r\n--{boundary}");
    // The first delimiter has no line before it.
    let first = delimiter.trim_start().as_bytes();
    let mut at = match body.starts_with(first) {
        true => first.len(),
        false => find(body, delimiter.as_bytes()).ok_or_else(|| broken("has no field"))? + delimiter.len(),
    };
    let mut parts = Vec::new();
    loop {
        let rest = body.get(at..).unwrap_or_default();
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        if parts.len() == MAX_PARTS {
            return Err(broken(&format!("has more than {MAX_PARTS} fields")));
        }
        let line = find(&rest[..rest.len().min(MAX_HEAD)], b"\r\n").ok_or_else(|| broken("is cut off"))?;
        if !rest[..line].trim_ascii().is_empty() {
            return Err(broken("has something behind a delimiter"));
        }
        let (name, file_name, start) = head(&rest[line..])?;
        let start = at + line + start;
        let length = find(&body[start..], delimiter.as_bytes()).ok_or_else(|| broken("is cut off"))?;
        parts.push(Part { name, file_name, data: body.slice(start..start + length) });
        at = start + length + delimiter.len();
    }
}

/// A part's names, and where its content begins. `rest` begins with the line break before the headers.
fn head(rest: &[u8]) -> Result<(String, Option<String>, usize)> {
    let end = find(&rest[..rest.len().min(MAX_HEAD)], b"\r\n\r\n")
        .ok_or_else(|| broken("has a field whose headers do not end"))?;
    let text = String::from_utf8_lossy(&rest[..end]);
    let disposition = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then(|| value.trim())
    });
    let disposition = disposition.ok_or_else(|| broken("has a field without `content-disposition`"))?;
    let of = |wanted: &str| {
        let mut all = parameters(disposition).skip(1);
        all.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
    };
    let name = of("name").ok_or_else(|| broken("has a field without a name"))?;
    Ok((name, of("filename"), end + 4))
}

/// The parameters of a header: the value itself first, with an empty value.
fn parameters(header: &str) -> impl Iterator<Item = (&str, String)> {
    let mut rest = header;
    std::iter::from_fn(move || {
        let (name, tail) = match rest.find([';', '=']) {
            Some(at) => (&rest[..at], &rest[at..]),
            None if rest.trim().is_empty() => return None,
            None => (rest, ""),
        };
        let Some(value) = tail.strip_prefix('=') else {
            rest = tail.strip_prefix(';').unwrap_or_default();
            return Some((name.trim(), String::new()));
        };
        let value = value.trim_start();
        let (value, tail) = match value.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = value.find(';').unwrap_or(value.len());
                (value[..end].trim().to_owned(), &value[end..])
            }
        };
        rest = tail.trim_start().strip_prefix(';').unwrap_or_default();
        Some((name.trim(), value))
    })
}

/// A quoted string up to its end, and what follows. Browsers write a quote as `%22`, others as `\"`.
fn unquoted(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value.replace("%22", "\""), &quoted[at + 1..]),
            '\\' if quoted[at + 1..].starts_with(['"', '\\']) => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, _) = wanted.split_first()?;
    let mut from = 0;
    loop {
        from += bytes.get(from..)?.iter().position(|byte| byte == first)?;
        if bytes[from..].starts_with(wanted) {
            return Some(from);
        }
        from += 1;
    }
}

fn broken(what: &str) -> Error {
    Error::invalid(format!("the form {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(body: &str) -> Result<Vec<(String, Option<String>, String)>> {
        let parts = parse(&Bytes::copy_from_slice(body.as_bytes()), "xx")?;
        let part = |part: Part| (part.name.clone(), part.file_name.clone(), part.text().unwrap().to_owned());
        Ok(parts.into_iter().map(part).collect())
    }

    #[test]
    fn fields_and_files_are_read() {
        let body = "--xx\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\ntwo\r\n\
                    --xx\r\ncontent-type: image/png\r\ncontent-disposition: form-data; name=file; filename=\"a \\\"b%22.png\"\r\n\r\n\
                    --x\r\n--xx--\r\n";
        let found = fields(body).unwrap();
        assert_eq!(found[0], ("a".into(), None, "one\r\ntwo".into()));
        assert_eq!(found[1], ("file".into(), Some("a \"b\".png".into()), "--x".into()));
        assert_eq!(
            fields("before\r\n--xx\r\ncontent-disposition: form-data; name=a\r\n\r\n\r\n--xx--").unwrap()[0]
                .2,
            ""
        );
        assert!(fields("--xx--").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_form_is_refused_by_what_it_is() {
        let part = "--xx\r\ncontent-disposition: form-data; name=a\r\n\r\n1\r\n";
        for (body, says) in [
            (String::new(), "no field"),
            ("--yy\r\n".into(), "no field"),
            (part.into(), "cut off"),
            ("--xx\r\nx: y\r\n\r\n1\r\n--xx--".into(), "without `content-disposition`"),
            ("--xx\r\ncontent-disposition: form-data\r\n\r\n1\r\n--xx--".into(), "without a name"),
            ("--xxx\r\n".into(), "behind a delimiter"),
            (format!("--xx\r\nx: {}", "y".repeat(9000)), "do not end"),
            (format!("{}--xx--", part.repeat(65)), "more than 64"),
        ] {
            let refused = fields(&body).unwrap_err();
            assert!(refused.message.contains(says), "{body:.40}: {refused}");
        }
    }

    #[test]
    fn the_boundary_stands_in_the_content_type() {
        let of = |text: &str| boundary(text).map(|found| found.map_err(|error| error.message));
        assert_eq!(of("multipart/form-data; boundary=abc").unwrap().unwrap(), "abc");
        assert_eq!(of("Multipart/Form-Data;charset=utf-8;Boundary=\"a b;c\"").unwrap().unwrap(), "a b;c");
        assert!(of("application/json").is_none() && of("").is_none());
        assert!(of("multipart/form-data").unwrap().unwrap_err().contains("no `boundary`"));
    }

    proptest! {
        /// Whatever the bytes of a file, they come back; whatever the bytes of a body, it is read or refused.
        #[test]
        fn bytes_come_back(data in prop::collection::vec(any::<u8>(), 0..200), junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let head = b"--0b0\r\ncontent-disposition: form-data; name=\"f\"\r\n\r\n";
            let body = Bytes::from([&head[..], &data, b"\r\n--0b0--\r\n"].concat());
            prop_assume!(find(&data, b"\r\n--0b0").is_none());
            prop_assert_eq!(&parse(&body, "0b0").unwrap()[0].data[..], &data[..]);
            drop(parse(&Bytes::from([&head[..], &junk].concat()), "0b0"));
            drop(parse(&Bytes::from(junk), "0b0"));
        }
    }
}
