//! The log against a store in memory, with time that stands still unless everybody waits.

use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::format::key::{Keys, Role};
use crate::format::read_log::{self, Dropped, FileName, FileReads, Head};
use crate::model::id::{BundleId, ContextId, RepoId};
use crate::store::backend::Place;
use crate::store::fault::{Fault, Faults, Operation};
use crate::store::testing::{clock, entropy};
use crate::vfs::identity::UserNames;
use crate::vfs::node::{RepoKey, Through, ViewKey};

const MEMORY: usize = 8 << 20;
const AT: Timestamp = Timestamp { secs: 1_700_000_000, nanos: 0 };

struct World {
    log: Arc<ReadLog>,
    faults: Arc<Faults>,
    store: Arc<Store>,
}

/// A log of `memory` bytes over a view whose bundle was never opened: its files are known by their rows.
fn world(memory: usize) -> World {
    let faults = Faults::new();
    let places = HashMap::from([(Role::Config, Place::memory().with_faults(&faults))]);
    let store = Store::new(ContextId::from_parts(1, 1), places, Duration::from_secs(20), clock(), entropy());
    let repo = RepoKey { name: "census".parse().unwrap(), id: RepoId::from_parts(1, 2) };
    let view = ViewKey { repo, through: Through::Latest, bundle: BundleId::from_parts(1, 3) };
    let views = Arc::new(Shared::new(Views { by_slot: HashMap::from([(0, (view, None))]), slots: HashMap::new() }));
    let names: UserNames = Arc::new(|uid| Box::pin(std::future::ready((uid == 7).then(|| "ada".to_owned()))));
    let identity =
        Identity { fixed: None, environment: None, mounter: (0, Some("root".into())), host: "lab".into(), names };
    World { log: ReadLog::start(store.clone(), views, identity, memory), faults, store }
}

impl World {
    fn read(&self, row: u32, uid: u32) {
        self.log.note(Key { slot: 0, row, uid }, 100, AT);
    }

    /// Names that were offered so far; an object may have been offered more than once.
    fn offers(&self) -> Vec<String> {
        let log = self.faults.log();
        log.into_iter().filter(|(operation, _)| *operation == Operation::Write).map(|(_, path)| path).collect()
    }

    /// What is in the store, in the order in which it was written.
    async fn batches(&self) -> Vec<(Head, Vec<FileReads>)> {
        let prefix = ObjectKey { role: Role::ReadLog, path: String::new() };
        let mut batches = Vec::new();
        for (key, _) in self.store.list(&prefix).await.unwrap() {
            batches.push(read_log::open(&self.store.get(&key).await.unwrap()).unwrap());
        }
        batches
    }
}

fn counted(reads: &[FileReads]) -> u64 {
    reads.iter().map(|reads| reads.reads).sum()
}

#[tokio::test(start_paused = true)]
async fn a_minute_after_the_first_read_one_object_says_who_read_what() {
    let world = world(MEMORY);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.offers().is_empty(), "nothing was read");
    world.read(5, 7);
    world.read(5, 7);
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.read(4, 8);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(world.offers().is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let prefix = Keys::new(ContextId::from_parts(1, 1)).read_log("20231114", world.log.mount, 0);
    assert_eq!(world.offers(), [prefix.path]);
    let batches = world.batches().await;
    let (head, reads) = &batches[0];
    assert_eq!((head.mount, &head.host[..], head.dropped), (world.log.mount, "lab", Dropped::default()));
    let said: Vec<_> = reads.iter().map(|line| (line.file.clone(), &line.who[..], line.reads, line.bytes)).collect();
    let expected = [(FileName::Row(4), "uid 8@lab", 1, 100), (FileName::Row(5), "ada@lab", 2, 200)];
    assert_eq!(said, expected);
    assert_eq!(reads[0].through, "labels/latest");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.offers().len(), 1, "nothing more was read");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_reading_is_sixty_objects() {
    let world = world(MEMORY);
    for second in 0..3600 {
        world.read(second % 10, 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    let offers = world.offers().len();
    assert!((58..=61).contains(&offers), "{offers}");
    let batches = world.batches().await;
    assert_eq!(batches.iter().map(|(_, reads)| counted(reads)).sum::<u64>(), 3600);
}

#[tokio::test(start_paused = true)]
async fn many_files_are_written_at_once_and_in_objects_of_a_bounded_size() {
    let world = world(MEMORY);
    let many = 20_000;
    for row in 0..many {
        world.read(row, 0);
        if row % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(!world.offers().is_empty(), "before the minute is over");
    world.log.finish().await;
    let batches = world.batches().await;
    assert_eq!(batches.iter().map(|(_, reads)| counted(reads)).sum::<u64>(), u64::from(many));
    for (head, reads) in &batches {
        let mut text = read_log::Text::new(head);
        reads.iter().for_each(|reads| text.push(reads));
        assert!(text.as_bytes().len() < MEMORY / 8 * 3 + 4096);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_asked_once_a_minute_and_then_has_everything_once() {
    let world = world(MEMORY);
    world.faults.set_stopped(true);
    world.read(1, 7);
    tokio::time::sleep(Duration::from_secs(601)).await;
    let asked = world.offers().len();
    assert!((9..=11).contains(&asked), "{asked} times in ten minutes");
    world.read(2, 7);
    world.faults.set_stopped(false);
    // The answer to the first is lost: it is offered again, and found to be there.
    world.faults.at_write(0, Fault::LoseAnswer);
    tokio::time::sleep(Duration::from_secs(200)).await;
    let batches = world.batches().await;
    let rows: Vec<_> = batches.iter().flat_map(|(_, reads)| reads.iter().map(|line| line.file.clone())).collect();
    assert_eq!(rows, [FileName::Row(1), FileName::Row(2)]);
    assert_eq!(world.store.requests.retries.load(std::sync::atomic::Ordering::Relaxed), 0, "the others' budget");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_store_that_is_away_is_bounded_and_the_rest_is_told() {
    let world = world(1 << 20);
    world.faults.set_stopped(true);
    let many = 30_000_u32;
    for row in 0..many {
        world.read(row, 0);
        if row % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    world.faults.set_stopped(false);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let batches = world.batches().await;
    let logged: u64 = batches.iter().map(|(_, reads)| counted(reads)).sum();
    let dropped: u64 = batches.iter().map(|(head, _)| head.dropped.reads).sum();
    assert_eq!(logged + dropped, u64::from(many));
    assert!(dropped > 20_000, "{dropped}");
    let newest = batches.iter().flat_map(|(_, reads)| reads).any(|line| line.file == FileName::Row(many - 1));
    assert!(newest, "the oldest are dropped");
    let bytes: u64 = batches.iter().map(|(head, _)| head.dropped.bytes).sum();
    assert_eq!(bytes, dropped * 100);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_mount_waits_for_the_log_but_not_for_long() {
    let world = world(MEMORY);
    world.read(1, 7);
    let start = Instant::now();
    world.log.finish().await;
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(world.batches().await.len(), 1);
    world.read(1, 7);
    world.faults.at_write(0, Fault::Delay(Duration::from_secs(3600)));
    world.log.finish().await;
    assert_eq!(start.elapsed().as_secs(), FINISH_LIMIT.as_secs());
}
