//! L7, translation between the kernel's requests and the vfs. The one room that another transport would replace.
//!
//! [`session`] mounts and serves, [`dispatch`] turns each request into a vfs call, [`work`] does it now or later, [`reply`]
//! turns its outcome into an answer; [`handles`] holds what is open, [`waiters`] knows the callers, [`pace`] how to wait for
//! the next.

pub mod dispatch;
pub mod handles;
pub mod pace;
pub mod reply;
pub mod session;
pub mod waiters;
pub mod work;
