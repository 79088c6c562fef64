//! Chains: a sequence of records of which the newest counts.
//!
//! Record *s* is created only after record *s − 1* was read, and holds the hash of all of it. Two writers race for the
//! same name; the loser reads the winner's record and decides again.

use crate::format::FormatError;
use crate::format::catalog::CatalogRecord;
use crate::format::context::ContextRecord;
use crate::format::envelope::{self, ObjectKind};
use crate::format::key::{self, ObjectKey};
use crate::format::refs::RefsRecord;
use crate::model::clock::Timestamp;
use crate::model::id::{ContextId, ObjectHash};

use super::{Put, Store, StoreError};

/// A record that can stand in a chain.
pub trait ChainRecord: Sized + Clone {
    /// The kind of its objects.
    const KIND: ObjectKind;
    /// The record's body.
    fn encode(&self) -> Vec<u8>;
    /// The record with this body.
    fn decode(body: &[u8]) -> Result<Self, FormatError>;
    /// Its time.
    fn time(&self) -> Timestamp;
    /// This record as the successor of one with that hash, at that time.
    fn linked(self, previous: Option<ObjectHash>, time: Timestamp) -> Self;
}

macro_rules! chain_record {
    ($record:ty, $kind:expr) => {
        impl ChainRecord for $record {
            const KIND: ObjectKind = $kind;

            fn encode(&self) -> Vec<u8> {
                <$record>::encode(self)
            }

            fn decode(body: &[u8]) -> Result<Self, FormatError> {
                <$record>::decode(body)
            }

            fn time(&self) -> Timestamp {
                self.time
            }

            fn linked(self, previous: Option<ObjectHash>, time: Timestamp) -> Self {
                Self { previous, time, ..self }
            }
        }
    };
}

chain_record!(RefsRecord, ObjectKind::RefsRecord);
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

/// Record `seq` of the chain; `context` is `None` only where the context is not known yet.
pub async fn read<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    seq: u64,
    context: Option<ContextId>,
) -> Result<Link<R>, StoreError> {
    let key = key::record(prefix, seq);
    let object = store.get(&key).await?;
    let corrupt = |why| StoreError::Corrupt { key: key.clone(), why };
    let body = envelope::open(R::KIND, context, &object).map_err(corrupt)?;
    let record = R::decode(&body).map_err(corrupt)?;
    let context = envelope::open_head(&object).map_err(corrupt)?.context;
    Ok(Link { seq, hash: ObjectHash::of(&object), record, context })
}

/// The newest record, or `None` for a chain that has not begun.
pub async fn newest<R: ChainRecord>(
    store: &Store,
    prefix: &ObjectKey,
    context: Option<ContextId>,
) -> Result<Option<Link<R>>, StoreError> {
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
        Ok(next) => Ok(Some(next)),
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
        Some(seq) => Ok(Some(read(store, prefix, seq, Some(store.context())).await?)),
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
    let object = envelope::seal(R::KIND, store.context(), &record.encode());
    match store.put_new(&key::record(prefix, seq), &object).await? {
        Put::Ours => Ok(Some(Link { seq, hash: ObjectHash::of(&object), record, context: store.context() })),
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
