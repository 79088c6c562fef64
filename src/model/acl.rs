//! POSIX access control lists: what acl(5) says of them, and the bytes that `system.posix_acl_*` xattrs hold.
//!
//! An [`Acl`] can say only what a valid list says, so nothing behind [`Acl::decode`] has to ask whether it is one. What
//! follows from a list when a mode changes, or when something is made in a directory with a default list, is worked out
//! here in the terms of the withdrawn POSIX 1003.1e draft 17 and of Linux. The bytes are those of linux/posix_acl_xattr.h,
//! version 2: they go to the kernel, and into the rows of a bundle, as they are.
//!
//! # Invariants
//!
//! 1. A list with named users or groups has a mask.
//! 2. What [`Acl::encode`] says is in the kernel's own form: classes in order, no id where there is none to say.
//! 3. After [`Acl::chmod`] the list's [`Acl::mode`] is the mode's.
//!
//! Like the kernel this asks for no order among the named users, or groups, themselves, and lets one stand there twice: the
//! first one counts.

use std::iter::Peekable;

/// What one class may do: `rwx`, as one digit of a mode.
pub type Perm = u8;

/// Which of an entry's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclKind {
    /// Decides who may do what.
    Access,
    /// A directory's, for what is made in it.
    Default,
}

impl AclKind {
    /// The xattr that it is.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }

    /// The kind of the list that the xattr `name` is, if it is one.
    pub fn of(name: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| kind.name() == name)
    }
}

/// Why bytes are no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// Of another version, or no such xattr at all.
    #[error("an ACL of another version than 2")]
    Version,
    /// Not a number of whole entries.
    #[error("an ACL of a length that no ACL has")]
    Length,
    /// A class is missing, comes twice, at the wrong place, or is unknown.
    #[error("the entries of an ACL are missing, unknown or out of order")]
    Order,
    /// Other bits than read, write and execute.
    #[error("an ACL that grants what there is not")]
    Perm,
    /// A named entry without a name.
    #[error("an ACL entry of no user or group")]
    Id,
    /// Invariant 1.
    #[error("an ACL with named users or groups and without a mask")]
    NoMask,
}

/// Tags of linux/posix_acl.h.
mod tag {
    pub const USER_OBJ: u16 = 0x01;
    pub const USER: u16 = 0x02;
    pub const GROUP_OBJ: u16 = 0x04;
    pub const GROUP: u16 = 0x08;
    pub const MASK: u16 = 0x10;
    pub const OTHER: u16 = 0x20;
}

/// POSIX_ACL_XATTR_VERSION.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
/// Tag and permissions of two bytes each, and an id of four.
const ENTRY_BYTES: usize = 8;
/// ACL_UNDEFINED_ID: the id of an entry that names nobody; no user or group has this number.
const NO_ID: u32 = u32::MAX;
/// Read, write and execute.
const PERM_MAX: u16 = 0o7;
/// The bits of a mode that a list says.
const MODE_BITS: u16 = 0o777;

/// What a named user or group may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The user's or group's number.
    pub id: u32,
    /// What it may do, as far as the mask lets it.
    pub perm: Perm,
}

/// A valid list. See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    user_obj: Perm,
    users: Vec<Named>,
    group_obj: Perm,
    groups: Vec<Named>,
    mask: Option<Perm>,
    other: Perm,
}

/// One entry as it lies in the bytes.
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

impl Acl {
    /// The list that an xattr holds.
    pub fn decode(bytes: &[u8]) -> Result<Self, AclError> {
        let (version, entries) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(AclError::Length)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(AclError::Version);
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(AclError::Length);
        }
        let mut entries = entries.iter().map(Entry::read).peekable();
        let acl = Self {
            user_obj: one(&mut entries, tag::USER_OBJ)?.ok_or(AclError::Order)?,
            users: named(&mut entries, tag::USER)?,
            group_obj: one(&mut entries, tag::GROUP_OBJ)?.ok_or(AclError::Order)?,
            groups: named(&mut entries, tag::GROUP)?,
            mask: one(&mut entries, tag::MASK)?,
            other: one(&mut entries, tag::OTHER)?.ok_or(AclError::Order)?,
        };
        match (entries.next(), acl.mask) {
            (Some(_), _) => Err(AclError::Order),
            (None, None) if acl.names_somebody() => Err(AclError::NoMask),
            _ => Ok(acl),
        }
    }

    /// The xattr's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let named = |tag: u16, named: &[Named]| -> Vec<Entry> {
            named.iter().map(|Named { id, perm }| Entry { tag, perm: (*perm).into(), id: *id }).collect()
        };
        let one = |tag: u16, perm: Perm| Entry { tag, perm: perm.into(), id: NO_ID };
        let entries = [one(tag::USER_OBJ, self.user_obj)]
            .into_iter()
            .chain(named(tag::USER, &self.users))
            .chain([one(tag::GROUP_OBJ, self.group_obj)])
            .chain(named(tag::GROUP, &self.groups))
            .chain(self.mask.map(|perm| one(tag::MASK, perm)))
            .chain([one(tag::OTHER, self.other)]);
        VERSION.to_le_bytes().into_iter().chain(entries.flat_map(|entry| entry.bytes())).collect()
    }

    /// The permission bits that stat(2) shows with this list: the group's are the mask's, where there is one.
    pub fn mode(&self) -> u16 {
        let group = self.mask.unwrap_or(self.group_obj);
        u16::from(self.user_obj) << 6 | u16::from(group) << 3 | u16::from(self.other)
    }

    /// The mode that says all that this list says, if one does: a *minimal* list, in acl(5)'s words.
    pub fn equiv_mode(&self) -> Option<u16> {
        (self.mask.is_none() && !self.names_somebody()).then(|| self.mode())
    }

    /// Changes the list as chmod(2) does; of `mode` only the nine permission bits count.
    pub fn chmod(&mut self, mode: u16) {
        self.user_obj = digit(mode, 6);
        *self.group_class() = digit(mode, 3);
        self.other = digit(mode, 0);
    }

    /// What is made in a directory with this default list gets: its access list, if that says more than its mode, and its
    /// mode. `mode` is the one that was asked for, and no umask takes part.
    pub fn create(&self, mode: u16) -> (Option<Self>, u16) {
        let mut acl = self.clone();
        acl.user_obj &= digit(mode, 6);
        *acl.group_class() &= digit(mode, 3);
        acl.other &= digit(mode, 0);
        let mode = mode & !MODE_BITS | acl.mode();
        (Some(acl).filter(|acl| acl.equiv_mode().is_none()), mode)
    }

    /// Whether the list lets somebody do all of `wanted` with what belongs to `owner`, a user and a group. `is_in` says
    /// whether the caller is in a group.
    pub fn permits(&self, owner: (u32, u32), uid: u32, is_in: impl Fn(u32) -> bool, wanted: Perm) -> bool {
        let grants = |perm: Perm| perm & wanted == wanted;
        let masked = |perm: Perm| grants(perm & self.mask.unwrap_or(PERM_MAX as Perm));
        if uid == owner.0 {
            return grants(self.user_obj);
        }
        if let Some(user) = self.users.iter().find(|user| user.id == uid) {
            return masked(user.perm);
        }
        let group_obj = Named { id: owner.1, perm: self.group_obj };
        let mut of_caller = [group_obj].into_iter().chain(self.groups.iter().copied()).filter(|group| is_in(group.id));
        match of_caller.next() {
            // Whoever is in one of the groups is no other: one group alone has to grant it.
            Some(first) => masked(first.perm) || of_caller.any(|group| masked(group.perm)),
            None => grants(self.other),
        }
    }

    fn names_somebody(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }

    /// What the group's bits of the mode are.
    fn group_class(&mut self) -> &mut Perm {
        self.mask.as_mut().unwrap_or(&mut self.group_obj)
    }
}

impl Entry {
    fn read(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let [tag_0, tag_1, perm_0, perm_1, id @ ..] = *bytes;
        let (tag, perm) = (u16::from_le_bytes([tag_0, tag_1]), u16::from_le_bytes([perm_0, perm_1]));
        Self { tag, perm, id: u32::from_le_bytes(id) }
    }

    fn bytes(&self) -> impl Iterator<Item = u8> + use<> {
        self.tag.to_le_bytes().into_iter().chain(self.perm.to_le_bytes()).chain(self.id.to_le_bytes())
    }

    fn perm(&self) -> Result<Perm, AclError> {
        if self.perm > PERM_MAX { Err(AclError::Perm) } else { Ok(self.perm as Perm) }
    }
}

/// The next entry, if it has this tag.
fn one(entries: &mut Peekable<impl Iterator<Item = Entry>>, tag: u16) -> Result<Option<Perm>, AclError> {
    entries.next_if(|entry| entry.tag == tag).map(|entry| entry.perm()).transpose()
}

/// The next entries, as long as they have this tag.
fn named(entries: &mut Peekable<impl Iterator<Item = Entry>>, tag: u16) -> Result<Vec<Named>, AclError> {
    let mut found = Vec::new();
    while let Some(entry) = entries.next_if(|entry| entry.tag == tag) {
        if entry.id == NO_ID {
            return Err(AclError::Id);
        }
        found.push(Named { id: entry.id, perm: entry.perm()? });
    }
    Ok(found)
}

/// One digit of a mode.
fn digit(mode: u16, shift: u32) -> Perm {
    (mode >> shift & PERM_MAX) as Perm
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_perm() -> impl Strategy<Value = Perm> {
        0..=PERM_MAX as Perm
    }

    fn any_named() -> impl Strategy<Value = Vec<Named>> {
        prop::collection::vec((0..NO_ID, any_perm()).prop_map(|(id, perm)| Named { id, perm }), 0..5)
    }

    fn any_acl() -> impl Strategy<Value = Acl> {
        let one = (any_perm(), any_perm(), prop::option::of(any_perm()), any_perm());
        (one, any_named(), any_named()).prop_map(|((user_obj, group_obj, mask, other), users, groups)| {
            let is_named = !users.is_empty() || !groups.is_empty();
            let mask = if is_named { Some(mask.unwrap_or(5)) } else { mask };
            Acl { user_obj, users, group_obj, groups, mask, other }
        })
    }

    /// The same list as Linux keeps it: tags, permissions and ids in a row.
    fn linux(acl: &Acl) -> Vec<(u16, u16, u32)> {
        let bytes = acl.encode();
        let entries = bytes[HEADER_BYTES..].chunks(ENTRY_BYTES);
        let entries = entries.map(|entry| Entry::read(entry.try_into().unwrap()));
        entries.map(|entry| (entry.tag, entry.perm, entry.id)).collect()
    }

    /// What Linux makes of a default list for a new entry: an entry after the other takes bits from the mode and gives up
    /// those that the mode does not have. Answers the list and the mode.
    fn linux_create(mut entries: Vec<(u16, u16, u32)>, asked: u16) -> (Vec<(u16, u16, u32)>, u16) {
        let mut mode = asked;
        let has_mask = entries.iter().any(|(tag, ..)| *tag == tag::MASK);
        for (tag, perm, _) in &mut entries {
            let shift = match *tag {
                tag::USER_OBJ => 6,
                tag::OTHER => 0,
                tag::MASK => 3,
                tag::GROUP_OBJ if !has_mask => 3,
                _ => continue,
            };
            *perm &= mode >> shift | !0o7;
            mode &= *perm << shift | !(0o7 << shift);
        }
        (entries, asked & !0o777 | mode & 0o777)
    }

    proptest! {
        #[test]
        fn a_list_is_its_bytes_and_its_bytes_are_the_list(acl in any_acl()) {
            prop_assert_eq!(Acl::decode(&acl.encode()), Ok(acl));
        }

        #[test]
        fn bytes_are_refused_or_are_a_list_that_says_the_same(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = bytes;
            // Most bytes are of no version: these are.
            bytes.splice(..bytes.len().min(HEADER_BYTES), VERSION.to_le_bytes());
            if let Ok(acl) = Acl::decode(&bytes) {
                prop_assert_eq!(Acl::decode(&acl.encode()), Ok(acl));
            }
        }

        #[test]
        fn after_a_chmod_the_lists_mode_is_that_mode_and_names_stay(acl in any_acl(), mode in 0..=0o7777_u16) {
            let mut changed = acl.clone();
            changed.chmod(mode);
            prop_assert_eq!(changed.mode(), mode & 0o777);
            prop_assert_eq!((&changed.users, &changed.groups), (&acl.users, &acl.groups));
            if acl.mask.is_some() {
                prop_assert_eq!(changed.group_obj, acl.group_obj);
            }
            // What it was is one chmod away.
            changed.chmod(acl.mode());
            prop_assert_eq!(changed, acl);
        }

        #[test]
        fn what_is_made_gets_what_linux_gives_it(acl in any_acl(), mode in 0..=0o7777_u16) {
            let (inherited, permissions) = acl.create(mode);
            let (entries, expected) = linux_create(linux(&acl), mode);
            prop_assert_eq!(permissions, expected);
            prop_assert_eq!(permissions & !mode, 0, "never more than was asked for");
            match inherited {
                Some(inherited) => prop_assert_eq!(linux(&inherited), entries),
                None => prop_assert!(acl.equiv_mode().is_some()),
            }
        }

        #[test]
        fn a_minimal_list_permits_what_its_mode_does(mode in 0..=0o777_u16, uid in 0..3_u32, group in 0..3_u32) {
            let mut acl = Acl { user_obj: 0, users: vec![], group_obj: 0, groups: vec![], mask: None, other: 0 };
            acl.chmod(mode);
            prop_assert_eq!(acl.equiv_mode(), Some(mode));
            let class = if uid == 1 { 6 } else if group == 2 { 3 } else { 0 };
            for wanted in 0..=7 {
                let is_permitted = acl.permits((1, 2), uid, |gid| gid == group, wanted);
                prop_assert_eq!(is_permitted, digit(mode, class) & wanted == wanted);
            }
        }
    }

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().flat_map(|(tag, perm, id)| Entry { tag: *tag, perm: *perm, id: *id }.bytes());
        VERSION.to_le_bytes().into_iter().chain(entries).collect()
    }

    const OWNER: (u16, u16, u32) = (tag::USER_OBJ, 7, NO_ID);
    const GROUP: (u16, u16, u32) = (tag::GROUP_OBJ, 5, NO_ID);
    const OTHER: (u16, u16, u32) = (tag::OTHER, 4, NO_ID);
    const MASK: (u16, u16, u32) = (tag::MASK, 6, NO_ID);
    const ANN: (u16, u16, u32) = (tag::USER, 7, 1000);

    #[test]
    fn what_is_no_list_is_refused_as_the_kernel_refuses_it() {
        let refused = |entries: &[_]| Acl::decode(&bytes(entries)).unwrap_err();
        assert_eq!(refused(&[]), AclError::Order);
        assert_eq!(refused(&[OWNER, GROUP]), AclError::Order);
        assert_eq!(refused(&[GROUP, OWNER, OTHER]), AclError::Order);
        assert_eq!(refused(&[OWNER, OWNER, GROUP, OTHER]), AclError::Order);
        assert_eq!(refused(&[OWNER, GROUP, OTHER, OTHER]), AclError::Order);
        assert_eq!(refused(&[OWNER, GROUP, MASK, MASK, OTHER]), AclError::Order);
        assert_eq!(refused(&[OWNER, GROUP, ANN, MASK, OTHER]), AclError::Order);
        assert_eq!(refused(&[OWNER, GROUP, (0x40, 0, 0), OTHER]), AclError::Order);
        assert_eq!(refused(&[OWNER, ANN, GROUP, OTHER]), AclError::NoMask);
        assert_eq!(refused(&[OWNER, GROUP, (tag::OTHER, 8, NO_ID)]), AclError::Perm);
        assert_eq!(refused(&[OWNER, (tag::USER, 7, NO_ID), GROUP, MASK, OTHER]), AclError::Id);
        let mut long = bytes(&[OWNER, GROUP, OTHER]);
        long.push(0);
        assert_eq!(Acl::decode(&long), Err(AclError::Length));
        assert_eq!(Acl::decode(&long[..3]), Err(AclError::Length));
        long[0] = 1;
        assert_eq!(Acl::decode(&long), Err(AclError::Version));
    }

    #[test]
    fn a_mask_bounds_all_but_the_owner_and_others_and_shows_as_the_groups_bits() {
        let acl = Acl::decode(&bytes(&[OWNER, ANN, GROUP, (tag::GROUP, 2, 9), MASK, OTHER])).unwrap();
        assert_eq!((acl.mode(), acl.equiv_mode()), (0o764, None));
        let permits = |uid: u32, groups: &[u32], wanted| acl.permits((1, 2), uid, |gid| groups.contains(&gid), wanted);
        assert!(permits(1, &[], 7), "the owner");
        assert!(permits(1000, &[], 6) && !permits(1000, &[], 1), "a named user, within the mask");
        assert!(permits(5, &[2], 4) && !permits(5, &[2], 1) && !permits(5, &[2], 2), "the group, within the mask");
        assert!(permits(5, &[9], 2) && !permits(5, &[9], 4), "a named group is no other");
        assert!(
            permits(5, &[2, 9], 2) && permits(5, &[2, 9], 4) && !permits(5, &[2, 9], 6),
            "one group has to grant all"
        );
        assert!(permits(5, &[], 4) && !permits(5, &[], 2), "others");
    }

    #[test]
    fn a_kind_is_its_xattrs_name() {
        for kind in [AclKind::Access, AclKind::Default] {
            assert_eq!(AclKind::of(kind.name()), Some(kind));
        }
        assert_eq!(AclKind::of(b"system.posix_acl"), None);
    }
}
