//! Damaged stores: every kind of object flipped, cut, removed, swapped, forged, grown, and of a newer version.
//!
//! Each row of the table is one object and one harm. A host that has nothing in memory then looks at all versions through
//! the kernel. What it is shown is right, or refused in time by an error that names the object; the daemon lives, has not
//! panicked, and has taken no memory that an object's length asked it for.
//!
//! What cannot be found out is in the table too: a chain that ends earlier, or has an older record in the place of a newer
//! one, shows an older state, whole.
//!
//! `DATAMON_FAULT_ROUNDS=N` adds flips and cuts at random places, `DATAMON_FAULT_SEED=N` chooses them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use datamon::model::id::ObjectHash;

use super::harness::{Host, Place, differences, inside, run, scratch, text, until, within};
use super::trees::noise;

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(40);
const VERSIONS: usize = 3;
/// What a daemon may take that shows a few MiB.
const MEMORY_KIB_MAX: u64 = 200 << 10;
/// A length that an object claims or has, far beyond what any may have.
const GROWN_BYTES: u64 = 1 << 30;
/// Workers, each with a store of its own.
const WORKERS: usize = 3;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ESTALE: i32 = 116;

// ---- what is damaged ---------------------------------------------------------------------------------------------------

/// What is done to one object. Places are in thousandths of its length.
#[derive(Debug, Clone, PartialEq)]
enum Harm {
    Flip(usize),
    Cut(usize),
    Remove,
    /// It and another of its kind change places.
    Swap(PathBuf),
    /// It holds what another of its kind holds.
    Replace(PathBuf),
    /// Of the next major version, sealed.
    Newer,
    /// With an incompatible feature, sealed.
    Feature,
    /// Nine bytes of its body say the largest number there is, and it is sealed again.
    Forge(usize),
    /// Zeros behind it, as many as a length can want.
    Grow,
}

/// A kind of object: its name, and how its paths are known.
struct Kind {
    name: &'static str,
    part: &'static str,
    is_chain: bool,
    is_sealed: bool,
}

const KINDS: [Kind; 7] = [
    Kind { name: "context record", part: "/contexts/", is_chain: true, is_sealed: true },
    Kind { name: "catalog record", part: "/repos/", is_chain: true, is_sealed: true },
    Kind { name: "refs record", part: "/refs/", is_chain: true, is_sealed: true },
    Kind { name: "descriptor", part: "/bundles/", is_chain: false, is_sealed: true },
    Kind { name: "data pack", part: "/p/", is_chain: false, is_sealed: false },
    Kind { name: "metadata pack", part: "/m/", is_chain: false, is_sealed: false },
    Kind { name: "intent", part: "/wal/", is_chain: false, is_sealed: true },
];

/// One line of the table.
#[derive(Debug, Clone)]
struct Row {
    kind: &'static str,
    /// Below the store.
    object: PathBuf,
    harm: Harm,
    /// Nobody can tell this from an earlier state of the store.
    may_be_older: bool,
}

impl Row {
    /// The object's own name: what an error has to say.
    fn name(&self) -> &str {
        name_of(&self.object)
    }

    /// Whether a text names the object, or one of both.
    fn is_named(&self, text: &str) -> bool {
        match &self.harm {
            _ if text.contains(self.name()) => true,
            Harm::Swap(other) => text.contains(name_of(other)),
            // Its lies are found out where they lead.
            Harm::Forge(_) => text.contains(": damaged: ") || text.contains(": not in the store"),
            _ => false,
        }
    }
}

fn name_of(object: &Path) -> &str {
    object.file_name().unwrap().to_str().unwrap()
}

/// Damage that is put right again when it is dropped.
struct Done {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Drop for Done {
    fn drop(&mut self) {
        for (path, bytes) in &self.files {
            let _ = fs::write(path, bytes);
        }
    }
}

fn sealed(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = bytes.len() - 32;
    change(&mut bytes[..end]);
    let hash = ObjectHash::of(&bytes[..end]);
    bytes[end..].copy_from_slice(hash.as_bytes());
    bytes
}

fn harm(store: &Path, row: &Row) -> Done {
    let path = store.join(&row.object);
    let bytes = fs::read(&path).unwrap();
    let mut done = Done { files: vec![(path.clone(), bytes.clone())] };
    let at = |part: usize| (bytes.len() * part / 1000).min(bytes.len() - 1);
    let changed = match &row.harm {
        Harm::Flip(part) => {
            let mut changed = bytes.clone();
            changed[at(*part)] ^= 1 << (part % 8);
            changed
        }
        Harm::Cut(part) => bytes[..at(*part)].to_vec(),
        Harm::Remove => {
            fs::remove_file(&path).unwrap();
            return done;
        }
        Harm::Swap(other) => {
            let other = store.join(other);
            let others = fs::read(&other).unwrap();
            done.files.push((other.clone(), others.clone()));
            fs::write(&other, &bytes).unwrap();
            others
        }
        Harm::Replace(other) => fs::read(store.join(other)).unwrap(),
        Harm::Newer => sealed(&bytes, |bytes| bytes[10] = 2),
        Harm::Feature => sealed(&bytes, |bytes| bytes[13] = 0x80),
        Harm::Forge(part) => sealed(&bytes, |bytes| {
            let body = 48 + (bytes.len() - 48 - 9) * part / 1000;
            bytes[body..body + 9].fill(0xff);
        }),
        Harm::Grow => {
            File::options().write(true).open(&path).unwrap().set_len(GROWN_BYTES).unwrap();
            return done;
        }
    };
    fs::write(&path, changed).unwrap();
    done
}

// ---- the store that is damaged -----------------------------------------------------------------------------------------

/// A store with three versions of a repo, another repo, and an intent that nobody will finish.
struct World {
    store: PathBuf,
    trees: Vec<PathBuf>,
    bundles: Vec<String>,
}

fn make_tree(root: &Path, version: usize) {
    fs::create_dir_all(root.join("small")).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join("version"), version.to_string()).unwrap();
    fs::write(root.join("large"), noise(1, 2 * MIB + 77)).unwrap();
    fs::write(root.join("changing"), noise(10 + version as u64, MIB + 5)).unwrap();
    fs::write(root.join("text"), "a line that comes again and again\n".repeat(9_000)).unwrap();
    for n in 0..12 {
        fs::write(root.join("small").join(n.to_string()), noise(100 + n, 300 * (n as usize + 1))).unwrap();
    }
    fs::write(root.join("small").join(format!("of-{version}")), noise(200 + version as u64, 700)).unwrap();
    fs::hard_link(root.join("small/1"), root.join("hard")).unwrap();
    std::os::unix::fs::symlink("text", root.join("soft")).unwrap();
    run(Command::new("setfattr").args(["-n", "user.note", "-v", &"x".repeat(700)]).arg(root.join("text")));
}

fn sync(dir: &Path) {
    let output = within(SOON, Command::new("sync").arg(dir));
    assert!(output.status.success(), "sync {}: {}", dir.display(), text(&output));
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().unwrap()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn world(dir: &Path) -> World {
    let store = dir.join("store");
    let place = Place::directory(&store);
    let one = place.host(&dir.join("one"), "create");
    let mnt = one.mount("prod", "rw");
    let mut world = World { store, trees: Vec::new(), bundles: Vec::new() };
    for repo in ["census", "other"] {
        fs::create_dir(mnt.join(repo)).unwrap();
    }
    fs::write(mnt.join("other/staging/a"), "another repo's").unwrap();
    sync(&mnt.join("other/staging"));
    let staging = mnt.join("census/staging");
    for version in 1..=VERSIONS {
        let tree = dir.join(format!("tree-{version}"));
        make_tree(&tree, version);
        run(Command::new("rsync").args(["-aHXI", "--delete"]).arg(format!("{}/", tree.display())).arg(&staging));
        sync(&staging);
        let known: BTreeSet<_> = world.bundles.iter().cloned().collect();
        let all = names(&mnt.join("census/bundles")).unwrap();
        world.bundles.extend(all.into_iter().filter(|bundle| !known.contains(bundle)));
        world.trees.push(tree);
        if version == 1 {
            fs::create_dir(mnt.join("census/labels/v1")).unwrap();
        }
    }
    assert_eq!(world.bundles.len(), VERSIONS);
    // An intent that stays open: its writer dies.
    let intents = || world.objects("/wal/", None).len();
    let before = intents();
    fs::write(staging.join("never committed"), noise(77, 2 * MIB)).unwrap();
    until(SOON, "an open intent", || intents() > before);
    run(Command::new("kill").args(["-9", &one.daemons(&mnt)[0].to_string()]));
    until(SOON, "the daemon's end", || one.daemons(&mnt).is_empty());
    run(Command::new("umount").args(["-i", "-l"]).arg(&mnt));
    world
}

impl World {
    /// Objects whose path holds `part`, below the store; of a chain or repo the newest first.
    fn objects(&self, part: &str, repo: Option<&str>) -> Vec<PathBuf> {
        let found = run(Command::new("find").arg(&self.store).args(["-type", "f", "-not", "-name", "*#*"]));
        let below = |path: &str| PathBuf::from(path).strip_prefix(&self.store).unwrap().to_owned();
        let mut found: Vec<_> = found.lines().map(below).collect();
        let holds = |path: &PathBuf, part: &str| format!("/{}", path.display()).contains(part);
        found.retain(|path| holds(path, part) && repo.is_none_or(|repo| holds(path, repo)));
        found.sort();
        found
    }

    /// The id of the repo `census`: of both, the one with most versions.
    fn repo(&self) -> String {
        let slots = self.objects("/bundles/", None);
        let repo = |path: &PathBuf| path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let count = |id: &String| slots.iter().filter(|path| repo(path) == *id).count();
        slots.iter().map(repo).max_by_key(count).unwrap()
    }

    /// The table.
    fn rows(&self, rounds: u64, seed: u64) -> Vec<Row> {
        let (repo, mut rows) = (self.repo(), Vec::new());
        for kind in &KINDS {
            let in_repo = ["/refs/", "/bundles/"].contains(&kind.part).then_some(repo.as_str());
            let all = self.objects(kind.part, in_repo);
            assert!(!all.is_empty(), "{}: none in the store", kind.name);
            let others = self.objects(kind.part, None);
            // The newest of a chain, and one before; of packs and others the first and the last.
            let mut chosen = vec![all[0].clone()];
            chosen
                .extend(if kind.is_chain { all.get(1) } else { all.last() }.filter(|other| **other != all[0]).cloned());
            for (number, object) in chosen.iter().enumerate() {
                let is_newest = number == 0 && kind.is_chain;
                let mut harms = vec![Harm::Flip(0), Harm::Flip(300), Harm::Flip(999), Harm::Cut(0), Harm::Cut(500)];
                harms.extend([Harm::Cut(999), Harm::Remove, Harm::Grow]);
                if kind.is_sealed {
                    harms.extend([Harm::Newer, Harm::Feature, Harm::Forge(0), Harm::Forge(400), Harm::Forge(900)]);
                }
                if let Some(other) = chosen.iter().find(|other| *other != object) {
                    harms.extend([Harm::Swap(other.clone()), Harm::Replace(other.clone())]);
                }
                if let Some(foreign) = others.iter().find(|other| !all.contains(other)) {
                    harms.push(Harm::Replace(foreign.clone()));
                }
                for round in 1..rounds {
                    for step in 0..4 {
                        let place = mixed(seed ^ (round << 32 | (number as u64) << 8 | step)) as usize % 1000;
                        harms.push(Harm::Flip(place));
                        harms.push(Harm::Cut(place));
                    }
                }
                for harm in harms {
                    let may_be_older = kind.is_chain
                        && match &harm {
                            Harm::Remove => is_newest,
                            Harm::Swap(_) => true,
                            Harm::Replace(_) => is_newest,
                            // What is sealed by somebody who can write says what that one likes.
                            Harm::Forge(_) => true,
                            _ => false,
                        };
                    rows.push(Row { kind: kind.name, object: object.clone(), harm, may_be_older });
                }
            }
        }
        rows
    }
}

fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

// ---- looking -----------------------------------------------------------------------------------------------------------

/// What one look found.
#[derive(Debug, Default)]
struct Look {
    right: usize,
    /// What was refused, and how.
    refused: Vec<String>,
    /// What was not as it should be: empty, or the test fails.
    wrong: Vec<String>,
}

impl Look {
    fn note(&mut self, what: &Path, outcome: std::io::Result<Result<(), String>>, allowed: &[i32]) {
        match outcome {
            Ok(Ok(())) => self.right += 1,
            Ok(Err(how)) => self.wrong.push(format!("{}: {how}", what.display())),
            Err(why) if why.raw_os_error().is_some_and(|errno| allowed.contains(&errno)) => {
                self.refused.push(format!("{}: {why}", what.display()));
            }
            Err(why) => self.wrong.push(format!("{}: {why}", what.display())),
        }
    }

    /// Everything below `copy`, which is to be `original`. Its root may be gone, with an error that says so.
    fn tree(&mut self, original: &Path, copy: &Path) {
        if let Err(why) = fs::metadata(copy) {
            return self.note(copy, Err(why), &[EIO, ENOENT, ESTALE]);
        }
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let expected = names(&original.join(&directory)).unwrap();
            let found = names(&copy.join(&directory));
            let is_whole = |found: Vec<String>| {
                if found == expected { Ok(()) } else { Err(format!("lists {found:?}, not {expected:?}")) }
            };
            self.note(&copy.join(&directory), found.map(is_whole), &[EIO]);
            for name in expected {
                let path = directory.join(name);
                let (original, copy) = (original.join(&path), copy.join(&path));
                let kind = fs::symlink_metadata(&original).unwrap().file_type();
                if kind.is_dir() {
                    directories.push(path);
                } else if kind.is_symlink() {
                    let same = |found: PathBuf| {
                        if found == fs::read_link(&original).unwrap() { Ok(()) } else { Err(format!("{found:?}")) }
                    };
                    self.note(&copy, fs::read_link(&copy).map(same), &[EIO]);
                } else {
                    let same = |found: Vec<u8>| {
                        let is_right = found == fs::read(&original).unwrap();
                        if is_right { Ok(()) } else { Err(format!("wrong bytes, {} of them", found.len())) }
                    };
                    self.note(&copy, fs::read(&copy).map(same), &[EIO]);
                }
            }
        }
    }
}

/// Looks at everything that the mounted context shows.
fn look(world: &World, mnt: &Path, row: &Row) -> Look {
    let may_be_older = row.may_be_older;
    let mut look = Look::default();
    let repo = mnt.join("census");
    match fs::metadata(&repo) {
        Ok(_) => {}
        Err(why) => {
            let allowed: &[i32] = if may_be_older { &[EIO, ENOENT] } else { &[EIO] };
            look.note(&repo, Err(why), allowed);
            return look;
        }
    }
    for (bundle, tree) in world.bundles.iter().zip(&world.trees) {
        look.tree(tree, &repo.join("bundles").join(bundle));
    }
    for (label, version) in [("latest", VERSIONS), ("v1", 1)] {
        let root = repo.join("labels").join(label);
        match fs::read_to_string(root.join("version")) {
            Ok(found) if found == version.to_string() => look.tree(&world.trees[version - 1], &root),
            Ok(found) if may_be_older && label == "latest" => match found.parse::<usize>() {
                Ok(older) if older < version => look.tree(&world.trees[older - 1], &root),
                _ => look.wrong.push(format!("{}: version {found}", root.display())),
            },
            Ok(found) => look.wrong.push(format!("{}: shows version {found}", root.display())),
            Err(why) => look.note(&root, Err(why), &[EIO, ENOENT, ESTALE]),
        }
    }
    let listed = names(&repo.join("bundles"));
    let all = |found: Vec<String>| {
        let mut expected = world.bundles.clone();
        // What is not there is not listed.
        expected.retain(|bundle| row.harm != Harm::Remove || bundle != row.name());
        expected.sort();
        let is_right = found == expected || may_be_older && found.iter().all(|one| expected.contains(one));
        if is_right { Ok(()) } else { Err(format!("lists {found:?}")) }
    };
    look.note(&repo.join("bundles"), listed.map(all), &[EIO]);
    for file in ["history", "wal", "label/v1/history"] {
        let path = repo.join(".datamon").join(file);
        let is_text = |_: String| Ok(());
        look.note(&path, fs::read_to_string(&path).map(is_text), &[EIO, ENOENT]);
    }
    look
}

fn high_water_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_else(|| panic!("{status}"));
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What became of one row.
#[derive(Debug)]
enum Verdict {
    /// Everything was shown, and right.
    Right,
    /// Something was refused, by name.
    Refused,
    /// Not as it should be.
    Wrong(String),
}

/// A fresh host's look at the damaged store.
fn judge(world: &World, dir: &Path, row: &Row, memory: &AtomicU64) -> Verdict {
    let _done = harm(&world.store, row);
    let place = Place::directory(&world.store);
    let host = Host::new(dir);
    let one_line = |said: &str| said.lines().count() == 1 && row.is_named(said);
    let added = within(SOON, &mut host.datamon(["context", "add", &place.url]));
    if !added.status.success() {
        let said = text(&added);
        // A context that is gone is not there.
        let is_named = one_line(&said) || row.harm == Harm::Remove && said.contains("holds no context");
        return if is_named { Verdict::Refused } else { Verdict::Wrong(format!("context add: {said}")) };
    }
    let mnt = dir.join("mnt");
    fs::create_dir(&mnt).unwrap();
    let mounted = within(SOON, &mut host.datamon(["mount", "prod", mnt.to_str().unwrap(), "-o", "ro,timeout=5s"]));
    if !mounted.status.success() {
        let said = text(&mounted);
        return if one_line(&said) { Verdict::Refused } else { Verdict::Wrong(format!("mount: {said}")) };
    }
    let looked = std::thread::scope(|scope| {
        let (answer, answered) = std::sync::mpsc::channel();
        let mnt = &mnt;
        scope.spawn(move || answer.send(look(world, mnt, row)));
        let looked = answered.recv_timeout(SOON);
        if looked.is_err() {
            // Whoever hangs in the mount is let go.
            host.daemons(mnt).iter().for_each(|pid| drop(Command::new("kill").args(["-9", &pid.to_string()]).status()));
        }
        looked
    });
    let Ok(mut looked) = looked else { return Verdict::Wrong("a look hung".to_owned()) };
    match host.daemons(&mnt)[..] {
        [pid] => {
            let taken = high_water_kib(pid);
            memory.fetch_max(taken, Ordering::Relaxed);
            if taken > MEMORY_KIB_MAX {
                looked.wrong.push(format!("the daemon took {taken} KiB"));
            }
        }
        _ => looked.wrong.push("the daemon died".to_owned()),
    }
    let said = host.log() + &fs::read_to_string(mnt.join(".datamon/status")).unwrap_or_default();
    if said.contains("panicked") {
        looked.wrong.push("the daemon panicked".to_owned());
    }
    // Damage is not to be looked for in one's own rights.
    if said.contains("check the credentials") {
        looked.wrong.push(format!("damage is told as a refusal: {said}"));
    }
    let checked = within(SOON, &mut host.datamon(["context", "check", "prod"]));
    if text(&checked).contains("panicked") || checked.status.code().is_none() {
        looked.wrong.push(format!("context check: {}", text(&checked)));
    }
    let is_named = row.is_named(&said) || looked.refused.iter().all(|refused| row.is_named(refused));
    if !looked.refused.is_empty() && !is_named {
        looked.wrong.push(format!("refused without a name: {:?}: {said}", looked.refused));
    }
    host.umount_among_others(&mnt);
    match (looked.wrong.is_empty(), looked.refused.is_empty()) {
        (false, _) => Verdict::Wrong(looked.wrong.join("; ")),
        (true, true) => Verdict::Right,
        (true, false) => Verdict::Refused,
    }
}

#[test]
fn damaged_objects_are_shown_right_or_refused_by_name() {
    if !inside("damage::damaged_objects_are_shown_right_or_refused_by_name") {
        return;
    }
    let dir = scratch();
    let first = world(dir.path());
    let rows = first.rows(setting("DATAMON_FAULT_ROUNDS", 1), setting("DATAMON_FAULT_SEED", 7));
    let (count, left) = (rows.len(), Mutex::new(rows.into_iter().enumerate()));
    let (memory, verdicts) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (first, left, memory, verdicts) = (&first, &left, &memory, &verdicts);
            let dir = dir.path().join(format!("worker-{worker}"));
            scope.spawn(move || {
                fs::create_dir(&dir).unwrap();
                run(Command::new("cp").arg("-a").arg(&first.store).arg(&dir));
                let own =
                    World { store: dir.join("store"), trees: first.trees.clone(), bundles: first.bundles.clone() };
                loop {
                    let Some((number, row)) = left.lock().unwrap().next() else { return };
                    let verdict = judge(&own, &dir.join(number.to_string()), &row, memory);
                    verdicts.lock().unwrap().push((row, verdict));
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap();
    assert_eq!(verdicts.len(), count, "every row was judged");
    let mut wrong = Vec::new();
    for kind in &KINDS {
        let of = |is: fn(&Verdict) -> bool| {
            verdicts.iter().filter(|(row, verdict)| row.kind == kind.name && is(verdict)).count()
        };
        let (right, refused) = (of(|v| matches!(v, Verdict::Right)), of(|v| matches!(v, Verdict::Refused)));
        eprintln!("{}: {right} shown right, {refused} refused by name", kind.name);
    }
    eprintln!("{count} rows; the largest daemon took {} MiB", memory.load(Ordering::Relaxed) >> 10);
    for (row, verdict) in &verdicts {
        if let Verdict::Wrong(how) = verdict {
            wrong.push(format!("{} {} {:?}: {how}", row.kind, row.object.display(), row.harm));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_commit_over_a_damaged_store_is_right_or_refused_by_name_and_the_next_is_good() {
    if !inside("damage::a_commit_over_a_damaged_store_is_right_or_refused_by_name_and_the_next_is_good") {
        return;
    }
    let dir = scratch();
    let world = world(dir.path());
    let mut rows = world.rows(1, 0);
    // A chain that lost its end is forked by whoever writes then, and a forger says what he likes: nothing to promise.
    let is_plain = |row: &Row| match row.harm {
        Harm::Remove => row.kind != "refs record" && row.kind != "catalog record",
        Harm::Flip(_) | Harm::Cut(500) | Harm::Newer | Harm::Grow => true,
        _ => false,
    };
    rows.retain(|row| row.kind != "context record" && is_plain(row));
    // One harm in four is enough for a short form: reading is tested with all.
    let step = if setting("DATAMON_FAULT_ROUNDS", 1) > 1 { 1 } else { 4 };
    let rows: Vec<_> = rows.into_iter().step_by(step).collect();
    let mut done = 0;
    for (number, row) in rows.iter().enumerate() {
        let what = format!("{} {} {:?}", row.kind, row.object.display(), row.harm);
        // Each on a copy: what one writes is not the next one's.
        let store = dir.path().join(format!("store-{number}"));
        run(Command::new("cp").arg("-a").arg(&world.store).arg(&store));
        let damage = harm(&store, row);
        let place = Place::directory(&store);
        let host = place.host(&dir.path().join(format!("writer-{number}")), "add");
        let mnt = dir.path().join(format!("mnt-{number}"));
        fs::create_dir(&mnt).unwrap();
        let mount = || host.datamon(["mount", "prod/census", mnt.to_str().unwrap(), "-o", "rw,timeout=5s"]);
        let staging = mnt.join("staging");
        let write = || -> std::io::Result<()> {
            // Bytes that are in the base already, and new ones.
            fs::copy(world.trees[VERSIONS - 1].join("large"), staging.join("again"))?;
            fs::write(staging.join("new"), noise(4_000, MIB))
        };
        let mounted = within(SOON, &mut mount());
        if !mounted.status.success() {
            assert!(text(&mounted).contains(row.name()), "{what}: {}", text(&mounted));
            drop(damage);
            run(&mut mount());
            write().unwrap();
        } else {
            match write() {
                Ok(()) => {
                    let synced = within(SOON, Command::new("sync").arg(&staging));
                    if synced.status.success() {
                        done += 1;
                    } else {
                        assert_eq!(text(&synced).lines().count(), 1, "{what}: {}", text(&synced));
                        let said = fs::read_to_string(mnt.join(".datamon/status")).unwrap() + &host.log();
                        assert!(row.is_named(&said), "{what}: {}: {said}", text(&synced));
                    }
                    drop(damage);
                }
                Err(why) => {
                    assert!(matches!(why.raw_os_error(), Some(EIO | ENOENT)), "{what}: {why}");
                    assert!(why.raw_os_error() == Some(EIO) || row.harm == Harm::Remove, "{what}: {why}");
                    drop(damage);
                    until(SOON, "the tree is written to", || write().is_ok());
                }
            }
        }
        sync(&staging);
        assert!(!host.log().contains("panicked"), "{what}: {}", host.log());
        host.umount(&mnt);
        let witness = place.host(&dir.path().join(format!("witness-{number}")), "add");
        let latest = witness.mount("prod/census/labels/latest", "ro");
        for (name, from) in [("again", "large"), ("large", "large"), ("changing", "changing"), ("text", "text")] {
            let expected = fs::read(world.trees[VERSIONS - 1].join(from)).unwrap();
            assert!(fs::read(latest.join(name)).unwrap() == expected, "{what}: {name}: wrong bytes");
        }
        assert!(fs::read(latest.join("new")).unwrap() == noise(4_000, MIB), "{what}");
        assert_eq!(differences(&world.trees[VERSIONS - 1].join("small"), &latest.join("small")), "", "{what}");
        witness.umount(&latest);
        // A daemon that has unmounted may still tell the store what was read.
        until(SOON, "the store's end", || fs::remove_dir_all(&store).is_ok());
    }
    eprintln!("{} rows, {done} commits done at once, the others when the damage was put right", rows.len());
}
