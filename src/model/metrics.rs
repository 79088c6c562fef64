//! What is counted and timed, and the text in which it is told: Prometheus' exposition format 0.0.4.
//!
//! Counting is a relaxed addition, cheap enough for every request. Names of metrics are not here but where the text is
//! put together (`vfs/control/stats`), all in one place.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of a histogram's buckets, in microseconds, and as they are written, in seconds.
const BOUNDS: [(u64, &str); 7] = [
    (10, "0.00001"),
    (100, "0.0001"),
    (1_000, "0.001"),
    (10_000, "0.01"),
    (100_000, "0.1"),
    (1_000_000, "1"),
    (10_000_000, "10"),
];

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bound, and one for what took longer.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// Counts one that took so long.
    pub fn record(&self, took: Duration) {
        let micros = took.as_micros();
        let bucket = BOUNDS.iter().position(|(bound, _)| micros <= u128::from(*bound)).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

macro_rules! operations {
    ($($name:ident $text:literal)*) => {
        /// What the kernel asks of a mount.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "named as in fuse(4)")]
        pub enum Operation { $($name),* }

        impl Operation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

operations! {
    Lookup "lookup"
    Getattr "getattr"
    Setattr "setattr"
    Readlink "readlink"
    Make "make"
    Link "link"
    Unlink "unlink"
    Rmdir "rmdir"
    Rename "rename"
    Create "create"
    Open "open"
    Read "read"
    Write "write"
    Copy "copy"
    Allocate "allocate"
    Seek "seek"
    Fsync "fsync"
    Release "release"
    Opendir "opendir"
    Readdir "readdir"
    Statfs "statfs"
    Xattr "xattr"
    Ioctl "ioctl"
}

const OPERATIONS: usize = Operation::ALL.len();

/// The operations of one mount.
#[derive(Debug, Default)]
pub struct Operations {
    took: [Histogram; OPERATIONS],
    refused: [AtomicU64; OPERATIONS],
}

impl Operations {
    /// Counts one that took so long, from the request to the answer.
    pub fn record(&self, operation: Operation, took: Duration, refused: bool) {
        self.took[operation as usize].record(took);
        if refused {
            self.refused[operation as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those that occurred: how long they took, and how many were answered with an errno.
    pub fn all(&self) -> impl Iterator<Item = (Operation, &Histogram, u64)> {
        let counted = Operation::ALL.iter().map(|operation| {
            let at = *operation as usize;
            (*operation, &self.took[at], self.refused[at].load(Ordering::Relaxed))
        });
        counted.filter(|(_, took, _)| took.count() > 0)
    }
}

/// A text under way.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a metric: its name, what kind it is (`counter`, `gauge`, `histogram`), and what it says.
    pub fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of it.
    pub fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = writeln!(self.0, "{name}{} {value}", braced(labels));
    }

    /// A metric with one value and no labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.value(name, &[], value);
    }

    /// The buckets, sum and count of a histogram.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        let mut below = 0;
        for (bound, bucket) in bounds.zip(&histogram.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound)]).collect();
            self.value(&format!("{name}_bucket"), &labels, below);
        }
        let seconds = histogram.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        self.value(&format!("{name}_sum"), labels, format_args!("{seconds:.6}"));
        self.value(&format!("{name}_count"), labels, below);
    }

    /// The whole text.
    pub fn text(self) -> String {
        self.0
    }
}

fn braced(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_upwards_and_sums() {
        let operations = Operations::default();
        for (micros, refused) in [(5, false), (10, true), (11, false), (20_000_000, false)] {
            operations.record(Operation::Lookup, Duration::from_micros(micros), refused);
        }
        let (operation, took, refused) = operations.all().next().unwrap();
        assert_eq!((operation, took.count(), refused, operations.all().count()), (Operation::Lookup, 4, 1, 1));
        let mut text = Exposition::default();
        text.histogram("x_seconds", &[("operation", "lookup")], took);
        let text = text.text();
        for line in [
            "x_seconds_bucket{operation=\"lookup\",le=\"0.00001\"} 2\n",
            "x_seconds_bucket{operation=\"lookup\",le=\"0.0001\"} 3\n",
            "x_seconds_bucket{operation=\"lookup\",le=\"10\"} 3\n",
            "x_seconds_bucket{operation=\"lookup\",le=\"+Inf\"} 4\n",
            "x_seconds_sum{operation=\"lookup\"} 20.000026\n",
            "x_seconds_count{operation=\"lookup\"} 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn a_label_may_hold_anything() {
        let mut text = Exposition::default();
        text.begin("a", "gauge", "What a is.");
        text.value("a", &[("b", "x\"\\\ny")], 1);
        assert_eq!(text.text(), "# HELP a What a is.\n# TYPE a gauge\na{b=\"x\\\"\\\\\\ny\"} 1\n");
    }
}
