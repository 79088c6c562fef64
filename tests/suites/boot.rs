//! A machine that boots: systemd as its first process, our lines in its fstab, a shutdown.
//!
//! The machine is systemd-nspawn over this host's own programs: `/` is the lower layer of an overlay whose changes lie in
//! memory, with services of its own (none but systemd's), so nothing has to be installed for it, and a boot takes a
//! second. What runs in it is `tests/boot/*.sh`: one script a boot, which ends with a shutdown.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{inside, run, scratch, target_dir, text, within};

/// One boot, its script, and its shutdown.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
const LIB: &str = include_str!("../boot/lib.sh");

struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new(dir: &Path) -> Self {
        let machine = Self { dir: dir.join("machine") };
        fs::create_dir(&machine.dir).unwrap();
        let at = |name: &str| machine.dir.join(name);
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&machine.dir));
        for name in ["upper", "work", "root", "check"] {
            fs::create_dir(at(name)).unwrap();
        }
        let (upper, work) = (at("upper"), at("work"));
        let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "none", "-o", &layers]).arg(at("root")));
        let root = at("root");
        // A machine that knows neither this host's services nor its mounts and contexts. All of that is in the upper layer.
        for hidden in ["etc/systemd/system", "etc/fstab", "etc/datamon", "var/log/journal"] {
            run(Command::new("rm").arg("-rf").arg(root.join(hidden)));
        }
        fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
        fs::create_dir_all(root.join("var/log/journal")).unwrap();
        // Not there before: what is made below it is made nowhere else.
        fs::create_dir(root.join("dmtest")).unwrap();
        for made in ["dm", "away", "census", "store"] {
            fs::create_dir(root.join("dmtest").join(made)).unwrap();
        }
        let unit = "[Unit]\nRequires=basic.target\nAfter=basic.target remote-fs.target\nWants=remote-fs.target\n\
                    DefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/check/run\n\
                    StandardOutput=append:/check/out\nStandardError=inherit\n";
        fs::write(root.join("etc/systemd/system/check.service"), unit).unwrap();
        let helper = root.join("usr/sbin/mount.datamon");
        run(Command::new("install")
            .args(["-m", "755"])
            .arg(target_dir().join("debug/datamon-mount-helper"))
            .arg(&helper));
        for name in ["umount.datamon", "mount.fuse.datamon", "umount.fuse.datamon"] {
            let link = root.join("usr/sbin").join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink("mount.datamon", link).unwrap();
        }
        machine
    }

    fn fstab(&self, lines: &str) {
        fs::write(self.dir.join("root/etc/fstab"), lines).unwrap();
    }

    /// Boots, runs the script, which has to come to its end, and shuts down.
    fn boot(&self, script: &str) {
        let check = self.dir.join("check");
        let whole = format!("{LIB}\n{script}\necho done\n");
        fs::write(check.join("run"), whole).unwrap();
        fs::write(check.join("out"), "").unwrap();
        run(Command::new("chmod").arg("755").arg(check.join("run")));
        let mut boot = Command::new("systemd-nspawn");
        boot.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"]);
        boot.args(["--bind=/dev/fuse", "--bind=/dev/autofs", "--bind-ro"])
            .arg(format!("{}:/usr/local/bin/datamon", env!("CARGO_BIN_EXE_datamon")));
        boot.arg(format!("--bind={}:/check", check.display())).arg("-D").arg(self.dir.join("root"));
        let ended = within(BOOT_LIMIT, boot.arg("systemd.unit=check.service"));
        let said = fs::read_to_string(check.join("out")).unwrap();
        assert!(ended.status.success() && said.ends_with("done\n"), "{}\n{}\n{said}", ended.status, text(&ended));
    }
}

/// Whether a machine can be booted here; if not, that is said.
fn can_boot() -> bool {
    let has_nspawn =
        Command::new("systemd-nspawn").arg("--version").output().is_ok_and(|output| output.status.success());
    let lacks = [(has_nspawn, "systemd-nspawn"), (Path::new("/dev/autofs").exists(), "/dev/autofs")];
    for (_, what) in lacks.iter().filter(|(has, _)| !has) {
        let _ = writeln!(std::io::stderr(), "SKIPPED boot: {what} is not here (packaging/install-deps.sh --tests)");
    }
    lacks.iter().all(|(has, _)| *has)
}

#[test]
fn a_machine_boots_with_our_lines_in_fstab_and_loses_nothing_at_shutdown() {
    if !can_boot() || !inside("boot::a_machine_boots_with_our_lines_in_fstab_and_loses_nothing_at_shutdown") {
        return;
    }
    let dir = scratch();
    let machine = Machine::new(dir.path());
    machine.fstab(include_str!("../boot/fstab"));
    let scripts =
        [include_str!("../boot/first.sh"), include_str!("../boot/second.sh"), include_str!("../boot/third.sh")];
    for script in scripts {
        let start = Instant::now();
        machine.boot(script);
        eprintln!("a boot, what is done in it, and a shutdown: {:?}", start.elapsed());
    }
}
