//! L0, the vocabulary: names, ids, paths, entries, chunk arithmetic.
//!
//! Everything above speaks in these types. A value of one of them is proof that its text or bytes were
//! checked, so nothing above checks again.
//!
//! # Invariants
//!
//! 1. No I/O, no clock, no randomness: time and entropy come in through [`clock::Clock`] and
//!    [`clock::Entropy`].
//! 2. Nothing here knows how a value is stored (that is `format`) or shown (that is `vfs`). The bytes of [`acl`] are the
//!    kernel's.

pub mod acl;
pub mod chunk;
pub mod clock;
pub mod entry;
pub mod id;
pub mod job;
pub mod limits;
pub mod metrics;
pub mod name;
pub mod path;
