//! Opening models: ask for a bid, make room, load, publish.
//!
//! A thread of its own drives each opening, since all but the decision may block; the actor answers it. What a thread
//! is at does not depend on the actor's staying up.

use super::actor::{CatalogActor, Closed, Evicted, Loaded, MakeRoom, ask, tell};
use super::closing::{close_all, close_and_wait};
use super::entry::{Entry, Listed, Stage};
use super::plan::{self, Decision, Open};
use super::{Found, Shelf};
use crate::backend::actor::BackendActor;
use crate::backend::{Backend, Settings};
use crate::error::{Error, ErrorCode, Result};
use crate::info::LoadPlan;
use crate::job::KeepAlive;
use crate::license;
use crate::loader::{Bid, BidQuery, CANNOT_SERVE, Plugin, QUARANTINED, Waits, in_quarantine, trim_memory};
use crate::metrics::memory;
use actix::{Addr, AsyncContext, Context, Supervisor};
use backplane_registry::size_text;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a failed model is not tried again.
const RETRY: Duration = Duration::from_secs(3);

/// What a plugin finds missing on this machine, and not in the model: it need not be all that is wrong.
const MISSING_HERE: [&str; 2] = ["device_missing", "runtime_missing"];

/// Why a model is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Occasion {
    /// A request is to be served. A plugin that does not bid is not asked to open anything.
    #[default]
    Request,
    /// Somebody wants just that. A plugin that does not bid for want of a device or a runtime is asked all the same: who writes
    /// a model is told what is wrong with it wherever that can be told.
    Load,
}

/// How a model is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    pub occasion: Occasion,
    pub keep_alive: Option<KeepAlive>,
}

impl Wish {
    /// Whether a plugin is asked to open the model though this is missing.
    pub(super) fn gets_past(&self, reason: &str) -> bool {
        self.occasion == Occasion::Load && MISSING_HERE.contains(&reason)
    }
}

/// A model that a thread is opening.
pub(super) struct Loading {
    /// Tells this opening from others of the same model.
    serial: u64,
    entry: Arc<Entry>,
    /// Bytes that it was promised.
    promised: u64,
    /// When it has taken too long.
    until: Instant,
    /// What comes of it is thrown away.
    given_up: bool,
    /// Given up because the model was closed: whoever asks for it now waits until its thread is done, and it is opened
    /// anew.
    closed: bool,
}

impl Loading {
    /// Whether its thread may yet be done in time for the model to be opened once more.
    fn may_open_anew(&self) -> bool {
        self.closed && Instant::now() < self.until
    }
}

impl CatalogActor {
    pub(super) fn open(&mut self, entry: &Arc<Entry>, wish: Wish, context: &mut Context<Self>) {
        let name = &entry.name();
        let fail = |error: Error| entry.set_stage(Stage::Failed(Instant::now(), error));
        match entry.stage() {
            Stage::Loading | Stage::Ready => return,
            Stage::Closing => {
                self.reopen.insert(name.clone(), wish);
                return;
            }
            _ if self.stopping => return fail(Error::shutting_down()),
            _ if !self.shelf.holds(entry) => return fail(self.shelf.not_found(name)),
            // A new listing has made it idle, where it failed for having been closed.
            Stage::Idle | Stage::Failed(..) if self.loads.get(name).is_some_and(Loading::may_open_anew) => {
                self.reopen.insert(name.clone(), wish);
                return entry.set_stage(Stage::Loading);
            }
            Stage::Failed(since, error) if since.elapsed() < RETRY && !wish.gets_past(&error.reason) => {
                entry.set_stage(Stage::Failed(since, error));
                return;
            }
            Stage::Idle | Stage::Failed(..) => {}
        }
        if self.loads.contains_key(name) {
            // One thread that hangs is enough.
            let error =
                format!("a plugin is still at opening model `{name}`, longer than it may; see the log");
            return fail(Error::unavailable(error).with_reason("load_failed"));
        }
        self.serial += 1;
        let load = Load {
            serial: self.serial,
            entry: entry.clone(),
            settings: self.options.of(name).settings(&self.options, &entry.listed().limits),
            shelf: self.shelf.clone(),
            address: context.address(),
            wish,
        };
        let until = Instant::now() + self.options.load_timeout;
        let loading = Loading {
            serial: self.serial,
            entry: entry.clone(),
            promised: 0,
            until,
            given_up: false,
            closed: false,
        };
        self.loads.insert(name.clone(), loading);
        entry.set_stage(Stage::Loading);
        let spawned = std::thread::Builder::new().name(format!("open {name}")).spawn(move || load.run());
        if let Err(error) = spawned {
            self.loads.remove(name);
            fail(Error::unavailable(format!("no thread to open model `{name}`: {error}")));
        }
    }

    /// Decides what has to go so that a model fits, and takes it from the request path.
    ///
    /// # Errors
    /// When it does not fit, or nobody waits for it any more.
    pub(super) fn make_room(&mut self, wanted: &MakeRoom) -> Result<Vec<Evicted>> {
        let name = wanted.entry.name();
        let waits = |load: &Loading| load.serial == wanted.serial && !load.given_up;
        if !self.loads.get(&name).is_some_and(waits) {
            return Err(Error::cancelled());
        }
        let (plan, decision) = self.plan(&wanted.entry, &wanted.bid);
        if !decision.fits {
            return Err(no_memory(&plan));
        }
        if let Some(load) = self.loads.get_mut(&name) {
            load.promised = wanted.bid.host_bytes;
        }
        let evicted = decision.evicts.iter().filter_map(|name| {
            let entry = self.shelf.get(name)?;
            let backends = self.begin_close(&entry)?;
            tracing::info!(model = &**name, "evicted to make room");
            self.shelf.metrics.count_eviction();
            Some((entry, backends))
        });
        Ok(evicted.collect())
    }

    /// Bytes that models take which are being opened.
    pub(super) fn promised(&self) -> u64 {
        self.loads.values().map(|load| load.promised).sum()
    }

    pub(super) fn plan(&self, entry: &Entry, bid: &Bid) -> (LoadPlan, Decision) {
        let open: Vec<Open> = self
            .shelf
            .entries()
            .iter()
            .filter(|other| other.backend().is_some())
            .map(|other| Open {
                name: other.name(),
                bytes: other.memory(),
                last_used: other.last_used(),
                evictable: !other.is_pinned() && other.is_idle(),
            })
            .collect();
        let promised = self.promised();
        let needs = bid.host_bytes;
        let budget = self.options.memory_budget;
        let free = memory::available_bytes();
        let decision =
            plan::decide(needs, free.saturating_sub(promised), budget.saturating_sub(promised), &open);
        let name = entry.name();
        let threads = self.shelf.pool.threads();
        let plan = LoadPlan {
            needs_bytes: needs,
            free_bytes: free,
            budget_bytes: budget,
            used_bytes: open.iter().map(|model| model.bytes).sum::<u64>() + promised,
            evicts: decision.evicts.clone(),
            fits: decision.fits,
            threads: (self.options.of(&name).threads.min(threads), threads),
            text: bid.text.clone(),
            model: name,
        };
        (plan, decision)
    }

    /// Tells those who wait for a model that it will not open. Its thread may be in a plugin and cannot be stopped.
    pub(super) fn give_up(&mut self, name: &str, error: Error) {
        let Some(load) = self.loads.get_mut(name) else { return };
        load.given_up = true;
        load.promised = 0;
        self.reopen.remove(name);
        if let Stage::Loading = load.entry.stage() {
            load.entry.set_stage(Stage::Failed(Instant::now(), error));
        }
    }

    /// As [`Self::give_up`], of a model that was closed while it was being opened.
    pub(super) fn give_up_closed(&mut self, name: &str) {
        let error = format!("model `{name}` was closed while it was being opened; retry");
        self.give_up(name, Error::unavailable(error).with_reason("load_failed"));
        if let Some(load) = self.loads.get_mut(name) {
            load.closed = true;
        }
    }

    /// Gives up what takes too long.
    pub(super) fn give_up_late(&mut self) {
        let (now, limit) = (Instant::now(), self.options.load_timeout);
        // One that was given up may be waited for again.
        let late = |load: &&Loading| load.until <= now && matches!(load.entry.stage(), Stage::Loading);
        let late: Vec<_> = self.loads.values().filter(late).map(|load| load.entry.name()).collect();
        for name in late {
            let error = Error::unavailable(format!(
                "model `{name}` was not open after {limit:?}; see the log, or raise `models.load_timeout`"
            ));
            self.give_up(&name, error.with_reason("load_failed"));
        }
    }

    pub(super) fn loaded(&mut self, loaded: Loaded, context: &mut Context<Self>) {
        let Loaded { serial, entry, listed, wish, memory, result } = loaded;
        let name = entry.name();
        let ours = self.loads.get(&name).is_some_and(|load| load.serial == serial);
        let Some(load) = ours.then(|| self.loads.remove(&name)).flatten() else { return discard(result) };
        if load.given_up {
            // It can be tried again at once, if there still is such a model.
            discard(result);
            if self.shelf.holds(&entry) {
                entry.set_stage(Stage::Idle);
                if let Some(wish) = self.reopen.remove(&name) {
                    self.open(&entry, wish, context);
                }
            }
            return;
        }
        let retired = result.as_ref().is_ok_and(|(_, plugin)| !self.shelf.lists(plugin));
        if retired || !entry.listed().opens_like(&listed) {
            // Another model has its name since, or another version of its plugin serves.
            discard(result);
            entry.set_stage(Stage::Idle);
            return self.open(&entry, wish, context);
        }
        match result {
            Ok((backend, plugin)) => {
                tracing::info!(model = &*name, memory, plugin = &**plugin.id(), "model open");
                self.shelf.count_load(true);
                entry.set_memory(memory);
                entry.set_plugin(Some(plugin));
                let (watched, restarts) = (backend.clone(), self.shelf.backend_restarts.clone());
                let watcher = Supervisor::start(move |_| BackendActor::new(watched, restarts));
                self.watchers.insert(name, watcher);
                entry.touch(wish.keep_alive);
                entry.opened(backend);
            }
            Err(error) => {
                tracing::error!(model = &*name, %error, "model not opened");
                self.shelf.count_load(false);
                let error = if error.reason.is_empty() { error.with_reason("load_failed") } else { error };
                entry.set_stage(Stage::Failed(Instant::now(), error));
            }
        }
    }

    /// After a panic: what was left half opened fails, so that nobody waits for it.
    pub(super) fn fail_orphans(&mut self) {
        for entry in self.shelf.entries() {
            if matches!(entry.stage(), Stage::Loading) && !self.loads.contains_key(&entry.name()) {
                let error = Error::internal(format!("opening model `{}` failed inside; retry", entry.name()));
                entry.set_stage(Stage::Failed(Instant::now(), error));
            }
        }
    }
}

fn no_memory(plan: &LoadPlan) -> Error {
    Error::new(
        ErrorCode::ResourceExhausted,
        format!(
            "model `{}` needs {} of memory; {} are free, and open models take {} of the {} they may; close a model, \
             choose a smaller one, or raise `models.memory_budget`",
            plan.model,
            size_text(plan.needs_bytes),
            size_text(plan.free_bytes),
            size_text(plan.used_bytes),
            size_text(plan.budget_bytes),
        ),
    )
    .with_reason("no_memory")
    .with_detail("needs_bytes", plan.needs_bytes)
    .with_detail("free_bytes", plan.free_bytes)
    .with_detail("used_bytes", plan.used_bytes)
    .with_detail("budget_bytes", plan.budget_bytes)
}

/// Closes, on a thread, what came too late.
fn discard(result: Result<(Arc<Backend>, Arc<Plugin>)>) {
    if let Ok((backend, _)) = result {
        let inner = backend.clone();
        if std::thread::Builder::new().spawn(move || close_and_wait(inner, Duration::ZERO)).is_err() {
            backend.close(Duration::ZERO);
        }
    }
}

/// A model being opened, on a thread of its own.
struct Load {
    serial: u64,
    entry: Arc<Entry>,
    settings: Settings,
    shelf: Arc<Shelf>,
    address: Addr<CatalogActor>,
    wish: Wish,
}

impl Load {
    fn run(self) {
        let Self { serial, entry, settings, shelf, address, wish } = self;
        let listed = entry.listed();
        let (mut before, mut estimate) = (memory::resident_bytes(), 0);
        // A panic here would leave the model loading for ever.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (plugin, bid) = shelf.opener(&listed, wish)?;
            estimate = bid.host_bytes;
            let seats = plugin.licence().map(|gate| gate.seats(u64::from(settings.instances.max(1))));
            let seats = seats.transpose().map_err(|denial| license::refusal(plugin.id(), denial))?;
            make_room(&address, MakeRoom { serial, entry: entry.clone(), bid })?;
            // What was closed for it is no part of what it takes.
            before = memory::resident_bytes();
            let model = plugin.open(&listed.model_json).map_err(|error| not_opened(&listed.name, error))?;
            let names = (listed.name.clone(), plugin.id().clone());
            let backend = Backend::start(names, model, settings, shelf.pool.clone(), shelf.metrics.clone())?;
            seats.into_iter().for_each(|seats| backend.hold(seats));
            Ok((backend, plugin))
        }));
        let result = opened.unwrap_or_else(|_| {
            Err(Error::internal(format!("opening model `{}` panicked; see the log", listed.name)))
        });
        // What was needed only while it was opened: a third of what MiniLM takes, without this.
        trim_memory();
        let memory = memory::resident_bytes().saturating_sub(before).max(estimate);
        let backend = result.as_ref().ok().map(|(backend, _)| backend.clone());
        let told = tell(&address, Loaded { serial, entry, listed, wish, memory, result });
        if let (false, Some(backend)) = (told, backend) {
            // The host has ended meanwhile.
            close_and_wait(backend, Duration::ZERO);
        }
    }
}

/// What a plugin says of a card or a file that it does not take is no mistake of who asks for the model.
fn not_opened(model: &str, mut error: Error) -> Error {
    let reason = match error.code {
        ErrorCode::InvalidArgument | ErrorCode::OutOfRange => "model_invalid",
        ErrorCode::FailedPrecondition | ErrorCode::NotFound => "load_failed",
        _ => return error,
    };
    error.code = ErrorCode::FailedPrecondition;
    error.param = None;
    if error.reason.is_empty() {
        error.message = format!("model `{model}` cannot be opened: {}", error.message);
        error = error.with_reason(reason);
    }
    error
}

/// Waits until there is room for a model.
fn make_room(address: &Addr<CatalogActor>, wanted: MakeRoom) -> Result<()> {
    for (entry, backends) in ask(address, wanted).ok_or_else(Error::shutting_down)?? {
        close_all(backends, None);
        tell(address, Closed { entry });
    }
    Ok(())
}

impl Shelf {
    /// Why no plugin that could open a model may: none of them has a licence that serves. Asks no plugin.
    pub fn unlicensed(&self, listed: &Listed) -> Option<Error> {
        let mut refused = None;
        for found in &*self.plugins() {
            let Some(id) = found.id().filter(|id| listed.plugins.iter().any(|name| **name == **id)) else {
                continue;
            };
            match found.licence.as_ref().map(|gate| gate.loads()) {
                Some(Err(denial)) => refused = Some(license::refusal(id, denial)),
                // It has just come, and the plugin is being loaded.
                Some(Ok(())) if found.waits_for_licence() => {
                    let error = Error::unavailable(format!("plugin `{id}` is being loaded; retry"));
                    refused = Some(error.with_reason("overloaded").with_retry_after(Duration::from_secs(1)));
                }
                None if found.plugin.is_none() => {}
                Some(Ok(())) | None => return None,
            }
        }
        refused
    }

    /// The plugin that is to open a model. Calls plugins, which may read the model's file.
    ///
    /// # Errors
    /// As [`Self::bidder`].
    fn opener(&self, listed: &Listed, wish: Wish) -> Result<(Arc<Plugin>, Bid)> {
        let (plugin, bid) = self.best(listed, Waits::Load)?;
        if wish.gets_past(&bid.refusal) {
            return Ok((plugin, bid));
        }
        able(listed, plugin, bid)
    }

    /// The plugin that bids most for a model. Calls plugins, which may read the model's file.
    ///
    /// # Errors
    /// When none can, and why.
    pub fn bidder(&self, listed: &Listed, waits: Waits) -> Result<(Arc<Plugin>, Bid)> {
        let (plugin, bid) = self.best(listed, waits)?;
        able(listed, plugin, bid)
    }

    /// The highest bid, which is of 0 where none can.
    fn best(&self, listed: &Listed, waits: Waits) -> Result<(Arc<Plugin>, Bid)> {
        if let Some(error) = self.unlicensed(listed) {
            return Err(error);
        }
        let plugins = self.plugins();
        let named =
            |found: &&Found| found.id().is_some_and(|id| listed.plugins.iter().any(|name| **name == *id));
        let query =
            BidQuery { format: &listed.format, model_json: &listed.model_json, ..BidQuery::default() };
        let able = plugins.iter().filter(named).filter_map(|found| found.plugin.clone());
        let able = able.filter(|plugin| plugin.licence().is_none_or(|gate| gate.serves()));
        let (bids, silent): (Vec<_>, Vec<_>) =
            able.map(|plugin| plugin.bid(query, waits).map(|bid| (plugin, bid))).partition(Result::is_ok);
        let best = bids
            .into_iter()
            .flatten()
            .max_by(|(a, x), (b, y)| x.score.cmp(&y.score).then_with(|| b.id().cmp(a.id())));
        let able = best.as_ref().is_some_and(|(_, bid)| 0 < bid.score);
        if let Some(found) = plugins.iter().filter(named).find(|found| !able && found.is_quarantined()) {
            let error = Error::unavailable(in_quarantine(found.id().unwrap_or_default()));
            return Err(error.with_reason(QUARANTINED));
        }
        best.ok_or_else(|| {
            let silent: Vec<String> = silent.into_iter().filter_map(Result::err).collect();
            let problem = listed.problem.as_deref().unwrap_or("none that is loaded bids for it");
            unable(listed, if silent.is_empty() { problem.to_owned() } else { silent.join("; ") }.as_str())
        })
    }
}

/// Refuses a bid of 0, in the plugin's words.
fn able(listed: &Listed, plugin: Arc<Plugin>, bid: Bid) -> Result<(Arc<Plugin>, Bid)> {
    match bid.score {
        0 if bid.refusal == CANNOT_SERVE => Err(unable(listed, &bid.text)),
        0 => Err(unable(listed, &bid.text).with_reason(bid.refusal)),
        _ => Ok((plugin, bid)),
    }
}

fn unable(listed: &Listed, why: &str) -> Error {
    let message = format!("no plugin can open model `{}`: {why}", listed.name);
    Error::new(ErrorCode::FailedPrecondition, message).with_reason("load_failed")
}
