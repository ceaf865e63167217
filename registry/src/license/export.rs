//! What a vendor is told of use: one signed file, to be sent as it is.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::binding::id_of;
use super::{Entry, MAX_FILE, Machine, UsageLog, own_key};
use crate::digest::Digest;
use crate::trust::{
    Envelope, PublicKey, Result, Role, Timestamp, TrustError, TrustSet, TrustedKey, armour, payload_type,
};

/// What its armour says it is.
pub const USAGE_LABEL: &str = "USAGE REPORT";
/// Years of months, plugins and licences.
const MAX_REPORT: usize = 64 * MAX_FILE;

/// What an installation used of licensed plugins, as it says itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageReport {
    pub v: u64,
    /// The installation, as licences are bound to it.
    pub install: String,
    /// Its key, which signs this.
    pub key: PublicKey,
    pub at: Timestamp,
    /// Lines of the log so far, and the hash of the last: of two reports the later has as many or more.
    pub lines: u64,
    pub chain: Digest,
    pub used: Vec<Sum>,
}

/// What was used in a month under a licence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sum {
    /// `2026-11`
    pub month: String,
    pub plugin: String,
    pub licence: String,
    pub requests: u64,
    pub tokens: u64,
    /// How many tenants used it. Their names are their operator's.
    pub tenants: u64,
    pub peak_nodes: u64,
    pub peak_gpus: u64,
    /// When it was used last.
    pub last: Timestamp,
}

/// One sum for each month, plugin and licence, in the order of their first use.
pub fn by_month(entries: &[Entry]) -> Vec<Sum> {
    let mut sums: Vec<(Sum, BTreeSet<&str>)> = Vec::new();
    for entry in entries {
        let same = |(sum, _): &&mut (Sum, BTreeSet<&str>)| {
            sum.month == entry.month && sum.plugin == entry.plugin && sum.licence == entry.licence
        };
        if let Some((sum, tenants)) = sums.iter_mut().find(same) {
            sum.requests = sum.requests.saturating_add(entry.requests);
            sum.tokens = sum.tokens.saturating_add(entry.tokens);
            sum.peak_nodes = sum.peak_nodes.max(entry.peak_nodes);
            sum.peak_gpus = sum.peak_gpus.max(entry.peak_gpus);
            sum.last = sum.last.max(entry.at);
            tenants.insert(&entry.tenant);
            sum.tenants = tenants.len() as u64;
        } else {
            let sum = Sum {
                month: entry.month.clone(),
                plugin: entry.plugin.clone(),
                licence: entry.licence.clone(),
                requests: entry.requests,
                tokens: entry.tokens,
                tenants: 1,
                peak_nodes: entry.peak_nodes,
                peak_gpus: entry.peak_gpus,
                last: entry.at,
            };
            sums.push((sum, BTreeSet::from([entry.tenant.as_str()])));
        }
    }
    sums.into_iter().map(|(sum, _)| sum).collect()
}

impl UsageReport {
    /// What this state directory used of the plugins that `of` names, signed: an armoured file. A vendor gets what is
    /// the vendor's own.
    pub fn export(state: &Path, of: impl Fn(&str) -> bool, now: Timestamp) -> Result<(Self, String)> {
        let (entries, chain) = UsageLog::at(state).read_with_end()?;
        let lines = entries.len() as u64;
        let own: Vec<Entry> = entries.into_iter().filter(|entry| of(&entry.plugin)).collect();
        let (install, key) = (Machine::install_id(state)?, own_key(state)?);
        if install != id_of(&key.public()) {
            let path = state.join("install-id");
            let reason = "it is not made from `install.key`, so no vendor could check what is signed; remove it to \
                          have an id that is, and tell vendors whose licences are bound to it";
            return Err(TrustError::File { path, reason: reason.to_owned() });
        }
        let report = Self { v: 1, install, key: key.public(), at: now, lines, chain, used: by_month(&own) };
        let payload =
            serde_json::to_vec(&report).map_err(|error| TrustError::Payload { reason: error.to_string() })?;
        let envelope = Envelope::sign(payload_type::USAGE, payload, &[&key]).to_json();
        Ok((report, armour::write(USAGE_LABEL, &[], &envelope)))
    }

    /// Reads a report as a vendor does: it is whole, and the installation that it names signed it. An installation is named
    /// after its key, so nobody can sign for another.
    pub fn read(bytes: &[u8], now: Timestamp) -> Result<Self> {
        if bytes.len() > MAX_REPORT {
            return Err(TrustError::TooLarge { limit: MAX_REPORT });
        }
        let file = armour::read(USAGE_LABEL, &String::from_utf8_lossy(bytes))?;
        let envelope = Envelope::parse(&file.body, MAX_REPORT)?;
        // Its own word for who it is, believed once the signature by the same key was right.
        let said: Self = crate::trust::parse_typed(envelope.unverified_payload())?;
        let mut trust = TrustSet::default();
        trust.add(TrustedKey::new(said.key, "the installation", &[Role::License]));
        let report: Self = envelope.verify(&trust, Role::License, payload_type::USAGE, now)?.parse()?;
        if report.install != id_of(&report.key) {
            let reason = format!("the key that signed it is not that of {}", report.install);
            return Err(TrustError::Payload { reason });
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SecretKey;

    fn entry(plugin: &str, tenant: &str, tokens: u64) -> Entry {
        Entry {
            at: Timestamp::of_unix(1_800_000_000),
            plugin: plugin.to_owned(),
            licence: "lic_1".to_owned(),
            tenant: tenant.to_owned(),
            month: "2027-01".to_owned(),
            tokens,
            requests: 1,
            peak_nodes: 1,
            peak_gpus: 0,
        }
    }

    #[test]
    fn a_vendor_reads_its_own_sums_and_sees_every_change() {
        let state = tempfile::tempdir().unwrap();
        let now = Timestamp::of_unix(1_800_000_100);
        let mut log = UsageLog::at(state.path());
        for (plugin, tenant, tokens) in
            [("com.acme.x", "a", 5), ("com.acme.x", "b", 6), ("com.other.y", "a", 7), ("com.acme.x", "a", 8)]
        {
            log.append(&entry(plugin, tenant, tokens)).unwrap();
        }
        let (report, text) = UsageReport::export(state.path(), |plugin| plugin == "com.acme.x", now).unwrap();
        assert_eq!(report.lines, 4);
        let [sum] = &report.used[..] else { panic!("{report:?}") };
        assert_eq!((sum.tokens, sum.requests, sum.tenants), (19, 3, 2));
        assert_eq!(report.install, Machine::install_id(state.path()).unwrap());
        let quoted: String = text.lines().map(|line| format!("> {line}\r\n")).collect();
        assert_eq!(UsageReport::read(quoted.as_bytes(), now).unwrap(), report);
        assert!(!text.contains("com.other.y"));

        let bytes = text.into_bytes();
        for place in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            if let Ok(read) = UsageReport::read(&flipped, now) {
                assert_eq!(read, report, "byte {place}: only an end of a line may be another");
            }
        }
    }

    #[test]
    fn nobody_signs_for_another_installation() {
        let state = tempfile::tempdir().unwrap();
        let now = Timestamp::of_unix(1_800_000_100);
        let (report, _) = UsageReport::export(state.path(), |_| true, now).unwrap();
        let forger = SecretKey::of_seed(&[3; 32]);
        let forged = |report: &UsageReport| {
            let payload = serde_json::to_vec(report).unwrap();
            let envelope = Envelope::sign(payload_type::USAGE, payload, &[&forger]).to_json();
            UsageReport::read(armour::write(USAGE_LABEL, &[], &envelope).as_bytes(), now).unwrap_err()
        };
        assert_eq!(forged(&report).code(), "signer_unknown");
        let own_key = UsageReport { key: forger.public(), ..report };
        assert!(forged(&own_key).to_string().contains("is not that of ins_"), "{}", forged(&own_key));
    }
}
