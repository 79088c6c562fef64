//! Staging and commit together, without a kernel: what goes in comes back from another host's snapshot.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::commit::{CommitError, CommitReport, CommitRequest, Committer};
use super::inode::{FileData, InodeBody, ROOT};
use super::tree::{Caller, SetAttr, StagingError, Tree, TreeConfig, TreeLock};
use crate::content::reader::ContentReader;
use crate::faults::Faults;
use crate::model::chunk::ChunkSize;
use crate::model::clock::{Clock, Entropy, Timestamp};
use crate::model::entry::{Body, Entry};
use crate::model::id::BundleId;
use crate::model::name::FileName;
use crate::model::path::TreePath;
use crate::snapshot::{RangeCache, Snapshot};
use crate::store::{Store, catalog, refs};

struct TestTime(AtomicU64);

impl Clock for TestTime {
    fn now(&self) -> Timestamp {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        Timestamp { secs: 1_700_000_000 + n as i64, nanos: 5 }
    }
}

impl Entropy for TestTime {
    fn random(&self) -> u128 {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        (u128::from(n) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    }
}

/// A store, a repo in it, and hosts with state directories of their own.
pub(super) struct World {
    time: Arc<TestTime>,
    store: Arc<Store>,
    repo: crate::format::catalog::RepoEntry,
    state: tempfile::TempDir,
}

/// One host's view of the repo.
pub(super) struct Host {
    pub tree: Arc<Tree>,
    pub committer: Arc<Committer>,
}

pub(super) const CALLER: Caller = Caller { uid: 10, gid: 20, umask: 0o022 };
const MIB: usize = 1 << 20;

pub(super) fn memory() -> crate::local::db::DatabaseMemory {
    crate::local::db::DatabaseMemory::new(32 << 20)
}

pub(super) fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes().to_vec()).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

impl World {
    pub async fn new() -> Self {
        let time = Arc::new(TestTime(AtomicU64::new(0)));
        let store = Store::in_memory(time.clone(), time.clone());
        let repo = catalog::create(&store, &"census".parse().unwrap()).await.unwrap();
        Self { time, store, repo, state: tempfile::tempdir().unwrap() }
    }

    fn reader(&self) -> Arc<ContentReader> {
        ContentReader::new(self.store.clone(), 8 << 20)
    }

    pub async fn latest(&self) -> Option<BundleId> {
        refs::load(&self.store, self.repo.id).await.unwrap().and_then(|link| link.record.latest)
    }

    /// Opens the staging tree of `host` as a mount would.
    pub async fn host(&self, host: &str) -> Host {
        let dir = self.state.path().join(host);
        let reader = self.reader();
        let lock = TreeLock::take(&dir).unwrap();
        let base = match lock.dirty_base(&memory()).unwrap() {
            Some(base) => base.map(|id| id.parse().unwrap()),
            None => self.latest().await,
        };
        let snapshot = match base {
            Some(bundle) => Some(self.snapshot(bundle).await),
            None => None,
        };
        let config = TreeConfig {
            dir,
            chunk: ChunkSize::DEFAULT,
            owner: (0, 0),
            acl: true,
            reader: reader.clone(),
            memory: memory(),
            clock: self.time.clone(),
            entropy: self.time.clone(),
        };
        let tree = Tree::open(config, snapshot, lock).unwrap();
        let committer = Committer::open(
            tree.clone(),
            self.store.clone(),
            reader,
            RangeCache::new(8 << 20),
            self.repo.id,
            format!("ann@{host}"),
            Arc::new(Faults::none()),
        );
        Host { tree, committer: committer.await.unwrap() }
    }

    pub async fn snapshot(&self, bundle: BundleId) -> Arc<Snapshot> {
        Snapshot::open(self.reader(), RangeCache::new(8 << 20), self.repo.id, bundle).await.unwrap()
    }

    async fn entry(&self, bundle: BundleId, path: &str) -> Option<Entry> {
        let path = TreePath::parse(path.as_bytes()).unwrap();
        self.snapshot(bundle).await.lookup_path(&path).await.unwrap().map(|(_, entry)| entry)
    }

    async fn bytes(&self, bundle: BundleId, path: &str) -> Vec<u8> {
        let snapshot = self.snapshot(bundle).await;
        let Body::File(file) = self.entry(bundle, path).await.unwrap().body else { panic!("{path} is no file") };
        snapshot.reader().read(&file, ChunkSize::DEFAULT, 0..u64::MAX).await.unwrap().to_vec()
    }

    async fn data_packs(&self) -> usize {
        let prefix = crate::format::key::ObjectKey {
            role: crate::format::key::Role::Blob,
            path: format!("{}/p/", self.store.context()),
        };
        self.store.list(&prefix).await.unwrap().len()
    }
}

impl Host {
    pub(super) async fn put(&self, parent: u64, file: &str, bytes: &[u8]) -> u64 {
        let body = InodeBody::File(FileData::empty());
        let ino = match self.tree.lookup(parent, &name(file)).await {
            Ok(found) => {
                self.tree.setattr(found.ino, SetAttr { size: Some(0), ..SetAttr::default() }).await.unwrap();
                found.ino
            }
            Err(_) => self.tree.create(parent, &name(file), 0o644, body, CALLER).await.unwrap().ino,
        };
        if !bytes.is_empty() {
            self.tree.write(ino, 0, bytes, false, false).await.unwrap();
        }
        ino
    }

    async fn mkdir(&self, parent: u64, dir: &str) -> u64 {
        self.tree.create(parent, &name(dir), 0o755, InodeBody::Directory, CALLER).await.unwrap().ino
    }

    pub(super) async fn commit(&self) -> CommitReport {
        self.committer.commit(CommitRequest::default()).await.unwrap()
    }

    async fn read(&self, ino: u64, range: Range<u64>) -> Vec<u8> {
        self.tree.read(ino, range).await.unwrap().to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_come_back_from_another_host() {
    let world = World::new().await;
    let here = world.host("here").await;
    let sizes = [0, 1, 256, 257, 65_536, 65_537, MIB - 1, MIB, MIB + 1, 3 * MIB + 5];
    let dir = here.mkdir(ROOT, "sizes").await;
    for size in sizes {
        here.put(dir, &format!("s{size}"), &noise(size as u64, size)).await;
    }
    let report = here.commit().await;
    assert!(report.changed && !report.diverged);
    assert_eq!((report.files, report.bytes), (sizes.len() as u64, sizes.iter().sum::<usize>() as u64));
    for size in sizes {
        let found = world.bytes(report.bundle, &format!("sizes/s{size}")).await;
        assert!(found == noise(size as u64, size), "a file of {size} bytes came back wrong");
    }
    let again = here.commit().await;
    assert_eq!((again.bundle, again.changed), (report.bundle, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_attributes_links_and_xattrs_come_back() {
    let world = World::new().await;
    let here = world.host("here").await;
    let a = here.put(ROOT, "a", b"linked").await;
    let dir = here.mkdir(ROOT, "dir").await;
    here.mkdir(dir, "empty").await;
    here.tree.link(a, dir, &name("b")).await.unwrap();
    here.tree.setxattr(a, b"user.k", b"v", false, false).await.unwrap();
    let mtime = Timestamp { secs: -77, nanos: 123_456_789 };
    let set = SetAttr { permissions: Some(0o4751), uid: Some(3), mtime: Some(mtime), ..SetAttr::default() };
    here.tree.setattr(a, set).await.unwrap();
    for (file, body) in
        [("fifo", Body::Fifo), ("sym", Body::Symlink(Bytes::from_static(b"nowhere"))), ("dev", Body::CharDevice(259))]
    {
        here.tree.create(dir, &name(file), 0o600, InodeBody::Other(body), CALLER).await.unwrap();
    }
    let bundle = here.commit().await.bundle;
    let (first, second) = (world.entry(bundle, "a").await.unwrap(), world.entry(bundle, "dir/b").await.unwrap());
    assert_eq!(first, second);
    assert_eq!((first.nlink, first.attributes.permissions, first.attributes.uid), (2, 0o4751, 3));
    assert_eq!(first.attributes.mtime, mtime);
    assert_eq!(first.xattrs.get(&b"user.k"[..]), Some(&b"v".to_vec()));
    assert_eq!(world.bytes(bundle, "dir/b").await, b"linked");
    assert_eq!(world.entry(bundle, "dir/sym").await.unwrap().body, Body::Symlink(Bytes::from_static(b"nowhere")));
    assert_eq!(world.entry(bundle, "dir/fifo").await.unwrap().body, Body::Fifo);
    assert_eq!(world.entry(bundle, "dir/dev").await.unwrap().body, Body::CharDevice(259));
    let counts = world.snapshot(bundle).await.descriptor().counts;
    assert_eq!((counts.files, counts.directories, counts.bytes), (5, 2, 12));
    // One name of the two goes; the other keeps the bytes, alone.
    let there = world.host("there").await;
    let dir = there.tree.lookup(ROOT, &name("dir")).await.unwrap().ino;
    there.tree.unlink(dir, &name("b")).await.unwrap();
    let bundle = there.commit().await.bundle;
    assert_eq!(world.entry(bundle, "a").await.unwrap().nlink, 1);
    assert_eq!(world.entry(bundle, "dir/b").await, None);
    assert_eq!(world.bytes(bundle, "a").await, b"linked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_host_changes_one_byte_of_a_large_file_and_renames_a_directory() {
    let world = World::new().await;
    let here = world.host("here").await;
    let large = noise(9, 5 * MIB + 17);
    let dir = here.mkdir(ROOT, "old").await;
    here.put(dir, "large", &large).await;
    here.put(dir, "small", b"small").await;
    here.commit().await;
    let there = world.host("there").await;
    let dir = there.tree.lookup(ROOT, &name("old")).await.unwrap();
    let file = there.tree.lookup(dir.ino, &name("large")).await.unwrap().ino;
    there.tree.write(file, 3 * MIB as u64 + 1, b"X", false, false).await.unwrap();
    there.tree.rename(ROOT, &name("old"), ROOT, &name("new"), false).await.unwrap();
    assert_eq!(there.tree.lookup(ROOT, &name("new")).await.unwrap().ino, dir.ino, "a rename keeps the number");
    let mut expected = large.clone();
    expected[3 * MIB + 1] = b'X';
    assert!(there.read(file, 0..u64::MAX).await == expected);
    let report = there.commit().await;
    assert!(report.new_bytes < 3 * MIB as u64 / 2, "one chunk is stored, not {} bytes", report.new_bytes);
    assert!(world.bytes(report.bundle, "new/large").await == expected);
    assert_eq!(world.bytes(report.bundle, "new/small").await, b"small");
    assert_eq!(world.entry(report.bundle, "old").await, None);
    assert!(there.read(file, 0..u64::MAX).await == expected, "after the commit it reads the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tree_from_another_state_directory_stores_no_new_data_pack() {
    let world = World::new().await;
    let fill = async |host: &Host| {
        for n in 0..40 {
            host.put(ROOT, &format!("f{n}"), &noise(n, 1000 + 400 * n as usize)).await;
        }
        host.put(ROOT, "large", &noise(99, 2 * MIB + 3)).await;
    };
    let here = world.host("here").await;
    fill(&here).await;
    here.commit().await;
    let packs = world.data_packs().await;
    fill(&here).await;
    here.commit().await;
    let there = world.host("there").await;
    fill(&there).await;
    there.commit().await;
    assert_eq!(world.data_packs().await, packs);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_at_once_lose_no_bundle_and_the_later_is_told() {
    let world = World::new().await;
    let (here, there) = (world.host("here").await, world.host("there").await);
    here.put(ROOT, "here", b"1").await;
    there.put(ROOT, "there", b"2").await;
    let (first, second) = tokio::join!(here.commit(), there.commit());
    assert!(first.diverged != second.diverged, "exactly the later is told");
    let later = if first.diverged { first.bundle } else { second.bundle };
    assert_eq!(world.latest().await, Some(later));
    assert_eq!(world.bytes(first.bundle, "here").await, b"1");
    assert_eq!(world.bytes(second.bundle, "there").await, b"2");
    let request = CommitRequest { fail_if_diverged: true, ..CommitRequest::default() };
    let (stale, bundle) = if first.diverged { (&there, second.bundle) } else { (&here, first.bundle) };
    stale.put(ROOT, "more", b"3").await;
    assert!(matches!(stale.committer.commit(request).await, Err(CommitError::Diverged { .. })));
    assert!(stale.tree.is_dirty());
    assert!(world.entry(bundle, "more").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_tree_without_a_base_has_nothing_to_commit() {
    let world = World::new().await;
    let here = world.host("here").await;
    let refused = here.committer.commit(CommitRequest::default()).await;
    assert!(matches!(refused, Err(CommitError::NothingStaged)));
    // Nor has one in which something was, and was removed again.
    here.put(ROOT, "file", b"x").await;
    here.tree.unlink(ROOT, &name("file")).await.unwrap();
    assert!(here.tree.is_dirty());
    let refused = here.committer.commit(CommitRequest::default()).await;
    assert!(matches!(refused, Err(CommitError::NothingStaged)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_instant_does_not_see_what_is_written_after_it() {
    let world = World::new().await;
    let here = world.host("here").await;
    let old = noise(4, 2 * MIB);
    let file = here.put(ROOT, "file", &old).await;
    let cut = here.put(ROOT, "cut", &old).await;
    let gone = here.put(ROOT, "gone", &old).await;
    let sealed = here.tree.seal().await.unwrap();
    here.tree.write(file, 10, &noise(5, MIB), false, false).await.unwrap();
    here.tree.setattr(cut, SetAttr { size: Some(7), ..SetAttr::default() }).await.unwrap();
    here.tree.unlink(ROOT, &name("gone")).await.unwrap();
    here.put(ROOT, "new", b"new").await;
    let root = sealed.inode(ROOT).await.unwrap();
    let names: Vec<_> =
        sealed.children(ROOT, &root, None).await.unwrap().entries.into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, [name("cut"), name("file"), name("gone")]);
    for ino in [file, cut, gone] {
        let InodeBody::File(data) = sealed.inode(ino).await.unwrap().body else { panic!("a file") };
        assert_eq!(data.size, old.len() as u64);
        for index in 0..2 {
            let bytes = sealed.data().read_chunk(data.local.unwrap(), index, MIB).unwrap();
            assert!(bytes.into_bytes() == old[index as usize * MIB..][..MIB]);
        }
    }
    drop(sealed);
    let mut now = old.clone();
    now[10..10 + MIB].copy_from_slice(&noise(5, MIB));
    assert!(here.read(file, 0..u64::MAX).await == now);
    assert!(matches!(here.tree.lookup(ROOT, &name("gone")).await, Err(StagingError::NotFound)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_staged_is_found_again_and_a_living_tree_is_held() {
    let world = World::new().await;
    let here = world.host("here").await;
    here.put(ROOT, "committed", &noise(1, 300_000)).await;
    here.commit().await;
    here.put(ROOT, "staged", &noise(2, 300_000)).await;
    let dir: &Path = &world.state.path().join("here");
    assert!(matches!(TreeLock::take(dir), Err(StagingError::Busy(_))));
    drop(here);
    let again = world.host("here").await;
    assert!(again.tree.is_dirty());
    for (file, seed) in [("committed", 1), ("staged", 2)] {
        let ino = again.tree.lookup(ROOT, &name(file)).await.unwrap().ino;
        assert!(again.read(ino, 0..u64::MAX).await == noise(seed, 300_000), "{file} reads back");
    }
    let report = again.commit().await;
    assert!(world.bytes(report.bundle, "staged").await == noise(2, 300_000));
    assert!(world.bytes(report.bundle, "committed").await == noise(1, 300_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_without_a_name_lives_until_its_last_release() {
    let world = World::new().await;
    let here = world.host("here").await;
    let ino = here.put(ROOT, "f", b"still here").await;
    here.tree.open_file(ino).await.unwrap();
    here.tree.unlink(ROOT, &name("f")).await.unwrap();
    assert_eq!(here.read(ino, 0..99).await, b"still here");
    here.tree.release(ino).await.unwrap();
    assert!(here.tree.read(ino, 0..99).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_known_and_can_be_opened_until_the_kernel_forgets_it() {
    let world = World::new().await;
    let large = vec![7; 300_000];
    let before = world.host("before").await;
    before.put(ROOT, "kept", &large).await;
    before.commit().await;
    let here = world.host("here").await;
    here.tree.set_known(|_| true);
    let kept = here.tree.lookup(ROOT, &name("kept")).await.unwrap().ino;
    let files = [here.put(ROOT, "f", b"still here").await, here.put(ROOT, "g", &large).await, kept];
    let dir = here.mkdir(ROOT, "d").await;
    for file in ["f", "g", "kept"] {
        here.tree.unlink(ROOT, &name(file)).await.unwrap();
    }
    here.tree.rmdir(ROOT, &name("d")).await.unwrap();
    let staged = here.tree.staged();
    for (ino, bytes) in files.into_iter().zip([&b"still here"[..], &large, &large]) {
        let found = here.tree.getattr(ino).await.unwrap();
        assert_eq!((found.size, found.nlink), (bytes.len() as u64, 0));
        // Twice: the last release is not yet the end.
        for _ in 0..2 {
            here.tree.open_file(ino).await.unwrap();
            assert!(here.read(ino, 0..400_000).await == bytes);
            here.tree.release(ino).await.unwrap();
        }
    }
    let cut = SetAttr { size: Some(4), ..SetAttr::default() };
    assert_eq!(here.tree.setattr(files[0], cut).await.unwrap().size, 4, "as truncate(2) of /proc/self/fd does");
    for ino in files.into_iter().chain([dir]) {
        here.tree.setxattr(ino, b"user.a", b"1", true, false).await.unwrap();
        here.tree.setxattr(ino, b"user.b", b"2", false, false).await.unwrap();
        here.tree.removexattr(ino, b"user.a").await.unwrap();
        assert_eq!(here.tree.listxattr(ino).await.unwrap(), [b"user.b"]);
        assert_eq!(here.tree.getxattr(ino, b"user.b").await.unwrap(), b"2");
    }
    assert_eq!(here.tree.staged(), staged, "what has no name is no part of the tree");
    assert_eq!(here.tree.getattr(dir).await.unwrap().nlink, 0);
    for ino in files.into_iter().chain([dir]) {
        here.tree.forget_gone(ino);
        assert!(ino == kept || matches!(here.tree.getattr(ino).await, Err(StagingError::Stale)));
        assert!(matches!(here.tree.open_file(ino).await, Err(StagingError::LookAgain)));
    }
    here.tree.sync().unwrap();
    here.tree.reap().await.unwrap();
    let left = std::fs::read_dir(here.tree.dir().join("data")).unwrap();
    let left: usize = left.map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count()).sum();
    assert_eq!(left, 0, "its bytes are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_counts_its_directories_where_the_base_has_none() {
    let world = World::new().await;
    let here = world.host("here").await;
    let above = here.mkdir(ROOT, "above").await;
    let leaf = here.mkdir(above, "leaf").await;
    here.put(leaf, "f", b"x").await;
    let links = |host: &Host, ino| {
        let tree = host.tree.clone();
        async move { tree.getattr(ino).await.unwrap().nlink }
    };
    assert_eq!((links(&here, ROOT).await, links(&here, above).await, links(&here, leaf).await), (3, 3, 2));
    let bundle = here.commit().await.bundle;
    assert_eq!(world.entry(bundle, "above").await.unwrap().nlink, 1, "a bundle says nothing of it");
    let there = world.host("there").await;
    let above = there.tree.lookup(ROOT, &name("above")).await.unwrap();
    let leaf = there.tree.lookup(above.ino, &name("leaf")).await.unwrap();
    assert_eq!((above.nlink, leaf.nlink), (1, 2));
    there.mkdir(above.ino, "more").await;
    there.mkdir(leaf.ino, "more").await;
    assert_eq!((links(&there, above.ino).await, links(&there, leaf.ino).await), (1, 3));
    there.tree.rmdir(leaf.ino, &name("more")).await.unwrap();
    assert_eq!(links(&there, leaf.ino).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_is_kept_and_a_cut_file_grows_with_zeros() {
    let world = World::new().await;
    let here = world.host("here").await;
    let ino = here.put(ROOT, "sparse", b"").await;
    here.tree.write(ino, 9 * MIB as u64, b"end", false, false).await.unwrap();
    here.put(ROOT, "cut", &noise(3, 3 * MIB)).await;
    let report = here.commit().await;
    assert!(report.new_bytes < 4 * MIB as u64);
    let mut expected = vec![0; 9 * MIB];
    expected.extend_from_slice(b"end");
    assert!(world.bytes(report.bundle, "sparse").await == expected);
    let there = world.host("there").await;
    let cut = there.tree.lookup(ROOT, &name("cut")).await.unwrap().ino;
    for size in [MIB as u64 + 100, 3 * MIB as u64] {
        there.tree.setattr(cut, SetAttr { size: Some(size), ..SetAttr::default() }).await.unwrap();
    }
    let mut expected = noise(3, 3 * MIB)[..MIB + 100].to_vec();
    expected.resize(3 * MIB, 0);
    assert!(there.read(cut, 0..u64::MAX).await == expected);
    let bundle = there.commit().await.bundle;
    assert!(world.bytes(bundle, "cut").await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_base_is_emptied_and_removed_however_many_names_it_had() {
    let world = World::new().await;
    let here = world.host("here").await;
    let dir = here.mkdir(ROOT, "many").await;
    for n in 0..3000 {
        here.put(dir, &format!("f{n:05}"), b"").await;
    }
    here.commit().await;
    let there = world.host("there").await;
    let dir = there.tree.lookup(ROOT, &name("many")).await.unwrap().ino;
    for n in 0..2999 {
        there.tree.unlink(dir, &name(&format!("f{n:05}"))).await.unwrap();
    }
    assert!(matches!(there.tree.rmdir(ROOT, &name("many")).await, Err(StagingError::NotEmpty)));
    assert_eq!(there.tree.list(dir, None, 9).await.unwrap().len(), 1);
    there.tree.unlink(dir, &name("f02999")).await.unwrap();
    assert!(there.tree.list(dir, None, 9).await.unwrap().is_empty());
    there.tree.rmdir(ROOT, &name("many")).await.unwrap();
    let bundle = there.commit().await.bundle;
    assert_eq!(world.entry(bundle, "many").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_gives_space_back_and_what_lives_in_it_moves() {
    let world = World::new().await;
    let host = world.host("one").await;
    let log = world.state.path().join("one/log");
    let mut files = Vec::new();
    // More than one segment of 64 MiB, so that the first is no longer being filled.
    for n in 0..1_200 {
        let file = format!("{n}");
        files.push((host.put(ROOT, &file, &noise(n, 60_000)).await, n));
    }
    let segments = || std::fs::read_dir(&log).unwrap().count();
    assert_eq!(segments(), 2);
    for (_, n) in files.iter().filter(|(_, n)| n % 4 != 0) {
        host.tree.unlink(ROOT, &name(&n.to_string())).await.unwrap();
    }
    assert!(host.tree.tidy_log().await.unwrap());
    assert!(!host.tree.tidy_log().await.unwrap(), "nothing is left to do");
    assert_eq!(segments(), 1);
    let living = || files.iter().filter(|(_, n)| n % 4 == 0);
    for (ino, n) in living() {
        assert!(host.read(*ino, 0..60_000).await == noise(*n, 60_000));
    }
    drop(host);
    let again = world.host("one").await;
    for (ino, n) in living() {
        assert!(again.read(*ino, 0..60_000).await == noise(*n, 60_000), "also in the next life");
    }
}

// ---- power cuts ----------------------------------------------------------------------------------------------------------

/// A copy of the database as it is on the disk after a sync: what a power cut leaves of it, whatever was written later.
struct OnDisk(tempfile::TempDir);

impl OnDisk {
    fn of(dir: &Path) -> Self {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir.join("db")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        Self(copy)
    }

    /// Cuts the power: of the database only this is left, of the files everything that was done to them.
    fn cuts_power(self, dir: &Path) {
        std::fs::remove_dir_all(dir.join("db")).unwrap();
        std::fs::create_dir(dir.join("db")).unwrap();
        for entry in std::fs::read_dir(self.0.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.join("db").join(entry.file_name())).unwrap();
        }
    }
}

impl World {
    fn dir(&self, host: &str) -> std::path::PathBuf {
        self.state.path().join(host)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_not_removed_before_the_record_that_lets_them_go_is_safe() {
    let world = World::new().await;
    let here = world.host("here").await;
    let (small, large) = (noise(1, 5_000), noise(2, 3 * MIB));
    for (n, bytes) in [&small, &large].into_iter().enumerate() {
        for what in ["unlinked", "replaced", "emptied", "rewritten", "committed", "open"] {
            here.put(ROOT, &format!("{what}-{n}"), bytes).await;
        }
        here.put(ROOT, &format!("new-{n}"), b"new").await;
    }
    here.tree.sync().unwrap();
    let on_disk = OnDisk::of(&world.dir("here"));
    for n in 0..2 {
        here.tree.unlink(ROOT, &name(&format!("unlinked-{n}"))).await.unwrap();
        here.tree.rename(ROOT, &name(&format!("new-{n}")), ROOT, &name(&format!("replaced-{n}")), false).await.unwrap();
        here.put(ROOT, &format!("emptied-{n}"), b"").await;
        here.put(ROOT, &format!("rewritten-{n}"), &noise(3, 100_000)).await;
        let open = here.tree.lookup(ROOT, &name(&format!("open-{n}"))).await.unwrap().ino;
        here.tree.open_file(open).await.unwrap();
        here.tree.unlink(ROOT, &name(&format!("open-{n}"))).await.unwrap();
        here.tree.release(open).await.unwrap();
    }
    drop(here);
    on_disk.cuts_power(&world.dir("here"));
    let again = world.host("here").await;
    for (n, bytes) in [&small, &large].into_iter().enumerate() {
        for what in ["unlinked", "replaced", "emptied", "rewritten", "committed", "open"] {
            let ino = again.tree.lookup(ROOT, &name(&format!("{what}-{n}"))).await.unwrap().ino;
            assert!(again.read(ino, 0..u64::MAX).await == *bytes, "{what}-{n}");
        }
    }
    again.commit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_after_a_commit_finds_the_staged_bytes_or_the_record_of_the_bundle() {
    let world = World::new().await;
    let here = world.host("here").await;
    let (small, large) = (noise(1, 5_000), noise(2, 3 * MIB));
    here.put(ROOT, "small", &small).await;
    here.put(ROOT, "large", &large).await;
    here.tree.sync().unwrap();
    let on_disk = OnDisk::of(&world.dir("here"));
    let sealed = here.tree.seal().await.unwrap();
    let mut stored = Vec::new();
    for file in ["small", "large"] {
        let ino = here.tree.lookup(ROOT, &name(file)).await.unwrap().ino;
        let inode = sealed.inode(ino).await.unwrap();
        let body = crate::model::entry::FileBody {
            size: inode.size(),
            content: crate::model::entry::Content::Inline(Bytes::new()),
            b3sum: None,
        };
        stored.push((ino, inode.version, body));
    }
    // The files are marked as stored, with the instant that keeps them alive gone or not.
    here.tree.mark_stored(&stored[..1]).await.unwrap();
    drop(sealed);
    here.tree.mark_stored(&stored[1..]).await.unwrap();
    drop(here);
    on_disk.cuts_power(&world.dir("here"));
    let again = world.host("here").await;
    for (file, bytes) in [("small", &small), ("large", &large)] {
        let ino = again.tree.lookup(ROOT, &name(file)).await.unwrap().ino;
        assert!(again.read(ino, 0..u64::MAX).await == *bytes, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_let_go_gives_its_room_back() {
    let world = World::new().await;
    let here = world.host("here").await;
    here.put(ROOT, "large", &noise(2, MIB)).await;
    let data_files = || {
        let found = std::fs::read_dir(world.dir("here").join("data")).unwrap();
        found.map(|hh| std::fs::read_dir(hh.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    assert_eq!(data_files(), 1);
    here.committer.upload_in_background().unwrap();
    here.tree.unlink(ROOT, &name("large")).await.unwrap();
    let start = std::time::Instant::now();
    while data_files() > 0 {
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "within a second or so");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_after_a_power_cut_is_what_is_shown_before_it() {
    let world = World::new().await;
    let here = world.host("here").await;
    let old = noise(1, 3 * MIB);
    let ino = here.put(ROOT, "f", &old).await;
    here.committer.upload_now(ino).await;
    here.tree.sync().unwrap();
    let on_disk = OnDisk::of(&world.dir("here"));
    // These bytes reach the disk, their record does not.
    here.tree.write(ino, MIB as u64 + 7, b"newer", false, false).await.unwrap();
    drop(here);
    on_disk.cuts_power(&world.dir("here"));
    let again = world.host("here").await;
    let shown = again.read(ino, 0..u64::MAX).await;
    assert!(shown[..MIB] == old[..MIB] && shown[2 * MIB..] == old[2 * MIB..]);
    let bundle = again.commit().await.bundle;
    assert!(world.bytes(bundle, "f").await == shown, "the bundle has what staging showed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_write_left_behind_the_end_does_not_come_back() {
    let world = World::new().await;
    let here = world.host("here").await;
    let old = noise(1, 100_000);
    for (file, grow) in [("written", true), ("grown", false)] {
        let ino = here.put(ROOT, file, &old).await;
        let data = std::fs::read_dir(world.dir("here").join("data")).unwrap();
        let newest =
            data.flat_map(|hh| std::fs::read_dir(hh.unwrap().path()).unwrap()).map(|found| found.unwrap().path());
        let newest =
            newest.max_by_key(|path| u64::from_str_radix(path.file_name().unwrap().to_str().unwrap(), 16).unwrap());
        // As a write leaves it that found no room in the middle.
        let file = std::fs::File::options().write(true).open(newest.unwrap()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(2, 50_000), 110_000).unwrap();
        if grow {
            here.tree.write(ino, 200_000, b"end", false, false).await.unwrap();
        } else {
            let size = Some(200_003);
            here.tree.setattr(ino, SetAttr { size, ..SetAttr::default() }).await.unwrap();
        }
        let found = here.read(ino, 0..u64::MAX).await;
        assert_eq!(found.len(), 200_003);
        assert!(found[..100_000] == old && found[100_000..200_000].iter().all(|byte| *byte == 0));
    }
}

// ---- damaged state directories -------------------------------------------------------------------------------------------

/// The data files of a host, oldest first.
fn data_files(world: &World, host: &str) -> Vec<std::path::PathBuf> {
    let directories = std::fs::read_dir(world.dir(host).join("data")).unwrap();
    let files = directories.flat_map(|hh| std::fs::read_dir(hh.unwrap().path()).unwrap());
    let mut files: Vec<_> = files.map(|found| found.unwrap().path()).collect();
    files.sort_by_key(|path| u64::from_str_radix(path.file_name().unwrap().to_str().unwrap(), 16).unwrap());
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_gone_are_an_error_that_names_the_file_and_the_rest_is_readable() {
    let world = World::new().await;
    let here = world.host("here").await;
    let dir = here.mkdir(ROOT, "dir").await;
    let large = here.put(dir, "large", &noise(1, 100_000)).await;
    let small = here.put(ROOT, "small", &noise(2, 5_000)).await;
    here.tree.sync().unwrap();
    drop(here);
    let lost = data_files(&world, "here").pop().unwrap();
    let kept = world.state.path().join("kept");
    std::fs::rename(&lost, &kept).unwrap();
    let again = world.host("here").await;
    let found = again.tree.recovered().unwrap().clone();
    assert_eq!((found.files, found.gone, found.unsynced), (2, 1, 0));
    let refused = again.tree.read(large, 0..10).await.unwrap_err().to_string();
    assert!(refused.contains("dir/large") && refused.contains(lost.to_str().unwrap()), "{refused}");
    assert!(again.read(small, 0..u64::MAX).await == noise(2, 5_000));
    let refused = again.committer.commit(CommitRequest::default()).await.unwrap_err().to_string();
    assert!(refused.contains("dir/large"), "{refused}");
    std::fs::rename(&kept, &lost).unwrap();
    let bundle = again.commit().await.bundle;
    assert!(world.bytes(bundle, "dir/large").await == noise(1, 100_000), "put back, it is whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_were_never_synced_and_are_gone_leave_the_file_as_it_was() {
    let world = World::new().await;
    let here = world.host("here").await;
    here.put(ROOT, "of-the-base", &noise(1, 3 * MIB)).await;
    here.commit().await;
    drop(here);
    let here = world.host("here").await;
    here.put(ROOT, "synced", &noise(2, 100_000)).await;
    here.tree.sync().unwrap();
    let base = here.tree.lookup(ROOT, &name("of-the-base")).await.unwrap().ino;
    // A whole chunk: nothing of the base has to be copied, so nothing is synced.
    here.tree.write(base, MIB as u64, &noise(3, MIB), false, false).await.unwrap();
    here.put(ROOT, "new", &noise(4, 100_000)).await;
    drop(here);
    // The power is cut: the records are on the disk, these bytes are not.
    data_files(&world, "here")[1..].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let again = world.host("here").await;
    assert_eq!((again.tree.recovered().unwrap().gone, again.tree.recovered().unwrap().unsynced), (0, 2));
    let ino = |file: &'static str| async { again.tree.lookup(ROOT, &name(file)).await.unwrap().ino };
    assert!(again.read(ino("of-the-base").await, 0..u64::MAX).await == noise(1, 3 * MIB));
    assert!(again.read(ino("synced").await, 0..u64::MAX).await == noise(2, 100_000));
    assert!(again.read(ino("new").await, 0..u64::MAX).await.is_empty());
    let bundle = again.commit().await.bundle;
    assert!(world.bytes(bundle, "of-the-base").await == noise(1, 3 * MIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_of_which_a_part_is_gone_is_refused_and_left_alone() {
    let world = World::new().await;
    let here = world.host("here").await;
    let large = here.put(ROOT, "large", &noise(1, 100_000)).await;
    here.tree.sync().unwrap();
    drop(here);
    let dir = world.dir("here");
    let aside = world.state.path().join("aside");
    for (part, said) in [("db", "`db`"), ("db/CURRENT", "db/CURRENT"), ("version", "`version`")] {
        std::fs::rename(dir.join(part), &aside).unwrap();
        let refused = TreeLock::take(&dir).err().expect("refused").to_string();
        assert!(refused.contains(said) && refused.contains(dir.to_str().unwrap()), "{refused}");
        assert_eq!(refused.lines().count(), 1);
        std::fs::rename(&aside, dir.join(part)).unwrap();
    }
    let again = world.host("here").await;
    assert!(again.read(large, 0..u64::MAX).await == noise(1, 100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synced_small_file_stays_safe_although_others_are_written_behind_it() {
    let world = World::new().await;
    let here = world.host("here").await;
    for file in ["cut", "changed"] {
        here.put(ROOT, file, &noise(1, 3_000)).await;
    }
    here.tree.sync().unwrap();
    // The same segment of the log has bytes now that are not on the disk.
    here.put(ROOT, "other", &noise(2, 3_000)).await;
    let ino = |file: &'static str| async { here.tree.lookup(ROOT, &name(file)).await.unwrap().ino };
    let (cut, changed) = (ino("cut").await, ino("changed").await);
    here.tree.setattr(cut, SetAttr { size: Some(1_500), ..SetAttr::default() }).await.unwrap();
    here.tree.write(changed, 10, &noise(3, 2_900), false, false).await.unwrap();
    for file in [cut, changed] {
        let InodeBody::File(data) = here.tree.inode(file).await.unwrap().body else { panic!("a file") };
        assert!(
            !here.tree.files().is_unsynced(data.local.unwrap()),
            "a copy of safe bytes is safe before its record is"
        );
    }
}
