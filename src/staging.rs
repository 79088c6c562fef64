//! L5, the writable tree and the publish protocol.
//!
//! A [`tree::Tree`] is an overlay over one immutable snapshot, its base: names and inodes that changed lie in a local
//! database, bytes in files beside it.
//!
//! ```text
//!  tree     opens, locks, applies changes       base       what shows through
//!  names    directory entries                   inode      numbers and records
//!  bytes    reading, writing, cutting           attributes stat, xattrs; acl: lists and modes in step
//!  extents  what of it is in the store          seal       an instant, while writers go on
//!  queue    what the background stores next     upload     W0–W3, in the background too
//!  tables   W5
//!  sharing  copies that move no bytes
//!  aside    what was discarded           message  the next commit's text
//!  commit   the whole of W, and what follows    journal    what a commit remembers over the end of the process
//!  request  what is asked of a commit, what it tells
//!  recovery what an earlier life left          retired    bytes without use, until that is safe
//!  gone     inodes without a name that the kernel still knows
//!  unwritten  stores through mappings that were refused
//! ```

mod acl;
pub mod aside;
mod attributes;
mod base;
mod bytes;
pub mod commit;
mod error;
mod extents;
mod gone;
pub mod inode;
pub mod journal;
pub mod message;
mod names;
mod queue;
mod recovery;
mod request;
mod retired;
pub mod seal;
pub mod sharing;
mod tables;
mod totals;
pub mod tree;
mod unwritten;
mod upload;

#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
