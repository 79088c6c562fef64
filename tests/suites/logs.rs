//! Where a daemon's log goes: the host's journal, or its syslog, or a file; and that no host's log daemon stops a mount.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Host, SOON, data_packs, host_with_repo, inside, run, scratch, sync, until};

const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";
const EIO: Option<i32> = Some(5);
/// More than a socket's queue holds anywhere.
const FLOOD: usize = 1_500;

/// A log daemon of this test's own. The harness hides the host's.
fn listen(path: &str) -> UnixDatagram {
    let _ = fs::remove_file(path);
    let daemon = UnixDatagram::bind(path).unwrap();
    daemon.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    daemon
}

/// The lines that the daemon has not taken yet.
fn taken(daemon: &UnixDatagram) -> Vec<String> {
    let mut datagram = vec![0; 16 << 10];
    std::iter::from_fn(|| daemon.recv(&mut datagram).ok().map(|len| String::from_utf8_lossy(&datagram[..len]).into()))
        .collect()
}

/// Lines from the daemon, until one holds `text`.
fn taken_until(daemon: &UnixDatagram, text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    until(SOON, text, || {
        lines.extend(taken(daemon));
        lines.iter().any(|line: &String| line.contains(text))
    });
    lines
}

fn log_in_status(mnt: &Path) -> String {
    let status = fs::read_to_string(mnt.join(".datamon/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("log: ")).expect("status names the log").to_owned()
}

/// A mounted repo with a file that cannot be read: each try is a line in the log.
fn with_a_lost_pack(dir: &Path) -> (Host, std::path::PathBuf) {
    let (_place, host) = host_with_repo(dir);
    let mnt = host.mount("prod", "rw");
    fs::write(mnt.join("census/staging/a"), vec![7; 300_000]).unwrap();
    sync(&mnt.join("census/staging"));
    host.umount(&mnt);
    data_packs(&dir.join("store")).iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let mnt = host.mount("prod", "ro");
    (host, mnt)
}

fn read_in_vain(mnt: &Path) {
    let error = fs::read(mnt.join("census/labels/latest/a")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO);
}

#[test]
fn the_journal_has_the_log_of_a_daemon_and_status_says_so() {
    if !inside("logs::the_journal_has_the_log_of_a_daemon_and_status_says_so") {
        return;
    }
    let dir = scratch();
    let journal = listen(JOURNAL);
    let (host, mnt) = with_a_lost_pack(dir.path());
    taken(&journal);
    read_in_vain(&mnt);
    let pid = host.daemons(&mnt)[0];
    let refused = taken_until(&journal, "MESSAGE=refused").pop().unwrap();
    let head = format!(
        "PRIORITY=4\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=datamon\nSYSLOG_PID={pid}\nDATAMON_MOUNT={}\nMESSAGE=refused",
        mnt.display()
    );
    assert!(refused.starts_with(&head) && refused.lines().count() == 6, "{refused}");
    let said = log_in_status(&mnt);
    assert_eq!(said, format!("journal (journalctl -t datamon DATAMON_MOUNT={})", mnt.display()));
    host.umount(&mnt);
    let unmounted = taken_until(&journal, "MESSAGE=unmounted prod").pop().unwrap();
    assert!(unmounted.starts_with("PRIORITY=6\n"), "{unmounted}");

    // Another log that was asked for, and no other.
    let file = dir.path().join("mine.log");
    let mnt = host.mount("prod", &format!("log={}", file.display()));
    assert_eq!(log_in_status(&mnt), file.to_str().unwrap());
    host.umount(&mnt);
    until(SOON, "the last line", || fs::read_to_string(&file).unwrap().contains("unmounted prod"));
    assert_eq!(taken(&journal), Vec::<String>::new());
    assert!(!dir.path().join("one/state/log").exists(), "no file where the host keeps the log");
}

#[test]
fn a_journal_that_takes_nothing_or_is_started_again_stops_no_mount() {
    if !inside("logs::a_journal_that_takes_nothing_or_is_started_again_stops_no_mount") {
        return;
    }
    let dir = scratch();
    let journal = listen(JOURNAL);
    let (host, mnt) = with_a_lost_pack(dir.path());
    let start = Instant::now();
    (0..FLOOD).for_each(|_| read_in_vain(&mnt));
    eprintln!("{FLOOD} lines for a journal that takes none: {:?}", start.elapsed());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let queued = taken(&journal).len();
    assert!(queued < FLOOD, "{queued} lines were in the queue");
    read_in_vain(&mnt);
    let lines = taken_until(&journal, "MESSAGE=refused");
    assert!(lines[0].starts_with("PRIORITY=4\n") && lines[0].contains(" lines of this log are lost"), "{}", lines[0]);

    drop(journal);
    read_in_vain(&mnt);
    let journal = listen(JOURNAL);
    read_in_vain(&mnt);
    let lines = taken_until(&journal, "MESSAGE=refused");
    assert!(lines[0].contains(" lines of this log are lost"), "{}", lines[0]);
    assert_eq!(fs::read_dir(mnt.join("census/bundles")).unwrap().count(), 1);
    host.umount(&mnt);
}

#[test]
fn where_there_is_no_journal_syslog_has_the_log_and_where_that_is_not_a_file_has() {
    if !inside("logs::where_there_is_no_journal_syslog_has_the_log_and_where_that_is_not_a_file_has") {
        return;
    }
    let dir = scratch();
    let (_place, host) = host_with_repo(dir.path());
    let mnt = host.mount("prod", "rw");
    let file = dir.path().join("one/state/log/prod.log");
    assert_eq!(log_in_status(&mnt), file.to_str().unwrap());
    host.umount(&mnt);
    until(SOON, "the last line", || host.log().contains("INFO unmounted prod"));

    // A /dev of this namespace's own, where a socket can be made.
    let script = "mkdir $1 && mount -t tmpfs none $1 && cd $1 && \
                  for node in null zero urandom fuse; do touch $node && mount --bind /dev/$node $node; done && \
                  mount --rbind $1 /dev";
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(dir.path().join("dev")));
    let syslog = listen(SYSLOG);
    let mnt = host.mount("prod", "rw");
    let pid = host.daemons(&mnt)[0];
    assert_eq!(log_in_status(&mnt), format!("syslog (datamon[{pid}])"));
    host.umount(&mnt);
    let lines = taken_until(&syslog, "unmounted prod");
    assert!(lines[0].starts_with(&format!("<30>datamon[{pid}]: mounted prod")), "{}", lines[0]);
}
