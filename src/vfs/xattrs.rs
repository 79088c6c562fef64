//! Xattrs of a mount: the users', datamon's own, and ACLs where the mount has them.
//!
//! Everything else is refused, so that a copy that would lose it says so. ACLs that a mount without `-o acl` does not show
//! are kept: [`crate::staging`] keeps them in step with modes.
//!
//! Datamon's own answer by name and are never listed, so that no copy takes them along:
//!
//! | `user.datamon.` | of | says |
//! |---|---|---|
//! | `context` | everything | the context's name |
//! | `repo` | whatever lies in a repo, and that itself | its name |
//! | `bundle` | a version, and whatever lies in it | its id |
//! | `labels` | a version | the labels that name it now, parted by commas |
//! | `contributor` | a version | who committed it |
//! | `state` | a version; a staging tree, and whatever lies in it | live, removed or purging; clean, dirty or committing |
//! | `blake3` | a file of a version | the hash that b3sum(1) prints, where it is known without reading |
//! | `rfiles`, `rbytes` | a directory of a version | how many files, and bytes of them, lie below |
//!
//! Of anything else each is ENODATA.
//!
//! # Invariant
//!
//! An access list is shown with the mode that is shown: where `umask=` hides bits of the one, it hides them of the other.

use std::sync::Arc;

use super::Vfs;
use super::control::texts::{bundle_state, labels_of};
use super::error::VfsError;
use super::node::{Ino, Node, RepoKey};
use crate::model::acl::{Acl, AclKind};
use crate::model::entry::{Body, SET_GROUP_ID};
use crate::model::id::ObjectHash;
use crate::snapshot::RowId;
use crate::staging::tree::{Caller, StagingError, Tree};

/// What datamon says of an entry, by name and never listed.
const OURS: &[u8] = b"user.datamon.";

/// What setxattr(2) is to do.
#[derive(Debug, Clone, Copy)]
pub struct SetXattr<'a> {
    /// The xattr.
    pub name: &'a [u8],
    /// Its new value.
    pub value: &'a [u8],
    /// Only if there is none.
    pub create: bool,
    /// Only if there is one.
    pub replace: bool,
}

/// Whose an xattr is.
enum Kind<'a> {
    /// Ours, and what it says.
    Own(&'a [u8]),
    /// A list.
    Acl(AclKind),
    /// Anybody's.
    User,
}

impl Vfs {
    /// The value of an xattr.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, VfsError> {
        match self.kind_of(name)? {
            Kind::Own(name) => self.own_xattr(ino, name).await,
            Kind::Acl(kind) => Ok(self.acl(ino, kind).await?.encode()),
            Kind::User => match self.node(ino)? {
                Node::Staged { slot, ino } => Ok(self.tree(slot)?.getxattr(ino, name).await?),
                Node::Row { slot, row } => {
                    self.entry(slot, row).await?.xattrs.get(name).cloned().ok_or(VfsError::NoXattr)
                }
                Node::Name(_) => Err(VfsError::NoXattr),
            },
        }
    }

    /// One of datamon's own.
    async fn own_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, VfsError> {
        let text = match (name, self.node(ino)?) {
            (b"context", _) => self.settings().context.clone(),
            (b"repo", node) => self.name_now(&self.repo_of(&node)?).to_string(),
            (b"state", Node::Staged { slot, .. }) => {
                let (repo, committer) = self.committer(slot)?;
                self.tree_state(repo.id, committer.tree()).to_owned()
            }
            (name, Node::Row { slot, row }) => match self.version_xattr(name, slot, row).await? {
                Some(text) => text,
                None => row_xattr(name, &self.entry(slot, row).await?.body).ok_or(VfsError::NoXattr)?,
            },
            _ => return Err(VfsError::NoXattr),
        };
        Ok(text.into_bytes())
    }

    /// What a version says of itself.
    async fn version_xattr(&self, name: &[u8], slot: usize, row: RowId) -> Result<Option<String>, VfsError> {
        let key = self.view_key(slot)?;
        Ok(match name {
            b"bundle" => Some(key.bundle.to_string()),
            b"contributor" if row == RowId::ROOT => Some(self.view(slot).await?.descriptor().who.clone()),
            b"labels" if row == RowId::ROOT => Some(labels_of(&self.refs(key.repo.id).await?, key.bundle)),
            b"state" if row == RowId::ROOT => Some(bundle_state(&self.refs(key.repo.id).await?, key.bundle).to_owned()),
            _ => None,
        })
    }

    /// The repo that a node lies in.
    fn repo_of(&self, node: &Node) -> Result<RepoKey, VfsError> {
        match node {
            Node::Row { slot, .. } => Ok(self.view_key(*slot)?.repo),
            Node::Staged { slot, .. } => Ok(self.committer(*slot)?.0),
            Node::Name(node) => node.repo().cloned().ok_or(VfsError::NoXattr),
        }
    }

    /// A list as it is shown.
    pub(super) async fn acl(&self, ino: Ino, kind: AclKind) -> Result<Acl, VfsError> {
        let (stored, attributes) = match self.node(ino)? {
            Node::Staged { slot, ino } => self.tree(slot)?.acl(ino, kind).await?,
            Node::Row { slot, row } => {
                let entry = self.entry(slot, row).await?;
                (entry.xattrs.get(kind.name()).cloned().ok_or(VfsError::NoXattr)?, entry.attributes)
            }
            Node::Name(_) => return Err(VfsError::NoXattr),
        };
        // What was set is a list: this one was damaged, or committed by something else.
        let damaged = |why| VfsError::Failed(format!("a stored ACL: {why} (setfacl -b removes it)"));
        let mut acl = Acl::decode(&stored).map_err(damaged)?;
        if kind == AclKind::Access {
            acl.chmod(self.settings().shown.of(attributes).permissions);
        }
        Ok(acl)
    }

    /// The names of all xattrs that are shown.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, VfsError> {
        let mut names = match self.node(ino)? {
            Node::Staged { slot, ino } => self.tree(slot)?.listxattr(ino).await?,
            Node::Row { slot, row } => self.entry(slot, row).await?.xattrs.keys().cloned().collect(),
            Node::Name(_) => Vec::new(),
        };
        names.retain(|name| self.kind_of(name).is_ok());
        Ok(names)
    }

    /// Sets an xattr of a staged entry, or moves a label: `user.datamon.bundle` of `labels/NAME`. `groups`, asked only when
    /// it matters, are the groups that the caller is in besides its own.
    pub async fn setxattr(
        &self,
        ino: Ino,
        set: SetXattr<'_>,
        caller: Caller,
        groups: impl FnOnce() -> Vec<u32>,
    ) -> Result<(), VfsError> {
        if set.name == b"user.datamon.bundle"
            && let Node::Row { slot, row: RowId::ROOT } = self.node(ino)?
        {
            return self.told(set.name, self.move_label_of(slot, set.value, set.create, caller).await);
        }
        let kind = self.kind_of(set.name)?;
        let (tree, inner) = self.xattr_target(ino, set.name, &kind)?;
        let Kind::Acl(kind) = kind else {
            return Ok(tree.setxattr(inner, set.name, set.value, set.create, set.replace).await?);
        };
        let acl = Acl::decode(set.value)?;
        let kill_setgid = kind == AclKind::Access && self.is_outside(ino, caller, groups).await?;
        Ok(tree.set_acl(inner, kind, &acl, kill_setgid).await?)
    }

    /// Removes an xattr of a staged entry.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), VfsError> {
        let kind = self.kind_of(name)?;
        let (tree, ino) = self.xattr_target(ino, name, &kind)?;
        match tree.removexattr(ino, name).await {
            // As on a local file system: afterwards there is none.
            Err(StagingError::NoXattr) if matches!(kind, Kind::Acl(_)) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn kind_of<'a>(&self, name: &'a [u8]) -> Result<Kind<'a>, VfsError> {
        match AclKind::of(name) {
            Some(kind) if self.settings().acl => Ok(Kind::Acl(kind)),
            Some(_) => Err(VfsError::NotSupported("ACLs are off (-o acl turns them on)")),
            None if !name.starts_with(b"user.") => Err(VfsError::NotSupported("only user.* xattrs and ACLs")),
            None => Ok(name.strip_prefix(OURS).map_or(Kind::User, Kind::Own)),
        }
    }

    fn xattr_target(&self, ino: Ino, name: &[u8], kind: &Kind<'_>) -> Result<(Arc<Tree>, u64), VfsError> {
        let misplaced = |why| self.told(name, Err(VfsError::Misplaced(why)));
        if matches!(kind, Kind::Own(_)) {
            return misplaced("datamon's own to say (of a label, user.datamon.bundle moves it)");
        }
        match self.node(ino)? {
            Node::Staged { slot, ino } => {
                self.writable()?;
                Ok((self.tree(slot)?, ino))
            }
            Node::Row { slot, .. } => Err(self.in_version(slot)),
            Node::Name(_) => misplaced("files of a staging tree have xattrs, repos and labels have not"),
        }
    }

    /// Whether the caller gives a set-group-id entry another mode without being in its group. The kernel leaves the question
    /// to us: fuser does not hand its answer over (FUSE_SETXATTR_ACL_KILL_SGID).
    async fn is_outside(&self, ino: Ino, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> Result<bool, VfsError> {
        let shown = self.getattr(ino).await?.attr.attributes;
        let matters = caller.uid != 0 && caller.gid != shown.gid && shown.permissions & SET_GROUP_ID != 0;
        Ok(matters && !groups().contains(&shown.gid))
    }
}

/// What an entry of a version says of itself.
fn row_xattr(name: &[u8], body: &Body) -> Option<String> {
    match (name, body) {
        (b"rfiles", Body::Directory { counts, .. }) => Some(counts.files.to_string()),
        (b"rbytes", Body::Directory { counts, .. }) => Some(counts.bytes.to_string()),
        (b"blake3", Body::File(file)) => file.whole_hash().map(|hash| ObjectHash(hash).to_string()),
        _ => None,
    }
}
