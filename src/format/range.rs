//! Rows and ranges: a tree as two sorted tables.
//!
//! A tree is two tables, D (directories) and F (everything else), each sorted by key. A key is
//! `parent with '/' as 00 · 00 00 · name`, compared as unsigned bytes; the root is `00 00`. So the rows of one
//! directory are contiguous, and so are those of one subtree: key order is a walk that visits a directory's own rows by
//! name and then descends in the same order. Members of a hard-link group name a *link row*, whose parent is the byte
//! 00 and whose name is the group's id in hex: link rows come first in F.
//!
//! A range is a run of rows in one metadata record:
//!
//! ```text
//! owners: varint n, each {permissions u16, uid u32, gid u32} · packs: varint n, each {intent 16, run u64, seq u32}
//! rows: varint n, each:
//!   shared bytes with the previous key varint · rest of the key string · tag u8 (low 4 bits kind; 0x80 xattrs,
//!   0x40 nlink, 0x20 b3sum) · owner varint · mtime signed, varint · [xattrs] · [nlink varint] · [b3sum 32] · body
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::FormatError;
use super::pack::{check_place, codec_from};
use super::wire::{Reader, Writer};
use crate::model::clock::Timestamp;
use crate::model::entry::{
    Attributes, BlockList, BlockRef, Body, Codec, Content, Entry, Extent, FileBody, Locator, RecordRef, TreeCounts,
    Xattrs,
};
use crate::model::id::{BlockId, ChunkId, ContentId, IntentId, LinkId, ObjectHash, PackId, Run};
use crate::model::limits::{
    EXTENT_BLOCK_CHUNKS, FILE_BYTES_MAX, INLINE_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, RECORD_RAW_BYTES_MAX,
    ROW_EXTENT_BLOCKS_MAX, XATTR_BYTES_MAX,
};
use crate::model::name::FileName;
use crate::model::path::TreePath;

/// Rows that a range may hold at the most.
pub const RANGE_ROWS_MAX: usize = 16_384;
/// Rows that a range holds at least, unless the table ends or its bytes run out.
pub const RANGE_ROWS_MIN: usize = 1_024;
/// Raw bytes after which a range is cut.
pub const RANGE_BYTES_MAX: usize = 4 << 20;
/// A range is cut after a key whose hash is 0 modulo this: unchanged neighbours keep their cuts.
const CUT_MODULUS: u64 = 4_096;

/// The key of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey(Bytes);

impl RowKey {
    /// The tree's root directory.
    pub fn root() -> Self {
        Self(Bytes::from_static(&[0, 0]))
    }

    /// The entry `name` of the directory `parent`.
    pub fn child(parent: &TreePath, name: &FileName) -> Self {
        let mut key = Self::children(parent);
        key.extend_from_slice(name.as_bytes());
        Self(Bytes::from(key))
    }

    /// The row of a hard-link group.
    pub fn link(link: LinkId) -> Self {
        let mut key = vec![0, 0, 0];
        key.extend(link.to_bytes().iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
        Self(Bytes::from(key))
    }

    /// The key of an entry by its path; the root's for the empty path.
    pub fn of_path(path: &TreePath) -> Self {
        path.split_last().map_or_else(Self::root, |(parent, name)| Self::child(&parent, &name))
    }

    /// What the keys of all children of `parent` begin with.
    pub fn children(parent: &TreePath) -> Vec<u8> {
        let mut key: Vec<u8> = parent.as_bytes().iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect();
        key.extend_from_slice(&[0, 0]);
        key
    }

    /// A key from its bytes; shapes that no tree has are refused, so that a place in a tree has one key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let malformed = FormatError::Malformed { what: "row key" };
        if bytes.len() > PATH_BYTES_MAX + NAME_BYTES_MAX + 2 {
            return Err(malformed);
        }
        let key = Self(Bytes::copy_from_slice(bytes));
        let is_sound = if key.is_link() {
            bytes[3..].iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        } else {
            // A '/' of a path is 00 in its key.
            key == Self::root() || (!bytes.contains(&b'/') && key.parts().is_some())
        };
        if is_sound { Ok(key) } else { Err(malformed) }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the row of a hard-link group.
    pub fn is_link(&self) -> bool {
        self.0.len() == 35 && self.0.starts_with(&[0, 0, 0])
    }

    /// The hard-link group of a link row; `None` for any other.
    pub fn link_id(&self) -> Option<LinkId> {
        let digits = self.0.get(3..).filter(|_| self.is_link())?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(LinkId::from_bytes(bytes))
    }

    /// The directory and the name; `None` for the root and for link rows.
    pub fn parts(&self) -> Option<(TreePath, FileName)> {
        if self.is_link() {
            return None;
        }
        let cut = self.0.windows(2).position(|pair| pair == [0, 0])?;
        let parent: Vec<u8> = self.0[..cut].iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
        let name = FileName::new(self.0.slice(cut + 2..)).ok()?;
        Some((TreePath::parse(&parent).ok()?, name))
    }

    /// The path of the entry; `None` for link rows.
    pub fn path(&self) -> Option<TreePath> {
        if *self == Self::root() {
            return Some(TreePath::root());
        }
        self.parts().map(|(parent, name)| parent.join(&name))
    }

    /// The name of a child of the directory whose children's keys begin with `prefix`; `None` for any other key.
    pub fn name_behind(&self, prefix: &[u8]) -> Option<FileName> {
        if self.is_link() || !self.0.starts_with(prefix) {
            return None;
        }
        FileName::new(self.0.slice(prefix.len()..)).ok()
    }

    /// Whether a range may end after this key.
    pub fn cuts(&self) -> bool {
        let hash = ObjectHash::of(&self.0);
        let head: [u8; 8] = hash.0[..8].try_into().expect("8 of 32 bytes");
        u64::from_le_bytes(head).is_multiple_of(CUT_MODULUS)
    }
}

/// What a row says.
#[allow(clippy::large_enum_variant, reason = "nearly every row is an entry: a box would only cost")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowValue {
    /// An entry.
    Entry(Entry),
    /// A name of a hard-link group; the entry is in the group's link row.
    Link(LinkId),
    /// Removed in this layer.
    Tombstone,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where it stands.
    pub key: RowKey,
    /// What it says.
    pub value: RowValue,
}

mod tag {
    pub const DIRECTORY: u8 = 0;
    pub const INLINE: u8 = 1;
    pub const CHUNK: u8 = 2;
    pub const HOLE: u8 = 3;
    pub const BLOCKS: u8 = 4;
    pub const LISTED: u8 = 5;
    pub const SYMLINK: u8 = 6;
    pub const FIFO: u8 = 7;
    pub const SOCKET: u8 = 8;
    pub const CHAR: u8 = 9;
    pub const BLOCK: u8 = 10;
    pub const LINK: u8 = 11;
    pub const TOMBSTONE: u8 = 12;
    pub const OPAQUE_DIRECTORY: u8 = 13;
    pub const B3SUM: u8 = 0x20;
    pub const NLINK: u8 = 0x40;
    pub const XATTRS: u8 = 0x80;
}

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

fn pack_at(packs: &[PackId], reader: &mut Reader<'_>) -> Result<PackId, FormatError> {
    let number = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    packs.get(number).copied().ok_or(FormatError::Malformed { what: "pack number" })
}

fn take_u32(reader: &mut Reader<'_>) -> Result<u32, FormatError> {
    u32::try_from(reader.varint()?).map_err(|_| FormatError::Malformed { what: "32-bit number" })
}

/// Appends a chunk and where it lies.
pub fn put_locator(writer: &mut Writer, packs: &mut PackDictionary, at: &Locator) {
    writer.varint(packs.number(at.pack));
    writer.varint(at.offset);
    writer.varint(at.stored.into());
    writer.varint(at.raw.into());
    writer.u8(at.codec as u8);
    writer.varint(at.inner.into());
    writer.varint(at.len.into());
}

/// A locator whose chunk lies inside its record.
pub fn take_locator(reader: &mut Reader<'_>, packs: &[PackId]) -> Result<Locator, FormatError> {
    let pack = pack_at(packs, reader)?;
    let offset = reader.varint()?;
    let (stored, raw) = (take_u32(reader)?, take_u32(reader)?);
    let codec = codec_from(reader.u8()?)?;
    let (inner, len) = (take_u32(reader)?, take_u32(reader)?);
    check_place(offset, stored, raw)?;
    if u64::from(inner) + u64::from(len) > u64::from(raw) {
        return Err(FormatError::Malformed { what: "locator" });
    }
    Ok(Locator { pack, offset, stored, raw, codec, inner, len })
}

/// Appends a reference to a metadata record.
pub fn put_record(writer: &mut Writer, packs: &mut PackDictionary, at: &RecordRef) {
    writer.varint(packs.number(at.pack));
    writer.varint(at.offset);
    writer.varint(at.stored.into());
    writer.varint(at.raw.into());
    writer.u8(at.codec as u8);
    writer.array(at.hash.as_bytes());
}

/// A reference to a metadata record.
pub fn take_record(reader: &mut Reader<'_>, packs: &[PackId]) -> Result<RecordRef, FormatError> {
    let pack = pack_at(packs, reader)?;
    let offset = reader.varint()?;
    let (stored, raw) = (take_u32(reader)?, take_u32(reader)?);
    let codec = codec_from(reader.u8()?)?;
    check_place(offset, stored, raw)?;
    if codec == Codec::Frames {
        return Err(FormatError::Malformed { what: "codec of a metadata record" });
    }
    Ok(RecordRef { pack, offset, stored, raw, codec, hash: ObjectHash(reader.array()?) })
}

/// Encodes a run of rows.
#[derive(Debug, Default)]
pub struct RangeWriter {
    owners: Vec<(u16, u32, u32)>,
    owner_index: HashMap<(u16, u32, u32), u64>,
    packs: PackDictionary,
    rows: Writer,
    count: usize,
    first: Option<RowKey>,
    last: Vec<u8>,
}

impl RangeWriter {
    /// Appends a row; its key must be greater than the one before.
    pub fn push(&mut self, row: &Row) {
        let key = row.key.as_bytes();
        debug_assert!(self.count == 0 || key > &self.last[..], "rows come in key order");
        let shared = key.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        self.rows.varint(shared as u64);
        self.rows.string(&key[shared..]);
        self.last.clear();
        self.last.extend_from_slice(key);
        self.first.get_or_insert_with(|| row.key.clone());
        self.count += 1;
        match &row.value {
            RowValue::Entry(entry) => self.entry(entry),
            RowValue::Link(link) => {
                self.rows.u8(tag::LINK);
                self.rows.array(&link.to_bytes());
            }
            RowValue::Tombstone => self.rows.u8(tag::TOMBSTONE),
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let b3sum = match &entry.body {
            Body::File(file) => file.b3sum,
            _ => None,
        };
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = flag(!entry.xattrs.is_empty(), tag::XATTRS)
            | flag(entry.nlink != 1, tag::NLINK)
            | flag(b3sum.is_some(), tag::B3SUM);
        self.rows.u8(body_tag(&entry.body) | flags);
        let owner = (entry.attributes.permissions, entry.attributes.uid, entry.attributes.gid);
        let owners = &mut self.owners;
        let number = *self.owner_index.entry(owner).or_insert_with(|| {
            owners.push(owner);
            owners.len() as u64 - 1
        });
        self.rows.varint(number);
        self.rows.signed(entry.attributes.mtime.secs);
        self.rows.varint(entry.attributes.mtime.nanos.into());
        if !entry.xattrs.is_empty() {
            self.rows.varint(entry.xattrs.len() as u64);
            for (name, value) in entry.xattrs.iter() {
                self.rows.string(name);
                self.rows.string(value);
            }
        }
        if entry.nlink != 1 {
            self.rows.varint(entry.nlink.into());
        }
        if let Some(sum) = b3sum {
            self.rows.array(&sum);
        }
        self.body(&entry.body);
    }

    fn body(&mut self, body: &Body) {
        match body {
            Body::Directory { counts, .. } => {
                self.rows.varint(counts.files);
                self.rows.varint(counts.bytes);
                self.rows.varint(counts.directories);
            }
            Body::File(file) => {
                self.rows.varint(file.size);
                self.content(&file.content);
            }
            Body::Symlink(target) => self.rows.string(target),
            Body::Fifo | Body::Socket => {}
            Body::CharDevice(rdev) | Body::BlockDevice(rdev) => self.rows.varint((*rdev).into()),
        }
    }

    fn content(&mut self, content: &Content) {
        match content {
            Content::Inline(bytes) => self.rows.string(bytes),
            Content::Chunk(Extent { id, at }) => {
                self.rows.array(id.as_bytes());
                if let Some(at) = at {
                    put_locator(&mut self.rows, &mut self.packs, at);
                }
            }
            Content::Extents { id, blocks } => {
                self.rows.array(id.as_bytes());
                match blocks {
                    BlockList::Here(blocks) => {
                        self.rows.varint(blocks.len() as u64);
                        for block in blocks.iter() {
                            self.rows.array(block.id.as_bytes());
                            put_record(&mut self.rows, &mut self.packs, &block.at);
                        }
                    }
                    BlockList::Listed { count, at } => {
                        self.rows.varint((*count).into());
                        put_record(&mut self.rows, &mut self.packs, at);
                    }
                }
            }
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.count
    }

    /// Packs that the rows name.
    pub fn packs(&self) -> &[PackId] {
        self.packs.ids()
    }

    /// Whether the range should end after `key`, its newest.
    pub fn is_full(&self, key: &RowKey) -> bool {
        self.count >= RANGE_ROWS_MAX
            || self.rows.len() >= RANGE_BYTES_MAX
            || (self.count >= RANGE_ROWS_MIN && key.cuts())
    }

    /// The first key and the raw bytes; `None` without rows.
    pub fn finish(self) -> Option<(RowKey, Vec<u8>)> {
        let first = self.first?;
        let mut writer = Writer::new();
        writer.varint(self.owners.len() as u64);
        for (permissions, uid, gid) in &self.owners {
            writer.u16(*permissions);
            writer.u32(*uid);
            writer.u32(*gid);
        }
        self.packs.put(&mut writer);
        writer.varint(self.count as u64);
        writer.array(&self.rows.into_bytes());
        Some((first, writer.into_bytes()))
    }
}

fn body_tag(body: &Body) -> u8 {
    match body {
        Body::Directory { opaque: false, .. } => tag::DIRECTORY,
        Body::Directory { opaque: true, .. } => tag::OPAQUE_DIRECTORY,
        Body::File(FileBody { content, .. }) => match content {
            Content::Inline(_) => tag::INLINE,
            Content::Chunk(Extent { at: Some(_), .. }) => tag::CHUNK,
            Content::Chunk(Extent { at: None, .. }) => tag::HOLE,
            Content::Extents { blocks: BlockList::Here(_), .. } => tag::BLOCKS,
            Content::Extents { blocks: BlockList::Listed { .. }, .. } => tag::LISTED,
        },
        Body::Symlink(_) => tag::SYMLINK,
        Body::Fifo => tag::FIFO,
        Body::Socket => tag::SOCKET,
        Body::CharDevice(_) => tag::CHAR,
        Body::BlockDevice(_) => tag::BLOCK,
    }
}

/// The rows of a range, in key order.
pub fn decode_range(raw: &[u8]) -> Result<Vec<Row>, FormatError> {
    let mut reader = Reader::new(raw);
    let count = reader.count(10)?;
    let mut owners = Vec::with_capacity(count);
    for _ in 0..count {
        owners.push((reader.u16()?, reader.u32()?, reader.u32()?));
    }
    let packs = take_packs(&mut reader)?;
    let count = reader.count(3)?;
    if count > RANGE_ROWS_MAX {
        return Err(FormatError::TooLarge { what: "rows", limit: RANGE_ROWS_MAX as u64, found: count as u64 });
    }
    let no_xattrs = Xattrs::default();
    let mut rows: Vec<Row> = Vec::with_capacity(count);
    let mut key = Vec::new();
    for _ in 0..count {
        let shared = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        if shared > key.len() {
            return Err(FormatError::Malformed { what: "shared key bytes" });
        }
        key.truncate(shared);
        key.extend_from_slice(reader.string()?);
        let row_key = RowKey::from_bytes(&key)?;
        if rows.last().is_some_and(|last| last.key >= row_key) {
            return Err(FormatError::Malformed { what: "order of rows" });
        }
        let value = take_value(&mut reader, &owners, &packs, &no_xattrs)?;
        rows.push(Row { key: row_key, value });
    }
    reader.finish()?;
    Ok(rows)
}

fn take_value(
    reader: &mut Reader<'_>,
    owners: &[(u16, u32, u32)],
    packs: &[PackId],
    no_xattrs: &Xattrs,
) -> Result<RowValue, FormatError> {
    let tag = reader.u8()?;
    match tag {
        tag::LINK => return Ok(RowValue::Link(LinkId::from_bytes(reader.array()?))),
        tag::TOMBSTONE => return Ok(RowValue::Tombstone),
        _ => {}
    }
    let owner = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let owner = owners.get(owner).ok_or(FormatError::Malformed { what: "owner number" })?;
    let mtime = Timestamp { secs: reader.signed()?, nanos: take_u32(reader)? };
    if mtime.nanos > 999_999_999 || owner.0 > 0o7777 {
        return Err(FormatError::Malformed { what: "attributes" });
    }
    let attributes = Attributes { permissions: owner.0, uid: owner.1, gid: owner.2, mtime };
    let xattrs = if tag & tag::XATTRS != 0 { take_xattrs(reader)? } else { no_xattrs.clone() };
    let nlink = if tag & tag::NLINK != 0 { take_u32(reader)? } else { 1 };
    let b3sum = if tag & tag::B3SUM != 0 { Some(reader.array()?) } else { None };
    let body = take_body(reader, tag & 0x1f, packs, b3sum)?;
    Ok(RowValue::Entry(Entry { attributes, xattrs, nlink, body }))
}

fn take_xattrs(reader: &mut Reader<'_>) -> Result<Xattrs, FormatError> {
    let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut total = 0;
    for _ in 0..reader.count(2)? {
        let (name, value) = (reader.string()?, reader.string()?);
        total += name.len() + value.len();
        if total > XATTR_BYTES_MAX {
            return Err(FormatError::TooLarge { what: "xattrs", limit: XATTR_BYTES_MAX as u64, found: total as u64 });
        }
        if xattrs.last_key_value().is_some_and(|(last, _)| &last[..] >= name) {
            return Err(FormatError::Malformed { what: "order of xattrs" });
        }
        xattrs.insert(name.to_vec(), value.to_vec());
    }
    Ok(Arc::new(xattrs))
}

fn take_body(reader: &mut Reader<'_>, tag: u8, packs: &[PackId], b3sum: Option<[u8; 32]>) -> Result<Body, FormatError> {
    Ok(match tag {
        tag::DIRECTORY | tag::OPAQUE_DIRECTORY => {
            let counts = TreeCounts { files: reader.varint()?, bytes: reader.varint()?, directories: reader.varint()? };
            Body::Directory { counts, opaque: tag == tag::OPAQUE_DIRECTORY }
        }
        tag::INLINE | tag::CHUNK | tag::HOLE | tag::BLOCKS | tag::LISTED => {
            let size = reader.varint()?;
            if size > FILE_BYTES_MAX {
                return Err(FormatError::TooLarge { what: "file", limit: FILE_BYTES_MAX, found: size });
            }
            let content = take_content(reader, tag, packs, size)?;
            Body::File(FileBody { size, content, b3sum })
        }
        tag::SYMLINK => {
            let target = reader.string()?;
            if target.len() > PATH_BYTES_MAX {
                return Err(FormatError::Malformed { what: "target of a symlink" });
            }
            Body::Symlink(Bytes::copy_from_slice(target))
        }
        tag::FIFO => Body::Fifo,
        tag::SOCKET => Body::Socket,
        tag::CHAR => Body::CharDevice(take_u32(reader)?),
        tag::BLOCK => Body::BlockDevice(take_u32(reader)?),
        _ => return Err(FormatError::Malformed { what: "row tag" }),
    })
}

fn take_content(reader: &mut Reader<'_>, tag: u8, packs: &[PackId], size: u64) -> Result<Content, FormatError> {
    let malformed = FormatError::Malformed { what: "content" };
    match tag {
        tag::INLINE => {
            let bytes = reader.string()?;
            if bytes.len() > INLINE_BYTES_MAX || bytes.len() as u64 != size {
                return Err(malformed);
            }
            Ok(Content::Inline(Bytes::copy_from_slice(bytes)))
        }
        tag::HOLE if size > RECORD_RAW_BYTES_MAX as u64 => Err(malformed),
        tag::HOLE => Ok(Content::Chunk(Extent { id: ChunkId(reader.array()?), at: None })),
        tag::CHUNK => {
            let id = ChunkId(reader.array()?);
            let at = take_locator(reader, packs)?;
            if u64::from(at.len) != size {
                return Err(malformed);
            }
            Ok(Content::Chunk(Extent { id, at: Some(at) }))
        }
        _ => {
            let id = ContentId(reader.array()?);
            let count = take_u32(reader)?;
            // Whatever the size of its chunks, a file has not more than its blocks can describe.
            let described = u64::from(count).saturating_mul((EXTENT_BLOCK_CHUNKS * RECORD_RAW_BYTES_MAX) as u64);
            if count == 0 || size > described {
                return Err(malformed);
            }
            if tag == tag::LISTED {
                let at = take_record(reader, packs)?;
                return Ok(Content::Extents { id, blocks: BlockList::Listed { count, at } });
            }
            if count as usize > ROW_EXTENT_BLOCKS_MAX {
                return Err(malformed);
            }
            let mut blocks = Vec::with_capacity(count as usize);
            for _ in 0..count {
                blocks.push(BlockRef { id: BlockId(reader.array()?), at: take_record(reader, packs)? });
            }
            Ok(Content::Extents { id, blocks: BlockList::Here(blocks.into()) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::Codec;
    use proptest::prelude::*;

    fn path(text: &str) -> TreePath {
        TreePath::parse(text.as_bytes()).unwrap()
    }

    fn name(text: &str) -> FileName {
        FileName::new(text.as_bytes().to_vec()).unwrap()
    }

    fn pack(seq: u32) -> PackId {
        PackId { intent: IntentId::from_parts(1, 1), run: Run(2), seq }
    }

    fn entry(number: u32, body: Body) -> Entry {
        let mtime = Timestamp { secs: -5 + i64::from(number), nanos: number };
        Entry {
            attributes: Attributes { permissions: 0o755, uid: number % 3, gid: 7, mtime },
            xattrs: if number.is_multiple_of(4) {
                Arc::new([(b"user.a".to_vec(), b"v".to_vec())].into())
            } else {
                Xattrs::default()
            },
            nlink: 1 + number % 2,
            body,
        }
    }

    fn bodies() -> Vec<Body> {
        let at = Locator { pack: pack(1), offset: 99, stored: 50, raw: 80, codec: Codec::Zstd, inner: 10, len: 70 };
        let record =
            RecordRef { pack: pack(2), offset: 7, stored: 5, raw: 6, codec: Codec::Raw, hash: ObjectHash([9; 32]) };
        let file = |size, content, b3sum| Body::File(FileBody { size, content, b3sum });
        let blocks = BlockList::Here([BlockRef { id: BlockId([1; 32]), at: record }].into());
        vec![
            Body::Directory { counts: TreeCounts { files: 1, bytes: 2, directories: 3 }, opaque: false },
            Body::Directory { counts: TreeCounts::default(), opaque: true },
            file(3, Content::Inline(Bytes::from_static(b"abc")), Some([5; 32])),
            file(70, Content::Chunk(Extent { id: ChunkId([2; 32]), at: Some(at) }), None),
            file(500, Content::Chunk(Extent { id: ChunkId([2; 32]), at: None }), None),
            file(1 << 30, Content::Extents { id: ContentId([3; 32]), blocks }, None),
            file(
                1 << 40,
                Content::Extents { id: ContentId([3; 32]), blocks: BlockList::Listed { count: 300, at: record } },
                None,
            ),
            Body::Symlink(Bytes::from_static(b"../x")),
            Body::Fifo,
            Body::Socket,
            Body::CharDevice(259),
            Body::BlockDevice(7),
        ]
    }

    fn sample() -> Vec<Row> {
        let mut rows: Vec<Row> = (0u32..)
            .zip(bodies())
            .map(|(number, body)| Row {
                key: RowKey::child(&path("some/dir"), &name(&format!("entry-{number:02}"))),
                value: RowValue::Entry(entry(number, body)),
            })
            .collect();
        rows.insert(0, Row { key: RowKey::link(LinkId::from_parts(1, 2)), value: RowValue::Tombstone });
        rows.push(Row {
            key: RowKey::child(&path("some/dir"), &name("link")),
            value: RowValue::Link(LinkId::from_parts(1, 2)),
        });
        rows
    }

    fn encode(rows: &[Row]) -> Vec<u8> {
        let mut writer = RangeWriter::default();
        rows.iter().for_each(|row| writer.push(row));
        writer.finish().unwrap().1
    }

    #[test]
    fn the_golden_range_is_unchanged() {
        let golden = include_bytes!("../../tests/golden/range.bin");
        assert_eq!(&encode(&sample())[..], golden, "these bytes are in stores: a change needs another version");
    }

    #[test]
    fn rows_of_every_kind_come_back() {
        assert_eq!(decode_range(&encode(&sample())), Ok(sample()));
    }

    #[test]
    fn key_order_visits_a_directory_before_its_subdirectories_and_links_first() {
        let keys = [
            RowKey::root(),
            RowKey::link(LinkId::from_parts(1, 1)),
            RowKey::child(&path(""), &name("\u{1}")),
            RowKey::child(&path(""), &name("a")),
            RowKey::child(&path(""), &name("a-b")),
            RowKey::child(&path("a"), &name("z")),
            RowKey::child(&path("a/b"), &name("y")),
            RowKey::child(&path("a-b"), &name("x")),
        ];
        assert!(keys.is_sorted());
        for key in &keys {
            assert_eq!(RowKey::from_bytes(key.as_bytes()).as_ref(), Ok(key));
        }
        assert_eq!(keys[6].path(), Some(path("a/b/y")));
        assert_eq!(RowKey::of_path(&path("a/b/y")), keys[6]);
        assert_eq!(keys[0].path(), Some(TreePath::root()));
        assert!(keys[1].is_link() && keys[1].parts().is_none());
    }

    /// Whether a range of this one row comes back.
    fn comes_back(key: RowKey, body: Body) -> bool {
        let row = Row { key, value: RowValue::Entry(entry(1, body)) };
        decode_range(&encode(std::slice::from_ref(&row))) == Ok(vec![row])
    }

    #[test]
    fn a_place_in_a_tree_has_one_key_and_a_link_row_a_hex_name() {
        let key = |bytes: &[u8]| RowKey::from_bytes(bytes).is_ok();
        assert!(key(b"a\0b\0\0name"));
        assert!(!key(b"a/b\0\0name"), "the same place");
        assert!(!key(b"\0a\0\0name") && !key(b"a\0\0") && !key(b"a\0\0x/y") && !key(b"name"));
        assert!(key(RowKey::link(LinkId::from_parts(1, 2)).as_bytes()));
        assert!(!key(&[&[0, 0, 0][..], &[b'G'; 32]].concat()));
    }

    #[test]
    fn content_that_no_writer_makes_is_refused() {
        let key = || RowKey::child(&path("d"), &name("f"));
        let record =
            RecordRef { pack: pack(2), offset: 7, stored: 5, raw: 6, codec: Codec::Raw, hash: ObjectHash([9; 32]) };
        let file = |size, content| Body::File(FileBody { size, content, b3sum: None });
        let blocks = |n: usize, at| {
            let blocks = vec![BlockRef { id: BlockId([1; 32]), at }; n];
            Content::Extents { id: ContentId([3; 32]), blocks: BlockList::Here(blocks.into()) }
        };
        let listed = |count, at| Content::Extents { id: ContentId([3; 32]), blocks: BlockList::Listed { count, at } };
        let hole = || Content::Chunk(Extent { id: ChunkId([2; 32]), at: None });
        assert!(comes_back(key(), file(1 << 30, blocks(1, record))));
        assert!(!comes_back(key(), file(1 << 30, blocks(0, record))), "a reader looks for a first block");
        assert!(!comes_back(key(), file(1 << 37, blocks(1, record))), "more than a block describes");
        assert!(!comes_back(key(), file(1 << 30, blocks(ROW_EXTENT_BLOCKS_MAX + 1, record))));
        assert!(!comes_back(key(), file(1 << 30, listed(0, record))));
        assert!(!comes_back(key(), file(FILE_BYTES_MAX + 1, listed(u32::MAX, record))));
        assert!(!comes_back(key(), file(1 << 30, listed(9, RecordRef { codec: Codec::Frames, ..record }))));
        assert!(!comes_back(key(), file(1 << 30, listed(9, RecordRef { offset: u64::MAX, ..record }))));
        assert!(comes_back(key(), file(1 << 24, hole())));
        assert!(!comes_back(key(), file((1 << 24) + 1, hole())), "larger than any chunk");
        let at = Locator { pack: pack(1), offset: 99, stored: 50, raw: 80, codec: Codec::Zstd, inner: 10, len: 70 };
        let chunk = |at| Content::Chunk(Extent { id: ChunkId([2; 32]), at: Some(at) });
        assert!(comes_back(key(), file(70, chunk(at))));
        assert!(!comes_back(key(), file(70, chunk(Locator { inner: 11, ..at }))));
        assert!(!comes_back(key(), file(70, chunk(Locator { offset: 1 << 40, ..at }))));
        assert!(!comes_back(key(), file(70, chunk(Locator { stored: u32::MAX, ..at }))));
        assert!(comes_back(key(), Body::Symlink(vec![b'x'; PATH_BYTES_MAX].into())));
        assert!(!comes_back(key(), Body::Symlink(vec![b'x'; PATH_BYTES_MAX + 1].into())));
    }

    #[test]
    fn xattrs_come_in_order_each_once_and_not_too_many() {
        let xattrs = |list: &[(&[u8], &[u8])]| {
            let mut writer = Writer::new();
            writer.varint(list.len() as u64);
            for (name, value) in list {
                writer.string(name);
                writer.string(value);
            }
            take_xattrs(&mut Reader::new(&writer.into_bytes()))
        };
        assert!(xattrs(&[(b"user.a", b"1"), (b"user.b", b"2")]).is_ok());
        assert!(xattrs(&[(b"user.a", b"1"), (b"user.a", b"2")]).is_err());
        assert!(xattrs(&[(b"user.b", b"1"), (b"user.a", b"2")]).is_err());
        assert!(matches!(xattrs(&[(b"user.a", &[0; XATTR_BYTES_MAX])]), Err(FormatError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn damaged_ranges_are_decoded_or_refused(bytes: Vec<u8>, at: usize, bit in 0u8..8) {
            let _ = decode_range(&bytes);
            let mut flipped = encode(&sample());
            let at = at % flipped.len();
            prop_assert!(decode_range(&flipped[..at]).is_err());
            flipped[at] ^= 1 << bit;
            let _ = decode_range(&flipped);
        }

        #[test]
        fn any_key_bytes_are_a_key_or_refused(bytes: Vec<u8>) {
            if let Ok(key) = RowKey::from_bytes(&bytes) {
                prop_assert_eq!(key.as_bytes(), &bytes[..]);
            }
        }
    }
}
