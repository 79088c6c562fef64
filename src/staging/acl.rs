//! ACLs of a staging tree: in step with modes, and inherited by what is made.
//!
//! They are kept as the xattrs that the kernel knows them by, so copy-up, rename, links, records, rows and the next life
//! carry them like any other. Who may change one, and whom it lets do what, is the kernel's business.
//!
//! # Invariants
//!
//! 1. An inode's permission bits are its access list's [`Acl::mode`], whoever changed one of both, also in the mounts that
//!    show no ACLs.
//! 2. A list that says no more than a mode is not kept.
//! 3. Only a directory has a default list. Where the tree's mount has no ACLs it says nothing: what is made gets the mode
//!    that was asked for and the umask, as on a local file system that is mounted without them.

use super::attributes::check_xattrs;
use super::error::StagingError;
use super::inode::Inode;
use super::tree::Tree;
use crate::model::acl::{Acl, AclKind};
use crate::model::entry::{Attributes, FileKind, SET_GROUP_ID};

/// Permission bits without set-id and sticky.
const MODE_BITS: u16 = 0o777;

impl Inode {
    /// One of its lists.
    fn acl(&self, kind: AclKind) -> Result<Option<Acl>, StagingError> {
        let stored = self.xattrs.get(kind.name()).map(|bytes| Acl::decode(bytes));
        stored.transpose().map_err(|_| StagingError::damaged("ACL"))
    }

    /// Changes the permission bits, and the access list with them.
    pub(super) fn chmod(&mut self, permissions: u16) -> Result<(), StagingError> {
        if let Some(mut acl) = self.acl(AclKind::Access)? {
            acl.chmod(permissions);
            self.change_xattr(AclKind::Access.name(), Some(&acl.encode()));
        }
        self.attributes.permissions = permissions;
        Ok(())
    }

    /// Gives a new inode, whose permissions are those asked for, what is due to it in `directory`: that default list's
    /// share of them, and lists of its own; without such a list what `umask` leaves.
    pub(super) fn inherit(&mut self, directory: &Self, has_acls: bool, umask: u16) -> Result<(), StagingError> {
        let default = if has_acls { directory.acl(AclKind::Default)? } else { None };
        let Some(default) = default else {
            self.attributes.permissions &= !(umask & MODE_BITS);
            return Ok(());
        };
        let (access, permissions) = default.create(self.attributes.permissions);
        self.attributes.permissions = permissions;
        if let Some(access) = access {
            self.change_xattr(AclKind::Access.name(), Some(&access.encode()));
        }
        if self.kind() == FileKind::Directory {
            self.change_xattr(AclKind::Default.name(), Some(&default.encode()));
        }
        check_xattrs(self)
    }
}

impl Tree {
    /// A list as it is kept, and the attributes that it was kept with.
    pub async fn acl(&self, ino: u64, kind: AclKind) -> Result<(Vec<u8>, Attributes), StagingError> {
        let inode = self.seen(ino).await?;
        let stored = inode.xattrs.get(kind.name()).cloned().ok_or(StagingError::NoXattr)?;
        Ok((stored, inode.attributes))
    }

    /// Sets a list. `kill_setgid`: an access list takes set-group-id away, as chmod(2) by somebody outside the group does.
    pub async fn set_acl(&self, ino: u64, kind: AclKind, acl: &Acl, kill_setgid: bool) -> Result<(), StagingError> {
        let change = |inode: &mut Inode| {
            match kind {
                AclKind::Default if inode.kind() != FileKind::Directory => return Err(StagingError::NoDefaultAcl),
                AclKind::Default => inode.change_xattr(kind.name(), Some(&acl.encode())),
                AclKind::Access => {
                    let extended = acl.equiv_mode().is_none().then(|| acl.encode());
                    inode.change_xattr(kind.name(), extended.as_deref());
                    let special = inode.attributes.permissions & !MODE_BITS;
                    let kept = if kill_setgid { special & !SET_GROUP_ID } else { special };
                    inode.attributes.permissions = kept | acl.mode();
                }
            }
            check_xattrs(inode)
        };
        self.change_inode(ino, change).await
    }
}
