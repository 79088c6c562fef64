//! A daemon that is killed at the one moment at which it cannot end: while it asks the kernel to write mapped pages back,
//! and a writer holds a page that it waits the daemon's answer for.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use super::harness::{Host, Place, SOON, inside, run, scratch, sync, until};
use super::trees::noise;

const MIB: usize = 1 << 20;
/// How long whoever works in the mount may wait after the kill: the keeper's second, and a slow machine.
const LIMIT: Duration = Duration::from_secs(15);

/// Whether a thread of the process waits in the kernel for a page.
fn waits_for_a_page(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads
        .map(|thread| fs::read_to_string(thread.path().join("wchan")).unwrap_or_default())
        .any(|place| place.contains("folio"))
}

/// A staging tree over a version of one large file, whose bytes are in the store only.
fn large_base(dir: &Path, file: &[u8]) -> (Place, Host) {
    let place = Place::s3(&dir.join("server"));
    let one = place.host(&dir.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    fs::write(mnt.join("census/staging/large"), file).unwrap();
    sync(&mnt.join("census/staging"));
    one.umount(&mnt);
    let two = place.host(&dir.join("two"), "add");
    (place, two)
}

#[test]
fn a_daemon_that_is_killed_and_cannot_end_leaves_nobody_waiting() {
    if !inside("killed::a_daemon_that_is_killed_and_cannot_end_leaves_nobody_waiting") {
        return;
    }
    let dir = scratch();
    let mut bytes = noise(1, 64 * MIB);
    let (place, host) = large_base(dir.path(), &bytes);
    let staging = host.mount("prod/census/staging", "rw");
    let [daemon] = host.daemons(&staging)[..] else { panic!("one daemon") };
    let file = File::options().read(true).write(true).open(staging.join("large")).unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    file.sync_all().unwrap();
    bytes[..4].copy_from_slice(b"kept");

    // The writer holds its page until the rest of the chunk is there, and the store does not answer.
    place.signal_server("STOP");
    let (told, hear) = mpsc::channel();
    std::thread::spawn(move || told.send(file.write_at(b"lost", 60 * MIB as u64)));
    let mut commit = host.datamon(["commit", staging.to_str().unwrap()]).spawn().unwrap();
    until(SOON, "the commit asks for the page", || waits_for_a_page(daemon));
    assert!(hear.try_recv().is_err(), "the writer waits, too");

    run(Command::new("kill").args(["-9", &daemon.to_string()]));
    let written = hear.recv_timeout(LIMIT).expect("the writer is let go");
    assert!(written.is_err(), "nobody answered it: {written:?}");
    let gone = fs::read_dir(&staging).expect_err("nobody serves the mount, and it still covers the directory below");
    assert!(gone.to_string().contains("not connected"), "{gone}");
    until(LIMIT, "the commit's end", || commit.try_wait().unwrap().is_some());
    assert!(!commit.wait().unwrap().success(), "its daemon was killed");
    until(LIMIT, "the daemon's end", || !Path::new(&format!("/proc/{daemon}/task")).exists() || ended(daemon));

    place.signal_server("CONT");
    let staging = host.mount("prod/census/staging", "rw");
    assert!(fs::read(staging.join("large")).unwrap() == bytes, "what was answered is there");
    sync(&staging);
    host.umount(&staging);
    let mnt = host.mount("prod", "ro");
    assert!(fs::read(mnt.join("census/labels/latest/large")).unwrap() == bytes, "and in the version");
    host.umount(&mnt);
}

/// Whether a process is a zombie of one thread: its parent has not asked for it.
fn ended(process: u32) -> bool {
    fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count) <= 1
}
