//! What the benchmarks share: a mount namespace of their own, and a scratch directory with a store, hosts and mounts.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const DATAMON: &str = env!("CARGO_BIN_EXE_datamon");
/// Set in the child that runs inside a mount namespace of its own.
const INSIDE: &str = "DATAMON_BENCH_INSIDE";

/// Runs `measure` in a mount namespace of its own and prints the table that it answers.
pub fn in_own_mount_namespace(measure: impl FnOnce() -> Result<String, String>) -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        return match measure() {
            Ok(table) => {
                println!("{table}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("bench: {error}");
                ExitCode::FAILURE
            }
        };
    }
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

/// A number that the environment gives.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The scratch directory (`BENCH_DIR`).
pub fn scratch() -> PathBuf {
    let dir = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("target/bench"), PathBuf::from);
    std::path::absolute(&dir).expect("a working directory")
}

/// A scratch directory with a store, the context `bench`, and mounts that are undone when it goes.
pub struct Stage {
    pub dir: PathBuf,
    mounts: &'static [&'static str],
}

impl Drop for Stage {
    fn drop(&mut self) {
        for mount in self.mounts {
            let _ = Command::new("umount").arg("-i").arg(self.dir.join(mount)).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Stage {
    /// A stage in `dir`, where nothing else may be, with these directories to mount at.
    pub fn new(dir: PathBuf, mounts: &'static [&'static str]) -> Result<Self, String> {
        let _ = fs::remove_dir_all(&dir);
        let stage = Self { dir, mounts };
        for sub in ["local", "store"].iter().chain(mounts) {
            fs::create_dir_all(stage.dir.join(sub)).map_err(|e| format!("{sub}: {e}"))?;
        }
        let store = format!("file://{}", stage.dir.join("store").display());
        stage.datamon("here", &["context", "create", "bench", "--store", &store])?;
        Ok(stage)
    }

    pub fn mount(&self, host: &str, at: &str) -> Result<(), String> {
        let dir = self.dir.join(at).display().to_string();
        self.datamon(host, &["mount", "bench", &dir])
    }

    /// Unmounts without a commit.
    pub fn unmount(&self, at: &str) -> Result<(), String> {
        quiet("umount", &["-i", &self.dir.join(at).display().to_string()])
    }

    /// Runs datamon as on a host of this name: hosts share the contexts, not the state.
    pub fn datamon(&self, host: &str, args: &[&str]) -> Result<(), String> {
        let status = Command::new(DATAMON)
            .args(args)
            .env("DATAMON_CONFIG_DIR", self.dir.join("config"))
            .env("DATAMON_STATE_DIR", self.dir.join("state").join(host))
            .env("DATAMON_CACHE_DIR", self.dir.join("cache").join(host))
            .stdout(Stdio::null())
            .status()
            .map_err(|e| format!("{DATAMON}: {e}"))?;
        if status.success() { Ok(()) } else { Err(format!("datamon {} failed", args.join(" "))) }
    }

    /// A value of the status that `below` a mount is answered.
    pub fn status(&self, below: &str, key: &str) -> Option<String> {
        let status = fs::read_to_string(self.dir.join(below).join(".datamon/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).map(str::to_owned)
    }

    /// Requests so far: read, write, list, and again.
    pub fn requests(&self, mount: &str) -> Vec<u64> {
        let line = self.status(mount, "requests").unwrap_or_default();
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
    }

    /// The most memory that the daemon had, and what it has now, in KiB.
    pub fn memory_kib(&self, mount: &str) -> (u64, u64) {
        let Some(pid) = self.status(mount, "pid") else { return (0, 0) };
        let process = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
        let value = |key: &str| {
            let line = process.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
        };
        (value("VmHWM:"), value("VmRSS:"))
    }
}

/// Seconds that `work` takes.
pub fn seconds(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// A command that has to succeed; what it prints is of no interest.
pub fn quiet(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Lets the kernel forget what it has of files.
pub fn drop_caches() -> Result<(), String> {
    quiet("sync", &[])?;
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("drop_caches: {e} (run as root)"))
}
