//! The main job through the kernel: a tree goes in through staging, becomes a bundle, and comes back elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::harness::{Host, Place, data_packs, differences, inside, names, run, scratch, sync, text, until};
use super::trees;

/// Makes the repo `census` on a mount of the whole context, and copies `tree` into its staging tree.
fn copy_in(mnt: &Path, tree: &Path) -> PathBuf {
    let staging = mnt.join("census/staging");
    if !mnt.join("census").exists() {
        fs::create_dir(mnt.join("census")).unwrap();
    }
    run(Command::new("cp").arg("-a").arg(format!("{}/.", tree.display())).arg(&staging));
    staging
}

fn main_job(place: &Place, dir: &Path) {
    let tree = dir.join("tree");
    trees::make(&tree);
    let one = place.host(&dir.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = copy_in(&mnt, &tree);
    assert_eq!(differences(&tree, &staging), "", "what was staged is what was copied");
    sync(&staging);
    let bundles = names(&mnt.join("census/bundles"));
    assert_eq!(bundles.len(), 1, "{bundles:?}");
    assert_eq!(names(&mnt.join("census/labels")), ["latest"]);
    assert_eq!(differences(&tree, &mnt.join("census/labels/latest")), "");

    let two = place.host(&dir.join("two"), "add");
    let other = two.mount(&format!("prod/census/bundles/{}", bundles[0]), "ro");
    assert_eq!(differences(&tree, &other), "", "another host sees the same");
    two.umount(&other);
    one.umount(&mnt);
    assert!(!mnt.join("census").exists(), "nothing is mounted any more");
}

#[test]
fn a_tree_with_every_edge_comes_back_from_a_directory() {
    if !inside("mount::a_tree_with_every_edge_comes_back_from_a_directory") {
        return;
    }
    let dir = scratch();
    main_job(&Place::directory(&dir.path().join("store")), dir.path());
}

#[test]
fn a_tree_with_every_edge_comes_back_from_a_real_s3_server() {
    if !inside("mount::a_tree_with_every_edge_comes_back_from_a_real_s3_server") {
        return;
    }
    let dir = scratch();
    main_job(&Place::s3(&dir.path().join("server")), dir.path());
}

fn small_tree(dir: &Path) -> PathBuf {
    let tree = dir.join("small");
    fs::create_dir_all(tree.join("tables")).unwrap();
    for n in 0..50 {
        fs::write(tree.join("tables").join(format!("{n}.csv")), format!("region,people\n{n},41\n").repeat(n + 1))
            .unwrap();
    }
    fs::write(tree.join("large"), (0..3_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    tree
}

#[test]
fn the_same_tree_copied_in_again_stores_no_new_data() {
    if !inside("mount::the_same_tree_copied_in_again_stores_no_new_data") {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("store");
    let place = Place::directory(&store);
    let tree = small_tree(dir.path());
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    sync(&copy_in(&mnt, &tree));
    let packs = data_packs(&store);
    assert!(!packs.is_empty());
    fs::remove_dir_all(mnt.join("census/staging/tables")).unwrap();
    sync(&copy_in(&mnt, &tree));
    assert_eq!(data_packs(&store), packs, "the same host again");
    one.umount(&mnt);

    let two = place.host(&dir.path().join("two"), "add");
    let other = two.mount("prod", "rw");
    sync(&copy_in(&other, &tree));
    assert_eq!(data_packs(&store), packs, "another host");
    two.umount(&other);
}

#[test]
fn two_hosts_commit_in_turn_and_nothing_is_dropped() {
    if !inside("mount::two_hosts_commit_in_turn_and_nothing_is_dropped") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let two = place.host(&dir.path().join("two"), "add");
    let (a, b) = (one.mount("prod", "refresh=100ms"), two.mount("prod", "refresh=100ms"));
    fs::create_dir(a.join("census")).unwrap();
    for round in 0..3 {
        for (name, mnt) in [("one", &a), ("two", &b)] {
            std::thread::sleep(Duration::from_millis(1200));
            let staging = mnt.join("census/staging");
            fs::write(staging.join(format!("{name}-{round}")), name).unwrap();
            sync(&staging);
        }
    }
    std::thread::sleep(Duration::from_millis(1200));
    let all = ["one-0", "one-1", "one-2", "two-0", "two-1", "two-2"];
    assert_eq!(names(&a.join("census/labels/latest")), all);
    assert_eq!(names(&b.join("census/bundles")).len(), 6);
    one.umount(&a);
    two.umount(&b);
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_written() {
    if !inside("mount::a_killed_daemon_loses_nothing_that_was_written") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let tree = small_tree(dir.path());
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    copy_in(&mnt, &tree);
    let daemons = one.daemons(&mnt);
    assert_eq!(daemons.len(), 1);
    run(Command::new("kill").args(["-9", &daemons[0].to_string()]));
    until(Duration::from_secs(10), "the daemon's end", || one.daemons(&mnt).is_empty());
    // Mounting again over the dead mount replaces it.
    let again = one.mount("prod", "rw");
    assert_eq!(differences(&tree, &again.join("census/staging")), "");
    sync(&again.join("census/staging"));
    assert_eq!(differences(&tree, &again.join("census/labels/latest")), "");
    one.umount(&again);
}

#[test]
fn a_commit_killed_at_any_step_is_finished_by_the_next_mount() {
    if !inside("mount::a_commit_killed_at_any_step_is_finished_by_the_next_mount") {
        return;
    }
    for point in datamon::faults::FaultPoint::ALL {
        let dir = scratch();
        let place = Place::directory(&dir.path().join("store"));
        let tree = small_tree(dir.path());
        let host = place.host(&dir.path().join("one"), "create");
        let doomed = Host::new(&dir.path().join("one")).with(&[("DATAMON_FAULT", point.name())]);
        let mnt = doomed.mount("prod", "rw");
        let staging = copy_in(&mnt, &tree);
        assert!(!Command::new("sync").arg(&staging).output().unwrap().status.success(), "{}", point.name());
        until(Duration::from_secs(10), "the daemon's end", || doomed.daemons(&mnt).is_empty());
        let mnt = host.mount("prod", "rw");
        sync(&mnt.join("census/staging"));
        assert_eq!(names(&mnt.join("census/bundles")).len(), 1, "{}: once, and once only", point.name());
        assert_eq!(differences(&tree, &mnt.join("census/labels/latest")), "", "{}", point.name());
        host.umount(&mnt);
    }
}

#[test]
fn umount_commits_what_changed_and_a_signal_keeps_it_staged() {
    if !inside("mount::umount_commits_what_changed_and_a_signal_keeps_it_staged") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    fs::write(mnt.join("census/staging/a"), "a").unwrap();
    run(Command::new("kill").arg(one.daemons(&mnt)[0].to_string()));
    until(Duration::from_secs(10), "the daemon's end", || one.daemons(&mnt).is_empty());
    let mnt = one.mount("prod", "rw");
    assert!(names(&mnt.join("census/bundles")).is_empty());
    assert_eq!(names(&mnt.join("census/staging")), ["a"]);
    one.umount(&mnt);
    let mnt = one.mount("prod", "rw");
    assert_eq!(names(&mnt.join("census/labels/latest")), ["a"]);
    one.umount(&mnt);
}

#[test]
fn commit_prints_the_bundle_and_sets_its_label() {
    if !inside("mount::commit_prints_the_bundle_and_sets_its_label") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    let staging = mnt.join("census/staging");
    fs::write(staging.join("a"), "a").unwrap();
    let path = staging.to_str().unwrap();
    let id = run(&mut one.datamon(["commit", "-m", "first", "-l", "v1", path]));
    assert_eq!(names(&mnt.join("census/bundles")), [id.trim()]);
    assert_eq!(names(&mnt.join("census/labels")), ["latest", "v1"]);
    let again = run(&mut one.datamon(["commit", "--json", path]));
    assert!(again.contains("\"changed\":false") && again.contains(id.trim()), "{again}");
    one.umount(&mnt);
}

#[test]
fn what_is_wrong_is_said_before_a_mount_appears() {
    if !inside("mount::what_is_wrong_is_said_before_a_mount_appears") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let at = mnt.to_str().unwrap();
    for (source, options, code, said) in [
        ("nowhere", "rw", 1, "no such context"),
        ("prod/nothing", "rw", 1, "nothing"),
        ("prod", "colour=red", 2, "colour: unknown mount option"),
        ("/prod", "rw", 2, "datamon:"),
    ] {
        let output = one.datamon(["mount", source, at, "-o", options]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{source} -o {options}: {}", text(&output));
        assert!(text(&output).contains(said), "{source} -o {options}: {}", text(&output));
        assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at));
    }
}

/// The errno of a refusal.
fn refusal<T>(outcome: std::io::Result<T>) -> i32 {
    outcome.err().and_then(|why| why.raw_os_error()).expect("it is refused")
}

#[test]
fn a_version_refuses_every_change() {
    if !inside("mount::a_version_refuses_every_change") {
        return;
    }
    let dir = scratch();
    let tree = small_tree(dir.path());
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    sync(&copy_in(&mnt, &tree));
    let version = mnt.join("census/labels/latest");
    const EROFS: i32 = 30;
    let file = version.join("tables/1.csv");
    assert_eq!(refusal(fs::write(version.join("new"), "x")), EROFS);
    assert_eq!(refusal(fs::File::options().write(true).open(&file)), EROFS);
    assert_eq!(refusal(fs::remove_file(&file)), EROFS);
    assert_eq!(refusal(fs::remove_dir_all(version.join("tables"))), EROFS);
    assert_eq!(refusal(fs::rename(&file, version.join("moved"))), EROFS);
    assert_eq!(refusal(fs::create_dir(version.join("new"))), EROFS);
    assert_eq!(refusal(fs::hard_link(&file, version.join("new"))), EROFS);
    assert_eq!(refusal(std::os::unix::fs::symlink("x", version.join("new"))), EROFS);
    assert_eq!(refusal(std::os::unix::fs::chown(&file, Some(1), None)), EROFS);
    assert_eq!(refusal(fs::set_permissions(&file, fs::metadata(&tree).unwrap().permissions())), EROFS);
    let setfattr = Command::new("setfattr").args(["-n", "user.x", "-v", "x"]).arg(&file).output().unwrap();
    assert!(text(&setfattr).contains("Read-only file system"), "{}", text(&setfattr));
    assert_eq!(differences(&tree, &version), "");
    one.umount(&mnt);
}

#[test]
fn staging_says_what_it_does_not_keep() {
    if !inside("mount::staging_says_what_it_does_not_keep") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    let staging = mnt.join("census/staging");
    let file = staging.join("file");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    fs::create_dir_all(staging.join("a/b")).unwrap();
    use std::os::unix::fs::MetadataExt;
    run(Command::new("touch").args(["-a", "-d", "2001-01-01"]).arg(&file));
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec()), (978_307_200, 0), "kept while the file is staged");
    fs::read(&file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().atime(), 978_307_200, "reading does not touch it");
    for name in ["security.x", "trusted.x"] {
        let output = Command::new("setfattr").args(["-n", name, "-v", "x"]).arg(&file).output().unwrap();
        assert!(text(&output).contains("Operation not supported"), "{name}: {}", text(&output));
    }
    let setfacl = Command::new("setfacl").args(["-m", "u:1:r"]).arg(&file).output().unwrap();
    assert!(text(&setfacl).contains("Operation not supported"), "{}", text(&setfacl));
    const EINVAL: i32 = 22;
    for name in [".hidden", "with space", "-dash", &"x".repeat(129)] {
        assert_eq!(refusal(fs::create_dir(mnt.join(name))), EINVAL, "{name}");
    }
    one.umount(&mnt);
}

#[test]
fn sync_commits_at_the_root_of_staging_and_for_who_may_write_there() {
    if !inside("mount::sync_commits_at_the_root_of_staging_and_for_who_may_write_there") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    let staging = mnt.join("census/staging");
    fs::create_dir(staging.join("deep")).unwrap();
    fs::write(staging.join("deep/file"), "x").unwrap();
    for uncommitted in ["deep", "deep/file"] {
        sync(&staging.join(uncommitted));
    }
    sync(&mnt);
    run(Command::new("ls").arg("-laR").arg(&staging));
    let fsync = "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY))";
    run(Command::new("python3").args(["-c", fsync]).arg(&staging));
    // The way to the mount is everybody's; the tree is root's.
    for passed in mnt.ancestors().skip(1).take(3) {
        fs::set_permissions(passed, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "sync"];
    run(Command::new("setpriv").args(nobody).arg(&staging));
    assert!(names(&mnt.join("census/bundles")).is_empty(), "none of these is the gesture");
    sync(&staging);
    assert_eq!(names(&mnt.join("census/bundles")).len(), 1);
    one.umount(&mnt);
}
