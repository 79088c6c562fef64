//! `make install` and `make uninstall`, into a directory of the test's own (DESTDIR).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{run, target_dir, text};

/// Files and links below a directory, by their paths: a mode, or where it leads.
fn found(root: &Path) -> BTreeMap<String, String> {
    let all = run(Command::new("find").arg(root).args(["!", "-type", "d", "-printf", "%P\t%y\t%m\t%l\n"]));
    let row = |line: &str| {
        let words: Vec<_> = line.split('\t').collect();
        let what = if words[1] == "l" { format!("-> {}", words[3]) } else { words[2].to_owned() };
        (words[0].to_owned(), what)
    };
    all.lines().map(row).collect()
}

struct Rules {
    root: PathBuf,
    built: PathBuf,
}

impl Rules {
    /// `make TARGET` with an umask that lets nobody else read.
    fn make(&self, target: &str) {
        let line = "umask 077; exec make --no-print-directory \"$@\"";
        let mut make = Command::new("sh");
        make.args(["-ec", line, "sh", "-C", env!("CARGO_MANIFEST_DIR"), target, "PREFIX=/opt/dm"]);
        make.arg(format!("DESTDIR={}", self.root.display())).arg(format!("BUILT={}", self.built.display()));
        run(make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
    }
}

#[test]
fn make_install_puts_all_in_its_place_and_uninstall_takes_it_away() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules { root: dir.path().join("root with a space"), built: dir.path().join("built") };
    // The helper is built for its place, as `make install` does; beside what the other tests use.
    fs::create_dir(&rules.built).unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "-q", "-p", "datamon-mount-helper", "--target-dir"]).arg(target_dir().join("install-test"));
    run(build.current_dir(env!("CARGO_MANIFEST_DIR")).env("DATAMON_BINARY", "/opt/dm/bin/datamon"));
    let helper = target_dir().join("install-test/debug/datamon-mount-helper");
    fs::copy(helper, rules.built.join("datamon-mount-helper")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_datamon"), rules.built.join("datamon")).unwrap();

    rules.make("install-built");
    let all = [
        ("opt/dm/bin/datamon", "755"),
        ("opt/dm/share/bash-completion/completions/datamon", "644"),
        ("opt/dm/share/man/man1/datamon-context.1", "644"),
        ("opt/dm/share/man/man1/datamon.1", "644"),
        ("opt/dm/share/man/man8/mount.datamon.8", "644"),
        ("sbin/mount.datamon", "755"),
        ("sbin/mount.fuse.datamon", "-> mount.datamon"),
        ("sbin/umount.datamon", "-> mount.datamon"),
        ("sbin/umount.fuse.datamon", "-> mount.datamon"),
    ];
    let expected: BTreeMap<_, _> = all.map(|(path, what)| (path.to_owned(), what.to_owned())).into();
    assert_eq!(found(&rules.root), expected);
    let shut = run(Command::new("find").arg(&rules.root).args(["-mindepth", "1", "-type", "d", "!", "-perm", "755"]));
    assert_eq!(shut, "", "directories that not all can enter");
    let size = |path: &Path| fs::metadata(path).unwrap().size();
    assert_eq!(size(&rules.root.join("opt/dm/bin/datamon")), size(Path::new(env!("CARGO_BIN_EXE_datamon"))));

    // The helpers look nothing up: they become the program of their PREFIX, or say that it is not there.
    for name in ["mount.datamon", "umount.fuse.datamon"] {
        let words: &[&str] = if name.starts_with("mount") { &["prod", "/mnt"] } else { &["/mnt"] };
        let output = Command::new(rules.root.join("sbin").join(name)).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(32), "{}", text(&output));
        assert!(text(&output).starts_with("/opt/dm/bin/datamon: No such file"), "{}", text(&output));
    }

    // What is somebody else's stays.
    let other = rules.root.join("opt/dm/share/man/man8/other.8");
    fs::write(&other, "").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    rules.make("uninstall");
    let left: Vec<_> = found(&rules.root).into_keys().collect();
    assert_eq!(left, ["opt/dm/share/man/man8/other.8"]);
}
