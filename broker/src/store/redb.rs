//! The store of a single broker: one file, nothing to set up.

mod file;
mod log;
mod tables;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use proto::entry::{SignedEntry, StoreId};
use proto::key::{PublicKey, SigningKey};
use tokio::sync::{mpsc, oneshot};

pub use self::file::Disk;
use self::file::{Head, LockedFile};
use self::log::Log;
use self::writer::{Job, Writer};
use super::{
    Batch, Claim, Contents, Doing, Enrolled, Heard, Publication, Published, Store, StoreError,
};

/// Jobs that wait; who comes later waits outside.
const WAITING: usize = 4096;

/// Dropping it waits until the last transaction is written and the file is free.
#[derive(Debug)]
pub struct RedbStore {
    /// None only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    log: Arc<Log>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// A new, empty store; refuses a path where anything is.
    pub fn create(path: &Path, store: StoreId) -> Result<(), StoreError> {
        let disk: Disk = Arc::new(LockedFile::create(path)?);
        let made = RedbStore::create_on(path, disk, store).map(drop);
        if made.is_err() {
            // Half a store is of no use; the error that led here is the one to tell.
            let _ = std::fs::remove_file(path);
        }
        made?;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            Some(_) | None => Path::new("."),
        };
        std::fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| {
                StoreError::Down(format!(
                    "the directory {} cannot be brought to the disk: {error}",
                    directory.display()
                ))
            })
    }

    /// The store that [`RedbStore::create`] made; never makes one.
    pub fn open(path: &Path, store: StoreId) -> Result<RedbStore, StoreError> {
        let disk: Disk = Arc::new(LockedFile::open(path)?);
        RedbStore::open_on(path, disk, store)
    }

    /// For tests that put something else in a file's place. The path is for error texts.
    pub fn create_on(path: &Path, disk: Disk, store: StoreId) -> Result<RedbStore, StoreError> {
        let mut epoch = [0; 16];
        getrandom::fill(&mut epoch).map_err(|error| {
            StoreError::Down(format!("the system gives no random numbers: {error}"))
        })?;
        let path = path.to_owned();
        RedbStore::start(move || Writer::create(path, disk, Head { store, epoch }))
    }

    /// The counterpart of [`RedbStore::create_on`].
    pub fn open_on(path: &Path, disk: Disk, store: StoreId) -> Result<RedbStore, StoreError> {
        let path = path.to_owned();
        RedbStore::start(move || open_this(path, disk, store))
    }

    /// redb is opened on the thread that uses it.
    fn start(
        open: impl FnOnce() -> Result<Writer, StoreError> + Send + 'static,
    ) -> Result<RedbStore, StoreError> {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let (tell, opened) = std::sync::mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let told = match open() {
                    Err(error) => tell.send(Err(error)),
                    Ok(writer) => {
                        let told = tell.send(Ok(writer.log()));
                        writer.run(waiting);
                        told
                    }
                };
                drop(told);
            })
            .map_err(|error| {
                StoreError::Down(format!("no thread for the store can be started: {error}"))
            })?;
        let log = opened.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(RedbStore {
            jobs: Some(jobs),
            log,
            writer: Some(writer),
        })
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.send(job(reply)).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Store for RedbStore {
    fn load(&self) -> Doing<'_, Contents> {
        Box::pin(self.ask(Job::Load))
    }

    fn changes(&self, after: u64) -> Doing<'_, Batch> {
        Box::pin(self.log.after(after))
    }

    fn append(&self, entries: Vec<SignedEntry>) -> Doing<'_, u64> {
        Box::pin(self.ask(|reply| Job::Append(entries, reply)))
    }

    fn enrol(&self, claim: Claim, broker: Arc<SigningKey>) -> Doing<'_, Enrolled> {
        Box::pin(self.ask(|reply| Job::Enrol(claim, broker, reply)))
    }

    fn publish(&self, publication: Publication) -> Doing<'_, Published> {
        Box::pin(self.ask(|reply| Job::Publish(publication, reply)))
    }

    fn forget(&self, identities: Vec<PublicKey>) -> Doing<'_, u64> {
        Box::pin(self.ask(|reply| Job::Forget(identities, reply)))
    }

    fn heard(&self, heard: Vec<(PublicKey, Heard)>) -> Doing<'_, ()> {
        Box::pin(self.ask(|reply| Job::Heard(heard, reply)))
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A panic there has ended the process already.
            let _ = writer.join();
        }
    }
}

fn open_this(path: PathBuf, disk: Disk, store: StoreId) -> Result<Writer, StoreError> {
    let name = path.display().to_string();
    let (writer, head) = Writer::open(path, disk)?;
    if head.store != store {
        return Err(StoreError::Damaged(format!(
            "the store file {name} is that of store {}, and this broker's is {store}; put the \
             right file there, or make a new broker with: causeway broker init",
            head.store
        )));
    }
    Ok(writer)
}

fn ended() -> StoreError {
    StoreError::Down("the store is closed".to_owned())
}

/// What to do without a usable store file. A store that is lost has lost which uses of tokens
/// were taken, so its id must not live on.
fn how_to_go_on() -> &'static str {
    "put it back from a backup. Without one, make a new broker in another state directory \
     (causeway broker init --mesh AUTHORITY_KEY), enter it with `causeway broker add`, remove this \
     one with `causeway broker remove`, and create unused tokens anew: nodes that have joined \
     publish there again by themselves"
}
