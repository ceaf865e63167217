//! The limiter through its handle, and after the death of its process.

use super::*;
use crate::auth::{Role, TokenBudget};
use crate::store::SqliteStore;
use std::sync::atomic::Ordering;

fn caller(requests: Option<u32>, tokens: Option<u64>) -> Caller {
    Caller {
        tenant: "default".into(),
        role: Role::User,
        key: Some("key1".into()),
        limits: KeyLimits {
            requests_per_minute: requests,
            tokens: tokens.map(|tokens| TokenBudget { tokens, window: Duration::ZERO }),
        },
    }
}

fn no_limits() -> LimitsConfig {
    crate::config::Config::for_tests().limits
}

fn started(dir: &Path) -> LimiterHandle {
    let store = Arc::new(SqliteStore::open(dir).unwrap());
    start(store, dir, &no_limits(), Arc::default()).unwrap()
}

#[actix::test]
async fn a_refused_request_leaves_every_limit_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(Some(10), Some(100));
    let held = limiter.reserve(&caller, "a", 90).unwrap();
    let error = Error::from(limiter.reserve(&caller, "b", 20).unwrap_err());
    assert_eq!((error.reason.as_ref(), error.retry_after), ("insufficient_quota", None));
    let error = Error::from(limiter.reserve(&caller, "c", 101).unwrap_err());
    assert_eq!(error.reason, "limit_too_small");
    let standing = limiter.snapshot(&caller);
    assert_eq!((standing[0].remaining, standing[1].remaining), (9, 10));
    held.settle(30);
    assert_eq!(limiter.snapshot(&caller)[1].remaining, 70);
}

#[actix::test]
async fn a_client_that_waits_exactly_as_long_as_told_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(Some(3), None);
    let now = 1_000_000;
    for id in ["a", "b", "c"] {
        limiter.reserve_at(&caller, id, 0, now, 0).unwrap();
    }
    let Err(LimitError::Rate { retry_after, .. }) = limiter.reserve_at(&caller, "d", 0, now, 0) else {
        panic!("the fourth was let in")
    };
    let wait = retry_after.as_nanos() as u64;
    assert!(limiter.reserve_at(&caller, "e", 0, now + wait - 1, 0).is_err());
    limiter.reserve_at(&caller, "f", 0, now + wait, 0).unwrap();
}

#[actix::test]
async fn sixty_four_clients_on_a_hundred_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = started(dir.path());
    let caller = caller(None, Some(100));
    let spent: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..64)
            .map(|client| {
                let (limiter, caller) = (&limiter, &caller);
                scope.spawn(move || {
                    let mut spent = 0;
                    for turn in 0..5 {
                        if let Ok(held) = limiter.reserve(caller, &format!("{client}.{turn}"), 7) {
                            held.settle(4);
                            spent += 4;
                        }
                    }
                    spent
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(spent <= 100, "{spent}");
    assert_eq!(limiter.snapshot(&caller)[1 - 1].remaining, 100 - spent);
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
async fn after_a_panic_the_actor_is_back_and_reservations_went_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
    let restarts = Arc::new(AtomicU64::new(0));
    let limiter = start(store.clone(), dir.path(), &no_limits(), restarts.clone()).unwrap();
    let caller = caller(None, Some(100));
    limiter.reserve(&caller, "a", 10).unwrap().settle(10);
    limiter.actor.send(actor::Panic).await.unwrap();
    limiter.reserve(&caller, "b", 10).unwrap().settle(10);
    limiter.checkpoint().await.unwrap();
    assert_eq!(restarts.load(Ordering::Relaxed), 1);
    assert_eq!(store.usage().unwrap().1[0].tokens, 20);
}

#[actix::test]
async fn a_restart_and_a_checkpoint_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let caller = caller(None, Some(1000));
    for (round, expected) in [(0, 990), (1, 980), (2, 970)] {
        let limiter = started(dir.path());
        limiter.reserve(&caller, &format!("r{round}"), 50).unwrap().settle(10);
        if round == 1 {
            limiter.checkpoint().await.unwrap();
        }
        assert_eq!(limiter.snapshot(&caller)[0].remaining, expected, "round {round}");
        // The books outlive the handle until the actor has gone; the next start reads the disk, as after a crash.
        std::mem::forget(limiter);
    }
}

/// The child of the next test: spends until it is killed, and says after each settlement what it has spent.
#[test]
fn spends_until_killed() {
    let Some(dir) = std::env::var_os("BACKPLANE_TEST_SPEND_IN") else { return };
    use std::io::Write;
    actix::System::new().block_on(async move {
        let limiter = started(Path::new(&dir));
        let caller = caller(None, Some(1_000_000_000));
        let id = std::process::id();
        for turn in 0u64.. {
            let held = limiter.reserve(&caller, &format!("{id}.{turn}"), 9).unwrap();
            held.settle(5);
            if turn % 100 == 0 {
                limiter.checkpoint().await.unwrap();
            }
            writeln!(std::io::stderr(), "spent {}", (turn + 1) * 5).unwrap();
        }
    });
}

#[actix::test]
async fn kill_9_loses_no_token() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let mut told = 0;
    for round in 0..6u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["limiter::tests::spends_until_killed", "--exact", "--nocapture"])
            .env("BACKPLANE_TEST_SPEND_IN", dir.path())
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut last = 0;
        for _ in 0..(37 * (round + 1)) {
            let line = lines.next().unwrap().unwrap();
            if let Some(spent) = line.strip_prefix("spent ") {
                last = spent.parse().unwrap();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said after we stopped counting is still in the pipe.
        for line in lines.map_while(std::result::Result::ok) {
            if let Some(spent) = line.strip_prefix("spent ") {
                last = spent.parse().unwrap();
            }
        }
        told += last;
        let limiter = started(dir.path());
        let caller = caller(None, Some(1_000_000_000));
        let counted = 1_000_000_000 - limiter.snapshot(&caller)[0].remaining;
        assert!(told <= counted, "round {round}: {counted} counted of {told} spent");
        // One request may have been open, or settled and not yet told.
        assert!(counted <= told + 9 * (round + 1), "round {round}: {counted} counted of {told} spent");
    }
}
