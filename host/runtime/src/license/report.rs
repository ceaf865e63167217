//! How licences stand, for people and for Prometheus.

use super::LicenceBook;
use crate::info::{PartHealth, PartState};
use crate::metrics::Renderer;
use crate::supervisor::Restarts;
use backplane_registry::license::{Gate, State};
use backplane_registry::trust::Timestamp;
use serde::Serialize;

/// How a plugin stands with its licence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LicenseInfo {
    /// `"valid"`, `"grace"`, `"missing"`, …
    pub state: &'static str,
    /// Whether the plugin may be loaded and asked.
    pub serves: bool,
    /// Id of the licence that counts, and its file's name.
    pub id: Option<String>,
    /// Name of its file.
    pub file: Option<String>,
    /// When it ends, before grace.
    pub ends: Option<String>,
    /// Whole days until then; negative after it.
    pub days_left: Option<i64>,
    /// What is wrong with it, and what helps.
    pub problem: Option<String>,
}

/// What the plugin list says of it.
pub fn info(gate: &Gate) -> LicenseInfo {
    let (snapshot, standing) = (gate.snapshot(), gate.standing());
    let left = |ends: Timestamp| ends.since(Timestamp::now()).div_euclid(86_400);
    LicenseInfo {
        state: standing.state.as_str(),
        serves: standing.serves || gate.is_optional(),
        id: snapshot.licence.as_ref().map(|licence| licence.id.clone()),
        file: snapshot.file.clone(),
        ends: standing.ends.map(|ends| ends.to_string()),
        days_left: standing.ends.map(left),
        problem: snapshot
            .refusal
            .as_ref()
            .map(|refusal| format!("`{}`: {}; {}", refusal.field, refusal.reason, refusal.remedy)),
    }
}

/// Each licensed plugin, and its state.
pub fn states(book: &LicenceBook) -> Vec<(String, &'static str)> {
    book.all().into_iter().map(|(plugin, gate)| (plugin.id, gate.standing().state.as_str())).collect()
}

/// Soon over is something to know, and not yet wrong; grace and worse is. The host is ready all the same.
pub fn part(book: &LicenceBook, restarts: &Restarts, alive: bool) -> PartHealth {
    let mut state = PartState::Ok;
    let mut told = Vec::new();
    let all = book.all();
    for (plugin, gate) in &all {
        let standing = gate.standing();
        let without = gate.is_optional() && standing.state == State::Missing;
        let ends = standing.ends.map_or_else(String::new, |ends| format!(", it ends {ends}"));
        match standing.state {
            State::Valid | State::Trial => {}
            _ if without => {}
            State::Expiring => told.push(format!("{}: expiring{ends}", plugin.id)),
            other => {
                state = PartState::Degraded;
                told.push(format!("{}: {other}{ends}", plugin.id));
            }
        }
    }
    if let Some(problem) = book.problem() {
        state = PartState::Degraded;
        told.push(problem);
    }
    if all.is_empty() && told.is_empty() {
        let detail = "no plugin here needs a licence".to_owned();
        return PartHealth { part: "licenses", state: PartState::Absent, detail, restarts: restarts.count() };
    }
    if !alive {
        state = PartState::Degraded;
        told.push("nobody looks at licences any more; restart the host".to_owned());
    }
    if told.is_empty() {
        told.push(format!("{} in order", all.len()));
    }
    PartHealth { part: "licenses", state, detail: told.join("; "), restarts: restarts.count() }
}

/// One state for each plugin, what is left, what is used, and who was refused.
pub fn render(book: &LicenceBook, out: &mut Renderer) {
    for (plugin, gate) in book.all() {
        let (id, standing) = (plugin.id.as_str(), gate.standing());
        let version = plugin.version.as_deref().unwrap_or_default();
        let labels = [("plugin", id), ("version", version), ("state", standing.state.as_str())];
        out.gauge(
            "backplane_license_state",
            "How a plugin stands with its licence: 1 for the state it is in",
            &labels,
            1.0,
        );
        let one = [("plugin", id), ("version", version)];
        if let Some(ends) = standing.ends {
            let left = ends.since(Timestamp::now()) as f64;
            let help = "Seconds until a licence ends, before grace; below 0 after it";
            out.gauge("backplane_license_expires_seconds", help, &one, left);
            out.gauge(
                "backplane_license_expires_days",
                "The same in whole days",
                &one,
                (left / 86_400.0).floor(),
            );
        }
    }
    for (plugin, meter) in &*book.0.meters.lock() {
        let used = meter.used();
        let label = [("plugin", plugin.as_str())];
        let help = "Tokens that licensed plugins took this month";
        out.gauge("backplane_license_tokens_month", help, &label, used.tokens_month as f64);
        for (state, count) in meter.refused() {
            let labels = [("plugin", plugin.as_str()), ("state", state.as_str())];
            let help = "Loads and requests that were refused for want of a licence";
            out.counter("backplane_license_refusals_total", help, &labels, count as f64);
        }
    }
}
