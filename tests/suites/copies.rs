//! Copies from versions into staging (cp, copy_file_range(2)) through the kernel: no byte of them moves.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::harness::{Host, Place, data_packs, differences, host_with_repo, inside, run, scratch, sync};
use super::trees::noise;

const MIB: u64 = 1 << 20;
const LARGE_BYTES: usize = 40 << 20;

/// Bytes that the mount has fetched from the store.
fn received(mnt: &Path) -> u64 {
    // A text that is younger than a second is shown again.
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
    let value = stats.lines().find_map(|line| line.strip_prefix("datamon_store_bytes_total{direction=\"in\"} "));
    value.unwrap().parse().unwrap()
}

fn status(dir: &Path, key: &str) -> String {
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let status = fs::read_to_string(dir.join(".datamon/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}: ")));
    line.unwrap_or_else(|| panic!("no {key} in {status}")).to_owned()
}

/// Every shape of a file: in its row, small, of one chunk, of many, with a hole.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("tiny"), "a few bytes").unwrap();
    for number in 0..50 {
        fs::write(dir.join(format!("sub/small{number:02}")), noise(number, 3_000)).unwrap();
    }
    fs::write(dir.join("chunk"), noise(77, 700_000)).unwrap();
    fs::write(dir.join("large"), noise(78, LARGE_BYTES + 4_321)).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.write_all_at(&noise(79, 2 << 20), 5 * MIB).unwrap();
    sparse.set_len(20 * MIB + 7).unwrap();
}

/// A repo whose first version is labelled `v1`, and two versions further; answers the bundle of the first.
fn with_an_old_version(host: &Host, original: &Path) -> String {
    let mnt = host.mount("prod/census/staging", "");
    run(Command::new("cp").args(["-a", "--sparse=always"]).arg(format!("{}/.", original.display())).arg(&mnt));
    let old = run(&mut host.datamon(["commit", "-l", "v1", mnt.to_str().unwrap()])).trim().to_owned();
    for step in ["two", "three"] {
        for entry in ["sub", "tiny", "chunk", "large", "sparse"] {
            let _ = run(Command::new("rm").args(["-rf"]).arg(mnt.join(entry)));
        }
        fs::write(mnt.join("step"), step).unwrap();
        sync(&mnt);
    }
    host.umount(&mnt);
    old
}

#[test]
fn a_copy_from_a_version_moves_no_bytes() {
    if !inside("copies::a_copy_from_a_version_moves_no_bytes") {
        return;
    }
    let dir = scratch();
    let original = dir.path().join("original");
    fill(&original);
    let (place, one) = host_with_repo(dir.path());
    let store = dir.path().join("store");
    let old = with_an_old_version(&one, &original);
    let stored = || data_packs(&store).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum::<u64>();
    let before_copy = stored();

    let two = place.host(&dir.path().join("two"), "add");
    let mnt = two.mount("prod", "");
    let repo = mnt.join("census");
    let (v1, copied) = (repo.join("labels/v1"), repo.join("staging/copied"));
    assert_eq!(fs::read_to_string(repo.join("staging/step")).unwrap(), "three");
    let before = received(&mnt);
    run(Command::new("cp").arg("-a").arg(&v1).arg(&copied));
    let received = received(&mnt) - before;
    eprintln!("a copy of {} MiB took {received} bytes from the store", LARGE_BYTES >> 20);
    // What is mostly holes cp copies itself, data by data, so that they stay holes wherever it copies to.
    assert!(received < 2 * MIB + MIB / 2, "{received} bytes of the store for a copy of {LARGE_BYTES}");
    assert_eq!(status(&repo, "dirty_files"), "1", "nothing else of it lies here");
    assert_eq!(status(&repo, "staging"), "dirty");
    // Who reads it has the bytes, holes are holes, and the other host keeps what it is made of.
    assert_eq!(differences(&original, &copied), "");
    let seek = "import os,sys; print(os.lseek(os.open(sys.argv[1],os.O_RDONLY),0,os.SEEK_DATA))";
    let data = run(Command::new("python3").args(["-c", seek]).arg(copied.join("sparse")));
    assert_eq!(data.trim(), (5 * MIB).to_string(), "a hole is a hole");
    let mnt_one = one.mount("prod", "");
    fs::remove_dir(mnt_one.join("census/labels/v1")).unwrap();
    let removed = fs::remove_dir(mnt_one.join("census/bundles").join(&old));
    assert_eq!(removed.unwrap_err().raw_os_error(), Some(libc::EBUSY), "it is the base of what is staged there");

    // Also when the changes were put aside and brought back; on this host at once, elsewhere when the store knows again.
    for command in ["discard", "undiscard"] {
        fs::write(repo.join(".datamon/ctl"), command).unwrap();
    }
    let removed = fs::remove_dir(repo.join("bundles").join(&old));
    assert_eq!(removed.unwrap_err().raw_os_error(), Some(libc::EBUSY), "put aside and brought back");
    let wal = || fs::read_to_string(mnt_one.join("census/.datamon/wal")).unwrap();
    super::harness::until(std::time::Duration::from_secs(20), "the intent", || !wal().is_empty());
    let removed = fs::remove_dir(mnt_one.join("census/bundles").join(&old));
    assert_eq!(removed.unwrap_err().raw_os_error(), Some(libc::EBUSY), "the store knows again");

    // One byte of it changed here is one chunk; a killed daemon forgets nothing.
    let large = fs::File::options().write(true).open(copied.join("large")).unwrap();
    large.write_all_at(b"X", 17 * MIB).unwrap();
    drop(large);
    assert_eq!(status(&repo, "dirty_files"), "2");
    for pid in two.daemons(&mnt) {
        run(Command::new("kill").args(["-9", &pid.to_string()]));
    }
    let mnt = two.mount("prod", "");
    let repo = mnt.join("census");
    sync(&repo.join("staging"));
    let grown = stored() - before_copy;
    assert!((MIB..3 * MIB + MIB / 2).contains(&grown), "{grown}: the chunk that was changed, and 2 MiB that cp copied");
    let changed = fs::File::options().write(true).open(original.join("large")).unwrap();
    changed.write_all_at(b"X", 17 * MIB).unwrap();
    run(Command::new("diff").arg("-r").arg(&original).arg(repo.join("labels/latest/copied")));

    // The new version has all that it needs: the old one may go.
    fs::remove_dir(mnt_one.join("census/bundles").join(&old)).unwrap();
    one.umount(&mnt_one);
    let three = place.host(&dir.path().join("three"), "add");
    let again = three.mount("prod/census/labels/latest", "ro");
    run(Command::new("diff").arg("-r").arg(&original).arg(again.join("copied")));
    three.umount(&again);
    two.umount(&mnt);
}

/// Copies by copy_file_range(2) alone, at these offsets.
fn copy_range(from: &Path, to: &Path, (start, at, len): (u64, u64, usize)) -> usize {
    let script = "import os,sys\n\
        a=os.open(sys.argv[1],os.O_RDONLY); b=os.open(sys.argv[2],os.O_WRONLY|os.O_CREAT,0o644)\n\
        print(os.copy_file_range(a,b,int(sys.argv[5]),int(sys.argv[3]),int(sys.argv[4])))";
    let numbers = [start.to_string(), at.to_string(), len.to_string()];
    run(Command::new("python3").args(["-c", script]).args([from, to]).args(numbers)).trim().parse().unwrap()
}

#[test]
fn what_cannot_be_named_is_copied() {
    if !inside("copies::what_cannot_be_named_is_copied") {
        return;
    }
    let dir = scratch();
    let original = dir.path().join("original");
    fill(&original);
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create");
    let mnt = host.mount("prod", "");
    for repo in ["census", "survey"] {
        fs::create_dir(mnt.join(repo)).unwrap();
    }
    run(Command::new("cp").arg("-a").arg(format!("{}/.", original.display())).arg(mnt.join("census/staging")));
    sync(&mnt.join("census/staging"));
    let (latest, staging) = (mnt.join("census/labels/latest"), mnt.join("census/staging"));
    let large = fs::read(original.join("large")).unwrap();
    // Not at the same place, not from the beginning of a chunk, over bytes that are here, into another repo.
    let here = staging.join("here");
    fs::write(&here, noise(5, 3 << 20)).unwrap();
    for (to, range) in [
        (staging.join("moved"), (MIB, 0, 1 << 20)),
        (staging.join("odd"), (100, 100, 1 << 20)),
        (here, (MIB, MIB, 1 << 20)),
        (mnt.join("survey/staging/elsewhere"), (0, 0, 1 << 20)),
    ] {
        let mut expected = fs::read(&to).unwrap_or_default();
        let count = copy_range(&latest.join("large"), &to, range);
        assert!(count > 0, "{}", to.display());
        let (start, at) = (range.0 as usize, range.1 as usize);
        expected.resize(expected.len().max(at + count), 0);
        expected[at..at + count].copy_from_slice(&large[start..start + count]);
        assert!(fs::read(&to).unwrap() == expected, "{}", to.display());
    }
    // A staged file of which all is in the store is a source, too, and one that lies here is copied.
    run(Command::new("cp").arg(staging.join("large")).arg(staging.join("twice")));
    run(Command::new("cp").arg(staging.join("moved")).arg(staging.join("moved twice")));
    assert!(fs::read(staging.join("twice")).unwrap() == large);
    assert!(fs::read(staging.join("moved twice")).unwrap() == large[MIB as usize..2 * MIB as usize]);
    assert_eq!(status(&mnt.join("census"), "dirty_files"), "4", "moved, odd, here, and moved twice");
    // A stranger's copy takes set-user-id away, as a write does.
    let tool = staging.join("tool");
    fs::write(&tool, "").unwrap();
    run(Command::new("chmod").arg("6777").arg(&tool));
    run(Command::new("chmod").args(["0755"]).args([dir.path(), &dir.path().join("one")]));
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid", "12345", "--regid", "12345", "--clear-groups", "cp", "--no-preserve=all"]);
    run(stranger.arg(latest.join("chunk")).arg(&tool));
    assert_eq!(fs::metadata(&tool).unwrap().mode() & 0o7777, 0o777);
    assert!(fs::read(&tool).unwrap() == fs::read(original.join("chunk")).unwrap());
    host.umount(&mnt);
}
