//! Calls to other capabilities that a worker's plugin has under way.

use super::super::host::HostSide;
use super::Link;
use backplane_abi::table::*;
use backplane_abi::worker::ToHost;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// So many at once.
const MOST: usize = 1024;

/// All of one worker: its number of each, and the host's handle (0 while it is being started).
pub struct Nested {
    host: HostSide,
    all: Mutex<HashMap<u64, bp_req>>,
}

impl Nested {
    pub fn new(host: HostSide) -> Self {
        Self { host, all: Mutex::default() }
    }

    /// Starts one for the request that goes to `parent`, if the worker has that. The code with which it began; `None`
    /// when the worker may not call it so.
    pub fn start(
        &self,
        link: &Arc<Link>,
        number: u64,
        parent: Option<bp_sink>,
        said: &ToHost<'_>,
    ) -> Option<bp_code> {
        let Some(parent) = parent else { return Some(BP_STALE_HANDLE) };
        {
            let mut all = self.all.lock();
            if MOST <= all.len() {
                return Some(BP_RESOURCE_EXHAUSTED);
            }
            if all.insert(number, 0).is_some() {
                return None;
            }
        }
        let (code, handle) = self.host.call_start(link, number, parent, said);
        let mut all = self.all.lock();
        if code == BP_OK {
            match all.get_mut(&number) {
                Some(place) => *place = handle,
                // It has ended, or whoever buried the worker did not know by what to cancel it.
                None => self.host.call_cancel(handle),
            }
        } else {
            all.remove(&number);
        }
        Some(code)
    }

    pub fn cancel(&self, number: u64) {
        let handle = self.all.lock().get(&number).copied();
        if let Some(handle) = handle {
            self.host.call_cancel(handle);
        }
    }

    pub fn ended(&self, number: u64) {
        self.all.lock().remove(&number);
    }

    /// The worker is gone.
    pub fn end(&self) {
        for handle in std::mem::take(&mut *self.all.lock()).into_values() {
            self.host.call_cancel(handle);
        }
    }
}
