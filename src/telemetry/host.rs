//! The log of the host: its journal, or else its syslog.
//!
//! A line is one datagram to the socket of the host's log daemon: in the journal's own form (systemd's "Native Journal
//! Protocol"), or as syslog has it (RFC 3164). A serving thread writes here, and it never waits for that daemon.
//!
//! # Invariants
//!
//! 1. What is not taken at once is dropped and counted; the count is told before the next line that is taken.
//! 2. A line has no line break and at most [`TEXT_BYTES_MAX`] bytes, so nobody can put a line of their own into the log.
//! 3. Each line finds the daemon anew, by the socket's path: one that was started again gets the next line.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// What the lines are found by: `journalctl -t datamon`.
const IDENT: &str = "datamon";
/// syslog(3)'s LOG_DAEMON.
const FACILITY: u8 = 3;
/// The rest of a longer line is cut off: rsyslog takes 8 KiB with its head, and a sentence is never that long.
const TEXT_BYTES_MAX: usize = 7 << 10;
/// Where the daemons listen, the one that keeps more first.
const PLACES: [(Kind, &str); 2] = [(Kind::Journal, "/run/systemd/journal/socket"), (Kind::Syslog, "/dev/log")];

/// By which form a line is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Fields, one a line.
    Journal,
    /// One text with its priority before it.
    Syslog,
}

/// The log of this host, for the daemon of one mount.
#[derive(Debug)]
pub struct HostLog {
    kind: Kind,
    path: PathBuf,
    socket: UnixDatagram,
    /// The mount point, by which the journal finds the lines of one mount.
    dir: String,
    /// Lines that nobody took, and that were not told of yet.
    missed: AtomicU64,
}

impl HostLog {
    /// The log of this host for the mount at `dir`, if somebody keeps one.
    pub fn find(dir: &Path) -> Option<Self> {
        PLACES.into_iter().find_map(|(kind, path)| Self::at(kind, Path::new(path), dir).ok())
    }

    fn at(kind: Kind, path: &Path, dir: &Path) -> io::Result<Self> {
        // A socket that was left behind refuses that.
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let dir = one_line(&dir.to_string_lossy()).into_owned();
        Ok(Self { kind, path: path.to_owned(), socket, dir, missed: AtomicU64::new(0) })
    }

    fn tell(&self, priority: u8, text: &str) {
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let is_told =
            missed == 0 || self.send(priority_of(Level::WARN), &format!("{missed} lines of this log are lost"));
        let lost = if is_told { 0 } else { missed };
        let lost = lost + u64::from(!is_told || !self.send(priority, text));
        self.missed.fetch_add(lost, Ordering::Relaxed);
    }

    fn send(&self, priority: u8, text: &str) -> bool {
        let text = one_line(cut(text));
        let pid = std::process::id();
        let datagram = match self.kind {
            Kind::Journal => format!(
                "PRIORITY={priority}\nSYSLOG_FACILITY={FACILITY}\nSYSLOG_IDENTIFIER={IDENT}\nSYSLOG_PID={pid}\n\
                 DATAMON_MOUNT={}\nMESSAGE={text}\n",
                self.dir
            ),
            // Without a time: syslog daemons put theirs, and know the zone.
            Kind::Syslog => format!("<{}>{IDENT}[{pid}]: {text}", FACILITY << 3 | priority),
        };
        self.socket.send_to(datagram.as_bytes(), &self.path).is_ok()
    }
}

impl fmt::Display for HostLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Journal => write!(f, "journal (journalctl -t {IDENT} DATAMON_MOUNT={})", self.dir),
            Kind::Syslog => write!(f, "syslog ({IDENT}[{}])", std::process::id()),
        }
    }
}

/// One event on its way: it is written whole.
pub struct Line<'a> {
    log: &'a HostLog,
    priority: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.log.tell(self.priority, String::from_utf8_lossy(text).trim_end());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for HostLog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, priority: priority_of(Level::INFO) }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { log: self, priority: priority_of(*event.level()) }
    }
}

/// syslog(3)'s words for it: err, warning, info, debug.
fn priority_of(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// Names of files may hold anything.
fn one_line(text: &str) -> Cow<'_, str> {
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, " ").into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn log(kind: Kind, path: &Path) -> HostLog {
        HostLog::at(kind, path, Path::new("/mnt/a\nb")).unwrap()
    }

    /// What the daemon takes next, without this process' number.
    fn taken(daemon: &UnixDatagram) -> Option<String> {
        daemon.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut datagram = vec![0; 16 << 10];
        let len = daemon.recv(&mut datagram).ok()?;
        let text = String::from_utf8(datagram[..len].to_vec()).unwrap();
        Some(text.replace(&std::process::id().to_string(), "PID"))
    }

    #[test]
    fn a_line_has_the_form_and_the_priority_that_each_daemon_knows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        for (level, priority) in [(Level::ERROR, 3), (Level::WARN, 4), (Level::INFO, 6), (Level::TRACE, 7)] {
            log(Kind::Journal, &path).tell(priority_of(level), "a\nPRIORITY=0");
            let fields = format!(
                "PRIORITY={priority}\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=datamon\nSYSLOG_PID=PID\n\
                 DATAMON_MOUNT=/mnt/a b\nMESSAGE=a PRIORITY=0\n"
            );
            assert_eq!(taken(&daemon).unwrap(), fields);
            log(Kind::Syslog, &path).tell(priority_of(level), "a");
            assert_eq!(taken(&daemon).unwrap(), format!("<{}>datamon[PID]: a", 24 + priority));
        }
        log(Kind::Syslog, &path).tell(6, &"ä".repeat(TEXT_BYTES_MAX));
        assert_eq!(taken(&daemon).unwrap().matches('ä').count(), TEXT_BYTES_MAX / 2);
    }

    #[test]
    fn a_daemon_that_takes_nothing_stops_nobody_and_is_told_how_much_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let log = log(Kind::Syslog, &path);
        let lines = 20_000;
        (0..lines).for_each(|n| log.tell(6, &n.to_string()));
        let queued = std::iter::from_fn(|| taken(&daemon)).count();
        assert!(queued > 0 && queued < lines, "{queued} were in the queue");
        log.tell(6, "again");
        assert_eq!(taken(&daemon).unwrap(), format!("<28>datamon[PID]: {} lines of this log are lost", lines - queued));
        assert_eq!(taken(&daemon).unwrap(), "<30>datamon[PID]: again");
        log.tell(6, "and again");
        assert_eq!(taken(&daemon).unwrap(), "<30>datamon[PID]: and again");
    }

    #[test]
    fn a_daemon_that_was_started_again_gets_the_next_line_and_one_that_is_gone_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let log = log(Kind::Syslog, &path);
        drop(daemon);
        assert!(HostLog::at(Kind::Syslog, &path, dir.path()).is_err(), "nobody listens");
        log.tell(6, "to nobody");
        std::fs::remove_file(&path).unwrap();
        log.tell(6, "to nobody");
        let daemon = UnixDatagram::bind(&path).unwrap();
        log.tell(6, "to the next");
        assert_eq!(taken(&daemon).unwrap(), "<28>datamon[PID]: 2 lines of this log are lost");
        assert_eq!(taken(&daemon).unwrap(), "<30>datamon[PID]: to the next");
    }
}
