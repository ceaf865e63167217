//! Under construction.
pub mod engine;
