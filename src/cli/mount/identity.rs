//! What this host says of who commits: see [`crate::vfs::identity`] for which word counts.
//!
//! A user's name stands in `/etc/passwd`, or a directory service knows it (LDAP, sssd: nsswitch.conf(5)). Only getent(1)
//! is asked for that, a process of its own: what a service's module does, it does not do in the daemon, and one that
//! does not answer is given up and ended.

use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::cli::host::{CONTRIBUTOR, Host};
use crate::cli::options::MountOptions;
use crate::cli::output::Failure;
use crate::config::OwnOptions;
use crate::vfs::identity::{Identity, UserNames};

/// How long a directory service may take to say a name.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long its word, or its silence, counts.
const ANSWER_LIFETIME: Duration = Duration::from_secs(60);
/// So much is read of it: a line has some hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Users whose names are remembered.
const ANSWERS_MAX: u64 = 1024;

/// The identity of a mount.
pub fn of(host: &Host, options: &MountOptions, context: &OwnOptions) -> Result<Identity, Failure> {
    let environment = host
        .environment
        .get(CONTRIBUTOR)
        .map(|text| text.parse().map_err(|why| Failure::usage(format!("{CONTRIBUTOR}={text}: {why}"))));
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(Identity {
        fixed: options.contributor.clone().or_else(|| context.contributor.clone()),
        environment: environment.transpose()?,
        mounter: (host.environment.uid, mounter(host)),
        host: name.trim().to_owned(),
        names: names(),
    })
}

/// The name of who mounts by the environment; mount(8) hands none on.
fn mounter(host: &Host) -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| host.environment.get(name)).map(str::to_owned)
}

/// The names of users, by the list, which is read at each commit or gesture (users come and go while a mount lives), and
/// by the directory services.
fn names() -> UserNames {
    let answers = Cache::builder().max_capacity(ANSWERS_MAX).time_to_live(ANSWER_LIFETIME).build();
    Arc::new(move |uid| {
        let answers = answers.clone();
        Box::pin(async move {
            match listed(uid) {
                Some(name) => Some(name),
                None => answers.get_with(uid, served(uid)).await,
            }
        })
    })
}

/// The name of a user by the host's directory services.
async fn served(uid: u32) -> Option<String> {
    let mut getent = Command::new("getent");
    getent.arg("passwd").arg(uid.to_string()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    match tokio::time::timeout(ANSWER_LIMIT, said(getent.kill_on_drop(true))).await {
        Ok(Ok(said)) => named(uid, &String::from_utf8_lossy(&said)),
        Ok(Err(error)) => {
            tracing::warn!(uid, %error, "getent cannot be asked for the name of a user");
            None
        }
        Err(_) => {
            tracing::warn!(uid, "no answer for the name of a user (getent passwd)");
            None
        }
    }
}

/// What a program writes, as far as one looks at it.
async fn said(program: &mut Command) -> io::Result<Vec<u8>> {
    let mut program = program.spawn()?;
    let mut said = Vec::new();
    if let Some(output) = program.stdout.take() {
        output.take(ANSWER_BYTES_MAX).read_to_end(&mut said).await?;
    }
    program.start_kill().and(Ok(said))
}

/// The name of a user by this host's list.
fn listed(uid: u32) -> Option<String> {
    named(uid, &fs::read_to_string("/etc/passwd").unwrap_or_default())
}

/// The user's name in the text of passwd(5).
fn named(uid: u32, passwd: &str) -> Option<String> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut found = fields.filter(|fields| fields.get(2).is_some_and(|field| *field == uid.to_string()));
    found.next().map(|fields| fields[0].to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_first_name_of_the_list() {
        let passwd = "root:x:0:0::/root:/bin/sh\nada:x:7:7::/:/bin/sh\nalias:x:7:7::/:/bin/sh\n:x:8:8::/:\n";
        assert_eq!((named(0, passwd), named(7, passwd)), (Some("root".into()), Some("ada".into())));
        assert_eq!((named(8, passwd), named(9, passwd), named(9, "")), (None, None, None));
    }
}
