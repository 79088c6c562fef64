//! How owners and modes are shown, where that is not how they are stored: `uid=`, `gid=`, `umask=`.
//!
//! What is stored is not touched by how it is shown: a version that is committed through such a mount has the owners
//! that its files had, unless somebody changed them. What is made through such a mount is stored as it is shown: so a
//! copy that sets the owner which it sees already has nothing to set.

use crate::model::entry::Attributes;
use crate::staging::tree::{Caller, SetAttr};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Everything is this user's.
    pub uid: Option<u32>,
    /// Everything is this group's.
    pub gid: Option<u32>,
    /// Permission bits that nothing has.
    pub umask: u16,
}

impl Shown {
    /// What is shown of what is stored.
    pub fn of(&self, stored: Attributes) -> Attributes {
        Attributes {
            permissions: stored.permissions & !self.umask,
            uid: self.uid.unwrap_or(stored.uid),
            gid: self.gid.unwrap_or(stored.gid),
            ..stored
        }
    }

    /// The owner of what is not stored: directories of the namespace, texts.
    pub fn owner(&self, mounter: (u32, u32)) -> (u32, u32) {
        (self.uid.unwrap_or(mounter.0), self.gid.unwrap_or(mounter.1))
    }

    /// Whose something is that `caller` makes.
    pub fn maker(&self, caller: Caller) -> Caller {
        let (uid, gid) = self.owner((caller.uid, caller.gid));
        Caller { uid, gid, ..caller }
    }

    /// What is to be set: who is shown as the owner already is not made the owner by saying so. `cp -a` says so.
    pub fn unless_shown(&self, set: SetAttr) -> SetAttr {
        let changed = |set: Option<u32>, shown: Option<u32>| set.filter(|_| set != shown);
        SetAttr { uid: changed(set.uid, self.uid), gid: changed(set.gid, self.gid), ..set }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Timestamp;

    #[test]
    fn what_is_shown_leaves_what_is_stored() {
        let stored = Attributes { permissions: 0o4775, uid: 1, gid: 2, mtime: Timestamp::default() };
        assert_eq!(Shown::default().of(stored), stored);
        let shown = Shown { uid: Some(7), gid: None, umask: 0o022 };
        assert_eq!(shown.of(stored), Attributes { permissions: 0o4755, uid: 7, ..stored });
        assert_eq!((shown.owner((3, 4)), Shown::default().owner((3, 4))), ((7, 4), (3, 4)));
        let maker = shown.maker(Caller { uid: 0, gid: 0, umask: 0o022 });
        assert_eq!((maker.uid, maker.gid, maker.umask), (7, 0, 0o022));
        let set = SetAttr { uid: Some(7), gid: Some(7), ..SetAttr::default() };
        assert_eq!((shown.unless_shown(set).uid, shown.unless_shown(set).gid), (None, Some(7)));
        assert_eq!(shown.unless_shown(SetAttr { uid: Some(8), ..set }).uid, Some(8));
    }
}
