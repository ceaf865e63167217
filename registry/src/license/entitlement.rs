//! What a licence allows whom.

use serde::{Deserialize, Serialize};

use super::{Licence, Limits, Overage};

/// What is in use, or was used this month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Use {
    pub nodes: u64,
    pub instances: u64,
    pub gpus: u64,
    pub tenants: u64,
    pub concurrency: u64,
    pub tokens_month: u64,
}

/// A limit that is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// `tokens_month`
    pub limit: &'static str,
    pub used: u64,
    /// With the overage that is tolerated.
    pub allowed: u64,
}

impl Licence {
    /// The value of a feature for a tenant; nothing if it is off, unknown, or not the tenant's. 1 is on.
    pub fn feature(&self, tenant: &str, name: &str) -> Option<i64> {
        let terms = match self.tenants.get(tenant) {
            Some(terms) => Some(terms),
            None if self.tenants.is_empty() => None,
            None => return None,
        };
        if terms
            .and_then(|terms| terms.features.as_ref())
            .is_some_and(|own| !own.iter().any(|own| own == name))
        {
            return None;
        }
        self.features.get(name).map(|feature| feature.value()).filter(|&value| value != 0)
    }

    /// Whether a tenant may use the plugin at all.
    pub fn covers_tenant(&self, tenant: &str) -> bool {
        self.tenants.is_empty() || self.tenants.contains_key(tenant)
    }

    /// The limits for one tenant: the lower of the licence's and its own.
    pub fn tenant_limits(&self, tenant: &str) -> Limits {
        let Some(own) = self.tenants.get(tenant).map(|terms| terms.limits) else { return self.limits };
        let lower = |a: Option<u64>, b: Option<u64>| [a, b].into_iter().flatten().min();
        let all = self.limits;
        Limits {
            nodes: lower(all.nodes, own.nodes),
            instances: lower(all.instances, own.instances),
            gpus: lower(all.gpus, own.gpus),
            tenants: lower(all.tenants, own.tenants),
            concurrency: lower(all.concurrency, own.concurrency),
            tokens_month: lower(all.tokens_month, own.tokens_month),
        }
    }

    /// The first limit that `used` exceeds, with what the licence says of overage.
    pub fn excess(&self, limits: &Limits, used: &Use) -> Option<Excess> {
        let more = match self.overage {
            Overage::Block => 0,
            Overage::Percent(percent) => u128::from(percent),
            Overage::Report => return None,
        };
        let tolerated =
            |limit: u64| u64::try_from(u128::from(limit) * (100 + more) / 100).unwrap_or(u64::MAX);
        [
            ("nodes", limits.nodes, used.nodes),
            ("instances", limits.instances, used.instances),
            ("gpus", limits.gpus, used.gpus),
            ("tenants", limits.tenants, used.tenants),
            ("concurrency", limits.concurrency, used.concurrency),
            ("tokens_month", limits.tokens_month, used.tokens_month),
        ]
        .into_iter()
        .filter_map(|(limit, allowed, used)| Some(Excess { limit, used, allowed: tolerated(allowed?) }))
        .find(|excess| excess.used > excess.allowed)
    }
}
