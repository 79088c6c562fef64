//! The record of a context in the config role: its identity and where its roles lie.
//!
//! Body: `time · previous record's hash 32 · name · description · five role URLs in the order meta, vmeta, blob, wal,
//! readlog (empty: below the store itself)`. No secrets, and nothing that only one host needs.

use super::FormatError;
use super::refs::{put_time, take_text, take_time};
use super::wire::{Reader, Writer};
use crate::model::clock::Timestamp;
use crate::model::id::ObjectHash;
use crate::model::name::ContextName;

/// One state of a context's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRecord {
    /// When it was written.
    pub time: Timestamp,
    /// Hash of the whole previous record object; `None` for the first.
    pub previous: Option<ObjectHash>,
    /// The context's name.
    pub name: ContextName,
    /// What it is for.
    pub description: String,
    /// URLs of meta, vmeta, blob, wal, readlog; empty: the store's own.
    pub roles: [String; 5],
}

impl ContextRecord {
    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        put_time(&mut writer, self.time);
        writer.array(&self.previous.map_or([0; 32], |hash| hash.0));
        writer.string(self.name.as_str().as_bytes());
        writer.string(self.description.as_bytes());
        self.roles.iter().for_each(|url| writer.string(url.as_bytes()));
        writer.into_bytes()
    }

    /// The record with this body.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let time = take_time(&mut reader)?;
        let previous = Some(ObjectHash(reader.array()?)).filter(|hash| hash.0 != [0; 32]);
        let name = take_text(&mut reader)?.parse().map_err(|_| FormatError::Malformed { what: "context name" })?;
        let description = take_text(&mut reader)?;
        let mut roles: [String; 5] = Default::default();
        for role in &mut roles {
            *role = take_text(&mut reader)?;
        }
        reader.finish()?;
        Ok(Self { time, previous, name, description, roles })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::envelope::{self, ObjectKind};
    use crate::model::id::ContextId;
    use proptest::prelude::*;

    fn sample() -> ContextRecord {
        ContextRecord {
            time: Timestamp { secs: 5, nanos: 6 },
            previous: None,
            name: "prod".parse().unwrap(),
            description: "the lab's".into(),
            roles: ["".into(), "".into(), "s3://b/p".into(), "".into(), "".into()],
        }
    }

    #[test]
    fn the_golden_record_is_unchanged() {
        let object = envelope::seal(ObjectKind::ContextRecord, ContextId::from_parts(1, 2), &sample().encode());
        let golden = include_bytes!("../../tests/golden/context.bin");
        assert_eq!(&object[..], golden, "these bytes are in stores: a change needs another version");
    }

    #[test]
    fn a_record_comes_back_and_a_cut_one_does_not() {
        let body = sample().encode();
        assert_eq!(ContextRecord::decode(&body), Ok(sample()));
        assert!((0..body.len()).all(|cut| ContextRecord::decode(&body[..cut]).is_err()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, at: usize, bit in 0u8..8) {
            let _ = ContextRecord::decode(&bytes);
            let mut flipped = sample().encode();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            let _ = ContextRecord::decode(&flipped);
        }
    }
}
