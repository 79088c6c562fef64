//! A repo's labels, `latest`, trash and history: what is read of its chain of records, and every change of it.
//!
//! [`mod@history`] reads, [`labels`] tells where a label led, [`mod@trash`] removes bundles and brings them back. Here are what
//! they share, the entry of a bundle, and the changes of labels. Every change says who makes it.

mod history;
mod labels;
#[cfg(test)]
mod tests;
mod trash;

use super::catalog::{self, CatalogError};
use super::chain::{self, Link};
use super::{Store, StoreError};
use crate::format::intent::ABORTED_BYTES;
use crate::format::refs::{Event, EventKind, RECENT_MAX, RefsRecord, Summary};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};
use crate::model::limits::LABELS_MAX;
use crate::model::name::{LATEST, LabelName};

use history::summaries;
pub use history::{History, Position, history, position};
pub use labels::{LabelLog, LabelMove};
use trash::take_out_of_trash;
pub use trash::{restore, trash};

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
    #[error("{bundle}: {who} has staged changes that are based on it, or copied from it (let them commit or discard)")]
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
    let time = later(now, &next);
    next.who.clone_from(&summary.who);
    next.recent.push(Summary { time, ..summary.clone() });
    if next.recent.len() > RECENT_MAX {
        next.recent.remove(0);
    }
    (next, Entered { diverged, labels_refused, labels_set })
}

/// The time of what comes after all that `record` tells: a clock that goes back makes nothing earlier.
fn later(now: Timestamp, record: &RefsRecord) -> Timestamp {
    let summary = record.recent.last().map_or(record.time, |summary| summary.time);
    let event = record.events.last().map_or(record.time, |event| event.time);
    now.max(record.time.max(summary).max(event).next())
}

/// What `who` makes the successor of `record` from.
fn next_by(record: &RefsRecord, who: &str) -> RefsRecord {
    RefsRecord { who: who.to_owned(), ..record.clone() }
}

/// Notes in the record that is to follow one of `next`'s time what befell a bundle.
fn note_event(store: &Store, next: &mut RefsRecord, kind: EventKind, bundle: BundleId) {
    let time = later(store.now(), next);
    next.events.push(Event { kind, bundle, time, who: next.who.clone() });
    if next.events.len() > RECENT_MAX {
        next.events.remove(0);
    }
}

/// Sets or moves a label; `only_new` refuses one that exists.
pub async fn set_label(
    store: &Store,
    repo: RepoId,
    label: &LabelName,
    to: Option<BundleId>,
    only_new: bool,
    who: &str,
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
        let mut next = next_by(record, who);
        next.labels.insert(label.clone(), bundle);
        is_back = take_out_of_trash(store, &mut next, bundle);
        Ok((bundle, Some(next)))
    })
    .await?;
    if is_back {
        expect_repo(store, repo).await?;
    }
    Ok(bundle)
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
pub async fn remove_label(store: &Store, repo: RepoId, label: &LabelName, who: &str) -> Result<(), RefsError> {
    change(store, repo, |record| {
        let mut next = next_by(record, who);
        next.labels.remove(label).ok_or_else(|| RefsError::NoLabel(label.clone()))?;
        Ok(Some(next))
    })
    .await
}

/// Gives a label another, free name.
pub async fn rename_label(
    store: &Store,
    repo: RepoId,
    from: &LabelName,
    to: &LabelName,
    who: &str,
) -> Result<(), RefsError> {
    change(store, repo, |record| {
        let mut next = next_by(record, who);
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
