//! The open rocksdb of a [`super::db::Database`], which is opened anew when the disk has refused it something.
//!
//! After one refused write or sync rocksdb takes no change any more, also when the disk is well again: it cannot know
//! what of its log is on the disk. Who opens it anew can: what the log held is read back, compared, and put into new
//! files with syncs of their own.
//!
//! ```text
//!           a change meets an error of the disk
//!   Well ──────────────────────────────────────> Mending ──> Well
//!    ^                                            │  ^
//!    └── the same files, open again               └──┘ the disk is not well yet, an instant is in use: a second later
//! ```
//!
//! # Invariants
//!
//! 1. The old one is given up only when a second one, opened beside it for reading, has shown that all it knows can be read
//!    back: after a failed sync the kernel takes pages for clean that never reached the disk, and may drop them. Until the
//!    third is open, reads are answered by that second one.
//! 2. What was in the log is in synced table files before the next change (rocksdb does that when it opens).
//! 3. A change that was refused is tried again once, after mending; it is the same change, so twice does no harm.
//! 4. Nobody waits longer than [`PATIENCE`]; then the refusal is told, and mending goes on.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use rocksdb::{ColumnFamilyDescriptor, DB, Options};

/// How often, and how many times, it is looked whether somebody has let go of a database.
pub(super) const ENDING_POLL: Duration = Duration::from_millis(20);
const ENDING_POLLS: usize = 250;
/// How long a change waits for mending.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long mending rests when it did not succeed.
const PAUSE: Duration = Duration::from_millis(500);
/// What the disk is asked to take before it counts as well: a file of this name, this long.
const PROBE: (&str, usize) = ("PROBE", 4096);

/// How the database is opened, each time.
pub(super) struct Opener {
    pub dir: PathBuf,
    pub options: Options,
    pub families: Box<dyn Fn() -> Vec<ColumnFamilyDescriptor> + Send + Sync>,
}

impl Opener {
    /// Opens the database, once whoever is letting go of it has done so: who may open it has the tree's lock, so nobody
    /// else goes on with it.
    fn open(&self) -> Result<DB, rocksdb::Error> {
        let lock = self.dir.join("LOCK");
        let mut polls = 0;
        loop {
            let opened = DB::open_cf_descriptors(&self.options, &self.dir, (self.families)());
            let is_held = |why: &rocksdb::Error| why.to_string().contains(&*lock.to_string_lossy());
            match opened {
                Err(why) if is_held(&why) && polls < ENDING_POLLS => std::thread::sleep(ENDING_POLL),
                opened => return opened,
            }
            polls += 1;
        }
    }

    /// The same for reading only, beside whoever has it open.
    fn open_beside(&self) -> Result<DB, rocksdb::Error> {
        DB::open_cf_descriptors_read_only(&self.options, &self.dir, (self.families)(), false)
    }
}

/// What reads are answered by.
struct Open {
    db: Arc<DB>,
    takes_changes: bool,
}

/// See the module.
pub(super) struct Handle {
    opener: Opener,
    now: RwLock<Open>,
    mending: Mutex<Mending>,
    ended: Condvar,
    this: Weak<Self>,
}

#[derive(Default)]
struct Mending {
    is_under_way: bool,
    /// Why the last attempt did not succeed.
    why_not: Option<String>,
}

/// Why there is no answer.
pub(super) enum Refused {
    /// rocksdb said so.
    Database(rocksdb::Error),
    /// It is being mended; why that has not succeeded yet, and what is to be done.
    Mending(String),
}

impl From<rocksdb::Error> for Refused {
    fn from(error: rocksdb::Error) -> Self {
        Self::Database(error)
    }
}

impl Handle {
    /// Opens the database, or makes it.
    pub fn open(opener: Opener) -> Result<Arc<Self>, rocksdb::Error> {
        let now = RwLock::new(Open { db: Arc::new(opener.open()?), takes_changes: true });
        let (mending, ended) = (Mutex::default(), Condvar::new());
        Ok(Arc::new_cyclic(|this| Self { opener, now, mending, ended, this: this.clone() }))
    }

    fn now(&self) -> RwLockReadGuard<'_, Open> {
        self.now.read().expect("no code panics while it holds the database")
    }

    /// Puts another in the place of the one that is open; answers that.
    fn replace(&self, db: DB, takes_changes: bool) -> Arc<DB> {
        let mut now = self.now.write().expect("no code panics while it holds the database");
        std::mem::replace(&mut *now, Open { db: Arc::new(db), takes_changes }).db
    }

    fn mending(&self) -> MutexGuard<'_, Mending> {
        self.mending.lock().expect("no code panics while it holds this")
    }

    /// Reads. Nobody may ask for another read inside of it.
    pub fn read<T>(&self, read: impl FnOnce(&DB) -> Result<T, rocksdb::Error>) -> Result<T, rocksdb::Error> {
        read(&self.now().db)
    }

    /// The database itself, which is not opened anew until that is dropped.
    pub fn keep(&self) -> Result<Arc<DB>, Refused> {
        let now = self.now();
        if now.takes_changes { Ok(now.db.clone()) } else { Err(Refused::Mending(self.why_not())) }
    }

    /// Changes. What the disk refuses is tried once more when the database is mended. Blocks for [`PATIENCE`] then.
    pub fn change<T>(&self, change: impl Fn(&DB) -> Result<T, rocksdb::Error>) -> Result<T, Refused> {
        match self.try_change(&change) {
            Err(Refused::Database(why)) if is_of_the_disk(&why) => {
                self.mend(&why);
                if self.is_mended_soon() {
                    self.try_change(&change)
                } else {
                    Err(Refused::Mending(format!("{why}; {}", self.why_not())))
                }
            }
            Err(Refused::Mending(_)) if self.is_mended_soon() => self.try_change(&change),
            outcome => outcome,
        }
    }

    fn try_change<T>(&self, change: impl Fn(&DB) -> Result<T, rocksdb::Error>) -> Result<T, Refused> {
        let now = self.now();
        if now.takes_changes { Ok(change(&now.db)?) } else { Err(Refused::Mending(self.why_not())) }
    }

    fn why_not(&self) -> String {
        self.mending().why_not.clone().unwrap_or_else(|| not_yet("it is being opened"))
    }

    /// Whether it is mended, at once or before anybody loses patience.
    fn is_mended_soon(&self) -> bool {
        let is_under_way = |mending: &mut Mending| mending.is_under_way;
        let waited = self.ended.wait_timeout_while(self.mending(), PATIENCE, is_under_way);
        !waited.expect("no code panics while it holds this").0.is_under_way
    }

    /// Begins to mend, on a thread of its own.
    fn mend(&self, why: &rocksdb::Error) {
        let mut mending = self.mending();
        if mending.is_under_way {
            return;
        }
        mending.is_under_way = true;
        tracing::warn!(%why, dir = %self.opener.dir.display(), "the disk refused a staging tree's database: it is opened anew");
        let this = self.this.clone();
        std::thread::spawn(move || {
            // Nobody else to tell when the tree was closed meanwhile.
            while let Some(handle) = this.upgrade() {
                if handle.try_to_mend() {
                    return;
                }
                drop(handle);
                std::thread::sleep(PAUSE);
            }
        });
    }

    /// One attempt; says whether all is well.
    fn try_to_mend(&self) -> bool {
        let outcome = self.exchange();
        let mut mending = self.mending();
        match outcome {
            Ok(()) => {
                tracing::info!(dir = %self.opener.dir.display(), "a staging tree's database is open again, with all it had");
                *mending = Mending::default();
                self.ended.notify_all();
                true
            }
            Err(why) => {
                mending.why_not = Some(why);
                false
            }
        }
    }

    /// Gives the open database up for one that is opened anew, if the disk lets it and nothing gets lost by that.
    pub(super) fn exchange(&self) -> Result<(), String> {
        let is_in_use = |now: &Open| now.takes_changes && Arc::strong_count(&now.db) > 1;
        if is_in_use(&self.now()) {
            return Err(not_yet("a commit is under way"));
        }
        probe(&self.opener.dir).map_err(|why| not_yet(format!("the disk is not well: {why}")))?;
        if self.now().takes_changes {
            let beside = self.opener.open_beside().map_err(not_yet)?;
            let mut now = self.now.write().expect("no code panics while it holds the database");
            let lacking = now.db.latest_sequence_number().saturating_sub(beside.latest_sequence_number());
            if lacking > 0 {
                return Err(lost(lacking));
            }
            if is_in_use(&now) {
                return Err(not_yet("a commit has begun"));
            }
            let old = std::mem::replace(&mut *now, Open { db: Arc::new(beside), takes_changes: false });
            drop((now, old));
        }
        let opened = self.opener.open().map_err(not_yet)?;
        drop(self.replace(opened, true));
        Ok(())
    }
}

/// What time and the disk will mend.
fn not_yet(why: impl fmt::Display) -> String {
    format!("{why} (nothing that was synced is lost; it is opened anew as soon as the disk takes writes again)")
}

/// What only memory has can be read, and no more.
fn lost(changes: u64) -> String {
    format!(
        "{changes} changes that were not synced are only in memory, the disk has lost them: copy what is staged to another \
         disk, then umount -i and mount again, which shows what was synced"
    )
}

/// Whether the disk takes something: a refusal costs no more than the try.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE.0);
    let mut file = File::create(&path)?;
    let written = file.write_all(&[0; PROBE.1]).and_then(|()| file.sync_data());
    // What stays is written over the next time.
    let _ = fs::remove_file(&path);
    written
}

/// Whether rocksdb goes on only when it is opened anew. Of a full disk it recovers by itself.
fn is_of_the_disk(why: &rocksdb::Error) -> bool {
    let why = why.as_ref();
    why.starts_with("IO error") && !why.contains("No space left")
}
