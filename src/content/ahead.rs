//! Readahead: which chunks to fetch before anyone asks for them.
//!
//! [`Streams`] watches the reads of all files and answers one question: given this read, which further chunks should
//! already be on their way? It performs no I/O and reads no clock, so every decision can be replayed in a unit test.
//! [`runs`] says which of their records are fetched together.
//!
//! # Invariants
//!
//! 1. While a stream goes on its frontier never retreats, so no chunk is requested twice for it.
//! 2. Nothing beyond the end of the file is requested, and never what the read itself needs.
//! 3. What all streams that are being read have requested ahead of their readers is at most `ahead_bytes_max`, but for
//!    one chunk each.

use std::ops::Range;

use crate::model::chunk::{ChunkIndex, ChunkLayout};
use crate::model::id::{ChunkId, PackId};

use crate::model::entry::Locator;

/// Streams that are remembered.
const STREAMS_MAX: usize = 128;
/// A stream that none of the last so many reads belonged to is not being read.
const IDLE_READS: u64 = 256;
/// Bytes that one stream may have ahead of its reader: 20 ms of a store that gives 1.6 GiB/s.
const WINDOW_BYTES_MAX: u64 = 32 << 20;
/// Bytes requested ahead when a file is opened at its start, before it is known whether it will be read on.
const WINDOW_BYTES_MIN: u64 = 4 << 20;
/// Stored bytes fetched in one request.
pub const RUN_BYTES_MAX: u64 = 4 << 20;
/// Bytes between two records that are fetched and dropped rather than asked around: a proof has 2 KiB a MiB.
const GAP_BYTES_MAX: u64 = 32 << 10;

/// What tells files apart: the place of a file's first extent block. Files of equal content share it, and then their
/// streams: each read still goes to the stream that it continues.
pub type FileKey = (PackId, u64);

/// Reads that go through one file in order.
#[derive(Debug)]
struct Stream {
    file: FileKey,
    /// End of the last read: a read starting near here goes on with the stream.
    expected: u64,
    /// First chunk that has not been requested on behalf of this stream.
    frontier: ChunkIndex,
    /// Bytes to keep requested ahead of the reader.
    window: u64,
    /// Number of its last read.
    seen: u64,
}

/// The streams of all files, least recently read first.
#[derive(Debug)]
pub struct Streams {
    streams: Vec<Stream>,
    reads: u64,
    ahead_bytes_max: u64,
}

impl Streams {
    /// Streams that may have so much on its way together.
    pub fn new(ahead_bytes_max: u64) -> Self {
        Self { streams: Vec::new(), reads: 0, ahead_bytes_max }
    }

    /// Records a read and returns the chunks to fetch ahead of it, possibly none.
    pub fn observe(&mut self, file: FileKey, read: &Range<u64>, layout: &ChunkLayout) -> Range<ChunkIndex> {
        self.reads += 1;
        let demanded = layout.covering(read);
        let chunk = layout.span(ChunkIndex(0)).end.max(1);
        let mut stream = self.take(file, read, chunk).unwrap_or(Stream {
            file,
            expected: 0,
            frontier: demanded.end,
            window: 0,
            seen: 0,
        });
        // Going on, or beginning at the start: whole files are read more often than not.
        let goes_on = read.start.abs_diff(stream.expected) <= chunk;
        stream.seen = self.reads;
        stream.expected = if goes_on { stream.expected.max(read.end) } else { read.end };
        let share = self.ahead_bytes_max / (1 + self.active());
        let window_max = share.min(WINDOW_BYTES_MAX);
        let start = stream.frontier.max(demanded.end);
        let ahead = (start.0 - demanded.end.0) * chunk;
        let mut wanted = start..start;
        if goes_on && ahead <= stream.window / 2 {
            stream.window = (stream.window * 2).max(WINDOW_BYTES_MIN).min(window_max);
            let end = (demanded.end.0 + stream.window / chunk).min(layout.chunks());
            wanted = start..ChunkIndex(end).max(start);
        }
        stream.frontier = wanted.end;
        if stream.expected < layout.file_bytes() {
            self.streams.push(stream);
        }
        wanted
    }

    /// Takes out the stream of the file that the read continues; makes room if there is none.
    fn take(&mut self, file: FileKey, read: &Range<u64>, chunk: u64) -> Option<Stream> {
        // The kernel's own readahead arrives a little out of order: one chunk of slack absorbs that.
        let continues = |stream: &Stream| stream.file == file && read.start.abs_diff(stream.expected) <= chunk;
        if let Some(at) = self.streams.iter().rposition(continues) {
            return Some(self.streams.remove(at));
        }
        if self.streams.len() >= STREAMS_MAX {
            self.streams.remove(0);
        }
        None
    }

    /// How many other streams are being read.
    fn active(&self) -> u64 {
        let is_read = |stream: &&Stream| stream.window > 0 && self.reads - stream.seen < IDLE_READS;
        self.streams.iter().filter(is_read).count() as u64
    }
}

/// Records to fetch in one request: neighbours in one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The pack.
    pub pack: PackId,
    /// The bytes of the pack, records and what lies between them.
    pub bytes: Range<u64>,
    /// The records with the chunks that they are, in the order of the pack.
    pub records: Vec<(ChunkId, Locator)>,
}

/// Puts records together into runs of up to [`RUN_BYTES_MAX`].
pub fn runs(mut records: Vec<(ChunkId, Locator)>) -> Vec<Run> {
    records.sort_by_key(|(_, at)| (at.pack, at.offset));
    records.dedup_by_key(|(_, at)| (at.pack, at.offset));
    let mut runs: Vec<Run> = Vec::new();
    for (id, at) in records {
        let end = at.offset + u64::from(at.stored);
        match runs.last_mut() {
            Some(run)
                if run.pack == at.pack
                    && at.offset >= run.bytes.end
                    && at.offset - run.bytes.end <= GAP_BYTES_MAX
                    && end - run.bytes.start <= RUN_BYTES_MAX + GAP_BYTES_MAX =>
            {
                run.bytes.end = end;
                run.records.push((id, at));
            }
            _ => runs.push(Run { pack: at.pack, bytes: at.offset..end, records: vec![(id, at)] }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chunk::ChunkSize;
    use crate::model::entry::Codec;
    use crate::model::id::{IntentId, Run as RunId};

    const MIB: u64 = 1 << 20;

    fn pack(seq: u32) -> PackId {
        PackId { intent: IntentId::from_parts(1, 1), run: RunId(1), seq: seq as _ }
    }

    fn file(n: u64) -> FileKey {
        (pack(0), n)
    }

    fn layout(mib: u64) -> ChunkLayout {
        ChunkLayout::new(mib * MIB, ChunkSize::DEFAULT)
    }

    /// Reads the whole file in steps, and answers which chunks were requested ahead, in order.
    fn sequence(streams: &mut Streams, of: FileKey, layout: &ChunkLayout, step: u64) -> Vec<u64> {
        let mut requested = Vec::new();
        for at in (0..layout.file_bytes()).step_by(step as usize) {
            let wanted = streams.observe(of, &(at..at + step), layout);
            requested.extend(wanted.start.0..wanted.end.0);
        }
        requested
    }

    #[test]
    fn a_sequential_reader_has_every_later_chunk_requested_exactly_once() {
        for step in [MIB / 8, MIB, 3 * MIB] {
            let requested = sequence(&mut Streams::new(64 * MIB), file(1), &layout(100), step);
            let first = step.div_ceil(MIB);
            assert_eq!(requested, (first..100).collect::<Vec<_>>(), "steps of {step}");
        }
    }

    #[test]
    fn out_of_order_arrival_within_a_chunk_is_still_sequential() {
        let mut streams = Streams::new(64 * MIB);
        let layout = layout(100);
        let mut requested = Vec::new();
        for at in [0, 1, 3, 2, 4, 6, 5, 7] {
            let wanted = streams.observe(file(1), &(at * MIB / 2..(at + 1) * MIB / 2), &layout);
            requested.extend(wanted.start.0..wanted.end.0);
        }
        assert_eq!(requested, (1..=*requested.last().unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn a_random_reader_fetches_nothing_ahead() {
        let mut streams = Streams::new(64 * MIB);
        for at in [70, 10, 40, 90, 20] {
            let wanted = streams.observe(file(1), &(at * MIB..at * MIB + 4096), &layout(100));
            assert!(wanted.is_empty(), "{wanted:?}");
        }
    }

    #[test]
    fn two_readers_of_one_file_are_two_streams() {
        let mut streams = Streams::new(64 * MIB);
        let layout = layout(100);
        let mut ahead = 0;
        for step in 0..40 {
            ahead += streams.observe(file(1), &(step * MIB..(step + 1) * MIB), &layout).end.0.min(1);
            let far = 50 + step;
            streams.observe(file(1), &(far * MIB..(far + 1) * MIB), &layout);
        }
        assert!(ahead > 0);
        assert_eq!(streams.streams.len(), 2);
    }

    #[test]
    fn the_window_is_shared_and_a_limit_of_zero_disables_it() {
        assert!(sequence(&mut Streams::new(0), file(1), &layout(100), MIB).is_empty());
        let mut streams = Streams::new(32 * MIB);
        for step in 0..20 {
            for n in 0..16 {
                streams.observe(file(n), &(step * MIB..(step + 1) * MIB), &layout(100));
            }
        }
        let ahead: u64 = streams.streams.iter().map(|stream| stream.frontier.0 - 20).sum();
        assert!(ahead <= 32 + 16, "{ahead} MiB");
        assert!(ahead >= 16, "{ahead} MiB");
    }

    #[test]
    fn neighbours_in_a_pack_are_one_run_up_to_its_size() {
        let at = |seq, offset, stored: u64| {
            let stored = stored as u32;
            let locator =
                Locator { pack: pack(seq), offset, stored, raw: stored, codec: Codec::Raw, inner: 0, len: stored };
            (ChunkId::of(&offset.to_le_bytes()), locator)
        };
        let step = MIB + 2048;
        let mut records: Vec<_> = (0..6).map(|n| at(0, n * step, MIB)).collect();
        records.push(at(1, 6 * step, MIB));
        records.push(at(0, 60 * step, MIB));
        records.swap(1, 3);
        let runs = runs(records);
        let sizes: Vec<_> = runs.iter().map(|run| run.records.len()).collect();
        assert_eq!(sizes, [4, 2, 1, 1]);
        assert_eq!(runs[0].bytes, 0..3 * step + MIB);
        assert!(runs.iter().all(|run| run.records.is_sorted_by_key(|(_, at)| at.offset)));
    }
}
