//! The grammar by which mount(8) and umount(8) call their helpers (mount(8), "External helpers").
//!
//! `mount.TYPE SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type.subtype]` and
//! `umount.TYPE DIR [-flnrv] [-N namespace] [-t type.subtype]`, in any order, short flags joined or alone.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Why a call was not understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// Mount.
    Mount {
        /// What to mount.
        source: OsString,
        /// Where.
        dir: OsString,
        /// Each `-o` as it came.
        options: Vec<OsString>,
        /// `-f`: all but the mount itself.
        fake: bool,
    },
    /// Unmount.
    Umount {
        /// What to unmount.
        dir: OsString,
        /// `-l`: detach now, commit nothing.
        lazy: bool,
        /// `-f`: abort the connection.
        force: bool,
        /// `-r`: remount read-only when unmounting fails.
        read_only: bool,
    },
}

/// The name without its directories.
pub fn base_name(name: &OsStr) -> &OsStr {
    Path::new(name).file_name().unwrap_or(name)
}

/// What the words after the name come to.
#[derive(Default)]
struct Words {
    flags: Vec<u8>,
    options: Vec<OsString>,
    operands: Vec<OsString>,
}

impl Words {
    fn sort(words: Vec<OsString>, known: &[u8]) -> Result<Self, Refusal> {
        let mut sorted = Self::default();
        let mut words = words.into_iter();
        let mut only_operands = false;
        while let Some(word) = words.next() {
            let flags = match crate::bytes(&word).strip_prefix(b"-") {
                Some(flags) if !flags.is_empty() && !only_operands => flags,
                _ => {
                    sorted.operands.push(word);
                    continue;
                }
            };
            if flags == b"-" {
                only_operands = true;
                continue;
            }
            for &flag in flags {
                match flag {
                    b'o' | b't' | b'N' => {
                        let missing = || Refusal(format!("-{}: its value is missing", char::from(flag)));
                        let value = words.next().ok_or_else(missing)?;
                        if flag == b'o' {
                            sorted.options.push(value);
                        } else if flag == b'N' {
                            return Err(Refusal("-N: other namespaces are not supported (use nsenter)".into()));
                        }
                    }
                    flag if known.contains(&flag) => sorted.flags.push(flag),
                    flag => return Err(Refusal(format!("-{}: unknown option", char::from(flag)))),
                }
            }
        }
        Ok(sorted)
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.contains(&flag)
    }
}

impl Call {
    /// The call of a helper by the name `name` with `words`.
    pub fn parse(name: &OsStr, words: Vec<OsString>) -> Result<Self, Refusal> {
        let name = crate::bytes(base_name(name));
        if name.starts_with(b"umount.") { Self::parse_umount(words) } else { Self::parse_mount(words) }
    }

    fn parse_mount(words: Vec<OsString>) -> Result<Self, Refusal> {
        let words = Words::sort(words, b"sfnv")?;
        let fake = words.has(b'f');
        match <[OsString; 2]>::try_from(words.operands) {
            Ok([source, dir]) => Ok(Self::Mount { source, dir, options: words.options, fake }),
            Err(_) => Err(Refusal("usage: mount.datamon SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE]".into())),
        }
    }

    fn parse_umount(words: Vec<OsString>) -> Result<Self, Refusal> {
        let words = Words::sort(words, b"flnrv")?;
        let (lazy, force, read_only) = (words.has(b'l'), words.has(b'f'), words.has(b'r'));
        match <[OsString; 1]>::try_from(words.operands) {
            Ok([dir]) => Ok(Self::Umount { dir, lazy, force, read_only }),
            Err(_) => Err(Refusal("usage: umount.datamon DIR [-flnrv] [-t TYPE]".into())),
        }
    }

    /// Whether nothing is to be done (`mount -f`).
    pub fn is_dry_run(&self) -> bool {
        matches!(self, Self::Mount { fake: true, .. })
    }

    /// The same in datamon's words.
    pub fn for_datamon(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        match self {
            Self::Mount { source, dir, options, .. } => {
                words.push("mount".into());
                for option in options {
                    words.extend(["-o".into(), option.clone()]);
                }
                words.extend(["--".into(), source.clone(), dir.clone()]);
            }
            Self::Umount { dir, lazy, force, read_only } => {
                words.push("umount".into());
                for (given, flag) in [(lazy, "--lazy"), (force, "--force"), (read_only, "--read-only")] {
                    if *given {
                        words.push(flag.into());
                    }
                }
                words.extend(["--".into(), dir.clone()]);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Call, Refusal> {
        let mut words = line.split(' ').map(OsString::from);
        let name = words.next().unwrap();
        Call::parse(&name, words.collect())
    }

    #[test]
    fn mount_hands_its_source_directory_and_options_on() {
        let call = parse("/sbin/mount.datamon prod/census /mnt -o rw,_netdev,base=none -t datamon").unwrap();
        assert_eq!(call.for_datamon(), ["mount", "-o", "rw,_netdev,base=none", "--", "prod/census", "/mnt"]);
        assert_eq!(parse("mount.fuse.datamon prod/census /mnt -sn -o rw,_netdev,base=none").unwrap(), call);
    }

    #[test]
    fn umount_hands_its_directory_and_flags_on() {
        let call = parse("/sbin/umount.datamon /mnt -v -r -t fuse.datamon").unwrap();
        assert_eq!(call.for_datamon(), ["umount", "--read-only", "--", "/mnt"]);
        assert_eq!(parse("umount.fuse.datamon -l /mnt").unwrap().for_datamon(), ["umount", "--lazy", "--", "/mnt"]);
    }

    #[test]
    fn a_fake_mount_does_nothing() {
        assert!(parse("mount.datamon a /mnt -f").unwrap().is_dry_run());
        assert!(!parse("umount.datamon /mnt -f").unwrap().is_dry_run());
    }

    #[test]
    fn a_wrong_call_is_refused_by_what_is_wrong_with_it() {
        assert_eq!(parse("mount.datamon a /mnt -x").unwrap_err(), Refusal("-x: unknown option".into()));
        assert_eq!(parse("mount.datamon a /mnt -o").unwrap_err(), Refusal("-o: its value is missing".into()));
        assert!(parse("mount.datamon a").unwrap_err().0.starts_with("usage:"));
        assert!(parse("umount.datamon a b").unwrap_err().0.starts_with("usage:"));
    }

    #[test]
    fn names_are_bytes_and_may_begin_with_a_dash_after_two() {
        let words = vec!["--".into(), "-a".into(), "/mnt".into()];
        assert!(
            matches!(Call::parse(OsStr::new("mount.datamon"), words), Ok(Call::Mount { source, .. }) if source == "-a")
        );
    }
}
