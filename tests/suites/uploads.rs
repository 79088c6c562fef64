//! Bytes go to the store before the commit, through the kernel.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Place, data_packs, inside, run, scratch, sync, until};
use super::proxy::Fault;

/// Three full packs and two chunks more, no two of them equal.
fn noise(seed: u32) -> Vec<u8> {
    (0..50u32 << 18).map(|n| (n ^ seed).wrapping_mul(2_654_435_761)).flat_map(u32::to_le_bytes).collect()
}

/// Every chunk is stored once: its bytes, 2 KiB of proof, and a little for heads and footers.
fn assert_stored_once(store: &Path, chunks: u64) {
    let bytes: u64 = data_packs(store).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum();
    assert!(bytes < chunks * ((1 << 20) + (2 << 10)) + (64 << 10), "{bytes} bytes for {chunks} chunks");
}

#[test]
fn a_closed_file_is_uploaded_before_the_commit_and_what_changes_later_is_committed_as_it_is() {
    if !inside("uploads::a_closed_file_is_uploaded_before_the_commit_and_what_changes_later_is_committed_as_it_is") {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("store");
    let place = Place::directory(&store);
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    let file = mnt.join("census/staging/large");
    let mut bytes = noise(1);
    fs::write(&file, &bytes).unwrap();
    until(Duration::from_secs(30), "packs in the store", || data_packs(&store).len() >= 2);
    assert_eq!(fs::read_dir(mnt.join("census/bundles")).unwrap().count(), 0, "nothing was committed");

    use std::os::unix::fs::FileExt;
    let writer = fs::File::options().write(true).open(&file).unwrap();
    writer.write_all_at(b"changed", 3 << 20).unwrap();
    bytes[3 << 20..(3 << 20) + 7].copy_from_slice(b"changed");
    run(Command::new("sync").arg(mnt.join("census/staging")));
    assert_stored_once(&store, 51);
    assert!(fs::read(mnt.join("census/labels/latest/large")).unwrap() == bytes);
    drop(writer);
    one.umount(&mnt);
}

#[test]
fn what_was_uploaded_before_a_kill_is_not_uploaded_again() {
    if !inside("uploads::what_was_uploaded_before_a_kill_is_not_uploaded_again") {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("store");
    let place = Place::directory(&store);
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    let bytes = noise(2);
    fs::write(mnt.join("census/staging/large"), &bytes).unwrap();
    until(Duration::from_secs(30), "packs in the store", || data_packs(&store).len() >= 2);
    run(Command::new("kill").args(["-9", &one.daemons(&mnt)[0].to_string()]));
    until(Duration::from_secs(10), "the daemon's end", || one.daemons(&mnt).is_empty());

    let mnt = one.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    run(Command::new("sync").arg(&staging));
    assert_stored_once(&store, 50);
    assert!(fs::read(mnt.join("census/labels/latest/large")).unwrap() == bytes);
    one.umount(&mnt);
}

#[test]
fn as_many_packs_are_on_their_way_as_upload_and_memory_allow() {
    if !inside("uploads::as_many_packs_are_on_their_way_as_upload_and_memory_allow") {
        return;
    }
    /// What a far store takes to begin its answer.
    const FAR: Duration = Duration::from_secs(4);
    const FILES: u32 = 3;
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let (place, proxy) = server.behind_proxy("far");
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    one.umount(&mnt);
    proxy.plan(|request| (request.is_write() && request.path.contains("/p/")).then_some(Fault::SlowFirstByte(FAR)));
    for (round, (options, at_once)) in
        [("memory=768M", 6..=16), ("rw", 5..=5), ("memory=768M,upload=4", 4..=4)].into_iter().enumerate()
    {
        let mnt = one.mount("prod/census/staging", options);
        for file in 0..FILES {
            fs::write(mnt.join(format!("{file}")), noise(round as u32 * FILES + file + 1)).unwrap();
        }
        let start = Instant::now();
        sync(&mnt);
        let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
        let most =
            stats.lines().find_map(|line| line.strip_prefix("datamon_store_requests_running_max{direction=\"out\"} "));
        let most: u32 = most.unwrap().parse().unwrap();
        eprintln!("{options}: {most} writes at once, {:.2?}", start.elapsed());
        assert!(at_once.contains(&most), "{options}: {most} at once");
        one.umount(&mnt);
    }
}
