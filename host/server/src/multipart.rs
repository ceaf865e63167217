//! Forms: `multipart/form-data` (RFC 7578), and `application/x-www-form-urlencoded`, which has no files. Reads a body that is
//! there as a whole; its size is limited before.

use crate::error::reason;
use crate::openai::wire::invalid;
use backplane::{Error, Result};
use bytes::Bytes;
use std::borrow::Cow;
use std::convert::Infallible;

/// Most parts of a form.
const MAX_PARTS: usize = 64;

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

/// Whether a content type is that of a form with files.
pub(crate) fn is_form(content_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case("multipart/form-data")
}

/// Whether a content type is that of a form without files.
pub(crate) fn is_urlencoded(content_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// A content type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The fields of a form without files, in order.
///
/// # Errors
/// When it has too many.
pub(crate) fn urlencoded(body: &[u8]) -> Result<Vec<Part>> {
    let field = |(name, value): (Cow<'_, str>, Cow<'_, str>)| Part {
        name: name.into_owned(),
        file_name: None,
        data: value.into_owned().into(),
    };
    let parts: Vec<Part> = form_urlencoded::parse(body).take(MAX_PARTS + 1).map(field).collect();
    if MAX_PARTS < parts.len() {
        return Err(too_many());
    }
    Ok(parts)
}

fn too_many() -> Error {
    let message = format!("the form has more than {MAX_PARTS} fields");
    Error::invalid(message).with_reason(reason::MALFORMED_REQUEST)
}

/// The fields of a form, in order.
///
/// # Errors
/// When it is not one, is cut off, or has too many fields.
pub(crate) async fn parse(content_type: &str, body: Bytes) -> Result<Vec<Part>> {
    let broken = |what: String| Error::invalid(what).with_reason(reason::MALFORMED_REQUEST);
    let wrong = |error: multer::Error| broken(format!("the form cannot be read: {error}"));
    let boundary = multer::parse_boundary(content_type).map_err(wrong)?;
    let whole = futures::stream::once(std::future::ready(Ok::<_, Infallible>(body)));
    let mut form = multer::Multipart::new(whole, boundary);
    let mut parts = Vec::new();
    while let Some(field) = form.next_field().await.map_err(wrong)? {
        if parts.len() == MAX_PARTS {
            return Err(too_many());
        }
        let (name, file_name) =
            (field.name().unwrap_or_default().to_owned(), field.file_name().map(str::to_owned));
        parts.push(Part { name, file_name, data: field.bytes().await.map_err(wrong)? });
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use proptest::prelude::*;

    fn parts(body: &[u8]) -> Result<Vec<Part>> {
        block_on(parse("multipart/form-data; boundary=xx", Bytes::copy_from_slice(body)))
    }

    #[test]
    fn a_form_without_files_is_read() {
        let kind = "Application/X-WWW-Form-urlencoded; charset=utf-8";
        assert!(is_urlencoded(kind) && !is_form(kind));
        let found = urlencoded(b"image_data=a%2Bb%2F%3D%3D&use_det=True").unwrap();
        let shown: Vec<_> = found.iter().map(|part| (&*part.name, part.text().unwrap())).collect();
        assert_eq!(shown, [("image_data", "a+b/=="), ("use_det", "True")]);
        assert_eq!(urlencoded(&b"a=1&".repeat(64)).unwrap().len(), 64);
        assert!(urlencoded(&b"a=1&".repeat(65)).unwrap_err().message.contains("more than 64"));
    }

    #[test]
    fn fields_and_files_are_read() {
        let body = "--xx\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\ntwo\r\n\
                    --xx\r\ncontent-type: image/png\r\ncontent-disposition: form-data; name=\"file\"; filename=\"b.png\"\r\n\r\n\
                    --x\r\n--xx--\r\n";
        let found = parts(body.as_bytes()).unwrap();
        let shown =
            |part: &Part| (part.name.clone(), part.file_name.clone(), part.text().unwrap().to_owned());
        assert_eq!(shown(&found[0]), ("a".into(), None, "one\r\ntwo".into()));
        assert_eq!(shown(&found[1]), ("file".into(), Some("b.png".into()), "--x".into()));
        assert!(is_form("Multipart/Form-Data; boundary=x") && !is_form("application/json"));
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let part = "--xx\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n1\r\n";
        for body in [String::new(), "--yy\r\n".into(), part.into(), format!("{}--xx--\r\n", part.repeat(65))]
        {
            let refused = parts(body.as_bytes()).unwrap_err();
            assert_eq!(refused.reason, reason::MALFORMED_REQUEST, "{body:.40}");
        }
        assert!(block_on(parse("multipart/form-data", Bytes::new())).is_err());
    }

    proptest! {
        /// Whatever the bytes of a file, they come back; whatever the bytes of a body, it is read or refused.
        #[test]
        fn bytes_come_back(data in prop::collection::vec(any::<u8>(), 0..200), junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let head = b"--xx\r\ncontent-disposition: form-data; name=\"f\"\r\n\r\n";
            prop_assume!(!data.windows(6).any(|bytes| bytes == b"\r\n--xx"));
            let body = [&head[..], &data, b"\r\n--xx--\r\n"].concat();
            prop_assert_eq!(&parts(&body).unwrap()[0].data[..], &data[..]);
            drop(parts(&[&head[..], &junk].concat()));
            drop(parts(&junk));
        }
    }
}
