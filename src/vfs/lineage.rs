//! From which bundles the files of a staging tree may come: those of which a file was open, through this mount, since the
//! tree was committed, discarded or mounted.
//!
//! What is known of each view is how many of its files are open, and when the last one was opened or closed. *When* is no
//! time but a mark: a number that grows each time somebody begins to commit or discard. An open costs a short lock and no
//! memory.
//!
//! # Invariants
//!
//! 1. What is told may be too much, never too little. A commit takes its mark **before** its seal and asks **after** it: what
//!    was opened between the two is told of this bundle, and of the next one.
//! 2. Only a commit that made a bundle, and a discard, lead a tree's mark on; `undiscard` leads it back.
//! 3. A file that is open counts however long ago it was opened: its pages may be read, or mapped, without a word to us. Its
//!    close counts as an open does.
//! 4. What is known of a view stays as long as the mount, whatever of its snapshot is in memory.
//!
//! Not here: what the tree is based on (that is its parent), what other mounts read, and what an earlier mount did. On a mount
//! whose root is a version the kernel opens without us; it has no staging tree.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard};

use super::node::{Ino, Node};
use super::{Shared, Vfs};
use crate::format::derived::DerivedFrom;
use crate::model::id::{BundleId, RepoId};
use crate::staging::commit::Sources;

/// See the module. Its lock is taken last, and nothing is done under it.
#[derive(Default)]
pub(super) struct Lineage(Shared<State>);

/// A moment in the life of a mount: what is opened or closed from now on is not before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Mark(u64);

#[derive(Default)]
struct State {
    now: Mark,
    /// By the view's slot.
    views: HashMap<usize, View>,
    /// By the tree's slot; a tree that nobody committed or discarded yet has none, and counts from the mount on.
    trees: Vec<Marks>,
}

struct View {
    bundle: (RepoId, BundleId),
    open: u64,
    /// When a file was opened or closed last; none: never.
    last: Option<Mark>,
}

/// Since when the files of a tree count.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    since: Mark,
    /// The same of the changes that were put aside last.
    of_discarded: Mark,
}

impl Lineage {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds what was opened")
    }

    /// Gives a view its place.
    pub(super) fn add_view(&self, slot: usize, repo: RepoId, bundle: BundleId) {
        self.lock().views.insert(slot, View { bundle: (repo, bundle), open: 0, last: None });
    }

    fn opened(&self, view: usize) {
        let mut state = self.lock();
        let now = state.now;
        if let Some(view) = state.views.get_mut(&view) {
            (view.open, view.last) = (view.open + 1, Some(now));
        }
    }

    fn closed(&self, view: usize) {
        let mut state = self.lock();
        let now = state.now;
        if let Some(view) = state.views.get_mut(&view) {
            (view.open, view.last) = (view.open.saturating_sub(1), Some(now));
        }
    }

    /// A new mark.
    pub(super) fn mark(&self) -> Mark {
        let mut state = self.lock();
        state.now.0 += 1;
        state.now
    }

    /// What counts for a tree now.
    fn told(&self, tree: usize) -> BTreeSet<(RepoId, BundleId)> {
        let state = self.lock();
        let since = state.trees.get(tree).copied().unwrap_or_default().since;
        let counts = |view: &&View| view.open > 0 || view.last.is_some_and(|last| last >= since);
        state.views.values().filter(counts).map(|view| view.bundle).collect()
    }

    fn change(&self, tree: usize, change: impl FnOnce(&mut Marks)) {
        let mut state = self.lock();
        if state.trees.len() <= tree {
            state.trees.resize(tree + 1, Marks::default());
        }
        change(&mut state.trees[tree]);
    }

    /// A bundle was made of the tree, by a commit that began at `mark`.
    pub(super) fn committed(&self, tree: usize, mark: Mark) {
        self.change(tree, |marks| marks.since = marks.since.max(mark));
    }

    /// The changes of the tree were put aside, by who began at `mark`.
    pub(super) fn discarded(&self, tree: usize, mark: Mark) {
        self.change(tree, |marks| *marks = Marks { since: marks.since.max(mark), of_discarded: marks.since });
    }

    /// They were brought back. What an earlier mount put aside counts from this mount on.
    pub(super) fn brought_back(&self, tree: usize) {
        self.change(tree, |marks| marks.since = marks.since.min(marks.of_discarded));
    }
}

impl Vfs {
    /// Opens a file of a snapshot, for which nothing is to be done but to count it; `false`: it is no such file.
    pub fn open_immutable(&self, ino: Ino) -> bool {
        let Ok(Node::Row { slot, .. }) = self.node(ino) else { return false };
        self.lineage.opened(slot);
        true
    }

    /// Ends such an open.
    pub fn close_immutable(&self, ino: Ino) {
        if let Ok(Node::Row { slot, .. }) = self.node(ino) {
            self.lineage.closed(slot);
        }
    }

    /// What a commit of this tree asks.
    pub(super) fn sources(&self, tree: usize) -> Sources {
        let lineage: Arc<Lineage> = self.lineage.clone();
        Sources::new(move || DerivedFrom::new(lineage.told(tree)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(n: u64) -> (RepoId, BundleId) {
        (RepoId::from_parts(1, 1), BundleId::from_parts(n, 1))
    }

    /// With views of the bundles 0, 1 and 2, and one more of bundle 0.
    fn lineage() -> Lineage {
        let lineage = Lineage::default();
        for (slot, (repo, bundle)) in [0, 1, 2, 0].map(bundle).into_iter().enumerate() {
            lineage.add_view(slot, repo, bundle);
        }
        lineage
    }

    fn told(lineage: &Lineage, tree: usize) -> Vec<u64> {
        let numbers = lineage.told(tree).into_iter().map(|(_, bundle)| bundle.millis());
        numbers.collect()
    }

    fn look_into(lineage: &Lineage, view: usize) {
        lineage.opened(view);
        lineage.closed(view);
    }

    #[test]
    fn what_was_opened_since_the_commit_before_counts_once_whatever_the_way_to_it() {
        let lineage = lineage();
        assert!(told(&lineage, 0).is_empty());
        for view in [0, 3, 1] {
            look_into(&lineage, view);
        }
        assert_eq!(told(&lineage, 0), [0, 1]);
        let mark = lineage.mark();
        lineage.committed(0, mark);
        assert!(told(&lineage, 0).is_empty());
        look_into(&lineage, 2);
        assert_eq!(told(&lineage, 0), [2]);
    }

    #[test]
    fn what_is_opened_between_mark_and_seal_counts_for_this_commit_and_the_next() {
        let lineage = lineage();
        let mark = lineage.mark();
        look_into(&lineage, 1);
        assert_eq!(told(&lineage, 0), [1], "asked after the seal");
        lineage.committed(0, mark);
        assert_eq!(told(&lineage, 0), [1]);
        // Of two that run at once the one that began earlier may end later.
        let (early, late) = (lineage.mark(), lineage.mark());
        lineage.committed(0, late);
        lineage.committed(0, early);
        assert!(told(&lineage, 0).is_empty());
    }

    #[test]
    fn an_open_file_counts_until_it_was_closed_and_committed_after() {
        let lineage = lineage();
        lineage.opened(0);
        lineage.opened(0);
        for _ in 0..3 {
            let mark = lineage.mark();
            lineage.committed(0, mark);
            assert_eq!(told(&lineage, 0), [0]);
        }
        lineage.closed(0);
        lineage.closed(0);
        assert_eq!(told(&lineage, 0), [0], "it was open since that commit");
        let mark = lineage.mark();
        lineage.committed(0, mark);
        assert!(told(&lineage, 0).is_empty());
    }

    #[test]
    fn each_tree_counts_since_its_own_commit_and_a_commit_that_failed_since_none() {
        let lineage = lineage();
        look_into(&lineage, 0);
        lineage.mark();
        look_into(&lineage, 1);
        let mark = lineage.mark();
        lineage.committed(2, mark);
        assert!(told(&lineage, 2).is_empty());
        assert_eq!((told(&lineage, 0), told(&lineage, 7)), (vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn what_was_put_aside_brings_its_sources_back() {
        let lineage = lineage();
        look_into(&lineage, 0);
        let mark = lineage.mark();
        lineage.discarded(0, mark);
        assert!(told(&lineage, 0).is_empty());
        look_into(&lineage, 1);
        let mark = lineage.mark();
        lineage.committed(0, mark);
        assert!(told(&lineage, 0).is_empty());
        lineage.brought_back(0);
        assert_eq!(told(&lineage, 0), [0, 1]);
        // Another mount put it aside, whose opens nobody knows: all of this mount's count.
        look_into(&lineage, 2);
        let mark = lineage.mark();
        lineage.committed(1, mark);
        lineage.brought_back(1);
        assert_eq!(told(&lineage, 1), [0, 1, 2]);
    }
}
