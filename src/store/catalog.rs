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

/// The live repo `name`.
pub async fn find(store: &Store, name: &RepoName) -> Result<RepoEntry, CatalogError> {
    let catalog = load(store).await?;
    let live = catalog.repos.get(name).filter(|entry| entry.state == RepoState::Live);
    live.copied().ok_or_else(|| CatalogError::NotFound(name.clone()))
}

/// Makes the repo `name`.
pub async fn create(store: &Store, name: &RepoName) -> Result<RepoEntry, CatalogError> {
    let id = RepoId::from_parts(store.now().millis(), store.entropy.random());
    let entry = RepoEntry { id, chunk_size: ChunkSize::DEFAULT, state: RepoState::Live };
    loop {
        if let Some(RepoState::Removing(nonce)) = load(store).await?.repos.get(name).map(|found| found.state) {
            finish_removal(store, name, nonce).await?;
        }
        let mut meets_removal = false;
        change(store, |record| match record.repos.get(name) {
            Some(found) if found.id == id => Ok(None),
            Some(RepoEntry { state: RepoState::Live, .. }) => Err(CatalogError::Exists(name.clone())),
            Some(_) => {
                meets_removal = true;
                Ok(None)
            }
            None if record.repos.len() >= REPOS_MAX => Err(CatalogError::Full),
            None => {
                let mut next = record.clone();
                next.repos.insert(name.clone(), entry);
                Ok(Some(next))
            }
        })
        .await?;
        if !meets_removal {
            return Ok(entry);
        }
    }
}

/// Gives the repo another name; what it holds does not move.
pub async fn rename(store: &Store, from: &RepoName, to: &RepoName) -> Result<(), CatalogError> {
    change(store, |record| {
        let entry = *record.repos.get(from).ok_or_else(|| CatalogError::NotFound(from.clone()))?;
        if record.repos.contains_key(to) {
            return Err(CatalogError::Exists(to.clone()));
        }
        let mut next = record.clone();
        next.repos.remove(from);
        next.repos.insert(to.clone(), entry);
        Ok(Some(next))
    })
    .await
}

/// Removes the repo `name` if it holds nothing and nobody is writing into it.
pub async fn remove(store: &Store, name: &RepoName) -> Result<(), CatalogError> {
    let nonce = store.entropy.random();
    change(store, |record| {
        let entry = record.repos.get(name).ok_or_else(|| CatalogError::NotFound(name.clone()))?;
        let mut next = record.clone();
        next.repos.insert(name.clone(), RepoEntry { state: RepoState::Removing(nonce), ..*entry });
        Ok(Some(next))
    })
    .await?;
    match finish_removal(store, name, nonce).await? {
        None => Ok(()),
        Some(why) => Err(CatalogError::NotEmpty(name.clone(), why)),
    }
}

/// Looks whether anything is there, and ends the removal one way or the other; says why it was kept.
async fn finish_removal(store: &Store, name: &RepoName, nonce: u128) -> Result<Option<&'static str>, CatalogError> {
    let Some(entry) = load(store).await?.repos.get(name).copied() else { return Ok(None) };
    let kept = occupied(store, entry.id).await?;
    change(store, |record| {
        let mut next = record.clone();
        match record.repos.get(name) {
            Some(found) if found.state == RepoState::Removing(nonce) => {
                if kept.is_some() {
                    next.repos.insert(name.clone(), RepoEntry { state: RepoState::Live, ..*found });
                } else {
                    next.repos.remove(name);
                }
                Ok(Some(next))
            }
            _ => Ok(None),
        }
    })
    .await?;
    Ok(kept)
}

/// Whether anything keeps the repo: intents first, then bundles (a writer goes the other way).
async fn occupied(store: &Store, repo: RepoId) -> Result<Option<&'static str>, StoreError> {
    let head = super::intents::head(store).await?;
    for round in [Some(head), head.checked_sub(1)].into_iter().flatten() {
        for intent in super::intents::open_intents(store, round).await? {
            if intent.repo == repo && super::intents::is_open(store, &intent).await? {
                return Ok(Some("somebody has staged changes for it"));
            }
        }
    }
    let slots = store.list(&store.keys().bundles(repo)).await?;
    let trashed = super::refs::load(store, repo).await?.map(|link| link.record.trashed).unwrap_or_default();
    let holds = slots.iter().filter(|(_, len)| *len != crate::format::intent::ABORTED_BYTES);
    let mut live = holds.filter(|(key, _)| key.name().parse().map_or(true, |bundle| !trashed.contains(&bundle)));
    Ok(live.next().map(|_| "it has bundles"))
}

async fn change(
    store: &Store,
    mut decide: impl FnMut(&CatalogRecord) -> Result<Option<CatalogRecord>, CatalogError>,
) -> Result<(), CatalogError> {
    let empty = CatalogRecord::default();
    let prefix = store.keys().catalog();
    chain::change(store, &prefix, |record: Option<&CatalogRecord>| decide(record.unwrap_or(&empty))).await?;
    Ok(())
}
