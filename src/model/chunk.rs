//! Chunk arithmetic: the only place that turns offsets into chunks and back.

use std::ops::Range;

/// A repo's chunk size: a power of two from 64 KiB to 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize {
    log2: u8,
}

impl ChunkSize {
    /// 1 MiB, the size of a repo that asked for no other.
    pub const DEFAULT: Self = Self { log2: 20 };

    /// The size `1 << log2`; `None` outside 64 KiB to 16 MiB.
    pub fn from_log2(log2: u8) -> Option<Self> {
        (16..=24).contains(&log2).then_some(Self { log2 })
    }

    /// Base-2 logarithm of the size.
    pub fn log2(self) -> u8 {
        self.log2
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.log2
    }
}

/// The how-manieth chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

/// How a file of one length falls into chunks; the last one may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLayout {
    file_bytes: u64,
    size: ChunkSize,
}

impl ChunkLayout {
    /// The layout of a file of `file_bytes` bytes.
    pub fn new(file_bytes: u64, size: ChunkSize) -> Self {
        Self { file_bytes, size }
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Number of chunks; zero for an empty file.
    pub fn chunks(&self) -> u64 {
        self.file_bytes.div_ceil(self.size.bytes())
    }

    /// The chunk that holds byte `offset`.
    pub fn index_of(&self, offset: u64) -> ChunkIndex {
        ChunkIndex(offset >> self.size.log2)
    }

    /// The bytes of the file that chunk `index` holds; empty past the end.
    pub fn span(&self, index: ChunkIndex) -> Range<u64> {
        let start = index.0.saturating_mul(self.size.bytes()).min(self.file_bytes);
        start..start.saturating_add(self.size.bytes()).min(self.file_bytes)
    }

    /// The chunks that hold any byte of `bytes`, which is cut at the end of the file.
    pub fn covering(&self, bytes: &Range<u64>) -> Range<ChunkIndex> {
        let end = bytes.end.min(self.file_bytes);
        if bytes.start >= end {
            let at = ChunkIndex(bytes.start >> self.size.log2);
            return at..at;
        }
        self.index_of(bytes.start)..ChunkIndex(self.index_of(end - 1).0 + 1)
    }
}

/// The indices of a half-open range of chunks, in order.
pub fn indices(range: Range<ChunkIndex>) -> impl Iterator<Item = ChunkIndex> {
    (range.start.0..range.end.0).map(ChunkIndex)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_last_chunk_is_short_and_an_empty_file_has_none() {
        let layout = ChunkLayout::new(2 * MIB + 1, ChunkSize::DEFAULT);
        assert_eq!(layout.chunks(), 3);
        assert_eq!(layout.span(ChunkIndex(2)), 2 * MIB..2 * MIB + 1);
        assert_eq!(layout.span(ChunkIndex(9)), 2 * MIB + 1..2 * MIB + 1);
        assert_eq!(ChunkLayout::new(0, ChunkSize::DEFAULT).chunks(), 0);
    }

    #[test]
    fn a_read_covers_the_chunks_that_hold_its_bytes_and_none_past_the_end() {
        let layout = ChunkLayout::new(2 * MIB + 1, ChunkSize::DEFAULT);
        assert_eq!(layout.covering(&(0..MIB)), ChunkIndex(0)..ChunkIndex(1));
        assert_eq!(layout.covering(&(MIB - 1..MIB + 1)), ChunkIndex(0)..ChunkIndex(2));
        assert_eq!(layout.covering(&(0..u64::MAX)), ChunkIndex(0)..ChunkIndex(3));
        let past = layout.covering(&(5 * MIB..6 * MIB));
        assert_eq!(past.start, past.end);
    }

    #[test]
    fn a_chunk_size_is_between_64_kib_and_16_mib() {
        assert_eq!(ChunkSize::from_log2(15), None);
        assert_eq!(ChunkSize::from_log2(25), None);
        assert_eq!(ChunkSize::from_log2(20), Some(ChunkSize::DEFAULT));
    }
}
