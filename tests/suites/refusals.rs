//! Every wrong call, option, name, source, state and permission: what it is answered with, in which words, and that
//! nothing is mounted, written or left behind by it.
//!
//! Tables: a row is one wrong thing. Rows that need a mount share one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::harness::{Host, Place, inside, run, scratch, target_dir, text, within};

const SOON: Duration = Duration::from_secs(30);
const ULID: &str = "01JD3K4Y5Z6A7B8C9D0E1F2G3H";

/// A host with the context `prod`, the repo `census` in it with a version that is labelled v1, and an empty repo.
struct World {
    dir: tempfile::TempDir,
    host: Host,
    bundle: String,
}

impl World {
    fn new() -> Self {
        let dir = scratch();
        let host = Place::directory(&dir.path().join("store")).host(&dir.path().join("one"), "create");
        let mnt = host.mount("prod", "rw");
        for repo in ["census", "empty"] {
            fs::create_dir(mnt.join(repo)).unwrap();
        }
        let staging = mnt.join("census/staging");
        fs::write(staging.join("a"), "a").unwrap();
        fs::create_dir(staging.join("d")).unwrap();
        let id = run(&mut host.datamon(["commit", "-l", "v1", staging.to_str().unwrap()]));
        host.umount(&mnt);
        fs::create_dir(dir.path().join("mnt")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        Self { dir, host, bundle: id.trim().to_owned() }
    }

    /// A line with the places of this world put in.
    fn fill(&self, line: &str) -> String {
        let dir = self.dir.path().to_str().unwrap();
        let places = [
            ("STORE", format!("file://{dir}/store")),
            ("STATE", format!("{dir}/one/state")),
            ("MNT", format!("{dir}/mnt")),
            ("FILE", format!("{dir}/file")),
            ("DIR", dir.to_owned()),
            ("BUNDLE", self.bundle.clone()),
            ("ULID", ULID.to_owned()),
        ];
        places.iter().fold(line.to_owned(), |line, (name, place)| line.replace(&format!("@{name}"), place))
    }

    /// Calls datamon with the words of a line; quotes hold a word together.
    fn call(&self, line: &str) -> Output {
        let mut command = self.host.command("sh");
        command.args(["-c", &format!("exec '{}' {}", env!("CARGO_BIN_EXE_datamon"), self.fill(line))]);
        within(SOON, command.current_dir("/"))
    }

    /// The names of everything that this host and its store hold, and the sizes of the store's.
    fn holds(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.dir.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                // The log tells of refusals, that is its work; and what a database does inside is its own business.
                if ["log", "db", "data", "lock"].iter().any(|name| entry.file_name() == *name) {
                    continue;
                }
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    open.push(entry.path());
                }
                found.insert(entry.path(), if meta.is_dir() { 0 } else { meta.len() });
            }
        }
        found
    }
}

/// What is in one and not in the other.
fn changed(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>) -> Vec<PathBuf> {
    let paths = before.keys().chain(after.keys());
    paths.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// One line on stderr, in datamon's form, with these words and nothing on stdout; and the exit status.
fn assert_refused(line: &str, output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {said}");
    assert_eq!((said.lines().count(), output.stdout.len()), (1, 0), "{line}: one line, on stderr: {}", text(output));
    assert!(said.starts_with("datamon: "), "{line}: {said}");
    assert!(said.contains(words), "{line}: {words:?} is not said: {said}");
}

fn is_mounted(dir: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir.to_str().unwrap())
}

const USAGE: i32 = 2;
const FAILED: i32 = 1;

/// Calls, their exit status, and what is said.
const CALLS: &[(&str, i32, &str)] = &[
    // The command line.
    ("sing", USAGE, "unrecognized subcommand 'sing'"),
    ("--colour", USAGE, "unexpected argument '--colour'"),
    ("completions cmd", USAGE, "invalid value 'cmd'"),
    ("commit", USAGE, "not provided: <PATH>"),
    ("commit -x /", USAGE, "unexpected argument '-x'"),
    ("commit -l 'a b' /", USAGE, "invalid value 'a b'"),
    ("commit -l latest /", USAGE, "invalid value 'latest'"),
    ("commit -l @ULID /", USAGE, "invalid value '01JD"),
    ("commit -m", USAGE, "a value is required"),
    ("commit /nowhere", FAILED, "/nowhere: No such file"),
    ("commit @DIR", FAILED, "not in a datamon mount (mount one"),
    ("umount", USAGE, "not provided: <DIR>"),
    ("umount /nowhere", FAILED, "/nowhere: not a datamon mount"),
    ("umount @MNT", FAILED, "mnt: not a datamon mount"),
    ("umount --colour @MNT", USAGE, "unexpected argument"),
    // Sources and places of a mount.
    ("mount", USAGE, "not provided: <SOURCE> <DIR>"),
    ("mount prod", USAGE, "not provided: <DIR>"),
    ("mount prod @MNT more", USAGE, "unexpected argument 'more'"),
    ("mount prod @MNT -o", USAGE, "a value is required"),
    ("mount '' @MNT", USAGE, "name"),
    ("mount 'a b' @MNT", USAGE, "a b: "),
    ("mount /prod @MNT", USAGE, "write datamon:"),
    ("mount datamon:/prod @MNT", USAGE, "write datamon:"),
    ("mount prod/.x @MNT", USAGE, ".x"),
    ("mount prod/census/nothing @MNT", USAGE, "REPO/staging"),
    ("mount prod/census/staging/d @MNT", USAGE, "REPO/staging"),
    ("mount prod/census/bundles/x @MNT", USAGE, "bundles/x"),
    ("mount prod/census/diamonds/D @MNT", USAGE, "diamonds are not in this version"),
    ("mount nowhere @MNT", FAILED, "nowhere: no such context on this host"),
    ("mount prod/nothing @MNT", FAILED, "prod/nothing: no such repo (mount prod and mkdir it there"),
    ("mount prod/nothing/staging @MNT", FAILED, "no such repo"),
    ("mount prod/census/bundles/@ULID @MNT", FAILED, "no such bundle"),
    ("mount prod/census/labels/v9 @MNT", FAILED, "census: no label or bundle v9 (ls its labels/"),
    ("mount prod/empty/labels/latest @MNT", FAILED, "empty: no label or bundle latest"),
    ("mount prod @DIR/absent", FAILED, "absent: No such file"),
    ("mount prod @FILE", FAILED, "not a directory"),
    ("mount prod @DIR", FAILED, "holds datamon's own files"),
    ("mount prod @MNT -o state=/proc/nowhere", FAILED, "choose another: -o state=DIR"),
    ("mount prod @MNT -o log=/proc/nowhere/log", FAILED, "choose another place: -o log=FILE"),
    ("mount prod @MNT -o remount,ro", FAILED, "mnt: not a datamon mount"),
    ("mount prod @MNT -o metrics=192.0.2.1:9", FAILED, "metrics=192.0.2.1:9: "),
    ("mount prod @MNT -o endpoint=http://127.0.0.1:9", FAILED, "endpoint: an option of s3:// stores"),
    ("mount prod/census/staging @MNT -o base=v9", FAILED, "census: no label or bundle v9"),
    ("mount prod/census @MNT -o base=v9", FAILED, "census: no label or bundle v9"),
    ("mount broken @MNT", FAILED, "broken.toml"),
    // Contexts.
    ("context sing", USAGE, "unrecognized subcommand 'sing'"),
    ("context purge prod", USAGE, "purge: not in this version"),
    ("context prune prod", USAGE, "prune: not in this version"),
    ("context export prod", USAGE, "export: not in this version"),
    ("context import prod", USAGE, "import: not in this version"),
    ("context create", USAGE, "not provided: --store <URL> <NAME>"),
    ("context create x", USAGE, "not provided: --store <URL>"),
    ("context create 'a b' --store @STORE", USAGE, "invalid value 'a b'"),
    ("context create .x --store @STORE", USAGE, "invalid value '.x'"),
    ("context create x --store @STORE --option nonsense", USAGE, "expected KEY=VALUE"),
    ("context create prod --store @STORE", FAILED, "exists: use `context add`"),
    ("context create x --store gs://bucket", USAGE, "gs:// is not in this version"),
    ("context create x --store az://container/p", USAGE, "az:// is not in this version"),
    ("context create x --store ftp://host", USAGE, "unknown kind of store ftp://"),
    ("context create x --store /srv/x", USAGE, "/srv/x: not a store's URL"),
    ("context create x --store file://srv/x", USAGE, "must be absolute"),
    ("context create x --store file:///proc/nowhere", FAILED, "cannot be made"),
    ("context create x --store s3://", USAGE, "s3://"),
    ("context create x --store file:///", USAGE, "the root directory holds no store"),
    ("context create x --store 's3://b a/x'", USAGE, "a bucket's name has letters, digits"),
    ("context create x --store s3://b/../x", USAGE, "a prefix is a plain path"),
    ("context create x --store s3://key:secret@b/x", USAGE, "s3://…@…: a URL holds no keys"),
    ("context add 's3://b a/x'", USAGE, "a bucket's name has letters, digits"),
    ("context create x --store s3://b --option endpoint=xx", USAGE, "endpoint=xx: bad value (accepted: http://HOST"),
    ("context create x --store s3://b --option endpoint=", USAGE, "endpoint=: bad value"),
    ("context create x --store s3://b --option 'region=a b'", USAGE, "region=a b: bad value"),
    ("context create x --store s3://b --option sse=zzz", USAGE, "sse=zzz: bad value (accepted: AES256, aws:kms"),
    ("context create x --store @STORE --option colour=red", USAGE, "colour: no such store option"),
    ("context create x --store s3://b --option secret_access_key=x", USAGE, "a secret is kept in no file"),
    ("context create x --store s3://b --option session_token=x", USAGE, "a secret is kept in no file"),
    ("context create x --store @STORE --blob gs://b", USAGE, "gs:// is not in this version"),
    ("context add", USAGE, "not provided: <URL>"),
    ("context add ftp://host", USAGE, "unknown kind of store ftp://"),
    ("context add @STORE --as y --option colour=red", USAGE, "colour: no such store option"),
    ("context add file://@DIR/mnt", FAILED, "holds no context (use `datamon context create`)"),
    ("context add @STORE#nothing", FAILED, "holds no context nothing"),
    ("context add '@STORE#a b'", USAGE, "a b"),
    ("context add @STORE", FAILED, "exists on this host"),
    ("context add @STORE --as 'a b'", USAGE, "invalid value 'a b'"),
    ("context show", USAGE, "not provided: <NAME>"),
    ("context show nowhere", FAILED, "nowhere: no such context on this host"),
    ("context show broken", FAILED, "broken.toml"),
    ("context edit nowhere --option a=b", FAILED, "nowhere: no such context"),
    ("context edit prod --option colour=red", USAGE, "colour: no such store option"),
    ("context check nowhere", FAILED, "nowhere: no such context"),
    ("context remove nowhere", FAILED, "nowhere: no such context"),
    ("context list --colour", USAGE, "unexpected argument '--colour'"),
];

/// Words of `-o` and what is said of them; each is a wrong call.
const OPTIONS: &[(&str, &str)] = &[
    ("colour=red", "colour: unknown mount option (datamon mount --help lists them)"),
    ("shiny", "shiny: unknown mount option"),
    ("ro,shiny,rw", "shiny: unknown mount option"),
    ("cache=/x", "cache: not in this version"),
    ("cache_size=1G", "cache_size: not in this version"),
    ("cache_free=10%", "cache_free: not in this version"),
    ("prefetch=on", "prefetch: not in this version"),
    ("readahead=1M", "readahead: not in this version"),
    ("acl=on", "acl=on: takes no value (write acl)"),
    ("noacl", "noacl: unknown mount option"),
    ("base", "base: needs a value (base=LABEL|BUNDLE|none)"),
    ("base=", "accepted: a label, a bundle or none"),
    ("stage=../x", "accepted: a name like a label's"),
    ("stage=", "accepted: a name like a label's"),
    ("commit=never", "accepted: umount or manual"),
    ("sync=always", "accepted: commit or local"),
    ("diverged=maybe", "accepted: fail or allow"),
    ("label='a b'", "accepted: a label"),
    ("label=latest", "accepted: a label"),
    ("label=01JD3K4Y5Z6A7B8C9D0E1F2G3H", "accepted: a label"),
    ("state=here", "accepted: an absolute path"),
    ("log=here", "accepted: an absolute path"),
    ("memory=1M", "accepted: 32M or more"),
    ("memory=lots", "accepted: 32M or more"),
    ("memory=", "accepted: 32M or more"),
    ("memory=99999999999T", "accepted: 32M or more"),
    ("refresh=soon", "accepted: a time like 1s or 5m"),
    ("timeout=-1s", "accepted: a time like 30s or 5m"),
    ("upload=0", "accepted: a number from 1 to 1024"),
    ("upload=many", "accepted: a number from 1 to 1024"),
    ("download=1025", "accepted: a number from 1 to 1024"),
    ("bwlimit=1", "accepted: bytes a second, 64K or more"),
    ("bwlimit=fast", "accepted: bytes a second"),
    ("verify=maybe", "accepted: on or off"),
    ("verify=off", "only with ro"),
    ("uid=root", "accepted: a user's number"),
    ("uid=4294967295", "accepted: a user's number"),
    ("gid=-1", "accepted: a group's number"),
    ("umask=8", "accepted: octal bits up to 777"),
    ("umask=1777", "accepted: octal bits up to 777"),
    ("metrics=9100", "accepted: an address and a port"),
    ("metrics=localhost:9100", "accepted: an address and a port"),
    ("ro=1", "ro=1: takes no value (write ro)"),
    ("nofail=1", "takes no value"),
    ("user_id=0", "user_id: unknown mount option"),
];

#[test]
fn a_wrong_call_is_refused_in_one_line_and_leaves_nothing_behind() {
    if !inside("refusals::a_wrong_call_is_refused_in_one_line_and_leaves_nothing_behind") {
        return;
    }
    let world = World::new();
    fs::write(world.dir.path().join("one/config/contexts.d/broken.toml"), "colour = 1\n").unwrap();
    let mnt = world.dir.path().join("mnt");
    let options = OPTIONS.iter().map(|(option, words)| (format!("mount prod @MNT -o \"{option}\""), USAGE, *words));
    let calls = CALLS.iter().map(|(line, code, words)| (line.to_string(), *code, *words));
    let rows: Vec<_> = calls.chain(options).collect();
    assert!(rows.len() > 100, "{}", rows.len());
    let before = world.holds();
    for (line, code, words) in rows {
        assert_refused(&line, &world.call(&line), code, words);
        assert!(!is_mounted(&mnt), "{line}: is mounted");
        let left = changed(&before, &world.holds());
        assert!(left.is_empty(), "{line}: left behind, or taken: {left:?}");
    }
    // What the environment says is a word, too.
    let mut mount = world.host.datamon(["mount", "prod", mnt.to_str().unwrap()]);
    let output = within(SOON, mount.env("DATAMON_LOG", "datamon=loud"));
    assert_refused("DATAMON_LOG", &output, USAGE, "DATAMON_LOG=datamon=loud: ");
    assert!(text(&output).contains("(like info or debug)") && !is_mounted(&mnt), "{}", text(&output));
    // Two contexts of one store: one has to be picked.
    run(&mut world.host.datamon(["context", "create", "second", "--store", &world.fill("@STORE")]));
    let other = Host::new(&world.dir.path().join("two"));
    let output = other.datamon(["context", "add", &world.fill("@STORE")]).output().unwrap();
    assert_refused("context add", &output, FAILED, "holds several contexts: prod, second (use ");
}

/// Lines of a shell in a mount of the context `prod`, and the words of their errno. `@BUNDLE` has a label.
const GESTURES: &[(&str, &str)] = &[
    // Repos.
    ("mkdir .hidden", "Invalid argument"),
    ("mkdir .Trash-1000", "Invalid argument"),
    ("mkdir 'a b'", "Invalid argument"),
    ("mkdir -- -dash", "Invalid argument"),
    ("mkdir $(printf '%0129d' 0)", "Invalid argument"),
    ("mkdir $(printf '%0256d' 0)", "File name too long"),
    ("mkdir census", "File exists"),
    ("rmdir nothing", "No such file or directory"),
    ("rmdir census", "Directory not empty"),
    ("mv nothing other", "No such file or directory"),
    ("mv -T census .hidden", "to a subdirectory of itself"), // mv's word for EINVAL
    ("touch file", "Operation not permitted"),
    ("ln -s census link", "Operation not permitted"),
    ("mkfifo fifo", "Operation not permitted"),
    ("chmod 777 .", "Operation not permitted"),
    // What a repo consists of.
    ("mkdir census/other", "Operation not permitted"),
    ("touch census/file", "Operation not permitted"),
    ("rmdir census/bundles", "Operation not permitted"),
    ("mv census/labels census/other", "Operation not permitted"),
    ("cat census/nothing", "No such file or directory"),
    // Bundles and versions.
    ("mkdir census/bundles/x", "Operation not permitted"),
    ("rmdir census/bundles/x", "No such file or directory"),
    ("rmdir census/bundles/@ULID", "No such file or directory"),
    ("rmdir census/bundles/@BUNDLE", "Device or resource busy"),
    ("ls census/bundles/@ULID", "No such file or directory"),
    ("touch census/labels/v1/new", "Read-only file system"),
    ("echo x > census/labels/v1/a", "Read-only file system"),
    ("rm census/bundles/@BUNDLE/a", "Read-only file system"),
    ("mkdir census/labels/latest/new", "Read-only file system"),
    ("chmod 600 census/labels/v1/a", "Read-only file system"),
    ("mv census/labels/v1/a census/labels/v1/b", "Read-only file system"),
    ("ln census/labels/v1/a census/labels/v1/b", "Read-only file system"),
    ("setfattr -n user.x -v y census/labels/v1/a", "Read-only file system"),
    // Labels.
    ("mkdir census/labels/latest", "File exists"),
    ("mkdir empty/labels/latest", "Operation not permitted"),
    ("mkdir census/labels/v1", "File exists"),
    ("mkdir 'census/labels/a b'", "Invalid argument"),
    ("mkdir census/labels/@ULID", "Invalid argument"),
    ("mkdir empty/labels/v1", "No such file or directory"),
    ("rmdir census/labels/v9", "No such file or directory"),
    ("rmdir census/labels/latest", "Operation not permitted"),
    ("touch census/labels/v2", "Operation not permitted"),
    ("ln -s nowhere census/labels/v2", "Invalid argument"),
    ("ln -s ../bundles/@ULID census/labels/v2", "No such file or directory"),
    ("mv -T census/labels/v1 census/labels/latest", "Operation not permitted"),
    ("setfattr -n user.datamon.bundle -v @ULID census/labels/v1", "No such file or directory"),
    ("mv -T census/staging/d census/labels/v1", "Read-only file system"),
    ("mv -T census/staging/d census/bundles/@BUNDLE", "Read-only file system"),
    ("mv -T census/staging/d census/labels/new", "Operation not permitted"),
    ("mv -T census/staging/d another", "Operation not permitted"),
    ("mv -T empty census/labels/v1", "Read-only file system"),
    ("mv census/labels/v1 census/staging/v1", "Read-only file system"),
    ("mv -T census/labels/v1 census/bundles/@BUNDLE", "Read-only file system"),
    ("mv -T census/bundles/@BUNDLE census/labels/v1", "Read-only file system"),
    ("rm -rf census/.datamon", "Read-only file system"),
    ("rm -rf census/staging/.datamon", "Read-only file system"),
    ("rm -rf census/.datamon/labels", "Read-only file system"),
    ("mv census/staging/a census/.datamon/labels/v1", "Operation not permitted"),
    ("mv census/.datamon/labels/v1 census/staging/", "Operation not permitted"),
    // Times.
    ("ls census/at/1999", "No such file or directory"),
    ("ls census/at/yesterday", "No such file or directory"),
    ("mkdir census/at/2020", "Operation not permitted"),
    // The texts.
    ("echo sing > census/.datamon/ctl", "Invalid argument"),
    ("echo pin a > census/.datamon/ctl", "Invalid argument"),
    ("echo restore nonsense > census/.datamon/ctl", "Invalid argument"),
    ("echo restore @ULID > census/.datamon/ctl", "No such file or directory"),
    ("echo undiscard > empty/.datamon/ctl", "No such file or directory"),
    ("echo x > census/.datamon/status", "Operation not permitted"),
    ("echo x > .datamon/stats", "Operation not permitted"),
    ("cat .datamon/ctl", "No such file or directory"),
    ("cat .datamon/history", "No such file or directory"),
    ("cat census/.datamon/diff/v1..v9", "No such file or directory"),
    ("cat census/.datamon/bundle/@ULID/info", "No such file or directory"),
    ("cat census/.datamon/label/v9/history", "No such file or directory"),
    ("echo v9 > census/.datamon/labels/v1", "No such file or directory"),
    ("echo a b > census/.datamon/labels/v1", "Invalid argument"),
    ("rm census/.datamon/labels/latest", "Operation not permitted"),
    ("touch census/.datamon/other", "Operation not permitted"),
    ("chmod 600 census/.datamon/status", "Operation not permitted"),
    ("chown 5 census/.datamon/status", "Operation not permitted"),
    ("mkdir census/.datamon/other", "Operation not permitted"),
    // Staging.
    ("mkdir census/staging/.datamon", "File exists"),
    ("mv census/staging/d census/staging/.datamon", "ermitted"),
    ("ln census/labels/v1/a census/staging/b", "Invalid cross-device link"),
    ("setfattr -n user.datamon.bundle -v x census/staging/a", "Operation not permitted"),
    ("setfattr -n trusted.x -v y census/staging/a", "Operation not supported"),
    ("setfacl -m u:1:r census/staging/a", "Operation not supported"),
    ("rmdir census/staging", "Operation not permitted"),
    ("touch census/staging/$(printf '%0256d' 0)", "File name too long"),
    ("truncate -s 512T census/staging/a", "File too large"),
    ("ls -d census/staging/a/b", "Not a directory"),
];

/// Commits in the same mount: exit status and words.
const COMMITS: &[(&str, i32, &str)] = &[
    ("commit @MNT", USAGE, "mnt: a context has no staging tree of its own (name a repo's: REPO/staging below it)"),
    ("commit @MNT/census/labels/v1", USAGE, "v1: a version never changes (commit the staging tree: REPO/staging)"),
    ("commit @MNT/census/labels/v1/a", USAGE, "a version never changes"),
    ("commit @MNT/census/bundles", USAGE, "bundles: not in a staging tree (name one: REPO/staging)"),
    ("commit @MNT/empty/staging", FAILED, "nothing staged"),
    ("commit @MNT/empty", FAILED, "nothing staged"),
    ("commit @MNT/nothing", FAILED, "nothing: No such file"),
    ("commit -m $(printf '%05000d' 0) @MNT/census/staging", FAILED, "write a longer message to .datamon/message"),
    ("umount @MNT/census", FAILED, "census: not a datamon mount"),
    ("context remove prod", FAILED, "a staging tree is in use by a mount: /"),
];

#[test]
fn a_gesture_that_means_nothing_has_its_errno_and_changes_nothing() {
    if !inside("refusals::a_gesture_that_means_nothing_has_its_errno_and_changes_nothing") {
        return;
    }
    let world = World::new();
    let mnt = world.dir.path().join("mnt");
    run(&mut world.host.datamon(["mount", "prod", mnt.to_str().unwrap(), "-o", "refresh=100ms"]));
    let listed = || run(Command::new("find").arg(&mnt).args(["-printf", "%p %y %s %m %n\n"]));
    let history = || fs::read_to_string(mnt.join("census/.datamon/history")).unwrap();
    let before = (listed(), history());
    let mut wrong = Vec::new();
    for (line, words) in GESTURES {
        let filled = world.fill(line);
        let mut command = Command::new("bash");
        let output = within(SOON, command.args(["-c", &filled]).current_dir(&mnt).env("LC_ALL", "C"));
        if output.status.success() || !text(&output).contains(words) {
            wrong.push(format!("{filled}: {}: {words:?} is not said: {}", output.status, text(&output)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Why a gesture was refused stands in `status`.
    for (line, why) in [
        ("mkdir .hidden", ".hidden: not such a name (letters, digits"),
        ("touch file", "file: a context holds repos, which mkdir makes"),
        ("touch census/file", "file: a repo's files go into its staging tree (cp to REPO/staging/; rmdir removes"),
        ("touch census/labels/v2", "v2: a label is a directory, or a link"),
        ("mkdir census/bundles/x", "x: bundles are made by commits"),
        ("ln -s nowhere census/labels/v2", "v2: a label is a link to ../bundles/ID"),
        ("rmdir census", "census: "),
        ("echo 'pin a' > census/.datamon/ctl", "pin a: pin, drop and prefetch are not in this version"),
        ("echo v9 > census/.datamon/labels/v1", "v1: census: no label or bundle v9 (ls its labels/"),
        ("echo v9 > census/.datamon/labels/v5", "v5: census: no label or bundle v9"),
        ("setfattr -n user.datamon.bundle -v v9 census/labels/v1", "census: no label or bundle v9"),
        ("setfattr -n user.datamon.bundle -v v1 census/labels/latest", "labels/latest is the newest bundle, by itself"),
        ("rmdir census/labels/latest", "labels/latest is the newest bundle, by itself (choose another name"),
        ("mv census/labels/latest census/labels/v2", "latest: labels/latest is the newest bundle"),
        ("setfattr -n user.datamon.bundle -v v1 census/bundles/@BUNDLE", "a bundle's own (set it on labels/NAME"),
        ("setfattr -n user.datamon.state -v clean census/staging", "user.datamon.state: datamon's own to say"),
        ("setfattr -n user.x -v y census/bundles", "user.x: files of a staging tree have xattrs"),
        ("chmod 700 census", "mode, owner or times: those of the mount's owner"),
        ("rmdir census/staging", "staging: what lies in a repo is always there"),
        ("ln census/staging/a census/a", "a: a hard link lies in the staging tree"),
        ("echo x > census/.datamon/status", ".datamon: only ctl, message and the files in labels/ are written"),
        ("rm census/.datamon/status", "status: what lies in .datamon is datamon's"),
        ("echo undiscard > census/.datamon/ctl", "undiscard: nothing is put aside"),
        // What lies in versions, and labels and bundles themselves.
        ("touch census/labels/v1/new", "census/labels/v1: a version never changes (copy what is to be another into"),
        ("echo x > census/bundles/@BUNDLE/a", "census/bundles/@BUNDLE: a version never changes"),
        ("mkdir census/labels/latest/new", "census/labels/latest: a version never changes"),
        ("rm census/labels/v1/a", "census/labels/v1: a version never changes"),
        ("chmod 600 census/labels/latest/a", "census/labels/latest: a version never changes"),
        ("mv census/labels/v1/a census/labels/v1/b", "census/labels/v1: a version never changes"),
        ("mv -T census/staging/d census/labels/v1", "labels and bundles are not moved to other directories"),
        ("setfattr -n user.x -v y census/labels/latest/a", "census/labels/latest: a version never changes"),
    ] {
        let why = world.fill(why);
        let mut command = Command::new("bash");
        let _ = within(SOON, command.args(["-c", &world.fill(line)]).current_dir(&mnt));
        let status = fs::read_to_string(mnt.join("census/.datamon/status")).unwrap();
        let said = status.lines().find_map(|line| line.strip_prefix("last_error: ")).unwrap_or_default();
        assert!(said.contains(&why), "{line}: {why:?} is not said: {said}");
    }
    for (line, code, words) in COMMITS {
        assert_refused(line, &world.call(line), *code, words);
    }
    assert_eq!((listed(), history()), before, "nothing was changed");
    world.host.umount(&mnt);
}

#[test]
fn what_is_anothers_or_in_use_is_refused() {
    if !inside("refusals::what_is_anothers_or_in_use_is_refused") {
        return;
    }
    let world = World::new();
    let mnt = world.dir.path().join("mnt");
    let at = mnt.to_str().unwrap();
    run(&mut world.host.datamon(["mount", "prod", at]));
    for passed in mnt.ancestors().take(3) {
        let _ = fs::set_permissions(passed, fs::Permissions::from_mode(0o755));
    }
    let nobody = |line: &str| {
        let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", line];
        Command::new("setpriv").args(user).current_dir(&mnt).env("LC_ALL", "C").output().unwrap()
    };
    for (line, words) in [
        ("mkdir mine", "Permission denied"),
        ("mkdir census/labels/v2", "Permission denied"),
        ("rmdir census/labels/v1", "Permission denied"),
        ("echo x > census/staging/a", "Permission denied"),
        ("echo commit > census/.datamon/ctl", "Permission denied"),
        ("setfattr -n user.datamon.bundle -v latest census/labels/v1", "ermi"),
    ] {
        let output = nobody(line);
        assert!(!output.status.success() && text(&output).contains(words), "{line}: {}", text(&output));
    }
    let program = world.dir.path().join("datamon");
    fs::write(&program, "").unwrap();
    run(Command::new("mount").args(["--bind", env!("CARGO_BIN_EXE_datamon")]).arg(&program));
    fs::write(mnt.join("census/staging/b"), "b").unwrap();
    let by_nobody = nobody(&format!("HOME=/ exec {} commit {at}/census/staging", program.display()));
    assert_refused(
        "commit by nobody",
        &by_nobody,
        FAILED,
        "not permitted to this user (to commit one may write to the",
    );
    let by_nobody = nobody(&format!("HOME=/ exec {} mount x {at} -o remount,ro", program.display()));
    assert_refused("remount by nobody", &by_nobody, FAILED, "only root can remount");

    // A second mount of the same host: the tree is the first one's.
    let second = world.host.mount("prod/census", "rw");
    let ls = Command::new("ls").arg(second.join("staging")).output().unwrap();
    assert!(text(&ls).contains("Device or resource busy"), "{}", text(&ls));
    let third = world.dir.path().join("third");
    fs::create_dir(&third).unwrap();
    let output = world.host.datamon(["mount", "prod/census/staging", third.to_str().unwrap()]).output().unwrap();
    assert_refused("mount of a held tree", &output, FAILED, "another mount has this staging tree");
    assert!(!is_mounted(&third));
    let status = fs::read_to_string(second.join(".datamon/status")).unwrap();
    assert!(status.contains("holder: ") && status.contains("another mount has this staging tree"), "{status}");
    let commit = world.host.datamon(["commit", second.to_str().unwrap()]).output().unwrap();
    assert_refused("commit of a held tree", &commit, FAILED, "another mount has this staging tree");
    world.host.umount(&second);

    // In use: nothing is committed, and it stays.
    let held = fs::File::open(mnt.join("census/staging/a")).unwrap();
    assert_refused(
        "umount of a busy mount",
        &world.host.datamon(["umount", at]).output().unwrap(),
        FAILED,
        "busy, nothing was committed (leave it and close its files",
    );
    assert_eq!(fs::read_dir(mnt.join("census/bundles")).unwrap().count(), 1);
    drop(held);
    world.host.umount(&mnt);

    // What is staged is not forgotten, unless that is said; and then it is still there.
    run(&mut world.host.datamon(["mount", "prod", at, "-o", "commit=manual"]));
    let staged = fs::write(mnt.join("census/staging/staged"), "staged");
    staged.unwrap_or_else(|why| panic!("{why}: {}", fs::read_to_string(mnt.join(".datamon/status")).unwrap()));
    world.host.umount(&mnt);
    assert_refused("remove", &world.call("context remove prod"), FAILED, "a staging tree has changes: /");
    run(&mut world.host.datamon(["context", "remove", "prod", "--force"]));
    run(&mut world.host.datamon(["context", "add", &world.fill("@STORE")]));
    run(&mut world.host.datamon(["mount", "prod", at]));
    assert_eq!(fs::read_to_string(mnt.join("census/staging/staged")).unwrap(), "staged");
    world.host.umount(&mnt);
    run(&mut world.host.datamon(["context", "remove", "prod"]));
}

#[test]
fn an_error_under_json_is_one_object_with_kind_message_and_remedy() {
    if !inside("refusals::an_error_under_json_is_one_object_with_kind_message_and_remedy") {
        return;
    }
    let world = World::new();
    let mnt = world.dir.path().join("mnt");
    run(&mut world.host.datamon(["mount", "prod", mnt.to_str().unwrap()]));
    for (line, code, kind, remedy) in [
        ("commit --json /nowhere", FAILED, "failed", false),
        ("commit --json @DIR", FAILED, "not_datamon", true),
        ("commit --json", USAGE, "usage", true),
        ("commit --json @MNT", USAGE, "usage", true),
        ("commit --json @MNT/empty/staging", FAILED, "empty", false),
        ("context show --json nowhere", FAILED, "not_found", true),
        ("context check --json nowhere", FAILED, "not_found", true),
        ("context list --json --colour", USAGE, "usage", true),
    ] {
        let output = world.call(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", text(&output));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{line}"));
        assert_eq!(said["error"]["kind"], kind, "{line}: {said}");
        assert_eq!(said["error"]["remedy"].is_string(), remedy, "{line}: {said}");
        assert!(said["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{line}: {said}");
    }
    // What is right is one value of the form that scripts rely on.
    let json = |line: &str| -> serde_json::Value { serde_json::from_slice(&world.call(line).stdout).unwrap() };
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let committed = json("commit --json @MNT/census/staging");
    let expected = "base bundle bytes changed context diverged files label_notes labels new_bytes repo";
    let sorted = |text: String| {
        let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        words.sort();
        words.join(" ")
    };
    assert_eq!(sorted(keys(&committed)), expected);
    assert_eq!((&committed["changed"], &committed["bundle"]), (&false.into(), &world.bundle.as_str().into()));
    assert_eq!(sorted(keys(&json("context list --json")[0])), "file id name url");
    assert_eq!(sorted(keys(&json("context show --json prod"))), "file id name options roles url");
    let checked = json("context check --json prod");
    assert_eq!((sorted(keys(&checked)), &checked["ok"]), ("checks ok".to_owned(), &true.into()));
    assert_eq!(sorted(keys(&checked["checks"][0])), "detail ms name ok");
    world.host.umount(&mnt);
    // A check that fails is told by its findings, in one object.
    fs::remove_dir_all(world.dir.path().join("store")).unwrap();
    let output = world.call("context check --json prod");
    assert_eq!(output.status.code(), Some(FAILED), "{}", text(&output));
    let failed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(failed["ok"], false, "{failed}");
}

/// Calls of the mount helpers by mount(8)'s grammar, which never reach datamon.
#[test]
fn the_helpers_refuse_what_is_no_call_of_mount_8() {
    let helper = target_dir().join("debug/datamon-mount-helper");
    assert!(helper.exists(), "{}: missing (cargo build -p datamon-mount-helper)", helper.display());
    let dir = tempfile::tempdir().unwrap();
    for name in ["mount.datamon", "umount.datamon"] {
        std::os::unix::fs::symlink(&helper, dir.path().join(name)).unwrap();
    }
    for (name, words, said) in [
        ("mount.datamon", "prod", "mount.datamon: usage: mount.datamon SOURCE DIR"),
        ("mount.datamon", "prod /mnt more", "usage:"),
        ("mount.datamon", "prod /mnt -x", "-x: unknown option"),
        ("mount.datamon", "prod /mnt -o", "-o: its value is missing"),
        ("mount.datamon", "prod /mnt -N 1", "-N: other namespaces are not supported (use nsenter)"),
        ("umount.datamon", "/a /b", "umount.datamon: usage: umount.datamon DIR"),
        ("umount.datamon", "/a -x", "-x: unknown option"),
    ] {
        let output = Command::new(dir.path().join(name)).args(words.split(' ')).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name} {words}: {}", text(&output));
        assert!(
            text(&output).contains(said) && text(&output).lines().count() == 1,
            "{name} {words}: {}",
            text(&output)
        );
    }
}
