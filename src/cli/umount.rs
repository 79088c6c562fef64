//! `datamon umount`, and what umount(8) does through our helper: commit what changed, then unmount.
//!
//! The kernel does not wait for a FUSE daemon at umount(2), so whatever shall happen before happens here. On failure
//! the mount stays, writers go on, and nothing is lost.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::cli::control;
use crate::cli::host::Host;
use crate::cli::mount::remount;
use crate::cli::output::{Failure, print_line};
use crate::cli::progress::Shown;
use crate::local::sys;
use crate::model::job::Verb;

/// For the help.
pub const EXAMPLES: &str = "\
Examples:
  datamon umount /mnt/dm
  datamon umount --lazy /mnt/dm      leaves what changed staged; the next mount finds it";

/// The arguments of `datamon umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Detach now; what changed stays staged
    #[arg(short, long)]
    lazy: bool,
    /// Unmount even if the daemon does not answer; what changed stays staged
    #[arg(short, long)]
    force: bool,
    /// Where it cannot be unmounted, remount it read-only (root)
    #[arg(short, long)]
    read_only: bool,
    /// The mount point
    dir: PathBuf,
}

/// A line of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The file system, as `major:minor`.
    pub device: String,
    /// Where.
    pub dir: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// What, as mount(8) shows it.
    pub source: String,
    /// Options of this mount point: `rw,nosuid,nodev,relatime`.
    pub options: String,
    /// Who mounted it: user and group.
    pub owner: (u32, u32),
}

/// Unmounts, after committing what changed.
pub fn run(args: &UmountArgs, host: &Host) -> Result<(), Failure> {
    let dir = std::path::absolute(&args.dir).map_err(|why| Failure::new("failed", why.to_string()))?;
    let mounts = mounts()?;
    let Some(mounted) = find(&mounts, &dir) else {
        return Err(Failure::new("not_mounted", format!("{}: not a datamon mount", dir.display())));
    };
    let is_last = mounts.iter().filter(|other| other.device == mounted.device).count() == 1;
    if args.lazy || args.force || !is_last {
        return detach(&mounted.dir, How { lazy: args.lazy, force: args.force });
    }
    if sys::identity().0 == 0 && mounted.owner.0 != 0 {
        return as_owner(mounted);
    }
    match commit_and_detach(&mounted.dir, host) {
        Err(failure) if args.read_only && failure.kind == "busy" => {
            remount::run(&mounted.dir, &["remount,ro".to_owned()])?;
            eprintln!("datamon: {} (it is read-only now)", failure.message);
            Ok(())
        }
        outcome => outcome,
    }
}

/// FUSE lets nobody into a user's mount but that user: who unmounts it is the user, then.
fn as_owner(mounted: &Mounted) -> Result<(), Failure> {
    let mut own = Command::new("/proc/self/exe");
    own.args(["umount", "--"]).arg(&mounted.dir);
    let status = own.uid(mounted.owner.0).gid(mounted.owner.1).status();
    match status.map(|status| status.success()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new("failed", format!("{}: its user could not unmount it", mounted.dir.display()))),
        Err(why) => Err(Failure::new("failed", format!("{}: {why}", mounted.dir.display()))),
    }
}

/// Writing stops only while this goes on: a helper that dies lets it go on, too (docs/adr/0011).
fn commit_and_detach(dir: &Path, host: &Host) -> Result<(), Failure> {
    let root = sys::identity().0 == 0;
    if root && sys::is_in_use(dir) {
        return Err(busy(dir, "nothing was committed"));
    }
    let mut bundles = Vec::new();
    let committed = match commit_all(dir, host, &mut bundles) {
        // A dead daemon can commit nothing: its tree is staged, and the next mount finds it.
        Err(failure) if failure.kind == "dead" => {
            let remedy = "mount it again: what is staged is there";
            eprintln!("datamon: {}: its daemon has ended, so nothing was committed ({remedy})", dir.display());
            Ok(())
        }
        Err(failure) if failure.kind == "not_datamon" => Ok(()),
        outcome => outcome,
    };
    let unmounted = committed.and_then(|()| detach(dir, How::default())).map_err(|failure| match &bundles[..] {
        bundles @ [_, ..] if failure.kind == "busy" => {
            busy(dir, &format!("committed {}, still mounted", bundles.join(" ")))
        }
        _ => failure,
    });
    // Who says nothing to the one would say nothing to the other; what it froze thaws by itself.
    if unmounted.as_ref().is_err_and(|failure| failure.kind != control::UNANSWERED) {
        let _ = control::carry_out(dir, &Verb::Thaw, Shown::nothing());
    }
    unmounted
}

/// Commits what changed; `bundles` are those that were made.
fn commit_all(dir: &Path, host: &Host, bundles: &mut Vec<String>) -> Result<(), Failure> {
    let frozen = control::carry_out(dir, &Verb::Freeze, Shown::nothing());
    frozen.map_err(|failure| failure.about(&dir.display().to_string()))?;
    let contributor = host.contributor();
    let verb = Verb::Commit { message: None, labels: Vec::new(), all: true, contributor };
    for done in control::carry_out(dir, &verb, Shown::on_a_terminal("committing"))? {
        control::tell_notes(&done);
        if done.changed {
            print_line(&done.bundle);
            bundles.push(done.bundle);
        }
    }
    Ok(())
}

fn busy(dir: &Path, what: &str) -> Failure {
    Failure::new(
        "busy",
        format!("{}: busy, {what} (leave it and close its files: fuser -vm shows them)", dir.display()),
    )
}

/// How a mount goes.
#[derive(Debug, Clone, Copy, Default)]
struct How {
    /// Out of sight at once, in truth when nobody uses it any more.
    lazy: bool,
    /// Whatever its daemon does (umount2(2), MNT_FORCE).
    force: bool,
}

/// Unmounts by the system's own programs, which keep /run/mount/utab and /etc/mtab right.
fn detach(dir: &Path, how: How) -> Result<(), Failure> {
    let root = sys::identity().0 == 0;
    let mut command = if root { Command::new("umount") } else { Command::new("fusermount3") };
    command.arg(if root { "-i" } else { "-u" });
    if how.lazy {
        command.arg(if root { "-l" } else { "-z" });
    }
    if how.force && root {
        // Ends the connection: who waits in the mount is let go, also where the daemon never answers.
        command.arg("-f");
    }
    match command.arg("--").arg(dir).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if said.contains("busy") { Err(busy(dir, "still mounted")) } else { Err(Failure::new("failed", said)) }
        }
        Err(why) => Err(Failure::new("failed", format!("umount: {why}"))),
    }
}

/// All mounts of this namespace.
pub fn mounts() -> Result<Vec<Mounted>, Failure> {
    let table = fs::read("/proc/self/mountinfo");
    let table = table.map_err(|why| Failure::new("failed", format!("/proc/self/mountinfo: {why}")))?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

impl Mounted {
    /// Where the kernel's end of the mount can be looked at, and ended (the minor number of its device).
    pub fn connection(&self) -> String {
        format!("/sys/fs/fuse/connections/{}", self.device.rsplit(':').next().unwrap_or("*"))
    }
}

/// The datamon mount that `path` lies in, by its text alone: a look could hang.
pub fn find_above<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    let path = std::path::absolute(path).ok()?;
    let above = mounts.iter().filter(|mounted| mounted.kind == "fuse.datamon" && path.starts_with(&mounted.dir));
    above.max_by_key(|mounted| mounted.dir.as_os_str().len())
}

/// The topmost datamon mount at `dir`, without touching it: its daemon may be dead.
pub fn find<'a>(mounts: &'a [Mounted], dir: &Path) -> Option<&'a Mounted> {
    let at = |dir: &Path| mounts.iter().rev().find(|mounted| mounted.dir == dir && mounted.kind == "fuse.datamon");
    // Not through another mount of ours, whose daemon may be stopped.
    let is_inside = || dir.parent().is_none_or(|parent| find_above(mounts, parent).is_some());
    let by_parent = || Some(fs::canonicalize(dir.parent()?).ok()?.join(dir.file_name()?));
    at(dir).or_else(|| if is_inside() { None } else { at(&by_parent()?) })
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let mut halves = line.split(|byte| *byte == b' ').map(unescape);
    let mut before = halves.by_ref().take_while(|word| word != b"-").collect::<Vec<_>>().into_iter();
    let text = |word: Vec<u8>| String::from_utf8_lossy(&word).into_owned();
    let device = text(before.nth(2)?);
    let dir = PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(before.nth(1)?));
    let options = text(before.next()?);
    let (kind, source) = (text(halves.next()?), text(halves.next()?));
    let of_the_kernel = halves.next().map(text).unwrap_or_default();
    let number = |name: &str| of_the_kernel.split(',').find_map(|word| word.strip_prefix(name)?.parse().ok());
    let owner = (number("user_id=").unwrap_or(0), number("group_id=").unwrap_or(0));
    Some(Mounted { device, dir, kind, source, options, owner })
}

/// Undoes the kernel's `\040` for a space, and the like.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.filter(|_| byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_from_the_kernels_table() {
        let line = br"36 35 0:98 / /mnt/a\040b rw,noatime shared:1 - fuse.datamon prod/census rw,user_id=7,group_id=8";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.dir, PathBuf::from("/mnt/a b"));
        assert_eq!((mounted.device.as_str(), mounted.kind.as_str()), ("0:98", "fuse.datamon"));
        assert_eq!((&mounted.source[..], &mounted.options[..]), ("prod/census", "rw,noatime"));
        assert_eq!(mounted.owner, (7, 8));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_topmost_mount_is_found() {
        let mount = |source: &str, kind: &str| Mounted {
            device: "0:1".into(),
            dir: "/m".into(),
            kind: kind.into(),
            source: source.into(),
            options: String::new(),
            owner: (0, 0),
        };
        let mounts = [mount("a", "fuse.datamon"), mount("b", "fuse.datamon"), mount("c", "ext4")];
        assert_eq!(find(&mounts, Path::new("/m")).unwrap().source, "b");
        assert!(find(&mounts, Path::new("/n")).is_none());
        let above = find_above(&mounts, Path::new("/m/census/staging")).unwrap();
        assert_eq!((above.source.as_str(), above.connection().as_str()), ("b", "/sys/fs/fuse/connections/1"));
    }
}
