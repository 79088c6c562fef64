//! What every place must do, whatever is behind it: one suite over memory, directories and real servers.
//!
//! Used by tests only: unit tests run it over memory and directories, integration tests over servers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::backend::{Failure, Place};
use super::chain::{self, Link};
use super::{Put, Store, StoreError, catalog, probe};
use crate::format::FormatError;
use crate::format::catalog::CatalogRecord;
use crate::format::key::{self, ObjectKey, Role};
use crate::model::clock::{Clock, Entropy};
use crate::model::id::ContextId;

/// Objects under one prefix: more than a server lists in one answer.
const MANY: usize = 1_050;
/// Appends that each of two writers makes to one chain.
const APPENDS: usize = 8;

type Verdict = Result<(), String>;

/// Tries every rule at `place` and answers those that are broken, each with what was seen.
///
/// Leaves its objects behind, under a context of its own.
pub async fn violations(place: &Place, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Vec<String> {
    let context = ContextId::from_parts(clock.now().millis(), entropy.random());
    let open = || {
        let places = HashMap::from([(Role::Config, place.clone())]);
        Store::new(context, places, Duration::from_secs(20), clock.clone(), entropy.clone())
    };
    let (one, two) = (open(), open());
    let run = entropy.random();
    let mut broken: Vec<String> = Vec::new();
    for check in probe::probe(place, run).await {
        if !check.ok {
            broken.push(format!("{}: {}", check.name, check.detail));
        }
    }
    let rules: Vec<(&str, Verdict)> = vec![
        ("what is not there is not found", absent(&one, run).await),
        ("a put says ours for equal bytes and theirs for others", put(&one, run).await),
        ("a part is exactly what was asked for", parts(place, &one, run).await),
        ("a large object comes back", large(&one, run).await),
        ("a list is complete, ordered and of its prefix alone", many(&one, run).await),
        ("two writers of a chain lose nothing", appends(&one, &two).await),
    ];
    broken.extend(rules.into_iter().filter_map(|(rule, verdict)| Some(format!("{rule}: {}", verdict.err()?))));
    broken
}

fn object(run: u128, name: &str) -> ObjectKey {
    key::probe(Role::Config, run, &format!("contract/{name}"))
}

fn expect(holds: bool, seen: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(seen()) }
}

async fn absent(store: &Store, run: u128) -> Verdict {
    let key = object(run, "absent");
    let read = store.get(&key).await;
    expect(matches!(read, Err(StoreError::NotFound { .. })), || format!("get: {read:?}"))?;
    let len = store.len(&key).await;
    expect(matches!(len, Err(StoreError::NotFound { .. })), || format!("len: {len:?}"))?;
    let first = store.first(&object(run, "absent/")).await;
    expect(matches!(first, Ok(None)), || format!("first: {first:?}"))?;
    let listed = store.list(&object(run, "absent/")).await;
    expect(listed.as_ref().is_ok_and(Vec::is_empty), || format!("list: {listed:?}"))
}

async fn put(store: &Store, run: u128) -> Verdict {
    let key = object(run, "put");
    let (mine, other) = (Bytes::from_static(b"mine"), Bytes::from_static(b"other"));
    let outcomes = [(&mine, Put::Ours), (&mine, Put::Ours), (&other, Put::Theirs(mine.clone())), (&mine, Put::Ours)];
    for (bytes, expected) in outcomes {
        let outcome = store.put_new(&key, bytes).await.map_err(|error| error.to_string())?;
        expect(outcome == expected, || format!("{outcome:?} instead of {expected:?}"))?;
    }
    let empty = object(run, "empty");
    store.put_new(&empty, &Bytes::new()).await.map_err(|error| error.to_string())?;
    let len = store.len(&empty).await;
    expect(matches!(len, Ok(0)), || format!("length of an empty object: {len:?}"))
}

async fn parts(place: &Place, store: &Store, run: u128) -> Verdict {
    let key = object(run, "parts");
    let bytes = Bytes::from((0..=255).collect::<Vec<u8>>());
    store.put_new(&key, &bytes).await.map_err(|error| error.to_string())?;
    for range in [0..1, 7..200, 255..256, 0..256] {
        let part = store.get_range(&key, range.clone()).await.map_err(|error| error.to_string())?;
        expect(part == bytes[range.start as usize..range.end as usize], || format!("{range:?}: {part:?}"))?;
    }
    let cut = store.get_range(&key, 250..260).await;
    let short = matches!(&cut, Err(StoreError::Corrupt { why: FormatError::Truncated, .. }));
    expect(short, || format!("a range over the end: {cut:?}"))?;
    let past = place.get(&key.path, Some(900..901)).await;
    expect(matches!(past, Err(Failure::Short)), || format!("past the end: {past:?}"))
}

async fn large(store: &Store, run: u128) -> Verdict {
    let key = object(run, "large");
    let bytes = Bytes::from((0..9u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>());
    let outcome = store.put_new(&key, &bytes).await.map_err(|error| error.to_string())?;
    expect(outcome == Put::Ours, || "created, but not ours".to_owned())?;
    let found = store.get(&key).await.map_err(|error| error.to_string())?;
    expect(found == bytes, || format!("{} other bytes came back", found.len()))
}

async fn many(store: &Store, run: u128) -> Verdict {
    let key = |n: usize| object(run, &format!("many/{n:05}"));
    let beside = object(run, "many-beside");
    store.put_new(&beside, &Bytes::from_static(b"x")).await.map_err(|error| error.to_string())?;
    let numbers: Vec<usize> = (0..MANY).rev().collect();
    for group in numbers.chunks(32) {
        let puts = group.iter().map(|n| async { store.put_new(&key(*n), &Bytes::from(n.to_string())).await });
        for outcome in join_all(puts).await {
            outcome.map_err(|error| error.to_string())?;
        }
    }
    let listed = store.list(&object(run, "many/")).await.map_err(|error| error.to_string())?;
    let expected = (0..MANY).map(|n| (key(n), n.to_string().len() as u64)).collect::<Vec<_>>();
    expect(listed == expected, || format!("{} of {MANY}, from {:?}", listed.len(), listed.first()))?;
    let first = store.first(&object(run, "many/")).await.map_err(|error| error.to_string())?;
    expect(first == Some(key(0)), || format!("the first is {first:?}"))
}

async fn appends(one: &Store, two: &Store) -> Verdict {
    let names = |writer: &str| (0..APPENDS).map(|n| format!("{writer}-{n}")).collect::<Vec<_>>();
    let (left, right) = (names("one"), names("two"));
    let run = async |store: &Store, names: &[String]| -> Verdict {
        for name in names {
            let name = name.parse().map_err(|why| format!("{why}"))?;
            catalog::create(store, &name).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    };
    let (first, second) = futures_util::future::join(run(one, &left), run(two, &right)).await;
    first.and(second)?;
    let prefix = one.keys().catalog();
    let newest: Option<Link<CatalogRecord>> =
        chain::newest(one, &prefix, Some(one.context())).await.map_err(|error| error.to_string())?;
    let mut link = newest.ok_or("the chain is empty")?;
    expect(link.record.repos.len() == 2 * APPENDS, || format!("{} repos", link.record.repos.len()))?;
    expect(link.seq + 1 == 2 * APPENDS as u64, || format!("{} records", link.seq + 1))?;
    while let Some(before) = chain::before(one, &prefix, &link).await.map_err(|error| error.to_string())? {
        expect(link.record.previous == Some(before.hash), || format!("record {} names another before it", link.seq))?;
        expect(link.record.time > before.record.time, || format!("record {} is not later", link.seq))?;
        link = before;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fault::{Fault, Faults};
    use crate::store::testing::{clock, entropy};

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        assert_eq!(violations(&Place::memory(), clock(), entropy()).await, Vec::<String>::new());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_directory_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&format!("file://{}", dir.path().display()), &Default::default(), &[]).unwrap();
        assert_eq!(violations(&place, clock(), entropy()).await, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_loses_answers_keeps_it_too() {
        let faults = Faults::new();
        let place = Place::memory().with_faults(&faults);
        (60..400).step_by(7).for_each(|n| faults.at(n, Fault::LoseAnswer));
        (61..400).step_by(11).for_each(|n| faults.at(n, Fault::Fail));
        assert_eq!(violations(&place, clock(), entropy()).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_found_out() {
        let faults = Faults::new();
        faults.ignore_create_only();
        let broken = violations(&Place::memory().with_faults(&faults), clock(), entropy()).await;
        assert!(broken.iter().any(|rule| rule.contains("exactly one winner")), "{broken:?}");
        assert!(broken.iter().any(|rule| rule.contains("over an existing object is refused")), "{broken:?}");
    }
}
