//! L2, the remote side: one opened context on its object stores.
//!
//! A [`Store`] gives whole objects, parts of them and lists, and one kind of write: create if absent. What is
//! retried is decided here, how often and how long in [`retry`], nowhere else; object_store's own retries are off.
//!
//! # Invariants
//!
//! 1. [`Store::put_new`] says *ours* only if the object in the store is byte-equal to what was given (ADR 4).
//! 2. Nothing here deletes an object, but for the probe, which deletes its own.
//! 3. Every wait has a deadline.

pub mod backend;
pub mod catalog;
pub mod chain;
pub mod contract;
pub mod fault;
pub mod forgotten;
mod heads;
pub mod intents;
pub mod meter;
pub mod outage;
pub mod probe;
pub mod refs;
pub mod retry;
pub mod share;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::format::FormatError;
use crate::format::envelope::{self, ObjectKind};
use crate::format::key::{Keys, ObjectKey, Role};
use crate::format::pack::{FinishedPack, PackKind};
use crate::model::clock::{Clock, Entropy, Timestamp};
use crate::model::id::{ContextId, IntentId, PackId};
use crate::model::limits::OBJECT_BYTES_MAX;
use backend::{Failure, Place};
use meter::{Meter, Outcome, Request};
use outage::Outage;
use share::{Direction, Limits, Turn};

/// What to do about an object that is gone or damaged.
pub const PUT_BACK: &str = "put it back from a copy of the store; what does not need it can be read";

/// Why a store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No such object.
    #[error("{key}: not in the store ({PUT_BACK})")]
    NotFound {
        /// The object.
        key: ObjectKey,
    },
    /// The store refuses these credentials.
    #[error(
        "{key}: refused by the store: {why} (check the credentials and their rights; of a directory its owner, mode and mount)"
    )]
    Denied {
        /// The object.
        key: ObjectKey,
        /// What the store said.
        why: String,
    },
    /// The store has no room.
    #[error("{key}: no room in the store: {why} (make room there)")]
    Full {
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
    #[error("{key}: damaged: {why} ({PUT_BACK})")]
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
    /// Each attempt, by what it was and how it ended.
    pub meter: Meter,
}

/// An opened context.
pub struct Store {
    keys: Keys,
    places: HashMap<Role, Place>,
    timeout: Duration,
    uploads: Direction,
    downloads: Direction,
    budget: retry::Budget,
    heads: heads::Heads,
    settled: intents::Settled,
    outage: Outage,
    /// Time, as records see it.
    pub clock: Arc<dyn Clock>,
    /// Randomness, as ids and retries see it.
    pub entropy: Arc<dyn Entropy>,
    /// What was asked of the store so far.
    pub requests: Requests,
}

/// How two objects of one name are compared.
#[derive(Debug, Clone, Copy)]
enum Compare {
    /// Byte by byte.
    Whole,
    /// By length and these last bytes: a pack's footer, whose hashes cover the rest.
    Tail(u64),
}

/// Bytes of a pack's end that are compared instead of 64 MiB.
const PACK_TAIL_BYTES: u64 = 64 << 10;

impl Store {
    /// A context whose roles lie at `places`; a role that is not among them lies with [`Role::Config`].
    pub fn new(
        context: ContextId,
        places: HashMap<Role, Place>,
        limits: impl Into<Limits>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Arc<Self> {
        let limits = limits.into();
        Arc::new(Self {
            keys: Keys::new(context),
            places,
            timeout: limits.timeout,
            uploads: Direction::new(limits.uploads, limits.bytes_per_second),
            downloads: Direction::new(limits.downloads, limits.bytes_per_second),
            budget: retry::Budget::default(),
            heads: heads::Heads::default(),
            settled: intents::Settled::default(),
            outage: Outage::default(),
            clock,
            entropy,
            requests: Requests::default(),
        })
    }

    /// A context of its own in memory: for tests.
    pub fn in_memory(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        let context = ContextId::from_parts(clock.now().millis(), entropy.random());
        let places = HashMap::from([(Role::Config, Place::memory())]);
        Self::new(context, places, Duration::from_secs(30), clock, entropy)
    }

    /// Now, by the store's answers, else by the host's clock. For people: no safety and no order rests on it.
    pub fn now(&self) -> Timestamp {
        let said = [Role::Config, Role::Meta, Role::VersionedMeta].into_iter().find_map(|role| self.place(role).time());
        said.unwrap_or_else(|| self.clock.now())
    }

    /// The names of this context's objects.
    pub fn keys(&self) -> Keys {
        self.keys
    }

    /// The context.
    pub fn context(&self) -> ContextId {
        self.keys.context()
    }

    /// Where the context lies.
    pub fn url(&self) -> &str {
        &self.place(Role::Config).url
    }

    /// Requests on their way now and the most that ever were: writes, and reads with lists.
    pub fn running(&self) -> [(u64, u64); 2] {
        [self.uploads.running(), self.downloads.running()]
    }

    fn place(&self, role: Role) -> &Place {
        let place = self.places.get(&role).or_else(|| self.places.get(&Role::Config));
        place.expect("every store is made with a place for the config role")
    }

    /// The whole object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.read(key, None, self.deadline()).await
    }

    /// The bytes `range` of the object; exactly as many, else it is damaged.
    pub async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let expected = range.end - range.start;
        self.get_checked(key, Some(range), |bytes| match bytes.len() as u64 == expected {
            true => Ok(bytes.clone()),
            false => Err(FormatError::Truncated),
        })
        .await
    }

    /// The bytes `range` of the object, or fewer where it ends before.
    pub async fn get_up_to(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        let expected = range.end - range.start;
        let mut bytes = self.read(key, Some(range), self.deadline()).await?;
        bytes.truncate(usize::try_from(expected).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// What `open` makes of the object, or of a part of it. What it cannot open is fetched once more, because bytes go
    /// wrong on their way too; then the object is damaged.
    pub async fn get_checked<T>(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        open: impl Fn(&Bytes) -> Result<T, FormatError>,
    ) -> Result<T, StoreError> {
        if let Ok(opened) = open(&self.read(key, range.clone(), self.deadline()).await?) {
            return Ok(opened);
        }
        let again = self.read(key, range, self.deadline()).await?;
        open(&again).map_err(|why| StoreError::Corrupt { key: key.clone(), why })
    }

    /// How long one who asks is kept waiting.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When a request that is made now is given up.
    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    async fn read(&self, key: &ObjectKey, range: Option<Range<u64>>, deadline: Instant) -> Result<Bytes, StoreError> {
        let expected = range.as_ref().map(|range| range.end - range.start);
        let attempt = || self.place(key.role).get(&key.path, range.clone());
        // Boxed, here and below: all who read stand above it, and their futures would hold room for a request to the store
        // also where the answer is at hand.
        let bytes = Box::pin(self.retrying(key, Request::Get, expected.unwrap_or(0), deadline, attempt)).await?;
        if expected.is_none() {
            // How long it is was not known before.
            self.downloads.pay(bytes.len() as u64);
        }
        self.requests.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// The object's length in bytes.
    pub async fn len(&self, key: &ObjectKey) -> Result<u64, StoreError> {
        self.len_until(key, self.deadline()).await
    }

    async fn len_until(&self, key: &ObjectKey, deadline: Instant) -> Result<u64, StoreError> {
        Box::pin(self.retrying(key, Request::Head, 0, deadline, || self.place(key.role).len(&key.path))).await
    }

    /// All objects whose name begins with `prefix`, and their lengths, in lexicographic order.
    pub async fn list(&self, prefix: &ObjectKey) -> Result<Vec<(ObjectKey, u64)>, StoreError> {
        let list = || self.place(prefix.role).list(&prefix.path);
        let listed = Box::pin(self.retrying(prefix, Request::List, 0, self.deadline(), list)).await?;
        Ok(listed.into_iter().map(|(path, len)| (ObjectKey { role: prefix.role, path }, len)).collect())
    }

    /// The first object whose name begins with `prefix`: of a chain, its newest record.
    pub async fn first(&self, prefix: &ObjectKey) -> Result<Option<ObjectKey>, StoreError> {
        let first = || self.place(prefix.role).first(&prefix.path);
        let first = Box::pin(self.retrying(prefix, Request::List, 0, self.deadline(), first)).await?;
        Ok(first.map(|path| ObjectKey { role: prefix.role, path }))
    }

    /// Creates the object unless it exists. After *exists* and after an unknown outcome it is read and compared.
    ///
    /// Safe to repeat and safe to drop: no name is ever used for two contents.
    pub async fn put_new(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Put, StoreError> {
        self.create(key, bytes, Compare::Whole).await
    }

    async fn create(&self, key: &ObjectKey, bytes: &Bytes, compare: Compare) -> Result<Put, StoreError> {
        let place = self.place(key.role);
        let limit = retry::attempt_limit(bytes.len() as u64, self.timeout);
        let mut deadline = None;
        let mut attempt = 0;
        loop {
            let turn = self.turn(&self.uploads, key, bytes.len() as u64).await?;
            // What is waited for our own turns is not the store's time.
            let length = bytes.len() as u64;
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + retry::put_limit(length, self.timeout));
            self.requests.writes.fetch_add(1, Ordering::Relaxed);
            let start = Instant::now();
            let outcome = tokio::time::timeout(limit, place.create(&key.path, bytes.clone())).await;
            self.requests.meter.count(Request::Put, key.role, Outcome::of(&outcome), start.elapsed());
            drop(turn);
            attempt += 1;
            self.note(&outcome);
            let (why, exists) = match outcome {
                Ok(Ok(())) => {
                    self.budget.earn();
                    self.requests.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Ok(Put::Ours);
                }
                Ok(Err(Failure::Denied(why))) => return Err(StoreError::Denied { key: key.clone(), why }),
                Ok(Err(Failure::Full(why))) => return Err(StoreError::Full { key: key.clone(), why }),
                Ok(Err(failure)) => (failure.to_string(), matches!(failure, Failure::Exists)),
                Err(_) => ("no answer before the deadline".to_owned(), false),
            };
            // For a store in trouble also the look at the outcome is one request more.
            if !exists && !self.pause(place, attempt, deadline).await {
                return Err(StoreError::Unavailable { key: key.clone(), why });
            }
            // Exists or unknown: the object itself knows. One that is not there was not written: S3 answers 409,
            // read as *exists*, also when two requests merely met.
            match self.compare(key, bytes, compare, deadline).await {
                Err(StoreError::NotFound { .. }) => {}
                Err(StoreError::Unavailable { .. }) if Instant::now() < deadline => {}
                outcome => return outcome,
            }
            if !self.pause(place, attempt, deadline).await {
                return Err(StoreError::Unavailable { key: key.clone(), why });
            }
        }
    }

    /// One attempt to create the object, for what may as well be written another time: it is not repeated, takes nothing
    /// of what others may repeat, and says nothing of an outage. The outcome is looked at only after *exists*.
    ///
    /// Safe to drop, and to repeat with the same bytes until the outcome is known.
    pub async fn offer(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Put, StoreError> {
        let place = self.place(key.role);
        let length = bytes.len() as u64;
        let limit = retry::attempt_limit(length, self.timeout);
        let turn = self.turn(&self.uploads, key, length).await?;
        self.requests.writes.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let outcome = tokio::time::timeout(limit, place.create(&key.path, bytes.clone())).await;
        self.requests.meter.count(Request::Put, key.role, Outcome::of(&outcome), start.elapsed());
        drop(turn);
        let unavailable = |why: String| StoreError::Unavailable { key: key.clone(), why };
        let silent = |_| "no answer before the deadline".to_owned();
        match outcome.map_err(silent).map_err(unavailable)? {
            Ok(()) => {
                self.requests.bytes_out.fetch_add(length, Ordering::Relaxed);
                return Ok(Put::Ours);
            }
            Err(Failure::Exists) => {}
            Err(Failure::Denied(why)) => return Err(StoreError::Denied { key: key.clone(), why }),
            Err(failure) => return Err(unavailable(failure.to_string())),
        }
        self.requests.reads.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let outcome = tokio::time::timeout(limit, place.get(&key.path, None)).await;
        self.requests.meter.count(Request::Get, key.role, Outcome::of(&outcome), start.elapsed());
        let found = outcome.map_err(silent).map_err(unavailable)?;
        let found = found.map_err(|failure| match failure {
            Failure::Denied(why) => StoreError::Denied { key: key.clone(), why },
            failure => unavailable(failure.to_string()),
        })?;
        self.requests.bytes_in.fetch_add(found.len() as u64, Ordering::Relaxed);
        Ok(if found == *bytes { Put::Ours } else { Put::Theirs(found) })
    }

    /// Whether what lies there is what was given. Other bytes are *theirs* only if they prove themselves, or came twice:
    /// ours that went wrong on their way would otherwise be given up as another's.
    async fn compare(
        &self,
        key: &ObjectKey,
        bytes: &Bytes,
        compare: Compare,
        deadline: Instant,
    ) -> Result<Put, StoreError> {
        let start = match compare {
            Compare::Whole => 0,
            Compare::Tail(tail) => (bytes.len() as u64).saturating_sub(tail),
        };
        let part = matches!(compare, Compare::Tail(_)).then_some(start..bytes.len() as u64);
        if part.is_some() && self.len_until(key, deadline).await? != bytes.len() as u64 {
            return Ok(Put::Theirs(Bytes::new()));
        }
        let mut before = None;
        for _ in 0..2 {
            let found = self.read(key, part.clone(), deadline).await?;
            if found == bytes[start as usize..] {
                return Ok(Put::Ours);
            }
            if before.as_ref() == Some(&found) || part.is_none() && envelope::is_whole(&found) {
                return Ok(Put::Theirs(found));
            }
            before = Some(found);
        }
        Err(StoreError::Corrupt { key: key.clone(), why: FormatError::Hash })
    }

    /// Creates a pack. Its name is ours alone, so another content under it is damage.
    pub async fn put_pack(&self, pack: &FinishedPack) -> Result<(), StoreError> {
        let key = self.keys.pack(pack.kind, pack.id);
        match self.create(&key, &pack.bytes, Compare::Tail(PACK_TAIL_BYTES)).await? {
            Put::Ours => Ok(()),
            Put::Theirs(_) => Err(StoreError::Corrupt { key, why: FormatError::Hash }),
        }
    }

    /// The data packs of an intent, and their lengths.
    pub async fn list_packs(&self, intent: IntentId) -> Result<Vec<(ObjectKey, u64)>, StoreError> {
        let mut listed = self.list(&self.keys.data_packs(intent)).await?;
        let prefix = format!("{intent}-");
        listed.retain(|(key, _)| key.name().starts_with(&prefix));
        Ok(listed)
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
        let open = |object: &Bytes| Ok((object.clone(), envelope::open(kind, Some(self.context()), object)?));
        self.get_checked(key, None, open).await
    }

    /// The right to one request, of so many bytes.
    async fn turn<'a>(&self, direction: &'a Direction, key: &ObjectKey, bytes: u64) -> Result<Turn<'a>, StoreError> {
        let turn = direction.turn(bytes, self.timeout).await;
        turn.ok_or_else(|| StoreError::Unavailable {
            key: key.clone(),
            why: "none of the requests before it was answered".to_owned(),
        })
    }

    /// Asks until there is an answer that counts; `bytes` are expected with it.
    async fn retrying<T, F>(
        &self,
        key: &ObjectKey,
        request: Request,
        bytes: u64,
        deadline: Instant,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let counter = if request == Request::List { &self.requests.lists } else { &self.requests.reads };
        // What is waited for our own turns is not the store's time.
        let mut waited = Duration::ZERO;
        let mut attempts = 0;
        loop {
            let came = Instant::now();
            let turn = self.turn(&self.downloads, key, bytes).await?;
            waited += came.elapsed();
            let deadline = deadline + waited;
            counter.fetch_add(1, Ordering::Relaxed);
            // One request that hangs is not the store: it is given up long before the deadline, and asked again.
            let start = Instant::now();
            let limit = (start + retry::attempt_limit(0, self.timeout)).min(deadline);
            let outcome = tokio::time::timeout_at(limit, attempt()).await;
            self.requests.meter.count(request, key.role, Outcome::of(&outcome), start.elapsed());
            drop(turn);
            self.note(&outcome);
            let why = match outcome {
                Ok(Ok(value)) => {
                    self.budget.earn();
                    return Ok(value);
                }
                Ok(Err(Failure::NotFound)) => return Err(StoreError::NotFound { key: key.clone() }),
                Ok(Err(Failure::Denied(why))) => return Err(StoreError::Denied { key: key.clone(), why }),
                Ok(Err(Failure::Short)) => {
                    return Err(StoreError::Corrupt { key: key.clone(), why: FormatError::Truncated });
                }
                Ok(Err(Failure::TooLarge(found))) => {
                    let why = FormatError::TooLarge { what: "length", limit: OBJECT_BYTES_MAX, found };
                    return Err(StoreError::Corrupt { key: key.clone(), why });
                }
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => "no answer before the deadline".to_owned(),
            };
            attempts += 1;
            if !self.pause(self.place(key.role), attempts, deadline).await {
                return Err(StoreError::Unavailable { key: key.clone(), why });
            }
        }
    }

    /// Notes whether the store has answered.
    fn note<T, E>(&self, outcome: &Result<Result<T, Failure>, E>) {
        match outcome {
            Err(_) | Ok(Err(Failure::Transient(_))) => self.outage.refused(),
            Ok(_) => self.outage.answered(),
        }
    }

    /// Waits before the repetition `attempt`; `false` when the deadline has come.
    async fn pause(&self, place: &Place, attempt: u32, deadline: Instant) -> bool {
        let random = self.entropy.random();
        let may_ask = if self.budget.spend() {
            let (now, asked) = (Instant::now(), place.asked_to_wait());
            let until = now + retry::pause(attempt, random, asked);
            let last = retry::last_try(now, deadline, self.timeout, asked);
            let until = if until < deadline { Some(until) } else { last };
            tokio::time::sleep_until(until.unwrap_or(deadline)).await;
            until.is_some()
        } else {
            // Who waited to the end for one who asks for all knows how that went.
            self.outage.wait(random, deadline).await;
            Instant::now() < deadline
        };
        self.requests.retries.fetch_add(u64::from(may_ask), Ordering::Relaxed);
        may_ask
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.context())
    }
}

#[cfg(test)]
mod tests {
    use super::fault::{Fault, Faults, Operation};
    use super::testing::{clock, entropy};
    use super::*;
    use crate::model::id::{IntentId, ObjectHash, Run};

    /// A store with faults, giving up after a second.
    fn faulty() -> (Arc<Store>, Arc<Faults>) {
        let faults = Faults::new();
        let places = HashMap::from([(Role::Config, Place::memory().with_faults(&faults))]);
        let context = ContextId::from_parts(1, 1);
        (Store::new(context, places, Duration::from_secs(1), clock(), entropy()), faults)
    }

    fn key(store: &Store) -> ObjectKey {
        crate::format::key::record(&store.keys().catalog(), 0)
    }

    #[tokio::test]
    async fn a_put_whose_answer_was_lost_is_ours_and_is_not_written_twice() {
        let (store, faults) = faulty();
        faults.at_write(0, Fault::LoseAnswer);
        assert_eq!(store.put_new(&key(&store), &Bytes::from_static(b"a")).await.unwrap(), Put::Ours);
        assert_eq!(faults.writes(), 1);
    }

    #[tokio::test]
    async fn a_put_that_never_arrived_is_repeated() {
        let (store, faults) = faulty();
        faults.at_write(0, Fault::Fail);
        assert_eq!(store.put_new(&key(&store), &Bytes::from_static(b"a")).await.unwrap(), Put::Ours);
        assert_eq!(faults.writes(), 2);
        assert_eq!(store.requests.retries.load(Ordering::Relaxed), 2, "the look counts, and the second write");
    }

    #[tokio::test]
    async fn an_offer_is_one_attempt_and_may_be_made_again() {
        let (store, faults) = faulty();
        let (key, bytes) = (key(&store), Bytes::from_static(b"a"));
        faults.at_write(0, Fault::Fail);
        assert!(matches!(store.offer(&key, &bytes).await, Err(StoreError::Unavailable { .. })));
        faults.at_write(0, Fault::LoseAnswer);
        assert!(matches!(store.offer(&key, &bytes).await, Err(StoreError::Unavailable { .. })));
        assert_eq!(store.offer(&key, &bytes).await.unwrap(), Put::Ours, "it was there");
        let others = Bytes::from_static(b"b");
        assert_eq!(store.offer(&key, &others).await.unwrap(), Put::Theirs(bytes));
        assert_eq!((faults.writes(), store.requests.retries.load(Ordering::Relaxed)), (4, 0));
    }

    #[tokio::test]
    async fn a_put_that_somebody_else_won_is_theirs_even_when_the_answer_was_lost() {
        let (store, faults) = faulty();
        let theirs = Bytes::from_static(b"theirs");
        store.put_new(&key(&store), &theirs).await.unwrap();
        faults.at_write(0, Fault::Fail);
        let outcome = store.put_new(&key(&store), &Bytes::from_static(b"mine")).await.unwrap();
        assert_eq!(outcome, Put::Theirs(theirs));
    }

    #[tokio::test]
    async fn a_store_that_does_not_come_back_is_given_up_at_the_deadline() {
        let (store, faults) = faulty();
        faults.set_stopped(true);
        let start = Instant::now();
        assert!(matches!(store.get(&key(&store)).await, Err(StoreError::Unavailable { .. })));
        assert!(start.elapsed() < Duration::from_secs(3));
        assert!(store.requests.retries.load(Ordering::Relaxed) > 1);
    }

    #[tokio::test]
    async fn a_request_is_made_once_more_just_before_its_deadline() {
        let (store, faults) = faulty();
        faults.set_stopped(true);
        let reading = tokio::spawn(async move { store.get(&key(&store)).await });
        // The last try is a quarter of a second before the second is over.
        tokio::time::sleep(Duration::from_millis(720)).await;
        let before = faults.log().len();
        assert!(matches!(reading.await.unwrap(), Err(StoreError::Unavailable { .. })));
        assert!(faults.log().len() > before, "{before}");
    }

    #[tokio::test]
    async fn readers_of_a_store_that_is_away_ask_within_the_budget_and_then_one_for_all() {
        let (readers, away) = (64, Duration::from_secs(6));
        let faults = Faults::new();
        let places = HashMap::from([(Role::Config, Place::memory().with_faults(&faults))]);
        let store = Store::new(ContextId::from_parts(1, 1), places, Duration::from_secs(60), clock(), entropy());
        store.put_new(&key(&store), &Bytes::from_static(b"a")).await.unwrap();
        let asked = faults.log().len();
        faults.set_stopped(true);
        let read = |store: Arc<Store>| async move { store.get(&key(&store)).await };
        let all: Vec<_> = (0..readers).map(|_| tokio::spawn(read(store.clone()))).collect();
        tokio::time::sleep(away).await;
        let again = faults.log().len() - asked - readers;
        assert!((20..=22).contains(&again), "{again} repetitions in six seconds: twenty, and one in each pause");
        faults.set_stopped(false);
        let start = Instant::now();
        for read in all {
            assert_eq!(read.await.unwrap().unwrap(), Bytes::from_static(b"a"));
        }
        assert!(start.elapsed() < retry::PAUSE_MAX + Duration::from_secs(1), "all go on with the first answer");
        let again = faults.log().len() - asked - readers;
        assert!(again <= 22 + readers, "{again}");
    }

    #[tokio::test]
    async fn a_pack_of_unknown_outcome_is_known_by_its_length_and_its_end() {
        let (store, faults) = faulty();
        let id = PackId { intent: IntentId::from_parts(1, 1), run: Run(1), seq: 1 };
        let pack = |byte: u8| FinishedPack {
            id,
            kind: PackKind::Data,
            bytes: Bytes::from(vec![byte; 1 << 20]),
            footer_hash: ObjectHash([0; 32]),
        };
        faults.at_write(0, Fault::LoseAnswer);
        store.put_pack(&pack(7)).await.unwrap();
        assert_eq!(store.requests.bytes_in.load(Ordering::Relaxed), PACK_TAIL_BYTES, "not the whole pack");
        assert_eq!(faults.log().iter().filter(|(operation, _)| *operation == Operation::Write).count(), 1);
        assert!(matches!(store.put_pack(&pack(8)).await, Err(StoreError::Corrupt { .. })));
    }
}
