//! Many hosts commit to one repo at the same moment, each a daemon of its own, through a real S3 server.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::harness::{Host, Place, inside, run, scratch};

/// Hosts of the default form; `DATAMON_COMMITTERS=N` takes another number.
const COMMITTERS: usize = 50;
/// Mounts that are made at once: two cores start no more of them any faster.
const AT_ONCE: usize = 8;

fn committers() -> usize {
    std::env::var("DATAMON_COMMITTERS").map_or(COMMITTERS, |text| text.parse().expect("DATAMON_COMMITTERS: a number"))
}

/// What only the committer `number` has: some chunks of its own.
fn own(number: usize) -> Vec<u8> {
    (0..300_000u32).map(|n| ((n ^ number as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Every host knows the context and has the staging tree mounted, with two files in it.
fn mounted(place: &Place, dir: &std::path::Path, numbers: std::ops::Range<usize>) -> Vec<(Host, PathBuf)> {
    let one = |number: usize| {
        let host = place.host(&dir.join(format!("host-{number}")), "add");
        let mnt = host.mount("prod/census/staging", "rw");
        fs::write(mnt.join("common"), own(1_000_000)).unwrap();
        fs::write(mnt.join(format!("own-{number}")), own(number)).unwrap();
        (host, mnt)
    };
    let one = &one;
    std::thread::scope(|scope| {
        let threads: Vec<_> = numbers.map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn fifty_processes_commit_to_one_repo_at_once_and_make_one_history() {
    if !inside("committers::fifty_processes_commit_to_one_repo_at_once_and_make_one_history") {
        return;
    }
    let count = committers();
    let dir = scratch();
    let place = Place::s3(&dir.path().join("store"));
    let first = place.host(&dir.path().join("first"), "create");
    let reader = first.mount("prod", "rw");
    fs::create_dir(reader.join("census")).unwrap();

    let begun = Instant::now();
    let numbers: Vec<usize> = (0..count).collect();
    let mut hosts = Vec::new();
    for part in numbers.chunks(AT_ONCE) {
        hosts.extend(mounted(&place, dir.path(), part[0]..part[0] + part.len()));
    }
    let prepared = begun.elapsed();

    let begun = Instant::now();
    let commits: Vec<_> = hosts
        .iter()
        .map(|(host, mnt)| {
            let mut command = host.datamon(["commit", mnt.to_str().unwrap()]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outputs: Vec<_> = commits.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let took = begun.elapsed();

    let mut bundles = Vec::new();
    let mut diverged = 0;
    for (number, output) in outputs.iter().enumerate() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "committer {number}: {said}");
        diverged += usize::from(said.contains("latest was no longer the base"));
        bundles.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    assert_eq!(bundles.iter().collect::<BTreeSet<_>>().len(), count, "each has a bundle of its own");
    assert_eq!(diverged, count - 1, "all but one are told that they diverged");

    // Seen by a host that has nothing of it yet.
    let other = place.host(&dir.path().join("other"), "add");
    let mnt = other.mount("prod/census", "ro");
    let history = fs::read_to_string(mnt.join(".datamon/history")).unwrap();
    let entered: Vec<&str> = history.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(entered.len(), count, "one history:\n{history}");
    let (told, listed): (BTreeSet<&str>, BTreeSet<&str>) =
        (bundles.iter().map(String::as_str).collect(), entered.iter().copied().collect());
    assert_eq!(told, listed, "of all the bundles that were told, each once");
    for (number, bundle) in bundles.iter().enumerate() {
        let tree = mnt.join("bundles").join(bundle);
        let names: BTreeSet<_> = fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{bundle}: {names:?}");
        assert!(fs::read(tree.join("common")).unwrap() == own(1_000_000), "{bundle}");
        assert!(fs::read(tree.join(format!("own-{number}"))).unwrap() == own(number), "{bundle}");
    }
    let latest = fs::read_to_string(mnt.join(".datamon/labels/latest")).unwrap_or_default();
    assert_eq!(Some(&latest.trim()), entered.last(), "latest is the last of the history");
    let pause = Duration::from_millis(1);
    assert!(took > pause, "something was done");
    eprintln!("{count} committers: mounted in {prepared:.1?}, all committed {took:.1?} after the first began");
    for (host, mnt) in &hosts {
        // The daemons end with the namespace; a mount that is busy no more shows that nothing hangs.
        run(Command::new("umount").args(["-i", mnt.to_str().unwrap()]));
        drop(host.daemons(mnt));
    }
}
