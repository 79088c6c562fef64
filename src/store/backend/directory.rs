//! A `file://` store: a directory, which has to be the same one for as long as it is open.
//!
//! A directory may be a mount point: of a disk, or of a network file system. When that is gone, what is below it is another
//! directory, and object_store would make a new store there: a commit would be told to be done whose objects nobody
//! finds any more when the disk is back. So the directory that was opened is known by its number, and looked for before a
//! request, and after one that wrote: an object that lies elsewhere counts for none.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::local::LocalFileSystem;

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
        let root = self.root.clone();
        // A network file system that hangs is waited for as any store is.
        let found = tokio::task::spawn_blocking(move || number(&root)).await;
        match found.map_err(|why| Failure::Transient(why.to_string()))? {
            Ok(found) if found == self.number => Ok(()),
            Ok(_) => Err(self.gone("another directory is in its place")),
            Err(why) => Err(self.gone(&why.to_string())),
        }
    }

    fn gone(&self, why: &str) -> Failure {
        Failure::Transient(format!("{}: {why} (was its disk unmounted? mount it again)", self.root.display()))
    }
}

fn number(root: &std::path::Path) -> io::Result<(u64, u64)> {
    let found = fs::metadata(root)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Failure, Place};

    #[tokio::test]
    async fn a_store_whose_disk_went_away_is_not_made_anew_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("store"), dir.path().join("away"));
        let place = Place::open(&format!("file://{}", root.display()), &Default::default(), &[]).unwrap();
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
}
