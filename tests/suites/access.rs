//! Who may look into a mount: `allow_other`, `allow_root`, or who mounted it alone.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::harness::{Place, SOON, inside, run, scratch, text, within};
use super::mounting::User;

/// Neither root nor the user who mounts.
const STRANGER: &str = "1234";

fn stranger(words: &[&str]) -> Output {
    let who = ["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", "--"];
    within(SOON, Command::new("setpriv").args(who).args(words))
}

/// What a stranger might try at a mount that holds `file` and `dir`; each is refused.
fn is_closed_to_strangers(at: &str) {
    let file = format!("{at}/file");
    for words in [
        &["ls", at][..],
        &["stat", at],
        &["stat", &file],
        &["cat", &file],
        &["ls", &format!("{at}/dir")],
        &["touch", &format!("{at}/new")],
        &["sh", "-c", "echo x >> \"$0\"", &file],
        &["chmod", "777", &file],
        &["getfattr", "-n", "user.datamon.repo", at],
        &["sync", at],
        &["cat", &format!("{at}/.datamon/status")],
        &["df", at],
    ] {
        let output = stranger(words);
        assert!(!output.status.success(), "{words:?}: {}", text(&output));
        assert!(text(&output).contains("ermission denied"), "{words:?}: {}", text(&output));
    }
}

/// Lets users ask for `allow_other`, in this namespace alone.
fn let_users_allow(dir: &Path) {
    let conf = dir.join("fuse.conf");
    fs::write(&conf, "user_allow_other\n").unwrap();
    run(Command::new("mount").arg("--bind").arg(&conf).arg("/etc/fuse.conf"));
}

#[test]
fn allow_root_lets_in_who_mounted_it_and_root_and_nobody_else() {
    if !inside("access::allow_root_lets_in_who_mounted_it_and_root_and_nobody_else") {
        return;
    }
    let dir = scratch();
    let (user, mnt) = User::with_context(dir.path());
    user.datamon(&["mount", "mine", &mnt]);
    user.does("mkdir", &[&format!("{mnt}/census")]);
    user.datamon(&["umount", &mnt]);
    // On the way to it nothing keeps a stranger.
    user.does("chmod", &["755", &user.at("")]);
    let without = ["-c", "\"$0\" \"$@\" 2>&1 || true", &user.at("../datamon")];
    let refused =
        user.does("sh", &[&without[..], &["mount", "mine/census/staging", &mnt, "-o", "allow_root"]].concat());
    assert!(refused.contains("user_allow_other"), "the remedy: {refused}");
    let_users_allow(dir.path());

    user.datamon(&["mount", "mine/census/staging", &mnt, "-o", "allow_root"]);
    user.does("sh", &["-c", "cd \"$0\" && echo by the user > file && mkdir dir && chmod -R 777 .", &mnt]);
    let file = Path::new(&mnt).join("file");
    // Root and the user look first: what the kernel knows from them it tells nobody else.
    run(Command::new("ls").args(["-laR", &mnt]));
    assert_eq!(fs::read_to_string(&file).unwrap(), "by the user\n");
    user.does("ls", &["-laR", &mnt]);
    is_closed_to_strangers(&mnt);
    fs::write(&file, "by root\n").unwrap();
    assert_eq!(user.does("cat", &[file.to_str().unwrap()]), "by root\n");
    let status = user.does("cat", &[&format!("{mnt}/.datamon/status")]);
    assert!(!status.contains("cannot look in"), "{status}");
    user.datamon(&["umount", &mnt]);

    // A version, which the kernel opens by itself where everybody may come in.
    user.datamon(&["mount", "mine/census/labels/latest", &mnt, "-o", "allow_root"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "by root\n");
    assert_eq!(user.does("cat", &[file.to_str().unwrap()]), "by root\n");
    is_closed_to_strangers(&mnt);
    // A process that a stranger was handed a file by reads it: that is a file, not the mount.
    let handed = format!("exec setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups cat < \"$0\"");
    assert_eq!(run(Command::new("sh").args(["-c", &handed]).arg(&file)), "by root\n");
    user.datamon(&["umount", &mnt]);

    user.datamon(&["mount", "mine/census/labels/latest", &mnt, "-o", "allow_other"]);
    assert_eq!(text(&stranger(&["cat", file.to_str().unwrap()])), "by root\n", "whom allow_other lets in");
    user.datamon(&["umount", &mnt]);
}

#[test]
fn allow_root_of_a_mount_by_root_keeps_everybody_else_out() {
    if !inside("access::allow_root_of_a_mount_by_root_keeps_everybody_else_out") {
        return;
    }
    let dir = scratch();
    for passed in dir.path().ancestors().take(2) {
        fs::set_permissions(passed, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let place = Place::directory(&dir.path().join("store"));
    let host = place.host(&dir.path().join("one"), "create");
    let mnt = host.mount("prod", "rw");
    fs::create_dir(mnt.join("census")).unwrap();
    host.umount(&mnt);
    let mnt = host.mount("prod/census/staging", "allow_root");
    fs::write(mnt.join("file"), "x").unwrap();
    fs::create_dir(mnt.join("dir")).unwrap();
    run(Command::new("chmod").args(["-R", "777"]).arg(&mnt));
    is_closed_to_strangers(mnt.to_str().unwrap());
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "x");
    let shown = run(Command::new("findmnt").args(["-no", "OPTIONS"]).arg(&mnt));
    assert!(!shown.contains("allow_other"), "the kernel itself refuses: {shown}");
    host.umount(&mnt);
}
