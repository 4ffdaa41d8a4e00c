//! The one thread that touches redb. What waits goes into one transaction, and nothing is answered
//! before that is on the disk.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::redb::{Database, Durability, StorageBackend as _};
use proto::entry::SignedEntry;
use proto::key::{PublicKey, SigningKey};
use tokio::sync::{mpsc, oneshot};

use super::file::{Head, HeadError, Pages};
use super::log::Log;
use super::tables::{Rows, Tables};
use super::{Disk, how_to_go_on};
use crate::store::{Change, Claim, Contents, Enrolled, Heard, Publication, Published, StoreError};

/// Jobs in one transaction.
const GROUP: usize = 4096;
/// A file that could not be written is not opened again sooner.
const PAUSE: Duration = Duration::from_millis(200);
/// The whole of a large mesh fits.
const CACHE: usize = 32 << 20;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

pub(super) enum Job {
    Load(Reply<Contents>),
    Append(Vec<SignedEntry>, Reply<u64>),
    Enrol(Claim, Arc<SigningKey>, Reply<Enrolled>),
    Publish(Publication, Reply<Published>),
    Forget(Vec<PublicKey>, Reply<u64>),
    Heard(Vec<(PublicKey, Heard)>, Reply<()>),
}

pub(super) struct Writer {
    path: PathBuf,
    disk: Disk,
    pages: Pages,
    head: Head,
    /// None after an error: redb writes no more until it is opened again.
    database: Option<Database>,
    /// Since when, and why.
    closed: Option<(Instant, StoreError)>,
    /// Above every revision that an older copy of this file can have given.
    base: u64,
    connected: BTreeSet<PublicKey>,
    log: Arc<Log>,
}

/// What came of one transaction.
enum Group {
    /// With the revision the file now has.
    Changed(u64, Vec<(u64, Change)>),
    Unchanged,
}

impl Writer {
    pub(super) fn create(path: PathBuf, disk: Disk, head: Head) -> Result<Writer, StoreError> {
        guard_against_panics(&path);
        let pages = Pages::create(Arc::clone(&disk), head).map_err(|error| {
            StoreError::Down(format!(
                "the store file {} cannot be written: {error}",
                path.display()
            ))
        })?;
        let mut writer = Writer::over(path, disk, pages, head);
        writer.open_database(true)?;
        Ok(writer)
    }

    pub(super) fn open(path: PathBuf, disk: Disk) -> Result<(Writer, Head), StoreError> {
        guard_against_panics(&path);
        let (pages, head) =
            Pages::open(Arc::clone(&disk)).map_err(|error| head_refused(&path, error))?;
        let mut writer = Writer::over(path, disk, pages, head);
        writer.open_database(false)?;
        Ok((writer, head))
    }

    fn over(path: PathBuf, disk: Disk, pages: Pages, head: Head) -> Writer {
        Writer {
            path,
            disk,
            pages,
            head,
            database: None,
            closed: None,
            base: microseconds_since_1970(),
            connected: BTreeSet::new(),
            log: Arc::new(Log::new(0)),
        }
    }

    pub(super) fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    /// Until every handle on the store is gone, or the disk can no longer be trusted.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        guard_against_panics(&self.path);
        while let Some(first) = jobs.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            self.handle_group(group);
        }
    }

    fn handle_group(&mut self, group: Vec<Job>) {
        let mut answers = Vec::with_capacity(group.len());
        let outcome = self.write(group, &mut answers).inspect_err(|error| {
            self.database = None;
            if self
                .closed
                .as_ref()
                .is_none_or(|(since, _)| since.elapsed() >= PAUSE)
            {
                self.closed = Some((Instant::now(), error.clone()));
            }
            if matches!(error, StoreError::Fatal(_)) {
                self.log.end(error.clone());
            }
        });
        // The followers first: who is answered finds the change there already.
        if let Ok(Group::Changed(revision, changes)) = &outcome {
            self.note_connected(changes);
            self.log.push(*revision, changes.clone());
        }
        let outcome = outcome.map(|_| ());
        for answer in answers {
            answer(outcome.clone());
        }
    }

    fn write(&mut self, group: Vec<Job>, answers: &mut Vec<Answer>) -> Result<Group, StoreError> {
        if let Err(error) = self.reopen() {
            answers.extend(group.into_iter().map(Job::refuse));
            return Err(error);
        }
        self.write_open(group, answers)
            .map_err(|error| self.explain(error))
    }

    fn write_open(
        &self,
        group: Vec<Job>,
        answers: &mut Vec<Answer>,
    ) -> Result<Group, ::redb::Error> {
        let begun = self.database.as_ref().map(Database::begin_write);
        let mut txn = match begun {
            Some(Ok(txn)) => txn,
            Some(Err(error)) => {
                answers.extend(group.into_iter().map(Job::refuse));
                return Err(error.into());
            }
            None => {
                answers.extend(group.into_iter().map(Job::refuse));
                return Err(std::io::Error::other("it is not open").into());
            }
        };
        let applied = self.apply(&mut txn, group, answers)?;
        match &applied {
            Group::Unchanged => txn.abort()?,
            Group::Changed(revision, _) => {
                txn.commit()?;
                self.pages.witness(*revision)?;
            }
        }
        Ok(applied)
    }

    fn apply(
        &self,
        txn: &mut ::redb::WriteTransaction,
        group: Vec<Job>,
        answers: &mut Vec<Answer>,
    ) -> Result<Group, ::redb::Error> {
        let durable = txn.set_durability(Durability::Immediate);
        let mut tables = match Tables::open(txn, self.base) {
            Ok(tables) => tables,
            Err(error) => {
                answers.extend(group.into_iter().map(Job::refuse));
                return Err(error.into());
            }
        };
        let mut failed = durable.err().map(::redb::Error::from);
        for job in group {
            answers.push(self.do_job(job, &mut tables, &mut failed));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if tables.changes.is_empty() {
            return Ok(Group::Unchanged);
        }
        let revision = tables.stored_revision()?;
        Ok(Group::Changed(
            revision,
            std::mem::take(&mut tables.changes),
        ))
    }

    fn do_job(
        &self,
        job: Job,
        tables: &mut Tables<'_>,
        failed: &mut Option<::redb::Error>,
    ) -> Answer {
        match job {
            Job::Load(reply) => {
                let contents = tables.rows().map(|rows| self.contents(rows));
                settle(contents, reply, failed)
            }
            Job::Append(entries, reply) => settle(tables.append(&entries), reply, failed),
            Job::Enrol(claim, broker, reply) => {
                settle(tables.enrol(&claim, &broker), reply, failed)
            }
            Job::Publish(publication, reply) => settle(tables.publish(&publication), reply, failed),
            Job::Forget(identities, reply) => settle(tables.forget(&identities), reply, failed),
            Job::Heard(heard, reply) => settle(tables.heard(&heard), reply, failed),
        }
    }

    fn contents(&self, rows: Rows) -> Contents {
        let heard = rows.heard.into_iter().map(|(identity, at)| {
            let connected = self.connected.contains(&identity);
            (identity, Heard { at, connected })
        });
        Contents {
            store: self.head.store,
            epoch: self.head.epoch,
            revision: rows.revision,
            entries: rows.entries,
            members: rows.members,
            uses: rows.uses,
            heard: heard.collect(),
            forgotten_at: rows.forgotten_at,
        }
    }

    /// Connections end with the process, so they are kept nowhere else.
    fn note_connected(&mut self, changes: &[(u64, Change)]) {
        for (_, change) in changes {
            match change {
                Change::Heard(identity, heard) if heard.connected => {
                    self.connected.insert(*identity);
                }
                Change::Heard(identity, _) | Change::Forgotten(identity) => {
                    self.connected.remove(identity);
                }
                Change::Entry(_) | Change::Member { .. } | Change::Use(_) => {}
            }
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.database.is_some() {
            return Ok(());
        }
        if self.pages.sync_failed() {
            return Err(self.fatal());
        }
        if let Some((since, error)) = &self.closed
            && since.elapsed() < PAUSE
        {
            return Err(error.clone());
        }
        let (pages, _) =
            Pages::open(Arc::clone(&self.disk)).map_err(|error| head_refused(&self.path, error))?;
        self.pages = pages;
        self.open_database(false)
    }

    fn open_database(&mut self, is_new: bool) -> Result<(), StoreError> {
        if !is_new && self.pages.len().is_ok_and(|length| length == 0) {
            // redb would begin a new database.
            return Err(damaged(&self.path, "has nothing after its first block"));
        }
        let (database, revision) = self
            .open_checked(is_new)
            .map_err(|error| self.explain(error))?;
        let witnessed = self.pages.witnessed();
        if revision < witnessed {
            return Err(damaged(
                &self.path,
                &format!("holds revision {revision}, and revision {witnessed} was acknowledged"),
            ));
        }
        self.log.found(revision);
        self.database = Some(database);
        Ok(())
    }

    fn open_checked(&self, is_new: bool) -> Result<(Database, u64), ::redb::Error> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true)
            .create_with_backend(self.pages.clone())?;
        let txn = database.begin_write()?;
        if !is_new && !Tables::are_in(&txn)? {
            txn.abort()?;
            let why = "tables are missing".to_owned();
            return Err(::redb::Error::Corrupted(why));
        }
        let tables = Tables::open(&txn, 0)?;
        // Every row is read once, so that what cannot be read is found now.
        let revision = tables.rows()?.revision;
        drop(tables);
        if is_new {
            txn.commit()?;
        } else {
            txn.abort()?;
        }
        Ok((database, revision))
    }

    fn explain(&self, error: ::redb::Error) -> StoreError {
        if self.pages.sync_failed() {
            return self.fatal();
        }
        // What the system does not say itself, redb found: a wrong first page, an end too soon.
        let is_found = matches!(&error, ::redb::Error::Io(error)
            if error.raw_os_error().is_none());
        let is_damaged = matches!(
            error,
            ::redb::Error::Corrupted(_)
                | ::redb::Error::UpgradeRequired(_)
                | ::redb::Error::TableTypeMismatch { .. }
                | ::redb::Error::TypeDefinitionChanged { .. }
                | ::redb::Error::TableIsMultimap(_)
                | ::redb::Error::UnorderedKey
        );
        if is_found || is_damaged {
            return damaged(&self.path, &format!("is damaged ({error})"));
        }
        StoreError::Down(format!(
            "the store file {} cannot be written: {error}; nothing more is acknowledged until it \
             can be, and it is tried again: see to the disk's space and health",
            self.path.display()
        ))
    }

    fn fatal(&self) -> StoreError {
        StoreError::Fatal(format!(
            "the store file {} could not be brought to the disk (fsync failed), and what is there \
             now is unknown; look at the disk (dmesg), then start the broker again: it goes on \
             from what the disk holds",
            self.path.display()
        ))
    }
}

impl Job {
    /// An answer for when the group fails before this job was begun.
    fn refuse(self) -> Answer {
        match self {
            Job::Load(reply) => refused(reply),
            Job::Append(_, reply) | Job::Forget(_, reply) => refused(reply),
            Job::Enrol(_, _, reply) => refused(reply),
            Job::Publish(_, reply) => refused(reply),
            Job::Heard(_, reply) => refused(reply),
        }
    }
}

fn refused<T: 'static>(reply: Reply<T>) -> Answer {
    Box::new(move |outcome| {
        if let Err(error) = outcome {
            answer(reply, Err(error));
        }
    })
}

/// Holds the answer back until the transaction is on the disk.
fn settle<T: 'static>(
    result: Result<T, ::redb::StorageError>,
    reply: Reply<T>,
    failed: &mut Option<::redb::Error>,
) -> Answer {
    match result {
        Ok(value) => Box::new(move |outcome| answer(reply, outcome.map(|()| value))),
        Err(error) => {
            failed.get_or_insert(error.into());
            refused(reply)
        }
    }
}

fn answer<T>(reply: Reply<T>, answer: Result<T, StoreError>) {
    // Who asked may have gone; what was written stays.
    let _ = reply.send(answer);
}

fn head_refused(path: &Path, error: HeadError) -> StoreError {
    match error {
        HeadError::Damaged(why) => damaged(path, why),
        HeadError::Io(error) => StoreError::Down(format!(
            "the store file {} cannot be read: {error}; see to the disk",
            path.display()
        )),
    }
}

fn damaged(path: &Path, why: &str) -> StoreError {
    StoreError::Damaged(format!(
        "the store file {} {why}; {}",
        path.display(),
        how_to_go_on()
    ))
}

fn microseconds_since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_micros()).ok())
        .unwrap_or(0)
}

thread_local! {
    static GUARDED: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// redb may panic on pages that were damaged under it, and a release build aborts on a panic. The
/// hook runs before that: on this thread it says what an operator can do, and ends the process.
fn guard_against_panics(path: &Path) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let guarded = GUARDED
                .try_with(|path| path.borrow().clone())
                .unwrap_or_default();
            let Some(path) = guarded else {
                return before(panic);
            };
            let why = panic
                .payload_as_str()
                .unwrap_or("no reason given")
                .to_owned();
            // There may be nobody to read it.
            let _ = writeln!(
                std::io::stderr(),
                "{}",
                damaged(&path, &format!("could not be used ({why})"))
            );
            std::process::exit(1);
        }));
    });
    GUARDED.with(|guarded| *guarded.borrow_mut() = Some(path.to_owned()));
}
