//! What others see while a mount is about to go, and when it does not: nothing changes meanwhile, and nothing stays shut.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::harness::{Place, host_with_repo, inside, names, run, scratch, target_dir, text, until};

const EROFS: Option<i32> = Some(30);

#[test]
fn nothing_changes_while_a_mount_goes_and_a_helper_that_died_lets_it_go_on() {
    if !inside("unmounting::nothing_changes_while_a_mount_goes_and_a_helper_that_died_lets_it_go_on") {
        return;
    }
    let dir = scratch();
    let host = Place::directory(&dir.path().join("store")).host(&dir.path().join("one"), "create");
    let mnt = host.mount("prod", "rw");
    for repo in ["census", "other"] {
        fs::create_dir(mnt.join(repo)).unwrap();
    }
    let staging = mnt.join("census/staging");
    fs::write(staging.join("a"), "a").unwrap();
    let bind = dir.path().join("bind");
    fs::create_dir(&bind).unwrap();
    run(Command::new("mount").arg("--bind").arg(&staging).arg(&bind));
    let freeze = || host.datamon(["submit", r#"{"verb":"freeze"}"#, mnt.to_str().unwrap()]).output().unwrap();

    // What umount does first, by a caller who then asks for nothing more: as one that was killed.
    assert!(freeze().status.success());
    let frozen = Instant::now();
    for place in [&staging, &bind] {
        until(Duration::from_secs(5), "the freeze", || fs::File::create(place.join("b")).is_err());
        assert_eq!(fs::write(place.join("b"), "b").unwrap_err().raw_os_error(), EROFS);
        let opened = fs::File::options().write(true).open(place.join("a"));
        assert_eq!(opened.unwrap_err().raw_os_error(), EROFS, "no handle that keeps the mount busy");
        assert_eq!(fs::remove_file(place.join("a")).unwrap_err().raw_os_error(), EROFS);
        assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "a", "it can be read");
    }
    // A tree that nobody had looked into before.
    assert_eq!(fs::write(mnt.join("other/staging/c"), "c").unwrap_err().raw_os_error(), EROFS);
    until(Duration::from_secs(15), "the end of the freeze", || fs::write(bind.join("b"), "b").is_ok());
    let shut = frozen.elapsed();
    assert!(shut > Duration::from_secs(9), "{shut:?}: a helper that lives asks every 250 ms");
    eprintln!("a helper that died kept writers out for {shut:?}");
    fs::write(mnt.join("other/staging/c"), "c").unwrap();

    // An umount that is refused leaves all as it was, at once.
    run(Command::new("umount").arg("-i").arg(&bind));
    let held = fs::File::create(staging.join("held")).unwrap();
    let refused = host.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("nothing was committed"), "{}", text(&refused));
    fs::write(staging.join("d"), "d").unwrap();
    drop(held);
    host.umount_among_others(&mnt);
    let mnt = host.mount("prod", "ro");
    assert_eq!(names(&mnt.join("census/labels/latest")), ["a", "b", "d", "held"]);
    assert_eq!(names(&mnt.join("other/labels/latest")), ["c"]);
    host.umount(&mnt);
}

/// Maps a file for writing, closes it, and stores into it; says so, and lives until its stdin ends.
const MAPPER: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(file, b"y" * 4096)
READ_WRITE, SHARED = 3, 1
at = libc.mmap(None, ctypes.c_size_t(4096), READ_WRITE, SHARED, file, ctypes.c_long(0))
os.close(file)
ctypes.memmove(at, b"hello", 5)
print("mapped", flush=True)
sys.stdin.read()
"#;

#[test]
fn a_mapping_whose_file_was_closed_keeps_the_mount_and_nothing_is_committed() {
    if !inside("unmounting::a_mapping_whose_file_was_closed_keeps_the_mount_and_nothing_is_committed") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "rw");
    let python = target_dir().join("test-tools/venv/bin/python3");
    let mut mapper = Command::new(python)
        .args(["-c", MAPPER])
        .arg(mnt.join("census/staging/a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 7];
    mapper.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let refused = host.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("nothing was committed"), "{}", text(&refused));
    assert!(names(&mnt.join("census/bundles")).is_empty());
    drop(mapper.stdin.take());
    assert!(mapper.wait().unwrap().success());
    host.umount_among_others(&mnt);
    let mnt = host.mount("prod", "ro");
    let bytes = fs::read(mnt.join("census/labels/latest/a")).unwrap();
    assert!(bytes.starts_with(b"helloyyy") && bytes.len() == 4096, "what was stored through it is committed");
    host.umount(&mnt);
}

#[test]
fn umount_r_makes_a_busy_mount_read_only_and_commits_nothing() {
    if !inside("unmounting::umount_r_makes_a_busy_mount_read_only_and_commits_nothing") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    let umount = |flag: &str| host.datamon(["umount", flag, mnt.to_str().unwrap()]).output().unwrap();

    let writer = fs::File::create(staging.join("a")).unwrap();
    let refused = umount("-r");
    assert!(!refused.status.success() && text(&refused).contains("open for writing"), "{}", text(&refused));
    fs::write(staging.join("a"), "a").unwrap();
    drop(writer);
    let reader = fs::File::open(staging.join("a")).unwrap();
    until(Duration::from_secs(5), "a remount", || umount("-r").status.success());
    let again = umount("-r");
    assert!(again.status.success() && text(&again).contains("(it is read-only now)"), "{}", text(&again));
    assert_eq!(fs::write(staging.join("b"), "b").unwrap_err().raw_os_error(), EROFS);
    assert!(names(&mnt.join("census/bundles")).is_empty());
    drop(reader);
    host.umount_among_others(&mnt);
    assert!(is_committed(&host.mount("prod", "ro")), "what had been staged");
}

fn is_committed(mnt: &Path) -> bool {
    fs::read_to_string(mnt.join("census/labels/latest/a")).is_ok_and(|text| text == "a")
}

#[test]
fn a_context_mounted_at_once_after_an_unmount_has_its_staging_tree() {
    if !inside("unmounting::a_context_mounted_at_once_after_an_unmount_has_its_staging_tree") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    let (mut ended_later, mut longest) = (0, Duration::ZERO);
    for round in 0..30 {
        fs::write(staging.join(format!("{round}")), "x").unwrap();
        let before = host.daemons(&mnt);
        // A lazy umount commits nothing: the daemon's end is all that is waited for.
        let flag = if round % 3 == 0 { "--" } else { "--lazy" };
        run(&mut host.datamon(["umount", flag, mnt.to_str().unwrap()]));
        host.mount("prod", "rw");
        ended_later += usize::from(host.daemons(&mnt).iter().any(|pid| before.contains(pid)));
        let start = Instant::now();
        assert_eq!(names(&staging).len(), round + 1, "round {round}");
        longest = longest.max(start.elapsed());
    }
    eprintln!("30 mounts after unmounts, in {ended_later} the daemon before still lived; longest look {longest:?}");

    // One that lives is no reason to wait.
    let second = dir.path().join("second");
    fs::create_dir(&second).unwrap();
    run(&mut host.datamon(["mount", "prod", second.to_str().unwrap()]));
    fs::write(staging.join("30"), "x").unwrap();
    let start = Instant::now();
    let refused = fs::read_dir(second.join("census/staging")).unwrap().next().unwrap().unwrap_err();
    assert!(refused.kind() == std::io::ErrorKind::ResourceBusy, "{refused}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // Until it ends: the same daemon is then waited for.
    host.umount(&mnt);
    assert_eq!(names(&second.join("census/staging")).len(), 31);
    host.umount(&second);
}

#[test]
fn umount_says_when_the_history_went_on_without_what_it_commits() {
    if !inside("unmounting::umount_says_when_the_history_went_on_without_what_it_commits") {
        return;
    }
    let dir = scratch();
    let (place, one) = host_with_repo(dir.path());
    let two = place.host(&dir.path().join("two"), "add");
    let (here, there) = (one.mount("prod/census/staging", ""), two.mount("prod/census/staging", ""));
    fs::write(here.join("a"), "1").unwrap();
    run(Command::new("sync").arg(&here));
    fs::write(there.join("b"), "2").unwrap();
    fs::write(here.join("a"), "3").unwrap();
    run(Command::new("sync").arg(&here));
    let output = two.datamon(["umount", there.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("census: latest was no longer the base: both bundles are kept"),
        "{}",
        text(&output)
    );
    one.umount(&here);
}

#[test]
fn sync_of_a_tree_that_became_read_only_commits_what_was_changed_before() {
    if !inside("unmounting::sync_of_a_tree_that_became_read_only_commits_what_was_changed_before") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod/census", "refresh=100ms");
    fs::write(mnt.join("staging/a"), "1").unwrap();
    run(&mut host.datamon(["mount", "prod/census", mnt.to_str().unwrap(), "-o", "remount,ro"]));
    run(Command::new("sync").arg(mnt.join("staging")));
    assert_eq!(names(&mnt.join("labels/latest")), ["a"]);
    run(&mut host.datamon(["mount", "prod/census", mnt.to_str().unwrap(), "-o", "remount,rw"]));
    fs::write(mnt.join("staging/b"), "2").unwrap();
    run(&mut host.datamon(["umount", "--lazy", mnt.to_str().unwrap()]));
    // Read-only from its beginning it commits nothing, and says so.
    let mnt = host.mount("prod/census", "ro,refresh=100ms");
    assert_eq!(names(&mnt.join("staging")), ["a", "b"]);
    let refused = Command::new("sync").arg(mnt.join("staging")).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("Read-only file system"), "{}", text(&refused));
    let refused = host.datamon(["commit", mnt.join("staging").to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("the mount is read-only"), "{}", text(&refused));
    let said = host.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap();
    assert!(text(&said).contains("census: not committed (ro): 1 changed files stay staged"), "{}", text(&said));
    let mnt = host.mount("prod/census", "rw");
    assert_eq!(names(&mnt.join("bundles")).len(), 1);
    host.umount(&mnt);
}

#[test]
fn a_mount_says_what_an_earlier_one_left_staged() {
    if !inside("unmounting::a_mount_says_what_an_earlier_one_left_staged") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "refresh=100ms");
    fs::create_dir(mnt.join("other")).unwrap();
    assert_eq!(names(&mnt.join("other/staging")), [""; 0]);
    let leave = |mnt: &Path| drop(run(&mut host.datamon(["umount", "--lazy", mnt.to_str().unwrap()])));
    // What a mount of `source` says, and what stands in the status of the repo, and of the other one.
    let says = |source: &str| {
        let output = host.datamon(["mount", source, mnt.to_str().unwrap(), "-o", "refresh=100ms"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let notice = |dir: &str| {
        let status = fs::read_to_string(mnt.join(dir).join(".datamon/status")).unwrap();
        status.lines().any(|line| line.starts_with("notice: census: changes of an earlier mount are staged"))
    };
    fs::write(mnt.join("census/staging/a"), "a").unwrap();
    leave(&mnt);
    let said = says("prod");
    assert!(said.starts_with("datamon: census: changes of an earlier mount are staged") && said.lines().count() == 1);
    assert!(notice("") && notice("census") && !notice("other"));
    // Who looks finds it, and status says how the tree is from then on.
    assert_eq!(names(&mnt.join("census/staging")), ["a"]);
    std::thread::sleep(Duration::from_millis(1_100));
    assert!(!notice("") && !notice("census"));
    leave(&mnt);
    assert!(says("prod/census").contains("census: changes of an earlier mount are staged"));
    leave(&mnt);
    assert!(says("prod/census/staging").contains("census: changes of an earlier mount are staged"));
    host.umount(&mnt);
    // Committed, or only looked into and killed: there is nothing to say.
    assert_eq!(says("prod"), "");
    assert_eq!(names(&mnt.join("census/staging")), ["a"]);
    for pid in host.daemons(&mnt) {
        run(Command::new("kill").args(["-9", &pid.to_string()]));
    }
    assert_eq!(says("prod"), "");
    // Under another name it is neither shown nor committed here; who mounts is told.
    host.umount(&mnt);
    let second = host.mount("prod/census", "stage=second");
    fs::write(second.join("staging/b"), "b").unwrap();
    leave(&second);
    for source in ["prod", "prod/census", "prod/census/staging"] {
        let said = says(source);
        let what =
            "datamon: census: changes are staged under stage=second (mount it with -o stage=second to see or commit";
        assert!(said.starts_with(what) && said.lines().count() == 1, "{source}: {said}");
        host.umount(&mnt);
    }
    says("prod");
    let rmdir = |repo: &str| Command::new("rmdir").arg(mnt.join(repo)).output().unwrap();
    run(Command::new("rmdir").arg(mnt.join("census/bundles").join(&names(&mnt.join("census/bundles"))[0])));
    assert!(text(&rmdir("census")).contains("Device or resource busy"), "{}", text(&rmdir("census")));
    let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
    assert!(status.contains("commit or discard that first, in a mount with -o stage=second"), "{status}");
    let second = host.mount("prod/census", "stage=second");
    fs::write(second.join(".datamon/ctl"), "discard").unwrap();
    host.umount(&second);
    run(Command::new("rmdir").arg(mnt.join("census")));
    host.umount(&mnt);
    assert_eq!(says("prod"), "");
    host.umount(&mnt);
}
