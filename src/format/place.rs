//! Where bytes lie, as the tables say it: packs by number, chunks and metadata records inside them.
//!
//! A pack's id takes 28 bytes, so some bytes that name packs begin with a dictionary of them and go on with numbers. Every
//! place is looked at when it is read: one that no pack can have is refused there, not where somebody fetches it.

use std::collections::HashMap;

use super::FormatError;
use super::pack::{check_place, codec_from};
use super::wire::{Reader, Writer};
use crate::model::entry::{Codec, Locator, RecordRef};
use crate::model::id::{IntentId, ObjectHash, PackId, Run};

/// Packs named in some bytes, each once.
#[derive(Debug, Default)]
pub struct PackDictionary {
    ids: Vec<PackId>,
    index: HashMap<PackId, u64>,
}

impl PackDictionary {
    /// The number of `id`, which is added if it is new.
    pub fn number(&mut self, id: PackId) -> u64 {
        *self.index.entry(id).or_insert_with(|| {
            self.ids.push(id);
            self.ids.len() as u64 - 1
        })
    }

    /// The packs, in the order of their numbers.
    pub fn ids(&self) -> &[PackId] {
        &self.ids
    }

    /// Appends the dictionary.
    pub fn put(&self, writer: &mut Writer) {
        writer.varint(self.ids.len() as u64);
        for id in &self.ids {
            writer.array(&id.intent.to_bytes());
            writer.u64(id.run.0);
            writer.u32(id.seq);
        }
    }
}

/// The packs of a dictionary, by number.
pub fn take_packs(reader: &mut Reader<'_>) -> Result<Vec<PackId>, FormatError> {
    let count = reader.count(28)?;
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let intent = IntentId::from_bytes(reader.array()?);
        ids.push(PackId { intent, run: Run(reader.u64()?), seq: reader.u32()? });
    }
    Ok(ids)
}

/// Where a record of a pack lies, and how it is stored.
struct Stored {
    pack: PackId,
    offset: u64,
    stored: u32,
    raw: u32,
    codec: Codec,
}

fn put_stored(writer: &mut Writer, packs: &mut PackDictionary, at: Stored) {
    writer.varint(packs.number(at.pack));
    writer.varint(at.offset);
    writer.varint(at.stored.into());
    writer.varint(at.raw.into());
    writer.u8(at.codec as u8);
}

fn take_stored(reader: &mut Reader<'_>, packs: &[PackId]) -> Result<Stored, FormatError> {
    let number = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let pack = packs.get(number).copied().ok_or(FormatError::Malformed { what: "pack number" })?;
    let (offset, stored, raw) = (reader.varint()?, reader.varint32()?, reader.varint32()?);
    let codec = codec_from(reader.u8()?)?;
    check_place(offset, stored, raw)?;
    Ok(Stored { pack, offset, stored, raw, codec })
}

/// Appends a chunk and where it lies.
pub fn put_locator(writer: &mut Writer, packs: &mut PackDictionary, at: &Locator) {
    let Locator { pack, offset, stored, raw, codec, inner, len } = *at;
    put_stored(writer, packs, Stored { pack, offset, stored, raw, codec });
    writer.varint(inner.into());
    writer.varint(len.into());
}

/// A locator whose chunk lies inside its record.
pub fn take_locator(reader: &mut Reader<'_>, packs: &[PackId]) -> Result<Locator, FormatError> {
    let Stored { pack, offset, stored, raw, codec } = take_stored(reader, packs)?;
    let (inner, len) = (reader.varint32()?, reader.varint32()?);
    if u64::from(inner) + u64::from(len) > u64::from(raw) {
        return Err(FormatError::Malformed { what: "locator" });
    }
    Ok(Locator { pack, offset, stored, raw, codec, inner, len })
}

/// Appends a reference to a metadata record.
pub fn put_record(writer: &mut Writer, packs: &mut PackDictionary, at: &RecordRef) {
    let RecordRef { pack, offset, stored, raw, codec, hash } = *at;
    put_stored(writer, packs, Stored { pack, offset, stored, raw, codec });
    writer.array(hash.as_bytes());
}

/// A reference to a metadata record.
pub fn take_record(reader: &mut Reader<'_>, packs: &[PackId]) -> Result<RecordRef, FormatError> {
    let Stored { pack, offset, stored, raw, codec } = take_stored(reader, packs)?;
    if codec == Codec::Frames {
        return Err(FormatError::Malformed { what: "codec of a metadata record" });
    }
    Ok(RecordRef { pack, offset, stored, raw, codec, hash: ObjectHash(reader.array()?) })
}
