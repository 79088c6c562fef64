//! A commit is an instant: what a writer did is in a bundle up to one point of its order, and nothing after it.
//!
//! A writer numbers its steps (write(2), create, mkdir, rename; in many files and in the root directory) and goes on while
//! commits run. What the tree holds after n steps is known, so a bundle is an instant exactly if it equals that for an n
//! between the steps that had returned when the commit began and those that had begun when it ended. Stores through
//! mmap have no order among each other: a bundle holds at least those that were made before the commit began.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::harness::{Host, Place, inside, run, scratch, until};

/// Commits while the writers write.
const COMMITS: usize = 100;
/// Files that take numbers in turn.
const LOGS: u64 = 8;
/// Steps after which the pattern of the writer repeats.
const CYCLE: u64 = 20;
/// The longest that a writer may be kept by a commit. Measured on an idle machine: docs/reliability.md; here tests run
/// beside others.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Bytes of a file that changes all the while, so that there is something to seal.
const BALLAST_BYTES: usize = 4 << 20;

/// One step of the writer.
#[derive(Debug, PartialEq)]
enum Step {
    /// A new file in the root directory, empty.
    Create(String),
    /// The number itself into that file.
    Fill(String),
    /// A directory in the root directory.
    Directory(String),
    /// The file from the root into the directory.
    Move(String, String),
    /// The number at the end of one of the logs.
    Append(String),
}

impl Step {
    fn of(n: u64) -> Self {
        let cycle = n / CYCLE;
        let (file, dir) = (format!("r-{cycle}"), format!("d-{cycle}"));
        match n % CYCLE {
            0 => Self::Create(file),
            1 => Self::Fill(file),
            5 => Self::Directory(dir),
            9 => Self::Move(file.clone(), format!("{dir}/{file}")),
            // The first is in the root.
            rest => Self::Append(if rest % LOGS == 0 { "log-0".into() } else { format!("logs/log-{}", rest % LOGS) }),
        }
    }

    fn take(&self, root: &Path, n: u64) {
        let number = n.to_be_bytes();
        match self {
            Self::Create(file) => drop(File::create_new(root.join(file)).unwrap()),
            Self::Fill(file) => {
                OpenOptions::new().write(true).open(root.join(file)).unwrap().write_all_at(&number, 0).unwrap();
            }
            Self::Directory(dir) => fs::create_dir(root.join(dir)).unwrap(),
            Self::Move(from, to) => fs::rename(root.join(from), root.join(to)).unwrap(),
            Self::Append(log) => {
                let mut log = OpenOptions::new().append(true).create(true).open(root.join(log)).unwrap();
                // A log's first step creates it and writes: two changes, of which an instant may lie between.
                log.write_all(&number).unwrap();
            }
        }
    }

    /// The same on what is expected.
    fn note(&self, tree: &mut Expected, n: u64) {
        match self {
            Self::Create(file) => drop(tree.insert(file.clone(), Vec::new())),
            Self::Fill(file) => drop(tree.insert(file.clone(), n.to_be_bytes().to_vec())),
            Self::Directory(dir) => drop(tree.insert(format!("{dir}/"), Vec::new())),
            Self::Move(from, to) => {
                let bytes = tree.remove(from).unwrap();
                tree.insert(to.clone(), bytes);
            }
            Self::Append(log) => tree.entry(log.clone()).or_default().extend(n.to_be_bytes()),
        }
    }
}

/// Paths of files with their bytes, and of directories, which end in `/`.
type Expected = BTreeMap<String, Vec<u8>>;

fn found(root: &Path) -> Expected {
    let mut tree = Expected::new();
    let mut below = vec![String::new()];
    while let Some(dir) = below.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{dir}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                let dir = format!("{path}/");
                tree.insert(dir.clone(), Vec::new());
                below.push(dir);
            } else if path != "ballast" {
                let bytes = fs::read(entry.path()).unwrap();
                tree.insert(path, bytes);
            }
        }
    }
    tree.remove("logs/");
    tree
}

/// How many steps a tree has taken: all of them up to one, else the difference.
fn instant(tree: &Expected, steps: std::ops::RangeInclusive<u64>, logs_made: &Expected) -> Result<u64, String> {
    let mut expected = logs_made.clone();
    for n in 0..*steps.start() {
        Step::of(n).note(&mut expected, n);
    }
    let mut nearest = (usize::MAX, String::new());
    for n in *steps.start()..=*steps.end() {
        if expected == *tree {
            return Ok(n);
        }
        let differs: Vec<_> = expected
            .keys()
            .chain(tree.keys())
            .filter(|path| expected.get(*path) != tree.get(*path))
            .map(|path| {
                let len = |tree: &Expected| tree.get(path).map(|bytes| bytes.len());
                format!("{path}: {:?} for {:?}", len(tree), len(&expected))
            })
            .collect();
        if differs.len() < nearest.0 {
            nearest = (differs.len(), format!("after {n}: {differs:?}"));
        }
        Step::of(n).note(&mut expected, n);
    }
    Err(nearest.1)
}

/// A host with a mount of everything, and the repo `census` in it.
fn mounted(dir: &Path) -> (Place, Host, PathBuf) {
    let place = Place::directory(&dir.join("store"));
    let host = place.host(&dir.join("one"), "create");
    let context = host.mount("prod", "");
    fs::create_dir(context.join("census")).unwrap();
    (place, host, context)
}

#[test]
fn every_bundle_is_a_prefix_of_what_a_writer_wrote() {
    if !inside("instants::every_bundle_is_a_prefix_of_what_a_writer_wrote") {
        return;
    }
    let dir = scratch();
    let (place, host, context) = mounted(dir.path());
    let staging = context.join("census/staging");
    // The logs are there from the start: a step is one change.
    let mut logs_made = Expected::new();
    fs::create_dir(staging.join("logs")).unwrap();
    for n in 0..LOGS {
        let log = if n == 0 { "log-0".to_owned() } else { format!("logs/log-{n}") };
        fs::write(staging.join(&log), b"").unwrap();
        logs_made.insert(log, Vec::new());
    }

    let (begun, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (begun, done, stop, staging) = (begun.clone(), done.clone(), stop.clone(), staging.clone());
        move || {
            let mut longest = Duration::ZERO;
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                begun.store(n + 1, Ordering::SeqCst);
                let start = Instant::now();
                Step::of(n).take(&staging, n);
                longest = longest.max(start.elapsed());
                done.store(n + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(300));
            }
            longest
        }
    });
    let ballast = std::thread::spawn({
        let (stop, staging) = (stop.clone(), staging.clone());
        move || {
            let file = File::create(staging.join("ballast")).unwrap();
            for round in (1..=u8::MAX).cycle() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                file.write_all_at(&vec![round; BALLAST_BYTES], 0).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let mut bundles = Vec::new();
    let mut commits = Duration::ZERO;
    for _ in 0..COMMITS {
        let before = done.load(Ordering::SeqCst);
        until(Duration::from_secs(20), "the writer goes on", || done.load(Ordering::SeqCst) > before);
        let before = done.load(Ordering::SeqCst);
        let start = Instant::now();
        let id = run(&mut host.datamon(["commit", staging.to_str().unwrap()]));
        commits += start.elapsed();
        bundles.push((id.trim().to_owned(), before..=begun.load(Ordering::SeqCst)));
    }
    stop.store(true, Ordering::SeqCst);
    let longest = writer.join().unwrap();
    ballast.join().unwrap();

    // On another host: what is in the store, not what this one remembers.
    let other = place.host(&dir.path().join("two"), "add");
    let looked = other.mount("prod", "");
    let mut last = 0;
    for (id, steps) in &bundles {
        let tree = found(&looked.join("census/bundles").join(id));
        let n = instant(&tree, steps.clone(), &logs_made)
            .unwrap_or_else(|why| panic!("{id} is no instant of {steps:?}: {why}"));
        assert!(n >= last, "{id} holds {n} steps, an earlier bundle {last}");
        last = n;
    }
    assert!(last > COMMITS as u64, "the writer stood still");
    eprintln!(
        "instants: {COMMITS} commits of {:?} on average, {last} steps, the writer's longest pause {longest:?}",
        commits / COMMITS as u32
    );
    assert!(longest < PAUSE_MAX, "a commit kept the writer for {longest:?}");
    other.umount(&looked);
    host.umount(&context);
}

/// Stores numbers through a mapping, slot after slot of each of several files, and after each says how many were stored in a
/// mapping outside of the mount.
const MAPPED: &str = "
import mmap, os, sys
staging, counter = sys.argv[1], sys.argv[2]
FILES, SLOTS = 4, 1 << 16
maps = []
for n in range(FILES):
    file = open(os.path.join(staging, f'mapped-{n}'), 'w+b')
    file.truncate(SLOTS * 8)
    maps.append(mmap.mmap(file.fileno(), SLOTS * 8))
file = open(counter, 'r+b')
said = mmap.mmap(file.fileno(), 8)
import time
for n in range(FILES * SLOTS):
    at = n // FILES * 8
    maps[n % FILES][at:at + 8] = (n + 1).to_bytes(8, 'big')
    said[0:8] = (n + 1).to_bytes(8, 'big')
    time.sleep(0.0002)
";
const MAPPED_FILES: u64 = 4;
const MAPPED_COMMITS: usize = 20;

#[test]
fn every_bundle_holds_what_was_stored_through_a_mapping_before_it() {
    if !inside("instants::every_bundle_holds_what_was_stored_through_a_mapping_before_it") {
        return;
    }
    let dir = scratch();
    let (place, host, context) = mounted(dir.path());
    let staging = context.join("census/staging");
    let counter = dir.path().join("counter");
    fs::write(&counter, [0; 8]).unwrap();
    let stored = || u64::from_be_bytes(fs::read(&counter).unwrap().try_into().unwrap());
    let mut writer = Command::new("python3")
        .args(["-c", MAPPED])
        .args([&staging, &counter])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut bundles = Vec::new();
    for _ in 0..MAPPED_COMMITS {
        let before = stored();
        until(Duration::from_secs(20), "the writer goes on", || stored() > before + 20);
        let before = stored();
        let id = run(&mut host.datamon(["commit", staging.to_str().unwrap()]));
        bundles.push((id.trim().to_owned(), before));
    }
    // The process is ours, and a signal to it is no part of the test.
    writer.kill().unwrap();
    writer.wait().unwrap();
    let other = place.host(&dir.path().join("two"), "add");
    let looked = other.mount("prod", "");
    for (id, before) in &bundles {
        let version = looked.join("census/bundles").join(id);
        let files: Vec<_> = (0..MAPPED_FILES).map(|n| fs::read(version.join(format!("mapped-{n}"))).unwrap()).collect();
        for n in 0..*before {
            let at = (n / MAPPED_FILES * 8) as usize;
            let held = &files[(n % MAPPED_FILES) as usize][at..at + 8];
            assert_eq!(held, (n + 1).to_be_bytes(), "{id}: store {n} of {before} that were made before the commit");
        }
    }
    eprintln!("instants: {MAPPED_COMMITS} commits, {} stores before the last", bundles.last().unwrap().1);
    other.umount(&looked);
    host.umount(&context);
}
