//! docs/first-hour.md, run: every `$ ` line of its console blocks, in order, in one shell; and its fstab lines, looked at by
//! the programs that would read them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::{Host, inside, run, scratch, text};
use super::mounting::install;

/// A command of the page and what it shows.
struct Step {
    line: usize,
    command: String,
    shown: Vec<String>,
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/first-hour.md")).unwrap()
}

/// The lines of all blocks of a kind, with their numbers.
fn blocks<'a>(page: &'a str, kind: &str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let mut is_inside = false;
    for (index, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(opened) => is_inside = !is_inside && opened == kind,
            None if is_inside => found.push((index + 1, line)),
            None => {}
        }
    }
    found
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, line) in blocks(page, "console") {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step { line: number, command: command.to_owned(), shown: Vec::new() }),
            None => steps.last_mut().expect("a block begins with a command").shown.push(line.to_owned()),
        }
    }
    steps
}

/// Whether a line is what the page shows: `…` stands for anything, blanks for blanks of any kind and number.
fn is_shown(shown: &str, line: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, line) = (plain(shown), plain(line));
    let mut parts = shown.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn the_first_hour_goes_as_the_page_says() {
    if !inside("first_hour::the_first_hour_goes_as_the_page_says") {
        return;
    }
    assert!(is_shown("01… a 1", "01X\ta 1") && !is_shown("01… a 1", "01X a 2") && !is_shown("a", "ab"));
    let dir = scratch();
    install(dir.path());
    for place in ["/mnt", "/srv"] {
        run(Command::new("mount").args(["-t", "tmpfs", "none", place]));
    }
    let page = page();
    let steps = steps(&page);
    assert!(steps.len() > 40, "the page was read: {}", steps.len());
    let host = Host::new(&dir.path().join("home"));
    let mut shell = host
        .command("bash")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut to, from) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
    let mut said = from.lines();
    for Step { line, command, shown } in &steps {
        writeln!(to, "{{ {command}\n}} 2>&1; echo; echo =end=").unwrap();
        let mut lines = Vec::new();
        loop {
            let line = said.next().unwrap_or_else(|| panic!("the shell ended at {command}")).unwrap();
            if line == "=end=" {
                break;
            }
            lines.push(line);
        }
        // The line of the echo itself.
        lines.pop_if(|last| last.is_empty());
        let is_right =
            lines.len() == shown.len() && shown.iter().zip(&lines).all(|(shown, line)| is_shown(shown, line));
        assert!(
            is_right,
            "docs/first-hour.md:{line}: $ {command}\nshows:\n{}\nsays:\n{}",
            shown.join("\n"),
            lines.join("\n")
        );
    }
    drop(to);
    assert!(shell.wait().unwrap().success());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("fuse.datamon"), "nothing stays mounted: {mounts}");
}

/// A program of the system, or a word that it is not there: never silently.
fn program(names: &[&str]) -> Option<PathBuf> {
    let places =
        ["/usr/bin", "/bin", "/usr/sbin", "/usr/lib/systemd/system-generators", "/lib/systemd/system-generators"];
    let found = names.iter().flat_map(|name| places.map(|place| Path::new(place).join(name)));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        let _ =
            writeln!(std::io::stderr(), "SKIPPED a part of the_lines_for_fstab_are_understood: {names:?} is not here");
    }
    found
}

#[test]
fn the_lines_for_fstab_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let page = page();
    let lines: Vec<_> = blocks(&page, "fstab").into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines.len(), 2);
    // Mount points that are there, so that only the lines are looked at.
    let table = dir.path().join("fstab");
    let at = |place: &str| format!("{}{place}", dir.path().display());
    let mut here = String::new();
    for line in &lines {
        let place = line.split_whitespace().nth(1).unwrap();
        fs::create_dir_all(at(place)).unwrap();
        here += &(line.replacen(place, &at(place), 1) + "\n");
    }
    fs::write(&table, &here).unwrap();
    if let Some(findmnt) = program(&["findmnt"]) {
        let output = Command::new(findmnt).args(["--verify", "--tab-file"]).arg(&table).output().unwrap();
        assert!(output.status.success() && text(&output).contains("0 errors"), "{}", text(&output));
    }
    let Some(generator) = program(&["systemd-fstab-generator"]) else { return };
    let units = dir.path().join("units");
    fs::create_dir(&units).unwrap();
    fs::write(&table, lines.join("\n") + "\n").unwrap();
    let output = Command::new(generator).env("SYSTEMD_FSTAB", &table).args([&units, &units, &units]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let unit = |name: &str| fs::read_to_string(units.join(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
    let version = unit("data-census.mount");
    for word in ["What=prod/census/labels/v2", "Where=/data/census", "Type=datamon", "Options=ro,_netdev,nofail"] {
        assert!(version.contains(word), "{word}: {version}");
    }
    assert!(unit("data-census.automount").contains("Where=/data/census"));
    assert!(unit("mnt-dm.mount").contains("What=prod\n"));
    let Some(analyze) = program(&["systemd-analyze"]) else { return };
    for name in ["data-census.mount", "data-census.automount", "mnt-dm.mount"] {
        let output = Command::new(&analyze).arg("verify").arg(units.join(name)).output().unwrap();
        assert!(output.status.success() && !text(&output).contains(name), "{name}: {}", text(&output));
    }
}
