//! Who did what, when, and from what: the history of a repo and of its labels, and what a bundle was derived from, as every
//! reader of a shell sees them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use datamon::model::id::ChunkId;

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
    // Also where the kernel opens without us, and keeps what it has read.
    let version = one.mount("prod/census/labels/v1", "refresh=100ms");
    let kept =
        [Tail::of(&["-f"], &version.join(".datamon/history")), Tail::of(&["-F"], &version.join(".datamon/history"))];
    kept.iter().for_each(|tail| tail.shows(&first, 1));
    tails.iter().for_each(|tail| tail.shows(&first, 1));
    label.shows(&first, 1);
    until(Duration::from_secs(5), "the repo on the other host", || b.join("census").exists());
    let second = commit(&two, &b.join("census/staging"), &[]);
    fs::write(b.join("census/.datamon/labels/v1"), &second).unwrap();
    tails.iter().chain(&kept).for_each(|tail| tail.shows(&second, 1));
    label.shows(&second, 1);
    fs::write(b.join("census/.datamon/labels/v1"), &first).unwrap();
    fs::remove_dir(b.join("census/bundles").join(&second)).unwrap();
    tails.iter().for_each(|tail| tail.shows(&second, 2));
    kept.iter().for_each(|tail| tail.shows(&second, 2));
    drop((tails, label, kept));
    one.umount_among_others(&version);
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

#[test]
fn a_user_that_only_a_directory_service_knows_is_named() {
    if !inside("lineage::a_user_that_only_a_directory_service_knows_is_named") {
        return;
    }
    let dir = scratch();
    // In the place of the real one, whose services are the host's: one user is known, one is never answered for.
    let programs = dir.path().join("bin");
    fs::create_dir(&programs).unwrap();
    let getent = "#!/bin/sh\necho \"$*\" >>$0.asked\ncase $2 in\n54322) echo grace:x:54322:54322::/:/bin/sh ;;\n\
                  54323) exec sleep 600 ;;\nesac\n";
    fs::write(programs.join("getent"), getent).unwrap();
    fs::set_permissions(programs.join("getent"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create").with(&[("PATH", &path)]);
    let mnt = host.mount("prod", "refresh=100ms");
    fs::create_dir(mnt.join("census")).unwrap();
    let staging = mnt.join("census/staging");
    open_the_way(&mnt);
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o777)).unwrap();
    let committed_by = |uid: &str, change: &str| {
        fs::write(staging.join(uid), change).unwrap();
        let start = Instant::now();
        run(as_user(uid).arg("sync").arg(&staging));
        (last(&mnt.join("census/.datamon/history"))[2].clone(), start.elapsed())
    };
    assert_eq!(committed_by("54322", "a").0, format!("grace@{}", hostname()));
    assert_eq!(committed_by("54322", "b").0, format!("grace@{}", hostname()));
    let asked = fs::read_to_string(programs.join("getent.asked")).unwrap();
    assert_eq!(asked, "passwd 54322\n", "once for two commits, and not for who mounted");
    let (name, took) = committed_by("54323", "a");
    assert_eq!(name, format!("uid 54323@{}", hostname()));
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&took), "given up after {took:?}");
    host.umount(&mnt);
}

/// What `info` says that a bundle was derived from.
fn derived_from(repo: &Path, bundle: &str) -> Vec<String> {
    let info = fs::read_to_string(repo.join(format!(".datamon/bundle/{bundle}/info"))).unwrap();
    info.lines().filter_map(|line| line.strip_prefix("derived_from: ")).map(str::to_owned).collect()
}

/// A mount of everything with the repos census and survey; survey has two bundles with a file `f`, the first is `v1`.
fn with_survey(host: &Host, options: &str) -> (PathBuf, [String; 2]) {
    let mnt = host.mount("prod", options);
    ["census", "survey"].iter().for_each(|repo| fs::create_dir(mnt.join(repo)).unwrap());
    let staging = mnt.join("survey/staging");
    let bundles = ["one", "two"].map(|text| {
        fs::write(staging.join("f"), text.repeat(10_000)).unwrap();
        run(&mut host.datamon(["commit", staging.to_str().unwrap()])).trim().to_owned()
    });
    fs::write(mnt.join("survey/.datamon/labels/v1"), &bundles[0]).unwrap();
    (mnt, bundles)
}

#[test]
fn a_bundle_names_those_of_which_a_file_was_open_while_it_was_made() {
    if !inside("lineage::a_bundle_names_those_of_which_a_file_was_open_while_it_was_made") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create");
    let (mnt, [one, two]) = with_survey(&host, "refresh=100ms");
    let (census, survey) = (mnt.join("census"), mnt.join("survey"));
    let staging = census.join("staging");
    let made = || {
        let bundle = commit(&host, &staging, &[]);
        let derived = derived_from(&census, &bundle);
        (bundle, derived)
    };
    let nothing = Vec::<String>::new();
    let [of_one, of_two] = [&one, &two].map(|bundle| vec![format!("survey/{bundle}")]);

    // Who looks around opens nothing.
    run(Command::new("find").arg(&survey).args(["-type", "f", "-printf", "%s"]));
    assert_eq!(made().1, nothing);
    run(Command::new("cp").arg(survey.join("labels/v1/f")).arg(staging.join("copy")));
    let (first, derived) = made();
    assert_eq!(derived, of_one);
    // The base is the parent, whoever reads it through the tree; and what was told once is not told again.
    assert_eq!(fs::read_to_string(staging.join("copy")).unwrap(), "one".repeat(10_000));
    assert_eq!(made().1, nothing);
    // Also what the kernel has in its memory.
    fs::read(survey.join("labels/v1/f")).unwrap();
    assert_eq!(made().1, of_one);
    // Every way to a bundle is a way to that bundle; one of the own repo is no other.
    for way in ["labels/latest", "at/9999", &format!("bundles/{two}")] {
        fs::read(survey.join(way).join("f")).unwrap();
    }
    fs::read(census.join("bundles").join(&first).join("copy")).unwrap();
    assert_eq!(made().1, [&[format!("census/{first}")][..], &of_two].concat());
    // A file that stays open counts until it is closed, and a mapping keeps it open.
    let open = File::open(survey.join("labels/v1/f")).unwrap();
    for _ in 0..2 {
        assert_eq!(made().1, of_one);
    }
    drop(open);
    assert_eq!(made().1, of_one, "it was open since that commit");
    assert_eq!(made().1, nothing);
    let mut mapped = Command::new("python3")
        .args(["-c", MAP])
        .arg(survey.join("labels/v1/f"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    mapped.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    for _ in 0..2 {
        assert_eq!(made().1, of_one);
    }
    drop(mapped.stdin.take());
    assert!(mapped.wait().unwrap().success());
    assert_eq!((made().1, made().1), (of_one.clone(), nothing.clone()));

    // Another mount's reads are not seen; what it shows of a bundle is the same, under the repo's name of now.
    let pinned = host.mount("prod/survey/labels/v1", "ro");
    run(Command::new("cp").arg(pinned.join("f")).arg(staging.join("unseen")));
    assert_eq!(made().1, nothing);
    host.umount(&pinned);
    fs::rename(&survey, mnt.join("poll")).unwrap();
    let read_only = host.mount("prod/census", "ro");
    assert_eq!(derived_from(&read_only, &first), [format!("poll/{one}")]);
    host.umount(&read_only);
    host.umount(&mnt);
}

/// Maps a file, closes it, says so, and holds the mapping until its input ends.
const MAP: &str = "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); f.close(); \
                   sys.stdout.write('done'); sys.stdout.flush(); sys.stdin.read(); m[0]";

#[test]
fn each_tree_counts_what_was_open_since_its_own_commit_and_a_failed_one_is_none() {
    if !inside("lineage::each_tree_counts_what_was_open_since_its_own_commit_and_a_failed_one_is_none") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create");
    let (mnt, [one, two]) = with_survey(&host, "refresh=100ms,diverged=fail");
    let census = mnt.join("census");
    let (staging, other) = (census.join("staging"), mnt.join("survey/staging"));
    commit(&host, &staging, &[]);
    fs::read(mnt.join("survey/labels/v1/f")).unwrap();
    let of_census = commit(&host, &staging, &[]);
    let of_survey = commit(&host, &other, &[]);
    let expected = [format!("survey/{one}")];
    assert_eq!(derived_from(&census, &of_census), expected);
    assert_eq!(derived_from(&mnt.join("survey"), &of_survey), expected, "this tree was not committed since");
    assert_eq!(derived_from(&census, &commit(&host, &staging, &[])), Vec::<String>::new());

    // Somebody else's bundle makes the next commit fail: a clean tree would follow it.
    fs::write(staging.join("late"), "late").unwrap();
    let elsewhere = place.host(&dir.path().join("two"), "add");
    let theirs = elsewhere.mount("prod/census", "refresh=100ms");
    let foreign = commit(&elsewhere, &theirs.join("staging"), &[]);
    fs::read(mnt.join("survey/bundles").join(&two).join("f")).unwrap();
    let refused = host.datamon(["commit", staging.to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("latest is"), "{}", text(&refused));
    fs::remove_dir(theirs.join("bundles").join(&foreign)).unwrap();
    elsewhere.umount(&theirs);
    let done = commit(&host, &staging, &[]);
    assert_eq!(derived_from(&census, &done), [format!("survey/{two}")]);
    // A commit of nothing makes no bundle: what was opened before it is told of the next.
    fs::read(mnt.join("survey/labels/v1/f")).unwrap();
    sync(&staging);
    assert_eq!(derived_from(&census, &commit(&host, &staging, &[])), expected);
    host.umount(&mnt);
}

#[test]
fn what_was_put_aside_has_its_sources_when_it_comes_back() {
    if !inside("lineage::what_was_put_aside_has_its_sources_when_it_comes_back") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create");
    let (mnt, [one, two]) = with_survey(&host, "refresh=100ms");
    let census = mnt.join("census");
    let staging = census.join("staging");
    commit(&host, &staging, &[]);
    let ctl = |command: &str| {
        let write = || fs::write(census.join(".datamon/ctl"), command).is_ok();
        until(Duration::from_secs(30), command, write);
    };
    run(Command::new("cp").arg(mnt.join("survey/labels/v1/f")).arg(staging.join("of-one")));
    ctl("discard");
    run(Command::new("cp").arg(mnt.join("survey/labels/latest/f")).arg(staging.join("of-two")));
    let between = commit(&host, &staging, &[]);
    assert_eq!(derived_from(&census, &between), [format!("survey/{two}")]);
    ctl("undiscard");
    assert!(staging.join("of-one").exists());
    let after = commit(&host, &staging, &[]);
    assert!(derived_from(&census, &after).contains(&format!("survey/{one}")), "{:?}", derived_from(&census, &after));
    // What was put aside through an earlier mount may come from whatever this mount has seen.
    run(Command::new("cp").arg(mnt.join("survey/labels/v1/f")).arg(staging.join("again")));
    ctl("discard");
    host.umount(&mnt);
    let mnt = host.mount("prod", "refresh=100ms");
    fs::read(mnt.join("survey/labels/latest/f")).unwrap();
    assert_eq!(derived_from(&census, &commit(&host, &staging, &[])), [format!("survey/{two}")]);
    ctl("undiscard");
    assert_eq!(derived_from(&census, &commit(&host, &staging, &[])), [format!("survey/{two}")]);
    host.umount(&mnt);
}

#[test]
fn xattrs_say_which_version_it_is_who_made_it_and_how_it_stands() {
    if !inside("lineage::xattrs_say_which_version_it_is_who_made_it_and_how_it_stands") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create");
    let mnt = host.mount("prod", "refresh=100ms,contributor=Ada <ada@lab>");
    let repo = mnt.join("census");
    fs::create_dir(&repo).unwrap();
    let staging = repo.join("staging");
    fs::create_dir(staging.join("sub")).unwrap();
    fs::write(staging.join("sub/small"), "12345").unwrap();
    fs::write(staging.join("sub/chunk"), "x".repeat(300_000)).unwrap();
    fs::write(staging.join("large"), "y".repeat(3 << 20)).unwrap();
    let value = |name: &str, path: &str| {
        let mut getfattr = Command::new("getfattr");
        let output =
            getfattr.args(["--only-values", "-n", &format!("user.datamon.{name}")]).arg(mnt.join(path)).output();
        let output = output.unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let is = |name: &str, path: &str, expected: &str| {
        assert_eq!(value(name, path).as_deref(), Some(expected), "{name} of {path}");
    };
    let is_none = |names: &[&str], path: &str| {
        names.iter().for_each(|name| assert_eq!(value(name, path), None, "{name} of {path}"));
    };
    is("state", "census/staging", "dirty");
    let bundle = run(&mut host.datamon(["commit", staging.to_str().unwrap()])).trim().to_owned();
    run(Command::new("mkdir").args([repo.join("labels/v1"), repo.join("labels/v2")]));

    let root = format!("census/bundles/{bundle}");
    for version in [root.as_str(), "census/labels/v1", "census/labels/latest", "census/at/9999"] {
        let expected = [
            ("context", "prod"),
            ("repo", "census"),
            ("bundle", &bundle),
            ("labels", "v1,v2"),
            ("contributor", "Ada <ada@lab>"),
            ("state", "live"),
            ("rfiles", "3"),
            ("rbytes", "3445733"),
        ];
        expected.iter().for_each(|(name, value)| is(name, version, value));
        is_none(&["blake3", "nonsense"], version);
    }
    is("rfiles", "census/labels/v1/sub", "2");
    is("rbytes", "census/labels/v1/sub", "300005");
    for file in ["small", "chunk"] {
        let path = format!("census/labels/v1/sub/{file}");
        let hash = ChunkId::of(&fs::read(mnt.join(&path)).unwrap()).to_string();
        is("blake3", &path, &hash);
        is("bundle", &path, &bundle);
        is_none(&["labels", "contributor", "state", "rfiles", "rbytes"], &path);
    }
    is_none(&["blake3"], "census/labels/v1/large");
    is("state", "census/staging", "clean");
    is("repo", "census/staging/sub/small", "census");
    is("repo", "census/labels", "census");
    is("context", "", "prod");
    is_none(&["bundle", "labels", "contributor", "blake3", "rfiles", "rbytes"], "census/staging");
    is_none(&["repo", "state"], "");
    // None is listed, and none can be set.
    assert_eq!(run(Command::new("getfattr").args(["-m", "-"]).arg(repo.join("labels/v1"))), "");
    let set = Command::new("setfattr").args(["-n", "user.datamon.contributor", "-v", "Eve"]).arg(&staging).output();
    assert!(text(&set.unwrap()).contains("not permitted"));

    // A mount of the version itself has them, too, and says what became of it.
    let version = host.mount(&format!("prod/{root}"), "ro,refresh=100ms");
    let of_mount = |name: &str| {
        let name = format!("user.datamon.{name}");
        run(Command::new("getfattr").args(["--only-values", "-n", &name]).arg(&version))
    };
    assert_eq!((of_mount("contributor"), of_mount("labels")), ("Ada <ada@lab>".to_owned(), "v1,v2".to_owned()));
    ["labels/v1", "labels/v2", &format!("bundles/{bundle}")]
        .iter()
        .for_each(|path| fs::remove_dir(repo.join(path)).unwrap());
    until(Duration::from_secs(10), "the removal is seen", || of_mount("state") == "removed");
    assert_eq!(of_mount("labels"), "");
    host.umount(&version);
    host.umount(&mnt);
}
