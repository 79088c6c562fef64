//! `.datamon`: texts that say what is going on, commands, and the jobs that programs start through ioctls.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::error::VfsError;
use super::node::{Ino, NameNode, Node, RepoKey};
use super::{Found, Shared, Ttl, Vfs};
use crate::format::refs::Summary;
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, FileKind};
use crate::model::id::RepoId;
use crate::model::job::{Committed, Job, Progress, Verb};
use crate::model::name::LabelName;
use crate::staging::commit::{CommitReport, CommitRequest, Committer};
use crate::staging::inode::ROOT;
use crate::staging::tree::{Caller, NodeAttr};
use crate::store::refs::History;

/// The name of the directory, never listed.
pub const DIRECTORY: &[u8] = b".datamon";
/// How long a freeze lasts when nobody waits on a job any more.
const LEASE: Duration = Duration::from_secs(10);

/// What the last error begins with if it was a commit's: the next commit that succeeds takes it away.
const COMMIT_ERROR: &str = "commit of ";
/// How often, and how many times, a freeze looks whether the last writer has closed its file.
const RELEASE_POLL: Duration = Duration::from_millis(25);
const RELEASE_POLLS: usize = 40;

/// The texts there: at the top of a context mount there is nothing to command.
pub(super) fn names(in_repo: bool) -> &'static [&'static str] {
    if in_repo { &["ctl", "history", "status"] } else { &["status"] }
}

/// What control remembers.
#[derive(Default)]
pub struct Control {
    jobs: Shared<HashMap<u64, tokio::sync::watch::Receiver<Progress>>>,
    next_job: AtomicU64,
    last_error: Shared<Option<String>>,
    last_commit: Shared<Option<String>>,
    lease: Shared<Option<Timestamp>>,
    frozen: AtomicBool,
    writers: Shared<HashMap<Ino, u32>>,
    /// Histories as far as they were read. One that is being read is locked: whoever wants it too waits for that.
    histories: Shared<HashMap<RepoId, Arc<tokio::sync::Mutex<History>>>>,
    flush: std::sync::OnceLock<super::namespace::FlushMapped>,
}

impl Vfs {
    pub(super) fn control_directory(&self, repo: Option<RepoKey>) -> Found {
        self.directory(NameNode::Control(repo), Ttl::None)
    }

    pub(super) async fn lookup_text(&self, repo: Option<RepoKey>, name: &[u8]) -> Result<Found, VfsError> {
        let node = match (name, repo) {
            (b"status", repo) => NameNode::Status(repo),
            (b"history", Some(repo)) => NameNode::History(repo),
            (b"ctl", Some(repo)) => NameNode::Ctl(repo),
            _ => return Err(VfsError::NotFound),
        };
        self.text_attr(&node).await
    }

    pub(super) async fn text_attr(&self, node: &NameNode) -> Result<Found, VfsError> {
        let (size, permissions) = match node {
            NameNode::Ctl(_) => (0, 0o200),
            _ => (self.render(node).await?.len() as u64, 0o444),
        };
        let now = self.store().clock.now();
        let (uid, gid) = self.settings().owner;
        let attributes = Attributes { permissions, uid, gid, mtime: now };
        let ino = self.name_ino(node);
        let attr = NodeAttr {
            ino,
            kind: FileKind::Regular,
            attributes,
            atime: now,
            ctime: now,
            size,
            nlink: 1,
            rdev: 0,
            blocks: 0,
        };
        Ok(Found { attr, ttl: Ttl::None })
    }

    pub(super) async fn open_text(&self, node: &NameNode, for_writing: bool) -> Result<super::Opened, VfsError> {
        match node {
            NameNode::Ctl(_) => Ok(super::Opened::Control),
            _ if for_writing => Err(VfsError::NotPermitted),
            node if node.is_text() => Ok(super::Opened::Text(self.render(node).await?)),
            _ => Err(VfsError::IsDirectory),
        }
    }

    /// One write is one command.
    pub(super) async fn write_text(&self, node: &NameNode, data: &[u8]) -> Result<(), VfsError> {
        let NameNode::Ctl(repo) = node else { return Err(VfsError::NotPermitted) };
        match std::str::from_utf8(data).map(str::trim) {
            Ok("commit") => {
                let slot = self.tree_slot(repo).await?;
                self.commit_slot(slot, self.default_request()).await.map(drop)
            }
            Ok("discard" | "undiscard") => Err(VfsError::NotSupported("not in this version")),
            _ => Err(VfsError::Invalid("unknown command (commit)")),
        }
    }

    async fn render(&self, node: &NameNode) -> Result<Bytes, VfsError> {
        match node {
            NameNode::Status(repo) => Ok(self.status(repo.as_ref()).into()),
            NameNode::History(repo) => Ok(self.history(repo).await?.into()),
            _ => Ok(Bytes::new()),
        }
    }

    fn status(&self, repo: Option<&RepoKey>) -> String {
        let settings = self.settings();
        let mut lines = vec![format!("context: {}", settings.context)];
        lines.extend(repo.map(|repo| format!("repo: {}", repo.name)));
        lines.push(format!("source: {}", settings.source));
        lines.push(format!("version: {}", env!("CARGO_PKG_VERSION")));
        lines.push(format!("pid: {}", std::process::id()));
        lines.push(format!("mounted: {}", self.mounted()));
        for (key, committer) in self.open_trees() {
            if repo.is_none_or(|repo| repo.id == key.id) {
                let state = if committer.tree().is_dirty() { "dirty" } else { "clean" };
                let parent =
                    committer.parent().map_or("none".to_owned(), |parent| parent.descriptor().bundle.to_string());
                if repo.is_none() {
                    lines.push(format!("repo: {}", key.name));
                }
                let staged = committer.tree().staged();
                lines.push(format!("staging: {state}"));
                lines.push(format!("dirty_files: {}", staged.files));
                lines.push(format!("dirty_bytes: {}", staged.bytes));
                lines.push(format!("uploaded_bytes: {}", staged.uploaded));
                lines.push(format!("pending_bytes: {}", staged.bytes.saturating_sub(staged.uploaded)));
                lines.push(format!("base: {parent}"));
                lines.extend(recovered(&committer).map(|found| format!("recovered: {found}")));
            }
        }
        let text = |of: &Shared<Option<String>>| of.lock().expect("nothing panics while it holds a text").clone();
        lines.extend(text(&self.control.last_commit).map(|text| format!("last_commit: {text}")));
        lines.extend(text(&self.control.last_error).map(|text| format!("last_error: {text}")));
        let requests = &self.store().requests;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        lines.push(format!(
            "requests: {} read, {} write, {} list, {} again",
            count(&requests.reads),
            count(&requests.writes),
            count(&requests.lists),
            count(&requests.retries)
        ));
        lines.join("\n") + "\n"
    }

    /// All bundles, oldest first.
    async fn history(&self, repo: &RepoKey) -> Result<String, VfsError> {
        let newest = self.refs(repo.id).await?.recent.last().map(|summary| summary.bundle);
        let histories = &self.control.histories;
        let history =
            histories.lock().expect("nothing panics while it holds the histories").entry(repo.id).or_default().clone();
        let mut history = history.lock().await;
        let lines = match newest {
            // As old as every other view of the refs: a stat and the read after it ask the store once.
            Some(newest) if !history.knows(newest) => history.update(self.store(), repo.id).await?,
            _ => history.summaries(),
        };
        let mut text = String::new();
        for line in lines {
            let labels: Vec<_> = line.labels.iter().map(LabelName::as_str).collect();
            let message = line.message.replace(['\t', '\n'], " ");
            let Summary { bundle, time, who, files, bytes, .. } = line;
            text += &format!("{bundle}\t{time}\t{who}\t{files}\t{bytes}\t{}\t{message}\n", labels.join(","));
        }
        Ok(text)
    }

    /// Notes a refusal for `status`; that of a commit is there already, with its repo.
    pub fn note_error(&self, error: &VfsError) {
        if !matches!(error, VfsError::Commit(_)) {
            self.set_last_error(error.to_string());
        }
    }

    fn set_last_error(&self, text: String) {
        *self.control.last_error.lock().expect("nothing panics while it holds a text") = Some(text);
    }

    pub(super) async fn own_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, VfsError> {
        let text = match (name, self.node(ino)?) {
            (b"context", _) => self.settings().context.clone(),
            (b"bundle", Node::Row { slot, .. }) => self.view(slot).await?.descriptor().bundle.to_string(),
            (b"repo", Node::Row { slot, .. }) => self.view_key(slot)?.repo.name.to_string(),
            (b"repo", Node::Staged { slot, .. }) => self.committer(slot)?.0.name.to_string(),
            (b"repo", Node::Name(NameNode::Repo(repo))) => repo.name.to_string(),
            _ => return Err(VfsError::NoXattr),
        };
        Ok(text.into_bytes())
    }

    // ---- commits -----------------------------------------------------------------------------------------------------

    fn default_request(&self) -> CommitRequest {
        let settings = self.settings();
        CommitRequest {
            message: settings.message.clone(),
            labels: settings.labels.clone(),
            fail_if_diverged: settings.fail_if_diverged,
        }
    }

    /// Whether opening this directory so (`sync PATH`) is the gesture of a commit by a caller who may make one.
    pub async fn is_commit_gesture(&self, ino: Ino, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let Ok(Node::Staged { slot, ino: ROOT }) = self.node(ino) else { return false };
        let settings = self.settings();
        if !settings.sync_commits || settings.read_only {
            return false;
        }
        let Ok((_, committer)) = self.committer(slot) else { return false };
        // An empty tree without a base has nothing to make a bundle of.
        if !committer.tree().is_dirty() && committer.parent().is_none() {
            return false;
        }
        self.may_write(ino, caller, groups).await
    }

    /// Whether the caller may write into the root of the staging tree that `ino` lies in. `groups`, asked only when it
    /// matters, are the groups that the caller is in besides its own.
    pub async fn may_write(&self, ino: Ino, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let Ok(Node::Staged { slot, .. }) = self.node(ino) else { return false };
        let Ok(found) = self.getattr(Node::staged_ino(slot, ROOT)).await else { return false };
        writes(found.attr.attributes, caller, groups)
    }

    /// Commits the staging tree that `ino` lies in, with the mount's message and labels.
    pub async fn commit(&self, ino: Ino) -> Result<CommitReport, VfsError> {
        let Node::Staged { slot, .. } = self.node(ino)? else { return Err(VfsError::Invalid("not a staging tree")) };
        self.commit_slot(slot, self.default_request()).await
    }

    async fn commit_slot(&self, slot: usize, request: CommitRequest) -> Result<CommitReport, VfsError> {
        let (repo, committer) = self.committer(slot)?;
        self.flush_mapped().await;
        let outcome = committer.commit(request).await;
        self.forget_refs(repo.id);
        match outcome {
            Ok(report) => {
                let diverged =
                    if report.diverged { " (diverged: latest was another bundle than the base)" } else { "" };
                let text = format!("{}{diverged}", report.bundle);
                *self.control.last_commit.lock().expect("nothing panics while it holds a text") = Some(text);
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

    // ---- jobs ----------------------------------------------------------------------------------------------------------

    /// Whether the caller may ask for this: root and who mounted it for everything, others for commits of a tree that
    /// they may write into.
    pub async fn may_submit(&self, ino: Ino, verb: &Verb, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let is_owner = caller.uid == 0 || caller.uid == self.settings().owner.0;
        is_owner || (matches!(verb, Verb::Commit { all: false, .. }) && self.may_write(ino, caller, groups).await)
    }

    /// Starts what a program asks for, on the staging tree that `ino` lies in.
    pub fn submit(self: &Arc<Self>, ino: Ino, verb: Verb) -> Result<Job, VfsError> {
        let job = self.control.next_job.fetch_add(1, Ordering::Relaxed);
        let (progress, watch) = tokio::sync::watch::channel(Progress::Running { line: "starting".to_owned() });
        self.control.jobs.lock().expect("nothing panics while it holds the jobs").insert(job, watch);
        let vfs = self.clone();
        let slots: Vec<usize> = match (&verb, self.node(ino)?) {
            (Verb::Commit { all: false, .. }, Node::Staged { slot, .. }) => vec![slot],
            (Verb::Commit { all: false, .. }, Node::Name(NameNode::Repo(repo))) => {
                let open = self.open_trees();
                open.iter().position(|(key, _)| key.id == repo.id).into_iter().collect()
            }
            (Verb::Commit { all: false, .. }, _) => return Err(VfsError::Invalid("not in a staging tree")),
            _ => (0..self.open_trees().len()).collect(),
        };
        tokio::spawn(async move {
            let outcome = vfs.run(verb, slots).await;
            let _ = progress.send(outcome);
        });
        Ok(Job { job })
    }

    async fn run(self: &Arc<Self>, verb: Verb, slots: Vec<usize>) -> Progress {
        match verb {
            Verb::Freeze => {
                if !self.writers_have_left().await {
                    return failed("busy", "a file is open for writing (close it: fuser -vm shows it)".into(), vec![]);
                }
                self.freeze(true);
            }
            Verb::Thaw => self.freeze(false),
            Verb::Commit { message, labels, all } => return self.run_commit(message, &labels, all, slots).await,
        }
        Progress::Done { commits: Vec::new() }
    }

    /// Whether no handle may write any more; the kernel tells of a close a moment after it.
    async fn writers_have_left(&self) -> bool {
        for _ in 0..RELEASE_POLLS {
            if self.control.writers.lock().expect("nothing panics while it holds the writers").is_empty() {
                return true;
            }
            tokio::time::sleep(RELEASE_POLL).await;
        }
        false
    }

    async fn run_commit(&self, message: Option<String>, labels: &[String], all: bool, slots: Vec<usize>) -> Progress {
        let mut request = self.default_request();
        if let Some(message) = message {
            request.message = message;
        }
        for label in labels {
            match label.parse() {
                Ok(label) => request.labels.push(label),
                Err(why) => return failed("usage", format!("label {label}: {why}"), Vec::new()),
            }
        }
        let mut commits = Vec::new();
        let mut failures = Vec::new();
        for slot in slots {
            let Ok((repo, committer)) = self.committer(slot) else { continue };
            if all && !committer.tree().is_dirty() {
                continue;
            }
            // A change behind a freeze is ours: nobody else can make one.
            match self.commit_slot(slot, request.clone()).await {
                Ok(report) => commits.push(self.committed(&repo, &committer, &report, &request)),
                Err(error) => failures.push(format!("{}: {error}", repo.name)),
            }
        }
        if failures.is_empty() { Progress::Done { commits } } else { failed("commit", failures.join("; "), commits) }
    }

    fn committed(
        &self,
        repo: &RepoKey,
        _: &Arc<Committer>,
        report: &CommitReport,
        request: &CommitRequest,
    ) -> Committed {
        Committed {
            bundle: report.bundle.to_string(),
            repo: repo.name.to_string(),
            context: self.settings().context.clone(),
            base: report.base.map(|base| base.to_string()),
            diverged: report.diverged,
            changed: report.changed,
            files: report.files,
            bytes: report.bytes,
            new_bytes: report.new_bytes,
            labels: request.labels.iter().map(ToString::to_string).collect(),
        }
    }

    /// How far a job is; waits up to 250 ms for its end. Renews a freeze.
    pub async fn wait(&self, job: Job) -> Result<Progress, VfsError> {
        if self.control.frozen.load(Ordering::Acquire) {
            *self.control.lease.lock().expect("nothing panics while it holds the lease") =
                Some(self.store().clock.now());
        }
        let found = self.control.jobs.lock().expect("nothing panics while it holds the jobs").get(&job.job).cloned();
        let mut watch = found.ok_or(VfsError::Invalid("no such job"))?;
        let done = |progress: &Progress| !matches!(progress, Progress::Running { .. });
        let waited = tokio::time::timeout(Duration::from_millis(250), watch.wait_for(done)).await;
        match waited.map(|ended| ended.map(|progress| progress.clone())) {
            Ok(Ok(progress)) => Ok(progress),
            Ok(Err(_)) => Ok(failed("failed", "the job ended without a word".to_owned(), Vec::new())),
            Err(_) => Ok(watch.borrow().clone()),
        }
    }

    fn freeze(self: &Arc<Self>, frozen: bool) {
        self.control.frozen.store(frozen, Ordering::Release);
        for (_, committer) in self.open_trees() {
            committer.tree().freeze(frozen);
        }
        if !frozen {
            return;
        }
        *self.control.lease.lock().expect("nothing panics while it holds the lease") = Some(self.store().clock.now());
        // A helper that died cannot thaw: its lease does.
        let vfs = self.clone();
        tokio::spawn(async move {
            while vfs.control.frozen.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let renewed = *vfs.control.lease.lock().expect("nothing panics while it holds the lease");
                let age = renewed.map_or(u64::MAX, |at| vfs.store().clock.now().millis().saturating_sub(at.millis()));
                if u128::from(age) > LEASE.as_millis() {
                    vfs.freeze_ended();
                }
            }
        });
    }

    fn freeze_ended(&self) {
        self.control.frozen.store(false, Ordering::Release);
        for (_, committer) in self.open_trees() {
            committer.tree().freeze(false);
        }
    }
}

/// What the tree's opening found of an earlier life of the process, if it found anything.
fn recovered(committer: &Committer) -> Option<String> {
    let found = committer.tree().recovered()?;
    let mut parts = vec![format!("{} files with staged bytes", found.files)];
    parts.extend(committer.finished().map(|bundle| format!("commit {bundle} was finished")));
    let lost = [
        (found.unsynced, "are as before their last changes, which were never synced"),
        (found.gone, "lack bytes that were synced (EIO): put them back, or remove these files"),
    ];
    parts.extend(lost.into_iter().filter(|(files, _)| *files > 0).map(|(files, what)| format!("{files} {what}")));
    Some(parts.join("; "))
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

fn failed(kind: &str, message: String, commits: Vec<Committed>) -> Progress {
    Progress::Failed { kind: kind.to_owned(), message, commits }
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
