//! Extensions: what a body says behind its last field, so that records may grow.
//!
//! `{tag varint, string}`, by growing tag, each once; the head's compatible bit 0 says that there are some. A reader skips
//! a tag that it does not know and reads the record as if it were not there. What must not be skipped is no extension: it
//! takes an incompatible bit.

use super::FormatError;
use super::wire::{Reader, Writer};

/// The compatible feature of an object whose body has extensions.
pub const EXTENDED: u32 = 1;

/// Appends one extension; tags grow.
pub fn put(writer: &mut Writer, tag: u64, value: &[u8]) {
    writer.varint(tag);
    writer.string(value);
}

/// Reads all that is left, and gives each extension to `known`, which leaves alone what it does not know.
pub fn take_all(
    reader: &mut Reader<'_>,
    mut known: impl FnMut(u64, &mut Reader<'_>) -> Result<bool, FormatError>,
) -> Result<(), FormatError> {
    let mut last = None;
    while reader.remaining() > 0 {
        let tag = reader.varint()?;
        if last.is_some_and(|last| last >= tag) {
            return Err(FormatError::Malformed { what: "order of extensions" });
        }
        last = Some(tag);
        let mut value = Reader::new(reader.string()?);
        if known(tag, &mut value)? {
            value.finish()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_extension_is_skipped_and_a_known_one_is_read_to_its_end() {
        let mut writer = Writer::new();
        put(&mut writer, 3, b"what is this");
        put(&mut writer, 9, b"\x07");
        let bytes = writer.into_bytes();
        let mut found = None;
        let read = take_all(&mut Reader::new(&bytes), |tag, value| {
            if tag == 9 {
                found = Some(value.u8()?);
            }
            Ok(tag == 9)
        });
        assert_eq!((read, found), (Ok(()), Some(7)));
        assert!(take_all(&mut Reader::new(&bytes), |_, _| Ok(true)).is_err(), "nobody read the value");
    }

    #[test]
    fn tags_grow_and_lengths_are_bounded() {
        for bytes in [&[2, 0, 2, 0][..], &[2, 0, 1, 0], &[1], &[1, 9, 0], &[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]] {
            assert!(take_all(&mut Reader::new(bytes), |_, _| Ok(false)).is_err(), "{bytes:?}");
        }
    }
}
