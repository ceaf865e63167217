//! Generation-tagged 64-bit handles.
//!
//! A handle is `generation << 32 | index << 3 | shard`. A slot's generation grows each time it is freed, so a stale
//! handle finds nothing; it starts from a number of the table's own, so another plugin's handle finds nothing
//! either. Shards keep threads that finish at the same time out of each other's way.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

const SHARDS: u32 = 8;

/// Values by handle.
pub struct Handles<T> {
    shards: [Mutex<Shard<T>>; SHARDS as usize],
    turn: AtomicU32,
    salt: u32,
}

struct Shard<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T: Clone> Handles<T> {
    pub fn new() -> Self {
        static SALT: AtomicU32 = AtomicU32::new(1);
        Self {
            shards: std::array::from_fn(|_| Mutex::new(Shard { slots: Vec::new(), free: Vec::new() })),
            turn: AtomicU32::new(0),
            // A large odd step keeps the generations of two tables apart for two thousand million uses of one slot.
            salt: SALT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B1),
        }
    }

    /// Keeps `value` until [`Handles::remove`].
    pub fn insert(&self, value: T) -> u64 {
        let shard = self.turn.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut slots = self.shards[shard as usize].lock();
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                slots.slots.push(Slot { generation: self.salt | 1, value: None });
                slots.slots.len() as u32 - 1
            }
        };
        let slot = &mut slots.slots[index as usize];
        slot.value = Some(value);
        u64::from(slot.generation) << 32 | u64::from(index) << 3 | u64::from(shard)
    }

    /// The value, while the handle is alive.
    pub fn get(&self, handle: u64) -> Option<T> {
        self.with(handle, |slot| slot.value.clone())
    }

    /// Puts another value in its place. Whether the handle is alive.
    pub fn set(&self, handle: u64, value: T) -> bool {
        let mut shard = self.shards[parts(handle).0].lock();
        let alive = shard.find(handle).filter(|slot| slot.value.is_some());
        alive.map(|slot| slot.value = Some(value)).is_some()
    }

    /// Takes the value out; the handle is stale from here on.
    pub fn remove(&self, handle: u64) -> Option<T> {
        let (shard, index, _) = parts(handle);
        let mut slots = self.shards[shard].lock();
        let value = slots.find(handle)?.value.take()?;
        let slot = &mut slots.slots[index];
        // 0 is skipped, since handle 0 means "none".
        slot.generation = slot.generation.wrapping_add(2) | 1;
        slots.free.push(index as u32);
        Some(value)
    }

    /// How many are alive.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock()).map(|shard| shard.slots.len() - shard.free.len()).sum()
    }

    fn with<R>(&self, handle: u64, read: impl FnOnce(&Slot<T>) -> Option<R>) -> Option<R> {
        let mut shard = self.shards[parts(handle).0].lock();
        read(shard.find(handle)?)
    }
}

impl<T> Shard<T> {
    fn find(&mut self, handle: u64) -> Option<&mut Slot<T>> {
        let (_, index, generation) = parts(handle);
        self.slots.get_mut(index).filter(|slot| slot.generation == generation)
    }
}

fn parts(handle: u64) -> (usize, usize, u32) {
    ((handle & 7) as usize, ((handle & 0xFFFF_FFFF) >> 3) as usize, (handle >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_handle_dies_with_its_value_and_belongs_to_its_table() {
        let (mine, yours) = (Handles::new(), Handles::new());
        let handle = mine.insert("a");
        assert_ne!(handle, 0);
        assert_eq!(yours.insert("b") & 0xFFFF_FFFF, handle & 0xFFFF_FFFF, "the same place in both tables");
        assert_eq!(yours.get(handle), None);
        assert_eq!(mine.get(handle), Some("a"));
        assert_eq!(
            (yours.set(handle, "c"), mine.set(handle, "c"), mine.get(handle)),
            (false, true, Some("c"))
        );
        assert_eq!(mine.remove(handle), Some("c"));
        assert!(!mine.set(handle, "d"), "what is gone stays gone");
        assert_eq!((mine.get(handle), mine.remove(handle), mine.len()), (None, None, 0));
    }

    proptest! {
        #[test]
        fn invented_handles_find_nothing(guesses in proptest::collection::vec(any::<u64>(), 0..100)) {
            let handles = Handles::new();
            let real: Vec<u64> = (0..40).map(|n| handles.insert(n)).collect();
            for guess in guesses {
                prop_assert_eq!(handles.get(guess).is_some(), real.contains(&guess));
            }
        }
    }
}
