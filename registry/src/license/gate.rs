//! What a request looks at: one load, one comparison.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::meter::{Meter, Pass, Seats};
use super::{Excess, Held, Licence, Refusal, Report, Standing, State, Use};

/// How a plugin stands with its licence, until somebody looks again.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub standing: Standing,
    pub licence: Option<Arc<Licence>>,
    /// The signed bytes, for the plugin's own check.
    pub envelope: Option<Arc<[u8]>>,
    /// Name of the file that counts, without its folder.
    pub file: Option<String>,
    /// What is wrong with it.
    pub refusal: Option<Refusal>,
}

impl Snapshot {
    /// No file.
    pub fn missing() -> Self {
        Self { standing: Standing::of(State::Missing), ..Self::default() }
    }

    /// One with nothing but this state.
    pub fn of(state: State) -> Self {
        Self { standing: Standing::of(state), ..Self::default() }
    }

    /// Whether this tenant may use this feature.
    pub fn feature(&self, tenant: &str, name: &str) -> Option<i64> {
        if !self.standing.serves {
            return None;
        }
        self.licence.as_ref()?.feature(tenant, name)
    }

    /// Whether it says the same as another, so that nobody has to be told.
    pub fn same(&self, other: &Self) -> bool {
        self.standing == other.standing && self.envelope == other.envelope && self.refusal == other.refusal
    }
}

impl From<&Report> for Snapshot {
    fn from(report: &Report) -> Self {
        Self {
            standing: report.standing,
            licence: report.licence.clone().map(Arc::new),
            envelope: report.envelope.as_deref().map(Arc::from),
            file: None,
            refusal: report.refusal().cloned(),
        }
    }
}

impl From<&Held> for Snapshot {
    fn from(held: &Held) -> Self {
        let file = held.path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self { file, ..Self::from(&held.report) }
    }
}

/// Why somebody was not let in.
#[derive(Debug, Clone, PartialEq)]
pub struct Denial {
    pub state: State,
    /// A stable name for who is refused: `plugin_license_expired`.
    pub code: &'static str,
    /// Name of the file, and id of the licence in it.
    pub file: Option<String>,
    pub licence: Option<String>,
    /// Member of the licence.
    pub field: String,
    pub reason: String,
    pub remedy: String,
    /// It may be let in as soon as another request has ended.
    pub passes: bool,
}

/// The snapshot of one plugin, and what it uses. A renewal takes its place under running requests.
#[derive(Debug, Default)]
pub struct Gate {
    snapshot: ArcSwap<Snapshot>,
    meter: Arc<Meter>,
    optional: bool,
    revision: AtomicU64,
}

impl Gate {
    /// For a plugin that does nothing without a licence.
    pub fn new(snapshot: Snapshot, meter: Arc<Meter>) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            meter,
            optional: false,
            revision: AtomicU64::new(1),
        }
    }

    /// For a plugin that runs without one: nobody is refused, and it asks for its features itself.
    pub fn optional(snapshot: Snapshot, meter: Arc<Meter>) -> Self {
        Self { optional: true, ..Self::new(snapshot, meter) }
    }

    /// From now on this counts.
    pub fn set(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.revision.fetch_add(1, Ordering::Release);
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Another number after each [`set`](Self::set).
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub fn is_optional(&self) -> bool {
        self.optional
    }

    /// How it stands, with what is used: a licence whose limits are exceeded does not serve.
    pub fn standing(&self) -> Standing {
        let snapshot = self.snapshot.load();
        match &snapshot.licence {
            Some(licence) if snapshot.standing.serves => {
                // What is under way is bounded at the door, and not something that stays exceeded.
                let used = Use { concurrency: 0, instances: 0, ..one_more(self.meter.used()) };
                match licence.excess(&licence.limits, &used) {
                    Some(_) => Standing { state: State::OverLimit, serves: false, ..snapshot.standing },
                    None => snapshot.standing,
                }
            }
            _ => snapshot.standing,
        }
    }

    /// As [`loads`](Self::loads), for who only asks: nobody is refused by it.
    pub fn serves(&self) -> bool {
        self.optional || self.snapshot.load().standing.serves
    }

    /// Whether the plugin may be loaded, and open models.
    pub fn loads(&self) -> Result<(), Denial> {
        let snapshot = self.snapshot.load();
        if self.optional || snapshot.standing.serves { Ok(()) } else { Err(self.refused(denial(&snapshot))) }
    }

    /// Whether a request of this tenant may go on.
    pub fn admits(&self, tenant: &str) -> Result<(), Denial> {
        if self.optional {
            return Ok(());
        }
        self.fits(tenant, &Place::Next).map_err(|denial| self.refused(denial))
    }

    /// Whether a request of this tenant that is counted already may go on: with another version of the plugin, which has
    /// the same meter, and may have another licence.
    pub fn carries(&self, tenant: &str) -> Result<(), Denial> {
        if self.optional {
            return Ok(());
        }
        self.fits(tenant, &Place::Counted { all: 0, tenant: 0 }).map_err(|denial| self.refused(denial))
    }

    /// As [`admits`](Self::admits), and counts the request until what it returns is dropped.
    pub fn enter(&self, tenant: &str) -> Result<Pass, Denial> {
        // Counted before it is compared: of many that ask at once no more are let in than may be, and not fewer.
        let (pass, place) = Pass::count(&self.meter, tenant);
        // Tenants that are new this month come in one after the other.
        let _alone = (!pass.tenant.is_active()).then(|| self.meter.join());
        if !self.optional {
            self.fits(tenant, &place).map_err(|denial| self.refused(denial))?;
        }
        pass.tenant.activate();
        Ok(pass)
    }

    /// Whether `count` instances more may be made. They count until what it returns is dropped.
    pub fn seats(&self, count: u64) -> Result<Seats, Denial> {
        self.loads()?;
        let seats = Seats { meter: self.meter.clone(), count };
        let used = Use {
            instances: self.meter.instances().fetch_add(count, Ordering::Relaxed) + count,
            ..Use::default()
        };
        let snapshot = self.snapshot.load();
        let excess = snapshot.licence.as_ref().and_then(|licence| licence.excess(&licence.limits, &used));
        match excess.filter(|_| !self.optional) {
            Some(excess) => Err(self.refused(over(&snapshot, &excess, None))),
            None => Ok(seats),
        }
    }

    /// The value of a feature for a tenant, as long as the licence serves.
    pub fn feature(&self, tenant: &str, name: &str) -> Option<i64> {
        self.fits(tenant, &Place::Next).ok()?;
        self.snapshot.load().feature(tenant, name)
    }

    /// What a request costs before it runs: the load of a pointer, and of the counters that have a limit.
    fn fits(&self, tenant: &str, place: &Place) -> Result<(), Denial> {
        let snapshot = self.snapshot.load();
        if !snapshot.standing.serves {
            return Err(denial(&snapshot));
        }
        let Some(licence) = &snapshot.licence else { return Ok(()) };
        if !licence.tenants.is_empty() {
            let Some(terms) = licence.tenants.get(tenant) else { return Err(stranger(&snapshot, tenant)) };
            if terms.limits.any()
                && let Some(excess) =
                    licence.excess(&terms.limits, &place.in_tenant(self.meter.of(tenant).used()))
            {
                return Err(over(&snapshot, &excess, Some(tenant)));
            }
        }
        if !licence.limits.any() {
            return Ok(());
        }
        let mut used = Use { gpus: self.meter.gpus(), ..place.in_all(self.meter.all().used()) };
        if licence.limits.tenants.is_some() {
            used.tenants = self.meter.tenants_with(tenant);
        }
        match licence.excess(&licence.limits, &used) {
            Some(excess) => Err(over(&snapshot, &excess, None)),
            None => Ok(()),
        }
    }

    #[cold]
    fn refused(&self, denial: Denial) -> Denial {
        self.meter.count_refusal(denial.state);
        denial
    }
}

/// Where a request that asks stands among those that are under way.
pub(super) enum Place {
    /// It is counted nowhere yet.
    Next,
    /// It was the so-manieth when it was counted.
    Counted { all: u64, tenant: u64 },
}

impl Place {
    fn in_all(&self, used: Use) -> Use {
        match self {
            Self::Next => one_more(used),
            Self::Counted { all, .. } => Use { concurrency: *all, ..one_more(used) },
        }
    }

    fn in_tenant(&self, used: Use) -> Use {
        match self {
            Self::Next => one_more(used),
            Self::Counted { tenant, .. } => Use { concurrency: *tenant, ..one_more(used) },
        }
    }
}

/// With the request that asks: it takes a token at least.
fn one_more(used: Use) -> Use {
    Use { concurrency: used.concurrency + 1, tokens_month: used.tokens_month.saturating_add(1), ..used }
}

#[cold]
fn denial(snapshot: &Snapshot) -> Denial {
    let state = snapshot.standing.state;
    let [field, reason, remedy] = match (&snapshot.refusal, state) {
        (Some(refusal), _) => [refusal.field.clone(), refusal.reason.clone(), refusal.remedy.clone()],
        (None, State::Unknown) => {
            ["file", "nobody has looked at it yet", "retry in a moment; the log says more"].map(str::to_owned)
        }
        _ => ["file", "there is none", "`backplane license install FILE`"].map(str::to_owned),
    };
    Denial { field, reason, remedy, ..about(snapshot, state) }
}

#[cold]
fn stranger(snapshot: &Snapshot, tenant: &str) -> Denial {
    Denial {
        code: "plugin_license_tenant",
        field: "tenants".to_owned(),
        reason: format!("the tenant `{tenant}` is none of those that it is for"),
        remedy: "ask the vendor for a licence that names it".to_owned(),
        ..about(snapshot, State::Invalid)
    }
}

#[cold]
fn over(snapshot: &Snapshot, excess: &Excess, tenant: Option<&str>) -> Denial {
    let field = match tenant {
        Some(tenant) => format!("tenants.{tenant}.limits.{}", excess.limit),
        None => format!("limits.{}", excess.limit),
    };
    let passes = excess.limit == "concurrency";
    Denial {
        field,
        reason: format!("{} are allowed, and this would be more", excess.allowed),
        remedy: match excess.limit {
            "concurrency" => "retry, or ask the vendor for more",
            "gpus" => "let the server see fewer, with `CUDA_VISIBLE_DEVICES`, or ask the vendor for more",
            "tokens_month" => "wait for the next month, or ask the vendor for more",
            _ => "use less, or ask the vendor for more",
        }
        .to_owned(),
        passes,
        ..about(snapshot, State::OverLimit)
    }
}

fn about(snapshot: &Snapshot, state: State) -> Denial {
    Denial {
        state,
        code: code(state),
        file: snapshot.file.clone(),
        licence: snapshot.licence.as_ref().map(|licence| licence.id.clone()),
        field: String::new(),
        reason: String::new(),
        remedy: String::new(),
        passes: false,
    }
}

fn code(state: State) -> &'static str {
    match state {
        State::Unknown => "plugin_license_unknown",
        State::Missing => "plugin_license_missing",
        State::BindMismatch => "plugin_license_bind_mismatch",
        State::Revoked => "plugin_license_revoked",
        State::NotYetValid => "plugin_license_not_yet_valid",
        State::Expired => "plugin_license_expired",
        State::OverLimit => "plugin_license_over_limit",
        // The others serve: what is refused with them is wrong with the file.
        _ => "plugin_license_invalid",
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
