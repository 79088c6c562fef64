//! Recursive deleters (rm -r, find -delete, shutil.rmtree, file managers): they remove no version.
//!
//! Whatever is refused on their way, they end with the removal of the top; of a label or bundle that is a gesture that means
//! something. So it is refused to who does not seem to mean it: rmdir(1), by hand, opens no directory.
//!
//! ```text
//!   something below the version was to be removed a moment ago        by anybody: we refused it
//!   the same thread has opened a directory of the version             where the kernel refuses before we are asked
//!   the same thread has opened .datamon or its labels/, and removes labels there
//! ```

use std::collections::HashMap;
use std::time::Duration;

use super::error::VfsError;
use super::node::{Folder, Ino, NameNode, Node, RepoKey, Through};
use super::{Shared, Vfs};
use crate::model::clock::Timestamp;
use crate::model::id::RepoId;

/// How long after a refused removal below it, or a look into it, a label or bundle is not removed.
const RECURSIVE: Duration = Duration::from_secs(60);
/// Threads of which it is remembered what they opened.
const THREADS_MAX: usize = 1_024;

/// See the module.
#[derive(Default)]
pub(super) struct Deleters {
    /// When something below a view was to be removed.
    refused: Shared<HashMap<usize, Timestamp>>,
    /// By thread.
    opened: Shared<HashMap<u32, Opened>>,
}

/// What a thread opened last, and when.
#[derive(Clone, Copy, Default)]
struct Opened {
    view: Option<(usize, Timestamp)>,
    /// The `.datamon` of a repo, or what holds its labels.
    control: Option<(RepoId, Timestamp)>,
}

fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    at.age(now) < RECURSIVE
}

impl Opened {
    fn is_recent(&self, now: Timestamp) -> bool {
        self.view.is_some_and(|(_, at)| is_recent(at, now)) || self.control.is_some_and(|(_, at)| is_recent(at, now))
    }
}

impl Vfs {
    /// The refusal of a removal below a version, which is remembered.
    pub(super) fn refused_below(&self, slot: usize) -> VfsError {
        let now = self.store().clock.now();
        self.deleters().refused.lock().expect("nothing panics while it holds the refusals").insert(slot, now);
        self.in_version(slot)
    }

    /// Notes that the thread `tid` opens a directory. Threads of another namespace have no number here.
    pub fn opened_directory(&self, ino: Ino, tid: u32) {
        let Ok(node) = self.node(ino) else { return };
        let is_watched = match &node {
            Node::Row { .. } => true,
            Node::Name(NameNode::Control(scope, Folder::Top | Folder::Labels)) => scope.repo().is_some(),
            _ => false,
        };
        if tid == 0 || !is_watched {
            return;
        }
        let now = self.store().clock.now();
        let mut opened = self.opened_by();
        if opened.len() >= THREADS_MAX {
            opened.retain(|_, opened| opened.is_recent(now));
        }
        if opened.len() >= THREADS_MAX {
            opened.clear();
        }
        let opened = opened.entry(tid).or_default();
        match node {
            Node::Row { slot, .. } => opened.view = Some((slot, now)),
            Node::Name(NameNode::Control(scope, _)) => opened.control = scope.repo().map(|repo| (repo.id, now)),
            _ => {}
        }
    }

    /// Refuses to remove a label or bundle to who seems to remove all that is in it.
    pub(super) fn refuse_recursive(
        &self,
        repo: &RepoKey,
        through: &Through,
        name: &str,
        tid: u32,
    ) -> Result<(), VfsError> {
        let now = self.store().clock.now();
        let mut slots: Vec<usize> = {
            let mut refused = self.deleters().refused.lock().expect("nothing panics while it holds the refusals");
            refused.retain(|_, at| is_recent(*at, now));
            refused.keys().copied().collect()
        };
        let looked_into = self.opened_by().get(&tid).and_then(|opened| opened.view);
        slots.extend(looked_into.filter(|(_, at)| is_recent(*at, now)).map(|(slot, _)| slot));
        let is_that = |slot: &usize| {
            self.view_key(*slot)
                .is_ok_and(|key| key.repo.id == repo.id && key.through == *through && key.is_named(name))
        };
        if slots.iter().any(is_that) { Err(VfsError::Recursive(name.to_owned())) } else { Ok(()) }
    }

    /// The same of a label's file in `.datamon`.
    pub(super) fn refuse_recursive_below_control(&self, repo: &RepoKey, name: &str, tid: u32) -> Result<(), VfsError> {
        let now = self.store().clock.now();
        let opened = self.opened_by().get(&tid).and_then(|opened| opened.control);
        let is_recursive = opened.is_some_and(|(of, at)| of == repo.id && is_recent(at, now));
        if is_recursive { Err(VfsError::Recursive(name.to_owned())) } else { Ok(()) }
    }

    fn opened_by(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Opened>> {
        self.deleters().opened.lock().expect("nothing panics while it holds what was opened")
    }

    fn deleters(&self) -> &Deleters {
        &self.control.deleters
    }
}
