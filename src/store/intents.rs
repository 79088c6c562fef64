//! Intents: who is writing what into which slot, in which collection round.

use super::{Put, Store, StoreError};
use crate::format::FormatError;
use crate::format::catalog::RepoState;
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::Intent;

/// The newest collection round that has begun; 0 before the first.
pub async fn head(store: &Store) -> Result<u64, StoreError> {
    let Some(first) = store.first(&store.keys().condemned()).await? else { return Ok(0) };
    let why = FormatError::Malformed { what: "name of a round" };
    first.sequence().ok_or(StoreError::Corrupt { key: first, why })
}

/// Registers `intent` (W1) under the round that is newest before and after, then looks (W2) whether its repo lives and
/// its bases exist. Answers the round.
///
/// Safe to drop and to repeat: the same intent gives the same object.
pub async fn register(store: &Store, intent: &Intent, extension: Option<u32>) -> Result<u64, StoreError> {
    let mut round = head(store).await?;
    loop {
        let key = store.keys().intent(round, intent.id, extension);
        let object = envelope::seal(ObjectKind::Intent, store.context(), &intent.encode());
        match store.put_new(&key, &object).await? {
            Put::Ours => {}
            Put::Theirs(_) => return Err(StoreError::Corrupt { key, why: FormatError::Hash }),
        }
        let now = head(store).await?;
        if now == round {
            break;
        }
        round = now;
    }
    let catalog = super::catalog::load(store).await?;
    let live = catalog.repos.values().any(|entry| entry.id == intent.repo && entry.state == RepoState::Live);
    if !live {
        return Err(StoreError::Conflict { what: "the repo was removed: what is staged stays here".to_owned() });
    }
    for base in &intent.bases {
        match store.len(&store.keys().purged(intent.repo, *base)).await {
            Err(StoreError::NotFound { .. }) => {}
            Ok(_) => {
                let what = format!("the base {base} was purged: changed files stay staged (choose another base)");
                return Err(StoreError::Conflict { what });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(round)
}

/// All intents of a round.
pub async fn open_intents(store: &Store, round: u64) -> Result<Vec<Intent>, StoreError> {
    let mut intents = Vec::new();
    for (key, _) in store.list(&store.keys().intents(round)).await? {
        let (_, body) = store.get_object(ObjectKind::Intent, &key).await?;
        intents.push(Intent::decode(&body).map_err(|why| StoreError::Corrupt { key, why })?);
    }
    Ok(intents)
}

/// Whether the intent's slot is still empty.
pub async fn is_open(store: &Store, intent: &Intent) -> Result<bool, StoreError> {
    match store.len(&store.keys().bundle(intent.repo, intent.bundle)).await {
        Ok(_) => Ok(false),
        Err(StoreError::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Puts ABORTED into the intent's own slot, so that nobody waits for it; a bundle that is there stays.
pub async fn abort(store: &Store, intent: &Intent) -> Result<(), StoreError> {
    let object = envelope::seal(ObjectKind::Aborted, store.context(), &intent.id.to_bytes());
    store.put_new(&store.keys().bundle(intent.repo, intent.bundle), &object).await?;
    Ok(())
}
