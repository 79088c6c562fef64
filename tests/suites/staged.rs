//! What is staged, as gestures meet it: discard and undiscard, a base that is chosen, commits that another stands in the way
//! of, and what an earlier mount or another one has.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::gestures::World;
use super::harness::{SOON, inside, run, text, until};

#[test]
fn discarded_changes_are_gone_and_come_back_once() {
    if !inside("staged::discarded_changes_are_gone_and_come_back_once") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.sh("mkdir staging/sub && echo 1 > staging/sub/a && echo 1 > staging/b");
    let one = world.commit("c", "1");
    world.sh("echo discard > .datamon/ctl");
    world.refused("echo undiscard > .datamon/ctl", "No such file or directory");
    world.sh("echo 2 > staging/sub/a && rm staging/b && mkdir staging/new && head -c 300000 /dev/urandom > staging/new/large");
    let large = fs::read(world.at("staging/new/large")).unwrap();
    // While a file is open, or somebody is in it, nothing happens.
    world.refused("exec 3< staging/new/large; echo discard > .datamon/ctl", "Device or resource busy");
    world.refused("cd staging/new; echo discard > ../../.datamon/ctl", "Device or resource busy");
    assert!(world.status().contains("somebody is in it"), "{}", world.status());
    assert_eq!(world.read("staging/sub/a"), "2\n");
    // What was uploaded in the background by then is no hindrance.
    until(Duration::from_secs(20), "the intent", || !world.read(".datamon/wal").is_empty());
    world.sh("cd staging && echo discard > .datamon/ctl && ls && cat sub/a b c");
    assert_eq!(world.names("staging"), ["b", "c", "sub"]);
    assert_eq!(world.read("staging/sub/a"), "1\n");
    assert!(world.status().contains("staging: clean"), "{}", world.status());
    assert_eq!(world.read(".datamon/wal"), "", "nobody waits for that bundle");
    world.sh("echo x > staging/x");
    world.refused("echo undiscard > .datamon/ctl", "Device or resource busy");
    world.sh("sync staging && sleep 1.2 && echo undiscard > .datamon/ctl");
    assert_eq!(world.names("staging"), ["c", "new", "sub"], "as it was");
    assert_eq!(world.read("staging/sub/a"), "2\n");
    assert_eq!(fs::read(world.at("staging/new/large")).unwrap(), large);
    let three = world.commit("c", "3");
    assert_eq!(fs::read(world.at(&format!("bundles/{three}/new/large"))).unwrap(), large);
    assert!(!world.at(&format!("bundles/{three}/x")).exists(), "the base of these changes was {one}");
    world.refused("echo undiscard > .datamon/ctl", "No such file or directory");
    world.end();
}

#[test]
fn a_mount_with_commit_manual_stays_staged_at_umount_and_says_so() {
    if !inside("staged::a_mount_with_commit_manual_stays_staged_at_umount_and_says_so") {
        return;
    }
    let world = World::new("commit=manual");
    world.commit("a", "1");
    world.sh("echo 2 > staging/a");
    let mut umount = world.host.datamon(["umount", world.mnt.to_str().unwrap()]);
    let said = umount.output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    assert!(
        text(&said).contains("census: not committed (commit=manual): 1 changed files stay staged"),
        "{}",
        text(&said)
    );
    let mnt = world.host.mount("prod", "rw");
    assert_eq!(fs::read_to_string(mnt.join("census/staging/a")).unwrap(), "2\n");
    assert_eq!(fs::read_dir(mnt.join("census/bundles")).unwrap().count(), 1);
    world.host.umount(&mnt);
}

#[test]
fn a_commit_that_meets_a_discard_says_that_the_tree_is_busy() {
    if !inside("staged::a_commit_that_meets_a_discard_says_that_the_tree_is_busy") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.commit("a", "1");
    let staging = world.at("staging");
    let mut shell = Command::new("bash")
        .args(["-c", "for n in {1..60}; do echo $n > staging/b; echo discard > .datamon/ctl; done 2> /dev/null; true"])
        .current_dir(world.at(""))
        .spawn()
        .unwrap();
    let mut met = 0;
    while shell.try_wait().unwrap().is_none() {
        let output = world.host.datamon(["commit", staging.to_str().unwrap()]).output().unwrap();
        let said = text(&output);
        assert!(!said.contains("named no bundle"), "{said}");
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("the staging tree is closed for a moment"), "{said}");
            met += 1;
        }
    }
    eprintln!("a_commit_that_meets_a_discard: met {met} times");
    world.end();
}

#[test]
fn a_discard_that_meets_a_commit_is_busy_and_takes_nothing() {
    if !inside("staged::a_discard_that_meets_a_commit_is_busy_and_takes_nothing") {
        return;
    }
    let world = World::new("refresh=100ms,bwlimit=64K");
    // Noise of this length is seconds on its way: the first second's worth of the link is spent by what is written first.
    world.sh("head -c 200000 /dev/urandom > staging/first; head -c 200000 /dev/urandom > staging/second");
    let mut commit = world.host.datamon(["commit", world.at("staging").to_str().unwrap()]).spawn().unwrap();
    until(SOON, "the commit", || world.status().contains("staging: committing"));
    world.refused("echo discard > .datamon/ctl", "Device or resource busy");
    let status = world.status();
    assert!(status.contains("the staging tree is in use: it is being committed (wait for that)"), "{status}");
    assert!(commit.wait().unwrap().success());
    world.sh("[ $(stat -c %s labels/latest/second) = 200000 ]");
    world.end();
}

#[test]
fn a_repo_into_which_something_is_staged_is_not_removed() {
    if !inside("staged::a_repo_into_which_something_is_staged_is_not_removed") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.sh("echo precious > staging/a && sync -d staging/a");
    world.refused("rmdir ../census", "Device or resource busy");
    assert!(world.status().contains("something is staged in it (commit or discard that first)"), "{}", world.status());
    // Nor after a mount that left it staged, before anybody has looked there.
    run(&mut world.host.datamon(["umount", "--lazy", world.mnt.to_str().unwrap()]));
    world.host.mount("prod", "refresh=100ms");
    world.refused("rmdir ../census", "Device or resource busy");
    assert_eq!(world.read("staging/a"), "precious\n");
    // What was taken out again is nothing, for the removal and for the unmounting after it.
    world.sh("rm staging/a");
    let refused = world.host.datamon(["commit", world.at("staging").to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("nothing staged"), "{}", text(&refused));
    world.sh("rmdir ../census");
    assert!(!world.at("").exists());
    world.host.umount(&world.mnt);
}

#[test]
fn the_base_of_what_an_earlier_mount_left_staged_is_not_removed() {
    if !inside("staged::the_base_of_what_an_earlier_mount_left_staged_is_not_removed") {
        return;
    }
    let world = World::new("refresh=100ms");
    let base = world.commit("f", "1");
    world.sh("echo small > staging/g");
    run(&mut world.host.datamon(["umount", "--lazy", world.mnt.to_str().unwrap()]));
    world.host.mount("prod", "refresh=100ms");
    world.refused(&format!("rmdir bundles/{base}"), "Device or resource busy");
    assert_eq!(world.read("staging/g"), "small\n");
    world.host.umount(&world.mnt);
}

#[test]
fn what_another_mount_holds_is_neither_synced_nor_committed_from_here() {
    if !inside("staged::what_another_mount_holds_is_neither_synced_nor_committed_from_here") {
        return;
    }
    let world = World::new("refresh=100ms");
    fs::write(world.at("staging/f"), "1").unwrap();
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    run(&mut world.host.datamon(["mount", "prod/census", other.to_str().unwrap()]));
    for words in [vec!["sync"], vec![env!("CARGO_BIN_EXE_datamon"), "commit"]] {
        let mut command = world.host.command(words[0]);
        let refused = command.args(&words[1..]).arg(other.join("staging")).output().unwrap();
        let said = text(&refused);
        let is_told = said.contains("busy") || said.contains("another mount has this staging tree");
        assert!(!refused.status.success() && is_told, "{words:?}: {said}");
    }
    world.host.umount(&other);
    world.host.umount(&world.mnt);
}

#[test]
fn a_clean_tree_starts_from_the_base_that_ctl_is_told() {
    if !inside("staged::a_clean_tree_starts_from_the_base_that_ctl_is_told") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("f", "1");
    world.sh(&format!("ln -s ../bundles/{one} labels/v1"));
    let two = world.commit("f", "2");
    world.refused("echo 'base nope' > .datamon/ctl", "No such file or directory");
    assert!(world.status().contains("no label or bundle nope"), "{}", world.status());
    world.sh("echo 'base v1' > .datamon/ctl");
    // And it does not follow latest from there.
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(world.read("staging/f"), "1");
    fs::write(world.at("staging/g"), "new").unwrap();
    world.refused(&format!("echo 'base {two}' > .datamon/ctl"), "Device or resource busy");
    let three = world.commit("h", "newer");
    assert!(world.read(&format!(".datamon/bundle/{three}/info")).contains(&one), "its parent is the base");
    assert_eq!((world.read("labels/latest/f"), world.read("labels/latest/g")), ("1".to_owned(), "new".to_owned()));
    // The commit ended that: the tree follows latest again.
    world.sh("echo 'base none' > .datamon/ctl");
    assert!(world.names("staging").is_empty());
    world.sh("echo 'base latest' > .datamon/ctl");
    assert_eq!(world.names("staging"), ["f", "g", "h"]);
    world.host.umount(&world.mnt);
}

#[test]
fn each_repo_says_what_its_own_last_commit_was() {
    if !inside("staged::each_repo_says_what_its_own_last_commit_was") {
        return;
    }
    let world = World::new("refresh=100ms");
    fs::create_dir(world.mnt.join("survey")).unwrap();
    let bundle = world.commit("f", "1");
    assert!(world.status().contains(&format!("last_commit: {bundle}")), "{}", world.status());
    let status = |path: &str| fs::read_to_string(world.mnt.join(path)).unwrap();
    assert!(!status("survey/.datamon/status").contains("last_commit"), "it has none");
    assert!(status(".datamon/status").contains(&format!("last_commit: {bundle}")), "the last of all");
    world.host.umount(&world.mnt);
}

#[test]
fn what_nobody_has_looked_at_since_an_earlier_mount_is_committed_by_umount() {
    if !inside("staged::what_nobody_has_looked_at_since_an_earlier_mount_is_committed_by_umount") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.commit("f", "1");
    let (store, old) = (world.dir.path().join("store"), world.dir.path().join("old"));
    let copy = |from: &Path, to: &Path| {
        let (from, to) = (format!("{}/", from.display()), format!("{}/", to.display()));
        run(Command::new("rsync").args(["-a", "--delete", &from, &to]))
    };
    copy(&store, &old);
    world.commit("f", "2");
    let new = world.dir.path().join("new");
    copy(&store, &new);
    let leave_and_mount = || {
        run(&mut world.host.datamon(["umount", "--lazy", world.mnt.to_str().unwrap()]));
        world.host.mount("prod", "refresh=100ms");
    };
    world.sh("echo left > staging/g");
    leave_and_mount();
    world.host.umount(&world.mnt);
    world.host.mount("prod", "refresh=100ms");
    assert_eq!(world.read("labels/latest/g"), "left\n");

    // One whose base is gone cannot be committed; nobody is told that it was, and it can be when the base is back.
    copy(&store, &new);
    world.sh("echo left > staging/h");
    leave_and_mount();
    copy(&old, &store);
    let refused = world.host.datamon(["umount", world.mnt.to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("the store does not have it"), "{}", text(&refused));
    world.refused("ls staging", "Input/output error");
    copy(&new, &store);
    world.host.umount(&world.mnt);
    world.host.mount("prod", "refresh=100ms");
    assert_eq!(world.read("labels/latest/h"), "left\n");
    world.host.umount(&world.mnt);
}

#[test]
fn a_clean_tree_whose_base_is_gone_names_it_and_what_to_do() {
    if !inside("staged::a_clean_tree_whose_base_is_gone_names_it_and_what_to_do") {
        return;
    }
    let world = World::new("refresh=100ms");
    let bundle = world.commit("f", "1");
    world.host.umount(&world.mnt);
    let find = ["-type", "f", "-path", "*/bundles/*", "-name", &bundle];
    let descriptor = run(Command::new("find").arg(world.dir.path().join("store")).args(find)).trim().to_owned();
    let away = world.dir.path().join("away");
    fs::rename(&descriptor, &away).unwrap();
    world.host.mount("prod", "refresh=100ms");
    let refused = world.host.datamon(["commit", world.at("staging").to_str().unwrap()]).output().unwrap();
    let said = text(&refused);
    assert_eq!((refused.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains(&bundle) && said.contains("begin with another: -o base="), "{said}");
    world.refused("ls labels/latest/", "No such file or directory");
    assert!(world.status().contains("its object is gone: put it back"), "{}", world.status());
    fs::rename(&away, &descriptor).unwrap();
    world.sh("echo 2 > staging/g && sync staging && cat labels/latest/f labels/latest/g");
    world.end();
}

#[test]
fn an_entry_too_deep_for_a_bundle_is_named_by_the_commit_that_it_stops() {
    if !inside("staged::an_entry_too_deep_for_a_bundle_is_named_by_the_commit_that_it_stops") {
        return;
    }
    let world = World::new("refresh=100ms");
    let deep = |levels: u32| {
        let step = "d=$(printf 'd%.0s' {1..255}); cd staging";
        format!("{step}; for i in $(seq {levels}); do mkdir -p $d; cd $d; done; touch leaf")
    };
    world.sh(&deep(15));
    let one = world.commit("f", "1");
    world.sh(&deep(17));
    let refused = world.host.datamon(["commit", world.at("staging").to_str().unwrap()]).output().unwrap();
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("ddd…: a path of 4351 bytes"), "{said}");
    assert!(said.contains("shorter names"), "{said}");
    world.sh("rm -r staging/d*");
    assert_ne!(world.commit("f", "2"), one);
    world.host.umount(&world.mnt);
}
