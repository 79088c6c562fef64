//! Identities: ULIDs for things with a life, BLAKE3 hashes for bytes.
//!
//! The only home of BLAKE3 outside `format/pack` (whose proofs need chaining values). Safety and order
//! never rest on the time inside a ULID; it only keeps listings readable.

use std::fmt;
use std::str::FromStr;

use ulid::Ulid;

/// A text that is no ULID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: 26 characters of Crockford's base 32 are expected")]
pub struct IdError;

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// A new id from milliseconds since 1970 and 80 random bits (the upper 48 of `random` are ignored).
            pub fn from_parts(millis: u64, random: u128) -> Self {
                Self(Ulid::from_parts(millis, random).into())
            }

            /// The id's 16 bytes, most significant first.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// The id with these 16 bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// Milliseconds since 1970 by the clock of the host that drew the id: for people, not for order.
            pub fn millis(self) -> u64 {
                (self.0 >> 80) as u64
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&Ulid::from(self.0).to_string())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Accepts the canonical upper-case form only, so that one id has one name.
            fn from_str(text: &str) -> Result<Self, IdError> {
                let parsed = Ulid::from_string(text).map_err(|_| IdError)?;
                let id = Self(parsed.into());
                if id.to_string() == text { Ok(id) } else { Err(IdError) }
            }
        }
    };
}

ulid_id! {
    /// One instance of datamon in a store; the first component of every key outside config.
    ContextId
}
ulid_id! {
    /// A repo for its whole life; a rename keeps it, a name removed and made again gets another.
    RepoId
}
ulid_id! {
    /// An immutable version of a repo.
    BundleId
}
ulid_id! {
    /// One attempt of a writer to fill one slot.
    IntentId
}
ulid_id! {
    /// One mount, from its beginning to its end.
    MountId
}
ulid_id! {
    /// A group of hard-linked names inside one tree.
    LinkId
}

/// Drawn at random in each life of a process, so that two lives never name a pack alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Run(pub u64);

/// The identity of a pack: who wrote it, in which life, and the how-manieth. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The intent under which the pack was written.
    pub intent: IntentId,
    /// The process life that wrote it.
    pub run: Run,
    /// Journaled before its PUT and never used again.
    pub seq: u32,
}

impl fmt::Display for PackId {
    /// `<intent>-<run, 16 hex digits>-<seq, 8 hex digits>`, as in the object's key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}-{:08x}", self.intent, self.run.0, self.seq)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PackId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut parts = text.split('-');
        let (Some(intent), Some(run), Some(seq), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdError);
        };
        let id = Self {
            intent: intent.parse()?,
            run: Run(u64::from_str_radix(run, 16).map_err(|_| IdError)?),
            seq: u32::from_str_radix(seq, 16).map_err(|_| IdError)?,
        };
        if id.to_string() == text { Ok(id) } else { Err(IdError) }
    }
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The hash's 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

hash_id! {
    /// BLAKE3 of a chunk's raw bytes: equal chunks have equal ids at any offset, in any file or repo.
    ChunkId
}
hash_id! {
    /// The identity of a regular file's bytes: equal bytes have equal ids.
    ContentId
}
hash_id! {
    /// The identity of one extent block: derived from its chunk ids alone, not from where they lie.
    BlockId
}
hash_id! {
    /// BLAKE3 of bytes as they are stored: objects, ranges, pages, metadata records.
    ObjectHash
}

/// Key derivation contexts (BLAKE3 `derive_key`), fixed for ever by format 1.
const FILE_CONTEXT: &str = "datamon file v1";
const EXTENTS_CONTEXT: &str = "datamon extents v1";

impl ChunkId {
    /// The id of these bytes; equals `b3sum` of them.
    pub fn of(raw: &[u8]) -> Self {
        Self(*blake3::hash(raw).as_bytes())
    }
}

impl ObjectHash {
    /// The hash of these stored bytes.
    pub fn of(stored: &[u8]) -> Self {
        Self(*blake3::hash(stored).as_bytes())
    }
}

impl BlockId {
    /// The id of an extent block that lists these chunks; a hole counts with the id of its zeros.
    pub fn of(chunks: impl IntoIterator<Item = ChunkId>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(EXTENTS_CONTEXT);
        for chunk in chunks {
            hasher.update(chunk.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl ContentId {
    /// The id of a file that is one chunk (or lies inline in its row): the chunk's own id.
    pub fn of_chunk(chunk: ChunkId) -> Self {
        Self(chunk.0)
    }

    /// The id of a file of `len` bytes in several chunks, described by these extent blocks.
    pub fn of_blocks(len: u64, blocks: impl IntoIterator<Item = BlockId>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(FILE_CONTEXT);
        hasher.update(&len.to_le_bytes());
        for block in blocks {
            hasher.update(block.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_text_and_survives_it() {
        let id = BundleId::from_parts(1_700_000_000_000, 42);
        assert_eq!(id.to_string().len(), 26);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_lowercase().parse::<BundleId>(), Err(IdError));
        assert_eq!(id.millis(), 1_700_000_000_000);
        assert_eq!(BundleId::from_bytes(id.to_bytes()), id);
    }

    #[test]
    fn a_pack_id_survives_its_text() {
        let id = PackId { intent: IntentId::from_parts(1, 2), run: Run(u64::MAX), seq: 7 };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("x-y-z".parse::<PackId>().is_err());
    }

    #[test]
    fn a_files_id_depends_on_its_length_and_its_chunks() {
        let block = BlockId::of([ChunkId::of(b"a"), ChunkId::of(b"b")]);
        assert_ne!(ContentId::of_blocks(1, [block]), ContentId::of_blocks(2, [block]));
        assert_ne!(block, BlockId::of([ChunkId::of(b"b"), ChunkId::of(b"a")]));
    }
}
