//! Rows and ranges: there and back, the golden one, and what is refused.

use super::*;
use crate::model::entry::{Codec, Locator, RecordRef};
use crate::model::id::{IntentId, Run};
use proptest::prelude::*;

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes().to_vec()).unwrap()
}

fn pack(seq: u32) -> PackId {
    PackId { intent: IntentId::from_parts(1, 1), run: Run(2), seq }
}

fn entry(number: u32, body: Body) -> Entry {
    let mtime = Timestamp { secs: -5 + i64::from(number), nanos: number };
    Entry {
        attributes: Attributes { permissions: 0o755, uid: number % 3, gid: 7, mtime },
        xattrs: if number.is_multiple_of(4) {
            Arc::new([(b"user.a".to_vec(), b"v".to_vec())].into())
        } else {
            Xattrs::default()
        },
        nlink: 1 + number % 2,
        body,
    }
}

fn bodies() -> Vec<Body> {
    let at = Locator { pack: pack(1), offset: 99, stored: 50, raw: 80, codec: Codec::Zstd, inner: 10, len: 70 };
    let record =
        RecordRef { pack: pack(2), offset: 7, stored: 5, raw: 6, codec: Codec::Raw, hash: ObjectHash([9; 32]) };
    let file = |size, content, b3sum| Body::File(FileBody { size, content, b3sum });
    let blocks = BlockList::Here([BlockRef { id: BlockId([1; 32]), at: record }].into());
    vec![
        Body::Directory { counts: TreeCounts { files: 1, bytes: 2, directories: 3 }, opaque: false },
        Body::Directory { counts: TreeCounts::default(), opaque: true },
        file(3, Content::Inline(Bytes::from_static(b"abc")), Some([5; 32])),
        file(70, Content::Chunk(Extent { id: ChunkId([2; 32]), at: Some(at) }), None),
        file(500, Content::Chunk(Extent { id: ChunkId([2; 32]), at: None }), None),
        file(1 << 30, Content::Extents { id: ContentId([3; 32]), blocks }, None),
        file(
            1 << 40,
            Content::Extents { id: ContentId([3; 32]), blocks: BlockList::Listed { count: 300, at: record } },
            None,
        ),
        Body::Symlink(Bytes::from_static(b"../x")),
        Body::Fifo,
        Body::Socket,
        Body::CharDevice(259),
        Body::BlockDevice(7),
    ]
}

fn sample() -> Vec<Row> {
    let mut rows: Vec<Row> = (0u32..)
        .zip(bodies())
        .map(|(number, body)| Row {
            key: RowKey::child(&path("some/dir"), &name(&format!("entry-{number:02}"))),
            value: RowValue::Entry(entry(number, body)),
        })
        .collect();
    rows.insert(0, Row { key: RowKey::link(LinkId::from_parts(1, 2)), value: RowValue::Tombstone });
    rows.push(Row {
        key: RowKey::child(&path("some/dir"), &name("link")),
        value: RowValue::Link(LinkId::from_parts(1, 2)),
    });
    rows
}

fn encode(rows: &[Row]) -> Vec<u8> {
    let mut writer = RangeWriter::default();
    rows.iter().for_each(|row| writer.push(row));
    writer.finish().unwrap().1
}

#[test]
fn the_golden_range_is_unchanged() {
    let golden = include_bytes!("../../../tests/golden/range.bin");
    assert_eq!(&encode(&sample())[..], golden, "these bytes are in stores: a change needs another version");
}

#[test]
fn rows_of_every_kind_come_back() {
    assert_eq!(decode_range(&encode(&sample())), Ok(sample()));
}

#[test]
fn key_order_visits_a_directory_before_its_subdirectories_and_links_first() {
    let keys = [
        RowKey::root(),
        RowKey::link(LinkId::from_parts(1, 1)),
        RowKey::child(&path(""), &name("\u{1}")),
        RowKey::child(&path(""), &name("a")),
        RowKey::child(&path(""), &name("a-b")),
        RowKey::child(&path("a"), &name("z")),
        RowKey::child(&path("a/b"), &name("y")),
        RowKey::child(&path("a-b"), &name("x")),
    ];
    assert!(keys.is_sorted());
    for key in &keys {
        assert_eq!(RowKey::from_bytes(key.as_bytes()).as_ref(), Ok(key));
    }
    assert_eq!(keys[6].path(), Some(path("a/b/y")));
    assert_eq!(RowKey::of_path(&path("a/b/y")), keys[6]);
    assert_eq!(keys[0].path(), Some(TreePath::root()));
    assert!(keys[1].is_link() && keys[1].parts().is_none());
}

/// Whether a range of this one row comes back.
fn comes_back(key: RowKey, body: Body) -> bool {
    let row = Row { key, value: RowValue::Entry(entry(1, body)) };
    decode_range(&encode(std::slice::from_ref(&row))) == Ok(vec![row])
}

#[test]
fn a_place_in_a_tree_has_one_key_and_a_link_row_a_hex_name() {
    let key = |bytes: &[u8]| RowKey::from_bytes(bytes).is_ok();
    assert!(key(b"a\0b\0\0name"));
    assert!(!key(b"a/b\0\0name"), "the same place");
    assert!(!key(b"\0a\0\0name") && !key(b"a\0\0") && !key(b"a\0\0x/y") && !key(b"name"));
    assert!(key(RowKey::link(LinkId::from_parts(1, 2)).as_bytes()));
    assert!(!key(&[&[0, 0, 0][..], &[b'G'; 32]].concat()));
}

#[test]
fn content_that_no_writer_makes_is_refused() {
    let key = || RowKey::child(&path("d"), &name("f"));
    let record =
        RecordRef { pack: pack(2), offset: 7, stored: 5, raw: 6, codec: Codec::Raw, hash: ObjectHash([9; 32]) };
    let file = |size, content| Body::File(FileBody { size, content, b3sum: None });
    let blocks = |n: usize, at| {
        let blocks = vec![BlockRef { id: BlockId([1; 32]), at }; n];
        Content::Extents { id: ContentId([3; 32]), blocks: BlockList::Here(blocks.into()) }
    };
    let listed = |count, at| Content::Extents { id: ContentId([3; 32]), blocks: BlockList::Listed { count, at } };
    let hole = || Content::Chunk(Extent { id: ChunkId([2; 32]), at: None });
    assert!(comes_back(key(), file(1 << 30, blocks(1, record))));
    assert!(!comes_back(key(), file(1 << 30, blocks(0, record))), "a reader looks for a first block");
    assert!(!comes_back(key(), file(1 << 37, blocks(1, record))), "more than a block describes");
    assert!(!comes_back(key(), file(1 << 30, blocks(ROW_EXTENT_BLOCKS_MAX + 1, record))));
    assert!(!comes_back(key(), file(1 << 30, listed(0, record))));
    assert!(!comes_back(key(), file(FILE_BYTES_MAX + 1, listed(u32::MAX, record))));
    assert!(!comes_back(key(), file(1 << 30, listed(9, RecordRef { codec: Codec::Frames, ..record }))));
    assert!(!comes_back(key(), file(1 << 30, listed(9, RecordRef { offset: u64::MAX, ..record }))));
    assert!(comes_back(key(), file(1 << 24, hole())));
    assert!(!comes_back(key(), file((1 << 24) + 1, hole())), "larger than any chunk");
    let at = Locator { pack: pack(1), offset: 99, stored: 50, raw: 80, codec: Codec::Zstd, inner: 10, len: 70 };
    let chunk = |at| Content::Chunk(Extent { id: ChunkId([2; 32]), at: Some(at) });
    assert!(comes_back(key(), file(70, chunk(at))));
    assert!(!comes_back(key(), file(70, chunk(Locator { inner: 11, ..at }))));
    assert!(!comes_back(key(), file(70, chunk(Locator { offset: 1 << 40, ..at }))));
    assert!(!comes_back(key(), file(70, chunk(Locator { stored: u32::MAX, ..at }))));
    assert!(comes_back(key(), Body::Symlink(vec![b'x'; PATH_BYTES_MAX].into())));
    assert!(!comes_back(key(), Body::Symlink(vec![b'x'; PATH_BYTES_MAX + 1].into())));
}

#[test]
fn xattrs_come_in_order_each_once_and_not_too_many() {
    let xattrs = |list: &[(&[u8], &[u8])]| {
        let mut writer = Writer::new();
        writer.varint(list.len() as u64);
        for (name, value) in list {
            writer.string(name);
            writer.string(value);
        }
        take_xattrs(&mut Reader::new(&writer.into_bytes()))
    };
    assert!(xattrs(&[(b"user.a", b"1"), (b"user.b", b"2")]).is_ok());
    assert!(xattrs(&[(b"user.a", b"1"), (b"user.a", b"2")]).is_err());
    assert!(xattrs(&[(b"user.b", b"1"), (b"user.a", b"2")]).is_err());
    assert!(matches!(xattrs(&[(b"user.a", &[0; XATTR_BYTES_MAX])]), Err(FormatError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn damaged_ranges_are_decoded_or_refused(bytes: Vec<u8>, at: usize, bit in 0u8..8) {
        let _ = decode_range(&bytes);
        let mut flipped = encode(&sample());
        let at = at % flipped.len();
        prop_assert!(decode_range(&flipped[..at]).is_err());
        flipped[at] ^= 1 << bit;
        let _ = decode_range(&flipped);
    }

    #[test]
    fn any_key_bytes_are_a_key_or_refused(bytes: Vec<u8>) {
        if let Ok(key) = RowKey::from_bytes(&bytes) {
            prop_assert_eq!(key.as_bytes(), &bytes[..]);
        }
    }
}
