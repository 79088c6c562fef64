//! What a bundle was derived from: the bundles whose files were open while it was made.
//!
//! In a descriptor's extension: `varint n, each {repo 16, bundle 16} · varint left out`, sorted by repo and bundle, each
//! once. More than [`DERIVED_FROM_MAX`] are counted only: a descriptor has a limit, and what looked into thousands of versions
//! (a search, an indexer) is told well enough by their number.

use std::collections::BTreeSet;

use super::FormatError;
use super::wire::{Reader, Writer};
use crate::model::id::{BundleId, RepoId};
use crate::model::limits::DERIVED_FROM_MAX;

/// Bytes of a repo and a bundle.
const PAIR_BYTES: usize = 16 + 16;
/// Bytes of the longest list, with its tag and length: both counts, and three bytes of length.
pub(super) const DERIVED_FROM_BYTES_MAX: usize = DERIVED_FROM_MAX * PAIR_BYTES + 2 + 10 + 1 + 3;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DerivedFrom {
    bundles: Vec<(RepoId, BundleId)>,
    left_out: u64,
}

impl DerivedFrom {
    /// From all of these bundles.
    pub fn new(all: BTreeSet<(RepoId, BundleId)>) -> Self {
        let left_out = all.len().saturating_sub(DERIVED_FROM_MAX) as u64;
        Self { bundles: all.into_iter().take(DERIVED_FROM_MAX).collect(), left_out }
    }

    /// The bundles that are named, sorted.
    pub fn bundles(&self) -> &[(RepoId, BundleId)] {
        &self.bundles
    }

    /// How many more there were.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty() && self.left_out == 0
    }

    /// The extension's value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.varint(self.bundles.len() as u64);
        for (repo, bundle) in &self.bundles {
            writer.array(&repo.to_bytes());
            writer.array(&bundle.to_bytes());
        }
        writer.varint(self.left_out);
        writer.into_bytes()
    }

    /// The value that `reader` stands at.
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let count = reader.count(PAIR_BYTES)?;
        if count > DERIVED_FROM_MAX {
            let (limit, found) = (DERIVED_FROM_MAX as u64, count as u64);
            return Err(FormatError::TooLarge { what: "bundles it was derived from", limit, found });
        }
        let mut bundles: Vec<(RepoId, BundleId)> = Vec::with_capacity(count);
        for _ in 0..count {
            let next = (RepoId::from_bytes(reader.array()?), BundleId::from_bytes(reader.array()?));
            if bundles.last().is_some_and(|last| *last >= next) {
                return Err(FormatError::Malformed { what: "order of what it was derived from" });
            }
            bundles.push(next);
        }
        Ok(Self { bundles, left_out: reader.varint()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(count: u64) -> BTreeSet<(RepoId, BundleId)> {
        (0..count).map(|n| (RepoId::from_parts(n % 3, 1), BundleId::from_parts(n, 2))).collect()
    }

    fn read(bytes: &[u8]) -> Result<DerivedFrom, FormatError> {
        let mut reader = Reader::new(bytes);
        let read = DerivedFrom::take(&mut reader)?;
        reader.finish().map(|()| read)
    }

    #[test]
    fn at_most_so_many_are_named_and_the_rest_is_counted() {
        for (count, named, left_out) in [(0, 0, 0), (1, 1, 0), (1_024, 1_024, 0), (1_100, 1_024, 76)] {
            let derived = DerivedFrom::new(pairs(count));
            assert_eq!((derived.bundles().len(), derived.left_out()), (named, left_out));
            assert_eq!(derived.is_empty(), count == 0);
            let bytes = derived.encode();
            assert!(bytes.len() <= DERIVED_FROM_BYTES_MAX);
            assert_eq!(read(&bytes), Ok(derived));
        }
    }

    #[test]
    fn more_than_so_many_another_order_and_a_bundle_twice_are_refused() {
        let bytes = |bundles: &[(RepoId, BundleId)]| DerivedFrom { bundles: bundles.to_vec(), left_out: 0 }.encode();
        let many: Vec<_> = pairs(DERIVED_FROM_MAX as u64 + 1).into_iter().collect();
        assert!(matches!(read(&bytes(&many)), Err(FormatError::TooLarge { .. })));
        let [a, b] = [many[0], many[1]];
        assert!(read(&bytes(&[a, b])).is_ok());
        for wrong in [[b, a], [a, a]] {
            assert!(matches!(read(&bytes(&wrong)), Err(FormatError::Malformed { .. })));
        }
    }
}
