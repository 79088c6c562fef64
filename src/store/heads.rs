//! What this process has seen of chains: the newest record of each.
//!
//! Records are never changed nor removed, so a record that was the newest is either still that, or has a successor: one
//! GET of the next name says which. Without this each look costs a LIST, a GET and that GET; a LIST is the dearest of
//! requests, and the slowest where a chain is long.
//!
//! It is advice alone: what falls out is found by a LIST again.

use bytes::Bytes;
use moka::sync::Cache;

use crate::format::key::ObjectKey;

/// Bytes of records that are kept: those of some thousand repos with few labels.
const BYTES_MAX: u64 = 4 << 20;
/// What an entry weighs beside its record.
const ENTRY_BYTES: usize = 256;

/// A record that was the newest of its chain.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// Its number.
    pub seq: u64,
    /// The whole object; empty for a chain of which only the length counts.
    pub object: Bytes,
}

/// See the module.
pub(super) struct Heads(Cache<ObjectKey, Head>);

impl Default for Heads {
    fn default() -> Self {
        let weigh = |_: &ObjectKey, head: &Head| u32::try_from(head.object.len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(BYTES_MAX).weigher(weigh).build())
    }
}

impl Heads {
    /// The newest record that was seen of the chain `prefix`.
    pub fn get(&self, prefix: &ObjectKey) -> Option<Head> {
        self.0.get(prefix)
    }

    /// Notes that record `seq` was seen; an earlier one than is known says nothing.
    pub fn saw(&self, prefix: &ObjectKey, seq: u64, object: Bytes) {
        if self.get(prefix).is_none_or(|known| known.seq < seq) {
            self.0.insert(prefix.clone(), Head { seq, object });
        }
    }
}
