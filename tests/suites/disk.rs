//! A disk that refuses, and a state directory that cannot be used: told, and nothing that was answered is lost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::harness::{Host, Place, SOON, inside, run, scratch, sync, text, until, within};
use super::power::host_on_a_disk;
use super::writers::{Dice, Writer, a_repo, another_host_sees_the_same, judge, kill, mount, rounds, seed};

// ---- a disk that fails ---------------------------------------------------------------------------------------------------

/// Calls of a daemon that fail from now on, until it is dropped.
struct Failing {
    strace: std::process::Child,
}

impl Failing {
    fn new(pid: u32, inject: &str) -> Self {
        Self::on(pid, inject, &[])
    }

    /// Calls that concern one of these files only; all where there is none.
    fn on(pid: u32, inject: &str, files: &[PathBuf]) -> Self {
        let (call, _) = inject.split_once(':').unwrap();
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={inject}")])
            .args(files.iter().flat_map(|file| [PathBuf::from("-P"), file.clone()]))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let traced = |task: PathBuf| {
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        until(SOON, "strace", || {
            assert!(strace.try_wait().unwrap().is_none(), "strace ended");
            fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| traced(task.unwrap().path()))
        });
        Self { strace }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.strace.id().to_string()]).status();
        let _ = self.strace.wait();
    }
}

/// Works on through refusals; answers how many there were. After each, everything is looked at.
fn work_through(mut writer: Writer, staging: &Path, steps: usize, what: &str) -> (Writer, usize) {
    let mut refused = 0;
    for n in 0..steps {
        match writer.step() {
            Ok(()) => writer.all_is_safe(),
            Err(error) => {
                refused += 1;
                let code = error.raw_os_error().unwrap_or_default();
                assert!([EIO, ENOSPC].contains(&code), "{what}, step {n}: {error}");
                judge(std::slice::from_ref(&writer), &format!("{what}, step {n}: after {error}"));
                writer = Writer::new(&staging.join("w0"), writer.dice.0, true);
            }
        }
    }
    (writer, refused)
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn a_disk_that_refuses_is_told_and_nothing_that_was_answered_is_lost() {
    if !inside("disk::a_disk_that_refuses_is_told_and_nothing_that_was_answered_is_lost") {
        return;
    }
    let dir = scratch();
    let seed = seed();
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    a_repo(&place, &one);
    let (mut mnt, _) = mount(&one);
    let steps = rounds(8) * 10;
    for inject in [
        "fdatasync:error=EIO:when=2+3",
        "fsync:error=EIO:when=1+2",
        "pwrite64:error=EIO:when=3+5",
        "pwrite64:error=ENOSPC:when=2+4",
        "ftruncate:error=EIO:when=1+2",
        "unlink:error=EIO:when=1+2",
    ] {
        let staging = mnt.join("staging");
        let what = format!("{inject}, seed {seed}");
        let writer = Writer::new(&staging.join("w0"), seed, true);
        let failing = Failing::new(one.daemons(&mnt)[0], inject);
        let (writer, refused) = work_through(writer, &staging, steps, &what);
        drop(failing);
        // The disk is well again: so is everything else, without a new mount.
        let synced = || File::open(&staging).unwrap().sync_all().is_ok();
        until(Duration::from_secs(5), &format!("{what}: syncing"), synced);
        let (mut writer, after) = work_through(writer, &staging, 20, &what);
        assert_eq!(after, 0, "{what}: nothing is refused any more");
        writer.all_is_safe();
        kill(&one, &mnt);
        mnt = mount(&one).0;
        judge(std::slice::from_ref(&writer), &what);
        another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
        eprintln!("{what}: {refused} of {steps} refused");
    }
    one.umount(&mnt);
}

// ---- a disk that refuses once --------------------------------------------------------------------------------------------

/// The logs of the database of the only staging tree of a host.
fn database_logs(host_dir: &Path) -> Vec<PathBuf> {
    let found = run(Command::new("find").arg(tree_dir(host_dir).join("db")).args(["-name", "*.log"]));
    found.lines().map(PathBuf::from).collect()
}

/// One refusal of the database's log, while a writer works who hears nothing of it but perhaps one error. Everything is
/// there at once, and after the end of the daemon that `end` brings about.
fn refused_once(inject: &str, host_dir: &Path, one: &Host, mnt: &Path, end: impl FnOnce()) {
    let staging = mnt.join("staging");
    let seed = seed();
    let what = format!("{inject}, seed {seed}");
    let mut writer = Writer::new(&staging.join("w0"), seed, true);
    for _ in 0..20 {
        writer.step().unwrap();
    }
    writer.all_is_safe();
    let failing = Failing::on(one.daemons(mnt)[0], inject, &database_logs(host_dir));
    let (writer, refused) = work_through(writer, &staging, 30, &what);
    File::open(&staging).unwrap().sync_all().unwrap();
    drop(failing);
    assert!(refused <= 1, "{what}: told {refused} times");
    let (mut writer, after) = work_through(writer, &staging, 10, &what);
    assert_eq!(after, 0, "{what}: nothing is refused any more");
    File::open(&staging).unwrap().sync_all().unwrap();
    let log = one.log();
    let is_mended = log.contains("is open again, with all it had");
    assert!(is_mended, "{what}: the refusal did not reach the database: {log}");
    writer.all_is_safe();
    judge(std::slice::from_ref(&writer), &format!("{what}: at once"));
    end();
    let (_, recovered) = mount(one);
    judge(std::slice::from_ref(&writer), &format!("{what}: afterwards ({recovered})"));
}

/// A sync of the log, and a record of it.
const ONCE: [&str; 2] = ["fdatasync:error=EIO:when=1", "write:error=EIO:when=3"];

#[test]
fn a_database_whose_log_was_refused_goes_on_by_itself_and_a_kill_loses_nothing() {
    if !inside("disk::a_database_whose_log_was_refused_goes_on_by_itself_and_a_kill_loses_nothing") {
        return;
    }
    for inject in ONCE {
        let dir = scratch();
        let place = Place::directory(&dir.path().join("store"));
        let host_dir = dir.path().join("one");
        let one = place.host(&host_dir, "create");
        a_repo(&place, &one);
        let (mnt, _) = mount(&one);
        refused_once(inject, &host_dir, &one, &mnt, || kill(&one, &mnt));
        another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
        one.umount(&mnt);
    }
}

#[test]
fn a_database_whose_log_was_refused_goes_on_by_itself_and_a_power_cut_loses_nothing_synced() {
    if !inside("disk::a_database_whose_log_was_refused_goes_on_by_itself_and_a_power_cut_loses_nothing_synced") {
        return;
    }
    let dir = scratch();
    let (place, one, disk) = host_on_a_disk(dir.path(), &["mkfs.xfs", "-q", "-f"]);
    let (mnt, _) = mount(&one);
    refused_once(ONCE[0], &dir.path().join("one"), &one, &mnt, || {
        disk.shut_down();
        kill(&one, &mnt);
        run(Command::new("umount").arg("-l").arg(&mnt));
        disk.come_back();
    });
    another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
    one.umount(&mnt);
}

// ---- a state directory that cannot be used -------------------------------------------------------------------------------

/// What the mount of a staging tree is refused with: one line.
fn refusal(host: &Host, dir: &Path) -> String {
    let mnt = dir.join("refused");
    let _ = fs::create_dir(&mnt);
    let mut mount = host.datamon(["mount", "prod/census/staging", mnt.to_str().unwrap(), "-o", "log=/dev/null"]);
    let output = within(SOON, &mut mount);
    assert!(!output.status.success(), "{}: was to be refused", text(&output));
    assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
    text(&output)
}

/// The directory of the only staging tree of a host.
fn tree_dir(host_dir: &Path) -> PathBuf {
    let found = run(Command::new("find").arg(host_dir.join("state")).args(["-name", "version", "-printf", "%h"]));
    PathBuf::from(found)
}

#[test]
fn a_state_directory_that_cannot_be_used_is_refused_in_one_line_and_left_alone() {
    if !inside("disk::a_state_directory_that_cannot_be_used_is_refused_in_one_line_and_left_alone") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host_dir = dir.path().join("one");
    let one = place.host(&host_dir, "create");
    a_repo(&place, &one);
    let (mnt, _) = mount(&one);
    let mut writer = Writer::new(&mnt.join("staging/w0"), 5, true);
    for _ in 0..60 {
        writer.step().unwrap();
        writer.all_is_safe();
    }
    let daemon = one.daemons(&mnt)[0].to_string();
    let said = refusal(&one, dir.path());
    assert!(said.contains("another mount has this staging tree") && said.contains(&daemon), "{said}");
    run(Command::new("kill").args(["-STOP", &daemon]));
    let said = refusal(&one, dir.path());
    assert!(said.contains(&format!("process {daemon} of {}, which is stopped", mnt.display())), "{said}");
    run(Command::new("kill").args(["-CONT", &daemon]));
    File::open(mnt.join("staging")).unwrap().sync_all().unwrap();
    kill(&one, &mnt);

    let state = tree_dir(&host_dir);
    let aside = dir.path().join("aside");
    for (part, said_of_it) in [("db", "`db`"), ("db/CURRENT", "db/CURRENT"), ("version", "`version`")] {
        fs::rename(state.join(part), &aside).unwrap();
        let said = refusal(&one, dir.path());
        let names = said.contains(said_of_it) && said.contains(state.to_str().unwrap());
        assert!(names && said.contains("put it back"), "{part}: {said}");
        fs::rename(&aside, state.join(part)).unwrap();
    }
    // Every file of the database, one after the other.
    for entry in fs::read_dir(state.join("db")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !(name.starts_with("MANIFEST") || name.ends_with(".log") || name.ends_with(".sst")) {
            continue;
        }
        fs::rename(&path, &aside).unwrap();
        let said = refusal(&one, dir.path());
        assert!(said.contains(state.to_str().unwrap()) && said.contains("(put back"), "{name}: {said}");
        fs::rename(&aside, &path).unwrap();
    }
    let version = fs::read(state.join("version")).unwrap();
    fs::write(state.join("version"), "datamon staging 99\n").unwrap();
    let said = refusal(&one, dir.path());
    assert!(said.contains("datamon staging 99") && said.contains("use that one"), "{said}");
    fs::write(state.join("version"), version).unwrap();

    let over = host_dir.join("state");
    run(Command::new("mount").args(["--bind"]).arg(&over).arg(&over));
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&over));
    let said = refusal(&one, dir.path());
    assert!(said.contains(over.to_str().unwrap()) && said.contains("Read-only file system"), "{said}");
    assert!(said.contains("-o state=DIR"), "{said}");
    run(Command::new("umount").arg(&over));

    let (mnt, recovered) = mount(&one);
    assert!(recovered.starts_with("recovered: "), "{recovered}");
    judge(std::slice::from_ref(&writer), "after all of that");
    another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
    one.umount(&mnt);
}

#[test]
fn a_missing_data_file_is_eio_for_its_file_named_in_status_and_refuses_the_commit() {
    if !inside("disk::a_missing_data_file_is_eio_for_its_file_named_in_status_and_refuses_the_commit") {
        return;
    }
    let dir = scratch();
    let place = Place::directory(&dir.path().join("store"));
    let host_dir = dir.path().join("one");
    let one = place.host(&host_dir, "create");
    a_repo(&place, &one);
    let (mnt, _) = mount(&one);
    let staging = mnt.join("staging");
    fs::create_dir(staging.join("dir")).unwrap();
    let large = Dice(7).bytes(300_000);
    for (name, bytes) in [("dir/large", &large[..]), ("small", &large[..5_000])] {
        fs::write(staging.join(name), bytes).unwrap();
        File::open(staging.join(name)).unwrap().sync_all().unwrap();
    }
    kill(&one, &mnt);
    let state = tree_dir(&host_dir);
    let data = run(Command::new("find").arg(state.join("data")).args(["-type", "f"]));
    let data = PathBuf::from(data.trim());
    let aside = dir.path().join("aside");
    fs::rename(&data, &aside).unwrap();

    let (mnt, recovered) = mount(&one);
    assert!(recovered.contains("1 lack bytes that were synced"), "{recovered}");
    let staging = mnt.join("staging");
    assert_eq!(fs::read(staging.join("dir/large")).unwrap_err().raw_os_error(), Some(EIO));
    let status = || fs::read_to_string(mnt.join(".datamon/status")).unwrap();
    let named = |said: &str| said.contains("dir/large") && said.contains(data.to_str().unwrap());
    assert!(named(&status()), "{}", status());
    let log = run(Command::new("cat").arg(host_dir.join("state/log/prod.log")));
    assert!(named(&log), "{log}");
    assert_eq!(fs::read(staging.join("small")).unwrap(), &large[..5_000]);
    let refused = within(SOON, &mut one.datamon(["commit", staging.to_str().unwrap()]));
    assert!(!refused.status.success() && named(&text(&refused)), "{}", text(&refused));
    fs::rename(&aside, &data).unwrap();
    assert_eq!(fs::read(staging.join("dir/large")).unwrap(), large);
    another_host_sees_the_same(&place, dir.path(), &staging);
    one.umount(&mnt);
}

#[test]
fn a_store_whose_disk_is_unmounted_refuses_the_commit_and_nothing_lands_below() {
    if !inside("disk::a_store_whose_disk_is_unmounted_refuses_the_commit_and_nothing_lands_below") {
        return;
    }
    let dir = scratch();
    let (disk, store) = (dir.path().join("disk"), dir.path().join("store"));
    fs::create_dir(&disk).unwrap();
    fs::create_dir(&store).unwrap();
    let appear = || run(Command::new("mount").arg("--bind").arg(&disk).arg(&store));
    let vanish = || run(Command::new("umount").arg("-l").arg(&store));
    appear();
    let place = Place::directory(&store);
    let one = place.host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "timeout=3s");
    let staging = mnt.join("census/staging");
    fs::create_dir(mnt.join("census")).unwrap();
    fs::write(staging.join("f"), "f").unwrap();
    sync(&staging);
    let version = one.mount("prod/census/labels/latest", "ro");
    assert_eq!(fs::read_to_string(version.join("f")).unwrap(), "f");

    fs::write(staging.join("g"), "g").unwrap();
    vanish();
    let refused = one.datamon(["commit", staging.to_str().unwrap()]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("mount it again"), "{}", text(&refused));
    // It would tell the store now what was read.
    one.umount(&version);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "nothing is made in the directory below");
    appear();
    sync(&staging);
    one.umount(&mnt);
    let two = place.host(&dir.path().join("two"), "add");
    let mnt = two.mount("prod", "ro");
    assert_eq!(fs::read_to_string(mnt.join("census/labels/latest/g")).unwrap(), "g");
    two.umount(&mnt);
    vanish();

    // Nobody lays a mount over the store that it shows: it would wait for itself.
    appear();
    let over = two.datamon(["mount", "prod", store.to_str().unwrap()]).output().unwrap();
    assert!(!over.status.success() && text(&over).contains("holds the context's store"), "{}", text(&over));
    vanish();

    // Not even its mount point is there when somebody mounts.
    assert_eq!(super::harness::names(&store), [""; 0], "nothing lies below");
    fs::remove_dir(&store).unwrap();
    for words in [["mount", "prod", mnt.to_str().unwrap()], ["context", "check", "prod"]] {
        let refused = two.datamon(words).output().unwrap();
        assert!(!refused.status.success() && text(&refused).contains("no such directory"), "{}", text(&refused));
        assert!(!store.exists(), "nothing is made in its place");
    }
}

#[test]
fn a_full_store_refuses_a_commit_at_once_and_everything_stays_staged() {
    if !inside("disk::a_full_store_refuses_a_commit_at_once_and_everything_stays_staged") {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&store));
    let place = Place::directory(&store);
    let host = place.host(&dir.path().join("one"), "create");
    let mnt = host.mount("prod", "timeout=20s");
    let staging = mnt.join("census/staging");
    fs::create_dir(mnt.join("census")).unwrap();
    let bytes = super::trees::noise(7, 20 << 20);
    fs::write(staging.join("large"), &bytes).unwrap();
    let start = std::time::Instant::now();
    let refused = host.datamon(["commit", staging.to_str().unwrap()]).output().unwrap();
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("no room in the store"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(15), "told after {:?}: {said}", start.elapsed());
    assert!(fs::read(staging.join("large")).unwrap() == bytes);
    run(Command::new("mount").args(["-o", "remount,size=200m"]).arg(&store));
    sync(&staging);
    assert!(fs::read(mnt.join("census/labels/latest/large")).unwrap() == bytes);
    host.umount(&mnt);
    run(Command::new("umount").arg(&store));
}
