//! The history of a repo: its bundles, oldest first, read from few records.
//!
//! Each record repeats the last 64 summaries, and none adds more than one. So the whole history is read from one record in
//! 63, whose summaries overlap by one at least: that shows that nothing was skipped. Records that only move labels
//! make them overlap more.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::load;
use crate::format::FormatError;
use crate::format::key;
use crate::format::refs::{RECENT_MAX, RefsRecord, Summary};
use crate::model::id::{BundleId, RepoId};
use crate::store::chain::{self, Link};
use crate::store::{Store, StoreError};

/// From one record that is read for history to the next: their summaries overlap.
const STRIDE: u64 = RECENT_MAX as u64 - 1;
/// Records of the history that are read at once.
pub(super) const READS: usize = 8;

/// A place in a repo's chain of refs, to look only at what came later. Before the first record it is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(pub(super) Option<u64>);

impl Position {
    /// The place of this record.
    pub fn of(link: Option<&Link<RefsRecord>>) -> Self {
        Self(link.map(|link| link.seq))
    }
}

/// A place in the chain that is not later than its newest record: one LIST, unless a record is known.
pub async fn position(store: &Store, repo: RepoId) -> Result<Position, StoreError> {
    if let Some(known) = store.heads.get(&store.keys().refs(repo)) {
        return Ok(Position(Some(known.seq)));
    }
    let first = store.first(&store.keys().refs(repo)).await?;
    Ok(Position(first.and_then(|key| key.sequence())))
}

/// The summaries that came after `since`, oldest first, each once; with them perhaps some that came before.
///
/// `newest` is the newest record. Reads one record in 63 of those since then, and none at all while 64 bundles or fewer
/// have been entered.
pub(super) async fn summaries(
    store: &Store,
    repo: RepoId,
    newest: &Link<RefsRecord>,
    since: Position,
) -> Result<Vec<Summary>, StoreError> {
    let mut parts = vec![newest.record.recent.clone()];
    if newest.record.recent.len() == RECENT_MAX {
        let earlier = (1..).map_while(|n| newest.seq.checked_sub(n * STRIDE));
        let needed = earlier.take_while(|seq| Position(Some(*seq)) > since);
        let prefix = store.keys().refs(repo);
        let reads = needed.map(|seq| chain::read::<RefsRecord>(store, &prefix, seq, Some(store.context())));
        // `needed` ends at the first record, so a history of a million bundles is 16,000 reads.
        let mut links = stream::iter(reads).buffered(READS);
        while let Some(link) = links.try_next().await? {
            let oldest = parts.last().and_then(|later| later.first()).map(|summary| summary.bundle);
            if !link.record.recent.iter().any(|summary| Some(summary.bundle) == oldest) {
                let why = FormatError::Malformed { what: "history with a gap" };
                return Err(StoreError::Corrupt { key: key::record(&prefix, link.seq), why });
            }
            let is_all = link.record.recent.len() < RECENT_MAX;
            parts.push(link.record.recent);
            if is_all {
                break;
            }
        }
    }
    let mut known = HashSet::new();
    let oldest_first = parts.into_iter().rev().flatten();
    Ok(oldest_first.filter(|summary| known.insert(summary.bundle)).collect())
}

/// All bundles of a repo, as far as they were read. Kept by a caller, it reads only what was added.
#[derive(Debug, Default)]
pub struct History {
    read: Position,
    known: HashSet<BundleId>,
    summaries: Vec<Summary>,
}

impl History {
    /// All bundles that were read, oldest first.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Whether this bundle was read.
    pub fn knows(&self, bundle: BundleId) -> bool {
        self.known.contains(&bundle)
    }

    /// How far the chain was read.
    pub fn position(&self) -> Position {
        self.read
    }

    /// Reads on to the newest record; answers all bundles, oldest first, each once.
    ///
    /// Safe to drop: what was read before stays.
    pub async fn update(&mut self, store: &Store, repo: RepoId) -> Result<&[Summary], StoreError> {
        if let Some(newest) = load(store, repo).await? {
            let added = summaries(store, repo, &newest, self.read).await?;
            let known = &mut self.known;
            self.summaries.extend(added.into_iter().filter(|summary| known.insert(summary.bundle)));
            self.read = Position::of(Some(&newest));
        }
        Ok(&self.summaries)
    }
}

/// All bundles of a repo, oldest first, each once.
pub async fn history(store: &Store, repo: RepoId) -> Result<Vec<Summary>, StoreError> {
    let mut history = History::default();
    history.update(store, repo).await?;
    Ok(history.summaries)
}
