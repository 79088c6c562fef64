//! Inodes of a staging tree: numbers, records, and what a file's bytes are made of.

use std::ops::Range;
use std::sync::Arc;

use crate::format::FormatError;
use crate::format::range::{RangeWriter, Row, RowKey, RowValue, decode_range};
use crate::format::refs::{put_time, take_time};
use crate::format::wire::{Reader, Writer};
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, Body, Content, Entry, FileBody, FileKind, TreeCounts, Xattrs};
use crate::model::id::LinkId;
use crate::snapshot::RowId;

/// The root of every staging tree.
pub const ROOT: u64 = 1;
/// Numbers of entries that the base does not have begin here.
const NEW: u64 = 1 << 49;
/// Bits of a number that name the base's row.
const ROW_BITS: u32 = 33;

/// The number of the base's row `row`, in the tree's base generation.
pub fn base_ino(generation: u64, row: RowId) -> u64 {
    if row == RowId::ROOT { ROOT } else { generation << ROW_BITS | row.to_bits() }
}

/// The row of the base that the number names, if it names one.
pub fn base_row(generation: u64, ino: u64) -> Option<RowId> {
    match ino {
        ROOT => Some(RowId::ROOT),
        ino if ino >= NEW || ino >> ROW_BITS != generation => None,
        ino => Some(RowId::from_bits(ino & ((1 << ROW_BITS) - 1))),
    }
}

/// The number of the `n`th new entry.
pub fn new_ino(n: u64) -> u64 {
    NEW | n
}

/// What a regular file's bytes are: local ones over the base's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    /// Length in bytes.
    pub size: u64,
    /// Content in the store, below what is local.
    pub base: Option<FileBody>,
    /// Bytes of the base from here on were cut off once and read as zeros.
    pub base_limit: u64,
    /// The local data file.
    pub local: Option<u64>,
    /// Chunks that are local, as sorted, disjoint ranges of indices; without a base all are.
    pub chunks: Vec<(u64, u64)>,
}

impl FileData {
    /// A file of the store, nothing of it local.
    pub fn stored(body: FileBody) -> Self {
        Self { size: body.size, base_limit: body.size, base: Some(body), local: None, chunks: Vec::new() }
    }

    /// An empty local file.
    pub fn empty() -> Self {
        Self { size: 0, base: None, base_limit: 0, local: None, chunks: Vec::new() }
    }

    /// Whether chunk `index` is local.
    pub fn is_local(&self, index: u64) -> bool {
        self.base.is_none() || self.chunks.iter().any(|(start, end)| (*start..*end).contains(&index))
    }

    /// Whether every byte is what the store holds already.
    pub fn is_stored(&self) -> bool {
        self.local.is_none()
            && self.base.as_ref().is_some_and(|base| base.size == self.size && self.base_limit >= self.size)
    }

    /// Notes that these chunks are local now.
    pub fn add_local(&mut self, added: Range<u64>) {
        self.chunks.push((added.start, added.end));
        self.chunks.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.chunks.len());
        for (start, end) in self.chunks.drain(..) {
            match merged.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        self.chunks = merged;
    }
}

/// What an inode is made of, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeBody {
    /// A directory; its entries of the base are below the row that the inode's `base` names.
    Directory,
    /// A regular file.
    File(FileData),
    /// Anything without bytes of its own.
    Other(Body),
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Mode, owner, time of the last change of contents.
    pub attributes: Attributes,
    /// Time of the last change of anything.
    pub ctime: Timestamp,
    /// User xattrs.
    pub xattrs: Xattrs,
    /// Names of it; 0 when it lives only as an open file.
    pub nlink: u32,
    /// Its hard-link group, if it ever had two names.
    pub link: Option<LinkId>,
    /// The base's directory whose entries show through.
    pub base: Option<RowId>,
    /// Counts the changes of its bytes.
    pub version: u64,
    /// What it is made of.
    pub body: InodeBody,
}

impl Inode {
    /// A new inode with one name.
    pub fn new(attributes: Attributes, body: InodeBody) -> Self {
        let ctime = attributes.mtime;
        Self { attributes, ctime, xattrs: Xattrs::default(), nlink: 1, link: None, base: None, version: 0, body }
    }

    /// The inode of the base's entry at `row`; `link` is its group.
    pub fn of_base(row: RowId, entry: Entry, link: Option<LinkId>) -> Self {
        let (body, base) = match entry.body {
            Body::Directory { .. } => (InodeBody::Directory, Some(row)),
            Body::File(file) => (InodeBody::File(FileData::stored(file)), None),
            other => (InodeBody::Other(other), None),
        };
        let ctime = entry.attributes.mtime;
        let (attributes, xattrs, nlink) = (entry.attributes, entry.xattrs, entry.nlink);
        Self { attributes, ctime, xattrs, nlink, link, base, version: 0, body }
    }

    /// Its kind.
    pub fn kind(&self) -> FileKind {
        match &self.body {
            InodeBody::Directory => FileKind::Directory,
            InodeBody::File(_) => FileKind::Regular,
            InodeBody::Other(body) => body.kind(),
        }
    }

    /// `st_size`.
    pub fn size(&self) -> u64 {
        match &self.body {
            InodeBody::Directory => 0,
            InodeBody::File(file) => file.size,
            InodeBody::Other(Body::Symlink(target)) => target.len() as u64,
            InodeBody::Other(_) => 0,
        }
    }

    /// As an entry of a bundle, whose body the caller has worked out.
    pub fn entry(&self, body: Body) -> Entry {
        Entry { attributes: self.attributes, xattrs: self.xattrs.clone(), nlink: self.nlink, body }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let body = match &self.body {
            InodeBody::Directory => Body::Directory { counts: TreeCounts::default(), opaque: false },
            InodeBody::File(FileData { base: Some(body), .. }) => Body::File(body.clone()),
            InodeBody::File(_) => {
                Body::File(FileBody { size: 0, content: Content::Inline(bytes::Bytes::new()), b3sum: None })
            }
            InodeBody::Other(body) => body.clone(),
        };
        // One row of the store's format holds attributes, xattrs and content: one codec, tested once.
        let mut range = RangeWriter::default();
        range.push(&Row { key: RowKey::root(), value: RowValue::Entry(self.entry(body)) });
        let (_, row) = range.finish().expect("one row was pushed");
        let mut writer = Writer::new();
        writer.string(&row);
        put_time(&mut writer, self.ctime);
        writer.array(&self.link.map_or([0; 16], LinkId::to_bytes));
        writer.varint(self.base.map_or(0, |row| row.to_bits() + 1));
        writer.varint(self.version);
        if let InodeBody::File(file) = &self.body {
            writer.varint(file.size);
            writer.u8(u8::from(file.base.is_some()));
            writer.varint(file.base_limit);
            writer.varint(file.local.map_or(0, |id| id + 1));
            writer.varint(file.chunks.len() as u64);
            for (start, end) in &file.chunks {
                writer.varint(*start);
                writer.varint(*end);
            }
        }
        writer.into_bytes()
    }

    /// The inode with this record.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let malformed = FormatError::Malformed { what: "inode record" };
        let row = decode_range(reader.string()?)?.pop().ok_or(malformed.clone())?;
        let RowValue::Entry(entry) = row.value else { return Err(malformed) };
        let ctime = take_time(&mut reader)?;
        let link = Some(LinkId::from_bytes(reader.array()?)).filter(|link| link.to_bytes() != [0; 16]);
        let base = reader.varint()?.checked_sub(1).map(RowId::from_bits);
        let version = reader.varint()?;
        let body = match entry.body {
            Body::Directory { .. } => InodeBody::Directory,
            Body::File(body) => {
                let size = reader.varint()?;
                let has_base = reader.u8()? != 0;
                let base_limit = reader.varint()?;
                let local = reader.varint()?.checked_sub(1);
                let mut chunks = Vec::new();
                for _ in 0..reader.count(2)? {
                    chunks.push((reader.varint()?, reader.varint()?));
                }
                InodeBody::File(FileData { size, base: has_base.then_some(body), base_limit, local, chunks })
            }
            other => InodeBody::Other(other),
        };
        reader.finish()?;
        let (attributes, xattrs, nlink) = (entry.attributes, entry.xattrs, entry.nlink);
        Ok(Self { attributes, ctime, xattrs, nlink, link, base, version, body })
    }

    /// Sets an xattr or removes it.
    pub fn change_xattr(&mut self, name: &[u8], value: Option<&[u8]>) {
        let xattrs = Arc::make_mut(&mut self.xattrs);
        match value {
            Some(value) => xattrs.insert(name.to_vec(), value.to_vec()),
            None => xattrs.remove(name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Table;

    fn attributes() -> Attributes {
        Attributes { permissions: 0o640, uid: 1, gid: 2, mtime: Timestamp { secs: -3, nanos: 4 } }
    }

    #[test]
    fn an_inode_of_every_kind_survives_its_record() {
        let stored = FileBody { size: 3, content: Content::Inline(bytes::Bytes::from_static(b"abc")), b3sum: None };
        let mut over = FileData::stored(stored);
        over.local = Some(0);
        over.add_local(1..2);
        let bodies = [
            InodeBody::Directory,
            InodeBody::File(FileData::empty()),
            InodeBody::File(over),
            InodeBody::Other(Body::Symlink(bytes::Bytes::from_static(b"x"))),
            InodeBody::Other(Body::CharDevice(9)),
        ];
        for body in bodies {
            let mut inode = Inode::new(attributes(), body);
            inode.link = Some(LinkId::from_parts(1, 2));
            inode.base = Some(RowId { table: Table::Files, ordinal: 0 });
            inode.version = 7;
            inode.change_xattr(b"user.a", Some(b"b"));
            assert_eq!(Inode::decode(&inode.encode()), Ok(inode));
        }
    }

    #[test]
    fn numbers_of_base_rows_lead_back_to_them_in_their_generation_only() {
        let row = RowId { table: Table::Files, ordinal: u32::MAX };
        let ino = base_ino(3, row);
        assert_eq!(base_row(3, ino), Some(row));
        assert_eq!(base_row(4, ino), None);
        assert_eq!(base_row(3, new_ino(5)), None);
        assert_eq!(base_ino(3, RowId::ROOT), ROOT);
        assert!(base_ino((1 << 14) - 1, row) < NEW);
    }

    #[test]
    fn local_chunks_merge_into_disjoint_ranges() {
        let body = FileBody { size: 9 << 20, content: Content::Inline(bytes::Bytes::new()), b3sum: None };
        let mut file = FileData::stored(body);
        for range in [5..6, 0..1, 1..3, 4..6] {
            file.add_local(range);
        }
        assert_eq!(file.chunks, [(0, 3), (4, 6)]);
        assert!(file.is_local(2) && !file.is_local(3));
    }
}
