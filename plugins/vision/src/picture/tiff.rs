//! The pages of a TIFF: the decoder reads the first, so each page is read as the first of a file that begins with it.

use super::invalid;
use backplane_plugin::prelude::*;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

/// Directories of a file, pages or not, and entries of one. They can overlap, so that the length of a file bounds neither; what
/// programs write has a tenth of it.
const MAX_DIRECTORIES: usize = 512;
const MAX_ENTRIES: u64 = 512;
/// The tag that says what a picture is for, and the bits of it that say that it is no page: made smaller, a mask.
const KIND: u64 = 254;
const NO_PAGE: u64 = 0b101;

/// Lengths that differ between the two kinds of TIFF, and in which order the bytes of a number stand.
struct Layout<'a> {
    bytes: &'a [u8],
    little: bool,
    big: bool,
}

impl<'a> Layout<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let little = bytes.starts_with(b"II");
        let layout = Self { bytes, little, big: false };
        Self { big: layout.number(2, 2) == Some(43), ..layout }
    }

    fn number(&self, at: u64, size: u64) -> Option<u64> {
        let (from, to) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(size)?).ok()?);
        let bytes = self.bytes.get(from..to)?.iter();
        let digit = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.little { bytes.rev().fold(0, digit) } else { bytes.fold(0, digit) })
    }

    /// Where the offset of the first directory stands, and the length of an offset, of the number of entries, of an entry.
    fn lengths(&self) -> (u64, u64, u64, u64) {
        if self.big { (8, 8, 8, 20) } else { (4, 4, 2, 12) }
    }

    /// How many entries a directory has.
    fn entries(&self, at: u64) -> Option<u64> {
        self.number(at, self.lengths().2)
    }

    /// Whether the directory is that of a page, and where the next one stands; 0 for none.
    fn directory(&self, at: u64) -> Option<(bool, u64)> {
        let (_, offset, count, entry) = self.lengths();
        let entries = self.entries(at)?;
        let first = at.checked_add(count)?;
        let next = self.number(first.checked_add(entries.checked_mul(entry)?)?, offset)?;
        let kind =
            (0..entries).map(|place| first + place * entry).find(|at| self.number(*at, 2) == Some(KIND));
        let kind = kind.and_then(|at| {
            const SHORT: u64 = 3;
            let size = if self.number(at + 2, 2)? == SHORT { 2 } else { 4 };
            self.number(at + entry - offset, size)
        });
        Some((kind.unwrap_or_default() & NO_PAGE == 0, next))
    }
}

/// Where the directories of a TIFF's pages stand, in their order. None where the first is the only one, and of a file that is no
/// more than its head. Those beyond `most` and one are not looked for.
///
/// # Errors
/// When a page is missing, leads back to one before it, or is described at a length that none is.
pub fn pages(bytes: &[u8], most: usize) -> Result<Vec<u64>> {
    let layout = Layout::of(bytes);
    let (at, size, ..) = layout.lengths();
    let Some(first) = layout.number(at, size) else { return Ok(Vec::new()) };
    let (mut pages, mut seen, mut next) = (Vec::new(), BTreeSet::new(), first);
    while next != 0 && pages.len() <= most {
        if !seen.insert(next) {
            return Err(invalid("the TIFF is damaged: its pages go round in a circle"));
        }
        if MAX_DIRECTORIES < seen.len() {
            let what = "the TIFF has more than";
            return Err(invalid(format!(
                "{what} {MAX_DIRECTORIES} pictures, those counted that are no pages"
            )));
        }
        if let Some(entries) = layout.entries(next).filter(|entries| MAX_ENTRIES < *entries) {
            let message = format!(
                "the TIFF is damaged: picture {} of it has {entries} tags, and {MAX_ENTRIES} are read",
                seen.len()
            );
            return Err(invalid(message));
        }
        let Some((page, following)) = layout.directory(next) else {
            // Of the first one the decoder says what is wrong.
            let missing = seen.len();
            return if missing == 1 {
                Ok(Vec::new())
            } else {
                Err(invalid(format!("the TIFF is cut off: picture {missing} of it is missing")))
            };
        };
        pages.extend(page.then_some(next));
        next = following;
    }
    Ok(if pages == [first] { Vec::new() } else { pages })
}

/// The bytes of a file, those at its beginning put in the place of its own.
#[derive(Debug)]
pub struct Beginning<'a> {
    head: Vec<u8>,
    file: Cursor<&'a [u8]>,
}

impl<'a> Beginning<'a> {
    /// As it is.
    pub fn own(bytes: &'a [u8]) -> Self {
        Self { head: Vec::new(), file: Cursor::new(bytes) }
    }

    /// A TIFF whose first page is the one with its directory here.
    pub fn with_page(bytes: &'a [u8], directory: u64) -> Self {
        let layout = Layout::of(bytes);
        let (at, size, ..) = layout.lengths();
        let mut head: Vec<u8> = bytes.iter().take(at as usize).copied().collect();
        let digits = directory.to_le_bytes().into_iter().take(size as usize);
        if layout.little {
            head.extend(digits)
        } else {
            head.extend(digits.rev())
        }
        Self { head, file: Cursor::new(bytes) }
    }
}

impl BufRead for Beginning<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match usize::try_from(self.file.position()).ok().and_then(|at| self.head.get(at..)) {
            Some(rest) if !rest.is_empty() => Ok(rest),
            _ => self.file.fill_buf(),
        }
    }

    fn consume(&mut self, count: usize) {
        self.file.consume(count);
    }
}

impl Read for Beginning<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for Beginning<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one entry each: what it is for.
    fn file(big: bool, little: bool, kinds: &[u32]) -> Vec<u8> {
        let number = |number: u64, size: usize| {
            let mut digits = number.to_le_bytes()[..size].to_vec();
            if !little {
                digits.reverse();
            }
            digits
        };
        let (offset, count) = if big { (8, 8) } else { (4, 2) };
        let mut bytes = if little { b"II".to_vec() } else { b"MM".to_vec() };
        bytes.extend(number(if big { 43 } else { 42 }, 2));
        if big {
            bytes.extend([number(8, 2), number(0, 2)].concat());
        }
        let length = (count + 4 + 2 * offset + offset) as u64;
        let first = (bytes.len() + offset) as u64;
        bytes.extend(number(first, offset));
        for (place, kind) in (1..).zip(kinds) {
            let next = if place as usize == kinds.len() { 0 } else { first + place * length };
            let value = [number(u64::from(*kind), 4), vec![0; offset - 4]].concat();
            let entry = [number(254, 2), number(4, 2), number(1, offset), value].concat();
            bytes.extend([number(1, count), entry, number(next, offset)].concat());
        }
        bytes
    }

    #[test]
    fn pages_are_found_and_small_pictures_of_them_are_none() {
        for (big, little) in [(false, true), (false, false), (true, true), (true, false)] {
            let bytes = file(big, little, &[2, 1, 2, 0, 4]);
            let found = pages(&bytes, 64).unwrap();
            assert_eq!(found.len(), 3, "{big} {little} {found:?}");
            let mut begun = Vec::new();
            Beginning::with_page(&bytes, found[1]).read_to_end(&mut begun).unwrap();
            assert_eq!((begun.len(), pages(&begun, 64).unwrap()), (bytes.len(), found[1..].to_vec()));
            let mut own = Vec::new();
            Beginning::own(&bytes).read_to_end(&mut own).unwrap();
            assert_eq!(own, bytes);
        }
        for only in [&[1][..], &[0], &[0, 1], &[1, 4]] {
            assert!(
                pages(&file(false, true, only), 64).unwrap().is_empty(),
                "the first is the page: {only:?}"
            );
        }
        for second in [&[1, 0][..], &[4, 2, 1]] {
            let bytes = file(false, true, second);
            assert_eq!(pages(&bytes, 64).unwrap(), [8 + 18], "{second:?}");
        }
    }

    /// Every byte of it may be the beginning of a directory of any length.
    #[test]
    fn what_overlaps_is_not_looked_at_again_and_again() {
        let message = |bytes: &[u8]| pages(bytes, 64).unwrap_err().message;
        let many = [b"II\x2a\0\x08\0\0\0", &[0xff; 800_000][..]].concat();
        assert!(message(&many).contains("picture 1 of it has 65535 tags"), "{}", message(&many));
        assert!(message(&file(true, true, &[1; 513])).contains("more than 512 pictures"));
        assert_eq!(pages(&file(false, true, &[0; 10_000]), 64).unwrap().len(), 65, "one more, to be refused");
    }

    #[test]
    fn a_chain_that_ends_nowhere_is_refused() {
        let bytes = file(false, true, &[2, 2, 2]);
        let found = pages(&bytes, 64).unwrap();
        let mut circle = bytes.clone();
        let last = bytes.len() - 4;
        circle[last..].copy_from_slice(&(found[0] as u32).to_le_bytes());
        assert!(pages(&circle, 64).unwrap_err().message.contains("circle"));
        assert!(pages(&bytes[..last], 64).unwrap_err().message.contains("picture 3 of it is missing"));
        assert!(pages(&bytes[..12], 64).unwrap().is_empty() && pages(b"II", 64).unwrap().is_empty());
    }
}
