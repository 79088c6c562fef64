//! Intents: who is writing what into which slot, in which collection round.
//!
//! An intent stays in its round when its bundle is there, so a round lists every commit that was made in it. What one process
//! has found filled it does not look at again ([`Settled`]): a slot is filled once, and for good.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Put, Store, StoreError};
use crate::format::FormatError;
use crate::format::catalog::RepoState;
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::Intent;
use crate::format::key::{self, ObjectKey};
use crate::model::id::{BundleId, IntentId, RepoId};

/// Objects that are read or looked at together.
const READS: usize = 16;
/// Intents that are known to be settled: those of this many commits cost a LIST alone.
const SETTLED_MAX: u64 = 1 << 16;

/// Intents whose slot was seen filled. What is forgotten is looked at again.
pub(super) struct Settled(moka::sync::Cache<IntentId, ()>);

impl Default for Settled {
    fn default() -> Self {
        Self(moka::sync::Cache::new(SETTLED_MAX))
    }
}

/// The newest collection round that has begun; 0 before the first.
///
/// Rounds have consecutive numbers and their records stay: whether one began since the last look is one HEAD.
pub async fn head(store: &Store) -> Result<u64, StoreError> {
    let rounds = store.keys().condemned();
    if let Some(known) = store.heads.get(&rounds) {
        match store.len(&key::record(&rounds, known.seq + 1)).await {
            Err(StoreError::NotFound { .. }) => return Ok(known.seq),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    let newest = match store.first(&rounds).await? {
        None => 0,
        Some(first) => {
            let why = FormatError::Malformed { what: "name of a round" };
            first.sequence().ok_or(StoreError::Corrupt { key: first, why })?
        }
    };
    store.heads.saw(&rounds, newest, Bytes::new());
    Ok(newest)
}

/// Registers `intent` (W1) under the round that is newest before and after, then looks (W2) whether its repo lives and
/// its bases exist. Answers the round.
///
/// Safe to drop and to repeat: the same intent gives the same object.
pub async fn register(store: &Store, intent: &Intent, extension: Option<u32>) -> Result<u64, StoreError> {
    let round = renew(store, intent, extension).await?;
    check(store, intent).await?;
    Ok(round)
}

/// W2: whether the repo of a registered intent lives and its bases exist.
pub async fn check(store: &Store, intent: &Intent) -> Result<(), StoreError> {
    let catalog = super::catalog::load(store).await?;
    let live = catalog.repos.values().any(|entry| entry.id == intent.repo && entry.state == RepoState::Live);
    if !live {
        // A slot that is filled keeps nobody waiting, least of all the one who removes the repo.
        abort(store, intent).await?;
        return Err(StoreError::Conflict {
            what: "the repo was removed: what is staged stays in the state directory (umount -l leaves it there)"
                .to_owned(),
        });
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
    Ok(())
}

/// Registers an intent that has passed [`register`] under the rounds that began since (W4). Answers the newest.
///
/// Nothing is looked at again. A round that purged a base has listed intents before this one was there; it does not
/// end before the intent stands in it, and then deletes no pack of a base that is named there. A removal of the repo finds
/// the intent open. Whoever gave the intent up has filled its slot, which the commit finds out.
pub async fn renew(store: &Store, intent: &Intent, extension: Option<u32>) -> Result<u64, StoreError> {
    let put = |round| async move {
        let put = put_record(store, round, intent, extension).await?;
        put.map_or(Ok(()), |_| Err(store.taken(round, intent, extension)))
    };
    under_newest(store, put).await
}

/// The same for an intent which bases have joined: `further` are those, and the numbers of their own records.
///
/// One record names them all, as a collector takes an intent for registered that it finds there. Only in a round in which
/// an earlier record lies under that name, from before a base joined, the later bases have records beside it. The caller
/// registers the intent before a base joins it: so no record from before that gets into a round that began after it.
pub async fn renew_all(store: &Store, intent: &Intent, further: &[(u32, BundleId)]) -> Result<u64, StoreError> {
    let mut bases = intent.bases.clone();
    bases.extend(further.iter().map(|(_, base)| *base));
    bases.sort_unstable();
    bases.dedup();
    let whole = &Intent { bases, ..intent.clone() };
    let put = |round| async move {
        let Some(lies_there) = put_record(store, round, whole, None).await? else { return Ok(()) };
        for (number, base) in further.iter().filter(|(_, base)| !lies_there.bases.contains(base)) {
            let more = Intent { bases: vec![*base], ..intent.clone() };
            if put_record(store, round, &more, Some(*number)).await?.is_some() {
                return Err(store.taken(round, &more, Some(*number)));
            }
        }
        let is_named = |base: &BundleId| lies_there.bases.contains(base) || further.iter().any(|(_, one)| one == base);
        if whole.bases.iter().all(is_named) { Ok(()) } else { Err(store.taken(round, whole, None)) }
    };
    under_newest(store, put).await
}

/// Registers by `put` under the round that is newest before and after. A collection that begins between the two looks has
/// not seen the intent: it is registered there too.
async fn under_newest<F>(store: &Store, put: impl Fn(u64) -> F) -> Result<u64, StoreError>
where
    F: Future<Output = Result<(), StoreError>>,
{
    let mut round = head(store).await?;
    loop {
        put(round).await?;
        let now = head(store).await?;
        if now == round {
            return Ok(round);
        }
        round = now;
    }
}

/// Puts a record of the intent; answers another one of it that lies there already.
async fn put_record(
    store: &Store,
    round: u64,
    intent: &Intent,
    extension: Option<u32>,
) -> Result<Option<Intent>, StoreError> {
    let object = envelope::seal(ObjectKind::Intent, store.context(), &intent.encode());
    let Put::Theirs(stored) = store.put_new(&store.keys().intent(round, intent.id, extension), &object).await? else {
        return Ok(None);
    };
    let open = || Intent::decode(&envelope::open(ObjectKind::Intent, Some(store.context()), &stored)?);
    let stored = open().map_err(|_| store.taken(round, intent, extension))?;
    let is_same = Intent { bases: intent.bases.clone(), ..stored.clone() } == *intent;
    if is_same { Ok(Some(stored)) } else { Err(store.taken(round, intent, extension)) }
}

impl Store {
    /// Something else lies where a record of the intent belongs.
    fn taken(&self, round: u64, intent: &Intent, extension: Option<u32>) -> StoreError {
        StoreError::Corrupt { key: self.keys().intent(round, intent.id, extension), why: FormatError::Hash }
    }
}

/// All intents of a round.
pub async fn open_intents(store: &Store, round: u64) -> Result<Vec<Intent>, StoreError> {
    intents_of(store, round, |_| true).await
}

/// The intents of a round of which `is_wanted` says so by their id; names that hold none are told by reading them.
async fn intents_of(
    store: &Store,
    round: u64,
    is_wanted: impl Fn(IntentId) -> bool,
) -> Result<Vec<Intent>, StoreError> {
    let mut listed = store.list(&store.keys().intents(round)).await?;
    listed.retain(|(key, _)| registered(key).is_none_or(&is_wanted));
    let reads = listed.into_iter().map(|(key, _)| async move {
        let open = |object: &Bytes| {
            let intent = Intent::decode(&envelope::open(ObjectKind::Intent, Some(store.context()), object)?)?;
            let is_own = registered(&key) == Some(intent.id);
            if is_own { Ok(intent) } else { Err(FormatError::Malformed { what: "intent of another name" }) }
        };
        store.get_checked(&key, None, open).await
    });
    stream::iter(reads).buffered(READS).try_collect().await
}

/// The intent that a name says: behind it stands at most which registration it is.
fn registered(key: &ObjectKey) -> Option<IntentId> {
    key.name().split('.').next()?.parse().ok()
}

/// Every intent of the newest rounds whose slot is still empty, each once, oldest first; of one repo, or of all.
pub async fn all_open(store: &Store, repo: Option<RepoId>) -> Result<Vec<Intent>, StoreError> {
    let head = head(store).await?;
    let mut found: BTreeMap<IntentId, Intent> = BTreeMap::new();
    for round in [Some(head), head.checked_sub(1)].into_iter().flatten() {
        for intent in intents_of(store, round, |id| !store.settled.0.contains_key(&id)).await? {
            if repo.is_none_or(|repo| repo == intent.repo) {
                // A later registration of the same intent names further bases.
                let known = found.entry(intent.id).or_insert_with(|| intent.clone());
                known.bases.extend(intent.bases);
            }
        }
    }
    let looks = found.into_values().map(|intent| async move { Ok((is_open(store, &intent).await?, intent)) });
    let looked: Vec<(bool, Intent)> = stream::iter(looks).buffered(READS).try_collect().await?;
    let (open, settled): (Vec<_>, Vec<_>) = looked.into_iter().partition(|(is_open, _)| *is_open);
    settled.into_iter().for_each(|(_, intent)| store.settled.0.insert(intent.id, ()));
    Ok(open.into_iter().map(|(_, intent)| intent).collect())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Timestamp;
    use crate::store::testing::{clock, entropy};
    use crate::store::{Store, catalog};
    use std::sync::Arc;

    async fn writer() -> (Arc<Store>, Intent) {
        let store = Store::in_memory(clock(), entropy());
        let repo = catalog::create(&store, &"a".parse().unwrap()).await.unwrap();
        let intent = Intent {
            time: Timestamp::default(),
            id: IntentId::from_parts(1, 1),
            repo: repo.id,
            bundle: BundleId::from_parts(2, 2),
            bases: vec![BundleId::from_parts(3, 3)],
            who: "ann@lab".into(),
        };
        (store, intent)
    }

    #[tokio::test]
    async fn an_intent_is_registered_once_under_the_newest_round() {
        let (store, intent) = writer().await;
        assert_eq!(register(&store, &intent, None).await.unwrap(), 0);
        assert_eq!(register(&store, &intent, None).await.unwrap(), 0, "safe to repeat");
        for round in 1..=5 {
            let round = key::record(&store.keys().condemned(), round);
            store.put_new(&round, &Bytes::from_static(b"a round")).await.unwrap();
        }
        assert_eq!(register(&store, &intent, None).await.unwrap(), 5);
        assert_eq!(open_intents(&store, 5).await.unwrap(), std::slice::from_ref(&intent));
        assert_eq!(open_intents(&store, 0).await.unwrap(), [intent]);
    }

    #[tokio::test]
    async fn what_was_found_settled_is_not_looked_at_again() {
        let (store, intent) = writer().await;
        let reads = || store.requests.reads.load(std::sync::atomic::Ordering::Relaxed);
        let other = |n| Intent { id: IntentId::from_parts(1, n), bundle: BundleId::from_parts(2, n), ..intent.clone() };
        // Each with an id and a slot of its own.
        for n in 3..=41 {
            register(&store, &other(n), None).await.unwrap();
            abort(&store, &other(n)).await.unwrap();
        }
        register(&store, &intent, None).await.unwrap();
        let look = async |repo| {
            let before = reads();
            let open = all_open(&store, repo).await.unwrap();
            (open.iter().map(|open| open.id).collect::<Vec<_>>(), reads() - before)
        };
        let (open, first) = look(None).await;
        assert_eq!(open, [intent.id]);
        assert!(first >= 2 * 40, "{first} reads");
        for repo in [None, Some(intent.repo)] {
            let (open, again) = look(repo).await;
            assert_eq!(open, [intent.id]);
            assert!(again <= 3, "the head, the open one and its slot: {again} reads");
        }
        // Under another round, too; and what is registered there is seen.
        let round = key::record(&store.keys().condemned(), 1);
        store.put_new(&round, &Bytes::from_static(b"a round")).await.unwrap();
        register(&store, &other(99), None).await.unwrap();
        assert_eq!(look(None).await.0, [intent.id, other(99).id]);
        abort(&store, &intent).await.unwrap();
        assert_eq!(look(None).await.0, [other(99).id]);
    }

    #[tokio::test]
    async fn a_purged_base_is_refused() {
        let (store, intent) = writer().await;
        let purged = store.keys().purged(intent.repo, intent.bases[0]);
        store.put_new(&purged, &Bytes::from_static(b"gone")).await.unwrap();
        let refused = register(&store, &intent, None).await.unwrap_err().to_string();
        assert!(refused.contains("was purged"), "{refused}");
    }

    #[tokio::test]
    async fn a_base_that_is_purged_after_the_intent_was_accepted_stops_nobody() {
        let (store, intent) = writer().await;
        register(&store, &intent, None).await.unwrap();
        let purged = store.keys().purged(intent.repo, intent.bases[0]);
        store.put_new(&purged, &Bytes::from_static(b"gone")).await.unwrap();
        for round in 1..=5 {
            let round = key::record(&store.keys().condemned(), round);
            store.put_new(&round, &Bytes::from_static(b"a round")).await.unwrap();
        }
        assert_eq!(renew(&store, &intent, None).await.unwrap(), 5);
        assert_eq!(open_intents(&store, 5).await.unwrap(), [intent], "its bases are named there");
    }

    #[tokio::test]
    async fn another_intent_under_the_same_name_is_damage() {
        let (store, intent) = writer().await;
        register(&store, &intent, None).await.unwrap();
        let other = Intent { who: "bob@lab".into(), ..intent };
        assert!(matches!(register(&store, &other, None).await, Err(StoreError::Corrupt { .. })));
    }
}
