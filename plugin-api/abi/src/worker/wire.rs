//! Numbers, texts and lists as bytes, and strictly back: what is too short, too long or not a value is refused.

/// What was read is not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A frame in the making. Large texts are kept by reference until it is sent.
#[derive(Debug)]
pub struct Out<'a> {
    pub(super) bytes: Vec<u8>,
    /// What belongs into `bytes` at each position.
    pub(super) large: Vec<(usize, &'a [u8])>,
    total: usize,
}

/// From this length on a text is not copied into the frame that is being made.
const LARGE: usize = 4096;
/// Room that most frames have enough of.
const USUAL: usize = 192;
/// Alignment of a frame in its receiver's memory.
pub(super) const ALIGN: usize = 64;

impl Default for Out<'_> {
    fn default() -> Self {
        Self { bytes: Vec::with_capacity(USUAL), large: Vec::new(), total: 0 }
    }
}

impl<'a> Out<'a> {
    /// Length so far.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    fn raw(&mut self, bytes: &'a [u8]) {
        if bytes.len() < LARGE {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.large.push((self.bytes.len(), bytes));
        }
        self.total += bytes.len();
    }

    fn small<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes.extend_from_slice(&bytes);
        self.total += N;
    }

    /// A value.
    pub fn put<T: Wire<'a>>(&mut self, value: &T) -> &mut Self {
        value.put(self);
        self
    }

    /// The frame, if it lies in one piece.
    pub(super) fn one_piece(&self) -> Option<&[u8]> {
        self.large.is_empty().then_some(&self.bytes)
    }

    /// The pieces of the frame, in order.
    pub fn pieces(&self) -> Vec<&[u8]> {
        let mut pieces = Vec::with_capacity(2 * self.large.len() + 1);
        let mut from = 0;
        for (at, large) in &self.large {
            pieces.extend([&self.bytes[from..*at], *large]);
            from = *at;
        }
        pieces.push(&self.bytes[from..]);
        pieces
    }
}

/// A frame that is being read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    frame: &'a [u8],
    at: usize,
}

impl<'a> Source<'a> {
    /// Reads one value, which is all there is.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn whole<T: Wire<'a>>(frame: &'a [u8]) -> Result<T, Malformed> {
        let mut source = Source { frame, at: 0 };
        let value = T::take(&mut source)?;
        if source.at == frame.len() { Ok(value) } else { Err(Malformed) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).ok_or(Malformed)?;
        let bytes = self.frame.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn left(&self) -> usize {
        self.frame.len() - self.at
    }
}

/// What can be said.
pub trait Wire<'a>: Sized {
    /// Writes it.
    fn put(&self, out: &mut Out<'a>);

    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`].
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed>;
}

macro_rules! numbers {
    ($($number:ty)*) => { $(
        impl<'a> Wire<'a> for $number {
            fn put(&self, out: &mut Out<'a>) {
                out.small(self.to_le_bytes());
            }
            fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
                from.array().map(<$number>::from_le_bytes)
            }
        }
    )* };
}
numbers!(u8 u16 u32 u64 i32 i64);

impl<'a> Wire<'a> for f64 {
    fn put(&self, out: &mut Out<'a>) {
        self.to_bits().put(out);
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        u64::take(from).map(f64::from_bits)
    }
}

impl<'a> Wire<'a> for bool {
    fn put(&self, out: &mut Out<'a>) {
        u8::from(*self).put(out);
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

/// A text, or any bytes: what is UTF-8 is for the reader to say, as it is in the ABI.
impl<'a> Wire<'a> for &'a [u8] {
    fn put(&self, out: &mut Out<'a>) {
        (self.len() as u64).put(out);
        out.raw(self);
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        let len = u64::take(from)?;
        from.take(usize::try_from(len).map_err(|_| Malformed)?)
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Option<T> {
    fn put(&self, out: &mut Out<'a>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Vec<T> {
    fn put(&self, out: &mut Out<'a>) {
        (self.len() as u32).put(out);
        for value in self {
            value.put(out);
        }
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        let len = u32::take(from)? as usize;
        // No value is shorter than a byte: a count that cannot be true reserves no memory.
        if from.left() < len {
            return Err(Malformed);
        }
        (0..len).map(|_| T::take(from)).collect()
    }
}

/// Memory of a tensor: it lies at the same distance from a multiple of [`ALIGN`] on both sides, so that what was aligned
/// still is, and what was not can be seen to be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// What lies there.
    pub bytes: &'a [u8],
    /// Address modulo [`ALIGN`].
    pub lead: u8,
}

impl<'a> Data<'a> {
    /// Of memory that lies somewhere.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, lead: (bytes.as_ptr() as usize % ALIGN) as u8 }
    }
}

impl<'a> Wire<'a> for Data<'a> {
    fn put(&self, out: &mut Out<'a>) {
        self.lead.put(out);
        (self.bytes.len() as u64).put(out);
        let pad = (usize::from(self.lead) + 2 * ALIGN - out.total % ALIGN) % ALIGN;
        out.bytes.extend_from_slice(&[0; ALIGN][..pad]);
        out.total += pad;
        out.raw(self.bytes);
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        let lead = u8::take(from)?;
        let len = usize::try_from(u64::take(from)?).map_err(|_| Malformed)?;
        if ALIGN <= usize::from(lead) {
            return Err(Malformed);
        }
        let pad = (usize::from(lead) + 2 * ALIGN - from.at % ALIGN) % ALIGN;
        if from.take(pad)?.iter().any(|byte| *byte != 0) {
            return Err(Malformed);
        }
        Ok(Data { bytes: from.take(len)?, lead })
    }
}

/// Declares structs and enums with their reading and writing. A tag is the number in front of a variant. What a struct
/// `holds` is looked at when it was read.
macro_rules! messages {
    ($( $(#[$meta:meta])* struct $name:ident<$life:lifetime> { $( $(#[$doc:meta])* $field:ident: $type:ty, )* } $(holds $holds:ident;)? )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "members are those of backplane.h")]
        pub struct $name<$life> { $( $(#[$doc])* pub $field: $type, )* }
        impl<$life> Wire<$life> for $name<$life> {
            fn put(&self, out: &mut Out<$life>) { $( self.$field.put(out); )* }
            fn take(from: &mut Source<$life>) -> Result<Self, Malformed> {
                let read = Self { $( $field: Wire::take(from)?, )* };
                let holds = true $( && read.$holds() )?;
                holds.then_some(read).ok_or(Malformed)
            }
        }
    )* };
    ($( $(#[$meta:meta])* enum $name:ident<$life:lifetime> { $( $(#[$doc:meta])* $tag:literal $variant:ident { $($field:ident: $type:ty,)* } )* } )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "members are those of backplane.h")]
        pub enum $name<$life> { $( $(#[$doc])* $variant { $($field: $type,)* }, )* }
        impl<$life> Wire<$life> for $name<$life> {
            fn put(&self, out: &mut Out<$life>) {
                match self {
                    $( Self::$variant { $($field,)* } => { ($tag as u8).put(out); $( $field.put(out); )* } )*
                }
            }
            fn take(from: &mut Source<$life>) -> Result<Self, Malformed> {
                Ok(match u8::take(from)? {
                    $( $tag => Self::$variant { $($field: Wire::take(from)?,)* }, )*
                    _ => return Err(Malformed),
                })
            }
        }
    )* };
}
pub(super) use messages;
