//! What a staging tree shows where it was not changed: a snapshot, or an empty root.

use std::sync::Arc;

use super::error::StagingError;
use super::inode::{Inode, InodeBody, ROOT, base_ino, base_row};
use crate::format::range::RowValue;
use crate::model::entry::Attributes;
use crate::model::id::LinkId;
use crate::model::path::TreePath;
use crate::snapshot::{RowId, Snapshot};

/// What a tree shows where it was not changed.
pub struct Base {
    /// The bundle; `None`: an empty tree.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Counts the bases that this tree has had.
    pub generation: u64,
    /// The root of an empty tree.
    pub(super) root: Attributes,
}

impl Base {
    /// The number of a row of this base.
    pub fn ino(&self, row: RowId) -> u64 {
        base_ino(self.generation, row)
    }

    /// The inode of an entry of the base.
    pub async fn inode(&self, ino: u64) -> Result<Inode, StagingError> {
        let row = base_row(self.generation, ino).ok_or(StagingError::Stale)?;
        let Some(snapshot) = &self.snapshot else {
            return if ino == ROOT {
                Ok(Inode::new(self.root, InodeBody::Directory))
            } else {
                Err(StagingError::Stale)
            };
        };
        let found = snapshot.row(row).await?.ok_or(StagingError::Stale)?;
        let link = found.key.is_link().then(|| link_of(found.key.as_bytes())).flatten();
        match found.value {
            RowValue::Entry(entry) => Ok(Inode::of_base(row, entry, link)),
            _ => Err(StagingError::Stale),
        }
    }

    /// The path, in the base, of its directory `row`.
    pub async fn directory_path(&self, row: RowId) -> Result<TreePath, StagingError> {
        let Some(snapshot) = &self.snapshot else { return Err(StagingError::Stale) };
        snapshot.directory_path(row).await?.ok_or(StagingError::Stale)
    }
}

/// The group of a link row, from its key: 32 hex digits behind three zero bytes.
fn link_of(key: &[u8]) -> Option<LinkId> {
    let digits = std::str::from_utf8(key.get(3..)?).ok()?;
    Some(LinkId::from_bytes(u128::from_str_radix(digits, 16).ok()?.to_be_bytes()))
}
