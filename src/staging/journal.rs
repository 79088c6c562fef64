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

/// Begins the keys of bundles of which files name content.
const JOINED: &[u8] = b"joined/";
/// Key of the number of the last record of a base that joined the intent under way.
const JOINED_RECORDS: &[u8] = b"joined_records";
/// Begins the keys of packs of which files name content that is not of the tree's base.
const SHARED_PACKS: &[u8] = b"shared/";
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

    /// Notes that files of the tree are to name content of `bundle`, before the intent under way names it (`record`: by
    /// which record of its own; 0: by its first).
    pub fn begin_join(&self, bundle: BundleId, record: u32) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, joined_key(bundle), encode_join(Join { record, is_accepted: false }));
        if record > 0 {
            // Not used again, whatever becomes of this one.
            batch.put(Family::Meta, JOINED_RECORDS, record.to_be_bytes());
        }
        Ok(self.db.write_durably(batch)?)
    }

    /// The number of the next record of a base that joins the intent under way.
    pub fn next_join(&self) -> Result<u32, StagingError> {
        let last = self.db.get(Family::Meta, JOINED_RECORDS)?;
        Ok(last.and_then(|value| value.try_into().ok()).map_or(0, u32::from_be_bytes) + 1)
    }

    /// The bundle is named: from now on files may name its content.
    pub fn accept_join(&self, bundle: BundleId, record: u32) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        put_joined(&mut batch, bundle, record);
        // Not durable: it goes before whatever rests on it.
        Ok(self.db.write(batch)?)
    }

    /// Forgets the bundles that were to join and did not: no file names their content.
    pub fn forget_begun_joins(&self) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        for (bundle, join) in joins(&self.db)? {
            if !join.is_accepted {
                batch.delete(Family::Meta, joined_key(bundle));
            }
        }
        if batch.is_empty() { Ok(()) } else { Ok(self.db.write(batch)?) }
    }

    /// The bundles besides base and parent of which files name content, with the number of the record of each; 0: the
    /// intent's first names it.
    pub fn joined(&self) -> Result<Vec<(u32, BundleId)>, StagingError> {
        let accepted = joins(&self.db)?.into_iter().filter(|(_, join)| join.is_accepted);
        Ok(accepted.map(|(bundle, join)| (join.record, bundle)).collect())
    }

    /// Those of them that the intent's first record does not name.
    pub fn further(&self) -> Result<Vec<(u32, BundleId)>, StagingError> {
        Ok(self.joined()?.into_iter().filter(|(record, _)| *record > 0).collect())
    }

    /// The packs of bundles of which files name content.
    pub fn shared_packs(&self) -> Result<Vec<PackEntry>, StagingError> {
        let mut packs = Vec::new();
        for (_, value) in self.db.prefix(Family::Meta, SHARED_PACKS, SHARED_PACKS, usize::MAX)? {
            packs.extend(decode_pack_table(&value)?);
        }
        Ok(packs)
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
        // The next intent names in its first record what joined this one.
        batch.delete(Family::Meta, JOINED_RECORDS);
        for (bundle, join) in joins(&self.db)? {
            match join.is_accepted {
                true => put_joined(&mut batch, bundle, 0),
                false => batch.delete(Family::Meta, joined_key(bundle)),
            }
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

/// A bundle of which files of the tree name content.
#[derive(Debug, Clone, Copy)]
struct Join {
    /// The record of the intent that names it; 0: the first.
    record: u32,
    /// It is named: files may name its content.
    is_accepted: bool,
}

fn joined_key(bundle: BundleId) -> Vec<u8> {
    [JOINED, &bundle.to_bytes()].concat()
}

fn encode_join(join: Join) -> Vec<u8> {
    let mut value = join.record.to_be_bytes().to_vec();
    value.push(u8::from(join.is_accepted));
    value
}

fn joins(db: &Database) -> Result<Vec<(BundleId, Join)>, StagingError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        let mut reader = Reader::new(&value);
        let record = u32::from_be_bytes(reader.array()?);
        let is_accepted = reader.u8()? != 0;
        let bundle = Reader::new(&key[JOINED.len()..]).array()?;
        Ok((BundleId::from_bytes(bundle), Join { record, is_accepted }))
    };
    db.prefix(Family::Meta, JOINED, JOINED, usize::MAX)?.into_iter().map(decode).collect()
}

/// Notes that files name content of `bundle`, which the record `record` of the intent names; with 0 the first, or the next
/// intent's.
fn put_joined(batch: &mut Batch, bundle: BundleId, record: u32) {
    batch.put(Family::Meta, joined_key(bundle), encode_join(Join { record, is_accepted: true }));
}

/// Whether files may name content of `bundle`, and what has to be noted with the first that does: the base and the parent
/// every intent names anyway.
pub(super) fn may_share(
    db: &Database,
    base: Option<BundleId>,
    bundle: BundleId,
    batch: &mut Batch,
) -> Result<bool, StagingError> {
    let key = joined_key(bundle);
    if let Some(value) = db.get(Family::Meta, &key)?
        && value.last() == Some(&1)
    {
        return Ok(true);
    }
    let is_parent = db.get(Family::Meta, b"parent")?.is_some_and(|parent| parent.starts_with(&bundle.to_bytes()));
    if is_parent || base == Some(bundle) {
        put_joined(batch, bundle, 0);
    }
    Ok(is_parent || base == Some(bundle))
}

/// Notes packs of which a file names content.
pub(super) fn put_shared_packs(batch: &mut Batch, packs: &[PackEntry]) {
    for pack in packs {
        let key = [SHARED_PACKS, pack.id.to_string().as_bytes()].concat();
        batch.put(Family::Meta, key, encode_pack_table(&[*pack]));
    }
}

/// A tree without changes names no content but its base's.
pub(super) fn forget_shared(db: &Database, batch: &mut Batch) -> Result<(), StagingError> {
    for prefix in [JOINED, SHARED_PACKS] {
        if !db.prefix(Family::Meta, prefix, prefix, 1)?.is_empty() {
            batch.delete_prefix(Family::Meta, prefix);
        }
    }
    Ok(())
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
