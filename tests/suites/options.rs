//! Mount options: what each of them changes, seen through a mount.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Host, Place, host_with_repo, inside, run, scratch, text, until};
use super::mounting::{User, answer, installed_host, mounts_at};
use super::trees::noise;

const MIB: usize = 1 << 20;

fn sync(dir: &Path) {
    run(Command::new("sync").arg(dir));
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Commits what is in staging through a mount of its own, with these files in addition; answers the bundle.
fn commit(host: &Host, files: &[(&str, Vec<u8>)]) -> String {
    let mnt = host.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    for (name, bytes) in files {
        fs::write(staging.join(name), bytes).unwrap();
    }
    let id = run(&mut host.datamon(["commit", staging.to_str().unwrap()]));
    host.umount(&mnt);
    id.trim().to_owned()
}

fn bundles(host: &Host) -> Vec<String> {
    let mnt = host.mount("prod", "ro");
    let bundles = names(&mnt.join("census/bundles"));
    host.umount(&mnt);
    bundles
}

/// A number of `stats`.
fn number(stats: &str, line: &str) -> u64 {
    let found = stats.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<f64>().ok());
    found.unwrap_or_else(|| panic!("{line}: not in\n{stats}")) as u64
}

/// Owner, group and permissions as they are shown.
fn shown(path: &Path) -> (u32, u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

#[test]
fn nobody_else_reads_what_is_staged() {
    if !inside("options::nobody_else_reads_what_is_staged") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    // Everybody may walk to the state directory, which is as an earlier build made it; nobody may look into what is staged.
    for place in [dir.path().to_owned(), dir.path().join("one"), dir.path().join("one/state")] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for entry in fs::read_dir(dir.path().join("one/state")).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mnt = host.mount("prod/census/staging", "umask=0");
    for (name, len) in [("small", 300), ("large", 3 << 20)] {
        fs::write(mnt.join(name), b"secret".repeat(len / 6)).unwrap();
        fs::set_permissions(mnt.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    run(Command::new("sync").arg("-d").arg(mnt.join("small")));
    let found = |user: &[&str]| {
        let mut command = Command::new("setpriv");
        let grep = ["grep", "-rla", "secret", dir.path().join("one/state").to_str().unwrap()].map(str::to_owned);
        String::from_utf8(command.args(user).args(grep).output().unwrap().stdout).unwrap()
    };
    assert_eq!(found(&["--reuid", "65534", "--regid", "65534", "--clear-groups"]), "");
    assert!(found(&["--reuid", "0"]).lines().count() >= 2, "they are there");
    host.umount(&mnt);
}

#[test]
fn owners_and_modes_are_shown_as_asked_and_stored_as_they_were() {
    if !inside("options::owners_and_modes_are_shown_as_asked_and_stored_as_they_were") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    for name in ["kept", "changed", "given"] {
        fs::write(staging.join(name), name).unwrap();
        fs::set_permissions(staging.join(name), fs::Permissions::from_mode(0o664)).unwrap();
        chown(staging.join(name), Some(1234), Some(5678)).unwrap();
    }
    sync(&staging);
    host.umount(&mnt);

    let version = host.mount("prod/census/labels/latest", "uid=1000,gid=1001,umask=026");
    assert_eq!(shown(&version.join("kept")), (1000, 1001, 0o640), "a version");
    host.umount(&version);

    let mnt = host.mount("prod", "uid=1000,gid=1001,umask=026");
    assert_eq!(shown(&mnt.join("census/labels")), (1000, 1001, 0o751), "the namespace is that user's");
    let staging = mnt.join("census/staging");
    let kept = staging.join("kept");
    assert_eq!(shown(&kept), (1000, 1001, 0o640), "a staged file of the base");
    fs::write(&kept, "with new content").unwrap();
    // As cp -a and rsync do: nothing that is not so already.
    chown(&kept, Some(1000), Some(1001)).unwrap();
    assert_eq!(shown(&kept), (1000, 1001, 0o640), "a changed one");
    chown(staging.join("given"), Some(77), Some(1001)).unwrap();
    fs::set_permissions(staging.join("changed"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(shown(&staging.join("changed")), (1000, 1001, 0o751));
    // What is made here is what it is seen as, and so a copy of what is owned so.
    fs::write(staging.join("made"), "by root").unwrap();
    fs::write(dir.path().join("original"), "x").unwrap();
    chown(dir.path().join("original"), Some(1000), Some(2)).unwrap();
    run(Command::new("cp").arg("-a").arg(dir.path().join("original")).arg(staging.join("copied")));
    let as_user = ["--reuid", "1000", "--regid", "1001", "--clear-groups", "sh", "-c", "echo mine > $0/mine"];
    for passed in mnt.ancestors().skip(1).take(3) {
        fs::set_permissions(passed, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(&staging, Some(1000), None).unwrap();
    run(Command::new("setpriv").args(as_user).arg(&staging));
    sync(&staging);
    host.umount(&mnt);

    let plain = host.mount("prod/census/labels/latest", "ro");
    assert_eq!(shown(&plain.join("kept")), (1234, 5678, 0o664), "what is stored stayed");
    assert_eq!(fs::read_to_string(plain.join("kept")).unwrap(), "with new content");
    assert_eq!(shown(&plain.join("given")), (77, 5678, 0o664), "what was changed is changed");
    assert_eq!(shown(&plain.join("changed")), (1234, 5678, 0o777));
    assert_eq!(shown(&plain.join("mine")).0, 1000);
    assert_eq!((shown(&plain.join("made")).0, shown(&plain.join("made")).1), (1000, 1001));
    assert_eq!((shown(&plain.join("copied")).0, shown(&plain.join("copied")).1), (1000, 2));
    host.umount(&plain);
}

#[test]
fn a_users_mount_shows_others_files_as_the_users_and_stores_them_as_they_were() {
    if !inside("options::a_users_mount_shows_others_files_as_the_users_and_stores_them_as_they_were") {
        return;
    }
    let dir = scratch();
    let user = User::new(dir.path());
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "rw");
    let staging = mnt.join("census/staging");
    fs::write(staging.join("roots"), "x").unwrap();
    fs::set_permissions(staging.join("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    sync(&staging);
    host.umount(&mnt);
    run(Command::new("chown").args(["-R", "65534:65534"]).arg(dir.path().join("store")));
    let (store, at) = (format!("file://{}", dir.path().join("store").display()), user.at("mnt"));
    user.does("mkdir", &[&at]);
    user.datamon(&["context", "add", &store]);
    user.datamon(&["mount", "prod/census/staging", &at]);
    let file = format!("{at}/roots");
    assert_eq!(user.does("stat", &["-c", "%u:%g %a", &file]), "65534:65534 600\n");
    user.does("sh", &["-c", "echo y >> $0/roots && cp -a $0/roots $0/copy", &at]);
    user.datamon(&["umount", &at]);
    let plain = host.mount("prod/census/labels/latest", "ro");
    assert_eq!(fs::read_to_string(plain.join("roots")).unwrap(), "xy\n");
    assert_eq!(shown(&plain.join("roots")), (0, 0, 0o600), "the stored owner stayed");
    assert_eq!(shown(&plain.join("copy")), (65534, 65534, 0o600), "what the user made is the user's");
    host.umount(&plain);
}

#[test]
fn sync_local_commits_nothing_and_the_command_does() {
    if !inside("options::sync_local_commits_nothing_and_the_command_does") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "sync=local,message=from the mount,label=nightly");
    let staging = mnt.join("census/staging");
    fs::write(staging.join("a"), "a").unwrap();
    sync(&staging);
    assert_eq!(names(&mnt.join("census/bundles")), Vec::<String>::new());
    let id = run(&mut host.datamon(["commit", staging.to_str().unwrap()]));
    let history = fs::read_to_string(mnt.join("census/.datamon/history")).unwrap();
    assert!(history.starts_with(id.trim()) && history.contains("\tnightly\tfrom the mount\n"), "{history}");
    assert_eq!(names(&mnt.join("census/labels")), ["latest", "nightly"]);
    host.umount(&mnt);
}

#[test]
fn message_and_label_are_those_of_commits_by_sync_and_umount() {
    if !inside("options::message_and_label_are_those_of_commits_by_sync_and_umount") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "message=\"by sync, or umount\",label=one,label=two");
    let staging = mnt.join("census/staging");
    fs::write(staging.join("a"), "a").unwrap();
    sync(&staging);
    fs::write(staging.join("b"), "b").unwrap();
    host.umount(&mnt);
    let mnt = host.mount("prod", "ro");
    let history = fs::read_to_string(mnt.join("census/.datamon/history")).unwrap();
    assert_eq!(history.matches("\tone,two\tby sync, or umount\n").count(), 2, "{history}");
    let newest = history.lines().last().unwrap().split('\t').next().unwrap();
    for label in ["one", "two"] {
        assert_eq!(fs::read_to_string(mnt.join("census/.datamon/labels").join(label)).unwrap().trim(), newest);
    }
    host.umount(&mnt);
}

#[test]
fn diverged_fail_keeps_the_changes_staged_and_says_what_latest_is() {
    if !inside("options::diverged_fail_keeps_the_changes_staged_and_says_what_latest_is") {
        return;
    }
    let dir = scratch();
    let (place, host) = host_with_repo(dir.path());
    let first = commit(&host, &[("a", b"a".to_vec())]);
    let two = place.host(&dir.path().join("two"), "add");
    let mnt = two.mount("prod", "diverged=fail,refresh=100ms");
    let staging = mnt.join("census/staging");
    fs::write(staging.join("mine"), "mine").unwrap();
    let other = commit(&host, &[("b", b"b".to_vec())]);
    let refused = Command::new("sync").arg(&staging).output().unwrap();
    assert!(text(&refused).contains("Stale file handle"), "{}", text(&refused));
    let status = fs::read_to_string(mnt.join("census/.datamon/status")).unwrap();
    for line in ["staging: dirty\n", "store_state: answers\n", "last_error: commit of census: latest is "] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert!(status.contains(&format!("store: {}\n", place.url)), "{status}");
    // What latest is was learned by the look at labels/.
    names(&mnt.join("census/labels"));
    let status = fs::read_to_string(mnt.join("census/.datamon/status")).unwrap();
    assert!(status.contains("diverged: yes\n"), "{status}");
    let output = two.datamon(["commit", "--json", staging.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("\"kind\":\"diverged\"") && said.contains(&first) && said.contains(&other), "{said}");
    assert!(said.contains("diverged=allow"), "the remedy: {said}");
    let umount = two.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap();
    assert_eq!((umount.status.code(), mounts_at(&mnt)), (Some(1), 1), "{}", text(&umount));
    assert_eq!(fs::read_to_string(staging.join("mine")).unwrap(), "mine");
    run(&mut two.datamon(["umount", "--lazy", mnt.to_str().unwrap()]));
    until(Duration::from_secs(10), "the daemon's end", || two.daemons(&mnt).is_empty());
    let mnt = two.mount("prod", "refresh=100ms");
    sync(&mnt.join("census/staging"));
    assert_eq!(names(&mnt.join("census/bundles")).len(), 3, "both are kept");
    two.umount(&mnt);
}

#[test]
fn umount_commits_all_trees_but_one_and_stays_for_that() {
    if !inside("options::umount_commits_all_trees_but_one_and_stays_for_that") {
        return;
    }
    let dir = scratch();
    let (place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "diverged=fail,refresh=100ms");
    fs::create_dir(mnt.join("other")).unwrap();
    for repo in ["census", "other"] {
        fs::write(mnt.join(repo).join("staging/a"), repo).unwrap();
    }
    let two = place.host(&dir.path().join("two"), "add");
    commit(&two, &[("theirs", b"x".to_vec())]);
    let output = host.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap();
    assert_eq!((output.status.code(), mounts_at(&mnt)), (Some(1), 1), "{}", text(&output));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let committed = names(&mnt.join("other/bundles"));
    assert_eq!(out.lines().collect::<Vec<_>>(), committed, "what was committed is printed: {err}");
    assert!(err.lines().count() == 1 && err.starts_with("datamon: census: latest is "), "{err}");
    // Writing goes on, in both.
    for repo in ["census", "other"] {
        fs::write(mnt.join(repo).join("staging/b"), repo).unwrap();
    }
    run(host.command("bash").args(["-c", "echo discard > \"$0/census/.datamon/ctl\""]).arg(&mnt));
    host.umount(&mnt);
    let mnt = host.mount("prod", "ro");
    assert_eq!(names(&mnt.join("other/labels/latest")), ["a", "b"]);
    assert_eq!(names(&mnt.join("census/labels/latest")), ["theirs"]);
    host.umount(&mnt);
}

#[test]
fn base_and_stage_say_which_tree_and_what_it_starts_from() {
    if !inside("options::base_and_stage_say_which_tree_and_what_it_starts_from") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let first = commit(&host, &[("a", b"a".to_vec())]);
    commit(&host, &[("b", b"b".to_vec())]);
    let staging = |options: &str| {
        let mnt = host.mount("prod/census/staging", options);
        let found = names(&mnt);
        (mnt, found)
    };
    for (options, found) in
        [("base=none", vec![]), ("base=latest", vec!["a", "b"]), (&format!("base={first}"), vec!["a"])]
    {
        let (mnt, names) = staging(options);
        assert_eq!(names, found, "{options}");
        host.umount(&mnt);
    }
    let (mnt, _) = staging("stage=second,commit=manual");
    fs::write(mnt.join("second"), "x").unwrap();
    host.umount(&mnt);
    let (mnt, found) = staging("rw");
    assert_eq!(found, ["a", "b"], "another tree");
    host.umount(&mnt);
    let (mnt, found) = staging("stage=second");
    assert_eq!(found, ["a", "b", "second"]);
    host.umount(&mnt);
    assert_eq!(bundles(&host).len(), 3, "umount committed the second tree");
}

#[test]
fn a_mount_of_a_tree_waits_a_moment_for_the_one_before_it_to_end() {
    if !inside("options::a_mount_of_a_tree_waits_a_moment_for_the_one_before_it_to_end") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let first = host.mount("prod/census/staging", "rw");
    fs::write(first.join("a"), "a").unwrap();
    let second = dir.path().join("second");
    fs::create_dir(&second).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            host.umount(&first);
        });
        run(&mut host.datamon(["mount", "prod/census/staging", second.to_str().unwrap()]));
    });
    assert_eq!(names(&second), ["a"]);
    host.umount(&second);
}

#[test]
fn state_and_log_lie_where_they_are_asked_to() {
    if !inside("options::state_and_log_lie_where_they_are_asked_to") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let (state, log) = (dir.path().join("elsewhere"), dir.path().join("logs/datamon.log"));
    let options = format!("state={},log={},commit=manual", state.display(), log.display());
    let mnt = host.mount("prod/census/staging", &options);
    fs::write(mnt.join("a"), "a").unwrap();
    host.umount(&mnt);
    assert!(state.read_dir().unwrap().next().is_some(), "the tree lies there");
    until(Duration::from_secs(5), "the log's last line", || fs::read_to_string(&log).unwrap().contains("unmounted"));
    let mnt = host.mount("prod/census/staging", "rw");
    assert_eq!(names(&mnt), Vec::<String>::new(), "another state directory is another host");
    host.umount(&mnt);
    let mnt = host.mount("prod/census/staging", &options);
    assert_eq!(names(&mnt), ["a"]);
    host.umount(&mnt);
}

/// Reads files at the same time; answers how long all took.
fn read_at_once(files: &[PathBuf]) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for file in files {
            scope.spawn(move || assert_eq!(fs::read(file).unwrap().len(), MIB));
        }
    });
    start.elapsed()
}

#[test]
fn requests_at_once_are_as_many_as_asked_for() {
    if !inside("options::requests_at_once_are_as_many_as_asked_for") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let files: Vec<_> = (0..12u64).map(|n| (format!("f{n:02}"), noise(n + 1, MIB))).collect();
    commit(&host, &files.iter().map(|(name, bytes)| (&name[..], bytes.clone())).collect::<Vec<_>>());
    let most = |options: &str| {
        let mnt = host.mount("prod", options);
        let paths: Vec<_> = files.iter().map(|(name, _)| mnt.join("census/labels/latest").join(name)).collect();
        read_at_once(&paths);
        let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
        host.umount(&mnt);
        number(&stats, "datamon_store_requests_running_max{direction=\"in\"}")
    };
    assert_eq!(most("download=1"), 1);
    assert_eq!(most("download=2"), 2);
    assert!(most("rw") > 2, "without the option there are more");
    let mnt = host.mount("prod/census/staging", "upload=1,base=none,stage=other");
    for n in 0..6u64 {
        fs::write(mnt.join(format!("g{n}")), noise(100 + n, 8 * MIB)).unwrap();
    }
    sync(&mnt);
    let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
    assert_eq!(number(&stats, "datamon_store_requests_running_max{direction=\"out\"}"), 1);
    host.umount(&mnt);
}

#[test]
fn bwlimit_bounds_the_bytes_a_second_of_each_direction() {
    if !inside("options::bwlimit_bounds_the_bytes_a_second_of_each_direction") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let bytes = noise(7, 20 * MIB);
    let mnt = host.mount("prod/census/staging", "bwlimit=8M");
    fs::write(mnt.join("large"), &bytes).unwrap();
    let start = Instant::now();
    sync(&mnt);
    // A pack of 16 MiB goes at once; what comes after it waits two seconds.
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    host.umount(&mnt);
    let mnt = host.mount("prod/census/labels/latest", "ro,bwlimit=8M");
    let start = Instant::now();
    assert!(fs::read(mnt.join("large")).unwrap() == bytes);
    // 20 MiB, of which the last request of 4 MiB is not waited for.
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    host.umount(&mnt);
}

#[test]
fn verify_off_lets_wrong_bytes_pass_and_is_for_ro_only() {
    if !inside("options::verify_off_lets_wrong_bytes_pass_and_is_for_ro_only") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let bytes = noise(9, MIB);
    commit(&host, &[("large", bytes.clone())]);
    let packs = run(Command::new("find").arg(dir.path().join("store")).args(["-type", "f", "-path", "*/p/*"]));
    let pack = fs::File::options().read(true).write(true).open(packs.lines().next().unwrap()).unwrap();
    let mut byte = [0];
    pack.read_exact_at(&mut byte, MIB as u64 / 2).unwrap();
    pack.write_all_at(&[byte[0] ^ 1], MIB as u64 / 2).unwrap();
    let mnt = host.mount("prod/census/labels/latest", "ro");
    const EIO: i32 = 5;
    assert_eq!(fs::read(mnt.join("large")).unwrap_err().raw_os_error(), Some(EIO));
    host.umount(&mnt);
    let mnt = host.mount("prod/census/labels/latest", "ro,verify=off");
    let read = fs::read(mnt.join("large")).unwrap();
    assert_eq!(read.iter().zip(&bytes).filter(|(a, b)| a != b).count(), 1, "this is its price");
    host.umount(&mnt);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let refused = host.datamon(["mount", "prod", mnt.to_str().unwrap(), "-o", "verify=off"]).output().unwrap();
    assert!(text(&refused).contains("verify=off: only with ro"), "{}", text(&refused));
    let mnt = host.mount("prod", "ro,verify=off");
    let refused = host.datamon(["mount", "prod", mnt.to_str().unwrap(), "-o", "remount,rw"]).output().unwrap();
    assert!(text(&refused).contains("stays read-only"), "{}", text(&refused));
    host.umount(&mnt);
}

#[test]
fn credentials_that_others_can_read_are_told() {
    if !inside("options::credentials_that_others_can_read_are_told") {
        return;
    }
    let dir = scratch();
    let place = Place::s3(&dir.path().join("store"));
    place.host(&dir.path().join("one"), "create");
    let keys = dir.path().join("keys");
    fs::write(&keys, "[default]\naws_access_key_id = test\naws_secret_access_key = test\n").unwrap();
    // The same context, on a host that has no keys in its environment.
    let host = Host::new(&dir.path().join("two"));
    let mut add = host.datamon(["context", "add", &place.url]);
    for option in place.options.iter().chain([&format!("credentials={}", keys.display())]) {
        add.args(["--option", option]);
    }
    run(&mut add);
    for (mode, is_told) in [("644", true), ("600", false)] {
        run(Command::new("chmod").arg(mode).arg(&keys));
        let mnt = host.mount("prod", "ro");
        let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
        let notice = format!("notice: credentials={}: others can read it (chmod 600 ", keys.display());
        assert_eq!(status.contains(&notice), is_told, "{mode}: {status}");
        host.umount(&mnt);
    }
}

/// What a server says to a request.
fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn numbers_are_served_and_lie_in_stats() {
    if !inside("options::numbers_are_served_and_lie_in_stats") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mnt = host.mount("prod", &format!("metrics=127.0.0.1:{port}"));
    let staging = mnt.join("census/staging");
    fs::write(staging.join("a"), noise(3, 100_000)).unwrap();
    sync(&staging);
    sync(&staging);
    fs::write(staging.join("b"), "staged").unwrap();
    assert_eq!(fs::read(mnt.join("census/labels/latest/a")).unwrap().len(), 100_000);
    let page = ask(port, "GET /metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{page}");
    let numbers = page.split_once("\r\n\r\n").unwrap().1;
    for (line, at_least) in [
        ("datamon_commits_total{outcome=\"made\"}", 1),
        ("datamon_commits_total{outcome=\"unchanged\"}", 1),
        ("datamon_commit_seconds_count", 2),
        ("datamon_staged_files{repo=\"census\"}", 1),
        ("datamon_staged_bytes{repo=\"census\"}", 6),
        ("datamon_store_requests_total{verb=\"put\",role=\"blob\",outcome=\"ok\"}", 1),
        ("datamon_store_requests_total{verb=\"get\",role=\"blob\",outcome=\"ok\"}", 1),
        ("datamon_store_bytes_total{direction=\"out\"}", 100_000),
        ("datamon_store_bytes_total{direction=\"in\"}", 100_000),
        ("datamon_cache_bytes{cache=\"content\"}", 100_000),
        ("datamon_cache_reads_total{outcome=\"miss\"}", 1),
        ("datamon_operation_seconds_count{operation=\"lookup\"}", 1),
        ("datamon_operation_seconds_bucket{operation=\"read\",le=\"+Inf\"}", 1),
        ("datamon_operations_refused_total{operation=\"lookup\"}", 0),
        ("datamon_mount_start_time_seconds", 1_600_000_000),
    ] {
        if at_least > 0 || numbers.contains(line) {
            assert!(number(numbers, line) >= at_least, "{line}: {}", number(numbers, line));
        }
    }
    // Every line is a comment or a name, labels and a number: what Prometheus reads.
    for line in numbers.lines() {
        let is_sample = || line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
        assert!(line.starts_with("# HELP ") || line.starts_with("# TYPE ") || is_sample(), "{line}");
    }
    for (place, file) in [(&mnt, ".datamon/stats"), (&mnt, "census/.datamon/stats"), (&staging, ".datamon/stats")] {
        let path = place.join(file);
        let size = fs::metadata(&path).unwrap().len() as usize;
        let content = fs::read_to_string(&path).unwrap();
        assert!(content.contains("datamon_commits_total{outcome=\"made\"} 1\n"), "{content}");
        // A copy by size has all of it.
        let copy = dir.path().join("copy");
        run(Command::new("cp").arg(&path).arg(&copy));
        assert!(size > 1000 && fs::read_to_string(&copy).unwrap().ends_with('\n'));
        until(Duration::from_secs(5), "a second in which tar(1) sees one text", || {
            Command::new("tar").arg("-cf").arg("/dev/null").arg(&path).output().unwrap().status.success()
        });
    }
    assert!(ask(port, "GET /").starts_with("HTTP/1.1 404"));
    assert!(ask(port, "POST /metrics").starts_with("HTTP/1.1 405"));
    let other = dir.path().join("mnt");
    fs::create_dir(&other).unwrap();
    let options = format!("metrics=127.0.0.1:{port}");
    let refused = host.datamon(["mount", "prod", other.to_str().unwrap(), "-o", &options]).output().unwrap();
    assert!(text(&refused).contains("in use") && text(&refused).contains("choose another"), "{}", text(&refused));
    assert_eq!(mounts_at(&other), 0);
    host.umount(&mnt);
    until(Duration::from_secs(10), "the server's end", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn reads_names_the_versions_that_were_read() {
    if !inside("options::reads_names_the_versions_that_were_read") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let id = commit(&host, &[("a", noise(1, 5000))]);
    let mnt = host.mount("prod", "rw");
    let reads = || fs::read_to_string(mnt.join("census/.datamon/reads")).unwrap();
    assert_eq!(reads(), "");
    fs::read(mnt.join("census/labels/latest/a")).unwrap();
    fs::read(mnt.join("census/bundles").join(&id).join("a")).unwrap();
    // A text of numbers may be a second old.
    until(Duration::from_secs(5), "both reads", || reads().lines().count() == 2);
    let said = reads();
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert_eq!((lines[0][..3].to_vec(), lines[0][6]), (vec!["census", &id, "labels/latest"], "5000"), "{said}");
    assert_eq!(lines[1][..3], ["census", &id, "bundles"], "{said}");
    assert_eq!(fs::read_to_string(mnt.join(".datamon/reads")).unwrap(), said);
    host.umount(&mnt);
}

#[test]
fn a_mount_is_remounted_read_only_and_writable_again() {
    if !inside("options::a_mount_is_remounted_read_only_and_writable_again") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    const EROFS: Option<i32> = Some(30);
    assert_eq!(answer(&host, "mount", &["-t", "datamon", "prod/census"], &mnt), (0, String::new()));
    let staging = mnt.join("staging");
    let bind = dir.path().join("bind");
    fs::create_dir(&bind).unwrap();
    run(Command::new("mount").arg("--bind").arg(&staging).arg(&bind));
    let options = |dir: &Path| run(Command::new("findmnt").args(["-no", "OPTIONS"]).arg(dir)).trim().to_owned();
    let before = options(&mnt);

    let held = fs::File::create(staging.join("a")).unwrap();
    let (code, said) = answer(&host, "mount", &["-o", "remount,ro"], &mnt);
    assert_eq!(code, 32, "{said}");
    assert!(said.contains("open for writing, nothing was changed"), "{said}");
    fs::write(staging.join("a"), "a").unwrap();
    drop(held);
    until(Duration::from_secs(5), "the close", || answer(&host, "mount", &["-o", "remount,ro"], &mnt).0 == 0);
    assert_eq!(options(&mnt), before.replacen("rw", "ro", 1), "nothing else changed");
    for place in [&staging, &bind] {
        assert_eq!(fs::write(place.join("b"), "b").unwrap_err().raw_os_error(), EROFS);
    }
    assert_eq!(fs::read_to_string(staging.join("a")).unwrap(), "a");
    sync(&staging);
    assert_eq!(names(&mnt.join("bundles")).len(), 1, "what was changed before is committed");
    let id = run(&mut host.datamon(["commit", staging.to_str().unwrap()]));
    assert_eq!(names(&mnt.join("bundles")), [id.trim()], "the command does the same");
    assert_eq!(answer(&host, "mount", &["-o", "remount,rw"], &mnt), (0, String::new()));
    assert_eq!(options(&mnt), before);
    assert_eq!(answer(&host, "mount", &["-o", "remount,noexec"], &mnt), (0, String::new()));
    assert_eq!(options(&mnt), before.replacen("nodev", "nodev,noexec", 1));
    assert_eq!(answer(&host, "mount", &["-o", "remount,exec"], &mnt), (0, String::new()));
    assert_eq!(options(&mnt), before);
    // What holds already may be said again, as mount(8) does of fstab; what does not is not believed to be changed.
    for words in ["remount,base=latest,refresh=1s,commit=umount,allow_other", "remount,_netdev,nofail,x-a=b"] {
        assert_eq!(answer(&host, "mount", &["-o", words], &mnt), (0, String::new()), "{words}");
    }
    for word in ["base=none", "label=v1", "commit=manual", "stage=second", "refresh=2s", "uid=5", "sync", "allow_root"]
    {
        let (code, said) = answer(&host, "mount", &["-o", &format!("remount,ro,{word}")], &mnt);
        let why = format!("{word}: a mount has this from its beginning or not at all (umount it and mount it again)");
        assert!(code == 32 && said.contains(&why), "{word}: {code}: {said}");
        assert_eq!(options(&mnt), before, "{word}: nothing was changed");
    }
    fs::write(bind.join("b"), "b").unwrap();
    run(Command::new("umount").arg("-i").arg(&bind));
    assert_eq!(answer(&host, "umount", &[], &mnt).0, 0);

    // One that began read-only, and one that stays so.
    let words = "ro,label=a,label=b,message=\"x,y\",verify=off";
    assert_eq!(answer(&host, "mount", &["-t", "datamon", "-o", words, "prod/census"], &mnt), (0, String::new()));
    let (code, said) = answer(&host, "mount", &["-o", &format!("remount,{words}")], &mnt);
    assert_eq!((code, said), (0, String::new()), "its own words");
    assert_eq!(answer(&host, "umount", &[], &mnt), (0, String::new()));
    assert_eq!(answer(&host, "mount", &["-t", "datamon", "-o", "ro", "prod/census"], &mnt), (0, String::new()));
    assert_eq!(fs::write(staging.join("c"), "c").unwrap_err().raw_os_error(), EROFS);
    assert_eq!(answer(&host, "mount", &["-o", "remount,rw"], &mnt), (0, String::new()));
    fs::write(staging.join("c"), "c").unwrap();
    assert_eq!(answer(&host, "umount", &[], &mnt).0, 0);
    let version = ["-t", "datamon", "prod/census/labels/latest"];
    assert_eq!(answer(&host, "mount", &version, &mnt), (0, String::new()));
    assert_eq!(names(&mnt), ["a", "b", "c"], "umount committed what was written after the remount");
    let (code, said) = answer(&host, "mount", &["-o", "remount,rw"], &mnt);
    assert_eq!(code, 32, "{said}");
    assert!(said.contains("stays read-only"), "{said}");
    assert_eq!(answer(&host, "umount", &[], &mnt), (0, String::new()));
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    if !inside("options::progress_is_shown_on_a_terminal_only") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    // Slow enough to be seen: a second pack has to wait.
    let mnt = host.mount("prod", "bwlimit=16M");
    let staging = mnt.join("census/staging");
    let commit = |seed: u64, on_a_terminal: bool| {
        fs::write(staging.join("large"), noise(seed, 40 * MIB)).unwrap();
        let line = format!("{} commit {}", env!("CARGO_BIN_EXE_datamon"), staging.display());
        if on_a_terminal {
            return host.command("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
        }
        host.command("sh").args(["-c", &line]).output().unwrap()
    };
    let plain = commit(1, false);
    assert!(plain.status.success() && plain.stderr.is_empty(), "{}", text(&plain));
    let shown = text(&commit(2, true));
    assert!(shown.contains("committing census [") && shown.contains(" MiB"), "{shown:?}");
    let last = shown.rsplit("\u{1b}[K").next().unwrap().trim();
    assert_eq!(last.len(), 26, "the bundle's id stays, and nothing else: {shown:?}");
    host.umount(&mnt);
}

#[test]
fn the_manual_is_written_and_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(&dir.path().join("home"));
    let at = dir.path().join("man");
    run(&mut host.datamon(["man-pages", at.to_str().unwrap()]));
    for (page, words) in [
        ("man1/datamon.1", &["datamon - A file system", "commit", "--label <LABEL>", "DATAMON_STATE_DIR"][..]),
        ("man1/datamon-context.1", &["datamon-context", "create", "--store <URL>", "contexts.d"][..]),
        ("man8/mount.datamon.8", &["base=LABEL|BUNDLE|none", "Default: latest.", "remount", "endpoint=URL"][..]),
    ] {
        let page = at.join(page);
        let source = fs::read_to_string(&page).unwrap();
        assert!(source.contains(".TH "), "{source}");
        if !Path::new("/usr/bin/man").exists() {
            let _ = writeln!(std::io::stderr(), "SKIPPED a part of the_manual_is_written_and_can_be_read: no man(1)");
            continue;
        }
        let mut man = Command::new("man");
        man.args(["-l", "--warnings=w"]).arg(&page).env("MANWIDTH", "120").env("LC_ALL", "C");
        let output = man.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {}", page.display(), text(&output));
        let read = text(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(read.contains(word), "{}: {word}: {read}", page.display());
        }
    }
}
