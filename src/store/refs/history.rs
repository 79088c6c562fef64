//! The history of a repo: its bundles and what befell them, oldest first, read from few records.
//!
//! Each record repeats the last 64 summaries and the last 64 events, and none adds more than one of each. So the whole
//! history is read from one record in 63, which overlap by one at least: that shows that nothing was skipped. Records
//! that only move labels make them overlap more.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::load;
use crate::format::FormatError;
use crate::format::key;
use crate::format::refs::{Event, RECENT_MAX, RefsRecord, Summary};
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
    let records = records(store, repo, newest, since, has_older_summaries).await?;
    let mut known = HashSet::new();
    let oldest_first = records.into_iter().rev().flat_map(|record| record.recent);
    Ok(oldest_first.filter(|summary| known.insert(summary.bundle)).collect())
}

fn has_older_summaries(record: &RefsRecord) -> bool {
    record.recent.len() == RECENT_MAX
}

fn has_older_events(record: &RefsRecord) -> bool {
    record.events.len() == RECENT_MAX
}

/// As many records as together say all that came after `since`, newest first; `has_older` says of a record whether one
/// before it may say more. What two that follow each other repeat overlaps.
async fn records(
    store: &Store,
    repo: RepoId,
    newest: &Link<RefsRecord>,
    since: Position,
    has_older: impl Fn(&RefsRecord) -> bool,
) -> Result<Vec<RefsRecord>, StoreError> {
    let mut records = vec![newest.record.clone()];
    let earlier = (1..).map_while(|n| newest.seq.checked_sub(n * STRIDE));
    let needed = earlier.take_while(|seq| Position(Some(*seq)) > since);
    let prefix = store.keys().refs(repo);
    let reads = needed.map(|seq| chain::read::<RefsRecord>(store, &prefix, seq, Some(store.context())));
    // `needed` ends at the first record, so a history of a million bundles is 16,000 reads.
    let mut links = stream::iter(reads).buffered(READS);
    while records.last().is_some_and(&has_older) {
        let Some(link) = links.try_next().await? else { break };
        let later = records.last().expect("it begins with the newest");
        if has_gap(&link.record, later) {
            let why = FormatError::Malformed { what: "history with a gap" };
            return Err(StoreError::Corrupt { key: key::record(&prefix, link.seq), why });
        }
        records.push(link.record);
    }
    Ok(records)
}

/// Whether something is missing between what these records repeat.
fn has_gap(earlier: &RefsRecord, later: &RefsRecord) -> bool {
    let oldest = later.recent.first().filter(|_| has_older_summaries(later));
    let is_missed = oldest.is_some_and(|oldest| earlier.recent.iter().all(|known| known.bundle != oldest.bundle));
    let oldest = later.events.first().filter(|_| has_older_events(later));
    is_missed || oldest.is_some_and(|oldest| !earlier.events.contains(oldest))
}

/// All bundles of a repo and what befell them, as far as they were read. Kept by a caller, it reads only what was added.
#[derive(Debug, Default)]
pub struct History {
    read: Position,
    known: HashSet<BundleId>,
    summaries: Vec<Summary>,
    events: Vec<Event>,
}

impl History {
    /// All bundles that were read, oldest first.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// All events that were read, oldest first.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Whether this record tells nothing that was not read.
    pub fn has_all_of(&self, record: &RefsRecord) -> bool {
        let knows_event = |event: &Event| self.events.last().is_some_and(|last| last.time >= event.time);
        record.recent.last().is_none_or(|summary| self.known.contains(&summary.bundle))
            && record.events.last().is_none_or(knows_event)
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
            let has_older = |record: &RefsRecord| has_older_summaries(record) || has_older_events(record);
            let added = records(store, repo, &newest, self.read, has_older).await?;
            for record in added.into_iter().rev() {
                let known = &mut self.known;
                self.summaries.extend(record.recent.into_iter().filter(|summary| known.insert(summary.bundle)));
                let last = self.events.last().map(|event| event.time);
                self.events.extend(record.events.into_iter().filter(|event| last.is_none_or(|last| event.time > last)));
            }
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
