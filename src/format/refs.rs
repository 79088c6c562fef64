//! The refs chain of a repo: labels, `latest`, trash and history, in one place so that they cannot race.
//!
//! A record's body: `time i64 u32 · previous record's hash 32 (zeros for the first) · latest · labels ·
//! trashed · purging · the last 64 summaries, oldest first`. Everything but history is complete in each record; history
//! beyond the last 64 bundles is read by walking back. Extensions: 1, who wrote the record; 2, the last 64 events,
//! `varint n, each {kind u8, bundle 16, time, who string}`, oldest first, which reach as far back as summaries do.

use std::collections::{BTreeMap, BTreeSet};

use super::FormatError;
use super::extension;
use super::wire::{Reader, Writer};
use crate::model::clock::Timestamp;
use crate::model::id::{BundleId, ObjectHash};
use crate::model::limits::{LABELS_MAX, MESSAGE_BYTES_MAX};
use crate::model::name::LabelName;

/// Summaries that a record repeats.
pub const RECENT_MAX: usize = 64;
/// Bytes of a message that a summary keeps; the whole message is in the descriptor.
pub const SUMMARY_MESSAGE_BYTES: usize = 200;

/// Bytes of the shortest summary: bundle, hash, time, and a byte for each of who, files, bytes, labels, message.
const SUMMARY_BYTES_MIN: usize = 16 + 32 + 12 + 5;

/// One bundle as history shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The bundle.
    pub bundle: BundleId,
    /// Hash of its descriptor object.
    pub descriptor: ObjectHash,
    /// When it entered the chain.
    pub time: Timestamp,
    /// Who committed it.
    pub who: String,
    /// Names of non-directories in it.
    pub files: u64,
    /// Bytes of regular files in it.
    pub bytes: u64,
    /// Labels given at the commit.
    pub labels: Vec<LabelName>,
    /// The message's beginning.
    pub message: String,
}

/// What befell a bundle after it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// It was removed, restorably.
    Removed = 1,
    /// It is back.
    Restored = 2,
}

impl EventKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Removed, Self::Restored].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One thing that befell a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// Which bundle.
    pub bundle: BundleId,
    /// When: later than the record before the one that it came with.
    pub time: Timestamp,
    /// Who did it; empty: nobody said.
    pub who: String,
}

/// The state of a repo's names after one change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RefsRecord {
    /// When, never before the previous record's time.
    pub time: Timestamp,
    /// Hash of the whole previous record object; `None` for the first.
    pub previous: Option<ObjectHash>,
    /// The newest bundle that is neither trashed nor purged.
    pub latest: Option<BundleId>,
    /// Labels.
    pub labels: BTreeMap<LabelName, BundleId>,
    /// Bundles removed by a user, still restorable.
    pub trashed: BTreeSet<BundleId>,
    /// Bundles that a collection is deleting.
    pub purging: BTreeSet<BundleId>,
    /// The last bundles, oldest first.
    pub recent: Vec<Summary>,
    /// Who wrote this record; empty: nobody said.
    pub who: String,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

/// Tags of the extensions.
const WHO: u64 = 1;
const EVENTS: u64 = 2;
/// Bytes of the shortest event.
const EVENT_BYTES_MIN: usize = 1 + 16 + 12 + 1;

impl RefsRecord {
    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        put_time(&mut writer, self.time);
        writer.array(&self.previous.map_or([0; 32], |hash| hash.0));
        writer.array(&self.latest.map_or([0; 16], BundleId::to_bytes));
        writer.varint(self.labels.len() as u64);
        for (label, bundle) in &self.labels {
            writer.string(label.as_str().as_bytes());
            writer.array(&bundle.to_bytes());
        }
        for set in [&self.trashed, &self.purging] {
            writer.varint(set.len() as u64);
            set.iter().for_each(|bundle| writer.array(&bundle.to_bytes()));
        }
        writer.varint(self.recent.len() as u64);
        self.recent.iter().for_each(|summary| put_summary(&mut writer, summary));
        if !self.who.is_empty() {
            extension::put(&mut writer, WHO, self.who.as_bytes());
        }
        if !self.events.is_empty() {
            extension::put(&mut writer, EVENTS, &encode_events(&self.events));
        }
        writer.into_bytes()
    }

    /// The compatible features of its object.
    pub fn compatible(&self) -> u32 {
        if self.who.is_empty() && self.events.is_empty() { 0 } else { extension::EXTENDED }
    }

    /// The record with this body.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let time = take_time(&mut reader)?;
        let previous = Some(ObjectHash(reader.array()?)).filter(|hash| hash.0 != [0; 32]);
        let latest = Some(BundleId::from_bytes(reader.array()?)).filter(|id| id.to_bytes() != [0; 16]);
        let mut labels = BTreeMap::new();
        for _ in 0..bounded(reader.count(17)?, LABELS_MAX, "labels")? {
            let label = take_label(&mut reader)?;
            if labels.last_key_value().is_some_and(|(last, _)| *last >= label) {
                return Err(FormatError::Malformed { what: "order of labels" });
            }
            labels.insert(label, BundleId::from_bytes(reader.array()?));
        }
        let mut sets = [BTreeSet::new(), BTreeSet::new()];
        for set in &mut sets {
            for _ in 0..reader.count(16)? {
                set.insert(BundleId::from_bytes(reader.array()?));
            }
        }
        let mut recent = Vec::new();
        for _ in 0..bounded(reader.count(SUMMARY_BYTES_MIN)?, RECENT_MAX, "summaries")? {
            recent.push(take_summary(&mut reader)?);
        }
        let (mut who, mut events) = (String::new(), Vec::new());
        extension::take_all(&mut reader, |tag, value| {
            match tag {
                WHO => who = text(value.take(value.remaining())?)?,
                EVENTS => events = take_events(value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let [trashed, purging] = sets;
        Ok(Self { time, previous, latest, labels, trashed, purging, recent, who, events })
    }
}

fn bounded(count: usize, limit: usize, what: &'static str) -> Result<usize, FormatError> {
    if count > limit {
        return Err(FormatError::TooLarge { what, limit: limit as u64, found: count as u64 });
    }
    Ok(count)
}

fn put_summary(writer: &mut Writer, summary: &Summary) {
    writer.array(&summary.bundle.to_bytes());
    writer.array(summary.descriptor.as_bytes());
    put_time(writer, summary.time);
    writer.string(summary.who.as_bytes());
    writer.varint(summary.files);
    writer.varint(summary.bytes);
    writer.varint(summary.labels.len() as u64);
    summary.labels.iter().for_each(|label| writer.string(label.as_str().as_bytes()));
    writer.string(summary.message.as_bytes());
}

fn take_summary(reader: &mut Reader<'_>) -> Result<Summary, FormatError> {
    let bundle = BundleId::from_bytes(reader.array()?);
    let descriptor = ObjectHash(reader.array()?);
    let time = take_time(reader)?;
    let who = take_text(reader)?;
    let (files, bytes) = (reader.varint()?, reader.varint()?);
    let mut labels = Vec::new();
    for _ in 0..bounded(reader.count(2)?, LABELS_MAX, "labels")? {
        labels.push(take_label(reader)?);
    }
    Ok(Summary { bundle, descriptor, time, who, files, bytes, labels, message: take_text(reader)? })
}

fn encode_events(events: &[Event]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint(events.len() as u64);
    for event in events {
        writer.u8(event.kind as u8);
        writer.array(&event.bundle.to_bytes());
        put_time(&mut writer, event.time);
        writer.string(event.who.as_bytes());
    }
    writer.into_bytes()
}

fn take_events(reader: &mut Reader<'_>) -> Result<Vec<Event>, FormatError> {
    let mut events: Vec<Event> = Vec::new();
    for _ in 0..bounded(reader.count(EVENT_BYTES_MIN)?, RECENT_MAX, "events")? {
        let kind = EventKind::from_byte(reader.u8()?).ok_or(FormatError::Malformed { what: "kind of event" })?;
        let bundle = BundleId::from_bytes(reader.array()?);
        let event = Event { kind, bundle, time: take_time(reader)?, who: take_text(reader)? };
        // What was read already is told from what is new by its time.
        if events.last().is_some_and(|last| last.time >= event.time) {
            return Err(FormatError::Malformed { what: "order of events" });
        }
        events.push(event);
    }
    Ok(events)
}

fn take_label(reader: &mut Reader<'_>) -> Result<LabelName, FormatError> {
    take_text(reader)?.parse().map_err(|_| FormatError::Malformed { what: "label" })
}

/// A time: i64 seconds, u32 nanoseconds.
pub fn put_time(writer: &mut Writer, time: Timestamp) {
    writer.i64(time.secs);
    writer.u32(time.nanos);
}

/// A time; nanoseconds of a second or more are refused.
pub fn take_time(reader: &mut Reader<'_>) -> Result<Timestamp, FormatError> {
    let time = Timestamp { secs: reader.i64()?, nanos: reader.u32()? };
    if time.nanos > 999_999_999 { Err(FormatError::Malformed { what: "time" }) } else { Ok(time) }
}

/// UTF-8 text of at most the longest message.
pub fn take_text(reader: &mut Reader<'_>) -> Result<String, FormatError> {
    text(reader.string()?)
}

fn text(bytes: &[u8]) -> Result<String, FormatError> {
    bounded(bytes.len(), MESSAGE_BYTES_MAX, "text")?;
    String::from_utf8(bytes.to_vec()).map_err(|_| FormatError::Malformed { what: "text" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::envelope::{self, ObjectKind};
    use crate::model::id::ContextId;
    use proptest::prelude::*;

    fn sample() -> RefsRecord {
        let bundle = BundleId::from_parts(5, 6);
        let label: LabelName = "v1".parse().unwrap();
        RefsRecord {
            time: Timestamp { secs: -1, nanos: 7 },
            previous: Some(ObjectHash([3; 32])),
            latest: Some(bundle),
            labels: [(label.clone(), bundle)].into(),
            trashed: [BundleId::from_parts(1, 1)].into(),
            purging: BTreeSet::new(),
            recent: vec![Summary {
                bundle,
                descriptor: ObjectHash([4; 32]),
                time: Timestamp { secs: 9, nanos: 0 },
                who: "ann@lab".into(),
                files: 3,
                bytes: 1 << 40,
                labels: vec![label],
                message: "first".into(),
            }],
            ..RefsRecord::default()
        }
    }

    /// The same, later, with what older records do not say.
    fn extended() -> RefsRecord {
        let event = |kind, secs, who: &str| {
            let time = Timestamp { secs, nanos: 0 };
            Event { kind, bundle: BundleId::from_parts(1, 1), time, who: who.into() }
        };
        let events = vec![event(EventKind::Removed, 10, "bob@lab"), event(EventKind::Restored, 11, "")];
        RefsRecord { who: "bob@lab".into(), events, ..sample() }
    }

    #[test]
    fn the_golden_record_is_unchanged() {
        let object = envelope::seal(ObjectKind::RefsRecord, ContextId::from_parts(1, 2), &sample().encode());
        let golden = include_bytes!("../../tests/golden/refs.bin");
        assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
    }

    #[test]
    fn the_golden_record_with_extensions_is_unchanged() {
        let (record, context) = (extended(), ContextId::from_parts(1, 2));
        let object = envelope::seal_with(ObjectKind::RefsRecord, context, record.compatible(), &record.encode());
        let golden = include_bytes!("../../tests/golden/refs_extended.bin");
        assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
        assert_eq!(RefsRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn an_event_of_a_later_version_is_refused_and_an_unknown_extension_is_not() {
        let mut record = extended();
        let mut later = record.encode();
        extension_of_a_later_version(&mut later);
        assert_eq!(RefsRecord::decode(&later), Ok(record.clone()));
        record.events[1].time = record.events[0].time;
        assert_eq!(RefsRecord::decode(&record.encode()), Err(FormatError::Malformed { what: "order of events" }));
        let (mut writer, summaries) = (Writer::new(), sample().encode());
        extension::put(&mut writer, EVENTS, &[&[1, 9][..], &[0; 29]].concat());
        let unknown = [summaries, writer.into_bytes()].concat();
        assert_eq!(RefsRecord::decode(&unknown), Err(FormatError::Malformed { what: "kind of event" }));
    }

    fn extension_of_a_later_version(body: &mut Vec<u8>) {
        let mut writer = Writer::new();
        extension::put(&mut writer, 1_000, b"something new");
        body.extend(writer.into_bytes());
    }

    #[test]
    fn the_shortest_summary_comes_back() {
        let mut record = sample();
        let summary = &mut record.recent[0];
        (summary.who, summary.message, summary.bytes) = (String::new(), String::new(), 0);
        summary.labels.clear();
        assert_eq!(RefsRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn labels_come_in_order_each_once() {
        let one: LabelName = "v1".parse().unwrap();
        let mut record = RefsRecord { labels: [(one, BundleId::from_parts(5, 6))].into(), ..RefsRecord::default() };
        let once = record.encode();
        record.labels.insert("v2".parse().unwrap(), BundleId::from_parts(5, 6));
        let mut twice = record.encode();
        assert!(RefsRecord::decode(&once).is_ok() && RefsRecord::decode(&twice).is_ok());
        let digit = twice.iter().position(|byte| *byte == b'2').unwrap();
        twice[digit] = b'1';
        assert_eq!(RefsRecord::decode(&twice), Err(FormatError::Malformed { what: "order of labels" }));
    }

    #[test]
    fn a_record_comes_back() {
        assert_eq!(RefsRecord::decode(&sample().encode()), Ok(sample()));
        assert_eq!(RefsRecord::decode(&RefsRecord::default().encode()), Ok(RefsRecord::default()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, at: usize, bit in 0u8..8) {
            let _ = RefsRecord::decode(&bytes);
            let mut flipped = sample().encode();
            let at = at % flipped.len();
            prop_assert!(RefsRecord::decode(&flipped[..at]).is_err());
            flipped[at] ^= 1 << bit;
            let _ = RefsRecord::decode(&flipped);
            let mut extended = extended().encode();
            let at = at % extended.len();
            extended[at] ^= 1 << bit;
            let _ = RefsRecord::decode(&extended);
        }
    }
}
