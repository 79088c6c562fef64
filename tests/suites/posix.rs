//! A staging tree as programs meet it: the suites that file systems are measured by, real programs, and what a local file
//! system does at the edges. The short form; `make fstests` runs the long one (tests/fstests/README.md).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::{Host, Place, inside, run, scratch, target_dir, text};

/// What the suites ask of a mount: other users, device nodes, set-user-id programs.
const FOR_SUITES: &str = "rw,allow_other,dev,suid";
/// Cases of pjdfstest 0.2.2 that run here; what the rest lacks is in tests/fstests/README.md.
const PJDFSTEST_PASSED_MIN: usize = 384;

fn fstests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fstests").join(name)
}

/// A program of tests/tools.sh.
fn tool(name: &str) -> PathBuf {
    let tools = target_dir().join("test-tools");
    let versions = fs::read_dir(&tools).into_iter().flatten().flatten();
    let found = versions.map(|entry| entry.path().join("bin").join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name}: not below {} (run tests/tools.sh, as `make test` does)", tools.display()))
}

/// A host whose repo `census` other users can reach the mounts of.
fn host(dir: &Path) -> (Host, PathBuf) {
    for passed in dir.ancestors().take(2) {
        // The scratch directory and the harness's around it.
        fs::set_permissions(passed, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let place = Place::directory(&dir.join("store"));
    let host = place.host(&dir.join("one"), "create");
    let context = host.mount("prod", FOR_SUITES);
    fs::create_dir(context.join("census")).unwrap();
    (host, context)
}

/// The same, with the staging tree as the mount itself.
fn staging_mount(dir: &Path) -> (Host, PathBuf) {
    let (host, context) = host(dir);
    host.umount(&context);
    let staging = host.mount("prod/census/staging", FOR_SUITES);
    (host, staging)
}

fn program(name: &str) -> Command {
    let path = fstests("programs").join(name);
    if name.ends_with(".py") {
        let mut command = Command::new("python3");
        command.arg("-B").arg(path);
        return command;
    }
    Command::new(path)
}

fn new_dir(dir: PathBuf) -> PathBuf {
    fs::create_dir(&dir).unwrap();
    dir
}

/// Runs the suite in the directory `below`, which is empty again afterwards.
fn pjdfstest(below: &Path) {
    // By a short path, in this namespace alone: a socket's has at most 108 bytes.
    run(Command::new("mount").args(["-t", "tmpfs", "none", "/mnt"]));
    let (short, other) = (new_dir("/mnt/below".into()), new_dir("/mnt/other".into()));
    run(Command::new("mount").arg("--bind").arg(below).arg(&short));
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&other));
    let mut command = Command::new(tool("pjdfstest"));
    command.arg("-c").arg(fstests("pjdfstest.toml")).arg("-p").arg(&short).arg("-s").arg(&other);
    let output = command.output().unwrap();
    run(Command::new("umount").args(["-R", "/mnt"]));
    let said = text(&output);
    // Summary: 0 failed, 14 skipped, 384 passed, 0 expected failures, 398 total
    let summary = said.lines().find_map(|line| line.strip_prefix("Summary: "));
    let count = |what: &str| -> usize {
        let mut parts = summary.unwrap_or_else(|| panic!("no summary: {said}")).split(", ");
        let number = parts.find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
        number.unwrap_or_else(|| panic!("no number of{what}: {said}"))
    };
    assert_eq!(count(" failed"), 0, "{said}");
    assert!(count(" passed") >= PJDFSTEST_PASSED_MIN, "{said}");
}

#[test]
fn pjdfstest_passes_in_a_staging_mount_and_below_a_context() {
    if !inside("posix::pjdfstest_passes_in_a_staging_mount_and_below_a_context") {
        return;
    }
    let dir = scratch();
    let (host, context) = host(dir.path());
    pjdfstest(&new_dir(context.join("census/staging/sub")));
    host.umount(&context);
    let staging = host.mount("prod/census/staging", FOR_SUITES);
    pjdfstest(&new_dir(staging.join("pjdfstest")));
    host.umount(&staging);
}

#[test]
fn pjdfstest_passes_in_a_staging_mount_with_acls() {
    if !inside("posix::pjdfstest_passes_in_a_staging_mount_with_acls") {
        return;
    }
    let dir = scratch();
    let (host, context) = host(dir.path());
    host.umount(&context);
    let staging = host.mount("prod/census/staging", &format!("{FOR_SUITES},acl"));
    pjdfstest(&new_dir(staging.join("pjdfstest")));
    host.umount(&staging);
}

#[test]
fn fsx_finds_no_wrong_byte_in_a_staging_tree() {
    if !inside("posix::fsx_finds_no_wrong_byte_in_a_staging_tree") {
        return;
    }
    let dir = scratch();
    let (host, staging) = staging_mount(dir.path());
    let seeds = ["7", "2026"].map(|seed| {
        let mut command = Command::new(tool("fsx"));
        command.args(["-S", seed, "-N", "20000", "-f"]).arg(fstests("fsx.toml")).arg("-P").arg(dir.path());
        command.arg(staging.join(format!("fsx-{seed}"))).stdout(Stdio::piped()).stderr(Stdio::piped());
        (seed, command.spawn().unwrap())
    });
    for (seed, child) in seeds {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "seed {seed}: {}", text(&output));
    }
    host.umount(&staging);
}

#[test]
fn sqlite_writers_lose_nothing_and_publish_nothing() {
    if !inside("posix::sqlite_writers_lose_nothing_and_publish_nothing") {
        return;
    }
    let dir = scratch();
    let (host, context) = host(dir.path());
    let staging = context.join("census/staging");
    let below = new_dir(staging.join("below"));
    for place in [&staging, &below] {
        run(program("sqlite.py").arg(place).arg("25"));
    }
    let bundles = fs::read_dir(context.join("census/bundles")).unwrap().count();
    assert_eq!(bundles, 0, "no fsync of a database is a commit");
    host.umount(&context);
}

#[test]
fn git_and_copies_find_what_they_wrote() {
    if !inside("posix::git_and_copies_find_what_they_wrote") {
        return;
    }
    let dir = scratch();
    let (host, staging) = staging_mount(dir.path());
    run(program("git.sh").arg(new_dir(staging.join("git"))).arg("40"));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    run(program("copies.sh").arg(new_dir(staging.join("copies"))).arg(&tree));
    host.umount(&staging);
}

#[test]
fn locks_hold_between_processes_and_mappings_are_seen() {
    if !inside("posix::locks_hold_between_processes_and_mappings_are_seen") {
        return;
    }
    let dir = scratch();
    let (host, staging) = staging_mount(dir.path());
    run(program("locks.py").arg(&staging).arg("100"));
    run(program("mapped.py").arg(&staging).arg("5"));
    host.umount(&staging);
}

#[test]
fn a_staging_tree_is_a_local_file_system_at_the_edges() {
    if !inside("posix::a_staging_tree_is_a_local_file_system_at_the_edges") {
        return;
    }
    let dir = scratch();
    let (host, staging) = staging_mount(dir.path());
    let output = program("edges.py").arg(new_dir(staging.join("edges"))).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    host.umount(&staging);
}

/// A directory of the environment that tests/tools.sh made.
fn packages() -> PathBuf {
    let lib = target_dir().join("test-tools/venv/lib");
    let mut versions =
        fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path().join("site-packages"));
    versions.find(|path| path.exists()).unwrap_or_else(|| panic!("{}: empty (run tests/tools.sh)", lib.display()))
}

#[test]
fn postgres_recovers_after_a_stop_without_a_checkpoint_and_after_kill_9() {
    if !inside("posix::postgres_recovers_after_a_stop_without_a_checkpoint_and_after_kill_9") {
        return;
    }
    let dir = scratch();
    let (host, staging) = staging_mount(dir.path());
    let install = packages().join("pgserver/pginstall");
    run(program("postgres.sh").arg(new_dir(staging.join("postgres"))).arg(install).arg("2"));
    host.umount(&staging);
}

#[test]
fn cargo_builds_without_a_network_and_parquet_and_duckdb_find_their_sums() {
    if !inside("posix::cargo_builds_without_a_network_and_parquet_and_duckdb_find_their_sums") {
        return;
    }
    let dir = scratch();
    let (host, staging) = staging_mount(dir.path());
    run(program("build.sh").arg(new_dir(staging.join("build"))));
    let python = target_dir().join("test-tools/venv/bin/python3");
    run(Command::new(python).arg(fstests("programs/tables.py")).arg(new_dir(staging.join("tables"))).arg("100000"));
    host.umount(&staging);
}

/// Where data lies in a file, as lseek(2) says, and its blocks of 512 bytes.
fn regions(path: &Path) -> String {
    const SCRIPT: &str = "
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
size, at, found = os.fstat(file).st_size, 0, []
while at < size:
    try:
        start = os.lseek(file, at, os.SEEK_DATA)
    except OSError:
        break
    at = os.lseek(file, start, os.SEEK_HOLE)
    found.append(f'{start >> 20}-{at >> 20}')
print(*found, os.fstat(file).st_blocks)";
    run(Command::new("python3").args(["-c", SCRIPT]).arg(path)).trim().to_owned()
}

#[test]
fn holes_of_a_version_are_found_by_chunk_and_df_shows_its_own_bytes() {
    if !inside("posix::holes_of_a_version_are_found_by_chunk_and_df_shows_its_own_bytes") {
        return;
    }
    let dir = scratch();
    let (host, context) = host(dir.path());
    let staging = context.join("census/staging");
    let write = |at: &str| {
        let to = format!("of={}", staging.join("sparse").display());
        run(Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=1", "conv=notrunc", "status=none", at, &to]));
    };
    write("seek=3");
    write("seek=7");
    run(Command::new("truncate").args(["-s", "10M"]).arg(staging.join("sparse")));
    run(Command::new("truncate").args(["-s", "1M"]).arg(staging.join("hole")));
    let found = regions(&staging.join("sparse"));
    assert!(found.starts_with("3-4 7-8 ") && !found.ends_with(" 20480"), "{found}");
    run(Command::new("sync").arg(&staging));
    let version = context.join("census/labels/latest");
    let found = regions(&version.join("sparse"));
    assert!(found.starts_with("3-4 7-8 ") && !found.ends_with(" 20480"), "{found}");
    assert_eq!(regions(&version.join("hole")), "0");
    // Programs that compare blocks with the length look for holes, and copy them as such.
    for from in [&version, &staging] {
        let from = from.join("sparse");
        let blocks = fs::metadata(&from).unwrap().blocks();
        assert!((1..20480).contains(&blocks), "{}: {blocks}", from.display());
        let (copy, archive) = (dir.path().join("copy"), dir.path().join("archive"));
        run(Command::new("cp").arg("-a").arg(&from).arg(&copy));
        let copied = fs::metadata(&copy).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), fs::read(&from).unwrap());
        assert!(copied.blocks() * 512 < 3 << 20, "{}: {} blocks", from.display(), copied.blocks());
        run(Command::new("tar").arg("-cSf").arg(&archive).arg("-C").arg(from.parent().unwrap()).arg("sparse"));
        assert!(fs::metadata(&archive).unwrap().len() < 3 << 20);
        fs::remove_file(&copy).unwrap();
    }
    // So it is with one whose row does not name its blocks; what has no holes counts whole, and is copied without moving bytes.
    let (huge, copy) = (staging.join("huge"), dir.path().join("copy"));
    let line = "head -c 1M /dev/urandom > \"$0\" && truncate -s 40G \"$0\" && head -c 3000000 /dev/urandom > \"$1\"";
    run(Command::new("sh").args(["-c", line]).arg(&huge).arg(staging.join("dense")));
    run(Command::new("sync").arg(&staging));
    assert_eq!(fs::metadata(version.join("dense")).unwrap().blocks(), 3_000_000u64.div_ceil(512));
    let listed = run(Command::new("ls").args(["-ls", "--block-size=1"]).arg(&version));
    let blocks = listed.lines().find(|line| line.ends_with("huge")).unwrap().split_whitespace().next().unwrap();
    assert!(blocks.parse::<u64>().unwrap() < 1 << 30, "as a listing says: {listed}");
    run(Command::new("cp").arg("-a").arg(version.join("huge")).arg(&copy));
    let copied = fs::metadata(&copy).unwrap();
    assert!(copied.len() == 40 << 30 && copied.blocks() * 512 < 3 << 20, "{} blocks", copied.blocks());
    // In staging, too, unchanged or cut.
    run(Command::new("cp").arg("-a").arg(&huge).arg(&copy));
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < 3 << 20);
    run(Command::new("truncate").args(["-s", "3G"]).arg(&huge));
    run(Command::new("cp").arg("-a").arg(&huge).arg(&copy));
    let copied = fs::metadata(&copy).unwrap();
    assert!(copied.len() == 3 << 30 && copied.blocks() * 512 < 3 << 20, "{} blocks", copied.blocks());
    run(Command::new("sh").args(["-c", "rm \"$0\" \"$1\""]).arg(&huge).arg(staging.join("dense")));
    run(Command::new("sync").arg(&staging));
    // The next change is local, the rest is the base's.
    write("seek=5");
    let found = regions(&staging.join("sparse"));
    assert!(found.starts_with("3-4 5-6 7-8 "), "{found}");
    let pinned = host.mount("prod/census/labels/latest", "ro");
    let df = run(Command::new("df").args(["-B1", "--output=size,avail,itotal"]).arg(&pinned));
    let numbers: Vec<_> = df.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(numbers, [(11 << 20).to_string().as_str(), "0", "3"], "{df}");
    host.umount(&pinned);
    host.umount(&context);
}
