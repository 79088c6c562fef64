//! A repo's history and labels.

use super::chain::{self, Link};
use super::{Store, StoreError};
use crate::format::intent::ABORTED_BYTES;
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
    /// Labels that were asked for and not set: the repo has as many as it may have.
    pub labels_refused: Vec<LabelName>,
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
    let mut labels_refused = Vec::new();
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
        labels_refused.clear();
        for label in &summary.labels {
            // One label too many would make a record that nobody reads; the bundle is safe without it.
            if next.labels.len() >= LABELS_MAX && !next.labels.contains_key(label) {
                labels_refused.push(label.clone());
            } else {
                next.labels.insert(label.clone(), summary.bundle);
            }
        }
        let time = store.now().max(next.time.next());
        next.recent.push(Summary { time, ..summary.clone() });
        if next.recent.len() > RECENT_MAX {
            next.recent.remove(0);
        }
        Ok(Some(next))
    })
    .await?;
    Ok(Entered { diverged, labels_refused })
}

/// Sets or moves a label; `only_new` refuses one that exists.
pub async fn set_label(
    store: &Store,
    repo: RepoId,
    label: &LabelName,
    to: Option<BundleId>,
    only_new: bool,
) -> Result<BundleId, RefsError> {
    if let Some(bundle) = to {
        expect_bundle(store, repo, bundle).await?;
    }
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

/// Refuses a bundle whose slot holds no descriptor, and one that was purged.
async fn expect_bundle(store: &Store, repo: RepoId, bundle: BundleId) -> Result<(), RefsError> {
    let absent = |outcome: Result<u64, StoreError>| match outcome {
        Ok(len) => Ok(len == ABORTED_BYTES),
        Err(StoreError::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    };
    if absent(store.len(&store.keys().bundle(repo, bundle)).await)?
        || !absent(store.len(&store.keys().purged(repo, bundle)).await)?
    {
        return Err(RefsError::NoBundle(bundle));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::envelope::{self, ObjectKind};
    use crate::model::clock::Timestamp;
    use crate::model::id::ObjectHash;
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
