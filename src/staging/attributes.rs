//! What a tree knows of an inode besides its bytes and names: attributes and xattrs.

use bytes::Bytes;

use super::error::StagingError;
use super::inode::{FileData, Inode, InodeBody};
use super::totals::Share;
use super::tree::{Tree, put_inode};
use crate::format::extents;
use crate::local::db::Batch;
use crate::local::staged_files::Place;
use crate::model::chunk::ChunkSize;
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, BLOCK_BYTES, Body, FileKind, SET_GROUP_ID, SET_USER_ID};
use crate::model::limits::XATTR_BYTES_MAX;

/// What stat(2) shows of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAttr {
    /// Its number.
    pub ino: u64,
    /// Its kind.
    pub kind: FileKind,
    /// Mode, owner, mtime.
    pub attributes: Attributes,
    /// Last access, as far as it is kept.
    pub atime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Length in bytes.
    pub size: u64,
    /// Names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// `st_blocks`: what is not a hole, in units of 512 bytes.
    pub blocks: u64,
}

/// Who asks, and with which umask.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bits that new entries do not get.
    pub umask: u32,
}

/// What setattr is to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Time of the last access.
    pub atime: Option<Timestamp>,
    /// Time of the last change of contents.
    pub mtime: Option<Timestamp>,
    /// Clear set-user-id and set-group-id, as a change by an ordinary user does.
    pub kill_privileges: bool,
}

impl NodeAttr {
    /// What stat(2) shows of `inode`, whose number is `ino`.
    pub(super) fn of(ino: u64, inode: &Inode, chunk: ChunkSize) -> Self {
        let rdev = match &inode.body {
            InodeBody::Other(Body::CharDevice(rdev) | Body::BlockDevice(rdev)) => *rdev,
            _ => 0,
        };
        Self {
            ino,
            kind: inode.kind(),
            attributes: inode.attributes,
            atime: inode.atime,
            ctime: inode.ctime,
            size: inode.size(),
            nlink: inode.links(),
            rdev,
            blocks: blocks(inode, chunk),
        }
    }
}

/// `st_blocks` as far as the record says it. Never 0 for a file with a length: tar(1) would take it for one hole without a
/// look, and what was stored through a mapping may not have come here yet.
fn blocks(inode: &Inode, chunk: ChunkSize) -> u64 {
    let InodeBody::File(file) = &inode.body else { return inode.size().div_ceil(BLOCK_BYTES) };
    let bytes = match (&file.base, file.local) {
        (None, None) => 0,
        (None, Some(Place::Log { len, .. })) => file.size.min(len.into()),
        (Some(base), local) => {
            let of_base = extents::allocated_bytes(base, chunk);
            let may_have_holes = of_base < base.size || base.size < file.size;
            let most = if may_have_holes { file.size.saturating_sub(2 * BLOCK_BYTES) } else { file.size };
            // What is local may lie in a hole of the base, or beside one.
            if local.is_some() { most } else { of_base.min(most) }
        }
        (None, Some(Place::File(_))) => file.size,
    };
    bytes.max(file.size.min(1)).div_ceil(BLOCK_BYTES)
}

/// What a write by an ordinary user or a change of owner takes away (inode(7)).
pub(super) fn kill_privileges(inode: &mut Inode) {
    if inode.kind() != FileKind::Directory {
        let permissions = &mut inode.attributes.permissions;
        *permissions &= !SET_USER_ID;
        if *permissions & 0o010 != 0 {
            *permissions &= !SET_GROUP_ID;
        }
    }
}

/// Refuses more xattrs than a row may hold.
pub(super) fn check_xattrs(inode: &Inode) -> Result<(), StagingError> {
    let total: usize = inode.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > XATTR_BYTES_MAX { Err(StagingError::NoSpace) } else { Ok(()) }
}

impl Tree {
    /// What stat(2) shows.
    pub async fn getattr(&self, ino: u64) -> Result<NodeAttr, StagingError> {
        Ok(self.shown(ino, &self.seen(ino).await?))
    }

    /// The same, of an inode that is at hand.
    pub(super) fn shown(&self, ino: u64, inode: &Inode) -> NodeAttr {
        let mut attr = NodeAttr::of(ino, inode, self.chunk());
        if let InodeBody::File(FileData { base: None, local: Some(Place::File(id)), .. }) = inode.body {
            // The disk knows the holes. It may not have counted yet what was written just now.
            attr.blocks = self.allocated_blocks(ino, id).map_or(attr.blocks, |found| attr.blocks.min(found.max(1)));
        }
        attr
    }

    /// The target of a symlink.
    pub async fn readlink(&self, ino: u64) -> Result<Bytes, StagingError> {
        match self.seen(ino).await?.body {
            InodeBody::Other(Body::Symlink(target)) => Ok(target),
            _ => Err(StagingError::Invalid("not a symlink")),
        }
    }

    /// Changes attributes, the length among them.
    pub async fn setattr(&self, ino: u64, set: SetAttr) -> Result<NodeAttr, StagingError> {
        self.while_open(ino, self.set_attributes(ino, set)).await
    }

    /// Changes an inode, which is open meanwhile if it is gone: through /proc/self/fd it can be reached without an open.
    pub(super) async fn while_open<T>(
        &self,
        ino: u64,
        change: impl Future<Output = Result<T, StagingError>>,
    ) -> Result<T, StagingError> {
        if !self.is_gone(ino) {
            return change.await;
        }
        self.open_file(ino).await?;
        let outcome = change.await;
        self.release(ino).await?;
        outcome
    }

    async fn set_attributes(&self, ino: u64, set: SetAttr) -> Result<NodeAttr, StagingError> {
        let _changing = self.change().await?;
        let mut inode = self.inode(ino).await?;
        if let Some(permissions) = set.permissions {
            inode.chmod(permissions & 0o7777)?;
        }
        let now = self.now();
        let mut batch = Batch::default();
        let mut unused = None;
        let mut cut = None;
        if let Some(size) = set.size {
            let before = inode.size();
            let share = |inode: &Inode| match &inode.body {
                InodeBody::File(file) => self.share(file),
                _ => Share::default(),
            };
            let old_share = share(&inode);
            unused = self.resize(&mut batch, ino, &mut inode, size)?;
            inode.attributes.mtime = now;
            self.totals().count(old_share, share(&inode));
            if let InodeBody::File(FileData { local: Some(Place::File(id)), .. }) = inode.body
                && size < before
            {
                cut = Some((id, before, size));
            }
        }
        let attributes = &mut inode.attributes;
        attributes.uid = set.uid.unwrap_or(attributes.uid);
        attributes.gid = set.gid.unwrap_or(attributes.gid);
        attributes.mtime = set.mtime.unwrap_or(attributes.mtime);
        inode.atime = set.atime.unwrap_or(inode.atime);
        inode.ctime = now;
        if set.kill_privileges {
            kill_privileges(&mut inode);
        }
        put_inode(&mut batch, ino, &inode);
        self.apply(batch)?;
        if let Some(size) = set.size {
            self.unwritten().written(ino, &(size..u64::MAX));
        }
        // The file is as long as its record says, whatever the disk answers now: an error would be of something that was
        // done, and the kernel would go on with the old length. What stays behind the end is cut before the file grows.
        if let Some((id, from, size)) = cut
            && let Err(error) = self.cut_file(id, from, size).await
        {
            tracing::warn!(ino, %error, "bytes that were cut off a file still take room on the disk");
        }
        self.forget_place(unused);
        Ok(self.shown(ino, &inode))
    }

    /// The value of an xattr.
    pub async fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, StagingError> {
        self.seen(ino).await?.xattrs.get(name).cloned().ok_or(StagingError::NoXattr)
    }

    /// The names of all xattrs.
    pub async fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>, StagingError> {
        Ok(self.seen(ino).await?.xattrs.keys().cloned().collect())
    }

    /// Sets an xattr; `create` and `replace` as in setxattr(2).
    pub async fn setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), StagingError> {
        let change = |inode: &mut Inode| {
            match inode.xattrs.contains_key(name) {
                true if create => return Err(StagingError::Exists),
                false if replace => return Err(StagingError::NoXattr),
                _ => inode.change_xattr(name, Some(value)),
            }
            check_xattrs(inode)
        };
        self.change_inode(ino, change).await
    }

    /// Removes an xattr.
    pub async fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), StagingError> {
        let change = |inode: &mut Inode| {
            if !inode.xattrs.contains_key(name) {
                return Err(StagingError::NoXattr);
            }
            inode.change_xattr(name, None);
            Ok(())
        };
        self.change_inode(ino, change).await
    }

    /// Changes what is known of an inode beside its bytes; of what `change` refuses nothing is kept.
    pub(super) async fn change_inode(
        &self,
        ino: u64,
        change: impl FnOnce(&mut Inode) -> Result<(), StagingError>,
    ) -> Result<(), StagingError> {
        let changed = async {
            let _changing = self.change().await?;
            let mut inode = self.inode(ino).await?;
            change(&mut inode)?;
            inode.ctime = self.now();
            let mut batch = Batch::default();
            put_inode(&mut batch, ino, &inode);
            Ok(self.apply(batch)?)
        };
        self.while_open(ino, changed).await
    }
}
