//! All integration tests, in one binary: linking rocksdb takes longer than most of them run.

mod suites {
    mod scripts;
    mod servers;
    mod stores;
    mod tidy;
}
