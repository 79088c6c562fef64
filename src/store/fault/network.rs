//! Requests that wait for their turn: for simulations, in which one seed decides what a store does next.
//!
//! Nothing happens here by itself. Whoever plays the store looks at what waits, takes a request, carries it out or not, and
//! answers it or not: so an answer is lost, a write lands after its writer gave up or died, lands twice or never, and a
//! LIST sees a part of what is written meanwhile.
//!
//! # Invariants
//!
//! 1. A request is carried out as a whole at one moment; only a LIST may take two, one for each half of the names.
//! 2. A request whose caller has gone stays: it is on its way.

use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{FutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;

use super::{Operation, failed};

/// What is asked of the store.
#[derive(Debug)]
pub(super) enum Ask {
    Put(PutPayload, PutOptions),
    Get(GetOptions),
    /// What the first half of the names had, and where it ended.
    List(Vec<ObjectMeta>, Option<Path>),
    Delete,
}

impl Ask {
    pub(super) fn list() -> Self {
        Self::List(Vec::new(), None)
    }
}

/// What the store answers.
#[derive(Debug)]
pub enum Answer {
    /// To a PUT.
    Put(PutResult),
    /// To a GET or HEAD.
    Get(GetResult),
    /// To a LIST.
    List(Vec<ObjectMeta>),
    /// To a DELETE.
    Deleted,
}

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    /// Counts the requests of a network.
    pub number: u64,
    /// Whose it is.
    pub host: usize,
    /// Its kind.
    pub operation: Operation,
    /// The object's name, or what the names begin with.
    pub path: String,
    ask: Ask,
    caller: Option<oneshot::Sender<Result<Answer>>>,
}

impl Request {
    /// Whether somebody waits for the answer.
    pub fn is_awaited(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| !caller.is_closed())
    }

    /// Does what is asked, in a store that answers at once.
    pub fn carry_out(&mut self, store: &dyn ObjectStore) -> Result<Answer> {
        let path = Path::from(self.path.as_str());
        let at_once = "memory answers at once";
        match &mut self.ask {
            Ask::Put(payload, options) => {
                let put = store.put_opts(&path, payload.clone(), options.clone());
                put.now_or_never().expect(at_once).map(Answer::Put)
            }
            Ask::Get(options) => store.get_opts(&path, options.clone()).now_or_never().expect(at_once).map(Answer::Get),
            Ask::Delete => store.delete(&path).now_or_never().expect(at_once).map(|()| Answer::Deleted),
            Ask::List(found, after) => {
                let mut listed = list(store, &path)?;
                listed.retain(|object| after.as_ref().is_none_or(|after| object.location > *after));
                let mut whole = std::mem::take(found);
                whole.extend(listed);
                Ok(Answer::List(whole))
            }
        }
    }

    /// Lists the first part of the names, `part` of 100; the rest is listed when the request is carried out.
    pub fn list_a_part(&mut self, store: &dyn ObjectStore, part: usize) -> Result<()> {
        let Ask::List(found, after @ None) = &mut self.ask else { return Ok(()) };
        let mut listed = list(store, &Path::from(self.path.as_str()))?;
        listed.truncate(listed.len() * part / 100);
        *after = listed.last().map(|object| object.location.clone());
        *found = listed;
        Ok(())
    }

    /// Gives the answer to the caller, if there still is one.
    pub fn answer(&mut self, answer: Result<Answer>) {
        if let Some(caller) = self.caller.take() {
            // Nobody waits any more: the answer is lost.
            let _ = caller.send(answer);
        }
    }

    /// Tells the caller nothing but that the connection is gone.
    pub fn hang_up(&mut self) {
        self.answer(Err(failed("connection reset")));
    }
}

fn list(store: &dyn ObjectStore, prefix: &Path) -> Result<Vec<ObjectMeta>> {
    let listed = store.list(Some(prefix)).try_collect().now_or_never();
    let mut listed: Vec<ObjectMeta> = listed.expect("memory answers at once")?;
    listed.sort_by(|one, other| one.location.cmp(&other.location));
    Ok(listed)
}

/// See the module.
#[derive(Debug, Default)]
pub struct Network(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    requests: Vec<Request>,
}

impl Network {
    /// One in which nothing waits.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().expect("nothing panics while it holds the queue")
    }

    pub(super) async fn ask(&self, host: usize, operation: Operation, path: &Path, ask: Ask) -> Result<Answer> {
        let (caller, answer) = oneshot::channel();
        {
            let mut queue = self.queue();
            let number = queue.next;
            queue.next += 1;
            let path = path.as_ref().to_owned();
            queue.requests.push(Request { number, host, operation, path, ask, caller: Some(caller) });
        }
        answer.await.unwrap_or_else(|_| Err(failed("connection reset")))
    }

    /// Looks at all requests, in the order in which they were made.
    pub fn look<T>(&self, mut each: impl FnMut(&Request) -> T) -> Vec<T> {
        self.queue().requests.iter().map(&mut each).collect()
    }

    /// Takes the `index`-th of them out.
    pub fn take(&self, index: usize) -> Request {
        self.queue().requests.remove(index)
    }

    /// Puts a request back, in its old place.
    pub fn put_back(&self, request: Request) {
        let mut queue = self.queue();
        let at = queue.requests.partition_point(|other| other.number < request.number);
        queue.requests.insert(at, request);
    }

    /// Forgets requests that nobody waits for and that change nothing.
    pub fn sweep(&self) {
        let changes = |request: &Request| matches!(request.operation, Operation::Write | Operation::Delete);
        self.queue().requests.retain(|request| request.is_awaited() || changes(request));
    }
}
