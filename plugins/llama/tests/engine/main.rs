//! The engine on a real model, SmolLM2-135M-Instruct.
//!
//! `BACKPLANE_TEST_MODELS` names a state directory that holds it: `backplane --state DIR pull smollm2`. Without it
//! these tests fail; they are never skipped.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../models/mod.rs"]
mod models;
mod support;

mod answers;
mod callers;
mod context;
mod embeddings;
mod files;
mod forms;
mod logprobs;
mod together;
mod tools;
