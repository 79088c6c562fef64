//! Inodes to which neither a name nor an open file leads any more, while the kernel still knows them.
//!
//! As on a local file system they can be opened until the kernel forgets them: by an open that was on its way when the
//! name was replaced, and through /proc/self/fd of an O_PATH descriptor.
//!
//! ```text
//!   named ──last name goes──> open, without a name ──last release──┐
//!     └──────────last name goes, open for nobody──────────────> gone ──the kernel forgets──> its bytes are let go
//!                                  ^                               │
//!                                  └─────────────open─────────────┘
//! ```
//!
//! # Invariants
//!
//! 1. What is gone has no record in the database (or the base's, without a name and bytes), so the next life of the process
//!    lets its bytes go.
//! 2. There are no more of them than inodes in the kernel's cache. Where no kernel asks, there are none.
//! 3. An inode is put here after the change that ended it was written, and taken out by one: who opens it, or who forgets it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::error::StagingError;
use super::inode::{FileData, Inode, InodeBody, base_row};
use super::totals::Share;
use super::tree::{Tree, put_inode};
use crate::local::db::{Batch, Family};

/// An inode that a change ends, and what it was.
pub(super) struct Ended {
    ino: u64,
    inode: Inode,
}

/// See the module.
#[derive(Default)]
pub(super) struct Gone {
    inodes: Mutex<HashMap<u64, Inode>>,
    is_known: OnceLock<Box<dyn Fn(u64) -> bool + Send + Sync>>,
}

impl Gone {
    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, Inode>> {
        self.inodes.lock().expect("nothing panics while it holds what is gone")
    }

    /// Forgets all of them: nothing of the tree is used any more.
    pub fn clear(&self) {
        self.inodes().clear();
    }
}

impl Tree {
    /// Says how it is found out whether the kernel knows an inode. It has to say so until [`Tree::forget_gone`] is about to
    /// be called.
    pub fn set_known(&self, is_known: impl Fn(u64) -> bool + Send + Sync + 'static) {
        // A tree belongs to one mount; the first one's answer stays.
        let _ = self.gone().is_known.set(Box::new(is_known));
    }

    pub(super) fn is_gone(&self, ino: u64) -> bool {
        self.gone().inodes().contains_key(&ino)
    }

    /// The inode, also when neither a name nor an open file leads to it any more: the kernel may hold it, as somebody's
    /// working directory for one.
    pub(super) async fn seen(&self, ino: u64) -> Result<Inode, StagingError> {
        match self.inode(ino).await {
            Err(StagingError::Stale) => self.gone().inodes().get(&ino).cloned().ok_or(StagingError::Stale),
            found => found,
        }
    }

    /// Ends an inode that has no name and is not open. What comes of that is for [`Tree::keep_gone`], after the change.
    pub(super) fn bury(&self, batch: &mut Batch, ino: u64, mut inode: Inode) -> Ended {
        if let InodeBody::File(file) = &mut inode.body {
            self.forget_extents(batch, ino, file);
            self.totals().count(self.share(file), Share::default());
        }
        let base = self.base();
        if base.snapshot.is_some() && base_row(base.generation, ino).is_some() {
            // A record with no name hides nothing: it says that the base's link row has no name left.
            let body = match &inode.body {
                InodeBody::File(file) => InodeBody::File(FileData { size: file.size, ..FileData::empty() }),
                body => body.clone(),
            };
            put_inode(batch, ino, &Inode { body, ..inode.clone() });
        } else {
            batch.delete(Family::Inodes, ino.to_be_bytes());
        }
        Ended { ino, inode }
    }

    /// Keeps what a change has ended as long as the kernel knows it.
    pub(super) fn keep_gone(&self, ended: Option<Ended>) {
        let Some(Ended { ino, inode }) = ended else { return };
        self.gone().inodes().insert(ino, inode);
        // Looked at after that: who makes the kernel's last word known meanwhile finds it here.
        if !self.gone().is_known.get().is_some_and(|is_known| is_known(ino)) {
            self.forget_gone(ino);
        }
    }

    /// The kernel holds the inode no more.
    pub fn forget_gone(&self, ino: u64) {
        let gone = self.gone().inodes().remove(&ino);
        if let Some(Inode { body: InodeBody::File(file), .. }) = gone {
            self.forget_place(file.local);
        }
    }

    /// Makes an inode that is gone one that is open without a name; `false` if there is none. Under the lock of changes.
    pub(super) fn revive(&self, ino: u64) -> Result<bool, StagingError> {
        let Some(inode) = self.gone().inodes().remove(&ino) else { return Ok(false) };
        let mut batch = Batch::default();
        put_inode(&mut batch, ino, &inode);
        if let Err(error) = self.db().write(batch) {
            self.gone().inodes().insert(ino, inode);
            return Err(error.into());
        }
        if let InodeBody::File(file) = &inode.body {
            self.totals().count(Share::default(), self.share(file));
        }
        Ok(true)
    }
}
