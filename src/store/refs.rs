//! A repo's history and labels.
//!
//! Each record repeats the last 64 summaries, and none adds more than one. So the whole history is read from one record in
//! 63, whose summaries overlap by one at least: that shows that nothing was skipped. Records that only move labels
//! make them overlap more.

use std::collections::{BTreeMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::catalog::{self, CatalogError};
use super::chain::{self, Link};
use super::{Store, StoreError, intents};
use crate::format::FormatError;
use crate::format::intent::ABORTED_BYTES;
use crate::format::key;
use crate::format::refs::{RECENT_MAX, RefsRecord, Summary};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};
use crate::model::limits::LABELS_MAX;
use crate::model::name::{LATEST, LabelName};

/// From one record that is read for history to the next: their summaries overlap.
const STRIDE: u64 = RECENT_MAX as u64 - 1;
/// Records of the history that are read at once.
const READS: usize = 8;

/// Why a change of labels was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefsError {
    /// No such label.
    #[error("{0}: no such label")]
    NoLabel(LabelName),
    /// No such bundle, or it is being deleted.
    #[error("{0}: no such bundle")]
    NoBundle(BundleId),
    /// The repo has no bundle that a label could name.
    #[error("the repo has no bundle yet")]
    Empty,
    /// The label exists.
    #[error("{0}: a label of this name exists")]
    Exists(LabelName),
    /// A label names the bundle.
    #[error("{bundle}: the label {label} names it (remove or move the label first)")]
    Labelled {
        /// The bundle.
        bundle: BundleId,
        /// One of its labels.
        label: LabelName,
    },
    /// Somebody is writing a bundle that follows it.
    #[error("{bundle}: {who} has staged changes that are based on it (let them commit or discard)")]
    Base {
        /// The bundle.
        bundle: BundleId,
        /// Who.
        who: String,
    },
    /// As many labels as a repo may have.
    #[error("the repo has {LABELS_MAX} labels, which is its limit")]
    Full,
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The newest record of a repo; `None` before its first bundle.
pub async fn load(store: &Store, repo: RepoId) -> Result<Option<Link<RefsRecord>>, StoreError> {
    chain::newest(store, &store.keys().refs(repo), Some(store.context())).await
}

/// The bundle that `name` means: `latest`, a label or a bundle's id.
pub fn resolve(record: &RefsRecord, name: &str) -> Option<BundleId> {
    if name == LATEST {
        return record.latest;
    }
    name.parse().ok().or_else(|| record.labels.get(&name.parse().ok()?).copied())
}

/// A place in a repo's chain of refs, to look only at what came later. Before the first record it is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(Option<u64>);

impl Position {
    /// The place of this record.
    pub fn of(link: Option<&Link<RefsRecord>>) -> Self {
        Self(link.map(|link| link.seq))
    }
}

/// A place in the chain that is not later than its newest record: one LIST.
pub async fn position(store: &Store, repo: RepoId) -> Result<Position, StoreError> {
    let first = store.first(&store.keys().refs(repo)).await?;
    Ok(Position(first.and_then(|key| key.sequence())))
}

/// The summaries that came after `since`, oldest first, each once; with them perhaps some that came before.
///
/// `newest` is the newest record. Reads one record in 63 of those since then, and none at all while 64 bundles or fewer
/// have been entered.
async fn summaries(
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

/// One step of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMove {
    /// When.
    pub time: Timestamp,
    /// Where it leads since then; nowhere if it was removed.
    pub bundle: Option<BundleId>,
    /// Who committed the bundle, where the label was given at the commit; records of other moves do not say who made them.
    pub who: Option<String>,
}

/// The steps of all labels of a repo, as far as they were read. Kept by a caller, it reads only what was added.
///
/// Only the records themselves tell of moves, so the first time every record of the repo is read.
#[derive(Debug, Default)]
pub struct LabelLog {
    read: Position,
    last: BTreeMap<LabelName, BundleId>,
    newest: Option<BundleId>,
    moves: BTreeMap<LabelName, Vec<LabelMove>>,
}

impl LabelLog {
    /// The steps of a label that were read, oldest first.
    pub fn of(&self, label: &LabelName) -> &[LabelMove] {
        self.moves.get(label).map_or(&[], Vec::as_slice)
    }

    /// Reads on to the newest record.
    ///
    /// Safe to drop: what was read before stays.
    pub async fn update(&mut self, store: &Store, repo: RepoId) -> Result<(), StoreError> {
        let Some(newest) = load(store, repo).await? else { return Ok(()) };
        let prefix = store.keys().refs(repo);
        let first = self.read.0.map_or(0, |seq| seq + 1);
        let reads = (first..=newest.seq).map(|seq| chain::read(store, &prefix, seq, Some(store.context())));
        let mut links = stream::iter(reads).buffered(READS);
        let mut before: Option<Link<RefsRecord>> = None;
        while let Some(link) = links.try_next().await? {
            if let Some(before) = &before {
                chain::expect_follows(&prefix, before, &link)?;
            }
            self.note(&link.record);
            self.read = Position::of(Some(&link));
            before = Some(link);
        }
        Ok(())
    }

    fn note(&mut self, record: &RefsRecord) {
        let entered = record.recent.last().filter(|summary| Some(summary.bundle) != self.newest);
        for (label, bundle) in &record.labels {
            if self.last.get(label) != Some(bundle) {
                let is_commits = |summary: &&Summary| summary.bundle == *bundle && summary.labels.contains(label);
                let who = entered.filter(is_commits).map(|summary| summary.who.clone());
                let step = LabelMove { time: record.time, bundle: Some(*bundle), who };
                self.moves.entry(label.clone()).or_default().push(step);
            }
        }
        for label in self.last.keys().filter(|label| !record.labels.contains_key(label)) {
            let step = LabelMove { time: record.time, bundle: None, who: None };
            self.moves.entry(label.clone()).or_default().push(step);
        }
        self.last.clone_from(&record.labels);
        self.newest = record.recent.last().map(|summary| summary.bundle);
    }
}

/// All bundles of a repo, oldest first, each once.
pub async fn history(store: &Store, repo: RepoId) -> Result<Vec<Summary>, StoreError> {
    let mut history = History::default();
    history.update(store, repo).await?;
    Ok(history.summaries)
}

/// What entering a bundle did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entered {
    /// `latest` was no longer what the tree was based on.
    pub diverged: bool,
    /// Labels that were asked for and not set: the repo has as many as it may have, or the bundle was removed already.
    pub labels_refused: Vec<LabelName>,
    /// Labels that were set, and what each named until then.
    pub labels_set: Vec<(LabelName, Option<BundleId>)>,
}

/// Enters a published bundle into the history (W8); done at once when it is there already.
///
/// `since` is a [`position`] from before the bundle was published, when nobody can have entered it: what came later is
/// searched for it. Who knows none gives the default, and the whole chain is searched. `base` is what `latest` named
/// when the tree was based. With `move_latest_only_from`, `latest` moves only while it still names that bundle: for an
/// entry made after a restart.
pub async fn enter(
    store: &Store,
    repo: RepoId,
    summary: &Summary,
    mut since: Position,
    base: Option<BundleId>,
    move_latest_only_from: Option<Option<BundleId>>,
) -> Result<Entered, StoreError> {
    let prefix = store.keys().refs(repo);
    loop {
        let newest = load(store, repo).await?;
        if let Some(newest) = &newest
            && summaries(store, repo, newest, since).await?.iter().any(|known| known.bundle == summary.bundle)
        {
            // Entered by an earlier try, or by somebody who moves nothing: that `latest` is another one is told, whatever
            // it was then.
            return Ok(Entered { diverged: newest.record.latest != Some(summary.bundle), ..Entered::default() });
        }
        let record = newest.as_ref().map(|link| link.record.clone()).unwrap_or_default();
        let (next, entered) = with_entry(record, store.now(), summary, base, move_latest_only_from);
        if chain::append(store, &prefix, newest.as_ref(), next).await?.is_some() {
            return Ok(entered);
        }
        // Another writer was first. Up to here the bundle is not there: only what came later is looked at.
        since = Position::of(newest.as_ref());
    }
}

/// The record after `next`, with one bundle more.
fn with_entry(
    mut next: RefsRecord,
    now: Timestamp,
    summary: &Summary,
    base: Option<BundleId>,
    move_latest_only_from: Option<Option<BundleId>>,
) -> (RefsRecord, Entered) {
    let diverged = next.latest != base;
    // Somebody may have removed it as soon as it was published.
    let is_gone = next.trashed.contains(&summary.bundle) || next.purging.contains(&summary.bundle);
    if !is_gone && move_latest_only_from.is_none_or(|only| only == next.latest) {
        next.latest = Some(summary.bundle);
    }
    let (mut labels_refused, mut labels_set) = (Vec::new(), Vec::new());
    for label in &summary.labels {
        // One label too many would make a record that nobody reads; the bundle is safe without it. No label names what
        // was removed.
        if is_gone || (next.labels.len() >= LABELS_MAX && !next.labels.contains_key(label)) {
            labels_refused.push(label.clone());
        } else {
            labels_set.push((label.clone(), next.labels.insert(label.clone(), summary.bundle)));
        }
    }
    let time = now.max(next.time.next());
    next.recent.push(Summary { time, ..summary.clone() });
    if next.recent.len() > RECENT_MAX {
        next.recent.remove(0);
    }
    (next, Entered { diverged, labels_refused, labels_set })
}

/// Sets or moves a label; `only_new` refuses one that exists.
pub async fn set_label(
    store: &Store,
    repo: RepoId,
    label: &LabelName,
    to: Option<BundleId>,
    only_new: bool,
) -> Result<BundleId, RefsError> {
    let mut is_back = false;
    let bundle = change_living(store, repo, |record| {
        let bundle = to.or(record.latest).ok_or(RefsError::Empty)?;
        if record.purging.contains(&bundle) {
            return Err(RefsError::NoBundle(bundle));
        }
        match record.labels.get(label) {
            Some(_) if only_new => return Err(RefsError::Exists(label.clone())),
            Some(found) if *found == bundle => return Ok((bundle, None)),
            None if record.labels.len() >= LABELS_MAX => return Err(RefsError::Full),
            _ => {}
        }
        let mut next = record.clone();
        next.labels.insert(label.clone(), bundle);
        is_back = take_out_of_trash(&mut next, bundle);
        Ok((bundle, Some(next)))
    })
    .await?;
    if is_back {
        expect_repo(store, repo).await?;
    }
    Ok(bundle)
}

/// Removes a bundle, so that nobody sees it any more; until it is purged, [`restore`] brings it back.
///
/// Refused while a label names it (`latest` falls back instead) or somebody's intent has it for a base. Intents are looked
/// at before the record and after it: one that came between finds the bundle taken back.
pub async fn trash(store: &Store, repo: RepoId, bundle: BundleId) -> Result<(), RefsError> {
    refuse_base(store, repo, bundle).await?;
    let prefix = store.keys().refs(repo);
    let latest_before = loop {
        let newest = load(store, repo).await?;
        expect_bundle(store, repo, bundle).await?;
        // One that its host has not entered yet is nobody's to remove: it would enter the history when it is purged.
        let Some(record) = entered_in(store, repo, newest.as_ref(), bundle).await? else {
            return Err(RefsError::NoBundle(bundle));
        };
        if record.trashed.contains(&bundle) || record.purging.contains(&bundle) {
            return Err(RefsError::NoBundle(bundle));
        }
        if let Some((label, _)) = record.labels.iter().find(|(_, named)| **named == bundle) {
            return Err(RefsError::Labelled { bundle, label: label.clone() });
        }
        let mut next = record.clone();
        next.trashed.insert(bundle);
        if record.latest == Some(bundle) {
            next.latest = newest_left(store, repo, &next).await?;
        }
        if chain::append(store, &prefix, newest.as_ref(), next).await?.is_some() {
            break record.latest;
        }
    };
    match refuse_base(store, repo, bundle).await {
        Err(refused @ RefsError::Base { .. }) => take_back(store, repo, bundle, latest_before, refused).await,
        outcome => outcome,
    }
}

/// The record of `newest`, if the history up to there has the bundle.
async fn entered_in(
    store: &Store,
    repo: RepoId,
    newest: Option<&Link<RefsRecord>>,
    bundle: BundleId,
) -> Result<Option<RefsRecord>, StoreError> {
    let Some(newest) = newest else { return Ok(None) };
    let is_it = |summary: &Summary| summary.bundle == bundle;
    let is_entered = newest.record.recent.iter().any(is_it)
        || summaries(store, repo, newest, Position::default()).await?.iter().any(is_it);
    Ok(is_entered.then(|| newest.record.clone()))
}

/// Undoes a removal that is to be refused; one that a collection has made final stands.
async fn take_back(
    store: &Store,
    repo: RepoId,
    bundle: BundleId,
    latest_before: Option<BundleId>,
    refused: RefsError,
) -> Result<(), RefsError> {
    let mut is_final = false;
    change(store, repo, |record| {
        is_final = record.purging.contains(&bundle);
        let mut next = record.clone();
        // `latest` comes back with the bundle that it named.
        let was_trashed = match latest_before == Some(bundle) {
            true => take_out_of_trash(&mut next, bundle),
            false => next.trashed.remove(&bundle),
        };
        Ok(was_trashed.then_some(next))
    })
    .await?;
    if is_final || !is_there(store, repo, bundle).await? {
        return Ok(());
    }
    expect_repo(store, repo).await?;
    Err(refused)
}

/// Brings a removed bundle back, `latest` too if it is the newest then.
pub async fn restore(store: &Store, repo: RepoId, bundle: BundleId) -> Result<(), RefsError> {
    change_living(store, repo, |record| {
        if record.purging.contains(&bundle) {
            return Err(RefsError::NoBundle(bundle));
        }
        let mut next = record.clone();
        let was_trashed = take_out_of_trash(&mut next, bundle);
        Ok((bundle, was_trashed.then_some(next)))
    })
    .await?;
    expect_repo(store, repo).await
}

/// Refuses a repo that was removed: who removed it may have looked at a bundle before it came back. One that is being
/// removed stays, as whoever looks from now on sees the bundle.
async fn expect_repo(store: &Store, repo: RepoId) -> Result<(), RefsError> {
    match catalog::is_live(store, repo).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::Conflict { what: "the repo was removed meanwhile".to_owned() }.into()),
        Err(CatalogError::Store(error)) => Err(error.into()),
        Err(error) => Err(StoreError::Conflict { what: error.to_string() }.into()),
    }
}

/// Makes a bundle one of the living again; `false` if it was one. `latest` names the newest of these, as far as the
/// record's summaries tell.
fn take_out_of_trash(record: &mut RefsRecord, bundle: BundleId) -> bool {
    let place = |of: BundleId| record.recent.iter().position(|summary| summary.bundle == of);
    let is_newest = match record.latest {
        None => true,
        Some(latest) => place(bundle).is_some_and(|at| place(latest).is_none_or(|latest| latest < at)),
    };
    let was_trashed = record.trashed.remove(&bundle);
    if was_trashed && is_newest {
        record.latest = Some(bundle);
    }
    was_trashed
}

/// Refuses a bundle that somebody's intent has for a base.
async fn refuse_base(store: &Store, repo: RepoId, bundle: BundleId) -> Result<(), RefsError> {
    let open = intents::all_open(store, Some(repo)).await?;
    match open.into_iter().find(|intent| intent.bases.contains(&bundle)) {
        Some(intent) => Err(RefsError::Base { bundle, who: intent.who }),
        None => Ok(()),
    }
}

/// The newest bundle that `record` neither trashes nor purges.
async fn newest_left(store: &Store, repo: RepoId, record: &RefsRecord) -> Result<Option<BundleId>, StoreError> {
    let is_left = |summary: &Summary| {
        let bundle = summary.bundle;
        (!record.trashed.contains(&bundle) && !record.purging.contains(&bundle)).then_some(bundle)
    };
    let recent: Vec<_> = record.recent.iter().rev().filter_map(is_left).collect();
    for bundle in recent {
        if is_there(store, repo, bundle).await? {
            return Ok(Some(bundle));
        }
    }
    if record.recent.len() < RECENT_MAX {
        return Ok(None);
    }
    // All of the last 64 are gone: the whole history is looked through, as this is rare.
    for bundle in history(store, repo).await?.iter().rev().filter_map(is_left) {
        if is_there(store, repo, bundle).await? {
            return Ok(Some(bundle));
        }
    }
    Ok(None)
}

/// Refuses a bundle whose slot holds no descriptor, and one that was purged.
async fn expect_bundle(store: &Store, repo: RepoId, bundle: BundleId) -> Result<(), RefsError> {
    if is_there(store, repo, bundle).await? { Ok(()) } else { Err(RefsError::NoBundle(bundle)) }
}

/// Whether the bundle's slot holds a descriptor, and it was not purged.
async fn is_there(store: &Store, repo: RepoId, bundle: BundleId) -> Result<bool, StoreError> {
    let found = |outcome: Result<u64, StoreError>| match outcome {
        Ok(len) => Ok(Some(len)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    // A purge marker may have any length, an ABORTED marker's too.
    let is_filled = found(store.len(&store.keys().bundle(repo, bundle)).await)?.is_some_and(|len| len != ABORTED_BYTES);
    Ok(is_filled && found(store.len(&store.keys().purged(repo, bundle)).await)?.is_none())
}

/// Removes a label.
pub async fn remove_label(store: &Store, repo: RepoId, label: &LabelName) -> Result<(), RefsError> {
    change(store, repo, |record| {
        let mut next = record.clone();
        next.labels.remove(label).ok_or_else(|| RefsError::NoLabel(label.clone()))?;
        Ok(Some(next))
    })
    .await
}

/// Gives a label another, free name.
pub async fn rename_label(store: &Store, repo: RepoId, from: &LabelName, to: &LabelName) -> Result<(), RefsError> {
    change(store, repo, |record| {
        let mut next = record.clone();
        let bundle = next.labels.remove(from).ok_or_else(|| RefsError::NoLabel(from.clone()))?;
        if next.labels.insert(to.clone(), bundle).is_some() {
            return Err(RefsError::Exists(to.clone()));
        }
        Ok(Some(next))
    })
    .await
}

/// As [`change`], where what is decided is about a bundle that has to be there.
///
/// Whether it is is looked at after the record was read: a collection takes a bundle out of `purging` only when its
/// purge marker is there, so that one of both tells.
async fn change_living(
    store: &Store,
    repo: RepoId,
    mut decide: impl FnMut(&RefsRecord) -> Result<(BundleId, Option<RefsRecord>), RefsError>,
) -> Result<BundleId, RefsError> {
    let prefix = store.keys().refs(repo);
    loop {
        let newest = load(store, repo).await?;
        let record = newest.as_ref().map(|link| link.record.clone()).unwrap_or_default();
        let (bundle, next) = decide(&record)?;
        expect_bundle(store, repo, bundle).await?;
        let Some(next) = next else { return Ok(bundle) };
        if chain::append(store, &prefix, newest.as_ref(), next).await?.is_some() {
            return Ok(bundle);
        }
    }
}

async fn change(
    store: &Store,
    repo: RepoId,
    mut decide: impl FnMut(&RefsRecord) -> Result<Option<RefsRecord>, RefsError>,
) -> Result<(), RefsError> {
    let empty = RefsRecord::default();
    let prefix = store.keys().refs(repo);
    chain::change(store, &prefix, |record: Option<&RefsRecord>| decide(record.unwrap_or(&empty))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::catalog::{CatalogRecord, RepoEntry, RepoState};
    use crate::format::envelope::{self, ObjectKind};
    use crate::format::intent::Intent;
    use crate::model::chunk::ChunkSize;
    use crate::model::id::{IntentId, ObjectHash};
    use crate::store::testing::{clock, entropy};
    use std::sync::Arc;

    fn repo() -> RepoId {
        RepoId::from_parts(1, 1)
    }

    fn label(text: &str) -> LabelName {
        text.parse().unwrap()
    }

    /// A published bundle and its summary.
    async fn publish(store: &Store, n: u64) -> Summary {
        let bundle = BundleId::from_parts(n, 1);
        let descriptor = envelope::seal(ObjectKind::Descriptor, store.context(), &[0; 64]);
        store.put_new(&store.keys().bundle(repo(), bundle), &descriptor).await.unwrap();
        Summary {
            bundle,
            descriptor: ObjectHash::of(&descriptor),
            time: Timestamp::default(),
            who: "ann@lab".into(),
            files: 1,
            bytes: 2,
            labels: Vec::new(),
            message: String::new(),
        }
    }

    async fn record(store: &Store) -> RefsRecord {
        load(store, repo()).await.unwrap().unwrap().record
    }

    async fn enter(
        store: &Store,
        repo: RepoId,
        summary: &Summary,
        base: Option<BundleId>,
        only_from: Option<Option<BundleId>>,
    ) -> Result<Entered, StoreError> {
        super::enter(store, repo, summary, Position::default(), base, only_from).await
    }

    /// A name that leads to the repo.
    async fn name_repo(store: &Store) {
        let entry = RepoEntry { id: repo(), chunk_size: ChunkSize::DEFAULT, state: RepoState::Live };
        let record = CatalogRecord { repos: [("x".parse().unwrap(), entry)].into(), ..CatalogRecord::default() };
        chain::append(store, &store.keys().catalog(), None, record).await.unwrap();
    }

    /// Enters `bundles`; after the n-th, labels move `moves(n)` times.
    async fn fill(store: &Store, bundles: std::ops::Range<u64>, moves: impl Fn(u64) -> u64) -> Vec<BundleId> {
        name_repo(store).await;
        let mut entered = Vec::new();
        for n in bundles {
            let summary = publish(store, n).await;
            let since = position(store, repo()).await.unwrap();
            super::enter(store, repo(), &summary, since, None, None).await.unwrap();
            entered.push(summary.bundle);
            for step in 0..moves(n) {
                let label = label(["a", "b"][step as usize % 2]);
                set_label(store, repo(), &label, Some(entered[(step / 2) as usize % entered.len()]), false)
                    .await
                    .unwrap();
            }
        }
        entered
    }

    async fn reads<T>(store: &Store, of: impl Future<Output = T>) -> (u64, T) {
        let count = || store.requests.reads.load(std::sync::atomic::Ordering::Relaxed);
        let before = count();
        let outcome = of.await;
        (count() - before, outcome)
    }

    fn bundles(history: &[Summary]) -> Vec<BundleId> {
        history.iter().map(|summary| summary.bundle).collect()
    }

    #[tokio::test]
    async fn history_is_every_bundle_once_oldest_first_however_labels_moved() {
        assert_eq!(history(&store(), repo()).await.unwrap(), []);
        let few = |n| u64::from(n % 7 == 0);
        let many = |n| if n % 40 == 0 { 150 } else { 0 };
        for (count, moves) in [(1, 0), (63, 0), (64, 0), (65, 0), (127, 0), (128, 0), (200, 0), (200, 1), (200, 2)] {
            let store = store();
            let all = match moves {
                0 => fill(&store, 0..count, |_| 0).await,
                1 => fill(&store, 0..count, few).await,
                _ => fill(&store, 0..count, many).await,
            };
            assert_eq!(bundles(&history(&store, repo()).await.unwrap()), all, "{count} bundles");
        }
    }

    #[tokio::test]
    async fn history_reads_one_record_in_sixty_three_and_later_only_what_was_added() {
        let store = store();
        let mut all = fill(&store, 0..300, |_| 0).await;
        let mut kept = History::default();
        let (count, found) = reads(&store, async { bundles(kept.update(&store, repo()).await.unwrap()) }).await;
        assert_eq!(found, all);
        assert_eq!(count, 2 + 4, "the newest and the missing next one; every 63rd before");
        all.extend(fill(&store, 300..303, |_| 1).await);
        let (count, found) = reads(&store, async { bundles(kept.update(&store, repo()).await.unwrap()) }).await;
        assert_eq!((count, found), (2, all.clone()));
        all.extend(fill(&store, 303..400, |_| 0).await);
        let (count, found) = reads(&store, async { bundles(kept.update(&store, repo()).await.unwrap()) }).await;
        assert_eq!((count, found), (3, all));
    }

    #[tokio::test]
    async fn a_bundle_that_history_has_passed_by_is_not_entered_again() {
        let store = store();
        let first = publish(&store, 1_000).await;
        let before = position(&store, repo()).await.unwrap();
        enter(&store, repo(), &first, None, None).await.unwrap();
        let all = fill(&store, 0..200, |n| n % 3).await;
        for since in [before, Position::default()] {
            super::enter(&store, repo(), &first, since, None, None).await.unwrap();
        }
        let found = bundles(&history(&store, repo()).await.unwrap());
        assert_eq!(found, [&[first.bundle][..], &all].concat());
        assert_eq!(record(&store).await.latest, all.last().copied(), "latest stays where it was");
    }

    #[tokio::test]
    async fn an_entry_looks_only_at_what_came_after_the_seal() {
        let store = store();
        fill(&store, 0..300, |_| 0).await;
        let late = publish(&store, 1_000).await;
        let since = position(&store, repo()).await.unwrap();
        fill(&store, 300..310, |_| 0).await;
        let (count, _) = reads(&store, super::enter(&store, repo(), &late, since, None, None)).await;
        assert_eq!(count, 2, "the newest record and the missing next one");
        fill(&store, 310..400, |_| 0).await;
        let (count, _) = reads(&store, super::enter(&store, repo(), &late, since, None, None)).await;
        assert_eq!(count, 3);
        assert_eq!(history(&store, repo()).await.unwrap().len(), 401, "once");
    }

    #[tokio::test]
    async fn a_gap_in_the_history_is_damage() {
        let store = store();
        let prefix = store.keys().refs(repo());
        let mut newest = None;
        for n in 0..70u64 {
            let mut record = RefsRecord::default();
            for i in 0..RECENT_MAX as u64 {
                let bundle = BundleId::from_parts(n * 100 + i, 1);
                record.recent.push(Summary { bundle, ..publish(&store, 0).await });
            }
            newest = chain::append(&store, &prefix, newest.as_ref(), record).await.unwrap();
        }
        assert!(matches!(history(&store, repo()).await, Err(StoreError::Corrupt { .. })));
    }

    fn store() -> Arc<Store> {
        Store::in_memory(clock(), entropy())
    }

    #[tokio::test]
    async fn a_bundle_is_entered_once_and_latest_moves() {
        let store = store();
        let mut first = publish(&store, 1).await;
        first.labels = vec![label("v1")];
        assert!(!enter(&store, repo(), &first, None, None).await.unwrap().diverged);
        assert!(!enter(&store, repo(), &first, None, None).await.unwrap().diverged, "safe to repeat");
        let found = record(&store).await;
        assert_eq!((found.latest, found.recent.len()), (Some(first.bundle), 1));
        assert_eq!(resolve(&found, "v1"), Some(first.bundle));
        assert_eq!(resolve(&found, LATEST), Some(first.bundle));
        assert_eq!(resolve(&found, &first.bundle.to_string()), Some(first.bundle));
        assert_eq!(resolve(&found, "v2"), None);
    }

    #[tokio::test]
    async fn a_base_that_is_no_longer_latest_is_reported() {
        let store = store();
        let (first, second, third) = (publish(&store, 1).await, publish(&store, 2).await, publish(&store, 3).await);
        enter(&store, repo(), &first, None, None).await.unwrap();
        assert!(enter(&store, repo(), &second, None, None).await.unwrap().diverged);
        assert!(!enter(&store, repo(), &third, Some(second.bundle), None).await.unwrap().diverged);
        let times: Vec<_> = record(&store).await.recent.iter().map(|summary| summary.time).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    }

    #[tokio::test]
    async fn after_a_restart_latest_moves_only_from_what_it_named() {
        let store = store();
        let (first, second, late) = (publish(&store, 1).await, publish(&store, 2).await, publish(&store, 3).await);
        enter(&store, repo(), &first, None, None).await.unwrap();
        enter(&store, repo(), &second, Some(first.bundle), None).await.unwrap();
        enter(&store, repo(), &late, Some(first.bundle), Some(Some(first.bundle))).await.unwrap();
        let found = record(&store).await;
        assert_eq!(found.latest, Some(second.bundle));
        assert_eq!(found.recent.last().map(|summary| summary.bundle), Some(late.bundle));
    }

    #[tokio::test]
    async fn a_label_is_set_moved_renamed_and_removed() {
        let store = store();
        assert!(matches!(set_label(&store, repo(), &label("v1"), None, false).await, Err(RefsError::Empty)));
        let (first, second) = (publish(&store, 1).await, publish(&store, 2).await);
        enter(&store, repo(), &first, None, None).await.unwrap();
        enter(&store, repo(), &second, Some(first.bundle), None).await.unwrap();
        let set = |text: &'static str, to, new| {
            let store = store.clone();
            async move { set_label(&store, repo(), &label(text), to, new).await }
        };
        assert_eq!(set("v1", None, true).await.unwrap(), second.bundle);
        assert!(matches!(set("v1", Some(first.bundle), true).await, Err(RefsError::Exists(_))));
        assert_eq!(set("v1", Some(first.bundle), false).await.unwrap(), first.bundle);
        set("v2", None, false).await.unwrap();
        let renamed = rename_label(&store, repo(), &label("v1"), &label("v2")).await;
        assert!(matches!(renamed, Err(RefsError::Exists(_))));
        rename_label(&store, repo(), &label("v1"), &label("v3")).await.unwrap();
        assert_eq!(record(&store).await.labels.len(), 2);
        remove_label(&store, repo(), &label("v3")).await.unwrap();
        assert!(matches!(remove_label(&store, repo(), &label("v3")).await, Err(RefsError::NoLabel(_))));
        assert_eq!(resolve(&record(&store).await, "v2"), Some(second.bundle));
    }

    #[tokio::test]
    async fn a_label_names_only_a_bundle_that_is_there() {
        let store = store();
        let first = publish(&store, 1).await;
        enter(&store, repo(), &first, None, None).await.unwrap();
        let absent = BundleId::from_parts(9, 9);
        let set = set_label(&store, repo(), &label("v1"), Some(absent), false).await;
        assert!(matches!(set, Err(RefsError::NoBundle(_))));
        store.put_new(&store.keys().purged(repo(), first.bundle), &bytes::Bytes::from_static(b"x")).await.unwrap();
        let set = set_label(&store, repo(), &label("v1"), Some(first.bundle), false).await;
        assert!(matches!(set, Err(RefsError::NoBundle(_))));
    }

    /// A registered intent of a bundle that follows `base`.
    async fn staged_on(store: &Store, n: u64, base: BundleId) -> Intent {
        let (id, bundle) = (IntentId::from_parts(n, 7), BundleId::from_parts(n, 7));
        let bases = vec![base];
        let intent = Intent { time: Timestamp::default(), id, repo: repo(), bundle, bases, who: "bob@lab".into() };
        let object = envelope::seal(ObjectKind::Intent, store.context(), &intent.encode());
        store.put_new(&store.keys().intent(0, id, None), &object).await.unwrap();
        intent
    }

    #[tokio::test]
    async fn a_removed_bundle_is_gone_latest_falls_back_and_restoring_brings_both_again() {
        let store = store();
        let all = fill(&store, 0..3, |_| 0).await;
        trash(&store, repo(), all[2]).await.unwrap();
        let found = record(&store).await;
        assert_eq!((found.latest, found.trashed.contains(&all[2])), (Some(all[1]), true));
        assert!(matches!(trash(&store, repo(), all[2]).await, Err(RefsError::NoBundle(_))));
        trash(&store, repo(), all[0]).await.unwrap();
        assert_eq!(record(&store).await.latest, Some(all[1]));
        trash(&store, repo(), all[1]).await.unwrap();
        assert_eq!(record(&store).await.latest, None);
        restore(&store, repo(), all[0]).await.unwrap();
        assert_eq!(record(&store).await.latest, Some(all[0]));
        restore(&store, repo(), all[2]).await.unwrap();
        restore(&store, repo(), all[2]).await.unwrap();
        restore(&store, repo(), all[1]).await.unwrap();
        let found = record(&store).await;
        assert_eq!((found.latest, found.trashed.len()), (Some(all[2]), 0));
        let absent = BundleId::from_parts(9, 9);
        assert!(matches!(restore(&store, repo(), absent).await, Err(RefsError::NoBundle(_))));
        store.put_new(&store.keys().purged(repo(), all[0]), &bytes::Bytes::from_static(b"x")).await.unwrap();
        assert!(matches!(restore(&store, repo(), all[0]).await, Err(RefsError::NoBundle(_))));
    }

    #[tokio::test]
    async fn a_purge_marker_of_any_length_is_one() {
        let store = store();
        let all = fill(&store, 0..1, |_| 0).await;
        let marker = envelope::seal(ObjectKind::Aborted, store.context(), &[7; 16]);
        assert_eq!(marker.len() as u64, ABORTED_BYTES);
        store.put_new(&store.keys().purged(repo(), all[0]), &marker).await.unwrap();
        let set = set_label(&store, repo(), &label("v1"), Some(all[0]), false).await;
        assert!(matches!(set, Err(RefsError::NoBundle(_))));
    }

    #[tokio::test]
    async fn a_bundle_that_is_not_in_the_history_is_not_removed() {
        let store = store();
        let unknown = publish(&store, 1).await;
        assert!(matches!(trash(&store, repo(), unknown.bundle).await, Err(RefsError::NoBundle(_))));
        enter(&store, repo(), &unknown, None, None).await.unwrap();
        trash(&store, repo(), unknown.bundle).await.unwrap();
    }

    #[tokio::test]
    async fn a_bundle_does_not_come_back_into_a_repo_that_was_removed() {
        let store = store();
        let first = publish(&store, 1).await;
        enter(&store, repo(), &first, None, None).await.unwrap();
        trash(&store, repo(), first.bundle).await.unwrap();
        // No name leads to the repo.
        let restored = restore(&store, repo(), first.bundle).await;
        assert!(matches!(restored, Err(RefsError::Store(StoreError::Conflict { .. }))));
    }

    #[tokio::test]
    async fn latest_falls_back_past_the_bundles_that_a_record_repeats() {
        let store = store();
        let all = fill(&store, 0..70, |_| 0).await;
        for bundle in all[1..].iter().rev() {
            trash(&store, repo(), *bundle).await.unwrap();
        }
        assert_eq!(record(&store).await.latest, Some(all[0]));
    }

    #[tokio::test]
    async fn a_bundle_with_a_label_or_under_somebodys_changes_is_not_removed() {
        let store = store();
        let all = fill(&store, 0..2, |_| 0).await;
        set_label(&store, repo(), &label("v1"), Some(all[0]), true).await.unwrap();
        assert!(matches!(trash(&store, repo(), all[0]).await, Err(RefsError::Labelled { .. })));
        let intent = staged_on(&store, 50, all[1]).await;
        let refused = trash(&store, repo(), all[1]).await.unwrap_err();
        assert!(matches!(&refused, RefsError::Base { who, .. } if who == "bob@lab"), "{refused}");
        assert_eq!(record(&store).await.latest, Some(all[1]));
        intents::abort(&store, &intent).await.unwrap();
        trash(&store, repo(), all[1]).await.unwrap();
        // A label takes it out of the trash.
        set_label(&store, repo(), &label("v2"), Some(all[1]), true).await.unwrap();
        let found = record(&store).await;
        assert_eq!((found.latest, found.trashed.len()), (Some(all[1]), 0));
    }

    #[tokio::test]
    async fn where_a_label_led_is_told_with_who_committed_it() {
        let store = store();
        let mut first = publish(&store, 1).await;
        first.labels = vec![label("v1")];
        enter(&store, repo(), &first, None, None).await.unwrap();
        let mut log = LabelLog::default();
        log.update(&store, repo()).await.unwrap();
        assert_eq!(log.of(&label("v1")).len(), 1);
        let second = publish(&store, 2).await;
        enter(&store, repo(), &second, Some(first.bundle), None).await.unwrap();
        set_label(&store, repo(), &label("v1"), None, false).await.unwrap();
        rename_label(&store, repo(), &label("v1"), &label("v2")).await.unwrap();
        log.update(&store, repo()).await.unwrap();
        let steps: Vec<_> = log.of(&label("v1")).iter().map(|step| (step.bundle, step.who.as_deref())).collect();
        let (one, two) = (Some(first.bundle), Some(second.bundle));
        assert_eq!(steps, [(one, Some("ann@lab")), (two, None), (None, None)]);
        assert_eq!(log.of(&label("v2")).len(), 1);
        let mut anew = LabelLog::default();
        anew.update(&store, repo()).await.unwrap();
        assert_eq!(anew.of(&label("v1")), log.of(&label("v1")));
    }

    #[tokio::test]
    async fn a_record_remembers_the_last_sixty_four_bundles() {
        let store = store();
        for n in 0..=RECENT_MAX as u64 {
            let summary = publish(&store, n).await;
            enter(&store, repo(), &summary, None, None).await.unwrap();
        }
        let found = record(&store).await;
        assert_eq!(found.recent.len(), RECENT_MAX);
        assert_eq!(found.recent[0].bundle, BundleId::from_parts(1, 1));
    }
}
