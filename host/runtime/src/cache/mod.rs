//! The exact cache: the same request gets the same answer again, without a model.
//!
//! Requests read and fill a sharded map; the [`actor`] owns eviction, flushing and the bounds. What must never be
//! kept cannot be put: only an answer that has reached its end comes with a [`Done`].

mod actor;
mod key;
mod store;

pub use key::{Identity, Key, cacheable};
pub use store::{Entry, Stats};

use crate::config::CacheConfig;
use crate::error::{Error, Result};
use crate::job::{Chunk, Done};
use crate::metrics::Renderer;
use actix::{Addr, Supervisor};
use actor::{CacheActor, Configure, Evict, Flush};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use store::Store;

/// What the request path holds.
#[derive(Clone)]
pub struct CacheHandle {
    store: Arc<Store>,
    actor: Addr<CacheActor>,
    wanted: Arc<AtomicBool>,
}

/// Starts the cache on the current actix system. `restarts` counts how often its actor came back.
pub fn start(config: &CacheConfig, restarts: Arc<AtomicU64>) -> CacheHandle {
    let store = Arc::new(Store::new(config, Instant::now()));
    let wanted = Arc::new(AtomicBool::new(false));
    let actor = Supervisor::start({
        let (store, wanted) = (store.clone(), wanted.clone());
        move |_| CacheActor { store, wanted, restarts }
    });
    CacheHandle { store, actor, wanted }
}

impl CacheHandle {
    /// Whether answers to this request are kept; see [`cacheable`].
    pub fn accepts(&self, capability: &str, params: &str, config: &CacheConfig) -> bool {
        cacheable(capability, params, config)
    }

    /// An answer that is kept and not too old. Counts a hit or a miss.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.store.get(key, Instant::now())
    }

    /// Keeps an answer piece by piece, to be put in at its end.
    pub fn record(&self, key: Key) -> Recording {
        Recording { cache: self.clone(), key, chunks: Vec::new(), bytes: store::OVERHEAD, too_large: false }
    }

    /// Keeps an answer that has ended well, if there is room.
    pub fn put(&self, key: Key, chunks: Vec<Chunk>, done: Done) {
        self.store.put(key, chunks, done, Instant::now());
        if self.store.is_crowded() && !self.wanted.swap(true, Ordering::Relaxed) {
            // A full mailbox means that it is at work; the next answer asks again.
            if self.actor.try_send(Evict).is_err() {
                self.wanted.store(false, Ordering::Relaxed);
            }
        }
    }

    /// The cache in figures.
    pub fn stats(&self) -> Stats {
        self.store.stats()
    }

    /// Writes the figures, for [`crate::metrics::Metrics::on_render`].
    pub fn render(&self, out: &mut Renderer) {
        let stats = self.stats();
        for (outcome, count) in [("hit", stats.hits), ("miss", stats.misses)] {
            let labels = [("outcome", outcome)];
            out.counter(
                "backplane_cache_lookups_total",
                "Requests that looked into the cache",
                &labels,
                count as f64,
            );
        }
        for (outcome, count) in [("stored", stats.stored), ("refused", stats.refused)] {
            let labels = [("outcome", outcome)];
            out.counter(
                "backplane_cache_answers_total",
                "Answers offered to the cache",
                &labels,
                count as f64,
            );
        }
        for (reason, count) in [("room", stats.evicted), ("age", stats.expired)] {
            let labels = [("reason", reason)];
            out.counter("backplane_cache_evictions_total", "Answers the cache let go", &labels, count as f64);
        }
        out.gauge("backplane_cache_entries", "Answers in the cache", &[], stats.entries as f64);
        out.gauge("backplane_cache_bytes", "Memory of the answers in the cache", &[], stats.bytes as f64);
        out.gauge("backplane_cache_max_bytes", "Memory that the cache may take", &[], stats.max_bytes as f64);
    }

    /// Drops every answer; says how many there were.
    ///
    /// # Errors
    /// `Unavailable` when the cache's actor is gone or has just failed.
    pub async fn flush(&self) -> Result<u64> {
        self.actor.send(Flush).await.map_err(gone)?.map_err(failed)
    }

    /// Puts other bounds into force.
    ///
    /// # Errors
    /// As [`CacheHandle::flush`].
    pub async fn configure(&self, config: &CacheConfig) -> Result<()> {
        self.actor.send(Configure(config.clone())).await.map_err(gone)?.map_err(failed)
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub async fn panic(&self) {
        self.actor.send(actor::Panic).await.ok();
    }

    /// Whether its actor takes messages.
    pub fn is_alive(&self) -> bool {
        self.actor.connected()
    }
}

/// An answer on its way into the cache. One that grows beyond `cache.max_entry` is let go at once: a stream can be long,
/// and there can be many.
#[derive(Debug)]
pub struct Recording {
    cache: CacheHandle,
    key: Key,
    chunks: Vec<Chunk>,
    bytes: u64,
    too_large: bool,
}

impl Recording {
    /// The next piece.
    pub fn push(&mut self, chunk: &Chunk) {
        if self.too_large {
            return;
        }
        self.bytes += store::size(chunk);
        self.too_large = !self.cache.store.takes(self.bytes);
        if self.too_large {
            self.chunks = Vec::new();
        } else {
            self.chunks.push(chunk.clone());
        }
    }

    /// The answer has ended well. One that was let go has no pieces and is counted as refused.
    pub fn end(self, done: Done) {
        self.cache.put(self.key, self.chunks, done);
    }
}

impl fmt::Debug for CacheHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CacheHandle").field(&self.stats()).finish()
    }
}

fn gone(_: actix::MailboxError) -> Error {
    Error::unavailable("the cache is not running")
}

fn failed(panicked: crate::actor::Panicked) -> Error {
    Error::unavailable(panicked.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;
    use crate::config::Config;
    use crate::job::Request;
    use std::time::Duration;

    fn key(n: usize) -> Key {
        Key::of(
            "t",
            &Identity::default(),
            &Request::new(Caller::internal("tests"), "chat", format!("{{\"n\":{n}}}")),
        )
    }

    fn answer(text: &str) -> Vec<Chunk> {
        vec![Chunk { json: text.to_owned().into(), tensors: Vec::new() }]
    }

    fn small() -> CacheConfig {
        CacheConfig { max_bytes: 20_000, ..Config::default().cache }
    }

    async fn until(what: &str, check: impl Fn() -> bool) {
        for _ in 0..2000 {
            if check() {
                return;
            }
            actix::clock::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what} did not come");
    }

    #[actix::test]
    async fn an_answer_is_found_again_and_flushed() {
        let cache = start(&small(), Arc::default());
        assert!(cache.get(&key(1)).is_none());
        cache.put(key(1), answer("{}"), Done::default());
        assert_eq!(cache.get(&key(1)).unwrap().chunks, answer("{}"));
        assert_eq!(cache.flush().await.unwrap(), 1);
        assert!(cache.get(&key(1)).is_none());
        assert_eq!((cache.stats().hits, cache.stats().misses), (1, 2));
    }

    #[actix::test]
    async fn an_answer_is_recorded_until_it_is_too_large() {
        let cache = start(&CacheConfig { max_entry: 2000, ..small() }, Arc::default());
        let piece = &answer(&"x".repeat(500))[0];
        let mut short = cache.record(key(1));
        (0..2).for_each(|_| short.push(piece));
        short.end(Done::default());
        assert_eq!(cache.get(&key(1)).unwrap().chunks.len(), 2);

        let mut long = cache.record(key(2));
        (0..3).for_each(|_| long.push(piece));
        assert_eq!(long.chunks.len(), 3);
        long.push(piece);
        assert_eq!(long.chunks.capacity(), 0, "nothing is kept of what cannot be put in");
        // Whatever becomes of the bound: a part of an answer is none.
        cache.configure(&small()).await.unwrap();
        long.push(piece);
        long.end(Done::default());
        assert!(cache.get(&key(2)).is_none());
        assert_eq!((cache.stats().stored, cache.stats().refused), (1, 1));
    }

    #[actix::test]
    async fn the_actor_makes_room_before_there_is_none() {
        let cache = start(&small(), Arc::default());
        for n in 0..500 {
            cache.put(key(n), answer("{\"some\": \"text\"}"), Done::default());
            actix::clock::sleep(Duration::ZERO).await;
        }
        until("an eviction", || cache.stats().evicted > 0 && !cache.store.is_crowded()).await;
        cache.put(key(1000), answer("{}"), Done::default());
        assert!(cache.get(&key(1000)).is_some());
    }

    #[actix::test]
    async fn after_a_panic_the_actor_is_back_and_nothing_was_missed() {
        let restarts = Arc::new(AtomicU64::new(0));
        let cache = start(&small(), restarts.clone());
        cache.put(key(1), answer("{}"), Done::default());
        // As if the eviction that was asked for had died with the actor.
        cache.wanted.store(true, Ordering::Relaxed);

        assert!(cache.actor.send(actor::Panic).await.unwrap().is_err(), "the caller is told");
        assert!(cache.get(&key(1)).is_some(), "requests are served in between");
        until("the restart", || {
            restarts.load(Ordering::Relaxed) == 1 && !cache.wanted.load(Ordering::Relaxed)
        })
        .await;
        assert!(cache.is_alive());
        (2..500).for_each(|n| cache.put(key(n), answer("{\"some\": \"text\"}"), Done::default()));
        until("an eviction", || cache.stats().evicted > 0).await;
        assert!(cache.flush().await.is_ok(), "its mailbox is the same");
    }

    #[actix::test]
    async fn its_figures_can_be_rendered() {
        let (cache, metrics) = (start(&small(), Arc::default()), crate::metrics::Metrics::new());
        cache.put(key(1), answer("{}"), Done::default());
        cache.get(&key(1));
        let rendered = cache.clone();
        metrics.on_render(Box::new(move |out| rendered.render(out)));
        let text = metrics.render();
        for line in [
            "backplane_cache_lookups_total{outcome=\"hit\"} 1",
            "backplane_cache_answers_total{outcome=\"stored\"} 1",
            "backplane_cache_evictions_total{reason=\"age\"} 0",
            "backplane_cache_entries 1",
            "backplane_cache_max_bytes 20000",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[actix::test]
    async fn other_bounds_take_effect_at_once() {
        let cache = start(&small(), Arc::default());
        cache.put(key(1), answer("{}"), Done::default());
        cache.configure(&CacheConfig { enabled: false, ..small() }).await.unwrap();
        assert_eq!(cache.stats().entries, 0);
        cache.put(key(2), answer("{}"), Done::default());
        assert!(cache.get(&key(2)).is_none());
        assert!(!cache.accepts("embed", "{}", &CacheConfig { enabled: false, ..small() }));
    }

    #[actix::test]
    async fn a_cache_whose_system_is_gone_says_so() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let system = actix::System::new();
            sender.send(system.block_on(async { start(&small(), Arc::default()) })).unwrap();
        });
        let cache = receiver.recv().unwrap();
        thread.join().unwrap();
        assert!(!cache.is_alive());
        assert_eq!(cache.flush().await.unwrap_err().message, "the cache is not running");
        cache.put(key(1), answer("{}"), Done::default());
        assert!(cache.get(&key(1)).is_some(), "the request path does not need it");
    }
}
