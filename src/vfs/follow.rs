//! Following `latest`: a clean staging tree gets the newest bundle for its base when somebody walks into it.
//!
//! # Invariants
//!
//! 1. A tree changes its base only while the kernel knows nothing of it but its root ([`super::known`]). One that is in
//!    use stays on its base, whole and writable, and tries again at a later walk.
//! 2. After the change every name that the new base has in the root is forgotten by the kernel, also as a name that does
//!    not exist. Names further down hang below directories that the kernel had already forgotten, existing or not.
//! 3. A walk waits at most [`FOLLOW_LIMIT`]; the change itself is not broken off by that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::VfsError;
use super::known::{Closed, Known};
use super::namespace::BaseChoice;
use super::node::{Ino, NameNode, Node};
use super::{OpenTree, Shared, Vfs};
use crate::model::clock::Timestamp;
use crate::model::id::BundleId;
use crate::model::name::FileName;
use crate::staging::commit::Committer;
use crate::staging::inode::ROOT;

/// How long a walk to a staging tree may wait for news of `latest`.
const FOLLOW_LIMIT: Duration = Duration::from_secs(2);
/// Names that the kernel is told to forget in one step.
const NAMES_STEP: usize = 4_096;
/// Changes since the base from which on a tree starts anew from its own last bundle.
const OWN_CHANGES_MIN: u64 = 4_096;
/// How often, and how many times, what the kernel forgets is looked at before it counts as all that it forgets.
const FORGET_POLL: Duration = Duration::from_millis(2);
const FORGET_POLLS: usize = 100;

/// The kernel's cache of names and inodes. All of these block, and never run on the thread that answers requests.
pub trait Kernel: Send + Sync {
    /// Forgets these names of a directory, those that do not exist among them, with all that is unused below.
    fn forget_names(&self, directory: Ino, names: &[FileName]);

    /// Forgets what nobody uses of these inodes; `false` where the kernel has no such word.
    fn forget_unused(&self, inos: &[Ino]) -> bool;

    /// Forgets the attributes of an inode, not its bytes.
    fn forget_attributes(&self, ino: Ino);

    /// Whether a process that we can see has its working directory below this path of the mount.
    fn is_anyones_place(&self, path: &std::path::Path) -> bool;

    /// Whether the daemon with this process id serves no mount any more, and is about to end.
    fn is_ending(&self, daemon: u32) -> bool;
}

/// What is remembered of a tree's attempts: one at a time, held while it runs, and when the last one began.
#[derive(Default)]
pub(crate) struct Following {
    running: Arc<tokio::sync::Mutex<()>>,
    tried: Shared<Option<(Timestamp, Instant)>>,
    /// The bundle committed from here that the tree was last asked to start from: once is enough, it shows the same.
    tried_own: Shared<Option<BundleId>>,
    /// What `ctl` was told to start the tree from, until its next commit.
    chosen: Shared<Option<BaseChoice>>,
}

impl Following {
    /// Held while the tree gets another base.
    pub(crate) fn running(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.running.clone()
    }

    /// Says what the tree starts from; `None`: what the mount's options say.
    pub(crate) fn choose(&self, base: Option<BaseChoice>) {
        *self.chosen.lock().expect("nothing panics while it holds a choice") = base;
    }

    /// What the tree starts from, where somebody chose it.
    pub(crate) fn chosen(&self) -> Option<BaseChoice> {
        self.chosen.lock().expect("nothing panics while it holds a choice").clone()
    }
}

impl OpenTree {
    /// Whether the tree wants `latest` for its base: another host's bundle, or our own once so much was changed since the
    /// base that walking all of it at every commit costs more than that the kernel forgets the tree.
    fn is_news(&self, latest: BundleId) -> bool {
        let tree = self.committer.tree();
        if self.committer.parent().map(|parent| parent.descriptor().bundle) != Some(latest) {
            return true;
        }
        let base = tree.base().snapshot.as_ref().map(|base| base.descriptor().bundle);
        let tried = *self.following.tried_own.lock().expect("nothing panics while it holds a bundle");
        base != Some(latest) && tried != Some(latest) && tree.changes_of_base() >= OWN_CHANGES_MIN
    }
}

impl Vfs {
    /// Lets the tree that `ino` is the root of follow `latest`, where that is due. Without `wait` it goes on behind us.
    ///
    /// Nothing is awaited when nothing is to be done.
    pub async fn follow(&self, ino: Ino, wait: bool) {
        if let Ok(Node::Staged { slot, ino: ROOT }) = self.node(ino) {
            self.follow_slot(slot, wait).await;
        }
    }

    /// The same, of a tree by its slot.
    pub(super) async fn follow_slot(&self, slot: usize, wait: bool) {
        let Ok(open) = self.open_tree_at(slot) else { return };
        let following = &open.following;
        if let (true, Some(vfs), Ok(running)) =
            (self.follow_is_due(&open), self.me.upgrade(), following.running.clone().try_lock_owned())
        {
            let now = (self.store().clock.now(), Instant::now());
            *following.tried.lock().expect("nothing panics while it holds a time") = Some(now);
            tokio::spawn(async move {
                if let Err(error) = vfs.try_follow(slot).await {
                    tracing::warn!(%error, "staging stays on its base");
                }
                drop(running);
            });
        }
        // Also what somebody else began is waited for, but by nobody beyond its time.
        let begun = following.tried.lock().expect("nothing panics while it holds a time").map(|(_, begun)| begun);
        let (true, Some(begun), Err(_)) = (wait, begun, following.running.try_lock()) else { return };
        let until = tokio::time::Instant::from_std(begun + FOLLOW_LIMIT);
        if tokio::time::timeout_at(until, following.running.lock()).await.is_err() {
            tracing::warn!("a walk into staging went on without news of latest: the store does not answer in time");
        }
    }

    fn follow_is_due(&self, open: &OpenTree) -> bool {
        let base = open.following.chosen().unwrap_or_else(|| self.settings().base.clone());
        if base != BaseChoice::Latest || open.committer.tree().is_dirty() {
            return false;
        }
        let tried = *open.following.tried.lock().expect("nothing panics while it holds a time");
        if tried.is_some_and(|(at, _)| self.is_fresh(at)) {
            return false;
        }
        self.fresh_latest(open.repo.id).is_none_or(|latest| latest.is_some_and(|latest| open.is_news(latest)))
    }

    async fn try_follow(&self, slot: usize) -> Result<(), VfsError> {
        let open = self.open_tree_at(slot)?;
        let parent = open.committer.parent().map(|parent| parent.descriptor().bundle);
        let news = |latest: &BundleId| open.is_news(*latest);
        if self.refs(open.repo.id).await?.latest.filter(news).is_none() {
            return Ok(());
        }
        // What was known may be older than our own last commit.
        self.forget_refs(open.repo.id);
        let Some(latest) = self.refs(open.repo.id).await?.latest.filter(news) else { return Ok(()) };
        if Some(latest) == parent {
            *open.following.tried_own.lock().expect("nothing panics while it holds a bundle") = Some(latest);
        }
        let snapshot = self.open_snapshot(open.repo.id, latest).await?;
        let Some(closed) = self.quiet(slot, &open.known, &open.committer).await? else {
            tracing::debug!(repo = %open.repo.name, "staging is in use and stays on its base for now");
            return Ok(());
        };
        let followed = open.committer.follow(parent, snapshot).await?;
        // Before names are forgotten: the kernel may hold the root for somebody who waits at the gate.
        drop(closed);
        if followed { self.forget_root_names(slot, &open.committer).await } else { Ok(()) }
    }

    /// Makes the kernel forget all of a tree but its root, and closes its gate; nothing while the tree is in use.
    pub(in crate::vfs) async fn quiet(
        &self,
        slot: usize,
        known: &Arc<Known>,
        committer: &Committer,
    ) -> Result<Option<Closed>, VfsError> {
        let mut left = known.inos();
        loop {
            if let Some(closed) = known.close() {
                return Ok(Some(closed));
            }
            // A directory can be forgotten after what is in it: one level a round.
            let before = left.len();
            let has_word = self.ask_kernel(move |kernel| kernel.forget_unused(&left)).await.unwrap_or(false);
            left = settled(known).await;
            if !has_word || left.len() >= before {
                break;
            }
        }
        if let Some(closed) = known.close() {
            return Ok(Some(closed));
        }
        // What is left is in use, or holds names that do not exist. Forgetting a name by force takes those along, but a
        // process whose working directory it is could no longer say where it is.
        let path = self.path_of_tree(slot);
        if self.ask_kernel(move |kernel| kernel.is_anyones_place(&path)).await.unwrap_or(false) {
            return Ok(None);
        }
        self.forget_root_names(slot, committer).await?;
        settled(known).await;
        Ok(known.close())
    }

    /// Makes the kernel forget the names that a tree has in its root now.
    pub(in crate::vfs) async fn forget_root_names(&self, slot: usize, committer: &Committer) -> Result<(), VfsError> {
        let root = self.to_kernel(Node::staged_ino(slot, ROOT));
        let mut after: Option<FileName> = None;
        loop {
            let listed = committer.tree().list(ROOT, after.as_ref(), NAMES_STEP).await?;
            let names: Vec<_> = listed.into_iter().map(|(name, _)| name).collect();
            after = names.last().cloned();
            let is_last = names.is_empty();
            self.ask_kernel(move |kernel| kernel.forget_names(root, &names)).await;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Makes the kernel look again at names that were changed when nobody waited for the answer any more.
    pub async fn forget_touched(&self, touched: Vec<(Ino, FileName)>) {
        for (directory, name) in touched {
            self.ask_kernel(move |kernel| kernel.forget_names(directory, &[name])).await;
        }
    }

    /// Asks on a thread of its own: the kernel may hold a directory's lock for a request that we have not answered yet.
    async fn ask_kernel<T: Send + 'static>(&self, ask: impl FnOnce(&dyn Kernel) -> T + Send + 'static) -> Option<T> {
        let kernel = self.kernel.get()?.clone();
        // A panic there is logged there; what the kernel did not forget then keeps the tree on its base.
        tokio::task::spawn_blocking(move || ask(&*kernel)).await.ok()
    }

    /// After a change that took set-user-id away in passing (`kill`): the kernel goes on with the mode that it knows, and would
    /// run the file by it.
    pub(super) fn forget_killed(&self, ino: Ino, kill: bool) {
        if let (true, Some(kernel)) = (kill, self.kernel.get()) {
            kernel.forget_attributes(ino);
        }
    }

    /// Where a staging tree lies below the mount point.
    fn path_of_tree(&self, slot: usize) -> PathBuf {
        let repo = self.open_tree_at(slot).map(|open| open.repo.name.to_string()).unwrap_or_default();
        match self.root() {
            Node::Name(NameNode::Context) => [repo.as_str(), "staging"].iter().collect(),
            Node::Name(_) => PathBuf::from("staging"),
            _ => PathBuf::new(),
        }
    }

    /// Says how the kernel is reached.
    pub fn set_kernel(&self, kernel: Arc<dyn Kernel>) {
        // A second session over one Vfs does not exist; the first one's answer stays.
        let _ = self.kernel.set(kernel);
    }
}

/// What is still known once the kernel's FORGETs stop coming.
async fn settled(known: &Known) -> Vec<Ino> {
    let mut count = known.count();
    for _ in 0..FORGET_POLLS {
        tokio::time::sleep(FORGET_POLL).await;
        let now = known.count();
        if now == count {
            break;
        }
        count = now;
    }
    known.inos()
}
