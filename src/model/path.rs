//! Paths inside a tree.

use std::fmt;

use super::limits::PATH_BYTES_MAX;
use super::name::{FileName, NameError};

/// A path below a tree's root: components joined by `/`, no outer `/`; the root is the empty path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The tree's root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Parses `a/b/c`; empty components, `.` and `..` are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > PATH_BYTES_MAX {
            return Err(NameError::TooLong { max: PATH_BYTES_MAX, found: bytes.len() });
        }
        if !bytes.is_empty() {
            for component in bytes.split(|b| *b == b'/') {
                FileName::new(component.to_vec())?;
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// This path with one more component.
    pub fn join(&self, name: &FileName) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.as_bytes().len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        Self(bytes)
    }

    /// The directory that holds this path and its name there; `None` for the root.
    pub fn split_last(&self) -> Option<(Self, FileName)> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/');
        let (parent, name) = match cut {
            Some(at) => (self.0[..at].to_vec(), self.0[at + 1..].to_vec()),
            None => (Vec::new(), self.0.clone()),
        };
        let name = FileName::new(name).expect("every component was parsed when the path was made");
        Some((Self(parent), name))
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = FileName> + '_ {
        let parts = self.0.split(|b| *b == b'/').filter(|part| !part.is_empty());
        parts.map(|part| FileName::new(part.to_vec()).expect("every component was parsed when the path was made"))
    }

    /// Whether this is the tree's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path's bytes, without an outer `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_and_splitting_are_inverse() {
        let name = FileName::new(&b"b"[..]).unwrap();
        let path = TreePath::parse(b"a").unwrap().join(&name);
        assert_eq!(path.as_bytes(), b"a/b");
        assert_eq!(path.split_last(), Some((TreePath::parse(b"a").unwrap(), name)));
        assert_eq!(TreePath::root().split_last(), None);
        assert_eq!(path.components().count(), 2);
        assert_eq!(TreePath::root().components().count(), 0);
    }

    #[test]
    fn a_path_holds_no_empty_component() {
        for bad in [&b"/a"[..], b"a/", b"a//b", b"a/../b", b"a/."] {
            assert!(TreePath::parse(bad).is_err());
        }
    }
}
