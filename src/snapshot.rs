//! L4, an immutable bundle as a tree.
//!
//! [`tree`] reads: looks names up, lists directories, walks whole tables, loading ranges as they are needed. [`writer`]
//! writes: takes the rows of a tree in key order and turns them into metadata packs and a descriptor. [`diff`] compares two.

pub mod diff;
pub mod tree;
pub mod writer;

pub use tree::{RangeCache, RowId, Snapshot, SnapshotError, Table};
