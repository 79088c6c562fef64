//! The helpers that mount(8) and umount(8) call: `mount.datamon`, `umount.datamon`, and both as `….fuse.datamon`.
//!
//! They translate the helpers' argument grammar into datamon's own and become datamon; what is refused here is refused
//! with mount(8)'s exit codes. They exist because mount(8) looks for programs of these names, and because it strips
//! HOME and PATH from the environment: datamon is therefore called by the absolute path fixed when this was built
//! (`DATAMON_BINARY`), and HOME is set from the user's record.
//!
//! What this does not do: mount, unmount, read configuration, talk to a daemon. That is datamon's work.

mod arguments;

use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use arguments::{Call, Refusal};

/// The program to become. Fixed at build: a helper that runs as root looks nothing up in a PATH.
const DATAMON: &str = match option_env!("DATAMON_BINARY") {
    Some(path) => path,
    None => "/usr/local/bin/datamon",
};
/// mount(8): wrong call, or not permitted.
const USAGE: u8 = 1;
/// mount(8): mount failed.
const FAILED: u8 = 32;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let call = match Call::parse(&name, words.collect()) {
        Ok(call) => call,
        Err(Refusal(why)) => {
            eprintln!("{}: {why}", arguments::base_name(&name).to_string_lossy());
            return ExitCode::from(USAGE);
        }
    };
    if call.is_dry_run() {
        return ExitCode::SUCCESS;
    }
    let mut datamon = Command::new(DATAMON);
    // datamon answers a helper with mount(8)'s codes.
    datamon.args(call.for_datamon()).env("DATAMON_HELPER", "1");
    if std::env::var_os("HOME").is_none()
        && let Some(home) = home()
    {
        datamon.env("HOME", home);
    }
    if std::env::var_os("PATH").is_none() {
        datamon.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let why = datamon.exec();
    eprintln!("{DATAMON}: {why} (install datamon there, or build its mount helper with DATAMON_BINARY=PATH)");
    ExitCode::from(FAILED)
}

/// The home directory in this user's record (getpwuid(3)).
#[allow(unsafe_code)]
fn home() -> Option<OsString> {
    // SAFETY: getpwuid answers null or a record that stays valid until the next such call, and this program has one
    // thread and makes no other; `pw_dir` of a record is a NUL-terminated string or null.
    let dir = unsafe {
        let record = libc::getpwuid(libc::getuid()).as_ref()?;
        if record.pw_dir.is_null() {
            return None;
        }
        CStr::from_ptr(record.pw_dir).to_bytes().to_vec()
    };
    (!dir.is_empty()).then(|| OsString::from_vec(dir))
}

/// The bytes of an argument.
fn bytes(text: &OsStr) -> &[u8] {
    text.as_bytes()
}
