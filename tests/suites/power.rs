//! Power cuts and kills under load: what was acknowledged, and what was synced, is there afterwards.
//!
//! Writers do many kinds of work in directories of their own and keep, in this process, what the disk may hold if the power
//! goes now: of each file the bytes of its last fsync and everything done to it since, of each name what it led to then
//! and since. The state directory lies on a file system of its own, which is shut down under the daemon (it takes nothing
//! more, and what it has not written is lost), unmounted and mounted again. Then every name and byte is looked at.
//!
//! `make crash` does the same for longer (DATAMON_CRASH_ROUNDS).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::harness::{Host, Place, SOON, differences, inside, run, scratch, text, until, within};

const WRITERS: usize = 4;
/// Names of one writer.
const NAMES: usize = 40;
const SIZES: [usize; 10] = [0, 100, 3_000, 3_000, 20_000, 60_000, 70_000, 300_000, 1_200_000, 2_500_000];

/// Rounds: a few in `make test`, many in `make crash`.
fn rounds(few: usize) -> usize {
    std::env::var("DATAMON_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(few)
}

/// Another run, other accidents; the seed is printed with what it found.
fn seed() -> u64 {
    let given = std::env::var("DATAMON_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 % 1_000_000_007
    })
}

#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % sides.max(1)
    }

    /// Bytes that are nobody else's: never zero, and other ones each time.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let salt = self.roll(251) as u32 + 1;
        (0..len as u32).map(|n| ((n.wrapping_mul(2_654_435_761) >> 16) as u8 ^ salt as u8) | 1).collect()
    }
}

/// What a file may hold.
#[derive(Clone, Default)]
struct Content {
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
type Bound = Option<usize>;

/// One writer, and what it knows.
struct Writer {
    dir: PathBuf,
    dice: Dice,
    contents: Vec<Content>,
    /// What each name may lead to: what it led to when names were synced last, and everything since.
    names: BTreeMap<String, Vec<Bound>>,
    /// What was renamed since then from where to where, and not touched after.
    moved: Vec<(String, String)>,
    /// A content that is another one's copy, as it was known to be on the disk at a rename over a file.
    copies: Vec<(usize, usize)>,
    made: usize,
    done: usize,
    /// The process is killed, the machine stays: what was answered is there.
    only_kills: bool,
}

impl Writer {
    /// A writer that goes on from what it finds.
    fn new(dir: &Path, seed: u64, only_kills: bool) -> Self {
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
    fn all_is_safe(&mut self) {
        self.names_are_synced();
        let bound: Vec<usize> = self.names.values().filter_map(|bound| bound[0]).collect();
        bound.into_iter().for_each(|content| self.contents[content].sync());
        self.copies.clear();
    }

    /// Works until something is refused.
    fn work(&mut self) -> io::Error {
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

    fn step(&mut self) -> io::Result<()> {
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
    fn wrong(&self) -> Vec<String> {
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

/// A file system of its own under a host's state directory.
struct Disk {
    image: PathBuf,
    dir: PathBuf,
}

impl Disk {
    fn new(dir: &Path, at: PathBuf, make: &[&str]) -> Self {
        let image = dir.join("disk.img");
        File::create(&image).unwrap().set_len(1 << 30).unwrap();
        run(Command::new(make[0]).args(&make[1..]).arg(&image));
        fs::create_dir_all(&at).unwrap();
        let disk = Self { image, dir: at };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.dir));
    }

    /// From now on nothing more is written: what is not on the disk is lost.
    fn shut_down(&self) {
        // XFS_IOC_GOINGDOWN with NOLOGFLUSH; ext4 has the same call.
        let call = "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", call]).arg(&self.dir));
    }

    fn come_back(&self) {
        until(SOON, "nobody uses the disk", || {
            Command::new("umount").arg(&self.dir).output().unwrap().status.success()
        });
        self.mount();
    }
}

/// Works with `writers` on the staging tree, commits now and then, and lets `end` happen at a random moment. Answers the
/// writers with what they know.
fn under_load(staging: &Path, writers: Vec<Writer>, dice: &mut Dice, end: impl FnOnce()) -> Vec<Writer> {
    let ended = Arc::new(AtomicBool::new(false));
    let done = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = writers
        .into_iter()
        .map(|mut writer| {
            let (ended, done) = (ended.clone(), done.clone());
            std::thread::spawn(move || {
                let error = writer.work();
                let is_of_the_end = ended.load(Ordering::SeqCst);
                done.lock().unwrap().push(writer);
                assert!(is_of_the_end, "refused before the end: {error}");
            })
        })
        .collect();
    let committer = {
        let (ended, staging, mut dice) = (ended.clone(), staging.to_owned(), dice.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(100 + dice.roll(900) as u64));
                let output = Command::new("timeout").args(["20", "sync"]).arg(&staging).output().unwrap();
                let is_of_the_end = ended.load(Ordering::SeqCst);
                assert!(output.status.success() || is_of_the_end, "commit: {}", text(&output));
            }
        })
    };
    std::thread::sleep(Duration::from_millis(200 + dice.roll(1_800) as u64));
    ended.store(true, Ordering::SeqCst);
    end();
    for thread in threads {
        thread.join().unwrap();
    }
    committer.join().unwrap();
    std::mem::take(&mut *done.lock().unwrap())
}

fn writers(staging: &Path, seed: u64, only_kills: bool) -> Vec<Writer> {
    let dir = |n: usize| staging.join(format!("w{n}"));
    (0..WRITERS).map(|n| Writer::new(&dir(n), seed.wrapping_add(n as u64 * 7_919), only_kills)).collect()
}

fn kill(host: &Host, mnt: &Path) {
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
fn mount(host: &Host) -> (PathBuf, String) {
    let mnt = host.mount("prod/census", "rw");
    let staging = mnt.join("staging");
    fs::metadata(&staging).unwrap();
    let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
    let recovered = status.lines().find(|line| line.starts_with("recovered: ")).unwrap_or_default().to_owned();
    (mnt, recovered)
}

fn commit(staging: &Path) {
    let output = within(SOON, Command::new("sync").arg(staging));
    assert!(output.status.success(), "sync: {}", text(&output));
}

/// Commits, and asks another host, who has nothing in memory, whether it is the same.
fn another_host_sees_the_same(place: &Place, dir: &Path, staging: &Path) {
    commit(staging);
    let other = tempfile::tempdir_in(dir).unwrap();
    let two = place.host(other.path(), "add");
    let mnt = two.mount("prod", "ro");
    assert_eq!(differences(staging, &mnt.join("census/labels/latest")), "");
    two.umount(&mnt);
}

fn a_repo(place: &Place, host: &Host) {
    let mnt = host.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    host.umount(&mnt);
    let _ = place;
}

/// Everything that is wrong after a round.
fn judge(writers: &[Writer], what: &str) {
    let wrong: Vec<_> = writers.iter().flat_map(Writer::wrong).collect();
    assert!(wrong.is_empty(), "{what}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn power_cuts(make: &[&str]) {
    let dir = scratch();
    let seed = seed();
    let mut dice = Dice(seed | 1);
    let place = Place::directory(&dir.path().join("store"));
    let host_dir = dir.path().join("one");
    let disk = Disk::new(dir.path(), host_dir.join("state"), make);
    let one = place.host(&host_dir, "create");
    a_repo(&place, &one);
    let (mut mnt, _) = mount(&one);
    let (mut steps, mut files, mut told) = (0, 0, 0);
    let rounds = rounds(4);
    for round in 0..rounds {
        let what = format!("{}, seed {seed}, round {round}", make[0]);
        let staging = mnt.join("staging");
        let before = writers(&staging, seed.wrapping_add(round as u64 * 104_729), false);
        // Directories of this life, too, are there only when they were synced.
        File::open(&staging).unwrap().sync_all().unwrap();
        let after = under_load(&staging, before, &mut dice, || {
            disk.shut_down();
            kill(&one, &mnt);
        });
        run(Command::new("umount").arg("-l").arg(&mnt));
        disk.come_back();
        let (again, recovered) = mount(&one);
        mnt = again;
        told += usize::from(!recovered.is_empty());
        judge(&after, &format!("{what} ({recovered})"));
        steps += after.iter().map(|writer| writer.done).sum::<usize>();
        files += after.iter().map(|writer| writer.names.len()).sum::<usize>();
        another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
        if round % 2 == 0 {
            // From here on everything is the base's.
            one.umount(&mnt);
            mnt = mount(&one).0;
            judge(&after, &format!("{what}, committed"));
        }
    }
    one.umount(&mnt);
    eprintln!("{}: {rounds} power cuts, {steps} steps, {files} names, {told} recovered, seed {seed}", make[0]);
}

#[test]
fn a_power_cut_on_xfs_keeps_what_was_synced() {
    if inside("power::a_power_cut_on_xfs_keeps_what_was_synced") {
        power_cuts(&["mkfs.xfs", "-q", "-f"]);
    }
}

#[test]
fn a_power_cut_on_ext4_keeps_what_was_synced() {
    if inside("power::a_power_cut_on_ext4_keeps_what_was_synced") {
        power_cuts(&["mkfs.ext4", "-q", "-F"]);
    }
}

#[test]
fn kills_at_random_moments_lose_nothing_that_was_answered() {
    if !inside("power::kills_at_random_moments_lose_nothing_that_was_answered") {
        return;
    }
    let dir = scratch();
    let seed = seed();
    let mut dice = Dice(seed | 1);
    let place = Place::directory(&dir.path().join("store"));
    let one = place.host(&dir.path().join("one"), "create");
    a_repo(&place, &one);
    let (mut mnt, _) = mount(&one);
    let mut steps = 0;
    let rounds = rounds(20);
    for round in 0..rounds {
        let staging = mnt.join("staging");
        let before = writers(&staging, seed.wrapping_add(round as u64 * 104_729), true);
        let after = under_load(&staging, before, &mut dice, || kill(&one, &mnt));
        let (again, recovered) = mount(&one);
        mnt = again;
        judge(&after, &format!("seed {seed}, round {round} ({recovered})"));
        steps += after.iter().map(|writer| writer.done).sum::<usize>();
        if round % 5 == 4 {
            another_host_sees_the_same(&place, dir.path(), &mnt.join("staging"));
        }
    }
    one.umount(&mnt);
    eprintln!("{rounds} kills, {steps} steps, seed {seed}");
}

// ---- a disk that fails ---------------------------------------------------------------------------------------------------

/// Calls of a daemon that fail from now on, until it is dropped.
struct Failing {
    strace: std::process::Child,
}

impl Failing {
    fn new(pid: u32, inject: &str) -> Self {
        let (call, _) = inject.split_once(':').unwrap();
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={inject}")])
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
    if !inside("power::a_disk_that_refuses_is_told_and_nothing_that_was_answered_is_lost") {
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
        // The disk is well again: so is everything else, without a new mount; but for a database whose log was not
        // synced, which says so.
        let start = std::time::Instant::now();
        let mut synced = File::open(&staging).unwrap().sync_all();
        while synced.is_err() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
            synced = File::open(&staging).unwrap().sync_all();
        }
        if synced.is_err() {
            let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
            assert!(status.contains("mount again"), "{what}: refused, and no word of what to do: {status}");
            assert!(inject.starts_with("fdatasync"), "{what}: only the log's own sync is not got over");
            kill(&one, &mnt);
            mnt = mount(&one).0;
            judge(std::slice::from_ref(&writer), &format!("{what}: mounted again"));
        }
        let staging = mnt.join("staging");
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
    if !inside("power::a_state_directory_that_cannot_be_used_is_refused_in_one_line_and_left_alone") {
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
    assert!(said.contains(&format!("process {daemon}, which is stopped")), "{said}");
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
    if !inside("power::a_missing_data_file_is_eio_for_its_file_named_in_status_and_refuses_the_commit") {
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
