//! Extent blocks: where the chunks of a file of several lie, up to 4,096 in a block, and lists of blocks.
//!
//! ```text
//! block   varint n · n × chunk id 32 · pack dictionary · n × {0 u8: a hole | 1 u8, locator}
//! list    pack dictionary · varint n · n × {block id 32, record reference}
//! ```

use super::FormatError;
use super::place::{PackDictionary, put_locator, put_record, take_locator, take_packs, take_record};
use super::wire::{Reader, Writer, varint_bytes};
use crate::model::chunk::ChunkSize;
use crate::model::entry::{BlockList, BlockRef, Content, Extent, FileBody};
use crate::model::id::{BlockId, ChunkId};
use crate::model::limits::EXTENT_BLOCK_CHUNKS;

/// What a file whose holes are not known counts for less than its length: a page.
const UNCOUNTED_BYTES: u64 = 4096;

/// The bytes of an extent block.
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut packs = PackDictionary::default();
    let mut places = Writer::new();
    for extent in extents {
        places.u8(u8::from(extent.at.is_some()));
        if let Some(at) = &extent.at {
            put_locator(&mut places, &mut packs, at);
        }
    }
    let mut writer = Writer::new();
    writer.varint(extents.len() as u64);
    extents.iter().for_each(|extent| writer.array(extent.id.as_bytes()));
    packs.put(&mut writer);
    writer.array(&places.into_bytes());
    writer.into_bytes()
}

/// The extents of a block, whose id must be `id`.
pub fn decode_extents(id: BlockId, raw: &[u8]) -> Result<Vec<Extent>, FormatError> {
    let mut reader = Reader::new(raw);
    let count = reader.count(33)?;
    if count > EXTENT_BLOCK_CHUNKS {
        return Err(FormatError::Malformed { what: "extent block" });
    }
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        ids.push(ChunkId(reader.array()?));
    }
    if BlockId::of(ids.iter().copied()) != id {
        return Err(FormatError::Hash);
    }
    let packs = take_packs(&mut reader)?;
    let mut extents = Vec::with_capacity(count);
    for id in ids {
        let at = match reader.u8()? {
            0 => None,
            1 => Some(take_locator(&mut reader, &packs)?),
            _ => return Err(FormatError::Malformed { what: "extent" }),
        };
        extents.push(Extent { id, at });
    }
    reader.finish()?;
    Ok(extents)
}

/// The bytes of a block list.
pub fn encode_block_list(blocks: &[BlockRef]) -> Vec<u8> {
    let mut packs = PackDictionary::default();
    let mut rows = Writer::new();
    rows.varint(blocks.len() as u64);
    for block in blocks {
        rows.array(block.id.as_bytes());
        put_record(&mut rows, &mut packs, &block.at);
    }
    let mut writer = Writer::new();
    packs.put(&mut writer);
    writer.array(&rows.into_bytes());
    writer.into_bytes()
}

/// The blocks of a block list.
pub fn decode_block_list(raw: &[u8]) -> Result<Vec<BlockRef>, FormatError> {
    let mut reader = Reader::new(raw);
    let packs = take_packs(&mut reader)?;
    let count = reader.count(68)?;
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        blocks.push(BlockRef { id: BlockId(reader.array()?), at: take_record(&mut reader, &packs)? });
    }
    reader.finish()?;
    Ok(blocks)
}

/// Bytes of a file that lie somewhere, at most: for `st_blocks`. The row alone says it, no block is read.
///
/// Programs that compare it with the length look for holes where it is less (cp(1), tar(1)), and copy without moving bytes where
/// it is not (copy_file_range(2)). So it is the length unless holes are certain. Where a list names the blocks (files of over
/// 32 GiB), [`allocated_in`] knows more; here such a file may have holes.
pub fn allocated_bytes(file: &FileBody, chunk: ChunkSize) -> u64 {
    match &file.content {
        Content::Extents { blocks: BlockList::Here(blocks), .. } => allocated_in(blocks, file.size, chunk),
        Content::Extents { .. } => file.size.saturating_sub(UNCOUNTED_BYTES),
        _ if file.is_hole() => 0,
        _ => file.size,
    }
}

/// The same of a file of `size` bytes in these blocks.
///
/// A block's record is the longer the more of its chunks lie somewhere. Its length alone bounds their number: a hole takes a
/// byte, a whole chunk at least [`locator_bytes_min`] more. Data takes up to twice that, so up to about half a file may be holes
/// that nobody is told of.
pub fn allocated_in(blocks: &[BlockRef], size: u64, chunk: ChunkSize) -> u64 {
    let (mut left, mut data) = (size.div_ceil(chunk.bytes()), 0);
    for block in blocks {
        let chunks = left.min(EXTENT_BLOCK_CHUNKS as u64);
        left -= chunks;
        // The ids, their number, a dictionary, and a byte for each chunk.
        let for_holes_alone = chunks * 33 + varint_bytes(chunks) + 1;
        let longer = u64::from(block.at.raw).saturating_sub(for_holes_alone);
        // The last chunk of a file may be short, and its place, too.
        data += chunks.min(longer.div_ceil(locator_bytes_min(chunk)));
    }
    // Never none of a file that has not one chunk: who trusts that reads nothing.
    size.min((data * chunk.bytes()).max(1))
}

/// The shortest place of a whole chunk: number of its pack, offset, stored length, raw length, codec, offset inside, length.
fn locator_bytes_min(chunk: ChunkSize) -> u64 {
    5 + 2 * varint_bytes(chunk.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::{Codec, Locator, RecordRef};
    use crate::model::id::{ContentId, IntentId, ObjectHash, PackId, Run};

    const MIB: u64 = 1 << 20;

    fn chunk() -> ChunkSize {
        ChunkSize::DEFAULT
    }

    fn extent(number: u64, is_data: bool, len: u64) -> Extent {
        // As long a place as there is for noise, and as short a one as there is.
        let (offset, stored) = if number.is_multiple_of(2) { (number % 15 * MIB + 5, len as u32) } else { (0, 1) };
        let pack = PackId { intent: IntentId::from_parts(1, 1), run: Run(1), seq: 1 };
        let (raw, inner, codec) = (len as u32, 0, Codec::Raw);
        let at = is_data.then_some(Locator { pack, offset, stored, raw, codec, inner, len: len as u32 });
        Extent { id: ChunkId([number as u8; 32]), at }
    }

    /// A file with data in every `step`th chunk only, and the bytes that are data.
    fn file(size: u64, step: u64) -> (FileBody, u64) {
        let len = |number: u64| MIB.min(size - number * MIB);
        let is_data = |number: u64| number.is_multiple_of(step);
        let extents: Vec<_> = (0..size.div_ceil(MIB)).map(|n| extent(n, is_data(n), len(n))).collect();
        let data = (0..size.div_ceil(MIB)).filter(|n| is_data(*n)).map(len).sum();
        let blocks = extents.chunks(EXTENT_BLOCK_CHUNKS).map(|extents| {
            let raw = encode_extents(extents);
            let id = BlockId::of(extents.iter().map(|extent| extent.id));
            assert_eq!(decode_extents(id, &raw).unwrap(), extents);
            let pack = PackId { intent: IntentId::from_parts(1, 1), run: Run(1), seq: 2 };
            let (stored, raw, codec) = (1, raw.len() as u32, Codec::Zstd);
            BlockRef { id, at: RecordRef { pack, offset: 0, stored, raw, codec, hash: ObjectHash([0; 32]) } }
        });
        let content = Content::Extents { id: ContentId([0; 32]), blocks: BlockList::Here(blocks.collect()) };
        (FileBody { size, content, b3sum: None }, data)
    }

    #[test]
    fn an_extent_block_comes_back_and_only_under_its_own_id() {
        let extents = [extent(0, true, 9), extent(1, false, 9)];
        let raw = encode_extents(&extents);
        let id = BlockId::of(extents.iter().map(|extent| extent.id));
        assert_eq!(decode_extents(id, &raw).unwrap(), extents);
        assert_eq!(decode_extents(BlockId([0; 32]), &raw), Err(FormatError::Hash));
        let blocks = [one_block()];
        assert_eq!(decode_block_list(&encode_block_list(&blocks)).unwrap(), blocks);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _ = decode_block_list(&bytes);
            let _ = decode_extents(BlockId::of([]), &bytes);
        }
    }

    #[test]
    fn what_a_row_says_is_allocated_is_never_less_than_what_is() {
        for size in [MIB + 1, 2 * MIB, 10 * MIB, 10 * MIB + 5, 5_000 * MIB + 77] {
            for step in [1, 2, 3, 5, 100, 4_096, 10_000] {
                let (file, data) = file(size, step);
                let allocated = allocated_bytes(&file, chunk());
                assert!((data..=size).contains(&allocated), "{size}, every {step}th: {data} of data, {allocated}");
                assert!(step > 1 || allocated == size, "{size}: without holes it counts whole");
                // Of many chunks most are holes: that is seen.
                assert!(step < 5 || size < 100 * MIB || allocated < size / 2, "{size}, every {step}th: {allocated}");
            }
        }
        let blocks = BlockList::Listed { count: 9, at: one_block().at };
        let content = Content::Extents { id: ContentId([0; 32]), blocks };
        let listed = FileBody { size: 40 << 30, content, b3sum: None };
        assert_eq!(allocated_bytes(&listed, chunk()), (40 << 30) - UNCOUNTED_BYTES);
    }

    fn one_block() -> BlockRef {
        let Content::Extents { blocks: BlockList::Here(blocks), .. } = file(2 * MIB, 1).0.content else {
            unreachable!()
        };
        blocks[0]
    }

    #[test]
    fn a_length_that_lies_is_no_more_than_a_wrong_number_of_blocks() {
        for raw in [0, 1, 33, u32::MAX] {
            let block = BlockRef { at: RecordRef { raw, ..one_block().at }, ..one_block() };
            let allocated = allocated_in(&[block, block], 3 * MIB, chunk());
            assert!((1..=3 * MIB).contains(&allocated), "{raw}: {allocated}");
        }
    }
}
