//! L5, the writable tree and the publish protocol.
//!
//! A [`tree::Tree`] is an overlay over one immutable snapshot, its base: names and inodes that changed lie in a local
//! database, bytes in files beside it. [`seal`] stops an instant of it; commit makes that instant a bundle.

pub mod commit;
pub mod inode;
pub mod journal;
pub mod seal;
pub mod tree;

#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod tests;
