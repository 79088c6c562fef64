//! One file against a vector of bytes: whatever is done to it, in whatever order, it holds what the vector holds; so does
//! a sealed instant, the next life of the process, and the bundle.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::commit::CommitRequest;
use super::inode::{InodeBody, ROOT};
use super::seal::Sealed;
use super::sharing::used_packs;
use super::tests::{Host, World, name};
use super::tree::SetAttr;
use crate::model::chunk::{ChunkIndex, ChunkLayout, ChunkSize};
use crate::model::entry::{Body, Region};
use crate::snapshot::Snapshot;

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: u32,
        len: u32,
        seed: u8,
    },
    Append {
        len: u32,
        seed: u8,
    },
    Cut {
        size: u32,
    },
    Punch {
        at: u32,
        len: u32,
    },
    /// Copies from a file of an older bundle, or from the one that lies beside it in the tree.
    Copy {
        from: usize,
        is_staged: bool,
        chunk: u32,
        len: u32,
    },
    Sync,
    Seal,
    Upload,
    Commit,
    NextLife,
}

/// Lengths of the files that are copied from; the third has a hole in front, the last one in its middle.
const SOURCES: [u32; 5] = [200, 66_000, 2_097_152, 1_048_576, 3_000_000];

fn source(number: usize) -> Vec<u8> {
    let mut bytes = content(255, SOURCES[number]);
    match number {
        2 => bytes[..1 << 20].fill(0),
        4 => bytes[1 << 20..2 << 20].fill(0),
        _ => {}
    }
    bytes
}

fn any_size() -> impl Strategy<Value = u32> {
    // Around the edges: inline, small, one chunk, several.
    prop_oneof![0u32..600, 65_000u32..66_000, 1_048_000u32..1_049_000, 0u32..2_500_000]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any_size(), any_size(), any::<u8>()).prop_map(|(at, len, seed)| Step::Write { at, len, seed }),
        3 => (any_size(), any::<u8>()).prop_map(|(len, seed)| Step::Append { len, seed }),
        3 => any_size().prop_map(|size| Step::Cut { size }),
        2 => (any_size(), any_size()).prop_map(|(at, len)| Step::Punch { at, len }),
        4 => (0..SOURCES.len(), any::<bool>(), 0u32..3, prop_oneof![Just(u32::MAX), any_size()])
            .prop_map(|(from, is_staged, chunk, len)| Step::Copy { from, is_staged, chunk, len }),
        1 => Just(Step::Sync),
        2 => Just(Step::Seal),
        2 => Just(Step::Upload),
        2 => Just(Step::Commit),
        1 => Just(Step::NextLife),
    ]
}

fn content(seed: u8, len: u32) -> Vec<u8> {
    // A seed of 0 gives zeros: holes.
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 & seed).collect()
}

fn overlay(model: &mut Vec<u8>, at: usize, data: &[u8]) {
    if !data.is_empty() {
        model.resize(model.len().max(at + data.len()), 0);
        model[at..at + data.len()].copy_from_slice(data);
    }
}

struct Run {
    world: World,
    host: Host,
    ino: u64,
    model: Vec<u8>,
    sealed: Option<(Sealed, Vec<u8>)>,
    /// Neither the tree's base nor what that followed.
    old: Arc<Snapshot>,
    /// How many copies moved no bytes.
    shared: usize,
}

impl Run {
    async fn new() -> Self {
        let world = World::new().await;
        let before = world.host("before").await;
        for number in 0..SOURCES.len() {
            before.put(ROOT, &format!("g{number}"), &source(number)).await;
        }
        let old = before.commit().await.bundle;
        for step in ["a", "b"] {
            before.put(ROOT, "g0", step.as_bytes()).await;
            before.commit().await;
        }
        let host = world.host("one").await;
        let ino = host.put(ROOT, "f", b"").await;
        let old = world.snapshot(old).await;
        Self { world, host, ino, model: Vec::new(), sealed: None, old, shared: 0 }
    }

    /// As the kernel does: asks for it, and copies bytes where the answer is no.
    async fn copy(&mut self, from: usize, is_staged: bool, range: std::ops::Range<u64>) {
        let (tree, file) = (&self.host.tree, name(&format!("g{from}")));
        let mut bytes = source(from);
        let shared = if is_staged {
            let ino = tree.lookup(ROOT, &file).await.unwrap().ino;
            bytes = tree.read(ino, 0..u64::MAX).await.unwrap().to_vec();
            tree.share_of_staged(ino, self.ino, range.clone(), false).await.unwrap()
        } else {
            let (_, entry) = self.old.lookup(&Default::default(), &file).await.unwrap().unwrap();
            let Body::File(body) = entry.body else { panic!("a file") };
            let committer = &self.host.committer;
            committer.share_of_bundle(&self.old, &body, self.ino, range.clone(), false).await.unwrap()
        };
        let end = range.end.min(bytes.len() as u64);
        if range.start >= end {
            return assert_eq!(shared, None);
        }
        let bytes = &bytes[range.start as usize..end as usize];
        match shared {
            Some(count) => {
                self.shared += 1;
                overlay(&mut self.model, range.start as usize, &bytes[..count as usize]);
            }
            None => {
                tree.write(self.ino, range.start, bytes, false, false).await.unwrap();
                overlay(&mut self.model, range.start as usize, bytes);
            }
        }
    }

    async fn step(mut self, step: &Step) -> Self {
        let tree = &self.host.tree;
        match *step {
            Step::Write { at, len, seed } => {
                let data = content(seed, len);
                match tree.try_write(self.ino, at.into(), &data, false, false) {
                    Some(written) => drop(written.unwrap()),
                    None => drop(tree.write(self.ino, at.into(), &data, false, false).await.unwrap()),
                }
                overlay(&mut self.model, at as usize, &data);
            }
            Step::Append { len, seed } => {
                let data = content(seed, len);
                tree.write(self.ino, 7, &data, true, false).await.unwrap();
                let end = self.model.len();
                overlay(&mut self.model, end, &data);
            }
            Step::Cut { size } => {
                let set = SetAttr { size: Some(size.into()), ..SetAttr::default() };
                tree.setattr(self.ino, set).await.unwrap();
                self.model.resize(size as usize, 0);
            }
            Step::Punch { at, len } => {
                tree.punch(self.ino, at.into()..u64::from(at) + u64::from(len)).await.unwrap();
                let end = (at as usize + len as usize).min(self.model.len());
                if (at as usize) < end {
                    self.model[at as usize..end].fill(0);
                }
            }
            Step::Copy { from, is_staged, chunk, len } => {
                let start = u64::from(chunk) << 20;
                self.copy(from, is_staged, start..start + u64::from(len)).await;
            }
            Step::Sync => tree.sync().unwrap(),
            Step::Seal => {
                self.check_sealed().await;
                self.sealed = None;
                self.sealed = Some((tree.seal().await.unwrap(), self.model.clone()));
            }
            Step::Upload => self.host.committer.upload_now(self.ino).await,
            Step::Commit => {
                self.check_sealed().await;
                self.sealed = None;
                self.host.committer.commit(CommitRequest::default()).await.unwrap();
                self.check_bundle().await;
            }
            Step::NextLife => {
                self.check_sealed().await;
                self.sealed = None;
                drop(self.host);
                self.host = self.world.host("one").await;
                self.ino = self.host.tree.lookup(ROOT, &name("f")).await.unwrap().ino;
            }
        }
        self
    }

    async fn check(&self) {
        let size = self.host.tree.getattr(self.ino).await.unwrap().size;
        assert_eq!(size, self.model.len() as u64);
        let staged = self.host.tree.staged();
        assert!(staged.files <= 1 && staged.bytes <= size + (1 << 20), "{staged:?} of {size}");
        let found = self.host.tree.read(self.ino, 0..size + 9).await.unwrap();
        assert!(found == self.model, "the file is not what was written");
        self.check_holes().await;
        self.check_sealed().await;
    }

    /// Holes and data follow each other from the start to the end, and where a hole is said to be there are zeros.
    async fn check_holes(&self) {
        let (tree, size) = (&self.host.tree, self.model.len() as u64);
        let mut at = 0;
        while at < size {
            let data = tree.seek(self.ino, at, Region::Data).await.unwrap().unwrap_or(size);
            assert!(at <= data && self.model[at as usize..data as usize].iter().all(|byte| *byte == 0), "{at}..{data}");
            let Some(hole) = tree.seek(self.ino, data, Region::Hole).await.unwrap() else { break };
            assert!(hole > data && hole <= size, "data from {data} to {hole} of {size}");
            at = hole;
        }
        assert_eq!(tree.seek(self.ino, size, Region::Hole).await.unwrap(), None);
        let attr = tree.getattr(self.ino).await.unwrap();
        assert!(attr.blocks > 0 || self.model.iter().all(|byte| *byte == 0), "no blocks, and data");
        assert!(attr.blocks <= size.div_ceil(512));
    }

    async fn check_sealed(&self) {
        let Some((sealed, model)) = &self.sealed else { return };
        let InodeBody::File(file) = sealed.inode(self.ino).await.unwrap().body else { panic!("a file") };
        assert_eq!(file.size, model.len() as u64);
        let layout = ChunkLayout::new(file.size, ChunkSize::DEFAULT);
        for index in (0..layout.chunks()).filter(|index| file.is_local(*index)) {
            let span = layout.span(ChunkIndex(index));
            let Some(place) = file.local else { continue };
            let found = sealed.data().read_chunk(place, index, (span.end - span.start) as usize).unwrap();
            assert!(found.into_bytes() == model[span.start as usize..span.end as usize], "the instant changed");
        }
    }

    /// Another host reads what was committed.
    async fn check_bundle(&self) {
        let latest = self.world.latest().await.unwrap();
        let snapshot = self.world.snapshot(latest).await;
        let (_, entry) = snapshot.lookup(&Default::default(), &name("f")).await.unwrap().unwrap();
        let Body::File(file) = entry.body else { panic!("a file") };
        let found = snapshot.reader().read(&file, ChunkSize::DEFAULT, 0..u64::MAX).await.unwrap();
        assert!(found == self.model, "the bundle is not what was written");
        let listed: BTreeSet<_> = snapshot.packs().await.unwrap().iter().map(|pack| pack.id).collect();
        assert!(used_packs(snapshot.reader(), &file).await.unwrap().is_subset(&listed), "nothing keeps its packs");
    }
}

fn run(steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new().await;
        for step in steps {
            run = run.step(step).await;
            run.check().await;
        }
        run = run.step(&Step::Commit).await;
        run.check().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_file_holds_what_was_written_whatever_is_done_to_it(steps in prop::collection::vec(any_step(), 1..24)) {
        run(&steps);
    }
}

#[test]
fn copies_of_whole_files_move_no_bytes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new().await;
        for number in 0..SOURCES.len() {
            for is_staged in [false, true] {
                run = run.step(&Step::Cut { size: 0 }).await;
                let before = run.shared;
                run = run.step(&Step::Copy { from: number, is_staged, chunk: 0, len: u32::MAX }).await;
                // One byte of the first was changed since: it lies in the row, and so it can be named, too.
                assert_eq!(run.shared, before + 1, "{number}, staged: {is_staged}");
                run.check().await;
                // A copy of a copy, behind which the file goes on.
                run = run.step(&Step::Append { len: 70_000, seed: 3 }).await;
                run.check().await;
            }
        }
        // In parts, as cp copies a file with holes.
        run = run.step(&Step::Cut { size: 0 }).await;
        let before = run.shared;
        for (chunk, len) in [(0, 1 << 20), (2, u32::MAX)] {
            run = run.step(&Step::Copy { from: 4, is_staged: false, chunk, len }).await;
        }
        assert_eq!(run.shared, before + 2);
        run.check().await;
        run = run.step(&Step::NextLife).await;
        run = run.step(&Step::Commit).await;
        run.check().await;
    });
}
