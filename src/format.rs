//! L1, bytes and model: what every object in the store looks like.
//!
//! Each module turns one kind of bytes into model values and back, purely. `docs/format.md` is the
//! specification in words; the golden files in `tests/golden/` are its examples.
//!
//! # Invariants
//!
//! 1. A decoder bounds every length before it allocates or decompresses, and never panics: what it is given
//!    may come from a broken disk or from an attacker.
//! 2. What is decoded was complete: bytes behind the last field are refused, or are [`extension`]s.
//! 3. An unknown major version or incompatible feature bit is refused by name.

pub mod catalog;
pub mod context;
pub mod derived;
pub mod descriptor;
pub mod envelope;
pub mod extension;
pub mod extents;
pub mod intent;
pub mod key;
pub mod pack;
pub mod place;
pub mod range;
pub mod read_log;
pub mod refs;
pub mod wire;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end before the value does.
    #[error("cut short")]
    Truncated,
    /// A value that no writer of this format produces.
    #[error("malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// Another kind of object than was asked for.
    #[error("is a {found}, not a {expected}")]
    WrongKind {
        /// What was asked for.
        expected: &'static str,
        /// What was found.
        found: &'static str,
    },
    /// Written by another context.
    #[error("belongs to another context")]
    WrongContext,
    /// A major version that this program does not know.
    #[error("format version {major} of a {kind} is newer than this program: use a newer datamon")]
    UnknownVersion {
        /// The kind of object.
        kind: &'static str,
        /// Its major version.
        major: u16,
    },
    /// Features without which the object cannot be read rightly.
    #[error("a {kind} uses features that this version does not have ({features}): use a newer datamon")]
    UnknownFeature {
        /// The kind of object.
        kind: &'static str,
        /// The features by name, or their bits.
        features: String,
    },
    /// The bytes do not hash to what they should.
    #[error("its hash does not match its bytes")]
    Hash,
    /// A length above its limit.
    #[error("{what} of {found} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The largest allowed.
        limit: u64,
        /// What was found.
        found: u64,
    },
}
