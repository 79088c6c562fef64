//! Texts of `.datamon` as programs take them for files: when they changed, how long they are, who reads them at once.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::gestures::{World, size};
use super::harness::{inside, names, run, text};

/// When each text changed last, as a stat says it.
fn times(texts: &[String], dir: &Path) -> Vec<(i64, i64)> {
    let time = |text: &String| fs::metadata(dir.join(text)).map(|found| (found.mtime(), found.mtime_nsec())).unwrap();
    texts.iter().map(time).collect()
}

#[test]
fn a_text_has_the_same_time_until_it_says_something_else() {
    if !inside("texts::a_text_has_the_same_time_until_it_says_something_else") {
        return;
    }
    let world = World::new("refresh=50ms");
    let one = world.commit("a", "1");
    world.sh("mkdir labels/v1 && echo soon > .datamon/message");
    let two = {
        world.sh("echo 2 > staging/b");
        run(&mut world.host.datamon(["commit", "-m", "two", world.at("staging").to_str().unwrap()])).trim().to_owned()
    };
    world.sh("echo later > .datamon/message");
    let shared: Vec<String> = [
        "history",
        "labels/v1",
        "labels/latest",
        "label/v1/history",
        &format!("bundle/{one}/info"),
        &format!("bundle/{one}/files"),
        &format!("bundle/{two}/info"),
        &format!("diff/{one}..{two}"),
    ]
    .map(str::to_owned)
    .into();
    let all: Vec<String> = shared.iter().cloned().chain(["message".into(), "ctl".into()]).collect();
    let version = world.host.mount(&format!("prod/census/bundles/{one}"), "refresh=50ms");
    let (here, there) = (world.at(".datamon"), version.join(".datamon"));
    let before = (times(&all, &here), times(&shared, &there));
    let other = world.place.host(&world.dir.path().join("other"), "add");
    let elsewhere = other.mount("prod/census", "refresh=50ms").join(".datamon");
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!((times(&all, &here), times(&shared, &there)), before, "nothing was changed");
    assert_eq!(times(&shared, &elsewhere), before.0[..shared.len()], "every mount tells the same");
    assert_eq!(before.1, before.0[..shared.len()]);
    let said = |text: &str| world.read(&format!(".datamon/{text}")).lines().last().unwrap().to_owned();
    let second = |index: usize| {
        let time = Command::new("date").args(["-u", "+%FT%T", "-d", &format!("@{}", before.0[index].0)]).output();
        text(&time.unwrap()).trim().to_owned()
    };
    assert!(said("history").contains(&second(0)), "its last line's: {} {}", said("history"), second(0));
    assert!(said("label/v1/history").starts_with(&second(1)), "when it moved");
    if Path::new("/usr/bin/rsync").exists() {
        let copy = world.dir.path().join("copy");
        let again = |dry: &str| {
            let line = format!(
                "cd {} && rsync -aR{dry} --itemize-changes {} {}/",
                here.display(),
                all.join(" "),
                copy.display()
            );
            world.sh(&line).lines().filter(|line| line.starts_with(">f")).count()
        };
        assert_eq!((again(""), again("n")), (all.len(), 0), "the second time there is nothing to do");
    }

    // What says something else has a later time, wherever it was changed; what does not has the same.
    fs::write(elsewhere.join("labels/v1"), &two).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let changed: Vec<bool> = [false, true, false, true, true, false, true, false].into();
    for (dir, before) in [(&here, &before.0[..shared.len()]), (&there, &before.1[..])] {
        let now = times(&shared, dir);
        let moved: Vec<bool> = now.iter().zip(before).map(|(now, before)| now != before).collect();
        assert_eq!(moved, changed, "{}: {shared:?}", dir.display());
        assert!(now.iter().zip(before).all(|(now, before)| now >= before));
        assert_eq!(fs::read_to_string(dir.join("labels/v1")).unwrap(), format!("{two}\n"), "{}", dir.display());
    }
    // Back and forth, with readers beside it: no time is ever that of two texts, and none goes back.
    for (dir, is_version) in [(&here, false), (&there, true)] {
        let path = dir.join("labels/v1");
        let mut seen = Vec::new();
        let mut words = std::collections::HashSet::new();
        // A version's mount looks again after a while only, and may meet the same words each time.
        for round in 0..600 {
            if round >= 30 && words.len() == 2 {
                break;
            }
            world.sh(&format!("echo {} > .datamon/labels/v1", [&one, &two][round % 2]));
            for _ in 0..=usize::from(is_version) * 4 {
                let time = times(&["labels/v1".into()], dir)[0];
                let said = fs::read_to_string(&path).unwrap();
                // One that was changed between both is seen as changed by who looks again.
                if times(&["labels/v1".into()], dir)[0] == time {
                    words.insert(said.clone());
                    seen.push((time, said));
                }
            }
        }
        assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{seen:?}");
        let same_time = seen.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        same_time.for_each(|pair| assert_eq!(pair[0].1, pair[1].1));
        assert_eq!(words.len(), 2);
    }
    other.umount(elsewhere.parent().unwrap());
    world.host.umount(&version);
    world.end();
}

#[test]
fn a_mounted_version_lists_its_files_to_many_readers_at_once() {
    if !inside("texts::a_mounted_version_lists_its_files_to_many_readers_at_once") {
        return;
    }
    let world = World::new("refresh=100ms");
    // Some marks apart, with links among them.
    world.sh(
        "cd staging && mkdir d && for n in $(seq 6000); do echo $n > d/a-rather-long-name-of-a-small-file-number-$n; done
         ln d/a-rather-long-name-of-a-small-file-number-77 zz && mkdir e && ln -s x e/link",
    );
    let bundle = world.commit("a", "1");
    let listed = world.at(&format!(".datamon/bundle/{bundle}/files"));
    let whole = fs::read(&listed).unwrap();
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 6_006);
    let version = world.host.mount(&format!("prod/census/bundles/{bundle}"), "refresh=100ms");
    let path = version.join(format!(".datamon/bundle/{bundle}/files"));
    assert_eq!(super::harness::names(path.parent().unwrap()), ["files", "info"]);
    assert_eq!(size(&path), whole.len() as u64, "here it has a size: a kernel that opens by itself reads no further");
    // Each before the kernel has kept any of it, and after that.
    let at = path.display();
    let lines: Vec<_> = std::str::from_utf8(&whole).unwrap().lines().collect();
    for again in [false, true] {
        assert_eq!(world.sh(&format!("tail -n 1 {at}")).trim_end(), lines[6_005], "{again}");
        assert_eq!(world.sh(&format!("head -n 1 {at}")).trim_end(), lines[0]);
        assert_eq!(world.sh(&format!("grep -c number-5... {at}")).trim(), "1000");
        assert_eq!(world.sh(&format!("wc -l < {at}")).trim(), "6006");
        assert!(fs::read(&path).unwrap() == whole);
    }
    for file in [&path, &listed] {
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        std::thread::scope(|scope| {
            for reader in 0..16u64 {
                let (file, whole) = (&file, &whole);
                scope.spawn(move || {
                    let open = fs::File::open(file).unwrap();
                    let mut at = reader * 31_337 % whole.len() as u64;
                    for step in 0..60 {
                        let mut part = vec![0; 1 + (reader * 7_919 + step * 104_729) as usize % 150_000];
                        let count = open.read_at(&mut part, at).unwrap();
                        let end = (at as usize + part.len()).min(whole.len());
                        assert!(part[..count] == whole[at as usize..end], "reader {reader} at {at}");
                        // Half of them go on where they were, the others jump about.
                        at = if reader % 2 == 0 { end as u64 } else { at * 2_654_435_761 + step };
                        at %= whole.len() as u64;
                    }
                });
            }
        });
    }
    world.host.umount(&version);
    world.end();
}

#[test]
fn a_text_that_is_read_again_from_its_beginning_says_how_it_is_now() {
    if !inside("texts::a_text_that_is_read_again_from_its_beginning_says_how_it_is_now") {
        return;
    }
    let world = World::new("refresh=100ms");
    world.commit("f", "1");
    let status = fs::File::open(world.at(".datamon/status")).unwrap();
    let read = || {
        let mut text = vec![0; 16 << 10];
        let count = status.read_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text[..count]).into_owned()
    };
    assert!(read().contains("staging: clean\n"));
    world.sh("echo 2 > staging/f");
    std::thread::sleep(Duration::from_millis(1_100));
    assert!(read().contains("staging: dirty\n"), "{}", read());
    drop(status);
    world.end();
}

#[test]
fn a_text_is_cut_without_effect_and_maps_to_nobody_else() {
    if !inside("texts::a_text_is_cut_without_effect_and_maps_to_nobody_else") {
        return;
    }
    let world = World::new("refresh=100ms");
    let one = world.commit("f", "1");
    world.sh("mkdir labels/v1");
    // What a shell does with `>` before it writes.
    world.sh(": > .datamon/labels/v1; : > .datamon/ctl; truncate -s 0 .datamon/labels/v1 .datamon/ctl");
    assert_eq!(world.read(".datamon/labels/v1").trim(), one);
    assert_eq!(names(&world.at("labels")), ["latest", "v1"]);
    // A text is of one moment and of one reader: there is no page of it that several could share.
    for opened in ["status", "labels/v1", "history"] {
        let script = format!(
            "import mmap,os,errno\nfd=os.open('.datamon/{opened}',os.O_RDONLY)\n\
             try: mmap.mmap(fd,1,flags=mmap.MAP_SHARED,prot=mmap.PROT_READ)\n\
             except OSError as e: print(errno.errorcode[e.errno])"
        );
        assert_eq!(world.sh(&format!("python3 -c \"{script}\"")).trim(), "ENODEV", "{opened}");
    }
    world.end();
}
