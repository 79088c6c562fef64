//! What a tree holds: entries, their attributes, and where their bytes lie.
//!
//! The same words serve a row of a stored table, an inode of staging and a node of the mount, so that an
//! entry keeps its meaning on its way through the floors.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::clock::Timestamp;
use super::id::{BlockId, ChunkId, ContentId, ObjectHash, PackId};

/// What an entry is, as in `st_mode & S_IFMT` (inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Runs as the owner of the file (inode(7)).
pub const SET_USER_ID: u16 = 0o4000;
/// Runs as the group of the file; of a directory: what is made in it is of its group (inode(7)).
pub const SET_GROUP_ID: u16 = 0o2000;

/// What every entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Permission bits, `st_mode & 07777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Timestamp,
}

/// Extended attributes by their full name (`user.x`, and those that [`super::acl::AclKind`] names), sorted. Shared, because
/// most entries have none.
pub type Xattrs = Arc<BTreeMap<Vec<u8>, Vec<u8>>>;

/// How many entries and bytes lie below a directory, itself excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeCounts {
    /// Names of non-directories below; each hard link counts.
    pub files: u64,
    /// Sum of the sizes of regular files over these names.
    pub bytes: u64,
    /// Directories below.
    pub directories: u64,
}

/// How a record's raw bytes were turned into stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Stored as they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
    /// Frames of 64 KiB raw bytes, compressed one by one.
    Frames = 2,
}

/// Where one chunk lies: a record of a data pack, and the chunk's place inside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Locator {
    /// The pack that holds the record.
    pub pack: PackId,
    /// Offset of the record's stored bytes in the pack; a proof lies just in front.
    pub offset: u64,
    /// Length of the record's stored bytes.
    pub stored: u32,
    /// Length of the record's raw bytes.
    pub raw: u32,
    /// How the record is stored.
    pub codec: Codec,
    /// Offset of the chunk in the raw bytes.
    pub inner: u32,
    /// Length of the chunk.
    pub len: u32,
}

/// Where a record of a metadata pack lies, and what its stored bytes hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordRef {
    /// The pack that holds the record.
    pub pack: PackId,
    /// Offset of the stored bytes in the pack.
    pub offset: u64,
    /// Length of the stored bytes.
    pub stored: u32,
    /// Length of the raw bytes.
    pub raw: u32,
    /// How the record is stored.
    pub codec: Codec,
    /// Hash of the stored bytes.
    pub hash: ObjectHash,
}

/// One chunk of a large file; without a locator it is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The chunk's id; of a hole, the id of that many zeros.
    pub id: ChunkId,
    /// Where it lies; `None` for a hole.
    pub at: Option<Locator>,
}

/// One extent block as a row names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// The block's identity, over its chunk ids alone.
    pub id: BlockId,
    /// Where the block's record lies.
    pub at: RecordRef,
}

/// The extent blocks of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockList {
    /// Up to `ROW_EXTENT_BLOCKS_MAX` blocks, listed in the row.
    Here(Arc<[BlockRef]>),
    /// A record that lists `count` blocks.
    Listed {
        /// Number of blocks in the list.
        count: u32,
        /// Where the list's record lies.
        at: RecordRef,
    },
}

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// At most `INLINE_BYTES_MAX` bytes, inside the row. An empty file is an empty `Inline`.
    Inline(Bytes),
    /// One chunk; without a locator a hole of the file's length.
    Chunk(Extent),
    /// More than one chunk.
    Extents {
        /// Identity of the file's bytes.
        id: ContentId,
        /// The blocks that describe them.
        blocks: BlockList,
    },
}

/// What a part of a file is (lseek(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// Bytes that were written.
    Data,
    /// Zeros that lie nowhere.
    Hole,
}

impl Content {
    /// Identity of the file's bytes.
    pub fn id(&self) -> ContentId {
        match self {
            Self::Inline(bytes) => ContentId::of_chunk(ChunkId::of(bytes)),
            Self::Chunk(extent) => ContentId::of_chunk(extent.id),
            Self::Extents { id, .. } => *id,
        }
    }
}

/// The unit of `st_blocks` (inode(7)).
pub const BLOCK_BYTES: u64 = 512;

/// A regular file: its length and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBody {
    /// Length in bytes.
    pub size: u64,
    /// Where the bytes are.
    pub content: Content,
    /// BLAKE3 of the whole file, when every byte passed the committing host anyway.
    pub b3sum: Option<[u8; 32]>,
}

impl FileBody {
    /// Whether the file is one hole, as far as its row says.
    pub fn is_hole(&self) -> bool {
        self.size > 0 && matches!(self.content, Content::Chunk(Extent { at: None, .. }))
    }

    /// BLAKE3 of all its bytes, where it is known without reading them: of a file of one chunk that is the chunk's id.
    pub fn whole_hash(&self) -> Option<[u8; 32]> {
        match &self.content {
            Content::Extents { .. } => self.b3sum,
            content => Some(content.id().0),
        }
    }
}

/// What an entry is made of, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A directory.
    Directory {
        /// What lies below it.
        counts: TreeCounts,
        /// Removed and made again: hides everything below it in lower layers.
        opaque: bool,
    },
    /// A regular file.
    File(FileBody),
    /// A symbolic link with its target's bytes.
    Symlink(Bytes),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with its number (`st_rdev`, as makedev(3) packs it into 32 bits).
    CharDevice(u32),
    /// A block device with its number.
    BlockDevice(u32),
}

impl Body {
    /// The kind of this body.
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Directory { .. } => FileKind::Directory,
            Self::File(_) => FileKind::Regular,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// One entry of a tree, whatever its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Mode, owner, time.
    pub attributes: Attributes,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Names of this entry in its tree; 1 except for members of a hard-link group. A directory's is not used.
    pub nlink: u32,
    /// What it is made of.
    pub body: Body,
}

impl Entry {
    /// The entry's kind.
    pub fn kind(&self) -> FileKind {
        self.body.kind()
    }

    /// `st_size`: a file's length, a symlink's target length, else zero.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(file) => file.size,
            Body::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }
}
