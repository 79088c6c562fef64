//! Chains: a sequence of records of which the newest counts.
//!
//! Record *s* is created only after record *s − 1* was read, and holds the hash of all of it. Two writers race for the
//! same name; the loser reads the winner's record and decides again. What was the newest when this process looked last is
//! remembered ([`super::heads`]).

use crate::format::FormatError;
use crate::format::catalog::CatalogRecord;
use crate::format::context::ContextRecord;
use crate::format::envelope::{self, ObjectKind};
use crate::format::key::{self, ObjectKey};
use crate::format::refs::RefsRecord;
use crate::model::clock::Timestamp;
use crate::model::id::{ContextId, ObjectHash};

use bytes::Bytes;

use super::{Put, Store, StoreError};

/// A record that can stand in a chain.
pub trait ChainRecord: Sized + Clone {
    /// The kind of its objects.
    const KIND: ObjectKind;
    /// The record's body.
    fn encode(&self) -> Vec<u8>;
    /// The compatible features of its object.
    fn compatible(&self) -> u32 {
        0
    }
    /// The record with this body.
    fn decode(body: &[u8]) -> Result<Self, FormatError>;
    /// Its time.
    fn time(&self) -> Timestamp;
    /// Hash of the record before it.
    fn previous(&self) -> Option<ObjectHash>;
    /// This record as the successor of one with that hash, at that time.
    fn linked(self, previous: Option<ObjectHash>, time: Timestamp) -> Self;
}

macro_rules! chain_record {
    ($record:ty, $kind:expr $(, $compatible:item)?) => {
        impl ChainRecord for $record {
            const KIND: ObjectKind = $kind;

            $($compatible)?

            fn encode(&self) -> Vec<u8> {
                <$record>::encode(self)
            }

            fn decode(body: &[u8]) -> Result<Self, FormatError> {
                <$record>::decode(body)
            }

            fn time(&self) -> Timestamp {
                self.time
            }

            fn previous(&self) -> Option<ObjectHash> {
                self.previous
            }

            fn linked(self, previous: Option<ObjectHash>, time: Timestamp) -> Self {
                Self { previous, time, ..self }
            }
        }
    };
}

chain_record!(
    RefsRecord,
    ObjectKind::RefsRecord,
    fn compatible(&self) -> u32 {
        Self::compatible(self)
    }
);
chain_record!(CatalogRecord, ObjectKind::CatalogRecord);
chain_record!(ContextRecord, ObjectKind::ContextRecord);

/// A record and its place in the chain.
#[derive(Debug, Clone)]
pub struct Link<R> {
    /// Its number; the first is 0.
    pub seq: u64,
    /// Hash of the whole object.
    pub hash: ObjectHash,
    /// The record.
    pub record: R,
    /// The context that its envelope names.
    pub context: ContextId,
}

/// Records that are read one after the other before the newest is looked for by a LIST.
const STEPS_MAX: u64 = 4;

/// Record `seq` of the chain; `context` is `None` only where the context is not known yet.
pub async fn read<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    seq: u64,
    context: Option<ContextId>,
) -> Result<Link<R>, StoreError> {
    let open = |object: &Bytes| Ok((open_link(object, seq, context)?, object.clone()));
    let (link, object) = store.get_checked(&key::record(prefix, seq), None, open).await?;
    if context.is_some() {
        store.heads.saw(prefix, seq, object);
    }
    Ok(link)
}

fn open_link<R: ChainRecord>(object: &Bytes, seq: u64, context: Option<ContextId>) -> Result<Link<R>, FormatError> {
    let record = R::decode(&envelope::open(R::KIND, context, object)?)?;
    // The first follows nothing, and every other something.
    if record.previous().is_some() != (seq > 0) {
        return Err(OUT_OF_PLACE);
    }
    let context = envelope::open_head(object)?.context;
    Ok(Link { seq, hash: ObjectHash::of(object), record, context })
}

/// A record in the place of another.
const OUT_OF_PLACE: FormatError = FormatError::Malformed { what: "not the record that follows the one before it" };

/// Refuses `later` if it does not follow `earlier`, where both were read anyway.
pub fn expect_follows<R: ChainRecord>(
    prefix: &ObjectKey,
    earlier: &Link<R>,
    later: &Link<R>,
) -> Result<(), StoreError> {
    if later.record.previous() == Some(earlier.hash) {
        return Ok(());
    }
    Err(StoreError::Corrupt { key: key::record(prefix, later.seq), why: OUT_OF_PLACE })
}

/// The newest record, or `None` for a chain that has not begun.
pub async fn newest<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    context: Option<ContextId>,
) -> Result<Option<Link<R>>, StoreError> {
    if context.is_some()
        && let Some(head) = store.heads.get(prefix)
        && let Ok(known) = open_link::<R>(&head.object, head.seq, context)
    {
        // Most often nothing came since; after much has, a LIST is the shorter way.
        let mut link = known;
        for _ in 0..STEPS_MAX {
            match after(store, prefix, &link, context).await? {
                Some(next) => link = next,
                None => return Ok(Some(link)),
            }
        }
    }
    let Some(first) = store.first(prefix).await? else { return Ok(None) };
    let seq = first
        .sequence()
        .ok_or(StoreError::Corrupt { key: first.clone(), why: FormatError::Malformed { what: "name of a record" } })?;
    let mut link = read(store, prefix, seq, context).await?;
    // A list may be a moment old; the next name says whether this record is still the newest.
    while let Some(next) = after(store, prefix, &link, context).await? {
        link = next;
    }
    Ok(Some(link))
}

/// The record after `link`, if there is one.
pub async fn after<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    link: &Link<R>,
    context: Option<ContextId>,
) -> Result<Option<Link<R>>, StoreError> {
    match read(store, prefix, link.seq + 1, context).await {
        Ok(next) => {
            expect_follows(prefix, link, &next)?;
            Ok(Some(next))
        }
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The record before `link`; `None` before the first.
pub async fn before<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    link: &Link<R>,
) -> Result<Option<Link<R>>, StoreError> {
    match link.seq.checked_sub(1) {
        Some(seq) => {
            let earlier = read(store, prefix, seq, Some(store.context())).await?;
            expect_follows(prefix, &earlier, link)?;
            Ok(Some(earlier))
        }
        None => Ok(None),
    }
}

/// Appends `record` after `previous`; `None` when another writer was first.
pub async fn append<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    previous: Option<&Link<R>>,
    record: R,
) -> Result<Option<Link<R>>, StoreError> {
    let seq = previous.map_or(0, |link| link.seq + 1);
    let now = store.now();
    let time = previous.map_or(now, |link| now.max(link.record.time().next()));
    let record = record.linked(previous.map(|link| link.hash), time);
    let object = envelope::seal_with(R::KIND, store.context(), record.compatible(), &record.encode());
    match store.put_new(&key::record(prefix, seq), &object).await? {
        Put::Ours => {
            store.heads.saw(prefix, seq, object.clone());
            Ok(Some(Link { seq, hash: ObjectHash::of(&object), record, context: store.context() }))
        }
        Put::Theirs(_) => Ok(None),
    }
}

/// Reads the newest record, lets `decide` make its successor, appends that; again when another writer was first.
///
/// `decide` answers `None` when nothing is to be done.
pub async fn change<R, E>(
    store: &Store,
    prefix: &ObjectKey,
    mut decide: impl FnMut(Option<&R>) -> Result<Option<R>, E>,
) -> Result<Option<Link<R>>, E>
where
    R: ChainRecord,
    E: From<StoreError>,
{
    loop {
        let newest = newest::<R>(store, prefix, Some(store.context())).await?;
        let Some(next) = decide(newest.as_ref().map(|link| &link.record))? else { return Ok(newest) };
        if let Some(link) = append(store, prefix, newest.as_ref(), next).await? {
            return Ok(Some(link));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{clock, entropy};

    #[tokio::test]
    async fn a_record_in_the_place_of_another_is_refused() {
        let store = Store::in_memory(clock(), entropy());
        let prefix = store.keys().catalog();
        let first = append(&store, &prefix, None, CatalogRecord::default()).await.unwrap().unwrap();
        let object = store.get(&key::record(&prefix, 0)).await.unwrap();
        store.put_new(&key::record(&prefix, 1), &object).await.unwrap();
        let newest = newest::<CatalogRecord>(&store, &prefix, None).await;
        assert!(matches!(&newest, Err(StoreError::Corrupt { why, .. }) if *why == OUT_OF_PLACE), "{newest:?}");

        let stranger = Link { hash: ObjectHash([7; 32]), seq: 2, ..first };
        append(&store, &prefix, Some(&stranger), CatalogRecord::default()).await.unwrap().unwrap();
        let known = Link { hash: ObjectHash([8; 32]), ..stranger.clone() };
        assert!(after::<CatalogRecord>(&store, &prefix, &stranger, None).await.is_ok());
        assert!(matches!(after(&store, &prefix, &known, None).await, Err(StoreError::Corrupt { .. })));
    }
}
