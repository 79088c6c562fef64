//! L3, from (file, offset, length) to bytes and back.
//!
//! [`reader`] turns a row's content into verified bytes through memory caches, [`ahead`] says what it fetches before it is
//! asked; [`packer`] turns chunks into packs in the
//! store. Which bytes are a chunk is `model/chunk`'s business, and who dedupes against what is the caller's.

pub mod ahead;
pub mod packer;
pub mod reader;
mod sweep;
