//! L2, the local side: the database of a staging tree, its data files, and system calls.
//!
//! Knows nothing of the remote side (`store`) and nothing of what the records mean.

pub mod db;
mod handle;
pub mod staged_files;
pub mod sys;
