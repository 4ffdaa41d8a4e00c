//! The file that redb lives in: who may touch it, and a head of one block before redb's pages.
//!
//! The head names the store and witnesses the last revision that was acknowledged. redb goes back
//! to its previous commit when the last one does not verify, which after a crash is right and
//! after damage would lose what was acknowledged; the witness tells the two apart.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::redb::StorageBackend;
use proto::entry::StoreId;
use sha2::{Digest, Sha256};

use crate::store::StoreError;

const MAGIC: &[u8; 16] = b"causeway store 1";
/// redb's pages begin here.
const HEAD: u64 = 4096;
/// Each in a sector of its own, so that writing one cannot tear another.
const WITNESSES: [u64; 2] = [1024, 2048];
const CHECKSUM: usize = 16;

/// Where a [`super::RedbStore`] keeps its bytes. A file, or what a test puts in its place.
pub type Disk = Arc<dyn StorageBackend>;

/// The disk behind the head, as redb sees it. Clones are one disk.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    disk: Disk,
    /// After a failed sync nobody knows what the disk holds: nothing is written any more.
    sync_failed: Arc<AtomicBool>,
    witnessed: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) store: StoreId,
    pub(super) epoch: [u8; 16],
}

#[derive(Debug)]
pub(super) enum HeadError {
    Io(io::Error),
    /// In words that follow "the store file F".
    Damaged(&'static str),
}

/// A file that only this process writes, and only its owner reads.
#[derive(Debug)]
pub(super) struct LockedFile(File);

impl LockedFile {
    pub(super) fn create(path: &Path) -> Result<LockedFile, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                StoreError::Damaged(format!(
                    "the store file {} cannot be made: {error}",
                    path.display()
                ))
            })?;
        LockedFile(file).locked(path)
    }

    pub(super) fn open(path: &Path) -> Result<LockedFile, StoreError> {
        let refused = |why: String| StoreError::Damaged(why);
        let name = path.display();
        let found = path.symlink_metadata().map_err(|error| {
            refused(if error.kind() == io::ErrorKind::NotFound {
                format!(
                    "the store file {name} is missing; {}",
                    super::how_to_go_on()
                )
            } else {
                format!("the store file {name} cannot be looked at: {error}")
            })
        })?;
        if !found.is_file() {
            return Err(refused(format!(
                "{name} is no regular file; a store is kept in one, on a local disk"
            )));
        }
        let user = nix::unistd::geteuid();
        if found.uid() != user.as_raw() {
            return Err(refused(format!(
                "the store file {name} belongs to user {}, and this broker runs as user {user}; \
                 run it as the owner, or: chown {user} {name}",
                found.uid()
            )));
        }
        if found.mode() & 0o777 != 0o600 {
            return Err(refused(format!(
                "the store file {name} has mode {:03o}, where its owner and nobody else must read \
                 and write it; put it right with: chmod 600 {name}",
                found.mode() & 0o777
            )));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| {
                refused(format!(
                    "the store file {name} cannot be opened for writing: {error}; a broker needs \
                     its store on a disk that it may write to"
                ))
            })?;
        LockedFile(file).locked(path)
    }

    fn locked(self, path: &Path) -> Result<LockedFile, StoreError> {
        match self.0.try_lock() {
            Ok(()) => Ok(self),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked(format!(
                "the store file {} is in use by another broker; stop that one first, or give this \
                 one a state directory of its own (several brokers share a store only through etcd)",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(StoreError::Damaged(format!(
                "the store file {} cannot be locked: {error}; keep it on a local disk",
                path.display()
            ))),
        }
    }
}

impl StorageBackend for LockedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

impl Pages {
    /// Writes the head of a new store.
    pub(super) fn create(disk: Disk, head: Head) -> io::Result<Pages> {
        let pages = Pages::over(disk, 0);
        let mut block = vec![0; HEAD as usize];
        let mut named = Vec::from(MAGIC);
        named.extend_from_slice(&head.store.0);
        named.extend_from_slice(&head.epoch);
        named.extend_from_slice(&checksum(&named));
        block[..named.len()].copy_from_slice(&named);
        for at in WITNESSES {
            let at = at as usize;
            let witness = witness(0);
            block[at..at + witness.len()].copy_from_slice(&witness);
        }
        pages.disk.set_len(HEAD)?;
        pages.disk.write(0, &block)?;
        pages.disk.sync_data()?;
        Ok(pages)
    }

    pub(super) fn open(disk: Disk) -> Result<(Pages, Head), HeadError> {
        if disk.len().map_err(HeadError::Io)? < HEAD {
            return Err(HeadError::Damaged("is cut off in its first block"));
        }
        let mut block = vec![0; HEAD as usize];
        disk.read(0, &mut block).map_err(HeadError::Io)?;
        let (named, sum) = block[..64].split_at(48);
        if &named[..16] != MAGIC {
            return Err(HeadError::Damaged("does not begin as a store of Causeway"));
        }
        if checksum(named) != sum {
            return Err(HeadError::Damaged("is damaged in its first block"));
        }
        let field = |at: usize| <[u8; 16]>::try_from(&named[at..at + 16]).unwrap_or_default();
        let head = Head {
            store: StoreId(field(16)),
            epoch: field(32),
        };
        let witnessed = WITNESSES
            .iter()
            .filter_map(|at| read_witness(&block[*at as usize..]))
            .max()
            .ok_or(HeadError::Damaged("is damaged in its first block"))?;
        Ok((Pages::over(disk, witnessed), head))
    }

    fn over(disk: Disk, witnessed: u64) -> Pages {
        Pages {
            disk,
            sync_failed: Arc::new(AtomicBool::new(false)),
            witnessed: Arc::new(AtomicU64::new(witnessed)),
        }
    }

    /// The highest revision that was ever acknowledged.
    pub(super) fn witnessed(&self) -> u64 {
        self.witnessed.load(Ordering::Relaxed)
    }

    /// To be called between redb's commit and the acknowledgement.
    pub(super) fn witness(&self, revision: u64) -> io::Result<()> {
        // Even and odd turns, so that a torn write leaves the one before.
        let [even, odd] = WITNESSES;
        let newest = self.newest_slot()?;
        let at = if newest == even { odd } else { even };
        self.write_at(at, &witness(revision))?;
        self.sync_data()?;
        self.witnessed.store(revision, Ordering::Relaxed);
        Ok(())
    }

    fn newest_slot(&self) -> io::Result<u64> {
        let mut newest = (None, WITNESSES[0]);
        for at in WITNESSES {
            let mut bytes = [0; 8 + CHECKSUM];
            self.disk.read(at, &mut bytes)?;
            newest = newest.max((read_witness(&bytes), at));
        }
        Ok(newest.1)
    }

    pub(super) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.sync_failed() {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        self.disk.write(offset, data)
    }
}

impl StorageBackend for Pages {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.len()?.saturating_sub(HEAD))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset.saturating_add(HEAD), out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.sync_failed() {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        self.disk.set_len(len.saturating_add(HEAD))
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.disk.sync_data();
        if synced.is_err() {
            self.sync_failed.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset.saturating_add(HEAD), data)
    }
}

fn witness(revision: u64) -> Vec<u8> {
    let mut bytes = revision.to_be_bytes().to_vec();
    bytes.extend_from_slice(&checksum(&revision.to_be_bytes()));
    bytes
}

fn read_witness(bytes: &[u8]) -> Option<u64> {
    let (revision, rest) = bytes.split_first_chunk::<8>()?;
    (rest.get(..CHECKSUM)? == checksum(revision)).then(|| u64::from_be_bytes(*revision))
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&Sha256::digest(bytes)[..CHECKSUM]);
    sum
}
