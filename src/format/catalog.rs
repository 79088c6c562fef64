//! The catalog chain: which names are which repos.
//!
//! A record's body: `time · previous record's hash 32 (zeros for the first) · repos, each {name, id 16, chunk size's
//! log2 u8, state u8 (0 live, 1 removing), nonce 16}`, sorted by name. A repo that is gone is not listed.

use std::collections::BTreeMap;

use super::FormatError;
use super::refs::{put_time, take_text, take_time};
use super::wire::{Reader, Writer};
use crate::model::chunk::ChunkSize;
use crate::model::clock::Timestamp;
use crate::model::id::{ObjectHash, RepoId};
use crate::model::limits::REPOS_MAX;
use crate::model::name::RepoName;

/// Whether a repo may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoState {
    /// In use.
    Live,
    /// Somebody is finding out whether it is empty; valid for this nonce only.
    Removing(u128),
}

/// One repo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepoEntry {
    /// Its identity for its whole life.
    pub id: RepoId,
    /// Its chunk size, fixed when it was made.
    pub chunk_size: ChunkSize,
    /// Whether it may be written to.
    pub state: RepoState,
}

/// All repos of a context after one change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CatalogRecord {
    /// When, never before the previous record's time.
    pub time: Timestamp,
    /// Hash of the whole previous record object; `None` for the first.
    pub previous: Option<ObjectHash>,
    /// Repos by name.
    pub repos: BTreeMap<RepoName, RepoEntry>,
}

impl CatalogRecord {
    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        put_time(&mut writer, self.time);
        writer.array(&self.previous.map_or([0; 32], |hash| hash.0));
        writer.varint(self.repos.len() as u64);
        for (name, entry) in &self.repos {
            writer.string(name.as_str().as_bytes());
            writer.array(&entry.id.to_bytes());
            writer.u8(entry.chunk_size.log2());
            let (state, nonce) = match entry.state {
                RepoState::Live => (0, 0),
                RepoState::Removing(nonce) => (1, nonce),
            };
            writer.u8(state);
            writer.array(&nonce.to_le_bytes());
        }
        writer.into_bytes()
    }

    /// The record with this body.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let time = take_time(&mut reader)?;
        let previous = Some(ObjectHash(reader.array()?)).filter(|hash| hash.0 != [0; 32]);
        let count = reader.count(36)?;
        if count > REPOS_MAX {
            return Err(FormatError::TooLarge { what: "repos", limit: REPOS_MAX as u64, found: count as u64 });
        }
        let mut repos = BTreeMap::new();
        for _ in 0..count {
            let name: RepoName =
                take_text(&mut reader)?.parse().map_err(|_| FormatError::Malformed { what: "repo name" })?;
            if repos.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(FormatError::Malformed { what: "order of repos" });
            }
            let id = RepoId::from_bytes(reader.array()?);
            let malformed = FormatError::Malformed { what: "chunk size" };
            let chunk_size = ChunkSize::from_log2(reader.u8()?).ok_or(malformed)?;
            let (state, nonce) = (reader.u8()?, u128::from_le_bytes(reader.array()?));
            let state = match state {
                0 => RepoState::Live,
                1 => RepoState::Removing(nonce),
                _ => return Err(FormatError::Malformed { what: "repo state" }),
            };
            repos.insert(name, RepoEntry { id, chunk_size, state });
        }
        reader.finish()?;
        Ok(Self { time, previous, repos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::envelope::{self, ObjectKind};
    use crate::model::id::ContextId;
    use proptest::prelude::*;

    fn sample() -> CatalogRecord {
        let id = RepoId::from_parts(5, 6);
        let entry = |state| RepoEntry { id, chunk_size: ChunkSize::DEFAULT, state };
        CatalogRecord {
            time: Timestamp { secs: 1, nanos: 7 },
            previous: None,
            repos: [
                ("a".parse().unwrap(), entry(RepoState::Live)),
                ("b".parse().unwrap(), entry(RepoState::Removing(77))),
            ]
            .into(),
        }
    }

    #[test]
    fn the_golden_record_is_unchanged() {
        let object = envelope::seal(ObjectKind::CatalogRecord, ContextId::from_parts(1, 2), &sample().encode());
        let golden = include_bytes!("../../tests/golden/catalog.bin");
        assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
    }

    #[test]
    fn repos_come_in_order_each_once() {
        let mut bytes = sample().encode();
        let name = bytes.iter().rposition(|byte| *byte == b'b').unwrap();
        bytes[name] = b'a';
        assert_eq!(CatalogRecord::decode(&bytes), Err(FormatError::Malformed { what: "order of repos" }));
    }

    #[test]
    fn a_record_comes_back() {
        assert_eq!(CatalogRecord::decode(&sample().encode()), Ok(sample()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, at: usize) {
            let _ = CatalogRecord::decode(&bytes);
            let bytes = sample().encode();
            prop_assert!(CatalogRecord::decode(&bytes[..at % bytes.len()]).is_err());
        }
    }
}
