//! The binary tensor extension: JSON, and behind it the memory of tensors.
//!
//! `Inference-Header-Content-Length` says where the JSON ends; what follows are the tensors that say
//! `binary_data_size`, one after the other in the order of the JSON, with nothing between or behind them.

use actix_web::http::header::{HeaderMap, HeaderName};
use backplane::{Error, Result};
use bytes::Bytes;
use serde_json::{Map, Value};

pub(crate) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
/// The one parameter of a tensor that is read.
const SIZE: &str = "binary_data_size";

/// A body, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) struct Parts {
    pub json: Bytes,
    pub binary: Binary,
}

/// The memory behind the JSON, given out from the front.
#[derive(Debug, PartialEq)]
pub(crate) struct Binary(Bytes);

/// Takes a body apart where the header says.
///
/// # Errors
/// A length that is no number, or beyond the body.
pub(crate) fn split(headers: &HeaderMap, mut body: Bytes) -> Result<Parts> {
    let Some(length) = headers.get(&HEADER_LENGTH) else {
        return Ok(Parts { json: body, binary: Binary(Bytes::new()) });
    };
    let length = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(length) = length.and_then(|text| text.parse::<usize>().ok()) else {
        return Err(Error::invalid(format!("header `{HEADER_LENGTH}` must be a number of bytes")));
    };
    if body.len() < length {
        let message =
            format!("header `{HEADER_LENGTH}` is {length}, and the body has only {} bytes", body.len());
        return Err(Error::invalid(message));
    }
    let json = body.split_to(length);
    Ok(Parts { json, binary: Binary(body) })
}

/// Tells which parameters of a tensor nobody reads; `at` is where the tensor stands in the request.
pub(crate) fn unread(at: &str, parameters: Option<&Map<String, Value>>, ignored: &mut Vec<String>) {
    let unread = parameters.into_iter().flatten().filter(|(name, value)| *name != SIZE && !value.is_null());
    ignored.extend(unread.map(|(name, _)| format!("{at}.parameters.{name}")));
}

impl Binary {
    /// The memory of the next tensor, if its parameters say that it has some here.
    ///
    /// # Errors
    /// A size that is no number, or more than is left.
    pub(crate) fn take(
        &mut self,
        name: &str,
        parameters: Option<&Map<String, Value>>,
    ) -> Result<Option<Bytes>> {
        let Some(size) = parameters.and_then(|parameters| parameters.get(SIZE)) else {
            return Ok(None);
        };
        let size = size.as_u64().and_then(|size| usize::try_from(size).ok()).ok_or_else(|| {
            Error::invalid(format!("`binary_data_size` of tensor `{name}` must be a number of bytes"))
                .with_param(name)
        })?;
        if self.0.len() < size {
            let message = format!(
                "`binary_data_size` of tensor `{name}` is {size}, and only {} bytes are left of the body",
                self.0.len()
            );
            return Err(Error::invalid(message).with_param(name));
        }
        Ok(Some(self.0.split_to(size)))
    }

    /// Everything must have been taken.
    ///
    /// # Errors
    /// When bytes are left that no tensor claims.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(Error::invalid(format!(
                "{left} bytes of the body belong to no tensor; the sum of every `binary_data_size` and \
                 `{HEADER_LENGTH}` must be the length of the body"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;
    use proptest::prelude::*;

    fn headers(length: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_LENGTH, HeaderValue::from_str(length).unwrap());
        headers
    }

    fn sized(size: impl Into<Value>) -> Map<String, Value> {
        Map::from_iter([("binary_data_size".to_owned(), size.into())])
    }

    proptest! {
        #[test]
        fn what_was_put_together_comes_apart(
            json in proptest::collection::vec(any::<u8>(), 0..40),
            tensors in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..5),
        ) {
            let mut body = json.clone();
            tensors.iter().for_each(|tensor| body.extend_from_slice(tensor));
            let mut parts = split(&headers(&json.len().to_string()), body.into()).unwrap();
            prop_assert_eq!(&parts.json[..], &json[..]);
            for tensor in &tensors {
                let taken = parts.binary.take("x", Some(&sized(tensor.len()))).unwrap().unwrap();
                prop_assert_eq!(&taken[..], &tensor[..]);
            }
            prop_assert!(parts.binary.finish().is_ok());
        }

        #[test]
        fn any_header_and_any_sizes_are_survived(
            length in "[ -~]{0,22}",
            body in proptest::collection::vec(any::<u8>(), 0..40),
            sizes in proptest::collection::vec(any::<i64>(), 0..4),
        ) {
            if let Ok(mut parts) = split(&headers(&length), body.clone().into()) {
                prop_assert!(parts.json.len() <= body.len());
                let taken = sizes.iter().all(|size| parts.binary.take("x", Some(&sized(*size))).is_ok());
                let all = sizes.iter().try_fold(parts.json.len() as i64, |sum, size| sum.checked_add(*size));
                if taken && parts.binary.finish().is_ok() {
                    prop_assert_eq!(all, Some(body.len() as i64));
                }
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let body = || Bytes::from_static(b"{}abc");
        for length in ["-1", "+2", "6", "99999999999999999999999", "", "2 ", "0x2"] {
            assert!(split(&headers(length), body()).is_err(), "{length:?}");
        }
        let mut parts = split(&headers("2"), body()).unwrap();
        assert!(parts.binary.take("x", Some(&sized(4))).is_err());
        assert!(parts.binary.take("x", Some(&sized("3"))).is_err());
        assert!(parts.binary.take("x", Some(&sized(-3))).is_err());
        assert_eq!(parts.binary.take("x", None).unwrap(), None);
        assert!(parts.binary.finish().unwrap_err().message.starts_with("3 bytes"));
    }
}
