//! How much memory the pictures of a model's requests may take together, while they are decoded and afterwards.

use backplane_plugin::prelude::*;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a request that was cancelled may go unnoticed here.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes that requests share. Who came first is served first: small pictures do not pass a large one for ever.
#[derive(Debug)]
pub struct Memory {
    most: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: u64,
    waiting: VecDeque<u64>,
    next: u64,
}

/// Bytes that a picture has. They are free again when this is dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Waits for this many bytes; for all of them where that is more, so that a picture larger than all is read alone.
    ///
    /// # Errors
    /// What `wanted` says, which is asked while there is nothing to do but wait.
    pub fn take(self: &Arc<Self>, bytes: u64, wanted: impl Fn() -> Result<()>) -> Result<Share> {
        let bytes = bytes.min(self.most);
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.waiting.push_back(ticket);
        while state.waiting.front() != Some(&ticket) || self.most < state.taken + bytes {
            if let Err(unwanted) = wanted() {
                state.waiting.retain(|other| *other != ticket);
                self.changed.notify_all();
                return Err(unwanted);
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.pop_front();
        state.taken += bytes;
        // There may be room for the next one as well.
        self.changed.notify_all();
        Ok(Share { of: self.clone(), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Gives back what goes beyond this.
    pub fn keep(&mut self, bytes: u64) {
        let kept = self.bytes.min(bytes);
        self.of.lock().taken -= self.bytes - kept;
        self.bytes = kept;
        self.of.changed.notify_all();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn take(memory: &Arc<Memory>, bytes: u64) -> Share {
        memory.take(bytes, || Ok(())).unwrap()
    }

    #[test]
    fn no_more_is_taken_than_there_is_and_turns_are_kept() {
        let memory = Memory::new(100);
        let mut first = take(&memory, 80);
        let (sender, served) = mpsc::channel();
        // The second needs all; the third would fit, and came later.
        let threads: Vec<_> = [(2, 1000), (3, 20)]
            .map(|(name, bytes)| {
                let (before, memory, sender) = (memory.lock().waiting.len(), memory.clone(), sender.clone());
                let other = memory.clone();
                let thread = thread::spawn(move || {
                    let share = take(&other, bytes);
                    assert!(other.lock().taken <= 100);
                    sender.send(name).unwrap();
                    drop(share);
                });
                while memory.lock().waiting.len() == before {
                    thread::yield_now();
                }
                thread
            })
            .into();
        first.keep(30);
        assert_eq!(memory.lock().taken, 30, "what is decoded takes less, and all is still too much");
        assert!(served.try_recv().is_err());
        drop(first);
        assert_eq!((served.recv().unwrap(), served.recv().unwrap()), (2, 3));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(memory.lock().taken, 0);
    }

    #[test]
    fn who_leaves_does_not_keep_the_others() {
        let memory = Memory::new(10);
        let all = take(&memory, 10);
        assert_eq!(memory.take(5, || Err(Error::cancelled())).unwrap_err().code, Code::Cancelled);
        drop(all);
        assert_eq!(take(&memory, 10).bytes, 10);
    }
}
