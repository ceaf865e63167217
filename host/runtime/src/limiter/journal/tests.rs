//! The journal, whole and damaged.

use super::*;
use crate::limiter::Period;
use proptest::prelude::*;

fn open(tokens: u64) -> Open {
    let owner = Owner { tenant: "default".into(), key: "k".into() };
    Open { owner: Arc::new(owner), window: Period::Total.at(0), tokens, request: "the same".to_owned() }
}

fn total(replayed: &Replayed) -> u64 {
    replayed.spent.iter().map(|spent| spent.tokens).sum()
}

fn begun(dir: &Path) -> Journal {
    Journal::open(dir, 0).unwrap().0
}

#[test]
fn what_was_open_counts_as_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let serial = journal.reserve(open(50)).unwrap();
    journal.settle(serial, 7, || ());
    journal.reserve(open(30)).unwrap();
    drop(journal);
    let again = replay::read(dir.path(), 0).unwrap();
    assert_eq!((total(&again), again.open, again.torn, again.next), (37, 1, false, 1));
}

#[test]
fn a_request_id_that_comes_twice_is_charged_twice() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    journal.reserve(open(10)).unwrap();
    let second = journal.reserve(open(10)).unwrap();
    journal.settle(second, 10, || ());
    assert_eq!(total(&replay::read(dir.path(), 0).unwrap()), 20);
}

#[test]
fn a_settlement_that_comes_twice_is_charged_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let serial = journal.reserve(open(10)).unwrap();
    journal.settle(serial, 4, || ());
    journal.settle(serial, 4, || ());
    drop(journal);
    let path = dir.path().join("00000000.log");
    let twice = fs_twice(&path);
    std::fs::write(&path, twice).unwrap();
    assert_eq!(total(&replay::read(dir.path(), 0).unwrap()), 4);
}

fn fs_twice(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap().repeat(2)
}

/// Ten reservations, the even ones settled at 1: 5 + 5 × 10.
fn filled(dir: &Path) -> Vec<u8> {
    let journal = begun(dir);
    for turn in 0..10 {
        let serial = journal.reserve(open(10)).unwrap();
        if turn % 2 == 0 {
            journal.settle(serial, 1, || ());
        }
    }
    drop(journal);
    std::fs::read(dir.join("00000000.log")).unwrap()
}

#[test]
fn a_file_that_ends_anywhere_is_read_up_to_there() {
    let dir = tempfile::tempdir().unwrap();
    let whole = filled(dir.path());
    let path = dir.path().join("00000000.log");
    let mut before = 0;
    for end in 0..=whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let read = replay::read(dir.path(), 0).unwrap();
        assert!(read.damaged.is_empty(), "a torn end is no damage");
        let records = whole[..end].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(
            read.torn,
            end != 0 && whole[end - 1] != b'\n' && whole.get(end) != Some(&b'\n'),
            "at {end}"
        );
        // Every second reservation is settled by the line after it, which takes nine back.
        assert!(before <= total(&read) + 9, "at {end} of {records} lines");
        before = total(&read);
    }
    assert_eq!(before, 55);
}

#[test]
fn zeros_after_a_power_cut_are_a_torn_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = filled(dir.path());
    bytes.extend([0; 4096]);
    std::fs::write(dir.path().join("00000000.log"), bytes).unwrap();
    let read = replay::read(dir.path(), 0).unwrap();
    assert_eq!((total(&read), read.torn, read.damaged.len()), (55, true, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One flipped bit costs at most the line it is in, or two when it was the end between them, and is reported.
    #[test]
    fn a_flipped_bit_costs_its_own_line(place in any::<proptest::sample::Index>(), bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = filled(dir.path());
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        std::fs::write(dir.path().join("00000000.log"), &bytes).unwrap();
        let read = replay::read(dir.path(), 0).unwrap();
        prop_assert!(read.torn || read.damaged.len() == 1);
        // A reservation and its settlement are at worst both lost (ten and one), a settlement alone adds nine.
        prop_assert!((44..=64).contains(&total(&read)), "{}", total(&read));
    }

    #[test]
    fn lines_go_round_and_rubbish_does_not(request in ".*", key in ".*", tokens in any::<u64>(), rubbish in any::<Vec<u8>>()) {
        let owner = Arc::new(Owner { tenant: "t \n\0".into(), key: key.as_str().into() });
        let open = Open { owner, window: Period::Month.at(0), tokens, request };
        let mut line = Vec::new();
        Record::reserve(7, &open).encode(&mut line);
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line = line.strip_suffix(b"\n").unwrap();
        prop_assert_eq!(Record::decode(line), Some(Record::reserve(7, &open)));
        prop_assert_eq!(Record::decode(&rubbish), None);
    }
}

#[test]
fn a_crash_at_any_point_of_a_rotation_counts_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let first = journal.reserve(open(5)).unwrap();
    journal.settle(first, 5, || ());
    let second = journal.reserve(open(20)).unwrap();
    let (generation, _, stored) = journal.rotate(|| 5).unwrap();
    for expected in [25, 14] {
        // Not checkpointed: the store still says generation 0 and nothing spent.
        assert_eq!(total(&replay::read(dir.path(), 0).unwrap()), expected);
        // Checkpointed: the store says 5 and the new generation.
        assert_eq!(stored + total(&replay::read(dir.path(), generation).unwrap()), expected);
        journal.settle(second, 9, || ());
    }
    journal.forget_before(generation);
    assert_eq!(stored + total(&replay::read(dir.path(), generation).unwrap()), 14);
}

/// Settlements and rotations at the same time: what the snapshots and the files say together is always what was spent.
#[test]
fn no_settlement_falls_between_a_snapshot_and_its_file_or_into_both() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let spent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let serial = journal.reserve(open(9)).unwrap();
                    journal.settle(serial, 3, || {
                        spent.fetch_add(3, Ordering::Relaxed);
                    });
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                let (generation, _, stored) = journal.rotate(|| spent.load(Ordering::Relaxed)).unwrap();
                let read = replay::read(dir.path(), generation).unwrap();
                // Read while others write: what is open counts for nine.
                let counted = stored + total(&read);
                let now = spent.load(Ordering::Relaxed);
                assert!(counted <= now + 4 * 9, "{counted} counted of {now}");
                journal.forget_before(generation);
            }
        });
    });
    let (generation, _, stored) = journal.rotate(|| spent.load(Ordering::Relaxed)).unwrap();
    assert_eq!(stored + total(&replay::read(dir.path(), generation).unwrap()), 4 * 500 * 3);
}

#[test]
fn a_journal_that_is_too_large_refuses_until_the_store_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open_with(dir.path(), 0, 300).unwrap();
    let mut serials = Vec::new();
    let error = loop {
        match journal.reserve(open(1)) {
            Ok(serial) => serials.push(serial),
            Err(error) => break error,
        }
    };
    assert_eq!((error, journal.check()), (JournalError::Full, Err(JournalError::Full)));
    for serial in serials {
        journal.settle(serial, 1, || ());
    }
    let full = |_, ()| Err(io::Error::other("the store is full too"));
    journal.checkpoint(|| (), full).unwrap_err();
    assert_eq!(journal.check(), Err(JournalError::Full), "a new file alone does not help");
    journal.checkpoint(|| (), |_, ()| io::Result::Ok(())).unwrap();
    assert!(journal.check().is_ok());
    journal.reserve(open(1)).unwrap();
}

#[test]
fn on_a_full_disk_nothing_is_reserved_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let before = journal.reserve(open(10)).unwrap();
    let file = journal.break_for_test();
    assert!(matches!(journal.reserve(open(100)), Err(JournalError::Write(_))));
    // The disk has room again, behind half a line.
    (&*file).write_all(b"1234 {\"kind\":\"res").unwrap();
    journal.shared.state.lock().file = file;
    let after = journal.reserve(open(10)).unwrap();
    assert_ne!(before, after);
    let read = replay::read(dir.path(), 0).unwrap();
    assert_eq!((total(&read), read.damaged.len()), (20, 1));
}

#[test]
fn a_settlement_on_a_full_disk_reaches_the_next_file() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let serial = journal.reserve(open(10)).unwrap();
    journal.break_for_test();
    let mut booked = 0;
    journal.settle(serial, 4, || booked = 4);
    let (generation, _, stored) = journal.rotate(|| booked).unwrap();
    assert_eq!(stored + total(&replay::read(dir.path(), generation).unwrap()), 4);
    journal.reserve(open(1)).unwrap();
}

#[test]
fn after_a_flush_that_failed_only_a_new_file_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    // A pipe takes bytes and cannot be flushed.
    let (_reader, writer) = io::pipe().unwrap();
    journal.shared.state.lock().file = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
    journal.reserve(open(10)).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while journal.check().is_ok() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(matches!(journal.reserve(open(10)), Err(JournalError::Flush(_))));
    let (generation, _, ()) = journal.rotate(|| ()).unwrap();
    assert!(journal.check().is_ok());
    assert_eq!(total(&replay::read(dir.path(), generation).unwrap()), 10, "what is open was written again");
}

#[test]
fn a_disk_that_does_not_answer_is_named_and_holds_up_nobody_who_only_looks() {
    let dir = tempfile::tempdir().unwrap();
    let journal = begun(dir.path());
    let writes = journal.shared.state.lock();
    std::thread::scope(|scope| {
        let reserved = scope.spawn(|| (journal.reserve(open(1)), journal.check(), journal.bytes()));
        let hung = (Err(JournalError::Hung), Err(JournalError::Hung), 0);
        assert_eq!(reserved.join().unwrap(), hung);
    });
    drop(writes);
    journal.reserve(open(1)).unwrap();
}
