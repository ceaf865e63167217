//! The limiter through its handle, and after the death of its process.

use super::*;
use crate::auth::Role;
use crate::store::{Owner, Spent, SqliteStore};
use proptest::prelude::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

fn caller(requests: Option<u32>, tokens: Option<u64>) -> Caller {
    let tokens = tokens.map(|tokens| TokenBudget { tokens, window: Period::Total });
    Caller {
        tenant: "default".into(),
        role: Role::User,
        key: Some("key1".into()),
        limits: KeyLimits { requests_per_minute: requests, tokens },
    }
}

fn no_limits() -> LimitsConfig {
    crate::config::Config::for_tests().limits
}

fn started(dir: &Path) -> LimiterHandle {
    let store = Arc::new(SqliteStore::open(dir).unwrap());
    start(store, dir, &no_limits(), Arc::default()).unwrap()
}

/// The books without the actor, as the next start finds them.
fn books(dir: &Path) -> Arc<Books> {
    Arc::new(Books::open(&SqliteStore::open(dir).unwrap(), dir, KeyLimits::default()).unwrap())
}

fn left(books: &Books, caller: &Caller) -> u64 {
    books
        .standing(caller, books.now())
        .into_iter()
        .find(|status| status.dimension == "tokens")
        .unwrap()
        .remaining
}

#[actix::test]
async fn a_refused_request_leaves_every_limit_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(Some(10), Some(100));
    assert_eq!(limiter.admit(&caller, 90), Ok(true));
    let held = limiter.reserve(&caller, "a", 90).unwrap();
    for (estimate, reason, code) in [
        (20, "insufficient_quota", crate::error::ErrorCode::ResourceExhausted),
        (101, "limit_too_small", crate::error::ErrorCode::InvalidArgument),
    ] {
        let errors = [
            limiter.admit(&caller, estimate).unwrap_err(),
            limiter.reserve(&caller, "b", estimate).unwrap_err(),
        ];
        assert_eq!(errors[0], errors[1]);
        let error = Error::from(errors[0].clone());
        assert_eq!((&*error.reason, error.code, error.retry_after), (reason, code, None));
        for part in ["`key1`", "100", &estimate.to_string()] {
            assert!(error.message.contains(part), "{}", error.message);
        }
        if reason == "insufficient_quota" {
            let whole = "10 are left beside 90 that are set aside for its open requests";
            assert!(error.message.contains(whole), "{}", error.message);
            assert_eq!(error.details["reserved"], 90);
        }
    }
    let standing = limiter.snapshot(&caller);
    assert_eq!((standing[0].dimension, standing[0].remaining), ("requests", 9));
    assert_eq!((standing[1].dimension, standing[1].remaining), ("tokens", 10));
    held.settle(30);
    assert_eq!(limiter.snapshot(&caller)[1].remaining, 70);
}

#[actix::test]
async fn a_client_that_waits_exactly_as_long_as_told_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path());
    let caller = caller(Some(3), None);
    let at = |steady| books::Now { steady, wall: 0 };
    for id in ["a", "b", "c"] {
        books.admit(&caller, 0.into(), at(1_000_000)).unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    let refused = books.admit(&caller, 0.into(), at(1_000_000)).unwrap_err();
    let LimitError::RateExceeded { retry_after, limit: 3, .. } = refused else { panic!("{refused}") };
    let wait = 1_000_000 + retry_after.as_nanos() as u64;
    assert!(books.admit(&caller, 0.into(), at(wait - 1)).is_err());
    assert_eq!(books.admit(&caller, 0.into(), at(wait)), Ok(true));
}

#[actix::test]
async fn sixty_four_clients_on_a_hundred_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(None, Some(100));
    let spent: u64 = std::thread::scope(|scope| {
        let client = || {
            let mut spent = 0;
            for _ in 0..5 {
                if let Ok(held) = limiter.reserve(&caller, "x", 7) {
                    held.settle(4);
                    spent += 4;
                }
            }
            spent
        };
        let clients: Vec<_> = (0..64).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!((94..=100).contains(&spent), "{spent}: neither too many nor too few");
    assert_eq!(limiter.snapshot(&caller)[0].remaining, 100 - spent);
}

#[actix::test]
async fn the_first_requests_of_a_new_key_meet_the_default_limit_together() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    limiter.configure(&LimitsConfig { requests_per_minute: Some(5), ..no_limits() }).await.unwrap();
    let caller = caller(None, None);
    let through: usize = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..16).map(|_| scope.spawn(|| usize::from(limiter.admit(&caller, 0).is_ok()))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(through, 5);
}

#[actix::test]
async fn what_is_dropped_is_charged_as_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(None, Some(100));
    drop(limiter.reserve(&caller, "a", 25).unwrap());
    assert_eq!(limiter.snapshot(&caller)[0].remaining, 75);
}

#[actix::test]
async fn callers_without_a_key_have_no_limits() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    limiter
        .configure(&LimitsConfig { requests_per_minute: Some(1), tokens: Some(1), ..no_limits() })
        .await
        .unwrap();
    let inside = Caller::internal("me");
    for _ in 0..3 {
        assert_eq!(limiter.admit(&inside, 1000), Ok(false));
        limiter.reserve(&inside, "x", 1000).unwrap().settle(1000);
    }
    assert!(limiter.snapshot(&inside).is_empty() && !limiter.counts_tokens(&inside));
    assert!(limiter.counts_tokens(&caller(None, None)));
}

#[actix::test]
async fn limits_that_change_under_open_requests_forgive_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(None, None);
    let limits = |tokens| LimitsConfig { tokens: Some(tokens), window: Period::Total, ..no_limits() };
    limiter.configure(&limits(100)).await.unwrap();
    let held = limiter.reserve(&caller, "a", 60).unwrap();
    limiter.configure(&limits(80)).await.unwrap();
    assert_eq!(limiter.snapshot(&caller)[0].remaining, 20);
    held.settle(50);
    assert_eq!(limiter.snapshot(&caller)[0].remaining, 30);
    limiter.checkpoint().await.unwrap();
    assert_eq!(left(&books(dir.path()), &self::caller(None, Some(100))), 50, "nor does a restart");
}

#[actix::test]
async fn after_a_panic_the_actor_is_back_and_reservations_went_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
    let restarts = Arc::new(AtomicU64::new(0));
    let limiter = start(store.clone(), dir.path(), &no_limits(), restarts.clone()).unwrap();
    limiter.configure(&LimitsConfig { requests_per_minute: Some(100), ..no_limits() }).await.unwrap();
    let caller = caller(None, Some(100));
    limiter.reserve(&caller, "a", 10).unwrap().settle(10);
    let across = limiter.reserve(&caller, "b", 10).unwrap();
    limiter.actor.send(actor::Panic).await.unwrap();
    limiter.reserve(&caller, "c", 10).unwrap().settle(10);
    assert_eq!(restarts.load(Ordering::Relaxed), 1);
    limiter.checkpoint().await.unwrap();
    assert!(limiter.is_alive());
    assert_eq!(store.usage().unwrap().1[0].tokens, 20);
    across.settle(1);
    let standing = limiter.snapshot(&caller);
    assert_eq!((standing[0].limit, standing[1].remaining), (100, 79), "the defaults are what they were");
}

#[actix::test]
async fn a_checkpoint_that_panics_is_made_again() {
    struct Fragile(SqliteStore, AtomicBool);
    impl UsageStore for Fragile {
        fn usage(&self) -> Result<(u64, Vec<Spent>), StoreError> {
            self.0.usage()
        }
        fn checkpoint(&self, journal: u64, spent: &[Spent]) -> Result<(), StoreError> {
            assert!(!self.1.swap(false, Ordering::Relaxed), "asked to");
            self.0.checkpoint(journal, spent)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Fragile(SqliteStore::open(dir.path()).unwrap(), AtomicBool::new(false)));
    let restarts = Arc::new(AtomicU64::new(0));
    let limiter = start(store.clone(), dir.path(), &no_limits(), restarts.clone()).unwrap();
    limiter.reserve(&caller(None, Some(100)), "a", 10).unwrap().settle(10);
    store.1.store(true, Ordering::Relaxed);
    assert!(limiter.checkpoint().await.is_err());
    assert_eq!(restarts.load(Ordering::Relaxed), 1);
    // The restart makes it before the mailbox is open again.
    limiter.configure(&no_limits()).await.unwrap();
    assert_eq!(store.usage().unwrap().1[0].tokens, 10);
}

#[actix::test]
async fn a_store_that_is_down_loses_nothing() {
    struct Down(SqliteStore, AtomicBool);
    impl UsageStore for Down {
        fn usage(&self) -> Result<(u64, Vec<Spent>), StoreError> {
            self.0.usage()
        }
        fn checkpoint(&self, journal: u64, spent: &[Spent]) -> Result<(), StoreError> {
            if self.1.load(Ordering::Relaxed) {
                Err(StoreError::Full)
            } else {
                self.0.checkpoint(journal, spent)
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Down(SqliteStore::open(dir.path()).unwrap(), AtomicBool::new(false)));
    let limiter = start(store.clone(), dir.path(), &no_limits(), Arc::default()).unwrap();
    store.1.store(true, Ordering::Relaxed);
    let caller = caller(None, Some(100));
    for _ in 0..3 {
        limiter.reserve(&caller, "a", 9).unwrap().settle(7);
        let error = limiter.checkpoint().await.unwrap_err();
        assert_eq!(error.reason, "quota_store_unavailable");
    }
    assert_eq!(left(&books(dir.path()), &caller), 79, "it is all in the journals");
}

#[actix::test]
async fn without_a_journal_tokens_are_refused_and_requests_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    limiter.books.journal().break_for_test();
    let (budget, rate) = (caller(Some(10), Some(100)), caller(Some(10), None));
    let error = Error::from(limiter.reserve(&budget, "a", 5).unwrap_err());
    assert_eq!(
        (&*error.reason, error.code),
        ("quota_store_unavailable", crate::error::ErrorCode::Unavailable)
    );
    assert!(error.retry_after.is_some() && limiter.check().is_err());
    let standing = limiter.snapshot(&budget);
    assert_eq!((standing[0].remaining, standing[1].remaining), (10, 100), "nothing was taken");
    assert_eq!(limiter.admit(&rate, 0), Ok(true));
    limiter.reserve(&rate, "b", 0).unwrap().settle(0);
    // The disk has room again: a new journal is begun.
    limiter.checkpoint().await.unwrap();
    assert!(limiter.check().is_ok());
    limiter.reserve(&budget, "c", 5).unwrap().settle(5);
}

#[actix::test]
async fn a_restart_and_a_checkpoint_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let caller = caller(None, Some(1000));
    for round in 1..5 {
        let books = books(dir.path());
        books.reserve(&caller, "x", 50.into(), books.now()).unwrap().settle(10);
        if round % 2 == 0 {
            books.checkpoint(&SqliteStore::open(dir.path()).unwrap()).unwrap();
            books.reserve(&caller, "x", 50.into(), books.now()).unwrap().settle(0);
        }
        assert_eq!(left(&books, &caller), 1000 - 10 * round);
    }
}

#[test]
fn a_damaged_journal_is_kept_and_the_rest_of_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let caller = caller(None, Some(1000));
    let before = books(dir.path());
    for _ in 0..10 {
        before.reserve(&caller, "x", 10.into(), before.now()).unwrap().settle(10);
    }
    drop(before);
    let journals =
        || std::fs::read_dir(dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let journal = journals().next().unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&journal, bytes).unwrap();
    // The line of a reservation is lost; its settlement says enough.
    assert_eq!(left(&books(dir.path()), &caller), 900);
    assert!(journals().any(|path| path.extension().is_some_and(|end| end == "damaged")));
    assert_eq!(left(&books(dir.path()), &caller), 900, "and it counts once");
}

#[test]
fn tokens_of_a_window_that_has_ended_are_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let owner = Owner { tenant: "default".into(), key: "key1".into() };
    let window = |number| Window { period: Period::DAY, number };
    let now = today();
    let spent = [(window(now - 1), 600), (window(now), 50)];
    let spent = spent.map(|(window, tokens)| Spent { owner: owner.clone(), window, tokens });
    store.checkpoint(0, &spent).unwrap();
    let mut caller = caller(None, None);
    caller.limits.tokens = Some(TokenBudget { tokens: 1000, window: Period::DAY });
    let left = left(&books(dir.path()), &caller);
    assert!(left == 950 || now != today(), "{left}");
}

fn today() -> i64 {
    (std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400) as i64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Reservations, settlements, drops, checkpoints and restarts in any order: after a restart the books say what they
    /// said before, and what was open is charged as reserved.
    #[test]
    fn any_life_of_a_host_is_counted(steps in proptest::collection::vec((0u8..5, 0u64..30, 0u64..40), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let caller = caller(None, Some(10_000));
        let store = SqliteStore::open(dir.path()).unwrap();
        let open_books = || Arc::new(Books::open(&store, dir.path(), KeyLimits::default()).unwrap());
        let (mut live, mut open, mut spent) = (open_books(), Vec::new(), 0);
        for (step, tokens, cost) in steps {
            match step {
                0 | 1 => open.push(live.reserve(&caller, "x", tokens.into(), live.now()).unwrap()),
                2 if !open.is_empty() => {
                    open.remove(0).settle(cost);
                    spent += cost;
                }
                3 => live.checkpoint(&store).unwrap(),
                4 => {
                    spent += open.iter().map(Reservation::tokens).sum::<u64>();
                    // As after `kill -9`: nobody settles.
                    open.drain(..).for_each(std::mem::forget);
                    live = open_books();
                }
                _ => {}
            }
            let reserved: u64 = open.iter().map(Reservation::tokens).sum();
            prop_assert_eq!(left(&live, &caller), 10_000 - spent - reserved);
        }
    }
}

const RICH: u64 = 1_000_000_000;
const ESTIMATE: u64 = 9;
const THREADS: u64 = 3;

/// Not a test: the child of the next one. Spends until it is killed, and says so after each use and before it settles;
/// the actor makes checkpoints meanwhile.
#[test]
fn spends_until_killed() {
    let Some(dir) = std::env::var_os("BACKPLANE_TEST_SPEND_IN") else { return };
    actix::System::new().block_on(async move {
        let limiter = started(Path::new(&dir));
        let caller = caller(None, Some(RICH));
        for thread in 0..THREADS {
            let (limiter, caller) = (limiter.clone(), caller.clone());
            std::thread::spawn(move || {
                for turn in 0u64.. {
                    let held = limiter.reserve(&caller, "x", ESTIMATE).unwrap();
                    let used = 1 + (thread + turn) % ESTIMATE;
                    // One write, so that a kill never cuts it.
                    std::io::stderr().write_all(format!("used {used}\n").as_bytes()).unwrap();
                    held.settle(used);
                }
            });
        }
        loop {
            limiter.checkpoint().await.unwrap();
        }
    });
}

#[test]
fn kill_9_loses_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let caller = caller(None, Some(RICH));
    let mut used = 0;
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([concat!(module_path!(), "::spends_until_killed").split_once("::").unwrap().1, "--exact"])
            .arg("--nocapture")
            .env("BACKPLANE_TEST_SPEND_IN", dir.path())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (at_work, begun) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let used = |line: String| line.strip_prefix("used ").map(|used| used.parse::<u64>().unwrap());
            let told = lines.map_while(Result::ok).filter_map(used);
            told.inspect(|_| at_work.send(()).unwrap_or_default()).sum::<u64>()
        });
        begun.recv_timeout(Duration::from_secs(30)).unwrap();
        // At any point: in a reservation, a settlement, a rotation, a commit.
        std::thread::sleep(Duration::from_micros(10_000 + round * 7_919));
        child.kill().unwrap();
        child.wait().unwrap();
        used += reader.join().unwrap();
        let counted = RICH - left(&books(dir.path()), &caller);
        assert!(used <= counted, "round {round}: {counted} counted of {used} used");
        // What was open is charged as reserved; what was over is never more than one reservation of each thread.
        assert!(counted <= used + THREADS * ESTIMATE, "round {round}: {counted} counted of {used} used");
        // From here on both start from the same figure.
        used = counted;
    }
}

/// How long the request path takes; run it with `--release --ignored --nocapture`. Asserts nothing.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let dir = tempfile::tempdir().unwrap();
    let books = books(dir.path());
    for (what, caller) in [
        ("no limit", caller(None, None)),
        ("a rate", caller(Some(u32::MAX), None)),
        ("a rate and a budget", caller(Some(u32::MAX), Some(u64::MAX >> 1))),
    ] {
        let start = Instant::now();
        for _ in 0..200_000 {
            let held = books
                .reserve(&caller, "0193a7b0-7d2e-7c1a-b0f5-1d2c3b4a5968", 100.into(), books.now())
                .unwrap();
            held.settle(50);
        }
        println!("{what}: {:?} for reserve and settle", start.elapsed() / 200_000);
    }
}
