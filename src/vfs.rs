//! L6, the namespace in POSIX words: what lies where, what may be done to it, and which refusal is which.
//!
//! ```text
//! context/ ── repo/ ┬ bundles/<id>/…     snapshots
//!                   ├ labels/<name>/…    snapshots, as of the walk
//!                   ├ at/<time>/…        snapshots: the newest until then
//!                   ├ staging/…          the writable tree
//!                   └ .datamon/          text files (never listed)
//! ```
//! What is mounted is a path in this namespace; its node becomes the mount's root.
//!
//! # Invariants
//!
//! 1. Numbers are unique in a mount and structured: bit 63 a staging tree and its own number, bit 62 a view and a row,
//!    else a name of the namespace (a small table that only grows by names that exist).
//! 2. Two views never share a number, so no directory is seen under two parents.
//! 3. Nothing here knows FUSE; errno lives in [`error`] alone.

pub mod control;
mod deleters;
pub mod error;
pub mod follow;
mod gestures;
mod holder;
pub mod identity;
pub mod known;
mod left;
mod lineage;
pub mod namespace;
pub mod node;
mod opened;
pub mod read_log;
mod remembered;
mod rows;
pub mod shown;
pub mod xattrs;

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use crate::model::chunk::ChunkSize;
use crate::model::entry::{Attributes, Body, Entry, Region, SET_GROUP_ID, SET_USER_ID};
use crate::model::name::FileName;
use crate::staging::inode::{FileData, InodeBody, ROOT};
use crate::staging::tree::{Caller, NodeAttr, SetAttr, StagingError};
use error::VfsError;
pub use namespace::{BaseChoice, Settings, Source, Vfs};
use node::{Ino, NameNode, Node};
pub(crate) use opened::{OpenTree, Trees, Views};

/// How long the kernel may rely on an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Never changes behind the kernel's back.
    Long,
    /// May change elsewhere.
    Short,
    /// Was true a while ago, and will be old in so long.
    Old(Duration),
    /// Ask again.
    None,
}

impl Ttl {
    /// As a duration.
    pub fn duration(self) -> Duration {
        match self {
            Self::Long => Duration::from_secs(24 * 3600),
            Self::Short => Duration::from_secs(1),
            Self::Old(rest) => rest,
            Self::None => Duration::ZERO,
        }
    }
}

/// An entry as the kernel is told of it. The number in `attr` is the mount's.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Attributes.
    pub attr: NodeAttr,
    /// How long they hold.
    pub ttl: Ttl,
}

/// What looking for a name found.
#[derive(Debug, Clone, Copy)]
pub enum Looked {
    /// An entry.
    Found(Found),
    /// There is no such name, and for so long nobody need ask again.
    Absent(Duration),
}

/// One name of a directory.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The name.
    pub name: FileName,
    /// What it names.
    pub found: Found,
}

/// How a file was opened.
#[derive(Clone)]
pub enum Opened {
    /// Bytes never change: the kernel may keep what it has read.
    Immutable,
    /// A file of a staging tree: changes go through this mount, so the kernel may keep what it has read.
    Staged,
    /// A text of this moment, read past the kernel's cache.
    Text(Bytes),
    /// A text that only grows, or is too long to be made at once: made as it is read, past the kernel's cache.
    AsRead,
    /// Takes commands.
    Control,
}

/// What fallocate(2) is to do.
#[derive(Debug, Clone, Copy)]
pub struct Allocate {
    /// The range reads as zeros afterwards.
    pub zero: bool,
    /// The file becomes no longer.
    pub keep_size: bool,
    /// Clear set-user-id and set-group-id, as a write by an ordinary user does.
    pub kill: bool,
}

/// What is to be made.
#[derive(Debug, Clone)]
pub enum Make {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink with its target.
    Symlink(Bytes),
    /// A pipe, socket or device.
    Special(Body),
}

/// Why chmod(1) and its like do nothing in the namespace.
const NO_ATTRIBUTES: &str = "those of the mount's owner (files go into REPO/staging/, where they can be set; rmdir removes an \
    empty repo; uid=, gid= and umask= say what is shown)";
/// Why link(2) does nothing there.
const NO_LINKS: &str = "a hard link lies in the staging tree of its file";

impl Vfs {
    /// The entry `name` of the directory `parent`, or how long its absence lasts.
    ///
    /// In a snapshot for ever. In a staging tree too: names there change through this mount only, and when the tree gets
    /// another base the kernel is told to forget what it knew to be absent (see [`follow`]). In the namespace above not
    /// at all: a label or bundle made by a commit or on another host is there at the next look.
    pub async fn look(&self, parent: Ino, name: &FileName) -> Result<Looked, VfsError> {
        match self.lookup(parent, name).await {
            Ok(found) => Ok(Looked::Found(found)),
            Err(error @ (VfsError::NotFound | VfsError::Staging(StagingError::NotFound))) => match self.node(parent)? {
                Node::Staged { .. } | Node::Row { .. } => Ok(Looked::Absent(Ttl::Long.duration())),
                Node::Name(_) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The entry `name` of the directory `parent`.
    pub async fn lookup(&self, parent: Ino, name: &FileName) -> Result<Found, VfsError> {
        match self.node(parent)? {
            Node::Staged { slot, ino } => {
                if ino == ROOT && name.as_bytes() == control::DIRECTORY {
                    let repo = self.committer(slot)?.0;
                    return Ok(self.control_directory(node::Scope::Staging(repo)));
                }
                let tree = self.tree(slot)?;
                Ok(self.staged(slot, tree.lookup(ino, name).await?))
            }
            node @ Node::Row { slot, row } => {
                if name.as_bytes() == control::DIRECTORY && *self.root() == node {
                    let repo = self.view_key(slot)?.repo;
                    return Ok(self.control_directory(node::Scope::Repo(repo)));
                }
                let snapshot = self.view(slot).await?;
                let path = snapshot.directory_path(row).await?.ok_or(VfsError::NotDirectory)?;
                let found = snapshot.lookup(&path, name).await?;
                let (row, entry) = found.ok_or(VfsError::NotFound)?;
                Ok(self.row(slot, row, &entry, &snapshot).await)
            }
            Node::Name(node) => self.lookup_name(&node, name).await,
        }
    }

    /// Attributes.
    pub async fn getattr(&self, ino: Ino) -> Result<Found, VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino } => {
                let found = self.staged(slot, self.tree(slot)?.getattr(ino).await?);
                // The kernel asks again after that, which is when a clean tree that is the mount itself follows.
                let ttl = if ino == ROOT { self.rest(Some(self.store().clock.now())) } else { found.ttl };
                Ok(Found { ttl, ..found })
            }
            Node::Row { slot, row } => {
                let snapshot = self.view(slot).await?;
                match snapshot.row(row).await?.ok_or(VfsError::Stale)?.value {
                    crate::format::range::RowValue::Entry(entry) => Ok(self.row(slot, row, &entry, &snapshot).await),
                    _ => Err(VfsError::Stale),
                }
            }
            Node::Name(node) => self.getattr_name(&node).await,
        }
    }

    /// Changes attributes; of a text file nothing but the length of `message`.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Found, VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino } => {
                self.writable()?;
                let set = self.settings().shown.unless_shown(set);
                Ok(self.staged(slot, self.tree(slot)?.setattr(ino, set).await?))
            }
            Node::Row { slot, .. } => Err(self.in_version(slot)),
            Node::Name(NameNode::Text(scope, text)) if (set.permissions, set.uid, set.gid) == (None, None, None) => {
                self.set_text_attr(&scope, &text, set.size).await
            }
            Node::Name(_) => self.told(b"mode, owner or times", Err(VfsError::Misplaced(NO_ATTRIBUTES))),
        }
    }

    /// Up to `max` names of a directory in order, after `after`.
    pub async fn list(&self, ino: Ino, after: Option<&FileName>, max: usize) -> Result<Vec<Listed>, VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino } => {
                let listed = self.tree(slot)?.list(ino, after, max).await?;
                Ok(listed.into_iter().map(|(name, attr)| Listed { name, found: self.staged(slot, attr) }).collect())
            }
            Node::Row { slot, row } => {
                let snapshot = self.view(slot).await?;
                let path = snapshot.directory_path(row).await?.ok_or(VfsError::NotDirectory)?;
                self.list_rows(slot, &snapshot, &path, after, max).await
            }
            Node::Name(node) => self.list_names(&node, after, max).await,
        }
    }

    /// The target of a symlink.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino } => Ok(self.tree(slot)?.readlink(ino).await?),
            Node::Row { slot, row } => match self.entry(slot, row).await?.body {
                Body::Symlink(target) => Ok(target),
                _ => Err(VfsError::Invalid("not a symlink")),
            },
            Node::Name(NameNode::LabelLink(repo, label)) => Ok(self.label_target(&repo, &label).await?.into()),
            Node::Name(_) => Err(VfsError::Invalid("not a symlink")),
        }
    }

    async fn entry(&self, slot: usize, row: crate::snapshot::RowId) -> Result<Entry, VfsError> {
        match self.view(slot).await?.row(row).await?.ok_or(VfsError::Stale)?.value {
            crate::format::range::RowValue::Entry(entry) => Ok(entry),
            _ => Err(VfsError::Stale),
        }
    }

    /// Makes an entry in a staging tree, a repo, or a label.
    pub async fn make(
        &self,
        parent: Ino,
        name: &FileName,
        permissions: u16,
        what: Make,
        caller: Caller,
    ) -> Result<Found, VfsError> {
        match self.node(parent)? {
            Node::Staged { slot, ino } => {
                self.writable()?;
                let body = match what {
                    Make::File => InodeBody::File(FileData::empty()),
                    Make::Directory => InodeBody::Directory,
                    Make::Symlink(target) => InodeBody::Other(Body::Symlink(target)),
                    Make::Special(body) => InodeBody::Other(body),
                };
                let caller = self.settings().shown.maker(caller);
                let attr = self.tree(slot)?.create(ino, name, permissions, body, caller).await?;
                Ok(self.staged(slot, attr))
            }
            Node::Row { slot, .. } => Err(self.in_version(slot)),
            Node::Name(node) => self.told(name.as_bytes(), self.make_name(&node, name, what, caller).await),
        }
    }

    /// Gives a staged entry a further name.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &FileName) -> Result<Found, VfsError> {
        match (self.node(ino)?, self.node(parent)?) {
            (Node::Staged { slot: from, ino }, Node::Staged { slot, ino: parent }) if from == slot => {
                self.writable()?;
                Ok(self.staged(slot, self.tree(slot)?.link(ino, parent, name).await?))
            }
            (_, Node::Row { slot, .. }) => Err(self.in_version(slot)),
            (_, Node::Name(_)) => self.told(name.as_bytes(), Err(VfsError::Misplaced(NO_LINKS))),
            _ => Err(VfsError::OtherTree),
        }
    }

    /// Removes a name that is no directory's; the thread `tid` asks for it.
    pub async fn unlink(&self, parent: Ino, name: &FileName, caller: Caller, tid: u32) -> Result<(), VfsError> {
        match self.node(parent)? {
            Node::Staged { slot, ino } => {
                self.writable()?;
                Ok(self.tree(slot)?.unlink(ino, name).await?)
            }
            Node::Row { slot, .. } => Err(self.refused_below(slot)),
            Node::Name(node) => self.told(name.as_bytes(), self.unlink_name(&node, name, caller, tid).await),
        }
    }

    /// Removes an empty directory, an empty repo, a label; the thread `tid` asks for it.
    pub async fn rmdir(&self, parent: Ino, name: &FileName, caller: Caller, tid: u32) -> Result<(), VfsError> {
        match self.node(parent)? {
            Node::Staged { slot, ino } => {
                self.writable()?;
                Ok(self.tree(slot)?.rmdir(ino, name).await?)
            }
            Node::Row { slot, .. } => Err(self.refused_below(slot)),
            Node::Name(node) => self.told(name.as_bytes(), self.remove_name(&node, name, caller, tid).await),
        }
    }

    /// Moves a name; with `exchange` the two change places.
    pub async fn rename(
        &self,
        from: (Ino, &FileName),
        to: (Ino, &FileName),
        no_replace: bool,
        exchange: bool,
        caller: Caller,
    ) -> Result<(), VfsError> {
        match (self.node(from.0)?, self.node(to.0)?) {
            (Node::Staged { slot, ino: a }, Node::Staged { slot: other, ino: b }) if slot == other => {
                self.writable()?;
                let tree = self.tree(slot)?;
                if exchange {
                    return Ok(tree.exchange((a, from.1), (b, to.1)).await?);
                }
                Ok(tree.rename(a, from.1, b, to.1, no_replace).await?)
            }
            (Node::Name(a), Node::Name(b)) if a == b && !exchange => {
                self.told(from.1.as_bytes(), self.rename_name(&a, (from.1, to.1), no_replace, caller).await)
            }
            (Node::Row { slot, .. }, _) | (_, Node::Row { slot, .. }) => Err(self.in_version(slot)),
            (Node::Name(a), Node::Name(b)) => {
                let is_there = self.lookup_name(&b, to.1).await.is_ok();
                self.told(from.1.as_bytes(), Err(gestures::not_moved(&a, &b, is_there)))
            }
            (Node::Name(a), _) => self.told(from.1.as_bytes(), Err(gestures::not_moved_out(&a))),
            (_, Node::Name(b)) => {
                let is_there = self.lookup_name(&b, to.1).await.is_ok();
                self.told(from.1.as_bytes(), Err(gestures::not_moved_in(&b, is_there)))
            }
            _ => Err(VfsError::OtherTree),
        }
    }

    /// Opens a file. `groups`, asked only when it matters, are the groups that the caller is in besides its own.
    pub async fn open(
        &self,
        ino: Ino,
        for_writing: bool,
        caller: Caller,
        groups: impl FnOnce() -> Vec<u32>,
    ) -> Result<Opened, VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino: inner } => {
                if !for_writing {
                    self.tree(slot)?.open_file(inner).await?;
                    return Ok(Opened::Staged);
                }
                // Counted before the look: a freeze looks in the other order, so that one of both sees the other.
                self.count_writer(ino, true);
                let opened = async { Ok(self.writable().map(|()| self.tree(slot))??.open_file(inner).await?) }.await;
                opened.map(|()| Opened::Staged).inspect_err(|_: &VfsError| self.count_writer(ino, false))
            }
            Node::Row { slot, .. } if for_writing => Err(self.in_version(slot)),
            Node::Row { .. } => {
                self.open_immutable(ino);
                Ok(Opened::Immutable)
            }
            Node::Name(NameNode::Text(scope, text)) => {
                if text == node::Text::Ctl {
                    let permitted = self.may_command(&scope, caller, groups).await;
                    self.told(control::DIRECTORY, permitted)?;
                }
                let opened = self.open_text(&scope, &text, for_writing).await;
                if for_writing { self.told(control::DIRECTORY, opened) } else { opened }
            }
            Node::Name(_) => Err(VfsError::IsDirectory),
        }
    }

    /// Ends an open.
    pub async fn release(&self, ino: Ino) -> Result<(), VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino } => Ok(self.tree(slot)?.release(ino).await?),
            Node::Row { .. } => {
                self.close_immutable(ino);
                Ok(())
            }
            Node::Name(_) => Ok(()),
        }
    }

    /// Whether the number is of something that never changes, so that an open of it needs no handle.
    pub fn is_immutable(&self, ino: Ino) -> bool {
        matches!(self.node(ino), Ok(Node::Row { .. }))
    }

    /// Whether what is mounted is a snapshot: but for the texts of `.datamon`, nothing that this mount shows ever changes.
    pub fn is_all_immutable(&self) -> bool {
        matches!(self.root(), Node::Row { .. })
    }

    /// Bytes of a file, cut at its end, in parts, for the user `uid`.
    pub async fn read(&self, ino: Ino, range: Range<u64>, uid: u32) -> Result<Vec<Bytes>, VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino } => Ok(vec![self.tree(slot)?.read(ino, range).await?]),
            Node::Row { slot, row } => {
                let snapshot = self.view(slot).await?;
                let Body::File(file) = self.entry(slot, row).await?.body else { return Err(VfsError::IsDirectory) };
                let chunk: ChunkSize = snapshot.descriptor().chunk_size;
                let parts = snapshot.reader().read_parts(&file, chunk, range).await;
                let parts = parts.map_err(crate::snapshot::SnapshotError::from)?;
                self.note_read(slot, row, uid, parts.iter().map(|part| part.len() as u64).sum());
                Ok(parts)
            }
            Node::Name(NameNode::Text(scope, text)) => {
                if let Some((part, _)) = self.growing(scope.repo(), &text, range.clone()).await? {
                    return Ok(vec![part]);
                }
                if let node::Text::BundleFiles(bundle) = text {
                    let size = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
                    return Ok(vec![self.bundle_files(&scope, bundle).await?.read(range.start, size).await?]);
                }
                // Where the kernel opens without us there is no handle to keep a text in.
                if !self.is_all_immutable() {
                    return Err(VfsError::Invalid("a text is read through its handle"));
                }
                let text = self.read_text(&scope, &text).await?;
                let end = (text.len() as u64).min(range.end);
                Ok(vec![text.slice(range.start.min(end) as usize..end as usize)])
            }
            Node::Name(_) => Err(VfsError::Invalid("a text is read through its handle")),
        }
    }

    /// The text with this number as it is now.
    pub async fn text_now(&self, ino: Ino) -> Result<Bytes, VfsError> {
        match self.node(ino)? {
            Node::Name(NameNode::Text(scope, text)) => self.read_text(&scope, &text).await,
            _ => Err(VfsError::Invalid("not a text")),
        }
    }

    /// Writes bytes of a staged file, if that can be done at once; `None`: nothing was done, [`Vfs::write`] has to.
    pub fn write_now(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        append: bool,
        kill: bool,
    ) -> Option<Result<(), VfsError>> {
        let Ok(Node::Staged { slot, ino: inner }) = self.node(ino) else { return None };
        let tree = self.tree(slot).ok()?;
        let written = tree.try_write(inner, offset, data, append, kill)?;
        self.forget_killed(ino, kill);
        Some(written.map(drop).map_err(VfsError::from))
    }

    /// Notes that the kernel wrote back what was stored through a mapping, and was refused.
    pub fn refused_mapped(&self, ino: Ino, range: Range<u64>) {
        if let Ok(Node::Staged { slot, ino }) = self.node(ino)
            && let Ok(tree) = self.tree(slot)
        {
            tree.refused_mapped(ino, range);
        }
    }

    /// Writes bytes of a staged file, or into a text.
    pub async fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        (append, kill): (bool, bool),
        caller: Caller,
    ) -> Result<(), VfsError> {
        match self.node(ino)? {
            Node::Staged { slot, ino: inner } => {
                self.tree(slot)?.write(inner, offset, data, append, kill).await?;
                self.forget_killed(ino, kill);
                Ok(())
            }
            Node::Row { slot, .. } => Err(self.in_version(slot)),
            Node::Name(NameNode::Text(scope, text)) => {
                self.write_text(&scope, &text, (!append).then_some(offset), data, caller).await
            }
            Node::Name(_) => Err(VfsError::NotPermitted),
        }
    }

    /// Lets a staged file name `len` bytes of another file, of a version or staged, instead of copying them, for the user
    /// `uid`. Answers how many bytes that came to be. [`VfsError::OtherTree`]: the kernel is to copy them (copy_file_range(2)).
    pub async fn share(
        &self,
        (from, start): (Ino, u64),
        (to, at): (Ino, u64),
        len: u64,
        (uid, kill): (u32, bool),
    ) -> Result<u64, VfsError> {
        let Node::Staged { slot, ino: inner } = self.node(to)? else { return Err(VfsError::OtherTree) };
        self.writable()?;
        if start != at {
            return Err(VfsError::OtherTree);
        }
        let range = start..start.saturating_add(len);
        let shared = match self.node(from)? {
            Node::Staged { slot: other, ino } if other == slot => {
                Ok(self.tree(slot)?.share_of_staged(ino, inner, range, kill).await?)
            }
            Node::Row { slot: view, row } => {
                let snapshot = self.view(view).await?;
                let Body::File(body) = self.entry(view, row).await?.body else { return Err(VfsError::IsDirectory) };
                let committer = self.committer(slot)?.1;
                let shared = committer.share_of_bundle(&snapshot, &body, inner, range, kill).await;
                if let Ok(Some(bytes)) = shared {
                    self.note_read(view, row, uid, bytes);
                }
                shared
            }
            _ => return Err(VfsError::OtherTree),
        };
        let shared = shared.unwrap_or_else(|error| {
            // The copy byte by byte says what is wrong, if it fails too.
            tracing::debug!(%error, "a copy moves bytes");
            None
        });
        self.forget_killed(to, kill && shared.is_some());
        shared.ok_or(VfsError::OtherTree)
    }

    /// Makes `range` read as zeros, or only makes sure that there is room for it and the file reaches there.
    pub async fn allocate(&self, ino: Ino, range: Range<u64>, how: Allocate) -> Result<(), VfsError> {
        let (slot, inner) = match self.node(ino)? {
            Node::Staged { slot, ino } => (slot, ino),
            Node::Row { slot, .. } => return Err(self.in_version(slot)),
            Node::Name(_) => return Err(VfsError::NotSupported("a text has no room of its own")),
        };
        self.writable()?;
        let tree = self.tree(slot)?;
        // Whether or not there is anything else to do, as on a local file system.
        if how.kill && tree.getattr(inner).await?.attributes.permissions & (SET_USER_ID | SET_GROUP_ID) != 0 {
            tree.setattr(inner, SetAttr { kill_privileges: true, ..SetAttr::default() }).await?;
            self.forget_killed(ino, true);
        }
        if how.zero {
            tree.punch(inner, range.clone()).await?;
        }
        if !how.keep_size {
            tree.grow(inner, range.end).await?;
        }
        Ok(())
    }

    /// Where a region of this kind begins, at `offset` or behind it; there is always a hole at the end.
    pub async fn seek(&self, ino: Ino, offset: u64, region: Region) -> Result<u64, VfsError> {
        let found = match self.node(ino)? {
            Node::Staged { slot, ino: inner } => {
                // What was only stored through a mapping is not here yet.
                self.flush_mapped_of(ino).await;
                self.tree(slot)?.seek(inner, offset, region).await?
            }
            Node::Row { slot, row } => {
                let snapshot = self.view(slot).await?;
                let Body::File(file) = self.entry(slot, row).await?.body else { return Err(VfsError::IsDirectory) };
                let chunk = snapshot.descriptor().chunk_size;
                snapshot
                    .reader()
                    .seek(&file, chunk, offset, region)
                    .await
                    .map_err(crate::snapshot::SnapshotError::from)?
            }
            Node::Name(_) => return Err(VfsError::Invalid("a text has no holes")),
        };
        found.ok_or(VfsError::PastTheEnd)
    }

    /// Makes what was done to a staging tree safe from a power cut.
    pub async fn fsync(&self, ino: Ino) -> Result<(), VfsError> {
        let slot = match self.node(ino)? {
            Node::Staged { slot, .. } => slot,
            // Nobody is told that what lies there is safe, or committed.
            Node::Name(NameNode::BusyStaging(_)) => return Err(self.busy()),
            _ => return Ok(()),
        };
        let tree = self.tree(slot)?;
        tokio::task::spawn_blocking(move || tree.sync()).await.map_err(|_| VfsError::Failed("sync".to_owned()))??;
        Ok(())
    }

    /// What bounds the tree that `ino` lies in: of a snapshot its own bytes and files, else the file system under the
    /// state directory.
    pub async fn statfs(&self, ino: Ino) -> Result<crate::local::sys::FileSystem, VfsError> {
        if let Node::Row { slot, .. } = self.node(ino)? {
            const BLOCK_BYTES: u32 = 4096;
            let counts = self.view(slot).await?.descriptor().counts;
            return Ok(crate::local::sys::FileSystem {
                block_bytes: BLOCK_BYTES,
                blocks: counts.bytes.div_ceil(BLOCK_BYTES.into()),
                files: counts.files + counts.directories + 1,
                ..Default::default()
            });
        }
        let state = &self.settings().state;
        // Before the first staging tree there may be no state directory; what holds it has the same answer.
        let existing = state.ancestors().find(|dir| dir.exists()).unwrap_or(state);
        crate::local::sys::file_system(existing)
            .map_err(|error| VfsError::Failed(format!("{}: {error}", state.display())))
    }

    /// Why nothing changes in the version at `slot`; `status` says it, too.
    fn in_version(&self, slot: usize) -> VfsError {
        let place = self.view_key(slot).map_or_else(|_| "a version".to_owned(), |key| key.place());
        let refused = VfsError::Version(place);
        self.note_error(&refused);
        refused
    }

    fn writable(&self) -> Result<(), VfsError> {
        match () {
            () if self.is_read_only() => Err(VfsError::ReadOnly),
            () if self.is_frozen() => Err(StagingError::Frozen.into()),
            () => Ok(()),
        }
    }

    fn staged(&self, slot: usize, attr: NodeAttr) -> Found {
        let ino = self.to_kernel(Node::staged_ino(slot, attr.ino));
        let attributes = self.settings().shown.of(attr.attributes);
        Found { attr: NodeAttr { ino, attributes, ..attr }, ttl: Ttl::Long }
    }

    /// Attributes of a directory of the namespace.
    pub(crate) fn namespace_directory(&self, ino: Ino, mtime: crate::model::clock::Timestamp) -> NodeAttr {
        let ((uid, gid), umask) = (self.shown_owner(), self.settings().shown.umask);
        let attributes = Attributes { permissions: 0o755 & !umask, uid, gid, mtime };
        let kind = crate::model::entry::FileKind::Directory;
        // Directories of the namespace are not counted.
        NodeAttr { ino, kind, attributes, atime: mtime, ctime: mtime, size: 0, nlink: 1, rdev: 0, blocks: 0 }
    }
}

/// The open trees and views of a mount, behind locks that are never held across an await.
pub(crate) type Shared<T> = Mutex<T>;
