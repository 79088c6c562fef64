//! What stat(2) shows of a version's rows.
//!
//! A row says it all but for `st_blocks` of a file so large that it does not name its blocks: that stands in a record of its
//! own, which is asked for, and not waited for long.

use std::time::Duration;

use tokio::time::Instant;

use super::error::VfsError;
use super::node::Node;
use super::{Found, Listed, Ttl, Vfs};
use crate::format::extents;
use crate::model::chunk::ChunkSize;
use crate::model::entry::{BLOCK_BYTES, BlockList, Body, Content, Entry, FileBody};
use crate::model::name::FileName;
use crate::model::path::TreePath;
use crate::snapshot::{RowId, Snapshot};
use crate::staging::tree::NodeAttr;

/// How long a look or a listing waits for what rows do not say.
const BLOCKS_LIMIT: Duration = Duration::from_secs(2);

impl Vfs {
    /// One row.
    pub(super) async fn row(&self, slot: usize, row: RowId, entry: &Entry, snapshot: &Snapshot) -> Found {
        let found = self.plain_row(slot, row, entry, snapshot.descriptor().chunk_size);
        match listed_file(entry) {
            Some(file) => with_blocks(found, file, snapshot, Instant::now() + BLOCKS_LIMIT).await,
            None => found,
        }
    }

    /// Up to `max` rows of a directory in order, after `after`.
    pub(super) async fn list_rows(
        &self,
        slot: usize,
        snapshot: &Snapshot,
        dir: &TreePath,
        after: Option<&FileName>,
        max: usize,
    ) -> Result<Vec<Listed>, VfsError> {
        let chunk = snapshot.descriptor().chunk_size;
        let show = |row, entry: &Entry| (self.plain_row(slot, row, entry, chunk), listed_file(entry).cloned());
        let rows = snapshot.list_with(dir, after, max, show).await?;
        let until = Instant::now() + BLOCKS_LIMIT;
        let mut listed = Vec::with_capacity(rows.len());
        for (name, (found, file)) in rows {
            let found = match file {
                Some(file) => with_blocks(found, &file, snapshot, until).await,
                None => found,
            };
            listed.push(Listed { name, found });
        }
        Ok(listed)
    }

    /// What the row alone says.
    fn plain_row(&self, slot: usize, row: RowId, entry: &Entry, chunk: ChunkSize) -> Found {
        let rdev = match entry.body {
            Body::CharDevice(rdev) | Body::BlockDevice(rdev) => rdev,
            _ => 0,
        };
        let (nlink, blocks) = match &entry.body {
            // What is only known to be some is 1, as btrfs has it: nobody takes that for a number of directories.
            Body::Directory { counts, .. } => (if counts.directories == 0 { 2 } else { 1 }, 0),
            Body::File(file) => (entry.nlink, extents::allocated_bytes(file, chunk).div_ceil(BLOCK_BYTES)),
            _ => (entry.nlink, entry.size().div_ceil(BLOCK_BYTES)),
        };
        let attr = NodeAttr {
            ino: self.to_kernel(Node::row_ino(slot, row)),
            kind: entry.kind(),
            attributes: self.settings().shown.of(entry.attributes),
            atime: entry.attributes.mtime,
            ctime: entry.attributes.mtime,
            size: entry.size(),
            nlink,
            rdev,
            blocks,
        };
        Found { attr, ttl: Ttl::Long }
    }
}

/// A file so large that its row does not name its blocks.
fn listed_file(entry: &Entry) -> Option<&FileBody> {
    match &entry.body {
        Body::File(file @ FileBody { content: Content::Extents { blocks: BlockList::Listed { .. }, .. }, .. }) => {
            Some(file)
        }
        _ => None,
    }
}

/// The same with `st_blocks` of such a file, where the store says it in time.
async fn with_blocks(mut found: Found, file: &FileBody, snapshot: &Snapshot, until: Instant) -> Found {
    if let Ok(Ok(blocks)) = tokio::time::timeout_at(until, snapshot.reader().blocks(file)).await {
        let allocated = extents::allocated_in(&blocks, file.size, snapshot.descriptor().chunk_size);
        found.attr.blocks = allocated.div_ceil(BLOCK_BYTES);
    }
    found
}
