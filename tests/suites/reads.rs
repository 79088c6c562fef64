//! The read log: what the store is told of who read what, through real mounts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use datamon::format::read_log::{self, FileName, FileReads, Head};
use datamon::model::id::{ChunkId, ContentId};

use super::harness::{Host, Place, SOON, host_with_repo, inside, run, scratch, sync, until, within};
use super::proxy::{Fault, Proxy};
use super::trees::noise;

/// More files than a mount with `memory=32M` keeps before it writes a batch.
const MANY: usize = 1_500;
const SMALL_MEMORY: &str = "memory=32M";
const USER: u32 = 1234;

/// The objects of the read log below a `file://` store, each with its path, in their order.
fn batches(store: &Path) -> Vec<(PathBuf, Head, Vec<FileReads>)> {
    let find = ["-type", "f", "-path", "*/r/*", "-not", "-name", "*#*"];
    let mut paths: Vec<_> = run(Command::new("find").arg(store).args(find)).lines().map(PathBuf::from).collect();
    paths.sort();
    let opened = paths.into_iter().map(|path| {
        let (head, reads) = read_log::open(&fs::read(&path).unwrap()).unwrap_or_else(|why| panic!("{path:?}: {why}"));
        (path, head, reads)
    });
    opened.collect()
}

/// Waits for so many objects: the last is written when its mount is gone already.
fn batches_once_there_are(count: usize, store: &Path) -> Vec<(PathBuf, Head, Vec<FileReads>)> {
    until(Duration::from_secs(10), "objects of the read log", || batches(store).len() >= count);
    let found = batches(store);
    assert_eq!(found.len(), count, "{found:?}");
    found
}

/// Fills the repo of a host with what `fill` puts into the staging tree.
fn commit(host: &Host, fill: impl Fn(&Path)) {
    let mnt = host.mount("prod/census/staging", "rw");
    fill(&mnt);
    sync(&mnt);
    host.umount(&mnt);
}

fn many_files(dir: &Path) {
    (0..MANY).for_each(|n| fs::write(dir.join(format!("f{n:05}")), noise(n as u64 + 1, 300)).unwrap());
}

/// Reads all of them, each of which is right.
fn read_many(dir: &Path) {
    for n in 0..MANY {
        assert!(fs::read(dir.join(format!("f{n:05}"))).unwrap() == noise(n as u64 + 1, 300), "{n}");
    }
}

fn status(mnt: &Path) -> String {
    fs::read_to_string(mnt.join(".datamon/status")).unwrap()
}

fn notices(mnt: &Path) -> Vec<String> {
    let status = status(mnt);
    status.lines().filter(|line| line.contains("reads are not logged")).map(str::to_owned).collect()
}

/// Lets users pass to the mount point.
fn open_to_all(mnt: &Path) {
    for passed in mnt.ancestors().skip(1).take(3) {
        fs::set_permissions(passed, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn read_as_user(file: &Path) {
    let id = USER.to_string();
    let who = ["--reuid", &id, "--regid", &id, "--clear-groups", "cat"];
    assert!(within(SOON, Command::new("setpriv").args(who).arg(file)).status.success());
}

fn find<'a>(reads: &'a [FileReads], path: &[u8], uid: u32) -> Option<&'a FileReads> {
    let is_that = |file: &FileName| matches!(file, FileName::Path(found) if found.as_bytes() == path);
    reads.iter().find(|line| is_that(&line.file) && line.uid == uid)
}

#[test]
fn the_store_is_told_what_two_mounts_and_two_users_read() {
    if !inside("reads::the_store_is_told_what_two_mounts_and_two_users_read") {
        return;
    }
    let dir = scratch();
    let (place, host) = host_with_repo(dir.path());
    let (small, large) = (noise(1, 5_000), noise(2, (3 << 20) + 17));
    let odd = OsStr::from_bytes(b"no \xff utf");
    commit(&host, |staging| {
        fs::create_dir(staging.join("d")).unwrap();
        fs::write(staging.join("d/small file"), &small).unwrap();
        fs::write(staging.join("large"), &large).unwrap();
        fs::write(staging.join("untouched"), "nobody reads this").unwrap();
        fs::write(staging.join(odd), "odd").unwrap();
        fs::write(staging.join("linked"), "twice").unwrap();
        fs::hard_link(staging.join("linked"), staging.join("again")).unwrap();
    });
    let store = dir.path().join("store");
    assert!(batches(&store).is_empty(), "what is read in a staging tree is of no bundle");

    let mnt = host.mount("prod", "rw");
    open_to_all(&mnt);
    let latest = mnt.join("census/labels/latest");
    assert!(fs::read(latest.join("large")).unwrap() == large);
    fs::read(latest.join(odd)).unwrap();
    fs::read(latest.join("linked")).unwrap();
    let bundle = fs::read_to_string(mnt.join("census/.datamon/labels/latest")).unwrap().trim().to_owned();
    read_as_user(&mnt.join("census/bundles").join(&bundle).join("d/small file"));
    let other = place.host(&dir.path().join("other"), "add");
    let version = other.mount("prod/census/labels/latest", "ro,contributor=the nightly job");
    fs::read(version.join("d/small file")).unwrap();
    open_to_all(&version);
    read_as_user(&version.join("large"));
    host.umount(&mnt);
    let first = batches_once_there_are(1, &store);
    other.umount(&version);
    let all = batches_once_there_are(2, &store);

    let (path, head, reads) = &first[0];
    let day = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{}-00000000", head.mount));
    assert_eq!(path.ancestors().nth(3).unwrap().file_name().unwrap().to_str().unwrap(), head.context.to_string());
    assert_eq!(day.len(), 8);
    assert!(head.to.day() == day && head.from <= head.to, "{head:?}");
    let said = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!((&head.host[..], head.dropped), (said.trim(), Default::default()));
    assert_eq!(reads.len(), 4, "{reads:?}");
    assert!(reads.iter().all(|line| line.bundle.to_string() == bundle));
    let line = find(reads, b"large", 0).unwrap();
    assert_eq!((line.bytes, &line.through[..]), (large.len() as u64, "labels/latest"));
    assert!(line.reads >= 3 && head.from <= line.first && line.first <= line.last && line.last <= head.to, "{line:?}");
    assert!(line.who.ends_with(&format!("@{}", head.host)), "{line:?}");
    assert_eq!(find(reads, b"no \xff utf", 0).unwrap().bytes, 3);
    let line = find(reads, b"d/small file", USER).unwrap();
    assert_eq!((line.bytes, &line.through[..]), (5_000, "bundles"));
    assert_eq!(line.who, format!("uid {USER}@{}", head.host));
    assert_eq!(line.content, Some(ContentId::of_chunk(ChunkId::of(&small))));
    let linked = reads.iter().find(|line| matches!(line.file, FileName::Row(_))).unwrap();
    assert_eq!((linked.bytes, linked.content), (5, Some(ContentId::of_chunk(ChunkId::of(b"twice")))));

    let (_, second, reads) = all.iter().find(|(_, other, _)| other.mount != head.mount).unwrap();
    assert_eq!((second.context, reads.len()), (head.context, 2), "{reads:?}");
    assert_eq!(find(reads, b"d/small file", 0).unwrap().who, "the nightly job");
    assert_eq!(find(reads, b"large", USER).unwrap().bytes, large.len() as u64);
    // What else there is, the same host still finds, and the store is checked as before.
    run(&mut other.datamon(["context", "check", "prod"]));
    let mnt = host.mount("prod", "rw");
    assert_eq!(super::harness::names(&mnt), ["census"]);
    host.umount(&mnt);
}

#[test]
fn nothing_is_logged_where_nothing_was_read_or_it_is_switched_off() {
    if !inside("reads::nothing_is_logged_where_nothing_was_read_or_it_is_switched_off") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    commit(&host, |staging| fs::write(staging.join("a"), noise(1, 5_000)).unwrap());
    let store = dir.path().join("store");
    let visit = |options: &str, reads: bool| {
        let mnt = host.mount("prod/census/labels/latest", options);
        run(Command::new("ls").arg("-lR").arg(&mnt));
        if reads {
            fs::read(mnt.join("a")).unwrap();
        }
        host.umount(&mnt);
        until(SOON, "the daemon's end", || host.daemons(&mnt).is_empty());
        batches(&store).len()
    };
    assert_eq!(visit("ro", false), 0, "nothing was read");
    assert_eq!(visit("ro,readlog=off", true), 0);
    run(&mut host.datamon(["context", "edit", "prod", "--option", "readlog=off"]));
    assert_eq!(visit("ro", true), 0, "the context says so");
    assert_eq!(visit("ro,readlog=on", true), 1, "the mount's word is before the context's");
    run(&mut host.datamon(["context", "edit", "prod", "--option", "readlog="]));
    assert_eq!(visit("ro", true), 2);
    let bad = host.datamon(["context", "edit", "prod", "--option", "readlog=maybe"]).output().unwrap();
    assert!(super::harness::text(&bad).contains("readlog=maybe: bad value (accepted: on or off)"), "{bad:?}");
}

/// A version of many files on a real S3 server, and the same through a proxy.
fn behind_a_proxy(dir: &Path) -> (Place, Place, Proxy, Host) {
    let place = Place::s3(&dir.join("s3"));
    let (faulty, proxy) = place.behind_proxy("prefix");
    let host = faulty.host(&dir.join("one"), "create");
    let mnt = host.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    host.umount(&mnt);
    commit(&host, many_files);
    (place, faulty, proxy, host)
}

/// PUTs of batches since `mark`.
fn offers(proxy: &Proxy, mark: usize) -> usize {
    proxy.since(mark).iter().filter(|seen| seen.request.is_write() && seen.request.path.contains("/r/")).count()
}

#[test]
fn a_store_that_refuses_the_log_is_told_once_and_reads_go_on() {
    if !inside("reads::a_store_that_refuses_the_log_is_told_once_and_reads_go_on") {
        return;
    }
    let dir = scratch();
    let (_place, _faulty, proxy, host) = behind_a_proxy(dir.path());
    let mark = proxy.mark();
    proxy.plan(|request| (request.is_write() && request.path.contains("/r/")).then_some(Fault::Status(403, None)));
    let mnt = host.mount("prod", SMALL_MEMORY);
    read_many(&mnt.join("census/labels/latest"));
    until(SOON, "the notice", || notices(&mnt).len() == 1);
    let notice = &notices(&mnt)[0];
    assert!(notice.contains("refused by the store") && notice.contains("readlog=off"), "{notice}");
    let bundle = fs::read_to_string(mnt.join("census/.datamon/labels/latest")).unwrap();
    read_many(&mnt.join("census/bundles").join(bundle.trim()));
    assert_eq!(notices(&mnt).len(), 1);
    assert!(!status(&mnt).contains("last_error"), "{}", status(&mnt));
    host.umount(&mnt);
    until(SOON, "the daemon's end", || host.daemons(&mnt).is_empty());
    assert_eq!(offers(&proxy, mark), 1, "a store that refuses is asked no more");
    assert_eq!(host.log().matches("the read log of this mount is off").count(), 1, "{}", host.log());
}

#[test]
fn a_directory_that_is_read_only_refuses_the_log_and_nothing_else() {
    if !inside("reads::a_directory_that_is_read_only_refuses_the_log_and_nothing_else") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    commit(&host, many_files);
    let store = dir.path().join("store");
    run(Command::new("mount").arg("--bind").arg(&store).arg(&store));
    run(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&store));
    let mnt = host.mount("prod/census/labels/latest", &format!("ro,{SMALL_MEMORY}"));
    read_many(&mnt);
    until(SOON, "the notice", || notices(&mnt).len() == 1);
    host.umount(&mnt);
    until(SOON, "the daemon's end", || host.daemons(&mnt).is_empty());
    run(Command::new("umount").arg(&store));
    assert!(batches(&store).is_empty());
}

#[test]
fn a_store_that_is_away_holds_neither_readers_nor_an_unmount_nor_the_next_mount() {
    if !inside("reads::a_store_that_is_away_holds_neither_readers_nor_an_unmount_nor_the_next_mount") {
        return;
    }
    let dir = scratch();
    let (_place, _faulty, proxy, host) = behind_a_proxy(dir.path());
    proxy.plan(|request| (request.is_write() && request.path.contains("/r/")).then_some(Fault::Stall));
    let mnt = host.mount("prod", &format!("{SMALL_MEMORY},commit=manual"));
    let staged = mnt.join("census/staging/new");
    fs::write(&staged, "staged here").unwrap();
    let mark = proxy.mark();
    read_many(&mnt.join("census/labels/latest"));
    until(SOON, "a batch on its way", || offers(&proxy, mark) == 1);
    let bundle = fs::read_to_string(mnt.join("census/.datamon/labels/latest")).unwrap();
    let start = Instant::now();
    read_many(&mnt.join("census/bundles").join(bundle.trim()));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(notices(&mnt).is_empty(), "it may come back");

    let start = Instant::now();
    host.umount(&mnt);
    let unmounted = start.elapsed();
    let before = host.daemons(&mnt);
    let again = host.mount("prod/census/staging", &format!("{SMALL_MEMORY},commit=manual"));
    let mounted = start.elapsed();
    assert_eq!(fs::read_to_string(again.join("new")).unwrap(), "staged here");
    eprintln!("unmounted after {unmounted:?}, the tree mounted again after {mounted:?}");
    assert!(unmounted < Duration::from_secs(10), "{unmounted:?}");
    assert_eq!(before.len(), 1, "it waited for its log, with the tree let go");
    until(Duration::from_secs(6), "the daemon's end", || host.daemons(&mnt).is_empty());
    assert!(host.log().contains("the last reads of this mount are not logged"), "{}", host.log());
    host.umount(&again);
}

#[test]
fn a_killed_daemon_leaves_whole_batches_and_loses_what_was_not_written() {
    if !inside("reads::a_killed_daemon_leaves_whole_batches_and_loses_what_was_not_written") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    commit(&host, many_files);
    let store = dir.path().join("store");
    let mnt = host.mount("prod", SMALL_MEMORY);
    read_many(&mnt.join("census/labels/latest"));
    until(SOON, "a batch", || !batches(&store).is_empty());
    let bundle = fs::read_to_string(mnt.join("census/.datamon/labels/latest")).unwrap();
    fs::read(mnt.join("census/bundles").join(bundle.trim()).join("f00000")).unwrap();
    run(Command::new("kill").args(["-9", &host.daemons(&mnt)[0].to_string()]));
    until(SOON, "the daemon's end", || host.daemons(&mnt).is_empty());
    let left = batches(&store);
    let lines = || left.iter().flat_map(|(_, _, reads)| reads);
    assert!(lines().count() > MANY / 2 && lines().all(|line| line.through == "labels/latest"), "{left:?}");

    let mnt = host.mount("prod", SMALL_MEMORY);
    fs::read(mnt.join("census/labels/latest/f00000")).unwrap();
    host.umount(&mnt);
    let all = batches_once_there_are(left.len() + 1, &store);
    let of_next = all.iter().find(|(_, head, _)| head.mount != left[0].1.mount).unwrap();
    assert_eq!(of_next.2.len(), 1, "another mount, and nothing of the one before: {of_next:?}");
}
