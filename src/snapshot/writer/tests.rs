//! Bundles written into a store in memory, and read again.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::format::key::{ObjectKey, Role};
use crate::model::chunk::{ChunkIndex, ChunkSize};
use crate::model::clock::Timestamp;
use crate::model::entry::{Attributes, Codec, Locator, Xattrs};
use crate::model::id::{BundleId, ChunkId, RepoId};
use crate::model::path::TreePath;
use crate::snapshot::{RangeCache, RowId};
use crate::store::testing::{clock, entropy};

#[derive(Default)]
struct Numbers(AtomicU32);

impl PackJournal for Numbers {
    fn next_seq(&self) -> std::io::Result<u32> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

struct World {
    reader: Arc<ContentReader>,
    ranges: RangeCache,
    journal: Arc<Numbers>,
}

impl World {
    fn new() -> Self {
        Self::over(Store::in_memory(clock(), entropy()))
    }

    fn over(store: Arc<Store>) -> Self {
        let (reader, ranges) = (ContentReader::new(store, 8 << 20), RangeCache::new(8 << 20));
        Self { reader, ranges, journal: Arc::default() }
    }

    fn store(&self) -> &Arc<Store> {
        self.reader.store()
    }

    /// The writer of the n-th bundle, with a root directory.
    async fn writer(&self, n: u64, base: Option<&Snapshot>) -> TreeWriter {
        let (journal, intent) = (self.journal.clone(), IntentId::from_parts(n, 1));
        let mut writer = TreeWriter::new(self.store().clone(), journal, intent, Run(1), base).await.unwrap();
        writer
            .directory(RowKey::root(), entry(Body::Directory { counts: TreeCounts::default(), opaque: false }))
            .unwrap();
        writer
    }

    async fn finish(&self, writer: TreeWriter, n: u64, data: &[PackEntry]) -> Arc<Snapshot> {
        let (descriptor, _) = writer.finish(descriptor(n), data).await.unwrap();
        self.publish(descriptor).await
    }

    async fn publish(&self, descriptor: Descriptor) -> Arc<Snapshot> {
        let object = envelope::seal(ObjectKind::Descriptor, self.store().context(), &descriptor.encode());
        let (repo, bundle) = (descriptor.repo, descriptor.bundle);
        self.store().put_new(&self.store().keys().bundle(repo, bundle), &object).await.unwrap();
        Snapshot::open(self.reader.clone(), self.ranges.clone(), repo, bundle).await.unwrap()
    }

    /// The metadata packs in the store.
    async fn meta_packs(&self) -> BTreeSet<PackId> {
        let prefix = ObjectKey { role: Role::Meta, path: format!("{}/m/", self.store().context()) };
        let listed = self.store().list(&prefix).await.unwrap();
        listed.into_iter().map(|(key, _)| key.name().parse().unwrap()).collect()
    }
}

fn descriptor(n: u64) -> Descriptor {
    Descriptor {
        repo: RepoId::from_parts(1, 1),
        bundle: BundleId::from_parts(n, 1),
        intent: IntentId::from_parts(n, 1),
        time: Timestamp::default(),
        chunk_size: ChunkSize::DEFAULT,
        who: "ann@lab".into(),
        message: String::new(),
        tool: "datamon".into(),
        parents: Vec::new(),
        labels: Vec::new(),
        counts: TreeCounts::default(),
        layers: vec![Layer::default()],
        packs: PackTable::Here(Vec::new()),
        derived_from: Default::default(),
    }
}

fn entry(body: Body) -> Entry {
    let attributes = Attributes { permissions: 0o644, uid: 1, gid: 2, mtime: Timestamp::default() };
    Entry { attributes, xattrs: Xattrs::default(), nlink: 1, body }
}

fn file(path: &str, content: Content, size: u64) -> Row {
    let body = Body::File(FileBody { size, content, b3sum: None });
    Row { key: RowKey::of_path(&TreePath::parse(path.as_bytes()).unwrap()), value: RowValue::Entry(entry(body)) }
}

/// A data pack that need not exist: no chunk is read here.
fn data(seq: u32) -> PackEntry {
    let id = PackId { intent: IntentId::from_parts(99, 9), run: Run(9), seq };
    PackEntry { id, length: 100, footer_hash: ObjectHash([7; 32]) }
}

/// The chunk number `number`, in the data pack `pack`.
fn extent(number: u64, pack: u32) -> Extent {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    let pack = data(pack).id;
    let at = Locator { pack, offset: 7, stored: 10, raw: 10, codec: Codec::Raw, inner: 0, len: 10 };
    Extent { id: ChunkId(id), at: Some(at) }
}

fn ids(packs: &[PackEntry]) -> BTreeSet<PackId> {
    packs.iter().map(|pack| pack.id).collect()
}

#[tokio::test]
async fn a_bundle_of_more_packs_than_its_descriptor_holds_names_them_all_and_those_that_list_them() {
    let world = World::new();
    let packs: Vec<PackEntry> = (0..1_100).map(data).collect();
    let mut base: Option<Arc<Snapshot>> = None;
    let mut holders = BTreeSet::new();
    for n in 1..=2 {
        let mut writer = world.writer(n, base.as_deref()).await;
        for number in 0..1_100 {
            let content = Content::Chunk(extent(number, number as u32));
            writer.file(file(&format!("{number:05}"), content, 10), 10).await.unwrap();
        }
        writer.names_unread_blocks();
        let snapshot = world.finish(writer, n, &packs).await;
        let PackTable::Parts { holders: own, .. } = &snapshot.descriptor().packs else { panic!("in parts") };
        assert_eq!(snapshot.descriptor().packs.here(), own);
        let found = snapshot.packs().await.unwrap();
        assert!(ids(own).is_disjoint(&ids(&snapshot.listed_packs().await.unwrap())));
        assert!(ids(&packs).is_subset(&ids(&found)));
        assert!(holders.is_disjoint(&ids(&found)), "the table of the base is no business of this bundle");
        // With what its bases keep, no metadata pack is left over: a collector would take it.
        let kept: BTreeSet<_> = holders.union(&ids(&found)).copied().collect();
        assert!(world.meta_packs().await.is_subset(&kept));
        for pack in own {
            let key = world.store().keys().pack(PackKind::Meta, pack.id);
            assert_eq!(world.store().len(&key).await.unwrap(), pack.length);
        }
        holders = ids(own);
        base = Some(snapshot);
    }
}

fn blocks(content: &Content) -> &[BlockRef] {
    match content {
        Content::Extents { blocks: BlockList::Here(blocks), .. } => blocks,
        _ => panic!("blocks in the row"),
    }
}

/// A bundle with one huge file of `count` chunks, all in the data pack 1.
async fn huge(world: &World, count: u64) -> (Arc<Snapshot>, Vec<Extent>, FileBody) {
    let extents: Vec<Extent> = (0..count).map(|number| extent(number, 1)).collect();
    let mut writer = world.writer(1, None).await;
    let size = count << 20;
    let content = writer.extents(size, &extents, None).await.unwrap();
    writer.file(file("huge", content.clone(), size), size).await.unwrap();
    let snapshot = world.finish(writer, 1, &[data(1)]).await;
    (snapshot, extents, FileBody { size, content, b3sum: None })
}

#[tokio::test]
async fn one_changed_chunk_of_a_huge_file_writes_one_block() {
    let world = World::new();
    let (base, mut extents, before) = huge(&world, 2 * 4_096 + 1).await;
    extents[5_000] = extent(1 << 40, 2);
    // The caller found this one elsewhere; the block says where it lies.
    extents[3] = extent(3, 3);
    let mut writer = world.writer(2, Some(&base)).await;
    let content = writer.extents(before.size, &extents, Some(&before)).await.unwrap();
    assert_eq!(content.id(), content_id(before.size, &extents));
    let (old, new) = (blocks(&before.content).to_vec(), blocks(&content).to_vec());
    assert_eq!((new[0], new[2]), (old[0], old[2]), "named, not written again");
    assert_eq!(new[1].at.pack.intent, IntentId::from_parts(2, 1));
    let after = FileBody { content: content.clone(), ..before.clone() };
    writer.file(file("huge", content, after.size), after.size).await.unwrap();
    let snapshot = world.finish(writer, 2, &[data(2), data(3)]).await;
    for index in [3, 5_000, 8_192] {
        let found = world.reader.extent(&after, ChunkIndex(index)).await.unwrap();
        assert_eq!(found.id, extents[index as usize].id);
        assert!(ids(&snapshot.packs().await.unwrap()).contains(&found.at.unwrap().pack));
    }
    let packs = ids(&snapshot.packs().await.unwrap());
    assert!(packs.contains(&old[0].at.pack), "the pack of the old blocks lives on");
    assert!(!packs.contains(&data(3).id), "nothing names it");
}

#[tokio::test]
async fn a_list_of_blocks_that_the_base_has_is_named_and_a_changed_one_written() {
    let world = World::new();
    let (base, mut extents, before) = huge(&world, 9 * 4_096).await;
    let listed = |content: &Content| match content {
        Content::Extents { blocks: BlockList::Listed { count: 9, at }, .. } => *at,
        _ => panic!("a list of nine"),
    };
    let mut writer = world.writer(2, Some(&base)).await;
    let same = writer.extents(before.size, &extents, Some(&before)).await.unwrap();
    assert_eq!(same, before.content);
    assert!(writer.meta.open.is_none(), "nothing is written");
    extents[0] = extent(1 << 40, 2);
    let changed = writer.extents(before.size, &extents, Some(&before)).await.unwrap();
    assert_ne!(listed(&changed), listed(&before.content));
    let after = FileBody { content: changed.clone(), ..before.clone() };
    writer.file(file("huge", changed, after.size), after.size).await.unwrap();
    let snapshot = world.finish(writer, 2, &[data(2)]).await;
    let (old, new) = (world.reader.blocks(&before).await.unwrap(), world.reader.blocks(&after).await.unwrap());
    assert_ne!(old[0], new[0]);
    assert_eq!(old[1..], new[1..]);
    assert_eq!(ids(&snapshot.packs().await.unwrap()).len(), 4, "two data packs, two metadata packs");
}

#[tokio::test]
async fn blocks_are_taken_from_the_base_only() {
    let world = World::new();
    let (_, extents, before) = huge(&world, 4_097).await;
    let other = world.finish(world.writer(2, None).await, 2, &[]).await;
    for base in [None, Some(&*other)] {
        let mut writer = world.writer(3, base).await;
        let content = writer.extents(before.size, &extents, Some(&before)).await.unwrap();
        assert_eq!(content.id(), before.content.id());
        let own = |block: &BlockRef| block.at.pack.intent == IntentId::from_parts(3, 1);
        assert!(blocks(&content).iter().all(own), "another bundle's packs may be collected");
    }
}

#[tokio::test]
async fn a_list_that_nobody_could_read_is_not_written() {
    let world = World::new();
    let mut writer = world.writer(1, None).await;
    let raw = Bytes::from(vec![0; RECORD_RAW_BYTES_MAX + 1]);
    assert!(matches!(writer.meta.append(Record::meta(raw)).await, Err(WriteError::TooLarge { .. })));
}

#[tokio::test]
async fn a_row_that_nobody_could_read_is_not_written() {
    let world = World::new();
    let mut writer = world.writer(1, None).await;
    let mut row = file("a", Content::Inline(Bytes::new()), 0);
    let RowValue::Entry(entry) = &mut row.value else { panic!("an entry") };
    entry.xattrs = Arc::new([(b"user.a".to_vec(), vec![0; 64 << 10])].into());
    writer.file(row, 0).await.unwrap();
    let refused = writer.finish(descriptor(1), &[]).await.unwrap_err();
    assert!(matches!(refused, WriteError::Unreadable { what: "a range", .. }), "{refused}");
    assert!(world.meta_packs().await.is_empty());
    let mut writer = world.writer(2, None).await;
    let outside = Locator { offset: u64::MAX, ..extent(0, 1).at.unwrap() };
    let extents = [extent(0, 1), Extent { id: ChunkId([1; 32]), at: Some(outside) }];
    let refused = writer.extents(2 << 20, &extents, None).await.unwrap_err();
    assert!(matches!(refused, WriteError::Unreadable { what: "an extent block", .. }), "{refused}");
}

/// The n-th path of 4,000 bytes.
fn deep(n: usize) -> String {
    let mut path = format!("{n:03}");
    while path.len() < 4_000 {
        path += if path.len() % 250 == 249 { "/" } else { "x" };
    }
    path.trim_end_matches('/').to_owned()
}

/// A bundle with 60 files of long paths, each a range of its own.
async fn deep_bundle(world: &World) -> Arc<Snapshot> {
    let mut writer = world.writer(1, None).await;
    for n in 0..60 {
        writer.file(file(&deep(n), Content::Inline(Bytes::from_static(b"x")), 1), 1).await.unwrap();
        writer.close_range(Table::Files).await.unwrap();
    }
    world.finish(writer, 1, &[]).await
}

#[tokio::test]
async fn ranges_with_long_keys_stay_out_of_the_descriptor() {
    let world = World::new();
    let snapshot = deep_bundle(&world).await;
    let root = &snapshot.descriptor().layers[0].files;
    assert_eq!((root.level, root.entries.len(), root.rows()), (1, 3, 60));
    assert!(snapshot.descriptor().encode().len() < 20_000);
    assert_eq!(snapshot.all_ranges(Table::Files).await.unwrap().len(), 60);
    for n in 0..60 {
        let path = TreePath::parse(deep(n).as_bytes()).unwrap();
        let (id, _) = snapshot.lookup_path(&path).await.unwrap().expect("it is there");
        assert_eq!(id, RowId { table: Table::Files, ordinal: n as u32 });
        assert_eq!(snapshot.row(id).await.unwrap().unwrap().key, RowKey::of_path(&path));
    }
    let past = RowId { table: Table::Files, ordinal: 60 };
    assert_eq!(snapshot.row(past).await.unwrap(), None);
}

#[tokio::test]
async fn a_range_or_page_that_is_not_what_the_page_above_says_is_refused_by_name() {
    let world = World::new();
    let deep = deep_bundle(&world).await;
    let mut writer = world.writer(2, None).await;
    for name in ["a", "b"] {
        writer.file(file(name, Content::Inline(Bytes::from_static(b"x")), 1), 1).await.unwrap();
    }
    let flat = world.finish(writer, 2, &[]).await;
    let mut number = 10;
    for (snapshot, what) in [(flat, "a range that is not"), (deep, "a page that is not")] {
        let id = RowId { table: Table::Files, ordinal: 0 };
        assert!(snapshot.row(id).await.unwrap().is_some(), "cached rightly");
        let wrongs: [fn(&mut PageEntry); 3] = [
            |entry| entry.rows += 1,
            |entry| entry.rows -= 1,
            |entry| entry.first = RowKey::link(crate::model::id::LinkId::from_parts(1, 1)),
        ];
        for wrong in wrongs {
            let mut descriptor = snapshot.descriptor().clone();
            wrong(&mut descriptor.layers[0].files.entries[0]);
            descriptor.bundle = BundleId::from_parts(number, 1);
            number += 1;
            let refused = world.publish(descriptor).await.row(id).await.unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
        }
    }
}

#[tokio::test]
async fn a_page_of_the_wrong_level_is_refused_by_name() {
    let world = World::new();
    let mut descriptor = deep_bundle(&world).await.descriptor().clone();
    descriptor.bundle = BundleId::from_parts(2, 1);
    descriptor.layers[0].files.level = 2;
    let snapshot = world.publish(descriptor).await;
    let outcomes = [
        snapshot.row(RowId { table: Table::Files, ordinal: 0 }).await.map(drop),
        snapshot.all_ranges(Table::Files).await.map(drop),
    ];
    for outcome in outcomes {
        let refused = outcome.unwrap_err().to_string();
        let why = FormatError::Malformed { what: "level of a page" }.to_string();
        assert!(refused.contains(&why), "{refused}");
    }
}

/// A bundle of 200 directories with 1,000 files each; `content` says which chunk each file holds.
async fn wide(world: &World, n: u64, base: Option<&Snapshot>, content: impl Fn(u64, u64) -> u64) -> Arc<Snapshot> {
    let mut writer = world.writer(n, base).await;
    for directory in 0..200 {
        let path = TreePath::parse(format!("d{directory:03}").as_bytes()).unwrap();
        let body = Body::Directory { counts: TreeCounts::default(), opaque: false };
        writer.directory(RowKey::of_path(&path), entry(body)).unwrap();
        for number in 0..1_000 {
            let chunk = extent(content(directory, number), 1);
            let row = file(&format!("d{directory:03}/{number:04}.csv"), Content::Chunk(chunk), 10);
            writer.file(row, 10).await.unwrap();
        }
    }
    world.finish(writer, n, &[data(1)]).await
}

#[tokio::test]
async fn what_changed_is_found_in_the_time_of_the_change() {
    use crate::snapshot::diff;
    let world = World::new();
    let old = wide(&world, 1, None, |directory, number| directory * 1_000 + number).await;
    let is_changed = |directory, number| directory == 77 && number % 10 == 3;
    let new = wide(&world, 2, Some(&old), |directory, number| {
        let moved = if is_changed(directory, number) { 1 << 40 } else { 0 };
        directory * 1_000 + number + moved
    });
    let new = new.await;
    let found = diff::changes(&old, &new).await.unwrap();
    assert_eq!(found.changes.len(), 100);
    assert!(found.changes.iter().all(|change| change.letter == b'M' && change.path.starts_with(b"d077/")));
    let all = old.all_ranges(Table::Files).await.unwrap().len();
    // One or two ranges of F on either side, and those of D, whose counts changed upwards.
    assert!(found.ranges <= 6 && all > 30, "{} of 2 × {all} ranges", found.ranges);
    println!("{} changes of 200,000 rows: {} ranges loaded of 2 × {all}", found.changes.len(), found.ranges);
    assert_eq!(diff::changes(&new, &new).await.unwrap(), diff::Changes::default());
}

/// A bundle of these rows of F.
async fn rows(world: &World, n: u64, directories: &[&str], rows: Vec<Row>) -> Arc<Snapshot> {
    let mut writer = world.writer(n, None).await;
    for path in directories {
        let body = Body::Directory { counts: TreeCounts::default(), opaque: false };
        writer.directory(RowKey::of_path(&TreePath::parse(path.as_bytes()).unwrap()), entry(body)).unwrap();
    }
    for row in rows {
        writer.file(row, 10).await.unwrap();
    }
    world.finish(writer, n, &[data(1)]).await
}

#[tokio::test]
async fn a_change_has_gits_letter_and_times_alone_are_none() {
    use crate::model::id::LinkId;
    use crate::snapshot::diff;
    let world = World::new();
    let chunk = |number| Content::Chunk(extent(number, 1));
    let group = LinkId::from_parts(1, 1);
    let linked = |number| Row { key: RowKey::link(group), ..file("x", chunk(number), 10) };
    let name = |path: &str| Row { value: RowValue::Link(group), ..file(path, chunk(0), 10) };
    let touched = |mut row: Row, mtime, permissions| {
        if let RowValue::Entry(entry) = &mut row.value {
            entry.attributes.mtime.secs = mtime;
            entry.attributes.permissions = permissions;
        }
        row
    };
    let link = |path: &str| {
        let body = Body::Symlink(Bytes::from_static(b"target"));
        Row { value: RowValue::Entry(entry(body)), ..file(path, chunk(0), 10) }
    };
    let before = vec![
        linked(1),
        file("bytes", chunk(1), 10),
        file("gone", chunk(2), 10),
        file("kind", chunk(3), 10),
        name("linked"),
        file("mode", chunk(4), 10),
        file("opened", chunk(4), 10),
        file("time", chunk(5), 10),
        file("tree/inside", chunk(6), 10),
    ];
    let after = vec![
        linked(9),
        file("bytes", chunk(8), 10),
        link("kind"),
        name("linked"),
        touched(file("mode", chunk(4), 10), 0, 0o600),
        file("new", chunk(7), 10),
        touched(file("time", chunk(5), 10), 7, 0o644),
        file("tree", chunk(6), 10),
    ];
    let old = rows(&world, 1, &["empty", "tree"], before).await;
    let new = rows(&world, 2, &["opened"], after).await;
    let found = diff::changes(&old, &new).await.unwrap().changes;
    let text: Vec<_> =
        found.iter().map(|c| format!("{} {}", char::from(c.letter), String::from_utf8_lossy(&c.path))).collect();
    let expected =
        ["M bytes", "D empty/", "D gone", "T kind", "M linked", "M mode", "A new", "D opened", "A opened/", "A tree"];
    assert_eq!(text, [&expected[..], &["D tree/", "D tree/inside"]].concat());
}

#[tokio::test]
async fn who_joins_anothers_fetch_of_metadata_is_refused_no_earlier_than_its_own_deadline() {
    use crate::store::backend::Place;
    use crate::store::fault::Faults;
    let faults = Faults::new();
    let places = std::collections::HashMap::from([(Role::Config, Place::memory().with_faults(&faults))]);
    let limit = std::time::Duration::from_secs(2);
    let world =
        World::over(Store::new(crate::model::id::ContextId::from_parts(1, 1), places, limit, clock(), entropy()));
    let mut writer = world.writer(1, None).await;
    writer.file(file("f", Content::Inline(Bytes::from_static(b"x")), 1), 1).await.unwrap();
    let snapshot = world.finish(writer, 1, &[]).await;
    let look = |snapshot: Arc<Snapshot>| async move { snapshot.lookup_path(&TreePath::parse(b"f").unwrap()).await };
    faults.set_stopped(true);
    let first = tokio::spawn(look(snapshot.clone()));
    tokio::time::sleep(limit * 6 / 10).await;
    let second = tokio::spawn(look(snapshot));
    tokio::time::sleep(limit * 5 / 10).await;
    faults.set_stopped(false);
    assert!(first.await.unwrap().is_err(), "nobody answered until its deadline");
    assert!(second.await.unwrap().unwrap().is_some(), "it had time left when the store came back");
}
