//! The two ways in that need a system around them: an ordinary user's mount, and mount(8) and umount(8) with our helpers.
//!
//! What other suites need of that is here, too: a user, a host with datamon installed, what mount(8) answers.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::harness::{Host, Place, SOON, inside, names, run, scratch, target_dir, text, within};

// ---- an ordinary user ------------------------------------------------------------------------------------------------

const NOBODY: u32 = 65534;

/// Makes /dev/fuse everybody's in this namespace, as udev does on an ordinary machine.
fn open_dev_fuse(dir: &Path) {
    let devices = dir.join("devices");
    fs::create_dir(&devices).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "dev", "none"]).arg(&devices));
    let node = devices.join("fuse");
    run(Command::new("mknod").args(["-m", "666"]).arg(&node).args(["c", "10", "229"]));
    run(Command::new("mount").arg("--bind").arg(&node).arg("/dev/fuse"));
}

/// A user with a home directory and nothing else.
pub struct User {
    home: PathBuf,
    program: PathBuf,
}

impl User {
    pub fn new(dir: &Path) -> Self {
        open_dev_fuse(dir);
        // Every directory on the way is the user's to pass, as the checkout need not be: the program is bound there.
        let program = dir.join("datamon");
        File::create(&program).unwrap();
        run(Command::new("mount").args(["--bind", env!("CARGO_BIN_EXE_datamon")]).arg(&program));
        for passed in dir.ancestors().take(2) {
            fs::set_permissions(passed, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let home = dir.join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        Self { home, program }
    }

    /// One with the context `mine` and a place to mount it.
    pub fn with_context(dir: &Path) -> (Self, String) {
        let user = Self::new(dir);
        let mnt = user.at("mnt");
        user.does("mkdir", &[&mnt]);
        user.datamon(&["context", "create", "mine", "--store", &format!("file://{}", user.at("store"))]);
        (user, mnt)
    }

    /// Runs a program as this user; answers what it printed.
    pub fn does(&self, program: &str, words: &[&str]) -> String {
        let id = NOBODY.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", program]).args(words);
        command.env_clear().env("HOME", &self.home).env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
        let output = within(SOON, &mut command);
        assert!(output.status.success(), "{program} {words:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn datamon(&self, words: &[&str]) -> String {
        self.does(self.program.to_str().unwrap(), words)
    }

    pub fn at(&self, name: &str) -> String {
        self.home.join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn an_ordinary_user_mounts_commits_and_unmounts() {
    if !inside("mounting::an_ordinary_user_mounts_commits_and_unmounts") {
        return;
    }
    let dir = scratch();
    let (user, mnt) = User::with_context(dir.path());
    let tree = user.at("tree");
    user.does("mkdir", &["-p", &user.at("tree/deep")]);
    user.does(
        "sh",
        &["-c", "cd $0 && head -c 3000000 /dev/urandom > large; echo a > deep/small; ln -s large link", &tree],
    );
    user.datamon(&["mount", "mine", &mnt]);
    let staging = format!("{mnt}/census/staging");
    user.does("mkdir", &[&format!("{mnt}/census")]);
    user.does("cp", &["-a", &format!("{tree}/."), &staging]);
    let bundle = user.datamon(&["commit", "-m", "mine", "-l", "v1", &staging]);
    assert_eq!(user.does("ls", &[&format!("{mnt}/census/bundles")]), bundle);
    let label = format!("{mnt}/census/labels/v1/");
    assert_eq!(user.does("ls", &[&label]), "deep\nlarge\nlink\n");
    let from = format!("{tree}/");
    let listed = user.does("rsync", &["-aXn", "--checksum", "--delete", "--itemize-changes", &from, &label]);
    assert_eq!(listed, "");
    let owner = user.does("stat", &["-c", "%u:%g", &format!("{label}large")]);
    assert_eq!(owner, "65534:65534\n", "what a user sees is the user's");
    assert!(fs::read_dir(&mnt).is_err(), "FUSE keeps a user's mount from root");
    let status = user.does("cat", &[&format!("{mnt}/.datamon/status")]);
    for told in ["notice: other users, root too, cannot look in", "notice: without root the kernel reads ahead"] {
        assert!(status.contains(told), "{status}");
    }
    user.datamon(&["umount", "--lazy", &mnt]);

    user.datamon(&["mount", "mine/census/staging", &mnt]);
    user.does("sh", &["-c", "echo b > $0/later", &mnt]);
    user.datamon(&["umount", &mnt]);
    assert_eq!(mounts_at(Path::new(&mnt)), 0);
    user.datamon(&["mount", "mine/census/labels/latest", &mnt]);
    assert_eq!(user.does("cat", &[&format!("{mnt}/later")]), "b\n", "umount committed it");
}

#[test]
fn without_fuse_a_user_is_told_of_the_device_that_is_not_there() {
    if !inside("mounting::without_fuse_a_user_is_told_of_the_device_that_is_not_there") {
        return;
    }
    let dir = scratch();
    let (user, mnt) = User::with_context(dir.path());
    // A /dev with nothing but what a shell needs.
    let devices = dir.path().join("bare");
    fs::create_dir(&devices).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "dev", "none"]).arg(&devices));
    for (name, minor) in [("null", "3"), ("urandom", "9")] {
        run(Command::new("mknod").args(["-m", "666"]).arg(devices.join(name)).args(["c", "1", minor]));
    }
    run(Command::new("mount").arg("--bind").arg(&devices).arg("/dev"));
    let said = user.does("sh", &["-c", "\"$0\" mount mine \"$1\" 2>&1 || true", user.program.to_str().unwrap(), &mnt]);
    assert!(said.contains("/dev/fuse: No such file or directory (modprobe fuse makes it)"), "{said}");
    assert_eq!(mounts_at(Path::new(&mnt)), 0);
}

#[test]
fn an_ordinary_user_unmounts_a_context_and_a_version() {
    if !inside("mounting::an_ordinary_user_unmounts_a_context_and_a_version") {
        return;
    }
    let dir = scratch();
    let (user, mnt) = User::with_context(dir.path());
    user.datamon(&["mount", "mine", &mnt]);
    user.does("mkdir", &[&format!("{mnt}/census")]);
    user.does("sh", &["-c", "echo a > $0/census/staging/a", &mnt]);
    user.datamon(&["umount", &mnt]);
    user.datamon(&["mount", "mine/census/labels/latest", &mnt]);
    assert_eq!(user.does("cat", &[&format!("{mnt}/a")]), "a\n", "umount committed it");
    user.datamon(&["umount", &mnt]);
    assert_eq!(mounts_at(Path::new(&mnt)), 0);

    // A version whose root nobody may write into: the kernel refuses what a recursive deleter does below it, and we the rest.
    user.datamon(&["mount", "mine", &mnt]);
    user.does("chmod", &["555", &format!("{mnt}/census/staging")]);
    user.datamon(&["commit", &format!("{mnt}/census/staging")]);
    let line = "cd $0/census && mkdir labels/v1 && { find labels/v1 -delete; ls labels; }";
    assert!(user.does("sh", &["-c", line, &mnt]).ends_with("latest\nv1\n"));
    // Root, whom FUSE keeps out, unmounts it as its user would.
    user.does("sh", &["-c", "chmod 755 $0/census/staging; echo b > $0/census/staging/b", &mnt]);
    let bundle = run(Command::new(env!("CARGO_BIN_EXE_datamon")).args(["umount", &mnt]));
    assert_eq!(mounts_at(Path::new(&mnt)), 0);
    user.datamon(&["mount", "mine/census/labels/latest", &mnt]);
    assert_eq!(user.does("ls", &[&mnt]), "a\nb\n", "{bundle}");
    user.datamon(&["umount", &mnt]);
}

// ---- mount(8) and umount(8) ------------------------------------------------------------------------------------------

/// Covers a directory of programs with one that can be added to, in this namespace.
fn lay_over(covered: &Path, dir: &Path) {
    let layer = dir.join(format!("over{}", covered.to_str().unwrap().replace('/', "-")));
    fs::create_dir(&layer).unwrap();
    // overlayfs wants its upper layer on a file system of some kinds only: tmpfs is one everywhere.
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&layer));
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", covered.display(), upper.display(), work.display());
    run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(covered));
}

/// Installs datamon and its helpers as `make install` does, in this namespace.
pub fn install(dir: &Path) {
    let helper = target_dir().join("debug/datamon-mount-helper");
    assert!(
        helper.exists(),
        "{}: missing (run cargo build -p datamon-mount-helper, as `make test` does)",
        helper.display()
    );
    let sbin = fs::canonicalize("/sbin").unwrap();
    lay_over(&sbin, dir);
    lay_over(Path::new("/usr/local/bin"), dir);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_datamon"), "/usr/local/bin/datamon").unwrap();
    fs::copy(helper, sbin.join("mount.datamon")).unwrap();
    for name in ["umount.datamon", "mount.fuse.datamon", "umount.fuse.datamon"] {
        std::os::unix::fs::symlink("mount.datamon", sbin.join(name)).unwrap();
    }
}

/// A host with the repo `census`, whose programs are installed.
pub fn installed_host(dir: &Path) -> (Place, Host, PathBuf) {
    install(dir);
    let place = Place::directory(&dir.join("store"));
    let host = place.host(&dir.join("one"), "create");
    let context = host.mount("prod", "rw");
    fs::create_dir(context.join("census")).unwrap();
    host.umount(&context);
    let mnt = dir.join("mnt with a space");
    fs::create_dir(&mnt).unwrap();
    (place, host, mnt)
}

/// What mount(8) or umount(8) answer: their exit code, and what they said.
pub fn answer(host: &Host, program: &str, words: &[&str], dir: &Path) -> (i32, String) {
    let output = within(SOON, host.command(program).args(words).arg(dir));
    (output.status.code().unwrap(), text(&output))
}

pub fn mounts_at(dir: &Path) -> usize {
    let dir = format!(" {} ", dir.to_str().unwrap().replace(' ', "\\040"));
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&dir)).count()
}

fn bundles(host: &Host) -> usize {
    let mnt = host.mount("prod", "ro");
    let count = names(&mnt.join("census/bundles")).len();
    host.umount(&mnt);
    count
}

#[test]
fn umount_8_of_a_stopped_daemon_ends_and_says_where_the_mount_can_be_ended() {
    if !inside("mounting::umount_8_of_a_stopped_daemon_ends_and_says_where_the_mount_can_be_ended") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    for source in ["prod", "prod/census"] {
        assert_eq!(answer(&host, "mount", &["-t", "datamon", source], &mnt), (0, String::new()));
        fs::metadata(&mnt).unwrap();
        // Longer than the kernel relies on what may change.
        std::thread::sleep(Duration::from_millis(2_500));
        let signal = |name: &str| {
            for pid in host.daemons(&mnt) {
                run(Command::new("kill").args(["-s", name, &pid.to_string()]));
            }
        };
        signal("STOP");
        // A wrong place inside it is known by its name.
        let inside = mnt.join("staging/deep");
        let wrong = within(SOON, &mut host.datamon(["umount", inside.to_str().unwrap()]));
        assert!(text(&wrong).contains("deep: not a datamon mount"), "{}", text(&wrong));
        let (code, said) = answer(&host, "umount", &[], &mnt);
        signal("CONT");
        assert_eq!(code, 32, "{source}: {said}");
        assert!(said.contains("gives no answer within 10 s") && said.contains("/sys/fs/fuse/connections/"), "{said}");
        assert_eq!(answer(&host, "umount", &[], &mnt), (0, String::new()), "{source}");
    }
}

#[test]
fn mount_8_mounts_and_umount_8_commits() {
    if !inside("mounting::mount_8_mounts_and_umount_8_commits") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    let mount = ["-t", "datamon", "-o", "rw,_netdev,base=none,message=by umount", "prod/census/staging"];
    assert_eq!(answer(&host, "mount", &mount, &mnt), (0, String::new()));
    fs::write(mnt.join("a"), "a").unwrap();
    let (code, said) = answer(&host, "umount", &[], &mnt);
    assert_eq!((code, said.lines().count()), (0, 1), "umount names the bundle: {said}");
    assert_eq!(mounts_at(&mnt), 0);
    assert_eq!(answer(&host, "mount", &["-t", "datamon", "prod/census/labels/latest"], &mnt), (0, String::new()));
    assert_eq!(fs::read_to_string(mnt.join("a")).unwrap(), "a");
    assert_eq!(answer(&host, "umount", &[], &mnt), (0, String::new()));
    assert_eq!(bundles(&host), 1);
}

#[test]
fn mount_a_mounts_a_line_of_fstab_once() {
    if !inside("mounting::mount_a_mounts_a_line_of_fstab_once") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    let table = dir.path().join("fstab");
    let at = mnt.to_str().unwrap().replace(' ', "\\040");
    let options = "rw,_netdev,nofail,x-systemd.automount,timeout=30s,comment=ours";
    fs::write(&table, format!("prod/census\t{at}\tdatamon\t{options}\t0 0\n")).unwrap();
    for _ in 0..2 {
        let output = within(SOON, host.command("mount").args(["-a", "-T"]).arg(&table));
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(mounts_at(&mnt), 1, "mount -a mounts once");
    }
    fs::write(mnt.join("staging/a"), "a").unwrap();
    assert_eq!(answer(&host, "umount", &[], &mnt).0, 0);
    assert_eq!((mounts_at(&mnt), bundles(&host)), (0, 1));
}

#[test]
fn mount_8_answers_with_its_own_exit_codes_and_one_line() {
    if !inside("mounting::mount_8_answers_with_its_own_exit_codes_and_one_line") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    for (source, options, code, said) in [
        ("prod/census", "colour=red", 1, "colour: unknown mount option"),
        ("prod/census", "memory=1M", 1, "accepted: 32M or more"),
        ("prod/census/nothing/at/all", "rw", 1, "prod/census/nothing/at/all"),
        ("nowhere/census", "rw", 32, "no such context"),
        ("prod/nothing", "rw", 32, "nothing"),
        ("prod/census/labels/v9", "rw", 32, "v9"),
    ] {
        let (found, line) = answer(&host, "mount", &["-t", "datamon", "-o", options, source], &mnt);
        assert_eq!((found, line.lines().count()), (code, 1), "{source} -o {options}: {line}");
        assert!(line.contains(said), "{source} -o {options}: {line}");
        assert_eq!(mounts_at(&mnt), 0);
    }
}

#[test]
fn a_busy_mount_is_not_unmounted_and_nothing_is_committed() {
    if !inside("mounting::a_busy_mount_is_not_unmounted_and_nothing_is_committed") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt) = installed_host(dir.path());
    assert_eq!(answer(&host, "mount", &["-t", "datamon", "prod/census"], &mnt), (0, String::new()));
    fs::write(mnt.join("staging/a"), "a").unwrap();
    let held = File::open(mnt.join("staging/a")).unwrap();
    let (code, said) = answer(&host, "umount", &[], &mnt);
    assert_eq!((code, said.lines().count()), (32, 1), "{said}");
    assert!(said.contains("busy, nothing was committed"), "{said}");
    assert_eq!(mounts_at(&mnt), 1);
    assert!(names(&mnt.join("bundles")).is_empty(), "nothing was committed");
    fs::write(mnt.join("staging/b"), "b").unwrap();
    drop(held);
    assert_eq!(answer(&host, "umount", &[], &mnt).0, 0);
    assert_eq!(bundles(&host), 1);
}
