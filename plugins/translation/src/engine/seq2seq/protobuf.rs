//! The wire format of protocol buffers, as far as reading a few fields of a large file takes.

use std::io::{self, BufRead, Cursor, Read as _, Seek};

/// The fields of a message, one after the other.
pub struct Message<R> {
    source: R,
    /// Bytes of it that are not read yet.
    left: u64,
}

/// What a field holds.
pub enum Field {
    Number(u64),
    Fixed32(u32),
    /// So many bytes follow, which have to be taken or passed over.
    Bytes(u64),
    /// A number of 64 bits, which nobody here has use for.
    Other,
}

impl Message<Cursor<Vec<u8>>> {
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { left: bytes.len() as u64, source: Cursor::new(bytes) }
    }

    /// The message in the field with this number, the last where there are several.
    ///
    /// # Errors
    /// When these are no fields.
    pub fn find(mut self, wanted: u64) -> io::Result<Option<Self>> {
        let mut found = None;
        while let Some((number, field)) = self.field()? {
            match field {
                Field::Bytes(length) if number == wanted => found = Some(Self::of(self.bytes(length)?)),
                Field::Bytes(length) => self.pass(length)?,
                _ => {}
            }
        }
        Ok(found)
    }
}

impl<R: BufRead + Seek> Message<R> {
    pub fn within(source: R, length: u64) -> Self {
        Self { source, left: length }
    }

    /// The number of the next field and what it holds, until there is none.
    ///
    /// # Errors
    /// When these are no fields.
    pub fn field(&mut self) -> io::Result<Option<(u64, Field)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.array::<8>()?;
                Field::Other
            }
            2 => {
                let length = self.number()?;
                if self.left < length {
                    return Err(broken("a field is longer than its message"));
                }
                Field::Bytes(length)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(broken("a field is of no known kind")),
        };
        Ok(Some((tag >> 3, field)))
    }

    /// Takes the bytes of a field.
    ///
    /// # Errors
    /// When they are not there.
    pub fn bytes(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.source.by_ref().take(length).read_to_end(&mut bytes)?;
        self.left = self.left.saturating_sub(length);
        if (read as u64) < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    /// Takes the bytes of a field that are a text.
    ///
    /// # Errors
    /// When they are none.
    pub fn text(&mut self, length: u64) -> io::Result<String> {
        String::from_utf8(self.bytes(length)?).map_err(|_| broken("a text is not UTF-8"))
    }

    /// Passes over the bytes of a field.
    ///
    /// # Errors
    /// When they are more than a file can have.
    pub fn pass(&mut self, length: u64) -> io::Result<()> {
        let bytes = i64::try_from(length).map_err(|_| broken("a field is too long"))?;
        self.source.seek_relative(bytes)?;
        self.left = self.left.saturating_sub(length);
        Ok(())
    }

    /// The message in a field.
    pub fn message(self, length: u64) -> Self {
        Self { left: length, ..self }
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(broken("a number has no end"))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.left =
            self.left.checked_sub(N as u64).ok_or_else(|| broken("a field ends behind its message"))?;
        Ok(bytes)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
