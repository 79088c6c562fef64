//! Who has a staging tree when it is not this mount: waited for while it ends, told while it lives.
//!
//! umount(8) returns before the daemon has ended, and for that moment the daemon still has the trees' locks. Whoever mounts
//! again at once must not see that.
//!
//! # Invariants
//!
//! 1. A holder that serves a mount is no reason to wait: its tree is busy at once. Only a mount of the tree itself waits for
//!    any holder, because it has nothing else to show.
//! 2. Nobody waits longer than two seconds, and for one holder not twice.
//! 3. While one waits, trees of other repos can be opened.

use std::collections::HashMap;
use std::time::Duration;

use super::error::VfsError;
use super::node::RepoKey;
use super::{Shared, Vfs};
use crate::model::id::RepoId;
use crate::staging::tree::{StagingError, TreeLock};

/// How often, and how many times, it is looked whether the tree is free.
pub(super) const ENDING_POLL: Duration = Duration::from_millis(20);
pub(super) const ENDING_POLLS: usize = 100;

/// What is known of those who have trees.
#[derive(Default)]
pub(super) struct Holders {
    /// By repo: its name, and what was said of who had its tree when somebody looked last.
    told: Shared<HashMap<RepoId, (String, String)>>,
    /// Processes that were about to end and did not while somebody waited.
    in_vain: Shared<HashMap<RepoId, u32>>,
}

impl Vfs {
    /// The slot of a repo's staging tree, opened now if it was not. A holder that is about to end is waited for.
    pub(crate) async fn tree_slot(&self, repo: &RepoKey) -> Result<usize, VfsError> {
        let outcome = self.try_tree_slot(repo).await;
        match &outcome {
            Err(VfsError::Staging(StagingError::Busy(_))) if self.ending_holder(repo).is_some() => {}
            _ => return outcome,
        }
        let outcome = self.wait_for_tree(repo, || self.ending_holder(repo).is_some()).await;
        if let (Err(_), Some(pid)) = (&outcome, self.ending_holder(repo)) {
            self.holders().in_vain.lock().expect("nothing panics while it holds the holders").insert(repo.id, pid);
        }
        outcome
    }

    /// The same for a mount of the tree itself, which waits for any holder.
    pub(super) async fn awaited_tree(&self, repo: &RepoKey) -> Result<usize, VfsError> {
        self.wait_for_tree(repo, || true).await
    }

    async fn wait_for_tree(&self, repo: &RepoKey, is_worth_waiting: impl Fn() -> bool) -> Result<usize, VfsError> {
        for _ in 0..ENDING_POLLS {
            match self.try_tree_slot(repo).await {
                Err(VfsError::Staging(StagingError::Busy(_))) if is_worth_waiting() => {
                    tokio::time::sleep(ENDING_POLL).await;
                }
                outcome => return outcome,
            }
        }
        self.try_tree_slot(repo).await
    }

    /// The process that has a tree, if it is about to end and was not waited for in vain. Before a mount appears there is
    /// nobody to ask.
    pub(super) fn ending_holder(&self, repo: &RepoKey) -> Option<u32> {
        let pid = TreeLock::holder(&self.tree_dir(repo))?;
        let in_vain =
            self.holders().in_vain.lock().expect("nothing panics while it holds the holders").get(&repo.id).copied();
        (in_vain != Some(pid) && self.kernel.get()?.is_ending(pid)).then_some(pid)
    }

    /// Notes who has a tree, for `status`.
    pub(super) fn note_holder(&self, repo: &RepoKey, why: String) {
        let mut told = self.holders().told.lock().expect("nothing panics while it holds the holders");
        told.insert(repo.id, (repo.name.to_string(), why));
    }

    /// Who had a tree when somebody looked last: the repo's name, and what is to be said.
    pub(super) fn noted_holders(&self) -> HashMap<RepoId, (String, String)> {
        self.holders().told.lock().expect("nothing panics while it holds the holders").clone()
    }

    fn holders(&self) -> &Holders {
        &self.control.holders
    }
}
