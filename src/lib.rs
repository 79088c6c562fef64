//! datamon: a FUSE file system that keeps versioned data sets on plain object storage.
//!
//! The library is the program's own house, not a public interface; `docs/ARCHITECTURE.md` draws its floors.
//! A module imports from a lower floor only; `tests/suites/tidy.rs` holds that.

// A request is a future in a future, from the kernel's door down to the socket: more than rustc's 128 when it asks about all
// of them at once, as it does in a build from nothing.
#![recursion_limit = "256"]

pub mod cli;
pub mod config;
pub mod content;
pub mod faults;
pub mod format;
pub mod fuse;
pub mod local;
pub mod model;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod staging;
pub mod store;
pub mod telemetry;
pub mod vfs;
