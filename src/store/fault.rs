//! A place with faults: for tests of everything that stands on a store.
//!
//! Deterministic: each request has a number, and what goes wrong is said by number before it happens. In a simulation no
//! request goes anywhere by itself: it waits in a [`network`] until somebody says what becomes of it. Used by tests of this
//! crate only; no command leads here.

pub mod network;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use network::{Answer, Ask, Network};

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request never reaches the store.
    Fail,
    /// The store does what was asked, but the answer is lost.
    LoseAnswer,
    /// The store does what was asked; that answer and all later ones are lost, as if the host had died just then.
    Die,
    /// The store takes this long.
    Delay(Duration),
}

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// GET and HEAD.
    Read,
    /// PUT.
    Write,
    /// LIST.
    List,
    /// DELETE.
    Delete,
}

#[derive(Debug, Default)]
struct Plan {
    log: Vec<(Operation, String)>,
    at: BTreeMap<usize, Fault>,
    write_at: BTreeMap<usize, Fault>,
    writes: usize,
    stop_after_writes: Option<usize>,
    stopped: bool,
    ignores_create_only: bool,
}

/// What is to go wrong, and what was asked.
#[derive(Debug, Default)]
pub struct Faults {
    plan: Mutex<Plan>,
    /// Where requests wait for their turn, and whose they are.
    network: Option<(Arc<Network>, usize)>,
}

impl Faults {
    /// Nothing goes wrong yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Nothing goes wrong but in `network`, where all requests wait as those of `host`.
    pub fn in_network(network: &Arc<Network>, host: usize) -> Arc<Self> {
        Arc::new(Self { plan: Mutex::default(), network: Some((network.clone(), host)) })
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().expect("nothing panics while holding the lock")
    }

    /// The `n`-th request from now on (the next is 0) goes wrong.
    pub fn at(&self, n: usize, fault: Fault) {
        let mut plan = self.plan();
        let number = plan.log.len() + n;
        plan.at.insert(number, fault);
    }

    /// The `n`-th PUT from now on (the next is 0) goes wrong.
    pub fn at_write(&self, n: usize, fault: Fault) {
        let mut plan = self.plan();
        let number = plan.writes + n;
        plan.write_at.insert(number, fault);
    }

    /// After `n` more PUTs every request fails, as if the host had died: until [`Faults::clear`].
    pub fn stop_after_writes(&self, n: usize) {
        let mut plan = self.plan();
        plan.stop_after_writes = Some(plan.writes + n);
    }

    /// Every request fails from now on, or none.
    pub fn set_stopped(&self, stopped: bool) {
        self.plan().stopped = stopped;
    }

    /// Whether every request fails now.
    pub fn is_stopped(&self) -> bool {
        self.plan().stopped
    }

    /// The store overwrites what it should only create: a liar.
    pub fn ignore_create_only(&self) {
        self.plan().ignores_create_only = true;
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        let mut plan = self.plan();
        *plan = Plan { log: std::mem::take(&mut plan.log), writes: plan.writes, ..Plan::default() };
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<(Operation, String)> {
        self.plan().log.clone()
    }

    /// Number of PUTs so far.
    pub fn writes(&self) -> usize {
        self.plan().writes
    }

    /// Counts a request and says what goes wrong with it; `Err` when everything has stopped.
    fn next(&self, operation: Operation, path: &str) -> Result<Option<Fault>> {
        let mut plan = self.plan();
        let number = plan.log.len();
        plan.log.push((operation, path.to_owned()));
        let mut fault = plan.at.remove(&number);
        if operation == Operation::Write {
            let write = plan.writes;
            plan.writes += 1;
            plan.stopped |= plan.stop_after_writes.is_some_and(|last| write >= last);
            fault = fault.or(plan.write_at.remove(&write));
        }
        if plan.stopped { Err(failed("the store has stopped")) } else { Ok(fault) }
    }
}

fn failed(why: &str) -> Error {
    Error::Generic { store: "fault", source: why.into() }
}

/// The part of an answer that its request asked for.
fn answered<T>(asked: Option<Result<Answer>>, part: impl FnOnce(Answer) -> Option<T>) -> Result<T> {
    let answer = asked.unwrap_or_else(|| Err(failed("no network")))?;
    part(answer).ok_or_else(|| failed("an answer to another request"))
}

/// A store in which [`Faults`] happen.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

impl FaultStore {
    /// `inner`, with what `faults` says.
    pub fn new(inner: Arc<dyn ObjectStore>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    /// Lets a request wait in the network, if there is one.
    async fn waiting(&self, operation: Operation, path: &Path, ask: Ask) -> Option<Result<Answer>> {
        let (network, host) = self.faults.network.as_ref()?;
        Some(network.ask(*host, operation, path, ask).await)
    }

    async fn through<T>(
        &self,
        operation: Operation,
        path: &str,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.faults.next(operation, path)? {
            None => request.await,
            Some(Fault::Fail) => Err(failed("connection refused")),
            Some(Fault::LoseAnswer) => {
                request.await?;
                Err(failed("connection reset"))
            }
            Some(Fault::Die) => {
                let done = request.await;
                self.faults.set_stopped(true);
                done.and(Err(failed("the host has died")))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                request.await
            }
        }
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if self.faults.network.is_some() {
            let asked = self.waiting(Operation::Write, location, Ask::Put(payload, options)).await;
            return answered(asked, |answer| if let Answer::Put(result) = answer { Some(result) } else { None });
        }
        if self.faults.plan().ignores_create_only {
            options.mode = PutMode::Overwrite;
        }
        let request = self.inner.put_opts(location, payload, options);
        self.through(Operation::Write, location.as_ref(), request).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.faults.network.is_some() {
            let asked = self.waiting(Operation::Read, location, Ask::Get(options)).await;
            return answered(asked, |answer| if let Answer::Get(result) = answer { Some(result) } else { None });
        }
        self.through(Operation::Read, location.as_ref(), self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if let Some((network, host)) = self.faults.network.clone() {
            let delete = move |path: Path| {
                let network = network.clone();
                async move { network.ask(host, Operation::Delete, &path, Ask::Delete).await.map(|_| path) }
            };
            return locations.and_then(delete).boxed();
        }
        match self.faults.next(Operation::Delete, "") {
            Ok(_) => self.inner.delete_stream(locations),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Some((network, host)) = self.faults.network.clone() {
            let prefix = prefix.cloned().unwrap_or_default();
            let listed = async move {
                let asked = network.ask(host, Operation::List, &prefix, Ask::list()).await;
                answered(Some(asked), |answer| if let Answer::List(found) = answer { Some(found) } else { None })
            };
            return listed.map_ok(|found| stream::iter(found).map(Ok)).try_flatten_stream().boxed();
        }
        let listed = self.inner.list(prefix);
        match self.faults.next(Operation::List, prefix.map(Path::as_ref).unwrap_or_default()) {
            Ok(None) => listed,
            Ok(Some(Fault::Delay(time))) => tokio::time::sleep(time).map(|()| listed).into_stream().flatten().boxed(),
            Ok(Some(_)) => stream::once(async { Err(failed("connection reset")) }).boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.map(Path::as_ref).unwrap_or_default();
        self.through(Operation::List, path, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copied = self.inner.copy_opts(from, to, options).map_ok(|()| ());
        self.through(Operation::Write, to.as_ref(), copied).await
    }
}
