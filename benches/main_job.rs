//! `make bench`: the main job beside the same work on the local disk, in one run.
//!
//! Every round does each piece of work first on the local disk and then through a mount over a `file://` store
//! in the same directory, so that a noisy machine disturbs both. What is printed is a Markdown table of
//! medians and the ratio local ÷ datamon (1.0 = as fast as the local disk), then the requests that each commit and
//! each read made of the store, and the daemons' peak memory.
//!
//! It is a measurement, not a test: it fails only when the work itself fails.
//!
//! Environment: `BENCH_DIR` (scratch directory, default `target/bench`), `BENCH_ROUNDS` (default 5),
//! `BENCH_MIB` (size of the large file, default 2048), `BENCH_FILES` (small files, default 20000).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const DATAMON: &str = env!("CARGO_BIN_EXE_datamon");
/// Set in the child that runs inside a mount namespace of its own.
const INSIDE: &str = "DATAMON_BENCH_INSIDE";
/// A piece of work in a directory.
type Work<'a> = &'a dyn Fn(&Path) -> Result<(), String>;
/// Seconds that one piece of work took on the local disk and through the mount.
type Pair = (f64, f64);

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return run_in_own_mount_namespace();
    }
    let settings = Settings::from_environment();
    match Bench::new(&settings).and_then(|bench| bench.run(&settings)) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_in_own_mount_namespace() -> ExitCode {
    let this = std::env::current_exe().expect("Linux names the running program");
    let status = Command::new("unshare").args(["-m", "--propagation", "private"]).arg(this).env(INSIDE, "1").status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: unshare: {error} (install util-linux)");
            ExitCode::FAILURE
        }
    }
}

struct Settings {
    scratch: PathBuf,
    rounds: usize,
    large_bytes: u64,
    files: usize,
}

impl Settings {
    fn from_environment() -> Self {
        let number =
            |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        let scratch = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("target/bench"), PathBuf::from);
        Self {
            scratch: std::path::absolute(&scratch).expect("a working directory"),
            rounds: number("BENCH_ROUNDS", 5) as usize,
            large_bytes: number("BENCH_MIB", 2048) << 20,
            files: number("BENCH_FILES", 20_000) as usize,
        }
    }
}

/// One scratch directory with a store, a context, and mounts that are undone when it goes.
struct Bench {
    dir: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for mount in ["mnt", "other"] {
            let _ =
                Command::new("umount").arg("-i").arg(self.dir.join(mount)).stderr(std::process::Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What was measured: a name and one pair a round.
struct Row {
    work: &'static str,
    rounds: Vec<Pair>,
}

impl Bench {
    fn new(settings: &Settings) -> Result<Self, String> {
        let _ = fs::remove_dir_all(&settings.scratch);
        let bench = Self { dir: settings.scratch.clone() };
        for sub in ["local", "mnt", "other", "store"] {
            fs::create_dir_all(bench.dir.join(sub)).map_err(|e| format!("{sub}: {e}"))?;
        }
        let store = format!("file://{}", bench.dir.join("store").display());
        bench.datamon("here", &["context", "create", "bench", "--store", &store])?;
        bench.mount("here", "mnt")?;
        Ok(bench)
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
        let source = self.dir.join("source");
        let local = self.dir.join("local").join(&repo);
        let staging = self.dir.join("mnt").join(&repo).join("staging");
        fs::create_dir(self.dir.join("mnt").join(&repo)).map_err(|e| format!("mkdir {repo}: {e}"))?;
        fs::create_dir_all(&local).map_err(|e| e.to_string())?;
        small_files(&source, settings.files, round as u64)?;

        let mut pairs = vec![both(&local, &staging, |to| copy_tree(&source, &to.join("small")))?];
        pairs.push(both(&local, &staging, |to| create_many(&to.join("created"), settings.files))?);
        pairs.push(both(&local, &staging, |to| quiet("find", &[&to.display().to_string()]))?);
        pairs.push(both(&local, &staging, |to| quiet("find", &[&to.display().to_string(), "-size", "+1000k"]))?);
        seen.requests.clear();
        let small_commit = self.counted("mnt", "copy-in and commit of the small files", seen, || {
            quiet("sync", &[&staging.display().to_string()])
        })?;
        pairs.push(both(&local, &staging, |to| write_large(&to.join("large"), settings.large_bytes, round as u64))?);
        let copied = seconds(|| copy_and_fsync(&local.join("large"), &local.join("large.copy")))?;
        let large_commit = self.counted("mnt", "commit of the large file (what was left of it)", seen, || {
            quiet("sync", &[&staging.display().to_string()])
        })?;
        pairs.push((copied, large_commit));
        fs::remove_file(local.join("large.copy")).map_err(|e| e.to_string())?;

        // A second host: its own state directory, nothing in its memory.
        self.mount(&repo, "other")?;
        let bundle = self.dir.join("other").join(&repo).join("labels/latest");
        let large = |at: &Path| read_file(&at.join("large"));
        let small = |at: &Path| read_tree(&at.join("small"));
        let works: [(&str, Work<'_>); 2] = [("the large file", &large), ("all small files", &small)];
        for (what, work) in works {
            for time in ["first", "second"] {
                if time == "first" {
                    drop_caches()?;
                }
                let name = format!("{time} read of {what}");
                let on_disk = seconds(|| work(&local))?;
                pairs.push((on_disk, self.counted("other", &name, seen, || work(&bundle))?));
            }
        }
        for mount in ["mnt", "other"] {
            seen.peak_kib = seen.peak_kib.max(self.daemon_peak_kib(mount));
        }
        self.unmount("other")?;
        fs::remove_dir_all(&local).map_err(|e| e.to_string())?;
        fs::remove_dir_all(&source).map_err(|e| e.to_string())?;
        Ok((pairs, small_commit))
    }

    fn mount(&self, host: &str, at: &str) -> Result<(), String> {
        let dir = self.dir.join(at).display().to_string();
        self.datamon(host, &["mount", "bench", &dir])
    }

    fn unmount(&self, at: &str) -> Result<(), String> {
        quiet("umount", &["-i", &self.dir.join(at).display().to_string()])
    }

    /// Runs datamon as on a host of this name: hosts share the contexts, not the state.
    fn datamon(&self, host: &str, args: &[&str]) -> Result<(), String> {
        let status = Command::new(DATAMON)
            .args(args)
            .env("DATAMON_CONFIG_DIR", self.dir.join("config"))
            .env("DATAMON_STATE_DIR", self.dir.join("state").join(host))
            .env("DATAMON_CACHE_DIR", self.dir.join("cache").join(host))
            .stdout(std::process::Stdio::null())
            .status()
            .map_err(|e| format!("{DATAMON}: {e}"))?;
        if status.success() { Ok(()) } else { Err(format!("datamon {} failed", args.join(" "))) }
    }

    fn status(&self, mount: &str, key: &str) -> Option<String> {
        let status = fs::read_to_string(self.dir.join(mount).join(".datamon/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).map(str::to_owned)
    }

    /// Seconds that `work` takes, and the requests that the daemon makes meanwhile.
    fn counted(
        &self,
        mount: &str,
        name: &str,
        seen: &mut Seen,
        work: impl FnOnce() -> Result<(), String>,
    ) -> Result<f64, String> {
        let before = self.requests(mount);
        let took = seconds(work)?;
        let made = self.requests(mount).iter().zip(&before).map(|(now, before)| now - before).collect();
        seen.requests.push((name.to_owned(), made));
        Ok(took)
    }

    /// Requests so far: read, write, list, and again.
    fn requests(&self, mount: &str) -> Vec<u64> {
        let line = self.status(mount, "requests").unwrap_or_default();
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
    }

    fn daemon_peak_kib(&self, mount: &str) -> u64 {
        let Some(pid) = self.status(mount, "pid") else {
            return 0;
        };
        let process = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
        let peak = process.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
    }
}

/// The same work on the local disk and through the mount.
fn both(local: &Path, mounted: &Path, work: impl Fn(&Path) -> Result<(), String>) -> Result<Pair, String> {
    Ok((seconds(|| work(local))?, seconds(|| work(mounted))?))
}

fn seconds(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn quiet(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn drop_caches() -> Result<(), String> {
    quiet("sync", &[])?;
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("drop_caches: {e} (run as root)"))
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
    values[values.len() / 2]
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
