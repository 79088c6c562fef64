//! Every limit that users or the format can meet, each with its one home and its reason.
//!
//! A limit that is not here is a bug: unstated limits are found in production.

/// Longest file name, in bytes (`NAME_MAX`, limits.h).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path below a tree's root, in bytes (`PATH_MAX`, limits.h).
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest repo, label, context or stage name, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest name of who commits, in bytes: it stands in every summary and event of a refs record.
pub const CONTRIBUTOR_BYTES_MAX: usize = 256;
/// Repos of one context.
pub const REPOS_MAX: usize = 16_384;
/// Labels of one repo.
pub const LABELS_MAX: usize = 4_096;
/// Names and values of one file's xattrs together, ACLs among them, in bytes.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Largest file the format can describe, in bytes. Staging is further bound by the local file system.
pub const FILE_BYTES_MAX: u64 = 1 << 48;
/// Rows of one table of a bundle: a row ordinal is a `u32`.
pub const ROWS_MAX: u64 = 1 << 32;
/// Layers of a bundle: one base and three deltas.
pub const LAYERS_MAX: usize = 4;
/// Bundles that a bundle names as what it was derived from: 32 KiB of its descriptor. Those above are counted.
pub const DERIVED_FROM_MAX: usize = 1_024;
/// Largest descriptor, in bytes.
pub const DESCRIPTOR_BYTES_MAX: usize = 1 << 20;
/// Files up to this many bytes lie inside their row; zero-length files always do.
pub const INLINE_BYTES_MAX: usize = 256;
/// Files above [`INLINE_BYTES_MAX`] and up to this many bytes are grouped into small-file blocks.
pub const SMALL_FILE_BYTES_MAX: usize = 64 << 10;
/// Raw bytes that a small-file block is filled up to.
pub const SMALL_FILE_BLOCK_BYTES: usize = 64 << 10;
/// Records above this many raw bytes carry a proof (chaining values of 16 KiB groups) in front.
pub const PROOF_ABOVE_BYTES: usize = 64 << 10;
/// Chunks described by one extent block.
pub const EXTENT_BLOCK_CHUNKS: usize = 4_096;
/// Extent blocks that a row lists itself; above that it names one list record.
pub const ROW_EXTENT_BLOCKS_MAX: usize = 8;
/// Raw bytes of the largest record: the largest chunk.
pub const RECORD_RAW_BYTES_MAX: usize = 16 << 20;
/// Largest pack, in bytes, footer included: the largest target, the largest record, 1 MiB for its proof and the trailer.
pub const PACK_BYTES_MAX: usize = 81 << 20;
/// Raw bytes a data pack is filled up to on a fast link, in bytes.
pub const PACK_BYTES_TARGET_MAX: usize = 64 << 20;
/// Raw bytes a data pack is filled up to on a slow link, in bytes.
pub const PACK_BYTES_TARGET_MIN: usize = 8 << 20;
/// Largest object that is read whole, in bytes: a refs record with as many labels as there may be and four million removed
/// bundles. What is larger is no object of ours.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// Text of one object of the read log, in bytes: twice what a writer closes one at.
pub const READ_LOG_BYTES_MAX: usize = 8 << 20;
/// Longest commit message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
