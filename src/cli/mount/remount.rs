//! `mount -o remount,ro` and `remount,rw`: a mount that is there changes its flags.
//!
//! The kernel decides whether it can become read-only (it refuses while a file is open for writing), and the daemon is
//! told, so that both agree. Whatever else the words say has to hold already, as what mount(8) repeats of fstab and of the
//! mount itself does: nobody is to believe that an option was changed which was not.

use std::io;
use std::path::Path;

use crate::cli::control;
use crate::cli::options::MountOptions;
use crate::cli::output::Failure;
use crate::cli::progress::Shown;
use crate::cli::umount;
use crate::local::sys::{self, MountFlags};
use crate::model::job::Verb;

/// Changes the mount at `dir` to what `words` say.
pub fn run(dir: &Path, words: &[String]) -> Result<(), Failure> {
    let mounts = umount::mounts()?;
    let Some(mounted) = umount::find(&mounts, dir) else {
        return Err(Failure::new("not_mounted", format!("{}: not a datamon mount", dir.display())));
    };
    if sys::identity().0 != 0 {
        let sentence = format!("{}: only root can remount (umount it and mount it again)", dir.display());
        return Err(Failure::new("denied", sentence));
    }
    let wanted = wanted(&mounted.options, words).map_err(Failure::usage)?;
    let flags = flags(&wanted);
    let ask = |verb: Verb| {
        let told = control::carry_out(&mounted.dir, &verb, Shown::nothing());
        told.map(drop).map_err(|failure| failure.about(&dir.display().to_string()))
    };
    ask(Verb::Keep { options: words.to_owned() })?;
    let tell = || ask(Verb::Remount { read_only: flags.read_only });
    let change = || sys::remount(&mounted.dir, flags).map_err(|why| refused(dir, &why));
    // Never a moment in which the kernel lets through what the daemon refuses.
    if flags.read_only {
        change()?;
        tell()
    } else {
        tell()?;
        change()
    }
}

/// What holds now, changed by the words. mount(8) reads what holds by itself, and leaves out what is to hold no longer: `exec`
/// is said by the absence of `noexec`. Its words are known by what the kernel alone would say.
fn wanted(now: &str, words: &[String]) -> Result<MountOptions, String> {
    let mut options = MountOptions::defaults(true);
    (options.suid, options.dev, options.exec, options.remount) = (true, true, true, true);
    let is_all_said = words.iter().any(|list| list.split(',').any(|word| word.starts_with("user_id=")));
    if is_all_said { options.with(words) } else { options.with(&[now.to_owned()])?.with(words) }
}

fn flags(options: &MountOptions) -> MountFlags {
    MountFlags { read_only: options.read_only, suid: options.suid, dev: options.dev, exec: options.exec }
}

fn refused(dir: &Path, why: &io::Error) -> Failure {
    let dir = dir.display();
    let sentence = match why.kind() {
        io::ErrorKind::ResourceBusy => {
            format!("{dir}: a file is open for writing, nothing was changed (close it: fuser -vm shows it)")
        }
        _ => format!("{dir}: {why}"),
    };
    Failure::new("busy", sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let of = |now: &str, words: &str| flags(&wanted(now, &[words.to_owned()]).unwrap());
        let now = MountFlags { read_only: false, suid: false, dev: false, exec: true };
        assert_eq!(of("rw,nosuid,nodev,relatime", "remount"), now);
        assert_eq!(of("rw,nosuid,nodev", "remount,ro,noexec"), MountFlags { read_only: true, exec: false, ..now });
        assert_eq!(of("ro,relatime", "remount,rw,base=v1"), MountFlags { suid: true, dev: true, ..now });
        let said = "rw,nosuid,nodev,relatime,remount,user_id=0,group_id=0,helper=datamon";
        assert_eq!(of("rw,nosuid,nodev,noexec", said), now, "exec, as mount(8) says it");
    }
}
