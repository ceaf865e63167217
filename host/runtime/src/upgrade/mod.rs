//! Upgrades of plugins while the host serves.
//!
//! The new version is loaded beside the old one and opens what that one has open; it is probed, answers a share of the
//! requests, and then all of them. What goes wrong on the way ends with the old version serving as before. One thread
//! drives an upgrade ([`run`]); models are switched by the catalog's actor, their only writer.
//!
//! - `trial`: who gets the next request, and the verdict. Pure but for counters.
//! - `probe`: one small request to a model that nobody is sent to yet.
//! - `run`: the steps, in order.
//! - `watch`: a version that crashes again and again soon after the switch gives way to the one before.

mod probe;
mod run;
pub mod trial;
mod watch;

pub(crate) use run::begin;

use crate::catalog::Found;
use crate::info::PluginInfo;
use crate::metrics::Renderer;
use backplane_registry::license::Gate;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use trial::{Side, Trial};

/// Where an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeState {
    /// The new version is being loaded.
    Loading,
    /// It opens the models that the old one has open.
    Opening,
    /// Its models are asked how they are, and a small request each.
    Probing,
    /// It answers a share of the requests.
    Trial,
    /// It answers all new requests; the old version finishes what it has.
    Draining,
    /// It serves alone.
    Done,
    /// The old version serves as before.
    RolledBack,
}

impl UpgradeState {
    /// Whether nothing more will come of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack)
    }
}

/// An upgrade, under way or over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginUpgrade {
    /// Id of the plugin.
    pub plugin: String,
    /// The version that served when it began.
    pub from: String,
    /// The version that is to serve.
    pub to: String,
    /// Where it is.
    pub state: UpgradeState,
    /// Part of the new requests that goes to the new version now, 0..=1.
    pub share: f64,
    /// Requests of the trial that ended at the new version.
    pub requests: u64,
    /// Those of them that failed by its own doing.
    pub failures: u64,
    /// Those of them that the old version answered in its place, so that their callers saw no failure.
    pub retried: u64,
    /// Requests that ended at the old version meanwhile.
    pub old_requests: u64,
    /// Those of them that failed by its own doing.
    pub old_failures: u64,
    /// Models that the old version had open.
    pub models: Vec<UpgradedModel>,
    /// When it began, seconds since 1970.
    pub started: u64,
    /// How long it took, or has taken so far.
    pub seconds: f64,
    /// Why it was rolled back; or what is to be known though it was not.
    pub problem: Option<String>,
}

/// A model that was open when its plugin was upgraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpgradedModel {
    /// Its name.
    pub name: Arc<str>,
    /// Whether both versions had it open at once. Else it did not fit twice, into memory or into the licence's instances:
    /// it was closed when its requests were done, and then opened by the new version; who asked for it meanwhile waited.
    pub beside: bool,
}

/// The last upgrade of each plugin.
#[derive(Default)]
pub struct Upgrades {
    records: Mutex<BTreeMap<String, Record>>,
    done: AtomicU64,
    rolled_back: AtomicU64,
}

struct Record {
    info: PluginUpgrade,
    trial: Arc<Trial>,
    began: Instant,
    /// Nothing can be taken back any more: what is left are answers of the old version.
    settled: bool,
    /// The new version, from when it is loaded until it is listed or rolled back.
    beside: Option<Found>,
}

impl Record {
    fn info(&self) -> PluginUpgrade {
        let (old, new) = (self.trial.tally(Side::Old), self.trial.tally(Side::New));
        let over = self.info.state.is_over();
        PluginUpgrade {
            share: match self.info.state {
                UpgradeState::Draining | UpgradeState::Done => 1.0,
                _ => self.trial.share(),
            },
            requests: new.ended,
            failures: new.failed,
            retried: self.trial.moved(),
            old_requests: old.ended,
            old_failures: old.failed,
            seconds: if over { self.info.seconds } else { self.began.elapsed().as_secs_f64() },
            ..self.info.clone()
        }
    }
}

fn under_way(records: &BTreeMap<String, Record>) -> Option<String> {
    let busy = |record: &Record| !record.info.state.is_over() && !record.settled;
    records.iter().find(|(_, record)| busy(record)).map(|(id, _)| id.clone())
}

impl Upgrades {
    /// The last upgrade of this plugin.
    pub fn of(&self, plugin: &str) -> Option<PluginUpgrade> {
        self.records.lock().get(plugin).map(Record::info)
    }

    /// The plugin that is being upgraded now. One that only finishes what it has is in nobody's way: who has to go back
    /// from the version that serves must not wait for the last stream of the version before.
    fn under_way(&self) -> Option<String> {
        under_way(&self.records.lock())
    }

    /// Whether this is the last upgrade of a plugin.
    fn is_last(&self, plugin: &str, trial: &Arc<Trial>) -> bool {
        self.records.lock().get(plugin).is_some_and(|record| Arc::ptr_eq(&record.trial, trial))
    }

    /// Whether a version that is not listed yet has this gate.
    fn has(&self, gate: &Arc<Gate>) -> bool {
        let of = |found: &Found| found.licence.as_ref().is_some_and(|other| Arc::ptr_eq(other, gate));
        self.records.lock().values().any(|record| record.beside.as_ref().is_some_and(of))
    }

    /// Notes that an upgrade begins, unless one is under way: then its plugin is returned.
    fn begin(&self, plugin: &str, from: &str, to: &str, trial: Arc<Trial>) -> Result<(), String> {
        let mut records = self.records.lock();
        if let Some(id) = under_way(&records) {
            return Err(id);
        }
        if records.get(plugin).is_some_and(|before| !before.info.state.is_over()) {
            // Its requests are for the new version, and nothing more is told of it.
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        let info = PluginUpgrade {
            plugin: plugin.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            state: UpgradeState::Loading,
            share: 0.0,
            requests: 0,
            failures: 0,
            retried: 0,
            old_requests: 0,
            old_failures: 0,
            models: Vec::new(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            seconds: 0.0,
            problem: None,
        };
        let record = Record { info, trial, began: Instant::now(), settled: false, beside: None };
        records.insert(plugin.to_owned(), record);
        Ok(())
    }

    /// What is to be known of an upgrade that is over.
    fn note(&self, plugin: &str, trial: &Arc<Trial>, what: &str) {
        let mut records = self.records.lock();
        if let Some(record) = records.get_mut(plugin).filter(|record| Arc::ptr_eq(&record.trial, trial)) {
            record.info.problem = Some(what.to_owned());
        }
    }

    /// Changes the record of an upgrade, unless another has begun.
    fn change(&self, plugin: &str, trial: &Arc<Trial>, change: impl FnOnce(&mut Record)) {
        let mut records = self.records.lock();
        if let Some(record) = records.get_mut(plugin).filter(|record| Arc::ptr_eq(&record.trial, trial)) {
            change(record);
            if record.info.state.is_over() {
                record.info.seconds = record.began.elapsed().as_secs_f64();
                let counter =
                    if record.info.state == UpgradeState::Done { &self.done } else { &self.rolled_back };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What `plugins` lacks of the plugins that are loaded now, and which part of new requests each of the two versions
    /// gets.
    pub fn show(&self, plugins: &mut Vec<PluginInfo>) {
        let is_loaded = |plugin: &PluginInfo| plugin.ready || plugin.quarantined;
        let records = self.records.lock();
        for record in records.values().filter(|record| !record.info.state.is_over()) {
            let Some(beside) = &record.beside else { continue };
            let share = record.info().share;
            let mut new = beside.info();
            new.share = Some(share);
            // Listed already, since it serves: then it is the old one that is going.
            if plugins.iter().any(|other| is_loaded(other) && other.sha256 == new.sha256) {
                continue;
            }
            // Nor is it one that is installed and not used.
            plugins.retain(|other| is_loaded(other) || other.sha256 != new.sha256);
            let old = plugins.iter_mut().find(|other| is_loaded(other) && other.id == new.id);
            if let Some(old) = old {
                old.share = Some(1.0 - share);
            }
            plugins.push(new);
        }
    }

    /// Writes the figures, for [`crate::metrics::Metrics::on_render`].
    pub fn render(&self, loaded: &[Found], out: &mut Renderer) {
        for found in loaded.iter().filter(|found| found.plugin.is_some()) {
            let id = found.id().unwrap_or_default();
            let upgrade = self.of(id).filter(|upgrade| !upgrade.state.is_over());
            let beside = upgrade.filter(|upgrade| upgrade.to != found.version());
            let mut share = |version: &str, share: f64| {
                out.gauge(
                    "backplane_plugin_share",
                    "Part of the new requests that goes to this version of a plugin",
                    &[("plugin", id), ("version", version)],
                    share,
                );
            };
            share(found.version(), 1.0 - beside.as_ref().map_or(0.0, |upgrade| upgrade.share));
            if let Some(upgrade) = beside {
                share(&upgrade.to, upgrade.share);
            }
        }
        let outcomes = [("done", &self.done), ("rolled_back", &self.rolled_back)];
        for (outcome, count) in outcomes {
            out.counter(
                "backplane_plugin_upgrades_total",
                "Upgrades of plugins while the host served",
                &[("outcome", outcome)],
                count.load(Ordering::Relaxed) as f64,
            );
        }
    }
}
