//! Who gets how many threads, and when: pure logic, given the time.
//!
//! A *seat* is an instance; the seats of one model form a *group* and share its weight, so a model with four
//! instances weighs as much as a model with one. Groups are ordered by *pace*, the thread time they used divided
//! by their weight: whoever used least for its weight goes first, and since using threads raises the pace, nobody
//! waits for ever (start-time fair queueing). Free threads go out in three rounds:
//!
//! 1. the whole threads of each group's share,
//! 2. the thread that a fraction of a share is worth, to the slowest pace first,
//! 3. what is left, lent to whoever waits.
//!
//! A grant cannot be taken back, so a thread lent for 4 ms in the 0.1 ms gap between two steps of a chat would cost
//! that chat a third of its speed. A seat whose gaps are short against its steps therefore keeps its claim for a
//! moment after a release (anticipation, as in disk schedulers); the pause is bounded by a fraction of its step.

use std::sync::Arc;

/// Nanoseconds since some fixed moment.
pub(super) type Nanos = u64;

/// A gap longer than this ends a burst: it says nothing about the pause between two steps.
const BURST_ENDS: Nanos = 10_000_000;

/// What a timely return may be late by: waking a thread.
const WAKE: f64 = 50_000.0;

/// A group that asks for little does not save up for later beyond this much pace.
const CREDIT: f64 = 2e9;

/// How much of a new sample enters a mean.
const SMOOTH: f64 = 0.25;

/// An instance in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeatId(usize);

/// A call that waits for threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaiterId(u64);

/// Gives out the threads of one machine.
#[derive(Debug)]
pub(super) struct Policy {
    threads: u32,
    free: u32,
    groups: Vec<Group>,
    seats: Vec<Option<Seat>>,
    waiters: Vec<Waiter>,
    next_waiter: u64,
    charged_at: Nanos,
    /// The slowest pace among active groups so far: where a group that comes back begins.
    base_pace: f64,
    /// Kept between calls, so that granting does not allocate.
    claims: Vec<Claim>,
}

/// The seats that share a weight.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub name: Arc<str>,
    pub weight: f64,
    pub seats: u32,
    pub held: u32,
    pub waiting: u32,
    pub grants: u64,
    /// Nanoseconds of threads used.
    pub used: u128,
    /// Nanoseconds that calls waited.
    pub waited: u128,
    pace: f64,
    /// During a decision: threads held and about to be.
    planned: u32,
    active: bool,
}

#[derive(Debug)]
struct Seat {
    group: usize,
    held: u32,
    waiting: u32,
    /// Threads of its last grant: what it is expected to want next.
    usual: u32,
    taken_at: Nanos,
    released_at: Nanos,
    mean_hold: f64,
    mean_gap: Option<f64>,
}

#[derive(Debug)]
struct Waiter {
    id: WaiterId,
    seat: usize,
    want: u32,
    since: Nanos,
}

/// A wish for threads in one decision: of a waiter, or of a seat that is about to come back.
#[derive(Debug)]
struct Claim {
    group: usize,
    pace: f64,
    since: Nanos,
    want: u32,
    given: u32,
    waiter: Option<WaiterId>,
}

impl Policy {
    pub(super) fn new(threads: u32) -> Self {
        Self {
            threads,
            free: threads,
            groups: Vec::new(),
            seats: Vec::new(),
            waiters: Vec::new(),
            next_waiter: 0,
            charged_at: 0,
            base_pace: 0.0,
            claims: Vec::new(),
        }
    }

    /// A new seat in the group with this name. The newest weight counts for the whole group.
    pub(super) fn join(&mut self, name: &str, weight: f64) -> SeatId {
        let weight = if weight.is_finite() { weight.max(0.001) } else { 1.0 };
        let group = match self.groups.iter().position(|group| &*group.name == name) {
            Some(group) => group,
            None => {
                self.groups.push(Group {
                    name: Arc::from(name),
                    weight,
                    seats: 0,
                    held: 0,
                    waiting: 0,
                    grants: 0,
                    used: 0,
                    waited: 0,
                    pace: self.base_pace,
                    planned: 0,
                    active: false,
                });
                self.groups.len() - 1
            }
        };
        self.groups[group].weight = weight;
        self.groups[group].seats += 1;
        let seat = Seat {
            group,
            held: 0,
            waiting: 0,
            usual: 1,
            taken_at: 0,
            released_at: 0,
            mean_hold: 0.0,
            mean_gap: None,
        };
        match self.seats.iter().position(Option::is_none) {
            Some(free) => {
                self.seats[free] = Some(seat);
                SeatId(free)
            }
            None => {
                self.seats.push(Some(seat));
                SeatId(self.seats.len() - 1)
            }
        }
    }

    /// Ends a seat: its threads come back, its waiters are dropped and returned.
    pub(super) fn leave(&mut self, seat: SeatId, now: Nanos) -> Vec<WaiterId> {
        self.charge(now);
        let Some(left) = self.seats.get_mut(seat.0).and_then(Option::take) else { return Vec::new() };
        self.free += left.held;
        let group = &mut self.groups[left.group];
        group.held -= left.held;
        group.seats -= 1;
        group.waiting -= left.waiting;
        let (dropped, kept) = std::mem::take(&mut self.waiters).into_iter().partition(|w| w.seat == seat.0);
        self.waiters = kept;
        let dropped: Vec<Waiter> = dropped;
        dropped.into_iter().map(|waiter| waiter.id).collect()
    }

    /// Asks for up to `want` threads. The answer comes from [`Policy::dispatch`].
    pub(super) fn ask(&mut self, seat: SeatId, want: u32, now: Nanos) -> WaiterId {
        self.charge(now);
        let id = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        if let Some(asking) = self.seats.get_mut(seat.0).and_then(Option::as_mut) {
            let returns = asking.anticipated(now);
            if asking.held == 0 && asking.waiting == 0 && asking.released_at != 0 {
                let gap = now.saturating_sub(asking.released_at);
                if gap <= BURST_ENDS {
                    let mean = asking.mean_gap.unwrap_or(gap as f64);
                    asking.mean_gap = Some(mean + SMOOTH * (gap as f64 - mean));
                }
            }
            asking.waiting += 1;
            let group = &mut self.groups[asking.group];
            if group.held == 0 && group.waiting == 0 && !returns {
                group.pace = group.pace.max(self.base_pace);
            }
            group.waiting += 1;
            self.waiters.push(Waiter { id, seat: seat.0, want: want.clamp(1, self.threads), since: now });
        }
        id
    }

    /// Stops waiting.
    pub(super) fn abandon(&mut self, id: WaiterId) {
        if let Some(at) = self.waiters.iter().position(|waiter| waiter.id == id) {
            let waiter = self.waiters.remove(at);
            if let Some(seat) = self.seats[waiter.seat].as_mut() {
                seat.waiting -= 1;
                self.groups[seat.group].waiting -= 1;
            }
        }
    }

    /// Takes threads back. `false`, and nothing happens, when the seat does not hold as many.
    pub(super) fn release(&mut self, seat: SeatId, count: u32, now: Nanos) -> bool {
        self.charge(now);
        let Some(seat) = self.seats.get_mut(seat.0).and_then(Option::as_mut) else { return false };
        if seat.held < count {
            return false;
        }
        seat.held -= count;
        self.groups[seat.group].held -= count;
        self.free += count;
        if seat.held == 0 && count > 0 {
            let hold = now.saturating_sub(seat.taken_at) as f64;
            seat.mean_hold += if seat.mean_hold == 0.0 { hold } else { SMOOTH * (hold - seat.mean_hold) };
            seat.released_at = now;
        }
        true
    }

    /// Grants what can be granted now; calls `granted` for every waiter that got threads.
    pub(super) fn dispatch(&mut self, now: Nanos, mut granted: impl FnMut(WaiterId, u32)) {
        if self.waiters.is_empty() || self.free == 0 {
            return;
        }
        self.charge(now);
        self.collect_claims(now);
        let weights: f64 = self.groups.iter().filter(|group| group.active).map(|group| group.weight).sum();
        let share = |group: &Group| f64::from(self.threads) * group.weight / weights;

        let mut left = self.free;
        for round in 0..3 {
            for claim in &mut self.claims {
                let group = &mut self.groups[claim.group];
                let bound = match round {
                    0 => share(group).floor() as u32,
                    1 => share(group).ceil() as u32,
                    _ if claim.waiter.is_none() => 0,
                    _ => u32::MAX,
                };
                let give = (claim.want - claim.given).min(left).min(bound.saturating_sub(group.planned));
                claim.given += give;
                group.planned += give;
                left -= give;
            }
        }

        for at in 0..self.claims.len() {
            let Claim { given, waiter: Some(id), .. } = self.claims[at] else { continue };
            if given > 0 && self.settle(id, given, now) {
                granted(id, given);
            }
        }
    }

    /// Everything that wants threads now, the slowest pace first, then the longest wait.
    fn collect_claims(&mut self, now: Nanos) {
        for group in &mut self.groups {
            group.planned = group.held;
            group.active = group.held > 0 || group.waiting > 0;
        }
        self.claims.clear();
        for waiter in &self.waiters {
            if let Some(seat) = &self.seats[waiter.seat] {
                self.claims.push(Claim {
                    group: seat.group,
                    pace: self.groups[seat.group].pace,
                    since: waiter.since,
                    want: waiter.want,
                    given: 0,
                    waiter: Some(waiter.id),
                });
            }
        }
        for seat in self.seats.iter().flatten().filter(|seat| seat.anticipated(now)) {
            let group = &mut self.groups[seat.group];
            group.active = true;
            self.claims.push(Claim {
                group: seat.group,
                pace: group.pace,
                since: seat.released_at,
                want: seat.usual,
                given: 0,
                waiter: None,
            });
        }
        self.claims.sort_unstable_by(|a, b| a.pace.total_cmp(&b.pace).then(a.since.cmp(&b.since)));
    }

    /// Moves threads to a waiter.
    fn settle(&mut self, id: WaiterId, count: u32, now: Nanos) -> bool {
        let Some(at) = self.waiters.iter().position(|waiter| waiter.id == id) else { return false };
        let waiter = self.waiters.remove(at);
        let Some(seat) = self.seats[waiter.seat].as_mut() else { return false };
        if seat.held == 0 {
            seat.taken_at = now;
        }
        seat.waiting -= 1;
        seat.held += count;
        seat.usual = count;
        let group = &mut self.groups[seat.group];
        group.waiting -= 1;
        group.held += count;
        group.grants += 1;
        group.waited += u128::from(now.saturating_sub(waiter.since));
        self.free -= count;
        true
    }

    /// Brings the pace of every group up to now.
    fn charge(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.charged_at);
        if passed == 0 {
            return;
        }
        self.charged_at = now;
        let (mut slowest, mut fastest) = (f64::INFINITY, 0.0_f64);
        for group in &mut self.groups {
            if group.held > 0 {
                let used = u128::from(group.held) * u128::from(passed);
                group.used += used;
                group.pace += used as f64 / group.weight;
            }
            if group.held > 0 || group.waiting > 0 {
                slowest = slowest.min(group.pace);
                fastest = fastest.max(group.pace);
            }
        }
        if slowest.is_finite() {
            self.base_pace = self.base_pace.max(slowest);
        }
        for group in &mut self.groups {
            group.pace = group.pace.max(fastest - CREDIT);
        }
    }

    /// Threads granted now.
    pub(super) fn granted(&self) -> u32 {
        self.threads - self.free
    }

    /// Calls that wait now.
    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Every group that has seats.
    pub(super) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| group.seats > 0)
    }

    /// Threads that are free although somebody waits: kept for a seat that is about to come back.
    #[cfg(test)]
    fn kept(&self, now: Nanos) -> u32 {
        self.seats.iter().flatten().filter(|seat| seat.anticipated(now)).map(|seat| seat.usual).sum()
    }
}

impl Seat {
    /// Whether it is likely to ask again in a moment that is short against what it does between.
    fn anticipated(&self, now: Nanos) -> bool {
        let Some(gap) = self.mean_gap else { return false };
        let patience = (2.0 * gap + WAKE).min(self.mean_hold / 2.0);
        self.held == 0
            && self.waiting == 0
            && gap <= self.mean_hold / 4.0
            && now.saturating_sub(self.released_at) as f64 <= patience
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
