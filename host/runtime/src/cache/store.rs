//! The answers: read and filled by requests from any thread, kept in bounds by the actor.

use super::key::Key;
use crate::config::CacheConfig;
use crate::job::{Chunk, Done, Timing};
use dashmap::DashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What an entry takes besides its content, at least: key, list and counts.
pub(super) const OVERHEAD: u64 = 256;

/// An answer that is kept.
#[derive(Debug)]
pub struct Entry {
    /// Its pieces, in order.
    pub chunks: Vec<Chunk>,
    /// How it ended; no time is kept, since giving it again takes none of it.
    pub done: Done,
    bytes: u64,
    stored: Instant,
    /// Microseconds from the store's beginning to its last use.
    used: AtomicU64,
}

impl Entry {
    /// How long ago it was given for the first time.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }
}

/// A key is a hash already.
#[derive(Default)]
pub(super) struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// Of an array's length, which is always the same.
    fn write_usize(&mut self, _: usize) {}
}

/// The answers and their bounds.
pub(super) struct Store {
    entries: DashMap<Key, Arc<Entry>, BuildHasherDefault<Prefix>>,
    began: Instant,
    enabled: AtomicBool,
    max_bytes: AtomicU64,
    max_entry: AtomicU64,
    ttl_micros: AtomicU64,
    bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    stored: AtomicU64,
    refused: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
}

/// The cache in figures; the counts are since the host began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Answers kept now.
    pub entries: u64,
    /// Memory they take.
    pub bytes: u64,
    /// Memory they may take.
    pub max_bytes: u64,
    /// Requests that were answered from it.
    pub hits: u64,
    /// Requests that looked and found nothing.
    pub misses: u64,
    /// Answers that were put in.
    pub stored: u64,
    /// Answers that were not: too large, or no room until the next eviction.
    pub refused: u64,
    /// Answers that made room for others.
    pub evicted: u64,
    /// Answers that were too old.
    pub expired: u64,
}

impl Store {
    pub(super) fn new(config: &CacheConfig, now: Instant) -> Self {
        let store = Self {
            entries: DashMap::default(),
            began: now,
            enabled: AtomicBool::default(),
            max_bytes: AtomicU64::default(),
            max_entry: AtomicU64::default(),
            ttl_micros: AtomicU64::default(),
            bytes: AtomicU64::default(),
            hits: AtomicU64::default(),
            misses: AtomicU64::default(),
            stored: AtomicU64::default(),
            refused: AtomicU64::default(),
            evicted: AtomicU64::default(),
            expired: AtomicU64::default(),
        };
        store.configure(config);
        store
    }

    /// Other bounds from now on. Entries that are over them go at the next [`Store::evict`].
    pub(super) fn configure(&self, config: &CacheConfig) {
        self.enabled.store(config.enabled, Relaxed);
        self.max_bytes.store(if config.enabled { config.max_bytes } else { 0 }, Relaxed);
        self.max_entry.store(config.max_entry, Relaxed);
        self.ttl_micros.store(u64::try_from(config.ttl.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_micros() as u64
    }

    fn fresh(&self, entry: &Entry, now: Instant) -> bool {
        (entry.age(now).as_micros() as u64) < self.ttl_micros.load(Relaxed)
    }

    /// An answer that is not too old.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Arc<Entry>> {
        let found = self.entries.get(key).filter(|entry| self.fresh(entry, now)).map(|entry| entry.clone());
        match &found {
            Some(entry) => {
                entry.used.store(self.micros(now), Relaxed);
                self.hits.fetch_add(1, Relaxed);
            }
            None => {
                self.misses.fetch_add(1, Relaxed);
            }
        }
        found
    }

    /// Whether an answer of this size may be kept at all.
    pub(super) fn takes(&self, bytes: u64) -> bool {
        bytes <= self.max_entry.load(Relaxed)
    }

    /// Keeps a whole answer if there is room. Memory is reserved before, so the bound holds at every moment.
    pub(super) fn put(&self, key: Key, chunks: Vec<Chunk>, done: Done, now: Instant) {
        if !self.enabled.load(Relaxed) {
            return;
        }
        let bytes = OVERHEAD + chunks.iter().map(size).sum::<u64>();
        let reserved = self.takes(bytes)
            && self
                .bytes
                .fetch_update(Relaxed, Relaxed, |used| {
                    used.checked_add(bytes).filter(|sum| *sum <= self.max_bytes.load(Relaxed))
                })
                .is_ok();
        if chunks.is_empty() || !reserved {
            self.refused.fetch_add(1, Relaxed);
            if reserved {
                self.bytes.fetch_sub(bytes, Relaxed);
            }
            return;
        }
        let done = Done { timing: Timing::default(), ..done };
        let entry = Entry { chunks, done, bytes, stored: now, used: AtomicU64::new(self.micros(now)) };
        if let Some(old) = self.entries.insert(key, Arc::new(entry)) {
            self.bytes.fetch_sub(old.bytes, Relaxed);
        }
        self.stored.fetch_add(1, Relaxed);
    }

    /// Whether [`Store::evict`] should run before there is no room at all.
    pub(super) fn is_crowded(&self) -> bool {
        let max = self.max_bytes.load(Relaxed);
        self.bytes.load(Relaxed) > max - max / 8
    }

    /// Drops what is too old; and when it is crowded, the least recently used until a quarter is free.
    pub(super) fn evict(&self, now: Instant) {
        self.entries.retain(|_, entry| {
            let keep = self.fresh(entry, now);
            if !keep {
                self.bytes.fetch_sub(entry.bytes, Relaxed);
                self.expired.fetch_add(1, Relaxed);
            }
            keep
        });
        if !self.is_crowded() {
            return;
        }
        let mut by_use: Vec<(u64, Key)> =
            self.entries.iter().map(|entry| (entry.used.load(Relaxed), *entry.key())).collect();
        by_use.sort_unstable_by_key(|(used, _)| *used);
        let max = self.max_bytes.load(Relaxed);
        for (_, key) in by_use {
            if self.bytes.load(Relaxed) <= max - max / 4 {
                break;
            }
            if let Some((_, entry)) = self.entries.remove(&key) {
                self.bytes.fetch_sub(entry.bytes, Relaxed);
                self.evicted.fetch_add(1, Relaxed);
            }
        }
    }

    /// Drops everything; says how much that was.
    pub(super) fn flush(&self) -> u64 {
        let mut dropped = 0;
        self.entries.retain(|_, entry| {
            self.bytes.fetch_sub(entry.bytes, Relaxed);
            dropped += 1;
            false
        });
        dropped
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            entries: self.entries.len() as u64,
            bytes: self.bytes.load(Relaxed),
            max_bytes: self.max_bytes.load(Relaxed),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            stored: self.stored.load(Relaxed),
            refused: self.refused.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            expired: self.expired.load(Relaxed),
        }
    }
}

/// Memory of a piece.
pub(super) fn size(chunk: &Chunk) -> u64 {
    let tensors =
        chunk.tensors.iter().map(|t| t.data.len() + t.name.len() + 8 * t.shape.len() + 128).sum::<usize>();
    (chunk.json.len() + tensors + 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;
    use crate::cache::Identity;
    use crate::config::Config;
    use crate::job::Request;
    use proptest::prelude::*;

    fn store(max_bytes: u64) -> (Store, Instant) {
        let now = Instant::now();
        let config = CacheConfig {
            max_bytes,
            max_entry: 4096,
            ttl: Duration::from_secs(60),
            ..Config::default().cache
        };
        (Store::new(&config, now), now)
    }

    fn key(n: usize) -> Key {
        Key::of(
            "t",
            &Identity::default(),
            &Request::new(Caller::internal("tests"), "chat", format!("{{\"n\":{n}}}")),
        )
    }

    fn answer(bytes: usize) -> Vec<Chunk> {
        vec![Chunk { json: vec![b' '; bytes].into(), tensors: Vec::new() }]
    }

    #[test]
    fn an_answer_is_given_again_until_it_is_too_old() {
        let (store, now) = store(1 << 20);
        let timing = Timing { run: Duration::from_secs(9), ..Timing::default() };
        store.put(key(1), answer(10), Done { confidence: Some(0.5), timing, ..Done::default() }, now);
        let entry = store.get(&key(1), now + Duration::from_secs(59)).expect("kept");
        assert_eq!((entry.chunks.clone(), entry.done.confidence), (answer(10), Some(0.5)));
        assert_eq!(entry.done.timing, Timing::default(), "it takes no time the second time");
        assert!(store.get(&key(2), now).is_none());
        assert!(store.get(&key(1), now + Duration::from_secs(60)).is_none());
        store.evict(now + Duration::from_secs(60));
        let stats = store.stats();
        assert_eq!((stats.entries, stats.bytes, stats.expired), (0, 0, 1));
        assert_eq!((stats.hits, stats.misses), (1, 2));
    }

    #[test]
    fn what_is_too_large_or_empty_is_not_kept() {
        let (store, now) = store(1 << 20);
        store.put(key(1), answer(4096), Done::default(), now);
        store.put(key(2), Vec::new(), Done::default(), now);
        assert_eq!((store.stats().entries, store.stats().bytes, store.stats().refused), (0, 0, 2));
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let (store, now) = store(10_000);
        for n in 0..20 {
            store.put(key(n), answer(180), Done::default(), now + Duration::from_millis(n as u64));
        }
        assert_eq!(store.stats().entries, 20);
        assert!(store.is_crowded());
        store.get(&key(0), now + Duration::from_secs(1));
        store.evict(now + Duration::from_secs(1));
        assert!(store.stats().bytes <= 7500);
        assert!(store.get(&key(0), now).is_some(), "the oldest, but just used");
        assert!(store.get(&key(1), now).is_none());
        assert!(store.get(&key(19), now).is_some());
    }

    #[test]
    fn smaller_bounds_and_switching_off_take_effect() {
        let (store, now) = store(100_000);
        (0..50).for_each(|n| store.put(key(n), answer(500), Done::default(), now));
        store.configure(&CacheConfig { max_bytes: 10_000, ..Config::default().cache });
        store.evict(now);
        assert!(store.stats().bytes <= 7500 && store.stats().entries > 0);
        store.configure(&CacheConfig { enabled: false, ..Config::default().cache });
        store.evict(now);
        store.put(key(1), answer(1), Done::default(), now);
        assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
    }

    #[test]
    fn the_bound_holds_while_many_fill_it() {
        let (store, now) = store(50_000);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..2000 {
                        store.put(key(n * 4 + thread), answer(n % 300), Done::default(), now);
                        assert!(store.stats().bytes <= 50_000);
                        if n % 64 == 0 {
                            store.evict(now);
                        }
                    }
                });
            }
        });
        assert!(store.stats().evicted > 0);
        assert_eq!(store.flush(), store.stats().stored - store.stats().evicted);
        assert_eq!(store.stats().bytes, 0, "every byte was accounted for");
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_the_entries(calls in prop::collection::vec((0..4_u8, 0..8_usize, 0..3000_usize), 1..200)) {
            let (store, now) = store(9000);
            for (at, (call, n, bytes)) in calls.into_iter().enumerate() {
                let now = now + Duration::from_secs(at as u64);
                match call {
                    0 => store.evict(now),
                    1 => { store.get(&key(n), now); }
                    _ => store.put(key(n), answer(bytes), Done::default(), now),
                }
                let sum: u64 = store.entries.iter().map(|entry| entry.bytes).sum();
                prop_assert_eq!(store.stats().bytes, sum);
                prop_assert!(sum <= 9000);
            }
        }
    }

    /// `cargo test --release -p backplane cache -- --ignored --nocapture`
    #[test]
    #[ignore = "prints a time and asserts none"]
    fn time_of_a_hit() {
        let (store, now) = store(64 << 20);
        (0..10_000).for_each(|n| store.put(key(n), answer(1000), Done::default(), now));
        let keys: Vec<Key> = (0..1000).map(key).collect();
        let batch = || {
            let began = Instant::now();
            for key in &keys {
                std::hint::black_box(store.get(key, Instant::now()));
            }
            began.elapsed() / keys.len() as u32
        };
        println!("hit, best of 200: {:?}", (0..200).map(|_| batch()).min().unwrap());
    }
}
