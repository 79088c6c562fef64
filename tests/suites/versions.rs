//! Versions as they are seen while labels move and bundles go: what follows, what stays, and which numbers inodes have.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::gestures::World;
use super::harness::{inside, run, sync, text, until};

/// A shell that stands somewhere.
struct Shell(Child, ChildStdin, BufReader<ChildStdout>);

impl Shell {
    fn standing_in(dir: &Path) -> Self {
        let mut command = Command::new("bash");
        let mut child = command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self(child, input, output)
    }

    /// The last line that a command prints, whatever it is.
    fn says(&mut self, line: &str) -> String {
        // Whether or not what is printed ends with a newline.
        writeln!(self.1, "({line}) 2>&1 | tail -n 1; printf '\\n.\\n'").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(self.2.read_line(&mut line).unwrap() > 0, "the shell ended");
            if line == ".\n" {
                return said.trim_end().to_owned();
            }
            if line != "\n" {
                said = line;
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_label_leads_where_it_points_at_the_time_of_the_walk_and_who_is_in_stays() {
    if !inside("versions::a_label_leads_where_it_points_at_the_time_of_the_walk_and_who_is_in_stays") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.sh("mkdir staging/sub");
    let one = world.commit("sub/f", "one");
    let two = world.commit("sub/f", "two");
    world.sh(&format!("echo {one} > .datamon/labels/v1"));
    let other = world.place.host(&world.dir.path().join("two"), "add");
    let (there, pinned) = (other.mount("prod", "refresh=100ms"), world.dir.path().join("pinned"));
    fs::create_dir(&pinned).unwrap();
    run(&mut other.datamon(["mount", "prod/census/labels/v1", pinned.to_str().unwrap(), "-o", "refresh=100ms"]));
    let (label, elsewhere) = (world.at("labels/v1/sub"), there.join("census/labels/v1/sub"));
    let mut standing = [Shell::standing_in(&label), Shell::standing_in(&elsewhere)];
    let mut at_the_top = [label.parent().unwrap(), elsewhere.parent().unwrap()].map(Shell::standing_in);
    let mut open = [File::open(label.join("f")).unwrap(), File::open(elsewhere.join("f")).unwrap()];

    world.sh(&format!("echo {two} > .datamon/labels/v1"));
    assert_eq!(fs::read_to_string(label.join("f")).unwrap(), "two", "at once where it was moved");
    let follows = || fs::read_to_string(elsewhere.join("f")).is_ok_and(|content| content == "two");
    until(Duration::from_secs(5), "the label on the other host", follows);
    for shell in &mut standing {
        assert_eq!(shell.says("cat f"), "one", "who stands in a version stays in it");
    }
    for shell in &mut at_the_top {
        assert_eq!(shell.says("cat sub/f"), "one");
        let place = shell.says("python3 -c 'import os; os.getcwd()'");
        assert!(place.contains("No such file or directory"), "its path is gone: {place}");
    }
    for file in &mut open {
        let mut content = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "one", "what is open stays what it was");
    }
    assert_eq!(fs::read_to_string(pinned.join("sub/f")).unwrap(), "one", "a label that is mounted is pinned");
    // Removed, it leads nowhere; a mount of it stays.
    world.sh("rmdir labels/v1");
    assert!(!label.exists());
    until(Duration::from_secs(5), "the removal on the other host", || !elsewhere.exists());
    assert_eq!(fs::read_to_string(pinned.join("sub/f")).unwrap(), "one");
    drop((standing, at_the_top, open));
    other.umount(&pinned);
    other.umount(&there);
    world.end();
}

/// Every entry below a directory: its path there, and its number and device.
fn numbers(top: &Path) -> HashMap<PathBuf, (u64, u64)> {
    let mut found = HashMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let metadata = entry.path().symlink_metadata().unwrap();
            found.insert(entry.path().strip_prefix(top).unwrap().to_owned(), (metadata.ino(), metadata.dev()));
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn numbers_of_inodes_are_each_ones_own_and_stay() {
    if !inside("versions::numbers_of_inodes_are_each_ones_own_and_stay") {
        return;
    }
    let world = World::new("refresh=100ms");
    // Equal bytes are no reason for an equal number: cp, tar and du take that for a hard link.
    world.sh("mkdir staging/sub; for f in a b sub/a sub/b; do echo same > staging/$f; done; ln staging/a staging/link");
    let one = world.commit("sub/c", "same");
    let two = world.commit("sub/d", "same");
    let views = [world.at("bundles").join(&one), world.at("bundles").join(&two), world.at("staging")];
    let all: Vec<_> = views.iter().map(|view| numbers(view)).collect();
    for of in &all {
        assert_eq!(of[Path::new("a")], of[Path::new("link")], "names of one inode");
    }
    let (mut seen, mut entries) = (HashSet::<(u64, u64)>::new(), 0);
    for of in &all {
        entries += of.len() - 1;
        seen.extend(of.values());
    }
    assert_eq!(seen.len(), entries, "unique in the mount: {all:?}");

    // A listing says the numbers that a look at each name finds; of a tree that nobody has looked into one that is nobody else's.
    let listed = |dir: &Path| -> HashMap<String, u64> {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.ino())).collect()
    };
    for dir in [&world.mnt, &world.at(""), &world.at("bundles"), &world.at("labels"), &world.at("staging")] {
        for (name, ino) in listed(dir) {
            assert_eq!(ino, dir.join(&name).symlink_metadata().unwrap().ino(), "{}", dir.join(name).display());
        }
    }
    let unseen = world.mnt.join("unseen");
    fs::create_dir(&unseen).unwrap();
    let mut of_unseen: Vec<u64> = listed(&unseen).into_values().collect();
    of_unseen.extend([&unseen, &world.mnt].map(|dir| fs::metadata(dir).unwrap().ino()));
    assert_eq!(of_unseen.iter().collect::<HashSet<_>>().len(), 4 + 2, "{of_unseen:?}");
    assert!(unseen.join("staging").read_dir().unwrap().next().is_none());

    // Another host's mount of the same bundle has the same ones.
    let other = world.place.host(&world.dir.path().join("two"), "add");
    let version = other.mount(&format!("prod/census/bundles/{one}"), "ro");
    let alone = numbers(&version);
    other.umount(&version);
    let there = other.mount("prod", "refresh=100ms");
    for before in ["labels/latest", &format!("bundles/{two}"), "at/2100"] {
        numbers(&there.join("census").join(before));
    }
    let again = numbers(&there.join("census/bundles").join(&one));
    let only = |of: &HashMap<PathBuf, (u64, u64)>| -> HashMap<PathBuf, u64> {
        of.iter().map(|(path, (ino, _))| (path.clone(), *ino)).collect()
    };
    assert_eq!(only(&again), only(&all[0]));
    assert_eq!(only(&alone), only(&all[0]));

    // In a staging tree a number stays, whatever is done to the file: copied up, changed, moved, linked, committed.
    let number = |file: &str| world.at(file).symlink_metadata().unwrap().ino();
    let (file, dir, held) =
        (number("staging/sub/a"), number("staging/sub"), File::open(world.at("staging/b")).unwrap());
    for step in [
        "echo more >> staging/sub/a",
        "chmod 600 staging/sub/a",
        "mv staging/sub staging/moved; mv staging/moved staging/sub",
        "mv staging/sub/a staging/up; mv staging/up staging/sub/a",
        "ln staging/sub/a staging/second; rm staging/second",
        "setfattr -n user.k -v v staging/sub/a; truncate -s 1 staging/sub/a",
        "sync staging",
        "echo more >> staging/sub/a",
    ] {
        world.sh(step);
        assert_eq!((number("staging/sub/a"), number("staging/sub")), (file, dir), "{step}");
    }
    world.sh("sync staging");
    // Another host commits: whoever has a file open still has that one.
    fs::write(there.join("census/staging/e"), "e").unwrap();
    sync(&there.join("census/staging"));
    let before = held.metadata().unwrap().ino();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(world.sh("ls staging").lines().filter(|name| *name == "b").count(), 1);
    assert_eq!(held.metadata().unwrap().ino(), before);
    assert_eq!(before, number("staging/b"), "the tree follows when nobody is in it");
    drop(held);
    other.umount(&there);
    world.end();
}

#[test]
fn what_was_removed_and_comes_back_is_whole_also_while_somebody_is_in_it() {
    if !inside("versions::what_was_removed_and_comes_back_is_whole_also_while_somebody_is_in_it") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.sh("mkdir staging/sub");
    let one = world.commit("sub/f", "one");
    world.commit("sub/f", "two");
    world.sh("mkdir labels/v1");
    // The kernel takes the directory that it stands in for removed, as it does on a local disk.
    let in_label = Shell::standing_in(&world.at("labels/v1"));
    world.sh("rmdir labels/v1 && mkdir labels/v1");
    assert_eq!(world.sh("ls labels/v1").trim(), "sub");
    assert_eq!(world.read("labels/v1/sub/f"), "two");
    let in_bundle = Shell::standing_in(&world.at("bundles").join(&one));
    for (remove, bring_back) in [
        (format!("rmdir bundles/{one}"), format!("echo 'restore {one}' > .datamon/ctl")),
        (format!("rmdir bundles/{one}"), format!("echo {one} > .datamon/labels/back")),
    ] {
        world.sh(&format!("{remove} && {bring_back}"));
        assert_eq!(world.sh(&format!("ls bundles/{one}")).trim(), "sub", "{bring_back}");
        let copy = world.dir.path().join("copy");
        world.sh(&format!("rm -rf {0} && cp -r bundles/{one} {0}", copy.display()));
        assert_eq!(fs::read_to_string(copy.join("sub/f")).unwrap(), "one");
    }
    drop((in_label, in_bundle));
    world.end();
}

#[test]
fn a_version_that_is_gone_is_never_an_empty_directory() {
    if !inside("versions::a_version_that_is_gone_is_never_an_empty_directory") {
        return;
    }
    let world = World::new("refresh=100ms");
    let old = world.commit("f", "old");
    world.commit("f", "new");
    let other = world.place.host(&world.dir.path().join("two"), "add");
    let there = other.mount("prod", "refresh=100ms");
    let bundle = there.join("census/bundles").join(&old);
    // Stood in, not looked into.
    let mut standing = Shell::standing_in(&bundle);
    world.sh(&format!("rmdir bundles/{old}"));
    until(Duration::from_secs(5), "the removal on the other host", || !bundle.exists());
    let gone = Command::new("ls").arg(&bundle).output().unwrap();
    assert!(!gone.status.success() && text(&gone).contains("No such file or directory"), "{}", text(&gone));
    assert_eq!(standing.says("cat f"), "old", "removed, not purged: who is in it reads on");
    drop(standing);
    other.umount(&there);

    // Purged, as a later version will do: its descriptor and what is its own are not in the store any more.
    world.sh(&format!("echo 'restore {old}' > .datamon/ctl"));
    let there = other.mount("prod", "refresh=100ms");
    let mut standing = Shell::standing_in(&bundle);
    let store = world.dir.path().join("store");
    let descriptor = run(Command::new("find").arg(&store).args(["-type", "f", "-name", &format!("*{old}*")]));
    assert!(!descriptor.trim().is_empty(), "the descriptor of {old}");
    descriptor.lines().for_each(|file| fs::remove_file(file).unwrap());
    let listed = standing.says("ls -U1; echo exit $?");
    assert!(listed != "exit 0" || standing.says("ls") == "f", "an empty listing of a version that had a file");
    drop(standing);
    let fresh = world.place.host(&world.dir.path().join("three"), "add");
    let mnt = fresh.mount("prod", "refresh=100ms");
    let listed = Command::new("ls").arg(mnt.join("census/bundles").join(&old)).output().unwrap();
    assert!(!listed.status.success(), "{}", text(&listed));
    assert_eq!(fs::read_to_string(mnt.join("census/labels/latest/f")).unwrap(), "new");
    fresh.umount(&mnt);
    other.umount(&there);
    world.end();
}
