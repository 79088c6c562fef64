//! Every gesture of a shell through the kernel: the texts of `.datamon`, labels, times, removing and restoring, diffs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::harness::{self, Host, Place, inside, run, scratch, text};

/// One host with a mount of everything, and the repo `census` in it.
pub struct World {
    pub dir: tempfile::TempDir,
    pub place: Place,
    pub host: Host,
    pub mnt: PathBuf,
}

impl World {
    pub fn new(options: &str) -> Self {
        let dir = scratch();
        let place = Place::directory(&dir.path().join("store"));
        let host = place.host(&dir.path().join("one"), "create");
        let mnt = host.mount("prod", options);
        fs::create_dir(mnt.join("census")).unwrap();
        Self { dir, place, host, mnt }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.mnt.join("census").join(path)
    }

    /// Commits `name` with `content` beside what is staged; answers the bundle.
    pub fn commit(&self, name: &str, content: &str) -> String {
        fs::write(self.at("staging").join(name), content).unwrap();
        let staging = self.at("staging");
        run(&mut self.host.datamon(["commit", staging.to_str().unwrap()])).trim().to_owned()
    }

    /// A line of a shell in the repo's directory.
    pub fn shell(&self, line: &str) -> Output {
        Command::new("timeout").args(["60", "bash", "-c", line]).current_dir(self.at("")).output().unwrap()
    }

    /// A line that has to succeed; what it printed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.shell(line);
        assert!(output.status.success(), "{line}: {}\n{}\n{}", output.status, text(&output), self.status());
        String::from_utf8(output.stdout).unwrap()
    }

    /// A line that has to be refused, with these words.
    pub fn refused(&self, line: &str, words: &str) {
        let output = self.shell(line);
        assert!(!output.status.success(), "{line}: is not refused: {}", text(&output));
        assert!(text(&output).contains(words), "{line}: {}\n{}", text(&output), self.status());
    }

    pub fn status(&self) -> String {
        fs::read_to_string(self.at(".datamon/status")).unwrap()
    }

    pub fn read(&self, path: &str) -> String {
        let path = self.at(path);
        fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
    }

    pub fn names(&self, path: &str) -> Vec<String> {
        harness::names(&self.at(path))
    }

    pub fn end(self) {
        self.host.umount(&self.mnt);
    }
}

/// The size of a file as a stat of its name shows it.
pub fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_label_file_is_read_written_and_removed() {
    if !inside("gestures::a_label_file_is_read_written_and_removed") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.refused("echo x > .datamon/labels/v1", "No such file or directory");
    assert_eq!(world.names("labels"), Vec::<String>::new(), "a name alone makes no label");
    world.refused("mkdir labels/latest", "Operation not permitted");
    let one = world.commit("a", "1");
    let two = world.commit("a", "2");
    world.sh(&format!("echo {one} > .datamon/labels/v1"));
    assert_eq!(world.read(".datamon/labels/v1"), format!("{one}\n"));
    assert_eq!(world.read("labels/v1/a"), "1");
    world.sh("echo latest > .datamon/labels/v1");
    assert_eq!(world.read(".datamon/labels/v1"), format!("{two}\n"), "moved");
    assert_eq!(world.read("labels/v1/a"), "2", "at once");
    // Through the directory in the staging tree, too; a label is named by another one.
    world.sh(&format!("echo {one} > staging/.datamon/labels/old && printf old >> .datamon/labels/v2"));
    assert_eq!(world.names("labels"), ["latest", "old", "v1", "v2"]);
    assert_eq!(world.names(".datamon/labels"), ["latest", "old", "v1", "v2"]);
    assert_eq!(world.read(".datamon/labels/v2"), format!("{one}\n"));
    world.sh("touch .datamon/labels/empty");
    assert!(!world.at(".datamon/labels/empty").exists(), "a file without a value is no label");
    for (value, words) in [
        ("01JD3K4Y5Z6A7B8C9D0E1F2G3H", "No such file or directory"),
        ("nothing", "No such file or directory"),
        ("'two words'", "Invalid argument"),
    ] {
        world.refused(&format!("echo {value} > .datamon/labels/v1"), words);
    }
    world.refused("echo v2 > .datamon/labels/latest", "Operation not permitted");
    world.refused(&format!("echo v2 > .datamon/labels/{one}"), "Invalid argument");
    world.refused("echo v2 > .datamon/status", "Operation not permitted");
    world.refused("rm .datamon/labels/latest", "Operation not permitted");
    world.refused("touch .datamon/new", "Operation not permitted");
    world.sh("mv .datamon/labels/v2 .datamon/labels/v3 && rm .datamon/labels/old");
    assert_eq!(world.names("labels"), ["latest", "v1", "v3"]);
    assert_eq!(world.read(".datamon/labels/v1"), format!("{two}\n"), "refused values changed nothing");
    world.end();
}

#[test]
fn texts_have_their_size_at_once_and_every_reader_reads_all() {
    if !inside("gestures::texts_have_their_size_at_once_and_every_reader_reads_all") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("a", "1");
    world.sh("mkdir labels/v1");
    let two = world.commit("a", "2");
    world.sh("echo latest > .datamon/labels/v1");
    let texts = [
        "history".to_owned(),
        "labels/v1".into(),
        "label/v1/history".into(),
        format!("bundle/{one}/info"),
        format!("diff/{one}..{two}"),
        "diff/v1..latest".into(),
        "message".into(),
        "wal".into(),
    ];
    for name in texts {
        let path = world.at(".datamon").join(&name);
        let before = size(&path);
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len() as u64, before, "{name}");
        let at = path.to_str().unwrap();
        assert_eq!(world.sh(&format!("wc -c < {at}")).trim(), before.to_string(), "{name}");
        assert_eq!(world.sh(&format!("cat {at}")).as_bytes(), content, "{name}");
        assert_eq!(world.sh(&format!("tail -n 100 {at}")).as_bytes(), content, "{name}");
        assert_eq!(world.sh(&format!("cp {at} /tmp/copy.$$ && cat /tmp/copy.$$; rm /tmp/copy.$$")).as_bytes(), content);
        assert_eq!(world.sh(&format!("tar cf - -C / {} 2>/dev/null | tar xOf -", &at[1..])).as_bytes(), content);
    }
    let history = world.read(".datamon/history");
    let ids: Vec<_> = history.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(ids, [&one, &two]);
    let steps = world.read(".datamon/label/v1/history");
    let steps: Vec<_> = steps.lines().map(|line| line.split('\t').nth(2).unwrap()).collect();
    assert_eq!(steps, [&one, &two]);
    world.sh("rmdir labels/v1");
    assert!(world.read(".datamon/label/v1/history").ends_with("\tremoved\n"), "kept when the label is gone");
    assert!(!world.at(".datamon/label/v2").exists());
    let info = world.read(&format!(".datamon/bundle/{two}/info"));
    assert!(info.contains(&format!("bundle: {two}\n")) && info.contains(&format!("parents: {one}\n")), "{info}");
    assert!(!world.at(".datamon/bundle/01JD3K4Y5Z6A7B8C9D0E1F2G3H").exists());
    // In the root of staging it is another directory, so that `..` leads where it came from.
    assert_eq!(
        world.sh("cd staging/.datamon/labels && cd -P ../.. && pwd -P").trim(),
        world.at("staging").to_str().unwrap()
    );
    assert_eq!(
        world.sh("cd .datamon/labels && cd -P ../.. && pwd -P").trim(),
        world.at("").to_str().unwrap().trim_end_matches('/')
    );
    world.end();
}

#[test]
fn the_files_of_a_bundle_are_listed_as_they_are_read() {
    if !inside("gestures::the_files_of_a_bundle_are_listed_as_they_are_read") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.sh(
        "mkdir -p staging/sub && printf abc > staging/sub/f && ln staging/sub/f staging/hard && ln -s f staging/sub/s",
    );
    world.sh("chmod 640 staging/sub/f && for n in $(seq 2000); do echo $n > staging/sub/many-$n; done");
    let bundle = world.commit("a\tb", "1");
    let path = world.at(&format!(".datamon/bundle/{bundle}/files"));
    assert_eq!(size(&path), 0, "as in /proc: nobody knows before it is read");
    let listed = world.sh(&format!("cat {}", path.display()));
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 2_006, "the root, a directory, five files and links, two thousand: {}", &listed[..500]);
    assert_eq!(lines[0][0], "040755");
    assert_eq!(lines[0][4], ".");
    let of = |name: &str| lines.iter().find(|line| line[4] == name).unwrap_or_else(|| panic!("{name}: {listed}"));
    let content = of("sub/f")[3];
    assert_eq!((of("sub/f")[0], of("sub/f")[1]), ("100640", "3"));
    assert_eq!(of("hard")[3], content, "two names of one file");
    assert_eq!((of("sub/s")[0], of("sub/s")[1], of("sub/s")[3]), ("120777", "1", "-"));
    assert_eq!(of("\"a\\tb\"")[1], "1");
    // A reader that jumps about reads the same.
    let jump = "import os,sys; f=os.open(sys.argv[1],os.O_RDONLY); a=os.pread(f,1<<20,0); \
                b=os.pread(f,50,1000); c=os.pread(f,50,10); assert b==a[1000:1050] and c==a[10:60]; print(len(a))";
    let count = run(Command::new("python3").args(["-c", jump]).arg(&path));
    assert_eq!(count.trim(), listed.len().to_string());
    world.end();
}

#[test]
fn a_message_waits_for_the_next_commit() {
    if !inside("gestures::a_message_waits_for_the_next_commit") {
        return;
    }
    let world = World::new("refresh=100ms,message=by-default");
    let last = |world: &World| {
        let history = world.read(".datamon/history");
        history.lines().last().unwrap().split('\t').nth(6).unwrap().to_owned()
    };
    world.sh("echo 'first line' > .datamon/message && echo second >> staging/.datamon/message");
    assert_eq!(world.read(".datamon/message"), "first line\nsecond\n");
    assert_eq!(size(&world.at("staging/.datamon/message")), 18);
    world.sh("echo x > staging/a && sync staging");
    assert_eq!(last(&world), "first line", "history shows the first line");
    let bundle = world.names("bundles").remove(0);
    assert!(world.read(&format!(".datamon/bundle/{bundle}/info")).contains("message:\n  first line\n  second\n"));
    assert_eq!(world.read(".datamon/message"), "", "used");
    world.sh("echo y > staging/a && sync staging");
    assert_eq!(last(&world), "by-default");
    world.sh("echo unused > .datamon/message && sync staging");
    assert_eq!(world.read(".datamon/message"), "unused\n", "nothing was committed");
    let staging = world.at("staging");
    world.sh("echo z > staging/a");
    run(&mut world.host.datamon(["commit", "-m", "wins", staging.to_str().unwrap()]));
    assert_eq!(last(&world), "wins");
    assert_eq!(world.read(".datamon/message"), "");
    world.sh("echo longer than this > .datamon/message && truncate -s 6 .datamon/message");
    assert_eq!(world.read(".datamon/message"), "longer");
    world.refused("head -c 65537 /dev/zero > .datamon/message", "File too large");
    world.sh("rm .datamon/message");
    assert_eq!(world.read(".datamon/message"), "");
    world.end();
}

#[test]
fn who_is_writing_stands_in_wal() {
    if !inside("gestures::who_is_writing_stands_in_wal") {
        return;
    }
    let world = World::new("refresh=100ms");
    assert_eq!(world.read(".datamon/wal"), "");
    fs::write(world.at("staging/large"), vec![7; 300_000]).unwrap();
    super::harness::until(Duration::from_secs(20), "the intent", || !world.read(".datamon/wal").is_empty());
    let wal = world.read(".datamon/wal");
    let fields: Vec<_> = wal.trim_end().split('\t').collect();
    assert_eq!((fields.len(), fields[4], fields[5]), (6, "open", "census"), "{wal}");
    assert_eq!(fs::read_to_string(world.mnt.join(".datamon/wal")).unwrap(), wal, "at the context's top, of all repos");
    world.sh("sync staging");
    assert_eq!(world.read(".datamon/wal"), "");
    world.end();
}

#[test]
fn labels_are_set_moved_renamed_and_removed_by_file_operations() {
    if !inside("gestures::labels_are_set_moved_renamed_and_removed_by_file_operations") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("a", "1");
    let two = world.commit("a", "2");
    world.sh(&format!("ln -s ../bundles/{one} labels/v1"));
    assert!(fs::symlink_metadata(world.at("labels/v1")).unwrap().is_dir(), "the version itself, at the next look");
    assert_eq!(world.read("labels/v1/a"), "1");
    world.sh(&format!("setfattr -n user.datamon.bundle -v {two} labels/v1"));
    assert_eq!(world.read("labels/v1/a"), "2");
    assert_eq!(world.sh("getfattr --only-values -n user.datamon.bundle labels/v1"), two);
    world.sh("mv labels/v1 labels/v2 && mkdir labels/v3");
    assert_eq!(world.names("labels"), ["latest", "v2", "v3"]);
    for (line, words) in [
        (format!("ln -s ../bundles/{one} labels/v2/x"), "Read-only file system"),
        (format!("ln -s ../bundles/{one} labels/latest/x"), "Read-only file system"),
        ("ln -s somewhere labels/v4".into(), "Invalid argument"),
        ("ln -s ../bundles/01JD3K4Y5Z6A7B8C9D0E1F2G3H labels/v4".into(), "No such file or directory"),
        (format!("ln -s ../bundles/{one} labels/{one}"), "Invalid argument"),
        ("mkdir labels/v2".into(), "File exists"),
        ("mv labels/v2 labels/v3".into(), "Read-only file system"),
        ("mv -T labels/v2 labels/v3".into(), "Read-only file system"),
        ("mv labels/v2 labels/latest".into(), "Read-only file system"),
        ("mv labels/latest labels/v5".into(), "Operation not permitted"),
        ("mv -T labels/v2 labels/latest".into(), "Operation not permitted"),
        ("rmdir labels/latest".into(), "Operation not permitted"),
        ("rmdir labels/none".into(), "No such file or directory"),
        (format!("setfattr -n user.datamon.bundle -v {one} labels/latest"), "Operation not permitted"),
        (format!("setfattr -n user.datamon.bundle -v {one} bundles/{two}"), "Operation not permitted"),
        (format!("setfattr -n user.datamon.bundle -v {one} labels/v2/a"), "Operation not permitted"),
        (format!("setfattr -n user.datamon.repo -v {one} labels/v2"), "Operation not permitted"),
        ("setfattr -n user.datamon.bundle -v nothing labels/v2".into(), "No such file or directory"),
        ("setfattr -x user.datamon.bundle labels/v2".into(), "Operation not permitted"),
        (format!("mv bundles/{one} bundles/x"), "Operation not permitted"),
        ("touch labels/file".into(), "Operation not permitted"),
    ] {
        world.refused(&line, words);
    }
    let forced = world.shell(&format!("ln -sfn ../bundles/{one} labels/v2"));
    assert!(!forced.status.success(), "{}", text(&forced));
    assert_eq!(world.names("labels"), ["latest", "v2", "v3"], "refusals leave nothing behind");
    world.sh("rmdir labels/v2 labels/v3");
    assert_eq!(world.names("labels"), ["latest"]);
    world.end();
}

#[test]
fn at_shows_the_newest_bundle_until_a_time() {
    if !inside("gestures::at_shows_the_newest_bundle_until_a_time") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.commit("a", "1");
    std::thread::sleep(Duration::from_millis(1_100));
    world.commit("a", "2");
    let history = world.read(".datamon/history");
    let times: Vec<_> = history.lines().map(|line| line.split('\t').nth(1).unwrap()).collect();
    let (first, second) = (times[0], times[1]);
    assert_eq!(world.read(&format!("at/{first}/a")), "1");
    assert_eq!(world.read(&format!("at/{second}/a")), "2");
    for prefix in [4, 7, 10] {
        assert_eq!(world.read(&format!("at/{}/a", &second[..prefix])), "2", "{}", &second[..prefix]);
    }
    assert_eq!(world.read(&format!("at/{}/a", &first[..19])), "1", "until the end of that second");
    assert_eq!(world.read("at/2999-01/a"), "2");
    for absent in ["1999-12-31", "2999-13", "yesterday"] {
        assert_eq!(world.shell(&format!("ls at/{absent}")).status.code(), Some(2), "{absent}");
    }
    assert_eq!(world.names("at"), Vec::<String>::new());
    world.refused("mkdir at/2026", "File exists");
    world.refused("mkdir at/1999", "Operation not permitted");
    let inside = world.sh(&format!("cd at/{first} && pwd -P"));
    assert_eq!(inside.trim(), world.at(&format!("at/{first}")).to_str().unwrap());
    world.end();
}

#[test]
fn a_removed_bundle_is_gone_until_it_is_restored() {
    if !inside("gestures::a_removed_bundle_is_gone_until_it_is_restored") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("a", "1");
    let two = world.commit("a", "2");
    world.sh(&format!("echo {two} > .datamon/labels/v1"));
    world.refused(&format!("rmdir bundles/{two}"), "Device or resource busy");
    assert!(world.status().contains("the label v1 names it"), "{}", world.status());
    world.sh("rmdir labels/v1");
    world.sh("echo changed > staging/a");
    world.refused(&format!("rmdir bundles/{two}"), "Device or resource busy");
    let three = world.commit("b", "3");
    world.sh(&format!("rmdir bundles/{three}"));
    assert_eq!(world.read("labels/latest/a"), "2", "latest falls back");
    assert_eq!(world.names("bundles"), [one.clone(), two.clone()]);
    assert!(!world.at(&format!("bundles/{three}")).exists());
    assert!(world.read(&format!(".datamon/bundle/{three}/info")).contains("state: removed\n"));
    world.refused(&format!("rmdir bundles/{three}"), "No such file or directory");
    // Nothing begins with it, either.
    world.refused(&format!("echo 'base {three}' > .datamon/ctl"), "No such file or directory");
    let aside = world.dir.path().join("aside");
    fs::create_dir(&aside).unwrap();
    let source = format!("prod/census/bundles/{three}");
    let said = world.host.datamon(["mount", &source, aside.to_str().unwrap()]).output().unwrap();
    assert!(!said.status.success() && text(&said).contains("was removed (echo 'restore ID'"), "{}", text(&said));
    world.sh(&format!("echo 'restore {three}' > .datamon/ctl"));
    assert_eq!(world.read("labels/latest/a").trim(), "changed");
    assert_eq!(world.names("bundles").len(), 3);
    world.refused("echo 'restore 01JD3K4Y5Z6A7B8C9D0E1F2G3H' > .datamon/ctl", "No such file or directory");
    world.refused("echo 'restore x' > .datamon/ctl", "Invalid argument");
    world.refused("echo sing > .datamon/ctl", "Invalid argument");
    world.end();
}

#[test]
fn the_base_of_another_hosts_changes_is_not_removed() {
    if !inside("gestures::the_base_of_another_hosts_changes_is_not_removed") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let (one, two) = (place.host(&dir.path().join("one"), "create"), place.host(&dir.path().join("two"), "add"));
    let a = one.mount("prod", "refresh=100ms");
    fs::create_dir(a.join("census")).unwrap();
    fs::write(a.join("census/staging/a"), "1").unwrap();
    let bundle = run(&mut one.datamon(["commit", a.join("census/staging").to_str().unwrap()])).trim().to_owned();
    let b = two.mount("prod", "refresh=100ms");
    fs::write(b.join("census/staging/large"), vec![7; 300_000]).unwrap();
    let wal = || fs::read_to_string(b.join("census/.datamon/wal")).unwrap();
    super::harness::until(Duration::from_secs(20), "the intent", || !wal().is_empty());
    let refused = fs::remove_dir(a.join("census/bundles").join(&bundle)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(16));
    let status = fs::read_to_string(a.join("census/.datamon/status")).unwrap();
    assert!(status.contains("has staged changes that are based on it"), "{status}");
    two.umount(&b);
    fs::remove_dir(a.join("census/bundles").join(&bundle)).unwrap();
    // A change that uploads nothing is known, too, some seconds later.
    let bundle = harness::names(&a.join("census/bundles")).pop().unwrap();
    let b = two.mount("prod", "refresh=100ms");
    fs::remove_file(b.join("census/staging/a")).unwrap();
    super::harness::until(Duration::from_secs(30), "the intent", || !wal().is_empty());
    let refused = fs::remove_dir(a.join("census/bundles").join(&bundle)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(16));
    two.umount(&b);
    fs::remove_dir(a.join("census/bundles").join(&bundle)).unwrap();
    one.umount(&a);
}

#[test]
fn recursive_deletion_removes_no_version() {
    if !inside("gestures::recursive_deletion_removes_no_version") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("a", "1");
    world.commit("a", "2");
    world.sh("mkdir labels/v1");
    for line in [
        "find labels/v1 -delete".to_owned(),
        "python3 -c 'import shutil; shutil.rmtree(\"labels/v1\", ignore_errors=True)'; false".into(),
        "rm -rf labels/v1".into(),
        format!("find bundles/{one} -delete"),
        format!("python3 -c 'import shutil; shutil.rmtree(\"bundles/{one}\", ignore_errors=True)'; false"),
        "rm -rf bundles".into(),
    ] {
        assert!(!world.shell(&line).status.success(), "{line}");
        assert_eq!(world.names("bundles").len(), 2, "{line}");
        assert_eq!(world.names("labels"), ["latest", "v1"], "{line}");
    }
    world.refused("rmdir labels/v1", "Read-only file system");
    assert!(world.status().contains("rmdir alone"), "{}", world.status());
    // Nor does a program that looked into it: where the kernel refuses by itself we are not asked before.
    world.sh("mkdir labels/v2");
    world
        .refused("python3 -c 'import os; os.listdir(\"labels/v2\"); os.rmdir(\"labels/v2\")'", "Read-only file system");
    world.sh("ls labels/v2 && rmdir labels/v2");
    // Others are not concerned.
    world.sh("mkdir labels/v2 && rmdir labels/v2");
    world.end();
}

#[test]
fn a_diff_names_what_changed() {
    if !inside("gestures::a_diff_names_what_changed") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.sh("mkdir staging/sub staging/empty && echo 1 > staging/sub/same && echo 1 > staging/sub/changed && echo 1 > staging/gone");
    let one = world.commit("größe", "1");
    world.sh("echo v1 > /dev/null; mkdir labels/v1");
    world.sh("cd staging && echo 2 > sub/changed && rm gone && rmdir empty && touch sub/same && ln -s x link && chmod 600 größe");
    let two = world.commit("new", "1");
    let expected = "M\t\"gr\\303\\266\\303\\237e\"\nA\tlink\nA\tnew\nM\tsub/changed\n";
    let expected = format!("D\tempty/\nD\tgone\n{expected}");
    assert_eq!(world.read(".datamon/diff/v1..latest"), expected);
    assert_eq!(world.read(&format!("staging/.datamon/diff/{one}..{two}")), expected);
    assert_eq!(world.read(".datamon/diff/latest..latest"), "");
    assert!(!world.at(".datamon/diff/v1..nothing").exists());
    assert!(!world.at(".datamon/diff/v1").exists());
    world.sh(&format!("echo {one} > .datamon/labels/a..b"));
    assert_eq!(world.read(".datamon/diff/a..b..latest"), expected, "a label may hold dots");
    // What becomes a directory, or was one: git says the same.
    world.sh("cd staging && rm new && mkdir new && echo 1 > new/in && rm -r sub && echo 1 > sub");
    let three = world.commit("last", "1");
    let expected = "A\tlast\nD\tnew\nA\tnew/\nA\tnew/in\nA\tsub\nD\tsub/\nD\tsub/changed\nD\tsub/same\n";
    assert_eq!(world.read(&format!(".datamon/diff/{two}..{three}")), expected);
    // Between two bundles git says the same, of files.
    let git = format!("git diff --no-index --name-status --no-renames bundles/{two} bundles/{three}");
    let said = world.sh(&format!("{git} | sed 's#bundles/[^/]*/##'"));
    let of_files: String =
        expected.lines().filter(|line| !line.ends_with('/')).map(|line| format!("{line}\n")).collect();
    assert_eq!(said, of_files);
    world.end();
}

#[test]
fn a_mounted_version_has_the_texts_of_its_repo() {
    if !inside("gestures::a_mounted_version_has_the_texts_of_its_repo") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("a", "1");
    world.sh("mkdir labels/v1");
    let version = world.host.mount("prod/census/labels/v1", "refresh=100ms");
    let read = |path: &str| fs::read_to_string(version.join(".datamon").join(path)).unwrap();
    let names = |path: &str| {
        let entries = fs::read_dir(version.join(path)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["a"], "it is not listed");
    assert!(read("status").contains("source: prod/census/labels/v1\n"), "{}", read("status"));
    assert_eq!(read("history").lines().count(), 1);
    assert_eq!(names(".datamon/labels"), ["latest", "v1"]);
    assert!(read(&format!("bundle/{one}/info")).contains(&one));
    assert_eq!(fs::read_to_string(version.join("a")).unwrap(), "1");
    let two = world.commit("b", "2");
    world.sh("mkdir labels/v2");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(names(".datamon/labels"), ["latest", "v1", "v2"], "what is new is seen");
    assert_eq!(read("history").lines().count(), 2);
    assert_eq!(read("labels/v2"), format!("{two}\n"));
    assert_eq!(read("diff/v1..v2"), "A\tb\n");
    let lookups = || {
        let stats = read("stats");
        let line =
            stats.lines().find_map(|line| line.strip_prefix("datamon_operation_seconds_count{operation=\"lookup\"} "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = lookups();
    std::thread::sleep(Duration::from_millis(1100));
    assert!(lookups() > before, "numbers go on");
    for path in ["status", "stats", "history"] {
        assert_eq!(size(&version.join(".datamon").join(path)), read(path).len() as u64, "{path}");
    }
    let refused = world.shell(&format!("echo commit > {}/.datamon/ctl", version.display()));
    assert!(text(&refused).contains("Read-only file system"), "{}", text(&refused));
    assert_eq!(names(""), ["a"]);
    world.host.umount(&version);
    world.end();
}

#[test]
fn a_commit_is_seen_at_once_where_it_was_made() {
    if !inside("gestures::a_commit_is_seen_at_once_where_it_was_made") {
        return;
    }
    // What the kernel keeps it keeps for half a minute, unless it is told to look again.
    let world = World::new("refresh=30s");
    for number in ["1", "2", "3"] {
        fs::write(world.at("staging/f"), number).unwrap();
        harness::sync(&world.at("staging"));
        assert_eq!(world.read("labels/latest/f"), number);
    }
    for number in ["4", "5"] {
        fs::write(world.at("staging/f"), number).unwrap();
        let staging = world.at("staging");
        run(&mut world.host.datamon(["commit", "-l", "v1", staging.to_str().unwrap()]));
        assert_eq!((world.read("labels/v1/f"), world.read("labels/latest/f")), (number.to_owned(), number.to_owned()));
    }
    world.host.umount(&world.mnt);
}

#[test]
fn a_bundle_that_is_moved_into_labels_makes_no_label_of_another() {
    if !inside("gestures::a_bundle_that_is_moved_into_labels_makes_no_label_of_another") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("f", "1");
    world.commit("f", "2");
    world.refused(&format!("mv bundles/{one} labels/x"), "Operation not permitted");
    assert!(world.status().contains("ln -s ../bundles/ID labels/NAME"), "{}", world.status());
    assert_eq!(world.names("labels"), ["latest"]);
    world.host.umount(&world.mnt);
}

#[test]
fn a_renamed_repo_is_called_by_its_new_name_everywhere() {
    if !inside("gestures::a_renamed_repo_is_called_by_its_new_name_everywhere") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.commit("f", "1");
    let (mnt, at) = (world.mnt.clone(), |path: &str| world.mnt.join(path));
    run(Command::new("mv").arg(at("census")).arg(at("survey")));
    fs::write(at("survey/staging/f"), "2").unwrap();
    let said = run(&mut world.host.datamon(["commit", "--json", at("survey/staging").to_str().unwrap()]));
    assert!(said.contains("\"repo\":\"survey\""), "{said}");
    let status = fs::read_to_string(at("survey/.datamon/status")).unwrap();
    assert!(status.contains("\nrepo: survey\n"), "{status}");
    for path in ["survey", "survey/staging/f", "survey/labels/latest"] {
        let name = run(Command::new("getfattr").args(["--only-values", "-n", "user.datamon.repo"]).arg(at(path)));
        assert_eq!(name, "survey", "{path}");
    }
    let id = fs::read_to_string(at("survey/.datamon/labels/latest")).unwrap();
    let info = fs::read_to_string(at("survey/.datamon/bundle").join(id.trim()).join("info")).unwrap();
    assert!(info.contains("\nrepo: survey\n"), "{info}");
    // Another with the old name is another.
    fs::create_dir(at("census")).unwrap();
    fs::write(at("census/staging/g"), "1").unwrap();
    fs::write(at("survey/staging/f"), "3").unwrap();
    let said = run(&mut world.host.datamon(["umount", mnt.to_str().unwrap()]));
    assert_eq!(said.lines().count(), 2, "{said}");
}
