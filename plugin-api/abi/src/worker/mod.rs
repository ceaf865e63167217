//! What the host and a worker process say to each other.
//!
//! A worker loads one plugin and answers for it. The seam is the C ABI itself: in the host a proxy plays the plugin, in
//! the worker a proxy plays the host, and what one side's table is asked the other side's table is asked in turn.
//!
//! Two kinds of connections, both pairs of `SOCK_SEQPACKET` sockets. The kernel keeps the bounds of a packet, so that a
//! frame that is broken breaks nothing after it, several threads may send without a lock, and a descriptor stays with
//! the frame it came with.
//!
//! - The *main* connection: [`ToWorker`] and [`ToHost`], each read by one thread: results, cancels, logs, heartbeats.
//! - *Lanes*: a [`Call`] goes one way, its [`Return`] comes back. A lane is served by one thread of the worker, so a
//!   caller waits for no dispatcher, and a SERIAL instance has a lane (and with it a thread) of its own.
//!
//! Calls beyond [`MAX_INLINE`] lie in memory that the host lends, which it alone can write to ([`Arena`]). All else beyond it
//! travels in a memfd that is sealed against every change before it is sent: its receiver
//! reads where it lies, and nobody can change what was checked. No shared memory has a name.
//!
//! - `wire`: numbers, texts and lists as bytes, and strictly back.
//! - `message`: what is said.
//! - `tensor`: tensors of the ABI as messages, and back.
//! - `channel`: frames on a socket.
//! - `credit`: how much of its answers a worker may still send.
//! - `json`: what a chunk may say.
//! - `lent`: memory that serves one large call after the other.
//! - `spin`: when who waits looks again and again before it sleeps.

mod channel;
mod credit;
mod json;
mod lent;
mod message;
mod spin;
mod tensor;
#[cfg(test)]
mod tests;
mod wire;

pub use channel::{Body, Channel, MAX_FRAME, MAX_INLINE, frame};
pub use credit::{Credit, Credits, Flow, Granted, MOST_REQUESTS, WINDOW_BYTES, WINDOW_CHUNKS};
pub use json::is_object;
pub use lent::{Arena, Borrowed};
pub use message::*;
pub use spin::{LONGEST, Lookers};
pub use tensor::{own_tensors, raw_tensors};
pub use wire::{Malformed, Out, Source, Wire};

/// Version of the protocol. Host and worker are of one build, so they must agree; the number is there to say so in
/// words when they do not.
pub const PROTOCOL: u32 = 6;

/// How a worker begins to say that it could not confine itself, and so has loaded nothing.
pub const NOT_CONFINED: &str = "the sandbox cannot be set up";
