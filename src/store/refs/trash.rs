//! Removing a bundle, and bringing it back.
//!
//! Labels, `latest` and the trash stand in one record, so that they cannot race. What is based on a bundle stands
//! elsewhere, in intents: they are looked at before the record and after it.

use super::history::{Position, history, summaries};
use super::{RefsError, change, change_living, expect_bundle, expect_repo, is_there, load, next_by, note_event};
use crate::format::refs::{EventKind, RECENT_MAX, RefsRecord, Summary};
use crate::model::id::{BundleId, RepoId};
use crate::store::chain::{self, Link};
use crate::store::{Store, StoreError, intents};

/// Removes a bundle, so that nobody sees it any more; until it is purged, [`restore`] brings it back.
///
/// Refused while a label names it (`latest` falls back instead) or somebody's intent has it for a base. Intents are looked
/// at before the record and after it: one that came between finds the bundle taken back.
pub async fn trash(store: &Store, repo: RepoId, bundle: BundleId, who: &str) -> Result<(), RefsError> {
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
        let mut next = next_by(&record, who);
        next.trashed.insert(bundle);
        note_event(store, &mut next, EventKind::Removed, bundle);
        if record.latest == Some(bundle) {
            next.latest = newest_left(store, repo, &next).await?;
        }
        if chain::append(store, &prefix, newest.as_ref(), next).await?.is_some() {
            break record.latest;
        }
    };
    match refuse_base(store, repo, bundle).await {
        Err(refused @ RefsError::Base { .. }) => take_back(store, repo, bundle, (latest_before, who), refused).await,
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
    (latest_before, who): (Option<BundleId>, &str),
    refused: RefsError,
) -> Result<(), RefsError> {
    let mut is_final = false;
    change(store, repo, |record| {
        is_final = record.purging.contains(&bundle);
        let mut next = next_by(record, who);
        let latest = next.latest;
        let was_trashed = take_out_of_trash(store, &mut next, bundle);
        // `latest` comes back with the bundle that it named, and names another only if it would name none.
        if latest_before != Some(bundle) && latest.is_some() {
            next.latest = latest;
        }
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
pub async fn restore(store: &Store, repo: RepoId, bundle: BundleId, who: &str) -> Result<(), RefsError> {
    change_living(store, repo, |record| {
        if record.purging.contains(&bundle) {
            return Err(RefsError::NoBundle(bundle));
        }
        let mut next = next_by(record, who);
        let was_trashed = take_out_of_trash(store, &mut next, bundle);
        Ok((bundle, was_trashed.then_some(next)))
    })
    .await?;
    expect_repo(store, repo).await
}

/// Makes a bundle one of the living again; `false` if it was one. `latest` names the newest of these, as far as the
/// record's summaries tell.
pub(super) fn take_out_of_trash(store: &Store, record: &mut RefsRecord, bundle: BundleId) -> bool {
    let place = |of: BundleId| record.recent.iter().position(|summary| summary.bundle == of);
    let is_newest = match record.latest {
        None => true,
        Some(latest) => place(bundle).is_some_and(|at| place(latest).is_none_or(|latest| latest < at)),
    };
    let was_trashed = record.trashed.remove(&bundle);
    if was_trashed && is_newest {
        record.latest = Some(bundle);
    }
    if was_trashed {
        note_event(store, record, EventKind::Restored, bundle);
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
