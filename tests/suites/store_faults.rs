//! A store that misbehaves: whole round trips through a proxy that does to requests what a bad day does.
//!
//! What each test asks is the same. Is every byte that is shown right? Is what fails refused, in time, with its reason,
//! and everything kept? Is the next try good, and is no version there twice? And is the store left alone meanwhile?
//!
//! `DATAMON_FAULT_ROUNDS=N` makes the round trips longer, `DATAMON_FAULT_SEED=N` repeats a run's choices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Host, Place, differences, inside, run, scratch, text, until, within};
use super::proxy::{Fault, Proxy, Request, Seen};
use super::trees::noise;

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const ETIMEDOUT: i32 = 110;
const EIO: i32 = 5;
/// How much later than its deadline a refusal may come, on a machine that does other things too.
const LATE: Duration = Duration::from_secs(2);
/// Repetitions that a store may be asked at once, whatever succeeded before (src/store/retry.rs).
const ALLOWANCE: u64 = 20;

fn rounds() -> u64 {
    std::env::var("DATAMON_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

fn seed() -> u64 {
    std::env::var("DATAMON_FAULT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7)
}

/// splitmix64: a number that looks random, the same for the same input.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

// ---- what is done ----------------------------------------------------------------------------------------------------

/// Files of all sizes that matter: inline, grouped, a chunk, several chunks, and some that compress.
fn make_tree(root: &Path, seed: u64) {
    for d in 0..4u64 {
        let dir = root.join(format!("directory-{d}"));
        fs::create_dir_all(dir.join("empty")).unwrap();
        for f in 0..20u64 {
            let len = 50 + (f as usize * 1_031) % 20_000;
            fs::write(dir.join(format!("file-{f:02}")), noise(seed + d * 100 + f + 1, len)).unwrap();
        }
        std::os::unix::fs::symlink("file-00", dir.join("link")).unwrap();
    }
    fs::write(root.join("large-a"), noise(seed + 1_001, 3 * MIB)).unwrap();
    fs::write(root.join("large-b"), noise(seed + 1_002, 4 * MIB + 7)).unwrap();
    fs::write(root.join("text"), "a line that comes again and again\n".repeat(60_000)).unwrap();
}

/// A small change of the tree, the same in its copy.
fn change(roots: [&Path; 2], round: u64) {
    for root in roots {
        let large = File::options().write(true).open(root.join("large-b")).unwrap();
        let written = large.write_all_at(&round.to_le_bytes(), 2 * MIB as u64 + 5);
        written.unwrap_or_else(|why| panic!("{}: {why}\n{}", root.display(), log_beside(root)));
        fs::write(root.join(format!("new-{round}")), noise(5_000 + round, 30_000)).unwrap();
    }
    let [tree, staging] = roots;
    for name in ["large-b", &format!("new-{round}"), ""] {
        run(Command::new("touch").arg("-r").arg(tree.join(name)).arg(staging.join(name)));
    }
}

fn copy(tree: &Path, staging: &Path) {
    run(Command::new("cp").arg("-a").arg(format!("{}/.", tree.display())).arg(staging));
}

fn status(dir: &Path) -> String {
    fs::read_to_string(dir.join(".datamon/status"))
        .unwrap_or_else(|why| panic!("{}/.datamon/status: {why}\n{}", dir.display(), log_beside(dir)))
}

/// What the daemon of a mount has logged, for who has to find out why.
fn log_beside(mnt: &Path) -> String {
    fs::read_to_string(mnt.parent().unwrap().join("state/log/prod.log")).unwrap_or_default()
}

/// A host with a repo.
fn host_with_repo(place: &Place, dir: &Path) -> Host {
    let one = place.host(&dir.join("one"), "create");
    let context = one.mount("prod", "rw");
    fs::create_dir(context.join("census")).unwrap();
    one.umount_among_others(&context);
    one
}

/// The same, its staging tree mounted by itself.
fn staging_of(place: &Place, dir: &Path, options: &str) -> (Host, PathBuf) {
    let one = host_with_repo(place, dir);
    let staging = one.mount("prod/census/staging", options);
    (one, staging)
}

/// Commits until it is done; whatever was refused was refused in one line, with a reason, and kept everything.
/// Answers how often it was refused.
fn commit(tree: &Path, staging: &Path, what: &str) -> u64 {
    let begun = Instant::now();
    for refused in 0.. {
        let output = within(SOON, Command::new("sync").arg(staging));
        if output.status.success() {
            return refused;
        }
        assert_refused(&text(&output), staging, what);
        compare(tree, staging, what);
        assert!(begun.elapsed() < 2 * SOON, "{what}: no commit in {:?}: {}", begun.elapsed(), status(staging));
    }
    unreachable!("a commit ends")
}

fn assert_refused(said: &str, staging: &Path, what: &str) {
    assert_eq!(said.lines().count(), 1, "{what}: {said}");
    let status = status(staging);
    let told = status.lines().find(|line| line.starts_with("last_error: commit")).unwrap_or_default();
    assert!(told.contains("the store does not answer") || told.contains("damaged"), "{what}: {said}: {status}");
    assert!(status.contains("staging: dirty"), "{what}: {status}");
}

/// The store is well again: everything that was staged is there, before anything else is done.
fn assert_kept(proxy: &Proxy, tree: &Path, staging: &Path, what: &str) {
    proxy.clear();
    // A refusal answers for its place a moment longer: the kernel asks twice.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(differences(tree, staging), "", "{what}: everything stays staged");
}

/// Reads every file of the tree in its copy: right bytes, or a refusal. Answers how many were refused.
fn compare(tree: &Path, copy: &Path, what: &str) -> u64 {
    let mut refused = 0;
    let found = run(Command::new("find").arg(tree).args(["-type", "f"]));
    for original in found.lines().map(Path::new) {
        let path = copy.join(original.strip_prefix(tree).unwrap());
        match fs::read(&path) {
            Ok(bytes) => assert!(bytes == fs::read(original).unwrap(), "{what}: {}: wrong bytes", path.display()),
            Err(why) if [Some(EIO), Some(ETIMEDOUT)].contains(&why.raw_os_error()) => refused += 1,
            Err(why) => panic!("{what}: {}: {why}", path.display()),
        }
    }
    refused
}

/// How many requests a mount counts, repetitions among them, and these alone.
fn requests(mnt: &Path) -> (u64, u64) {
    let status = status(mnt);
    let line = status.lines().find_map(|line| line.strip_prefix("requests: ")).unwrap_or_else(|| panic!("{status}"));
    let number = |part: &str| part.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap();
    let counts: Vec<u64> = line.split(", ").map(number).collect();
    (counts[..3].iter().sum(), counts[3])
}

/// What another host finds: so many versions, each once in the history, the newest of them the tree.
fn assert_versions(place: &Place, dir: &Path, tree: &Path, count: usize, what: &str) {
    let host = place.host(&dir.join("witness"), "add");
    let mnt = host.mount("prod", "ro");
    let bundles = fs::read_dir(mnt.join("census/bundles")).unwrap().count();
    let history = fs::read_to_string(mnt.join("census/.datamon/history")).unwrap();
    let named: BTreeSet<_> = history.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!((bundles, history.lines().count(), named.len()), (count, count, count), "{what}: {history}");
    assert_eq!(differences(tree, &mnt.join("census/labels/latest")), "", "{what}: another host sees every byte");
    host.umount_among_others(&mnt);
}

/// Lets every case run at once, each on a thread of its own; a failure says which.
fn at_once<T: Send>(cases: Vec<(String, T)>, run: impl Fn(&str, T) + Sync) {
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> =
            cases.into_iter().map(|(name, case)| (name.clone(), scope.spawn(move || run(&name, case)))).collect();
        let failed: Vec<_> =
            running.into_iter().filter_map(|(name, case)| case.join().is_err().then_some(name)).collect();
        assert!(failed.is_empty(), "failed under {failed:?} (see above)");
    });
}

fn named(faults: &[Fault]) -> Vec<(String, Fault)> {
    faults.iter().map(|fault| (format!("{fault:?}"), *fault)).collect()
}

/// A name that a store takes.
fn prefix(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

#[test]
fn one_wrong_answer_for_many_small_files_refuses_none_of_them() {
    if !inside("store_faults::one_wrong_answer_for_many_small_files_refuses_none_of_them") {
        return;
    }
    let dir = scratch();
    let server = Place::s3(dir.path());
    let (place, proxy) = server.behind_proxy("small");
    let (one, staging) = staging_of(&place, dir.path(), "rw");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..400u64 {
        fs::write(tree.join(format!("f{n:03}")), noise(n + 1, 5_000)).unwrap();
    }
    copy(&tree, &staging);
    assert_eq!(commit(&tree, &staging, "small"), 0);
    one.umount(&staging);
    // The n-th answer with bytes of several blocks has one that is another; every other answer is right.
    for wrong in 0..3 {
        let mut asked = 0;
        proxy.plan(move |request| {
            let is_window = |(first, last)| last - first >= 200 << 10;
            let is_wanted = request.is_read() && request.path.contains("/p/") && request.range.is_some_and(is_window);
            asked += usize::from(is_wanted);
            (is_wanted && asked == wrong + 1).then_some(Fault::Flip(500))
        });
        let other = place.host(&dir.path().join(format!("other{wrong}")), "add");
        let mark = proxy.mark();
        let mnt = other.mount("prod/census/labels/latest", "ro,timeout=20s");
        // In the order in which they lie in the pack: who reads so has many fetched at once.
        for n in 0..400u64 {
            let read = fs::read(mnt.join(format!("f{n:03}")));
            let read = read.unwrap_or_else(|why| panic!("answer {wrong}, file {n}: {why}: {}", status(&mnt)));
            assert!(read == noise(n + 1, 5_000), "answer {wrong}, file {n}: wrong bytes");
        }
        assert_eq!(proxy.since(mark).iter().filter(|seen| seen.fault.is_some()).count(), 1, "answer {wrong}");
        proxy.clear();
        other.umount(&mnt);
    }
}

// ---- a store that fails now and then -----------------------------------------------------------------------------------

/// Which requests a kind of fault can happen to.
fn suits(fault: Fault, request: &Request) -> bool {
    match fault {
        Fault::ResetInRequest | Fault::LoseAnswer | Fault::LandedStatus(_) => request.is_write(),
        // Nobody waits for a pack less than its bytes may take on the slowest link: 16 s a MiB.
        Fault::LandedStall => request.is_write() && !request.path.contains("/p/"),
        Fault::ResetInAnswer | Fault::CutAnswer => request.method == "GET",
        // The answer to a LIST proves nothing of itself: what protects it is the connection.
        Fault::Flip(_) | Fault::ShortAnswer => request.is_read(),
        _ => true,
    }
}

/// Every `percent`-th request that the fault suits, by its number and the seed.
fn sometimes(proxy: &Proxy, fault: Fault, percent: u64, seed: u64) {
    proxy.plan(move |request| {
        let number = mixed(seed ^ mixed(request.number as u64));
        let fault = match fault {
            Fault::Flip(_) => Fault::Flip((number >> 32) as u16),
            fault => fault,
        };
        (suits(fault, request) && number % 100 < percent).then_some(fault)
    });
}

fn round_trip(server: &Place, dir: &Path, name: &str, fault: Fault, percent: u64, seed: u64) {
    let dir = &dir.join(prefix(name));
    let (place, proxy) = server.behind_proxy(&prefix(name));
    let tree = dir.join("tree");
    make_tree(&tree, seed);
    let one = host_with_repo(&place, dir);
    // From here on all requests are one daemon's.
    let mark = proxy.mark();
    let staging = one.mount("prod/census/staging", "timeout=20s");
    // Of the requests of a commit one in three is a write. More would use the budget up, which is another test's.
    let is_write = matches!(fault, Fault::ResetInRequest | Fault::LoseAnswer | Fault::LandedStatus(_));
    let percent = if is_write { (3 * percent).min(30) } else { percent };
    sometimes(&proxy, fault, percent, seed);
    copy(&tree, &staging);
    let mut refused = commit(&tree, &staging, name);
    change([&tree, &staging], 0);
    refused += commit(&tree, &staging, name);
    let (all, again) = requests(&staging);
    // Every request that the store saw is one that the daemon counted: nothing else repeats any.
    until(SOON, "requests are counted", || requests(&staging).0 == proxy.since(mark).len() as u64);
    assert!(again * 10 <= all - again + 10 * ALLOWANCE, "{name}: {again} of {all} requests are repetitions");
    let hit = proxy.since(mark).iter().filter(|seen| seen.fault.is_some()).count();

    let two = place.host(&dir.join("two"), "add");
    let mnt = two.mount("prod", "ro,timeout=20s");
    let mark_reads = proxy.mark();
    let latest = mnt.join("census/labels/latest");
    let mut unread = compare(&tree, &latest, name);
    if !matches!(fault, Fault::Flip(_) | Fault::ShortAnswer) {
        assert_eq!(unread, 0, "{name}: a store that fails now and then is asked again: {}", status(&mnt));
    }
    // Two wrong answers in a row are a refusal, not a memory of one.
    for _ in 0..5 {
        if unread > 0 {
            unread = compare(&tree, &latest, name);
        }
    }
    assert_eq!(unread, 0, "{name}: what was refused is read at the next try: {}", status(&mnt));
    let (all_reads, again_reads) = requests(&mnt);
    assert!(again_reads * 10 <= all_reads - again_reads + 10 * ALLOWANCE, "{name}: {again_reads} of {all_reads}");
    let hit_reads = proxy.since(mark_reads).iter().filter(|seen| seen.fault.is_some()).count();
    proxy.clear();
    assert_eq!(differences(&tree, &latest), "", "{name}");
    two.umount_among_others(&mnt);
    one.umount_among_others(&staging);
    assert_versions(&place, dir, &tree, 2, name);
    eprintln!(
        "{name} at {percent} %: {hit} of {all} requests hit, {again} again, {refused} commits refused; reading \
         {hit_reads} of {all_reads} hit, {again_reads} again"
    );
}

#[test]
fn a_round_trip_through_a_store_that_fails_now_and_then_is_right() {
    if !inside("store_faults::a_round_trip_through_a_store_that_fails_now_and_then_is_right") {
        return;
    }
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let faults = [
        Fault::Status(429, None),
        Fault::Status(500, None),
        Fault::Status(503, Some(1)),
        Fault::ResetBefore,
        Fault::ResetInRequest,
        Fault::ResetInAnswer,
        Fault::CutAnswer,
        Fault::ShortAnswer,
        Fault::Flip(0),
        Fault::LoseAnswer,
        Fault::LandedStatus(503),
        Fault::SlowFirstByte(Duration::from_millis(700)),
    ];
    for round in 0..rounds() {
        let round_dir = dir.path().join(round.to_string());
        at_once(named(&faults), |name, fault| {
            let percent = [8, 15, 4, 20][round as usize % 4];
            round_trip(&server, &round_dir, &format!("{name} {round}"), fault, percent, seed() + round);
        });
        fs::remove_dir_all(&round_dir).unwrap();
    }
}

// ---- a store that is away ----------------------------------------------------------------------------------------------

const SHORT: Duration = Duration::from_secs(4);

/// Refuses one request in eight, loses the answers of one write in eight; with `lies` the store overwrites, too.
fn bad_day(proxy: &Proxy, seed: u64, lies: bool) {
    proxy.plan(move |request| match mixed(seed ^ mixed(request.number as u64)) % 8 {
        0 => Some(Fault::Status(503, None)),
        1 if request.is_write() => Some(Fault::LoseAnswer),
        _ => (lies && request.is_write()).then_some(Fault::Overwrite),
    });
}

#[test]
fn a_context_is_made_and_checked_on_a_bad_day_and_a_liar_is_found_out_on_one() {
    if !inside("store_faults::a_context_is_made_and_checked_on_a_bad_day_and_a_liar_is_found_out_on_one") {
        return;
    }
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let mut hit = 0;
    for round in 0..4 * rounds() {
        let what = format!("round {round}, seed {}", seed());
        let (place, proxy) = server.behind_proxy(&format!("day{round}"));
        bad_day(&proxy, seed() ^ round, false);
        // Fails if the context cannot be made.
        let host = place.host(&dir.path().join(format!("host-{round}")), "create");
        let checked = within(SOON, &mut host.datamon(["context", "check", "prod"]));
        assert!(checked.status.success(), "{what}: {}", text(&checked));
        bad_day(&proxy, seed() ^ round, true);
        let checked = within(SOON, &mut host.datamon(["context", "check", "prod", "--json"]));
        assert!(!checked.status.success(), "{what}: {}", text(&checked));
        assert!(text(&checked).contains("overwr") || text(&checked).contains("wrote"), "{what}: {}", text(&checked));
        // Away altogether: no liar, but nobody.
        proxy.plan(|_| Some(Fault::Status(503, None)));
        let checked = within(SOON, &mut host.datamon(["context", "check", "prod", "--json"]));
        assert!(!checked.status.success() && text(&checked).contains("does not answer"), "{what}: {}", text(&checked));
        assert!(!text(&checked).contains("wrote"), "{what}: {}", text(&checked));
        hit += proxy.seen().iter().filter(|seen| seen.fault.is_some()).count();
    }
    eprintln!("{} contexts made and checked, {hit} requests hit", 4 * rounds());
}

/// Reads from the file what comes before `end`; answers how it went and how long it took.
fn timed_read(path: &Path) -> (Result<Vec<u8>, std::io::Error>, Duration) {
    let begun = Instant::now();
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    (read(), begun.elapsed())
}

/// Two versions: `cached` and `away` lie in the first one's pack, `near` in the second's. Answers the first pack's name.
fn two_packs(server: &Place, dir: &Path, tree: &Path) -> String {
    let (place, proxy) = server.behind_proxy("away");
    fs::create_dir(tree).unwrap();
    fs::write(tree.join("cached"), noise(31, 70_000)).unwrap();
    fs::write(tree.join("away"), noise(32, 9 * MIB)).unwrap();
    let (one, staging) = staging_of(&place, dir, "rw");
    for name in ["cached", "away"] {
        fs::copy(tree.join(name), staging.join(name)).unwrap();
    }
    run(Command::new("sync").arg(&staging));
    let is_pack = |seen: &&Seen| seen.request.is_write() && seen.request.path.contains("/p/");
    let first: BTreeSet<_> = proxy.seen().iter().filter(is_pack).map(|seen| seen.request.path.clone()).collect();
    fs::write(tree.join("near"), noise(33, 300_000)).unwrap();
    fs::copy(tree.join("near"), staging.join("near")).unwrap();
    run(Command::new("sync").arg(&staging));
    one.umount_among_others(&staging);
    assert_eq!(first.len(), 1, "{first:?}");
    first.into_iter().next().unwrap()
}

#[test]
fn a_read_is_right_or_refused_at_its_deadline_and_keeps_nobody_else_waiting() {
    if !inside("store_faults::a_read_is_right_or_refused_at_its_deadline_and_keeps_nobody_else_waiting") {
        return;
    }
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let tree = dir.path().join("tree");
    let pack = two_packs(&server, &dir.path().join("first"), &tree);
    let faults = [
        Fault::Status(503, None),
        Fault::Status(503, Some(600)),
        Fault::ResetBefore,
        Fault::ResetInAnswer,
        Fault::CutAnswer,
        Fault::ShortAnswer,
        Fault::Flip(500),
        Fault::SlowFirstByte(Duration::from_secs(20)),
        Fault::Stall,
    ];
    // The second time the file's beginning comes, and what was begun behind it does not.
    let cases: Vec<_> = named(&faults)
        .into_iter()
        .flat_map(|(name, fault)| [(format!("{name} at once"), (fault, 0)), (format!("{name} later"), (fault, MIB))])
        .collect();
    for part in cases.chunks(9) {
        at_once(part.to_vec(), |name, (fault, from)| {
            let (place, proxy) = server.behind_proxy("away");
            let host = place.host(&dir.path().join(prefix(name)), "add");
            let mnt = host.mount("prod/census/labels/latest", &format!("timeout={}s", SHORT.as_secs()));
            assert!(fs::read(mnt.join("cached")).unwrap() == fs::read(tree.join("cached")).unwrap());
            run(Command::new("ls").arg("-l").arg(&mnt));
            let (pack, pack_name) = (pack.clone(), pack.rsplit('/').next().unwrap());
            proxy.plan(move |request| {
                let is_early = request.range.is_some_and(|(begin, end)| begin < from as u64 && end < 2 * from as u64);
                (request.path == pack && !is_early).then_some(fault)
            });
            std::thread::scope(|scope| {
                let mut others = Duration::ZERO;
                let away = scope.spawn(|| timed_read(&mnt.join("away")));
                std::thread::sleep(Duration::from_millis(200));
                for other in ["near", "cached"] {
                    let (read, took) = timed_read(&mnt.join(other));
                    assert!(read.unwrap() == fs::read(tree.join(other)).unwrap(), "{name}: {other}: wrong bytes");
                    // Not for the deadline of another: what else a read takes is the machine's business.
                    assert!(took < SHORT / 2, "{name}: {other} waited {took:?}");
                    others = others.max(took);
                }
                let (read, took) = away.join().unwrap();
                match read {
                    // The byte may lie in a proof, which nobody needs who reads the whole chunk: then all is right.
                    Ok(bytes) => {
                        let is_right = bytes == fs::read(tree.join("away")).unwrap();
                        assert!(is_right && matches!(fault, Fault::Flip(_)), "{name}: read, right: {is_right}");
                        eprintln!("{name}: read right after {took:?}, others after {others:?} at most");
                    }
                    Err(why) => {
                        let why = why.raw_os_error();
                        eprintln!("{name}: refused with {why:?} after {took:?}, others after {others:?} at most");
                        assert!([Some(EIO), Some(ETIMEDOUT)].contains(&why), "{name}: {why:?}");
                        assert!(took < SHORT + LATE, "{name}: refused after {took:?}, timeout={SHORT:?}");
                        let said = host.log();
                        assert!(said.contains(pack_name), "{name}: the object is named: {said}");
                    }
                }
            });
            proxy.clear();
            // A refusal answers for its place a moment longer: the kernel asks twice.
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(compare(&tree, &mnt, name), 0, "{name}: right as soon as the store is");
            host.umount_among_others(&mnt);
        });
    }
}

#[test]
fn a_commit_under_a_store_that_is_away_is_done_or_refused_whole_and_the_next_is_good() {
    if !inside("store_faults::a_commit_under_a_store_that_is_away_is_done_or_refused_whole_and_the_next_is_good") {
        return;
    }
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let faults = [
        Fault::Status(429, Some(1)),
        Fault::Status(500, None),
        Fault::Status(503, None),
        Fault::ResetBefore,
        Fault::ResetInRequest,
        Fault::ResetInAnswer,
        Fault::CutAnswer,
        Fault::ShortAnswer,
        Fault::Flip(500),
        Fault::LoseAnswer,
        Fault::LandedStatus(503),
        Fault::LandedStall,
        Fault::SlowFirstByte(Duration::from_secs(20)),
        Fault::Stall,
    ];
    for part in named(&faults).chunks(14) {
        at_once(part.to_vec(), |name, fault| {
            let dir = &dir.path().join(prefix(name));
            let (place, proxy) = server.behind_proxy(&prefix(name));
            let tree = dir.join("tree");
            make_tree(&tree, seed());
            let (one, staging) = staging_of(&place, dir, &format!("timeout={}s", SHORT.as_secs()));
            copy(&tree, &staging);
            assert_eq!(commit(&tree, &staging, name), 0);
            change([&tree, &staging], 0);
            proxy.plan(move |request| suits(fault, request).then_some(fault));
            let begun = Instant::now();
            let output = within(SOON, Command::new("sync").arg(&staging));
            let took = begun.elapsed();
            let done = output.status.success();
            if !done {
                assert_refused(&text(&output), &staging, name);
            }
            eprintln!("{name}: {} after {took:?}", if done { "done" } else { "refused" });
            // One deadline; and before it the time that a commit gives what the background has under way.
            assert!(done || took < 2 * SHORT + LATE, "{name}: {took:?}");
            // What needs nothing of the store goes on meanwhile.
            for root in [&tree, &staging] {
                fs::write(root.join("meanwhile"), noise(6_000, 50_000)).unwrap();
            }
            for touched in ["meanwhile", ""] {
                run(Command::new("touch").arg("-r").arg(tree.join(touched)).arg(staging.join(touched)));
            }
            assert_kept(&proxy, &tree, &staging, name);
            assert_eq!(commit(&tree, &staging, name), 0, "{name}: the next try is good");
            one.umount_among_others(&staging);
            let versions = host_versions(&place, dir);
            assert!(versions == 2 || versions == 3, "{name}: {versions} versions");
            assert!(versions == 3 || !done, "{name}: what was said to be done is there");
            assert_versions(&place, dir, &tree, versions, name);
        });
    }
}

fn host_versions(place: &Place, dir: &Path) -> usize {
    let host = place.host(&dir.join("counter"), "add");
    let mnt = host.mount("prod", "ro");
    let count = fs::read_dir(mnt.join("census/bundles")).unwrap().count();
    host.umount_among_others(&mnt);
    count
}

#[test]
fn a_write_that_landed_unseen_is_found_again_at_every_step_of_a_commit() {
    if !inside("store_faults::a_write_that_landed_unseen_is_found_again_at_every_step_of_a_commit") {
        return;
    }
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let steps = ["/wal/", "/p/", "/m/", "/bundles/", "/refs/"].map(|step| (step.to_owned(), step));
    at_once(steps.to_vec(), |name, step| {
        let own = format!("step{}", prefix(name));
        let dir = &dir.path().join(&own);
        let (place, proxy) = server.behind_proxy(&own);
        let tree = dir.join("tree");
        make_tree(&tree, seed());
        let (one, staging) = staging_of(&place, dir, &format!("timeout={}s", SHORT.as_secs()));
        copy(&tree, &staging);
        assert_eq!(commit(&tree, &staging, name), 0);
        let unseen = [Fault::LoseAnswer, Fault::LandedStatus(503)];
        for (round, fault) in unseen.into_iter().enumerate() {
            // The look at what was written shows it.
            proxy.plan(move |request| (request.path.contains(step) && request.is_write()).then_some(fault));
            change([&tree, &staging], round as u64);
            assert_eq!(commit(&tree, &staging, name), 0, "{name} {fault:?}");
        }
        // And the same where the look shows nothing, or something else: done or not, nobody knows before the next try.
        const MISLED: Fault = Fault::Flip(0);
        let blind = [(Fault::Status(503, None), "blind"), (MISLED, "misled")];
        for (round, (look, what)) in blind.into_iter().enumerate() {
            let fault = Fault::LoseAnswer;
            change([&tree, &staging], 2 + round as u64);
            proxy.plan(move |request| match (request.path.contains(step), request.is_write()) {
                (true, true) => Some(fault),
                // What goes wrong on its way does not go wrong twice in the same place.
                (true, false) if look == MISLED => Some(Fault::Flip((request.number * 37 % 1000) as u16)),
                (true, false) => Some(look),
                _ => None,
            });
            let begun = Instant::now();
            let output = within(SOON, Command::new("sync").arg(&staging));
            if !output.status.success() {
                assert_refused(&text(&output), &staging, name);
            }
            let how = if output.status.success() { "done" } else { "refused" };
            eprintln!("{name} {what}: {how} after {:?}", begun.elapsed());
            assert_kept(&proxy, &tree, &staging, name);
            assert_eq!(commit(&tree, &staging, name), 0, "{name} {what}: the next try is good");
        }
        one.umount_among_others(&staging);
        assert_versions(&place, dir, &tree, 5, name);
    });
}

// ---- a store that is busy ----------------------------------------------------------------------------------------------

/// The times between the requests for one thing, in the order in which they came.
fn pauses(seen: &[Seen]) -> Vec<Vec<Duration>> {
    let mut times: BTreeMap<_, Vec<Instant>> = BTreeMap::new();
    for Seen { request, at, .. } in seen {
        times.entry((&request.path, request.range)).or_default().push(*at);
    }
    times.into_values().map(|times| times.windows(2).map(|pair| pair[1] - pair[0]).collect()).collect()
}

/// A version of 12 files that are read by one request each, mounted with nothing but its names read.
fn busy_mount(place: &Place, dir: &Path, options: &str) -> (Host, PathBuf) {
    let host = place.host(dir, "add");
    let mnt = host.mount("prod/census/labels/latest", options);
    run(Command::new("ls").arg("-l").arg(&mnt));
    (host, mnt)
}

/// Bytes of a file that is one chunk, and too large to be fetched with its neighbours.
const LARGE_BYTES: usize = 600_000;

/// Reads these files all at once; answers how each read went.
fn read_all(mnt: &Path, names: std::ops::Range<u64>) -> Vec<(bool, Duration)> {
    std::thread::scope(|scope| {
        let reads: Vec<_> = names
            .map(|name| {
                scope.spawn(move || {
                    let (read, took) = timed_read(&mnt.join(name.to_string()));
                    let is_right = read.map(|bytes| assert!(bytes == noise(900 + name, LARGE_BYTES), "wrong bytes"));
                    (is_right.is_ok(), took)
                })
            })
            .collect();
        reads.into_iter().map(|read| read.join().unwrap()).collect()
    })
}

#[test]
fn a_busy_store_is_left_alone_for_as_long_as_it_asks_and_never_asked_in_step_or_beyond_the_budget() {
    if !inside(
        "store_faults::a_busy_store_is_left_alone_for_as_long_as_it_asks_and_never_asked_in_step_or_beyond_the_budget",
    ) {
        return;
    }
    let dir = scratch();
    let server = Place::s3(&dir.path().join("server"));
    let (place, proxy) = server.behind_proxy("busy");
    let (one, staging) = staging_of(&place, &dir.path().join("first"), "timeout=30s");
    for name in 0..12 {
        fs::write(staging.join(name.to_string()), noise(900 + name, LARGE_BYTES)).unwrap();
    }
    // A write too is repeated, and looked for, no earlier than the store asks.
    let mut asked = BTreeSet::new();
    let mark = proxy.mark();
    proxy.plan(move |request| {
        (request.is_write() && asked.insert(request.path.clone())).then_some(Fault::Status(503, Some(1)))
    });
    run(Command::new("sync").arg(&staging));
    proxy.clear();
    let hit: Vec<_> = proxy.since(mark).into_iter().filter(|seen| seen.fault.is_some()).collect();
    assert!(hit.len() >= 4, "{hit:?}");
    for Seen { request, at, .. } in &hit {
        let later = proxy.since(mark).into_iter().find(|seen| seen.request.path == request.path && seen.at > *at);
        let pause = later.unwrap().at - *at;
        assert!(pause >= Duration::from_secs(1), "{}: asked again after {pause:?}", request.path);
    }
    one.umount_among_others(&staging);

    // Reads, asked to wait a second.
    let is_data = |request: &Request| request.is_read() && request.path.contains("/p/");
    let (host, mnt) = busy_mount(&place, &dir.path().join("second"), "timeout=8s");
    let mut asked = BTreeSet::new();
    let mark = proxy.mark();
    proxy.plan(move |request| (is_data(request) && asked.insert(request.range)).then_some(Fault::Status(429, Some(1))));
    assert!(read_all(&mnt, 0..4).iter().all(|(right, took)| *right && *took < Duration::from_secs(4)));
    let seen: Vec<_> = proxy.since(mark).into_iter().filter(|seen| is_data(&seen.request)).collect();
    let waited: Vec<_> = pauses(&seen).concat();
    assert_eq!(waited.len(), 4, "each was asked for once more: {waited:?}");
    assert!(waited.iter().all(|pause| *pause >= Duration::from_secs(1)), "{waited:?}");
    // Asked to wait ten minutes: nobody is kept longer than the longest pause.
    let mut asked = BTreeSet::new();
    let mark = proxy.mark();
    proxy.plan(move |request| {
        (is_data(request) && asked.insert(request.range)).then_some(Fault::Status(503, Some(600)))
    });
    assert!(read_all(&mnt, 4..5).iter().all(|(right, took)| *right && *took < Duration::from_secs(8)));
    let longest: Vec<_> = pauses(&proxy.since(mark)).concat();
    assert!(longest.iter().all(|pause| *pause >= Duration::from_millis(4_900)), "{longest:?}");
    host.umount_among_others(&mnt);

    // Refused for good, eight readers at once.
    let (host, mnt) = busy_mount(&place, &dir.path().join("third"), "timeout=8s");
    let mark = proxy.mark();
    proxy.plan(move |request| is_data(request).then_some(Fault::Status(503, None)));
    let reads = read_all(&mnt, 0..8);
    proxy.clear();
    assert!(reads.iter().all(|(right, took)| !right && *took < Duration::from_secs(8) + LATE), "{reads:?}");
    let seen = proxy.since(mark);
    let all = pauses(&seen);
    assert_eq!(all.len(), 8);
    let firsts: BTreeSet<_> = all.iter().map(|pauses| pauses[0].as_millis()).collect();
    assert!(firsts.len() >= 5, "first pauses are spread: {firsts:?}");
    // When the budget is spent one asks for all every five seconds: 8 s have room for one or two.
    let again = seen.len() as u64 - 8;
    eprintln!("8 readers, 8 s: {} requests, first pauses {firsts:?} ms", seen.len());
    assert!(again <= ALLOWANCE + 2, "{again} repetitions");
    std::thread::sleep(Duration::from_millis(500));
    assert!(read_all(&mnt, 0..8).iter().all(|(right, _)| *right), "right as soon as the store is");
    host.umount_among_others(&mnt);
}
