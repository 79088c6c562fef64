//! Requests to a store, counted by what was asked, of which role, and how it ended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::backend::Failure;
use crate::format::key::Role;
use crate::model::metrics::Histogram;

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Bytes of an object.
    Get,
    /// Its length.
    Head,
    /// An object made.
    Put,
    /// Names.
    List,
}

impl Request {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Get, Self::Head, Self::Put, Self::List];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Head => "head",
            Self::Put => "put",
            Self::List => "list",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// There is no such object.
    Missing,
    /// There is such an object already.
    Exists,
    /// Refused for good.
    Denied,
    /// Failed, and may succeed when asked again.
    Failed,
    /// No answer in time.
    Silent,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Done, Self::Missing, Self::Exists, Self::Denied, Self::Failed, Self::Silent];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Missing => "missing",
            Self::Exists => "exists",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Silent => "timeout",
        }
    }

    /// Of an attempt that may have been given up.
    pub fn of<T, E>(attempt: &Result<Result<T, Failure>, E>) -> Self {
        match attempt {
            Ok(Ok(_)) => Self::Done,
            Ok(Err(Failure::NotFound)) => Self::Missing,
            Ok(Err(Failure::Exists)) => Self::Exists,
            Ok(Err(Failure::Denied(_) | Failure::Full(_))) => Self::Denied,
            // One that is too large, or too short, answered, and no answer would be another.
            Ok(Err(Failure::TooLarge(_) | Failure::Short)) => Self::Denied,
            Ok(Err(Failure::Transient(_))) => Self::Failed,
            Err(_) => Self::Silent,
        }
    }
}

type ByOutcome = [AtomicU64; Outcome::ALL.len()];

/// See the module.
#[derive(Debug, Default)]
pub struct Meter {
    /// The last attempt failed, or was not answered.
    is_silent: AtomicBool,
    counts: [[ByOutcome; Role::ALL.len()]; Request::ALL.len()],
    took: [Histogram; Request::ALL.len()],
}

impl Meter {
    /// Counts one attempt.
    pub fn count(&self, request: Request, role: Role, outcome: Outcome, took: Duration) {
        self.is_silent.store(matches!(outcome, Outcome::Failed | Outcome::Silent), Ordering::Relaxed);
        self.counts[request as usize][role as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.took[request as usize].record(took);
    }

    /// Whether the store answered when it was asked last; nobody has asked yet: it did.
    pub fn answers(&self) -> bool {
        !self.is_silent.load(Ordering::Relaxed)
    }

    /// What occurred.
    pub fn counts(&self) -> impl Iterator<Item = (Request, Role, Outcome, u64)> {
        let all = Request::ALL.into_iter().flat_map(|request| Role::ALL.map(|role| (request, role)));
        let all = all.flat_map(|(request, role)| Outcome::ALL.map(|outcome| (request, role, outcome)));
        let counted = all.map(|(request, role, outcome)| {
            let count = &self.counts[request as usize][role as usize][outcome as usize];
            (request, role, outcome, count.load(Ordering::Relaxed))
        });
        counted.filter(|(.., count)| *count > 0)
    }

    /// How long the attempts of each kind took.
    pub fn took(&self) -> impl Iterator<Item = (Request, &Histogram)> {
        Request::ALL.into_iter().zip(&self.took).filter(|(_, took)| took.count() > 0)
    }
}
