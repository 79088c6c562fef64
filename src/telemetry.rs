//! Where the program's log goes: stderr in the foreground, else the host's log, else a file of bounded size.
//!
//! What is logged is decided where it happens; here is only where it goes. A log that cannot be written never stops
//! the mount.

pub mod host;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use host::HostLog;

/// A log file is put aside at this size; one older file is kept, so the log takes twice this.
const LOG_BYTES_MAX: u64 = 10 << 20;
/// What is logged unless `DATAMON_LOG` says otherwise.
const FILTER: &str = "info";

/// Where to.
#[derive(Debug)]
pub enum Destination {
    /// This terminal.
    Stderr,
    /// The journal or syslog.
    Host(HostLog),
    /// A file, and beside it the one before.
    File(PathBuf),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => f.write_str("stderr"),
            Self::Host(log) => write!(f, "{log}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Sends the log of this process to `destination`. The first call of a process counts, later ones do nothing.
pub fn start(destination: Destination, filter: Option<&str>) -> io::Result<()> {
    let filter = filter.unwrap_or(FILTER);
    let wrong =
        |why| io::Error::new(io::ErrorKind::InvalidInput, format!("DATAMON_LOG={filter}: {why} (like info or debug)"));
    let filter = EnvFilter::try_new(filter).map_err(wrong)?;
    let plain = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    // An error means that this process logs already.
    let _ = match destination {
        Destination::Stderr => plain.with_writer(io::stderr).try_init(),
        // It puts the time, and knows the level.
        Destination::Host(log) => plain.without_time().with_level(false).with_writer(log).try_init(),
        Destination::File(path) => plain.with_writer(Mutex::new(LogFile::open(&path)?)).try_init(),
    };
    Ok(())
}

/// A file that is put aside when it is full.
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            // The log names files: it is nobody else's.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        fs::rename(&self.path, older)?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.bytes >= LOG_BYTES_MAX {
            self.put_aside()?;
        }
        let written = self.file.write(line)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_one_older_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/mount.log");
        let mut log = LogFile::open(&path).unwrap();
        for _ in 0..3 {
            log.bytes = LOG_BYTES_MAX;
            log.write_all(b"line\n").unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"line\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    }
}
