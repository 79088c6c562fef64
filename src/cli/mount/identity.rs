//! What this host says of who commits: see [`crate::vfs::identity`] for which word counts.

use std::fs;
use std::sync::Arc;

use crate::cli::host::{CONTRIBUTOR, Host};
use crate::cli::options::MountOptions;
use crate::cli::output::Failure;
use crate::config::OwnOptions;
use crate::vfs::identity::Identity;

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
        // Read at each commit or gesture: users come and go while a mount lives.
        names: Arc::new(listed),
    })
}

fn mounter(host: &Host) -> String {
    let uid = host.environment.uid;
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| host.environment.get(name));
    // mount(8) hands no name on: then it is the one in the list of users.
    user.map(str::to_owned).or_else(|| listed(uid)).unwrap_or_else(|| format!("uid {uid}"))
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
