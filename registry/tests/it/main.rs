//! The registry as its users see it, against a hub and an index on loopback. No network is needed.
//! The modules are `cfg(test)` so that lints know their helpers for tests.
#[cfg(test)]
mod common;
#[cfg(test)]
mod convert;
#[cfg(test)]
mod guide;
#[cfg(test)]
mod licences;
mod models;
#[cfg(test)]
mod packages;
#[cfg(test)]
mod plg;
#[cfg(test)]
mod plg_index;
#[cfg(test)]
mod plugins;
#[cfg(test)]
mod transfer;
#[cfg(test)]
mod trust;
