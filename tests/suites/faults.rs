//! What happens when something goes wrong underneath: a killed daemon, a store that hangs or holds wrong bytes, a full
//! disk.
//!
//! Each test goes through the kernel. What each asks is the same: is every byte that was promised there, and right?

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::harness::{Host, Place, SOON, differences, inside, names, run, scratch, sync, text, until, within};
use super::trees::noise;

const MIB: usize = 1 << 20;
const ENOSPC: i32 = 28;

/// A child that does not outlive its test.
struct Leash(Child);

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Leash {
    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Whether it succeeded, when it ends.
    fn succeeded(&mut self, limit: Duration, what: &str) -> bool {
        until(limit, what, || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().success()
    }
}

fn sync_in_background(dir: &Path) -> Leash {
    let child = Command::new("sync").arg(dir).stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    Leash(child.unwrap())
}

fn copy(tree: &Path, staging: &Path) {
    run(Command::new("cp").arg("-a").arg(format!("{}/.", tree.display())).arg(staging));
}

fn make_repo(mnt: &Path) -> PathBuf {
    fs::create_dir(mnt.join("census")).unwrap();
    mnt.join("census/staging")
}

fn status(dir: &Path) -> String {
    fs::read_to_string(dir.join(".datamon/status")).unwrap()
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let found = run(Command::new("find").arg(dir).args(["-type", "f"]));
    let mut files: Vec<_> = found.lines().map(PathBuf::from).collect();
    files.sort();
    files
}

/// 40 directories of 60 files: nine of ten small, and a large one in each directory.
fn many_files(root: &Path) {
    for d in 0..40u64 {
        let dir = root.join(format!("directory-{d:02}"));
        fs::create_dir_all(&dir).unwrap();
        for f in 0..60u64 {
            let len = if f == 30 { 2 * MIB + d as usize } else { 100 + (f as usize * 397) % 20_000 };
            fs::write(dir.join(format!("file-{f:02}")), noise(d * 100 + f + 1, len)).unwrap();
        }
    }
}

// ---- a killed daemon -------------------------------------------------------------------------------------------------

/// The files that `cp -v` had finished when it said `said`: all but the last that it names.
fn finished(said: &str, tree: &Path) -> Vec<PathBuf> {
    let whole = &said[..said.rfind('\n').map_or(0, |end| end + 1)];
    let named = whole.lines().filter_map(|line| Some(PathBuf::from(line.split('\'').nth(1)?)));
    let mut named: Vec<_> = named.map(|path| path.strip_prefix(tree).unwrap().to_owned()).collect();
    named.pop();
    named.retain(|path| tree.join(path).is_file());
    named
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_copy_has_every_file_that_was_finished() {
    if !inside("faults::a_daemon_killed_in_the_middle_of_a_copy_has_every_file_that_was_finished") {
        return;
    }
    let dir = scratch();
    let tree = dir.path().join("tree");
    many_files(&tree);
    let one = Place::directory(&dir.path().join("store")).host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = make_repo(&mnt);
    let log = dir.path().join("cp.log");
    let copying = Command::new("stdbuf")
        .args(["-oL", "cp", "-a", "-v"])
        .arg(format!("{}/.", tree.display()))
        .arg(&staging)
        .stdin(Stdio::null())
        .stdout(File::create(&log).unwrap())
        .stderr(Stdio::null())
        .spawn();
    let mut copying = Leash(copying.unwrap());
    let said = || fs::read_to_string(&log).unwrap();
    until(SOON, "half a copy", || said().lines().count() > 1_000);
    let daemon = one.daemons(&mnt)[0].to_string();
    let said = said();
    run(Command::new("kill").args(["-9", &daemon]));
    assert!(!copying.succeeded(SOON, "cp"), "the daemon was killed while cp ran");
    until(SOON, "the daemon's end", || one.daemons(&mnt).is_empty());

    let again = one.mount("prod", "rw");
    let staging = again.join("census/staging");
    let finished = finished(&said, &tree);
    assert!(finished.len() > 900, "{}", finished.len());
    for path in &finished {
        let (original, copy) = (tree.join(path), staging.join(path));
        assert!(fs::read(&copy).unwrap() == fs::read(&original).unwrap(), "{}: other bytes", path.display());
        let stat = |path: &Path| fs::metadata(path).map(|m| (m.mode(), m.mtime(), m.mtime_nsec(), m.uid())).unwrap();
        assert_eq!(stat(&copy), stat(&original), "{}", path.display());
    }
    sync(&staging);
    assert_eq!(names(&again.join("census/bundles")).len(), 1, "the half tree is a version");
    copy_and_compare(&again, &tree);
    one.umount(&again);
}

/// Copies the tree in (over whatever is there), commits, and compares both.
fn copy_and_compare(mnt: &Path, tree: &Path) {
    let staging = mnt.join("census/staging");
    copy(tree, &staging);
    assert_eq!(differences(tree, &staging), "");
    sync(&staging);
    assert_eq!(differences(tree, &mnt.join("census/labels/latest")), "");
}

// ---- a store that hangs ----------------------------------------------------------------------------------------------

/// How many writes the mount has asked of its store.
fn writes(mnt: &Path) -> u64 {
    let status = status(mnt);
    let line = status.lines().find_map(|line| line.strip_prefix("requests: ")).unwrap_or_else(|| panic!("{status}"));
    let part = line.split(", ").find_map(|part| part.strip_suffix(" write"));
    part.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn a_server_that_hangs_during_a_commit_and_goes_on_costs_time_only() {
    if !inside("faults::a_server_that_hangs_during_a_commit_and_goes_on_costs_time_only") {
        return;
    }
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..12 {
        fs::write(tree.join(format!("large-{n}")), noise(n + 1, 16 * MIB)).unwrap();
    }
    let (place, one, staging) = s3_staging(dir.path(), "rw");
    copy(&tree, &staging);
    let before = writes(&staging);
    let mut syncing = sync_in_background(&staging);
    // The intent is the first write: from then on it is data.
    until(SOON, "the commit's first writes", || writes(&staging) >= before + 2);
    place.signal_server("STOP");
    std::thread::sleep(Duration::from_secs(5));
    assert!(syncing.is_running(), "the commit waits for its store");
    assert_eq!(differences(&tree, &staging), "", "what is staged can be read meanwhile");
    place.signal_server("CONT");
    assert!(syncing.succeeded(SOON, "the commit"), "it ends well: {}", status(&staging));
    one.umount(&staging);
    assert_latest_is(&place, dir.path(), &tree);
}

/// A staging tree over a real S3 server, mounted by itself: a walk to it asks the store nothing.
fn s3_staging(dir: &Path, options: &str) -> (Place, Host, PathBuf) {
    let place = Place::s3(&dir.join("server"));
    let one = place.host(&dir.join("one"), "create");
    let context = one.mount("prod", "rw");
    make_repo(&context);
    one.umount(&context);
    let staging = one.mount("prod/census/staging", options);
    (place, one, staging)
}

/// What another host finds as the only version.
fn assert_latest_is(place: &Place, dir: &Path, tree: &Path) {
    let two = place.host(&dir.join("two"), "add");
    let mnt = two.mount("prod", "ro");
    assert_eq!(names(&mnt.join("census/bundles")).len(), 1);
    assert_eq!(differences(tree, &mnt.join("census/labels/latest")), "", "another host sees every byte");
    two.umount(&mnt);
}

#[test]
fn a_server_that_stays_away_fails_the_commit_and_everything_stays_staged() {
    if !inside("faults::a_server_that_stays_away_fails_the_commit_and_everything_stays_staged") {
        return;
    }
    let dir = scratch();
    let tree = dir.path().join("tree");
    many_files(&tree);
    let (place, one, staging) = s3_staging(dir.path(), "timeout=3s");
    copy(&tree, &staging);
    place.signal_server("STOP");
    let start = Instant::now();
    let failed = within(Duration::from_secs(30), Command::new("sync").arg(&staging));
    assert!(!failed.status.success(), "nothing was stored, so nothing was committed");
    assert!(start.elapsed() < Duration::from_secs(10), "timeout=3s, and sync took {:?}", start.elapsed());
    assert!(text(&failed).contains("Connection timed out"), "{}", text(&failed));
    assert_eq!(text(&failed).lines().count(), 1, "{}", text(&failed));
    let said = status(&staging);
    let told = said.lines().find(|line| line.starts_with("last_error: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(told.contains("the store does not answer"), "{told}");
    assert!(said.contains("staging: dirty"), "{said}");
    assert_eq!(differences(&tree, &staging), "", "everything stays staged");
    fs::write(staging.join("later"), "written while the store was away").unwrap();
    fs::write(tree.join("later"), "written while the store was away").unwrap();
    fs::set_permissions(staging.join("later"), fs::metadata(tree.join("later")).unwrap().permissions()).unwrap();
    run(Command::new("touch").arg("-r").arg(tree.join("later")).arg(staging.join("later")));
    run(Command::new("touch").arg("-r").arg(&tree).arg(&staging));
    place.signal_server("CONT");
    sync(&staging);
    one.umount(&staging);
    assert_latest_is(&place, dir.path(), &tree);
}

// ---- a full disk -----------------------------------------------------------------------------------------------------

/// An ext4 of its own, whose last block can be filled.
fn small_disk(dir: &Path, mib: u64) -> PathBuf {
    let (image, disk) = (dir.join("disk.img"), dir.join("disk"));
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
    fs::create_dir(&disk).unwrap();
    // Of mount(8)'s making, so that the loop device goes with the mount.
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk));
    disk
}

fn free_bytes(dir: &Path) -> u64 {
    let said = run(Command::new("df").args(["--output=avail", "-B1"]).arg(dir));
    said.lines().nth(1).unwrap().trim().parse().unwrap()
}

/// Lets a file beside us take all but `left` bytes of the disk.
fn fill(disk: &Path, name: &str, left: u64) {
    let bytes = free_bytes(disk).saturating_sub(left);
    let file = disk.join(name);
    if bytes < 256 << 10 {
        return;
    }
    // The file system's own books want some of what it calls free.
    for less in (0..64).map(|step| step * (256 << 10)) {
        let wanted = bytes.saturating_sub(less).to_string();
        if Command::new("fallocate").args(["-l", &wanted]).arg(&file).output().unwrap().status.success() {
            return;
        }
    }
    panic!("{}: cannot be filled", disk.display());
}

#[test]
fn a_full_disk_refuses_new_bytes_and_loses_none() {
    if !inside("faults::a_full_disk_refuses_new_bytes_and_loses_none") {
        return;
    }
    let dir = scratch();
    let disk = small_disk(dir.path(), 512);
    let tree = dir.path().join("tree");
    many_files(&tree);
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&disk.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = make_repo(&mnt);
    copy(&tree, &staging);
    assert!(free_bytes(&disk) > 300 << 20, "the tree is small beside the disk");

    // What another fills leaves less than datamon keeps free for its own books: removing has to work.
    fill(&disk, "filler", 30 << 20);
    let refused = (0..16).find_map(|n| fs::write(staging.join(format!("new-{n}")), noise(n, MIB)).err());
    let refused = refused.expect("16 MiB of the last 30 are refused");
    assert_eq!(refused.raw_os_error(), Some(ENOSPC), "{refused}");
    let refused = fs::write(staging.join("directory-00/file-30"), noise(8, MIB));
    // Opened with O_TRUNC: the cut is the writer's own doing and stands.
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(ENOSPC));
    for new in names(&staging).iter().filter(|name| name.starts_with("new-")) {
        fs::remove_file(staging.join(new)).unwrap();
    }
    for gone in ["directory-00/file-30", "directory-07/file-07"] {
        fs::remove_file(staging.join(gone)).unwrap();
        fs::remove_file(tree.join(gone)).unwrap();
    }
    for touched in ["", "directory-00", "directory-07"] {
        run(Command::new("touch").arg("-r").arg(tree.join(touched)).arg(staging.join(touched)));
    }
    assert_eq!(differences(&tree, &staging), "", "everything else is there, and right");

    // Not a byte left: nothing is promised but that nothing is lost.
    fill(&disk, "filler-2", 0);
    let attempt = within(SOON, Command::new("sync").arg(&staging));
    assert_eq!(differences(&tree, &staging), "", "a commit on a full disk ({}) loses nothing", text(&attempt));
    // One that succeeded has let go of what it stored.
    fill(&disk, "filler-3", 0);
    let written = fs::write(staging.join("new"), noise(7, MIB));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(ENOSPC));
    assert_eq!(differences_but(&tree, &staging, "new"), "");

    for filler in ["filler", "filler-2", "filler-3"] {
        let _ = fs::remove_file(disk.join(filler));
    }
    // rocksdb takes some seconds to believe it.
    let back = || fs::write(staging.join("new"), noise(7, MIB)).is_ok();
    until(SOON, "writing goes on when there is space", back);
    fs::remove_file(staging.join("new")).unwrap();
    sync(&staging);
    copy_and_compare(&mnt, &tree);
    one.umount(&mnt);
    let two = place.host(&dir.path().join("two"), "add");
    let bundle = two.mount("prod/census/labels/latest", "ro");
    assert_eq!(differences(&tree, &bundle), "");
    two.umount(&bundle);
}

/// As `differences`, but for one name at the top, and the top's own time.
fn differences_but(original: &Path, copy: &Path, name: &str) -> String {
    let all = differences(original, copy);
    let ours = |line: &&str| !line.ends_with(&format!(" {name}")) && !line.ends_with(" ./");
    all.lines().filter(ours).collect()
}

// ---- wrong bytes in the store ----------------------------------------------------------------------------------------

/// How one look at a version ended.
#[derive(Debug, Default)]
struct Look {
    /// Files that came back as they were committed.
    right: usize,
    /// Files that were refused.
    refused: usize,
    /// What was said: by the mount of the version when it was refused, and by `status`.
    said: String,
}

/// Looks at the newest version from a host that has nothing in memory. Wrong bytes, a missing name and a hang fail the
/// test here.
fn look(place: &Place, dir: &Path, tree: &Path) -> Look {
    let host_dir = tempfile::tempdir_in(dir).unwrap();
    let host = place.host(host_dir.path(), "add");
    let mnt = host_dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let mount = |source| host.datamon(["mount", source, mnt.to_str().unwrap(), "-o", "timeout=5s"]);
    let mut look = Look::default();
    let mounted = within(SOON, &mut mount("prod/census/labels/latest"));
    if mounted.status.success() {
        host.umount(&mnt);
    } else {
        look.said = text(&mounted);
        assert_eq!(look.said.lines().count(), 1, "{}", look.said);
    }
    run(&mut mount("prod"));
    for original in files(tree) {
        let path = mnt.join("census/labels/latest").join(original.strip_prefix(tree).unwrap());
        let output = within(SOON, Command::new("cat").arg(&path));
        if output.status.success() {
            assert!(output.stdout == fs::read(&original).unwrap(), "{}: wrong bytes", path.display());
            look.right += 1;
        } else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("Input/output error"), "damage is EIO, and nothing else: {said}");
            look.refused += 1;
        }
    }
    assert!(mounted.status.success() || look.right == 0, "what cannot be mounted cannot be read: {look:?}");
    look.said += &status(&mnt);
    host.umount(&mnt);
    look
}

/// Changes one byte of an object, and puts it right again when it is dropped.
struct Damage {
    object: PathBuf,
    original: Vec<u8>,
}

impl Damage {
    fn at(object: &Path, offset: usize) -> Self {
        let original = fs::read(object).unwrap();
        let mut bytes = original.clone();
        bytes[offset] ^= 0x10;
        fs::write(object, bytes).unwrap();
        Self { object: object.to_owned(), original }
    }

    /// The object's name, as an error has to say it.
    fn name(&self) -> &str {
        self.object.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Damage {
    fn drop(&mut self) {
        let _ = fs::write(&self.object, &self.original);
    }
}

/// A committed tree, in a store whose files can be damaged: two large files in data packs, and small ones in groups.
fn committed(dir: &Path) -> (Place, PathBuf, PathBuf) {
    let (store, tree) = (dir.join("store"), dir.join("tree"));
    fs::create_dir_all(tree.join("small")).unwrap();
    for name in ["large-1", "large-2"] {
        fs::write(tree.join(name), noise(name.len() as u64 + u64::from(name.ends_with('2')), 3 * MIB)).unwrap();
    }
    for n in 0..20 {
        fs::write(tree.join("small").join(n.to_string()), noise(100 + n, 1_000 * (n as usize + 1))).unwrap();
    }
    let place = Place::directory(&store);
    let one = place.host(&dir.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = make_repo(&mnt);
    copy(&tree, &staging);
    sync(&staging);
    one.umount(&mnt);
    (place, store, tree)
}

/// The store's objects whose path holds `part`.
fn objects(store: &Path, part: &str) -> Vec<PathBuf> {
    let found: Vec<_> = files(store).into_iter().filter(|path| path.to_str().unwrap().contains(part)).collect();
    assert!(!found.is_empty(), "{part}: no such object in {}", store.display());
    found
}

#[test]
fn a_wrong_byte_of_a_data_pack_is_eio_for_what_lies_there_and_nothing_else() {
    if !inside("faults::a_wrong_byte_of_a_data_pack_is_eio_for_what_lies_there_and_nothing_else") {
        return;
    }
    let dir = scratch();
    let (place, store, tree) = committed(dir.path());
    let whole = look(&place, dir.path(), &tree);
    assert_eq!((whole.right, whole.refused), (22, 0), "{}", whole.said);
    let pack = objects(&store, "/p/").into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let len = fs::metadata(&pack).unwrap().len() as usize;
    let mut damaged = 0;
    for part in 0..6 {
        let damage = Damage::at(&pack, len / 6 * part + 10_000);
        let found = look(&place, dir.path(), &tree);
        assert_eq!(found.right + found.refused, 22, "one damaged record leaves the tree itself whole: {}", found.said);
        assert!(found.refused <= 20, "one of the large files at least is whole: {found:?}");
        if found.refused > 0 {
            damaged += 1;
            assert!(found.said.contains(damage.name()), "the object is named: {}", found.said);
        }
    }
    assert!(damaged >= 4, "most of a data pack is data: {damaged}");
    let whole = look(&place, dir.path(), &tree);
    assert_eq!((whole.right, whole.refused), (22, 0), "{}", whole.said);
}

#[test]
fn a_wrong_byte_of_a_versions_metadata_is_an_error_that_names_the_object() {
    if !inside("faults::a_wrong_byte_of_a_versions_metadata_is_an_error_that_names_the_object") {
        return;
    }
    let dir = scratch();
    let (place, store, tree) = committed(dir.path());
    for part in ["/m/", "/bundles/", "/refs/"] {
        for object in objects(&store, part) {
            let len = fs::metadata(&object).unwrap().len() as usize;
            for at in [0, len / 4, len / 2, len - 40, len - 1] {
                let damage = Damage::at(&object, at);
                let found = look(&place, dir.path(), &tree);
                // A byte that nobody reads on this way harms nobody; whatever was refused was refused by name.
                if found.right < 22 {
                    assert!(found.said.contains(damage.name()), "{part} byte {at} of {len}: {found:?}");
                }
                // These two are read whole, and checked whole.
                assert!(part == "/m/" || found.right < 22, "{part} byte {at} of {len} passed unseen");
            }
        }
    }
    let whole = look(&place, dir.path(), &tree);
    assert_eq!((whole.right, whole.refused), (22, 0), "{}", whole.said);
}

// ---- mapped files ----------------------------------------------------------------------------------------------------

/// Stores through a mapping that stays: one letter a page, then says so, and again for each line that it is given.
const MAPPER: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
for letter in (b'A', b'B'):
    for page in range(0, len(m), 4096):
        m[page:page + 1] = letter
    print('stored', flush=True)
    sys.stdin.readline()
";

#[test]
fn stores_that_a_full_disk_refused_are_in_no_commit_that_succeeds() {
    if !inside("faults::stores_that_a_full_disk_refused_are_in_no_commit_that_succeeds") {
        return;
    }
    const STORE: &str = "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(fd, 0); \
         m[0:8] = sys.argv[2].encode(); m.close()";
    let dir = scratch();
    let disk = small_disk(dir.path(), 512);
    let one = Place::directory(&dir.path().join("store")).host(&disk.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = make_repo(&mnt);
    let (file, other) = (staging.join("sub/mapped"), staging.join("sub/other"));
    fs::create_dir(staging.join("sub")).unwrap();
    fs::write(&file, noise(1, 4 * MIB)).unwrap();
    fs::write(&other, noise(2, 4 * MIB)).unwrap();
    let third = staging.join("sub/third");
    fs::write(&third, noise(3, 4 * MIB)).unwrap();
    sync(&staging);
    let store = |file: &Path, what: &str| run(Command::new("python3").args(["-c", STORE]).arg(file).arg(what));
    let commit = || one.datamon(["commit", staging.to_str().unwrap()]).output().unwrap();

    fill(&disk, "filler", 30 << 20);
    // Sixteen MiB of the last thirty may still be taken.
    let _ = (0..16).find_map(|n| fs::write(staging.join(format!("new-{n}")), noise(n, MIB)).err()).unwrap();
    for new in names(&staging).iter().filter(|name| name.starts_with("new-")) {
        fs::remove_file(staging.join(new)).unwrap();
    }
    store(&file, "CHANGED!");
    store(&other, "CHANGED!");
    // What is stored into a file without a name is nobody's concern.
    const NAMELESS: &str = "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(fd, 0); \
         os.unlink(sys.argv[1]); m[0:8] = b'CHANGED!'; m.close()";
    run(Command::new("python3").args(["-c", NAMELESS]).arg(&third));
    assert_eq!(&fs::read(&file).unwrap()[..8], b"CHANGED!", "everybody sees it");
    let refused = commit();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains("sub/mapped: stored through a mapping, and refused by the disk"),
        "{}",
        text(&refused)
    );
    let stays = one.datamon(["umount", mnt.to_str().unwrap()]).output().unwrap();
    assert!(!stays.status.success() && text(&stays).contains("sub/mapped"), "{}", text(&stays));
    let sync = within(SOON, Command::new("sync").arg(&staging));
    assert!(!sync.status.success(), "sync tells it, too");

    // There is room again: what is stored again, or is no part of the tree any more, is no reason any more.
    fs::remove_file(disk.join("filler")).unwrap();
    fs::remove_file(&other).unwrap();
    until(SOON, "it can be stored when there is room", || {
        store(&file, "CHANGED!");
        commit().status.success()
    });
    let latest = mnt.join("census/labels/latest/sub");
    assert_eq!(names(&latest), ["mapped"]);
    let (found, mut expected) = (fs::read(latest.join("mapped")).unwrap(), noise(1, 4 * MIB));
    expected[..8].copy_from_slice(b"CHANGED!");
    assert!(found == expected);
    one.umount(&mnt);
}

#[test]
fn a_commit_holds_the_stores_of_a_file_that_stays_mapped() {
    if !inside("faults::a_commit_holds_the_stores_of_a_file_that_stays_mapped") {
        return;
    }
    let dir = scratch();
    let one = Place::directory(&dir.path().join("store")).host(&dir.path().join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let staging = make_repo(&mnt);
    fs::write(staging.join("mapped"), vec![b'-'; 4 * MIB]).unwrap();
    let mapper = Command::new("python3")
        .args(["-c", MAPPER])
        .arg(staging.join("mapped"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut mapper = Leash(mapper.unwrap());
    let mut said = BufReader::new(mapper.0.stdout.take().unwrap()).lines();
    let mut go_on = mapper.0.stdin.take().unwrap();
    let latest = mnt.join("census/labels/latest/mapped");
    for letter in [b'A', b'B'] {
        assert_eq!(said.next().unwrap().unwrap(), "stored");
        sync(&staging);
        let bytes = until_new(&latest, letter);
        let mut expected = vec![b'-'; 4 * MIB];
        expected.iter_mut().step_by(4096).for_each(|byte| *byte = letter);
        assert!(bytes == expected, "every store made before the commit is in it");
        use std::io::Write;
        go_on.write_all(b"\n").unwrap();
    }
    assert!(mapper.succeeded(SOON, "the mapper"));
    one.umount(&mnt);
}

/// The file, once the label has moved to the version in which it begins with `letter`.
fn until_new(file: &Path, letter: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    until(Duration::from_secs(5), "the version in which the stores are", || {
        bytes = fs::read(file).unwrap_or_default();
        bytes.first() == Some(&letter)
    });
    bytes
}
