//! What a mount has open: staging trees, and views of snapshots, each in a slot that its numbers name; and how they are opened.
//!
//! # Invariants
//!
//! 1. A slot is its tree's for as long as the mount lives, also while the tree is closed for a moment.
//! 2. The locks here are never held across an await.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::Vfs;
use super::error::VfsError;
use super::follow::Following;
use super::known::{Known, Pass};
use super::namespace::{BaseChoice, no_label};
use super::node::{Ino, Node, RepoKey, ViewKey};
use crate::model::id::{BundleId, RepoId};
use crate::model::name::{RepoName, StageName};
use crate::snapshot::{Snapshot, SnapshotError};
use crate::staging::commit::Committer;
use crate::staging::inode::ROOT;
use crate::staging::tree::{Tree, TreeConfig, TreeLock};
use crate::store::refs;

/// A staging tree that this mount has opened.
#[derive(Clone)]
pub(crate) struct OpenTree {
    pub(crate) repo: RepoKey,
    pub(crate) committer: Arc<Committer>,
    /// What the kernel knows of it.
    pub(crate) known: Arc<Known>,
    pub(crate) following: Arc<Following>,
}

/// The place of a staging tree, which it keeps while it is closed for a moment.
struct TreeSlot {
    repo: RepoKey,
    committer: Option<Arc<Committer>>,
    known: Arc<Known>,
    following: Arc<Following>,
}

impl TreeSlot {
    /// Lets the tree ask what the kernel knows.
    fn tell_known(&self, slot: usize) {
        if let Some(committer) = &self.committer {
            let known = self.known.clone();
            committer.tree().set_known(move |ino| known.has(Node::staged_ino(slot, ino)));
        }
    }
}

/// Staging trees that this mount has opened, by slot.
#[derive(Default)]
pub(crate) struct Trees {
    by_slot: Vec<TreeSlot>,
}

/// Snapshots that this mount shows, by slot; opened when something in them is asked for.
#[derive(Default)]
pub(crate) struct Views {
    pub(super) by_slot: HashMap<usize, (ViewKey, Option<Arc<Snapshot>>)>,
    pub(super) slots: HashMap<ViewKey, usize>,
}

impl Vfs {
    // ---- slots ---------------------------------------------------------------------------------------------------------

    pub(super) fn tree(&self, slot: usize) -> Result<Arc<Tree>, VfsError> {
        Ok(self.committer(slot)?.1.tree().clone())
    }

    /// The committer behind a staging tree's slot, and its repo.
    pub fn committer(&self, slot: usize) -> Result<(RepoKey, Arc<Committer>), VfsError> {
        self.open_tree_at(slot).map(|open| (open.repo, open.committer))
    }

    pub(crate) fn open_tree_at(&self, slot: usize) -> Result<OpenTree, VfsError> {
        let trees = self.trees.lock().expect("nothing panics while it holds the trees");
        let TreeSlot { repo, committer, known, following } = trees.by_slot.get(slot).ok_or(VfsError::Stale)?;
        let closed = || VfsError::Busy(format!("{}: the staging tree is closed for a moment (try again)", repo.name));
        let committer = committer.clone().ok_or_else(closed)?;
        Ok(OpenTree { repo: repo.clone(), committer, known: known.clone(), following: following.clone() })
    }

    fn following_at(&self, slot: usize) -> Option<Arc<Following>> {
        let trees = self.trees.lock().expect("nothing panics while it holds the trees");
        trees.by_slot.get(slot).map(|open| open.following.clone())
    }

    /// Takes a tree out of its slot, so that nobody else comes to it.
    pub(crate) fn take_committer(&self, slot: usize) -> Option<Arc<Committer>> {
        let mut trees = self.trees.lock().expect("nothing panics while it holds the trees");
        trees.by_slot.get_mut(slot)?.committer.take()
    }

    /// Puts a tree into the slot that it has, or that another had before.
    pub(crate) fn put_committer(&self, slot: usize, committer: Option<Arc<Committer>>) {
        let mut trees = self.trees.lock().expect("nothing panics while it holds the trees");
        if let Some(at) = trees.by_slot.get_mut(slot) {
            at.committer = committer;
            at.tell_known(slot);
        }
    }

    fn known_of(&self, slot: usize) -> Option<Arc<Known>> {
        let trees = self.trees.lock().expect("nothing panics while it holds the trees");
        trees.by_slot.get(slot).map(|open| open.known.clone())
    }

    /// The pass under which an answer with entries of the directory `ino` is worked out. Needed in staging trees only;
    /// waits while such a tree changes its base.
    pub async fn enter(&self, ino: Ino) -> Option<Pass> {
        let Ok(Node::Staged { slot, .. }) = self.node(ino) else { return None };
        match self.known_of(slot) {
            Some(known) => Some(known.enter().await),
            None => None,
        }
    }

    /// Counts an entry that the kernel is about to be given.
    pub fn remember(&self, ino: Ino) {
        if let Some(known) = self.counted(ino) {
            known.remember(ino);
        }
    }

    /// Takes such counts back.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        if let Some(known) = self.counted(ino)
            && known.forget(ino, lookups)
            && let Some(Node::Staged { slot, ino }) = Node::structured(ino)
            && let Ok(tree) = self.tree(slot)
        {
            tree.forget_gone(ino);
        }
    }

    /// Where entries with this number are counted: nothing outside staging trees is, and no root.
    fn counted(&self, ino: Ino) -> Option<Arc<Known>> {
        match Node::structured(ino) {
            Some(Node::Staged { slot, ino: inner }) if inner != ROOT => self.known_of(slot),
            _ => None,
        }
    }

    /// How many lookups of entries below the root of a staging tree the kernel has not taken back.
    pub fn known(&self, slot: usize) -> i64 {
        self.known_of(slot).map_or(0, |known| known.count())
    }

    /// The snapshot of a view, opened now if it was not.
    pub(crate) async fn view(&self, slot: usize) -> Result<Arc<Snapshot>, VfsError> {
        let key = {
            let views = self.views.lock().expect("nothing panics while it holds the views");
            match views.by_slot.get(&slot) {
                Some((_, Some(snapshot))) => return Ok(snapshot.clone()),
                Some((key, None)) => key.clone(),
                None => return Err(VfsError::Stale),
            }
        };
        let snapshot = self.open_snapshot(key.repo.id, key.bundle).await?;
        let mut views = self.views.lock().expect("nothing panics while it holds the views");
        let (_, opened) = views.by_slot.get_mut(&slot).ok_or(VfsError::Stale)?;
        Ok(opened.get_or_insert(snapshot).clone())
    }

    /// What a view shows.
    pub(crate) fn view_key(&self, slot: usize) -> Result<ViewKey, VfsError> {
        let views = self.views.lock().expect("nothing panics while it holds the views");
        views.by_slot.get(&slot).map(|(key, _)| key.clone()).ok_or(VfsError::Stale)
    }

    /// The slot of a view.
    pub(crate) fn view_slot(&self, key: ViewKey) -> usize {
        let mut views = self.views.lock().expect("nothing panics while it holds the views");
        if let Some(slot) = views.slots.get(&key) {
            return *slot;
        }
        // The same in every mount, but for two that meet.
        let free = |slot: &usize| !views.by_slot.contains_key(slot);
        let slot = key.slots().find(free).expect("there are more slots than memory for views");
        self.lineage.add_view(slot, key.repo.id, key.bundle);
        views.by_slot.insert(slot, (key.clone(), None));
        views.slots.insert(key, slot);
        slot
    }

    /// Gives views other numbers at the next look: the kernel takes the inodes of directories that were removed through it for
    /// removed as long as it knows them, and lists nothing in them. Who is in them keeps those.
    pub(crate) fn retire_views(&self, is_gone: impl Fn(&ViewKey) -> bool) {
        self.views.lock().expect("nothing panics while it holds the views").slots.retain(|key, _| !is_gone(key));
    }

    /// The slot of a repo's staging tree, opened now if it was not; busy while another mount has it.
    pub(crate) async fn try_tree_slot(&self, repo: &RepoKey) -> Result<usize, VfsError> {
        let _opening = self.opening.lock().await;
        let known = {
            let trees = self.trees.lock().expect("nothing panics while it holds the trees");
            let slot = trees.by_slot.iter().position(|open| open.repo.id == repo.id);
            match slot.filter(|slot| trees.by_slot[*slot].committer.is_some()) {
                Some(slot) => return Ok(slot),
                None => slot,
            }
        };
        let chosen = known.and_then(|slot| self.following_at(slot)).and_then(|following| following.chosen());
        let committer = Some(self.open_tree(repo, None, chosen.as_ref()).await?);
        if let Some(slot) = known {
            // It was closed, and what should have opened it again failed.
            self.put_committer(slot, committer);
            return Ok(slot);
        }
        let mut trees = self.trees.lock().expect("nothing panics while it holds the trees");
        let (known, following) = (Arc::default(), Arc::default());
        let slot = trees.by_slot.len();
        trees.by_slot.push(TreeSlot { repo: repo.clone(), committer, known, following });
        trees.by_slot[slot].tell_known(slot);
        Ok(slot)
    }

    /// All staging trees that this mount has opened.
    pub fn open_trees(&self) -> Vec<(RepoKey, Arc<Committer>)> {
        let trees = self.trees.lock().expect("nothing panics while it holds the trees");
        trees.by_slot.iter().filter_map(|open| Some((open.repo.clone(), open.committer.clone()?))).collect()
    }

    /// The slot of a repo's staging tree, if it is open.
    pub(super) fn open_slot_of(&self, repo: &RepoKey) -> Option<usize> {
        let trees = self.trees.lock().expect("nothing panics while it holds the trees");
        trees.by_slot.iter().position(|open| open.repo.id == repo.id && open.committer.is_some())
    }

    /// Lets the trees have the names that their repos have now.
    pub(crate) fn name_trees(&self, name_of: impl Fn(RepoId) -> Option<RepoName>) {
        let mut trees = self.trees.lock().expect("nothing panics while it holds the trees");
        for TreeSlot { repo, .. } in &mut trees.by_slot {
            repo.name = name_of(repo.id).unwrap_or_else(|| repo.name.clone());
        }
    }

    /// The slots of all staging trees, and whose they are.
    pub(crate) fn tree_slots(&self) -> Vec<RepoKey> {
        let trees = self.trees.lock().expect("nothing panics while it holds the trees");
        trees.by_slot.iter().map(|open| open.repo.clone()).collect()
    }

    // ---- where trees lie, and how they are opened ----------------------------------------------------------------------

    /// Loads a bundle.
    pub(super) async fn open_snapshot(&self, repo: RepoId, bundle: BundleId) -> Result<Arc<Snapshot>, VfsError> {
        Ok(Snapshot::open(self.reader.clone(), self.ranges.clone(), repo, bundle).await?)
    }

    /// The bundle that a choice means now.
    pub(super) async fn base_of(&self, repo: &RepoKey, choice: &BaseChoice) -> Result<Option<BundleId>, VfsError> {
        match choice {
            BaseChoice::Latest => Ok(self.refs(repo.id).await?.latest),
            BaseChoice::Nothing => Ok(None),
            BaseChoice::Named(name) => {
                let found = refs::resolve(&self.refs(repo.id).await?, name);
                let bundle = found.ok_or_else(|| no_label(repo, name))?;
                self.refuse_removed(repo, bundle).await?;
                Ok(Some(bundle))
            }
        }
    }

    /// Refuses what begins with a bundle that was taken out of sight.
    pub(super) async fn refuse_removed(&self, repo: &RepoKey, bundle: BundleId) -> Result<(), VfsError> {
        let record = self.refs(repo.id).await?;
        if !record.trashed.contains(&bundle) && !record.purging.contains(&bundle) {
            return Ok(());
        }
        let remedy = "echo 'restore ID' > REPO/.datamon/ctl brings it back";
        Err(VfsError::Missing(format!("{}: the bundle {bundle} was removed ({remedy})", repo.name)))
    }

    /// The state directory of a repo's staging tree.
    pub(super) fn tree_dir(&self, repo: &RepoKey) -> PathBuf {
        let context = self.store().context().to_string();
        self.settings().state.join(context).join(repo.id.to_string()).join(self.settings().stage.as_str())
    }

    /// The staging trees in the state directory, whosever they are, under whatever name (`stage=`).
    fn all_trees(&self) -> impl Iterator<Item = (RepoId, StageName, PathBuf)> {
        let inside = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let repos = inside(self.settings().state.join(self.store().context().to_string()));
        let repos = repos.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
        let trees = repos.flat_map(move |(repo, dir)| inside(dir).map(move |entry| (repo, entry)));
        let trees =
            trees.filter_map(|(repo, entry)| Some((repo, entry.file_name().to_str()?.parse().ok()?, entry.path())));
        trees.filter(|(.., dir)| dir.is_dir())
    }

    /// The state directories of this mount's stage.
    pub(super) fn tree_dirs(&self) -> Vec<(RepoId, PathBuf)> {
        let ours = self.all_trees().filter(|(_, stage, _)| *stage == self.settings().stage);
        ours.map(|(repo, _, dir)| (repo, dir)).collect()
    }

    /// Those of other stages, where there is a tree.
    pub(super) fn other_stages(&self) -> Vec<(RepoId, StageName, PathBuf)> {
        let others = self.all_trees().filter(|(_, stage, _)| *stage != self.settings().stage);
        others.filter(|(.., dir)| dir.join("db").exists()).collect()
    }

    /// Opens a repo's staging tree: one with changes on its own base, a clean one on what was asked for.
    /// Who has its lock already brings it; `chosen` stands before the mount's option.
    pub(super) async fn open_tree(
        &self,
        repo: &RepoKey,
        lock: Option<TreeLock>,
        chosen: Option<&BaseChoice>,
    ) -> Result<Arc<Committer>, VfsError> {
        let dir = self.tree_dir(repo);
        let lock = lock.map_or_else(|| TreeLock::take(&dir), Ok)?;
        // Opening a database reads its log, and waits for whoever lets go of it: not on a thread that answers.
        let ended = |_| VfsError::Failed("opening the staging tree".to_owned());
        let memory = self.settings().database_memory.clone();
        let looked = tokio::task::spawn_blocking(move || lock.dirty_base(&memory).map(|base| (lock, base)));
        let (lock, dirty_base) = looked.await.map_err(ended)??;
        let is_dirty = dirty_base.is_some();
        let base = match dirty_base {
            Some(base) => {
                base.map(|id| id.parse().map_err(|_| VfsError::Failed("the tree's base".to_owned()))).transpose()?
            }
            None => self.base_of(repo, chosen.unwrap_or(&self.settings().base)).await?,
        };
        let snapshot = match base {
            Some(bundle) => match self.open_snapshot(repo.id, bundle).await {
                Err(VfsError::Snapshot(SnapshotError::NoBundle(_))) => {
                    return Err(VfsError::Failed(no_base(repo, bundle, is_dirty)));
                }
                opened => Some(opened?),
            },
            None => None,
        };
        let catalog = self.catalog().await?;
        let entry = catalog.repos.values().find(|entry| entry.id == repo.id).ok_or(VfsError::NotFound)?;
        let config = TreeConfig {
            dir,
            chunk: entry.chunk_size,
            owner: self.settings().owner,
            acl: self.settings().acl,
            reader: self.reader.clone(),
            memory: self.settings().database_memory.clone(),
            clock: self.store().clock.clone(),
            entropy: self.store().entropy.clone(),
        };
        let tree = tokio::task::spawn_blocking(move || Tree::open(config, snapshot, lock)).await.map_err(ended)??;
        let committer = Committer::open(
            tree,
            self.store().clone(),
            self.reader.clone(),
            self.ranges.clone(),
            repo.id,
            self.settings().identity.of_the_mount().await,
            self.settings().faults.clone(),
        );
        let committer = committer.await?;
        committer.set_pack_bounds(self.settings().pack_memory, self.settings().uploads);
        committer.upload_in_background()?;
        Ok(committer)
    }
}

/// Why a tree cannot be opened whose base is gone: nobody else's bytes are shown below changes, nor an older version in its place.
fn no_base(repo: &RepoKey, bundle: BundleId, is_dirty: bool) -> String {
    let (what, remedy) = match is_dirty {
        true => ("what is staged is based on it", "bring the store's objects back; nothing staged is lost"),
        false => ("staging begins with it", "bring the store's objects back, or begin with another: -o base="),
    };
    format!("{}: {bundle}: {what}, and the store does not have it ({remedy})", repo.name)
}
