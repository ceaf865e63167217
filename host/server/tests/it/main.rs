//! The server over real HTTP, with a real host and a plugin that does what each test tells it to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod admin;
mod auth;
mod budgets;
mod capabilities;
mod errors;
mod gate;
mod host;
mod libre;
mod oip;
mod openai;
mod page;
mod pictures;
mod raw;
mod streams;
