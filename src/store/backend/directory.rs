//! A `file://` store: a directory, which has to be the same one for as long as it is open.
//!
//! A directory may be a mount point: of a disk, or of a network file system. When that is gone, what is below it is another
//! directory, and object_store would make a new store there: a commit would be told to be done whose objects nobody
//! finds any more when the disk is back. So the directory that was opened is known by its number, and looked for before a
//! request, and after one that wrote: an object that lies elsewhere counts for none.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::Failure;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    /// For what object_store does with it.
    pub(super) store: Arc<LocalFileSystem>,
    root: PathBuf,
    /// Device and inode (stat(2)).
    number: (u64, u64),
}

impl Directory {
    /// The directory at `root` as it is now.
    pub(super) fn open(store: Arc<LocalFileSystem>, root: PathBuf) -> io::Result<Self> {
        let number = number(&root)?;
        Ok(Self { store, root, number })
    }

    /// Whether it is still there. Nobody is told that a store lost what he had put there because its disk is not mounted.
    pub(super) async fn look(&self) -> Result<(), Failure> {
        let directory = self.clone();
        blocking(move || directory.is_there()).await
    }

    fn is_there(&self) -> Result<(), Failure> {
        match number(&self.root) {
            Ok(found) if found == self.number => Ok(()),
            Ok(_) => Err(self.gone("another directory is in its place")),
            Err(why) => Err(self.gone(&why.to_string())),
        }
    }

    fn gone(&self, why: &str) -> Failure {
        Failure::Transient(format!("{}: {why} (was its disk unmounted? mount it again)", self.root.display()))
    }

    /// The bytes `range` of an object, as far as it has them. object_store opens, looks and reads in two steps, and clears
    /// the memory first: for records of 1 MiB that is a third of the time.
    pub(super) async fn read_part(&self, object: &Path, range: Range<u64>) -> Result<Bytes, Failure> {
        let (directory, file) = (self.clone(), self.store.path_to_filesystem(object)?);
        let read = move || {
            directory.is_there()?;
            match read_file_part(&file, range.clone()) {
                // That it is not there is believed of the directory that was opened only.
                Err(why) if why.kind() == ErrorKind::NotFound => {
                    Err(directory.is_there().err().unwrap_or(Failure::NotFound))
                }
                Err(why) if why.kind() == ErrorKind::PermissionDenied => Err(Failure::Denied(why.to_string())),
                Err(why) => Err(Failure::Transient(why.to_string())),
                // As a store answers over HTTP: this range cannot be satisfied.
                Ok(bytes) if bytes.is_empty() && !range.is_empty() => Err(Failure::Short),
                Ok(bytes) => Ok(bytes),
            }
        };
        blocking(read).await
    }
}

/// The outcome of what waits for a disk. A network file system that hangs is waited for as any store is.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|why| Failure::Transient(why.to_string()))?
}

fn read_file_part(file: &std::path::Path, range: Range<u64>) -> io::Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let found = File::open(file)?;
    let mut filled = 0;
    while filled < bytes.len() {
        match found.read_at(&mut bytes[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    bytes.truncate(filled);
    Ok(Bytes::from(bytes))
}

fn number(root: &std::path::Path) -> io::Result<(u64, u64)> {
    let found = fs::metadata(root)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::super::{Place, make_directory};
    use super::*;

    #[tokio::test]
    async fn a_store_whose_disk_went_away_is_not_made_anew_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("store"), dir.path().join("away"));
        let url = format!("file://{}", root.display());
        let refusal = Place::open(&url, &Default::default(), &[]).err().unwrap().to_string();
        assert!(refusal.contains("is its disk mounted?") && !root.exists(), "{refusal}");
        make_directory(&url).unwrap();
        let place = Place::open(&url, &Default::default(), &[]).unwrap();
        place.create("a/b", Bytes::from_static(b"here")).await.unwrap();
        for is_covered in [false, true] {
            std::fs::rename(&root, &away).unwrap();
            if is_covered {
                std::fs::create_dir(&root).unwrap();
            }
            let all = [
                place.create("a/c", Bytes::from_static(b"lost")).await.map(drop),
                place.get("a/b", None).await.map(drop),
                place.get("a/b", Some(0..2)).await.map(drop),
                place.len("a/b").await.map(drop),
                place.list("a/").await.map(drop),
                place.first("a/").await.map(drop),
            ];
            for outcome in all {
                assert!(
                    matches!(&outcome, Err(Failure::Transient(why)) if why.contains("mount it again")),
                    "{outcome:?}"
                );
            }
            if is_covered {
                assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing was put there");
                std::fs::remove_dir(&root).unwrap();
            }
            assert!(!root.exists());
            std::fs::rename(&away, &root).unwrap();
            assert_eq!(place.get("a/b", None).await.unwrap(), "here");
        }
    }
    #[tokio::test]
    async fn a_part_of_an_object_in_a_directory_is_what_object_store_reads() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&format!("file://{}", dir.path().display()), &Default::default(), &[]).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        place.create("a/b%c d", bytes.clone().into()).await.unwrap();
        let whole = place.get("a/b%c d", None).await.unwrap();
        assert_eq!(whole, bytes);
        assert_eq!(place.get("a/b%c d", Some(10..20)).await.unwrap(), bytes[10..20]);
        assert_eq!(place.get("a/b%c d", Some(250..300)).await.unwrap(), bytes[250..], "as far as it goes");
        assert!(matches!(place.get("a/b%c d", Some(300..301)).await, Err(Failure::Short)));
        assert!(matches!(place.get("a/x", Some(0..1)).await, Err(Failure::NotFound)));
    }
}
