//! L7, translation between the kernel's requests and the vfs. The one room that another transport would replace.
//!
//! [`session`] mounts and serves, [`dispatch`] turns each request into a vfs call and its answer into a reply,
//! [`waiters`] lets killed callers go.

pub mod dispatch;
pub mod session;
pub mod waiters;
