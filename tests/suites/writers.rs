//! Writers that know what the disk may hold, for the tests that take it away: [`super::power`], [`super::disk`].
//!
//! Each works in a directory of its own and keeps, in this process, what the disk may hold if the power goes now: of each
//! file the bytes of its last fsync and everything done to it since, of each name what it led to then and since.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::harness::{Host, Place, SOON, differences, run, text, within};

const WRITERS: usize = 4;
/// Names of one writer.
const NAMES: usize = 40;
const SIZES: [usize; 10] = [0, 100, 3_000, 3_000, 20_000, 60_000, 70_000, 300_000, 1_200_000, 2_500_000];

/// Rounds: a few in `make test`, many in `make crash`.
pub(super) fn rounds(few: usize) -> usize {
    std::env::var("DATAMON_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(few)
}

/// Another run, other accidents; the seed is printed with what it found.
pub(super) fn seed() -> u64 {
    let given = std::env::var("DATAMON_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 % 1_000_000_007
    })
}

#[derive(Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % sides.max(1)
    }

    /// Bytes that are nobody else's: never zero, and other ones each time.
    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let salt = self.roll(251) as u32 + 1;
        (0..len as u32).map(|n| ((n.wrapping_mul(2_654_435_761) >> 16) as u8 ^ salt as u8) | 1).collect()
    }
}

/// What a file may hold.
#[derive(Clone, Default)]
pub(super) struct Content {
    /// What it held when it was synced last; nothing before that.
    synced: Vec<u8>,
    /// What was written since, zeros where it was cut.
    written: Vec<(usize, Vec<u8>)>,
    /// Lengths that it may have, from and to.
    lengths: Vec<(usize, usize)>,
    now: Vec<u8>,
}

impl Content {
    fn empty() -> Self {
        Self { lengths: vec![(0, 0)], ..Self::default() }
    }

    fn of(bytes: Vec<u8>) -> Self {
        let mut content = Self { now: bytes, ..Self::default() };
        content.sync();
        content
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let (before, end) = (self.now.len(), at + bytes.len());
        if bytes.is_empty() {
            return;
        }
        if end > before {
            // A large write reaches the daemon in parts.
            self.lengths.push((before, end));
            self.now.resize(end, 0);
        }
        self.now[at..end].copy_from_slice(bytes);
        self.written.push((at, bytes.to_vec()));
    }

    fn cut(&mut self, size: usize) {
        if size < self.now.len() {
            self.written.push((size, vec![0; self.now.len() - size]));
        }
        self.lengths.push((size, size));
        self.now.resize(size, 0);
    }

    fn sync(&mut self) {
        self.synced = self.now.clone();
        self.written.clear();
        self.lengths = vec![(self.now.len(), self.now.len())];
    }

    /// Why these bytes may not be what the file holds.
    fn refuse(&self, found: &[u8]) -> Option<String> {
        let len = found.len();
        if !self.lengths.iter().any(|(from, to)| (*from..=*to).contains(&len)) {
            return Some(format!("{len} bytes, not {:?}", self.lengths));
        }
        let mut old = self.synced.clone();
        old.resize(len, 0);
        for start in (0..len).step_by(4_096) {
            let end = len.min(start + 4_096);
            if found[start..end] == old[start..end] {
                continue;
            }
            for at in (start..end).filter(|at| found[*at] != old[*at]) {
                // Not old: then new, or zero, where something was written, and nothing but that.
                let covers = |(from, bytes): &&(usize, Vec<u8>)| (*from..from + bytes.len()).contains(&at);
                let mut since = self.written.iter().filter(covers).peekable();
                let is_zero = found[at] == 0 && since.peek().is_some();
                if !is_zero && !since.any(|(from, bytes)| bytes[at - from] == found[at]) {
                    return Some(format!("byte {at} of {len} is {}, was {}", found[at], old[at]));
                }
            }
        }
        None
    }
}

/// What names lead to: a content, or nothing.
pub(super) type Bound = Option<usize>;

/// One writer, and what it knows.
pub(super) struct Writer {
    dir: PathBuf,
    pub(super) dice: Dice,
    contents: Vec<Content>,
    /// What each name may lead to: what it led to when names were synced last, and everything since.
    pub(super) names: BTreeMap<String, Vec<Bound>>,
    /// What was renamed since then from where to where, and not touched after.
    moved: Vec<(String, String)>,
    /// A content that is another one's copy, as it was known to be on the disk at a rename over a file.
    copies: Vec<(usize, usize)>,
    made: usize,
    pub(super) done: usize,
    /// The process is killed, the machine stays: what was answered is there.
    only_kills: bool,
}

impl Writer {
    /// A writer that goes on from what it finds.
    pub(super) fn new(dir: &Path, seed: u64, only_kills: bool) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut writer = Self {
            dir: dir.to_owned(),
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            contents: Vec::new(),
            names: BTreeMap::new(),
            moved: Vec::new(),
            copies: Vec::new(),
            made: 0,
            done: 0,
            only_kills,
        };
        let mut by_ino: BTreeMap<u64, usize> = BTreeMap::new();
        for name in writer.found_names() {
            let path = dir.join(&name);
            let ino = fs::metadata(&path).unwrap().ino();
            let content = *by_ino.entry(ino).or_insert_with(|| {
                writer.contents.push(Content::of(fs::read(&path).unwrap()));
                writer.contents.len() - 1
            });
            let number = name.rsplit(['-', '/']).next().and_then(|number| number.parse().ok()).unwrap_or(0);
            writer.made = writer.made.max(number + 1);
            writer.names.insert(name, vec![Some(content)]);
        }
        writer
    }

    /// The files in the directory, and in those in it.
    fn found_names(&self) -> Vec<String> {
        let found = run(Command::new("find").arg(&self.dir).args(["-type", "f", "-printf", "%P\\n"]));
        found.lines().map(str::to_owned).collect()
    }

    fn now(&self, name: &str) -> Bound {
        self.names.get(name).and_then(|bound| *bound.last().unwrap())
    }

    /// A name that leads to a file now.
    fn any(&mut self) -> Option<String> {
        let names: Vec<_> = self.names.keys().filter(|name| self.now(name).is_some()).cloned().collect();
        if names.is_empty() { None } else { Some(names[self.dice.roll(names.len())].clone()) }
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        // Some in a directory that may have to be made first.
        match self.dice.roll(6) {
            0 => format!("d{}/f-{}", self.dice.roll(3), self.made),
            _ => format!("f-{}", self.made),
        }
    }

    fn size(&mut self) -> usize {
        SIZES[self.dice.roll(SIZES.len())] + self.dice.roll(50)
    }

    fn bind(&mut self, name: &str, to: Bound) {
        self.moved.retain(|(from, into)| from != name && into != name);
        self.names.entry(name.to_owned()).or_insert_with(|| vec![None]).push(to);
    }

    fn add(&mut self, content: Content) -> usize {
        self.contents.push(content);
        self.contents.len() - 1
    }

    /// What happens to a content happens to its copies.
    fn change(&mut self, content: usize, change: impl Fn(&mut Content)) {
        change(&mut self.contents[content]);
        for (_, other) in self.copies.iter().filter(|(copy, _)| *copy == content) {
            change(&mut self.contents[*other]);
        }
    }

    fn names_are_synced(&mut self) {
        self.names.values_mut().for_each(|bound| drop(bound.drain(..bound.len() - 1)));
        self.names.retain(|_, bound| bound[0].is_some());
        self.moved.clear();
    }

    /// What was done so far is safe from what this test does.
    pub(super) fn all_is_safe(&mut self) {
        self.names_are_synced();
        let bound: Vec<usize> = self.names.values().filter_map(|bound| bound[0]).collect();
        bound.into_iter().for_each(|content| self.contents[content].sync());
        self.copies.clear();
    }

    /// Works until something is refused.
    pub(super) fn work(&mut self) -> io::Error {
        loop {
            if let Err(error) = self.step() {
                return error;
            }
            self.done += 1;
            if self.only_kills {
                self.all_is_safe();
            }
        }
    }

    pub(super) fn step(&mut self) -> io::Result<()> {
        let is_full = self.names.values().filter(|bound| bound.last().unwrap().is_some()).count() >= NAMES;
        let what = if is_full { 80 } else { self.dice.roll(100) };
        match what {
            0..20 => self.create(),
            20..38 => self.overwrite(),
            38..46 => self.append(),
            46..58 => self.fsync(),
            58..60 => self.fsync_directory(),
            60..67 => self.truncate(),
            67..76 => self.replace(),
            76..80 => self.rename(),
            80..86 => self.unlink(),
            86..90 => self.link(),
            _ => self.rewrite(),
        }
    }

    fn create(&mut self) -> io::Result<()> {
        let name = self.new_name();
        self.create_as(&name).map(drop)
    }

    fn create_as(&mut self, name: &str) -> io::Result<usize> {
        if let Some((dir, _)) = name.split_once('/') {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        let size = self.size();
        let bytes = self.dice.bytes(size);
        let content = self.add(Content::empty());
        self.bind(name, Some(content));
        let file = File::create(self.dir.join(name))?;
        self.change(content, |content| content.write(0, &bytes));
        file.write_all_at(&bytes, 0)?;
        Ok(content)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        File::options().read(true).write(true).open(self.dir.join(name))
    }

    fn write(&mut self, name: &str, at: usize, len: usize) -> io::Result<()> {
        let content = self.now(name).unwrap();
        let bytes = self.dice.bytes(len);
        self.change(content, |content| content.write(at, &bytes));
        self.open(name)?.write_all_at(&bytes, at as u64)
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let size = self.contents[self.now(&name).unwrap()].now.len();
        let (at, len) = (self.dice.roll(size + 1), self.size().min(400_000));
        self.write(&name, at, len)
    }

    fn append(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let size = self.contents[self.now(&name).unwrap()].now.len();
        // Sometimes behind a gap.
        let gap = if self.dice.roll(5) == 0 { self.size().min(100_000) } else { 0 };
        let len = self.size().min(200_000);
        if size > 4_000_000 { Ok(()) } else { self.write(&name, size + gap, len) }
    }

    fn fsync(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        self.fsync_name(&name)
    }

    fn fsync_name(&mut self, name: &str) -> io::Result<()> {
        let content = self.now(name).unwrap();
        self.open(name)?.sync_all()?;
        self.change(content, Content::sync);
        self.names_are_synced();
        self.copies.clear();
        Ok(())
    }

    fn fsync_directory(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()?;
        self.names_are_synced();
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let content = self.now(&name).unwrap();
        let size = match self.dice.roll(4) {
            0 => self.size(),
            _ => self.dice.roll(self.contents[content].now.len() + 1),
        };
        self.change(content, |content| content.cut(size));
        self.open(&name)?.set_len(size as u64)
    }

    /// Whether the content has one name, then and now.
    fn has_one_name(&self, content: usize) -> bool {
        self.names.values().filter(|bound| bound.contains(&Some(content))).count() == 1
    }

    /// A new file over an old one: the old or the new, whole.
    fn replace(&mut self) -> io::Result<()> {
        let Some(old) = self.any() else { return Ok(()) };
        let new = self.new_name();
        let content = self.create_as(&new)?;
        if self.dice.roll(3) == 0 {
            self.fsync_name(&new)?;
        }
        // Under the old name it is there with all its bytes or not at all.
        let copy = self.add(Content::of(self.contents[content].now.clone()));
        self.copies.push((copy, content));
        self.bind(&old, Some(copy));
        self.bind(&new, None);
        fs::rename(self.dir.join(&new), self.dir.join(&old))
    }

    fn rename(&mut self) -> io::Result<()> {
        let Some(from) = self.any() else { return Ok(()) };
        let to = self.new_name();
        if let Some((dir, _)) = to.split_once('/') {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        let content = self.now(&from).unwrap();
        let was_there = self.names[&from].len() == 1 && self.has_one_name(content);
        self.bind(&to, Some(content));
        self.bind(&from, None);
        if was_there {
            self.moved.push((from.clone(), to.clone()));
        }
        fs::rename(self.dir.join(&from), self.dir.join(&to))
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        self.bind(&name, None);
        fs::remove_file(self.dir.join(&name))
    }

    fn link(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let to = format!("l-{}", self.made);
        self.made += 1;
        self.bind(&to, self.now(&name));
        fs::hard_link(self.dir.join(&name), self.dir.join(&to))
    }

    /// As an editor that saves in place.
    fn rewrite(&mut self) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let content = self.now(&name).unwrap();
        let size = self.size();
        let bytes = self.dice.bytes(size);
        self.change(content, |content| content.cut(0));
        let file = File::create(self.dir.join(&name))?;
        self.change(content, |content| content.write(0, &bytes));
        file.write_all_at(&bytes, 0)
    }

    /// Looks at everything that is there now: what is wrong with it.
    pub(super) fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, bound) in &self.names {
            let reasons = match fs::read(self.dir.join(name)) {
                Ok(bytes) => {
                    let refuse = |content: &usize| self.contents[*content].refuse(&bytes);
                    let reasons: Vec<_> = bound.iter().flatten().map(refuse).collect();
                    if reasons.iter().any(Option::is_none) { continue } else { format!("{reasons:?}") }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && bound.contains(&None) => continue,
                Err(error) => error.to_string(),
            };
            wrong.push(format!("{}/{name}: {reasons} ({} possible)", self.dir.display(), bound.len()));
        }
        for (from, to) in &self.moved {
            if !self.dir.join(from).exists() && !self.dir.join(to).exists() {
                wrong.push(format!("{}: neither {from} nor {to}", self.dir.display()));
            }
        }
        let strangers = self.found_names().into_iter().filter(|name| !self.names.contains_key(name));
        wrong.extend(strangers.map(|name| format!("{}/{name}: nobody made it", self.dir.display())));
        wrong
    }
}
pub(super) fn writers(staging: &Path, seed: u64, only_kills: bool) -> Vec<Writer> {
    let dir = |n: usize| staging.join(format!("w{n}"));
    (0..WRITERS).map(|n| Writer::new(&dir(n), seed.wrapping_add(n as u64 * 7_919), only_kills)).collect()
}

pub(super) fn kill(host: &Host, mnt: &Path) {
    let daemons = host.daemons(mnt);
    for daemon in &daemons {
        run(Command::new("kill").args(["-9", &daemon.to_string()]));
    }
    let is_gone = |pid: &u32| {
        // The first thread is a zombie while another one has not ended.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        threads == 0 || (threads == 1 && status.contains("State:\tZ"))
    };
    let start = std::time::Instant::now();
    while !daemons.iter().all(is_gone) && start.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(10));
    }
    if !daemons.iter().all(is_gone) {
        // Killed while it asked the kernel to write mapped pages back (docs/reliability.md): the next mount ends it.
        eprintln!("a killed daemon could not end by itself");
    }
}

/// Mounts the repo's staging tree; says what `status` says of an earlier life.
pub(super) fn mount(host: &Host) -> (PathBuf, String) {
    let mnt = host.mount("prod/census", "rw");
    let staging = mnt.join("staging");
    fs::metadata(&staging).unwrap();
    let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
    let recovered = status.lines().find(|line| line.starts_with("recovered: ")).unwrap_or_default().to_owned();
    (mnt, recovered)
}

pub(super) fn commit(staging: &Path) {
    let output = within(SOON, Command::new("sync").arg(staging));
    assert!(output.status.success(), "sync: {}", text(&output));
}

/// Commits, and asks another host, who has nothing in memory, whether it is the same.
pub(super) fn another_host_sees_the_same(place: &Place, dir: &Path, staging: &Path) {
    commit(staging);
    let other = tempfile::tempdir_in(dir).unwrap();
    let two = place.host(other.path(), "add");
    let mnt = two.mount("prod", "ro");
    assert_eq!(differences(staging, &mnt.join("census/labels/latest")), "");
    two.umount(&mnt);
}

pub(super) fn a_repo(place: &Place, host: &Host) {
    let mnt = host.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    host.umount(&mnt);
    let _ = place;
}

/// Everything that is wrong after a round.
pub(super) fn judge(writers: &[Writer], what: &str) {
    let wrong: Vec<_> = writers.iter().flat_map(Writer::wrong).collect();
    assert!(wrong.is_empty(), "{what}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
