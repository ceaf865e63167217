//! The pool with real threads. Bounded in time, and asserts none.

use super::*;
use std::sync::atomic::AtomicU64;
use std::thread;

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

#[test]
fn threads_are_granted_and_come_back() {
    let pool = Pool::new(2);
    let client = pool.join("a", 1.0);
    assert_eq!(client.acquire(5, None), Ok(2));
    assert_eq!(client.release(3), Err(ReleaseError::TooMany));
    assert_eq!(client.release(2), Ok(()));
    assert_eq!(pool.stats().granted, 0);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let pool = Pool::new(1);
    let (a, b) = (pool.join("a", 1.0), pool.join("b", 1.0));
    assert_eq!(a.acquire(1, None), Ok(1));
    assert_eq!(b.acquire(1, Some(Instant::now() + Duration::from_millis(5))), Err(AcquireError::Timeout));
    assert_eq!(pool.stats().waiting, 0);
    a.release(1).unwrap();
    assert_eq!(b.acquire(1, Some(Instant::now())), Ok(1), "a free thread needs no time");
}

#[test]
fn a_waiter_is_woken_by_a_release() {
    let pool = Pool::new(1);
    let (a, b) = (pool.join("a", 1.0), pool.join("b", 1.0));
    a.acquire(1, None).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| b.acquire(1, soon()));
        while pool.stats().waiting == 0 {
            thread::yield_now();
        }
        a.release(1).unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(1));
    });
}

#[test]
fn closing_a_stuck_seat_frees_its_threads_and_ends_its_waits() {
    let pool = Pool::new(1);
    let (stuck, other) = (pool.join("a", 1.0), pool.join("b", 1.0));
    stuck.acquire(1, None).unwrap();
    thread::scope(|scope| {
        let own = scope.spawn(|| stuck.acquire(1, soon()));
        let others = scope.spawn(|| other.acquire(1, soon()));
        while pool.stats().waiting < 2 {
            thread::yield_now();
        }
        stuck.close();
        assert_eq!(own.join().unwrap(), Err(AcquireError::Closed));
        assert_eq!(others.join().unwrap(), Ok(1));
    });
    assert_eq!(stuck.acquire(1, None), Err(AcquireError::Closed));
    assert_eq!(stuck.release(1), Err(ReleaseError::Closed));
    let taken_over = pool.join("c", 1.0);
    stuck.close();
    other.release(1).unwrap();
    assert_eq!(
        taken_over.acquire(1, soon()),
        Ok(1),
        "the old seat has no say over the one that took its place"
    );
}

#[test]
fn a_thread_kept_for_a_seat_that_stays_away_is_granted_all_the_same() {
    let pool = Pool::new(1);
    let (chat, other) = (pool.join("chat", 1.0), pool.join("other", 1.0));
    for _ in 0..20 {
        chat.acquire(1, soon()).unwrap();
        thread::sleep(Duration::from_millis(2));
        chat.release(1).unwrap();
    }
    // No further release happens, so only the waiter's own look can find the thread.
    assert_eq!(other.acquire(1, soon()), Ok(1));
}

#[test]
fn without_permits_everybody_gets_what_they_ask_for() {
    let pool = Pool::unlimited(2);
    let clients: Vec<Client> = (0..8).map(|at| pool.join(&format!("m{at}"), 1.0)).collect();
    for client in &clients {
        assert_eq!(client.acquire(9, Some(Instant::now())), Ok(2));
    }
    assert_eq!(pool.stats().granted, 16);
    clients[0].release(2).unwrap();
    assert_eq!(pool.stats().granted, 14);
}

#[test]
fn the_share_is_by_model_and_never_nothing() {
    let pool = Pool::new(4);
    assert_eq!(pool.share("a", 1.0), 4);
    let _b = (pool.join("b", 1.0), pool.join("b", 1.0));
    assert_eq!(pool.share("a", 1.0), 2);
    assert_eq!(pool.share("b", 1.0), 4, "its own seats do not count against it");
    assert_eq!(pool.share("a", 0.01), 1);
}

#[test]
fn many_threads_all_get_their_turns_and_never_hold_more_than_there_are() {
    let pool = Pool::new(2);
    let (out, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let clients: Vec<Client> =
        (0..8).map(|at| pool.join(&format!("m{}", at % 3), 1.0 + f64::from(at))).collect();
    thread::scope(|scope| {
        for (at, client) in clients.iter().enumerate() {
            let (out, over) = (&out, &over);
            scope.spawn(move || {
                for _ in 0..300 {
                    let count = client.acquire(1 + at as u32 % 3, soon()).expect("a turn within the bound");
                    if out.fetch_add(u64::from(count), Ordering::SeqCst) + u64::from(count) > 2 {
                        over.store(true, Ordering::SeqCst);
                    }
                    thread::yield_now();
                    out.fetch_sub(u64::from(count), Ordering::SeqCst);
                    client.release(count).unwrap();
                }
            });
        }
    });
    assert!(!over.load(Ordering::SeqCst));
    let stats = pool.stats();
    assert_eq!((stats.granted, stats.waiting), (0, 0));
    assert_eq!(stats.groups.iter().map(|group| group.grants).sum::<u64>(), 8 * 300);
}

/// `cargo test --release -p backplane compute -- --ignored --nocapture`
#[test]
#[ignore = "prints a time and asserts none"]
fn time_of_an_uncontended_grant() {
    let pool = Pool::new(2);
    let _others: Vec<Client> = (0..4).map(|at| pool.join(&format!("m{at}"), 1.0)).collect();
    let client = pool.join("a", 1.0);
    let (rounds, began) = (1_000_000, Instant::now());
    for _ in 0..rounds {
        let count = client.acquire(1, None).unwrap();
        client.release(count).unwrap();
    }
    println!("acquire + release: {:?}", began.elapsed() / rounds);
}

/// Chat steps a second while `others` run graphs all the time: real threads that compute, 7 ms and 4 ms at a time.
fn chat_beside(pool: &Pool, others: usize, length: Duration) -> f64 {
    let work = |rounds: u64| (0..rounds).fold(0_u64, |sum, n| std::hint::black_box(sum.wrapping_mul(31) ^ n));
    let began = Instant::now();
    work(20_000_000);
    let per_ms = (20_000_000.0 / began.elapsed().as_secs_f64() / 1000.0) as u64;
    let (chat, stop) = (pool.join("chat", 1.0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..others {
            let (graph, stop) = (pool.join("onnx", 1.0), &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let count = graph.acquire(1, None).unwrap();
                    work(4 * per_ms);
                    graph.release(count).unwrap();
                }
            });
        }
        let (began, mut steps) = (Instant::now(), 0.0);
        while began.elapsed() < length {
            let count = chat.acquire(1, None).unwrap();
            work(7 * per_ms);
            chat.release(count).unwrap();
            steps += 1.0;
            thread::sleep(Duration::from_micros(20));
        }
        stop.store(true, Ordering::Relaxed);
        steps / began.elapsed().as_secs_f64()
    })
}

/// On an idle machine; `cargo test --release -p backplane compute -- --ignored --nocapture`
///
/// The share is one core of two, and a core is slower while its neighbour works: so what a chat may hope for is its
/// speed beside one single graph run, and not its speed alone.
#[test]
#[ignore = "prints times and asserts none"]
fn speed_of_a_chat_beside_saturating_graph_runs() {
    let run = |pool: Pool, others| chat_beside(&pool, others, Duration::from_secs(2));
    let share = run(Pool::unlimited(2), 1);
    let (on, off) = (run(Pool::new(2), 4), run(Pool::unlimited(2), 4));
    println!(
        "share of one core: {share:.0} steps/s; beside four instances with permits {on:.0} ({:.2})",
        on / share
    );
    println!("without permits {off:.0} ({:.2})", off / share);
}
