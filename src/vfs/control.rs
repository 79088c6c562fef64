//! `.datamon`: texts that say what is going on, commands, and the jobs that programs start through ioctls.
//!
//! [`texts`] says what files there are, [`history`] are those that grow, [`files`] is the one that may be huge, [`jobs`] is what programs ask for,
//! [`reopen`] puts changes aside and chooses a base, [`stats`] and [`reads`] count, [`times`] says when a text changed.
//! Here is what all of them stand on: what is remembered, what was refused, and how a tree is committed.

mod files;
mod history;
mod jobs;
mod reads;
mod reopen;
mod stats;
pub(super) mod texts;
mod times;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(super) use reopen::Way;
pub use texts::RENDERED;

use super::error::VfsError;
use super::namespace::{BaseChoice, LATEST_FOLLOWS};
use super::node::{Ino, Node, RepoKey, Scope, Through};
use super::{Shared, Vfs};
use crate::model::acl::{AclKind, Perm};
use crate::model::clock::Timestamp;
use crate::model::entry::Attributes;
use crate::model::id::RepoId;
use crate::model::job::Progress;
use crate::model::limits::NAME_BYTES_MAX;
use crate::model::metrics::Histogram;
use crate::model::name::{Contributor, LATEST, LabelName};
use crate::staging::commit::{CommitError, CommitReport, CommitRequest};
use crate::staging::inode::ROOT;
use crate::staging::message::Message;
use crate::staging::tree::{Caller, StagingError, Tree};
use crate::store::refs::RefsError;

/// To write, as one digit of a mode.
const WRITE: Perm = 0o2;
/// The name of the directory, never listed.
pub const DIRECTORY: &[u8] = b".datamon";
/// What the last error begins with if it was a commit's: the next commit that succeeds takes it away.
const COMMIT_ERROR: &str = "commit of ";
/// How long a commit waits until its labels lead to it for everybody who looks through this mount.
const SHOW_LIMIT: Duration = Duration::from_secs(2);
/// What `ctl` understands.
const COMMANDS: &str = "unknown command (commit, discard, undiscard, base LABEL|BUNDLE, restore BUNDLE)";
/// Who may use it.
const NOT_YOURS: &str = "ctl is for who may write to the staging tree's root, or mounted it";
const NOT_YET: &str = "pin, drop and prefetch are not in this version";

/// What is asked of a commit beside what the mount was told.
#[derive(Debug, Clone, Default)]
struct Asked {
    /// The message; without one, what lies in `.datamon/message`, or what the mount was told.
    message: Option<String>,
    /// Further labels.
    labels: Vec<LabelName>,
    /// What stands in the environment of the command that asks.
    contributor: Option<Contributor>,
}

/// What control remembers.
#[derive(Default)]
pub struct Control {
    jobs: Shared<HashMap<u64, tokio::sync::watch::Receiver<Progress>>>,
    next_job: AtomicU64,
    last_error: Shared<Option<String>>,
    /// The last commit of each repo; that of all comes last.
    last_commits: Shared<Vec<(RepoId, String)>>,
    lease: Shared<Option<Timestamp>>,
    frozen: AtomicBool,
    writers: Shared<HashMap<Ino, u32>>,
    histories: history::Histories,
    diffs: texts::Diffs,
    rendered: texts::Rendered,
    times: times::Times,
    files: files::Files,
    commits: Commits,
    reads: reads::Reads,
    pub(super) holders: super::holder::Holders,
    pub(super) left: super::left::LeftTrees,
    pub(super) deleters: super::deleters::Deleters,
    flush: std::sync::OnceLock<super::namespace::FlushMapped>,
}

/// Commits of this mount.
#[derive(Default)]
struct Commits {
    made: AtomicU64,
    unchanged: AtomicU64,
    failed: AtomicU64,
    took: Histogram,
    /// Whose trees are being committed now.
    running: Shared<Vec<RepoId>>,
}

/// A commit under way; over when it is dropped.
struct Running<'a>(&'a Commits, RepoId);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.0.running.lock().expect("nothing panics while it holds the list");
        if let Some(at) = running.iter().position(|repo| *repo == self.1) {
            running.remove(at);
        }
    }
}

impl Commits {
    fn begin(&self, repo: RepoId) -> Running<'_> {
        self.running.lock().expect("nothing panics while it holds the list").push(repo);
        Running(self, repo)
    }

    fn is_running(&self, repo: RepoId) -> bool {
        self.running.lock().expect("nothing panics while it holds the list").contains(&repo)
    }

    fn count(&self, outcome: &Result<CommitReport, CommitError>, took: Duration) {
        let counter = match outcome {
            Ok(report) if report.changed => &self.made,
            Ok(_) => &self.unchanged,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.took.record(took);
    }
}

impl Vfs {
    // ---- what was refused ------------------------------------------------------------------------------------------------

    /// Notes a refusal for `status`; that of a commit is there already, with its repo.
    pub fn note_error(&self, error: &VfsError) {
        if !matches!(error, VfsError::Commit(_)) {
            self.set_last_error(error.to_string());
        }
    }

    /// The outcome of a gesture in the namespace; why one was refused stands in `status`, for who asks there.
    pub(super) fn told<T>(&self, what: &[u8], outcome: Result<T, VfsError>) -> Result<T, VfsError> {
        if let Err(error) = &outcome
            && !matches!(error, VfsError::Commit(_))
        {
            let name = String::from_utf8_lossy(&what[..what.len().min(NAME_BYTES_MAX)]);
            let why = error.to_string();
            let named = if why.starts_with(&format!("{name}: ")) { why } else { format!("{name}: {why}") };
            self.set_last_error(named);
        }
        outcome
    }

    fn note_commit(&self, repo: RepoId, text: String) {
        let mut last = self.control.last_commits.lock().expect("nothing panics while it holds the list");
        last.retain(|(of, _)| *of != repo);
        last.push((repo, text));
    }

    /// What the last commit of a repo was, or of all.
    fn last_commit(&self, repo: Option<RepoId>) -> Option<String> {
        let last = self.control.last_commits.lock().expect("nothing panics while it holds the list");
        let found = last.iter().rev().find(|(of, _)| repo.is_none_or(|repo| *of == repo));
        found.map(|(_, text)| text.clone())
    }

    /// Makes a commit from here seen here at once: the kernel looks again where `latest` and these labels lead, and the tree
    /// goes on as the mount's options say.
    async fn show_committed(&self, slot: usize, repo: &RepoKey, labels: &[LabelName]) {
        if let Ok(open) = self.open_tree_at(slot) {
            open.following.choose(None);
        }
        let names = labels.iter().map(LabelName::as_str).chain([LATEST]);
        let all = async {
            for name in names {
                self.forget_label(repo, name).await;
            }
        };
        // The kernel waits for who is looking there now, and that one for the store.
        if tokio::time::timeout(SHOW_LIMIT, all).await.is_err() {
            tracing::warn!(repo = %repo.name, "labels are shown as they were for a moment: somebody is looking there");
        }
    }

    fn set_last_error(&self, text: String) {
        *self.control.last_error.lock().expect("nothing panics while it holds a text") = Some(text);
    }

    /// Moves the label whose version this is the root of.
    pub(super) async fn move_label_of(
        &self,
        slot: usize,
        value: &[u8],
        create: bool,
        caller: Caller,
    ) -> Result<(), VfsError> {
        let key = self.view_key(slot)?;
        let label = match key.through {
            Through::Label(label) => label,
            Through::Latest => return Err(VfsError::Misplaced(LATEST_FOLLOWS)),
            Through::Bundle | Through::Time(_) => {
                return Err(VfsError::Misplaced("a bundle's own (set it on labels/NAME to move that)"));
            }
        };
        // The kernel asks whether the version's root may be written to; what counts is `labels/`, which is the mounter's.
        if !self.owns_namespace(caller) {
            return Err(VfsError::NotPermitted);
        }
        self.writable()?;
        if create {
            return Err(RefsError::Exists(label).into());
        }
        self.write_label(&key.repo, &label, value, caller).await
    }

    /// How a staging tree is: `clean`, `dirty` or `committing`.
    pub(super) fn tree_state(&self, repo: RepoId, tree: &Tree) -> &'static str {
        match tree.is_dirty() {
            _ if self.control.commits.is_running(repo) => "committing",
            true => "dirty",
            false => "clean",
        }
    }

    // ---- commits -----------------------------------------------------------------------------------------------------

    /// Whether the caller is root, or whose the namespace is shown to be: who mounted it, unless `uid=` says another.
    fn owns_namespace(&self, caller: Caller) -> bool {
        caller.uid == 0 || caller.uid == self.shown_owner().0
    }

    /// Refuses `ctl` to who may do nothing there: what is done to the staging tree may be done by whoever may write to its root,
    /// as with `sync PATH`.
    pub(super) async fn may_command(
        &self,
        scope: &Scope,
        caller: Caller,
        groups: impl FnOnce() -> Vec<u32>,
    ) -> Result<(), VfsError> {
        let Some(repo) = scope.repo().filter(|_| !self.owns_namespace(caller)) else { return Ok(()) };
        let root = Node::staged_ino(self.tree_slot(repo).await?, ROOT);
        let permitted = self.may_write(root, caller, groups).await;
        if permitted { Ok(()) } else { Err(VfsError::NotYours(NOT_YOURS)) }
    }

    /// One command, as it is written into `ctl`.
    async fn command(&self, repo: &RepoKey, text: &[u8], caller: Caller) -> Result<(), VfsError> {
        let text = std::str::from_utf8(text).map(str::trim).unwrap_or_default();
        let (verb, argument) =
            text.split_once(char::is_whitespace).map_or((text, ""), |(verb, rest)| (verb, rest.trim()));
        self.writable()?;
        match (verb, argument) {
            ("commit", "") => {
                let slot = self.tree_slot(repo).await?;
                self.commit_slot(slot, Asked::default(), caller).await.map(drop)
            }
            ("restore", _) if !self.owns_namespace(caller) => {
                Err(VfsError::NotYours("restore is for who mounted it, as rmdir is"))
            }
            ("restore", bundle) if !bundle.is_empty() => {
                let bundle = bundle.parse().map_err(|_| VfsError::Invalid("restore: a bundle's id is expected"))?;
                self.restore_bundle(repo, bundle, caller).await
            }
            ("discard", "") => self.reopen(repo, Way::Discard).await,
            ("undiscard", "") => self.reopen(repo, Way::Undiscard).await,
            ("base", name) if !name.is_empty() => self.reopen(repo, Way::Base(BaseChoice::named(name))).await,
            ("pin" | "drop" | "prefetch", _) => Err(VfsError::Invalid(NOT_YET)),
            _ => Err(VfsError::Invalid(COMMANDS)),
        }
    }

    /// Whether opening this directory so (`sync PATH`) is the gesture of a commit by a caller who may make one.
    pub async fn is_commit_gesture(&self, ino: Ino, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let Ok(Node::Staged { slot, ino: ROOT }) = self.node(ino) else { return false };
        let settings = self.settings();
        if !settings.sync_commits {
            return false;
        }
        let Ok((_, committer)) = self.committer(slot) else { return false };
        // Where nothing can be changed there is nothing to commit, unless it was before.
        if self.is_read_only() && !committer.tree().is_dirty() {
            return false;
        }
        // An empty tree without a base has nothing to make a bundle of.
        if committer.parent().is_none() && !committer.has_changes().await.unwrap_or(true) {
            return false;
        }
        self.may_write(ino, caller, groups).await
    }

    /// Whether the caller may write into the root of the staging tree that `ino` lies in. `groups`, asked only when it
    /// matters, are the groups that the caller is in besides its own.
    pub async fn may_write(&self, ino: Ino, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let Ok(Node::Staged { slot, .. }) = self.node(ino) else { return false };
        let root = Node::staged_ino(slot, ROOT);
        let Ok(found) = self.getattr(root).await else { return false };
        let acl = if self.settings().acl { self.acl(root, AclKind::Access).await } else { Err(VfsError::NoXattr) };
        let owner = found.attr.attributes;
        match acl {
            _ if caller.uid == 0 => true,
            Ok(acl) => {
                let groups = groups();
                let is_in = |gid| gid == caller.gid || groups.contains(&gid);
                acl.permits((owner.uid, owner.gid), caller.uid, is_in, WRITE)
            }
            Err(VfsError::NoXattr | VfsError::Staging(StagingError::NoXattr)) => writes(owner, caller, groups),
            // Who may write there is not known.
            Err(_) => false,
        }
    }

    /// Commits the staging tree that `ino` lies in, with the mount's message and labels.
    pub async fn commit(&self, ino: Ino, caller: Caller) -> Result<CommitReport, VfsError> {
        let Node::Staged { slot, .. } = self.node(ino)? else { return Err(VfsError::Invalid("not a staging tree")) };
        if self.publishes_nothing() {
            // Nobody is to believe that what an earlier mount left was committed.
            return Err(VfsError::ReadOnly);
        }
        self.commit_slot(slot, Asked::default(), caller).await
    }

    async fn commit_slot(&self, slot: usize, asked: Asked, caller: Caller) -> Result<CommitReport, VfsError> {
        let (repo, committer) = self.committer(slot)?;
        self.flush_mapped().await;
        let message = Message::beside(committer.tree().dir());
        let left = message.read()?;
        let settings = self.settings();
        let mut labels = settings.labels.clone();
        labels.extend(asked.labels);
        // Named twice is meant once.
        let mut named = HashSet::new();
        labels.retain(|label| named.insert(label.clone()));
        let request = CommitRequest {
            message: asked.message.unwrap_or_else(|| match String::from_utf8_lossy(&left).trim_end() {
                "" => settings.message.clone(),
                text => text.to_owned(),
            }),
            labels: labels.clone(),
            fail_if_diverged: settings.fail_if_diverged,
            who: settings.identity.of(caller.uid, asked.contributor.as_ref()).await,
            sources: self.sources(slot),
        };
        // Before the seal: what is opened from now on may be in the next bundle.
        let mark = self.lineage.mark();
        let start = tokio::time::Instant::now();
        let running = self.control.commits.begin(repo.id);
        let outcome = committer.commit(request).await;
        drop(running);
        self.control.commits.count(&outcome, start.elapsed());
        self.forget_refs(repo.id);
        match outcome {
            Ok(report) => {
                if report.changed {
                    self.lineage.committed(slot, mark);
                    self.show_committed(slot, &repo, &labels).await;
                    // Also where another one was given with the commit: it was meant for this bundle.
                    message.clear(&left)?;
                }
                let diverged =
                    if report.diverged { " (diverged: latest was another bundle than the base)" } else { "" };
                let labels: String = report.labels.sentences().iter().map(|note| format!(" ({note})")).collect();
                let text = format!("{}{diverged}{labels}", report.bundle);
                self.note_commit(repo.id, text);
                let mut last = self.control.last_error.lock().expect("nothing panics while it holds a text");
                last.take_if(|text| text.starts_with(COMMIT_ERROR));
                drop(last);
                Ok(report)
            }
            Err(error) => {
                self.set_last_error(format!("{COMMIT_ERROR}{}: {error}", repo.name));
                Err(error.into())
            }
        }
    }

    /// Counts handles that may write, whose mapped pages a commit must see. The last one's end is when the background
    /// may begin to upload.
    pub fn count_writer(&self, ino: Ino, opened: bool) {
        let is_last = {
            let mut writers = self.control.writers.lock().expect("nothing panics while it holds the writers");
            let count = writers.entry(ino).or_default();
            *count = if opened { *count + 1 } else { count.saturating_sub(1) };
            let is_last = *count == 0;
            if is_last {
                writers.remove(&ino);
            }
            is_last
        };
        if let (true, Ok(Node::Staged { slot, ino })) = (is_last, self.node(ino))
            && let Ok((_, committer)) = self.committer(slot)
        {
            committer.closed(ino);
        }
    }

    /// Whether nobody may change anything, because the mount is about to go.
    pub(super) fn is_frozen(&self) -> bool {
        self.control.frozen.load(Ordering::Acquire)
    }

    /// Says how mapped pages are written back.
    pub fn set_flush_mapped(&self, flush: super::namespace::FlushMapped) {
        // A second session over one Vfs does not exist; the first one's answer stays.
        let _ = self.control.flush.set(flush);
    }

    /// Writes back what was stored through mappings of this file.
    pub(super) async fn flush_mapped_of(&self, ino: Ino) {
        let is_open =
            self.control.writers.lock().expect("nothing panics while it holds the writers").contains_key(&ino);
        if is_open {
            self.flush_files(vec![ino]).await;
        }
    }

    async fn flush_mapped(&self) {
        let open: Vec<Ino> =
            self.control.writers.lock().expect("nothing panics while it holds the writers").keys().copied().collect();
        self.flush_files(open).await;
    }

    async fn flush_files(&self, open: Vec<Ino>) {
        if let (Some(flush), false) = (self.control.flush.get().cloned(), open.is_empty()) {
            // On a thread of its own: the kernel answers by sending WRITEs, and waits for the FUSE thread to take them.
            // A thread that panicked has flushed what it could.
            let _ = tokio::task::spawn_blocking(move || flush(open)).await;
        }
    }
}

/// Whether the permission bits let the caller write: those of the first class that it belongs to (inode(7)).
fn writes(owner: Attributes, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
    let bits = owner.permissions;
    match caller {
        Caller { uid: 0, .. } => true,
        Caller { uid, .. } if uid == owner.uid => bits & 0o200 != 0,
        // Nobody's groups matter where group and others may do the same.
        _ if (bits & 0o020 != 0) == (bits & 0o002 != 0) => bits & 0o002 != 0,
        Caller { gid, .. } if gid == owner.gid || groups().contains(&owner.gid) => bits & 0o020 != 0,
        _ => bits & 0o002 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_a_caller_belongs_to_decides() {
        let root = |permissions| Attributes { permissions, uid: 10, gid: 20, mtime: Timestamp { secs: 0, nanos: 0 } };
        let caller = |uid, gid| Caller { uid, gid, umask: 0 };
        let none = Vec::new;
        assert!(writes(root(0o000), caller(0, 0), none));
        assert!(writes(root(0o755), caller(10, 1), none));
        assert!(!writes(root(0o577), caller(10, 20), none), "the owner's own bits, whatever others may");
        assert!(writes(root(0o775), caller(11, 20), none));
        assert!(writes(root(0o775), caller(11, 21), || vec![5, 20]), "a supplementary group");
        assert!(!writes(root(0o775), caller(11, 21), || vec![5]));
        assert!(!writes(root(0o757), caller(11, 21), || vec![20]), "a group that may not");
        assert!(writes(root(0o777), caller(11, 21), || unreachable!("not asked")));
    }
}
