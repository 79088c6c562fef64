//! `history` and `label/NAME/history`: texts that only grow.
//!
//! What stands there once never changes. So an open file is not kept as it was opened: a read tells what is known now, and
//! `tail -f` shows a bundle that somebody commits elsewhere.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::texts::{names, one_line};
use super::{Shared, Vfs};
use crate::format::refs::{Event, EventKind, Summary};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};
use crate::model::name::LabelName;
use crate::store::refs::{History, LabelLog, LabelMove};
use crate::vfs::error::VfsError;
use crate::vfs::node::{RepoKey, Text};

/// Records that are read to tell when a label moved: who lists a directory does not wait for a long history.
const RECORDS_FOR_A_TIME_MAX: u64 = 512;

/// What is remembered of repos' histories. One that is being read is locked: whoever wants it too waits for that.
#[derive(Default)]
pub(super) struct Histories {
    of_repos: Shared<Kept<Lines>>,
    of_labels: Shared<Kept<LabelLog>>,
}

type Kept<T> = HashMap<RepoId, Arc<Mutex<T>>>;

async fn kept<T: Default>(all: &Shared<Kept<T>>, repo: RepoId) -> OwnedMutexGuard<T> {
    let of_repo = all.lock().expect("nothing panics while it holds what is kept").entry(repo).or_default().clone();
    of_repo.lock_owned().await
}

/// A repo's history, and its text as far as anybody has asked for it.
#[derive(Default)]
struct Lines {
    history: History,
    text: String,
    /// Bundles and events that the text tells.
    told: (usize, usize),
}

impl Lines {
    /// The text, with a line for each bundle and event that is new, in the order of their times.
    fn text(&mut self) -> &str {
        let mut bundles = self.history.summaries()[self.told.0..].iter().peekable();
        let mut events = self.history.events()[self.told.1..].iter().peekable();
        loop {
            let is_bundle = match (bundles.peek(), events.peek()) {
                (Some(bundle), Some(event)) => bundle.time <= event.time,
                (bundle, _) => bundle.is_some(),
            };
            let line = match is_bundle {
                true => bundles.next().map(of_bundle),
                false => events.next().map(of_event),
            };
            let Some(line) = line else { break };
            self.text += &line;
        }
        self.told = (self.history.summaries().len(), self.history.events().len());
        &self.text
    }
}

fn of_bundle(summary: &Summary) -> String {
    let Summary { bundle, time, who, files, bytes, .. } = summary;
    let (who, labels, message) = (one_line(who), names(&summary.labels), one_line(&summary.message));
    format!("{bundle}\t{time}\t{who}\t{files}\t{bytes}\t{labels}\t{message}\n")
}

/// A line of as many columns, with `-` for what a bundle has and an event has not.
fn of_event(event: &Event) -> String {
    let who = if event.who.is_empty() { "-".to_owned() } else { one_line(&event.who) };
    let what = match event.kind {
        EventKind::Removed => "removed",
        EventKind::Restored => "restored",
    };
    format!("{}\t{}\t{who}\t-\t-\t-\t{what}\n", event.bundle, event.time)
}

/// A part of a text, and the length of all of it.
fn part(text: &str, range: &Range<u64>) -> (Bytes, u64) {
    let length = text.len() as u64;
    let end = range.end.min(length);
    let bytes = &text.as_bytes()[range.start.min(end) as usize..end as usize];
    (Bytes::copy_from_slice(bytes), length)
}

impl Vfs {
    /// A repo's history as it is now.
    async fn lines(&self, repo: RepoId) -> Result<OwnedMutexGuard<Lines>, VfsError> {
        let newest = self.refs(repo).await?;
        let mut lines = kept(&self.control.histories.of_repos, repo).await;
        // As old as every other view of the refs: a stat and the read after it ask the store once.
        if !lines.history.has_all_of(&newest) {
            lines.history.update(self.store(), repo).await?;
        }
        Ok(lines)
    }

    /// What `of` makes of all bundles of a repo, oldest first.
    pub(in crate::vfs) async fn with_history<T>(
        &self,
        repo: &RepoKey,
        of: impl FnOnce(&[Summary]) -> T,
    ) -> Result<T, VfsError> {
        Ok(of(self.lines(repo.id).await?.history.summaries()))
    }

    /// Bytes of a text that only grows, and its length now; `None` for other texts.
    pub(in crate::vfs) async fn growing(
        &self,
        repo: Option<&RepoKey>,
        text: &Text,
        range: Range<u64>,
    ) -> Result<Option<(Bytes, u64)>, VfsError> {
        let repo = repo.ok_or(VfsError::NotFound);
        match text {
            Text::History => Ok(Some(part(self.lines(repo?.id).await?.text(), &range))),
            Text::LabelHistory(label) => Ok(Some(part(&self.label_history(repo?, label).await?, &range))),
            _ => Ok(None),
        }
    }

    /// Whether this label has led anywhere.
    pub(super) async fn has_label_history(&self, repo: &RepoKey, label: &LabelName) -> Result<bool, VfsError> {
        Ok(!self.label_history(repo, label).await?.is_empty())
    }

    /// When the newest line of a repo's history was written.
    pub(super) async fn history_time(&self, repo: RepoId) -> Result<Option<Timestamp>, VfsError> {
        let lines = self.lines(repo).await?;
        let bundle = lines.history.summaries().last().map(|summary| summary.time);
        Ok(bundle.max(lines.history.events().last().map(|event| event.time)))
    }

    /// When a bundle was committed, as its line of the history says: that is what `at/` goes by.
    pub(super) async fn bundle_time(&self, repo: RepoId, bundle: BundleId) -> Result<Option<Timestamp>, VfsError> {
        let lines = self.lines(repo).await?;
        Ok(lines.history.summaries().iter().rev().find(|summary| summary.bundle == bundle).map(|summary| summary.time))
    }

    /// When a bundle was removed or restored last.
    pub(super) async fn bundle_event(&self, repo: RepoId, bundle: BundleId) -> Result<Option<Timestamp>, VfsError> {
        let lines = self.lines(repo).await?;
        Ok(lines.history.events().iter().rev().find(|event| event.bundle == bundle).map(|event| event.time))
    }

    /// When a label moved last. Not earlier than that where finding out would take long.
    pub(super) async fn label_moved(&self, repo: &RepoKey, label: &LabelName) -> Result<Option<Timestamp>, VfsError> {
        self.moved(repo, |log| log.of(label).last().map(|step| step.time)).await
    }

    /// The same of any label that came to this bundle, or left it.
    pub(super) async fn bundle_labelled(
        &self,
        repo: &RepoKey,
        bundle: BundleId,
    ) -> Result<Option<Timestamp>, VfsError> {
        self.moved(repo, |log| log.touched(bundle)).await
    }

    async fn moved(
        &self,
        repo: &RepoKey,
        of: impl FnOnce(&LabelLog) -> Option<Timestamp>,
    ) -> Result<Option<Timestamp>, VfsError> {
        let newest = self.refs(repo.id).await?;
        let mut log = kept(&self.control.histories.of_labels, repo.id).await;
        let is_whole =
            log.has_all_of(&newest) || log.update_within(self.store(), repo.id, RECORDS_FOR_A_TIME_MAX).await?;
        Ok(if is_whole { of(&log) } else { Some(newest.time) })
    }

    /// Where a label led: when, who, which bundle; a removal is a line too.
    async fn label_history(&self, repo: &RepoKey, label: &LabelName) -> Result<String, VfsError> {
        let newest = self.refs(repo.id).await?;
        let mut log = kept(&self.control.histories.of_labels, repo.id).await;
        if !log.has_all_of(&newest) {
            log.update(self.store(), repo.id).await?;
        }
        let line = |step: &LabelMove| {
            let bundle = step.bundle.map_or("removed".to_owned(), |bundle| bundle.to_string());
            format!("{}\t{}\t{bundle}\n", step.time, one_line(step.who.as_deref().unwrap_or("-")))
        };
        Ok(log.of(label).iter().map(line).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_stays_within_it() {
        assert_eq!(part("abc", &(1..9)), (Bytes::from_static(b"bc"), 3));
        assert_eq!(part("abc", &(3..9)), (Bytes::new(), 3));
        assert_eq!(part("abc", &(7..9)), (Bytes::new(), 3));
    }
}
