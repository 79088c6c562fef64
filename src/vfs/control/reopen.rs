//! `discard`, `undiscard` and `base`: the staged changes of a tree are put aside, brought back, and a clean tree is given
//! another bundle to start from.
//!
//! All close the tree, move what it consists of ([`crate::staging::aside`]) and open what is there then, as a mount does.
//! Numbers of the old tree mean nothing in the new one, so the kernel has to know nothing of it, as when a tree follows
//! `latest` ([`crate::vfs::follow`]): while somebody is in it, or a file of it is open, it is busy.

use std::sync::Arc;
use std::time::Duration;

use super::Vfs;
use crate::staging::aside;
use crate::staging::commit::Committer;
use crate::staging::tree::{StagingError, Tree, TreeLock};
use crate::vfs::error::VfsError;
use crate::vfs::namespace::BaseChoice;
use crate::vfs::node::RepoKey;

/// How often, and how many times, it is looked whether the last request has left a tree that is to be closed.
const LEAVE_POLL: Duration = Duration::from_millis(10);
const LEAVE_POLLS: usize = 300;
/// The same of the last close of a file: the kernel tells of it a moment after it.
const QUIET_POLLS: usize = 30;

/// What is done while the tree is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::vfs) enum Way {
    /// The changes are put aside.
    Discard,
    /// They are brought back.
    Undiscard,
    /// Nothing: it starts from another bundle.
    Base(BaseChoice),
}

fn busy(why: &str) -> VfsError {
    VfsError::Busy(format!("the staging tree is in use: {why}"))
}

impl Vfs {
    /// Closes the staging tree of a repo, and opens it again after what is to be done between.
    pub(in crate::vfs) async fn reopen(&self, repo: &RepoKey, way: Way) -> Result<(), VfsError> {
        self.writable()?;
        let slot = self.tree_slot(repo).await?;
        let open = self.open_tree_at(slot)?;
        let tree = open.committer.tree();
        if self.control.commits.is_running(repo.id) {
            return Err(busy("it is being committed (wait for that)"));
        }
        match &way {
            Way::Discard if !tree.is_dirty() => return Ok(()),
            Way::Undiscard | Way::Base(_) if tree.is_dirty() => {
                return Err(busy("it has changes (commit or discard them first)"));
            }
            Way::Base(choice) => self.expect_base(repo, choice).await?,
            Way::Undiscard if !aside::is_kept(tree.dir()) => {
                let what = "nothing is put aside (a discard keeps what it takes, until the next one or for 7 days)";
                return Err(VfsError::Missing(what.to_owned()));
            }
            _ => {}
        }
        // Nobody opens it, and it follows nothing, meanwhile.
        let _opening = self.opening.lock().await;
        let running = open.following.running().try_lock_owned();
        let _running = running.map_err(|_| busy("it is about to follow latest (try again)"))?;
        let in_it =
            || busy("somebody is in it, or has a file of it open (leave it and close them: fuser -vm shows them)");
        let mut closed = None;
        for _ in 0..QUIET_POLLS {
            closed = self.quiet(slot, &open.known, &open.committer).await?;
            if closed.is_some() {
                break;
            }
            tokio::time::sleep(LEAVE_POLL).await;
        }
        let closed = closed.ok_or_else(in_it)?;
        let mark = self.lineage.mark();
        let committer = self.take_committer(slot);
        let following = open.following.clone();
        drop(open);
        let lock = match close(committer, &way).await {
            Ok(lock) => lock,
            Err((committer, why)) => {
                self.put_committer(slot, committer);
                return Err(why.unwrap_or_else(in_it));
            }
        };
        let what = way.clone();
        let moved = tokio::task::spawn_blocking(move || {
            let moved = match what {
                Way::Discard => aside::discard(lock.dir()),
                Way::Undiscard => aside::restore(lock.dir()),
                Way::Base(_) => Ok(()),
            };
            // After a failure in the middle there is a tree again, or nothing is opened.
            aside::settle(lock.dir()).map(|()| (moved, lock))
        });
        let moved = moved.await.map_err(|_| VfsError::Failed("moving the changes".to_owned()))?;
        let (moved, lock) = moved.map_err(StagingError::from)?;
        let moved = moved.map_err(StagingError::from);
        match way {
            Way::Discard if moved.is_ok() => self.lineage.discarded(slot, mark),
            // What was refused in the middle may be back all the same.
            Way::Undiscard => self.lineage.brought_back(slot),
            Way::Discard | Way::Base(_) => {}
        }
        let chosen = if let Way::Base(choice) = way { Some(choice) } else { following.chosen() };
        let committer = self.open_tree(repo, Some(lock), chosen.as_ref()).await?;
        following.choose(chosen);
        self.put_committer(slot, Some(committer.clone()));
        drop(closed);
        self.forget_root_names(slot, &committer).await?;
        Ok(moved?)
    }

    /// Refuses a base that is not there, before anything is closed for it.
    async fn expect_base(&self, repo: &RepoKey, choice: &BaseChoice) -> Result<(), VfsError> {
        // What another host did is to count here at once.
        self.forget_refs(repo.id);
        if let Some(bundle) = self.base_of(repo, choice).await? {
            self.open_snapshot(repo.id, bundle).await?;
        }
        Ok(())
    }
}

/// A tree that is given back, and why where that is more than that it is in use.
type Kept = (Option<Arc<Committer>>, Option<VfsError>);

/// Closes a tree when the last request has left it.
async fn close(committer: Option<Arc<Committer>>, way: &Way) -> Result<TreeLock, Kept> {
    let Some(mut committer) = committer else { return Err((None, None)) };
    for _ in 0..LEAVE_POLLS {
        match Arc::try_unwrap(committer) {
            Ok(alone) => {
                // Now that nobody else can begin an upload.
                if let Err(error) = alone.abandon().await {
                    return Err((Some(alone.again()), Some(error.into())));
                }
                if Arc::strong_count(alone.tree()) == 1 {
                    // Nobody can make a change any more, and nobody comes between: the committer was the way to it.
                    if *way != Way::Discard && alone.tree().is_dirty() {
                        return Err((Some(alone.again()), Some(busy("it has changes by now"))));
                    }
                    return Arc::try_unwrap(alone.into_tree()).map(Tree::close).map_err(|_| (None, None));
                }
                committer = Arc::new(alone);
            }
            Err(shared) => committer = shared,
        }
        tokio::time::sleep(LEAVE_POLL).await;
    }
    Err((Some(Arc::try_unwrap(committer).map_or_else(|shared| shared, Committer::again)), None))
}
