//! The asking side of the two ioctls (`model::job`): how commands reach the daemon of a mount.
//!
//! The first ioctl on a mount runs in a child under a time limit: a daemon that is stopped would hold the caller in the
//! kernel, where not even a kill reaches it, so what is held is the child.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::output::{Failure, print_json, print_line};
use crate::cli::progress::Shown;
use crate::cli::umount;
use crate::local::sys;
use crate::model::job::{self, Committed, Job, Progress, Verb};

/// The kind of a failure: the daemon is there and says nothing.
pub const UNANSWERED: &str = "unanswered";
/// How long the daemon may take to answer that it starts.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Says on stderr what did not simply go on from what was: of the history, and of labels.
pub fn tell_notes(done: &Committed) {
    if done.diverged {
        eprintln!("datamon: {}: latest was no longer the base: both bundles are kept", done.repo);
    }
    done.label_notes.iter().for_each(|note| eprintln!("datamon: {}: {note}", done.repo));
}

/// Carries out `verb` on the tree that `path` lies in, and shows how far it is.
///
/// What a person is to know besides the commits goes to stderr.
pub fn carry_out(path: &Path, verb: &Verb, mut shown: Shown) -> Result<Vec<Committed>, Failure> {
    let job = submit_in_child(path, verb)?;
    let file = File::open(path).map_err(|why| unreachable_daemon(path, &why))?;
    loop {
        match ask::<_, Progress>(&file, job::WAIT, &job).map_err(|why| unreachable_daemon(path, &why))? {
            Progress::Running { line, done, total } => shown.show(&line, done, total),
            Progress::Done { commits, notes } => {
                drop(shown);
                notes.iter().for_each(|note| eprintln!("datamon: {note}"));
                return Ok(commits);
            }
            Progress::Failed { kind, message, commits } => {
                drop(shown);
                // Of several trees some may have been committed: their bundles are there.
                commits.iter().filter(|done| done.changed).for_each(|done| print_line(&done.bundle));
                return Err(Failure::new(known_kind(&kind), message));
            }
        }
    }
}

/// The daemon's word for a failure as one of ours.
fn known_kind(kind: &str) -> &'static str {
    let known = ["denied", "unavailable", "corrupt", "conflict", "not_found", "busy", "empty", "diverged", "usage"];
    known.into_iter().find(|known| *known == kind).unwrap_or("failed")
}

fn unreachable_daemon(path: &Path, why: &io::Error) -> Failure {
    if sys::is_not_supported(why) {
        return Failure::new(
            "not_datamon",
            format!("{}: not in a datamon mount (mount one: datamon mount)", path.display()),
        );
    }
    match why.kind() {
        io::ErrorKind::ResourceBusy => {
            let sentence =
                format!("{}: the staging tree is closed for a moment, or another mount has it", path.display());
            Failure::new("busy", format!("{sentence} (try again, or use the other mount: mount --bind)"))
        }
        // Permission denied (EACCES) is the kernel's word for a directory that cannot be opened; this one is the daemon's.
        _ if sys::is_not_permitted(why) => {
            let sentence = format!("{}: not permitted to this user", path.display());
            let remedy =
                "to commit one may write to the tree's root; to unmount or remount one is who mounted it, or root";
            Failure::new("denied", format!("{sentence} ({remedy})"))
        }
        io::ErrorKind::NotConnected => Failure::new(
            "dead",
            format!("{}: its daemon has ended (mount it again; nothing staged is lost)", path.display()),
        ),
        // What is wrong in there the daemon has told.
        _ if sys::is_failed(why) => {
            let told = last_error(path).map_or_else(String::new, |told| format!(": {told}"));
            Failure::new("failed", format!("{}: {why}{told}", path.display()))
        }
        _ => Failure::new("failed", format!("{}: {why}", path.display())),
    }
}

/// What the mount that `path` lies in has said last of what it refused.
fn last_error(path: &Path) -> Option<String> {
    let mounts = umount::mounts().ok()?;
    let status = std::fs::read_to_string(umount::find_above(&mounts, path)?.dir.join(".datamon/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("last_error: ").map(str::to_owned))
}

/// Of a daemon that is there and says nothing.
fn unanswered(path: &Path) -> Failure {
    let place = umount::mounts().ok().and_then(|mounts| Some(umount::find_above(&mounts, path)?.connection()));
    let place = place.unwrap_or_else(|| "/sys/fs/fuse/connections/*".to_owned());
    let remedy = format!("it may be stopped; `echo 1 > {place}/abort` ends the mount, and nothing staged is lost");
    Failure::new(UNANSWERED, format!("{}: its daemon gives no answer within 10 s ({remedy})", path.display()))
}

/// One question and its answer.
fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(file: &File, number: u32, question: &Q) -> io::Result<A> {
    let too_long = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "too long for a command (at most 3 KiB: write a longer message to .datamon/message, which the next commit takes)",
        )
    };
    let mut buffer = job::encode(question).ok_or_else(too_long)?;
    sys::ioctl(file, u64::from(number), &mut buffer)?;
    job::decode(&buffer).ok_or_else(|| io::Error::other("the daemon answered in an unknown tongue"))
}

/// The hidden command `submit`: opens the path, submits the verb, prints the answer. Run by [`submit_in_child`].
pub fn submit(path: &Path, verb: &str) -> Result<(), Failure> {
    let verb: Verb = serde_json::from_str(verb).map_err(|why| Failure::usage(format!("{verb}: {why}")))?;
    let asked = File::open(path).and_then(|file| ask::<_, Job>(&file, job::SUBMIT, &verb));
    let job = asked.map_err(|why| unreachable_daemon(path, &why))?;
    print_json(&serde_json::json!({ "job": job.job }));
    Ok(())
}

fn submit_in_child(path: &Path, verb: &Verb) -> Result<Job, Failure> {
    let failed = |why: String| Failure::new("failed", format!("{}: {why}", path.display()));
    let verb = serde_json::to_string(verb).map_err(|why| failed(why.to_string()))?;
    let mut child = Command::new("/proc/self/exe")
        .args(["submit", &verb])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|why| failed(why.to_string()))?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|why| failed(why.to_string()))? {
            Some(status) => break status,
            None if start.elapsed() > ANSWER_LIMIT => {
                // It may sit in the kernel until the daemon goes on; it is not waited for.
                let _ = child.kill();
                return Err(unanswered(path));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        use std::io::Read;
        out.read_to_string(&mut text).map_err(|why| failed(why.to_string()))?;
    }
    if status.success() {
        return serde_json::from_str(&text).map_err(|why| failed(why.to_string()));
    }
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let word = |name: &str| answer["error"][name].as_str().map(str::to_owned);
    let kind = word("kind").unwrap_or_default();
    let kind = if ["not_datamon", "dead"].contains(&kind.as_str()) {
        if kind == "dead" { "dead" } else { "not_datamon" }
    } else {
        known_kind(&kind)
    };
    let message = word("message").unwrap_or_else(|| format!("{}: the daemon did not answer", path.display()));
    Err(Failure { kind, message, remedy: word("remedy") })
}
