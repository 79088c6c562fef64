//! What the installed scripts say of themselves.

use std::path::Path;
use std::process::Command;

#[test]
fn every_script_is_well_formed_and_executable() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scripts = [
        "packaging/install-deps.sh",
        "tests/tools.sh",
        "tests/fstests/run.sh",
        "tests/fstests/programs/git.sh",
        "tests/fstests/programs/copies.sh",
        "tests/fstests/programs/postgres.sh",
        "tests/fstests/programs/build.sh",
        "scripts/quickstart.sh",
        "scripts/acceptance.sh",
        ".ci/run",
    ];
    let sourced = [
        "scripts/namespaces.sh",
        "tests/boot/lib.sh",
        "tests/boot/first.sh",
        "tests/boot/second.sh",
        "tests/boot/third.sh",
    ];
    for script in scripts.iter().chain(&sourced) {
        let path = root.join(script);
        let checked = Command::new("bash").arg("-n").arg(&path).status().unwrap();
        assert!(checked.success(), "{script} is no bash");
        if sourced.contains(script) {
            continue;
        }
        use std::os::unix::fs::PermissionsExt;
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
    }
}
