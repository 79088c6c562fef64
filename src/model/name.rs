//! Names: parsed once, then trusted.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::limits::{CONTRIBUTOR_BYTES_MAX, LABEL_BYTES_MAX, NAME_BYTES_MAX};

/// Why a text is no name. The sentence names the rule, so that a user can mend the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("a name must not be empty")]
    Empty,
    /// More bytes than the limit of its kind.
    #[error("a name may have at most {max} bytes, this one has {found}")]
    TooLong {
        /// Bytes allowed.
        max: usize,
        /// Bytes found.
        found: usize,
    },
    /// A byte outside the allowed set.
    #[error("a name starts with a letter or digit and goes on with letters, digits, '.', '_' or '-'")]
    Shape,
    /// The name has a meaning of its own.
    #[error("the name is reserved")]
    Reserved,
    /// A line break, a tab or the like.
    #[error("a contributor is a line of text without control characters")]
    Control,
    /// `.`, `..`, or a name holding `/` or NUL.
    #[error("a file name must not be '.' or '..' nor hold '/' or a NUL byte")]
    NoFileName,
}

/// `[A-Za-z0-9][A-Za-z0-9._-]*`, at most [`LABEL_BYTES_MAX`] bytes.
fn check_word(text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let first = *bytes.first().ok_or(NameError::Empty)?;
    if bytes.len() > LABEL_BYTES_MAX {
        return Err(NameError::TooLong { max: LABEL_BYTES_MAX, found: bytes.len() });
    }
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !first.is_ascii_alphanumeric() || !bytes.iter().all(inner) {
        return Err(NameError::Shape);
    }
    Ok(())
}

macro_rules! word_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! plain_parse {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check_word(text)?;
                Ok(Self(text.to_owned()))
            }
        }
    };
}

word_name! {
    /// The name of a repo: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 128 bytes.
    RepoName
}
plain_parse!(RepoName);
word_name! {
    /// The name of a context, shaped like a repo's.
    ContextName
}
plain_parse!(ContextName);
word_name! {
    /// The name of a staging tree of a repo (`-o stage=`), shaped like a repo's.
    StageName
}
plain_parse!(StageName);
word_name! {
    /// A label: shaped like a repo's name, never `latest`, never shaped like a ULID.
    ///
    /// The two exclusions keep `base=X` and `labels/X` unambiguous: what looks like a bundle is one.
    LabelName
}

impl FromStr for LabelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_word(text)?;
        if text == LATEST || text.parse::<super::id::BundleId>().is_ok() {
            return Err(NameError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Who commits, as a person or a program calls itself: 1 to 256 bytes of text without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contributor(String);

impl FromStr for Contributor {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.trim().is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > CONTRIBUTOR_BYTES_MAX {
            return Err(NameError::TooLong { max: CONTRIBUTOR_BYTES_MAX, found: text.len() });
        }
        // It stands between tabs in a line.
        if text.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        Ok(Self(text.trim().to_owned()))
    }
}

impl fmt::Display for Contributor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The label that datamon keeps: the newest bundle of a repo.
pub const LATEST: &str = "latest";

impl StageName {
    /// The staging tree that a repo has without `-o stage=`.
    pub fn default_stage() -> Self {
        Self("default".to_owned())
    }
}

/// One component of a path inside a tree: any bytes but `/` and NUL, 1 to 255 of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Bytes);

impl FileName {
    /// Parses `bytes`; `.`, `..`, `/`, NUL, emptiness and over-length are refused.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { max: NAME_BYTES_MAX, found: bytes.len() });
        }
        if &bytes[..] == b"." || &bytes[..] == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(NameError::NoFileName);
        }
        Ok(Self(bytes))
    }

    /// The name's bytes; not necessarily UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The shared buffer behind the name.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repo_name_starts_with_a_letter_or_digit() {
        assert!("census-2026_v1.0".parse::<RepoName>().is_ok());
        assert_eq!(".Trash-1000".parse::<RepoName>(), Err(NameError::Shape));
        assert_eq!("".parse::<RepoName>(), Err(NameError::Empty));
        assert_eq!("a/b".parse::<RepoName>(), Err(NameError::Shape));
        assert!("a".repeat(128).parse::<RepoName>().is_ok());
        assert!(matches!("a".repeat(129).parse::<RepoName>(), Err(NameError::TooLong { .. })));
    }

    #[test]
    fn a_label_is_never_latest_nor_shaped_like_a_bundle() {
        assert!("v1".parse::<LabelName>().is_ok());
        assert_eq!("latest".parse::<LabelName>(), Err(NameError::Reserved));
        assert_eq!("01JD3KZZZZZZZZZZZZZZZZZZZZ".parse::<LabelName>(), Err(NameError::Reserved));
    }

    #[test]
    fn a_contributor_is_a_line_of_text() {
        assert_eq!(" Ada <ada@lab> ".parse::<Contributor>().unwrap().to_string(), "Ada <ada@lab>");
        assert_eq!("a\tb".parse::<Contributor>(), Err(NameError::Control));
        assert_eq!(" ".parse::<Contributor>(), Err(NameError::Empty));
        assert!("é".repeat(128).parse::<Contributor>().is_ok());
        assert!("é".repeat(129).parse::<Contributor>().is_err());
    }

    #[test]
    fn a_file_name_is_any_bytes_but_slash_and_nul() {
        assert!(FileName::new(&b"\xff\xfe"[..]).is_ok());
        assert!(FileName::new(vec![b'n'; 255]).is_ok());
        assert!(FileName::new(vec![b'n'; 256]).is_err());
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert!(FileName::new(bad).is_err());
        }
    }
}
