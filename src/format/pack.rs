//! Packs: many records in one object, found again by offset.
//!
//! ```text
//! envelope head 48 (kind 2, body length 0) · pack kind u8 · intent 16 · run u64 · seq u32 · BLAKE3 of these 32
//! record, record, …            a record over 64 KiB raw has its proof just in front
//! footer                       varint records, each {offset u64, stored u32, raw u32, codec u8}
//!                              varint chunks, each {id 32, record u32, inner u32, length u32}
//! footer length u32 · BLAKE3 of the footer 32 · "DMPKEND1" 8
//! ```
//!
//! A [`Record`] is made purely and in parallel; a [`PackWriter`] only lays records end to end. Reading needs a
//! [`Locator`] or [`RecordRef`] and never the footer: the footer serves adoption after a crash.
//!
//! # Proofs
//!
//! A record over [`PROOF_ABOVE_BYTES`] raw bytes is stored raw or in frames, and preceded by one 32-byte non-root
//! BLAKE3 chaining value per 16 KiB of raw bytes, then, for frames, the u32 cumulative stored ends of the
//! frames. A part of the record can be verified against the chunk id without the rest (the BLAKE3 paper, 2.4).

use bytes::Bytes;

use super::FormatError;
use super::envelope::{self, HEAD_BYTES, ObjectKind};
use super::wire::{Reader, Writer};
use crate::model::entry::{Codec, Locator, RecordRef};
use crate::model::id::{ChunkId, ContextId, IntentId, ObjectHash, PackId, Run};
use crate::model::limits::{PACK_BYTES_MAX, PACK_BYTES_TARGET_MAX, PROOF_ABOVE_BYTES, RECORD_RAW_BYTES_MAX};

const END_MAGIC: &[u8; 8] = b"DMPKEND1";
/// Bytes of the head: envelope, kind, pack id, hash.
pub const PACK_HEAD_BYTES: usize = HEAD_BYTES + 1 + 28 + 32;
/// Bytes behind the footer.
pub const TRAILER_BYTES: usize = 4 + 32 + 8;
/// Raw bytes under one chaining value of a proof.
const PROOF_GROUP_BYTES: usize = 16 << 10;
/// Raw bytes of one frame of a framed record.
const FRAME_BYTES: usize = 64 << 10;
/// Raw bytes compressed on trial before a large record is compressed.
const TRIAL_BYTES: usize = 4 << 10;
/// zstd's level: 3 is its default, about 300 MB/s a core.
const ZSTD_LEVEL: i32 = 3;
/// Bytes that the last record of a pack can add beyond the target: the largest record, and 1 MiB for its proof, its lines
/// of the footer and the trailer (66 KiB at the most).
const LAST_RECORD_BYTES_MAX: usize = RECORD_RAW_BYTES_MAX + (1 << 20);
const _: () = assert!(PACK_BYTES_TARGET_MAX + LAST_RECORD_BYTES_MAX <= PACK_BYTES_MAX, "a full pack is legal");
/// Bytes of a footer for each record and for each chunk.
const FOOTER_RECORD_BYTES: usize = 8 + 4 + 4 + 1;
const FOOTER_CHUNK_BYTES: usize = 32 + 4 + 4 + 4;

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PackKind {
    /// Chunks.
    Data = 1,
    /// Ranges, pages, extent blocks, large xattr sets.
    Meta = 2,
}

/// A chunk's id, and what will prove a part of it: both from hashing its bytes once.
#[derive(Debug, Clone)]
pub struct HashedChunk {
    id: ChunkId,
    /// Chaining values of the groups; none for a chunk that carries no proof.
    proof: Vec<u8>,
}

impl HashedChunk {
    /// Hashes a chunk.
    pub fn of(raw: &[u8]) -> Self {
        if raw.len() <= PROOF_ABOVE_BYTES {
            return Self { id: ChunkId::of(raw), proof: Vec::new() };
        }
        let values = chaining_values(raw);
        Self { id: ChunkId(root_of(&values)), proof: values.concat() }
    }

    /// The chunk's id.
    pub fn id(&self) -> ChunkId {
        self.id
    }
}

/// One record, encoded and ready to be laid into a pack.
#[derive(Debug)]
pub struct Record {
    proof: Vec<u8>,
    stored: Bytes,
    raw: u32,
    codec: Codec,
    members: Vec<(ChunkId, u32, u32)>,
    /// Hash of the stored bytes, of a metadata record. Chunks are proved by their ids; nobody refers to a data
    /// record by its stored hash.
    hash: ObjectHash,
}

impl Record {
    /// A record of one chunk, whose bytes are `raw`.
    pub fn chunk(chunk: &HashedChunk, raw: Bytes) -> Self {
        let members = vec![(chunk.id, 0, raw.len() as u32)];
        Self::encode(raw, chunk.proof.clone(), members)
    }

    /// A small-file block: several chunks, compressed together.
    pub fn block<'a>(chunks: impl IntoIterator<Item = (ChunkId, &'a [u8])>) -> Self {
        let mut raw = Vec::new();
        let mut members = Vec::new();
        for (id, bytes) in chunks {
            members.push((id, raw.len() as u32, bytes.len() as u32));
            raw.extend_from_slice(bytes);
        }
        let proof = HashedChunk::of(&raw).proof;
        Self::encode(raw.into(), proof, members)
    }

    /// A metadata record.
    pub fn meta(raw: impl Into<Bytes>) -> Self {
        let raw = raw.into();
        let len = raw.len() as u32;
        let (stored, codec) = compress_whole(raw);
        let hash = ObjectHash::of(&stored);
        Self { proof: Vec::new(), stored, raw: len, codec, members: Vec::new(), hash }
    }

    fn encode(raw: Bytes, mut proof: Vec<u8>, members: Vec<(ChunkId, u32, u32)>) -> Self {
        let (len, hash) = (raw.len() as u32, ObjectHash([0; 32]));
        if raw.len() <= PROOF_ABOVE_BYTES {
            let (stored, codec) = compress_whole(raw);
            return Self { proof, stored, raw: len, codec, members, hash };
        }
        let framed = if compresses(&raw) { frames(&raw) } else { None };
        let (stored, codec) = match framed {
            Some((stored, ends)) => {
                ends.iter().for_each(|end| proof.extend_from_slice(&end.to_le_bytes()));
                (stored.into(), Codec::Frames)
            }
            None => (raw, Codec::Raw),
        };
        Self { proof, stored, raw: len, codec, members, hash }
    }

    /// Hash of the stored bytes of a metadata record: what a [`RecordRef`] to it will say.
    pub fn stored_hash(&self) -> ObjectHash {
        self.hash
    }

    /// Raw bytes of the record.
    pub fn raw_len(&self) -> usize {
        self.raw as usize
    }

    /// Bytes that the record takes in a pack, its proof included.
    pub fn len(&self) -> usize {
        self.proof.len() + self.stored.len()
    }

    /// Whether the record holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn compress_whole(raw: Bytes) -> (Bytes, Codec) {
    match zstd::bulk::compress(&raw, ZSTD_LEVEL) {
        Ok(small) if small.len() < raw.len() => (small.into(), Codec::Zstd),
        _ => (raw, Codec::Raw),
    }
}

/// Whether 4 KiB from the middle shrink by an eighth: cheap, and right for nearly all real data.
fn compresses(raw: &[u8]) -> bool {
    let at = (raw.len() - TRIAL_BYTES) / 2;
    let trial = zstd::bulk::compress(&raw[at..at + TRIAL_BYTES], 1);
    trial.is_ok_and(|small| small.len() < TRIAL_BYTES - TRIAL_BYTES / 8)
}

fn frames(raw: &[u8]) -> Option<(Vec<u8>, Vec<u32>)> {
    let mut stored = Vec::with_capacity(raw.len() / 2);
    let mut ends = Vec::new();
    for frame in raw.chunks(FRAME_BYTES) {
        stored.extend_from_slice(&zstd::bulk::compress(frame, ZSTD_LEVEL).ok()?);
        ends.push(stored.len() as u32);
    }
    (stored.len() < raw.len()).then_some((stored, ends))
}

/// The chaining value of each group: a subtree of BLAKE3's tree, because 16 KiB are a power of two.
fn chaining_values(raw: &[u8]) -> Vec<[u8; 32]> {
    use blake3::hazmat::HasherExt;
    let value = |(number, group): (usize, &[u8])| {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset((number * PROOF_GROUP_BYTES) as u64);
        hasher.update(group).finalize_non_root()
    };
    raw.chunks(PROOF_GROUP_BYTES).enumerate().map(value).collect()
}

/// The hash over two groups and more.
fn root_of(values: &[[u8; 32]]) -> [u8; 32] {
    use blake3::hazmat::{Mode, merge_subtrees_root};
    let (left, right) = values.split_at(left_groups(values.len()));
    *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
}

/// The chaining value over some groups. As deep as the logarithm of their number: 10 for the largest chunk.
fn subtree(values: &[[u8; 32]]) -> [u8; 32] {
    use blake3::hazmat::{Mode, merge_subtrees_non_root};
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_groups(values.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// Groups on the left: the largest power of two that leaves something for the right (the BLAKE3 paper, 2.1).
fn left_groups(groups: usize) -> usize {
    debug_assert!(groups > 1, "one group has no parent");
    groups.div_ceil(2).next_power_of_two()
}

/// Where a record came to lie.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The record itself, as metadata names it.
    pub record: RecordRef,
    /// Its chunks, as rows name them.
    pub chunks: Vec<(ChunkId, Locator)>,
}

/// A pack that is complete.
#[derive(Debug, Clone)]
pub struct FinishedPack {
    /// Its identity.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Its bytes.
    pub bytes: Bytes,
    /// Hash of its footer.
    pub footer_hash: ObjectHash,
}

/// Lays records end to end.
#[derive(Debug)]
pub struct PackWriter {
    id: PackId,
    kind: PackKind,
    bytes: Vec<u8>,
    records: Vec<(u64, u32, u32, Codec)>,
    chunks: Vec<(ChunkId, u32, u32, u32)>,
}

impl PackWriter {
    /// An empty pack, which its writer will finish as soon as its [`PackWriter::len`] reaches `target_bytes`.
    pub fn new(context: ContextId, id: PackId, kind: PackKind, target_bytes: usize) -> Self {
        Self::in_buffer(Vec::new(), context, id, kind, target_bytes)
    }

    /// The same in the memory of an earlier pack, which is there already.
    pub fn in_buffer(mut bytes: Vec<u8>, context: ContextId, id: PackId, kind: PackKind, target_bytes: usize) -> Self {
        bytes.clear();
        // Room for the record that reaches the target, however large: address space, which is no memory before it is
        // written to. So no pack is ever copied while it grows.
        bytes.reserve(target_bytes.min(PACK_BYTES_TARGET_MAX) + LAST_RECORD_BYTES_MAX);
        bytes.extend_from_slice(&envelope::head(ObjectKind::Pack, context, 0));
        bytes.push(kind as u8);
        bytes.extend_from_slice(&id.intent.to_bytes());
        bytes.extend_from_slice(&id.run.0.to_le_bytes());
        bytes.extend_from_slice(&id.seq.to_le_bytes());
        let hash = ObjectHash::of(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        Self { id, kind, bytes, records: Vec::new(), chunks: Vec::new() }
    }

    /// Appends `record` and says where it lies.
    pub fn append(&mut self, record: Record) -> Placed {
        self.bytes.extend_from_slice(&record.proof);
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&record.stored);
        let number = self.records.len() as u32;
        let stored = record.stored.len() as u32;
        self.records.push((offset, stored, record.raw, record.codec));
        let place = |(id, inner, len): (ChunkId, u32, u32)| {
            let codec = record.codec;
            (id, Locator { pack: self.id, offset, stored, raw: record.raw, codec, inner, len })
        };
        let chunks: Vec<_> = record.members.iter().copied().map(place).collect();
        self.chunks.extend(record.members.iter().map(|(id, inner, len)| (*id, number, *inner, *len)));
        let Record { raw, codec, hash, .. } = record;
        let record = RecordRef { pack: self.id, offset, stored, raw, codec, hash };
        Placed { record, chunks }
    }

    /// Bytes that the pack would have if it were finished now.
    pub fn len(&self) -> usize {
        let footer = self.records.len() * FOOTER_RECORD_BYTES + self.chunks.len() * FOOTER_CHUNK_BYTES;
        self.bytes.len() + footer + TRAILER_BYTES
    }

    /// Whether no record was appended.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Appends the footer.
    pub fn finish(mut self) -> FinishedPack {
        let mut footer = Writer::new();
        footer.varint(self.records.len() as u64);
        for (offset, stored, raw, codec) in &self.records {
            footer.u64(*offset);
            footer.u32(*stored);
            footer.u32(*raw);
            footer.u8(*codec as u8);
        }
        footer.varint(self.chunks.len() as u64);
        for (id, record, inner, len) in &self.chunks {
            footer.array(id.as_bytes());
            footer.u32(*record);
            footer.u32(*inner);
            footer.u32(*len);
        }
        let footer = footer.into_bytes();
        let footer_hash = ObjectHash::of(&footer);
        self.bytes.extend_from_slice(&footer);
        self.bytes.extend_from_slice(&(footer.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(footer_hash.as_bytes());
        self.bytes.extend_from_slice(END_MAGIC);
        FinishedPack { id: self.id, kind: self.kind, bytes: Bytes::from(self.bytes), footer_hash }
    }
}

/// What a pack's head says: its kind and identity, checked against its hash and the context.
pub fn open_pack_head(context: ContextId, bytes: &[u8]) -> Result<(PackKind, PackId), FormatError> {
    let bytes = bytes.get(..PACK_HEAD_BYTES).ok_or(FormatError::Truncated)?;
    let head = envelope::open_head(bytes)?;
    let (body, hash) = bytes.split_at(PACK_HEAD_BYTES - 32);
    if ObjectHash::of(body).as_bytes()[..] != *hash {
        return Err(FormatError::Hash);
    }
    if head.kind != ObjectKind::Pack {
        return Err(FormatError::WrongKind { expected: ObjectKind::Pack.name(), found: head.kind.name() });
    }
    if head.context != context {
        return Err(FormatError::WrongContext);
    }
    let mut reader = Reader::new(&body[HEAD_BYTES..]);
    let kind = match reader.u8()? {
        1 => PackKind::Data,
        2 => PackKind::Meta,
        _ => return Err(FormatError::Malformed { what: "pack kind" }),
    };
    let intent = IntentId::from_bytes(reader.array()?);
    Ok((kind, PackId { intent, run: Run(reader.u64()?), seq: reader.u32()? }))
}

/// The trailer of a pack: length and hash of its footer.
pub fn open_trailer(bytes: &[u8]) -> Result<(usize, ObjectHash), FormatError> {
    let at = bytes.len().checked_sub(TRAILER_BYTES).ok_or(FormatError::Truncated)?;
    let mut reader = Reader::new(&bytes[at..]);
    let length = reader.u32()? as usize;
    let hash = ObjectHash(reader.array()?);
    if reader.take(END_MAGIC.len())? != END_MAGIC {
        return Err(FormatError::Malformed { what: "end of pack" });
    }
    if length > PACK_BYTES_MAX {
        return Err(FormatError::TooLarge { what: "footer", limit: PACK_BYTES_MAX as u64, found: length as u64 });
    }
    Ok((length, hash))
}

/// The chunks that a footer lists, of the pack `id`.
pub fn open_footer(id: PackId, footer: &[u8], hash: ObjectHash) -> Result<Vec<(ChunkId, Locator)>, FormatError> {
    if ObjectHash::of(footer) != hash {
        return Err(FormatError::Hash);
    }
    let mut reader = Reader::new(footer);
    let count = reader.count(FOOTER_RECORD_BYTES)?;
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let (offset, stored, raw) = (reader.u64()?, reader.u32()?, reader.u32()?);
        check_place(offset, stored, raw)?;
        records.push((offset, stored, raw, codec_from(reader.u8()?)?));
    }
    let count = reader.count(FOOTER_CHUNK_BYTES)?;
    let mut chunks = Vec::with_capacity(count);
    for _ in 0..count {
        let chunk = ChunkId(reader.array()?);
        let (record, inner, len) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let malformed = FormatError::Malformed { what: "chunk in a footer" };
        let (offset, stored, raw, codec) = *records.get(record as usize).ok_or(malformed.clone())?;
        if u64::from(inner) + u64::from(len) > u64::from(raw) {
            return Err(malformed);
        }
        chunks.push((chunk, Locator { pack: id, offset, stored, raw, codec, inner, len }));
    }
    reader.finish()?;
    Ok(chunks)
}

/// Refuses a record that no pack can hold: whoever reads it adds these numbers and allocates as many bytes.
pub fn check_place(offset: u64, stored: u32, raw: u32) -> Result<(), FormatError> {
    let end = offset.checked_add(stored.into());
    let in_pack = end.is_some_and(|end| end <= PACK_BYTES_MAX as u64);
    if !in_pack || stored > raw || raw as usize > RECORD_RAW_BYTES_MAX {
        return Err(FormatError::Malformed { what: "place of a record" });
    }
    Ok(())
}

/// A codec from its byte.
pub fn codec_from(byte: u8) -> Result<Codec, FormatError> {
    match byte {
        0 => Ok(Codec::Raw),
        1 => Ok(Codec::Zstd),
        2 => Ok(Codec::Frames),
        _ => Err(FormatError::Malformed { what: "codec" }),
    }
}

/// The raw bytes of a record; exactly `raw` of them.
pub fn decode_record(codec: Codec, stored: &Bytes, raw: u32) -> Result<Bytes, FormatError> {
    if raw as usize > RECORD_RAW_BYTES_MAX {
        let limit = RECORD_RAW_BYTES_MAX as u64;
        return Err(FormatError::TooLarge { what: "record", limit, found: u64::from(raw) });
    }
    let malformed = |_| FormatError::Malformed { what: "compressed record" };
    let bytes = match codec {
        Codec::Raw => stored.clone(),
        Codec::Zstd => Bytes::from(zstd::bulk::decompress(stored, raw as usize).map_err(malformed)?),
        Codec::Frames => {
            let mut bytes = Vec::with_capacity(raw as usize);
            let mut rest = &stored[..];
            while bytes.len() < raw as usize {
                let size = zstd::zstd_safe::find_frame_compressed_size(rest)
                    .map_err(|_| FormatError::Malformed { what: "frame" })?;
                let (frame, after) = rest.split_at_checked(size).ok_or(FormatError::Truncated)?;
                let want = FRAME_BYTES.min(raw as usize - bytes.len());
                bytes.extend_from_slice(&zstd::bulk::decompress(frame, want).map_err(malformed)?);
                if bytes.len() % FRAME_BYTES != 0 && bytes.len() != raw as usize {
                    return Err(FormatError::Malformed { what: "frame" });
                }
                rest = after;
            }
            if !rest.is_empty() {
                return Err(FormatError::Malformed { what: "bytes behind the last frame" });
            }
            Bytes::from(bytes)
        }
    };
    if bytes.len() != raw as usize {
        return Err(FormatError::Malformed { what: "length of a record" });
    }
    Ok(bytes)
}

/// The raw bytes of a metadata record, whose stored bytes are checked against the reference's hash.
pub fn decode_meta(at: &RecordRef, stored: &Bytes) -> Result<Bytes, FormatError> {
    if ObjectHash::of(stored) != at.hash {
        return Err(FormatError::Hash);
    }
    decode_record(at.codec, stored, at.raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> PackId {
        PackId { intent: IntentId::from_parts(3, 4), run: Run(5), seq: 6 }
    }

    fn context() -> ContextId {
        ContextId::from_parts(1, 2)
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252u64;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    }

    fn record(raw: &[u8]) -> Record {
        Record::chunk(&HashedChunk::of(raw), Bytes::copy_from_slice(raw))
    }

    fn stored(pack: &FinishedPack, at: &Locator) -> Bytes {
        pack.bytes.slice(at.offset as usize..at.offset as usize + at.stored as usize)
    }

    #[test]
    fn every_chunk_of_every_codec_comes_back_by_its_locator_and_by_the_footer() {
        let text = b"some text that repeats, ".repeat(9000);
        let inputs = [noise(300), noise(200_000), text.clone(), text[..5000].to_vec()];
        let mut writer = PackWriter::new(context(), id(), PackKind::Data, 1 << 20);
        let mut placed = Vec::new();
        for raw in &inputs {
            placed.extend(writer.append(record(raw)).chunks);
        }
        let members = [&b"alpha"[..], b"beta", b""];
        placed.extend(writer.append(Record::block(members.map(|m| (ChunkId::of(m), m)))).chunks);
        let len = writer.len();
        let pack = writer.finish();
        assert!(pack.bytes.len() - len <= 8, "the length foresees the footer, but for its two counts");
        for (chunk, at) in &placed {
            let raw = decode_record(at.codec, &stored(&pack, at), at.raw).unwrap();
            assert_eq!(ChunkId::of(&raw[at.inner as usize..(at.inner + at.len) as usize]), *chunk);
        }
        let (length, hash) = open_trailer(&pack.bytes).unwrap();
        let end = pack.bytes.len() - TRAILER_BYTES;
        assert_eq!(open_footer(id(), &pack.bytes[end - length..end], hash).unwrap(), placed);
        assert_eq!(open_pack_head(context(), &pack.bytes).unwrap(), (PackKind::Data, id()));
        assert!(matches!(placed[1].1.codec, Codec::Raw));
        assert!(matches!(placed[2].1.codec, Codec::Frames));
    }

    #[test]
    fn a_proof_lies_in_front_of_its_record() {
        let big = noise(100_000);
        let mut writer = PackWriter::new(context(), id(), PackKind::Data, 1 << 20);
        let at = writer.append(record(&big)).chunks[0].1;
        let pack = writer.finish();
        let proof = &pack.bytes[at.offset as usize - 7 * 32..at.offset as usize];
        let values: Vec<_> = proof.chunks(32).map(|value| value.try_into().unwrap()).collect();
        assert_eq!(values, chaining_values(&big));
        assert_eq!(root_of(&values), ChunkId::of(&big).0, "the groups lead to the id");
    }

    #[test]
    fn a_chunk_hashed_for_its_proof_has_the_id_of_blake3_at_every_edge() {
        let all = noise((3 << 20) + 2);
        let powers = (0..=21).map(|log2| 1usize << log2);
        let groups = (1..=12).chain([63, 64, 65, 127, 128, 129, 191, 192]).map(|n| n * PROOF_GROUP_BYTES);
        for edge in powers.chain(groups).chain([0, PROOF_ABOVE_BYTES, 3 << 20]) {
            for len in [edge.saturating_sub(1), edge, edge + 1] {
                assert_eq!(HashedChunk::of(&all[..len]).id(), ChunkId::of(&all[..len]), "{len} bytes");
            }
        }
    }

    #[test]
    fn a_pack_is_never_copied_while_it_fills() {
        let target = 1 << 20;
        let mut writer = PackWriter::new(context(), id(), PackKind::Data, target);
        let start = writer.bytes.as_ptr();
        while writer.len() < target {
            writer.append(record(&noise(300_000)));
        }
        assert_eq!(writer.finish().bytes.as_ptr(), start);
    }

    #[test]
    fn a_record_that_is_stored_as_it_is_shares_the_bytes_it_was_given() {
        for len in [300, 200_000] {
            let raw = Bytes::from(noise(len));
            let made = Record::chunk(&HashedChunk::of(&raw), raw.clone());
            assert_eq!(made.stored.as_ptr(), raw.as_ptr(), "{len} bytes");
        }
    }

    #[test]
    fn the_golden_pack_still_reads() {
        let pack = Bytes::from_static(include_bytes!("../../tests/golden/pack.bin"));
        let (length, hash) = open_trailer(&pack).unwrap();
        let end = pack.len() - TRAILER_BYTES;
        let chunks = open_footer(id(), &pack[end - length..end], hash).unwrap();
        let (chunk, at) = chunks[0];
        let stored = pack.slice(at.offset as usize..(at.offset + u64::from(at.stored)) as usize);
        assert_eq!(chunk, ChunkId::of(b"golden chunk"));
        assert_eq!(decode_record(at.codec, &stored, at.raw).unwrap(), &b"golden chunk"[..]);
    }

    #[test]
    fn a_footer_that_names_a_place_no_pack_has_is_refused() {
        let footer = |offset: u64, stored: u32, raw: u32| {
            let mut footer = Writer::new();
            footer.varint(1);
            footer.u64(offset);
            footer.u32(stored);
            footer.u32(raw);
            footer.u8(0);
            footer.varint(0);
            let footer = footer.into_bytes();
            open_footer(id(), &footer, ObjectHash::of(&footer))
        };
        assert!(footer(0, 7, 7).is_ok());
        assert!(footer(PACK_BYTES_MAX as u64 - 7, 7, 7).is_ok());
        assert!(footer(PACK_BYTES_MAX as u64 - 6, 7, 7).is_err());
        assert!(footer(u64::MAX - 1, 7, 7).is_err(), "offset and length do not overflow");
        assert!(footer(0, 8, 7).is_err(), "stored is never longer than raw");
        assert!(footer(0, 1, RECORD_RAW_BYTES_MAX as u32 + 1).is_err());
    }

    #[test]
    fn bytes_behind_the_last_frame_are_refused() {
        let text = b"some text that repeats, ".repeat(9000);
        let made = record(&text);
        assert_eq!(made.codec, Codec::Frames);
        assert_eq!(decode_record(Codec::Frames, &made.stored, made.raw).unwrap(), text);
        let longer = Bytes::from([&made.stored[..], b"x"].concat());
        assert!(decode_record(Codec::Frames, &longer, made.raw).is_err());
    }

    #[test]
    fn a_length_of_an_attacker_is_refused_before_anything_is_allocated() {
        let stored = Bytes::from_static(b"x");
        assert!(matches!(decode_record(Codec::Zstd, &stored, u32::MAX), Err(FormatError::TooLarge { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_chunk_hashed_for_its_proof_has_the_id_of_blake3(len in 0usize..3 << 20, byte: u8) {
            let mut raw = noise(len);
            if let Some(last) = raw.last_mut() {
                *last = byte;
            }
            prop_assert_eq!(HashedChunk::of(&raw).id(), ChunkId::of(&raw));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, raw in 0u32..2_000_000) {
            let stored = Bytes::from(bytes);
            for codec in [Codec::Raw, Codec::Zstd, Codec::Frames] {
                let _ = decode_record(codec, &stored, raw);
            }
            let _ = open_footer(id(), &stored, ObjectHash::of(&stored));
            let _ = open_trailer(&stored);
            let _ = open_pack_head(context(), &stored);
        }
    }
}
