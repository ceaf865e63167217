//! Licences of commercial plugins: a vendor's signed permission, checked offline.
//!
//! `file` is what stands in one, `report` checks one step by step, `standing` says what its dates mean, `binding` which
//! machine it is for, `entitlement` what it allows whom. All of that is given `now` and reads nothing. `store` keeps the
//! files, `first` remembers since when they are here, `clock` says what time it is at least, `token` mends it, `gate` is what a request looks at, `meter` counts
//! what is used, `usage` writes it down, and `export` tells it a vendor, signed with the installation's `own` key.

mod binding;
mod clock;
mod entitlement;
mod export;
mod file;
mod first;
mod gate;
mod meter;
mod own;
mod report;
mod standing;
mod store;
mod token;
mod usage;

pub use binding::{FingerprintPart, Machine, visible_gpus};
pub use clock::{CONFIRMED_AFTER, Clock, Now};
pub use entitlement::{Excess, Use};
pub use export::{Sum, USAGE_LABEL, UsageReport, by_month};
pub use file::{
    Bind, BindKind, Feature, LABEL, Licence, Licensee, Limits, MAX_FILE, Match, Mode, OnExpiry, Overage,
    Product, TenantTerms,
};
pub use gate::{Denial, Gate, Snapshot};
pub use meter::{Meter, Pass, Seats, Unwritten};
pub use own::own_key;
pub use report::{Check, Outcome, Refusal, Report, Running, Situation, check};
pub use standing::{Standing, State, standing};
pub use store::{Held, Licences};
pub use token::{TIME_LABEL, TimeToken};
pub use usage::{Entry, UsageLog};
