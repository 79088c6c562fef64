//! A batch of the read log: which files of which bundles one mount has read, and for whom.
//!
//! One zstd frame with a checksum, of lines of JSON: a head, then a line for each file, way to it and user. It is the one
//! object without an envelope (ADR 12): `zstdcat | jq` reads it, and nothing else of the store rests on it.
//!
//! # Invariants
//!
//! 1. What is decoded says the same when it is encoded again; unknown fields are skipped, an unknown version is refused.
//! 2. At most [`READ_LOG_BYTES_MAX`] of text are decompressed, whatever a frame claims of itself.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::FormatError;
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, ContentId, ContextId, MountId, RepoId};
use crate::model::limits::READ_LOG_BYTES_MAX;
use crate::model::path::TreePath;

/// The version that this program writes, and the only one it reads.
const VERSION: u64 = 1;
/// zstd's default.
const ZSTD_LEVEL: i32 = 3;

/// What a batch says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The context that the bundles are of.
    pub context: ContextId,
    /// The mount: another one each time that something is mounted.
    pub mount: MountId,
    /// The host that it was on.
    pub host: String,
    /// When the first read of the batch was, by that host's clock.
    pub from: Timestamp,
    /// When the batch was closed, by that host's clock.
    pub to: Timestamp,
    /// What was read before and stands in no batch.
    pub dropped: Dropped,
}

/// Reads that were counted and then forgotten, because the store was away for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// How often something was read.
    pub reads: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Which file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileName {
    /// By its path.
    Path(TreePath),
    /// By its place in the bundle's table F, counted from 0: a hard-linked file, which has no path of its own, or one whose
    /// path could not be looked up.
    Row(u32),
}

/// What was read of one file, on one way, by one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReads {
    /// The repo.
    pub repo: RepoId,
    /// The bundle.
    pub bundle: BundleId,
    /// The way to it in the repo: `bundles`, `labels/NAME`, `at/TIME`.
    pub through: String,
    /// The file.
    pub file: FileName,
    /// Identity of the file's bytes, where it was known.
    pub content: Option<ContentId>,
    /// The user's number.
    pub uid: u32,
    /// Whose name the reads stand under, as in the history.
    pub who: String,
    /// How often the kernel asked.
    pub reads: u64,
    /// Bytes that it was given.
    pub bytes: u64,
    /// The first time.
    pub first: Timestamp,
    /// The last time.
    pub last: Timestamp,
}

/// The text of a batch that is being made.
#[derive(Debug)]
pub struct Text(Vec<u8>);

impl Text {
    /// One without lines.
    pub fn new(head: &Head) -> Self {
        let line = HeadLine {
            readlog: VERSION,
            context: head.context.to_string(),
            mount: head.mount.to_string(),
            host: head.host.clone(),
            from: head.from.to_string(),
            to: head.to.to_string(),
            dropped_reads: head.dropped.reads,
            dropped_bytes: head.dropped.bytes,
        };
        let mut text = Self(Vec::new());
        text.put(&line);
        text
    }

    /// Adds a line.
    pub fn push(&mut self, reads: &FileReads) {
        let (path, path_hex, row) = match &reads.file {
            FileName::Path(path) => match std::str::from_utf8(path.as_bytes()) {
                Ok(text) => (Some(text.to_owned()), None, None),
                Err(_) => (None, Some(hex(path.as_bytes())), None),
            },
            FileName::Row(row) => (None, None, Some(*row)),
        };
        self.put(&FileLine {
            repo: reads.repo.to_string(),
            bundle: reads.bundle.to_string(),
            through: reads.through.clone(),
            path,
            path_hex,
            row,
            content: reads.content.map(|content| content.to_string()),
            uid: reads.uid,
            who: reads.who.clone(),
            reads: reads.reads,
            bytes: reads.bytes,
            first: reads.first.to_string(),
            last: reads.last.to_string(),
        });
    }

    /// What is there so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The object of the batch.
    pub fn seal(&self) -> Bytes {
        let compress = || {
            let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
            compressor.include_checksum(true)?;
            compressor.compress(&self.0)
        };
        Bytes::from(compress().expect("zstd compresses what fits into memory"))
    }

    fn put(&mut self, line: &impl Serialize) {
        serde_json::to_writer(&mut self.0, line).expect("texts and numbers are JSON, and memory takes them");
        self.0.push(b'\n');
    }
}

/// What an object says.
pub fn open(object: &[u8]) -> Result<(Head, Vec<FileReads>), FormatError> {
    let text = zstd::bulk::decompress(object, READ_LOG_BYTES_MAX);
    decode(&text.map_err(|_| FormatError::Malformed { what: "compressed read log" })?)
}

/// What the text of an object says.
pub fn decode(text: &[u8]) -> Result<(Head, Vec<FileReads>), FormatError> {
    let text = text.strip_suffix(b"\n").ok_or(FormatError::Truncated)?;
    let mut lines = text.split(|byte| *byte == b'\n');
    // There is a first one: also an empty text has a line.
    let head = decode_head(lines.next().unwrap_or_default())?;
    Ok((head, lines.map(decode_line).collect::<Result<_, _>>()?))
}

fn decode_head(line: &[u8]) -> Result<Head, FormatError> {
    let Version { readlog } = parsed(line, "head of a read log")?;
    if readlog != VERSION {
        let major = u16::try_from(readlog).unwrap_or(u16::MAX);
        return Err(FormatError::UnknownVersion { kind: "read log", major });
    }
    let line: HeadLine = parsed(line, "head of a read log")?;
    Ok(Head {
        context: id(&line.context)?,
        mount: id(&line.mount)?,
        host: line.host,
        from: time(&line.from)?,
        to: time(&line.to)?,
        dropped: Dropped { reads: line.dropped_reads, bytes: line.dropped_bytes },
    })
}

fn decode_line(line: &[u8]) -> Result<FileReads, FormatError> {
    let line: FileLine = parsed(line, "line of a read log")?;
    let malformed = FormatError::Malformed { what: "file of a read log" };
    let path = |bytes: &[u8]| TreePath::parse(bytes).map(FileName::Path).map_err(|_| malformed.clone());
    let file = match (line.path, line.path_hex, line.row) {
        (Some(text), None, None) => path(text.as_bytes())?,
        (None, Some(text), None) => {
            let bytes = from_hex(&text).filter(|bytes| std::str::from_utf8(bytes).is_err());
            path(&bytes.ok_or(malformed.clone())?)?
        }
        (None, None, Some(row)) => FileName::Row(row),
        _ => return Err(malformed),
    };
    Ok(FileReads {
        repo: id(&line.repo)?,
        bundle: id(&line.bundle)?,
        through: line.through,
        file,
        content: line.content.as_deref().map(content).transpose()?,
        uid: line.uid,
        who: line.who,
        reads: line.reads,
        bytes: line.bytes,
        first: time(&line.first)?,
        last: time(&line.last)?,
    })
}

/// What says of a head how the rest is to be read.
#[derive(Deserialize)]
struct Version {
    readlog: u64,
}

#[derive(Serialize, Deserialize)]
struct HeadLine {
    readlog: u64,
    context: String,
    mount: String,
    host: String,
    from: String,
    to: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    dropped_reads: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    dropped_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct FileLine {
    repo: String,
    bundle: String,
    through: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Of a path that is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    uid: u32,
    who: String,
    reads: u64,
    bytes: u64,
    first: String,
    last: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn parsed<'a, T: Deserialize<'a>>(line: &'a [u8], what: &'static str) -> Result<T, FormatError> {
    serde_json::from_slice(line).map_err(|_| FormatError::Malformed { what })
}

fn id<T: std::str::FromStr>(text: &str) -> Result<T, FormatError> {
    text.parse().map_err(|_| FormatError::Malformed { what: "id in a read log" })
}

fn time(text: &str) -> Result<Timestamp, FormatError> {
    Timestamp::from_rfc3339(text).ok_or(FormatError::Malformed { what: "time in a read log" })
}

fn content(text: &str) -> Result<ContentId, FormatError> {
    let bytes = from_hex(text).and_then(|bytes| bytes.try_into().ok());
    bytes.map(ContentId).ok_or(FormatError::Malformed { what: "content id in a read log" })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower-case digits only, so that bytes have one spelling.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::ChunkId;
    use proptest::prelude::*;

    fn head() -> Head {
        Head {
            context: ContextId::from_parts(1, 2),
            mount: MountId::from_parts(3, 4),
            host: "lab".into(),
            from: Timestamp { secs: 1_700_000_000, nanos: 5 },
            to: Timestamp { secs: 1_700_000_060, nanos: 0 },
            dropped: Dropped::default(),
        }
    }

    fn reads(file: FileName) -> FileReads {
        FileReads {
            repo: RepoId::from_parts(5, 6),
            bundle: BundleId::from_parts(7, 8),
            through: "labels/v1".into(),
            file,
            content: Some(ContentId::of_chunk(ChunkId::of(b"a"))),
            uid: 1000,
            who: "ann@lab".into(),
            reads: 3,
            bytes: 4096,
            first: Timestamp { secs: 1_700_000_000, nanos: 5 },
            last: Timestamp { secs: 1_700_000_059, nanos: 120_000_000 },
        }
    }

    fn path(bytes: &[u8]) -> FileName {
        FileName::Path(TreePath::parse(bytes).unwrap())
    }

    fn sample() -> (Head, Vec<FileReads>) {
        let hard_linked = FileReads { content: None, ..reads(FileName::Row(9)) };
        let all = vec![reads(path(b"a/b c.csv")), reads(path(b"no \xff utf")), hard_linked];
        (Head { dropped: Dropped { reads: 2, bytes: 8192 }, ..head() }, all)
    }

    fn text(head: &Head, all: &[FileReads]) -> Text {
        let mut text = Text::new(head);
        all.iter().for_each(|reads| text.push(reads));
        text
    }

    fn written(head: &Head, all: &[FileReads]) -> String {
        String::from_utf8(text(head, all).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_golden_batch_is_read_and_its_text_is_unchanged() {
        let (head, all) = sample();
        let golden = include_bytes!("../../tests/golden/readlog.bin");
        assert_eq!(open(golden), Ok((head.clone(), all.clone())));
        // Another zstd may make other bytes of it: what is in stores is the text.
        let golden = zstd::bulk::decompress(golden, READ_LOG_BYTES_MAX).unwrap();
        assert_eq!(written(&head, &all), String::from_utf8(golden).unwrap());
    }

    #[test]
    fn a_batch_comes_back_and_a_cut_or_flipped_one_does_not() {
        let (head, all) = sample();
        let object = text(&head, &all).seal();
        assert_eq!(open(&object), Ok((head.clone(), all.clone())));
        assert!((0..object.len()).all(|cut| open(&object[..cut]).is_err()));
        // Frames have bits that mean nothing; all others the checksum sees.
        let said = Ok((head, all));
        let mut refused = 0;
        for at in 0..object.len() {
            let mut flipped = object.to_vec();
            flipped[at] ^= 1;
            let found = open(&flipped);
            assert!(found.is_err() || found == said, "byte {at}");
            refused += usize::from(found.is_err());
        }
        assert!(refused > object.len() / 10 * 9, "{refused} of {}", object.len());
    }

    #[test]
    fn an_unknown_field_is_skipped_and_an_unknown_version_is_refused_by_name() {
        let (head, all) = sample();
        let written = written(&head, &all);
        let grown = written.replace("{\"re", "{\"colour\":{\"deep\":[1]},\"re");
        assert_ne!(grown, written);
        assert_eq!(decode(grown.as_bytes()), Ok((head, all)));
        let newer = written.replace("\"readlog\":1", "\"readlog\":2");
        assert!(decode(newer.as_bytes()).unwrap_err().to_string().contains("format version 2 of a read log"));
    }

    #[test]
    fn a_line_names_one_file_in_one_spelling() {
        let (head, _) = sample();
        let written = written(&head, &[reads(path(b"a"))]);
        for (from, to) in [
            ("\"path\":\"a\"", "\"path\":\"a\",\"row\":1"),
            ("\"path\":\"a\"", "\"path_hex\":\"61\""),
            ("\"path\":\"a\"", "\"path_hex\":\"FF\""),
            ("\"path\":\"a\"", "\"colour\":1"),
            ("\"path\":\"a\"", "\"path\":\"../a\""),
            ("2023-11-14T22:13:20.000000005Z", "2023-11-14T22:13:20.000000005+00:00"),
            ("\"reads\":3", "\"reads\":-3"),
        ] {
            let changed = written.replace(from, to);
            assert_ne!(changed, written, "{from}");
            assert!(decode(changed.as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn more_text_than_a_batch_may_have_is_refused_unread() {
        let bomb = zstd::bulk::compress(&vec![b' '; READ_LOG_BYTES_MAX + 1], ZSTD_LEVEL).unwrap();
        assert!(bomb.len() < 4096);
        assert!(open(&bomb).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _ = open(&bytes);
            let _ = decode(&bytes);
        }

        #[test]
        fn any_text_and_number_comes_back(host: String, who: String, uid: u32, count: u64, secs in 0i64..253_402_300_800, nanos in 0u32..1_000_000_000) {
            let at = Timestamp { secs, nanos };
            let head = Head { host, from: at, ..head() };
            let reads = FileReads { who: who.clone(), through: who, uid, reads: count, bytes: count, last: at, ..reads(path(b"x")) };
            prop_assert_eq!(open(&text(&head, std::slice::from_ref(&reads)).seal()), Ok((head, vec![reads])));
        }
    }
}
