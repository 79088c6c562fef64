//! Power cuts and kills under load: what was acknowledged, and what was synced, is there afterwards.
//!
//! Writers do many kinds of work ([`super::writers`]). The state directory lies on a file system of its own, which is shut
//! down under the daemon (it takes nothing more, and what it has not written is lost), unmounted and mounted again. Then
//! every name and byte is looked at.
//!
//! `make crash` does the same for longer (DATAMON_CRASH_ROUNDS).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::harness::{Host, Place, SOON, inside, names, run, scratch, text, until, within};
use super::writers::{Dice, Writer, a_repo, another_host_sees_the_same, judge, kill, mount, rounds, seed, writers};

/// A file system of its own under a host's state directory.
pub(super) struct Disk {
    image: PathBuf,
    dir: PathBuf,
}

impl Disk {
    pub(super) fn new(dir: &Path, at: PathBuf, make: &[&str]) -> Self {
        let image = dir.join("disk.img");
        File::create(&image).unwrap().set_len(1 << 30).unwrap();
        run(Command::new(make[0]).args(&make[1..]).arg(&image));
        fs::create_dir_all(&at).unwrap();
        let disk = Self { image, dir: at };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.dir));
    }

    /// From now on nothing more is written: what is not on the disk is lost.
    pub(super) fn shut_down(&self) {
        // XFS_IOC_GOINGDOWN with NOLOGFLUSH; ext4 has the same call.
        let call = "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", call]).arg(&self.dir));
    }

    pub(super) fn come_back(&self) {
        until(SOON, "nobody uses the disk", || {
            Command::new("umount").arg(&self.dir).output().unwrap().status.success()
        });
        self.mount();
    }
}

/// A host with a repo, whose state directory is such a file system.
pub(super) fn host_on_a_disk(dir: &Path, make: &[&str]) -> (Place, Host, Disk) {
    let (place, host_dir) = (Place::directory(&dir.join("store")), dir.join("one"));
    let disk = Disk::new(dir, host_dir.join("state"), make);
    let one = place.host(&host_dir, "create");
    a_repo(&place, &one);
    (place, one, disk)
}

/// Works with `writers` on the staging tree, commits now and then, and lets `end` happen at a random moment. Answers the
/// writers with what they know.
fn under_load(staging: &Path, writers: Vec<Writer>, dice: &mut Dice, end: impl FnOnce()) -> Vec<Writer> {
    let ended = Arc::new(AtomicBool::new(false));
    let done = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = writers
        .into_iter()
        .map(|mut writer| {
            let (ended, done) = (ended.clone(), done.clone());
            std::thread::spawn(move || {
                let error = writer.work();
                let is_of_the_end = ended.load(Ordering::SeqCst);
                done.lock().unwrap().push(writer);
                assert!(is_of_the_end, "refused before the end: {error}");
            })
        })
        .collect();
    let committer = {
        let (ended, staging, mut dice) = (ended.clone(), staging.to_owned(), dice.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(100 + dice.roll(900) as u64));
                let output = Command::new("timeout").args(["20", "sync"]).arg(&staging).output().unwrap();
                let is_of_the_end = ended.load(Ordering::SeqCst);
                assert!(output.status.success() || is_of_the_end, "commit: {}", text(&output));
            }
        })
    };
    std::thread::sleep(Duration::from_millis(200 + dice.roll(1_800) as u64));
    ended.store(true, Ordering::SeqCst);
    end();
    for thread in threads {
        thread.join().unwrap();
    }
    committer.join().unwrap();
    std::mem::take(&mut *done.lock().unwrap())
}
fn power_cuts(make: &[&str]) {
    let dir = scratch();
    let seed = seed();
    let mut dice = Dice(seed | 1);
    let (place, one, disk) = host_on_a_disk(dir.path(), make);
    let (mut mnt, _) = mount(&one);
    let (mut steps, mut files, mut told) = (0, 0, 0);
    let rounds = rounds(4);
    for round in 0..rounds {
        let what = format!("{}, seed {seed}, round {round}", make[0]);
        let staging = mnt.join("staging");
        let before = writers(&staging, seed.wrapping_add(round as u64 * 104_729), false);
        // Directories of this life, too, are there only when they were synced.
        File::open(&staging).unwrap().sync_all().unwrap();
        let after = under_load(&staging, before, &mut dice, || {
            disk.shut_down();
            kill(&one, &mnt);
        });
        run(Command::new("umount").arg("-l").arg(&mnt));
        disk.come_back();
        let (again, recovered) = mount(&one);
        mnt = again;
        told += usize::from(!recovered.is_empty());
        judge(&after, &format!("{what} ({recovered})"));
        steps += after.iter().map(|writer| writer.done).sum::<usize>();
        files += after.iter().map(|writer| writer.names.len()).sum::<usize>();
        another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
        if round % 2 == 0 {
            // From here on everything is the base's.
            one.umount(&mnt);
            mnt = mount(&one).0;
            judge(&after, &format!("{what}, committed"));
        }
    }
    one.umount(&mnt);
    eprintln!("{}: {rounds} power cuts, {steps} steps, {files} names, {told} recovered, seed {seed}", make[0]);
}

#[test]
fn a_power_cut_on_xfs_keeps_what_was_synced() {
    if inside("power::a_power_cut_on_xfs_keeps_what_was_synced") {
        power_cuts(&["mkfs.xfs", "-q", "-f"]);
    }
}

#[test]
fn a_power_cut_on_ext4_keeps_what_was_synced() {
    if inside("power::a_power_cut_on_ext4_keeps_what_was_synced") {
        power_cuts(&["mkfs.ext4", "-q", "-F"]);
    }
}

#[test]
fn kills_at_random_moments_lose_nothing_that_was_answered() {
    if !inside("power::kills_at_random_moments_lose_nothing_that_was_answered") {
        return;
    }
    let dir = scratch();
    let seed = seed();
    let mut dice = Dice(seed | 1);
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    a_repo(&place, &one);
    let (mut mnt, _) = mount(&one);
    let mut steps = 0;
    let rounds = rounds(20);
    for round in 0..rounds {
        let staging = mnt.join("staging");
        let before = writers(&staging, seed.wrapping_add(round as u64 * 104_729), true);
        let after = under_load(&staging, before, &mut dice, || kill(&one, &mnt));
        let (again, recovered) = mount(&one);
        mnt = again;
        judge(&after, &format!("seed {seed}, round {round} ({recovered})"));
        steps += after.iter().map(|writer| writer.done).sum::<usize>();
        if round % 5 == 4 {
            another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
        }
    }
    one.umount(&mnt);
    eprintln!("{rounds} kills, {steps} steps, seed {seed}");
}

/// The process that would end the connection of this daemon's mount.
fn keeper_of(daemon: u32) -> u32 {
    let is_keeper = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.get(1..3) == Some(&[b"keeper".as_slice(), daemon.to_string().as_bytes()])
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_keeper).expect("a keeper")
}

/// Stores into mapped files until it is killed.
const MAPPER: &str = r#"
import mmap, os, random, sys, threading, time
SIZE = 4 << 20
def store(path):
    with open(path, "a+b") as file:
        file.truncate(SIZE)
        stored = mmap.mmap(file.fileno(), SIZE)
        while True:
            at = random.randrange(SIZE)
            stored[at : at + 1] = b"x"
for n in range(4):
    threading.Thread(target=store, args=(os.path.join(sys.argv[1], f"mapped{n}"),), daemon=True).start()
time.sleep(60)
"#;
/// It takes 5 s to find out that nobody answers, and as long again to be rid of who cannot.
const REPLACED: Duration = Duration::from_secs(30);

#[test]
fn a_mount_whose_daemon_was_killed_while_mapped_pages_were_written_is_replaced() {
    if !inside("power::a_mount_whose_daemon_was_killed_while_mapped_pages_were_written_is_replaced") {
        return;
    }
    let dir = scratch();
    let mut dice = Dice(seed() | 1);
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    a_repo(&place, &one);
    let mnt = one.mount("prod/census/staging", "rw");
    let rounds = rounds(10);
    let (mut endless, mut longest) = (0, Duration::ZERO);
    for round in 0..rounds {
        let count = round.to_string();
        fs::write(mnt.join("count"), &count).unwrap();
        // Both are in the mount when its daemon is killed, and are ended when it has been replaced.
        let mut mapper = Command::new("python3");
        let mut committer = Command::new("sh");
        let busy = [mapper.args(["-c", MAPPER]), committer.args(["-c", "while sync \"$1\"; do :; done", "sh"])];
        let busy = busy.map(|command| command.arg(&mnt).stderr(std::process::Stdio::null()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(100 + dice.roll(900) as u64));
        let daemon = one.daemons(&mnt)[0];
        // The keeper, too, as the end of a control group takes it: then it is for the next mount to end the connection.
        run(Command::new("kill").args(["-9", &daemon.to_string(), &keeper_of(daemon).to_string()]));
        std::thread::sleep(Duration::from_millis(300));
        let threads = fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
        endless += usize::from(threads > 1);
        let start = Instant::now();
        let mut again = one.datamon(["mount", "prod/census/staging", mnt.to_str().unwrap()]);
        let output = within(REPLACED, &mut again);
        assert!(output.status.success(), "round {round}, {threads} threads left: {}", text(&output));
        longest = longest.max(start.elapsed());
        assert_eq!(fs::read_to_string(mnt.join("count")).unwrap(), count, "what was answered is there");
        for mut child in busy {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }
    another_host_sees_the_same(&place, dir.path(), &mnt);
    until(SOON, "an unmount", || one.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap().status.success());
    eprintln!("{rounds} kills, {endless} daemons that could not end; the longest mount after one {longest:?}");
}

#[test]
fn with_sync_or_dirsync_a_power_cut_takes_nothing_that_was_told() {
    if !inside("power::with_sync_or_dirsync_a_power_cut_takes_nothing_that_was_told") {
        return;
    }
    let dir = scratch();
    let (_place, one, disk) = host_on_a_disk(dir.path(), &["mkfs.xfs", "-q", "-f"]);
    // No program here asks for anything to be on the disk.
    for options in ["sync", "dirsync"] {
        let mnt = one.mount("prod/census/staging", options);
        let (top, far) = (mnt.join(options), mnt.join(options).join("far"));
        fs::create_dir_all(&far).unwrap();
        fs::write(far.join("file"), "a content").unwrap();
        fs::write(far.join("changed"), "a content").unwrap();
        fs::rename(far.join("file"), top.join("moved")).unwrap();
        fs::hard_link(top.join("moved"), far.join("linked")).unwrap();
        std::os::unix::fs::symlink("nowhere", far.join("symlink")).unwrap();
        fs::write(far.join("removed"), "").unwrap();
        fs::remove_file(far.join("removed")).unwrap();
        if options == "sync" {
            fs::set_permissions(far.join("changed"), fs::Permissions::from_mode(0o640)).unwrap();
            run(Command::new("setfattr").args(["-n", "user.k", "-v", "v"]).arg(far.join("changed")));
            run(Command::new("truncate").args(["-s", "3"]).arg(far.join("changed")));
        }
        disk.shut_down();
        kill(&one, &mnt);
        run(Command::new("umount").arg("-l").arg(&mnt));
        disk.come_back();
        let mnt = one.mount("prod/census/staging", options);
        assert_eq!(names(&top), ["far", "moved"], "{options}");
        assert_eq!(names(&far), ["changed", "linked", "symlink"], "{options}");
        if options == "sync" {
            assert_eq!(fs::read_to_string(top.join("moved")).unwrap(), "a content");
            assert_eq!(fs::read_to_string(far.join("changed")).unwrap(), "a c");
            assert_eq!(fs::metadata(far.join("changed")).unwrap().permissions().mode() & 0o7777, 0o640);
            assert!(run(Command::new("getfattr").args(["-n", "user.k"]).arg(far.join("changed"))).contains("\"v\""));
        }
        one.umount(&mnt);
    }
}
