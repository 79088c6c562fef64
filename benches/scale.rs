//! `make scale`: what grows with the number of files, and how: 1,000, 10,000, 100,000 and a million files of 1 KiB in
//! directories of 1,000, and one directory of 100,000 entries.
//!
//! For each number a repo of its own: copy-in beside the local disk, the commit once everything is uploaded, the commit of one
//! changed file after it, memory of the daemon, then on a second host the time from mount to first stat, `find`,
//! `ls -l`, a copy of everything out, and the removal of the tree in staging. Times a file stay about the same where
//! nothing is quadratic.
//!
//! It is a measurement, not a test: it fails only when the work itself fails.
//!
//! Environment: `BENCH_DIR` (scratch directory, default `target/bench`), `SCALE_FILES` (the largest number, default 1000000).

mod stage;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use stage::{Stage, drop_caches, quiet, seconds, setting};

/// Files in one directory.
const PER_DIRECTORY: usize = 1000;
/// Entries of the one large directory.
const LARGE_DIRECTORY: usize = 100_000;
const FILE_BYTES: usize = 1024;
/// How long the background may take to upload what was copied in.
const DRAIN: Duration = Duration::from_secs(1800);
/// What may wait for the commit: an open pack, and a little.
const OPEN_PACK_BYTES_MAX: u64 = 20 << 20;
/// Nothing has changed for so long: the background has nothing to do. Is part of what is printed.
const QUIET: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    stage::in_own_mount_namespace(|| {
        let stage = Stage::new(stage::scratch(), &["mnt", "other"])?;
        let largest = setting("SCALE_FILES", 1_000_000) as usize;
        let sizes = [1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|files| *files <= largest);
        let mut columns = Vec::new();
        for files in sizes {
            columns.push(Column::measure(&stage, files, PER_DIRECTORY)?);
            eprintln!("{files} files done");
        }
        if LARGE_DIRECTORY <= largest {
            columns.push(Column::measure(&stage, LARGE_DIRECTORY, LARGE_DIRECTORY)?);
        }
        Ok(table(&columns))
    })
}

/// What was measured for one number of files.
struct Column {
    title: String,
    cells: Vec<(&'static str, String)>,
}

impl Column {
    fn measure(stage: &Stage, files: usize, per_directory: usize) -> Result<Self, String> {
        let repo = format!("files{files}-{per_directory}");
        let title =
            if per_directory == PER_DIRECTORY { format!("{files}") } else { format!("{files} in one directory") };
        let mut column = Self { title, cells: Vec::new() };
        let (local, mount) = (stage.dir.join("local").join(&repo), stage.dir.join("mnt").join(&repo));
        let staging = mount.join("staging");
        let staging_text = staging.display().to_string();
        // A daemon of its own: its memory is this number's.
        stage.mount("here", "mnt")?;
        fs::create_dir(&mount).map_err(|e| format!("mkdir {repo}: {e}"))?;
        fs::create_dir(&local).map_err(|e| e.to_string())?;
        let on_disk = seconds(|| write_files(&local, files, per_directory))?;
        fs::remove_dir_all(&local).map_err(|e| e.to_string())?;
        let mounted = seconds(|| write_files(&staging, files, per_directory))?;
        column.add("copy-in, files a second", format!("{:.0}", files as f64 / mounted));
        column.add("local disk ÷ datamon", format!("{:.2}", on_disk / mounted));
        let drained = seconds(|| drain(stage, &format!("mnt/{repo}")))?;
        column.add("then uploaded within, s", format!("{drained:.1}"));
        column.add("memory of the daemon, peak MiB", format!("{}", stage.memory_kib("mnt").0 >> 10));
        let before = stage.requests("mnt");
        let commit = seconds(|| quiet("sync", &[&staging_text]))?;
        column.add("commit, s", format!("{commit:.2}"));
        column.add("requests of it", made(&before, &stage.requests("mnt")));
        fs::write(staging.join("d0/f0"), b"changed").map_err(|e| e.to_string())?;
        let before = stage.requests("mnt");
        let again = seconds(|| quiet("sync", &[&staging_text]))?;
        column.add("commit of one changed file, s", format!("{again:.2}"));
        column.add("requests of that", made(&before, &stage.requests("mnt")));
        column.add("memory after the commits, peak MiB", format!("{}", stage.memory_kib("mnt").0 >> 10));

        drop_caches()?;
        let first = Instant::now();
        stage.mount(&format!("other-{repo}"), "other")?;
        let bundle = stage.dir.join("other").join(&repo).join("labels/latest");
        fs::metadata(bundle.join("d0/f1")).map_err(|e| e.to_string())?;
        column.add("mount to first stat of a file, s", format!("{:.2}", first.elapsed().as_secs_f64()));
        let find = bundle.display().to_string();
        let cold = seconds(|| quiet("find", &[&find, "-type", "f"]))?;
        column.add("find -type f, cold, s", format!("{cold:.2}"));
        let listed = seconds(|| quiet("find", &[&find, "-size", "+1000k"]))?;
        column.add("stat of every file, s", format!("{listed:.2}"));
        let large = bundle.join("d0").display().to_string();
        column.add("ls -l of one directory, s", format!("{:.2}", seconds(|| quiet("ls", &["-l", &large]))?));
        column.add("memory of the reader, peak MiB", format!("{}", stage.memory_kib("other").0 >> 10));
        stage.unmount("other")?;

        // Another daemon again: it has seen nothing.
        drop_caches()?;
        stage.mount(&format!("other-{repo}"), "other")?;
        let before = stage.requests("other");
        let out = seconds(|| quiet("cp", &["-r", &find, &local.display().to_string()]))?;
        column.add("cp -r of all, cold, files a second", format!("{:.0}", files as f64 / out));
        column.add("requests of that", made(&before, &stage.requests("other")));
        column.add("memory of that reader, peak MiB", format!("{}", stage.memory_kib("other").0 >> 10));
        stage.unmount("other")?;
        fs::remove_dir_all(&local).map_err(|e| e.to_string())?;

        let removed = seconds(|| quiet("rm", &["-rf", &staging.join("d0").display().to_string()]))?;
        let part = files.min(per_directory);
        column.add("rm -rf of one directory of the base, files a second", format!("{:.0}", part as f64 / removed));
        stage.unmount("mnt")?;
        Ok(column)
    }

    fn add(&mut self, what: &'static str, value: String) {
        self.cells.push((what, value));
    }
}

/// Waits until the background has uploaded all but what stays in the open pack until the commit.
fn drain(stage: &Stage, repo: &str) -> Result<(), String> {
    let start = Instant::now();
    let mut last = (u64::MAX, Instant::now());
    while start.elapsed() < DRAIN {
        let said = stage.status(repo, "pending_bytes");
        let pending =
            said.and_then(|text| text.parse().ok()).ok_or(format!("{repo}: no pending_bytes in its status"))?;
        if pending != last.0 {
            last = (pending, Instant::now());
        } else if pending <= OPEN_PACK_BYTES_MAX && last.1.elapsed() > QUIET {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("{repo}: {} bytes not uploaded within {DRAIN:?}", last.0))
}

/// Requests made in between: read, write, list.
fn made(before: &[u64], now: &[u64]) -> String {
    let counts: Vec<_> = now.iter().zip(before).take(3).map(|(now, before)| (now - before).to_string()).collect();
    counts.join(" + ")
}

/// `files` files of 1 KiB, each with bytes of its own.
fn write_files(root: &Path, files: usize, per_directory: usize) -> Result<(), String> {
    let mut bytes = [0_u8; FILE_BYTES];
    for number in 0..files {
        let dir = root.join(format!("d{}", number / per_directory));
        if number % per_directory == 0 {
            fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        let mut state = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for word in bytes.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        fs::write(dir.join(format!("f{number}")), bytes).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    Ok(())
}

fn table(columns: &[Column]) -> String {
    let titles: Vec<_> = columns.iter().map(|column| column.title.as_str()).collect();
    let mut text = format!("| | {} |\n|---|{}\n", titles.join(" | "), "---:|".repeat(columns.len()));
    let first = columns.first().map_or(&[][..], |column| &column.cells);
    for (at, (what, _)) in first.iter().enumerate() {
        let values: Vec<_> = columns.iter().map(|column| column.cells[at].1.as_str()).collect();
        text += &format!("| {what} | {} |\n", values.join(" | "));
    }
    text
}
