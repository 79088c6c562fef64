//! Fuzzing: bytes that an attacker or a bad disk could have written, into every decoder.
//!
//! A target takes bytes and says what came of them. It must not panic, take longer than a second, or ask for memory by a
//! length that the bytes claim: each runs in a process of its own with little address space. What is accepted must be
//! said again: decoded, encoded and decoded it is the same.
//!
//! No instrumentation (that needs a nightly compiler): what leads on is the outcome. An input with an outcome that was not
//! seen before, another refusal or another size of what was understood, joins those that are mutated. It begins with
//! `tests/corpus/TARGET/`, which holds bodies of real objects and inputs that once failed.
//!
//! * `DATAMON_FUZZ_SECONDS=60`: so long a target (`.ci/run`), else one second. `DATAMON_FUZZ_SEED=N` repeats a run.
//! * `DATAMON_FUZZ_LEARN=DIR`: puts the bodies of the objects in the store at DIR into the corpus.
//! * What fails is kept below `target/fuzz/`: put it into the corpus with its mending.

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use datamon::format::FormatError;
use datamon::format::catalog::CatalogRecord;
use datamon::format::context::ContextRecord;
use datamon::format::descriptor::{self, Descriptor, PackEntry, Page, PageEntry};
use datamon::format::envelope::{self, ObjectKind};
use datamon::format::extents;
use datamon::format::intent::Intent;
use datamon::format::pack::{self, TRAILER_BYTES};
use datamon::format::range::{RangeWriter, Row, RowKey, RowValue, decode_range};
use datamon::format::read_log;
use datamon::format::refs::RefsRecord;
use datamon::format::wire::Reader;
use datamon::local::staged_files::Place;
use datamon::model::acl::Acl;
use datamon::model::entry::{BlockRef, Codec, RecordRef};
use datamon::model::id::{BlockId, BundleId, ChunkId, ContextId, IntentId, LinkId, ObjectHash, PackId, Run};
use datamon::model::job;
use datamon::model::name::{FileName, LabelName, RepoName};
use datamon::model::path::TreePath;
use datamon::snapshot::{RowId, Table};
use datamon::staging::inode::{FileData, Inode, InodeBody};

use super::harness::target_dir;

/// Address space of a target's process, in KiB: what is mapped from the start, and a few hundred MiB.
const ADDRESS_SPACE_KIB: u64 = 1 << 20;
/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Inputs that are mutated.
const POOL_MAX: usize = 4_096;
/// The longest that one input may take.
const SLOW: Duration = Duration::from_secs(1);
const INSIDE: &str = "DATAMON_FUZZ_INSIDE";

/// What came of an input: a refusal's words, or the size of what was understood.
type Outcome = Result<usize, String>;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target)
}

/// Decodes, and what is understood is said and understood again.
fn round_trip<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Outcome {
    let value = decode(bytes).map_err(|why| why.to_string())?;
    let again = encode(&value);
    let decoded = decode(&again).unwrap_or_else(|why| panic!("what was understood cannot be said: {why}: {value:?}"));
    assert_eq!(decoded, value, "said again it is another");
    Ok(again.len())
}

fn context(bytes: &[u8]) -> Outcome {
    round_trip(bytes, ContextRecord::decode, ContextRecord::encode)
}

fn catalog(bytes: &[u8]) -> Outcome {
    round_trip(bytes, CatalogRecord::decode, CatalogRecord::encode)
}

fn refs(bytes: &[u8]) -> Outcome {
    round_trip(bytes, RefsRecord::decode, RefsRecord::encode)
}

fn intent(bytes: &[u8]) -> Outcome {
    round_trip(bytes, Intent::decode, Intent::encode)
}

fn descriptor(bytes: &[u8]) -> Outcome {
    round_trip(bytes, |bytes| Descriptor::decode(&Bytes::copy_from_slice(bytes)), Descriptor::encode)
}

fn page(bytes: &[u8]) -> Outcome {
    round_trip(bytes, Page::decode, Page::encode)
}

fn extents(bytes: &[u8]) -> Outcome {
    // The id of a block is the hash of its chunks' ids: the right one for whatever stands there.
    let id = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        let ids = (0..reader.count(33)?).map(|_| Ok(ChunkId(reader.array()?)));
        Ok(BlockId::of(ids.collect::<Result<Vec<_>, FormatError>>()?))
    };
    let decode = |bytes: &[u8]| extents::decode_extents(id(bytes)?, bytes);
    round_trip(bytes, decode, |extents| extents::encode_extents(extents))
}

fn block_list(bytes: &[u8]) -> Outcome {
    round_trip(bytes, extents::decode_block_list, |blocks| extents::encode_block_list(blocks))
}

fn pack_table(bytes: &[u8]) -> Outcome {
    round_trip(bytes, descriptor::decode_pack_table, |packs| descriptor::encode_pack_table(packs))
}

fn range(bytes: &[u8]) -> Outcome {
    // No writer makes one of no rows, and whoever reads one compares their number with the page's.
    if decode_range(bytes).is_ok_and(|rows| rows.is_empty()) {
        return Ok(0);
    }
    round_trip(bytes, decode_range, |rows| {
        let mut writer = RangeWriter::default();
        rows.iter().for_each(|row| writer.push(row));
        writer.finish().expect("there are rows").1
    })
}

fn footer(bytes: &[u8]) -> Outcome {
    let id = PackId { intent: IntentId::from_parts(1, 2), run: Run(3), seq: 4 };
    let chunks = pack::open_footer(id, bytes, ObjectHash::of(bytes)).map_err(|why| why.to_string())?;
    Ok(chunks.len())
}

fn trailer(bytes: &[u8]) -> Outcome {
    let tail = &bytes[bytes.len().saturating_sub(TRAILER_BYTES)..];
    pack::open_trailer(tail).map(|(length, _)| length).map_err(|why| why.to_string())
}

fn record(bytes: &[u8]) -> Outcome {
    let Some((head, stored)) = bytes.split_at_checked(5) else { return Ok(0) };
    let raw = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    let codec = [Codec::Raw, Codec::Zstd, Codec::Frames][usize::from(head[0] % 3)];
    let decoded = pack::decode_record(codec, &Bytes::copy_from_slice(stored), raw).map_err(|why| why.to_string())?;
    assert_eq!(decoded.len(), raw as usize);
    Ok(decoded.len())
}

fn object(bytes: &[u8]) -> Outcome {
    // As it is, and as its writer would have sealed it.
    let mut sealed = bytes.to_vec();
    if let Some(end) = bytes.len().checked_sub(32) {
        let hash = ObjectHash::of(&bytes[..end]);
        sealed[end..].copy_from_slice(hash.as_bytes());
    }
    let sealed = Bytes::from(sealed);
    let _ = envelope::open_head(bytes);
    let _ = pack::open_pack_head(ContextId::from_parts(1, 1), bytes);
    let kinds = [ObjectKind::ContextRecord, ObjectKind::Descriptor, ObjectKind::RefsRecord, ObjectKind::Intent];
    let opened = kinds.map(|kind| envelope::open(kind, None, &sealed).map_err(|why| why.to_string()));
    opened.into_iter().reduce(|one, other| one.or(other)).expect("four kinds").map(|body| body.len())
}

fn read_log(bytes: &[u8]) -> Outcome {
    // As an object, and as the text of one: behind a checksum few mutations would be looked at.
    let batch = read_log::open(bytes).or_else(|_| read_log::decode(bytes)).map_err(|why| why.to_string())?;
    let again = text_of(&batch);
    assert_eq!(read_log::decode(again.as_bytes()), Ok(batch), "said again it is another");
    Ok(again.as_bytes().len())
}

fn text_of((head, reads): &(read_log::Head, Vec<read_log::FileReads>)) -> read_log::Text {
    let mut text = read_log::Text::new(head);
    reads.iter().for_each(|reads| text.push(reads));
    text
}

fn inode(bytes: &[u8]) -> Outcome {
    round_trip(bytes, Inode::decode, Inode::encode)
}

fn acl(bytes: &[u8]) -> Outcome {
    let list = Acl::decode(bytes).map_err(|why| why.to_string())?;
    let again = list.encode();
    assert_eq!(Acl::decode(&again), Ok(list.clone()), "said again it is another");
    // Whatever is asked for, it gives what its own mode says, and no more than was asked for.
    let (inherited, permissions) = list.create(0o6750);
    assert_eq!(permissions, 0o6000 | list.mode() & 0o750);
    assert_eq!(inherited.map_or(permissions & 0o777, |inherited| inherited.mode()), permissions & 0o777);
    Ok(again.len())
}

fn ioctls(bytes: &[u8]) -> Outcome {
    let verb = job::decode::<job::Verb>(bytes).is_some();
    let progress = job::decode::<job::Progress>(bytes).is_some();
    let job = job::decode::<job::Job>(bytes).is_some();
    Ok(usize::from(verb) + 2 * usize::from(progress) + 4 * usize::from(job))
}

fn names(bytes: &[u8]) -> Outcome {
    if let Ok(path) = TreePath::parse(bytes) {
        assert_eq!(path.as_bytes(), bytes);
    }
    if let Ok(name) = FileName::new(bytes.to_vec()) {
        assert_eq!(name.as_bytes(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Err("no UTF-8".to_owned()) };
    let label = text.parse::<LabelName>().inspect(|name| assert_eq!(name.as_str(), text)).is_ok();
    let repo = text.parse::<RepoName>().inspect(|name| assert_eq!(name.as_str(), text)).is_ok();
    let bundle = text.parse::<BundleId>().inspect(|id| assert_eq!(id.to_string(), text.to_ascii_uppercase())).is_ok();
    let pack = text.parse::<PackId>().inspect(|id| assert_eq!(id.to_string(), text)).is_ok();
    Ok(usize::from(label) + 2 * usize::from(repo) + 4 * usize::from(bundle) + 8 * usize::from(pack))
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }

    /// A place in `bytes` and some bytes from there on.
    fn part(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.roll(bytes.len() + 1);
        let longest = [4, 16, 64, bytes.len()][self.roll(4)];
        start..(start + self.roll(longest + 1)).min(bytes.len())
    }

    /// One change.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        /// What lengths, counts and versions go wrong at; varints of them, too.
        const NUMBERS: [u64; 12] =
            [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX / 2, u64::MAX];
        let at = self.roll(bytes.len().max(1));
        let number = NUMBERS[self.roll(NUMBERS.len())].wrapping_add(self.roll(3) as u64);
        let put = |bytes: &mut Vec<u8>, new: &[u8]| {
            for (offset, byte) in new.iter().enumerate() {
                if let Some(place) = bytes.get_mut(at + offset) {
                    *place = *byte;
                }
            }
        };
        match self.roll(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.roll(8),
            1 if !bytes.is_empty() => bytes[at] = self.roll(256) as u8,
            2 => put(bytes, &number.to_le_bytes()[..[1, 2, 4, 8][self.roll(4)]]),
            3 => {
                let mut varint = Vec::new();
                let mut rest = number;
                while rest >= 0x80 {
                    varint.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                varint.push(rest as u8);
                if self.roll(2) == 0 { put(bytes, &varint) } else { drop(bytes.splice(at..at, varint)) }
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(self.part(bytes))),
            6 => {
                let copied = bytes[self.part(bytes)].to_vec();
                bytes.splice(at.min(bytes.len())..at.min(bytes.len()), copied);
            }
            7 => {
                let (from, to) = (self.part(other), self.part(bytes));
                bytes.splice(to, other[from].iter().copied());
            }
            _ => bytes.push(self.roll(256) as u8),
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
}

fn keep(target: &str, input: &[u8], why: &str) -> ! {
    let dir = target_dir().join("fuzz");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{target}-{}", &ObjectHash::of(input).to_string()[..12]));
    fs::write(&path, input).unwrap();
    panic!("{target}: {why}: {} ({} bytes)", path.display(), input.len());
}

fn fuzz(target: &str, decode: fn(&[u8]) -> Outcome) {
    if std::env::var_os(INSIDE).is_none() {
        let limited = format!("ulimit -v {ADDRESS_SPACE_KIB} && exec \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &limited, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("suites::fuzz::{target}"), "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{target}: {}\n{said}", output.status);
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{target} did not run");
        eprint!("{said}");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("DATAMON_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    let limit = Duration::from_secs(number("DATAMON_FUZZ_SECONDS").unwrap_or(1));
    let mut dice = Dice(seed | 1);
    let mut pool: Vec<Vec<u8>> = fs::read_dir(corpus(target))
        .unwrap_or_else(|why| panic!("{}: {why}", corpus(target).display()))
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!pool.is_empty(), "{target}: no corpus");
    // Where an abort leaves no word, the input is found here.
    let last = target_dir().join("fuzz").join(format!("{target}-last"));
    fs::create_dir_all(last.parent().unwrap()).unwrap();
    let mut seen = HashSet::new();
    let mut outcome_of = |input: &[u8]| {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| decode(input)))
            .unwrap_or_else(|_| keep(target, input, &format!("panics (seed {seed})")));
        if start.elapsed() > SLOW {
            keep(target, input, &format!("takes {:?} (seed {seed})", start.elapsed()));
        }
        // Numbers in a refusal make it no other.
        let signature = match outcome {
            Ok(size) => format!("{}", size.next_power_of_two()),
            Err(why) => why.chars().filter(|letter| !letter.is_ascii_digit()).collect(),
        };
        seen.insert(signature)
    };
    let mut is_understood = false;
    for input in &pool {
        outcome_of(input);
        is_understood |= decode(input).is_ok();
    }
    assert!(is_understood, "{target}: nothing of the corpus is understood");
    let start = Instant::now();
    let mut inputs = 0_u64;
    while start.elapsed() < limit {
        let mut input = pool[dice.roll(pool.len())].clone();
        let other = dice.roll(pool.len());
        for _ in 0..=dice.roll(4) {
            dice.mutate(&mut input, &pool[other]);
        }
        if inputs.is_multiple_of(64) {
            fs::write(&last, &input).unwrap();
        }
        if outcome_of(&input) && pool.len() < POOL_MAX {
            pool.push(input);
        }
        inputs += 1;
    }
    let _ = fs::remove_file(&last);
    eprintln!("fuzz: {target}: {inputs} inputs, {} outcomes, seed {seed}", seen.len());
}

macro_rules! targets {
    ($($target:ident: $decode:ident),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                fuzz(stringify!($target), $decode);
            }
        )*

        const TARGETS: &[(&str, fn(&[u8]) -> Outcome)] = &[$((stringify!($target), $decode)),*];
    };
}

targets! {
    context_record: context,
    catalog_record: catalog,
    refs_record: refs,
    intent_object: intent,
    descriptor_object: descriptor,
    table_page: page,
    extent_block: extents,
    list_of_blocks: block_list,
    table_of_packs: pack_table,
    table_range: range,
    pack_footer: footer,
    pack_trailer: trailer,
    stored_record: record,
    sealed_object: object,
    inode_record: inode,
    ioctl_buffer: ioctls,
    names_and_paths: names,
    access_list: acl,
    read_log_object: read_log,
}

/// Every decoder's corpus is there, and what lies in it is no longer than a seed should be.
#[test]
fn every_target_has_a_corpus() {
    if let Some(store) = std::env::var_os("DATAMON_FUZZ_LEARN") {
        learn(Path::new(&store));
    }
    for (target, _) in TARGETS {
        let files = fs::read_dir(corpus(target)).map_or(0, Iterator::count);
        assert!(files > 0, "{}: empty", corpus(target).display());
    }
}

/// Puts what lies in a `file://` store into the corpus of each target that understands it.
fn learn(store: &Path) {
    /// Seeds of one target and size class.
    const EACH: usize = 3;
    const SEED_BYTES_MAX: usize = 4 << 10;
    let mut candidates = Vec::new();
    let mut below = vec![store.to_owned()];
    while let Some(dir) = below.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                below.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let end = bytes.len().saturating_sub(TRAILER_BYTES);
            if let Ok(batch) = read_log::open(&bytes) {
                candidates.push(("read_log_object", text_of(&batch).as_bytes().to_vec()));
                candidates.push(("read_log_object", bytes));
                continue;
            }
            match pack::open_trailer(&bytes[end..]) {
                Ok((length, _)) => {
                    let footer = &bytes[end - length..end];
                    candidates.push(("pack_footer", footer.to_vec()));
                    candidates.push(("pack_trailer", bytes[end..].to_vec()));
                    candidates.extend(records(&bytes, footer));
                }
                Err(_) => {
                    candidates.push(("sealed_object", bytes.clone()));
                    if let Some(body) = bytes.get(envelope::HEAD_BYTES..bytes.len().saturating_sub(32)) {
                        candidates.push(("", body.to_vec()));
                    }
                }
            }
        }
    }
    let inodes = candidates.iter().filter_map(|(_, bytes)| decode_range(bytes).ok()).flatten().flat_map(seeds_of_row);
    candidates.extend(inodes.collect::<Vec<_>>());
    candidates.extend(large_tables());
    candidates.extend(WRITTEN_BY_HAND.iter().map(|(target, text)| (*target, text.as_bytes().to_vec())));
    let mut kept = HashSet::new();
    for (target, decode) in TARGETS {
        fs::create_dir_all(corpus(target)).unwrap();
        for (of, bytes) in &candidates {
            let is_for = of == target || of.is_empty() && !target.contains("names") && !target.contains("ioctl");
            if !is_for || bytes.len() > SEED_BYTES_MAX {
                continue;
            }
            let Ok(size) = decode(bytes) else { continue };
            let class = (size + 1).next_power_of_two();
            if (0..EACH).any(|number| kept.insert((*target, class, number))) {
                let name = ObjectHash::of(bytes).to_string();
                fs::write(corpus(target).join(&name[..12]), bytes).unwrap();
            }
        }
    }
}

/// What no store holds.
const WRITTEN_BY_HAND: &[(&str, &str)] = &[
    ("ioctl_buffer", r#"{"verb":"commit","message":"west","labels":["v1","v2"],"all":true}"#),
    ("ioctl_buffer", r#"{"verb":"freeze"}"#),
    ("ioctl_buffer", r#"{"job":7}"#),
    ("ioctl_buffer", r#"{"state":"running","line":"packing"}"#),
    ("ioctl_buffer", r#"{"state":"failed","kind":"denied","message":"no","commits":[]}"#),
    ("names_and_paths", "v1.2-rc_3"),
    ("names_and_paths", "a/b c/\u{e9}\u{301}"),
    ("names_and_paths", "01JD3KQ0000000000000000000"),
];

/// What only versions of more than a thousand packs, or a million files, or files of hundreds of GiB have.
fn large_tables() -> Vec<(&'static str, Vec<u8>)> {
    let pack = |seq| PackId { intent: IntentId::from_parts(7, 8), run: Run(9), seq };
    let hash = |number: u8| ObjectHash([number; 32]);
    let at = |number: u8| RecordRef {
        pack: pack(u32::from(number)),
        offset: 100 * u64::from(number),
        stored: 90,
        raw: 300,
        codec: Codec::Zstd,
        hash: hash(number),
    };
    let packs: Vec<_> =
        (1..6).map(|seq| PackEntry { id: pack(seq), length: 1 << (20 + seq), footer_hash: hash(seq as u8) }).collect();
    let blocks: Vec<_> = (1..6).map(|number| BlockRef { id: BlockId([number; 32]), at: at(number) }).collect();
    let keys = [RowKey::root(), RowKey::link(LinkId::from_parts(1, 2))];
    let name = |text: &str| FileName::new(text.as_bytes().to_vec()).unwrap();
    let keys = keys.into_iter().chain(["a", "b", "c"].map(|text| RowKey::child(&TreePath::root(), &name(text))));
    let entries = keys.zip(1..).map(|(first, number)| PageEntry { first, rows: 100, at: at(number) }).collect();
    vec![
        ("table_of_packs", descriptor::encode_pack_table(&packs)),
        ("list_of_blocks", extents::encode_block_list(&blocks)),
        ("table_page", Page { level: 0, entries }.encode()),
    ]
}

/// Inodes of a staging tree over a row: as the base has it, changed in part, and written anew into the log.
fn seeds_of_row(row: Row) -> Vec<(&'static str, Vec<u8>)> {
    let RowValue::Entry(entry) = row.value else { return Vec::new() };
    let id = RowId { table: Table::Files, ordinal: 9 };
    let of_base = Inode::of_base(id, entry, Some(LinkId::from_parts(5, 6)));
    let mut seeds = vec![of_base.clone()];
    if let InodeBody::File(file) = &of_base.body {
        let mut over = file.clone();
        over.local = Some(Place::File(3));
        over.chunks = vec![(0, 1), (3, 7)];
        over.uploaded = true;
        let place = Place::Log { segment: 1 << 40, offset: 16, len: 5 };
        let logged = FileData { size: 9, local: Some(place), ..FileData::empty() };
        seeds.extend([over, logged].map(|file| Inode { body: InodeBody::File(file), ..of_base.clone() }));
    }
    seeds.iter().map(|inode| ("inode_record", inode.encode())).collect()
}

/// The raw bytes of a pack's records, for whoever understands them, and the records as they are stored.
fn records(pack: &[u8], footer: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut reader = Reader::new(footer);
    let mut found = Vec::new();
    let count = reader.count(17).unwrap_or(0);
    for _ in 0..count {
        let (Ok(offset), Ok(stored), Ok(raw), Ok(codec)) = (reader.u64(), reader.u32(), reader.u32(), reader.u8())
        else {
            break;
        };
        let bytes = Bytes::copy_from_slice(&pack[offset as usize..offset as usize + stored as usize]);
        let mut seed = vec![codec];
        seed.extend_from_slice(&raw.to_le_bytes());
        seed.extend_from_slice(&bytes);
        found.push(("stored_record", seed));
        if let Ok(raw) = pack::decode_record(pack::codec_from(codec).unwrap(), &bytes, raw) {
            found.push(("", raw.to_vec()));
        }
    }
    found
}
