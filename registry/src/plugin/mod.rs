//! Plugin libraries.
