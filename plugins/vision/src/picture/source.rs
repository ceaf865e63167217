//! Where a request has its pictures: the members `image` or `images` of its parameters, or the tensor `image` beside them.

use super::{Limits, Needs, Picture, decode, invalid};
use backplane_plugin::prelude::*;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine};
use std::borrow::Cow;

/// A picture that was sent, not read yet.
#[derive(Debug)]
pub enum Source<'a> {
    /// The bytes of a file.
    File(Cow<'a, [u8]>),
    /// Pixels, row by row.
    Pixels { width: u32, height: u32, channels: usize, data: Cow<'a, [u8]> },
}

impl<'a> Source<'a> {
    /// Those of a request: as `image`, as `images`, or as a tensor `image` of one file or several, or of pixels.
    ///
    /// # Errors
    /// When there is none, when they are given twice, or one is not of a form that can hold a picture.
    pub fn all(request: &'a Request, image: Option<&str>, images: &[String]) -> Result<Vec<Self>> {
        let tensors = request.tensors()?;
        if let Some(unknown) = tensors.iter().find(|tensor| tensor.name() != "image") {
            return Err(Error::invalid(format!(
                "there is no use for tensor `{}`; one named `image` may hold the picture",
                unknown.name()
            ))
            .with_param(unknown.name()));
        }
        match (image, images, &tensors[..]) {
            (Some(text), [], []) => Ok(vec![Self::of_text(text)?]),
            (None, [], [tensor]) if tensor.dtype() == DType::Bytes && !tensor.is_empty() => {
                Ok(tensor.strings()?.into_iter().map(|file| Self::File(Cow::Borrowed(file))).collect())
            }
            (None, [], [tensor]) => Ok(vec![Self::of_tensor(tensor)?]),
            (None, images, []) if !images.is_empty() => {
                let text = |(place, text): (usize, &String)| {
                    let named = |mut error: Error| {
                        error.message = error.message.replacen("`image`", &format!("`images[{place}]`"), 1);
                        error.with_param(format!("images[{place}]"))
                    };
                    Self::of_text(text).map_err(named)
                };
                images.iter().enumerate().map(text).collect()
            }
            (None, [], []) => Err(invalid(
                "`image` is missing: a picture as a file of a form, in base64, as a `data:` URL, or as a tensor of that name",
            )),
            (Some(_), [_, ..], []) => Err(invalid("`image` and `images` are given; one of them is enough")),
            _ => Err(invalid(
                "pictures are given twice: in the parameters, and as files or a tensor beside them",
            )),
        }
    }

    /// Where the pages of a file are; none where its first picture is the only one. Those beyond `most` and one are not looked
    /// for.
    ///
    /// # Errors
    /// When they cannot be told.
    pub fn pages(&self, most: usize) -> Result<Vec<u64>> {
        match self {
            Self::File(bytes) => decode::pages(bytes, most),
            Self::Pixels { .. } => Ok(Vec::new()),
        }
    }

    fn of_text(text: &str) -> Result<Self> {
        let text = text.trim();
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        let base64 = match scheme.as_deref() {
            None => text,
            Some("data") => match text.split_once(',') {
                Some((head, data)) if head.to_ascii_lowercase().ends_with(";base64") => data,
                _ => {
                    return Err(invalid(
                        "`image` is a `data:` URL, and not one in base64: `data:image/png;base64,…`",
                    ));
                }
            },
            Some("http" | "https") => {
                return Err(invalid(
                    "`image` is an address, and only the routes below `/v1/vision` fetch one: ask those, or send the picture itself, in base64 or as a `data:` URL",
                ));
            }
            Some(_) => return Err(invalid("`image` is neither base64 nor a `data:` URL")),
        };
        Ok(Self::File(Cow::Owned(unwrapped(base64)?)))
    }

    fn of_tensor(tensor: &TensorView<'a>) -> Result<Self> {
        match (tensor.dtype(), tensor.shape()) {
            (DType::Uint8, &[height, width, channels @ (1 | 3 | 4)]) => {
                let side =
                    |side: i64| u32::try_from(side).map_err(|_| invalid("a side of `image` is too long"));
                let (width, height, data) = (side(width)?, side(height)?, tensor.elements::<u8>()?);
                Ok(Self::Pixels { width, height, channels: channels as usize, data })
            }
            (dtype, shape) => Err(invalid(format!(
                "tensor `image` is {} {shape:?}, and must be BYTES [pictures] (files) or UINT8 [height, width, channels] with 1, 3 or 4 channels",
                dtype.name()
            ))),
        }
    }

    /// What reading it takes.
    ///
    /// # Errors
    /// As [`Source::read`], as far as a file's head tells.
    pub fn needs(&self, page: Option<u64>, limits: &Limits) -> Result<Needs> {
        match self {
            Self::File(bytes) => decode::needs(bytes, page, limits),
            Self::Pixels { width, height, .. } => {
                limits.check(*width, *height)?;
                let pixels = u64::from(*width) * u64::from(*height);
                Ok(Needs { pixels, memory: 3 * pixels })
            }
        }
    }

    /// Reads it, or this page of it.
    ///
    /// # Errors
    /// When it is no picture, or larger than it may be.
    pub fn read(&self, page: Option<u64>, limits: &Limits) -> Result<Picture> {
        match self {
            Self::File(bytes) => decode::file(bytes, page, limits),
            Self::Pixels { width, height, channels, data } => {
                limits.check(*width, *height)?;
                Ok(Picture::new(*width, *height, decode::flat(data, *channels)))
            }
        }
    }
}

/// Base64, with or without padding, of either alphabet, broken into lines or not.
fn unwrapped(text: &str) -> Result<Vec<u8>> {
    const EITHER: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text: Cow<'_, str> = match text.contains(|c: char| c.is_ascii_whitespace()) {
        true => text.split_ascii_whitespace().collect::<String>().into(),
        false => text.into(),
    };
    let alphabet = if text.contains(['-', '_']) { URL_SAFE } else { STANDARD };
    GeneralPurpose::new(&alphabet, EITHER)
        .decode(text.as_bytes())
        .map_err(|error| invalid(format!("`image` is not base64: {}", odd(&error))))
}

/// What keeps text from being base64.
fn odd(error: &DecodeError) -> String {
    match *error {
        DecodeError::InvalidByte(at, b'=') => {
            format!("there is more behind its end, the `=` at place {}", at + 1)
        }
        DecodeError::InvalidByte(at, byte) if byte.is_ascii_graphic() => {
            format!("the character at place {} is `{}`", at + 1, char::from(byte))
        }
        DecodeError::InvalidByte(at, _) => {
            format!("the character at place {} is none of its letters", at + 1)
        }
        DecodeError::InvalidLength(_) | DecodeError::InvalidLastSymbol(..) | DecodeError::InvalidPadding => {
            "its end is missing or changed".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Vec<u8>> {
        match Source::of_text(text)? {
            Source::File(bytes) => Ok(bytes.into_owned()),
            Source::Pixels { .. } => panic!("a file"),
        }
    }

    #[test]
    fn base64_comes_in_many_forms() {
        for text in
            ["+/8=", "+/8", "-_8", "-_8=", " +/\n8= ", "data:image/png;base64,+/8=", "DATA:;BASE64,+/8="]
        {
            assert_eq!(file(text).unwrap(), [0xfb, 0xff], "{text}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_by_what_it_is() {
        for (text, says) in [
            ("https://example.com/x.png", "only the routes below"),
            ("HTTP://127.0.0.1/", "only the routes below"),
            ("file:///etc/passwd", "neither base64 nor"),
            ("data:image/png,raw", "not one in base64"),
            ("data:image/svg+xml;base64", "not one in base64"),
            ("QUJD!", "not base64: the character at place 5 is `!`"),
            ("QUJDä", "not base64: the character at place 5 is none of its letters"),
            ("QQ==QQ==", "more behind its end"),
            ("QUJDQ", "its end is missing"),
        ] {
            let refused = file(text).unwrap_err();
            assert_eq!((refused.code, &refused.details["param"]), (Code::InvalidArgument, &json!("image")));
            assert!(refused.message.contains(says), "{text}: {refused}");
        }
    }
}
