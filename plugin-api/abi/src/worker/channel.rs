//! Frames on a socket.
#![expect(unsafe_code, reason = "maps sealed memory that a frame arrived in")]

use super::lent::{Arena, Borrowed, Mapping};
use super::spin::{Lookers, Spin};
use super::wire::{ALIGN, Malformed, Out, Source, Wire};
use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest frame that goes through the socket itself.
pub const MAX_INLINE: usize = 64 << 10;
/// Longest frame.
pub const MAX_FRAME: usize = 8 << 30;
/// How long a frame waits at most for descriptors on their way to be taken.
const DESCRIPTORS_UNREAD: Duration = Duration::from_secs(2);
/// What a packet is: its last byte.
const INLINE: u8 = 0;
const ARENA: u8 = 1;
const LENT: u8 = 2;
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// One end of a connection. May be used from several threads: a frame goes and comes whole.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// How waiting for something to come has been.
    waits: Spin,
}

/// A frame that arrived. Begins at a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct Body(Memory);

#[derive(Debug)]
enum Memory {
    Own(Vec<Line>, usize),
    Mapped(*mut c_void, usize),
    /// Of the host's, with its number and the frame's length.
    Lent(Arc<Mapping>, u64, usize),
}

/// Memory that begins at a multiple of [`ALIGN`].
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

thread_local! {
    /// Where packets land; what came is moved to memory of its length.
    static LANDING: RefCell<Vec<Line>> = RefCell::new(vec![Line([0; ALIGN]); MAX_INLINE / ALIGN + 1]);
}

// SAFETY: the mapping is read-only, sealed against writes by anybody, and unmapped once, by its one owner.
unsafe impl Send for Body {}
// SAFETY: as above.
unsafe impl Sync for Body {}

impl Body {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: as many lines as hold `len` bytes, one after the other (repr(C), no padding).
            Memory::Own(lines, len) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast::<u8>(), *len)
            },
            // SAFETY: mapped for reading, of this length, and sealed: it neither shrinks nor changes.
            Memory::Mapped(at, len) => unsafe { std::slice::from_raw_parts(at.cast::<u8>(), *len) },
            Memory::Lent(pages, _, len) => pages.bytes(*len),
        }
    }

    /// The number of the memory that it lies in, if it was lent.
    pub fn lent(&self) -> Option<u64> {
        if let Memory::Lent(_, id, _) = self.0 { Some(id) } else { None }
    }

    /// What it says.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read<'a, T: Wire<'a>>(&'a self) -> Result<T, Malformed> {
        Source::whole(self.bytes())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Memory::Mapped(at, len) = self.0 {
            // SAFETY: mapped by `map`, once, and nothing borrowed from it is left.
            let _gone = unsafe { munmap(at, len) };
        }
    }
}

/// A frame with one value.
pub fn frame<'a, T: Wire<'a>>(value: &T) -> Out<'a> {
    let mut out = Out::default();
    value.put(&mut out);
    out
}

impl Channel {
    /// Both ends of a new connection.
    ///
    /// # Errors
    /// The system's.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel::from_fd(ours), Channel::from_fd(theirs)))
    }

    /// One end, as it was inherited or received.
    pub fn from_fd(fd: OwnedFd) -> Channel {
        Channel { socket: fd, waits: Spin::default() }
    }

    /// The descriptor, to be handed on.
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// Sends a frame whole, or not at all.
    ///
    /// # Errors
    /// The system's; the other end is gone.
    pub fn send(&self, out: &Out<'_>) -> io::Result<()> {
        self.send_with(out, None)
    }

    /// Sends a frame and, beside it, a descriptor. Only small frames can have one.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_with(&self, out: &Out<'_>, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if MAX_FRAME < out.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the frame is too long"));
        }
        if MAX_INLINE < out.len() {
            let arena = seal(out)?;
            return self.packet(&[&[ARENA]], Some(arena.as_fd()));
        }
        match out.one_piece() {
            Some(piece) => self.packet(&[piece, &[INLINE]], fd),
            None => self.packet(&[&out.pieces()[..], &[&[INLINE]]].concat(), fd),
        }
    }

    /// Sends the frame of this length that lies in memory which the other end is lent.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_lent(&self, arena: &mut Arena, len: usize) -> io::Result<()> {
        let place = [arena.id().to_le_bytes(), (len as u64).to_le_bytes()].concat();
        self.packet(&[&place, &[LENT]], arena.unsent())?;
        arena.was_sent();
        Ok(())
    }

    /// Waits awake, as long as that is worth it, until there is something to be read, here or where else `come` looks.
    /// Whether there is; if not, it is time to sleep.
    pub fn look(&self, lookers: &Lookers, come: impl FnMut() -> bool) -> bool {
        lookers.wait(&self.waits, come)
    }

    fn packet(&self, pieces: &[&[u8]], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let (few, many): ([IoSlice<'_>; 2], Vec<_>);
        let slices = match *pieces {
            [first, second] => {
                few = [IoSlice::new(first), IoSlice::new(second)];
                &few[..]
            }
            _ => {
                many = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                &many[..]
            }
        };
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let mut since = None;
        loop {
            match sendmsg(&self.socket, slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // As many of this user's descriptors as may be open are on their way. The other end takes them, as it does
                // when the socket is full; there the system would wait for us.
                Err(Errno::TOOMANYREFS)
                    if since.get_or_insert_with(Instant::now).elapsed() < DESCRIPTORS_UNREAD =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next frame, and the descriptor beside it. `None` when the other end is gone.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::InvalidData`] when what came is no frame; [`io::ErrorKind::ConnectionReset`] when
    /// the other end is gone and has left unread what was sent to it.
    pub fn receive(&self) -> io::Result<Option<(Body, Option<OwnedFd>)>> {
        self.take(RecvFlags::empty(), None)
    }

    /// The same, if it is there: else [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_now(&self) -> io::Result<Option<(Body, Option<OwnedFd>)>> {
        self.take(RecvFlags::DONTWAIT, None)
    }

    /// The next frame, awake for as long as that is worth it.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_awake(&self, lookers: &Lookers) -> io::Result<Option<(Body, Option<OwnedFd>)>> {
        self.take_awake(lookers, None)
    }

    /// The same, by who may be lent memory: it says so when nobody reads the frame any more.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_call(&self, lookers: &Lookers, borrowed: &Borrowed) -> io::Result<Option<Body>> {
        Ok(self.take_awake(lookers, Some(borrowed))?.map(|(body, _)| body))
    }

    fn take_awake(
        &self,
        lookers: &Lookers,
        borrowed: Option<&Borrowed>,
    ) -> io::Result<Option<(Body, Option<OwnedFd>)>> {
        let mut came = None;
        let come = || {
            let now = self.take(RecvFlags::DONTWAIT, borrowed);
            let none = now.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            came = (!none).then_some(now);
            !none
        };
        self.look(lookers, come);
        came.unwrap_or_else(|| self.take(RecvFlags::empty(), borrowed))
    }

    fn take(
        &self,
        flags: RecvFlags,
        borrowed: Option<&Borrowed>,
    ) -> io::Result<Option<(Body, Option<OwnedFd>)>> {
        let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        LANDING.with_borrow_mut(|lines| {
            // SAFETY: lines are bytes, one after the other.
            let landing = unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), lines.len() * ALIGN)
            };
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = loop {
                let mut into = [IoSliceMut::new(landing)];
                match recvmsg(&self.socket, &mut into, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
                    Ok(received) => break received,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            };
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    fds.extend(more);
                }
            }
            let Some(len) = received.bytes.checked_sub(1) else { return Ok(None) };
            if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || 1 < fds.len() {
                return Err(bad("a packet is longer than the protocol allows"));
            }
            // The kind stands at the end, so that the frame begins at a multiple.
            match (landing[len], fds.pop(), borrowed) {
                (INLINE, fd, _) => {
                    let own = lines[..len.div_ceil(ALIGN)].to_vec();
                    Ok(Some((Body(Memory::Own(own, len)), fd)))
                }
                (ARENA, Some(fd), _) if len == 0 => Ok(Some((map(&fd)?, None))),
                (LENT, fd, Some(borrowed)) if len == 16 => {
                    let number = |at: usize| {
                        landing[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
                    };
                    let (id, len) = (number(0), usize::try_from(number(8)).unwrap_or(usize::MAX));
                    Ok(Some((Body(Memory::Lent(borrowed.find(id, len, fd)?, id, len)), None)))
                }
                _ => Err(bad("a packet is no frame")),
            }
        })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A frame in memory that nobody can change any more.
fn seal(out: &Out<'_>) -> io::Result<OwnedFd> {
    let arena = written(out)?;
    fcntl_add_seals(&arena, SEALS)?;
    Ok(arena)
}

/// A frame in memory without a name.
pub(super) fn written(out: &Out<'_>) -> io::Result<OwnedFd> {
    let arena = memfd_create(c"backplane", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    for mut piece in out.pieces() {
        while !piece.is_empty() {
            match rustix::io::write(&arena, piece) {
                Ok(written) => piece = &piece[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(arena)
}

/// Maps a frame that somebody sealed. First the seals are looked at, then its length, which cannot change any more.
fn map(arena: &OwnedFd) -> io::Result<Body> {
    let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    // What is no memfd answers EINVAL here.
    let seals = fcntl_get_seals(arena).map_err(|_| bad("an arena is not a memfd"))?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE) {
        return Err(bad("an arena is not sealed"));
    }
    let stat = fstat(arena)?;
    let len = usize::try_from(stat.st_size).map_err(|_| bad("an arena has no length"))?;
    if len == 0 || MAX_FRAME < len {
        return Err(bad("an arena is empty or too long"));
    }
    // A hole becomes memory of whoever reads it first: its sender would have us allocate what it was not granted.
    if u64::try_from(stat.st_blocks).map_or(true, |blocks| blocks.saturating_mul(512) < len as u64) {
        return Err(bad("an arena has holes"));
    }
    // Private, though nobody writes: before Linux 6.7 a file sealed against writing cannot be mapped shared, not even to be read.
    // SAFETY: a new mapping, of the file's length, which cannot shrink; read-only, of what nobody can write.
    let at = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, arena, 0) }?;
    Ok(Body(Memory::Mapped(at, len)))
}
