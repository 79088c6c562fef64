//! Names that are replaced while others open them, and what was replaced: as on a local file system.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::harness::{SOON, host_with_repo, inside, run, scratch, sync, until};

const READERS: usize = 4;
const WRITERS: u64 = 2;
const BURST: u64 = 64;
const HOW_LONG: Duration = Duration::from_secs(3);
/// Replacements, and opens, without which nothing is shown.
const ENOUGH: u64 = 1_000;
/// In the log, and in a file of its own.
const SIZES: [usize; 2] = [3_000, 150_000];

/// A version: one number all over.
fn version(number: u64, len: usize) -> Vec<u8> {
    number.to_le_bytes().repeat(len / 8)
}

fn is_whole(bytes: &[u8]) -> bool {
    SIZES.iter().any(|size| bytes.len() == size / 8 * 8) && bytes.chunks(8).all(|part| part == &bytes[..8])
}

/// Replaces `name` again and again: in bursts, because a rename over a file waits for the new one's bytes to be safe.
fn replace(dir: &Path, writer: u64, ended: &AtomicBool, replaced: &AtomicU64) {
    let (name, mut number) = (dir.join("name"), 0);
    let new = |n: u64| dir.join(format!("new-{writer}-{n}"));
    while !ended.load(Ordering::Relaxed) {
        for n in 0..BURST {
            number += 1;
            fs::write(new(n), version(number << 8 | writer, SIZES[n as usize / 7 % 2])).unwrap();
        }
        File::open(dir).unwrap().sync_all().unwrap();
        (0..BURST).for_each(|n| fs::rename(new(n), &name).unwrap());
        replaced.fetch_add(BURST, Ordering::Relaxed);
    }
}

/// Opens and reads it again and again; all that was not as it should be.
fn read(dir: &Path, ended: &AtomicBool, opens: &AtomicU64) -> Vec<String> {
    let name = dir.join("name");
    let mut wrong = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        opens.fetch_add(1, Ordering::Relaxed);
        let mut bytes = Vec::new();
        match File::open(&name).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) if is_whole(&bytes) => {}
            Ok(len) => wrong.push(format!("{len} bytes of no version")),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    wrong
}

#[test]
fn a_name_that_is_replaced_again_and_again_is_always_one_whole_version() {
    if !inside("replaced::a_name_that_is_replaced_again_and_again_is_always_one_whole_version") {
        return;
    }
    let dir = scratch();
    let (_place, one) = host_with_repo(dir.path());
    let mnt = one.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    fs::write(staging.join("name"), version(0, SIZES[0])).unwrap();
    let (ended, opens, replaced) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let wrong = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (staging, ended, replaced) = (&staging, &ended, &replaced);
            scope.spawn(move || replace(staging, writer, ended, replaced));
        }
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| read(&staging, &ended, &opens))).collect();
        std::thread::sleep(HOW_LONG);
        // On a busy machine that takes longer.
        let start = Instant::now();
        let is_enough = || [&replaced, &opens].iter().all(|count| count.load(Ordering::Relaxed) > ENOUGH);
        while !is_enough() && start.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(20));
        }
        ended.store(true, Ordering::Relaxed);
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    let (opens, replaced) = (opens.into_inner(), replaced.into_inner());
    eprintln!("{replaced} replacements, {opens} opens");
    assert!(wrong.is_empty(), "{} of {opens} opens: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(replaced > ENOUGH && opens > ENOUGH, "{replaced} replacements, {opens} opens");
    one.umount(&mnt);
}

/// A descriptor that leads to a file and does not open it.
fn path_descriptor(path: &Path) -> File {
    File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap()
}

#[test]
fn what_was_replaced_can_be_opened_by_who_holds_it_and_its_bytes_go_with_that() {
    if !inside("replaced::what_was_replaced_can_be_opened_by_who_holds_it_and_its_bytes_go_with_that") {
        return;
    }
    let dir = scratch();
    let (_place, one) = host_with_repo(dir.path());
    let mnt = one.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    for (name, len) in [("of-the-base", SIZES[1]), ("small", SIZES[0]), ("large", SIZES[1])] {
        fs::write(staging.join(name), version(7, len)).unwrap();
        if name == "of-the-base" {
            sync(&staging);
            one.umount(&mnt);
            one.mount("prod", "rw");
        }
    }
    let held: Vec<_> =
        ["of-the-base", "small", "large"].map(|name| (name, path_descriptor(&staging.join(name)))).into();
    for (name, _) in &held {
        fs::write(staging.join("new"), version(8, SIZES[0])).unwrap();
        fs::rename(staging.join("new"), staging.join(name)).unwrap();
    }
    let through = |held: &File| PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    for (name, held) in &held {
        for _ in 0..2 {
            let bytes = fs::read(through(held)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(is_whole(&bytes) && bytes[0] == 7, "{name}: {} bytes", bytes.len());
        }
        fs::OpenOptions::new().write(true).open(through(held)).unwrap().set_len(5).unwrap();
        assert_eq!(fs::read(through(held)).unwrap(), version(7, 8)[..5], "{name}");
        assert_eq!(fs::read(staging.join(name)).unwrap(), version(8, SIZES[0]), "{name}");
    }
    drop(held);
    let data = || run(Command::new("find").arg(dir.path().join("one/state")).args(["-path", "*/data/*", "-type", "f"]));
    until(Duration::from_secs(10), "the bytes of what nobody holds", || data().is_empty());
    one.umount(&mnt);
}
