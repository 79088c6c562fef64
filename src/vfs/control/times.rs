//! When each text of a `.datamon` changed last.
//!
//! A text is made anew at every look, and most often says the same: then its time must be the same, too, or make, rsync and
//! editors take it for changed, and a mounted version reads again what the kernel has kept. So what was told of a text is
//! remembered by its number, with a digest of what it said.
//!
//! A text that nobody has seen yet has a time of its own where one can be told from the store: when its bundle was
//! committed, its label moved, its last line written. So another mount, or this one tomorrow, shows the same.
//!
//! # Invariants
//!
//! 1. The same words have the same time, and other words a later one, also when the first come back: whoever has seen a time
//!    has seen what was said then.
//! 2. A time never goes back, and none lies in the future.
//! 3. At most [`SEEN_MAX`] texts are remembered. Those with a time of their own are forgotten first: they get it again.

use std::collections::HashMap;

use super::{Shared, Vfs};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, ObjectHash};
use crate::vfs::error::VfsError;
use crate::vfs::node::{Ino, NameNode, RepoKey, Scope, Text};

/// Texts that are remembered: less than a mebibyte.
const SEEN_MAX: usize = 1 << 14;

/// See the module.
#[derive(Default)]
pub(super) struct Times(Shared<State>);

#[derive(Default)]
struct State {
    seen: HashMap<Ino, Seen>,
    /// No text that is not remembered was shown with a later time that was not its own.
    forgotten: Option<Timestamp>,
}

#[derive(Clone, Copy)]
struct Seen {
    digest: u64,
    time: Timestamp,
    /// Whether the time is the text's own, and can be told again.
    is_own: bool,
}

impl Times {
    /// The time of a text that says the same as it did last.
    fn of(&self, ino: Ino, digest: u64) -> Option<Timestamp> {
        let state = self.0.lock().expect("nothing panics while it holds the times");
        state.seen.get(&ino).filter(|seen| seen.digest == digest).map(|seen| seen.time)
    }

    /// The time of a text that says this from now on; `own` is what it has of its own.
    fn note(&self, ino: Ino, digest: u64, own: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let mut state = self.0.lock().expect("nothing panics while it holds the times");
        let before = match state.seen.get(&ino) {
            Some(seen) if seen.digest == digest => return seen.time,
            Some(seen) => Some(seen.time),
            None => state.forgotten,
        };
        let own = own.filter(|own| *own <= now && before.is_none_or(|before| *own > before));
        let time = own.unwrap_or_else(|| before.map_or(now, |before| now.max(before.next())));
        state.make_room();
        state.seen.insert(ino, Seen { digest, time, is_own: own.is_some() });
        time
    }
}

impl State {
    fn make_room(&mut self) {
        if self.seen.len() < SEEN_MAX {
            return;
        }
        self.seen.retain(|_, seen| !seen.is_own);
        if self.seen.len() > SEEN_MAX / 2 {
            self.forgotten = self.forgotten.max(self.seen.drain().map(|(_, seen)| seen.time).max());
        }
    }
}

/// What tells one state of a text from another: nothing of a diff, which has one only; of what only grows, its length.
pub(super) fn digest(text: &Text, bytes: &[u8]) -> u64 {
    if matches!(text, Text::Diff(..)) {
        return 0;
    }
    let hash = ObjectHash::of(bytes);
    let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}

impl Vfs {
    /// When a text that says this changed last.
    pub(super) async fn text_time(&self, scope: &Scope, text: &Text, digest: u64) -> Timestamp {
        let ino = self.name_ino(&NameNode::Text(scope.clone(), text.clone()));
        if let Some(time) = self.control.times.of(ino, digest) {
            return time;
        }
        // What a text says is known already; that its time is not is no reason to refuse it.
        let own = self.own_time(scope, text).await.unwrap_or_default();
        self.control.times.note(ino, digest, own, self.store().clock.now())
    }

    /// The time that a text has of its own, which every mount tells alike.
    async fn own_time(&self, scope: &Scope, text: &Text) -> Result<Option<Timestamp>, VfsError> {
        let repo = scope.repo().ok_or(VfsError::NotFound);
        match text {
            Text::Status | Text::Stats | Text::Reads | Text::Wal => Ok(None),
            Text::Ctl => Ok(Some(self.mounted())),
            Text::Message => Ok(self.message(scope)?.changed()?),
            Text::History => self.history_time(repo?.id).await,
            Text::LabelHistory(label) => self.label_moved(repo?, label).await,
            Text::Label(Some(label)) => self.label_moved(repo?, label).await,
            Text::Label(None) => self.latest_moved(repo?).await,
            Text::BundleInfo(bundle) => self.bundle_touched(repo?, *bundle).await,
            Text::BundleFiles(bundle) => Ok(Some(self.bundle(repo?, *bundle).await?.descriptor().time)),
            Text::Diff(a, b) => {
                let repo = repo?;
                let (old, new) = (self.bundle(repo, *a).await?, self.bundle(repo, *b).await?);
                Ok(Some(old.descriptor().time.max(new.descriptor().time)))
            }
        }
    }

    /// When `latest` came to name what it names: at its commit, or when another bundle was removed or came back.
    async fn latest_moved(&self, repo: &RepoKey) -> Result<Option<Timestamp>, VfsError> {
        let record = self.refs(repo.id).await?;
        // What befalls an older bundle does not move it.
        let moves = |bundle: BundleId| record.latest.is_none_or(|latest| bundle >= latest);
        let event = record.events.iter().rev().find(|event| moves(event.bundle)).map(|event| event.time);
        let is_latest = |bundle: BundleId| record.latest == Some(bundle);
        let entered = self.with_history(repo, |bundles| {
            bundles.iter().rev().find(|summary| is_latest(summary.bundle)).map(|summary| summary.time)
        });
        Ok(entered.await?.max(event))
    }

    /// When the last thing befell a bundle that its `info` tells: its commit, a removal or return, a label.
    async fn bundle_touched(&self, repo: &RepoKey, bundle: BundleId) -> Result<Option<Timestamp>, VfsError> {
        let committed = self.bundle(repo, bundle).await?.descriptor().time;
        let event = self.bundle_event(repo.id, bundle).await?;
        let labelled = self.bundle_labelled(repo, bundle).await?;
        Ok(Some(committed).max(event).max(labelled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    #[test]
    fn the_same_words_have_the_same_time_and_others_a_later_one() {
        let times = Times::default();
        assert_eq!(times.note(2, 7, None, at(10)), at(10));
        assert_eq!(times.of(2, 7), Some(at(10)));
        assert_eq!(times.note(2, 7, None, at(20)), at(10), "the same words");
        assert_eq!(times.of(2, 8), None);
        assert_eq!(times.note(2, 8, None, at(30)), at(30));
        assert_eq!(times.note(2, 7, None, at(30)), at(30).next(), "words that came back are new again");
        assert_eq!(times.note(2, 9, None, at(5)), at(30).next().next(), "also by a clock that went back");
    }

    #[test]
    fn a_time_of_its_own_is_shown_unless_it_would_go_back_or_lie_ahead() {
        let times = Times::default();
        assert_eq!(times.note(2, 1, Some(at(3)), at(10)), at(3));
        assert_eq!(times.note(2, 2, Some(at(4)), at(11)), at(4), "what changed has a new one");
        assert_eq!(times.note(2, 3, Some(at(4)), at(12)), at(12), "or the time at which it was seen");
        assert_eq!(times.note(3, 1, Some(at(99)), at(13)), at(13), "no time lies in the future");
    }

    #[test]
    fn what_is_forgotten_never_comes_back_older() {
        let times = Times::default();
        for ino in 0..SEEN_MAX as u64 {
            times.note(ino, 1, Some(at(1)), at(10));
        }
        times.note(1, 2, None, at(20));
        for ino in 0..SEEN_MAX as u64 {
            times.note(SEEN_MAX as u64 + ino, 1, Some(at(1)), at(30));
        }
        assert_eq!(times.of(1, 2), Some(at(20)), "those without a time of their own stay longest");
        assert_eq!(times.note(2, 1, Some(at(1)), at(40)), at(1), "and the others get theirs again");
        for ino in 0..2 * SEEN_MAX as u64 {
            times.note(3 * SEEN_MAX as u64 + ino, 1, None, at(50));
        }
        assert!(times.0.lock().unwrap().seen.len() <= SEEN_MAX);
        assert_eq!(times.of(1, 2), None);
        assert!(times.note(1, 3, Some(at(2)), at(45)) > at(50));
    }
}
