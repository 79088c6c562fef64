//! What the kernel keeps for us, and what it must not keep: names that are not there, directories, open files, numbers of
//! a base that is no more; and callers that die while they wait.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::harness::{Host, Place, inside, names, run, scratch, sync, text, until};

/// Longer than `refresh=100ms` and the second that the kernel keeps a name of the namespace.
const AFTER_REFRESH: Duration = Duration::from_millis(1300);

/// Runs a command line that is killed after `seconds`.
fn in_time(seconds: u32, line: &str) -> Output {
    Command::new("timeout").args(["-s", "KILL", &seconds.to_string(), "sh", "-c", line]).output().unwrap()
}

fn signal(pid: u32, name: &str) {
    run(Command::new("kill").args(["-s", name, &pid.to_string()]));
}

/// A daemon that answers nothing for as long as this lives.
struct Stopped(u32);

impl Stopped {
    fn daemon(host: &Host, mnt: &Path) -> Self {
        let pid = host.daemons(mnt)[0];
        signal(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

/// A shell that stays where it is, and is told one line after the other.
struct Shell {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Shell {
    fn in_dir(dir: &Path) -> Self {
        let mut child = Command::new("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut shell = Self { child, to, from };
        shell.says(&format!("cd {}", dir.display()));
        shell
    }

    fn says(&mut self, line: &str) -> String {
        writeln!(self.to, "{{ {line}; }} 2>&1; echo; echo =end=").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the shell ended: {said}");
            if line == "=end=\n" {
                return said.trim().to_owned();
            }
            said += &line;
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A repo with `a` and `sub/deep/b` committed, and `labels/v1` on that.
fn committed(host: &Host, mnt: &Path) -> PathBuf {
    fs::create_dir(mnt.join("census")).unwrap();
    let staging = mnt.join("census/staging");
    fs::write(staging.join("a"), "a").unwrap();
    fs::create_dir_all(staging.join("sub/deep")).unwrap();
    fs::write(staging.join("sub/deep/b"), "b".repeat(100_000)).unwrap();
    run(&mut host.datamon(["commit", "-l", "v1", staging.to_str().unwrap()]));
    staging
}

#[test]
fn a_warm_snapshot_is_walked_and_read_without_the_daemon() {
    if !inside("kernel::a_warm_snapshot_is_walked_and_read_without_the_daemon") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    committed(&one, &mnt);
    let other = one.mount("prod/census/labels/v1", "ro");
    let look = format!(
        "cd {} && ls -R && stat -c '%n %s %a' a sub sub/deep/b && cat a && wc -c < sub/deep/b && test ! -e absent -a ! -e sub/absent",
        other.display()
    );
    let cold = in_time(30, &look);
    assert!(cold.status.success(), "{}", text(&cold));
    let warm = {
        let _stopped = Stopped::daemon(&one, &other);
        in_time(5, &look)
    };
    assert!(warm.status.success(), "asked the daemon: {}", text(&warm));
    assert_eq!(text(&warm), text(&cold));
    assert!(text(&warm).contains("sub/deep/b 100000") && text(&warm).contains("100000"));
    let refused = in_time(5, &format!("echo x > {}", other.join("a").display()));
    assert!(text(&refused).contains("ead-only"), "{}", text(&refused));
    one.umount(&other);
    one.umount(&mnt);
}

#[test]
fn a_name_that_is_not_there_is_asked_for_once_in_staging_and_never_kept_above_it() {
    if !inside("kernel::a_name_that_is_not_there_is_asked_for_once_in_staging_and_never_kept_above_it") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = committed(&one, &mnt);
    let mut shell = Shell::in_dir(&staging.join("sub"));
    assert_eq!(shell.says("test -e absent || echo absent"), "absent");
    let said = {
        let _stopped = Stopped::daemon(&one, &mnt);
        shell.says("timeout -s KILL 5 stat absent")
    };
    assert!(said.contains("No such file"), "{said}");
    // What is absent may be made at any time, by this mount and in every way.
    assert_eq!(shell.says("echo x > absent; cat absent; rm absent; ln -s deep absent; ls absent"), "x\nb");
    assert_eq!(shell.says("rm absent; mkdir absent; rmdir absent; mv deep absent; ls absent; ls"), "b\nabsent");

    let label = mnt.join("census/labels/v2");
    assert!(!label.exists() && !mnt.join("second").exists());
    fs::write(staging.join("a"), "changed").unwrap();
    run(&mut one.datamon(["commit", "-l", "v2", staging.to_str().unwrap()]));
    assert!(label.exists(), "a label is there as soon as it was made");
    drop(shell);
    one.umount(&mnt);
}

#[test]
fn names_that_were_absent_are_there_when_the_tree_has_followed() {
    if !inside("kernel::names_that_were_absent_are_there_when_the_tree_has_followed") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let two = place.host(&dir.path().join("two"), "add");
    let (a, b) = (one.mount("prod", "refresh=100ms"), two.mount("prod", "refresh=100ms"));
    let staging = committed(&one, &a);
    // The other host may have looked just before there was a repo.
    std::thread::sleep(AFTER_REFRESH);
    let other = b.join("census/staging");
    let new = ["new", "sub/new", "sub/deep/new", "newdir/x"];
    assert!(new.iter().all(|name| !other.join(name).exists()));
    assert_eq!(names(&other.join("sub/deep")), ["b"]);
    fs::create_dir(staging.join("newdir")).unwrap();
    for name in new {
        fs::write(staging.join(name), name).unwrap();
    }
    fs::remove_file(staging.join("sub/deep/b")).unwrap();
    sync(&staging);
    std::thread::sleep(AFTER_REFRESH);
    for name in new {
        assert_eq!(fs::read_to_string(other.join(name)).unwrap(), name);
    }
    assert_eq!(names(&other.join("sub/deep")), ["new"]);
    one.umount(&a);
    two.umount(&b);
}

#[test]
fn a_staging_tree_that_is_the_mount_follows_latest_too() {
    if !inside("kernel::a_staging_tree_that_is_the_mount_follows_latest_too") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let two = place.host(&dir.path().join("two"), "add");
    let a = one.mount("prod", "refresh=100ms");
    let staging = committed(&one, &a);
    // The other host may have looked just before there was a repo.
    std::thread::sleep(AFTER_REFRESH);
    let b = two.mount("prod/census/staging", "refresh=100ms");
    assert_eq!(names(&b), ["a", "sub"]);
    for round in ["first", "second"] {
        fs::write(staging.join(round), round).unwrap();
        sync(&staging);
        std::thread::sleep(AFTER_REFRESH);
        assert!(names(&b).contains(&round.to_owned()), "{round}: seen by who lists it");
    }
    // Somebody who never lists: walking past the root is enough.
    fs::write(staging.join("third"), "third").unwrap();
    sync(&staging);
    std::thread::sleep(AFTER_REFRESH);
    until(Duration::from_secs(5), "third", || b.join("third").exists());
    // What is changed here is kept, and follows nobody any more.
    fs::write(b.join("mine"), "mine").unwrap();
    fs::write(staging.join("fourth"), "fourth").unwrap();
    sync(&staging);
    std::thread::sleep(AFTER_REFRESH);
    assert!(b.join("mine").exists() && !b.join("fourth").exists());
    one.umount(&a);
    two.umount(&b);
}

#[test]
fn a_shell_in_a_staging_directory_keeps_its_place_while_others_commit() {
    if !inside("kernel::a_shell_in_a_staging_directory_keeps_its_place_while_others_commit") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let two = place.host(&dir.path().join("two"), "add");
    let (a, b) = (one.mount("prod", "refresh=100ms"), two.mount("prod", "refresh=100ms"));
    let staging = committed(&one, &a);
    // The other host may have looked just before there was a repo.
    std::thread::sleep(AFTER_REFRESH);
    let other = b.join("census/staging");
    let here = other.join("sub");
    let mut shell = Shell::in_dir(&here);
    let is_at_home = |shell: &mut Shell, when: &str| {
        // Not marked as deleted: the kernel still finds its way from the root.
        assert_eq!(shell.says("readlink /proc/self/cwd"), here.to_str().unwrap(), "{when}");
        assert_eq!(shell.says("/bin/pwd -P"), here.to_str().unwrap(), "{when}");
    };
    assert_eq!(shell.says("ls; test -e absent || echo no"), "deep\nno");

    for round in ["one", "two"] {
        fs::write(staging.join("sub").join(round), round).unwrap();
        sync(&staging);
        std::thread::sleep(AFTER_REFRESH);
        let _ = names(&other);
        is_at_home(&mut shell, "after a commit elsewhere");
        assert_eq!(shell.says("ls; wc -c < deep/b"), "deep\n100000", "the tree stays on its base");
    }
    shell.says("echo made > made");
    sync(&other);
    is_at_home(&mut shell, "after a commit here");
    assert_eq!(shell.says("ls; cat made; echo again > again; cat again"), "deep\nmade\nmade\nagain");
    sync(&other);
    let _ = names(&other);
    is_at_home(&mut shell, "after another");
    drop(shell);

    // Nobody is there any more: the tree follows what the other host makes of it.
    std::thread::sleep(AFTER_REFRESH);
    assert_eq!(names(&staging.join("sub")), ["again", "deep", "made"], "this one had nothing open and followed");
    fs::write(staging.join("sub/last"), "last").unwrap();
    sync(&staging);
    std::thread::sleep(AFTER_REFRESH);
    let _ = names(&other);
    assert_eq!(names(&other.join("sub")), ["again", "deep", "last", "made"]);
    one.umount(&a);
    two.umount(&b);
}

#[test]
fn a_member_of_the_trees_group_commits_by_sync_and_a_stranger_does_not() {
    if !inside("kernel::a_member_of_the_trees_group_commits_by_sync_and_a_stranger_does_not") {
        return;
    }
    let dir = scratch();
    run(Command::new("chmod").arg("755").arg(dir.path()));
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "allow_other");
    let staging = committed(&one, &mnt);
    run(Command::new("chown").arg("0:4242").arg(&staging));
    run(Command::new("chmod").arg("775").arg(&staging));
    let by = |groups: &str| {
        let user = ["--reuid", "4000", "--regid", "4000", "--groups", groups, "sync"];
        let output = Command::new("setpriv").args(user).arg(&staging).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        names(&mnt.join("census/bundles")).len()
    };
    assert_eq!(by("4000,7"), 1, "a stranger's sync is no commit");
    assert_eq!(by("4000,4242"), 2);
    // The same of what `ctl` does to the tree; labels and bundles are the mounter's.
    let bundle = names(&mnt.join("census/bundles")).remove(0);
    let tells = |groups: &str, command: &str| {
        let line = format!("echo '{command}' > census/.datamon/ctl");
        let user = ["--reuid", "4000", "--regid", "4000", "--groups", groups, "sh", "-c", &line];
        text(&Command::new("setpriv").args(user).current_dir(&mnt).env("LC_ALL", "C").output().unwrap())
    };
    for command in ["commit", "discard", "undiscard", "base none", "sing", &format!("restore {bundle}")] {
        assert!(tells("4000,7", command).contains("Permission denied"), "{command}");
    }
    let status = || fs::read_to_string(mnt.join("census/.datamon/status")).unwrap();
    assert!(status().contains("ctl is for who may write to the staging tree's root, or mounted it"), "{}", status());
    fs::write(staging.join("more"), "more").unwrap();
    assert_eq!(tells("4000,4242", "commit"), "");
    assert_eq!(names(&mnt.join("census/bundles")).len(), 3);
    fs::write(staging.join("unwanted"), "").unwrap();
    assert_eq!(tells("4000,4242", "discard"), "");
    assert!(!staging.join("unwanted").exists());
    assert_ne!(tells("4000,4242", &format!("restore {bundle}")), "");
    assert!(status().contains("restore is for who mounted it"), "{}", status());
    one.umount(&mnt);
    // Whom `uid=` shows as the owner of the namespace has it.
    let mnt = one.mount("prod", "allow_other,uid=4000");
    let line = "mkdir census/labels/mine && echo for the next > census/.datamon/message";
    for (user, may) in [("4001", false), ("4000", true)] {
        let words = ["--reuid", user, "--regid", user, "--clear-groups", "sh", "-c", line];
        let output = Command::new("setpriv").args(words).current_dir(&mnt).output().unwrap();
        assert_eq!(output.status.success(), may, "{user}: {}", text(&output));
    }
    one.umount(&mnt);
}

#[test]
fn what_a_stranger_changed_does_not_run_as_its_owner() {
    if !inside("kernel::what_a_stranger_changed_does_not_run_as_its_owner") {
        return;
    }
    let dir = scratch();
    run(Command::new("chmod").arg("755").arg(dir.path()));
    let one = Place::directory(&dir.path().join("store")).host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "allow_other,suid");
    let program = committed(&one, &mnt).join("id");
    let by_stranger = |words: &[&str]| {
        let user = ["--reuid", "4000", "--regid", "4000", "--clear-groups"];
        let output = Command::new("setpriv").args(user).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        text(&output)
    };
    let path = program.to_str().unwrap();
    let written = format!("of={path}");
    for change in [
        &["dd", "if=/usr/bin/id", &written, "conv=notrunc", "bs=64k"][..],
        &["dd", "if=/usr/bin/id", &written, "conv=notrunc", "bs=4k", "count=1", "oflag=direct"],
        &["fallocate", "-l", "1", path],
        &["fallocate", "-p", "-o", "1048576", "-l", "1", path],
    ] {
        let _ = fs::remove_file(&program);
        fs::copy("/usr/bin/id", &program).unwrap();
        run(Command::new("chmod").args(["4777", path]));
        assert!(by_stranger(&[path]).contains("euid=0"), "before");
        by_stranger(change);
        // The mode alone, which the kernel may know from before; ls(1) asks for more.
        assert_eq!(run(Command::new("stat").args(["-c", "%a", path])).trim(), "777", "{change:?}");
        assert!(!by_stranger(&[path]).contains("euid"), "{change:?}");
    }
    one.umount(&mnt);
}

/// A context on an S3 server, with a committed tree, mounted anew so that nothing is cached.
fn cold_mount_on_s3(dir: &Path) -> (Place, Host, PathBuf) {
    let place = Place::s3(&dir.join("server"));
    let one = place.host(&dir.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = committed(&one, &mnt);
    fs::write(staging.join("large"), vec![7; 8 << 20]).unwrap();
    run(&mut one.datamon(["commit", "-l", "v2", staging.to_str().unwrap()]));
    one.umount(&mnt);
    let mnt = one.mount("prod", "refresh=1h");
    assert_eq!(names(&mnt.join("census/labels/v2")).len(), 3);
    assert_eq!(names(&mnt.join("census/staging")).len(), 3);
    (place, one, mnt)
}

#[test]
fn a_killed_caller_is_let_go_while_the_store_is_silent() {
    if !inside("kernel::a_killed_caller_is_let_go_while_the_store_is_silent") {
        return;
    }
    let dir = scratch();
    let (place, one, mnt) = cold_mount_on_s3(dir.path());
    let staging = mnt.join("census/staging");
    fs::write(staging.join("changed"), "changed").unwrap();
    place.signal_server("STOP");
    let lines = [
        ("READ", format!("exec cat {}", mnt.join("census/labels/v2/large").display())),
        ("LOOKUP", format!("exec stat {}", mnt.join("census/labels/v1/a").display())),
        ("OPENDIR of sync", format!("exec sync {}", staging.display())),
    ];
    for (what, line) in &lines {
        for signal_name in ["KILL", "INT"] {
            let mut child =
                Command::new("sh").args(["-c", line]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(1500));
            assert!(child.try_wait().unwrap().is_none(), "{what}: did not wait for the store");
            signal(child.id(), signal_name);
            let killed = Instant::now();
            until(Duration::from_secs(3), &format!("{what}: its end by {signal_name}"), || {
                child.try_wait().unwrap().is_some()
            });
            assert!(killed.elapsed() < Duration::from_millis(2500), "{what}: {:?}", killed.elapsed());
        }
        // Whoever asks for something else is served all the while.
        let served = in_time(5, &format!("echo x > {0}/y && cat {0}/y && ls -l {0}", staging.display()));
        assert!(served.status.success(), "{what}: {}", text(&served));
    }
    place.signal_server("CONT");
    let read = in_time(60, &format!("cat {} | wc -c", mnt.join("census/labels/v2/large").display()));
    assert_eq!(text(&read).trim(), (8 << 20).to_string());
    one.umount(&mnt);
}

#[test]
fn readers_that_wait_for_the_store_keep_nobody_else_waiting() {
    if !inside("kernel::readers_that_wait_for_the_store_keep_nobody_else_waiting") {
        return;
    }
    let dir = scratch();
    let (place, one, mnt) = cold_mount_on_s3(dir.path());
    let local = mnt.join("census/staging/local");
    fs::write(&local, vec![1; 4 << 20]).unwrap();
    place.signal_server("STOP");
    let large = mnt.join("census/labels/v2/large");
    // Each at a place of its own, so that each has a request of its own on its way: more than the kernel's background.
    let mut waiting: Vec<Child> = (0..100)
        .map(|n| {
            let skip = format!("skip={}", n * 20);
            let mut dd = Command::new("dd");
            dd.arg(format!("if={}", large.display())).args(["of=/dev/null", "bs=4k", "count=1", &skip]);
            dd.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.iter_mut().any(|child| child.try_wait().unwrap().is_none()), "they wait");
    let line =
        format!("cp {0} {0}.copy && cmp {0} {0}.copy && ls -l {1}", local.display(), mnt.join("census").display());
    let served = in_time(10, &line);
    assert!(served.status.success(), "{}", text(&served));
    place.signal_server("CONT");
    for child in &mut waiting {
        assert!(child.wait().unwrap().success());
    }
    one.umount(&mnt);
}

#[test]
fn a_file_read_in_order_costs_one_request_for_several_chunks() {
    if !inside("kernel::a_file_read_in_order_costs_one_request_for_several_chunks") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = committed(&one, &mnt);
    let bytes: Vec<u8> =
        (0..8u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31).to_le_bytes()).collect();
    fs::write(staging.join("large"), &bytes).unwrap();
    sync(&staging);
    one.umount(&mnt);
    let mnt = one.mount("prod", "ro");
    let requests = || {
        let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("requests:")).unwrap().to_owned();
        line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    let large = mnt.join("census/labels/latest/large");
    assert_eq!(fs::metadata(&large).unwrap().len(), bytes.len() as u64);
    let before = requests();
    assert!(fs::read(&large).unwrap() == bytes, "other bytes came back");
    let chunks = bytes.len() as u64 >> 20;
    let asked = requests() - before;
    // A reader that comes before what was fetched ahead of it asks by itself: on a machine with other work now and then.
    assert!(asked <= chunks * 2 / 3, "{asked} requests for {chunks} chunks");
    one.umount(&mnt);
}
