//! All integration tests, in one binary: linking rocksdb takes longer than most of them run.

mod suites {
    mod access;
    mod acls;
    mod boot;
    mod bounds;
    mod committers;
    mod copies;
    mod costs;
    mod damage;
    mod disk;
    mod faults;
    mod first_hour;
    mod fuzz;
    mod gestures;
    mod harness;
    mod install;
    mod instants;
    mod kernel;
    mod killed;
    mod lineage;
    mod logs;
    mod look_around;
    mod mount;
    mod mounting;
    mod options;
    mod posix;
    mod power;
    mod proxy;
    mod reads;
    mod refusals;
    mod replaced;
    mod scripts;
    mod staged;
    mod store_faults;
    mod texts;
    mod tidy;
    mod trees;
    mod unmounting;
    mod uploads;
    mod versions;
    mod writers;
}
