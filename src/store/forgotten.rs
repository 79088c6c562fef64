//! Bundles that their dead host left out of the history: published (W7), never entered (W8).
//!
//! They are whole and safe; only no name leads to them. `context check` enters them. `latest` does not move and no
//! label is set: what their writer wanted then may not be what anybody wants now.

use std::collections::BTreeSet;

use super::refs::{self, Position};
use super::{Store, StoreError};
use crate::format::descriptor::Descriptor;
use crate::format::envelope::ObjectKind;
use crate::format::intent::ABORTED_BYTES;
use crate::format::refs::Summary;
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, RepoId};

/// The bundles of `repo` that its history does not name.
pub async fn find(store: &Store, repo: RepoId) -> Result<BTreeSet<BundleId>, StoreError> {
    Ok(find_since(store, repo).await?.0)
}

/// The same, and how far history was looked at.
async fn find_since(store: &Store, repo: RepoId) -> Result<(BTreeSet<BundleId>, Position), StoreError> {
    // The slots first: what is entered meanwhile is found in the history then, not the other way round.
    let slots = store.list(&store.keys().bundles(repo)).await?;
    let filled = slots.into_iter().filter(|(_, len)| *len != ABORTED_BYTES);
    let mut missing: BTreeSet<BundleId> = filled.filter_map(|(key, _)| key.name().parse().ok()).collect();
    let mut history = refs::History::default();
    for summary in history.update(store, repo).await? {
        missing.remove(&summary.bundle);
    }
    Ok((missing, history.position()))
}

/// Enters the forgotten bundles that were sealed before `before`, oldest first, and answers them.
///
/// Younger ones may be a commit under way: its own host will enter them and move `latest`.
pub async fn enter(store: &Store, repo: RepoId, before: Timestamp) -> Result<Vec<BundleId>, StoreError> {
    let mut summaries = Vec::new();
    let (missing, since) = find_since(store, repo).await?;
    for bundle in missing {
        let key = store.keys().bundle(repo, bundle);
        let (object, body) = store.get_object(ObjectKind::Descriptor, &key).await?;
        let descriptor = Descriptor::decode(&body).map_err(|why| StoreError::Corrupt { key, why })?;
        if descriptor.time < before {
            summaries.push(Summary { labels: Vec::new(), ..descriptor.summary(&object) });
        }
    }
    summaries.sort_by_key(|summary| summary.time);
    for summary in &summaries {
        // `latest` cannot name a bundle that is in no record, so it stays.
        refs::enter(store, repo, summary, since, None, Some(Some(summary.bundle))).await?;
    }
    Ok(summaries.iter().map(|summary| summary.bundle).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::descriptor::PackTable;
    use crate::format::envelope;
    use crate::model::chunk::ChunkSize;
    use crate::model::entry::TreeCounts;
    use crate::model::id::IntentId;
    use crate::store::intents;
    use crate::store::testing::{clock, entropy};
    use bytes::Bytes;
    use std::sync::Arc;

    fn repo() -> RepoId {
        RepoId::from_parts(1, 1)
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    async fn publish(store: &Arc<Store>, n: u64) -> Summary {
        let descriptor = Descriptor {
            repo: repo(),
            bundle: BundleId::from_parts(n, 1),
            intent: IntentId::from_parts(n, 2),
            time: at(n as i64),
            chunk_size: ChunkSize::DEFAULT,
            who: "ann@lab".into(),
            message: "one\ntwo".into(),
            tool: "datamon".into(),
            parents: Vec::new(),
            labels: vec!["v1".parse().unwrap()],
            counts: TreeCounts::default(),
            layers: vec![Default::default()],
            packs: PackTable::Here(Vec::new()),
            derived_from: Default::default(),
        };
        let object: Bytes = envelope::seal(ObjectKind::Descriptor, store.context(), &descriptor.encode());
        store.put_new(&store.keys().bundle(repo(), descriptor.bundle), &object).await.unwrap();
        descriptor.summary(&object)
    }

    #[tokio::test]
    async fn a_forgotten_bundle_is_entered_without_moving_anything() {
        let store = Store::in_memory(clock(), entropy());
        let (dead, known, running) = (publish(&store, 5).await, publish(&store, 6).await, publish(&store, 900).await);
        refs::enter(&store, repo(), &known, Position::default(), None, None).await.unwrap();
        let aborted = crate::format::intent::Intent {
            time: at(1),
            id: IntentId::from_parts(7, 7),
            repo: repo(),
            bundle: BundleId::from_parts(7, 1),
            bases: Vec::new(),
            who: String::new(),
        };
        intents::abort(&store, &aborted).await.unwrap();
        assert_eq!(enter(&store, repo(), at(100)).await.unwrap(), [dead.bundle]);
        assert_eq!(enter(&store, repo(), at(100)).await.unwrap(), [], "safe to repeat");
        let record = refs::load(&store, repo()).await.unwrap().unwrap().record;
        assert_eq!(record.latest, Some(known.bundle));
        assert_eq!(record.labels[&"v1".parse().unwrap()], known.bundle);
        assert_eq!(record.recent.last().map(|summary| summary.bundle), Some(dead.bundle));
        assert_eq!(find(&store, repo()).await.unwrap(), [running.bundle].into());
    }

    #[tokio::test]
    async fn what_history_has_passed_by_is_not_forgotten() {
        let store = Store::in_memory(clock(), entropy());
        for n in 0..70 {
            let summary = publish(&store, n).await;
            refs::enter(&store, repo(), &summary, Position::default(), None, None).await.unwrap();
        }
        assert!(find(&store, repo()).await.unwrap().is_empty());
    }
}
