//! All integration tests, in one binary: linking rocksdb takes longer than most of them run.

mod suites {
    mod committers;
    mod faults;
    mod gestures;
    mod harness;
    mod kernel;
    mod mount;
    mod posix;
    mod power;
    mod scripts;
    mod tidy;
    mod trees;
    mod uploads;
}
