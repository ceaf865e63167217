//! What a request looks at: one load, one comparison.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Licence, Report, Standing, State};

/// How a plugin stands with its licence, until somebody looks again.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub standing: Standing,
    pub licence: Option<Arc<Licence>>,
    /// The signed bytes, for the plugin's own check.
    pub envelope: Option<Arc<[u8]>>,
}

impl Snapshot {
    /// No file.
    pub fn missing() -> Self {
        Self { standing: Standing::of(State::Missing), ..Self::default() }
    }

    /// Whether this tenant may use this feature.
    pub fn feature(&self, tenant: &str, name: &str) -> Option<i64> {
        if !self.standing.serves {
            return None;
        }
        self.licence.as_ref()?.feature(tenant, name)
    }
}

impl From<&Report> for Snapshot {
    fn from(report: &Report) -> Self {
        Self {
            standing: report.standing,
            licence: report.licence.clone().map(Arc::new),
            envelope: report.envelope.as_deref().map(Arc::from),
        }
    }
}

/// The snapshot of one plugin. A renewal takes its place under running requests.
#[derive(Debug, Default)]
pub struct Gate(ArcSwap<Snapshot>);

impl Gate {
    pub fn new(snapshot: Snapshot) -> Self {
        Self(ArcSwap::from_pointee(snapshot))
    }

    /// From now on this counts.
    pub fn set(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }

    /// Whether a request to a plugin that needs a licence may go on; otherwise how it stands.
    pub fn admits(&self) -> Result<(), State> {
        let snapshot = self.0.load();
        if snapshot.standing.serves { Ok(()) } else { Err(snapshot.standing.state) }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn nobody_has_looked_is_neither_licensed_nor_missing() {
        assert_eq!(Gate::default().admits(), Err(State::Unknown));
        assert_eq!(Gate::new(Snapshot::missing()).admits(), Err(State::Missing));
    }

    #[test]
    fn a_renewal_takes_its_place_under_running_requests() {
        let gate = Gate::new(Snapshot { standing: Standing::of(State::Grace), ..Snapshot::default() });
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(gate.admits(), Ok(()), "between two valid licences nobody is refused");
                    }
                });
            }
            for _ in 0..10_000 {
                gate.set(Snapshot { standing: Standing::of(State::Valid), ..Snapshot::default() });
            }
            stop.store(true, Ordering::Relaxed);
        });
        gate.set(Snapshot { standing: Standing::of(State::Expired), ..Snapshot::default() });
        assert_eq!(gate.admits(), Err(State::Expired));
    }
}
