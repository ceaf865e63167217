//! Requests that a worker has, and the pieces of their answers.

use super::super::crashes::Fingerprint;
use super::super::host::{CancelWord, Content, HostSide};
use super::life::Life;
use backplane_abi::table::*;
use backplane_abi::worker::{
    Body, Credit, Failure, Tensor, ToHost, ToWorker, WINDOW_BYTES, WINDOW_CHUNKS, frame,
};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All of one worker.
pub struct Requests {
    host: HostSide,
    life: Arc<Life>,
    open: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    all: HashMap<u64, Open>,
    /// The worker is gone: nothing is taken any more.
    closed: bool,
}

/// A request that the worker has.
pub struct Open {
    pub sink: bp_sink,
    pub instance: u64,
    pub cancel: CancelWord,
    /// Its id in the log.
    pub request_id: String,
    /// What it asks.
    pub content: Content,
    /// Where the worker reads how many of its pieces were taken.
    credit: Credit,
    told: bool,
    /// Its submit has not returned: whoever called that knows whether the worker ever read it, and ends it.
    submitting: bool,
    /// Pieces that the reader was too slow for.
    parked: VecDeque<Arc<Body>>,
    end: Option<Arc<Body>>,
    /// The code with which the host refused a piece.
    refused: bp_code,
    /// When the last piece came, or it itself.
    moved: Instant,
    /// It is what its worker is ended for.
    stalled: bool,
}

impl Open {
    /// `told`: it comes with the word that its caller has left.
    pub fn new(
        sink: bp_sink,
        instance: u64,
        cancel: CancelWord,
        request_id: String,
        content: Content,
        credit: Credit,
        told: bool,
    ) -> Self {
        Self {
            sink,
            instance,
            cancel,
            request_id,
            content,
            credit,
            told,
            submitting: true,
            parked: VecDeque::new(),
            end: None,
            refused: BP_OK,
            moved: Instant::now(),
            stalled: false,
        }
    }
}

/// What a worker had when it ended.
pub struct Left {
    /// Ids in the log of all that it had.
    pub ids: Vec<String>,
    /// Those that it is to be ended with; whose submit has not returned, who called that ends.
    pub had: HashMap<u64, Open>,
}

impl Left {
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        fingerprints(&self.had)
    }
}

fn fingerprints(had: &HashMap<u64, Open>) -> Vec<Fingerprint> {
    had.values().map(|open| open.content.fingerprint()).collect()
}

impl Requests {
    pub fn new(host: HostSide, life: Arc<Life>) -> Self {
        Self { host, life, open: Mutex::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.open.lock().all.is_empty()
    }

    /// Notes requests that are about to be sent. `false` when the worker is gone.
    pub fn register(&self, requests: Vec<(u64, Open)>) -> bool {
        let mut open = self.open.lock();
        if !open.closed {
            open.all.extend(requests);
            return true;
        }
        false
    }

    /// Forgets requests that were not taken.
    pub fn forget(&self, ids: &[u64]) {
        let mut open = self.open.lock();
        ids.iter().for_each(|id| drop(open.all.remove(id)));
    }

    /// Their submit returned, or was lost with the worker that had read them. If that is dead they end here, after
    /// `suspects` was told their fingerprints: whoever hears of the end and asks again is known by then.
    pub fn submitted(&self, plugin: &str, ids: &[u64], suspects: impl FnOnce(&[Fingerprint])) {
        let mut open = self.open.lock();
        if !open.closed {
            for id in ids {
                open.all.entry(*id).and_modify(|open| open.submitting = false);
            }
            return;
        }
        let had: HashMap<_, _> = ids.iter().filter_map(|id| open.all.remove_entry(id)).collect();
        drop(open);
        if !had.is_empty() {
            if !self.life.is_stuck() {
                suspects(&fingerprints(&had));
            }
            let how = self.life.death().map_or_else(|| "ended".to_owned(), |death| death.how);
            self.end(plugin, had, &how);
        }
    }

    /// Where the answer of this request goes, if the worker has it.
    pub fn sink(&self, id: u64) -> Option<bp_sink> {
        self.open.lock().all.get(&id).map(|open| open.sink)
    }

    /// Tells the worker that the caller of a request left.
    pub fn cancel(&self, sink: bp_sink) {
        let mut open = self.open.lock();
        let found = open.all.iter_mut().find(|(_, open)| open.sink == sink && !open.told);
        if let Some((id, request)) = found {
            self.tell_cancelled(*id, request);
        }
    }

    /// A piece of an answer came. `None` when it is none that the worker may send now.
    pub fn pushed(&self, id: u64, json: &[u8], tensors: &[Tensor<'_>], body: &Arc<Body>) -> Option<()> {
        let mut open = self.open.lock();
        let entry = open.all.get_mut(&id)?;
        if entry.end.is_some() {
            return None;
        }
        entry.moved = Instant::now();
        if entry.parked.is_empty() && self.hand_on(id, entry, json, tensors, body) {
            return Some(());
        }
        let waiting: u64 = entry.parked.iter().map(|body| body.bytes().len() as u64).sum();
        if WINDOW_CHUNKS as usize <= entry.parked.len() || 2 * WINDOW_BYTES < waiting {
            return None;
        }
        entry.parked.push_back(body.clone());
        self.offer(id, entry);
        Some(())
    }

    /// The plugin gave a request back. `None` when it does not have it.
    pub fn finished(&self, id: u64, body: &Arc<Body>) -> Option<()> {
        let mut open = self.open.lock();
        let entry = open.all.get_mut(&id)?;
        if entry.end.is_some() {
            return None;
        }
        entry.end = Some(body.clone());
        if entry.parked.is_empty() {
            let entry = open.all.remove(&id)?;
            drop(open);
            self.finish(&entry);
        }
        Some(())
    }

    /// What is done from time to time: cancel words are looked at, and parked pieces offered.
    pub fn tick(&self) {
        let mut ended = Vec::new();
        let mut open = self.open.lock();
        for (id, entry) in &mut open.all {
            if !entry.told && entry.cancel.is_set() {
                self.tell_cancelled(*id, entry);
            }
            if !entry.parked.is_empty() {
                self.offer(*id, entry);
                if entry.parked.is_empty() && entry.end.is_some() {
                    ended.push(*id);
                }
            }
        }
        let ended: Vec<_> = ended.into_iter().filter_map(|id| open.all.remove(&id)).collect();
        drop(open);
        ended.iter().for_each(|entry| self.finish(entry));
    }

    /// Whether a piece of some request is overdue. One whose reader is slow is not, nor one whose caller left: how long that
    /// may take is the plugin's to say.
    pub fn stall(&self, limit: Duration, now: Instant) -> bool {
        let mut open = self.open.lock();
        for entry in open.all.values_mut() {
            let waits = entry.parked.is_empty() && entry.end.is_none() && !entry.told;
            entry.stalled = waits && limit < now.saturating_duration_since(entry.moved);
        }
        open.all.values().any(|entry| entry.stalled)
    }

    /// Hands on what is parked, as far as the reader takes it.
    fn offer(&self, id: u64, entry: &mut Open) {
        while let Some(body) = entry.parked.front().cloned() {
            let Ok(ToHost::Push { json, ref tensors, .. }) = body.read() else { return };
            if !self.hand_on(id, entry, json, tensors, &body) {
                return;
            }
            entry.parked.pop_front();
            entry.moved = Instant::now();
        }
    }

    /// Hands a piece on. Whether it is done with: the reader has it, or will never want it.
    fn hand_on(
        &self,
        id: u64,
        entry: &mut Open,
        json: &[u8],
        tensors: &[Tensor<'_>],
        body: &Arc<Body>,
    ) -> bool {
        let code = match entry.refused {
            BP_OK => self.host.push(entry.sink, json, tensors, body),
            refused => refused,
        };
        match code {
            BP_WOULD_BLOCK => return false,
            BP_OK => {}
            // The caller left, or the request was taken away.
            BP_CANCELLED | BP_STALE_HANDLE => self.tell_cancelled(id, entry),
            refused => {
                entry.refused = refused;
                self.tell_cancelled(id, entry);
            }
        }
        let tensors = tensors.iter().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.nbytes));
        entry.credit.took(tensors.saturating_add(json.len() as u64));
        true
    }

    fn tell_cancelled(&self, id: u64, entry: &mut Open) {
        if !std::mem::replace(&mut entry.told, true) {
            self.life.tell(&frame(&ToWorker::Cancel { instance: entry.instance, request: id }));
        }
    }

    fn finish(&self, entry: &Open) {
        let Some(Ok(ToHost::Finish { error, usage, confidence, .. })) =
            entry.end.as_ref().map(|end| end.read())
        else {
            return;
        };
        let refused = Failure {
            code: BP_INTERNAL,
            sub: BP_SUB_NONE,
            retry_after_ms: 0,
            message: b"the plugin's answer had a piece that is no piece of an answer",
            reason: b"",
            details: b"",
        };
        let error = if entry.refused == BP_OK { error.as_ref() } else { Some(&refused) };
        self.host.finish(entry.sink, error, usage, confidence);
    }

    /// The worker is gone: it is given nothing any more.
    pub fn close(&self) -> Left {
        let mut open = self.open.lock();
        open.closed = true;
        self.life.takes_nothing();
        let ids = open.all.values().map(|open| open.request_id.clone()).collect();
        let (kept, had) = std::mem::take(&mut open.all).into_iter().partition(|(_, open)| open.submitting);
        open.all = kept;
        Left { ids, had }
    }

    /// Ends requests that the worker had.
    pub fn end(&self, plugin: &str, had: HashMap<u64, Open>, how: &str) {
        let message =
            format!("plugin `{plugin}` broke down while it served this request: its worker {how}; retry");
        let failure = Failure {
            code: 14,
            sub: BP_SUB_NONE,
            retry_after_ms: 1000,
            message: message.as_bytes(),
            reason: b"worker_crashed",
            details: b"",
        };
        let words = format!(
            "plugin `{plugin}` gave no piece of its answer for longer than `plugins.workers.\"{plugin}\".progress` allows, and \
             its worker was ended; retry"
        );
        let stalled = Failure { message: words.as_bytes(), reason: b"plugin_stuck", ..failure };
        for (id, mut entry) in had {
            // What had arrived is the reader's.
            self.offer(id, &mut entry);
            if entry.parked.is_empty() && entry.end.is_some() {
                self.finish(&entry);
            } else {
                self.host.finish(
                    entry.sink,
                    Some(if entry.stalled { &stalled } else { &failure }),
                    b"",
                    -1.0,
                );
            }
        }
    }
}
