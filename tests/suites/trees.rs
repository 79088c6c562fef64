//! A tree with every edge that a version has to bring back.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::harness::run;

const MIB: usize = 1 << 20;
/// Entries of the large directory.
const WIDE: usize = 10_000;
/// Levels of the deep one.
const DEEP: usize = 60;
/// Length of the file that is mostly holes.
const HOLES_BYTES: u64 = 3 << 30;

/// Bytes that no two files share and that no compressor makes much of.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Makes the tree in `root`, which has to be root's to make (owners, modes).
pub fn make(root: &Path) {
    fs::create_dir_all(root).unwrap();
    sizes(&root.join("sizes"));
    names(&root.join("names"));
    shapes(&root.join("shapes"));
    modes(&root.join("modes"));
    times(&root.join("times"));
    fs::create_dir(root.join("wide")).unwrap();
    for n in 0..WIDE {
        fs::write(root.join("wide").join(format!("{n:05}")), format!("{n}")).unwrap();
    }
    let mut deep = root.join("deep");
    for level in 0..DEEP {
        deep = deep.join(format!("level-{level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "bottom").unwrap();
}

fn sizes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let edges = [0, 1, 256, 257, 4096, 65_536, 65_537, MIB - 1, MIB, MIB + 1, 5 * MIB + 3];
    for (seed, size) in edges.into_iter().enumerate() {
        fs::write(dir.join(size.to_string()), noise(seed as u64 + 1, size)).unwrap();
    }
    fs::write(dir.join("zeros"), vec![0; 2 * MIB + 7]).unwrap();
    let mut holes = File::create(dir.join("holes")).unwrap();
    for (seed, at) in [0, 1 << 30, HOLES_BYTES - 100].into_iter().enumerate() {
        holes.seek(SeekFrom::Start(at)).unwrap();
        holes.write_all(&noise(99 + seed as u64, 100)).unwrap();
    }
    assert_eq!(holes.metadata().unwrap().len(), HOLES_BYTES);
}

fn names(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let odd: [&[u8]; 7] =
        [&[b'n'; 255], b"\xff\xfe not utf-8", b" ", b"new\nline", b"-rf", "käse".as_bytes(), b"*?[a]\\"];
    for name in odd {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
}

fn shapes(dir: &Path) {
    fs::create_dir_all(dir.join("empty/also empty")).unwrap();
    fs::write(dir.join("first"), "linked").unwrap();
    fs::hard_link(dir.join("first"), dir.join("second")).unwrap();
    fs::hard_link(dir.join("first"), dir.join("empty/third")).unwrap();
    symlink("first", dir.join("to-first")).unwrap();
    symlink("nowhere/at/all", dir.join("dangling")).unwrap();
    symlink("x".repeat(4000), dir.join("long")).unwrap();
    run(Command::new("mkfifo").arg(dir.join("pipe")));
    drop(std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap());
    fs::write(dir.join("attributes"), "a").unwrap();
    for (name, value) in [("user.colour", "red"), ("user.empty", "")] {
        run(Command::new("setfattr").args(["-n", name, "-v", value]).arg(dir.join("attributes")));
    }
    run(Command::new("setfattr").args(["-n", "user.of-a-directory", "-v", "x"]).arg(dir.join("empty")));
}

fn modes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for mode in (0..=0o7777).step_by(7).chain([0o777, 0o4755, 0o2755, 0o1777, 0o7777]) {
        let file = dir.join(format!("{mode:04o}"));
        fs::write(&file, "m").unwrap();
        chown(&file, Some(mode % 5 * 1000), Some(mode % 3 * 1000)).unwrap();
        // After the owner: chown(2) clears set-user-id.
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(dir.join("sticky")).unwrap();
    fs::set_permissions(dir.join("sticky"), Permissions::from_mode(0o1777)).unwrap();
}

fn times(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let hour = Duration::from_secs(3600);
    let instants = [
        ("nanoseconds", UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789)),
        ("before-1970", UNIX_EPOCH - hour),
        ("before-1970-with-nanoseconds", UNIX_EPOCH - hour + Duration::from_nanos(7)),
        ("after-2038", UNIX_EPOCH + Duration::from_secs(3_000_000_000)),
    ];
    for (name, time) in instants {
        fs::write(dir.join(name), name).unwrap();
        let file = File::options().write(true).open(dir.join(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
}
