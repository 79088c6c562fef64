//! What is known of staged chunks in the store, kept beside the inodes.
//!
//! ```text
//! current (ino, chunk) → extent     what the file's chunk holds now is in the store; a change of the chunk removes it
//! sealed  (ino, chunk) → extent     the same of the instant that is being committed; gone when the commit is over
//! body    (ino) → version, content  what the commit made of a file; read once more when it is published
//! ```
//!
//! # Invariants
//!
//! 1. A *current* extent is attached only if the file did not change between the reading of the bytes and the record
//!    (`Inode::version`), under the lock that every change takes.
//! 2. Only a file whose record says `uploaded` has current extents, so that a change of any other looks for none.

use super::error::StagingError;
use super::inode::{FileData, InodeBody};
use super::tree::{Tree, put_inode};
use crate::format::FormatError;
use crate::format::place::{PackDictionary, put_locator, take_locator, take_packs};
use crate::format::range::{RangeWriter, Row, RowKey, RowValue, decode_range};
use crate::format::wire::{Reader, Writer};
use crate::local::db::{Batch, Cursor, Database, Family, Instant};
use crate::model::entry::{Attributes, Body, Entry, Extent, FileBody, Locator, Xattrs};
use crate::model::id::ChunkId;

/// Chunks that are removed one by one; of a larger file all at once.
const SINGLE_MAX: u64 = 64;

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Mark {
    Current = 0,
    Sealed = 1,
    Body = 2,
}

fn file_key(mark: Mark, ino: u64) -> Vec<u8> {
    let mut key = vec![mark as u8];
    key.extend_from_slice(&ino.to_be_bytes());
    key
}

fn chunk_key(mark: Mark, ino: u64, index: u64) -> Vec<u8> {
    let mut key = file_key(mark, ino);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// The bytes of a place in the store: a pack dictionary of one and the locator.
pub(super) fn encode_locator(at: &Locator) -> Vec<u8> {
    let mut packs = PackDictionary::default();
    let mut place = Writer::new();
    put_locator(&mut place, &mut packs, at);
    let mut writer = Writer::new();
    packs.put(&mut writer);
    writer.array(&place.into_bytes());
    writer.into_bytes()
}

/// The place that [`encode_locator`] wrote.
pub(super) fn decode_locator(bytes: &[u8]) -> Result<Locator, FormatError> {
    let mut reader = Reader::new(bytes);
    let packs = take_packs(&mut reader)?;
    let at = take_locator(&mut reader, &packs)?;
    reader.finish()?;
    Ok(at)
}

fn encode_extent(extent: &Extent) -> Vec<u8> {
    let mut bytes = extent.id.as_bytes().to_vec();
    if let Some(at) = &extent.at {
        bytes.extend_from_slice(&encode_locator(at));
    }
    bytes
}

fn decode_extent(bytes: &[u8]) -> Result<Extent, FormatError> {
    let mut reader = Reader::new(bytes);
    let id = ChunkId(reader.array()?);
    let rest = reader.take(reader.remaining())?;
    let at = if rest.is_empty() { None } else { Some(decode_locator(rest)?) };
    Ok(Extent { id, at })
}

/// One chunk of a file as it was at `version`, and where it lies now.
#[derive(Debug, Clone, Copy)]
pub struct Attached {
    /// The file.
    pub ino: u64,
    /// Its version when the bytes were read.
    pub version: u64,
    /// The chunk.
    pub index: u64,
    /// What it is in the store.
    pub extent: Extent,
}

impl Tree {
    /// Notes that these chunks are in the store; those of files that changed meanwhile are passed over.
    pub async fn attach(&self, chunks: &[Attached]) -> Result<(), StagingError> {
        let _changing = self.lock_changes().await;
        let mut batch = Batch::default();
        for of_file in chunks.chunk_by(|a, b| a.ino == b.ino) {
            let ino = of_file[0].ino;
            let Some(mut inode) = self.record(ino)? else { continue };
            let version = inode.version;
            let InodeBody::File(file) = &mut inode.body else { continue };
            let is_same =
                |chunk: &&Attached| chunk.version == version && file.local.is_some() && file.is_local(chunk.index);
            let same: Vec<_> = of_file.iter().filter(is_same).collect();
            for chunk in same {
                let key = chunk_key(Mark::Current, ino, chunk.index);
                batch.put(Family::Extents, key, encode_extent(&chunk.extent));
                file.uploaded = true;
            }
            if file.uploaded {
                put_inode(&mut batch, ino, &inode);
            }
        }
        Ok(self.db().write(batch)?)
    }

    /// Forgets what was attached: the intent that stored it will be no bundle, and nothing keeps its packs.
    pub(super) async fn forget_uploads(&self) -> Result<(), StagingError> {
        let _changing = self.lock_changes().await;
        let mut batch = Batch::default();
        batch.delete_prefix(Family::Extents, [Mark::Current as u8]);
        Ok(self.db().write_durably(batch)?)
    }

    /// What the chunk holds now in the store, if it is known.
    pub fn current_extent(&self, ino: u64, index: u64) -> Result<Option<Extent>, StagingError> {
        let found = self.db().get(Family::Extents, &chunk_key(Mark::Current, ino, index))?;
        Ok(found.map(|bytes| decode_extent(&bytes)).transpose()?)
    }

    /// Says that all chunks of the file change.
    pub(super) fn forget_extents(&self, batch: &mut Batch, ino: u64, file: &mut FileData) {
        let chunks = file.size.div_ceil(self.chunk().bytes());
        if chunks <= SINGLE_MAX {
            self.forget_chunks(batch, ino, file, 0..chunks);
        } else if file.uploaded {
            batch.delete_prefix(Family::Extents, file_key(Mark::Current, ino));
        }
        file.uploaded = false;
    }

    /// Says that these chunks of the file change.
    pub(super) fn forget_chunks(&self, batch: &mut Batch, ino: u64, file: &FileData, chunks: std::ops::Range<u64>) {
        if file.uploaded {
            chunks.for_each(|index| batch.delete(Family::Extents, chunk_key(Mark::Current, ino, index)));
        }
    }
}

/// Forgets which chunks of the file are in the store: see [`super::tree`], where a tree is found again.
pub(super) fn forget_uploads(batch: &mut Batch, ino: u64, file: &mut FileData) {
    batch.delete_prefix(Family::Extents, file_key(Mark::Current, ino));
    file.uploaded = false;
}

/// As [`extent_at`], for many files in order.
pub(super) fn next_extent(current: &mut Cursor<'_>, ino: u64, index: u64) -> Result<Option<Extent>, StagingError> {
    let found = current.get(&chunk_key(Mark::Current, ino, index))?;
    Ok(found.map(decode_extent).transpose()?)
}

/// The current extent of a chunk at an instant.
pub(super) fn extent_at(instant: &Instant, ino: u64, index: u64) -> Result<Option<Extent>, StagingError> {
    let found = instant.get(Family::Extents, &chunk_key(Mark::Current, ino, index))?;
    Ok(found.map(|bytes| decode_extent(&bytes)).transpose()?)
}

/// What a commit has worked out for the instant that it publishes: on the disk, because there may be millions.
pub(super) struct SealedExtents<'a>(pub &'a Database);

impl SealedExtents<'_> {
    /// Removes what a commit that did not come to its end left.
    pub fn clear(&self) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        for mark in [Mark::Sealed, Mark::Body] {
            batch.delete_prefix(Family::Extents, vec![mark as u8]);
        }
        Ok(self.0.write(batch)?)
    }

    /// Notes chunks of the instant: file, index and what they are in the store.
    pub fn put(&self, chunks: impl Iterator<Item = (u64, u64, Extent)>) -> Result<(), StagingError> {
        let mut batch = Batch::default();
        for (ino, index, extent) in chunks {
            batch.put(Family::Extents, chunk_key(Mark::Sealed, ino, index), encode_extent(&extent));
        }
        Ok(self.0.write(batch)?)
    }

    /// What a chunk of the instant is.
    pub fn get(&self, ino: u64, index: u64) -> Result<Option<Extent>, StagingError> {
        let found = self.0.get(Family::Extents, &chunk_key(Mark::Sealed, ino, index))?;
        Ok(found.map(|bytes| decode_extent(&bytes)).transpose()?)
    }

    /// Notes what the file `ino`, at `version`, is in the bundle.
    pub fn put_body(&self, batch: &mut Batch, ino: u64, version: u64, body: FileBody) {
        let attributes = Attributes { permissions: 0, uid: 0, gid: 0, mtime: Default::default() };
        let entry = Entry { attributes, xattrs: Xattrs::default(), nlink: 1, body: Body::File(body) };
        let mut range = RangeWriter::default();
        range.push(&Row { key: RowKey::root(), value: RowValue::Entry(entry) });
        let (_, row) = range.finish().expect("one row was pushed");
        let mut writer = Writer::new();
        writer.varint(version);
        writer.string(&row);
        batch.put(Family::Extents, file_key(Mark::Body, ino), writer.into_bytes());
    }

    /// Up to `max` files of the bundle after the file `after`: number, version and content.
    pub fn bodies(&self, after: Option<u64>, max: usize) -> Result<Vec<(u64, u64, FileBody)>, StagingError> {
        let prefix = [Mark::Body as u8];
        let from = file_key(Mark::Body, after.map_or(0, |ino| ino + 1));
        let damaged = || StagingError::damaged("content of a commit");
        let mut bodies = Vec::new();
        for (key, value) in self.0.prefix(Family::Extents, &prefix, &from, max)? {
            let ino = u64::from_be_bytes(key[1..].try_into().map_err(|_| damaged())?);
            let mut reader = Reader::new(&value);
            let version = reader.varint()?;
            match decode_range(reader.string()?)?.pop().map(|row| row.value) {
                Some(RowValue::Entry(Entry { body: Body::File(body), .. })) => bodies.push((ino, version, body)),
                _ => return Err(damaged()),
            }
        }
        Ok(bodies)
    }
}
