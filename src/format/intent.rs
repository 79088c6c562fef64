//! Intents (who is writing what, on which bases) and the marker of a slot that will stay empty.
//!
//! An intent's body: `time · intent 16 · repo 16 · bundle 16 (the slot) · bases · who`.
//! An ABORTED marker's body: `intent 16`, a size that no descriptor has.

use super::FormatError;
use super::envelope::OVERHEAD_BYTES;
use super::refs::{put_time, take_text, take_time};
use super::wire::{Reader, Writer};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, IntentId, RepoId};

/// Bases that one intent may name.
const BASES_MAX: usize = 4_096;
/// Length of a whole ABORTED object; every descriptor is longer.
pub const ABORTED_BYTES: u64 = OVERHEAD_BYTES as u64 + 16;

/// A writer's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// When it was written, by the store's or the host's clock: for people.
    pub time: Timestamp,
    /// The intent.
    pub id: IntentId,
    /// The repo of the slot.
    pub repo: RepoId,
    /// The bundle of the slot.
    pub bundle: BundleId,
    /// Bundles whose packs the writer may refer to.
    pub bases: Vec<BundleId>,
    /// User and host.
    pub who: String,
}

impl Intent {
    /// The intent's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        put_time(&mut writer, self.time);
        writer.array(&self.id.to_bytes());
        writer.array(&self.repo.to_bytes());
        writer.array(&self.bundle.to_bytes());
        writer.varint(self.bases.len() as u64);
        self.bases.iter().for_each(|base| writer.array(&base.to_bytes()));
        writer.string(self.who.as_bytes());
        writer.into_bytes()
    }

    /// The intent with this body.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let time = take_time(&mut reader)?;
        let id = IntentId::from_bytes(reader.array()?);
        let repo = RepoId::from_bytes(reader.array()?);
        let bundle = BundleId::from_bytes(reader.array()?);
        let count = reader.count(16)?;
        if count > BASES_MAX {
            return Err(FormatError::TooLarge { what: "bases", limit: BASES_MAX as u64, found: count as u64 });
        }
        let mut bases = Vec::with_capacity(count);
        for _ in 0..count {
            bases.push(BundleId::from_bytes(reader.array()?));
        }
        let who = take_text(&mut reader)?;
        reader.finish()?;
        Ok(Self { time, id, repo, bundle, bases, who })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::envelope::{self, ObjectKind};
    use crate::model::id::ContextId;
    use proptest::prelude::*;

    fn sample() -> Intent {
        Intent {
            time: Timestamp { secs: 1, nanos: 2 },
            id: IntentId::from_parts(1, 1),
            repo: RepoId::from_parts(2, 2),
            bundle: BundleId::from_parts(3, 3),
            bases: vec![BundleId::from_parts(4, 4)],
            who: "ann@lab".into(),
        }
    }

    #[test]
    fn the_golden_record_is_unchanged() {
        let object = envelope::seal(ObjectKind::Intent, ContextId::from_parts(1, 2), &sample().encode());
        let golden = include_bytes!("../../tests/golden/intent.bin");
        assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
    }

    #[test]
    fn an_intent_comes_back() {
        assert_eq!(Intent::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn a_marker_has_the_length_by_which_it_is_known() {
        let marker = envelope::seal(ObjectKind::Aborted, ContextId::from_parts(1, 2), &sample().id.to_bytes());
        assert_eq!(marker.len() as u64, ABORTED_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _ = Intent::decode(&bytes);
        }
    }
}
