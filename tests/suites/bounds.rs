//! Options that bound something: `memory=`, and how stale `refresh=` lets a host be.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Host, Place, host_with_repo, inside, run, scratch, sync, text, until};
use super::trees::noise;

const MIB: u64 = 1 << 20;

/// The most that the daemon of `mnt` has had of memory, in bytes (proc_pid_status(5)).
fn peak(host: &Host, mnt: &Path) -> u64 {
    let daemons = host.daemons(mnt);
    assert_eq!(daemons.len(), 1);
    let status = fs::read_to_string(format!("/proc/{}/status", daemons[0])).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn memory_bounds_what_a_daemon_has_under_a_large_copy_and_reads() {
    if !inside("bounds::memory_bounds_what_a_daemon_has_under_a_large_copy_and_reads") {
        return;
    }
    const FILES: u64 = 6;
    const FILE_BYTES: u64 = 64 * MIB;
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    for refused in ["memory=31M", "memory=0", "memory=much", "memory="] {
        let mnt = dir.path().join("mnt");
        let _ = fs::create_dir(&mnt);
        let output = host.datamon(["mount", "prod", mnt.to_str().unwrap(), "-o", refused]).output().unwrap();
        assert!(text(&output).contains(&format!("{refused}: bad value (accepted: 32M or more)")), "{}", text(&output));
    }
    let copied = |options: &str, seed: u64| {
        let mnt = host.mount("prod", options);
        let staging = mnt.join("census/staging");
        for n in 0..FILES {
            fs::write(staging.join(format!("{n}")), noise(seed + n, FILE_BYTES as usize)).unwrap();
        }
        sync(&staging);
        let peak = peak(&host, &mnt);
        host.umount(&mnt);
        peak
    };
    // All of it once through, by a mount that has seen none of it, and some of it at once.
    let read = |options: &str| {
        let mnt = host.mount("prod", options);
        let version = mnt.join("census/labels/latest");
        let mut buffer = vec![0; MIB as usize];
        std::thread::scope(|scope| {
            for part in [0..FILES / 2, FILES / 2..FILES] {
                let (version, mut buffer) = (&version, buffer.clone());
                scope.spawn(move || {
                    for n in part {
                        let mut file = fs::File::open(version.join(format!("{n}"))).unwrap();
                        while file.read(&mut buffer).unwrap() > 0 {}
                    }
                });
            }
        });
        buffer.clear();
        let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
        let cached = stats.lines().find_map(|line| line.strip_prefix("datamon_cache_bytes{cache=\"content\"} "));
        let found = (peak(&host, &mnt), cached.unwrap().parse::<f64>().unwrap() as u64);
        host.umount(&mnt);
        found
    };
    let by_copy = copied("memory=64M", 1);
    let (small, small_cache) = read("ro,memory=64M");
    let (large, large_cache) = read("ro,memory=1G");
    eprintln!("memory: copy {} MiB, read {} and {} MiB", by_copy / MIB, small / MIB, large / MIB);
    eprintln!("memory: cached {} and {} MiB", small_cache / MIB, large_cache / MIB);
    assert!(by_copy < COPY_BOUND, "{} MiB of a copy", by_copy / MIB);
    assert!(small < READ_BOUND, "{} MiB of reads", small / MIB);
    assert!(small_cache <= 16 * MIB, "a quarter is for content: {small_cache}");
    assert!(large > small + 64 * MIB && large_cache > 128 * MIB, "what is given is used: {large} {large_cache}");
}

/// With memory=64M: that, and what the program itself and its threads take. 80 to 90 MiB were measured.
const READ_BOUND: u64 = 160 * MIB;
/// The same of a copy and its commit: 120 to 190 MiB were measured, the most beside three other tests.
const COPY_BOUND: u64 = 224 * MIB;

#[test]
fn a_tree_that_was_looked_into_takes_little_of_the_disk() {
    if !inside("bounds::a_tree_that_was_looked_into_takes_little_of_the_disk") {
        return;
    }
    const TREES: u64 = 8;
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "");
    let taken = || {
        let du = run(Command::new("du").args(["-s", "--block-size=1"]).arg(dir.path().join("one/state")));
        du.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = taken();
    for n in 0..TREES {
        fs::create_dir(mnt.join(format!("r{n}"))).unwrap();
        assert_eq!(fs::read_dir(mnt.join(format!("r{n}/staging"))).unwrap().count(), 0);
    }
    let each = (taken() - before) / TREES;
    eprintln!("disk: {} KiB a tree", each >> 10);
    assert!(0 < each && each < 4 * MIB, "{} KiB a tree", each >> 10);
    host.umount(&mnt);
}

/// What a host shows as the newest version, and how it is led to change it.
struct Watcher {
    host: Host,
    mnt: PathBuf,
}

impl Watcher {
    fn new(place: &Place, dir: &Path, options: &str) -> Self {
        let host = place.host(dir, "add");
        let mnt = host.mount("prod", options);
        Self { host, mnt }
    }

    fn shows(&self) -> String {
        fs::read_to_string(self.mnt.join("census/labels/latest/version")).unwrap()
    }

    /// Whether it shows the label.
    fn has(&self, label: &str) -> bool {
        self.mnt.join("census/labels").join(label).exists()
    }
}

#[test]
fn refresh_is_how_stale_another_hosts_newest_version_may_be_shown() {
    if !inside("bounds::refresh_is_how_stale_another_hosts_newest_version_may_be_shown") {
        return;
    }
    const REFRESH: Duration = Duration::from_millis(400);
    let dir = scratch();
    let (place, one) = host_with_repo(dir.path());
    let mnt = one.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    let commit = |text: &str| {
        fs::write(staging.join("version"), text).unwrap();
        sync(&staging);
    };
    commit("0");
    let quick = Watcher::new(&place, &dir.path().join("two"), "refresh=400ms");
    let slow = Watcher::new(&place, &dir.path().join("three"), "refresh=60s");
    assert_eq!((quick.shows(), slow.shows()), ("0".into(), "0".into()));
    let began = Instant::now();
    let mut shown_old = 0;
    for round in 1..=4 {
        // At whatever moment of what is remembered the commit comes.
        for _ in 0..round {
            quick.shows();
            std::thread::sleep(Duration::from_millis(70));
        }
        commit(&round.to_string());
        let committed = Instant::now();
        while committed.elapsed() < REFRESH {
            let asked = committed.elapsed();
            let shown = quick.shows();
            // A look that began before the time was up may show either.
            shown_old += usize::from(shown != round.to_string() && asked < REFRESH);
        }
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(quick.shows(), round.to_string(), "within {REFRESH:?}");
        assert_eq!(
            fs::read_to_string(quick.mnt.join("census/bundles").join(newest(&mnt)).join("version")).unwrap(),
            round.to_string()
        );
    }
    assert!(shown_old > 0, "it does remember");
    run(&mut one.datamon(["commit", "-l", "v1", staging.to_str().unwrap()]));
    std::thread::sleep(REFRESH + Duration::from_millis(10));
    assert!(quick.has("v1"));
    // The slow one shows what it knew; a gesture of its own makes it look at once.
    std::thread::sleep(Duration::from_secs(3).saturating_sub(began.elapsed()));
    assert_eq!(slow.shows(), "0");
    assert!(!slow.has("v1"));
    fs::create_dir(slow.mnt.join("census/labels/mine")).unwrap();
    // But for what the kernel knows from before, for a second.
    until(Duration::from_secs(2), "what is new", || slow.shows() == "4" && slow.has("v1"));
    for watcher in [&quick, &slow] {
        watcher.host.umount(&watcher.mnt);
    }
    one.umount(&mnt);
}

fn newest(mnt: &Path) -> String {
    fs::read_to_string(mnt.join("census/.datamon/labels/latest")).unwrap().trim().to_owned()
}
