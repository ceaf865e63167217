//! What stands in a licence file.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::trust::{Day, Envelope, SecretKey, Timestamp, TrustError, VerifiedPayload, armour, payload_type};

/// What its armour says it is.
pub const LABEL: &str = "LICENSE";
/// More than any licence takes: one of a realistic size has some 460 bytes.
pub const MAX_FILE: usize = 64 << 10;
/// The version of the payload that this host reads.
const VERSION: u64 = 1;
/// Members that this host acts on: `crit` may name these.
const UNDERSTOOD: [&str; 19] = [
    "v",
    "id",
    "serial",
    "issuer",
    "licensee",
    "product",
    "iat",
    "nbf",
    "exp",
    "warn_days",
    "grace_days",
    "mode",
    "bind",
    "limits",
    "features",
    "tenants",
    "on_expiry",
    "overage",
    "ttl_days",
];

/// A licence. Members that this host does not know are ignored, unless `crit` names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Licence {
    pub v: u64,
    pub id: String,
    /// Of two licences of one issuer for one plugin the higher one counts.
    pub serial: u64,
    /// The owner of the key that signs it.
    pub issuer: String,
    pub licensee: Licensee,
    pub product: Product,
    pub iat: Timestamp,
    pub nbf: Timestamp,
    /// Without it the licence does not end.
    #[serde(default)]
    pub exp: Option<Timestamp>,
    #[serde(default = "a_month")]
    pub warn_days: u32,
    #[serde(default)]
    pub grace_days: u32,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub bind: Bind,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub features: BTreeMap<String, Feature>,
    /// Empty: every tenant has it all. Otherwise who is not named has nothing.
    #[serde(default)]
    pub tenants: BTreeMap<String, TenantTerms>,
    #[serde(default)]
    pub on_expiry: OnExpiry,
    #[serde(default)]
    pub overage: Overage,
    /// It ends so many days after this host first saw it, if that is before `exp`.
    #[serde(default)]
    pub ttl_days: Option<u32>,
    /// Members without which the licence must not be read.
    #[serde(default)]
    pub crit: Vec<String>,
}

fn a_month() -> u32 {
    30
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Licensee {
    pub id: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub plugin: String,
    /// Versions such as `>=2,<4`; without it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<semver::VersionReq>,
    /// Builds up to this day are covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates_until: Option<Day>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Prod,
    Nonprod,
    Trial,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Bind {
    pub kind: BindKind,
    #[serde(default)]
    pub ids: Vec<String>,
    #[serde(default, rename = "match")]
    pub matching: Match,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindKind {
    #[default]
    None,
    Install,
    Fingerprint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Match {
    #[default]
    #[serde(rename = "any")]
    Any,
    #[serde(rename = "2of3")]
    TwoOfThree,
}

/// At most so many; without a number as many as there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_month: Option<u64>,
}

impl Limits {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A feature is on, off, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Feature {
    Flag(bool),
    Number(i64),
}

impl Feature {
    /// As a plugin reads it: 1 is on, 0 is off.
    pub fn value(self) -> i64 {
        match self {
            Self::Flag(on) => on.into(),
            Self::Number(number) => number,
        }
    }
}

/// What one tenant may use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TenantTerms {
    /// Of the licence's features; without it all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    #[default]
    Block,
    /// Builds up to `updates_until` go on running.
    UpdatesOnly,
}

/// What happens above a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Overage {
    #[default]
    Block,
    /// Blocked only above so many per cent more.
    Percent(u32),
    /// Counted, never blocked.
    Report,
}

impl TryFrom<String> for Overage {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "block" => Ok(Self::Block),
            "report" => Ok(Self::Report),
            other => other
                .strip_prefix("pct:")
                .and_then(|number| number.parse().ok())
                .map(Self::Percent)
                .ok_or_else(|| format!("`{other}` is no overage: expected `block`, `report` or `pct:10`")),
        }
    }
}

impl From<Overage> for String {
    fn from(overage: Overage) -> Self {
        overage.to_string()
    }
}

impl fmt::Display for Overage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("block"),
            Self::Percent(number) => write!(f, "pct:{number}"),
            Self::Report => f.write_str("report"),
        }
    }
}

/// Why a payload is no licence that this host can act on.
#[derive(Debug, PartialEq)]
pub(super) enum NoLicence {
    /// It asks for what only a newer host knows.
    TooNew {
        field: String,
        reason: String,
    },
    Wrong(String),
}

impl Licence {
    /// Reads what a trusted key signed.
    pub(super) fn of_payload(payload: &VerifiedPayload) -> Result<Self, NoLicence> {
        let wrong = |error: TrustError| NoLicence::Wrong(error.to_string());
        let value = payload.json().map_err(wrong)?;
        // First whether it may be read at all: a newer licence may have other shapes.
        if value["v"].as_u64().is_some_and(|version| version > VERSION) {
            let reason = format!("it has the version {}, and this host reads {VERSION}", value["v"]);
            return Err(NoLicence::TooNew { field: "v".to_owned(), reason });
        }
        for name in value["crit"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !UNDERSTOOD.contains(&name) {
                let reason = format!("it must not be used without `{name}`, which this host does not know");
                return Err(NoLicence::TooNew { field: "crit".to_owned(), reason });
            }
        }
        let licence: Self = payload.parse().map_err(wrong)?;
        licence.sound().map_err(NoLicence::Wrong)?;
        Ok(licence)
    }

    /// What each member alone cannot say.
    pub fn sound(&self) -> Result<(), String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if self.v != VERSION {
            return Err(format!("`v` is {}, expected {VERSION}", self.v));
        }
        if self.id.is_empty() || self.id.len() > 64 || !self.id.bytes().all(plain) {
            return Err("`id` is not 1 to 64 letters, digits, `_` and `-`".to_owned());
        }
        if self.issuer.is_empty() {
            return Err("`issuer` is empty".to_owned());
        }
        if self.exp.is_some_and(|exp| exp <= self.nbf) {
            return Err("`exp` is not after `nbf`: it is valid at no time".to_owned());
        }
        if self.bind.kind != BindKind::None && self.bind.ids.is_empty() {
            return Err("`bind.ids` is empty: it is bound to no machine at all".to_owned());
        }
        if self.on_expiry == OnExpiry::UpdatesOnly && self.product.updates_until.is_none() {
            return Err("`on_expiry` is `updates_only`, and `product.updates_until` is missing".to_owned());
        }
        Ok(())
    }

    /// Signs it: an armoured file, to be sent as it is.
    pub fn seal(&self, keys: &[&SecretKey]) -> Result<String, TrustError> {
        self.sound().map_err(|reason| TrustError::Payload { reason })?;
        let payload =
            serde_json::to_vec(self).map_err(|error| TrustError::Payload { reason: error.to_string() })?;
        let envelope = Envelope::sign(payload_type::LICENSE, payload, keys).to_json();
        let text = armour::write(LABEL, &[], &envelope);
        if text.len() > MAX_FILE { Err(TrustError::TooLarge { limit: MAX_FILE }) } else { Ok(text) }
    }
}

impl Licence {
    /// Fills in what a vendor's template leaves out: `v`, `id`, `issuer`, `iat`, `nbf`, and as `serial` the seconds since
    /// 1970, so that a later licence counts before an earlier one. A member that no licence has is refused: hosts would
    /// ignore it, and the vendor would not know.
    pub fn of_template(mut template: Value, issuer: &str, now: Timestamp) -> Result<Self, String> {
        let members = template.as_object_mut().ok_or("a template is a table of members")?;
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random)
            .map_err(|error| format!("the system gives no random numbers: {error}"))?;
        let id = format!("lic_{:08x}{:016x}", now.unix(), u64::from_be_bytes(random));
        let iat = members.get("iat").cloned().unwrap_or_else(|| now.to_string().into());
        let defaults = [
            ("v", VERSION.into()),
            ("id", id.into()),
            ("serial", now.unix().into()),
            ("issuer", issuer.into()),
            ("nbf", iat.clone()),
            ("iat", iat),
        ];
        for (name, value) in defaults {
            members.entry(name).or_insert(value);
        }
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
        let read = serde_ignored::Deserializer::new(template, &mut note);
        let licence: Self = serde_path_to_error::deserialize(read)
            .map_err(|error| format!("`{}`: {}", error.path(), error.inner()))?;
        match unknown.first() {
            Some(name) => Err(format!("`{name}` is nothing that a licence has")),
            None => licence.sound().map(|()| licence),
        }
    }
}
