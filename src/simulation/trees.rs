//! Writers with a real staging tree and the real commit code, on a disk that survives their deaths.
//!
//! A tree is changed while it is committed. What each bundle may hold is therefore a window: the states that the tree had
//! from the moment its commit was asked for to the moment it was answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;

use super::ledger::{Committed, Named};
use super::world::{Actor, Life, Rng, Shared, Work};
use crate::content::reader::ContentReader;
use crate::local::db::DatabaseMemory;
use crate::model::chunk::ChunkSize;
use crate::model::entry::{Body, Entry};
use crate::model::id::RepoId;
use crate::model::name::FileName;
use crate::model::path::TreePath;
use crate::snapshot::tree::{RangeCache, Snapshot};
use crate::staging::commit::{CommitRequest, Committer};
use crate::staging::inode::{FileData, InodeBody, ROOT};
use crate::staging::tree::{Caller, SetAttr, StagingError, Tree, TreeConfig, TreeLock};
use crate::store::{Store, refs};

const CALLER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };
const CACHE_BYTES: u64 = 4 << 20;
/// Names that a directory may hold.
const NAMES: usize = 6;
/// What is told of a copy that moved no bytes.
pub const NAMES_CONTENT: &str = "names the content of";
/// Directories that a tree may hold beside its root.
const DIRECTORIES: usize = 2;

/// A tree as a user sees it: files by their paths, and directories, whose paths end with a `/`.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The smallest there are: a file of a few chunks is written in no time.
fn chunk() -> ChunkSize {
    ChunkSize::from_log2(16).expect("the smallest")
}

/// What the tree held, state by state; known to nobody but the simulation.
#[derive(Default)]
struct States(Vec<Files>);

impl States {
    fn now(&self) -> Files {
        self.0.last().cloned().unwrap_or_default()
    }

    fn change(&mut self, change: impl FnOnce(&mut Files)) {
        let mut next = self.now();
        change(&mut next);
        self.0.push(next);
    }
}

#[derive(Clone)]
struct Opened {
    tree: Arc<Tree>,
    committer: Arc<Committer>,
}

/// See the module.
pub struct TreeHost {
    host: Arc<HostState>,
    left: usize,
}

struct HostState {
    shared: Arc<Shared>,
    name: String,
    repo: RepoId,
    dir: tempfile::TempDir,
    memory: DatabaseMemory,
    states: Mutex<States>,
    opened: Mutex<Option<Opened>>,
    is_settled: Mutex<bool>,
}

/// Local disks that are memory where there is such a place: a seed's disk is written for milliseconds.
fn disk() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("datamon-simulation.");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).unwrap()
}

impl TreeHost {
    pub fn new(shared: &Arc<Shared>, number: usize, repo: RepoId, works: usize) -> Self {
        let host = HostState {
            shared: shared.clone(),
            name: format!("tree{number}"),
            repo,
            dir: disk(),
            memory: DatabaseMemory::new(4 << 20),
            states: Mutex::default(),
            opened: Mutex::default(),
            is_settled: Mutex::default(),
        };
        Self { host: Arc::new(host), left: works }
    }

    fn work(&self, life: &Life, rng: &mut Rng, what: What) -> Work {
        let (host, store, rng) = (self.host.clone(), life.store.clone(), Rng::new(rng.next()));
        let work = async move {
            let ended = match what {
                What::Open => host.open(&store, rng).await,
                What::Change => {
                    let mut rng = rng;
                    let copies = rng.chance(15);
                    if copies { host.copy(&store, rng).await } else { host.change(rng).await }
                }
                What::Commit => {
                    let mut rng = rng;
                    let fails = rng.chance(10);
                    host.commit(rng, fails).await
                }
                What::Follow => host.follow(&store).await,
                What::Abandon => host.abandon().await,
                What::Finish => host.finish(&store, rng).await,
            };
            ended.unwrap_or_else(|why| why)
        };
        (format!("{what:?}").to_lowercase(), work.boxed())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Open,
    Change,
    Commit,
    Follow,
    Abandon,
    Finish,
}

impl Actor for TreeHost {
    fn next(&mut self, life: &Life, rng: &mut Rng, running: &[String]) -> Option<Work> {
        if self.left == 0 {
            return None;
        }
        let is_open = self.host.opened.lock().unwrap().is_some();
        let what = match (is_open, running) {
            (false, []) => What::Open,
            (false, _) => return None,
            (true, []) => match rng.below(12) {
                0..=6 => What::Change,
                7..=9 => What::Commit,
                10 => What::Follow,
                _ => What::Abandon,
            },
            // Writers go on while their tree is committed.
            (true, [one]) if one == "commit" => What::Change,
            (true, _) => return None,
        };
        self.left -= 1;
        Some(self.work(life, rng, what))
    }

    fn rest(&mut self, life: &Life, rng: &mut Rng) -> Option<Work> {
        let is_settled = *self.host.is_settled.lock().unwrap();
        (!is_settled).then(|| self.work(life, rng, What::Finish))
    }

    fn died(&mut self) {
        *self.host.opened.lock().unwrap() = None;
    }
}

fn said(why: impl std::fmt::Display) -> String {
    why.to_string()
}

impl HostState {
    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap()
    }

    fn opened(&self) -> Result<Opened, String> {
        self.opened.lock().unwrap().clone().ok_or_else(|| "not open".to_owned())
    }

    /// Opens the tree as a mount does; a commit that an earlier life had sealed is finished.
    async fn open(&self, store: &Arc<Store>, mut rng: Rng) -> Result<String, String> {
        if self.opened().is_ok() {
            return Ok("is open".to_owned());
        }
        let reader = ContentReader::new(store.clone(), CACHE_BYTES);
        let ranges = RangeCache::new(CACHE_BYTES);
        let lock = TreeLock::take(self.dir.path()).map_err(|why| {
            self.shared.ledger().violate(format!("{}: the dead hold the tree: {why}", self.name));
            said(why)
        })?;
        let dirty = lock.dirty_base(&self.memory).map_err(said)?;
        let base = match &dirty {
            Some(base) => base.as_ref().map(|text| text.parse().unwrap()),
            None => refs::load(store, self.repo).await.map_err(said)?.and_then(|link| link.record.latest),
        };
        let snapshot = match base {
            Some(base) => {
                let opened = Snapshot::open(reader.clone(), ranges.clone(), self.repo, base).await;
                Some(opened.map_err(said)?)
            }
            None => None,
        };
        if dirty.is_none() {
            let files = match base {
                Some(base) => read_bundle(&self.shared, (self.repo, base)).await?,
                None => Files::new(),
            };
            self.states().0.push(files);
        }
        let config = TreeConfig {
            dir: self.dir.path().to_owned(),
            chunk: chunk(),
            owner: (0, 0),
            acl: true,
            reader: reader.clone(),
            memory: self.memory.clone(),
            clock: store.clock.clone(),
            entropy: store.entropy.clone(),
        };
        let tree = Tree::open(config, snapshot, lock).map_err(said)?;
        let none = Arc::new(crate::faults::Faults::none());
        let (tree_, store_) = (tree.clone(), store.clone());
        self.shared.ledger().committing.insert(self.name.clone());
        let opening = Committer::open(tree_, store_, reader, ranges, self.repo, self.name.clone(), none);
        let committer = opening.await.map_err(said)?;
        if let Some(bundle) = committer.finished() {
            self.shared.ledger().committed.push(Committed {
                who: self.name.clone(),
                named: (self.repo, bundle),
                packs: None,
            });
        }
        // A pack of every block, so that several are on their way at once.
        committer.set_pack_bytes(1);
        if rng.chance(50) {
            committer.upload_in_background().map_err(said)?;
        }
        *self.opened.lock().unwrap() = Some(Opened { tree, committer });
        Ok(format!("on {base:?}, dirty: {}", dirty.is_some()))
    }

    /// One change that a user makes.
    async fn change(&self, mut rng: Rng) -> Result<String, String> {
        let Opened { tree, committer } = self.opened()?;
        if rng.chance(15) {
            return self.change_directory(&tree, rng).await;
        }
        let file = file_name(&format!("f{}", rng.below(NAMES)));
        // In a directory, if there is that one.
        let dir = directory_name(rng.below(DIRECTORIES * 2));
        let (parent, path) = match look(&tree, ROOT, &dir).await? {
            Some(ino) => (ino, format!("{dir}/")),
            None => (ROOT, String::new()),
        };
        let name = format!("{path}{file}");
        let found = look(&tree, parent, &file).await?;
        let bytes: Vec<u8> = {
            // Some contents come again, in other files and on other hosts.
            let mut content = if rng.chance(30) { Rng::new(7) } else { Rng::new(rng.next()) };
            // Small ones share blocks and packs; each larger one has a pack, and more than four wait for each other.
            let len = match rng.below(10) {
                0..5 => 300 + rng.below(30_000),
                5..9 => 66_000 + rng.below(4_000),
                _ => 200_000 + rng.below(60_000),
            };
            std::iter::repeat_with(|| content.next() as u8).take(len).collect()
        };
        let Some(ino) = found else {
            let body = InodeBody::File(FileData::empty());
            let made = tree.create(parent, &file, 0o644, body, CALLER).await.map_err(said)?;
            self.states().change(|files| drop(files.insert(name.clone(), Vec::new())));
            tree.write(made.ino, 0, &bytes, false, false).await.map_err(said)?;
            let len = bytes.len();
            self.states().change(|files| drop(files.insert(name.clone(), bytes)));
            committer.closed(made.ino);
            return Ok(format!("{name}: {len} new bytes"));
        };
        if rng.chance(25) {
            tree.unlink(parent, &file).await.map_err(said)?;
            self.states().change(|files| drop(files.remove(&name)));
            return Ok(format!("{name} removed"));
        }
        let size = self.states().now().get(&name).map_or(0, Vec::len);
        let at = rng.below(size + 1);
        tree.write(ino, at as u64, &bytes, false, false).await.map_err(said)?;
        let len = bytes.len();
        self.states().change(|files| {
            let content = files.entry(name.clone()).or_default();
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(&bytes);
        });
        committer.closed(ino);
        Ok(format!("{name}: {len} bytes at {at}"))
    }

    /// Copies a file of a bundle of the repo, whichever, into a new file, without moving its bytes.
    async fn copy(&self, store: &Arc<Store>, mut rng: Rng) -> Result<String, String> {
        let Opened { tree, committer } = self.opened()?;
        let record = refs::load(store, self.repo).await.map_err(said)?.map(|link| link.record).unwrap_or_default();
        let bundles: Vec<_> = record.recent.iter().map(|summary| summary.bundle).collect();
        let Some(bundle) = rng.pick(&bundles).copied() else { return Ok("nothing to copy from".to_owned()) };
        let (reader, ranges) = (ContentReader::new(store.clone(), CACHE_BYTES), RangeCache::new(CACHE_BYTES));
        let snapshot = Snapshot::open(reader, ranges, self.repo, bundle).await.map_err(said)?;
        let files = snapshot.list(&TreePath::root(), None, 1_000).await.map_err(said)?;
        let Some((from, _, Entry { body: Body::File(body), .. })) = rng.pick(&files).cloned() else {
            return Ok("no file".to_owned());
        };
        let name = file_name(&format!("c{}", rng.below(NAMES)));
        let ino = match look(&tree, ROOT, &name).await? {
            Some(ino) => ino,
            None => {
                let body = InodeBody::File(FileData::empty());
                tree.create(ROOT, &name, 0o644, body, CALLER).await.map_err(said)?.ino
            }
        };
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        tree.setattr(ino, cut).await.map_err(said)?;
        self.states().change(|files| drop(files.insert(name.to_string(), Vec::new())));
        // Before: a commit may see the change as soon as it is there.
        let direct = ContentReader::new(self.shared.direct.clone(), CACHE_BYTES);
        let bytes = direct.read(&body, chunk(), 0..body.size).await.map_err(said)?.to_vec();
        let shared = committer.share_of_bundle(&snapshot, &body, ino, 0..body.size, false).await.map_err(said)?;
        if shared.is_none() {
            return Ok(format!("{name}: {bundle}/{from} cannot be named now"));
        }
        self.states().change(|files| drop(files.insert(name.to_string(), bytes)));
        Ok(format!("{name} {NAMES_CONTENT} {bundle}/{from}"))
    }

    /// Makes, moves or removes a directory.
    async fn change_directory(&self, tree: &Tree, mut rng: Rng) -> Result<String, String> {
        let number = rng.below(DIRECTORIES);
        let (name, other) = (directory_name(number), directory_name((number + 1) % DIRECTORIES));
        let (key, into) = (format!("{name}/"), format!("{other}/"));
        if look(tree, ROOT, &name).await?.is_none() {
            tree.create(ROOT, &name, 0o755, InodeBody::Directory, CALLER).await.map_err(said)?;
            self.states().change(|files| drop(files.insert(key.clone(), Vec::new())));
            return Ok(format!("{key} made"));
        }
        if rng.chance(60) && look(tree, ROOT, &other).await?.is_none() {
            tree.rename(ROOT, &name, ROOT, &other, true).await.map_err(said)?;
            self.states().change(|files| {
                let moved = |path: String| path.strip_prefix(&key).map_or(path.clone(), |rest| format!("{into}{rest}"));
                *files = std::mem::take(files).into_iter().map(|(path, bytes)| (moved(path), bytes)).collect();
            });
            return Ok(format!("{key} is now {into}"));
        }
        match tree.rmdir(ROOT, &name).await {
            Ok(()) => {
                self.states().change(|files| drop(files.remove(&key)));
                Ok(format!("{key} removed"))
            }
            Err(StagingError::NotEmpty) => Ok(format!("{key} is not empty")),
            Err(why) => Err(said(why)),
        }
    }

    async fn commit(&self, mut rng: Rng, fail_if_diverged: bool) -> Result<String, String> {
        let Opened { committer, .. } = self.opened()?;
        let from = self.states().0.len() - 1;
        let labels = if rng.chance(20) { vec!["v1".parse().unwrap()] } else { Vec::new() };
        let request = CommitRequest { message: "m".into(), labels, fail_if_diverged, ..CommitRequest::default() };
        self.shared.ledger().committing.insert(self.name.clone());
        let report = committer.commit(request).await.map_err(said)?;
        let named = (self.repo, report.bundle);
        if report.changed {
            self.shared.ledger().committed.push(Committed { who: self.name.clone(), named, packs: None });
        }
        let found = read_bundle(&self.shared, named).await;
        let window = self.states().0[from..].to_vec();
        match found {
            Ok(found) if window.contains(&found) => {}
            Ok(found) => {
                let what =
                    format!("{}: {} holds none of what the tree held: {}", self.name, report.bundle, shown(&found));
                self.shared.ledger().violate(what);
            }
            // A bundle that nothing was added to may have been removed by others meanwhile.
            Err(_) if !report.changed => {}
            Err(why) => self.shared.ledger().violate(format!("{}: {} is not whole: {why}", self.name, report.bundle)),
        }
        Ok(format!("{}, changed: {}, diverged: {}", report.bundle, report.changed, report.diverged))
    }

    /// A clean tree goes over to `latest`.
    async fn follow(&self, store: &Arc<Store>) -> Result<String, String> {
        let Opened { tree, committer } = self.opened()?;
        let parent = committer.parent().map(|parent| parent.descriptor().bundle);
        let latest = refs::load(store, self.repo).await.map_err(said)?.and_then(|link| link.record.latest);
        let Some(latest) = latest.filter(|latest| Some(*latest) != parent && !tree.is_dirty()) else {
            return Ok("stays".to_owned());
        };
        let (reader, ranges) = (ContentReader::new(store.clone(), CACHE_BYTES), RangeCache::new(CACHE_BYTES));
        let snapshot = Snapshot::open(reader, ranges, self.repo, latest).await.map_err(said)?;
        let files = read_bundle(&self.shared, (self.repo, latest)).await?;
        if committer.follow(parent, snapshot).await.map_err(said)? {
            self.states().0.push(files);
            return Ok(format!("on {latest}"));
        }
        Ok("stays".to_owned())
    }

    /// Gives up the intent, as a discard does that keeps its tree after all.
    async fn abandon(&self) -> Result<String, String> {
        self.opened()?.committer.abandon().await.map_err(said)?;
        Ok("gave up its intent".to_owned())
    }

    /// Commits what is left, as somebody does who tries again a moment after a refusal: the same one answers until then.
    async fn finish(&self, store: &Arc<Store>, rng: Rng) -> Result<String, String> {
        let mut said = String::new();
        for _ in 0..20 {
            let outcome = match self.open(store, rng.clone()).await {
                Ok(_) if self.opened()?.tree.is_dirty() => self.commit(rng.clone(), false).await,
                Ok(_) => {
                    *self.is_settled.lock().unwrap() = true;
                    return Ok("clean".to_owned());
                }
                Err(why) => Err(why),
            };
            said = outcome.unwrap_or_else(|why| why);
            tokio::time::sleep(Duration::from_secs(1)).await;
            // What a removed base held is gone, and was given up by who removed it.
            if said.contains("was purged") || said.contains("not in the store") || said.contains("no such bundle") {
                *self.is_settled.lock().unwrap() = true;
                return Ok(said);
            }
        }
        self.shared.ledger().violate(format!("{}: cannot commit at rest: {said}", self.name));
        *self.is_settled.lock().unwrap() = true;
        Ok(said)
    }
}

fn shown(files: &Files) -> String {
    files.iter().map(|(name, bytes)| format!("{name} ({} bytes) ", bytes.len())).collect()
}

/// All of a bundle, read past the network.
pub async fn read_bundle(shared: &Shared, (repo, bundle): Named) -> Result<Files, String> {
    let reader = ContentReader::new(shared.direct.clone(), CACHE_BYTES);
    let snapshot = Snapshot::open(reader.clone(), RangeCache::new(CACHE_BYTES), repo, bundle).await.map_err(said)?;
    let mut files = Files::new();
    let mut directories = vec![String::new()];
    while let Some(path) = directories.pop() {
        let directory = TreePath::parse(path.trim_end_matches('/').as_bytes()).map_err(said)?;
        for (name, _, entry) in snapshot.list(&directory, None, 1_000).await.map_err(said)? {
            let name = format!("{path}{name}");
            match &entry.body {
                Body::File(body) => {
                    let read = reader.read(body, snapshot.descriptor().chunk_size, 0..body.size);
                    files.insert(name, read.await.map_err(said)?.to_vec());
                }
                Body::Directory { .. } => {
                    files.insert(format!("{name}/"), Vec::new());
                    directories.push(format!("{name}/"));
                }
                _ => return Err("neither file nor directory".to_owned()),
            }
        }
    }
    Ok(files)
}

fn directory_name(number: usize) -> FileName {
    file_name(&format!("d{number}"))
}

fn file_name(name: &str) -> FileName {
    FileName::new(name.as_bytes().to_vec()).unwrap()
}

async fn look(tree: &Tree, parent: u64, name: &FileName) -> Result<Option<u64>, String> {
    match tree.lookup(parent, name).await {
        Ok(found) => Ok(Some(found.ino)),
        Err(StagingError::NotFound) => Ok(None),
        Err(why) => Err(said(why)),
    }
}
