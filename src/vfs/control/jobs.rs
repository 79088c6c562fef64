//! Jobs: what programs start through the ioctls (`model::job`), and how far it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Asked, Vfs};
use crate::model::job::{Committed, Job, Progress, Verb};
use crate::staging::commit::CommitReport;
use crate::staging::tree::Caller;
use crate::vfs::error::VfsError;
use crate::vfs::left::Left;
use crate::vfs::node::{Ino, NameNode, Node, RepoKey};

/// How long a freeze lasts when nobody waits on a job any more.
const LEASE: Duration = Duration::from_secs(10);
/// How often, and how many times, a freeze looks whether the last writer has closed its file.
const RELEASE_POLL: Duration = Duration::from_millis(25);
const RELEASE_POLLS: usize = 40;

impl Vfs {
    /// Whether the caller may ask for this: root and who mounted it for everything, others for commits of a tree that
    /// they may write into.
    pub async fn may_submit(&self, ino: Ino, verb: &Verb, caller: Caller, groups: impl FnOnce() -> Vec<u32>) -> bool {
        let is_owner = caller.uid == 0 || caller.uid == self.settings().owner.0;
        is_owner || (matches!(verb, Verb::Commit { all: false, .. }) && self.may_write(ino, caller, groups).await)
    }

    /// Starts what a program asks for, on the staging tree that `ino` lies in.
    pub fn submit(self: &Arc<Self>, ino: Ino, verb: Verb, caller: Caller) -> Result<Job, VfsError> {
        let job = self.control.next_job.fetch_add(1, Ordering::Relaxed);
        let (progress, watch) =
            tokio::sync::watch::channel(Progress::Running { line: "starting".to_owned(), done: 0, total: 0 });
        self.control.jobs.lock().expect("nothing panics while it holds the jobs").insert(job, watch);
        let vfs = self.clone();
        let trees = match (&verb, self.node(ino)?) {
            (Verb::Commit { all: false, .. }, Node::Staged { slot, .. }) => Trees::At(slot),
            (Verb::Commit { all: false, .. }, Node::Name(NameNode::Repo(repo))) => Trees::Of(repo),
            (Verb::Commit { all: false, .. }, Node::Name(NameNode::BusyStaging(repo))) => Trees::Of(repo),
            (Verb::Commit { all: false, .. }, node) => Trees::None(not_a_tree(&node)),
            _ => Trees::All,
        };
        tokio::spawn(async move {
            let outcome = vfs.run(verb, trees, caller).await;
            let _ = progress.send(outcome);
        });
        Ok(Job { job })
    }

    async fn run(self: &Arc<Self>, verb: Verb, trees: Trees, caller: Caller) -> Progress {
        match verb {
            Verb::Freeze => {
                let busy =
                    || failed("busy", "a file is open for writing (close it: fuser -vm shows it)".into(), vec![]);
                if !self.writers_have_left().await {
                    return busy();
                }
                self.freeze(true);
                // Who opened one after that look; from now on nobody does.
                if self.has_writers() {
                    self.freeze(false);
                    return busy();
                }
            }
            Verb::Thaw => self.freeze(false),
            Verb::Remount { read_only } => {
                if self.set_read_only(read_only).is_err() {
                    return failed("denied", "what is mounted here stays read-only".to_owned(), vec![]);
                }
            }
            Verb::Keep { options } => {
                if let Err(why) = (self.settings().keeps)(&options) {
                    return failed("denied", why, vec![]);
                }
            }
            Verb::Commit { all: false, .. } if self.publishes_nothing() => {
                return failed("denied", "the mount is read-only (mount it rw to commit)".to_owned(), Vec::new());
            }
            Verb::Commit { message, labels, all, contributor } => {
                // What an earlier mount left, and nobody has looked at since, is committed as well.
                let mut unopened = Left::default();
                if all {
                    unopened = self.open_left_trees().await;
                }
                let slots = match trees {
                    Trees::At(slot) => vec![slot],
                    Trees::Of(repo) => match self.tree_slot(&repo).await {
                        Ok(slot) => vec![slot],
                        Err(error) => return failed(error.kind(), format!("{}: {error}", repo.name), vec![]),
                    },
                    Trees::All => (0..self.tree_slots().len()).collect(),
                    Trees::None(why) => return failed("usage", why.to_owned(), vec![]),
                };
                let mut asked = Asked { message, ..Asked::default() };
                if let Err(why) = asked.read(&labels, contributor.as_deref()) {
                    return failed("usage", why, Vec::new());
                }
                return self.run_commit(&asked, all, slots, unopened, caller).await;
            }
        }
        Progress::Done { commits: Vec::new(), notes: Vec::new() }
    }

    /// Whether no handle may write any more; the kernel tells of a close a moment after it.
    async fn writers_have_left(&self) -> bool {
        for _ in 0..RELEASE_POLLS {
            if !self.has_writers() {
                return true;
            }
            tokio::time::sleep(RELEASE_POLL).await;
        }
        false
    }

    fn has_writers(&self) -> bool {
        !self.control.writers.lock().expect("nothing panics while it holds the writers").is_empty()
    }

    async fn run_commit(&self, asked: &Asked, all: bool, slots: Vec<usize>, left: Left, caller: Caller) -> Progress {
        let mut commits = Vec::new();
        let Left { mut failures, mut notes } = left;
        let mut kind = "failed";
        for slot in slots {
            let (repo, committer) = match self.committer(slot) {
                Ok(open) => open,
                // Its changes are being put aside, or brought back.
                Err(error) => {
                    kind = error.kind();
                    failures.push(error.to_string());
                    continue;
                }
            };
            // What cannot be looked at fails as a commit.
            if all && !committer.has_changes().await.unwrap_or(true) {
                continue;
            }
            if all && (!self.settings().umount_commits || self.publishes_nothing()) {
                let files = committer.tree().staged().files;
                let why = if self.publishes_nothing() { "ro" } else { "commit=manual" };
                notes.push(format!("{}: not committed ({why}): {files} changed files stay staged here", repo.name));
                continue;
            }
            // A change behind a freeze is ours: nobody else can make one.
            match self.commit_slot(slot, asked.clone(), caller).await {
                Ok(report) => commits.push(self.committed(&repo, &report, asked)),
                Err(error) => {
                    kind = error.kind();
                    failures.push(format!("{}: {error}", repo.name));
                }
            }
        }
        if failures.is_empty() {
            Progress::Done { commits, notes }
        } else {
            // Of several each may have its own; what is said of all is that they failed.
            failed(if failures.len() == 1 { kind } else { "failed" }, failures.join("; "), commits)
        }
    }

    fn committed(&self, repo: &RepoKey, report: &CommitReport, asked: &Asked) -> Committed {
        let asked_for = self.settings().labels.iter().chain(&asked.labels);
        let labels = asked_for.filter(|label| !report.labels.refused.contains(label));
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
            labels: labels.map(ToString::to_string).collect(),
            label_notes: report.labels.sentences(),
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
            Err(_) => Ok(self.progress()),
        }
    }

    /// How far what is staged is on its way to the store.
    fn progress(&self) -> Progress {
        let trees = self.open_trees();
        let dirty = trees.iter().filter(|(_, committer)| committer.tree().is_dirty());
        let mut names = Vec::new();
        let (mut done, mut total) = (0, 0);
        for (repo, committer) in dirty {
            let staged = committer.tree().staged();
            names.push(repo.name.as_str());
            done += staged.uploaded.min(staged.bytes);
            total += staged.bytes;
        }
        // A line of 4 KiB at most goes to the program that asks.
        names.truncate(3);
        Progress::Running { line: names.join(", "), done, total }
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
        // A helper that died cannot thaw: its lease does. A mount that is gone is kept by nobody here, with its trees.
        let vfs = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let Some(vfs) = vfs.upgrade().filter(|vfs| vfs.control.frozen.load(Ordering::Acquire)) else { return };
                let renewed = *vfs.control.lease.lock().expect("nothing panics while it holds the lease");
                if renewed.is_none_or(|at| at.age(vfs.store().clock.now()) > LEASE) {
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

impl Asked {
    /// What a program said in words.
    fn read(&mut self, labels: &[String], contributor: Option<&str>) -> Result<(), String> {
        for label in labels {
            self.labels.push(label.parse().map_err(|why| format!("label {label}: {why}"))?);
        }
        let parsed = contributor.map(|text| text.parse().map_err(|why| format!("contributor {text}: {why}")));
        self.contributor = parsed.transpose()?;
        Ok(())
    }
}

/// The trees that a verb is about.
enum Trees {
    /// The one in this slot.
    At(usize),
    /// A repo's, opened if it is not.
    Of(RepoKey),
    /// All that are open.
    All,
    /// There is none, and this is what to say.
    None(&'static str),
}

/// What is wrong with a commit of something that is no staging tree.
fn not_a_tree(node: &Node) -> &'static str {
    match node {
        Node::Row { .. } => "a version never changes (commit the staging tree: REPO/staging)",
        Node::Name(NameNode::Context) => {
            "a context has no staging tree of its own (name a repo's: REPO/staging below it)"
        }
        _ => "not in a staging tree (name one: REPO/staging)",
    }
}

fn failed(kind: &str, message: String, commits: Vec<Committed>) -> Progress {
    Progress::Failed { kind: kind.to_owned(), message, commits }
}
