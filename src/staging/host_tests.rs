//! Trees committed, read back by another host, changed, committed again; and a host that dies at every write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::commit::{CommitReport, CommitRequest, Committer};
use super::inode::{FileData, InodeBody, ROOT};
use super::tests::memory;
use super::tree::{Caller, NodeAttr, SetAttr, StagingError, Tree, TreeConfig, TreeLock};
use crate::content::reader::ContentReader;
use crate::format::key::Role;
use crate::model::chunk::ChunkSize;
use crate::model::clock::Timestamp;
use crate::model::entry::{Body, FileKind};
use crate::model::id::{BundleId, ContextId, RepoId};
use crate::model::name::FileName;
use crate::snapshot::tree::{RangeCache, Snapshot};
use crate::store::backend::Place;
use crate::store::fault::{Fault, Faults};
use crate::store::testing::{clock, entropy};
use crate::store::{Store, catalog, refs};

const CALLER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };
const MIB: usize = 1 << 20;

/// A store that several hosts see, each through faults of its own.
struct World {
    place: Place,
    repo: RepoId,
    context: ContextId,
    /// How long a host waits for the store.
    timeout: Duration,
}

impl World {
    async fn new() -> Self {
        let (place, context) = (Place::memory(), ContextId::from_parts(1, 1));
        let world = Self { place, repo: RepoId::from_parts(0, 0), context, timeout: Duration::from_secs(5) };
        let repo = catalog::create(&world.store(&Faults::new()), &"r".parse().unwrap()).await.unwrap();
        Self { repo: repo.id, ..world }
    }

    fn store(&self, faults: &Arc<Faults>) -> Arc<Store> {
        let places = [(Role::Config, self.place.with_faults(faults))].into();
        // Real randomness: what two hosts draw must differ.
        let entropy = Arc::new(crate::cli::host::HostEntropy);
        Store::new(self.context, places, self.timeout, clock(), entropy)
    }

    async fn latest(&self) -> Option<BundleId> {
        let store = self.store(&Faults::new());
        refs::load(&store, self.repo).await.unwrap().and_then(|link| link.record.latest)
    }

    /// A host's tree in `dir`, on its own base if it has changes, else on `latest`.
    async fn host(&self, dir: &std::path::Path, faults: &Arc<Faults>) -> Host {
        let store = self.store(faults);
        let reader = ContentReader::new(store.clone(), 8 << 20);
        let ranges = RangeCache::new(8 << 20);
        let lock = TreeLock::take(dir).unwrap();
        let base = match lock.dirty_base(&memory()).unwrap() {
            Some(base) => base.map(|text| text.parse().unwrap()),
            None => self.latest().await,
        };
        let snapshot = match base {
            Some(bundle) => Some(Snapshot::open(reader.clone(), ranges.clone(), self.repo, bundle).await.unwrap()),
            None => None,
        };
        let config = TreeConfig {
            dir: dir.to_owned(),
            chunk: ChunkSize::DEFAULT,
            owner: (0, 0),
            acl: false,
            reader: reader.clone(),
            memory: memory(),
            clock: clock(),
            entropy: entropy(),
        };
        let tree = Tree::open(config, snapshot, lock).unwrap();
        let none = Arc::new(crate::faults::Faults::none());
        let opened = Committer::open(tree.clone(), store, reader, ranges, self.repo, "ann@lab".into(), none);
        Host { tree, committer: opened.await.unwrap() }
    }
}

struct Host {
    tree: Arc<Tree>,
    committer: Arc<Committer>,
}

fn name(text: impl AsRef<[u8]>) -> FileName {
    FileName::new(text.as_ref().to_vec()).unwrap()
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// What a user sees of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    kind: FileKind,
    mode: u16,
    owner: (u32, u32),
    mtime: Timestamp,
    nlink: u32,
    rdev: u32,
    size: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
}

impl Host {
    async fn make(&self, parent: u64, text: impl AsRef<[u8]>, body: InodeBody) -> u64 {
        self.tree.create(parent, &name(text), 0o644, body, CALLER).await.unwrap().ino
    }

    async fn file(&self, parent: u64, text: impl AsRef<[u8]>, content: &[u8]) -> u64 {
        let ino = self.make(parent, text, InodeBody::File(FileData::empty())).await;
        if !content.is_empty() {
            self.tree.write(ino, 0, content, false, false).await.unwrap();
        }
        ino
    }

    async fn ino(&self, path: &str) -> u64 {
        let mut ino = ROOT;
        for part in path.split('/') {
            ino = self.tree.lookup(ino, &name(part)).await.unwrap().ino;
        }
        ino
    }

    /// The whole tree as a user sees it.
    async fn show(&self) -> BTreeMap<Vec<u8>, Shown> {
        let mut shown = BTreeMap::new();
        let mut waiting = vec![(Vec::new(), ROOT)];
        while let Some((path, dir)) = waiting.pop() {
            let mut after = None;
            loop {
                let step = self.tree.list(dir, after.as_ref(), 7).await.unwrap();
                let Some((last, _)) = step.last() else { break };
                after = Some(last.clone());
                for (name, attr) in step {
                    let path = [&path[..], b"/", name.as_bytes()].concat();
                    if attr.kind == FileKind::Directory {
                        waiting.push((path.clone(), attr.ino));
                    }
                    // The disk gives blocks to what was written when it likes.
                    let looked = NodeAttr { blocks: attr.blocks, ..self.tree.lookup(dir, &name).await.unwrap() };
                    assert_eq!(looked, attr, "{}", path.escape_ascii());
                    shown.insert(path, self.shown(attr.ino).await);
                }
            }
        }
        shown
    }

    async fn shown(&self, ino: u64) -> Shown {
        let attr = self.tree.getattr(ino).await.unwrap();
        let content = match attr.kind {
            FileKind::Regular => self.tree.read(ino, 0..attr.size + 10).await.unwrap().to_vec(),
            FileKind::Symlink => self.tree.readlink(ino).await.unwrap().to_vec(),
            _ => Vec::new(),
        };
        let mut xattrs = BTreeMap::new();
        for key in self.tree.listxattr(ino).await.unwrap() {
            let value = self.tree.getxattr(ino, &key).await.unwrap();
            xattrs.insert(key, value);
        }
        let is_directory = attr.kind == FileKind::Directory;
        Shown {
            kind: attr.kind,
            mode: attr.attributes.permissions,
            owner: (attr.attributes.uid, attr.attributes.gid),
            mtime: attr.attributes.mtime,
            nlink: if is_directory { 0 } else { attr.nlink },
            rdev: attr.rdev,
            size: if is_directory { 0 } else { attr.size },
            xattrs,
            content,
        }
    }

    async fn commit(&self) -> CommitReport {
        self.committer.commit(CommitRequest::default()).await.unwrap()
    }

    /// Every kind of entry, and sizes at every edge.
    async fn fill(&self) {
        for size in [0, 1, 256, 257, 64 << 10, (64 << 10) + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5] {
            self.file(ROOT, format!("size-{size}"), &bytes(size, size as u32)).await;
        }
        let hole = self.file(ROOT, "hole", b"start").await;
        self.tree.write(hole, 4 * MIB as u64, b"end", false, false).await.unwrap();
        let zeros = self.file(ROOT, "zeros", b"").await;
        self.tree.setattr(zeros, SetAttr { size: Some(5 << 20), ..SetAttr::default() }).await.unwrap();
        let dir = self.make(ROOT, "dir", InodeBody::Directory).await;
        let below = self.make(dir, "below", InodeBody::Directory).await;
        self.make(below, "empty", InodeBody::Directory).await;
        // Beside `dir` in the order of names, not in the order of keys.
        self.file(ROOT, "dir!", b"beside").await;
        self.make(ROOT, "dir-", InodeBody::Directory).await;
        for n in 0..40 {
            self.file(below, format!("small-{n}"), &bytes(1000 + n, n as u32)).await;
        }
        self.file(below, b"\xff\xfe not utf-8", b"x").await;
        self.file(dir, [b'n'; 255], b"long name").await;
        self.make(dir, "link", InodeBody::Other(Body::Symlink(b"../dir!".to_vec().into()))).await;
        self.make(dir, "fifo", InodeBody::Other(Body::Fifo)).await;
        self.make(dir, "socket", InodeBody::Other(Body::Socket)).await;
        self.make(dir, "null", InodeBody::Other(Body::CharDevice(0x103))).await;
        self.make(dir, "disk", InodeBody::Other(Body::BlockDevice(0x800))).await;
        let hard = self.file(dir, "hard-1", &bytes(2 * MIB, 9)).await;
        self.tree.link(hard, below, &name("hard-2")).await.unwrap();
        self.tree.link(hard, ROOT, &name("hard-3")).await.unwrap();
        self.tree.setxattr(hard, b"user.note", b"shared", false, false).await.unwrap();
        self.tree.setxattr(dir, b"user.big", &bytes(3000, 1), false, false).await.unwrap();
        let old = Timestamp { secs: -5, nanos: 999_999_999 };
        let set =
            SetAttr { permissions: Some(0o4711), uid: Some(7), gid: Some(8), mtime: Some(old), ..SetAttr::default() };
        self.tree.setattr(hard, set).await.unwrap();
    }

    /// Changes of every kind to what [`Host::fill`] made.
    async fn change(&self) {
        let large = self.ino(&format!("size-{}", 3 * MIB + 5)).await;
        self.tree.write(large, MIB as u64 + 100, b"changed in the middle", false, false).await.unwrap();
        let cut = self.ino(&format!("size-{}", MIB + 1)).await;
        self.tree.setattr(cut, SetAttr { size: Some(1000), ..SetAttr::default() }).await.unwrap();
        self.tree.setattr(cut, SetAttr { size: Some(2 << 20), ..SetAttr::default() }).await.unwrap();
        let small = self.ino("size-257").await;
        self.tree.write(small, 0, b"appended", true, false).await.unwrap();
        let hard = self.ino("hard-3").await;
        self.tree.write(hard, 5, b"through one of its names", false, false).await.unwrap();
        let (dir, below) = (self.ino("dir").await, self.ino("dir/below").await);
        self.tree.unlink(dir, &name("hard-1")).await.unwrap();
        self.tree.unlink(below, &name("small-7")).await.unwrap();
        self.tree.rename(dir, &name("below"), ROOT, &name("moved"), false).await.unwrap();
        self.tree.rename(ROOT, &name("dir"), ROOT, &name("a-dir"), false).await.unwrap();
        let again = self.make(ROOT, "dir", InodeBody::Directory).await;
        self.file(again, "new", &bytes(70_000, 3)).await;
        self.tree.rmdir(ROOT, &name("dir-")).await.unwrap();
        self.make(ROOT, "dir-", InodeBody::Directory).await;
        self.tree.link(self.ino("dir!").await, ROOT, &name("a-link")).await.unwrap();
        self.tree.removexattr(self.ino("a-dir").await, b"user.big").await.unwrap();
        let copy = self.ino(&format!("size-{MIB}")).await;
        let same = self.tree.read(copy, 0..MIB as u64).await.unwrap();
        self.file(ROOT, "the same bytes again", &same).await;
    }
}

fn assert_same(found: &BTreeMap<Vec<u8>, Shown>, expected: &BTreeMap<Vec<u8>, Shown>) {
    let names =
        |shown: &BTreeMap<Vec<u8>, Shown>| shown.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (path, shown) in expected {
        let other = &found[path];
        let path = path.escape_ascii();
        assert!(other.content == shown.content, "{path}: {} bytes differ", shown.content.len());
        let plain = |shown: &Shown| Shown { content: Vec::new(), ..shown.clone() };
        assert_eq!(plain(other), plain(shown), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_what_another_host_sees_again_and_again() {
    let world = World::new().await;
    let (one, two, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let none = Faults::new();
    let first = world.host(one.path(), &none).await;
    first.fill().await;
    let expected = first.show().await;
    let report = first.commit().await;
    assert!(report.changed && !report.diverged);
    assert_same(&first.show().await, &expected);

    let second = world.host(two.path(), &none).await;
    assert!(!second.tree.is_dirty());
    assert_same(&second.show().await, &expected);
    second.change().await;
    let changed = second.show().await;
    let report = second.commit().await;
    assert!(report.changed && report.new_bytes < 6 << 20, "{report:?}");
    assert_same(&second.show().await, &changed);
    assert_same(&world.host(three.path(), &none).await.show().await, &changed);

    // The first host goes on without having seen any of it.
    first.file(ROOT, "late", b"x").await;
    let late = first.show().await;
    let report = first.commit().await;
    assert!(report.diverged);
    let four = tempfile::tempdir().unwrap();
    assert_same(&world.host(four.path(), &none).await.show().await, &late);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tree_commits_twice_without_a_new_base() {
    let world = World::new().await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = world.host(one.path(), &Faults::new()).await;
    host.fill().await;
    let first = host.commit().await;
    host.change().await;
    let expected = host.show().await;
    let second = host.commit().await;
    assert_eq!(second.base, Some(first.bundle));
    assert!(!second.diverged);
    assert_same(&world.host(two.path(), &Faults::new()).await.show().await, &expected);
    let third = host.commit().await;
    assert!(!third.changed);
    assert_eq!(third.bundle, second.bundle);
}

/// One life of a process: what it left running ends with it.
fn life<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(10));
    outcome
}

#[test]
fn a_tree_that_was_seen_clean_is_not_opened_to_see_that_again() {
    let dir = tempfile::tempdir().unwrap();
    let (world, has_left) = (life(World::new()), || TreeLock::has_left(dir.path(), &memory()));
    life(async { drop(world.host(dir.path(), &Faults::new()).await) });
    assert!(!has_left().unwrap());
    let (db, away) = (dir.path().join("db"), dir.path().join("away"));
    std::fs::rename(&db, &away).unwrap();
    std::fs::write(&db, "no database").unwrap();
    assert!(!has_left().unwrap(), "it was not opened");
    std::fs::remove_file(&db).unwrap();
    std::fs::rename(&away, &db).unwrap();
    // Whoever opens it may change it: from then on it has to be looked at.
    life(async {
        let host = world.host(dir.path(), &Faults::new()).await;
        assert!(matches!(has_left(), Err(StagingError::Busy(_))));
        host.file(ROOT, "f", b"1").await;
    });
    assert!(has_left().unwrap() && has_left().unwrap());
    life(async { world.host(dir.path(), &Faults::new()).await.commit().await });
    assert!(!has_left().unwrap());
}

/// A life that dies at PUT `n` of its commit; whether the commit came to its end before.
async fn die_at(world: &World, dir: &std::path::Path, n: usize, fault: Option<Fault>) -> bool {
    let faults = Faults::new();
    let host = world.host(dir, &faults).await;
    match fault {
        Some(fault) => faults.at_write(n, fault),
        None => faults.stop_after_writes(n),
    }
    let death = async {
        while !faults.is_stopped() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        outcome = host.committer.commit(CommitRequest::default()) => outcome.is_ok(),
        () = death => false,
    }
}

async fn prepare(world: &World, dir: &std::path::Path) -> BTreeMap<Vec<u8>, Shown> {
    let host = world.host(dir, &Faults::new()).await;
    host.file(ROOT, "first", &bytes(100_000, 1)).await;
    host.commit().await;
    host.file(ROOT, "second", &bytes(3 * MIB, 2)).await;
    host.file(ROOT, "third", &bytes(5000, 3)).await;
    host.show().await
}

/// The life after the death at `n`: nothing was lost, and nothing is in the history twice.
async fn rise(world: &World, dir: &std::path::Path, n: usize, expected: &BTreeMap<Vec<u8>, Shown>) {
    let host = world.host(dir, &Faults::new()).await;
    assert_same(&host.show().await, expected);
    if host.tree.is_dirty() {
        host.commit().await;
    }
    let other = tempfile::tempdir().unwrap();
    assert_same(&world.host(other.path(), &Faults::new()).await.show().await, expected);
    let link = refs::load(&world.store(&Faults::new()), world.repo).await.unwrap().unwrap();
    let entered: BTreeSet<_> = link.record.recent.iter().map(|summary| summary.bundle).collect();
    assert_eq!(entered.len(), link.record.recent.len(), "death at {n}: a bundle was entered twice");
    assert_eq!(entered.len(), 2, "death at {n}");
}

fn a_host_that_dies(fault: Option<Fault>) {
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let world = life(World::new());
        let expected = life(prepare(&world, dir.path()));
        let ended = life(die_at(&world, dir.path(), n, fault));
        life(rise(&world, dir.path(), n, &expected));
        if ended {
            assert!(n > 3, "a commit takes more PUTs than {n}");
            return;
        }
    }
}

#[test]
fn a_host_that_dies_before_any_put_loses_nothing() {
    a_host_that_dies(None);
}

#[test]
fn a_host_that_dies_after_any_put_loses_nothing() {
    a_host_that_dies(Some(Fault::Die));
}

/// A store that stops answering after PUT `n` of a commit, and comes back; whether the commit came to its end before.
async fn fail_at(n: usize) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let world = World { timeout: Duration::from_millis(200), ..World::new().await };
    let faults = Faults::new();
    let host = world.host(dir.path(), &faults).await;
    host.file(ROOT, "first", &bytes(100_000, 1)).await;
    host.commit().await;
    host.file(ROOT, "second", &bytes(3 * MIB, 2)).await;
    faults.at_write(n, Fault::Die);
    let ended = host.committer.commit(CommitRequest::default()).await.is_ok();
    faults.clear();
    // The same life goes on, and so does its user.
    host.file(ROOT, "third", &bytes(5000, 3)).await;
    let expected = host.show().await;
    host.commit().await;
    assert_same(&host.show().await, &expected);
    let other = tempfile::tempdir().unwrap();
    assert_same(&world.host(other.path(), &Faults::new()).await.show().await, &expected);
    let store = world.store(&Faults::new());
    let record = refs::load(&store, world.repo).await.unwrap().unwrap().record;
    let entered: BTreeSet<_> = record.recent.iter().map(|summary| summary.bundle.to_string()).collect();
    assert_eq!(entered.len(), record.recent.len(), "failure at {n}: a bundle was entered twice");
    let listed = store.list(&store.keys().bundles(world.repo)).await.unwrap();
    let published: BTreeSet<_> = listed.iter().map(|(key, _)| key.name().to_owned()).collect();
    assert_eq!(entered, published, "failure at {n}: a published bundle was left out of the history");
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_outcome_is_unknown_is_finished_before_the_next() {
    for n in 0.. {
        if fail_at(n).await {
            assert!(n > 3, "a commit takes more PUTs than {n}");
            return;
        }
    }
}
