//! `make bench`: the main job beside the same work on the local disk, in one run.
//!
//! Every round does each piece of work on the local disk and through a mount over a `file://` store in the same directory,
//! in turns one or the other first, so that a noisy machine disturbs both. Before work of gigabytes the disk is given a rest:
//! many cloud disks take a few GiB at once and then a fifth as fast, and who comes second would pay for the first. What is printed is a Markdown table of
//! medians and the ratio local ÷ datamon (1.0 = as fast as the local disk), then the requests that each commit and
//! each read made of the store, and the daemons' peak memory.
//!
//! It is a measurement, not a test: it fails only when the work itself fails.
//!
//! Environment: `BENCH_DIR` (scratch directory, default `target/bench`), `BENCH_ROUNDS` (default 5), `BENCH_REST` (seconds of
//! rest, default 8), `BENCH_MIB` (size of the large file, default 2048), `BENCH_FILES` (small files, default 20000).

mod stage;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use stage::{Stage, drop_caches, quiet, seconds, setting};

/// A piece of work in a directory.
type Work<'a> = &'a dyn Fn(&Path) -> Result<(), String>;
/// Seconds that one piece of work took on the local disk and through the mount.
type Pair = (f64, f64);

fn main() -> ExitCode {
    stage::in_own_mount_namespace(|| {
        let settings = Settings::from_environment();
        Bench::new(&settings)?.run(&settings)
    })
}

struct Settings {
    scratch: PathBuf,
    rounds: usize,
    rest: Duration,
    large_bytes: u64,
    files: usize,
}

impl Settings {
    fn from_environment() -> Self {
        Self {
            scratch: stage::scratch(),
            rounds: setting("BENCH_ROUNDS", 5) as usize,
            rest: Duration::from_secs(setting("BENCH_REST", 8)),
            large_bytes: setting("BENCH_MIB", 2048) << 20,
            files: setting("BENCH_FILES", 20_000) as usize,
        }
    }
}

struct Bench {
    stage: Stage,
}

/// What was measured: a name and one pair a round.
struct Row {
    work: &'static str,
    rounds: Vec<Pair>,
}

impl Bench {
    fn new(settings: &Settings) -> Result<Self, String> {
        let stage = Stage::new(settings.scratch.clone(), &["mnt", "other"])?;
        stage.mount("here", "mnt")?;
        Ok(Self { stage })
    }

    fn run(&self, settings: &Settings) -> Result<String, String> {
        let names = [
            "copy in small files (cp -r)",
            "creates (empty files)",
            "find (warm)",
            "stat of every file (find -size, warm)",
            "write large file + fsync",
            "commit of the large file / cp + fsync of it",
            "first read of the large file, cold",
            "second read of it",
            "read all small files, cold",
            "read all small files, second time",
        ];
        let mut rows: Vec<Row> = names.iter().map(|work| Row { work, rounds: Vec::new() }).collect();
        let mut commits = Vec::new();
        let mut seen = Seen::default();
        for round in 0..settings.rounds {
            let (pairs, commit) = self.round(round, settings, &mut seen)?;
            for (row, pair) in rows.iter_mut().zip(pairs) {
                row.rounds.push(pair);
            }
            commits.push(commit);
            eprintln!("round {} of {} done", round + 1, settings.rounds);
        }
        Ok(table(&rows, &mut commits, &seen, settings))
    }

    /// One round: every piece of work once, on fresh bytes, so that nothing deduplicates onto an earlier round.
    fn round(&self, round: usize, settings: &Settings, seen: &mut Seen) -> Result<(Vec<Pair>, f64), String> {
        let repo = format!("round{round}");
        let dir = &self.stage.dir;
        let source = dir.join("source");
        let local = dir.join("local").join(&repo);
        let staging = dir.join("mnt").join(&repo).join("staging");
        fs::create_dir(dir.join("mnt").join(&repo)).map_err(|e| format!("mkdir {repo}: {e}"))?;
        fs::create_dir_all(&local).map_err(|e| e.to_string())?;
        small_files(&source, settings.files, round as u64)?;

        let both = |work: Work<'_>| {
            let in_turns = Turns { mounted_first: round % 2 == 1, rest: Duration::ZERO };
            in_turns.take(|| work(&local), || seconds(|| work(&staging)))
        };
        let rested = Turns { mounted_first: round % 2 == 1, rest: settings.rest };
        let mut pairs = vec![both(&|to| copy_tree(&source, &to.join("small")))?];
        pairs.push(both(&|to| create_many(&to.join("created"), settings.files))?);
        pairs.push(both(&|to| quiet("find", &[&to.display().to_string()]))?);
        pairs.push(both(&|to| quiet("find", &[&to.display().to_string(), "-size", "+1000k"]))?);
        seen.requests.clear();
        let small_commit = self.counted("mnt", "copy-in and commit of the small files", seen, || {
            quiet("sync", &[&staging.display().to_string()])
        })?;
        let write = |to: &Path| write_large(&to.join("large"), settings.large_bytes, round as u64);
        pairs.push(rested.take(|| write(&local), || seconds(|| write(&staging)))?);
        let copy = || copy_and_fsync(&local.join("large"), &local.join("large.copy"));
        let name = "commit of the large file (what was left of it)";
        let commit = || quiet("sync", &[&staging.display().to_string()]);
        pairs.push(rested.take(copy, || self.counted("mnt", name, seen, commit))?);
        fs::remove_file(local.join("large.copy")).map_err(|e| e.to_string())?;

        // A second host: its own state directory, nothing in its memory.
        self.stage.mount(&repo, "other")?;
        let bundle = dir.join("other").join(&repo).join("labels/latest");
        let large = |at: &Path| read_file(&at.join("large"));
        let small = |at: &Path| read_tree(&at.join("small"));
        let works: [(&str, Work<'_>); 2] = [("the large file", &large), ("all small files", &small)];
        for (what, work) in works {
            for time in ["first", "second"] {
                let turns = if time == "first" { &rested } else { &Turns { rest: Duration::ZERO, ..rested } };
                if time == "first" {
                    drop_caches()?;
                }
                let name = format!("{time} read of {what}");
                pairs.push(turns.take(|| work(&local), || self.counted("other", &name, seen, || work(&bundle)))?);
            }
        }
        for mount in ["mnt", "other"] {
            seen.peak_kib = seen.peak_kib.max(self.stage.memory_kib(mount).0);
        }
        self.stage.unmount("other")?;
        fs::remove_dir_all(&local).map_err(|e| e.to_string())?;
        fs::remove_dir_all(&source).map_err(|e| e.to_string())?;
        Ok((pairs, small_commit))
    }

    /// Seconds that `work` takes, and the requests that the daemon makes meanwhile.
    fn counted(
        &self,
        mount: &str,
        name: &str,
        seen: &mut Seen,
        work: impl FnOnce() -> Result<(), String>,
    ) -> Result<f64, String> {
        let before = self.stage.requests(mount);
        let took = seconds(work)?;
        let made = self.stage.requests(mount).iter().zip(&before).map(|(now, before)| now - before).collect();
        seen.requests.push((name.to_owned(), made));
        Ok(took)
    }
}

/// Who goes first, and how long the disk rests before each.
struct Turns {
    mounted_first: bool,
    rest: Duration,
}

impl Turns {
    /// The same work on the local disk and through the mount, which measures itself.
    fn take(
        &self,
        local: impl FnOnce() -> Result<(), String>,
        mounted: impl FnOnce() -> Result<f64, String>,
    ) -> Result<Pair, String> {
        let rest = || {
            if self.rest.is_zero() {
                return Ok(());
            }
            let synced = quiet("sync", &[]);
            std::thread::sleep(self.rest);
            synced
        };
        rest()?;
        if self.mounted_first {
            let mounted = mounted()?;
            rest()?;
            return Ok((seconds(local)?, mounted));
        }
        let local = seconds(local)?;
        rest()?;
        Ok((local, mounted()?))
    }
}

/// Bytes that do not compress and do not repeat: xorshift64*, seeded.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(0x9E37_79B9_7F4A_7C15 ^ (seed + 1).wrapping_mul(0xBF58_476D_1CE4_E5B9))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            word.copy_from_slice(&next[..word.len()]);
        }
    }
}

/// `count` files of 0.5 to 8 KiB in directories of 200.
fn small_files(root: &Path, count: usize, seed: u64) -> Result<(), String> {
    let mut noise = Noise::new(seed);
    let mut bytes = vec![0; 8192];
    for number in 0..count {
        let dir = root.join(format!("d{:04}", number / 200));
        if number % 200 == 0 {
            fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        }
        let len = 512 + (noise.next() % 7680) as usize;
        noise.fill(&mut bytes[..len]);
        fs::write(dir.join(format!("f{number}")), &bytes[..len]).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    quiet("cp", &["-r", &from.display().to_string(), &to.display().to_string()])
}

fn create_many(dir: &Path, count: usize) -> Result<(), String> {
    fs::create_dir(dir).map_err(|e| e.to_string())?;
    for number in 0..count {
        File::create(dir.join(format!("c{number}"))).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn write_large(path: &Path, bytes: u64, seed: u64) -> Result<(), String> {
    let mut noise = Noise::new(seed + 1000);
    let mut buffer = vec![0; 1 << 20];
    noise.fill(&mut buffer);
    let mut file = File::create(path).map_err(|e| e.to_string())?;
    for _ in 0..bytes >> 20 {
        // A new word in each 4 KiB makes every chunk new without the price of filling it.
        for page in buffer.chunks_mut(4096) {
            page[..8].copy_from_slice(&noise.next().to_le_bytes());
        }
        file.write_all(&buffer).map_err(|e| e.to_string())?;
    }
    file.sync_all().map_err(|e| e.to_string())
}

fn copy_and_fsync(from: &Path, to: &Path) -> Result<(), String> {
    quiet("cp", &["--reflink=never", &from.display().to_string(), &to.display().to_string()])?;
    File::open(to).and_then(|file| file.sync_all()).map_err(|e| e.to_string())
}

fn read_file(path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let expected = file.metadata().map_err(|e| e.to_string())?.size();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).map_err(|e| format!("{}: {e}", path.display()))? {
            0 if total == expected => return Ok(()),
            0 => return Err(format!("{}: {total} of {expected} bytes", path.display())),
            n => total += n as u64,
        }
    }
}

fn read_tree(dir: &Path) -> Result<(), String> {
    for entry in fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let entry = entry.map_err(|e| e.to_string())?;
        if entry.file_type().map_err(|e| e.to_string())?.is_dir() {
            read_tree(&entry.path())?;
        } else {
            read_file(&entry.path())?;
        }
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// What was looked at beside the time: of the last round the requests, of all the peak.
#[derive(Default)]
struct Seen {
    requests: Vec<(String, Vec<u64>)>,
    peak_kib: u64,
}

fn table(rows: &[Row], commits: &mut [f64], seen: &Seen, settings: &Settings) -> String {
    let mut text = format!(
        "{} small files, large file {} MiB, medians of {} rounds\n\n| work | local disk, s | datamon, s | local ÷ datamon |\n|---|---:|---:|---:|\n",
        settings.files,
        settings.large_bytes >> 20,
        settings.rounds
    );
    for row in rows {
        let mut local: Vec<f64> = row.rounds.iter().map(|pair| pair.0).collect();
        let mut mounted: Vec<f64> = row.rounds.iter().map(|pair| pair.1).collect();
        let mut ratios: Vec<f64> = row.rounds.iter().map(|pair| pair.0 / pair.1).collect();
        let (local, mounted, ratio) = (median(&mut local), median(&mut mounted), median(&mut ratios));
        text += &format!("| {} | {local:.3} | {mounted:.3} | {ratio:.2} |\n", row.work);
    }
    let creates = rows.iter().find(|row| row.work.starts_with("creates")).map_or(0.0, |row| {
        let mut times: Vec<f64> = row.rounds.iter().map(|pair| pair.1).collect();
        settings.files as f64 / median(&mut times)
    });
    text += &format!("\ncreates a second: {creates:.0}\n");
    text += &format!("commit after the small files: {:.3} s\n", median(commits));
    text += &format!("peak resident memory of a daemon: {} MiB\n\n", seen.peak_kib >> 10);
    text += "| requests of the store | GET | PUT | LIST | repeated |\n|---|---:|---:|---:|---:|\n";
    for (what, made) in &seen.requests {
        let cells: Vec<_> = made.iter().map(u64::to_string).collect();
        text += &format!("| {what} | {} |\n", cells.join(" | "));
    }
    text
}
