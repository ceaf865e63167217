//! Translated files, kept for a while until they are fetched.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Files that are kept at most; the oldest goes first.
const COUNT: usize = 100;
/// Bytes of all of them.
const BYTES: usize = 64 << 20;
/// How long one is kept.
const KEPT: Duration = Duration::from_secs(30 * 60);

/// Each under a name that nobody guesses.
#[derive(Default)]
pub(crate) struct Files(Mutex<VecDeque<Kept>>);

struct Kept {
    name: String,
    bytes: Bytes,
    since: Instant,
}

impl Files {
    pub(crate) fn put(&self, name: String, bytes: Bytes, now: Instant) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.push_back(Kept { name, bytes, since: now });
        forget(&mut files, now);
    }

    pub(crate) fn get(&self, name: &str, now: Instant) -> Option<Bytes> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forget(&mut files, now);
        files.iter().find(|kept| kept.name == name).map(|kept| kept.bytes.clone())
    }
}

fn forget(files: &mut VecDeque<Kept>, now: Instant) {
    files.retain(|kept| now.saturating_duration_since(kept.since) < KEPT);
    let mut bytes: usize = files.iter().map(|kept| kept.bytes.len()).sum();
    while COUNT < files.len() || BYTES < bytes {
        let Some(oldest) = files.pop_front() else { break };
        bytes -= oldest.bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_or_too_much_is_forgotten() {
        let (files, now) = (Files::default(), Instant::now());
        files.put("a".to_owned(), Bytes::from_static(b"1"), now);
        assert_eq!(files.get("a", now).unwrap(), "1");
        assert_eq!(files.get("b", now), None);
        assert_eq!(files.get("a", now + KEPT), None);
        for n in 0..=COUNT {
            files.put(n.to_string(), Bytes::from_static(b"1"), now);
        }
        assert_eq!(files.get("0", now), None);
        assert!(files.get("1", now).is_some());
        files.put("large".to_owned(), Bytes::from(vec![0; BYTES]), now);
        assert_eq!(files.get("1", now), None);
        assert!(files.get("large", now).is_some());
    }
}
