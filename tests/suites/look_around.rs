//! Programs that look at everything there is: on a mount of a whole context they see it, change nothing, commit nothing
//! (a walk is no `sync`), and leave a mount that works.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::harness::{Host, Place, inside, run, scratch, text, within};

/// Far more than any of these takes.
const LONG: Duration = Duration::from_secs(60);

/// Whether a program is there; if not, that is said.
fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let is_there = path.split(':').any(|dir| Path::new(dir).join(program).exists());
    if !is_there {
        let _ = writeln!(std::io::stderr(), "SKIPPED {program} of programs_that_look_around_change_nothing: not here");
    }
    is_there
}

struct World {
    dir: tempfile::TempDir,
    host: Host,
    mnt: PathBuf,
}

impl World {
    /// Two versions with a label each, and a changed staging tree.
    fn new() -> Self {
        let dir = scratch();
        let host = Place::directory(&dir.path().join("store")).host(&dir.path().join("one"), "create");
        let mnt = host.mount("prod", "rw");
        fs::create_dir(mnt.join("census")).unwrap();
        let staging = mnt.join("census/staging");
        fs::create_dir_all(staging.join("tables/deep")).unwrap();
        for n in 0..40 {
            fs::write(staging.join(format!("tables/{n}.csv")), format!("region,people\nnorth,{n}\n")).unwrap();
        }
        fs::write(staging.join("tables/deep/large"), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("tables/deep/large", staging.join("link")).unwrap();
        run(&mut host.datamon(["commit", "-l", "v1", staging.to_str().unwrap()]));
        fs::write(staging.join("tables/0.csv"), "changed").unwrap();
        run(&mut host.datamon(["commit", "-l", "v2", staging.to_str().unwrap()]));
        fs::write(staging.join("tables/1.csv"), "staged").unwrap();
        Self { dir, host, mnt }
    }

    /// What must be the same before and after.
    fn state(&self) -> (usize, String) {
        let bundles = fs::read_dir(self.mnt.join("census/bundles")).unwrap().count();
        (bundles, fs::read_to_string(self.mnt.join("census/staging/tables/1.csv")).unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a line in the mount; it has to succeed, and to change nothing. Answers what it printed.
    fn look(&self, line: &str) -> String {
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(&self.mnt).env("LC_ALL", "C").env("HOME", self.dir.path());
        let output = within(LONG, &mut command);
        assert!(output.status.success(), "{line}: {}: {}", output.status, text(&output));
        assert_eq!(self.state(), (2, "staged".to_owned()), "{line}: committed, or changed, something");
        text(&output)
    }
}

#[test]
fn programs_that_look_around_change_nothing() {
    if !inside("look_around::programs_that_look_around_change_nothing") {
        return;
    }
    let world = World::new();
    // Six trees of 45 entries (two labels and latest, two bundles, staging), and what holds them.
    let found = world.look("find . -xdev | wc -l");
    assert_eq!(found.trim(), (6 * 45 + 5).to_string(), "labels, bundles and staging are walked");
    assert_eq!(world.look("find . -samefile census/labels/v1/link | wc -l").trim(), "1", "no two share a number");
    world.look("du -s . && du -s --inodes . && du --apparent-size census/labels/v1");
    world.look("ls -lR > /dev/null && ls -la census census/staging");
    assert_eq!(world.look("grep -rl changed . | sort | tr '\n' ' '").split_whitespace().count(), 4);
    world.look("tar -C census/labels -cf /dev/null v1 && tar -C census/bundles -cf /dev/null .");
    world.look(&format!("cp -r --reflink=auto census/labels/v1 {}", world.at("copied")));
    world.look(&format!("diff -r census/labels/v1 {}", world.at("copied")));
    if has("rsync") {
        world.look(&format!("rsync -aHAX census/labels/v1/ {}/", world.at("synced")));
        let left = world.look(&format!("rsync -aHAXn --itemize-changes census/labels/v1/ {}/", world.at("synced")));
        assert_eq!(left, "");
    }
    let python = format!(
        "import os, shutil; n = sum(len(files) for _, _, files in os.walk('.')); assert n == 6 * 42, n; \
         shutil.copytree('census/labels/v2', '{}', symlinks=True)",
        world.at("tree")
    );
    world.look(&format!("python3 -c \"{python}\" && diff -r --no-dereference census/labels/v2 {}", world.at("tree")));
    if has("git") {
        world.look("cd census/staging && ! git status 2> /dev/null");
    }
    if has("gio") {
        world.look(
            "gio list -a standard::name,unix::inode . && gio list census/labels/v1/tables && gio info census/staging",
        );
        world.look("gio tree census/labels > /dev/null");
    }
    if has("busybox") {
        world.look("busybox find . > /dev/null && busybox du -s . && busybox ls -lR > /dev/null");
    }
    if has("updatedb") {
        let database = world.at("locate.db");
        let index = |prune: &str| {
            let line = format!("updatedb -l no -U {} -o {database} {prune}", world.mnt.parent().unwrap().display());
            world.look(&line);
            world.look(&format!("locate -d {database} 39.csv | grep -c mnt-prod || true")).trim().to_owned()
        };
        assert_eq!(index("--prunefs fuse.datamon"), "0", "PRUNEFS keeps it away");
        assert_eq!(index("--prunefs ''"), "6", "without it every version is walked");
    }
    world.look("stat -f . && df . && df -i census/labels/v1 && findmnt -T census/staging");
    let umount = world.host.datamon(["umount", world.mnt.to_str().unwrap()]).output().unwrap();
    assert!(umount.status.success() && text(&umount).lines().count() == 1, "{}", text(&umount));
}
