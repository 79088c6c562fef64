//! The probe: does this store keep what the protocol rests on?
//!
//! Writes a few small objects under a random prefix, looks, and removes them. What a store refuses now and then is asked
//! again, and a write whose answer was lost is looked for: a bad day is no lie. Only what was answered counts against it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::backend::{Failure, Place};
use super::retry;
use crate::format::key;
use crate::format::key::Role;

/// Creates that race for one name.
const RACERS: u8 = 8;
/// Races until one has a winner: where all requests of one fail nobody wins it.
const RACES: u32 = 4;
/// How often a request is made that the store does not answer.
const ATTEMPTS: u32 = 6;
/// What is not answered by then is not answered.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// One property and whether the store has it.
#[derive(Debug, Clone)]
pub struct Check {
    /// The property.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// Whether the store answered at all what was asked to find out.
    pub is_answered: bool,
    /// What was seen instead.
    pub detail: String,
}

/// Why a property is not known to hold.
enum Doubt {
    /// The store answered, and not as it should.
    Broken(String),
    /// It did not answer.
    Unanswered(String),
}

impl From<Failure> for Doubt {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Transient(why) => Self::Unanswered(why),
            failure => Self::Broken(failure.to_string()),
        }
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T, Doubt> {
    Err(Doubt::Broken(what.into()))
}

/// Whether `place` answers at all: the reason when it does not, before anything is said about what it keeps.
pub async fn reach(place: &Place, run: u128) -> Result<(), Failure> {
    let patient = Patient { place, run };
    let prefix = patient.path("");
    match patient.ask(|| place.first(&prefix)).await {
        Ok(_) => Ok(()),
        // A list of nothing is empty; not found is the bucket itself, which its owner makes.
        Err(Failure::NotFound) => Err(Failure::Denied("there is no such bucket (make it first)".to_owned())),
        Err(failure) => Err(failure),
    }
}

/// A place that is asked again when it does not answer.
struct Patient<'a> {
    place: &'a Place,
    run: u128,
}

impl Patient<'_> {
    fn path(&self, name: &str) -> String {
        key::probe(Role::Config, self.run, name).path
    }

    /// One answer.
    async fn ask<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match tokio::time::timeout(ANSWER_LIMIT, ask()).await {
                Ok(Err(Failure::Transient(_))) | Err(_) if attempt < ATTEMPTS => {
                    let random = self.run.wrapping_mul(u128::from(attempt) + 0x9E37);
                    tokio::time::sleep(retry::pause(attempt, random, self.place.asked_to_wait())).await;
                }
                Ok(outcome) => return outcome,
                Err(_) => return Err(Failure::Transient("no answer".to_owned())),
            }
        }
    }

    async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        self.ask(|| self.place.get(path, None)).await
    }

    /// What `get` finds, and once more if that is not `expected`: bytes go wrong on their way, too.
    async fn holds(&self, path: &str, expected: impl Fn(&[u8]) -> bool) -> Result<bool, Failure> {
        Ok(expected(&self.get(path).await?) || expected(&self.get(path).await?))
    }

    /// Creates an object; one that exists and is ours was created by a request whose answer was lost.
    async fn create(&self, path: &str, bytes: &'static [u8]) -> Result<(), Failure> {
        match self.ask(|| self.place.create(path, Bytes::from_static(bytes))).await {
            Err(Failure::Exists) if self.get(path).await? == bytes => Ok(()),
            outcome => outcome,
        }
    }
}

/// Looks for each property at `place`; `run` makes the names unique.
pub async fn probe(place: &Place, run: u128) -> Vec<Check> {
    let patient = Patient { place, run };
    let (raced, race) = race(&patient).await;
    let checks = vec![
        check("racing creates have exactly one winner", race),
        check("a create over an existing object is refused", overwrite(&patient, &raced).await),
        check("an acknowledged object is listed at once and in order", listing(&patient).await),
        check("a part of an object can be read", part(&patient).await),
    ];
    let races = (1..=RACES).map(race_name);
    for name in races.chain(["list/a", "list/b"].map(str::to_owned)) {
        // What cannot be removed is a few bytes under probe/, and the checks have said what matters.
        let _ = place.remove(&patient.path(&name)).await;
    }
    checks
}

fn check(name: &'static str, outcome: Result<(), Doubt>) -> Check {
    let (ok, is_answered, detail) = match outcome {
        Ok(()) => (true, true, String::new()),
        Err(Doubt::Broken(why)) => (false, true, why),
        Err(Doubt::Unanswered(why)) => (false, false, format!("not found out, the store does not answer: {why}")),
    };
    Check { name, ok, is_answered, detail }
}

fn race_name(number: u32) -> String {
    format!("race-{number}")
}

/// Races until there is a winner, and answers where it was.
async fn race(patient: &Patient<'_>) -> (String, Result<(), Doubt>) {
    let mut number = 1;
    loop {
        let path = patient.path(&race_name(number));
        let outcome = race_at(patient, &path).await;
        match outcome {
            Ok(None) if number < RACES => number += 1,
            Ok(None) => return (path, Err(Doubt::Unanswered("no create of a race succeeded".to_owned()))),
            Ok(Some(())) => return (path, Ok(())),
            Err(doubt) => return (path, Err(doubt)),
        }
    }
}

/// One race; `None` when nobody won it.
async fn race_at(patient: &Patient<'_>, path: &str) -> Result<Option<()>, Doubt> {
    let racer = |racer: u8| async move {
        let create = patient.place.create(path, Bytes::from(vec![racer; 64]));
        tokio::time::timeout(ANSWER_LIMIT, create).await.unwrap_or_else(|_| Err(Failure::Transient(String::new())))
    };
    let outcomes = join_all((0..RACERS).map(racer)).await;
    let (mut winners, mut unknown) = (Vec::new(), Vec::new());
    for (racer, outcome) in (0..RACERS).zip(outcomes) {
        match outcome {
            Ok(()) => winners.push(racer),
            Err(Failure::Exists) => {}
            Err(Failure::Transient(_)) => unknown.push(racer),
            Err(failure) => return Err(failure.into()),
        }
    }
    if winners.len() > 1 {
        return broken(format!("{} of {RACERS} creates of one name succeeded", winners.len()));
    }
    // Without a winner that was told so it may be one whose answer was lost.
    let may_be = |found: &[u8]| {
        let possible = if winners.is_empty() { &unknown } else { &winners };
        possible.iter().any(|racer| found == [*racer; 64])
    };
    match patient.holds(path, may_be).await {
        Ok(true) => Ok(Some(())),
        Ok(false) => broken("the object does not hold what its winner wrote"),
        Err(Failure::NotFound) if winners.is_empty() => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

async fn overwrite(patient: &Patient<'_>, path: &str) -> Result<(), Doubt> {
    let before = patient.get(path).await?;
    match patient.ask(|| patient.place.create(path, Bytes::from_static(b"another content"))).await {
        Err(Failure::Exists) => {}
        Ok(()) => return broken("the store said that it wrote"),
        Err(failure) => return Err(failure.into()),
    }
    let is_same = patient.holds(path, |after| after == before).await?;
    if is_same { Ok(()) } else { broken("the object changed all the same") }
}

async fn listing(patient: &Patient<'_>) -> Result<(), Doubt> {
    let prefix = patient.path("list/");
    let [a, b] = ["list/a", "list/b"].map(|name| patient.path(name));
    for path in [&b, &a] {
        patient.create(path, b"0123456789").await?;
    }
    let listed = patient.ask(|| patient.place.list(&prefix)).await?;
    let names: Vec<_> = listed.iter().map(|(name, _)| name.as_str()).collect();
    if names != [&a, &b] {
        return broken(format!("listed: {}", names.join(", ")));
    }
    let first = patient.ask(|| patient.place.first(&prefix)).await?;
    if first.as_ref() == Some(&a) { Ok(()) } else { broken(format!("listed first: {first:?}")) }
}

async fn part(patient: &Patient<'_>) -> Result<(), Doubt> {
    let path = patient.path("list/b");
    let bytes = patient.ask(|| patient.place.get(&path, Some(3..6))).await?;
    if &bytes[..] == b"345" { Ok(()) } else { broken(format!("{} bytes came instead of 3", bytes.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fault::{Faults, Operation};

    #[tokio::test]
    async fn an_honest_place_passes_and_the_probe_cleans_up() {
        let place = Place::memory();
        assert!(probe(&place, 7).await.iter().all(|check| check.ok));
        assert!(place.list("probe/").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_place_that_overwrites_is_named() {
        let faults = Faults::new();
        faults.ignore_create_only();
        let checks = probe(&Place::memory().with_faults(&faults), 7).await;
        let failed: Vec<_> = checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
        assert_eq!(failed, ["racing creates have exactly one winner", "a create over an existing object is refused"]);
    }

    #[tokio::test]
    async fn a_place_that_fails_now_and_then_passes_and_a_liar_among_failures_is_found_out() {
        use crate::store::fault::Fault;
        for seed in 0..40 {
            let faults = Faults::new();
            for n in 0..60_usize {
                let dice = (n * 31 + seed * 17) % 7;
                match dice {
                    0 | 1 => faults.at(n, Fault::Fail),
                    2 => faults.at(n, Fault::LoseAnswer),
                    _ => {}
                }
            }
            let place = Place::memory().with_faults(&faults);
            let checks = probe(&place, seed as u128 + 1).await;
            assert!(checks.iter().all(|check| check.ok), "seed {seed}: {checks:?}");
            faults.ignore_create_only();
            let checks = probe(&place, seed as u128 + 1_000).await;
            assert!(checks.iter().any(|check| !check.ok && check.is_answered), "seed {seed}: {checks:?}");
        }
    }

    #[tokio::test]
    async fn a_place_that_stops_answering_is_not_called_a_liar() {
        let faults = Faults::new();
        faults.stop_after_writes(4);
        let checks = probe(&Place::memory().with_faults(&faults), 7).await;
        assert!(checks.iter().all(|check| check.ok || !check.is_answered), "{checks:?}");
        assert!(checks.iter().any(|check| check.detail.contains("does not answer")), "{checks:?}");
    }

    #[tokio::test]
    async fn a_place_that_does_not_answer_is_not_called_a_liar() {
        let faults = Faults::new();
        faults.set_stopped(true);
        let place = Place::memory().with_faults(&faults);
        assert!(matches!(reach(&place, 7).await, Err(Failure::Transient(_))));
        assert_eq!(faults.log()[0].0, Operation::List);
        faults.clear();
        assert!(reach(&place, 7).await.is_ok());
    }
}
