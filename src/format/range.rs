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
//!
//! Packs go by number, and places in them as [`super::place`] writes them.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::FormatError;
use super::place::{PackDictionary, put_locator, put_record, take_locator, take_packs, take_record};
use super::wire::{Reader, Writer};
use crate::model::clock::Timestamp;
use crate::model::entry::{
    Attributes, BlockList, BlockRef, Body, Content, Entry, Extent, FileBody, TreeCounts, Xattrs,
};
use crate::model::id::{BlockId, ChunkId, ContentId, LinkId, ObjectHash, PackId};
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
    let mtime = Timestamp { secs: reader.signed()?, nanos: reader.varint32()? };
    if mtime.nanos > 999_999_999 || owner.0 > 0o7777 {
        return Err(FormatError::Malformed { what: "attributes" });
    }
    let attributes = Attributes { permissions: owner.0, uid: owner.1, gid: owner.2, mtime };
    let xattrs = if tag & tag::XATTRS != 0 { take_xattrs(reader)? } else { no_xattrs.clone() };
    let nlink = if tag & tag::NLINK != 0 { reader.varint32()? } else { 1 };
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
        tag::CHAR => Body::CharDevice(reader.varint32()?),
        tag::BLOCK => Body::BlockDevice(reader.varint32()?),
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
            let count = reader.varint32()?;
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
