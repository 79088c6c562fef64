//! L2, the remote side: one opened context on its object stores.
//!
//! A [`Store`] gives whole objects, parts of them and lists, and one kind of write: create if absent. What is
//! retried, how often and how long is decided here and nowhere else; object_store's own retries are off.
//!
//! # Invariants
//!
//! 1. [`Store::put_new`] says *ours* only if the object in the store is byte-equal to what was given (ADR 4).
//! 2. Nothing here deletes an object, but for the probe, which deletes its own.
//! 3. Every wait has a deadline.

pub mod backend;
pub mod catalog;
pub mod chain;
pub mod intents;
pub mod probe;
pub mod refs;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::format::FormatError;
use crate::format::envelope::{self, ObjectKind};
use crate::format::key::{Keys, ObjectKey, Role};
use crate::format::pack::{FinishedPack, PackKind};
use crate::model::clock::{Clock, Entropy};
use crate::model::id::{ContextId, PackId};
use backend::{Failure, Place};

/// Why a store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No such object.
    #[error("{key}: not in the store")]
    NotFound {
        /// The object.
        key: ObjectKey,
    },
    /// The store refuses these credentials.
    #[error("{key}: refused by the store: {why} (check the credentials and their rights)")]
    Denied {
        /// The object.
        key: ObjectKey,
        /// What the store said.
        why: String,
    },
    /// No answer in time, or none that helps.
    #[error("{key}: the store does not answer: {why}")]
    Unavailable {
        /// The object.
        key: ObjectKey,
        /// The last failure.
        why: String,
    },
    /// An object that is not what it should be.
    #[error("{key}: damaged: {why}")]
    Corrupt {
        /// The object.
        key: ObjectKey,
        /// What is wrong with it.
        why: FormatError,
    },
    /// Somebody changed the same thing: read again and decide again.
    #[error("{what}")]
    Conflict {
        /// What changed.
        what: String,
    },
    /// The store or its address cannot be used.
    #[error("{what}")]
    Unsupported {
        /// Why, and what to do.
        what: String,
    },
}

/// The outcome of a create-only put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// The object holds the bytes given, whoever wrote them.
    Ours,
    /// The object holds other bytes: these.
    Theirs(Bytes),
}

/// How many requests were made, since the store was opened.
#[derive(Debug, Default)]
pub struct Requests {
    /// GET and HEAD.
    pub reads: AtomicU64,
    /// PUT.
    pub writes: AtomicU64,
    /// LIST.
    pub lists: AtomicU64,
    /// Repetitions among the above.
    pub retries: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
}

/// An opened context.
pub struct Store {
    keys: Keys,
    places: HashMap<Role, Place>,
    timeout: Duration,
    /// Time, as records see it.
    pub clock: Arc<dyn Clock>,
    /// Randomness, as ids and retries see it.
    pub entropy: Arc<dyn Entropy>,
    /// What was asked of the store so far.
    pub requests: Requests,
}

/// First pause between two attempts; doubled up to [`PAUSE_MAX`], and a random part of it is waited.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Store {
    /// A context whose roles lie at `places`; a role that is not among them lies with [`Role::Config`].
    pub fn new(
        context: ContextId,
        places: HashMap<Role, Place>,
        timeout: Duration,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Arc<Self> {
        let requests = Requests::default();
        Arc::new(Self { keys: Keys::new(context), places, timeout, clock, entropy, requests })
    }

    /// The names of this context's objects.
    pub fn keys(&self) -> Keys {
        self.keys
    }

    /// The context.
    pub fn context(&self) -> ContextId {
        self.keys.context()
    }

    fn place(&self, role: Role) -> &Place {
        let place = self.places.get(&role).or_else(|| self.places.get(&Role::Config));
        place.expect("every store is made with a place for the config role")
    }

    /// The whole object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.read(key, None).await
    }

    /// The bytes `range` of the object; exactly as many, else it is damaged.
    pub async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let expected = range.end - range.start;
        let bytes = self.read(key, Some(range)).await?;
        if bytes.len() as u64 != expected {
            return Err(StoreError::Corrupt { key: key.clone(), why: FormatError::Truncated });
        }
        Ok(bytes)
    }

    async fn read(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let attempt = || self.place(key.role).get(&key.path, range.clone());
        let bytes = self.retrying(key, &self.requests.reads, attempt).await?;
        self.requests.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// The object's length in bytes.
    pub async fn len(&self, key: &ObjectKey) -> Result<u64, StoreError> {
        self.retrying(key, &self.requests.reads, || self.place(key.role).len(&key.path)).await
    }

    /// All objects whose name begins with `prefix`, and their lengths, in lexicographic order.
    pub async fn list(&self, prefix: &ObjectKey) -> Result<Vec<(ObjectKey, u64)>, StoreError> {
        let listed = self.retrying(prefix, &self.requests.lists, || self.place(prefix.role).list(&prefix.path)).await?;
        Ok(listed.into_iter().map(|(path, len)| (ObjectKey { role: prefix.role, path }, len)).collect())
    }

    /// The first object whose name begins with `prefix`: of a chain, its newest record.
    pub async fn first(&self, prefix: &ObjectKey) -> Result<Option<ObjectKey>, StoreError> {
        let first = self.retrying(prefix, &self.requests.lists, || self.place(prefix.role).first(&prefix.path)).await?;
        Ok(first.map(|path| ObjectKey { role: prefix.role, path }))
    }

    /// Creates the object unless it exists. After *exists* and after an unknown outcome it is read and compared.
    ///
    /// Safe to repeat and safe to drop: no name is ever used for two contents.
    pub async fn put_new(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Put, StoreError> {
        let start = tokio::time::Instant::now();
        // A slow link needs its time: 64 KiB a second is the least we wait for.
        let deadline = start + Duration::from_secs(30 + bytes.len() as u64 / (64 << 10)).max(self.timeout);
        let mut attempt = 0;
        loop {
            self.requests.writes.fetch_add(1, Ordering::Relaxed);
            let outcome =
                tokio::time::timeout_at(deadline, self.place(key.role).create(&key.path, bytes.clone())).await;
            let why = match outcome {
                Ok(Ok(())) => {
                    self.requests.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Ok(Put::Ours);
                }
                Ok(Err(Failure::Exists)) => return self.compare(key, bytes).await,
                Ok(Err(Failure::Denied(why))) => return Err(StoreError::Denied { key: key.clone(), why }),
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => "no answer before the deadline".to_owned(),
            };
            match self.compare(key, bytes).await {
                Err(StoreError::NotFound { .. }) => {}
                Err(StoreError::Unavailable { .. }) if tokio::time::Instant::now() < deadline => {}
                outcome => return outcome,
            }
            attempt += 1;
            if !self.pause(attempt, deadline).await {
                return Err(StoreError::Unavailable { key: key.clone(), why });
            }
        }
    }

    async fn compare(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Put, StoreError> {
        let found = self.get(key).await?;
        Ok(if found == *bytes { Put::Ours } else { Put::Theirs(found) })
    }

    /// Creates a pack. Its name is ours alone, so another content under it is damage.
    pub async fn put_pack(&self, pack: &FinishedPack) -> Result<(), StoreError> {
        let key = self.keys.pack(pack.kind, pack.id);
        match self.put_new(&key, &pack.bytes).await? {
            Put::Ours => Ok(()),
            Put::Theirs(_) => Err(StoreError::Corrupt { key, why: FormatError::Hash }),
        }
    }

    /// `stored` bytes at `offset` of a pack.
    pub async fn get_record(
        &self,
        kind: PackKind,
        pack: PackId,
        offset: u64,
        stored: u32,
    ) -> Result<Bytes, StoreError> {
        self.get_range(&self.keys.pack(kind, pack), offset..offset + u64::from(stored)).await
    }

    /// The body of the object `key`, which is of `kind` and of this context.
    pub async fn get_object(&self, kind: ObjectKind, key: &ObjectKey) -> Result<(Bytes, Bytes), StoreError> {
        let object = self.get(key).await?;
        let body = envelope::open(kind, Some(self.context()), &object);
        let body = body.map_err(|why| StoreError::Corrupt { key: key.clone(), why })?;
        Ok((object, body))
    }

    async fn retrying<T, F>(
        &self,
        key: &ObjectKey,
        counter: &AtomicU64,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut attempts = 0;
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            let why = match tokio::time::timeout_at(deadline, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Failure::NotFound)) => return Err(StoreError::NotFound { key: key.clone() }),
                Ok(Err(Failure::Denied(why))) => return Err(StoreError::Denied { key: key.clone(), why }),
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => "no answer before the deadline".to_owned(),
            };
            attempts += 1;
            if !self.pause(attempts, deadline).await {
                return Err(StoreError::Unavailable { key: key.clone(), why });
            }
        }
    }

    /// Waits a random part of the attempt's pause ("full jitter"); `false` when the deadline has come.
    async fn pause(&self, attempt: u32, deadline: tokio::time::Instant) -> bool {
        self.requests.retries.fetch_add(1, Ordering::Relaxed);
        let longest = PAUSE_FIRST.saturating_mul(1 << attempt.min(10)).min(PAUSE_MAX);
        let part = (self.entropy.random() % 1000) as u32;
        let until = tokio::time::Instant::now() + longest * part / 1000;
        tokio::time::sleep_until(until.min(deadline)).await;
        tokio::time::Instant::now() < deadline
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.context())
    }
}
