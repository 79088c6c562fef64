//! POSIX ACLs: `-o acl`, seen through mounts; and what becomes of stored ones where it is off.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::harness::{Host, Place, host_with_repo, inside, names, run, scratch, sync, text, until};
use super::mounting::{User, answer, installed_host};
use super::trees::noise;

/// A user and a group that the lists name, and a stranger.
const ANN: u32 = 1234;
const TEAM: u32 = 77;
const STRANGER: u32 = 1235;

/// A host with the repo `census`, to whose mounts other users come.
fn host(dir: &Path) -> (Place, Host) {
    for passed in dir.ancestors().take(2) {
        // The scratch directory and the harness's around it.
        fs::set_permissions(passed, fs::Permissions::from_mode(0o755)).unwrap();
    }
    host_with_repo(dir)
}

fn setfacl(words: &[&str], path: &Path) -> Output {
    Command::new("setfacl").args(words).arg(path).output().unwrap()
}

fn set(words: &[&str], path: &Path) {
    run(Command::new("setfacl").args(words).arg(path));
}

/// What getfacl(1) shows of one entry, in one line.
fn list(path: &Path) -> String {
    let shown = run(Command::new("getfacl").args(["-cnpE"]).arg(path));
    shown.split_whitespace().collect::<Vec<_>>().join(",")
}

/// What getfacl(1) shows of everything below `dir`.
fn lists(dir: &Path) -> String {
    let all = "cd \"$0\" && find . ! -type l -print0 | sort -z | xargs -0 getfacl -np --";
    run(Command::new("sh").args(["-c", all]).arg(dir)).replace("# file: ./", "# file: ")
}

/// Runs a shell's line as another user.
fn as_user(uid: u32, line: &str, at: &Path) -> Output {
    let id = uid.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-c", line]).arg(at).output().unwrap()
}

fn may(uid: u32, line: &str, at: &Path) -> bool {
    let output = as_user(uid, line, at);
    assert!(output.status.success() || text(&output).contains("ermission denied"), "{line}: {}", text(&output));
    output.status.success()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A tree with lists of both kinds on whatever can have them, also on its root.
fn tree_with_lists(root: &Path) {
    let user = format!("u:{ANN}:rwx");
    set(&["-m", &format!("u:{ANN}:rx")], root);
    fs::create_dir_all(root.join("team/deep")).unwrap();
    set(&["-m", &format!("{user},g:{TEAM}:rx,o::-")], &root.join("team"));
    set(&["-d", "-m", &format!("{user},g:{TEAM}:rx,o::-")], &root.join("team"));
    fs::create_dir(root.join("team/heir")).unwrap();
    for (name, bytes) in [("small", 10), ("middle", 100_000), ("large", 3 << 20)] {
        fs::write(root.join("team").join(name), noise(bytes as u64, bytes)).unwrap();
    }
    fs::write(root.join("plain"), "no list").unwrap();
    fs::write(root.join("linked"), "two names").unwrap();
    set(&["-m", &format!("u:{ANN}:r,m::r")], &root.join("linked"));
    fs::hard_link(root.join("linked"), root.join("team/link")).unwrap();
    run(Command::new("mkfifo").arg(root.join("team/deep/pipe")));
    set(&["-m", &format!("g:{TEAM}:rw")], &root.join("team/deep/pipe"));
}

#[test]
fn acls_do_step_by_step_what_a_local_file_system_does() {
    if !inside("acls::acls_do_step_by_step_what_a_local_file_system_does") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host(dir.path());
    let mounted = host.mount("prod/census/staging", "acl,suid,dev");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fstests/programs/acls.sh");
    let steps = |dir: PathBuf| {
        fs::create_dir(&dir).unwrap();
        run(Command::new("bash").arg(&program).arg(dir))
    };
    let place = |name: &str| {
        let at = dir.path().join(name);
        fs::create_dir(&at).unwrap();
        at
    };
    let (tmpfs, ext4, image) = (place("tmpfs"), place("ext4"), dir.path().join("image"));
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "none"]).arg(&tmpfs));
    run(Command::new("truncate").args(["-s", "32M"]).arg(&image));
    run(Command::new("mkfs.ext4").arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", "loop,acl"]).arg(&image).arg(&ext4));
    let [ours, tmpfs, ext4] = std::thread::scope(|scope| {
        [&mounted, &tmpfs, &ext4].map(|at| scope.spawn(|| steps(at.join("steps")))).map(|steps| steps.join().unwrap())
    });
    assert!(ours.len() > 50_000 && ours.contains("# copies"), "the steps were done: {ours}");
    for (local, said) in [("tmpfs", &tmpfs), ("ext4", &ext4)] {
        // Which step it was stands above.
        let at = ours.lines().zip(said.lines()).position(|(ours, theirs)| ours != theirs);
        let around = |text: &str, at: usize| {
            text.lines().skip(at.saturating_sub(12)).take(16).map(|line| format!("    {line}\n")).collect::<String>()
        };
        if let Some(at) = at {
            panic!("line {at}: ours\n{}{local}\n{}", around(&ours, at), around(said, at));
        }
        assert_eq!(ours.lines().count(), said.lines().count(), "{local}");
    }
    host.umount(&mounted);
}

#[test]
fn acls_come_back_in_versions_on_other_hosts_and_after_kill_9() {
    if !inside("acls::acls_come_back_in_versions_on_other_hosts_and_after_kill_9") {
        return;
    }
    let dir = scratch();
    let (place, one) = host(dir.path());
    let mnt = one.mount("prod", "acl");
    let staging = mnt.join("census/staging");
    tree_with_lists(&staging);
    let made = lists(&staging);
    for words in ["# file: .\n", "# file: team\n", "default:user:1234:rwx\n", "# file: team/deep/pipe\n"] {
        assert!(made.contains(words), "{words}: {made}");
    }
    for pid in one.daemons(&mnt) {
        run(Command::new("kill").args(["-9", &pid.to_string()]));
    }
    assert_eq!(one.mount("prod", "acl"), mnt);
    assert_eq!(lists(&staging), made, "after kill -9");
    sync(&staging);
    let version = mnt.join("census/labels/latest");
    assert_eq!(lists(&version), made, "in the version");

    let two = place.host(&dir.path().join("two"), "add");
    let other = two.mount("prod", "acl");
    let (theirs, from) = (other.join("census/staging"), other.join("census/labels/latest"));
    assert_eq!(lists(&from), made, "on another host");
    assert_eq!(lists(&theirs), made, "what is staged over it");
    let refused = setfacl(&["-m", "u:9:r"], &from.join("plain"));
    assert!(text(&refused).contains("Read-only file system"), "{}", text(&refused));
    // Lists decide in versions, too.
    assert!(may(ANN, "cat \"$0\"", &from.join("team/small")) && may(ANN, "ls \"$0\"", &from.join("team/heir")));
    assert!(!may(STRANGER, "cat \"$0\"", &from.join("team/small")) && !may(STRANGER, "ls \"$0\"", &from.join("team")));
    // Copies out of a version.
    let copies = dir.path().join("copies");
    fs::create_dir(&copies).unwrap();
    run(Command::new("cp").arg("-a").arg(&from).arg(copies.join("cp")));
    run(Command::new("rsync").args(["-aHAX"]).arg(format!("{}/", from.display())).arg(copies.join("rsync")));
    for by in ["cp", "rsync"] {
        assert_eq!(lists(&copies.join(by)), made, "{by}");
    }
    // Over a base: a copy-up by bytes, by mode, by name and by list.
    fs::write(theirs.join("team/small"), "new bytes").unwrap();
    let large = fs::File::options().write(true).open(theirs.join("team/large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, b"x", 2 << 20).unwrap();
    drop(large);
    fs::set_permissions(theirs.join("team/middle"), fs::Permissions::from_mode(0o640)).unwrap();
    set(&["-x", &format!("u:{ANN}")], &theirs.join("linked"));
    fs::rename(theirs.join("team/heir"), theirs.join("heir")).unwrap();
    fs::write(theirs.join("heir/new"), "inherits").unwrap();
    let changed = lists(&theirs);
    let expected = "user::rw-,user:1234:rwx,group::r-x,group:77:r-x,mask::r--,other::---";
    assert_eq!(list(&theirs.join("team/middle")), expected);
    assert_eq!(list(&theirs.join("team/small")), expected.replace("mask::r--", "mask::rw-"));
    assert_eq!(list(&theirs.join("heir/new")), expected.replace("mask::r--", "mask::rw-"));
    assert_eq!(list(&theirs.join("team/link")), "user::rw-,group::r--,mask::r--,other::r--");
    sync(&theirs);
    // The kernel may lead to the version before for as long as `refresh=`.
    until(Duration::from_secs(3), "a walk to the new version", || lists(&from) == changed);
    two.umount(&other);
    one.umount(&mnt);
    let pinned = one.mount("prod/census/labels/latest", "acl");
    assert_eq!(lists(&pinned), changed, "mounted by itself");
    assert!(
        may(ANN, "cat \"$0\"", &pinned.join("team/large")) && !may(STRANGER, "cat \"$0\"", &pinned.join("team/large"))
    );
    let refused = setfacl(&["-b"], &pinned.join("team"));
    assert!(text(&refused).contains("Read-only file system"), "{}", text(&refused));
    one.umount(&pinned);
}

#[test]
fn a_mount_without_acl_shows_no_list_and_keeps_all_in_step() {
    if !inside("acls::a_mount_without_acl_shows_no_list_and_keeps_all_in_step") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host(dir.path());
    let mnt = host.mount("prod", "acl");
    let staging = mnt.join("census/staging");
    tree_with_lists(&staging);
    sync(&staging);
    let made = lists(&staging);
    host.umount(&mnt);

    let mnt = host.mount("prod", "rw");
    for below in ["census/staging/team/large", "census/labels/latest/team/large"] {
        let file = mnt.join(below);
        assert_eq!(list(&file), "user::rw-,group::rw-,other::---", "the mode alone");
        let asked = Command::new("getfattr").args(["-n", "system.posix_acl_access"]).arg(&file).output().unwrap();
        assert!(text(&asked).contains("Operation not supported"), "{}", text(&asked));
        let listed = run(Command::new("getfattr").args(["-d", "-m", "-"]).arg(&file));
        assert_eq!(listed, "", "not listed, so no copy asks for it");
        assert!(!may(ANN, "cat \"$0\"", &file), "no list decides");
    }
    for file in ["plain", "linked"] {
        let refused = setfacl(&["-m", "u:9:r"], &staging.join(file));
        assert!(text(&refused).contains("Operation not supported"), "{}", text(&refused));
    }
    fs::set_permissions(staging.join("team/large"), fs::Permissions::from_mode(0o740)).unwrap();
    fs::write(staging.join("team/new"), "inherits nothing here").unwrap();
    assert_eq!(mode(&staging.join("team/new")), 0o644, "the umask, and no default list");
    fs::rename(staging.join("team/middle"), staging.join("moved")).unwrap();
    let set = Command::new("setfattr").args(["-n", "user.a", "-v", "b"]).arg(staging.join("linked")).output().unwrap();
    assert!(set.status.success());
    sync(&staging);
    host.umount(&mnt);

    let mnt = host.mount("prod", "acl");
    let version = mnt.join("census/labels/latest");
    let of = |lists: &str, file: &str| -> String {
        let head = format!("# file: {file}\n");
        let found = lists.split("\n\n").find(|list| list.starts_with(&head));
        found.unwrap_or_else(|| panic!("{file}: {lists}")).split_once('\n').unwrap().1.to_owned()
    };
    let now = lists(&version);
    let large = "user::rwx,user:1234:rwx,group::r-x,group:77:r-x,mask::r--,other::---";
    assert_eq!(list(&version.join("team/large")), large, "its mask went with the mode");
    assert_eq!(of(&now, "moved"), of(&made, "team/middle"));
    for kept in [".", "team", "team/heir", "linked", "team/link", "team/deep/pipe"] {
        assert_eq!(of(&now, kept), of(&made, kept), "{kept}");
    }
    assert_eq!(list(&version.join("team/new")), "user::rw-,group::r--,other::r--");
    host.umount(&mnt);
}

#[test]
fn a_list_on_the_root_of_a_tree_says_who_commits_by_sync() {
    if !inside("acls::a_list_on_the_root_of_a_tree_says_who_commits_by_sync") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host(dir.path());
    let mnt = host.mount("prod", "acl");
    let (staging, bundles) = (mnt.join("census/staging"), mnt.join("census/bundles"));
    // The mask lets the group's bits of the mode say that somebody may write; the group itself may not.
    set(&["-m", &format!("u:{ANN}:rwx")], &staging);
    chown(&staging, None, Some(STRANGER)).unwrap();
    assert_eq!(mode(&staging), 0o775);
    run(Command::new("sh")
        .args(["-c", "setpriv --reuid 1234 --regid 1234 --clear-groups touch \"$0/anns\""])
        .arg(&staging));
    assert!(as_user(STRANGER, "sync \"$0\"", &staging).status.success());
    assert_eq!(names(&bundles).len(), 0, "a member of the group, which may not write");
    assert!(!may(STRANGER, "touch \"$0/strangers\"", &staging));
    assert!(as_user(ANN, "sync \"$0\"", &staging).status.success());
    assert_eq!(names(&bundles).len(), 1, "a user whom the list names");
    host.umount(&mnt);
}

#[test]
fn lists_are_shown_as_the_modes_are_and_a_users_mount_has_them_too() {
    if !inside("acls::lists_are_shown_as_the_modes_are_and_a_users_mount_has_them_too") {
        return;
    }
    let dir = scratch();
    let (_place, one) = host(dir.path());
    let user = User::new(dir.path());
    let mnt = one.mount("prod/census/staging", "acl");
    tree_with_lists(&mnt);
    one.umount(&mnt);

    let mnt = one.mount("prod/census/staging", "acl,uid=1000,umask=022");
    let large = mnt.join("team/large");
    assert_eq!(list(&large), "user::rw-,user:1234:rwx,group::r-x,group:77:r-x,mask::r--,other::---");
    assert_eq!((mode(&large), fs::metadata(&large).unwrap().uid()), (0o640, 1000));
    assert!(may(ANN, "cat \"$0\"", &large) && !may(ANN, "echo x >> \"$0\"", &large), "what is hidden grants nothing");
    assert!(may(1000, "setfacl -m u:1235:r \"$0\"", &large), "the shown owner changes them");
    one.umount(&mnt);

    run(Command::new("chown").args(["-R", "65534:65534"]).arg(dir.path().join("store")));
    let (store, at) = (format!("file://{}", dir.path().join("store").display()), user.at("mnt"));
    user.does("mkdir", &[&at]);
    user.datamon(&["context", "add", &store]);
    user.datamon(&["mount", "prod/census/staging", &at, "-o", "acl"]);
    let shown = user.does("getfacl", &["-cnpE", &format!("{at}/team/large")]);
    assert!(shown.contains("user:1234:rwx\n") && shown.contains("user:1235:r--\n"), "{shown}");
    user.does("setfacl", &["-m", "u:9:r", &format!("{at}/team/small")]);
    user.does("touch", &[&format!("{at}/team/users")]);
    user.datamon(&["umount", &at]);
    let plain = one.mount("prod/census/labels/latest", "acl");
    let expected = "user::rw-,user:9:r--,user:1234:rwx,group::r-x,group:77:r-x,mask::rwx,other::---";
    assert_eq!(list(&plain.join("team/small")), expected);
    assert_eq!(fs::metadata(plain.join("team/small")).unwrap().uid(), 0, "the stored owner stays");
    assert!(list(&plain.join("team/users")).contains("user:1234:rwx"), "inherited");
    one.umount(&plain);
}

#[test]
fn long_lists_many_files_and_wrong_places() {
    if !inside("acls::long_lists_many_files_and_wrong_places") {
        return;
    }
    const FILES: usize = 1_000;
    let dir = scratch();
    let (_place, host) = host(dir.path());
    let mnt = host.mount("prod", "acl");
    let staging = mnt.join("census/staging");
    let many = staging.join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..FILES {
        fs::write(many.join(format!("{n}")), "x").unwrap();
    }
    set(&["-R", "-m", "u:1234:rX,g:77:rwX"], &many);
    let listed = lists(&many);
    assert_eq!(listed.matches("user:1234:r--\n").count(), FILES, "files");
    assert_eq!(listed.matches("user:1234:r-x\n").count(), 1, "the directory");
    set(&["-R", "-b"], &many);
    assert!(!lists(&many).contains("1234"));

    // FUSE takes lists of one page, as ext4 does of its block: 507 named ones beside the four that are always there.
    let entries = |count: usize| (0..count).map(|n| format!("u:{}:r", 5_000 + n)).collect::<Vec<_>>().join(",");
    let file = many.join("0");
    set(&["-m", &entries(507)], &file);
    assert_eq!(list(&file).matches("user:").count(), 508);
    let before = list(&file);
    let refused = setfacl(&["-m", &entries(1_000)], &file);
    assert!(text(&refused).contains("Argument list too long"), "{}", text(&refused));
    assert_eq!(list(&file), before, "nothing was changed");
    sync(&staging);
    assert_eq!(list(&mnt.join("census/labels/latest/many/0")), before);

    for (place, why) in [
        ("", "Operation not permitted"),
        ("census", "Operation not permitted"),
        ("census/labels", "Operation not permitted"),
        ("census/labels/latest", "Read-only file system"),
        ("census/.datamon/status", "Operation not permitted"),
    ] {
        let refused = setfacl(&["-m", "u:1:r"], &mnt.join(place));
        assert!(text(&refused).contains(why), "{place}: {}", text(&refused));
        assert!(list(&mnt.join(place)).starts_with("user::"), "{place}");
    }
    host.umount(&mnt);
}

#[test]
fn acls_are_there_from_the_beginning_of_a_mount_or_not_at_all() {
    if !inside("acls::acls_are_there_from_the_beginning_of_a_mount_or_not_at_all") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    let file = mnt.join("staging/file");
    for (options, is_on) in [("rw", false), ("rw,acl", true)] {
        assert_eq!(answer(&host, "mount", &["-t", "datamon", "-o", options, "prod/census"], &mnt), (0, String::new()));
        fs::write(&file, "x").unwrap();
        assert_eq!(setfacl(&["-m", "u:1:r"], &file).status.success(), is_on);
        let (code, said) = answer(&host, "mount", &["-o", "remount,ro,acl"], &mnt);
        assert_eq!(code == 0, is_on, "{said}");
        if is_on {
            let refused = setfacl(&["-m", "u:2:r"], &file);
            assert!(text(&refused).contains("Read-only file system"), "{}", text(&refused));
            assert_eq!(answer(&host, "mount", &["-o", "remount,rw"], &mnt), (0, String::new()));
            assert_eq!(list(&file), "user::rw-,user:1:r--,group::r--,mask::r--,other::r--", "they stay on");
        } else {
            assert!(code == 32 && said.contains("from its beginning or not at all (umount it"), "{code}: {said}");
        }
        fs::write(&file, "nothing was changed").unwrap();
        until(Duration::from_secs(10), "an unmount", || answer(&host, "umount", &[], &mnt).0 == 0);
    }
}
