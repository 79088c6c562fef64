//! Who did what, and when: the history of a repo and of its labels, as every reader of a shell sees them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::harness::{Host, Place, inside, run, scratch, sync, text, until};

/// The fields of the last line.
fn last(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().last().unwrap_or_default().split('\t').map(str::to_owned).collect()
}

fn as_user(uid: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", uid, "--regid", uid, "--clear-groups"]);
    command
}

/// Lets every user walk to a mount.
fn open_the_way(mnt: &Path) {
    for passed in mnt.ancestors().skip(1).take(3) {
        fs::set_permissions(passed, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// Commits a change by `datamon commit`, whose environment says `variables`.
fn commit(host: &Host, staging: &Path, variables: &[(&str, &str)]) -> String {
    let name = format!("f{}", fs::read_dir(staging).unwrap().count());
    fs::write(staging.join(name), "x").unwrap();
    let mut command = host.datamon(["commit", staging.to_str().unwrap()]);
    run(command.envs(variables.iter().copied())).trim().to_owned()
}

#[test]
fn removals_labels_and_who_did_it_stand_in_the_histories() {
    if !inside("lineage::removals_labels_and_who_did_it_stand_in_the_histories") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create").with(&[("USER", "ada")]);
    let mnt = host.mount("prod", "refresh=100ms");
    fs::create_dir(mnt.join("census")).unwrap();
    let (staging, repo) = (mnt.join("census/staging"), mnt.join("census"));
    let one = commit(&host, &staging, &[]);
    let two = commit(&host, &staging, &[]);
    let history = repo.join(".datamon/history");
    let before = fs::read_to_string(&history).unwrap();
    fs::remove_dir(repo.join("bundles").join(&two)).unwrap();
    let who = format!("ada@{}", hostname());
    let removed = last(&history);
    assert_eq!([&removed[0], &removed[2]], [&two, &who]);
    assert_eq!(removed[3..], ["-", "-", "-", "removed"], "as many columns as a bundle has");
    fs::write(repo.join(".datamon/ctl"), format!("restore {two}")).unwrap();
    assert_eq!(last(&history)[6], "restored");
    let after = fs::read_to_string(&history).unwrap();
    assert!(after.starts_with(&before) && after.lines().count() == 4, "lines never change: {after}");

    // Each gesture, by another user where modes let one.
    run(Command::new("mkdir").arg(repo.join("labels/v1")));
    fs::write(repo.join(".datamon/labels/v1"), &one).unwrap();
    fs::rename(repo.join("labels/v1"), repo.join("labels/v2")).unwrap();
    fs::remove_dir(repo.join("labels/v2")).unwrap();
    let steps = |label: &str| -> Vec<(String, String)> {
        let text = fs::read_to_string(repo.join(format!(".datamon/label/{label}/history"))).unwrap();
        let fields = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        fields.map(|fields| (fields[1].to_owned(), fields[2].to_owned())).collect()
    };
    let by = |to: &str| (who.clone(), to.to_owned());
    assert_eq!(steps("v1"), [by(&two), by(&one), by("removed")]);
    assert_eq!(steps("v2"), [by(&one), by("removed")]);
    host.umount(&mnt);

    // Another mount reads the same from the store.
    let other = place.host(&dir.path().join("two"), "add").with(&[("USER", "bob")]);
    let again = other.mount("prod", "refresh=100ms");
    assert_eq!(fs::read_to_string(again.join("census/.datamon/history")).unwrap(), after);
    other.umount(&again);
    // So does a mounted version, where the kernel opens without us.
    let version = other.mount("prod/census/labels/latest", "ro");
    assert_eq!(fs::read_to_string(version.join(".datamon/history")).unwrap(), after);
    other.umount(&version);
}

/// `tail` as a user starts it, and what it has printed so far.
struct Tail(Child, std::sync::Arc<std::sync::Mutex<String>>);

impl Tail {
    fn of(arguments: &[&str], file: &Path) -> Self {
        let mut command = Command::new("tail");
        let mut child = command.args(arguments).arg(file).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (mut out, printed) = (child.stdout.take().unwrap(), std::sync::Arc::<std::sync::Mutex<String>>::default());
        let told = printed.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                told.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self(child, printed)
    }

    fn shows(&self, words: &str, times: usize) {
        let count = || self.1.lock().unwrap().matches(words).count();
        until(Duration::from_secs(15), &format!("tail shows {words}"), || count() >= times);
        assert_eq!(count(), times, "once: {}", self.1.lock().unwrap());
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tail_follows_a_history_while_others_commit() {
    if !inside("lineage::tail_follows_a_history_while_others_commit") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let two = place.host(&dir.path().join("two"), "add");
    let (a, b) = (one.mount("prod", "refresh=100ms"), two.mount("prod", "refresh=100ms"));
    fs::create_dir(a.join("census")).unwrap();
    let first = commit(&one, &a.join("census/staging"), &[]);
    run(Command::new("mkdir").arg(a.join("census/labels/v1")));
    let file = a.join("census/.datamon/history");
    let tails = [Tail::of(&["-f"], &file), Tail::of(&["-n1", "-F"], &file)];
    let label = Tail::of(&["-f"], &a.join("census/.datamon/label/v1/history"));
    tails.iter().for_each(|tail| tail.shows(&first, 1));
    label.shows(&first, 1);
    until(Duration::from_secs(5), "the repo on the other host", || b.join("census").exists());
    let second = commit(&two, &b.join("census/staging"), &[]);
    fs::write(b.join("census/.datamon/labels/v1"), &second).unwrap();
    tails.iter().for_each(|tail| tail.shows(&second, 1));
    label.shows(&second, 1);
    fs::write(b.join("census/.datamon/labels/v1"), &first).unwrap();
    fs::remove_dir(b.join("census/bundles").join(&second)).unwrap();
    tails.iter().for_each(|tail| tail.shows(&second, 2));
    drop((tails, label));
    one.umount_among_others(&a);
    two.umount_among_others(&b);
}

#[test]
fn the_contributor_is_the_first_that_says_something() {
    if !inside("lineage::the_contributor_is_the_first_that_says_something") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create").with(&[("USER", "ada")]);
    let by = |mnt: &Path| last(&mnt.join("census/.datamon/history"))[2].clone();
    let mnt = host.mount("prod", "refresh=100ms");
    fs::create_dir(mnt.join("census")).unwrap();
    let staging = mnt.join("census/staging");

    // User and host: who mounted, who syncs, who calls `datamon commit`, who has no name.
    commit(&host, &staging, &[]);
    assert_eq!(by(&mnt), format!("ada@{}", hostname()));
    open_the_way(&mnt);
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o777)).unwrap();
    for (uid, name) in [("65534", "nobody"), ("54321", "uid 54321")] {
        fs::write(staging.join(uid), uid).unwrap();
        run(as_user(uid).arg("sync").arg(&staging));
        assert_eq!(by(&mnt), format!("{name}@{}", hostname()), "the caller, not the daemon's user");
    }
    // The environment of the command.
    commit(&host, &staging, &[("DATAMON_CONTRIBUTOR", "Ada <ada@lab>")]);
    assert_eq!(by(&mnt), "Ada <ada@lab>");
    let refused = host.datamon(["commit", staging.to_str().unwrap()]).env("DATAMON_CONTRIBUTOR", "a\tb").output();
    let refused = refused.unwrap();
    assert!(!refused.status.success() && text(&refused).contains("contributor"), "{}", text(&refused));
    // That of the command that unmounts.
    fs::write(staging.join("last"), "x").unwrap();
    run(host.datamon(["umount", mnt.to_str().unwrap()]).env("DATAMON_CONTRIBUTOR", "Who unmounts"));
    let host = host.with(&[("DATAMON_CONTRIBUTOR", "Of the mount")]);
    let mnt = host.mount("prod", "refresh=100ms");
    assert_eq!(by(&mnt), "Who unmounts");
    // That of the mount, where the command's says nothing.
    fs::write(staging.join("more"), "x").unwrap();
    sync(&staging);
    assert_eq!(by(&mnt), "Of the mount");
    host.umount(&mnt);

    // The context's option, whatever environments say.
    run(&mut host.datamon(["context", "edit", "prod", "--option", "contributor=Context"]));
    let mnt = host.mount("prod", "refresh=100ms");
    commit(&host, &staging, &[("DATAMON_CONTRIBUTOR", "Somebody")]);
    assert_eq!(by(&mnt), "Context");
    host.umount(&mnt);
    // The mount's before it.
    let mnt = host.mount("prod", "refresh=100ms,contributor=Mount");
    commit(&host, &staging, &[]);
    assert_eq!(by(&mnt), "Mount");
    host.umount(&mnt);
    // What is no line of text is refused before anything is mounted.
    let bad = host.datamon(["mount", "prod", mnt.to_str().unwrap()]).env("DATAMON_CONTRIBUTOR", "a\nb").output();
    assert_eq!(bad.unwrap().status.code(), Some(2));
}
