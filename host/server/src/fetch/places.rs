//! How many requests fetch at once: all together, and those of one key, so that nobody holds every place with an address
//! that gives a byte now and then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests that may fetch at once.
pub(super) const ALL: usize = 16;
/// Those of one key.
pub(super) const OF_ONE: usize = 4;

/// Whose requests are fetching, and how many of each; `None` are callers without a key.
#[derive(Default)]
pub(super) struct Places(Mutex<HashMap<Option<Arc<str>>, usize>>);

/// One of them. Free again when it is dropped.
pub(super) struct Place<'a> {
    places: &'a Places,
    key: Option<Arc<str>>,
}

impl Places {
    /// A place for a request of this key, if there is one.
    pub fn take(&self, key: Option<&Arc<str>>) -> Option<Place<'_>> {
        let mut taken = self.taken();
        let own = taken.get(&key.cloned()).copied().unwrap_or_default();
        if ALL <= taken.values().sum::<usize>() || OF_ONE <= own {
            return None;
        }
        let key = key.cloned();
        taken.insert(key.clone(), own + 1);
        Some(Place { places: self, key })
    }

    /// Nothing is done under the lock that could fail halfway.
    fn taken(&self) -> MutexGuard<'_, HashMap<Option<Arc<str>>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_leaves_places_to_others() {
        let places = Places::default();
        let key = |name: usize| Some(Arc::from(name.to_string()));
        let mut held: Vec<_> = (0..OF_ONE).map(|_| places.take(key(0).as_ref()).unwrap()).collect();
        assert!(places.take(key(0).as_ref()).is_none());
        held.extend((OF_ONE..ALL).map(|other| places.take(key(other).as_ref()).unwrap()));
        assert!(places.take(None).is_none(), "all are taken");
        held.clear();
        assert!(places.taken().is_empty());
    }
}
