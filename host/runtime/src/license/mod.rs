//! Licences of commercial plugins: whose plugin may serve whom, now.
//!
//! What a licence means is the registry's (`backplane_registry::license`), and pure. Here is what a running host adds:
//! each licensed plugin has a [`Gate`] that requests look at, the [`actor`] looks at the files, the clock and the counters
//! once a second and puts a new snapshot into the gates, and what was used is written down.
//!
//! - `refusal`: what a caller is told.
//! - `report`: health, metrics and the plugin list.

pub mod actor;
mod refusal;
mod report;

pub use refusal::refusal;
pub use report::LicenseInfo;
pub(crate) use report::{info, part, render, states};

use backplane_registry::license::{
    Clock, Entry, Gate, Licences, Machine, Meter, Now, Running, Situation, Snapshot, State, UsageLog,
    visible_gpus,
};
use backplane_registry::plugin::{LicenceClass, PluginFile};
use backplane_registry::trust::{Day, Result, Timestamp, TrustStore, Trusted};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// Whatever the files say: a clock moves, and a fault of the disk passes.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// How often what was used is written down: as much is lost when the machine is.
const WRITE: Duration = Duration::from_secs(15);

/// The licences of one host. Clones are the same.
#[derive(Clone)]
pub struct LicenceBook(Arc<Inner>);

struct Inner {
    state: PathBuf,
    install: String,
    plugins: Mutex<Vec<Tracked>>,
    /// By plugin: an upgrade and a renewal go on counting.
    meters: Mutex<HashMap<String, Arc<Meter>>>,
    books: Mutex<Books>,
    /// Told when a plugin that was refused may be loaded.
    on_new: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A plugin with a licence, one version of it.
struct Tracked {
    plugin: Running,
    gate: Arc<Gate>,
    /// When people were told that it ends.
    warned: Option<Day>,
}

/// What one who looks has in hand; one at a time.
struct Books {
    clock: Clock,
    /// When the clock was looked at.
    observed: Instant,
    log: UsageLog,
    written: Instant,
    month: String,
    files: Vec<Stamp>,
    looked: Option<Instant>,
    /// When a state changes by itself.
    next: Option<Timestamp>,
    problem: Option<String>,
    /// Somebody wrote into the record of the clock. It is told as long as the host runs.
    damaged: Option<String>,
}

impl Books {
    /// Keeps what is wrong for the health report, each once.
    fn tell(&mut self, problem: String) {
        match &mut self.problem {
            Some(told) if told.contains(&problem) => {}
            Some(told) => *told = format!("{told}; {problem}"),
            none => *none = Some(problem),
        }
    }
}

/// Which file it was: path, length, and when it was written.
type Stamp = (PathBuf, u64, Option<SystemTime>);

impl LicenceBook {
    /// The licences of a state directory. Nothing is looked at before a plugin asks.
    pub fn open(state: &Path) -> Self {
        let install = Machine::install_id(state).unwrap_or_else(|error| {
            tracing::warn!(%error, "this installation has no id: licences that are bound to one do not serve");
            String::new()
        });
        let system = Timestamp::now();
        let mut damaged = None;
        let clock = Clock::read(state).unwrap_or_else(|error| {
            tracing::error!(%error, "what was remembered of the clock is not believed; it begins anew");
            damaged = Some(format!("what was remembered of the clock began anew: {error}"));
            None
        });
        let clock = clock.unwrap_or_else(|| Clock::anew(state, system));
        let now = Instant::now();
        let books = Books {
            month: month(&clock, system),
            clock,
            observed: now,
            log: UsageLog::at(state),
            written: now,
            files: Vec::new(),
            looked: None,
            next: None,
            problem: damaged.clone(),
            damaged,
        };
        Self(Arc::new(Inner {
            state: state.to_owned(),
            install,
            plugins: Mutex::default(),
            meters: Mutex::default(),
            books: Mutex::new(books),
            on_new: OnceLock::new(),
        }))
    }

    /// What tells the host that a plugin may be loaded now; once.
    pub fn on_new(&self, tell: impl Fn() + Send + Sync + 'static) {
        self.0.on_new.set(Box::new(tell)).ok();
    }

    /// The id of this installation; empty if it has none.
    pub fn install_id(&self) -> &str {
        &self.0.install
    }

    /// The gate of a plugin, looked at now if it is new; none if it needs no licence. Reads files.
    pub fn gate(&self, file: &PluginFile) -> Option<Arc<Gate>> {
        let optional = match file.manifest.licence_class {
            LicenceClass::Open => return None,
            LicenceClass::Optional => true,
            LicenceClass::Commercial => false,
        };
        let plugin = Running::of(&file.manifest, file.built);
        let mut books = self.0.books.lock();
        let mut plugins = self.0.plugins.lock();
        if let Some(known) = plugins.iter().find(|known| known.plugin == plugin) {
            return Some(known.gate.clone());
        }
        let meter = self.meter(&plugin.id, &mut books);
        if file.manifest.resources.gpu {
            meter.see_gpus(visible_gpus(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()));
        }
        let make = if optional { Gate::optional } else { Gate::new };
        let snapshot = self.trusted().and_then(|trusted| {
            self.note_first(&trusted, &mut books);
            self.standing(&plugin, &trusted, &books.clock)
        });
        let snapshot = snapshot.unwrap_or_else(|error| {
            tracing::error!(plugin = plugin.id, %error, "its licence cannot be looked at");
            books.tell(error.to_string());
            Snapshot::of(State::Unknown)
        });
        books.next = [books.next, snapshot.standing.changes].into_iter().flatten().min();
        let gate = Arc::new(make(snapshot, meter));
        let mut tracked = Tracked { plugin, gate: gate.clone(), warned: None };
        tracked.tell(None);
        plugins.push(tracked);
        Some(gate)
    }

    /// The version of a plugin that has this gate is over: it is no part of any report any more. Its meter stays.
    pub(crate) fn forget(&self, gate: &Arc<Gate>) {
        self.0.plugins.lock().retain(|tracked| !Arc::ptr_eq(&tracked.gate, gate));
    }

    /// The meter of a plugin, with what this month's log says.
    fn meter(&self, plugin: &str, books: &mut Books) -> Arc<Meter> {
        let mut meters = self.0.meters.lock();
        if let Some(meter) = meters.get(plugin) {
            return meter.clone();
        }
        let meter = Arc::new(Meter::default());
        let (used, problem) = books.log.used_in(&books.month);
        meter.restore(used.iter().filter(|entry| entry.plugin == plugin));
        if let Some(error) = problem {
            tracing::error!(plugin, %error, "what it used this month is what can be read of it");
            books.damaged.get_or_insert_with(|| error.to_string());
            books.tell(error.to_string());
        }
        meters.insert(plugin.to_owned(), meter.clone());
        meter
    }

    fn trusted(&self) -> Result<Trusted> {
        TrustStore::at(&self.0.state).load(Timestamp::now())
    }

    fn standing(&self, plugin: &Running, trusted: &Trusted, clock: &Clock) -> Result<Snapshot> {
        let machine = Machine::read(&self.0.state);
        let situation = situation(trusted, &machine, Some(plugin), Timestamp::now().into());
        Licences::at(&self.0.state).standing_of(&plugin.id, &situation, clock)
    }

    /// Remembers since when licences are here.
    fn note_first(&self, trusted: &Trusted, books: &mut Books) {
        let machine = Machine::read(&self.0.state);
        let now = books.clock.times(Timestamp::now(), Timestamp::default(), None);
        if let Err(error) = Licences::at(&self.0.state).note_first(&situation(trusted, &machine, None, now)) {
            tracing::error!(%error, "since when a licence is here is not known");
            books.tell(error.to_string());
        }
    }

    /// Looks at the clock, at the files if they are others than before, and writes down what was used. Whether a plugin
    /// that was refused may be loaded now. Blocks.
    pub fn look(&self) -> bool {
        let mut books = self.0.books.lock();
        let (now, system) = (Instant::now(), Timestamp::now());
        let mut plugins = self.0.plugins.lock();
        // Of a file that was looked at and is there no more.
        plugins.retain(|tracked| 1 < Arc::strong_count(&tracked.gate));
        if plugins.is_empty() {
            // Nothing here needs a licence: nothing is read, and nothing is written.
            return false;
        }
        let ran = now.saturating_duration_since(books.observed).as_secs();
        books.observed += Duration::from_secs(ran);
        if let Some(back) = books.clock.observe(system, ran) {
            tracing::warn!(
                seconds = back,
                "the clock was set back; licences go by the time that was seen before"
            );
        }
        let month = month(&books.clock, system);
        let new_month = month != books.month;
        if new_month || WRITE <= now.saturating_duration_since(books.written) {
            self.write(&plugins, &mut books);
            books.written = now;
        }
        if new_month {
            self.0.meters.lock().values().for_each(|meter| meter.begin_month());
            books.month = month;
        }
        let files = stamps(&self.0.state);
        let late = books.looked.is_none_or(|at| AT_LEAST_EVERY <= now.saturating_duration_since(at));
        let due = books
            .next
            .is_some_and(|next| next <= books.clock.times(system, Timestamp::default(), None).earliest());
        if files == books.files && !late && !due {
            return false;
        }
        if late && let Err(error) = books.clock.write(&self.0.state) {
            tracing::warn!(%error, "the clock is not remembered");
        }
        (books.files, books.looked) = (files, Some(now));
        // A licence that gives way to another has what was used under it.
        self.write(&plugins, &mut books);
        self.look_at_all(&mut plugins, &mut books)
    }

    fn look_at_all(&self, plugins: &mut [Tracked], books: &mut Books) -> bool {
        let trusted = match self.trusted() {
            Ok(trusted) => trusted,
            Err(error) => {
                tracing::error!(%error, "the trusted keys cannot be read; licences stay as they are");
                books.tell(error.to_string());
                return false;
            }
        };
        (books.problem, books.next) = (books.damaged.clone(), None);
        self.mend(books, &trusted);
        self.tell_unreadable(books);
        self.note_first(&trusted, books);
        let mut new = false;
        for tracked in plugins {
            match self.standing(&tracked.plugin, &trusted, &books.clock) {
                Ok(snapshot) => {
                    books.next = [books.next, snapshot.standing.changes].into_iter().flatten().min();
                    let before = tracked.gate.snapshot();
                    new |= !before.standing.serves && snapshot.standing.serves;
                    if !before.same(&snapshot) {
                        tracked.gate.set(snapshot);
                    }
                    tracked.tell(Some(before.standing.state));
                }
                Err(error) => {
                    tracing::error!(plugin = tracked.plugin.id, %error, "its licence cannot be looked at");
                    books.tell(error.to_string());
                }
            }
        }
        new
    }

    /// A licence that cannot be read is as if it were not there: that is told by the name of its file.
    fn tell_unreadable(&self, books: &mut Books) {
        match Licences::at(&self.0.state).unreadable() {
            Ok(errors) => errors.into_iter().for_each(|error| {
                tracing::error!(%error, "a licence counts for nothing");
                books.tell(error.to_string());
            }),
            Err(error) => books.tell(error.to_string()),
        }
    }

    /// Takes what vendors signed to mend the clock.
    fn mend(&self, books: &mut Books, trusted: &Trusted) {
        let machine = Machine::read(&self.0.state);
        let mended =
            Licences::at(&self.0.state).mend(&mut books.clock, &trusted.keys, &machine, Timestamp::now());
        match mended {
            Ok((taken, refused)) => {
                for token in &taken {
                    let (issuer, time) = (&token.issuer, token.time.to_string());
                    tracing::warn!(
                        issuer,
                        time,
                        "the clock was mended: licences of this vendor go by what it signed"
                    );
                }
                for error in refused {
                    tracing::error!(%error, "a time token is not believed");
                    books.tell(error.to_string());
                }
                if !taken.is_empty()
                    && let Err(error) = books.clock.write(&self.0.state)
                {
                    tracing::warn!(%error, "the clock is not remembered");
                }
            }
            Err(error) => books.tell(error.to_string()),
        }
    }

    /// Writes down what was used since it was written last.
    fn write(&self, plugins: &[Tracked], books: &mut Books) {
        let now = books.clock.now(Timestamp::now(), Timestamp::default(), None);
        for (plugin, meter) in &*self.0.meters.lock() {
            let of_it = |tracked: &&Tracked| tracked.plugin.id == *plugin;
            let licence = plugins
                .iter()
                .filter(of_it)
                .find_map(|tracked| Some(tracked.gate.snapshot().licence.as_ref()?.id.clone()));
            for used in meter.take_unwritten() {
                let Some(licence) = licence.clone() else { continue };
                let entry = Entry {
                    at: now,
                    plugin: plugin.clone(),
                    licence,
                    tenant: used.tenant.clone(),
                    month: books.month.clone(),
                    tokens: used.tokens,
                    requests: used.requests,
                    peak_nodes: 1,
                    peak_gpus: meter.gpus(),
                };
                if let Err(error) = books.log.append(&entry) {
                    tracing::error!(plugin, %error, "what it used cannot be written down");
                    books.tell(error.to_string());
                    meter.put_back(&used);
                }
            }
        }
    }

    /// The host ends: what was used and what time it was are kept.
    pub fn close(&self) {
        let mut books = self.0.books.lock();
        let plugins = self.0.plugins.lock();
        if plugins.is_empty() {
            return;
        }
        self.write(&plugins, &mut books);
        if let Err(error) = books.clock.write(&self.0.state) {
            tracing::warn!(%error, "the clock is not remembered");
        }
    }

    fn tell_new(&self) {
        if let Some(tell) = self.0.on_new.get() {
            tell();
        }
    }

    /// Every licensed plugin with its version, by id.
    fn all(&self) -> Vec<(Running, Arc<Gate>)> {
        let plugins = self.0.plugins.lock();
        let mut all: Vec<_> =
            plugins.iter().map(|tracked| (tracked.plugin.clone(), tracked.gate.clone())).collect();
        all.sort_by(|(a, _), (b, _)| (&a.id, &a.version).cmp(&(&b.id, &b.version)));
        all
    }

    fn problem(&self) -> Option<String> {
        self.0.books.lock().problem.clone()
    }
}

impl Tracked {
    /// Says what has changed, and once a day that it ends.
    fn tell(&mut self, before: Option<State>) {
        let snapshot = self.gate.snapshot();
        let standing = snapshot.standing;
        let (plugin, state) = (&*self.plugin.id, standing.state);
        let licence = snapshot.licence.as_ref().map_or("none", |licence| licence.id.as_str());
        let ends = standing.ends.map_or_else(|| "never".to_owned(), |ends| ends.to_string());
        let ending = matches!(state, State::Expiring | State::Grace);
        let today = Timestamp::now().day();
        if ending && self.warned != Some(today) {
            self.warned = Some(today);
            tracing::warn!(plugin, licence, ends, %state, "a licence is to be renewed");
        } else if before != Some(state) {
            let reason = snapshot.refusal.as_ref().map_or("", |refusal| refusal.reason.as_str());
            match standing.serves {
                true => tracing::info!(plugin, licence, ends, %state, "licence"),
                false => tracing::warn!(plugin, licence, %state, reason, "its licence does not serve"),
            }
        }
    }
}

fn situation<'a>(
    trusted: &'a Trusted,
    machine: &'a Machine,
    plugin: Option<&'a Running>,
    now: Now<'a>,
) -> Situation<'a> {
    let (trust, revocations) = (&trusted.keys, &trusted.revocations);
    Situation { trust, revocations, machine, plugin, used: None, first_seen: None, now }
}

fn month(clock: &Clock, system: Timestamp) -> String {
    clock.now(system, Timestamp::default(), None).day().month()
}

/// The files that say how licences stand.
fn stamps(state: &Path) -> Vec<Stamp> {
    let stamp = |path: PathBuf| {
        let meta = path.metadata().ok()?;
        meta.is_file().then(|| (path, meta.len(), meta.modified().ok()))
    };
    let in_folder = |folder: &str, extension: &'static str| {
        let entries = std::fs::read_dir(state.join(folder)).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(move |path| path.extension().is_some_and(|found| found == extension))
    };
    let keys = ["trust/keys.toml", "trust/root.dsse"].map(|file| state.join(file)).into_iter();
    let files = in_folder("licenses", "lic")
        .chain(in_folder("licenses", "time"))
        .chain(in_folder("trust/revocations", "dsse"))
        .chain(keys);
    let mut stamps: Vec<Stamp> = files.filter_map(stamp).collect();
    stamps.sort();
    stamps
}
