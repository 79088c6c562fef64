//! The message that lies beside a staging tree until the next commit takes it.
//!
//! A file of its own in the state directory, so that it can be read and written without the tree: also while the tree is
//! another mount's. A change is a new file in place of the old one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::StagingError;
use crate::local::staged_files::make_directory;
use crate::model::clock::Timestamp;
use crate::model::limits::MESSAGE_BYTES_MAX;

/// See the module.
pub struct Message {
    path: PathBuf,
}

impl Message {
    /// The message beside the tree in `dir`.
    pub fn beside(dir: &Path) -> Self {
        Self { path: dir.join("message") }
    }

    /// Its bytes; none where there is none.
    pub fn read(&self) -> Result<Vec<u8>, StagingError> {
        match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => Ok(read?),
        }
    }

    /// When it was written; nothing where there is none.
    pub fn changed(&self) -> Result<Option<Timestamp>, StagingError> {
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let found = read?;
                Ok(Some(Timestamp { secs: found.mtime(), nanos: found.mtime_nsec() as u32 }))
            }
        }
    }

    /// Writes bytes at `offset`, or at its end.
    pub fn write(&self, offset: Option<u64>, data: &[u8]) -> Result<(), StagingError> {
        let mut bytes = self.read()?;
        let start = usize::try_from(offset.unwrap_or(bytes.len() as u64)).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        check(end as u64)?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        self.replace(&bytes)
    }

    /// Cuts or lengthens it.
    pub fn cut(&self, size: u64) -> Result<(), StagingError> {
        check(size)?;
        let mut bytes = self.read()?;
        if bytes.len() as u64 != size {
            bytes.resize(size as usize, 0);
            self.replace(&bytes)?;
        }
        Ok(())
    }

    /// Takes it away if it still is what was `used`.
    pub fn clear(&self, used: &[u8]) -> Result<(), StagingError> {
        if self.read()? == used { self.cut(0) } else { Ok(()) }
    }

    fn replace(&self, bytes: &[u8]) -> Result<(), StagingError> {
        if bytes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => Ok(removed?),
            };
        }
        if let Some(dir) = self.path.parent() {
            make_directory(dir)?;
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        Ok(fs::rename(&new, &self.path)?)
    }
}

fn check(bytes: u64) -> Result<(), StagingError> {
    if bytes > MESSAGE_BYTES_MAX as u64 { Err(StagingError::MessageTooLong) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_written_cut_and_taken_only_if_it_is_what_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let message = Message::beside(&dir.path().join("stage"));
        assert_eq!(message.read().unwrap(), b"");
        assert_eq!(message.changed().unwrap(), None);
        message.cut(0).unwrap();
        message.write(Some(0), b"first line\n").unwrap();
        message.write(None, b"second\n").unwrap();
        assert!(message.changed().unwrap().is_some_and(|time| time.secs > 0));
        message.write(Some(0), b"F").unwrap();
        assert_eq!(message.read().unwrap(), b"First line\nsecond\n");
        message.clear(b"something else").unwrap();
        message.cut(5).unwrap();
        assert_eq!(message.read().unwrap(), b"First");
        message.clear(b"First").unwrap();
        assert_eq!(message.read().unwrap(), b"");
        let far = message.write(Some(MESSAGE_BYTES_MAX as u64), b"x");
        assert!(matches!(far, Err(StagingError::MessageTooLong)));
        message.write(Some(MESSAGE_BYTES_MAX as u64 - 1), b"x").unwrap();
    }
}
