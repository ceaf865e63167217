//! What a licence's dates mean at a moment.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Licence, Mode, OnExpiry};
use crate::trust::{Day, Timestamp};

/// How a plugin stands with its licence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has looked yet. That is not the same as unlicensed.
    #[default]
    Unknown,
    Missing,
    Invalid,
    BindMismatch,
    Revoked,
    NotYetValid,
    /// Valid, and given for a try.
    Trial,
    Valid,
    /// Valid, and it ends within `warn_days`.
    Expiring,
    /// It has ended, and serves for `grace_days` more.
    Grace,
    Expired,
    /// Valid, and more is used than it allows.
    OverLimit,
}

impl State {
    /// Each, in its order.
    pub const ALL: [Self; 12] = [
        Self::Unknown,
        Self::Missing,
        Self::Invalid,
        Self::BindMismatch,
        Self::Revoked,
        Self::NotYetValid,
        Self::Trial,
        Self::Valid,
        Self::Expiring,
        Self::Grace,
        Self::Expired,
        Self::OverLimit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::BindMismatch => "bind_mismatch",
            Self::Revoked => "revoked",
            Self::NotYetValid => "not_yet_valid",
            Self::Trial => "trial",
            Self::Valid => "valid",
            Self::Expiring => "expiring",
            Self::Grace => "grace",
            Self::Expired => "expired",
            Self::OverLimit => "over_limit",
        }
    }

    /// Whether a plugin that needs a licence may serve.
    pub fn serves(self) -> bool {
        matches!(self, Self::Trial | Self::Valid | Self::Expiring | Self::Grace)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A state, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    pub state: State,
    /// The plugin may be loaded and asked. With `updates_only` an expired licence still serves the builds it covers.
    pub serves: bool,
    /// When it ends, before grace.
    pub ends: Option<Timestamp>,
    /// When the state changes next without anybody doing anything.
    pub changes: Option<Timestamp>,
}

impl Standing {
    pub fn of(state: State) -> Self {
        Self { state, serves: state.serves(), ends: None, changes: None }
    }
}

/// How a sound licence stands by its dates alone. `first_seen` is when this host first had it.
pub fn standing(
    licence: &Licence,
    build: Option<Day>,
    first_seen: Option<Timestamp>,
    now: Timestamp,
) -> Standing {
    let first_seen = first_seen.unwrap_or(licence.iat).max(licence.nbf);
    let ttl = licence.ttl_days.map(|days| first_seen.plus_days(days));
    let ends = [licence.exp, ttl].into_iter().flatten().min();
    let at = |state, changes| Standing { state, serves: State::serves(state), ends, changes };
    if now < licence.nbf {
        return at(State::NotYetValid, Some(licence.nbf));
    }
    let good = if licence.mode == Mode::Trial { State::Trial } else { State::Valid };
    let Some(end) = ends else { return at(good, None) };
    let warn = end.plus(-i64::from(licence.warn_days) * 86_400);
    let gone = end.plus_days(licence.grace_days);
    if now < warn {
        at(good, Some(warn))
    } else if now < end {
        at(State::Expiring, Some(end))
    } else if now < gone {
        at(State::Grace, Some(gone))
    } else {
        let covered = licence.on_expiry == OnExpiry::UpdatesOnly
            && build.zip(licence.product.updates_until).is_some_and(|(build, until)| build <= until);
        Standing { serves: covered, ..at(State::Expired, None) }
    }
}
