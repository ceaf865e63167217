//! Checks a licence step by step, and says of each step what came of it.

use serde::Serialize;

use super::file::NoLicence;
use super::{LABEL, Licence, MAX_FILE, Machine, Now, Standing, State, Use, standing};
use crate::digest::Digest;
use crate::plugin::Manifest;
use crate::trust::{
    Day, Envelope, Revocations, Role, Timestamp, TrustError, TrustSet, TrustedKey, VerifiedPayload, armour,
    payload_type,
};

/// What a licence is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub trust: &'a TrustSet,
    pub revocations: &'a Revocations,
    pub machine: &'a Machine,
    /// The plugin that wants to run. Without it what depends on it is left out.
    pub plugin: Option<&'a Running>,
    /// What is used, where somebody counts it.
    pub used: Option<&'a Use>,
    /// When this host first had the file.
    pub first_seen: Option<Timestamp>,
    pub now: Now<'a>,
}

/// A plugin as it wants to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Running {
    pub id: String,
    pub version: Option<String>,
    pub built: Option<Day>,
    /// Keys that may sign its licences, as its manifest names them; empty for any that the operator trusts.
    pub pinned: Vec<String>,
}

impl Running {
    /// What a manifest says. `built`: seconds since 1970, where a signed package says it. Of two days the later counts.
    pub fn of(manifest: &Manifest, built: Option<u64>) -> Self {
        let day = built.and_then(|seconds| i64::try_from(seconds).ok()).map(|s| Timestamp::of_unix(s).day());
        Self {
            id: manifest.id.clone(),
            version: Some(manifest.version.clone()),
            built: day.max(manifest.built),
            pinned: manifest.vendor_keys.clone(),
        }
    }
}

/// One step of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// `signature`, `binding`, …
    pub name: &'static str,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Passed { note: String },
    Refused(Refusal),
    Skipped { note: String },
}

/// Why a licence does not do: which field, what is wrong with it, what helps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// A stable name for scripts and logs.
    pub code: &'static str,
    pub field: String,
    pub reason: String,
    pub remedy: String,
    /// What it makes of the licence.
    pub state: State,
}

/// What came of a check.
#[derive(Debug, Clone)]
pub struct Report {
    /// The licence, if a trusted key signed it and it can be read.
    pub licence: Option<Licence>,
    /// The signed bytes: what a plugin gets to check by itself.
    pub envelope: Option<Vec<u8>>,
    /// Names the file's content.
    pub digest: Digest,
    pub checks: Vec<Check>,
    pub standing: Standing,
}

impl Report {
    /// Of a file that cannot be read.
    pub(super) fn unreadable(error: &TrustError) -> Self {
        let mut steps = Steps::default();
        let remedy = "let the user that the server runs as read it, or remove it";
        steps.refuse("format", (State::Invalid, error.code(), "file"), error.to_string(), remedy);
        steps.report(None, None, Digest::of(b""), Standing::of(State::Invalid))
    }

    /// The first step that was refused.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.checks.iter().find_map(|check| match &check.outcome {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        })
    }

    /// The licence's id, if it is known.
    pub fn id(&self) -> Option<&str> {
        self.licence.as_ref().map(|licence| licence.id.as_str())
    }
}

/// Checks the bytes of a licence file. The steps stand in the order in which they must be taken: nothing of the payload
/// is looked at before its signature was right. After that every step is taken, so that a person sees all that is wrong.
pub fn check(bytes: &[u8], situation: &Situation<'_>) -> Report {
    let mut steps = Steps::default();
    let digest = Digest::of(bytes);
    let Some((envelope, payload)) = steps.open(bytes, situation) else {
        return steps.report(None, None, digest, Standing::of(State::Invalid));
    };
    let raw = Some(envelope.to_json());
    let Some(licence) = steps.read(&payload) else {
        return steps.report(None, raw, digest, Standing::of(State::Invalid));
    };
    steps.issuer(&licence, &payload);
    steps.vendor_key(&payload, situation.plugin);
    steps.product(&licence, situation.plugin);
    steps.binding(&licence, situation.machine);
    steps.revocation(&licence, situation.revocations);
    let built = situation.plugin.and_then(|plugin| plugin.built);
    let pinned = situation.plugin.map(|plugin| plugin.pinned.as_slice()).unwrap_or_default();
    let now = situation.now.of_issuer(&licence.issuer, pinned);
    let standing = standing(&licence, built, situation.first_seen, now);
    steps.time(&licence, standing, now);
    steps.limits(&licence, situation.used);
    steps.report(Some(licence), raw, digest, standing)
}

#[derive(Default)]
struct Steps(Vec<Check>);

impl Steps {
    fn pass(&mut self, name: &'static str, note: impl Into<String>) {
        self.0.push(Check { name, outcome: Outcome::Passed { note: note.into() } });
    }

    fn skip(&mut self, name: &'static str, note: impl Into<String>) {
        self.0.push(Check { name, outcome: Outcome::Skipped { note: note.into() } });
    }

    fn refuse(
        &mut self,
        name: &'static str,
        (state, code, field): (State, &'static str, &str),
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let refusal =
            Refusal { code, field: field.to_owned(), reason: reason.into(), remedy: remedy.into(), state };
        self.0.push(Check { name, outcome: Outcome::Refused(refusal) });
    }

    /// What was refused first decides the state; what the dates say counts only where nothing else is wrong.
    fn report(
        self,
        licence: Option<Licence>,
        envelope: Option<Vec<u8>>,
        digest: Digest,
        dates: Standing,
    ) -> Report {
        let mut report = Report { licence, envelope, digest, checks: self.0, standing: dates };
        if let Some(refusal) = report.refusal()
            && refusal.state != dates.state
        {
            report.standing = Standing { state: refusal.state, serves: false, ..dates };
        }
        report
    }

    fn open(&mut self, bytes: &[u8], situation: &Situation<'_>) -> Option<(Envelope, VerifiedPayload)> {
        let invalid = |code, field| (State::Invalid, code, field);
        let parsed = if bytes.len() > MAX_FILE {
            Err(TrustError::TooLarge { limit: MAX_FILE })
        } else {
            armour::read(LABEL, &String::from_utf8_lossy(bytes))
                .and_then(|file| Envelope::parse(&file.body, MAX_FILE))
        };
        let envelope = match parsed {
            Ok(envelope) => envelope,
            Err(error) => {
                let remedy = "use the file as the vendor sent it, whole and unchanged";
                self.refuse("format", invalid(error.code(), "file"), error.to_string(), remedy);
                return None;
            }
        };
        self.pass("format", "a signed document");
        let verified =
            envelope.verify(situation.trust, Role::License, payload_type::LICENSE, situation.now.at);
        let error = match verified {
            Ok(payload) => {
                let signer = &payload.signers()[0];
                self.pass("type", "a licence");
                self.pass("signature", format!("by {}", signer.id()));
                self.pass("key role", format!("the key of `{}` may sign licences", signer.owner));
                return Some((envelope, payload));
            }
            Err(error) => error,
        };
        let code = error.code();
        match &error {
            TrustError::WrongType { .. } => {
                self.refuse(
                    "type",
                    invalid(code, "payloadType"),
                    error.to_string(),
                    "ask the vendor for a licence",
                );
            }
            TrustError::UnknownSigner { .. } => {
                self.pass("type", "a licence");
                let remedy = "if you know the vendor, trust its key: `backplane license trust add FILE`";
                self.refuse("signature", invalid(code, "keyid"), error.to_string(), remedy);
            }
            TrustError::BadSignature { .. } => {
                self.pass("type", "a licence");
                let remedy = "ask the vendor for the file again";
                self.refuse("signature", invalid(code, "sig"), error.to_string(), remedy);
            }
            _ => {
                self.pass("type", "a licence");
                self.pass("signature", "by a known key");
                let remedy = "ask the vendor for a licence that its present licence key signed";
                let state = if matches!(error, TrustError::KeyRevoked { .. }) {
                    State::Revoked
                } else {
                    State::Invalid
                };
                self.refuse("key role", (state, code, "keyid"), error.to_string(), remedy);
            }
        }
        None
    }

    fn read(&mut self, payload: &VerifiedPayload) -> Option<Licence> {
        match Licence::of_payload(payload) {
            Ok(licence) => {
                let note =
                    format!("{}, serial {}, for {}", licence.id, licence.serial, licence.licensee.name);
                self.pass("payload", note);
                Some(licence)
            }
            Err(NoLicence::TooNew { field, reason }) => {
                let remedy = "update Backplane, or ask the vendor for a licence for this version";
                self.refuse("payload", (State::Invalid, "license_too_new", &field), reason, remedy);
                None
            }
            Err(NoLicence::Wrong(reason)) => {
                let remedy = "ask the vendor for a sound one; it was signed as it is";
                self.refuse("payload", (State::Invalid, "payload_invalid", "payload"), reason, remedy);
                None
            }
        }
    }

    fn issuer(&mut self, licence: &Licence, payload: &VerifiedPayload) {
        let plugin = &licence.product.plugin;
        let speaks = payload.signers().iter().find(|key| key.owner == licence.issuer);
        let refusal = (State::Invalid, "issuer_mismatch", "issuer");
        match speaks {
            None => {
                let owner = &payload.signers()[0].owner;
                let reason =
                    format!("it says to be of `{}`, and a key of `{owner}` signed it", licence.issuer);
                self.refuse("issuer", refusal, reason, "ask the vendor for one signed with its own key");
            }
            Some(key) if !key.covers(plugin) => {
                let reason = format!("the key of `{}` is not trusted for `{plugin}`", key.owner);
                let remedy = "if it should be, add the key again with `--plugins`";
                self.refuse("issuer", refusal, reason, remedy);
            }
            Some(key) => self.pass("issuer", format!("`{}` speaks for `{plugin}`", key.owner)),
        }
    }

    /// The operator trusts the key, and the plugin's own manifest names it: neither can do without the other.
    fn vendor_key(&mut self, payload: &VerifiedPayload, plugin: Option<&Running>) {
        let Some(plugin) = plugin.filter(|plugin| !plugin.pinned.is_empty()) else {
            self.skip("vendor key", "no plugin is known that names the keys of its vendor");
            return;
        };
        let pinned = |key: &&TrustedKey| plugin.pinned.contains(&key.key.to_string());
        match payload.signers().iter().find(pinned) {
            Some(key) => self.pass("vendor key", format!("{} is one that the plugin names", key.id())),
            None => {
                let reason =
                    format!("{} signed it, which `{}` does not name", payload.signers()[0].id(), plugin.id);
                let remedy = "get a licence that is signed with a key of the plugin's `vendor_keys`";
                let what = (State::Invalid, "vendor_key_mismatch", "keyid");
                self.refuse("vendor key", what, reason, remedy);
            }
        }
    }

    fn product(&mut self, licence: &Licence, plugin: Option<&Running>) {
        let product = &licence.product;
        let Some(plugin) = plugin else {
            let versions =
                product.versions.as_ref().map_or("every version".to_owned(), |versions| versions.to_string());
            self.skip(
                "product",
                format!("it is for `{}`, {versions}; name yours with `--for`", product.plugin),
            );
            return;
        };
        if plugin.id != product.plugin {
            let reason = format!("it is for the plugin `{}`, not for `{}`", product.plugin, plugin.id);
            let remedy = format!("get a licence for `{}`", plugin.id);
            self.refuse("product", (State::Invalid, "product_mismatch", "product.plugin"), reason, remedy);
            return;
        }
        self.pass("product", format!("`{}`", plugin.id));
        match (&product.versions, &plugin.version) {
            (None, _) => self.pass("version", "every version"),
            (Some(versions), None) => self.skip("version", format!("it is for {versions}")),
            (Some(versions), Some(version)) => match semver::Version::parse(version) {
                Ok(parsed) if versions.matches(&parsed) => {
                    self.pass("version", format!("{version} is one of {versions}"));
                }
                parsed => {
                    let reason = match parsed {
                        Ok(_) => format!("it is for the versions {versions}, and this is {version}"),
                        Err(_) => format!(
                            "it is for the versions {versions}, and `{version}` is none that can be compared"
                        ),
                    };
                    let remedy = "use a version that is covered, or get a licence for this one";
                    self.refuse(
                        "version",
                        (State::Invalid, "version_mismatch", "product.versions"),
                        reason,
                        remedy,
                    );
                }
            },
        }
        match (product.updates_until, plugin.built) {
            (None, _) => self.pass("build date", "every build"),
            (Some(until), None) => self.skip("build date", format!("it covers builds up to {until}")),
            (Some(until), Some(built)) if built <= until => {
                self.pass("build date", format!("built {built}, covered up to {until}"));
            }
            (Some(until), Some(built)) => {
                let reason = format!("it covers builds up to {until}, and this is of {built}");
                let remedy = "use an older build, or renew the licence";
                let what = (State::Invalid, "build_too_new", "product.updates_until");
                self.refuse("build date", what, reason, remedy);
            }
        }
    }

    fn binding(&mut self, licence: &Licence, machine: &Machine) {
        match machine.fits(&licence.bind, &licence.product.plugin) {
            Ok(note) => self.pass("binding", format!("bound {note}")),
            Err(reason) => {
                let remedy = format!(
                    "send the vendor the output of `backplane license fingerprint {}`, for a licence for this host",
                    licence.product.plugin
                );
                self.refuse("binding", (State::BindMismatch, "bind_mismatch", "bind.ids"), reason, remedy);
            }
        }
    }

    fn revocation(&mut self, licence: &Licence, revocations: &Revocations) {
        if revocations.revokes_license(&licence.id, &licence.issuer) {
            let reason = format!("`{}` took it back", licence.issuer);
            self.refuse(
                "revocation",
                (State::Revoked, "license_revoked", "id"),
                reason,
                "ask the vendor why",
            );
        } else {
            let lists = revocations.lists().count();
            self.pass("revocation", format!("in none of {lists} revocation lists"));
        }
    }

    fn time(&mut self, licence: &Licence, standing: Standing, now: Timestamp) {
        let ends = standing.ends.map_or("without an end".to_owned(), |end| format!("until {end}"));
        match standing.state {
            State::NotYetValid => {
                let reason = format!("it is valid from {} on, and it is {now}", licence.nbf);
                let remedy = "wait, or check the clock of this machine";
                self.refuse("time", (State::NotYetValid, "license_not_yet_valid", "nbf"), reason, remedy);
            }
            State::Expired if standing.serves => {
                self.pass("time", format!("it ended; builds up to {} still run", updates(licence)));
            }
            State::Expired => {
                let field = if licence.exp == standing.ends { "exp" } else { "ttl_days" };
                let reason =
                    format!("it was valid {ends}, and {} days of grace; it is {now}", licence.grace_days);
                let remedy = format!("renew it with the vendor, `{}`", licence.issuer);
                self.refuse("time", (State::Expired, "license_expired", field), reason, remedy);
            }
            State::Grace => self.pass("time", format!("it was valid {ends}; days of grace run, renew it")),
            State::Expiring => self.pass("time", format!("valid {ends}, which is soon: renew it")),
            _ => self.pass("time", format!("valid {ends}")),
        }
    }

    fn limits(&mut self, licence: &Licence, used: Option<&Use>) {
        let Some(used) = used else {
            self.skip("limits", "nothing counts what is used here");
            return;
        };
        match licence.excess(&licence.limits, used) {
            None => self.pass("limits", "none is exceeded"),
            Some(excess) => {
                let reason = format!("{} are used, {} are allowed", excess.used, excess.allowed);
                let field = format!("limits.{}", excess.limit);
                let remedy = "use less, or extend the licence";
                self.refuse("limits", (State::OverLimit, "license_over_limit", &field), reason, remedy);
            }
        }
    }
}

fn updates(licence: &Licence) -> String {
    licence.product.updates_until.map_or_else(String::new, |day| day.to_string())
}
