//! The work of a request, and its answer.
//!
//! A request's future is polled once on the FUSE thread: ready means an inline reply; pending means that the future *and
//! the reply* move to the runtime. So what is in memory or on the local disk costs no task switch, and the FUSE thread
//! never waits for the network.
//!
//! # Invariants
//!
//! 1. Every request is answered exactly once, also when its handler panics.
//! 2. A caller that is killed while it waits is answered EINTR within two seconds; the work goes on without it, so a
//!    change is never half done.
//! 3. Errors are logged here and nowhere else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fuser::Errno;

use super::handles::Handles;
use super::reply::{Abandon, Answer};
use super::waiters;
use crate::model::metrics::Operation;
use crate::model::name::FileName;
use crate::vfs::Vfs;
use crate::vfs::error::VfsError;

/// How often it is looked whether the caller of a request that waits is still there.
const LOOK_AT_CALLERS: Duration = Duration::from_secs(1);

/// Names of directories that a request may change: if nobody waits for its end, the kernel is told to look again.
pub(super) type Touched = Vec<(u64, FileName)>;

/// Where work is done.
pub(super) struct Work {
    vfs: Arc<Vfs>,
    handles: Arc<Handles>,
    runtime: tokio::runtime::Handle,
}

impl Work {
    /// Work on `vfs`; what must wait goes on in `runtime`.
    pub(super) fn new(vfs: Arc<Vfs>, handles: Arc<Handles>, runtime: tokio::runtime::Handle) -> Self {
        Self { vfs, handles, runtime }
    }

    /// Answers the request of the thread `caller` now if the future is ready, else later.
    pub(super) fn answer<T, F, R>(&self, (caller, operation): (u32, Operation), touched: Touched, future: F, reply: R)
    where
        T: Abandon,
        F: Future<Output = Result<T, VfsError>> + Send + 'static,
        R: Answer<T>,
    {
        let timed = Timed::new(operation);
        let mut future = Box::pin(future);
        let _runtime = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        match polled {
            Ok(Poll::Ready(outcome)) => {
                if finish(&self.vfs, timed, outcome, reply) == Outcome::InDoubt && !touched.is_empty() {
                    let vfs = self.vfs.clone();
                    self.runtime.spawn(async move { vfs.forget_touched(touched).await });
                }
            }
            Ok(Poll::Pending) => {
                let waiting = Waiting { vfs: self.vfs.clone(), handles: self.handles.clone(), touched, timed };
                self.runtime.spawn(waiting.wait(caller, self.runtime.spawn(future), reply));
            }
            Err(_) => {
                tracing::error!("a request's handler panicked: this is a bug");
                reply.refuse(Errno::EIO);
            }
        }
    }
}

/// What a request that could not be answered at once leaves behind if its caller dies.
struct Waiting {
    vfs: Arc<Vfs>,
    handles: Arc<Handles>,
    touched: Touched,
    timed: Timed,
}

impl Waiting {
    /// Waits for the end of the work; a caller that dies meanwhile is let go.
    async fn wait<T, R>(self, tid: u32, mut task: tokio::task::JoinHandle<Result<T, VfsError>>, reply: R)
    where
        T: Abandon,
        R: Answer<T>,
    {
        loop {
            match tokio::time::timeout(LOOK_AT_CALLERS, &mut task).await {
                Ok(Ok(outcome)) => {
                    if finish(&self.vfs, self.timed, outcome, reply) == Outcome::InDoubt {
                        self.vfs.forget_touched(self.touched).await;
                    }
                    return;
                }
                Ok(Err(_)) => {
                    tracing::error!("a request's handler panicked: this is a bug");
                    return reply.refuse(Errno::EIO);
                }
                Err(_) if waiters::is_dying(tid) => {
                    self.timed.end(&self.vfs, true);
                    break reply.refuse(Errno::EINTR);
                }
                Err(_) => {}
            }
        }
        // The work goes on to its end. What it opens nobody will close, and what it changes the kernel does not learn.
        if let Ok(Ok(value)) = task.await {
            value.abandon(self.vfs.clone(), &self.handles);
        }
        self.vfs.forget_touched(self.touched).await;
    }
}

/// Whether a request did what its answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done, or nothing was.
    Certain,
    /// A disk or a store failed on the way: names may have changed although the answer is a refusal.
    InDoubt,
}

/// A request that is being answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timed {
    operation: Operation,
    start: Instant,
}

impl Timed {
    /// Begins now.
    pub(super) fn new(operation: Operation) -> Self {
        Self { operation, start: Instant::now() }
    }

    /// Counts it, a moment before it is answered.
    pub(super) fn end(self, vfs: &Vfs, refused: bool) {
        vfs.operations.record(self.operation, self.start.elapsed(), refused);
    }
}

/// Answers with the outcome of what began at `timed`.
pub(super) fn finish<T, R: Answer<T>>(vfs: &Vfs, timed: Timed, outcome: Result<T, VfsError>, reply: R) -> Outcome {
    timed.end(vfs, outcome.is_err());
    match outcome {
        Ok(value) => {
            reply.ok(vfs, value);
            Outcome::Certain
        }
        Err(error) => {
            let errno = error.errno();
            // What a program meets every day is its own business; what points at a disk, a store or damage is told.
            let is_worth_telling = error.is_worth_telling();
            if is_worth_telling {
                tracing::warn!(%error, "refused");
                vfs.note_error(&error);
            }
            reply.refuse(Errno::from_i32(errno));
            if is_worth_telling { Outcome::InDoubt } else { Outcome::Certain }
        }
    }
}
