//! The rules of the house (docs/ARCHITECTURE.md), read off the sources.
//!
//! Comments and unit tests are not looked at: a test may reach up to build what it needs. The page of promises is read too:
//! a promise without a test, or with the name of one that is gone, is a promise no longer.

use std::fs;
use std::path::{Path, PathBuf};

/// The floor of every module at the top of `src`; a module imports from a lower floor only, or from itself.
const FLOORS: &[(&str, u32)] = &[
    ("model", 0),
    ("format", 1),
    ("store", 2),
    ("local", 2),
    ("content", 3),
    ("faults", 4),
    ("snapshot", 4),
    ("staging", 5),
    ("vfs", 6),
    ("fuse", 7),
    // The program wires: its rooms may know each other, and nothing below knows them.
    ("cli", PROGRAM),
    ("config", PROGRAM),
    ("telemetry", PROGRAM),
];
const PROGRAM: u32 = 8;

/// The homes of third-party crates, as prefixes of paths below `src`.
const HOMES: &[(&str, &[&str])] = &[
    ("fuser", &["fuse"]),
    ("object_store", &["store"]),
    ("rocksdb", &["local"]),
    ("moka", &["content", "snapshot", "store", "cli/mount/identity.rs"]),
    ("blake3", &["model/id.rs", "format/pack.rs"]),
    ("zstd", &["format"]),
    ("clap", &["cli", "config"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("crossbeam", &["content/packer.rs", "fuse"]),
    ("libc", &["vfs/error.rs", "local/sys.rs", "fuse"]),
    ("tokio", &["fuse", "vfs", "store", "content", "snapshot", "staging", "cli"]),
    ("tracing_subscriber", &["telemetry"]),
    ("serde", &["config.rs", "cli", "model/job.rs", "format/read_log.rs"]),
    ("serde_json", &["cli", "vfs/control", "model/job.rs", "format/read_log.rs"]),
    ("toml", &["config.rs"]),
    ("async_trait", &["store"]),
    ("futures_util", &["store", "content", "staging"]),
    ("http", &["store"]),
    ("ulid", &["model/id.rs"]),
    ("chrono", &["model/clock.rs"]),
];

/// One line of code, and where it is.
struct Line {
    file: String,
    number: usize,
    text: String,
}

impl Line {
    fn place(&self) -> String {
        format!("src/{}:{}: {}", self.file, self.number, self.text.trim())
    }

    /// Top-level module that the line is in; `lib` and `main` are the door.
    fn module(&self) -> &str {
        let first = self.file.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All lines of code below `src`, without comments and without what is compiled for tests alone.
fn code() -> Vec<Line> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut lines = Vec::new();
    for path in files {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        // The simulation is a test of many files.
        if file.ends_with("tests.rs") || file.starts_with("simulation") {
            continue;
        }
        let whole = fs::read_to_string(&path).unwrap();
        let mut rest = whole.lines().enumerate();
        while let Some((index, text)) = rest.next() {
            if text.trim_start().starts_with("#[cfg(test)]") {
                skip_item(&mut rest, text.len() - text.trim_start().len());
                continue;
            }
            if !text.trim_start().starts_with("//") {
                lines.push(Line { file: file.clone(), number: index + 1, text: text.to_owned() });
            }
        }
    }
    assert!(lines.len() > 1000, "the sources were found");
    lines
}

/// Goes past the item that follows an attribute: as rustfmt writes it, up to a `}` or a line with `;` at its depth.
fn skip_item<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>, depth: usize) {
    for (_, text) in lines {
        let is_at_depth = text.len() - text.trim_start().len() == depth && !text.is_empty();
        if is_at_depth
            && (text.trim_end().ends_with(';') || text.trim_end().ends_with(',') || text.trim_end().ends_with('}'))
        {
            return;
        }
    }
}

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Whether `text` holds `word`, not as a part of a longer word or path.
fn holds_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

fn assert_none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}\n{}", broken.join("\n"));
}

#[test]
fn a_module_imports_from_a_lower_floor_only() {
    let mut broken = Vec::new();
    for line in code() {
        let Some(from) = floor(line.module()) else { continue };
        for part in line.text.split("crate::").skip(1) {
            let to: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let allowed =
                to == line.module() || floor(&to).is_none_or(|to| to < from || (to == PROGRAM && from == PROGRAM));
            if !allowed {
                broken.push(format!("{} -> {to}: {}", line.module(), line.place()));
            }
        }
    }
    assert_none("a module imports from a lower floor only; these edges lead up or sideways:", broken);
}

#[test]
fn every_module_has_its_floor() {
    let modules = code().into_iter().map(|line| line.module().to_owned());
    let homeless: Vec<_> = modules.filter(|m| floor(m).is_none() && !["lib", "main"].contains(&m.as_str())).collect();
    assert_none("these modules stand on no floor (FLOORS in this file):", homeless);
}

#[test]
fn every_crate_is_used_in_its_homes_only() {
    let mut broken = Vec::new();
    for line in code() {
        for (name, homes) in HOMES {
            let used = holds_word(&line.text, &format!("{name}::"));
            let home = homes.iter().any(|home| {
                line.file.strip_prefix(home).is_some_and(|rest| {
                    rest.is_empty() || [".rs"].contains(&rest) || rest.starts_with('/') || rest.starts_with(".rs")
                })
            });
            if used && !home {
                broken.push(format!("{name}: {}", line.place()));
            }
        }
    }
    assert_none("these crates are used outside their homes (HOMES in this file):", broken);
}

#[test]
fn an_errno_is_named_in_vfs_error_only() {
    let known = |word: &str| {
        let rest = word.strip_prefix("libc::E").unwrap_or_default();
        rest.len() > 2 && rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    };
    let names_one = |text: &str| text.split(|c: char| !(c.is_alphanumeric() || c == ':' || c == '_')).any(known);
    let outside = code().into_iter().filter(|line| line.file != "vfs/error.rs" && line.file != "local/sys.rs");
    let broken = outside.filter(|line| names_one(&line.text)).map(|line| line.place()).collect();
    assert_none("an errno outside vfs/error.rs:", broken);
}

#[test]
fn an_object_key_is_spelled_in_format_key_only() {
    // Keys are made from a field list, so a literal that sets the path of an ObjectKey is a spelled one.
    let outside = code().into_iter().filter(|line| line.file != "format/key.rs");
    let spelled = |text: &str| text.contains("ObjectKey {") && text.contains("format!");
    let broken = outside.filter(|line| spelled(&line.text)).map(|line| line.place()).collect();
    assert_none("an object key outside format/key.rs:", broken);
}

#[test]
fn nothing_panics_for_want_of_a_reason() {
    let words = [".unwrap()", "todo!(", "unimplemented!(", "dbg!("];
    let broken = code().into_iter().filter(|line| words.iter().any(|word| line.text.contains(word)));
    assert_none("unwrap, todo and the like outside tests:", broken.map(|line| line.place()).collect());
}

#[test]
fn unsafe_code_is_in_local_sys_only() {
    let outside = code().into_iter().filter(|line| line.file != "local/sys.rs");
    let unsafe_ones = outside.filter(|line| holds_word(&line.text, "unsafe ") || line.text.contains("allow(unsafe"));
    assert_none("unsafe outside local/sys.rs:", unsafe_ones.map(|line| line.place()).collect());
}

#[test]
fn the_environment_and_the_clock_are_read_by_the_program_only() {
    let words = ["std::env::", "env::var", "SystemTime::now"];
    let below = code().into_iter().filter(|line| floor(line.module()).is_some_and(|floor| floor < PROGRAM));
    let broken = below.filter(|line| words.iter().any(|word| line.text.contains(word)));
    assert_none("environment or clock read below the program:", broken.map(|line| line.place()).collect());
}

#[test]
fn requests_are_repeated_in_one_place() {
    let store = || code().into_iter().filter(|line| line.module() == "store" && line.file != "store/fault.rs");
    let is_elsewhere = |line: &Line, homes: &[&str]| !homes.contains(&line.file.as_str());
    let waits = store().filter(|line| {
        line.text.contains("time::sleep")
            && is_elsewhere(line, &["store.rs", "store/share.rs", "store/outage.rs", "store/probe.rs"])
    });
    assert_none(
        "a pause in the store that is neither a retry's nor the bandwidth's:",
        waits.map(|line| line.place()).collect(),
    );
    let policy = ["retry::", "asked_to_wait("];
    let homes =
        ["store.rs", "store/backend.rs", "store/wire.rs", "store/retry.rs", "store/outage.rs", "store/probe.rs"];
    let asks = code().into_iter().filter(|line| policy.iter().any(|word| line.text.contains(word)));
    let asks = asks.filter(|line| is_elsewhere(line, &homes));
    assert_none("the policy of src/store/retry.rs is used outside its homes:", asks.map(|line| line.place()).collect());
    // object_store repeats requests by itself unless it is told not to.
    let theirs = code().into_iter().filter(|line| line.text.contains("RetryConfig {"));
    let theirs: Vec<_> = theirs.filter(|line| !line.text.contains("max_retries: 0")).map(|line| line.place()).collect();
    assert_none("object_store repeats requests:", theirs);
    let told = code().iter().filter(|line| line.text.contains("max_retries: 0")).count();
    let builders = code().iter().filter(|line| line.text.contains("AmazonS3Builder::new()")).count();
    assert_eq!((told, builders), (1, 1), "one client, which repeats nothing by itself");
}

/// The code between backticks of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for place in ["src", "tests", "mount-helper/src"] {
        sources(&root.join(place), &mut files);
    }
    let all: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    // Attributes stand between the mark and the function: async ones, ignored ones.
    let is_marked =
        |before: &str| before.lines().rev().take(4).any(|line| line.contains("#[") && line.contains("test"));
    let is_test = |name: &str| {
        let head = format!("fn {name}(");
        all.match_indices(&head).any(|(at, _)| is_marked(&all[..at]))
    };
    let page = fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let mut promises = 0;
    let mut broken = Vec::new();
    for (index, line) in page.lines().enumerate() {
        let Some(tests) = line.strip_suffix(" |").and_then(|row| row.rsplit(" | ").next()) else { continue };
        if tests == "test" {
            continue;
        }
        promises += 1;
        let gone: Vec<_> = quoted(tests).filter(|name| !is_test(name)).collect();
        if quoted(tests).next().is_none() {
            broken.push(format!("docs/semantics.md:{}: no test: {line}", index + 1));
        } else if !gone.is_empty() {
            broken.push(format!("docs/semantics.md:{}: no such test: {}", index + 1, gone.join(", ")));
        }
    }
    assert!(promises >= 10, "the page was read: {promises}");
    assert_none("a promise whose test is not there:", broken);
}
