//! The Backplane plugin ABI for Rust: `backplane.h` as `repr(C)` tables, and the payloads that travel through it.
//!
//! `include/backplane.h` is the source of truth and its comments are the manual; [`table`] lays out the same
//! structs, and `tests/layout.rs` compiles a C program to compare the size and offset of every member. Plugin
//! authors in Rust do not use this crate but `backplane-plugin`, which wraps it in safe traits.
//!
//! - [`table`]: the structs and function tables, one to one with the header.
//! - [`read`]: those structs as the other side wrote them, checked: hosts, workers and plugins read them here.
//! - [`code`]: canonical codes as a Rust enum.
//! - [`dtype`]: tensor element types and their names in the Open Inference Protocol.
//! - [`payload`]: the JSON of the standard capabilities, as types.
//! - [`root`]: the frozen `abi_stable` root module, which catches mismatched Rust builds at load time.
//! - [`words`]: what is wrong with a value, in the words of JSON: for the host and for plugins alike.
//! - [`clock`]: the monotonic clock that deadlines are given in.
//! - `worker` (feature of that name): what the host and a worker process say to each other.

pub mod clock;
pub mod code;
pub mod dtype;
pub mod payload;
pub mod read;
pub mod root;
#[allow(non_camel_case_types, reason = "the names of backplane.h, so that they can be searched for")]
pub mod table;
pub mod words;
#[cfg(feature = "worker")]
pub mod worker;

/// Name of the one symbol every plugin exports; the ABI's major version is in it.
pub const ENTRY_SYMBOL: &str = "bp_entry_v1";

/// Section of the ELF note that carries `plugin.toml`.
pub const NOTE_SECTION: &str = ".note.backplane";
/// Owner name of the note, as it stands in the file, with its terminating NUL.
pub const NOTE_NAME: &[u8; 10] = b"Backplane\0";
/// Type of the note.
pub const NOTE_MANIFEST: u32 = 1;

/// Section of the ELF note in which an SDK says what built the library: `sdk` and `panic`, as TOML. For people and
/// reports; no host asks for it.
pub const BUILD_SECTION: &str = ".note.backplane.build";
/// Type of that note; its owner is the same.
pub const NOTE_BUILD: u32 = 2;

/// The ABI this crate lays out.
pub const ABI_MAJOR: u16 = 1;
/// See [`ABI_MAJOR`].
pub const ABI_MINOR: u16 = 0;
