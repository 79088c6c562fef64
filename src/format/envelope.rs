//! The envelope around every object but a pack's records: who wrote what, in which version, intact.
//!
//! ```text
//! magic "DATAMON\0" 8 · kind u8 · hash algorithm u8 (1 = BLAKE3) · major u16 · incompatible u32 · compatible u32
//! context id 16 · key id u32 (0 = plain) · body length u64 · body · BLAKE3 of all that stands before 32
//! ```
//!
//! A context record lies before any context is known and carries the id of the context that it describes.

use bytes::Bytes;

use super::FormatError;
use super::wire::{Reader, Writer};
use crate::model::id::{ContextId, ObjectHash};

const MAGIC: &[u8; 8] = b"DATAMON\0";
const HASH_BLAKE3: u8 = 1;
/// The major version that this program writes, and the only one it reads.
const MAJOR: u16 = 1;
/// Bytes before the body.
pub const HEAD_BYTES: usize = 8 + 1 + 1 + 2 + 4 + 4 + 16 + 4 + 8;
/// Bytes around the body.
pub const OVERHEAD_BYTES: usize = HEAD_BYTES + 32;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectKind {
    /// Settings and places of a context.
    ContextRecord = 1,
    /// A data or metadata pack (head only; the footer has its own hash).
    Pack = 2,
    /// A bundle.
    Descriptor = 3,
    /// A slot that will never hold a bundle.
    Aborted = 4,
    /// Names of repos.
    CatalogRecord = 5,
    /// Labels and history of one repo.
    RefsRecord = 6,
    /// Who is writing what.
    Intent = 7,
}

impl ObjectKind {
    const ALL: [Self; 7] = [
        Self::ContextRecord,
        Self::Pack,
        Self::Descriptor,
        Self::Aborted,
        Self::CatalogRecord,
        Self::RefsRecord,
        Self::Intent,
    ];

    /// The kind's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::ContextRecord => "context record",
            Self::Pack => "pack",
            Self::Descriptor => "descriptor",
            Self::Aborted => "aborted marker",
            Self::CatalogRecord => "catalog record",
            Self::RefsRecord => "refs record",
            Self::Intent => "intent",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The head in front of a body of `body_bytes` bytes.
pub fn head(kind: ObjectKind, context: ContextId, body_bytes: u64) -> Vec<u8> {
    head_with(kind, context, 0, body_bytes)
}

fn head_with(kind: ObjectKind, context: ContextId, compatible: u32, body_bytes: u64) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.array(MAGIC);
    writer.u8(kind as u8);
    writer.u8(HASH_BLAKE3);
    writer.u16(MAJOR);
    writer.u32(0);
    writer.u32(compatible);
    writer.array(&context.to_bytes());
    writer.u32(0);
    writer.u64(body_bytes);
    writer.into_bytes()
}

/// An object: head, `body`, hash.
pub fn seal(kind: ObjectKind, context: ContextId, body: &[u8]) -> Bytes {
    seal_with(kind, context, 0, body)
}

/// The same, with these compatible features.
pub fn seal_with(kind: ObjectKind, context: ContextId, compatible: u32, body: &[u8]) -> Bytes {
    let mut bytes = head_with(kind, context, compatible, body.len() as u64);
    bytes.extend_from_slice(body);
    let hash = ObjectHash::of(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    Bytes::from(bytes)
}

/// What a head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The kind of object.
    pub kind: ObjectKind,
    /// The context that wrote it.
    pub context: ContextId,
    /// Length of the body in bytes.
    pub body_bytes: u64,
}

/// Reads a head; `bytes` may go on behind it.
pub fn open_head(bytes: &[u8]) -> Result<Head, FormatError> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(FormatError::Malformed { what: "magic" });
    }
    let kind = ObjectKind::from_byte(reader.u8()?).ok_or(FormatError::Malformed { what: "object kind" })?;
    let hash_algorithm = reader.u8()?;
    let major = reader.u16()?;
    let incompatible = reader.u32()?;
    let _compatible = reader.u32()?;
    let context = ContextId::from_bytes(reader.array()?);
    let key = reader.u32()?;
    let body_bytes = reader.u64()?;
    let unknown = |features: String| FormatError::UnknownFeature { kind: kind.name(), features };
    if major != MAJOR {
        return Err(FormatError::UnknownVersion { kind: kind.name(), major });
    }
    if hash_algorithm != HASH_BLAKE3 {
        return Err(unknown(format!("hash algorithm {hash_algorithm}")));
    }
    if incompatible != 0 {
        return Err(unknown(feature_names(kind, incompatible)));
    }
    if key != 0 {
        return Err(unknown(format!("encryption with key {key}")));
    }
    Ok(Head { kind, context, body_bytes })
}

/// Incompatible features that format 1 has reserved, by kind and bit.
fn feature_names(kind: ObjectKind, bits: u32) -> String {
    match (kind, bits) {
        (ObjectKind::Descriptor, 1) => "aliases of subtrees".to_owned(),
        _ => format!("bits {bits:#x}"),
    }
}

/// The head of an object that is whole and intact.
fn sealed_head(bytes: &[u8]) -> Result<Head, FormatError> {
    let head = open_head(bytes)?;
    if bytes.len() < OVERHEAD_BYTES || (bytes.len() - OVERHEAD_BYTES) as u64 != head.body_bytes {
        return Err(FormatError::Truncated);
    }
    let (sealed, hash) = bytes.split_at(bytes.len() - 32);
    if ObjectHash::of(sealed).as_bytes()[..] != *hash {
        return Err(FormatError::Hash);
    }
    Ok(head)
}

/// Whether these are the bytes of an object of any kind and context as its writer sealed it.
pub fn is_whole(bytes: &[u8]) -> bool {
    sealed_head(bytes).is_ok()
}

/// The body of an object of `kind`, written by `context` (`None`: by any).
pub fn open(kind: ObjectKind, context: Option<ContextId>, bytes: &Bytes) -> Result<Bytes, FormatError> {
    let head = sealed_head(bytes)?;
    if head.kind != kind {
        return Err(FormatError::WrongKind { expected: kind.name(), found: head.kind.name() });
    }
    if context.is_some_and(|context| context != head.context) {
        return Err(FormatError::WrongContext);
    }
    Ok(bytes.slice(HEAD_BYTES..bytes.len() - 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context() -> ContextId {
        ContextId::from_parts(1, 2)
    }

    #[test]
    fn a_sealed_object_opens_and_the_golden_one_is_unchanged() {
        let object = seal(ObjectKind::Aborted, context(), b"golden body");
        assert_eq!(open(ObjectKind::Aborted, Some(context()), &object).unwrap(), &b"golden body"[..]);
        assert_eq!(&object[..], include_bytes!("../../tests/golden/envelope.bin"));
    }

    #[test]
    fn an_object_of_another_kind_context_version_or_feature_is_refused_by_name() {
        let object = seal(ObjectKind::Aborted, context(), b"body");
        assert!(matches!(open(ObjectKind::Intent, None, &object), Err(FormatError::WrongKind { .. })));
        let other = ContextId::from_parts(9, 9);
        assert_eq!(open(ObjectKind::Aborted, Some(other), &object), Err(FormatError::WrongContext));
        let patched = |at: usize, value: u8| {
            let mut bytes = object.to_vec();
            bytes[at] = value;
            open(ObjectKind::Aborted, None, &Bytes::from(bytes)).unwrap_err().to_string()
        };
        assert!(patched(10, 2).contains("format version 2 of a aborted marker"));
        assert!(patched(12, 1).contains("features"));
        assert!(patched(36, 1).contains("encryption"));
        assert!(patched(9, 7).contains("hash algorithm 7"));
    }

    proptest! {
        #[test]
        fn a_flipped_or_cut_object_never_opens(at in 0usize..80, bit in 0u8..8, cut in 1usize..80) {
            let object = seal(ObjectKind::Intent, context(), b"0123456789");
            let mut flipped = object.to_vec();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            prop_assert!(open(ObjectKind::Intent, Some(context()), &Bytes::from(flipped)).is_err());
            let cut = object.slice(..object.len() - cut.min(object.len()));
            prop_assert!(open(ObjectKind::Intent, Some(context()), &cut).is_err());
        }
    }
}
