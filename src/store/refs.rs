//! A repo's history and labels.

use super::chain::{self, Link};
use super::{Store, StoreError};
use crate::format::refs::{RECENT_MAX, RefsRecord, Summary};
use crate::model::id::{BundleId, RepoId};
use crate::model::limits::LABELS_MAX;
use crate::model::name::{LATEST, LabelName};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// `latest` was no longer what the tree was based on.
    pub diverged: bool,
}

/// Enters a published bundle into the history (W8); done at once when it is there already.
///
/// `base` is what `latest` named when the tree was based. With `move_latest_only_from`, `latest` moves only while it
/// still names that bundle: for an entry made after a restart.
pub async fn enter(
    store: &Store,
    repo: RepoId,
    summary: &Summary,
    base: Option<BundleId>,
    move_latest_only_from: Option<Option<BundleId>>,
) -> Result<Entered, StoreError> {
    let mut diverged = false;
    let prefix = store.keys().refs(repo);
    chain::change(store, &prefix, |record: Option<&RefsRecord>| -> Result<Option<RefsRecord>, StoreError> {
        let mut next = record.cloned().unwrap_or_default();
        if next.recent.iter().any(|known| known.bundle == summary.bundle) {
            return Ok(None);
        }
        diverged = next.latest != base;
        if move_latest_only_from.is_none_or(|only| only == next.latest) {
            next.latest = Some(summary.bundle);
        }
        for label in &summary.labels {
            next.labels.insert(label.clone(), summary.bundle);
        }
        let time = store.now().max(next.time.next());
        next.recent.push(Summary { time, ..summary.clone() });
        if next.recent.len() > RECENT_MAX {
            next.recent.remove(0);
        }
        Ok(Some(next))
    })
    .await?;
    Ok(Entered { diverged })
}

/// Sets or moves a label; `only_new` refuses one that exists.
pub async fn set_label(
    store: &Store,
    repo: RepoId,
    label: &LabelName,
    to: Option<BundleId>,
    only_new: bool,
) -> Result<BundleId, RefsError> {
    let mut target = None;
    change(store, repo, |record| {
        let bundle = to.or(record.latest).ok_or(RefsError::Empty)?;
        target = Some(bundle);
        if record.purging.contains(&bundle) {
            return Err(RefsError::NoBundle(bundle));
        }
        match record.labels.get(label) {
            Some(_) if only_new => return Err(RefsError::Exists(label.clone())),
            Some(found) if *found == bundle => return Ok(None),
            None if record.labels.len() >= LABELS_MAX => return Err(RefsError::Full),
            _ => {}
        }
        let mut next = record.clone();
        next.labels.insert(label.clone(), bundle);
        next.trashed.remove(&bundle);
        Ok(Some(next))
    })
    .await?;
    target.ok_or(RefsError::Empty)
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
