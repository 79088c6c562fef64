//! Inodes of a staging tree: numbers, records, and what a file's bytes are made of.
//!
//! A record is written with every change, so it is short and cheap to make: numbers, and only what is there. What a
//! file has in the store (`base`), and what is no regular file or directory, is one row of the store's format: one
//! codec, tested once.

use std::ops::Range;
use std::sync::Arc;

use crate::format::FormatError;
use crate::format::range::{RangeWriter, Row, RowKey, RowValue, decode_range};
use crate::format::refs::{put_time, take_time};
use crate::format::wire::{Reader, Writer};
use crate::local::staged_files::Place;
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, Body, Entry, FileBody, FileKind, Xattrs};
use crate::model::id::LinkId;
use crate::snapshot::RowId;

/// The root of every staging tree.
pub const ROOT: u64 = 1;
/// Numbers of entries that the base does not have begin here.
const NEW: u64 = 1 << 49;
/// Bits of a number that name the base's row.
const ROW_BITS: u32 = 33;
/// In place of a directory's count: it shows directories of the base, which nobody has counted.
const UNCOUNTED: u32 = u32::MAX;

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

/// Whether the base has no entry of this number, whatever the base; these numbers are the highest.
pub fn is_new(ino: u64) -> bool {
    ino >= NEW
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
    /// Where the local bytes lie. In the log they are the file's first bytes, whole, and there is no base.
    pub local: Option<Place>,
    /// Chunks that are local, as sorted, disjoint ranges of indices; without a base all are.
    pub chunks: Vec<(u64, u64)>,
    /// Some of the local chunks are in the store already: the extents family says which.
    pub uploaded: bool,
}

impl FileData {
    /// A file of the store, nothing of it local.
    pub fn stored(body: FileBody) -> Self {
        let (size, base_limit) = (body.size, body.size);
        Self { size, base_limit, base: Some(body), local: None, chunks: Vec::new(), uploaded: false }
    }

    /// An empty local file.
    pub fn empty() -> Self {
        Self { size: 0, base: None, base_limit: 0, local: None, chunks: Vec::new(), uploaded: false }
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

    /// Forgets which chunks from `end` on are local: the file was cut there.
    pub fn keep_chunks(&mut self, end: u64) {
        self.chunks.retain_mut(|chunks| {
            chunks.1 = chunks.1.min(end);
            chunks.0 < chunks.1
        });
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

const MALFORMED: FormatError = FormatError::Malformed { what: "inode record" };
/// Permission bits, with set-id and sticky.
const PERMISSIONS_MAX: u16 = 0o7777;

mod tag {
    pub const DIRECTORY: u8 = 0;
    pub const FILE: u8 = 1;
    pub const OTHER: u8 = 2;
    pub const NOWHERE: u8 = 0;
    pub const IN_FILE: u8 = 1;
    pub const IN_LOG: u8 = 2;
}

/// The body of the row that [`Inode::encode`] put there.
fn take_row(reader: &mut Reader<'_>) -> Result<Body, FormatError> {
    match decode_range(reader.string()?)?.pop() {
        Some(Row { value: RowValue::Entry(entry), .. }) => Ok(entry.body),
        _ => Err(MALFORMED),
    }
}

impl FileData {
    fn put(&self, writer: &mut Writer) {
        writer.varint(self.size);
        match self.local {
            None => writer.u8(tag::NOWHERE),
            Some(Place::File(id)) => {
                writer.u8(tag::IN_FILE);
                writer.varint(id);
            }
            Some(Place::Log { segment, offset, len }) => {
                writer.u8(tag::IN_LOG);
                writer.varint(segment);
                writer.varint(offset.into());
                writer.varint(len.into());
            }
        }
        writer.u8(u8::from(self.uploaded));
        writer.u8(u8::from(self.base.is_some()));
        if self.base.is_some() {
            writer.varint(self.base_limit);
            writer.varint(self.chunks.len() as u64);
            for (start, end) in &self.chunks {
                writer.varint(*start);
                writer.varint(*end);
            }
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let number = |reader: &mut Reader<'_>| u32::try_from(reader.varint()?).map_err(|_| MALFORMED);
        let size = reader.varint()?;
        let local = match reader.u8()? {
            tag::NOWHERE => None,
            tag::IN_FILE => Some(Place::File(reader.varint()?)),
            tag::IN_LOG => {
                let segment = reader.varint()?;
                Some(Place::Log { segment, offset: number(reader)?, len: number(reader)? })
            }
            _ => return Err(MALFORMED),
        };
        let uploaded = reader.u8()? != 0;
        if reader.u8()? == 0 {
            return Ok(Self { size, base: None, base_limit: 0, local, chunks: Vec::new(), uploaded });
        }
        let base_limit = reader.varint()?;
        let mut chunks = Vec::new();
        let mut before = None;
        for _ in 0..reader.count(2)? {
            let (start, end) = (reader.varint()?, reader.varint()?);
            if start >= end || before.is_some_and(|before| start <= before) {
                return Err(MALFORMED);
            }
            before = Some(end);
            chunks.push((start, end));
        }
        let Body::File(base) = take_row(reader)? else { return Err(MALFORMED) };
        Ok(Self { size, base: Some(base), base_limit, local, chunks, uploaded })
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
    /// The time of the last access, as far as somebody set it; reading does not. A bundle does not keep it.
    pub atime: Timestamp,
    /// Time of the last change of anything.
    pub ctime: Timestamp,
    /// The users' xattrs, and ACLs.
    pub xattrs: Xattrs,
    /// Names of it; 0 when it lives only as an open file. Of a directory one more than the directories in it, or
    /// [`UNCOUNTED`]; 0 when it was removed.
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
        let (atime, ctime) = (attributes.mtime, attributes.mtime);
        let xattrs = Xattrs::default();
        Self { attributes, atime, ctime, xattrs, nlink: 1, link: None, base: None, version: 0, body }
    }

    /// The inode of the base's entry at `row`; `link` is its group.
    pub fn of_base(row: RowId, entry: Entry, link: Option<LinkId>) -> Self {
        let (attributes, xattrs) = (entry.attributes, entry.xattrs);
        let (body, base, nlink) = match entry.body {
            Body::Directory { counts, .. } => {
                (InodeBody::Directory, Some(row), if counts.directories == 0 { 1 } else { UNCOUNTED })
            }
            Body::File(file) => (InodeBody::File(FileData::stored(file)), None, entry.nlink),
            other => (InodeBody::Other(other), None, entry.nlink),
        };
        let (atime, ctime) = (attributes.mtime, attributes.mtime);
        Self { attributes, atime, ctime, xattrs, nlink, link, base, version: 0, body }
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

    /// `st_nlink`. Of a directory 2 and one for each directory in it (its `..`); 1 where they are not counted, as btrfs
    /// has it, so that nobody takes it for a number of directories.
    pub fn links(&self) -> u32 {
        match (self.kind(), self.nlink) {
            (FileKind::Directory, UNCOUNTED) => 1,
            (FileKind::Directory, 1..) => self.nlink + 1,
            _ => self.nlink,
        }
    }

    /// Says that this directory has one directory more, or one less.
    pub fn count_directory(&mut self, is_more: bool) {
        if self.nlink != UNCOUNTED {
            // A tree staged by an earlier version began to count late: it never counts below none.
            self.nlink = if is_more { self.nlink.saturating_add(1) } else { self.nlink.saturating_sub(1).max(1) };
        }
    }

    /// As an entry of a bundle, whose body the caller has worked out.
    pub fn entry(&self, body: Body) -> Entry {
        let nlink = if self.kind() == FileKind::Directory { 1 } else { self.nlink };
        Entry { attributes: self.attributes, xattrs: self.xattrs.clone(), nlink, body }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(match &self.body {
            InodeBody::Directory => tag::DIRECTORY,
            InodeBody::File(_) => tag::FILE,
            InodeBody::Other(_) => tag::OTHER,
        });
        let Attributes { permissions, uid, gid, mtime } = self.attributes;
        writer.u16(permissions);
        writer.u32(uid);
        writer.u32(gid);
        [mtime, self.atime, self.ctime].into_iter().for_each(|time| put_time(&mut writer, time));
        writer.varint(self.nlink.into());
        writer.varint(self.version);
        writer.varint(self.base.map_or(0, |row| row.to_bits() + 1));
        writer.string(self.link.map(LinkId::to_bytes).as_ref().map_or(&[][..], |link| &link[..]));
        writer.varint(self.xattrs.len() as u64);
        for (name, value) in self.xattrs.iter() {
            writer.string(name);
            writer.string(value);
        }
        match &self.body {
            InodeBody::Directory => {}
            InodeBody::Other(body) => self.put_row(&mut writer, body.clone()),
            InodeBody::File(file) => {
                file.put(&mut writer);
                if let Some(body) = &file.base {
                    self.put_row(&mut writer, Body::File(body.clone()));
                }
            }
        }
        writer.into_bytes()
    }

    /// Appends `body` as a row of the store's format.
    fn put_row(&self, writer: &mut Writer, body: Body) {
        let entry = Entry { attributes: self.attributes, xattrs: Xattrs::default(), nlink: 1, body };
        let mut range = RangeWriter::default();
        range.push(&Row { key: RowKey::root(), value: RowValue::Entry(entry) });
        let (_, row) = range.finish().expect("one row was pushed");
        writer.string(&row);
    }

    /// The inode with this record.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let (permissions, uid, gid) = (reader.u16()?, reader.u32()?, reader.u32()?);
        if permissions > PERMISSIONS_MAX {
            return Err(MALFORMED);
        }
        let (mtime, atime, ctime) = (take_time(&mut reader)?, take_time(&mut reader)?, take_time(&mut reader)?);
        let nlink = u32::try_from(reader.varint()?).map_err(|_| MALFORMED)?;
        let version = reader.varint()?;
        let base = reader.varint()?.checked_sub(1).map(RowId::from_bits);
        let link = match reader.string()? {
            [] => None,
            bytes => Some(LinkId::from_bytes(bytes.try_into().map_err(|_| MALFORMED)?)),
        };
        let mut xattrs = Xattrs::default();
        for _ in 0..reader.count(2)? {
            Arc::make_mut(&mut xattrs).insert(reader.string()?.to_vec(), reader.string()?.to_vec());
        }
        let body = match kind {
            tag::DIRECTORY => InodeBody::Directory,
            tag::FILE => InodeBody::File(FileData::take(&mut reader)?),
            tag::OTHER => InodeBody::Other(take_row(&mut reader)?),
            _ => return Err(MALFORMED),
        };
        reader.finish()?;
        let attributes = Attributes { permissions, uid, gid, mtime };
        Ok(Self { attributes, atime, ctime, xattrs, nlink, link, base, version, body })
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
    use crate::model::entry::Content;
    use crate::snapshot::Table;

    fn attributes() -> Attributes {
        Attributes { permissions: 0o640, uid: 1, gid: 2, mtime: Timestamp { secs: -3, nanos: 4 } }
    }

    #[test]
    fn an_inode_of_every_kind_survives_its_record() {
        let stored = FileBody { size: 3, content: Content::Inline(bytes::Bytes::from_static(b"abc")), b3sum: None };
        let mut over = FileData::stored(stored);
        over.local = Some(Place::File(0));
        over.add_local(1..2);
        let place = Place::Log { segment: 1 << 40, offset: 16, len: 5 };
        let logged = FileData { size: 9, local: Some(place), uploaded: true, ..FileData::empty() };
        let bodies = [
            InodeBody::Directory,
            InodeBody::File(FileData::empty()),
            InodeBody::File(over),
            InodeBody::File(logged),
            InodeBody::Other(Body::Symlink(bytes::Bytes::from_static(b"x"))),
            InodeBody::Other(Body::CharDevice(9)),
        ];
        for body in bodies {
            let mut inode = Inode::new(attributes(), body);
            inode.link = Some(LinkId::from_parts(1, 2));
            inode.base = Some(RowId { table: Table::Files, ordinal: 0 });
            inode.version = 7;
            inode.atime = Timestamp { secs: 9, nanos: 9 };
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
