//! Round trips, and bytes from a stranger.

use super::wire::Data;
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes<'a, T: Wire<'a>>(value: &T) -> Vec<u8> {
    frame(value).pieces().concat()
}

fn tensor<'a>(name: &'a [u8], shape: &Option<Vec<i64>>, data: &'a [u8], lead: u8) -> Tensor<'a> {
    Tensor {
        struct_size: 112,
        flags: 1,
        name,
        dev_type: 1,
        dev_id: 0,
        code: 2,
        bits: 32,
        lanes: 1,
        ndim: shape.as_ref().map_or(-1, |shape| shape.len() as i32),
        shape: shape.clone(),
        strides: None,
        nbytes: data.len() as u64,
        data: Some(Data { bytes: data, lead }),
        buffer: false,
    }
}

proptest! {
    #[test]
    fn requests_go_round(
        texts in vec(vec(any::<u8>(), 0..6000), 4),
        shape in proptest::option::of(vec(any::<i64>(), 0..8)),
        lead in 0u8..64,
        numbers in any::<(u64, i64, i32, bool)>(),
    ) {
        let rows = vec![Row {
            struct_size: 8, flags: 3, id: numbers.0, capability: &texts[0], params: &texts[1],
            tensors: vec![tensor(&texts[2], &shape, &texts[3], lead), tensor(b"", &shape, &texts[0], lead)],
            request_id: b"r", traceparent: b"", tenant: b"t", deadline_ns: numbers.1, cancelled: numbers.3,
            priority: numbers.2, capability_version: 1, credit: 9,
        }];
        let call = Call::Submit { instance: 7, rows, look: true };
        let sent = bytes(&call);
        prop_assert_eq!(sent.len(), frame(&call).len());
        prop_assert_eq!(Source::whole::<Call<'_>>(&sent), Ok(call.clone()));
        // Whatever is missing at its end, or follows it, is seen.
        prop_assert_eq!(Source::whole::<Call<'_>>(&sent[..sent.len() - 1]), Err(Malformed));
        let longer = [&sent[..], &[0]].concat();
        prop_assert_eq!(Source::whole::<Call<'_>>(&longer), Err(Malformed));
    }

    #[test]
    fn bytes_of_a_stranger_are_a_message_or_malformed(noise in vec(any::<u8>(), 0..400), tag in 0u8..16) {
        for noise in [noise.clone(), [&[tag][..], &noise].concat()] {
            // What is read is written as it was, so that there is one way to say a thing.
            if let Ok(said) = Source::whole::<ToHost<'_>>(&noise) { prop_assert_eq!(bytes(&said), &noise[..]); }
            if let Ok(said) = Source::whole::<ToWorker<'_>>(&noise) { prop_assert_eq!(bytes(&said), &noise[..]); }
            if let Ok(said) = Source::whole::<Call<'_>>(&noise) { prop_assert_eq!(bytes(&said), &noise[..]); }
            if let Ok(said) = Source::whole::<Return<'_>>(&noise) { prop_assert_eq!(bytes(&said), &noise[..]); }
        }
    }

    #[test]
    fn a_flipped_byte_never_breaks_the_reader(text in vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), by in 1u8..) {
        let shape = Some(vec![2, 3]);
        let said = ToHost::Push { request: 5, json: &text, tensors: vec![tensor(b"n", &shape, &text, 8)] };
        let mut sent = bytes(&said);
        let at = at.index(sent.len());
        sent[at] ^= by;
        if let Ok(read) = Source::whole::<ToHost<'_>>(&sent) {
            prop_assert_ne!(&read, &said);
        }
    }
}

/// A count that cannot be true costs no memory.
#[test]
fn a_list_is_no_longer_than_its_frame() {
    let mut noise = vec![2];
    noise.extend([0; 8]);
    noise.extend([0; 8]);
    noise.extend(u32::MAX.to_le_bytes());
    assert_eq!(Source::whole::<ToHost<'_>>(&noise), Err(Malformed));
}

/// What a worker is lent it reads, and again what is written there next; it can neither change nor shorten it.
#[test]
fn lent_memory_is_read_and_only_its_lender_writes_to_it() {
    let (ours, theirs) = Channel::pair().unwrap();
    let (borrowed, nobody) = (Borrowed::default(), Lookers::new(0));
    let call = |byte: u8, len: usize| vec![byte; len];
    let first = call(1, 3 << 20);
    let mut arena = Arena::new(&frame(&Call::Init { config: &first })).unwrap();
    let lend = |arena: &mut Arena, config: &[u8]| {
        let out = frame(&Call::Init { config });
        assert!(arena.write(&out));
        ours.send_lent(arena, out.len()).unwrap();
        theirs.receive_call(&nobody, &borrowed).unwrap().unwrap()
    };
    for (byte, len) in [(1, 3 << 20), (2, 3 << 20), (3, 100), (4, (3 << 20) + 1000)] {
        let config = call(byte, len);
        let body = lend(&mut arena, &config);
        assert_eq!(body.lent(), Some(arena.id()));
        assert_eq!(body.read::<Call<'_>>().unwrap(), Call::Init { config: &config });
    }
    let longer = call(5, arena.room());
    assert!(!arena.write(&frame(&Call::Init { config: &longer })), "it has no room for that");

    // With the descriptor, as a worker has it.
    let mut other = Arena::new(&frame(&Call::Init { config: &first })).unwrap();
    ours.send_lent(&mut other, 10).unwrap();
    let file = raw_descriptor(&theirs);
    assert!(rustix::io::write(&file, b"changed").is_err());
    assert!(rustix::fs::ftruncate(&file, 1).is_err());
    assert!(rustix::fs::ftruncate(&file, 1 << 30).is_err());
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::FUTURE_WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
}

/// The descriptor beside the next packet.
fn raw_descriptor(from: &Channel) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    recvmsg(from, &mut [rustix::io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
    let first = control.drain().next().unwrap();
    let RecvAncillaryMessage::ScmRights(mut files) = first else { panic!("no descriptor") };
    files.next().unwrap()
}

/// A worker lends nobody anything, and what was not lent cannot be read.
#[test]
fn who_borrows_nothing_refuses_what_is_lent() {
    let (ours, theirs) = Channel::pair().unwrap();
    let config = vec![1; 100_000];
    let out = frame(&Call::Init { config: &config });
    let mut arena = Arena::new(&out).unwrap();
    ours.send_lent(&mut arena, out.len()).unwrap();
    assert!(theirs.receive().is_err(), "the host takes no such packet");
    let (borrowed, nobody) = (Borrowed::default(), Lookers::new(0));
    ours.send_lent(&mut arena, out.len()).unwrap();
    assert!(theirs.receive_call(&nobody, &borrowed).is_err(), "its descriptor is gone");
    let mut arena = Arena::new(&out).unwrap();
    let beyond = arena.room() + 1;
    ours.send_lent(&mut arena, beyond).unwrap();
    assert!(theirs.receive_call(&nobody, &borrowed).is_err(), "it is shorter");
    ours.send_lent(&mut arena, out.len()).unwrap();
    let body = theirs.receive_call(&nobody, &borrowed).unwrap().unwrap();
    borrowed.forget(arena.id());
    assert_eq!(body.bytes().len(), out.len(), "who reads it keeps it");
    ours.send_lent(&mut arena, out.len()).unwrap();
    assert!(theirs.receive_call(&nobody, &borrowed).is_err(), "it is forgotten");
}

#[test]
fn frames_of_every_length_arrive_whole_and_aligned() {
    let (ours, theirs) = Channel::pair().unwrap();
    for len in [0, 1, 63, 4095, 4096, MAX_INLINE - 200, MAX_INLINE, 3 << 20] {
        let data: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
        for lead in [0, 1, 8, 63] {
            let shape = Some(vec![len as i64]);
            let sent =
                ToHost::Push { request: 5, json: b"{}", tensors: vec![tensor(b"n", &shape, &data, lead)] };
            ours.send(&frame(&sent)).unwrap();
            let (body, fd) = theirs.receive().unwrap().unwrap();
            assert!(fd.is_none());
            let read: ToHost<'_> = body.read().unwrap();
            assert_eq!(read, sent, "{len}");
            let ToHost::Push { tensors, .. } = read else { panic!("another message") };
            let at = tensors[0].data.unwrap().bytes.as_ptr() as usize;
            assert!(len == 0 || at % 64 == usize::from(lead), "{len} at {at:x}");
        }
    }
    drop(ours);
    assert!(theirs.receive().unwrap().is_none(), "the other end is gone");
}

/// More descriptors on their way than this user may have open: who sends waits until some are taken.
#[test]
fn descriptors_on_their_way_are_waited_for() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    const FRAMES: usize = 200;
    let (ours, theirs) = Channel::pair().unwrap();
    let data = vec![7; MAX_INLINE + 1];
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            // Who may exceed limits is not held to this one.
            let all = capabilities(None).unwrap();
            let fewer = all.effective - CapabilitySet::SYS_RESOURCE - CapabilitySet::SYS_ADMIN;
            set_capabilities(None, rustix::thread::CapabilitySets { effective: fewer, ..all }).unwrap();
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..limit }).unwrap();
            let sent = (0..FRAMES).try_for_each(|_| ours.send(&frame(&Call::Init { config: &data })));
            setrlimit(Resource::Nofile, limit).unwrap();
            sent
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!sender.is_finished(), "it waits");
        for _ in 0..FRAMES {
            theirs.receive().unwrap().unwrap();
        }
        sender.join().unwrap().unwrap();
    });
}

#[test]
fn a_descriptor_stays_with_its_frame() {
    use std::io::{Read, Seek, Write};
    let (ours, theirs) = Channel::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"here").unwrap();
    ours.send(&frame(&ToWorker::Ping { number: 1 })).unwrap();
    ours.send_with(&frame(&ToWorker::Lane {}), Some(std::os::fd::AsFd::as_fd(&file))).unwrap();
    assert!(theirs.receive().unwrap().unwrap().1.is_none());
    let mut got = std::fs::File::from(theirs.receive().unwrap().unwrap().1.unwrap());
    got.rewind().unwrap();
    let mut text = String::new();
    got.read_to_string(&mut text).unwrap();
    assert_eq!(text, "here");
}

/// What is not sealed could change after it was checked.
#[test]
fn memory_that_could_change_is_refused() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use rustix::io::IoSlice;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::{AsFd, OwnedFd};
    let send = |channel: &Channel, fd: &OwnedFd| {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(channel, &[IoSlice::new(&[1])], &mut control, SendFlags::empty()).unwrap();
    };
    let (ours, theirs) = Channel::pair().unwrap();
    let memfd = || {
        let fd = memfd_create(c"t", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&fd, b"\x01\0\0\0\0\0\0\0\0").unwrap();
        fd
    };
    let all = [SealFlags::SHRINK, SealFlags::GROW, SealFlags::WRITE];
    for missing in 0..3 {
        let fd = memfd();
        for (at, seal) in all.into_iter().enumerate() {
            if at != missing {
                fcntl_add_seals(&fd, seal).unwrap();
            }
        }
        send(&ours, &fd);
        let error = theirs.receive().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    }
    send(&ours, &OwnedFd::from(tempfile::tempfile().unwrap()));
    assert!(theirs.receive().unwrap_err().to_string().contains("not a memfd"));
    let sparse = memfd();
    rustix::fs::ftruncate(&sparse, 1 << 30).unwrap();
    all.into_iter().for_each(|seal| fcntl_add_seals(&sparse, seal).unwrap());
    send(&ours, &sparse);
    assert!(theirs.receive().unwrap_err().to_string().contains("has holes"));
    let good = memfd();
    all.into_iter().for_each(|seal| fcntl_add_seals(&good, seal).unwrap());
    send(&ours, &good);
    assert_eq!(theirs.receive().unwrap().unwrap().0.read(), Ok(ToHost::Pong { number: 0 }));
}

/// Who reads a tensor goes by its lengths, which are a stranger's.
#[test]
fn a_tensor_is_as_long_as_it_says() {
    let (shape, data) = (Some(vec![4]), [7; 4]);
    let whole = tensor(b"n", &shape, &data, 1);
    let read = |tensor: Tensor<'_>| {
        let sent = bytes(&ToHost::Push { request: 5, json: b"", tensors: vec![tensor] });
        Source::whole::<ToHost<'_>>(&sent).map(|_| ())
    };
    assert_eq!(read(whole.clone()), Ok(()));
    for nbytes in [0, 3, 5, u64::MAX] {
        assert_eq!(read(Tensor { nbytes, ..whole.clone() }), Err(Malformed));
    }
    for ndim in [-1, 0, 2, 64] {
        assert_eq!(read(Tensor { ndim, ..whole.clone() }), Err(Malformed));
        let strides = Some(vec![1]);
        assert_eq!(read(Tensor { ndim, shape: None, strides, ..whole.clone() }), Err(Malformed));
    }
    // What led nowhere is for the reader to refuse, as in-process.
    assert_eq!(read(Tensor { data: None, shape: None, ndim: 9, ..whole }), Ok(()));
}
