//! The plugin's own check of its licence: the only one that a changed host cannot leave out.
//!
//! It needs the vendor's public key and nothing else: the envelope is DSSE with Ed25519, the payload is the licence as
//! JSON (`docs/licences.md` has its members).

use backplane_plugin::prelude::*;
use backplane_plugin::{License, serde_json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The vendor's key, as `vendor_keys` of the manifest has it.
const VENDOR: &str = "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";
/// What was signed: a document of another type says something else with the same words.
const TYPE: &str = "application/vnd.backplane.license.v1+json";
/// Dates come true while nobody changes a file.
const AGAIN: Duration = Duration::from_secs(3600);

/// What came of the last check.
pub struct OwnCheck {
    license: Option<License>,
    last: Mutex<Option<Checked>>,
}

struct Checked {
    at: Instant,
    revision: u64,
    result: Result<Value, String>,
}

impl OwnCheck {
    pub fn new(host: Host) -> Self {
        Self { license: host.license(), last: Mutex::default() }
    }

    /// That a tenant has a feature: the host says so, and so does what the vendor signed.
    pub fn require(&self, tenant: &str, feature: &str) -> Result<()> {
        let denied = |why: &str| {
            let message =
                format!("the feature `{feature}` is not licensed: {why}; install a licence that has it");
            Error::new(Code::PermissionDenied, message).with_reason("feature_not_licensed")
        };
        let license = self.license.ok_or_else(|| denied("this host knows no licences"))?;
        license.require(tenant, feature)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = license.revision();
        let fresh = |checked: &Checked| checked.revision == revision && checked.at.elapsed() < AGAIN;
        let checked = match last.take().filter(fresh) {
            Some(checked) => checked,
            None => Checked { at: Instant::now(), revision, result: check(&license) },
        };
        let outcome = match &checked.result {
            Ok(licence) if has(licence, tenant, feature) => Ok(()),
            Ok(_) => Err(denied("what the vendor signed does not have it")),
            Err(why) => Err(denied(why)),
        };
        *last = Some(checked);
        outcome
    }
}

/// The licence, if the vendor signed it for this plugin, this installation and now.
fn check(license: &License) -> Result<Value, String> {
    let envelope = license.envelope().ok_or("there is none")?;
    let licence = opened(&envelope).ok_or("the vendor did not sign it")?;
    if licence["product"]["plugin"] != crate::MeteredEcho::ID {
        return Err("it is for another plugin".to_owned());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let time = |name: &str| licence[name].as_str().map(|text| unix(text).unwrap_or(0));
    let grace = licence["grace_days"].as_u64().unwrap_or(0) * 86_400;
    if time("nbf").is_none_or(|begins| now < begins) {
        return Err("it has not begun".to_owned());
    }
    if time("exp").is_some_and(|ends| ends + grace <= now) {
        return Err("it has ended".to_owned());
    }
    if licence["bind"]["kind"] == "install" {
        let here = license.install_id().unwrap_or_default();
        let ids = licence["bind"]["ids"].as_array();
        if !ids.is_some_and(|ids| ids.iter().any(|id| *id == *here)) {
            return Err("it is for another installation".to_owned());
        }
    }
    Ok(licence)
}

/// The payload of an envelope that the vendor signed.
fn opened(envelope: &[u8]) -> Option<Value> {
    let envelope: Value = serde_json::from_slice(envelope).ok()?;
    let decode = |text: &Value| STANDARD.decode(text.as_str()?).ok();
    let payload = decode(&envelope["payload"])?;
    if envelope["payloadType"] != TYPE {
        return None;
    }
    // DSSE signs the type and the payload, each with its length.
    let mut message = format!("DSSEv1 {} {TYPE} {} ", TYPE.len(), payload.len()).into_bytes();
    message.extend_from_slice(&payload);
    let key = VerifyingKey::from_bytes(&STANDARD.decode(VENDOR).ok()?.try_into().ok()?).ok()?;
    let signed = envelope["signatures"].as_array()?.iter().any(|signature| {
        let bytes = decode(&signature["sig"]).and_then(|bytes| bytes.try_into().ok());
        bytes.is_some_and(|bytes| key.verify_strict(&message, &Signature::from_bytes(&bytes)).is_ok())
    });
    if signed { serde_json::from_slice(&payload).ok() } else { None }
}

/// Whether a licence gives a tenant a feature: it is on, and where tenants are named this one has it.
fn has(licence: &Value, tenant: &str, feature: &str) -> bool {
    let on = match &licence["features"][feature] {
        Value::Bool(on) => *on,
        value => value.as_i64().is_some_and(|value| value != 0),
    };
    let tenants = licence["tenants"].as_object().filter(|tenants| !tenants.is_empty());
    on && tenants.is_none_or(|tenants| {
        tenants.get(tenant).is_some_and(|terms| {
            let own = terms["features"].as_array();
            own.is_none_or(|own| own.iter().any(|own| own == feature))
        })
    })
}

/// Seconds since 1970 of `2027-01-01T00:00:00Z`.
fn unix(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hours, minutes, seconds) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if text.len() != 20 || !text.ends_with('Z') || year < 1970 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    // Years that begin in March end with the day that some of them have more.
    let (years, months) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1;
    // From the first of March of the year 0.
    Some((days - 719_468) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2027-01-01T00:00:00Z", 1_798_761_600),
            ("2099-12-31T23:59:59Z", 4_102_444_799),
        ] {
            assert_eq!(unix(text), Some(seconds), "{text}");
        }
        for text in ["", "2027-01-01", "2027-13-01T00:00:00Z", "2027-01-01T00:00:00+01:00"] {
            assert_eq!(unix(text), None, "{text}");
        }
    }
}
