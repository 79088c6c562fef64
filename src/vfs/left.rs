//! What earlier mounts left staged: told when a mount begins, committed by umount, in the way of who removes a repo.
//!
//! # Invariants
//!
//! 1. To see whether something is staged in a tree it is not opened: nobody's lock is kept, and the store is not asked.
//! 2. What was left is told until somebody looks into the tree, whose own lines in `status` say it from then on.

use std::path::PathBuf;

use super::error::VfsError;
use super::holder::{ENDING_POLL, ENDING_POLLS};
use super::namespace::BaseChoice;
use super::node::{NameNode, Node, RepoKey};
use super::{Shared, Vfs};
use crate::model::id::RepoId;
use crate::staging::tree::{StagingError, TreeLock};

/// Trees that an earlier mount left with changes, as they were found when this one began.
#[derive(Default)]
pub(super) struct LeftTrees(Shared<Vec<RepoKey>>);

/// What is to be said of trees that an earlier mount left.
#[derive(Default)]
pub(super) struct Left {
    pub failures: Vec<String>,
    pub notes: Vec<String>,
}

impl Vfs {
    /// Whether an earlier mount left changes in the tree in `dir`, which is not open here; busy while another mount has it.
    pub(super) async fn has_left(&self, dir: PathBuf) -> Result<bool, VfsError> {
        let memory = self.settings().database_memory.clone();
        let _opening = self.opening.lock().await;
        let looked = tokio::task::spawn_blocking(move || TreeLock::has_left(&dir, &memory)).await;
        Ok(looked.map_err(|_| VfsError::Failed("looking into a staging tree".to_owned()))??)
    }

    /// The slot of a repo's staging tree, if it is open here, or an earlier mount left changes in it; busy while another mount
    /// has it.
    pub(super) async fn changed_tree_slot(&self, repo: &RepoKey) -> Result<Option<usize>, VfsError> {
        let dir = self.tree_dir(repo);
        let is_open = self.tree_slots().iter().any(|open| open.id == repo.id);
        if is_open || (dir.exists() && self.has_left(dir).await?) {
            return Ok(Some(self.tree_slot(repo).await?));
        }
        Ok(None)
    }

    /// Whose trees this mount may have to do with: one repo's, or (`Some(None)`) all; `None`: nobody's.
    fn scope(&self) -> Option<Option<RepoId>> {
        match self.root() {
            Node::Name(NameNode::Context) => Some(None),
            Node::Name(NameNode::Repo(repo)) => Some(Some(repo.id)),
            Node::Staged { slot, .. } => Some(Some(self.committer(*slot).ok()?.0.id)),
            _ => None,
        }
    }

    /// The trees of this mount that exist and are not open.
    fn unopened_trees(&self) -> Vec<(RepoId, PathBuf)> {
        let Some(only) = self.scope() else { return Vec::new() };
        let open: Vec<_> = self.tree_slots().iter().map(|repo| repo.id).collect();
        let wanted = |id: &RepoId| !open.contains(id) && only.is_none_or(|only| only == *id);
        self.tree_dirs().into_iter().filter(|(id, _)| wanted(id)).collect()
    }

    /// Looks for trees in which an earlier mount left changes. Answers a sentence about each, for who mounts.
    pub async fn find_left(&self) -> Vec<String> {
        for (id, dir) in self.unopened_trees() {
            let looked = match self.repo_with(id).await {
                Ok(Some(repo)) => self.has_left_in_the_end(&repo).await.map(|has_left| has_left.then_some(repo)),
                // Of what is left for a repo that is gone umount speaks.
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match looked {
                Ok(left) => self.left_trees().extend(left),
                // Another mount has it: who that is, is told to whoever looks in.
                Err(VfsError::Staging(StagingError::Busy(_))) => {}
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "nobody knows whether changes are staged here")
                }
            }
        }
        let mut sentences = self.left_sentences(None);
        // One that is mounted itself was opened with what was in it.
        if let Node::Staged { slot, .. } = self.root()
            && let Ok((repo, committer)) = self.committer(*slot)
            && committer.tree().is_dirty()
        {
            let becomes = self.what_becomes();
            sentences.push(format!("{}: changes of an earlier mount are staged ({becomes})", repo.name));
        }
        sentences.extend(self.left_in_other_stages().await);
        sentences
    }

    /// The same of what was left under other names (`stage=`), which this mount neither shows nor commits: told when it begins.
    async fn left_in_other_stages(&self) -> Vec<String> {
        let Some(only) = self.scope() else { return Vec::new() };
        let mut sentences = Vec::new();
        for (id, stage, dir) in self.other_stages() {
            // One that another mount has, or that cannot be looked at, is told by a mount of it.
            if only.is_some_and(|only| only != id) || !self.has_left(dir).await.unwrap_or(false) {
                continue;
            }
            // The store is asked for the name only now.
            if let Ok(Some(RepoKey { name, .. })) = self.repo_with(id).await {
                let remedy = format!("mount it with -o stage={stage} to see or commit them");
                sentences.push(format!("{name}: changes are staged under stage={stage} ({remedy})"));
            }
        }
        sentences
    }

    /// The same, when a daemon that is about to end has let go of it.
    async fn has_left_in_the_end(&self, repo: &RepoKey) -> Result<bool, VfsError> {
        for _ in 0..ENDING_POLLS {
            match self.has_left(self.tree_dir(repo)).await {
                Err(VfsError::Staging(StagingError::Busy(_))) if self.ending_holder(repo).is_some() => {
                    tokio::time::sleep(ENDING_POLL).await;
                }
                looked => return looked,
            }
        }
        self.has_left(self.tree_dir(repo)).await
    }

    /// What is to be said of the trees of one repo, or of all, that were left with changes and that nobody has looked into since.
    pub(super) fn left_sentences(&self, repo: Option<RepoId>) -> Vec<String> {
        let open = self.tree_slots();
        let becomes = self.what_becomes();
        let is_left =
            |left: &&RepoKey| repo.is_none_or(|repo| repo == left.id) && !open.iter().any(|open| open.id == left.id);
        let sentence = |left: &RepoKey| {
            let RepoKey { name, .. } = left;
            format!("{name}: changes of an earlier mount are staged (see {name}/staging; {becomes})")
        };
        self.left_trees().iter().filter(is_left).map(sentence).collect()
    }

    /// What becomes of changes that were left.
    fn what_becomes(&self) -> &'static str {
        match self.settings().base {
            BaseChoice::Latest => "the next commit takes them along, discard puts them aside",
            _ => "the next commit takes them along, discard puts them aside; base= counts when they are gone",
        }
    }

    fn left_trees(&self) -> std::sync::MutexGuard<'_, Vec<RepoKey>> {
        self.control.left.0.lock().expect("nothing panics while it holds what was left")
    }

    /// Opens the trees of this mount that have changes of an earlier one. The store is asked only about such.
    pub(super) async fn open_left_trees(&self) -> Left {
        let mut left = Left::default();
        if self.is_read_only() {
            return left;
        }
        for (id, dir) in self.unopened_trees() {
            match self.has_left(dir.clone()).await {
                // Another mount has it: that one's umount sees to it.
                Ok(false) | Err(VfsError::Staging(StagingError::Busy(_))) => {}
                Ok(true) => match self.repo_with(id).await {
                    Ok(Some(repo)) => match self.tree_slot(&repo).await {
                        Ok(_) | Err(VfsError::Staging(StagingError::Busy(_))) => {}
                        Err(error) => left.failures.push(error.to_string()),
                    },
                    Ok(None) => left.notes.push(format!("{}: staged for a repo that was removed", dir.display())),
                    Err(error) => left.failures.push(format!("{}: {error}", dir.display())),
                },
                Err(error) => left.failures.push(error.to_string()),
            }
        }
        left
    }
}
