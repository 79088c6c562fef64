//! Repos by name: making, listing, renaming and removing them.
//!
//! Removing takes three steps, because between "it is empty" and "it is gone" somebody may commit: the name is marked
//! *removing* with a nonce, intents and bundles are listed, and only a record that still finds that nonce ends it. Whoever
//! meets the mark finishes the removal (format.md's repo2 model).

use super::chain::{self, Link};
use super::{Store, StoreError};
use crate::format::catalog::{CatalogRecord, RepoEntry, RepoState};
use crate::model::chunk::ChunkSize;
use crate::model::id::RepoId;
use crate::model::limits::REPOS_MAX;
use crate::model::name::RepoName;

/// Why a change of the catalog was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// The name is taken.
    #[error("{0}: a repo of this name exists")]
    Exists(RepoName),
    /// No such repo.
    #[error("{0}: no such repo")]
    NotFound(RepoName),
    /// The repo has bundles, or somebody is writing one.
    #[error("{0}: not empty: {1}")]
    NotEmpty(RepoName, &'static str),
    /// There are as many repos as a context may have.
    #[error("the context has {REPOS_MAX} repos, which is its limit")]
    Full,
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The catalog as it is now.
pub async fn load(store: &Store) -> Result<CatalogRecord, StoreError> {
    let newest: Option<Link<CatalogRecord>> =
        chain::newest(store, &store.keys().catalog(), Some(store.context())).await?;
    Ok(newest.map(|link| link.record).unwrap_or_default())
}

/// The live repo `name`. A removal that is met is finished first: who began it may be dead, and it may hold bundles.
pub async fn find(store: &Store, name: &RepoName) -> Result<RepoEntry, CatalogError> {
    loop {
        let found = load(store).await?.repos.get(name).copied().ok_or_else(|| CatalogError::NotFound(name.clone()))?;
        match found.state {
            RepoState::Live => return Ok(found),
            RepoState::Removing(nonce) => drop(finish_removal(store, name, nonce).await?),
        }
    }
}

/// Whether a name leads to the repo; a removal that is met is finished first.
pub(super) async fn is_live(store: &Store, repo: RepoId) -> Result<bool, CatalogError> {
    loop {
        let catalog = load(store).await?;
        let Some((name, entry)) = catalog.repos.iter().find(|(_, entry)| entry.id == repo) else { return Ok(false) };
        match entry.state {
            RepoState::Live => return Ok(true),
            RepoState::Removing(nonce) => drop(finish_removal(store, name, nonce).await?),
        }
    }
}

/// Makes the repo `name`.
pub async fn create(store: &Store, name: &RepoName) -> Result<RepoEntry, CatalogError> {
    let id = RepoId::from_parts(store.now().millis(), store.entropy.random());
    let entry = RepoEntry { id, chunk_size: ChunkSize::DEFAULT, state: RepoState::Live };
    loop {
        settle(store, name).await?;
        let changed = change(store, |record| match record.repos.get(name) {
            Some(found) if found.id == id => Ok(Step::Done),
            Some(RepoEntry { state: RepoState::Live, .. }) => Err(CatalogError::Exists(name.clone())),
            Some(_) => Ok(Step::Unsettled),
            None if record.repos.len() >= REPOS_MAX => Err(CatalogError::Full),
            None => {
                let mut next = record.clone();
                next.repos.insert(name.clone(), entry);
                Ok(Step::Write(next))
            }
        });
        if changed.await? {
            return Ok(entry);
        }
    }
}

/// Gives the repo another name; what it holds does not move.
pub async fn rename(store: &Store, from: &RepoName, to: &RepoName) -> Result<(), CatalogError> {
    loop {
        settle(store, from).await?;
        settle(store, to).await?;
        let changed = change(store, |record| {
            let entry = *record.repos.get(from).ok_or_else(|| CatalogError::NotFound(from.clone()))?;
            match (entry.state, record.repos.get(to).map(|found| found.state)) {
                (RepoState::Removing(_), _) | (_, Some(RepoState::Removing(_))) => return Ok(Step::Unsettled),
                (RepoState::Live, Some(RepoState::Live)) => return Err(CatalogError::Exists(to.clone())),
                (RepoState::Live, None) => {}
            }
            let mut next = record.clone();
            next.repos.remove(from);
            next.repos.insert(to.clone(), entry);
            Ok(Step::Write(next))
        });
        if changed.await? {
            return Ok(());
        }
    }
}

/// Removes the repo `name` if it holds nothing and nobody is writing into it.
pub async fn remove(store: &Store, name: &RepoName) -> Result<(), CatalogError> {
    let nonce = store.entropy.random();
    let mut id = None;
    loop {
        settle(store, name).await?;
        let marked = change(store, |record| {
            let entry = record.repos.get(name).ok_or_else(|| CatalogError::NotFound(name.clone()))?;
            if entry.state == RepoState::Removing(nonce) {
                return Ok(Step::Done);
            }
            if entry.state != RepoState::Live {
                return Ok(Step::Unsettled);
            }
            id = Some(entry.id);
            let mut next = record.clone();
            next.repos.insert(name.clone(), RepoEntry { state: RepoState::Removing(nonce), ..*entry });
            Ok(Step::Write(next))
        });
        if marked.await? {
            break;
        }
    }
    if let Some(why) = finish_removal(store, name, nonce).await? {
        return Err(CatalogError::NotEmpty(name.clone(), why));
    }
    // Somebody may have met our mark and finished for us, with either outcome; and then given it another name.
    match load(store).await?.repos.values().any(|entry| Some(entry.id) == id) {
        true => Err(CatalogError::NotEmpty(name.clone(), "somebody else found something in it")),
        false => Ok(()),
    }
}

/// Finishes a removal of `name` that somebody began.
async fn settle(store: &Store, name: &RepoName) -> Result<(), CatalogError> {
    if let Some(RepoState::Removing(nonce)) = load(store).await?.repos.get(name).map(|found| found.state) {
        finish_removal(store, name, nonce).await?;
    }
    Ok(())
}

/// Looks whether anything is there, and ends the removal one way or the other; says why it was kept.
async fn finish_removal(store: &Store, name: &RepoName, nonce: u128) -> Result<Option<&'static str>, CatalogError> {
    let Some(entry) = load(store).await?.repos.get(name).copied() else { return Ok(None) };
    let kept = occupied(store, entry.id).await?;
    change(store, |record| match record.repos.get(name) {
        Some(found) if found.state == RepoState::Removing(nonce) => {
            let mut next = record.clone();
            if kept.is_some() {
                next.repos.insert(name.clone(), RepoEntry { state: RepoState::Live, ..*found });
            } else {
                next.repos.remove(name);
            }
            Ok(Step::Write(next))
        }
        _ => Ok(Step::Done),
    })
    .await?;
    Ok(kept)
}

/// Whether anything keeps the repo: intents first, then bundles (a writer goes the other way).
async fn occupied(store: &Store, repo: RepoId) -> Result<Option<&'static str>, StoreError> {
    if !super::intents::all_open(store, Some(repo)).await?.is_empty() {
        return Ok(Some("somebody has staged changes for it"));
    }
    let slots = store.list(&store.keys().bundles(repo)).await?;
    let trashed = super::refs::load(store, repo).await?.map(|link| link.record.trashed).unwrap_or_default();
    let holds = slots.iter().filter(|(_, len)| *len != crate::format::intent::ABORTED_BYTES);
    let mut live = holds.filter(|(key, _)| key.name().parse().map_or(true, |bundle| !trashed.contains(&bundle)));
    Ok(live.next().map(|_| "it has bundles"))
}

/// What to do with the catalog as it was found.
enum Step {
    /// This is the next record.
    Write(CatalogRecord),
    /// It is as it should be.
    Done,
    /// A removal is under way, which has to be finished first.
    Unsettled,
}

/// Applies `decide`; `false` when it found a removal under way.
async fn change(
    store: &Store,
    mut decide: impl FnMut(&CatalogRecord) -> Result<Step, CatalogError>,
) -> Result<bool, CatalogError> {
    let empty = CatalogRecord::default();
    let prefix = store.keys().catalog();
    let mut settled = true;
    chain::change(store, &prefix, |record: Option<&CatalogRecord>| -> Result<_, CatalogError> {
        settled = true;
        Ok(match decide(record.unwrap_or(&empty))? {
            Step::Write(next) => Some(next),
            Step::Done => None,
            Step::Unsettled => {
                settled = false;
                None
            }
        })
    })
    .await?;
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::envelope::{self, ObjectKind};
    use crate::format::intent::Intent;
    use crate::model::clock::Timestamp;
    use crate::model::id::{BundleId, IntentId};
    use crate::store::intents;
    use crate::store::testing::{clock, entropy};
    use std::sync::Arc;

    fn name(text: &str) -> RepoName {
        text.parse().unwrap()
    }

    fn store() -> Arc<Store> {
        Store::in_memory(clock(), entropy())
    }

    fn intent(repo: RepoId) -> Intent {
        Intent {
            time: Timestamp::default(),
            id: IntentId::from_parts(1, 1),
            repo,
            bundle: BundleId::from_parts(2, 2),
            bases: Vec::new(),
            who: "ann@lab".into(),
        }
    }

    #[tokio::test]
    async fn a_repo_is_made_found_renamed_and_removed() {
        let store = store();
        let made = create(&store, &name("a")).await.unwrap();
        assert!(matches!(create(&store, &name("a")).await, Err(CatalogError::Exists(_))));
        rename(&store, &name("a"), &name("b")).await.unwrap();
        assert_eq!(find(&store, &name("b")).await.unwrap(), made);
        create(&store, &name("c")).await.unwrap();
        assert!(matches!(rename(&store, &name("b"), &name("c")).await, Err(CatalogError::Exists(_))));
        assert!(matches!(rename(&store, &name("a"), &name("d")).await, Err(CatalogError::NotFound(_))));
        remove(&store, &name("b")).await.unwrap();
        assert!(matches!(find(&store, &name("b")).await, Err(CatalogError::NotFound(_))));
        assert!(matches!(remove(&store, &name("b")).await, Err(CatalogError::NotFound(_))));
        assert_ne!(create(&store, &name("b")).await.unwrap().id, made.id, "a name made again is another repo");
    }

    #[tokio::test]
    async fn a_repo_with_a_bundle_or_a_writer_stays() {
        let store = store();
        let repo = create(&store, &name("a")).await.unwrap();
        let intent = intent(repo.id);
        intents::register(&store, &intent, None).await.unwrap();
        assert!(matches!(remove(&store, &name("a")).await, Err(CatalogError::NotEmpty(..))));
        assert_eq!(find(&store, &name("a")).await.unwrap(), repo);
        intents::abort(&store, &intent).await.unwrap();
        let slot = store.keys().bundle(repo.id, BundleId::from_parts(3, 3));
        let descriptor = envelope::seal(ObjectKind::Descriptor, store.context(), &[0; 64]);
        store.put_new(&slot, &descriptor).await.unwrap();
        assert!(matches!(remove(&store, &name("a")).await, Err(CatalogError::NotEmpty(_, "it has bundles"))));
    }

    #[tokio::test]
    async fn an_aborted_slot_does_not_keep_a_repo() {
        let store = store();
        let repo = create(&store, &name("a")).await.unwrap();
        let intent = intent(repo.id);
        intents::register(&store, &intent, None).await.unwrap();
        intents::abort(&store, &intent).await.unwrap();
        remove(&store, &name("a")).await.unwrap();
    }

    async fn begin_removal(store: &Store, repo: &RepoName) {
        change(store, |record| {
            let mut next = record.clone();
            let entry = next.repos[repo];
            next.repos.insert(repo.clone(), RepoEntry { state: RepoState::Removing(77), ..entry });
            Ok(Step::Write(next))
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn whoever_meets_a_removal_finishes_it() {
        let store = store();
        let first = create(&store, &name("a")).await.unwrap();
        begin_removal(&store, &name("a")).await;
        assert!(matches!(find(&store, &name("a")).await, Err(CatalogError::NotFound(_))));
        assert_ne!(create(&store, &name("a")).await.unwrap().id, first.id);
        begin_removal(&store, &name("a")).await;
        assert!(matches!(rename(&store, &name("a"), &name("b")).await, Err(CatalogError::NotFound(_))));
    }

    #[tokio::test]
    async fn a_removal_that_was_cut_off_does_not_hide_a_repo_with_bundles() {
        let store = store();
        let repo = create(&store, &name("a")).await.unwrap();
        let slot = store.keys().bundle(repo.id, BundleId::from_parts(3, 3));
        let descriptor = envelope::seal(ObjectKind::Descriptor, store.context(), &[0; 64]);
        store.put_new(&slot, &descriptor).await.unwrap();
        begin_removal(&store, &name("a")).await;
        assert_eq!(find(&store, &name("a")).await.unwrap(), repo);
    }

    #[tokio::test]
    async fn a_writer_that_meets_a_removal_gives_way() {
        let store = store();
        let repo = create(&store, &name("a")).await.unwrap();
        begin_removal(&store, &name("a")).await;
        let intent = intent(repo.id);
        assert!(matches!(intents::register(&store, &intent, None).await, Err(StoreError::Conflict { .. })));
        assert!(!intents::is_open(&store, &intent).await.unwrap(), "its slot is filled, so nobody waits for it");
    }
}
