//! Descriptors, pages and extent blocks: they come back, and what no writer makes is refused.

use super::*;
use crate::format::envelope::{self, ObjectKind};
use crate::model::entry::Codec;
use crate::model::id::ContextId;
use crate::model::path::TreePath;
use proptest::prelude::*;

fn record(seq: u32) -> RecordRef {
    let pack = PackId { intent: IntentId::from_parts(1, 1), run: Run(2), seq };
    RecordRef { pack, offset: 7, stored: 5, raw: 6, codec: Codec::Raw, hash: ObjectHash([9; 32]) }
}

fn sample() -> Descriptor {
    let page = Page { level: 0, entries: vec![PageEntry { first: RowKey::root(), rows: 5, at: record(1) }] };
    Descriptor {
        repo: RepoId::from_parts(1, 2),
        bundle: BundleId::from_parts(3, 4),
        intent: IntentId::from_parts(5, 6),
        time: Timestamp { secs: 7, nanos: 8 },
        chunk_size: ChunkSize::DEFAULT,
        who: "ann@lab".into(),
        message: "first".into(),
        tool: "datamon 0.1.0".into(),
        parents: vec![(BundleId::from_parts(9, 9), ObjectHash([1; 32]))],
        labels: vec!["v1".parse().unwrap()],
        counts: TreeCounts { files: 1, bytes: 2, directories: 3 },
        layers: vec![Layer { directories: page.clone(), files: page }],
        packs: PackTable::Here(vec![PackEntry { id: record(1).pack, length: 9, footer_hash: ObjectHash([2; 32]) }]),
        derived_from: DerivedFrom::default(),
    }
}

/// The same, with what older descriptors do not say.
fn extended() -> Descriptor {
    let pair = |n: u64| (RepoId::from_parts(n, 1), BundleId::from_parts(n, 2));
    Descriptor { derived_from: DerivedFrom::new([pair(2), pair(1)].into()), ..sample() }
}

#[test]
fn a_descriptor_comes_back_with_either_form_of_pack_table() {
    let descriptor = sample();
    assert_eq!(Descriptor::decode(&descriptor.encode().into()), Ok(descriptor.clone()));
    let holder = |seq: u32| PackEntry { id: record(seq).pack, length: 9, footer_hash: ObjectHash([2; 32]) };
    let packs = PackTable::Parts { holders: vec![holder(2), holder(3)], parts: vec![record(3), record(2)] };
    let parts = Descriptor { packs, ..descriptor };
    assert_eq!(Descriptor::decode(&parts.encode().into()), Ok(parts.clone()));
    assert_eq!(parts.packs.here(), [holder(2), holder(3)]);
}

#[test]
fn the_golden_descriptor_is_unchanged() {
    let object = envelope::seal(ObjectKind::Descriptor, ContextId::from_parts(1, 2), &sample().encode());
    let golden = include_bytes!("../../../tests/golden/descriptor.bin");
    assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
}

#[test]
fn the_golden_descriptor_with_extensions_is_unchanged() {
    let (descriptor, context) = (extended(), ContextId::from_parts(1, 2));
    let object = envelope::seal_with(ObjectKind::Descriptor, context, descriptor.compatible(), &descriptor.encode());
    let golden = include_bytes!("../../../tests/golden/descriptor_extended.bin");
    assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
    let body = envelope::open(ObjectKind::Descriptor, Some(context), &object).unwrap();
    assert_eq!(Descriptor::decode(&body), Ok(descriptor));
}

#[test]
fn an_extension_of_a_later_version_is_skipped_and_a_list_that_none_writes_is_refused() {
    let with = |tag: u64, value: &[u8]| {
        let mut writer = Writer::new();
        extension::put(&mut writer, tag, value);
        Descriptor::decode(&[sample().encode(), writer.into_bytes()].concat().into())
    };
    assert_eq!(with(1_000, b"something new"), Ok(sample()));
    assert_eq!(with(DERIVED_FROM, &extended().derived_from.encode()), Ok(extended()));
    assert!(with(DERIVED_FROM, b"").is_err());
    assert!(with(DERIVED_FROM, &[extended().derived_from.encode(), vec![0]].concat()).is_err());
}

#[test]
fn a_descriptor_of_everything_that_it_may_hold_is_no_larger_than_its_limit() {
    let derived = (0..2_000).map(|n| (RepoId::from_parts(n, u128::MAX), BundleId::from_parts(n, u128::MAX)));
    let entries = |packs| Page::split(0, (0..1_024).map(|number| entry(number, 4_000, packs)).collect()).remove(0);
    let pack = |seq| PackEntry { id: PackId { seq, ..record(0).pack }, length: 1, footer_hash: ObjectHash([2; 32]) };
    let descriptor = Descriptor {
        who: "w".repeat(MESSAGE_BYTES_MAX),
        message: "m".repeat(MESSAGE_BYTES_MAX),
        tool: "t".repeat(MESSAGE_BYTES_MAX),
        labels: (0..LABELS_MAX).map(|n| format!("{n:0>LABEL_BYTES_MAX$}").parse().unwrap()).collect(),
        layers: vec![Layer { directories: entries(1), files: entries(2_000) }],
        packs: PackTable::Here((0..PAGE_ENTRIES_MAX as u32).map(pack).collect()),
        derived_from: DerivedFrom::new(derived.collect()),
        ..sample()
    };
    let body = Bytes::from(descriptor.encode());
    assert!(body.len() + OVERHEAD_BYTES <= DESCRIPTOR_BYTES_MAX, "{} bytes", body.len());
    assert_eq!(Descriptor::decode(&body), Ok(descriptor));
}

fn entry(number: u32, key_bytes: usize, packs: u32) -> PageEntry {
    let mut path = format!("{number:08}/");
    while path.len() < key_bytes {
        path += if path.len() % 250 == 249 { "/" } else { "x" };
    }
    let first = RowKey::of_path(&TreePath::parse(path.trim_end_matches('/').as_bytes()).unwrap());
    let at = RecordRef { offset: (64 << 20) - 1, stored: 1 << 24, raw: 1 << 24, ..record(number % packs) };
    PageEntry { first, rows: 1 << 14, at }
}

#[test]
fn pages_keep_their_limits_of_entries_and_of_bytes() {
    for (key_bytes, packs, fewest) in [(10, 1, 1_024), (10, 2_000, 1_024), (60, 7, 800), (4_000, 2_000, 22)] {
        let entries: Vec<_> = (0..3_000).map(|number| entry(number, key_bytes, packs)).collect();
        let pages = Page::split(0, entries.clone());
        for page in &pages {
            assert!(page.entries.len() <= PAGE_ENTRIES_MAX);
            let raw = page.encode();
            assert!(raw.len() <= PAGE_BYTES_MAX, "{} bytes", raw.len());
            assert_eq!(Page::decode(&raw).as_ref(), Ok(page));
        }
        assert!(pages[0].entries.len() >= fewest, "{} entries of {key_bytes} bytes", pages[0].entries.len());
        let joined: Vec<_> = pages.into_iter().flat_map(|page| page.entries).collect();
        assert_eq!(joined, entries);
    }
    assert_eq!(Page::split(0, Vec::new()), []);
}

#[test]
fn a_page_over_its_limit_of_bytes_is_refused() {
    let entries = (0..30).map(|number| entry(number, 4_000, 1)).collect();
    let mut bytes = Vec::new();
    let page = Page { level: 0, entries };
    for part in [&page.entries[..20], &page.entries[20..]] {
        bytes.push(Page { level: 0, entries: part.to_vec() }.encode());
    }
    // Both parts in one page. Heads are equal: level, one pack, and a count of one byte.
    let head = 1 + 1 + PACK_ID_BYTES;
    let joined = [&bytes[0][..head], &[30], &bytes[0][head + 1..], &bytes[1][head + 1..]].concat();
    assert!(joined.len() > PAGE_BYTES_MAX);
    assert!(matches!(Page::decode(&joined), Err(FormatError::TooLarge { what: "page", .. })));
}

#[test]
fn rows_of_a_page_are_bounded_each_and_together() {
    let page = |level, rows: &[u64]| {
        let entries = (0u32..).zip(rows).map(|(number, rows)| PageEntry { rows: *rows, ..entry(number, 10, 1) });
        Page::decode(&Page { level, entries: entries.collect() }.encode())
    };
    assert!(page(0, &[1, RANGE_ROWS_MAX as u64]).is_ok());
    assert!(page(0, &[0]).is_err());
    assert!(page(0, &[RANGE_ROWS_MAX as u64 + 1]).is_err());
    assert!(page(1, &[ROWS_MAX]).is_ok());
    assert!(page(1, &[ROWS_MAX, 1]).is_err());
    assert!(page(1, &[u64::MAX, u64::MAX]).is_err());
}

#[test]
fn a_descriptor_over_its_limit_is_refused() {
    let object = Bytes::from(vec![0; DESCRIPTOR_BYTES_MAX]);
    assert!(matches!(Descriptor::decode(&object), Err(FormatError::TooLarge { what: "descriptor", .. })));
}

#[test]
fn delta_layers_are_refused_by_name() {
    let mut descriptor = sample();
    descriptor.layers.push(Layer::default());
    let refused = Descriptor::decode(&descriptor.encode().into()).unwrap_err();
    assert!(refused.to_string().contains("delta layers"), "{refused}");
}

proptest! {
    #[test]
    fn damaged_descriptors_are_decoded_or_refused(bytes: Vec<u8>, at: usize, bit in 0u8..8) {
        let _ = Descriptor::decode(&Bytes::from(bytes.clone()));
        let _ = Page::decode(&bytes);
        let _ = decode_pack_table(&bytes);
        let mut flipped = sample().encode();
        let at = at % flipped.len();
        prop_assert!(Descriptor::decode(&flipped[..at].to_vec().into()).is_err());
        flipped[at] ^= 1 << bit;
        let _ = Descriptor::decode(&flipped.into());
        let mut extended = extended().encode();
        let at = at % extended.len();
        extended[at] ^= 1 << bit;
        let _ = Descriptor::decode(&extended.into());
    }
}
