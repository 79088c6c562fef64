//! What a commit must remember over the end of the process: its intent, its packs, its sealed descriptor.
//!
//! Everything lies in the `meta` and `chunk` families of the tree's database; what is used in the store is durable here
//! before (pack numbers) or after (stored packs) the use, as format.md's W steps say.

use std::io;
use std::sync::{Arc, Mutex};

use crate::content::packer::PackJournal;
use crate::format::FormatError;
use crate::format::descriptor::{PackEntry, decode_pack_table, encode_pack_table};
use crate::format::intent::Intent;
use crate::format::wire::{Reader, Writer};
use crate::local::db::{Batch, Database, Family};
use crate::model::entry::Locator;
use crate::model::id::{BundleId, ChunkId, ObjectHash, PackId};

use super::error::StagingError;
use super::extents::{decode_locator, encode_locator};

/// Pack numbers reserved in one durable step.
const SEQ_STEP: u32 = 64;

/// See the module.
pub struct Journal {
    db: Arc<Database>,
    seq: Mutex<(u32, u32)>,
}

/// A commit that has reached W6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The exact descriptor object.
    pub object: bytes::Bytes,
    /// What `latest` named when the tree was based.
    pub base: Option<BundleId>,
}

impl PackJournal for Journal {
    fn next_seq(&self) -> io::Result<u32> {
        let mut seq = self.seq.lock().expect("nothing panics while it holds the numbers");
        if seq.0 == seq.1 {
            let reserved = seq.1 + SEQ_STEP;
            let mut batch = Batch::default();
            batch.put(Family::Meta, &b"seq"[..], reserved.to_be_bytes());
            self.db.write_durably(batch).map_err(io::Error::other)?;
            seq.1 = reserved;
        }
        seq.0 += 1;
        Ok(seq.0 - 1)
    }
}

impl Journal {
    /// The journal in a tree's database.
    pub fn new(db: Arc<Database>) -> Result<Self, StagingError> {
        let stored = db.get(Family::Meta, b"seq")?;
        let seq = stored.and_then(|value| value.try_into().ok()).map_or(0, u32::from_be_bytes);
        Ok(Self { db, seq: Mutex::new((seq, seq)) })
    }

    /// The intent under way.
    pub fn intent(&self) -> Result<Option<Intent>, StagingError> {
        self.db.get(Family::Meta, b"intent")?.map(|bytes| Ok(Intent::decode(&bytes)?)).transpose()
    }

    /// Begins an intent, or notes that it has another base.
    pub fn set_intent(&self, intent: &Intent) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, &b"intent"[..], intent.encode());
        batch.delete(Family::Meta, &b"accepted"[..]);
        Ok(self.db.write_durably(batch)?)
    }

    /// W2 is through: from now on a collection keeps the bases' packs.
    pub fn set_accepted(&self) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, &b"accepted"[..], []);
        // Not durable: who does not know of it looks once more.
        Ok(self.db.write(batch)?)
    }

    /// Whether the intent under way has passed W2.
    pub fn is_accepted(&self) -> Result<bool, StagingError> {
        Ok(self.db.get(Family::Meta, b"accepted")?.is_some())
    }

    /// The bundle that the tree's next bundle follows: the base's or the last one published from here.
    pub fn parent(&self) -> Result<Option<(BundleId, ObjectHash)>, StagingError> {
        let Some(bytes) = self.db.get(Family::Meta, b"parent")? else { return Ok(None) };
        let mut reader = Reader::new(&bytes);
        Ok(Some((BundleId::from_bytes(reader.array()?), ObjectHash(reader.array()?))))
    }

    /// W6: these bytes and no others go to the slot from now on.
    pub fn set_sealed(&self, sealed: &Sealed) -> Result<(), StagingError> {
        let mut writer = Writer::new();
        writer.array(&sealed.base.map_or([0; 16], BundleId::to_bytes));
        writer.array(&sealed.object);
        let mut batch = Batch::default();
        batch.put(Family::Meta, &b"sealed"[..], writer.into_bytes());
        Ok(self.db.write_durably(batch)?)
    }

    /// What W6 noted, if the commit did not come to its end.
    pub fn sealed(&self) -> Result<Option<Sealed>, StagingError> {
        let Some(bytes) = self.db.get(Family::Meta, b"sealed")? else { return Ok(None) };
        let mut reader = Reader::new(&bytes);
        let base = Some(BundleId::from_bytes(reader.array()?)).filter(|id| id.to_bytes() != [0; 16]);
        let object = bytes::Bytes::copy_from_slice(reader.take(reader.remaining())?);
        Ok(Some(Sealed { object, base }))
    }

    /// The commit is over: `parent` is published (or nothing is, with `None`), and the next one takes a new intent.
    pub fn finish(&self, parent: Option<(BundleId, ObjectHash)>) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        for key in [&b"intent"[..], b"accepted", b"sealed"] {
            batch.delete(Family::Meta, key);
        }
        for (key, _) in self.db.prefix(Family::Meta, b"pack/", b"pack/", usize::MAX)? {
            batch.delete(Family::Meta, key);
        }
        if let Some((bundle, hash)) = parent {
            let mut writer = Writer::new();
            writer.array(&bundle.to_bytes());
            writer.array(hash.as_bytes());
            batch.put(Family::Meta, &b"parent"[..], writer.into_bytes());
        }
        Ok(self.db.write_durably(batch)?)
    }

    /// A data pack of this intent is in the store, and these chunks in it.
    pub fn stored(
        &self,
        pack: PackEntry,
        chunks: impl Iterator<Item = (ChunkId, Locator)>,
    ) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, format!("pack/{}", pack.id), encode_pack_table(&[pack]));
        index(&mut batch, pack.id, chunks);
        Ok(self.db.write(batch)?)
    }

    /// The data packs of this intent.
    pub fn packs(&self) -> Result<Vec<PackEntry>, StagingError> {
        let mut packs = Vec::new();
        for (_, value) in self.db.prefix(Family::Meta, b"pack/", b"pack/", usize::MAX)? {
            packs.extend(decode_pack_table(&value)?);
        }
        Ok(packs)
    }

    /// Notes where the chunks of a pack lie: of a base, or of this intent.
    pub fn index(&self, pack: PackId, chunks: impl Iterator<Item = (ChunkId, Locator)>) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        index(&mut batch, pack, chunks);
        Ok(self.db.write(batch)?)
    }

    /// Whether the chunks of a pack are noted.
    pub fn is_indexed(&self, pack: PackId) -> Result<bool, StagingError> {
        Ok(self.db.get(Family::Meta, &indexed_key(pack))?.is_some())
    }

    /// Where a chunk lies, in whatever pack: whether that may be re-used is for the caller to know.
    pub fn find(&self, id: ChunkId) -> Result<Option<Locator>, StagingError> {
        let found = self.db.get(Family::Chunks, id.as_bytes())?;
        Ok(found.map(|bytes| decode_locator(&bytes)).transpose()?)
    }
}

fn indexed_key(pack: PackId) -> Vec<u8> {
    format!("indexed/{pack}").into_bytes()
}

fn index(batch: &mut Batch, pack: PackId, chunks: impl Iterator<Item = (ChunkId, Locator)>) {
    for (id, at) in chunks {
        batch.put(Family::Chunks, id.as_bytes().to_vec(), encode_locator(&at));
    }
    batch.put(Family::Meta, indexed_key(pack), []);
}

impl From<FormatError> for super::commit::CommitError {
    fn from(error: FormatError) -> Self {
        Self::Staging(error.into())
    }
}
