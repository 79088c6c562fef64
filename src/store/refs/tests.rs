//! What the changes of a repo's chain do, each alone.

use super::*;
use crate::format::catalog::{CatalogRecord, RepoEntry, RepoState};
use crate::format::envelope::{self, ObjectKind};
use crate::format::intent::Intent;
use crate::format::key::Role;
use crate::model::chunk::ChunkSize;
use crate::model::id::{ContextId, IntentId, ObjectHash};
use crate::store::backend::Place;
use crate::store::fault::network::Network;
use crate::store::fault::{Faults, Operation};
use crate::store::intents;
use crate::store::testing::{clock, entropy};
use object_store::memory::InMemory;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

fn repo() -> RepoId {
    RepoId::from_parts(1, 1)
}

fn label(text: &str) -> LabelName {
    text.parse().unwrap()
}

/// A published bundle and its summary.
async fn publish(store: &Store, n: u64) -> Summary {
    let bundle = BundleId::from_parts(n, 1);
    let descriptor = envelope::seal(ObjectKind::Descriptor, store.context(), &[0; 64]);
    store.put_new(&store.keys().bundle(repo(), bundle), &descriptor).await.unwrap();
    Summary {
        bundle,
        descriptor: ObjectHash::of(&descriptor),
        time: Timestamp::default(),
        who: "ann@lab".into(),
        files: 1,
        bytes: 2,
        labels: Vec::new(),
        message: String::new(),
    }
}

async fn record(store: &Store) -> RefsRecord {
    load(store, repo()).await.unwrap().unwrap().record
}

async fn enter(
    store: &Store,
    repo: RepoId,
    summary: &Summary,
    base: Option<BundleId>,
    only_from: Option<Option<BundleId>>,
) -> Result<Entered, StoreError> {
    super::enter(store, repo, summary, Position::default(), base, only_from).await
}

/// A name that leads to the repo.
async fn name_repo(store: &Store) {
    let entry = RepoEntry { id: repo(), chunk_size: ChunkSize::DEFAULT, state: RepoState::Live };
    let record = CatalogRecord { repos: [("x".parse().unwrap(), entry)].into(), ..CatalogRecord::default() };
    chain::append(store, &store.keys().catalog(), None, record).await.unwrap();
}

/// Enters `bundles`; after the n-th, labels move `moves(n)` times.
async fn fill(store: &Store, bundles: std::ops::Range<u64>, moves: impl Fn(u64) -> u64) -> Vec<BundleId> {
    name_repo(store).await;
    let mut entered = Vec::new();
    for n in bundles {
        let summary = publish(store, n).await;
        let since = position(store, repo()).await.unwrap();
        super::enter(store, repo(), &summary, since, None, None).await.unwrap();
        entered.push(summary.bundle);
        for step in 0..moves(n) {
            let label = label(["a", "b"][step as usize % 2]);
            set_label(store, repo(), &label, Some(entered[(step / 2) as usize % entered.len()]), false, "bob@lab")
                .await
                .unwrap();
        }
    }
    entered
}

async fn reads<T>(store: &Store, of: impl Future<Output = T>) -> (u64, T) {
    let count = || store.requests.reads.load(std::sync::atomic::Ordering::Relaxed);
    let before = count();
    let outcome = of.await;
    (count() - before, outcome)
}

fn bundles(history: &[Summary]) -> Vec<BundleId> {
    history.iter().map(|summary| summary.bundle).collect()
}

#[tokio::test]
async fn history_is_every_bundle_once_oldest_first_however_labels_moved() {
    assert_eq!(history(&store(), repo()).await.unwrap(), []);
    let few = |n| u64::from(n % 7 == 0);
    let many = |n| if n % 40 == 0 { 150 } else { 0 };
    for (count, moves) in [(1, 0), (63, 0), (64, 0), (65, 0), (127, 0), (128, 0), (200, 0), (200, 1), (200, 2)] {
        let store = store();
        let all = match moves {
            0 => fill(&store, 0..count, |_| 0).await,
            1 => fill(&store, 0..count, few).await,
            _ => fill(&store, 0..count, many).await,
        };
        assert_eq!(bundles(&history(&store, repo()).await.unwrap()), all, "{count} bundles");
    }
}

#[tokio::test]
async fn history_reads_one_record_in_sixty_three_and_later_only_what_was_added() {
    let store = store();
    let mut all = fill(&store, 0..300, |_| 0).await;
    let mut kept = History::default();
    let (count, found) = reads(&store, async { bundles(kept.update(&store, repo()).await.unwrap()) }).await;
    assert_eq!(found, all);
    assert_eq!(count, 1 + 4, "the missing next one; every 63rd before");
    all.extend(fill(&store, 300..303, |_| 1).await);
    let (count, found) = reads(&store, async { bundles(kept.update(&store, repo()).await.unwrap()) }).await;
    assert_eq!((count, found), (1, all.clone()));
    all.extend(fill(&store, 303..400, |_| 0).await);
    let (count, found) = reads(&store, async { bundles(kept.update(&store, repo()).await.unwrap()) }).await;
    assert_eq!((count, found), (2, all));
}

#[tokio::test]
async fn a_bundle_that_history_has_passed_by_is_not_entered_again() {
    let store = store();
    let first = publish(&store, 1_000).await;
    let before = position(&store, repo()).await.unwrap();
    enter(&store, repo(), &first, None, None).await.unwrap();
    let all = fill(&store, 0..200, |n| n % 3).await;
    for since in [before, Position::default()] {
        super::enter(&store, repo(), &first, since, None, None).await.unwrap();
    }
    let found = bundles(&history(&store, repo()).await.unwrap());
    assert_eq!(found, [&[first.bundle][..], &all].concat());
    assert_eq!(record(&store).await.latest, all.last().copied(), "latest stays where it was");
}

#[tokio::test]
async fn an_entry_looks_only_at_what_came_after_the_seal() {
    let store = store();
    fill(&store, 0..300, |_| 0).await;
    let late = publish(&store, 1_000).await;
    let since = position(&store, repo()).await.unwrap();
    fill(&store, 300..310, |_| 0).await;
    let (count, _) = reads(&store, super::enter(&store, repo(), &late, since, None, None)).await;
    assert_eq!(count, 1, "the missing next one: the newest was written here");
    fill(&store, 310..400, |_| 0).await;
    let (count, _) = reads(&store, super::enter(&store, repo(), &late, since, None, None)).await;
    assert_eq!(count, 2);
    assert_eq!(history(&store, repo()).await.unwrap().len(), 401, "once");
}

#[tokio::test]
async fn a_gap_in_the_history_is_damage() {
    let store = store();
    let prefix = store.keys().refs(repo());
    let mut newest = None;
    for n in 0..70u64 {
        let mut record = RefsRecord::default();
        for i in 0..RECENT_MAX as u64 {
            let bundle = BundleId::from_parts(n * 100 + i, 1);
            record.recent.push(Summary { bundle, ..publish(&store, 0).await });
        }
        newest = chain::append(&store, &prefix, newest.as_ref(), record).await.unwrap();
    }
    assert!(matches!(history(&store, repo()).await, Err(StoreError::Corrupt { .. })));
}

fn store() -> Arc<Store> {
    Store::in_memory(clock(), entropy())
}

#[tokio::test]
async fn a_bundle_is_entered_once_and_latest_moves() {
    let store = store();
    let mut first = publish(&store, 1).await;
    first.labels = vec![label("v1")];
    assert!(!enter(&store, repo(), &first, None, None).await.unwrap().diverged);
    assert!(!enter(&store, repo(), &first, None, None).await.unwrap().diverged, "safe to repeat");
    let found = record(&store).await;
    assert_eq!((found.latest, found.recent.len()), (Some(first.bundle), 1));
    assert_eq!(resolve(&found, "v1"), Some(first.bundle));
    assert_eq!(resolve(&found, LATEST), Some(first.bundle));
    assert_eq!(resolve(&found, &first.bundle.to_string()), Some(first.bundle));
    assert_eq!(resolve(&found, "v2"), None);
}

#[tokio::test]
async fn a_base_that_is_no_longer_latest_is_reported() {
    let store = store();
    let (first, second, third) = (publish(&store, 1).await, publish(&store, 2).await, publish(&store, 3).await);
    enter(&store, repo(), &first, None, None).await.unwrap();
    assert!(enter(&store, repo(), &second, None, None).await.unwrap().diverged);
    assert!(!enter(&store, repo(), &third, Some(second.bundle), None).await.unwrap().diverged);
    let times: Vec<_> = record(&store).await.recent.iter().map(|summary| summary.time).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}

#[tokio::test]
async fn after_a_restart_latest_moves_only_from_what_it_named() {
    let store = store();
    let (first, second, late) = (publish(&store, 1).await, publish(&store, 2).await, publish(&store, 3).await);
    enter(&store, repo(), &first, None, None).await.unwrap();
    enter(&store, repo(), &second, Some(first.bundle), None).await.unwrap();
    enter(&store, repo(), &late, Some(first.bundle), Some(Some(first.bundle))).await.unwrap();
    let found = record(&store).await;
    assert_eq!(found.latest, Some(second.bundle));
    assert_eq!(found.recent.last().map(|summary| summary.bundle), Some(late.bundle));
}

#[tokio::test]
async fn a_label_is_set_moved_renamed_and_removed() {
    let store = store();
    assert!(matches!(set_label(&store, repo(), &label("v1"), None, false, "bob@lab").await, Err(RefsError::Empty)));
    let (first, second) = (publish(&store, 1).await, publish(&store, 2).await);
    enter(&store, repo(), &first, None, None).await.unwrap();
    enter(&store, repo(), &second, Some(first.bundle), None).await.unwrap();
    let set = |text: &'static str, to, new| {
        let store = store.clone();
        async move { set_label(&store, repo(), &label(text), to, new, "bob@lab").await }
    };
    assert_eq!(set("v1", None, true).await.unwrap(), second.bundle);
    assert!(matches!(set("v1", Some(first.bundle), true).await, Err(RefsError::Exists(_))));
    assert_eq!(set("v1", Some(first.bundle), false).await.unwrap(), first.bundle);
    set("v2", None, false).await.unwrap();
    let renamed = rename_label(&store, repo(), &label("v1"), &label("v2"), "bob@lab").await;
    assert!(matches!(renamed, Err(RefsError::Exists(_))));
    rename_label(&store, repo(), &label("v1"), &label("v3"), "bob@lab").await.unwrap();
    assert_eq!(record(&store).await.labels.len(), 2);
    remove_label(&store, repo(), &label("v3"), "bob@lab").await.unwrap();
    assert!(matches!(remove_label(&store, repo(), &label("v3"), "bob@lab").await, Err(RefsError::NoLabel(_))));
    assert_eq!(resolve(&record(&store).await, "v2"), Some(second.bundle));
}

#[tokio::test]
async fn a_label_names_only_a_bundle_that_is_there() {
    let store = store();
    let first = publish(&store, 1).await;
    enter(&store, repo(), &first, None, None).await.unwrap();
    let absent = BundleId::from_parts(9, 9);
    let set = set_label(&store, repo(), &label("v1"), Some(absent), false, "bob@lab").await;
    assert!(matches!(set, Err(RefsError::NoBundle(_))));
    store.put_new(&store.keys().purged(repo(), first.bundle), &bytes::Bytes::from_static(b"x")).await.unwrap();
    let set = set_label(&store, repo(), &label("v1"), Some(first.bundle), false, "bob@lab").await;
    assert!(matches!(set, Err(RefsError::NoBundle(_))));
}

/// A registered intent of a bundle that follows `base`.
async fn staged_on(store: &Store, n: u64, base: BundleId) -> Intent {
    let (id, bundle) = (IntentId::from_parts(n, 7), BundleId::from_parts(n, 7));
    let bases = vec![base];
    let intent = Intent { time: Timestamp::default(), id, repo: repo(), bundle, bases, who: "bob@lab".into() };
    let object = envelope::seal(ObjectKind::Intent, store.context(), &intent.encode());
    store.put_new(&store.keys().intent(0, id, None), &object).await.unwrap();
    intent
}

#[tokio::test]
async fn a_removed_bundle_is_gone_latest_falls_back_and_restoring_brings_both_again() {
    let store = store();
    let all = fill(&store, 0..3, |_| 0).await;
    trash(&store, repo(), all[2], "bob@lab").await.unwrap();
    let found = record(&store).await;
    assert_eq!((found.latest, found.trashed.contains(&all[2])), (Some(all[1]), true));
    assert!(matches!(trash(&store, repo(), all[2], "bob@lab").await, Err(RefsError::NoBundle(_))));
    trash(&store, repo(), all[0], "bob@lab").await.unwrap();
    assert_eq!(record(&store).await.latest, Some(all[1]));
    trash(&store, repo(), all[1], "bob@lab").await.unwrap();
    assert_eq!(record(&store).await.latest, None);
    restore(&store, repo(), all[0], "bob@lab").await.unwrap();
    assert_eq!(record(&store).await.latest, Some(all[0]));
    restore(&store, repo(), all[2], "bob@lab").await.unwrap();
    restore(&store, repo(), all[2], "bob@lab").await.unwrap();
    restore(&store, repo(), all[1], "bob@lab").await.unwrap();
    let found = record(&store).await;
    assert_eq!((found.latest, found.trashed.len()), (Some(all[2]), 0));
    let absent = BundleId::from_parts(9, 9);
    assert!(matches!(restore(&store, repo(), absent, "bob@lab").await, Err(RefsError::NoBundle(_))));
    store.put_new(&store.keys().purged(repo(), all[0]), &bytes::Bytes::from_static(b"x")).await.unwrap();
    assert!(matches!(restore(&store, repo(), all[0], "bob@lab").await, Err(RefsError::NoBundle(_))));
}

#[tokio::test]
async fn a_purge_marker_of_any_length_is_one() {
    let store = store();
    let all = fill(&store, 0..1, |_| 0).await;
    let marker = envelope::seal(ObjectKind::Aborted, store.context(), &[7; 16]);
    assert_eq!(marker.len() as u64, ABORTED_BYTES);
    store.put_new(&store.keys().purged(repo(), all[0]), &marker).await.unwrap();
    let set = set_label(&store, repo(), &label("v1"), Some(all[0]), false, "bob@lab").await;
    assert!(matches!(set, Err(RefsError::NoBundle(_))));
}

#[tokio::test]
async fn a_bundle_that_is_not_in_the_history_is_not_removed() {
    let store = store();
    let unknown = publish(&store, 1).await;
    assert!(matches!(trash(&store, repo(), unknown.bundle, "bob@lab").await, Err(RefsError::NoBundle(_))));
    enter(&store, repo(), &unknown, None, None).await.unwrap();
    trash(&store, repo(), unknown.bundle, "bob@lab").await.unwrap();
}

#[tokio::test]
async fn a_bundle_does_not_come_back_into_a_repo_that_was_removed() {
    let store = store();
    let first = publish(&store, 1).await;
    enter(&store, repo(), &first, None, None).await.unwrap();
    trash(&store, repo(), first.bundle, "bob@lab").await.unwrap();
    // No name leads to the repo.
    let restored = restore(&store, repo(), first.bundle, "bob@lab").await;
    assert!(matches!(restored, Err(RefsError::Store(StoreError::Conflict { .. }))));
}

#[tokio::test]
async fn latest_falls_back_past_the_bundles_that_a_record_repeats() {
    let store = store();
    let all = fill(&store, 0..70, |_| 0).await;
    for bundle in all[1..].iter().rev() {
        trash(&store, repo(), *bundle, "bob@lab").await.unwrap();
    }
    assert_eq!(record(&store).await.latest, Some(all[0]));
}

#[tokio::test]
async fn a_bundle_with_a_label_or_under_somebodys_changes_is_not_removed() {
    let store = store();
    let all = fill(&store, 0..2, |_| 0).await;
    set_label(&store, repo(), &label("v1"), Some(all[0]), true, "bob@lab").await.unwrap();
    assert!(matches!(trash(&store, repo(), all[0], "bob@lab").await, Err(RefsError::Labelled { .. })));
    let intent = staged_on(&store, 50, all[1]).await;
    let refused = trash(&store, repo(), all[1], "bob@lab").await.unwrap_err();
    assert!(matches!(&refused, RefsError::Base { who, .. } if who == "bob@lab"), "{refused}");
    assert_eq!(record(&store).await.latest, Some(all[1]));
    intents::abort(&store, &intent).await.unwrap();
    trash(&store, repo(), all[1], "bob@lab").await.unwrap();
    // A label takes it out of the trash.
    set_label(&store, repo(), &label("v2"), Some(all[1]), true, "bob@lab").await.unwrap();
    let found = record(&store).await;
    assert_eq!((found.latest, found.trashed.len()), (Some(all[1]), 0));
}

#[tokio::test]
async fn where_a_label_led_is_told_with_who_moved_it() {
    let store = store();
    let mut first = publish(&store, 1).await;
    first.labels = vec![label("v1")];
    enter(&store, repo(), &first, None, None).await.unwrap();
    let mut log = LabelLog::default();
    log.update(&store, repo()).await.unwrap();
    assert_eq!(log.of(&label("v1")).len(), 1);
    let second = publish(&store, 2).await;
    enter(&store, repo(), &second, Some(first.bundle), None).await.unwrap();
    set_label(&store, repo(), &label("v1"), None, false, "bob@lab").await.unwrap();
    rename_label(&store, repo(), &label("v1"), &label("v2"), "bob@lab").await.unwrap();
    log.update(&store, repo()).await.unwrap();
    let steps: Vec<_> = log.of(&label("v1")).iter().map(|step| (step.bundle, step.who.as_deref())).collect();
    let (one, two) = (Some(first.bundle), Some(second.bundle));
    assert_eq!(steps, [(one, Some("ann@lab")), (two, Some("bob@lab")), (None, Some("bob@lab"))]);
    assert_eq!(log.of(&label("v2")).len(), 1);
    let mut anew = LabelLog::default();
    anew.update(&store, repo()).await.unwrap();
    assert_eq!(anew.of(&label("v1")), log.of(&label("v1")));
}

#[tokio::test]
async fn a_record_remembers_the_last_sixty_four_bundles() {
    let store = store();
    for n in 0..=RECENT_MAX as u64 {
        let summary = publish(&store, n).await;
        enter(&store, repo(), &summary, None, None).await.unwrap();
    }
    let found = record(&store).await;
    assert_eq!(found.recent.len(), RECENT_MAX);
    assert_eq!(found.recent[0].bundle, BundleId::from_parts(1, 1));
}

#[tokio::test]
async fn removals_and_returns_are_told_with_who_and_when_however_many_there_are() {
    let store = store();
    let all = fill(&store, 0..3, |_| 0).await;
    let mut kept = History::default();
    for round in 0..100 {
        let who = format!("user {round}");
        trash(&store, repo(), all[1], &who).await.unwrap();
        restore(&store, repo(), all[1], &who).await.unwrap();
        // Labels between them are no events.
        set_label(&store, repo(), &label("v1"), Some(all[round % 2]), false, "bob@lab").await.unwrap();
        remove_label(&store, repo(), &label("v1"), "bob@lab").await.unwrap();
        if round == 70 {
            kept.update(&store, repo()).await.unwrap();
        }
    }
    kept.update(&store, repo()).await.unwrap();
    let mut anew = History::default();
    anew.update(&store, repo()).await.unwrap();
    assert_eq!(anew.events(), kept.events());
    let told: Vec<_> = anew.events().iter().map(|event| (event.kind, event.who.clone())).collect();
    let expected = (0..100)
        .flat_map(|round| [EventKind::Removed, EventKind::Restored].map(|kind| (kind, format!("user {round}"))));
    assert_eq!(told, expected.collect::<Vec<_>>());
    assert!(anew.events().windows(2).all(|pair| pair[0].time < pair[1].time));
    let last = anew.summaries().last().unwrap().time;
    assert!(anew.events().iter().all(|event| event.bundle == all[1] && event.time > last));
}

#[tokio::test]
async fn a_removal_that_is_taken_back_and_a_label_that_brings_a_bundle_back_are_told() {
    let store = store();
    let all = fill(&store, 0..2, |_| 0).await;
    trash(&store, repo(), all[0], "ann@lab").await.unwrap();
    set_label(&store, repo(), &label("v1"), Some(all[0]), true, "bob@lab").await.unwrap();
    let told: Vec<_> = record(&store).await.events.into_iter().map(|event| (event.kind, event.who)).collect();
    let (removed, restored) = (EventKind::Removed, EventKind::Restored);
    assert_eq!(told, [(removed, "ann@lab".to_owned()), (restored, "bob@lab".to_owned())]);
}

/// A store whose requests are carried out by the test, over the same objects as `direct`.
struct Watched {
    memory: Arc<InMemory>,
    network: Arc<Network>,
    store: Arc<Store>,
    direct: Arc<Store>,
}

impl Watched {
    fn new() -> Self {
        let (memory, network) = (Arc::new(InMemory::new()), Network::new());
        let of = |place| {
            let places = [(Role::Config, place)].into();
            Store::new(ContextId::from_parts(1, 1), places, Duration::from_secs(30), clock(), entropy())
        };
        let direct = of(Place::of(memory.clone()));
        let store = of(Place::of(memory.clone()).with_faults(&Faults::in_network(&network, 0)));
        Self { memory, network, store, direct }
    }

    /// Removes a bundle as ann; `meanwhile` is done when the removal is in the store, before she knows.
    async fn trash_while(&self, bundle: BundleId, meanwhile: impl AsyncFnOnce(&Store)) -> Result<(), RefsError> {
        tokio::select! {
            done = trash(&self.store, repo(), bundle, "ann@lab") => done,
            () = self.serve(meanwhile) => unreachable!("it serves for ever"),
        }
    }

    async fn serve(&self, meanwhile: impl AsyncFnOnce(&Store)) {
        let mut meanwhile = Some(meanwhile);
        loop {
            while self.network.look(|_| ()).is_empty() {
                tokio::task::yield_now().await;
            }
            let mut request = self.network.take(0);
            let answer = request.carry_out(&*self.memory);
            if request.operation == Operation::Write
                && let Some(act) = meanwhile.take()
            {
                act(&self.direct).await;
            }
            request.answer(answer);
        }
    }
}

/// Moves a bundle from the trash to what is being purged, as a collection does.
async fn begin_purge(store: &Store, bundle: BundleId) {
    let decide = |record: &RefsRecord| {
        let mut next = next_by(record, "collector");
        next.trashed.remove(&bundle);
        next.purging.insert(bundle);
        Ok(Some(next))
    };
    change(store, repo(), decide).await.unwrap();
}

#[tokio::test]
async fn a_removal_that_somebodys_changes_forestall_is_taken_back_and_told() {
    let world = Watched::new();
    let all = fill(&world.direct, 0..2, |_| 0).await;
    let stage = async |store: &Store| drop(staged_on(store, 50, all[1]).await);
    let refused = world.trash_while(all[1], stage).await.unwrap_err();
    assert!(matches!(&refused, RefsError::Base { bundle, who } if *bundle == all[1] && who == "bob@lab"), "{refused}");
    let found = record(&world.direct).await;
    assert_eq!((found.latest, found.trashed.len(), found.who.as_str()), (Some(all[1]), 0, "ann@lab"));
    let mut history = History::default();
    history.update(&world.direct, repo()).await.unwrap();
    let told: Vec<_> = history.events().iter().map(|event| (event.kind, event.bundle, event.who.as_str())).collect();
    let (removed, restored) = (EventKind::Removed, EventKind::Restored);
    assert_eq!(told, [(removed, all[1], "ann@lab"), (restored, all[1], "ann@lab")]);
}

#[tokio::test]
async fn what_is_taken_back_is_latest_only_if_it_was() {
    let world = Watched::new();
    let all = fill(&world.direct, 0..2, |_| 0).await;
    // The newest of the history, entered after a restart: `latest` was another's by then, and stays.
    let newest = publish(&world.direct, 9).await;
    enter(&world.direct, repo(), &newest, None, Some(Some(all[0]))).await.unwrap();
    assert_eq!(record(&world.direct).await.latest, Some(all[1]));
    let stage = async |store: &Store| drop(staged_on(store, 50, newest.bundle).await);
    assert!(matches!(world.trash_while(newest.bundle, stage).await, Err(RefsError::Base { .. })));
    let found = record(&world.direct).await;
    assert_eq!((found.latest, found.trashed.len()), (Some(all[1]), 0));
}

#[tokio::test]
async fn what_is_taken_back_is_latest_when_all_others_were_removed_meanwhile() {
    let world = Watched::new();
    let all = fill(&world.direct, 0..2, |_| 0).await;
    let meanwhile = async |store: &Store| {
        staged_on(store, 50, all[0]).await;
        trash(store, repo(), all[1], "eve@lab").await.unwrap();
        assert_eq!(record(store).await.latest, None);
    };
    assert!(matches!(world.trash_while(all[0], meanwhile).await, Err(RefsError::Base { .. })));
    let found = record(&world.direct).await;
    assert_eq!((found.latest, found.trashed), (Some(all[0]), BTreeSet::from([all[1]])));
}

#[tokio::test]
async fn a_removal_that_a_collection_made_final_is_not_taken_back() {
    for is_marked in [false, true] {
        let world = Watched::new();
        let all = fill(&world.direct, 0..2, |_| 0).await;
        let collect = async |store: &Store| {
            staged_on(store, 50, all[0]).await;
            begin_purge(store, all[0]).await;
            if is_marked {
                // Purged to its end: the marker is there, and `purging` is empty again.
                let marker = store.keys().purged(repo(), all[0]);
                store.put_new(&marker, &bytes::Bytes::from_static(b"x")).await.unwrap();
                let decide = |record: &RefsRecord| Ok(Some(RefsRecord { purging: BTreeSet::new(), ..record.clone() }));
                change(store, repo(), decide).await.unwrap();
            }
        };
        world.trash_while(all[0], collect).await.unwrap();
        let found = record(&world.direct).await;
        assert_eq!((found.trashed.len(), found.purging.len()), (0, usize::from(!is_marked)));
        assert_eq!(found.events.len(), 1, "no return is told: {:?}", found.events);
    }
}

#[tokio::test]
async fn nothing_is_taken_back_into_a_repo_that_was_removed_meanwhile() {
    let world = Watched::new();
    let all = fill(&world.direct, 0..1, |_| 0).await;
    let remove_repo = async |store: &Store| {
        staged_on(store, 50, all[0]).await;
        let newest = chain::newest(store, &store.keys().catalog(), Some(store.context())).await.unwrap();
        chain::append(store, &store.keys().catalog(), newest.as_ref(), CatalogRecord::default()).await.unwrap();
    };
    let refused = world.trash_while(all[0], remove_repo).await.unwrap_err();
    assert!(matches!(refused, RefsError::Store(StoreError::Conflict { .. })), "{refused}");
}

#[test]
fn a_clock_that_goes_back_makes_nothing_earlier() {
    let at = |secs| Timestamp { secs, nanos: 0 };
    let event = Event { kind: EventKind::Removed, bundle: BundleId::from_parts(1, 1), time: at(9), who: String::new() };
    let record = RefsRecord { time: at(5), events: vec![event], ..RefsRecord::default() };
    assert_eq!(later(at(3), &record), at(9).next());
    assert_eq!(later(at(20), &record), at(20));
    assert_eq!(later(at(3), &RefsRecord { time: at(5), ..RefsRecord::default() }), at(5).next());
}
