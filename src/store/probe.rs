//! The probe: does this store keep what the protocol rests on?
//!
//! Writes a few small objects under a random prefix, looks, and removes them.

use bytes::Bytes;
use futures_util::future::join_all;

use super::backend::{Failure, Place};
use crate::format::key;
use crate::format::key::Role;

/// Creates that race for one name.
const RACERS: u8 = 8;

/// One property and whether the store has it.
#[derive(Debug, Clone)]
pub struct Check {
    /// The property.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What was seen instead.
    pub detail: String,
}

/// Whether `place` answers at all: the reason when it does not, before anything is said about what it keeps.
pub async fn reach(place: &Place, run: u128) -> Result<(), Failure> {
    match place.first(&key::probe(Role::Config, run, "").path).await {
        Ok(_) => Ok(()),
        // A list of nothing is empty; not found is the bucket itself, which its owner makes.
        Err(Failure::NotFound) => Err(Failure::Denied("there is no such bucket (make it first)".to_owned())),
        Err(failure) => Err(failure),
    }
}

/// Looks for each property at `place`; `run` makes the names unique.
pub async fn probe(place: &Place, run: u128) -> Vec<Check> {
    let path = |name: &str| key::probe(Role::Config, run, name).path;
    let checks = vec![
        check("racing creates have exactly one winner", race(place, &path("race")).await),
        check("a create over an existing object is refused", overwrite(place, &path("race")).await),
        check("an acknowledged object is listed at once and in order", listing(place, run).await),
        check("a part of an object can be read", part(place, &path("list-b")).await),
    ];
    for name in ["race", "list-a", "list-b"] {
        // What cannot be removed is a few bytes under probe/, and the checks have said what matters.
        let _ = place.remove(&path(name)).await;
    }
    checks
}

fn check(name: &'static str, outcome: Result<(), String>) -> Check {
    let detail = outcome.as_ref().err().cloned().unwrap_or_default();
    Check { name, ok: outcome.is_ok(), detail }
}

async fn race(place: &Place, path: &str) -> Result<(), String> {
    let attempts = (0..RACERS).map(|racer| place.create(path, Bytes::from(vec![racer; 64])));
    let outcomes = join_all(attempts).await;
    let winners: Vec<u8> = (0..RACERS).zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(n, _)| n).collect();
    if let Some(Err(failure)) = outcomes.iter().find(|outcome| !matches!(outcome, Ok(()) | Err(Failure::Exists))) {
        return Err(failure.to_string());
    }
    let [winner] = winners[..] else {
        return Err(format!("{} of {RACERS} creates of one name succeeded", winners.len()));
    };
    let found = place.get(path, None).await.map_err(|failure| failure.to_string())?;
    if found == vec![winner; 64] { Ok(()) } else { Err("the object does not hold what its winner wrote".to_owned()) }
}

async fn overwrite(place: &Place, path: &str) -> Result<(), String> {
    let before = place.get(path, None).await.map_err(|failure| failure.to_string())?;
    match place.create(path, Bytes::from_static(b"another content")).await {
        Err(Failure::Exists) => {}
        Ok(()) => return Err("the store said that it wrote".to_owned()),
        Err(failure) => return Err(failure.to_string()),
    }
    let after = place.get(path, None).await.map_err(|failure| failure.to_string())?;
    if before == after { Ok(()) } else { Err("the object changed all the same".to_owned()) }
}

async fn listing(place: &Place, run: u128) -> Result<(), String> {
    let path = |name: &str| key::probe(Role::Config, run, name).path;
    for name in ["list-b", "list-a"] {
        place.create(&path(name), Bytes::from_static(b"0123456789")).await.map_err(|failure| failure.to_string())?;
    }
    let prefix = path("");
    let listed = place.list(&prefix).await.map_err(|failure| failure.to_string())?;
    let names: Vec<_> = listed.iter().map(|(name, _)| name.as_str()).collect();
    if names != [path("list-a"), path("list-b"), path("race")] {
        return Err(format!("listed: {}", names.join(", ")));
    }
    let first = place.first(&prefix).await.map_err(|failure| failure.to_string())?;
    if first == Some(path("list-a")) { Ok(()) } else { Err(format!("listed first: {first:?}")) }
}

async fn part(place: &Place, path: &str) -> Result<(), String> {
    let bytes = place.get(path, Some(3..6)).await.map_err(|failure| failure.to_string())?;
    if &bytes[..] == b"345" { Ok(()) } else { Err(format!("{} bytes came instead of 3", bytes.len())) }
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
