//! Descriptors: one object that is a bundle. Also the pages, extent blocks and pack tables that one leads to.
//!
//! A *page* lists ranges (level 0) or pages (level 1 and up) by their first key:
//! `level u8 · packs · varint n, each {first key string, rows varint, record}`. An *extent block* is
//! `varint n, ids 32 each · packs · n × {0 u8: hole | 1 u8, locator}`; its id covers the ids alone. A *block list*
//! is `packs · varint n, each {id 32, record}`. A *pack table* is `varint n, each {intent 16, run u64, seq u32,
//! length u64, footer hash 32}`.
//!
//! A descriptor's body: `repo 16 · bundle 16 · intent 16 · time · chunk size's log2 u8 · who · message · tool · parents ·
//! labels · counts · layers (1 in this version), each {root page of D, root page of F, rows of D, rows of F} ·
//! pack table: 0 u8 and the table, or 1 u8, the table of those packs that hold its parts, and the records of its parts ·
//! extensions`: 1, what it was derived from ([`super::derived`]).

use std::collections::HashSet;

use bytes::Bytes;

use super::FormatError;
use super::derived::{DERIVED_FROM_BYTES_MAX, DerivedFrom};
use super::envelope::OVERHEAD_BYTES;
use super::extension;
use super::place::{PackDictionary, put_record, take_packs, take_record};
use super::range::{RANGE_ROWS_MAX, RowKey};
use super::refs::{SUMMARY_MESSAGE_BYTES, Summary, put_time, take_text, take_time};
use super::wire::{Reader, Writer};
use crate::model::chunk::ChunkSize;
use crate::model::clock::Timestamp;
use crate::model::entry::{RecordRef, TreeCounts};
use crate::model::id::{BundleId, IntentId, ObjectHash, PackId, RepoId, Run};
use crate::model::limits::{
    DESCRIPTOR_BYTES_MAX, LABEL_BYTES_MAX, LABELS_MAX, LAYERS_MAX, MESSAGE_BYTES_MAX, ROWS_MAX,
};
use crate::model::name::LabelName;

/// Entries that one page may hold.
pub const PAGE_ENTRIES_MAX: usize = 1_024;
/// Bytes that one page may have.
///
/// The two root pages lie in the descriptor, together with as many packs as a page has entries, as many labels as there may
/// be, three texts, and what the bundle was derived from: see below.
pub const PAGE_BYTES_MAX: usize = 96 << 10;
const _: () = assert!(
    2 * PAGE_BYTES_MAX
        + PAGE_ENTRIES_MAX * PACK_ENTRY_BYTES
        + LABELS_MAX * (LABEL_BYTES_MAX + 2)
        + 3 * (MESSAGE_BYTES_MAX + 3)
        + DERIVED_FROM_BYTES_MAX
        + (4 << 10)
        <= DESCRIPTOR_BYTES_MAX,
    "a descriptor has room for what it may hold"
);
/// Highest level of a page, counted from 0. The longest entries (4,353 bytes of key) are 22 a page: six levels of these are
/// 113 million ranges, and 2^32 rows of the largest kind (60 a range) are 72 million.
pub const PAGE_LEVEL_MAX: u8 = 5;
/// Bytes of a page without entries: level, and two counts up to 1,024.
const PAGE_HEAD_BYTES: usize = 1 + 2 + 2;
/// Bytes of an entry at the most, without its key and its pack's line in the dictionary.
const PAGE_ENTRY_BYTES: usize = 2 + 5 + (2 + 4 + 4 + 4 + 1 + 32);
/// Bytes of a pack in a dictionary.
const PACK_ID_BYTES: usize = 16 + 8 + 4;
/// Bytes of a pack in a pack table.
const PACK_ENTRY_BYTES: usize = PACK_ID_BYTES + 8 + 32;

/// One range or page, as the page above names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageEntry {
    /// The smallest key in it.
    pub first: RowKey,
    /// Rows in it.
    pub rows: u64,
    /// Where it lies.
    pub at: RecordRef,
}

/// A list of ranges or of pages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// 0: the entries are ranges; above: pages of one level less.
    pub level: u8,
    /// In key order.
    pub entries: Vec<PageEntry>,
}

impl Page {
    /// `entries` cut into pages of `level`, none over its limits of entries and of bytes.
    pub fn split(level: u8, entries: Vec<PageEntry>) -> Vec<Self> {
        let mut pages: Vec<Self> = Vec::new();
        let mut packs = HashSet::new();
        let mut bytes = 0;
        for entry in entries {
            let own = PAGE_ENTRY_BYTES + entry.first.as_bytes().len();
            let pack = if packs.contains(&entry.at.pack) { 0 } else { PACK_ID_BYTES };
            let open = pages.last_mut().filter(|page| page.entries.len() < PAGE_ENTRIES_MAX);
            match open.filter(|_| bytes + own + pack <= PAGE_BYTES_MAX) {
                Some(page) => {
                    bytes += own + pack;
                    packs.insert(entry.at.pack);
                    page.entries.push(entry);
                }
                None => {
                    bytes = PAGE_HEAD_BYTES + own + PACK_ID_BYTES;
                    packs = HashSet::from([entry.at.pack]);
                    pages.push(Self { level, entries: vec![entry] });
                }
            }
        }
        pages
    }

    /// The page's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut packs = PackDictionary::default();
        let mut rows = Writer::new();
        rows.varint(self.entries.len() as u64);
        for entry in &self.entries {
            rows.string(entry.first.as_bytes());
            rows.varint(entry.rows);
            put_record(&mut rows, &mut packs, &entry.at);
        }
        let mut writer = Writer::new();
        writer.u8(self.level);
        packs.put(&mut writer);
        writer.array(&rows.into_bytes());
        debug_assert!(writer.len() <= PAGE_BYTES_MAX, "pages are made by split");
        writer.into_bytes()
    }

    /// The page with these bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, FormatError> {
        if raw.len() > PAGE_BYTES_MAX {
            let (limit, found) = (PAGE_BYTES_MAX as u64, raw.len() as u64);
            return Err(FormatError::TooLarge { what: "page", limit, found });
        }
        let mut reader = Reader::new(raw);
        let page = Self::take(&mut reader)?;
        reader.finish()?;
        Ok(page)
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let level = reader.u8()?;
        let packs = take_packs(reader)?;
        let count = reader.count(38)?;
        if count > PAGE_ENTRIES_MAX || level > PAGE_LEVEL_MAX {
            return Err(FormatError::Malformed { what: "page" });
        }
        let rows_max = if level == 0 { RANGE_ROWS_MAX as u64 } else { ROWS_MAX };
        let mut total = 0;
        let mut entries: Vec<PageEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let first = RowKey::from_bytes(reader.string()?)?;
            let rows = reader.varint()?;
            // Nobody who adds these numbers up needs to look at their size.
            if rows == 0 || rows > rows_max || total + rows > ROWS_MAX {
                return Err(FormatError::Malformed { what: "rows of a page" });
            }
            total += rows;
            let at = take_record(reader, &packs)?;
            if entries.last().is_some_and(|last| last.first >= first) {
                return Err(FormatError::Malformed { what: "order of a page" });
            }
            entries.push(PageEntry { first, rows, at });
        }
        Ok(Self { level, entries })
    }

    /// Rows below this page.
    pub fn rows(&self) -> u64 {
        self.entries.iter().map(|entry| entry.rows).sum()
    }

    /// Whether this is what `entry` of the page above says of it.
    pub fn is(&self, entry: &PageEntry) -> bool {
        self.rows() == entry.rows && self.entries.first().is_some_and(|own| own.first == entry.first)
    }
}

/// One pack that a bundle refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// The pack.
    pub id: PackId,
    /// Its length in bytes.
    pub length: u64,
    /// Hash of its footer.
    pub footer_hash: ObjectHash,
}

/// The bytes of a pack table.
pub fn encode_pack_table(packs: &[PackEntry]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(packs.len() as u64);
    for pack in packs {
        writer.array(&pack.id.intent.to_bytes());
        writer.u64(pack.id.run.0);
        writer.u32(pack.id.seq);
        writer.u64(pack.length);
        writer.array(pack.footer_hash.as_bytes());
    }
    writer.into_bytes()
}

/// The packs of a pack table.
pub fn decode_pack_table(raw: &[u8]) -> Result<Vec<PackEntry>, FormatError> {
    let mut reader = Reader::new(raw);
    let packs = take_pack_table(&mut reader)?;
    reader.finish()?;
    Ok(packs)
}

fn take_pack_table(reader: &mut Reader<'_>) -> Result<Vec<PackEntry>, FormatError> {
    let count = reader.count(PACK_ENTRY_BYTES)?;
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        let intent = IntentId::from_bytes(reader.array()?);
        let id = PackId { intent, run: Run(reader.u64()?), seq: reader.u32()? };
        packs.push(PackEntry { id, length: reader.u64()?, footer_hash: ObjectHash(reader.array()?) });
    }
    Ok(packs)
}

/// The packs of a bundle, in the descriptor or in records of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackTable {
    /// At most [`PAGE_ENTRIES_MAX`] packs.
    Here(Vec<PackEntry>),
    /// Parts in records of their own.
    Parts {
        /// The packs that hold the parts. No part lists them: they were written after it.
        holders: Vec<PackEntry>,
        /// Records, each a pack table.
        parts: Vec<RecordRef>,
    },
}

impl PackTable {
    /// The packs that the descriptor itself lists: all of them, or those in which the list of the others lies.
    pub fn here(&self) -> &[PackEntry] {
        match self {
            Self::Here(packs) | Self::Parts { holders: packs, .. } => packs,
        }
    }
}

/// One layer of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// Directories.
    pub directories: Page,
    /// Everything else.
    pub files: Page,
}

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The repo.
    pub repo: RepoId,
    /// The bundle.
    pub bundle: BundleId,
    /// The intent that wrote it.
    pub intent: IntentId,
    /// When it was sealed.
    pub time: Timestamp,
    /// The repo's chunk size.
    pub chunk_size: ChunkSize,
    /// User and host.
    pub who: String,
    /// The whole message.
    pub message: String,
    /// The program that wrote it.
    pub tool: String,
    /// What it was made from: bundle and hash of its descriptor.
    pub parents: Vec<(BundleId, ObjectHash)>,
    /// Labels asked for at the commit.
    pub labels: Vec<LabelName>,
    /// What lies below the root.
    pub counts: TreeCounts,
    /// From the base up.
    pub layers: Vec<Layer>,
    /// A superset of all packs that any table of the bundle names.
    pub packs: PackTable,
    /// Bundles whose files were open while this one was made. They are named only: nothing keeps them from being removed.
    pub derived_from: DerivedFrom,
}

/// The tag of the extension.
const DERIVED_FROM: u64 = 1;

impl Descriptor {
    /// The bundle's line in the history; `object` is the whole descriptor object.
    pub fn summary(&self, object: &[u8]) -> Summary {
        let mut message = self.message.lines().next().unwrap_or_default().to_owned();
        while message.len() > SUMMARY_MESSAGE_BYTES {
            message.pop();
        }
        Summary {
            bundle: self.bundle,
            descriptor: ObjectHash::of(object),
            time: self.time,
            who: self.who.clone(),
            files: self.counts.files,
            bytes: self.counts.bytes,
            labels: self.labels.clone(),
            message,
        }
    }

    /// The descriptor's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.array(&self.repo.to_bytes());
        writer.array(&self.bundle.to_bytes());
        writer.array(&self.intent.to_bytes());
        put_time(&mut writer, self.time);
        writer.u8(self.chunk_size.log2());
        [&self.who, &self.message, &self.tool].into_iter().for_each(|text| writer.string(text.as_bytes()));
        writer.varint(self.parents.len() as u64);
        for (bundle, hash) in &self.parents {
            writer.array(&bundle.to_bytes());
            writer.array(hash.as_bytes());
        }
        writer.varint(self.labels.len() as u64);
        self.labels.iter().for_each(|label| writer.string(label.as_str().as_bytes()));
        [self.counts.files, self.counts.bytes, self.counts.directories].into_iter().for_each(|n| writer.varint(n));
        writer.varint(self.layers.len() as u64);
        for layer in &self.layers {
            writer.string(&layer.directories.encode());
            writer.string(&layer.files.encode());
        }
        match &self.packs {
            PackTable::Here(packs) => {
                writer.u8(0);
                writer.string(&encode_pack_table(packs));
            }
            PackTable::Parts { holders, parts } => {
                let mut packs = PackDictionary::default();
                for pack in holders {
                    packs.number(pack.id);
                }
                writer.u8(1);
                writer.string(&encode_pack_table(holders));
                writer.varint(parts.len() as u64);
                parts.iter().for_each(|part| put_record(&mut writer, &mut packs, part));
                debug_assert_eq!(packs.ids().len(), holders.len(), "every part lies in a holder");
            }
        }
        if !self.derived_from.is_empty() {
            extension::put(&mut writer, DERIVED_FROM, &self.derived_from.encode());
        }
        writer.into_bytes()
    }

    /// The compatible features of its object.
    pub fn compatible(&self) -> u32 {
        if self.derived_from.is_empty() { 0 } else { extension::EXTENDED }
    }

    /// The descriptor with this body; a bundle with more layers than this version reads is refused by name.
    pub fn decode(body: &Bytes) -> Result<Self, FormatError> {
        let (limit, found) = (DESCRIPTOR_BYTES_MAX as u64, (body.len() + OVERHEAD_BYTES) as u64);
        if found > limit {
            return Err(FormatError::TooLarge { what: "descriptor", limit, found });
        }
        let mut reader = Reader::new(body);
        let repo = RepoId::from_bytes(reader.array()?);
        let bundle = BundleId::from_bytes(reader.array()?);
        let intent = IntentId::from_bytes(reader.array()?);
        let time = take_time(&mut reader)?;
        let malformed = FormatError::Malformed { what: "chunk size" };
        let chunk_size = ChunkSize::from_log2(reader.u8()?).ok_or(malformed)?;
        let who = take_text(&mut reader)?;
        let message = take_text(&mut reader)?;
        let tool = take_text(&mut reader)?;
        let mut parents = Vec::new();
        for _ in 0..reader.count(48)? {
            parents.push((BundleId::from_bytes(reader.array()?), ObjectHash(reader.array()?)));
        }
        let labels = take_labels(&mut reader)?;
        let counts = TreeCounts { files: reader.varint()?, bytes: reader.varint()?, directories: reader.varint()? };
        let layers = take_layers(&mut reader)?;
        let packs = match reader.u8()? {
            0 => PackTable::Here(decode_pack_table(reader.string()?)?),
            1 => {
                let holders = decode_pack_table(reader.string()?)?;
                let packs: Vec<_> = holders.iter().map(|pack| pack.id).collect();
                let mut parts = Vec::new();
                for _ in 0..reader.count(37)? {
                    parts.push(take_record(&mut reader, &packs)?);
                }
                PackTable::Parts { holders, parts }
            }
            _ => return Err(FormatError::Malformed { what: "pack table" }),
        };
        let mut derived_from = DerivedFrom::default();
        extension::take_all(&mut reader, |tag, value| {
            if tag == DERIVED_FROM {
                derived_from = DerivedFrom::take(value)?;
            }
            Ok(tag == DERIVED_FROM)
        })?;
        Ok(Self {
            repo,
            bundle,
            intent,
            time,
            chunk_size,
            who,
            message,
            tool,
            parents,
            labels,
            counts,
            layers,
            packs,
            derived_from,
        })
    }
}

fn take_labels(reader: &mut Reader<'_>) -> Result<Vec<LabelName>, FormatError> {
    let count = reader.count(2)?;
    if count > LABELS_MAX {
        return Err(FormatError::TooLarge { what: "labels", limit: LABELS_MAX as u64, found: count as u64 });
    }
    let mut labels = Vec::with_capacity(count);
    for _ in 0..count {
        labels.push(take_text(reader)?.parse().map_err(|_| FormatError::Malformed { what: "label" })?);
    }
    Ok(labels)
}

fn take_layers(reader: &mut Reader<'_>) -> Result<Vec<Layer>, FormatError> {
    let count = reader.count(4)?;
    if count == 0 || count > LAYERS_MAX {
        return Err(FormatError::Malformed { what: "layers" });
    }
    if count > 1 {
        let features = "delta layers".to_owned();
        return Err(FormatError::UnknownFeature { kind: "descriptor", features });
    }
    let mut layers = Vec::with_capacity(count);
    for _ in 0..count {
        let directories = Page::decode(reader.string()?)?;
        layers.push(Layer { directories, files: Page::decode(reader.string()?)? });
    }
    Ok(layers)
}

#[cfg(test)]
mod tests;
