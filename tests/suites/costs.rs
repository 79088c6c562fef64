//! What work costs in requests, against the table of docs/format.md: counted at the store, whatever is in the background.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Host, Place, SOON, host_with_repo, inside, run, scratch, sync, within};
use super::trees::noise;

const MIB: u64 = 1 << 20;
const FILES: usize = 20_000;
const PER_DIRECTORY: usize = 1_000;
const FILE_BYTES: usize = 1_024;
/// Data packs that this is in all, of 16 MiB each.
const PACKS: u64 = 2;
/// Records, packs of tables and the like that any commit writes: intent, tables, descriptor, refs.
const RECORDS: u64 = 4;
/// Files that the read log counts before it writes an object, which it also does every minute: a tenth of a 32nd of
/// `memory=` (256M), 130 bytes each.
const LOGGED_FILES: u64 = 6_452;

/// Requests of a mount so far, by verb.
#[derive(Debug, Default)]
struct Requests(HashMap<String, u64>);

impl Requests {
    fn of(mnt: &Path) -> Self {
        // A text that is younger than a second is shown again.
        std::thread::sleep(Duration::from_millis(1_200));
        let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
        let mut found = HashMap::new();
        for line in stats.lines().filter_map(|line| line.strip_prefix("datamon_store_requests_total{verb=\"")) {
            let (verb, rest) = line.split_once('"').unwrap();
            let count: u64 = rest.rsplit_once(' ').unwrap().1.parse().unwrap();
            *found.entry(verb.to_owned()).or_default() += count;
        }
        Self(found)
    }

    /// GET with HEAD, PUT, LIST: those made since `self`.
    fn until_now(&self, mnt: &Path) -> (u64, u64, u64) {
        let now = Self::of(mnt);
        let since = |verb: &str| now.0.get(verb).unwrap_or(&0) - self.0.get(verb).unwrap_or(&0);
        (since("get") + since("head"), since("put"), since("list"))
    }
}

/// Small files that do not compress, a thousand in a directory; directories, and files in each, are written in no order.
fn fill(dir: &Path, files: usize) {
    let directories = files / PER_DIRECTORY;
    for directory in (0..directories).map(|n| n * 7 % directories) {
        let sub = dir.join(format!("d{directory:03}"));
        fs::create_dir(&sub).unwrap();
        for file in (0..PER_DIRECTORY).map(|n| n * 617 % PER_DIRECTORY) {
            let n = directory * PER_DIRECTORY + file;
            fs::write(sub.join(format!("f{n:06}")), noise(n as u64 + 1, FILE_BYTES)).unwrap();
        }
    }
}

/// A context with `files` committed files in the repo `census`, still mounted at its staging tree.
fn committed(dir: &Path, files: usize) -> (Place, Host, std::path::PathBuf, (u64, u64, u64)) {
    let (place, host) = host_with_repo(dir);
    let mnt = host.mount("prod/census/staging", "refresh=60s");
    let before = Requests::of(&mnt);
    fill(&mnt, files);
    sync(&mnt);
    let made = before.until_now(&mnt);
    (place, host, mnt, made)
}

#[test]
fn a_commit_costs_packs_and_a_few_records_whatever_the_number_of_files() {
    if !inside("costs::a_commit_costs_packs_and_a_few_records_whatever_the_number_of_files") {
        return;
    }
    let dir = scratch();
    let (_place, host, mnt, (reads, writes, lists)) = committed(dir.path(), FILES);
    eprintln!("commit of {FILES} files: {reads} reads, {writes} writes, {lists} lists");
    assert!(writes <= PACKS + 1 + RECORDS, "{writes} writes");
    assert!(reads <= 8, "{reads} reads");
    assert!(lists <= 6, "{lists} lists");

    for n in (0..FILES).step_by(100) {
        let file = mnt.join(format!("d{:03}/f{n:06}", n / PER_DIRECTORY));
        fs::write(file, noise((FILES + n) as u64, FILE_BYTES)).unwrap();
    }
    for what in ["one in a hundred changed", "one changed"] {
        let before = Requests::of(&mnt);
        sync(&mnt);
        let (reads, writes, lists) = before.until_now(&mnt);
        eprintln!("{what}: {reads} reads, {writes} writes, {lists} lists");
        assert!(writes <= 6, "{what}: {writes} writes");
        assert!(reads <= 12, "{what}: {reads} reads");
        assert!(lists <= 2, "{what}: {lists} lists");
        fs::write(mnt.join("d001/f001000"), noise(1 << 40, FILE_BYTES)).unwrap();
    }
    host.umount(&mnt);
}

#[test]
fn reading_costs_a_few_requests_whatever_the_number_of_files() {
    if !inside("costs::reading_costs_a_few_requests_whatever_the_number_of_files") {
        return;
    }
    let dir = scratch();
    let (place, host, mnt, _) = committed(dir.path(), FILES);
    let deep = mnt.join("a/b/c/d/e/f/g/h");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), noise(1 << 41, FILE_BYTES)).unwrap();
    host.umount(&mnt);

    let other = place.host(&dir.path().join("other"), "add");
    let start = Instant::now();
    let mnt = other.mount("prod/census/labels/latest", "ro,refresh=60s");
    run(Command::new("ls").arg(mnt.join("a/b/c/d/e/f/g/h")));
    let (reads, _, lists) = Requests::default().until_now(&mnt);
    eprintln!("mount and ls at depth 8: {reads} reads, {lists} lists");
    assert!(reads <= 10 && lists <= 3, "{reads} reads, {lists} lists");

    fs::metadata(mnt.join("d007/f007123")).unwrap();
    let before = Requests::of(&mnt);
    assert!(fs::read(mnt.join("d007/f007123")).unwrap() == noise(7_124, FILE_BYTES));
    let (reads, ..) = before.until_now(&mnt);
    assert_eq!(reads, 1, "the first read of a small file whose range is known");

    let before = Requests::of(&mnt);
    let copy = dir.path().join("copy");
    assert!(within(SOON, Command::new("cp").arg("-r").arg(&mnt).arg(&copy)).status.success());
    let (reads, writes, lists) = before.until_now(&mnt);
    eprintln!("cp -r of {FILES} small files: {reads} reads, {writes} writes, {lists} lists");
    for n in 0..FILES {
        let file = copy.join(format!("d{:03}/f{n:06}", n / PER_DIRECTORY));
        assert!(fs::read(&file).unwrap() == noise(n as u64 + 1, FILE_BYTES), "{}", file.display());
    }
    assert!(reads <= (FILES / 200) as u64, "{reads} reads");
    let log = FILES as u64 / LOGGED_FILES + 1 + start.elapsed().as_secs() / 60;
    assert!(writes <= log, "{writes} writes, where the read log has {log}");
    other.umount(&mnt);
}

/// Bytes that a mount has sent to the store.
fn sent(mnt: &Path) -> u64 {
    std::thread::sleep(Duration::from_millis(1_200));
    let stats = fs::read_to_string(mnt.join(".datamon/stats")).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("datamon_store_bytes_total{direction=\"out\"} "));
    line.unwrap().parse().unwrap()
}

fn write_at(file: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, offset).unwrap();
}

/// What a changed byte may move besides its chunk: the chunk's proof, a block of extents, rows, records.
const BESIDE_A_CHUNK: u64 = 512 << 10;

#[test]
fn one_byte_of_a_very_large_file_moves_one_chunk() {
    if !inside("costs::one_byte_of_a_very_large_file_moves_one_chunk") {
        return;
    }
    // MiB of real bytes; `DATAMON_LARGE_MIB=10240 DATAMON_TEST_LIMIT=3600` for a large disk.
    let real = std::env::var("DATAMON_LARGE_MIB").map_or(64, |mib| mib.parse::<u64>().unwrap());
    let dir = scratch();
    let (place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod/census/staging", "refresh=60s");

    const GIB: u64 = 1 << 30;
    const SPARSE: u64 = 100 * GIB;
    let islands = [0, GIB + 12_345, 50 * GIB, SPARSE - 5];
    let sparse = mnt.join("sparse");
    fs::File::create(&sparse).unwrap().set_len(SPARSE).unwrap();
    islands.iter().for_each(|at| write_at(&sparse, *at, b"hello"));
    let large = fs::File::create(mnt.join("large")).unwrap();
    for mib in 0..real {
        large.write_all_at(&noise(mib + 1, MIB as usize), mib * MIB).unwrap();
    }
    drop(large);
    let start = Instant::now();
    let limit = Duration::from_secs(60 + real / 20);
    assert!(within(limit, Command::new("sync").arg(&mnt)).status.success());
    let first = (start.elapsed(), sent(&mnt));
    assert!(first.0 < Duration::from_secs(20 + real / 20), "holes are not read: {:?}", first.0);
    assert!(first.1 < real * (MIB + 4_096) + 8 * MIB, "{} bytes for {real} MiB and holes", first.1);
    // What is on the local disk is let go: from here on the bytes are the base's.
    host.umount(&mnt);
    let mnt = host.mount("prod/census/staging", "refresh=60s");

    for (name, at) in [("large", real / 2 * MIB + 7), ("sparse", 50 * GIB + 3), ("sparse", 77 * GIB)] {
        let before = sent(&mnt);
        write_at(&mnt.join(name), at, b"!");
        let start = Instant::now();
        assert!(within(SOON, Command::new("sync").arg(&mnt)).status.success());
        let (took, moved) = (start.elapsed(), sent(&mnt) - before);
        eprintln!(
            "one byte of {name}: {moved} bytes sent, {took:.2?}; the first commit {} bytes, {:.2?}",
            first.1, first.0
        );
        assert!(moved <= MIB + BESIDE_A_CHUNK, "{name}: {moved} bytes moved");
    }
    host.umount(&mnt);

    let other = place.host(&dir.path().join("other"), "add");
    let mnt = other.mount("prod/census/labels/latest", "ro");
    let sparse = fs::File::open(mnt.join("sparse")).unwrap();
    assert_eq!(sparse.metadata().unwrap().len(), SPARSE);
    let mut found = [0; 5];
    for at in islands {
        sparse.read_exact_at(&mut found, at).unwrap();
        assert_eq!(&found, if at == 50 * GIB { b"hel!o" } else { b"hello" }, "at {at}");
    }
    sparse.read_exact_at(&mut found, 77 * GIB).unwrap();
    assert_eq!(&found, b"!\0\0\0\0");
    let large = fs::File::open(mnt.join("large")).unwrap();
    let mut found = vec![0; MIB as usize];
    for mib in 0..real {
        large.read_exact_at(&mut found, mib * MIB).unwrap();
        let mut expected = noise(mib + 1, MIB as usize);
        if mib == real / 2 {
            expected[7] = b'!';
        }
        assert!(found == expected, "MiB {mib}");
    }
    drop((sparse, large));
    other.umount(&mnt);
}
